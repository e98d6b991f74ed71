# SPDX-License-Identifier: MIT
"""A mount that cannot be says why in one line with the path in it, and leaves nothing behind."""

import errno
import os
import stat
import subprocess

import plyfs_testlib as lib
import pytest
from plyfs_testlib import exists, layer_options, make_whiteout, mkdir, names, read, run_plyfs, write

pytestmark = pytest.mark.plyfs_only("the messages of the command")


def refused(*args, mentions=(), run=run_plyfs):
    """Runs plyfs mount, which must fail as it should; returns the message."""
    before_table, before_children = lib.mount_table(), set(lib.children())
    done = run("mount", *args)
    assert done.returncode != 0, "it mounted"
    assert done.returncode < 64 and done.returncode > 0, done.returncode
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("plyfs: "), lines
    for word in mentions:
        assert os.fspath(word) in lines[0], (os.fspath(word), lines[0])
    assert lib.mount_table() == before_table
    left = [p for p in lib.children() if p not in before_children]
    lib.wait_for(
        lambda: not [p for p in left if os.path.exists(f"/proc/{p}") and not reap(p)],
        5,
        "the end of every process",
    )
    return lines[0]


def reap(pid):
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True


@pytest.fixture
def layers(union):
    write(union.lower() / "f", "low")
    return union


def options(union, extra="", **other):
    lowers = other.get("lowers", union.lowers)
    return layer_options(
        lowers, other.get("upper", union.upper), other.get("work", union.work), extra
    )


@pytest.mark.parametrize(
    "word", ["nonsense", "nonsense=1", "index=maybe", "xino=perhaps", "redirect_dir=sometimes"]
)
def test_unknown_option(layers, word):
    refused("-o", options(layers, word), layers.point, mentions=[word.split("=")[0]])


def test_no_lowerdir(layers):
    refused("-o", f"upperdir={layers.upper},workdir={layers.work}", layers.point,
            mentions=["lowerdir"])


def test_upper_without_work(layers):
    refused("-o", f"lowerdir={layers.lower()},upperdir={layers.upper}", layers.point,
            mentions=["workdir"])


@pytest.mark.parametrize("value", [":{0}", "{0}:", "{0}:::{0}", "{0}\\"])
def test_malformed_lowerdir(layers, value):
    refused("-o", "lowerdir=" + value.format(layers.lower()), layers.point, mentions=["lowerdir"])


def test_malformed_data_only_layers(layers):
    low, data = layers.lower(), mkdir(layers.base / "data")
    for given in (
        f"lowerdir={low}::{data}:{low}",
        f"lowerdir={low}::{data}::",
        f"lowerdir=::{data}",
        f"datadir+={data}",
        f"datadir+={data},lowerdir+={low}",
        f"lowerdir={low},lowerdir+={data}",
        f"lowerdir={low},datadir+={data}",
    ):
        assert os.strerror(errno.EINVAL) in refused("-o", given, layers.point), given


def test_missing_data_only_layer(layers):
    missing = layers.base / "missing"
    for given in (f"lowerdir={layers.lower()}::{missing}",
                  f"lowerdir+={layers.lower()},datadir+={missing}"):
        line = refused("-o", given, layers.point, mentions=[missing])
        assert os.strerror(errno.ENOENT) in line


def test_missing_lower(layers):
    missing = layers.base / "missing"
    refused("-o", options(layers, lowers=[layers.lower(), missing]), layers.point,
            mentions=[missing])


def test_missing_upper(layers):
    missing = layers.base / "missing"
    refused("-o", options(layers, upper=missing), layers.point, mentions=[missing])


def test_missing_work(layers):
    missing = layers.base / "missing"
    refused("-o", options(layers, work=missing), layers.point, mentions=[missing])


@pytest.mark.parametrize("which", ["lower", "upper", "work"])
def test_layer_that_is_no_directory(layers, which):
    path = write(layers.base / "file")
    if which == "lower":
        given = options(layers, lowers=[path])
    else:
        given = options(layers, **{which: path})
    refused("-o", given, layers.point, mentions=[path])


def test_layer_that_is_a_fifo_does_not_hang(layers):
    path = layers.base / "fifo"
    os.mkfifo(path)
    refused("-o", options(layers, lowers=[path]), layers.point, mentions=[path])


def test_missing_mountpoint(layers):
    missing = layers.base / "nowhere"
    refused("-o", options(layers), missing, mentions=[missing])


def test_mountpoint_that_is_no_directory(layers):
    path = write(layers.base / "file")
    refused("-o", options(layers), path, mentions=[path])


