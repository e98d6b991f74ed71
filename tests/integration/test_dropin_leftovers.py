# SPDX-License-Identifier: MIT
"""A mount that was unmounted, and lives on in a mount namespace that somebody made meanwhile: of a
container with -v /:/host, for example. What was mounted there has to start again."""

import os

import plyfs_testlib as lib
import pytest
from dropin import adopt, call, dropin_union, program
from plyfs_testlib import names, read, write

pytestmark = [
    pytest.mark.plyfs_only("the command of fuse-overlayfs"),
    pytest.mark.privileged("makes mount namespaces"),
]


class Namespace:
    """A process with a copy of all mounts, which do not go when the originals go."""

    def __init__(self):
        ready, told = os.pipe()
        gate, self.gate = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.close(self.gate)
                lib.unshare(lib.CLONE_NEWNS)
                lib.sys_mount("none", "/", "", lib.MS_REC | lib.MS_PRIVATE)
                os.write(told, b"x")
                os.read(gate, 1)
            finally:
                os._exit(0)
        os.close(told)
        os.close(gate)
        assert os.read(ready, 1) == b"x"
        os.close(ready)

    def end(self):
        os.close(self.gate)
        os.waitpid(self.pid, 0)


@pytest.fixture
def left(new_union):
    """A union whose first mount is left in another namespace."""
    union = dropin_union(new_union)
    write(union.lower() / "a", "low")
    write(union.lower() / "b", "low")
    m = union.mount()
    write(m / "new", "first")
    namespace = Namespace()
    lib.sys_umount(str(m))
    first = union.mounts.pop()
    yield union
    assert first.daemon.alive()
    namespace.end()
    assert first.daemon.wait() == 0


def mount_again(union, options=""):
    words = lib.layer_options(union.lowers, union.upper, union.work, options)
    return call(program(union.base), words, union.point)


def test_a_container_starts_again(left):
    before = set(lib.children())
    done = mount_again(left)
    assert done.returncode == 0 and done.stderr.count("\n") == 1, done
    assert "in use by another plyfs mount" in done.stderr
    mounted = adopt(left.point, before)
    try:
        assert read(left.point / "new") == b"first"
        os.unlink(left.point / "a")
        write(left.point / "b", "second")
        assert names(left.point) == ["b", "new"]
    finally:
        mounted.umount()


def test_an_index_is_nothing_to_share(left):
    """As with the kernel's overlayfs."""
    done = mount_again(left, "index=on")
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done
    assert "in use by another plyfs mount" in done.stderr
    assert not lib.find_mount(left.point)
