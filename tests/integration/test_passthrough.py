# SPDX-License-Identifier: MIT
"""io=passthrough: the kernel reads and writes the files of upper, and nobody can tell but by the time."""

import contextlib
import errno
import fcntl
import mmap
import os
import re
import signal
import subprocess
from collections import Counter

import plyfs_testlib as lib
import pytest
from plyfs_testlib import CAP_NET_RAW, CAPABILITY, in_child, opened, raises, read, run_plyfs, write

pytestmark = pytest.mark.root("only root of the machine has passthrough")
PLYFS_ONLY = pytest.mark.plyfs_only("requests of FUSE")
KIB64 = bytes(range(256)) * 256
USER = lib.NOBODY


def way(point):
    text = run_plyfs("status", point).stdout
    return re.search(r"^io=(.*)$", text, re.M)[1]


@contextlib.contextmanager
def counted(union, options=""):
    """Serves in front with a log of all requests; gives a Counter that is filled at the end."""
    words = lib.layer_options(union.lowers, union.upper, union.work, options)
    args = [lib.settings.plyfs, "mount", "-f", "-d", "-o", words, union.point]
    counts = Counter()
    union.point.mkdir(exist_ok=True)
    union.upper.mkdir(exist_ok=True)
    union.work.mkdir(exist_ok=True)
    log = union.base / "log"
    with open(log, "wb") as err, subprocess.Popen(args, stderr=err) as child:
        try:
            lib.wait_for(lambda: lib.find_mount(union.point), 10, "the mount")
            yield counts
            lib.sys_umount(union.point, 0)
            assert child.wait(20) == 0
        finally:
            if child.poll() is None:
                lib.sys_umount(union.point, lib.MNT_DETACH)
                child.kill()
    for line in log.read_text().splitlines():
        found = re.match(r"plyfs: ([A-Z0-9_]+) unique ", line)
        if found:
            counts[found[1]] += 1


@PLYFS_ONLY
def test_it_is_what_root_gets(union):
    union.lower()
    assert way(union.mount()) == "passthrough"
    union.umount()
    assert way(union.mount("io=cached")) == "cached"
    union.umount()
    assert way(union.mount("io=passthrough", upper=False)) == "passthrough"


@PLYFS_ONLY
def test_who_asks_for_it_by_name_in_vain_is_told(union):
    """Only in the first user namespace may the kernel be asked for it."""
    write(union.lower() / "f", "low")
    for path in (union.upper, union.work, union.point):
        path.mkdir(exist_ok=True)
    words = lib.layer_options(union.lowers, union.upper, union.work, "io=passthrough")
    script = 'p=$1 m=$2; shift 2; "$p" mount "$@" "$m" && "$p" status "$m" && cat "$m/f" && umount "$m"'
    args = ["unshare", "-Urm", "sh", "-c", script, "sh"]
    args += [lib.settings.plyfs, union.point, "-o", words]
    done = subprocess.run(args, capture_output=True, text=True, check=False, timeout=30)
    assert "io=passthrough" in done.stderr
    assert "io=cached\n" in done.stdout and done.stdout.endswith("low")


@PLYFS_ONLY
def test_data_of_upper_never_reaches_the_server(union):
    write(union.lower() / "low", KIB64)
    union.upper.mkdir(exist_ok=True)
    write(union.upper / "old", KIB64)
    with counted(union) as counts:
        assert read(union.point / "old") == KIB64
        for n in range(8):
            write(union.point / f"new{n}", KIB64)
            assert read(union.point / f"new{n}") == KIB64
        with opened(union.point / "old", os.O_RDWR) as fd, mmap.mmap(fd, 65536) as area:
            os.pwrite(fd, b"written", 100)
            assert area[100:107] == b"written"
            area[200:206] = b"mapped"
            assert os.pread(fd, 6, 200) == b"mapped"
        with opened(union.point / "low", os.O_RDWR) as fd:  # copied up, and then it is in upper
            os.pwrite(fd, b"x", 0)
            assert os.pread(fd, 2, 0) == b"x\x01"
        assert read(union.upper / "old")[200:206] == b"mapped"
    assert (counts["READ"], counts["WRITE"]) == (0, 0), counts
    assert counts["CREATE"] == 8


