# SPDX-License-Identifier: MIT
"""Layers made by somebody hostile: nothing outside is reached, nothing hangs, nothing dies."""

import errno
import os
import random
import stat
import struct

import plyfs_testlib as lib
import pytest
from plyfs_testlib import append, mkdir, names, read, write

IN_OPEN = 0x20


def touch_everything(m):
    """Look at every object in every way, then change every object."""
    for rel in list(lib.walk_quietly(m)):
        path = os.path.join(m, rel)
        for call in (
            os.lstat,
            os.readlink,
            lib.xattrs,
            lambda p: lib.content_key(p, 0) if stat.S_ISREG(os.lstat(p).st_mode) else None,
            lambda p: os.utime(p, ns=(1, 1), follow_symlinks=False),
            lambda p: os.setxattr(p, "user.t", b"1", follow_symlinks=False),
            lambda p: append(p, b"x") if stat.S_ISREG(os.lstat(p).st_mode) else None,
            lambda p: os.rename(p, p + ".new"),
            lambda p: os.rename(p + ".new", p),
            lambda p: write(os.path.join(p, "added"))
            if stat.S_ISDIR(os.lstat(p).st_mode)
            else None,
        ):
            try:
                call(path)
            except OSError:
                pass


def alive(union):
    if lib.settings.impl == "plyfs":
        assert union.daemon.alive()
    os.statvfs(union.point)


REDIRECTS = [
    b"..",
    b"../..",
    b"../outside",
    b"/..",
    b"/../outside",
    b"/../../../../../../etc",
    b"/d/../../outside",
    b"a/b",
    b"",
    b"/",
    b"//",
    b"//d",
    b"/d/",
    b"/d//sub",
    b".",
    b"/.",
    b"/link",
    b"/link/sub",
    b"link",
    b"/file",
    b"file",
    b"missing",
    b"/missing/too",
    b"\xff\xfe",
    b"with\0nul",
    b"/" + b"x" * 300,
    b"x" * 256,
    b"/" + b"/".join([b"d"] * 2000),
    b"/" + b"y" * 3000,
    b"new",
    b"/new",
]


@pytest.mark.root("redirects are followed only with trusted xattrs")
@pytest.mark.parametrize("value", REDIRECTS, ids=lambda v: repr(v[:24]))
def test_redirect(union, value):
    """Whatever it says, it stays inside the layers and follows no symlink."""
    outside = write(union.base / "outside/secret", "SECRET").parent
    write(outside / "sub/secret", "SECRET")
    write(union.lower(1) / "d/sub/f", "x")
    write(union.lower(1) / "file", "x")
    os.symlink(outside, union.lower(1) / "link")
    try:
        mkdir(union.lower(0) / "new", xattrs={union.prefix + "redirect": value})
    except OSError as e:
        pytest.skip(f"the file system does not hold this value: {e}")
    union.check_kernel = False
    m = union.mount()
    try:
        found = names(m / "new")
        assert "secret" not in found
        assert not lib.exists(m / "new/secret")
        assert not lib.exists(m / "new/passwd")
    except OSError as e:
        assert e.errno in (errno.EIO, errno.EINVAL, errno.ESTALE, errno.EPERM, errno.ENOENT,
                           errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.ERANGE,
                           errno.EACCES), e
    touch_everything(m)
    assert read(outside / "secret") == b"SECRET"
    assert names(outside) == ["secret", "sub"]
    alive(union)


@pytest.mark.root("large xattrs of tmpfs")
def test_redirect_of_64_kib(new_union, scratch):
    with lib.tmpfs(scratch) as fs:
        union = new_union("u", fs)
        write(union.lower(1) / "d/f")
        long = b"/" + b"/".join([b"d" * 200] * 320)
        mkdir(union.lower(0) / "new", xattrs={union.prefix + "redirect": long})
        mkdir(union.lower(0) / "new2", xattrs={union.prefix + "redirect": b"x" * 65536})
        union.check_kernel = False
        m = union.mount()
        touch_everything(m)
        alive(union)
        union.close()


