# SPDX-License-Identifier: MIT
"""Which object a name finds, through upper and lower layers."""

import errno
import os
import stat

import plyfs_testlib as lib
import pytest
from plyfs_testlib import exists, make_whiteout, mkdir, names, raises, read, write


def test_topmost_layer_wins(union):
    write(union.lower(2) / "f", "bottom")
    write(union.lower(1) / "f", "middle")
    write(union.lower(0) / "f", "top")
    write(union.lower(2) / "only", "x")
    m = union.mount()
    assert read(m / "f") == b"top"
    assert read(m / "only") == b"x"
    write(m / "f", "upper")
    assert read(m / "f") == b"upper"
    assert read(union.lower(0) / "f") == b"top"


def test_upper_hides_lower(union):
    write(union.lower() / "f", "low")
    write(union.upper / "f", "up")
    m = union.mount()
    assert read(m / "f") == b"up"


def test_directories_merge_through_all_layers(union):
    for i in range(4):
        write(union.lower(i) / "d/e" / f"l{i}", str(i))
    write(union.upper / "d/e/u", "u")
    m = union.mount()
    assert names(m / "d/e") == ["l0", "l1", "l2", "l3", "u"]
    for i in range(4):
        assert read(m / "d/e" / f"l{i}") == str(i).encode()


def test_whiteout_in_upper_hides_lower(union):
    write(union.lower() / "d/f")
    write(union.lower() / "d/g")
    make_whiteout(union.upper / "d/f")
    m = union.mount()
    assert not exists(m / "d/f")
    assert names(m / "d") == ["g"]


def test_whiteout_in_middle_layer_hides_only_what_is_below(union):
    write(union.lower(2) / "d/f", "bottom")
    make_whiteout(union.lower(1) / "d/f")
    write(union.lower(2) / "d/g", "bottom")
    make_whiteout(union.lower(1) / "d/g")
    write(union.lower(0) / "d/g", "top")
    m = union.mount()
    assert not exists(m / "d/f")
    assert read(m / "d/g") == b"top"
    assert names(m / "d") == ["g"]


def test_whiteout_in_the_only_layer_that_has_the_name(union):
    make_whiteout(union.lower() / "d/gone")
    make_whiteout(union.upper / "d/gone2")
    m = union.mount()
    assert names(m / "d") == []
    assert not exists(m / "d/gone")
    assert not exists(m / "d/gone2")
    os.rmdir(m / "d")
    assert not exists(m / "d")


def test_whiteout_over_directory(union):
    write(union.lower(1) / "d/f")
    make_whiteout(union.lower(0) / "d")
    write(union.lower(0) / "x")
    m = union.mount()
    assert not exists(m / "d")
    assert names(m) == ["x"]


def test_directory_above_a_whiteout_does_not_merge_below_it(union):
    write(union.lower(2) / "d/bottom")
    make_whiteout(union.lower(1) / "d")
    write(union.lower(0) / "d/top")
    m = union.mount()
    assert names(m / "d") == ["top"]
    assert not exists(m / "d/bottom")


def test_opaque_directory_stops_merging(union):
    write(union.lower(1) / "d/below")
    union.opaque(union.lower(0) / "d")
    write(union.lower(0) / "d/here")
    m = union.mount()
    assert names(m / "d") == ["here"]
    assert not exists(m / "d/below")


def test_opaque_directory_in_upper(union):
    write(union.lower(1) / "d/e/below")
    write(union.lower(0) / "d/e/below2")
    union.opaque(union.upper / "d/e")
    m = union.mount()
    assert names(m / "d/e") == []
    assert names(m / "d") == ["e"]


def test_opaque_directory_hides_deep_names(union):
    write(union.lower(1) / "r/z/y/1", "1")
    union.opaque(union.lower(0) / "r/z")
    write(union.lower(0) / "r/z/n", "n")
    make_whiteout(union.lower(0) / "r/sibling")
    m = union.mount()
    assert not exists(m / "r/z/y")
    assert not exists(m / "r/z/y/1")
    assert names(m / "r/z") == ["n"]


