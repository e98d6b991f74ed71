# SPDX-License-Identifier: MIT
"""Files and directories that stay open after their name is gone keep working in every call."""

import errno
import fcntl
import mmap
import os
import shutil
import stat
import subprocess
import tempfile

import plyfs_testlib as lib
import pytest
from plyfs_testlib import exists, fallocate, mkdir, names, opened, raises, read, write

OLD = 1_000_000_000_000_000_000


def every_call(fd, content):
    """All that can be done with a file through its descriptor."""
    st = os.fstat(fd)
    assert stat.S_ISREG(st.st_mode)
    assert st.st_size == len(content)
    assert os.pread(fd, 1000, 0) == content
    with open(f"/proc/self/fd/{fd}", "rb") as f:
        assert f.read() == content
    os.fchmod(fd, 0o600)
    assert oct(os.fstat(fd).st_mode & 0o7777) == oct(0o600)
    if lib.settings.level != "user":
        os.fchown(fd, 5, 6)
        assert os.fstat(fd).st_uid == 5
    os.utime(fd, ns=(OLD, OLD))
    assert os.fstat(fd).st_mtime_ns == OLD
    os.setxattr(fd, "user.late", b"1")
    assert os.getxattr(fd, "user.late") == b"1"
    assert "user.late" in os.listxattr(fd)
    os.removexattr(fd, "user.late")
    fcntl.flock(fd, fcntl.LOCK_EX)
    writable = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY
    fcntl.lockf(fd, fcntl.LOCK_EX if writable else fcntl.LOCK_SH)
    os.fsync(fd)
    os.fdatasync(fd)


def every_write(fd):
    os.pwrite(fd, b"WRITE", 0)
    assert os.pread(fd, 5, 0) == b"WRITE"
    os.ftruncate(fd, 3)
    assert os.fstat(fd).st_size == 3
    os.ftruncate(fd, 100000)
    assert os.fstat(fd).st_size == 100000
    fallocate(fd, 0, 0, 200000)
    assert os.fstat(fd).st_size == 200000
    fallocate(fd, lib.FALLOC_KEEP_SIZE | lib.FALLOC_PUNCH_HOLE, 0, 4096)
    assert os.pread(fd, 3, 0) == b"\0\0\0"
    with mmap.mmap(fd, 4096) as area:
        area[0:6] = b"mapped"
        area.flush()
    assert os.pread(fd, 6, 0) == b"mapped"
    with open(f"/proc/self/fd/{fd}", "r+b") as f:
        f.write(b"reopened")
    assert os.pread(fd, 8, 0) == b"reopened"
    assert os.lseek(fd, 0, os.SEEK_DATA) == 0


WAYS = ["unlink", "rename-over", "rename-and-unlink", "replace"]


def take_name_away(m, way):
    if way == "unlink":
        os.unlink(m / "d/f")
    elif way == "rename-over":
        write(m / "d/other", "other")
        os.rename(m / "d/other", m / "d/f")
    elif way == "rename-and-unlink":
        os.rename(m / "d/f", m / "g")
        os.unlink(m / "g")
    else:
        os.unlink(m / "d/f")
        write(m / "d/f", "other")


@pytest.mark.origin
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("source", ["lower", "copied", "upper"])
def test_file_open_for_writing(union, source, way):
    mkdir(union.lower() / "d")
    if source != "upper":
        write(union.lower() / "d/f", "content")
    m = union.mount()
    if source == "upper":
        write(m / "d/f", "content")
    elif source == "copied":
        os.chmod(m / "d/f", 0o644)
    with opened(m / "d/f", os.O_RDWR) as fd:
        take_name_away(m, way)
        every_call(fd, b"content")
        every_write(fd)
        if exists(m / "d/f"):
            assert read(m / "d/f") == b"other"
    assert names(m / "d") == (["f"] if way in ("rename-over", "replace") else [])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("source", ["lower", "copied", "upper"])
def test_file_open_for_reading(union, source, way):
    mkdir(union.lower() / "d")
    if source != "upper":
        write(union.lower() / "d/f", "content")
    m = union.mount()
    if source == "upper":
        write(m / "d/f", "content")
    elif source == "copied":
        os.chmod(m / "d/f", 0o644)
    with opened(m / "d/f", os.O_RDONLY) as fd:
        with mmap.mmap(fd, 7, prot=mmap.PROT_READ) as area:
            take_name_away(m, way)
            assert os.fstat(fd).st_size == 7
            assert os.pread(fd, 100, 0) == b"content"
            assert bytes(area) == b"content"
        with open(f"/proc/self/fd/{fd}", "rb") as f:
            assert f.read() == b"content"
        assert os.listxattr(fd) == []


@pytest.mark.plyfs_only("changes of a lower file without a name give ESTALE there")
def test_lower_file_without_a_name_can_still_be_changed(union):
    write(union.lower() / "f", "content")
    m = union.mount()
    with opened(m / "f", os.O_RDONLY) as fd:
        os.unlink(m / "f")
        every_call(fd, b"content")
        with opened(f"/proc/self/fd/{fd}", os.O_RDWR) as writer:
            every_write(writer)


