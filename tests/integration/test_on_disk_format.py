# SPDX-License-Identifier: MIT
"""What is written into the upper layer is what the kernel's overlayfs writes for the same lower."""

import os
import shutil
import stat

import plyfs_testlib as lib
import pytest
from plyfs_testlib import append, mkdir, names, renameat2, write

pytestmark = pytest.mark.privileged("compares with a mount of the kernel's overlayfs")


def overlay_marks(path):
    """The overlay xattrs; of the random number which the kernel gives a new upper only the size."""
    prefix = lib.settings.prefix
    return {
        n: len(v) if n == prefix + "uuid" else v
        for n, v in lib.xattrs(path).items()
        if n.startswith(prefix)
    }


def shape(root):
    """{path: (type and mode, rdev, overlay xattrs)}: all that a reader of the layer goes by."""
    out = {}
    for rel in lib.walk(root):
        st = os.lstat(root / rel)
        out[rel] = (oct(st.st_mode), st.st_rdev, overlay_marks(root / rel))
    return out


def make_lower(union):
    low0, low1 = union.lower(0), union.lower(1)
    for directory in (low0, low1):
        for i in range(8):
            write(directory / f"d{i}/f", f"{directory.name} {i}")
            write(directory / f"d{i}/{directory.name}", "x")
            write(directory / f"d{i}/sub/deep/f", "x")
    write(low1 / "hard/a", "linked")
    os.link(low1 / "hard/a", low1 / "hard/b")
    os.symlink("f", low1 / "d0/s")
    os.mkfifo(low1 / "d0/p")
    mkdir(low0 / "empty")
    write(low0 / "top", "top")


def scenario_copy_up(m):
    append(m / "d0/f", b"x")
    os.chmod(m / "d1", 0o700)
    os.lchown(m / "d0/s", 1, 1)
    os.chown(m / "d0/p", 1, 1)
    append(m / "d2/sub/deep/f", b"x")
    append(m / "top", b"x")
    append(m / "hard/a", b"x")
    os.utime(m, ns=(5, 5))


def scenario_remove(m):
    os.unlink(m / "d0/f")
    os.unlink(m / "top")
    shutil.rmtree(m / "d1")
    os.rmdir(m / "empty")
    os.unlink(m / "d2/sub/deep/f")
    os.unlink(m / "hard/b")


def scenario_replace(m):
    os.unlink(m / "d0/f")
    write(m / "d0/f", "new")
    shutil.rmtree(m / "d1")
    os.mkdir(m / "d1")
    write(m / "d1/f", "new")
    shutil.rmtree(m / "d2")
    write(m / "d2", "a file now")
    os.unlink(m / "top")
    os.mkdir(m / "top")
    os.rmdir(m / "empty")
    os.symlink("x", m / "empty")
    shutil.rmtree(m / "d3/sub")
    os.mkdir(m / "d3/sub")
    os.mkdir(m / "d3/sub/deep")


def scenario_new(m):
    write(m / "new", "x")
    os.mkdir(m / "newdir")
    write(m / "newdir/f", "x")
    os.mkdir(m / "d0/newdir")
    os.mkdir(m / "d0/newdir/below")
    os.unlink(m / "new")
    write(m / "d1/tmp")
    os.unlink(m / "d1/tmp")
    os.mkdir(m / "d2/tmp")
    os.rmdir(m / "d2/tmp")
    os.symlink("x", m / "link")
    os.mkfifo(m / "fifo")


def scenario_rename(m):
    os.rename(m / "d0/f", m / "d0/moved")
    os.rename(m / "d1/f", m / "d2/f")
    os.rename(m / "d3/f", m / "d3/lower0")
    write(m / "new", "x")
    os.rename(m / "new", m / "new2")
    os.rename(m / "new2", m / "d4/f")
    os.mkdir(m / "newdir")
    os.rename(m / "newdir", m / "newdir2")
    os.rename(m / "newdir2", m / "d4/newdir")
    renameat2(m / "d5/f", m / "d5/lower0", lib.RENAME_EXCHANGE)
    write(m / "d6/new", "x")
    renameat2(m / "d6/new", m / "d6/f", lib.RENAME_EXCHANGE)
    os.unlink(m / "d7/f")
    os.rename(m / "d7/lower0", m / "d7/f")
    os.rename(m / "top", m / "top2")


