# SPDX-License-Identifier: MIT
"""Layers with marks that no overlayfs made: plyfs and the kernel's overlayfs come to one verdict.

A table of cases for each mark. All cases of a table are in one set of layers, each in a directory
of its own, which both mount with the same options; what they show of each object, or the error, is
compared: lookup, attributes, listing, contents, symlink, and whether it can be changed. What stands
on the root of upper or in the workdir decides whether there is a mount at all: those are compared
one by one.
"""

import ctypes
import errno
import fcntl
import os
import shutil
import stat
import struct
import tempfile
from pathlib import Path

import plyfs_testlib as lib
import pytest

pytestmark = pytest.mark.root("the kernel's overlayfs is the reference, with trusted xattrs")

LONG = 4000


def options(*values, quick=2):
    """Parameters of which the quick runs have only the first."""
    return pytest.mark.parametrize("options", [
        v if i < quick else pytest.param(v, marks=pytest.mark.slow) for i, v in enumerate(values)])


# --- layers and what is seen of them --------------------------------------------------------------


def handle_of(path):
    """An origin as the kernel stores it (struct ovl_fb) for this object, on this filesystem."""
    buf = ctypes.create_string_buffer(struct.pack("=Ii", 128, 0), 8 + 128)
    mount_id = ctypes.c_int()
    lib.check(lib.libc.name_to_handle_at(
        lib.AT_FDCWD, os.fsencode(path), buf, ctypes.byref(mount_id), 0))
    size, kind = struct.unpack_from("=Ii", buf)
    uuid = bytearray(17)  # FS_IOC_GETFSUUID: length, bytes
    fd = os.open(os.path.dirname(path), os.O_RDONLY)
    try:
        fcntl.ioctl(fd, 0x80111500, uuid)
    finally:
        os.close(fd)
    return struct.pack("BBBBB", 0, 0xFB, 21 + size, 0, kind) + bytes(uuid[1:]) + buf.raw[8:8 + size]


def set_mark(path, name, value):
    """Whether the filesystem holds it."""
    try:
        os.setxattr(path, name, value, follow_symlinks=False)
        return True
    except OSError as e:
        if e.errno not in (errno.ERANGE, errno.ENOSPC, errno.E2BIG):
            raise
        return False


def code(function, *args):
    """What it returns, or the name of its error."""
    for _ in range(1000):
        try:
            return function(*args)
        except OSError as e:
            # the kernel's answer to ".." while something is renamed or mounted anywhere
            if e.errno != errno.EAGAIN:
                return errno.errorcode.get(e.errno, e.errno)
    return "EAGAIN"


def content(path):
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    try:
        return os.read(fd, 1 << 16)
    finally:
        os.close(fd)


def open_and_close(path, flags):
    os.close(os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK))


def view(path, origins):
    """What is seen of one object. @origins: names of what it may have its number from."""
    st = code(os.lstat, path)
    if isinstance(st, str):
        return {"lookup": st}
    out = {"mode": oct(st.st_mode), "uid": st.st_uid, "xattrs": code(lib.xattrs, path),
           "number of": sorted(k for k, ino in origins.items() if ino == st.st_ino)}
    if stat.S_ISDIR(st.st_mode):
        out["names"] = code(lambda: sorted(os.listdir(path)))
    elif stat.S_ISLNK(st.st_mode):
        out["target"] = code(os.readlink, path)
    else:
        out["nlink"] = st.st_nlink
    if stat.S_ISREG(st.st_mode):
        out["size"] = st.st_size
        out["content"] = code(content, path)
    return out


def change(path):
    """Whether it can be changed: last of all, because that changes it."""
    st = code(os.lstat, path)
    if isinstance(st, str):
        return {"lookup": st}
    out = {"chmod": code(os.chmod, path, 0o700) if not stat.S_ISLNK(st.st_mode) else None,
           "rename": code(os.rename, path, str(path) + ".new")}
    path = str(path) + ".new" if out["rename"] is None else path
    if stat.S_ISREG(st.st_mode):
        out["append"] = code(open_and_close, path, os.O_WRONLY | os.O_APPEND)
        out["write"] = code(open_and_close, path, os.O_WRONLY)
        out["truncate"] = code(open_and_close, path, os.O_WRONLY | os.O_TRUNC)
        out["unlink"] = code(os.unlink, path)
    elif stat.S_ISDIR(st.st_mode):
        out["create"] = code(os.mkdir, os.path.join(path, "made"))
        out["remove"] = code(os.rmdir, os.path.join(path, "made"))
    return out


class Layers:
    """upper-A and upper-B (each side's own), lower0 over lower1, data; on one filesystem."""

    def __init__(self, base):
        self.base = Path(base)
        self.lower = [self.base / "lower0", self.base / "lower1"]
        self.data = self.base / "data"
        self.upper = {s: self.base / f"upper-{s}" for s in ("kernel", "plyfs")}
        self.work = {s: self.base / f"work-{s}" for s in ("kernel", "plyfs")}
        self.point = self.base / "merged"
        for path in (*self.lower, self.data, self.point, *self.upper.values(), *self.work.values()):
            path.mkdir()
        self.mounted = None

    def roots(self, where):
        """The directories of a layer: of upper one for each side."""
        return {"upper": list(self.upper.values()), "lower0": [self.lower[0]],
                "lower1": [self.lower[1]], "data": [self.data]}[where]

    def mount(self, side, options, data=False, upper=True):
        """None, or the name of the error."""
        words = "lowerdir=" + ":".join(str(p) for p in self.lower)
        words += f"::{self.data}" if data else ""
        if upper:
            words += f",upperdir={self.upper[side]},workdir={self.work[side]}"
        words += "," + options if options else ""
        if side == "kernel":
            failed = code(lib.sys_mount, "overlay", self.point, "overlay", 0, words)
            self.mounted = None if failed else lib.Mount(self.point, "kernel")
            return failed
        before = set(lib.children())
        done = lib.run_plyfs("mount", "-o", words, self.point)
        if done.returncode:
            return done.stderr
        self.mounted = lib.Mount(self.point, "plyfs")
        self.mounted.daemon = lib.adopt_daemon(before)
        return None

    def umount(self):
        if self.mounted:
            mounted, self.mounted = self.mounted, None
            mounted.umount()


