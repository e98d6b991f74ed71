# SPDX-License-Identifier: MIT
"""io=cached: open and close without a request, and a kernel that holds writes back."""

import contextlib
import errno
import itertools
import mmap
import os
import random
import stat
import struct

import plyfs_testlib as lib
import pytest
from counted import counted
from plyfs_testlib import KIB, MIB, exists, names, opened, raises, read, write

pytestmark = pytest.mark.plyfs_only("counts requests, and uses plyfs' own options")

CACHED = "io=cached"
THROUGH = "io=cached,writeback=0"
both = pytest.mark.parametrize("options", [CACHED, THROUGH], ids=["held-back", "through"])


def read_all(path):
    with opened(path, os.O_RDONLY) as fd:
        return os.read(fd, MIB)


def overwrite(path, data, flags=os.O_WRONLY):
    with opened(path, flags) as fd:
        os.write(fd, data)


def below(options, union, **files):
    """A mount over a lower layer with these files."""
    for name, data in files.items():
        write(union.lower() / name, data)
    return union.mount(options)


# --- requests -----------------------------------------------------------------------------------


@both
def test_warm_files_are_opened_without_a_request(union, options):
    for i in range(10):
        write(union.lower() / f"f{i}", "content")
    with counted(union, options) as m:

        def all_of_them():
            for i in range(10):
                assert read_all(m.point / f"f{i}") == b"content"

        cold = m.of(all_of_them)
        assert cold["LOOKUP"] >= 10 and cold["READ"] >= 10
        assert cold.get("OPEN", 0) <= 1 and cold.get("FLUSH", 0) <= 1
        assert m.warm(all_of_them) == {}
        for op in ("RELEASE", "OPEN"):
            assert op not in m.count(late=True)


@both
def test_a_new_file_takes_few_requests(union, options):
    with counted(union, options) as m:
        overwrite(m.point / "first", b"x", os.O_WRONLY | os.O_CREAT)
        read_all(m.point / "first")
        new = (m.point / f"new{n}" for n in itertools.count())
        found = m.warm(lambda: overwrite(next(new), b"x", os.O_WRONLY | os.O_CREAT))
        found.pop("SETATTR", None)  # when the clock went on meanwhile
        assert found.pop("GETATTR", 0) <= 1  # of the parent, for default_permissions
        assert found == {"LOOKUP": 1, "CREATE": 1, "GETXATTR": 1, "WRITE": 1}
        assert "RELEASE" not in m.count(late=True)


def test_small_writes_are_put_together(union):
    with counted(union, CACHED) as m:
        fd = os.open(m.point / "f", os.O_WRONLY | os.O_CREAT)
        for _ in range(256):
            os.write(fd, b"y" * 512)
        assert m.count().get("WRITE", 0) <= 1
        os.close(fd)
        assert 1 <= m.count()["WRITE"] <= 2
        assert read(union.upper / "f") == b"y" * 512 * 256


def test_each_write_comes_through(union):
    with counted(union, THROUGH) as m:
        with opened(m.point / "f", os.O_WRONLY | os.O_CREAT) as fd:
            for n in range(1, 4):
                os.write(fd, b"y" * 10)
                assert read(union.upper / "f") == b"y" * 10 * n


@pytest.mark.parametrize("options", ["", CACHED, THROUGH], ids=["auto", "held-back", "through"])
def test_warm_listings_take_no_request(union, options):
    for i in range(5):
        write(union.lower() / f"d{i}/f", "x")
    with counted(union, options) as m:

        def list_them():
            for i in range(5):
                assert names(m.point / f"d{i}") == ["f"]

        assert m.of(list_them)["READDIRPLUS"] >= 5
        again = m.warm(list_them)
        again.pop("GETATTR", None)  # of directories, whose atime a reader may change
        assert again == {}
        assert "RELEASEDIR" not in m.count(late=True)


def walk(top, look):
    """List a tree as find(1) does, or as ls -lR."""
    for path, directories, files in os.walk(top):
        for name in files if look else ():
            os.lstat(os.path.join(path, name))


