# SPDX-License-Identifier: MIT
"""The command: how it mounts, what it leaves open, how it ends, what it says."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import threading
import time

import plyfs_testlib as lib
import pytest
from plyfs_testlib import (
    layer_options,
    mkdir,
    names,
    opened,
    process_name,
    read,
    run_plyfs,
    wait_for,
    write,
)

PLYFS_ONLY = pytest.mark.plyfs_only("a property of the command")


def environment():
    return {**os.environ, **lib.settings.sanitizer_env}


# --- layers and options that both understand ------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["a:b", "a,b", "a\\b", "a\\:b", "a\\,b", "a b", "a=b", "é", ":", ",", "\\", "::", "a\nb"],
)
def test_paths_with_special_characters(new_union, scratch, name):
    union = new_union("plain")
    union.use_lower(0, mkdir(scratch / f"low {name}"))
    union.upper = mkdir(scratch / f"up {name}")
    union.work = mkdir(scratch / f"work {name}")
    union.point = mkdir(scratch / f"point {name}")
    write(union.lower() / "f", "low")
    m = union.mount()
    assert read(m / "f") == b"low"
    write(m / "g", "new")
    assert read(union.upper / "g") == b"new"


def test_options_longer_than_a_page(new_union, scratch):
    deep = mkdir(scratch / ("d" * 200) / ("e" * 200))
    union = new_union("u")
    for i in range(100):
        layer = mkdir(deep / f"layer{i}")
        union.use_lower(i, layer)
        write(layer / f"f{i}", str(i))
    m = union.mount()
    assert len(names(m)) == 100
    assert read(m / "f99") == b"99"


@PLYFS_ONLY
@pytest.mark.slow
def test_500_layers_and_not_one_more(union):
    for i in range(501):
        union.lower(i)
    write(union.lower(499) / "last", "last")
    union.check_lowers = False
    m = union.mount(lowers=union.lowers[:500])
    assert read(m / "last") == b"last"
    union.umount()
    done = run_plyfs("mount", "-o", layer_options(union.lowers), union.point)
    assert done.returncode != 0
    assert "500" in done.stderr


@PLYFS_ONLY
def test_relative_paths(union):
    write(union.lower() / "f", "low")
    before = set(lib.children())
    done = run_plyfs(
        "mount", "-o", "lowerdir=lower0,upperdir=upper,workdir=work", "merged", cwd=union.base
    )
    assert done.returncode == 0, done.stderr
    mounted = lib.Mount(union.point, "plyfs")
    mounted.daemon = lib.adopt_daemon(before)
    union.mounts.append(mounted)
    write(union.point / "g", "x")
    assert read(union.upper / "g") == b"x"


@PLYFS_ONLY
def test_layers_and_mountpoint_through_symlinks(union):
    write(union.lower() / "f", "low")
    for name in ("lower0", "upper", "work", "merged"):
        os.symlink(name, union.base / f"{name}.link")
    before = set(lib.children())
    base = union.base
    options = f"lowerdir={base}/lower0.link,upperdir={base}/upper.link,workdir={base}/work.link"
    done = run_plyfs("mount", "-o", options, base / "merged.link")
    assert done.returncode == 0, done.stderr
    mounted = lib.Mount(union.point, "plyfs")
    mounted.daemon = lib.adopt_daemon(before)
    union.mounts.append(mounted)
    assert read(union.point / "f") == b"low"


def mount_with(union, *args, **kw):
    """plyfs with these arguments, which mounts on union.point."""
    before = set(lib.children())
    done = run_plyfs(*args, **kw)
    assert done.returncode == 0, done.stderr
    mounted = lib.Mount(union.point, "plyfs")
    mounted.daemon = lib.adopt_daemon(before)
    union.mounts.append(mounted)
    return mounted


@PLYFS_ONLY
@pytest.mark.parametrize("form", ["several -o", "source", "options last", "no verb", "empty words"])
def test_forms_of_the_command_line(union, form):
    write(union.lower() / "f", "low")
    low, up, work = union.lower(), union.upper, union.work
    options = layer_options(union.lowers, up, work)
    args = {
        "several -o": [
            "mount", "-o", f"lowerdir={low}", "-o", f"upperdir={up},workdir={work}", union.point,
        ],
        "source": ["mount", "-o", options, "overlay", union.point],
        "options last": ["mount", "overlay", union.point, "-o", options],
        "no verb": ["overlay", union.point, "-o", options],
        "empty words": ["mount", "-o", f",{options},,", union.point],
    }[form]
    mount_with(union, *args)
    assert read(union.point / "f") == b"low"
    write(union.point / "g")


@PLYFS_ONLY
def test_later_lowerdir_replaces_the_earlier(union):
    write(union.lower(0) / "zero")
    write(union.lower(1) / "one")
    mount_with(
        union, "mount", "-o", f"lowerdir={union.lower(0)},lowerdir={union.lower(1)}", union.point
    )
    assert names(union.point) == ["one"]


@PLYFS_ONLY
def test_words_of_the_kernel_at_their_defaults(union):
    write(union.lower() / "f")
    words = "index=off,nfs_export=off,metacopy=off,xino=off,redirect_dir=follow,default_permissions"
    if lib.settings.level == "user":
        words = words.replace("redirect_dir=follow,", "")
    union.mount(words)
    assert names(union.point) == ["f"]


# --- the daemon -----------------------------------------------------------------------------------


@PLYFS_ONLY
def test_daemon_keeps_nothing_of_the_caller(union):
    """Standard streams on /dev/null, no other fd, / as directory, a session of its own."""
    write(union.lower() / "f")
    r, w = os.pipe()
    callers = f"pipe:[{os.fstat(r).st_ino}]"
    os.set_inheritable(w, True)
    os.set_inheritable(r, True)
    with opened(union.lower() / "f", os.O_RDONLY) as held:
        os.set_inheritable(held, True)
        mounted = mount_with(
            union,
            "mount",
            "-o",
            layer_options(union.lowers, union.upper, union.work),
            union.point,
            pass_fds=[r, w, held],
        )
    os.close(w)
    assert os.read(r, 1) == b"", "the daemon holds a pipe of its caller"
    os.close(r)
    pid = mounted.daemon.pid
    fds = mounted.daemon.fds()
    for fd in (0, 1, 2):
        assert fds[fd] == "/dev/null", fds
    for target in fds.values():
        assert target != callers, fds
        assert target != str(union.lower() / "f"), fds
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    assert os.getsid(pid) != os.getsid(0)
    assert "\nUmask:\t0000\n" in read(f"/proc/{pid}/status").decode()


@PLYFS_ONLY
def test_works_with_closed_standard_streams(union):
    write(union.lower() / "f", "low")
    before = set(lib.children())

    def start():
        for fd in (0, 1, 2):
            os.close(fd)
        os.execve(
            lib.settings.plyfs,
            ["plyfs", "mount", "-o", layer_options(union.lowers, union.upper, union.work), union.point],
            environment(),
        )

    pid = os.fork()
    if pid == 0:
        try:
            start()
        finally:
            os._exit(99)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    mounted = lib.Mount(union.point, "plyfs")
    mounted.daemon = lib.adopt_daemon(before)
    union.mounts.append(mounted)
    fds = mounted.daemon.fds()
    assert [fds[i] for i in range(3)] == ["/dev/null"] * 3
    write(union.point / "f", "new")
    assert read(union.upper / "f") == b"new"


@PLYFS_ONLY
def test_exit_status_0_means_that_the_mount_answers(union):
    write(union.lower() / "f", "low")
    for _ in range(10):
        union.mount()
        assert read(union.point / "f") == b"low"
        union.umount()


@PLYFS_ONLY
@pytest.mark.parametrize("how", ["umount", "umount -l", "fusermount3 -u", "fusermount3 -uz"])
def test_unmounting_ends_the_daemon(union, how):
    write(union.lower() / "f")
    union.mount()
    write(union.point / "f", "changed")
    mounted = union.mounted
    command = [*how.split(), union.point]
    if lib.settings.level == "user":
        command = ["fusermount3", "-uz" if "-l" in how else "-u", union.point]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert read(union.upper / "f") == b"changed"
    assert not lib.find_mount(union.point)
    mounted.live = False
    assert mounted.daemon.wait() == 0


@PLYFS_ONLY
@pytest.mark.privileged("umount -l")
def test_lazy_umount_serves_open_files_to_their_end(union):
    write(union.lower() / "f", "low")
    m = union.mount()
    mounted = union.mounted
    fd = os.open(m / "f", os.O_RDWR)
    lib.sys_umount(m, lib.MNT_DETACH)
    mounted.live = False
    assert names(m) == []
    os.write(fd, b"LOW")
    assert os.pread(fd, 10, 0) == b"LOW"
    assert mounted.daemon.alive()
    os.close(fd)
    assert mounted.daemon.wait() == 0
    assert read(union.upper / "f") == b"LOW"


@PLYFS_ONLY
@pytest.mark.privileged("umount")
def test_busy_mount_stays(union):
    write(union.lower() / "f", "low")
    m = union.mount()
    with opened(m / "f", os.O_RDONLY):
        done = subprocess.run(["umount", m], capture_output=True, check=False)
        assert done.returncode != 0
    assert read(m / "f") == b"low"


@PLYFS_ONLY
@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_unmounts(union, sig):
    write(union.lower() / "f")
    m = union.mount()
    write(m / "f", "changed")
    mounted = union.mounted
    mounted.daemon.kill(sig)
    assert mounted.daemon.wait() == 0
    assert not lib.find_mount(m)
    mounted.live = False
    assert read(union.upper / "f") == b"changed"


@PLYFS_ONLY
@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_while_mounting_leaves_no_dead_mount(union, sig):
    """Wherever it comes, before, in and after mount(2)."""
    write(union.lower() / "f", "low")
    options = layer_options(union.lowers, union.upper, union.work)
    for i in range(40):
        child = subprocess.Popen(
            [lib.settings.plyfs, "mount", "-f", "-o", options, union.point],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment(),
            # a shell's background jobs ignore SIGINT, and so would their children
            preexec_fn=lambda: signal.signal(sig, signal.SIG_DFL),
        )
        if i % 2:
            time.sleep(i * 0.0002)
        else:
            wait_for(
                lambda: lib.find_mount(union.point) or child.poll() is not None, 10, "the mount"
            )
        child.send_signal(sig)
        child.wait(timeout=20)
        left = lib.find_mount(union.point)
        if left:
            subprocess.run(["umount", "-l", union.point], check=False)
        assert not left, f"run {i}, which ended with {child.returncode}"


@PLYFS_ONLY
@pytest.mark.slow
def test_memory_of_a_burst_goes_back(union):
    """Threads that came for many clients at once leave with their buffers."""
    size = lib.MIB // 2
    for i in range(200):
        write(union.lower() / f"f{i}", b"x" * size)
    m = union.mount()
    before = union.daemon.rss()

    def client(i):
        with opened(m / f"f{i}", os.O_RDWR) as fd:
            os.pwrite(fd, b"y" * size, 0)
            os.fsync(fd)

    clients = [threading.Thread(target=client, args=(i,)) for i in range(200)]
    for c in clients:
        c.start()
    for c in clients:
        c.join()
    wait_for(lambda: union.daemon.threads() <= 10, 40, "the end of idle threads")
    assert union.daemon.rss() - before < 8 * lib.MIB


@PLYFS_ONLY
@pytest.mark.privileged("mounts a file system")
def test_layers_are_free_after_umount(new_union, scratch):
    """The base file system can be unmounted right after the union."""
    with lib.tmpfs(scratch) as fs:
        union = new_union("u", fs)
        write(union.lower() / "f")
        union.mount()
        write(union.point / "f", "x")
        for mounted in union.mounts:
            lib.sys_umount(mounted.point)
        # the daemon may need a moment to go
        wait_for(lambda: try_umount(fs), 2, "unmounting the base")
        lib.sys_mount("tmpfs", fs, "tmpfs")
        for mounted in union.mounts:
            mounted.live = False
            assert mounted.daemon.wait() == 0
        union.mounts = []
        union.closed = True


def try_umount(point):
    try:
        lib.sys_umount(point)
        return True
    except OSError:
        return False


# --- in front -------------------------------------------------------------------------------------


@contextlib.contextmanager
def in_front(union, *flags):
    child = subprocess.Popen(
        [
            lib.settings.plyfs,
            "mount",
            *flags,
            "-o",
            layer_options(union.lowers, union.upper, union.work),
            union.point,
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    try:
        wait_for(
            lambda: lib.find_mount(union.point) or child.poll() is not None, 10, "the mount"
        )
        assert child.poll() is None, child.stderr.read()
        yield child
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()
        if lib.find_mount(union.point):
            subprocess.run(
                ["fusermount3", "-uz", union.point]
                if lib.settings.level == "user"
                else ["umount", "-l", union.point],
                check=False,
            )


def umount_in_front(union):
    if lib.settings.level == "user":
        subprocess.run(["fusermount3", "-u", union.point], check=True)
    else:
        lib.sys_umount(union.point)


@PLYFS_ONLY
def test_stays_in_front(union):
    write(union.lower() / "f", "low")
    with in_front(union, "-f") as child:
        wait_for(lambda: names(union.point) == ["f"], 10, "the listing")
        assert process_name(child.pid) == "plyfs"
        umount_in_front(union)
        out, err = child.communicate(timeout=20)
        assert child.returncode == 0
        assert (out, err) == ("", "")


@PLYFS_ONLY
@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_ends_it_in_front(union, sig):
    write(union.lower() / "f", "low")
    with in_front(union, "-f") as child:
        wait_for(lambda: names(union.point) == ["f"], 10, "the listing")
        child.send_signal(sig)
        child.communicate(timeout=20)
        assert child.returncode == 0
        assert not lib.find_mount(union.point)


@PLYFS_ONLY
def test_debug_shows_requests_replies_and_times(union):
    write(union.lower() / "hello-name", "low")
    with in_front(union, "-f", "-d") as child:
        wait_for(lambda: names(union.point) == ["hello-name"], 10, "the listing")
        read(union.point / "hello-name")
        lib.exists(union.point / "missing-name")
        write(union.point / "new-name", "x")
        umount_in_front(union)
        _, err = child.communicate(timeout=20)
    lines = err.splitlines()
    for opcode in ("INIT", "LOOKUP", "OPEN", "READ"):
        assert any(opcode in line for line in lines), (opcode, err[:2000])
    for name in ("missing-name", "new-name"):
        assert any(name in line for line in lines), (name, err[:2000])
    lookups = [line for line in lines if "LOOKUP" in line and "missing-name" in line]
    assert re.search(r"\d+ *(µs|us)", "\n".join(lines)), err[:2000]
    assert lookups


# --- help -----------------------------------------------------------------------------------------


@PLYFS_ONLY
def test_help():
    for args in (["--help"], ["mount", "--help"], ["help"]):
        done = run_plyfs(*args)
        assert done.returncode == 0
        assert done.stderr == ""
        assert "mount" in done.stdout
    assert "lowerdir" in run_plyfs("mount", "--help").stdout


@PLYFS_ONLY
def test_version():
    done = run_plyfs("--version")
    assert done.returncode == 0
    assert re.fullmatch(r"plyfs \d+\.\d+\.\d+.*\n", done.stdout)


@PLYFS_ONLY
@pytest.mark.parametrize("args", [[], ["nonsense"], ["mount"], ["mount", "--nonsense"], ["-o"]])
def test_wrong_use_is_told(args):
    done = run_plyfs(*args)
    assert done.returncode != 0
    assert done.stderr.startswith("plyfs: ") or "sage" in done.stderr
    assert done.stdout == ""


# --- mount(8) -------------------------------------------------------------------------------------


@pytest.fixture
def helpers(scratch):
    """mount.fuse.plyfs and mount.plyfs in /sbin, in this mount namespace and for this test."""
    sbin = os.path.realpath("/sbin")
    extra = mkdir(scratch / "sbin")
    for name in ("mount.fuse.plyfs", "mount.plyfs"):
        os.symlink(lib.settings.plyfs, extra / name)
    lib.sys_mount("overlay", sbin, "overlay", 0, f"lowerdir={extra}:{sbin}")
    try:
        yield
    finally:
        lib.sys_umount(sbin, lib.MNT_DETACH)


MOUNT8 = pytest.mark.root("mount(8) with a helper")


def after_mount8(union, before):
    mounted = lib.Mount(union.point, "plyfs")
    mounted.daemon = mount8_daemon(before)
    union.mounts.append(mounted)


def mount8_daemon(before):
    def find():
        new = [p for p in lib.children() if p not in before]
        # the kernel cuts the names of processes: mount.fuse.plyf
        return [p for p in new if "plyf" in process_name(p)]

    pids = wait_for(find, 5, "a daemon after mount(8)")
    assert len(pids) == 1
    return lib.Daemon(pids[0])


@MOUNT8
@PLYFS_ONLY
@pytest.mark.parametrize("fstype", ["fuse.plyfs", "plyfs"])
def test_mount8(union, helpers, fstype):
    write(union.lower() / "f", "low")
    before = set(lib.children())
    options = layer_options(union.lowers, union.upper, union.work)
    done = subprocess.run(
        ["mount", "-t", fstype, "my-source", union.point, "-o", options],
        capture_output=True,
        text=True,
        timeout=30,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout + done.stderr == ""
    after_mount8(union, before)
    assert read(union.point / "f") == b"low"
    write(union.point / "g", "x")
    entry = lib.find_mount(union.point)
    assert entry[1] == "fuse.plyfs"
    assert entry[2] == "my-source"
    assert subprocess.run(["umount", union.point]).returncode == 0
    union.mounts[0].live = False
    assert union.mounts[0].daemon.wait() == 0


@MOUNT8
@PLYFS_ONLY
def test_mount8_with_flags(union, helpers):
    write(union.lower() / "f", "low")
    before = set(lib.children())
    options = layer_options(union.lowers, union.upper, union.work, "ro,nosuid,nodev,noexec,noatime")
    done = subprocess.run(
        ["mount", "-t", "fuse.plyfs", "overlay", union.point, "-o", options],
        capture_output=True,
        text=True,
        timeout=30,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr
    after_mount8(union, before)
    options = lib.find_mount(union.point)[4].split(",")
    for word in ("ro", "nosuid", "nodev", "noexec", "noatime"):
        assert word in options
    with lib.raises(30):
        write(union.point / "g")


@MOUNT8
@PLYFS_ONLY
def test_fstab(union, helpers):
    write(union.lower() / "f", "low")
    options = layer_options(union.lowers, union.upper, union.work)
    fstab = write(
        union.base / "fstab",
        f"overlay {union.point} fuse.plyfs noauto,x-systemd.automount,nofail,_netdev,{options} 0 0\n",
    )
    lib.sys_mount(fstab, "/etc/fstab", "", lib.MS_BIND)
    try:
        before = set(lib.children())
        done = subprocess.run(
            ["mount", union.point], capture_output=True, text=True, timeout=30, env=environment()
        )
        assert done.returncode == 0, done.stderr
        after_mount8(union, before)
        assert read(union.point / "f") == b"low"
        write(union.point / "g")
        assert subprocess.run(["umount", union.point]).returncode == 0
        union.mounts[0].live = False
        assert union.mounts[0].daemon.wait() == 0
    finally:
        lib.sys_umount("/etc/fstab")


@MOUNT8
@PLYFS_ONLY
def test_mount8_fails_with_a_status_and_a_message(union, helpers):
    done = subprocess.run(
        ["mount", "-t", "fuse.plyfs", "overlay", union.point, "-o", "lowerdir=/nonexistent-layer"],
        capture_output=True,
        text=True,
        timeout=30,
        env=environment(),
    )
    assert done.returncode == 32
    assert "/nonexistent-layer" in done.stderr
    assert not lib.find_mount(union.point)


@MOUNT8
@PLYFS_ONLY
def test_mount8_fake(union, helpers):
    """mount -f goes through the motions and mounts nothing."""
    write(union.lower() / "f", "low")
    done = subprocess.run(
        ["mount", "-f", "-t", "fuse.plyfs", "overlay", union.point, "-o",
         layer_options(union.lowers, union.upper, union.work)],
        capture_output=True,
        text=True,
        timeout=30,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr
    assert not lib.find_mount(union.point)


def shown_options(union):
    return set(lib.find_mount(union.point)[4].split(","))


@MOUNT8
@PLYFS_ONLY
def test_mount8_remounts(union, helpers):
    """mount(8) gives the helper all that the mount table shows, user_id= and the like included."""
    write(union.lower() / "f", "low")
    mount_with(
        union,
        "mount",
        "-o",
        layer_options(union.lowers, union.upper, union.work, "nosuid,nodev,noatime"),
        union.point,
    )
    for words, expected in (
        ("remount,ro", {"ro", "nosuid", "nodev", "noatime"}),
        ("remount,rw,noexec", {"rw", "nosuid", "nodev", "noexec", "noatime"}),
        ("remount,relatime,suid", {"rw", "nodev", "noexec", "relatime"}),
    ):
        done = subprocess.run(
            ["mount", "-o", words, union.point], capture_output=True, text=True, timeout=30
        )
        assert done.returncode == 0, done.stderr
        shown = shown_options(union)
        assert expected <= shown, (words, shown)
        assert ("ro" in expected) == ("ro" in shown)
        assert ("nosuid" in expected) == ("nosuid" in shown)
    write(union.point / "f", "new")


@PLYFS_ONLY
@pytest.mark.privileged("remounts")
def test_remount_keeps_flags_that_are_not_named(union):
    write(union.lower() / "f", "low")
    flags = {"nosuid", "nodev", "noexec", "noatime"}
    mount_with(
        union,
        "mount",
        "-o",
        layer_options(union.lowers, union.upper, union.work, ",".join(flags)),
        union.point,
    )
    done = run_plyfs("mount", "-o", "remount,ro", union.point)
    assert (done.returncode, done.stderr) == (0, "")
    assert flags | {"ro"} <= shown_options(union)
    with lib.raises(30):
        write(union.point / "f", "new")
    done = run_plyfs("mount", "-o", "remount,rw,exec", union.point)
    assert (done.returncode, done.stderr) == (0, "")
    assert shown_options(union) & {"ro", *flags} == flags - {"noexec"}
    write(union.point / "f", "new")
    assert "user.plyfs" not in lib.xattrs(union.upper)


@PLYFS_ONLY
@pytest.mark.privileged("remounts")
def test_remount_for_writing_needs_an_upper(union):
    write(union.lower() / "f", "low")
    mount_with(union, "mount", "-o", layer_options(union.lowers, options="nodev"), union.point)
    done = run_plyfs("mount", "-o", "remount,rw", union.point)
    assert done.returncode == 32
    assert "upperdir" in done.stderr and str(union.point) in done.stderr
    assert {"ro", "nodev"} <= shown_options(union)
    assert run_plyfs("mount", "-o", "remount,noexec", union.point).returncode == 0
    assert {"ro", "nodev", "noexec"} <= shown_options(union)


@PLYFS_ONLY
def test_engine_reads_stderr_to_its_end(union):
    """containers/storage waits for the pipe to close: the daemon must not keep it."""
    write(union.lower() / "f", "low")
    before = set(lib.children())
    child = subprocess.Popen(
        [
            lib.settings.plyfs,
            "mount",
            "-o",
            layer_options(union.lowers, union.upper, union.work),
            union.point,
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    _, err = child.communicate(timeout=20)
    assert (child.returncode, err) == (0, b"")
    mounted = lib.Mount(union.point, "plyfs")
    mounted.daemon = lib.adopt_daemon(before)
    union.mounts.append(mounted)
    assert read(union.point / "f") == b"low"


@PLYFS_ONLY
def test_idle_daemon_sleeps(union):
    """No polling: an idle mount uses no processor time."""
    write(union.lower() / "f", "low")
    m = union.mount()
    read(m / "f")
    pid = union.daemon.pid

    def switches():
        total = 0
        for task in os.listdir(f"/proc/{pid}/task"):
            status = read(f"/proc/{pid}/task/{task}/status").decode()
            total += int(re.search(r"^voluntary_ctxt_switches:\s*(\d+)", status, re.M)[1])
        return total

    # threads that end after a while are allowed: wait until two looks are the same
    def quiet():
        before = switches()
        time.sleep(0.3)
        return switches() == before

    wait_for(quiet, 15, "an idle daemon")


@PLYFS_ONLY
def test_upper_made_by_one_program_is_mounted_by_a_copy_of_it(union):
    """Nothing depends on where the program lies."""
    write(union.lower() / "f", "low")
    copy = union.base / "plyfs-copy"
    shutil.copy(lib.settings.plyfs, copy)
    before = set(lib.children())
    done = subprocess.run(
        [copy, "mount", "-o", layer_options(union.lowers, union.upper, union.work), union.point],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=20,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr
    mounted = lib.Mount(union.point, "plyfs")
    mounted.daemon = lib.adopt_daemon(before)
    union.mounts.append(mounted)
    assert read(union.point / "f") == b"low"
