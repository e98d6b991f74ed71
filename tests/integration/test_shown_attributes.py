# SPDX-License-Identifier: MIT
"""What is shown otherwise than it is: squash_to_*, static_nlink, ino32_t, noacl, noxattrs."""

import errno
import os
import stat
import subprocess

import idmapped
import plyfs_testlib as lib
import pytest
from plyfs_testlib import ACCESS_ACL, CAP_NET_RAW, CAPABILITY, DEFAULT_ACL, acl, in_child, raises

pytestmark = pytest.mark.plyfs_only("words of fuse-overlayfs")
root = pytest.mark.root("needs several identities")
privileged = pytest.mark.privileged("needs several identities")


def ids(path):
    st = os.lstat(path)
    return st.st_uid, st.st_gid


def bits(path):
    return stat.S_IMODE(os.stat(path).st_mode)


# --- squash_to_* ----------------------------------------------------------------------------------


@privileged
@pytest.mark.parametrize(
    "words,shown",
    [
        ("squash_to_root", (0, 0)),
        ("squash_to_uid=1000", (1000, None)),
        ("squash_to_gid=1001", (None, 1001)),
        ("squash_to_uid=1000,squash_to_gid=1001", (1000, 1001)),
        ("squash_to_root,squash_to_uid=1000", (1000, 0)),
        ("squash_to_uid=1000,squash_to_root", (1000, 0)),
        ("squash_to_uid=1000,uidmapping=0:5000:100", (1000, None)),
    ],
)
def test_squash_shows_one_owner(union, words, shown):
    for n in (0, 5, 1000, 65534):
        lib.write(union.lower() / f"f{n}", uid=n, gid=n)
        lib.mkdir(union.upper / f"d{n}", uid=n, gid=n)
    m = union.mount(words)
    for name in os.listdir(m):
        n = int(name[1:])
        assert ids(m / name) == tuple(n if s is None else s for s in shown)


@privileged
def test_chown_under_squash_is_no_lie(union):
    lib.write(union.lower() / "f", uid=5, gid=6)
    os.chmod(union.lower() / "f", 0o6755)
    m = union.mount("squash_to_uid=1000,squash_to_gid=1001")
    for args in ((5, -1), (-1, 5), (0, 0), (1000, 5), (5, 1001)):
        with raises(errno.EINVAL):
            os.chown(m / "f", *args)
    assert ids(m / "f") == (1000, 1001)
    os.chown(m / "f", 1000, 1001)
    assert ids(m / "f") == (1000, 1001)
    assert bits(m / "f") == 0o755
    assert ids(union.upper / "f") == (1000, 1001)
    os.chmod(m / "f", 0o640)
    assert bits(m / "f") == 0o640


@privileged
def test_what_is_made_under_squash(union):
    os.chmod(union.upper, 0o777)
    m = union.mount("squash_to_uid=1000,squash_to_gid=1001")

    def make():
        lib.write(m / "f", "x")
        os.mkdir(m / "d")
        lib.write(m / "d/f", "x")
        os.chmod(m / "f", 0o604)
        os.chown(m / "f", 1000, 1001)
        lib.append(m / "f", b"y")
        os.rename(m / "f", m / "d/g")

    in_child(make, uid=1000, gid=1001)
    assert ids(union.upper / "d") == (1000, 1001)
    assert lib.read(m / "d/g") == b"xy"
    assert bits(m / "d/g") == 0o604
    in_child(lib.write, m / "other", "x", uid=7, gid=8)
    assert ids(m / "other") == (1000, 1001)
    assert ids(union.upper / "other") == (7, 8)


@pytest.mark.unprivileged("a single number, as a rootless container without sub-ids has it")
def test_squash_of_an_ordinary_user(union):
    lib.write(union.lower() / "f", "text")
    os.chmod(union.lower() / "f", 0o644)
    me = os.getuid(), os.getgid()
    m = union.mount("squash_to_uid=%d,squash_to_gid=%d" % me)
    assert ids(m) == ids(m / "f") == me
    os.chown(m / "f", *me)
    os.chmod(m / "f", 0o600)
    lib.append(m / "f", b"more")
    lib.write(m / "new", "x")
    os.mkdir(m / "d")
    os.chown(m / "d", *me)
    assert lib.read(m / "f") == b"textmore"


@pytest.mark.unprivileged("a single number, as a rootless container without sub-ids has it")
def test_squash_to_who_is_not_the_server(union):
    """What is shown as somebody else's is given to him without a change on disk."""
    lib.write(union.lower() / "f", "text")
    os.chmod(union.lower() / "f", 0o666)
    m = union.mount("squash_to_root")
    assert ids(m / "f") == (0, 0)
    with raises(errno.EPERM):
        os.chown(m / "f", 0, 0)
    lib.append(m / "f", b"more")
    assert lib.read(m / "f") == b"textmore"