@pytest.fixture
def layers(scratch, watchdog):
    """On tmpfs, which holds every value and is fast."""
    base = Path(tempfile.mkdtemp(dir=lib.settings.tmpfs, prefix="c."))
    made = Layers(base)
    yield made
    if made.mounted:
        made.mounted.force_down()
    lib.remove_tree(base)


OLD = 10**9


def make(root, kind, rel, what=b""):
    path = root / rel
    path.parent.mkdir(parents=True, exist_ok=True)
    if os.path.lexists(path):
        return path  # what was made first stays, and is given more marks
    if kind == "dir":
        path.mkdir()
    elif kind == "file":
        path.write_bytes(what)
        os.utime(path, (OLD, OLD))
    elif kind == "sparse":
        path.touch()
        os.truncate(path, what)
    elif kind == "link":
        os.symlink(what, path)
    elif kind == "hard":
        os.link(root / what, path)
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "whiteout":
        lib.make_whiteout(path)
    elif kind == "device":
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))
    return path


def compare(layers, cases, options, data=False, upper=True):
    """@cases: {name: list of (layer, kind, path, what, {mark: value})}."""
    paths, origins = {}, {}
    left_out = set()
    for name, objects in cases.items():
        for where, kind, rel, what, marks in objects:
            for root in layers.roots(where):
                path = make(root, kind, f"{name}/{rel}" if rel else name, what)
                for mark, value in marks.items():
                    if isinstance(value, Origin):
                        value = value(handle_of(layers.lower[1] / name / value.of))
                    if isinstance(value, str):
                        value = value.replace("%", name).encode("latin-1")
                    if not set_mark(path, mark, value):
                        left_out.add(name)
                if where != "data":
                    paths.setdefault(name, set()).add(f"{name}/{rel}" if rel else name)
    assert not left_out or len(left_out) < len(cases) / 4, "no room for the marks"
    for name in cases:
        origins[name] = {}
        for root in (*layers.lower, layers.data):
            if (root / name).exists():
                for rel in lib.walk(root / name):
                    origins[name][f"{root.name}/{rel}"] = os.lstat(root / name / rel).st_ino
    seen = {}
    for side in ("kernel", "plyfs"):
        assert layers.mount(side, options, data, upper) is None
        seen[side] = {}
        for name in sorted(set(cases) - left_out):
            known = set(paths[name])
            for rel in sorted(known):  # of two that exclude each other the first looked up wins
                code(os.lstat, layers.point / rel)
            for rel in lib.walk_quietly(layers.point / name):
                known.add(os.path.normpath(f"{name}/{rel}"))
            for rel in sorted(known):
                seen[side][rel] = view(layers.point / rel, origins[name])
        for rel in sorted(seen[side], reverse=True):
            if upper:
                seen[side][rel + " changed"] = change(layers.point / rel)
        if layers.mounted.daemon:
            assert layers.mounted.daemon.alive()
        layers.umount()
    lines = []
    for path in sorted(seen["kernel"].keys() | seen["plyfs"].keys()):
        k, p = (seen[s].get(path, {}) for s in ("kernel", "plyfs"))
        lines += [f"{path}: {field}: kernel {k.get(field)!r:.120}, plyfs {p.get(field)!r:.120}"
                  for field in sorted(k.keys() | p.keys())
                  if k.get(field) != p.get(field) and not allowed(path, field, k, p, seen)]
    assert not lines, tell(lines, cases)


def tell(lines, cases):
    """The first lines of each of the first cases that failed, and what these are."""
    by_case = {}
    for line in lines:
        by_case.setdefault(line.split("/")[0].split(":")[0].split(" ")[0], []).append(line)
    out = [f"{len(by_case)} cases: {' '.join(by_case)}"]
    for name in list(by_case)[:12]:
        out += [*by_case[name][:4], f"  case {name}: {cases[name]!r:.700}"]
    return "\n".join(out)


def allowed(path, field, kernel, plyfs, seen):
    """
    Where the two may differ, as in tests/oracle/differences.py: of one real directory the kernel
    lists whiteouts too, and of a merged one what cannot be looked up only sometimes.
    """
    if path.endswith(" changed"):
        return False
    k, p = kernel.get(field), plyfs.get(field)
    if field == "names" and isinstance(k, list) and isinstance(p, list):
        missing = [seen["kernel"].get(f"{path}/{n}", {}) for n in k if n not in p]
        extra = [seen["plyfs"].get(f"{path}/{n}", {}) for n in p if n not in k]
        return (all(v.get("lookup") == "ENOENT" for v in missing)
                and all(v.get("lookup", "ENOENT") != "ENOENT" for v in extra))
    return False


class Origin:
    """A value made of the origin of an object of lower1, once that is there."""

    def __init__(self, function, of="f"):
        self.function = function
        self.of = of

    def __call__(self, handle):
        return self.function(handle)

    def __repr__(self):
        return f"Origin({self.function.__doc__ or self.function.__name__}, {self.of})"


