# SPDX-License-Identifier: MIT
"""plyfs mount takes the words of mount -t overlay, and does with them what the kernel does.

Each combination of options goes to both, on equal layers: it mounts or fails with the same errno,
the options in effect are the same (the kernel shows them in /proc/self/mountinfo, plyfs by its
status), and a fixed set of operations has the same results, on the mount and in upper and work.
"""

import contextlib
import ctypes
import errno
import itertools
import os
from pathlib import Path

import plyfs_testlib as lib
import pytest
from plyfs_testlib import make_whiteout, mkdir, run_plyfs, write

ABSENT = None

# Each axis: a word of -o with its values, or something about the mount that is no word.
AXES = {
    "redirect_dir": [ABSENT, "on", "follow", "nofollow", "off"],
    "metacopy": [ABSENT, "on", "off"],
    "index": [ABSENT, "on", "off"],
    "nfs_export": [ABSENT, "on", "off"],
    "xino": [ABSENT, "on", "auto", "off"],
    "uuid": [ABSENT, "auto", "on", "null", "off"],
    "verity": [ABSENT, "off", "on", "require"],
    "sync": [ABSENT, "volatile", "fsync=auto", "fsync=strict", "fsync=volatile"],
    "userxattr": [False, True],
    "default_permissions": [False, True],
    "creds": [ABSENT, "override_creds", "nooverride_creds"],
    "access": [ABSENT, "ro", "rw"],
    "upper": [True, False],
    "data": [ABSENT, "::", "+="],
    # lower layers on another filesystem; ramfs has neither file handles, nor xattrs, nor a uuid
    "apart": [ABSENT, "tmpfs", "ramfs"],
}

# What decides about each other: all of their combinations.
ENTANGLED = ["redirect_dir", "metacopy", "index", "nfs_export", "userxattr", "upper"]
# ... and with these, some.
TRIPLES = ["redirect_dir", "metacopy", "nfs_export", "verity", "userxattr", "upper", "data"]

PLAIN = {name: values[0] for name, values in AXES.items()}


def all_tuples(axes, width, allowed=lambda row: True):
    """Rows of one value for each axis such that each tuple of values of any width axes is in one.

    allowed() says of a part of a row whether rows may hold it; it must be true of the first values.
    Greedy, and the same every time.
    """
    names = list(axes)
    missing = {
        (group, values): None
        for group in itertools.combinations(names, width)
        for values in itertools.product(*(axes[n] for n in group))
        if allowed(dict(zip(group, values)))
    }
    while missing:
        group, values = next(iter(missing))
        row = dict(zip(group, values))
        for name in names:
            if name in row:
                continue
            rows = [{**row, name: v} for v in axes[name]]
            rows = [r for r in rows if allowed(r)]
            row = max(rows, key=lambda r: gain(missing, names, r, name, width))
        for other in itertools.combinations(names, width):
            missing.pop((other, tuple(row[n] for n in other)), None)
        yield {n: row[n] for n in names}


def gain(missing, names, row, new, width):
    """How many missing tuples the new value makes part of the row."""
    others = [n for n in names if n in row and n != new]
    count = 0
    for group in itertools.combinations(others, width - 1):
        full = tuple(n for n in names if n in group or n == new)
        count += (full, tuple(row[n] for n in full)) in missing
    return count


def peaceful(row):
    """No two words exclude each other, so that it mounts. More is left out than has to be."""
    redirect, metacopy = row.get("redirect_dir"), row.get("metacopy") == "on"
    exported = row.get("nfs_export") == "on"
    return not (
        (metacopy and (redirect not in (ABSENT, "on") or exported or row.get("userxattr")))
        or (exported and row.get("index") == "off")
        or (row.get("userxattr") and redirect not in (ABSENT, "nofollow"))
    )


def product(names, base=None):
    for values in itertools.product(*(AXES[n] for n in names)):
        yield {**PLAIN, **(base or {}), **dict(zip(names, values))}


