# SPDX-License-Identifier: MIT
"""Reading and writing in all their forms, of lower, copied-up and upper files."""

import errno
import mmap
import os
import random
import threading

import plyfs_testlib as lib
import pytest
from plyfs_testlib import KIB, MIB, append, fallocate, in_child, names, opened, raises, read, write

pytestmark = pytest.mark.usefixtures("each_io")

WHERE = ["lower", "copied", "upper"]


def make(union, where, data, name="f"):
    """A file with this content that lies there; returns its path in the mount."""
    write((union.upper if where == "upper" else union.lower()) / name, data)
    m = union.mounted and union.point or union.mount()
    if where == "copied":
        os.chmod(m / name, 0o600)
    return m / name


@pytest.mark.parametrize("where", WHERE)
def test_reads_at_every_offset(union, where):
    data = os.urandom(3 * MIB + 1234)
    path = make(union, where, data)
    with opened(path, os.O_RDONLY) as fd:
        r = random.Random(1)
        for _ in range(200):
            off, size = r.randrange(len(data) + 100), r.randrange(1, 400 * KIB)
            assert os.pread(fd, size, off) == data[off : off + size]
        assert os.pread(fd, 10, len(data)) == b""
        assert os.pread(fd, 10, len(data) + MIB) == b""
    assert read(path) == data


@pytest.mark.parametrize("where", WHERE)
def test_random_writes(union, where):
    data = bytearray(os.urandom(600 * KIB))
    path = make(union, where, bytes(data))
    r = random.Random(2)
    with opened(path, os.O_RDWR) as fd:
        for _ in range(100):
            off, size = r.randrange(700 * KIB), r.randrange(1, 60 * KIB)
            piece = r.randbytes(size)
            os.pwrite(fd, piece, off)
            if off > len(data):
                data.extend(b"\0" * (off - len(data)))
            data[off : off + size] = piece
        assert os.fstat(fd).st_size == len(data)
    assert read(path) == bytes(data)
    union.umount()
    assert read(union.upper / "f") == bytes(data)


@pytest.mark.parametrize("where", WHERE)
def test_append_from_two_fds(union, where):
    path = make(union, where, b"start")
    with opened(path, os.O_WRONLY | os.O_APPEND) as a, opened(path, os.O_RDWR | os.O_APPEND) as b:
        for i in range(20):
            os.write(a if i % 2 else b, b"%02d" % i)
        os.pwrite(a, b"end", 0)  # Linux appends also here
    assert read(path) == b"start" + b"".join(b"%02d" % i for i in range(20)) + b"end"


def test_append_from_two_processes_loses_nothing(union):
    path = make(union, "lower", b"")
    pids = []
    for who in range(2):
        pid = os.fork()
        if pid == 0:
            try:
                fd = os.open(path, os.O_WRONLY | os.O_APPEND)
                for i in range(300):
                    os.write(fd, b"%d %03d\n" % (who, i))
                os._exit(0)
            finally:
                os._exit(1)
        pids.append(pid)
    for pid in pids:
        assert os.waitpid(pid, 0)[1] == 0
    lines = read(path).splitlines()
    assert sorted(lines) == sorted(b"%d %03d" % (w, i) for w in range(2) for i in range(300))


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 5000, 100000, 3000000])
def test_truncate(union, where, size):
    data = os.urandom(5000)
    path = make(union, where, data)
    os.truncate(path, size)
    want = data[:size] + b"\0" * (size - 5000)
    assert os.stat(path).st_size == size
    assert read(path) == want
    os.truncate(path, 6000)
    assert read(path) == (want + b"\0" * 6000)[:6000]
    union.umount()
    assert read(union.upper / "f") == (want + b"\0" * 6000)[:6000]