@pytest.mark.parametrize("value", [b"", b"n", b"Y", b"yy", b"y\0", b"1", b"x" * 300])
def test_opaque_of_another_value_does_not_stop_merging(union, value):
    write(union.lower(1) / "d/below")
    union.opaque(union.lower(0) / "d", value)
    m = union.mount()
    assert names(m / "d") == ["below"]


def test_opaque_on_a_file_means_nothing(union):
    write(union.lower(1) / "f", "below")
    write(union.lower(0) / "f", "above", xattrs={union.prefix + "opaque": b"y"})
    m = union.mount()
    assert read(m / "f") == b"above"


def test_opaque_root_of_a_layer(union):
    write(union.lower(1) / "below")
    union.opaque(union.lower(0))
    write(union.lower(0) / "above")
    m = union.mount()
    assert exists(m / "above")
    assert names(m) == ["above", "below"]


@pytest.mark.parametrize("kind", ["file", "symlink", "fifo"])
def test_non_directory_above_hides_the_directory_below(union, kind):
    write(union.lower(1) / "n/below")
    if kind == "file":
        write(union.lower(0) / "n", "file")
    elif kind == "symlink":
        os.symlink("elsewhere", union.lower(0) / "n")
    else:
        os.mkfifo(union.lower(0) / "n")
    m = union.mount()
    st = os.lstat(m / "n")
    assert not stat.S_ISDIR(st.st_mode)
    assert not exists(m / "n/below")
    if kind == "file":
        assert read(m / "n") == b"file"


def test_file_below_a_directory_is_hidden_and_ends_the_merge(union):
    write(union.lower(2) / "n/bottom")
    write(union.lower(1) / "n", "file")
    write(union.lower(0) / "n/top")
    m = union.mount()
    assert names(m / "n") == ["top"]
    assert not exists(m / "n/bottom")


def test_symlink_to_directory_does_not_merge(union):
    write(union.lower(1) / "d/below")
    write(union.lower(1) / "other/o")
    os.symlink("other", union.lower(0) / "d")
    m = union.mount()
    assert os.readlink(m / "d") == "other"
    assert names(m / "d") == ["o"]


def test_symlink_below_a_directory_is_hidden(union):
    os.symlink("../../etc", union.lower(1) / "d")
    write(union.lower(0) / "d/x")
    m = union.mount()
    assert names(m / "d") == ["x"]
    assert not exists(m / "d/passwd")


def test_attributes_of_a_merged_directory_are_the_topmost(union):
    mkdir(union.lower(1) / "d", mode=0o700, mtime=10**18)
    mkdir(union.lower(0) / "d", mode=0o751, mtime=10**18 + 123456789)
    write(union.lower(1) / "d/f")
    os.utime(union.lower(1) / "d", ns=(10**18, 10**18))
    m = union.mount()
    st = os.stat(m / "d")
    assert oct(st.st_mode & 0o7777) == oct(0o751)
    assert st.st_mtime_ns == 10**18 + 123456789
    assert st.st_nlink == 1


def test_name_of_255_bytes(union):
    long = "n" * 255
    write(union.lower() / long, "long")
    m = union.mount()
    assert read(m / long) == b"long"
    write(m / ("m" * 255), "new")
    assert names(m) == ["m" * 255, long]
    os.unlink(m / long)
    assert lib.is_whiteout(union.upper / long)
    with raises(errno.ENAMETOOLONG):
        os.stat(m / ("n" * 256))
    with raises(errno.ENAMETOOLONG):
        write(m / ("n" * 256))


