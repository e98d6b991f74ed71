# SPDX-License-Identifier: MIT
"""
One of the two mounts under comparison: executes operations on it and gives results that can be
compared.

A path in an operation is relative to the mount. "@N" is the open file in slot N, reached through
/proc/self/fd, and "@N/name" a name in the open directory there. A result is a dict: {"error":
"ENOENT"}, {"skip": 1} when a slot is empty (which happens once the shrinker has dropped the open),
or what the call returned. Times within the run are shown as "now", all others exactly.
"""

import ctypes
import errno
import fcntl
import os
import stat
import struct
import zlib

import syscalls as sc
import values as v

SLOTS = 8
MAPS = 3


CHANGES = {
    "fchmod", "fchown", "futimens", "fsetxattr", "fremovexattr", "fsetflags", "fchownat_empty",
    "chmod", "chown", "utimens", "setxattr", "removexattr",
}


class Skip(Exception):
    pass


def brief(data):
    """Data as results carry it: short pieces in full, long ones as length and checksum."""
    return data if len(data) <= 48 else (len(data), zlib.crc32(data))


class Side:
    def __init__(self, name, root, start):
        self.name = name
        self.root = root
        self.start = start  # ns; later times are "now"
        self.fds = [None] * SLOTS
        self.maps = [None] * MAPS
        self.scratch = os.memfd_create("oracle")
        self.flagged = False  # whether any file was ever made immutable or append-only
        self.lent = set()  # inodes that root may write to by an fd which somebody else has opened
        self.indexed = False  # whether hard links of lower layers are known by an index
        self.indexes_all = False  # whether everything that is copied up is, by nfs_export
        self.touches_opened = False  # see touch()
        self.mapped = False  # whether any file was ever mapped
        self.written_by_mapping = set()  # inode numbers
        self.dirs = {}  # slot -> names seen and names there at opendir

    # ---- helpers

    def when(self, ns):
        return "now" if self.start <= ns <= self.start + 3600 * 10**9 else ns

    def fd(self, slot):
        fd = self.fds[slot]
        if fd is None:
            raise Skip
        return fd

    def put(self, slot, fd):
        self.dirs.pop(slot, None)
        if self.fds[slot] is not None:
            os.close(self.fds[slot])
        self.fds[slot] = fd

    def path(self, p):
        if p[:1] == b"@":
            slot, _, rest = p[1:].partition(b"/")
            base = b"/proc/self/fd/%d" % self.fd(int(slot))
            return base + b"/" + rest if rest else base
        return self.root + b"/" + p

    def same_file(self, args):
        fds = self.fds[args["h"]], self.fds[args["to"]]
        return None not in fds and os.path.sameopenfile(*fds)

    def drop(self, slot):
        """Closes a slot and all others, and the mappings, of the same file."""
        if self.fds[slot] is None:
            return
        st = os.fstat(self.fds[slot])
        for other in range(SLOTS):
            if self.fds[other] is not None and os.path.samestat(st, os.fstat(self.fds[other])):
                self.op_close(other)
        for m in range(MAPS):
            if self.maps[m] and os.path.samestat(st, os.fstat(self.maps[m][2])):
                self.op_munmap(m)

    def close_all(self):
        for m in range(MAPS):
            if self.maps[m]:
                sc.munmap(self.maps[m][0], self.maps[m][1])
                os.close(self.maps[m][2])
                self.maps[m] = None
        for slot in range(SLOTS):
            if self.fds[slot] is not None:
                fd, self.fds[slot] = self.fds[slot], None
                os.close(fd)
        self.dirs.clear()

    def destroy(self):
        self.close_all()
        os.close(self.scratch)

    def show(self, st):
        out = {
            "mode": "%s%05o" % (sc.TYPE.get(st.mode >> 12, "?"), st.mode & 0o7777),
            "uid": st.uid, "gid": st.gid, "nlink": st.nlink, "mtime": self.when(st.mtime),
        }
        if not stat.S_ISDIR(st.mode):
            out["size"] = st.size
        if stat.S_ISCHR(st.mode) or stat.S_ISBLK(st.mode):
            out["rdev"] = st.rdev
        return out

    def show_fd(self, fd):
        return self.show(sc.statx(fd, b"", sc.AT_EMPTY_PATH))

    # ---- running

    def removed(self, args):
        """Whether this is a change to something open, not a regular file, without a name."""
        slot = args.get("h")
        if args.get("p", b"")[:1] == b"@" and b"/" not in args["p"]:
            slot = int(args["p"][1:])
        if slot is None or self.fds[slot] is None:
            return False
        return (not stat.S_ISREG(os.fstat(self.fds[slot]).st_mode)
                and os.readlink("/proc/self/fd/%d" % self.fds[slot]).endswith(" (deleted)"))

    def run(self, op, args):
        """One operation, as the caller given by who=(uid, gid, groups) and with umask=."""
        args = dict(args)
        who = args.pop("who", v.ROOT)
        umask = args.pop("umask", None)
        function = getattr(self, "op_" + op)
        if op in CHANGES and self.removed(args):
            return {"skip": 1}  # the kernel's overlayfs brings it back, over what has its name now
        try:
            if umask is not None:
                os.umask(umask)
            if who[0]:
                os.setgroups(who[2])
                os.setresgid(who[1], who[1], 0)
                os.setresuid(who[0], who[0], 0)
            try:
                result = function(**args) or {}
            finally:
                if who[0]:
                    os.setresuid(0, 0, 0)
                    os.setresgid(0, 0, 0)
                    os.setgroups([])
                if umask is not None:
                    os.umask(0o022)
            return self.afterwards(result) if callable(result) else result
        except Skip:
            return {"skip": 1}
        except OSError as e:
            return {"error": errno.errorcode.get(e.errno, str(e.errno))}

    def afterwards(self, look):
        """What root sees after an operation that went well."""
        try:
            return look()
        except OSError as e:
            return {"afterwards": errno.errorcode.get(e.errno, str(e.errno))}

    def skip_if_lent(self, st, mode):
        """
        With passthrough the rights of who opened a file say whether set-id bits that it was given
        afterwards survive a write, not those of who writes by the same fd: root's would
        lose them.
        """
        if mode & (stat.S_ISUID | stat.S_ISGID) and st.st_ino in self.lent:
            raise Skip

    # ---- opening and open files

    def op_open(self, h, p, flags, mode=0o644):
        fd = os.open(self.path(p), flags | os.O_NONBLOCK | os.O_CLOEXEC, mode)
        return lambda: self.opened(h, fd, flags)

    def opened(self, h, fd, flags):
        if self.touches_opened and not flags & (os.O_PATH | os.O_TRUNC):
            try:
                self.touch(fd, flags)
            except OSError as e:
                os.close(fd)
                return {"error": errno.errorcode.get(e.errno, str(e.errno))}
        self.put(h, fd)
        if os.geteuid() and flags & os.O_ACCMODE != os.O_RDONLY:
            self.lent.add(os.fstat(fd).st_ino)
        return self.show_fd(fd)

    def touch(self, fd, flags):
        """
        The kernel's overlayfs says at an open that the data of a file cannot be had, and copies up
        what is opened for writing. With io=cached plyfs does so at the first access. This is one
        that changes nothing.
        """
        st = sc.statx(fd, b"", sc.AT_EMPTY_PATH)
        if not stat.S_ISREG(st.mode):
            return
        plain = os.open(b"/proc/self/fd/%d" % fd, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.pread(plain, 1, 0)
        finally:
            os.close(plain)
        if flags & os.O_ACCMODE:
            try:
                os.ftruncate(fd, st.size)
            except PermissionError:
                if not flags & os.O_APPEND:
                    raise
            os.utime(fd, ns=(st.atime, st.mtime))

    def op_close(self, h):
        self.fd(h)
        fd, self.fds[h] = self.fds[h], None
        self.dirs.pop(h, None)
        os.close(fd)

    def op_dup(self, h, to):
        self.put(to, os.dup(self.fd(h)))

    def op_read(self, h, n):
        return {"data": brief(os.read(self.fd(h), n))}

    def op_pread(self, h, n, off):
        return {"data": brief(os.pread(self.fd(h), n, off))}

    def op_preadv(self, h, n, off):
        parts = [bytearray(n // 3), bytearray(n - n // 3)]
        got = os.preadv(self.fd(h), parts, off)
        return {"data": brief(bytes(parts[0] + parts[1])[:got])}

    def op_write(self, h, n, tag):
        return {"n": os.write(self.fd(h), v.data(tag, n))}

    def op_pwrite(self, h, n, off, tag):
        return {"n": os.pwrite(self.fd(h), v.data(tag, n), off)}

    def op_pwritev(self, h, n, off, tag):
        data = v.data(tag, n)
        return {"n": os.pwritev(self.fd(h), [data[:n // 2], data[n // 2:]], off)}

    def _aligned(self, n):
        return sc.mmap(n, 3, 0x22, -1, 0)

    def op_dread(self, h, blocks, off):
        """Aligned reading, for O_DIRECT."""
        fd, n = self.fd(h), blocks * 4096
        addr = self._aligned(n)
        try:
            buf = sc.memory(addr, n)
            got = os.preadv(fd, [buf], off)
            return {"data": brief(bytes(buf)[:got])}
        finally:
            sc.munmap(addr, n)

    def op_dwrite(self, h, blocks, off, tag):
        fd, n = self.fd(h), blocks * 4096
        addr = self._aligned(n)
        try:
            buf = sc.memory(addr, n)
            ctypes.memmove(addr, v.data(tag, n), n)
            return {"n": os.pwritev(fd, [buf], off)}
        finally:
            sc.munmap(addr, n)

    def op_lseek(self, h, off, whence):
        if stat.S_ISDIR(os.fstat(self.fd(h)).st_mode):
            if (off, whence) != (0, 0):
                raise Skip  # offsets in directories are each side's own
            self.dirs.pop(h, None)
        return {"off": os.lseek(self.fd(h), off, whence)}

    def op_ftruncate(self, h, size):
        self.changes_size(os.fstat(self.fd(h)), size)
        os.ftruncate(self.fd(h), size)
        return lambda: self.show_fd(self.fd(h))

    def op_fallocate(self, h, mode, off, n):
        sc.fallocate(self.fd(h), mode, off, n)
        return lambda: self.show_fd(self.fd(h))

    def op_copy_file_range(self, h, to, n, off, to_off):
        return {"n": os.copy_file_range(self.fd(h), self.fd(to), n, off, to_off)}

    def op_sendfile(self, h, to, n, off):
        return {"n": os.sendfile(self.fd(to), self.fd(h), off, n)}

    def op_fsync(self, h):
        os.fsync(self.fd(h))

    def op_fdatasync(self, h):
        os.fdatasync(self.fd(h))

    def op_syncfs(self, h):
        sc.syncfs(self.fd(h))

    def op_fstat(self, h):
        return self.show_fd(self.fd(h))

    def op_fchmod(self, h, mode):
        self.skip_if_lent(os.fstat(self.fd(h)), mode)
        os.fchmod(self.fd(h), mode)
        return lambda: self.show_fd(self.fd(h))

    def op_fchown(self, h, uid, gid):
        os.fchown(self.fd(h), uid, gid)
        return lambda: self.show_fd(self.fd(h))

    def op_futimens(self, h, atime, mtime):
        sc.futimens(self.fd(h), atime, mtime)
        return lambda: self.times(sc.statx(self.fd(h), b"", sc.AT_EMPTY_PATH), atime)

    def op_fgetxattr(self, h, name, size=65536):
        value = sc.getxattr(self.fd(h), name, size=size)
        return {"value": value if isinstance(value, int) else brief(value)}

    def op_flistxattr(self, h, size=65536):
        names = sc.listxattr(self.fd(h), size=size)
        return {"names": names if isinstance(names, int) else sorted(names)}

    def op_fsetxattr(self, h, name, value, flags=0):
        sc.setxattr(self.fd(h), name, value, flags)

    def op_fremovexattr(self, h, name):
        sc.removexattr(self.fd(h), name)

    def op_fchownat_empty(self, h, uid, gid):
        sc.fchownat(self.fd(h), b"", uid, gid, sc.AT_EMPTY_PATH)

    def op_readlink_empty(self, h):
        return {"to": os.readlink(b"", dir_fd=self.fd(h))}

    def op_link_empty(self, h, to):
        sc.linkat(self.fd(h), b"", self.path(to), sc.AT_EMPTY_PATH)

    def op_fgetflags(self, h, fsx=False):
        buf = bytearray(28 if fsx else 8)
        fcntl.ioctl(self.fd(h), sc.FS_IOC_FSGETXATTR if fsx else sc.FS_IOC_GETFLAGS, buf)
        # the layer's own marks (extents, inline data, ...) depend on its history
        return {"flags": struct.unpack_from("<I", buf)[0] & (0xFFF7 if fsx else 0xF8)}

    def open_for_writing(self, fd):
        """Whether the file that is open there is open for writing somewhere."""
        fds = [f for f in self.fds if f is not None] + [m[2] for m in self.maps if m]
        return any(fcntl.fcntl(f, fcntl.F_GETFL) & os.O_ACCMODE and os.path.sameopenfile(f, fd)
                   for f in fds)

    def op_fsetflags(self, h, flags):
        """Changes only the user-visible bits, as chattr(1) does."""
        fd = self.fd(h)
        if self.touches_opened and flags & 0x30 and self.open_for_writing(fd):
            raise Skip  # without an OPEN nothing tells who might write before
        buf = bytearray(8)
        fcntl.ioctl(fd, sc.FS_IOC_GETFLAGS, buf)
        old = struct.unpack_from("<I", buf)[0]
        fcntl.ioctl(fd, sc.FS_IOC_SETFLAGS, struct.pack("<II", (old & ~0xF8) | flags, 0))
        self.flagged = self.flagged or bool(flags & 0x30)

    # ---- locks: between open files, since both sides live in one process

    def op_flock(self, h, how):
        fcntl.flock(self.fd(h), how | (0 if how == fcntl.LOCK_UN else fcntl.LOCK_NB))

    def op_setlk(self, h, type, start, n):
        fcntl.fcntl(self.fd(h), sc.F_OFD_SETLK, struct.pack("<hhxxxxqqixxxx", type, 0, start, n, 0))

    def op_getlk(self, h, type, start, n):
        got = fcntl.fcntl(self.fd(h), sc.F_OFD_GETLK,
                          struct.pack("<hhxxxxqqixxxx", type, 0, start, n, 0))
        type, _, start, n, _ = struct.unpack("<hhxxxxqqixxxx", got)
        return {"type": type} if type == fcntl.F_UNLCK else {"type": type, "start": start, "n": n}

    # ---- mappings

    def op_mmap(self, m, h, n, off, prot, shared):
        fd = self.fd(h)
        addr = sc.mmap(n, prot, 1 if shared else 2, fd, off)
        self.mapped = True
        if self.maps[m]:
            sc.munmap(*self.maps[m][:2])
            os.close(self.maps[m][2])
        self.maps[m] = (addr, n, os.dup(fd), off)

    def op_mread(self, m, off, n):
        if not self.maps[m] or off >= self.maps[m][1]:
            raise Skip
        n = min(n, self.maps[m][1] - off)
        got = os.pwrite(self.scratch, sc.memory(self.maps[m][0] + off, n), 0)
        return {"data": brief(os.pread(self.scratch, got, 0))}

    def mread_by_fd(self, m, off, n):
        """What op_mread() should give if the mapping shows the file: for the differences table."""
        _, length, fd, file_off = self.maps[m]
        n = min(n, length - off)
        try:
            size = os.fstat(fd).st_size
            data = os.pread(fd, n, file_off + off)
        except OSError as e:
            return {"error": errno.errorcode.get(e.errno, str(e.errno))}
        pages_end = (size + 4095) // 4096 * 4096 - file_off - off
        if pages_end <= 0:
            return {"error": "EFAULT"}
        data += bytes(n - len(data))
        return {"data": brief(data[:min(n, pages_end)])}

    def op_mwrite(self, m, off, n, tag):
        if not self.maps[m] or off >= self.maps[m][1]:
            raise Skip
        # what is written behind the end of the file is nobody's, and may come back when it grows
        size = os.fstat(self.maps[m][2]).st_size
        n = min(n, self.maps[m][1] - off, size - self.maps[m][3] - off)
        if n <= 0:
            raise Skip
        self.written_by_mapping.add(os.fstat(self.maps[m][2]).st_ino)
        os.pwrite(self.scratch, v.data(tag, n), 0)
        return {"n": os.preadv(self.scratch, [sc.memory(self.maps[m][0] + off, n)], 0)}

    def op_msync(self, m):
        if not self.maps[m]:
            raise Skip
        sc.msync(self.maps[m][0], self.maps[m][1], 4)

    def op_munmap(self, m):
        if not self.maps[m]:
            raise Skip
        addr, length, fd, _ = self.maps[m]
        self.maps[m] = None
        sc.munmap(addr, length)
        os.close(fd)

    # ---- directories

    def names(self, fd):
        seen = []
        while part := sc.getdents(fd):
            seen += [(e[0], sc.DT.get(e[1], "?")) for e in part]
        return seen

    def op_readdir(self, p):
        """The whole listing, with a small buffer; then once more from remembered offsets."""
        fd = os.open(self.path(p), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            seen = []
            while part := sc.getdents(fd, 600):
                seen += part
            bad = []
            for i in range(0, len(seen) - 1, 1 + len(seen) // 4):
                os.lseek(fd, seen[i][3], 0)
                again = sc.getdents(fd, 600)
                if not again or again[0][0] != seen[i + 1][0]:
                    bad.append((seen[i][0], seen[i + 1][0], again[0][0] if again else None))
            return {"names": sorted((e[0], sc.DT.get(e[1], "?")) for e in seen), "seek": bad}
        finally:
            os.close(fd)

    def op_dir_begin(self, h, p):
        """Opens a directory and reads a little of it; dir_end reads on."""
        fd = os.open(self.path(p), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.put(h, fd)
        fresh = os.open(b"/proc/self/fd/%d" % fd, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            there = {n for n, _ in self.names(fresh)}
        finally:
            os.close(fresh)
        self.dirs[h] = (there, [e[0] for e in sc.getdents(fd, 300)])

    def op_dir_end(self, h):
        """Whatever stood in the directory all the time is listed exactly once."""
        fd = self.fd(h)
        if h not in self.dirs:
            raise Skip
        there, seen = self.dirs.pop(h)
        seen = seen + [n for n, _ in self.names(fd)]
        os.lseek(fd, 0, 0)
        after = {n for n, _ in self.names(fd)}
        return {"missing": sorted(n for n in there & after if n not in seen),
                "twice": sorted({n for n in seen if seen.count(n) > 1}), "after": sorted(after)}

    def op_rewind(self, h):
        fd = self.fd(h)
        os.lseek(fd, 0, 0)
        self.dirs.pop(h, None)
        return {"names": sorted(self.names(fd))}

    # ---- by path

    def op_stat(self, p, follow=False):
        st = sc.statx(sc.AT_FDCWD, self.path(p), 0 if follow else sc.AT_SYMLINK_NOFOLLOW)
        return self.show(st)

    def op_access(self, p, mode, flags=0):
        sc.faccessat2(self.path(p), mode, flags)

    def op_readlink(self, p):
        return {"to": os.readlink(self.path(p))}

    def op_statfs(self, p):
        st = os.statvfs(self.path(p))
        return {"namelen": st.f_namemax, "bsize": st.f_bsize, "frsize": st.f_frsize}

    def op_mkdir(self, p, mode):
        os.mkdir(self.path(p), mode)
        return lambda: self.op_stat(p)

    def op_mknod(self, p, mode, rdev=(0, 0)):
        os.mknod(self.path(p), mode, os.makedev(*rdev))
        return lambda: self.op_stat(p)

    def op_symlink(self, to, p):
        os.symlink(to, self.path(p))
        return lambda: self.op_stat(p)

    def op_link(self, p, to, follow=False):
        sc.linkat(sc.AT_FDCWD, self.path(p), self.path(to), sc.AT_SYMLINK_FOLLOW if follow else 0)
        return lambda: self.op_stat(to)

    def op_unlink(self, p):
        os.unlink(self.path(p))

    def op_rmdir(self, p):
        os.rmdir(self.path(p))

    def op_rename(self, p, to, flags=0):
        sc.renameat2(self.path(p), self.path(to), flags)

    def op_chmod(self, p, mode, follow=True):
        self.skip_if_lent(os.stat(self.path(p), follow_symlinks=follow), mode)
        if follow:
            os.chmod(self.path(p), mode)
        else:
            sc.fchmodat2(sc.AT_FDCWD, self.path(p), mode, sc.AT_SYMLINK_NOFOLLOW)
        return lambda: self.op_stat(p, follow)

    def op_chown(self, p, uid, gid, follow=True):
        sc.fchownat(sc.AT_FDCWD, self.path(p), uid, gid, 0 if follow else sc.AT_SYMLINK_NOFOLLOW)
        return lambda: self.op_stat(p, follow)

    def changes_size(self, st, size):
        """Without a change of size, a FUSE with a writeback cache takes no note of the time."""
        if self.touches_opened and stat.S_ISREG(st.st_mode) and st.st_size == size:
            raise Skip

    def op_truncate(self, p, size):
        self.changes_size(os.stat(self.path(p)), size)
        os.truncate(self.path(p), size)
        return lambda: self.op_stat(p, True)

    def op_utimens(self, p, atime, mtime, follow=True):
        path = self.path(p)
        flags = 0 if follow else sc.AT_SYMLINK_NOFOLLOW
        sc.utimensat(sc.AT_FDCWD, path, atime, mtime, flags)
        return lambda: self.times(sc.statx(sc.AT_FDCWD, path, flags), atime)

    def times(self, st, atime):
        out = {"mtime": self.when(st.mtime)}
        if atime[1] != sc.UTIME_OMIT:
            out["atime"] = self.when(st.atime)
        return out

    def op_getxattr(self, p, name, follow=True, size=65536):
        value = sc.getxattr(self.path(p), name, follow, size)
        return {"value": value if isinstance(value, int) else brief(value)}

    def op_listxattr(self, p, follow=True, size=65536):
        names = sc.listxattr(self.path(p), follow, size)
        return {"names": names if isinstance(names, int) else sorted(names)}

    def op_setxattr(self, p, name, value, flags=0, follow=True):
        sc.setxattr(self.path(p), name, value, flags, follow)
        return lambda: {"mode": self.op_stat(p, follow)["mode"]}

    def op_removexattr(self, p, name, follow=True):
        sc.removexattr(self.path(p), name, follow)
