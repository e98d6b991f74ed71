# SPDX-License-Identifier: MIT
"""
Layers: made up from a seed as a list of plain dicts (one an object, parents first), built on disk,
and digested to prove that nobody touched them.

A plan is {"fs": [...], "lowers": [[object, ...], ...], "upper": [object, ...] or None}, and what
features.py adds. An object has "kind" (dir file link symlink fifo sock chr blk whiteout xwhiteout),
"p" (path within the layer), and by kind "mode" "uid" "gid" "time" "xattrs" "data" "to" "rdev".
"""

import errno
import os
import stat
import zlib

import features
import syscalls as sc
import values as v

FILESYSTEMS = ["tmp0", "tmp1", "disk"]


def choose_fs(rng, lowers):
    """Which filesystem upper (first) and each lower (after it) are on."""
    kind = rng.choices(["tmpfs", "two tmpfs", "disk lower", "disk upper", "disk"],
                       [62, 14, 10, 6, 8])[0]
    if kind == "tmpfs":
        return ["tmp0"] * (lowers + 1)
    if kind == "two tmpfs":
        return ["tmp0"] + [rng.choice(["tmp0", "tmp1"]) for _ in range(lowers)]
    if kind == "disk lower":
        return ["tmp0"] + [rng.choice(["tmp0", "disk"]) for _ in range(lowers)]
    if kind == "disk upper":
        return ["disk"] + [rng.choice(["tmp0", "disk"]) for _ in range(lowers)]
    return ["disk"] * (lowers + 1)


class Making:
    """What a layer is made with: @below and @files say what the next layer has."""

    def __init__(self, rng, prefix, featured=False):
        self.rng = rng
        self.prefix = prefix  # of the overlay's own xattrs
        self.featured = featured
        self.redirects = True
        self.metacopies = False
        self.below = frozenset()  # the directories of the next layer
        self.files = {}  # and its files, with their sizes
        self.data = {}  # those of the data-only layers


def _attributes(rng, obj, kind, prefix=b"trusted.overlay."):
    if rng.random() < 0.6:
        obj["mode"] = 0o755 if kind == "dir" else 0o644
        obj["uid"] = obj["gid"] = 0
        if rng.random() < 0.4:
            obj["uid"] = obj["gid"] = 1000
            obj["mode"] |= 0o022
    else:
        obj["mode"] = rng.choice(v.DIR_MODES if kind == "dir" else v.FILE_MODES)
        obj["uid"] = rng.choice(v.IDS)
        obj["gid"] = rng.choice(v.IDS)
    obj["time"] = v.old_time(rng)
    xattrs = {}
    if kind in ("file", "dir"):
        if rng.random() < 0.2:
            for name in rng.sample(v.USER_XATTRS, rng.randrange(1, 4)):
                xattrs[name] = v.xattr_value(rng, name)
        if rng.random() < 0.1:
            xattrs[v.ACL_ACCESS] = v.acl(rng)
        if kind == "dir" and rng.random() < 0.1:
            xattrs[v.ACL_DEFAULT] = v.acl(rng)
        if kind == "file" and rng.random() < 0.06:
            xattrs[b"security.capability"] = v.capability(rng)
        if rng.random() < 0.05:
            xattrs[prefix + b"overlay.foo"] = b"escaped"
    if kind != "link" and rng.random() < 0.1:
        private = prefix + b"foo" if kind in ("file", "dir") else b"trusted.overlay.foo"
        xattrs[rng.choice([b"trusted.x", b"security.foo", private])] = b"value"
    if xattrs:
        obj["xattrs"] = xattrs


def _segments(rng):
    """The data of a file: a size, and (offset, length, tag) of what is not a hole."""
    size = rng.choice([0, 0, 1, 7, 100, 4095, 4096, 4097, 10000, rng.randrange(1, 200 * 1024)])
    if size > 8192 and rng.random() < 0.4:
        segments = []
        pos = rng.choice([0, 8192, 16384])
        while pos < size and len(segments) < 4:
            length = min(rng.choice([1, 4096, 9000]), size - pos)
            segments.append((pos, length, rng.randrange(1000)))
            pos += length + rng.choice([4096, 20000, 65536])
        return size, segments
    return size, [(0, size, rng.randrange(1000))] if size else []


