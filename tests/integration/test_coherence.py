# SPDX-License-Identifier: MIT
"""What was opened, mapped, locked or watched before copy-up is the same file after it."""

import ctypes
import errno
import fcntl
import mmap
import os
import shutil
import struct
import subprocess

import plyfs_testlib as lib
import pytest
from plyfs_testlib import append, in_child, mkdir, opened, raises, read, write

pytestmark = pytest.mark.usefixtures("each_io")

STALE_MAPPING = "a mapping made before copy-up stays on the lower file"


def test_fd_for_reading_sees_new_data(union):
    write(union.lower() / "f", "old data")
    m = union.mount()
    with opened(m / "f", os.O_RDONLY) as fd:
        assert os.read(fd, 3) == b"old"
        with opened(m / "f", os.O_WRONLY) as writer:
            os.write(writer, b"NEW DATA AND MORE")
        assert os.read(fd, 100) == b" DATA AND MORE"
        assert os.fstat(fd).st_size == 17
        os.truncate(m / "f", 4)
        assert os.pread(fd, 100, 0) == b"NEW "


def test_fd_for_reading_sees_new_attributes(union):
    write(union.lower() / "f", "x", mode=0o644)
    m = union.mount()
    with opened(m / "f", os.O_RDONLY) as fd:
        os.chmod(m / "f", 0o711)
        os.setxattr(m / "f", "user.a", b"1")
        assert oct(os.fstat(fd).st_mode & 0o7777) == oct(0o711)
        assert os.getxattr(fd, "user.a") == b"1"


def test_change_through_an_fd_for_reading(union):
    """fchmod, futimens and fsetxattr need no fd for writing: they copy up."""
    write(union.lower() / "f", "x", mode=0o644)
    m = union.mount()
    with opened(m / "f", os.O_RDONLY) as fd:
        os.fchmod(fd, 0o600)
        os.utime(fd, ns=(5, 6))
        os.setxattr(fd, "user.a", b"1")
    st = os.stat(union.upper / "f")
    assert (oct(st.st_mode & 0o7777), st.st_mtime_ns) == (oct(0o600), 6)


@pytest.mark.plyfs_only(STALE_MAPPING)
def test_shared_mapping_made_before_copy_up_sees_new_data(union):
    write(union.lower() / "f", b"o" * 8192)
    m = union.mount()
    with opened(m / "f", os.O_RDONLY) as fd, mmap.mmap(fd, 8192, prot=mmap.PROT_READ) as area:
        assert area[0:1] == b"o"
        with opened(m / "f", os.O_WRONLY) as writer:
            os.pwrite(writer, b"NEW", 0)
            os.pwrite(writer, b"NEW", 5000)
        assert area[0:3] == b"NEW"
        assert area[5000:5003] == b"NEW"


@pytest.mark.plyfs_only(STALE_MAPPING)
def test_mapping_for_writing_is_seen_by_a_mapping_made_before(union):
    write(union.lower() / "f", b"o" * 4096)
    m = union.mount()
    with opened(m / "f", os.O_RDONLY) as fd, mmap.mmap(fd, 4096, prot=mmap.PROT_READ) as before:
        assert before[10:11] == b"o"
        with opened(m / "f", os.O_RDWR) as writer, mmap.mmap(writer, 4096) as area:
            area[10:13] = b"new"
            assert before[10:13] == b"new"
            assert os.pread(fd, 3, 10) == b"new"
            area.flush()
    assert read(union.upper / "f")[10:13] == b"new"


def test_private_mapping_keeps_what_it_changed(union):
    write(union.lower() / "f", b"o" * 4096)
    m = union.mount()
    with opened(m / "f", os.O_RDONLY) as fd:
        area = mmap.mmap(fd, 4096, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        area[0:4] = b"mine"
        append(m / "f", b"more")
        assert area[0:4] == b"mine"
        area.close()
    assert read(m / "f") == b"o" * 4096 + b"more"


def test_flock_survives_copy_up(union):
    write(union.lower() / "f", "x")
    m = union.mount()

    def try_lock():
        with opened(m / "f", os.O_RDWR) as fd:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

    with opened(m / "f", os.O_RDONLY) as fd:
        fcntl.flock(fd, fcntl.LOCK_EX)
        with raises(errno.EWOULDBLOCK):
            in_child(try_lock)
        append(m / "f", b"y")
        with raises(errno.EWOULDBLOCK):
            in_child(try_lock)
        fcntl.flock(fd, fcntl.LOCK_UN)
        in_child(try_lock)


def test_posix_lock_survives_copy_up(union):
    write(union.lower() / "f", "x" * 100)
    m = union.mount()

    def try_lock(kind, start, length):
        with opened(m / "f", os.O_RDWR) as fd:
            fcntl.lockf(fd, kind | fcntl.LOCK_NB, length, start)

    with opened(m / "f", os.O_RDONLY) as fd:
        fcntl.lockf(fd, fcntl.LOCK_SH, 50, 0)
        with raises(errno.EAGAIN, errno.EACCES):
            in_child(try_lock, fcntl.LOCK_EX, 0, 10)
        # copied up by others: closing an fd of this process would drop the lock
        in_child(append, m / "f", b"y")
        with raises(errno.EAGAIN, errno.EACCES):
            in_child(try_lock, fcntl.LOCK_EX, 0, 10)
        in_child(try_lock, fcntl.LOCK_EX, 50, 10)
        in_child(try_lock, fcntl.LOCK_SH, 0, 10)
        # who holds it is told
        asked = struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 10, 0)

        def ask():
            with opened(m / "f", os.O_RDWR) as other:
                return fcntl.fcntl(other, fcntl.F_GETLK, asked)

        assert struct.unpack("hhqqi4x", in_child(ask))[4] == os.getpid()


