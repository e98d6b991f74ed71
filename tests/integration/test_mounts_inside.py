# SPDX-License-Identifier: MIT
"""What is mounted inside a lower layer, which an ordinary user cannot look beneath."""

import os
import subprocess

import plyfs_testlib as lib
import pytest
from plyfs_testlib import mkdir, write

pytestmark = [
    pytest.mark.root("mounts something inside a layer, and then is an ordinary user"),
    pytest.mark.plyfs_only("the kernel mounts for root"),
]

# in a mount namespace of its own: a /dev/fuse and a user for fusermount3
SCRIPT = """
set -e
mount --make-rprivate /
mknod fuse c 10 229
chmod 666 fuse
mount --bind fuse /dev/fuse
(cat /etc/passwd; echo plyfs-test:x:54321:54321::/nonexistent:/bin/false) > passwd
mount --bind passwd /etc/passwd
mount --bind source/shared lower/a
mount --bind source/shared lower/b
mount --bind lower/own lower/c
user="setpriv --reuid 54321 --regid 54321 --clear-groups"
$user "$0" mount -o lowerdir=$PWD/lower,upperdir=$PWD/upper,workdir=$PWD/work $PWD/merged
trap '$user fusermount3 -u merged' EXIT
for name in a b c own; do
    $user ls merged/$name | sed "s,^,$name/,"
done
$user sh -c 'stat -c %n merged/*'
"""


def test_one_directory_mounted_twice(scratch):
    """Each mount point is shown, empty; and what is shown elsewhere too is shown there."""
    write(scratch / "source" / "shared" / "secret")
    write(scratch / "lower" / "own" / "file")
    for name in "abc":
        mkdir(scratch / "lower" / name)
    for name in ("upper", "work", "merged"):
        os.chown(mkdir(scratch / name), 54321, 54321)
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", SCRIPT, lib.settings.plyfs],
        cwd=scratch,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    shown = [f"merged/{name}" for name in ("a", "b", "c", "own")]
    assert done.stdout.split() == ["own/file", *shown]
