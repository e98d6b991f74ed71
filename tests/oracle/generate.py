# SPDX-License-Identifier: MIT
"""
Makes up operations. They are concrete once made: paths, flags, sizes, callers. What to do next is
chosen with knowledge of the tree as the reference shows it, so that most operations meet something;
the list is recorded, and a replay needs nothing of this file.
"""

import fcntl
import os
import stat

import syscalls as sc
import values as v
from course import Course
from side import MAPS, SLOTS

ANY = "fdlpscb"

GROUPS = {
    "names": ["mkdir", "mkdir", "mknod", "mknod", "symlink", "link", "link", "unlink", "unlink",
              "rmdir", "rename", "rename", "rename"],
    "attributes": ["chmod", "chown", "utimens", "truncate", "stat", "access", "readlink", "statfs"],
    "xattrs": ["setxattr", "getxattr", "listxattr", "removexattr", "setxattr"],
    "open": ["open"] * 7 + ["close", "dup"],
    "data": ["read", "pread", "preadv", "write", "pwrite", "pwritev", "lseek", "ftruncate",
             "fallocate", "copy_file_range", "sendfile", "dread", "dwrite", "write", "read"],
    "handles": ["fstat", "fchmod", "fchown", "futimens", "fgetxattr", "fsetxattr", "flistxattr",
                "fremovexattr", "fchownat_empty", "readlink_empty", "link_empty", "fsync",
                "fdatasync", "syncfs", "fgetflags", "fsetflags", "fstat"],
    "mappings": ["mmap", "mmap", "mread", "mwrite", "msync", "munmap"],
    "directories": ["readdir", "readdir", "dir_begin", "dir_end", "rewind"],
    "locks": ["flock", "setlk", "getlk"],
    "caches": ["drop_caches"],
}
WEIGHT = {"names": 30, "attributes": 16, "xattrs": 9, "open": 18, "data": 18, "handles": 10,
          "mappings": 6, "directories": 5, "locks": 2, "caches": 1}

OPEN_FLAGS = [
    os.O_RDONLY, os.O_RDONLY, os.O_RDWR, os.O_RDWR, os.O_WRONLY,
    os.O_RDWR | os.O_CREAT, os.O_RDWR | os.O_CREAT, os.O_RDWR | os.O_CREAT | os.O_EXCL,
    os.O_WRONLY | os.O_CREAT | os.O_TRUNC, os.O_RDWR | os.O_TRUNC, os.O_RDONLY | os.O_TRUNC,
    os.O_WRONLY | os.O_APPEND, os.O_RDWR | os.O_APPEND | os.O_CREAT,
    os.O_RDONLY | os.O_DIRECTORY, os.O_RDONLY | os.O_DIRECTORY, os.O_RDONLY | os.O_NOFOLLOW,
    os.O_RDWR | os.O_NOFOLLOW | os.O_CREAT, os.O_RDWR | os.O_TMPFILE, os.O_WRONLY | os.O_TMPFILE,
    os.O_RDWR | os.O_TMPFILE | os.O_EXCL, os.O_PATH, os.O_PATH | os.O_NOFOLLOW,
    os.O_RDWR | os.O_SYNC, os.O_RDONLY | os.O_NOATIME, os.O_RDWR | os.O_DIRECT,
    os.O_RDONLY | os.O_DIRECT, os.O_WRONLY | os.O_DIRECTORY, os.O_RDONLY | os.O_CREAT,
    os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW,
]

SIZES = [0, 1, 5, 100, 4095, 4096, 4097, 8192, 20000, 65536, 131072, 200000]


# What nobody sees in a layer afterwards.
NOT_STAGED = ["mappings", "directories", "locks", "caches"]


