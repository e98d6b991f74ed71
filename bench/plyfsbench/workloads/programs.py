# SPDX-License-Identifier: MIT
"""What people do: git, a build, a package unpacked."""

import re

from ..sample import BEST_OF, StepFailed, expect, lines
from . import workload


@workload(
    "git",
    "a repository of 3,000 files",
    {
        "clone": "git clone of it into the mount",
        "status-warm": "git status, again",
        "status-cold": "git status after a fresh mount, caches dropped",
        "grep": "git grep over all files",
        "checkout": "git checkout of a commit that changes a quarter of the files",
        "checkout-back": "git checkout of the other one",
    },
)
def git(s):
    repository, paths = s.trees.repository
    n = len(paths)
    with s.union(s.trees.empty, changes=True):
        s.run("clone", ["git", "clone", "-q", "--no-local", repository, "clone"], n)
        work = ["git", "-C", "clone"]
        status = [*work, "status", "--porcelain"]
        s.call(["run", *status], cwd=s.root)
        s.run("status-warm", status, n, lines(0), BEST_OF)
        # each file of either generation has 60 lines of functions
        s.run("grep", [*work, "grep", "f59_"], n, lines(n), BEST_OF)
        s.remount()
        s.run("status-cold", status, n, lines(0))
        s.run("checkout", [*work, "checkout", "-q", "old"], len(paths[::4]))
        s.run("checkout-back", [*work, "checkout", "-q", "new"], len(paths[::4]))
        _, _, status = s.call(["run", *work, "diff", "--quiet", "new"], cwd=s.root)
        if status:
            raise StepFailed("git finds differences after checkout")


def printed_sum(output):
    if not re.fullmatch(r"\d+\n", output.read_text()):
        raise StepFailed("the program that was built does not work")


@workload(
    "build",
    "a program of 100 C files in a lower layer",
    {"make-j2": "make -j2", "make-again": "make, with nothing to do"},
)
def build(s):
    sources = s.trees.sources
    n = len(sources.files)
    with s.union(sources, changes=True):
        s.run("make-j2", ["make", "-s", "-j2"], n)
        s.run("make-again", ["make", "-s"], n, best_of=BEST_OF)
        s.call(["-o", s.output, "run", s.root / "program"])
        printed_sum(s.output)


@workload(
    "dpkg",
    "a Debian package of 3,000 files",
    {"unpack": "dpkg --unpack below the mount"},
)
def dpkg(s):
    archive, paths = s.trees.package
    with s.union(s.trees.system_root, changes=True):
        command = ["dpkg", f"--root={s.root}", "--force-script-chrootless", "--unpack", archive]
        s.run("unpack", command, len(paths), cwd="/")
        s.verify("unpack", size=2048 * len(paths), below="usr/share/bench")
        found = sum(1 for _ in (s.root / "usr/share/bench").glob("*/*"))
        expect("files afterwards", found, len(paths))
