# SPDX-License-Identifier: MIT
"""New objects: owner, mode, umask, setgid directories, ACLs, times."""

import errno
import os
import socket
import stat
import time

import plyfs_testlib as lib
import pytest
from plyfs_testlib import (
    ACCESS_ACL,
    DEFAULT_ACL,
    acl,
    in_child,
    mkdir,
    names,
    opened,
    raises,
    read,
    write,
    xattr,
)

OLD = 1_000_000_000_000_000_000


def make_all(directory):
    """One of every type; {name: mode}."""
    os.chdir(directory)
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, 0o666))
    os.close(os.open("exec", os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o777))
    os.mkdir("dir", 0o777)
    os.mkfifo("fifo", 0o666)
    os.mknod("node", stat.S_IFREG | 0o666)
    s = socket.socket(socket.AF_UNIX)
    s.bind("sock")
    s.close()
    return {n: oct(os.lstat(n).st_mode & 0o7777) for n in sorted(os.listdir("."))}


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o022, 0o077, 0o777])
@pytest.mark.parametrize("over", ["nothing", "whiteouts"])
def test_umask_of_the_caller(union, umask, over):
    if over == "whiteouts":
        for name in ("file", "exec", "dir", "fifo", "node", "sock"):
            write(union.lower() / "d" / name)
    else:
        mkdir(union.lower() / "d")
    m = union.mount()
    for name in names(m / "d"):
        os.unlink(m / "d" / name)
    found = in_child(make_all, m / "d", umask=umask)
    assert found == {
        "dir": oct(0o777 & ~umask),
        "exec": oct(0o777 & ~umask),
        "fifo": oct(0o666 & ~umask),
        "file": oct(0o666 & ~umask),
        "node": oct(0o666 & ~umask),
        "sock": oct(0o777 & ~umask),
    }


@pytest.mark.privileged("drops to another user")
def test_owner_is_the_caller(union):
    mkdir(union.lower() / "d", mode=0o777)
    os.chmod(union.lower() / "d", 0o777)
    write(union.lower() / "d/gone")
    m = union.mount()
    os.unlink(m / "d/gone")

    def make():
        write(m / "d/file")
        os.mkdir(m / "d/dir")
        os.symlink("x", m / "d/link")
        os.mkfifo(m / "d/fifo")
        write(m / "d/gone", "again")

    in_child(make, uid=1000, gid=1001, groups=[2000])
    for name in ("file", "dir", "link", "fifo", "gone"):
        st = os.lstat(m / "d" / name)
        assert (st.st_uid, st.st_gid) == (1000, 1001), name


@pytest.mark.privileged("drops to another user")
@pytest.mark.parametrize("over", ["nothing", "whiteouts"])
def test_setgid_directory_gives_its_group(union, over):
    mkdir(union.lower() / "d", uid=0, gid=2000)
    os.chmod(union.lower() / "d", 0o2777)
    if over == "whiteouts":
        for name in ("file", "dir", "link", "fifo"):
            write(union.lower() / "d" / name)
    m = union.mount()
    for name in names(m / "d"):
        os.unlink(m / "d" / name)

    def make():
        write(m / "d/file")
        os.mkdir(m / "d/dir", 0o755)
        os.symlink("x", m / "d/link")
        os.mkfifo(m / "d/fifo")

    in_child(make, uid=1000, gid=1001, umask=0o022)
    for name in ("file", "dir", "link", "fifo"):
        st = os.lstat(m / "d" / name)
        assert (st.st_uid, st.st_gid) == (1000, 2000), name
        assert bool(st.st_mode & stat.S_ISGID) == (name == "dir"), name
    in_child(os.mkdir, m / "d/dir/deeper", uid=1000, gid=1001)
    assert os.stat(m / "d/dir/deeper").st_gid == 2000
    assert os.stat(m / "d/dir/deeper").st_mode & stat.S_ISGID


