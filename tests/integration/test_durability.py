# SPDX-License-Identifier: MIT
"""-o fsync= and volatile: what is on disk when, and what is said of what was lost."""

import contextlib
import ctypes
import errno
import os
import re
import stat
import subprocess

import pytest

import plyfs_testlib as lib
from plyfs_testlib import append, mkdir, names, opened, raises, read, write

# fusermount3 has no rights under strace
traces = pytest.mark.privileged("traces the server")

SYNCING = "fsync,fdatasync,sync,syncfs,sync_file_range,msync"
MOVING = "rename,renameat,renameat2,link,linkat"
LOST = (errno.EIO, errno.ENOSPC)  # the kernel's overlayfs passes on what the disk said


class Traced:
    """A mount of plyfs under strace(1)."""

    def __init__(self, union, options, *arguments):
        self.union = union
        self.log = union.base / "trace"
        command = ["strace", "-f", "-qq", "-o", self.log, *arguments, lib.settings.plyfs, "mount"]
        layers = lib.layer_options(union.lowers, union.upper, union.work, options)
        # nobody can look for leaks who is looked at himself
        without_leaks = lib.settings.sanitizer_env.get("ASAN_OPTIONS", "") + ":detect_leaks=0"
        union.snapshot_lowers()
        union.last_upper = union.upper
        self.process = subprocess.Popen(
            [*command, "-o", layers, union.point],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={**os.environ, **lib.settings.sanitizer_env, "ASAN_OPTIONS": without_leaks},
        )
        lib.wait_for(self._mounted, 20, "the traced mount")

    def _mounted(self):
        assert self.process.poll() is None, self.process.stderr.read().decode()
        return lib.find_mount(self.union.point)

    def end(self):
        """The lines of the trace."""
        lib.sys_umount(self.union.point)
        self.process.wait(20)
        return self.log.read_text(errors="replace").splitlines()


@contextlib.contextmanager
def traced(union, options, *arguments):
    mounted = Traced(union, options, *arguments)
    try:
        yield mounted
    finally:
        if lib.find_mount(union.point):
            lib.abort_connection(lib.find_mount(union.point)[3])
            lib.sys_umount(union.point, lib.MNT_DETACH)
        if mounted.process.poll() is None:
            mounted.process.wait(20)
        mounted.process.stderr.close()


def calls(lines):
    """Names of the system calls of a trace, each once, in their order."""
    found = [m[1] for line in lines if (m := re.match(r"\d+ +(\w+)\(", line))]
    return [c for c in found if not c.startswith("syscall_")]  # unknown to strace


def trace_of(union, options, change):
    """Which calls a change makes: of each client call a list."""
    with traced(union, options, "-e", f"trace={SYNCING},{MOVING}") as t:
        change(union.point)
        return calls(t.end())


def copy_up_file(m):
    append(m / "d/f", b"+")


def chmod_file(m):
    os.chmod(m / "d/f", 0o600)


def chmod_empty(m):
    os.chmod(m / "d/empty", 0o600)


def chmod_dir(m):
    os.chmod(m / "d/sub", 0o700)


def make_link(m):
    os.link(m / "d/symlink", m / "d/link", follow_symlinks=False)


def fsync_file(m):
    with opened(m / "top", os.O_RDWR) as fd:
        os.fsync(fd)


def fdatasync_file(m):
    with opened(m / "top", os.O_RDWR) as fd:
        os.fdatasync(fd)


def fsync_dir(m):
    with opened(m / "updir", os.O_RDONLY | os.O_DIRECTORY) as fd:
        os.fsync(fd)


def fsync_lower(m):
    with opened(m / "d/f", os.O_RDONLY) as fd:
        os.fsync(fd)


def write_synchronously(m):
    with opened(m / "top", os.O_WRONLY | os.O_SYNC) as fd:
        os.write(fd, b"x")


# what is done, and what syncs with auto and with strict, parents first
CHANGES = [
    (copy_up_file, 1, 2),  # strict: the parent d
    (chmod_file, 1, 2),
    (chmod_empty, 0, 2),
    (chmod_dir, 0, 2),
    (make_link, 0, 1),  # nothing of a symlink can be synced
    (fsync_file, 1, 1),
    (fdatasync_file, 1, 1),
    (fsync_dir, 1, 1),
    (fsync_lower, 0, 0),
]