@PLYFS_ONLY
def test_create_write_and_close_cost_no_more_requests(union):
    union.lower()
    with counted(union) as counts:
        for n in range(50):
            with opened(union.point / f"f{n}", os.O_WRONLY | os.O_CREAT | os.O_EXCL) as fd:
                os.write(fd, b"x" * 4096)
                os.fchmod(fd, 0o640)
                os.utime(fd, ns=(1, 2))
    assert counts["CREATE"] == 50
    assert (counts["WRITE"], counts["FLUSH"], counts["OPEN"]) == (0, 0, 0), counts
    assert counts["GETATTR"] <= 55, counts  # of the directory: each change makes the kernel ask
    assert counts["SETATTR"] == 100


@PLYFS_ONLY
def test_a_mount_without_upper_passes_all_through(union):
    write(union.lower() / "f", KIB64)
    before = os.stat(union.lower() / "f").st_atime_ns
    point = union.mount(upper=False)
    assert read(point / "f") == KIB64
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_RDWR | os.O_TRUNC, os.O_WRONLY | os.O_APPEND):
        with raises(errno.EROFS):
            os.open(point / "f", flags)
    with opened(point / "f", os.O_RDONLY) as fd:
        with raises(errno.EROFS):
            os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
        with raises(errno.EACCES):
            mmap.mmap(fd, 4096, mmap.MAP_SHARED, mmap.PROT_WRITE)
        with mmap.mmap(fd, 65536, prot=mmap.PROT_READ) as area:
            assert area[:] == KIB64
    assert os.stat(union.lower() / "f").st_atime_ns == before


def every_way_of_opening(path):
    for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR | os.O_APPEND):
        with opened(path, flags) as fd:
            if flags != os.O_RDONLY:
                os.write(fd, b"changed")
                os.ftruncate(fd, 100)
            if flags & os.O_RDWR:
                with mmap.mmap(fd, 100) as area:
                    area[50:54] = b"here"


@pytest.mark.parametrize("options", ["", "passthrough=all", "io=cached"])
def test_a_lower_file_is_never_written(union, options):
    """While readers have it open, and after. Union.close() compares the lower layers as well."""
    for name in "abcd":
        write(union.lower() / name, KIB64)
    point = union.mount(options if lib.settings.impl == "plyfs" else "")
    with contextlib.ExitStack() as stack:
        for name in "ab":
            stack.enter_context(opened(point / name, os.O_RDONLY))
        for name in "abcd":
            every_way_of_opening(point / name)
            assert read(point / name)[50:54] == b"here"
            assert read(union.lower() / name) == KIB64


@pytest.mark.parametrize("options", ["", "io=cached"])
def test_a_reader_of_lower_sees_what_is_written(union, options):
    write(union.lower() / "f", "old data")
    point = union.mount(options if lib.settings.impl == "plyfs" else "")
    with opened(point / "f", os.O_RDONLY) as reader:
        assert os.read(reader, 3) == b"old"
        with opened(point / "f", os.O_RDWR) as writer:
            os.pwrite(writer, b"NEW DATA AND MORE", 0)
            assert os.pread(reader, 100, 0) == b"NEW DATA AND MORE"
        assert os.fstat(reader).st_size == 17
    # nobody has it open any more: it may go the other way, and must not show what was cached
    with opened(point / "f", os.O_RDWR) as writer:
        os.pwrite(writer, b"again", 0)
    assert read(point / "f") == b"againATA AND MORE"
    assert read(union.upper / "f") == b"againATA AND MORE"


@PLYFS_ONLY
def test_with_all_readers_keep_the_old_and_writers_get_the_new(union):
    write(union.lower() / "f", "old data")
    point = union.mount("passthrough=all")
    with opened(point / "f", os.O_RDONLY) as reader:
        ino = os.fstat(reader).st_ino
        assert os.read(reader, 3) == b"old"
        with opened(point / "f", os.O_RDWR) as writer:
            os.pwrite(writer, b"NEW", 0)
            assert os.fstat(writer).st_ino == ino
            assert os.pread(writer, 8, 0) == b"NEW data"
            assert read(point / "f") == b"NEW data"
            with opened(point / "f", os.O_RDONLY) as late:
                assert os.pread(late, 3, 0) == b"NEW"
        assert os.pread(reader, 3, 0) == b"old"
        os.chmod(point / "f", 0o711)
        for st in (os.fstat(reader), os.stat(point / "f")):
            assert (st.st_ino, oct(st.st_mode & 0o7777)) == (ino, oct(0o711))
        os.fchmod(reader, 0o600)
        assert oct(os.stat(point / "f").st_mode & 0o7777) == oct(0o600)
        os.rename(point / "f", point / "g")
        assert read(point / "g") == b"NEW data"
        os.unlink(point / "g")
        assert os.fstat(reader).st_nlink == 0
    assert os.listdir(point) == []


