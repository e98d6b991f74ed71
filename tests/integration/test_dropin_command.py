# SPDX-License-Identifier: MIT
"""The command line of fuse-overlayfs, which engines of containers call: plyfs under that name."""

import errno
import os
import subprocess

import plyfs_testlib as lib
import pytest
from plyfs_testlib import find_mount, mkdir, names, raises, read, write

pytestmark = pytest.mark.plyfs_only("the command of fuse-overlayfs")

ROOT = lib.settings.level != "user"


class Dropin:
    """plyfs as fuse-overlayfs, with layers to try it on."""

    def __init__(self, base):
        self.base = base
        self.program = mkdir(base / "bin") / "fuse-overlayfs"
        self.program.symlink_to(lib.settings.plyfs)
        self.lower = mkdir(base / "lower")
        self.upper = mkdir(base / "upper")
        self.work = mkdir(base / "work")
        self.point = mkdir(base / "point")
        write(self.lower / "f", "low")
        self.layers = f"lowerdir={self.lower},upperdir={self.upper},workdir={self.work}"
        self.mounts = []

    def call(self, *args, program=None, **kw):
        """As engines do: no input, and a pipe that is read to its end."""
        env = {**os.environ, **lib.settings.sanitizer_env, **kw.pop("env", {})}
        return subprocess.run(
            [program or self.program, *map(os.fspath, args)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="surrogateescape",
            env=env,
            timeout=30,
            check=False,
            **kw,
        )

    def mount(self, *args, says="", **kw):
        """Mounts, says @says on stderr and nothing on stdout; returns the entry of the table."""
        before = set(lib.children())
        done = self.call(*args, **kw)
        assert done.returncode == 0, f"{args}: exit {done.returncode}: {done.stderr}"
        assert (done.stdout, done.stderr) == ("", says)
        mounted = lib.Mount(self.point, "plyfs")
        mounted.daemon = self.adopt(before)
        self.mounts.append(mounted)
        return find_mount(self.point)

    @staticmethod
    def adopt(before):
        def find():
            new = [p for p in lib.children() if p not in before]
            return [p for p in new if lib.process_name(p).startswith(("fuse-overlayfs", "mount."))]

        pids = lib.wait_for(find, 5, "a daemon")
        assert len(pids) == 1, f"more than one daemon: {pids}"
        return lib.Daemon(pids[0])

    def umount(self):
        self.mounts.pop().umount()

    def refuses(self, *args, says, **kw):
        """Exit 1, one line that holds @says, and nothing is mounted."""
        done = self.call(*args, **kw)
        assert done.returncode == 1, f"{args}: exit {done.returncode}: {done.stderr}"
        assert says in done.stderr and done.stderr.count("\n") == 1, done.stderr
        assert not find_mount(self.point)


@pytest.fixture
def dropin(scratch):
    it = Dropin(scratch)
    yield it
    for mounted in reversed(it.mounts):
        mounted.umount()


# --- the words around the options -----------------------------------------------------------------


@pytest.mark.parametrize("flag", ["--version", "-V"])
def test_version_begins_with_the_line_that_engines_read(dropin, flag):
    done = dropin.call(flag)
    lines = done.stdout.splitlines()
    assert (done.returncode, done.stderr) == (0, "")
    assert lines[0].startswith("fuse-overlayfs: version ")
    assert tuple(map(int, lines[0].split()[-1].split("."))) >= (1, 0)
    assert any(line.startswith("plyfs: version ") for line in lines)
    assert any(line.startswith("FUSE library version ") for line in lines)
    assert any(line.startswith("using FUSE kernel interface version 7.") for line in lines)


def test_engines_form(dropin):
    entry = dropin.mount("-o", dropin.layers, dropin.point)
    assert entry[1:3] == ("fuse.fuse-overlayfs", "fuse-overlayfs")
    write(dropin.point / "g", "new")
    assert read(dropin.upper / "g") == b"new"
    assert names(dropin.point) == ["f", "g"]


def test_flags_of_the_mount(dropin):
    words = dropin.mount("-o", dropin.layers, dropin.point)[4].split(",")
    assert {"rw", "nodev", "noatime", "default_permissions"} <= set(words)
    assert ("allow_other" in words) == ROOT
    assert ("nosuid" in words) == (not ROOT)


@pytest.mark.parametrize(
    "form",
    [
        "SRC PNT -o OPT",
        "PNT -o OPT",
        "-o OPT PNT",
        "-oOPT PNT",
        "-o OPT SRC PNT",
        "overlay -oOPT -o rw PNT",
        "-o rw,dev -o OPT -o suid -- PNT",
    ],
)
def test_any_order(dropin, form):
    words = {"OPT": dropin.layers, "-oOPT": "-o" + dropin.layers, "PNT": dropin.point}
    entry = dropin.mount(*(words.get(w, w) for w in form.split()))
    assert entry[2] == "fuse-overlayfs"
    assert read(dropin.point / "f") == b"low"


def test_without_upper_it_is_read_only(dropin):
    dropin.mount("-o", f"lowerdir={dropin.lower},workdir={dropin.work}", dropin.point)
    with raises(errno.EROFS):
        write(dropin.point / "g", "new")


# --- words that are not fuse-overlayfs' -----------------------------------------------------------


def test_unknown_words_are_ignored_with_a_line_each(dropin):
    says = "".join(
        f"unknown argument ignored: {w}\n" for w in ("--bogus", "-x", "bogus", "bogus=1\\,2")
    )
    dropin.mount(
        "--bogus", "-x", "-o", f"bogus,{dropin.layers},bogus=1\\,2,,", dropin.point, says=says
    )


@pytest.mark.parametrize(
    "words",
    ["rw", "private", "lazytime", "volatile", "dev,suid", ",,rw,,", "_netdev,nofail,x-a=b"],
)
def test_words_of_mount_are_silent(dropin, words):
    dropin.mount("-o", f"{words},{dropin.layers}", dropin.point)


@pytest.mark.parametrize("name", ["context", "fscontext", "defcontext", "rootcontext"])
def test_quoted_context_with_commas(dropin, name):
    dropin.mount("-o", f'{name}="system_u:o:t:s0:c1,c2",{dropin.layers}', dropin.point)
    assert read(dropin.point / "f") == b"low"


# --- mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        "uidmapping=1:2",
        "gidmapping=a:b:c",
        "uidmapping=",
        "uidmapping=0:0:10:5:100:10",
        "squash_to_uid=-1",
        "squash_to_gid=4294967295",
        "xattr_permissions=3",
        "timeout=soon",
        "fsync=2",
        "noxattrs=maybe",
    ],
)
def test_malformed_values(dropin, words):
    dropin.refuses("-o", f"{dropin.layers},{words}", dropin.point, says=words.split("=")[0] + "=")


def test_missing_things(dropin):
    layers, point = dropin.layers, dropin.point
    dropin.refuses("-o", layers, says="mountpoint")
    dropin.refuses(point, says="lowerdir")
    dropin.refuses("-o", f"lowerdir={dropin.lower},upperdir={dropin.upper}", point, says="workdir")
    dropin.refuses("-o", f"lowerdir={dropin.base}/none", point, says="does not exist")
    dropin.refuses("-o", layers, dropin.base / "none", says="does not exist")
    dropin.refuses(point, "-o", says="-o needs an argument")
