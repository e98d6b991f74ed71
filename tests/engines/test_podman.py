# SPDX-License-Identifier: MIT
"""podman on the mount program, as root and as ordinary users: the life of containers."""

import contextlib
import json
import os
import re
import signal
import tarfile

import engines_testlib as lib
import layers
import pytest
from engines_testlib import BASE
from engines_world import SINGLE, SUBORDINATE
from plyfs_testlib import mkdir, names, remove_tree, wait_for, write
from podman_testlib import Engine, saved_image

KINDS = {
    "root": (None, "runc"),
    "root-crun": (None, "crun"),
    "sub-ids": (SUBORDINATE, "crun"),
    "single-id": (SINGLE, "runc"),
}
engines_of = pytest.mark.parametrize
ALL = engines_of("engine", ["root", "sub-ids", "single-id"], indirect=True)
BOTH_RUNTIMES = engines_of("engine", KINDS, indirect=True)
ROOT_AND_SUB_IDS = engines_of("engine", ["root", "sub-ids"], indirect=True)
SUB_IDS = engines_of("engine", ["sub-ids"], indirect=True)


@pytest.fixture(scope="module")
def engines(program, base_tar):
    """Engines by kind, made when they are first asked for."""
    made = {}

    def get(kind):
        if kind not in made:
            user, runtime = KINDS[kind]
            overlay = ['ignore_chown_errors = "true"'] if user == SINGLE else []
            made[kind] = Engine(lib.settings.scratch / kind, user, program, runtime, overlay)
            made[kind].import_base(base_tar)
        return made[kind]

    with contextlib.ExitStack() as stack:
        yield get
        for engine in made.values():
            stack.callback(engine.close)


@pytest.fixture
def engine(request, engines):
    """An engine without containers; after the test nothing of it is mounted, and no daemon runs."""
    engine = engines(request.param)
    try:
        yield engine
    finally:
        engine.remove_containers()
    engine.assert_idle()


@pytest.fixture
def container(engine):
    """A container that runs and does nothing."""
    return engine.podman("run", "-d", "--name", "c", BASE, "sleep", "1000").strip() and "c"


@pytest.fixture
def folder_of():
    """Makes a directory of an engine's user with one file: what a volume is made of."""

    def make(engine):
        path = engine.home / "folder"
        remove_tree(path)
        owner = engine.user.uid if engine.user else 0
        mkdir(path, uid=owner, gid=owner)
        write(path / "file", "original\n", uid=owner, gid=owner)
        return path

    return make


@pytest.fixture
def folder(engine, folder_of):
    return folder_of(engine)


def files_in(archive):
    with tarfile.open(archive) as tar:
        return {m.name.removeprefix("./"): m for m in tar}


# --- the mount program ----------------------------------------------------------------------------


@ALL
def test_info_shows_the_programs_version(engine, program):
    info = json.loads(engine.podman("info", "--format", "json"))
    shown = info["store"]["graphOptions"]["overlay.mount_program"]
    version = engine.run(program, "--version").splitlines()[0]
    assert shown["Executable"] == str(program)
    assert version.startswith("fuse-overlayfs: version ")
    assert version in shown["Version"]


@ALL
def test_root_is_mounted_as_engines_expect(engine):
    line = engine.sh(BASE, "head -1 /proc/mounts").split()
    assert line[:3] == ["fuse-overlayfs", "/", "fuse.fuse-overlayfs"]
    flags = set(line[3].split(","))
    assert {"rw", "default_permissions", "allow_other", "user_id=0", "group_id=0"} <= flags


def test_program_understands_in_silence_what_engines_ask_for(program, base_tar, scratch, folder_of):
    """Among it "private", "lazytime", "volatile" and nothing: a warning would be at each start."""
    asked, said = scratch / "asked", scratch / "said"
    spy = scratch / "spy"
    write(spy, f'#!/bin/sh\necho "$@" >>{asked}\nexec {program} "$@" 2>>{said}\n', 0o755)
    with Engine(scratch / "e", None, spy, "runc") as engine:
        engine.use(spy, ['mountopt = "nodev,lazytime"'])
        engine.import_base(base_tar)
        engine.sh(BASE, "echo x > /v/x", "-v", f"{folder_of(engine)}:/v:O")
        engine.podman("run", "--name", CHANGED, BASE, "touch", "/x")
        engine.podman("diff", CHANGED)
    words = set(re.split(r"[\s,]", asked.read_text()))
    assert {"volatile", "private", "lazytime", ""} <= words
    assert said.read_text() == ""