def numbered(prefix, values):
    return {f"{prefix}{i:03}": x for i, x in enumerate(values)}


T, U = "trusted.overlay.", "user.overlay."

# --- the tables -----------------------------------------------------------------------------------

PLAIN = ["", "redirect_dir=on,metacopy=on", "index=on"]
OPAQUE = [b"", b"y", b"x", b"n", b"Y", b"X", b"0", b"yy", b"xy", b"y\0", b"\0", b"\0y", b"y\n",
          b"y" * 255, b"y" * LONG, b"yes", b"\xff", b"1"]


def merged_dirs(p, value, where, mark="opaque"):
    """Directory d of @where has the mark; both others have it too, with something in it."""
    return [("upper", "file", "d/u", b"u", {}), ("lower0", "file", "d/l0", b"l", {}),
            ("lower1", "file", "d/l1", b"1", {}), ("lower1", "file", "d/both", b"1", {}),
            ("lower0", "file", "d/both", b"0", {}), (where, "dir", "d", None, {p + mark: value}),
            (where, "file", "d/xw", b"", {p + "whiteout": b"y"}),
            ("lower1", "file", "d/xw", b"hidden", {}), (where, "whiteout", "d/w", None, {}),
            ("lower1", "file", "d/w", b"hidden", {})]


MARKS = ["opaque", "impure", "origin", "redirect", "upper", "nlink", "metacopy", "protattr", "uuid",
         "whiteout", "unknown", "xwhiteouts", "", "overlay.opaque"]


@options(*PLAIN, "userxattr")
@pytest.mark.parametrize("where", ["upper", "lower0", "lower1"])
def test_simple_values_on_directories(layers, options, where):
    """Each mark, also where it has no business."""
    p = U if options == "userxattr" else T
    cases = {}
    for mark in MARKS:
        values = OPAQUE if mark == "opaque" else OPAQUE[::3]
        cases |= {f"{mark}-{k}": merged_dirs(p, v, where, mark)
                  for k, v in numbered("d", values).items()}
    compare(layers, cases, options)


@options("", "userxattr")
def test_marks_of_the_other_namespace_are_nobodys(layers, options):
    p = T if options == "userxattr" else U
    cases = numbered("c", [merged_dirs(p, b"y", w, "opaque") for w in ("upper", "lower0")])
    cases |= {f"r{w}": [(w, "dir", "new", None, {p + "redirect": "d"}),
                        ("lower1", "file", "d/f", b"f", {})] for w in ("upper", "lower0")}
    compare(layers, cases, options)


@options(*PLAIN, "userxattr")
def test_whiteouts_by_xattr(layers, options):
    """On every type of object, of every value, in directories that say so and that do not."""
    p = U if options == "userxattr" else T
    cases = {}
    for i, value in enumerate([b"", b"y", b"n", b"\0", b"x" * 200]):
        for opaque in (b"x", b"y", None):
            for where in ("upper", "lower0", "lower1"):
                marks = {p + "whiteout": value}
                case = [(where, "dir", "d", None, {p + "opaque": opaque} if opaque else {}),
                        (where, "file", "d/empty", b"", marks),
                        (where, "file", "d/full", b"x", marks),
                        (where, "dir", "d/dir", None, marks)]
                if p == T:
                    case += [(where, "fifo", "d/fifo", None, marks),
                             (where, "link", "d/link", "x", marks)]
                case += [("lower1", "file", f"d/{n}", b"below", {}) for n in ("empty", "full")
                         if where != "lower1"]
                cases[f"{where}-{i}-{opaque and opaque.decode()}"] = case
    compare(layers, cases, options)


REDIRECTS = [
    "", "d", "/%/d", "d/", "/%/d/", "//%/d", "/%//d", "/", "//", ".", "..", "/.", "/..", "/%/.",
    "/%/..", "/%/../%/d", "/%/./d", "../%/d", "./d", "d/sub", "/%/d/sub", "/%/d/sub/", "missing",
    "/missing", "/%/missing/d", "/%/file", "file", "/%/file/d", "/%/link", "link", "/%/link/sub",
    "/%/white", "white", "/%/white/d", "/%/opaque/sub", "/%/fifo", "new", "/%/new", "d\0", "d\0junk",
    "\0", "/%/d\0/x", "\xff\xfe", "d ", " d", "x" * 255, "x" * 256, "/%/" + "x" * 255,
    "/%/" + "x" * 256, "/%/" + "x" * 300, "/%" + "/d" * 100, "/" + "y" * LONG, "/%" + "/d" * 1900,
    "/%/far/away", "/%/d\n", "/%/D", "d\\", "/%/twice", "/",
]


def redirected(p, value, where):
    """
    new of @where leads to somewhere in the layers below it. What it may lead to is covered: of one
    directory in two places the one that is looked up first wins.
    """
    out = [("lower1", "file", "d/f", b"f", {}), ("lower1", "file", "d/sub/f", b"sub", {}),
           ("lower1", "file", "file", b"file", {}), ("lower1", "link", "link", "d", {}),
           ("lower1", "fifo", "fifo", None, {}), ("lower1", "file", "far/away/f", b"far", {}),
           ("lower1", "file", "opaque/sub/f", b"o", {}), ("lower1", "file", "white/f", b"w", {}),
           ("lower1", "file", "new/f", b"new", {}), ("lower1", "file", "twice/f", b"2", {}),
           (where, "dir", "new", None, {p + "redirect": value})]
    if where == "upper":
        out += [("lower0", "dir", "opaque", None, {p + "opaque": b"y"}),
                ("lower0", "whiteout", "white", None, {}),
                ("lower0", "dir", "twice", None, {p + "redirect": "far"})]
    if where != "lower1":
        out += [(where, "whiteout", name, None, {})
                for name in ("d", "far", "twice", "opaque", "white")]
    return out


