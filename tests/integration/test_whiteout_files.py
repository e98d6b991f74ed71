# SPDX-License-Identifier: MIT
"""The dialects of whiteouts that fuse-overlayfs and builders of images write: .wh.NAME,
.wh..wh..opq and several xattrs, read on every layer, and written where devices cannot be made."""

import errno
import os
import shutil
import stat

import plyfs_testlib as lib
import pytest
from dropin import dropin_union
from layer_calls import count_calls
from plyfs_testlib import (
    exists,
    is_whiteout,
    make_whiteout,
    mkdir,
    names,
    opened,
    raises,
    read,
    write,
)

pytestmark = pytest.mark.plyfs_only("the dialects of fuse-overlayfs")

PREFIXES = ["user.overlay.", "user.fuseoverlayfs."]
if lib.settings.level == "root":
    PREFIXES.append("trusted.overlay.")


@pytest.fixture
def union(new_union):
    return dropin_union(new_union)


@pytest.fixture(params=["dropin", "files"])
def each(new_union, request):
    """Whiteouts written as devices, and as files."""
    return dropin_union(new_union, impl=request.param)


@pytest.fixture
def files(new_union):
    return dropin_union(new_union, impl="files")


# --- reading --------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", ["upper", "lower"])
def test_file_hides_its_name_below(union, layer):
    top = union.upper if layer == "upper" else union.lower(0)
    write(top / ".wh.f")
    write(top / "d/.wh.g")
    write(union.lower(1) / "f", "low")
    write(union.lower(1) / "d/g", "low")
    write(union.lower(1) / "d/h", "low")
    m = union.mount()
    assert names(m) == ["d"]
    assert names(m / "d") == ["h"]
    for path in ("f", "d/g", ".wh.f", "d/.wh.g"):
        with raises(errno.ENOENT):
            os.lstat(m / path)
    union.remount()
    with raises(errno.ENOENT):  # without a listing before
        os.lstat(m / "d/g")


def test_file_in_the_lowest_layer_hides_nothing(union):
    write(union.lower(0) / "f", "top")
    write(union.lower(1) / ".wh.f")
    write(union.lower(1) / ".wh.g")
    m = union.mount()
    assert names(m) == ["f"]
    assert read(m / "f") == b"top"


def test_file_hides_only_layers_below_its_own(union):
    write(union.lower(0) / "f", "top")
    write(union.lower(1) / ".wh.f")
    write(union.lower(1) / ".wh.g")
    write(union.lower(2) / "f", "low")
    write(union.lower(2) / "g", "low")
    m = union.mount()
    assert names(m) == ["f"]
    assert read(m / "f") == b"top"
    write(m / "g", "new")
    os.unlink(m / "g")
    assert names(union.upper) == []  # nothing is left that a whiteout would have to hide
    assert not exists(m / "g")


def test_object_beats_a_file_in_its_own_layer(union):
    write(union.lower(0) / "f", "top")
    write(union.lower(0) / ".wh.f")
    write(union.lower(1) / "f", "low")
    m = union.mount()
    assert read(m / "f") == b"top"
    assert names(m) == ["f"]


def test_directory_beside_its_whiteout_is_a_new_one(union):
    """As image layers mean it: the whiteout is for the layers below."""
    write(union.lower(0) / "d/top")
    write(union.lower(0) / ".wh.d")
    write(union.lower(1) / "d/low")
    m = union.mount()
    assert names(m / "d") == ["top"]
    assert not exists(m / "d/low")


@pytest.mark.parametrize("layer", ["upper", "lower"])
def test_opaque_file(union, layer):
    top = union.upper if layer == "upper" else union.lower(0)
    write(top / "d/.wh..wh..opq")
    write(top / "d/new")
    write(union.lower(1) / "d/old")
    m = union.mount()
    assert names(m / "d") == ["new"]
    assert not exists(m / "d/old")
    assert not exists(m / "d/.wh..wh..opq")


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("value", ["y", "n"])
def test_opaque_xattr_of_every_namespace(union, prefix, value):
    write(union.lower(0) / "d/new")
    os.setxattr(union.lower(0) / "d", prefix + "opaque", value.encode())
    write(union.lower(1) / "d/old")
    m = union.mount()
    assert names(m / "d") == (["new"] if value == "y" else ["new", "old"])
    assert exists(m / "d/old") == (value != "y")
    assert os.listxattr(m / "d") == []
    # nor is it copied up, where it would hide what the lower layer has
    write(m / "d/more")
    union.remount()
    assert names(m / "d") == (["more", "new"] if value == "y" else ["more", "new", "old"])


