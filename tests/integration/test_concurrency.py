# SPDX-License-Identifier: MIT
"""Several processes and threads at once: copy-ups, renames and data, with contents verified."""

import copy
import errno
import os
import random
import threading

import plyfs_testlib as lib
import pytest
import storm
from plyfs_testlib import SLOW_BUILD, append, mkdir, names, opened, read, write

WORKERS = 4


def run_processes(functions):
    """Each in a process of its own, all at once; fails when one fails."""
    pids = []
    for function in functions:
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                function()
                status = 0
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                os._exit(status)
        pids.append(pid)
    failed = [p for p in pids if os.waitpid(p, 0)[1]]
    assert not failed, f"{len(failed)} of {len(pids)} processes failed"


@pytest.mark.limit(120)
@pytest.mark.parametrize("seed", range(2 if SLOW_BUILD else 4))
def test_mixed_operations_in_own_directories(union, seed):
    lowers = [union.lower(0), union.lower(1)]
    models = [storm.make_layers(lowers, str(w)) for w in range(WORKERS)]
    m = union.mount()
    workers = []
    for w, model in enumerate(models):
        steps = storm.make_plan(copy.deepcopy(model), seed * 100 + w, 250)
        workers.append(storm.Worker(m, steps))
    for worker in workers:
        worker.start()
    failures = [w.failure() for w in workers if w.wait() != 0]
    assert not failures, failures
    for _ in range(2):
        problems = []
        for model, worker in zip(models, workers):
            problems += storm.check_worker(m, copy.deepcopy(model), worker, interrupted=False)
        assert not problems, "\n".join(problems)
        union.remount()


@pytest.mark.limit(120)
def test_same_directories_by_all(union):
    """Everyone copies up, renames and removes files of his own in directories shared by all."""
    per = 30
    for d in range(3):
        for w in range(WORKERS):
            for i in range(per):
                write(union.lower(i % 2) / f"d{d}" / f"w{w}-{i}", f"{d}/{w}/{i};" * 500)
    m = union.mount()

    def work(w):
        r = random.Random(w)
        for i in range(per):
            for d in range(3):
                path = m / f"d{d}" / f"w{w}-{i}"
                want = (f"{d}/{w}/{i};" * 500).encode()
                assert read(path) == want
                append(path, b"+")
                assert read(path) == want + b"+"
                to = m / f"d{r.randrange(3)}" / f"w{w}-{i}-moved-{d}"
                os.rename(path, to)
                assert not lib.exists(path)
                assert read(to) == want + b"+"
                if i % 3 == 0:
                    os.unlink(to)
                elif i % 3 == 1:
                    write(path, "again")
                    os.unlink(path)
                names(m / f"d{d}")

    run_processes([lambda w=w: work(w) for w in range(WORKERS)])
    left = sorted(n for d in range(3) for n in names(m / f"d{d}"))
    want = sorted(
        f"w{w}-{i}-moved-{d}"
        for w in range(WORKERS)
        for i in range(per)
        for d in range(3)
        if i % 3
    )
    assert left == want


@pytest.mark.limit(120)
def test_one_file_written_by_all_during_its_copy_up(union):
    """Each writes his own bytes of the same lower files at the same moment."""
    size = 256 * 1024
    for i in range(10):
        write(union.lower() / f"f{i}", b"\0" * size)
    m = union.mount()

    def work(w):
        for i in range(10):
            with opened(m / f"f{i}", os.O_RDWR) as fd:
                for k in range(w, 64, WORKERS):
                    os.pwrite(fd, bytes([w + 1]) * 4096, k * 4096)

    run_processes([lambda w=w: work(w) for w in range(WORKERS)])
    want = b"".join(bytes([k % WORKERS + 1]) * 4096 for k in range(64))
    for i in range(10):
        assert read(m / f"f{i}") == want
        assert read(union.upper / f"f{i}") == want


@pytest.mark.limit(120)
def test_contended_names(union):
    """All create, rename, exchange and remove the same few names: every errno is a sane one."""
    for i in range(4):
        write(union.lower() / "d" / f"n{i}", f"low{i}")
        write(union.lower() / "e" / f"n{i}", f"low{i}")
    m = union.mount()
    sane = {errno.ENOENT, errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.ENOTEMPTY, errno.EXDEV}

    def work(w):
        r = random.Random(w)
        for k in range(60 if SLOW_BUILD else 250):
            a, b = (m / r.choice("de") / f"n{r.randrange(6)}" for _ in range(2))
            try:
                what = r.randrange(9)
                if what == 0:
                    os.rename(a, b)
                elif what == 1:
                    lib.renameat2(a, b, lib.RENAME_EXCHANGE)
                elif what == 2:
                    os.unlink(a)
                elif what == 3:
                    with opened(a, os.O_CREAT | os.O_EXCL | os.O_WRONLY) as fd:
                        os.write(fd, b"made")
                elif what == 4:
                    os.link(a, b)
                elif what == 5:
                    data = read(a)
                    assert data[:3] in (b"low", b"mad", b"") and len(data) < 1000, data
                elif what == 6:
                    os.chmod(a, 0o600)
                elif what == 7:
                    lib.renameat2(a, b, lib.RENAME_NOREPLACE)
                else:
                    names(m / "d")
            except OSError as e:
                assert e.errno in sane, e

    run_processes([lambda w=w: work(w) for w in range(WORKERS)])
    for d in "de":
        for name in names(m / d):
            assert read(m / d / name)[:3] in (b"low", b"mad", b"")
            os.unlink(m / d / name)
        os.rmdir(m / d)
    assert names(m) == []


