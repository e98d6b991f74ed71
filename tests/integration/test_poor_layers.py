# SPDX-License-Identifier: MIT
"""Layers on filesystems that lack something: xattrs, file handles, devices, links, kinds of rename.

A container on them works as on any other, and nothing is said about it on stderr.
"""

import contextlib
import errno
import os
import shutil
import subprocess

import plyfs_testlib as lib
import pytest
from dropin import call, dropin_union, lacking, mount, program
from plyfs_testlib import exists, mkdir, names, raises, read, write

pytestmark = pytest.mark.plyfs_only("the command of fuse-overlayfs")
CAPABLE = pytest.mark.privileged("seccomp filters and mounts")

DATA = bytes(range(256)) * 40


def fill(root, links=True):
    """What a layer holds, in so far as every filesystem can."""
    write(root / "f", DATA)
    write(root / "d/g", "g")
    write(root / "d/sub/h", "h")
    write(root / "e/1", "1")
    write(root / "run", "#!/bin/sh\necho ran\n", mode=0o755)
    if links:
        os.symlink("f", root / "link")
        os.link(root / "f", root / "hard")
        os.setxattr(root / "f", "user.low", b"1")


def everyday_work(m, xattrs=True):
    """Returns what has to be there after a remount."""
    lib.append(m / "f", b"+")
    os.chmod(m / "d/g", 0o600)
    os.utime(m / "d/g", (1, 1))
    os.rename(m / "d/g", m / "d/g2")
    os.rename(m / "d/g2", m / "run")
    os.unlink(m / "d/sub/h")
    os.rmdir(m / "d/sub")
    os.mkdir(m / "d/sub")
    assert names(m / "d/sub") == []
    shutil.rmtree(m / "e")
    os.mkdir(m / "e")
    assert names(m / "e") == []
    os.makedirs(m / "new/deep")
    os.rename(m / "new", m / "e/new")
    write(m / "made", "1")
    os.symlink("made", m / "sym")
    os.mkfifo(m / "fifo")
    os.truncate(m / "made", 0)
    assert os.listxattr(m / "d") == []
    os.listxattr(m / "f")
    if xattrs:
        os.setxattr(m / "f", "user.mine", b"2")
        os.setxattr(m / "d", "user.mine", b"2")
        assert os.getxattr(m / "d", "user.mine") == b"2"
    else:  # what the filesystem says itself
        with raises(errno.EOPNOTSUPP):
            os.setxattr(m / "f", "user.mine", b"2")
    for command in (
        ["cp", "-a", m, m.parent / "copy"],
        ["tar", "--xattrs", "--xattrs-include=*", "-cf", m.parent / "tar", "-C", m, "."],
    ):
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stderr) == (0, ""), command
    shutil.rmtree(m.parent / "copy")
    subprocess.run(["mv", m / "d", m / "moved"], check=True, timeout=60)
    assert not exists(m / "d")
    assert read(m / "f") == DATA + b"+"
    return lib.tree(m, times=False)


def works(union, xattrs=True):
    m = union.mount()
    before = everyday_work(m, xattrs)
    union.remount()
    lib.assert_same_tree(before, lib.tree(m, times=False), "before", "after a remount")


# --- lower layers ---------------------------------------------------------------------------------


# what a kernel has not been built with cannot be a layer there
KINDS = ["squashfs", "squashfs-no-xattrs", "erofs", "ramfs", "vfat", "iso9660"]
KNOWN = read("/proc/filesystems").decode().split()


def image(base, command, kind, options="loop,ro"):
    """Mounts an image that a command made."""
    if not shutil.which(command[0]):
        pytest.skip(f"{command[0]} is not installed")
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    point = mkdir(base / "lower-fs")
    subprocess.run(
        ["mount", "-t", kind, "-o", options, base / "image", point], check=True, timeout=60
    )
    return point


@contextlib.contextmanager
def lower_filesystem(base, kind):
    source = mkdir(base / "source")
    fill(source, links=kind not in ("vfat", "iso9660"))
    file = base / "image"
    if kind == "squashfs":
        point = image(base, ["mksquashfs", source, file, "-quiet", "-no-progress"], kind)
    elif kind == "squashfs-no-xattrs":
        command = ["mksquashfs", source, file, "-quiet", "-no-progress", "-no-xattrs"]
        point = image(base, command, "squashfs")
    elif kind == "erofs":
        point = image(base, ["mkfs.erofs", file, source], kind)
    elif kind == "iso9660":
        point = image(base, ["genisoimage", "-quiet", "-R", "-o", file, source], kind)
    elif kind == "vfat":
        with open(file, "wb") as f:
            f.truncate(16 * lib.MIB)
        point = image(base, ["mkfs.vfat", file], kind, "loop")
        fill(point, links=False)
    else:
        point = mkdir(base / "lower-fs")
        lib.sys_mount("ramfs", point, "ramfs", 0, "mode=0755")
        fill(point, links=False)
    try:
        yield point
    finally:
        subprocess.run(["umount", point], check=True, timeout=60)