@root
def test_squashed_capabilities(union):
    """Those of the layers' root are shown as those of whom all belongs to; no others as root's."""
    v3 = CAP_NET_RAW.replace(b"\1\0\0\2", b"\1\0\0\3", 1)
    lib.write(union.lower() / "own", "x", xattrs={CAPABILITY: CAP_NET_RAW})
    lib.write(union.lower() / "user", "x", xattrs={CAPABILITY: v3 + (5000).to_bytes(4, "little")})
    m = union.mount("squash_to_uid=1000,squash_to_gid=1000")
    assert os.getxattr(m / "own", CAPABILITY) == v3 + (1000).to_bytes(4, "little")
    assert os.getxattr(m / "user", CAPABILITY) == v3 + (5000).to_bytes(4, "little")
    union.remount(options="squash_to_root")
    assert os.getxattr(m / "own", CAPABILITY) == CAP_NET_RAW
    assert os.getxattr(m / "user", CAPABILITY) == v3 + (5000).to_bytes(4, "little")


# --- static_nlink, ino32_t ------------------------------------------------------------------------


def test_static_nlink(union):
    for name in ("a/b", "a/c"):
        lib.mkdir(union.upper / name)
    lib.write(union.upper / "f", "x")
    os.link(union.upper / "f", union.upper / "g")
    m = union.mount("static_nlink")
    assert [os.stat(m / p).st_nlink for p in (".", "a", "a/b", "f")] == [1, 1, 1, 2]
    with os.scandir(m / "a") as entries:
        assert {e.stat().st_nlink for e in entries} == {1}
    os.mkdir(m / "a/d")
    assert os.stat(m / "a").st_nlink == 1


@pytest.mark.privileged("mounts a tmpfs with 64-bit numbers")
def test_ino32(new_union):
    """Numbers over two filesystems, which take more than 32 bits."""
    union = new_union("u")
    elsewhere = new_union("e", where="tmpfs")
    elsewhere.closed = True
    lower = lib.mkdir(elsewhere.base / "l")
    for n in range(50):
        lib.write(lower / f"d/f{n}", "x")
    union.use_lower(0, lower)
    lib.write(union.lower(1) / "d/deep", "x")
    m = union.mount("ino32_t")
    seen = {}
    for path in (m, m / "d"):
        for name, (ino, _) in lib.getdents_all(path).items():
            if name not in (".", ".."):
                seen[path / name] = ino
    assert len(seen) == len(set(seen.values())) == 52
    for path, ino in seen.items():
        assert ino == os.lstat(path).st_ino < 1 << 32
    lib.append(m / "d/f7", b"y")
    os.chmod(m / "d", 0o700)
    for path, ino in seen.items():
        assert ino == os.lstat(path).st_ino
    with lib.opened(m / "d/f7", os.O_RDONLY) as fd:
        assert os.fstat(fd).st_ino == seen[m / "d/f7"]
    assert lib.getdents_all(m / "d")["f7"][0] == seen[m / "d/f7"]
    union.remount(options="")
    assert max(os.lstat(p).st_ino for p in seen) >= 1 << 32


# --- noacl ----------------------------------------------------------------------------------------

READERS = [(0, 0), (33, 33), (44, 44), (5, 100), (33, 100), (44, 44), (99, 99)]

ACLS = {
    "named": (0o640, acl(6, 4, 0, users=[(33, 6)])),
    "group-denied": (0o670, acl(6, 0, 0, users=[(33, 6)], mask=7)),
    "user-denied": (0o644, acl(6, 4, 4, users=[(33, 0)], mask=7)),
    "group-named-denied": (0o664, acl(6, 6, 4, groups=[(44, 0)], mask=7)),
    "masked": (0o600, acl(6, 7, 7, users=[(33, 7)], mask=0)),
    "plain": (0o644, None),
}


@root
@pytest.mark.parametrize("words", ["noacl", "noxattrs", "noxattrs=1"])
def test_without_acls_nobody_may_more(new_union, words):
    """Everyone's rights are those with ACLs, or less."""
    rights = []
    for number, options in enumerate(("", words)):
        union = new_union(f"u{number}")
        for name, (mode, value) in ACLS.items():
            f = lib.write(union.lower() / name, "x", mode=mode, uid=5, gid=100)
            if value:
                os.setxattr(f, ACCESS_ACL, value)
        m = union.mount(options)

        def see():
            return {
                (name, want)
                for name in ACLS
                for want in (os.R_OK, os.W_OK)
                if os.access(m / name, want)
            }

        rights.append([in_child(see, uid=u, gid=g) for u, g in READERS])
        if options:
            assert bits(m / "plain") == 0o644
            assert bits(m / "named") == 0o640
            assert bits(m / "group-denied") == 0o600
    for with_acl, without in zip(*rights):
        assert without <= with_acl
    assert ("plain", os.R_OK) in rights[1][-1]
    assert ("named", os.R_OK) in rights[1][4]


