# SPDX-License-Identifier: MIT
"""plyfs fsck and convert, killed at each system call that writes: what is left is no worse than what
there was, and a second run ends the work."""

import ctypes
import os
import shutil
import signal
import stat
import struct
import subprocess

import plyfs_testlib as lib
import pytest
from test_fsck_random import shown

pytestmark = [
    pytest.mark.plyfs_only("fsck"),
    pytest.mark.root("strace, and redirects"),
    pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed"),
    pytest.mark.limit(240),
]

FEATURES = "redirect_dir=on,metacopy=on"
PREFIX = "trusted.overlay."
# setxattr(2) and its kin come through /proc, which strace(1) knows, when the newer calls are missing
MISSING = (452, 463, 464, 465, 466)
WRITING = (
    "setxattr",
    "lsetxattr",
    "removexattr",
    "lremovexattr",
    "unlinkat",
    "renameat",
    "renameat2",
    "mknodat",
    "linkat",
    "utimensat",
    "chmod",
    "pwrite64",
    "fdatasync",
)
CALLS_MAX = 80


def miss_new_calls():
    """seccomp: ENOSYS for some numbers."""
    code = [(0x20, 0, 0, 0)]  # A = the number
    for n, number in enumerate(MISSING):
        code.append((0x15, len(MISSING) - n, 0, number))
    code.append((0x06, 0, 0, 0x7FFF0000))  # allow
    code.append((0x06, 0, 0, 0x00050000 | 38))  # ENOSYS
    program = b"".join(struct.pack("=HBBI", *c) for c in code)
    buf = ctypes.create_string_buffer(program)

    class Filter(ctypes.Structure):
        _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_void_p)]

    f = Filter(len(code), ctypes.addressof(buf))
    lib.check(lib.libc.prctl(38, 1, 0, 0, 0))  # no new privileges
    lib.check(lib.libc.prctl(22, 2, ctypes.byref(f), 0, 0))


