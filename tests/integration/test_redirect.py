# SPDX-License-Identifier: MIT
"""redirect_dir=: directories of lower layers that are renamed."""

import errno
import os

import plyfs_testlib as lib
import pytest
from plyfs_testlib import (
    RENAME_EXCHANGE,
    exists,
    is_whiteout,
    mkdir,
    names,
    opened,
    raises,
    read,
    renameat2,
    write,
)

pytestmark = pytest.mark.root("trusted xattrs hold redirects")
ON = "redirect_dir=on"


def everywhere(union, check):
    """Holds now, after a remount, and when the other implementation mounts the same layers."""
    check(union.point)
    union.remount()
    check(union.point)
    union.remount(impl="kernel" if lib.settings.impl == "plyfs" else "plyfs")
    check(union.point)
    union.remount()


def two_layers(union):
    for number in (0, 1):
        base = union.lower(number)
        write(base / "d" / f"only{number}", f"only{number}")
        write(base / "d" / "both", f"both{number}")
        write(base / "d" / "sub" / f"deep{number}", f"deep{number}")


def assert_is_d(path):
    assert names(path) == ["both", "only0", "only1", "sub"]
    assert read(path / "both") == b"both0"
    assert names(path / "sub") == ["deep0", "deep1"]
    assert read(path / "sub" / "deep1") == b"deep1"


@pytest.mark.parametrize("options", ["", "redirect_dir=follow", "redirect_dir=off",
                                     "redirect_dir=nofollow"])
def test_without_it_a_lower_directory_is_not_renamed(union, options):
    two_layers(union)
    m = union.mount(options)
    with raises(errno.EXDEV):
        os.rename(m / "d", m / "e")
    assert_is_d(m / "d")


def test_in_one_directory_the_redirect_is_the_name(union):
    two_layers(union)
    m = union.mount(ON)
    ino = os.stat(m / "d").st_ino
    os.rename(m / "d", m / "e")
    assert os.stat(m / "e").st_ino == ino
    assert union.overlay_xattr(union.upper / "e", "redirect") == b"d"
    assert is_whiteout(union.upper / "d")

    def check(point):
        assert names(point) == ["e"]
        assert_is_d(point / "e")

    everywhere(union, check)
    # the name of the first place stays, wherever in the directory it goes
    os.rename(m / "e", m / "f")
    assert union.overlay_xattr(union.upper / "f", "redirect") == b"d"
    everywhere(union, lambda point: assert_is_d(point / "f"))


def test_into_another_directory_the_redirect_is_a_path(union):
    two_layers(union)
    mkdir(union.lower() / "x" / "y")
    m = union.mount(ON)
    os.rename(m / "d" / "sub", m / "x" / "y" / "moved")
    assert union.overlay_xattr(union.upper / "x" / "y" / "moved", "redirect") == b"/d/sub"

    def check(point):
        assert names(point / "d") == ["both", "only0", "only1"]
        assert names(point / "x" / "y" / "moved") == ["deep0", "deep1"]

    everywhere(union, check)
    # and back to its first place: it is redirected to where it is
    os.rename(m / "x" / "y" / "moved", m / "d" / "sub")
    everywhere(union, lambda point: assert_is_d(point / "d"))


def test_chain_of_moves_leads_to_the_first_place(union):
    two_layers(union)
    m = union.mount(ON)
    os.rename(m / "d", m / "d1")  # "d"
    os.rename(m / "d1" / "sub", m / "d1" / "sub1")  # "sub"
    os.rename(m / "d1" / "sub1", m / "s")  # below d1, which is d: "/d/sub"
    os.mkdir(m / "new")
    os.rename(m / "d1", m / "new" / "d2")
    os.rename(m / "new", m / "newer")
    os.rename(m / "s", m / "newer" / "d2" / "back")
    upper = union.upper / "newer"
    assert union.overlay_xattr(upper / "d2", "redirect") == b"/d"
    assert union.overlay_xattr(upper / "d2" / "back", "redirect") == b"/d/sub"
    assert union.overlay_xattr(upper, "redirect") is None

    def check(point):
        assert names(point) == ["newer"]
        assert names(point / "newer" / "d2") == ["back", "both", "only0", "only1"]
        assert read(point / "newer" / "d2" / "back" / "deep0") == b"deep0"

    everywhere(union, check)


def test_contents_are_changed_after_the_move(union):
    two_layers(union)
    m = union.mount(ON)
    os.rename(m / "d", m / "e")
    write(m / "e" / "both", "changed")
    os.unlink(m / "e" / "only1")
    write(m / "e" / "sub" / "new", "new")
    os.mkdir(m / "d")
    write(m / "d" / "both", "another")

    def check(point):
        assert names(point / "d") == ["both"]
        assert read(point / "d" / "both") == b"another"
        assert names(point / "e") == ["both", "only0", "sub"]
        assert read(point / "e" / "both") == b"changed"
        assert names(point / "e" / "sub") == ["deep0", "deep1", "new"]

    everywhere(union, check)


def test_exchange_of_lower_directories(union):
    two_layers(union)
    write(union.lower() / "other" / "f", "other")
    m = union.mount(ON)
    renameat2(m / "d", m / "other", RENAME_EXCHANGE)

    def check(point):
        assert names(point / "d") == ["f"]
        assert_is_d(point / "other")

    everywhere(union, check)
    renameat2(m / "d", m / "other", RENAME_EXCHANGE)

    def check_back(point):
        assert names(point / "other") == ["f"]
        assert_is_d(point / "d")

    everywhere(union, check_back)


