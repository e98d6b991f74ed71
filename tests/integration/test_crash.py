# SPDX-License-Identifier: MIT
"""The daemon is killed at random points of a storm: the layers hold the tree before or after."""

import copy
import os
import random
import subprocess
import tempfile
import time

import plyfs_testlib as lib
import pytest
import storm
from plyfs_testlib import work_litter

WORKERS = 3
STEPS = 60


@pytest.fixture(scope="module")
def layers():
    """Two lower layers for all rounds; the models of each worker's part."""
    base = tempfile.mkdtemp(dir=lib.settings.tmpfs)
    lowers = [lib.mkdir(os.path.join(base, f"low{i}")) for i in range(2)]
    models = [storm.make_layers(lowers, str(w)) for w in range(WORKERS)]
    before = [lib.tree(path, layer=True) for path in lowers]
    yield lowers, models
    after = [lib.tree(path, layer=True) for path in lowers]
    for a, b in zip(before, after):
        lib.assert_same_tree(a, b, "lower before", "lower after")
    lib.remove_tree(base)


def one_round(union, models, seed, kill_after):
    """Storm, kill, remount, compare. Returns the problems found."""
    rng = random.Random(seed)
    workers = []
    for w, model in enumerate(models):
        steps = storm.make_plan(copy.deepcopy(model), seed * 10 + w, STEPS)
        workers.append(storm.Worker(union.point, steps))
    m = union.mount()
    mounted = union.mounted
    for worker in workers:
        worker.start()
    time.sleep(rng.random() * kill_after)
    if mounted.daemon:
        mounted.daemon.kill()
        mounted.daemon.wait()
        mounted.live = False
        for worker in workers:
            worker.wait()
        detach(m)
    else:
        for worker in workers:
            worker.kill()
        union.umount()
    union.mounts = []
    problems = []
    # the kernel first: nobody has repaired anything yet
    if lib.settings.can_kernel:
        kernel = lib.mount_kernel(union.lowers, union.upper, union.work, union.point)
        seen_by_kernel = lib.tree(union.point)
        kernel.umount()
    m = union.mount()
    for model, worker in zip(models, workers):
        problems += storm.check_worker(m, copy.deepcopy(model), worker, interrupted=True)
    seen = lib.tree(m)
    if lib.settings.can_kernel:
        lines = lib.tree_differences(seen_by_kernel, seen, "kernel", lib.settings.impl)
        problems += lines[:10]
    lib.write(m / "still-works", "x")
    union.umount()
    litter = work_litter(union.work)
    if litter:
        problems.append(f"litter in workdir after a remount: {litter}")
    return problems, sum(w.ended for w in workers)


def detach(point):
    if lib.settings.level == "user":
        subprocess.run(["fusermount3", "-uz", point], check=True)
    else:
        lib.sys_umount(point, lib.MNT_DETACH)


@pytest.mark.limit(400)
@pytest.mark.parametrize(
    "first,kills", [(0, 10), pytest.param(10, 190, marks=pytest.mark.slow)], ids=["10", "190"]
)
def test_killed_again_and_again(layers, new_union, scratch, first, kills):
    lowers, models = layers
    found, steps = [], 0
    for seed in range(first, first + kills):
        # on tmpfs the steps are quick; on disk the daemon dies mostly in an fsync
        on_disk = seed % 4 == 3
        base = tempfile.mkdtemp(dir=lib.settings.scratch if on_disk else lib.settings.tmpfs)
        union = new_union("u", base)
        union.check_lowers = union.check_kernel = False
        for i, path in enumerate(lowers):
            union.use_lower(i, path)
        union._snapshots = {path: None for path in lowers}
        problems, ended = one_round(union, models, seed, 0.12 if on_disk else 0.05)
        union.closed = True
        steps += ended
        if problems:
            found.append(f"seed {seed}:\n    " + "\n    ".join(problems))
        lib.remove_tree(base)
    assert not found, f"{len(found)} of {kills} rounds:\n" + "\n".join(found[:10])
    assert steps > kills, f"only {steps} steps were done: the daemon was killed too early"


@pytest.mark.plyfs_only("about the daemon")
def test_mount_of_a_killed_daemon_can_be_replaced(union):
    lib.write(union.lower() / "f", "low")
    m = union.mount()
    lib.append(m / "f", b"+")
    union.daemon.kill()
    union.daemon.wait()
    union.mounted.live = False
    with lib.raises(107, 103):
        os.stat(m / "f")
    detach(m)
    union.mounts = []
    union.mount()
    assert lib.read(m / "f") == b"low+"


@pytest.mark.plyfs_only("about the daemon")
def test_clients_of_a_killed_daemon_get_errors_and_do_not_hang(union):
    lib.write(union.lower() / "f", b"x" * 1000000)
    m = union.mount()
    fd = os.open(m / "f", os.O_RDWR)
    os.pread(fd, 10, 0)
    union.daemon.kill()
    union.daemon.wait()
    union.mounted.live = False
    for call in (
        lambda: os.pread(fd, 100, 900000),
        lambda: os.pwrite(fd, b"y", 0),
        lambda: os.fstat(fd),
        lambda: os.listdir(m),
        lambda: os.statvfs(m),
    ):
        try:
            call()
        except OSError as e:
            assert e.errno in (107, 103, 5), e
    try:
        os.close(fd)
    except OSError:
        pass
    detach(m)
    union.mounts = []
