# SPDX-License-Identifier: MIT
"""st_ino and st_dev: one device, unique numbers, constant over copy-up, rename and remount."""

import os

import plyfs_testlib as lib
import pytest
from plyfs_testlib import MIB, append, getdents_all, mkdir, names, opened, write


def numbers(root):
    return {rel: os.lstat(os.path.join(root, rel)).st_ino for rel in lib.walk(root)}


def populate(directory, tag):
    write(directory / f"f-{tag}")
    write(directory / f"d-{tag}/inner")
    os.symlink("x", directory / f"s-{tag}")
    os.mkfifo(directory / f"p-{tag}")
    write(directory / "merged" / f"m-{tag}")


def touch_all(root):
    """Copy everything up."""
    for rel in list(lib.walk(root)):
        path = os.path.join(root, rel)
        if os.path.islink(path):
            os.utime(path, ns=(1, 1), follow_symlinks=False)
        else:
            os.chmod(path, os.lstat(path).st_mode & 0o7777)


def test_constant_over_copy_up(union):
    populate(union.lower(0), "0")
    populate(union.lower(1), "1")
    m = union.mount()
    before = numbers(m)
    with opened(m / "f-0", os.O_RDONLY) as fd:
        touch_all(m)
        assert os.fstat(fd).st_ino == before["f-0"]
    assert numbers(m) == before
    assert os.path.exists(union.upper / "merged/m-1")


@pytest.mark.root("finds the lower object again by its origin, for which it opens file handles")
def test_constant_over_remount(union):
    populate(union.lower(0), "0")
    populate(union.lower(1), "1")
    m = union.mount()
    before = numbers(m)
    union.remount()
    assert numbers(m) == before
    touch_all(m)
    union.remount()
    assert numbers(m) == before
    write(m / "new")
    new = os.stat(m / "new").st_ino
    union.remount()
    assert os.stat(m / "new").st_ino == new


def test_constant_over_rename(union):
    write(union.lower() / "d/low", "x")
    m = union.mount()
    write(m / "new", "x")
    os.mkdir(m / "dir")
    before = [os.stat(m / n).st_ino for n in ("d/low", "new", "dir")]
    os.rename(m / "d/low", m / "low2")
    os.rename(m / "new", m / "d/new2")
    os.rename(m / "dir", m / "d/dir2")
    after = [os.stat(m / n).st_ino for n in ("low2", "d/new2", "d/dir2")]
    if lib.settings.numbers_stay:
        assert after == before
    union.remount()
    after = [os.stat(m / n).st_ino for n in ("low2", "d/new2", "d/dir2")]
    assert after[1:] == before[1:]
    if lib.settings.level == "root":
        assert after == before


def test_one_device(union):
    populate(union.lower(0), "0")
    populate(union.upper, "u")
    m = union.mount()
    assert len({os.lstat(m / rel).st_dev for rel in lib.walk(m)}) == 1
    assert os.stat(m).st_dev != os.stat(union.upper).st_dev


def test_two_mounts_differ_in_device(union):
    """Else a program that compares two unions of the same layers believes they are one file."""
    write(union.lower() / "f")
    union.mount()
    other = mkdir(union.base / "other")
    union.mount(upper=False, point=other)
    assert os.stat(other / "f").st_dev != os.stat(union.point / "f").st_dev


def test_unique_on_one_filesystem(union):
    for i in range(3):
        populate(union.lower(i), str(i))
    populate(union.upper, "u")
    m = union.mount()
    found = numbers(m)
    assert len(set(found.values())) == len(found)