def words_of(case):
    """The words of -o, without the layers."""
    out = []
    for name in ("redirect_dir", "metacopy", "index", "nfs_export", "xino", "uuid", "verity"):
        if case[name]:
            out.append(f"{name}={case[name]}")
    out += [case[name] for name in ("sync", "creds", "access") if case[name]]
    out += [name for name in ("userxattr", "default_permissions") if case[name]]
    return out


def spell(case):
    extra = [f"{n}={case[n]}" for n in ("upper", "data", "apart") if case[n] != PLAIN[n]]
    return ",".join(words_of(case) + extra) or "nothing"


# --- the layers -----------------------------------------------------------------------------------

PREFIXES = ("trusted.overlay.", "user.overlay.")


def mark(path, name, value):
    """Under both prefixes: one of them means something."""
    for prefix in PREFIXES if lib.settings.level == "root" else PREFIXES[1:]:
        os.setxattr(path, prefix + name, value)


class Layers:
    """Two lower layers, a data-only one, upper, work: always the same, at paths of their own."""

    def __init__(self, base, lower_base):
        self.base, self.lower_base = Path(base), Path(lower_base)
        self.upper, self.work, self.point = (
            mkdir(self.base / n) for n in ("upper", "work", "point")
        )
        self.top, self.bottom, self.data = (
            mkdir(self.lower_base / n) for n in ("top", "bottom", "data")
        )

    def fill(self, marked):
        """marked: the filesystem has xattrs."""
        write(self.top / "file", "data of the file" * 1000, mode=0o644)
        write(self.top / "single", "one name", mode=0o644)
        write(self.top / "h1", "two names", mode=0o644)
        os.link(self.top / "h1", self.top / "h2")
        write(self.top / "dir/a", "a")
        write(self.bottom / "dir/b", "b")
        write(self.top / "gone/x", "x")
        if not marked:
            return self
        # as an upper layer of other options left them
        write(self.bottom / "old/c", "c")
        make_whiteout(self.top / "old")
        mark(mkdir(self.top / "new"), "redirect", b"old")
        write(self.bottom / "meta", "data below", mode=0o644)
        with open(self.top / "meta", "wb") as f:
            f.truncate(10)
        mark(self.top / "meta", "metacopy", b"")
        write(self.data / "blobs/1", "data only")
        with open(self.top / "remote", "wb") as f:
            f.truncate(9)
        mark(self.top / "remote", "metacopy", b"")
        mark(self.top / "remote", "redirect", b"/blobs/1")
        return self

    def words(self, case):
        lowers = [self.top, self.bottom]
        data = [self.data] if case["data"] else []
        if case["data"] == "+=":
            out = [f"lowerdir+={p}" for p in lowers] + [f"datadir+={p}" for p in data]
        else:
            out = ["lowerdir=" + "::".join([":".join(map(str, lowers)), *map(str, data)])]
        if case["upper"]:
            out += [f"upperdir={self.upper}", f"workdir={self.work}"]
        return ",".join(out + words_of(case))


@contextlib.contextmanager
def new_layers(scratch, apart, name, full=True):
    """Layers in a new directory of that name; the lower ones on a filesystem of their own."""
    base = mkdir(scratch / name)
    lower = mkdir(base / "lower")
    if apart:
        lib.sys_mount(apart, lower, apart)
    try:
        layers = Layers(base, lower)
        yield layers.fill(apart != "ramfs") if full else layers
    finally:
        if apart:
            lib.sys_umount(lower, lib.MNT_DETACH)
    lib.remove_tree(base)


# --- the two implementations ----------------------------------------------------------------------


class Kernel:
    name = "kernel"

    def mount(self, layers, case):
        """0 or an errno."""
        flags = lib.MS_RDONLY if case["access"] == "ro" else 0
        words = [w for w in layers.words(case).split(",") if w not in ("ro", "rw")]
        try:
            lib.sys_mount("overlay", layers.point, "overlay", flags, ",".join(words))
        except OSError as e:
            return e.errno
        return 0

    def options(self, layers):
        return lib.find_mount(os.path.realpath(layers.point))[4].split(",", 1)[1]

    def umount(self, layers):
        lib.Mount(layers.point, self.name).umount()


