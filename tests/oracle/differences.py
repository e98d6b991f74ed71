# SPDX-License-Identifier: MIT
"""
The one place that lists where plyfs may differ from the kernel's overlayfs, each with the reason.

A rule sees one difference and says whether it is the one it describes; it must describe it so
narrowly that no bug can hide in it. Rules on operations get (op, args, expected, got, kernel side,
plyfs side), rules on trees (path, field, expected, got).

Never compared, because it has no meaning over both: numbers of inodes (only uniqueness, constancy
and d_ino are checked), order and offsets of directory entries, atime except where utimensat just
set it, ctime, st_size and st_blocks of directories, st_blocks on disk filesystems (delayed
allocation), statfs beside name length and block size, the times of what was changed during the run
("now"), statx attribute bits (FUSE has no way to pass them on).
"""


import os


def stale_mapping(op, args, expected, got, kernel, plyfs):
    """
    A mapping made before copy-up goes on showing the lower file on the kernel's overlayfs. On plyfs
    there is one page cache for both, so the mapping must show what read(2) shows.
    """
    if op != "mread" or "skip" in expected or "skip" in got:
        return False
    m, off, n = args["m"], args["off"], args["n"]
    return (kernel.mread_by_fd(m, off, n) != expected and plyfs.mread_by_fd(m, off, n) == got)


def holes_under_mappings(op, args, expected, got, kernel, plyfs):
    """
    On tmpfs looking at a hole through a mapping fills it, so that it is data for lseek(2) and
    counts in st_blocks. Behind plyfs the pages belong to FUSE's page cache, and the hole stays a
    hole. Once a sequence has mapped a file, neither is compared any more (st_blocks: see
    Bench.look).
    """
    return (op == "lseek" and args["whence"] in (os.SEEK_DATA, os.SEEK_HOLE)
            and (kernel.mapped or plyfs.mapped) and set(expected) <= {"off", "error"}
            and set(got) <= {"off", "error"})


OPERATIONS = [stale_mapping, holes_under_mappings]
TREES = []


def operation_allowed(*difference):
    return any(rule(*difference) for rule in OPERATIONS)


def tree_allowed(*difference):
    return any(rule(*difference) for rule in TREES)
