# SPDX-License-Identifier: MIT
"""Data-only layers: lowerdir=A:B::C::D, as composefs makes them."""

import errno
import hashlib
import os

import plyfs_testlib as lib
import pytest
from plyfs_testlib import exists, is_whiteout, names, opened, raises, read, write


def content(n):
    return hashlib.sha256(str(n).encode()).digest() * 200


class Tree:
    """A composefs-style tree: names and attributes in one layer, contents by digest in another."""

    def __init__(self, union, prefix):
        self.union = union
        self.prefix = prefix
        self.meta = union.lower(0)
        self.data = [union.base / "data0", union.base / "data1"]
        for path in self.data:
            path.mkdir()

    def add(self, name, n, where):
        digest = hashlib.sha256(content(n)).hexdigest()
        place = f"{digest[:2]}/{digest[2:]}"
        path = self.meta / name
        self.stub(name, place, len(content(n)))
        write(self.data[where] / place, content(n))
        return path

    def stub(self, name, place, size):
        write(self.meta / name)
        os.truncate(self.meta / name, size)
        os.setxattr(self.meta / name, self.prefix + "metacopy", b"")
        os.setxattr(self.meta / name, self.prefix + "redirect", b"/" + place.encode())

    def mount(self, options="", upper=True, impl=None):
        u = self.union
        lowerdir = ":".join(map(str, u.lowers)) + "".join(f"::{d}" for d in self.data)
        words = [f"lowerdir={lowerdir}"]
        if upper:
            words += [f"upperdir={u.upper}", f"workdir={u.work}"]
        if self.prefix.startswith("user"):
            words.append("userxattr")
        if options:
            words.append(options)
        if impl == "kernel":
            lib.sys_mount("overlay", u.point, "overlay", 0, ",".join(words))
            mounted = lib.Mount(u.point, "kernel")
        else:
            before = set(lib.children())
            done = lib.run_plyfs("mount", "-o", ",".join(words), str(u.point))
            assert done.returncode == 0, done.stderr
            mounted = lib.Mount(u.point, "plyfs")
            mounted.daemon = lib.adopt_daemon(before)
        u.mounts.append(mounted)
        u.mounted = mounted
        return u.point


TRUSTED = pytest.param("trusted.overlay.", id="trusted", marks=pytest.mark.root("trusted xattrs"))
USER = pytest.param("user.overlay.", id="user")


@pytest.fixture(params=[TRUSTED, USER])
def tree(request, union):
    union.check_kernel = False
    return Tree(union, request.param)


def both(tree, check, **kw):
    impls = ["plyfs"] + (["kernel"] if lib.settings.can_kernel else [])
    for impl in impls:
        check(tree.mount(impl=impl, **kw))
        tree.union.umount()


def test_tree_is_read(tree):
    for n in range(40):
        tree.add(f"d{n % 3}/f{n}", n, n % 2)

    def check(m):
        assert names(m) == ["d0", "d1", "d2"]
        for n in range(40):
            assert os.stat(m / f"d{n % 3}/f{n}").st_size == len(content(n))
            assert read(m / f"d{n % 3}/f{n}") == content(n)

    both(tree, check, upper=False)
    both(tree, check)


def test_names_of_data_layers_are_not_shown(tree):
    tree.add("f", 1, 0)
    write(tree.data[0] / "plain", "plain")

    def check(m):
        assert names(m) == ["f"]
        assert not exists(m / "plain")

    both(tree, check)


def test_upper_data_layer_wins(tree):
    tree.stub("f", "same", 5)
    write(tree.data[0] / "same", "first")
    write(tree.data[1] / "same", "other")
    both(tree, lambda m: read(m / "f") == b"first" or pytest.fail("the lower one"))


def test_what_is_no_file_is_looked_for_further_down(tree):
    tree.stub("f", "same", 5)
    (tree.data[0] / "same").mkdir()
    write(tree.data[1] / "same", "other")
    both(tree, lambda m: read(m / "f") == b"other" or pytest.fail("another one"))


def test_missing_data_is_found_out_at_open(tree):
    tree.stub("f", "nowhere", 5000)
    tree.add("g", 1, 0)

    def check(m):
        assert os.stat(m / "f").st_size == 5000
        with raises(errno.ENOENT):
            read(m / "f")
        with raises(errno.ENOENT):
            write(m / "f", "x")
        assert read(m / "g") == content(1)

    both(tree, check)


def test_symlinks_are_not_followed(tree):
    write(tree.data[1] / "real" / "f", "secret")
    os.symlink("real", tree.data[1] / "dir")
    os.symlink("real/f", tree.data[1] / "file")
    os.symlink(tree.union.base, tree.data[1] / "out")
    write(tree.union.base / "outside", "outside")
    for place in ("dir/f", "file", "out/outside"):
        tree.stub(place.replace("/", "_"), place, 6)

    def check(m):
        for name in names(m):
            with raises(errno.ELOOP, errno.ENOENT):
                read(m / name)

    both(tree, check)


@pytest.mark.parametrize("place", ["../outside", "a/../../outside", "./f"])
def test_never_out_of_the_data_layer(tree, place):
    write(tree.union.base / "outside", "outside")
    write(tree.data[0] / "a" / "x", "x")
    tree.stub("f", place, 7)

    def check(m):
        with pytest.raises(OSError):
            read(m / "f")

    both(tree, check)


def test_relative_redirect_leads_to_no_data_layer(tree):
    tree.stub("f", "x", 5)
    os.setxattr(tree.meta / "f", tree.prefix + "redirect", b"x")
    write(tree.data[0] / "x", "never")

    def check(m):
        with raises(errno.EPERM):
            os.stat(m / "f")

    both(tree, check)


def test_written_file_is_whole_in_upper(tree):
    tree.add("f", 1, 1)
    m = tree.mount()
    lib.append(m / "f", b"more")
    assert read(m / "f") == content(1) + b"more"
    assert read(tree.union.upper / "f") == content(1) + b"more"
    tree.union.umount()
    both(tree, lambda m: read(m / "f") == content(1) + b"more" or pytest.fail("other data"))


@pytest.mark.parametrize("tree", [TRUSTED], indirect=True)  # userxattr excludes metacopy=on
def test_attributes_only_with_metacopy(tree):
    tree.add("f", 1, 1)
    m = tree.mount("metacopy=on")
    os.chmod(m / "f", 0o600)
    assert lib.blocks(tree.union.upper / "f") < len(content(1))
    os.rename(m / "f", m / "g")
    assert read(m / "g") == content(1)
    tree.union.umount()

    def check(m):
        assert names(m) == ["g"]
        assert os.stat(m / "g").st_mode & 0o777 == 0o600
        assert read(m / "g") == content(1)

    both(tree, check, options="metacopy=on")
    m = tree.mount("metacopy=on")
    lib.append(m / "g", b"more")
    assert read(tree.union.upper / "g") == content(1) + b"more"


def test_unlinked_while_open(tree):
    tree.add("f", 1, 1)
    m = tree.mount()
    with opened(m / "f", os.O_RDONLY) as fd:
        os.unlink(m / "f")
        assert os.pread(fd, 100, 0) == content(1)[:100]
    assert is_whiteout(tree.union.upper / "f")
    assert names(m) == []