def killed_at(call, n, *args):
    """Runs plyfs until its nth call of this name; True when it ended before."""
    done = subprocess.run(
        [
            "strace",
            "-o",
            "/dev/null",
            "-e",
            f"trace={call}",
            "-e",
            f"inject={call}:signal=KILL:when={n}",
            lib.settings.plyfs,
            *args,
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        timeout=60,
        preexec_fn=miss_new_calls,
    )
    assert done.returncode in (0, 1, -signal.SIGKILL, 128 + signal.SIGKILL), done
    return done.returncode in (0, 1)


def every_kill(*args):
    """Runs plyfs again and again, killed at another call each time; yields before each run a
    function that runs it, and says where it was killed."""
    kills = 0
    for call in WRITING:
        for n in range(1, CALLS_MAX):
            ended = []
            yield f"{call} {n}", lambda: ended.append(killed_at(call, n, *args))
            if ended[0]:
                break
            kills += 1
        else:
            raise AssertionError(f"there is no end of {call}")
    assert kills, "nothing was written"


def set_mark(path, name, value):
    os.setxattr(path, PREFIX + name, value, follow_symlinks=False)


def dangling(union):
    """Two steps: opaque, then without the redirect."""
    lib.write(union.lower() / "n/hidden", "hidden")
    lib.write(union.upper / "n/own", "own")
    set_mark(union.upper / "n", "redirect", b"/gone")


def invalid(union):
    set_mark(union.upper / "e", "redirect", b"a//b")


def copy(union):
    subprocess.run(["cp", "-a", "--preserve=all", union.upper / "e", union.upper / "zz"], check=True)


def uncovered(union):
    os.unlink(union.upper / "d")


def whiteouts(union):
    lib.make_whiteout(union.upper / "needless")
    lib.write(union.upper / "marked", xattrs={PREFIX + "whiteout": b""})
    lib.write(union.lower() / "marked", "below")


def metacopies(union):
    set_mark(union.upper / "e/meta", "redirect", b"/gone")
    with lib.opened(union.upper / "twin", os.O_WRONLY | os.O_CREAT, 0o4755) as fd:
        os.ftruncate(fd, 400)
    for name, value in (("metacopy", b""), ("redirect", b"/d/meta")):
        set_mark(union.upper / "twin", name, value)
    set_mark(union.upper / "twin", "origin", lib.xattr(union.upper / "e/meta", PREFIX + "origin"))


def leftovers(union):
    lib.write(union.work / "work/#1/a")
    lib.write(union.work / "work/#2")


def restore(union, saved):
    lib.remove_tree(union.upper)
    lib.remove_tree(union.work)
    for place in (union.upper, union.work):
        subprocess.run(["cp", "-a", saved / place.name, place], check=True)


def without_times(tree):
    """Setting a time back is a call of its own, which may not come any more."""
    return {p: e[:2] + e[3:] for p, e in tree.items()}


def files(tree):
    """What can be opened, and its contents."""
    return {p: e[3] for p, e in tree.items() if e[0].startswith("0o100") and len(e) > 3}


@pytest.mark.parametrize(
    "damage", [dangling, invalid, copy, uncovered, whiteouts, metacopies, leftovers]
)
def test_fsck_killed_at_any_write(union, damage):
    union.check_work = union.check_kernel = union.check_lowers = False
    for name in ("d/changed", "d/removed", "d/same", "d/sub/deep"):
        lib.write(union.lower() / name, name)
    lib.write(union.lower() / "d/meta", "data" * 100)
    root = union.mount(FEATURES, impl="kernel")
    os.rename(root / "d", root / "e")
    lib.append(root / "e/changed", b"+")
    os.unlink(root / "e/removed")
    os.chmod(root / "e/meta", 0o600)
    union.umount()
    damage(union)
    options = lib.layer_options(union.lowers, union.upper, union.work, FEATURES)
    fsck = ("fsck", "-y", "-o", options)

    saved = lib.mkdir(union.base / "saved")
    for place in (union.upper, union.work):
        subprocess.run(["cp", "-a", place, saved / place.name], check=True)
    before = files(shown(union, FEATURES, "kernel"))
    restore(union, saved)
    assert lib.run_plyfs(*fsck).returncode == 1
    wanted = without_times(shown(union, FEATURES, "kernel"))

    for where, run in every_kill(*fsck):
        restore(union, saved)
        run()
        then = files(shown(union, FEATURES, "kernel"))
        lost = {p: v for p, v in before.items() if then.get(p) != v and not may_go(damage, p)}
        assert not lost, f"after {where}: {lost}"
        again = lib.run_plyfs(*fsck)
        assert again.returncode in (0, 1), f"after {where}: {again}"
        assert without_times(shown(union, FEATURES, "kernel")) == wanted, f"after {where}"


def may_go(damage, path):
    """Of two directories united with one the kernel shows either; the repair settles which."""
    return (damage is copy and path.startswith(("zz/", "e/"))) or (
        damage is uncovered and path.startswith(("d/", "e/"))
    ) or (damage is metacopies and path in ("twin", "e/meta"))


@pytest.mark.parametrize("to", ["kernel", "fuse-overlayfs"])
def test_convert_killed_at_any_write(union, to):
    """One of the two marks is always there."""
    union.check_work = union.check_kernel = False
    if to == "kernel":
        lib.write(union.upper / ".wh.w")
        lib.write(union.upper / "d/.wh..wh..opq")
    else:
        lib.make_whiteout(union.upper / "w")
        union.opaque(union.upper / "d")
    saved = union.base / "saved"
    subprocess.run(["cp", "-a", union.upper, saved], check=True)
    convert = ("convert", f"--to={to}", union.upper)

    def is_marked():
        up = union.upper
        whiteout = lib.is_whiteout(up / "w") or lib.exists(up / ".wh.w")
        opaque = lib.xattr(up / "d", PREFIX + "opaque") or lib.exists(up / "d/.wh..wh..opq")
        return whiteout and opaque

    for where, run in every_kill(*convert):
        lib.remove_tree(union.upper)
        subprocess.run(["cp", "-a", saved, union.upper], check=True)
        run()
        assert is_marked(), f"after {where}"
        assert lib.run_plyfs(*convert).returncode == 0, f"after {where}"
        kernel = lib.is_whiteout(union.upper / "w")
        assert is_marked() and kernel == (to == "kernel"), f"after {where}"
        assert stat.S_ISDIR(os.lstat(union.upper / "d").st_mode)
