# SPDX-License-Identifier: MIT
"""plyfs fsck: each kind of damage, what it takes to repair it, and fsck(8)'s manners."""

import os
import pty
import shutil
import signal
import stat
import subprocess
import uuid

import plyfs_testlib as lib
import pytest

pytestmark = pytest.mark.plyfs_only("fsck")

OK, FIXED, LEFT, OPERATION, USAGE, CANCELLED = 0, 1, 4, 8, 16, 32
FIXABLE = ("-p", "-y")  # safe: both do it
DECIDED = ("-y",)

root_only = pytest.mark.root("origins are decoded, redirects followed by root only")


def options(union, features=""):
    out = lib.layer_options(union.lowers, union.upper, union.work, features)
    return out if lib.settings.level == "root" else out + ",userxattr"


def fsck(union, *args, features="", **kw):
    return lib.run_plyfs("fsck", *args, "-o", options(union, features), **kw)


def mark(path, name, value=None):
    full = lib.settings.prefix + name
    if value is not None:
        os.setxattr(path, full, value, follow_symlinks=False)
    return lib.xattr(path, full)


def unmark(path, name):
    os.removexattr(path, lib.settings.prefix + name)


def both_show(union, features=""):
    """The names that both implementations show, with their contents; they must agree."""
    shown = []
    for impl in ("plyfs", "kernel") if lib.settings.can_kernel else ("plyfs",):
        root = union.mount(features, impl=impl)
        out = {}
        for rel in lib.walk(root):
            st = os.lstat(root / rel)
            out[rel] = lib.read(root / rel) if stat.S_ISREG(st.st_mode) else stat.S_IFMT(st.st_mode)
        shown.append(out)
        union.umount()
    assert shown[0] == shown[-1]
    return shown[0]


def expect(union, kind, modes, features="", path=None):
    """-n tells of it and writes nothing; the modes that repair do; then nothing is left."""
    before = [lib.tree(p, layer=True) for p in (union.upper, union.work)]
    told = fsck(union, "-n", features=features)
    assert told.returncode == LEFT and f"[{kind}]" in told.stdout, told
    if path:
        assert f": {path}: " in told.stdout, told
    by_default = fsck(union, features=features)
    assert (by_default.returncode, by_default.stdout) == (LEFT, told.stdout)
    if modes == DECIDED:
        preened = fsck(union, "-p", features=features)
        assert preened.returncode == LEFT and f"[{kind}]" in preened.stdout, preened
    for old, place in zip(before, (union.upper, union.work)):
        lib.assert_same_tree(old, lib.tree(place, layer=True), "before", "after -n")
    done = fsck(union, modes[0], features=features)
    assert done.returncode == FIXED and f"[{kind}]: repaired" in done.stdout, done
    again = fsck(union, "-n", "-v", features=features)
    assert again.returncode == OK, again


@pytest.fixture
def renamed(union):
    """A lower directory d renamed to e, with a file changed, one removed and one added."""
    union.check_kernel = union.check_work = False
    for name in ("d/changed", "d/removed", "d/same", "d/sub/deep", "other/x"):
        lib.write(union.lower() / name, name)
    root = union.mount("redirect_dir=on", impl="kernel")
    os.rename(root / "d", root / "e")
    lib.append(root / "e/changed", b"+")
    os.unlink(root / "e/removed")
    lib.write(root / "e/added", "added")
    union.umount()
    union.seen = both_show(union, "redirect_dir=on")
    return union


# --- whiteouts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [".", "merged", "pure", "opaque"])
def test_needless_whiteout_is_removed(union, place):
    lib.write(union.lower() / "merged/x")
    lib.write(union.lower() / "opaque/w")
    parent = lib.mkdir(union.upper / place)
    if place == "opaque":
        union.opaque(parent)
    lib.make_whiteout(parent / "w")
    os.utime(parent, ns=(1000, 2000))
    expect(union, "whiteout-needless", FIXABLE, path=os.path.normpath(os.path.join(place, "w")))
    assert not lib.exists(parent / "w")
    assert os.lstat(parent).st_mtime_ns == 2000


@pytest.mark.parametrize("below", ["file", "directory", "symlink"])
def test_needed_whiteout_stays(union, below):
    path = union.lower(1) / "w"
    {
        "file": lambda: lib.write(path),
        "directory": lambda: lib.mkdir(path),
        "symlink": lambda: os.symlink("t", path),
    }[below]()
    union.lower(0)
    lib.make_whiteout(union.upper / "w")
    done = fsck(union, "-y", "-v")
    assert done.returncode == OK, done
    assert lib.is_whiteout(union.upper / "w")


def test_whiteout_over_a_lower_whiteout_is_needless(union):
    lib.make_whiteout(union.lower(0) / "w")
    lib.write(union.lower(1) / "w")
    lib.make_whiteout(union.upper / "w")
    expect(union, "whiteout-needless", FIXABLE)


@root_only
def test_whiteout_of_a_redirected_directory_hides_what_it_leads_to(renamed):
    assert lib.is_whiteout(renamed.upper / "e/removed")
    assert fsck(renamed, "-y").returncode == OK
    assert lib.is_whiteout(renamed.upper / "e/removed")


def test_marked_whiteout_becomes_a_real_one(union):
    lib.write(union.lower() / "w", "below")
    lib.write(union.upper / "w", xattrs={lib.settings.prefix + "whiteout": b""})
    expect(union, "whiteout-xattr", FIXABLE)
    assert lib.is_whiteout(union.upper / "w")
    assert "w" not in both_show(union)


