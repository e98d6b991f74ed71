# SPDX-License-Identifier: MIT
"""The server is killed before each of its system calls: the index is never wrong afterwards.

Either implementation then mounts the layers (see crash.py), sees the files as they were before or as
they are after, and counts each file's names right.
"""

import contextlib
import os
import random
import threading

import crash
import plyfs_testlib as lib
import pytest
from test_index import INDEX, META, NFS, assert_counts_are_true, differences, make_lower, view

pytestmark = [
    pytest.mark.root("file handles are for root only"),
    pytest.mark.plyfs_only("kills the server"),
]


def op_append(m):
    lib.append(m / "a", b"+")


def op_append_second(m):
    lib.append(m / "b", b"+")


def op_unlink(m):
    os.unlink(m / "b")


def op_unlink_last(m):
    os.unlink(m / "d2/y")


def op_link(m):
    os.link(m / "a", m / "new")


def op_rename(m):
    os.rename(m / "d1/x", m / "moved")


def op_rename_over(m):
    os.rename(m / "other", m / "c")


def op_rename_over_last(m):
    os.rename(m / "other", m / "d2/y")


def op_exchange(m):
    lib.renameat2(m / "a", m / "other", lib.RENAME_EXCHANGE)


def op_unlink_single(m):
    os.unlink(m / "single")


def op_rmdir(m):
    os.rmdir(m / "empty")


def op_copy_up_directories(m):
    os.mkdir(m / "dir/sub/new")


# Calls of the server before which it is killed. Those between two of them that strace does not know
# by name (setxattrat and the like) are made when the second is reached.
CALLS = "renameat2 linkat unlinkat mkdirat mknodat utimensat fsync close openat statx setxattr".split()
SOME_CALLS = "renameat2 linkat unlinkat utimensat".split()


def before_nothing(m):
    pass


def before_copied_up(m):
    lib.append(m / "a", b"-")


def before_one_name_left(m):
    os.unlink(m / "d1/x")


# what is crashed, after what, and whether that is about nfs_export only
CASES = [
    (op_append, before_nothing, False),
    (op_append_second, before_copied_up, False),
    (op_unlink, before_nothing, False),
    (op_unlink, before_copied_up, False),
    (op_unlink_last, before_one_name_left, False),
    (op_link, before_nothing, False),
    (op_link, before_copied_up, False),
    (op_rename, before_nothing, False),
    (op_rename_over, before_nothing, False),
    (op_rename_over_last, before_one_name_left, False),
    (op_exchange, before_copied_up, False),
    (op_unlink_single, before_nothing, True),
    (op_rmdir, before_nothing, True),
    (op_copy_up_directories, before_nothing, True),
]

SWEPT = [(INDEX, "index"), (NFS, "nfs_export"), (META, "metacopy")]


def data_of(seen):
    return {path: (e.get("data"), e["mode"]) for path, e in seen.items()}


def check_layers(union, options, impl, states):
    union.mount(options, impl=impl)
    try:
        seen = view(union.point)
    finally:
        union.umount()
    errors = {path: e for path, e in seen.items() if not isinstance(e, dict)}
    assert not errors, f"{impl}: {errors}"
    assert data_of(seen) in states, "\n".join(
        f"{impl}, neither before nor after:\n" + "\n".join(differences(data_of(seen), s, impl, w))
        for s, w in zip(states, ("before", "after"))
    )
    if impl == "plyfs":
        assert_counts_are_true(seen)
    return seen


def run_case(new_union, scratch, options, case, calls):
    operation, before, _ = case

    def compare(seen, order):
        if options == NFS:  # where the kernel miscounts what had one name below
            return []
        return differences(*seen, *order)

    sweep = crash.Sweep(
        new_union, scratch, options, make_lower, lambda point: data_of(view(point)),
        lambda union, impl, states: check_layers(union, options, impl, states), compare, "kernel",
    )
    sweep.run(operation, before, calls)


@pytest.mark.limit(120)
@pytest.mark.parametrize("case", CASES, ids=crash.case_name)
def test_killed_at_some_system_calls(new_union, scratch, case):
    run_case(new_union, scratch, NFS if case[2] else INDEX, case, SOME_CALLS)


@pytest.mark.slow
@pytest.mark.limit(600)
@pytest.mark.parametrize(
    "case,options",
    [
        pytest.param(case, options, id=f"{crash.case_name(case)}-{name}")
        for i, case in enumerate(CASES)
        for j, (options, name) in enumerate(SWEPT)
        if lib.LONG or i % len(SWEPT) == j  # one sweep takes long: each case has one, in turn
    ],
)
def test_killed_at_every_system_call(new_union, scratch, case, options):
    run_case(new_union, scratch, options, case, CALLS)


@pytest.mark.parametrize("options", [INDEX, NFS, META], ids=["index", "nfs_export", "metacopy"])
def test_names_of_one_file_come_and_go_at_once(union, options):
    """Whatever threads do to the names of one file, its count is that of its names."""
    union.check_work = False
    workers, steps = 4, 150
    low = union.lower()
    for w in range(workers):
        lib.mkdir(low / f"d{w}")
    lib.write(low / "d0/f0", b"data")
    for n in range(1, 12):
        os.link(low / "d0/f0", low / f"d{n % workers}" / f"f{n}")
    m = union.mount(options)
    problems = []

    def worker(number):
        rng = random.Random(number)
        for step in range(steps):
            names = [os.path.join(m, f"d{w}", f) for w in range(workers) for f in f"f{step % 12} g h".split()]
            a, b = rng.choice(names), rng.choice(names)
            with contextlib.suppress(FileNotFoundError, FileExistsError):
                kind = rng.randrange(6)
                try:
                    if kind == 0:
                        os.unlink(a)
                    elif kind == 1:
                        os.rename(a, b)
                    elif kind == 2:
                        lib.append(a, b"+")
                    elif kind == 3:
                        os.chmod(a, 0o600 + rng.randrange(8))
                    else:
                        os.link(a, b)
                except (FileNotFoundError, FileExistsError):
                    raise
                except OSError as e:
                    problems.append(f"{kind} {a} {b}: {e}")

    threads = [threading.Thread(target=worker, args=(n,)) for n in range(workers)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not problems, "\n".join(problems[:20])
    seen = view(m)
    assert_counts_are_true(seen)
    union.remount()
    again = view(m)
    assert not differences(seen, again, "before", "after the remount")
    union.remount(impl="kernel")
    by_kernel = view(m)
    assert not differences(again, by_kernel, "plyfs", "kernel")