FOLLOWING = ["", "redirect_dir=on", "redirect_dir=follow", "redirect_dir=nofollow",
             "redirect_dir=off", "metacopy=on", "index=on", "nfs_export=on", "xino=on", "userxattr",
             "userxattr,redirect_dir=nofollow"]


@options(*FOLLOWING)
@pytest.mark.parametrize("where", ["upper", "lower0"])
def test_redirects_of_directories(layers, options, where):
    p = U if "userxattr" in options else T
    cases = {k: redirected(p, v, where) for k, v in numbered("r", REDIRECTS).items()}
    compare(layers, cases, options)


@options("", "redirect_dir=nofollow", "userxattr")
def test_redirects_in_the_lowest_layer_mean_nothing(layers, options):
    p = U if "userxattr" in options else T
    cases = {k: redirected(p, v, "lower1") for k, v in numbered("r", REDIRECTS).items()}
    compare(layers, cases, options)


@options("", "redirect_dir=on", "redirect_dir=nofollow")
def test_redirects_without_upper(layers, options):
    cases = {k: redirected(T, v, "lower0") for k, v in numbered("r", REDIRECTS).items()}
    compare(layers, cases, options, upper=False)


CHAINS = {
    "loop1": [("upper", "dir", "a", None, {T + "redirect": "a"}),
              ("lower0", "dir", "a", None, {T + "redirect": "a"}),
              ("lower1", "file", "a/f", b"f", {})],
    "loop2": [("upper", "dir", "a", None, {T + "redirect": "b"}),
              ("lower0", "dir", "b", None, {T + "redirect": "a"}),
              ("lower1", "file", "a/f", b"f", {}), ("lower1", "file", "b/g", b"g", {})],
    "inside": [("upper", "dir", "a", None, {T + "redirect": "/%/a/b"}),
               ("lower0", "file", "a/b/f", b"f", {}), ("lower1", "file", "a/b/g", b"g", {})],
    "parent": [("upper", "dir", "a/b", None, {T + "redirect": "/%/a"}),
               ("lower0", "file", "a/f", b"f", {}), ("lower1", "file", "a/b/g", b"g", {})],
    "itself": [("upper", "dir", "a", None, {T + "redirect": "/%"}),
               ("lower0", "file", "a/f", b"f", {})],
    "chain": [("upper", "dir", "a", None, {T + "redirect": "/%/x/b"}),
              ("upper", "whiteout", "x", None, {}), ("upper", "whiteout", "y", None, {}),
              ("lower0", "dir", "x/b", None, {T + "redirect": "/%/y/c"}),
              ("lower0", "file", "x/b/f0", b"0", {}), ("lower1", "file", "y/c/f1", b"1", {})],
    "opaque": [("upper", "dir", "a", None, {T + "redirect": "/%/x/b", T + "opaque": b"y"}),
               ("lower0", "file", "x/b/f0", b"0", {})],
    "opaque ancestor": [("upper", "dir", "a", None, {T + "redirect": "/%/x/b"}),
                        ("lower0", "dir", "x", None, {T + "opaque": b"y"}),
                        ("lower0", "file", "x/b/f0", b"0", {}),
                        ("lower1", "file", "x/b/f1", b"1", {})],
    "out of opaque": [("upper", "dir", "a", None, {T + "redirect": "/%/x/b"}),
                      ("upper", "whiteout", "x", None, {}), ("upper", "whiteout", "y", None, {}),
                      ("lower0", "dir", "x", None, {T + "opaque": b"y"}),
                      ("lower0", "dir", "x/b", None, {T + "redirect": "/%/y"}),
                      ("lower1", "file", "y/f1", b"1", {}), ("lower1", "file", "x/b/f2", b"2", {})],
    "ancestor": [("upper", "dir", "a", None, {T + "redirect": "/%/x/b"}),
                 ("upper", "whiteout", "x", None, {}), ("upper", "whiteout", "z", None, {}),
                 ("lower0", "dir", "x", None, {T + "redirect": "/%/z"}),
                 ("lower0", "file", "x/b/f0", b"0", {}), ("lower1", "file", "z/b/f1", b"1", {}),
                 ("lower1", "file", "x/b/f2", b"2", {})],
    "double": [("upper", "dir", "a", None, {T + "redirect": "d"}),
               ("upper", "dir", "b", None, {T + "redirect": "d"}),
               ("upper", "whiteout", "d", None, {}), ("lower0", "file", "d/f", b"f", {})],
    "file below": [("upper", "dir", "a", None, {T + "redirect": "d"}),
                   ("lower0", "file", "d", b"file", {}), ("lower1", "file", "d/f", b"f", {})],
}


@pytest.mark.parametrize("name", sorted(CHAINS))
@options("", "redirect_dir=on", "redirect_dir=nofollow", quick=1)
def test_chains_and_loops_of_redirects(layers, options, name):
    """Each by itself: a union in which one directory is in two places is compared no further."""
    compare(layers, {name.replace(" ", "-"): CHAINS[name]}, options)


