# SPDX-License-Identifier: MIT
"""Options and fixtures of the integration tests.

  --plyfs PATH            the program under test (default: build/plyfs of this tree)
  --impl plyfs|kernel     kernel: run the same tests on the kernel's overlayfs, to test the tests
  --backing disk|tmpfs    where the layers lie
  --full                  larger numbers in the tests of bounds
  PLYFS_IO=cached|passthrough, PLYFS_WRITEBACK=0
                          how every mount of the run gets at data
  PLYFS_LEVEL=root|userns|user
                          as root, as root of a user namespace, as an ordinary user

The whole run happens in a child process with a mount namespace of its own: whatever goes wrong, no
mount is left behind, and nothing outside a temporary directory is touched.
"""

import contextlib
import os
import shutil
import signal
import stat
import sys
import tempfile
import traceback
from pathlib import Path

import pytest

sys.path.insert(0, os.path.dirname(__file__))
import plyfs_testlib as lib  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
DEFAULT_LIMIT = 60  # seconds a test may take
LEVEL_UID = 54321  # the ordinary user: exists only in the run's mount namespace
SUBORDINATE = 100000  # the first id of the user namespace, outside
CACHE = Path("/var/cache/plyfs-tests")


def pytest_addoption(parser):
    group = parser.getgroup("plyfs")
    group.addoption("--plyfs", default=os.environ.get("PLYFS", str(ROOT / "build" / "plyfs")))
    group.addoption("--impl", choices=["plyfs", "kernel"], default="plyfs")
    group.addoption("--backing", choices=["disk", "tmpfs"], default="disk")
    group.addoption("--full", action="store_true", help="larger numbers in the tests of bounds")


def pytest_configure(config):
    for line in (
        "limit(seconds): the time this test may take",
        "root(why): needs real root",
        "privileged(why): needs root, of a user namespace at least",
        "userns(why): is about root of a user namespace",
        "unprivileged(why): is about an ordinary user",
        "disk(why): needs layers on a disk file system, not on tmpfs",
        "plyfs_only(why): the kernel's overlayfs does otherwise",
        "opens: is about what open(2) answers, which io=cached leaves to the first access",
        "origin: in a user namespace the kernel's overlayfs loses sight of what it copied up",
        "slow: takes more than some seconds",
    ):
        config.addinivalue_line("markers", line)


# --- the namespace of a run -----------------------------------------------------------------------


def write_file(path, text):
    with open(path, "w", encoding="ascii") as f:
        f.write(text)


def prepare_namespace(scratch, level):
    """As root: a private mount namespace with what the level needs."""
    lib.unshare(lib.CLONE_NEWNS)
    lib.sys_mount("none", "/", "", lib.MS_REC | lib.MS_PRIVATE)
    os.makedirs("/sys/fs/fuse/connections", exist_ok=True)
    with contextlib.suppress(OSError):
        lib.sys_mount("fusectl", "/sys/fs/fuse/connections", "fusectl")
    in_memory = os.path.join(scratch, "tmpfs")
    os.mkdir(in_memory)
    lib.sys_mount("tmpfs", in_memory, "tmpfs", 0, "mode=1777")
    if level == "root":
        return
    node = os.path.join(scratch, "fuse")
    st = os.stat("/dev/fuse")
    os.mknod(node, stat.S_IFCHR, st.st_rdev)
    os.chmod(node, 0o666)
    lib.sys_mount(node, "/dev/fuse", "", lib.MS_BIND)
    if level == "user":
        for name, line in (
            ("passwd", f"plyfs-test:x:{LEVEL_UID}:{LEVEL_UID}::/nonexistent:/bin/false\n"),
            ("group", f"plyfs-test:x:{LEVEL_UID}:\n"),
        ):
            copy = os.path.join(scratch, name)
            shutil.copy(f"/etc/{name}", copy)
            with open(copy, "a", encoding="utf-8") as f:
                f.write(line)
            lib.sys_mount(copy, f"/etc/{name}", "", lib.MS_BIND)


