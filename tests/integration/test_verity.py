# SPDX-License-Identifier: MIT
"""-o verity=: the fs-verity digest that a metacopy holds of its data.

Where the kernel has fs-verity the digests are real ones. Elsewhere features_shim.c answers in its
place, and the kernel's overlayfs is compared with for what has no digest.
"""

import errno
import hashlib
import os
import subprocess
from pathlib import Path

import plyfs_testlib as lib
import pytest
from plyfs_testlib import append, opened, raises, read, write

pytestmark = pytest.mark.root("trusted xattrs hold the marks")

SHA256, SHA512 = 1, 2
SEAL = "trusted.test-verity"


@pytest.fixture(scope="module")
def shim(tmp_path_factory):
    """The environment in which files have digests."""
    library = tmp_path_factory.mktemp("shim") / "features_shim.so"
    source = Path(__file__).with_name("features_shim.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source], check=True, timeout=60)
    asan = lib.settings.sanitizer_env.get("ASAN_OPTIONS", "")
    return {"LD_PRELOAD": str(library), "ASAN_OPTIONS": f"{asan}:verify_asan_link_order=0"}


def digest_of(data, algorithm=SHA256):
    return (hashlib.sha256 if algorithm == SHA256 else hashlib.sha512)(data).digest()


def seal(path, algorithm=SHA256):
    os.setxattr(path, SEAL, bytes([algorithm]) + digest_of(read(path), algorithm))


def mark(digest=b"", algorithm=SHA256, version=0, length=None, flags=0):
    """The value of a metacopy xattr."""
    if not digest:
        return b""
    length = 4 + len(digest) if length is None else length
    return bytes([version, length, flags, algorithm]) + digest


def mount(union, options, env=None, upper=True, data=()):
    """As Union.mount(), in an environment, with data-only layers."""
    if lib.settings.impl == "kernel":
        assert not data
        return union.mount(options, upper=upper)
    union.last_upper = union.upper if upper else None
    union.last_options = options
    where = (union.upper, union.work) if upper else (None, None)
    lowers = union.lowers
    mounted = lib.mount_plyfs(lowers, *where, union.point, options, env=env or {})
    union.mounts.append(mounted)
    union.mounted = mounted
    return union.point


DATA = b"the data\n"
OTHER = b"not that\n"


def metacopy_layer(union, value, data=DATA):
    """An upper metacopy of a lower file."""
    write(union.lower() / "f", data)
    path = write(union.upper / "f")
    os.truncate(path, len(data))
    os.setxattr(path, union.prefix + "metacopy", value)
    os.setxattr(path, union.prefix + "origin", b"")


def outcome(m):
    """What reading says: the data, or the errno of open(2)."""
    os.lstat(m / "f")  # is there in any case
    try:
        with opened(m / "f", os.O_RDONLY) as fd:
            return os.read(fd, 100)
    except OSError as e:
        return errno.errorcode[e.errno]


RIGHT = mark(digest_of(DATA))
MARKS = {
    "none": b"",
    "right": RIGHT,
    "of-other-data": mark(digest_of(OTHER)),
    "other-algorithm": mark(digest_of(DATA), SHA512),
    "cut": mark(digest_of(DATA)[:-1]),
    "header-only": bytes([0, 4, 0, SHA256]),
    "with-flags": mark(digest_of(DATA), flags=3),
}
ACCEPTED = ("right", "with-flags")  # as long as the data has that digest
EMPTY = ("none", "header-only")  # no digest at all


@pytest.mark.plyfs_only("needs the shim")
@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize("verity", ["off", "on", "require"])
@pytest.mark.parametrize("which", MARKS)
def test_data_is_shown_when_its_digest_is_right(union, shim, which, verity, sealed):
    metacopy_layer(union, MARKS[which])
    if sealed:
        seal(union.lower() / "f")
    m = mount(union, f"metacopy=on,verity={verity}", shim)
    if verity == "off":
        wanted = DATA
    elif which in EMPTY:
        wanted = DATA if verity == "on" else "EIO"
    else:
        wanted = DATA if sealed and which in ACCEPTED else "EIO"
    assert outcome(m) == wanted
    assert outcome(m) == wanted  # the second time too


@pytest.mark.parametrize("verity", ["off", "on", "require"])
@pytest.mark.parametrize("which", [*MARKS, "short", "version", "length", "long"])
def test_without_fs_verity_the_kernel_says_the_same(union, which, verity):
    bad = {
        "short": b"\0\3\0",
        "version": mark(digest_of(DATA), version=1),
        "length": mark(digest_of(DATA), length=35),
        "long": mark(b"x" * 65),
    }
    metacopy_layer(union, {**MARKS, **bad}[which])
    union.check_kernel = False

    def verdict():
        try:
            return outcome(union.point)
        except OSError as e:
            return "lookup: " + errno.errorcode[e.errno]

    found = {}
    for impl in ("plyfs", "kernel"):
        union.mount(f"metacopy=on,verity={verity}", impl=impl)
        found[impl] = verdict()
        union.umount()
    assert found["plyfs"] == found["kernel"]


@pytest.mark.opens
@pytest.mark.parametrize("verity", ["on", "require"])
def test_every_way_to_the_data_is_barred(union, verity):
    metacopy_layer(union, mark(digest_of(OTHER)) if verity == "on" else b"")
    union.check_kernel = False
    m = union.mount(f"metacopy=on,verity={verity}")
    for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_APPEND,
                  os.O_WRONLY | os.O_TRUNC):
        with raises(errno.EIO):
            os.close(os.open(m / "f", flags))
    with raises(errno.EIO):
        os.truncate(m / "f", 0)
    # not even what leaves the data alone
    for change in (
        lambda: os.chmod(m / "f", 0o640),
        lambda: os.rename(m / "f", m / "g"),
        lambda: os.link(m / "f", m / "g"),
    ):
        with raises(errno.EIO):
            change()
    os.setxattr(m / "f", "user.x", b"y")
    assert os.stat(m / "f").st_size == len(DATA)
    os.unlink(m / "f")