@pytest.mark.parametrize("where", WHERE)
def test_fallocate(union, where):
    data = b"x" * (256 * KIB)
    path = make(union, where, data)
    with opened(path, os.O_RDWR) as fd:
        fallocate(fd, 0, 0, 300 * KIB)
        assert os.fstat(fd).st_size == 300 * KIB
        assert os.pread(fd, 10, 290 * KIB) == b"\0" * 10
        fallocate(fd, lib.FALLOC_KEEP_SIZE, 300 * KIB, MIB)
        assert os.fstat(fd).st_size == 300 * KIB
        fallocate(fd, lib.FALLOC_PUNCH_HOLE | lib.FALLOC_KEEP_SIZE, 64 * KIB, 64 * KIB)
        assert os.pread(fd, 64 * KIB, 64 * KIB) == b"\0" * (64 * KIB)
        assert os.pread(fd, 10, 64 * KIB - 10) == b"x" * 10
        assert os.pread(fd, 10, 128 * KIB) == b"x" * 10
        with raises(errno.EOPNOTSUPP, errno.EINVAL):
            fallocate(fd, lib.FALLOC_PUNCH_HOLE, 0, 4096)
        with raises(errno.EINVAL):
            fallocate(fd, 0, 0, 0)
    with opened(path, os.O_RDONLY) as fd:
        with raises(errno.EBADF):
            fallocate(fd, 0, 0, 10)


@pytest.mark.disk("tmpfs zeroes, collapses and inserts no ranges")
@pytest.mark.parametrize("where", WHERE)
def test_fallocate_modes_that_ext4_knows(union, where):
    data = b"".join(bytes([65 + i]) * 4096 for i in range(8))
    path = make(union, where, data)
    with opened(path, os.O_RDWR) as fd:
        os.pread(fd, 100000, 0)
        fallocate(fd, lib.FALLOC_ZERO, 4096, 4096)
        data = data[:4096] + b"\0" * 4096 + data[8192:]
        assert os.pread(fd, 100000, 0) == data
        fallocate(fd, lib.FALLOC_ZERO | lib.FALLOC_KEEP_SIZE, 28672, 8192)
        data = data[:28672] + b"\0" * 4096
        assert os.pread(fd, 100000, 0) == data
        if lib.settings.impl == "kernel":
            fallocate(fd, lib.FALLOC_COLLAPSE, 8192, 4096)
            data = data[:8192] + data[12288:]
            fallocate(fd, lib.FALLOC_INSERT, 4096, 4096)
            data = data[:4096] + b"\0" * 4096 + data[4096:]
        else:
            # FUSE does not carry these two
            for mode in (lib.FALLOC_COLLAPSE, lib.FALLOC_INSERT):
                with raises(errno.EOPNOTSUPP):
                    fallocate(fd, mode, 4096, 4096)
        assert os.pread(fd, 100000, 0) == data
        assert os.fstat(fd).st_size == len(data)
    assert read(path) == data


@pytest.mark.parametrize("where", WHERE)
def test_seek_data_and_hole(union, where):
    base = union.upper if where == "upper" else union.lower()
    with opened(base / "f", os.O_CREAT | os.O_WRONLY) as fd:
        os.pwrite(fd, b"x" * (64 * KIB), MIB)
        os.pwrite(fd, b"x" * (64 * KIB), 3 * MIB)
        os.ftruncate(fd, 5 * MIB)
    m = union.mount()
    if where == "copied":
        os.chmod(m / "f", 0o600)
        base = union.upper
    with opened(m / "f", os.O_RDONLY) as fd, opened(base / "f", os.O_RDONLY) as below:
        for off in (0, MIB, MIB + 5, MIB + 64 * KIB, 2 * MIB, 3 * MIB, 3 * MIB + 64 * KIB - 1):
            for whence in (os.SEEK_DATA, os.SEEK_HOLE):
                assert os.lseek(fd, off, whence) == os.lseek(below, off, whence), (off, whence)
        for off, whence in ((4 * MIB, os.SEEK_DATA), (5 * MIB, os.SEEK_DATA), (5 * MIB, os.SEEK_HOLE)):
            with raises(errno.ENXIO):
                os.lseek(fd, off, whence)
        assert os.lseek(fd, -10, os.SEEK_END) == 5 * MIB - 10
        assert os.lseek(fd, 5, os.SEEK_CUR) == 5 * MIB - 5
        with raises(errno.EINVAL):
            os.lseek(fd, -1, os.SEEK_SET)


