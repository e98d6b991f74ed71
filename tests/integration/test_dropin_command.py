# SPDX-License-Identifier: MIT
"""The command line of fuse-overlayfs, which engines of containers call: plyfs under that name."""

import errno
import os
import signal
import subprocess
from pathlib import Path

import plyfs_testlib as lib
import pytest
from dropin import adopt, program
from dropin import run as dropin_run
from plyfs_testlib import find_mount, mkdir, names, raises, read, write

pytestmark = pytest.mark.plyfs_only("the command of fuse-overlayfs")

NO_PASSTHROUGH = {"FUSE_OVERLAYFS_NO_PASSTHROUGH": "1"}
ROOT = lib.settings.level != "user"


class Dropin:
    """plyfs as fuse-overlayfs, with layers to try it on."""

    def __init__(self, base):
        self.base = base
        self.program = Path(program(mkdir(base / "bin")))
        self.lower = mkdir(base / "lower")
        self.upper = mkdir(base / "upper")
        self.work = mkdir(base / "work")
        self.point = mkdir(base / "point")
        write(self.lower / "f", "low")
        self.layers = f"lowerdir={self.lower},upperdir={self.upper},workdir={self.work}"
        self.mounts = []

    def call(self, *args, program=None, **kw):
        return dropin_run(program or self.program, *args, **kw)

    def mount(self, *args, says="", **kw):
        """Mounts, says @says on stderr and nothing on stdout; returns the entry of the table."""
        before = set(lib.children())
        done = self.call(*args, **kw)
        assert done.returncode == 0, f"{args}: exit {done.returncode}: {done.stderr}"
        assert (done.stdout, done.stderr) == ("", says)
        self.mounts.append(adopt(self.point, before))
        return find_mount(self.point)

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
    name = words.split("=")[0] + "="
    dropin.refuses("-o", f"{dropin.layers},{words}", dropin.point, says=name)
    dropin.refuses(
        *("mount", "-o", f"{dropin.layers},{words}", dropin.point),
        program=lib.settings.plyfs,
        says=name,
    )


def test_missing_things(dropin):
    layers, point = dropin.layers, dropin.point
    dropin.refuses("-o", layers, says="mountpoint")
    dropin.refuses(point, says="lowerdir")
    dropin.refuses("-o", f"lowerdir={dropin.lower},upperdir={dropin.upper}", point, says="workdir")
    dropin.refuses("-o", f"lowerdir={dropin.base}/none", point, says="does not exist")
    dropin.refuses("-o", layers, dropin.base / "none", says="does not exist")
    dropin.refuses(point, "-o", says="-o needs an argument")


def test_without_the_fuse_device_the_message_says_what_to_do(dropin):
    def without():
        lib.unshare(lib.CLONE_NEWNS)
        lib.sys_mount("none", "/", "", lib.MS_REC | lib.MS_PRIVATE)
        lib.sys_mount("/dev/null", "/dev/fuse", "", lib.MS_BIND)
        dropin.refuses("-o", dropin.layers, dropin.point, says="mknod /dev/fuse c 10 229")

    if ROOT:
        lib.in_child(without)


# --- paths ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("a:b", "a\\:b"),  # buildah
        ("a:b", "a\\\\:b"),  # who knows that fuse-overlayfs 1 reads '\' twice
        ("a:b", "a\\072b"),
        ("a,b", "a\\,b"),
        ("a,b", "a\\054b"),
        ("run-x\\x2dy", "run-x\\x2dy"),  # systemd's names, as engines give them
        ("run-x\\x2dy", "run-x\\\\x2dy"),
        ("a b\"c'", "a b\"c'"),
        ("é\nx", "é\nx"),
    ],
)
def test_special_characters_in_paths(dropin, name, written):
    for kind in ("low", "up", "work"):
        mkdir(dropin.base / f"{kind}{name}")
    write(dropin.base / f"low{name}" / "special", "low")
    dropin.mount(
        "-o",
        f"lowerdir={dropin.base}/low{written}:{dropin.lower},"
        f"upperdir={dropin.base}/up{written},workdir={dropin.base}/work{written}",
        dropin.point,
    )
    assert names(dropin.point) == ["f", "special"]
    write(dropin.point / "g", "new")
    assert names(dropin.base / f"up{name}") == ["g"]


