# SPDX-License-Identifier: MIT
"""The command: what to run from its options, and where the results go."""

import argparse
import contextlib
import dataclasses
import datetime
import fnmatch
import json
import os
import random
import re
import shlex
import sys
import time
from pathlib import Path

import rootless

import plyfs_testlib as lib

from . import ROOT, calibrate, chart, machine, report, systems, trees, workloads
from .rounds import Job, Results, run_rounds
from .sample import Bench, Hung, Sample, StepFailed

FULL = {"rounds": 9, "budget": 570, "timeout": 90}
QUICK = {"rounds": 3, "budget": 110, "timeout": 30}
FULL_SCALE, QUICK_SCALE = 1.0, 0.1  # at most
FULL_ROUNDS, QUICK_ROUNDS = 3, 2  # that must fit into the budget


def words(text):
    return [w for w in re.split(r"[\s,]+", text or "") if w]


def truth(text):
    return text not in (None, "", "0", "no", "off")


def parse(arguments):
    env = os.environ.get
    p = argparse.ArgumentParser(
        prog="bench/run", description=__doc__.splitlines()[0],
        epilog="Each option has a variable: make bench QUICK=1 ONLY='tree*' ROUNDS=5.",
    )
    add = p.add_argument
    add("--quick", action="store_true", default=truth(env("QUICK")), help="two minutes: a tenth of the files")
    add("--only", default=env("ONLY"), help="patterns of workloads or metrics: tree10, 'git/*'")
    add("--systems", default=env("SYSTEMS"), help="patterns of systems: overlay plyfs*")
    add("--peers", default=env("PEERS"), help="programs called as fuse-overlayfs is: PATH or NAME=PATH")
    add("--rounds", type=int, default=env("ROUNDS"), help="so many rounds, whatever time they take")
    add("--scale", type=float, default=env("SCALE"), 
        help="1: the numbers of files as documented (default: as many as the time allows)")
    add("--budget", type=float, default=env("BUDGET"), help="seconds after which no round begins")
    add("--timeout", type=float, default=env("TIMEOUT"), help="seconds that one step may take")
    add("--by", default=env("BY") or "median", choices=["median", "least"],
        help="what is shown of the samples: least on a busy machine")
    add("--seed", type=int, default=env("SEED"), help="of the order of systems")
    add("--fs", default=env("FS") or "ext4", help="where layers lie: ext4, xfs (in an image), tmpfs")
    add("--scratch", default=env("SCRATCH") or "/var/tmp", help="where the directory of the run is made")
    add("--rootless", default=env("ROOTLESS"), help="1: only the profile of users, 0: without it")
    add("--out", default=env("OUT") or ROOT / "build" / "bench", help="directory of the results")
    add("--plyfs", default=env("PLYFS") or ROOT / "build" / "plyfs", help="the program to measure")
    add("--list", action="store_true", help="show the workloads and the systems")
    args = p.parse_args(arguments)
    # make's variables arrive as text
    for name, kind in (("rounds", int), ("scale", float), ("budget", float), ("timeout", float),
                       ("seed", int)):
        value = getattr(args, name)
        if isinstance(value, str):
            setattr(args, name, kind(value) if value else None)
    return settle(args)


def settle(args):
    defaults = QUICK if args.quick else FULL
    args.rounds_given = args.rounds is not None
    for name, value in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.seed is None:
        args.seed = random.SystemRandom().randrange(1 << 32)
    args.peers = words(args.peers)
    args.only, args.systems = words(args.only), words(args.systems)
    return args


# --- what to run -----------------------------------------------------------------------------------


def wanted(name, patterns):
    return not patterns or any(fnmatch.fnmatchcase(name, p) for p in patterns)


def wanted_workload(prefix, workload, patterns):
    names = [prefix.rstrip("/"), *(prefix + m for m in workload.metrics)]
    return any(wanted(name, patterns) for name in names)


def only_wanted(prefix, workload, patterns):
    """The workload with the metrics that were asked for alone."""
    if wanted(prefix.rstrip("/"), patterns):
        return workload
    metrics = {m: t for m, t in workload.metrics.items() if wanted(prefix + m, patterns)}
    return dataclasses.replace(workload, metrics=metrics)


def make_jobs(args, bench, user_bench, found, found_rootless):
    jobs = []
    for w in workloads.load():
        for prefix, chosen, b, as_user in (
            (f"{w.name}/", found, bench, False),
            (f"rootless-{w.name}/", found_rootless, user_bench, True),
        ):
            if as_user and not w.rootless or not chosen:
                continue
            if wanted_workload(prefix, w, args.only):
                jobs.append(Job(only_wanted(prefix, w, args.only), chosen, prefix, b, as_user))
    return sorted(jobs, key=lambda job: job.as_user)


def try_mount(bench, system, as_user=False):
    """None, or why this system is left out: it is mounted once on a small tree."""
    missing = system.available()
    if missing:
        return missing

    def attempt():
        lib.check(lib.libc.prctl(lib.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))
        sample = Sample(bench, system)
        try:
            with sample.union(bench.trees.empty, changes=True):
                sample.call(["-C", sample.root, "count", "."])
        except (StepFailed, Hung) as e:
            return str(e)
        return None

    return rootless.run("subids", attempt) if as_user else attempt()


def choose(args, bench, all_systems, say, as_user=False):
    chosen, left_out = [], {}
    for system in all_systems:
        if not wanted(system.name, args.systems):
            continue
        why = try_mount(bench, system, as_user)
        if why is None:
            chosen.append(system)
        else:
            left_out[system.name] = why
            say(f"  without {system.name}{' as a user' if as_user else ''}: {why}")
    return chosen, left_out


