# SPDX-License-Identifier: MIT
"""Mounts without an upper layer, mounts with ro, statfs and the flags of a mount."""

import errno
import os
import shutil
import stat
import subprocess

import plyfs_testlib as lib
import pytest
from plyfs_testlib import exists, make_whiteout, mkdir, names, opened, raises, read, write


def every_change(m):
    yield "open for writing", lambda: os.open(m / "f", os.O_WRONLY)
    yield "open with O_TRUNC", lambda: os.open(m / "f", os.O_RDONLY | os.O_TRUNC)
    yield "truncate", lambda: os.truncate(m / "f", 0)
    yield "create", lambda: os.open(m / "new", os.O_CREAT | os.O_WRONLY)
    yield "mkdir", lambda: os.mkdir(m / "new")
    yield "mkfifo", lambda: os.mkfifo(m / "new")
    yield "symlink", lambda: os.symlink("x", m / "new")
    yield "link", lambda: os.link(m / "f", m / "new")
    yield "unlink", lambda: os.unlink(m / "f")
    yield "rmdir", lambda: os.rmdir(m / "e")
    yield "rename", lambda: os.rename(m / "f", m / "new")
    yield "rename over", lambda: os.rename(m / "f", m / "g")
    yield "exchange", lambda: lib.renameat2(m / "f", m / "g", lib.RENAME_EXCHANGE)
    yield "chmod", lambda: os.chmod(m / "f", 0o600)
    yield "chown", lambda: os.chown(m / "f", os.getuid(), os.getgid())
    yield "utimes", lambda: os.utime(m / "f", ns=(1, 1))
    yield "setxattr", lambda: os.setxattr(m / "f", "user.x", b"1")
    yield "removexattr", lambda: os.removexattr(m / "f", "user.a")
    yield "O_TMPFILE", lambda: os.open(m, os.O_TMPFILE | os.O_RDWR)
    yield "chmod of the root", lambda: os.chmod(m, 0o700)


def fill(union):
    write(union.lower(1) / "f", "bottom", xattrs={"user.a": b"1"})
    write(union.lower(1) / "g", "g")
    write(union.lower(0) / "top", "top")
    mkdir(union.lower(1) / "e")
    write(union.lower(1) / "gone")
    make_whiteout(union.lower(0) / "gone")


def test_without_upper_every_change_is_refused(union):
    fill(union)
    m = union.mount(upper=False)
    assert names(m) == ["e", "f", "g", "top"]
    assert read(m / "f") == b"bottom"
    assert not exists(m / "gone")
    for what, change in every_change(m):
        try:
            change()
        except OSError as e:
            assert e.errno == errno.EROFS, f"{what}: {e}"
        else:
            raise AssertionError(f"{what} succeeded")
    assert os.statvfs(m).f_flag & os.ST_RDONLY
    assert not os.access(m / "f", os.W_OK)


def test_without_upper_one_layer(union):
    write(union.lower() / "d/f", "x")
    m = union.mount(upper=False)
    assert read(m / "d/f") == b"x"
    with raises(errno.EROFS):
        write(m / "d/new")


def test_same_layer_in_several_mounts(union):
    fill(union)
    m = union.mount()
    others = []
    for i in range(3):
        point = mkdir(union.base / f"other{i}")
        others.append(union.mount(upper=False, point=point))
    write(m / "f", "changed")
    for other in others:
        assert read(other / "f") == b"bottom"


def test_upper_of_another_mount_as_a_lower(union):
    """What commit and diff of container engines do."""
    fill(union)
    m = union.mount()
    os.unlink(m / "f")
    write(m / "new", "new")
    shutil.rmtree(m / "e")
    os.mkdir(m / "e")
    seen = lib.tree(m)
    point = mkdir(union.base / "diff")
    union.mount(upper=False, lowers=[union.upper, *union.lowers], point=point)
    assert not exists(point / "f")
    assert read(point / "new") == b"new"
    lib.assert_same_tree(seen, lib.tree(point), "with upper", "upper as a lower")


@pytest.mark.plyfs_only("ro is given as a flag of mount(2) there")
@pytest.mark.privileged("mount flags")
def test_option_ro(union):
    fill(union)
    m = union.mount("ro")
    for what, change in every_change(m):
        try:
            change()
        except OSError as e:
            assert e.errno == errno.EROFS, f"{what}: {e}"
        else:
            raise AssertionError(f"{what} succeeded")
    assert read(m / "f") == b"bottom"


