# SPDX-License-Identifier: MIT
"""
The one place that lists where plyfs may differ from the kernel's overlayfs, each with the reason.

A rule sees one difference and says whether it is the one it describes; it must describe it so
narrowly that no bug can hide in it, and where it can it looks at the mounts to make sure. Rules on
operations get (op, args, expected, got, kernel side, plyfs side); rules on trees (path, field,
expected, got, kernel side, plyfs side), the sides None once they are unmounted.

Never compared, because it has no meaning over both: numbers of inodes (only uniqueness, constancy
and d_ino are checked), order and offsets of directory entries, atime except where utimensat just
set it, ctime, st_size and st_blocks of directories, st_blocks on disk filesystems (delayed
allocation), statfs beside name length and block size, the times of what was changed during the run
("now"), statx attribute bits (FUSE has no way to pass them on), trusted.overlay.uuid (random).

Never generated, because FUSE has no way for it: fallocate with COLLAPSE_RANGE or INSERT_RANGE. Nor
because it only brings out an oddity of the kernel's overlayfs that spoils all that follows: chown
to -1, -1 (copies up what it leaves as it is), a directory with xattr whiteouts and nothing below it
(is listed with them, and not empty), a directory redirected to one that is still visible.
"""

import errno
import os
import stat

import syscalls as sc

BLOCK = 65536


def _zero(fd, start, end):
    """Whether the open file reads as zeros from @start to @end or its end."""
    while start < end:
        data = os.pread(fd, min(BLOCK, end - start), start)
        if not data:
            break
        if data.count(0) != len(data):
            return False
        start += len(data)
    return True


# ---- operations


def stale_mapping(op, args, expected, got, kernel, plyfs):
    """
    A mapping made before copy-up goes on showing the lower file on the kernel's overlayfs. On plyfs
    there is one page cache for both, so the mapping must show what read(2) shows.
    """
    if op != "mread" or "skip" in expected or "skip" in got:
        return False
    m, off, n = args["m"], args["off"], args["n"]
    return kernel.mread_by_fd(m, off, n) != expected and plyfs.mread_by_fd(m, off, n) == got


def more_holes(op, args, expected, got, kernel, plyfs):
    """
    The kernel's copy-up fills holes shorter than its chunks, and on tmpfs looking at a hole through
    a mapping fills it in the layer. plyfs keeps the hole. So a search for data may go farther there
    and one for a hole less far, over nothing but zeros.
    """
    if op != "lseek" or args["whence"] not in (os.SEEK_DATA, os.SEEK_HOLE) or "off" not in expected:
        return False
    fd = plyfs.fd(args["h"])
    path = b"/proc/self/fd/%d" % fd
    data = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(data).st_size
        if args["whence"] == os.SEEK_DATA:
            end = got.get("off", size if got.get("error") == "ENXIO" else -1)
            fine = end >= expected["off"] and _zero(data, expected["off"], end)
        else:
            start = got.get("off", -1)
            fine = 0 <= start <= expected["off"] and _zero(data, start, start + 4096 - start % 4096)
    finally:
        os.close(data)
    if fine:
        os.lseek(fd, expected["off"], os.SEEK_SET)
    return fine


def names_that_are_not_there(op, args, expected, got, kernel, plyfs):
    """
    A directory of one layer is listed by the kernel's overlayfs as it lies there, whiteouts that a
    lowest layer should not have included. plyfs never lists what cannot be looked up.
    """
    if op == "readdir":
        base = kernel.path(args["p"])
    elif op in ("rewind", "dir_end"):
        base = b"/proc/self/fd/%d" % kernel.fd(args["h"])
    else:
        return False
    field = "after" if op == "dir_end" else "names"
    if field not in expected or field not in got:
        return False
    if any(expected[k] != got[k] for k in expected if k not in (field, "seek", "missing")):
        return False
    extra = set(expected[field]) - set(got[field])
    return set(got[field]) <= set(expected[field]) and not any(
        exists(base + b"/" + (e if op == "dir_end" else e[0])) for e in extra)


def exists(path):
    try:
        os.lstat(path)
        return True
    except OSError as e:
        return e.errno != errno.ENOENT


