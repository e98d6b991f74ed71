# SPDX-License-Identifier: MIT
"""The daemon is killed at random points of a storm: the layers hold the tree before or after."""

import os
import random

import plyfs_testlib as lib
import pytest
from storm_crash import again_and_again, detach, kept_layers

STEPS = 60


@pytest.fixture(scope="module")
def layers():
    with kept_layers() as kept:
        yield kept


@pytest.mark.limit(400)
@pytest.mark.parametrize(
    "first,kills", [(0, 10), pytest.param(10, 190, marks=pytest.mark.slow)], ids=["10", "190"]
)
def test_killed_again_and_again(layers, new_union, first, kills):
    seeds = range(first, first + kills)
    again_and_again(layers, new_union, seeds, (0.05, 0.12), STEPS)


@pytest.mark.plyfs_only("about the daemon")
def test_mount_of_a_killed_daemon_can_be_replaced(union):
    lib.write(union.lower() / "f", "low")
    m = union.mount()
    lib.append(m / "f", b"+")
    union.daemon.kill()
    union.daemon.wait()
    union.mounted.live = False
    with lib.raises(107, 103):
        os.stat(m / "f")
    detach(m)
    union.mounts = []
    union.mount()
    assert lib.read(m / "f") == b"low+"


@pytest.mark.plyfs_only("about the daemon")
def test_clients_of_a_killed_daemon_get_errors_and_do_not_hang(union):
    lib.write(union.lower() / "f", b"x" * 1000000)
    m = union.mount()
    fd = os.open(m / "f", os.O_RDWR)
    os.pread(fd, 10, 0)
    union.daemon.kill()
    union.daemon.wait()
    union.mounted.live = False
    for call in (
        lambda: os.pread(fd, 100, 900000),
        lambda: os.pwrite(fd, b"y", 0),
        lambda: os.fstat(fd),
        lambda: os.listdir(m),
        lambda: os.statvfs(m),
    ):
        try:
            call()
        except OSError as e:
            assert e.errno in (107, 103, 5), e
    try:
        os.close(fd)
    except OSError:
        pass
    detach(m)
    union.mounts = []