def mtime(path):
    return os.stat(path).st_mtime_ns


def age(path):
    os.utime(path, ns=(1, 1))
    assert mtime(path) == 1


@pytest.mark.parametrize("options", ["", "io=cached"])
def test_stat_shows_what_a_mapping_has_written(union, options):
    union.lower()
    point = union.mount(options if lib.settings.impl == "plyfs" else "")
    write(point / "f", b"." * 4096)
    age(point / "f")
    with opened(point / "f", os.O_RDWR) as fd, mmap.mmap(fd, 4096) as area:
        assert mtime(point / "f") == 1
        area[0:1] = b"x"
        area.flush()
    assert mtime(point / "f") > 1
    assert mtime(union.upper / "f") == mtime(point / "f")


def test_a_mapping_that_outlives_its_fd_changes_what_stat_shows(union):
    union.lower()
    point = union.mount()
    write(point / "f", b"." * 4096)
    with opened(point / "f", os.O_RDWR) as fd:
        area = mmap.mmap(fd, 4096)
    with area:
        for n in range(3):
            age(point / "f")
            area[n : n + 1] = b"x"
            area.flush()
            assert mtime(point / "f") > 1
    age(point / "f")
    assert read(point / "f")[:4] == b"xxx."


@PLYFS_ONLY
def test_attributes_are_cached_again_once_nobody_maps(union):
    union.lower()
    with counted(union) as counts:
        path = union.point / "f"
        with opened(path, os.O_RDWR | os.O_CREAT) as fd:
            os.write(fd, b"x")
        os.stat(path)
        for _ in range(100):
            os.stat(path)
    assert counts["GETATTR"] < 10, counts


SET_ID = [0o4755, 0o6755, 0o2755, 0o2745]


@pytest.mark.parametrize("options", ["io=passthrough", "io=cached"])
@pytest.mark.parametrize("mode", SET_ID, ids=oct)
@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_set_id_bits_go_when_others_write(union, options, mode, before):
    """Whether they came before the file was opened or after."""
    union.lower()
    point = union.mount(options if lib.settings.impl == "plyfs" else "")
    os.chmod(point, 0o777)
    path = write(point / "f", "data", mode=0o666, uid=USER, gid=USER)

    def change():
        with opened(path, os.O_RDWR) as fd:
            if not before:
                os.fchmod(fd, mode | 0o22)
            os.pwrite(fd, b"D", 0)

    if before:
        os.chmod(path, mode | 0o22)
    os.stat(path)
    in_child(change, uid=USER, gid=USER)
    # a set-group-id bit without execute permission means something else, for who is in the group
    left = mode & 0o2000 if mode & 0o2010 == 0o2000 else 0
    for p in (path, union.upper / "f"):
        got = os.stat(p).st_mode & 0o7777
        assert oct(got) in {oct(mode & 0o1777 | 0o22 | left), oct(mode & 0o1777 | 0o22)}, p
    assert os.stat(path).st_mode == os.stat(union.upper / "f").st_mode


@pytest.mark.parametrize("options", ["io=passthrough", "io=cached"])
def test_set_id_bits_stay_when_root_writes(union, options):
    """Also those that came after the file was opened."""
    union.lower()
    point = union.mount(options if lib.settings.impl == "plyfs" else "")
    path = write(point / "f", "data", mode=0o4755)
    with opened(path, os.O_RDWR) as fd:
        os.pwrite(fd, b"D", 0)
        with mmap.mmap(fd, 4) as area:
            area[3:4] = b"A"
        assert os.pread(fd, 4, 0) == b"DatA"
        assert oct(os.stat(path).st_mode & 0o7777) == oct(0o4755)
        os.fchmod(fd, 0o755)
    with opened(path, os.O_WRONLY) as fd:
        os.fchmod(fd, 0o6755)
        os.pwrite(fd, b"D", 0)
    assert oct(os.stat(path).st_mode & 0o7777) == oct(0o6755)
    assert read(union.upper / "f") == b"DatA"


