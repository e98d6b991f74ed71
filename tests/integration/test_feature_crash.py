# SPDX-License-Identifier: MIT
"""The server is killed before each of its system calls, with redirects and metacopies.

Both implementations then mount the layers (see crash.py), and show the tree as it was before or as
it is after; and what is in the lower layers leads to one place of the union at most.
"""

import os
import stat

import crash
import plyfs_testlib as lib
import pytest
from plyfs_testlib import mkdir, write

pytestmark = [
    pytest.mark.root("trusted xattrs hold the marks"),
    pytest.mark.plyfs_only("kills the server"),
]
OPTIONS = "metacopy=on"
DATA = b"0123456789" * 20_000


def make_lower(union):
    for n in (0, 1):
        low = union.lower(n)
        write(low / "d" / f"f{n}", b"%d" % n + DATA)
        write(low / "d" / "sub" / f"g{n}", b"g%d" % n + DATA)
        mkdir(low / "other" / "inner")
    write(union.lower(1) / "file", DATA)
    write(union.lower(1) / "second", b"second" + DATA)
    write(union.lower(0) / "target" / "gone", "gone")
    os.link(union.lower(1) / "file", mkdir(union.lower(1) / "links") / "hard")


def op_chmod(m):
    os.chmod(m / "d/f1", 0o600)


def op_append(m):
    lib.append(m / "file", b"+")


def op_cut(m):
    os.truncate(m / "file", 5000)


def op_empty(m):
    os.truncate(m / "file", 0)


def op_lengthen(m):
    os.truncate(m / "file", len(DATA) + 5000)


def op_link(m):
    os.link(m / "file", m / "other/link")


def op_rename(m):
    os.rename(m / "file", m / "other/moved")


def op_rename_over(m):
    os.rename(m / "file", m / "second")


def op_exchange(m):
    lib.renameat2(m / "file", m / "d", lib.RENAME_EXCHANGE)


def op_unlink(m):
    os.unlink(m / "file")


def op_rename_dir(m):
    os.rename(m / "d", m / "e")


def op_rename_dir_away(m):
    os.rename(m / "d/sub", m / "other/inner/moved")


def op_rename_dir_in_renamed(m):
    os.rename(m / "e/sub", m / "other/inner/moved")


def op_rename_dir_over(m):
    os.rename(m / "d", m / "target")


def op_rename_dir_back(m):
    os.rename(m / "e", m / "d")


def op_exchange_dirs(m):
    lib.renameat2(m / "d/sub", m / "other", lib.RENAME_EXCHANGE)


def before_nothing(m):
    pass


def before_metacopy(m):
    os.chmod(m / "file", 0o640)


def before_moved_metacopy(m):
    os.chmod(m / "second", 0o640)
    os.rename(m / "second", m / "other/second")
    os.rename(m / "file", m / "d/x")
    os.rename(m / "d/x", m / "file")


def before_emptied(m):
    os.unlink(m / "target/gone")


def before_renamed(m):
    os.rename(m / "d", m / "e")


CASES = [
    (op_chmod, before_nothing),
    (op_append, before_metacopy),
    (op_append, before_moved_metacopy),
    (op_cut, before_metacopy),
    (op_empty, before_metacopy),
    (op_lengthen, before_metacopy),
    (op_link, before_nothing),
    (op_link, before_moved_metacopy),
    (op_rename, before_nothing),
    (op_rename, before_metacopy),
    (op_rename_over, before_nothing),
    (op_exchange, before_metacopy),
    (op_unlink, before_moved_metacopy),
    (op_rename_dir, before_nothing),
    (op_rename_dir_away, before_nothing),
    (op_rename_dir_in_renamed, before_renamed),
    (op_rename_dir_over, before_emptied),
    (op_rename_dir_back, before_renamed),
    (op_exchange_dirs, before_nothing),
]
CALLS = "renameat2 linkat unlinkat mkdirat ftruncate copy_file_range ioctl fsync utimensat".split()
ALL_CALLS = [*CALLS, "openat", "statx", "setxattr", "removexattr", "lremovexattr", "close", "pwrite64"]


def view(point):
    """What has to be as before or as after: all but times, and the count of lower hard links, which
    copy-up breaks.

    Of a metacopy that was cut, and not yet unmarked, the kernel shows the length that it has, but
    lets read all of its data: what is beyond the end does not count.
    """
    seen = lib.tree(point, times=False)
    for path, entry in seen.items():
        entry.pop("nlink", None)
        if entry["type"] == stat.S_IFREG:
            entry["content"] = lib.read(point / path)[: entry["size"]]
    return seen


def check_layers(union, impl, states):
    m = union.mount(OPTIONS, impl=impl)
    try:
        seen = view(m)
        # and it can be gone on with
        for path, entry in seen.items():
            if entry["type"] == stat.S_IFREG:
                with lib.opened(m / path, os.O_RDONLY):
                    pass
    finally:
        union.umount()
    if seen in states:
        return states.index(seen)
    lines = []
    for state, name in zip(states, ("before", "after")):
        lines += lib.tree_differences(seen, state, impl, name)
    raise AssertionError("neither before nor after:\n" + "\n".join(lines))


def compare(seen, order):
    return [] if seen[0] == seen[1] else ["they see different trees"]


def run_case(new_union, base, case, calls):
    operation, before = case
    sweep = crash.Sweep(new_union, base, OPTIONS, make_lower, view, check_layers, compare)
    sweep.run(operation, before, calls, most=60)


@pytest.mark.limit(120)
@pytest.mark.parametrize("case", CASES, ids=crash.case_name)
def test_killed_at_some_system_calls(new_union, scratch, case):
    run_case(new_union, scratch, case, CALLS)


@pytest.mark.slow
@pytest.mark.limit(400)
@pytest.mark.parametrize("case", CASES, ids=crash.case_name)
def test_killed_at_every_system_call(new_union, scratch, case):
    run_case(new_union, scratch, case, ALL_CALLS)
