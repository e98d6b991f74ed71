# SPDX-License-Identifier: MIT
"""Hard links and files made without a name."""

import errno
import os

import plyfs_testlib as lib
import pytest
from plyfs_testlib import (
    append,
    exists,
    in_child,
    linkat_fd,
    mkdir,
    names,
    opened,
    raises,
    read,
    write,
)


@pytest.mark.origin
def test_link_of_a_lower_file(union):
    write(union.lower() / "d/f", "x", mode=0o640)
    m = union.mount()
    os.link(m / "d/f", m / "link")
    assert os.stat(m / "d/f").st_nlink == 2
    assert os.stat(m / "link").st_nlink == 2
    assert os.stat(m / "d/f").st_ino == os.stat(m / "link").st_ino
    append(m / "link", b"y")
    assert read(m / "d/f") == b"xy"
    os.chmod(m / "d/f", 0o600)
    assert oct(os.stat(m / "link").st_mode) == oct(0o100600)
    union.remount()
    assert read(m / "d/f") == read(m / "link") == b"xy"
    assert os.stat(m / "link").st_nlink == 2
    os.unlink(m / "d/f")
    assert read(m / "link") == b"xy"
    assert os.stat(m / "link").st_nlink == 1


def test_link_over_a_whiteout(union):
    write(union.lower() / "gone", "gone")
    write(union.lower() / "f", "f")
    m = union.mount()
    os.unlink(m / "gone")
    os.link(m / "f", m / "gone")
    assert read(m / "gone") == b"f"
    assert os.stat(m / "gone").st_nlink == 2
    union.remount()
    assert read(m / "gone") == b"f"


def test_link_errors(union):
    write(union.lower() / "f")
    mkdir(union.lower() / "d")
    m = union.mount()
    with raises(errno.EEXIST):
        os.link(m / "f", m / "d")
    with raises(errno.EPERM):
        os.link(m / "d", m / "e")
    with raises(errno.ENOENT):
        os.link(m / "missing", m / "e")
    with raises(errno.EXDEV):
        os.link(m / "f", union.base / "outside")


@pytest.mark.origin
def test_links_of_other_types(union):
    os.symlink("target", union.lower() / "s")
    os.mkfifo(union.lower() / "p")
    m = union.mount()
    os.link(m / "s", m / "s2", follow_symlinks=False)
    os.link(m / "p", m / "p2")
    assert os.readlink(m / "s2") == "target"
    assert os.lstat(m / "s2").st_ino == os.lstat(m / "s").st_ino
    assert os.lstat(m / "p2").st_nlink == 2


def test_many_names_of_one_file(union):
    m = union.mount()
    mkdir(m / "d")
    write(m / "a", "x")
    for i in range(50):
        os.link(m / "a", m / "d" / f"l{i}")
    assert os.stat(m / "a").st_nlink == 51
    for i in range(0, 50, 2):
        os.unlink(m / "d" / f"l{i}")
    assert os.stat(m / "a").st_nlink == 26
    os.rename(m / "d/l1", m / "d/l3")
    # both are the same file: rename does nothing
    assert os.stat(m / "a").st_nlink == 26
    os.rename(m / "d/l1", m / "moved")
    append(m / "moved", b"y")
    assert read(m / "d/l49") == b"xy"


def test_lower_hard_links_show_their_count(union):
    write(union.lower() / "a", "x")
    os.link(union.lower() / "a", union.lower() / "b")
    m = union.mount()
    assert os.stat(m / "a").st_nlink == 2
    assert os.stat(m / "a").st_ino == os.stat(m / "b").st_ino


def test_write_to_one_name_of_a_lower_hard_link(union):
    """Without an index the link is broken: the written name is new, the other old."""
    write(union.lower() / "h/a0", "old")
    os.link(union.lower() / "h/a0", union.lower() / "h/f1")
    os.link(union.lower() / "h/a0", union.lower() / "h/f1.hl")
    m = union.mount()
    for name in ("a0", "f1", "f1.hl"):
        os.stat(m / "h" / name)
    append(m / "h/f1", b"+new")
    for _ in range(2):
        assert read(m / "h/f1") == b"old+new"
        assert read(m / "h/a0") == b"old"
        assert read(m / "h/f1.hl") == b"old"
        assert os.stat(m / "h/f1").st_nlink == 1
        assert os.stat(m / "h/f1").st_ino != os.stat(m / "h/a0").st_ino
        union.remount()
    assert names(union.upper / "h") == ["f1"]


def test_name_of_a_broken_link_while_another_is_open(union):
    write(union.lower() / "a", "old")
    os.link(union.lower() / "a", union.lower() / "b")
    m = union.mount()
    with opened(m / "a", os.O_RDONLY) as fa:
        append(m / "b", b"+new")
        assert os.pread(fa, 100, 0) == b"old"
        assert read(m / "b") == b"old+new"
        append(m / "a", b"+mine")
        assert os.pread(fa, 100, 0) == b"old+mine"
        assert read(m / "b") == b"old+new"


