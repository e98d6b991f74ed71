# SPDX-License-Identifier: MIT
"""Docker's daemon, with a graph driver of choice, in a directory of its own; and its clients."""

import os
import signal
import subprocess
from pathlib import Path

from engines_testlib import BASE, command, daemons_of, environment, mounts_below, unmount_below
from layers import read_image
from plyfs_testlib import remove_tree, wait_for

DOCKER, DOCKERD = "/usr/bin/docker", "/usr/sbin/dockerd"

# Docker is told to leave the network alone.
FLAGS = """--iptables=false --ip6tables=false --bridge=none --ip-forward=false --ip-masq=false
    --userland-proxy=false --default-ulimit nofile=1024:4096""".split()


# A user's daemon runs in namespaces of its own, as dockerd-rootless.sh makes them.
ROOTLESS = """rootlesskit --net=host --copy-up=/etc --copy-up=/run --propagation=rslave""".split()
ROOTLESS += ["sh", "-c", 'rm -f /run/docker /run/containerd; exec "$@"', "sh"]


class Docker:
    """The driver fuse-overlayfs runs the program of that name in PATH: the one under test."""

    def __init__(self, base, driver="fuse-overlayfs", flags=(), user=None):
        self.base, self.driver, self.flags = Path(base), driver, list(flags)
        self.user = user
        self.base.mkdir()
        if user:
            os.chown(self.base, user.uid, user.uid)
            self.flags += ["--rootless"]
        self.data = self.base / "data"
        self.socket = f"unix://{self.base}/sock"
        self.env = environment(self.base, self.base, {"DOCKER_HOST": self.socket})
        self.env["DOCKER_BUILDKIT"] = "0"
        self.env["TMPDIR"] = str(self.base)  # containerd leaves its stacks there when it is killed
        self.process = None

    def start(self):
        argv = [*(ROOTLESS if self.user else []), DOCKERD, f"--storage-driver={self.driver}"]
        argv += [f"--data-root={self.data}"]
        argv += [f"--exec-root={self.base}/exec", f"--pidfile={self.base}/pid"]
        log = self.base / "log"
        identity = {}
        if self.user:
            uid = self.user.uid
            identity = {"user": uid, "group": uid, "extra_groups": []}
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                [*argv, "-H", self.socket, *FLAGS, *self.flags],
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
                **identity,
            )

        def answers():
            assert self.process.poll() is None, f"dockerd ended:\n{log.read_text()[-2000:]}"
            return self.complete("version", check=False).returncode == 0

        wait_for(answers, 30, f"an answer of dockerd:\n{log.read_text()[-2000:]}")
        return self

    def stop(self, sig=signal.SIGTERM):
        process, self.process = self.process, None
        if process:
            process.send_signal(sig)
            process.wait(30)

    def close(self):
        try:
            if self.process and self.process.poll() is None:
                containers = self("ps", "-aq").split()
                if containers:
                    self("rm", "-f", *containers)
                self.assert_idle()
        finally:
            self.stop()
            unmount_below(self.base)
            remove_tree(self.base)

    def __call__(self, *args, **kw):
        """A client: its output, stripped."""
        return self.complete(*args, **kw).stdout.strip()

    def complete(self, *args, **kw):
        return command([DOCKER, *args], self.env, self.user, **kw)

    def sh(self, image, script, *options):
        """What a container of its own prints."""
        return self("run", "--rm", "--net=none", *options, image, "sh", "-ec", script)

    def build(self, tag, context):
        """By the Containerfile of a directory."""
        file = context / "Containerfile"
        return self("build", "--network=none", "-t", tag, "-f", file, context, timeout=150)

    def import_base(self, archive):
        self("import", archive, BASE)

    def saved(self, tag):
        """The layers of an image."""
        archive = self.base / "saved.tar"
        self("save", "-o", archive, tag)
        return read_image(archive)

    def mounts(self):
        """Mountpoints of the driver."""
        kinds = ("fuse.fuse-overlayfs", "overlay")
        return [point for point, kind, _ in mounts_below(self.data) if kind in kinds]

    def assert_idle(self):
        wait_for(lambda: not daemons_of(self.data), 15, f"the end of {daemons_of(self.data)}")
        assert self.mounts() == []


def architecture():
    """As images name it."""
    machine = os.uname().machine
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)
