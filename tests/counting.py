# SPDX-License-Identifier: MIT
"""A pytest plugin: writes the outcome of each test to a file, one line each, as it is known.

tests/run counts from it, also when the run was cut short. The file is opened before the tests change
their identity and namespaces, in which it could no longer be opened.
"""

import json
import os

OUT = os.open(os.environ["PLYFS_OUTCOMES"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)


def note(test, outcome, why=""):
    os.write(OUT, (json.dumps([test, outcome, why]) + "\n").encode())


def pytest_collectreport(report):
    if report.failed:
        note(report.nodeid, "failed", "it could not be collected")
    elif report.skipped:
        note(report.nodeid, "skipped", reason(report))


def pytest_runtest_logreport(report):
    if report.failed:
        note(report.nodeid, "failed")
    elif report.skipped:
        note(report.nodeid, "skipped", reason(report))
    elif report.when == "call":
        note(report.nodeid, "passed")


def reason(report):
    if hasattr(report, "wasxfail"):
        return f"expected to fail: {report.wasxfail}"
    if isinstance(report.longrepr, tuple):
        return report.longrepr[2].removeprefix("Skipped: ")
    return str(report.longrepr)
