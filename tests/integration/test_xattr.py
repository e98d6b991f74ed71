# SPDX-License-Identifier: MIT
"""Extended attributes: all names and sizes, and the overlay's own which stay out of sight."""

import errno
import os
import stat

import plyfs_testlib as lib
import pytest
from plyfs_testlib import KIB, in_child, mkdir, names, raises, write, xattr, xattrs

TRUSTED = pytest.mark.root("trusted.* belongs to the first user namespace")
WHERE = ["lower", "copied", "upper"]


@pytest.fixture(params=WHERE)
def path(request, union):
    base = union.upper if request.param == "upper" else union.lower()
    write(base / "f", "x", xattrs={"user.a": b"1", "user.b": b"2"})
    m = union.mount()
    if request.param == "copied":
        os.chmod(m / "f", 0o600)
    return m / "f"


def test_get_set_list_remove(path):
    assert xattrs(path) == {"user.a": b"1", "user.b": b"2"}
    os.setxattr(path, "user.c", b"3")
    os.setxattr(path, "user.a", b"changed")
    os.removexattr(path, "user.b")
    assert xattrs(path) == {"user.a": b"changed", "user.c": b"3"}
    with raises(errno.ENODATA):
        os.getxattr(path, "user.b")
    with raises(errno.ENODATA):
        os.removexattr(path, "user.b")


def test_create_and_replace_flags(path):
    with raises(errno.EEXIST):
        os.setxattr(path, "user.a", b"x", os.XATTR_CREATE)
    with raises(errno.ENODATA):
        os.setxattr(path, "user.z", b"x", os.XATTR_REPLACE)
    os.setxattr(path, "user.z", b"x", os.XATTR_CREATE)
    os.setxattr(path, "user.z", b"y", os.XATTR_REPLACE)
    assert xattr(path, "user.z") == b"y"


def test_values_of_every_length(path):
    for size in (0, 1, 255, 256, 257, 1000, 3000):
        os.setxattr(path, "user.v", b"v" * size)
        assert xattr(path, "user.v") == b"v" * size
    os.setxattr(path, "user.bin", bytes(range(256)))
    assert xattr(path, "user.bin") == bytes(range(256))


def test_long_names(path):
    name = "user." + "n" * 250
    os.setxattr(path, name, b"x")
    assert name in os.listxattr(path)
    with raises(errno.ERANGE):
        os.setxattr(path, "user." + "n" * 251, b"x")


def raw_getxattr(path, name, size):
    import ctypes

    buf = ctypes.create_string_buffer(max(size, 1))
    return lib.check(libc_getxattr(os.fsencode(path), name.encode(), buf, size))


def raw_listxattr(path, size):
    import ctypes

    buf = ctypes.create_string_buffer(max(size, 1))
    return lib.check(lib.libc.listxattr(os.fsencode(path), buf, size))


libc_getxattr = lib.libc.getxattr


def test_sizes_are_told_and_kept(path):
    os.setxattr(path, "user.v", b"v" * 1000)
    assert raw_getxattr(path, "user.v", 0) == 1000
    assert raw_getxattr(path, "user.v", 1000) == 1000
    assert raw_getxattr(path, "user.v", 5000) == 1000
    with raises(errno.ERANGE):
        raw_getxattr(path, "user.v", 999)
    size = raw_listxattr(path, 0)
    exact = len("user.a\0user.b\0user.v\0")
    if lib.settings.impl == "plyfs":
        assert size == exact
    # the kernel's overlayfs also counts the marks that it hides
    assert size >= exact
    assert raw_listxattr(path, size) == exact
    with raises(errno.ERANGE):
        raw_listxattr(path, exact - 1)


def test_many(path):
    for i in range(30):
        os.setxattr(path, f"user.name{i}", b"%d" % i)
    assert len(os.listxattr(path)) == 32
    for i in range(30):
        assert xattr(path, f"user.name{i}") == b"%d" % i


