# SPDX-License-Identifier: MIT
"""Storms with redirect_dir=on and metacopy=on: many processes at once, and crashes."""

import contextlib
import errno
import os
import random
import time

import plyfs_testlib as lib
import pytest
import storm
from storm_crash import WORKERS, again_and_again, check_all, kept_layers, workers_for

pytestmark = pytest.mark.root("trusted xattrs hold the marks")
OPTIONS = ["redirect_dir=on", "metacopy=on", "metacopy=on,index=on"]
STEPS = 120


@pytest.mark.limit(120)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("seed", range(2 if lib.SLOW_BUILD else 4))
def test_concurrent_changes_in_own_directories(union, seed, options):
    lowers = [union.lower(0), union.lower(1)]
    models = [storm.make_layers(lowers, str(w)) for w in range(WORKERS)]
    union.mount(options)
    workers = workers_for(union, models, seed, 250, features=True)
    for worker in workers:
        worker.start()
    failures = [w.failure() for w in workers if w.wait() != 0]
    assert not failures, failures
    for impl in (None, None, "kernel", None):
        problems = check_all(union.point, models, workers, interrupted=False)
        assert not problems, "\n".join(problems)
        union.remount(impl)


@pytest.fixture(scope="module")
def layers():
    with kept_layers() as kept:
        yield kept


@pytest.mark.limit(400)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(
    "first,kills",
    [(0, 8), pytest.param(10, 90 if lib.LONG else 25, marks=pytest.mark.slow)],
    ids=["few", "many"],
)
def test_killed_again_and_again(layers, new_union, first, kills, options):
    seeds = range(first, first + kills)
    again_and_again(layers, new_union, seeds, (0.08, 0.15), STEPS, options, features=True)


# --- the same objects for all -----------------------------------------------------------------------

SECONDS = 3
FORGIVEN = {errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY, errno.EINVAL, errno.ENOTDIR}


def all_at_once(jobs, seconds=SECONDS, forgiven=FORGIVEN):
    """Each job, a function of a random generator, again and again in a process of its own."""
    end = time.monotonic() + seconds

    def forever(job, seed):
        rng = random.Random(seed)
        n = 0
        while time.monotonic() < end:
            try:
                job(rng)
                n += 1
            except OSError as e:
                assert e.errno in forgiven, f"{job.__name__}: {e!r}"
        return n

    done = run_processes([lambda j=j, s=s: forever(j, s) for s, j in enumerate(jobs)])
    for job, n in zip(jobs, done):
        assert n > 0, f"{job.__name__} never succeeded"


def run_processes(functions):
    """Each in a process of its own, all at once: what they return, small numbers."""
    running = []
    for function in functions:
        r, w = os.pipe()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.write(w, str(function()).encode())
                status = 0
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                os._exit(status)
        os.close(w)
        running.append((pid, r))
    results, failed = [], 0
    for pid, r in running:
        with open(r, "rb") as f:
            results.append(int(f.read() or 0))
        failed += os.waitpid(pid, 0)[1] != 0
    assert not failed, f"{failed} of {len(running)} processes failed"
    return results


def drop_caches(rng):
    time.sleep(rng.random() * 0.05)
    with open("/proc/sys/vm/drop_caches", "w") as f:
        f.write("2")


def same_everywhere(union, options):
    here = lib.tree(union.point)
    for impl in (None, "kernel"):
        union.remount(impl)
        lib.assert_same_tree(here, lib.tree(union.point), "before", str(impl))
    union.remount("plyfs" if lib.settings.impl == "plyfs" else None)
    return here