@pytest.mark.root("mounts of images")
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.split("-")[0] in KNOWN])
def test_lower_layer_on(new_union, scratch, kind):
    with lower_filesystem(scratch, kind) as point:
        union = dropin_union(new_union)
        union.use_lower(0, point)
        union.check_lowers = kind not in ("vfat", "iso9660")
        write(union.lower(1) / "other", "x")
        works(union)
        union.close()


def test_lower_layer_on_another_plyfs(new_union, scratch):
    inner = dropin_union(new_union, "inner")
    fill(inner.lower())
    union = dropin_union(new_union)
    union.check_lowers = inner.check_lowers = False
    union.use_lower(0, inner.mount())
    works(union)
    union.close()


@pytest.mark.privileged("another user's mount is not readable")
def test_lower_layer_on_fuse_overlayfs(new_union):
    inner = dropin_union(new_union, "inner", "incumbent")
    fill(inner.lower())
    union = dropin_union(new_union)
    union.check_lowers = inner.check_lowers = False
    union.use_lower(0, inner.mount())
    works(union)
    union.close()


@pytest.mark.privileged("squashfuse without fusermount")
def test_lower_layer_on_squashfuse(new_union, scratch):
    if not shutil.which("squashfuse"):
        pytest.skip("squashfuse is not installed")
    source, point = mkdir(scratch / "source"), mkdir(scratch / "squash")
    fill(source)
    subprocess.run(
        ["mksquashfs", source, scratch / "image", "-quiet", "-no-progress"], check=True, timeout=60
    )
    subprocess.run(["squashfuse", scratch / "image", point], check=True, timeout=60)
    try:
        union = dropin_union(new_union)
        union.use_lower(0, point)
        works(union)
        union.close()
    finally:
        lib.sys_umount(point)


# --- upper ----------------------------------------------------------------------------------------


@pytest.mark.root("mounts of ramfs")
def test_upper_without_xattrs_and_handles(new_union, scratch):
    """ramfs: no xattrs, no file handles, and whiteouts that cannot be moved."""
    base = mkdir(scratch / "ram")
    lib.sys_mount("ramfs", base, "ramfs", 0, "mode=0755")
    try:
        union = dropin_union(new_union, base=base)
        fill(union.lower(), links=False)
        works(union, xattrs=False)
        union.close()
    finally:
        lib.sys_umount(base)


@pytest.mark.privileged("fusermount3 mounts on no FUSE filesystem")
def test_upper_on_another_plyfs(new_union, scratch):
    inner = lib.mount_plyfs(
        [mkdir(scratch / "il")], mkdir(scratch / "iu"), mkdir(scratch / "iw"), mkdir(scratch / "im")
    )
    try:
        union = dropin_union(new_union, base=inner.point)
        fill(union.lower())
        union.check_lowers = False
        works(union)
        union.close()
    finally:
        inner.umount()


POVERTY = [
    ("devices",),
    ("rename flags",),
    ("links",),
    ("devices", "rename flags", "links"),
    ("xattrs",),
    ("devices", "xattrs"),
    ("devices", "rename flags", "links", "xattrs"),
]


@CAPABLE
@pytest.mark.parametrize("what", POVERTY, ids=",".join)
def test_upper_without(new_union, what):
    union = dropin_union(new_union)
    union.preexec = lacking(*what)
    fill(union.lower(), links="xattrs" not in what)
    works(union, xattrs="xattrs" not in what)


