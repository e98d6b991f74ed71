# SPDX-License-Identifier: MIT
"""Unions on unions: layers that are unions themselves, and the kernel's overlayfs above ours."""

import errno
import os
import shutil

import plyfs_testlib as lib
import pytest
from plyfs_testlib import append, mkdir, names, raises, read, write


def fill(union):
    write(union.lower() / "d/f", "low")
    write(union.lower() / "d/gone", "low")
    write(union.lower() / "full/f", "low")
    m = union.mount()
    append(m / "d/f", b"+inner")
    os.unlink(m / "d/gone")
    shutil.rmtree(m / "full")
    os.mkdir(m / "full")
    write(m / "full/new", "new")
    return m


def check_and_change(outer):
    m = outer.point
    assert names(m / "d") == ["f"]
    assert names(m / "full") == ["new"]
    assert read(m / "d/f") == b"low+inner"
    append(m / "d/f", b"+outer")
    os.unlink(m / "full/new")
    os.mkdir(m / "full/sub")
    os.rename(m / "d/f", m / "moved")
    assert read(m / "moved") == b"low+inner+outer"
    assert names(m / "d") == []


@pytest.mark.plyfs_only("nests by itself at most once")
def test_lower_on_another_mount_of_ours(new_union):
    inner, outer = new_union("inner"), new_union("outer")
    fill(inner)
    before = lib.tree(inner.point)
    outer.use_lower(0, inner.point)
    outer.check_lowers = outer.check_kernel = False
    outer.mount()
    check_and_change(outer)
    outer.umount()
    lib.assert_same_tree(before, lib.tree(inner.point), "inner before", "inner after")
    outer.close()


@pytest.mark.plyfs_only("the message of the command")
def test_upper_on_another_mount_of_ours_is_refused(new_union):
    """As on the kernel's overlayfs: no whiteout can be made through a union."""
    inner = new_union("inner")
    m = inner.mount()
    upper, work = mkdir(m / "upper"), mkdir(m / "work")
    point = mkdir(inner.base / "outer")
    options = lib.layer_options([inner.lower()], upper, work)
    done = lib.run_plyfs("mount", "-o", options, point)
    assert done.returncode != 0
    assert "whiteout" in done.stderr and str(m) in done.stderr
    assert not lib.find_mount(point)


@pytest.mark.privileged("mounts the kernel's overlayfs")
@pytest.mark.plyfs_only("is itself below")
def test_kernel_overlay_above(new_union):
    inner, outer = new_union("inner"), new_union("outer")
    fill(inner)
    before = lib.tree(inner.point)
    outer.use_lower(0, inner.point)
    outer.check_lowers = outer.check_kernel = False
    outer.mount(impl="kernel")
    check_and_change(outer)
    outer.umount()
    lib.assert_same_tree(before, lib.tree(inner.point), "inner before", "inner after")
    outer.close()


@pytest.mark.privileged("mounts the kernel's overlayfs")
@pytest.mark.plyfs_only("is itself below")
def test_layers_on_a_kernel_overlay(new_union):
    inner, outer = new_union("inner"), new_union("outer")
    write(inner.lower() / "d/f", "low")
    write(inner.lower() / "d/gone", "low")
    write(inner.lower() / "full/f", "low")
    m = inner.mount(impl="kernel")
    append(m / "d/f", b"+inner")
    os.unlink(m / "d/gone")
    shutil.rmtree(m / "full")
    write(m / "full/new", "new")
    outer.use_lower(0, m)
    outer.check_lowers = outer.check_kernel = False
    outer.mount()
    check_and_change(outer)
    outer.close()


@pytest.mark.privileged("bind mounts")
def test_bind_mount_of_a_part(union):
    write(union.lower() / "d/f", "low")
    m = union.mount()
    other = mkdir(union.base / "other")
    lib.sys_mount(m / "d", other, "", lib.MS_BIND)
    try:
        append(other / "f", b"+")
        assert read(m / "d/f") == b"low+"
        write(m / "d/new")
        assert names(other) == ["f", "new"]
        with raises(errno.EXDEV):
            os.link(other / "f", m / "linked")
    finally:
        lib.sys_umount(other)


@pytest.mark.privileged("mounts a file system")
def test_mount_inside_the_mount(union):
    write(union.lower() / "d/f", "low")
    m = union.mount()
    lib.sys_mount("tmpfs", m / "d", "tmpfs")
    try:
        assert names(m / "d") == []
        write(m / "d/x", "x")
        with raises(errno.EBUSY):
            os.rename(m / "d", m / "e")
        with raises(errno.EBUSY):
            os.rmdir(m / "d")
    finally:
        lib.sys_umount(m / "d")
    assert names(m / "d") == ["f"]


@pytest.mark.privileged("mounts a file system")
def test_what_is_mounted_in_a_layer_is_not_part_of_it(union):
    """As the kernel's overlayfs, whose layers are private clones of the mounts."""
    write(union.lower() / "d/f", "low")
    mkdir(union.lower() / "sub")
    lib.sys_mount("tmpfs", union.lower() / "sub", "tmpfs")
    try:
        write(union.lower() / "sub/inside", "x")
        union.check_lowers = union.check_kernel = False
        m = union.mount()
        assert names(m / "sub") == []
        write(m / "sub/new", "x")
        assert names(union.lower() / "sub") == ["inside"]
        union.umount()
    finally:
        lib.sys_umount(union.lower() / "sub")


@pytest.mark.privileged("chroots")
def test_chroot(union):
    write(union.lower() / "etc/f", "low")
    m = union.mount()

    def inside():
        append("/etc/f", b"+")
        os.symlink("/etc/f", "/link")
        return read("/link"), sorted(os.listdir("/"))

    assert lib.in_child(inside, root=m) == (b"low+", ["etc", "link"])