ERRNO_OF_MESSAGE = {os.strerror(n): n for n in errno.errorcode}


class Plyfs:
    name = "plyfs"

    def __init__(self):
        self.daemon = None

    def mount(self, layers, case):
        before = set(lib.children())
        done = run_plyfs("mount", "-o", layers.words(case), layers.point)
        if done.returncode == 0:
            self.daemon = lib.adopt_daemon(before)
            return 0
        assert done.returncode in (1, 32), done
        line = done.stderr.splitlines()[-1]
        found = [n for text, n in ERRNO_OF_MESSAGE.items() if text in line]
        assert len(found) == 1, line
        return found[0]

    def options(self, layers):
        done = run_plyfs("status", "-o", layers.point)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def umount(self, layers):
        mounted = lib.Mount(layers.point, self.name)
        mounted.daemon = self.daemon
        mounted.umount()


def effective(line):
    """{word: value} of what the mount table shows, without layers and what the vfs shows."""
    out = {}
    for word in line.split(","):
        name, _, value = word.partition("=")
        if name in ("lowerdir", "lowerdir+", "datadir+", "upperdir", "workdir"):
            continue
        # plyfs has it always, and says nothing of it
        if name not in ("default_permissions", "relatime"):
            out[name] = value
    if out.get("fsync") == "volatile":
        del out["fsync"]
        out["volatile"] = ""
    for access in ("ro", "rw"):
        if access in out:
            del out[access]
            out["access"] = access
    return out


@pytest.fixture(scope="module")
def kernel_words():
    """The words that this kernel's overlayfs knows of those that not every one does."""
    fsopen, fsconfig = 430, 431
    known = set()
    for name, value in (("fsync", "auto"), ("override_creds", None), ("uuid", "null")):
        fd = lib.check(lib.libc.syscall(fsopen, b"overlay", 0))
        args = (0, name.encode(), None) if value is None else (1, name.encode(), value.encode())
        if lib.libc.syscall(fsconfig, fd, *args, 0) == 0:
            known.add(name)
        os.close(fd)
    return known


def fit(case, known):
    """What this kernel does not know is left out of the comparison."""
    case = dict(case)
    if "fsync" not in known and (case["sync"] or "").startswith("fsync="):
        # the same by an older word, or the default
        case["sync"] = "volatile" if case["sync"] == "fsync=volatile" else ABSENT
    if "override_creds" not in known:
        case["creds"] = ABSENT
    if lib.settings.level != "root":
        case["userxattr"] = True  # the kernel has no other xattrs there
    return case


# --- what is done on the mount --------------------------------------------------------------------


def attempt(function, *args):
    try:
        return function(*args)
    except OSError as e:
        return errno.errorcode[e.errno]


def content(path):
    return Path(path).read_bytes()[:40]


def append(path):
    lib.append(path, b"+")
    return "appended"


def rename(old, new):
    os.rename(old, new)
    return sorted(os.listdir(new))


def new_dir(path):
    for name in os.listdir(path):
        os.unlink(path / name)
    os.rmdir(path)
    os.mkdir(path)
    return os.listdir(path)


def links(*paths):
    return [(os.lstat(p).st_nlink, Path(p).read_bytes()) for p in paths]


class Handle(ctypes.Structure):
    _fields_ = [("size", ctypes.c_uint), ("type", ctypes.c_int), ("data", ctypes.c_ubyte * 128)]


def through_handle(point, path):
    """Encodes and opens again."""
    handle, mount_id = Handle(size=128), ctypes.c_int()
    lib.check(
        lib.libc.name_to_handle_at(
            lib.AT_FDCWD, os.fsencode(path), ctypes.byref(handle), ctypes.byref(mount_id), 0
        )
    )
    with lib.opened(point, os.O_RDONLY | os.O_DIRECTORY) as at:
        fd = lib.check(lib.libc.open_by_handle_at(at, ctypes.byref(handle), os.O_RDONLY))
        try:
            return os.fstat(fd).st_ino == os.lstat(path).st_ino
        finally:
            os.close(fd)


