# SPDX-License-Identifier: MIT
"""How many files this machine can afford in the time: found by a trial of one workload.

A machine that is busy, or slow, or has more peers installed would else take an hour for what takes
another one ten minutes.
"""

import time
from dataclasses import replace

from .rounds import run_job
from .trees import Trees

TRIALS = (0.01, 0.04)
PART_OF_ROUND = 0.2  # what the workload of the trial takes of a whole round
SAFETY = 1.25
LEAST = 0.01


class Silence:
    """Takes the place of results."""

    @staticmethod
    def add(*_):
        pass


def trial(job, place, scale, random):
    """(seconds that each round takes, seconds that only the first one takes) of a trial."""
    trees = Trees(place, job.bench.ops, scale)
    try:
        trees.ten  # noqa: B018
        small = replace(job, bench=replace(job.bench, trees=trees))
        start = time.monotonic()
        run_job(small, 0, random, Silence, lambda _: None)
        return small.seconds, time.monotonic() - start - small.seconds
    finally:
        trees.close()


def choose_scale(job, share, place, most, rounds, seconds, random):
    """The largest scale, up to most, with which so many rounds should be done in so many seconds.

    share: which part of all workloads will be run.
    """
    costs = []
    for scale in TRIALS:
        at = place / f"trial{scale}"
        at.mkdir()
        every, once = trial(job, at, scale, random)
        costs.append((rounds * every + once) * SAFETY * share / PART_OF_ROUND)
    slope = max((costs[1] - costs[0]) / (TRIALS[1] - TRIALS[0]), 1e-6)
    fixed = max(0.0, costs[0] - slope * TRIALS[0])
    return round(min(most, max(LEAST, (seconds - fixed) / slope)), 3)
