# SPDX-License-Identifier: MIT
"""chattr(1) and lsattr(1): the ioctls behind them, and what immutable and append-only forbid."""

import errno
import fcntl
import os
import struct

import plyfs_testlib as lib
import pytest
from plyfs_testlib import (
    FS_APPEND_FL,
    FS_IMMUTABLE_FL,
    FS_IOC_FSGETXATTR,
    FS_IOC_FSSETXATTR,
    FS_NODUMP_FL,
    append,
    get_flags,
    mkdir,
    names,
    opened,
    raises,
    read,
    set_flags,
    write,
)

pytestmark = pytest.mark.root("setting i and a needs CAP_LINUX_IMMUTABLE")


@pytest.fixture
def m(union):
    """lower: f, g, d/x; the flags that a test leaves are taken off at the end."""
    for name in ("f", "g"):
        write(union.lower() / name, "content")
    write(union.lower() / "d/x", "x")
    union.mount()
    yield union.point
    for rel in list(lib.walk(union.point)):
        path = union.point / rel
        if not path.is_symlink() and (path.is_file() or path.is_dir()):
            flags = get_flags(path)
            if flags & (FS_IMMUTABLE_FL | FS_APPEND_FL):
                set_flags(path, flags & ~(FS_IMMUTABLE_FL | FS_APPEND_FL))


def fsx(path):
    with opened(path, os.O_RDONLY) as fd:
        return struct.unpack("=IIIII8x", fcntl.ioctl(fd, FS_IOC_FSGETXATTR, b"\0" * 28))


def test_flags_are_those_of_the_layer(union, m):
    assert get_flags(m / "f") == get_flags(union.lower() / "f")
    assert get_flags(m / "d") == get_flags(union.lower() / "d")
    assert fsx(m / "f")[0] == fsx(union.lower() / "f")[0]


def test_set_and_get(union, m):
    set_flags(m / "f", get_flags(m / "f") | FS_NODUMP_FL)
    assert get_flags(m / "f") & FS_NODUMP_FL
    assert get_flags(union.upper / "f") & FS_NODUMP_FL
    assert not get_flags(union.lower() / "f") & FS_NODUMP_FL
    set_flags(m / "d", get_flags(m / "d") | FS_NODUMP_FL)
    assert get_flags(m / "d") & FS_NODUMP_FL


def test_fsxattr(union, m):
    with opened(m / "f", os.O_RDONLY) as fd:
        data = bytearray(fcntl.ioctl(fd, FS_IOC_FSGETXATTR, b"\0" * 28))
        flags = struct.unpack_from("=I", data)[0]
        struct.pack_into("=I", data, 0, flags | lib.FS_XFLAG_NODUMP)
        fcntl.ioctl(fd, FS_IOC_FSSETXATTR, bytes(data))
    assert fsx(m / "f")[0] & lib.FS_XFLAG_NODUMP
    assert get_flags(union.upper / "f") & FS_NODUMP_FL


@pytest.mark.opens
def test_immutable_file(union, m):
    set_flags(m / "f", get_flags(m / "f") | FS_IMMUTABLE_FL)
    assert get_flags(m / "f") & FS_IMMUTABLE_FL
    assert not get_flags(union.lower() / "f") & FS_IMMUTABLE_FL

    def denied():
        for change in (
            lambda: os.open(m / "f", os.O_WRONLY),
            lambda: append(m / "f", b"x"),
            lambda: os.truncate(m / "f", 0),
            lambda: os.chmod(m / "f", 0o777),
            lambda: os.chown(m / "f", 1, 1),
            lambda: os.unlink(m / "f"),
            lambda: os.rename(m / "f", m / "h"),
            lambda: os.rename(m / "g", m / "f"),
            lambda: os.link(m / "f", m / "h"),
            lambda: os.setxattr(m / "f", "user.a", b"1"),
            lambda: os.utime(m / "f", ns=(1, 1)),
        ):
            with raises(errno.EPERM):
                change()
        assert read(m / "f") == b"content"
        assert names(m) == ["d", "f", "g"]

    denied()
    union.remount()
    assert get_flags(m / "f") & FS_IMMUTABLE_FL
    denied()
    set_flags(m / "f", get_flags(m / "f") & ~FS_IMMUTABLE_FL)
    append(m / "f", b"+")
    os.unlink(m / "f")


