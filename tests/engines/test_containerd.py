# SPDX-License-Identifier: MIT
"""containerd: the mounts of its fuse-overlayfs snapshotter, and a container on one of them.

The snapshotter is a plugin that distributions do not package. What it asks of the mount program is
done here as containerd does it: a mount of type fuse3.fuse-overlayfs is made by mount.fuse3, with
one -o for each option, and its layers lie in snapshots/N/fs and snapshots/N/work.
"""

import os
import shutil
import subprocess
import threading

import engines_testlib as lib
import plyfs_testlib as base
import pytest
from engines_testlib import command
from plyfs_testlib import MNT_DETACH, assert_same_tree, remove_tree, sys_umount, wait_for

CONFIG = """\
version = 2
root = "{base}/root"
state = "{base}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]
[grpc]
  address = "{base}/sock"
"""


def environment():
    return lib.environment("/root", "/run")


# --- what containerd does -------------------------------------------------------------------------


def mount(target, options):
    """core/mount: mountWithHelper"""
    argv = ["mount.fuse3", "overlay", target]
    for option in options:
        argv += ["-o", option]
    p = command([*argv, "-t", "fuse-overlayfs"], environment(), cwd="/")
    assert (p.stdout, p.stderr) == ("", "")


def is_mounted(target):
    return [m for m in lib.mounts_below(target) if m[0] == str(target)]


def unmount(target):
    """core/mount: the helper where the mount table says "fuse."."""
    found = is_mounted(target)
    assert len(found) == 1 and found[0][1].startswith("fuse.")
    command(["fusermount3", "-u", target], environment())
    assert not is_mounted(target)


def unmount_by_system_call(target, flags):
    """What it falls back on, and the shim does: umount2, again as long as it is busy."""
    busy = []

    def done():
        try:
            sys_umount(target, flags)
            return True
        except OSError as e:
            assert e.errno == base.errno.EBUSY, e
            busy.append(e)
            return False

    wait_for(done, 10, "umount2")
    return len(busy)


class Snapshotter:
    """The directories of the fuse-overlayfs snapshotter, and the mounts that it hands out."""

    def __init__(self, root, labels=()):
        self.root, self.labels, self.count = root, list(labels), 0
        (root / "snapshots").mkdir(parents=True)
        root.chmod(0o700)

    def path(self, number, name="fs"):
        return self.root / "snapshots" / str(number) / name

    def prepare(self, parents):
        """(number, options) of a new active snapshot; without parents it is a bind mount of fs."""
        self.count += 1
        self.path(self.count).mkdir(parents=True)
        self.path(self.count, "work").mkdir(mode=0o711)
        if parents:
            owner = os.stat(self.path(parents[0]))
            os.chown(self.path(self.count), owner.st_uid, owner.st_gid)
        return self.count, self.active(self.count, parents)

    def active(self, number, parents):
        own = [f"workdir={self.path(number, 'work')}", f"upperdir={self.path(number)}"]
        return [*own, *self.lower(parents)]

    def lower(self, parents):
        return ["lowerdir=" + ":".join(str(self.path(p)) for p in parents), *self.labels]

    def remove(self, number):
        shutil.rmtree(self.path(number).parent)


@pytest.fixture
def snapshotter(scratch):
    return Snapshotter(scratch / "io.containerd.snapshotter.v1.fuse-overlayfs")


@pytest.fixture
def target(scratch):
    (scratch / "target").mkdir()
    return scratch / "target"


# --- the snapshotter ------------------------------------------------------------------------------


def test_the_feature_probe(scratch):
    """Supported(): two lower layers without an upper, really mounted, else there is no plugin."""
    for name in ("lower1", "lower2", "merged"):
        (scratch / name).mkdir(mode=0o755)
    mount(scratch / "merged", [f"lowerdir={scratch}/lower2:{scratch}/lower1"])
    unmount(scratch / "merged")
    lib.assert_nothing_lives(scratch)


LAYERS = 20


