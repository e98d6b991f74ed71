# SPDX-License-Identifier: MIT
"""Docker's graph driver fuse-overlayfs on plyfs: builds, containers, images, restarts.

What docker builds is compared, layer by layer, with what it builds on the kernel's overlay driver,
and with what the same commands make in a chroot on a plain directory.
"""

import hashlib
import io
import json
import os
import signal
import tarfile
from pathlib import Path

import engines_testlib as lib
import layers
import pytest
import steps
from docker_testlib import Docker, architecture
from engines_testlib import BASE
from engines_world import SUBORDINATE
from plyfs_testlib import remove_tree, wait_for

# Docker keeps no xattr of a user's from layer to layer: there is none to remove.
STEPS = {n: s.replace("setfattr -x user.first /w/x/user", "") for n, s in steps.STEPS.items()}

OLD = 1_500_000_000  # when what the containers find was last changed


def make_context(directory):
    """To build an image in that holds one thing of each kind, for the containers to work on."""
    top = directory / "old"
    for name in ("keep", "go/deep", "shared"):
        (top / name).mkdir(parents=True)
    for number in range(5):
        (top / "keep" / f"f{number}").write_text(f"{number}\n" * 100)
        (top / "go" / f"f{number}").write_text("")
        (top / "go" / "deep" / f"f{number}").write_text("")
    (top / "set").write_text("set")
    (top / "set").chmod(0o4755)
    (top / "shared" / "f").write_text("f")
    (top / "shared").chmod(0o2770)
    (top / "hard").write_text("hard\n")
    os.link(top / "hard", top / "hard2")
    os.mkfifo(top / "fifo")
    for where, names, files in os.walk(top, topdown=False):
        for name in (*names, *files):
            os.utime(f"{where}/{name}", (OLD, OLD))
    lib.pack(directory, directory / "old.tar")
    remove_tree(top)
    (directory / "Containerfile").write_text(f"FROM {BASE}\nADD old.tar /\n")
    return directory


@pytest.fixture(scope="module")
def context():
    """The directory in which the image of many layers is built."""
    return steps.write_context(lib.settings.scratch / "context", STEPS)


@pytest.fixture(scope="module")
def new_docker(program, base_tar):
    """Starts daemons that have the base image."""
    made = []

    def start(name, **kw):
        made.append(Docker(lib.settings.scratch / name, **kw))
        made[-1].start().import_base(base_tar)
        return made[-1]

    yield start
    for docker in made:
        docker.close()


@pytest.fixture(scope="module")
def docker(new_docker):
    return new_docker("d")


@pytest.fixture(scope="module")
def built(docker, context):
    """The layers of an image of all steps."""
    docker.build("built", context)
    return docker.saved("built")


@pytest.fixture(scope="module")
def image(docker):
    """An image that holds what the containers change."""
    directory = lib.settings.scratch / "old"
    directory.mkdir()
    docker.build("old", make_context(directory))
    return "old"


@pytest.fixture
def container(docker, image):
    """Makes containers that do nothing, and removes them."""
    made = []

    def make(*options):
        words = ["run", "-d", "--net=none", "--stop-signal=KILL", *options, image, "sleep", "1000"]
        made.append(docker(*words))
        return made[-1]

    yield make
    docker("rm", "-f", *made)


# --- the driver -----------------------------------------------------------------------------------


def test_docker_uses_the_driver(docker):
    assert docker("info", "--format", "{{.Driver}}") == "fuse-overlayfs"


def test_a_container_sees_the_mount_that_docker_looks_for(docker):
    line = docker.sh(BASE, "grep ' / ' /proc/mounts").split()
    assert line[:3] == ["fuse-overlayfs", "/", "fuse.fuse-overlayfs"]
    assert set(line[3].split(",")) >= {"rw", "default_permissions", "allow_other"}


def test_a_container_that_has_ended_leaves_no_mount_and_no_daemon(docker):
    docker.sh(BASE, "true")
    docker.assert_idle()


# --- builds ---------------------------------------------------------------------------------------


@pytest.mark.limit(200)
def test_a_build_makes_the_layers_that_the_kernel_driver_makes(new_docker, context, built):
    kernel = new_docker("k", driver="overlay2")
    kernel.build("built", context)
    lines = layers.image_differences(kernel.saved("built"), built)
    assert not lines, "\n".join(lines)


def test_a_build_makes_the_tree_that_the_same_steps_make_of_a_directory(
    scratch, base_tar, context, built
):
    plain = steps.unpack_base(base_tar, context, scratch / "plain")
    steps.run_in_chroot(STEPS, plain)
    made = layers.read_archive(lib.pack(plain, scratch / "plain.tar"))
    lines = layers.differences(comparable(made), comparable(layers.final_tree(built)), "chroot")
    assert not lines, "\n".join(lines)


