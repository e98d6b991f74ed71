# SPDX-License-Identifier: MIT
"""plyfs fsck on valid upper layers, which stay as they are, and on layers damaged at random.

A union is changed at random through the kernel's overlayfs or plyfs, which leaves a valid upper
layer. fsck has nothing to say of it. Then marks are damaged; what fsck -y makes of them is mounted
by both implementations, which show the same, and all that was seen before and is still there.
"""

import contextlib
import errno
import os
import random
import stat

import plyfs_testlib as lib
import pytest

FEATURES = {
    "default": "",
    "redirect": "redirect_dir=on",
    "metacopy": "redirect_dir=on,metacopy=on",
    "index": "redirect_dir=on,index=on",
    "export": "redirect_dir=on,nfs_export=on",
}
SEEDS = range(int(os.environ.get("PLYFS_FSCK_SEEDS", "4")))
OPERATIONS = 120


def options_of(features):
    """A file system without file handles has no index: then both mount without."""
    return FEATURES[features] if lib.settings.level == "root" else ""


def fsck(union, *args, features=""):
    options = lib.layer_options(union.lowers, union.upper, union.work, features)
    if lib.settings.level != "root":
        options += ",userxattr"
    return lib.run_plyfs("fsck", *args, "-o", options)


# --- a valid upper layer ------------------------------------------------------------------------


def make_lowers(rng, union, count):
    """Layers that cover one another in part."""
    for index in range(count):
        base = union.lower(index)
        for path in ("a", "b", "a/x", "a/y", "b/x", "c/d/e", "f"):
            if rng.random() < 0.7:
                lib.mkdir(base / path)
        for path in ("1", "2", "a/1", "a/x/1", "a/y/2", "b/x/3", "c/d/e/4", "c/5", "f/6", "f/7"):
            if rng.random() < 0.7:
                lib.write(base / path, f"{index} {path} " * rng.randrange(1, 300))
        for path in ("a/link", "b/link"):
            if rng.random() < 0.3:
                with contextlib.suppress(OSError):
                    os.link(base / "1", base / path)
        if rng.random() < 0.5:
            with contextlib.suppress(FileExistsError):
                os.symlink("1", base / "s")


def random_operations(rng, root, count):
    """Anything may fail, as with programs that meet each other."""

    def dirs():
        return [p for p in lib.walk(root) if stat.S_ISDIR(os.lstat(root / p).st_mode)]

    def files():
        return [p for p in lib.walk(root) if stat.S_ISREG(os.lstat(root / p).st_mode)]

    def name():
        return root / rng.choice(dirs()) / rng.choice("123456789xydekmn")

    def pick(found):
        found = [p for p in found if p != "."]
        return root / rng.choice(found) if found else root / "none"

    def write():
        # the name may be a fifo's
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NONBLOCK
        with lib.opened(name(), flags) as fd:
            os.write(fd, os.urandom(rng.randrange(200)))

    def remove():
        path = pick(list(lib.walk(root)))
        if path.is_dir() and not path.is_symlink():
            if rng.random() < 0.5:
                lib.subprocess.run(["rm", "-rf", path], check=False, timeout=30)
            else:
                path.rmdir()
        else:
            path.unlink()

    operations = (
        (3, write),
        (3, lambda: name().mkdir()),
        (4, remove),
        (4, lambda: os.rename(pick(dirs()), name())),
        (3, lambda: os.rename(pick(files()), name())),
        (2, lambda: os.link(pick(files()), name())),
        (3, lambda: os.chmod(pick(files()), rng.choice((0o600, 0o644, 0o755)))),
        (2, lambda: lib.append(pick(files()), b"more")),
        (1, lambda: os.symlink("target", name())),
        (1, lambda: os.chmod(pick(dirs()), rng.choice((0o700, 0o755)))),
        (1, lambda: os.mkfifo(name())),
    )
    weights = [w for w, _ in operations]
    for _ in range(count):
        with contextlib.suppress(OSError):
            rng.choices(operations, weights)[0][1]()