# --- containers -----------------------------------------------------------------------------------


@BOTH_RUNTIMES
def test_run_sees_its_own_writes(engine):
    script = "echo new > /etc/new; rm /etc/group; cat /etc/new; ls /etc/group || echo gone"
    assert engine.sh(BASE, script).split() == ["new", "gone"]
    assert engine.sh(BASE, "ls /etc/new || cat /etc/group").startswith("root:")


@BOTH_RUNTIMES
def test_exec_in_a_running_container(engine, container):
    engine.podman("exec", "c", "sh", "-ec", "mkdir /made; echo a > /made/a; mv /made/a /made/b")
    assert engine.podman("exec", "c", "cat", "/made/b") == "a\n"


# podman diff takes a name for the beginning of an image's id where it can
CHANGED = "whose-name-is-no-id"


@ALL
def test_diff_tells_what_changed(engine):
    script = "echo x > /etc/new; rm /etc/group; echo y >> /etc/passwd; chmod 711 /root"
    engine.podman("run", "--name", CHANGED, BASE, "sh", "-ec", script)
    changes = set(engine.podman("diff", CHANGED).splitlines())
    assert {"A /etc/new", "D /etc/group", "C /etc/passwd", "C /etc", "C /root"} <= changes
    assert not [line for line in changes if line[2:].startswith(("/bin/", "/lib", "/usr"))]


@ALL
def test_commit_makes_an_image_of_the_changes(engine):
    script = "rm -rf /usr/sbin /etc/group; mkdir /usr/sbin; echo t > /usr/sbin/tool; ln -s x /link"
    engine.podman("run", "--name", "c", BASE, "sh", "-ec", script)
    engine.podman("commit", "-q", "c", "localhost/committed:1")
    out = engine.sh("localhost/committed:1", "ls /usr/sbin; readlink /link")
    assert out.split() == ["tool", "x"]
    top = saved_image(engine, "localhost/committed:1")[-1]
    assert {"etc/.wh.group", "usr/sbin/.wh.setcap", "usr/sbin/tool", "link"} <= top.keys()
    assert not [path for path in top if path.startswith(("bin/", "lib/"))]
    engine.podman("rmi", "-f", "localhost/committed:1")


@ALL
def test_export_is_the_containers_tree(engine):
    script = "rm /etc/group; mkfifo /fifo; ln /bin/busybox /b"
    engine.podman("run", "--name", "c", BASE, "sh", "-ec", script)
    engine.podman("export", "-o", engine.home / "tree.tar", "c")
    found = files_in(engine.home / "tree.tar")
    assert "etc/group" not in found and found["fifo"].isfifo()
    assert {found["b"].islnk(), found["bin/busybox"].islnk()} == {True, False}


@ALL
def test_cp_in_and_out(engine, container, folder):
    engine.podman("cp", folder, "c:/copied")
    engine.podman("exec", "c", "sh", "-ec", "mv /copied /moved; echo more >> /moved/file")
    engine.podman("cp", "c:/moved", engine.home / "out")
    assert (engine.home / "out/file").read_text() == "original\nmore\n"
    remove_tree(engine.home / "out")


@ALL
def test_read_only_container(engine):
    run = ["run", "--rm", "--read-only", BASE]
    done = engine.complete("podman", *run, "touch", "/x", check=False)
    assert done.returncode == 1 and "Read-only file system" in done.stderr
    assert engine.podman(*run, "cat", "/etc/group").startswith("root:")


@BOTH_RUNTIMES
def test_kept_container_keeps_its_files(engine):
    script = "rm -r /root; echo kept >> /etc/passwd; mkdir /d; mv /etc/group /d/g; ls /d >> /seen"
    again = f"test -e /seen || {{ {script}; }}; echo again >> /seen; exec sleep 1000"
    engine.podman("run", "-d", "--name", "c", BASE, "sh", "-ec", again)
    inside = ["exec", "c", "sh", "-c"]
    for times in (1, 2, 3):
        expected = ["g"] + ["again"] * times
        wait_for(lambda e=expected: engine.podman(*inside, "cat /seen").split() == e)
        assert engine.podman(*inside, "tail -1 /etc/passwd") == "kept\n"
        assert engine.podman(*inside, "ls -d /root /etc/group; ls /d").split() == ["g"]
        engine.podman("stop", "-t", "0", "c")
        engine.assert_idle()
        engine.podman("start", "c")


