# SPDX-License-Identifier: MIT
"""A Union that is mounted by plyfs under the name fuse-overlayfs, or by that program itself."""

import ctypes
import os
import stat
import struct
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


# --- filesystems that lack something --------------------------------------------------------------

PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2
RET_ALLOW, RET_ERRNO = 0x7FFF0000, 0x00050000
LD, JEQ, AND, RET = 0x20, 0x15, 0x54, 0x06
X86 = os.uname().machine == "x86_64"
RENAMEAT2, MKNODAT, LINKAT = (316, 259, 265) if X86 else (276, 33, 37)
SETXATTR = (463, 188, 189, 190) if X86 else (463, 5, 6, 7)
EINVAL, EPERM, EOPNOTSUPP = 22, 1, 95

# what: system call, (argument, mask, value that fails, or "any other"), errno
RULES = {
    "rename flags": [(RENAMEAT2, [(4, 0xFFFFFFFF, 0, "other")], EINVAL)],
    "devices": [(MKNODAT, [(2, 0o170000, stat.S_IFCHR, "this"), (3, 0xFFFFFFFF, 0, "this")], EPERM)],
    "links": [(LINKAT, [], EPERM)],
    "xattrs": [(number, [], EOPNOTSUPP) for number in SETXATTR],
    "files": [(MKNODAT, [(2, 0o170000, stat.S_IFREG, "this")], EINVAL)],
}


def lacking(*what):
    """Something for preexec_fn: calls for this fail as on filesystems that do not have it."""
    program = []
    for number, conditions, error in (rule for name in what for rule in RULES[name]):
        # each rule: load, compare, and go on behind the rule where it does not fit
        length = 2 + sum(3 for _ in conditions) + 1
        program += [(LD, 0, 0, 0), (JEQ, 0, length - 2, number)]
        left = length - 2
        for argument, mask, value, which in conditions:
            left -= 3
            program += [(LD, 0, 0, 16 + 8 * argument), (AND, 0, 0, mask)]
            program.append((JEQ, left, 0, value) if which == "other" else (JEQ, 0, left, value))
        program.append((RET, 0, 0, RET_ERRNO | error))
    program.append((RET, 0, 0, RET_ALLOW))
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in program))
    head = ctypes.create_string_buffer(
        struct.pack("@HxxxxxxP", len(program), ctypes.addressof(code))
    )

    def install():
        lib.check(lib.libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, head, 0, 0))

    install.code = code
    return install


# --- mounting -------------------------------------------------------------------------------------


def run(*argv, env=None, **kw):
    """As engines do: no input, and a pipe that is read to its end."""
    return subprocess.run(
        list(map(os.fspath, argv)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="surrogateescape",
        env={**os.environ, **lib.settings.sanitizer_env, **(env or {})},
        timeout=60,
        check=False,
        **kw,
    )


def call(argv0, options, point, env=None, preexec=None):
    return run(argv0, "-o", options, point, env=env, preexec_fn=preexec)


def adopt(point, before):
    """The mount that is on @point now, with its daemon, a child that was none before."""
    mounted = lib.Mount(point, "plyfs")

    def find():
        new = [p for p in lib.children() if p not in before]
        return [p for p in new if lib.process_name(p).startswith(("fuse-", "mount.", "plyfs"))]

    pids = lib.wait_for(find, 5, "a daemon")
    assert len(pids) == 1, f"more than one daemon: {pids}"
    mounted.daemon = lib.Daemon(pids[0])
    return mounted


def mount(argv0, lowers, upper, work, point, options="", env=None, silent=True, preexec=None):
    """Mounts in the background; what it says is in Mount.says."""
    before = set(lib.children())
    done = call(argv0, lib.layer_options(lowers, upper, work, options), point, env, preexec)
    assert done.returncode == 0, f"{argv0}: exit {done.returncode}: {done.stderr}"
    if silent:
        assert (done.stdout, done.stderr) == ("", ""), f"not silent: {done.stdout}{done.stderr}"
    mounted = adopt(point, before)
    mounted.says = done.stderr
    return mounted


class DropinUnion(lib.Union):
    """impl: plyfs under the other name ("dropin", the default), the same with whiteouts that are
    files ("files"), Debian's fuse-overlayfs ("incumbent"), or "plyfs" and "kernel" as ever."""

    impl = "dropin"
    preexec = None  # what lacking() returns

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
        silent = impl != "incumbent"
        mounted = mount(
            argv0, lowers, up, self.work, point, options, env, silent, self.preexec
        )
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