@pytest.mark.parametrize("look", [False, True], ids=["find", "ls-lR"])
def test_listings_say_what_is_needed(union, look):
    """Who wants names gets names; who looks at the files needs no LOOKUP for each."""
    for d in range(20):
        for i in range(20):
            write(union.lower() / f"t/d{d:02}/f{i}", "x")
    with counted(union) as m:
        found = m.of(walk, m.point / "t", look)
        # the first directory is t, the second is the first that is listed by names only
        assert found["READDIRPLUS"] == 21
        assert found["LOOKUP"] <= 1 + (20 if look else 0)
        # that files were known of before is seen by the requests of who looks at them now
        again = m.warm(walk, m.point / "t", True)
        again.pop("GETATTR", None)  # of directories, whose atime a reader may change
        assert again == {}
    with counted(union) as m:
        lib.in_child(walk, m.point / "t", look)
        later = m.of(lambda: [os.lstat(m.point / f"t/d{d:02}/f7") for d in range(20)])
        assert later.get("LOOKUP", 0) == (0 if look else 20)


def test_ls_asks_for_no_labels(union):
    if "\tselinuxfs\n" in lib.read("/proc/filesystems").decode():
        pytest.skip("this kernel has SELinux")
    write(union.lower() / "f", "x")
    m = union.mount()
    with raises(errno.ENOTSUP):
        os.getxattr(m / "f", "security.selinux")
    if lib.settings.level == "root":
        os.setxattr(m / "f", "security.selinux", b"label\0")
        assert os.getxattr(m / "f", "security.selinux") == b"label\0"


@pytest.mark.parametrize("options", [CACHED + ",timeout=1", CACHED + ",allow_root"])
def test_requests_come_where_they_are_needed(union, options):
    """The layers may change, or it matters who opens."""
    if "allow_root" in options and lib.settings.level == "user":
        pytest.skip("fusermount3 may not be allowed it")
    write(union.lower() / "f", "x")
    with counted(union, options) as m:
        for _ in range(2):
            read_all(m.point / "f")
            names(m.point)
        found = m.count()
        assert found["OPEN"] == found["OPENDIR"] == 2


# --- copy-up ------------------------------------------------------------------------------------


@both
def test_an_open_for_writing_copies_nothing(union, options):
    m = below(options, union, f="content")
    for flags in (os.O_RDWR, os.O_WRONLY, os.O_WRONLY | os.O_APPEND):
        with opened(m / "f", flags):
            pass
    assert not exists(union.upper / "f")
    with opened(m / "f", os.O_RDWR) as fd:
        os.pwrite(fd, b"C", 0)
        os.fsync(fd)
        assert read(union.upper / "f") == b"Content"


@both
@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_RDWR, os.O_RDONLY], ids=["w", "rw", "r"])
def test_truncation_at_open(union, options, flags):
    m = below(options, union, f="long content")
    assert read(m / "f") == b"long content"
    with opened(m / "f", flags | os.O_TRUNC) as fd:
        assert os.fstat(fd).st_size == 0
        if flags != os.O_RDONLY:
            os.write(fd, b"x\n")
    assert read(m / "f") == read(union.upper / "f") == (b"" if flags == os.O_RDONLY else b"x\n")


@both
def test_everybody_sees_the_same_over_copy_up(union, options):
    m = below(options, union, f="a" * 10000)
    with opened(m / "f", os.O_RDONLY) as before, opened(m / "f", os.O_RDWR) as writer:
        mapped = mmap.mmap(before, 10000, mmap.MAP_SHARED, mmap.PROT_READ)
        assert mapped[:3] == b"aaa" and os.pread(before, 3, 9000) == b"aaa"
        os.pwrite(writer, b"bbb", 0)
        os.pwrite(writer, b"ccc", 9000)
        assert mapped[:3] == b"bbb" and os.pread(before, 3, 9000) == b"ccc"
        os.fsync(writer)
        assert mapped[:3] == b"bbb" and os.pread(before, 4, 8999) == b"accc"
        mapped.close()
    assert read(union.upper / "f")[9000:9003] == b"ccc"


