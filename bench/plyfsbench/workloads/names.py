# SPDX-License-Identifier: MIT
"""Names that come and go in the upper layer, and trees unpacked, copied and removed."""

from ..sample import lines
from . import workload
from .lookup import lines_of_listing


@workload(
    "names",
    "names in an upper directory, 10,000 of each",
    {
        "create": "create of empty files",
        "create4k": "create, write of 4 KiB, close",
        "mkdir": "mkdir",
        "rename": "rename of upper files",
        "unlink": "unlink of upper files",
        "rmdir": "rmdir",
    },
)
def names(s):
    n = s.trees.count(10000, 100)
    empty = s.trees.list("names-empty", (f"e{i}" for i in range(n)))
    full = s.trees.list("names-full", (f"f{i}" for i in range(n)))
    renamed = s.trees.list("names-renamed", (f"f{i}.r" for i in range(n)))
    directories = s.trees.list("names-directories", (f"d{i}" for i in range(n)))
    with s.union(s.trees.empty, changes=True):
        s.ops("create", "create", empty, count=n)
        s.ops("create4k", "create", full, "-s", 4096, count=n, total=n * 4096)
        s.ops("mkdir", "mkdir", directories, count=n)
        s.verify("mkdir", entries=3 * n + 1, size=n * 4096)
        s.ops("rename", "rename", full, count=n)
        s.ops("unlink", "unlink", renamed, count=n)
        s.ops("rmdir", "rmdir", directories, count=n)
        s.verify("rmdir", entries=n + 1, size=0)


@workload(
    "untar",
    "a tree of 20,000 files of 2 KiB",
    {
        "untar": "tar -x of it into the mount",
        "ls-lR": "ls -lR of what was unpacked, just after",
        "cp-a": "cp -a of it within the mount",
        "rm-rf-upper": "rm -rf of the copy",
    },
    rootless=True,
    weight=5,
)
def untar(s):
    tree, n = s.trees.plain, len(s.trees.plain.files)
    archive = s.trees.tar
    archive.read_bytes()  # so that no disk is measured
    with s.union(s.trees.empty, changes=True):
        s.run("untar", ["tar", "-xf", archive], n)
        s.verify("untar", entries=tree.entries + 1, size=n * tree.size)
        s.run("ls-lR", ["ls", "-lR", "."], n, lines_of_unpacked(tree))
        (s.root / "copy").mkdir()
        s.run("cp-a", ["cp", "-a", *unpacked(tree), "copy/"], n)
        s.verify("cp-a", entries=tree.entries, size=n * tree.size, below="copy")
        s.run("rm-rf-upper", ["rm", "-rf", "copy"], n)
        s.verify("rm-rf-upper", entries=tree.entries + 1, size=n * tree.size)


def unpacked(tree):
    return sorted({p.split("/")[0] for p in tree.files})


def lines_of_unpacked(tree):
    """With the directory that lay in the lower layer: its line, heading, total and empty line."""
    return lines(lines_of_listing(tree) + 4)


@workload(
    "rm-lower",
    "a lower tree of 20,000 files",
    {"rm-rf-lower": "rm -rf of it"},
)
def rm_lower(s):
    tree = s.trees.plain
    with s.union(tree, changes=True):
        s.call(["-C", s.root, "stat", s.trees.list("plain-last", tree.files[-1:])])
        s.run("rm-rf-lower", ["rm", "-rf", *unpacked(tree)], len(tree.files))
        s.verify("rm-rf-lower", entries=0, size=0)