def test_opaque_root(union):
    write(union.lower(0) / "a")
    write(union.lower(0) / ".wh..wh..opq")
    write(union.lower(1) / "b")
    m = union.mount()
    assert names(m) == ["a"]
    assert not exists(m / "b")


def test_device_of_fuse_overlayfs_beside_its_opaque_file(union):
    write(union.lower(0) / "d/.wh..wh..opq")
    make_whiteout(union.lower(0) / "d/.wh..opq")
    write(union.lower(1) / "d/old")
    write(union.lower(0) / "e/.wh..opq")  # by itself a whiteout like others
    write(union.lower(1) / "e/.opq")
    write(union.lower(1) / "e/x")
    m = union.mount()
    assert names(m / "d") == []
    assert names(m / "e") == ["x"]


@pytest.mark.parametrize("prefix", [p for p in PREFIXES if "fuse" not in p])
def test_whiteout_in_an_xattr_of_either_prefix(union, prefix):
    for where in (union.lower(0), union.lower(0) / "d"):
        write(where / "f", xattrs={prefix + "whiteout": b""})
        os.setxattr(where, prefix + "opaque", b"x")
        write(where / "empty")
    write(union.lower(1) / "f", "low")
    write(union.lower(1) / "d/f", "low")
    write(union.lower(1) / "d/g", "low")
    m = union.mount()
    assert not exists(m / "f") and not exists(m / "d/f")
    assert names(m) == ["d", "empty"]
    assert names(m / "d") == ["empty", "g"]


def test_device_and_file_in_one_stack(union):
    make_whiteout(union.lower(0) / "a")
    write(union.lower(0) / ".wh.b")
    for name in "abc":
        write(union.lower(1) / name)
    m = union.mount()
    assert names(m) == ["c"]
    with raises(errno.ENOENT):
        os.lstat(m / "a")


def test_malformed_files_hide_nothing_and_are_not_shown(union):
    top, low = union.lower(0), union.lower(1)
    write(top / ".wh.")  # of no name
    mkdir(top / ".wh..wh..plnk")  # aufs' own
    mkdir(top / ".wh.dir")  # of a type that nobody writes
    os.symlink("nowhere", top / ".wh.link")
    write(top / (".wh." + "n" * 251))
    for name in ("dir", "link", "n" * 251, "keep"):
        write(low / name)
    m = union.mount()
    assert names(m) == ["keep"]
    for name in ("dir", "link", "n" * 251, ".wh.", ".wh.dir", ".wh..wh..plnk"):
        assert not exists(m / name)


def test_redirected_directory_is_not_hidden_by_its_whiteout(union):
    """What a crash in a rename leaves: the whiteout is there, the directory not yet gone."""
    write(union.lower(0) / "d/low")
    write(union.upper / ".wh.d")
    mkdir(union.upper / "d")
    os.setxattr(union.upper / "d", lib.settings.prefix + "redirect", b"d")
    m = union.mount("redirect_dir=on")
    assert names(m / "d") == ["low"]


# --- names ----------------------------------------------------------------------------------------

MAKERS = {
    "create": lambda p: os.close(os.open(p, os.O_CREAT | os.O_WRONLY)),
    "mkdir": os.mkdir,
    "symlink": lambda p: os.symlink("x", p),
    "mkfifo": os.mkfifo,
    "link": lambda p: os.link(p.parent / "n", p),
    "rename": lambda p: os.rename(p.parent / "n", p),
}


@pytest.mark.parametrize("make", MAKERS)
def test_whiteout_names_are_nobodys(union, make):
    write(union.lower() / "n")
    m = union.mount()
    for name in (".wh.q", ".wh.", ".wh..wh..opq", ".wh..wh..plnk", ".wh." + "x" * 247):
        with raises(errno.EINVAL):
            MAKERS[make](m / name)
        for call in (os.lstat, os.unlink, os.rmdir, os.listdir):
            with raises(errno.ENOENT):
                call(m / name)
    assert names(m) == ["n"]


