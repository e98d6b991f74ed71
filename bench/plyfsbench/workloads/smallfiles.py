# SPDX-License-Identifier: MIT
"""Small files read whole."""

from ..sample import BEST_OF
from . import workload

THREADS = (1, 2, 4)


@workload(
    "small",
    "open, read and close of 20,000 files of 1 KiB in 10 layers",
    {
        "read-cold": "caches dropped",
        "read-cold-2t": "caches dropped, 2 threads",
        "read-cold-4t": "caches dropped, 4 threads",
        "read-warm": "again",
        "read-warm-2t": "again, 2 threads",
        "read-warm-4t": "again, 4 threads",
        "open-warm": "open and close alone, again",
    },
    weight=8,
)
def small(s):
    tree = s.trees.ten
    paths = tree.files[: s.trees.count(20000, 200)]
    files = s.trees.list("small-files", paths)
    expected = {"count": len(paths), "total": len(paths) * tree.size}
    with s.union(tree):
        for n in reversed(THREADS):  # one thread last: what is warm follows it
            s.remount()
            s.ops("read-cold" if n == 1 else f"read-cold-{n}t", "readfile", files, "-t", n, **expected)
        for n in THREADS:
            s.ops("read-warm" if n == 1 else f"read-warm-{n}t", "readfile", files, "-t", n,
                  best_of=BEST_OF, **expected)
        s.ops("open-warm", "open", files, count=len(paths), best_of=BEST_OF)
