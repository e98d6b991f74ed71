# SPDX-License-Identifier: MIT
"""Everything that an overlay does, for users without rights: with subordinate ids, with one id in a
user namespace, and without a namespace; on each filesystem that upper may be on; by both names."""

import contextlib
import errno
import fcntl
import mmap
import os
import shutil
import signal
import stat
import struct
import subprocess
from pathlib import Path

import plyfs_testlib as lib
import pytest
import rootless
from plyfs_testlib import append, mkdir, names, read, write

pytestmark = [
    pytest.mark.root("becomes the users itself"),
    pytest.mark.plyfs_only("the kernel's overlayfs is compared with in the tests"),
]

FILESYSTEMS = ("tmpfs", "ext4", "xfs", "btrfs")
NO_NUMBER = 65534  # what a user namespace shows of others
SUB = 5  # an owner beside root, in the namespace with subordinate ids


# --- mounts of a user ----------------------------------------------------------------------------


class Layers:
    """Directories that belong to the user; what root put into lower does not."""

    def __init__(self, base):
        self.base = Path(base)
        self.lower, self.upper, self.work, self.point = (
            self.base / name for name in ("lower", "upper", "work", "merged")
        )

    def make(self):
        for path in (self.base, self.lower, self.upper, self.work, self.point):
            path.mkdir()
            os.chown(path, rootless.UID, rootless.UID)
            os.chmod(path, 0o755)
        return self

    def options(self, extra=""):
        return lib.layer_options([self.lower], self.upper, self.work, extra)


def mount(layers, program, extra=""):
    """In silence, by plyfs mount or by its other name."""
    argv = [program] if os.path.basename(program) == "fuse-overlayfs" else [program, "mount"]
    done = subprocess.run(
        [*argv, "-o", layers.options(extra), layers.point],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={**os.environ, **lib.settings.sanitizer_env},
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), done


def unmount(layers):
    if os.geteuid() == 0:
        lib.sys_umount(layers.point)
    else:
        subprocess.run(["fusermount3", "-u", layers.point], check=True, timeout=30)


def mount_kernel(layers, upper=True):
    data = lib.layer_options([layers.lower], layers.upper, layers.work, "userxattr")
    lib.sys_mount("overlay", layers.point, "overlay", 0, data)


@contextlib.contextmanager
def served(before):
    """Waits until the servers that were started in the block have gone by themselves."""
    yield
    lib.wait_for(
        lambda: not [pid for pid in set(lib.children()) - before if not reaped(pid)],
        20,
        "the end of every server",
    )


def reaped(pid):
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True


@pytest.fixture(scope="module")
def filesystems():
    """{name: a directory on it}; made once, small."""
    base = Path(lib.settings.scratch) / "rootless"
    base.mkdir()
    with contextlib.ExitStack() as stack:
        made = {"tmpfs": stack.enter_context(lib.tmpfs(base))}
        for kind in FILESYSTEMS[1:]:
            made[kind] = stack.enter_context(lib.loop_filesystem(base, kind))
        for path in made.values():
            os.chmod(path, 0o755)
        yield made
    lib.remove_tree(base)


@pytest.fixture
def layers(scratch):
    return Layers(scratch / "l").make()


@pytest.fixture(scope="module")
def dropin():
    """plyfs under its other name."""
    link = Path(lib.settings.plyfs).with_name("fuse-overlayfs")
    if not link.exists():
        os.symlink("plyfs", link)
    return str(link)


def program_of(form, dropin):
    return dropin if form == "fuse-overlayfs" else lib.settings.plyfs


# --- the operations -------------------------------------------------------------------------------


def fill_lower(layers, kind):
    """As root: the user's own files, those of another of his ids, and some of nobody he knows."""
    own = rootless.UID
    low = layers.lower
    for name in ("append", "chmod", "unlink", "rename", "link", "mapped", "cap", "acl", "xattr"):
        write(low / "own" / name, f"low {name}", uid=own, gid=own)
    os.symlink("append", low / "own/symlink")
    os.mkfifo(low / "own/fifo")
    os.lchown(low / "own/symlink", own, own)
    os.chown(low / "own/fifo", own, own)
    for name in ("emptied", "renamed", "removed"):
        write(low / "own" / name / "old", "low", uid=own, gid=own)
        os.chown(low / "own" / name, own, own)
    os.chown(low / "own", own, own)
    other = rootless.outside("subids", SUB)
    write(low / "sub/file", "low", mode=0o2754, uid=other, gid=other)
    os.chown(low / "sub", own, own)
    write(low / "foreign/file", "low", mode=0o666)
    os.chmod(low / "foreign", 0o777)
    os.chmod(write(low / "foreign/setid", "low"), 0o6777)
    write(low / "above/own/file", "low", uid=own, gid=own)
    os.chown(low / "above/own", own, own)


