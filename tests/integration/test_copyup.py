# SPDX-License-Identifier: MIT
"""Copy-up: what causes it, what it keeps, and what it leaves alone."""

import errno
import os
import socket
import stat
import subprocess

import plyfs_testlib as lib
import pytest
from plyfs_testlib import (
    ACCESS_ACL,
    CAP_NET_RAW,
    CAPABILITY,
    DEFAULT_ACL,
    KIB,
    MIB,
    acl,
    append,
    blocks,
    exists,
    in_child,
    mkdir,
    names,
    opened,
    raises,
    read,
    write,
    xattrs,
)

OLD = 1_000_000_000_123_456_789  # nanoseconds: with digits that whole seconds would lose
BEFORE_1970 = -86_400_000_000_000 + 5


def in_upper(union, name):
    return exists(union.upper / name)


# --- causes ---------------------------------------------------------------------------------------


def chmod(path):
    os.chmod(path, 0o640)


def utimens(path):
    os.utime(path, ns=(OLD, OLD))


def set_xattr(path):
    os.setxattr(path, "user.new", b"v")


def truncate(path):
    os.truncate(path, 2)


def open_for_writing(path):
    with opened(path, os.O_WRONLY):
        pass


def open_read_write(path):
    with opened(path, os.O_RDWR):
        pass


def open_truncating(path):
    with opened(path, os.O_WRONLY | os.O_TRUNC):
        pass


def open_truncating_for_reading(path):
    with opened(path, os.O_RDONLY | os.O_TRUNC):
        pass


def link(path):
    os.link(path, str(path) + ".link")


def rename(path):
    os.rename(path, str(path) + ".new")
    os.rename(str(path) + ".new", path)


@pytest.mark.parametrize(
    "change",
    [
        chmod,
        utimens,
        set_xattr,
        truncate,
        open_for_writing,
        open_read_write,
        open_truncating,
        open_truncating_for_reading,
        link,
        rename,
    ],
    ids=lambda f: f.__name__,
)
def test_change_copies_up(union, change):
    if change in (open_for_writing, open_read_write) and lib.settings.silent_open:
        pytest.skip("an open is not heard of: the first change copies up")
    write(union.lower() / "d/f", "content")
    m = union.mount()
    change(m / "d/f")
    assert in_upper(union, "d/f")
    content = {"truncate": b"co", "open_truncating": b"", "open_truncating_for_reading": b""}
    assert read(union.upper / "d/f") == content.get(change.__name__, b"content")
    assert read(m / "d/f") == content.get(change.__name__, b"content")
    assert read(union.lower() / "d/f") == b"content"


def test_reading_never_copies_up(union):
    import fcntl
    import mmap

    low = union.lower()
    write(low / "d/f", "content", xattrs={"user.a": b"1"})
    os.symlink("f", low / "d/s")
    os.mkfifo(low / "d/p")
    m = union.mount()
    path = m / "d/f"
    with opened(path, os.O_RDONLY) as fd:
        os.read(fd, 100)
        os.fsync(fd)
        os.fdatasync(fd)
        fcntl.flock(fd, fcntl.LOCK_EX)
        mmap.mmap(fd, 7, prot=mmap.PROT_READ).close()
        os.lseek(fd, 0, os.SEEK_DATA)
        os.fstat(fd)
    with opened(path, os.O_PATH):
        pass
    xattrs(path)
    os.access(path, os.W_OK)
    os.readlink(m / "d/s")
    names(m / "d")
    with opened(m / "d/p", os.O_RDONLY | os.O_NONBLOCK), opened(m / "d/p", os.O_WRONLY):
        pass
    with raises(errno.ENODATA):
        os.removexattr(path, "user.missing")
    with raises(errno.EEXIST):
        os.mkdir(m / "d/f")
    with opened(m / "d", os.O_RDONLY) as fd:
        os.fsync(fd)
    union.umount()
    assert names(union.upper) == []


