# SPDX-License-Identifier: MIT
"""Full disks, quotas, unreadable data, too many files: one call fails, everything else stays."""

import errno
import os
import resource
import shutil
import subprocess

import plyfs_testlib as lib
import pytest
from plyfs_testlib import (
    KIB,
    MIB,
    append,
    exists,
    is_whiteout,
    mkdir,
    names,
    opened,
    raises,
    read,
    work_litter,
    write,
)

FILESYSTEMS = pytest.mark.privileged("mounts file systems")


def free(path):
    s = os.statvfs(path)
    return s.f_bfree * s.f_frsize


def settle(union, fs, before, slack=256 * KIB):
    """The space is back and workdir is clean: at once or soon, without a remount."""
    lib.wait_for(lambda: free(fs) >= before - slack, 5, "free space")
    assert not work_litter(union.work)


@FILESYSTEMS
@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_no_space_in_copy_up(new_union, scratch, kind, write_through):
    if kind == "ext4" and lib.settings.level != "root":
        manager = lib.tmpfs(scratch, size="12m")
    elif kind == "ext4":
        manager = lib.loop_filesystem(scratch, "ext4", 16 * MIB, ["-m", "0"])
    else:
        manager = lib.tmpfs(scratch, size="8m")
    with manager as fs:
        union = new_union("u", scratch)
        union.upper, union.work = mkdir(fs / "upper"), mkdir(fs / "work")
        write(union.lower() / "d/big", os.urandom(20 * MIB), mode=0o640, xattrs={"user.a": b"1"})
        write(union.lower() / "d/small", b"small")
        m = union.mount()
        append(m / "d/small", b"+")
        tree_before, free_before = lib.tree(m), free(fs)
        for change in (
            lambda: append(m / "d/big", b"x"),
            lambda: os.chmod(m / "d/big", 0o600),
            lambda: os.truncate(m / "d/big", 19 * MIB),
            lambda: os.rename(m / "d/big", m / "moved"),
            lambda: os.link(m / "d/big", m / "linked"),
            lambda: os.setxattr(m / "d/big", "user.b", b"2"),
        ):
            with raises(errno.ENOSPC):
                change()
            settle(union, fs, free_before)
            assert not exists(union.upper / "d/big")
        lib.assert_same_tree(tree_before, lib.tree(m), "before", "after")
        # what fits still works
        append(m / "d/small", b"+")
        with opened(m / "d/big", os.O_WRONLY | os.O_TRUNC):
            pass
        assert read(m / "d/big") == b""
        union.close()


@FILESYSTEMS
def test_no_space_in_write(new_union, scratch, write_through):
    with lib.tmpfs(scratch, size="4m") as fs:
        union = new_union("u", scratch)
        union.upper, union.work = mkdir(fs / "upper"), mkdir(fs / "work")
        write(union.lower() / "f", "x")
        m = union.mount()
        with opened(m / "f", os.O_WRONLY) as fd:
            with raises(errno.ENOSPC):
                for _ in range(100):
                    os.write(fd, b"y" * 100000)
        with raises(errno.ENOSPC):
            with opened(m / "f", os.O_WRONLY) as fd:
                lib.fallocate(fd, 0, 0, 100 * MIB)
        os.truncate(m / "f", 0)
        write(m / "g", b"z" * MIB)
        assert read(m / "g") == b"z" * MIB
        union.close()


