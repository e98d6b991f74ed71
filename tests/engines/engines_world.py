# SPDX-License-Identifier: MIT
"""The world of a run: namespaces, cgroups, devices, users.

enter() makes it out of the calling process, which becomes the parent of the world's first process;
that one reaps, and everything ends with it.
"""

import contextlib
import os
import signal
import stat
import time
from collections import namedtuple
from pathlib import Path

import plyfs_testlib as base

CLONE_NEWCGROUP, CLONE_NEWPID = 0x02000000, 0x20000000

User = namedtuple("User", "name uid first_sub")
# With subordinate ids, and without: the latter has nothing but its own id in a user namespace.
SUBORDINATE = User("plyfs-sub", 54330, 700_000)
SINGLE = User("plyfs-single", 54331, None)
USERS = (SUBORDINATE, SINGLE)
SUB_COUNT = 65536

_status = 0


def enter(scratch):
    """True in the process that goes on with the run; False in its parent when the run is over."""
    hierarchies = enter_cgroups(scratch.name)
    base.unshare(base.CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWCGROUP)
    first = os.fork()
    if first:
        global _status
        _status = base.wait_for_child(first)
        return False
    base.check(base.libc.prctl(base.PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0))
    base.sys_mount("none", "/", "", base.MS_REC | base.MS_PRIVATE)
    base.sys_mount("proc", "/proc", "proc")
    mount_cgroups(hierarchies)
    open_devices(scratch)
    own_directories(scratch)
    add_users(scratch)
    run = os.fork()
    if run:
        os._exit(base.wait_for_child(run))
    return True


def end_status():
    return _status


# --- cgroups --------------------------------------------------------------------------------------


def cgroup_mounts():
    return [entry for entry in base.mount_table() if entry[1] in ("cgroup", "cgroup2")]


def enter_cgroups(name):
    """Move this process into a new cgroup of every hierarchy: engines see it as the root of all."""
    found = cgroup_mounts()
    for point, _, _, _, _ in found:
        own = Path(point, name)
        own.mkdir()
        for setting in ("cpuset.cpus", "cpuset.mems"):
            if (own / setting).exists() and (Path(point) / setting).exists():
                (own / setting).write_text((Path(point) / setting).read_text())
        (own / "cgroup.procs").write_text("0")
    return found


def mount_cgroups(hierarchies):
    """What engines look at: one layout, the first version's or the second's, not a mix of both."""
    if not hierarchies:
        return
    root = "/sys/fs/cgroup"
    first = [entry for entry in hierarchies if entry[1] == "cgroup"]
    base.sys_umount(root, base.MNT_DETACH)
    if not first:
        base.sys_mount("cgroup2", root, "cgroup2")
        return
    base.sys_mount("tmpfs", root, "tmpfs", 0, "mode=755")
    for point, kind, source, _, options in first:
        os.makedirs(point, exist_ok=True)
        generic = {"rw", "ro", "nosuid", "nodev", "noexec", "relatime"}
        data = ",".join(o for o in dict.fromkeys(options.split(",")) if o not in generic)
        base.sys_mount(source, point, kind, 0, data)


def remove_cgroups(name):
    """From outside, when all processes in them are gone."""
    for point, _, _, _, _ in cgroup_mounts():
        for path, _, _ in os.walk(Path(point, name), topdown=False):
            for _ in range(100):
                try:
                    os.rmdir(path)
                    break
                except FileNotFoundError:
                    break
                except OSError:  # a process that was killed is still leaving
                    time.sleep(0.05)


# --- devices, directories, users ------------------------------------------------------------------


def open_devices(scratch):
    """Ordinary users may use these devices on most systems; engines of rootless users need it."""
    for device in ("/dev/fuse", "/dev/net/tun"):
        node = scratch / Path(device).name
        with contextlib.suppress(FileNotFoundError):
            os.mknod(node, stat.S_IFCHR, os.stat(device).st_rdev)
            node.chmod(0o666)
            base.sys_mount(node, device, "", base.MS_BIND)


def own_directories(scratch):
    for path, options in (("/run", "mode=755"), ("/tmp", "mode=1777")):
        base.sys_mount("tmpfs", path, "tmpfs", 0, options)
    os.makedirs("/run/lock", exist_ok=True)
    if os.path.isdir("/etc/docker"):  # where docker writes a key
        base.sys_mount("tmpfs", "/etc/docker", "tmpfs")


def add_users(scratch):
    lines = {"passwd": [], "group": [], "subuid": [], "subgid": []}
    for user in USERS:
        home = scratch / user.name
        home.mkdir()
        os.chown(home, user.uid, user.uid)
        lines["passwd"].append(f"{user.name}:x:{user.uid}:{user.uid}::{home}:/bin/sh")
        lines["group"].append(f"{user.name}:x:{user.uid}:")
        if user.first_sub:
            for name in ("subuid", "subgid"):
                lines[name].append(f"{user.name}:{user.first_sub}:{SUB_COUNT}")
    for name, added in lines.items():
        original, copy = Path("/etc", name), scratch / name
        kept = original.read_text() if original.exists() else ""
        copy.write_text(kept + "\n".join(added) + "\n")
        copy.chmod(0o644)
        base.sys_mount(copy, original, "", base.MS_BIND)
