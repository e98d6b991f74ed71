# SPDX-License-Identifier: MIT
"""How a process of root's becomes a user without rights, in each of the ways that engines know.

  subids  root of a user namespace with subordinate ids, mapped by newuidmap(1) and newgidmap(1)
  single  root of a user namespace with one id, his own
  user    an ordinary user in the first namespace, who mounts through fusermount3
"""

import contextlib
import os
import shutil
import stat
import subprocess
import tempfile

import plyfs_testlib as lib

NAME, UID = "plyfs-rootless", 54400
SUBIDS, SUBID_COUNT = 300000, 65536
KINDS = ("subids", "single", "user")


def outside(kind, inside):
    """The number in the layers of one that a user namespace of this kind shows."""
    if kind == "user":
        return inside
    return UID if inside == 0 else SUBIDS + inside - 1


def _write(path, text):
    with open(path, "w", encoding="ascii") as f:
        f.write(text)


def _append_bound(scratch, name, line):
    """A copy of a file of /etc with one line more, for this mount namespace."""
    copy = os.path.join(scratch, name)
    with contextlib.suppress(FileNotFoundError):
        shutil.copy(f"/etc/{name}", copy)
    with open(copy, "a", encoding="utf-8") as f:
        f.write(line)
    os.chmod(copy, 0o644)
    lib.sys_mount(copy, f"/etc/{name}", "", lib.MS_BIND)


def _prepare(scratch, fuse_conf, device_mode):
    """As root, in a mount namespace of its own: the user exists, and /dev/fuse has this mode."""
    lib.unshare(lib.CLONE_NEWNS)
    lib.sys_mount("none", "/", "", lib.MS_REC | lib.MS_PRIVATE)
    node = os.path.join(scratch, "fuse")
    os.mknod(node, stat.S_IFCHR, os.stat("/dev/fuse").st_rdev)
    os.chmod(node, device_mode)
    lib.sys_mount(node, "/dev/fuse", "", lib.MS_BIND)
    _append_bound(scratch, "passwd", f"{NAME}:x:{UID}:{UID}::/nonexistent:/bin/false\n")
    _append_bound(scratch, "group", f"{NAME}:x:{UID}:\n")
    for name in ("subuid", "subgid"):
        _append_bound(scratch, name, f"{NAME}:{SUBIDS}:{SUBID_COUNT}\n")
    if fuse_conf is not None:
        conf = os.path.join(scratch, "fuse.conf")
        _write(conf, fuse_conf)
        os.chmod(conf, 0o644)
        lib.sys_mount(conf, "/etc/fuse.conf", "", lib.MS_BIND)


def _write_maps(pid):
    """By the setuid programs, as a user has to."""
    for program in ("newuidmap", "newgidmap"):
        numbers = [pid, 0, UID, 1, 1, SUBIDS, SUBID_COUNT]
        subprocess.run([program, *map(str, numbers)], check=True)


def _map_single(inside):
    lib.unshare(lib.CLONE_NEWUSER | lib.CLONE_NEWNS)
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"{inside} {UID} 1\n")
    _write("/proc/self/gid_map", f"{inside} {UID} 1\n")


def enter_namespace(kind, inside=0):
    """From an ordinary user to root of his namespace."""
    if kind == "subids":
        lib.enter_user_namespace(_write_maps)
    elif kind == "single":
        _map_single(inside)


def run(kind, function, *args, fuse_conf=None, device_mode=0o666):
    """function(*args) in a child that is such a user; what it returns must be picklable."""
    scratch = tempfile.mkdtemp(prefix="rootless.", dir=lib.settings.scratch)
    os.chmod(scratch, 0o711)

    def inside():
        _prepare(scratch, fuse_conf, device_mode)
        lib.drop_privileges(UID, UID, [])
        lib.check(lib.libc.prctl(4, 1, 0, 0, 0))  # dumpable again: /proc/self is the user's
        enter_namespace(kind)
        return function(*args)

    try:
        return lib.in_child(inside)
    finally:
        lib.remove_tree(scratch)
