# SPDX-License-Identifier: MIT
"""Users and groups that the mount shows otherwise than the layers have them.

The same things are done on three mounts of the same layers and must come out the same, in what is
seen and in what is then on disk: the kernel's overlayfs on layers that are idmapped mounts, plyfs
with uidmapping= and gidmapping=, and plyfs itself seen through an idmapped mount.
"""

import errno
import os
import shutil
import socket
import stat
import struct

import idmapped
import plyfs_testlib as lib
import pytest
from idmapped import SHIFT, in_userns, options
from plyfs_testlib import ACCESS_ACL, CAP_NET_RAW, CAPABILITY, DEFAULT_ACL, acl, in_child

pytestmark = [
    pytest.mark.root("makes idmapped mounts"),
    pytest.mark.plyfs_only("compares with the kernel itself"),
    pytest.mark.skipif(
        idmapped.kernel() < (6, 12), reason="FUSE mounts cannot be idmapped before Linux 6.12"
    ),
]

BASE = SHIFT[0][1]
UNMAPPED = 70000  # on disk, in no range
NO_ID = 0xFFFFFFFF
PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP = 28, 4


def outcome(function, *args):
    """What it returns, or the name of the error."""
    try:
        return function(*args)
    except OSError as e:
        return errno.errorcode[e.errno]


def owner(path):
    st = os.lstat(path)
    return st.st_uid, st.st_gid, oct(st.st_mode)


def owners(root):
    """Of everything under root, by lstat; of the listing too, which may come by readdirplus."""
    out = {}
    for path, dirs, files in os.walk(root):
        with os.scandir(path) as entries:
            for e in entries:
                st = e.stat(follow_symlinks=False)
                name = os.path.relpath(e.path, root)
                out[name] = st.st_uid, st.st_gid, oct(st.st_mode)
                assert owner(e.path) == out[name]
    return out


class View:
    """One mount of the layers, and the way it shows them."""

    def __init__(self, union, point):
        self.union = union
        self.point = point

    def upper(self, name):
        return self.union.upper / name


def mount_kernel_on_idmapped_layers(union, ranges, gids):
    """The kernel has no idmapped mounts of overlayfs itself, but overlayfs has idmapped layers."""
    shown = lib.mkdir(union.base / "shown")
    idmapped.bind(union.base, shown, ranges, gids)
    union.mounts.append(lib.Mount(shown, "kernel"))
    lowers = [shown / p.relative_to(union.base) for p in union.lowers]

    def mount():
        """As the root of the layers, so that overlayfs can make something in work."""
        lib.check(lib.libc.prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP, 0, 0, 0))
        lib.libc.setfsuid(ranges[0][1])
        lib.libc.setfsgid((gids or ranges)[0][1])
        lib.mount_kernel(lowers, shown / "upper", shown / "work", union.point)

    in_child(mount)
    union.mounts.append(lib.Mount(union.point, "kernel"))
    return union.point


@pytest.fixture
def views(new_union):
    """Makes the three views of layers that build(union) has made: the kernel's first."""

    def make(build, ranges=SHIFT, gids=None):
        out = []
        for way in ("kernel", "option", "bind"):
            union = new_union(way)
            os.chmod(union.upper, 0o755)
            build(union)
            if way == "kernel":
                out.append(View(union, mount_kernel_on_idmapped_layers(union, ranges, gids)))
                continue
            point = union.mount(options(ranges, gids) if way == "option" else "")
            if way == "bind":
                point = lib.mkdir(union.base / "idmapped")
                idmapped.bind(union.point, point, ranges, gids)
                union.mounts.append(lib.Mount(point, "kernel"))
            out.append(View(union, point))
        return out

    return make


def same(views, function, *args):
    """The function's outcome, which is the same on every view."""
    outcomes = [outcome(function, view.point, *args) for view in views]
    for other in outcomes[1:]:
        assert outcomes[0] == other
    return outcomes[0]


