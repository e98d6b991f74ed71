# SPDX-License-Identifier: MIT
"""mount(8), mount.fuse3 and /etc/fstab with the type of fuse-overlayfs; the ways to unmount.

mount(8) and mount.fuse3 name the source and the mountpoint first and the options last, among them
words of mount(8). A link named mount.fuse3.fuse-overlayfs serves the type by which containerd
calls it, for which mount(8) alone would look for a program named fuse3.fuse-overlayfs.
"""

import contextlib
import os
import shutil
import stat
import subprocess

import engines_testlib as lib
import pytest
from engines_testlib import command
from engines_world import SUBORDINATE
from plyfs_testlib import MS_BIND, mkdir, sys_mount, sys_umount, wait_for, write

ENV_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"


class Layers:
    """Two lower layers, an upper, and a mountpoint."""

    def __init__(self, base):
        self.base, self.point = base, base / "m"
        for name in ("l1", "l2", "u", "w", "m"):
            mkdir(base / name)
        write(base / "l1/a", b"a")
        write(base / "l2/a", b"hidden")
        write(base / "l2/b", b"b")

    def options(self, *words):
        b = self.base
        layers = [f"lowerdir={b}/l1:{b}/l2", f"upperdir={b}/u", f"workdir={b}/w"]
        return ",".join([*layers, *words])

    def check(self):
        """The union is there, takes changes, and shows the mount that engines look for."""
        assert sorted(os.listdir(self.point)) == ["a", "b"]
        assert (self.point / "a").read_bytes() == b"a"
        (self.point / "b").unlink()
        (self.point / "new").write_bytes(b"new")
        assert (self.base / "u/new").read_bytes() == b"new"
        assert stat.S_ISCHR(os.lstat(self.base / "u/b").st_mode)
        kind, source, words = self.mount()
        assert (kind, source) == ("fuse.fuse-overlayfs", "fuse-overlayfs")
        return words

    def mount(self):
        """(type, source, options) of the mount, else None."""
        with open("/proc/mounts", encoding="utf-8") as f:
            for line in f:
                source, point, kind, words = line.split()[:4]
                if point == str(self.point):
                    return kind, source, set(words.split(","))
        return None

    def umount(self, *argv):
        """Unmounts, and sees the daemon off."""
        command(argv or ["umount", self.point], env())
        assert self.mount() is None
        lib.assert_nothing_lives(self.base)


def env(**more):
    return {**lib.environment("/root", "/run"), **more}


@pytest.fixture
def union(scratch):
    return Layers(scratch)


@pytest.fixture(scope="module", autouse=True)
def installed(program):
    """/usr/bin/fuse-overlayfs is the program: mount(8) may look nowhere else."""
    sys_mount(program.resolve(), "/usr/bin/fuse-overlayfs", "", MS_BIND)
    yield
    sys_umount("/usr/bin/fuse-overlayfs")


@pytest.fixture
def helper(program):
    """/sbin/mount.fuse3.fuse-overlayfs, a link to the program: in a copy of the directory."""
    copy = lib.settings.scratch / "sbin"
    shutil.copytree("/usr/sbin", copy, symlinks=True)
    (copy / "mount.fuse3.fuse-overlayfs").symlink_to(program.resolve())
    sys_mount(copy, "/usr/sbin", "", MS_BIND)
    yield
    sys_umount("/usr/sbin")
    shutil.rmtree(copy)


def quiet(argv, **kw):
    """A command that says nothing: engines show each line to people."""
    p = command(argv, env(), **kw)
    assert (p.stdout, p.stderr) == ("", "")


# --- mount.fuse3 ----------------------------------------------------------------------------------


def test_mount_fuse3_with_words_of_mount(union):
    words = union.options("rw", "noatime", "dev", "suid")
    quiet(["mount.fuse3", "overlay", union.point, "-t", "fuse-overlayfs", "-o", words])
    assert union.check() >= {"rw", "noatime"}
    union.umount()


@pytest.mark.parametrize("helper_name", ["mount.fuse3", "mount.fuse"])
def test_mount_fuse3_with_the_program_in_the_source(union, helper_name):
    argv = [helper_name, "fuse-overlayfs#overlay", union.point, "-o", union.options("ro")]
    command(argv, env())
    assert "ro" in union.mount()[2]
    union.umount()


def test_mount_fuse3_passes_on_a_failure(union):
    """Its exit status is the program's, and so is the message."""
    words = f"lowerdir={union.base}/none,upperdir={union.base}/u,workdir={union.base}/w"
    argv = ["mount.fuse3", "overlay", union.point, "-t", "fuse-overlayfs", "-o", words]
    p = command(argv, env(), check=False)
    assert p.returncode != 0 and f"{union.base}/none" in p.stderr
    assert union.mount() is None


# --- mount(8) -------------------------------------------------------------------------------------


def test_mount_of_type_fuse_dot_fuse_overlayfs(union):
    argv = ["mount", "-t", "fuse.fuse-overlayfs", "overlay", union.point]
    quiet([*argv, "-o", union.options("noatime")])
    union.check()
    union.umount()


@pytest.mark.usefixtures("helper")
def test_mount_of_type_fuse3_dot_fuse_overlayfs(union):
    argv = ["mount", "-t", "fuse3.fuse-overlayfs", "overlay", union.point]
    quiet([*argv, "-o", union.options()])
    union.check()
    union.umount()


