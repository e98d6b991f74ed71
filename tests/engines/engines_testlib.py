# SPDX-License-Identifier: MIT
"""Commands that always return, and what lives in a directory: the ground of the engines' tests."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

from plyfs_testlib import MNT_DETACH, abort_connection, sys_umount, wait_for

# What busybox lacks, with the libraries it needs.
TOOLS = ["/usr/sbin/setcap", "/usr/sbin/getcap", "/usr/bin/setfattr", "/usr/bin/getfattr"]
BASE = "localhost/base:1"  # the name under which engines import the base image


class Settings:
    scratch = None  # of the run
    program = None  # the link named fuse-overlayfs


settings = Settings()


# --- commands -------------------------------------------------------------------------------------


class CommandFailed(AssertionError):
    pass


def environment(home, runtime_dir, more=None):
    """What a login would give, and nothing of ours; the program under test first in PATH."""
    out = {
        "PATH": f"{settings.program.parent}:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": os.fspath(home),
        "XDG_RUNTIME_DIR": os.fspath(runtime_dir),
        "LC_ALL": "C.UTF-8",
        "TMPDIR": "/var/tmp",
    }
    for name in ("ASAN_OPTIONS", "UBSAN_OPTIONS", "LSAN_OPTIONS", "TSAN_OPTIONS"):
        if name in os.environ:
            out[name] = os.environ[name]
    out.update(more or {})
    return out


def command(args, env, user=None, cwd="/", timeout=90, check=True, stdin=None):
    """Run to the end, in a session of its own: CompletedProcess with text output.

    The end is that of all which holds its output: a daemon that keeps stderr hangs an engine.
    """
    identity = {"user": user.uid, "group": user.uid, "extra_groups": []} if user else {}
    args = [os.fspath(a) for a in args]
    with subprocess.Popen(
        args,
        env=env,
        cwd=cwd,
        stdin=stdin or subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="surrogateescape",
        start_new_session=True,
        **identity,
    ) as p:
        try:
            out, err = p.communicate(timeout=timeout)
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(p.pid, signal.SIGKILL)
            abort_mounts(settings.scratch)
            raise
    if check and p.returncode:
        raise CommandFailed(f"{' '.join(args)}: exit status {p.returncode}\n{out}\n{err}")
    return subprocess.CompletedProcess(args, p.returncode, out, err)


# --- what lives in a directory --------------------------------------------------------------------


def processes():
    """{pid: command line} of the run's world."""
    out = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                line = Path("/proc", name, "cmdline").read_bytes()
                out[int(name)] = os.fsdecode(line.replace(b"\0", b" "))
    return out


def daemons_of(path):
    """The mount program's processes that serve a mount below a directory: {pid: command line}."""
    program = os.path.realpath(settings.program)
    found = {}
    for pid, line in processes().items():
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/{pid}/exe") == program and f"{path}/" in line:
                found[pid] = line
    return found


def mounts_below(path, pid="self"):
    """[(mountpoint, type, device)] in the mount namespace of a process, the innermost first."""
    out = []
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/mountinfo").read_text(errors="surrogateescape").splitlines():
            left, right = line.split(" - ", 1)
            device, point = left.split(" ")[2], left.split(" ")[4]
            point = re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), point)
            if point == os.fspath(path) or point.startswith(f"{path}/"):
                out.append((point, right.split(" ")[0], device))
    return out[::-1]


def unmount_below(path):
    for point, _, _ in mounts_below(path):
        with contextlib.suppress(OSError):
            sys_umount(point, MNT_DETACH)


def abort_mounts(path):
    """Fail every request of every FUSE mount below a directory, in whatever namespace it is."""
    devices = set()
    for pid in processes():
        for _, kind, device in mounts_below(path, pid):
            if kind.startswith("fuse."):
                devices.add(device)
    for device in devices:
        abort_connection(device)


def assert_nothing_lives(path):
    """No mount of the mount program and no daemon of it: they left by themselves."""
    wait_for(lambda: not daemons_of(path), 15, f"the end of the daemons {daemons_of(path)}")
    left = [m for m in mounts_below(path) if m[1].startswith("fuse.") or m[1] == "overlay"]
    assert not left, f"still mounted: {left}"


# --- the base image -------------------------------------------------------------------------------


def make_base_tree(tree):
    """busybox with all its names, the tools it lacks with their libraries, and empty folders."""
    for name in ("bin", "dev", "etc", "proc", "root", "run", "sys", "tmp", "usr/sbin", "var/tmp"):
        (tree / name).mkdir(parents=True)
    for name in ("tmp", "var/tmp"):
        (tree / name).chmod(0o1777)
    shutil.copy("/usr/bin/busybox", tree / "bin/busybox")
    for name in subprocess.check_output(["busybox", "--list"], text=True).split():
        if name != "busybox":
            (tree / "bin" / name).symlink_to("busybox")
    for tool in TOOLS:
        shutil.copy(tool, tree / "usr/sbin")
        needed = subprocess.check_output(["ldd", tool], text=True)
        for library in re.findall(r"(/\S+) \(0x", needed):
            target = tree / library[1:]
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(os.path.realpath(library), target)
    (tree / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\nuser:x:1000:1000::/tmp:/bin/sh\n")
    (tree / "etc/group").write_text("root:x:0:\nuser:x:1000:\n")
    # made by the runtimes otherwise, each with another mode
    for name in ("hostname", "hosts", "resolv.conf"):
        (tree / "etc" / name).touch()


def pack(tree, archive):
    command(["tar", "-C", tree, "--numeric-owner", "--xattrs", "-cf", archive, "."], os.environ)
    return archive
