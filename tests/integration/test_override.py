# SPDX-License-Identifier: MIT
"""xattr_permissions=: owner, mode and type of objects that are kept in an xattr.

What a mount shows is what one without it shows: the same operations on both give the same tree.
What lies in upper is really ours, directories and regular files without set-id bits, and says in
its attribute what it is. Layers of fuse-overlayfs and containers/storage are read by theirs.
"""

import errno
import os
import re
import shutil
import socket
import stat
import subprocess

import crash
import plyfs_testlib as lib
import pytest
from plyfs_testlib import NOBODY, append, in_child, mkdir, raises, read, write, xattr

pytestmark = pytest.mark.plyfs_only("the kernel's overlayfs knows no such attributes")

CONTAINERS = "user.containers.override_stat"
FUSE = "user.fuseoverlayfs.override_stat"
SECURITY = "security.fuseoverlayfs.override_stat"
KEPT = "user.containers.override_"

ROOT = lib.settings.level == "root"
PRIVILEGED = lib.settings.level != "user"
WAYS = ["2", "1"] if ROOT else ["2"]  # security.* is for root
NAME_OF = {"1": SECURITY, "2": CONTAINERS}

needs_privilege = pytest.mark.privileged("gives files to others")


def option(way):
    return f"xattr_permissions={way}"


def mode_of(path):
    return stat.S_IMODE(os.lstat(path).st_mode)


def shown(path):
    """Type, mode, owner and device as the mount shows them."""
    st = os.lstat(path)
    return stat.filemode(st.st_mode), st.st_uid, st.st_gid, st.st_rdev


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(os.fspath(path))


# --- what is seen ---------------------------------------------------------------------------------


def make_lower(lower):
    write(lower / "file", "low", mode=0o644)
    write(lower / "suid", "s", mode=0o4755)
    write(lower / "sgid", "s", mode=0o2755)
    write(lower / "big", b"x" * 70000, mode=0o640)
    write(lower / "dir/in", "in")
    mkdir(lower / "shared", mode=0o2775)
    mkdir(lower / "gone")
    write(lower / "gone/x")
    mkdir(lower / "sticky", mode=0o1777)
    os.symlink("file", lower / "link")
    os.mkfifo(lower / "pipe", 0o640)
    make_socket(lower / "socket")
    os.link(lower / "big", lower / "big2")
    os.setxattr(lower / "file", "user.x", b"lower")
    if PRIVILEGED:
        os.setxattr(lower / "sgid", lib.CAPABILITY, lib.CAP_NET_RAW)
        lib.finish(lower / "shared", uid=10, gid=20, mode=0o2775)
        os.setxattr(lower / "dir", lib.DEFAULT_ACL, lib.acl(7, 5, 0, users=[(77, 7)]))
        lib.finish(lower / "suid", uid=30, gid=40, mode=0o6755)
        lib.finish(lower / "pipe", uid=5, gid=6)