def test_marked_file_that_was_copied_up_is_no_whiteout(union):
    lib.write(union.upper / "w", xattrs={lib.settings.prefix + "whiteout": b""})
    mark(union.upper / "w", "origin", b"")
    expect(union, "whiteout-copy", DECIDED)
    assert both_show(union)["w"] == b""


# --- opaque -------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [b"", b"n", b"yes", b"Y", b"0", b"\0"])
def test_opaque_mark_without_meaning_is_removed(union, value):
    lib.write(union.lower() / "d/x", "x")
    lib.mkdir(union.upper / "d")
    mark(union.upper / "d", "opaque", value)
    before = both_show(union)
    mark(union.upper / "d", "opaque", value)
    expect(union, "opaque-invalid", FIXABLE)
    assert mark(union.upper / "d", "opaque") is None
    assert both_show(union) == before


@pytest.mark.parametrize("value", [b"y", b"x"])
def test_opaque_marks_with_a_meaning_stay(union, value):
    lib.write(union.lower() / "d/x")
    lib.mkdir(union.upper / "d")
    lib.mkdir(union.upper / "only-upper")
    for path in ("d", "only-upper"):
        mark(union.upper / path, "opaque", value)
    assert fsck(union, "-y").returncode == OK


@root_only
def test_opaque_directory_that_was_copied_up_shows_what_it_hides(union):
    lib.write(union.lower() / "d/x", "x")
    root = union.mount(impl="kernel")
    os.chmod(root / "d", 0o700)
    union.umount()
    mark(union.upper / "d", "opaque", b"y")
    assert "d/x" not in both_show(union)
    expect(union, "opaque-copy", DECIDED)
    assert both_show(union)["d/x"] == b"x"


# --- redirects ----------------------------------------------------------------------------------

BAD_REDIRECTS = [b"", b"/", b"a/b", b"//d", b"/d/", b"/d//sub", b"..", b"/d/../d", b"."]


@root_only
@pytest.mark.parametrize("value", BAD_REDIRECTS)
def test_malformed_redirect_is_found_again_by_the_origin(renamed, value):
    mark(renamed.upper / "e", "redirect", value)
    expect(renamed, "redirect-invalid", DECIDED)
    assert both_show(renamed, "redirect_dir=on") == renamed.seen


@root_only
@pytest.mark.parametrize("value", [b"gone", b"/gone", b"/d/gone", b"other/x", b"x" * 300])
def test_redirect_that_leads_nowhere_is_found_again_by_the_origin(renamed, value):
    mark(renamed.upper / "e", "redirect", value)
    kind = "redirect-invalid" if value == b"other/x" else "redirect-lost"
    expect(renamed, kind, DECIDED)
    assert both_show(renamed, "redirect_dir=on") == renamed.seen


@root_only
def test_lost_redirect_is_found_again_by_the_origin(renamed):
    unmark(renamed.upper / "e", "redirect")
    expect(renamed, "redirect-lost", DECIDED)
    assert both_show(renamed, "redirect_dir=on") == renamed.seen


@root_only
def test_preening_keeps_the_whiteouts_of_a_directory_in_doubt(renamed):
    unmark(renamed.upper / "e", "redirect")
    assert fsck(renamed, "-p").returncode == LEFT
    assert lib.is_whiteout(renamed.upper / "e/removed")


@root_only
@pytest.mark.parametrize("covers", [True, False])
def test_dangling_redirect_without_origin_goes_and_nothing_appears(union, covers):
    """What has the directory's own name below was not seen and is not seen then."""
    lib.write(union.lower() / "other/x")
    if covers:
        lib.write(union.lower() / "d/hidden")
    lib.write(union.upper / "d/own", "own")
    mark(union.upper / "d", "redirect", b"/gone")
    before = both_show(union)
    expect(union, "redirect-dangling", FIXABLE)
    assert mark(union.upper / "d", "redirect") is None
    assert (mark(union.upper / "d", "opaque") == b"y") == covers
    assert both_show(union) == before


@root_only
def test_malformed_redirect_without_origin_keeps_what_is_in_upper(union):
    lib.write(union.lower() / "d/hidden")
    lib.write(union.upper / "d/own", "own")
    mark(union.upper / "d", "redirect", b"a//b")
    expect(union, "redirect-invalid", DECIDED)
    shown = both_show(union)
    assert shown["d/own"] == b"own" and "d/hidden" not in shown


@root_only
def test_copy_of_a_redirected_directory_is_parted(renamed):
    subprocess.run(
        ["cp", "-a", "--preserve=all", renamed.upper / "e", renamed.upper / "f"], check=True
    )
    expect(renamed, "redirect-duplicate", DECIDED, path="f")
    shown = both_show(renamed, "redirect_dir=on")
    assert shown["f/added"] == b"added" and shown["f/changed"] == b"d/changed+"
    assert {p: v for p, v in shown.items() if p.split("/")[0] != "f"} == renamed.seen


@root_only
def test_redirect_onto_a_merged_directory_is_parted(union):
    lib.write(union.lower() / "d/x", "x")
    lib.write(union.upper / "d/y", "y")
    lib.write(union.upper / "e/own", "own")
    mark(union.upper / "e", "redirect", b"d")
    expect(union, "redirect-duplicate", DECIDED, path="e")
    shown = both_show(union, "redirect_dir=on")
    assert shown["e/own"] == b"own" and shown["d/x"] == b"x" and "e/x" not in shown


