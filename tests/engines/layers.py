# SPDX-License-Identifier: MIT
"""Images, layer by layer: read from the archives that engines save, and compared.

A layer is {path: Entry}; of hard links each name has the attributes of the file, and links tells
which names of the layer are one file. Times are kept, but compared nowhere: two builds differ in
them.
"""

import hashlib
import json
import stat
import tarfile
from collections import namedtuple

Entry = namedtuple("Entry", "type mode uid gid size target device xattrs digest mtime links")

OPAQUE = ".wh..wh..opq"
TYPES = {
    tarfile.REGTYPE: "file",
    tarfile.AREGTYPE: "file",
    tarfile.DIRTYPE: "dir",
    tarfile.SYMTYPE: "link",
    tarfile.CHRTYPE: "char",
    tarfile.BLKTYPE: "block",
    tarfile.FIFOTYPE: "fifo",
}


# --- reading --------------------------------------------------------------------------------------


def read_image(archive):
    """The layers of a docker-archive, the lowest first."""
    with tarfile.open(archive) as tar:
        manifest = json.load(tar.extractfile("manifest.json"))
        return [read_layer(tar.extractfile(name)) for name in manifest[0]["Layers"]]


def read_archive(path):
    """One archive of a tree, as a layer."""
    with open(path, "rb") as file:
        return read_layer(file)