@pytest.mark.root("mounts file systems")
@pytest.mark.plyfs_only("numbers need xino=on there, and devices differ")
def test_unique_over_several_filesystems(new_union, scratch):
    with (
        lib.tmpfs(scratch, "t0") as t0,
        lib.tmpfs(scratch, "t1") as t1,
        lib.loop_filesystem(scratch, "ext4", 64 * MIB) as ext4,
        lib.loop_filesystem(scratch, "xfs", 400 * MIB) as xfs,
        lib.loop_filesystem(scratch, "btrfs", 200 * MIB) as btrfs,
    ):
        union = new_union()
        for i, fs in enumerate((t0, t1, ext4, xfs, btrfs)):
            layer = mkdir(fs / "l")
            union.use_lower(i, layer)
            for k in range(50):
                write(layer / f"f{i}-{k}")
                write(layer / f"d{i}-{k}/x")
            write(layer / "merged" / f"in{i}")
        m = union.mount()
        before = numbers(m)
        assert len(set(before.values())) == len(before) == 5 * 150 + 7
        assert len({os.lstat(m / rel).st_dev for rel in before}) == 1
        for i in range(5):
            for k in range(10):
                append(m / f"f{i}-{k}", b"x")
            write(m / f"d{i}-0/new")
        after = numbers(m)
        assert {r: n for r, n in after.items() if r in before} == before
        assert len(set(after.values())) == len(after)
        for directory in (".", "merged", "d0-0", "d4-0"):
            for name, (ino, _) in getdents_all(m / directory).items():
                if name != ".." or directory != ".":
                    assert ino == os.lstat(m / directory / name).st_ino, (directory, name)
        union.remount()
        assert numbers(m) == after
        union.close()


@pytest.mark.root("mounts file systems")
def test_constant_over_copy_up_from_another_filesystem(new_union, scratch):
    with lib.tmpfs(scratch) as fs:
        union = new_union()
        union.use_lower(0, mkdir(fs / "l"))
        populate(fs / "l", "0")
        m = union.mount()
        before = {n: os.lstat(m / n).st_ino for n in ("f-0", "s-0", "p-0")}
        touch_all(m)
        assert {n: os.lstat(m / n).st_ino for n in before} == before
        union.close()


def test_root_is_constant(union):
    write(union.lower() / "f")
    m = union.mount()
    before = os.stat(m).st_ino
    write(m / "g")
    os.chmod(m, 0o711)
    assert os.stat(m).st_ino == before
    union.remount()
    assert os.stat(m).st_ino == before


def test_hard_links_share_their_number(union):
    m = union.mount()
    write(m / "a")
    os.link(m / "a", m / "b")
    assert os.stat(m / "a").st_ino == os.stat(m / "b").st_ino
    assert os.stat(m / "a").st_nlink == 2


def test_new_objects_get_numbers_of_their_own(union):
    for i in range(20):
        write(union.lower() / f"l{i}")
    m = union.mount()
    for i in range(20):
        os.chmod(m / f"l{i}", 0o600)
        write(m / f"n{i}")
    found = numbers(m)
    assert len(set(found.values())) == 41


def test_numbers_in_listings_after_copy_up(union):
    for i in range(10):
        write(union.lower() / "d" / f"l{i}")
    m = union.mount()
    for i in range(0, 10, 2):
        append(m / "d" / f"l{i}", b"x")
    os.rename(m / "d/l0", m / "d/moved")
    write(m / "d/new")
    listed = getdents_all(m / "d")
    for name in names(m / "d"):
        assert listed[name][0] == os.stat(m / "d" / name).st_ino, name


def test_birth_time_stays(union):
    write(union.lower() / "f")
    m = union.mount()
    if lib.statx_btime(union.lower() / "f") is None:
        pytest.skip("this file system tells no birth time")
    assert lib.statx_btime(m / "f") == lib.statx_btime(union.lower() / "f")
    write(m / "new")
    assert lib.statx_btime(m / "new") == lib.statx_btime(union.upper / "new")


@pytest.mark.root("origins are decoded")
def test_copies_of_one_copied_up_file_have_two_numbers(union):
    """Made in upper by cp -a, xattrs and all. (The kernel's overlayfs serves only one of them.)"""
    lib.write(union.lower() / "f", "f")
    m = union.mount()
    os.utime(m / "f")
    number = os.stat(m / "f").st_ino
    union.umount()
    origin = union.overlay_xattr(union.upper / "f", "origin")
    lib.write(union.upper / "g", "g", xattrs={union.prefix + "origin": origin})
    union.check_kernel = False
    for first, second in ("fg", "gf"):
        m = union.remount() if union.mounts else union.mount()
        assert os.stat(m / first).st_ino == number
        assert os.stat(m / second).st_ino not in (0, number)
        os.link(m / first, m / "link")
        assert os.stat(m / "link").st_ino == number
        assert os.stat(m / "link").st_nlink == 2
        os.unlink(m / "link")