def test_work_inside_upper(layers):
    inside = mkdir(layers.upper / "work")
    refused("-o", options(layers, work=inside), layers.point, mentions=[inside])
    assert names(layers.upper) == ["work"]
    assert names(inside) == []


def test_upper_inside_work(layers):
    inside = mkdir(layers.work / "upper")
    refused("-o", options(layers, upper=inside), layers.point, mentions=[inside])


def test_upper_and_work_the_same(layers):
    refused("-o", options(layers, work=layers.upper), layers.point, mentions=[layers.upper])


def test_upper_as_a_lower(layers):
    refused("-o", options(layers, lowers=[layers.lower(), layers.upper]), layers.point,
            mentions=[layers.upper])


def test_work_as_a_lower(layers):
    refused("-o", options(layers, lowers=[layers.work]), layers.point, mentions=[layers.work])


def test_lower_inside_upper(layers):
    inside = mkdir(layers.upper / "low")
    refused("-o", options(layers, lowers=[inside]), layers.point, mentions=[inside])


@pytest.mark.privileged("mounts a file system")
def test_upper_and_work_on_different_filesystems(layers):
    with lib.tmpfs(layers.base) as fs:
        other = mkdir(fs / "work")
        line = refused(
            "-o", options(layers, work=other), layers.point, mentions=[other, layers.upper]
        )
        assert os.strerror(errno.EINVAL) in line
        assert names(other) == []


def test_layer_inside_its_own_mountpoint(layers):
    """Serving it would wait for itself."""
    for which in ("lower", "upper"):
        inside = mkdir(layers.point / which)
        given = {"lowers": [inside]} if which == "lower" else {"upper": inside}
        refused("-o", options(layers, **given), layers.point, mentions=[inside])


def test_upper_in_use_by_another_mount(layers):
    m = layers.mount()
    other_work, other_point = mkdir(layers.base / "work2"), mkdir(layers.base / "merged2")
    refused("-o", options(layers, work=other_work), other_point, mentions=[layers.upper])
    write(m / "f", "still works")
    assert read(m / "f") == b"still works"


def test_work_in_use_by_another_mount(layers):
    m = layers.mount()
    write(m / "f", "before")
    other_upper, other_point = mkdir(layers.base / "upper2"), mkdir(layers.base / "merged2")
    refused("-o", options(layers, upper=other_upper), other_point, mentions=[layers.work])
    os.unlink(m / "f")
    write(m / "f", "still works")
    assert read(m / "f") == b"still works"


def test_layers_are_free_again_after_a_refusal_and_after_umount(layers):
    layers.mount()
    other = mkdir(layers.base / "merged2")
    refused("-o", options(layers), other)
    layers.umount()
    layers.mount()
    assert read(layers.point / "f") == b"low"


def test_leftover_of_a_volatile_mount(layers):
    mark = mkdir(layers.work / "work/incompat/volatile")
    write(mark / "dirty")
    line = refused("-o", options(layers), layers.point)
    assert "volatile" in line and str(layers.work) in line
    assert exists(mark / "dirty")


def test_leftover_of_an_unknown_incompatible_feature(layers):
    mark = mkdir(layers.work / "work/incompat/something")
    line = refused("-o", options(layers), layers.point)
    assert "something" in line
    assert exists(mark)


def test_work_that_holds_the_files_of_somebody_else(layers):
    """They are not plyfs': they are never removed, whether it mounts or refuses."""
    write(layers.work / "precious", "data")
    write(layers.work / "dir/precious", "data")
    done = run_plyfs("mount", "-o", options(layers), layers.point)
    if done.returncode == 0:
        subprocess.run(["fusermount3", "-u", layers.point], check=True)
    else:
        assert str(layers.work) in done.stderr
    assert read(layers.work / "precious") == b"data"
    assert read(layers.work / "dir/precious") == b"data"


def test_work_whose_place_is_taken_by_a_symlink(layers):
    """work/work as a symlink is never followed: what it points to stays."""
    victim = write(layers.base / "victim/file", "data").parent
    os.symlink(victim, layers.work / "work")
    done = run_plyfs("mount", "-o", options(layers), layers.point)
    if done.returncode == 0:
        write(layers.point / "f", "changed")
        subprocess.run(["fusermount3", "-u", layers.point], check=True)
    assert read(victim / "file") == b"data"
    assert names(victim) == ["file"]


def test_leftovers_of_a_crash_are_swept(layers):
    """What an overlay leaves: files, and directories with whiteouts in them."""
    write(layers.work / "work/#1", "x")
    make_whiteout(layers.work / "work/#2/w")
    mkdir(layers.work / "work/#3")
    layers.mount()
    write(layers.point / "f", "x")