def _metacopy(making, obj, cut, lower):
    """
    A file that has its data in a layer below it, perhaps under another name; in an upper only in a
    data-only layer: without an origin any other file is a strange one to the kernel's overlayfs.
    """
    rng, prefix = making.rng, making.prefix
    files = making.data if making.data and rng.random() < 0.7 else making.files
    if not files or files is making.files and not (lower and making.metacopies):
        return
    here = obj["p"]
    if files is making.files and here in files and not cut:
        target = None
    else:
        target = rng.choice(sorted(files))
        if files is making.files and target.rpartition(b"/")[0] == here.rpartition(b"/")[0]:
            target = target.rpartition(b"/")[2] if rng.random() < 0.5 else b"/" + target
        else:
            target = b"/" + target
    xattrs = obj.setdefault("xattrs", {})
    # both say that there is no digest
    xattrs[prefix + b"metacopy"] = rng.choice([b"", b"", b"", b"\0\4\0\0"])
    if target is not None:
        xattrs[prefix + b"redirect"] = target
    # sparse, as the kernel makes them
    found = here if target is None else target.lstrip(b"/") if target[:1] == b"/" \
        else here[:len(here) - len(here.rpartition(b"/")[2])] + target
    obj["size"], obj["data"] = files[found], []


def _layer(making, lower, last, depth, fill):
    rng, prefix, below = making.rng, making.prefix, making.below
    objects = []
    files = []
    taken = set()

    def one(parent, name, level, cut):
        path = parent + b"/" + name if parent else name
        kinds = {"file": 38, "dir": 34 if level < depth else 4, "symlink": 8, "fifo": 2, "sock": 1,
                 "chr": 2, "blk": 1, "whiteout": 7 if not last else 2, "link": 6 if files else 0}
        kind = rng.choices(list(kinds), list(kinds.values()))[0]
        obj = {"kind": kind, "p": path}
        if kind == "whiteout":
            if not lower and parent and (cut or parent not in below):
                return  # the kernel believes those of an upper only where something may be below
            objects.append(obj)
            return
        if kind == "link":
            obj["to"] = rng.choice(files)
            objects.append(obj)
            files.append(path)
            return
        _attributes(rng, obj, kind, prefix)
        objects.append(obj)
        if kind == "file":
            files.append(path)
            obj["size"], obj["data"] = _segments(rng)
            if making.featured and (not last or making.data) and rng.random() < 0.3:
                _metacopy(making, obj, cut, lower)
                if prefix + b"metacopy" in obj.get("xattrs", {}):
                    files.remove(path)  # another name would have other data
        elif kind == "symlink":
            obj["to"] = rng.choice(v.SYMLINK_TARGETS)
            del obj["mode"]
        elif kind == "chr":
            obj["rdev"] = rng.choice(v.CHR)
        elif kind == "blk":
            obj["rdev"] = rng.choice(v.BLK)
        elif kind == "dir":
            special = rng.random()
            xattrs = obj.setdefault("xattrs", {})
            hidden = False
            if special < 0.1:
                cut = True
                xattrs[prefix + b"opaque"] = b"y"
            elif special < 0.3 and lower and path in below and not cut:
                xattrs[prefix + b"opaque"] = b"x"
                hidden = True
            elif 0.5 < special < (0.62 if making.featured else 0.55) and making.redirects and (
                    lower and not last or making.featured and not lower):
                # moved from elsewhere, by a mount with redirect_dir=on: the old name is covered
                old = rng.choice(v.NAMES)
                absolute = rng.random() < 0.5
                covered = old if absolute or not parent else parent + b"/" + old
                if covered not in taken:
                    xattrs[prefix + b"redirect"] = b"/" + covered if absolute else old
                    objects.append({"kind": "whiteout", "p": covered})
                    taken.add(covered)
            if not xattrs:
                del obj["xattrs"]
            if hidden:
                for child in rng.sample(v.NAMES, 2):
                    objects.append({"kind": "xwhiteout", "p": path + b"/" + child})
                    taken.add(path + b"/" + child)
            fillup(path, level + 1, cut or prefix + b"redirect" in xattrs)

    def fillup(parent, level, cut):
        # cut: nothing of the layer below can be seen here
        count = rng.randrange(2, fill) if level == 0 else rng.randrange(0, fill)
        names = rng.sample(v.NAMES, min(count, len(v.NAMES)))
        if rng.random() < 0.25:
            names.append(rng.choice(v.ODD_NAMES))
        for name in names:
            path = parent + b"/" + name if parent else name
            if path not in taken:
                taken.add(path)
                one(parent, name, level, cut)

    root = {"kind": "root", "p": b""}
    _attributes(rng, root, "dir")
    if rng.random() < 0.7:
        root["mode"] = 0o777
    root.pop("xattrs", None)
    objects.append(root)
    fillup(b"", 0, False)
    return objects


