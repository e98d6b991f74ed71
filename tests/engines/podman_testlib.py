# SPDX-License-Identifier: MIT
"""podman and buildah on a store of their own, of root or of one of the world's users."""

import contextlib
import json
import os
import signal
from pathlib import Path

import layers
from engines_testlib import (
    BASE,
    command,
    daemons_of,
    environment,
    mounts_below,
    processes,
    unmount_below,
)
from plyfs_testlib import remove_tree, wait_for

STORAGE = """\
[storage]
driver = "overlay"
graphroot = "{graph}"
runroot = "{run}"
[storage.options.overlay]
{overlay}
"""

CONTAINERS = """\
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "{runtime}"
[network]
network_backend = "netavark"
[containers]
netns = "none"
default_ulimits = ["nofile=1024:4096", "nproc=1024:4096"]
"""


class Engine:
    """podman and buildah on a store of their own; close() takes it away with all that lives in it.

    mount_program=None: on the kernel's overlay driver. user: one of the world's users, else root.
    """

    def __init__(self, base, user=None, mount_program=None, runtime="runc", overlay=()):
        self.base = Path(base)
        self.user = user
        self.runtime = runtime
        home = self.base / "home"
        # sockets below it: their paths may have 107 characters
        self.runtime_dir = Path("/run/user", self.base.name)
        # a user who is not root has no choice of the store's place by graphroot
        self.graph = home / ".local/share/containers/storage" if user else self.base / "graph"
        for path, mode in ((self.base, 0o755), (home, 0o700), (self.runtime_dir, 0o700)):
            path.mkdir(exist_ok=True, parents=True)
            path.chmod(mode)
            if user:
                os.chown(path, user.uid, user.uid)
        self.storage, containers = self.base / "storage.conf", self.base / "containers.conf"
        self.use(mount_program, overlay)
        containers.write_text(CONTAINERS.format(runtime=runtime))
        self.home = home
        self.env = environment(
            home,
            self.runtime_dir,
            {
                "CONTAINERS_STORAGE_CONF": os.fspath(self.storage),
                "CONTAINERS_CONF": os.fspath(containers),
                "USER": user.name if user else "root",
                # what the engine keeps outside of its store
                "XDG_CONFIG_HOME": os.fspath(home / ".config"),
            },
        )

    def use(self, mount_program=None, overlay=()):
        """From now on this mount program, or the kernel's driver, with these options."""
        options = [*overlay]
        if mount_program:
            options.append(f'mount_program = "{mount_program}"')
        self.storage.write_text(
            STORAGE.format(graph=self.graph, run=self.base / "run", overlay="\n".join(options))
        )

    def assert_kernels_driver(self):
        status = self.podman("info", "--format", "{{.Store.GraphStatus}}")
        assert "Native Overlay Diff:true" in status, status

    def run(self, *args, **kw):
        """A command in the engine's environment: its output."""
        return self.complete(*args, **kw).stdout

    def complete(self, *args, **kw):
        kw.setdefault("cwd", self.home)
        return command(args, self.env, self.user, **kw)

    def podman(self, *args, **kw):
        return self.run("podman", *args, **kw)

    def buildah(self, *args, **kw):
        return self.run("buildah", *args, **kw)

    def sh(self, image, script, *options, **kw):
        """podman run --rm of a shell script in an image: its output."""
        return self.podman("run", "--rm", *options, image, "sh", "-ec", script, **kw)

    def unshare(self, *args, **kw):
        """A command where the store's mounts and owners are as the engine sees them."""
        return self.run(*(["podman", "unshare"] if self.user else []), *args, **kw)

    def import_base(self, archive, name=BASE):
        self.podman("import", "-q", archive, name)

    def inspect(self, name, kind="image"):
        return json.loads(self.podman("inspect", "--type", kind, name))[0]

    def store_mounts(self):
        """Overlay mounts of the store, also those in the namespace of a rootless user."""
        out = set()
        for pid in processes():
            for point, kind, _ in mounts_below(self.graph, pid):
                if kind.startswith("fuse.") or kind == "overlay":
                    out.add(point)
        return out

    def assert_idle(self):
        """After everything was unmounted: no daemon of the store is left, and no mount."""
        wait_for(lambda: not daemons_of(self.base), 15, f"the end of {daemons_of(self.base)}")
        assert not self.store_mounts(), f"still mounted: {self.store_mounts()}"

    def remove_containers(self):
        """Again while the engine, which cleans up behind a container's back, is still at it."""
        remove = ["podman", "rm", "--all", "--force", "--time", "0"]
        wait_for(lambda: self.complete(*remove, check=False).returncode == 0, 15, " ".join(remove))
        self.buildah("rm", "--all")

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        try:
            self.close()
        except AssertionError:
            if exception[0] is None:
                raise

    def close(self):
        problems = []
        try:
            self.remove_containers()
            self.podman("image", "unmount", "--all", "--force")
            self.assert_idle()
        except AssertionError as e:
            problems.append(str(e))
        if self.user:
            self.complete("podman", "system", "migrate", check=False)
        self.end_processes()
        unmount_below(self.base)
        remove_tree(self.base)
        remove_tree(self.runtime_dir)
        assert not problems, "\n".join(problems)

    def end_processes(self):
        """Pause processes and whatever a failed test left, by what they say of themselves."""
        mark = os.fsencode(f"CONTAINERS_STORAGE_CONF={self.storage}")
        for pid in processes():
            with contextlib.suppress(OSError):
                if mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                    os.kill(pid, signal.SIGKILL)


def saved_image(engine, name):
    """The layers of an image, the lowest first."""
    archive = engine.home / "image.tar"
    engine.podman("save", "-q", "-o", archive, name)
    try:
        return layers.read_image(archive)
    finally:
        archive.unlink()
