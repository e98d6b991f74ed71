# SPDX-License-Identifier: MIT
"""Redirects and metacopies with strange names, long paths, many layers, and things in use."""

import os

import plyfs_testlib as lib
import pytest
from plyfs_testlib import RENAME_EXCHANGE, mkdir, names, opened, raises, read, renameat2, write

pytestmark = pytest.mark.root("trusted xattrs hold the marks")
ON = "metacopy=on"
DATA = b"0123456789" * 1000


def everywhere(union, check):
    """Holds now, after a remount, and when the other implementation mounts the same layers."""
    check(union.point)
    union.remount()
    check(union.point)
    union.remount(impl="kernel" if lib.settings.impl == "plyfs" else "plyfs")
    check(union.point)
    union.remount()


ODD = [b"a\nb", b"\xff\xfe", b"x,y:z\\", b" ", b"...", b"#abc", b".wh.x", b"\xe2\x80\xae", b"n" * 255]


@pytest.mark.parametrize("name", ODD, ids=repr)
def test_names(union, name):
    low, other = os.fsencode(union.lower()), b"z" + name[1:]
    write(os.fsdecode(low + b"/" + name + b"/f"), b"f" + DATA)
    write(os.fsdecode(low + b"/plain/" + name), DATA)
    mkdir(union.lower() / "to")
    m = os.fsencode(union.mount(ON))
    os.rename(m + b"/" + name, m + b"/to/" + other)
    os.chmod(m + b"/to/" + other + b"/f", 0o600)
    os.rename(m + b"/plain", m + b"/" + name)
    os.chmod(m + b"/" + name + b"/" + name, 0o600)
    os.rename(m + b"/" + name + b"/" + name, m + b"/" + name + b"/g")

    def check(point):
        p = os.fsencode(point)
        assert read(os.fsdecode(p + b"/to/" + other + b"/f")) == b"f" + DATA
        assert read(os.fsdecode(p + b"/" + name + b"/g")) == DATA

    everywhere(union, check)


def test_longer_than_any_path(union):
    """40 directories of 200 bytes below one that is renamed, and a metacopy at the bottom."""
    union.check_lowers = union.check_kernel = False
    here = os.getcwd()

    def descend(top, make=False):
        os.chdir(top)
        for _ in range(40):
            if make:
                os.mkdir("n" * 200)
            os.chdir("n" * 200)

    try:
        descend(mkdir(union.lower() / "d"), make=True)
        write("leaf", DATA)
        os.chdir(here)
        m = union.mount(ON)
        os.rename(m / "d", m / "e")
        descend(m / "e")
        os.chmod("leaf", 0o600)
        with raises(18):  # no redirect is as long
            os.rename("leaf", m / "leaf")
        os.rename("leaf", "leaf2")
        os.chdir(here)

        def check(point):
            descend(point / "e")
            assert read("leaf2") == DATA
            assert names(".") == ["leaf2"]
            os.chdir(here)

        everywhere(union, check)
        descend(m / "e")
        lib.append("leaf2", b"+")
        assert read("leaf2") == DATA + b"+"
    finally:
        os.chdir(here)


@pytest.mark.limit(120)
def test_many_layers(union):
    count = 200
    for n in range(count):
        write(union.lower(n) / "d" / f"f{n}", "x")
        write(union.lower(n) / "d" / "sub" / f"f{n}", "x" * n)
    mkdir(union.lower(0) / "to")
    m = union.mount(ON)
    for _ in range(5):
        os.rename(m / "d" / "sub", m / "to" / "sub")
        os.rename(m / "to" / "sub", m / "d" / "sub")
    os.rename(m / "d" / "sub", m / "to" / "sub")
    for n in range(count):
        os.chmod(m / "to" / "sub" / f"f{n}", 0o600)
    os.rename(m / "d", m / "e")

    def check(point):
        assert len(names(point / "e")) == count
        assert len(names(point / "to" / "sub")) == count
        for n in range(count):
            assert read(point / "to" / "sub" / f"f{n}") == b"x" * n

    everywhere(union, check)


def test_each_layer_renames_again(new_union):
    """What both implementations leave in turn is the next one's lower layer."""
    union = new_union("first")
    write(union.lower() / "d0" / "f", DATA)
    write(union.lower() / "d0" / "sub" / "g", b"g" + DATA)
    layers = [union.lower()]

    def with_layers(name):
        u = new_union(name)
        u.check_kernel = False
        for number, layer in enumerate(layers):
            u.use_lower(number, layer)
        return u

    for n in range(12):
        u = with_layers(f"u{n}")
        m = u.mount(ON, impl=("plyfs", "kernel")[n % 2])
        os.rename(m / f"d{n}", m / f"d{n + 1}")
        if n % 3 == 0:
            os.chmod(m / f"d{n + 1}" / "f", 0o600 + n)
        if n == 4:
            os.rename(m / "d5" / "sub", m / "sub")
        u.umount()
        layers.insert(0, u.upper)
    u = with_layers("last")
    m = u.mount(ON)
    os.rename(m / "sub", m / "d12" / "back")
    os.rename(m / "d12" / "f", m / "d12" / "back" / "f")
    os.rename(m / "d12" / "back", m / "top")

    def check(point):
        assert names(point) == ["d12", "top"]
        assert names(point / "d12") == []
        assert read(point / "top" / "f") == DATA
        assert read(point / "top" / "g") == b"g" + DATA

    everywhere(u, check)


