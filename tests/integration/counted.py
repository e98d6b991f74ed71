# SPDX-License-Identifier: MIT
"""Mounts of plyfs whose requests are counted: it logs each of them."""

import collections
import contextlib
import itertools
import os
import re
import subprocess

import plyfs_testlib as lib

REQUEST = re.compile(r"\b([A-Z][A-Z0-9_]+) unique \d+ node (\d+)(.*)")
# These come when the kernel likes, after the call that caused them.
LATE = ("FORGET", "BATCH_FORGET", "RELEASE", "RELEASEDIR")


class Counted:
    def __init__(self, union, process, log):
        self.point, self.process = union.point, process
        self._log = log
        self._read = 0
        self._fences = itertools.count()
        self._lines = []

    def _new_lines(self):
        with open(self._log, encoding="utf-8", errors="replace") as f:
            f.seek(self._read)
            text = f.read()
        whole = text.rfind("\n") + 1
        self._read += len(text[:whole].encode())
        return text[:whole].splitlines()

    def requests(self, late=False):
        """[(opcode, the rest)] since the last call."""
        fence = f"fence-{next(self._fences)}"
        assert not lib.exists(self.point / fence)

        def seen():
            self._lines += self._new_lines()
            return any(fence in line for line in self._lines)

        lib.wait_for(seen, 10, "the log")
        lines, self._lines = self._lines, []
        found = [m.groups() for line in lines if (m := REQUEST.search(line)) and fence not in line]
        return [(op, rest) for op, _, rest in found if late or op not in LATE]

    def count(self, late=False):
        """{opcode: how many} since the last call."""
        return dict(collections.Counter(op for op, _ in self.requests(late)))

    def of(self, function, *args):
        """What a call causes."""
        self.requests()
        function(*args)
        return self.count()

    def warm(self, function, *args):
        """The fewest of some calls: whoever has the machine drop its caches is not our business."""
        found = self.of(function, *args)
        for _ in range(4):
            if found:
                found = min(found, self.of(function, *args), key=lambda c: sum(c.values()))
        return found


@contextlib.contextmanager
def counted(union, options="", killed=False):
    """A mount of the union's layers, served by a child in the foreground.

    killed: the block has killed the child.
    """
    log = union.base / "requests.log"
    words = lib.layer_options(union.lowers, union.upper, union.work, options)
    with open(log, "wb") as out:
        process = subprocess.Popen(
            [lib.settings.plyfs, "mount", "-f", "-d", "-o", words, union.point],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env={**os.environ, **lib.settings.sanitizer_env},
        )
    try:
        lib.wait_for(
            lambda: lib.find_mount(union.point) or process.poll() is not None, 10, "the mount"
        )
        assert process.poll() is None, lib.read(log)
        mounted = Counted(union, process, log)
        mounted.requests()
        yield mounted
        if not killed:
            lib.Mount(union.point, "plyfs").umount()
            assert process.wait(20) == 0
    finally:
        if lib.find_mount(union.point):
            if not killed:
                lib.abort_connection(lib.find_mount(union.point)[3])
            with contextlib.suppress(AssertionError, OSError):  # a dead server's mount may go
                lib.Mount(union.point, "plyfs").umount(lazy=True)
        if process.poll() is None:
            process.kill()
            process.wait(20)
