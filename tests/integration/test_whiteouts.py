# SPDX-License-Identifier: MIT
"""Deleting: whiteouts only where needed, and what was deleted stays so."""

import errno
import os
import shutil

import plyfs_testlib as lib
import pytest
from plyfs_testlib import exists, is_whiteout, make_whiteout, mkdir, names, raises, read, write


def test_lower_file_gets_one(union):
    write(union.lower() / "d/f")
    m = union.mount()
    os.unlink(m / "d/f")
    assert not exists(m / "d/f")
    assert is_whiteout(union.upper / "d/f")
    union.remount()
    assert not exists(m / "d/f")
    assert names(m / "d") == []


def test_upper_only_file_gets_none(union):
    mkdir(union.lower() / "d")
    m = union.mount()
    write(m / "d/f")
    os.unlink(m / "d/f")
    os.mkdir(m / "d/e")
    os.rmdir(m / "d/e")
    assert names(union.upper / "d") == []


def test_copied_up_file_gets_one(union):
    write(union.lower() / "f", "x")
    m = union.mount()
    lib.append(m / "f", b"y")
    os.unlink(m / "f")
    assert is_whiteout(union.upper / "f")
    assert not exists(m / "f")
    union.remount()
    assert not exists(m / "f")


def test_upper_file_with_a_lower_whiteout_gets_none(union):
    write(union.lower(1) / "f")
    make_whiteout(union.lower(0) / "f")
    m = union.mount()
    write(m / "f", "new")
    os.unlink(m / "f")
    assert names(union.upper) == []
    assert not exists(m / "f")


def test_file_in_a_directory_made_here_gets_none(union):
    mkdir(union.lower() / "d")
    m = union.mount()
    os.makedirs(m / "d/new/deep")
    write(m / "d/new/deep/f")
    shutil.rmtree(m / "d/new")
    assert names(union.upper / "d") == []


def test_file_in_an_opaque_directory_gets_none(union):
    write(union.lower() / "d/f")
    m = union.mount()
    shutil.rmtree(m / "d")
    os.mkdir(m / "d")
    write(m / "d/f")
    os.unlink(m / "d/f")
    assert names(union.upper / "d") == []
    assert not exists(m / "d/f")


def test_create_over_whiteout_and_delete_again(union):
    write(union.lower() / "f", "old", mode=0o600)
    m = union.mount()
    for i in range(3):
        os.unlink(m / "f")
        assert is_whiteout(union.upper / "f")
        write(m / "f", f"new {i}")
        assert read(m / "f") == b"new %d" % i
    union.remount()
    assert read(m / "f") == b"new 2"


@pytest.mark.parametrize("kind", ["file", "dir", "symlink", "fifo", "link"])
def test_every_type_over_a_whiteout(union, kind):
    write(union.lower() / "d/n", "old")
    write(union.lower() / "d/other", "other")
    m = union.mount()
    os.unlink(m / "d/n")
    path = m / "d/n"
    if kind == "file":
        write(path, "new")
    elif kind == "dir":
        os.mkdir(path)
    elif kind == "symlink":
        os.symlink("target", path)
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        os.link(m / "d/other", path)
    seen = os.lstat(path).st_mode
    assert names(m / "d") == ["n", "other"]
    assert names(union.upper / "d") == (["n", "other"] if kind == "link" else ["n"])
    union.remount()
    assert os.lstat(path).st_mode == seen


def test_rm_rf_then_mkdir_is_empty_also_after_remount(union):
    """In the root of the mount and deeper."""
    write(union.lower(0) / "top/z/y/1", "1")
    write(union.lower(1) / "top/q", "q")
    write(union.lower(0) / "r/z/y/1", "1")
    write(union.lower(1) / "r/z/x", "x")
    m = union.mount()
    for path in (m / "top", m / "r/z"):
        shutil.rmtree(path)
        os.mkdir(path)
        assert names(path) == []
        write(path / "n", "new")
        for name in ("z", "y", "q", "x"):
            assert not exists(path / name)
    union.remount()
    for path in (m / "top", m / "r/z"):
        assert names(path) == ["n"]
        for name in ("z", "y", "q", "x"):
            assert not exists(path / name)


def test_unlink_in_upper_of_a_directory_that_hides_a_lower_file(union):
    """d is a directory in upper and a file below: removing it must not show the file."""
    write(union.lower() / "d", "file below")
    mkdir(union.upper / "d")
    m = union.mount()
    os.rmdir(m / "d")
    assert not exists(m / "d")
    assert is_whiteout(union.upper / "d")