def _data_layers(rng):
    """Data-only layers: files that no other layer has the names of."""
    out = []
    for _ in range(rng.choice([1, 1, 2, 3])):
        objects = [{"kind": "root", "p": b""}]
        for top in rng.sample([b"da", b"db", b"dc"], 2):
            objects.append({"kind": "dir", "p": top})
            for name in rng.sample(v.NAMES, rng.randrange(1, 4)):
                obj = {"kind": "file", "p": top + b"/" + name, "time": v.old_time(rng)}
                obj["size"], obj["data"] = _segments(rng)
                objects.append(obj)
        out.append(objects)
    return out


def _files(objects):
    sizes = {o["p"]: o["size"] for o in objects if o["kind"] == "file"}
    for o in objects:
        if o["kind"] == "link" and o["to"] in sizes:
            sizes[o["p"]] = sizes[o["to"]]
    return sizes


def plan(rng, more=None, allowed=()):
    """@more: makes up the features, of those @allowed, and what belongs to them in the layers."""
    chosen = None
    if allowed and more.random() < 0.65:
        chosen = features.options(more, allowed)
    making = Making(rng, b"trusted.overlay." if chosen is None
                    else features.prefix({"options": chosen}), chosen is not None)
    data = []
    if chosen is not None:
        making.redirects = "userxattr" not in chosen and chosen.get("redirect_dir") != "nofollow" \
            or more.random() < 0.2
        making.metacopies = chosen.get("metacopy") == "on" or more.random() < 0.1
        if "data" in allowed and more.random() < 0.3:
            data = _data_layers(more)
            for objects in reversed(data):
                making.data.update(_files(objects))
    lowers = rng.choices([1, 2, 3, 4, 5], [30, 30, 20, 10, 10])[0]
    fs = choose_fs(rng, lowers)
    depth = rng.choice([1, 2, 2, 3, 3, 4])
    fill = rng.choice([4, 5, 6])
    out = {"fs": fs, "lowers": [], "upper": []}
    for i in reversed(range(lowers)):
        layer = _layer(making, True, i == lowers - 1, depth, fill)
        out["lowers"].insert(0, layer)
        making.below = frozenset(o["p"] for o in layer if o["kind"] == "dir")
        making.files = _files(layer)
    if chosen is not None:
        out["options"] = chosen
        out["data"] = data
        out["data_fs"] = [more.choice(fs) for _ in data]
        out["stages"] = features.stages(more, chosen, allowed, fs) if "stages" in allowed else []
    if rng.random() < 0.25 and not out.get("stages"):
        out["upper"] = _layer(making, False, False, 2, 3)
    else:
        out["upper"] = [{"kind": "root", "p": b"", "mode": rng.choice([0o777, 0o755]), "uid": 0,
                         "gid": 0, "time": v.old_time(rng)}]
    if fs[0] == "disk":
        # ext4 has room for one block of xattrs, and it must not be the copy-up that finds out
        for objects in (*out["lowers"], out["upper"]):
            for obj in objects:
                for name, value in obj.get("xattrs", {}).items():
                    if name.startswith(b"user."):
                        obj["xattrs"][name] = value[:200]
    if rng.random() < 0.05 and lowers > 1:
        out["upper"] = None
    out["strictatime"] = rng.random() < 0.15
    return out


