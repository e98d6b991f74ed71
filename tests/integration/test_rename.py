# SPDX-License-Identifier: MIT
"""rename(2) and renameat2(2) over every kind of source and target."""

import errno
import os
import shutil

import plyfs_testlib as lib
import pytest
from plyfs_testlib import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    RENAME_WHITEOUT,
    exists,
    is_whiteout,
    mkdir,
    names,
    opened,
    raises,
    read,
    renameat2,
    write,
)

OLD = 1_000_000_000_000_000_000
SOURCES = ["lower", "copied", "upper"]
TARGETS = ["missing", "lower", "copied", "upper", "whiteout"]


def prepare(union):
    """src-KIND and dst-KIND files in the root and in d."""
    for base in (union.lower(), union.lower() / "d"):
        for kind in ("lower", "copied"):
            write(base / f"src-{kind}", f"src-{kind}")
            write(base / f"dst-{kind}", f"dst-{kind}")
        write(base / "dst-whiteout", "deleted")
    m = union.mount()
    for base in (m, m / "d"):
        write(base / "src-upper", "src-upper")
        write(base / "dst-upper", "dst-upper")
        os.utime(base / "src-copied")
        os.utime(base / "dst-copied")
        os.unlink(base / "dst-whiteout")
    return m


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("where", ["same", "other"])
def test_file(union, source, target, where):
    m = prepare(union)
    old = m / "d" / f"src-{source}"
    new = (m / "d" if where == "same" else m) / f"dst-{target}"
    ino = os.lstat(old).st_ino
    os.rename(old, new)
    if lib.settings.numbers_stay:
        assert os.lstat(new).st_ino == ino
    for _ in range(2):
        assert not exists(old)
        assert read(new) == f"src-{source}".encode()
        assert names(old.parent).count(old.name) == 0
        assert names(new.parent).count(new.name) == 1
        union.remount()
    assert is_whiteout(union.upper / "d" / f"src-{source}") == (source != "upper")
    write(old, "again")
    assert read(old) == b"again"


@pytest.mark.parametrize("target", ["lower", "copied", "upper"])
@pytest.mark.parametrize("source", SOURCES)
def test_exchange_of_files(union, source, target):
    m = prepare(union)
    old, new = m / "d" / f"src-{source}", m / f"dst-{target}"
    renameat2(old, new, RENAME_EXCHANGE)
    for _ in range(2):
        assert read(old) == f"dst-{target}".encode()
        assert read(new) == f"src-{source}".encode()
        union.remount()


@pytest.mark.parametrize("source", SOURCES)
def test_noreplace(union, source):
    m = prepare(union)
    old = m / f"src-{source}"
    for target in ("lower", "copied", "upper"):
        with raises(errno.EEXIST):
            renameat2(old, m / f"dst-{target}", RENAME_NOREPLACE)
    renameat2(old, m / "dst-whiteout", RENAME_NOREPLACE)
    assert read(m / "dst-whiteout") == f"src-{source}".encode()
    assert not exists(old)
    union.remount()
    assert read(m / "dst-whiteout") == f"src-{source}".encode()
    assert not exists(old)


def test_noreplace_to_a_missing_name(union):
    m = prepare(union)
    renameat2(m / "src-lower", m / "d/fresh", RENAME_NOREPLACE)
    assert read(m / "d/fresh") == b"src-lower"


def test_exchange_with_a_missing_name(union):
    m = prepare(union)
    with raises(errno.ENOENT):
        renameat2(m / "src-lower", m / "missing", RENAME_EXCHANGE)
    with raises(errno.ENOENT):
        renameat2(m / "src-lower", m / "dst-whiteout", RENAME_EXCHANGE)


def test_flags_that_are_refused(union):
    m = prepare(union)
    for flags in (RENAME_WHITEOUT, RENAME_WHITEOUT | RENAME_NOREPLACE, 8, 1 << 30):
        with raises(errno.EINVAL):
            renameat2(m / "src-upper", m / "new", flags)
    with raises(errno.EINVAL):
        renameat2(m / "src-upper", m / "dst-upper", RENAME_NOREPLACE | RENAME_EXCHANGE)
    assert read(m / "src-upper") == b"src-upper"


def test_lower_and_merged_directories_give_exdev(union):
    write(union.lower(0) / "low/f")
    write(union.lower(0) / "merged/f")
    write(union.lower(1) / "merged2/f")
    write(union.lower(0) / "merged2/g")
    mkdir(union.lower() / "into")
    m = union.mount()
    write(m / "merged/g")
    os.mkdir(m / "pure")
    before = lib.tree(m, times=False)
    for name in ("low", "merged", "merged2"):
        with raises(errno.EXDEV):
            os.rename(m / name, m / "new")
        with raises(errno.EXDEV):
            os.rename(m / name, m / "into/new")
        with raises(errno.EXDEV):
            renameat2(m / name, m / "pure", RENAME_EXCHANGE)
        with raises(errno.EXDEV):
            renameat2(m / "pure", m / name, RENAME_EXCHANGE)
        with raises(errno.EXDEV):
            renameat2(m / name, m / "new", RENAME_NOREPLACE)
    lib.assert_same_tree(before, lib.tree(m, times=False), "before", "after")


