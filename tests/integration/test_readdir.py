# SPDX-License-Identifier: MIT
"""Listing directories: names, types, numbers, positions."""

import ctypes
import errno
import os
import stat

import plyfs_testlib as lib
import pytest
from plyfs_testlib import getdents, getdents_all, make_whiteout, mkdir, names, raises, write

TYPES = {
    stat.S_IFREG: lib.DT_REG,
    stat.S_IFDIR: lib.DT_DIR,
    stat.S_IFLNK: lib.DT_LNK,
    stat.S_IFIFO: lib.DT_FIFO,
    stat.S_IFSOCK: lib.DT_SOCK,
    stat.S_IFCHR: lib.DT_CHR,
    stat.S_IFBLK: lib.DT_BLK,
}


def assert_listing_agrees_with_stat(path):
    """d_type and d_ino are what lstat says, for every name and for . and .. below the root."""
    listed = getdents_all(path)
    assert {".", ".."} <= set(listed)
    for name, (ino, kind) in listed.items():
        st = os.lstat(os.path.join(path, name))
        if name != "..":
            assert kind == TYPES[stat.S_IFMT(st.st_mode)], name
            assert ino == st.st_ino, f"{name}: d_ino {ino}, st_ino {st.st_ino}"
    return listed


def fill(directory, tag):
    write(directory / f"file-{tag}", tag)
    mkdir(directory / f"dir-{tag}")
    os.symlink("nowhere", directory / f"link-{tag}")
    os.mkfifo(directory / f"fifo-{tag}")
    os.mknod(directory / f"sock-{tag}", stat.S_IFSOCK | 0o600)


def test_types_and_inode_numbers(union):
    fill(mkdir(union.lower(1) / "d"), "l1")
    fill(mkdir(union.lower(0) / "d"), "l0")
    fill(mkdir(union.upper / "d"), "u")
    mkdir(union.lower(1) / "d/merged")
    mkdir(union.lower(0) / "d/merged")
    m = union.mount()
    assert len(assert_listing_agrees_with_stat(m / "d")) == 18
    # and again when some of it was copied up and some is new
    os.chmod(m / "d/file-l1", 0o600)
    os.chmod(m / "d/dir-l0", 0o700)
    fill(m / "d", "new")
    assert len(assert_listing_agrees_with_stat(m / "d")) == 23
    union.remount()
    assert len(assert_listing_agrees_with_stat(m / "d")) == 23


@pytest.mark.plyfs_only("d_ino is the upper's number, st_ino the lower's, until a mark is written")
def test_number_of_a_merged_directory_whose_upper_has_no_origin(union):
    mkdir(union.lower() / "d/merged")
    mkdir(union.upper / "d/merged")
    m = union.mount()
    assert_listing_agrees_with_stat(m / "d")
    write(m / "d/merged/new")
    assert_listing_agrees_with_stat(m / "d")