@root_only
def test_new_directory_at_the_old_name_is_parted(renamed):
    """It lost its opaque mark; the renamed one is known by its origin."""
    os.unlink(renamed.upper / "d")
    lib.write(renamed.upper / "d/new", "new")
    expect(renamed, "redirect-duplicate", DECIDED, path="d")
    shown = both_show(renamed, "redirect_dir=on")
    assert sorted(p for p in shown if p.startswith("d/")) == ["d/new"]
    assert {p: v for p, v in shown.items() if p.split("/")[0] != "d"} == {
        p: v for p, v in renamed.seen.items() if p.split("/")[0] != "d"
    }


@root_only
def test_missing_whiteout_of_a_renamed_directory_comes_back(renamed):
    os.unlink(renamed.upper / "d")
    expect(renamed, "redirect-uncovered", DECIDED)
    assert lib.is_whiteout(renamed.upper / "d")
    assert both_show(renamed, "redirect_dir=on") == renamed.seen


@root_only
def test_redirect_of_a_directory_that_was_never_renamed_goes(union):
    lib.write(union.lower() / "d/x", "x")
    lib.write(union.upper / "e/own", "own")
    mark(union.upper / "e", "redirect", b"d")
    expect(union, "redirect-stray", DECIDED)
    shown = both_show(union)
    assert shown["d/x"] == b"x" and shown["e/own"] == b"own" and "e/x" not in shown


@root_only
def test_redirect_is_left_alone_where_it_is_not_followed(renamed):
    done = fsck(renamed, "-y", features="redirect_dir=nofollow")
    assert done.returncode == LEFT and "[redirect-unfollowed]" in done.stdout
    assert both_show(renamed, "redirect_dir=on") == renamed.seen


@pytest.mark.userns("user.overlay.*, and the kernel to compare with")
def test_redirect_in_user_xattrs_goes(union):
    lib.write(union.lower() / "d/x", "x")
    lib.write(union.upper / "e/own", "own")
    mark(union.upper / "e", "redirect", b"d")
    expect(union, "redirect-user", DECIDED)
    assert both_show(union)["e/own"] == b"own"


@root_only
def test_redirect_on_a_file_that_has_its_data_means_nothing(union):
    lib.write(union.upper / "f", "data")
    mark(union.upper / "f", "redirect", b"/gone")
    assert fsck(union, "-y", "-v").returncode == OK


# --- impure and origin --------------------------------------------------------------------------


@pytest.fixture
def copied(union):
    """A directory with a copied-up file."""
    union.check_work = False
    lib.write(union.lower() / "d/f", "data")
    root = union.mount(impl="kernel")
    lib.append(root / "d/f", b"+")
    union.umount()
    return union


@root_only
@pytest.mark.parametrize("value", [None, b"n", b"", b"yy"])
def test_missing_impure_mark_is_set(copied, value):
    if value is None:
        unmark(copied.upper / "d", "impure")
    else:
        mark(copied.upper / "d", "impure", value)
    expect(copied, "impure-missing", FIXABLE, path="d")
    assert mark(copied.upper / "d", "impure") == b"y"


def test_impure_mark_without_meaning_goes(union):
    lib.mkdir(union.upper / "d")
    mark(union.upper / "d", "impure", b"no")
    expect(union, "impure-invalid", FIXABLE, path="d")
    assert mark(union.upper / "d", "impure") is None


def test_impure_mark_without_need_stays(union):
    lib.mkdir(union.upper / "d")
    mark(union.upper / "d", "impure", b"y")
    assert fsck(union, "-y", "-v").returncode == OK


@root_only
@pytest.mark.parametrize("path", ["d", "d/f"])
@pytest.mark.parametrize("value", [b"x", b"\0\xfb\x05\0\1", b"\0\x00" + b"\0" * 27])
def test_malformed_origin_is_set_to_what_is_known(copied, path, value):
    good = mark(copied.upper / path, "origin")
    mark(copied.upper / path, "origin", value)
    expect(copied, "origin-invalid", FIXABLE, path=path)
    assert mark(copied.upper / path, "origin") == (good if path == "d" else b"")


@pytest.mark.parametrize("change", ["newer", "endian", "empty"])
def test_origin_of_another_kind_is_left_alone(union, change):
    value = bytearray(b"\0\xfb\x1d\0\1" + bytes(16) + b"12345678")
    if change == "newer":
        value[0] = 1
    elif change == "endian":
        value[3] = 1
    else:
        value = b""
    lib.write(union.upper / "f", xattrs={lib.settings.prefix + "origin": bytes(value)})
    assert fsck(union, "-y", "-v").returncode == OK
    assert mark(union.upper / "f", "origin") == bytes(value)


@root_only
def test_origin_of_a_replaced_lower_directory_is_renewed_for_nfs_export(copied):
    copied.check_lowers = False
    os.rename(copied.lower() / "d", copied.base / "away")
    shutil.copytree(copied.base / "away", copied.lower() / "d")
    lib.write(copied.lower() / "d/seen", "seen")
    assert fsck(copied, "-y").returncode == OK  # no concern of a mount without
    expect(copied, "origin-mismatch", DECIDED, features="nfs_export=on")
    root = copied.mount("nfs_export=on,redirect_dir=on", impl="kernel")
    assert lib.read(root / "d/seen") == b"seen"
    copied.umount()


@root_only
def test_copy_of_a_copied_up_file_forgets_its_origin(copied):
    subprocess.run(
        ["cp", "-a", "--preserve=all", copied.upper / "d/f", copied.upper / "d/g"], check=True
    )
    assert mark(copied.upper / "d/g", "origin")
    expect(copied, "origin-twice", FIXABLE, path="d/g")
    shown = both_show(copied)
    assert shown["d/f"] == shown["d/g"] == b"data+"