def fill(union):
    write(union.lower() / "d/f", "low")
    write(union.lower() / "d/empty")
    mkdir(union.lower() / "d/sub")
    os.symlink("f", union.lower() / "d/symlink")
    write(union.upper / "top", "top")
    mkdir(union.upper / "updir")


@traces
@pytest.mark.plyfs_only("system calls of the server")
@pytest.mark.parametrize("mode", ["auto", "strict", "volatile"])
@pytest.mark.parametrize("change", CHANGES, ids=lambda c: c[0].__name__)
def test_what_syncs(union, change, mode):
    do, auto, strict = change
    fill(union)
    union.check_work = mode != "volatile"
    syncs = [c for c in trace_of(union, f"fsync={mode}", do) if c in SYNCING.split(",")]
    wanted = {"auto": auto, "strict": strict, "volatile": 0}[mode]
    assert len(syncs) == wanted, syncs
    if do is fdatasync_file and wanted:
        assert syncs == ["fdatasync"]
    union.close()


def chmod_and_write(m):
    os.chmod(m / "d/f", 0o600)
    append(m / "d/f", b"+")


@pytest.mark.root("metacopy")
@pytest.mark.plyfs_only("system calls of the server")
@pytest.mark.parametrize("mode, meta, both", [("auto", 0, 1), ("strict", 2, 3), ("volatile", 0, 0)])
def test_what_syncs_with_metacopy(new_union, mode, meta, both):
    for do, wanted in ((chmod_file, meta), (chmod_and_write, both)):
        union = new_union(do.__name__)
        fill(union)
        union.check_work = mode != "volatile"
        found = trace_of(union, f"fsync={mode},metacopy=on", do)
        assert len([c for c in found if c in SYNCING.split(",")]) == wanted, found
        if do is chmod_file:
            assert union.overlay_xattr(union.upper / "d/f", "metacopy") == b""


@traces
@pytest.mark.plyfs_only("system calls of the server")
def test_synchronous_writes_sync_unless_volatile(new_union):
    for mode, least in (("auto", 1), ("volatile", 0)):
        union = new_union(mode)
        fill(union)
        union.check_work = False
        found = trace_of(union, f"fsync={mode},io=cached", write_synchronously)
        syncs = [c for c in found if c in SYNCING.split(",")]
        assert (len(syncs) >= 1) == bool(least), (mode, syncs)


@traces
@pytest.mark.plyfs_only("system calls of the server")
@pytest.mark.parametrize("mode", ["auto", "strict"])
def test_data_is_synced_before_its_name_appears(union, mode):
    fill(union)
    found = trace_of(union, f"fsync={mode}", copy_up_file)
    per_object = ["fsync", "renameat2"]
    assert found == (["renameat2", *per_object] if mode == "auto" else per_object * 2)


def volatile_mark(work):
    """{path: (type and mode, size)} of what a volatile mount leaves in workdir/work."""
    out = {}
    for path in ("incompat", "incompat/volatile", "incompat/volatile/dirty"):
        st = os.lstat(work / "work" / path)
        out[path] = (stat.filemode(st.st_mode), st.st_size if stat.S_ISREG(st.st_mode) else 0)
    return out


@pytest.mark.parametrize("option", ["volatile", "fsync=volatile"])
@pytest.mark.parametrize("more", ["", "index=on"])
def test_mark_of_a_volatile_mount(union, option, more):
    union.check_work = union.check_kernel = False
    options = f"{option},{more}" if more and lib.settings.level == "root" else option
    m = union.mount(options)
    write(m / "new", "x")
    # who is bound by modes must be able to remove it
    directory = ("drwx------" if lib.settings.level == "user" else "d---------", 0)
    wanted = {
        "incompat": directory,
        "incompat/volatile": directory,
        "incompat/volatile/dirty": ("----------", 0),
    }
    assert volatile_mark(union.work) == wanted
    union.umount()
    # it outlives the mount
    assert volatile_mark(union.work) == wanted
    assert read(union.upper / "new") == b"x"