def same_upper(views):
    """And the same is on disk."""
    first = owners(views[0].union.upper)
    for view in views[1:]:
        assert first == owners(view.union.upper)
    return first


def build_open_directory(union):
    """An upper and a lower directory in which everybody may do everything, and one with setgid."""
    for name, gid, mode in (("d", 0, 0o777), ("g", 50, 0o2777)):
        lib.mkdir(union.lower() / name, gid=gid)
        os.chmod(union.lower() / name, mode)


# --- seeing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ranges",
    [
        SHIFT,
        [(0, 1000, 1), (1, 100000, 999), (1000, 0, 1), (1001, 100999, 64000)],
        [(0, 0, 1000), (70000, 1000, 1)],
        [(n * 3, 2000 + n * 2, 1) for n in range(340)],
    ],
    ids=["shift", "keep-id", "holes", "340-ranges"],
)
def test_owners_are_shown(views, ranges):
    ids = [0, 1, 3, 5, 999, 1000, 1001, 1017, 1018, 65533, 65534, 65535, 65536, UNMAPPED, NO_ID - 1]

    def build(union):
        for n in ids:
            lib.write(union.lower() / f"u{n}", uid=n, gid=0)
            lib.mkdir(union.lower() / f"g{n}", uid=0, gid=n)
            os.symlink("x", union.lower() / f"l{n}")
            os.lchown(union.lower() / f"l{n}", n, n)

    made = views(build, ranges)
    seen = same(made, owners)
    assert len(seen) == 3 * len(ids)
    if ranges is SHIFT:
        assert seen["u5"][0] == BASE + 5
        assert seen[f"u{UNMAPPED}"][0] == int(lib.read("/proc/sys/kernel/overflowuid"))


def test_users_and_groups_are_mapped_by_themselves(views):
    made = views(
        lambda u: lib.write(u.lower() / "f", uid=7, gid=7), [(0, 1000, 10)], [(0, 2000, 10)]
    )
    assert same(made, lambda m: owner(m / "f"))[:2] == (1007, 2007)


# --- creating -------------------------------------------------------------------------------------


def make_everything(m):
    """One of each kind in m/d and m/g; what was made, or the error."""
    out = {}
    for name in ("d", "g"):
        d = m / name
        for kind, make in (
            ("file", lambda p: lib.write(p, "x")),
            ("dir", os.mkdir),
            ("link", lambda p: os.symlink("target", p)),
            ("fifo", os.mkfifo),
            ("sock", make_socket),
            ("tmpfile", make_tmpfile),
            ("node", lambda p: os.mknod(p, stat.S_IFREG | 0o600)),
        ):
            error = outcome(lambda: make(d / kind) and None)
            out[f"{name}/{kind}"] = error or owner(d / kind)
    return out


def make_socket(path):
    s = socket.socket(socket.AF_UNIX)
    s.bind(os.fspath(path))
    s.close()


def make_tmpfile(path):
    with lib.opened(path.parent, os.O_TMPFILE | os.O_RDWR) as fd:
        lib.linkat_fd(fd, path)


@pytest.mark.parametrize("uid", [BASE, BASE + 1000, BASE + 65535])
def test_what_is_made_belongs_to_the_caller(views, uid):
    made = views(build_open_directory)
    results = [in_child(make_everything, v.point, uid=uid, groups=[]) for v in made]
    assert results[0] == results[1] == results[2]
    assert results[0]["d/file"][:2] == (uid, uid)
    assert results[0]["g/file"][:2] == (uid, BASE + 50)
    assert owner(made[1].upper("d/file"))[:2] == (uid - BASE, uid - BASE)
    same_upper(made)


