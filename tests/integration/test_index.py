# SPDX-License-Identifier: MIT
"""index=on and the index of nfs_export=on: hard links that survive copy-up.

What users see is tested on either implementation (--impl=kernel). What is on disk is compared with
what the kernel leaves after the same operations: names, links, xattrs, entries of the index. File
handles differ from one filesystem object to another, so they are compared by what they lead to.
"""

import ctypes
import errno
import os
import shutil
import signal
import stat
import subprocess
from pathlib import Path

import plyfs_testlib as lib
import pytest

pytestmark = pytest.mark.root("file handles are for root only")

INDEX = "index=on"
NFS = "index=on,nfs_export=on"
META = "index=on,redirect_dir=on,metacopy=on"
BOTH = pytest.mark.parametrize("options", [INDEX, NFS], ids=["index", "nfs_export"])
ALL = pytest.mark.parametrize(
    "options", [INDEX, NFS, META], ids=["index", "nfs_export", "metacopy"]
)
P = "trusted.overlay."


@pytest.fixture
def union(union):
    union.check_work = False  # the index is no litter
    return union


# --- what is on disk ------------------------------------------------------------------------------


class FileHandle(ctypes.Structure):
    _fields_ = [
        ("bytes", ctypes.c_uint),
        ("type", ctypes.c_int),
        ("data", ctypes.c_ubyte * 128),
    ]


def handle(path):
    """What identifies an object in an origin xattr: its type and bytes."""
    fh, mount_id = FileHandle(bytes=128), ctypes.c_int()
    lib.check(
        lib.libc.name_to_handle_at(
            lib.AT_FDCWD, os.fsencode(path), ctypes.byref(fh), ctypes.byref(mount_id), 0
        )
    )
    return fh.type, bytes(fh.data[: fh.bytes])


def walk(root):
    """Every path below a directory, itself as ''."""
    yield ""
    for base, dirs, files in os.walk(root):
        for name in sorted(dirs + files):
            yield os.path.relpath(os.path.join(base, name), root)


def handle_names(union):
    """What the handles lead to."""
    names = {}
    for n, lower in enumerate(union.lowers):
        for path in walk(lower):
            names.setdefault(handle(lower / path), f"lower{n}:{path}")
    for path in walk(union.upper):
        names.setdefault(handle(union.upper / path), f"upper:{path}")
    return names


class Disk:
    """Upper and index, with every handle replaced by the name of what it leads to."""

    def __init__(self, union):
        self.names = handle_names(union)
        groups = {}
        self.objects = {}
        for kind, root in (("upper", union.upper), ("index", union.work / "index")):
            for path in walk(root):
                if os.path.basename(path).startswith("#"):
                    continue
                full = os.path.join(root, path)
                name = f"{kind}:{self.entry_name(path) if kind == 'index' and path else path}"
                groups.setdefault(os.lstat(full).st_ino, []).append(name)
                self.objects[name] = self.describe(full)
        for names in groups.values():
            if not self.objects[names[0]].get("whiteout"):
                for name in names:
                    self.objects[name]["links"] = sorted(names)

    def decode(self, value):
        if not value:
            return "unknown"
        assert value[0] == 0 and value[1] == 0xFB and value[2] == len(value), value.hex()
        where = self.names.get((value[4], value[21:]), "gone")
        return f"{where} flags={value[3]}"

    def entry_name(self, name):
        return self.decode(bytes.fromhex(name))

    def describe(self, path):
        st = os.lstat(path)
        if stat.S_ISCHR(st.st_mode) and st.st_rdev == 0:
            return {"whiteout": True}
        out = {"mode": oct(st.st_mode)}
        if stat.S_ISREG(st.st_mode):
            out["data"] = lib.read(path)
        if stat.S_ISLNK(st.st_mode):
            out["target"] = os.readlink(path)
        if not stat.S_ISDIR(st.st_mode):
            out["nlink"] = st.st_nlink
        for name, value in lib.xattrs(path).items():
            if name in (P + "origin", P + "upper"):
                value = self.decode(value)
            elif name == P + "uuid":
                value = len(value)
            out[name] = value
        return out


def differences(a, b, what_a, what_b):
    out = []
    for name in sorted(set(a) | set(b)):
        if a.get(name) != b.get(name):
            out.append(f"{name}:\n    {what_a}: {a.get(name)}\n    {what_b}: {b.get(name)}")
    return out