def scenario_dir_over_whiteout(m):
    os.unlink(m / "top")
    os.mkdir(m / "pure")
    write(m / "pure/f")
    os.rename(m / "pure", m / "top")
    os.rmdir(m / "empty")
    os.mkdir(m / "pure")
    os.rename(m / "pure", m / "empty")


def scenario_links(m):
    os.link(m / "d0/f", m / "d0/link")
    os.link(m / "hard/a", m / "hard/c")
    os.link(m / "d1/f", m / "d2/link")
    write(m / "new", "x")
    os.link(m / "new", m / "d3/new")
    os.unlink(m / "new")
    os.unlink(m / "d4/f")
    os.link(m / "d0/f", m / "d4/f")
    with lib.opened(m / "d5", os.O_TMPFILE | os.O_RDWR) as fd:
        lib.linkat_fd(fd, m / "d5/named")
    os.unlink(m / "d6/f")
    with lib.opened(m / "d6", os.O_TMPFILE | os.O_RDWR) as fd:
        lib.linkat_fd(fd, m / "d6/f")


def scenario_xattrs(m):
    os.setxattr(m / "d0/f", "user.a", b"1")
    os.setxattr(m / "d1", "user.a", b"1")
    if lib.settings.level == "root":
        os.setxattr(m / "d2/f", "trusted.overlay.opaque", b"y")
        os.setxattr(m / "d2", "trusted.overlay.redirect", b"/x")


def scenario_rm_rf_all(m):
    for name in names(m):
        if os.path.isdir(m / name) and not os.path.islink(m / name):
            shutil.rmtree(m / name)
        else:
            os.unlink(m / name)


SCENARIOS = [
    scenario_copy_up,
    scenario_remove,
    scenario_replace,
    scenario_new,
    scenario_rename,
    scenario_dir_over_whiteout,
    scenario_links,
    scenario_xattrs,
    scenario_rm_rf_all,
]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda f: f.__name__[9:])
def test_upper_equals_the_kernels(union, new_union, scenario):
    """Types, modes, whiteouts, and every overlay xattr byte by byte, from the same lower layers."""
    make_lower(union)
    reference = new_union("reference")
    reference.use_lower(0, union.lower(0))
    reference.use_lower(1, union.lower(1))
    for u, impl in ((union, None), (reference, "kernel")):
        m = u.mount(impl=impl)
        scenario(m)
    ours = lib.tree(union.point, times=False)
    theirs = lib.tree(reference.point, times=False)
    lib.assert_same_tree(ours, theirs, "ours", "kernel")
    union.umount()
    reference.umount()
    ours, theirs = shape(union.upper), shape(reference.upper)
    lines = [
        f"{path}: ours {ours.get(path)}, kernel {theirs.get(path)}"
        for path in sorted(set(ours) | set(theirs))
        if ours.get(path) != theirs.get(path)
    ]
    assert not lines, "\n".join(lines)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda f: f.__name__[9:])
def test_upper_made_by_the_other_reads_the_same(union, scenario):
    """The kernel makes the upper and we read it, and go on in it, and the kernel reads that."""
    make_lower(union)
    first = "kernel"
    m = union.mount(impl=first)
    scenario(m)
    seen = lib.tree(m)
    m = union.remount(impl=lib.settings.impl)
    lib.assert_same_tree(seen, lib.tree(m), first, lib.settings.impl)
    for name in names(m):
        if os.path.isdir(m / name):
            write(m / name / "added", "x")
            os.chmod(m / name, 0o711)


