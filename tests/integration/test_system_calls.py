# SPDX-License-Identifier: MIT
"""How many system calls the server makes on the layers for one operation of a client.

Counted are the calls of all its threads but those that carry requests, wake threads, or speak with
the kernel of open files. The bounds hold for everything that the operation asks for, the kernel's
lookups included; what happens once for a directory or a mount is let pass.
"""

import collections
import contextlib
import os
import re
import signal

import crash
import plyfs_testlib as lib
import pytest
from plyfs_testlib import append, mkdir, write

pytestmark = [
    pytest.mark.plyfs_only("counts our calls"),
    pytest.mark.root("which requests come depends on what the server may"),
    pytest.mark.disk("a directory of tmpfs grows with each name, of which its users are told"),
]

COUNT = 16  # operations
ONCE = 8  # calls that are made once, for a directory or a mount
NOT_ON_LAYERS = re.compile(
    r"read|readv|write|writev|ioctl|futex|timerfd_settime|p?poll|epoll_\w+|io_uring_\w+|sched_\w+|m(un)?map|"
    r"m(advise|protect)|brk|clone3?|rseq|set_robust_list|rt_sig\w+|gettid|exit|prctl|tgkill|"
    r"(clock_)?nanosleep|restart_syscall"
)
# without file_getattr(2) flags are read by open, ioctl and close
OLDER = 2 * (tuple(int(n) for n in re.findall(r"\d+", os.uname().release)[:2]) < (6, 17))


def files(layer):
    for i in range(COUNT):
        write(layer / f"d/{i}", "x")


def directories(layer):
    for i in range(COUNT):
        mkdir(layer / f"d/{i}")


def whiteouts(layer):
    mkdir(layer / "d")
    for i in range(COUNT):
        os.mknod(layer / f"d/{i}", 0o020000, 0)


def directory(layer):
    mkdir(layer / "d")


def both(layer):
    files(layer)
    for i in range(COUNT):
        write(layer / f"d/to{i}", "y")


def create(path):
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o640))


def read(path):
    fd = os.open(path, os.O_RDONLY)
    os.read(fd, 100)
    os.close(fd)


def rename(path):
    os.rename(path, path.parent / f"to{path.name}")


def link(path):
    os.link(path, path.parent / f"to{path.name}")


# what it is, in upper, in lower, the operation, its calls at most, and the options of the mount
CASES = [
    # mknod(2) or openat(2) and one statx(2), besides what the questions of the kernel before cost,
    # and what it takes to hand the file itself to the kernel (O_PATH; the rights of who opens it)
    ("create", directory, None, create, 6, ""),
    ("create-in-merged", directory, directory, create, 6, ""),
    ("create-over-whiteout", whiteouts, files, create, 11, ""),
    ("mkdir", directory, None, os.mkdir, 4, ""),
    ("mkfifo", directory, None, os.mkfifo, 4, ""),
    ("symlink", directory, None, lambda path: os.symlink("target", path), 4, ""),
    ("link", files, None, link, 4, ""),
    ("unlink", files, None, os.unlink, 4, ""),
    ("unlink-of-lower", directory, files, os.unlink, 4, ""),
    ("unlink-of-both", files, files, os.unlink, 6, ""),
    ("rmdir", directories, None, os.rmdir, 4, ""),
    ("rename", files, None, rename, 3, ""),
    ("rename-in-merged", files, directory, rename, 5, ""),
    ("rename-over", both, None, rename, 6, ""),
    ("chmod", files, None, lambda path: os.chmod(path, 0o600), 2, ""),
    ("utimens", files, None, lambda path: os.utime(path, (1, 1)), 2, ""),
    ("setxattr", files, None, lambda path: os.setxattr(path, "user.x", b"1"), 1, ""),
    ("append", files, None, lambda path: append(path, b"y"), 6, ""),
    ("open-read-close", files, None, read, 5, ""),
    ("open-read-close-of-lower", directory, files, read, 4, ""),
    ("chmod-of-lower", directory, files, lambda path: os.chmod(path, 0o600), 18 + OLDER, ""),
    ("append-to-lower", directory, files, lambda path: append(path, b"y"), 22 + OLDER, ""),
    ("rename-of-lower", directory, files, rename, 20 + OLDER, ""),
    ("chmod-of-lower-metacopy", directory, files, lambda p: os.chmod(p, 0o600), 16 + OLDER, "metacopy=on"),
    ("rename-of-lower-directory", directory, directories, rename, 17 + OLDER, "redirect_dir=on"),
]


@contextlib.contextmanager
def counted(daemon, log):
    """The calls that the server makes meanwhile, by name."""
    calls = collections.Counter()
    tracer = crash.trace(daemon, ["-o", str(log)])
    try:
        yield calls
    finally:
        tracer.send_signal(signal.SIGINT)
        tracer.wait(10)
        tracer.stderr.close()
    for line in log.read_text(errors="replace").splitlines():
        call = re.match(r"\d+ +(\w+)\(", line)
        if call and not NOT_ON_LAYERS.fullmatch(call[1]):
            calls[call[1]] += 1


@pytest.mark.parametrize(
    "upper, lower, operation, bound, options", [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)
def test_calls_of(union, upper, lower, operation, bound, options):
    upper(union.upper)
    if lower:
        lower(union.lower())
    union.lower()
    m = union.mount(options)
    for i in range(COUNT):  # what the kernel knows already it does not look up
        with contextlib.suppress(FileNotFoundError):
            os.lstat(m / f"d/{i}")
    with counted(union.daemon, union.base / "calls") as calls:
        for i in range(COUNT):
            operation(m / f"d/{i}")
    average = (sum(calls.values()) - ONCE) / COUNT
    assert average <= bound, f"{sum(calls.values())} calls for {COUNT} operations: {calls}"
    assert sum(calls.values()) >= COUNT, "nothing was counted"
