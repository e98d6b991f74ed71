# SPDX-License-Identifier: MIT
"""What the integration tests stand on: mounts that always end, layers, and the calls Python lacks.

A Union is one set of layers in a directory of its own and the mounts made of them. It mounts with
plyfs or with the kernel's overlayfs, which is the reference, and checks at the end what must hold
after every test: the daemon left by itself and without a sanitizer's report, no lower layer was
touched, the workdir holds no litter, and the kernel's overlayfs reads the same tree from the
layers.
"""

import contextlib
import ctypes
import errno
import hashlib
import os
import pickle
import re
import shutil
import signal
import stat
import struct
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path

libc = ctypes.CDLL(None, use_errno=True)

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 32, 4096, 16384, 1 << 18
MNT_DETACH = 2
CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000
PR_SET_CHILD_SUBREAPER, PR_SET_PDEATHSIG = 36, 1
AT_FDCWD, AT_SYMLINK_NOFOLLOW, AT_SYMLINK_FOLLOW, AT_EMPTY_PATH = -100, 0x100, 0x400, 0x1000
RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT = 1, 2, 4
FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_COLLAPSE, FALLOC_ZERO, FALLOC_INSERT = 1, 2, 8, 16, 32
DT_FIFO, DT_CHR, DT_DIR, DT_BLK, DT_REG, DT_LNK, DT_SOCK = 1, 2, 4, 6, 8, 10, 12
NOBODY = 65534
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

SMALL_TREE = 5000  # entries: above it the check against the kernel at the end is left out


class Timeout(Exception):
    """The test's time is over; its mounts were aborted."""


# --- system calls -------------------------------------------------------------------------------


def check(result):
    if result < 0:
        err = ctypes.get_errno()
        raise OSError(err, os.strerror(err))
    return result


def sys_mount(source, target, fstype, flags=0, data=""):
    check(
        libc.mount(
            os.fsencode(source),
            os.fsencode(target),
            os.fsencode(fstype),
            ctypes.c_ulong(flags),
            os.fsencode(data),
        )
    )


def sys_umount(target, flags=0):
    check(libc.umount2(os.fsencode(target), flags))


def unshare(flags):
    check(libc.unshare(flags))


def renameat2(old, new, flags):
    check(libc.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags))


def linkat_fd(fd, new):
    """Give an O_TMPFILE a name."""
    src = f"/proc/self/fd/{fd}".encode()
    check(libc.linkat(AT_FDCWD, src, AT_FDCWD, os.fsencode(new), AT_SYMLINK_FOLLOW))


def fallocate(fd, mode, offset, length):
    check(
        libc.fallocate(fd, mode, ctypes.c_int64(offset), ctypes.c_int64(length))
    )


STATX_BTIME = 0x800


def statx_btime(path):
    """(seconds, nanoseconds) of birth, or None when the file system does not tell."""
    buf = ctypes.create_string_buffer(256)
    check(
        libc.statx(AT_FDCWD, os.fsencode(path), AT_SYMLINK_NOFOLLOW, ctypes.c_uint(STATX_BTIME), buf)
    )
    if not struct.unpack_from("=I", buf, 0)[0] & STATX_BTIME:
        return None
    return struct.unpack_from("=qI", buf, 80)


def statx_attributes(path):
    """stx_attributes and stx_attributes_mask."""
    buf = ctypes.create_string_buffer(256)
    check(libc.statx(AT_FDCWD, os.fsencode(path), AT_SYMLINK_NOFOLLOW, ctypes.c_uint(0x7FF), buf))
    return struct.unpack_from("=Q", buf, 8)[0], struct.unpack_from("=Q", buf, 56)[0]


def getdents(fd, size=32768):
    """One getdents64(2): a list of (ino, off, type, name)."""
    buf = ctypes.create_string_buffer(size)
    n = check(libc.syscall(217 if os.uname().machine == "x86_64" else 61, fd, buf, size))
    out, pos = [], 0
    while pos < n:
        ino, off, reclen, kind = struct.unpack_from("=QqHB", buf, pos)
        name = buf.raw[pos + 19 : pos + reclen].split(b"\0", 1)[0]
        out.append((ino, off, kind, os.fsdecode(name)))
        pos += reclen
    return out