@pytest.mark.privileged("mounts the kernel's overlayfs too")
@pytest.mark.parametrize("marked_by", ["plyfs", "kernel"])
@pytest.mark.parametrize("then", ["", "volatile"])
def test_a_marked_upper_is_refused(union, marked_by, then):
    union.check_work = union.check_kernel = False
    union.mount("volatile", impl=marked_by)
    write(union.point / "f", "x")
    union.umount()
    with raises(errno.EINVAL):
        lib.mount_kernel(union.lowers, union.upper, union.work, union.point, then)
    options = lib.layer_options(union.lowers, union.upper, union.work, then)
    done = lib.run_plyfs("mount", "-o", options, union.point)
    assert done.returncode != 0
    assert "'volatile'" in done.stderr and f"{union.work}/work/incompat" in done.stderr
    assert not lib.find_mount(union.point)
    # the refusal changed nothing, and who accepts the risk removes the mark
    assert set(volatile_mark(union.work)) == {
        "incompat", "incompat/volatile", "incompat/volatile/dirty"
    }
    lib.remove_tree(union.work / "work/incompat")
    union.mount(then)
    assert read(union.point / "f") == b"x"


@pytest.mark.plyfs_only("whoever made the mark")
def test_any_other_mark_is_refused_too(union):
    union.mount()
    union.umount()
    os.chmod(union.work / "work", 0o700)
    mkdir(union.work / "work/incompat/of-the-future")
    options = lib.layer_options(union.lowers, union.upper, union.work)
    done = lib.run_plyfs("mount", "-o", options, union.point)
    assert done.returncode != 0 and "'of-the-future'" in done.stderr
    assert (union.work / "work/incompat/of-the-future").is_dir()
    lib.remove_tree(union.work / "work/incompat")


def test_volatile_means_nothing_without_upper(union):
    write(union.lower() / "f", "x")
    union.mount("volatile", upper=None)
    with opened(union.point / "f", os.O_RDONLY) as fd:
        os.fsync(fd)
    union.umount()
    assert not (union.work / "work").exists()


@pytest.mark.plyfs_only("looks into the server's work")
def test_the_witness_leaves_nothing_behind(union):
    union.check_work = union.check_kernel = False
    union.mount("volatile")
    left = [n for n in names(union.work / "work") if n != "incompat"]
    assert all(lib.is_whiteout(union.work / "work" / n) for n in left), left
    # nor a mount that somebody could see
    assert not [e for e in lib.mount_table() if e[1] == "overlay" and str(union.base) in e[4]]


# --- a disk that loses what was written ----------------------------------------------------------

SYNC_WRITE_WAIT = 7  # SYNC_FILE_RANGE_WAIT_BEFORE | WRITE | WAIT_AFTER


def write_back(path):
    """Write a file's pages to disk. Who watches the filesystem is not told that this failed."""
    with opened(path, os.O_RDONLY) as fd:
        return lib.libc.sync_file_range(
            fd, ctypes.c_int64(0), ctypes.c_int64(0), ctypes.c_uint(SYNC_WRITE_WAIT)
        )


@contextlib.contextmanager
def overcommitted_disk(base):
    """An ext4 of 64 MiB on an image that can only take 16: what is written there gets lost."""
    with lib.tmpfs(base, "thin", size="16m") as thin:
        with lib.loop_filesystem(thin, "ext4", 64 * lib.MIB, ["-O", "^has_journal"]) as disk:
            yield disk


def lose_something(path):
    with opened(path, os.O_WRONLY | os.O_CREAT) as fd:
        for _ in range(40):
            os.write(fd, b"x" * lib.MIB)


def fails_to_sync(m):
    """Which of these fail: a new file, an old one, one of lower, a directory."""
    out = []
    for name, flags in (
        ("new", os.O_RDWR | os.O_CREAT),
        ("big", os.O_RDWR),
        ("low", os.O_RDONLY),
        (".", os.O_RDONLY | os.O_DIRECTORY),
    ):
        for sync in (os.fsync, os.fdatasync):
            with opened(m / name, flags) as fd:
                try:
                    sync(fd)
                except OSError as e:
                    wanted = LOST if lib.settings.impl == "kernel" else (errno.EIO,)
                    assert e.errno in wanted, e
                    out.append((name, sync.__name__))
    return out


ALL = [(n, s) for n in ("new", "big", "low", ".") for s in ("fsync", "fdatasync")]


