# SPDX-License-Identifier: MIT
"""What people install: the Debian packages in a small Debian system, the static binary in an empty
directory. Needs the network once, for the system, which is kept under /var/cache/plyfs-tests."""

import contextlib
import os
import stat
import subprocess
from pathlib import Path

import debian
import plyfs_testlib as lib
import pytest
from plyfs_testlib import exists, is_whiteout, mkdir, read, write

ROOT = Path(__file__).resolve().parents[2]
INCLUDED = ["fuse3", "fuse-overlayfs", "mount"]

pytestmark = [
    pytest.mark.root("installs packages in a chroot"),
    pytest.mark.plyfs_only("about the packages"),
    pytest.mark.slow,
    pytest.mark.limit(400),
]


def run(*argv, **kw):
    done = subprocess.run(
        [*map(os.fspath, argv)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=300,
        check=False,
        **kw,
    )
    assert done.returncode == 0, f"{argv}: exit {done.returncode}\n{done.stdout[-3000:]}"
    return done.stdout


def make_device(root):
    mkdir(root / "dev")
    with contextlib.suppress(FileExistsError):
        os.mknod(root / "dev/fuse", stat.S_IFCHR | 0o666, os.stat("/dev/fuse").st_rdev)


@contextlib.contextmanager
def with_proc(root):
    lib.sys_mount("proc", mkdir(root / "proc"), "proc")
    try:
        yield
    finally:
        lib.sys_umount(root / "proc", lib.MNT_DETACH)


# --- the packages ---------------------------------------------------------------------------------


@pytest.fixture
def packages(scratch):
    out = scratch / "packages"
    run(ROOT / "contrib/make-deb", out)
    found = {path.name.split("_")[0]: path for path in out.glob("*.deb")}
    assert set(found) == {"plyfs", "plyfs-fuse-overlayfs"}
    return found


@pytest.fixture
def system(cache_dir, scratch):
    """A Debian that uses fuse-overlayfs."""
    log = scratch / "mmdebstrap.log"
    archive = debian.rootfs(cache_dir, log, [], ["--include=" + ",".join(INCLUDED)])
    root = mkdir(scratch / "system", mode=0o755)
    run("tar", "-C", root, "-xpf", archive, "--numeric-owner")
    make_device(root)
    with with_proc(root):
        yield root


class System:
    def __init__(self, root):
        self.root = root

    def run(self, *argv):
        env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive"}
        return run("/usr/sbin/chroot", self.root, *argv, env=env)

    def paths(self):
        """Everything that packages leave or take away, not what apt and dpkg note down."""
        notes = ("var/lib/dpkg", "var/lib/apt", "var/cache", "var/log", "run", "tmp")
        notes += ("proc", "dev", "srv")
        return {p for p in lib.walk_quietly(self.root) if not p.startswith(notes)}

    def is_installed(self, package):
        query = ["dpkg-query", "-W", "-f", "${Package} ${db:Status-Status}\n"]
        return f"{package} installed" in self.run(*query).splitlines()


OPTIONS = "lowerdir=/srv/l,upperdir=/srv/u,workdir=/srv/w"


def test_packages_take_the_place_of_fuse_overlayfs(system, packages):
    box = System(system)
    srv = system / "srv"
    for name in ("l", "u", "w", "m"):
        mkdir(srv / name)
    write(srv / "l/kept", "low")
    write(srv / "l/deleted", "low")

    # what there was
    box.run("fuse-overlayfs", "-o", OPTIONS, "/srv/m")
    write(srv / "m/kept", "changed")
    os.unlink(srv / "m/deleted")
    box.run("fusermount3", "-u", "/srv/m")
    old = box.paths()

    # the change
    for path in packages.values():
        run("cp", path, system / "tmp")
    names = [f"/tmp/{path.name}" for path in packages.values()]
    box.run("apt-get", "install", "-y", "--no-install-recommends", *names)
    assert box.is_installed("plyfs") and box.is_installed("plyfs-fuse-overlayfs")
    assert not box.is_installed("fuse-overlayfs")
    box.run("dpkg", "--audit")
    box.run("apt-get", "check")

    # what engines look at, and the same layers
    version = box.run("fuse-overlayfs", "--version").splitlines()
    assert version[0].startswith("fuse-overlayfs: version ")
    assert any(line.startswith("plyfs") for line in version)
    box.run("fuse-overlayfs", "-o", OPTIONS, "/srv/m")
    assert lib.find_mount(srv / "m")[1:3] == ("fuse.fuse-overlayfs", "fuse-overlayfs")
    assert read(srv / "m/kept") == b"changed"
    assert not exists(srv / "m/deleted")
    os.unlink(srv / "m/kept")
    box.run("fusermount3", "-u", "/srv/m")
    assert is_whiteout(srv / "u/kept")

    # plyfs itself, also through mount(8) and fsck(8)
    box.run("plyfs", "mount", "-o", OPTIONS, "/srv/m")
    assert "upperdir=/srv/u" in box.run("plyfs", "status", "/srv/m")
    box.run("umount", "/srv/m")
    box.run("mount", "-t", "fuse.plyfs", "plyfs", "/srv/m", "-o", OPTIONS)
    assert lib.find_mount(srv / "m")[1] == "fuse.plyfs"
    box.run("umount", "/srv/m")
    box.run("fsck.plyfs", "-n", "-o", OPTIONS)
    pages = ("plyfs.1", "fuse-overlayfs.1", "mount.plyfs.8", "fsck.plyfs.8", "plyfs-convert.8")
    for page in pages:
        assert read(system / f"usr/share/man/man{page[-1]}/{page}.gz"), page
    completions = system / "usr/share/bash-completion/completions"
    assert read(completions / "plyfs") == read(completions / "fuse-overlayfs")

    # and away again
    box.run("apt-get", "purge", "-y", "plyfs-fuse-overlayfs", "plyfs")
    new = box.paths()
    assert sorted(new - old) == []
    assert [path for path in sorted(old - new) if "fuse-overlayfs" not in path] == []


# --- the static binary ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["plyfs", "fuse-overlayfs"])
def test_static_binary_in_an_empty_directory(scratch, name):
    """Nothing but the program, /proc and the device: no library, no /dev/null, no /etc."""
    run("make", "--no-print-directory", "-C", ROOT, "static")
    root = mkdir(scratch / "root", mode=0o755)
    for directory in ("l", "u", "w", "m"):
        mkdir(root / directory)
    write(root / "l/f", "low")
    run("cp", ROOT / "build-static/plyfs", root / name)
    make_device(root)
    arguments = ["-o", "lowerdir=/l,upperdir=/u,workdir=/w", "/m"]
    if name == "plyfs":
        arguments.insert(0, "mount")
    before = set(lib.children())
    with with_proc(root):
        assert run("/usr/sbin/chroot", root, f"/{name}", *arguments) == ""
        lib.append(root / "m/f", b" and more")
        lib.sys_umount(root / "m")
    assert read(root / "u/f") == b"low and more"
    assert read(root / "l/f") == b"low"
    assert os.listdir(root / "dev") == ["fuse"]

    def ended():
        new = set(lib.children()) - before
        return not [pid for pid in new if os.waitpid(pid, os.WNOHANG)[0] != pid]

    lib.wait_for(ended, 20, "the end of the server")