@pytest.mark.limit(120)
@pytest.mark.parametrize("options", OPTIONS)
def test_one_merged_tree_moved_by_all(union, options):
    """Two merged trees wander about while others look, list, write and remove inside."""
    for n in range(2):
        for top in ("a", "b"):
            for sub in ("x", "y"):
                for f in range(6):
                    if (f + n) % 2:
                        data = f"{top}/{sub}/{f}/{n};" * 900
                        lib.write(union.lower(n) / top / sub / f"f{f}", data)
                lib.mkdir(union.lower(n) / top / sub / "deep" / f"only{n}" / "deeper")
    lib.mkdir(union.lower() / "p" / "q")
    m = union.mount(options)
    places = ["a", "b", "p/a", "p/q/b", "p/q/c"]
    whole = {f"{t}/{s}/{f}/" for t in "ab" for s in "xy" for f in range(6)}

    def some(rng):
        place = rng.choice(places)
        return m / place / rng.choice(["x", "y", "z"])

    def move(rng):
        os.rename(m / rng.choice(places), m / rng.choice(places))

    def exchange(rng):
        lib.renameat2(m / rng.choice(places), m / rng.choice(places), lib.RENAME_EXCHANGE)

    def move_inner(rng):
        os.rename(some(rng), some(rng))

    def look(rng):
        os.stat(some(rng) / f"f{rng.randrange(6)}")

    def list_all(rng):
        with os.scandir(m / rng.choice(places)) as top:
            for sub in top:
                with os.scandir(sub) as it:
                    found = [e.name for e in it if e.inode()]
                    assert len(found) == len(set(found)), found

    def read(rng):
        data = lib.read(some(rng) / f"f{rng.randrange(6)}")
        unit = data.split(b";", 1)[0] + b";"
        assert unit[:6].decode() in whole and data == unit * 900, data[:40]

    def chmod(rng):
        os.chmod(some(rng) / f"f{rng.randrange(6)}", rng.choice([0o600, 0o644]))

    def write(rng):
        path = some(rng) / f"f{rng.randrange(6)}"
        with lib.opened(path, os.O_RDWR) as fd:
            start = os.pread(fd, 8, 0)
            os.pwrite(fd, start, 0)

    def rename_file(rng):
        old, new = (some(rng) / f"f{rng.randrange(9)}" for _ in range(2))
        lib.renameat2(old, new, lib.RENAME_NOREPLACE)

    def make(rng):
        os.mkdir(some(rng) / "deep" / f"new{rng.randrange(3)}")

    def remove(rng):
        os.rmdir(some(rng) / "deep" / f"new{rng.randrange(3)}")

    def copy_up_deep(rng):
        os.chmod(some(rng) / "deep" / f"only{rng.randrange(2)}" / "deeper", 0o755)

    def hold(rng):
        """An open directory stays what it is wherever it goes."""
        fd = os.open(some(rng), os.O_RDONLY | os.O_DIRECTORY)
        try:
            for _ in range(5):
                with contextlib.suppress(FileNotFoundError):
                    os.stat("deep", dir_fd=fd)
                os.listdir(fd)
        finally:
            os.close(fd)

    numbers = {os.stat(m / t / s).st_ino for t in "ab" for s in "xy"}
    jobs = [move, exchange, move_inner, look, list_all, read, chmod, write, rename_file, make]
    jobs += [remove, copy_up_deep, hold, drop_caches]
    all_at_once(jobs)
    tree = same_everywhere(union, options)
    files = [name for name in tree if os.path.basename(name).startswith("f")]
    assert len(files) == 24, "every file is still there, once"
    found = {os.lstat(m / n).st_ino for n in tree if os.path.basename(n) in ("x", "y", "z")}
    assert numbers == found


@pytest.mark.limit(120)
@pytest.mark.parametrize("options", OPTIONS[1:])
def test_metacopies_changed_by_all(union, options):
    """Whatever happens to them at once, each byte is the old or a written one."""
    size = 600_000
    names = [f"d{d}/f{f}" for d in range(2) for f in range(3)]
    for n in names:
        lib.write(union.lower() / n, b"a" * size)
    os.link(union.lower() / "d0/f0", union.lower() / "d1/hard")
    m = union.mount(options)
    places = [*names, "d1/hard", "g", "d0/h"]

    def any_of(rng):
        return m / rng.choice(places)

    def chmod(rng):
        os.chmod(any_of(rng), rng.choice([0o600, 0o644, 0]))

    def touch(rng):
        os.utime(any_of(rng), ns=(1, rng.randrange(1 << 40)))

    def mark(rng):
        os.setxattr(any_of(rng), "user.n", b"%d" % rng.randrange(10))

    def write(rng):
        with lib.opened(any_of(rng), os.O_WRONLY) as fd:
            os.pwrite(fd, b"b" * 5000, rng.randrange(100) * 5000)

    def read(rng):
        data = lib.read(any_of(rng))
        assert set(data) <= set(b"ab\0"), set(data)

    def hold(rng):
        with lib.opened(any_of(rng), os.O_RDONLY) as fd:
            for _ in range(5):
                st = os.fstat(fd)
                data = os.pread(fd, 5000, rng.randrange(max(1, st.st_size)))
                assert set(data) <= set(b"ab\0"), set(data)

    def cut(rng):
        os.truncate(any_of(rng), rng.choice([0, 1, 5000, size // 2, size, size + 5000]))

    def rename(rng):
        os.rename(any_of(rng), any_of(rng))

    def exchange(rng):
        lib.renameat2(any_of(rng), any_of(rng), lib.RENAME_EXCHANGE)

    def link(rng):
        os.link(any_of(rng), any_of(rng))

    def unlink(rng):
        if rng.random() < 0.1:
            os.unlink(any_of(rng))
        else:
            time.sleep(0.002)

    def again(rng):
        path = any_of(rng)
        with lib.opened(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as fd:
            os.pwrite(fd, b"b" * size, 0)

    def allocate(rng):
        with lib.opened(any_of(rng), os.O_RDWR) as fd:
            lib.fallocate(fd, lib.FALLOC_KEEP_SIZE | lib.FALLOC_PUNCH_HOLE, 4096, 8192)

    jobs = [chmod, touch, mark, write, write, read, hold, cut, rename, exchange, link, unlink]
    all_at_once([*jobs, again, allocate, drop_caches])
    tree = same_everywhere(union, options)
    assert tree