@both
def test_an_unlinked_file_stays(union, options):
    m = below(options, union, low="l" * 5000)
    write(m / "up", "u" * 5000)
    for name in ("low", "up"):
        with opened(m / name, os.O_RDWR) as fd:
            os.unlink(m / name)
            os.pwrite(fd, b"123", 4999)
            os.fsync(fd)
            assert os.fstat(fd).st_nlink == 0
            assert os.pread(fd, 10, 4998) == name[0].encode() + b"123"
        assert not exists(m / name)


def test_removing_a_lower_file_copies_nothing(union):
    write(union.lower() / "f", os.urandom(MIB))
    with counted(union, CACHED) as m:
        os.unlink(m.point / "f")
        os.sync()
        m.count()
        with os.scandir(union.upper) as it:
            assert all(e.stat(follow_symlinks=False).st_size < MIB for e in it)
        assert sum(f.stat().st_size for f in union.upper.rglob("*") if f.is_file()) == 0


# --- creation -----------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("mode", [0o000, 0o400, 0o200, 0o644, 0o2755, 0o4711])
def test_a_creator_may_write_whatever_the_mode(union, options, mode):
    m = union.mount(options)
    with opened(m / "warm", os.O_CREAT | os.O_RDWR):
        pass
    with opened(m / "warm", os.O_RDWR):
        pass
    with opened(m / "f", os.O_CREAT | os.O_EXCL | os.O_RDWR, mode) as fd:
        assert os.write(fd, b"data") == 4
        assert os.pread(fd, 4, 0) == b"data"
        os.fsync(fd)
    shown = stat.S_IMODE(os.stat(m / "f").st_mode)
    assert shown & 0o777 == mode & ~0o022 & 0o777
    with raises(errno.EEXIST):
        os.open(m / "f", os.O_CREAT | os.O_EXCL | os.O_RDWR)
    os.chmod(m / "f", 0o600)
    assert read(m / "f") == b"data"


@both
def test_a_file_without_a_name(union, options):
    m = union.mount(options)
    with opened(m / "warm", os.O_CREAT | os.O_RDWR):
        pass
    with opened(m, os.O_TMPFILE | os.O_RDWR, 0o600) as fd:
        os.write(fd, b"hidden")
        os.fsync(fd)
        assert os.pread(fd, 10, 0) == b"hidden"
        lib.linkat_fd(fd, m / "shown")
        os.write(fd, b"!")
    assert read(m / "shown") == b"hidden!"


# --- held back ----------------------------------------------------------------------------------