def test_empty_parts_and_no_data_only_layers(dropin):
    other = mkdir(dropin.base / "other")
    write(other / "g", "other")
    dropin.mount("-o", f"lowerdir=:{other}::{dropin.lower}:", dropin.point)
    assert names(dropin.point) == ["f", "g"]


@pytest.mark.parametrize("word", ["lowerdir", "upperdir", "workdir"])
def test_a_path_cut_at_its_comma_is_no_other_layer(dropin, word):
    """What stands before the comma may be a directory, too."""
    before, whole = mkdir(dropin.base / "x"), mkdir(dropin.base / "x,y/z")
    write(before / "wrong")
    paths = {"lowerdir": dropin.lower, "upperdir": dropin.upper, "workdir": dropin.work}
    paths[word] = whole
    options = ",".join(f"{name}={path}" for name, path in paths.items())
    dropin.refuses("-o", options, dropin.point, says="'y/z' is no option")
    dropin.mount("-o", options.replace("x,y", "x\\,y"), dropin.point)
    assert names(dropin.point) == ([] if word == "lowerdir" else ["f"])


def test_relative_paths_are_the_callers(dropin):
    before = set(lib.children())
    done = dropin.call("-o", "lowerdir=lower,upperdir=upper,workdir=work", "point", cwd=dropin.base)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    dropin.mounts.append(adopt(dropin.point, before))
    assert read(dropin.point / "f") == b"low"


def test_plugins_are_an_error_and_no_wrong_tree(dropin):
    dropin.refuses("-o", f"lowerdir=//zip/x{dropin.lower}", dropin.point, says="the plugin 'zip'")


@pytest.mark.slow
def test_500_layers(dropin):
    layers = [mkdir(dropin.base / "layers" / f"a-rather-long-name-{n}") for n in range(500)]
    write(layers[499] / "last", "last")
    text = ":".join(map(str, layers))
    assert len(text) > 10240
    dropin.mount("-o", f"{dropin.layers},lowerdir={text}", dropin.point)
    assert read(dropin.point / "last") == b"last"
    dropin.umount()
    dropin.refuses("-o", f"lowerdir={text}:{dropin.lower}", dropin.point, says="501 layers")


# --- options --------------------------------------------------------------------------------------


def test_later_words_win(dropin):
    other = mkdir(dropin.base / "other")
    words = dropin.mount(
        "-o",
        f"ro,lowerdir={other},nodev,{dropin.layers},rw,dev,timeout=1",
        "-o",
        "timeout=0",
        dropin.point,
    )[4].split(",")
    assert "rw" in words and ("nodev" not in words or lib.settings.level != "root")
    assert names(dropin.point) == ["f"]


def test_all_of_the_incumbents_options_in_silence(dropin):
    dropin.mount(
        "-o",
        f"{dropin.layers},uidmapping=:0:0:65536,gidmapping=0:0:1:1:1:9,timeout=3.5,threaded=1,"
        "fsync=1,volatile,writeback=1,noxattrs=0,fast_ino=1,fast_ino_check=1,xattr_permissions=0,"
        "static_nlink,noacl,plugins=,xino=auto,ino32_t,default_permissions,suid,dev,exec,noatime,"
        "nodiratime,splice_write,splice_read,splice_move,kernel_cache,max_write=65536,clone_fd,"
        "max_idle_threads=2,max_threads=3,auto_unmount,redirect_dir=off",
        dropin.point,
    )
    assert read(dropin.point / "f") == b"low"