@pytest.mark.usefixtures("helper")
def test_helper_for_containerds_type_in_fstab(union):
    mount_by_fstab(union, "fuse3.fuse-overlayfs", "defaults")
    union.check()
    union.umount()


@pytest.mark.parametrize("words", ["defaults", "rw,noatime,dev,suid,nofail,_netdev,noauto"])
def test_mount_by_fstab(union, words):
    mount_by_fstab(union, "fuse.fuse-overlayfs", words)
    union.check()
    union.umount()


def mount_by_fstab(union, kind, words):
    table = union.base / "fstab"
    table.write_text(f"overlay {union.point} {kind} {union.options()},{words} 0 0\n")
    quiet(["mount", "--fstab", table, union.point])


def test_mount_by_fstab_read_only(union):
    table = union.base / "fstab"
    lower = f"lowerdir={union.base}/l1:{union.base}/l2"
    table.write_text(f"overlay {union.point} fuse.fuse-overlayfs {lower},ro 0 0\n")
    quiet(["mount", "--fstab", table, union.point])
    with pytest.raises(OSError, match="Read-only"):
        (union.point / "x").touch()
    union.umount()


def test_remount_read_only_and_back(union):
    quiet(["mount", "-t", "fuse.fuse-overlayfs", "overlay", union.point, "-o", union.options()])
    quiet(["mount", "-o", "remount,ro", union.point])
    assert "ro" in union.mount()[2]
    with pytest.raises(OSError, match="Read-only"):
        (union.point / "x").touch()
    quiet(["mount", "-o", "remount,rw", union.point])
    union.check()
    union.umount()


# --- unmounting -----------------------------------------------------------------------------------


def mounted(union, *words):
    quiet(["fuse-overlayfs", "-o", union.options(*words), union.point])
    return union


@pytest.mark.parametrize("argv", ["umount", "umount -l", "fusermount3 -u", "fusermount3 -uz"])
def test_ways_to_unmount(union, argv):
    mounted(union).check()
    union.umount(*argv.split(), union.point)


@pytest.mark.parametrize("argv", ["umount -l", "fusermount3 -uz"])
def test_a_lazily_unmounted_union_serves_what_is_open(union, argv):
    mounted(union)
    with open(union.point / "a", "r+b") as f:
        command([*argv.split(), union.point], env())
        assert union.mount() is None
        assert len(lib.daemons_of(union.base)) == 1
        f.write(b"late")
        f.flush()
        os.fsync(f.fileno())
        f.seek(0)
        assert f.read() == b"late"
    wait_for(lambda: not lib.daemons_of(union.base), 15, "the end of the daemon")
    assert (union.base / "u/a").read_bytes() == b"late"


def test_a_busy_union_is_not_unmounted(union):
    mounted(union)
    with open(union.point / "a", "rb"):
        for argv in (["umount"], ["fusermount3", "-u"]):
            p = command([*argv, union.point], env(), check=False)
            assert p.returncode != 0 and "busy" in p.stderr
    union.check()
    union.umount()


def test_unmounted_in_one_namespace_and_open_in_another(union):
    """A container's namespace has a copy of the mount: the daemon serves until it is gone, too."""
    mounted(union)
    with subprocess.Popen(
        ["unshare", "-m", "sh", "-c", f"exec 3< {union.point}/a; echo go; read line; cat <&3"],
        env={"PATH": ENV_PATH},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout.readline() == b"go\n"
        command(["umount", "-l", union.point], env())
        assert len(lib.daemons_of(union.base)) == 1
        other.communicate(timeout=20)
    wait_for(lambda: not lib.daemons_of(union.base), 15, "the end of the daemon")


# --- an ordinary user's sandbox -------------------------------------------------------------------


def test_a_user_mounts_and_unmounts(scratch):
    """As the sandboxes of agents and werf do: no root, no namespace, only fusermount3."""
    user = SUBORDINATE
    scratch.chmod(0o777)
    made = command(
        ["sh", "-ec", "cd $1; mkdir l u w m; echo low > l/f; echo gone > l/g", "sh", scratch],
        env(),
        user,
    )
    assert made.stderr == ""
    layers = f"lowerdir={scratch}/l,upperdir={scratch}/u,workdir={scratch}/w"
    p = command(["fuse-overlayfs", "-o", layers, scratch / "m"], env(), user)
    assert (p.stdout, p.stderr) == ("", "")
    script = "cd $1/m; cat f; echo high > f; rm g; mkdir d; mv f d; ls -A; cat d/f"
    p = command(["sh", "-ec", script, "sh", scratch], env(), user)
    assert p.stdout.split() == ["low", "d", "high"]
    command(["fusermount3", "-u", scratch / "m"], env(), user)
    lib.assert_nothing_lives(scratch)
    assert (scratch / "u/d/f").read_text() == "high\n"
    assert (scratch / "l/f").read_text() == "low\n"


def test_a_daemon_outlives_the_session_that_mounted(union):
    """A shell, a terminal or an engine's helper ends: the mount must not end with it."""
    argv = ["setsid", "-w", "fuse-overlayfs", "-o", union.options(), union.point]
    command(argv, env())
    (pid,) = lib.daemons_of(union.base)
    assert os.getsid(pid) == pid
    for number in range(3):
        with contextlib.suppress(FileNotFoundError):
            assert os.readlink(f"/proc/{pid}/fd/{number}") == "/dev/null"
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    union.check()
    union.umount()