@pytest.mark.privileged("drops to another user")
@pytest.mark.parametrize("groups,kept", [([2000], True), ([], False)])
def test_setgid_of_a_new_executable_needs_membership(union, groups, kept):
    """A group-executable setgid file in a setgid directory keeps the bit for members only."""
    mkdir(union.lower() / "d", gid=2000)
    os.chmod(union.lower() / "d", 0o2777)
    m = union.mount()

    def make():
        os.close(os.open(m / "d/f", os.O_CREAT | os.O_WRONLY, 0o2775))
        return os.stat(m / "d/f").st_mode

    mode = in_child(make, uid=1000, gid=1001, groups=groups, umask=0)
    assert bool(mode & stat.S_ISGID) == kept


@pytest.mark.parametrize("over", ["nothing", "whiteouts"])
def test_default_acl_is_inherited_and_umask_not_applied(union, over):
    me = os.getuid()
    default = acl(7, 5, 0, users=[(me, 6)], groups=[(os.getgid(), 5)], mask=7)
    low = mkdir(union.lower() / "d")
    if over == "whiteouts":
        for name in ("file", "exec", "dir", "fifo", "node", "sock"):
            write(low / name)
    os.setxattr(low, DEFAULT_ACL, default)
    m = union.mount()
    for name in names(m / "d"):
        os.unlink(m / "d" / name)
    found = in_child(make_all, m / "d", umask=0o077)
    # what the same does on the file system below, without any union
    plain = mkdir(union.base / "plain")
    os.setxattr(plain, DEFAULT_ACL, default)
    assert found == in_child(make_all, plain, umask=0o077)
    for name in found:
        assert xattr(m / "d" / name, ACCESS_ACL) == xattr(plain / name, ACCESS_ACL), name
        assert xattr(m / "d" / name, DEFAULT_ACL) == xattr(plain / name, DEFAULT_ACL), name
    assert xattr(m / "d/dir", DEFAULT_ACL) == default
    union.remount()
    assert xattr(m / "d/dir", DEFAULT_ACL) == default


@pytest.mark.privileged("drops to another user")
def test_acl_decides(union):
    write(union.lower() / "f", "secret", mode=0o600)
    os.setxattr(union.lower() / "f", ACCESS_ACL, acl(6, 0, 0, users=[(1000, 4)], groups=[(2000, 6)]))
    mkdir(union.lower() / "d", mode=0o700)
    os.setxattr(union.lower() / "d", ACCESS_ACL, acl(7, 0, 0, users=[(1000, 7)]))
    write(union.lower() / "d/g", "g", mode=0o666)
    m = union.mount()
    for _ in range(2):
        assert in_child(read, m / "f", uid=1000) == b"secret"
        with raises(errno.EACCES):
            in_child(lib.append, m / "f", b"", uid=1000)
        in_child(lib.append, m / "f", b"", uid=1001, groups=[2000])
        with raises(errno.EACCES):
            in_child(read, m / "f", uid=1002)
        in_child(names, m / "d", uid=1000)
        with raises(errno.EACCES):
            in_child(names, m / "d", uid=1002)
        os.chmod(m / "d/g", 0o640)
        union.remount()
    # taking it away takes effect at once
    os.removexattr(m / "f", ACCESS_ACL)
    with raises(errno.EACCES):
        in_child(read, m / "f", uid=1000)
    os.setxattr(m / "f", ACCESS_ACL, acl(6, 0, 0, users=[(1002, 4)]))
    assert in_child(read, m / "f", uid=1002) == b"secret"


def test_acl_and_mode_follow_each_other(union):
    write(union.lower() / "f", mode=0o640)
    m = union.mount()
    os.setxattr(m / "f", ACCESS_ACL, acl(6, 4, 4, users=[(os.getuid(), 7)], mask=7))
    assert oct(os.stat(m / "f").st_mode & 0o777) == oct(0o674)
    os.chmod(m / "f", 0o600)
    value = xattr(m / "f", ACCESS_ACL)
    assert value == acl(6, 4, 0, users=[(os.getuid(), 7)], mask=0)
    os.setxattr(m / "f", ACCESS_ACL, acl(7, 5, 1))
    assert oct(os.stat(m / "f").st_mode & 0o777) == oct(0o751)
    assert xattr(m / "f", ACCESS_ACL) is None
    os.setxattr(m, DEFAULT_ACL, acl(7, 5, 5))
    assert xattr(m, DEFAULT_ACL) == acl(7, 5, 5)
    os.removexattr(m, DEFAULT_ACL)
    assert xattr(m, DEFAULT_ACL) is None
    with raises(errno.EACCES):
        os.setxattr(m / "f", DEFAULT_ACL, acl(7, 5, 5))
    with raises(errno.EINVAL, errno.EOPNOTSUPP):
        os.setxattr(m / "f", ACCESS_ACL, b"garbage")


