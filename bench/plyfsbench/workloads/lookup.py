# SPDX-License-Identifier: MIT
"""Names: looked up, missing, listed."""

from ..sample import BEST_OF, lines
from . import workload

THREADS = (1, 2, 4)

TREE = {
    "find-cold": "find over the fresh mount, caches dropped",
    "find-warm": "find again",
    "ls-lR-cold": "ls -lR over the fresh mount, caches dropped",
    "ls-lR-warm": "ls -lR again",
    "stat-cold": "lstat of every file, caches dropped",
    "stat-warm": "lstat of every file again",
    "stat-warm-2t": "the same by 2 threads",
    "stat-warm-4t": "the same by 4 threads",
    "stat-cold-4t": "lstat of every file by 4 threads, caches dropped",
    "missing-first": "lstat of a name that is not there, one a file, for the first time",
    "missing-again": "the same names again",
    "access": "access(R_OK) of every file, warm",
    "readlink": "readlink of symbolic links, warm",
    "getxattr": "getxattr of an attribute that no file has, warm",
}


def walk(s, tree):
    entries = tree.entries
    s.run("find-cold", ["find", "."], entries, lines(entries + 1))
    s.run("find-warm", ["find", "."], entries, lines(entries + 1), BEST_OF)
    s.remount()
    s.run("ls-lR-cold", ["ls", "-lR", "."], entries, lines(lines_of_listing(tree)))
    s.run("ls-lR-warm", ["ls", "-lR", "."], entries, lines(lines_of_listing(tree)), BEST_OF)


def lines_of_listing(tree):
    """ls -lR: a line an entry; name, total and an empty line a directory, the root's without that."""
    return tree.entries + 3 * (tree.directories + 1) - 1


def stats(s, tree, key):
    files = s.trees.list(f"{key}-files", tree.files)
    total = len(tree.files) * tree.size
    expected = {"count": len(tree.files), "total": total}
    s.remount()
    s.ops("stat-cold", "stat", files, **expected)
    for n in THREADS:
        name = "stat-warm" if n == 1 else f"stat-warm-{n}t"
        s.ops(name, "stat", files, "-t", n, best_of=BEST_OF, **expected)
    s.ops("access", "access", files, count=len(tree.files), best_of=BEST_OF)
    s.ops("getxattr", "getxattr", files, count=len(tree.files), best_of=BEST_OF)
    missing = s.trees.list(f"{key}-missing", (f"{p}.none" for p in tree.files))
    s.ops("missing-first", "missing", missing, count=len(tree.files))
    s.ops("missing-again", "missing", missing, count=len(tree.files), best_of=BEST_OF)
    links = s.trees.list(f"{key}-links", tree.links)
    s.call(["-C", s.root, "readlink", links])
    s.ops("readlink", "readlink", links, count=len(tree.links), total=19 * len(tree.links),
          best_of=BEST_OF)
    s.remount()
    s.ops("stat-cold-4t", "stat", files, "-t", 4, **expected)


def over(s, tree, key):
    with s.union(tree):
        s.remount()
        walk(s, tree)
        stats(s, tree, key)


@workload("tree10", "50,000 files in 10 layers, half of the directories merged", TREE)
def tree10(s):
    over(s, s.trees.ten, "ten")


@workload("tree100", "50,000 files in 100 layers, half of the directories merged", TREE)
def tree100(s):
    over(s, s.trees.hundred, "hundred")


@workload(
    "bigdir",
    "one directory of 100,000 names, from two layers",
    {
        "find-cold": "find, caches dropped",
        "find-warm": "find again",
        "ls-l-cold": "ls -l, caches dropped",
        "ls-l-warm": "ls -l again",
    },
)
def bigdir(s):
    tree = s.trees.big
    n = len(tree.files)
    with s.union(tree):
        s.remount()
        s.run("find-cold", ["find", "big"], n, lines(n + 1))
        s.run("find-warm", ["find", "big"], n, lines(n + 1), BEST_OF)
        s.remount()
        s.run("ls-l-cold", ["ls", "-l", "big"], n, lines(n + 1))
        s.run("ls-l-warm", ["ls", "-l", "big"], n, lines(n + 1), BEST_OF)