def test_volatile_lets_the_upper_be_mounted_again(dropin):
    """podman: a container that is kept, and the same without volatile; then the kernel's driver."""
    for i, words in enumerate(("volatile", ",volatile", "fsync=0", "")):
        dropin.mount("-o", f"{dropin.layers},{words}", dropin.point)
        fd = os.open(dropin.point / f"new{i}", os.O_WRONLY | os.O_CREAT)
        os.fsync(fd)
        os.close(fd)
        dropin.umount()
        assert not (dropin.work / "work" / "incompat").exists()
    assert names(dropin.upper) == ["new0", "new1", "new2", "new3"]
    if lib.settings.level == "root":
        options = lib.layer_options([dropin.lower], dropin.upper, dropin.work)
        lib.sys_mount("overlay", dropin.point, "overlay", 0, options)
        assert names(dropin.point) == ["f", "new0", "new1", "new2", "new3"]
        lib.sys_umount(dropin.point)


@pytest.mark.root("mounts with the kernel's overlayfs")
def test_a_mark_of_the_kernels_volatile_is_not_heeded(dropin):
    """Of an engine that had the kernel's driver before; what it does not know is, as ever."""
    options = lib.layer_options([dropin.lower], dropin.upper, dropin.work, "volatile")
    lib.sys_mount("overlay", dropin.point, "overlay", 0, options)
    lib.sys_umount(dropin.point)
    mark = dropin.work / "work" / "incompat" / "volatile"
    assert mark.exists()
    dropin.mount("-o", dropin.layers, dropin.point)
    assert not mark.parent.exists()
    dropin.umount()
    mkdir(mark.with_name("later"))
    dropin.refuses("-o", dropin.layers, dropin.point, says="incompatible feature 'later'")


def test_max_threads(dropin):
    dropin.mount("-o", f"{dropin.layers},max_threads=2", dropin.point)
    script = "for n in $(seq 50); do echo x >$1/$2-$n; done"
    several = [
        subprocess.Popen(["sh", "-c", script, "sh", dropin.point, str(i)]) for i in range(4)
    ]
    assert [p.wait(30) for p in several] == [0] * 4
    assert len(names(dropin.upper)) == 200
    # the two that serve, who waits for signals, the watchdog, and a sanitizer's
    assert dropin.mounts[0].daemon.threads() <= 5


# --- the server -----------------------------------------------------------------------------------


