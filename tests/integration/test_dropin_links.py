# SPDX-License-Identifier: MIT
"""Under fuse-overlayfs' name a directory has a link for each directory in it, as programs there count on."""

import os
import subprocess

import dropin
import pytest
from plyfs_testlib import RENAME_EXCHANGE, mkdir, renameat2, write

pytestmark = pytest.mark.plyfs_only("the kernel's overlayfs shows 1 of united directories")


def links(path):
    return os.stat(path).st_nlink


@pytest.fixture
def united(new_union):
    union = dropin.dropin_union(new_union)
    for layer, inside in ((1, "a b"), (2, "b c")):
        for name in inside.split():
            mkdir(union.lower(layer) / "top" / name)
        write(union.lower(layer) / f"top/file{layer}")
    return union


def test_each_directory_counts_once_whatever_layers_have_it(united):
    m = united.mount()
    assert links(m / "top") == 2 + 3
    os.mkdir(m / "top/d")
    assert links(m / "top") == 2 + 4
    os.rmdir(m / "top/a")
    os.rename(m / "top/d", m / "d")
    assert (links(m / "top"), links(m)) == (2 + 2, 2 + 2)
    united.remount()
    assert (links(united.point / "top"), links(united.point)) == (2 + 2, 2 + 2)


def test_a_listing_shows_the_same_counts(united):
    m = united.mount()
    found = subprocess.run(
        ["find", m, "-type", "d", "-printf", "%P %n\n"], capture_output=True, check=True, timeout=30
    )
    assert sorted(found.stdout.decode().split("\n")) == sorted(["", " 3", "top 5", "top/a 2", "top/b 2", "top/c 2"])


def test_static_nlink_counts_nothing(united):
    m = united.mount("static_nlink")
    assert {links(m), links(m / "top"), links(m / "top/a")} == {1}


def test_under_our_own_name_a_united_directory_has_one(united):
    m = united.mount(impl="plyfs")
    assert links(m / "top") == 1


def test_counts_are_true_while_directories_come_and_go(united):
    """What was counted is not believed any longer than it holds."""
    m = united.mount()
    for n in range(30):
        os.mkdir(m / "top/x")
        write(m / "top/x/f")
        assert links(m / "top") == 2 + 4
        os.rename(m / "top/x", m / "top/y")
        assert links(m / "top") == 2 + 4
        os.rename(m / "top/y", m / "y")
        assert (links(m / "top"), links(m)) == (2 + 3, 2 + 2)
        os.rename(m / "y", m / "top/y")
        write(m / "file")
        renameat2(m / "top/y", m / "file", RENAME_EXCHANGE)
        assert (links(m / "top"), links(m)) == (2 + 3, 2 + 2)
        os.unlink(m / "top/y")
        os.unlink(m / "file/f")
        os.rmdir(m / "file")
        assert (links(m / "top"), links(m)) == (2 + 3, 2 + 1)
