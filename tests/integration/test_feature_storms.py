# SPDX-License-Identifier: MIT
"""Storms with redirect_dir=on and metacopy=on: many processes at once, and crashes."""

import copy
import os
import random
import tempfile
import time

import plyfs_testlib as lib
import pytest
import storm
from test_crash import detach

pytestmark = pytest.mark.root("trusted xattrs hold the marks")
SLOW_BUILD = bool(os.environ.get("PLYFS_SLOW_BUILD"))
OPTIONS = ["redirect_dir=on", "metacopy=on", "metacopy=on,index=on"]
WORKERS = 3
STEPS = 120


def workers_for(union, models, seed, steps):
    return [
        storm.Worker(
            union.point,
            storm.make_plan(copy.deepcopy(model), seed * 100 + w, steps, features=True),
        )
        for w, model in enumerate(models)
    ]


def check_all(m, models, workers, interrupted):
    problems = []
    for model, worker in zip(models, workers):
        problems += storm.check_worker(m, copy.deepcopy(model), worker, interrupted)
    return problems


@pytest.mark.limit(120)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("seed", range(2 if SLOW_BUILD else 4))
def test_concurrent_changes_in_own_directories(union, seed, options):
    lowers = [union.lower(0), union.lower(1)]
    models = [storm.make_layers(lowers, str(w)) for w in range(WORKERS)]
    union.mount(options)
    workers = workers_for(union, models, seed, 250)
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


def one_round(union, models, seed, kill_after, options):
    """Storm, kill, mount with the kernel and with plyfs. Returns the problems, and the steps."""
    workers = workers_for(union, models, seed, STEPS)
    m = union.mount(options)
    mounted = union.mounted
    for worker in workers:
        worker.start()
    time.sleep(random.Random(seed).random() * kill_after)
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
    # the kernel first: nobody has repaired anything yet
    kernel = lib.mount_kernel(union.lowers, union.upper, union.work, union.point, options)
    seen_by_kernel = lib.tree(union.point)
    problems = [f"kernel: {p}" for p in check_all(union.point, models, workers, True)]
    kernel.umount()
    m = union.mount(options)
    problems += check_all(m, models, workers, True)
    problems += lib.tree_differences(seen_by_kernel, lib.tree(m), "kernel", "plyfs")[:10]
    lib.write(m / "still-works", "x")
    union.umount()
    litter = lib.work_litter(union.work)
    if litter and "index" not in options:
        problems.append(f"litter in workdir after a remount: {litter}")
    return problems, sum(w.ended for w in workers)


@pytest.mark.limit(400)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(
    "first,kills", [(0, 8), pytest.param(10, 90, marks=pytest.mark.slow)], ids=["8", "90"]
)
def test_killed_again_and_again(layers, new_union, first, kills, options):
    lowers, models = layers
    found, steps = [], 0
    for seed in range(first, first + kills):
        on_disk = seed % 4 == 3
        base = tempfile.mkdtemp(dir=lib.settings.scratch if on_disk else lib.settings.tmpfs)
        union = new_union("u", base)
        union.check_lowers = union.check_kernel = False
        for i, path in enumerate(lowers):
            union.use_lower(i, path)
        union._snapshots = {path: None for path in lowers}
        problems, ended = one_round(union, models, seed, 0.15 if on_disk else 0.08, options)
        union.closed = True
        steps += ended
        if problems:
            found.append(f"seed {seed}:\n    " + "\n    ".join(problems))
        lib.remove_tree(base)
    assert not found, f"{len(found)} of {kills} rounds:\n" + "\n".join(found[:10])
    assert steps > kills, f"only {steps} steps were done: the daemon was killed too early"