def test_unlink_of_a_lower_file_does_not_copy_it_up(union):
    """Only a whiteout appears: nothing of the size of the file is ever written."""
    write(union.lower() / "d/big", b"x" * (20 * MIB))
    m = union.mount()
    os.unlink(m / "d/big")
    assert lib.is_whiteout(union.upper / "d/big")
    used = subprocess.run(["du", "-sk", union.base / "work"], capture_output=True, text=True)
    assert int(used.stdout.split()[0]) < 1024
    # the daemon copied nothing: the whiteout is all there is
    assert names(union.upper / "d") == ["big"]


def test_rmdir_of_a_lower_directory_does_not_copy_it_up(union):
    mkdir(union.lower() / "d/e")
    m = union.mount()
    os.rmdir(m / "d/e")
    assert lib.is_whiteout(union.upper / "d/e")


# --- what it keeps --------------------------------------------------------------------------------


def attributes(path):
    st = os.lstat(path)
    return oct(st.st_mode), st.st_uid, st.st_gid, st.st_size, st.st_mtime_ns, st.st_rdev


@pytest.mark.privileged("makes files of other owners")
def test_file_keeps_everything(union):
    path = union.lower() / "d/f"
    kept = {"user.one": b"1", "user.empty": b"", "user.long": b"v" * 3000}
    write(path, "content", uid=1234, gid=4321, mode=0o4755, xattrs=kept)
    os.setxattr(path, ACCESS_ACL, acl(6, 4, 0, users=[(1001, 4)], groups=[(1002, 5)], mask=5))
    os.chmod(path, 0o2751)
    os.setxattr(path, CAPABILITY, CAP_NET_RAW)
    os.utime(path, ns=(OLD + 1, OLD))
    m = union.mount()
    before, before_xattrs = attributes(m / "d/f"), xattrs(m / "d/f")
    os.setxattr(m / "d/f", "user.trigger", b"")
    os.removexattr(m / "d/f", "user.trigger")
    assert in_upper(union, "d/f")
    assert attributes(m / "d/f") == before == attributes(path)
    assert xattrs(m / "d/f") == before_xattrs == xattrs(path)
    assert attributes(union.upper / "d/f") == before
    assert os.lstat(union.upper / "d/f").st_atime_ns == OLD + 1
    m = union.remount()
    assert attributes(m / "d/f") == before
    assert xattrs(m / "d/f") == before_xattrs


@pytest.mark.privileged("makes files of other owners")
@pytest.mark.parametrize("mode", [0o4755, 0o2755, 0o6777, 0o1644, 0o2644, 0o7000, 0o000])
def test_special_mode_bits_survive(union, mode):
    write(union.lower() / "f", "x", uid=1000, gid=1001, mode=mode)
    mkdir(union.lower() / "d", uid=1000, gid=1001, mode=mode)
    m = union.mount()
    for name in "fd":
        os.setxattr(m / name, "user.t", b"")
        assert oct(os.lstat(union.upper / name).st_mode & 0o7777) == oct(mode)
        assert os.lstat(union.upper / name).st_uid == 1000
        assert os.lstat(union.upper / name).st_gid == 1001


def test_own_file_keeps_mode_times_and_xattrs(union):
    path = write(union.lower() / "f", "content", mode=0o751, xattrs={"user.a": b"b"}, mtime=OLD)
    m = union.mount()
    os.setxattr(m / "f", "user.t", b"")
    st = os.lstat(union.upper / "f")
    assert oct(st.st_mode & 0o7777) == oct(0o751)
    assert st.st_mtime_ns == OLD
    assert lib.xattr(union.upper / "f", "user.a") == b"b"
    assert lib.xattr(path, "user.t") is None


@pytest.mark.parametrize("when", [OLD, BEFORE_1970, 0, 2**32 * 10**9 + 7])
def test_times_to_the_nanosecond(union, when):
    write(union.lower() / "f", mtime=when)
    os.symlink("x", union.lower() / "s")
    os.utime(union.lower() / "s", ns=(when, when), follow_symlinks=False)
    m = union.mount()
    assert os.lstat(m / "f").st_mtime_ns == os.lstat(union.lower() / "f").st_mtime_ns
    os.setxattr(m / "f", "user.t", b"")
    if lib.settings.level != "user":
        os.lchown(m / "s", 1, 1)
        assert os.lstat(m / "s").st_mtime_ns == os.lstat(union.lower() / "s").st_mtime_ns
    assert os.lstat(m / "f").st_mtime_ns == os.lstat(union.lower() / "f").st_mtime_ns
    assert os.lstat(union.upper / "f").st_mtime_ns == os.lstat(union.lower() / "f").st_mtime_ns


