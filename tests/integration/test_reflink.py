# SPDX-License-Identifier: MIT
"""Copy-up where files can share their data (XFS, btrfs): nothing is copied.

XFS writes shared data before it shares it, and logs that and the new name in this order: a crash
shows the name with all of the data, or does not show it. So nothing is synced there, but on btrfs,
whose log for an fsync of the directory has the name and not the data.
"""

import os
import re
import signal
import subprocess

import crash
import plyfs_testlib as lib
import pytest
from plyfs_testlib import KIB, append, read, write

pytestmark = pytest.mark.root("mounts a filesystem")

SIZE = 300 * KIB + 7


@pytest.fixture(scope="module")
def xfs(tmp_path_factory):
    with lib.loop_filesystem(tmp_path_factory.mktemp("reflink"), "xfs") as point:
        yield point


@pytest.fixture(scope="module")
def btrfs(tmp_path_factory):
    with lib.loop_filesystem(tmp_path_factory.mktemp("reflink"), "btrfs") as point:
        yield point


def calls_of(union, operation):
    """What the server calls meanwhile, in order: fsync, renameat2, FICLONE and so on."""
    log = union.base / "calls"
    tracer = crash.trace(union.daemon, ["-o", str(log)])
    operation(union.point)
    tracer.send_signal(signal.SIGINT)
    tracer.wait(10)
    tracer.stderr.close()
    calls = []
    for line in log.read_text(errors="replace").splitlines():
        call = re.match(r"\d+ +(\w+)\(", line)
        if call and call[1] in ("fsync", "fdatasync", "renameat2", "copy_file_range"):
            calls.append(call[1])
        elif call and call[1] == "ioctl" and "FICLONE" in line:
            calls.append("FICLONE")
    return calls


@pytest.mark.plyfs_only("system calls of the server")
def test_shared_data_is_synced_on_btrfs(new_union, btrfs):
    """Its log may say that a file is there without what is in it."""
    union = new_union("synced", base=btrfs)
    write(union.lower() / "f", os.urandom(SIZE))
    union.mount()
    assert calls_of(union, lambda m: append(m / "f", b"more")) == ["FICLONE", "fsync", "renameat2"]
    union.close()


@pytest.mark.plyfs_only("the kernel's overlayfs loses the data")
def test_a_synced_directory_shows_whole_copies_after_a_crash(new_union, tmp_path):
    """What the disk holds when an fsync of the directory has returned, mounted after a crash."""
    image, again = tmp_path / "btrfs.img", tmp_path / "again"
    sizes = {"large": 3000 * KIB + 5, "inline": 300}
    with lib.loop_filesystem(tmp_path, "btrfs") as point:
        union = new_union("crash", base=point)
        for name, size in sizes.items():
            write(union.lower() / "d" / name, os.urandom(size))
        lib.mkdir(union.upper / "d")
        subprocess.run(["sync", "-f", point], check=True, timeout=60)
        union.mount()
        for name in sizes:
            os.chmod(union.point / "d" / name, 0o600)
        fd = os.open(union.point / "d", os.O_RDONLY | os.O_DIRECTORY)
        os.fsync(fd)
        os.close(fd)
        subprocess.run(["cp", "--sparse=always", image, tmp_path / "crashed.img"], check=True)
        upper, lower = union.upper.relative_to(point), union.lower().relative_to(point)
        union.close()
    again.mkdir()
    subprocess.run(["mount", "-o", "loop", tmp_path / "crashed.img", again], check=True, timeout=60)
    try:
        assert sorted(os.listdir(again / upper / "d")) == sorted(sizes)
        for name in sizes:
            assert read(again / upper / "d" / name) == read(again / lower / "d" / name), name
    finally:
        subprocess.run(["umount", again], check=True, timeout=60)


@pytest.mark.plyfs_only("system calls of the server")
@pytest.mark.parametrize(
    "options, calls",
    [
        ("", ["FICLONE", "renameat2"]),
        ("fsync=strict", ["FICLONE", "fsync", "renameat2"]),
    ],
)
def test_shared_data_is_not_synced(new_union, xfs, options, calls):
    union = new_union(f"u{len(options)}", base=xfs)
    data = os.urandom(SIZE)
    write(union.lower() / "f", data)
    union.mount(options)
    assert calls_of(union, lambda m: append(m / "f", b"more")) == calls
    assert read(union.point / "f") == data + b"more"
    assert read(union.upper / "f") == data + b"more"
    union.close()


@pytest.mark.plyfs_only("system calls of the server")
def test_the_data_of_a_metacopy_is_shared(new_union, xfs):
    union = new_union("meta", base=xfs)
    data = os.urandom(SIZE)
    write(union.lower() / "f", data)
    union.mount("metacopy=on")
    os.chmod(union.point / "f", 0o600)
    assert calls_of(union, lambda m: append(m / "f", b"more")) == ["FICLONE"]
    assert read(union.point / "f") == data + b"more"
    union.close()


@pytest.mark.parametrize("length", [0, 1, 4096, SIZE - 1, SIZE + 5000])
def test_a_file_cut_while_it_is_shared(new_union, xfs, length):
    union = new_union(f"cut{length}", base=xfs)
    data = os.urandom(SIZE)
    write(union.lower() / "f", data)
    m = union.mount()
    os.truncate(m / "f", length)
    assert read(m / "f") == (data + bytes(5000))[:length]
    assert read(union.lower() / "f") == data
    union.remount()
    assert os.stat(m / "f").st_size == length
    union.close()
