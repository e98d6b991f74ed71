# SPDX-License-Identifier: MIT
"""Storms (storm.py) that end with a SIGKILL of the server: the layers hold the tree before or after."""

import contextlib
import copy
import os
import random
import subprocess
import tempfile
import time

import plyfs_testlib as lib
import storm

WORKERS = 3


@contextlib.contextmanager
def kept_layers():
    """Two lower layers for many rounds, which stay as they are; the models of each worker's part."""
    base = tempfile.mkdtemp(dir=lib.settings.tmpfs)
    lowers = [lib.mkdir(os.path.join(base, f"low{i}")) for i in range(2)]
    models = [storm.make_layers(lowers, str(w)) for w in range(WORKERS)]
    before = [lib.tree(path, layer=True) for path in lowers]
    yield lowers, models
    after = [lib.tree(path, layer=True) for path in lowers]
    for a, b in zip(before, after):
        lib.assert_same_tree(a, b, "lower before", "lower after")
    lib.remove_tree(base)


def workers_for(union, models, seed, steps, features=False):
    return [
        storm.Worker(
            union.point,
            storm.make_plan(copy.deepcopy(model), seed * 100 + w, steps, features=features),
        )
        for w, model in enumerate(models)
    ]


def check_all(m, models, workers, interrupted):
    problems = []
    for model, worker in zip(models, workers):
        problems += storm.check_worker(m, copy.deepcopy(model), worker, interrupted)
    return problems


def detach(point):
    if lib.settings.level == "user":
        subprocess.run(["fusermount3", "-uz", point], check=True)
    else:
        lib.sys_umount(point, lib.MNT_DETACH)


def end_suddenly(union, workers):
    mounted = union.mounted
    if mounted.daemon:
        mounted.daemon.kill()
        mounted.daemon.wait()
        mounted.live = False
        for worker in workers:
            worker.wait()
        detach(union.point)
    else:
        for worker in workers:
            worker.kill()
        union.umount()
    union.mounts = []


def one_round(union, models, seed, kill_after, steps, options="", features=False):
    """Storm, kill, remount, compare. Returns the problems, and how many steps were done."""
    workers = workers_for(union, models, seed, steps, features)
    union.mount(options)
    for worker in workers:
        worker.start()
    time.sleep(random.Random(seed).random() * kill_after)
    end_suddenly(union, workers)
    problems, seen_by_kernel = [], None
    # the kernel first: nobody has repaired anything yet
    if lib.settings.can_kernel:
        kernel = lib.mount_kernel(union.lowers, union.upper, union.work, union.point, options)
        seen_by_kernel = lib.tree(union.point)
        problems += [f"kernel: {p}" for p in check_all(union.point, models, workers, True)]
        kernel.umount()
    m = union.mount(options)
    problems += check_all(m, models, workers, True)
    if seen_by_kernel is not None:
        lines = lib.tree_differences(seen_by_kernel, lib.tree(m), "kernel", lib.settings.impl)
        problems += lines[:10]
    lib.write(m / "still-works", "x")
    union.umount()
    litter = lib.work_litter(union.work)
    if litter and "index" not in options:
        problems.append(f"litter in workdir after a remount: {litter}")
    return problems, sum(w.ended for w in workers)


def again_and_again(layers, new_union, seeds, pauses, steps, options="", features=False):
    """A round for each seed. @pauses: the longest time until the kill, on tmpfs and on disk."""
    lowers, models = layers
    found, done = [], 0
    for seed in seeds:
        # on tmpfs the steps are quick; on disk the daemon dies mostly in an fsync
        on_disk = seed % 4 == 3
        base = tempfile.mkdtemp(dir=lib.settings.scratch if on_disk else lib.settings.tmpfs)
        union = new_union("u", base)
        union.check_lowers = union.check_kernel = False
        for i, path in enumerate(lowers):
            union.use_lower(i, path)
        union._snapshots = {path: None for path in lowers}
        problems, ended = one_round(union, models, seed, pauses[on_disk], steps, options, features)
        union.closed = True
        done += ended
        if problems:
            found.append(f"seed {seed}:\n    " + "\n    ".join(problems))
        lib.remove_tree(base)
    assert not found, f"{len(found)} of {len(seeds)} rounds:\n" + "\n".join(found[:10])
    assert done > len(seeds), f"only {done} steps were done: the daemon was killed too early"
