# SPDX-License-Identifier: MIT
"""What is installed where, and that fuse-overlayfs' place is taken only for who asks."""

import os
import shutil
import subprocess
from pathlib import Path

import plyfs_testlib as lib
import pytest

pytestmark = [
    pytest.mark.plyfs_only("a property of the build"),
    pytest.mark.root("the same whoever installs"),
]

ROOT = Path(__file__).resolve().parents[2]


def run(*args):
    done = subprocess.run(
        list(map(os.fspath, args)), capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, f"{args}: {done.stdout}{done.stderr}"
    return done.stdout


def install(scratch, *options):
    """{path: what it links to, or None}; nothing is compiled: the program is the tested one."""
    build, dest = scratch / "build", scratch / "dest"
    run("meson", "setup", build, ROOT, "-Dtests=disabled", "--prefix=/usr", *options)
    shutil.copy(lib.settings.plyfs, build / "plyfs")
    run("meson", "install", "-C", build, "--no-rebuild", "--destdir", dest)
    return {
        "/" + str(path.relative_to(dest)): os.readlink(path) if path.is_symlink() else None
        for path in dest.rglob("*")
        if path.is_symlink() or path.is_file()
    }


def of_fuse_overlayfs(installed):
    names = {p: t for p, t in installed.items() if "fuse-overlayfs" in Path(p).name}
    return {p: t for p, t in names.items() if not p.startswith("/usr/share/doc/")}


def test_without_being_asked_no_name_is_taken(scratch):
    installed = install(scratch)
    assert of_fuse_overlayfs(installed) == {"/usr/share/man/man1/plyfs-fuse-overlayfs.1": None}
    for path in (
        "/usr/bin/plyfs",
        "/usr/share/bash-completion/completions/plyfs",
        "/usr/share/zsh/site-functions/_plyfs",
        "/usr/share/man/man8/mount.plyfs.8",
    ):
        assert installed[path] is None
    assert installed["/sbin/mount.fuse.plyfs"] == "/usr/bin/plyfs"


def test_dropin_takes_the_names_that_engines_call(scratch):
    installed = of_fuse_overlayfs(install(scratch, "-Ddropin=true", "-Dhelperdir=/usr/sbin"))
    assert installed == {
        "/usr/bin/fuse-overlayfs": "plyfs",
        "/usr/sbin/mount.fuse-overlayfs": "/usr/bin/plyfs",
        "/usr/sbin/mount.fuse.fuse-overlayfs": "/usr/bin/plyfs",
        "/usr/sbin/mount.fuse3.fuse-overlayfs": "/usr/bin/plyfs",
        "/usr/share/bash-completion/completions/fuse-overlayfs": "plyfs",
        "/usr/share/man/man1/fuse-overlayfs.1": "plyfs-fuse-overlayfs.1",
        "/usr/share/man/man1/plyfs-fuse-overlayfs.1": None,
    }
    said = run(scratch / "dest/usr/bin/fuse-overlayfs", "--version")
    assert said.startswith("fuse-overlayfs: version ")
