# SPDX-License-Identifier: MIT
"""The power goes out: what a client has synced is seen afterwards, in what had been copied up too."""

import os
import shutil
import subprocess

import plyfs_testlib as lib
import pytest
from plyfs_testlib import MIB, opened, read, write

pytestmark = pytest.mark.root("needs file systems of its own")


def on_disk_now(scratch):
    """A copy of the disk as it is, without what only memory has."""
    shutil.copyfile(scratch / "ext4.img", scratch / "after.img")
    point = lib.mkdir(scratch / "after")
    subprocess.run(["mount", "-o", "loop", scratch / "after.img", point], check=True, timeout=60)
    return point


@pytest.mark.plyfs_only("the kernel's overlayfs loses what was synced by fdatasync, on ext4")
@pytest.mark.parametrize("options", ["", "metacopy=on"])
@pytest.mark.parametrize("sync", [os.fsync, os.fdatasync])
def test_synced_after_copy_up(scratch, new_union, options, sync):
    with lib.loop_filesystem(scratch, "ext4", size=64 * MIB) as disk:
        union = new_union("u")
        write(union.lower() / "d" / "f", b"old" * 100_000)
        union.upper, union.work = lib.mkdir(disk / "upper"), lib.mkdir(disk / "work")
        m = union.mount(options)
        if options:
            os.chmod(m / "d" / "f", 0o600)
            subprocess.run(["sync", "-f", disk], check=True, timeout=60)
        with opened(m / "d" / "f", os.O_WRONLY) as fd:
            os.pwrite(fd, b"new", 0)
            sync(fd)
        after = on_disk_now(scratch)
        union.close()
        try:
            found = new_union("found")
            found.use_lower(0, union.lower())
            found.upper, found.work = after / "upper", after / "work"
            m = found.mount(options)
            assert read(m / "d" / "f")[:6] == b"newold"
            found.close()
        finally:
            subprocess.run(["umount", after], check=True, timeout=60)
