# SPDX-License-Identifier: MIT
"""What ends a mount's server and what must not: the caller's session, terminal and process group;
and mounting where the surroundings of a rootless user lack something."""

import contextlib
import os
import pty
import resource
import signal
import subprocess

import plyfs_testlib as lib
import pytest
import rootless
from plyfs_testlib import layer_options, read, write
from test_rootless import Layers, reaped, served, unmount


pytestmark = pytest.mark.plyfs_only("a property of the server")


def adopted(union, before):
    mounted = lib.Mount(union.point, "plyfs")
    mounted.daemon = lib.adopt_daemon(before)
    union.mounts.append(mounted)
    return mounted.daemon


def command(union):
    return [lib.settings.plyfs, "mount", "-o", union_options(union), os.fspath(union.point)]


def union_options(union):
    return layer_options(union.lowers, union.upper, union.work)


def in_shell(union, then):
    """plyfs mount in a shell, and what the shell does then."""
    script = '"$@" || exit; echo mounted; ' + then
    return ["/bin/sh", "-c", script, "sh", *command(union)]


def works(union, text):
    write(union.point / "f", text)
    return read(union.upper / "f") == text.encode()


def test_server_outlives_the_terminal(union):
    """Closing it sends SIGHUP to the session's leader and to what runs in front."""
    write(union.lower() / "f", "low")
    before = set(lib.children())
    pid, terminal = pty.fork()
    if pid == 0:
        try:
            env = {**os.environ, **lib.settings.sanitizer_env}
            os.execve("/bin/sh", in_shell(union, "read line"), env)
        finally:
            os._exit(99)
    try:
        said = b""
        while b"mounted" not in said:
            said += os.read(terminal, 100)
    finally:
        os.close(terminal)
    os.waitpid(pid, 0)
    daemon = adopted(union, before)
    assert os.getsid(daemon.pid) == daemon.pid
    assert works(union, "after the terminal")
    assert daemon.alive()