@pytest.mark.parametrize("make", MAKERS)
def test_longest_name_leaves_room_for_its_whiteout(each, make):
    write(each.lower() / "n")
    write(each.lower() / ("d" * 251))
    m = each.mount()
    assert os.statvfs(m).f_namemax == 251
    for name in ("a" * 252, "a" * 255, ".wh." + "a" * 248):
        with raises(errno.ENAMETOOLONG, errno.EINVAL):
            MAKERS[make](m / name)
    with raises(errno.ENAMETOOLONG):
        os.lstat(m / ("a" * 252))
    MAKERS[make](m / ("a" * 251))
    os.unlink(m / ("d" * 251))
    each.remount()
    assert exists(m / ("a" * 251))
    assert not exists(m / ("d" * 251))


@pytest.mark.parametrize("mark", ["file", "xattr"])
def test_moved_directory_does_not_reach_below_an_opaque_root(union, mark):
    write(union.lower(0) / "d/in/top", "top")
    mkdir(union.lower(0) / "e")
    write(union.lower(1) / "d/in/low", "low")
    write(union.lower(1) / "d/low", "low")
    if mark == "file":
        write(union.lower(0) / ".wh..wh..opq")
    else:
        os.setxattr(union.lower(0), "user.fuseoverlayfs.opaque", b"y")
    m = union.mount("redirect_dir=on")
    os.rename(m / "d", m / "e/moved")
    for _ in range(2):
        assert names(m / "e/moved") == ["in"]
        assert names(m / "e/moved/in") == ["top"]
        assert not exists(m / "e/moved/low")
        union.remount()


@pytest.mark.parametrize("mode", [0, 0o400, 0o600])
@pytest.mark.parametrize("layer", ["upper", "lower"])
def test_directory_that_nobody_may_search_can_be_made_accessible(union, layer, mode):
    """Modes bind an ordinary user, who cannot ask what a directory holds."""
    top = union.upper if layer == "upper" else union.lower(0)
    write(top / "d/new")
    write(top / "opaque/.wh..wh..opq")
    write(union.lower(1) / "d/old")
    write(union.lower(1) / "opaque/old")
    union.snapshot_lowers()
    union.check_lowers = False  # their ctime: we change modes ourselves
    before = stat.S_IMODE(os.stat(top / "d").st_mode)
    for name in ("d", "opaque"):
        os.chmod(top / name, mode)
    m = union.mount()
    for name in ("d", "opaque"):
        assert stat.S_IMODE(os.stat(m / name).st_mode) == mode
        os.chmod(m / name, 0o755)
    if layer == "upper" or lib.settings.level != "user":
        assert names(m / "d") == ["new", "old"] and names(m / "opaque") == []
        assert not exists(m / "opaque/old")
    else:
        with raises(errno.EACCES):
            os.stat(m / "opaque/old")
    for name in ("d", "opaque"):
        os.chmod(top / name, before)


def test_names_that_leave_no_room_are_shown_all_the_same(each):
    """Layers of other makers may have them."""
    files = each.impl == "files"
    keep, gone = "k" * 255, "g" * 252
    for name in (keep, gone):
        write(each.lower() / name, "low")
    write(each.lower() / ("d" * 253) / "f", "low")
    m = each.mount()
    assert names(m) == sorted([keep, gone, "d" * 253])
    assert read(m / keep) == b"low" and names(m / ("d" * 253)) == ["f"]
    lib.append(m / keep, b"er")
    if files:  # nothing could say that it is gone
        with raises(errno.ENAMETOOLONG):
            os.unlink(m / gone)
        with raises(errno.ENAMETOOLONG):
            os.rename(m / gone, m / "new")
    else:
        os.unlink(m / gone)
        os.rename(m / keep, m / "kept")
        with raises(errno.ENAMETOOLONG):
            os.rename(m / "kept", m / keep)
    with raises(errno.ENAMETOOLONG):
        os.link(m / ("d" * 253) / "f", m / ("n" * 252))
    expected = [keep, gone] if files else ["kept"]
    for _ in range(2):
        assert names(m) == sorted([*expected, "d" * 253])
        assert read(m / expected[0]) == b"lower"
        each.remount()


# --- writing --------------------------------------------------------------------------------------