def getdents_all(path, size=32768):
    """The whole directory: {name: (ino, type)}; fails on a name that appears twice."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        out = {}
        while True:
            part = getdents(fd, size)
            if not part:
                return out
            for ino, _, kind, name in part:
                assert name not in out, f"{name} is listed twice in {path}"
                out[name] = (ino, kind)
    finally:
        os.close(fd)


FS_IOC_GETFLAGS, FS_IOC_SETFLAGS = 0x80086601, 0x40086602
FS_IOC_FSGETXATTR, FS_IOC_FSSETXATTR = 0x801C581F, 0x401C5820
FS_IMMUTABLE_FL, FS_APPEND_FL, FS_NODUMP_FL, FS_NOATIME_FL = 0x10, 0x20, 0x40, 0x80
FS_XFLAG_IMMUTABLE, FS_XFLAG_APPEND, FS_XFLAG_NODUMP = 0x8, 0x10, 0x80


def get_flags(path):
    import fcntl

    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        return struct.unpack("=I", fcntl.ioctl(fd, FS_IOC_GETFLAGS, b"\0" * 8)[:4])[0]
    finally:
        os.close(fd)


def set_flags(path, flags):
    import fcntl

    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        fcntl.ioctl(fd, FS_IOC_SETFLAGS, struct.pack("=Q", flags))
    finally:
        os.close(fd)


# --- ACLs and capabilities ----------------------------------------------------------------------

ACL_USER_OBJ, ACL_USER, ACL_GROUP_OBJ, ACL_GROUP, ACL_MASK, ACL_OTHER = 1, 2, 4, 8, 16, 32
ACCESS_ACL, DEFAULT_ACL = "system.posix_acl_access", "system.posix_acl_default"
CAPABILITY = "security.capability"
# cap_net_raw=ep in the second revision, as setcap(8) writes it
CAP_NET_RAW = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)


def acl(user, group, other, users=(), groups=(), mask=None):
    """The bytes of a POSIX ACL; users and groups are (id, permissions)."""
    no_id = 0xFFFFFFFF
    entries = [(ACL_USER_OBJ, user, no_id)]
    entries += [(ACL_USER, perm, uid) for uid, perm in users]
    entries += [(ACL_GROUP_OBJ, group, no_id)]
    entries += [(ACL_GROUP, perm, gid) for gid, perm in groups]
    if mask is None and (users or groups):
        mask = 7
    if mask is not None:
        entries += [(ACL_MASK, mask, no_id)]
    entries += [(ACL_OTHER, other, no_id)]
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *e) for e in entries)


# --- files --------------------------------------------------------------------------------------


def write(path, data=b"", mode=None, uid=None, gid=None, mtime=None, xattrs=None):
    """Make a file and its parents. mtime in nanoseconds."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    finish(path, mode, uid, gid, mtime, xattrs)
    return path


def mkdir(path, mode=None, uid=None, gid=None, mtime=None, xattrs=None):
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    finish(path, mode, uid, gid, mtime, xattrs)
    return path


def finish(path, mode=None, uid=None, gid=None, mtime=None, xattrs=None):
    if uid is not None or gid is not None:
        os.lchown(path, -1 if uid is None else uid, -1 if gid is None else gid)
    if mode is not None:
        os.chmod(path, mode)
    for name, value in (xattrs or {}).items():
        os.setxattr(path, name, value, follow_symlinks=False)
    if mtime is not None:
        os.utime(path, ns=(mtime, mtime), follow_symlinks=False)


def read(path):
    return Path(path).read_bytes()


def append(path, data):
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)


def make_whiteout(path):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mknod(path, stat.S_IFCHR, os.makedev(0, 0))


def is_whiteout(path):
    try:
        st = os.lstat(path)
    except FileNotFoundError:
        return False
    return stat.S_ISCHR(st.st_mode) and st.st_rdev == 0


def exists(path):
    """Whether lookup finds the name."""
    try:
        os.lstat(path)
        return True
    except OSError as e:
        if e.errno in (errno.ENOENT, errno.ENOTDIR):
            return False
        raise


def xattr(path, name):
    """The value, or None when there is none."""
    try:
        return os.getxattr(path, name, follow_symlinks=False)
    except OSError as e:
        if e.errno in (errno.ENODATA, errno.ENOTSUP):
            return None
        raise


