# SPDX-License-Identifier: MIT
"""What names and listings cost: system calls of the server on its layers."""

import collections
import errno
import os
import subprocess

import plyfs_testlib as lib
import pytest
from layer_calls import count_calls
from plyfs_testlib import exists, make_whiteout, mkdir, names, opened, read, write

pytestmark = [
    pytest.mark.plyfs_only("about the server"),
    pytest.mark.privileged("strace of the server"),
    pytest.mark.limit(120),
]

LAYERS = 40


def listed(fd, size=32768):
    """The names that one call gives."""
    return [name for _, _, _, name in lib.getdents(fd, size) if name not in (".", "..")]


def statxs(calls):
    return collections.Counter(calls)["statx"]


@pytest.fixture
def deep(new_union):
    """A directory that all of many layers have, each with a file of its own and one of them all."""
    union = new_union("deep")
    for n in range(LAYERS):
        write(union.lower(n) / f"d/only{n}", f"{n}")
        write(union.lower(n) / "d/all", f"{n}")
    return union


def test_missing_name_in_a_listed_directory_costs_nothing(deep):
    m = deep.mount()
    with opened(m / "d", os.O_RDONLY):  # so that it stays in memory
        assert len(names(m / "d")) == LAYERS + 1
        assert count_calls(deep, lambda: [exists(m / f"d/no{n}") for n in range(20)]) == []


def test_name_is_asked_for_in_the_layers_that_have_it(deep):
    m = deep.mount()
    with opened(m / "d", os.O_RDONLY) as fd:
        listed(fd)
        looked = range(LAYERS)
        calls = count_calls(deep, lambda: [os.lstat(m / f"d/only{n}") for n in looked])
        assert statxs(calls) <= LAYERS
        assert calls.count("openat") <= LAYERS
        assert read(m / "d/all") == b"0"
        for n in looked:
            assert read(m / f"d/only{n}") == str(n).encode()


def test_names_are_known_without_a_listing_when_that_pays(deep):
    m = deep.mount()
    with opened(m / "d", os.O_RDONLY):
        first = count_calls(deep, lambda: [exists(m / f"d/a{n}") for n in range(20)])
        assert statxs(first) <= LAYERS * 9
        assert first.count("getdents64") >= LAYERS
        assert count_calls(deep, lambda: [exists(m / f"d/b{n}") for n in range(20)]) == []
        found = count_calls(deep, lambda: os.lstat(m / f"d/only{LAYERS - 1}"))
        assert statxs(found) == 1


def test_names_in_a_new_directory_cost_nothing_before_they_are_made(union):
    m = union.mount()
    os.mkdir(m / "new")
    with opened(m / "new", os.O_RDONLY):
        assert count_calls(union, lambda: [exists(m / f"new/{n}") for n in range(20)]) == []
        write(m / "new/made", "x")
        assert read(m / "new/made") == b"x"
        assert count_calls(union, lambda: exists(m / "new/other")) == []


def test_found_name_in_one_layer_costs_two_calls(union):
    for n in range(20):
        write(union.lower() / f"d/f{n}")
    m = union.mount()
    os.lstat(m / "d/f0")
    with opened(m / "d", os.O_RDONLY):
        calls = count_calls(union, lambda: [os.lstat(m / f"d/f{n}") for n in range(1, 20)])
    assert statxs(calls) == 19
    assert len(calls) <= 2 * 19


def test_listing_opens_each_directory_once(deep):
    m = deep.mount()
    os.lstat(m / "d")
    calls = collections.Counter(count_calls(deep, lambda: names(m / "d")))
    assert calls["openat"] + calls["openat2"] <= LAYERS
    assert calls["close"] <= 1
    assert calls["getdents64"] == 2 * LAYERS


def test_removing_while_reading_reads_the_directory_once(union):
    """Each call of getdents(2) finds a directory that has changed since the last."""
    count = 3000
    mkdir(union.lower() / "d")
    for n in range(count):
        write(union.lower() / f"d/a-name-that-is-long-enough-for-several-calls-{n:06}")
    m = union.mount()
    removed = []

    def remove():
        with opened(m / "d", os.O_RDONLY) as fd:
            while True:
                entries = listed(fd, 4096)
                if not entries:
                    break
                for name in entries:
                    os.unlink(m / "d" / name)
                    removed.append(name)

    calls = collections.Counter(count_calls(union, remove))
    assert len(removed) == len(set(removed)) == count
    assert names(m / "d") == []
    # the lower directory and the upper one, once each for the pass and for its names
    assert calls["getdents64"] < 30


