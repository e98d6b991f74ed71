# SPDX-License-Identifier: MIT
"""What the daemon needs: memory for each inode that the kernel knows, and open files."""

import os
import time

import plyfs_testlib as lib
import pytest
from plyfs_testlib import mkdir, opened, wait_for, write

pytestmark = pytest.mark.plyfs_only("about the daemon")

PER_INODE = 250  # bytes beside the name
MOST_FDS = 5000  # of the 20000 that the limit allows: a cache that does not grow with the tree


@pytest.fixture
def in_memory(new_union):
    union = new_union("u", where="tmpfs")
    union.check_lowers = union.check_kernel = False
    return union


def look_at_all(root):
    """stat of every object; the number of them."""
    n = 0
    stack = [os.fspath(root)]
    while stack:
        with os.scandir(stack.pop()) as it:
            for entry in it:
                entry.stat(follow_symlinks=False)
                n += 1
                if entry.is_dir(follow_symlinks=False):
                    stack.append(entry.path)
    return n


@pytest.mark.slow
@pytest.mark.root("drops the kernel's caches")
@pytest.mark.limit(400)
def test_memory_per_inode(in_memory, full):
    union = in_memory
    directories, files = (1000, 1000) if full else (200, 1000)
    name = "a-file-name-of-32-bytes-{:08}"
    for d in range(directories):
        path = mkdir(union.lower() / f"dir{d}")
        with opened(path, os.O_RDONLY) as fd:
            for i in range(files):
                os.mknod(name.format(i), dir_fd=fd)
    m = union.mount()
    os.stat(m / "dir0" / name.format(0))
    before = union.daemon.rss()
    count = look_at_all(m)
    assert count == directories * (files + 1)
    grown = union.daemon.rss() - before
    each = grown / count - len(name.format(0))
    assert each <= PER_INODE, f"{each:.0f} bytes beside the name for each of {count} inodes"

    def left():
        with open("/proc/sys/vm/drop_caches", "w") as f:
            f.write("2")
        return union.daemon.rss() - before

    # a fifth of it may stay: what the allocator keeps, and what is not freed in whole pages
    lowest = left()
    for _ in range(20):
        if lowest <= grown * 0.2 + lib.MIB:
            break
        time.sleep(0.25)
        lowest = min(lowest, left())
    assert lowest <= grown * 0.2 + lib.MIB, f"{lowest} of {grown} bytes stay after FORGET"
    # and it does not grow when that is repeated
    look_at_all(m)
    again = union.daemon.rss() - before
    assert again <= grown * 1.1 + lib.MIB


@pytest.mark.slow
@pytest.mark.root("drops the kernel's caches")
@pytest.mark.limit(120)
def test_memory_does_not_leak(in_memory):
    """The same work many times over: create, rename, link, xattrs, unlink, failed lookups."""
    union = in_memory
    for i in range(50):
        write(union.lower() / "low" / f"f{i}", "x")
    m = union.mount()

    def work(k):
        mkdir(m / "d")
        for i in range(300):
            path = m / "d" / f"f{i}"
            write(path, "x")
            os.rename(path, m / "d" / f"g{i}")
            os.link(m / "d" / f"g{i}", path)
            os.setxattr(path, "user.a", b"x" * 100)
            lib.exists(m / f"missing-{k}-{i}")
        os.listdir(m / "d")
        for i in range(300):
            os.unlink(m / "d" / f"f{i}")
            os.unlink(m / "d" / f"g{i}")
        os.rmdir(m / "d")

    def settled():
        with open("/proc/sys/vm/drop_caches", "w") as f:
            f.write("2")
        return union.daemon.rss()

    for k in range(5):
        work(k)
    before = min(settled() for _ in range(3))
    for k in range(5, 25):
        work(k)
    wait_for(lambda: settled() <= before + lib.MIB, 20, "memory as before")


@pytest.mark.slow
@pytest.mark.limit(120)
def test_open_files_on_a_tree_of_20000_directories(in_memory):
    union = in_memory
    for a in range(20):
        for b in range(30):
            for c in range(33):
                os.makedirs(union.lower() / f"a{a}/b{b}/c{c}")
    m = union.mount()
    most = 0
    stack = [os.fspath(m)]
    count = 0
    while stack:
        with os.scandir(stack.pop()) as it:
            stack += [e.path for e in it if e.is_dir(follow_symlinks=False)]
        count += 1
        if count % 500 == 0:
            most = max(most, len(union.daemon.fds()))
    assert count == 1 + 20 + 600 + 19800
    most = max(most, len(union.daemon.fds()))
    assert most <= MOST_FDS, f"{most} open files after {count} directories"
    # changing things all over does not open more
    for a in range(20):
        for b in range(30):
            write(m / f"a{a}/b{b}/c{b}/new", "x")
    assert len(union.daemon.fds()) <= MOST_FDS


def test_threads_are_bounded_and_go_away(union):
    """Fifty clients at once do not leave fifty threads."""
    for i in range(50):
        write(union.lower() / f"f{i}", b"x" * 100000)
    m = union.mount()
    pids = []
    for i in range(50):
        pid = os.fork()
        if pid == 0:
            try:
                for _ in range(5):
                    lib.append(m / f"f{i}", b"y")
                    with opened(m / f"f{i}", os.O_RDONLY) as fd:
                        os.fsync(fd)
            finally:
                os._exit(0)
        pids.append(pid)
    for pid in pids:
        os.waitpid(pid, 0)
    assert union.daemon.threads() <= 80
    wait_for(lambda: union.daemon.threads() <= 20, 40, "the end of idle threads")