DIGEST = bytes(range(64))
METACOPIES = [
    b"", b"\0", b"\0\0", b"\0\4\0", b"\0\4\0\0", b"\1\4\0\0", b"\xff\4\0\0", b"\0\3\0\0",
    b"\0\5\0\0", b"\0\4\0\0\0", b"\0\4\1\0", b"\0\4\xff\0", b"\0\4\0\1", b"\0\4\0\xff",
    b"\0\x24\0\1" + DIGEST[:32], b"\0\x24\0\2" + DIGEST[:32], b"\0\x24\0\1" + DIGEST[:31],
    b"\0\x24\0\1" + DIGEST[:33], b"\0\x44\0\2" + DIGEST, b"\0\x45\0\2" + DIGEST + b"!",
    b"\0\x44\0\3" + DIGEST, b"\0\x44\0\0" + DIGEST, b"\0" * 4, b"\0" * 36, b"y", b"\4\0\0\0",
    b"\0\0\0\4", b"\0\xff\0\1" + DIGEST * 4, b"\0" * LONG, b"\xff" * 68,
]
MCOPY = ["metacopy=on", "", "metacopy=on,verity=on", "metacopy=on,verity=require", "verity=require",
         "redirect_dir=nofollow", "metacopy=on,index=on", "nfs_export=on", "userxattr"]


def metacopied(p, value, where, redirect=None, size=4):
    marks = {p + "metacopy": value}
    if redirect is not None:
        marks[p + "redirect"] = redirect
    return [("lower1", "file", "f", b"data", {}), ("lower1", "file", "d/g", b"data", {}),
            ("lower1", "dir", "dir", None, {}), ("lower1", "link", "link", "f", {}),
            ("lower1", "fifo", "fifo", None, {}), ("lower1", "device", "dev", None, {}),
            ("lower1", "whiteout", "white", None, {}), ("lower1", "dir", "new", None, {}),
            ("lower1", "sparse", "meta", 4, {p + "metacopy": b""}),
            (where, "sparse", "f" if redirect is None else "g", size, marks),
            *[(where, "whiteout", name, None, {}) for name in ("f", "d", "meta", "new")]]


@options(*MCOPY)
@pytest.mark.parametrize("where", ["upper", "lower0"])
def test_values_of_metacopy(layers, options, where):
    p = U if "userxattr" in options else T
    cases = {k: metacopied(p, v, where) for k, v in numbered("m", METACOPIES).items()}
    compare(layers, cases, options)


@options(*MCOPY)
@pytest.mark.parametrize("where", ["upper", "lower0"])
def test_metacopies_of_what_is_no_data(layers, options, where):
    """Redirected to every type, to nothing, to another metacopy; on what is no regular file."""
    p = U if "userxattr" in options else T
    targets = [*REDIRECTS, "f", "/%/f", "/%/d/g", "dir", "/%/dir", "link", "/%/link", "fifo", "dev",
               "/%/dev", "white", "/%/white", "meta", "/%/meta", "g", "/%/g", "/%/fifo"]
    cases = {k: metacopied(p, b"", where, v) for k, v in numbered("t", targets).items()}
    for kind in ("dir", "fifo", "link", "device"):
        if p == T or kind == "dir":
            cases[f"on-{kind}"] = [(where, kind, "x", "t", {p + "metacopy": b""}),
                                   ("lower1", "file", "x", b"data", {})]
    for below in ("dir", "fifo", "link", "device", "whiteout"):
        cases[f"same-{below}"] = [(where, "sparse", "x", 4, {p + "metacopy": b""}),
                                  ("lower1", below, "x", "t", {})]
    cases["nothing"] = [(where, "sparse", "x", 4, {p + "metacopy": b""})]
    cases["opaque"] = [(where, "dir", "d", None, {p + "opaque": b"y"}),
                       (where, "sparse", "d/x", 4, {p + "metacopy": b""}),
                       ("lower1", "file", "d/x", b"data", {})]
    cases["lowest"] = [("lower1", "sparse", "x", 4, {p + "metacopy": b""})]
    cases["chain"] = [("upper", "sparse", "a", 4, {p + "metacopy": b"", p + "redirect": "b"}),
                      ("upper", "whiteout", "b", None, {}), ("upper", "whiteout", "c", None, {}),
                      ("lower0", "sparse", "b", 4, {p + "metacopy": b"", p + "redirect": "c"}),
                      ("lower1", "file", "c", b"data", {})]
    cases["chain-broken"] = [("upper", "sparse", "a", 4, {p + "metacopy": b""}),
                             ("lower0", "sparse", "a", 4, {p + "metacopy": b"\1"}),
                             ("lower1", "file", "a", b"data", {})]
    compare(layers, cases, options)


@options("", "metacopy=on", "redirect_dir=nofollow", "userxattr", "metacopy=on,verity=require",
         "redirect_dir=on")
@pytest.mark.parametrize("where", ["upper", "lower0", "lower1"])
def test_metacopies_of_data_only_layers(layers, options, where):
    p = U if "userxattr" in options else T
    targets = ["/%/f", "/%/d/g", "f", "/%/link", "/%/d/up", "/%/d/../f", "/%/fifo", "/%/dir",
               "/%/dirlink/g", "/%/missing", "/%/white", "/%/meta", "/%/../%/f", "//%/f", "/%/f/",
               "/", "", "/..", "/%/abs", "/%/d\0", "/%/f\0x", "/" + "x" * 256, "/%/dev", "/%/hard",
               "/%/" + "d/../" * 50 + "f"]
    data = [("data", "file", "f", b"DATA", {}), ("data", "file", "d/g", b"DATA", {}),
            ("data", "link", "link", "f", {}), ("data", "link", "d/up", "../f", {}),
            ("data", "fifo", "fifo", None, {}), ("data", "dir", "dir", None, {}),
            ("data", "link", "dirlink", "d", {}), ("data", "whiteout", "white", None, {}),
            ("data", "sparse", "meta", 4, {p + "metacopy": b""}), ("data", "device", "dev", None, {}),
            ("data", "link", "abs", "/etc/hostname", {}), ("data", "hard", "hard", "f", {})]
    cases = {}
    for k, v in numbered("t", targets).items():
        objects = [o if o[1] != "hard" else (*o[:3], f"{k}/f", {}) for o in data]
        cases[k] = objects + [
            (where, "sparse", "x", 4, {p + "metacopy": b"", p + "redirect": v})]
    for k, v in numbered("v", METACOPIES).items():
        objects = [o if o[1] != "hard" else (*o[:3], f"{k}/f", {}) for o in data]
        cases[k] = objects + [
            (where, "sparse", "x", 4, {p + "metacopy": v, p + "redirect": "/%/f"})]
    compare(layers, cases, options, data=True)