@pytest.mark.privileged("changes owners")
def test_symlink(union):
    os.symlink("../some/where", union.lower() / "s")
    os.lchown(union.lower() / "s", 10, 20)
    long = "x" * 4000
    os.symlink(long, union.lower() / "long")
    m = union.mount()
    os.lchown(m / "s", 11, -1)
    os.lchown(m / "long", 11, -1)
    st = os.lstat(union.upper / "s")
    assert (st.st_uid, st.st_gid) == (11, 20)
    assert os.readlink(m / "s") == "../some/where" == os.readlink(union.upper / "s")
    assert os.readlink(m / "long") == long


@pytest.mark.privileged("changes owners")
def test_fifo_and_socket(union):
    os.mkfifo(union.lower() / "p", 0o640)
    s = socket.socket(socket.AF_UNIX)
    here = os.getcwd()
    os.chdir(union.lower())
    s.bind("s")
    os.chdir(here)
    s.close()
    os.utime(union.lower() / "p", ns=(OLD, OLD))
    m = union.mount()
    os.chown(m / "p", 7, 8)
    os.chown(m / "s", 7, 8)
    st = os.lstat(union.upper / "p")
    assert stat.S_ISFIFO(st.st_mode)
    assert (oct(st.st_mode & 0o7777), st.st_uid, st.st_mtime_ns) == (oct(0o640), 7, OLD)
    assert stat.S_ISSOCK(os.lstat(union.upper / "s").st_mode)


@pytest.mark.root("makes device nodes")
def test_device_nodes(union):
    for name, kind, dev in (
        ("null", stat.S_IFCHR, os.makedev(1, 3)),
        ("blk", stat.S_IFBLK, os.makedev(7, 300)),
        ("big", stat.S_IFCHR, os.makedev(4000, 700000)),
    ):
        os.mknod(union.lower() / name, kind | 0o640, dev)
    m = union.mount()
    for name in ("null", "blk", "big"):
        before = attributes(m / name)
        assert before == attributes(union.lower() / name)
        os.utime(m / name, ns=(OLD, OLD))
        assert in_upper(union, name)
        assert attributes(m / name)[:4] == before[:4]
        assert os.lstat(m / name).st_rdev == os.lstat(union.lower() / name).st_rdev


def test_directory_keeps_everything_and_its_contents_stay_below(union):
    mkdir(union.lower() / "d", xattrs={"user.a": b"1"})
    os.setxattr(union.lower() / "d", DEFAULT_ACL, acl(7, 5, 0, users=[(os.getuid(), 7)], mask=7))
    write(union.lower() / "d/f", "f")
    os.chmod(union.lower() / "d", 0o3775)
    os.utime(union.lower() / "d", ns=(OLD, OLD))
    m = union.mount()
    before = xattrs(m / "d")
    os.setxattr(m / "d", "user.b", b"2")
    st = os.lstat(union.upper / "d")
    assert oct(st.st_mode & 0o7777) == oct(0o3775)
    assert st.st_mtime_ns == OLD
    assert xattrs(m / "d") == {**before, "user.b": b"2"}
    assert names(union.upper / "d") == []
    assert names(m / "d") == ["f"]