def exact_xattr_sizes(op, args, expected, got, kernel, plyfs):
    """
    listxattr(2) with a small buffer counts the overlay's own names on the kernel's overlayfs before
    it hides them: a size larger than the list, or ERANGE where the list would fit. plyfs counts
    what it shows.
    """
    if op not in ("listxattr", "flistxattr") or not {"size"} <= set(args):
        return False
    if op == "listxattr":
        names = sc.listxattr(kernel.path(args["p"]), args["follow"])
        estimate = sc.listxattr(kernel.path(args["p"]), args["follow"], 0)
    else:
        names = sc.listxattr(kernel.fd(args["h"]))
        estimate = sc.listxattr(kernel.fd(args["h"]), size=0)
    if "who" in args and args["who"][0]:
        names = [n for n in names if not n.startswith(b"trusted.")]
    length = sum(len(n) + 1 for n in names)
    if args["size"] == 0:
        return got == {"names": length} and expected.get("names", -1) > length
    return (expected == {"error": "ERANGE"} and estimate > length and length <= args["size"]
            and got == {"names": sorted(names)})


def changes_to_unlinked_lower_file(op, args, expected, got, kernel, plyfs):
    """
    A lower file that is open and has lost its name cannot be copied up by the kernel's overlayfs:
    the change fails with EEXIST. On plyfs it succeeds, as on any other filesystem. The two files
    are no longer the same: both sides let go of theirs.
    """
    slot = args.get("h")
    if args.get("p", b"")[:1] == b"@" and b"/" not in args["p"]:
        slot = int(args["p"][1:])
    if slot is None or expected != {"error": "EEXIST"} or "error" in got or op == "link_empty":
        return False
    if not os.readlink("/proc/self/fd/%d" % kernel.fd(slot)).endswith(" (deleted)"):
        return False
    if op == "open":
        plyfs.op_close(args["h"])
    kernel.drop(slot)
    plyfs.drop(slot)
    return True


def unwritten_mapping_mtime(op, args, expected, got, kernel, plyfs):
    """
    Writing through a shared mapping changes the mtime at once on the kernel's overlayfs; on FUSE
    when the pages are written back, which POSIX allows (by the next msync). So fsync brings it
    about.
    """
    if expected.get("mtime") != "now" or "mtime" not in got:
        return False
    if any(expected.get(k) != got.get(k) for k in expected.keys() | got.keys() if k != "mtime"):
        return False
    path = plyfs.path(args["p"]) if "p" in args else b"/proc/self/fd/%d" % plyfs.fd(args["h"])
    return _new_after_fsync(path, plyfs)


def _new_after_fsync(path, plyfs):
    st = os.stat(path)
    if not stat.S_ISREG(st.st_mode) or st.st_ino not in plyfs.written_by_mapping:
        return False
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
        return plyfs.when(os.fstat(fd).st_mtime_ns) == "now"
    finally:
        os.close(fd)


OPERATIONS = [
    unwritten_mapping_mtime, changes_to_unlinked_lower_file, stale_mapping, more_holes,
    names_that_are_not_there, exact_xattr_sizes,
]

# ---- trees


def birth_of_the_lower(path, field, expected, got, kernel, plyfs):
    """
    FUSE remembers a birth time and never asks for it again, so that after copy-up the lower
    object's is shown. The answer that plyfs gives when it is asked is the same as the kernel's.
    """
    if field != "btime" or expected != "new" or plyfs is None:
        return False
    asked = sc.statx(sc.AT_FDCWD, plyfs.root + b"/" + path,
                     sc.AT_SYMLINK_NOFOLLOW | sc.AT_STATX_FORCE_SYNC)
    return asked.btime != got


def whiteouts_listed(path, field, expected, got, kernel, plyfs):
    """See names_that_are_not_there."""
    return field == "missing" and expected == "error ENOENT"


def fewer_blocks(path, field, expected, got, kernel, plyfs):
    """See more_holes: the content is the same (that is another field), the blocks may be fewer."""
    return field == "blocks" and got < expected


def mtime_before_writeback(path, field, expected, got, kernel, plyfs):
    """See unwritten_mapping_mtime: fsync makes it new."""
    return (field == "mtime" and expected == "now" and plyfs is not None
            and _new_after_fsync(plyfs.root + b"/" + path, plyfs))


TREES = [mtime_before_writeback, birth_of_the_lower, whiteouts_listed, fewer_blocks]


def operation_allowed(*difference):
    return any(rule(*difference) for rule in OPERATIONS)


def tree_allowed(*difference):
    return any(rule(*difference) for rule in TREES)