@FILESYSTEMS
def test_no_inodes(new_union, scratch, write_through):
    """Every kind of change fails with ENOSPC and changes nothing."""
    with lib.tmpfs(scratch, inodes=40) as fs:
        union = new_union("u", scratch)
        union.upper, union.work = mkdir(fs / "upper"), mkdir(fs / "work")
        for i in range(4):
            write(union.lower() / f"d{i}/f", "x")
            write(union.lower() / f"d{i}/g", "x")
        m = union.mount()
        os.unlink(m / "d0/g")
        append(m / "d1/f", b"+")
        os.mkdir(m / "pure")
        with raises(errno.ENOSPC):
            for i in range(60):
                write(m / "pure" / str(i))
        before = lib.tree(m, times=False)
        for what, change in {
            "create": lambda: write(m / "new"),
            "mkdir": lambda: os.mkdir(m / "new"),
            "symlink": lambda: os.symlink("x", m / "new"),
            "copy-up of a file": lambda: append(m / "d0/f", b"x"),
            "copy-up of a directory": lambda: os.chmod(m / "d2", 0o700),
            "rename of a lower file": lambda: os.rename(m / "d0/f", m / "new"),
            "link": lambda: os.link(m / "d0/f", m / "new"),
            "unlink below a lower directory": lambda: os.unlink(m / "d3/f"),
        }.items():
            try:
                change()
            except OSError as e:
                assert e.errno == errno.ENOSPC, f"{what}: {e}"
            else:
                raise AssertionError(f"{what} succeeded")
            lib.assert_same_tree(before, lib.tree(m, times=False), f"before {what}", "after")
            assert not work_litter(union.work), what
        # removing what is in upper gives room again
        shutil.rmtree(m / "pure")
        append(m / "d0/f", b"+")
        os.unlink(m / "d3/f")
        assert is_whiteout(union.upper / "d3/f")
        union.close()


@pytest.mark.root("makes a file system with a quota")
def test_quota_exceeded_in_copy_up(new_union, scratch, write_through):
    with lib.loop_filesystem(scratch, "btrfs", 300 * MIB) as fs:
        volume = fs / "volume"

        def btrfs(*args):
            subprocess.run(["btrfs", *args], check=True, capture_output=True, timeout=60)

        btrfs("quota", "enable", fs)
        btrfs("subvolume", "create", volume)
        btrfs("qgroup", "limit", "6M", volume)
        union = new_union("u", scratch)
        union.upper, union.work = mkdir(volume / "upper"), mkdir(volume / "work")
        write(union.lower() / "d/big", os.urandom(20 * MIB))
        write(union.lower() / "d/small", b"small")
        m = union.mount()
        append(m / "d/small", b"+")
        before = lib.tree(m)
        for change in (
            lambda: append(m / "d/big", b"x"),
            lambda: os.rename(m / "d/big", m / "moved"),
        ):
            with raises(errno.EDQUOT):
                change()
            assert not work_litter(union.work)
            assert not exists(union.upper / "d/big")
        lib.assert_same_tree(before, lib.tree(m), "before", "after")
        append(m / "d/small", b"+")
        union.close()


@pytest.mark.root("damages a file system of its own")
def test_unreadable_data_in_copy_up(new_union, scratch):
    """A lower layer on btrfs with a flipped bit: reading gives EIO there, and so does copy-up."""
    image = scratch / "btrfs.img"
    point = mkdir(scratch / "btrfs")
    with open(image, "wb") as f:
        f.truncate(200 * MIB)
    subprocess.run(["mkfs.btrfs", "-q", "-f", image], check=True, capture_output=True)
    marker = os.urandom(64)
    subprocess.run(["mount", "-o", "loop", image, point], check=True)
    try:
        write(point / "l/d/bad", os.urandom(3 * MIB) + marker + os.urandom(MIB))
        write(point / "l/d/good", b"good")
    finally:
        subprocess.run(["umount", point], check=True)
    data = image.read_bytes()
    at = data.find(marker)
    assert at > 0 and data.find(marker, at + 1) < 0
    with open(image, "r+b") as f:
        f.seek(at)
        f.write(bytes(b ^ 0xFF for b in marker))
    del data
    subprocess.run(["mount", "-o", "loop,ro", image, point], check=True)
    try:
        with raises(errno.EIO):
            read(point / "l/d/bad")
        union = new_union()
        union.use_lower(0, point / "l")
        union.check_lowers = union.check_kernel = False
        m = union.mount()
        for change in (
            lambda: append(m / "d/bad", b"x"),
            lambda: os.chmod(m / "d/bad", 0o600),
            lambda: os.rename(m / "d/bad", m / "moved"),
        ):
            with raises(errno.EIO):
                change()
            assert not work_litter(union.work)
            assert not exists(union.upper / "d/bad")
            assert names(m / "d") == ["bad", "good"]
        with raises(errno.EIO):
            read(m / "d/bad")
        append(m / "d/good", b"+")
        assert read(m / "d/good") == b"good+"
        os.unlink(m / "d/bad")
        assert names(m / "d") == ["good"]
        union.close()
    finally:
        subprocess.run(["umount", "-l", point], check=True)


# --- many files -----------------------------------------------------------------------------------