@pytest.mark.opens
def test_append_only_file(union, m):
    set_flags(m / "f", get_flags(m / "f") | FS_APPEND_FL)
    append(m / "f", b"+")
    for change in (
        lambda: os.open(m / "f", os.O_WRONLY),
        lambda: os.open(m / "f", os.O_WRONLY | os.O_APPEND | os.O_TRUNC),
        lambda: os.truncate(m / "f", 0),
        lambda: os.chmod(m / "f", 0o777),
        lambda: os.unlink(m / "f"),
        lambda: os.rename(m / "f", m / "h"),
        lambda: os.link(m / "f", m / "h"),
    ):
        with raises(errno.EPERM):
            change()
    assert read(m / "f") == b"content+"
    union.remount()
    append(m / "f", b"+")
    with raises(errno.EPERM):
        os.open(m / "f", os.O_WRONLY)


def test_immutable_directory(m):
    set_flags(m / "d", get_flags(m / "d") | FS_IMMUTABLE_FL)
    for change in (
        lambda: write(m / "d/new"),
        lambda: os.mkdir(m / "d/new"),
        lambda: os.unlink(m / "d/x"),
        lambda: os.rename(m / "d/x", m / "d/y"),
        lambda: os.rename(m / "f", m / "d/f"),
        lambda: os.link(m / "f", m / "d/f"),
        lambda: os.chmod(m / "d", 0o777),
    ):
        with raises(errno.EPERM):
            change()
    append(m / "d/x", b"+")
    assert names(m / "d") == ["x"]


def test_append_only_directory(m):
    set_flags(m / "d", get_flags(m / "d") | FS_APPEND_FL)
    write(m / "d/new")
    for change in (
        lambda: os.unlink(m / "d/x"),
        lambda: os.rename(m / "d/x", m / "d/y"),
        lambda: os.rename(m / "f", m / "d/x"),
    ):
        with raises(errno.EPERM):
            change()
    assert names(m / "d") == ["new", "x"]


@pytest.mark.opens
def test_lower_flags_do_not_reach_upper_natively(union):
    """The kernel keeps i and a of a copied-up file as a mark, so that upper can be removed."""
    write(union.lower() / "f", "content")
    set_flags(union.lower() / "f", get_flags(union.lower() / "f") | FS_IMMUTABLE_FL)
    try:
        m = union.mount()
        assert get_flags(m / "f") & FS_IMMUTABLE_FL
        with raises(errno.EPERM):
            os.open(m / "f", os.O_WRONLY)
        with raises(errno.EPERM):
            os.chmod(m / "f", 0o600)
        assert names(union.upper) == []
        set_flags(m / "f", get_flags(m / "f") & ~FS_IMMUTABLE_FL)
        append(m / "f", b"+")
        assert read(m / "f") == b"content+"
    finally:
        union.umount()
        set_flags(union.lower() / "f", get_flags(union.lower() / "f") & ~FS_IMMUTABLE_FL)
        union.check_lowers = False


def test_statx_shows_the_flags(m):
    set_flags(m / "f", get_flags(m / "f") | FS_IMMUTABLE_FL)
    attributes, mask = lib.statx_attributes(m / "f")
    if mask & 0x10:
        assert attributes & 0x10


def test_unknown_ioctls(m):
    with opened(m / "f", os.O_RDONLY) as fd:
        for request in (0x5401, 0x12345678, 0xC0045877):
            with raises(errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL):
                fcntl.ioctl(fd, request, b"\0" * 64)


@pytest.mark.parametrize("kind", ["fifo", "symlink"])
def test_flags_of_other_types(union, kind):
    if kind == "fifo":
        os.mkfifo(union.lower() / "n")
    else:
        mkdir(union.lower() / "t")
        os.symlink("t", union.lower() / "n")
    m = union.mount()
    if kind == "fifo":
        with raises(errno.ENOTTY):
            get_flags(m / "n")
    else:
        assert get_flags(m / "n") == get_flags(m / "t")
