# SPDX-License-Identifier: MIT
"""A store whose images were unpacked for a mount program goes back to the kernel's driver, as
docs/podman.md says: such images hold .wh. files, which the kernel's overlayfs would show."""

from pathlib import Path

import layers
import pytest
from engines_testlib import BASE
from engines_world import SUBORDINATE
from podman_testlib import Engine

CHANGES = """
    rm /etc/group; rm -r /usr/sbin; mkdir /usr/sbin; echo new > /usr/sbin/new
    rm -r /root; mkdir /d; echo a > /d/a
"""
RECIPE = """
    cd "$1"
    {plyfs} convert --to=kernel --image */diff && rm .has-mount-program
"""


def exported(engine, image):
    """The tree of a new container of the image."""
    archive = engine.home / "exported.tar"
    engine.podman("create", "--name", "exported", image, "true")
    engine.podman("export", "-o", archive, "exported")
    engine.podman("rm", "exported")
    return layers.read_archive(archive)


@pytest.mark.parametrize("user", [None, SUBORDINATE], ids=["root", "rootless"])
def test_images_of_a_mount_program_on_the_kernels_driver(program, scratch, base_tar, user):
    plyfs = Path(program).with_name("plyfs")
    with Engine(scratch / "e", user=user, mount_program=program) as engine:
        engine.import_base(base_tar)
        engine.podman("run", "--name", "c", BASE, "sh", "-ec", CHANGES)
        engine.podman("commit", "-q", "c", "localhost/changed:1")
        engine.podman("rm", "c")
        ours = exported(engine, "localhost/changed:1")
        engine.assert_idle()
        store = engine.graph / "overlay"
        engine.use(None)
        engine.unshare("sh", "-ec", RECIPE.format(plyfs=plyfs), "sh", store)
        store_status = engine.podman("info", "--format", "{{.Store.GraphStatus}}")
        assert "Native Overlay Diff:true" in store_status
        kernels = exported(engine, "localhost/changed:1")
        lines = layers.differences(kernels, ours, "kernel", "mount program")
        assert not lines, "\n".join(lines)
        assert not [path for path in kernels if ".wh." in path]
        assert "usr/sbin/new" in kernels and "etc/group" not in kernels
