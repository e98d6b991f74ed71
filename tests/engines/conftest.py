# SPDX-License-Identifier: MIT
"""Container engines on plyfs: options, and the world in which a run happens.

  --plyfs PATH            the program under test (default: build/plyfs of this tree)
  --mount-program PATH    another program in its place, to test the tests

A run has mount, process and cgroup namespaces of its own, and a cgroup in every hierarchy. Users,
devices and directories which engines use whatever they are told (/run, /tmp, /etc/containers) are
its own, too. Its first process takes everything with it when it ends, so nothing can stay behind:
no mount, no daemon, no pause process, no cgroup, no user.
"""

import os
import shutil
import signal
import sys
import tempfile
import traceback
from pathlib import Path

import pytest

HERE = os.path.dirname(__file__)
sys.path[:0] = [HERE, os.path.join(HERE, "../integration")]
import engines_testlib as lib  # noqa: E402
import engines_world as world  # noqa: E402
from plyfs_testlib import remove_tree, wait_for_child  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
DEFAULT_LIMIT = 120  # seconds a test may take


def pytest_addoption(parser):
    group = parser.getgroup("plyfs")
    group.addoption("--plyfs", default=os.environ.get("PLYFS", str(ROOT / "build" / "plyfs")))
    group.addoption("--mount-program", help="test this program instead of plyfs")


def pytest_configure(config):
    config.addinivalue_line("markers", "limit(seconds): the time this test may take")


# --- the run --------------------------------------------------------------------------------------


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    """Go on in a world of its own; this process stays outside to clean up."""
    if config.option.help or config.option.version:
        return None
    if os.geteuid() != 0:
        raise pytest.UsageError("the tests of engines start as root")
    scratch = Path(tempfile.mkdtemp(prefix="plyfs-engines.", dir="/var/tmp"))
    scratch.chmod(0o711)
    sys.stdout.flush()
    first = os.fork()
    if first == 0:
        try:
            install_program(config, scratch / "bin")
            if not world.enter(scratch):
                os._exit(world.end_status())
        except BaseException:
            traceback.print_exc()
            os._exit(3)
        lib.settings.scratch = scratch
        lib.settings.program = scratch / "bin" / "fuse-overlayfs"
        return None
    try:
        return wait_for_child(first)
    finally:
        world.remove_cgroups(scratch.name)
        remove_tree(scratch)


def install_program(config, directory):
    """As people install it: a link named fuse-overlayfs, first in PATH."""
    directory.mkdir()
    other = config.option.mount_program
    copy = directory / ("fuse-overlayfs" if other else "plyfs")
    shutil.copy(other or config.option.plyfs, copy)
    copy.chmod(0o755)
    if not other:
        (directory / "fuse-overlayfs").symlink_to("plyfs")


def pytest_report_header(config):
    return f"engines on {config.option.mount_program or config.option.plyfs}"


# --- fixtures -------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def time_limit(request):
    """Ends a test that takes too long: its mounts are aborted, so whatever it waits for fails."""
    mark = request.node.get_closest_marker("limit")
    seconds = mark.args[0] if mark else DEFAULT_LIMIT

    def over(signum, frame):
        lib.abort_mounts(lib.settings.scratch)
        raise TimeoutError(f"not done within {seconds} s: its mounts were aborted")

    previous = signal.signal(signal.SIGALRM, over)
    signal.alarm(seconds)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)


@pytest.fixture(scope="session")
def program():
    """The mount program: a link named fuse-overlayfs in a directory of its own."""
    return lib.settings.program


@pytest.fixture
def scratch():
    """A temporary directory of the test, which every user may enter."""
    base = Path(tempfile.mkdtemp(dir=lib.settings.scratch, prefix="t."))
    base.chmod(0o755)
    yield base
    lib.unmount_below(base)
    remove_tree(base)


@pytest.fixture(scope="session")
def base_tar():
    """A root file system of busybox and a few tools, as an archive that engines import."""
    tree = lib.settings.scratch / "base"
    lib.make_base_tree(tree)
    return lib.pack(tree, lib.settings.scratch / "base.tar")