# A build makes mount points in the image; /steps came by COPY.
DOCKERS_OWN = ("dev", "etc", "proc", "sys", "run", "steps")


def comparable(tree):
    """Docker keeps no other xattr than capabilities; a hard link over two layers is a copy."""
    out = {}
    for path, entry in tree.items():
        if not path.startswith(DOCKERS_OWN + steps.BROKEN_LINKS):
            kept = {k: v for k, v in entry.xattrs.items() if k == "security.capability"}
            out[path] = entry._replace(xattrs=kept, links=frozenset())
    return out


def test_a_removed_directory_that_is_made_again_is_empty_in_the_image(docker, built):
    """fuse-overlayfs 1.10 finds the old files, though it does not list them: images kept them."""
    tree = layers.final_tree(built)
    assert [p for p in tree if p.startswith("w/r/z/")] == ["w/r/z/n", "w/r/z/y", "w/r/z/y/new"]
    assert docker.sh("built", "cd /w/r/z; find . -type f | sort; getcap /w/x/moved-tool") == (
        "./n\n./y/new\n/w/x/moved-tool cap_net_bind_service=ep"
    )


def test_a_step_that_changes_nothing_makes_no_layer(docker, scratch):
    lines = [f"FROM {BASE}", "RUN ls -lR / > /dev/null", "RUN mkdir /x; rmdir /x; chmod 755 /etc"]
    (scratch / "Containerfile").write_text("\n".join(lines) + "\n")
    docker.build("nothing", scratch)
    changed = set().union(*docker.saved("nothing")[1:])
    assert changed <= {"dev", "etc", "proc", "sys", "etc/hosts", "etc/hostname", "etc/resolv.conf"}


def test_a_failed_step_fails_the_build_and_leaves_no_mount(docker, scratch):
    (scratch / "Dockerfile").write_text(f"FROM {BASE}\nRUN rm -rf /w && false\n")
    p = docker.complete("build", "--network=none", scratch, check=False)
    assert p.returncode != 0 and "non-zero code: 1" in p.stderr
    docker.assert_idle()


def test_a_layer_holds_only_what_was_changed(docker, scratch):
    """Any time, owner or attribute of 2000 files that a second mount shows otherwise is seen."""
    make = "for d in $(seq 50); do mkdir -p /m/$d; for f in $(seq 40); do > /m/$d/$f; done; done"
    lines = [f"FROM {BASE}", f"RUN {make}", "RUN echo x >> /m/7/7"]
    (scratch / "Containerfile").write_text("\n".join(lines) + "\n")
    docker.build("many", scratch)
    changed = docker.saved("many")[2]
    assert "m/7/7" in changed
    assert set(changed) <= {"m", "m/7", "m/7/7"}


# --- containers -----------------------------------------------------------------------------------


def test_exec_sees_and_changes_the_running_container(docker, container):
    c = container()
    docker("exec", c, "sh", "-ec", "echo in > /tmp/x; rm /old/set; mv /old/keep/f1 /tmp")
    assert docker("exec", c, "sh", "-ec", "cat /tmp/x; test ! -e /old/set; ls /tmp") == "in\nf1\nx"


def test_diff_of_a_container(docker, container):
    c = container()
    docker("exec", c, "sh", "-ec", "echo n > /new; echo c >> /old/set; rm -rf /old/go")
    assert set(docker("diff", c).splitlines()) == {"A /new", "C /old", "C /old/set", "D /old/go"}


def test_commit_and_export_hold_what_the_container_shows(docker, container):
    c = container()
    docker("exec", c, "sh", "-ec", "rm -rf /old/go; mkdir /old/go; echo n > /old/go/n")
    docker("exec", c, "sh", "-ec", "rm /old/keep/f0; chown 5:6 /old/keep/f1; chmod 711 /old")
    docker("exec", c, "sh", "-ec", "cp /bin/busybox /old/b; setcap cap_chown+ep /old/b")
    show = "cd /; find old | sort; stat -c '%n %u %g %a' old old/keep/f1; getcap /old/b"
    shown = docker("exec", c, "sh", "-ec", show)
    assert "old/go/deep" not in shown and "old/keep/f1 5 6 644" in shown
    assert "/old/b cap_chown=ep" in shown
    docker("commit", c, "committed")
    assert docker.sh("committed", show) == shown
    exported = docker.base / "exported.tar"
    docker("export", "-o", exported, c)
    with tarfile.open(exported) as tar:
        names = {name.rstrip("/") for name in tar.getnames() if name.startswith("old")}
    assert names == {line for line in shown.splitlines() if " " not in line}