def change(root, n):
    """What the layer number n does, to the union and to a plain directory alike."""
    own, log, d = root / "own", root / "log", root / "d"
    own.mkdir(exist_ok=True)
    (own / f"{n}").write_text(f"{n}\n")
    with log.open("a") as f:
        f.write(f"{n}\n")
    if n > 1:
        (own / f"{n - 1}").rename(own / f"was-{n - 1}")
    if n > 2:
        (own / f"was-{n - 2}").unlink()
    if n % 3 == 0:  # a new directory in the place of what was there
        remove(d)
        d.mkdir()
        for i in range(3):
            (d / f"{n}-{i}").touch()
    if n % 5 == 0:
        remove(d)
        d.write_text("file")
    if n % 4 == 0:
        log.chmod(0o600 + n)
        os.chown(own, n, n + 1)
        os.setxattr(log, "user.n", b"%d" % n)
    if n % 4 == 1:
        (root / f"link-{n}").symlink_to("log")
        os.link(own / f"{n}", root / f"hard-{n}")
        os.mkfifo(root / f"fifo-{n}")
    if n % 7 == 0:
        for path in root.glob("link-*"):
            path.unlink()


def remove(path):
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def shown(root):
    """Of a tree all but times, and links, which copying up breaks."""
    tree = base.tree(root, times=False)
    for entry in tree.values():
        entry.pop("nlink", None)
    return tree


def test_twenty_layers(snapshotter, target, scratch):
    """Prepare, mount, change, unmount, commit; and again on top of that. Each has its views."""
    plain = base.mkdir(scratch / "plain", mode=0o755)
    first, _ = snapshotter.prepare([])
    for root in (snapshotter.path(first), plain):
        change(root, 0)
    parents = [first]
    for n in range(1, LAYERS):
        number, options = snapshotter.prepare(parents)
        mount(target, options)
        for root in (target, plain):
            change(root, n)
        assert_same_tree(shown(target), shown(plain), f"layer {n}", "plain directory")
        unmount(target)
        parents = [number, *parents]
        if n % 5 == 4:
            mount(target, snapshotter.lower(parents))
            assert_same_tree(shown(target), shown(plain), f"view of {n}", "plain directory")
            with pytest.raises(OSError, match="Read-only"):
                (target / "x").touch()
            unmount(target)
    lib.assert_nothing_lives(scratch)
    # containerd's own snapshotter, on the kernel's overlayfs, would go on with these layers
    (lower,) = snapshotter.lower(parents)
    base.sys_mount("overlay", target, "overlay", base.MS_RDONLY, lower)
    try:
        assert_same_tree(shown(target), shown(plain), "kernel", "plain directory")
    finally:
        sys_umount(target)


def test_an_active_snapshot_is_mounted_again(snapshotter, target):
    """A container that is stopped and started; Mounts() gives the same words each time."""
    first, _ = snapshotter.prepare([])
    (snapshotter.path(first) / "f").write_text("lower")
    number, options = snapshotter.prepare([first])
    for n in range(4):
        mount(target, options)
        assert os.listdir(target) == (["f"] if n == 0 else [f"f{n - 1}"])
        (target / ("f" if n == 0 else f"f{n - 1}")).rename(target / f"f{n}")
        unmount(target)
    snapshotter.remove(number)
    lib.assert_nothing_lives(snapshotter.root)


def test_two_containers_of_one_image_do_not_see_each_other(snapshotter, scratch):
    first, _ = snapshotter.prepare([])
    (snapshotter.path(first) / "f").write_text("lower")
    targets = [base.mkdir(scratch / name) for name in ("one", "two")]
    for t in targets:
        mount(t, snapshotter.prepare([first])[1])
    (targets[0] / "f").write_text("changed")
    (targets[0] / "new").touch()
    assert (targets[1] / "f").read_text() == "lower" and os.listdir(targets[1]) == ["f"]
    for t in targets:
        unmount(t)


def test_labels_map_owners(snapshotter, target):
    """containerd.io/snapshot/uidmapping: ids on disk, ids shown, how many."""
    first, _ = snapshotter.prepare([])
    base.write(snapshotter.path(first) / "f", b"f", uid=0, gid=7)
    snapshotter.labels += ["uidmapping=0:100000:65536", "gidmapping=0:200000:65536"]
    number, options = snapshotter.prepare([first])
    mount(target, options)
    st = os.stat(target / "f")
    assert (st.st_uid, st.st_gid) == (100000, 200007)
    os.chown(target / "f", 100001, 200001)
    unmount(target)
    st = os.stat(snapshotter.path(number) / "f")
    assert (st.st_uid, st.st_gid) == (1, 1)


