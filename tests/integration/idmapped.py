# SPDX-License-Identifier: MIT
"""User namespaces, processes in them, and idmapped mounts.

A map is a list of (on disk, shown, count): "inside" and "outside" of a user namespace, and the
triples of uidmapping= and gidmapping=.
"""

import contextlib
import ctypes
import os
import platform
import signal
import struct

import plyfs_testlib as lib

SYS_OPEN_TREE, SYS_MOVE_MOUNT, SYS_MOUNT_SETATTR = 428, 429, 442
OPEN_TREE_CLONE, OPEN_TREE_CLOEXEC, MOVE_MOUNT_F_EMPTY_PATH = 1, 0o2000000, 4
MOUNT_ATTR_IDMAP = 0x00100000
PR_SET_DUMPABLE = 4

SHIFT = [(0, 100000, 65536)]


def kernel():
    """The version that runs: (major, minor)."""
    return tuple(int(n) for n in os.uname().release.split("-")[0].split(".")[:2])


def option(ranges):
    return ":".join(f"{disk}:{shown}:{count}" for disk, shown, count in ranges)


def options(ranges, gids=None):
    return f"uidmapping={option(ranges)},gidmapping={option(gids or ranges)}"


def _lines(ranges):
    return "".join(f"{inside} {outside} {count}\n" for inside, outside, count in ranges)


def write_maps(pid, uids, gids):
    for name, ranges in (("uid_map", uids), ("gid_map", gids or uids)):
        fd = os.open(f"/proc/{pid}/{name}", os.O_WRONLY)
        try:
            os.write(fd, _lines(ranges).encode())
        finally:
            os.close(fd)


@contextlib.contextmanager
def _sleeper(uids, gids):
    """A process that waits in a new user namespace: its pid."""
    ready_r, ready_w = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            lib.check(lib.libc.prctl(lib.PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0))
            lib.unshare(lib.CLONE_NEWUSER)
            lib.check(lib.libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0))  # or its maps are not ours
            os.write(ready_w, b"x")
            signal.pause()
        finally:
            os._exit(0)
    try:
        os.close(ready_w)
        assert os.read(ready_r, 1) == b"x"
        write_maps(pid, uids, gids)
        yield pid
    finally:
        os.close(ready_r)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def userns(uids, gids=None):
    """An fd of a user namespace with these maps."""
    with _sleeper(uids, gids) as pid:
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)


def in_userns(function, *args, ranges=SHIFT, uid=0, gid=None, groups=()):
    """Run function(*args) as uid of a new user namespace: as a container does."""
    fd = userns(ranges)

    def enter():
        lib.check(lib.libc.setns(fd, lib.CLONE_NEWUSER))
        lib.drop_privileges(0, 0, [])
        lib.drop_privileges(uid, uid if gid is None else gid, groups)
        # or /proc/self would belong to somebody else
        lib.check(lib.libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0))
        return function(*args)

    try:
        return lib.in_child(enter)
    finally:
        os.close(fd)


def bind(source, target, uids, gids=None):
    """An idmapped bind mount of source at target."""
    assert platform.machine() in ("x86_64", "aarch64", "riscv64")
    ns = userns(uids, gids)
    tree = lib.check(
        lib.libc.syscall(
            SYS_OPEN_TREE, lib.AT_FDCWD, os.fsencode(source), OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC
        )
    )
    try:
        attr = struct.pack("=QQQQ", MOUNT_ATTR_IDMAP, 0, 0, ns)
        lib.check(
            lib.libc.syscall(
                SYS_MOUNT_SETATTR,
                tree,
                b"",
                lib.AT_EMPTY_PATH,
                ctypes.c_char_p(attr),
                ctypes.c_size_t(len(attr)),
            )
        )
        lib.check(
            lib.libc.syscall(
                SYS_MOVE_MOUNT,
                tree,
                b"",
                lib.AT_FDCWD,
                os.fsencode(target),
                MOVE_MOUNT_F_EMPTY_PATH,
            )
        )
    finally:
        os.close(tree)
        os.close(ns)