MARKS = ["opaque", "redirect", "origin", "upper", "impure", "nlink", "metacopy", "protattr", "uuid",
         "whiteout", "overlay.opaque", "overlay.", "", "unknown", "x" * 200]


@pytest.mark.parametrize("seed", range(12))
def test_marks_of_any_content(union, seed):
    """Every overlay xattr with random bytes of any length on every object of every layer."""
    r = random.Random(seed)

    def value():
        kind = r.randrange(6)
        if kind == 0:
            return r.choice([b"", b"y", b"x", b"n", b"ai", b"U+1", b"L-999999999999", b"U", b"+"])
        if kind == 1:
            return r.randbytes(r.randrange(300))
        if kind == 2:  # begins like a file handle of the kernel's overlayfs
            n = r.choice([0, 5, 21, 29, 33, 255])
            return struct.pack("BBBBB", r.choice([0, 1, 255]), 0xFB, n, r.randrange(256),
                               r.randrange(256)) + r.randbytes(r.randrange(60))
        if kind == 3:
            return b"/" * r.randrange(1, 50)
        if kind == 4:
            return r.choice([b"..", b"/..", b"d0", b"/d0/f", b"/d1"])
        return bytes([r.randrange(256)]) * r.randrange(2000)

    layers = [union.lower(0), union.lower(1), union.upper]
    for layer in layers:
        for d in range(4):
            write(layer / f"d{d}/f", "x" * r.randrange(3))
            mkdir(layer / f"d{d}/sub")
            os.mkfifo(layer / f"d{d}/p")
            if r.random() < 0.5:
                os.symlink("f", layer / f"d{d}/s")
    for layer in layers:
        for rel in list(lib.walk(layer)):
            for _ in range(r.randrange(4)):
                try:
                    os.setxattr(layer / rel, union.prefix + r.choice(MARKS), value(),
                                follow_symlinks=False)
                except OSError:
                    pass
    union.check_kernel = False
    union.snapshot_lowers()
    m = union.mount()
    touch_everything(m)
    alive(union)


def test_symlinks_where_directories_are_expected(union):
    outside = write(union.base / "outside/secret", "SECRET").parent
    write(union.lower(1) / "a/f")
    write(union.lower(1) / "b/f")
    os.symlink(outside, union.lower(0) / "a")
    os.symlink(outside, union.upper / "b")
    os.symlink("/", union.lower(1) / "root")
    m = union.mount()
    assert os.readlink(m / "a") == str(outside)
    os.unlink(m / "a")
    os.mkdir(m / "a")
    write(m / "a/new")
    os.unlink(m / "b")
    os.mkdir(m / "b")
    assert names(m / "b") == []
    touch_everything(m / "a")
    assert names(outside) == ["secret"]


def test_directory_swapped_for_a_symlink_while_mounted(union):
    """A lower directory that becomes a symlink to the outside is never followed."""
    outside = write(union.base / "outside/f", "SECRET").parent
    write(outside / "other", "SECRET")
    write(union.lower() / "d/sub/f", "inside")
    union.check_lowers = union.check_kernel = union.check_work = False
    m = union.mount()
    assert read(m / "d/sub/f") == b"inside"
    os.rename(union.lower() / "d/sub", union.base / "taken")
    os.symlink(outside, union.lower() / "d/sub")
    for name in ("f", "other"):
        try:
            assert read(m / "d/sub" / name) != b"SECRET"
        except OSError as e:
            assert e.errno in (errno.ESTALE, errno.EIO, errno.ENOENT, errno.ELOOP, errno.ENOTDIR)
    try:
        append(m / "d/sub/f", b"+")
    except OSError:
        pass
    assert read(outside / "f") == b"SECRET"
    alive(union)