def xattrs(path):
    return {
        name: os.getxattr(path, name, follow_symlinks=False)
        for name in os.listxattr(path, follow_symlinks=False)
    }


def blocks(path):
    """Bytes that the file takes on disk."""
    return os.lstat(path).st_blocks * 512


def names(path):
    return sorted(os.listdir(path))


@contextlib.contextmanager
def raises(*codes):
    """The block fails with one of these errnos."""
    wanted = "/".join(errno.errorcode[c] for c in codes)
    try:
        yield
    except OSError as e:
        assert e.errno in codes, f"wanted {wanted}, got {errno.errorcode.get(e.errno)}: {e}"
        return
    raise AssertionError(f"wanted {wanted}, but it succeeded")


@contextlib.contextmanager
def opened(path, flags, mode=0o666):
    fd = os.open(path, flags, mode)
    try:
        yield fd
    finally:
        os.close(fd)


def drop_privileges(uid, gid, groups):
    os.setgroups(list(groups))
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def wait_for_child(pid):
    """Reap everything until this child has ended; its exit status."""
    while True:
        try:
            done, status = os.wait()
        except KeyboardInterrupt:
            continue
        if done == pid:
            return os.WEXITSTATUS(status) if os.WIFEXITED(status) else 3


def enter_user_namespace(write_maps):
    """Become root of a new user namespace, in a new mount namespace.

    write_maps(pid) gives it its ids, in a child that stays outside.
    """
    ready_r, ready_w = os.pipe()
    done_r, done_w = os.pipe()
    target = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(ready_w)
            os.read(ready_r, 1)
            write_maps(target)
            os.write(done_w, b"x")
        except BaseException:
            traceback.print_exc()
        os._exit(0)
    os.close(done_w)
    unshare(CLONE_NEWUSER | CLONE_NEWNS)
    os.write(ready_w, b"x")
    ok = os.read(done_r, 1)
    os.waitpid(pid, 0)
    for fd in (ready_r, ready_w, done_r):
        os.close(fd)
    if not ok:
        raise RuntimeError("the maps of the user namespace could not be written")
    drop_privileges(0, 0, [])


def in_child(function, *args, uid=None, gid=None, groups=(), umask=None, cwd=None, root=None):
    """Run function(*args) in a child process, with this identity, and return what it returns."""
    rfd, wfd = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(rfd)
            check(libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0))
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            if umask is not None:
                os.umask(umask)
            if root is not None:
                os.chroot(root)
                os.chdir("/")
            if cwd is not None:
                os.chdir(cwd)
            if uid is not None:
                drop_privileges(uid, uid if gid is None else gid, groups)
            try:
                answer = (True, function(*args))
            except BaseException as e:  # every failure goes to the parent
                answer = (False, e)
            try:
                data = pickle.dumps(answer)
            except Exception:
                data = pickle.dumps((False, RuntimeError(repr(answer))))
            with os.fdopen(wfd, "wb") as out:
                out.write(data)
        finally:
            os._exit(0)
    os.close(wfd)
    try:
        with os.fdopen(rfd, "rb") as source:
            data = source.read()
    finally:
        with contextlib.suppress(ProcessLookupError):
            if not sys.exc_info()[0] is None:
                os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    if not data:
        raise RuntimeError("the child died")
    ok, value = pickle.loads(data)
    if not ok:
        raise value
    return value


# --- trees --------------------------------------------------------------------------------------


