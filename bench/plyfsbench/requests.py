# SPDX-License-Identifier: MIT
"""How many requests, by opcode, and how many system calls of the server each operation costs.

Requests are counted by the kernel's tracepoint fuse_request_send, so any FUSE filesystem can be
looked at, in any mode. FORGETs do not pass it: nobody waits for them. System calls are counted by
strace -f -c, which also makes everything slow: no time is measured here.
"""

import argparse
import collections
import contextlib
import os
import re
import select
import signal
import subprocess
import threading
import time
from pathlib import Path

import plyfs_testlib as lib

from . import ROOT, machine, systems, trees, workloads
from .main import say, wanted, wanted_workload, words
from .sample import Bench, Sample, fill

TRACING = Path("/sys/kernel/tracing")
SHOWN_CALLS = 6  # the most frequent system calls of a cell


class Requests:
    """Counts the requests of one connection, in a trace instance of its own."""

    def __init__(self):
        if not (TRACING / "events").exists():
            lib.sys_mount("tracefs", TRACING, "tracefs")
        self.place = TRACING / "instances" / f"plyfs-bench-{os.getpid()}"
        self.place.mkdir()
        self.event = self.place / "events/fuse/fuse_request_send"
        if not self.event.exists():
            self.close()
            raise machine.Stop("this kernel has no tracepoint fuse_request_send")
        (self.place / "buffer_size_kb").write_text("8192")

    def close(self):
        with contextlib.suppress(OSError):
            self.place.rmdir()

    @contextlib.contextmanager
    def counting(self, device):
        """Yields a Counter of opcodes, complete when the block has ended."""
        counter, done = collections.Counter(), threading.Event()
        (self.event / "filter").write_text(f"connection == {device.split(':')[1]}")
        (self.event / "enable").write_text("1")
        pipe = os.open(self.place / "trace_pipe", os.O_RDONLY | os.O_NONBLOCK)
        reader = threading.Thread(target=self._read, args=(pipe, counter, done))
        reader.start()
        try:
            yield counter
        finally:
            time.sleep(0.02)  # RELEASE and the like come after the call that caused them
            (self.event / "enable").write_text("0")
            done.set()
            reader.join()
            os.close(pipe)

    @staticmethod
    def _read(pipe, counter, done):
        rest = b""
        while True:
            last = done.is_set()
            select.select([pipe], [], [], 0.02)
            try:
                while True:
                    lines = (rest + os.read(pipe, 1 << 16)).split(b"\n")
                    rest = lines.pop()
                    for line in lines:
                        found = re.search(rb"\(FUSE_(\w+)\)", line)
                        if found:
                            counter[found[1].decode()] += 1
                        elif b"LOST" in line:
                            counter["LOST EVENTS"] += 1
            except BlockingIOError:
                if last:
                    return


@contextlib.contextmanager
def calls_of(pids, scratch):
    """Yields a Counter of the system calls of these processes, filled when the block has ended."""
    counter = collections.Counter()
    if not pids:
        yield counter
        return
    out = Path(scratch) / "strace"
    command = ["strace", "-f", "-c", "-U", "name,calls", "-o", out]
    for pid in pids:
        command += ["-p", str(pid)]
    tracer = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    for _ in pids:
        tracer.stderr.readline()  # "Process N attached"
    try:
        yield counter
    finally:
        tracer.send_signal(signal.SIGINT)
        tracer.communicate(timeout=30)
        for line in out.read_text().splitlines():
            found = re.fullmatch(r"\s*(\w+)\s+(\d+)\s*", line)
            if found and found[1] != "total":
                counter[found[1]] = int(found[2])


class CountingSample(Sample):
    """Looks at the server while each step runs; of repetitions the last one counts."""

    def __init__(self, bench, system, prefix, requests, strace):
        super().__init__(bench, system, prefix)
        self.requests, self.strace = requests, strace
        self.counts = {}  # metric: (items, requests, system calls)

    @contextlib.contextmanager
    def watched(self, metric, items):
        with calls_of(self.mounted.pids if self.strace else [], self.bench.scratch) as calls:
            with self.requests.counting(self.mounted.device) as requests:
                yield
        self.counts[self.prefix + metric] = (items or 1, requests, calls)


# --- the tables ------------------------------------------------------------------------------------