@ROOT_AND_SUB_IDS
def test_write_through_a_hard_link_is_kept(engine):
    """The image has /h/f and /h/a, one file: the write goes to the name it was made to."""
    script = "mkdir /h; echo one > /h/f; ln /h/f /h/a; ln /h/f /h/g"
    engine.podman("run", "--name", "c", BASE, "sh", "-ec", script)
    engine.podman("commit", "-q", "c", "localhost/linked:1")
    script = "test -e /done || { echo two >> /h/f; touch /done; }; cat /h/f"
    engine.podman("run", "--name", "d", "localhost/linked:1", "sh", "-ec", script)
    assert engine.podman("start", "-a", "d") == "one\ntwo\n"


@ROOT_AND_SUB_IDS
def test_container_survives_the_death_of_its_daemon(engine, container):
    engine.podman("exec", "c", "sh", "-ec", "echo kept > /kept; rm /etc/group; sync")
    (daemon,) = lib.daemons_of(engine.base)
    os.kill(daemon, signal.SIGKILL)
    engine.complete("podman", "stop", "-t", "0", "c", check=False)
    engine.podman("start", "c")
    assert engine.podman("exec", "c", "cat", "/kept") == "kept\n"
    assert engine.complete("podman", "exec", "c", "ls", "/etc/group", check=False).returncode


@ROOT_AND_SUB_IDS
def test_many_containers_of_one_image(engine):
    names = [f"c{i}" for i in range(6)]
    for name in names:
        script = f"echo {name} > /me; exec sleep 1000"
        engine.podman("run", "-d", "--name", name, BASE, "sh", "-c", script)
    assert len(engine.store_mounts()) == len(names)
    for name in names:
        wait_for(lambda n=name: engine.podman("exec", n, "cat", "/me").strip() == n)


# --- volumes, images, root file systems -----------------------------------------------------------


@ALL
def test_overlay_volume_leaves_its_source_alone(engine, folder):
    script = "echo changed > /v/file; echo new > /v/new; cat /v/file; rm /v/file; ls /v"
    out = engine.sh(BASE, script, "-v", f"{folder}:/v:O")
    assert out.split() == ["changed", "new"]
    assert names(folder) == ["file"] and (folder / "file").read_text() == "original\n"


@ROOT_AND_SUB_IDS
def test_overlay_volume_with_an_upper_of_its_own(engine, folder):
    upper, work = engine.home / "upper", engine.home / "work"
    for path in (upper, work):
        path.mkdir()
        if engine.user:
            os.chown(path, engine.user.uid, engine.user.uid)
    volume = f"{folder}:/v:O,upperdir={upper},workdir={work}"
    engine.sh(BASE, "echo first > /v/new; rm /v/file", "-v", volume)
    assert engine.sh(BASE, "ls /v; cat /v/new", "-v", volume).split() == ["new", "first"]
    assert (folder / "file").read_text() == "original\n"


@ALL
def test_rootfs_as_an_overlay(engine):
    tree = engine.home / "rootfs"
    engine.unshare("cp", "-dR", "--preserve=mode", lib.settings.scratch / "base", tree)
    script = "echo new > /new; rm /etc/group; ls -a / | grep -c new"
    out = engine.podman("run", "--rm", "--rootfs", f"{tree}:O", "sh", "-ec", script)
    assert out == "1\n"
    assert (tree / "etc/group").exists() and not (tree / "new").exists()
    engine.unshare("rm", "-rf", tree)


@ALL
def test_image_mount_shows_the_image(engine):
    script = f'm=$(podman image mount {BASE}); ls "$m/etc"; touch "$m/x" || echo refused'
    out = engine.unshare("sh", "-ec", f"{script}; podman image unmount {BASE} >/dev/null")
    assert {"group", "passwd", "refused"} <= set(out.split())


@ROOT_AND_SUB_IDS
def test_image_as_a_volume(engine):
    mount = f"type=image,src={BASE},dst=/image,rw=true"
    script = "rm /image/etc/group; echo new > /image/etc/new; ls /image/etc"
    assert {"new", "passwd"} <= set(engine.sh(BASE, script, "--mount", mount).split())
    assert "group" in engine.sh(BASE, "ls /etc").split()


