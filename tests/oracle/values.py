# SPDX-License-Identifier: MIT
"""Names, contents, owners, xattr values: the vocabulary that layers and operations draw from."""

import random
import struct

# Deterministic bytes without a short period, so that a shifted or repeated block shows.
PATTERN = random.Random(20240229).randbytes(1 << 20)

LONG = b"L" * 255
TOO_LONG = b"T" * 256
NAMES = [b"a", b"b", b"c", b"d", b"e"]
ODD_NAMES = [
    LONG, b"sp ace", b"\xff\xfe\x80", b"new\nline", b".hidden", b".wh.a", b".wh..wh..opq", b"#1",
    b"a:b,c\\d", b"M" * 254,
]



def leave_whiteout_names():
    """
    Leaves out the names that a union whose whiteouts may be files has no room for, and the marks of
    layers that say something there whichever prefix the mount itself uses.
    """
    for i, name in enumerate(ODD_NAMES):
        ODD_NAMES[i] = name.replace(b".wh.", b".w.h.")[:251]
    for i, name in enumerate(OVERLAY_XATTRS):
        OVERLAY_XATTRS[i] = name.replace(b"user.overlay.", b"user.overlays.")


# Two ordinary users, with and without a group in common, and a stranger.
ROOT = (0, 0, ())
CALLERS = [
    (1000, 1000, ()), (1000, 1000, (2000,)), (1001, 1001, (1000, 2000)), (1002, 2000, ()),
    (1000, 2000, ()),
]
IDS = [0, 0, 1000, 1000, 1001, 2000]
UMASKS = [0o022, 0o022, 0, 0o077, 0o027]

FILE_MODES = [0o644, 0o600, 0o666, 0o755, 0o777, 0o444, 0o000, 0o4755, 0o2755, 0o2745, 0o6711,
              0o1644, 0o640, 0o664]
DIR_MODES = [0o755, 0o755, 0o777, 0o777, 0o700, 0o1777, 0o2775, 0o2770, 0o555, 0o3777, 0o711, 0o000]

# Devices that anybody may open without harm: null, zero, full and one without a driver.
CHR = [(1, 3), (1, 5), (1, 7), (240, 99)]
BLK = [(240, 5)]

SYMLINK_TARGETS = [
    b"a", b"b", b"c", b"d/a", b"a/b", b"../a", b"../b", b"./c", b"dangling/x", b"d",
    b"/nonexistent-oracle/x", b"e", b"S" * 300,
]


def data(tag, length):
    start = (tag * 7919) % 65536
    out = PATTERN[start:start + length]
    while len(out) < length:
        out += PATTERN[:length - len(out)]
    return out


ACL_ACCESS = b"system.posix_acl_access"
ACL_DEFAULT = b"system.posix_acl_default"


def acl(rng):
    """A valid POSIX ACL in the kernel's xattr form (include/uapi/linux/posix_acl_xattr.h)."""
    entries = [(0x01, rng.choice([7, 6, 5, 7]), 0xFFFFFFFF)]
    users = rng.sample([1000, 1001, 1002], rng.randrange(3))
    entries += [(0x02, rng.randrange(8), uid) for uid in sorted(users)]
    entries.append((0x04, rng.randrange(8), 0xFFFFFFFF))
    groups = rng.sample([1000, 2000], rng.randrange(2))
    entries += [(0x08, rng.randrange(8), gid) for gid in sorted(groups)]
    if users or groups:
        entries.append((0x10, rng.choice([7, 5, 6, 4, 0]), 0xFFFFFFFF))
    entries.append((0x20, rng.choice([0, 4, 5, 7]), 0xFFFFFFFF))
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *e) for e in entries)


def capability(rng):
    """VFS_CAP_REVISION_2 with a few permitted bits."""
    return struct.pack("<IIIII", 0x02000001, rng.choice([0x400, 0x2000, 0x1]), 0, 0, 0)


USER_XATTRS = [b"user.a", b"user.b", b"user.c", b"user." + b"n" * 240]
ROOT_XATTRS = [b"trusted.x", b"trusted.y", b"security.foo", b"trusted.overlayx"]
OVERLAY_XATTRS = [
    b"trusted.overlay.opaque", b"trusted.overlay.origin", b"trusted.overlay.foo",
    b"trusted.overlay.overlay.foo", b"trusted.overlay.whiteout", b"trusted.overlay.redirect",
    b"trusted.overlay.metacopy", b"trusted.overlay.impure", b"user.overlay.opaque",
    b"trusted.overlay.", b"trusted.overlay." + b"e" * 239,
]
BAD_XATTRS = [b"none", b"user.", b"system.foo", b"user." + b"z" * 251, b"os2.x"]


def xattr_value(rng, name):
    if name in (ACL_ACCESS, ACL_DEFAULT):
        return rng.choice([acl(rng), acl(rng), acl(rng), acl(rng), b"", b"\2\0\0\0", b"junk"])
    if name == b"security.capability":
        return rng.choice([capability(rng), capability(rng), capability(rng), b"", b"junk"])
    return data(rng.randrange(1000), rng.choice([0, 1, 3, 17, 64, 300, 300, 2000]))


def old_time(rng):
    """Seconds and nanoseconds that no clock of ours shows: long ago, before 1970, far ahead."""
    sec = rng.choice([rng.randrange(10**8, 10**9), rng.randrange(10**8, 10**9),
                      -rng.randrange(1, 10**8), 4102444800 + rng.randrange(1000), 0])
    return (sec, rng.choice([0, 1, 123456789, 999999999, rng.randrange(10**9)]))