def test_unmounting_by_system_call(snapshotter, target):
    """Where fusermount3 is missing; and MNT_DETACH, by which the shim ends a container's mounts."""
    first, _ = snapshotter.prepare([])
    (snapshotter.path(first) / "f").write_text("lower")
    _, options = snapshotter.prepare([first])
    mount(target, options)
    with (target / "f").open("a") as f:
        closer = threading.Timer(0.3, f.close)
        closer.start()
        assert unmount_by_system_call(target, 0) > 0
        closer.join()
    lib.assert_nothing_lives(snapshotter.root)
    mount(target, options)
    with (target / "f").open("a") as f:
        assert unmount_by_system_call(target, MNT_DETACH) == 0
        f.write("late")
    wait_for(lambda: not lib.daemons_of(target), 15, "the end of the daemon")
    assert (snapshotter.path(2) / "f").read_text() == "lowerlate"


def test_unmount_all_takes_away_a_stack(snapshotter, target):
    first, _ = snapshotter.prepare([])
    _, options = snapshotter.prepare([first])
    mount(target, options)
    _, options = snapshotter.prepare([first])
    mount(target, options)
    while is_mounted(target):
        command(["fusermount3", "-u", target], environment())
    lib.assert_nothing_lives(snapshotter.root)


def test_a_failed_mount_says_why_and_mounts_nothing(snapshotter, target):
    """containerd shows the helper's output in its error."""
    options = ["lowerdir=" + ":".join(str(snapshotter.path(n)) for n in (7, 8))]
    argv = ["mount.fuse3", "overlay", target, "-o", *options, "-t", "fuse-overlayfs"]
    p = command(argv, environment(), check=False)
    assert p.returncode != 0 and str(snapshotter.path(7)) in p.stderr
    assert not is_mounted(target)


# --- containerd -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def containerd():
    """A daemon, and its client ctr with all that a container needs but the image: ctr(*words)."""
    where = base.mkdir(lib.settings.scratch / "containerd")
    (where / "config.toml").write_text(CONFIG.format(base=where))
    env = {**environment(), "CONTAINERD_ADDRESS": f"{where}/sock"}
    with (where / "log").open("ab") as log:
        process = subprocess.Popen(
            ["containerd", "-c", where / "config.toml"],
            env=env,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )

    def ctr(*words, **kw):
        return command(["ctr", *words], env, **kw)

    try:
        wait_for(lambda: ctr("version", check=False).returncode == 0, 30, "an answer of containerd")
        yield ctr
    finally:
        process.terminate()
        process.wait(30)
        lib.unmount_below(where)
        remove_tree(where)


@pytest.fixture
def root(program, scratch, base_tar):
    """A system on a union, mounted as the snapshotter mounts it."""
    for name in ("lower", "upper", "work", "root"):
        (scratch / name).mkdir(mode=0o755)
    command(["tar", "-C", scratch / "lower", "-xpf", base_tar], environment())
    options = [f"workdir={scratch}/work", f"upperdir={scratch}/upper", f"lowerdir={scratch}/lower"]
    mount(scratch / "root", options)
    yield scratch / "root"
    unmount(scratch / "root")
    lib.assert_nothing_lives(scratch)


RUN = ["run", "--env", "PATH=/usr/sbin:/bin"]


def test_a_container_on_a_union(containerd, root, scratch):
    script = "rm -r /etc; mkdir /etc; echo new > /etc/new; mv /bin/true /bin/yes2; cat /proc/mounts"
    p = containerd(*RUN, "--rm", "--rootfs", root, "c1", "/bin/sh", "-ec", script)
    assert p.stdout.startswith("fuse-overlayfs / fuse.fuse-overlayfs ")
    assert os.listdir(root / "etc") == ["new"]
    assert (scratch / "upper/etc/new").read_text() == "new\n"
    # a second container on what the first left
    script = "ls /etc; test ! -e /bin/true; test -e /bin/yes2"
    p = containerd(*RUN, "--rm", "--rootfs", root, "c2", "/bin/sh", "-ec", script)
    assert p.stdout == "new\n"


def test_exec_in_a_container_on_a_union(containerd, root):
    containerd(*RUN, "-d", "--rootfs", root, "c3", "/bin/sleep", "1000")
    try:
        script = "echo x > /x; cat /x"
        p = containerd("t", "exec", "--exec-id", "e", "c3", "/bin/sh", "-ec", script)
        assert p.stdout == "x\n"
        assert (root / "x").read_text() == "x\n"
    finally:
        containerd("t", "rm", "-f", "c3")
        containerd("c", "rm", "c3")


def test_a_read_only_container_on_a_union(containerd, root):
    words = [*RUN, "--rm", "--read-only", "--rootfs", root, "c4"]
    p = containerd(*words, "/bin/sh", "-c", "touch /x", check=False)
    assert "Read-only file system" in p.stderr
