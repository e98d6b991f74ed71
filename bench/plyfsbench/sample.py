# SPDX-License-Identifier: MIT
"""One workload on one system, once: steps that are timed, bounded by a timeout, and checked."""

import contextlib
import os
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import plyfs_testlib as lib

from . import machine
from .systems import MountFailed, Stack

BEST_OF = 3  # repetitions of what is warm; the best is the sample
ENOUGH = 0.5  # seconds of repetitions after which there are no more


class StepFailed(Exception):
    """What a step did is not what it must do; the text goes into the cell."""


class Hung(Exception):
    """A step was not done in time: the mount was aborted, and the workload ends here."""


@dataclass
class Bench:
    """What all samples of a run share."""

    trees: object
    ops: str
    scratch: Path
    timeout: float = 60.0
    may_drop_caches: bool = True

    def environment(self):
        """The same for everyone, and nothing of the caller's configuration."""
        return {
            "PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
            "LC_ALL": "C",
            "HOME": str(self.scratch),
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": "safe.directory",
            "GIT_CONFIG_VALUE_0": "*",
            "GIT_AUTHOR_NAME": "bench",
            "GIT_AUTHOR_EMAIL": "bench@localhost",
            "GIT_COMMITTER_NAME": "bench",
            "GIT_COMMITTER_EMAIL": "bench@localhost",
        }


