# SPDX-License-Identifier: MIT
"""Renamed directories under the name of fuse-overlayfs, and who can read the layers afterwards.

A store of an engine outlives the program that mounts it: its owner goes back to the kernel's
overlayfs or to fuse-overlayfs, and engines pack "diff" into images without mounting anything. The
default is the one under which all of them see what the mount showed.
"""

import errno
import os
import subprocess
import tarfile

import plyfs_testlib as lib
import pytest
from dropin import dropin_union
from plyfs_testlib import mkdir, names, raises, read, write

pytestmark = pytest.mark.plyfs_only("the command of fuse-overlayfs")

ROOT = lib.settings.level == "root"
PRIVATE = ("trusted.overlay.", "user.overlay.")


@pytest.fixture
def union(new_union):
    union = dropin_union(new_union)
    write(union.lower(0) / "d/top", "top")
    write(union.lower(1) / "d/low", "low")
    write(union.lower(1) / "d/sub/deep", "deep")
    write(union.lower(1) / "f", b"x" * 9000)
    os.link(union.lower(1) / "f", union.lower(1) / "g")
    return union


def move(m, old, new):
    """As programs do: a rename, or a copy where that is not possible."""
    subprocess.run(["mv", m / old, m / new], check=True, timeout=60)


def contents(point):
    """{path: content} of all files."""
    out = {}
    for where, _, files in os.walk(point):
        for name in files:
            path = os.path.join(where, name)
            out[os.path.relpath(path, point)] = read(path)
    return out


def marks(upper):
    """Which private xattrs there are anywhere in a layer."""
    found = set()
    for where, dirs, files in os.walk(upper):
        for path in [where, *(os.path.join(where, n) for n in dirs + files)]:
            for name in os.listxattr(path, follow_symlinks=False):
                found |= {name[len(p) :] for p in PRIVATE if name.startswith(p)}
    return found


def seen_by(union, impl, options=""):
    """What another program shows of the layers."""
    union.umount()
    union.check_work = False
    union.mount(options, impl=impl)
    out = contents(union.point)
    union.umount()
    return out


def unpacked(union):
    """What an engine without mounts makes of it: each layer packed, and unpacked over the others."""
    root = mkdir(union.base / "image")
    for number, layer in enumerate([*reversed(union.lowers), union.upper]):
        packed = union.base / f"layer{number}.tar"
        with tarfile.open(packed, "w") as tar:
            tar.add(layer, arcname=".")
        with tarfile.open(packed) as tar:
            for member in tar:
                path = root / member.name
                if member.ischr():  # a whiteout
                    lib.remove_tree(path) if path.is_dir() else path.unlink(missing_ok=True)
                elif member.isdir():
                    path.mkdir(exist_ok=True)
                elif member.islnk():
                    path.unlink(missing_ok=True)
                    os.link(root / member.linkname, path)
                elif member.isfile():
                    path.unlink(missing_ok=True)
                    path.write_bytes(tar.extractfile(member).read())
    return contents(root)


def test_by_default_a_lower_directory_is_copied(union):
    m = union.mount()
    with raises(errno.EXDEV):
        os.rename(m / "d", m / "e")
    before = contents(m)
    move(m, "d", "e")
    assert contents(m) == {p.replace("d/", "e/", p[:2] == "d/"): c for p, c in before.items()}
    assert "redirect" not in marks(union.upper)


def test_by_default_nothing_is_lost_whoever_reads_the_store(union):
    m = union.mount()
    move(m, "d", "e")
    move(m, "e/sub", "s")
    os.chmod(m / "f", 0o600)
    shown = contents(m)
    union.umount()
    assert unpacked(union) == shown
    assert seen_by(union, "files") == shown
    if lib.settings.level != "user":
        assert seen_by(union, "incumbent") == shown
        assert seen_by(union, "kernel") == shown


def test_nothing_is_turned_on_that_others_do_not_know(union):
    """Neither metacopies, which they show without their data, nor an index, nor verity."""
    m = union.mount()
    os.chmod(m / "f", 0o600)
    lib.append(m / "g", b"+")
    os.makedirs(m / "new/deep")
    os.unlink(m / "d/low")
    union.umount()
    assert marks(union.upper) <= {"opaque", "origin", "impure", "uuid"}
    assert os.stat(union.upper / "f").st_blocks * 512 >= 9000
    assert names(union.work) == ["work"]


def test_with_redirects_a_directory_is_renamed(union):
    m = union.mount("redirect_dir=on")
    shown = contents(m)
    os.rename(m / "d", m / "e")
    os.rename(m / "e/sub", m / "s")
    write(m / "s/new", "new")
    assert names(union.upper / "e") == ["sub"]  # a whiteout: nothing was copied
    shown = {
        "e/top": b"top", "e/low": b"low", "s/deep": b"deep", "s/new": b"new",
        "f": shown["f"], "g": shown["g"],
    }
    assert contents(m) == shown
    union.remount(options="redirect_dir=on")
    assert contents(m) == shown
    os.rename(m / "e", m / "d")
    assert read(m / "d/low") == b"low"


@pytest.mark.parametrize("impl", ["dropin", "files"])
def test_redirects_go_on_with_either_kind_of_whiteout(union, impl):
    m = union.mount("redirect_dir=on", impl=impl)
    os.rename(m / "d", m / "e")
    os.mkdir(m / "d")
    union.remount(impl="dropin" if impl == "files" else "files", options="redirect_dir=on")
    assert names(m / "d") == []
    assert names(m / "e") == ["low", "sub", "top"]
    os.rmdir(m / "d")
    os.rename(m / "e", m / "d")
    union.remount(options="redirect_dir=on")
    assert names(m) == ["d", "f", "g"]
    assert names(m / "d") == ["low", "sub", "top"]


def test_redirects_are_what_others_lose(union):
    """Why they are not the default: each of these is a container without its files."""
    m = union.mount("redirect_dir=on")
    os.rename(m / "d", m / "e")
    shown = contents(m)
    union.umount()
    lost = {path: content for path, content in shown.items() if not path.startswith("e/")}
    assert lost != shown
    assert unpacked(union) == lost
    if lib.settings.level != "user":
        assert seen_by(union, "incumbent") == lost
    # root's marks lead the kernel's overlayfs there; those of users it does not trust
    if ROOT:
        assert seen_by(union, "kernel") == shown
    elif lib.settings.level == "userns":
        union.mount(impl="kernel")
        try:
            with raises(errno.EPERM, errno.ENOENT):
                os.stat(m / "e/low")
        finally:
            union.umount()


def test_a_mount_without_the_word_shows_what_one_with_it_made(union):
    """A directory that has moved is never shown without what is in it."""
    m = union.mount("redirect_dir=on")
    os.rename(m / "d", m / "e")
    shown = contents(m)
    union.remount(options="")
    if ROOT:
        assert contents(m) == shown
        with raises(errno.EXDEV):
            os.rename(m / "e", m / "x")
        assert contents(m) == shown
    else:
        with raises(errno.EPERM):
            os.listdir(m / "e")