def test_link_count_is_zero_after_unlink(union):
    write(union.lower() / "low", "x")
    m = union.mount()
    write(m / "up", "x")
    os.link(m / "up", m / "up2")
    with opened(m / "up", os.O_RDONLY) as fd:
        os.unlink(m / "up")
        assert os.fstat(fd).st_nlink == 1
        os.unlink(m / "up2")
        assert os.fstat(fd).st_nlink == 0
    with opened(m / "low", os.O_RDONLY) as fd:
        os.unlink(m / "low")
        # the kernel's overlayfs shows the count of the lower file, which still has its name
        assert os.fstat(fd).st_nlink in (0, 1)


def test_close_succeeds(union):
    write(union.lower() / "f", "x")
    m = union.mount()
    fd = os.open(m / "f", os.O_RDWR)
    os.unlink(m / "f")
    os.write(fd, b"y")
    os.close(fd)


def test_directory_of_which_nothing_is_left(union):
    write(union.lower() / "d/e/f", "content")
    m = union.mount()
    with opened(m / "d/e/f", os.O_RDWR) as fd, opened(m / "d/e", os.O_RDONLY) as dirfd:
        shutil.rmtree(m / "d")
        assert os.fstat(fd).st_size == 7
        os.write(fd, b"CONTENT")
        assert os.pread(fd, 10, 0) == b"CONTENT"
        st = os.fstat(dirfd)
        assert stat.S_ISDIR(st.st_mode)
        with raises(errno.ENOENT):
            os.open("new", os.O_CREAT | os.O_WRONLY, dir_fd=dirfd)
        with raises(errno.ENOENT):
            os.mkdir("new", dir_fd=dirfd)
        with raises(errno.ENOENT):
            os.stat("f", dir_fd=dirfd)


def test_removed_directory_as_working_directory(union):
    write(union.lower() / "d/f")
    m = union.mount()

    def inside():
        os.chdir(m / "d")
        os.unlink("f")
        os.rmdir(m / "d")
        assert os.stat(".").st_nlink in (0, 1, 2)
        with raises(errno.ENOENT):
            write("x")
        os.mkdir(m / "d")
        with raises(errno.ENOENT):
            os.mkdir("sub")
        return names(m / "d")

    assert lib.in_child(inside) == []


def test_fchmod_and_futimens_of_a_removed_directory(union):
    mkdir(union.lower() / "low")
    m = union.mount()
    os.mkdir(m / "up")
    with opened(m / "up", os.O_RDONLY) as fd:
        os.rmdir(m / "up")
        os.fchmod(fd, 0o711)
        os.utime(fd, ns=(OLD, OLD))
        st = os.fstat(fd)
        assert oct(st.st_mode & 0o7777) == oct(0o711)
        assert st.st_mtime_ns == OLD


def test_temporary_file_of_python(union):
    m = union.mount()
    with tempfile.TemporaryFile(dir=m) as f:
        f.write(b"hello")
        f.flush()
        assert os.fstat(f.fileno()).st_size == 5


def test_cat_of_a_deleted_file(union):
    write(union.lower() / "f", "content")
    m = union.mount()
    with opened(m / "f", os.O_RDONLY) as fd:
        os.unlink(m / "f")
        done = subprocess.run(["cat", f"/proc/self/fd/{fd}"], pass_fds=[fd], capture_output=True)
        assert done.stdout == b"content"


def test_copy_between_deleted_files(union):
    write(union.lower() / "a", b"a" * 100000)
    m = union.mount()
    write(m / "b")
    with opened(m / "a", os.O_RDONLY) as src, opened(m / "b", os.O_RDWR) as dst:
        os.unlink(m / "a")
        os.unlink(m / "b")
        assert os.copy_file_range(src, dst, 100000) == 100000
        assert os.fstat(dst).st_size == 100000
        assert os.pread(dst, 200000, 0) == b"a" * 100000


def test_many_deleted_files_held_open(union):
    for i in range(200):
        write(union.lower() / "d" / f"f{i}", str(i))
    m = union.mount()
    fds = [os.open(m / "d" / f"f{i}", os.O_RDWR if i % 2 else os.O_RDONLY) for i in range(200)]
    shutil.rmtree(m / "d")
    try:
        for i, fd in enumerate(fds):
            assert os.pread(fd, 10, 0) == str(i).encode()
            assert os.fstat(fd).st_size == len(str(i))
            if i % 2:
                os.pwrite(fd, b"x", 0)
    finally:
        for fd in fds:
            os.close(fd)


def test_blocks_are_given_back(union):
    m = union.mount()
    with opened(m / "big", os.O_CREAT | os.O_RDWR) as fd:
        os.unlink(m / "big")
        fallocate(fd, 0, 0, 50 * lib.MIB)
        used = os.statvfs(union.base).f_bfree
    lib.wait_for(
        lambda: (os.statvfs(union.base).f_bfree - used) * os.statvfs(union.base).f_bsize
        > 40 * lib.MIB,
        10,
        "the blocks of a deleted and closed file",
    )
