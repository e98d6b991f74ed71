# SPDX-License-Identifier: MIT
"""A server killed before each of its system calls.

strace(1) sends SIGKILL when a thread of the server makes its Nth statx, linkat and so on; N grows
until the operation ends first. Then either implementation mounts the layers.
"""

import os
import subprocess

import plyfs_testlib as lib


def attach(daemon, call, n):
    """Has the server killed when a thread makes this call for the Nth time."""
    return trace(daemon, ["-o", "/dev/null", "-e", f"inject={call}:signal=SIGKILL:when={n}"])


def trace(daemon, options):
    """strace(1) with these options on every thread of the server."""
    tracer = subprocess.Popen(
        ["strace", "-f", "-qq", "-p", str(daemon.pid), *options],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )

    def traced():
        if not daemon.alive():
            return True  # it made the call already
        assert tracer.poll() is None, tracer.stderr.read().decode()
        for task in os.listdir(f"/proc/{daemon.pid}/task"):
            status = lib.read(f"/proc/{daemon.pid}/task/{task}/status").decode()
            if "TracerPid:\t0\n" in status:
                return False
        return True

    lib.wait_for(traced, 10, "strace on every thread")
    return tracer


def kill_at(union, options, before, operation, call, n):
    """True when the server was killed, False when the operation ended first."""
    union.mount(options)
    before(union.point)
    daemon, mounted = union.daemon, union.mounted
    tracer = attach(daemon, call, n)
    try:
        try:
            operation(union.point)
            ended = True
        except OSError:
            ended = False
        # a thread that waits may have reached its last call when another was done already
        killed = not ended or not daemon.alive()
        mounted.live = False
        daemon.kill()
        daemon.wait()
        lib.sys_umount(union.point, lib.MNT_DETACH)
    finally:
        tracer.terminate()
        tracer.wait(10)
        tracer.stderr.close()
    union.mounts = []
    return killed


class Sweep:
    """One operation, with options, on layers that make_lower(union) makes.

    view(point) is what has to be as before or as after. check(union, impl, states) mounts the layers
    that a crash left with one implementation and returns what it saw; compare(seen, order) returns
    lines about what the two saw, seen[0] and order[0] being the first's.
    """

    def __init__(self, new_union, base, options, make_lower, view, check, compare, impl=None):
        self.new_union = new_union
        self.base = base
        self.options = options
        self.make_lower = make_lower
        self.view = view
        self.check = check
        self.compare = compare
        self.impl = impl  # who makes the states before and after; None: the one under test

    def union(self, name):
        union = self.new_union(name, self.base)
        self.make_lower(union)
        return union

    def states(self, before, operation):
        """What there is before and after."""
        out = []
        for name in ("before", "after"):
            union = self.union(name)
            union.check_work = self.impl != "kernel"  # which leaves its index there
            union.mount(self.options, impl=self.impl)
            before(union.point)
            if name == "after":
                operation(union.point)
            out.append(self.view(union.point))
            union.umount()
        return out

    def kill(self, before, operation, states, call, n):
        union = self.union(f"{call}{n}")
        union.check_work = False
        killed = kill_at(union, self.options, before, operation, call, n)
        if killed:
            order = ("kernel", "plyfs") if n % 2 else ("plyfs", "kernel")
            try:
                seen = [self.check(union, impl, states) for impl in order]
            except (AssertionError, OSError) as e:
                raise AssertionError(f"killed before {call} number {n}: {e}") from e
            problems = self.compare(seen, order)
            assert not problems, f"killed before {call} number {n}:\n" + "\n".join(problems)
        union.closed = True
        lib.remove_tree(union.base)
        return killed

    def run(self, operation, before, calls, most=100):
        """Kills it before each of these calls, again and again until the operation ends first."""
        states = self.states(before, operation)
        killed = 0
        for call in calls:
            for n in range(1, most):
                if not self.kill(before, operation, states, call, n):
                    break
                killed += 1
        assert killed, "the operation was not interrupted"


def case_name(case):
    """Of a tuple that begins with op_NAME and before_NAME."""
    return f"{case[0].__name__[3:]}-{case[1].__name__[7:]}"