def hidden_by(union, path):
    """How upper hides a name: "device", "file", or None."""
    directory, name = os.path.split(union.upper / path)
    if is_whiteout(os.path.join(directory, name)):
        return "device"
    return "file" if exists(os.path.join(directory, ".wh." + name)) else None


@pytest.mark.privileged("mounts a filesystem that is full")
@pytest.mark.parametrize("impl", ["dropin", "files"])
def test_a_full_upper_is_mounted_to_make_room(new_union, scratch, impl):
    """And does not go over to files because there is no room for a device."""
    with lib.tmpfs(scratch, inodes=40) as fs:
        union = dropin_union(new_union, impl=impl, base=fs)
        write(union.lower() / "low", "low")
        write(union.upper / "own", "own")
        union.mount()
        union.umount()
        with raises(errno.ENOSPC):
            for i in range(40):
                write(fs / f"fill{i}")
        m = union.mount()
        with raises(errno.ENOSPC):
            os.unlink(m / "low")
        assert names(m) == ["low", "own"]
        for name in ("own", "low"):
            os.unlink(m / name)
            os.unlink(fs / f"fill{0 if name == 'own' else 1}")
        assert names(m) == []
        assert hidden_by(union, "low") == ("file" if impl == "files" else "device")
        union.close()


def test_devices_where_they_can_be_made(union):
    write(union.lower() / "f")
    m = union.mount()
    os.unlink(m / "f")
    assert hidden_by(union, "f") == "device"
    assert names(union.upper) == ["f"]


def test_files_where_devices_are_not_wanted(files):
    write(files.lower() / "f")
    write(files.lower() / "g", "low")
    m = files.mount()
    lib.append(m / "g", b"+")
    os.unlink(m / "f")
    os.unlink(m / "g")
    assert names(files.upper) == [".wh.f", ".wh.g"]
    st = os.lstat(files.upper / ".wh.f")
    assert (st.st_size, st.st_nlink) == (0, 1)
    assert names(m) == []
    files.remount()
    assert names(m) == []


def test_whiteout_goes_when_the_name_comes_back(each):
    for name in "abcdef":
        write(each.lower() / name, "low")
    m = each.mount()
    for name in "abcdef":
        os.unlink(m / name)
    write(m / "a", "new")
    os.symlink("t", m / "b")
    os.mkfifo(m / "c")
    os.link(m / "a", m / "d")
    write(m / "other", "moved")
    os.rename(m / "other", m / "e")
    os.mkdir(m / "f")
    assert names(each.upper) == names(m) == list("abcdef")
    each.remount()
    assert names(m) == list("abcdef")
    assert read(m / "d") == b"new"
    assert read(m / "e") == b"moved"


def test_directory_made_anew_is_empty(each):
    write(each.lower() / "d/old")
    write(each.lower() / "d/sub/old")
    m = each.mount()
    for _ in range(2):
        shutil.rmtree(m / "d")
        os.mkdir(m / "d")
        write(m / "d/new")
        assert not exists(m / "d/old")
        each.remount()
        assert names(m / "d") == ["new"]
        assert not exists(m / "d/sub")
    assert names(each.upper) == ["d"]


def test_directory_moved_over_a_whiteout_is_not_united(each):
    write(each.lower() / "d/old")
    m = each.mount()
    shutil.rmtree(m / "d")
    write(m / "e/new")
    os.rename(m / "e", m / "d")
    each.remount()
    assert names(m) == ["d"]
    assert names(m / "d") == ["new"]


def test_directory_over_one_that_holds_whiteouts(each):
    write(each.lower() / "d/old")
    m = each.mount()
    os.unlink(m / "d/old")
    write(m / "e/new")
    os.rename(m / "e", m / "d")
    each.remount()
    assert names(m) == ["d"]
    assert names(m / "d") == ["new"]


def test_rename_hides_the_old_name(each):
    write(each.lower() / "a", "low")
    write(each.lower() / "b", "other")
    m = each.mount()
    os.rename(m / "a", m / "c")
    os.rename(m / "c", m / "b")
    os.rename(m / "b", m / "a")
    assert hidden_by(each, "b")
    assert hidden_by(each, "a") is None
    each.remount()
    assert names(m) == ["a"]
    assert read(m / "a") == b"low"


