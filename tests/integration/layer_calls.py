# SPDX-License-Identifier: MIT
"""Which system calls on its layers a server makes for something, under strace(1)."""

import crash
from plyfs_testlib import read

# of all that a server does, threads that come and go too, those that ask layers something; strace
# may not know the newer ones of xattrs by name
LAYER_CALLS = ("statx", "newfstatat", "openat", "openat2", "getdents64", "close", "readlinkat")


def count_calls(union, action):
    """The names of the system calls on layers that the server makes for it."""
    out = union.base / "calls"
    tracer = crash.trace(union.daemon, ["-o", out])
    try:
        action()
    finally:
        tracer.terminate()
        tracer.wait(10)
    lines = [line.split(None, 1)[1] for line in read(out).decode(errors="replace").splitlines()]
    names = [line.split("(")[0] for line in lines if "(" in line and "resumed" not in line]
    return [name for name in names if name in LAYER_CALLS or "xattr" in name or "_0x" in name]
