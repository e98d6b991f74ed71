# SPDX-License-Identifier: MIT
"""
Trees as they look through a mount, and uppers as they lie on disk; and their comparison.

A tree is {path: {field: value}}. Fields whose name begins with "_" are not compared between the two
sides, only checked within one (inode numbers).
"""

import errno
import os
import zlib

import syscalls as sc

HEAD = 1 << 19
ANY = "fpscbl"  # the types of what may have several names


def _error(e):
    return "error " + errno.errorcode.get(e.errno, str(e.errno))


def _content(path, size):
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        data = os.read(fd, HEAD)
        # read(2) may stop early; what follows a hole or the end is told by the size
        while len(data) < min(size, HEAD) and (more := os.read(fd, HEAD - len(data))):
            data += more
        tail = os.pread(fd, 65536, size - 65536) if size > HEAD else b""
        return data if len(data) <= 32 and not tail else (len(data), zlib.crc32(data + tail))
    finally:
        os.close(fd)


def _xattrs(path):
    try:
        names = sc.listxattr(path)
    except OSError as e:
        return _error(e)
    out = {}
    for name in names:
        try:
            value = sc.getxattr(path, name)
            out[name] = value if len(value) <= 64 else (len(value), zlib.crc32(value))
        except OSError as e:
            out[name] = _error(e)
    return out


def _entry(path, when, blocks, btimes):
    st = sc.statx(sc.AT_FDCWD, path, sc.AT_SYMLINK_NOFOLLOW)
    kind = st.mode >> 12
    out = {
        "type": sc.TYPE.get(kind, "?"), "mode": oct(st.mode & 0o7777), "uid": st.uid, "gid": st.gid,
        "nlink": st.nlink, "mtime": when(st.mtime), "_ino": st.ino, "_dev": st.dev,
        "btime": st.btime if st.btime in btimes else None if st.btime is None else "new",
    }
    xattrs = _xattrs(path)
    if xattrs:
        out["xattrs"] = xattrs
    if kind == 0o10:
        out["size"] = st.size
        try:
            out["content"] = _content(path, st.size)
        except OSError as e:
            out["content"] = _error(e)
        if blocks and not isinstance(out["content"], str):
            # only now: those of data in a data-only layer are a guess before it was opened
            out["blocks"] = sc.statx(sc.AT_FDCWD, path, sc.AT_SYMLINK_NOFOLLOW).blocks
    elif kind == 0o12:
        out["size"] = st.size
        try:
            out["target"] = os.readlink(path)
        except OSError as e:
            out["target"] = _error(e)
    elif kind in (0o02, 0o06):
        out["rdev"] = st.rdev
    return out