@pytest.mark.parametrize("whiteout", [False, True], ids=["new", "over-whiteout"])
def test_a_container_makes_and_changes(views, whiteout):
    """Root of a user namespace with the same map: the container that all this is for."""

    def build(union):
        build_open_directory(union)
        if whiteout:
            for d in "dg":
                for kind in ("file", "dir", "link", "fifo", "sock", "node"):
                    lib.write(union.lower() / d / kind, "old", uid=5)

    def work(m):
        if whiteout:
            for d in "dg":
                for name in os.listdir(m / d):
                    os.unlink(m / d / name)
        made = make_everything(m)
        out = [made, owner(m / "d")]
        f = m / "d/file"
        os.chown(f, 5, 6)
        out.append(owner(f))
        os.chmod(f, 0o6755)
        out.append(owner(f))
        os.chown(f, 1, -1)
        out.append(owner(f))
        os.link(f, m / "g/hard")
        os.rename(f, m / "g/moved")
        out.append((owner(m / "g/hard"), owner(m / "g/moved"), os.stat(m / "g/moved").st_nlink))
        out.append(outcome(os.chown, m / "g/moved", 65536, -1))
        return out

    made = views(build)
    results = [in_userns(work, v.point) for v in made]
    assert results[0] == results[1] == results[2]
    assert results[1][0]["d/file"][:2] == (0, 0)
    assert results[1][-1] == "EINVAL"
    on_disk = same_upper(made)
    assert on_disk["g/moved"][:2] == (1, 6)


def test_who_has_no_number_makes_nothing(views):
    made = views(build_open_directory)
    results = [in_child(make_everything, v.point, uid=7) for v in made]
    assert results[0] == results[1] == results[2]
    assert set(results[0].values()) == {"EOVERFLOW"}
    for view in made[1:]:
        assert os.listdir(view.union.upper) == []
        assert lib.work_litter(view.union.work) == []


def test_root_prepares_a_tree_from_outside(union):
    """As podman does: it makes files through the mount and gives them to the container's root."""
    build_open_directory(union)
    m = union.mount(options(SHIFT))
    made = make_everything(m)
    assert {made[f"d/{kind}"][:2] for kind in ("file", "dir", "link", "fifo", "sock", "node")} == {
        (BASE + 65534, BASE + 65534)
    }
    assert made["g/file"][:2] == (BASE + 65534, BASE + 50)
    for name in made:
        os.lchown(m / name, BASE, BASE)
        assert owner(union.upper / name)[:2] == (0, 0)
    # in a directory of the container's root, too
    lib.write(m / "d/dir/f", "x")
    os.chown(m / "d/dir/f", BASE + 1, BASE + 1)
    assert owner(union.upper / "d/dir/f")[:2] == (1, 1)


# --- changing -------------------------------------------------------------------------------------


def test_chown_by_host_root(views):
    def build(union):
        lib.write(union.lower() / "f", uid=1, gid=1)
        lib.write(union.lower() / "foreign", uid=UNMAPPED, gid=UNMAPPED)
        lib.write(union.lower() / "half", uid=1, gid=UNMAPPED)

    made = views(build)

    def change(m, name, uid, gid):
        return outcome(os.chown, m / name, uid, gid), owner(m / name)

    for args, error in (
        (("f", BASE + 7, BASE + 8), None),
        (("f", -1, BASE), None),
        (("f", 7, -1), "EOVERFLOW"),
        (("f", -1, 7), "EOVERFLOW"),
        (("f", BASE + 65536, BASE), "EOVERFLOW"),
        (("f", NO_ID - 1, -1), "EOVERFLOW"),
        (("half", BASE + 1, -1), "EOVERFLOW"),
        (("half", BASE + 1, BASE + 1), "EPERM"),
        (("foreign", BASE + 1, -1), "EOVERFLOW"),
    ):
        assert same(made, change, *args)[0] == error
    same_upper(made)
    # The kernel cannot copy this one up.
    assert same(made[1:], change, "foreign", BASE + 1, BASE + 1)[0] is None


