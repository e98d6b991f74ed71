# SPDX-License-Identifier: MIT
"""A store changes hands: between the kernel's driver and the mount program, and back."""

import engines_testlib as lib
import layers
import pytest
import steps
from engines_testlib import BASE
from podman_testlib import Engine, saved_image

KEPT = """
    rm /etc/group; rm -rf /root; mkdir /root; echo n > /root/new; rm -r /usr/sbin
    mkdir /usr/sbin; echo f > /usr/sbin/f; mkdir /d; echo a > /d/a; mv /d /e; mv /lib /lib.moved
    mkdir -p /lib/x; ln /bin/busybox /bin/bb
    chmod 2775 /var; mkfifo /fifo; chown 5:6 /etc/passwd
    rm -rf /var/tmp; mkdir -m 1777 /var/tmp; ln -s nowhere /bin/nowhere; rm /bin/[
"""


def exported(engine, container):
    archive = engine.home / "exported.tar"
    engine.podman("export", "-o", archive, container)
    return layers.read_archive(archive)


@pytest.fixture
def engine(program, scratch):
    with Engine(scratch / "e") as engine:
        yield engine


def test_kept_container_goes_back_to_the_kernels_driver(engine, program, base_tar):
    engine.use(program)
    engine.import_base(base_tar)
    engine.podman("run", "--name", "c", BASE, "sh", "-ec", KEPT)
    ours = exported(engine, "c")
    engine.assert_idle()
    engine.use(None)
    # as long as this lies there the engine goes on with the mount program that it finds in PATH
    (engine.graph / "overlay/.has-mount-program").unlink()
    engine.assert_kernels_driver()
    kernels = exported(engine, "c")
    lines = layers.differences(kernels, ours, "kernel", "mount program")
    assert not lines, "\n".join(lines)
    script = "m=$(podman mount c); stat -f -c %T $m; find $m; podman unmount c >/dev/null"
    listing = engine.run("sh", "-ec", script)
    assert listing.startswith("overlayfs\n") and "/usr/sbin/f\n" in listing
    assert "/.wh." not in listing
    # and as the kernel's driver packs the upper directory: no stray marks in the layer
    engine.podman("commit", "-q", "c", "localhost/committed:1")
    top = saved_image(engine, "localhost/committed:1")[-1]
    assert {"etc/.wh.group", "root/new", "usr/sbin/f", "e/a"} <= top.keys()


def test_store_of_the_kernels_driver_is_taken_over(engine, program, base_tar):
    engine.assert_kernels_driver()
    engine.import_base(base_tar)
    context = steps.write_context(lib.settings.scratch / "context-over")
    build = ["podman", "build", "-q", "--layers", "--pull=never", "--network=none"]
    engine.run(*build, "-t", "localhost/built:1", context, timeout=100)
    script = "rm -r /w/d; mkdir /w/d"
    engine.podman("run", "--name", "kept", "localhost/built:1", "sh", "-ec", script)
    for name, image in (("fresh", "localhost/built:1"), ("base", BASE)):
        engine.podman("create", "--name", name, image, "true")
    kernels = {name: exported(engine, name) for name in ("fresh", "kept", "base")}
    engine.assert_idle()
    engine.use(program)
    for name, tree in kernels.items():
        lines = layers.differences(tree, exported(engine, name), "kernel", "mount program")
        assert not lines, name + ":\n" + "\n".join(lines)
    # and goes on in it
    engine.podman("start", "kept")
    script = "rm -rf /w/r && mkdir /w/r && ls -a /w/r /w/d && echo more >> /w/f/1 && cat /w/f/1"
    out = engine.sh("localhost/built:1", script)
    assert out.split()[-2:] == ["more", "more"] and "z" not in out.split()