def content_key(path, size):
    """A digest of a file's content; of large files only of both ends."""
    fd = open_noatime(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        if size <= 4 * MIB:
            h = hashlib.blake2b(digest_size=16)
            while data := os.read(fd, MIB):
                h.update(data)
            return h.hexdigest()
        head = os.pread(fd, 65536, 0)
        tail = os.pread(fd, 65536, size - 65536)
        return hashlib.blake2b(head + tail, digest_size=16).hexdigest() + "-ends"
    finally:
        os.close(fd)


def open_noatime(path, flags):
    """Open without changing atime where we may: O_NOATIME is only for the owner."""
    try:
        return os.open(path, flags | os.O_NOATIME)
    except PermissionError:
        return os.open(path, flags)


def walk(root):
    """Every path below root, and root itself as '.', without following symlinks."""
    root = os.fspath(root)
    yield "."
    stack = [""]
    while stack:
        rel = stack.pop()
        directory = os.path.join(root, rel) if rel else root
        fd = open_noatime(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with os.scandir(fd) as it:
                entries = sorted((e.name, e.is_dir(follow_symlinks=False)) for e in it)
        finally:
            os.close(fd)
        for name, is_directory in entries:
            path = os.path.join(rel, name)
            yield path
            if is_directory:
                stack.append(path)


def walk_quietly(root):
    """As walk(), for trees of which parts cannot be listed."""
    stack = [""]
    yield "."
    while stack:
        rel = stack.pop()
        directory = os.path.join(os.fspath(root), rel)
        try:
            listed = sorted(os.listdir(directory))
        except OSError:
            continue
        for name in listed:
            path = os.path.join(rel, name)
            yield path
            with contextlib.suppress(OSError):
                if stat.S_ISDIR(os.lstat(os.path.join(os.fspath(root), path)).st_mode):
                    stack.append(path)


def count_entries(root, limit):
    n = 0
    for n, _ in enumerate(walk(root), 1):
        if n > limit:
            break
    return n


def tree(root, layer=False, times=True):
    """{path: attributes} of a tree; of a layer also what a union does not show."""
    out = {}
    for rel in walk(root):
        path = os.path.join(os.fspath(root), rel) if rel != "." else os.fspath(root)
        st = os.lstat(path)
        kind = stat.S_IFMT(st.st_mode)
        entry = {
            "type": kind,
            "mode": oct(st.st_mode & 0o7777),
            "uid": st.st_uid,
            "gid": st.st_gid,
        }
        if times:
            entry["mtime"] = st.st_mtime_ns
        if kind != stat.S_IFDIR or layer:
            entry["nlink"] = st.st_nlink
        if kind == stat.S_IFREG:
            entry["size"] = st.st_size
            entry["content"] = content_key(path, st.st_size)
        elif kind == stat.S_IFLNK:
            entry["target"] = os.readlink(path)
        elif kind in (stat.S_IFCHR, stat.S_IFBLK):
            entry["rdev"] = st.st_rdev
        if layer:
            entry["ino"] = st.st_ino
            entry["ctime"] = st.st_ctime_ns
        try:
            entry["xattrs"] = xattrs(path)
        except OSError as e:
            entry["xattrs"] = errno.errorcode[e.errno]
        out[rel] = entry
    return out


def tree_differences(left, right, left_name, right_name):
    """Readable lines, at most 40."""
    lines = []
    for path in sorted(set(left) | set(right)):
        if path not in left:
            lines.append(f"{path}: only in {right_name}")
        elif path not in right:
            lines.append(f"{path}: only in {left_name}")
        else:
            for key in sorted(set(left[path]) | set(right[path])):
                a, b = left[path].get(key), right[path].get(key)
                if a != b:
                    lines.append(f"{path}: {key}: {left_name} {a!r}, {right_name} {b!r}")
    return lines[:40]


def assert_same_tree(left, right, left_name="left", right_name="right"):
    lines = tree_differences(left, right, left_name, right_name)
    assert not lines, "trees differ:\n  " + "\n  ".join(lines)


def remove_tree(path):
    """rm -rf which also copes with modes and flags left by a test."""
    shutil.rmtree(path, ignore_errors=True)
    if not os.path.lexists(path):
        return
    subprocess.run(["chattr", "-R", "-ia", path], stderr=subprocess.DEVNULL, check=False)
    subprocess.run(["chmod", "-R", "u+rwx", path], stderr=subprocess.DEVNULL, check=False)
    shutil.rmtree(path, ignore_errors=True)


# --- processes ----------------------------------------------------------------------------------


def children():
    """pids of this process' children, adopted ones too."""
    out = []
    for task in os.listdir("/proc/self/task"):
        with contextlib.suppress(FileNotFoundError):
            out += [int(p) for p in read(f"/proc/self/task/{task}/children").split()]
    return out


def process_name(pid):
    try:
        return read(f"/proc/{pid}/comm").decode().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def wait_for(condition, seconds=10, what="the condition"):
    """Poll until condition() is true; fail after this many seconds."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"{what}: not within {seconds} s")
        time.sleep(0.005)


def mount_table():
    """[(mountpoint, fstype, source, device, options)] of this namespace."""
    out = []
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as f:
        for line in f:
            left, right = line.rstrip("\n").split(" - ", 1)
            left, right = left.split(" "), right.split(" ")
            point = re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), left[4])
            out.append((point, right[0], right[1], left[2], left[5] + "," + right[2]))
    return out


def find_mount(point):
    """The topmost mount on a point, or None."""
    found = None
    for entry in mount_table():
        if entry[0] == os.fspath(point):
            found = entry
    return found


def abort_connection(device):
    """Make every request of a FUSE mount fail at once."""
    minor = device.split(":")[1]
    with contextlib.suppress(OSError):
        Path(f"/sys/fs/fuse/connections/{minor}/abort").write_text("1")


class Daemon:
    """A plyfs process that serves a mount; a child of ours, since we adopt orphans."""

    def __init__(self, pid):
        self.pid = pid
        self.status = None

    def poll(self):
        """The exit status, or None while it runs: 0 and up are exit codes, below 0 signals."""
        if self.status is None:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:
                self.status = 0 if not os.path.exists(f"/proc/{self.pid}") else None
                return self.status
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
        return self.status

    def alive(self):
        return self.poll() is None

    def wait(self, seconds=20):
        wait_for(lambda: not self.alive(), seconds, f"the end of daemon {self.pid}")
        return self.status

    def kill(self, sig=signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, sig)

    def fds(self):
        """{fd: what it is}"""
        out = {}
        for fd in os.listdir(f"/proc/{self.pid}/fd"):
            with contextlib.suppress(FileNotFoundError):
                out[int(fd)] = os.readlink(f"/proc/{self.pid}/fd/{fd}")
        return out

    def rss(self):
        """Bytes of private memory: what the daemon itself uses."""
        for line in read(f"/proc/{self.pid}/smaps_rollup").decode().splitlines():
            if line.startswith("Pss_Anon:"):
                return int(line.split()[1]) * 1024
        raise AssertionError("no Pss_Anon in smaps_rollup")

    def threads(self):
        return len(os.listdir(f"/proc/{self.pid}/task"))


# Whether time does not matter, and whether the program under test is one with a sanitizer.
LONG = bool(os.environ.get("PLYFS_LONG"))
SLOW_BUILD = bool(os.environ.get("PLYFS_SLOW_BUILD"))


class Settings:
    """What the run was asked for; filled in by conftest.py."""

    impl = "plyfs"
    plyfs = None
    io = os.environ.get("PLYFS_IO")  # of mounts that do not say it themselves
    level = "root"
    scratch = None  # on disk
    tmpfs = None  # the same on a tmpfs, or None
    backing = "disk"
    sanitizer_env = {}
    writeback = os.environ.get("PLYFS_WRITEBACK") != "0"

    def io_words(self, options):
        """What a mount of plyfs is asked for besides its own options, where they do not say it."""
        words = [f"io={self.io}"] if self.io and "io=" not in options else []
        return ",".join(words + ([] if self.writeback else ["writeback=0"]))

    @property
    def silent_open(self):
        """Whether plyfs hears of no open(2), but of the first change."""
        return self.impl == "plyfs" and (self.io == "cached" or (not self.io and self.level != "root"))

    @property
    def prefix(self):
        return "trusted.overlay." if self.level == "root" else "user.overlay."

    @property
    def kernel_options(self):
        return "" if self.level == "root" else "userxattr"

    @property
    def numbers_stay(self):
        """Whether st_ino is constant over copy-up with link or rename. The kernel needs origins."""
        return self.impl == "plyfs" or self.level == "root"

    @property
    def can_kernel(self):
        return self.level != "user"


settings = Settings()


def run_plyfs(*args, **kw):
    """Run the plyfs command to its end: CompletedProcess with text output."""
    kw.setdefault("timeout", 60)
    kw.setdefault("stdin", subprocess.DEVNULL)
    return subprocess.run(
        [settings.plyfs, *map(os.fspath, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="surrogateescape",
        env={**os.environ, **settings.sanitizer_env, **kw.pop("env", {})},
        check=False,
        **kw,
    )


def escape(path, characters):
    path = os.fspath(path)
    for c in "\\" + characters:
        path = path.replace(c, "\\" + c)
    return path


def layer_options(lowers, upper=None, work=None, options=""):
    out = "lowerdir=" + ":".join(escape(p, ":,") for p in lowers)
    if upper is not None:
        out += f",upperdir={escape(upper, ',')},workdir={escape(work, ',')}"
    return out + ("," + options if options else "")


class Mount:
    """One live mount. Made by Union.mount() and friends."""

    def __init__(self, point, impl):
        self.point = Path(point)
        self.impl = impl
        self.daemon = None
        entry = find_mount(point)
        assert entry, f"{point} is not in the mount table"
        self.device = entry[3]
        self.live = True

    def abort(self):
        if self.impl == "plyfs":
            entry = find_mount(self.point)
            if entry and entry[3] == self.device:  # else the number may be another mount's by now
                abort_connection(self.device)
            if self.daemon:
                self.daemon.kill()

    def umount(self, lazy=False):
        """Unmount; for plyfs also wait for the daemon, which must leave by itself with status 0."""
        if not self.live:
            return
        self.live = False
        if settings.level == "user":
            args = ["fusermount3", "-u", *(["-z"] if lazy else []), os.fspath(self.point)]
            done = subprocess.run(args, capture_output=True, text=True, check=False, timeout=30)
            assert done.returncode == 0, f"fusermount3: {done.stderr}"
        else:
            self._umount(MNT_DETACH if lazy else 0)
        if self.daemon:
            status = self.daemon.wait()
            assert status == 0, f"the daemon ended with {status}"

    def _umount(self, flags):
        end = time.monotonic() + 2
        while True:
            try:
                return sys_umount(self.point, flags)
            except OSError as e:
                if e.errno != errno.EBUSY or time.monotonic() > end:
                    raise
            time.sleep(0.02)

    def force_down(self):
        """End the mount whatever state it is in; used after a failure."""
        self.live = False
        self.abort()
        if settings.level == "user":
            subprocess.run(
                ["fusermount3", "-u", "-z", os.fspath(self.point)], capture_output=True, check=False
            )
        else:
            with contextlib.suppress(OSError):
                sys_umount(self.point, MNT_DETACH)
        if self.daemon:
            self.daemon.kill()
            with contextlib.suppress(AssertionError):
                self.daemon.wait(5)


class Union:
    """Layers in one temporary directory, and the mounts made of them.

    Layers: lower(0) is the topmost. mount() mounts what exists: lower layers that lower() made, and
    upper and work unless upper=False.
    """

    def __init__(self, base):
        self.base = Path(base)
        self.upper = self.base / "upper"
        self.work = self.base / "work"
        self.point = self.base / "merged"
        self.base.mkdir(exist_ok=True)
        for path in (self.upper, self.work, self.point):
            path.mkdir(exist_ok=True)
        self._lowers = {}
        self._snapshots = {}
        self.mounts = []
        self.mounted = None
        self.closed = False
        self.check_lowers = True
        self.check_kernel = True
        self.check_work = True
        self.last_options = ""
        self.last_lowers = []
        self.last_upper = None
        self.last_tree = None

    # layers

    def lower(self, index=0):
        for i in range(index + 1):
            if i not in self._lowers:
                self._lowers[i] = self.base / f"lower{i}"
                self._lowers[i].mkdir(exist_ok=True)
        return self._lowers[index]

    def use_lower(self, index, path):
        """A lower layer that lies somewhere else."""
        self._lowers[index] = Path(path)

    @property
    def lowers(self):
        if not self._lowers:
            self.lower(0)
        return [self._lowers[i] for i in sorted(self._lowers)]

    @property
    def prefix(self):
        return settings.prefix

    def opaque(self, path, value=b"y"):
        mkdir(path)
        os.setxattr(path, self.prefix + "opaque", value)

    def overlay_xattr(self, path, name):
        return xattr(path, self.prefix + name)

    def snapshot_lowers(self):
        """Remember the lower layers: at the first mount, and after a change by the test."""
        self._snapshots = {}
        for path in self.lowers:
            if self.check_lowers:
                self._snapshots[path] = tree(path, layer=True)

    # mounts

    def mount(self, options="", upper=True, lowers=None, impl=None, point=None, flags=0):
        """Mount with the implementation under test; returns the mountpoint."""
        lowers = [Path(p) for p in (lowers or self.lowers)]
        point = Path(point or self.point)
        impl = impl or settings.impl
        up = (self.upper if upper is True else upper) or None
        if not self._snapshots:
            self.snapshot_lowers()
        if point == self.point:
            self.last_options, self.last_lowers, self.last_upper = options, lowers, up
        if impl == "kernel":
            mounted = mount_kernel(lowers, up, self.work, point, options, flags)
        else:
            mounted = mount_plyfs(lowers, up, self.work, point, options)
        self.mounts.append(mounted)
        if point == self.point:
            self.mounted = mounted
        return point

    @property
    def daemon(self):
        return self.mounted.daemon

    def umount(self, lazy=False):
        for mounted in reversed(self.mounts):
            if mounted.live:
                mounted.umount(lazy)
        self.mounts = []
        self.mounted = None

    def remount(self, impl=None, options=None):
        self.umount()
        return self.mount(
            self.last_options if options is None else options,
            upper=self.last_upper,
            lowers=self.last_lowers,
            impl=impl,
        )

    # the end

    def close(self):
        """Unmount everything and check what must hold after every test."""
        if self.closed:
            return
        self.closed = True
        problems = []
        merged = None
        for mounted in self.mounts:
            if mounted.live and mounted.daemon and not mounted.daemon.alive():
                problems.append(f"the daemon died: status {mounted.daemon.status}")
                mounted.force_down()
        if (
            not problems
            and self.mounted
            and self.mounted.live
            and settings.can_kernel
            and self.check_kernel
            and not self.last_options
        ):
            if count_entries(self.point, SMALL_TREE) <= SMALL_TREE:
                merged = tree(self.point)
        for mounted in reversed(self.mounts):
            try:
                mounted.umount()
            except (AssertionError, OSError) as e:
                problems.append(f"unmounting {mounted.point}: {e}")
                mounted.force_down()
        if not problems:
            for check_end in (self._check_lowers, self._check_work):
                try:
                    check_end()
                except AssertionError as e:
                    problems.append(str(e))
            if merged is not None:
                try:
                    self._check_kernel(merged)
                except (AssertionError, OSError) as e:
                    problems.append(f"the kernel's view of the layers: {e}")
        self.mounts = []
        assert not problems, "\n".join(problems)

    def _check_lowers(self):
        for path, before in self._snapshots.items():
            if self.check_lowers:
                lines = tree_differences(before, tree(path, layer=True), "before", "after")
                assert not lines, f"lower layer {path} changed:\n  " + "\n  ".join(lines)

    def _check_work(self):
        if self.check_work and self.last_upper is not None:
            litter = work_litter(self.work)
            assert not litter, f"litter in workdir: {litter}"

    def _check_kernel(self, merged):
        mounted = mount_kernel(self.last_lowers, self.last_upper, self.work, self.point)
        try:
            seen = tree(self.point)
        finally:
            sys_umount(mounted.point)
        assert_same_tree(merged, seen, settings.impl, "kernel")

    def force_down(self):
        for mounted in reversed(self.mounts):
            mounted.force_down()
        self.mounts = []


def work_litter(work):
    """What lies in a workdir beyond what may: work/work, and in it the whiteout for sharing."""
    litter = []
    for entry in os.listdir(work):
        inner = os.path.join(work, entry)
        if entry not in ("work", "index") or not os.path.isdir(inner):
            litter.append(entry)
            continue
        for name in os.listdir(inner):
            if not is_whiteout(os.path.join(inner, name)):
                litter.append(f"{entry}/{name}")
    return litter


def mount_kernel(lowers, upper, work, point, options="", flags=0):
    """The kernel's overlayfs. Raises OSError when it refuses."""
    options = ",".join(x for x in (settings.kernel_options, options) if x)
    if upper is None and len(lowers) == 1:
        # the kernel wants two layers when there is no upper
        empty = Path(point).parent / "empty-lower"
        empty.mkdir(exist_ok=True)
        lowers = [*lowers, empty]
    data = layer_options(lowers, upper, work, options)
    if len(data) > 4000:
        # mount(2) takes one page: use short names for the layers
        stem = Path(point).parent / "l"
        stem.mkdir(exist_ok=True)
        for i, path in enumerate(lowers):
            with contextlib.suppress(FileExistsError):
                os.symlink(os.path.abspath(path), stem / str(i))
        here = os.getcwd()
        os.chdir(stem)
        try:
            data = layer_options([str(i) for i in range(len(lowers))], upper, work, options)
            sys_mount("overlay", point, "overlay", flags, data)
        finally:
            os.chdir(here)
    else:
        sys_mount("overlay", point, "overlay", flags, data)
    return Mount(point, "kernel")


def mount_plyfs(lowers, upper, work, point, options="", **kw):
    """plyfs mount, in the background. Fails the test when it does not succeed in silence."""
    before = set(children())
    options = ",".join(x for x in (options, settings.io_words(options)) if x)
    done = run_plyfs("mount", "-o", layer_options(lowers, upper, work, options), point, **kw)
    assert done.returncode == 0, f"plyfs mount: exit {done.returncode}: {done.stderr}"
    assert done.stdout == "" and done.stderr == "", f"not silent: {done.stdout}{done.stderr}"
    mounted = Mount(point, "plyfs")
    mounted.daemon = adopt_daemon(before)
    return mounted


def adopt_daemon(before):
    """The daemon that a plyfs mount left behind, by now our child."""

    def find():
        new = [p for p in children() if p not in before]
        return [p for p in new if process_name(p).startswith("plyfs")]

    pids = wait_for(find, 5, "a daemon after plyfs mount")
    assert len(pids) == 1, f"more than one daemon: {pids}"
    return Daemon(pids[0])


# --- the watchdog -------------------------------------------------------------------------------


class Watchdog:
    """Ends a test that takes too long: aborts its mounts, raises Timeout in the main thread."""

    def __init__(self):
        self.unions = []
        self.fired = False
        self._deadline = None
        self._wake = threading.Condition()
        signal.signal(signal.SIGALRM, self._on_alarm)
        threading.Thread(target=self._loop, daemon=True).start()

    def start(self, seconds):
        with self._wake:
            self.fired = False
            self._deadline = time.monotonic() + seconds
            self._wake.notify()

    def stop(self):
        with self._wake:
            self._deadline = None
            self._wake.notify()

    @staticmethod
    def _on_alarm(signum, frame):
        raise Timeout("the test's time is over")

    def _loop(self):
        while True:
            with self._wake:
                if self._deadline is None:
                    self._wake.wait()
                    continue
                left = self._deadline - time.monotonic()
                if left > 0:
                    self._wake.wait(left)
                    continue
                self._deadline = None
                self.fired = True
            for union in list(self.unions):
                for mounted in list(union.mounts):
                    mounted.abort()
            signal.pthread_kill(threading.main_thread().ident, signal.SIGALRM)


# --- other file systems -------------------------------------------------------------------------


@contextlib.contextmanager
def loop_filesystem(base, kind, size=400 * MIB, mkfs_options=(), mount_options=""):
    """A file system of this kind in an image file, mounted on base/KIND while the block runs."""
    image, point = Path(base) / f"{kind}.img", Path(base) / kind
    with open(image, "wb") as f:
        f.truncate(size)
    quiet = {"ext4": ["-q", "-F"], "xfs": ["-q", "-f"], "btrfs": ["-q", "-f"]}[kind]
    subprocess.run(
        [f"mkfs.{kind}", *quiet, *mkfs_options, image], check=True, timeout=60, capture_output=True
    )
    point.mkdir()
    options = "loop" + ("," + mount_options if mount_options else "")
    subprocess.run(["mount", "-t", kind, "-o", options, image, point], check=True, timeout=60)
    try:
        yield point
    finally:
        if subprocess.run(["umount", point], check=False, timeout=60).returncode:
            subprocess.run(["umount", "-l", point], check=False, timeout=60)
        image.unlink()


@contextlib.contextmanager
def tmpfs(base, name="tmpfs", size=None, inodes=None):
    point = Path(base) / name
    point.mkdir()
    options = ["mode=0755"]
    if size:
        options.append(f"size={size}")
    if inodes:
        options.append(f"nr_inodes={inodes}")
    sys_mount("tmpfs", point, "tmpfs", 0, ",".join(options))
    try:
        yield point
    finally:
        try:
            sys_umount(point)
        except OSError:
            sys_umount(point, MNT_DETACH)