@pytest.mark.root("makes a disk")
def test_every_sync_fails_for_ever_after_a_lost_write(scratch, new_union):
    with overcommitted_disk(scratch) as disk:
        union = new_union("u", base=disk)
        write(union.lower() / "low", "low")
        union.check_work = union.check_kernel = False
        m = union.mount("volatile")
        write(m / "big", "x")
        assert fails_to_sync(m) == []
        lose_something(m / "big")
        write_back(union.upper / "big")
        assert fails_to_sync(m) == ALL
        # not even when the filesystem itself is content again
        subprocess.run(["sync", "-f", disk], check=False, stderr=subprocess.DEVNULL)
        os.unlink(m / "big")
        write(m / "big", "x")
        assert fails_to_sync(m) == ALL
        # everything else goes on
        append(m / "low", b"+")
        assert read(m / "low") == b"low+"
        union.close()


@pytest.mark.root("makes a disk")
def test_a_loss_that_is_not_ours_counts_too(scratch, new_union):
    """Nobody can say whose data it was."""
    with overcommitted_disk(scratch) as disk:
        union = new_union("u", base=disk)
        write(union.lower() / "low", "low")
        union.check_work = union.check_kernel = False
        m = union.mount("volatile")
        write(m / "big", "x")
        lose_something(disk / "elsewhere")
        write_back(disk / "elsewhere")
        assert fails_to_sync(m) == ALL
        union.close()


@pytest.mark.root("makes a disk")
def test_an_untold_loss_keeps_a_volatile_mount_from_beginning(scratch, new_union):
    with overcommitted_disk(scratch) as disk:
        union = new_union("u", base=disk)
        union.check_work = union.check_kernel = False
        union.lower()
        lose_something(disk / "elsewhere")
        write_back(disk / "elsewhere")
        with raises(errno.EIO):
            lib.mount_kernel(union.lowers, union.upper, union.work, union.point, "volatile")
        options = lib.layer_options(union.lowers, union.upper, union.work, "volatile")
        done = lib.run_plyfs("mount", "-o", options, union.point)
        assert done.returncode != 0
        assert f"sync -f {union.upper}" in done.stderr
        assert not (union.work / "work/incompat").exists()
        # other mounts take it
        union.mount()
        union.umount()
        # as does a volatile one, once somebody was told
        os.unlink(disk / "elsewhere")
        subprocess.run(["sync", "-f", disk], check=False, stderr=subprocess.DEVNULL)
        union.mount("volatile")
        union.close()


@pytest.mark.root("makes a disk")
@pytest.mark.plyfs_only("who may not mount an overlayfs of the kernel")
def test_without_a_witness_a_file_is_asked_itself(scratch, new_union):
    with overcommitted_disk(scratch) as disk:
        union = new_union("u", base=disk)
        write(union.lower() / "low", "low")
        union.check_work = union.check_kernel = False
        with traced(union, "volatile", "-e", "trace=fsync,fdatasync,fsopen,syncfs", "-e",
                    "inject=fsopen:error=EPERM") as t:
            m = union.point
            lose_something(m / "big")
            # not write_back(), which would be told in our place
            subprocess.run(["sync", "-f", disk], check=False, stderr=subprocess.DEVNULL)
            with opened(m / "low", os.O_RDONLY) as fd:
                os.fsync(fd)  # says nothing of others
            with opened(m / "big", os.O_RDWR) as fd, raises(errno.EIO):
                os.fsync(fd)
            write(m / "new", "x")
            assert fails_to_sync(m) == ALL
            found = set(calls(t.end()))
        assert found == {"fsopen"}
        union.close()


@traces
@pytest.mark.plyfs_only("fails a system call of the server")
@pytest.mark.parametrize("witness", [True, False])
def test_a_write_that_failed_counts(union, witness):
    union.check_work = union.check_kernel = False
    write(union.lower() / "low", "low")
    write(union.upper / "big", "x")
    arguments = ["-e", "trace=pwrite64,fsopen", "-e", "inject=pwrite64:error=EIO:when=1"]
    if not witness:
        arguments += ["-e", "inject=fsopen:error=EPERM"]
    with traced(union, "volatile,io=cached,writeback=0", *arguments) as t:
        m = union.point
        with opened(m / "big", os.O_WRONLY) as fd:
            os.fsync(fd)
            with raises(errno.EIO):
                os.write(fd, b"2")
        assert fails_to_sync(m) == ALL
        t.end()
