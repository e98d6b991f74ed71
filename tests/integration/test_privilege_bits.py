# SPDX-License-Identifier: MIT
"""setuid, setgid and file capabilities go away on write, truncate and chown, as elsewhere."""

import os
import stat

import plyfs_testlib as lib
import pytest
from plyfs_testlib import CAP_NET_RAW, CAPABILITY, fallocate, in_child, mkdir, opened, write, xattr

pytestmark = [
    pytest.mark.privileged("needs several identities"),
    pytest.mark.usefixtures("each_io"),
]
USER = lib.NOBODY


def do_write(path):
    with opened(path, os.O_WRONLY) as fd:
        os.write(fd, b"x")


def do_append(path):
    lib.append(path, b"x")


def do_pwrite_through_two_fds(path):
    with opened(path, os.O_RDONLY), opened(path, os.O_RDWR) as fd:
        os.pwrite(fd, b"x", 3)


def do_truncate(path):
    os.truncate(path, 1)


def do_ftruncate(path):
    with opened(path, os.O_WRONLY) as fd:
        os.ftruncate(fd, 1)


def do_open_trunc(path):
    with opened(path, os.O_WRONLY | os.O_TRUNC):
        pass


def do_fallocate(path):
    with opened(path, os.O_WRONLY) as fd:
        fallocate(fd, 0, 0, 10000)


def do_mmap_write(path):
    import mmap

    with opened(path, os.O_RDWR) as fd, mmap.mmap(fd, 4) as area:
        area[0:1] = b"x"
        area.flush()
    with opened(path, os.O_WRONLY) as fd:
        os.write(fd, b"y")


CHANGES = [
    do_write,
    do_append,
    do_pwrite_through_two_fds,
    do_truncate,
    do_ftruncate,
    do_open_trunc,
    do_fallocate,
    do_mmap_write,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__[3:])
@pytest.mark.parametrize("where", ["lower", "upper"])
@pytest.mark.parametrize("mode", [0o6777, 0o4777, 0o2777, 0o2767, 0o6766])
def test_change_by_another_user(union, change, where, mode):
    """What is left of the mode is what the file system below leaves by itself."""
    path = write(union.base / where / "f" if where == "upper" else union.lower() / "f", "content")
    os.chmod(path, mode)
    plain = write(union.base / "plain", "content")
    os.chmod(plain, mode)
    m = union.mount()
    os.stat(m / "f")
    in_child(change, m / "f", uid=USER)
    in_child(change, plain, uid=USER)
    assert oct(os.stat(m / "f").st_mode) == oct(os.stat(plain).st_mode)
    assert not os.stat(m / "f").st_mode & stat.S_ISUID
    assert os.stat(union.upper / "f").st_mode == os.stat(plain).st_mode


@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__[3:])
@pytest.mark.parametrize("uid", [0, USER])
def test_capabilities_go(union, change, uid):
    write(union.lower() / "f", "content", mode=0o777)
    os.chmod(union.lower() / "f", 0o777)
    os.setxattr(union.lower() / "f", CAPABILITY, CAP_NET_RAW)
    m = union.mount()
    assert xattr(m / "f", CAPABILITY) is not None
    in_child(change, m / "f", uid=uid)
    assert xattr(m / "f", CAPABILITY) is None
    assert xattr(union.upper / "f", CAPABILITY) is None


def test_root_keeps_the_bits_when_writing(union):
    write(union.lower() / "f", "content")
    os.chmod(union.lower() / "f", 0o6777)
    plain = write(union.base / "plain", "content")
    os.chmod(plain, 0o6777)
    m = union.mount()
    for path in (m / "f", plain):
        do_write(path)
        do_truncate(path)
    assert oct(os.stat(m / "f").st_mode) == oct(os.stat(plain).st_mode)


