# SPDX-License-Identifier: MIT
"""A store with force_mask: owners and modes live in xattrs, on disk everything has one mode."""

import os

import engines_testlib as lib
import pytest
from engines_testlib import BASE
from engines_world import SUBORDINATE
from podman_testlib import Engine, saved_image

OVERRIDE = "user.containers.override_stat"


@pytest.fixture(scope="module", params=[None, SUBORDINATE], ids=["root", "sub-ids"])
def engine(request, program, base_tar):
    name = f"mask-{'sub' if request.param else 'root'}"
    overlay = ['force_mask = "shared"']
    with Engine(lib.settings.scratch / name, request.param, program, "crun", overlay) as engine:
        engine.import_base(base_tar)
        yield engine


@pytest.fixture(autouse=True)
def idle(engine):
    yield
    engine.remove_containers()
    engine.assert_idle()


# The store itself loses set-id and sticky bits: it does not write them into the xattr of a layer.
CHANGE = """
    stat -c '%a %u:%g %n' /etc/passwd /bin/busybox
    chown 12:34 /etc/passwd; chmod 4711 /etc/passwd; mkdir -m 2750 /d; chown 5:6 /d; echo a > /d/a
    ln -s x /d/link; rm /etc/group; rm -rf /root; mkdir -m 700 /root; mv /d/a /d/b; mkdir /lib/new
    stat -c '%a %u:%g %n' /etc/passwd /d /d/b /root; test ! -e /etc/group
"""
BEFORE = ["644 0:0 /etc/passwd", "755 0:0 /bin/busybox"]
LIVE = ["4711 12:34 /etc/passwd", "2750 5:6 /d", "644 0:6 /d/b", "700 0:0 /root"]
COMMITTED = ["711 12:34 /etc/passwd", "750 5:6 /d", "644 0:6 /d/b", "700 0:0 /root"]


def test_owners_and_modes_are_seen_and_kept(engine):
    engine.podman("run", "--name", "c", BASE, "sh", "-ec", CHANGE)
    assert engine.podman("logs", "c").splitlines() == BEFORE + LIVE
    engine.podman("commit", "-q", "c", "localhost/masked:1")
    again = "stat -c '%a %u:%g %n' /etc/passwd /d /d/b /root; test ! -e /etc/group"
    assert engine.sh("localhost/masked:1", again).splitlines() == COMMITTED
    top = saved_image(engine, "localhost/masked:1")[-1]
    passwd = top["etc/passwd"]
    assert (oct(passwd.mode), passwd.uid, passwd.gid) == ("0o4711", 12, 34)
    assert {"etc/.wh.group", "d/b", "d/link"} <= top.keys() and "d/a" not in top
    assert not [path for path in top if path.startswith("bin/")]
    assert not [e for e in top.values() if any("override" in name for name in e.xattrs)]


def test_owners_and_set_id_bits_are_not_on_disk(engine):
    engine.podman("run", "--name", "c", BASE, "sh", "-ec", CHANGE)
    upper = engine.inspect("c", "container")["GraphDriver"]["Data"]["UpperDir"]
    for name in ("etc/passwd", "d", "d/b"):
        st = os.lstat(f"{upper}/{name}")
        assert st.st_uid == (engine.user.uid if engine.user else 0), name
        assert st.st_mode & 0o7000 == 0 and st.st_mode & 0o400, name
    assert os.getxattr(f"{upper}/etc/passwd", OVERRIDE).startswith(b"12:34:0")
