# SPDX-License-Identifier: MIT
"""Requests over io_uring: transport=uring.

The kernel's parameter is set for each test and put back. Only root of the machine may do that; at
the other levels the tests run where it is set already, but for one, which makes its own user
namespace.
"""

import contextlib
import errno
import mmap
import os
import random
import re
import signal
import subprocess
import time
from pathlib import Path

import plyfs_testlib as lib
import pytest
import storm
from plyfs_testlib import MIB, in_child, mkdir, opened, read, run_plyfs, wait_for, write
from storm_crash import WORKERS, check_all, workers_for

pytestmark = [pytest.mark.plyfs_only("a transport of plyfs"), pytest.mark.limit(60)]

PARAMETER = Path("/sys/module/fuse/parameters/enable_uring")
DISABLED = Path("/proc/sys/kernel/io_uring_disabled")
URING = "transport=uring"


@contextlib.contextmanager
def setting(path, value):
    """What it is set to for a while; OSError when it can't be."""
    before = path.read_text().strip()
    if before != value:
        path.write_text(value)
    try:
        yield
    finally:
        if before != value:
            path.write_text(before)


@pytest.fixture(autouse=True)
def enabled():
    if not PARAMETER.exists():
        pytest.skip("this kernel has no FUSE over io_uring")
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(setting(DISABLED, "0"))
            stack.enter_context(setting(PARAMETER, "Y"))
        except OSError:
            pytest.skip("io_uring for FUSE is off, and only root can set it")
        yield


def transport(point):
    done = run_plyfs("status", point)
    assert done.returncode == 0, done
    return re.search(r"^transport=(\w+)$", done.stdout, re.MULTILINE)[1]


def connection(mounted):
    return Path(f"/sys/fs/fuse/connections/{mounted.device.split(':')[1]}")


def fork(function, *args):
    """A child that does this and ends with 0, or with the errno."""
    pid = os.fork()
    if pid == 0:
        status = 255
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            function(*args)
            status = 0
        except OSError as e:
            status = e.errno
        finally:
            os._exit(status)
    return pid


def ended(pid, seconds=20):
    """Its exit code, or minus the signal that ended it."""

    def reaped():
        done, status = os.waitpid(pid, os.WNOHANG)
        return (os.waitstatus_to_exitcode(status),) if done else None

    return wait_for(reaped, seconds, f"the end of process {pid}")[0]


def state(pid):
    return read(f"/proc/{pid}/stat").rsplit(b")", 1)[1].split()[0].decode()