class Mirror:
    """A file of a mount, and what it must hold."""

    def __init__(self, path, content, seed):
        self.path, self.content = path, bytearray(content)
        self.random = random.Random(seed)
        self.fd = os.open(path, os.O_RDWR)
        self.marks = 0

    def some(self, most=300 * KIB):
        return self.random.randrange(most), self.random.choice([1, 7, 512, 4096, 5000, 40000])

    def put(self, at, data):
        if len(self.content) < at + len(data):
            self.content.extend(bytes(at + len(data) - len(self.content)))
        self.content[at : at + len(data)] = data

    def data(self, n):
        self.marks += 1
        return struct.pack("<I", self.marks) * (n // 4) + b"e" * (n % 4)

    def pwrite(self):
        at, n = self.some()
        data = self.data(n)
        assert os.pwrite(self.fd, data, at) == n
        self.put(at, data)

    def append(self):
        data = self.data(self.some()[1])
        overwrite(self.path, data, os.O_WRONLY | os.O_APPEND)
        self.put(len(self.content), data)

    def pread(self):
        at, n = self.some()
        assert os.pread(self.fd, n, at) == self.content[at : at + n]

    def truncate(self):
        size = self.some()[0]
        os.ftruncate(self.fd, size)
        del self.content[size:]
        self.content.extend(bytes(size - len(self.content)))

    def mapped(self):
        if not self.content:
            return
        with mmap.mmap(self.fd, len(self.content)) as area:
            at = self.random.randrange(len(self.content))
            data = self.data(4000)[: len(self.content) - at]
            assert area[at : at + 100] == self.content[at : at + 100]
            area[at : at + len(data)] = data
            self.put(at, data)

    def punch(self):
        at, n = self.some()
        lib.fallocate(self.fd, lib.FALLOC_PUNCH_HOLE | lib.FALLOC_KEEP_SIZE, at, n)
        end = min(at + n, len(self.content))
        if end > at:
            self.content[at:end] = bytes(end - at)

    def copy(self):
        n = self.some()[1]
        at, to = self.some()[0], self.some()[0] + MIB  # they may not overlap
        n = os.copy_file_range(self.fd, self.fd, n, at, to)
        if n:
            self.put(to, bytes(self.content[at : at + n]))

    def seek(self):
        """Between two ends of a search there are only zeros."""
        at = 0
        while at < len(self.content):
            try:
                data = os.lseek(self.fd, at, os.SEEK_DATA)
            except OSError as e:
                assert e.errno == errno.ENXIO
                data = len(self.content)
            assert not any(self.content[at:data]), (at, data)
            if data >= len(self.content):
                return
            at = os.lseek(self.fd, data, os.SEEK_HOLE)
            assert at > data

    def direct(self):
        at = self.random.randrange(64) * 4096
        area = mmap.mmap(-1, 4096)
        area[:] = self.data(4096)
        with opened(self.path, os.O_RDWR | os.O_DIRECT) as fd:
            assert os.pwritev(fd, [area], at) == 4096
        self.put(at, area[:])

    def sync(self):
        os.fsync(self.fd)

    def rename(self):
        new = self.path.with_name(f"f{self.marks}-{self.random.random()}")
        os.rename(self.path, new)
        self.path = new

    def attributes(self):
        self.random.choice(
            [
                lambda: os.fchmod(self.fd, self.random.choice([0o600, 0o644])),
                lambda: os.utime(self.fd),
                lambda: os.setxattr(self.path, "user.x", b"1"),
            ]
        )()

    def check(self, upper):
        assert os.fstat(self.fd).st_size == len(self.content)
        assert read(self.path) == self.content
        os.fsync(self.fd)
        assert read(upper / self.path.name) == self.content
        os.close(self.fd)


@both
@pytest.mark.parametrize("seed", range(4))
def test_nothing_is_lost(union, options, seed):
    start = random.Random(seed).randbytes(100 * KIB)
    m = below(options, union, f=start)
    mirror = Mirror(m / "f", start, seed)
    steps = (
        ["pwrite"] * 8
        + ["pread"] * 4
        + ["append", "truncate", "mapped", "punch", "copy", "seek", "direct", "sync"] * 2
        + ["rename", "attributes"]
    )
    for _ in range(250):
        getattr(mirror, mirror.random.choice(steps))()
    mirror.check(union.upper)


@both
def test_data_is_found_before_it_is_written_back(union, options):
    m = below(options, union, low=bytes(MIB))
    for name in ("low", "new"):
        with opened(m / name, os.O_RDWR | os.O_CREAT) as fd:
            os.pwrite(fd, b"x" * 4096, 2 * MIB)
            with opened(m / name, os.O_RDONLY) as other:
                end = os.lseek(other, MIB, os.SEEK_DATA)
                assert MIB < end <= 2 * MIB or end == 2 * MIB
                assert os.lseek(other, 2 * MIB, os.SEEK_HOLE) == 2 * MIB + 4096
                with opened(m / "copy", os.O_WRONLY | os.O_CREAT) as copy:
                    os.copy_file_range(other, copy, 4 * MIB, 0, 0)
            assert read(m / "copy") == bytes(2 * MIB) + b"x" * 4096


def test_what_was_synced_survives_the_server(union):
    write(union.lower() / "f", "a" * 10000)
    with counted(union, CACHED, killed=True) as mounted:
        m = mounted.point
        fd, new = os.open(m / "f", os.O_RDWR), os.open(m / "new", os.O_RDWR | os.O_CREAT)
        os.pwrite(fd, b"b" * 5000, 2000)
        os.write(new, b"n" * 5000)
        os.fsync(fd)
        os.fsync(new)
        mtime = os.fstat(fd).st_mtime_ns
        mounted.process.kill()
        mounted.process.wait()
        for each in (fd, new):
            with contextlib.suppress(OSError):
                os.close(each)
    assert read(union.upper / "f") == b"a" * 2000 + b"b" * 5000 + b"a" * 3000
    assert read(union.upper / "new") == b"n" * 5000
    assert os.stat(union.upper / "f").st_mtime_ns == mtime
    m = union.mount(CACHED)
    assert read(m / "new") == b"n" * 5000


def test_a_signal_has_all_written_back(union):
    """Though the server goes while a file is open."""
    with counted(union, CACHED, killed=True) as mounted:
        fd = os.open(mounted.point / "f", os.O_RDWR | os.O_CREAT)
        os.write(fd, b"d" * MIB)
        mounted.process.terminate()
        lib.wait_for(lambda: not lib.find_mount(union.point), 10, "the unmount")
        assert read(union.upper / "f") == b"d" * MIB
        mounted.process.terminate()  # or it would wait for the file to be closed
        mounted.process.wait(10)
        with contextlib.suppress(OSError):
            os.close(fd)


@pytest.mark.privileged("mounts a small file system")
def test_no_room_is_told(new_union, scratch):
    with lib.tmpfs(scratch, size="2m") as fs:
        union = new_union("u", scratch)
        union.upper, union.work = lib.mkdir(fs / "upper"), lib.mkdir(fs / "work")
        m = union.mount(CACHED)
        for finish in (os.fsync, os.close):
            told = []
            fd = os.open(m / "f", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            try:
                for _ in range(64):
                    os.write(fd, b"y" * 64 * KIB)
                finish(fd)
            except OSError as e:
                told.append(e.errno)
            if finish is os.fsync:
                os.close(fd)
            assert told == [errno.ENOSPC]
            os.unlink(m / "f")
        write(m / "g", b"z" * MIB)
        assert read(m / "g") == b"z" * MIB
        union.close()


# --- times --------------------------------------------------------------------------------------


@both
def test_mtime_is_that_of_the_write(union, options):
    m = below(options, union, low="content")
    for name in ("low", "new"):
        with opened(m / name, os.O_RDWR | os.O_CREAT) as fd:
            for step in range(5):
                before = os.fstat(fd).st_mtime_ns
                os.pwrite(fd, b"x" * 3000, step * 3000)
                after = os.fstat(fd).st_mtime_ns
                assert after >= before
                os.fsync(fd)
                assert os.fstat(fd).st_mtime_ns == after
        assert os.stat(m / name).st_mtime_ns == after
        assert os.stat(union.upper / name).st_mtime_ns == after


@both
def test_a_time_set_before_close_stays(union, options):
    m = below(options, union, low="content")
    for name in ("low", "new"):
        with opened(m / name, os.O_RDWR | os.O_CREAT) as fd:
            os.pwrite(fd, b"x" * 30000, 0)
            os.utime(fd, ns=(10**18 + 1, 10**18 + 2))
            os.fchmod(fd, 0o640)
        assert os.stat(m / name).st_mtime_ns == 10**18 + 2
        assert os.stat(union.upper / name).st_mtime_ns == 10**18 + 2
        with opened(m / name, os.O_RDWR):
            pass
        assert os.stat(union.upper / name).st_mtime_ns == 10**18 + 2


@both
def test_truncation_tells_the_time(union, options):
    m = below(options, union, f="content")
    os.utime(m / "f", ns=(10**18, 10**18))
    with opened(m / "f", os.O_WRONLY | os.O_TRUNC):
        pass
    first = os.stat(m / "f").st_mtime_ns
    assert first > 10**18
    os.utime(m / "f", ns=(10**18, 10**18))
    with opened(m / "f", os.O_WRONLY | os.O_TRUNC):  # it is empty already
        pass
    assert os.stat(m / "f").st_mtime_ns >= first
    assert os.stat(union.upper / "f").st_mtime_ns == os.stat(m / "f").st_mtime_ns


@both
def test_attributes_change_while_data_is_held_back(union, options):
    m = below(options, union, low="content")
    for name in ("low", "new"):
        with opened(m / name, os.O_RDWR | os.O_CREAT) as fd:
            os.pwrite(fd, b"x" * 5000, 0)
            os.fchmod(fd, 0o611)
            os.pwrite(fd, b"y" * 5000, 5000)
            os.setxattr(fd, "user.a", b"1")
            os.link(m / name, m / (name + "2"))
            os.rename(m / name, m / (name + "3"))
            assert {n: s for n, s in ((e.name, e.stat().st_size) for e in os.scandir(m))}[
                name + "3"
            ] == 10000
        st = os.stat(union.upper / (name + "2"))
        assert (st.st_size, stat.S_IMODE(st.st_mode), st.st_nlink) == (10000, 0o611, 2)
        assert read(union.upper / (name + "3")) == b"x" * 5000 + b"y" * 5000
        assert os.stat(m / (name + "2")).st_mtime_ns == st.st_mtime_ns


@both
def test_set_id_bits_go_at_a_write(union, options):
    if lib.settings.level == "user":
        pytest.skip("there is nobody else")
    write(union.upper / "f", "x", mode=0o6777)
    m = union.mount(options)

    def change():
        overwrite(m / "f", b"y")
        return stat.S_IMODE(os.stat(m / "f").st_mode)

    os.chmod(union.base, 0o755)
    assert lib.in_child(change, uid=1000) == 0o777
    assert stat.S_IMODE(os.stat(union.upper / "f").st_mode) == 0o777


# --- flags of files -----------------------------------------------------------------------------


@pytest.mark.root("CAP_LINUX_IMMUTABLE of the machine")
@pytest.mark.disk("tmpfs has no flags here")
@both
def test_an_immutable_file_is_not_written(union, options):
    m = below(options, union, f="content")
    fd = os.open(m / "f", os.O_RDWR)
    os.pwrite(fd, b"C", 0)
    lib.set_flags(m / "f", lib.FS_IMMUTABLE_FL)
    assert read(union.upper / "f") == b"Content"
    os.close(fd)
    for change in (
        lambda: synced(m / "f", b"x"),
        lambda: os.truncate(m / "f", 1),
        lambda: os.open(m / "f", os.O_WRONLY | os.O_TRUNC),
        lambda: os.chmod(m / "f", 0o600),
    ):
        with raises(errno.EPERM):
            change()
    assert read(union.upper / "f") == b"Content"
    lib.set_flags(m / "f", 0)
    overwrite(m / "f", b"D")
    assert read(union.upper / "f") == b"Dontent"


def synced(path, data, flags=os.O_WRONLY):
    with opened(path, flags) as fd:
        os.write(fd, data)
        os.fsync(fd)


@pytest.mark.root("CAP_LINUX_IMMUTABLE of the machine")
@pytest.mark.disk("tmpfs has no flags here")
@both
def test_an_append_only_file_only_grows(union, options):
    m = below(options, union, f="content")
    lib.set_flags(m / "f", lib.FS_APPEND_FL)
    for n in range(3):
        synced(m / "f", b"+" * 3000, os.O_WRONLY | os.O_APPEND)
        assert read(union.upper / "f") == b"content" + b"+" * 3000 * (n + 1)
    with raises(errno.EPERM):
        synced(m / "f", b"x")
    with raises(errno.EPERM):
        os.truncate(m / "f", 1)
    assert read(union.upper / "f")[:8] == b"content+"
    lib.set_flags(m / "f", 0)