@CAPABLE
@pytest.mark.parametrize("what", POVERTY, ids=",".join)
def test_what_was_deleted_stays_so_without(new_union, what):
    union = dropin_union(new_union)
    union.preexec = lacking(*what)
    for name in "abcd":
        write(union.lower() / name, "low")
    for name in "pqrs":
        write(union.lower() / name / "old", "low")
    m = union.mount()
    os.unlink(m / "a")
    os.rename(m / "b", m / "moved")
    for name in "pqrs":
        shutil.rmtree(m / name)
    os.mkdir(m / "p")
    write(m / "new/n", "new")
    os.rename(m / "new", m / "q")
    write(m / "r", "a file")
    files = "devices" in what or "rename flags" in what
    assert exists(union.upper / ".wh.a") == files
    assert exists(union.upper / "p/.wh..wh..opq") == ("xattrs" in what)
    union.remount()
    assert names(m) == ["c", "d", "moved", "p", "q", "r"]
    assert names(m / "p") == []
    assert names(m / "q") == ["n"]
    # and again, over what is there now
    os.rmdir(m / "p")
    os.mkdir(m / "p")
    shutil.rmtree(m / "q")
    os.rename(m / "p", m / "q")
    os.rename(m / "c", m / "a")
    union.remount()
    assert names(m) == ["a", "d", "moved", "q", "r"]
    assert names(m / "q") == []


@CAPABLE
def test_directory_over_one_that_cannot_be_emptied_in_one_step_is_copied(new_union):
    """Without xattrs nothing would keep an empty directory empty."""
    union = dropin_union(new_union)
    union.preexec = lacking("xattrs")
    write(union.lower() / "d/old")
    m = union.mount()
    os.unlink(m / "d/old")
    write(m / "e/new")
    with raises(errno.EXDEV):
        os.rename(m / "e", m / "d")
    assert names(m / "d") == []
    subprocess.run(["mv", "-T", m / "e", m / "d"], check=True, timeout=60)
    union.remount()
    assert names(m / "d") == ["new"]


@CAPABLE
def test_what_upper_cannot_hold_of_a_lower_file_is_left_out(new_union):
    """A capability; and an ACL, for which the mode then gives nobody more than it did."""
    union = dropin_union(new_union)
    union.preexec = lacking("xattrs")
    low = union.lower()
    write(low / "ping", DATA, mode=0o755, xattrs={lib.CAPABILITY: lib.CAP_NET_RAW})
    listed = lib.acl(7, 5, 5, users=[(1000, 7)], mask=7)
    write(low / "journal", DATA, mode=0o755, xattrs={lib.ACCESS_ACL: listed})
    mkdir(low / "dir", xattrs={lib.DEFAULT_ACL: listed, "user.x": b"1"})
    m = union.mount()
    assert os.stat(m / "journal").st_mode & 0o777 == 0o775
    for name in ("ping", "journal", "dir"):
        os.chown(m / name, 1, 1)
    write(m / "dir/new")
    union.remount()
    assert os.stat(m / "journal").st_mode & 0o777 == 0o755
    assert read(m / "ping") == DATA
    for name in ("ping", "journal", "dir"):
        assert os.stat(m / name).st_uid == 1
        assert os.listxattr(m / name) == []


@CAPABLE
def test_upper_that_can_hold_no_whiteouts_at_all_is_refused(new_union):
    union = dropin_union(new_union)
    write(union.lower() / "f")
    options = lib.layer_options(union.lowers, union.upper, union.work)
    done = call(
        program(union.base), options, union.point, preexec=lacking("devices", "files")
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "cannot hold whiteouts" in done.stderr and str(union.work) in done.stderr
    assert not lib.find_mount(union.point)


def test_upper_inside_another_container_is_refused(new_union):
    """There .wh. names are nobody's, and devices 0:0 whiteouts."""
    outer = dropin_union(new_union, "outer")
    write(outer.lower() / "f")
    m = outer.mount()
    inner = dropin_union(new_union, "inner", base=m)
    write(inner.lower() / "f")
    done = call(
        program(outer.base), lib.layer_options(inner.lowers, inner.upper, inner.work), inner.point
    )
    assert done.returncode == 1
    assert "cannot hold whiteouts" in done.stderr
    assert not lib.find_mount(inner.point)


@CAPABLE
def test_what_was_asked_for_and_cannot_be_is_said_in_one_line(new_union):
    union = dropin_union(new_union)
    write(union.lower() / "d/f")
    mounted = mount(
        program(union.base), union.lowers, union.upper, union.work, union.point,
        "redirect_dir=on", silent=False, preexec=lacking("xattrs"),
    )
    try:
        assert mounted.says.count("\n") == 1
        assert "redirect_dir=nofollow" in mounted.says
        with raises(errno.EXDEV):
            os.rename(union.point / "d", union.point / "e")
    finally:
        mounted.umount()