@pytest.mark.plyfs_only("needs the shim")
@pytest.mark.parametrize("algorithm", [SHA256, SHA512])
@pytest.mark.parametrize("verity", ["off", "on", "require"])
def test_digest_is_stored_when_attributes_are_copied(union, shim, verity, algorithm):
    write(union.lower() / "f", DATA)
    write(union.lower() / "plain", DATA)
    seal(union.lower() / "f", algorithm)
    m = mount(union, f"metacopy=on,verity={verity}", shim)
    os.chmod(m / "f", 0o640)
    os.chmod(m / "plain", 0o640)
    wanted = b"" if verity == "off" else mark(digest_of(DATA, algorithm), algorithm)
    assert union.overlay_xattr(union.upper / "f", "metacopy") == wanted
    # what has no digest is copied whole where one is required
    assert union.overlay_xattr(union.upper / "plain", "metacopy") == (
        None if verity == "require" else b"")
    assert read(m / "f") == read(m / "plain") == DATA
    append(m / "f", b"+")
    assert union.overlay_xattr(union.upper / "f", "metacopy") is None
    assert read(m / "f") == DATA + b"+"


@pytest.mark.plyfs_only("needs the shim")
def test_digest_stored_here_is_checked_after_a_remount(union, shim):
    write(union.lower() / "f", DATA)
    seal(union.lower() / "f")
    m = mount(union, "metacopy=on,verity=on", shim)
    os.chmod(m / "f", 0o640)
    union.umount()
    # lower is exchanged for something else of the same size
    write(union.lower() / "f", OTHER)
    union.check_lowers = False
    seal(union.lower() / "f")
    mount(union, "metacopy=on,verity=on", shim)
    assert outcome(m) == "EIO"
    union.umount()
    mount(union, "metacopy=on", shim)
    assert outcome(m) == OTHER


def image(union, digest):
    """A lower metacopy, and its data in a data-only layer."""
    lower, objects = union.lower(0), union.lower(1)
    data = write(objects / "ab/cdef", DATA)
    path = write(lower / "f")
    os.truncate(path, len(DATA))
    os.setxattr(path, union.prefix + "metacopy", mark(digest))
    os.setxattr(path, union.prefix + "redirect", b"/ab/cdef")
    return data