@root_only
def test_hard_links_of_a_copied_up_file_are_no_copies(copied):
    os.link(copied.upper / "d/f", copied.upper / "d/g")
    assert fsck(copied, "-y").returncode == OK


# --- metacopy -----------------------------------------------------------------------------------

META = "redirect_dir=on,metacopy=on"


@pytest.fixture
def metacopy(union):
    union.check_work = union.check_kernel = False
    lib.write(union.lower() / "d/f", "data" * 100)
    root = union.mount(META, impl="kernel")
    os.chmod(root / "d/f", 0o600)
    union.umount()
    assert mark(union.upper / "d/f", "metacopy") == b""
    return union


@root_only
@pytest.mark.parametrize("value", [b"x", b"\1\4\0\0", b"\0\5\0\0", b"\0\4\0", b"z" * 80])
def test_malformed_metacopy_mark_is_mended(metacopy, value):
    mark(metacopy.upper / "d/f", "metacopy", value)
    expect(metacopy, "metacopy-invalid", DECIDED)
    assert both_show(metacopy, META)["d/f"] == b"data" * 100


@root_only
@pytest.mark.parametrize("value", [b"/gone", b"a//b", b"/d"])
def test_metacopy_finds_its_data_by_the_origin(metacopy, value):
    mark(metacopy.upper / "d/f", "redirect", value)
    expect(metacopy, "metacopy-moved", DECIDED)
    assert both_show(metacopy, META)["d/f"] == b"data" * 100


@root_only
def test_metacopy_moved_by_hand_finds_its_data(metacopy):
    os.rename(metacopy.upper / "d/f", metacopy.upper / "d/g")
    expect(metacopy, "metacopy-moved", DECIDED)
    assert both_show(metacopy, META)["d/g"] == b"data" * 100


@root_only
def test_copy_of_a_metacopy_gets_the_data(metacopy):
    lib.write(metacopy.base / "plain")
    with lib.opened(metacopy.upper / "d/g", os.O_WRONLY | os.O_CREAT, 0o600) as fd:
        os.ftruncate(fd, 400)
    os.chmod(metacopy.upper / "d/g", 0o4711)
    mark(metacopy.upper / "d/g", "metacopy", b"")
    mark(metacopy.upper / "d/g", "redirect", b"f")
    mark(metacopy.upper / "d/g", "origin", mark(metacopy.upper / "d/f", "origin"))
    os.setxattr(metacopy.upper / "d/g", lib.CAPABILITY, lib.CAP_NET_RAW)
    os.utime(metacopy.upper / "d/g", ns=(1000, 2000))
    expect(metacopy, "metacopy-twice", DECIDED, path="d/g")
    shown = both_show(metacopy, META)
    assert shown["d/f"] == shown["d/g"] == b"data" * 100
    st = os.lstat(metacopy.upper / "d/g")
    assert (stat.S_IMODE(st.st_mode), st.st_mtime_ns) == (0o4711, 2000)
    assert lib.xattr(metacopy.upper / "d/g", lib.CAPABILITY) == lib.CAP_NET_RAW


@root_only
def test_metacopy_without_data_is_never_removed(metacopy):
    metacopy.check_lowers = False
    os.unlink(metacopy.lower() / "d/f")
    before = lib.tree(metacopy.upper, layer=True)
    done = fsck(metacopy, "-y")
    assert done.returncode == LEFT and "[metacopy-no-data]" in done.stdout
    lib.assert_same_tree(before, lib.tree(metacopy.upper, layer=True), "before", "after")


@root_only
def test_empty_metacopy_needs_no_data(union):
    lib.write(union.upper / "f")
    mark(union.upper / "f", "metacopy", b"")
    expect(union, "metacopy-empty", FIXABLE)
    assert both_show(union, META)["f"] == b""


@root_only
@pytest.mark.parametrize("below", [None, "another size"])
def test_metacopy_mark_on_a_file_with_data_goes(union, below):
    if below:
        lib.write(union.lower() / "f", below)
    else:
        union.lower()
    lib.write(union.upper / "f", "own data")
    os.sync()
    mark(union.upper / "f", "metacopy", b"")
    expect(union, "metacopy-false", DECIDED)
    assert both_show(union, META)["f"] == b"own data"


@root_only
def test_metacopy_into_a_data_only_layer_is_right(union):
    lib.write(union.lower(1) / "blob", "data")
    union.lower(0)
    lib.write(union.upper / "f")
    os.truncate(union.upper / "f", 4)
    mark(union.upper / "f", "metacopy", b"")
    mark(union.upper / "f", "redirect", b"/blob")
    layers = f"lowerdir={union.lower(0)}::{union.lower(1)}"
    layers += f",upperdir={union.upper},workdir={union.work}"
    assert lib.run_plyfs("fsck", "-n", "-v", "-o", layers).returncode == OK
    mark(union.upper / "f", "redirect", b"/gone")
    assert lib.run_plyfs("fsck", "-y", "-o", layers).returncode == LEFT


# --- other marks --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path,name",
    [
        ("f", "opaque"),
        ("f", "impure"),
        ("f", "uuid"),
        ("f", "upper"),
        ("f", "whiteout"),
        ("d", "metacopy"),
        ("d", "nlink"),
        ("d", "whiteout"),
        (".", "opaque"),
        (".", "redirect"),
    ],
)
def test_mark_that_means_nothing_where_it_is_goes(union, path, name):
    lib.write(union.upper / "f", "data")
    lib.mkdir(union.upper / "d")
    mark(union.upper / path, name, b"y")
    expect(union, "misplaced", FIXABLE, path=path)
    assert mark(union.upper / path, name) is None
    assert lib.read(union.upper / "f") == b"data"