@pytest.mark.privileged("makes directories of other owners")
def test_parents_come_first_with_their_own_attributes(union):
    low = union.lower()
    write(low / "a/b/c/f", "content")
    for name, mode, uid, gid in (
        ("a", 0o2770, 11, 12),
        ("a/b", 0o1777, 13, 14),
        ("a/b/c", 0o700, 15, 16),
    ):
        os.chown(low / name, uid, gid)
        os.chmod(low / name, mode)
        os.setxattr(low / name, "user.name", name.encode())
        os.utime(low / name, ns=(OLD, OLD))
    m = union.mount()
    append(m / "a/b/c/f", b"more")
    for name in ("a", "a/b", "a/b/c"):
        assert attributes(union.upper / name)[:3] == attributes(low / name)[:3]
        assert lib.xattr(union.upper / name, "user.name") == name.encode()
    assert read(m / "a/b/c/f") == b"contentmore"


def test_times_of_parents_do_not_change_by_copy_up(union):
    low = union.lower()
    write(low / "a/b/f", "content")
    for name in ("a/b", "a", "."):
        os.utime(low / name, ns=(OLD, OLD))
    os.utime(union.upper, ns=(OLD, OLD))
    m = union.mount()
    append(m / "a/b/f", b"more")
    for name in (".", "a", "a/b"):
        assert os.stat(m / name).st_mtime_ns == OLD, name
        assert os.stat(union.upper / name).st_mtime_ns == OLD, name
    # and of a parent which was in upper already
    write(m / "a/b/made")
    assert os.stat(m / "a/b").st_mtime_ns != OLD


def test_group_writable_setgid_directory(union):
    """2770 stays 2770: mkdir(2) alone would drop the bit."""
    write(union.lower() / "d/f", "x")
    os.chmod(union.lower() / "d", 0o2770)
    m = union.mount()
    os.chmod(m / "d/f", 0o600)
    assert oct(os.stat(union.upper / "d").st_mode & 0o7777) == oct(0o2770)
    assert oct(os.stat(m / "d").st_mode & 0o7777) == oct(0o2770)


def test_default_acl_of_a_parent_does_not_leak_into_what_is_copied(union):
    low = union.lower()
    mkdir(low / "d")
    write(low / "d/f", "x", mode=0o644)
    mkdir(low / "d/e", mode=0o755)
    os.mkfifo(low / "d/p", 0o644)
    os.chmod(low / "d/p", 0o644)
    os.setxattr(low / "d", DEFAULT_ACL, acl(7, 0, 0, users=[(99, 7)], mask=7))
    m = union.mount()
    for name in ("f", "e", "p"):
        os.utime(m / "d" / name, ns=(OLD, OLD))
        assert xattrs(m / "d" / name).get(ACCESS_ACL) is None
        assert xattrs(m / "d" / name).get(DEFAULT_ACL) is None
        assert os.lstat(m / "d" / name).st_mode == os.lstat(low / "d" / name).st_mode
    assert lib.xattr(m / "d", DEFAULT_ACL) == lib.xattr(low / "d", DEFAULT_ACL)


@pytest.mark.userns("ids that are not mapped exist only there")
def test_owner_that_is_not_mapped_is_refused(new_union):
    """Else a file of the real root would become one of the namespace's: EOVERFLOW."""
    union = new_union()
    # the directory of the program under test belongs to the real root
    union.use_lower(0, os.path.dirname(lib.settings.plyfs))
    m = union.mount()
    for change in (
        lambda: os.rename(m / "plyfs", m / "moved"),
        lambda: os.chmod(m / "plyfs", 0o4755),
        lambda: os.link(m / "plyfs", m / "linked"),
    ):
        with raises(errno.EOVERFLOW, errno.EPERM):
            change()
    assert names(union.upper) == []
    # the kernel's VFS lets nobody remove what has no owner that FUSE could name
    if lib.settings.impl == "kernel":
        os.unlink(m / "plyfs")
        assert names(m) == []