def test_seek_data_after_write(union):
    with opened(union.lower() / "f", os.O_CREAT | os.O_WRONLY) as fd:
        os.ftruncate(fd, MIB)
    m = union.mount()
    with opened(m / "f", os.O_RDWR) as fd:
        with raises(errno.ENXIO):
            os.lseek(fd, 0, os.SEEK_DATA)
        os.pwrite(fd, b"x", 500 * KIB)
        found = os.lseek(fd, 0, os.SEEK_DATA)
        assert found <= 500 * KIB and found > 490 * KIB


@pytest.mark.parametrize("source", WHERE)
@pytest.mark.parametrize("target", WHERE)
def test_copy_file_range(union, source, target):
    data = os.urandom(700 * KIB)
    write((union.upper if source == "upper" else union.lower()) / "src", data)
    write((union.upper if target == "upper" else union.lower()) / "dst", b"old" * 100)
    m = union.mount()
    for where, name in ((source, "src"), (target, "dst")):
        if where == "copied":
            os.chmod(m / name, 0o600)
    with opened(m / "src", os.O_RDONLY) as src, opened(m / "dst", os.O_RDWR) as dst:
        done = 0
        while done < 600 * KIB:
            n = os.copy_file_range(src, dst, 600 * KIB - done, 1000 + done, 10 + done)
            assert n > 0
            done += n
        assert os.copy_file_range(src, dst, 10, len(data), 0) == 0
        assert os.fstat(dst).st_size == 600 * KIB + 10
        assert os.pread(dst, 10, 0) == (b"old" * 100)[:10]
        assert os.pread(dst, 600 * KIB, 10) == data[1000 : 1000 + 600 * KIB]
    assert read(m / "src") == data


def test_copy_file_range_inside_one_file(union):
    path = make(union, "lower", b"0123456789" * 1000)
    with opened(path, os.O_RDWR) as fd:
        assert os.copy_file_range(fd, fd, 100, 0, 20000) == 100
        with raises(errno.EINVAL):
            os.copy_file_range(fd, fd, 100, 0, 50)
    assert read(path)[20000:] == b"0123456789" * 10


def test_sendfile_and_splice(union):
    path = make(union, "lower", b"s" * 300000)
    out = union.point / "out"
    with opened(path, os.O_RDONLY) as src, opened(out, os.O_CREAT | os.O_WRONLY) as dst:
        done = 0
        while n := os.sendfile(dst, src, done, 300000 - done):
            done += n
    assert read(out) == b"s" * 300000
    r, w = os.pipe()
    with opened(path, os.O_RDONLY) as src:
        n = os.splice(src, w, 4096)
        assert os.read(r, 4096) == b"s" * n
    os.close(r)
    os.close(w)


@pytest.mark.parametrize("where", WHERE)
def test_direct_io(union, where):
    data = os.urandom(256 * KIB)
    path = make(union, where, data)
    with opened(path, os.O_RDWR | os.O_DIRECT) as fd:
        area = mmap.mmap(-1, 64 * KIB)
        assert os.preadv(fd, [area], 0) == 64 * KIB
        assert area[:] == data[: 64 * KIB]
        area[:] = b"D" * (64 * KIB)
        assert os.pwritev(fd, [area], 128 * KIB) == 64 * KIB
        with opened(path, os.O_RDONLY) as other:
            assert os.pread(other, 64 * KIB, 128 * KIB) == b"D" * (64 * KIB)
        area.close()
    assert read(path) == data[: 128 * KIB] + b"D" * (64 * KIB) + data[192 * KIB :]