def damaged(handle):
    """An origin cut, stretched, of another version, byte order, type, filesystem, object."""
    h = bytearray(handle)

    def put(at, *values):
        out = bytearray(h)
        for i, v in enumerate(values):
            out[at + i] = v & 255
        return bytes(out)

    out = [bytes(h[:n]) for n in (0, 1, 2, 3, 4, 5, 20, 21, 22, len(h) - 1)]
    out += [bytes(h) + b"\0", bytes(h) + b"x" * 100, b"\0" * len(h), b"\xff" * len(h), b"y"]
    out += [put(0, 1), put(0, 255), put(1, 0xFC), put(1, 0), put(1, 0xF8)]
    out += [put(2, n) for n in (0, 1, 4, 5, 20, 21, 22, len(h) - 1, len(h) + 1, 128, 255)]
    out += [put(3, n) for n in (1, 2, 3, 4, 5, 8, 0x80, 0xFF)]
    out += [put(4, n) for n in (0, 2, 3, 0x51, 0x81, 0xF8, 0xFB, 0xFE, 0xFF)]
    out += [put(5, h[5] ^ 1), put(5, *[0] * 16), put(5, *[0xFF] * 16), put(20, h[20] ^ 0x80)]
    out += [put(21, h[21] ^ 1), put(21, *[0] * (len(h) - 21)), put(21, *[0xFF] * (len(h) - 21)),
            put(len(h) - 1, h[-1] ^ 1)]
    longest = 21 + 128  # that name_to_handle_at(2) knows
    out += [bytes(h[:2]) + bytes([longest]) + bytes(h[3:]) + b"\0" * (longest - len(h)),
            bytes(reversed(h))]
    return out


COUNT = len(damaged(bytes(range(33))))
INDEXED = ["", "index=on", "nfs_export=on", "metacopy=on", "metacopy=on,index=on", "uuid=off",
           "uuid=null", "xino=on", "redirect_dir=nofollow"]


def nth(i):
    def pick(handle):
        return damaged(handle)[i]

    pick.__doc__ = f"damage {i}"
    return pick


def whole(handle):
    """intact"""
    return handle


@options(*INDEXED, "userxattr", "userxattr,index=on")
def test_origins_of_upper_objects(layers, options):
    """Of files, directories, metacopies; damaged, and of an object of another type."""
    p = U if "userxattr" in options else T
    cases = {}
    for i in range(COUNT):
        cases[f"o{i:03}"] = [
            ("lower1", "file", "f", b"below", {}), ("lower1", "file", "d/f", b"below", {}),
            ("lower0", "file", "d/g", b"between", {}), ("upper", "dir", "", None, {p + "impure": b"y"}),
            ("upper", "file", "f", b"above", {p + "origin": Origin(nth(i))}),
            ("upper", "dir", "d", None, {p + "origin": Origin(nth(i), "d")}),
        ]
    for name, of in (("dir", "d"), ("file", "f"), ("fifo", "p"), ("symlink", "s")):
        cases[f"of-{name}"] = [
            ("lower1", "file", "f", b"below", {}), ("lower1", "file", "d/f", b"below", {}),
            ("lower1", "fifo", "p", None, {}), ("lower1", "link", "s", "f", {}),
            *[("upper", kind, f"up-{kind}", b"x", {p + "origin": Origin(whole, of)})
              for kind in ("file", "dir", "fifo", "link")
              if p == T or kind in ("file", "dir")],
            *[("upper", "whiteout", covered, None, {}) for covered in ("f", "d", "p", "s")]]
    compare(layers, cases, options)


@options("", "metacopy=on", "index=on", quick=1)
def test_origins_in_lower_layers_mean_nothing(layers, options):
    cases = {f"o{i:03}": [("lower1", "file", "f", b"below", {}),
                          ("lower0", "file", "g", b"x", {T + "origin": Origin(nth(i))})]
             for i in range(COUNT)}
    compare(layers, cases, options)


PROTATTR = [b"", b"a", b"i", b"ai", b"ia", b"aa", b"ii", b"x", b"ax", b"xa", b"a\0", b"\0", b"i\0",
            b"A", b"I", b"a,i", b"aia", b"a" * 32, b"ai" * 100, b"\xff", b" a"]


@options("", "metacopy=on", "index=on", "userxattr", quick=1)
@pytest.mark.parametrize("where", ["upper", "lower0"])
def test_values_of_protattr(layers, options, where):
    """Chmod, append, write, truncate, rename, unlink say whether it is believed."""
    p = U if "userxattr" in options else T
    cases = {}
    for k, v in numbered("p", PROTATTR).items():
        cases[k] = [(where, "file", "f", b"x", {p + "protattr": v}),
                    (where, "dir", "d", None, {p + "protattr": v})]
    compare(layers, cases, options)


# --- a mount or none ------------------------------------------------------------------------------


