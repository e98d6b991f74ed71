# SPDX-License-Identifier: MIT
"""Names: looked up, missing, listed."""

from ..sample import BEST_OF, lines
from . import workload

THREADS = (1, 2, 4)
SOME = 5  # what is warm is asked of every fifth file

TREE = {
    "find-cold": "find over the fresh mount, caches dropped",
    "find-warm": "find again",
    "ls-lR-cold": "ls -lR over the fresh mount, caches dropped",
    "ls-lR-warm": "ls -lR again",
    "stat-cold": "lstat of every file, caches dropped",
    "stat-warm": "lstat of every fifth file again",
    "stat-warm-2t": "the same by 2 threads",
    "stat-warm-4t": "the same by 4 threads",
    "stat-cold-4t": "lstat of every file by 4 threads, caches dropped",
    "missing-first": "lstat of 10,000 names that are not there, for the first time",
    "missing-again": "the same names again",
    "access": "access(R_OK) of every fifth file, warm",
    "readlink": "readlink of symbolic links, warm",
    "getxattr": "getxattr of an attribute that is not there, every fifth file, warm",
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
    n = len(tree.files)
    files = s.trees.list(f"{key}-files", tree.files)
    s.remount()
    s.ops("stat-cold", "stat", files, count=n, total=n * tree.size)
    some = tree.files[:: SOME]
    warm(s, key, some, len(some) * tree.size)
    links = s.trees.list(f"{key}-links", tree.links)
    s.call(["-C", s.root, "readlink", links])
    s.ops("readlink", "readlink", links, count=len(tree.links), total=19 * len(tree.links),
          best_of=BEST_OF)
    s.remount()
    s.ops("stat-cold-4t", "stat", files, "-t", 4, count=n, total=n * tree.size)


def warm(s, key, paths, total):
    n = len(paths)
    files = s.trees.list(f"{key}-some", paths)
    for threads in THREADS:
        name = "stat-warm" if threads == 1 else f"stat-warm-{threads}t"
        s.ops(name, "stat", files, "-t", threads, count=n, total=total, best_of=BEST_OF)
    s.ops("access", "access", files, count=n, best_of=BEST_OF)
    s.ops("getxattr", "getxattr", files, count=n, best_of=BEST_OF)
    missing = s.trees.list(f"{key}-missing", (f"{p}.none" for p in paths))
    s.ops("missing-first", "missing", missing, count=n)
    s.ops("missing-again", "missing", missing, count=n, best_of=BEST_OF)


def over(s, tree, key):
    with s.union(tree):
        s.remount()
        walk(s, tree)
        stats(s, tree, key)


@workload("tree10", "50,000 files in 10 layers, half of the directories merged", TREE, weight=20)
def tree10(s):
    over(s, s.trees.ten, "ten")


@workload("tree100", "50,000 files in 100 layers, half of the directories merged", TREE, weight=30)
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
    weight=8,
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
