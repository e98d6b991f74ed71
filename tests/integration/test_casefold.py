# SPDX-License-Identifier: MIT
"""Directories in which case does not matter: refused as layers, and not shown inside of them.

Where the kernel was built without them, features_shim.c makes directories look so.
"""

import errno
import os
import subprocess
from pathlib import Path

import plyfs_testlib as lib
import pytest
from plyfs_testlib import mkdir, names, raises, write

pytestmark = [
    pytest.mark.root("trusted xattrs hold the marks of the shim"),
    pytest.mark.plyfs_only("unites them when all of them are so"),
]

FOLDED = "trusted.test-casefold"
FS_CASEFOLD_FL = 0x40000000


@pytest.fixture(scope="module")
def shim(tmp_path_factory):
    library = tmp_path_factory.mktemp("shim") / "features_shim.so"
    source = Path(__file__).with_name("features_shim.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source], check=True, timeout=60)
    asan = lib.settings.sanitizer_env.get("ASAN_OPTIONS", "")
    return {
        "LD_PRELOAD": str(library),
        "ASAN_OPTIONS": f"{asan}:verify_asan_link_order=0",
        "TEST_CASEFOLD": "1",
    }


def fold(path):
    os.setxattr(path, FOLDED, b"y")


def mount(union, env, upper=True):
    union.check_kernel = False
    where = (union.upper, union.work) if upper else (None, None)
    mounted = lib.mount_plyfs(union.lowers, *where, union.point, env=env)
    union.mounts.append(mounted)
    union.mounted = mounted
    return union.point


@pytest.mark.parametrize("which", ["upper", "lower0", "lower1"])
def test_a_folded_layer_is_refused(union, shim, which):
    union.lower(1)
    path = union.base / which
    fold(path)
    options = lib.layer_options(union.lowers, union.upper, union.work)
    done = lib.run_plyfs("mount", "-o", options, union.point, env=shim)
    assert done.returncode != 0
    assert str(path) in done.stderr and "chattr +F" in done.stderr
    assert not lib.find_mount(union.point)


@pytest.mark.parametrize("upper", [True, False])
@pytest.mark.parametrize("parent", [".", "d"])
def test_a_folded_directory_is_not_shown(union, shim, upper, parent):
    lower = union.lower()
    write(lower / parent / "folded/f", "x")
    write(lower / parent / "plain/f", "x")
    fold(lower / parent / "folded")
    union.check_kernel = False
    m = mount(union, shim, upper)
    with raises(errno.ESTALE):
        os.lstat(m / parent / "folded")
    with raises(errno.ESTALE):
        os.listdir(m / parent / "folded")
    assert names(m / parent / "plain") == ["f"]
    if upper:
        # nor can it be hidden: nobody knows what else its name means
        with raises(errno.ESTALE):
            os.mkdir(m / parent / "folded")


def test_none_can_be_made(union, shim):
    union.lower()
    m = mount(union, shim)
    d = mkdir(m / "d")
    with raises(errno.EOPNOTSUPP):
        lib.set_flags(d, lib.get_flags(d) | FS_CASEFOLD_FL)
    assert names(m) == ["d"]


def test_a_filesystem_that_cannot_fold_is_not_looked_through(union, shim):
    """The shim's mark is not even looked for where upper's filesystem refuses to make one."""
    write(union.lower() / "folded/f", "x")
    fold(union.lower() / "folded")
    env = {k: v for k, v in shim.items() if k != "TEST_CASEFOLD"}
    m = mount(union, env)
    assert names(m / "folded") == ["f"]


# --- for real --------------------------------------------------------------------------------------


@pytest.mark.skipif(
    not os.path.exists("/sys/fs/ext4/features/casefold"), reason="this kernel cannot fold case"
)
def test_real_folded_directories(scratch, new_union):
    with lib.loop_filesystem(scratch, "ext4", 64 * lib.MIB, ["-O", "casefold"]) as disk:
        union = new_union("u", base=disk)
        folded = mkdir(union.lower() / "folded")
        subprocess.run(["chattr", "+F", folded], check=True, timeout=20)
        write(folded / "f", "x")
        union.check_kernel = False
        m = union.mount()
        with raises(errno.ESTALE):
            os.lstat(m / "folded")
        union.umount()
        done = lib.run_plyfs("mount", "-o", f"lowerdir={folded}", union.point)
        assert done.returncode != 0 and "chattr +F" in done.stderr
        union.close()
