# SPDX-License-Identifier: MIT
"""Marks of an overlay made through another one: escaped below, and in force above.

Who builds layers on a union (a container engine in a container) writes the marks through it. They
are his own data there, and marks for the union that is mounted on what he built.
"""

import errno
import os
import stat

import plyfs_testlib as lib
import pytest
from plyfs_testlib import append, mkdir, names, raises, read, write, xattr

IMPLS = ["plyfs", "kernel"]
BOTH = pytest.mark.parametrize(
    "below, above",
    [
        pytest.param(
            b, a, marks=[pytest.mark.privileged("mounts the kernel's")] if "kernel" in (a, b) else []
        )
        for b in IMPLS
        for a in IMPLS
    ],
    ids=lambda v: v,
)
pytestmark = pytest.mark.plyfs_only("both are mounted anyway")


def escaped(union, name, times=1):
    """A private name as it is stored this many levels below where a user set it."""
    return union.prefix + "overlay." * times + name


class Nest:
    """A union in which layers are built, and one that is mounted on them."""

    def __init__(self, new_union, below, above):
        self.below, self.above = below, above
        self.inner, self.outer = new_union("inner"), new_union("outer")
        for union in (self.inner, self.outer):
            union.check_lowers = union.check_kernel = False
        self.inner.lower()
        self.prefix = self.inner.prefix
        self.built = self.inner.mount(impl=below)
        self.top, self.base = mkdir(self.built / "top"), mkdir(self.built / "base")
        # what is built there is a lower layer above something that is not nested
        self.outer.use_lower(0, self.top)
        self.outer.use_lower(1, self.base)

    def mark(self, path, name, value=b"y"):
        os.setxattr(path, self.prefix + name, value, follow_symlinks=False)

    def mount(self, options="", **kw):
        return self.outer.mount(options, impl=self.above, **kw)

    def stored(self, path):
        """The xattrs on disk of something built."""
        return lib.xattrs(self.inner.upper / path.relative_to(self.built))

    def close(self):
        self.outer.close()
        self.inner.close()


@pytest.fixture
def nest(new_union):
    made = []

    def make(below, above):
        made.append(Nest(new_union, below, above))
        return made[-1]

    yield make
    for n in made:
        n.outer.umount()


@BOTH
def test_xattr_whiteout(nest, below, above):
    n = nest(below, above)
    write(n.base / "d/gone", "x")
    write(n.base / "d/kept", "x")
    write(n.top / "d/gone")
    write(n.top / "d/more", "x")
    n.mark(n.top / "d", "opaque", b"x")
    n.mark(n.top / "d/gone", "whiteout")
    assert n.stored(n.top / "d/gone") == {escaped(n.inner, "whiteout"): b"y"}
    assert n.stored(n.top / "d")[escaped(n.inner, "opaque")] == b"x"
    # for the inner union they are nothing
    assert names(n.top / "d") == ["gone", "more"]
    assert stat.S_ISREG(os.lstat(n.top / "d/gone").st_mode)
    m = n.mount()
    assert names(m / "d") == ["kept", "more"]
    assert not lib.exists(m / "d/gone")
    # and what was hidden can be made anew
    write(m / "d/gone", "new")
    assert read(m / "d/gone") == b"new" and names(m / "d") == ["gone", "kept", "more"]
    os.unlink(m / "d/gone")
    assert names(m / "d") == ["kept", "more"]
    n.close()


@BOTH
def test_a_whiteout_that_no_listing_is_told_of(nest, below, above):
    """Without opaque=x a listing need not look for them; a lookup sees them in any case."""
    n = nest(below, above)
    write(n.base / "d/gone", "x")
    write(n.top / "d/gone")
    write(n.top / "d/full", "x")
    n.mark(n.top / "d/gone", "whiteout")
    n.mark(n.top / "d/full", "whiteout")  # of no effect: it is not empty
    m = n.mount()
    assert not lib.exists(m / "d/gone")
    # the kernel's lists what it then does not find
    assert set(names(m / "d")) - {"gone"} == {"full"}
    assert read(m / "d/full") == b"x"
    n.close()


