# SPDX-License-Identifier: MIT
"""Redirects and metacopies of an ordinary user, whom modes forbid to read his own marks."""

import errno
import os

import pytest
from plyfs_testlib import append, mkdir, names, opened, raises, read, write

pytestmark = pytest.mark.unprivileged("modes bind nobody else")
ON = "metacopy=on"
DATA = b"0123456789" * 2000


def is_metacopy(union, name):
    """Whether the mark is there; the mode may forbid to read it."""
    return "user.overlay.metacopy" in os.listxattr(union.upper / name)


@pytest.mark.parametrize("mode", [0, 0o200, 0o400, 0o111, 0o600], ids=oct)
def test_metacopy_of_a_file_with_little_rights(union, mode):
    write(union.lower() / "d" / "f", DATA)
    mkdir(union.lower() / "e")
    m = union.mount(ON)
    os.chmod(m / "d" / "f", mode)
    assert is_metacopy(union, "d/f")
    union.remount()
    st = os.stat(m / "d" / "f")
    assert (st.st_mode & 0o777, st.st_size) == (mode, len(DATA))
    os.rename(m / "d" / "f", m / "e" / "g")
    union.remount()
    assert names(m / "e") == ["g"]
    os.link(m / "e" / "g", m / "h")
    union.remount()
    assert os.stat(m / "h").st_mode & 0o777 == mode
    assert is_metacopy(union, "h")
    if not mode & 0o400:
        with raises(errno.EACCES):
            read(m / "h")
    os.truncate(m / "h", 5000) if mode & 0o200 else None
    os.chmod(m / "h", 0o600)
    assert read(m / "h") == (DATA[:5000] if mode & 0o200 else DATA)
    append(m / "h", b"+")
    assert not is_metacopy(union, "h")
    assert read(m / "e" / "g") == (DATA[:5000] if mode & 0o200 else DATA) + b"+"
    os.unlink(m / "h")


@pytest.mark.parametrize("mode", [0, 0o222, 0o555, 0o311], ids=oct)
def test_renamed_directory_with_little_rights(union, mode):
    write(union.lower(1) / "d" / "f1", "1")
    write(union.lower(0) / "d" / "f0", "0")
    m = union.mount(ON)
    os.rename(m / "d", m / "e")
    os.chmod(m / "e", mode)
    union.remount()
    assert names(m) == ["e"]
    assert os.stat(m / "e").st_mode & 0o777 == mode
    os.rename(m / "e", m / "e2")
    union.remount()
    os.chmod(m / "e2", 0o755)
    assert names(m / "e2") == ["f0", "f1"]
    assert read(m / "e2" / "f1") == b"1"
    os.chmod(m / "e2", mode)
    union.remount()
    os.chmod(m / "e2", 0o755)
    os.unlink(m / "e2" / "f0")
    os.unlink(m / "e2" / "f1")
    os.chmod(m / "e2", mode)
    union.remount()
    os.rmdir(m / "e2")
    union.remount()
    assert names(m) == []


def test_write_only_file_gets_its_data(union):
    write(union.lower() / "f", DATA)
    m = union.mount(ON)
    os.chmod(m / "f", 0o200)
    with opened(m / "f", os.O_WRONLY) as fd:
        os.pwrite(fd, b"x", 0)
    assert not is_metacopy(union, "f")
    assert os.stat(m / "f").st_mode & 0o777 == 0o200
    os.chmod(m / "f", 0o600)
    assert read(m / "f") == b"x" + DATA[1:]
