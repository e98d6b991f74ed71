# SPDX-License-Identifier: MIT
"""-o xino= and uuid=: numbers of inodes over several filesystems, and what upper remembers."""

import contextlib
import errno
import os
import subprocess

import pytest

import plyfs_testlib as lib
from plyfs_testlib import append, getdents_all, mkdir, write, xattr

UUID = "overlay.uuid"


@contextlib.contextmanager
def squashfs(base, name, fill):
    """A read-only image of what fill() makes."""
    source, image, point = base / f"{name}.dir", base / f"{name}.img", base / name
    source.mkdir()
    point.mkdir()
    fill(source)
    subprocess.run(
        ["mksquashfs", source, image, "-quiet", "-no-progress"],
        check=True, timeout=60, capture_output=True,
    )
    subprocess.run(["mount", "-t", "squashfs", "-o", "loop", image, point], check=True, timeout=60)
    try:
        yield point
    finally:
        subprocess.run(["umount", "-l", point], check=False, timeout=60)


SIZES = {"ext4": 32 * lib.MIB, "xfs": 320 * lib.MIB, "btrfs": 128 * lib.MIB}


def fill_lower(root, n):
    """What all lower layers have, and what this one has."""
    write(root / "dir/common", f"{n}")
    write(root / f"dir/only{n}", f"{n}")
    mkdir(root / f"dir{n}/sub")
    write(root / f"dir{n}/sub/f", f"{n}")
    os.symlink("x", root / f"link{n}")


def fill_upper(root):
    write(root / "dir/up", "up")
    mkdir(root / "updir")


@contextlib.contextmanager
def layers_on(base, kinds, name="l"):
    """One directory a kind of filesystem, topmost first, filled."""
    with contextlib.ExitStack() as stack:
        out = []
        for n, kind in enumerate(kinds):
            where = mkdir(base / f"{name}{n}")
            if kind == "squashfs":
                out.append(stack.enter_context(
                    squashfs(where, "img", lambda root, n=n: fill_lower(root, n))))
                continue
            if kind == "tmpfs":
                fs = stack.enter_context(lib.tmpfs(where))
            elif kind == "same":
                fs = out[-1].parent
            else:
                fs = stack.enter_context(lib.loop_filesystem(where, kind, SIZES[kind]))
            out.append(mkdir(fs / f"layer{n}"))
            fill_lower(out[-1], n)
        yield out


def numbers(m):
    """{path: (st_ino, d_ino)} of everything below a mount, and the one st_dev if there is one."""
    found, devs = {}, set()
    for rel in lib.walk(m):
        path = m / rel
        st = os.lstat(path)
        devs.add(st.st_dev)
        listed = getdents_all(path.parent)[path.name][0] if rel != "." else None
        found[rel] = (st.st_ino, listed)
    return found, devs


LAYOUTS = [
    ("tmpfs", ["ext4", "xfs"]),
    ("ext4", ["squashfs"]),
    ("ext4", ["ext4"]),
    ("ext4", ["ext4", "same"]),
    ("xfs", ["btrfs", "tmpfs", "ext4"]),
    ("btrfs", ["ext4"]),
    (None, ["tmpfs", "ext4"]),
    (None, ["ext4", "squashfs", "xfs"]),
    ("ext4", []),  # and one lower on the same
    (None, ["tmpfs", "same"]),
]


@contextlib.contextmanager
def layout(scratch, new_union, upper_kind, lower_kinds):
    with contextlib.ExitStack() as stack:
        base = scratch
        if upper_kind:
            up = mkdir(scratch / "up")
            base = stack.enter_context(
                lib.tmpfs(up) if upper_kind == "tmpfs"
                else lib.loop_filesystem(up, upper_kind, SIZES[upper_kind]))
        union = new_union("u", base=base)
        if upper_kind:
            fill_upper(union.upper)
        for n, path in enumerate(stack.enter_context(layers_on(scratch, lower_kinds))):
            union.use_lower(n, path)
        if not lower_kinds:
            fill_lower(union.lower(), 0)
        union.check_lowers = union.check_kernel = False
        stack.callback(union.close)
        yield union


@pytest.mark.root("makes filesystems")
@pytest.mark.plyfs_only("compares with it")
@pytest.mark.parametrize("upper, lowers", LAYOUTS, ids=lambda v: v if isinstance(v, str) else None)
def test_numbers_are_those_of_the_kernel_with_xino_on(scratch, new_union, upper, lowers):
    with layout(scratch, new_union, upper, lowers) as union:
        def change():
            if upper:
                append(union.point / "dir/only0", b"+")
                os.chmod(union.point / "dir0/sub", 0o700)
                write(union.point / "dir0/new", "x")

        union.mount("xino=on", upper=bool(upper), impl="kernel")
        before = numbers(union.point)
        change()
        after = numbers(union.point)
        union.umount()
        assert len(after[1]) == 1, "the kernel has several st_dev"
        for xino in ("on", "auto", "off"):
            union.mount(f"xino={xino}", upper=bool(upper))
            found = numbers(union.point)
            if "squashfs" in lowers and xino != "on":
                # without a uuid nobody knows which image it came from
                found[0]["dir/only0"] = after[0]["dir/only0"]
            assert found[0] == after[0], xino
            assert len(found[1]) == 1
            union.umount()
        if not upper:
            return
        # and with a new upper from the beginning, over copy-up and a remount
        for old in (union.upper, union.work):
            lib.remove_tree(old)
            old.mkdir()
        fill_upper(union.upper)
        union.mount("xino=on")
        first = numbers(union.point)[0]
        assert {p: first[p] for p in first if p not in (".", "updir", "dir/up")} == {
            p: n for p, n in before[0].items() if p not in (".", "updir", "dir/up")
        }
        change()
        second = numbers(union.point)[0]
        assert {p: second[p] for p in first} == first
        union.remount()
        assert numbers(union.point)[0] == second