def marks_in(upper):
    """{path: overlay's marks}; of what differs from mount to mount only that it is there."""
    out = {}
    for rel in lib.walk(upper):
        path = os.path.join(upper, rel)
        st = os.lstat(path)
        found = {}
        if not os.path.islink(path):
            for name in os.listxattr(path):
                if "overlay." in name:
                    value = os.getxattr(path, name)
                    fixed = name.endswith(("opaque", "redirect", "impure", "nlink"))
                    found[name] = value if fixed else len(value) > 0
        is_file = os.path.isfile(path) and not os.path.islink(path)
        # a metacopy has its size and no data
        out[rel] = (oct(st.st_mode), is_file and (st.st_size, st.st_blocks > 0), found)
    return out


def stored_in(work):
    """What work holds besides temporary files: index and the marks of incompatible features."""
    index = Path(work) / "index"
    out = {"index": sorted(f"{os.lstat(p).st_mode:o}" for p in index.iterdir()) if index.exists()
           else None}
    for name in ("work/incompat/volatile/dirty",):
        out[name] = (Path(work) / name).exists()
    return out


def operate(layers, case):
    """{operation: result}."""
    point = layers.point
    out = {
        "a redirect below": attempt(lambda: sorted(os.listdir(point / "new"))),
        "a metacopy below": attempt(content, point / "meta"),
        "data-only": attempt(content, point / "remote"),
        "handle of a lower file": attempt(through_handle, point, point / "single"),
        "handle of a lower directory": attempt(through_handle, point, point / "dir"),
        "chmod": attempt(os.chmod, point / "file", 0o600),
        "content after chmod": attempt(content, point / "file"),
        "append to one of two names": attempt(append, point / "h1"),
        "two names": attempt(links, point / "h1", point / "h2"),
        "link": attempt(os.link, point / "single", point / "second"),
        "its names": attempt(links, point / "single"),
        "rename of a merged directory": attempt(rename, point / "dir", point / "moved"),
        "a directory in place of one": attempt(new_dir, point / "gone"),
        "handle of a changed file": attempt(through_handle, point, point / "file"),
        "append": attempt(append, point / "file"),
    }
    if case["upper"]:
        out["upper"] = marks_in(layers.upper)
        out["work"] = stored_in(layers.work)
    return out


# --- the comparisons ------------------------------------------------------------------------------


def take_one(scratch, implementation, case, full):
    """(errno, options in effect, results of operations)."""
    with new_layers(scratch, case["apart"], implementation.name, full) as layers:
        err = implementation.mount(layers, case)
        if err:
            return errno.errorcode[err], None, None
        try:
            options = effective(implementation.options(layers))
            return "mounted", options, operate(layers, case) if full else None
        finally:
            implementation.umount(layers)


def differences(case, kernel, plyfs):
    """Readable lines."""
    if kernel[0] != plyfs[0]:
        return [f"kernel: {kernel[0]} {kernel[1]}, plyfs: {plyfs[0]} {plyfs[1]}"]
    out = []
    if kernel[1] != plyfs[1]:
        out.append(f"in effect: kernel {kernel[1]}, plyfs {plyfs[1]}")
    for name in kernel[2] or {}:
        a, b = kernel[2][name], plyfs[2][name]
        if isinstance(a, dict):
            keys = [k for k in sorted({*a, *b}) if a.get(k) != b.get(k)]
            out += [f"{name} {k}: kernel {a.get(k)}, plyfs {b.get(k)}" for k in keys]
        elif a != b:
            out.append(f"{name}: kernel {a}, plyfs {b}")
    return out