def test_odd_names(union):
    odd = [" ", "a\nb", "\\", ":", ",", "-o", "*", "'", '"', "\xff\xfe", "é", "...", ".wh.x", "#1"]
    low = union.lower()
    for name in odd:
        write(os.fsencode(low) + b"/" + name.encode("latin-1") and low / name, name)
    raw = os.fsencode(low) + b"/\xff\xfe\x80"
    with open(raw, "wb") as f:
        f.write(b"raw")
    m = union.mount()
    assert names(m) == names(low)
    for name in odd:
        assert read(m / name) == name.encode()
    with open(os.fsencode(m) + b"/\xff\xfe\x80", "rb") as f:
        assert f.read() == b"raw"
    for name in odd:
        os.unlink(m / name)
    assert len(names(m)) == 1


def test_dot_wh_names_are_ordinary(union):
    write(union.lower() / ".wh.foo", "real")
    write(union.lower() / "foo", "foo")
    write(union.lower() / "d/.wh..wh..opq", "not a mark")
    write(union.lower(1) / "d/below")
    m = union.mount()
    assert names(m) == [".wh.foo", "d", "foo"]
    assert names(m / "d") == [".wh..wh..opq", "below"]
    write(m / ".wh.bar", "made")
    assert read(m / ".wh.bar") == b"made"
    m = union.remount()
    assert read(m / ".wh.bar") == b"made"


def test_dot_and_dotdot(union):
    write(union.lower() / "d/e/f")
    m = union.mount()
    assert os.stat(m / "d/e/..").st_ino == os.stat(m / "d").st_ino
    assert os.stat(m / "d/.").st_ino == os.stat(m / "d").st_ino
    fd = os.open(m / "d/e", os.O_RDONLY)
    try:
        assert os.stat("..", dir_fd=fd).st_ino == os.stat(m / "d").st_ino
    finally:
        os.close(fd)


def test_missing_names_stay_missing_until_made(union):
    mkdir(union.lower() / "d")
    m = union.mount()
    for _ in range(3):
        assert not exists(m / "d/new")
    write(m / "d/new", "now")
    assert read(m / "d/new") == b"now"
    os.unlink(m / "d/new")
    assert not exists(m / "d/new")
    os.mkdir(m / "d/new")
    assert names(m / "d/new") == []


def test_component_that_is_a_file(union):
    write(union.lower() / "f")
    m = union.mount()
    with raises(errno.ENOTDIR):
        os.stat(m / "f/x")
    with raises(errno.ENOTDIR):
        os.mkdir(m / "f/x")


def test_xattr_whiteout_in_a_directory_marked_x(union):
    write(union.lower(1) / "d/gone", "below")
    write(union.lower(1) / "d/kept", "below")
    union.opaque(union.lower(0) / "d", b"x")
    write(union.lower(0) / "d/gone", xattrs={union.prefix + "whiteout": b"y"})
    m = union.mount()
    assert not exists(m / "d/gone")
    assert names(m / "d") == ["kept"]
    write(m / "d/gone", "again")
    assert read(m / "d/gone") == b"again"
    os.unlink(m / "d/gone")
    assert not exists(m / "d/gone")
    # the layer's own mark hides what is below: no whiteout is needed above it
    assert names(union.upper / "d") == []


def test_xattr_whiteout_with_any_value(union):
    write(union.lower(1) / "d/a")
    write(union.lower(1) / "d/b")
    union.opaque(union.lower(0) / "d", b"x")
    write(union.lower(0) / "d/a", xattrs={union.prefix + "whiteout": b""})
    write(union.lower(0) / "d/b", xattrs={union.prefix + "whiteout": b"v" * 200})
    m = union.mount()
    assert names(m / "d") == []
    assert not exists(m / "d/a")
    assert not exists(m / "d/b")


def test_xattr_whiteout_only_on_empty_files(union):
    write(union.lower(1) / "d/f", "below")
    union.opaque(union.lower(0) / "d", b"x")
    write(union.lower(0) / "d/f", "content", xattrs={union.prefix + "whiteout": b"y"})
    m = union.mount()
    assert read(m / "d/f") == b"content"
    assert names(m / "d") == ["f"]