@pytest.mark.parametrize("options", ["io=passthrough", "io=cached"])
def test_each_writer_of_one_file_has_his_own_right_to_set_id_bits(union, options):
    union.lower()
    point = union.mount(options if lib.settings.impl == "plyfs" else "")
    path = write(point / "f", "data", mode=0o666)

    def user_writes():
        with opened(path, os.O_RDWR) as fd:
            os.pwrite(fd, b"u", 0)

    with opened(path, os.O_RDWR) as fd:
        os.fchmod(fd, 0o4777)
        os.pwrite(fd, b"r", 0)
        assert oct(os.stat(path).st_mode & 0o7777) == oct(0o4777)
        in_child(user_writes, uid=USER, gid=USER)
        assert oct(os.stat(path).st_mode & 0o7777) == oct(0o777)
        os.fchmod(fd, 0o4777)
        os.pwrite(fd, b"r", 0)
        assert oct(os.stat(path).st_mode & 0o7777) == oct(0o4777)
    assert read(path) == b"rata"


@pytest.mark.parametrize("options", ["io=passthrough", "io=cached"])
def test_capabilities_go_when_anybody_writes(union, options):
    union.lower()
    point = union.mount(options if lib.settings.impl == "plyfs" else "")
    path = write(point / "f", "data", mode=0o777)
    with opened(path, os.O_RDWR) as fd:
        os.setxattr(path, CAPABILITY, CAP_NET_RAW)
        assert os.getxattr(path, CAPABILITY) == CAP_NET_RAW
        os.pwrite(fd, b"D", 0)
        with raises(errno.ENODATA):
            os.getxattr(path, CAPABILITY)


def test_exec_of_what_was_written(union):
    union.lower()
    point = union.mount()
    program = point / "true"
    for source in ("/bin/true", "/bin/false", "/bin/true"):
        write(program, read(source), mode=0o755)
        assert subprocess.run([program], check=False).returncode == (source == "/bin/false")
    sleep = write(point / "sleep", read("/bin/sleep"), mode=0o755)
    with subprocess.Popen([sleep, "60"]) as child:
        lib.wait_for(
            lambda: os.readlink(f"/proc/{child.pid}/exe").endswith("/sleep"), 10, "the program"
        )
        with raises(errno.ETXTBSY):
            os.open(sleep, os.O_WRONLY)
        child.send_signal(signal.SIGKILL)


def test_everything_else_works_on_the_same_file(union):
    union.lower()
    point = union.mount()
    path = write(point / "f", KIB64)
    with opened(path, os.O_RDWR) as fd, opened(point / "g", os.O_RDWR | os.O_CREAT) as other:
        os.posix_fallocate(fd, 65536, 65536)
        assert os.fstat(fd).st_size == 131072
        os.pwrite(fd, b"end", 131072 - 3)
        assert os.copy_file_range(fd, other, 4096, 131072 - 4096, 0) == 4096
        assert os.pread(other, 4096, 0)[-3:] == b"end"
        assert os.sendfile(other, fd, 0, 65536) == 65536
        os.ftruncate(fd, 10)
        assert os.pread(fd, 100, 0) == KIB64[:10]
        assert os.lseek(fd, 0, os.SEEK_HOLE) == 10
        os.fsync(fd)
        fcntl.flock(fd, fcntl.LOCK_EX)
        os.unlink(path)
        os.pwrite(fd, b"gone", 0)
        assert os.pread(fd, 10, 0)[:4] == b"gone"
        assert os.fstat(fd).st_nlink == 0
        with opened(f"/proc/self/fd/{fd}", os.O_RDONLY) as again:
            assert os.read(again, 4) == b"gone"
    with opened(point / "direct", os.O_RDWR | os.O_CREAT | os.O_DIRECT) as fd:
        with mmap.mmap(-1, 4096) as page:
            page[:] = b"d" * 4096
            assert os.pwritev(fd, [page], 0) == 4096
    assert read(union.upper / "direct") == b"d" * 4096
    with opened(point, os.O_TMPFILE | os.O_RDWR) as fd:
        os.write(fd, b"nameless")
        # only with a directory Python asks for the link's target
        os.link(f"/proc/self/fd/{fd}", point / "named", src_dir_fd=fd)
    assert read(point / "named") == b"nameless"


def test_append_only_files_only_grow(union):
    union.lower()
    point = union.mount()
    path = write(point / "log", "one\n")
    lib.set_flags(path, lib.FS_APPEND_FL)
    try:
        with raises(errno.EPERM):
            os.open(path, os.O_WRONLY)
        with opened(path, os.O_WRONLY | os.O_APPEND) as fd:
            os.write(fd, b"two\n")
        assert read(path) == b"one\ntwo\n"
    finally:
        lib.set_flags(path, 0)