def test_cp_in_and_out_of_a_running_and_of_a_stopped_container(docker, container, scratch):
    c = container()
    (scratch / "in").write_text("in")
    docker("cp", scratch / "in", f"{c}:/old/running")
    docker("cp", f"{c}:/old/keep", scratch / "of-running")
    docker("stop", c)
    docker("cp", scratch / "in", f"{c}:/old/stopped")
    docker("cp", f"{c}:/old/keep", scratch / "of-stopped")
    docker.assert_idle()
    for name in ("of-running", "of-stopped"):
        assert sorted(os.listdir(scratch / name)) == [f"f{n}" for n in range(5)]
    docker("start", c)
    assert docker("exec", c, "cat", "/old/running", "/old/stopped") == "inin"


def test_volumes_lie_on_the_mount(docker, image, scratch):
    (scratch / "f").write_text("host\n")
    options = ["-v", f"{scratch}:/old/go", "-v", "vol:/vol", "-v", "/old/keep", "--tmpfs", "/t"]
    script = "cat /old/go/f; echo v >> /old/go/f; echo v > /vol/f; ls /old/keep; echo t > /t/f"
    # a new volume without a name is filled with what the image holds there
    expected = ["host", *(f"f{n}" for n in range(5))]
    assert docker.sh(image, script, *options).splitlines() == expected
    assert (scratch / "f").read_text() == "host\nv\n"
    assert docker.sh(image, "cat /vol/f", "-v", "vol:/vol:ro") == "v"
    docker("volume", "rm", "vol")


def test_a_read_only_container(docker, image):
    script = "! touch /x 2>&1; ! rm /old/set 2>&1; cat /old/hard; echo t > /tmp/t; cat /tmp/t"
    said = docker.sh(image, script, "--read-only", "--tmpfs", "/tmp").splitlines()
    assert [line.rsplit(": ", 1)[-1] for line in said[:2]] == ["Read-only file system"] * 2
    assert said[2:] == ["hard", "t"]


def test_a_user_has_the_rights_that_files_give(docker, image):
    script = "! touch /old/x; ! cat /old/shared/f; touch /tmp/y; stat -c %u /tmp/y"
    p = docker.complete("run", "--rm", "--net=none", "-u", "1000", image, "sh", "-ec", script)
    assert p.stdout == "1000\n" and p.stderr.count("Permission denied") == 2


# --- images ---------------------------------------------------------------------------------------


def test_save_and_load_give_the_same_image(docker, built):
    again = docker.base / "again.tar"
    docker("save", "-o", again, "built")
    docker("rmi", "built")
    assert "Loaded image: built" in docker("load", "-i", again)
    assert docker.saved("built") == built


def test_an_image_of_40_layers(docker, scratch):
    """Each adds a file, deletes one of the layer before, and changes one that all have."""
    packed = []
    for number in range(40):
        names = {f"d/{number}": b"own", "common": b"%d\n" % number, f"emptied/{number}": b""}
        if number:
            names[f"d/.wh.{number - 1}"] = b""
        if number == 20:
            names["emptied/.wh..wh..opq"] = b""
        packed.append(pack(names))
    (scratch / "image.tar").write_bytes(image_archive("deep:1", packed))
    docker("load", "-i", scratch / "image.tar")
    options = ["-v", "/bin/busybox:/bin/busybox:ro", "--entrypoint", "/bin/busybox"]
    b = "/bin/busybox"
    script = f"{b} ls /d; {b} cat /common; {b} ls /emptied | {b} wc -l; {b} ls -a /d | {b} wc -l"
    said = docker("run", "--rm", "--net=none", *options, "deep:1", "sh", "-ec", script)
    assert said.split() == ["39", "39", "20", "3"]


def pack(files):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


def image_archive(tag, packed):
    digests = ["sha256:" + hashlib.sha256(data).hexdigest() for data in packed]
    config = {"architecture": architecture(), "os": "linux", "config": {}}
    config["rootfs"] = {"type": "layers", "diff_ids": digests}
    files = {f"{number}/layer.tar": data for number, data in enumerate(packed)}
    manifest = [{"Config": "config.json", "RepoTags": [tag], "Layers": list(files)}]
    files["config.json"] = json.dumps(config).encode()
    files["manifest.json"] = json.dumps(manifest).encode()
    return pack(files)


# --- restarts -------------------------------------------------------------------------------------