def build(root, objects, prefix=b"trusted.overlay."):
    """
    Makes the objects below the existing directory @root. Objects without a parent are left out.
    @prefix: of the overlay's own xattrs.
    """
    made = {}
    for obj in objects:
        path = root + b"/" + obj["p"] if obj["p"] else root
        parent = obj["p"].rpartition(b"/")[0]
        kind = obj["kind"]
        if kind != "root" and parent and made.get(parent) != "dir":
            continue
        if kind == "link" and made.get(obj["to"]) != "file":
            continue
        if kind == "dir":
            os.mkdir(path)
        elif kind == "file":
            _write(path, obj)
        elif kind == "xwhiteout":
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
            sc.setxattr(path, prefix + b"whiteout", b"y")
        elif kind == "symlink":
            os.symlink(obj["to"], path)
        elif kind == "fifo":
            os.mkfifo(path)
        elif kind == "sock":
            os.mknod(path, stat.S_IFSOCK | 0o600)
        elif kind == "chr":
            os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(*obj["rdev"]))
        elif kind == "blk":
            os.mknod(path, stat.S_IFBLK | 0o600, os.makedev(*obj["rdev"]))
        elif kind == "whiteout":
            os.mknod(path, stat.S_IFCHR, 0)
        elif kind == "link":
            os.link(root + b"/" + obj["to"], path)
        made[obj["p"]] = "file" if kind == "link" else kind
        if "uid" in obj:
            os.lchown(path, obj["uid"], obj["gid"])
        if "mode" in obj:
            os.chmod(path, obj["mode"])
        for name, value in obj.get("xattrs", {}).items():
            try:
                sc.setxattr(path, name, value)
            except OSError as e:
                if e.errno != errno.ENOSPC:  # ext4 has room for one block of them
                    raise
    for obj in reversed(objects):
        if "time" in obj and (obj["p"] in made):
            path = root + b"/" + obj["p"] if obj["p"] else root
            sc.utimensat(sc.AT_FDCWD, path, obj["time"], obj["time"], sc.AT_SYMLINK_NOFOLLOW)


def _write(path, obj):
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    try:
        os.ftruncate(fd, obj["size"])
        for off, length, tag in obj["data"]:
            os.pwrite(fd, v.data(tag, length), off)
    finally:
        os.close(fd)


def _xattrs(path):
    for name in sc.listxattr(path):
        try:
            yield name, sc.getxattr(path, name)
        except OSError as e:  # capabilities that are none cannot be read
            yield name, errno.errorcode[e.errno].encode()


def digest(root, inos=None, with_atime=True):
    """
    Everything of a layer, as {path: tuple}: contents, modes, owners, xattrs, mtime, atime, links.
    Reads through @root, which should be a noatime mount of the layer. @inos, if given, collects
    inode numbers.
    """
    out = {}
    stack = [b""]

    def add(rel, path):
        st = sc.statx(sc.AT_FDCWD, path, sc.AT_SYMLINK_NOFOLLOW)
        kind = st.mode >> 12
        content = None
        if kind == 0o10:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NOATIME)
            crc = 0
            while block := os.read(fd, 1 << 20):
                crc = zlib.crc32(block, crc)
            os.close(fd)
            content = (st.size, crc)
        elif kind == 0o12:
            content = os.readlink(path)
        elif kind in (0o02, 0o06):
            content = st.rdev
        xattrs = tuple(sorted(_xattrs(path)))
        out[rel] = (st.mode, st.uid, st.gid, st.nlink, st.mtime, st.ctime, content, xattrs,
                    st.atime if with_atime else None)
        if inos is not None:
            inos[st.ino] = st.btime
        return kind == 0o04

    add(b"", root)
    while stack:
        rel = stack.pop()
        for name in os.listdir(root + b"/" + rel if rel else root):
            sub = rel + b"/" + name if rel else name
            if add(sub, root + b"/" + sub):
                stack.append(sub)
    return out


def whiteouts_to_files(root, prefix):
    """Says with files what whiteouts and the marks of opaque directories say in a layer."""
    for path, dirs, files in os.walk(root):
        here = os.stat(path)
        for name in files:
            st = os.lstat(os.path.join(path, name))
            if stat.S_ISCHR(st.st_mode) and st.st_rdev == 0:
                os.rename(os.path.join(path, name), os.path.join(path, b".wh." + name))
        try:
            opaque = path != root and os.getxattr(path, prefix + b"opaque") == b"y"
        except OSError:
            opaque = False
        if opaque:
            os.mknod(os.path.join(path, b".wh..wh..opq"), stat.S_IFREG)
            os.removexattr(path, prefix + b"opaque")
        os.utime(path, ns=(here.st_atime_ns, here.st_mtime_ns))