def compare(scratch, cases, full):
    kernel, plyfs, failures, seen = Kernel(), Plyfs(), [], set()
    outcomes = set()
    for case in cases:
        key = tuple(case.values())
        if key in seen:
            continue
        seen.add(key)
        results = [take_one(scratch, i, case, full) for i in (kernel, plyfs)]
        outcomes.add(results[0][0])
        failures += [f"{spell(case)}: {line}" for line in differences(case, *results)]
    # what never fails, or never mounts, compares nothing
    assert "mounted" in outcomes and "EINVAL" in outcomes
    assert not failures, f"{len(failures)} differences in {len(seen)} combinations:\n" + "\n".join(
        failures
    )


pytestmark = [
    pytest.mark.plyfs_only("compares both"),
    pytest.mark.privileged("mounts the kernel's overlayfs"),
]


def test_generator_covers_what_it_should():
    axes = {"a": [0, 1, 2], "b": [0, 1], "c": [0, 1, 2, 3], "d": [0, 1]}
    rows = list(all_tuples(axes, 2))
    assert rows == list(all_tuples(axes, 2))
    for x, y in itertools.combinations(axes, 2):
        seen = {(row[x], row[y]) for row in rows}
        assert seen == set(itertools.product(axes[x], axes[y])), (x, y)
    assert len(rows) < 3 * 2 * 4 * 2

    def allowed(row):
        return not (row.get("a") == 1 and row.get("c") == 2)

    rows = list(all_tuples(axes, 3, allowed))
    assert all(allowed(row) for row in rows)
    for group in itertools.combinations(axes, 3):
        seen = {tuple(row[n] for n in group) for row in rows}
        every = itertools.product(*(axes[n] for n in group))
        assert seen == {v for v in every if allowed(dict(zip(group, v)))}, group


@pytest.mark.limit(240)
def test_every_pair_of_options(scratch, kernel_words):
    """Outcome, options in effect and operations; each that can be, in a mount that works."""
    cases = [*all_tuples(AXES, 2), *all_tuples(AXES, 2, peaceful)]
    compare(scratch, [fit(c, kernel_words) for c in cases], full=True)


@pytest.mark.limit(300)
def test_every_combination_of_what_is_entangled(scratch, kernel_words):
    """Outcome and options in effect."""
    compare(scratch, [fit(c, kernel_words) for c in product(ENTANGLED)], full=False)


@pytest.mark.limit(300)
def test_every_triple_of_the_marks_of_layers(scratch, kernel_words):
    """Outcome, options in effect and operations, of what decides how layers are read."""
    axes = {n: AXES[n] for n in TRIPLES}
    rows = [*all_tuples(axes, 3), *all_tuples(axes, 3, peaceful)]
    cases = [{**PLAIN, **row} for row in rows]
    compare(scratch, [fit(c, kernel_words) for c in cases], full=True)


# --- the grammar of layers ------------------------------------------------------------------------