def per_item(counter, items, most=None):
    """What each item costs: "LOOKUP 1, READDIRPLUS 0.02"; what is rarer than 1 in 1000 is left out."""
    shown = [(n / items, name) for name, n in counter.most_common(most) if n / items >= 0.001]
    return ", ".join(f"{name} {n:.3g}" for n, name in shown) or "-"


def rows(counts, failures):
    """[(metric, system, requests, by opcode, system calls, by name)]; counts: {(metric, system): ...}"""
    out = []
    for (metric, system), (items, requests, calls) in counts.items():
        failed = failures.get((metric, system))
        out.append((
            metric, system, f"{requests.total() / items:.3g}", per_item(requests, items),
            f"{calls.total() / items:.3g}" if calls else "-",
            f"FAILED: {failed}" if failed else per_item(calls, items, SHOWN_CALLS),
        ))
    order = [f"{w.name}/{m}" for w in workloads.load() for m in w.metrics]
    return sorted(out, key=lambda row: order.index(row[0]))


def for_page(table):
    """Markdown, a table a workload."""
    out, group = [], None
    for metric, *rest in table:
        workload, _, step = metric.partition("/")
        if workload != group:
            group = workload
            title = next(w.title for w in workloads.load() if w.name == workload)
            out += ["", f"**{workload}**: {title}", "",
                    "| | system | requests | by opcode | system calls | by call |",
                    "|---|---|---|---|---|---|"]
        out.append(f"| {step} | {' | '.join(rest)} |")
    return "\n".join(out).strip() + "\n"


# --- the command -----------------------------------------------------------------------------------


def parse(arguments):
    env = os.environ.get
    p = argparse.ArgumentParser(prog="bench/requests", description=__doc__.splitlines()[0])
    add = p.add_argument
    add("--only", default=env("ONLY"), help="patterns of workloads or metrics")
    add("--systems", default=env("SYSTEMS") or "plyfs*", help="patterns of systems: plyfs* fuse-overlayfs")
    add("--peers", default=env("PEERS"), help="programs called as fuse-overlayfs is")
    add("--scale", type=float, default=float(env("SCALE") or 0.02), help="part of the numbers of files")
    add("--no-strace", action="store_true", help="requests alone")
    add("--fs", default=env("FS") or "ext4", help="where layers lie: ext4, xfs, tmpfs")
    add("--scratch", default=env("SCRATCH") or "/var/tmp", help="where the directory of the run is made")
    add("--out", default=env("OUT") or ROOT / "build" / "bench", help="where requests.md goes")
    add("--plyfs", default=env("PLYFS") or ROOT / "build" / "plyfs")
    args = p.parse_args(arguments)
    args.only, args.systems, args.peers = words(args.only), words(args.systems), words(args.peers)
    return args


def count(bench, system, chosen, requests, strace, counts, failures):
    for workload in chosen:
        sample = CountingSample(bench, system, f"{workload.name}/", requests, strace)
        fill(sample, workload)
        for metric, found in sample.counts.items():
            counts[metric, system.name] = found
        for metric, why in sample.failures.items():
            failures[metric, system.name] = why
            say(f"  {metric} on {system.name}: {why}")


def run(args, scratch):
    machine.enable_uring(scratch)
    lib.settings.scratch = scratch
    ops = machine.build_ops(scratch)
    plyfs = machine.copy_program(args.plyfs, scratch)
    counts, failures = {}, {}
    chosen = [w for w in workloads.load() if wanted_workload(f"{w.name}/", w, args.only)]
    with contextlib.ExitStack() as stack:
        disk = stack.enter_context(machine.filesystem(scratch, args.fs))
        all_trees = stack.enter_context(contextlib.closing(trees.Trees(disk, ops, args.scale)))
        requests = stack.enter_context(contextlib.closing(Requests()))
        bench = Bench(all_trees, ops, disk)
        for system in systems.known(plyfs, args.peers):
            if not system.is_fuse or not wanted(system.name, args.systems):
                continue
            missing = system.available()
            say(f"{system.name}: {missing or system.shown_command()}")
            if not missing:
                count(bench, system, chosen, requests, not args.no_strace, counts, failures)
    page = for_page(rows(counts, failures))
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "requests.md").write_text(page)
    say(f"\n{page}\nper operation (a file, an entry, a call), at scale {args.scale:g}")
    say(f"written: {out}/requests.md")
    return 0


def main(arguments):
    args = parse(arguments)
    if os.geteuid() != 0:
        say("bench: it mounts and traces: run it as root")
        return 1
    return machine.supervise(lambda scratch: run(args, scratch), args.scratch)