def mount_image(union, options, env, upper=False):
    where = f",upperdir={union.upper},workdir={union.work}" if upper else ""
    data = f"lowerdir={union.lower(0)}::{union.lower(1)}{where},{options}"
    before = set(lib.children())
    done = lib.run_plyfs("mount", "-o", data, union.point, env=env)
    assert done.returncode == 0, done.stderr
    mounted = lib.Mount(union.point, "plyfs")
    mounted.daemon = lib.adopt_daemon(before)
    union.mounts.append(mounted)
    return union.point


@pytest.mark.plyfs_only("needs the shim")
@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize("verity", ["off", "on", "require"])
def test_data_only_layers_are_checked(union, shim, verity, sealed):
    data = image(union, digest_of(DATA))
    if sealed:
        seal(data)
    m = mount_image(union, f"verity={verity}", shim)
    assert outcome(m) == (DATA if sealed or verity == "off" else "EIO")


@pytest.mark.plyfs_only("needs the shim")
def test_a_lower_metacopy_is_checked_before_it_is_copied_up(union, shim):
    union.check_lowers = False
    data = image(union, digest_of(DATA))
    m = mount_image(union, "verity=on,metacopy=on", shim, upper=True)
    for change in (lambda: os.chmod(m / "f", 0o600), lambda: append(m / "f", b"+"),
                   lambda: os.rename(m / "f", m / "g")):
        with raises(errno.EIO):
            change()
    assert not lib.exists(union.upper / "f")
    seal(data)
    os.chmod(m / "f", 0o600)
    assert union.overlay_xattr(union.upper / "f", "metacopy") == mark(digest_of(DATA))
    assert outcome(m) == DATA


# --- with fs-verity itself -------------------------------------------------------------------------

FS_IOC_ENABLE_VERITY, FS_IOC_MEASURE_VERITY = 0x40806685, 0xC0046686


def seal_for_real(path):
    """fs-verity's own seal; returns what it measures, in the form of a mark."""
    import fcntl
    import struct

    argument = struct.pack("=IIII", 1, SHA256, 4096, 0).ljust(128, b"\0")
    with opened(path, os.O_RDONLY) as fd:
        fcntl.ioctl(fd, FS_IOC_ENABLE_VERITY, argument)
        answer = fcntl.ioctl(fd, FS_IOC_MEASURE_VERITY, struct.pack("=HH", 0, 64) + b"\0" * 64)
    algorithm, size = struct.unpack_from("=HH", answer)
    return mark(answer[4 : 4 + size], algorithm)


@pytest.fixture
def verity_disk(scratch):
    if not os.path.exists("/proc/sys/fs/verity") and not os.path.exists(
        "/sys/fs/ext4/features/verity"
    ):
        pytest.skip("this kernel has no fs-verity")
    with lib.loop_filesystem(scratch, "ext4", 64 * lib.MIB, ["-O", "verity"]) as disk:
        yield disk


@pytest.mark.parametrize("verity", ["on", "require"])
def test_sealed_files_go_both_ways(verity_disk, new_union, verity):
    union = new_union("u", base=verity_disk)
    write(union.lower() / "f", DATA)
    wanted = seal_for_real(union.lower() / "f")
    m = union.mount(f"metacopy=on,verity={verity}")
    os.chmod(m / "f", 0o640)
    assert union.overlay_xattr(union.upper / "f", "metacopy") == wanted
    for impl in ("plyfs", "kernel"):
        union.remount(impl=impl)
        assert outcome(m) == DATA
    union.umount()
    os.unlink(union.lower() / "f")
    write(union.lower() / "f", OTHER)
    union.check_lowers = False
    for sealed in (False, True):
        if sealed:
            seal_for_real(union.lower() / "f")
        for impl in ("plyfs", "kernel"):
            union.mount(f"metacopy=on,verity={verity}", impl=impl)
            assert outcome(m) == "EIO", (sealed, impl)
            union.umount()
    union.close()
