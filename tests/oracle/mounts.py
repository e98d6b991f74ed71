# SPDX-License-Identifier: MIT
"""
How an overlay is mounted: by the kernel, by plyfs, by fuse-overlayfs.

mount() returns None or a message; umount() likewise. A mount may hang: the caller's watchdog aborts
the FUSE connection whose number connection() gives.
"""

import os
import subprocess

import syscalls as sc


def _escape(path):
    return path.replace(b"\\", b"\\\\").replace(b":", b"\\:").replace(b",", b"\\,")


def _options(stack, *more):
    out = b"lowerdir=" + b":".join(_escape(p) for p in stack.lowers)
    out += b"".join(b"::" + _escape(p) for p in stack.data)
    if stack.upper:
        out += b",upperdir=" + _escape(stack.upper) + b",workdir=" + _escape(stack.work)
    return b",".join([out, *(words for words in more if words)])


class Stack:
    """What is mounted: paths of layers, topmost first, and further options."""

    def __init__(self, lowers, data=(), upper=None, work=None, options=""):
        self.lowers, self.data = list(lowers), list(data)
        self.upper, self.work = upper, work
        self.options = os.fsencode(options)


def connection(mountpoint):
    """The minor device number of a mount, from the mount table alone; None when not mounted."""
    with open("/proc/self/mountinfo", "rb") as f:
        for line in f:
            fields = line.split()
            if fields[4] == mountpoint:
                return int(fields[2].split(b":")[1])
    return None


class Kernel:
    name = "kernel"
    fuse = False
    silent_open = False
    whiteout_files = False

    def __init__(self, extra=b""):
        self.extra = extra

    def mount(self, stack, mountpoint):
        options = _options(stack, stack.options, self.extra)
        try:
            sc.mount(b"overlay", mountpoint, b"overlay", 0, options)
        except OSError as e:
            return "mount -t overlay: " + e.strerror
        return None


class Fuse:
    fuse = True

    @property
    def silent_open(self):
        """Whether it hears of no open(2)."""
        return b"io=cached" in self.extra

    def __init__(self, path, words=(), extra=b"", whiteout_files=False):
        self.path = path
        self.argv = [path, *words]
        self.name = os.path.basename(path)
        self.extra = extra
        self.whiteout_files = whiteout_files  # which the kernel's overlayfs cannot read
        self.env = dict(os.environ)
        if whiteout_files:
            self.name = "fuse-overlayfs"
            self.argv = [self.name]
            self.env["FUSE_OVERLAYFS_DISABLE_OVL_WHITEOUT"] = "1"

    def mount(self, stack, mountpoint):
        options = _options(stack, stack.options, self.extra)
        argv = [*self.argv, "-o", options, mountpoint]
        with subprocess.Popen(argv, executable=self.path, env=self.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT) as p:
            try:
                said = p.communicate(timeout=60)[0]
            except subprocess.TimeoutExpired:
                p.kill()
                p.wait()
                return "%s did not come back from mounting" % self.name
        if p.returncode:
            return "exit status %d: %s" % (p.returncode, said.decode(errors="replace").strip())
        return None


def implementation(word, whiteout_files=False):
    """
    @whiteout_files: plyfs as fuse-overlayfs, with whiteouts that are files.

    "kernel" or "kernel:OPTIONS" (to try the oracle itself), else the path of plyfs, or of something
    whose name begins with fuse-overlayfs, with OPTIONS after a comma.
    """
    if word == "kernel" or word.startswith("kernel:"):
        return Kernel(os.fsencode(word[7:]))
    path, _, extra = word.partition(",")
    if whiteout_files:
        words = "dev," + extra if extra else "dev"  # under this name nodev is the default
        return Fuse(path, extra=os.fsencode(words), whiteout_files=True)
    if os.path.basename(path).startswith("fuse-overlayfs"):
        return Fuse(path, extra=os.fsencode(extra))
    return Fuse(path, ["mount"], extra=os.fsencode(extra))


def drop_caches(mountpoint):
    """
    Drops the kernel's names and unused inodes of this mount, and of no other: what the superblock's
    reconfiguration does, here with nothing to change.
    """
    fd = sc.fspick(mountpoint)
    try:
        sc.fsconfig_reconfigure(fd)
    finally:
        os.close(fd)


def umount(mountpoint):
    sc.umount(mountpoint)