@pytest.mark.root("makes device nodes")
def test_types_of_devices(union):
    low = union.lower()
    os.mknod(low / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(low / "loop", stat.S_IFBLK | 0o600, os.makedev(7, 0))
    make_whiteout(low / "whiteout")
    m = union.mount()
    listed = assert_listing_agrees_with_stat(m)
    assert set(listed) == {".", "..", "null", "loop"}


def test_dotdot_number(union):
    write(union.lower() / "a/b/f")
    write(union.lower(1) / "a/b/g")
    m = union.mount()
    assert getdents_all(m / "a/b")[".."][0] == os.stat(m / "a").st_ino
    os.chmod(m / "a/b/f", 0o600)
    assert getdents_all(m / "a/b")[".."][0] == os.stat(m / "a").st_ino


def test_name_in_several_layers_is_listed_once(union):
    for i in range(5):
        write(union.lower(i) / "d/same", str(i))
    write(union.upper / "d/same", "u")
    m = union.mount()
    assert set(getdents_all(m / "d")) == {".", "..", "same"}


def test_empty_directories(union):
    mkdir(union.lower(1) / "d")
    mkdir(union.lower(0) / "d")
    m = union.mount()
    assert set(getdents_all(m / "d")) == {".", ".."}
    os.mkdir(m / "d/e")
    assert set(getdents_all(m / "d/e")) == {".", ".."}


@pytest.mark.parametrize("where", ["lower", "merged", "upper"])
def test_small_buffers_see_every_name_once(union, where):
    low = mkdir(union.lower() / "d")
    for i in range(300):
        write((low if where != "upper" else union.upper / "d") / f"name-{i:03}-{'x' * (i % 40)}")
    if where == "merged":
        for i in range(0, 600, 3):
            write(union.upper / "d" / f"name-{i:03}-{'x' * (i % 40)}", "u")
    want = set(names(low)) | {".", ".."}
    if where != "lower":
        want |= set(names(union.upper / "d"))
    m = union.mount()
    for size in (120, 300, 5000, 1 << 20):
        assert set(getdents_all(m / "d", size)) == want


@pytest.mark.parametrize("where", ["lower", "merged", "upper"])
def test_seek_to_any_position_that_was_given(union, where):
    """telldir/seekdir: reading on from an entry's offset gives exactly what followed it."""
    if where in ("lower", "merged"):
        for i in range(60):
            write(union.lower() / "d" / f"low{i}")
    if where in ("upper", "merged"):
        mkdir(union.lower() / "d")
        for i in range(60):
            write(union.upper / "d" / f"up{i}")
    m = union.mount()
    fd = os.open(m / "d", os.O_RDONLY)
    try:
        everything = []
        while part := getdents(fd, 200):
            everything += part
        assert len(everything) == len({e[3] for e in everything})
        for i in (0, 1, 5, 17, 40, 58, len(everything) - 2, len(everything) - 1):
            os.lseek(fd, everything[i][1], os.SEEK_SET)
            rest = []
            while part := getdents(fd, 200):
                rest += part
            assert [e[3] for e in rest] == [e[3] for e in everything[i + 1 :]]
        os.lseek(fd, 0, os.SEEK_SET)
        again = []
        while part := getdents(fd):
            again += part
        assert [e[3] for e in again] == [e[3] for e in everything]
    finally:
        os.close(fd)


def test_rewind_sees_new_names(union):
    write(union.lower() / "d/a")
    m = union.mount()
    fd = os.open(m / "d", os.O_RDONLY)
    try:
        assert {e[3] for e in getdents(fd)} == {".", "..", "a"}
        write(m / "d/b")
        os.unlink(m / "d/a")
        os.lseek(fd, 0, os.SEEK_SET)
        assert {e[3] for e in getdents(fd)} == {".", "..", "b"}
    finally:
        os.close(fd)


def test_unchanged_names_appear_exactly_once_while_others_come_and_go(union):
    for i in range(400):
        write(union.lower() / "d" / f"stay{i}")
        write(union.lower() / "d" / f"go{i}")
    m = union.mount()
    fd = os.open(m / "d", os.O_RDONLY)
    seen, n = [], 0
    try:
        while part := getdents(fd, 600):
            seen += [e[3] for e in part]
            if n < 400:
                os.unlink(m / "d" / f"go{n}")
                write(m / "d" / f"new{n}")
                n += 1
    finally:
        os.close(fd)
    stay = [s for s in seen if s.startswith("stay")]
    assert sorted(stay) == sorted(f"stay{i}" for i in range(400))
    assert len(seen) == len(set(seen))


def test_remove_everything_while_reading(union):
    """What rm -rf does: unlink each name as it is read."""
    for i in range(1000):
        write((union.lower() if i % 2 else union.upper) / "d" / f"n{i}")
    m = union.mount()
    fd = os.open(m / "d", os.O_RDONLY)
    try:
        while part := getdents(fd, 1000):
            for _, _, _, name in part:
                if name not in (".", ".."):
                    os.unlink(m / "d" / name)
    finally:
        os.close(fd)
    assert names(m / "d") == []
    os.rmdir(m / "d")


def test_listing_of_a_removed_directory(union):
    mkdir(union.lower() / "d")
    write(union.lower() / "d/f")
    m = union.mount()
    fd = os.open(m / "d", os.O_RDONLY)
    try:
        os.unlink(m / "d/f")
        os.rmdir(m / "d")
        with raises(errno.ENOENT):
            getdents(fd)
    finally:
        os.close(fd)


def test_listing_does_not_change_lower_atime(union):
    write(union.lower() / "d/f", "x")
    for path in (union.lower() / "d/f", union.lower() / "d"):
        os.utime(path, ns=(10**18, 10**18))
    m = union.mount()
    names(m / "d")
    lib.read(m / "d/f")
    union.umount()
    assert os.stat(union.lower() / "d").st_atime_ns == 10**18
    assert os.stat(union.lower() / "d/f").st_atime_ns == 10**18


def test_attributes_read_with_the_listing_are_fresh(union):
    """opendir, grow a file, read the listing, stat: the new size."""
    write(union.lower() / "d/a", "x" * 100)
    write(union.upper / "d/b", "x" * 100)
    m = union.mount()
    fd = os.open(m / "d", os.O_RDONLY)
    try:
        for name in "ab":
            lib.append(m / "d" / name, b"y" * 4900)
        getdents(fd)
        for name in "ab":
            assert os.stat(m / "d" / name).st_size == 5000
    finally:
        os.close(fd)


def test_order_is_the_same_every_time(union):
    """Also in the next mount: archives made of it are the same."""
    for i in range(100):
        write(union.lower(i % 3) / "d" / f"name{i * 7919 % 1000}")
    for i in range(20):
        write(union.upper / "d" / f"up{i}")
    m = union.mount()
    first = os.listdir(m / "d")
    assert os.listdir(m / "d") == first
    union.remount()
    assert os.listdir(m / "d") == first


def test_two_readers_do_not_disturb_each_other(union):
    for i in range(200):
        write((union.lower() if i % 2 else union.upper) / "d" / f"n{i}")
    m = union.mount()
    one, two = (os.open(m / "d", os.O_RDONLY) for _ in range(2))
    try:
        seen = [[], []]
        done = [False, False]
        while not all(done):
            for k, fd in enumerate((one, two)):
                part = getdents(fd, 400 if k else 900)
                done[k] = not part
                seen[k] += [e[3] for e in part]
        assert sorted(seen[0]) == sorted(seen[1])
        assert len(set(seen[0])) == 202 == len(seen[0])
    finally:
        os.close(one)
        os.close(two)


def test_listing_follows_changes_at_once(union):
    for i in range(50):
        write(union.lower() / "d" / f"l{i}")
    m = union.mount()
    want = set(names(m / "d"))
    for i in range(25):
        os.unlink(m / "d" / f"l{i}")
        want.discard(f"l{i}")
        write(m / "d" / f"new{i}")
        want.add(f"new{i}")
        assert set(names(m / "d")) == want
        os.rename(m / "d" / f"new{i}", m / "d" / f"moved{i}")
        want.discard(f"new{i}")
        want.add(f"moved{i}")
        assert set(names(m / "d")) == want


@pytest.mark.slow
@pytest.mark.limit(120)
def test_directory_of_100000_names(union):
    low = mkdir(union.lower() / "d")
    fd = os.open(low, os.O_RDONLY)
    try:
        for i in range(100000):
            os.mknod(f"name{i:06}", dir_fd=fd)
    finally:
        os.close(fd)
    write(union.upper / "d/name000007", "upper")
    make_whiteout(union.upper / "d/name000009")
    union.check_lowers = False
    m = union.mount()
    listed = getdents_all(m / "d")
    assert len(listed) == 100000 + 1
    assert "name000009" not in listed
    assert "name099999" in listed
    os.unlink(m / "d/name050000")
    write(m / "d/name100000")
    listed = getdents_all(m / "d")
    assert "name050000" not in listed and "name100000" in listed
    assert len(listed) == 100000 + 1


@pytest.mark.slow
@pytest.mark.limit(120)
def test_500_layers(union):
    for i in range(500):
        write(union.lower(i) / "d" / f"l{i:03}", str(i))
        write(union.lower(i) / "d/same", str(i))
    union.check_lowers = False
    m = union.mount()
    listed = getdents_all(m / "d")
    assert len(listed) == 503
    assert lib.read(m / "d/same") == b"0"
    assert lib.read(m / "d/l499") == b"499"
    write(m / "d/l499", "new")
    assert lib.read(union.upper / "d/l499") == b"new"
    os.unlink(m / "d/same")
    assert lib.is_whiteout(union.upper / "d/same")
    assert len(getdents_all(m / "d")) == 502


def test_position_of_the_end_can_be_sought(union):
    for i in range(20):
        write(union.lower() / "d" / f"n{i}")
    write(union.upper / "d/u")
    m = union.mount()
    fd = os.open(m / "d", os.O_RDONLY)
    try:
        last = 0
        while part := getdents(fd):
            last = part[-1][1]
        os.lseek(fd, last, os.SEEK_SET)
        assert getdents(fd) == []
    finally:
        os.close(fd)


def test_libc_scandir_agrees(union):
    """readdir(3) and d_type through the C library."""
    fill(mkdir(union.lower() / "d"), "a")
    fill(mkdir(union.upper / "d"), "b")
    m = union.mount()
    with os.scandir(m / "d") as it:
        for entry in it:
            st = os.lstat(entry.path)
            assert entry.inode() == st.st_ino
            assert entry.is_dir(follow_symlinks=False) == stat.S_ISDIR(st.st_mode)
            assert entry.is_symlink() == stat.S_ISLNK(st.st_mode)


def test_buffer_too_small_for_one_entry_is_einval(union):
    write(union.lower() / ("n" * 200))
    m = union.mount()
    fd = os.open(m, os.O_RDONLY)
    try:
        buf = ctypes.create_string_buffer(16)
        assert lib.libc.syscall(217, fd, buf, 16) == -1
        assert ctypes.get_errno() == 22
    finally:
        os.close(fd)


def test_removed_while_reading_shows_no_other_number(union):
    """An entry that was there when reading began may still be listed, but not as another object."""
    for i in range(100):
        write(union.lower() / f"o{i}", "x")
    m = union.mount()
    mkdir(m / "impure")
    for i in range(100):
        os.rename(m / f"o{i}", m / "impure" / f"o{i}")
    union.remount()
    numbers = {name: os.stat(m / "impure" / name).st_ino for name in os.listdir(m / "impure")}
    union.remount()
    with lib.opened(m / "impure", os.O_RDONLY | os.O_DIRECTORY) as fd:
        seen = getdents(fd, 200)
        for i in range(90, 100):
            os.unlink(m / "impure" / f"o{i}")
        while chunk := getdents(fd, 200):
            seen += chunk
    listed = {name: ino for ino, _, _, name in seen if name not in (".", "..")}
    assert listed.items() <= numbers.items()
    assert listed.keys() >= {f"o{i}" for i in range(90)}