def test_metacopy_changes_places_with_a_directory(union):
    write(union.lower() / "a" / "f", DATA)
    write(union.lower() / "b" / "d" / "g", b"g" + DATA)
    write(union.lower() / "b" / "d" / "h" / "g", b"h" + DATA)
    m = union.mount(ON)
    os.chmod(m / "a" / "f", 0o600)
    renameat2(m / "a" / "f", m / "b" / "d", RENAME_EXCHANGE)

    def check(point):
        assert read(point / "b" / "d") == DATA
        assert read(point / "a" / "f" / "g") == b"g" + DATA

    everywhere(union, check)
    renameat2(m / "a" / "f" / "h", m / "b" / "d", RENAME_EXCHANGE)
    lib.append(m / "a" / "f" / "h", b"+")

    def check_again(point):
        assert read(point / "a" / "f" / "h") == DATA + b"+"
        assert read(point / "b" / "d" / "g") == b"h" + DATA

    everywhere(union, check_again)


@pytest.mark.plyfs_only("an fd from before copy-up sees the new data")
def test_replaced_while_in_use(union):
    for name in "ab":
        write(union.lower() / name, name.encode() + DATA)
    write(union.lower() / "d" / "x", "x")
    mkdir(union.lower() / "e")
    m = union.mount(ON)
    for name in "ab":
        os.chmod(m / name, 0o600)
    with opened(m / "a", os.O_RDONLY) as a, opened(m / "b", os.O_RDWR) as b:
        with opened(m / "e", os.O_RDONLY | os.O_DIRECTORY) as e:
            os.rename(m / "a", m / "b")
            os.rename(m / "d", m / "e")
            assert os.listdir(e) == []
        os.pwrite(b, b"B", 0)
        assert os.pread(b, 3, 0) == b"B01"
        os.unlink(m / "b")
        write("/proc/sys/vm/drop_caches", "2")
        os.fchmod(a, 0o640)
        assert os.fstat(a).st_nlink == 0
        assert os.pread(a, len(DATA) + 1, 0) == b"a" + DATA
        with opened(f"/proc/self/fd/{a}", os.O_RDWR) as again:
            os.pwrite(again, b"A", 0)
        assert os.pread(a, len(DATA) + 1, 0) == b"A" + DATA
    assert names(m / "e") == ["x"]


def test_numbers_stay(union):
    for n in (0, 1):
        for k in range(3):
            write(union.lower(n) / "d" / f"s{k}" / f"f{n}", DATA)
    mkdir(union.lower() / "t")
    m = union.mount(ON)
    moved = {
        "d": "D",
        "d/s0": "D/s0",
        "d/s1": "t/S1",
        "d/s1/f0": "t/S1/f0",
        "d/s0/f0": "t/F",
        "d/s0/f1": "D/s0/f1",
        "t": "t",
    }
    before = [os.lstat(m / name).st_ino for name in moved]
    os.rename(m / "d" / "s1", m / "t" / "S1")
    os.chmod(m / "d" / "s0" / "f0", 0o600)
    os.rename(m / "d" / "s0" / "f0", m / "t" / "F")
    os.rename(m / "d", m / "D")

    def check(point):
        assert [os.lstat(point / name).st_ino for name in moved.values()] == before
        for top in (point, point / "t", point / "D", point / "D" / "s0"):
            assert all(e.inode() == os.lstat(e).st_ino for e in os.scandir(top))

    everywhere(union, check)
    with opened(m / "t" / "F", os.O_RDWR):
        check(m)
    everywhere(union, check)


@pytest.mark.parametrize("name", ["..a", "a..", "a..b", "..."])
def test_dots_in_the_path_of_data(union, name):
    """Which are part of a name, and no way up."""
    write(union.lower() / name / "f", DATA)
    write(union.lower() / name / name, b"n" + DATA)
    m = union.mount(ON)
    os.chmod(m / name / "f", 0o600)
    os.chmod(m / name / name, 0o600)

    def check(point):
        assert read(point / name / "f") == DATA
        assert read(point / name / name) == b"n" + DATA

    everywhere(union, check)
