# SPDX-License-Identifier: MIT
"""plyfs status: what is in effect, told to who may know it."""

import errno
import os
import re
import subprocess

import plyfs_testlib as lib
import pytest
from plyfs_testlib import mkdir, run_plyfs, write

pytestmark = pytest.mark.plyfs_only("a command of plyfs")

XATTR = "system.plyfs.status"


def status_text(point, *args, **kw):
    done = run_plyfs("status", *args, point, **kw)
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout


def lines(point):
    """[(key, value)], unescaped."""
    out = []
    for line in status_text(point).splitlines():
        key, _, value = line.partition("=") if not line.startswith(("lowerdir+", "datadir+")) else (
            line.partition("+=")
        )
        out.append((key, unescape(value)))
    return out


def unescape(text):
    return re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), text)


def features(point):
    return {k: v for k, v in lines(point) if k not in ("lowerdir", "datadir", "upperdir", "workdir")}


def mount_words(union, *lists, **kw):
    """Returns what was said on the way."""
    before = set(lib.children())
    done = run_plyfs("mount", *(x for words in lists for x in ("-o", words)), union.point, **kw)
    assert done.returncode == 0, done.stderr
    mounted = lib.Mount(union.point, "plyfs")
    mounted.daemon = lib.adopt_daemon(before)
    union.mounts.append(mounted)
    return done.stderr


DEFAULTS = {
    "redirect_dir": "follow",
    "index": "off",
    "nfs_export": "off",
    "xino": "off",
    "metacopy": "off",
    "fsync": "auto",
    "userxattr": "off",
    "verity": "off",
    "access": "rw",
}


@pytest.mark.root("the defaults of root")
def test_every_option_and_layer_is_told(union):
    union.lower(1)
    union.mount()
    got = lines(union.point)
    assert [v for k, v in got if k == "lowerdir"] == [str(p) for p in union.lowers]
    assert [v for k, v in got if k == "datadir"] == []
    assert ("upperdir", str(union.upper)) in got and ("workdir", str(union.work)) in got
    assert {**features(union.point), **DEFAULTS, "uuid": "on"} == features(union.point)
    union.umount()
    union.mount(upper=False)
    assert features(union.point)["access"] == "ro"
    assert not [k for k, _ in lines(union.point) if k in ("upperdir", "workdir")]


def test_layers_one_by_one_are_told_in_their_order(union):
    data = [mkdir(union.base / f"data{n}") for n in range(2)]
    low = [union.lower(0), union.lower(1)]
    mount_words(
        union,
        ",".join([f"lowerdir+={p}" for p in low] + [f"datadir+={p}" for p in data]),
    )
    got = [(k, v) for k, v in lines(union.point) if k in ("lowerdir", "datadir")]
    assert got == [("lowerdir", str(p)) for p in low] + [("datadir", str(p)) for p in data]


def test_one_line_gives_the_same_mount_again(union):
    """Whatever the paths hold."""
    strange = ["a:b", "a,b", "a\\b", "a b", "a\nb\tc", "a\\:b", "\udcff\udcfe", ":", "ü", "a\x01b", "="]
    lowers = [mkdir(union.base / "odd" / name) for name in strange]
    upper, work = mkdir(union.base / "up:,\\ \n"), mkdir(union.base / "wo:,\\ \n")
    mount_words(union, lib.layer_options(lowers, upper, work, "redirect_dir=nofollow,nodev"))
    first = lines(union.point)
    assert [v for k, v in first if k == "lowerdir"] == [os.fspath(p) for p in lowers]
    line = status_text(union.point, "-o")
    assert line.count("\n") == 1 and "redirect_dir=nofollow" in line and line.startswith("rw,")
    union.umount()
    mount_words(union, unescape(line.rstrip("\n")))
    assert lines(union.point) == first
    union.umount()
    lib.remove_tree(upper)


