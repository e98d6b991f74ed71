# SPDX-License-Identifier: MIT
"""A long copy-up delays nobody else, and ends when the one who wanted it is killed."""

import os
import signal
import tempfile
import threading
import time
from pathlib import Path

import plyfs_testlib as lib
import pytest
from plyfs_testlib import GIB, MIB, append, names, opened, wait_for, write

pytestmark = [pytest.mark.slow, pytest.mark.limit(120)]

WORST = 0.5  # seconds an unrelated request may take while two processors are busy with a copy


def available_memory():
    for line in lib.read("/proc/meminfo").decode().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


@pytest.fixture(scope="module")
def big_lower():
    """A lower layer with a file of 2 GiB, or 1 GiB where memory is short, and two of 512 MiB."""
    if available_memory() < 4 * GIB:
        pytest.skip("not enough memory for a file of 1 GiB twice")
    layer = Path(tempfile.mkdtemp(dir=lib.settings.tmpfs))
    block = bytes(4 * MIB)
    for name, size in {
        "big": 2 * GIB if available_memory() > 8 * GIB else GIB,
        "medium": 512 * MIB,
        "medium2": 512 * MIB,
    }.items():
        with opened(layer / name, os.O_CREAT | os.O_WRONLY) as fd:
            for _ in range(size // len(block)):
                os.write(fd, block)
    for i in range(200):
        write(layer / f"d{i % 10}" / f"f{i}", str(i))
    yield layer
    lib.remove_tree(layer)


@pytest.fixture
def big(big_lower, new_union):
    """A union on tmpfs over it."""
    union = new_union("u", where="tmpfs")
    union.use_lower(0, big_lower)
    return union


def start(function, *args):
    pid = os.fork()
    if pid == 0:
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            function(*args)
            os._exit(0)
        except OSError:
            os._exit(1)
        finally:
            os._exit(2)
    return pid


def used(path):
    s = os.statvfs(path)
    return (s.f_blocks - s.f_bfree) * s.f_frsize


def test_copy_up_of_2_gib_delays_no_other_request(big):
    union, size = big, os.stat(big.lower() / "big").st_size
    m = union.mount()
    before = used(union.base)
    worst, calls = {}, 0

    def timed(what, call):
        begin = time.monotonic()
        call()
        worst[what] = max(worst.get(what, 0), time.monotonic() - begin)

    pid = start(append, m / "big", b"x")
    done = False
    while not done:
        i = calls % 200
        timed("lookup", lambda: os.stat(m / f"d{i % 10}" / f"f{i}"))
        timed("lookup of a missing name", lambda: lib.exists(m / f"d{i % 10}" / f"missing{calls}"))
        timed("read", lambda: lib.read(m / f"d{i % 10}" / f"f{i}"))
        timed("readdir", lambda: names(m / f"d{i % 10}"))
        timed("create", lambda: write(m / f"new{calls}", "x"))
        timed("copy-up of another file", lambda: os.chmod(m / f"d{i % 10}" / f"f{i}", 0o640))
        timed("rename", lambda: os.rename(m / f"new{calls}", m / f"d0/moved{calls}"))
        timed("stat of the file itself", lambda: os.stat(m / "big"))
        timed("statfs", lambda: os.statvfs(m))
        calls += 1
        done = os.waitpid(pid, os.WNOHANG)[0] == pid
    assert os.stat(union.upper / "big").st_size == size + 1
    assert used(union.base) - before > size * 0.9
    assert calls > 2, "the copy was too short to measure anything"
    slow = {k: round(v, 3) for k, v in worst.items() if v > WORST}
    assert not slow, f"slow while copying: {slow}"


def test_reading_a_file_while_it_is_copied_up(big):
    """Readers of the same file do not wait for the whole copy either."""
    union = big
    m = union.mount()
    with opened(m / "medium", os.O_RDONLY) as fd:
        pid = start(append, m / "medium", b"x")
        worst, done = 0, False
        while not done:
            begin = time.monotonic()
            assert os.pread(fd, 4096, 400 * MIB) == bytes(4096)
            worst = max(worst, time.monotonic() - begin)
            done = os.waitpid(pid, os.WNOHANG)[0] == pid
    assert worst < WORST


def test_killed_process_ends_its_copy_up(big):
    """SIGKILL in the middle: the process goes at once, the space comes back, workdir is clean."""
    union = big
    m = union.mount()
    before = used(union.base)
    for _ in range(3):
        pid = start(append, m / "medium", b"x")
        wait_for(lambda: used(union.base) > before + 32 * MIB, 30, "the beginning of the copy")
        os.kill(pid, signal.SIGKILL)
        begin = time.monotonic()
        os.waitpid(pid, 0)
        assert time.monotonic() - begin < 2, "the process did not die at once"
        wait_for(lambda: used(union.base) < before + 16 * MIB, 10, "the space of the aborted copy")
        assert not lib.work_litter(union.work)
        assert not lib.exists(union.upper / "medium")
        assert os.stat(m / "medium").st_size == 512 * MIB
    # and once it is wanted again, it works
    append(m / "medium", b"x")
    assert os.stat(m / "medium").st_size == 512 * MIB + 1


def test_other_signals_do_not_disturb_a_copy_up(big):
    """A handler that runs in the middle of write(2) does not make it fail."""
    union = big
    m = union.mount()

    def interrupted():
        signal.signal(signal.SIGUSR1, lambda *_: None)
        append(m / "medium", b"x")

    pid = start(interrupted)
    for _ in range(3):
        time.sleep(0.05)
        os.kill(pid, signal.SIGUSR1)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        # the signal came before its handler was in place
        assert os.WTERMSIG(status) == signal.SIGUSR1
    else:
        # EINTR is what the kernel's overlayfs may answer as well; never half a file
        assert os.waitstatus_to_exitcode(status) in (0, 1)
    assert os.stat(m / "medium").st_size in (512 * MIB, 512 * MIB + 1)
    assert not lib.work_litter(union.work)


def test_two_large_copy_ups_at_once(big):
    union = big
    m = union.mount()
    begin = time.monotonic()
    threads = [threading.Thread(target=append, args=(m / n, b"x")) for n in ("medium", "medium2")]
    for t in threads:
        t.start()
    worst = 0
    while any(t.is_alive() for t in threads):
        at = time.monotonic()
        os.stat(m / f"d{int(at * 1000) % 10}")
        worst = max(worst, time.monotonic() - at)
    for t in threads:
        t.join()
    assert os.stat(m / "medium").st_size == os.stat(m / "medium2").st_size == 512 * MIB + 1
    assert worst < WORST, f"{worst:.3f} s of {time.monotonic() - begin:.1f} s"
