# SPDX-License-Identifier: MIT
"""The data of a metacopy is fetched, and something comes in between."""

import errno
import os
import signal
import threading

import plyfs_testlib as lib
import pytest
from plyfs_testlib import MIB, opened, raises, read, write

pytestmark = [
    pytest.mark.root("trusted xattrs hold the marks"),
    pytest.mark.plyfs_only("the kernel does not undo what it began"),
]
ON = "metacopy=on"
OLD = 1_000_000_000_000_000_000


def is_metacopy(union, name):
    return union.overlay_xattr(union.upper / name, "metacopy") is not None


def add_metacopy(union, m, name="f"):
    os.chmod(m / name, 0o4711)
    os.setxattr(m / name, lib.CAPABILITY, lib.CAP_NET_RAW)
    os.utime(m / name, ns=(OLD, OLD))
    assert is_metacopy(union, name)


def assert_untouched(union, m, data, name="f", capability=True):
    st = os.stat(m / name)
    assert is_metacopy(union, name)
    assert (st.st_size, st.st_mtime_ns, st.st_mode & 0o7777) == (len(data), OLD, 0o4711)
    if capability:
        assert os.getxattr(m / name, lib.CAPABILITY) == lib.CAP_NET_RAW
    assert read(m / name) == data


TRIES = {
    "open": lambda path: os.close(os.open(path, os.O_RDWR)),
    "cut": lambda path: os.truncate(path, 3 * MIB),
    "lengthen": lambda path: os.truncate(path, 5 * MIB),
}


@pytest.mark.parametrize("attempt", TRIES)
def test_no_room_for_the_data(scratch, new_union, attempt):
    data = os.urandom(4 * MIB)
    with lib.tmpfs(scratch, size="3M") as small:
        union = new_union("u", base=scratch)
        write(union.lower() / "f", data)
        union.upper, union.work = small / "upper", small / "work"
        union.upper.mkdir()
        union.work.mkdir()
        m = union.mount(ON)
        write(m / "filler", b"x" * MIB)
        add_metacopy(union, m)
        for _ in range(2):
            with raises(errno.ENOSPC):
                TRIES[attempt](m / "f")
            # truncate(2) removes it before it asks
            assert_untouched(union, m, data, capability=attempt == "open")
            assert lib.blocks(union.upper / "f") < 65536, "what was begun takes no room"
        os.truncate(m / "f", 1000)
        assert read(m / "f") == data[:1000]
        union.close()


def slow_metacopy(union, new_union, size):
    """A file whose data has far to go: from memory to a disk."""
    lower = new_union("memory", where="tmpfs").lower()
    union.use_lower(0, lower)
    data = os.urandom(MIB) * (size // MIB)
    write(lower / "f", data)
    m = union.mount(ON)
    add_metacopy(union, m)
    return m, data


def wait_for_data(union):
    lib.wait_for(lambda: lib.blocks(union.upper / "f") > 65536, 20, "the data to arrive")


def test_caller_is_killed(union, new_union):
    m, data = slow_metacopy(union, new_union, 96 * MIB)
    pid = os.fork()
    if pid == 0:
        os.open(m / "f", os.O_RDWR)
        os._exit(0)
    wait_for_data(union)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    with opened(m / "f", os.O_RDONLY):  # what the daemon does for the dead may take its time
        lib.wait_for(
            lambda: not is_metacopy(union, "f") or lib.blocks(union.upper / "f") < 65536,
            20,
            "the end of the copy",
        )
    if is_metacopy(union, "f"):
        lib.wait_for(lambda: os.stat(union.upper / "f").st_mtime_ns == OLD, 5, "the old time")
        assert_untouched(union, m, data)
    lib.append(m / "f", b"!")
    assert read(m / "f") == data + b"!"


CHANGES = {
    "mode": (lambda p: os.chmod(p, 0o600), lambda p: os.stat(p).st_mode & 0o7777 == 0o600),
    "times": (
        lambda p: os.utime(p, ns=(5, 7)),
        lambda p: (os.stat(p).st_atime_ns, os.stat(p).st_mtime_ns) == (5, 7),
    ),
    "capability": (
        lambda p: os.removexattr(p, lib.CAPABILITY),
        lambda p: lib.xattr(p, lib.CAPABILITY) is None,
    ),
    "owner": (
        lambda p: os.chown(p, 1, 1),
        lambda p: lib.xattr(p, lib.CAPABILITY) is None and os.stat(p).st_mode & 0o7777 == 0o711,
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_attributes_change_meanwhile(union, new_union, change):
    """What is put back after the data came is not older than what somebody set meanwhile."""
    m, data = slow_metacopy(union, new_union, 48 * MIB)
    apply, holds = CHANGES[change]
    opener = threading.Thread(target=TRIES["open"], args=(m / "f",))
    opener.start()
    wait_for_data(union)
    early = is_metacopy(union, "f")
    apply(m / "f")
    opener.join()
    assert early, "the data came too fast"
    assert holds(m / "f")
    union.remount()
    assert not is_metacopy(union, "f")
    assert holds(m / "f")
    assert read(m / "f") == data