def test_a_container_that_is_stopped_and_started_keeps_its_changes(docker, container):
    c = container()
    change = "rm -rf /old/go; mkdir /old/go; echo 1 > /old/go/n; rm /old/set"
    docker("exec", c, "sh", "-ec", change)
    for number in (2, 3):
        docker("restart", c)
        docker("exec", c, "sh", "-ec", f"echo {number} >> /old/go/n")
    look = "ls /old/go; cat /old/go/n; test ! -e /old/set"
    assert docker("exec", c, "sh", "-ec", look) == "n\n1\n2\n3"


def test_a_container_whose_server_was_killed_starts_again(docker, container):
    c = container()
    docker("exec", c, "sh", "-ec", "echo kept > /kept; rm /old/set")
    (server,) = lib.daemons_of(docker.data)
    os.kill(server, signal.SIGKILL)
    wait_for(lambda: not lib.daemons_of(docker.data), 10, "its end")
    assert docker.complete("exec", c, "cat", "/kept", check=False).returncode != 0
    docker("kill", c)
    docker("start", c)
    assert docker("exec", c, "sh", "-ec", "cat /kept; test ! -e /old/set") == "kept"


def test_a_container_is_there_after_a_restart_of_docker(docker, container, image):
    c = container()
    docker("exec", c, "sh", "-ec", "echo kept > /kept; rm /old/set")
    docker.stop()
    assert docker.mounts() == []
    docker.start()
    docker("start", c)
    assert docker("exec", c, "sh", "-ec", "cat /kept; test ! -e /old/set") == "kept"
    assert docker.sh(image, "cat /old/set") == "set"


def test_a_container_outlives_its_docker(new_docker):
    """live-restore: it runs on without a dockerd, and so does its mount."""
    d = new_docker("l", flags=["--live-restore"])
    script = "echo up > /up; while ! test -e /go; do sleep 0.1; done; echo went > /went; sleep 1000"
    c = d("run", "-d", "--net=none", BASE, "sh", "-ec", script)
    (point,) = d.mounts()
    d.stop()
    assert d.mounts() == [point]
    Path(point, "go").touch()
    wait_for(lambda: os.path.exists(f"{point}/went"), 20, "the container's answer")
    d.start()
    assert d("exec", c, "cat", "/up", "/went") == "up\nwent"
    d("rm", "-f", c)
    d.assert_idle()


# --- user namespaces ------------------------------------------------------------------------------


def test_containers_in_a_user_namespace(new_docker, scratch):
    """userns-remap: what they make belongs, on disk, to the ids that their users have outside."""
    first = SUBORDINATE.first_sub
    d = new_docker("r", flags=[f"--userns-remap={SUBORDINATE.name}"])
    context = make_context(scratch)
    with (context / "Containerfile").open("a") as f:
        f.write("RUN chown 1000:1000 /old/keep/f4; chmod 6755 /old/set; rm -rf /old/go/deep\n")
    d.build("remapped", context)
    look = "cat /proc/self/uid_map; stat -c '%n %u %g %a' /old/keep/f4 /old/set; ls /old/go"
    said = d.sh("remapped", look).splitlines()
    assert said[0].split() == ["0", str(first), "65536"]
    assert said[1:3] == ["/old/keep/f4 1000 1000 644", "/old/set 0 0 6755"]
    assert said[3:] == [f"f{n}" for n in range(5)]
    script = "touch /mine; chown 7:8 /mine; sleep 1000"
    c = d("run", "-d", "--net=none", "remapped", "sh", "-ec", script)
    (point,) = d.mounts()
    assert point.startswith(f"{d.data}/{first}.{first}/fuse-overlayfs/")
    mine = Path(point).parent / "diff" / "mine"
    wait_for(lambda: mine.exists() and mine.stat().st_uid == first + 7, 20, "the file's owner")
    d("exec", c, "rm", "/old/set")
    d("rm", "-f", c)
    d.assert_idle()


@pytest.mark.limit(200)
def test_a_users_own_docker_builds_the_same_image(new_docker, context, built):
    """Rootless: daemon, containers and the server live in the user's namespaces."""
    d = new_docker("u", user=SUBORDINATE)
    d.build("built", context)
    lines = layers.image_differences(built, d.saved("built"))
    assert not lines, "\n".join(lines)
    script = "head -n 1 /proc/mounts; cat /proc/self/uid_map; rm -r /w/f; mkdir /w/f; ls -A /w/f"
    mount, *map_lines = d.sh("built", script).splitlines()
    assert mount.startswith("fuse-overlayfs / fuse.fuse-overlayfs rw,")
    assert [line.split() for line in map_lines] == [
        ["0", str(SUBORDINATE.uid), "1"],
        ["1", str(SUBORDINATE.first_sub), "65536"],
    ]