@pytest.mark.limit(120)
def test_directories_renamed_while_used(union):
    """One renames a tree to and fro; others work in it through fds and paths."""
    m = union.mount()
    for i in range(20):
        write(m / "tree/a/b" / f"f{i}", f"content{i}")
    stop = threading.Event()
    problems = []

    def rename():
        k = 0
        while not stop.is_set():
            os.rename(m / ("tree" if k % 2 == 0 else "moved"), m / ("moved" if k % 2 == 0 else "tree"))
            k += 1
        if k % 2:
            os.rename(m / "moved", m / "tree")

    def by_fd():
        with opened(m / "tree/a/b", os.O_RDONLY) as dirfd:
            ready.release()
            for k in range(300):
                i = k % 20
                fd = os.open(f"f{i}", os.O_RDWR, dir_fd=dirfd)
                try:
                    if os.pread(fd, 100, 0)[:8] != f"content{i}".encode()[:8]:
                        problems.append(f"f{i}")
                    os.fchmod(fd, 0o600 + k % 8)
                finally:
                    os.close(fd)
                os.rename(f"f{i}", f"g{i}", src_dir_fd=dirfd, dst_dir_fd=dirfd)
                os.rename(f"g{i}", f"f{i}", src_dir_fd=dirfd, dst_dir_fd=dirfd)

    def by_path():
        for k in range(300):
            for top in ("tree", "moved"):
                try:
                    data = read(m / top / "a/b/f3")
                    if data != b"content3":
                        problems.append(data)
                except FileNotFoundError:
                    pass

    def guarded(function):
        try:
            function()
        except BaseException as e:
            problems.append(repr(e))

    ready = threading.Semaphore(0)
    users = [threading.Thread(target=guarded, args=(f,)) for f in (by_fd, by_path)]
    users[0].start()
    ready.acquire()
    users[1].start()
    renamer = threading.Thread(target=guarded, args=(rename,))
    renamer.start()
    for t in users:
        t.join()
    stop.set()
    renamer.join()
    assert not problems, problems[:5]
    assert names(m / "tree/a/b") == sorted(f"f{i}" for i in range(20))


@pytest.mark.limit(120)
def test_deep_copy_up_of_the_same_parents(union):
    """All at once change something below the same lower directories."""
    for w in range(8):
        for i in range(10):
            write(union.lower() / f"a/b/c/d/e/w{w}" / f"f{i}", "x", mode=0o640)
    for path in ("a", "a/b", "a/b/c", "a/b/c/d"):
        os.chmod(union.lower() / path, 0o2750)
        os.setxattr(union.lower() / path, "user.mark", path.encode())
    m = union.mount()

    def work(w):
        for i in range(10):
            append(m / f"a/b/c/d/e/w{w}/f{i}", b"y")

    run_processes([lambda w=w: work(w) for w in range(8)])
    for path in ("a", "a/b", "a/b/c", "a/b/c/d"):
        assert oct(os.stat(union.upper / path).st_mode & 0o7777) == oct(0o2750)
        assert lib.xattr(union.upper / path, "user.mark") == path.encode()
    for w in range(8):
        for i in range(10):
            assert read(union.upper / f"a/b/c/d/e/w{w}/f{i}") == b"xy"


@pytest.mark.limit(120)
def test_readers_of_files_that_are_being_replaced(union):
    """Atomic replacement: a reader sees the old or the new file, whole, never neither."""
    first = b"0" * 50000
    write(union.lower() / "f", first)
    m = union.mount()
    stop = mkdir(union.base / "control") / "stop"

    def writer():
        for k in range(40 if SLOW_BUILD else 150):
            write(m / "tmp", bytes([48 + k % 10]) * 50000)
            os.rename(m / "tmp", m / "f")
        write(stop)

    def reader():
        while not stop.exists():
            data = read(m / "f")
            assert len(data) == 50000 and len(set(data)) == 1, (len(data), set(data))

    run_processes([writer, reader, reader, reader])


@pytest.mark.limit(120)
def test_readdir_during_changes(union):
    for i in range(200):
        write(union.lower() / "d" / f"stay{i}", "x")
    m = union.mount()
    stop = mkdir(union.base / "control") / "stop"
    want = {f"stay{i}" for i in range(200)}

    def changer():
        for k in range(60 if SLOW_BUILD else 200):
            write(m / "d" / f"new{k}", "x")
            os.rename(m / "d" / f"new{k}", m / "d" / f"moved{k}")
            os.unlink(m / "d" / f"moved{k}")
            os.chmod(m / "d" / f"stay{k % 200}", 0o600)
        write(stop)

    def lister():
        while not stop.exists():
            listed = lib.getdents_all(m / "d", 4096)
            missing = want - set(listed)
            assert not missing, sorted(missing)[:5]

    run_processes([changer, lister, lister])


@pytest.mark.limit(120)
def test_locks_exclude(union):
    """Four processes count with flock on a lower file which they copy up: no increment is lost."""
    import fcntl

    write(union.lower() / "counter", b"0")
    m = union.mount()
    rounds = 50 if SLOW_BUILD else 200

    def work():
        for _ in range(rounds):
            with opened(m / "counter", os.O_RDWR) as fd:
                fcntl.flock(fd, fcntl.LOCK_EX)
                n = int(os.pread(fd, 20, 0))
                os.pwrite(fd, b"%d" % (n + 1), 0)

    run_processes([work] * 4)
    assert read(m / "counter") == b"%d" % (4 * rounds)