def on_disk(path):
    """Names and types, for what a mount leaves of an index."""
    if not path.is_dir():
        return None
    return sorted((n, stat.filemode(os.lstat(path / n).st_mode)[0]) for n in os.listdir(path)
                  if not n.startswith("#"))


def verdict(layers, side, options):
    """Whether both mount it, what the root then shows, and what is left of the index."""
    failed = layers.mount(side, options)
    out = {"refused": failed is not None}
    if failed is None:
        out["names"] = code(lambda: [n for n in sorted(os.listdir(layers.point))
                                     if code(os.lstat, layers.point / n) != "EIO"])
        for name in ("f", "g", "d", "x"):
            out[name] = view(layers.point / name, {})
        layers.umount()
    elif side == "kernel":
        out["why"] = failed
    else:
        out["said"] = failed
    out["index"] = on_disk(layers.work[side] / "index")
    uuid = lib.xattr(layers.upper[side], T + "uuid")
    out["uuid"] = uuid if uuid is None or len(uuid) != 16 or uuid == bytes(16) else "random"
    return out


def judge(layers, options):
    kernel = verdict(layers, "kernel", options)
    plyfs = verdict(layers, "plyfs", options)
    why, said = kernel.pop("why", None), plyfs.pop("said", None)
    assert kernel == plyfs, f"the kernel says {why}, plyfs {said}"


def kernel_made(layers, options):
    """Uppers with an index, as the kernel makes them: a hard link copied up, and a directory."""
    make(layers.lower[1], "file", "f", b"data")
    make(layers.lower[1], "hard", "g", "f")
    make(layers.lower[1], "file", "d/in", b"data")
    make(layers.lower[1], "file", "x", b"x")
    for side in ("kernel", "plyfs"):
        made = layers.work[side].parent
        words = (f"lowerdir={layers.lower[0]}:{layers.lower[1]},upperdir={layers.upper[side]},"
                 f"workdir={layers.work[side]},{options}")
        lib.sys_mount("overlay", made / "merged", "overlay", 0, words)
        os.chmod(layers.point / "f", 0o600)
        os.chmod(layers.point / "d", 0o700)
        if "nfs_export" in options:
            os.unlink(layers.point / "x")
        lib.sys_umount(layers.point)


UUIDS = [b"", b"\0", b"x" * 15, b"x" * 16, b"x" * 17, b"\0" * 16, b"x" * 255, b"x" * LONG]


@options("", "uuid=auto", "uuid=on", "uuid=null", "uuid=off")
@pytest.mark.parametrize("value", UUIDS, ids=lambda v: f"{v[:1]!r}x{len(v)}")
@pytest.mark.parametrize("impure", [False, True])
def test_values_of_uuid(layers, options, value, impure):
    for root in layers.upper.values():
        if not set_mark(root, T + "uuid", value):
            pytest.skip("no room for the value")
        if impure:
            set_mark(root, T + "impure", b"y")
    judge(layers, options)


@pytest.mark.parametrize("damage", range(COUNT))
@options("index=on", "", quick=1)
def test_origin_of_the_root_of_upper(layers, options, damage):
    kernel_made(layers, "index=on")
    for root in layers.upper.values():
        set_mark(root, T + "origin", damaged(handle_of(layers.lower[0]))[damage])
    judge(layers, options)


@pytest.mark.parametrize("damage", range(COUNT))
@pytest.mark.parametrize("what", ["index", "entry origin"])
def test_handles_in_an_index(layers, what, damage):
    """The mark of the index that says of which upper it is, and the origin of an entry."""
    kernel_made(layers, "index=on")
    for side in ("kernel", "plyfs"):
        index = layers.work[side] / "index"
        path, mark = index, T + "upper"
        if what == "entry origin":
            path = index / sorted(n for n in os.listdir(index) if n[0] != "#")[0]
            mark = T + "origin"
        old = os.getxattr(path, mark)
        os.setxattr(path, mark, damaged(old)[damage])
    judge(layers, "index=on")


@pytest.mark.parametrize("damage", range(COUNT))
def test_handles_of_indexed_directories(layers, damage):
    kernel_made(layers, "nfs_export=on")
    for side in ("kernel", "plyfs"):
        index = layers.work[side] / "index"
        for name in os.listdir(index):
            if (index / name).is_dir():
                old = os.getxattr(index / name, T + "upper")
                os.setxattr(index / name, T + "upper", damaged(old)[damage])
    judge(layers, "nfs_export=on")


NAMES = ["x", "00", "00fb", "0", "zz", "00fbx", "00FB1D0001", "00fb1d0001" + "0" * 24,
         "00fb210001" + "0" * 56, "01fb210001" + "0" * 56, "00fb21ff01" + "0" * 56, "f" * 255,
         "0" * 66, "00fb210001" + "0" * 57, "00fb210001" + "g" * 56, " ", "work", "#", "#zz", "#1",
         "00fb", "00fb040001" + "0" * 56, "00fc210001" + "0" * 56, "00fbff0001" + "0" * 245]


@options("index=on", "nfs_export=on", "", quick=1)
@pytest.mark.parametrize("kind", ["file", "dir", "whiteout", "fifo", "link"])
@pytest.mark.parametrize("name", NAMES, ids=lambda n: f"{n[:12]}-{len(n)}")
def test_names_of_index_entries(layers, options, kind, name):
    kernel_made(layers, options if options else "index=on")
    for side in ("kernel", "plyfs"):
        make(layers.work[side] / "index", kind, name, "target" if kind == "link" else b"")
    judge(layers, options)


