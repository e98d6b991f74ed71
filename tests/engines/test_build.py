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
def contexts():
    """Directories to build in: of all steps, and of those that need one owner only."""
    base = lib.settings.scratch
    return {
        "all": steps.write_context(base / "context-all", steps.STEPS),
        "single": steps.write_context(base / "context-single", steps.WITHOUT_OWNERS),
    }


@pytest.fixture(scope="module")
def by_kernel(base_tar, contexts):
    """The layers that the kernel's driver makes of each context."""
    with Engine(lib.settings.scratch / "kernel") as engine:
        return {name: build(engine, PODMAN, base_tar, where) for name, where in contexts.items()}


@pytest.fixture(scope="module")
def in_chroot(base_tar, contexts):
    """What the steps make of a plain directory: its tree, as one layer."""
    directory = lib.settings.scratch / "plain"
    steps.run_in_chroot(base_tar, contexts["all"], steps.STEPS, directory)
    return layers.read_archive(lib.pack(directory, lib.settings.scratch / "plain.tar"))


@pytest.fixture(scope="module", params=BUILDERS)
def built(request, program, base_tar, contexts):
    """The name of the context, and the layers of the image built in it."""
    user, runtime, tool = BUILDERS[request.param]
    overlay = ['ignore_chown_errors = "true"'] if user == SINGLE else []
    which = "single" if user == SINGLE else "all"
    base = lib.settings.scratch / request.param
    with Engine(base, user, program, runtime, overlay) as engine:
        return which, build(engine, tool, base_tar, contexts[which])


@pytest.mark.limit(300)
def test_layers_are_those_of_the_kernels_driver(built, by_kernel):
    which, image = built
    lines = layers.image_differences(by_kernel[which], image)
    assert not lines, "\n".join(lines)


# --- the bugs of other mount programs, each by itself ---------------------------------------------


def final(built):
    return layers.final_tree(built[1])


def test_what_was_below_a_renewed_directory_stays_deleted(built):
    tree = final(built)
    assert [p for p in tree if p.startswith("w/r/z/")] == ["w/r/z/n", "w/r/z/y", "w/r/z/y/new"]


def test_write_through_a_hard_link_is_kept(built):
    tree = final(built)
    assert tree["w/h/f1"].size == len("two\nmore\n")
    assert tree["w/h/a0"].size == len("one\n")


def test_setgid_of_a_directory_survives_copy_up(built):
    tree = final(built)
    assert [oct(tree[p].mode) for p in ("w/d/sgid", "w/d/own")] == ["0o2770", "0o7755"]


# --- the whole ------------------------------------------------------------------------------------

# A build makes mount points in the image; /steps came by COPY.
ENGINES_OWN = ("dev", "etc/hosts", "etc/hostname", "etc/resolv.conf", "proc", "run", "steps", "sys")
# Other names of a file of a lower layer that was changed: overlays without an index break the link.
BROKEN_LINKS = ("w/h/a0", "w/h/f1.moved", "w/h/f1.third")


def comparable(tree):
    return {
        path: entry._replace(links=frozenset())
        for path, entry in tree.items()
        if not path.startswith(ENGINES_OWN + BROKEN_LINKS)
    }


def test_final_tree_is_that_of_a_plain_directory(built, in_chroot):
    which, image = built
    if which == "single":
        pytest.skip("the chroot ran the steps about owners, too")
    trees = [comparable(t) for t in (in_chroot, layers.final_tree(image))]
    lines = layers.differences(*trees, "chroot", "image")
    assert not lines, "\n".join(lines)
