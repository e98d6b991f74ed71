# SPDX-License-Identifier: MIT
"""What hostile or unlucky callers try: rights kept by caches, unchecked ways in, listings mixed up."""

import errno
import fcntl
import os
import shutil
import signal
import struct
import subprocess
import time

import plyfs_testlib as lib
import pytest
from plyfs_testlib import append, getdents, in_child, mkdir, opened, raises, read, write

FS_IOC32_SETFLAGS = 0x40046602
IMMUTABLE, APPEND_ONLY = 0x10, 0x20


def rewrite(path):
    """The same bytes once more: the program stays what it is."""
    with opened(path, os.O_RDWR) as fd:
        os.pwrite(fd, os.pread(fd, 64, 0), 0)


def punch_nothing(path):
    with opened(path, os.O_RDWR) as fd:
        lib.fallocate(fd, 1, 0, 64)  # FALLOC_FL_KEEP_SIZE


def copy_onto_itself(path):
    with opened("/usr/bin/id", os.O_RDONLY) as source:
        with opened(path, os.O_RDWR) as fd:
            data = os.pread(source, 64, 0)
            assert os.pwrite(fd, data, 0) == 64


def run_as_nobody(path):
    done = subprocess.run(
        ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", path, "-u"],
        capture_output=True, text=True, check=True,
    )
    return int(done.stdout)


@pytest.mark.root("set-user-id root")
@pytest.mark.parametrize("change", [rewrite, punch_nothing, copy_onto_itself])
@pytest.mark.parametrize("where", ["lower", "upper"])
def test_set_user_id_is_gone_for_exec_without_a_stat(union, change, where):
    path = union.base / where / "f" if where == "upper" else union.lower() / "f"
    shutil.copy("/usr/bin/id", path)
    os.chmod(path, 0o6777)
    m = union.mount()
    assert run_as_nobody(m / "f") == 0  # the kernel has seen the bits
    in_child(change, m / "f", uid=lib.NOBODY)
    assert run_as_nobody(m / "f") == lib.NOBODY


@pytest.mark.root("needs another user")
def test_flags_of_foreign_files_are_not_changed_through_32_bit_ioctl(union):
    write(union.lower() / "f", "x", mode=0o644)
    m = union.mount()

    def attack():
        with opened(m / "f", os.O_RDONLY) as fd:
            with raises(errno.ENOTTY, errno.EPERM):
                fcntl.ioctl(fd, FS_IOC32_SETFLAGS, struct.pack("i", IMMUTABLE))

    in_child(attack, uid=lib.NOBODY)
    append(m / "f", b"y")
    assert read(m / "f") == b"xy"


@pytest.mark.root("needs CAP_LINUX_IMMUTABLE")
def test_append_only_file_is_not_overwritten_by_dropping_o_append(union):
    write(union.lower() / "f", "0123456789", mode=0o666)
    m = union.mount()
    lib.set_flags(m / "f", APPEND_ONLY)

    def attack():
        with opened(m / "f", os.O_WRONLY | os.O_APPEND) as fd:
            with raises(errno.EPERM):
                fcntl.fcntl(fd, fcntl.F_SETFL, 0)
                os.pwrite(fd, b"X", 0)

    in_child(attack, uid=lib.NOBODY)
    append(m / "f", b"a")
    assert read(m / "f") == b"0123456789a"
    lib.set_flags(m / "f", 0)


def read_all(fd):
    found = []
    while True:
        chunk = getdents(fd, 4096)
        if not chunk:
            return found
        found += chunk


def test_slow_reader_does_not_spoil_what_others_list(union):
    """Two open directories, one from before a change, read in turns: the cache must hold neither mix."""
    m = union.mount()
    mkdir(m / "d")
    expected = {f"f{i:03}" for i in range(300)}
    for name in expected:
        write(m / "d" / name)

    def opendir():
        return opened(m / "d", os.O_RDONLY | os.O_DIRECTORY)

    with opendir() as old, opendir() as other:
        getdents(old, 4096)
        read_all(other)
        for i in range(60):
            write(m / "d" / f"new{i:02}")
            os.unlink(m / "d" / f"f{i:03}")
        expected = set(os.listdir(union.upper / "d"))
        with opendir() as new:
            getdents(new, 4096)
            read_all(old)
        assert set(os.listdir(m / "d")) == expected
        with opendir() as late:
            read_all(late)
    assert set(os.listdir(m / "d")) == expected
    shutil.rmtree(m / "d")


@pytest.mark.plyfs_only("about the server's waiting")
@pytest.mark.limit(120)
def test_waiters_for_one_copy_up_delay_nobody_and_can_be_killed(union):
    with open(union.lower() / "big", "wb") as f:
        for _ in range(300):
            f.write(os.urandom(1 << 20))
    for i in range(200):
        write(union.lower() / f"s{i}", "x")
    m = union.mount()
    waiters = []
    for _ in range(100):
        pid = os.fork()
        if pid == 0:
            try:
                os.close(os.open(m / "big", os.O_RDWR))
            finally:
                os._exit(0)
        waiters.append(pid)
    worst = 0.0
    for i in range(200):
        start = time.monotonic()
        os.stat(m / f"s{i}")
        worst = max(worst, time.monotonic() - start)
    os.kill(waiters[-1], signal.SIGKILL)
    start = time.monotonic()
    os.waitpid(waiters.pop(), 0)
    killed = time.monotonic() - start
    for pid in waiters:
        os.waitpid(pid, 0)
    # generous: the machine is busy with a hundred processes
    assert worst < 2
    assert killed < 2


@pytest.mark.root("the mark is trusted.overlay.whiteout")
def test_whiteout_xattr_in_upper_hides(union):
    write(union.lower() / "f", "x")
    write(union.upper / "f", "", xattrs={union.prefix + "whiteout": b"y"})
    union.check_kernel = False
    m = union.mount()
    with raises(errno.ENOENT):
        os.stat(m / "f")


@pytest.mark.root("chroot")
@pytest.mark.plyfs_only("about its messages")
def test_without_proc_it_says_so(union, scratch):
    """A mount that took other marks for the overlay's would show what was deleted."""
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c",
         f"mount --make-rprivate / && umount -l /proc; exec {lib.settings.plyfs} mount -o "
         f"lowerdir={union.lower()} {mkdir(scratch / 'point')}"],
        capture_output=True, text=True, timeout=30,
    )
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if line.startswith("plyfs:")]
    assert len(said) == 1 and "/proc" in said[0], done.stderr