@pytest.mark.root("mounts an image")
@pytest.mark.plyfs_only("refuses ACLs on the files of such a lower")
def test_lower_without_acls(union):
    """squashfs holds none: asking and setting work all the same."""
    image, fs = union.base / "image", mkdir(union.base / "squashfs")
    write(union.base / "src/d/f", "content", mode=0o640)
    subprocess.run(
        ["mksquashfs", union.base / "src", image, "-quiet"], check=True, capture_output=True
    )
    subprocess.run(["mount", "-o", "loop,ro", image, fs], check=True)
    try:
        union.use_lower(0, fs)
        m = union.mount()
        assert lib.xattr(m / "d/f", ACCESS_ACL) is None
        value = acl(6, 4, 0, users=[(1000, 4)], mask=4)
        os.setxattr(m / "d/f", ACCESS_ACL, value)
        assert lib.xattr(m / "d/f", ACCESS_ACL) == value
        assert in_child(read, m / "d/f", uid=1000) == b"content"
        os.setxattr(m / "d", DEFAULT_ACL, value)
        write(m / "d/new", "x")
        assert lib.xattr(m / "d/new", ACCESS_ACL) is not None
        append(m / "d/f", b"+")
        union.close()
    finally:
        subprocess.run(["umount", "-l", fs], check=True)


def test_empty_file_and_odd_sizes(union):
    sizes = [0, 1, 4095, 4096, 4097, 65536, MIB - 1, MIB, MIB + 1, 3 * MIB + 17]
    for size in sizes:
        write(union.lower() / str(size), os.urandom(size))
    m = union.mount()
    for size in sizes:
        os.utime(m / str(size), ns=(OLD, OLD))
        assert read(union.upper / str(size)) == read(union.lower() / str(size))
        append(m / str(size), b"end")
        assert read(m / str(size)) == read(union.lower() / str(size)) + b"end"


def test_holes_stay_holes(union):
    """A sparse file of 200 MiB with 1 MiB of data takes about 1 MiB in upper."""
    path = union.lower() / "sparse"
    with opened(path, os.O_CREAT | os.O_WRONLY) as fd:
        os.ftruncate(fd, 200 * MIB)
        os.pwrite(fd, b"a" * (512 * KIB), 10 * MIB)
        os.pwrite(fd, b"b" * (512 * KIB), 150 * MIB)
    m = union.mount()
    append(m / "sparse", b"end")
    up = union.upper / "sparse"
    assert os.stat(up).st_size == 200 * MIB + 3
    assert blocks(up) <= 4 * MIB, f"{blocks(up)} bytes on disk"
    with opened(m / "sparse", os.O_RDONLY) as fd:
        assert os.pread(fd, 10, 10 * MIB) == b"a" * 10
        assert os.pread(fd, 10, 150 * MIB) == b"b" * 10
        assert os.pread(fd, 10, 100 * MIB) == b"\0" * 10
        assert os.pread(fd, 10, 200 * MIB) == b"end"


def test_hole_at_the_end_and_at_the_beginning(union):
    with opened(union.lower() / "tail", os.O_CREAT | os.O_WRONLY) as fd:
        os.write(fd, b"head")
        os.ftruncate(fd, 50 * MIB)
    with opened(union.lower() / "head", os.O_CREAT | os.O_WRONLY) as fd:
        os.pwrite(fd, b"tail", 50 * MIB)
    with opened(union.lower() / "all", os.O_CREAT | os.O_WRONLY) as fd:
        os.ftruncate(fd, 50 * MIB)
    m = union.mount()
    for name, size in (("tail", 50 * MIB), ("head", 50 * MIB + 4), ("all", 50 * MIB)):
        os.chmod(m / name, 0o600)
        assert os.stat(union.upper / name).st_size == size
        assert blocks(union.upper / name) <= MIB
        assert lib.content_key(union.upper / name, size) == lib.content_key(m / name, size)
    assert read(m / "head")[-4:] == b"tail"


def test_truncating_open_copies_no_data(union):
    write(union.lower() / "f", b"x" * (8 * MIB))
    m = union.mount()
    with opened(m / "f", os.O_WRONLY | os.O_TRUNC) as fd:
        os.write(fd, b"short")
    assert read(m / "f") == b"short"
    assert read(union.upper / "f") == b"short"
    assert blocks(union.upper / "f") <= 64 * KIB