def look(root, when, blocks=False, btimes=(), links=ANY):
    """
    The tree below @root. @when maps times to what is compared, @btimes are the birth times worth
    comparing (those of lower objects), @blocks says whether st_blocks of files are comparable,
    @links the types of those whose names are known by one inode number: on layers of several
    filesystems the kernel's overlayfs gives the names of one file different numbers for a while.
    """
    tree = {}
    groups = {}

    def add(rel, path):
        try:
            entry = _entry(path, when, blocks, btimes)
        except OSError as e:
            entry = {"type": _error(e)}
        tree[rel] = entry
        if "_ino" in entry and entry["type"] in (links or ""):
            groups.setdefault((entry["_dev"], entry["_ino"]), []).append(rel)
        return entry

    add(b"", root + b"/")
    stack = [b""]
    while stack:
        rel = stack.pop()
        entry = tree[rel]
        base = root + b"/" + rel
        try:
            fd = os.open(base, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as e:
            entry["listing"] = _error(e)
            continue
        try:
            names = []
            while part := sc.getdents(fd):
                names += part
        except OSError as e:
            entry["listing"] = _error(e)
        finally:
            os.close(fd)
        listing = sorted(n[0] for n in names)
        twice = [n for i, n in enumerate(listing) if i and listing[i - 1] == n]
        if twice or b"." not in listing or b".." not in listing:
            entry["listing"] = ("odd", twice)
        for name, dtype, dino, _ in names:
            if name == b".":
                entry["_dot"] = dino
            if name in (b".", b".."):
                continue
            sub = rel + b"/" + name if rel else name
            child = add(sub, root + b"/" + sub)
            child["d_type"] = sc.DT.get(dtype, "?")
            child["_d_ino"] = dino
            if child["type"] == "d":
                stack.append(sub)
    _group(tree, groups)
    return tree


def _group(tree, groups):
    for paths in groups.values():
        if len(paths) > 1:
            first = min(paths)
            for p in paths:
                tree[p]["same as"] = first


def compare(expected, got):
    """
    Differences as a list of (path, field, expected, got); field "missing" or "extra" for names.
    """
    out = []
    if expected == got:
        return out
    for path in sorted(expected.keys() | got.keys()):
        a, b = expected.get(path), got.get(path)
        if b is None:
            out.append((path, "missing", a["type"], None))
        elif a is None:
            out.append((path, "extra", None, b["type"]))
        else:
            for field in sorted(a.keys() | b.keys()):
                if field[0] != "_" and a.get(field) != b.get(field):
                    out.append((path, field, a.get(field), b.get(field)))
    return out


def check_inos(tree, kept=ANY + "d"):
    """
    What plyfs promises of inode numbers: d_ino is st_ino everywhere, one st_dev, and no number for
    two objects: two names share one only as links of the same file. @kept: the types of what keeps
    its number when it is copied up and forgotten.
    """
    out = []
    by_ino = {}
    devs = {e["_dev"] for e in tree.values() if "_dev" in e}
    if len(devs) > 1:
        out.append((b"", "st_dev", "one", sorted(devs)))
    for path, e in tree.items():
        if "_ino" not in e:
            continue
        if e["type"] in kept and e.get("_d_ino", e["_ino"]) != e["_ino"]:
            out.append((path, "d_ino", e["_ino"], e["_d_ino"]))
        if e.get("_dot", e["_ino"]) != e["_ino"]:
            out.append((path, "d_ino of .", e["_ino"], e["_dot"]))
        other = by_ino.setdefault(e["_ino"], path)
        if other != path and (e["type"] == "d" or e["type"] != tree[other]["type"]
                              or e["nlink"] < 2):
            out.append((path, "st_ino", "unique", "that of %r" % other))
    return out


def check_constant(reference_before, reference, before, tree, trusted, kept=ANY + "d"):
    """
    Inode numbers stay: where the reference kept its own number from one look to the next, so must
    the other. @trusted(ino) says whether equal numbers on the reference side mean the same object.
    @kept: see check_inos().
    """
    out = []
    for path, e in tree.items():
        old, ref, ref_old = before.get(path), reference.get(path), reference_before.get(path)
        if not (old and ref and ref_old) or "_ino" not in e or e["type"] not in kept:
            continue
        if (ref.get("_ino") == ref_old.get("_ino") and ref.get("_dev") == ref_old.get("_dev")
                and ref["type"] == ref_old["type"] and trusted(ref.get("_ino"))
                and e["_ino"] != old.get("_ino")):
            out.append((path, "st_ino changed", old.get("_ino"), e["_ino"]))
    return out


def _over_directory(rel, lowers):
    """Whether the topmost lower that has the name has a directory there."""
    for lower in lowers:
        path = lower + b"/" + rel
        if os.path.lexists(path):
            return os.path.isdir(path) and not os.path.islink(path)
    return False


INDEX = b"(index)"  # in the place of a path: what an index holds is shown below it


def on_disk(root, work, lowers, prefix):
    """
    An upper layer as it lies on disk, with the overlay's own xattrs, and the index that goes with
    it. The mark of an opaque directory is left out where none of @lowers has a directory: there it
    says nothing. A handle of an upper object is shown as the path of that object.
    """
    tree = {}
    groups = {}
    handles = {}

    def never(_):
        return None

    def add(rel, path, below=root):
        entry = _entry(path, never, False, ())
        ino = entry["_ino"]
        if below is root and (handle := sc.name_to_handle(path)):
            handles[handle] = rel
        if entry["type"] != "d":
            groups.setdefault(ino, []).append(rel)
        for field in ("btime", "mtime", "_ino", "_dev"):
            entry.pop(field)
        if entry["type"] == "d":
            del entry["nlink"]
        uuid = entry.get("xattrs", {}).get(prefix + b"uuid")
        if not rel and uuid is not None:
            entry["xattrs"][prefix + b"uuid"] = len(uuid)  # random
        if entry["type"] == "c" and entry["rdev"] == (0, 0):
            groups[ino].pop()
            entry = {"type": "whiteout", "mode": entry["mode"]}  # links of one shared inode
        tree[rel] = entry
        return entry["type"] == "d"

    add(b"", root)
    stack = [b""]
    while stack:
        rel = stack.pop()
        for name in os.listdir(root + b"/" + rel):
            sub = rel + b"/" + name if rel else name
            if add(sub, root + b"/" + sub):
                stack.append(sub)
    index = work + b"/index"
    if os.path.isdir(index):
        add(INDEX, index, index)
        for name in os.listdir(index):
            if name[:1] != b"#":  # being made, or a spare whiteout
                add(INDEX + b"/" + name, index + b"/" + name, index)
    _group(tree, groups)
    for rel, entry in tree.items():
        xattrs = entry.get("xattrs", {})
        if not _over_directory(rel, lowers):
            xattrs.pop(prefix + b"opaque", None)
        if prefix + b"upper" in xattrs:
            xattrs[prefix + b"upper"] = _pointed_at(xattrs[prefix + b"upper"], handles)
        # a hint that is only wrong when it lacks: see check_impure()
        impure = xattrs.pop(prefix + b"impure", None)
        if "xattrs" in entry and not xattrs:
            del entry["xattrs"]
        entry["_impure"] = impure
    return tree


def _pointed_at(value, handles):
    """The mark of an index entry: a file handle with the overlay's header (struct ovl_fb)."""
    if not isinstance(value, bytes) or len(value) < 21:
        return value
    known = handles.get((value[4], value[21:]))
    return value if known is None else (value[:4], "handle of", known)


def check_impure(upper, prefix):
    """Above everything that has an origin there is a directory marked impure."""
    return [(path, "impure", "marked", e["_impure"])
            for path, e in upper.items() if e["_impure"] not in (None, b"y")] + [
        (path, "impure", "marked", "not")
        for path, e in upper.items()
        if prefix + b"origin" in e.get("xattrs", {}) and path and not path.startswith(INDEX)
        and upper[path.rpartition(b"/")[0]]["_impure"] is None]
