# SPDX-License-Identifier: MIT
"""metacopy=on: attributes that are copied up without the data."""

import errno
import os
import threading

import plyfs_testlib as lib
import pytest
from plyfs_testlib import blocks, opened, raises, read, write

pytestmark = pytest.mark.root("trusted xattrs hold the marks")
ON = "metacopy=on"
DATA = bytes(range(256)) * 400
OLD = 1_000_000_000_000_000_000


def everywhere(union, check):
    check(union.point)
    union.remount()
    check(union.point)
    union.remount(impl="kernel" if lib.settings.impl == "plyfs" else "plyfs")
    check(union.point)
    union.remount()


def is_metacopy(union, name):
    return union.overlay_xattr(union.upper / name, "metacopy") is not None


def acl(path):
    os.setxattr(path, "system.posix_acl_access", lib.acl(6, 4, 4, users=[(1, 6)], mask=6))


CHANGES = {
    "chmod": lambda path: os.chmod(path, 0o600),
    "chown": lambda path: os.chown(path, 1, 1),
    "utimes": lambda path: os.utime(path, ns=(OLD, OLD)),
    "setxattr": lambda path: os.setxattr(path, "user.x", b"y"),
    "acl": acl,
    "link": lambda path: os.link(path, str(path) + ".link"),
    "chattr": lambda path: lib.set_flags(path, lib.get_flags(path) | 0x80),
}


@pytest.mark.parametrize("change", CHANGES)
def test_attributes_are_copied_without_data(union, change):
    write(union.lower() / "f", DATA)
    m = union.mount(ON)
    CHANGES[change](m / "f")
    assert is_metacopy(union, "f")
    assert blocks(union.upper / "f") < len(DATA) // 2  # perhaps a block of xattrs
    assert os.stat(union.upper / "f").st_size == len(DATA)
    assert blocks(m / "f") == blocks(union.lower() / "f")

    def check(point):
        assert read(point / "f") == DATA
        assert os.stat(point / "f").st_size == len(DATA)

    everywhere(union, check)


def test_without_it_the_data_comes_along(union):
    write(union.lower() / "f", DATA)
    m = union.mount()
    os.chmod(m / "f", 0o600)
    assert not is_metacopy(union, "f")
    assert read(union.upper / "f") == DATA


@pytest.mark.opens
@pytest.mark.parametrize(
    "flags", [os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_APPEND], ids=["wr", "rdwr", "append"]
)
def test_open_for_writing_copies_the_data(union, flags):
    write(union.lower() / "f", DATA, mtime=OLD)
    m = union.mount(ON)
    os.chmod(m / "f", 0o640)
    with opened(m / "f", flags):
        pass
    assert not is_metacopy(union, "f")
    assert read(union.upper / "f") == DATA
    if lib.settings.impl == "plyfs":  # nothing was written; the kernel sets the time all the same
        assert os.stat(m / "f").st_mtime_ns == OLD
    with opened(m / "f", flags) as fd:
        os.write(fd, b"new")

    def check(point):
        data = read(point / "f")
        assert data == (DATA + b"new" if flags & os.O_APPEND else b"new" + DATA[3:])
        assert os.stat(point / "f").st_mode & 0o777 == 0o640

    everywhere(union, check)


@pytest.mark.parametrize("size", [0, 1, 5000, len(DATA), len(DATA) + 5000])
def test_truncate(union, size):
    write(union.lower() / "f", DATA)
    m = union.mount(ON)
    os.chmod(m / "f", 0o640)
    os.truncate(m / "f", size)
    assert not is_metacopy(union, "f")
    everywhere(union, lambda point: read(point / "f") == DATA[:size].ljust(size, b"\0")
               or pytest.fail("other data"))


def test_truncate_at_open(union):
    write(union.lower() / "f", DATA)
    m = union.mount(ON)
    os.chmod(m / "f", 0o640)
    write(m / "f", "short")
    assert not is_metacopy(union, "f")
    everywhere(union, lambda point: read(point / "f") == b"short" or pytest.fail("other data"))