def test_malformed_uuid_goes(union):
    mark(union.upper, "uuid", b"short")
    expect(union, "uuid-invalid", FIXABLE, path=".")


def test_uuid_stays(union):
    value = uuid.UUID("12345678123456781234567812345678").bytes
    mark(union.upper, "uuid", value)
    assert fsck(union, "-y", "-v").returncode == OK
    assert mark(union.upper, "uuid") == value


def test_unknown_file_flags_are_a_note(union):
    lib.write(union.upper / "f")
    mark(union.upper / "f", "protattr", b"iz")
    done = fsck(union, "-y", "-v")
    assert done.returncode == OK and "[protattr-unknown]" in done.stdout
    assert mark(union.upper / "f", "protattr") == b"iz"


def test_marks_of_fuse_overlayfs_are_a_note(union):
    lib.write(union.upper / ".wh.x")
    assert fsck(union, "-y").stdout == ""
    done = fsck(union, "-y", "-v")
    assert done.returncode == OK and "[fuse-overlayfs]" in done.stdout
    assert lib.exists(union.upper / ".wh.x")


@root_only
def test_marks_of_the_other_namespace_are_left_alone(union):
    lib.mkdir(union.upper / "d")
    os.setxattr(union.upper / "d", "user.overlay.redirect", b"a//b")
    os.setxattr(union.upper / "d", "trusted.overlay.overlay.opaque", b"z")
    assert fsck(union, "-y", "-v").returncode == OK


# --- workdir ------------------------------------------------------------------------------------


def test_leftovers_of_a_crash_go(union):
    union.check_work = False
    lib.mkdir(union.work / "work")
    lib.write(union.work / "work/#1", "data")
    lib.write(union.work / "work/#2/x")
    lib.make_whiteout(union.work / "work/#3")
    expect(union, "work-leftover", FIXABLE)
    assert lib.names(union.work / "work") == ["#3"]


def test_what_no_overlay_left_goes_only_when_told(union):
    union.check_work = False
    lib.write(union.work / "work/a/b/c/d/precious", "data")
    expect(union, "work-deep", DECIDED)


def test_what_lies_beside_work_is_a_note(union):
    union.check_work = False
    lib.write(union.work / "mine")
    done = fsck(union, "-y", "-v")
    assert done.returncode == OK and "[work-foreign]" in done.stdout
    assert lib.exists(union.work / "mine")


def test_volatile_mark_goes_only_when_told_by_its_name(union):
    union.check_work = False
    lib.write(union.work / "work/incompat/volatile/dirty")
    for args in (["-p"], ["-y"], ["-p", "--discard-volatile-mark"]):
        done = fsck(union, *args)
        assert done.returncode == LEFT and "[volatile]" in done.stdout, args
    assert lib.exists(union.work / "work/incompat/volatile/dirty")
    assert fsck(union, "-y", "--discard-volatile-mark").returncode == FIXED
    assert not lib.exists(union.work / "work/incompat/volatile")
    both_show(union)


def test_unknown_incompatible_feature_stops_everything(union):
    union.check_work = False
    lib.make_whiteout(union.upper / "needless")
    lib.mkdir(union.work / "work/incompat/quantum")
    done = fsck(union, "-y")
    assert done.returncode == OPERATION and "quantum" in done.stderr
    assert lib.is_whiteout(union.upper / "needless")


# --- index --------------------------------------------------------------------------------------

INDEX = "index=on"


@pytest.fixture
def indexed(union):
    """Lower hard links a, b, c: a changed, b removed."""
    union.check_work = union.check_kernel = False
    lib.write(union.lower() / "a", "data")
    os.link(union.lower() / "a", union.lower() / "b")
    os.link(union.lower() / "a", union.lower() / "c")
    root = union.mount(INDEX, impl="kernel")
    lib.append(root / "a", b"+")
    os.unlink(root / "b")
    union.umount()
    (name,) = [n for n in os.listdir(union.work / "index") if n[0] != "#"]
    union.entry = union.work / "index" / name
    return union


def links_seen(union):
    root = union.mount(INDEX, impl="kernel")
    out = {n: (os.lstat(root / n).st_nlink, lib.read(root / n)) for n in os.listdir(root)}
    union.umount()
    return out


LINKS = {"a": (2, b"data+"), "c": (2, b"data+")}


@root_only
def test_sound_index_stays(indexed):
    assert fsck(indexed, "-y", "-v", features=INDEX).returncode == OK
    assert links_seen(indexed) == LINKS


@root_only
@pytest.mark.parametrize(
    "kind,value",
    [
        ("nlink-invalid", b""),
        ("nlink-invalid", b"U"),
        ("nlink-invalid", b"X+1"),
        ("nlink-invalid", b"U+99999999999"),
        ("nlink-wrong", b"U+9"),
        ("nlink-wrong", b"U-1"),
    ],
)
def test_links_are_counted_anew(indexed, kind, value):
    mark(indexed.upper / "a", "nlink", value)
    expect(indexed, kind, FIXABLE, features=INDEX)
    assert links_seen(indexed) == LINKS


@root_only
def test_index_entry_whose_upper_names_are_gone_keeps_its_lower_ones(indexed):
    """The copy is what the other links of the lower file show."""
    root = indexed.mount(INDEX, impl="kernel")
    os.unlink(root / "a")
    indexed.umount()
    mark(indexed.entry, "nlink", b"garbage")
    expect(indexed, "nlink-invalid", FIXABLE, features=INDEX)
    assert links_seen(indexed) == {"c": (1, b"data+")}