def make_valid(rng, union, features, impl):
    make_lowers(rng, union, rng.randrange(1, 4))
    union.check_kernel = union.check_work = False
    for _ in range(2):
        root = union.mount(features, impl=impl)
        random_operations(rng, root, OPERATIONS // 2)
        union.umount()


def on_disk(union):
    """Everything that could have been written."""
    return lib.tree(union.upper, layer=True), lib.tree(union.work, layer=True)


# --- what both show -----------------------------------------------------------------------------


def shown(union, features, impl):
    """The tree as a mount shows it; what cannot be looked up by its errno."""
    root = union.mount(features, impl=impl)
    try:
        out, stack = {}, [""]
        while stack:
            rel = stack.pop()
            try:
                names = sorted(os.listdir(root / rel))
            except OSError as e:
                out[rel] = [errno.errorcode[e.errno]]
                continue
            for name in names:
                path = os.path.join(rel, name)
                try:
                    st = os.lstat(root / path)
                except OSError as e:
                    out[path] = [errno.errorcode[e.errno]]
                    continue
                kind = stat.S_IFMT(st.st_mode)
                entry = [oct(st.st_mode), st.st_uid, st.st_mtime_ns]
                if kind == stat.S_IFREG:
                    try:
                        entry.append(lib.content_key(root / path, st.st_size))
                    except OSError as e:
                        entry.append(errno.errorcode[e.errno])
                elif kind == stat.S_IFLNK:
                    entry.append(os.readlink(root / path))
                elif kind == stat.S_IFDIR:
                    stack.append(path)
                out[path] = entry
        return out
    finally:
        union.umount()


def differences(before, after):
    lines = []
    for path in sorted(set(before) | set(after)):
        if before.get(path) != after.get(path):
            lines.append(f"{path}: {before.get(path)} -> {after.get(path)}")
    return lines


# --- damage -------------------------------------------------------------------------------------


class Damage:
    """Damages one mark. Each of its methods returns what it did, or None where it found nothing.

    exact: what was seen before is seen again, and nothing else. Otherwise self.extra or self.lost
    hold the paths below which something may be there in addition, or be gone for good.
    """

    def __init__(self, rng, union):
        self.rng, self.union = rng, union
        self.prefix = lib.settings.prefix
        self.extra, self.lost = [], []

    def find(self, wanted):
        found = []
        for rel in lib.walk(self.union.upper):
            path = self.union.upper / rel
            if rel != "." and wanted(path, os.lstat(path)):
                found.append(path)
        return self.rng.choice(found) if found else None

    def has(self, mark):
        return lambda p, st: lib.xattr(p, self.prefix + mark) is not None

    def set(self, path, mark, value):
        st = os.lstat(path)
        os.setxattr(path, self.prefix + mark, value, follow_symlinks=False)
        return f"{mark}={value!r} on {path.relative_to(self.union.upper)} {oct(st.st_mode)}"

    def needless_whiteout(self):
        parent = self.find(lambda p, st: stat.S_ISDIR(st.st_mode)) or self.union.upper
        path = parent / f"w{self.rng.randrange(1000)}"
        st = os.lstat(parent)
        lib.make_whiteout(path)
        os.utime(parent, ns=(st.st_atime_ns, st.st_mtime_ns))
        return f"whiteout {path}"

    def marked_whiteout(self):
        path = self.find(lambda p, st: lib.is_whiteout(p))
        if not path:
            return None
        st = os.lstat(path.parent)
        path.unlink()
        lib.write(path, xattrs={self.prefix + "whiteout": b""})
        os.utime(path.parent, ns=(st.st_atime_ns, st.st_mtime_ns))
        return f"whiteout as xattr {path}"

    def bad_opaque(self):
        path = self.find(
            lambda p, st: stat.S_ISDIR(st.st_mode) and not lib.xattr(p, self.prefix + "opaque")
        )
        return path and self.set(path, "opaque", self.rng.choice((b"z", b"yy", b"", b"0")))

    def opaque_copy(self):
        """Of a copied-up directory: needs its origin to be recognised."""
        if lib.settings.level != "root":
            return None
        path = self.find(
            lambda p, st: stat.S_ISDIR(st.st_mode)
            and lib.xattr(p, self.prefix + "origin")
            and not lib.xattr(p, self.prefix + "opaque")
        )
        return path and self.set(path, "opaque", b"y")

    def redirect(self):
        """Recovered through the origin."""
        path = self.find(
            lambda p, st: stat.S_ISDIR(st.st_mode)
            and lib.xattr(p, self.prefix + "redirect")
            and lib.xattr(p, self.prefix + "origin")
        )
        if not path:
            return None
        if self.rng.random() < 0.4:
            os.removexattr(path, self.prefix + "redirect")
            return f"no redirect on {path}"
        value = self.rng.choice((b"", b"a/b", b"/", b"//x", b"/gone/away", b"gone", b"..", b"/a/"))
        return self.set(path, "redirect", value)

    def stray_redirect(self):
        """On a directory that was never renamed."""
        path = self.find(
            lambda p, st: stat.S_ISDIR(st.st_mode)
            and lib.xattr(p, self.prefix + "opaque") == b"y"
        )
        return path and self.set(path, "redirect", self.rng.choice((b"a", b"/gone", b"/")))

    def impure(self):
        path = self.find(self.has("impure"))
        if not path:
            return None
        # without any it may not be needed
        return self.set(path, "impure", self.rng.choice((b"n", b"", b"yy")))

    def origin(self):
        path = self.find(
            lambda p, st: lib.xattr(p, self.prefix + "origin")
            and not lib.xattr(p, self.prefix + "metacopy")
            and not lib.xattr(p, self.prefix + "redirect")
        )
        if not path:
            return None
        value = bytearray(lib.xattr(path, self.prefix + "origin"))
        how = self.rng.randrange(3)
        if how == 0:
            value = value[: self.rng.randrange(1, 21)]
        elif how == 1:
            value[1] ^= 0x55
        else:
            value[2] = 0xFF
        return self.set(path, "origin", bytes(value))

    def misplaced(self):
        path = self.find(lambda p, st: stat.S_ISDIR(st.st_mode))
        mark = self.rng.choice(("metacopy", "nlink", "uuid", "upper", "whiteout"))
        return path and self.set(path, mark, b"x")

    def metacopy_mark(self):
        path = self.find(self.has("metacopy"))
        return path and self.set(path, "metacopy", self.rng.choice((b"x", b"\1\4\0\0", b"\0\5\0\0")))

    def metacopy_redirect(self):
        path = self.find(
            lambda p, st: lib.xattr(p, self.prefix + "metacopy") is not None
            and lib.xattr(p, self.prefix + "redirect")
            and lib.xattr(p, self.prefix + "origin")
        )
        return path and self.set(path, "redirect", self.rng.choice((b"/gone", b"gone", b"a//b")))

    def uncover(self):
        """The whiteout at the old place of a renamed directory."""
        path = self.find(
            lambda p, st: stat.S_ISDIR(st.st_mode)
            and lib.xattr(p, self.prefix + "redirect")
            and lib.xattr(p, self.prefix + "origin")
        )
        if not path:
            return None
        old = os.fsdecode(lib.xattr(path, self.prefix + "redirect"))
        old = self.union.upper / old[1:] if old[0] == "/" else path.parent / old
        if not lib.is_whiteout(old):
            return None
        st = os.lstat(old.parent)
        old.unlink()
        os.utime(old.parent, ns=(st.st_atime_ns, st.st_mtime_ns))
        return f"no whiteout {old}"

    def copy(self):
        """Of a redirected directory, with all its marks, as cp -a of root makes it."""
        path = self.find(
            lambda p, st: stat.S_ISDIR(st.st_mode) and lib.xattr(p, self.prefix + "redirect")
        )
        if not path:
            return None
        new = path.parent / f"zz-copy{self.rng.randrange(1000)}"
        st = os.lstat(path.parent)
        lib.subprocess.run(
            ["cp", "-a", "--preserve=all", path, new], check=True, timeout=30, capture_output=True
        )
        os.utime(path.parent, ns=(st.st_atime_ns, st.st_mtime_ns))
        self.extra.append(os.fspath(new.relative_to(self.union.upper)))
        return f"copy {new}"

    def leftover(self):
        base = self.union.work / "work"
        if lib.settings.level != "root":
            os.chmod(base, 0o700)
        name = f"#{self.rng.randrange(1 << 20):x}"
        (lib.mkdir if self.rng.random() < 0.5 else lib.write)(base / name)
        return f"leftover {name}"

    def index_entries(self):
        base = self.union.work / "index"
        if not base.is_dir():
            return None
        entries = [base / n for n in os.listdir(base) if n[0] != "#"]
        files = [p for p in entries if not p.is_dir() and not lib.is_whiteout(p)]
        choice = self.rng.randrange(3)
        if choice == 0 and files:
            path = self.rng.choice(files)
            os.setxattr(path, self.prefix + "nlink", self.rng.choice((b"", b"U", b"U+999", b"x")))
            return f"nlink of {path}"
        if choice == 1 and files:
            path = self.rng.choice(files)
            if os.lstat(path).st_nlink > 1:
                os.removexattr(path, self.prefix + "origin")
                return f"no origin of {path}"
        lib.write(base / "no-name")
        return "index/no-name"


def damage(rng, union, count):
    d = Damage(rng, union)
    kinds = [getattr(Damage, n) for n in sorted(vars(Damage)) if not n.startswith("_")]
    kinds = [k for k in kinds if k.__name__ not in ("find", "has", "set")]
    told, touched = [], set()
    for _ in range(count * 4):
        if len(told) == count:
            break
        kind = rng.choice(kinds)
        # two damages of one structure may leave nothing to tell the truth from
        if kind in touched or (
            kind in STRUCTURE and touched & STRUCTURE
        ):
            continue
        with contextlib.suppress(OSError):
            what = kind(d)
            if what:
                touched.add(kind)
                told.append(what)
    return d, told or [d.needless_whiteout()]


STRUCTURE = {
    Damage.redirect,
    Damage.uncover,
    Damage.copy,
    Damage.opaque_copy,
    Damage.stray_redirect,
    Damage.origin,
    Damage.metacopy_redirect,
}


# --- the tests ----------------------------------------------------------------------------------


def cases():
    for features in FEATURES:
        for seed in SEEDS:
            yield pytest.param(features, seed, id=f"{features}-{seed}")


def prepare(union, features, seed):
    rng = random.Random(f"{features} {seed}")
    impls = ["plyfs", "kernel"] if lib.settings.can_kernel else ["plyfs"]
    options = options_of(features)
    make_valid(rng, union, options, impls[seed % len(impls)])
    return rng, options, impls


@pytest.mark.parametrize("features,seed", cases())
@pytest.mark.plyfs_only("fsck")
@pytest.mark.limit(120)
def test_valid_layer_stays_as_it_is(union, features, seed):
    _, options, _ = prepare(union, features, seed)
    before = on_disk(union)
    for mode in ("-n", "-p", "-y"):
        done = fsck(union, mode, features=options)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), mode
    for old, new in zip(before, on_disk(union)):
        lib.assert_same_tree(old, new, "before", "after")


