# SPDX-License-Identifier: MIT
"""nfs_export=on: file handles of the mount lead to their objects for as long as these exist.

name_to_handle_at(2) makes a handle, open_by_handle_at(2) opens what it leads to: after the kernel
has forgotten the object (drop_caches), after an umount and a new mount by another server, after
copy-up and renames; and ESTALE when the object is gone. Run with --impl=kernel they say the same of
the kernel's overlayfs.
"""

import contextlib
import ctypes
import errno
import os
import random
import stat
import struct
import threading
from pathlib import Path

import plyfs_testlib as lib
import pytest

pytestmark = pytest.mark.root("opening by handle takes CAP_DAC_READ_SEARCH")

NFS = "index=on,nfs_export=on"
REDIRECT = NFS + ",redirect_dir=on"
READ_ONLY = "nfs_export=on,redirect_dir=nofollow"
AT_HANDLE_FID, AT_HANDLE_CONNECTABLE = 0x200, 0x002
MAX_HANDLE = 128


class FileHandle(ctypes.Structure):
    _fields_ = [
        ("bytes", ctypes.c_uint),
        ("type", ctypes.c_int),
        ("data", ctypes.c_ubyte * MAX_HANDLE),
    ]


def encode(path, flags=0):
    """The handle of an object, as (type, bytes)."""
    fh, mount_id = FileHandle(bytes=MAX_HANDLE), ctypes.c_int()
    lib.check(
        lib.libc.name_to_handle_at(
            lib.AT_FDCWD, os.fsencode(path), ctypes.byref(fh), ctypes.byref(mount_id), flags
        )
    )
    return fh.type, bytes(fh.data[: fh.bytes])