def test_deeper_leftovers_are_swept_or_refused(layers):
    """No overlay leaves such: they may be somebody's."""
    write(layers.work / "work/#1/a/b/c/f", "x")
    done = run_plyfs("mount", "-o", options(layers), layers.point)
    if done.returncode == 0:
        subprocess.run(["fusermount3", "-u", layers.point], check=True)
        assert names(layers.work / "work") == []
    else:
        assert str(layers.work) in done.stderr


@pytest.mark.root("an upper on a read-only file system")
def test_upper_on_a_read_only_filesystem(layers):
    with lib.tmpfs(layers.base) as fs:
        upper, work = mkdir(fs / "u"), mkdir(fs / "w")
        lib.sys_mount("none", fs, "none", lib.MS_REMOUNT | lib.MS_RDONLY, "mode=0755")
        line = refused("-o", options(layers, upper=upper, work=work), layers.point)
        assert os.strerror(errno.EINVAL) in line
        lib.sys_mount("none", fs, "none", lib.MS_REMOUNT, "mode=0755")


@pytest.mark.root("hides /dev")
def test_no_dev_fuse(layers):
    def run(*args):
        def inside():
            lib.unshare(lib.CLONE_NEWNS)
            lib.sys_mount("none", "/", "", lib.MS_REC | lib.MS_PRIVATE)
            lib.sys_mount("tmpfs", "/dev", "tmpfs")
            os.mknod("/dev/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
            return run_plyfs(*args)

        return lib.in_child(inside)

    line = refused("-o", options(layers), layers.point, mentions=["/dev/fuse"], run=run)
    assert "modprobe" in line


@pytest.mark.root("puts something else in the place of /dev/fuse")
@pytest.mark.parametrize("what", ["device", "file"])
def test_dev_fuse_that_is_something_else(layers, what):
    """Only the kernel's mere EINVAL would tell."""
    other = write(layers.base / "other") if what == "file" else "/dev/null"

    def run(*args):
        def inside():
            lib.unshare(lib.CLONE_NEWNS)
            lib.sys_mount("none", "/", "", lib.MS_REC | lib.MS_PRIVATE)
            lib.sys_mount(other, "/dev/fuse", "", lib.MS_BIND)
            return run_plyfs(*args)

        return lib.in_child(inside)

    line = refused("-o", options(layers), layers.point, mentions=["/dev/fuse"], run=run)
    assert "mknod" in line


@pytest.mark.root("drops privileges")
def test_no_right_to_open_dev_fuse(layers):
    for path in (layers.upper, layers.work, layers.point):
        os.chown(path, lib.NOBODY, lib.NOBODY)

    def run(*args):
        return lib.in_child(run_plyfs, *args, uid=lib.NOBODY)

    refused("-o", options(layers), layers.point, mentions=["/dev/fuse"], run=run)


@pytest.mark.root("drops privileges")
def test_layer_that_may_not_be_read(layers):
    os.chmod(layers.lower(), 0o700)
    for path in (layers.upper, layers.work, layers.point):
        os.chown(path, lib.NOBODY, lib.NOBODY)

    def run(*args):
        return lib.in_child(run_plyfs, *args, uid=lib.NOBODY)

    refused("-o", options(layers), layers.point, run=run)


@pytest.mark.unprivileged("only an ordinary user needs fusermount3")
def test_ordinary_user_without_fusermount(layers):

    def run(*args):
        return run_plyfs(*args, env={"PATH": "/nonexistent"})

    line = refused("-o", options(layers), layers.point, run=run)
    assert "fusermount3" in line


@pytest.mark.unprivileged("root may always")
def test_allow_other_that_fuse_conf_forbids(layers):
    conf = "/etc/fuse.conf"
    if os.path.exists(conf) and b"user_allow_other" in read(conf).split(b"\n"):
        pytest.skip("/etc/fuse.conf allows it here")
    line = refused("-o", options(layers, "allow_other"), layers.point)
    assert "fuse.conf" in line


@pytest.mark.unprivileged("root may mount anywhere")
def test_foreign_mountpoint_of_an_ordinary_user(layers):
    refused("-o", options(layers), "/", mentions=["/"])


def test_path_that_is_too_long(layers):
    path = "/" + "x" * 5000
    refused("-o", f"lowerdir={path}", layers.point)
    refused("-o", "lowerdir=" + "/" + "x" * 300, layers.point)


def test_nothing_is_made_when_refused(layers):
    refused("-o", options(layers, "nonsense"), layers.point)
    assert names(layers.work) == []
    assert names(layers.upper) == []