def test_paths_are_absolute(union):
    union.lower(0)
    mount_words(union, "lowerdir=lower0,upperdir=upper,workdir=./work", cwd=union.base)
    got = dict(lines(union.point))
    assert got["lowerdir"] == f"{union.base}/lower0" and got["upperdir"] == f"{union.base}/upper"
    assert got["workdir"] == f"{union.base}/./work"


def test_more_than_an_xattr_holds(union):
    deep = mkdir(union.base / "/".join(["n" * 250] * 3))
    lowers = [mkdir(deep / str(n)) for n in range(200)]
    lists = [",".join(f"lowerdir+={p}" for p in lowers[n : n + 50]) for n in range(0, 200, 50)]
    mount_words(union, *lists)
    assert [v for k, v in lines(union.point) if k == "lowerdir"] == [str(p) for p in lowers]
    with lib.raises(errno.E2BIG):
        os.getxattr(union.point, XATTR)
    blocks = [os.getxattr(union.point, f"{XATTR}.{n}") for n in range(20)]
    assert b"".join(blocks).count(b"\nlowerdir+=") == 199
    assert blocks[-1] == b"" and os.getxattr(union.point, f"{XATTR}.99999999999") == b""


def test_it_is_an_xattr_that_no_list_shows(union):
    write(union.lower() / "d/f")
    os.setxattr(union.lower() / "d", "user.plyfs.status", b"of a file")
    point = union.mount()
    text = os.getxattr(point, XATTR).decode()
    assert text.startswith(f"lowerdir+={union.lower()}\n")
    assert not [n for n in os.listxattr(point) if "plyfs" in n]
    assert lib.xattrs(point / "d")["user.plyfs.status"] == b"of a file"
    for name in (XATTR + ".x", XATTR + ".", XATTR + "es", XATTR + ".-1", "system.plyfs.", XATTR + ".1x"):
        with lib.raises(errno.ENODATA):
            os.getxattr(point, name)
    for other in (point / "d", point / "d/f"):
        with lib.raises(errno.ENODATA, errno.ENOTSUP):
            os.getxattr(other, XATTR)
    for change in (
        lambda: os.setxattr(point, XATTR, b"x"),
        lambda: os.removexattr(point, XATTR),
    ):
        with lib.raises(errno.ENOTSUP, errno.ENODATA, errno.EPERM):
            change()


@pytest.mark.privileged("takes another identity")
def test_other_users_are_not_answered(union):
    """Nor does it depend on what they may read."""
    union.lower(0)
    os.chmod(union.base, 0o755)
    point = union.mount()
    os.chmod(union.upper, 0o777)

    def ask():
        with lib.raises(errno.EPERM):
            os.getxattr(point, XATTR)
        with lib.raises(errno.EPERM):
            os.getxattr(point, "system.plyfs.sync")
        assert os.listdir(point) == []
        done = run_plyfs("status", point)
        assert done.returncode == 32 and "only root" in done.stderr
        assert str(union.upper) not in done.stderr

    lib.in_child(ask, uid=lib.NOBODY)


@pytest.mark.privileged("makes a pid namespace")
def test_containers_are_not_answered(union):
    """Their root may be the user who mounted, or root itself."""
    union.lower(0)
    point = union.mount()
    done = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount-proc", lib.settings.plyfs, "status", point],
        capture_output=True, text=True, timeout=30, check=False,
    )
    assert (done.returncode, done.stdout) == (32, ""), done
    assert "pid namespace" in done.stderr and str(union.upper) not in done.stderr
    assert status_text(point)


def test_what_is_no_mount_of_ours(union, scratch):
    write(union.lower() / "d/f")
    point = union.mount()
    for path in (scratch, point / "d", "/proc", point / "d/f"):
        done = run_plyfs("status", path)
        assert done.returncode == 32 and "not the root of a plyfs mount" in done.stderr, done
    done = run_plyfs("status", scratch / "missing")
    assert done.returncode == 32 and os.strerror(errno.ENOENT) in done.stderr
    for args in ((), (point, point), ("-x", point)):
        assert run_plyfs("status", *args).returncode == 1


