# SPDX-License-Identifier: MIT
"""
The system calls that Python's os module lacks, with the errors of the calls as OSError.

Paths are bytes. Nothing here keeps state; the caller owns every file descriptor.
"""

import ctypes
import os
import struct

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [
    ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long,
]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.msync.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]
libc.mount.argtypes = [
    ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p,
]

AT_FDCWD = -100
AT_SYMLINK_NOFOLLOW = 0x100
AT_EACCESS = 0x200
AT_SYMLINK_FOLLOW = 0x400
AT_EMPTY_PATH = 0x1000
AT_STATX_FORCE_SYNC = 0x2000
UTIME_NOW = 0x3FFFFFFF
UTIME_OMIT = 0x3FFFFFFE

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
RENAME_WHITEOUT = 4

MS_RDONLY = 1
MS_REMOUNT = 32
MS_NOATIME = 1024
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
MS_STRICTATIME = 1 << 24
MNT_DETACH = 2
CLONE_NEWNS = 0x20000

F_OFD_GETLK = 36
F_OFD_SETLK = 37
FS_IOC_GETFLAGS = 0x80086601
FS_IOC_SETFLAGS = 0x40086602
FS_IOC_FSGETXATTR = 0x801C581F

SYS_renameat2 = 316
SYS_statx = 332
SYS_getdents64 = 217
SYS_fsconfig = 431
SYS_fspick = 433
SYS_faccessat2 = 439
SYS_fchmodat2 = 452

DT = {1: "p", 2: "c", 4: "d", 6: "b", 8: "f", 10: "l", 12: "s", 0: "?"}
TYPE = {0o01: "p", 0o02: "c", 0o04: "d", 0o06: "b", 0o10: "f", 0o12: "l", 0o14: "s"}


def check(ret):
    if ret < 0:
        err = ctypes.get_errno()
        raise OSError(err, os.strerror(err))
    return ret


def mount(source, target, fstype, flags=0, data=None):
    check(libc.mount(source, target, fstype, flags, data))


def umount(target, flags=0):
    check(libc.umount2(ctypes.c_char_p(target), flags))


def become_subreaper():
    """Daemons that our children leave behind become ours to wait for."""
    check(libc.prctl(36, 1, 0, 0, 0))


def fspick(path):
    return check(libc.syscall(SYS_fspick, AT_FDCWD, ctypes.c_char_p(path), 1))


def fsconfig_reconfigure(fd):
    check(libc.syscall(SYS_fsconfig, fd, 7, None, None, 0))


def unshare(flags):
    check(libc.unshare(flags))


def renameat2(old, new, flags):
    check(libc.syscall(SYS_renameat2, AT_FDCWD, ctypes.c_char_p(old), AT_FDCWD,
                       ctypes.c_char_p(new), ctypes.c_uint(flags)))


def linkat(oldfd, old, new, flags):
    check(libc.linkat(oldfd, ctypes.c_char_p(old), AT_FDCWD, ctypes.c_char_p(new), flags))


def faccessat2(path, mode, flags):
    check(libc.syscall(SYS_faccessat2, AT_FDCWD, ctypes.c_char_p(path), mode, flags))


def fchmodat2(dirfd, path, mode, flags):
    check(libc.syscall(SYS_fchmodat2, dirfd, ctypes.c_char_p(path), mode, flags))


def fchownat(dirfd, path, uid, gid, flags):
    check(libc.fchownat(dirfd, ctypes.c_char_p(path), uid, gid, flags))


def utimensat(dirfd, path, atime, mtime, flags):
    """@atime and @mtime are pairs (seconds, nanoseconds)."""
    times = struct.pack("=qqqq", *atime, *mtime)
    check(libc.utimensat(dirfd, ctypes.c_char_p(path), times, flags))


def futimens(fd, atime, mtime):
    check(libc.futimens(fd, struct.pack("=qqqq", *atime, *mtime)))


def fallocate(fd, mode, off, length):
    check(libc.fallocate(fd, mode, off, length))


def name_to_handle(path):
    """The type and the bytes of a file handle, not following a symlink; None if there is none."""
    buf = ctypes.create_string_buffer(struct.pack("=Ii", 128, 0), 8 + 128)
    mount_id = ctypes.c_int()
    if libc.name_to_handle_at(AT_FDCWD, ctypes.c_char_p(path), buf, ctypes.byref(mount_id), 0) < 0:
        return None
    size, kind = struct.unpack_from("=Ii", buf)
    return kind, buf.raw[8:8 + size]


def syncfs(fd):
    check(libc.syncfs(fd))


_statx_buf = ctypes.create_string_buffer(256)
_statx_struct = struct.Struct("=IIQIIIHHQQQQqIiqIiqIiqIiIIII")