def test_what_belongs_to_nobody_cannot_be_changed(views):
    def build(union):
        lib.mkdir(union.lower() / "d", 0o777)
        os.chmod(union.lower() / "d", 0o777)
        lib.write(union.lower() / "d/f", "text", uid=UNMAPPED, gid=UNMAPPED)
        os.chmod(union.lower() / "d/f", 0o666)
        lib.mkdir(union.lower() / "x", 0o777, uid=UNMAPPED, gid=UNMAPPED)
        os.chmod(union.lower() / "x", 0o777)

    def work(m):
        f = m / "d/f"
        return [
            lib.read(f),
            outcome(lib.append, f, b"x"),
            outcome(os.chmod, f, 0o600),
            outcome(os.truncate, f, 0),
            outcome(os.utime, f, (1, 1)),
            outcome(os.utime, f),
            outcome(os.setxattr, f, "user.a", b"b"),
            outcome(os.link, f, m / "d/g"),
            outcome(os.rename, f, m / "d/g"),
            outcome(os.unlink, f),
            outcome(lib.write, m / "x/new"),
            outcome(os.rmdir, m / "x"),
            sorted(os.listdir(m / "d")),
        ]

    made = views(build)
    assert same(made, lambda m: in_userns(work, m))[1] == "EACCES"
    # Through the idmapped mount root has no number either, which is another error.
    assert same(made[:2], work)[1] == "EACCES"


@pytest.mark.parametrize("mode", [0o6777, 0o2767, 0o2644, 0o4711])
@pytest.mark.parametrize("who", ["owner", "member", "root"])
def test_set_id_bits_at_chown_and_write(views, mode, who):
    """The owner gives the file to a group of his; he is in the file's group, or not, or is root."""
    uid = 1000 if who != "root" else 0
    groups = [200] + ([100] if who == "member" else [])

    def build(union):
        for name in ("chown", "write", "truncate", "acl"):
            f = lib.write(union.lower() / name, "text", uid=uid, gid=100)
            os.chmod(f, mode)

    def work(m):
        os.chown(m / "chown", -1, 200)
        if mode & 0o200:
            lib.append(m / "write", b"x")
            os.truncate(m / "truncate", 1)
        os.setxattr(m / "acl", ACCESS_ACL, acl(6, 4, 4, users=[(5, 4)]))
        return {n: owner(m / n) for n in os.listdir(m)}

    made = views(build)
    results = [in_userns(work, v.point, uid=uid, groups=groups) for v in made]
    assert results[0] == results[1]
    # Through an idmapped mount nobody can tell which group is whose: the bit goes rather than stay.
    for name, (user, group, seen) in results[2].items():
        kept = results[0][name]
        if kept != (user, group, seen):
            assert mode & 0o2010 == 0o2000 and who != "owner"
            assert kept == (user, group, oct(int(seen, 8) | stat.S_ISGID))


# --- ACLs -----------------------------------------------------------------------------------------


def test_acls_are_shown(views):
    def build(union):
        f = lib.write(union.lower() / "f", "text", mode=0o600)
        os.setxattr(f, ACCESS_ACL, acl(6, 0, 0, users=[(1000, 4)], groups=[(2000, 6)], mask=6))
        d = lib.mkdir(union.lower() / "d", 0o700)
        os.setxattr(d, DEFAULT_ACL, acl(7, 5, 0, users=[(1000, 7)]))

    def see(m):
        return os.getxattr(m / "f", ACCESS_ACL), os.getxattr(m / "d", DEFAULT_ACL)

    made = views(build)
    seen = same(made, see)
    assert seen[0] == acl(
        6, 0, 0, users=[(BASE + 1000, 4)], groups=[(BASE + 2000, 6)], mask=6
    )
    in_container = [in_userns(see, v.point) for v in made]
    assert in_container[0] == in_container[1] == in_container[2]
    assert in_container[1][0] == acl(6, 0, 0, users=[(1000, 4)], groups=[(2000, 6)], mask=6)
    for uid, gid, can in ((BASE + 1000, 1, True), (1000, 1000, False), (BASE + 2000, 1, False)):
        for v in made:
            read = in_child(outcome, lib.read, v.point / "f", uid=uid, gid=gid)
            assert (read == b"text") == can