@pytest.mark.opens
def test_capabilities_and_set_id_bits_survive_the_data(union):
    capability = bytes.fromhex("0100000200200000000000000000000000000000")
    write(union.lower() / "f", DATA)
    os.chown(union.lower() / "f", 1, 1)
    os.chmod(union.lower() / "f", 0o6755)
    os.setxattr(union.lower() / "f", "security.capability", capability)
    m = union.mount(ON)
    os.utime(m / "f", ns=(OLD, OLD))
    assert is_metacopy(union, "f")
    with opened(m / "f", os.O_WRONLY):
        pass
    assert not is_metacopy(union, "f")

    def check(point):
        st = os.stat(point / "f")
        assert st.st_mode & 0o7777 == 0o6755
        assert (st.st_uid, st.st_gid) == (1, 1)
        assert os.getxattr(point / "f", "security.capability") == capability

    everywhere(union, check)


def test_fd_opened_before_sees_what_is_written_later(union):
    write(union.lower() / "f", DATA)
    m = union.mount(ON)
    with opened(m / "f", os.O_RDONLY) as fd:
        os.chmod(m / "f", 0o600)
        assert os.pread(fd, 4, 0) == DATA[:4]
        with opened(m / "f", os.O_WRONLY) as out:
            assert os.pread(fd, 4, 0) == DATA[:4]
            os.pwrite(out, b"new!", 0)
        assert os.pread(fd, 4, 0) == b"new!"


def test_rename_and_link_lead_to_the_data(union):
    write(union.lower() / "d" / "f", DATA)
    write(union.lower() / "g", b"g" + DATA)
    m = union.mount(ON)
    os.chmod(m / "d" / "f", 0o600)
    os.rename(m / "d" / "f", m / "d" / "f2")
    assert union.overlay_xattr(union.upper / "d" / "f2", "redirect") == b"f"
    os.rename(m / "d" / "f2", m / "f3")
    assert union.overlay_xattr(union.upper / "f3", "redirect") == b"/d/f"
    os.link(m / "g", m / "d" / "g2")
    assert union.overlay_xattr(union.upper / "g", "redirect") == b"/g"
    os.rename(m / "d", m / "e")
    write(m / "g3", "over")
    os.rename(m / "g", m / "g3")

    def check(point):
        assert read(point / "f3") == DATA
        assert read(point / "g3") == b"g" + DATA
        assert read(point / "e" / "g2") == b"g" + DATA
        assert os.stat(point / "g3").st_ino == os.stat(point / "e" / "g2").st_ino
        assert os.stat(point / "g3").st_nlink == 2

    everywhere(union, check)
    lib.append(m / "g3", b"!")
    assert read(m / "e" / "g2") == b"g" + DATA + b"!"


def test_lower_hard_link_gets_a_path(union):
    write(union.lower() / "a", DATA)
    os.link(union.lower() / "a", union.lower() / "b")
    m = union.mount(ON)
    os.chmod(m / "a", 0o600)
    os.rename(m / "a", m / "c")
    assert union.overlay_xattr(union.upper / "c", "redirect") == b"/a"

    def check(point):
        assert read(point / "c") == DATA
        assert read(point / "b") == DATA
        assert os.stat(point / "b").st_mode & 0o777 == 0o644

    everywhere(union, check)


def test_below_a_renamed_directory(union):
    write(union.lower(1) / "d" / "f", DATA)
    write(union.lower(0) / "d" / "g", DATA)
    m = union.mount(ON)
    os.rename(m / "d", m / "e")
    os.chmod(m / "e" / "f", 0o600)
    os.rename(m / "e" / "f", m / "moved")
    assert union.overlay_xattr(union.upper / "moved", "redirect") == b"/d/f"
    os.chmod(m / "e" / "g", 0o600)

    def check(point):
        assert read(point / "moved") == DATA
        assert read(point / "e" / "g") == DATA

    everywhere(union, check)