@ROOT_AND_SUB_IDS
def test_container_mounted_beside_its_life(engine):
    engine.podman("create", "--name", "c", BASE, "cat", "/etc/new")
    script = 'm=$(podman mount c); echo made-outside > "$m/etc/new"; podman unmount c >/dev/null'
    engine.unshare("sh", "-ec", script)
    engine.assert_idle()
    assert engine.podman("start", "-a", "c") == "made-outside\n"


# --- owners ---------------------------------------------------------------------------------------

OWNERS = "touch /tmp/mine; stat -c '%u:%g %n' /etc/passwd /bin/busybox /tmp/mine"


@SUB_IDS
def test_keep_id(engine):
    out = engine.sh(BASE, f"id -u; {OWNERS}", "--userns=keep-id").split("\n")
    uid = engine.user.uid
    assert out[:-1] == [f"{uid}", "0:0 /etc/passwd", "0:0 /bin/busybox", f"{uid}:{uid} /tmp/mine"]


def test_uidmap_of_root(engines, base_tar, program):
    """The engine mounts lower layers idmapped and gives a mapping, too: the first is off here."""
    with Engine(lib.settings.scratch / "uidmap", None, program, "runc") as engine:
        write(engine.base / "run/overlay/idmapped-lower-dir-false")
        engine.import_base(base_tar)
        mapped = ["--uidmap=0:200000:65536", "--gidmap=0:300000:65536"]
        script = f"{OWNERS}; chown 12:34 /etc/passwd; stat -c %u:%g /etc/passwd"
        out = engine.sh(BASE, script, *mapped).split("\n")
        assert out[:-1] == ["0:0 /etc/passwd", "0:0 /bin/busybox", "0:0 /tmp/mine", "12:34"]
        script = "touch /new; chown 5:6 /new"
        engine.podman("run", "--name", "c", *mapped, BASE, "sh", "-ec", script)
        engine.podman("commit", "-q", "c", "localhost/mapped:1")
        top = saved_image(engine, "localhost/mapped:1")[-1]
        assert (top["new"].uid, top["new"].gid) == (5, 6)
        assert not [path for path in top if path.startswith("bin/")]


@SUB_IDS
def test_uidmap_of_a_user(engine):
    mapped = ["--uidmap=0:1:1000", "--uidmap=1000:0:1", "--gidmap=0:1:1000", "--gidmap=1000:0:1"]
    out = engine.sh(BASE, OWNERS, *mapped).split("\n")
    assert out[:-1] == ["0:0 /etc/passwd", "0:0 /bin/busybox", "0:0 /tmp/mine"]


# --- images of many layers ------------------------------------------------------------------------

MANY = 120


def many_layers(base_tar, archive):
    """An image of 120 layers: each adds a file, and deletes or changes one of another layer."""
    directory = lib.settings.scratch / "many"
    directory.mkdir()
    names = ["base.tar"]
    (directory / "base.tar").symlink_to(base_tar)
    for i in range(1, MANY):
        top = directory / f"{i}"
        (top / "n").mkdir(parents=True)
        (top / f"n/{i}").write_text(f"{i}\n")
        (top / "n/all").write_text(f"up to {i}\n")
        if i % 3 == 0:
            (top / f"n/.wh.{i - 1}").touch()
        lib.pack(top, directory / f"{i}.tar")
        names.append(f"{i}.tar")
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [layers.digest(directory / n) for n in names]},
    }
    (directory / "config.json").write_text(json.dumps(config))
    manifest = [{"Config": "config.json", "RepoTags": ["localhost/many:1"], "Layers": names}]
    (directory / "manifest.json").write_text(json.dumps(manifest))
    members = ["config.json", "manifest.json", *names]
    lib.command(["tar", "-C", directory, "-chf", archive, *members], os.environ)


@pytest.fixture(scope="module")
def many(base_tar):
    archive = lib.settings.scratch / "many.tar"
    many_layers(base_tar, archive)
    return archive


@ROOT_AND_SUB_IDS
def test_image_of_many_layers(engine, many):
    engine.podman("load", "-q", "-i", many)
    script = "cat /n/all; ls /n | wc -l; cat /n/1; echo x >> /n/1; cat /n/1"
    out = engine.sh("localhost/many:1", script)
    gone = len(range(3, MANY, 3))
    assert out.split("\n")[:-1] == [f"up to {MANY - 1}", str(MANY - gone), "1", "1", "x"]
    engine.podman("rmi", "localhost/many:1")