def in_front(dropin, *args, before=()):
    env = {**os.environ, **lib.settings.sanitizer_env}
    if before:  # leaks cannot be looked for by who is traced
        env["ASAN_OPTIONS"] = env.get("ASAN_OPTIONS", "") + ":detect_leaks=0"
    return subprocess.Popen(
        [*before, dropin.program, *map(os.fspath, args)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=env,
    )


@pytest.mark.parametrize("words", [["-f"], ["-d"], ["--debug"], ["-o", "debug"]])
def test_in_front(dropin, words):
    """apptainer: -f, waits for the mount, later SIGTERM."""
    with in_front(dropin, *words, "-o", dropin.layers, dropin.point) as server:
        lib.wait_for(lambda: find_mount(dropin.point), 10, "the mount")
        assert read(dropin.point / "f") == b"low"
        server.send_signal(signal.SIGTERM)
        out, err = server.communicate(timeout=20)
    assert (server.returncode, out) == (0, b"")
    assert (b"LOOKUP" in err) == (words != ["-f"])
    assert not find_mount(dropin.point)


def test_a_signal_asks_for_numbers(dropin):
    log = dropin.base / "log"
    dropin.mount(
        "-o", dropin.layers, dropin.point, env={"FUSE_OVERLAYFS_DEBUG_LOG": os.fspath(log)}
    )
    assert read(dropin.point / "f") == b"low"
    daemon = dropin.mounts[0].daemon
    daemon.kill(signal.SIGUSR1)
    lib.wait_for(lambda: b"1 copied up" in read(log) or b"0 copied up" in read(log), 10, "a line")
    assert b"LOOKUP" in read(log)
    assert daemon.alive()
    assert read(dropin.point / "f") == b"low"
    lines = [line for line in read(log).decode().splitlines() if "copied up" in line]
    assert lines == [
        f"plyfs: {dropin.point}: 2 inodes and 1 names known, {lines[0].split(', ')[1]}, 0 copied up"
    ]


def test_a_log_that_cannot_be_opened_keeps_nobody_from_mounting(dropin):
    dropin.mount(
        "-o",
        dropin.layers,
        dropin.point,
        env={"FUSE_OVERLAYFS_DEBUG_LOG": "/dev/null/none"},
        says="plyfs: warning: FUSE_OVERLAYFS_DEBUG_LOG=/dev/null/none: Not a directory\n",
    )


@pytest.mark.root
@pytest.mark.parametrize(
    ("env", "words", "io"),
    [
        ({}, "", "passthrough"),
        (NO_PASSTHROUGH, "", "cached"),
        (NO_PASSTHROUGH, ",io=passthrough", "passthrough"),
    ],
    ids=["default", "variable", "word"],
)
def test_passthrough_can_be_turned_off(dropin, env, words, io):
    dropin.mount("-o", dropin.layers + words, dropin.point, env=env)
    status = os.getxattr(dropin.point, "system.plyfs.status").decode().splitlines()
    assert f"io={io}" in status


# --- mount(8) and mount.fuse3 ---------------------------------------------------------------------


@pytest.mark.privileged("mount(8) is for root")
def test_containerds_form(dropin):
    words = dropin.mount(
        *("overlay", dropin.point, "-o", f"workdir={dropin.work}"),
        *("-o", f"upperdir={dropin.upper}", "-o", f"lowerdir={dropin.lower}"),
        *("-t", "fuse-overlayfs"),
        program="mount.fuse3",
        env={"PATH": f"{dropin.program.parent}:{os.environ['PATH']}"},
    )
    assert words[1:3] == ("fuse.fuse-overlayfs", "fuse-overlayfs")
    assert "nodev" not in words[4].split(",") or lib.settings.level != "root"


@pytest.mark.privileged("mount(8) is for root")
@pytest.mark.parametrize("kind", ["fuse-overlayfs", "fuse.fuse-overlayfs", "fuse3.fuse-overlayfs"])
def test_as_a_helper_of_mount(dropin, kind):
    """As mount(8) calls it, with the flags that mount.fuse3 would have given."""
    helper = dropin.program.with_name(f"mount.{kind}")
    helper.symlink_to(lib.settings.plyfs)
    entry = dropin.mount(
        *("overlay", dropin.point, "-o", f"rw,{dropin.layers},bogus", "-t", kind),
        program=helper,
        says="unknown argument ignored: bogus\n",
    )
    assert entry[1:3] == ("fuse.fuse-overlayfs", "fuse-overlayfs")
    words = entry[4].split(",")
    assert "noatime" in words and ("nodev" not in words or lib.settings.level != "root")
    dropin.umount()
    done = dropin.call("overlay", dropin.point, "-o", "lowerdir=/none/such", program=helper)
    assert done.returncode == 32


@pytest.mark.root("puts it in the place of what is installed")
def test_mount_and_remount_through_mount(dropin):
    installed = "/usr/bin/fuse-overlayfs"
    assert os.path.exists(installed), "not installed, and mount(8) looks nowhere else"
    lib.sys_mount(lib.settings.plyfs, installed, "", lib.MS_BIND)
    try:
        dropin.mount(
            *("-t", "fuse.fuse-overlayfs", "overlay", dropin.point),
            *("-o", f"noatime,{dropin.layers}"),
            program="mount",
        )
        for words in ("remount,ro", "remount,rw,nosuid"):
            done = dropin.call("-o", words, dropin.point, program="mount")
            assert (done.returncode, done.stderr) == (0, "")
            shown = find_mount(dropin.point)[4].split(",")
            assert set(words.split(",")[1:]) <= set(shown)
            assert "nodev" not in shown and "noatime" in shown
    finally:
        while dropin.mounts:  # their server runs from there
            dropin.umount()
        lib.sys_umount(installed)


# --- what else sees the options -------------------------------------------------------------------

@pytest.mark.root("trusted xattrs")
@pytest.mark.parametrize(
    "words",
    [
        "redirect_dir=on",
        "redirect_dir=nofollow",
        "metacopy=on",
        "index=on",
        "nfs_export=on",
        "uuid=null",
        "verity=on",
        "xino=auto",
        "fsync=strict",
        "fsync=volatile",
    ],
)
def test_the_kernels_words_have_their_effect(dropin, words):
    dropin.mount("-o", f"{dropin.layers},{words}", dropin.point)
    seen = lib.run_plyfs("status", dropin.point).stdout.splitlines()
    assert words in seen
    dropin.umount()
    dropin.mount("-o", dropin.layers.replace("lowerdir=", "lowerdir+="), dropin.point)
    assert words not in lib.run_plyfs("status", dropin.point).stdout.splitlines()
    assert read(dropin.point / "f") == b"low"


VIEW = "uidmapping=0:1:2:5:6:7,gidmapping=0:0:1,squash_to_gid=3,static_nlink,ino32_t,noacl"


@pytest.mark.parametrize("name", ["fuse-overlayfs", "plyfs"])
def test_status_tells_how_identities_are_shown(dropin, name):
    """What -o of status says gives the same mount."""
    if name == "plyfs":
        dropin.program = dropin.program.with_name("plyfs")
        dropin.program.symlink_to(lib.settings.plyfs)
    dropin.mount("-o", f"{dropin.layers},{VIEW}", dropin.point)
    seen = [lib.run_plyfs("status", *flags, dropin.point).stdout for flags in ([], ["-o"])]
    assert seen[1].endswith(f",{VIEW}\n")
    for word in VIEW.split(","):
        assert (word if "=" in word else word + "=on") in seen[0].splitlines()
    dropin.umount()
    dropin.mount("-o", seen[1].strip(), dropin.point)
    again = [lib.run_plyfs("status", *flags, dropin.point).stdout for flags in ([], ["-o"])]
    assert again == seen


def test_status_of_a_mount_without_xattrs(dropin):
    dropin.mount("-o", f"{dropin.layers},noxattrs", dropin.point)
    assert "noxattrs=on" in lib.run_plyfs("status", dropin.point).stdout.splitlines()


@pytest.mark.root("puts a file in the place of one of the kernel's")
def test_contexts_go_to_the_kernel_where_there_is_selinux(dropin):
    """And where it refuses them, as a kernel does that only seems to have it, they are left out."""
    filesystems = Path("/proc/filesystems")
    if "selinuxfs" in filesystems.read_text():
        pytest.skip("there is SELinux: what it says to the label is its business")
    copy = dropin.base / "filesystems"
    copy.write_text(filesystems.read_text() + "nodev\tselinuxfs\n")
    trace = dropin.base / "trace"
    words = 'context="u:o:t:s0:c1,c2",rootcontext=u:r:t:s0'

    def mounts(number):
        said = trace.with_suffix(f".{number}")
        strace = ["strace", "-f", "-qq", "-s", "999", "-e", "trace=mount", "-o", said]
        with in_front(
            dropin, "-f", "-o", f"{words},{dropin.layers}", dropin.point, before=strace
        ) as server:
            lib.wait_for(lambda: find_mount(dropin.point), 10, "the mount")
            assert read(dropin.point / "f") == b"low"
            lib.sys_umount(dropin.point)
            assert server.communicate(timeout=20) == (b"", b"")
        return [line for line in read(said).decode().splitlines() if "user_id=" in line]

    assert not any("context" in line for line in mounts(1))
    lib.sys_mount(copy, filesystems, "", lib.MS_BIND)
    try:
        first, second = mounts(2)
    finally:
        lib.sys_umount(filesystems)
    assert 'context=\\"u:o:t:s0:c1,c2\\",rootcontext=\\"u:r:t:s0\\"' in first and "EINVAL" in first
    assert "context" not in second and second.endswith("= 0")