def test_statfs_is_that_of_the_upper_layer(union):
    write(union.lower() / "f")
    m = union.mount()
    ours, below = os.statvfs(m), os.statvfs(union.upper)
    assert ours.f_blocks * ours.f_frsize == below.f_blocks * below.f_frsize
    assert ours.f_files == below.f_files
    assert ours.f_namemax == below.f_namemax
    assert abs(ours.f_bavail * ours.f_frsize - below.f_bavail * below.f_frsize) < 64 * lib.MIB
    assert ours.f_bsize == below.f_bsize


@pytest.mark.privileged("mounts a file system")
def test_statfs_without_upper_is_that_of_the_topmost_layer(union):
    with lib.tmpfs(union.base, size="10m") as fs:
        union.use_lower(0, mkdir(fs / "l"))
        write(fs / "l/f")
        union.use_lower(1, mkdir(union.base / "l1"))
        m = union.mount(upper=False)
        s = os.statvfs(m)
        assert s.f_blocks * s.f_frsize == 10 * lib.MIB
        union.close()


@pytest.mark.plyfs_only("flags of mount(2) there")
@pytest.mark.privileged("setuid and devices")
@pytest.mark.parametrize("option", ["nosuid", "nodev", "noexec", "nosuid,nodev,noexec", "noatime"])
def test_mount_flags(union, option):
    write(union.lower() / "prog", "#!/bin/sh\nexit 0\n", mode=0o755)
    m = union.mount(option)
    entry = lib.find_mount(m)
    for word in option.split(","):
        assert word in entry[4].split(","), entry
    if "noexec" in option:
        with raises(errno.EACCES):
            subprocess.run([m / "prog"], check=False)
    else:
        assert subprocess.run([m / "prog"], check=False).returncode == 0


@pytest.mark.root("devices and setuid programs work only there")
@pytest.mark.plyfs_only("flags of mount(2) there")
def test_without_flags_devices_and_setuid_work(union):
    shutil.copy(shutil.which("id"), union.lower() / "id")
    os.chown(union.lower() / "id", 1234, 1234)
    os.chmod(union.lower() / "id", 0o4755)
    os.mknod(union.lower() / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.chmod(union.base, 0o755)

    def uid(m):
        done = lib.in_child(
            lambda: subprocess.run([m / "id", "-u"], capture_output=True, text=True).stdout,
            uid=lib.NOBODY,
        )
        return int(done)

    m = union.mount()
    assert uid(m) == 1234
    with opened(m / "null", os.O_WRONLY) as fd:
        os.write(fd, b"x")
    m = union.remount(options="nosuid,nodev")
    assert uid(m) == lib.NOBODY
    with raises(errno.EACCES):
        os.open(m / "null", os.O_WRONLY)


@pytest.mark.plyfs_only("a line of the mount table of FUSE")
def test_mount_table_shows_type_and_source(union):
    m = union.mount()
    _, fstype, source, _, options = lib.find_mount(m)
    assert fstype == "fuse.plyfs"
    assert source == "plyfs"
    assert "default_permissions" in options.split(",")
    if lib.settings.level != "user":
        assert "allow_other" in options.split(",")


@pytest.mark.privileged("remounts")
def test_remount_read_only_and_back(union):
    write(union.lower() / "f", "x")
    m = union.mount()
    write(m / "f", "y")
    if lib.settings.level == "root":
        lib.sys_mount("none", m, "none", lib.MS_REMOUNT | lib.MS_RDONLY, "")
        with raises(errno.EROFS):
            write(m / "f", "z")
        assert read(m / "f") == b"y"
        lib.sys_mount("none", m, "none", lib.MS_REMOUNT, "")
    lib.sys_mount("none", m, "none", lib.MS_REMOUNT | lib.MS_BIND | lib.MS_RDONLY, "")
    with raises(errno.EROFS):
        write(m / "f", "z")
    lib.sys_mount("none", m, "none", lib.MS_REMOUNT | lib.MS_BIND, "")
    write(m / "f", "z")
    assert read(m / "f") == b"z"


@pytest.mark.privileged("drops to another user")
@pytest.mark.plyfs_only("an option of FUSE")
def test_root_lets_others_in_by_default(union):
    write(union.lower() / "f", "x", mode=0o644)
    write(union.lower() / "private", "x", mode=0o600)
    m = union.mount()
    assert lib.in_child(read, m / "f", uid=lib.NOBODY) == b"x"
    with raises(errno.EACCES):
        lib.in_child(read, m / "private", uid=lib.NOBODY)