def test_exchange(each):
    write(each.lower() / "a", "A")
    write(each.lower() / "b", "B")
    m = each.mount()
    lib.renameat2(m / "a", m / "b", lib.RENAME_EXCHANGE)
    os.unlink(m / "a")
    with raises(errno.ENOENT):
        lib.renameat2(m / "b", m / "a", lib.RENAME_EXCHANGE)
    each.remount()
    assert names(m) == ["b"]
    assert read(m / "b") == b"A"


def test_emptied_directory_can_be_removed(each):
    for n in range(20):
        write(each.lower() / f"d/f{n}")
    m = each.mount()
    for n in range(20):
        os.unlink(m / f"d/f{n}")
    assert names(m / "d") == []
    os.rmdir(m / "d")
    assert not exists(m / "d")
    each.remount()
    assert names(m) == []
    os.mkdir(m / "d")
    assert names(m / "d") == []


def test_directory_of_upper_that_holds_dead_whiteouts_can_be_removed(union):
    write(union.upper / "d/.wh.x")
    write(union.upper / "d/.wh..wh..opq")
    m = union.mount()
    os.rmdir(m / "d")
    assert names(union.upper) == []


def test_directory_in_place_of_a_whiteout_file_is_not_deleted(union):
    """Something that no overlay made, with data in it: nothing is lost by an rmdir."""
    write(union.upper / "d/.wh.x/data", "precious")
    m = union.mount()
    assert names(m / "d") == []
    with raises(errno.ENOTEMPTY):
        os.rmdir(m / "d")
    os.mkdir(m / "e")
    with raises(errno.ENOTEMPTY):
        os.rename(m / "e", m / "d")
    assert read(union.upper / "d/.wh.x/data") == b"precious"


def test_empty_directory_in_place_of_a_whiteout_file_goes_with_its_parent(union):
    """mkdir(2) in a mount of fuse-overlayfs 1.10 makes such."""
    mkdir(union.upper / "d/.wh.x")
    mkdir(union.upper / "e/.wh.x")
    mkdir(union.upper / "new")
    m = union.mount()
    os.rmdir(m / "d")
    os.rename(m / "new", m / "e")
    assert names(union.upper) == ["e"]
    assert names(union.upper / "e") == []


def test_layers_written_one_way_and_continued_the_other(new_union):
    union = dropin_union(new_union)
    for name in "abcd":
        write(union.lower() / name, "low")
    write(union.lower() / "e/f")
    m = union.mount(impl="files")
    os.unlink(m / "a")
    os.unlink(m / "b")
    shutil.rmtree(m / "e")
    union.umount()
    union.mount(impl="dropin")
    assert names(m) == ["c", "d"]
    write(m / "a", "new")
    os.unlink(m / "c")
    os.mkdir(m / "e")
    union.umount()
    union.mount(impl="files")
    assert names(m) == ["a", "d", "e"]
    assert names(m / "e") == []
    write(m / "c", "new")
    os.rename(m / "d", m / "b")
    union.umount()
    union.mount(impl="dropin")
    assert names(m) == ["a", "b", "c", "e"]
    assert read(m / "b") == b"low"
    os.mkdir(m / "d")
    union.umount()
    union.mount(impl="files")
    os.rmdir(m / "d")
    os.mkdir(m / "d")
    union.remount(impl="files")
    assert names(m / "d") == []


@pytest.mark.privileged("the incumbent is run as engines do")
@pytest.mark.parametrize("writer,reader", [("files", "incumbent"), ("incumbent", "files")])
def test_the_incumbent_reads_what_we_write_and_the_reverse(new_union, writer, reader):
    union = dropin_union(new_union)
    union.check_work = False
    for name in "abc":
        write(union.lower() / name, "low")
    write(union.lower() / "d/old")
    write(union.lower() / "e/old")
    m = union.mount(impl=writer)
    os.unlink(m / "a")
    os.rename(m / "b", m / "B")
    shutil.rmtree(m / "d")
    os.mkdir(m / "d")
    write(m / "d/new")
    shutil.rmtree(m / "e")
    union.umount()
    union.mount(impl=reader)
    assert names(m) == ["B", "c", "d"]
    assert names(m / "d") == ["new"]
    assert read(m / "B") == b"low"