def test_mistyped_verb_is_suggested():
    done = run_plyfs("statsu")
    assert done.returncode == 1 and "plyfs status" in done.stderr


@pytest.mark.unprivileged("root has the rights")
def test_without_rights_nothing_is_followed_unless_asked_for(union):
    """The kernel would refuse; the mount has no more rights than its user."""
    union.lower(1)
    for words, redirect, metacopy in (
        ("", "nofollow", "off"),
        ("redirect_dir=off", "nofollow", "off"),
        ("redirect_dir=follow", "follow", "off"),
        ("redirect_dir=on", "on", "off"),
        ("metacopy=on", "on", "on"),
        ("verity=on", "nofollow", "off"),
        ("userxattr", "nofollow", "off"),
    ):
        union.mount(words)
        got = features(union.point)
        assert (got["redirect_dir"], got["metacopy"]) == (redirect, metacopy), words
        assert got["userxattr"] == "on"
        union.umount()
    for words in ("userxattr,redirect_dir=on", "userxattr,metacopy=on"):
        done = run_plyfs(
            "mount", "-o", lib.layer_options(union.lowers, union.upper, union.work, words),
            union.point,
        )
        assert done.returncode == 32 and os.strerror(errno.EINVAL) in done.stderr, words


@pytest.mark.unprivileged("root has the rights")
def test_redirects_of_an_ordinary_user_are_made_and_followed(union):
    write(union.lower() / "d/f", "low")
    m = union.mount("redirect_dir=on,metacopy=on")
    os.rename(m / "d", m / "e")
    os.chmod(m / "e/f", 0o600)
    assert lib.xattr(union.upper / "e", "user.overlay.redirect") == b"d"
    assert lib.xattr(union.upper / "e/f", "user.overlay.metacopy") is not None
    union.remount()
    assert lib.read(m / "e/f") == b"low"
    # who does not ask for it does not follow them
    union.umount()
    union.mount()
    with lib.raises(errno.EPERM):
        lib.names(m / "e")


@pytest.mark.root("mounts ramfs, which has no xattrs")
@pytest.mark.parametrize(
    "words",
    ["", "redirect_dir=on,metacopy=on", "index=on", "nfs_export=on", "xino=on", "xino=auto",
     "uuid=on", "uuid=off", "volatile", "userxattr", "redirect_dir=nofollow"],
)
def test_upper_without_xattrs_does_without_what_needs_them(union, scratch, words):
    """As the kernel does, and it says so."""
    ram = mkdir(scratch / "ram")
    lib.sys_mount("ramfs", ram, "ramfs")
    try:
        union.lower(0)
        upper, work = mkdir(ram / "u"), mkdir(ram / "w")
        given = lib.layer_options(union.lowers, upper, work, words)
        lib.sys_mount("overlay", union.point, "overlay", 0, given)
        shown = lib.find_mount(union.point)[4]
        lib.sys_umount(union.point)
        lib.remove_tree(upper)
        lib.remove_tree(work)
        mkdir(upper), mkdir(work)
        said = mount_words(union, given)
        assert "warning: " in said and str(upper) in said and len(said.splitlines()) == 1
        mine = status_text(union.point, "-o").strip()
        union.umount()

        def effective(line):
            known = [w for w in line.split(",") if w.partition("=")[0] in (*DEFAULTS, "uuid", "volatile")]
            return sorted(w.replace("fsync=volatile", "volatile") for w in known)

        assert effective(mine) == effective(shown)
        lost = set(effective(shown)) - set(words.split(","))
        # these come from other rules than the lack of xattrs
        lost -= {"userxattr": {"redirect_dir=nofollow"}, "uuid=off": {"uuid=null"}}.get(words, set())
        for word in lost:
            assert word in said
    finally:
        lib.sys_umount(ram, lib.MNT_DETACH)