@pytest.mark.parametrize("features,seed", cases())
@pytest.mark.plyfs_only("fsck")
@pytest.mark.limit(180)
def test_damaged_layer_is_repaired(union, features, seed):
    rng, options, impls = prepare(union, features, seed)
    before = shown(union, options, impls[-1])
    done_damage, told = damage(rng, union, rng.randrange(1, 6))

    reported = fsck(union, "-n", features=options)
    assert reported.returncode == 4, f"{told}: {reported}"
    repaired = fsck(union, "-y", features=options)
    assert repaired.returncode == 1, f"{told}: {repaired}"
    again = fsck(union, "-y", features=options)
    assert (again.returncode, again.stdout) == (0, ""), f"{told}: {repaired.stdout}{again}"

    after = {impl: shown(union, options, impl) for impl in impls}
    for impl in impls:
        new = {
            path: entry
            for path, entry in after[impl].items()
            if not any(path == e or path.startswith(e + "/") for e in done_damage.extra)
        }
        lines = differences(before, new)
        assert not lines, f"{told}\n{repaired.stdout}{impl} shows:\n" + "\n".join(lines)
    assert after[impls[0]] == after[impls[-1]], differences(after[impls[0]], after[impls[-1]])


MARKS = (
    ("opaque", (b"y", b"x", b"z", b"")),
    ("redirect", (b"a", b"/a", b"/b/x", b"x", b"/c/d", b"", b"a/b", b"/gone", b"..", b"\0", b"/f")),
    ("impure", (b"y", b"n")),
    ("metacopy", (b"", b"\0\4\0\0", b"x", b"\0" * 36)),
    ("origin", (b"", b"x", b"\0\xfb\x1d\0\1" + bytes(24), b"\1\xfb")),
    ("nlink", (b"U+0", b"U+7", b"L-1", b"?")),
    ("whiteout", (b"", b"y")),
    ("uuid", (b"x" * 16, b"x")),
    ("protattr", (b"q",)),
)