@pytest.mark.parametrize("sig", [signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_signal_to_the_callers_group_does_not_reach_the_server(union, sig):
    """Ctrl-C in the terminal, timeout(1), a service manager that kills a group."""
    write(union.lower() / "f", "low")
    before = set(lib.children())
    shell = subprocess.Popen(
        in_shell(union, "read line"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, **lib.settings.sanitizer_env},
        start_new_session=True,
        # a shell's jobs in the background ignore SIGINT, and so would all that they start
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    with shell:
        assert shell.stdout.readline() == b"mounted\n"
        os.killpg(shell.pid, sig)
        assert shell.wait(20) == -sig
    daemon = adopted(union, before)
    assert works(union, "after the signal")
    assert daemon.alive()


def test_killed_caller_leaves_a_whole_mount_or_none(union):
    """SIGKILL at any moment. Before the mount is ready nobody would know of it: it goes again."""
    write(union.lower() / "f", "low")
    for i in range(20):
        before = set(lib.children())
        caller = subprocess.Popen(command(union), stderr=subprocess.DEVNULL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            caller.wait(i * 0.001)
        caller.kill()
        caller.wait(20)
        lib.wait_for(
            lambda: is_gone(union, before) or is_whole(union, before), 20, "one or the other"
        )
        # it may go by itself meanwhile
        subprocess.run(["fusermount3", "-u", union.point], stderr=subprocess.DEVNULL, check=False)
        lib.wait_for(lambda: is_gone(union, before), 20, "the end of the mount and its server")


def is_gone(union, before):
    return not lib.find_mount(union.point) and all(
        reaped(pid) for pid in set(lib.children()) - before
    )


def is_whole(union, before):
    """Not one that is about to go: the server leads no pipe to a caller any more."""
    new = [pid for pid in set(lib.children()) - before if not reaped(pid)]
    try:
        return lib.find_mount(union.point) and any(
            not [what for what in lib.Daemon(pid).fds().values() if what.startswith("pipe:")]
            and read(union.point / "f") == b"low"
            for pid in new
        )
    except OSError:
        return False


# --- what a rootless user may lack ----------------------------------------------------------------


@pytest.fixture
def layers(scratch):
    made = Layers(scratch / "l").make()
    write(made.lower / "f", "low", uid=rootless.UID, gid=rootless.UID)
    return made


def run_mount(layers, extra="", env=None):
    return subprocess.run(
        [lib.settings.plyfs, "mount", "-o", layers.options(extra), layers.point],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={**lib.settings.sanitizer_env, **(os.environ if env is None else env)},
    )


def mount_write_unmount(layers, extra="", env=None):
    done = run_mount(layers, extra, env)
    if done.returncode == 0:
        try:
            lib.append(layers.point / "f", b" and more")
        finally:
            unmount(layers)
    return done.returncode, done.stdout + done.stderr


def refused(result, *mentions):
    status, said = result
    assert status != 0
    lines = said.splitlines()
    if lib.SLOW_BUILD:  # a sanitizer has its own things to say of what is missing
        lines = [line for line in lines if line.startswith("plyfs: ")]
    assert len(lines) == 1, said
    for text in mentions:
        assert text in lines[0]


@pytest.mark.root("becomes the users itself")
@pytest.mark.parametrize("kind", rootless.KINDS)
def test_empty_environment(layers, kind):
    """No HOME, no PATH, no XDG_RUNTIME_DIR: nothing is read from there or written to."""
    with served(set(lib.children())):
        assert rootless.run(kind, mount_write_unmount, layers, "", {}) == (0, "")
    assert read(layers.upper / "f") == b"low and more"


@pytest.mark.root("becomes the users itself")
@pytest.mark.parametrize("kind", rootless.KINDS)
def test_few_file_descriptors_to_be_had(layers, kind):
    def limited():
        resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
        return mount_write_unmount(layers)

    with served(set(lib.children())):
        assert rootless.run(kind, limited) == (0, "")
    assert read(layers.upper / "f") == b"low and more"


@pytest.mark.root("becomes the users itself")
@pytest.mark.parametrize("kind", ["subids", "single"])
def test_no_proc_in_a_namespace(layers, kind):
    def hidden():
        lib.sys_mount("tmpfs", "/proc", "tmpfs")
        return mount_write_unmount(layers)

    refused(rootless.run(kind, hidden), "/proc")
    assert os.listdir(layers.upper) == []


@pytest.mark.root("becomes the users itself")
@pytest.mark.parametrize("kind", rootless.KINDS)
def test_device_that_only_root_may_open(layers, kind):
    """/dev/fuse with mode 0600, as in containers that were not given it."""

    def closed():
        return mount_write_unmount(layers)

    refused(rootless.run(kind, closed, device_mode=0o600), "/dev/fuse")


@pytest.mark.root("becomes the users itself")
@pytest.mark.parametrize("allowed", [False, True])
def test_allow_other_of_an_ordinary_user(layers, allowed):
    conf = "user_allow_other\n" if allowed else "# user_allow_other\n"
    result = rootless.run("user", mount_write_unmount, layers, "allow_other", fuse_conf=conf)
    if allowed:
        assert result == (0, "")
    else:
        refused(result, "user_allow_other", "/etc/fuse.conf")


@pytest.mark.root("becomes the users itself")
@pytest.mark.parametrize("kind", ["subids", "single"])
def test_fuse_conf_does_not_bind_root_of_a_namespace(layers, kind):
    result = rootless.run(kind, mount_write_unmount, layers, "allow_other", fuse_conf="\n")
    assert result == (0, "")


@pytest.mark.root("becomes the users itself")
def test_mount_table_of_root_is_not_touched(layers):
    """What a user mounts in his namespace is seen there only, and ends with its server."""
    before = lib.mount_table()

    def leave_mounted():
        done = run_mount(layers)
        return done.returncode, lib.find_mount(layers.point) is not None, lib.children()

    children = set(lib.children())
    status, mounted, _ = rootless.run("single", leave_mounted)
    assert (status, mounted) == (0, True)
    assert lib.mount_table() == before
    daemon = lib.adopt_daemon(children)
    assert daemon.alive()
    daemon.kill(signal.SIGTERM)
    assert daemon.wait() == 0