def test_leftovers_in_workdir_do_not_get_into_files(union):
    """A crash may leave anything in work; the next mount sweeps it."""
    write(union.lower() / "d/f", "short")
    for name in ("1", "2", "#zz", "tmp"):
        write(union.work / "work" / name, "LEFTOVER-CONTENT-LONGER-THAN-THE-FILE")
        mkdir(union.work / "work" / (name + "-dir") / "sub")
    for i in range(1, 40):
        write(union.work / "work" / f"#{i:x}", "LEFTOVER-CONTENT")
    m = union.mount()
    append(m / "d/f", b"+")
    os.mkdir(m / "d/new")
    os.mkdir(m / "new")
    assert read(m / "d/f") == b"short+"


def test_of_a_file_that_is_open_for_reading(union):
    write(union.lower() / "f", "content")
    m = union.mount()
    with opened(m / "f", os.O_RDONLY) as fd:
        assert os.pread(fd, 10, 0) == b"content"
        append(m / "f", b"+new")
        assert os.pread(fd, 100, 0) == b"content+new"
        assert os.fstat(fd).st_size == 11
    assert read(union.lower() / "f") == b"content"


def test_write_through_an_fd_never_reaches_the_lower_layer(union):
    """An fd for reading is held; then others write, append, truncate."""
    write(union.lower() / "f", "content")
    write(union.lower() / "g", "content")
    m = union.mount()
    with opened(m / "f", os.O_RDONLY) as reader:
        os.read(reader, 100)
        with opened(m / "f", os.O_RDWR) as fd:
            os.write(fd, b"WRITTEN")
            assert os.pread(reader, 100, 0) == b"WRITTEN"
        assert read(m / "f") == b"WRITTEN"
    with opened(m / "g", os.O_RDONLY), opened(m / "g", os.O_RDONLY):
        os.chmod(m / "g", 0o600)
        append(m / "g", b"+appended")
        assert read(m / "g") == b"content+appended"
    assert read(union.lower() / "f") == b"content"
    assert read(union.lower() / "g") == b"content"


@pytest.mark.privileged("drops to another user")
def test_caller_needs_no_rights_on_what_the_mounter_copies(union):
    """A user may append to his file below directories that he cannot write."""
    write(union.lower() / "d/f", "x", uid=lib.NOBODY, gid=lib.NOBODY, mode=0o644)
    os.chmod(union.lower() / "d", 0o755)
    m = union.mount()
    in_child(append, m / "d/f", b"y", uid=lib.NOBODY)
    assert read(m / "d/f") == b"xy"
    assert os.stat(union.upper / "d").st_uid == os.stat(union.lower() / "d").st_uid
    with raises(errno.EACCES):
        in_child(write, m / "d/new", uid=lib.NOBODY)


def test_file_and_directory_that_are_read_only(union):
    """The owner may change their mode; the marks of the copy must not need the right to write."""
    write(union.lower() / "f", "x", mode=0o444)
    mkdir(union.lower() / "d")
    os.chmod(union.lower() / "d", 0o555)
    m = union.mount()
    os.utime(m / "f", ns=(OLD, OLD))
    os.utime(m / "d", ns=(OLD, OLD))
    for name, mode in (("f", 0o444), ("d", 0o555)):
        st = os.stat(union.upper / name)
        assert (oct(st.st_mode & 0o7777), st.st_mtime_ns) == (oct(mode), OLD)


@pytest.mark.privileged("drops to another user")
def test_denied_change_does_not_copy_up(union):
    write(union.lower() / "f", "x", mode=0o644)
    m = union.mount()
    with raises(errno.EACCES):
        in_child(append, m / "f", b"y", uid=lib.NOBODY)
    with raises(errno.EPERM):
        in_child(os.chmod, m / "f", 0o777, uid=lib.NOBODY)
    with raises(errno.EPERM):
        in_child(os.chown, m / "f", 1, 1, uid=lib.NOBODY)
    with raises(errno.EPERM, errno.EACCES):
        in_child(os.setxattr, m / "f", "user.x", b"", uid=lib.NOBODY)
    with raises(errno.EACCES):
        in_child(os.truncate, m / "f", 0, uid=lib.NOBODY)
    assert names(union.upper) == []