def arbitrary_damage(rng, union, features, count):
    """Any mark with any value, or another one's, or none, anywhere."""
    prefix, told = lib.settings.prefix, []
    paths = [p for p in lib.walk(union.upper)]
    origins = [lib.xattr(union.upper / p, prefix + "origin") for p in paths]
    origins = [o for o in origins if o]
    for _ in range(count):
        path = rng.choice(paths)
        name, values = rng.choice(MARKS)
        if name == "metacopy" and "metacopy" not in features:
            continue  # nobody could open it
        value = rng.choice(values)
        if name == "redirect" and not lib.xattr(union.upper / path, prefix + "origin"):
            # it may bring back a removed directory, with files that also live on elsewhere
            value = rng.choice((b"", b"a/b", b"/gone", b"..", b"/"))
        if name == "origin" and origins and rng.random() < 0.5:
            value = rng.choice(origins)
        with contextlib.suppress(OSError):
            if rng.random() < 0.3:
                os.removexattr(union.upper / path, prefix + name, follow_symlinks=False)
                told.append(f"{path}: no {name}")
            else:
                os.setxattr(union.upper / path, prefix + name, value, follow_symlinks=False)
                told.append(f"{path}: {name}={value!r}")
    return told


def kept_files(union):
    """Upper files with contents, by their inodes."""
    out = {}
    for rel in lib.walk(union.upper):
        st = os.lstat(union.upper / rel)
        if stat.S_ISREG(st.st_mode) and st.st_size:
            out[rel] = st.st_ino, st.st_size
    return out


