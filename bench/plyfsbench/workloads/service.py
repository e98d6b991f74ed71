# SPDX-License-Identifier: MIT
"""The server itself: how fast it is there, what it takes, how many it serves."""

import os
import re
import time
from pathlib import Path

from .. import machine
from . import workload

MIB = 1 << 20


@workload("mount", "a mount of 100 layers", {"mount-100": "from the command to a mount that answers"})
def mount(s):
    if not s.system.mounts:
        s.skip("mount-100")
        return
    with s.union(s.trees.hundred):
        s.remount(drop=False)
        start = time.monotonic()
        os.stat(s.root)
        s.record("mount-100", s.mounted.seconds + time.monotonic() - start)


def slab():
    """Bytes of the kernel's objects, on the whole machine."""
    return int(re.search(r"^Slab:\s+(\d+)", Path("/proc/meminfo").read_text(), re.M)[1]) * 1024


@workload(
    "memory",
    "memory after a walk over 200,000 files",
    {
        "slab": "what the kernel's slabs grew by, the machine's other work included",
        "rss": "resident memory of the daemons",
        "rss-dropped": "the same after the kernel dropped its caches",
    },
    unit="MiB",
    once=True,
)
def memory(s):
    tree = s.trees.mass
    with s.union(tree):
        s.remount()
        before = slab()
        files = s.trees.list("mass-files", tree.files)
        s.call(["-C", s.root, "stat", files])
        s.record("slab", (slab() - before) / MIB)
        if s.system.is_fuse:
            s.record("rss", s.mounted.rss() / MIB)
            machine.drop_caches(2)
            s.call(["-C", s.root, "stat", s.trees.list("mass-one", tree.files[:1])])
            s.record("rss-dropped", s.mounted.rss() / MIB)
        else:
            s.skip("rss", "rss-dropped")


@workload(
    "clients",
    "create, lstat, chmod, rename and unlink of 4,000 files, by processes in directories of their own",
    {
        "life-1p": "by 1 process",
        "life-2p": "by 2 processes",
        "life-4p": "by 4 processes",
    },
)
def clients(s):
    n = s.trees.count(4000, 80) // 4
    paths = s.trees.list("clients", (f"c{c}/f{i}" for c in range(4) for i in range(n)))
    with s.union(s.trees.empty, changes=True):
        for c in range(4):
            (s.root / f"c{c}").mkdir()
        for processes in (1, 2, 4):
            s.ops(f"life-{processes}p", "life", paths, "-p", processes, count=4 * n)
            s.verify(f"life-{processes}p", entries=5, size=0)