def test_ofd_lock(union):
    write(union.lower() / "f", "x" * 100)
    m = union.mount()
    lock = struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 10, 0)
    with opened(m / "f", os.O_RDWR) as one, opened(m / "f", os.O_RDWR) as two:
        fcntl.fcntl(one, 37, lock)
        with raises(errno.EAGAIN):
            fcntl.fcntl(two, 37, lock)


IN_MODIFY, IN_ATTRIB, IN_CREATE, IN_DELETE, IN_MOVED_FROM = 2, 4, 0x100, 0x200, 0x40


def events(fd):
    out = 0
    try:
        data = os.read(fd, 65536)
    except BlockingIOError:
        return 0
    pos = 0
    while pos < len(data):
        _, mask, _, length = struct.unpack_from("iIII", data, pos)
        out |= mask
        pos += 16 + length
    return out


def test_inotify_watch_survives_copy_up(union):
    write(union.lower() / "d/f", "x")
    m = union.mount()
    fd = lib.check(lib.libc.inotify_init1(os.O_NONBLOCK))
    try:
        lib.check(lib.libc.inotify_add_watch(fd, os.fsencode(m / "d/f"), IN_MODIFY | IN_ATTRIB))
        os.chmod(m / "d/f", 0o600)
        assert events(fd) & IN_ATTRIB
        append(m / "d/f", b"y")
        assert events(fd) & IN_MODIFY
        append(m / "d/f", b"y")
        assert events(fd) & IN_MODIFY
    finally:
        os.close(fd)


def test_inotify_watch_on_a_directory_survives_copy_up(union):
    write(union.lower() / "d/f", "x")
    m = union.mount()
    fd = lib.check(lib.libc.inotify_init1(os.O_NONBLOCK))
    wanted = IN_CREATE | IN_DELETE | IN_MOVED_FROM
    try:
        lib.check(lib.libc.inotify_add_watch(fd, os.fsencode(m / "d"), ctypes.c_uint32(wanted)))
        write(m / "d/new")
        assert events(fd) & IN_CREATE
        os.unlink(m / "d/f")
        assert events(fd) & IN_DELETE
        os.rename(m / "d/new", m / "moved")
        assert events(fd) & IN_MOVED_FROM
    finally:
        os.close(fd)


def sleeping_program(union, path):
    shutil.copy(shutil.which("sleep"), path)
    os.chmod(path, 0o755)


@pytest.mark.plyfs_only("a program that runs from a lower file may be written there")
def test_running_lower_program_cannot_be_written(union):
    sleeping_program(union, union.lower() / "prog")
    m = union.mount()
    child = subprocess.Popen([m / "prog", "30"])
    try:
        lib.wait_for(lambda: lib.process_name(child.pid) == "prog", what="the start of the program")
        with raises(errno.ETXTBSY):
            os.open(m / "prog", os.O_RDWR)
        with raises(errno.ETXTBSY):
            os.truncate(m / "prog", 0)
        os.chmod(m / "prog", 0o755)
        with raises(errno.ETXTBSY):
            os.open(m / "prog", os.O_RDWR)
    finally:
        child.kill()
        child.wait()
    with opened(m / "prog", os.O_RDWR) as fd:
        os.pwrite(fd, b"X", 0)


def test_program_open_for_writing_cannot_be_run(union):
    sleeping_program(union, union.lower() / "prog")
    m = union.mount()
    with opened(m / "prog", os.O_RDWR):
        with raises(errno.ETXTBSY):
            subprocess.run([m / "prog", "0"], check=False)
    assert subprocess.run([m / "prog", "0"], check=False).returncode == 0