def digest(path):
    """How an image's configuration names a layer."""
    with open(path, "rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def read_layer(file):
    found, groups = {}, {}
    with tarfile.open(fileobj=file, mode="r|*") as tar:
        for member in tar:
            path = clean(member.name)
            if path == "":
                continue
            if member.islnk():
                first = clean(member.linkname)
                found[path] = found[first]
                groups.setdefault(first, {first}).add(path)
                continue
            found[path] = read_entry(tar, member)
    for names in groups.values():
        for name in names:
            found[name] = found[name]._replace(links=frozenset(names))
    return found


def clean(name):
    return name.strip("/").removeprefix("./") if name.strip("/") != "." else ""


def read_entry(tar, member):
    digest = None
    if member.isreg():
        h = hashlib.sha256()
        data = tar.extractfile(member)
        while block := data.read(1 << 20):
            h.update(block)
        digest = h.hexdigest()
    xattrs = {
        key.removeprefix("SCHILY.xattr."): value
        for key, value in member.pax_headers.items()
        if key.startswith("SCHILY.xattr.")
    }
    return Entry(
        type=TYPES[member.type],
        mode=stat.S_IMODE(member.mode),
        uid=member.uid,
        gid=member.gid,
        size=member.size if member.isreg() else 0,
        target=member.linkname if member.issym() else None,
        device=(member.devmajor, member.devminor) if member.ischr() or member.isblk() else None,
        xattrs=xattrs,
        digest=digest,
        mtime=int(member.mtime),
        links=frozenset(),
    )


# --- what a layer does ----------------------------------------------------------------------------


def split(path):
    parent, _, name = path.rpartition("/")
    return parent, name


def join(parent, name):
    return f"{parent}/{name}" if parent else name


def hidden_by(path):
    """The name which a whiteout hides, else None."""
    parent, name = split(path)
    return join(parent, name[4:]) if name.startswith(".wh.") and name != OPAQUE else None


def below(tree, path):
    return [p for p in tree if p.startswith(path + "/") or path == ""]


def apply(tree, layer):
    """The union of a tree (of no whiteouts) and a layer on top of it."""
    out = dict(tree)
    for path in layer:
        gone = []
        if split(path)[1] == OPAQUE:
            gone = below(out, split(path)[0])
        elif hidden := hidden_by(path):
            gone = [hidden, *below(out, hidden)]
        for name in gone:
            out.pop(name, None)
    for path, entry in layer.items():
        if split(path)[1].startswith(".wh."):
            continue
        old = out.get(path)
        if old and (old.type == "dir") != (entry.type == "dir"):
            for name in below(out, path):
                out.pop(name)
        out[path] = entry
    return out


def final_tree(layers):
    tree = {}
    for layer in layers:
        tree = apply(tree, layer)
    return tree


# --- comparing ------------------------------------------------------------------------------------


def attributes(entry):
    """What must be equal. Of a whiteout only that it is there."""
    return entry._replace(mtime=0)


def differences(left, right, left_name="left", right_name="right"):
    """Readable lines about two layers, or two trees."""
    lines = []
    for path in sorted(left.keys() | right.keys()):
        if path not in left:
            lines.append(f"{path}: only in {right_name}")
        elif path not in right:
            lines.append(f"{path}: only in {left_name}")
        elif split(path)[1].startswith(".wh."):
            continue
        else:
            a, b = attributes(left[path]), attributes(right[path])
            for field in Entry._fields:
                x, y = getattr(a, field), getattr(b, field)
                if x != y:
                    lines.append(f"{path}: {field}: {left_name} {x!r}, {right_name} {y!r}")
    return lines


# --- the kernel's driver and the walk -------------------------------------------------------------

# With the kernel's overlay driver an engine packs the upper directory as it is. With a mount
# program it walks the layer and the one below, both merged, and packs what differs. Where the two
# ways make different layers of one and the same tree, the kernel's is brought into the walk's form:


def expand_opaque(layer, tree):
    """An opaque directory hides by one mark what the walk finds missing name by name."""
    out = dict(layer)
    for path in [p for p in layer if split(p)[1] == OPAQUE]:
        parent = split(path)[0]
        mark = out.pop(path)
        for name in sorted(below(tree, parent)):
            # the whiteout of a directory stands for all below it
            above = split(name)[0]
            if name not in layer and (above == parent or layer_has_directory(layer, above)):
                out[join(above, ".wh." + split(name)[1])] = mark
    return out


def layer_has_directory(layer, path):
    return path in layer and layer[path].type == "dir"


def drop_unchanged(layer, tree):
    """What was copied up and then left as it was (the old name of a new hard link, a directory in
    which a file came and went): it lies in the upper directory, but differs in nothing."""
    out = dict(layer)
    for path in sorted(layer, key=len, reverse=True):
        entry, old = out[path], tree.get(path)
        if old is None or split(path)[1].startswith(".wh."):
            continue
        neutral = {"links": frozenset(), **({"mtime": 0, "size": 0} if entry.type == "dir" else {})}
        if entry._replace(**neutral) != old._replace(**neutral):
            continue
        if entry.type == "dir" and below(out, path):
            continue
        del out[path]
    return regroup(out)


def regroup(layer):
    """Hard links are told of the names which the layer has."""
    out = {}
    for path, entry in layer.items():
        names = frozenset(n for n in entry.links if n in layer)
        out[path] = entry._replace(links=names if len(names) > 1 else frozenset())
    return out


# Whiteouts of the kernel's driver carry the mode, owner and link name of whatever the engine had at
# hand: of whiteouts only the name is compared (differences()).
NORMALISE = [expand_opaque, drop_unchanged]


def as_the_walk_makes_it(layers):
    """The layers of the kernel's driver in the form in which the walk makes them."""
    tree, out = {}, []
    for layer in layers:
        shown = layer
        for step in NORMALISE:
            shown = step(shown, tree)
        out.append(shown)
        tree = apply(tree, layer)
    return out


def image_differences(kernel, walked):
    """Of two images, layer by layer: lines, each with the number of its layer."""
    lines = []
    if len(kernel) != len(walked):
        lines.append(f"{len(kernel)} layers, {len(walked)} layers")
    for i, (left, right) in enumerate(zip(as_the_walk_makes_it(kernel), walked)):
        lines += [f"layer {i}: {d}" for d in differences(left, right, "kernel", "walk")]
    return lines
