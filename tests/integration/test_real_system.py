# SPDX-License-Identifier: MIT
"""A Debian system lives on the mount, and on the kernel's overlayfs: both end up the same.

Needs the network once, to make the root file system and to fetch packages; both are kept under
/var/cache/plyfs-tests.
"""

import fnmatch
import os
import subprocess
import zlib
from pathlib import Path

import debian
import plyfs_testlib as lib
import pytest
from plyfs_testlib import mkdir, settings

PACKAGES = ["gcc", "libc6-dev", "make", "git", "python3", "python3-venv", "sqlite3"]
SCRIPT = Path(__file__).with_name("real_system.sh")

# What two runs of the same script on one and the same file system do not make equal.
DIFFERS = {
    "var/log/*": "times",
    "var/cache/ldconfig/aux-cache": "inode numbers and times of libraries",
    "var/cache/apt/*pkgcache.bin": "a dump of memory, with times of files",
    "srv/repo/.git/index": "inode numbers and times of files",
    "srv/clone/.git/index": "inode numbers and times of files",
}


def differs(path):
    return any(fnmatch.fnmatch(path, pattern) for pattern in DIFFERS)


@pytest.fixture
def rootfs(cache_dir, scratch):
    return debian.rootfs(cache_dir, scratch / "mmdebstrap.log", PACKAGES)


def split(whole, top):
    """Move every second file into another layer, hard links together, with the same directories."""
    for rel in lib.walk(whole):
        source, target = whole / rel, top / rel
        st = os.lstat(source)
        if os.path.isdir(source) and not os.path.islink(source):
            if rel != ".":
                target.mkdir()
            os.chown(target, st.st_uid, st.st_gid)
            os.chmod(target, st.st_mode & 0o7777)
        elif (zlib.crc32(rel.encode()) if st.st_nlink == 1 else st.st_ino) % 2:
            os.rename(source, target)
    for rel in lib.walk(whole):
        if os.path.isdir(whole / rel) and not os.path.islink(whole / rel):
            os.utime(whole / rel, ns=(10**18, 10**18))
            os.utime(top / rel, ns=(10**18, 10**18))


def live(point, log):
    """Run the script in a chroot on the mount."""
    inside = point / "root/real_system.sh"
    inside.write_bytes(SCRIPT.read_bytes())
    lib.sys_mount("proc", point / "proc", "proc")
    try:
        with open(log, "wb") as out:
            done = subprocess.run(
                ["/usr/sbin/chroot", point, "/bin/bash", "/root/real_system.sh"],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                timeout=300,
                env={},
            )
    finally:
        lib.sys_umount(point / "proc", lib.MNT_DETACH)
    assert done.returncode == 0, Path(log).read_text(errors="replace")[-3000:]


def comparable(tree):
    """Without times, and without the content of what differs anyway."""
    out = {}
    for path, entry in tree.items():
        entry = {k: v for k, v in entry.items() if k != "mtime"}
        if differs(path):
            entry = {k: v for k, v in entry.items() if k not in ("content", "size")}
        out[path] = entry
    return out


@pytest.mark.slow
@pytest.mark.limit(560)
@pytest.mark.root("a chroot with device nodes")
def test_debian_system(new_union, scratch, rootfs):
    whole, top = mkdir(scratch / "whole", mode=0o755), mkdir(scratch / "top", mode=0o755)
    subprocess.run(["tar", "-C", whole, "-xpf", rootfs, "--numeric-owner", "--xattrs"], check=True)
    split(whole, top)
    unions, trees = {}, {}
    for impl in (settings.impl, "kernel-reference"):
        union = new_union(impl)
        union.use_lower(0, top)
        union.use_lower(1, whole)
        # the lowers are compared once at the end
        union._snapshots = {top: None}
        union.check_lowers = union.check_kernel = False
        unions[impl] = union
    before = [lib.tree(layer, layer=True) for layer in (top, whole)]
    for impl, union in unions.items():
        point = union.mount(impl="kernel" if impl == "kernel-reference" else impl)
        live(point, union.base / "log")
        trees[impl] = lib.tree(point)
        union.umount()
    ours, theirs = trees[settings.impl], trees["kernel-reference"]
    assert len(ours) > 8000
    lib.assert_same_tree(comparable(ours), comparable(theirs), settings.impl, "kernel")
    for layer, was in zip((top, whole), before):
        lib.assert_same_tree(was, lib.tree(layer, layer=True), f"{layer.name} before", "after")
    # each upper read by the other
    for impl, union in unions.items():
        reader = "kernel" if impl == settings.impl else settings.impl
        point = union.mount(impl=reader)
        lib.assert_same_tree(trees[impl], lib.tree(point), f"made by {impl}", f"read by {reader}")
        union.umount()
