# SPDX-License-Identifier: MIT
"""The scratch directory of a run, what must be undone at its end, and what machine this is."""

import contextlib
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

import plyfs_testlib as lib

from . import ROOT

URING = Path("/sys/module/fuse/parameters/enable_uring")
MKFS = {
    "ext4": ["mkfs.ext4", "-q", "-F", "-i", "8192", "-m", "0", "-E", "lazy_itable_init=0"],
    "xfs": ["mkfs.xfs", "-q", "-f", "-m", "reflink=1"],
}


class Stop(Exception):
    """The run cannot go on; the text says why."""


def supervise(run, parent="/var/tmp"):
    """run(scratch) in a child in a mount namespace of its own; its exit status.

    This process only cleans up: whatever becomes of the child, daemons that it left are ended, its
    mounts go with the namespace, and the scratch directory is removed. If this process dies first
    the child stops and does that itself.
    """
    scratch = tempfile.mkdtemp(prefix="plyfs-bench.", dir=parent)
    os.chmod(scratch, 0o711)
    supervisor = os.getpid()
    lib.check(lib.libc.prctl(lib.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))
    pid = os.fork()
    if pid == 0:
        status = in_namespace(run, scratch)
        sys.stdout.flush()
        if os.getppid() != supervisor:
            clean_up(scratch)
        os._exit(status)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal tells the child too
    for sig in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(sig, lambda *_: os.kill(pid, signal.SIGINT))
    status = lib.wait_for_child(pid)
    clean_up(scratch)
    return status


def in_namespace(run, scratch):
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        lib.check(lib.libc.prctl(lib.PR_SET_PDEATHSIG, signal.SIGINT, 0, 0, 0))
        lib.check(lib.libc.prctl(lib.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))
        lib.unshare(lib.CLONE_NEWNS)
        lib.sys_mount("none", "/", "", lib.MS_REC | lib.MS_PRIVATE)
        with contextlib.suppress(OSError):
            lib.sys_mount("fusectl", "/sys/fs/fuse/connections", "fusectl")
        return run(scratch)
    except KeyboardInterrupt:
        return 130
    except Stop as e:
        print(f"bench: {e}")
    except BaseException:
        traceback.print_exc()
    return 1


def clean_up(scratch):
    end_children()
    restore_uring(scratch)
    lib.remove_tree(scratch)


def end_children():
    """Daemons that outlived the run became our children, and theirs will."""
    while True:
        for pid in lib.children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            os.wait()
        except ChildProcessError:
            return


# --- where the data lie ----------------------------------------------------------------------------


@contextlib.contextmanager
def filesystem(scratch, kind, gib=24):
    """A file system for all layers: in an image in scratch, or in memory."""
    point = os.path.join(scratch, "d")
    os.mkdir(point)
    if kind == "tmpfs":
        lib.sys_mount("tmpfs", point, "tmpfs", 0, "mode=0755,size=60%,nr_inodes=0")
    elif kind in MKFS:
        image = os.path.join(scratch, "image")
        with open(image, "wb") as f:
            f.truncate(gib * lib.GIB)
        subprocess.run([*MKFS[kind], image], check=True, timeout=120, capture_output=True)
        # mount(8) makes a loop device that goes when the last mount of it goes
        subprocess.run(["mount", "-t", kind, "-o", "loop", image, point], check=True, timeout=60)
    else:
        raise Stop(f"FS={kind}: it is one of ext4, xfs, tmpfs")
    try:
        yield Path(point)
    finally:
        try:
            lib.sys_umount(point)
        except OSError:
            lib.sys_umount(point, lib.MNT_DETACH)


def sync_filesystem(path):
    """What was written before must not be written out while the next thing is timed."""
    with lib.opened(path, os.O_RDONLY | os.O_DIRECTORY) as fd:
        lib.check(lib.libc.syncfs(fd))


def drop_caches(what=3):
    """The page cache, dentries and inodes of the whole machine."""
    Path("/proc/sys/vm/drop_caches").write_text(str(what))


def enable_uring(scratch):
    """Allow FUSE over io_uring, if the kernel knows of it, until the run has ended."""
    with contextlib.suppress(OSError):
        before = URING.read_text()
        if before.strip() != "Y":
            Path(scratch, "uring").write_text(before)
            URING.write_text("Y")


def restore_uring(scratch):
    with contextlib.suppress(OSError):
        URING.write_text(Path(scratch, "uring").read_text())


# --- programs --------------------------------------------------------------------------------------


def build_ops(scratch):
    """The compiled inner loops."""
    program = os.path.join(scratch, "ops")
    source = ROOT / "bench" / "ops.c"
    command = ["cc", "-O2", "-std=gnu17", "-D_GNU_SOURCE", "-pthread", "-o", program, source]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    if done.returncode:
        raise Stop(f"bench/ops.c does not compile:\n{done.stderr}")
    return program


def copy_program(path, scratch):
    """A copy for the run, which a build that goes on meanwhile does not replace."""
    copy = os.path.join(scratch, "plyfs")
    try:
        shutil.copy(path, copy)
    except OSError as e:
        raise Stop(f"no plyfs to measure at {path}: {e}: run make first")
    os.chmod(copy, 0o755)
    return copy


# --- what machine this is --------------------------------------------------------------------------


def first_line(path, word):
    with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="replace") as f:
        for line in f:
            if line.startswith(word):
                return line.split(":", 1)[1].strip()
    return "?"


def facts():
    return {
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "cpu": first_line("/proc/cpuinfo", "model name"),
        "cpus": os.cpu_count(),
        "memory_kib": int(first_line("/proc/meminfo", "MemTotal").split()[0]),
        "distribution": next(
            (
                line.split("=", 1)[1].strip().strip('"')
                for line in open("/etc/os-release", encoding="utf-8")
                if line.startswith("PRETTY_NAME=")
            ),
            "?",
        ),
        "load_at_start": os.getloadavg(),
    }