NLINKS = [b"", b"U", b"L", b"U+0", b"U-0", b"L+0", b"U+1", b"U-1", b"L-1", b"L+1", b"U+2", b"U-2",
          b"U-9", b"U+2147483647", b"U-2147483648", b"U+2147483648", b"U+99999999999999", b"X+1",
          b"u+1", b"U1", b"U 1", b"U+1x", b"U+\0", b"U+1\0", b"U+1\n", b"+1", b"1", b"U++1", b"U+-1",
          b"U+0x1", b"L" * 12, b"L" * 13, b"L" * 200, b"\0", b"\xff"]


@options("index=on", "nfs_export=on", quick=1)
@pytest.mark.parametrize("value", NLINKS, ids=repr)
def test_values_of_nlink(layers, options, value):
    kernel_made(layers, options)
    for side in ("kernel", "plyfs"):
        os.setxattr(layers.upper[side] / "f", T + "nlink", value)
    judge(layers, options)


@options("index=on", "nfs_export=on", quick=1)
@pytest.mark.parametrize("damage", ["no origin", "no nlink", "no upper", "upper gone", "stale",
                                    "type", "other work", "index is a file", "index is a link",
                                    "not empty"])
def test_an_index_that_does_not_fit(layers, options, damage):
    kernel_made(layers, options)
    for side in ("kernel", "plyfs"):
        index, upper = layers.work[side] / "index", layers.upper[side]
        entries = [index / n for n in sorted(os.listdir(index)) if n[0] != "#"]
        files = [e for e in entries if e.is_file()]
        dirs = [e for e in entries if e.is_dir()]
        if damage in ("no origin", "no nlink"):
            for e in files:
                if lib.xattr(e, T + damage[3:]) is not None:
                    os.removexattr(e, T + damage[3:])
        elif damage == "no upper":
            for e in (*dirs, index):
                os.removexattr(e, T + "upper")
        elif damage == "upper gone":
            os.unlink(upper / "f")
            shutil.rmtree(upper / "d")
        elif damage == "type":
            for e in entries:
                e.rmdir() if e.is_dir() else e.unlink()
                make(index, "fifo", e.name)
        elif damage == "other work":
            upper.rename(upper.with_name("old-" + side))
            shutil.copytree(upper.with_name("old-" + side), upper, symlinks=True,
                            ignore=shutil.ignore_patterns("x"))
        elif damage.startswith("index is a"):
            shutil.rmtree(index)
            make(layers.work[side], damage.split()[-1], "index", b"" if "file" in damage else "work")
        elif damage == "not empty":
            for e in dirs:
                make(e, "file", "unexpected")
    if damage == "stale":
        os.unlink(layers.lower[1] / "f")
        os.unlink(layers.lower[1] / "g")
        shutil.rmtree(layers.lower[1] / "d")
    judge(layers, options)


# --- what the oracle found ------------------------------------------------------------------------


def test_blocks_of_lazily_found_data_are_known_once_it_was_read(layers):
    make(layers.data, "file", "d", b"x" * 5000)
    path = make(layers.lower[1], "sparse", "f", 5000)
    os.truncate(layers.data / "d", 100000)
    os.truncate(path, 100000)
    os.setxattr(path, T + "metacopy", b"")
    os.setxattr(path, T + "redirect", b"/d")
    seen = {}
    for side in ("kernel", "plyfs"):
        assert layers.mount(side, "metacopy=on", data=True) is None
        before = os.stat(layers.point / "f").st_blocks
        content(layers.point / "f")
        seen[side] = before, os.stat(layers.point / "f").st_blocks
        layers.umount()
    assert seen["kernel"] == seen["plyfs"]
    assert seen["plyfs"][1] == os.stat(layers.data / "d").st_blocks


def left_by(layers, options, function):
    """The error, and the marks that it leaves on both sides' uppers."""
    out = []
    for side in ("kernel", "plyfs"):
        assert layers.mount(side, options) is None
        said = code(function, layers.point)
        layers.umount()
        marks = {}
        for rel in lib.walk(layers.upper[side]):
            marks[rel] = lib.xattrs(layers.upper[side] / rel)
            marks[rel].pop(T + "uuid", None)
        out.append((said, marks))
    return out


def test_rename_onto_a_full_upper_directory_fails_when_all_else_is_done(layers):
    make(layers.lower[0], "file", "s/f", b"x")
    for root in layers.roots("upper"):
        make(root, "file", "t/f", b"x")
    kernel, plyfs = left_by(layers, "redirect_dir=on", lambda m: os.rename(m / "s", m / "t"))
    assert kernel == plyfs
    assert plyfs[0] == "ENOTEMPTY"
    assert plyfs[1]["s"][T + "redirect"] == b"s"


def test_rename_of_a_directory_whose_redirect_gets_too_long(layers):
    deep = "/".join(["n" * 100] * 3)
    make(layers.lower[0], "file", f"{deep}/s/f", b"x")
    for root in layers.roots("upper"):
        make(root, "file", "t/f", b"x")
    kernel, plyfs = left_by(layers, "redirect_dir=on", lambda m: os.rename(m / deep / "s", m / "t"))
    assert kernel == plyfs
    assert plyfs[0] == "EXDEV"


def test_link_of_a_metacopy_whose_redirect_gets_too_long(layers):
    deep = "/".join(["n" * 100] * 3)
    make(layers.lower[0], "file", f"{deep}/f", b"x")
    make(layers.lower[0], "dir", "t")
    kernel, plyfs = left_by(layers, "metacopy=on", lambda m: os.link(m / deep / "f", m / "t/f"))
    assert kernel == plyfs
    assert plyfs[0] == "EXDEV"
    assert "t" in plyfs[1]
