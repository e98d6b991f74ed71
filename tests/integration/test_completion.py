# SPDX-License-Identifier: MIT
"""What is said of options in three places besides the table of words: manuals, help, completion."""

import os
import pty
import re
import select
import shutil
import subprocess
import time
from pathlib import Path

import plyfs_testlib as lib
import pytest
from plyfs_testlib import mkdir, run_plyfs

pytestmark = [
    pytest.mark.plyfs_only("words about the command"),
    pytest.mark.root("the same whoever calls"),
]

ROOT = Path(__file__).resolve().parents[2]
COMPLETION = ROOT / "contrib" / "completion"
MANUALS = {"": "mount.plyfs.8", "fuse-overlayfs": "plyfs-fuse-overlayfs.1"}
SILENT = "Without effect"  # the section of the manual


def options(dialect=""):
    """{word: (its values, whether it has an effect)}; a word that takes a value ends in '='."""
    done = run_plyfs("help", "options", *dialect.split())
    assert (done.returncode, done.stderr) == (0, "")
    found = {}
    for line in done.stdout.splitlines():
        text, _, remark = line.partition("\t")
        name, equals, values = text.partition("=")
        assert remark in ("", "no effect"), line
        assert name + equals not in found, line
        found[name + equals] = (values.split("|") if values else [], not remark)
    return found


def tags(page, section=None):
    """The words that the manual has a tag for; of one section, or of all."""
    found, here = set(), ""
    for line in (ROOT / "man" / page).read_text().splitlines():
        if line.startswith((".Sh ", ".Ss ")):
            here = line[4:].strip()
        elif section in (None, here) and re.match(r"\.It Cm |\.Cm .*=", line):
            found.update(
                word.partition("=")[0]
                for word in line.split()[1:]
                if re.fullmatch(r"[xX]-\*|[a-z_0-9]+\+?(=[a-z0-9]*)?", word)
            )
    return found


@pytest.mark.parametrize("dialect", MANUALS)
def test_the_manual_names_every_option(dialect):
    known = {word.rstrip("=") for word in options(dialect)}
    assert sorted(known - tags(MANUALS[dialect])) == []


def test_the_manual_says_which_have_no_effect():
    known = options("fuse-overlayfs")
    without = {word.rstrip("=") for word, (_, effect) in known.items() if not effect}
    assert sorted(tags(MANUALS["fuse-overlayfs"], SILENT)) == sorted(without)


@pytest.mark.parametrize("dialect", MANUALS)
def test_help_names_what_is_plyfs_own(dialect):
    """All that has an effect, but for the flags of mount(8)."""
    text = run_plyfs("help", *(dialect or "mount").split()).stdout
    known = [word for word, (_, effect) in options(dialect).items() if effect]
    flags = re.compile(r"(no)?(ro|rw|suid|dev|exec|(dir|rel|strict)?atime|lazytime|symfollow)$")
    other = {"sync", "sync=", "async", "dirsync", "remount", "noallow_other", "source="}
    missing = [
        word
        for word in known
        if not flags.match(word) and word not in other and word.rstrip("=") not in text
    ]
    assert missing == []


# --- bash -----------------------------------------------------------------------------------------


@pytest.fixture
def path(scratch):
    """A PATH that begins with the program under test, under both of its names."""
    where = mkdir(scratch / "bin")
    for name in ("plyfs", "fuse-overlayfs"):
        (where / name).symlink_to(lib.settings.plyfs)
    return f"{where}:{os.environ['PATH']}"


def complete_in_bash(path, *lines):
    """[[what bash offers]] for each line, of which it has read up to the end."""
    script = f"source {COMPLETION}/plyfs.bash\n" + "".join(
        f"COMP_LINE='{line}'; COMP_POINT={len(line)}; COMPREPLY=(); _plyfs {line.split()[0]}\n"
        'echo "${COMPREPLY[*]}"\n'
        for line in lines
    )
    done = subprocess.run(
        ["bash", "--norc", "-c", script],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, **lib.settings.sanitizer_env, "PATH": path},
    )
    assert (done.returncode, done.stderr) == (0, "")
    return [line.split() for line in done.stdout.splitlines()]