def test_acls_are_set(views):
    def build(union):
        lib.write(union.lower() / "f", "text", uid=3, gid=3)
        lib.mkdir(union.lower() / "d", uid=3, gid=3)

    def set_acls(m, base):
        new = acl(6, 0, 0, users=[(base + 1000, 4)], groups=[(base + 2000, 6)])
        os.setxattr(m / "f", ACCESS_ACL, new)
        os.setxattr(m / "d", DEFAULT_ACL, new)
        os.mkdir(m / "d/sub")
        return os.getxattr(m / "d/sub", ACCESS_ACL), owner(m / "f")

    made = views(build)
    for v in made:
        in_userns(set_acls, v.point, 0)
    on_disk = acl(6, 0, 0, users=[(1000, 4)], groups=[(2000, 6)])
    for v in made:
        assert os.getxattr(v.upper("f"), ACCESS_ACL) == on_disk
        assert os.getxattr(v.upper("d"), DEFAULT_ACL) == on_disk
        assert os.getxattr(v.upper("d/sub"), DEFAULT_ACL) == on_disk
    same(made, lambda m: os.getxattr(m / "f", ACCESS_ACL))
    same_upper(made)
    # somebody without a number in the layers
    for who in (7, BASE + 65536):
        refused = acl(6, 0, 0, users=[(who, 4)])
        assert same(made, lambda m: outcome(os.setxattr, m / "f", ACCESS_ACL, refused)) == "EINVAL"
    same(made, lambda m: os.getxattr(m / "f", ACCESS_ACL))


def test_an_acl_entry_of_nobody_keeps_nobody_out(views):
    """One of somebody without a number: the others' rights are what they were."""

    def build(union):
        f = lib.write(union.lower() / "f", "text", mode=0o600)
        os.setxattr(f, ACCESS_ACL, acl(6, 0, 0, users=[(1000, 4), (UNMAPPED, 6)]))

    made = views(build)
    for uid in (BASE, BASE + 1000, BASE + 1001, 65534, UNMAPPED):
        results = [in_child(outcome, lib.read, v.point / "f", uid=uid) for v in made]
        assert results[0] == results[1] == results[2]


# --- file capabilities ----------------------------------------------------------------------------


def capability(root=None):
    if root is None:
        return CAP_NET_RAW
    return struct.pack("<IIIIII", 0x03000001, 1 << 13, 0, 0, 0, root)


def effective(path):
    """The effective capabilities of a program that shows /proc/self/status."""
    import subprocess

    text = subprocess.run(
        [path, "/proc/self/status"], capture_output=True, text=True, check=True, timeout=20
    ).stdout
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    return fields["CapEff"].strip(), fields["Uid"].split()[1]


def build_program(union, **attributes):
    f = union.lower() / "cat"
    shutil.copy("/bin/cat", f)
    lib.finish(f, 0o755, **attributes)


@pytest.mark.parametrize("root", [None, 0, 5, BASE, UNMAPPED])
def test_capabilities_are_shown_and_hold_in_the_container(views, root):
    made = views(lambda u: build_program(u, xattrs={CAPABILITY: capability(root)}))

    def see(m):
        return outcome(os.getxattr, m / "cat", CAPABILITY)

    same(made, see)
    same(made, lambda m: in_userns(see, m))
    if root in (BASE, UNMAPPED):
        # The kernel's overlayfs lets nobody run what has a root without a number.
        made = made[1:]
    same(made, lambda m: in_child(effective, m / "cat", uid=1000))
    inside = same(made, lambda m: in_userns(effective, m / "cat", uid=1000))
    if root in (None, 0):
        assert inside[0] == f"{1 << 13:016x}"
        assert same(made, lambda m: in_userns(see, m)) in (capability(), capability(0))
    elif root == UNMAPPED:
        assert inside[0] == f"{0:016x}"