def lower_limit(union, files):
    """Mount with this limit of open files for the daemon."""

    def limit():
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))

    mounted = lib.mount_plyfs(
        union.lowers, union.upper, union.work, union.point, preexec_fn=limit
    )
    union.mounts.append(mounted)
    union.mounted = mounted
    union.last_lowers, union.last_upper = union.lowers, union.upper
    union.snapshot_lowers()
    return mounted


@pytest.mark.plyfs_only("about the daemon's open files")
def test_5000_open_files(union):
    for d in range(50):
        for i in range(100):
            write(union.lower() / f"d{d}/f{i}", f"{d}/{i}")
    m = union.mount()
    fds = []
    try:
        for d in range(50):
            for i in range(100):
                fds.append(os.open(m / f"d{d}/f{i}", os.O_RDWR if i % 10 == 0 else os.O_RDONLY))
        for k, fd in enumerate(fds):
            assert os.pread(fd, 10, 0) == f"{k // 100}/{k % 100}".encode()
    finally:
        for fd in fds:
            os.close(fd)


@pytest.mark.plyfs_only("about the daemon's open files")
@pytest.mark.parametrize("files", [64, 256])
def test_few_file_descriptors(union, files):
    """What the limit does not allow fails with EMFILE for that call; nothing else does."""
    for d in range(40):
        for i in range(50):
            write(union.lower() / f"d{d}/sub/f{i}", f"{d}/{i}")
    mounted = lower_limit(union, files)
    m = union.point
    assert sum(1 for _ in lib.walk(m)) == 1 + 80 + 2000
    fds, refused = [], 0
    try:
        for d in range(40):
            for i in range(50):
                try:
                    fd = os.open(m / f"d{d}/sub/f{i}", os.O_RDWR if i % 10 == 0 else os.O_RDONLY)
                    fds.append((fd, f"{d}/{i}".encode()))
                except OSError as e:
                    assert e.errno in (errno.EMFILE, errno.ENFILE), e
                    refused += 1
        for fd, content in fds:
            try:
                assert os.pread(fd, 10, 0) == content
            except OSError as e:
                assert e.errno in (errno.EMFILE, errno.ENFILE), e
        assert mounted.daemon.alive()
        assert len(mounted.daemon.fds()) <= files
    finally:
        for fd, _ in fds:
            os.close(fd)
    # with the files closed all works again
    for d in range(40):
        assert read(m / f"d{d}/sub/f1") == f"{d}/1".encode()
    append(m / "d5/sub/f5", b"+")
    os.unlink(m / "d6/sub/f6")
    write(m / "d7/sub/new", "x")
    assert names(m / "d7/sub") == sorted([f"f{i}" for i in range(50)] + ["new"])


@pytest.mark.plyfs_only("about the daemon's open files")
def test_deep_trees_with_few_file_descriptors(union):
    deep = union.lower()
    for i in range(100):
        deep = deep / f"level{i}"
    write(deep / "f", "deep")
    lower_limit(union, 64)
    rel = deep.relative_to(union.lower())
    assert read(union.point / rel / "f") == b"deep"
    append(union.point / rel / "f", b"er")
    assert read(union.upper / rel / "f") == b"deeper"


@pytest.mark.plyfs_only("about the daemon's open files")
def test_many_open_directories(union):
    for d in range(1500):
        write(union.lower() / f"d{d}/f")
    m = union.mount()
    fds = [os.open(m / f"d{d}", os.O_RDONLY) for d in range(1500)]
    try:
        for fd in fds:
            assert sorted(e[3] for e in lib.getdents(fd)) == [".", "..", "f"]
            os.stat("f", dir_fd=fd)
    finally:
        for fd in fds:
            os.close(fd)


# --- a layer that is changed behind our back ------------------------------------------------------


def try_everything(m, paths):
    """Every call may fail; none may hang, and the daemon stays."""
    for rel in paths:
        path = m / rel
        for call in (
            lambda p: os.lstat(p),
            lambda p: os.listdir(p),
            lambda p: read(p),
            lambda p: xattrs_quietly(p),
            lambda p: os.chmod(p, 0o755),
            lambda p: append(p, b"x"),
            lambda p: os.rename(p, str(p) + ".moved"),
            lambda p: os.rename(str(p) + ".moved", p),
            lambda p: os.link(p, str(p) + ".link"),
            lambda p: write(p / "new"),
            lambda p: os.unlink(p),
            lambda p: os.rmdir(p),
            lambda p: os.mkdir(p),
        ):
            try:
                call(path)
            except OSError as e:
                assert e.errno in (
                    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ESTALE, errno.EIO,
                    errno.ENOTEMPTY, errno.EEXIST, errno.EXDEV, errno.EPERM, errno.EACCES,
                    errno.ELOOP, errno.EINVAL, errno.EBUSY,
                ), e


