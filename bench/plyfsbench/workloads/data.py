# SPDX-License-Identifier: MIT
"""Reading and writing one upper file. Each word of it is its own offset: readers check that."""

import plyfs_testlib as lib

from .. import machine
from ..sample import BEST_OF
from . import workload


@workload(
    "data",
    "one upper file of 256 MiB",
    {
        "write": "sequential write of a new file, 128 KiB a call, without fsync",
        "write4k": "sequential write of a new file, 4 KiB a call, without fsync",
        "read-warm": "sequential read, 128 KiB a call, warm",
        "read4k-warm": "sequential read, 4 KiB a call, warm",
        "randread4k": "random pread of 4 KiB, warm",
        "randwrite4k": "random pwrite of 4 KiB",
        "mmap-read": "one word of each page of a mapping, warm",
        "mmap-write": "each page of a shared mapping written",
        "fsync4k": "pwrite of 4 KiB and fsync, each time",
        "read-cold": "sequential read, 128 KiB a call, caches dropped",
    },
    rootless=True,
    weight=4,
)
def data(s):
    size = s.trees.count(256, 8) * lib.MIB
    small, large = size // 4096, size // (128 * lib.KIB)  # calls
    randoms, syncs = s.trees.count(50000, 500), s.trees.count(200, 10)
    some = {"items": randoms, "total": randoms * 4096}
    pages = {"items": small, "total": size, "best_of": BEST_OF}
    with s.union(s.trees.empty, changes=True):
        s.ops("write4k", "write", "small", "-s", size, "-b", 4096, items=small, total=size)
        s.ops("write", "write", "file", "-s", size, items=large, total=size)
        s.call(["-C", s.root, "read", "file"])
        s.ops("read-warm", "read", "file", items=large, total=size, best_of=BEST_OF)
        s.ops("read4k-warm", "read", "file", "-b", 4096, **pages)
        s.ops("randread4k", "randread", "file", "-n", randoms, best_of=BEST_OF, **some)
        machine.sync_filesystem(s.bench.scratch)
        s.ops("randwrite4k", "randwrite", "file", "-n", randoms, best_of=BEST_OF, **some)
        s.ops("mmap-read", "mmapread", "file", **pages)
        s.ops("mmap-write", "mmapwrite", "file", **pages)
        s.call(["-C", s.root, "read", "file"])  # all is still as written
        machine.sync_filesystem(s.bench.scratch)
        s.ops("fsync4k", "fsync", "file", "-n", syncs, items=syncs, total=syncs * 4096)
        if not s.bench.may_drop_caches:
            s.skip("read-cold")
            return
        s.remount()
        s.ops("read-cold", "read", "file", items=large, total=size)