def test_program_runs_on_while_replaced(union):
    sleeping_program(union, union.lower() / "prog")
    m = union.mount()
    child = subprocess.Popen([m / "prog", "30"])
    try:
        lib.wait_for(lambda: lib.process_name(child.pid) == "prog", what="the start of the program")
        write(m / "new", "#!/bin/sh\nexit 7\n", mode=0o755)
        os.rename(m / "new", m / "prog")
        assert subprocess.run([m / "prog"], check=False).returncode == 7
        assert child.poll() is None
    finally:
        child.kill()
        child.wait()


def test_working_directory_survives_copy_up(union):
    write(union.lower() / "d/f", "x")
    m = union.mount()

    def inside():
        os.chdir(m / "d")
        append(m / "d/f", b"y")
        write("new", "n")
        assert read("f") == b"xy"
        return os.getcwd(), sorted(os.listdir("."))

    assert in_child(inside) == (str(m / "d"), ["f", "new"])


def test_directory_fd_survives_copy_up(union):
    write(union.lower() / "d/e/f", "x")
    m = union.mount()
    with opened(m / "d/e", os.O_RDONLY | os.O_DIRECTORY) as dirfd:
        os.chmod(m / "d", 0o711)
        os.chmod(m / "d/e", 0o711)
        fd = os.open("new", os.O_CREAT | os.O_WRONLY, dir_fd=dirfd)
        os.close(fd)
        os.unlink("f", dir_fd=dirfd)
        assert os.listdir(dirfd) == ["new"]
        os.mkdir("sub", dir_fd=dirfd)
        os.rename("new", "sub/moved", src_dir_fd=dirfd, dst_dir_fd=dirfd)
    assert os.path.exists(m / "d/e/sub/moved")


def test_path_fd_survives_copy_up(union):
    write(union.lower() / "f", "x")
    m = union.mount()
    with opened(m / "f", os.O_PATH) as fd:
        append(m / "f", b"y")
        assert os.fstat(fd).st_size == 2
        with open(f"/proc/self/fd/{fd}", "rb") as f:
            assert f.read() == b"xy"
        with open(f"/proc/self/fd/{fd}", "ab") as f:
            f.write(b"z")
    assert read(m / "f") == b"xyz"


def test_every_name_of_a_hard_link_shows_a_change_at_once(union):
    m = union.mount()
    write(m / "a", "x")
    os.link(m / "a", m / "b")
    os.stat(m / "b")
    append(m / "a", b"y")
    assert os.stat(m / "b").st_size == 2
    os.chmod(m / "a", 0o600)
    assert oct(os.stat(m / "b").st_mode & 0o7777) == oct(0o600)
    os.unlink(m / "a")
    assert os.stat(m / "b").st_nlink == 1


def test_attributes_of_a_directory_follow_what_happens_in_it(union):
    mkdir(union.lower() / "d")
    m = union.mount()
    os.mkdir(m / "pure")
    assert os.stat(m / "pure").st_nlink == 2
    os.mkdir(m / "pure/a")
    os.mkdir(m / "pure/b")
    assert os.stat(m / "pure").st_nlink == 4
    os.rename(m / "pure/a", m / "d/a")
    assert os.stat(m / "pure").st_nlink == 3
    os.rmdir(m / "pure/b")
    assert os.stat(m / "pure").st_nlink == 2


def test_size_after_writes_from_several_fds(union):
    write(union.lower() / "f", "x" * 10)
    m = union.mount()
    with opened(m / "f", os.O_RDWR) as a, opened(m / "f", os.O_RDWR) as b:
        os.pwrite(a, b"1", 100)
        assert os.fstat(b).st_size == 101
        os.pwrite(b, b"1", 200)
        assert os.fstat(a).st_size == 201
        os.ftruncate(a, 5)
        assert os.pread(b, 1000, 0) == b"xxxxx"
        assert os.stat(m / "f").st_size == 5


def test_symlink_replaced_at_once(union):
    os.symlink("one", union.lower() / "s")
    write(union.lower() / "one", "1")
    write(union.lower() / "two", "2")
    m = union.mount()
    assert read(m / "s") == b"1"
    os.unlink(m / "s")
    os.symlink("two", m / "s")
    assert os.readlink(m / "s") == "two"
    assert read(m / "s") == b"2"
    os.symlink("one", m / "t")
    os.rename(m / "t", m / "s")
    assert read(m / "s") == b"1"


def test_after_umount_everything_is_in_the_layers(union):
    write(union.lower() / "f", "low")
    m = union.mount()
    with opened(m / "f", os.O_RDWR) as fd:
        os.pwrite(fd, b"LOW", 0)
    with opened(m / "mapped", os.O_CREAT | os.O_RDWR) as fd:
        os.ftruncate(fd, 1 << 20)
        with mmap.mmap(fd, 1 << 20) as area:
            area[:] = b"m" * (1 << 20)
    union.umount()
    assert read(union.upper / "f") == b"LOW"
    assert read(union.upper / "mapped") == b"m" * (1 << 20)
