# SPDX-License-Identifier: MIT
"""What is measured. A workload is a function of a Sample; its metrics are what it records."""

from dataclasses import dataclass

WORKLOADS = []


@dataclass
class Workload:
    name: str
    title: str
    metrics: dict  # name: what it is
    run: object
    unit: str = "s"
    weight: int = 3  # seconds of a round, of about a hundred
    once: bool = False  # the same at each time: the first round is enough
    rootless: bool = False  # in the rootless profile too


def workload(name, title, metrics, **kw):
    def register(function):
        WORKLOADS.append(Workload(name, title, metrics, function, **kw))
        return function

    return register


def load():
    """All workloads, in the order of the tables."""
    if not WORKLOADS:
        from . import lookup, smallfiles, data, names, copyup, programs, service  # noqa: F401
    return WORKLOADS