UPPER = "upperdir=u,workdir=w"
LAYER_WORDS = [
    "lowerdir=a:b",
    "lowerdir=a:b::c::d",
    "lowerdir=a::c:d",
    "lowerdir=a::c::d:b",
    "lowerdir=a:b:",
    "lowerdir=a:b::",
    "lowerdir=a:b:::c",
    "lowerdir=::c",
    "lowerdir=:a:b",
    "lowerdir=a::c:",
    "lowerdir=a:b:a",
    "lowerdir=a::c::c",
    "lowerdir=a::a",
    "lowerdir=a:a\\:b",
    "lowerdir=a:a:b",
    "lowerdir=a:a\\\\b",
    "lowerdir=a:a\\,b",
    "lowerdir=\\a:b",
    "lowerdir=a:missing",
    "lowerdir=a::missing",
    "lowerdir=a:file",
    "lowerdir=a::file",
    "lowerdir=a:b,lowerdir=b:c",
    "lowerdir=a:b,lowerdir=",
    "lowerdir=a:b,lowerdir=a:",
    "lowerdir=",
    "lowerdir",
    "lowerdir+=a",
    "lowerdir+=a,lowerdir+=b",
    "lowerdir+=a,datadir+=c,datadir+=d",
    "lowerdir+=a,lowerdir+=a",
    "lowerdir+=a,datadir+=a",
    "datadir+=c",
    "datadir+=c,lowerdir+=a",
    "lowerdir=a:b,lowerdir+=c",
    "lowerdir=a:b,datadir+=c",
    "lowerdir=a::c,datadir+=d",
    "lowerdir+=a,lowerdir=b:c",
    "lowerdir+=a,datadir+=c,lowerdir=b:d",
    "lowerdir=,lowerdir+=a,lowerdir+=b",
    "lowerdir=a:b,lowerdir=,lowerdir+=b,datadir+=c",
    "datadir+=c,lowerdir=a:b",
    "datadir+=c,lowerdir=,lowerdir+=a,lowerdir+=b",
    "lowerdir+=,lowerdir+=b",
    "lowerdir+=a,datadir+=",
    "lowerdir+=a,lowerdir+",
    "lowerdir+=a,lowerdir+=a:b",
    "lowerdir+=a,lowerdir+=a\\:b",
    "lowerdir+=a,lowerdir+=a\\b",
    "lowerdir+=a,lowerdir+=a\\\\b",
    "lowerdir+=a,lowerdir+=a,b",
    "lowerdir+=a,lowerdir+=a\\,b",
    "lowerdir+=a,lowerdir+=e f",
    "lowerdir+=a,lowerdir+=missing",
    "lowerdir+=a,datadir+=missing",
    f"lowerdir=a,{UPPER}",
    f"lowerdir+=a,{UPPER}",
    f"lowerdir=a::c,{UPPER}",
    f"datadir+=c,{UPPER}",
    UPPER,
    "lowerdir=a,upperdir=u",
    "lowerdir=a,upperdir=,workdir=w",
    "lowerdir=a,upperdir=u,workdir=u",
    "lowerdir=a,upperdir=u,workdir=u/in",
    "lowerdir=a,upperdir=u/in,workdir=u",
    "lowerdir=a:u,upperdir=u,workdir=w",
    "lowerdir=a::u,upperdir=u,workdir=w",
    "lowerdir=a:w,upperdir=u,workdir=w",
    "lowerdir=a:u/in,upperdir=u,workdir=w",
    "lowerdir=a:b,workdir=w",
    "lowerdir=a,upperdir=a:b,workdir=w",
    "lowerdir=a,upperdir=a\\\\b,workdir=w",
    "lowerdir=a,upperdir=a\\,b,workdir=w",
    "lowerdir=a,upperdir=missing,workdir=w",
    "lowerdir=a,upperdir=u,workdir=missing",
    "lowerdir=a,upperdir=file,workdir=w",
]


@pytest.fixture
def words_taken(scratch, monkeypatch):
    """words -> (outcome, what a file shows there) of either implementation, in fresh layers."""

    def take(implementation, words):
        base = mkdir(scratch / implementation.name)
        for name in ("a", "b", "c", "d", "a:b", "a\\b", "a,b", "e f"):
            write(base / name / name, name)
            write(base / name / "common", name)
        for name in ("u/in", "w", "point"):
            mkdir(base / name)
        write(base / "file")
        monkeypatch.chdir(base)
        layers = Layers.__new__(Layers)
        layers.point = base / "point"
        layers.words = lambda case: words
        try:
            err = implementation.mount(layers, {"access": ABSENT})
            if err:
                return errno.errorcode[err]
            try:
                return sorted(os.listdir("point")), (layers.point / "common").read_text()
            finally:
                implementation.umount(layers)
        finally:
            monkeypatch.chdir("/")
            lib.remove_tree(base)

    return take


@pytest.mark.root("overlapping layers, data-only ones without a word about xattrs")
def test_every_form_of_layers(words_taken):
    failures = []
    for words in LAYER_WORDS:
        kernel, plyfs = words_taken(Kernel(), words), words_taken(Plyfs(), words)
        if kernel != plyfs and not (words == "lowerdir+=a" and kernel == "EINVAL"):
            failures.append(f"{words}: kernel {kernel}, plyfs {plyfs}")
    assert not failures, "\n".join(failures)