def outcome(function, *args, **kw):
    """What it returned, or the name of its errno."""
    try:
        return function(*args, **kw)
    except OSError as e:
        return errno.errorcode[e.errno]


def create(path, mode=None):
    write(path, "new", mode=mode)


def make_tmpfile(directory, name):
    fd = os.open(directory, os.O_TMPFILE | os.O_RDWR, 0o640)
    try:
        os.write(fd, b"tmp")
        lib.linkat_fd(fd, directory / name)
    finally:
        os.close(fd)
    return read(directory / name)


def write_mapped(path):
    with open(path, "r+b") as f, mmap.mmap(f.fileno(), 0) as m:
        m[:3] = b"MAP"
        m.flush()
    return read(path)


def lock(path):
    with open(path, "r+b") as f:
        fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)


def replace_directory(path):
    shutil.rmtree(path)
    os.mkdir(path)
    return names(path)


def use_acl(path):
    value = lib.acl(6, 4, 0, groups=[(os.getgid(), 5)])
    os.setxattr(path, lib.ACCESS_ACL, value)
    os.chmod(path, 0o664)
    return oct(os.stat(path).st_mode), len(os.getxattr(path, lib.ACCESS_ACL)) == len(value)


def use_xattrs(path):
    os.setxattr(path, "user.a", b"1")
    os.setxattr(path, "user.overlay.b", b"2")
    found = sorted(n for n in os.listxattr(path) if n.startswith("user."))
    os.removexattr(path, "user.overlay.b")
    return found, os.getxattr(path, "user.a")


def operate(m):
    """Does everything below @m; returns {what: how it went}."""
    own, sub, foreign = m / "own", m / "sub", m / "foreign"
    return {
        "create": outcome(create, m / "new/dir/file", mode=0o751),
        "symlink": outcome(os.symlink, "x" * 300, m / "new/symlink"),
        "mkfifo": outcome(os.mkfifo, m / "new/fifo", 0o640),
        "socket node": outcome(os.mknod, m / "new/socket", stat.S_IFSOCK | 0o600),
        "device": outcome(os.mknod, m / "new/null", stat.S_IFCHR | 0o666, os.makedev(1, 3)),
        "append": outcome(append, own / "append", b" and more"),
        "chmod": outcome(os.chmod, own / "chmod", 0o4711),
        "fifo times": outcome(os.utime, own / "fifo", ns=(10**18, 10**18)),
        "symlink times": outcome(
            os.utime, own / "symlink", ns=(10**18, 10**18), follow_symlinks=False
        ),
        "unlink": outcome(os.unlink, own / "unlink"),
        "unlinked": lib.exists(own / "unlink"),
        "opaque": outcome(replace_directory, own / "emptied"),
        "rename": outcome(os.rename, own / "rename", m / "new/renamed"),
        "rename directory": outcome(os.rename, own / "renamed", m / "new/directory"),
        "rmtree": outcome(shutil.rmtree, own / "removed"),
        "link": outcome(os.link, own / "link", m / "new/link"),
        "links": os.stat(own / "link").st_nlink,
        "setcap": outcome(os.setxattr, own / "cap", lib.CAPABILITY, lib.CAP_NET_RAW),
        "acl": outcome(use_acl, own / "acl"),
        "default acl": outcome(os.setxattr, m / "new/dir", lib.DEFAULT_ACL, lib.acl(7, 5, 0)),
        "inherited": outcome(create, m / "new/dir/heir"),
        "heir": oct(outcome(os.stat, m / "new/dir/heir").st_mode),
        "xattr": outcome(use_xattrs, own / "xattr"),
        "trusted xattr": outcome(os.setxattr, own / "xattr", "trusted.a", b"1"),
        "mmap": outcome(write_mapped, own / "mapped"),
        "locks": outcome(lock, own / "mapped"),
        "tmpfile": outcome(make_tmpfile, m / "new", "tmpfile"),
        "statvfs": os.statvfs(m).f_namemax,
        "sub owner": os.stat(sub / "file").st_uid,
        "sub chmod": outcome(os.chmod, sub / "file", 0o2755),
        "sub chown": outcome(os.chown, own / "chmod", SUB, SUB),
        "foreign owner": os.stat(foreign / "file").st_uid,
        "foreign chmod": outcome(os.chmod, foreign / "file", 0o600),
        "foreign append": outcome(append, foreign / "file", b"more"),
        "create in foreign": outcome(create, foreign / "new"),
        "own below foreign": outcome(append, m / "above/own/file", b"more"),
    }