@pytest.fixture
def stuck(new_union):
    """A union whose lower layer is another mount, and the server of that, which can be stopped."""
    below, union = new_union("below"), new_union("union")
    below.check_kernel = union.check_kernel = False
    for i in range(100):
        write(below.lower() / f"low{i}", b"x" * 100)
    write(below.lower() / "big", bytes(range(256)) * (32 * MIB // 256))
    layer = below.mount("transport=dev", upper=False)
    union.check_lowers = False
    union.use_lower(0, layer)
    yield union, below
    below.daemon.kill(signal.SIGCONT)
    union.umount()
    below.umount()


# --- what it is used for ------------------------------------------------------------------------


@pytest.mark.parametrize("word,effect", [("auto", "dev"), ("dev", "dev"), ("uring", "uring")])
def test_status_says_what_is_in_effect(union, word, effect):
    m = union.mount(f"transport={word}")
    assert os.listdir(m) == []
    assert transport(m) == effect


def use_everything(m):
    """Each kind of request, small and large."""
    assert read(m / "lower/file") == b"low"
    with opened(m / "lower/file", os.O_WRONLY | os.O_APPEND) as fd:
        os.write(fd, b"er")
    assert read(m / "lower/file") == b"lower"
    data = random.Random(1).randbytes(3 * MIB + 123)
    with opened(m / "data", os.O_CREAT | os.O_RDWR) as fd:
        assert os.pwrite(fd, data, 0) == len(data)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        assert os.pread(fd, len(data), 0) == data
        lib.fallocate(fd, 0, len(data), 5000)
        os.ftruncate(fd, 2 * MIB)
        os.pwrite(fd, b"end", 4 * MIB)
        assert os.lseek(fd, 2 * MIB + 1, os.SEEK_DATA) <= 4 * MIB
        with mmap.mmap(fd, 4096) as mapped:
            mapped[:5] = b"MAPPE"
            mapped.flush()
        with opened(m / "copy", os.O_CREAT | os.O_RDWR) as to:
            assert os.copy_file_range(fd, to, MIB, 0, 0) == MIB
    assert read(m / "data")[:8] == b"MAPPE" + data[5:8]
    assert read(m / "copy")[5:] == data[5:MIB]
    for size in (0, 1, 100, 3000, 20 * 1024, 30 * 1024):
        try:
            os.setxattr(m / "data", "user.value", data[:size])
        except OSError as e:  # of some layers
            assert size > 4000 and e.errno in (errno.ENOSPC, errno.E2BIG), e
            continue
        assert os.getxattr(m / "data", "user.value") == data[:size]
    assert os.listxattr(m / "data") == ["user.value"]
    os.removexattr(m / "data", "user.value")
    target = "t/" * 2000
    os.symlink(target, m / "link")
    assert os.readlink(m / "link") == target
    names = [f"{i:04}" + "n" * 200 for i in range(1000)]
    os.mkdir(m / "dir")
    for name in names:
        os.mknod(m / "dir" / name)
    assert sorted(os.listdir(m / "dir")) == names
    assert sorted(e.name for e in os.scandir(m / "dir") if e.stat().st_size == 0) == names
    os.rename(m / "dir", m / "renamed")
    lib.renameat2(m / "renamed", m / "link", lib.RENAME_EXCHANGE)
    os.link(m / "copy", m / "hard")
    assert os.stat(m / "hard").st_nlink == 2
    with lib.raises(errno.EEXIST):
        os.mkdir(m / "data")
    with lib.raises(errno.ENOENT):
        os.stat(m / ("m" * 255))
    with lib.raises(errno.ENAMETOOLONG):
        os.stat(m / ("m" * 256))
    os.chmod(m / "data", 0o640)
    os.utime(m / "data", (1, 2))
    assert os.stat(m / "data").st_mtime == 2
    assert os.statvfs(m).f_namemax == 255
    for name in names[::3]:
        os.unlink(m / "link" / name)
    os.rmdir(mkdir(m / "empty"))


def test_every_kind_of_request(union):
    write(union.lower() / "lower/file", b"low")
    m = union.mount(URING)
    for cpu in sorted(os.sched_getaffinity(0)):
        in_child(lambda c=cpu: (os.sched_setaffinity(0, {c}), os.statvfs(m)))
    use_everything(m)
    assert transport(m) == "uring"
    seen = lib.tree(m)
    if lib.settings.can_kernel:
        union.remount("kernel", options="")
        lib.assert_same_tree(seen, lib.tree(m), "over the ring", "kernel")


@pytest.mark.root("it makes the namespace itself")
def test_every_kind_of_request_in_a_user_namespace(union):
    write(union.lower() / "lower/file", b"low")
    options = lib.layer_options(union.lowers, union.upper, union.work, URING)

    def inside():
        lib.enter_user_namespace(write_maps)
        done = run_plyfs("mount", "-o", options, union.point)
        assert (done.returncode, done.stderr) == (0, ""), done
        use_everything(union.point)
        effect = transport(union.point)
        lib.sys_umount(union.point)
        return effect

    union.check_work = False
    assert in_child(inside) == "uring"


def write_maps(pid):
    for kind in ("uid", "gid"):
        Path(f"/proc/{pid}/{kind}_map").write_text("0 0 65536")


@pytest.mark.parametrize("seed", range(2))
def test_concurrent_changes_in_own_directories(union, seed):
    lowers = [union.lower(0), union.lower(1)]
    models = [storm.make_layers(lowers, str(w)) for w in range(WORKERS)]
    union.mount(URING)
    workers = workers_for(union, models, seed, 150)
    for worker in workers:
        worker.start()
    failures = [w.failure() for w in workers if w.wait() != 0]
    assert not failures, failures
    assert transport(union.point) == "uring"
    for options in (URING, "transport=dev"):
        problems = check_all(union.point, models, workers, interrupted=False)
        assert not problems, "\n".join(problems)
        union.remount(options=options)


def test_forgotten_files_are_closed(union):
    """FORGET comes over /dev/fuse."""
    m = union.mount(URING)

    def deleted():
        return [what for what in union.daemon.fds().values() if "(deleted)" in what]

    with contextlib.ExitStack() as stack:
        for i in range(20):
            fd = stack.enter_context(opened(m / f"f{i}", os.O_CREAT | os.O_RDWR))
            os.write(fd, b"data")
            os.unlink(m / f"f{i}")
            assert os.pread(fd, 10, 0) == b"data"
        assert len(deleted()) >= 20
    wait_for(lambda: not deleted(), 10, "FORGETs")


# --- slow requests ------------------------------------------------------------------------------


def assert_others_served(m):
    """From every CPU: reads, changes, requests that wait."""

    def others(cpu):
        os.sched_setaffinity(0, {cpu})
        for i in range(20):
            os.statvfs(m)
            os.setxattr(m / "own", f"user.{cpu}", b"%d" % i)
            with opened(m / "own/file", os.O_CREAT | os.O_RDWR) as fd:
                os.write(fd, b"x" * 300000)
                os.fsync(fd)

    start = time.monotonic()
    for pid in [fork(others, cpu) for cpu in os.sched_getaffinity(0)]:
        assert ended(pid) == 0
    return time.monotonic() - start


@pytest.mark.parametrize("count", [1, 5, 60])
def test_stuck_requests_delay_no_others(stuck, count):
    """All of them on the CPU of those that are not to wait."""
    union, below = stuck
    m = union.mount(URING)
    mkdir(m / "own")
    write(m / "own/file")
    assert os.stat(m / "big").st_size == 32 * MIB
    cpu = min(os.sched_getaffinity(0))
    go_r, go_w = os.pipe()
    below.daemon.kill(signal.SIGSTOP)

    def look(i):
        os.sched_setaffinity(0, {cpu})
        os.close(go_w)
        os.read(go_r, 1)
        assert os.stat(m / f"low{i}").st_size == 100

    waiting = [fork(look, i) for i in range(count)]
    os.close(go_w)
    os.close(go_r)
    waits = connection(union.mounted) / "waiting"
    wait_for(lambda: int(waits.read_text()) >= count, 10, "all of them waiting")
    assert assert_others_served(m) < 10
    assert int(waits.read_text()) >= count
    below.daemon.kill(signal.SIGCONT)
    for pid in waiting:
        assert ended(pid) == 0


@pytest.mark.root("with io=cached it is not the open that copies up")
def test_interrupt_ends_a_copy_up(stuck):
    """While the layer does not answer: what comes of it then is not finished."""
    union, below = stuck
    m = union.mount(URING)
    with opened(m / "big", os.O_RDONLY) as fd:
        os.fstat(fd)
    below.daemon.kill(signal.SIGSTOP)
    pid = fork(lib.append, m / "big", b"x")
    waits = connection(union.mounted) / "waiting"
    wait_for(lambda: int(waits.read_text()) >= 1, 10, "the request")
    wait_for(lambda: state(pid) in "DS", 10, "its caller waiting")
    os.kill(pid, signal.SIGKILL)
    # it has told the kernel then, and waits for the answer whatever comes
    wait_for(lambda: state(pid) == "D", 10, "its signal")
    os.statvfs(m)
    below.daemon.kill(signal.SIGCONT)
    assert ended(pid) == -signal.SIGKILL
    assert not lib.exists(union.upper / "big")
    lib.append(m / "big", b"x")
    assert os.stat(union.upper / "big").st_size == 32 * MIB + 1


# --- the end --------------------------------------------------------------------------------------


class Busy:
    """Processes that use a mount until it fails."""

    def __init__(self, m, count=4):
        self.begun = mmap.mmap(-1, 4096)
        self.pids = [fork(self.work, m, w) for w in range(count)]
        wait_for(lambda: all(self.begun[:count]), 10, "work")

    def work(self, m, w):
        n = 0
        while True:
            write(m / f"w{w}" / f"f{n % 50}", b"x" * 5000)
            os.stat(m / f"w{w}")
            if n % 50 == 49:
                os.unlink(m / f"w{w}" / f"f{n % 50}")
            self.begun[w] = 1
            n += 1

    def ends(self):
        return {ended(pid) for pid in self.pids}


# EEXIST: a directory of which nobody can be asked whether it is one
GONE = {errno.EEXIST, errno.ENOTCONN, errno.ECONNABORTED, errno.ENOENT, errno.EIO, errno.ENODEV}


def test_busy_mount_is_detached_by_a_signal(union):
    m = union.mount(URING)
    busy = Busy(m)
    union.daemon.kill(signal.SIGTERM)
    assert union.daemon.wait() == 0
    union.mounted.live = False
    # they go on in the empty directory below, if the change does not come in the middle of a step
    for pid in busy.pids:
        os.kill(pid, signal.SIGKILL)
    assert busy.ends() <= {-signal.SIGKILL} | GONE
    assert lib.find_mount(m) is None
    lib.remove_tree(m)
    mkdir(m)
    union.mount(URING)


def test_open_file_keeps_a_detached_mount_for_a_second_signal(union):
    m = union.mount(URING)
    with contextlib.ExitStack() as stack:
        fd = os.open(m / "file", os.O_CREAT | os.O_RDWR)
        stack.enter_context(contextlib.suppress(OSError))  # of closing it
        stack.callback(os.close, fd)
        os.write(fd, b"data")
        os.fsync(fd)
        union.daemon.kill(signal.SIGTERM)
        wait_for(lambda: lib.find_mount(m) is None, 10, "the mount to be detached")
        os.write(fd, b"more")
        os.fsync(fd)
        assert union.daemon.alive()
        union.daemon.kill(signal.SIGTERM)
        assert union.daemon.wait() == 0
        with lib.raises(errno.ENOTCONN, errno.ECONNABORTED):
            os.fchmod(fd, 0o600)
    union.mounted.live = False
    assert read(union.upper / "file") == b"datamore"


@pytest.mark.root("aborting")
def test_abort_ends_clients_and_server(union):
    m = union.mount(URING)
    busy = Busy(m)
    lib.abort_connection(union.mounted.device)
    assert union.daemon.wait() != 0
    # it has detached the mount, and who saw no error goes on in the directory below
    for pid in busy.pids:
        os.kill(pid, signal.SIGKILL)
    assert busy.ends() <= {-signal.SIGKILL} | GONE
    union.mounted.force_down()
    union.check_work = False


@pytest.mark.root("umount -f")
def test_killed_server_leaves_no_client_behind(stuck):
    union, below = stuck
    m = union.mount(URING)
    assert os.stat(m / "low0").st_size == 100
    below.daemon.kill(signal.SIGSTOP)
    pid = fork(os.stat, m / "low1")
    waits = connection(union.mounted) / "waiting"
    wait_for(lambda: int(waits.read_text()) >= 1, 10, "the request")
    union.daemon.kill()
    below.daemon.kill(signal.SIGCONT)
    union.daemon.wait()
    union.mounted.live = False
    assert ended(pid) in GONE
    lib.sys_umount(m, 1)  # MNT_FORCE


# --- where it can't be had --------------------------------------------------------------------------


def mount_with_warning(union, path, value, expected):
    """Sets a file of the kernel, mounts, and uses the mount, which must be served by /dev/fuse."""
    options = lib.layer_options(union.lowers, union.upper, union.work, URING)
    log = union.base / "log"
    with setting(path, value):
        with open(log, "wb") as f:
            p = subprocess.Popen(
                [lib.settings.plyfs, "mount", "-f", "-o", options, union.point],
                stdin=subprocess.DEVNULL,
                stderr=f,
                env={**os.environ, **lib.settings.sanitizer_env},
            )
        try:
            wait_for(lambda: lib.find_mount(union.point), 20, "the mount")
            write(union.point / "file", b"data")
            assert transport(union.point) == "dev"
            lib.sys_umount(union.point)
            assert p.wait(20) == 0
        finally:
            p.kill()
            p.wait()
    text = log.read_text()
    assert expected in text and "requests come over /dev/fuse" in text, text
    assert read(union.upper / "file") == b"data"


@pytest.mark.root("setting the kernel's parameters")
def test_kernel_that_offers_none_is_served_over_dev_fuse(union):
    mount_with_warning(union, PARAMETER, "N", "enable_uring=1")


@pytest.mark.root("setting the kernel's parameters")
def test_io_uring_that_is_disabled_is_done_without(union):
    mount_with_warning(union, DISABLED, "2", "no io_uring to be had")


@pytest.mark.root("setting the kernel's parameters")
def test_mount_works_on_when_the_parameter_is_reset(union):
    m = union.mount(URING)
    write(m / "file", b"1")
    with setting(PARAMETER, "N"):
        write(m / "file2", b"2")
        assert transport(m) == "uring"


# --- cost -------------------------------------------------------------------------------------------


def test_idle_mount_keeps_little_memory(union):
    m = union.mount(URING)
    data = os.urandom(MIB)

    def fill(w):
        with opened(m / f"f{w}", os.O_CREAT | os.O_RDWR) as fd:
            for _ in range(8):
                os.write(fd, data)

    for pid in [fork(fill, w) for w in range(8)]:
        assert ended(pid) == 0
    limit = 12 * MIB if not lib.SLOW_BUILD else 1 << 40
    wait_for(lambda: union.daemon.rss() < limit, 15, "large buffers to be freed")