@pytest.mark.parametrize("features,seed", cases())
@pytest.mark.plyfs_only("fsck")
@pytest.mark.limit(180)
def test_arbitrary_marks_end_in_a_layer_that_both_show_alike(union, features, seed):
    rng, options, impls = prepare(union, features, seed)
    told = arbitrary_damage(rng, union, features, rng.randrange(1, 25))
    before = kept_files(union)
    repaired = fsck(union, "-y", features=options)
    assert repaired.returncode in (0, 1, 4, 5), f"{told}: {repaired}"
    again = fsck(union, "-y", features=options)
    assert again.returncode in (0, 4), f"{told}: {repaired.stdout}{again}"
    assert kept_files(union) == before, f"{told}: {repaired}"
    after = {impl: shown(union, options, impl) for impl in impls}
    # the kernel does not list what it cannot look up, where it has to look for numbers
    sound = [{p: e for p, e in after[impl].items() if len(e) > 1} for impl in impls]
    lines = differences(sound[0], sound[-1])
    assert not lines, f"{told}\n{repaired.stdout}{again.stdout}" + "\n".join(lines)
    if repaired.returncode in (0, 1):
        errors = {p: e for p, e in after[impls[-1]].items() if len(e) == 1 or e[-1] == "EIO"}
        assert not errors, f"{told}\n{repaired.stdout}{errors}"