@pytest.mark.parametrize("dialect", MANUALS)
def test_bash_offers_every_option(path, dialect):
    command = dialect or "plyfs mount"
    known = options(dialect)
    words, after = complete_in_bash(path, f"{command} -o ", f"{command} -o ro,")
    wanted = sorted(word for word in known if "*" not in word)
    assert sorted(words) == wanted
    assert sorted(after) == sorted("ro," + word for word in wanted)


@pytest.mark.parametrize("dialect", MANUALS)
def test_bash_offers_every_value(path, dialect):
    command = dialect or "plyfs mount"
    known = {word: values for word, (values, _) in options(dialect).items() if values}
    assert len(known) > 5
    offered = complete_in_bash(path, *(f"{command} -o index=on,{word}" for word in known))
    assert offered == list(known.values())


def test_bash_completes_the_rest(path, scratch):
    for name in ("one", "other"):
        mkdir(scratch / "dirs" / name)
    d = scratch / "dirs"
    assert complete_in_bash(
        path,
        "plyfs mo",
        "plyfs mount -o redirect_dir=no",
        "plyfs mount -o index=on,metac",
        f"plyfs mount -o lowerdir={d}/on",
        f"plyfs mount -o ro,lowerdir={d}/one:{d}/o",
        f"fuse-overlayfs -o upperdir={d}/ot",
        f"fuse-overlayfs {d}/ot",
        "plyfs fsck --disc",
        "plyfs convert --to=k",
        "fuse-overlayfs --ver",
        "plyfs mount -o nothing_like_it",
        "plyfs help opt",
    ) == [
        ["mount"],
        ["nofollow"],
        ["on,metacopy="],
        [f"{d}/one"],
        [f"{d}/one", f"{d}/other"],
        [f"{d}/other"],
        [f"{d}/other"],
        ["--discard-volatile-mark"],
        ["kernel"],
        ["--version"],
        [],
        ["options"],
    ]


# --- zsh ------------------------------------------------------------------------------------------


class Zsh:
    """An interactive zsh on a terminal."""

    SETUP = (
        f"fpath=({COMPLETION} $fpath); autoload -Uz compinit; compinit -u -D; "
        'show() { print -r -- "<<$BUFFER>>"; }; zle -N show; bindkey "^T" show; '
        "setopt no_beep no_auto_menu; print rea''dy\n"
    )

    def __init__(self, path):
        env = {**os.environ, **lib.settings.sanitizer_env, "PATH": path, "TERM": "dumb"}
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execvpe("zsh", ["zsh", "-f", "-i"], env)
        self.write(self.SETUP)
        self.read_to(b"\nready\r\n")

    def write(self, text):
        os.write(self.fd, text.encode())

    def read_to(self, end):
        got, limit = b"", time.monotonic() + 20
        while end not in got:
            ready, _, _ = select.select([self.fd], [], [], max(0, limit - time.monotonic()))
            assert ready, f"zsh is silent after {got}"
            got += os.read(self.fd, 65536)
        return got

    def complete(self, line):
        self.write(line + "\t\x14")
        shown = re.findall(rb"<<(.*)>>", self.read_to(b">>"))
        self.write("\x15")
        return shown[-1].decode()

    def close(self):
        os.close(self.fd)  # it is hung up
        os.waitpid(self.pid, 0)


@pytest.mark.skipif(not shutil.which("zsh"), reason="zsh is not installed")
def test_zsh_completes(path, scratch):
    d = mkdir(scratch / "dirs")
    mkdir(d / "one")
    zsh = Zsh(path)
    try:
        for line, rest in (
            ("plyfs mou", "nt "),
            ("plyfs mount -o redir", "ect_dir="),
            ("plyfs mount -o ro,redirect_dir=nof", "ollow"),
            ("plyfs mount -o kernel_c", ""),
            ("fuse-overlayfs -o kernel_c", "ache"),
            ("fuse-overlayfs -o ro,squash_to_g", "id="),
            (f"plyfs mount -o ro,lowerdir=/usr:{d}/o", "ne"),
            (f"fuse-overlayfs -o upperdir={d}/o", "ne"),
            ("plyfs convert --to=k", "ernel "),
            ("plyfs fsck --disc", "ard-volatile-mark "),
            ("plyfs help opt", "ions "),
        ):
            assert zsh.complete(line) == line + rest
    finally:
        zsh.close()