def test_over_an_emptied_lower_directory(union):
    two_layers(union)
    write(union.lower() / "target" / "f", "f")
    m = union.mount(ON)
    with raises(errno.ENOTEMPTY):
        os.rename(m / "d", m / "target")
    os.unlink(m / "target" / "f")
    os.rename(m / "d", m / "target")

    def check(point):
        assert names(point) == ["target"]
        assert_is_d(point / "target")

    everywhere(union, check)


def test_removed_after_the_move_stays_removed(union):
    two_layers(union)
    m = union.mount(ON)
    os.rename(m / "d", m / "e")
    lib.remove_tree(m / "e")
    everywhere(union, lambda point: names(point) == [] or pytest.fail(str(names(point))))
    os.mkdir(m / "d")
    os.mkdir(m / "e")

    def check(point):
        assert names(point / "d") == []
        assert names(point / "e") == []

    everywhere(union, check)


def test_below_an_opaque_directory(union):
    """The opaque one hides a name below, not the place where a redirect leads."""
    two_layers(union)
    mkdir(union.lower() / "o" / "p")
    m = union.mount(ON)
    lib.remove_tree(m / "o")
    os.mkdir(m / "o")
    os.rename(m / "d", m / "o" / "p")
    assert union.overlay_xattr(union.upper / "o", "opaque") == b"y"
    everywhere(union, lambda point: assert_is_d(point / "o" / "p"))


def test_too_long_a_path_is_exdev(union):
    long = "n" * 240
    for name in ("a" * 14, "b" * 15):
        write(union.lower() / long / name / "f", name)
    m = union.mount(ON)
    os.rename(m / long / ("a" * 14), m / "fits")  # 256 bytes, redirect_max
    with raises(errno.EXDEV):
        os.rename(m / long / ("b" * 15), m / "too long")
    os.rename(m / long / ("b" * 15), m / long / "c")  # its name is short enough

    def check(point):
        assert read(point / "fits" / "f") == b"a" * 14
        assert read(point / long / "c" / "f") == b"b" * 15

    everywhere(union, check)


def test_upper_with_redirects_is_a_lower_layer(union, new_union):
    two_layers(union)
    m = union.mount(ON)
    os.rename(m / "d" / "sub", m / "s")
    os.rename(m / "d", m / "e")
    union.umount()
    second = new_union("second")
    lowers = [union.upper, union.lower(0), union.lower(1)]
    for number, path in enumerate(lowers):
        second.use_lower(number, path)
    m = second.mount(ON)
    os.rename(m / "e", m / "f")
    os.rename(m / "s", m / "f" / "s2")
    assert second.overlay_xattr(second.upper / "f", "redirect") == b"e"
    assert second.overlay_xattr(second.upper / "f" / "s2", "redirect") == b"/s"

    def check(point):
        assert names(point) == ["f"]
        assert names(point / "f") == ["both", "only0", "only1", "s2"]
        assert names(point / "f" / "s2") == ["deep0", "deep1"]

    everywhere(second, check)


def test_open_files_and_directories_move_along(union):
    two_layers(union)
    m = union.mount(ON)
    fd = os.open(m / "d" / "sub" / "deep0", os.O_RDONLY)
    dirfd = os.open(m / "d" / "sub", os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.rename(m / "d", m / "e")
        with open("/proc/sys/vm/drop_caches", "w") as f:
            f.write("2")
        assert os.pread(fd, 10, 0) == b"deep0"
        assert sorted(os.listdir(dirfd)) == ["deep0", "deep1"]
        new = os.open("made", os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=dirfd)
        os.close(new)
        os.rename(m / "e", m / "d")
        assert exists(m / "d" / "sub" / "made")
    finally:
        os.close(fd)
        os.close(dirfd)


@pytest.mark.parametrize("plain", [False, True], ids=["two redirects", "plain and redirect"])
def test_one_lower_directory_at_two_places(union, plain):
    """A copy of an upper layer's directory, xattrs and all: the second one found is stale."""
    two_layers(union)
    places = ["d", "x"] if plain else ["x", "y"]
    for name in "xy":
        mkdir(union.upper / name, xattrs={union.prefix + "redirect": b"/d"})
    union.check_kernel = False
    for impl in ("plyfs", "kernel"):
        for first, second in (places, reversed(places)):
            if union.mounts:
                union.umount()
            m = union.mount(ON, impl=impl)
            with opened(m / first, os.O_RDONLY | os.O_DIRECTORY):
                assert_is_d(m / first)
                with raises(errno.ESTALE):
                    os.stat(m / second)
                assert_is_d(m / first)


def test_redirect_into_itself(union):
    """A loop made by hand ends."""
    two_layers(union)
    mkdir(union.upper / "d" / "sub", xattrs={union.prefix + "redirect": b"/d"})
    union.check_kernel = False
    for impl in ("plyfs", "kernel"):
        if union.mounts:
            union.umount()
        m = union.mount(ON, impl=impl)
        with opened(m / "d", os.O_RDONLY | os.O_DIRECTORY):
            with raises(errno.ESTALE):
                os.stat(m / "d" / "sub")


@pytest.mark.parametrize("options", ["", ON, "metacopy=on", "index=on", "xino=on"])
def test_new_directory_is_opaque_where_layers_may_not_change(union, options):
    mkdir(union.lower() / "d")
    m = union.mount(options)
    os.mkdir(m / "new")
    os.mkdir(m / "d" / "new")
    os.mkdir(m / "new" / "inner")
    expected = b"y" if options else None
    assert union.overlay_xattr(union.upper / "new", "opaque") == expected
    assert union.overlay_xattr(union.upper / "d" / "new", "opaque") == expected
    assert union.overlay_xattr(union.upper / "new" / "inner", "opaque") is None