class Statx:
    """One statx(2) record. Times are nanoseconds; btime is None where there is none."""

    __slots__ = ("mode", "nlink", "uid", "gid", "ino", "size", "blocks", "rdev", "dev",
                 "atime", "mtime", "ctime", "btime", "attributes")


def statx(dirfd, path, flags, mask=0xFFF):
    check(libc.syscall(SYS_statx, dirfd, ctypes.c_char_p(path), flags, mask, _statx_buf))
    (got, _, attributes, nlink, uid, gid, mode, _, ino, size, blocks, _, as_, an, _, bs, bn, _,
     cs, cn, _, ms, mn, _, rmaj, rmin, dmaj, dmin) = _statx_struct.unpack_from(_statx_buf)
    st = Statx()
    st.mode, st.nlink, st.uid, st.gid, st.ino = mode, nlink, uid, gid, ino
    st.size, st.blocks, st.rdev, st.dev = size, blocks, (rmaj, rmin), (dmaj, dmin)
    st.atime = as_ * 10**9 + an
    st.mtime = ms * 10**9 + mn
    st.ctime = cs * 10**9 + cn
    st.btime = bs * 10**9 + bn if got & 0x800 else None
    st.attributes = attributes
    return st


_dents_buf = ctypes.create_string_buffer(32768)


def getdents(fd, size=32768):
    """One getdents64(2) call: a list of (name, d_type, d_ino, d_off); empty at the end."""
    n = check(libc.syscall(SYS_getdents64, fd, _dents_buf, size))
    raw = _dents_buf.raw[:n]
    out = []
    pos = 0
    while pos < n:
        ino, off, reclen, dtype = struct.unpack_from("=QqHB", raw, pos)
        end = raw.index(b"\0", pos + 19)
        out.append((raw[pos + 19:end], dtype, ino, off))
        pos += reclen
    return out


def mmap(length, prot, flags, fd, off):
    addr = libc.mmap(None, length, prot, flags, fd, off)
    if addr == ctypes.c_void_p(-1).value:
        err = ctypes.get_errno()
        raise OSError(err, os.strerror(err))
    return addr


def munmap(addr, length):
    check(libc.munmap(addr, length))


def msync(addr, length, flags):
    check(libc.msync(addr, length, flags))


def memory(addr, length):
    """The bytes at an address, as a buffer for read(2) and write(2): a bad page is EFAULT there."""
    return (ctypes.c_char * length).from_address(addr)


_xattr_buf = ctypes.create_string_buffer(65536)


def _xattr_call(by_path, nofollow, by_fd, target, follow, *args):
    if isinstance(target, int):
        return check(by_fd(target, *args))
    return check((by_path if follow else nofollow)(ctypes.c_char_p(target), *args))


def getxattr(target, name, follow=False, size=65536):
    """The value; with @size 0 its length, as the call returns it."""
    n = _xattr_call(libc.getxattr, libc.lgetxattr, libc.fgetxattr, target, follow,
                    ctypes.c_char_p(name), _xattr_buf if size else None, size)
    return _xattr_buf.raw[:n] if size else n


def listxattr(target, follow=False, size=65536):
    n = _xattr_call(libc.listxattr, libc.llistxattr, libc.flistxattr, target, follow,
                    _xattr_buf if size else None, size)
    return _xattr_buf[:n].split(b"\0")[:-1] if size else n


def setxattr(target, name, value, flags=0, follow=False):
    _xattr_call(libc.setxattr, libc.lsetxattr, libc.fsetxattr, target, follow,
                ctypes.c_char_p(name), value, len(value), flags)


def removexattr(target, name, follow=False):
    _xattr_call(libc.removexattr, libc.lremovexattr, libc.fremovexattr, target, follow,
                ctypes.c_char_p(name))


for _f in ("getxattr", "lgetxattr", "fgetxattr", "listxattr", "llistxattr", "flistxattr"):
    getattr(libc, _f).restype = ctypes.c_ssize_t
for _f in ("setxattr", "lsetxattr", "fsetxattr"):
    getattr(libc, _f).argtypes = [
        ctypes.c_int if _f[0] == "f" else ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p,
        ctypes.c_size_t, ctypes.c_int,
    ]
for _f in ("getxattr", "lgetxattr", "fgetxattr"):
    getattr(libc, _f).argtypes = [
        ctypes.c_int if _f[0] == "f" else ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p,
        ctypes.c_size_t,
    ]
for _f in ("listxattr", "llistxattr", "flistxattr"):
    getattr(libc, _f).argtypes = [
        ctypes.c_int if _f[0] == "f" else ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t,
    ]