COMMON = {
    "create": None,
    "symlink": None,
    "mkfifo": None,
    "socket node": None,
    "device": "EPERM",
    "append": None,
    "chmod": None,
    "fifo times": None,
    "symlink times": None,
    "unlink": None,
    "unlinked": False,
    "opaque": [],
    "rename": None,
    "rename directory": "EXDEV",
    "rmtree": None,
    "link": None,
    "links": 2,
    "setcap": None,
    "acl": ("0o100664", True),
    "default acl": None,
    "inherited": None,
    "heir": "0o100640",
    "xattr": (["user.a", "user.overlay.b"], b"1"),
    "trusted xattr": "EPERM",
    "mmap": b"MAP mapped",
    "locks": None,
    "tmpfile": b"tmp",
    "statvfs": 255,
    "sub owner": NO_NUMBER,
    "sub chown": "EINVAL",
    "foreign owner": NO_NUMBER,
}

# What the number of ids makes of it. An owner without a number is beyond the rights of anybody in
# the namespace: with FUSE the kernel itself says so, with overlayfs mostly the copy-up.
EXPECTED = {
    "subids": {
        **COMMON,
        "sub owner": SUB,
        "sub chmod": None,
        "sub chown": None,
        "foreign chmod": "EOVERFLOW",
        "foreign append": "EACCES",
        "create in foreign": "EACCES",
        "own below foreign": "EOVERFLOW",
    },
    "single": {
        **COMMON,
        "sub chmod": "EOVERFLOW",
        "foreign chmod": "EOVERFLOW",
        "foreign append": "EACCES",
        "create in foreign": "EACCES",
        "own below foreign": "EOVERFLOW",
    },
    "user": {
        **COMMON,
        "setcap": "EPERM",
        "sub owner": rootless.outside("subids", SUB),
        "sub chmod": "EPERM",
        "sub chown": "EPERM",
        "foreign owner": 0,
        "foreign chmod": "EPERM",
        "foreign append": "EPERM",
        "create in foreign": "EPERM",
        "own below foreign": "EPERM",
    },
}

# As fuse-overlayfs nothing that is permitted fails because a copy cannot get its owner, and names
# leave room for ".wh." before them.
GIVEN_UP = {"user": {"foreign append": None, "create in foreign": None}}
EXPECTED_OF_DROPIN = {
    kind: {**expected, "statvfs": 251, "own below foreign": None, **GIVEN_UP.get(kind, {})}
    for kind, expected in EXPECTED.items()
}

# Where the kernel's overlayfs refuses the same in other words.
KERNEL_SAYS = {
    "sub chmod": {"EOVERFLOW": "EPERM"},
    "foreign chmod": {"EOVERFLOW": "EPERM"},
    "foreign append": {"EACCES": "EOVERFLOW"},
    "create in foreign": {"EACCES": "EOVERFLOW"},
}


# What is appended to a file that cannot be copied up. With a writeback cache it is close(2) that
# says so, always by EIO, and the kernel goes on showing what it holds.
TOLD_AT_CLOSE = {"foreign append": "foreign/file", "own below foreign": "above/own/file"}


def differences(found, wanted):
    at_close = {k: "EIO" for k in TOLD_AT_CLOSE if wanted[k]}
    return {
        k: (found[k], wanted[k])
        for k in wanted
        if found[k] not in (wanted[k], at_close.get(k, wanted[k]))
    }


def comparable(m):
    """A tree without the times that a second run has of its own, and without sockets' inodes."""
    return lib.tree(m, times=False)


def leave_out_refused(tree, found, later):
    for what, path in TOLD_AT_CLOSE.items():
        if found[what]:
            assert later[path]["size"] == len("low")
            tree[path] = {**tree[path], **{k: later[path][k] for k in ("size", "content")}}


def whole_life(layers, reference, program, kind):
    """As the user. Both implementations from the same lower; each upper is read by the other."""
    mount(layers, program)
    found = operate(layers.point)
    tree = comparable(layers.point)
    unmount(layers)
    mount(layers, program)
    again = comparable(layers.point)
    unmount(layers)
    leave_out_refused(tree, found, again)
    lib.assert_same_tree(tree, again, "before", "after a remount")
    if kind == "user":
        # the same numbers as outside, but the rights to mount
        rootless._map_single(rootless.UID)
    mount_kernel(layers)
    seen = comparable(layers.point)
    lib.sys_umount(layers.point)
    if kind == "user":
        show_as_nobody(tree)
    lib.assert_same_tree(tree, seen, program, "the kernel's overlayfs")
    if kind == "user":
        return found, None
    mount_kernel(reference)
    theirs = operate(reference.point)
    kernels = comparable(reference.point)
    lib.sys_umount(reference.point)
    mount(reference, program)
    lib.assert_same_tree(kernels, comparable(reference.point), "the kernel's overlayfs", program)
    unmount(reference)
    return found, theirs