class Sample:
    """Given to a workload; collects {metric: value} and {metric: what went wrong}."""

    def __init__(self, bench, system, prefix=""):
        self.bench, self.system, self.trees = bench, system, bench.trees
        self.prefix = prefix
        self.values, self.failures, self.skipped = {}, {}, set()
        self.mounted = None
        self.place = None  # of the union: a directory that goes with it
        self.output = Path(bench.scratch) / "output"

    # --- the mount ---------------------------------------------------------------------------------

    @contextlib.contextmanager
    def union(self, tree, options="", changes=False):
        """A fresh upper over the lower layers of a tree, mounted; for native the plain directory,
        of which it gets a copy if the workload changes it.
        """
        self.prepare_union(tree, changes)
        self.mount(options)
        try:
            yield self
        finally:
            self.umount()
            lib.remove_tree(self.place)

    def prepare_union(self, tree, changes):
        self.place = Path(tempfile.mkdtemp(prefix="s.", dir=self.bench.scratch))
        for name in ("upper", "work", "mnt"):
            (self.place / name).mkdir()
        merged = tree.merged
        if changes and not self.system.mounts:
            merged = self.place / "merged"
            subprocess.run(["cp", "-a", tree.merged, merged], check=True, timeout=300)
        paths = [str(self.place / name) for name in ("mnt", "upper", "work")]
        self.stack = Stack([str(p) for p in tree.lowers], paths[0], str(merged), *paths[1:])
        machine.sync_filesystem(self.bench.scratch)

    def mount(self, options=""):
        self.options = options
        try:
            self.mounted = self.system.mount(self.stack, options)
        except MountFailed as e:
            raise StepFailed(f"mount: {e}")

    def umount(self):
        if not self.mounted:
            return
        mounted, self.mounted = self.mounted, None
        problem = mounted.umount()
        if problem:
            self.failures["umount"] = problem

    def remount(self, drop=True):
        """Nothing is left in any cache: cold. Without drop only what the mount had cached is gone."""
        self.umount()
        if drop and self.bench.may_drop_caches:
            machine.sync_filesystem(self.bench.scratch)
            machine.drop_caches()
        self.mount(self.options)

    @property
    def root(self):
        return Path(self.mounted.point)

    # --- steps -------------------------------------------------------------------------------------

    def call(self, arguments, cwd=None):
        """(seconds, count, sum) of one run of ops."""
        with open(self.bench.scratch / "errors", "w+", encoding="utf-8", errors="replace") as errors:
            process = subprocess.Popen(
                [self.bench.ops, *map(str, arguments)],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True,
                cwd=cwd, env=self.bench.environment(), start_new_session=True,
            )
            try:
                out = process.communicate(timeout=self.bench.timeout)[0]
            except subprocess.TimeoutExpired:
                self.end_hung(process)
                raise Hung(f"not done within {self.bench.timeout:g} s")
            except BaseException:
                self.end_hung(process)
                raise
            errors.seek(0)
            said = errors.read().strip().splitlines()
        fields = out.split()
        if process.returncode or len(fields) != 3:
            raise StepFailed(said[0] if said else f"ops: exit {process.returncode}")
        self.said = said
        return int(fields[0]) / 1e9, int(fields[1]), int(fields[2])

    def end_hung(self, process):
        """Only processes of the sample: what ops started is in its session."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        if self.mounted:
            self.mounted.abort()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)

    def watched(self, metric, items):
        """A place for who wants to look at the server while the step runs."""
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def metric(self, name):
        """What fails inside is the failure of this metric alone."""
        try:
            yield
        except StepFailed as e:
            self.failures[self.prefix + name] = str(e)

    def ops(self, metric, operation, argument, *options, items=None, count=None, total=None, best_of=1):
        """An operation of ops, timed, in the mount; count and total are what it must come to. items:
        how many system calls or files it stands for, if not count.
        """
        with self.metric(metric):
            times = []
            for _ in range(best_of):
                with self.watched(metric, items or count):
                    seconds, done, found = self.call(
                        ["-C", self.root, *options, operation, argument]
                    )
                expect("items", done, count)
                expect("sum", found, total)
                times.append(seconds)
                if sum(times) > ENOUGH:
                    break
            self.record(metric, min(times))

    def run(self, metric, command, items, check=None, best_of=1, cwd=None):
        """A program, timed, in the mount. items: how many files it works on. check(output file)
        raises StepFailed when it did other than it must.
        """
        with self.metric(metric):
            times = []
            for _ in range(best_of):
                with self.watched(metric, items):
                    seconds, _, status = self.call(
                        ["-o", self.output, "run", *command], cwd=cwd or self.root
                    )
                if status:
                    raise StepFailed(self.said[0] if self.said else f"{command[0]}: exit {status}")
                if check:
                    check(self.output)
                times.append(seconds)
                if sum(times) > ENOUGH:
                    break
            self.record(metric, min(times))

    def record(self, metric, value):
        self.values[self.prefix + metric] = value

    def skip(self, *metrics):
        """What this system cannot have by its nature."""
        self.skipped |= {self.prefix + metric for metric in metrics}

    def verify(self, metric, entries=None, size=None, below=""):
        """What a directory of the mount holds now; if it is wrong the metric has failed."""
        try:
            _, found, total = self.call(["count", self.root / below])
            expect("entries afterwards", found, entries)
            expect("bytes afterwards", total, size)
        except StepFailed as e:
            self.values.pop(self.prefix + metric, None)
            self.failures.setdefault(self.prefix + metric, str(e))


def expect(what, found, wanted):
    if wanted is not None and found != wanted:
        raise StepFailed(f"{found} {what}, not {wanted}")


def lines(wanted):
    """A check of a program's output: so many lines."""

    def check(output):
        with open(output, "rb") as f:
            found = sum(part.count(b"\n") for part in iter(lambda: f.read(1 << 20), b""))
        expect("lines", found, wanted)

    return check


def run_sample(bench, system, workload, prefix=""):
    """(values, failures, seconds) of a workload on a system."""
    sample = Sample(bench, system, prefix)
    start = time.monotonic()
    fill(sample, workload)
    return sample.values, sample.failures, time.monotonic() - start


def fill(sample, workload):
    """Run it; afterwards each of its metrics has a value or a failure, or was skipped."""
    why, prefix = "not reached", sample.prefix
    try:
        workload.run(sample)
    except (StepFailed, Hung) as e:
        why = str(e)
    except (OSError, subprocess.SubprocessError) as e:
        why = f"{type(e).__name__}: {e}"
    left = sample.failures.pop("umount", None)
    for metric in workload.metrics:
        name = prefix + metric
        if left and name in sample.values:
            sample.failures[name] = f"umount: {left}"
            del sample.values[name]
        elif name not in sample.values | sample.failures and name not in sample.skipped:
            sample.failures[name] = why
    wanted = {prefix + metric for metric in workload.metrics}
    for found in (sample.values, sample.failures):
        for name in set(found) - wanted:
            del found[name]
