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
from podman_testlib import Engine, saved_image

IMAGE = "localhost/built:1"
PODMAN = ["podman", "build", "--layers", "--pull=never", "--network=none"]
BUILDAH = ["buildah", "bud", "--layers", "--pull-never", "--isolation=chroot"]

BUILDERS = {
    "podman-root": (None, "runc", PODMAN),
    "podman-sub-ids": (SUBORDINATE, "crun", PODMAN),
    "podman-single-id": (SINGLE, "runc", PODMAN),
    "buildah-root": (None, "runc", BUILDAH),
    "buildah-sub-ids": (SUBORDINATE, "runc", BUILDAH),
}


def build(engine, tool, archive, context):
    """The layers of the image."""
    engine.import_base(archive)
    engine.run(*tool, "-t", IMAGE, context, timeout=200)
    engine.assert_idle()
    return saved_image(engine, IMAGE)


@pytest.fixture(scope="module")
def context():
    """A directory to build in."""
    return steps.write_context(lib.settings.scratch / "context-podman")


@pytest.fixture(scope="module")
def by_kernel(base_tar, context):
    """The layers that the kernel's driver makes."""
    with Engine(lib.settings.scratch / "kernel") as engine:
        engine.assert_kernels_driver()
        return build(engine, PODMAN, base_tar, context)


@pytest.fixture(scope="module")
def in_chroot(base_tar, context):
    """What the first steps, or all, make of a plain directory: {number of steps: tree}"""
    directory = lib.settings.scratch / "plain"
    steps.unpack_base(base_tar, context, directory)
    steps.run_in_chroot(steps.WITHOUT_OWNERS, directory)
    first = layers.read_archive(lib.pack(directory, lib.settings.scratch / "plain.tar"))
    steps.run_in_chroot(steps.OWNED, directory)
    every = layers.read_archive(lib.pack(directory, lib.settings.scratch / "plain.tar"))
    return {len(steps.WITHOUT_OWNERS): first, len(steps.STEPS): every}


@pytest.fixture(scope="module", params=BUILDERS)
def built(request, program, base_tar, context):
    """The layers of the image; a user with one id does not do the last steps."""
    user, runtime, tool = BUILDERS[request.param]
    single = user == SINGLE
    overlay = ['ignore_chown_errors = "true"'] if single else []
    recipe = context / (steps.RECIPE_WITHOUT_OWNERS if single else steps.RECIPE)
    with Engine(lib.settings.scratch / request.param, user, program, runtime, overlay) as engine:
        return build(engine, [*tool, "-f", recipe], base_tar, context)


@pytest.mark.limit(300)
def test_layers_are_those_of_the_kernels_driver(built, by_kernel):
    assert len(built) in (len(by_kernel), len(by_kernel) - len(steps.OWNED))
    lines = layers.image_differences(by_kernel[: len(built)], built)
    assert not lines, "\n".join(lines)


# --- the bugs of other mount programs, each by itself ---------------------------------------------


def test_what_was_below_a_renewed_directory_stays_deleted(built):
    tree = layers.final_tree(built)
    assert [p for p in tree if p.startswith("w/r/z/")] == ["w/r/z/n", "w/r/z/y", "w/r/z/y/new"]


def test_write_through_a_hard_link_is_kept(built):
    tree = layers.final_tree(built)
    assert tree["w/h/f1"].size == len("two\nmore\n")
    assert {tree[n].size for n in steps.BROKEN_LINKS[1:]} == {len("two\n")}


def test_setgid_of_a_directory_survives_copy_up(built):
    tree = layers.final_tree(built)
    assert [oct(tree[p].mode) for p in ("w/d/sgid", "w/d/own")] == ["0o2770", "0o7755"]


# --- the whole ------------------------------------------------------------------------------------

# A build makes mount points in the image; /steps came by COPY.
ENGINES_OWN = ("dev", "etc/hosts", "etc/hostname", "etc/resolv.conf", "proc", "run", "steps", "sys")

def comparable(tree):
    return {
        path: entry._replace(links=frozenset())
        for path, entry in tree.items()
        if not path.startswith(ENGINES_OWN + steps.BROKEN_LINKS)
    }


def test_final_tree_is_that_of_a_plain_directory(built, in_chroot):
    plain = in_chroot[len(built) - 2]  # the base, and the scripts
    trees = [comparable(t) for t in (plain, layers.final_tree(built))]
    lines = layers.differences(*trees, "chroot", "image")
    assert not lines, "\n".join(lines)
