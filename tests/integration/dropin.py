# SPDX-License-Identifier: MIT
"""A Union that is mounted by plyfs under the name fuse-overlayfs, or by that program itself."""

import os
import subprocess

import plyfs_testlib as lib

INCUMBENT = "/usr/bin/fuse-overlayfs"
NO_DEVICES = "FUSE_OVERLAYFS_DISABLE_OVL_WHITEOUT"


def program(base):
    """plyfs under the other name."""
    link = os.path.join(base, "fuse-overlayfs")
    if not os.path.lexists(link):
        os.symlink(lib.settings.plyfs, link)
    return link


def call(argv0, options, point, env=None):
    """As engines do: no input, and a pipe that is read to its end."""
    return subprocess.run(
        [argv0, "-o", options, os.fspath(point)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="surrogateescape",
        env={**os.environ, **lib.settings.sanitizer_env, **(env or {})},
        timeout=60,
        check=False,
    )


def mount(argv0, lowers, upper, work, point, options="", env=None, silent=True):
    """Mounts in the background; what it says is in Mount.says."""
    before = set(lib.children())
    done = call(argv0, lib.layer_options(lowers, upper, work, options), point, env)
    assert done.returncode == 0, f"{argv0}: exit {done.returncode}: {done.stderr}"
    if silent:
        assert (done.stdout, done.stderr) == ("", ""), f"not silent: {done.stdout}{done.stderr}"
    mounted = lib.Mount(point, "plyfs")
    mounted.says = done.stderr

    def find():
        new = [p for p in lib.children() if p not in before]
        return [p for p in new if lib.process_name(p).startswith("fuse-overlayfs")]

    pids = lib.wait_for(find, 5, "a daemon")
    assert len(pids) == 1, f"more than one daemon: {pids}"
    mounted.daemon = lib.Daemon(pids[0])
    return mounted


class DropinUnion(lib.Union):
    """impl: plyfs under the other name ("dropin", the default), the same with whiteouts that are
    files ("files"), Debian's fuse-overlayfs ("incumbent"), or "plyfs" and "kernel" as ever."""

    impl = "dropin"

    def __init__(self, base):
        super().__init__(base)
        self.check_kernel = False

    def mount(self, options="", upper=True, lowers=None, impl=None, point=None, flags=0):
        impl = impl or self.impl
        if impl in ("plyfs", "kernel"):
            return super().mount(options, upper, lowers, impl, point, flags)
        lowers = [lib.Path(p) for p in (lowers or self.lowers)]
        point = lib.Path(point or self.point)
        up = (self.upper if upper is True else upper) or None
        if not self._snapshots:
            self.snapshot_lowers()
        if point == self.point:
            self.last_options, self.last_lowers, self.last_upper = options, lowers, up
        argv0 = INCUMBENT if impl == "incumbent" else program(self.base)
        env = {NO_DEVICES: "1"} if impl == "files" else None
        mounted = mount(argv0, lowers, up, self.work, point, options, env, impl != "incumbent")
        self.mounts.append(mounted)
        if point == self.point:
            self.mounted = mounted
        return point


def dropin_union(new_union, name="d", impl="dropin", base=None):
    """A DropinUnion that the fixture new_union closes."""
    union = new_union(name, base)
    union.__class__ = DropinUnion
    union.check_kernel = False
    union.impl = impl
    return union