@pytest.mark.root("makes filesystems")
def test_origin_of_an_image_without_uuid_is_not_believed(scratch, new_union):
    """It may be another image by now, unless an option says that lower does not change."""
    with layout(scratch, new_union, "ext4", ["squashfs"]) as union:
        m = union.mount("xino=auto")
        before = os.stat(m / "dir/only0").st_ino
        append(m / "dir/only0", b"+")
        # nor does the kernel keep it where it has no origin that it believes
        union.remount(options="xino=on")
        if lib.settings.impl == "plyfs":
            assert os.stat(m / "dir/only0").st_ino == before
        union.remount(options="xino=off")
        upper = os.stat(union.upper / "dir/only0").st_ino
        assert os.stat(m / "dir/only0").st_ino == upper
        union.remount(options="redirect_dir=on")
        assert os.stat(m / "dir/only0").st_ino != upper


# --- uuid= -----------------------------------------------------------------------------------------


def stored_uuid(union):
    return xattr(union.upper, union.prefix + "uuid")


@pytest.mark.privileged("compares with the kernel")
@pytest.mark.parametrize("impl", ["plyfs", "kernel"])
@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("uuid", ["auto", "on", "null", "off"])
def test_who_gets_a_uuid(union, uuid, used, impl):
    write(union.lower() / "d/f", "low")
    union.check_kernel = False
    if used:
        os.setxattr(union.upper, union.prefix + "impure", b"y")
    union.mount(f"uuid={uuid}", impl=impl)
    first = stored_uuid(union)
    wanted = uuid == "on" or (uuid == "auto" and not used)
    assert (len(first) if first else 0) == (16 if wanted else 0)
    union.remount(impl=impl)
    assert stored_uuid(union) == first
    # what is there stays, whatever is said then
    for other in ("null", "off", "auto", "on"):
        union.remount(impl=impl, options=f"uuid={other}")
        if first:
            assert stored_uuid(union) == first


@pytest.mark.privileged("compares with the kernel")
@pytest.mark.parametrize("impl", ["plyfs", "kernel"])
@pytest.mark.parametrize("value", [b"", b"short", b"x" * 17, b"\0" * 16])
def test_a_damaged_uuid_is_left_alone(union, value, impl):
    os.setxattr(union.upper, union.prefix + "uuid", value)
    union.lower()
    union.mount("uuid=on", impl=impl)
    union.umount()
    assert stored_uuid(union) == value


def test_uuids_differ(new_union):
    seen = set()
    for n in range(3):
        union = new_union(f"u{n}")
        union.lower()
        union.mount("uuid=on")
        seen.add(stored_uuid(union))
    assert len(seen) == 3 and None not in seen


@pytest.mark.root("handles of files")
@pytest.mark.parametrize("impl", ["plyfs", "kernel"])
def test_with_uuid_off_handles_are_stored_without_one(new_union, impl):
    union = new_union(where="tmpfs")  # which has a uuid for sure
    write(union.lower() / "d/f", "low")
    union.check_kernel = False
    m = union.mount("uuid=off", impl=impl)
    number = os.stat(m / "d/f").st_ino
    append(m / "d/f", b"+")
    origin = union.overlay_xattr(union.upper / "d/f", "origin")
    assert origin[5:21] == b"\0" * 16 and origin[1] == 0xFB and len(origin) > 21
    for other in ("plyfs", "kernel"):
        # whoever reads it
        union.remount(impl=other)
        assert os.stat(m / "d/f").st_ino == number
        # such a handle is nobody's where handles have a uuid
        union.remount(impl=other, options="uuid=on")
        assert os.stat(m / "d/f").st_ino == os.stat(union.upper / "d/f").st_ino
        union.last_options = "uuid=off"


@pytest.mark.root("handles of files")
@pytest.mark.parametrize("impl", ["plyfs", "kernel"])
def test_with_uuid_off_handles_with_one_are_not_believed(new_union, impl):
    union = new_union(where="tmpfs")  # which has a uuid for sure
    write(union.lower() / "d/f", "low")
    union.check_kernel = False
    m = union.mount("", impl="kernel")
    append(m / "d/f", b"+")
    union.remount(impl=impl, options="uuid=off")
    assert os.stat(m / "d/f").st_ino == os.stat(union.upper / "d/f").st_ino


@pytest.mark.root("makes filesystems")
@pytest.mark.parametrize("impl", ["plyfs", "kernel"])
def test_over_several_filesystems_uuid_off_is_null(scratch, new_union, impl):
    with layout(scratch, new_union, "ext4", ["tmpfs"]) as union:
        m = union.mount("uuid=off", impl=impl)
        append(m / "dir/only0", b"+")
        union.umount()
        origin = union.overlay_xattr(union.upper / "dir/only0", "origin")
        assert origin[5:21] != b"\0" * 16
        assert stored_uuid(union) is None