def test_mv_of_a_lower_directory_works_by_copying(union):
    """mv(1) copes with EXDEV: that is what programs rely on."""
    import subprocess

    write(union.lower() / "low/sub/f", "x")
    m = union.mount()
    subprocess.run(["mv", m / "low", m / "moved"], check=True)
    assert read(m / "moved/sub/f") == b"x"
    assert not exists(m / "low")
    union.remount()
    assert read(m / "moved/sub/f") == b"x"
    assert not exists(m / "low")


def test_directory_made_here(union):
    mkdir(union.lower() / "into")
    write(union.lower() / "gone")
    m = union.mount()
    os.unlink(m / "gone")
    os.mkdir(m / "a")
    write(m / "a/f", "x")
    os.mkdir(m / "a/sub")
    for target in ("b", "into/c", "gone"):
        source = next(m / p for p in ("a", "b", "into/c") if exists(m / p))
        os.rename(source, m / target)
        assert read(m / target / "f") == b"x"
        assert names(m / target) == ["f", "sub"]
        assert not exists(source)
    union.remount()
    assert names(m / "gone") == ["f", "sub"]
    assert names(m / "into") == []


def test_directory_made_here_does_not_merge_at_its_new_place(union):
    """The place it goes to was a lower directory once."""
    write(union.lower() / "d/below")
    write(union.lower() / "p/n/below")
    m = union.mount()
    shutil.rmtree(m / "d")
    os.mkdir(m / "new")
    write(m / "new/f")
    os.rename(m / "new", m / "d")
    assert names(m / "d") == ["f"]
    shutil.rmtree(m / "p/n")
    os.mkdir(m / "new")
    write(m / "new/f")
    os.rename(m / "new", m / "p/n")
    assert names(m / "p/n") == ["f"]
    union.remount()
    assert names(m / "d") == ["f"]
    assert names(m / "p/n") == ["f"]
    assert not exists(m / "d/below")


def test_directory_over_an_empty_directory(union):
    mkdir(union.lower() / "empty-low")
    write(union.lower() / "full-low/f")
    write(union.lower() / "emptied/f")
    m = union.mount()
    os.unlink(m / "emptied/f")
    os.mkdir(m / "empty-up")
    for target in ("empty-up", "empty-low", "emptied"):
        os.mkdir(m / "src")
        write(m / "src/x", target)
        os.rename(m / "src", m / target)
        assert names(m / target) == ["x"]
    os.mkdir(m / "src")
    with raises(errno.ENOTEMPTY):
        os.rename(m / "src", m / "full-low")
    union.remount()
    for target in ("empty-up", "empty-low", "emptied"):
        assert names(m / target) == ["x"]


def test_type_mismatches(union):
    write(union.lower() / "f")
    mkdir(union.lower() / "d")
    m = union.mount()
    os.mkdir(m / "pure")
    write(m / "new")
    with raises(errno.EISDIR):
        os.rename(m / "f", m / "d")
    with raises(errno.EISDIR):
        os.rename(m / "new", m / "pure")
    with raises(errno.ENOTDIR):
        os.rename(m / "pure", m / "f")
    with raises(errno.ENOTDIR):
        os.rename(m / "pure", m / "new")
    with raises(errno.ENOENT):
        os.rename(m / "missing", m / "x")
    with raises(errno.EINVAL):
        os.rename(m / "pure", m / "pure/sub")


def test_exchange_of_a_directory_and_a_file(union):
    write(union.lower() / "f", "low")
    m = union.mount()
    os.mkdir(m / "pure")
    write(m / "pure/x", "x")
    renameat2(m / "f", m / "pure", RENAME_EXCHANGE)
    for _ in range(2):
        assert read(m / "pure") == b"low"
        assert names(m / "f") == ["x"]
        union.remount()


@pytest.mark.origin
def test_to_itself_and_to_its_own_link(union):
    write(union.lower() / "f", "x")
    m = union.mount()
    os.rename(m / "f", m / "f")
    os.link(m / "f", m / "g")
    os.rename(m / "f", m / "g")
    assert names(m) == ["f", "g"]