def test_chain_of_metacopies_through_layers(union, new_union):
    """What one mount left is a lower layer of the next, three times."""
    write(union.lower() / "d" / "f", DATA)
    layers = [union.lower()]
    expected = "d/f"
    for round_, impl in enumerate(["kernel", "plyfs", "kernel", "plyfs"]):
        u = new_union(f"round{round_}")
        for number, layer in enumerate(layers):
            u.use_lower(number, layer)
        m = u.mount(ON, impl=impl)
        assert read(m / expected) == DATA
        os.chmod(m / expected, 0o600 + round_)
        os.rename(m / expected, m / f"f{round_}")
        expected = f"f{round_}"
        assert read(m / expected) == DATA
        u.umount()
        assert is_metacopy(u, expected)
        layers.insert(0, u.upper)
    u = new_union("last")
    for number, layer in enumerate(layers):
        u.use_lower(number, layer)
    m = u.mount(ON)
    with opened(m / expected, os.O_RDWR) as fd:
        os.pwrite(fd, b"w", 0)
    assert not is_metacopy(u, expected)
    everywhere(u, lambda point: read(point / expected) == b"w" + DATA[1:] or pytest.fail("data"))


def test_metacopy_layer_without_the_option_is_refused(union):
    write(union.lower() / "f", DATA)
    m = union.mount(ON)
    os.chmod(m / "f", 0o600)
    for impl in ("plyfs", "kernel"):
        union.remount(impl=impl, options="metacopy=off")
        with raises(errno.EPERM):
            os.stat(m / "f")


def test_metacopy_without_data_is_eio(union):
    write(union.lower() / "g")
    write(union.upper / "f", xattrs={union.prefix + "metacopy": b""})
    union.check_kernel = False
    for impl in ("plyfs", "kernel"):
        if union.mounts:
            union.umount()
        m = union.mount(ON, impl=impl)
        with raises(errno.EIO):
            os.stat(m / "f")


def test_unlinked_metacopy_keeps_its_data(union):
    write(union.lower() / "f", DATA)
    m = union.mount(ON)
    os.chmod(m / "f", 0o600)
    with opened(m / "f", os.O_RDWR) as fd:
        pass
    os.unlink(m / "f")
    write(m / "f", "another")
    write(union.upper / "dummy")
    assert read(m / "f") == b"another"


def test_unlinked_while_open_is_written(union):
    write(union.lower() / "f", DATA)
    m = union.mount(ON)
    os.chmod(m / "f", 0o600)
    with opened(m / "f", os.O_RDONLY) as fd:
        os.unlink(m / "f")
        assert os.pread(fd, len(DATA), 0) == DATA
        with opened(f"/proc/self/fd/{fd}", os.O_RDWR) as again:
            os.pwrite(again, b"x", 0)
            assert os.pread(fd, len(DATA), 0) == b"x" + DATA[1:]


def test_many_writers_copy_the_data_once(union):
    data = os.urandom(3 << 20)
    write(union.lower() / "f", data)
    m = union.mount(ON)
    os.chmod(m / "f", 0o644)
    errors = []

    def writer(n):
        try:
            with opened(m / "f", os.O_RDWR) as fd:
                os.pwrite(fd, bytes([n]), n)
        except OSError as e:
            errors.append(e)

    threads = [threading.Thread(target=writer, args=(n,)) for n in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not errors
    everywhere(union, lambda point: read(point / "f") == bytes(range(8)) + data[8:]
               or pytest.fail("other data"))


def test_fsync_of_a_metacopy(union):
    write(union.lower() / "f", DATA)
    m = union.mount(ON)
    os.chmod(m / "f", 0o600)
    with opened(m / "f", os.O_RDONLY) as fd:
        os.fsync(fd)
    assert is_metacopy(union, "f")


def test_holes_of_a_metacopy_are_those_of_its_data(union):
    with opened(union.lower() / "f", os.O_RDWR | os.O_CREAT) as fd:
        os.pwrite(fd, b"x" * 4096, 1 << 20)
        os.truncate(fd, 2 << 20)
    m = union.mount(ON)
    os.chmod(m / "f", 0o600)
    with opened(m / "f", os.O_RDONLY) as fd:
        assert os.lseek(fd, 0, os.SEEK_DATA) == 1 << 20
        assert os.lseek(fd, 1 << 20, os.SEEK_HOLE) == (1 << 20) + 4096
    with opened(m / "f", os.O_RDWR) as fd:
        pass
    assert blocks(union.upper / "f") <= 16384
