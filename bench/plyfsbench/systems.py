# SPDX-License-Identifier: MIT
"""How each system is mounted on a stack of layers, and how it is ended, also when it hangs."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import plyfs_testlib as lib

MOUNT_TIMEOUT, UMOUNT_TIMEOUT = 30, 60


class MountFailed(Exception):
    """The text says what the system said."""


@dataclass
class Stack:
    """What is to be mounted. lowers: the topmost first.

    merged is the directory which holds the content as plain files: what "native" works on.
    """

    lowers: list
    point: str
    merged: str
    upper: str
    work: str


@dataclass
class Mounted:
    """A mount that works."""

    system: "System"
    point: str
    seconds: float = 0.0
    device: str = None  # of a FUSE mount: major:minor
    pids: list = field(default_factory=list)  # its daemons, which are our children

    def rss(self):
        """Bytes in memory of all its daemons."""
        total = 0
        for pid in self.pids:
            with contextlib.suppress(OSError):
                status = Path(f"/proc/{pid}/status").read_text()
                total += int(re.search(r"VmRSS:\s+(\d+)", status)[1]) * 1024
        return total

    def abort(self):
        """Make every request fail at once: whoever waits for one wakes up."""
        if self.device:
            lib.abort_connection(self.device)
        for pid in self.pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def umount(self):
        """Returns what went wrong, or None. Whatever does, the mount is gone afterwards."""
        if not self.system.mounts:
            return None
        problem = run_bounded(["umount", self.point], UMOUNT_TIMEOUT)
        if problem:
            self.abort()
            with contextlib.suppress(OSError):
                lib.sys_umount(self.point, lib.MNT_DETACH)
        return self.end_daemons() or problem

    def end_daemons(self):
        problem = None
        for pid in self.pids:
            if not reap(pid, 20):
                problem = "its daemon outlived the mount"
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                reap(pid, 5)
        return problem


def reap(pid, seconds):
    """Whether this child ends within so many seconds."""
    end = time.monotonic() + seconds
    while True:
        try:
            if os.waitpid(pid, os.WNOHANG)[0]:
                return True
        except ChildProcessError:
            return True
        if time.monotonic() > end:
            return False
        time.sleep(0.002)


def run_bounded(command, seconds, **kw):
    """What the command said if it failed, or None."""
    # a file and no pipe, which a daemon may keep open
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        try:
            status = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, check=False,
                timeout=seconds, **kw,
            ).returncode
        except subprocess.TimeoutExpired:
            return f"{os.path.basename(command[0])}: not done within {seconds} s"
        output.seek(0)
        said = output.read().strip().splitlines()
    if status:
        return said[-1] if said else f"{os.path.basename(command[0])}: exit {status}"
    return None


class System:
    """One union filesystem in one mode."""

    mounts = True
    is_fuse = True
    is_plyfs = False
    metacopy = None  # the options that ask for it
    is_incumbent = False  # fuse-overlayfs, in one version or another
    first_round_only = False  # for orientation: one sample is enough

    def __init__(self, name, program=None, options=""):
        self.name, self.program, self.options = name, program, options

    def command(self, stack, options):
        """(argv, working directory) of the mount."""
        raise NotImplementedError

    def shown_command(self):
        stack = Stack(["/LOWER..."], "/MNT", "", "/UPPER", "/WORK")
        return " ".join(self.command(stack, self.options)[0])

    def version(self):
        done = subprocess.run(
            [self.program, "--version"], capture_output=True, text=True, check=False, timeout=10
        )
        lines = (done.stdout + done.stderr).strip().splitlines()
        return next((x for x in lines if "version" in x or "plyfs" in x), lines[0] if lines else "?")

    def available(self):
        """None, or why not."""
        if self.program and not shutil.which(self.program):
            return f"{self.program} is not installed"
        return None

    def mount(self, stack, options=""):
        options = ",".join(x for x in (self.options, options) if x)
        command, cwd = self.command(stack, options)
        before = set(lib.children())
        start = time.monotonic()
        problem = run_bounded(command, MOUNT_TIMEOUT, cwd=cwd)
        mounted = Mounted(self, stack.point)
        if self.is_fuse:
            mounted.pids = [p for p in lib.children() if p not in before]
        table = None if problem else self.wait_for_mount(stack.point, start)
        mounted.seconds = time.monotonic() - start
        if table is None:
            mounted.abort()
            mounted.umount()
            raise MountFailed(problem or "nothing is mounted")
        # only then is the device's number that of a connection
        mounted.device = table[3] if table[1].startswith("fuse") else None
        return mounted

    @staticmethod
    def wait_for_mount(point, start):
        """Some daemons return before the mount is there."""
        while True:
            table = lib.find_mount(point)
            if table or time.monotonic() - start > 5:
                return table
            time.sleep(0.0005)


class Native(System):
    """A plain directory with the merged content: what no union filesystem can be faster than."""

    mounts = is_fuse = False

    def command(self, stack, options):
        return ["true"], "/"

    def shown_command(self):
        return "a plain directory"

    def version(self):
        return "-"

    def mount(self, stack, options=""):
        return Mounted(self, stack.merged)


class Kernel(System):
    """The kernel's overlayfs, mounted by mount(8)."""

    is_fuse = False
    metacopy = "metacopy=on,redirect_dir=on"

    def command(self, stack, options):
        # mount(2) takes one page of options: layers are named from where they lie
        parent = os.path.commonpath([os.path.dirname(p) for p in stack.lowers])
        lowers = [os.path.relpath(p, parent) for p in stack.lowers]
        data = lib.layer_options(lowers, stack.upper, stack.work, options)
        return ["mount", "-t", "overlay", "overlay", "-o", data, stack.point], parent

    def shown_command(self):
        return "mount -t overlay" + (f" -o {self.options}" if self.options else "")

    def version(self):
        return os.uname().release