def test_xattr_whiteout_in_the_root_directory(union):
    write(union.lower(1) / "gone")
    write(union.lower(1) / "kept")
    os.setxattr(union.lower(0), union.prefix + "opaque", b"x")
    write(union.lower(0) / "gone", xattrs={union.prefix + "whiteout": b"y"})
    m = union.mount()
    assert names(m) == ["kept"]
    assert not exists(m / "gone")


def test_directory_marked_x_merges(union):
    write(union.lower(2) / "d/bottom")
    union.opaque(union.lower(1) / "d", b"x")
    write(union.lower(1) / "d/gone", xattrs={union.prefix + "whiteout": b"y"})
    write(union.lower(2) / "d/gone")
    write(union.lower(0) / "d/top")
    m = union.mount()
    assert names(m / "d") == ["bottom", "top"]


@pytest.mark.root("redirects are not followed with user xattrs")
def test_redirect_is_followed(union):
    """The kernel's default: redirects are read, none are made."""
    write(union.lower(1) / "old/f", "f")
    write(union.lower(1) / "new/hidden")
    mkdir(union.lower(0) / "new", xattrs={union.prefix + "redirect": b"old"})
    make_whiteout(union.lower(0) / "old")
    m = union.mount()
    assert names(m) == ["new"]
    assert names(m / "new") == ["f"]
    assert read(m / "new/f") == b"f"


@pytest.mark.root("redirects are not followed with user xattrs")
def test_absolute_redirect_is_followed(union):
    write(union.lower(1) / "a/b/c/f", "f")
    mkdir(union.lower(0) / "x/y", xattrs={union.prefix + "redirect": b"/a/b/c"})
    m = union.mount()
    assert names(m / "x/y") == ["f"]
    write(m / "x/y/g", "g")
    assert read(union.upper / "x/y/g") == b"g"


@pytest.mark.root("redirects are not followed with user xattrs")
def test_redirect_is_refused_with_nofollow(union):
    write(union.lower(1) / "old/f")
    mkdir(union.lower(0) / "new", xattrs={union.prefix + "redirect": b"old"})
    m = union.mount("redirect_dir=nofollow")
    with raises(errno.EPERM):
        os.stat(m / "new")


@pytest.mark.root("the mark is trusted.overlay.metacopy")
def test_metacopy_file_is_refused(union):
    """Without metacopy=on a file whose data lies elsewhere must not show wrong data."""
    write(union.lower(1) / "f", "the real data")
    fd = os.open(union.lower(0) / "f", os.O_CREAT | os.O_WRONLY)
    os.ftruncate(fd, 13)
    os.close(fd)
    os.setxattr(union.lower(0) / "f", union.prefix + "metacopy", b"")
    union.check_kernel = False
    m = union.mount()
    with raises(errno.EPERM):
        read(m / "f")


@pytest.mark.root("redirects are not followed with user xattrs")
def test_relative_redirect_in_merged_parent_with_three_layers(union):
    write(union.lower(2) / "d/old/f2", "2")
    write(union.lower(1) / "d/old/f1", "1")
    mkdir(union.lower(0) / "d/new", xattrs={union.prefix + "redirect": b"old"})
    m = union.mount()
    assert names(m / "d/new") == ["f1", "f2"]
    assert names(m / "d") == ["new", "old"]


def test_layer_given_twice_is_refused(union):
    """The kernel answers ELOOP, so that no object appears twice."""
    write(union.lower() / "f")
    if lib.settings.impl == "kernel":
        with raises(errno.ELOOP):
            union.mount(lowers=[union.lower(), union.lower()])
    else:
        done = lib.run_plyfs(
            "mount", "-o", lib.layer_options([union.lower(), union.lower()]), union.point
        )
        assert done.returncode != 0
        assert str(union.lower()) in done.stderr