@pytest.mark.parametrize("kind", ["symlink", "fifo"])
def test_special_files(union, kind):
    low = mkdir(union.lower() / "d")
    if kind == "symlink":
        os.symlink("t", low / "n")
    else:
        os.mkfifo(low / "n")
    m = union.mount()
    ino = os.lstat(m / "d/n").st_ino
    os.rename(m / "d/n", m / "moved")
    if lib.settings.numbers_stay:
        assert os.lstat(m / "moved").st_ino == ino
    assert not exists(m / "d/n")
    assert is_whiteout(union.upper / "d/n")


def test_open_file_follows(union):
    write(union.lower() / "f", "low")
    m = union.mount()
    with opened(m / "f", os.O_RDWR) as fd, opened(m / "f", os.O_RDONLY) as reader:
        os.rename(m / "f", m / "g")
        os.write(fd, b"LOW")
        assert read(m / "g") == b"LOW"
        assert os.pread(reader, 10, 0) == b"LOW"
        write(m / "f", "other")
        assert os.pread(reader, 10, 0) == b"LOW"
    assert read(m / "f") == b"other"


def test_changes_the_times_of_both_parents(union):
    write(union.lower() / "a/f")
    mkdir(union.lower() / "b")
    for name in "ab":
        os.utime(union.lower() / name, ns=(OLD, OLD))
    m = union.mount()
    os.rename(m / "a/f", m / "b/f")
    assert os.stat(m / "a").st_mtime_ns > OLD
    assert os.stat(m / "b").st_mtime_ns > OLD


def test_chain_of_renames_of_a_lower_file(union):
    """Names it passed through are free again and hold nothing."""
    write(union.lower() / "a", "content")
    write(union.lower() / "c", "old c")
    m = union.mount()
    os.rename(m / "a", m / "b")
    os.rename(m / "b", m / "c")
    os.rename(m / "c", m / "d")
    for _ in range(2):
        assert names(m) == ["d"]
        assert read(m / "d") == b"content"
        union.remount()
    assert names(union.upper) == ["a", "c", "d"]


def test_swap_back_and_forth(union):
    write(union.lower() / "a", "a")
    write(union.lower() / "b", "b")
    m = union.mount()
    for i in range(4):
        renameat2(m / "a", m / "b", RENAME_EXCHANGE)
        assert read(m / "a") == (b"b" if i % 2 == 0 else b"a")
    assert read(m / "a") == b"a"


def test_children_of_a_renamed_directory_stay_reachable(union):
    m = union.mount()
    os.makedirs(m / "a/b/c")
    write(m / "a/b/c/f", "x")
    mkdir(m / "t")
    with opened(m / "a/b/c", os.O_RDONLY) as dirfd, opened(m / "a/b/c/f", os.O_RDWR) as fd:
        os.rename(m / "a/b", m / "t/moved")
        os.write(fd, b"y")
        assert read(m / "t/moved/c/f") == b"y"
        new = os.open("made", os.O_CREAT | os.O_WRONLY, dir_fd=dirfd)
        os.close(new)
        assert names(m / "t/moved/c") == ["f", "made"]
        os.rename(m / "t", m / "t2")
        assert os.stat("f", dir_fd=dirfd).st_size == 1
        assert os.stat("../..", dir_fd=dirfd).st_ino == os.stat(m / "t2").st_ino
    assert names(m / "a") == []


def test_rename_over_an_open_file_keeps_it_readable(union):
    write(union.lower() / "target", "target")
    write(union.lower() / "source", "source")
    m = union.mount()
    with opened(m / "target", os.O_RDONLY) as fd:
        os.rename(m / "source", m / "target")
        assert os.pread(fd, 100, 0) == b"target"
        assert read(m / "target") == b"source"


@pytest.mark.privileged("needs two identities")
def test_user_may_rename_in_his_directory(union):
    write(union.lower() / "d/f", "x", uid=1000, gid=1000)
    write(union.lower() / "d/root", "x")
    mkdir(union.lower() / "d", uid=1000, gid=1000, mode=0o755)
    m = union.mount()
    lib.in_child(os.rename, m / "d/f", m / "d/g", uid=1000)
    lib.in_child(os.rename, m / "d/root", m / "d/h", uid=1000)
    assert names(m / "d") == ["g", "h"]
    with raises(errno.EACCES):
        lib.in_child(os.rename, m / "d/g", m / "g", uid=1000)


@pytest.mark.plyfs_only("the kernel's overlayfs lists such whiteouts")
def test_directory_over_one_of_upper_that_holds_a_file_and_a_whiteout(union):
    write(union.upper / "d/precious", "data")
    lib.make_whiteout(union.upper / "d/gone")
    mkdir(union.upper / "new")
    m = union.mount()
    with raises(errno.ENOTEMPTY):
        os.rename(m / "new", m / "d")
    assert names(m) == ["d", "new"]
    assert read(m / "d/precious") == b"data"
    os.unlink(m / "d/precious")
    os.rename(m / "new", m / "d")
    assert names(m) == ["d"]
    assert names(m / "d") == []