@PLYFS_ONLY
def test_what_is_registered_goes_with_the_inode_and_with_the_mount(union):
    """What is unlinked is freed then, and the filesystem of upper can be unmounted after us."""
    with lib.loop_filesystem(union.base, "ext4", 64 * lib.MIB) as fs:
        union.lower()
        union.point.mkdir(exist_ok=True)
        (fs / "u").mkdir()
        (fs / "w").mkdir()
        mounted = lib.mount_plyfs(union.lowers, fs / "u", fs / "w", union.point)
        free = os.statvfs(fs).f_ffree
        paths = [union.point / f"f{n}" for n in range(300)]
        for path in paths:
            write(path, "x")
        assert os.statvfs(fs).f_ffree == free - 300
        for path in paths:
            os.unlink(path)
        lib.wait_for(lambda: os.statvfs(fs).f_ffree == free, 10, "the backing files to go")
        for path in paths[:100]:
            write(path, "x")
        mounted.umount()
        # leaving the block unmounts it, which fails if it is in use


def test_a_kernel_overlayfs_can_be_stacked_on_it(union):
    write(union.lower() / "f", "low")
    point = union.mount()
    write(point / "g", "new")
    top = union.base / "top"
    for name in ("u", "w", "m"):
        (top / name).mkdir(parents=True)
    lib.mount_kernel([point], top / "u", top / "w", top / "m")
    try:
        assert (read(top / "m/f"), read(top / "m/g")) == (b"low", b"new")
        write(top / "m/g", "over")
        assert (read(top / "m/g"), read(point / "g")) == (b"over", b"new")
    finally:
        lib.sys_umount(top / "m", lib.MNT_DETACH)


@PLYFS_ONLY
def test_plyfs_on_plyfs_passes_nothing_through_of_what_is_stacked(union):
    write(union.lower() / "f", KIB64)
    point = union.mount()
    top = union.base / "top"
    for name in ("u", "w", "m"):
        (top / name).mkdir(parents=True)
    mounted = lib.mount_plyfs([point], None, None, top / "m")
    try:
        for _ in range(3):
            assert read(top / "m/f") == KIB64
    finally:
        mounted.umount()


@pytest.mark.parametrize("options", ["", "passthrough=all"])
def test_a_renamed_metacopy_is_opened_again_and_again(union, options):
    """Beside its name there is no lower object, and its data is lower all the same."""
    write(union.lower() / "f", "old data")
    features = "metacopy=on,redirect_dir=on"
    point = union.mount(features)
    os.chmod(point / "f", 0o600)
    os.rename(point / "f", point / "g")
    union.umount()
    point = union.mount(features + ("," + options if options and lib.settings.impl == "plyfs" else ""))
    with contextlib.ExitStack() as stack:
        for _ in range(4):
            fd = stack.enter_context(opened(point / "g", os.O_RDONLY))
            assert os.read(fd, 100) == b"old data"
        with opened(point / "g", os.O_RDWR) as fd:
            os.pwrite(fd, b"NEW", 0)
        assert read(point / "g") == b"NEW data"


@pytest.mark.parametrize("upper", [True, False])
def test_data_without_its_digest_is_not_opened(union, upper):
    """Also where the kernel is to open it, and not the server."""
    write(union.lower() / "f", "data")
    point = union.mount("metacopy=on")
    os.chmod(point / "f", 0o600)
    union.umount()
    union.check_kernel = False
    options = "metacopy=on,verity=require"
    if upper:
        options += ",passthrough=all" if lib.settings.impl == "plyfs" else ""
        point = union.mount(options)
    else:
        point = union.mount(options, upper=False, lowers=[union.upper, union.lower()])
    for _ in range(2):
        with raises(errno.EIO):
            os.close(os.open(point / "f", os.O_RDONLY))


@pytest.mark.parametrize("options", ["", "io=cached", "io=cached,writeback=0"])
def test_what_is_mapped_is_no_hole(union, options):
    """A reader of lower has the writer go through the page cache, which holds what is mapped."""
    write(union.lower() / "f", "old data")
    point = union.mount(options if lib.settings.impl == "plyfs" else "")
    with opened(point / "f", os.O_RDONLY) as reader, opened(point / "f", os.O_RDWR) as writer:
        os.ftruncate(writer, 1 << 20)
        with mmap.mmap(writer, 1 << 20) as area:
            area[512 << 10] = 1
            for fd in (writer, reader):
                assert os.lseek(fd, 300 << 10, os.SEEK_DATA) == 512 << 10