def show_as_nobody(tree):
    for entry in tree.values():
        for key in ("uid", "gid"):
            if entry[key] != rootless.UID:
                entry[key] = NO_NUMBER


@pytest.mark.parametrize("filesystem", FILESYSTEMS)
@pytest.mark.parametrize("kind", rootless.KINDS)
@pytest.mark.parametrize("form", ["plyfs", "fuse-overlayfs"])
def test_everything_that_an_overlay_does(filesystems, scratch, dropin, form, kind, filesystem):
    base = mkdir(filesystems[filesystem] / form / kind)
    expected = EXPECTED_OF_DROPIN if form == "fuse-overlayfs" else EXPECTED
    layers, reference = Layers(base / "ours").make(), Layers(base / "kernels").make()
    for each in (layers, reference):
        fill_lower(each, kind)
    before = lib.tree(layers.lower, layer=True)
    with served(set(lib.children())):
        found, theirs = rootless.run(
            kind, whole_life, layers, reference, program_of(form, dropin), kind
        )
    assert not differences(found, expected[kind])
    if theirs:
        wanted = {
            what: KERNEL_SAYS.get(what, {}).get(how, how) if isinstance(how, str) else how
            for what, how in EXPECTED[kind].items()
        }
        assert not differences(theirs, wanted), "the kernel's overlayfs"
    lib.assert_same_tree(before, lib.tree(layers.lower, layer=True), "lower before", "after")
    assert lib.is_whiteout(layers.upper / "own/unlink")
    assert lib.xattr(layers.upper / "own/emptied", "user.overlay.opaque") == b"y"
    if kind == "subids":
        st = os.stat(layers.upper / "sub/file")
        assert (st.st_uid, st.st_gid) == (rootless.outside(kind, SUB),) * 2
    lib.remove_tree(base)


def chmod_and_append(layers, program, extra):
    mount(layers, program, extra)
    m = layers.point
    try:
        results = {
            "append": outcome(append, m / "foreign/file", b"+"),
            "append to set-id": outcome(append, m / "foreign/setid", b"+"),
            "chmod": outcome(os.chmod, m / "foreign/file", 0o640),
            "rename set-id": outcome(os.rename, m / "own/setid", m / "foreign/setid2"),
            "chown": outcome(os.chown, m / "own/chmod", SUB, SUB),
        }
        owners = {os.lstat(m / path).st_uid for path in lib.walk(m)}
        return results, owners
    finally:
        unmount(layers)


@pytest.mark.parametrize("kind", ["single", "user"])
@pytest.mark.parametrize("form", ["plyfs", "fuse-overlayfs"])
def test_one_id_for_everything(layers, dropin, form, kind):
    """squash_to_uid=, which engines give to a user with one id: all is his, and can be changed."""
    fill_lower(layers, kind)
    os.chmod(write(layers.lower / "own/setid", "low"), 0o6755)
    os.setxattr(layers.lower / "own/setid", lib.CAPABILITY, lib.CAP_NET_RAW)
    shown = 0 if kind == "single" else rootless.UID
    with served(set(lib.children())):
        results, owners = rootless.run(
            kind,
            chmod_and_append,
            layers,
            program_of(form, dropin),
            f"squash_to_uid={shown},squash_to_gid={shown}",
        )
    wrong = "EINVAL" if kind == "single" else "EPERM"
    assert results == {**dict.fromkeys(results), "chown": wrong}
    assert owners == {shown}
    for name in ("file", "setid", "setid2"):
        st = os.stat(layers.upper / "foreign" / name)
        assert (st.st_uid, st.st_gid) == (rootless.UID, rootless.UID)
        # nobody becomes the user by it
        assert not st.st_mode & (stat.S_ISUID | stat.S_ISGID), name
    capability = lib.xattr(layers.upper / "foreign/setid2", lib.CAPABILITY)
    if kind == "user":
        assert capability is None
    else:  # counts for root of this namespace only
        assert capability[-4:] == struct.pack("<I", rootless.UID)
    assert read(layers.upper / "foreign/file") == b"low+"
    assert read(layers.lower / "foreign/file") == b"low"