def test_value_of_64_kib(new_union):
    """The most that Linux allows: held by tmpfs, xfs and btrfs, not by ext4."""
    union = new_union("u", where="tmpfs")
    value = os.urandom(64 * KIB)
    try:
        write(union.lower() / "f", xattrs={"user.big": value})
    except OSError as e:
        pytest.skip(f"tmpfs here holds no large xattrs: {e}")
    m = union.mount()
    assert xattr(m / "f", "user.big") == value
    os.chmod(m / "f", 0o600)
    assert xattr(m / "f", "user.big") == value
    os.setxattr(m / "f", "user.big", value[::-1])
    assert xattr(m / "f", "user.big") == value[::-1]
    with raises(errno.E2BIG):
        os.setxattr(m / "f", "user.big", value + b"x")


def test_namespaces_that_are_refused(path):
    with raises(errno.EOPNOTSUPP):
        os.setxattr(path, "nonsense.x", b"1")
    with raises(errno.EOPNOTSUPP, errno.EPERM):
        os.setxattr(path, "system.nonsense", b"1")


def test_on_directories_and_special_files(union):
    mkdir(union.lower() / "d", xattrs={"user.a": b"1"})
    os.symlink("d", union.lower() / "s")
    os.mkfifo(union.lower() / "p")
    m = union.mount()
    os.setxattr(m / "d", "user.b", b"2")
    assert xattrs(m / "d") == {"user.a": b"1", "user.b": b"2"}
    for name in ("s", "p"):
        assert os.listxattr(m / name, follow_symlinks=False) == []
        with raises(errno.EPERM):
            os.setxattr(m / name, "user.a", b"1", follow_symlinks=False)
    os.setxattr(m, "user.root", b"r")
    assert xattr(m, "user.root") == b"r"
    assert xattr(union.upper, "user.root") == b"r"


@TRUSTED
def test_trusted_on_special_files(union):
    os.symlink("d", union.lower() / "s")
    os.mkfifo(union.lower() / "p")
    os.setxattr(union.lower() / "s", "trusted.a", b"1", follow_symlinks=False)
    m = union.mount()
    assert xattrs(m / "s") == {"trusted.a": b"1"}
    for name in ("s", "p"):
        os.setxattr(m / name, "trusted.b", b"2", follow_symlinks=False)
        assert xattr(m / name, "trusted.b") == b"2"
        assert xattr(union.upper / name, "trusted.b") == b"2"
    assert xattr(union.upper / "s", "trusted.a") == b"1"


