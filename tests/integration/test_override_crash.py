# SPDX-License-Identifier: MIT
"""The server is killed before its system calls: what an xattr says of an object is never wrong.

What the layers then show is what was there before the operation, or what it was to make of it.
"""

import os
import shutil
import stat

import crash
import plyfs_testlib as lib
import pytest
from plyfs_testlib import mkdir, read, write
from test_override import CONTAINERS, check_real_objects, option, shown

pytestmark = [
    pytest.mark.root("strace, and other owners"),
    pytest.mark.plyfs_only("kills the server"),
    pytest.mark.limit(200),
    pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed"),
]

# setxattr(2) and its kin are made by name, or between two calls that strace(1) knows
CALLS = "renameat2 linkat unlinkat mkdirat openat fchownat utimensat fsync close statx".split()
NAMES = "f pipe low lowdir lowdir/in lowdir/made old made moved".split()


def make_lower(union):
    os.setxattr(union.lower(), CONTAINERS, b"0:0:0755")
    for name, value in (("low", b"1:2:04755"), ("pipe", b"3:4:0640:pipe"), ("old", b"5:6:0600")):
        write(union.lower() / name, "" if name == "pipe" else name, xattrs={CONTAINERS: value})
    mkdir(union.lower() / "lowdir", xattrs={CONTAINERS: b"7:8:02775"})
    write(union.lower() / "lowdir/in", "in", xattrs={CONTAINERS: b"9:9:0444"})


def view(m):
    out = {}
    for name in NAMES:
        path = m / name
        if lib.exists(path):
            out[name] = shown(path), read(path) if os.path.isfile(path) else None
    return out


def before_changes(m):
    write(m / "f", "f", mode=0o6755)
    os.chown(m / "f", 11, 12)
    os.unlink(m / "old")


def op_create(m):
    fd = os.open(m / "made", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o4711)
    os.close(fd)


def op_create_over_a_whiteout(m):
    os.mkfifo(m / "old", 0o604)


def op_mkdir(m):
    os.mkdir(m / "lowdir/made", 0o750)


def op_mknod(m):
    os.mknod(m / "made", stat.S_IFCHR | 0o620, os.makedev(5, 1))


def op_chown(m):
    os.chown(m / "f", 21, 22)


def op_chmod(m):
    os.chmod(m / "f", 0o2600)


def op_copy_up_by_chown(m):
    os.chown(m / "low", 31, 32)


def op_copy_up_of_a_pipe(m):
    os.rename(m / "pipe", m / "moved")


def op_copy_up_with_directories(m):
    os.chmod(m / "lowdir/in", 0o4400)


OPERATIONS = [f for name, f in sorted(globals().items()) if name.startswith("op_")]


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda f: f.__name__[3:])
def test_a_crash_leaves_it_before_or_after(new_union, scratch, operation):
    def check(union, impl, states):
        m = union.mount(option("2"), impl="plyfs")
        now = view(m)
        union.umount()
        assert now in states, f"neither before nor after: {now}\n{states}"
        check_real_objects(union.upper, "2")
        return now

    def compare(seen_by, order):
        return [] if seen_by[0] == seen_by[1] else [f"{seen_by}"]

    sweep = crash.Sweep(
        new_union, scratch, option("2"), make_lower, view, check, compare, impl="plyfs"
    )
    if operation in (op_chown, op_chmod):
        calls = ["statx"]
    else:
        calls = CALLS if operation in (op_create, op_copy_up_by_chown) else [*CALLS[:4], "statx"]
    sweep.run(operation, before_changes, calls, most=25)