def test_origin_of_every_type(union, new_union):
    """origin is the kernel's struct ovl_fb of the lower object, to the byte."""
    low = union.lower()
    write(low / "f", "x")
    mkdir(low / "d")
    os.symlink("x", low / "s")
    os.mkfifo(low / "p")
    reference = new_union("reference")
    reference.use_lower(0, low)
    for u, impl in ((union, None), (reference, "kernel")):
        m = u.mount(impl=impl)
        for name in "fdsp":
            os.lchown(m / name, 2, 2)
        u.umount()
    for name in "fdsp":
        ours, theirs = (lib.xattr(u.upper / name, union.prefix + "origin") for u in (union, reference))
        assert ours == theirs, (name, ours, theirs)
        if lib.settings.level == "root":
            assert len(theirs) > 21


@pytest.mark.root("mounts file systems")
@pytest.mark.parametrize("kind", ["tmpfs", "ext4", "xfs", "btrfs", "squashfs"])
def test_origin_on_other_filesystems(new_union, scratch, kind):
    import contextlib
    import subprocess

    with contextlib.ExitStack() as stack:
        if kind == "tmpfs":
            fs = stack.enter_context(lib.tmpfs(scratch))
        elif kind == "squashfs":
            write(scratch / "src/l/f", "x")
            write(scratch / "src/l/d/g", "x")
            image, fs = scratch / "image", mkdir(scratch / "squashfs")
            subprocess.run(["mksquashfs", scratch / "src", image, "-quiet"], check=True,
                           capture_output=True)
            subprocess.run(["mount", "-o", "loop,ro", image, fs], check=True)
            stack.callback(subprocess.run, ["umount", fs], check=True)
        else:
            fs = stack.enter_context(lib.loop_filesystem(scratch, kind))
        if kind != "squashfs":
            write(fs / "l/f", "x")
            write(fs / "l/d/g", "x")
        found = []
        for name, impl in (("ours", None), ("reference", "kernel")):
            u = new_union(name)
            u.use_lower(0, fs / "l")
            m = u.mount(impl=impl)
            append(m / "f", b"x")
            append(m / "d/g", b"x")
            u.umount()
            found.append({rel: overlay_marks(u.upper / rel) for rel in lib.walk(u.upper)})
            u.close()
        assert found[0] == found[1]


def test_whiteout_has_mode_0_and_is_shared(union):
    for i in range(20):
        write(union.lower() / f"f{i}")
    m = union.mount()
    for i in range(20):
        os.unlink(m / f"f{i}")
    union.umount()
    found = [os.lstat(union.upper / f"f{i}") for i in range(20)]
    for st in found:
        assert st.st_mode == stat.S_IFCHR
        assert st.st_rdev == 0
    assert len({st.st_ino for st in found}) == 1, "whiteouts are hard links of one inode"
    assert found[0].st_nlink >= 20


def test_workdir_looks_like_the_kernels(union, new_union):
    reference = new_union("reference")
    write(union.lower() / "f")
    reference.use_lower(0, union.lower())
    for u, impl in ((union, None), (reference, "kernel")):
        m = u.mount(impl=impl)
        os.unlink(m / "f")
        u.umount()
    assert names(union.work) == names(reference.work) == ["work"]
    ours, theirs = os.stat(union.work / "work"), os.stat(reference.work / "work")
    assert oct(ours.st_mode) == oct(theirs.st_mode)


def test_nothing_is_written_by_looking(union):
    """A mount that is only read leaves the upper layer as it was."""
    make_lower(union)
    mkdir(union.upper / "d0/sub")
    before = lib.tree(union.upper, layer=True)
    union.check_kernel = False
    m = union.mount()
    lib.tree(m)
    union.umount()
    after = lib.tree(union.upper, layer=True)
    for path in (".", "d0", "d0/sub"):
        # the kernel adds a missing origin to a merged directory, and impure to its parent
        for entry in (before[path], after[path]):
            del entry["ctime"]
            entry["xattrs"] = {
                n: v for n, v in entry["xattrs"].items() if not n.startswith(union.prefix)
            }
    lib.assert_same_tree(before, after, "before", "after")