# --- the run ---------------------------------------------------------------------------------------


def say(text):
    print(text, flush=True)


def user_bench_of(bench):
    """What samples of an ordinary user share: a directory of his, and no caches to drop."""
    place = Path(bench.scratch) / "user"
    place.mkdir()
    os.chown(place, rootless.UID, rootless.UID)
    return dataclasses.replace(bench, scratch=place, may_drop_caches=False)


def find_systems(args, bench, user_bench, plyfs):
    """(as root, as a user, {what is left out: why})"""
    bench.trees.empty  # noqa: B018  a user cannot make it
    found, users, left_out = [], [], {}
    if args.rootless != "1":
        found, left_out = choose(args, bench, systems.known(plyfs, args.peers), say)
    if args.rootless is None or truth(args.rootless):
        known = systems.known_rootless(plyfs, args.peers)
        users, more = choose(args, user_bench, known, say, True)
        left_out |= {f"rootless {name}": why for name, why in more.items()}
    return found, users, left_out


def settle_scale(args, jobs, bench, place, started):
    """What the user said, or what this machine can do in the time."""
    if args.scale is None:
        most, rounds = (QUICK_SCALE, QUICK_ROUNDS) if args.quick else (FULL_SCALE, FULL_ROUNDS)
        tree10 = next(w for w in workloads.load() if w.name == "tree10")
        trial = Job(tree10, jobs[0].systems, "tree10/", dataclasses.replace(bench))
        share = sum(j.workload.weight for j in jobs) / sum(w.weight for w in workloads.load())
        left = args.budget - (time.monotonic() - started)
        args.scale = calibrate.choose_scale(
            trial, share, place, most, rounds, left, random.Random(args.seed)
        )
        say(f"scale {args.scale:g}: so that {rounds} rounds should be done in {args.budget:.0f} s")
    bench.trees.scale = args.scale
    if any(job.as_user for job in jobs):
        bench.trees.tar  # noqa: B018


def run(args, scratch):
    lib.settings.scratch = scratch
    clock, started = time.monotonic(), datetime.datetime.now().astimezone()
    ops = machine.build_ops(scratch)
    plyfs = machine.copy_program(args.plyfs, scratch)
    facts = machine.facts()
    if wanted("plyfs-uring", args.systems) and args.rootless != "1":
        machine.enable_uring(scratch)
    with contextlib.ExitStack() as stack:
        disk = stack.enter_context(machine.filesystem(scratch, args.fs))
        say(f"seed {args.seed}, layers on {args.fs}, caches of the whole machine are dropped")
        tree = stack.enter_context(contextlib.closing(trees.Trees(disk, ops, args.scale)))
        bench = Bench(tree, ops, disk, args.timeout)
        user_bench = user_bench_of(bench)
        found, users, left_out = find_systems(args, bench, user_bench, plyfs)
        jobs = make_jobs(args, bench, user_bench, found, users)
        if not jobs:
            raise machine.Stop("no workload matches ONLY, or no system SYSTEMS")
        settle_scale(args, jobs, bench, disk, clock)
        results = Results()
        try:
            budget = args.budget - (time.monotonic() - clock)
            budget = float("inf") if args.rounds_given else budget
            run_rounds(jobs, random.Random(args.seed), args.rounds, budget, results, say)
        except KeyboardInterrupt:
            results.interrupted = True
            say("interrupted: what was measured so far")
        document = describe(args, facts, found + users, left_out, results, jobs, started)
    write(args, document)
    return 130 if results.interrupted else 0


def describe(args, facts, chosen, left_out, results, jobs, started):
    facts["load_at_end"] = os.getloadavg()
    return {
        "format": 1,
        "command": shlex.join(sys.argv),
        "started": started.isoformat(timespec="seconds"),
        "seconds": round(time.time() - started.timestamp(), 1),
        "seed": args.seed,
        "scale": args.scale,
        "filesystem": args.fs,
        "rounds": results.rounds,
        "interrupted": results.interrupted,
        "machine": facts,
        "systems": {
            s.name: {"version": s.version(), "mounted_by": s.shown_command()} for s in chosen
        },
        "left_out": left_out,
        "metrics": report.cells(results, jobs),
    }


def write(args, document):
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(json.dumps(document, indent=1) + "\n")
    (out / "results.md").write_text(report.for_page(document))
    (out / "chart.svg").write_text(chart.draw(document))
    say(report.for_terminal(document["metrics"], document["scale"], args.by))
    say(
        f"\n{document['rounds']} rounds in {document['seconds']:.0f} s, seed {args.seed}, scale {args.scale:g}"
        f"{' of the documented numbers of files' if args.scale != 1 else ''}"
    )
    say(f"written: {out}/results.json, results.md, chart.svg")


def show_list(args):
    for w in workloads.load():
        say(f"{w.name}: {w.title}")
        for metric, title in w.metrics.items():
            say(f"  {w.name}/{metric:<16} {title}")
    say("systems: " + " ".join(s.name for s in systems.known("plyfs", args.peers)))
    return 0


def main(arguments):
    args = parse(arguments)
    if args.list:
        return show_list(args)
    if os.geteuid() != 0:
        say("bench: it mounts and drops caches: run it as root")
        return 1
    return machine.supervise(lambda scratch: run(args, scratch), args.scratch)
