# SPDX-License-Identifier: MIT
"""Whose turn it is: round by round every workload on every system, in an order drawn anew each time.

A machine that is slower for a while is so for all systems alike, and no system always follows the
same other one. The first round is always whole; then rounds follow while the time lasts.
"""

import time
from dataclasses import dataclass, field

import rootless

import plyfs_testlib as lib

from .sample import run_sample


@dataclass
class Job:
    """A workload with the systems that it runs on."""

    workload: object
    systems: list
    prefix: str
    bench: object
    as_user: bool = False
    seconds: float = 0.0  # what its last round took

    def run(self, system):
        if self.as_user:
            return rootless.run("subids", run_as_user, self.bench, system, self.workload, self.prefix)
        return run_sample(self.bench, system, self.workload, self.prefix)


def run_as_user(bench, system, workload, prefix):
    """In a child that is root of a user namespace: it must adopt the daemons that it starts."""
    lib.check(lib.libc.prctl(lib.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))
    return run_sample(bench, system, workload, prefix)


@dataclass
class Results:
    """samples[metric][system]: a list of numbers; failures: a list of texts."""

    samples: dict = field(default_factory=dict)
    failures: dict = field(default_factory=dict)
    rounds: int = 0
    seconds: float = 0.0
    interrupted: bool = False

    def add(self, system, values, failures):
        for into, found in ((self.samples, values), (self.failures, failures)):
            for metric, value in found.items():
                into.setdefault(metric, {}).setdefault(system, []).append(value)


def fits(job, round_number, deadline):
    """Whether the job's next round will be done in time, if it takes what the last one took."""
    if round_number == 0:
        return True
    return not job.workload.once and time.monotonic() + job.seconds < deadline


def run_job(job, number, random, results, say):
    start = time.monotonic()
    order = [s for s in job.systems if number == 0 or not s.first_round_only]
    random.shuffle(order)
    told, once = [], 0.0
    for system in order:
        values, failures, seconds = job.run(system)
        results.add(system.name, values, failures)
        told.append(f"{system.name} {seconds:.1f}" + ("!" if failures else ""))
        once += seconds if system.first_round_only else 0.0
    seconds = time.monotonic() - start
    job.seconds = seconds - once
    say(f"  {job.prefix.rstrip('/'):<15} {seconds:6.1f} s: {', '.join(told)}")


def run_rounds(jobs, random, rounds, budget, results, say):
    """At most so many rounds, and no new job that would end after budget seconds."""
    start = time.monotonic()
    deadline = start + budget
    for number in range(rounds):
        todo = [job for job in jobs if fits(job, number, deadline)]
        if not todo:
            break
        say(f"round {number + 1}, {time.monotonic() - start:.0f} s:")
        results.rounds = number + 1
        for job in todo:
            if fits(job, number, deadline):
                run_job(job, number, random, results, say)
    results.seconds = time.monotonic() - start