@pytest.mark.privileged("reads what nobody may read")
def test_file_without_permissions(union):
    write(union.lower() / "f", "secret", mode=0o000)
    m = union.mount()
    os.chmod(m / "f", 0o600)
    assert read(m / "f") == b"secret"
    assert read(union.upper / "f") == b"secret"


@pytest.mark.root("mounts a file system from an image")
def test_shared_extents_by_reflink_on_xfs(union):
    reflink_check(union, "xfs", ["-m", "reflink=1"])


@pytest.mark.root("mounts a file system from an image")
def test_shared_extents_by_reflink_on_btrfs(union):
    reflink_check(union, "btrfs", [])


def reflink_check(union, kind, mkfs_options):
    with lib.loop_filesystem(union.base, kind, 400 * MIB, mkfs_options) as fs:
        inner = lib.Union(fs / "u")
        write(inner.lower() / "big", os.urandom(40 * MIB))
        os.sync()
        m = inner.mount()
        try:
            os.chmod(m / "big", 0o600)
            shared = subprocess.run(
                ["filefrag", "-v", inner.upper / "big"], capture_output=True, text=True, check=True
            )
            assert "shared" in shared.stdout, shared.stdout
            append(m / "big", b"more")
            assert read(m / "big") == read(inner.lower() / "big") + b"more"
        finally:
            inner.close()


@pytest.mark.root("mounts file systems")
def test_from_another_filesystem(new_union, scratch):
    with lib.tmpfs(scratch) as fs, lib.loop_filesystem(scratch, "ext4", 64 * MIB) as ext4:
        union = new_union()
        union.use_lower(0, mkdir(fs / "l0"))
        union.use_lower(1, mkdir(ext4 / "l1"))
        with opened(fs / "l0/sparse", os.O_CREAT | os.O_WRONLY) as fd:
            os.pwrite(fd, b"data", 10 * MIB)
        write(ext4 / "l1/f", b"y" * (3 * MIB), mode=0o4711, uid=5, xattrs={"user.a": b"1"})
        m = union.mount()
        os.utime(m / "sparse", ns=(OLD, OLD))
        append(m / "f", b"z")
        assert blocks(union.upper / "sparse") <= MIB
        assert read(m / "sparse")[-4:] == b"data"
        assert read(m / "f") == b"y" * (3 * MIB) + b"z"
        assert lib.xattr(union.upper / "f", "user.a") == b"1"
        union.close()


@pytest.mark.root("makes security xattrs")
def test_security_and_trusted_xattrs(union):
    write(union.lower() / "f", xattrs={"trusted.mine": b"1", "security.mine": b"2"})
    m = union.mount()
    os.utime(m / "f", ns=(OLD, OLD))
    assert lib.xattr(union.upper / "f", "trusted.mine") == b"1"
    assert lib.xattr(union.upper / "f", "security.mine") == b"2"


@pytest.mark.root("flags of file systems are the business of root")
@pytest.mark.disk("tmpfs keeps no such flags")
def test_noatime_flag(union):
    write(union.lower() / "f", "x")
    lib.set_flags(union.lower() / "f", lib.get_flags(union.lower() / "f") | lib.FS_NOATIME_FL)
    m = union.mount()
    os.chmod(m / "f", 0o600)
    assert lib.get_flags(union.upper / "f") & lib.FS_NOATIME_FL


def test_ten_processes_copy_up_the_same_file_at_once(union):
    write(union.lower() / "d/f", b"x" * (2 * MIB))
    m = union.mount()

    def one(i):
        with opened(m / "d/f", os.O_RDWR) as fd:
            os.pwrite(fd, b"%d" % i, i)
            return os.fstat(fd).st_ino

    pids = []
    for i in range(10):
        pid = os.fork()
        if pid == 0:
            try:
                one(i)
                os._exit(0)
            finally:
                os._exit(1)
        pids.append(pid)
    for pid in pids:
        assert os.waitpid(pid, 0)[1] == 0
    assert read(m / "d/f") == b"0123456789" + b"x" * (2 * MIB - 10)
    assert names(union.upper / "d") == ["f"]