def test_capabilities_are_set(views):
    def build(union):
        for name in ("a", "b", "c"):
            lib.write(union.lower() / name, "x")

    made = views(build)
    for v in made:
        in_userns(os.setxattr, v.point / "a", CAPABILITY, capability())
        assert outcome(os.setxattr, v.point / "b", CAPABILITY, capability(BASE + 5)) is None
    for name in "ab":
        same(made, lambda m: outcome(os.getxattr, m / name, CAPABILITY))
        roots = [os.getxattr(v.upper(name), CAPABILITY)[20:] or bytes(4) for v in made]
        assert roots[0] == roots[1] == roots[2]
    for root in (None, 7, BASE + 65536):
        assert (
            same(made, lambda m: outcome(os.setxattr, m / "c", CAPABILITY, capability(root)))
            == "EINVAL"
        )


def test_set_user_id_programs(views):
    def build(union):
        build_program(union, uid=33, gid=0)
        os.chmod(union.lower() / "cat", 0o4755)

    made = views(build)
    assert same(made, lambda m: in_userns(effective, m / "cat", uid=1000))[1] == "33"


# --- layers that are idmapped mounts themselves ---------------------------------------------------


@pytest.mark.parametrize("idmapped_upper", [False, True], ids=["lower", "both"])
def test_idmapped_layers(new_union, idmapped_upper):
    """What podman gives as root for --uidmap: lower layers shown as the container has them."""
    seen = []
    for impl in ("kernel", "plyfs"):
        union = new_union(impl)
        union.check_lowers = False
        raw = lib.mkdir(union.base / "raw")
        lib.write(raw / "l/f", "text", uid=5, gid=6)
        lib.mkdir(raw / "l/d", 0o755)
        lib.mkdir(raw / "u")
        lib.mkdir(raw / "w")
        shown = lib.mkdir(union.base / "shown")
        # with a root of ours, who makes something in work
        ranges = [(0, 0, 1), (1, BASE + 1, 65535)] if idmapped_upper else SHIFT
        idmapped.bind(raw, shown, ranges)
        union.mounts.append(lib.Mount(shown, "kernel"))
        union.use_lower(0, shown / "l")
        if idmapped_upper:
            union.upper, union.work = shown / "u", shown / "w"
        else:
            os.chown(union.upper, BASE, BASE)
        union.check_kernel = False
        m = union.mount(impl=impl)

        def work():
            os.chmod(m / "f", 0o640)
            lib.write(m / "d/new", "x")
            os.chown(m / "d/new", 7, 8)
            os.unlink(m / "f")
            lib.write(m / "f", "again")
            return owners(m)

        union.check_work = False
        assert lib.work_litter(union.work) == []
        made = in_userns(work, ranges=ranges)
        seen.append((made, owners(m), owners(union.upper), owners(raw / "u")))
        union.umount()
    assert seen[0] == seen[1]


def test_idmapped_lowers_besides_the_mapping(new_union):
    """podman 4.3 gives both as root: the numbers of the mapping are those of the disk."""
    if idmapped.kernel() < (6, 15):
        pytest.skip("the kernel cannot take the idmap off a clone of a mount")
    seen = []
    for way in ("plain", "idmapped"):
        union = new_union(way)
        for n in (0, 5, UNMAPPED):
            lib.write(union.lower() / f"d{n}/f", "text", uid=n, gid=n)
            os.chown(union.lower() / f"d{n}", n, n)
        if way == "idmapped":
            shown = lib.mkdir(union.base / "shown")
            idmapped.bind(union.lower(), shown, SHIFT)
            union.mounts.append(lib.Mount(shown, "kernel"))
            union.use_lower(0, shown)
            union.check_lowers = False  # it is gone by then
        m = union.mount(options(SHIFT))

        def work():
            lib.append(m / "d5/f", b"more")
            os.chown(m / "d0/f", 7, 8)
            lib.write(m / "d0/new", "x")
            return owners(m)

        seen.append((in_userns(work), owners(m), owners(union.upper)))
        assert lib.read(union.base / "lower0/d5/f") == b"text"
    assert seen[0] == seen[1]
    assert seen[0][0]["d5/f"][:2] == (5, 5) and seen[0][2]["d0/f"][:2] == (7, 8)