def open_handle(point, handle, flags=os.O_RDONLY):
    kind, data = handle
    fh = FileHandle(bytes=len(data), type=kind)
    ctypes.memmove(fh.data, data, len(data))
    mount = os.open(point, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return lib.check(lib.libc.open_by_handle_at(mount, ctypes.byref(fh), flags | os.O_CLOEXEC))
    finally:
        os.close(mount)


@contextlib.contextmanager
def opened(point, handle, flags=os.O_RDONLY):
    fd = open_handle(point, handle, flags)
    try:
        yield fd
    finally:
        os.close(fd)


def is_stale(point, handle):
    with lib.raises(errno.ESTALE), opened(point, handle, os.O_PATH):
        pass


def looks_stale(point, handle):
    try:
        is_stale(point, handle)
    except AssertionError:
        return False
    return True


def drop_caches():
    """The kernel forgets what nobody uses: an inode it has already needs no decoding."""
    os.sync()
    for _ in range(2):
        with open("/proc/sys/vm/drop_caches", "w", encoding="ascii") as f:
            f.write("3")


class Known:
    """What a handle leads to, noted when it was made."""

    def __init__(self, path):
        st = os.lstat(path)
        self.handle = encode(path)
        self.number = st.st_ino
        self.type = stat.S_IFMT(st.st_mode)
        self.data = lib.read(path) if stat.S_ISREG(st.st_mode) else None
        self.target = os.readlink(path) if stat.S_ISLNK(st.st_mode) else None

    def check(self, point, path=None, data=None):
        """The handle leads to the object; a directory's, and a file's once it was seen, to @path."""
        data = self.data if data is None else data
        flags = os.O_RDONLY if stat.S_ISREG(self.type) or stat.S_ISDIR(self.type) else os.O_PATH
        with opened(point, self.handle, flags) as fd:
            st = os.fstat(fd)
            assert (st.st_ino, stat.S_IFMT(st.st_mode)) == (self.number, self.type)
            if data is not None:
                assert os.pread(fd, 1 << 16, 0) == data
            if self.target is not None:
                assert os.readlink("", dir_fd=fd) == self.target
            if path is not None:
                assert os.path.samestat(os.lstat(path), st)
                assert os.readlink(f"/proc/self/fd/{fd}") == os.fspath(path)


@pytest.fixture
def union(union):
    union.check_work = False  # the index is no litter
    return union


def everywhere(union, check):
    """Right away, with cold caches, and by the next server."""
    check()
    drop_caches()
    check()
    union.remount()
    check()
    drop_caches()
    check()


def make_layers(union):
    """Objects of upper, of lower, and merged directories."""
    low, up = union.lower(), union.upper
    lib.write(low / "file", b"lower")
    lib.write(low / "merged/low", b"low")
    lib.write(low / "merged/sub/deep", b"deep")
    lib.write(low / "dir/inner/leaf", b"leaf")
    os.symlink("to", low / "link")
    os.mkfifo(low / "fifo")
    lib.write(up / "new", b"new")
    lib.write(up / "updir/inner/x", b"x")
    os.symlink("away", up / "uplink")
    lib.write(up / "merged/up", b"up")


ALL = [
    "file",
    "link",
    "fifo",
    "merged",
    "merged/low",
    "merged/up",
    "merged/sub",
    "merged/sub/deep",
    "dir",
    "dir/inner",
    "dir/inner/leaf",
    "new",
    "updir",
    "updir/inner",
    "updir/inner/x",
    "uplink",
]


# --- objects that are where they were -------------------------------------------------------------


def test_all_kinds_of_objects(union):
    make_layers(union)
    point = union.mount(NFS)
    known = {name: Known(point / name) for name in ALL}

    def check():
        for name, k in known.items():
            k.check(point, point / name if stat.S_ISDIR(k.type) else None)

    everywhere(union, check)


def test_handles_are_the_same_after_a_remount(union):
    make_layers(union)
    point = union.mount(NFS)
    before = {name: encode(point / name) for name in ALL}
    union.remount()
    assert {name: encode(point / name) for name in ALL} == before
    drop_caches()
    assert {name: encode(point / name) for name in ALL} == before


def test_the_root(union):
    make_layers(union)
    point = union.mount(NFS)
    root = Known(point)
    everywhere(union, lambda: root.check(point, point))


def test_handles_for_identification_only(union):
    make_layers(union)
    point = union.mount(NFS)
    before = [encode(point / name, AT_HANDLE_FID) for name in ALL]
    assert len(set(before)) == len(ALL)
    union.remount()
    assert [encode(point / name, AT_HANDLE_FID) for name in ALL] == before


def test_without_nfs_export_no_handle_can_be_opened(union):
    make_layers(union)
    point = union.mount("index=on")
    with lib.raises(errno.EOPNOTSUPP, errno.ESTALE), opened(point, encode(point / "file")):
        pass
    # to identify an object is possible all the same
    assert encode(point / "file", AT_HANDLE_FID) != encode(point / "new", AT_HANDLE_FID)


def test_a_read_only_union(union):
    make_layers(union)
    point = union.mount(READ_ONLY, upper=False, lowers=[union.upper, union.lower()])
    known = {name: Known(point / name) for name in ALL}

    def check():
        for name, k in known.items():
            k.check(point, point / name if stat.S_ISDIR(k.type) else None)

    everywhere(union, check)


def test_a_read_only_union_that_follows_redirects_cannot_be_exported(union):
    """As with the kernel, nfs_export gives way."""
    make_layers(union)
    point = union.mount("nfs_export=on", upper=False, lowers=[union.upper, union.lower()])
    with lib.raises(errno.EOPNOTSUPP, errno.ESTALE), opened(point, encode(point / "file")):
        pass


def test_layers_on_several_filesystems(union, scratch):
    with lib.loop_filesystem(scratch, "ext4", 64 * lib.MIB) as ext4, lib.tmpfs(scratch) as tmpfs:
        for n, where in enumerate((ext4, tmpfs)):
            union.use_lower(n, where / "layer")
            (where / "layer").mkdir()
            lib.write(where / f"layer/only{n}/file", b"%d" % n)
            lib.write(where / f"layer/merged/of{n}", b"of %d" % n)
            lib.write(where / f"layer/sub{n}/merged/x", b"x%d" % n)
        lib.write(union.upper / "merged/up", b"up")
        point = union.mount(NFS + ",xino=on")
        paths = [Path(d) / f for d, _, files in os.walk(point) for f in (".", *files)]
        known = {p: Known(p) for p in paths}
        lib.append(point / "only1/file", b" and more")
        os.chmod(point / "sub0/merged", 0o700)
        known[point / "only1/file"].data += b" and more"

        def check():
            for p, k in known.items():
                k.check(point, p if stat.S_ISDIR(k.type) else None)

        everywhere(union, check)
        union.close()


def test_upward_from_a_directory(union):
    lib.write(union.lower() / "a/b/c/d/file", b"")
    lib.write(union.upper / "a/b/other/file", b"")
    point = union.mount(NFS)
    low, up = encode(point / "a/b/c/d"), encode(point / "a/b/other")
    union.remount()
    for handle, path in ((low, "a/b/c/d"), (up, "a/b/other")):
        drop_caches()
        with opened(point, handle) as fd:
            seen = []
            for _ in Path(path).parts:
                here = os.open("..", os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
                os.dup2(here, fd)
                os.close(here)
                seen.append(os.readlink(f"/proc/self/fd/{fd}"))
        above = [os.fspath(p) for p in (point / path).parents][: len(seen)]
        assert seen == above


@pytest.mark.plyfs_only("the kernel's overlayfs makes none")
def test_connectable_handles(union):
    """The handle of a file that holds its directory too leads to a file whose path is known."""
    make_layers(union)
    point = union.mount(NFS)
    names = ("dir/inner/leaf", "updir/inner/x", "merged/low", "file")
    try:
        handles = {name: encode(point / name, AT_HANDLE_CONNECTABLE) for name in names}
    except OSError as e:
        assert e.errno == errno.EINVAL
        pytest.skip("the kernel makes no connectable handles: Linux 6.13 does")
    union.remount()
    for name, handle in handles.items():
        drop_caches()
        with opened(point, handle) as fd:
            assert os.readlink(f"/proc/self/fd/{fd}") == os.fspath(point / name)


def test_a_file_that_is_opened_by_handle_is_a_whole_file(union):
    """It can be written, and its directory listed, changed and renamed meanwhile."""
    lib.write(union.lower() / "d/file", b"lower")
    point = union.mount(NFS)
    handle = encode(point / "d/file")
    union.remount()
    drop_caches()
    with opened(point, handle, os.O_RDWR) as fd:
        os.pwrite(fd, b"LOW", 0)
        assert lib.read(point / "d/file") == b"LOWer"
        assert lib.names(point / "d") == ["file"]
        os.rename(point / "d/file", point / "moved")
        os.pwrite(fd, b"er", 3)
        assert lib.read(point / "moved") == b"LOWer"
        os.unlink(point / "moved")
        assert os.fstat(fd).st_nlink == 0
        assert os.pread(fd, 9, 0) == b"LOWer"
    is_stale(point, handle)


# --- copy-up --------------------------------------------------------------------------------------


def test_copy_up_does_not_change_a_handle(union):
    make_layers(union)
    point = union.mount(NFS)
    names = ("file", "merged/low", "merged/sub", "dir", "dir/inner/leaf", "link", "fifo")
    known = {name: Known(point / name) for name in names}
    for name in names:
        os.chown(point / name, 1, 1, follow_symlinks=False)
    lib.append(point / "file", b"+")
    lib.append(point / "dir/inner/leaf", b"+")
    known["file"].data += b"+"
    known["dir/inner/leaf"].data += b"+"
    assert os.lstat(union.upper / "link").st_uid == 1
    for name, k in known.items():
        assert encode(point / name) == k.handle

    def check():
        for name, k in known.items():
            k.check(point, point / name if stat.S_ISDIR(k.type) else None)

    everywhere(union, check)


def test_a_handle_made_after_copy_up_is_the_one_made_before(union):
    make_layers(union)
    point = union.mount(NFS)
    names = ("file", "dir/inner", "dir/inner/leaf")
    before = [encode(point / name) for name in names]
    union.umount()
    point = union.mount(NFS)
    for name in names:
        os.chown(point / name, 2, 2)  # copied up before anybody asks for its handle
    drop_caches()
    assert [encode(point / name) for name in names] == before


@pytest.mark.plyfs_only("the kernel copies it up to the index only, where the next mount drops it")
def test_copy_up_through_a_handle(union):
    lib.write(union.lower() / "d/e/file", b"old")
    point = union.mount(NFS)
    handle, directory = encode(point / "d/e/file"), encode(point / "d/e")
    union.remount()
    with opened(point, handle, os.O_WRONLY | os.O_TRUNC) as fd:
        os.write(fd, b"new")
    with opened(point, directory) as fd:
        os.mkdir("made", dir_fd=fd)
    assert lib.read(point / "d/e/file") == b"new"
    assert lib.names(point / "d/e") == ["file", "made"]
    union.remount()
    with opened(point, handle) as fd:
        assert os.read(fd, 9) == b"new"


# --- hard links -----------------------------------------------------------------------------------


def test_hard_links_have_one_handle(union):
    lib.write(union.lower() / "a/one", b"data")
    os.mkdir(union.lower() / "b")
    os.link(union.lower() / "a/one", union.lower() / "b/two")
    lib.write(union.upper / "c/three", b"upper")
    os.link(union.upper / "c/three", union.upper / "four")
    point = union.mount(NFS)
    low, up = Known(point / "a/one"), Known(point / "c/three")
    assert encode(point / "b/two") == low.handle
    assert encode(point / "four") == up.handle
    everywhere(union, lambda: (low.check(point), up.check(point)))
    # whichever name goes, the others lead to the file
    os.unlink(point / "a/one")
    os.unlink(point / "c/three")
    everywhere(union, lambda: (low.check(point), up.check(point)))
    os.unlink(point / "b/two")
    os.unlink(point / "four")
    everywhere(union, lambda: (is_stale(point, low.handle), is_stale(point, up.handle)))


@pytest.mark.parametrize("first", [0, 1])
def test_a_name_goes_while_the_place_of_the_others_is_unknown(union, first):
    """The handle was decoded by one of the names; then just that one is removed."""
    lib.write(union.upper / "a/x", b"data")
    os.mkdir(union.upper / "b")
    os.link(union.upper / "a/x", union.upper / "b/y")
    point = union.mount(NFS)
    k = Known(point / "a/x")
    union.remount()
    k.check(point)
    drop_caches()
    os.unlink(point / ("a/x", "b/y")[first])
    drop_caches()
    k.check(point)
    os.unlink(point / ("a/x", "b/y")[1 - first])
    is_stale(point, k.handle)


def test_a_link_added_through_a_handle(union):
    lib.write(union.lower() / "file", b"data")
    os.link(union.lower() / "file", union.lower() / "other")
    os.mkdir(union.lower() / "d")
    point = union.mount(NFS)
    k = Known(point / "file")
    union.remount()
    with opened(point, k.handle) as fd:
        lib.linkat_fd(fd, point / "d/third")
    for name in ("file", "other"):
        os.unlink(point / name)
    everywhere(union, lambda: k.check(point))
    assert encode(point / "d/third") == k.handle


# --- renames --------------------------------------------------------------------------------------


def test_renamed_files(union):
    make_layers(union)
    point = union.mount(NFS)
    moves = {"file": "merged/moved", "new": "updir/inner/moved", "merged/low": "low", "link": "l2"}
    known = {old: Known(point / old) for old in moves}
    for old, new in moves.items():
        os.rename(point / old, point / new)
    for old, new in moves.items():
        assert encode(point / new) == known[old].handle
    everywhere(union, lambda: [k.check(point) for k in known.values()])


def test_renamed_directories(union):
    make_layers(union)
    point = union.mount(REDIRECT)
    known = {
        name: Known(point / name)
        for name in ("updir", "updir/inner", "updir/inner/x", "dir", "dir/inner", "dir/inner/leaf")
    }
    merged = {name: Known(point / name) for name in ("merged", "merged/low", "merged/sub")}
    os.rename(point / "updir", point / "merged/u")
    os.rename(point / "dir", point / "merged/sub/d")
    os.rename(point / "merged", point / "m")

    def check():
        known["updir"].check(point, point / "m/u")
        known["updir/inner"].check(point, point / "m/u/inner")
        known["updir/inner/x"].check(point)
        known["dir"].check(point, point / "m/sub/d")
        known["dir/inner"].check(point, point / "m/sub/d/inner")
        known["dir/inner/leaf"].check(point)
        merged["merged"].check(point, point / "m")
        merged["merged/sub"].check(point, point / "m/sub")
        merged["merged/low"].check(point)

    everywhere(union, check)


def test_renamed_after_the_first_decode(union):
    """What was learnt of the places of objects is kept up to date."""
    make_layers(union)
    point = union.mount(REDIRECT)
    names = ("file", "dir", "dir/inner", "dir/inner/leaf", "updir/inner", "updir/inner/x", "new")
    known = {name: Known(point / name) for name in names}
    union.remount()
    drop_caches()
    for k in known.values():
        k.check(point)
    drop_caches()
    os.rename(point / "file", point / "dir/inner/file")
    os.rename(point / "dir", point / "updir/d")
    lib.renameat2(point / "updir/inner", point / "updir/d/inner", lib.RENAME_EXCHANGE)
    os.rename(point / "new", point / "merged/up")
    drop_caches()
    known["file"].check(point)
    known["dir"].check(point, point / "updir/d")
    known["dir/inner"].check(point, point / "updir/inner")
    known["dir/inner/leaf"].check(point)
    known["updir/inner"].check(point, point / "updir/d/inner")
    known["updir/inner/x"].check(point)
    known["new"].check(point)
    assert lib.names(point / "updir/inner") == ["file", "leaf"]


def test_made_after_the_first_decode(union):
    make_layers(union)
    point = union.mount(NFS)
    Known(point / "file").check(point)
    union.remount()
    old = encode(point / "new")
    union.remount()
    with opened(point, old):
        pass
    os.mkdir(point / "dir/made")
    lib.write(point / "dir/made/file", b"made")
    os.symlink("somewhere", point / "dir/made/link")
    os.mkfifo(point / "merged/sub/fifo")
    os.link(point / "dir/made/file", point / "hard")
    fd = os.open(point, os.O_TMPFILE | os.O_RDWR)
    os.write(fd, b"from nowhere")
    lib.linkat_fd(fd, point / "named")
    os.close(fd)
    made = ("dir/made", "dir/made/file", "dir/made/link", "merged/sub/fifo", "named")
    known = {name: Known(point / name) for name in made}
    everywhere(union, lambda: [k.check(point) for k in known.values()])


# --- deleted objects ------------------------------------------------------------------------------


def test_deleted_objects_are_stale(union):
    make_layers(union)
    point = union.mount(NFS)
    files = ("file", "merged/low", "merged/up", "merged/sub/deep", "new", "link", "uplink", "fifo")
    dirs = ("merged/sub", "dir", "updir")
    handles = [encode(point / name) for name in (*files, *dirs)]
    inner = [encode(point / name) for name in ("dir/inner/leaf", "updir/inner/x", "updir/inner")]
    for name in files:
        os.unlink(point / name)
    lib.remove_tree(point / "dir")
    lib.remove_tree(point / "updir")
    os.rmdir(point / "merged/sub")
    everywhere(union, lambda: [is_stale(point, h) for h in handles + inner])


def test_deleted_after_the_first_decode(union):
    make_layers(union)
    point = union.mount(NFS)
    handles = [encode(point / name) for name in ("file", "new", "updir/inner/x", "merged/low")]
    union.remount()
    for h in handles:
        with opened(point, h):
            pass
    for name in ("file", "new", "updir/inner/x", "merged/low"):
        os.unlink(point / name)
    for h in handles:
        is_stale(point, h)


def test_replaced_by_rename(union):
    lib.write(union.lower() / "target", b"old")
    lib.write(union.upper / "source", b"new")
    point = union.mount(NFS)
    source, target = Known(point / "source"), Known(point / "target")
    os.rename(point / "source", point / "target")

    def check():
        source.check(point)
        is_stale(point, target.handle)

    everywhere(union, check)


def test_made_anew_is_another_object(union):
    """The name, and often the number too, are those of the deleted one."""
    lib.write(union.lower() / "d/low", b"")
    point = union.mount(NFS)
    old = []
    for n in range(20):
        lib.write(point / "d/file", b"%d" % n)
        old.append(encode(point / "d/file"))
        os.unlink(point / "d/file")
        os.mkdir(point / "d/dir")
        old.append(encode(point / "d/dir"))
        os.rmdir(point / "d/dir")
    old.append(encode(point / "d/low"))
    os.unlink(point / "d/low")
    lib.write(point / "d/low", b"another")
    lib.write(point / "d/file", b"last")
    os.mkdir(point / "d/dir")
    known = [Known(point / name) for name in ("d/low", "d/file", "d/dir")]
    assert len({*old, *(k.handle for k in known)}) == len(old) + 3

    def check():
        for h in old:
            is_stale(point, h)
        for k in known:
            k.check(point)

    everywhere(union, check)


def test_deleted_while_open(union):
    """It can be decoded while somebody has it open, and not afterwards."""
    lib.write(union.lower() / "low", b"low")
    lib.write(union.upper / "up", b"up")
    point = union.mount(NFS)
    fds = [os.open(point / name, os.O_RDONLY) for name in ("low", "up")]
    known = [Known(point / name) for name in ("low", "up")]
    os.unlink(point / "low")
    os.unlink(point / "up")
    drop_caches()
    for k in known:
        k.check(point)
    for fd in fds:
        os.close(fd)
    for k in known:  # RELEASE and FORGET come after close(2) has returned
        lib.wait_for(lambda k=k: looks_stale(point, k.handle), 10, "the end of an inode")


def test_a_directory_that_was_deleted_leads_nowhere(union):
    lib.write(union.upper / "d/e/f", b"")
    point = union.mount(NFS)
    inner = encode(point / "d/e")
    with opened(point, inner) as fd:
        lib.remove_tree(point / "d")
        drop_caches()
        assert os.listdir(fd) == []
        with lib.raises(errno.ENOENT):
            os.open("made", os.O_CREAT | os.O_WRONLY, dir_fd=fd)
    is_stale(point, inner)


# --- handles that nobody made ---------------------------------------------------------------------


@pytest.mark.plyfs_only("of the kernel's handles any bit may be flipped without effect on the rest")
def test_corrupt_handles_are_stale(union):
    make_layers(union)
    point = union.mount(NFS)
    good = Known(point / "file")
    kind, data = good.handle
    assert len(data) == 12
    nodeid, generation = struct.unpack("<QI", struct.pack("<III", *struct.unpack("<III", data)))
    union.remount()
    rng = random.Random(4)

    def handle(n, g):
        return kind, struct.pack("<III", *words(n), g)

    def words(n):
        # include/linux/exportfs.h: high half first
        return (n >> 32, n & 0xFFFFFFFF)

    nodeid = struct.unpack("<I", data[:4])[0] << 32 | struct.unpack("<I", data[4:8])[0]
    assert nodeid == good.number
    assert handle(nodeid, generation) == good.handle
    good.check(point)
    drop_caches()
    is_stale(point, handle(nodeid, generation ^ 1))
    is_stale(point, handle(nodeid, 0))
    for n in (0, 2, nodeid ^ 1 << 32, 2**64 - 1, 2**63, 2**63 - 1):
        is_stale(point, handle(n, generation))
    for _ in range(300):
        is_stale(point, handle(rng.getrandbits(64), rng.getrandbits(32)))
    good.check(point)


def test_numbers_that_are_just_wrong(union):
    """Each object's number with each other's generation."""
    make_layers(union)
    point = union.mount(NFS)
    handles = [encode(point / name) for name in ("file", "new", "dir", "merged/up")]
    union.remount()
    for i, (kind, data) in enumerate(handles):
        for j, (_, other) in enumerate(handles):
            if i != j and len(data) == len(other) == 12:
                is_stale(point, (kind, data[:8] + other[8:]))


# --- many -----------------------------------------------------------------------------------------


def make_tree(root, dirs, files):
    for d in range(dirs):
        base = root / f"top{d % 10}" / f"dir{d}"
        base.mkdir(parents=True)
        for f in range(files):
            (base / f"file{f}").write_bytes(b"%d/%d" % (d, f))


@pytest.mark.slow
@pytest.mark.limit(180)
def test_ten_thousand_objects(union):
    make_tree(union.lower(), 100, 90)
    make_tree(union.upper, 20, 50)
    union.check_lowers = False
    point = union.mount(NFS)
    paths = [Path(d) / f for d, _, files in os.walk(point) for f in files]
    assert len(paths) == 9000
    handles = {p: encode(p) for p in paths}
    assert len(set(handles.values())) == len(paths)
    union.remount()
    rng = random.Random(7)
    for _ in range(2):
        for p in rng.sample(paths, 1000):
            with opened(point, handles[p]) as fd:
                name = os.path.relpath(p, point).split("/")
                assert os.read(fd, 99) == f"{name[1][3:]}/{name[2][4:]}".encode()
        drop_caches()


@pytest.mark.slow
@pytest.mark.limit(120)
def test_decoding_while_everything_changes(union):
    """Objects that stay can be decoded whatever happens to others and to the directories above."""
    make_tree(union.lower(), 20, 20)
    union.check_lowers = False
    point = union.mount(REDIRECT)
    paths = [Path(d) / f for d, _, files in os.walk(point) for f in files]
    handles = {encode(p): lib.read(p) for p in paths}
    union.remount()
    stop = threading.Event()
    problems = []

    def running(job):
        def loop():
            n = 0
            try:
                while not stop.is_set():
                    job(n)
                    n += 1
            except BaseException as e:  # noqa: BLE001
                problems.append(e)
            counts[job.__name__] = n

        return threading.Thread(target=loop)

    counts = {}

    def move_directories(n):
        a, b = point / f"top{n % 10}", point / f"moved{n % 10}"
        os.rename(a, b)
        os.rename(b, a)

    def make_and_remove(n):
        base = point / f"made{n % 7}"
        os.mkdir(base)
        lib.write(base / "file", b"x")
        os.unlink(base / "file")
        os.rmdir(base)

    def copy_up(n):
        with contextlib.suppress(FileNotFoundError):
            os.utime(paths[n % len(paths)])

    def decode(n):
        rng = random.Random(n)
        handle = rng.choice(list(handles))
        with opened(point, handle) as fd:
            assert os.read(fd, 99) == handles[handle]

    jobs = [move_directories, make_and_remove, copy_up, decode, decode]
    threads = [running(job) for job in jobs]
    for t in threads:
        t.start()
    for _ in range(15):
        drop_caches()
        if problems:
            break
    stop.set()
    for t in threads:
        t.join()
    assert not problems, problems
    assert all(counts.values()), counts
    union.remount()
    for handle, data in handles.items():
        with opened(point, handle) as fd:
            assert os.read(fd, 99) == data


@pytest.mark.plyfs_only("about the search for an object, which the kernel's overlayfs has not")
@pytest.mark.slow
@pytest.mark.limit(120)
def test_a_search_delays_nobody(union):
    """While all directories are read for one handle, others are served."""
    make_tree(union.lower(), 150, 60)
    union.check_lowers = False
    point = union.mount(NFS)
    handle = encode(point / "top9/dir149/file59")
    union.remount()
    kind, data = handle
    gone = (kind, data[:8] + b"abcd")  # nobody has this: the search goes to the end
    done = threading.Event()

    def search():
        is_stale(point, gone)
        done.set()

    t = threading.Thread(target=search)
    t.start()
    served = 0
    while not done.is_set():
        os.stat(point / f"top1/dir1/file{served % 60}")
        served += 1
    t.join()
    assert served > 10
    with opened(point, handle) as fd:
        assert os.read(fd, 9) == b"149/59"


@pytest.mark.plyfs_only("the server is plyfs's")
def test_after_the_server_was_killed(union):
    make_layers(union)
    point = union.mount(NFS)
    known = {name: Known(point / name) for name in ALL}
    lib.append(point / "file", b"+")
    known["file"].data += b"+"
    union.daemon.kill()
    union.daemon.wait()
    union.mounted.force_down()
    union.mounts = []
    point = union.mount(NFS)
    for k in known.values():
        k.check(point)


def test_a_kernel_made_upper(union):
    """Layers and index written by the kernel's overlayfs, and the reverse."""
    make_layers(union)
    point = union.mount(NFS, impl="kernel")
    lib.append(point / "file", b"+")
    os.chown(point / "dir/inner", 3, 3)
    os.rename(point / "merged/low", point / "dir/low")
    union.umount()
    point = union.mount(NFS)
    names = ("file", "dir", "dir/inner", "dir/low", "merged/up", "updir/inner/x")
    known = {name: Known(point / name) for name in names}
    everywhere(
        union,
        lambda: [
            k.check(point, point / n if stat.S_ISDIR(k.type) else None) for n, k in known.items()
        ],
    )


# --- nested ---------------------------------------------------------------------------------------


@pytest.mark.plyfs_only("the inner union is plyfs's")
@pytest.mark.parametrize("outer", ["kernel", "plyfs"])
def test_a_union_on_an_exported_union(new_union, outer):
    """Origins and the index of the outer one are handles of the inner one."""
    inner, top = new_union("inner"), new_union("top")
    inner.check_work = top.check_work = top.check_lowers = False
    make_layers(inner)

    def mount():
        top.use_lower(0, inner.mount(NFS))
        return top.mount(NFS, impl=outer)

    def umount():
        top.umount()
        inner.umount()

    point = mount()
    names = ("file", "dir", "dir/inner", "dir/inner/leaf", "merged/low", "merged/up", "new")
    known = {name: Known(point / name) for name in names}
    lib.append(point / "file", b"+")
    os.chmod(point / "dir/inner", 0o711)
    os.rename(point / "merged/up", point / "dir/up")
    known["file"].data += b"+"
    for _ in range(2):
        for name, k in known.items():
            k.check(point)
        assert os.lstat(point / "file").st_ino == known["file"].number
        drop_caches()
        umount()
        point = mount()
    umount()