def view(point):
    """What users see: contents, attributes, and which names are one file."""
    out, groups = {}, {}
    for path in walk(point):
        full = os.path.join(point, path)
        try:
            st = os.lstat(full)
        except OSError as e:
            out[path] = errno.errorcode[e.errno]
            continue
        groups.setdefault(st.st_ino, []).append(path)
        out[path] = {"mode": oct(st.st_mode), "nlink": st.st_nlink}
        if stat.S_ISREG(st.st_mode):
            out[path]["data"] = lib.read(full)
    for paths in groups.values():
        for path in paths:
            out[path]["links"] = sorted(paths)
    return out


def assert_counts_are_true(seen, outside=()):
    """A file's st_nlink is the number of names that it has in the mount."""
    wrong = [
        f"{path}: nlink {e['nlink']}, names {e['links']}"
        for path, e in seen.items()
        if isinstance(e, dict) and not e["mode"].startswith("0o4") and path not in outside
        if e["nlink"] != len(e["links"])
    ]
    assert not wrong, "\n".join(wrong)


# --- the same operations on both ------------------------------------------------------------------


def make_lower(union):
    """Hard links of every kind, within a directory and between directories and layers."""
    low, below = union.lower(0), union.lower(1)
    lib.write(low / "a", b"data" * 1000)
    os.link(low / "a", low / "b")
    os.link(low / "a", low / "c")
    lib.mkdir(low / "d1")
    lib.mkdir(low / "d2")
    lib.write(low / "d1/x", b"x")
    os.link(low / "d1/x", low / "d2/y")
    lib.write(low / "single", b"s")
    lib.write(low / "other", b"o")
    os.symlink("target", low / "sl1")
    os.link(low / "sl1", low / "sl2", follow_symlinks=False)
    os.mkfifo(low / "fifo1")
    os.link(low / "fifo1", low / "fifo2")
    os.mknod(low / "null1", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.link(low / "null1", low / "null2")
    lib.mkdir(low / "dir/sub")
    lib.write(low / "dir/file", b"f")
    lib.mkdir(low / "empty")
    lib.mkdir(low / "merged")
    lib.write(below / "merged/deep1", b"deep")
    os.link(below / "merged/deep1", below / "deep2")
    lib.write(below / "p", b"two layers")
    os.link(below / "p", low / "q")  # one file in both layers
    os.link(below / "p", below / "q2")


REMOUNT = object()


def op_append(m):
    lib.append(m / "a", b"+")


def op_each_alias(m):
    lib.append(m / "a", b"+")
    os.chmod(m / "b", 0o600)
    os.chown(m / "c", 7, 7)


def op_truncate(m):
    os.truncate(m / "b", 3)


def op_xattr(m):
    os.setxattr(m / "c", "user.k", b"v")


def op_other_directory(m):
    lib.append(m / "d2/y", b"+")


def op_both_directories(m):
    lib.append(m / "d2/y", b"+")
    lib.append(m / "d1/x", b"-")


def op_unlink_lower(m):
    os.unlink(m / "b")


def op_unlink_all(m):
    for name in ("b", "a", "c"):
        os.unlink(m / name)


def op_append_unlink_all(m):
    lib.append(m / "a", b"+")
    for name in ("a", "b", "c"):
        os.unlink(m / name)


def op_unlink_single(m):
    os.unlink(m / "single")


def op_link_lower(m):
    os.link(m / "a", m / "new")


def op_link_twice(m):
    os.link(m / "a", m / "new1")
    os.link(m / "new1", m / "d1/new2")


def op_link_unlink(m):
    os.link(m / "a", m / "new")
    os.unlink(m / "a")
    os.unlink(m / "new")


def op_rename(m):
    os.rename(m / "a", m / "renamed")


def op_rename_to_directory(m):
    os.rename(m / "d1/x", m / "d2/x2")


def op_rename_single(m):
    os.rename(m / "single", m / "single2")


def op_rename_over_lower_alias(m):
    os.rename(m / "other", m / "b")


def op_rename_over_upper_alias(m):
    os.chmod(m / "b", 0o600)
    os.rename(m / "other", m / "b")


def op_rename_alias_over_alias_of_another(m):
    os.rename(m / "a", m / "d1/x")


def op_rename_alias_to_alias(m):
    os.rename(m / "a", m / "b")


def op_rename_new_over_all(m):
    for name in ("a", "b", "c"):
        lib.write(m / "tmp", name)
        os.rename(m / "tmp", m / name)


def op_exchange(m):
    lib.renameat2(m / "a", m / "other", lib.RENAME_EXCHANGE)


def op_exchange_aliases(m):
    lib.renameat2(m / "a", m / "d1/x", lib.RENAME_EXCHANGE)


def op_symlinks(m):
    os.chown(m / "sl1", 5, 5, follow_symlinks=False)
    os.unlink(m / "sl2")


def op_specials(m):
    os.chmod(m / "fifo1", 0o600)
    os.chmod(m / "null2", 0o600)
    os.unlink(m / "fifo2")


def op_lower_layers(m):
    lib.append(m / "deep2", b"+")
    os.unlink(m / "merged/deep1")


def op_two_layers(m):
    lib.append(m / "q", b"+")
    os.unlink(m / "p")


def op_rmdir(m):
    os.rmdir(m / "empty")


def op_rmdir_merged(m):
    lib.write(m / "merged/new", b"n")
    os.unlink(m / "merged/new")
    os.unlink(m / "merged/deep1")
    os.rmdir(m / "merged")


def op_remove_tree(m):
    shutil.rmtree(m / "dir")


def op_remove_and_make(m):
    os.rmdir(m / "empty")
    os.mkdir(m / "empty")
    lib.write(m / "empty/f", b"f")


def op_rename_directory_over_empty(m):
    os.mkdir(m / "newdir")
    lib.write(m / "newdir/f", b"f")
    os.rename(m / "newdir", m / "empty")


def op_copy_up_directories(m):
    lib.write(m / "dir/sub/new", b"n")
    os.chmod(m / "d1", 0o700)


def op_make_in_merged(m):
    os.mkdir(m / "dir/new")
    lib.write(m / "dir/new/f", b"f")


OPERATIONS = {
    name[3:]: [function] for name, function in sorted(globals().items()) if name.startswith("op_")
}
OPERATIONS.update(
    {
        "append_remount_append": [op_append, REMOUNT, op_each_alias],
        "append_remount_unlink": [op_append, REMOUNT, op_unlink_all],
        "unlink_remount_link": [op_unlink_lower, REMOUNT, op_link_lower],
        "link_remount_rename": [op_link_lower, REMOUNT, op_rename],
        "rename_remount_over": [op_rename, REMOUNT, op_rename_over_lower_alias],
        "dirs_remount_remove": [op_copy_up_directories, REMOUNT, op_remove_tree],
        "other_remount_unlink": [op_other_directory, REMOUNT, lambda m: os.unlink(m / "d1/x")],
    }
)


def run(union, impl, options, steps):
    make_lower(union)
    union.mount(options, impl=impl)
    for step in steps:
        if step is REMOUNT:
            union.remount(impl=impl)
        else:
            step(union.point)
    seen = view(union.point)
    union.umount()
    return seen


@pytest.mark.plyfs_only("compares with the kernel")
@pytest.mark.parametrize("name", OPERATIONS)
@ALL
def test_layers_are_those_of_the_kernel(new_union, options, name):
    ours, kernels = new_union("ours"), new_union("kernel")
    ours.check_work = kernels.check_work = False
    steps = OPERATIONS[name]
    seen = run(ours, "plyfs", options, steps)
    wanted = run(kernels, "kernel", options, steps)
    problems = differences(seen, wanted, "plyfs", "kernel")
    problems += differences(Disk(ours).objects, Disk(kernels).objects, "plyfs", "kernel")
    assert not problems, "\n".join(problems)
    assert_counts_are_true(seen)
    # and each mounts what the other left
    ours.mount(options, impl="kernel")
    by_kernel = view(ours.point)
    ours.umount()
    kernels.mount(options, impl="plyfs")
    by_us = view(kernels.point)
    kernels.umount()
    if options == NFS:
        # the kernel counts the index entry of a file that had one name below, after a remount
        for tree in (by_kernel, by_us):
            for entry in tree.values():
                if isinstance(entry, dict) and len(entry["links"]) == 1:
                    entry["nlink"] = 1
    problems = differences(by_us, by_kernel, "plyfs", "kernel")
    assert not problems, "\n".join(problems)


# --- what users see -------------------------------------------------------------------------------


def make_links(union, count=4):
    lib.write(union.lower() / "0", b"zero")
    for n in range(1, count):
        os.link(union.lower() / "0", union.lower() / str(n))


def drop_caches():
    lib.write("/proc/sys/vm/drop_caches", b"2")


def nlinks(m, names):
    return [os.lstat(m / str(n)).st_nlink for n in names]


@BOTH
@pytest.mark.parametrize("cold", [False, True], ids=["warm", "cold"])
def test_count_of_links_is_that_of_the_union(union, options, cold):
    make_links(union)
    m = union.mount(options)

    def check(names):
        if cold:
            drop_caches()
        assert nlinks(m, names) == [len(names)] * len(names)

    check([0, 1, 2, 3])
    os.unlink(m / "0")
    check([1, 2, 3])
    os.link(m / "3", m / "4")
    check([1, 2, 3, 4])
    os.link(m / "4", m / "5")
    check([1, 2, 3, 4, 5])
    lib.write(m / "new")
    os.rename(m / "new", m / "1")
    check([2, 3, 4, 5])
    os.unlink(m / "5")
    check([2, 3, 4])
    lib.write(m / "new")
    os.rename(m / "new", m / "4")
    check([2, 3])
    os.unlink(m / "3")
    check([2])
    os.unlink(m / "2")
    left = [n for n in os.listdir(union.work / "index") if not n.startswith("#")]
    left = [n for n in left if not lib.is_whiteout(union.work / "index" / n)]
    assert left == [], "the entry of a file without names stays"


@BOTH
def test_numbers_and_data_stay_one_over_copy_up_and_remount(union, options):
    make_links(union, 3)
    m = union.mount(options)
    before = [os.lstat(m / str(n)).st_ino for n in range(3)]
    assert len(set(before)) == 1
    lib.append(m / "1", b" one")
    for when in ("after copy-up", "cold", "remounted"):
        if when == "cold":
            drop_caches()
        if when == "remounted":
            union.remount()
        assert [os.lstat(m / str(n)).st_ino for n in range(3)] == before, when
        assert [lib.read(m / str(n)) for n in range(3)] == [b"zero one"] * 3, when
        listed = lib.getdents_all(m)
        assert [listed[str(n)][0] for n in range(3)] == before, when
    lib.append(m / "0", b" two")
    assert [lib.read(m / str(n)) for n in range(3)] == [b"zero one two"] * 3


@BOTH
def test_a_reader_of_another_name_sees_what_is_written(union, options):
    make_links(union, 2)
    m = union.mount(options)
    with lib.opened(m / "0", os.O_RDONLY) as reader:
        assert os.pread(reader, 100, 0) == b"zero"
        lib.append(m / "1", b"+")
        assert os.pread(reader, 100, 0) == b"zero+"
        os.unlink(m / "0")
        lib.append(m / "1", b"+")
        assert os.pread(reader, 100, 0) == b"zero++"
        os.unlink(m / "1")
        assert os.fstat(reader).st_nlink == 0
        assert os.pread(reader, 100, 0) == b"zero++"


@BOTH
def test_writing_to_a_file_that_lost_all_its_names(union, options):
    make_links(union, 2)
    m = union.mount(options)
    with lib.opened(m / "0", os.O_RDWR) as fd:
        os.unlink(m / "0")
        os.unlink(m / "1")
        os.pwrite(fd, b"gone", 0)
        os.fchmod(fd, 0o600)
        os.ftruncate(fd, 2)
        assert os.pread(fd, 10, 0) == b"go"
        assert os.fstat(fd).st_nlink == 0
    union.remount()
    assert os.listdir(m) == []


@BOTH
def test_a_name_that_was_removed_while_others_are_not_known(union, options):
    make_links(union, 3)
    m = union.mount(options)
    drop_caches()
    with lib.opened(m / "0", os.O_RDWR) as fd:
        os.unlink(m / "0")  # the only one that was looked up
        os.pwrite(fd, b"Z", 0)
        assert os.fstat(fd).st_nlink == 2
        assert lib.read(m / "2") == b"Zero"
        assert os.fstat(fd).st_ino == os.lstat(m / "1").st_ino
        os.pwrite(fd, b"E", 1)
    assert lib.read(m / "1") == b"ZEro"
    assert nlinks(m, [1, 2]) == [2, 2]


@BOTH
def test_links_added_to_a_lower_layer_do_no_harm(union, options):
    union.check_lowers = False
    make_links(union, 2)
    low = union.lower()
    m = union.mount(options)
    os.utime(m / "0")
    os.link(low / "0", low / "2")
    os.link(low / "0", low / "3")
    os.unlink(m / "2")
    os.unlink(m / "3")
    assert os.stat(m / "0").st_nlink >= 1
    os.link(m / "0", m / "4")
    for name in ("0", "1", "4"):
        os.unlink(m / name)
    union.remount()
    left = os.listdir(union.work / "index")
    left = [n for n in left if not n.startswith("#") and not lib.is_whiteout(union.work / "index" / n)]
    assert left == []
    assert lib.names(m) == []


@BOTH
def test_a_link_that_was_broken_before_stays_broken(union, options):
    make_links(union, 3)
    m = union.mount()
    lib.append(m / "0", b" broken")
    union.umount()
    union.mount(options)
    assert nlinks(m, [0, 1, 2]) == [1, 3, 3]
    lib.append(m / "1", b" kept")
    assert lib.read(m / "2") == b"zero kept"
    assert lib.read(m / "0") == b"zero broken"
    union.remount()
    assert lib.read(m / "2") == b"zero kept"
    assert lib.read(m / "0") == b"zero broken"
    assert nlinks(m, [0]) == [1]


@BOTH
def test_the_index_off_shows_the_same_data(union, options):
    make_links(union, 3)
    m = union.mount(options)
    lib.append(m / "0", b"+")
    os.unlink(m / "1")
    union.umount()
    union.mount()
    assert lib.read(m / "0") == b"zero+"
    assert lib.names(m) == ["0", "2"]
    union.umount()
    union.mount(options)
    assert [lib.read(m / "0"), lib.read(m / "2")] == [b"zero+"] * 2


@BOTH
def test_tmpfile_and_link(union, options):
    make_links(union, 2)
    m = union.mount(options)
    with lib.opened(m, os.O_TMPFILE | os.O_RDWR, 0o644) as fd:
        os.write(fd, b"new")
        lib.linkat_fd(fd, m / "t")
    os.link(m / "t", m / "t2")
    assert nlinks(m, ["t", "t2"]) == [2, 2]
    os.rename(m / "t", m / "0")
    assert nlinks(m, ["0", "t2", "1"]) == [2, 2, 1]
    union.remount()
    assert nlinks(m, ["0", "t2", "1"]) == [2, 2, 1]


@BOTH
def test_many_links(union, options):
    low = union.lower()
    count = 60
    lib.write(low / "f", b"1")
    for n in range(count):
        lib.mkdir(low / f"d{n % 7}")
        os.link(low / "f", low / f"d{n % 7}" / f"l{n}")
    m = union.mount(options)
    lib.append(m / "d3/l3", b"2")
    gone = 0
    for n in range(0, count, 2):
        os.unlink(m / f"d{n % 7}" / f"l{n}")
        gone += 1
    assert os.lstat(m / "f").st_nlink == count + 1 - gone
    union.remount()
    assert os.lstat(m / "f").st_nlink == count + 1 - gone
    assert lib.read(m / "d1/l1") == b"12"
    assert_counts_are_true(view(m))


def test_one_file_in_two_layers_is_one_file(union):
    low, below = union.lower(0), union.lower(1)
    lib.write(below / "p", b"data")
    os.link(below / "p", low / "q")
    m = union.mount(INDEX)
    assert os.lstat(m / "p").st_ino == os.lstat(m / "q").st_ino
    lib.append(m / "q", b"+")
    assert lib.read(m / "p") == b"data+"
    os.unlink(m / "q")
    lib.append(m / "p", b"+")
    union.remount()
    assert lib.read(m / "p") == b"data++"


# --- mounting -------------------------------------------------------------------------------------


def try_mount(union, options, impl=None):
    """'' when it mounts, else the errno's name (of the kernel) or the message (of plyfs)."""
    impl = impl or lib.settings.impl
    if impl == "kernel":
        try:
            union.mount(options, impl="kernel")
            return ""
        except OSError as e:
            return errno.errorcode[e.errno]
    done = lib.run_plyfs(
        "mount",
        "-o",
        lib.layer_options(union.lowers, union.upper, union.work, options),
        union.point,
    )
    if done.returncode:
        return done.stderr
    union.mounts.append(lib.Mount(union.point, "plyfs"))
    return ""


def copy_up_something(union, options):
    make_lower(union)
    union.mount(options)
    lib.append(union.point / "a", b"+")
    lib.write(union.point / "dir/new", b"n")
    union.umount()


@BOTH
def test_another_lower_layer_is_refused(union, options):
    copy_up_something(union, options)
    other = lib.mkdir(union.base / "another")
    union.use_lower(0, other)
    said = try_mount(union, options)
    assert said == "ESTALE" or ("another lower layer" in said and "index=off" in said)
    assert try_mount(union, "") == ""


@BOTH
def test_an_index_of_another_upper_is_refused(union, options):
    copy_up_something(union, options)
    union.upper.rename(union.base / "old-upper")
    lib.mkdir(union.upper)
    said = try_mount(union, options)
    assert said == "ESTALE" or ("another upperdir" in said and "index=off" in said)
    assert try_mount(union, "") == ""


@BOTH
def test_temporary_names_live_in_the_index_and_are_swept(union, options):
    copy_up_something(union, options)
    index = union.work / "index"
    lib.write(index / "#12", b"left over")
    lib.mkdir(index / "#abc/sub")
    lib.write(union.work / "work/#7", b"left over")
    union.mount(options)
    assert [n for n in os.listdir(index) if n in ("#12", "#abc")] == []
    assert "#7" not in os.listdir(union.work / "work")
    os.unlink(union.point / "single")
    assert [n for n in os.listdir(index) if n.startswith("#")] != []
    assert os.listdir(union.work / "work") == []


def entry_of(union, path):
    """The index entry of a lower object."""
    kind, fid = handle(path)
    names = os.listdir(union.work / "index")
    found = [n for n in names if n.endswith(fid.hex())]
    assert len(found) == 1, (path, names)
    return union.work / "index" / found[0]


def damage_name(union):
    lib.write(union.work / "index/zz", b"")


def damage_short(union):
    lib.write(union.work / "index/00fb1d", b"")


def damage_magic(union):
    entry = entry_of(union, union.lower() / "a")
    os.link(entry, entry.with_name("00fc" + entry.name[4:]))


def damage_version(union):
    entry = entry_of(union, union.lower() / "a")
    os.link(entry, entry.with_name("01" + entry.name[2:]))


def damage_truncated(union):
    entry = entry_of(union, union.lower() / "a")
    entry.rename(entry.with_name(entry.name[:-2]))


def damage_no_origin(union):
    os.removexattr(entry_of(union, union.lower() / "a"), P + "origin")


def damage_empty_origin(union):
    os.setxattr(entry_of(union, union.lower() / "a"), P + "origin", b"")


def damage_garbled_origin(union):
    os.setxattr(entry_of(union, union.lower() / "a"), P + "origin", b"\0\xfbgarbage")


def damage_other_origin(union):
    entry = entry_of(union, union.lower() / "a")
    value = bytearray(os.getxattr(entry, P + "origin"))
    value[-1] ^= 0xFF
    os.setxattr(entry, P + "origin", bytes(value))


def damage_last_name_gone(union):
    os.unlink(union.upper / "a")
    os.setxattr(entry_of(union, union.lower() / "a"), P + "nlink", b"U-1")


def damage_nlink(union):
    os.setxattr(entry_of(union, union.lower() / "a"), P + "nlink", b"nonsense")


def damage_nlink_and_name(union):
    os.unlink(union.upper / "a")
    damage_nlink(union)


def damage_no_nlink(union):
    os.unlink(union.upper / "a")
    os.removexattr(entry_of(union, union.lower() / "a"), P + "nlink")


def damage_lower_gone(union):
    os.unlink(union.upper / "a")
    for name in "abc":
        os.unlink(union.lower() / name)


def damage_lower_gone_name_there(union):
    for name in "abc":
        os.unlink(union.lower() / name)


def damage_entry_is_directory(union):
    entry = entry_of(union, union.lower() / "a")
    os.unlink(entry)
    os.mkdir(entry)


def damage_entry_is_whiteout(union):
    entry = entry_of(union, union.lower() / "a")
    os.unlink(entry)
    lib.make_whiteout(entry)


def damage_entry_is_fifo(union):
    entry = entry_of(union, union.lower() / "a")
    origin = os.getxattr(entry, P + "origin")
    os.unlink(entry)
    os.mkfifo(entry)
    os.setxattr(entry, P + "origin", origin)


def damage_upper_is_another(union):
    (union.upper / "a").rename(union.upper / "tmp")
    shutil.copy2(union.upper / "tmp", union.upper / "a")
    os.setxattr(union.upper / "a", P + "origin", os.getxattr(union.upper / "tmp", P + "origin"))


def damage_dir_without_upper(union):
    os.removexattr(entry_of(union, union.lower() / "dir"), P + "upper")


def damage_dir_upper_gone(union):
    shutil.rmtree(union.upper / "dir")


def damage_dir_upper_is_file(union):
    entry = entry_of(union, union.lower() / "dir")
    value = os.getxattr(entry, P + "upper")
    kind, fid = handle(union.upper / "a")
    os.setxattr(entry, P + "upper", value[:2] + bytes([21 + len(fid)]) + value[3:21] + fid)


def damage_dir_not_empty(union):
    entry = entry_of(union, union.lower() / "dir")
    lib.write(entry / "inside", b"")
    os.removexattr(entry, P + "upper")


def damage_dir_moved(union):
    (union.upper / "dir").rename(union.upper / "dir2")


def damage_dir_upper_of_another_origin(union):
    os.removexattr(union.upper / "dir", P + "origin")


DAMAGES = {
    name[7:]: function for name, function in sorted(globals().items()) if name.startswith("damage_")
}
DAMAGED_DIR = [name for name in DAMAGES if name.startswith("dir_")]


@pytest.mark.plyfs_only("compares with the kernel")
@pytest.mark.parametrize(
    "options,name",
    [(o, n) for n in DAMAGES for o in (INDEX, NFS) if o == NFS or n not in DAMAGED_DIR],
)
def test_a_damaged_index_gets_the_kernels_verdict(new_union, options, name):
    results = []
    for impl in ("plyfs", "kernel"):
        u = new_union(impl)
        u.check_work = u.check_lowers = False
        make_lower(u)
        u.mount(options, impl="kernel")  # what is damaged is the same
        lib.append(u.point / "a", b"+")
        lib.write(u.point / "dir/new", b"n")
        u.umount()
        DAMAGES[name](u)
        said = try_mount(u, options, impl)
        seen = {}
        if not said:
            # the kernel leaves out of a listing what it cannot look up
            seen = {k: v for k, v in view(u.point).items() if isinstance(v, dict)}
            for path in ("a", "b", "dir/file"):
                try:
                    os.lstat(u.point / path)
                except OSError as e:
                    seen[path] = errno.errorcode[e.errno]
            u.umount()
        elif impl == "plyfs":
            assert "index" in said
        entries = {}
        names = handle_names(u)
        for entry in os.listdir(u.work / "index"):
            st = os.lstat(u.work / "index" / entry)
            try:
                raw = bytes.fromhex(entry)
                label = f"{entry[:4]} {names.get((raw[4], raw[21:]), 'gone')}"
            except (ValueError, IndexError):
                label = entry
            entries[label] = (stat.S_IFMT(st.st_mode), st.st_nlink)
            if lib.is_whiteout(u.work / "index" / entry):
                entries[label] = "whiteout"
        entries = {k: v for k, v in entries.items() if not k.startswith("#")}
        results.append((bool(said), seen, entries))
    (refused, seen, entries), (refused_k, seen_k, entries_k) = results
    assert refused == refused_k, f"refused: plyfs {refused}, kernel {refused_k}"
    problems = differences(entries, entries_k, "plyfs", "kernel")
    problems += differences(seen, seen_k, "plyfs", "kernel")
    assert not problems, "\n".join(problems)


# --- layers that were changed while nobody had them mounted -----------------------------------------


def change_lower_directory(union):
    """Another directory has come to the place of one that was copied up."""
    low = union.lower()
    (low / "dir").rename(low / "elsewhere")
    lib.write(low / "dir/strange", b"s")


def change_lower_file(union):
    low = union.lower()
    (low / "single").rename(low / "elsewhere")
    lib.write(low / "single", b"another")


def change_lower_link(union):
    low = union.lower()
    (low / "a").rename(low / "elsewhere")
    lib.write(low / "a", b"another")


def change_lower_type(union):
    low = union.lower()
    os.unlink(low / "single")
    lib.mkdir(low / "single/inside")


def change_copy_of_a_redirected_directory(union):
    (union.point / "dir").rename(union.point / "moved")
    union.umount()
    subprocess.run(["cp", "-a", union.upper / "moved", union.upper / "twin"], check=True)


def change_uncovered_directory(union):
    """What was moved away is no longer hidden at its old place."""
    (union.point / "dir").rename(union.point / "moved")
    union.umount()
    os.unlink(union.upper / "dir")


def change_name_in_upper(union):
    (union.upper / "a").rename(union.upper / "z")


def change_copied_file(union):
    subprocess.run(["cp", "-a", union.upper / "a", union.upper / "z"], check=True)


CHANGES = {
    name[7:]: function for name, function in sorted(globals().items()) if name.startswith("change_")
}
REDIRECTED = ["copy_of_a_redirected_directory", "uncovered_directory"]
CHANGED_WITH = {
    "index": INDEX,
    "nfs_export": NFS,
    "metacopy": META,
    "nfs_export-redirect": NFS + ",redirect_dir=on",
}


@pytest.mark.plyfs_only("compares with the kernel")
@pytest.mark.parametrize(
    "options,name",
    [
        pytest.param(options, name, id=f"{kind}-{name}")
        for kind, options in CHANGED_WITH.items()
        for name in CHANGES
        if "redirect_dir" in options or name not in REDIRECTED
    ],
)
def test_changed_layers_are_read_as_the_kernel_reads_them(new_union, options, name):
    results = []
    for impl in ("plyfs", "kernel"):
        u = new_union(impl)
        u.check_work = u.check_lowers = False
        make_lower(u)
        u.mount(options, impl="kernel")
        lib.append(u.point / "a", b"+")
        os.chmod(u.point / "single", 0o600)
        lib.write(u.point / "dir/new", b"n")
        if name not in REDIRECTED:  # which unmount by themselves
            u.umount()
        CHANGES[name](u)
        u.mount(options, impl=impl)
        seen = {k: v for k, v in view(u.point).items() if isinstance(v, dict)}
        for path in "a b z single dir/file dir/new dir/strange moved/new twin/new".split():
            try:
                os.lstat(u.point / path)
            except OSError as e:
                seen[path] = errno.errorcode[e.errno]
        u.umount()
        if name == "lower_file":  # one file under two names, which nobody counted
            del seen["elsewhere"]
            seen["single"] = isinstance(seen["single"], dict) and seen["single"]["data"]
        if options.startswith(NFS):
            for entry in seen.values():
                if isinstance(entry, dict) and len(entry["links"]) == 1:
                    entry["nlink"] = 1
        results.append(seen)
    problems = differences(*results, "plyfs", "kernel")
    assert not problems, "\n".join(problems)


@pytest.mark.plyfs_only("is about what it says")
def test_without_file_handles_there_is_no_index(union):
    """Layers that cannot have it do without, and say so."""
    make_links(union, 2)
    with lib.tmpfs(union.base, "a") as a:
        lib.write(a / "f", b"f")
        # fuse has no handles of its own here: a plyfs mount as the lower layer
        inner = lib.mkdir(union.base / "inner")
        before = set(lib.children())
        done = lib.run_plyfs("mount", "-o", lib.layer_options([a]), inner)
        assert done.returncode == 0, done.stderr
        daemon = lib.adopt_daemon(before)
        try:
            done = lib.run_plyfs(
                "mount",
                "-o",
                lib.layer_options([inner], union.upper, union.work, INDEX),
                union.point,
            )
            assert done.returncode == 0, done.stderr
            assert not (union.work / "index").exists() or "index" not in done.stderr
            lib.sys_umount(union.point)
        finally:
            lib.sys_umount(inner)
            daemon.wait()


@pytest.mark.parametrize("made", ["by the mount", "before"])
def test_nothing_is_inherited_from_workdir(union, made):
    """What is built beside the index gets its own mode, though workdir gives what is made in it
    its group and an ACL."""
    for path, mode in (("d/sub", 0o755), ("d/gone", 0o750), ("d/sticky", 0o1777)):
        lib.mkdir(union.lower() / path)
        os.chmod(union.lower() / path, mode)
    lib.write(union.lower() / "d/f", b"data", mode=0o640)
    union.work.mkdir(exist_ok=True)
    os.setxattr(union.work, lib.DEFAULT_ACL, lib.acl(7, 7, 7, users=[(1, 7)], mask=7))
    os.chmod(union.work, 0o2755)
    if made == "before":
        (union.work / "index").mkdir(mode=0)
        assert (union.work / "index").stat().st_mode & stat.S_ISGID
    m = union.mount(INDEX)
    os.rmdir(m / "d/gone")
    os.mkdir(m / "d/gone", 0o755)  # over a whiteout
    for name in ("sub", "sticky"):
        lib.write(m / "d" / name / "new")
    os.chown(m / "d/f", 0, 0)
    shown = {name: os.lstat(m / "d" / name).st_mode & 0o7777 for name in os.listdir(m / "d")}
    assert shown == {"sub": 0o755, "gone": 0o755, "sticky": 0o1777, "f": 0o640}
    for path in ("d", "d/sub", "d/sticky", "d/gone", "d/f", "d/sub/new"):
        assert not [name for name in lib.xattrs(union.upper / path) if "acl" in name], path