@pytest.mark.parametrize("where", WHERE)
def test_direct_io_that_is_not_aligned(union, where):
    """Refused or right, never wrong data."""
    data = os.urandom(64 * KIB)
    path = make(union, where, data)
    with opened(path, os.O_RDWR | os.O_DIRECT) as fd:
        for offset, size in ((1, 4096), (4096, 100), (511, 513), (60000, 10000)):
            try:
                assert os.pread(fd, size, offset) == data[offset : offset + size]
            except OSError as e:
                assert e.errno == errno.EINVAL
            try:
                os.pwrite(fd, data[offset : offset + size], offset)
            except OSError as e:
                assert e.errno == errno.EINVAL
        os.ftruncate(fd, 1000)
        assert os.fstat(fd).st_size == 1000
    assert read(path) == data[:1000]


@pytest.mark.parametrize("where", WHERE)
def test_shared_mapping(union, where):
    data = os.urandom(100 * KIB)
    path = make(union, where, data)
    with opened(path, os.O_RDWR) as fd, mmap.mmap(fd, 100 * KIB) as area:
        assert area[:] == data
        area[50000:50010] = b"0123456789"
        assert os.pread(fd, 10, 50000) == b"0123456789"
        os.pwrite(fd, b"written", 0)
        assert area[0:7] == b"written"
        area.flush()
    want = b"written" + data[7:50000] + b"0123456789" + data[50010:]
    assert read(path) == want
    union.umount()
    assert read(union.upper / "f") == want


def test_two_processes_share_a_mapping(union):
    path = make(union, "lower", b"\0" * 4096)

    def other():
        with opened(path, os.O_RDWR) as fd, mmap.mmap(fd, 4096) as area:
            area[100:105] = b"child"

    with opened(path, os.O_RDWR) as fd, mmap.mmap(fd, 4096) as area:
        in_child(other)
        assert area[100:105] == b"child"


def test_vectored_io(union):
    path = make(union, "lower", b"0123456789")
    with opened(path, os.O_RDWR) as fd:
        a, b = bytearray(3), bytearray(4)
        assert os.preadv(fd, [a, b], 1) == 7
        assert (a, b) == (b"123", b"4567")
        assert os.pwritev(fd, [b"AB", b"CD", b"EFGHIJKL"], 8) == 12
    assert read(path) == b"01234567ABCDEFGHIJKL"


def test_fsync_in_every_form(union):
    path = make(union, "lower", b"x")
    with opened(path, os.O_RDWR) as fd:
        os.fsync(fd)
        os.write(fd, b"y")
        os.fsync(fd)
        os.fdatasync(fd)
    with opened(path, os.O_WRONLY | os.O_SYNC) as fd:
        os.write(fd, b"z")
    with opened(path, os.O_WRONLY | os.O_DSYNC) as fd:
        os.write(fd, b"z")
    with opened(union.point, os.O_RDONLY) as fd:
        os.fsync(fd)
        os.fdatasync(fd)
        lib.check(lib.libc.syncfs(fd))
    os.sync()


def test_large_single_calls(union):
    m = union.mount()
    data = os.urandom(16 * MIB)
    with opened(m / "f", os.O_CREAT | os.O_RDWR) as fd:
        assert os.write(fd, data) == len(data)
        assert os.pread(fd, len(data), 0) == data
    assert read(union.upper / "f") == data


def test_file_of_several_gigabytes_without_data(union):
    m = union.mount()
    with opened(m / "f", os.O_CREAT | os.O_RDWR) as fd:
        os.ftruncate(fd, 5 << 30)
        os.pwrite(fd, b"far", (5 << 30) - 3)
        os.pwrite(fd, b"mid", (4 << 30) + 1)
        assert os.pread(fd, 3, (5 << 30) - 3) == b"far"
        assert os.pread(fd, 3, (4 << 30) + 1) == b"mid"
    assert lib.blocks(union.upper / "f") < MIB