@TRUSTED
def test_on_device_nodes(union):
    os.mknod(union.lower() / "null", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.setxattr(union.lower() / "null", "trusted.a", b"1")
    m = union.mount()
    assert xattrs(m / "null") == {"trusted.a": b"1"}
    os.setxattr(m / "null", "trusted.b", b"2")
    os.mknod(m / "new", stat.S_IFBLK | 0o600, os.makedev(7, 100))
    assert os.listxattr(m / "new") == []
    assert xattrs(m / "null") == {"trusted.a": b"1", "trusted.b": b"2"}


@pytest.mark.privileged("drops to another user")
def test_rights(union):
    write(union.lower() / "f", mode=0o644, xattrs={"user.a": b"1"})
    write(union.lower() / "secret", mode=0o600, xattrs={"user.a": b"1"})
    m = union.mount()
    assert in_child(xattr, m / "f", "user.a", uid=lib.NOBODY) == b"1"
    with raises(errno.EACCES):
        in_child(os.setxattr, m / "f", "user.a", b"2", uid=lib.NOBODY)
    with raises(errno.EACCES):
        in_child(os.getxattr, m / "secret", "user.a", uid=lib.NOBODY)


@TRUSTED
def test_trusted_needs_privilege(union):
    write(union.lower() / "f", uid=lib.NOBODY, xattrs={"trusted.a": b"1", "user.a": b"1"})
    m = union.mount()
    assert in_child(os.listxattr, m / "f", uid=lib.NOBODY) == ["user.a"]
    with raises(errno.EPERM):
        in_child(os.setxattr, m / "f", "trusted.a", b"2", uid=lib.NOBODY)
    with raises(errno.ENODATA):
        in_child(os.getxattr, m / "f", "trusted.a", uid=lib.NOBODY)


# --- the overlay's own names ----------------------------------------------------------------------


def test_own_marks_are_hidden(union):
    write(union.lower(1) / "d/f", "x")
    union.opaque(union.lower(0) / "d")
    write(union.lower(0) / "d/g", xattrs={union.prefix + "origin": b"whatever", "user.a": b"1"})
    m = union.mount()
    os.chmod(m / "d/g", 0o600)
    os.mkdir(m / "new")
    for path in (m / "d", m / "d/g", m, m / "new"):
        assert not [n for n in os.listxattr(path) if ".overlay." in n]
        for mark in ("opaque", "origin", "impure", "redirect", "metacopy"):
            with raises(errno.ENODATA):
                os.getxattr(path, union.prefix + mark)
            with raises(errno.ENODATA):
                os.removexattr(path, union.prefix + mark)
    assert xattrs(m / "d/g") == {"user.a": b"1"}


def test_own_names_set_through_the_mount_are_escaped(union):
    """As in a union on a union: the inner one's marks are stored under a longer name."""
    write(union.lower() / "d/f", "x")
    m = union.mount()
    p = union.prefix
    os.setxattr(m / "d", p + "opaque", b"y")
    os.setxattr(m / "d", p + "overlay.deep", b"z")
    assert xattr(m / "d", p + "opaque") == b"y"
    assert set(xattrs(m / "d")) == {p + "opaque", p + "overlay.deep"}
    on_disk = xattrs(union.upper / "d")
    assert on_disk[p + "overlay.opaque"] == b"y"
    assert on_disk[p + "overlay.overlay.deep"] == b"z"
    assert names(m / "d") == ["f"]
    union.remount()
    assert names(m / "d") == ["f"]
    assert xattrs(m / "d") == {p + "opaque": b"y", p + "overlay.deep": b"z"}
    os.removexattr(m / "d", p + "opaque")
    assert xattr(m / "d", p + "opaque") is None


def test_escaped_names_of_a_lower_layer(union):
    p = union.prefix
    write(union.lower() / "f", xattrs={p + "overlay.opaque": b"y", p + "overlay.x": b"v"})
    m = union.mount()
    assert xattrs(m / "f") == {p + "opaque": b"y", p + "x": b"v"}
    os.chmod(m / "f", 0o600)
    assert xattrs(m / "f") == {p + "opaque": b"y", p + "x": b"v"}
    assert xattr(union.upper / "f", p + "overlay.x") == b"v"


def test_own_name_that_gets_too_long_when_escaped(union):
    write(union.lower() / "f")
    m = union.mount()
    with raises(errno.EOPNOTSUPP):
        os.setxattr(m / "f", union.prefix + "n" * (255 - len(union.prefix)), b"x")


def test_names_that_only_look_like_the_own_ones(union):
    write(union.lower() / "f", xattrs={"user.overlayfs": b"1", "user.overla": b"2"})
    m = union.mount()
    assert xattrs(m / "f") == {"user.overlayfs": b"1", "user.overla": b"2"}
    os.chmod(m / "f", 0o600)
    assert xattr(union.upper / "f", "user.overlayfs") == b"1"


@TRUSTED
def test_namespace_that_is_not_in_use_is_ordinary(union):
    write(union.lower() / "f", xattrs={"user.overlay.opaque": b"y"})
    mkdir(union.lower() / "d", xattrs={"user.overlay.opaque": b"y"})
    write(union.lower(1) / "d/below")
    m = union.mount()
    assert xattrs(m / "f") == {"user.overlay.opaque": b"y"}
    assert names(m / "d") == ["below"]
    os.chmod(m / "f", 0o600)
    assert xattr(union.upper / "f", "user.overlay.opaque") == b"y"


@TRUSTED
def test_userxattr_changes_the_namespace(union):
    write(union.lower(1) / "d/below")
    mkdir(union.lower(0) / "d", xattrs={"user.overlay.opaque": b"y"})
    mkdir(union.lower(0) / "t", xattrs={"trusted.overlay.opaque": b"y"})
    write(union.lower(1) / "t/below")
    write(union.lower(1) / "f", "x")
    m = union.mount("userxattr")
    assert names(m / "d") == []
    assert names(m / "t") == ["below"]
    assert xattrs(m / "d") == {}
    assert xattrs(m / "t") == {"trusted.overlay.opaque": b"y"}
    lib.append(m / "f", b"y")
    assert xattr(union.upper, "user.overlay.impure") == b"y"
    assert xattr(union.upper, "trusted.overlay.impure") is None
