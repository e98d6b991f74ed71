# SPDX-License-Identifier: MIT
"""The pages in docs/ say of options and files what is so."""

import os
import re
from pathlib import Path

import pytest
from plyfs_testlib import run_plyfs

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("README*.md"), *(ROOT / "docs").glob("*.md")])

pytestmark = [
    pytest.mark.plyfs_only("words about the command"),
    pytest.mark.root("the same whoever calls"),
]


def options():
    """{word of fuse-overlayfs' dialect: whether it has an effect}"""
    done = run_plyfs("help", "options", "fuse-overlayfs")
    assert done.returncode == 0
    return {
        re.match(r"[\w*-]+\+?", line)[0]: "no effect" not in line
        for line in done.stdout.splitlines()
    }


def table_of_options():
    """{word: what the page says of it}, from the first table of docs/fuse-overlayfs.md."""
    page = (ROOT / "docs/fuse-overlayfs.md").read_text()
    section = page.partition("## Options\n")[2].partition("\n## ")[0]
    found = {}
    for line in section.splitlines():
        if line.startswith("| `"):
            _, words, meaning, _ = re.split(r"(?<!\\)\|", line, maxsplit=3)
            for quoted in re.findall(r"`([^`]+)`", words):
                word = re.match(r"\w+\+?(?==|$)", quoted)
                if word:
                    found[word[0]] = meaning.strip()
    return found


def test_table_of_options_is_that_of_the_program():
    known, told = options(), table_of_options()
    values = {"1", "2", "on", "auto"}  # of a word before them
    assert sorted(set(told) - set(known) - values) == []
    silent = {word for word, meaning in told.items() if meaning.startswith("no effect")}
    assert sorted(word for word in silent if known[word]) == []
    loud = set(told) - silent - values - {"default_permissions"}
    assert sorted(word for word in loud if not known[word]) == []


def test_every_option_of_fuse_overlayfs_is_in_the_table():
    its = """lowerdir upperdir workdir redirect_dir context uidmapping gidmapping squash_to_root
        squash_to_uid squash_to_gid timeout threaded fsync sync volatile writeback noxattrs fast_ino
        fast_ino_check xattr_permissions static_nlink noacl plugins xino ino32_t allow_root
        default_permissions allow_other suid nosuid dev nodev exec noexec atime noatime diratime
        nodiratime splice_write splice_read splice_move kernel_cache max_write ro""".split()
    assert sorted(set(its) - set(table_of_options())) == []


def anchors(page):
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    lost = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        path, _, anchor = link.partition("#")
        if ":" in path:
            continue
        target = Path(os.path.normpath(page.parent / path)) if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            lost.append(link)
    assert lost == []