class Generator:
    """@stage: the options of the mount that makes a lower layer, when it is not the plan's."""

    def __init__(self, rng, plan, stage=None):
        self.rng = rng
        self.course = Course(self) if "options" in plan else None
        # tmpfs cannot, and the kernel's overlayfs drops set-user-ID before it finds out
        self.zero_range = [0x10, 0x11] if plan["fs"][0] == "disk" else []
        # refused flags clear what was set before on the kernel's overlayfs
        self.attr_flags = rng.choice([[0, 0x40, 0x80, 0x08, 0xC0], [0, 0x40, 0x20, 0x10, 0xC0]])
        if stage is not None and 0x08 in self.attr_flags:
            self.attr_flags.remove(0x08)  # which tmpfs cannot take over from ext4
        self.kinds = {b"": "d"}
        self.slots = [None] * SLOTS  # the type of what is open, as in stat's mode
        self.access = [""] * SLOTS  # "r", "w", "rw"; "" for O_PATH
        self.direct = set()
        self.begun = set()  # slots with a half-read directory
        self.xattrs = {}  # path -> names that are set
        self.maps = [False] * MAPS
        self.links = []  # paths of files that have several
        weights = {}
        for group, names in GROUPS.items():
            # a mapping makes holes incomparable (see differences.py): half the sequences have none
            boost = rng.choice([0, 0, 1, 3] if group == "mappings" else [0.3, 1, 1, 1, 3])
            if stage is not None and group in NOT_STAGED:
                boost = 0
            for name in names:
                weights[name] = weights.get(name, 0) + WEIGHT[group] * boost / len(names)
        self.weights = weights
        self.strangers = rng.choice([0, 0.2, 0.5])

    # ---- what is known of the tree

    def learn(self, tree):
        """Takes over the tree as the reference shows it."""
        self.kinds = {p: e["type"] for p, e in tree.items() if len(e["type"]) == 1}
        self.xattrs = {p: list(e["xattrs"]) for p, e in tree.items()
                       if isinstance(e.get("xattrs"), dict)}
        self.links = [p for p, e in tree.items() if "same as" in e]

    def observe(self, op, args, result):
        """Follows one operation of the reference roughly; the next look corrects it."""
        if "error" in result or "skip" in result:
            return
        p, to = args.get("p"), args.get("to")
        kinds = self.kinds
        if op == "mkdir":
            kinds[p] = "d"
        elif op == "mknod":
            kinds[p] = "f" if stat.S_ISREG(args["mode"]) else "p"
        elif op == "symlink":
            kinds[p] = "l"
        elif op in ("unlink", "rmdir"):
            kinds.pop(p, None)
        elif op == "link":
            kinds[to] = kinds.get(p, "f")
        elif op == "link_empty":
            kinds[to] = "f"
        elif op == "rename" and p != to:
            moved = self._take(p)
            other = self._take(to)
            for rest, kind in moved.items():
                kinds[to + rest] = kind
            if args.get("flags", 0) == sc.RENAME_EXCHANGE:
                for rest, kind in other.items():
                    kinds[p + rest] = kind
        elif op in ("open", "dir_begin"):
            h, flags = args["h"], args.get("flags", 0)
            self.slots[h] = result.get("mode", "d")[0]
            self.access[h] = "" if flags & os.O_PATH else ("r", "w", "rw", "")[flags & 3]
            (self.begun.add if op == "dir_begin" else self.begun.discard)(h)
            if flags & os.O_DIRECT:
                self.direct.add(args["h"])
            else:
                self.direct.discard(args["h"])
            if flags & os.O_CREAT and p not in kinds and p[:1] != b"@":
                kinds[p] = "f"
        elif op in ("dir_end", "rewind"):
            self.begun.discard(args["h"])
        elif op == "dup":
            self.slots[to], self.access[to] = self.slots[args["h"]], self.access[args["h"]]
            self.begun.discard(to)
            (self.direct.add if args["h"] in self.direct else self.direct.discard)(to)
        elif op == "close":
            self.slots[args["h"]] = None
        elif op in ("setxattr", "removexattr") and p[:1] != b"@":
            names = self.xattrs.setdefault(p, [])
            if op == "setxattr":
                names.append(args["name"])
            elif args["name"] in names:
                names.remove(args["name"])
        elif op == "mmap":
            self.maps[args["m"]] = True
        elif op == "munmap":
            self.maps[args["m"]] = False

    def forget_handles(self):
        self.slots = [None] * SLOTS
        self.maps = [False] * MAPS
        self.begun.clear()

    def _take(self, p):
        under = p + b"/"
        moved = {q[len(p):]: k for q, k in self.kinds.items() if q == p or q.startswith(under)}
        for rest in moved:
            del self.kinds[p + rest]
        return moved

    # ---- choosing

    def existing(self, want=None):
        """A path that is there, of one of the kinds in @want if there is any."""
        paths = [p for p, k in self.kinds.items() if p and (want is None or k in want)]
        if not paths:
            paths = [p for p in self.kinds if p] or [b"a"]
        return self.rng.choice(paths)

    def directory(self):
        rng = self.rng
        dirs = [p for p, k in self.kinds.items() if k == "d"]
        return rng.choice(dirs)

    def name(self):
        rng = self.rng
        if rng.random() < 0.9:
            return rng.choice(v.NAMES)
        return rng.choice(v.ODD_NAMES + [v.TOO_LONG])

    def new(self):
        """A path whose parent is there; the name may be taken."""
        rng = self.rng
        roll = rng.random()
        dirs = [i for i, k in enumerate(self.slots) if k == "d"]
        if roll < 0.06 and dirs:
            return b"@%d/" % rng.choice(dirs) + self.name()
        if roll < 0.09:
            return self.existing() + b"/" + self.name()
        path = b""
        for _ in range(3):
            parent = self.directory()
            path = parent + b"/" + self.name() if parent else self.name()
            if path not in self.kinds:
                break
        return path

    def path(self, want=None, free=0.1, slot=0.05):
        rng = self.rng
        roll = rng.random()
        used = [i for i, k in enumerate(self.slots) if k]
        if roll < slot and used:
            return b"@%d" % rng.choice(used)
        if roll < slot + free:
            return self.new()
        if roll < slot + free + 0.02:
            return b""
        return self.existing(want if rng.random() < 0.85 else None)

    def slot(self, want="f", access="", direct=False):
        """An open slot, nearly always of the type and access wanted."""
        rng = self.rng
        open_slots = [i for i, k in enumerate(self.slots) if k and (i in self.direct) == direct]
        good = [i for i in open_slots if self.slots[i] in want and access in self.access[i]]
        if good and rng.random() < 0.95:
            return rng.choice(good)
        if access and rng.random() < 0.8:
            return None
        return rng.choice(open_slots) if open_slots else None

    def free_slot(self):
        empty = [i for i, k in enumerate(self.slots) if not k]
        return self.rng.choice(empty) if empty and self.rng.random() < 0.8 \
            else self.rng.randrange(SLOTS)

    def time(self):
        rng = self.rng
        roll = rng.random()
        if roll < 0.15:
            return (0, sc.UTIME_NOW)
        if roll < 0.3:
            return (0, sc.UTIME_OMIT)
        return v.old_time(rng)

    def size(self):
        rng = self.rng
        if rng.random() < 0.02:
            return rng.choice([1 << 20, (1 << 20) + 1])
        return rng.choice(SIZES) if rng.random() < 0.7 else rng.randrange(200000)

    def xattr_name(self, p=None):
        rng = self.rng
        if self.xattrs.get(p) and rng.random() < 0.6:
            return rng.choice(self.xattrs[p])
        return rng.choice(rng.choices(
            [v.USER_XATTRS[:2], v.ROOT_XATTRS, [b"security.capability"],
             [v.ACL_ACCESS, v.ACL_DEFAULT], v.OVERLAY_XATTRS, v.BAD_XATTRS],
            [40, 15, 8, 20, 15, 2])[0])

    # ---- making

    def next(self):
        rng = self.rng
        if self.course and (step := self.course.next()):
            return step
        for _ in range(50):
            op = rng.choices(list(self.weights), list(self.weights.values()))[0]
            args = getattr(self, "make_" + op)()
            if args is None:
                continue
            if op != "drop_caches" and rng.random() < self.strangers:
                args["who"] = rng.choice(v.CALLERS)
            if op in ("open", "mkdir", "mknod") and rng.random() < 0.4:
                args["umask"] = rng.choice(v.UMASKS)
            return op, args
        return "stat", {"p": self.existing()}

    def make_mkdir(self):
        return {"p": self.new(), "mode": self.rng.choice(v.DIR_MODES)}

    def make_mknod(self):
        rng = self.rng
        kind = rng.choices([stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK],
                           [40, 25, 10, 15, 5])[0]
        out = {"p": self.new(), "mode": kind | (rng.choice(v.FILE_MODES) & 0o7777)}
        if kind == stat.S_IFCHR:
            out["rdev"] = rng.choice(v.CHR + [(0, 0)])
        elif kind == stat.S_IFBLK:
            out["rdev"] = rng.choice(v.BLK)
        return out

    def make_symlink(self):
        return {"to": self.rng.choice(v.SYMLINK_TARGETS), "p": self.new()}

    def make_link(self):
        p = self.path("flpscb", free=0.05, slot=0.15)
        return {"p": p, "to": self.new(), "follow": p[:1] == b"@" or self.rng.random() < 0.2}

    def make_unlink(self):
        return {"p": self.path("flpscb", free=0.05, slot=0)}

    def make_rmdir(self):
        return {"p": self.path("d", free=0.03, slot=0)}

    def make_rename(self):
        rng = self.rng
        flags = rng.choices([0, sc.RENAME_NOREPLACE, sc.RENAME_EXCHANGE, sc.RENAME_WHITEOUT, 3, 8],
                            [64, 12, 17, 3, 2, 2])[0]
        p = self.path(free=0.03, slot=0)
        to = self.existing() if rng.random() < (0.9 if flags == 2 else 0.45) else self.new()
        return {"p": p, "to": to, "flags": flags} if flags else {"p": p, "to": to}

    def make_open(self):
        rng = self.rng
        flags = rng.choice(OPEN_FLAGS)
        tmpfile = flags & os.O_TMPFILE == os.O_TMPFILE
        if tmpfile or flags & os.O_DIRECTORY:
            p = self.path("d", free=0.02)
        elif flags & os.O_CREAT:
            p = self.path("f", free=0.6)
        else:
            p = self.path("f" if rng.random() < 0.8 else None, free=0.03)
        if p[:1] == b"@" and b"/" not in p:
            flags &= ~os.O_NOFOLLOW
        out = {"h": self.free_slot(), "p": p, "flags": flags}
        if flags & os.O_CREAT or tmpfile:
            out["mode"] = rng.choice(v.FILE_MODES)
        return out

    def on(self, want="f", access="", **more):
        h = self.slot(want, access)
        return None if h is None else {"h": h, **more}

    def make_close(self):
        return self.on(ANY)

    def make_dup(self):
        h = self.slot(ANY)
        return None if h is None else {"h": h, "to": self.free_slot()}

    def make_read(self):
        return self.on("f", "r", n=self.size() or 10)

    def make_pread(self):
        return self.on("f", "r", n=self.size() or 10, off=self.size())

    make_preadv = make_pread

    def make_write(self):
        return self.on("f", "w", n=self.size(), tag=self.rng.randrange(1000))

    def make_pwrite(self):
        return self.on("f", "w", n=self.size(), off=self.size(), tag=self.rng.randrange(1000))

    make_pwritev = make_pwrite

    def make_dread(self):
        h = self.slot("f", "r", direct=True)
        return None if h is None else {"h": h, "blocks": self.rng.choice([1, 2, 20]),
                                       "off": self.rng.randrange(8) * 4096}

    def make_dwrite(self):
        out = self.make_dread()
        if out is not None:
            out["tag"] = self.rng.randrange(1000)
        return out

    def make_lseek(self):
        rng = self.rng
        whence = rng.choice([0, 1, 2, 3, 3, 3, 4, 4, 4])
        if whence == 2:
            return self.on(off=rng.choice([0, -1, -100, 10]), whence=whence)
        return self.on(off=rng.choice([self.size(), 0, 1, 4096, -1]), whence=whence)

    def make_ftruncate(self):
        return self.on("f", "w", size=self.size())

    def make_fallocate(self):
        rng = self.rng
        mode = rng.choice([0, 0, 0, 1, 1, 3, 3, 3, 3, *self.zero_range])
        return self.on("f", "w", mode=mode, off=rng.choice([self.size(), rng.randrange(20) * 4096]),
                       n=rng.choice([self.size(), 4096, 8192]))

    def make_copy_file_range(self):
        h, to = self.slot("f", "r"), self.slot("f", "w")
        if h is None or to is None:
            return None
        return {"h": h, "to": to, "n": self.size(), "off": self.size(), "to_off": self.size()}

    def make_sendfile(self):
        h, to = self.slot("f", "r"), self.slot("f", "w")
        if h is None or to is None:
            return None
        return {"h": h, "to": to, "n": self.size(), "off": self.size()}

    def make_fsync(self):
        return self.on("fd")

    make_fdatasync = make_fsync
    make_syncfs = make_fsync

    def make_fstat(self):
        return self.on(ANY)

    def make_fchmod(self):
        return self.on(ANY, mode=self.rng.choice(v.FILE_MODES))

    def make_fchown(self):
        return self.on(ANY, **self.owner())

    def owner(self):
        rng = self.rng
        uid, gid = rng.choice(v.IDS + [-1, -1]), rng.choice(v.IDS + [-1, -1])
        return {"uid": 0 if uid == gid == -1 else uid, "gid": gid}

    make_fchownat_empty = make_fchown

    def make_readlink_empty(self):
        return self.on("l")

    def make_link_empty(self):
        h = self.slot("fpscbl")
        return None if h is None else {"h": h, "to": self.new()}

    def make_futimens(self):
        return self.on(ANY, atime=self.time(), mtime=self.time())

    def make_fgetxattr(self):
        out = self.on(ANY, name=self.xattr_name())
        if out and self.rng.random() < 0.3:
            out["size"] = self.rng.choice([0, 1, 5])
        return out

    def make_flistxattr(self):
        return self.on(ANY, size=self.rng.choice([65536, 65536, 0, 3]))

    def xattr_value(self, name):
        value = v.xattr_value(self.rng, name)
        if not value and self.course and name == b"security.capability":
            value = b"junk"  # the kernel's overlayfs cannot copy up what has empty capabilities
        return value

    def make_fsetxattr(self):
        name = self.xattr_name()
        return self.on(ANY, name=name, value=self.xattr_value(name),
                       flags=self.rng.choice([0, 0, 0, 1, 2]))

    def make_fremovexattr(self):
        return self.on(ANY, name=self.xattr_name())

    def make_fgetflags(self):
        return self.on("fd", fsx=self.rng.random() < 0.3)

    def make_fsetflags(self):
        return self.on("fd", flags=self.rng.choice(self.attr_flags))

    def make_flock(self):
        return self.on("fd", how=self.rng.choice([fcntl.LOCK_SH, fcntl.LOCK_EX, fcntl.LOCK_UN]))

    def make_setlk(self):
        rng = self.rng
        return self.on("f", type=rng.choice([fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK]),
                       start=rng.choice([0, 10, 100]), n=rng.choice([0, 10, 1000]))

    def make_getlk(self):
        rng = self.rng
        return self.on("f", type=rng.choice([fcntl.F_RDLCK, fcntl.F_WRLCK]),
                       start=rng.choice([0, 10, 100]), n=rng.choice([0, 10, 1000]))

    def make_mmap(self):
        rng = self.rng
        h = self.slot("f", rng.choice(["r", "rw", "rw"]))
        if h is None:
            return None
        return {"m": rng.randrange(MAPS), "h": h, "n": rng.choice([4096, 16384, 65536]),
                "off": rng.choice([0, 0, 0, 4096]), "prot": rng.choice([1, 3, 3]),
                "shared": rng.random() < 0.75}

    def map(self):
        maps = [m for m in range(MAPS) if self.maps[m]]
        return self.rng.choice(maps) if maps else None

    def make_mread(self):
        m = self.map()
        return None if m is None else {"m": m, "off": self.rng.choice([0, 100, 4096, 8192]),
                                       "n": self.rng.choice([1, 200, 5000])}

    def make_mwrite(self):
        out = self.make_mread()
        if out:
            out["tag"] = self.rng.randrange(1000)
        return out

    def make_msync(self):
        m = self.map()
        return None if m is None else {"m": m}

    make_munmap = make_msync

    def make_readdir(self):
        return {"p": self.path("d", free=0.02)}

    def make_dir_begin(self):
        return {"h": self.free_slot(), "p": self.path("d", free=0, slot=0)}

    def make_dir_end(self):
        return {"h": self.rng.choice(sorted(self.begun))} if self.begun else None

    def make_rewind(self):
        return self.on("d", "r")

    def make_stat(self):
        p = self.path()
        return {"p": p, "follow": p[:1] == b"@" or self.rng.random() < 0.5}

    def make_access(self):
        rng = self.rng
        return {"p": self.path(), "mode": rng.randrange(8),
                "flags": rng.choice([0, 0, sc.AT_EACCESS])}

    def make_readlink(self):
        p = self.path("l", slot=0)
        return {"p": p}

    def make_statfs(self):
        return {"p": self.path()} if self.rng.random() < 0.5 else None

    def make_chmod(self):
        rng = self.rng
        p = self.path()
        follow = p[:1] == b"@" or rng.random() < 0.9
        return {"p": p, "mode": rng.choice(v.FILE_MODES + v.DIR_MODES), "follow": follow}

    def make_chown(self):
        rng = self.rng
        p = self.path()
        return {"p": p, **self.owner(),
                "follow": p[:1] == b"@" or rng.random() < 0.6}

    def make_truncate(self):
        return {"p": self.path("f"), "size": self.size()}

    def make_utimens(self):
        p = self.path()
        return {"p": p, "atime": self.time(), "mtime": self.time(),
                "follow": p[:1] == b"@" or self.rng.random() < 0.6}

    def _xattr(self):
        p = self.path("fd")
        return {"p": p, "name": self.xattr_name(p),
                "follow": p[:1] == b"@" or self.rng.random() < 0.6}

    def make_getxattr(self):
        out = self._xattr()
        if self.rng.random() < 0.3:
            out["size"] = self.rng.choice([0, 1, 5])
        return out

    def make_listxattr(self):
        out = self._xattr()
        del out["name"]
        out["size"] = self.rng.choice([65536, 65536, 0, 3])
        return out

    def make_setxattr(self):
        out = self._xattr()
        out["value"] = self.xattr_value(out["name"])
        out["flags"] = self.rng.choice([0, 0, 0, 1, 2])
        return out

    make_removexattr = _xattr

    def make_drop_caches(self):
        return {}
