# SPDX-License-Identifier: MIT
"""
Layers: made up from a seed as a list of plain dicts (one an object, parents first), built on disk,
and digested to prove that nobody touched them.

A plan is {"fs": [...], "lowers": [[object, ...], ...], "upper": [object, ...] or None}. An object
has "kind" (dir file link symlink fifo sock chr blk whiteout xwhiteout), "p" (path within the
layer), and by kind "mode" "uid" "gid" "time" "xattrs" "data" "to" "rdev".
"""

import errno
import os
import stat
import zlib

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


def _attributes(rng, obj, kind):
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
            xattrs[b"trusted.overlay.overlay.foo"] = b"escaped"
    if kind != "link" and rng.random() < 0.1:
        xattrs[rng.choice([b"trusted.x", b"security.foo", b"trusted.overlay.foo"])] = b"value"
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


def _layer(rng, lower, last, depth, fill, below=frozenset()):
    """@below: the directories of the next layer."""
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
        _attributes(rng, obj, kind)
        objects.append(obj)
        if kind == "file":
            files.append(path)
            obj["size"], obj["data"] = _segments(rng)
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
                xattrs[b"trusted.overlay.opaque"] = b"y"
            elif special < 0.3 and lower and path in below and not cut:
                xattrs[b"trusted.overlay.opaque"] = b"x"
                hidden = True
            elif 0.5 < special < 0.55 and lower and not last:
                # moved from elsewhere, by a mount with redirect_dir=on: the old name is covered
                old = rng.choice(v.NAMES)
                absolute = rng.random() < 0.5
                covered = old if absolute or not parent else parent + b"/" + old
                if covered not in taken:
                    xattrs[b"trusted.overlay.redirect"] = b"/" + covered if absolute else old
                    objects.append({"kind": "whiteout", "p": covered})
                    taken.add(covered)
            if not xattrs:
                del obj["xattrs"]
            if hidden:
                for child in rng.sample(v.NAMES, 2):
                    objects.append({"kind": "xwhiteout", "p": path + b"/" + child})
                    taken.add(path + b"/" + child)
            fillup(path, level + 1, cut or b"trusted.overlay.redirect" in xattrs)

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


def plan(rng):
    lowers = rng.choices([1, 2, 3, 4, 5], [30, 30, 20, 10, 10])[0]
    fs = choose_fs(rng, lowers)
    depth = rng.choice([1, 2, 2, 3, 3, 4])
    fill = rng.choice([4, 5, 6])
    out = {"fs": fs, "lowers": [], "upper": []}
    below = frozenset()
    for i in reversed(range(lowers)):
        layer = _layer(rng, True, i == lowers - 1, depth, fill, below)
        out["lowers"].insert(0, layer)
        below = frozenset(o["p"] for o in layer if o["kind"] == "dir")
    if rng.random() < 0.25:
        out["upper"] = _layer(rng, False, False, 2, 3, below)
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


def build(root, objects):
    """
    Makes the objects below the existing directory @root. Objects without a parent are left out.
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
            sc.setxattr(path, b"trusted.overlay.whiteout", b"y")
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
        xattrs = tuple(sorted((name, sc.getxattr(path, name)) for name in sc.listxattr(path)))
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
