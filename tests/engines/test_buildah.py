# SPDX-License-Identifier: MIT
"""buildah on the mount program: images without a Containerfile."""

import os
import signal

import engines_testlib as lib
import pytest
from engines_testlib import BASE
from engines_world import SUBORDINATE
from plyfs_testlib import wait_for
from podman_testlib import Engine, saved_image

ISOLATION = {"root": "oci", "sub-ids": "chroot"}


@pytest.fixture(scope="module", params=ISOLATION)
def engine(request, program, base_tar):
    user = SUBORDINATE if request.param == "sub-ids" else None
    with Engine(lib.settings.scratch / f"b-{request.param}", user, program, "crun") as engine:
        engine.env["BUILDAH_ISOLATION"] = ISOLATION[request.param]
        engine.import_base(base_tar)
        yield engine


@pytest.fixture(autouse=True)
def idle(engine):
    """After each test nothing is mounted and no daemon runs."""
    yield
    engine.buildah("rm", "--all")
    engine.assert_idle()


def mounted(engine, container, script):
    """A script on the container's root, $m, which is unmounted after it: its output."""
    script = f'm=$(buildah mount {container}); {script}; buildah umount {container} >/dev/null'
    if engine.user:
        return engine.buildah("unshare", "sh", "-ec", script)
    return engine.run("sh", "-ec", script)


def test_from_scratch(engine):
    engine.buildah("from", "--name", "w", "scratch")
    tree = lib.settings.scratch / "base"
    script = 'mkdir "$m/bin"; cp "$0/bin/busybox" "$m/bin/"; ln -s busybox "$m/bin/sh"'
    mounted(engine, "w", script.replace("$0", str(tree)))
    engine.buildah("run", "w", "/bin/sh", "-c", "echo made > /made")
    engine.buildah("config", "--cmd", "/bin/sh", "w")
    engine.buildah("commit", "-q", "w", "localhost/scratch:1")
    (layer,) = saved_image(engine, "localhost/scratch:1")
    assert {"bin/busybox", "bin/sh", "made"} <= layer.keys()
    assert engine.sh("localhost/scratch:1", "read x < /made; echo $x") == "made\n"


def test_run_copy_and_commit(engine):
    engine.buildah("from", "--name", "w", "--pull-never", BASE)
    engine.buildah("run", "w", "sh", "-ec", "rm -rf /lib; mkdir /lib; echo e > /lib/e; mv /root /r")
    engine.buildah("copy", "w", lib.settings.scratch / "base/etc/group", "/copied/")
    engine.buildah("commit", "-q", "w", "localhost/changed:1")
    out = engine.sh("localhost/changed:1", "cat /lib/e; ls /lib; ls -d /r /copied/*")
    assert out.split() == ["e", "e", "/copied/group", "/r"]
    top = saved_image(engine, "localhost/changed:1")[-1]
    assert {".wh.root", "r", "lib/.wh.x86_64-linux-gnu", "copied/group"} <= top.keys()
    assert not [path for path in top if path.startswith(("bin/", "usr/"))]


def test_mounted_again_on_the_same_upper(engine):
    engine.buildah("from", "--name", "w", "--pull-never", BASE)
    mounted(engine, "w", 'echo one >> "$m/etc/passwd"; rm "$m/etc/group"; mkdir "$m/etc/new"')
    engine.assert_idle()
    out = mounted(engine, "w", 'tail -1 "$m/etc/passwd"; ls "$m/etc"; touch "$m/etc/new/in"')
    assert out.split()[0] == "one" and "new" in out.split() and "group" not in out.split()
    assert mounted(engine, "w", 'ls "$m/etc/new"') == "in\n"


def test_mounted_again_after_the_death_of_its_daemon(engine):
    """It was mounted volatile, and engines mount such an upper again without being asked."""
    engine.buildah("from", "--name", "w", "--pull-never", BASE)
    # a rootless user's mounts live as long as his pause process
    script = 'm=$(buildah mount w); echo kept > "$m/kept"; rm "$m/etc/group"; sync'
    engine.unshare("sh", "-ec", script)
    (daemon,) = lib.daemons_of(engine.base)
    os.kill(daemon, signal.SIGKILL)
    wait_for(lambda: not lib.daemons_of(engine.base), 15, "the daemon's end")
    engine.unshare("sh", "-ec", "buildah umount w >/dev/null")
    out = mounted(engine, "w", 'cat "$m/kept"; ls "$m/etc"').split()
    assert out[0] == "kept" and "passwd" in out and "group" not in out


def test_bud_of_several_stages(engine):
    context = engine.home / "context"
    context.mkdir()
    lines = [
        f"FROM {BASE} AS first",
        "RUN mkdir /out && echo a > /out/a && ln /out/a /out/b && setcap cap_net_raw=ep /out/b",
        f"FROM {BASE}",
        "COPY --from=first /out /in",
        "RUN rm /in/a && rm -rf /root && mkdir /root && echo x > /root/x",
        "USER 1000",
        "RUN touch /tmp/mine",
    ]
    (context / "Containerfile").write_text("\n".join(lines) + "\n")
    engine.buildah("bud", "-q", "--pull-never", "-t", "localhost/stages:1", context)
    out = engine.sh("localhost/stages:1", "ls /in /root; stat -c %u /tmp/mine; id -u")
    assert out.split() == ["/in:", "b", "/root:", "x", "1000", "1000"]