@root
def test_noacl_hides_acls(union):
    for name in "fg":
        lib.write(union.lower() / name, "x", mode=0o640, xattrs={"user.a": b"b"})
        os.setxattr(union.lower() / name, ACCESS_ACL, acl(6, 4, 0, users=[(33, 6)]))
    lib.mkdir(union.lower() / "d", xattrs={DEFAULT_ACL: acl(7, 7, 7, users=[(33, 7)])})
    m = union.mount("noacl")
    assert os.listxattr(m / "f") == ["user.a"]
    assert os.getxattr(m / "f", "user.a") == b"b"
    for name in (ACCESS_ACL, DEFAULT_ACL):
        with raises(errno.ENOTSUP):
            os.getxattr(m / "d", name)
        with raises(errno.ENOTSUP):
            os.setxattr(m / "d", name, acl(7, 7, 7, users=[(34, 7)]))
    # the umask counts although a default ACL would do without it
    in_child(lib.write, m / "d/new", "x", umask=0o077)
    assert bits(m / "d/new") == 0o600
    # chmod(2) means what it says, which an ACL would not let it
    os.chmod(m / "f", 0o664)
    assert bits(m / "f") == 0o664
    assert lib.xattr(union.upper / "f", ACCESS_ACL) is None
    assert in_child(os.access, m / "f", os.W_OK, uid=33) is False
    # what else copies up keeps it
    lib.append(m / "g", b"y")
    assert lib.xattr(union.upper / "g", ACCESS_ACL) is not None


# --- noxattrs -------------------------------------------------------------------------------------


@privileged
def test_noxattrs(union):
    f = lib.write(union.lower() / "f", "text", mode=0o750, uid=5)
    os.setxattr(f, "user.a", b"b")
    m = union.mount("noxattrs")
    for _ in range(2):  # the second time the kernel knows
        for call in (
            lambda: os.getxattr(m / "f", "user.a"),
            lambda: os.setxattr(m / "f", "user.b", b"c"),
            lambda: os.removexattr(m / "f", "user.a"),
            lambda: os.getxattr(m / "f", CAPABILITY),
        ):
            with raises(errno.ENOTSUP):
                call()
        assert lib.xattr(m / "f", ACCESS_ACL) is None
    for command in (
        ["cp", "-a", "f", "copy"],
        ["tar", "--xattrs", "--acls", "-cf", "t.tar", "f"],
        ["sh", "-c", "mkdir x && tar --xattrs --acls -C x -xf t.tar && cmp f x/f"],
        ["ls", "-la"],
    ):
        done = subprocess.run(
            command, cwd=m, capture_output=True, text=True, check=False, timeout=30
        )
        assert done.returncode == 0, done.stderr
        assert "rror" not in done.stderr
    assert bits(m / "copy") == 0o750 and os.stat(m / "copy").st_uid == 5
    os.rename(m / "f", m / "g")
    assert lib.xattr(union.upper / "g", "user.a") == b"b"
    assert "noxattrs" in lib.run_plyfs("status", "-o", m).stdout


@root
def test_noxattrs_leaves_no_capability_behind(union):
    """Who writes to a program takes its capabilities away, shown or not."""
    lib.write(union.lower() / "f", "text", xattrs={CAPABILITY: CAP_NET_RAW})
    os.chmod(union.lower() / "f", 0o777)
    m = union.mount("noxattrs")
    in_child(lib.append, m / "f", b"x", uid=1000)
    assert lib.xattr(union.upper / "f", CAPABILITY) is None


# --- malformed mappings ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    ["", ":", "0", "0:1", "0:1:", "0:1:2:3", "a:0:1", "0:0:0", "-1:0:1", "0:0:4294967296",
     "4294967295:0:1", "0:4294967290:10", "0:0:10:5:100:10", "0:0:10:100:5:10", "0::0:1", " 0:0:1",
     "0:0:1 ", "0x0:0:1", "0:0:1::", "::0:0:1"],
)
@pytest.mark.parametrize("word", ["uidmapping", "gidmapping"])
def test_malformed_mappings_are_refused(union, word, value):
    union.lower()
    options = lib.layer_options(union.lowers, union.upper, union.work, f"{word}={value}")
    done = lib.run_plyfs("mount", "-o", options, union.point)
    assert done.returncode != 0
    assert word in done.stderr and done.stderr.count("\n") == 1
    assert not lib.find_mount(union.point)