class Plyfs(System):
    is_plyfs = True
    metacopy = "metacopy=on"

    def command(self, stack, options):
        data = lib.layer_options(stack.lowers, stack.upper, stack.work, options)
        return [self.program, "mount", "-o", data, stack.point], "/"


class FuseOverlayfs(System):
    """fuse-overlayfs, and whatever is called in its way."""

    is_incumbent = True

    def command(self, stack, options):
        data = lib.layer_options(stack.lowers, stack.upper, stack.work, options)
        return [self.program, "-o", data, stack.point], "/"


class Branches(System):
    """What takes its layers as branches: the topmost first, with what may be done to each."""

    first_round_only = True

    def command(self, stack, options):
        branches = [f"{stack.upper}=RW", *(f"{p}=RO" for p in stack.lowers)]
        return [self.program, "-o", options, ":".join(branches), stack.point], "/"


def known(plyfs, peers=()):
    """Every system that this machine may have, in the order of the tables."""
    systems = [
        Native("native"),
        Kernel("overlay"),
        Plyfs("plyfs", plyfs),
        Plyfs("plyfs-passthrough", plyfs, "io=passthrough"),
        Plyfs("plyfs-cached", plyfs, "io=cached"),
        Plyfs("plyfs-uring", plyfs, "io=cached,transport=uring"),
        FuseOverlayfs("fuse-overlayfs", "fuse-overlayfs"),
        Branches("unionfs", "unionfs", "cow,hide_meta_files"),
        Branches("mergerfs", "mergerfs", "category.create=ff"),
    ]
    for peer in peers:
        name, _, path = peer.rpartition("=")
        systems.append(FuseOverlayfs(name or os.path.basename(path), path))
    return systems


def known_rootless(plyfs, peers=()):
    """Those that an ordinary user can mount in a user namespace."""
    systems = [
        Native("native"),
        Kernel("overlay", options="userxattr"),
        Plyfs("plyfs", plyfs),
        Plyfs("plyfs-cached", plyfs, "io=cached"),
        FuseOverlayfs("fuse-overlayfs", "fuse-overlayfs"),
    ]
    for peer in peers:
        name, _, path = peer.rpartition("=")
        systems.append(FuseOverlayfs(name or os.path.basename(path), path))
    return systems
