# SPDX-License-Identifier: MIT
"""What engines do to the root of a container whose users are mapped (podman run --uidmap, as root)."""

import errno
import os

import dropin
import pytest
from plyfs_testlib import in_child, mkdir, names, raises, write

pytestmark = [
    pytest.mark.root("the mapped numbers are no root's"),
    pytest.mark.plyfs_only("words of fuse-overlayfs"),
]

# with the leading colon of containers/storage: the layers' 0 to 999 are shown from 200000 on
MAPPING = "uidmapping=:0:200000:1000,gidmapping=:0:300000:1000"

# whose everything is that nobody was named for (kernel.overflowuid)
NOBODY = 65534


def owner(path):
    st = os.lstat(path)
    return st.st_uid, st.st_gid


@pytest.fixture
def mapped(new_union):
    union = dropin.dropin_union(new_union)
    mkdir(union.lower() / "etc")
    write(union.lower() / "etc/passwd")
    return union


def test_root_makes_mount_points_and_gives_them_away(mapped):
    m = mapped.mount(MAPPING)
    os.symlink("/proc/mounts", m / "etc/mtab")
    os.mkdir(m / "run")
    (m / "etc/hosts").touch()
    os.mknod(m / "fifo", 0o010644)
    made = ["etc/mtab", "run", "etc/hosts", "fifo"]
    assert {owner(m / name) for name in made} == {(NOBODY, NOBODY)}
    assert {owner(mapped.upper / name) for name in made} == {(NOBODY, NOBODY)}
    for name in made:
        os.lchown(m / name, 200005, 300006)
    assert {owner(m / name) for name in made} == {(200005, 300006)}
    assert {owner(mapped.upper / name) for name in made} == {(5, 6)}


def test_who_has_no_number_and_is_not_root_makes_nothing(mapped):
    os.chmod(mapped.lower() / "etc", 0o777)
    m = mapped.mount(MAPPING)
    with raises(errno.EOVERFLOW):
        in_child(os.mkdir, m / "etc/made", uid=1000)
    assert names(m / "etc") == ["passwd"]
    in_child(os.mkdir, m / "etc/made", uid=200007, gid=300008)
    assert owner(mapped.upper / "etc/made") == (7, 8)
