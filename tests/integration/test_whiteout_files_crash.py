# SPDX-License-Identifier: MIT
"""The server is killed before each of its system calls, where whiteouts are files or may be.

The next mount shows the tree as it was before or as it is after: nothing that was deleted comes
back, nothing that was there is lost.
"""

import os
import shutil

import crash
import plyfs_testlib as lib
import pytest
from dropin import dropin_union
from plyfs_testlib import write

pytestmark = [
    pytest.mark.root("kills the server with strace"),
    pytest.mark.plyfs_only("kills the server"),
]


def make_lower(union):
    for name in ("a", "b", "gone", "d/f", "d/sub/g", "e/f", "emptied/f", "hidden/f"):
        write(union.lower(1) / name, name)
    write(union.lower(0) / "d/top", "top")
    # what fuse-overlayfs left, and what the kernel did
    write(union.upper / ".wh.hidden")
    lib.make_whiteout(union.upper / "gone")


def op_unlink(m):
    os.unlink(m / "a")


def op_rmdir(m):
    os.rmdir(m / "emptied")


def op_create(m):
    os.mknod(m / "a")


def op_mkdir(m):
    os.mkdir(m / "hidden")


def op_mkdir_over_device(m):
    os.mkdir(m / "gone")


def op_symlink(m):
    os.symlink("target", m / "hidden")


def op_link(m):
    os.link(m / "b", m / "hidden")


def op_rename(m):
    os.rename(m / "b", m / "hidden")


def op_rename_over(m):
    os.rename(m / "a", m / "b")


def op_rename_over_device(m):
    os.rename(m / "b", m / "gone")


def op_rename_new_dir(m):
    os.rename(m / "new", m / "hidden")


def op_rename_new_dir_over_device(m):
    os.rename(m / "new", m / "gone")


def op_rename_over_emptied(m):
    os.rename(m / "new", m / "emptied")


def op_rename_dir(m):
    os.rename(m / "d", m / "hidden")


def op_exchange(m):
    lib.renameat2(m / "d", m / "e", lib.RENAME_EXCHANGE)


def before_nothing(m):
    pass


def before_copied(m):
    lib.append(m / "a", b"+")


def before_deleted(m):
    os.unlink(m / "a")


def before_emptied(m):
    os.unlink(m / "emptied/f")


def before_new(m):
    write(m / "new/n", "n")


def before_new_and_emptied(m):
    before_new(m)
    before_emptied(m)


CASES = [
    (op_unlink, before_nothing),
    (op_unlink, before_copied),
    (op_rmdir, before_emptied),
    (op_create, before_deleted),
    (op_mkdir, before_nothing),
    (op_mkdir_over_device, before_nothing),
    (op_symlink, before_nothing),
    (op_link, before_nothing),
    (op_rename, before_nothing),
    (op_rename_over, before_nothing),
    (op_rename_over_device, before_nothing),
    (op_rename_new_dir, before_new),
    (op_rename_new_dir_over_device, before_new),
    (op_rename_over_emptied, before_new_and_emptied),
    (op_rename_dir, before_nothing),
    (op_exchange, before_nothing),
]
# those that the kernel's form of whiteouts has no part in are swept once
ONCE = (op_unlink, op_rmdir, op_create, op_rename_over, op_rename_over_emptied, op_exchange)
CALLS = ["renameat2", "mknodat", "unlinkat", "linkat", "mkdirat"]
SWEEPS = [(case, "files") for case in CASES]
SWEEPS += [(case, "dropin") for case in CASES if case[0] not in ONCE]


def view(point):
    return lib.tree(point, times=False)


def check(union, impl, states):
    """@impl: who comes first and second; the way in which whiteouts are written does not matter."""
    union.mount("redirect_dir=on", impl="dropin" if impl == "kernel" else "files")
    try:
        seen = view(union.point)
        assert seen in states, "\n".join(
            ["neither before nor after:"]
            + lib.tree_differences(states[0], seen, "before", "now")
            + lib.tree_differences(states[1], seen, "after", "now")
        )
        # and, for who comes second, what is there can be taken away for good
        union.seen = getattr(union, "seen", 0) + 1
        if union.seen == 2:
            for name in os.listdir(union.point):
                path = union.point / name
                (shutil.rmtree if os.path.isdir(path) else os.unlink)(path)
            union.remount("files", "redirect_dir=on")
            assert os.listdir(union.point) == []
    finally:
        union.umount()
    return seen


@pytest.mark.limit(120)
@pytest.mark.parametrize(
    "case,impl", SWEEPS, ids=[f"{crash.case_name(case)}-{impl}" for case, impl in SWEEPS]
)
def test_killed_before_each_call(new_union, scratch, case, impl):
    operation, before = case

    def make(name, base):
        return dropin_union(new_union, name, impl, base)

    sweep = crash.Sweep(
        make,
        scratch,
        "redirect_dir=on",
        make_lower,
        view,
        check,
        lambda seen, order: lib.tree_differences(*seen, *order),
    )
    sweep.run(operation, before, CALLS)