def write_maps(pid):
    """65536 ids."""
    write_file(f"/proc/{pid}/uid_map", f"0 {SUBORDINATE} 65536\n")
    write_file(f"/proc/{pid}/gid_map", f"0 {SUBORDINATE} 65536\n")


def enter_level(scratch, level):
    if os.geteuid() != 0:
        raise pytest.UsageError("the integration tests start as root (they drop it themselves)")
    prepare_namespace(scratch, level)
    if level == "userns":
        lib.enter_user_namespace(write_maps)
    elif level == "user":
        lib.drop_privileges(LEVEL_UID, LEVEL_UID, [])
        # a process that changed its ids is not dumpable: /proc/self would belong to root
        lib.check(lib.libc.prctl(4, 1, 0, 0, 0))
    lib.check(lib.libc.prctl(lib.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    """Go on in a child in its own namespaces; the parent stays to clean up."""
    if config.option.help or config.option.version:
        return None
    level = os.environ.get("PLYFS_LEVEL", "root")
    if level not in ("root", "userns", "user"):
        raise pytest.UsageError(f"PLYFS_LEVEL={level}: it is one of root, userns, user")
    scratch = tempfile.mkdtemp(prefix="plyfs-tests.", dir="/var/tmp")
    os.chmod(scratch, 0o711)
    disk = os.path.join(scratch, "disk")
    os.mkdir(disk)
    os.chmod(disk, 0o1777)
    program = copy_program(config.option.plyfs, scratch, config.option.impl == "plyfs")
    lib.check(lib.libc.prctl(lib.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        try:
            enter_level(scratch, level)
        except BaseException:
            traceback.print_exc()
            os._exit(3)
        s = lib.settings
        s.impl, s.level, s.backing = config.option.impl, level, config.option.backing
        s.scratch, s.tmpfs = disk, os.path.join(scratch, "tmpfs")
        s.plyfs = program
        return None
    try:
        status = lib.wait_for_child(pid)
    finally:
        end_orphans()
        lib.remove_tree(scratch)
    return status


def copy_program(path, scratch, needed):
    """A copy of its own for the run, which a build that goes on meanwhile does not replace."""
    copy = os.path.join(scratch, "bin", "plyfs")
    os.mkdir(os.path.dirname(copy))
    try:
        shutil.copy(path, copy)
        os.chmod(copy, 0o755)
    except OSError as e:
        if needed:
            lib.remove_tree(scratch)
            raise pytest.UsageError(f"no program to test at {path}: {e}: build it or give --plyfs")
    return copy


def end_orphans():
    """Daemons that outlived the run became our children, and theirs will."""
    with contextlib.suppress(ChildProcessError):
        while True:
            for pid in lib.children():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            os.wait()


# --- fixtures -------------------------------------------------------------------------------------


def pytest_report_header(config):
    s = lib.settings
    what = "the kernel's overlayfs" if s.impl == "kernel" else config.option.plyfs
    return f"testing {what} as {s.level}, layers on {s.backing}"


def pytest_collection_modifyitems(config, items):
    """What a level or the kernel cannot have by its nature is left out, not skipped."""
    level, impl = lib.settings.level, lib.settings.impl
    keep, out = [], []
    for item in items:
        unfit = (
            (level != "root" and item.get_closest_marker("root"))
            or (level == "user" and item.get_closest_marker("privileged"))
            or (level != "user" and item.get_closest_marker("unprivileged"))
            or (level != "userns" and item.get_closest_marker("userns"))
            or (lib.settings.backing == "tmpfs" and item.get_closest_marker("disk"))
            or (impl == "kernel" and item.get_closest_marker("plyfs_only"))
            or (lib.settings.silent_open and item.get_closest_marker("opens"))
            or (impl == "kernel" and level == "user")
            or (impl == "kernel" and level == "userns" and item.get_closest_marker("origin"))
        )
        (out if unfit else keep).append(item)
    if out:
        config.hook.pytest_deselected(items=out)
        items[:] = keep


@pytest.fixture(scope="session")
def watchdog():
    return lib.Watchdog()


@pytest.hookimpl(tryfirst=True, hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    setattr(item, "report_" + call.when, outcome.get_result())


@pytest.fixture
def scratch(request, watchdog):
    """A temporary directory of the test, where the layers lie; a time limit; sanitizer reports."""
    mark = request.node.get_closest_marker("limit")
    seconds = mark.args[0] if mark else DEFAULT_LIMIT
    if lib.SLOW_BUILD:
        seconds *= 4
    s = lib.settings
    parent = s.tmpfs if s.backing == "tmpfs" else s.scratch
    base = Path(tempfile.mkdtemp(dir=parent, prefix="t."))
    os.chmod(base, 0o755)
    reports = Path(tempfile.mkdtemp(dir=s.scratch, prefix="r."))
    s.sanitizer_env = sanitizer_environment(reports)
    watchdog.unions = []
    watchdog.start(seconds)
    try:
        yield base
    finally:
        watchdog.stop()
        found = sorted(reports.iterdir())
        texts = [f.read_text(errors="replace")[:8000] for f in found]
        lib.remove_tree(base)
        lib.remove_tree(reports)
    assert not watchdog.fired, f"not done within {seconds} s: its mounts were aborted"
    assert not texts, "sanitizer reports:\n" + "\n".join(texts)


def sanitizer_environment(reports):
    out = {}
    for name in ("ASAN", "UBSAN", "TSAN", "LSAN"):
        own = os.environ.get(f"{name}_OPTIONS", "")
        extra = f"log_path={reports}/{name.lower()}"
        if name == "UBSAN":
            extra += ":print_stacktrace=1"
        out[f"{name}_OPTIONS"] = f"{own}:{extra}" if own else extra
    return out


@pytest.fixture
def new_union(request, scratch, watchdog):
    """Makes Unions, which are checked and closed at the end.

    In the test's directory; in base, where the test cleans up; or with where="disk" or "tmpfs" in a
    directory of their own there, which is removed at the end.
    """
    made, owned = [], []

    def make(name="u", base=None, where=None):
        if where:
            parent = lib.settings.tmpfs if where == "tmpfs" else lib.settings.scratch
            base = tempfile.mkdtemp(dir=parent, prefix="o.")
            os.chmod(base, 0o755)
            owned.append(base)
        union = lib.Union(Path(base or scratch) / name)
        made.append(union)
        watchdog.unions.append(union)
        return union

    yield make
    report = getattr(request.node, "report_call", None)
    failed = report is None or report.failed or watchdog.fired
    problems = []
    for union in reversed(made):
        if failed:
            with contextlib.suppress(Exception):
                for mounted in reversed(union.mounts):
                    with contextlib.suppress(OSError):
                        mounted.umount(lazy=True)
            union.force_down()
        else:
            try:
                union.close()
            except AssertionError as e:
                union.force_down()
                problems.append(str(e))
    for base in owned:
        lib.remove_tree(base)
    assert not problems, "\n".join(problems)


@pytest.fixture
def union(new_union):
    """One Union: lower(0), ..., upper, work, mounted by union.mount()."""
    return new_union("u")


def pytest_generate_tests(metafunc):
    if "each_io" not in metafunc.fixturenames:
        return
    s = lib.settings
    both = s.level == "root" and s.impl == "plyfs" and not s.io
    ways = ["passthrough", "cached"] if both else [s.io]
    metafunc.parametrize("each_io", ways, indirect=True)


@pytest.fixture
def each_io(request, monkeypatch):
    """The test runs once for each way that data can take."""
    monkeypatch.setattr(lib.settings, "io", request.param)


@pytest.fixture
def write_through(monkeypatch):
    """Each write(2) reaches the layers before it returns: the test is about its error."""
    monkeypatch.setattr(lib.settings, "writeback", False)


@pytest.fixture
def full(request):
    return request.config.option.full


@pytest.fixture
def cache_dir(scratch):
    """A directory that outlives the run when it may be made: for what is expensive to make."""
    try:
        CACHE.mkdir(exist_ok=True)
        return CACHE
    except OSError:
        return scratch