@BOTH
def test_opaque_directory(nest, below, above):
    n = nest(below, above)
    write(n.base / "d/old", "x")
    write(n.top / "d/new", "x")
    n.mark(n.top / "d", "opaque")
    m = n.mount()
    assert names(m / "d") == ["new"]
    assert not lib.exists(m / "d/old")
    # the inner union merges nothing there, nor is its own listing touched
    assert names(n.base / "d") == ["old"] and names(n.top / "d") == ["new"]
    n.close()


@BOTH
@pytest.mark.root("redirects are followed in trusted xattrs only")
def test_redirect(nest, below, above):
    n = nest(below, above)
    write(n.base / "a/f", "x")
    write(n.base / "b/g", "x")
    mkdir(n.top / "moved")
    mkdir(n.top / "sub/far")
    n.mark(n.top / "moved", "redirect", b"a")
    n.mark(n.top / "sub/far", "redirect", b"/b")
    m = n.mount("redirect_dir=follow")
    assert names(m / "moved") == ["f"] and names(m / "sub/far") == ["g"]
    n.outer.umount()
    m = n.mount("redirect_dir=nofollow")
    with raises(errno.EPERM):
        os.listdir(m / "moved")
    n.close()


@BOTH
@pytest.mark.root("metacopies are read in trusted xattrs only")
def test_metacopy(nest, below, above):
    n = nest(below, above)
    write(n.base / "f", "the data")
    write(n.top / "f", mode=0o640)
    os.truncate(n.top / "f", 8)
    n.mark(n.top / "f", "metacopy", b"")
    m = n.mount("metacopy=on")
    assert read(m / "f") == b"the data"
    assert stat.S_IMODE(os.stat(m / "f").st_mode) == 0o640
    # in the union where it was made it is a file with holes
    assert read(n.top / "f") == bytes(8)
    n.close()


@BOTH
def test_names_come_back_as_they_were_given(nest, below, above):
    n = nest(below, above)
    path = write(n.top / "f", "x")
    wanted = {}
    for name in ("opaque", "redirect", "origin", "anything", "overlay.opaque", "overlay.overlay."):
        n.mark(path, name, name.encode())
        wanted[n.prefix + name] = name.encode()
    assert lib.xattrs(path) == wanted
    assert n.stored(path) == {
        n.prefix + "overlay." + name[len(n.prefix) :]: value for name, value in wanted.items()
    }
    # what is private above is not shown; what is escaped there loses one level
    m = n.mount()
    shown = {n.prefix + "opaque": b"overlay.opaque", n.prefix + "overlay.": b"overlay.overlay."}
    assert lib.xattrs(m / "f") == shown
    append(m / "f", b"+")  # copied up with what is a user's
    assert lib.xattrs(m / "f") == shown
    at_upper = lib.xattrs(n.outer.upper / "f")
    assert at_upper[n.prefix + "overlay.opaque"] == b"overlay.opaque"
    assert n.prefix + "redirect" not in at_upper and n.prefix + "anything" not in at_upper
    os.removexattr(path, n.prefix + "opaque")
    assert xattr(path, n.prefix + "opaque") is None
    assert xattr(path, n.prefix + "overlay.opaque") == b"overlay.opaque"
    n.close()


@BOTH
def test_no_real_mark_can_be_made_through_a_union(nest, below, above):
    n = nest(below, above)
    with raises(errno.EPERM):
        lib.make_whiteout(n.top / "w")
    write(n.top / "d/f", "x")
    n.mark(n.top / "d", "opaque")
    n.mark(n.top / "d/f", "whiteout")
    # a remount of the union itself shows everything still
    n.inner.remount(impl=n.above)
    assert read(n.top / "d/f") == b"x" and names(n.top) == ["d"]
    n.close()