@root_only
@pytest.mark.parametrize("value", [None, b"", b"garbage"])
def test_indexed_file_gets_its_origin_back(indexed, value):
    if value is None:
        unmark(indexed.upper / "a", "origin")
    else:
        mark(indexed.upper / "a", "origin", value)
    done = fsck(indexed, "-p", features=INDEX)
    assert done.returncode == FIXED and "[index-origin]: repaired" in done.stdout, done
    assert fsck(indexed, "-n", features=INDEX).returncode == OK
    assert links_seen(indexed) == LINKS


@root_only
def test_lost_index_entry_is_made_again(indexed):
    os.unlink(indexed.entry)
    expect(indexed, "index-missing", FIXABLE, features=INDEX)
    assert links_seen(indexed) == LINKS


@root_only
def test_name_that_is_none_goes_so_that_the_kernel_mounts(indexed):
    lib.write(indexed.work / "index/nonsense")
    with pytest.raises(OSError):
        indexed.mount(INDEX, impl="kernel")
    expect(indexed, "index-name", DECIDED, features=INDEX)
    assert links_seen(indexed) == LINKS


@root_only
def test_stale_index_entry_goes(indexed):
    other = lib.write(indexed.base / "other")
    os.link(indexed.entry, indexed.work / "index" / (indexed.entry.name[:-2] + "77"))
    expect(indexed, "index-stale", FIXABLE, features=INDEX)
    assert links_seen(indexed) == LINKS and other.exists()


@root_only
def test_index_of_another_lower_layer_is_made_this_one(indexed):
    indexed.check_lowers = False
    other = indexed.base / "elsewhere"
    subprocess.run(["cp", "-a", indexed.lower(), other], check=True)
    indexed.use_lower(0, other)
    done = fsck(indexed, "-y", features=INDEX)
    assert done.returncode == FIXED and "[index-root]" in done.stdout, done
    assert fsck(indexed, "-n", features=INDEX).returncode == OK
    shown = links_seen(indexed)
    assert shown["a"][1] == b"data+" and shown["c"][1] == b"data"


@root_only
def test_index_of_another_upper_layer_is_made_this_one(indexed):
    mark(indexed.work / "index", "upper", b"\0\xfb\x1d\4\1" + bytes(24))
    with pytest.raises(OSError):
        indexed.mount(INDEX, impl="kernel")
    expect(indexed, "index-upper", DECIDED, features=INDEX)
    assert links_seen(indexed) == LINKS


@root_only
@pytest.mark.parametrize("how", ["no upper", "removed"])
def test_directory_entries_of_the_index(union, how):
    union.check_work = union.check_kernel = False
    lib.mkdir(union.lower() / "d")
    features = "nfs_export=on,redirect_dir=on"
    root = union.mount(features, impl="kernel")
    os.chmod(root / "d", 0o700)
    union.umount()
    assert fsck(union, "-y", "-v", features=features).returncode == OK
    (entry,) = [p for p in (union.work / "index").iterdir() if p.name[0] != "#" and p.is_dir()]
    if how == "no upper":
        unmark(entry, "upper")
        expect(union, "index-stale", FIXABLE, features=features)
        assert not lib.exists(entry)
    else:
        os.rmdir(union.upper / "d")
        expect(union, "index-orphan", FIXABLE, features=features)
        assert lib.is_whiteout(entry)
    union.mount(features, impl="kernel")
    union.umount()


# --- manners ------------------------------------------------------------------------------------


def test_sound_layer_is_passed_over_in_silence(union):
    lib.write(union.lower() / "a")
    lib.write(union.upper / "b")
    for mode in ("-n", "-p", "-y", "-a", "-r"):
        done = fsck(union, mode)
        assert (done.returncode, done.stdout, done.stderr) == (OK, "", ""), mode


def test_repaired_and_left_add_up(union):
    union.check_work = False
    lib.make_whiteout(union.upper / "needless")
    lib.write(union.work / "work/a/b/c/d/e")
    done = fsck(union, "-p")
    assert done.returncode == FIXED | LEFT
    assert "1 repaired, 1 left" in done.stdout


@pytest.mark.parametrize("impl", ["plyfs", "kernel"])
@pytest.mark.privileged("the kernel's overlayfs too")
def test_mounted_layers_are_refused(union, impl):
    lib.make_whiteout(union.upper / "needless")
    union.mount(impl=impl)
    for mode in ("-p", "-y", "-r"):
        done = fsck(union, mode)
        assert done.returncode == OPERATION and "in use" in done.stderr, done
    done = fsck(union, "-n")
    assert done.returncode == LEFT and "in use" in done.stderr, done
    union.umount()
    assert fsck(union, "-p").returncode == FIXED


@root_only
def test_layers_mounted_in_another_namespace_are_refused(union):
    union.lower()
    script = f"mount -t overlay o -o {options(union)} {union.point} && echo up && read line"
    with subprocess.Popen(
        ["unshare", "-m", "sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout.readline() == b"up\n"
        done = fsck(union, "-y")
        child.stdin.write(b"\n")
        child.stdin.flush()
        child.wait(30)
    assert done.returncode == OPERATION and "in use" in done.stderr, done


@root_only
def test_upper_that_is_another_mounts_lower_is_refused(union):
    lib.mkdir(union.base / "second")
    lib.sys_mount(
        "overlay", union.point, "overlay", 0, f"lowerdir={union.upper}:{union.base / 'second'}"
    )
    union.lower()
    done = fsck(union, "-y")
    lib.sys_umount(union.point)
    assert done.returncode == OPERATION and "in use" in done.stderr, done


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["-y"],
        ["-o", "upperdir=u,workdir=w"],
        ["-o", "lowerdir=/,nonsense=1"],
        ["-o", "lowerdir=/,redirect_dir=maybe"],
        ["-n", "-y", "-o", "lowerdir=/"],
        ["-y", "-o", "lowerdir=/"],
        ["-n", "-o", "lowerdir=/,workdir=w"],
        ["--nonsense"],
        ["-o"],
        ["/nowhere", "-n"],
        ["one", "two"],
    ],
)
def test_wrong_calls(scratch, args):
    done = lib.run_plyfs("fsck", *args)
    assert done.returncode == USAGE and done.stderr.count("\n") == 1, done