def test_pass_that_begins_after_a_change_sees_it(union):
    for n in range(10):
        write(union.lower() / f"d/f{n}")
    m = union.mount()
    with opened(m / "d", os.O_RDONLY) as one:
        listed(one)
        os.unlink(m / "d/f3")
        write(m / "d/new")
        with opened(m / "d", os.O_RDONLY) as two:
            seen = set(listed(two))
    assert seen == {f"f{n}" for n in range(10) if n != 3} | {"new"}


def test_whiteouts_and_opaque_directories_stay_right_with_known_names(new_union):
    union = new_union("w")
    write(union.lower(2) / "d/hidden")
    write(union.lower(2) / "d/seen")
    make_whiteout(union.lower(1) / "d/hidden")
    write(union.lower(1) / "d/sub/above")
    write(union.lower(2) / "d/sub/below")
    union.opaque(union.lower(1) / "d/sub")
    m = union.mount()
    assert names(m / "d") == ["seen", "sub"]
    assert not exists(m / "d/hidden")
    assert names(m / "d/sub") == ["above"]
    assert not exists(m / "d/sub/below")
    os.unlink(m / "d/seen")
    assert not exists(m / "d/seen")
    write(m / "d/seen", "again")
    assert read(m / "d/seen") == b"again"
    os.rename(m / "d/seen", m / "d/moved")
    assert not exists(m / "d/seen") and read(m / "d/moved") == b"again"


def test_nothing_is_believed_when_layers_may_change(union):
    mkdir(union.lower() / "d")
    write(union.lower() / "d/a")
    union.check_lowers = union.check_kernel = False
    m = union.mount("timeout=0")
    assert names(m / "d") == ["a"]
    for n in range(50):
        assert not exists(m / f"d/b{n}")
    write(union.lower() / "d/b7", "behind")
    assert read(m / "d/b7") == b"behind"
    assert names(m / "d") == ["a", "b7"]


def getxattr(path, name):
    try:
        return os.getxattr(path, name)
    except OSError as e:
        return e.errno


@pytest.mark.root("sets capabilities")
def test_xattrs_that_are_not_there_cost_nothing(union):
    """And those that come are there, before and after copy-up, and on what was just made."""
    capability = bytes.fromhex("0100000200040000000000000000000000000000")
    write(union.lower() / "plain", "x")
    write(union.lower() / "other", "x")
    write(union.lower() / "capable", "x")
    os.setxattr(union.lower() / "capable", "security.capability", capability)
    m = union.mount()
    assert os.getxattr(m / "capable", "security.capability") == capability
    write(m / "made", "x")
    for name in ("plain", "made"):
        path = m / name
        with opened(path, os.O_RDONLY):

            def ask(path=path):
                for _ in range(3):
                    assert getxattr(path, "security.capability") == errno.ENODATA

            assert count_calls(union, ask) == []
            os.setxattr(path, "security.capability", capability)
            assert os.getxattr(path, "security.capability") == capability
            os.removexattr(path, "security.capability")
            assert getxattr(path, "security.capability") == errno.ENODATA
    os.chmod(m / "capable", 0o700)  # copied up
    assert os.getxattr(m / "capable", "security.capability") == capability
    with opened(m / "other", os.O_RDONLY):
        assert getxattr(m / "other", "system.posix_acl_access") == errno.ENODATA
        subprocess.run(["setfacl", "-m", "u:12345:r", m / "other"], check=True)
        assert getxattr(m / "other", "system.posix_acl_access") != errno.ENODATA
    os.mkdir(m / "dir")
    subprocess.run(["setfacl", "-d", "-m", "u:12345:rwx", m / "dir"], check=True)
    write(m / "dir/inherits")
    os.mkdir(m / "dir/inherits-too")
    assert getxattr(m / "dir/inherits", "system.posix_acl_access") != errno.ENODATA
    assert getxattr(m / "dir/inherits-too", "system.posix_acl_default") != errno.ENODATA