@pytest.mark.parametrize(
    "first, second, third",
    [
        ("plyfs", "plyfs", "plyfs"),
        pytest.param("kernel", "plyfs", "kernel", marks=pytest.mark.privileged("mounts it")),
        pytest.param("plyfs", "kernel", "plyfs", marks=pytest.mark.privileged("mounts it")),
        pytest.param("kernel", "kernel", "plyfs", marks=pytest.mark.privileged("mounts it")),
        pytest.param("plyfs", "plyfs", "kernel", marks=pytest.mark.privileged("mounts it")),
    ],
)
def test_three_levels(new_union, first, second, third):
    """Each level takes one escape away; the mark is one for the third."""
    a, b, c = new_union("a"), new_union("b"), new_union("c")
    for union in (a, b, c):
        union.check_lowers = union.check_kernel = False
    p = a.prefix
    m1 = a.mount(impl=first)
    write(m1 / "layer/d/gone")
    write(m1 / "layer/d/kept", "1")
    write(m1 / "layer/o/new", "1")
    os.setxattr(m1 / "layer/d", p + "overlay.opaque", b"x")
    os.setxattr(m1 / "layer/d/gone", p + "overlay.whiteout", b"y")
    os.setxattr(m1 / "layer/o", p + "overlay.opaque", b"y")
    b.use_lower(0, m1 / "layer")
    m2 = b.mount(impl=second)
    assert names(m2 / "d") == ["gone", "kept"]
    assert xattr(m2 / "d/gone", p + "whiteout") == b"y"
    append(m2 / "d/kept", b"2")  # the directory is copied up, its marks with it
    write(c.lower(1) / "d/gone", "base")
    write(c.lower(1) / "d/base", "base")
    write(c.lower(1) / "o/old", "base")
    c.use_lower(0, m2)
    m3 = c.mount(impl=third)
    assert names(m3 / "d") == ["base", "kept"]
    assert names(m3 / "o") == ["new"]
    assert read(m3 / "d/kept") == b"12"
    append(m3 / "d/kept", b"3")
    os.unlink(m3 / "d/base")
    assert names(m3 / "d") == ["kept"] and read(m3 / "d/kept") == b"123"
    assert read(m2 / "d/kept") == b"12" and read(m1 / "layer/d/kept") == b"1"
    # user's xattrs of every level
    assert xattr(m1 / "layer/d/gone", p + "overlay.whiteout") == b"y"
    assert xattr(a.upper / "layer/d/gone", p + "overlay.overlay.whiteout") == b"y"
    for union in (c, b, a):
        union.umount()


@BOTH
def test_only_the_active_namespace_is_special(nest, below, above):
    """The other prefix is an ordinary name, stored as it is and no mark."""
    n = nest(below, above)
    other = "user.overlay." if n.prefix == "trusted.overlay." else None
    if not other:
        other = "user.overlays."  # trusted.* is not for us
    write(n.base / "d/old", "x")
    write(n.top / "d/new", "x")
    os.setxattr(n.top / "d", other + "opaque", b"y")
    assert n.stored(n.top / "d")[other + "opaque"] == b"y"
    m = n.mount()
    assert names(m / "d") == ["new", "old"]
    assert xattr(m / "d", other + "opaque") == b"y"
    n.close()


@BOTH
def test_longest_names(nest, below, above):
    n = nest(below, above)
    path = write(n.top / "f", "x")
    longest = n.prefix + "n" * (255 - len(n.prefix) - len("overlay."))
    os.setxattr(path, longest, b"y")
    assert lib.xattrs(path) == {longest: b"y"}
    assert list(n.stored(path)) == [n.prefix + "overlay." + longest[len(n.prefix) :]]
    with raises(errno.EOPNOTSUPP):
        os.setxattr(path, longest + "n", b"y")
    n.close()