@pytest.mark.root("the kernel's overlayfs mounts layers with trusted.* marks")
def test_the_kernel_reads_what_we_write(new_union):
    union = dropin_union(new_union)
    for name in "abc":
        write(union.lower() / name, "low")
    write(union.lower() / "d/old")
    m = union.mount()
    os.unlink(m / "a")
    os.rename(m / "b", m / "B")
    shutil.rmtree(m / "d")
    os.mkdir(m / "d")
    write(m / "d/new")
    before = lib.tree(m)
    union.umount()
    union.mount(impl="kernel")
    lib.assert_same_tree(before, lib.tree(m), "plyfs", "kernel")


# --- xattrs ---------------------------------------------------------------------------------------


def test_marks_of_a_nested_overlay_are_kept_and_mean_nothing(union):
    """An engine in the container marks its own directories: they must not be opaque to us."""
    write(union.lower() / "d/f")
    m = union.mount()
    os.setxattr(m / "d", "user.overlay.opaque", b"y")
    assert os.getxattr(m / "d", "user.overlay.opaque") == b"y"
    assert os.listxattr(m / "d") == ["user.overlay.opaque"]
    union.remount()
    assert names(m / "d") == ["f"]
    assert os.getxattr(m / "d", "user.overlay.opaque") == b"y"
    os.removexattr(m / "d", "user.overlay.opaque")
    assert os.listxattr(m / "d") == []


def test_xattrs_of_fuse_overlayfs_are_its_own(union):
    write(union.lower() / "f")
    os.setxattr(union.lower() / "f", "user.fuseoverlayfs.origin", b"elsewhere")
    os.setxattr(union.lower() / "f", "user.mine", b"1")
    m = union.mount()
    assert os.listxattr(m / "f") == ["user.mine"]
    with raises(errno.ENODATA):
        os.getxattr(m / "f", "user.fuseoverlayfs.origin")
    with raises(errno.EPERM):
        os.setxattr(m / "f", "user.fuseoverlayfs.opaque", b"y")
    lib.append(m / "f", b"x")
    assert os.listxattr(union.upper / "f").count("user.fuseoverlayfs.origin") == 0


# --- cost -----------------------------------------------------------------------------------------


@pytest.mark.limit(120)
@pytest.mark.privileged("strace of the server")
def test_missing_name_costs_no_more_than_without(new_union):
    layers = 6
    seen = {}
    for impl in ("plyfs", "dropin"):
        union = dropin_union(new_union, impl, impl=impl)
        for n in range(layers):
            write(union.lower(n) / f"d/f{n}")
        m = union.mount()
        write(m / "d/up")

        def miss(m=m):
            for n in range(10):
                with raises(errno.ENOENT):
                    os.lstat(m / f"d/missing{n}")

        with opened(m / "d", os.O_RDONLY):  # or somebody's drop_caches takes what is known of it
            for n in range(20):  # until it is worth knowing all names
                assert not exists(m / f"d/absent{n}")
            seen[impl] = count_calls(union, miss)
    assert seen == {"plyfs": [], "dropin": []}


@pytest.mark.privileged("strace of the server")
def test_missing_name_beside_whiteouts_costs_no_more(new_union):
    union = dropin_union(new_union)
    for n in range(300):
        write(union.lower(0) / f"d/.wh.f{n}")
        write(union.lower(1) / f"d/f{n}")
    m = union.mount()
    assert not exists(m / "d/first")

    def miss():
        assert not exists(m / "d/nothing")

    def hit():
        assert not exists(m / "d/f1")

    with opened(m / "d", os.O_RDONLY):
        for n in range(10):  # until it is worth knowing all names
            assert not exists(m / f"d/absent{n}")
        assert count_calls(union, miss) == []
        assert count_calls(union, hit) == ["statx"]  # of the file


def test_looking_does_not_change_the_atime_of_a_directory(union):
    """Neither the search for whiteouts in it, nor counting its links."""
    write(union.lower() / "d/f")
    write(union.upper / "d/g")
    os.utime(union.upper / "d", ns=(1, 10**18))  # older than mtime: relatime would set it
    m = union.mount()
    assert not exists(m / "d/missing")
    assert os.stat(m / "d").st_nlink == 2
    assert os.stat(union.upper / "d").st_atime_ns == 1
