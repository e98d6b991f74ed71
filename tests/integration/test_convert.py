# SPDX-License-Identifier: MIT
"""plyfs convert: marks of fuse-overlayfs to the kernel's form and back, with it as the judge."""

import contextlib
import os
import random
import shutil
import stat
import subprocess

import plyfs_testlib as lib
import pytest

pytestmark = pytest.mark.plyfs_only("convert")

OK, LEFT, OPERATION, USAGE = 0, 4, 8, 16

oracle = pytest.mark.skipif(
    not shutil.which("fuse-overlayfs"), reason="fuse-overlayfs is not installed"
)
root_only = pytest.mark.root("fuse-overlayfs and the kernel side by side")


def convert(path, to="kernel", *args):
    return lib.run_plyfs("convert", f"--to={to}", *args, path)


def mark(path, name, value=None):
    full = lib.settings.prefix + name
    if value is not None:
        os.setxattr(path, full, value, follow_symlinks=False)
    return lib.xattr(path, full)


@contextlib.contextmanager
def fuse_overlayfs(union, whiteout_files=True):
    env = dict(os.environ)
    if whiteout_files:
        env["FUSE_OVERLAYFS_DISABLE_OVL_WHITEOUT"] = "1"
    options = lib.layer_options(union.lowers, union.upper, union.work)
    shutil.rmtree(union.work)
    union.work.mkdir()
    with subprocess.Popen(
        ["fuse-overlayfs", "-f", "-o", options, union.point],
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as daemon:
        try:
            lib.wait_for(lambda: lib.find_mount(union.point), 10, "fuse-overlayfs' mount")
            yield union.point
        finally:
            lib.sys_umount(union.point, lib.MNT_DETACH)
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
    shutil.rmtree(union.work)
    union.work.mkdir()


def contents(root):
    """What a tree holds; of times only what both keep."""
    out = {}
    for rel in lib.walk(root):
        st = os.lstat(root / rel)
        kind = stat.S_IFMT(st.st_mode)
        entry = [kind, oct(st.st_mode), st.st_uid]
        if kind == stat.S_IFREG:
            entry.append(lib.read(root / rel))
        elif kind == stat.S_IFLNK:
            entry.append(os.readlink(root / rel))
        out[rel] = entry
    return out


def kernel_shows(union):
    root = union.mount(impl="kernel")
    out = contents(root)
    union.umount()
    return out


def random_changes(rng, root, count=60):
    names = [chr(c) for c in range(ord("a"), ord("k"))]

    def some(kind=None):
        found = [p for p in lib.walk(root) if p != "." and not os.path.islink(root / p)]
        if kind:
            found = [p for p in found if kind(root / p)]
        return root / rng.choice(found) if found else root / "none"

    def place():
        found = [p for p in lib.walk(root) if os.path.isdir(root / p)]
        return root / rng.choice(found) / rng.choice(names)

    for _ in range(count):
        how = rng.randrange(6)
        with contextlib.suppress(OSError):
            if how == 0:
                place().write_bytes(b"new %d" % rng.randrange(1000))
            elif how == 1:
                place().mkdir()
            elif how in (2, 3):
                path = some()
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            elif how == 4:
                lib.append(some(os.path.isfile), b"more")
            else:
                os.chmod(some(), 0o750)


def layers(union, rng):
    for index in range(2):
        for path in ("a/a", "a/b/c", "b/x", "c/d/e/f", "d", "e/f", "g/h/i"):
            if rng.random() < 0.8:
                lib.write(union.lower(index) / path, f"{index} {path}")


@oracle
@root_only
@pytest.mark.parametrize("seed", range(8))
def test_what_fuse_overlayfs_made_the_kernel_shows_alike(union, seed):
    rng = random.Random(seed)
    union.check_kernel = union.check_work = False
    layers(union, rng)
    with fuse_overlayfs(union, seed % 2 == 0) as root:
        random_changes(rng, root)
        shown = contents(root)
    done = convert(union.upper)
    assert (done.returncode, done.stderr) == (OK, ""), done
    assert not [p for p in lib.walk(union.upper) if os.path.basename(p).startswith(".wh.")]
    assert kernel_shows(union) == shown
    root = union.mount()
    assert contents(root) == shown
    union.umount()
    again = lib.run_plyfs("fsck", "-n", "-o", lib.layer_options(union.lowers, union.upper, union.work))
    assert again.returncode in (OK, LEFT) and "redirect" not in again.stdout, again


@oracle
@root_only
@pytest.mark.parametrize("seed", range(8))
def test_what_the_kernel_made_fuse_overlayfs_shows_alike(union, seed):
    rng = random.Random(seed)
    union.check_kernel = union.check_work = False
    layers(union, rng)
    root = union.mount(impl="kernel")
    random_changes(rng, root)
    union.umount()
    shown = kernel_shows(union)
    before = lib.tree(union.upper, times=True)
    done = convert(union.upper, "fuse-overlayfs")
    assert (done.returncode, done.stderr) == (OK, ""), done
    assert not [p for p in lib.walk(union.upper) if lib.is_whiteout(union.upper / p)]
    with fuse_overlayfs(union) as root:
        assert contents(root) == shown
    # and back: the same layer
    assert convert(union.upper).returncode == OK
    assert kernel_shows(union) == shown
    after = lib.tree(union.upper, times=True)
    for tree in (before, after):
        for entry in tree.values():
            for key in ("mode", "nlink", "mtime"):
                if entry["type"] == stat.S_IFCHR:
                    entry.pop(key, None)
            entry["xattrs"] = {
                k: v for k, v in entry["xattrs"].items() if not k.endswith((".uuid", ".impure"))
            }
    lib.assert_same_tree(before, after, "before", "after")


# --- one mark at a time -------------------------------------------------------------------------


def test_whiteout_file_becomes_a_device(union):
    lib.write(union.lower() / "d/x")
    lib.write(union.upper / "d/.wh.x")
    os.utime(union.upper / "d", ns=(1000, 2000))
    assert convert(union.upper).returncode == OK
    assert lib.is_whiteout(union.upper / "d/x")
    assert os.listdir(union.upper / "d") == ["x"]
    assert os.lstat(union.upper / "d").st_mtime_ns == 2000
    assert "x" not in lib.names(union.mount() / "d")


@pytest.mark.parametrize("how", ["file", "user.fuseoverlayfs.opaque", "user.overlay.opaque", "all"])
def test_opaque_marks_become_the_kernels(union, how):
    lib.write(union.lower() / "d/x")
    lib.mkdir(union.upper / "d")
    if how in ("file", "all"):
        lib.write(union.upper / "d/.wh..wh..opq")
        lib.make_whiteout(union.upper / "d/.wh..opq")
    for name in ("user.fuseoverlayfs.opaque", "user.overlay.opaque"):
        if how in (name, "all"):
            os.setxattr(union.upper / "d", name, b"y")
    os.utime(union.upper / "d", ns=(1000, 2000))
    assert convert(union.upper).returncode == OK
    assert lib.xattrs(union.upper / "d") == {lib.settings.prefix + "opaque": b"y"}
    assert os.listdir(union.upper / "d") == []
    assert os.lstat(union.upper / "d").st_mtime_ns == 2000
    assert lib.names(union.mount() / "d") == []


def test_root_that_is_opaque(union):
    lib.write(union.upper / ".wh..wh..opq")
    assert convert(union.upper).returncode == OK
    assert mark(union.upper, "opaque") == b"y"


def test_path_as_origin_goes(union):
    lib.write(union.upper / "f", "data", xattrs={"user.fuseoverlayfs.origin": b"f"})
    assert convert(union.upper).returncode == OK
    assert lib.xattrs(union.upper / "f") == {}
    assert lib.read(union.upper / "f") == b"data"


@pytest.mark.privileged("chown")
@pytest.mark.parametrize(
    "name", ["user.fuseoverlayfs.override_stat", "user.containers.override_stat"]
)
def test_stored_owner_and_mode_become_the_files(union, name):
    lib.write(union.upper / "f", "data", xattrs={name: b"12:34:4755"})
    lib.mkdir(union.upper / "d", xattrs={name: b"0:7:0711:dir"})
    assert convert(union.upper).returncode == OK
    st = os.lstat(union.upper / "f")
    assert (st.st_uid, st.st_gid, stat.S_IMODE(st.st_mode)) == (12, 34, 0o4755)
    st = os.lstat(union.upper / "d")
    assert (st.st_uid, st.st_gid, stat.S_IMODE(st.st_mode)) == (0, 7, 0o711)
    assert lib.xattrs(union.upper / "f") == {} and lib.read(union.upper / "f") == b"data"


@pytest.mark.parametrize("value", [b"0:0:0600:block-8-0", b"nonsense", b"1:2", b"1:2:644x"])
def test_stored_owner_that_is_more_or_nonsense_is_left(union, value):
    lib.write(union.upper / "f", xattrs={"user.fuseoverlayfs.override_stat": value})
    done = convert(union.upper)
    assert done.returncode == LEFT and "f: " in done.stdout
    assert lib.xattr(union.upper / "f", "user.fuseoverlayfs.override_stat") == value


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_name_beside_its_whiteout_is_left_or_new(union, kind):
    """fuse-overlayfs hides it, in an image it is there: only its owner knows."""
    lib.write(union.lower() / "n/below")
    lib.write(union.upper / ("n" if kind == "file" else "n/new"), "new")
    lib.write(union.upper / ".wh.n")
    before = lib.tree(union.upper, layer=True)
    done = convert(union.upper)
    assert done.returncode == LEFT and ".wh.n" in done.stdout
    lib.assert_same_tree(before, lib.tree(union.upper, layer=True), "before", "after")
    assert convert(union.upper, "kernel", "--image").returncode == OK
    root = union.mount()
    assert lib.read(root / ("n" if kind == "file" else "n/new")) == b"new"
    assert not lib.exists(root / "n/below")


def test_dry_run_writes_nothing(union):
    lib.write(union.upper / ".wh.a")
    lib.write(union.upper / "d/.wh..wh..opq")
    before = lib.tree(union.upper, layer=True)
    done = convert(union.upper, "kernel", "-n")
    assert done.returncode == OK and done.stdout == ".wh.a: whiteout\nd: opaque directory\n"
    lib.assert_same_tree(before, lib.tree(union.upper, layer=True), "before", "after")


def test_nothing_to_convert_is_passed_over_in_silence(union):
    lib.write(union.upper / "d/f", "data")
    lib.make_whiteout(union.upper / "w")
    before = lib.tree(union.upper, layer=True)
    done = convert(union.upper, "kernel", "-v")
    assert (done.returncode, done.stdout, done.stderr) == (OK, "", "")
    lib.assert_same_tree(before, lib.tree(union.upper, layer=True), "before", "after")


@pytest.mark.parametrize(
    "name,make",
    [
        ("redirect", lambda p: lib.mkdir(p)),
        ("metacopy", lambda p: lib.write(p)),
    ],
)
def test_what_fuse_overlayfs_cannot_say_stops_the_conversion(union, name, make):
    make(union.upper / "x")
    mark(union.upper / "x", name, b"y" if name == "redirect" else b"")
    lib.make_whiteout(union.upper / "w")
    before = lib.tree(union.upper, layer=True)
    done = convert(union.upper, "fuse-overlayfs")
    assert done.returncode == LEFT and "x: " in done.stdout and "nothing" in done.stderr
    lib.assert_same_tree(before, lib.tree(union.upper, layer=True), "before", "after")


def test_names_that_would_be_whiteouts_stop_the_conversion(union):
    lib.write(union.upper / ".wh.real", "data")
    assert convert(union.upper, "fuse-overlayfs").returncode == LEFT
    assert lib.read(union.upper / ".wh.real") == b"data"


def test_whiteouts_with_long_names(union):
    lib.make_whiteout(union.upper / ("n" * 251))
    assert convert(union.upper, "fuse-overlayfs").returncode == OK
    assert os.listdir(union.upper) == [".wh." + "n" * 251]
    assert convert(union.upper).returncode == OK
    lib.make_whiteout(union.upper / ("m" * 252))
    assert convert(union.upper, "fuse-overlayfs").returncode == LEFT
    assert all(lib.is_whiteout(union.upper / n) for n in os.listdir(union.upper))


def test_interrupted_conversions_go_on(union):
    """Both marks of one thing are there in between."""
    lib.make_whiteout(union.upper / "w")
    lib.write(union.upper / ".wh.w")
    lib.mkdir(union.upper / "d")
    mark(union.upper / "d", "opaque", b"y")
    lib.write(union.upper / "d/.wh..wh..opq")
    assert convert(union.upper, "fuse-overlayfs").returncode == OK
    assert lib.names(union.upper) == [".wh.w", "d"] and lib.names(union.upper / "d") == [
        ".wh..wh..opq"
    ]
    lib.make_whiteout(union.upper / "w")
    mark(union.upper / "d", "opaque", b"y")
    assert convert(union.upper).returncode == OK
    assert lib.names(union.upper) == ["d", "w"] and lib.names(union.upper / "d") == []


@root_only
def test_userxattr_says_where_the_marks_are(union):
    lib.write(union.upper / "d/.wh..wh..opq")
    assert convert(union.upper, "kernel", "--userxattr").returncode == OK
    assert lib.xattrs(union.upper / "d") == {"user.overlay.opaque": b"y"}
    assert convert(union.upper, "kernel", "--trusted").returncode == OK
    assert lib.xattrs(union.upper / "d") == {"trusted.overlay.opaque": b"y"}


def test_several_layers(union):
    for n in (0, 1):
        lib.write(union.lower(n) / ".wh.x")
    union.check_lowers = union.check_kernel = False
    done = lib.run_plyfs("convert", "--to", "kernel", union.lower(0), union.lower(1))
    assert done.returncode == OK
    assert all(lib.is_whiteout(union.lower(n) / "x") for n in (0, 1))


@pytest.mark.parametrize("impl", ["plyfs", "kernel"])
@pytest.mark.privileged("the kernel's overlayfs too")
def test_mounted_layer_is_refused(union, impl):
    union.lower()
    lib.write(union.upper / ".wh.x")
    union.mount(impl=impl)
    done = convert(union.upper)
    assert done.returncode == OPERATION and "in use" in done.stderr, done
    union.umount()


@pytest.mark.parametrize(
    "args", [[], ["--to=kernel"], ["/tmp"], ["--to=docker", "/tmp"], ["--nonsense"], ["--to"]]
)
def test_wrong_calls(scratch, args):
    done = lib.run_plyfs("convert", *args)
    assert done.returncode == USAGE and done.stderr.count("\n") == 1, done


def test_missing_layer(union):
    done = convert(union.base / "missing")
    assert done.returncode == OPERATION and "missing" in done.stderr, done


def test_help(scratch):
    for args in (["convert", "--help"], ["help", "convert"]):
        done = lib.run_plyfs(*args)
        assert done.returncode == OK and "--to=" in done.stdout


def test_symlinks_lead_nowhere(union):
    lib.write(union.base / "outside/.wh.x")
    os.symlink(union.base / "outside", union.upper / "link")
    assert convert(union.upper).returncode == OK
    assert lib.exists(union.base / "outside/.wh.x")