def xattrs_quietly(path):
    return lib.xattrs(path)


def remove_lower(union):
    shutil.rmtree(union.lower() / "d")
    os.unlink(union.lower() / "top")


def lower_becomes_file(union):
    shutil.rmtree(union.lower() / "d")
    write(union.lower() / "d", "file")


def lower_becomes_symlink(union):
    shutil.rmtree(union.lower() / "d")
    os.symlink(union.base / "outside", union.lower() / "d")


def remove_upper(union):
    shutil.rmtree(union.upper / "d")


def upper_becomes_file(union):
    shutil.rmtree(union.upper / "d")
    write(union.upper / "d", "file")


def upper_becomes_symlink(union):
    shutil.rmtree(union.upper / "d")
    os.symlink(union.base / "outside", union.upper / "d")


def remove_work(union):
    shutil.rmtree(union.work / "work")


def empty_lower_files(union):
    os.truncate(union.lower() / "d/f", 0)
    os.truncate(union.lower() / "d/sub/g", 3)


def names_appear_in_upper(union):
    write(union.upper / "d/f.moved", "intruder")
    write(union.upper / "d/new", "intruder")
    mkdir(union.upper / "d/sub.moved")


@pytest.mark.parametrize("seen", ["cold", "warm"])
@pytest.mark.parametrize(
    "harm",
    [
        remove_lower,
        lower_becomes_file,
        lower_becomes_symlink,
        remove_upper,
        upper_becomes_file,
        upper_becomes_symlink,
        remove_work,
        empty_lower_files,
        names_appear_in_upper,
    ],
    ids=lambda f: f.__name__,
)
def test_layer_changed_behind_our_back(union, harm, seen):
    write(union.lower() / "d/f", b"f" * 100000)
    write(union.lower() / "d/sub/g", b"g" * 100000)
    write(union.lower() / "top", "top")
    write(union.upper / "d/up", "up")
    secret = write(union.base / "outside/f", "OUTSIDE").parent
    write(secret / "sub/g", "OUTSIDE")
    before = lib.tree(secret, layer=True)
    union.check_lowers = union.check_kernel = union.check_work = False
    m = union.mount()
    fds = []
    if seen == "warm":
        lib.tree(m)
        fds = [os.open(m / p, os.O_RDONLY) for p in ("d", "d/f", "d/sub", "d/sub/g")]
    harm(union)
    paths = ["d", "d/f", "d/sub", "d/sub/g", "top"]
    if seen == "cold" and "symlink" in harm.__name__:
        # d is a symlink from the start: whoever walks through it leaves the mount by himself
        paths = ["top"]
    try:
        for fd in fds:
            try:
                os.fstat(fd)
                os.fchmod(fd, 0o700)
                os.pread(fd, 100, 0)
                os.listdir(fd)
            except OSError:
                pass
        try_everything(m, paths)
    finally:
        for fd in fds:
            os.close(fd)
    # nothing outside of the layers was shown, read or changed
    lib.assert_same_tree(before, lib.tree(secret, layer=True), "outside before", "outside after")
    if lib.settings.impl == "plyfs":
        assert union.daemon.alive()
    assert isinstance(os.listdir(m), list)


@pytest.mark.plyfs_only("how the daemon copies")
def test_lower_file_that_shrinks_while_it_is_copied(union):
    """The copy ends; it does not wait for data that will never come."""
    write(union.lower() / "f", b"x" * (64 * MIB))
    union.check_lowers = union.check_kernel = False
    m = union.mount()
    os.stat(m / "f")
    pid = os.fork()
    if pid == 0:
        try:
            append(m / "f", b"y")
        finally:
            os._exit(0)
    os.truncate(union.lower() / "f", MIB)
    os.waitpid(pid, 0)
    assert union.daemon.alive()
    names(m)