def test_rmdir_of_merged_directory_that_holds_whiteouts(union):
    for i in range(30):
        write(union.lower() / "d" / f"f{i}")
    m = union.mount()
    for i in range(30):
        os.unlink(m / "d" / f"f{i}")
    os.rmdir(m / "d")
    assert is_whiteout(union.upper / "d")
    assert not exists(m / "d")


def test_rmdir_of_a_non_empty_merged_directory(union):
    write(union.lower(1) / "d/f")
    write(union.lower(0) / "d/g")
    m = union.mount()
    with raises(errno.ENOTEMPTY):
        os.rmdir(m / "d")
    os.unlink(m / "d/g")
    with raises(errno.ENOTEMPTY):
        os.rmdir(m / "d")
    os.unlink(m / "d/f")
    os.rmdir(m / "d")
    assert not exists(m / "d")


def test_errors_of_unlink_and_rmdir(union):
    write(union.lower() / "f")
    mkdir(union.lower() / "d")
    m = union.mount()
    with raises(errno.EISDIR):
        os.unlink(m / "d")
    with raises(errno.ENOTDIR):
        os.rmdir(m / "f")
    with raises(errno.ENOENT):
        os.unlink(m / "missing")
    os.unlink(m / "f")
    with raises(errno.ENOENT):
        os.unlink(m / "f")
    with raises(errno.EBUSY):
        os.rmdir(m)


def test_parent_is_copied_up_with_its_attributes(union):
    write(union.lower() / "a/b/f")
    os.chmod(union.lower() / "a", 0o711)
    os.chmod(union.lower() / "a/b", 0o1775)
    m = union.mount()
    os.unlink(m / "a/b/f")
    assert oct(os.stat(union.upper / "a").st_mode & 0o7777) == oct(0o711)
    assert oct(os.stat(union.upper / "a/b").st_mode & 0o7777) == oct(0o1775)


def test_whiteouts_are_not_made_through_the_mount(union):
    union.mount()
    with raises(errno.EPERM):
        make_whiteout(union.point / "x")
    assert names(union.point) == []


@pytest.mark.privileged("needs two identities")
def test_sticky_directory(union):
    write(union.lower() / "d/mine", uid=1000)
    write(union.lower() / "d/his", uid=1001)
    os.chmod(union.lower() / "d", 0o1777)
    m = union.mount()
    with raises(errno.EPERM):
        lib.in_child(os.unlink, m / "d/his", uid=1000)
    lib.in_child(os.unlink, m / "d/mine", uid=1000)
    assert names(m / "d") == ["his"]


def test_old_name_stays_away_when_the_parent_gets_new_names(union):
    """A lower directory that lost a name and gained another: the lost one is not found again."""
    write(union.lower() / "d/a", "a")
    write(union.lower() / "d/b", "b")
    m = union.mount()
    os.unlink(m / "d/a")
    write(m / "d/c", "c")
    assert not exists(m / "d/a")
    assert names(m / "d") == ["b", "c"]
    union.remount()
    assert not exists(m / "d/a")
    assert names(m / "d") == ["b", "c"]


def test_rename_of_an_upper_only_file_leaves_no_whiteout(union):
    mkdir(union.lower() / "d")
    m = union.mount()
    write(m / "d/a", "x")
    os.rename(m / "d/a", m / "d/b")
    os.rename(m / "d/b", m / "c")
    assert names(union.upper / "d") == []
    assert names(union.upper) == ["c", "d"]


def test_symlink_over_whiteout_leaves_nothing_else(union):
    write(union.lower() / "s")
    m = union.mount()
    os.unlink(m / "s")
    os.symlink("t", m / "s")
    assert names(union.upper) == ["s"]
    assert os.readlink(union.upper / "s") == "t"


def test_many_whiteouts_share_one_inode(union):
    for i in range(100):
        write(union.lower() / "d" / f"f{i}")
    m = union.mount()
    for i in range(100):
        os.unlink(m / "d" / f"f{i}")
    assert len({os.lstat(union.upper / "d" / f"f{i}").st_ino for i in range(100)}) == 1


def test_dangling_entries_do_not_come_back_when_a_name_changes_its_type(union):
    write(union.lower() / "n/f", "f")
    m = union.mount()
    for _ in range(2):
        shutil.rmtree(m / "n")
        write(m / "n", "file")
        assert read(m / "n") == b"file"
        os.unlink(m / "n")
        os.symlink("nowhere", m / "n")
        os.unlink(m / "n")
        os.mkdir(m / "n")
        assert names(m / "n") == []
    union.remount()
    assert names(m / "n") == []