@pytest.mark.parametrize("missing", ["upper", "work", "lower"])
def test_missing_directory_is_an_operational_error(union, missing):
    union.lower()
    paths = {"upper": union.upper, "work": union.work, "lower": union.lower()}
    paths[missing] = union.base / "missing"
    done = lib.run_plyfs(
        "fsck",
        "-n",
        "-o",
        f"lowerdir={paths['lower']},upperdir={paths['upper']},workdir={paths['work']}",
    )
    assert done.returncode == OPERATION and "missing" in done.stderr, done


def test_help_and_version(scratch):
    for args in (["fsck", "--help"], ["help", "fsck"], ["fsck", "-V"]):
        done = lib.run_plyfs(*args)
        assert done.returncode == OK and done.stdout and not done.stderr


def test_name_that_fsck_runs(union):
    """fsck.plyfs with the options that fsck(8) passes on."""
    lib.make_whiteout(union.upper / "needless")
    union.lower()
    link = union.base / "fsck.plyfs"
    os.symlink(lib.settings.plyfs, link)
    done = subprocess.run(
        [link, "-a", "-C0", "-T", "-o", options(union)],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == FIXED and "whiteout-needless" in done.stdout, done


@pytest.mark.skipif(not shutil.which("fsck"), reason="fsck(8) is not installed")
@pytest.mark.parametrize("args", [["LAYERS", "-n"], ["-n", "LAYERS"], ["LAYERS", "--", "-n"]])
def test_fsck_finds_it_by_the_type(union, args):
    union.lower()
    lib.make_whiteout(union.upper / "needless")
    directory = lib.mkdir(union.base / "bin")
    os.symlink(lib.settings.plyfs, directory / "fsck.plyfs")
    done = subprocess.run(
        ["fsck", "-T", "-t", "plyfs", *(a.replace("LAYERS", options(union)) for a in args)],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PATH": f"{directory}:{os.environ['PATH']}"},
    )
    assert done.returncode == LEFT and "whiteout-needless" in done.stdout, done


@root_only
def test_mountpoint_of_fstab(union):
    lib.make_whiteout(union.upper / "needless")
    union.lower()
    table = lib.write(
        union.base / "fstab",
        f"plyfs {union.point} fuse.plyfs noauto,x-systemd.automount,{options(union)} 0 2\n",
    )
    lib.sys_mount(table, "/etc/fstab", "", lib.MS_BIND)
    try:
        done = lib.run_plyfs("fsck", "-p", union.point)
    finally:
        lib.sys_umount("/etc/fstab")
    assert done.returncode == FIXED, done


def test_lower_layer_is_checked_and_never_written(union):
    lib.make_whiteout(union.lower(0) / "needless")
    lib.write(union.lower(1) / "x")
    before = lib.tree(union.lower(0), layer=True)
    layers = lib.layer_options(union.lowers)
    if lib.settings.level != "root":
        layers += ",userxattr"
    done = lib.run_plyfs("fsck", "-o", layers)
    assert done.returncode == LEFT, done
    assert f"lowerdir {union.lower(0)}: needless: " in done.stdout, done
    lib.assert_same_tree(before, lib.tree(union.lower(0), layer=True), "before", "after")


def test_each_lower_layer_is_checked_without_an_upper(union):
    prefix = lib.settings.prefix
    lib.write(union.lower(2) / "d/w")
    lib.write(union.lower(1) / "d/w", xattrs={prefix + "whiteout": b""})
    lib.write(union.lower(0) / "d/x")
    layers = lib.layer_options(union.lowers)
    if lib.settings.level != "root":
        layers += ",userxattr"
    done = lib.run_plyfs("fsck", "-o", layers)
    assert done.returncode == LEFT and f"{union.lower(1)}: d/w: " in done.stdout, done
    union.opaque(union.lower(1) / "d", b"x")
    assert lib.run_plyfs("fsck", "-o", layers).returncode == OK


@root_only
def test_stale_origin_is_a_note(copied):
    value = bytearray(mark(copied.upper / "d/f", "origin"))
    value[-1] ^= 0x5A
    mark(copied.upper / "d/f", "origin", bytes(value))
    done = fsck(copied, "-y", "-v")
    assert done.returncode == OK and "d/f: " in done.stdout and "[origin-stale]" in done.stdout
    assert mark(copied.upper / "d/f", "origin") == bytes(value)


def test_upper_without_workdir(union):
    lib.make_whiteout(union.upper / "needless")
    layers = f"lowerdir={union.lower()},upperdir={union.upper}"
    if lib.settings.level != "root":
        layers += ",userxattr"
    assert lib.run_plyfs("fsck", "-p", "-o", layers).returncode == FIXED


def on_terminal(union, answers):
    """Runs fsck on a terminal; returns the status and what it said."""
    pid, fd = pty.fork()
    if pid == 0:
        os.execv(lib.settings.plyfs, [lib.settings.plyfs, "fsck", "-o", options(union)])
    out = b""
    try:
        while True:
            try:
                data = os.read(fd, 4096)
            except OSError:
                break
            if not data:
                break
            out += data
            while out.count(b"[q]uit: ") > on_terminal.answered and answers:
                on_terminal.answered += 1
                os.write(fd, answers.pop(0).encode())
    finally:
        os.close(fd)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return status, out.decode()


@pytest.mark.parametrize(
    "answers,status,left",
    [
        (["y\n", "n\n"], FIXED | LEFT, {"w2"}),
        (["n\n", "y\n"], FIXED | LEFT, {"w1"}),
        (["what\n", "a\n"], FIXED, set()),
        (["q\n"], CANCELLED, {"w1", "w2"}),
        (["\x04"], CANCELLED, {"w1", "w2"}),
        (["y\n", "q\n"], CANCELLED | FIXED, {"w2"}),
    ],
)
def test_it_asks_on_a_terminal(union, answers, status, left):
    union.lower()
    for name in ("w1", "w2"):
        lib.make_whiteout(union.upper / name)
    on_terminal.answered = 0
    assert on_terminal(union, list(answers))[0] == status
    assert set(os.listdir(union.upper)) == left


def test_interrupt_ends_it_between_two_steps(union):
    union.lower()
    for name in ("w1", "w2"):
        lib.make_whiteout(union.upper / name)
    pid, fd = pty.fork()
    if pid == 0:
        os.execv(lib.settings.plyfs, [lib.settings.plyfs, "fsck", "-o", options(union)])
    out = b""
    while b"[q]uit: " not in out:
        out += os.read(fd, 4096)
    os.kill(pid, signal.SIGINT)
    os.write(fd, b"y\n")
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.close(fd)
    assert status & CANCELLED
    assert len(os.listdir(union.upper)) >= 1


def test_odd_names_stay_on_one_line(union):
    union.lower()
    lib.make_whiteout(union.upper / "a\nb\x1b[31m")
    done = fsck(union, "-n")
    assert "a\\012b\\033[31m" in done.stdout and done.stdout.count("\n") == 2, done


def test_symlinks_in_upper_lead_nowhere(union):
    """What is outside the layer is not looked at."""
    union.lower()
    outside = union.base / "outside"
    lib.make_whiteout(outside / "w")
    os.symlink(outside, union.upper / "link")
    assert fsck(union, "-y").returncode == OK
    assert lib.is_whiteout(outside / "w")


def test_deep_trees_need_few_files(union):
    union.lower()
    depth = 400
    here = os.open(union.upper, os.O_PATH)
    for _ in range(depth):
        os.mkdir("d" * 40, dir_fd=here)
        below = os.open("d" * 40, os.O_PATH, dir_fd=here)
        os.close(here)
        here = below
    os.mknod("w", stat.S_IFCHR, 0, dir_fd=here)
    os.close(here)
    done = subprocess.run(
        ["sh", "-c", 'ulimit -n 200; exec "$@"', "sh", lib.settings.plyfs, "fsck", "-p", "-o"]
        + [options(union)],
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == FIXED, done.stderr[-300:]
    union.check_kernel = False


@root_only
def test_what_is_mounted_inside_upper_is_no_part_of_it(union):
    union.lower()
    inside = lib.mkdir(union.upper / "mounted")
    lib.sys_mount("tmpfs", inside, "tmpfs")
    try:
        lib.make_whiteout(inside / "w")
        assert fsck(union, "-y").returncode == OK
        assert lib.is_whiteout(inside / "w")
    finally:
        lib.sys_umount(inside)


@root_only
def test_origin_in_the_second_layer_is_found(union):
    """Layers of one filesystem: a handle tells the object, not the layer."""
    union.check_work = union.check_kernel = False
    lib.write(union.lower(1) / "deep/d/x", "x")
    lib.write(union.lower(1) / "deep/f", "data" * 100)
    lib.mkdir(union.lower(0) / "deep")
    root = union.mount(META, impl="kernel")
    os.rename(root / "deep/d", root / "e")
    os.chmod(root / "deep/f", 0o600)
    os.rename(root / "deep/f", root / "g")
    union.umount()
    before = both_show(union, META)
    for name in ("e", "g"):
        mark(union.upper / name, "redirect", b"/gone")
    done = fsck(union, "-y", features=META)
    assert done.returncode == FIXED, done
    assert both_show(union, META) == before


@root_only
@pytest.mark.slow
@pytest.mark.disk("loop devices")
@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
@pytest.mark.parametrize("lower_too", [True, False])
def test_other_file_systems(new_union, scratch, kind, lower_too):
    """Handles, uuids and holes are the file system's own."""
    with lib.loop_filesystem(scratch, kind) as point:
        union = new_union("u", base=point)
        union.check_work = union.check_kernel = False
        if not lower_too:
            union.use_lower(0, lib.mkdir(scratch / "lower"))
        lib.write(union.lower() / "d/x", "x")
        lib.write(union.lower() / "d/f", "data" * 2000)
        root = union.mount(META, impl="kernel")
        os.rename(root / "d", root / "e")
        os.chmod(root / "e/f", 0o600)
        union.umount()
        assert fsck(union, "-y", "-v", features=META).returncode == OK
        before = both_show(union, META)
        unmark(union.upper / "e", "redirect")
        unmark(union.upper, "impure")
        assert fsck(union, "-y", features=META).returncode == FIXED
        assert fsck(union, "-n", features=META).returncode == OK
        assert both_show(union, META) == before
        union.close()