def make_new(m):
    """What an ordinary user may do, too."""
    write(m / "new", "n")
    fd = os.open(m / "private", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    os.write(fd, b"secret")
    os.close(fd)
    os.mkdir(m / "newdir", 0o750)
    os.chmod(m / "newdir", 0o2750)
    write(m / "newdir/inside")
    os.mkdir(m / "newdir/sub")
    os.mkfifo(m / "newdir/fifo", 0o604)
    make_socket(m / "newdir/sock")
    os.mknod(m / "newdir/node", stat.S_IFREG | 0o611)
    os.symlink("nowhere", m / "newdir/sym")
    os.chmod(m / "new", 0o4711)
    os.chmod(m / "private", 0o400)
    os.chmod(m / "dir", 0o700)
    os.setxattr(m / "new", "user.y", b"1")
    os.link(m / "new", m / "newdir/hard")
    os.rename(m / "newdir/fifo", m / "renamed")
    os.mkfifo(m / "over", 0o600)
    os.rename(m / "over", m / "newdir/node")
    append(m / "file", b"+")
    append(m / "big2", b"+")
    os.truncate(m / "big", 10)
    os.unlink(m / "link")
    os.symlink("other", m / "link")
    shutil.rmtree(m / "gone")
    os.mkdir(m / "gone", 0o711)
    write(m / "gone/y")
    os.unlink(m / "socket")
    os.mkfifo(m / "socket", 0o622)
    lib.renameat2(m / "file", m / "renamed", lib.RENAME_EXCHANGE)
    with lib.opened(m, os.O_TMPFILE | os.O_RDWR, 0o640) as fd:
        os.write(fd, b"tmp")
        os.fchmod(fd, 0o4640)
        lib.linkat_fd(fd, m / "was-tmpfile")
    os.mkdir(m / "sticky/d", 0o1770)
    os.mkdir(m / "whiteouts")
    os.rename(m / "dir/in", m / "whiteouts/in")


def as_user(m):
    write(m / "sticky/mine")
    os.mkfifo(m / "sticky/my-fifo")
    os.mkdir(m / "sticky/my-dir", 0o2700)
    os.chmod(m / "sticky/mine", 0o6755)
    append(m / "taken", b"+")  # drops suid
    with lib.opened(m / "sgid-only", os.O_WRONLY) as fd:
        os.ftruncate(fd, 0)
    with raises(errno.EACCES):
        open(m / "private").close()
    with raises(errno.EPERM):
        os.chmod(m / "new", 0o777)


def give_away(m):
    """What takes privileges, and what nobody else could look at afterwards."""
    os.mkdir(m / "closed", 0)
    fd = os.open(m / "unreadable", os.O_CREAT | os.O_WRONLY, 0o200)
    os.close(fd)
    os.chmod(m / "private", 0)
    os.chown(m / "new", 1, 2)
    os.chmod(m / "new", 0o6755)
    os.chown(m / "new", 3, -1)  # drops both
    os.chown(m / "private", -1, 44)
    os.chown(m / "pipe", 7, 8)
    os.chmod(m / "pipe", 0o666)
    os.chown(m / "renamed", 9, 9)
    os.chown(m / "newdir", 11, 12)
    os.chmod(m / "newdir", 0o2775)
    write(m / "newdir/of-the-group")
    os.mkdir(m / "newdir/of-the-group-too")
    os.mkdir(m / "shared/d")
    write(m / "shared/f")
    os.mkfifo(m / "shared/p")
    for name in ("taken", "sgid-only"):
        write(m / name, "abc")
        os.chown(m / name, NOBODY, NOBODY)
    os.chmod(m / "taken", 0o6777)
    os.chmod(m / "sgid-only", 0o2766)
    in_child(as_user, m, uid=NOBODY)
    os.setxattr(m / "big", lib.CAPABILITY, lib.CAP_NET_RAW)
    os.setxattr(m / "big2", lib.CAPABILITY, lib.CAP_NET_RAW)
    append(m / "big2", b"+")  # drops it
    write(m / "with-acl", "a", mode=0o640)
    os.setxattr(m / "with-acl", lib.ACCESS_ACL, lib.acl(6, 4, 0, users=[(77, 7)], mask=5))
    os.chmod(m / "with-acl", 0o606)
    write(m / "plain-acl", "a", mode=0o777)
    os.setxattr(m / "plain-acl", lib.ACCESS_ACL, lib.acl(6, 4, 0))
    write(m / "acl-removed", "a", mode=0o640)
    os.setxattr(m / "acl-removed", lib.ACCESS_ACL, lib.acl(6, 4, 0, groups=[(5, 7)]))
    os.removexattr(m / "acl-removed", lib.ACCESS_ACL)
    os.umask(0o77)  # says nothing below a default ACL
    write(m / "dir/inherits")
    os.mkdir(m / "dir/sub")
    os.mkfifo(m / "dir/fifo")
    with lib.opened(m / "dir", os.O_TMPFILE | os.O_RDWR, 0o666) as fd:
        lib.linkat_fd(fd, m / "dir/tmp")
    os.umask(0o22)
    write(m / "no-acl", mode=0o666)
    append(m / "suid", b"+")
    os.rename(m / "sgid", m / "dir/sgid")
    os.chown(m, 55, 66)
    os.chmod(m, 0o3771)
    write(m / "of-the-roots-group")
    if ROOT:
        os.mknod(m / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        os.mknod(m / "disk", stat.S_IFBLK | 0o660, os.makedev(259, 70000))
        os.chown(m / "disk", 0, 6)
        os.setxattr(m / "new", "trusted.x", b"t")


def change_everything(m):
    umask = os.umask(0o22)
    try:
        make_new(m)
        if PRIVILEGED:
            give_away(m)
    finally:
        os.umask(umask)


def seen(m):
    out = lib.tree(m, times=False)
    for entry in out.values():
        entry["xattrs"] = dict(sorted(entry["xattrs"].items())) if isinstance(
            entry["xattrs"], dict) else entry["xattrs"]
    return out


def types_listed(m):
    return {
        rel: {name: kind for name, (_, kind) in lib.getdents_all(os.path.join(m, rel)).items()}
        for rel in [".", "newdir", "shared", "sticky"]
    }


def check_real_objects(upper, way):
    """Everything is ours, and a directory, a regular file or a symlink without set-id bits."""
    for rel in lib.walk(upper):
        path = os.path.join(upper, rel)
        st = os.lstat(path)
        if lib.is_whiteout(path):
            continue
        kind = stat.S_IFMT(st.st_mode)
        assert kind in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK), rel
        assert (st.st_uid, st.st_gid) == (os.geteuid(), os.getegid()), rel
        if kind == stat.S_IFLNK and way == "2":
            continue
        assert xattr(path, NAME_OF[way]), f"{rel} has no attribute"
        if kind == stat.S_IFLNK:
            continue
        assert not st.st_mode & 0o7022 and st.st_mode & 0o600 == 0o600, (rel, oct(st.st_mode))
        if way == "2":
            assert not xattr(path, lib.CAPABILITY) and not xattr(path, lib.ACCESS_ACL), rel


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("features", ["", ",metacopy=on,redirect_dir=on,index=on"], ids=["", "all"])
def test_all_that_is_done_looks_as_without(new_union, way, features):
    if features and not ROOT:
        features = ",redirect_dir=nofollow"
    views = []
    for options in (features.lstrip(","), option(way) + features):
        union = new_union(f"u{len(views)}")
        make_lower(union.lower())
        union.check_kernel = union.check_work = False
        m = union.mount(options)
        change_everything(m)
        views.append((seen(m), types_listed(m)))
        union.remount()
        views.append((seen(m), types_listed(m)))
    plain, plain_again, kept, kept_again = views
    for one, other in ((plain, kept), (plain, kept_again)):
        lib.assert_same_tree(one[0], other[0], "without", "with")
        assert one[1] == other[1]
    check_real_objects(union.upper, way)


def test_what_is_written_in_upper(union):
    union.mount(option("2"))
    m = union.point
    me = f"{os.getuid()}:{os.getgid()}"
    assert xattr(union.upper, CONTAINERS) == f"{me}:0{mode_of(union.upper):o}".encode()
    os.umask(0o22)
    write(m / "f", mode=0o4751)
    os.mkdir(m / "d", 0o700)
    os.mkfifo(m / "p", 0o640)
    make_socket(m / "s")
    for name, rest, real in (
        ("f", "04751", 0o100751),
        ("d", "0700", 0o040700),
        ("p", "0640:pipe", 0o100640),
        ("s", "0755:socket", 0o100755),
    ):
        assert xattr(union.upper / name, CONTAINERS) == f"{me}:{rest}".encode()
        assert os.lstat(union.upper / name).st_mode == real, name


def test_what_the_root_of_upper_withholds_others_do_not_get(union):
    """containers/storage gives it the mode that force_mask says."""
    os.chmod(union.upper, 0o710)
    m = union.mount(option("2"))
    write(m / "f", mode=0o755)
    mkdir(m / "d", mode=0o777)
    assert mode_of(union.upper / "f") == 0o710 and mode_of(union.upper / "d") == 0o710
    assert mode_of(m / "f") == 0o755 and mode_of(m / "d") == 0o777
    assert mode_of(m) == 0o710
    os.chmod(m, 0o1777)
    assert mode_of(m) == 0o1777 and mode_of(union.upper) == 0o710


@needs_privilege
def test_rights_are_those_that_are_shown(union):
    write(union.lower() / "low", "x", mode=0o600)
    m = union.mount(option("2") + (",allow_other" if not ROOT else ""))
    write(m / "f", "x", mode=0o600)
    os.chown(m / "f", 1000, 1000)
    os.mkdir(m / "d", 0o700)
    os.chown(m / "d", 1000, 1000)
    with raises(errno.EACCES):
        in_child(read, m / "f", uid=NOBODY)
    assert in_child(read, m / "f", uid=1000) == b"x"
    in_child(write, m / "d/g", "mine", uid=1000)
    assert os.stat(m / "d/g").st_uid == 1000
    with raises(errno.EACCES):
        in_child(os.listdir, m / "d", uid=NOBODY)


def test_a_device_does_not_open(union):
    write(union.lower() / "null", xattrs={CONTAINERS: b"0:0:0666:char-1-3"})
    os.setxattr(union.lower(), CONTAINERS, b"0:0:0755")
    m = union.mount(option("2") + (",nodev" if ROOT else ""))
    assert shown(m / "null") == ("crw-rw-rw-", 0, 0, os.makedev(1, 3))
    with raises(errno.EACCES):
        open(m / "null").close()


# --- hidden names ---------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_nobody_sees_or_sets_the_attributes(union, way):
    write(union.lower() / "low", xattrs={CONTAINERS: b"0:0:04755", KEPT + "security.x": b"y"})
    m = union.mount(option(way))
    write(m / "f")
    os.mkdir(m / "d")
    for path in (m, m / "f", m / "d", m / "low"):
        assert not [n for n in os.listxattr(path) if "override" in n]
        for name in (CONTAINERS, FUSE, SECURITY, KEPT + "security.capability", KEPT + "x"):
            if name == SECURITY and not PRIVILEGED:
                continue  # the kernel refuses it already
            assert xattr(path, name) is None
            with raises(errno.EPERM):
                os.setxattr(path, name, b"0:0:04755")
            with raises(errno.EPERM):
                os.removexattr(path, name)
    # and what looked like one below is left there
    os.chmod(m / "low", 0o640)
    assert mode_of(m / "low") == 0o640
    assert xattr(union.upper / "low", KEPT + "security.x") is None
    assert xattr(m / "low", "security.x") is None


def test_the_names_are_free_where_nobody_asked(union):
    m = union.mount()
    write(m / "f", xattrs={CONTAINERS: b"0:0:04755"})
    assert xattr(m / "f", CONTAINERS) == b"0:0:04755"
    assert mode_of(m / "f") & stat.S_ISUID == 0


@needs_privilege
def test_what_only_the_privileged_may_set_is_kept_under_another_name(union):
    m = union.mount(option("2"))
    write(m / "f")
    os.setxattr(m / "f", lib.CAPABILITY, lib.CAP_NET_RAW)
    assert xattr(m / "f", lib.CAPABILITY)[:8] == lib.CAP_NET_RAW[:8] or not ROOT
    assert xattr(union.upper / "f", KEPT + lib.CAPABILITY)
    assert xattr(union.upper / "f", lib.CAPABILITY) is None
    assert os.listxattr(m / "f") == [lib.CAPABILITY]
    with raises(errno.EEXIST):
        os.setxattr(m / "f", lib.CAPABILITY, lib.CAP_NET_RAW, os.XATTR_CREATE)
    os.removexattr(m / "f", lib.CAPABILITY)
    assert os.listxattr(m / "f") == []
    with raises(errno.ENODATA):
        os.removexattr(m / "f", lib.CAPABILITY)
    with raises(errno.ENODATA):
        os.setxattr(m / "f", lib.CAPABILITY, lib.CAP_NET_RAW, os.XATTR_REPLACE)


@pytest.mark.root("sets what is to be found")
def test_what_was_really_set_below_is_not_the_containers(union):
    low = write(union.lower() / "f", xattrs={lib.CAPABILITY: lib.CAP_NET_RAW})
    os.setxattr(low, CONTAINERS, b"1:1:0755")
    os.setxattr(low, KEPT + "security.y", b"kept")
    os.setxattr(low, "security.y", b"real")
    os.setxattr(union.lower(), CONTAINERS, b"0:0:0755")
    write(union.upper / "up", xattrs={lib.CAPABILITY: lib.CAP_NET_RAW})
    m = union.mount(option("2"))
    assert lib.xattrs(m / "up") == {}
    assert lib.xattrs(m / "f") == {"security.y": b"kept"}
    with raises(errno.ENODATA):
        os.getxattr(m / "f", lib.CAPABILITY)
    with raises(errno.ENODATA):
        os.removexattr(m / "up", lib.CAPABILITY)
    os.rename(m / "f", m / "g")  # copied up
    assert lib.xattrs(m / "g") == {"security.y": b"kept"}
    os.setxattr(m / "up", lib.CAPABILITY, lib.CAP_NET_RAW, os.XATTR_CREATE)
    assert lib.xattrs(m / "up") == {lib.CAPABILITY: lib.CAP_NET_RAW}
    os.removexattr(m / "up", lib.CAPABILITY)
    os.removexattr(m / "g", "security.y")
    assert (lib.xattrs(m / "up"), lib.xattrs(m / "g")) == ({}, {})


# --- layers of others -----------------------------------------------------------------------------

# value, and what a regular file with it is seen as
VALUES = {
    "file": (b"1:2:04711", ("-rws--x--x", 1, 2, 0)),
    "typed": (b"1:2:0600:file", ("-rw-------", 1, 2, 0)),
    "full": (b"1:2:100640", ("-rw-r-----", 1, 2, 0)),
    "pipe": (b"1:2:0644:pipe", ("prw-r--r--", 1, 2, 0)),
    "socket": (b"1:2:0755:socket", ("srwxr-xr-x", 1, 2, 0)),
    "char": (b"0:6:0660:char-5-1", ("crw-rw----", 0, 6, os.makedev(5, 1))),
    "block": (b"0:6:0660:block-259-70000", ("brw-rw----", 0, 6, os.makedev(259, 70000))),
    "symlink": (b"3:4:0777:symlink", ("lrwxrwxrwx", 3, 4, 0)),
}
KINDS = {
    "-": lib.DT_REG,
    "p": lib.DT_FIFO,
    "s": lib.DT_SOCK,
    "c": lib.DT_CHR,
    "b": lib.DT_BLK,
    "l": lib.DT_LNK,
}


def make_overridden(layer, name=CONTAINERS):
    """As containers/storage writes it with force_mask."""
    os.setxattr(layer, name, b"0:0:0555")
    for file, (value, _) in VALUES.items():
        write(layer / file, "target" if file == "symlink" else b"", mode=0o700)
        os.setxattr(layer / file, name, value)
    mkdir(layer / "dir", mode=0o700, xattrs={name: b"7:8:02770:dir"})
    write(layer / "dir/as-it-is", "x", mode=0o640)
    os.symlink("file", layer / "real-symlink")


def check_overridden(m):
    me = (os.getuid(), os.getgid())
    for file, (_, wanted) in VALUES.items():
        assert shown(m / file) == wanted, file
    assert shown(m / "dir")[:3] == ("drwxrws---", 7, 8)
    assert shown(m / "real-symlink")[:3] == ("lrwxrwxrwx", *me)
    assert os.readlink(m / "symlink") == "target"
    listed = {n: kind for n, (_, kind) in lib.getdents_all(m).items()}
    for file, (_, wanted) in VALUES.items():
        assert listed[file] == KINDS[wanted[0][0]], file


FORMATS = [CONTAINERS, FUSE, pytest.param(SECURITY, marks=pytest.mark.root("sets security.*"))]


def dropin(union, options, upper=True, lowers=None):
    """Mounts as fuse-overlayfs would be called."""
    program = mkdir(union.base / "bin") / "fuse-overlayfs"
    if not program.is_symlink():
        program.symlink_to(lib.settings.plyfs)
    up = union.upper if upper else None
    return run_program(union, program, lib.layer_options(lowers or union.lowers, up,
                                                         union.work, options))


def run_program(union, program, options):
    before = set(lib.children())
    done = subprocess.run(
        [program, "-o", options, union.point],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env={**os.environ, **lib.settings.sanitizer_env},
        timeout=30,
        check=False,
    )
    if done.returncode:
        return done
    mounted = lib.Mount(union.point, "plyfs")

    def new():
        return [p for p in lib.children()
                if p not in before and lib.process_name(p).startswith("fuse-overlayfs")]

    mounted.daemon = lib.Daemon(lib.wait_for(new, 5, "a daemon")[0])
    union.mounts.append(mounted)
    union.last_options = "dropin"  # nothing for the kernel to compare
    union.mounted = mounted
    return done


@pytest.mark.parametrize("name", FORMATS)
def test_lower_layers_are_read_by_their_attributes(union, name):
    make_overridden(union.lower(), name)
    assert dropin(union, "", upper=False).returncode == 0
    check_overridden(union.point)
    assert mode_of(union.point) == 0o555


@pytest.mark.parametrize("name", FORMATS)
def test_they_are_where_it_is_asked_for(union, name):
    make_overridden(union.lower(), name)
    m = union.mount(option("2"))
    check_overridden(m)
    # the root of upper takes over what the topmost such layer says
    assert shown(m)[:3] == ("dr-xr-xr-x", 0, 0)
    assert xattr(union.upper, CONTAINERS) == b"0:0:0555"


def test_nothing_is_read_by_them_where_nobody_asked(union):
    make_overridden(union.lower())
    m = union.mount()
    assert shown(m / "pipe")[0] == "-rwx------"
    assert xattr(m / "pipe", CONTAINERS) == b"1:2:0644:pipe"


@pytest.mark.root("rights on the host are meant")
def test_what_a_stranger_wrote_into_a_layer_gives_no_rights(union):
    """Who may write a directory that root mounts would be root by a set-id program of his own."""
    low = union.lower()
    os.setxattr(low, CONTAINERS, b"0:0:0755")
    values = {"his": b"0:0:06755", "anybodys": b"0:0:06755", "roots": b"0:0:06755", "disk": b"0:0:0666:block-8-0"}
    for name, value in values.items():
        write(low / name, xattrs={CONTAINERS: value, KEPT + lib.CAPABILITY: lib.CAP_NET_RAW})
    for name in ("his", "disk"):
        os.chown(low / name, 1000, 1000)
        os.setxattr(low / name, KEPT + lib.CAPABILITY, lib.CAP_NET_RAW)
    os.chmod(low / "anybodys", 0o666)
    for options in ("", option("2")):
        assert dropin(union, options).returncode == 0
        m = union.point
        for name in ("his", "anybodys"):
            assert shown(m / name)[:3] == ("-rwxr-xr-x", 0, 0)
            with raises(errno.ENODATA):
                os.getxattr(m / name, lib.CAPABILITY)
        assert shown(m / "roots")[0] == "-rwsr-sr-x"
        assert os.getxattr(m / "roots", lib.CAPABILITY) == lib.CAP_NET_RAW
        with raises(errno.EIO):
            os.lstat(m / "disk")
        if not options:
            union.umount()
    for name in ("his", "anybodys", "roots"):
        os.utime(union.point / name, (1, 1))
    assert xattr(union.upper / "his", CONTAINERS) == b"0:0:0755"
    assert xattr(union.upper / "anybodys", KEPT + lib.CAPABILITY) is None
    assert shown(union.point / "roots")[0] == "-rwsr-sr-x"


def test_a_layer_without_the_mark_on_its_root_is_read_as_it_is(union):
    write(union.lower(0) / "f", xattrs={CONTAINERS: b"0:0:04755"}, mode=0o600)
    make_overridden(union.lower(1))
    m = union.mount(option("2"))
    assert shown(m / "f")[:2] == ("-rw-------", os.getuid())
    check_overridden(m)


@needs_privilege
@pytest.mark.parametrize("way", ["", "2"] + WAYS[1:])
def test_copy_up_keeps_what_is_shown(union, way):
    """Also into an upper that keeps nothing in xattrs, where that is possible."""
    make_overridden(union.lower())
    done = dropin(union, option(way) if way else "")
    assert done.returncode == 0, done.stderr
    m = union.point
    files = [f for f in VALUES if ROOT or way or f not in ("char", "block")]
    for file in files:
        before = shown(m / file)
        os.utime(m / file, (1, 1), follow_symlinks=False)
        assert lib.exists(union.upper / file), file
        assert shown(m / file) == before or (file == "symlink" and way == "2"), file
        os.rename(m / file, m / (file + ".moved"))
        assert shown(m / (file + ".moved")) == before, file
        if file != "file":
            os.link(m / (file + ".moved"), m / (file + ".linked"))
    assert os.readlink(m / "symlink.moved") == "target"
    os.utime(m / "dir", (1, 1))
    assert shown(m / "dir")[:3] == ("drwxrws---", 7, 8)
    if way == "2":
        assert xattr(union.upper / "pipe.moved", CONTAINERS) == VALUES["pipe"][0]
        assert xattr(union.upper / "symlink.moved", CONTAINERS) == VALUES["symlink"][0]
    elif not way:
        assert stat.S_ISFIFO(os.lstat(union.upper / "pipe.moved").st_mode)
        assert xattr(union.upper / "pipe.moved", CONTAINERS) is None
    for name in lib.names(m):
        if name.endswith((".moved", ".linked")):
            os.unlink(m / name)
    assert not [n for n in lib.names(m) if n.endswith((".moved", ".linked"))]


@needs_privilege
def test_a_file_given_to_whom_it_is_shown_as_belonging_to_stays_whose_it_is(union):
    write(union.lower() / "file", mode=0o4755)
    m = union.mount("xattr_permissions=2,squash_to_uid=7,squash_to_gid=7,uidmapping=0:1:5,gidmapping=0:1:5")
    os.chown(m / "file", 7, 7)
    assert shown(m / "file")[:3] == ("-rwxr-xr-x", 7, 7)
    assert xattr(union.upper / "file", CONTAINERS) == b"0:0:0755"


def test_upper_becomes_a_layer_that_is_read_the_same(new_union):
    union = new_union("first")
    make_lower(union.lower())
    m = union.mount(option("2"))
    change_everything(m)
    before = seen(m)
    union.umount()
    above = new_union("second")
    above.use_lower(0, union.upper)
    above.use_lower(1, union.lower())
    assert dropin(above, "", upper=False).returncode == 0
    lib.assert_same_tree(before, seen(above.point), "as upper", "as lower")


def test_an_upper_that_says_so_is_written_so_without_being_asked(union):
    m = union.mount(option("2"))
    write(m / "f", mode=0o4700)
    union.umount()
    assert dropin(union, "").returncode == 0
    os.chmod(m / "f", 0o6755)
    write(m / "g", mode=0o2711)
    assert mode_of(m / "f") == 0o6755 and mode_of(m / "g") == 0o2711
    assert mode_of(union.upper / "f") & 0o7000 == 0
    assert xattr(union.upper / "g", CONTAINERS).endswith(b":02711")


@needs_privilege
@pytest.mark.parametrize("other", [FUSE, SECURITY] if ROOT else [FUSE])
def test_an_object_with_two_attributes_says_the_same_in_each(union, other):
    """Which of them counts depends on the mount, and on whether the layer is upper or lower."""
    for name in (CONTAINERS, other):
        os.setxattr(union.upper, name, b"0:0:0755")
        write(union.upper / "both", xattrs={name: b"3:3:0600"})
        write(union.upper / "one", xattrs={other: b"3:3:0600"})
    union.lower()
    m = union.point
    for i, options in enumerate([option("2"), *map(option, WAYS), ""]):
        assert dropin(union, options).returncode == 0
        for name in ("both", "one"):
            if i:
                assert shown(m / name)[:3] == ("-rw-r--r--", i, i)
            os.chown(m / name, i + 1, i + 1)
            os.chmod(m / name, 0o644)
        union.umount()
        assert xattr(union.upper / "both", CONTAINERS) == xattr(union.upper / "both", other)
    assert dropin(union, "", False, [union.upper, union.lower()]).returncode == 0
    for name in ("both", "one"):
        assert shown(m / name)[:3] == ("-rw-r--r--", i + 1, i + 1)


def test_objects_of_upper_from_before_are_shown_as_they_are(union):
    write(union.upper / "old", "o", mode=0o4755)
    mkdir(union.upper / "olddir", mode=0o500)
    m = union.mount(option("2"))
    assert mode_of(m / "old") == 0o4755 and mode_of(m / "olddir") == 0o500
    assert xattr(union.upper / "old", CONTAINERS) is None
    os.chmod(m / "old", 0o6711)
    os.chmod(m / "olddir", 0o3777)
    assert mode_of(m / "old") == 0o6711 and mode_of(m / "olddir") == 0o3777
    assert mode_of(union.upper / "old") == 0o711
    union.remount()
    assert mode_of(m / "old") == 0o6711


def test_the_mark_of_upper_changes_nothing_else(union):
    write(union.upper / "f", "x")
    os.utime(union.upper, ns=(10**18, 10**18))
    before = os.stat(union.upper)
    m = union.mount(option("2"))
    after = os.stat(union.upper)
    for key in ("st_mode", "st_uid", "st_gid", "st_mtime_ns"):
        assert getattr(before, key) == getattr(after, key)
        assert getattr(before, key) == getattr(os.stat(m), key)
    first = lib.xattrs(union.upper)
    union.remount()
    assert lib.xattrs(union.upper) == first


# --- malformed ------------------------------------------------------------------------------------

BAD = {
    "empty": b"",
    "words": b"root:root:rwx",
    "few": b"0:0",
    "negative": b"-1:-1:04755",
    "minus-gid": b"0:-5:04755",
    "none": b"4294967295:0:04755",
    "wide": b"4294967296:0:04755",
    "wide-mode": b"0:0:0204755",
    "decimal": b"0:0:0899",
    "unknown": b"0:0:04755:door",
    "more": b"0:0:04755:file:x",
    "device": b"0:0:0666:char-1",
    "wrap": b"0:0:0666:block-4104-1",
    "dir": b"0:0:04755:dir",
    "contradicts": b"0:0:0104755:dir",
    "long": b"0:0:04755:file" + b"x" * 4000,
    "nul": b"0:0:04755\0",
    "newline": b"0:0:04755\n",
}


@pytest.mark.parametrize("where", ["lower", "upper"])
def test_what_cannot_be_trusted_is_an_error_and_no_right(union, where):
    layer = union.lower() if where == "lower" else union.upper
    os.setxattr(layer, CONTAINERS, b"0:0:0755")
    for name, value in BAD.items():
        write(layer / name, "x", mode=0o700, xattrs={CONTAINERS: value})
    write(layer / "good", xattrs={CONTAINERS: b"0:0:0644"})
    mkdir(layer / "is-dir", xattrs={CONTAINERS: b"0:0:0755:file"})
    mkdir(layer / "is-device", xattrs={CONTAINERS: b"0:0:0755:char-1-3"})
    m = union.mount(option("2"))
    union.check_kernel = False
    assert set(lib.names(m)) == {*BAD, "good", "is-dir", "is-device"}
    for name in (*BAD, "is-dir", "is-device"):
        for call in (os.lstat, read, os.unlink, lambda p: os.chmod(p, 0o777), os.listxattr):
            with raises(errno.EIO):
                call(m / name)
        with raises(errno.EIO):
            os.rename(m / name, m / "elsewhere")
    assert mode_of(m / "good") == 0o644
    if PRIVILEGED:
        write(m / "new")
        assert len(lib.names(m)) == len(BAD) + 4


def test_a_whiteout_file_is_one_whatever_its_attribute_says(union):
    os.setxattr(union.lower(), CONTAINERS, b"0:0:0755")
    write(union.lower() / ".wh.gone", xattrs={CONTAINERS: b"not to be trusted"})
    write(union.lower() / "d/.wh..wh..opq", xattrs={CONTAINERS: b"0:0:0600:char-0-0"})
    write(union.lower(1) / "gone", "low")
    write(union.lower(1) / "d/old", "low")
    assert dropin(union, "").returncode == 0
    assert lib.names(union.point) == ["d"] and lib.names(union.point / "d") == []
    with raises(errno.ENOENT):
        os.stat(union.point / "gone")
    write(union.point / "gone", "new")
    assert read(union.point / "gone") == b"new"


def test_a_symlink_without_a_target_is_an_error(union):
    os.setxattr(union.lower(), CONTAINERS, b"0:0:0755")
    for name, target in (("empty", b""), ("nul", b"a\0b"), ("long", b"x" * 5000)):
        write(union.lower() / name, target, xattrs={CONTAINERS: b"0:0:0777:symlink"})
    m = union.mount(option("2"))
    for name in ("empty", "nul", "long"):
        assert shown(m / name)[0] == "lrwxrwxrwx"
        with raises(errno.EIO):
            os.readlink(m / name)
        with raises(errno.EIO):
            open(m / name).close()


@pytest.mark.parametrize("where", ["lower", "upper"])
@pytest.mark.parametrize("value", [b"0:0", b"-1:0:0755", b"0:0:0755:file", b""])
def test_a_layer_whose_root_is_malformed_is_refused(union, where, value):
    layer = union.lower() if where == "lower" else union.upper
    union.lower()
    os.setxattr(layer, CONTAINERS, value)
    for options in (option("2"), ""):
        done = dropin(union, options)
        assert done.returncode == 1 and str(layer) in done.stderr, done.stderr
        assert CONTAINERS in done.stderr and done.stderr.count("\n") == 1
    assert xattr(layer, CONTAINERS) == value


@pytest.mark.unprivileged("root may set security.*")
def test_where_nothing_can_be_stored_the_mount_is_refused(union):
    union.lower()
    done = lib.run_plyfs("mount", "-o", lib.layer_options(union.lowers, union.upper, union.work,
                                                          option("1")), union.point)
    assert done.returncode and "xattr_permissions=2" in done.stderr


# --- fuse-overlayfs -------------------------------------------------------------------------------

PEER = shutil.which("fuse-overlayfs", path="/usr/bin")
needs_peer = pytest.mark.skipif(not PEER, reason="fuse-overlayfs is not installed")


def peer(union, options, upper=True, lowers=None):
    up = union.upper if upper else None
    done = run_program(union, PEER, lib.layer_options(lowers or union.lowers, up, union.work,
                                                      options))
    assert done.returncode == 0, done.stderr
    return union.point


def simple_things(m):
    """What fuse-overlayfs 1.10 can keep: files and directories. Its chmod gives them to root."""
    write(m / "f", "f")
    os.mkdir(m / "d", 0o700)
    write(m / "d/g", "g")
    append(m / "low", b"+")
    if PRIVILEGED:
        os.chmod(m / "f", 0o4711)
        os.chmod(m / "lowdir", 0o1777)
        os.chown(m / "f", 1, 2)
        os.chmod(m / "f", 0o6711)
        os.chown(m / "d/g", 3, 4)
        os.chown(m / "low", 5, 6)


def simple_view(m):
    return {
        rel: (shown(m / rel)[:3], read(m / rel) if os.path.isfile(m / rel) else None)
        for rel in ("f", "d", "d/g", "low", "lowdir")
    }


def simple_lower(union):
    write(union.lower() / "low", "low", mode=0o640)
    mkdir(union.lower() / "lowdir", mode=0o755)


@needs_peer
def test_what_fuse_overlayfs_wrote_is_read_the_same(union):
    simple_lower(union)
    union.check_work = False
    m = peer(union, option("2"))
    simple_things(m)
    before = simple_view(m)
    union.umount()
    assert xattr(union.upper / "f", FUSE)
    assert dropin(union, option("2")).returncode == 0
    assert simple_view(m) == before
    # and goes on as it was written
    os.chmod(m / "d/g", 0o4755)
    write(m / "mine")
    assert xattr(union.upper / "mine", FUSE) and xattr(union.upper / "d/g", FUSE)
    before = simple_view(m)
    union.umount()
    for shown_upper in (True, False):
        lowers = None if shown_upper else [union.upper, *union.lowers]
        peer(union, option("2") if shown_upper else "", shown_upper, lowers)
        assert simple_view(m) == before
        union.umount()


@needs_peer
def test_what_was_written_is_read_the_same_by_fuse_overlayfs(union):
    simple_lower(union)
    union.check_work = False
    m = union.mount(option("2"))
    simple_things(m)
    before = simple_view(m)
    union.umount()
    peer(union, "", upper=False, lowers=[union.upper, *union.lowers])
    assert simple_view(m) == before
    union.umount()


# --- an owner of one id ---------------------------------------------------------------------------


def enter_single_id():
    uid, gid = os.getuid(), os.getgid()
    lib.unshare(lib.CLONE_NEWUSER | lib.CLONE_NEWNS)
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        with open(f"/proc/self/{name}", "w") as f:
            f.write(text)


def in_single_id(union):
    """Returns what is seen, and what lies in upper."""
    enter_single_id()
    done = lib.run_plyfs("mount", "-o", lib.layer_options(
        union.lowers, union.upper, union.work, option("2")), union.point)
    assert done.returncode == 0, done.stderr
    m = union.point
    try:
        os.umask(0o22)
        os.mkfifo(m / "p", 0o644)
        write(m / "f", mode=0o6755)
        os.setxattr(m / "f", lib.CAPABILITY, lib.CAP_NET_RAW)
        os.chown(m / "f", 0, 0)
        dropped = mode_of(m / "f"), xattr(m / "f", lib.CAPABILITY)
        os.chmod(m / "f", 0o4755)
        os.setxattr(m / "f", lib.CAPABILITY, lib.CAP_NET_RAW)
        os.lchown(m / "link", 0, 0)
        with raises(errno.EINVAL):
            os.chown(m / "f", 1, 1)
        view = {n: shown(m / n)[:3] for n in ("p", "f", "dev", "theirs")}
        return view, dropped, bool(xattr(m / "f", lib.CAPABILITY))
    finally:
        lib.sys_umount(m, lib.MNT_DETACH)


@pytest.mark.unprivileged("has one id only")
def test_in_a_user_namespace_of_one_id(union):
    layer = union.lower()
    os.setxattr(layer, CONTAINERS, b"0:0:0755")
    write(layer / "dev", xattrs={CONTAINERS: b"0:0:0600:char-1-3"})
    write(layer / "theirs", xattrs={CONTAINERS: b"33:33:0644"})
    os.symlink("f", layer / "link")
    view, dropped, capable = in_child(in_single_id, union)
    assert view == {
        "p": ("prw-r--r--", 0, 0),
        "f": ("-rwsr-xr-x", 0, 0),
        "dev": ("crw-------", 0, 0),
        "theirs": ("-rw-r--r--", NOBODY, NOBODY),  # who has no number here
    }
    assert dropped == (0o755, None) and capable
    assert xattr(union.upper / "f", CONTAINERS) == b"0:0:04755"
    assert mode_of(union.upper / "f") == 0o755
    assert xattr(union.upper / "p", CONTAINERS) == b"0:0:0644:pipe"


# --- what it costs --------------------------------------------------------------------------------


def calls_of(union, function):
    """How many system calls on files the server makes meanwhile."""
    log = union.base / "strace.log"
    tracer = crash.trace(union.daemon, ["-o", log])
    try:
        function()
    finally:
        tracer.terminate()
        tracer.wait(10)
        tracer.stderr.close()
    # "syscall_": getxattrat(2) and its kin, which strace(1) may not know yet
    calls = re.compile(r"^\d+ +(?:\w*(?:stat|open|xattr)\w*|syscall_\w+)\(", re.M)
    return len(calls.findall(log.read_text()))


@pytest.mark.root("strace")
@pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")
def test_an_attribute_costs_one_call_and_nothing_where_there_is_none(new_union):
    counts = []
    for options, marked in (("", False), (option("2"), False), (option("2"), True)):
        union = new_union(f"u{len(counts)}")
        for n in range(20):
            write(union.lower() / f"f{n}", xattrs={CONTAINERS: b"1:1:0600"} if marked else None)
        if marked:
            os.setxattr(union.lower(), CONTAINERS, b"0:0:0755")
        union.check_kernel = False
        m = union.mount(options, upper=False)
        os.stat(m)
        counts.append(calls_of(union, lambda m=m: [os.stat(m / f"f{n}") for n in range(20)]))
    plain, asked, marked = counts
    assert asked == plain
    assert marked == plain + 20