def test_unlink_of_one_name_of_a_lower_hard_link(union):
    write(union.lower() / "a", "x")
    os.link(union.lower() / "a", union.lower() / "b")
    m = union.mount()
    os.unlink(m / "a")
    assert not exists(m / "a")
    assert read(m / "b") == b"x"
    union.remount()
    assert read(m / "b") == b"x"


def test_hard_links_made_in_upper_before(union):
    write(union.upper / "a", "x")
    os.link(union.upper / "a", union.upper / "b")
    m = union.mount()
    assert os.stat(m / "a").st_ino == os.stat(m / "b").st_ino
    append(m / "a", b"y")
    assert read(m / "b") == b"xy"
    os.chmod(m / "b", 0o600)
    assert os.stat(m / "a").st_mode == os.stat(m / "b").st_mode
    os.unlink(m / "a")
    assert os.stat(m / "b").st_nlink == 1


@pytest.mark.privileged("drops to another user")
def test_protected_hardlinks_see_the_callers_rights(union):
    write(union.lower() / "f", "secret", mode=0o600)
    mkdir(union.lower() / "d", mode=0o777)
    os.chmod(union.lower() / "d", 0o777)
    m = union.mount()
    if lib.read("/proc/sys/fs/protected_hardlinks").strip() == b"1":
        with raises(errno.EPERM):
            in_child(os.link, m / "f", m / "d/f", uid=lib.NOBODY)


# --- O_TMPFILE ------------------------------------------------------------------------------------


def test_last_name_of_an_open_file_is_that_file(union):
    """Also when nobody had looked it up before the name went by which the file was opened."""
    write(union.upper / "a", "x", mode=0o600)
    os.link(union.upper / "a", union.upper / "b")
    m = union.mount()
    with opened(m / "a", os.O_RDWR) as fd:
        os.unlink(m / "a")
        assert os.fstat(fd).st_nlink == 1
        assert read(m / "b") == b"x"
        os.write(fd, b"longer")
        os.fchmod(fd, 0o640)
        assert read(m / "b") == b"longer"
        assert os.stat(m / "b").st_mode & 0o777 == 0o640
        os.unlink(m / "b")
        assert os.fstat(fd).st_nlink == 0
        assert os.pread(fd, 9, 0) == b"longer"


def test_file_without_a_name(union):
    write(union.lower() / "d/f")
    m = union.mount()
    with opened(m / "d", os.O_TMPFILE | os.O_RDWR, 0o640) as fd:
        os.write(fd, b"content")
        st = os.fstat(fd)
        assert (st.st_size, st.st_nlink, oct(st.st_mode)) == (7, 0, oct(0o100640))
        assert names(m / "d") == ["f"]
        os.fchmod(fd, 0o600)
        os.ftruncate(fd, 4)
        os.setxattr(fd, "user.a", b"1")
        assert os.pread(fd, 100, 0) == b"cont"
    assert names(m / "d") == ["f"]


def test_file_without_a_name_gets_one(union):
    write(union.lower() / "d/gone")
    write(union.lower() / "d/there")
    m = union.mount()
    os.unlink(m / "d/gone")
    with opened(m, os.O_TMPFILE | os.O_RDWR) as fd:
        os.write(fd, b"content")
        with raises(errno.EEXIST):
            linkat_fd(fd, m / "d/there")
        linkat_fd(fd, m / "d/gone")
        assert os.fstat(fd).st_nlink == 1
        linkat_fd(fd, m / "d/second")
        assert os.fstat(fd).st_nlink == 2
        os.write(fd, b"+")
        assert os.fstat(fd).st_ino == os.stat(m / "d/gone").st_ino
    for _ in range(2):
        assert read(m / "d/gone") == b"content+"
        assert read(m / "d/second") == b"content+"
        assert os.stat(m / "d/gone").st_nlink == 2
        union.remount()


def test_file_without_a_name_that_may_not_get_one(union):
    m = union.mount()
    with opened(m, os.O_TMPFILE | os.O_RDWR | os.O_EXCL) as fd:
        os.write(fd, b"x")
        with raises(errno.ENOENT):
            linkat_fd(fd, m / "named")
    assert names(m) == []


def test_file_without_a_name_obeys_umask_and_setgid(union):
    mkdir(union.lower() / "d")
    os.chmod(union.lower() / "d", 0o2775)
    m = union.mount()

    def make():
        with opened(m / "d", os.O_TMPFILE | os.O_RDWR, 0o666) as fd:
            st = os.fstat(fd)
            return oct(st.st_mode), st.st_gid

    mode, gid = in_child(make, umask=0o027)
    assert mode == oct(0o100640)
    assert gid == os.stat(m / "d").st_gid


def test_tempfile_module(union):
    import tempfile

    mkdir(union.lower() / "d")
    m = union.mount()
    with tempfile.TemporaryFile(dir=m / "d") as f:
        f.write(b"x" * 10000)
        f.flush()
        assert os.fstat(f.fileno()).st_size == 10000
    with tempfile.NamedTemporaryFile(dir=m / "d") as f:
        os.unlink(f.name)
        f.write(b"x")
        f.flush()
        assert os.fstat(f.fileno()).st_size == 1
        write(f.name)
