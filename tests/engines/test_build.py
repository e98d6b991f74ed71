# SPDX-License-Identifier: MIT
"""Images built on the mount program are those that are built on the kernel's overlay driver.

One build of many layers, compared with the kernel's layer by layer, and as a whole with the same
steps on a plain directory.
"""

import engines_testlib as lib
import layers
import pytest
import steps
from engines_world import SINGLE, SUBORDINATE
from podman_testlib import Engine

IMAGE = "localhost/built:1"
# What the engines write into a container or make for their mounts.
ENGINES_OWN = {"dev", "etc/hosts", "etc/resolv.conf", "etc/mtab", "proc", "sys", "run", "steps"}

BUILDERS = {
    "podman-root-runc": (None, "runc", ["podman", "build", "--layers"]),
    "podman-root-crun": (None, "crun", ["podman", "build", "--layers"]),
    "podman-sub-ids": (SUBORDINATE, "crun", ["podman", "build", "--layers"]),
    "buildah-root": (None, "runc", ["buildah", "bud", "--layers", "--isolation=chroot"]),
    "buildah-sub-ids": (SUBORDINATE, "runc", ["buildah", "bud", "--layers", "--isolation=chroot"]),
    "podman-single-id": (SINGLE, "runc", ["podman", "build", "--layers"]),
}


def build(engine, tool, context):
    engine.run(*tool, "--network=none", "--pull-never" if "bud" in tool else "--pull=never",
               "-t", IMAGE, context, timeout=110)


def saved(engine, name, image=IMAGE):
    archive = engine.base / f"{name}.tar"
    engine.run("podman", "save", "-q", "-o", engine.home / "image.tar", image)
    (engine.home / "image.tar").rename(archive)
    return layers.read_image(archive)


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    return steps.write_context(lib.settings.scratch / "context", steps.STEPS)


@pytest.fixture(scope="module")
def by_kernel(base_tar, context):
    """The layers of the kernel's driver."""
    engine = Engine(lib.settings.scratch / "kernel")
    try:
        engine.import_base(base_tar)
        build(engine, BUILDERS["podman-root-runc"][2], context)
        yield saved(engine, "kernel")
    finally:
        engine.close()


@pytest.fixture(scope="module", params=BUILDERS)
def built(request, program, base_tar, context):
    """(builder, its layers)"""
    user, runtime, tool = BUILDERS[request.param]
    overlay = ['ignore_chown_errors = "true"'] if user == SINGLE else []
    engine = Engine(lib.settings.scratch / request.param, user, program, runtime, overlay)
    try:
        engine.import_base(base_tar)
        build(engine, tool, context)
        engine.assert_idle()
        yield request.param, saved(engine, "built")
    finally:
        engine.close()


def test_layers_are_those_of_the_kernels_driver(built, by_kernel):
    lines = layers.image_differences(by_kernel, built[1])
    assert not lines, "\n".join(lines)