@pytest.mark.parametrize("mode", [0o6777, 0o6766, 0o4755])
def test_chown(union, mode):
    for name in ("a", "b"):
        write(union.lower() / name, "content", uid=USER, gid=1000)
        os.chmod(union.lower() / name, mode)
        os.setxattr(union.lower() / name, CAPABILITY, CAP_NET_RAW)
    plain = write(union.base / "plain", "content", uid=USER, gid=1000)
    m = union.mount()
    for who, name in ((0, "a"), (USER, "b")):
        os.chown(plain, USER, 1000)
        os.chmod(plain, mode)
        os.setxattr(plain, CAPABILITY, CAP_NET_RAW)
        for path in (m / name, plain):
            in_child(os.chown, path, -1, 2000, uid=who, groups=[1000, 2000])
        assert oct(os.stat(m / name).st_mode) == oct(os.stat(plain).st_mode)
        assert xattr(m / name, CAPABILITY) == xattr(plain, CAPABILITY)
        assert os.stat(m / name).st_gid == 2000


def test_chown_of_a_directory_keeps_its_bits(union):
    mkdir(union.lower() / "d")
    os.chmod(union.lower() / "d", 0o6755)
    m = union.mount()
    os.chown(m / "d", 5, 6)
    assert oct(os.stat(m / "d").st_mode & 0o7777) == oct(0o6755)


def test_chmod_drops_setgid_for_a_stranger_to_the_group(union):
    write(union.lower() / "f", uid=USER, gid=1000)
    plain = write(union.base / "plain", uid=USER, gid=1000)
    m = union.mount()
    for path in (m / "f", plain):
        in_child(os.chmod, path, 0o2755, uid=USER, groups=[])
    assert oct(os.stat(m / "f").st_mode) == oct(os.stat(plain).st_mode) == oct(0o100755)
    for path in (m / "f", plain):
        in_child(os.chmod, path, 0o2755, uid=USER, groups=[1000])
    assert oct(os.stat(m / "f").st_mode) == oct(os.stat(plain).st_mode) == oct(0o102755)


def test_setting_an_acl_drops_setgid_for_a_stranger_to_the_group(union):
    for base in (union.lower(), mkdir(union.base / "plain")):
        write(base / "f", uid=USER, gid=1000)
        os.chmod(base / "f", 0o2755)
    m = union.mount()
    value = lib.acl(7, 5, 5, users=[(1, 7)], mask=7)
    for base in (m, union.base / "plain"):
        in_child(os.setxattr, base / "f", lib.ACCESS_ACL, value, uid=USER, groups=[])
    assert os.stat(m / "f").st_mode == os.stat(union.base / "plain/f").st_mode


def test_setuid_program_runs_as_its_owner(union):
    import shutil
    import subprocess

    shutil.copy(shutil.which("id"), union.lower() / "id")
    os.chown(union.lower() / "id", 1000, 1000)
    os.chmod(union.lower() / "id", 0o6755)
    os.chmod(union.base, 0o755)
    m = union.mount()
    for _ in range(2):
        out = in_child(
            lambda: subprocess.run([m / "id", "-u"], capture_output=True, text=True).stdout, uid=USER
        )
        assert out.strip() == "1000"
        os.utime(m / "id")


@pytest.mark.root("file capabilities of the first user namespace")
def test_file_capability_is_effective(union):
    import shutil
    import subprocess

    shutil.copy(shutil.which("capsh"), union.lower() / "capsh")
    os.setxattr(union.lower() / "capsh", CAPABILITY, CAP_NET_RAW)
    m = union.mount()
    for _ in range(2):
        done = in_child(
            lambda: subprocess.run(
                [m / "capsh", "--current"], capture_output=True, text=True
            ).stdout,
            uid=USER,
        )
        assert "cap_net_raw" in done
        os.utime(m / "capsh")


def test_overwriting_keeps_other_users_out(union):
    """The owner of a file that lies below may not turn it into another's setuid program."""
    write(union.lower() / "f", "content", uid=1000, gid=1000, mode=0o755)
    m = union.mount()
    in_child(os.chmod, m / "f", 0o4755, uid=1000)
    assert os.stat(m / "f").st_uid == 1000
    with lib.raises(1):
        in_child(os.chown, m / "f", 0, 0, uid=1000)