def test_create_flags(union):
    write(union.lower() / "f", "low")
    os.symlink("f", union.lower() / "s")
    os.symlink("nowhere", union.lower() / "dangling")
    m = union.mount()
    with raises(errno.EEXIST):
        os.open(m / "f", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    with raises(errno.EEXIST):
        os.open(m / "dangling", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    with raises(errno.ELOOP):
        os.open(m / "s", os.O_NOFOLLOW | os.O_RDONLY)
    with raises(errno.EISDIR):
        os.open(m, os.O_RDWR)
    with raises(errno.ENOTDIR):
        os.open(m / "f", os.O_DIRECTORY | os.O_RDONLY)
    with raises(errno.ENOENT):
        os.open(m / "missing", os.O_WRONLY)
    with opened(m / "f", os.O_CREAT | os.O_RDONLY) as fd:
        assert os.read(fd, 10) == b"low"
    assert names(union.upper) == []
    with opened(m / "dangling", os.O_CREAT | os.O_WRONLY) as fd:
        os.write(fd, b"x")
    assert read(m / "nowhere") == b"x"
    with opened(m / "f", os.O_CREAT | os.O_WRONLY | os.O_TRUNC):
        pass
    assert read(m / "f") == b""
    with opened(m / "ro", os.O_CREAT | os.O_RDWR, 0o000) as fd:
        os.write(fd, b"x")
        assert os.pread(fd, 1, 0) == b"x"
    assert oct(os.stat(m / "ro").st_mode & 0o7777) == oct(0)


def test_existing_names(union):
    write(union.lower() / "f")
    mkdir(union.lower() / "d")
    m = union.mount()
    for make in (os.mkdir, os.mkfifo, lambda p: os.symlink("x", p), os.mknod):
        for name in ("f", "d"):
            with raises(errno.EEXIST):
                make(m / name)


def test_mkdir_modes(union):
    m = union.mount()

    def make():
        os.mkdir(m / "a", 0o1777)
        os.mkdir(m / "b", 0o2755)
        os.mkdir(m / "c", 0o000)
        return [oct(os.stat(m / n).st_mode & 0o7777) for n in "abc"]

    plain = mkdir(union.base / "plain")

    def make_plain():
        os.mkdir(plain / "a", 0o1777)
        os.mkdir(plain / "b", 0o2755)
        os.mkdir(plain / "c", 0o000)
        return [oct(os.stat(plain / n).st_mode & 0o7777) for n in "abc"]

    assert in_child(make, umask=0) == in_child(make_plain, umask=0)


@pytest.mark.root("makes device nodes")
def test_device_nodes_work(union):
    union.mount()
    m = union.point
    os.mknod(m / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(m / "zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    os.mknod(union.lower() / "late", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    union.check_lowers = False
    with opened(m / "zero", os.O_RDONLY) as fd:
        assert os.read(fd, 4) == b"\0\0\0\0"
    with opened(m / "null", os.O_RDWR) as fd:
        assert os.write(fd, b"x") == 1
        assert os.read(fd, 4) == b""
    assert os.lstat(m / "null").st_rdev == os.makedev(1, 3)


def test_fifo_connects_two_processes(union):
    os.mkfifo(union.lower() / "low")
    m = union.mount()
    os.mkfifo(m / "new")
    for name in ("low", "new"):

        def writer(path=m / name):
            with open(path, "wb") as f:
                f.write(b"through the pipe")

        pid = os.fork()
        if pid == 0:
            try:
                writer()
            finally:
                os._exit(0)
        with open(m / name, "rb") as f:
            assert f.read() == b"through the pipe"
        os.waitpid(pid, 0)


def test_socket_connects(union):
    mkdir(union.lower() / "d")
    m = union.mount()
    here = os.getcwd()
    os.chdir(m / "d")
    try:
        server = socket.socket(socket.AF_UNIX)
        server.bind("s")
        server.listen()
        client = socket.socket(socket.AF_UNIX)
        client.connect("s")
        peer, _ = server.accept()
        client.sendall(b"hello")
        assert peer.recv(10) == b"hello"
        for s in (server, client, peer):
            s.close()
    finally:
        os.chdir(here)


def test_creating_changes_the_times_of_the_parent(union):
    mkdir(union.lower() / "d", mtime=OLD)
    m = union.mount()
    before = time.time_ns() - 10**9
    for make in (
        lambda p: write(p),
        os.mkdir,
        os.mkfifo,
        lambda p: os.symlink("x", p),
        lambda p: os.link(m / "d/0", p),
    ):
        os.utime(m / "d", ns=(OLD, OLD))
        make(m / "d" / str(len(names(m / "d"))))
        st = os.stat(m / "d")
        assert st.st_mtime_ns > before and st.st_ctime_ns > before
    os.utime(m / "d", ns=(OLD, OLD))
    os.unlink(m / "d/0")
    assert os.stat(m / "d").st_mtime_ns > before
    st = os.stat(m / "d")
    assert time.time_ns() + 10**9 > st.st_mtime_ns


def test_times_can_be_set_in_every_way(union):
    write(union.lower() / "f", "x", mtime=OLD)
    m = union.mount()
    os.utime(m / "f", ns=(5, 7))
    st = os.stat(m / "f")
    assert (st.st_atime_ns, st.st_mtime_ns) == (5, 7)
    before = time.time_ns() - 10**9
    os.utime(m / "f")
    assert os.stat(m / "f").st_mtime_ns > before
    os.utime(m / "f", ns=(-5 * 10**9 + 1, -7 * 10**9 + 3))
    st = os.stat(m / "f")
    assert (st.st_atime_ns, st.st_mtime_ns) == (-5 * 10**9 + 1, -7 * 10**9 + 3)
    os.symlink("f", m / "s")
    os.utime(m / "s", ns=(11, 13), follow_symlinks=False)
    assert os.lstat(m / "s").st_mtime_ns == 13
    assert os.stat(m / "f").st_mtime_ns == -7 * 10**9 + 3


def test_writing_changes_mtime_and_reading_does_not(union):
    write(union.lower() / "f", "x" * 10, mtime=OLD)
    m = union.mount()
    read(m / "f")
    assert os.stat(m / "f").st_mtime_ns == OLD
    with opened(m / "f", os.O_RDWR) as fd:
        assert os.fstat(fd).st_mtime_ns == OLD
        os.write(fd, b"y")
        assert os.fstat(fd).st_mtime_ns > OLD
    os.utime(m / "f", ns=(OLD, OLD))
    os.truncate(m / "f", 3)
    assert os.stat(m / "f").st_mtime_ns > OLD


@pytest.mark.privileged("drops to another user")
def test_user_without_write_permission_makes_nothing(union):
    mkdir(union.lower() / "d", mode=0o755)
    m = union.mount()
    for make in (os.mkdir, os.mkfifo, lambda p: os.symlink("x", p), write):
        with raises(errno.EACCES):
            in_child(make, m / "d/x", uid=lib.NOBODY)
    with raises(errno.EACCES):
        in_child(lambda: os.open(m / "d", os.O_TMPFILE | os.O_RDWR), uid=lib.NOBODY)
    assert names(union.upper) == []


@pytest.mark.privileged("drops to another user")
def test_supplementary_group_gives_access(union):
    mkdir(union.lower() / "d", gid=2000)
    os.chmod(union.lower() / "d", 0o770)
    m = union.mount()
    in_child(write, m / "d/f", "x", uid=1000, groups=[2000])
    assert os.stat(m / "d/f").st_uid == 1000
    with raises(errno.EACCES):
        in_child(write, m / "d/g", "x", uid=1000, groups=[2001])
