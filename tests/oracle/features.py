# SPDX-License-Identifier: MIT
"""
Which features a sequence has: the options of its mounts, and what in its layers only a mount with
such options can have made.

A plan made with features has, beyond what layers.py says,

    "options"  the words that every mount of it gets, as {word: value or None}
    "data"     data-only layers, as lists of objects; "data_fs" says where they lie
    "stages"   what the reference did before: for each the union of the layers so far is mounted
               with options of its own, operations are done on it, and its upper becomes the topmost
               lower layer. {"fs", "options", "keep", "ops"}; "ops" is None until they were made up
               (see sequence.py), "keep" says whether the workdir stays, with its index and so with
               its hard links.

Option sets are legal by the kernel's rules (overlayfs.rst, ovl_fs_params_verify()): what a mount
refuses is for other tests.
"""

FEATURES = [
    "redirect_dir", "metacopy", "index", "nfs_export", "xino", "userxattr", "uuid", "volatile",
    "fsync", "verity", "data", "stages",
]

# word: how often it is given, and what it may say
WORDS = {
    "redirect_dir": (0.55, ["on"] * 5 + ["nofollow", "follow", "off"]),
    "metacopy": (0.45, ["on"] * 5 + ["off"]),
    "index": (0.35, ["on"] * 4 + ["off"]),
    "nfs_export": (0.2, ["on"] * 3 + ["off"]),
    "xino": (0.25, ["on", "auto", "off"]),
    "uuid": (0.25, ["on", "auto", "null", "off"]),
    "userxattr": (0.12, [None]),
    "verity": (0.1, ["on", "off", "require"]),
    "volatile": (0.08, [None]),
    "fsync": (0.08, ["auto", "strict"]),
}


def parse(text):
    """The features named in --features."""
    if text in ("all", "none"):
        return set(FEATURES) if text == "all" else set()
    names = set(text.split(","))
    unknown = names - set(FEATURES)
    if unknown:
        raise ValueError("no such feature: %s; there are %s" % (
            ", ".join(sorted(unknown)), ", ".join(FEATURES)))
    return names


def options(rng, allowed, never=()):
    """A legal set of options of those @allowed."""
    o = {}
    for word, (share, values) in WORDS.items():
        if word in allowed and word not in never and rng.random() < share:
            o[word] = rng.choice(values)
    if "userxattr" in o:
        o.pop("metacopy", None)
        # the index of everything that the kernel makes then has symlinks without an origin, which
        # they cannot hold, and its next mount does not accept that
        o.pop("nfs_export", None)
        if o.get("redirect_dir") != "nofollow":
            o.pop("redirect_dir", None)
    if o.get("metacopy") == "on":
        if o.get("redirect_dir", "on") != "on":
            del o["redirect_dir"]
        if o.get("nfs_export") == "on":
            del o["nfs_export" if rng.random() < 0.5 else "metacopy"]
    if o.get("nfs_export") == "on":
        # a digest is for metacopies, which have no place in an index of everything
        o.pop("verity", None)
        if o.get("index") == "off":
            del o["index"]
    if "volatile" in o:
        o.pop("fsync", None)
    return o


def on(plan, word):
    """Whether the mounts of a plan have a feature, given or implied."""
    o = plan.get("options", {})
    if word == "redirect_dir" and o.get("metacopy") == "on":
        return True
    if word == "index" and o.get("nfs_export") == "on":
        return True
    return word in o and o[word] in ("on", None)


def text(words):
    """As it is given with -o."""
    return ",".join(k if x is None else "%s=%s" % (k, x) for k, x in words.items())


def words(given):
    """The reverse."""
    out = {}
    for word in given.split(",") if given else []:
        key, equals, value = word.partition("=")
        out[key] = value if equals else None
    return out


def prefix(plan):
    """Of the overlay's own xattrs."""
    return b"user.overlay." if "userxattr" in plan.get("options", {}) else b"trusted.overlay."


def stages(rng, chosen, allowed, fs):
    """Those of a plan whose mounts have the options @chosen."""
    out = []
    if "userxattr" in chosen and chosen.get("index") == "on":
        return out  # a symlink with several names would be indexed: see options()
    for _ in range(rng.choices([0, 1, 2], [30, 45, 25])[0]):
        o = options(rng, allowed, ("userxattr", "volatile", "fsync"))
        if "userxattr" in chosen:
            o = {k: x for k, x in o.items() if k in ("index", "xino", "uuid")}
            o["userxattr"] = None
        elif chosen.get("redirect_dir", "on") == "on" and rng.random() < 0.7:
            o.pop("nfs_export", None)
            o.pop("redirect_dir", None)
            o["metacopy" if "metacopy" in allowed and rng.random() < 0.6 else "redirect_dir"] = "on"
        out.append({"fs": rng.choice(fs), "options": o, "keep": rng.random() < 0.5, "ops": None})
    return out