def test_write_beyond_the_limits(union):
    """EFBIG of the file system, and of the process: with SIGXFSZ for it, not for the daemon."""
    import resource
    import signal

    path = make(union, "lower", b"x")

    def limited():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10000, 10000))
        with opened(path, os.O_RDWR) as fd:
            with raises(errno.EFBIG):
                os.pwrite(fd, b"x", 20000)
            with raises(errno.EFBIG):
                os.ftruncate(fd, 20000)
            return os.pwrite(fd, b"x" * 100, 9990)

    assert in_child(limited) == 10
    if lib.settings.backing == "disk":
        with opened(path, os.O_RDWR) as fd:
            with raises(errno.EFBIG, errno.EINVAL):
                os.ftruncate(fd, 1 << 62)


def test_wrong_access_modes(union):
    path = make(union, "lower", b"x")
    with opened(path, os.O_RDONLY) as fd:
        with raises(errno.EBADF):
            os.write(fd, b"y")
        with raises(errno.EINVAL, errno.EBADF):
            os.ftruncate(fd, 0)
    with opened(path, os.O_WRONLY) as fd:
        with raises(errno.EBADF):
            os.read(fd, 1)
    with opened(union.point, os.O_RDONLY) as fd:
        with raises(errno.EISDIR):
            os.read(fd, 1)


def test_threads_read_while_one_writes(union):
    """Every block that is read is one of those which were written, whole."""
    path = make(union, "lower", b"a" * 4096)
    stop = threading.Event()
    bad = []

    def reader():
        with opened(path, os.O_RDONLY) as fd:
            while not stop.is_set():
                data = os.pread(fd, 4096, 0)
                if len(data) != 4096 or not set(data) <= set(b"abcdefghij"):
                    bad.append(data[:50])
                    return

    threads = [threading.Thread(target=reader) for _ in range(2)]
    for t in threads:
        t.start()
    with opened(path, os.O_WRONLY) as fd:
        for i in range(200):
            os.pwrite(fd, bytes([97 + i % 10]) * 4096, 0)
    stop.set()
    for t in threads:
        t.join()
    assert not bad


def test_sqlite_with_wal(union):
    import sqlite3

    base = union.lower() / "db"
    with sqlite3.connect(base) as db:
        db.execute("create table t (n integer, s text)")
        db.executemany("insert into t values (?, ?)", [(i, "x" * 100) for i in range(1000)])
    db.close()
    m = union.mount()
    db = sqlite3.connect(m / "db")
    assert db.execute("pragma journal_mode=wal").fetchone() == ("wal",)
    other = sqlite3.connect(m / "db")
    with db:
        db.executemany("insert into t values (?, ?)", [(i, "y" * 100) for i in range(1000)])
    assert other.execute("select count(*) from t").fetchone() == (2000,)
    with other:
        other.execute("delete from t where n < 500")
    assert db.execute("select count(*) from t").fetchone() == (1000,)
    assert db.execute("pragma integrity_check").fetchone() == ("ok",)
    db.close()
    other.close()
    m = union.remount()
    db = sqlite3.connect(m / "db")
    assert db.execute("select count(*) from t").fetchone() == (1000,)
    db.close()


def test_append_only_position_after_seek(union):
    path = make(union, "lower", b"0123")
    with opened(path, os.O_RDWR | os.O_APPEND) as fd:
        os.lseek(fd, 0, os.SEEK_SET)
        os.write(fd, b"4")
        assert os.lseek(fd, 0, os.SEEK_CUR) == 5
        os.lseek(fd, 0, os.SEEK_SET)
        assert os.read(fd, 10) == b"01234"
    append(path, b"5")
    assert read(path) == b"012345"
    assert names(union.point) == ["f"]
