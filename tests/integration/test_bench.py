# SPDX-License-Identifier: MIT
"""make bench: it measures what it says, believes nobody, and leaves nothing behind."""

import json
import os
import signal
import statistics
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import plyfs_testlib as lib
import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"
sys.path.insert(0, str(BENCH))
from plyfsbench import report, systems  # noqa: E402
from plyfsbench.rounds import Job, Results  # noqa: E402
from plyfsbench.workloads import Workload  # noqa: E402

SVG = "{http://www.w3.org/2000/svg}"

pytestmark = [
    pytest.mark.root("it mounts everything that there is"),
    pytest.mark.plyfs_only("plyfs and the kernel's overlayfs are both in it"),
]


def command(out, program="run", **options):
    options = {"plyfs": lib.settings.plyfs, "out": out, "scratch": place_of(out), **options}
    words = [str(w) for name, value in options.items() for w in (f"--{name}", value)]
    return ["/usr/bin/python3", "-B", BENCH / program, *words]


def place_of(out):
    place = out / "place"
    place.mkdir(mode=0o755, exist_ok=True)
    return place


def environment():
    """Without variables that the bench would take for its own."""
    return {k: v for k, v in os.environ.items() if k in ("PATH", "HOME", "LANG")}


def bench(out, program="run", **options):
    """(what it printed, results.json if it wrote one)"""
    done = subprocess.run(
        command(out, program, **options), env=environment(), capture_output=True, text=True,
        check=False, timeout=50,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert lib.names(place_of(out)) == []  # it leaves nothing behind
    results = out / "results.json"
    return done.stdout, json.loads(results.read_text()) if results.exists() else None


def failures(document):
    return {
        (metric, system): cell["failures"]
        for metric, row in document["metrics"].items()
        for system, cell in row["systems"].items()
        if cell["failures"]
    }


def peer(scratch, name, body):
    """A program that is called as fuse-overlayfs is: $2 is its options, $3 the mount point."""
    script = scratch / name
    script.write_text("#!/bin/bash\n" + body)
    script.chmod(0o755)
    return f"{name}={script}"


def test_results_hold_each_sample_and_ratios_to_the_kernel(scratch):
    said, found = bench(
        scratch, scale=0.001, rounds=2, seed=7, only="names mount memory", rootless=0,
        systems="native overlay plyfs",
    )
    assert failures(found) == {}
    assert (found["rounds"], found["seed"], found["scale"], found["filesystem"]) == (2, 7, 0.001, "ext4")
    assert found["machine"]["kernel"] == os.uname().release
    assert set(found["systems"]) == {"native", "overlay", "plyfs"}
    assert set(found["metrics"]) >= {"names/create", "names/rmdir", "mount/mount-100", "memory/rss"}
    row = found["metrics"]["names/create"]["systems"]
    assert [len(c["samples"]) for c in row.values()] == [2, 2, 2]
    ratio = statistics.median(row["plyfs"]["samples"]) / statistics.median(row["overlay"]["samples"])
    assert row["plyfs"]["ratio"] == pytest.approx(ratio)
    assert found["metrics"]["mount/mount-100"]["systems"]["native"]["samples"] == []
    memory = found["metrics"]["memory/rss"]["systems"]["plyfs"]["samples"]
    assert len(memory) == 1 and memory[0] > 0.1  # once is enough of it
    assert "seed 7" in said and "geometric mean" in said
    assert "| create | " in (scratch / "results.md").read_text()


def test_chart_has_a_dot_for_each_ratio(scratch):
    _, found = bench(
        scratch, scale=0.001, rounds=1, only="names/create names/unlink", rootless=0, fs="tmpfs",
        systems="overlay plyfs",
    )
    assert list(found["metrics"]) == ["names/create", "names/unlink"]
    picture = ElementTree.parse(scratch / "chart.svg").getroot()
    titles = [t.text for t in picture.iter(f"{SVG}title")]
    ratio = found["metrics"]["names/create"]["systems"]["plyfs"]["ratio"]
    assert [t for t in titles if t.startswith("names/create: plyfs")] == [
        f"names/create: plyfs {ratio:.2f}x ±0%"
    ]
    assert len([t for t in titles if t.startswith("names/unlink: ")]) == 2


def test_one_failure_takes_the_number_away():
    results = Results()
    for system, value in (("overlay", 2.0), ("plyfs", 1.0), ("old", 8.0), ("new", 4.0)):
        for factor in (1, 3, 2):
            results.add(system, {"x/a": value * factor, "x/b": value}, {})
    results.add("plyfs", {}, {"x/b": "no"})
    work = Workload("x", "a title", {"a": "", "b": ""}, None)
    known = {s.name: s for s in systems.known("plyfs", ["old=/old", "new=/new"])}
    chosen = [known[s] for s in ("overlay", "plyfs", "old", "new")]
    table = report.cells(results, [Job(work, chosen, "x/", None)])
    a, b = table["x/a"]["systems"], table["x/b"]["systems"]
    assert (a["plyfs"]["median"], a["plyfs"]["ratio"], a["plyfs"]["spread"]) == (2.0, 0.5, 0.5)
    assert table["x/a"]["to_incumbent"] == 0.25
    assert "ratio" not in b["plyfs"] and "to_incumbent" not in table["x/b"]
    assert b["new"]["ratio"] == 2.0
    assert report.means(table)["plyfs"] == (0.5, 1)
    assert "FAILED x/b on plyfs (1x): no" in report.for_terminal(table, 1)
    assert report.text_of(a["old"], "s", False, "least") == "~4.00x ±50%"


def test_users_measure_too(scratch):
    _, found = bench(
        scratch, scale=0.001, rounds=1, rootless=1, only="rootless-*", systems="overlay plyfs"
    )
    assert failures(found) == {}
    rows = found["metrics"]
    assert rows["rootless-untar/untar"]["systems"]["plyfs"]["ratio"] > 0
    assert rows["rootless-data/randwrite4k"]["systems"]["overlay"]["samples"]


def test_system_that_shows_other_files_has_no_number(scratch):
    liar = peer(scratch, "liar", 'upper=${2#*upperdir=}\nexec mount --bind "${upper%%,*}" "$3"\n')
    said, found = bench(
        scratch, scale=0.001, rounds=1, rootless=0, only="small rm-lower", peers=liar,
        systems="overlay liar",
    )
    failed = failures(found)
    assert set(failed) == {(m, "liar") for m in found["metrics"]}
    assert "No such file" in failed["small/read-cold", "liar"][0]
    assert "ratio" not in found["metrics"]["small/read-cold"]["systems"]["liar"]
    assert "FAILED small/read-cold on liar (1x)" in said


def test_system_that_writes_to_its_lower_layers_cannot(scratch):
    """It would spoil what is measured after it."""
    vandal = peer(
        scratch, "vandal",
        'lower=${2#*lowerdir=}\nlower=${lower%%,*}\nexec mount --bind "${lower%%:*}" "$3"\n',
    )
    _, found = bench(
        scratch, scale=0.001, rounds=2, rootless=0, only="copyup", peers=vandal, systems="overlay vandal"
    )
    failed = failures(found)
    assert {system for _, system in failed} == {"vandal"}
    assert "Read-only file system" in failed["copyup/append", "vandal"][0]


def test_hung_system_is_aborted_and_left_out(scratch):
    hung = peer(
        scratch, "hung",
        'fuse-overlayfs -f "$@" &\nuntil mountpoint -q "$3"; do :; done\nkill -STOP $!\n',
    )
    _, found = bench(
        scratch, scale=0.001, rounds=1, rootless=0, only="mount", peers=hung, timeout=1,
        systems="overlay hung",
    )
    assert found["left_out"] == {"hung": "not done within 1 s"}
    assert set(found["systems"]) == {"overlay"}


def test_interrupt_ends_it_with_the_results_so_far(scratch):
    process = subprocess.Popen(
        command(scratch, scale=0.001, rounds=1000, rootless=0, only="names", systems="overlay plyfs"),
        env=environment(), stdout=subprocess.PIPE, text=True, start_new_session=True,
    )
    try:
        assert any(line.startswith("round 2,") for line in process.stdout)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        process.stdout.read()
        assert process.wait(20) == 130
    finally:
        process.terminate()
        process.wait(20)
    assert lib.names(place_of(scratch)) == []
    found = json.loads((scratch / "results.json").read_text())
    assert found["interrupted"] and found["metrics"]["names/create"]["systems"]["plyfs"]["samples"]


def test_requests_and_system_calls_are_counted_per_operation(scratch):
    bench(scratch, "requests", scale=0.001, only="names", systems="plyfs")
    rows = [
        [c.strip() for c in line.split("|")[1:-1]]
        for line in (scratch / "requests.md").read_text().splitlines()
        if line.startswith("| ")
    ]
    found = {row[0]: row[1:] for row in rows[1:]}
    assert set(found) == {"create", "create4k", "mkdir", "rename", "unlink", "rmdir"}
    system, requests, opcodes, calls, _ = found["mkdir"]
    assert system == "plyfs" and "MKDIR 1" in opcodes.split(", ")
    assert float(requests) >= 1 and float(calls) >= 2 * float(requests) * 0.9
    assert "UNLINK 1" in found["unlink"][2].split(", ")


def test_inner_loops_compile_without_warnings(scratch):
    flags = "-O2 -std=gnu17 -D_GNU_SOURCE -Wall -Wextra -Wshadow -Wstrict-prototypes -Wvla -Werror"
    done = subprocess.run(
        ["cc", *flags.split(), "-pthread", "-o", scratch / "ops", BENCH / "ops.c"],
        capture_output=True, text=True, check=False, timeout=50,
    )
    assert (done.returncode, done.stderr) == (0, "")
