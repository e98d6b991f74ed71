# SPDX-License-Identifier: MIT
"""Remounting: what the kernel's overlayfs allows, what it refuses, and what is on disk then."""

import errno
import os
import subprocess

import plyfs_testlib as lib
import pytest
from plyfs_testlib import mkdir, read, run_plyfs, write

pytestmark = pytest.mark.privileged("remounts")

ERRNO_OF_MESSAGE = {os.strerror(n): n for n in errno.errorcode}


def remount(union, words):
    """Raises OSError when it is refused."""
    if lib.settings.impl == "kernel":
        flags = lib.MS_REMOUNT | (lib.MS_RDONLY if "ro" in words.split(",") else 0)
        rest = ",".join(w for w in words.split(",") if w not in ("ro", "rw"))
        lib.sys_mount("none", union.point, "none", flags, rest)
        return
    done = run_plyfs("mount", "-o", "remount," + words, union.point)
    if done.returncode == 0:
        assert done.stdout == "" and done.stderr == ""
        return
    assert done.returncode == 32, done
    codes = [n for text, n in ERRNO_OF_MESSAGE.items() if text in done.stderr]
    assert len(codes) == 1, done.stderr
    raise OSError(codes[0], done.stderr)


def access(union):
    shown = lib.find_mount(os.path.realpath(union.point))[4].split(",")
    # the mount's own and the filesystem's: a remount changes both
    return shown[0], "ro" if "ro" in shown[1:] else "rw"


def test_read_only_and_back(union):
    write(union.lower() / "f", "low")
    union.mount()
    write(union.point / "new", "x")
    remount(union, "ro")
    assert access(union)[1] == "ro"
    assert read(union.point / "f") == b"low"
    for change in (
        lambda: write(union.point / "g", "x"),
        lambda: lib.append(union.point / "f", b"x"),
        lambda: os.unlink(union.point / "new"),
        lambda: os.rename(union.point / "f", union.point / "g"),
        lambda: os.chmod(union.point / "f", 0o600),
    ):
        with lib.raises(errno.EROFS):
            change()
    remount(union, "rw")
    assert access(union) == ("rw", "rw")
    lib.append(union.point / "f", b"er")
    assert read(union.upper / "f") == b"lower"
    assert lib.names(union.upper) == ["f", "new"]


def test_read_only_while_a_file_is_written(union):
    write(union.lower() / "f", "low")
    union.mount()
    with lib.opened(union.point / "f", os.O_WRONLY) as fd:
        with lib.raises(errno.EBUSY):
            remount(union, "ro")
        assert access(union)[1] == "rw"
        os.pwrite(fd, b"LOW", 0)
    remount(union, "ro")
    assert read(union.point / "f") == b"LOW"


def test_without_an_upper_it_stays_read_only(union):
    write(union.lower() / "f", "low")
    union.mount(upper=False)
    with lib.raises(errno.EROFS):
        remount(union, "rw")
    assert access(union)[1] == "ro"
    remount(union, "ro")
    with lib.raises(errno.EROFS):
        write(union.point / "f", "x")


def test_mounted_read_only_with_an_upper_becomes_writable(union):
    write(union.lower() / "f", "low")
    if lib.settings.impl == "kernel":
        union.mount(flags=lib.MS_RDONLY)
    else:
        union.mount("ro")
    with lib.raises(errno.EROFS):
        write(union.point / "f", "x")
    remount(union, "rw")
    write(union.point / "f", "up")
    assert read(union.upper / "f") == b"up"


def test_layers_and_features_stay_as_they_are(union):
    """What is not a flag is passed over in silence, as mount(2) does."""
    write(union.lower() / "d/f", "low")
    other = write(union.base / "other/g", "other").parent
    union.mount()
    remount(union, f"ro,lowerdir={other},index=on,redirect_dir=on,metacopy=on,userxattr")
    assert lib.names(union.point) == ["d"]
    remount(union, f"rw,upperdir={other},workdir={other},volatile")
    with lib.raises(errno.EXDEV):
        os.rename(union.point / "d", union.point / "e")
    os.chmod(union.point / "d/f", 0o600)
    assert read(union.upper / "d/f") == b"low"
    assert lib.names(other) == ["g"]


@pytest.mark.disk("reads the device below")
@pytest.mark.root("mounts an image")
@pytest.mark.parametrize("how", ["command", "mount8"])
def test_read_only_syncs_what_was_written(union, scratch, how, request):
    """The bytes are on the device when the call returns."""
    if how == "mount8" and lib.settings.impl == "plyfs":
        extra = mkdir(scratch / "sbin")
        sbin = os.path.realpath("/sbin")
        os.symlink(lib.settings.plyfs, extra / "mount.fuse.plyfs")
        lib.sys_mount("overlay", sbin, "overlay", 0, f"lowerdir={extra}:{sbin}")
        request.addfinalizer(lambda: lib.sys_umount(sbin, lib.MNT_DETACH))
    with lib.loop_filesystem(scratch, "ext4", 64 * lib.MIB, mount_options="commit=300") as disk:
        union.upper, union.work = mkdir(disk / "u"), mkdir(disk / "w")
        write(union.lower() / "f", "low")
        union.mount()
        pattern = os.urandom(32).hex().encode()
        write(union.point / "new", pattern * 100)
        image = scratch / "ext4.img"
        if how == "mount8":
            subprocess.run(["mount", "-o", "remount,ro", union.point], check=True, timeout=30)
        else:
            remount(union, "ro")
        assert pattern in read(image)
        union.umount()
    union.check_kernel = union.check_work = False  # they are gone


def test_volatile_mount_goes_read_only_and_back(union):
    write(union.lower() / "f", "low")
    union.mount("volatile")
    write(union.point / "f", "up")
    remount(union, "ro")
    with lib.raises(errno.EROFS):
        write(union.point / "f", "x")
    remount(union, "rw")
    write(union.point / "f", "again")
    assert read(union.upper / "f") == b"again"
    union.check_work = False