@privileged
def test_a_leading_colon_and_thousands_of_ranges(union):
    """containers/storage writes the colon; sub-ids may be scattered."""
    lib.write(union.lower() / "f", uid=3999, gid=3999)
    ranges = [(n, 60000 - n, 1) for n in range(4000)]
    m = union.mount(f"uidmapping=:{idmapped.option(ranges)},gidmapping=:0:0:65535")
    assert ids(m / "f") == (56001, 3999)


@privileged
def test_status_tells_the_words(union):
    lib.write(union.lower() / "f", uid=5, gid=6)
    words = "uidmapping=0:1000:10:10:0:10,squash_to_gid=7,static_nlink,ino32_t,noacl"
    m = union.mount(words)
    line = lib.run_plyfs("status", "-o", m).stdout
    assert line.rstrip("\n").endswith("," + words)
    before = ids(m / "f")
    union.umount()
    done = lib.run_plyfs("mount", "-o", line.rstrip("\n"), union.point)
    assert done.returncode == 0, done.stderr
    try:
        assert ids(m / "f") == before == (1005, 7)
    finally:
        lib.sys_umount(union.point)


@privileged
def test_keep_id(union):
    """As rootless podman maps for --userns=keep-id: the user himself is another one in there."""
    lib.write(union.lower() / "mine", uid=0, gid=0)
    lib.write(union.lower() / "roots", uid=1, gid=1)
    lib.write(union.lower() / "last", uid=65000, gid=65000)
    os.chmod(union.upper, 0o777)
    triples = "0:1000:1:1:0:1000:1001:1001:64535"
    m = union.mount(f"uidmapping=:{triples},gidmapping=:{triples}")
    assert [ids(m / n)[0] for n in ("mine", "roots", "last")] == [1000, 0, 65000]
    for shown, disk in ((0, 1), (1000, 0), (999, 1000), (65000, 65000)):
        name = f"by{shown}"
        in_child(lib.write, m / name, "x", uid=shown)
        assert ids(m / name) == (shown, shown)
        assert ids(union.upper / name) == (disk, disk)
    os.chown(m / "mine", 5, 1000)
    assert ids(union.upper / "mine") == (6, 0)
    with raises(errno.EACCES):
        in_child(lib.append, m / "by0", b"x", uid=1000)
    in_child(lib.append, m / "by1000", b"x", uid=1000)


@pytest.mark.userns("is about a mount of that root's")
@pytest.mark.skipif(idmapped.kernel() < (6, 12), reason="FUSE mounts cannot be idmapped")
def test_an_idmapped_mount_in_a_user_namespace(union):
    lib.write(union.lower() / "f", "x", uid=5, gid=6)
    os.chmod(union.upper, 0o777)
    m = union.mount()
    point = lib.mkdir(union.base / "idmapped")
    idmapped.bind(m, point, [(0, 1000, 100)])
    union.mounts.append(lib.Mount(point, "kernel"))
    assert ids(point / "f") == (1005, 1006) and ids(m / "f") == (5, 6)
    in_child(lib.write, point / "new", "x", uid=1007)
    assert ids(union.upper / "new") == (7, 7)
    os.chown(point / "f", 1001, 1002)
    assert ids(union.upper / "f") == (1, 2)
    with raises(errno.EOVERFLOW):
        in_child(lib.write, point / "other", "x", uid=7)


# --- who asks -------------------------------------------------------------------------------------


@pytest.mark.unprivileged("is about whom an ordinary user lets in")
def test_allow_root_still_knows_who_asks(union):
    lib.write(union.lower() / "f", "x")
    try:
        m = union.mount("allow_root")
    except AssertionError as e:
        assert "user_allow_other" in str(e)
        return
    assert lib.read(m / "f") == b"x"


@root
def test_allow_root_keeps_others_out(union):
    lib.write(union.lower() / "f", "x", mode=0o644)
    m = union.mount("allow_root")
    assert lib.read(m / "f") == b"x"
    with raises(errno.EACCES):
        in_child(os.listdir, m, uid=1000)
    point = lib.mkdir(union.base / "idmapped")
    with raises(errno.EINVAL):
        idmapped.bind(m, point, idmapped.SHIFT)


@pytest.mark.userns("has owners without a number")
def test_an_acl_entry_of_nobody_in_a_user_namespace(union):
    """Somebody's without a number in the namespace: the others keep their rights."""
    f = lib.write(union.upper / "f", "text", mode=0o600)
    os.setxattr(f, ACCESS_ACL, acl(6, 0, 0, users=[(1000, 4)]))
    m = union.mount()
    assert in_child(lib.read, m / "f", uid=1000) == b"text"