class Watch:
    """Counts opens of a file, by whomever."""

    def __init__(self, *paths):
        self.fd = lib.check(lib.libc.inotify_init1(os.O_NONBLOCK))
        for path in paths:
            lib.check(lib.libc.inotify_add_watch(self.fd, os.fsencode(path), IN_OPEN))

    def opens(self):
        try:
            return len(os.read(self.fd, 65536)) // 16
        except BlockingIOError:
            return 0
        finally:
            os.close(self.fd)


def change_without_opening(path):
    os.lstat(path)
    lib.xattrs(path)
    os.chmod(path, 0o640)
    os.utime(path, ns=(1, 1))
    os.rename(path, str(path) + ".moved")
    os.link(str(path) + ".moved", path)
    os.unlink(path)


def test_fifos_are_never_opened(union):
    os.mkfifo(union.lower() / "p")
    union.check_kernel = False
    m = union.mount()
    watch = Watch(union.lower() / "p")
    names(m)
    change_without_opening(m / "p")
    assert watch.opens() == 0


@pytest.mark.root("makes device nodes")
def test_devices_are_never_opened(union):
    for name, kind, dev in (
        ("c", stat.S_IFCHR, os.makedev(1, 3)),
        ("none", stat.S_IFCHR, os.makedev(222, 222)),
        ("b", stat.S_IFBLK, os.makedev(7, 250)),
        ("s", stat.S_IFSOCK, 0),
    ):
        os.mknod(union.lower() / name, kind | 0o600, dev)
    m = union.mount()
    watch = Watch(*[union.lower() / n for n in ("c", "none", "b", "s")])
    for name in ("c", "none", "b", "s"):
        change_without_opening(m / name)
    assert watch.opens() == 0


def test_names_of_255_bytes_deeper_than_path_max(union):
    """5000 bytes of path: reached through directory fds, as any tree can be."""
    name = "n" * 255
    fd = os.open(union.lower(), os.O_RDONLY)
    for _ in range(20):
        os.mkdir(name, dir_fd=fd)
        new = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = new
    leaf = os.open("leaf", os.O_CREAT | os.O_WRONLY, dir_fd=fd)
    os.write(leaf, b"deep")
    os.close(leaf)
    os.close(fd)
    union.check_lowers = union.check_kernel = False
    m = union.mount()
    fd = os.open(m, os.O_RDONLY)
    for _ in range(20):
        new = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = new
    try:
        leaf = os.open("leaf", os.O_RDWR | os.O_APPEND, dir_fd=fd)
        os.write(leaf, b"er")
        assert os.pread(leaf, 10, 0) == b"deeper"
        os.close(leaf)
        os.rename("leaf", "moved", src_dir_fd=fd, dst_dir_fd=fd)
        assert os.listdir(fd) == ["moved"]
        os.unlink("moved", dir_fd=fd)
    finally:
        os.close(fd)
    assert union.mounted.daemon is None or union.mounted.daemon.alive()


def test_deep_nesting(union):
    fd = os.open(union.lower(), os.O_RDONLY)
    for _ in range(400):
        os.mkdir("d", dir_fd=fd)
        new = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = new
    os.close(os.open("leaf", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)
    m = union.mount()
    deep = m.joinpath(*["d"] * 400)
    append(deep / "leaf", b"x")
    assert read(deep / "leaf") == b"x"


def test_whiteouts_everywhere(union):
    """Also where a directory or the target of a symlink would be."""
    for layer in (union.lower(0), union.upper):
        lib.make_whiteout(layer / "w")
        lib.make_whiteout(layer / "d/w")
        os.symlink("w", layer / "d/s") if layer == union.upper else None
    m = union.mount()
    assert names(m) == ["d"]
    assert names(m / "d") == ["s"]
    assert not lib.exists(m / "d/s/x")
    write(m / "d/w", "made")
    assert read(m / "d/s") == b"made"


def test_links_between_layers_and_work_are_harmless(union):
    """A file of upper that is linked from outside is changed in place, as on any file system."""
    write(union.upper / "f", "x")
    os.link(union.upper / "f", union.base / "link")
    m = union.mount()
    append(m / "f", b"y")
    assert read(union.base / "link") == b"xy"
