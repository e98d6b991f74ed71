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
("now"), statx attribute bits (FUSE has no way to pass them on), trusted.overlay.uuid (random),
trusted.overlay.impure beyond what is needed, trusted.overlay.opaque where no lower has a directory
(the kernel's overlayfs sets it before a rename that then fails).

Never done, because FUSE has no way for it: fallocate with COLLAPSE_RANGE or INSERT_RANGE. Nor
because it only brings out an oddity of the kernel's overlayfs that spoils all that follows: chown
to -1, -1 (copies up what it leaves as it is); changes through a descriptor of a directory, fifo or
device that has lost its name (the name comes back); ZERO_RANGE on tmpfs, and flags that the layer
refuses after flags that it took (have effects though they fail); a directory with xattr whiteouts
and nothing below it (is listed with them, and not empty); a directory redirected to one that is
still visible. Nor what no filesystem defines: sendfile from a file to itself, writing behind the
end of a file through a mapping.
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


def write_to_stale_mapping(op, args, expected, got, kernel, plyfs):
    """See stale_mapping. What was written cannot be the same on both sides: the mapping goes."""
    if op != "mwrite" or "n" not in got:
        return False
    if expected != {"error": "EFAULT"} and expected.get("n", got["n"]) >= got["n"]:
        return False
    if "error" in kernel.mread_by_fd(args["m"], args["off"], args["n"]):
        return False
    kernel.op_munmap(args["m"])
    plyfs.op_munmap(args["m"])
    return True


def other_holes(op, args, expected, got, kernel, plyfs):
    """
    The kernel's copy-up fills holes shorter than its chunks, and on tmpfs looking at a hole through
    a mapping fills it in the layer. plyfs keeps the hole. So a search for data or for a hole may
    stop elsewhere, with nothing but zeros between. (fewer_blocks sees to it that no hole is lost.)
    """
    if op != "lseek" or args["whence"] not in (os.SEEK_DATA, os.SEEK_HOLE):
        return False
    fd = plyfs.fd(args["h"])
    data = os.open(b"/proc/self/fd/%d" % fd, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(data).st_size
        ends = []
        for result in (expected, got):
            if "off" in result:
                ends.append(result["off"])
            elif result.get("error") == "ENXIO" and args["whence"] == os.SEEK_DATA:
                ends.append(size)
            else:
                return False
        if args["whence"] == os.SEEK_DATA:
            fine = _zero(data, min(ends), max(ends))
        else:
            fine = all(_zero(data, end, end + 4096 - end % 4096) for end in ends)
    finally:
        os.close(data)
    if fine:
        at = os.lseek(kernel.fd(args["h"]), 0, os.SEEK_CUR)
        os.lseek(fd, at, os.SEEK_SET)
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


def links_of_an_unlinked_lower_file(op, args, expected, got, kernel, plyfs):
    """
    A lower file that is open and has lost its name shows the link count of its layer on the
    kernel's overlayfs, and on plyfs the same until something is copied up for it: then none.
    """
    if op not in ("fstat", "open") or got.get("nlink") != 0 or {**expected, "nlink": 0} != got:
        return False
    return os.readlink("/proc/self/fd/%d" % kernel.fd(args["h"])).endswith(" (deleted)")


def index_counted(op, args, expected, got, kernel, plyfs):
    """
    With nfs_export everything that is copied up has an entry in the index. What had one name only
    has no count of its own, and once it was forgotten the kernel's overlayfs shows that of upper,
    one too many for the entry. plyfs goes on showing how many names there are. So when all are gone
    it puts a whiteout into the index at once, and the kernel's overlayfs at its next mount.
    """
    if not kernel.indexes_all or "nlink" not in expected or "nlink" not in got:
        return False
    if not counts_its_index(None, "nlink", expected["nlink"], got["nlink"]):
        return False
    got = {**got, "nlink": expected["nlink"]}
    return expected == got or truncate_of_nothing(op, args, expected, got, kernel, plyfs)


def mapping_of_an_append_only_file(op, args, expected, got, kernel, plyfs):
    """
    What was written through a mapping before its file was made append-only is written back by FUSE
    with write(2), which the layer then refuses.
    """
    if op != "msync" or "error" in expected or got != {"error": "EPERM"} or not plyfs.flagged:
        return False
    raise Parted


def link_of_a_removed_file(op, args, expected, got, kernel, plyfs):
    """See index_counted(): a file that is counted one too many can be given a name again."""
    if op != "link_empty" or "error" in expected or got != {"error": "ENOENT"}:
        return False
    if not kernel.indexes_all or os.fstat(plyfs.fd(args["h"])).st_nlink:
        return False
    raise Parted


def default_acl_above_an_alias(op, args, expected, got, kernel, plyfs):
    """
    Removing the default ACL that an upper directory does not have works, and that of a lower one
    is ENODATA; see above_an_alias().
    """
    return (op in ("removexattr", "fremovexattr") and plyfs.indexed
            and args["name"] == b"system.posix_acl_default"
            and ({"error": "ENODATA"}, {}) in ((expected, got), (got, expected)))


def links_of_a_directory_above_an_alias(op, args, expected, got, kernel, plyfs):
    """See above_an_alias()."""
    return (plyfs.indexed and got.get("mode", "")[:1] == "d"
            and {**expected, "nlink": 1} == {**got, "nlink": 1}
            and 1 in (expected["nlink"], got["nlink"]))


def without_miscounted(found, expected, got, prefix, swapped):
    """See index_counted(): of the uppers and their indexes on disk. @swapped: or the reverse."""

    def allowed(path, field, a, b):
        if field == "xattrs" and isinstance(a, dict) and isinstance(b, dict):
            return [k for k in a.keys() | b.keys() if a.get(k) != b.get(k)] == [prefix + b"nlink"]
        if not path.startswith(b"(index)/"):
            return False
        return any(left.get(path, {}).get("nlink") == 1
                   and gone.get(path, {}).get("type") == "whiteout"
                   for left, gone in ([expected, got], [got, expected])[:1 + swapped])

    return [d for d in found if not allowed(*d)]


def counts_its_index(path, field, expected, got, kernel=None, plyfs=None):
    """See index_counted()."""
    return (field == "nlink" and isinstance(expected, int) and expected - 1 == got
            and (kernel is None or kernel.indexes_all))


def redirect_of_another_alias(op, args, expected, got, kernel, plyfs):
    """
    A metacopy that gets another name is redirected to where it was found. With an index it may have
    several names (see without_other_aliases()), and that of one choice be too long.
    """
    if op not in ("link", "link_empty", "rename") or not plyfs.indexed:
        return False
    if {"error": "EXDEV"} not in (expected, got) or "error" in expected and "error" in got:
        return False
    raise Parted


def names_with_errors(op, args, expected, got, kernel, plyfs):
    """
    The kernel's overlayfs lists a name whose lookup fails (a redirect that may not be followed, a
    metacopy without data) unless it needs its inode number. plyfs always lists it.
    """
    field = "after" if op == "dir_end" else "names"
    if op not in ("readdir", "rewind", "dir_end") or field not in got:
        return False
    if set(expected) == {"error"}:  # see part_if_unlistable()
        expected = {**got, field: []}
    if any(expected[k] != got[k] for k in expected if k not in (field, "seek", "missing")):
        return False
    base = plyfs.path(args["p"]) if op == "readdir" else b"/proc/self/fd/%d" % plyfs.fd(args["h"])
    extra = set(got[field]) - set(expected[field])
    failing = [fails(base + b"/" + (e if op == "dir_end" else e[0])) for e in extra]
    return set(expected[field]) <= set(got[field]) and (
        any(failing) if not expected[field] else all(failing))


def fails(path):
    """Whether a name is there and cannot be looked up."""
    try:
        os.lstat(path)
        return False
    except OSError as e:
        return e.errno != errno.ENOENT


class Parted(Exception):
    """The sides differ for a good reason and can no longer be compared: the sequence ends here."""


def empty_but_for_whiteouts(op, args, expected, got, kernel, plyfs):
    """
    The kernel's overlayfs takes xattr whiteouts for entries when it is to remove a directory or
    rename over it: one that it shows as empty is not. plyfs removes it.
    """
    if op not in ("rmdir", "rename") or expected != {"error": "ENOTEMPTY"} or got != {}:
        return False
    path = kernel.path(args["to" if op == "rename" else "p"])
    if any(exists(path + b"/" + name) for name in os.listdir(path)):
        return False
    raise Parted


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
    if slot is None or expected != {"error": "EEXIST"} or op == "link_empty":
        return False
    if not os.readlink("/proc/self/fd/%d" % kernel.fd(slot)).endswith(" (deleted)"):
        return False
    if "error" in got:
        return True
    if op == "open":
        for side in (kernel, plyfs):
            side.put(args["h"], None)
    kernel.drop(slot)
    plyfs.drop(slot)
    return True


def mtime_of_mappings(op, args, expected, got, kernel, plyfs):
    """
    Writing through a shared mapping changes the mtime at once on the kernel's overlayfs, on tmpfs
    never if the page was mapped for reading before; on FUSE when the pages are written back, which
    is what POSIX allows (by the next msync). So fsync brings it about, and tmpfs is helped.
    """
    if expected.get("mtime") == got.get("mtime") or "mtime" not in expected or "mtime" not in got:
        return False
    if any(expected.get(k) != got.get(k) for k in expected.keys() | got.keys() if k != "mtime"):
        return False
    paths = [side.path(args["p"]) if "p" in args else b"/proc/self/fd/%d" % side.fd(args["h"])
             for side in (kernel, plyfs)]
    return _mtime_of_mapping(*paths, expected, got, plyfs)


def _mtime_of_mapping(kernel_path, plyfs_path, expected, got, plyfs):
    if expected == "now" or isinstance(expected, dict) and expected["mtime"] == "now":
        return _new_after_fsync(plyfs_path, plyfs)
    if os.stat(plyfs_path).st_ino not in plyfs.written_by_mapping:
        return False
    os.utime(kernel_path)
    return got == "now" or isinstance(got, dict) and got["mtime"] == "now"


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


def both_refuse(op, args, expected, got, kernel, plyfs):
    """
    The kernel's overlayfs knows which of its inodes are immutable or append-only and refuses before
    it looks at anything else. FUSE inodes cannot say so: plyfs is only asked, and refuses, after
    the other checks. What fails there with another error must fail all the same.
    """
    return kernel.flagged and expected == {"error": "EPERM"} and set(got) == {"error"}


def truncate_of_nothing(op, args, expected, got, kernel, plyfs):
    """
    On tmpfs, truncate(2) of a file without blocks to the size that it has leaves its mtime. POSIX
    wants it changed, and plyfs changes it.
    """
    if op != "truncate" or expected.get("mtime") == "now" or got.get("mtime") != "now":
        return False
    if {**expected, "mtime": 0} != {**got, "mtime": 0}:
        return False
    path = kernel.path(args["p"])
    st = os.stat(path)
    if st.st_blocks:
        return False
    os.utime(plyfs.path(args["p"]), ns=(st.st_atime_ns, st.st_mtime_ns))
    return True


def copies_more(op, args, expected, got, kernel, plyfs):
    """
    copy_file_range(2) may copy less than it is asked for. From a lower file on another filesystem
    than upper it gives EXDEV on the kernel's overlayfs, from some links of a copied-up file it sees
    the old end. Where plyfs copies more, and it is there, the kernel's side gets it by hand.
    """
    if op != "copy_file_range" or "n" not in got:
        return False
    done = 0 if expected == {"error": "EXDEV"} else expected.get("n", got["n"])
    if done >= got["n"]:
        return False
    data = os.pread(kernel.fd(args["h"]), got["n"] - done, args["off"] + done)
    os.pwrite(kernel.fd(args["to"]), data, args["to_off"] + done)
    return len(data) == got["n"] - done


def rename_of_one_file(op, args, expected, got, kernel, plyfs):
    """
    Renaming or exchanging two names of one file does nothing; with layers on several filesystems,
    one of which has no UUID, the kernel's overlayfs sometimes fails with ESTALE instead, and it
    takes what cannot hold an origin in user xattrs for two files, which not everybody may rename.
    """
    return (op == "rename" and got == {} and expected in ({"error": "ESTALE"}, {"error": "EACCES"})
            and os.path.samestat(os.lstat(plyfs.path(args["p"])), os.lstat(plyfs.path(args["to"]))))


def unknown_to_the_vfs(op, args, expected, got, kernel, plyfs):
    """
    What the VFS decides by itself, from inode flags that FUSE inodes have not: access(2) for
    writing an immutable file, a shared mapping of an append-only file open for writing, copying
    nothing (from the end of a file) to an immutable one, taking away the default ACL that a file
    cannot have.
    """
    if not kernel.flagged or "error" in got:
        return False
    if op == "mmap" and expected == {"error": "EACCES"}:
        for side in (kernel, plyfs):
            if side.maps[args["m"]]:
                side.op_munmap(args["m"])
        return True
    if args.get("name") == b"system.posix_acl_default" and expected == {"error": "EPERM"}:
        path = kernel.path(args["p"]) if "p" in args else kernel.fd(args["h"])
        return not stat.S_ISDIR(os.stat(path).st_mode)
    if op == "copy_file_range":
        return expected == {"error": "EPERM"} and got == {"n": 0}
    return op == "access" and expected == {"error": "EPERM"} and args["mode"] & os.W_OK


def removal_of_no_acl(op, args, expected, got, kernel, plyfs):
    """
    Removing an ACL that a lower file does not have, also by setting an empty one, is ENODATA, but
    on the kernel's overlayfs it works and drops set-group-ID where setting one would.
    """
    if (op not in ("removexattr", "fremovexattr", "setxattr", "fsetxattr")
            or got != {"error": "ENODATA"} or "error" in expected or "skip" in expected
            or args["name"] != b"system.posix_acl_access" or len(args.get("value", b"")) > 4):
        return False
    if op in ("removexattr", "setxattr"):
        a, b = kernel.path(args["p"]), plyfs.path(args["p"])
    else:
        a, b = kernel.fd(args["h"]), plyfs.fd(args["h"])
    mode = os.stat(a).st_mode
    if os.stat(b).st_mode != mode | stat.S_ISGID or mode & stat.S_ISGID:
        return False
    os.chmod(b, stat.S_IMODE(mode))
    return True


def reading_a_directory(op, args, expected, got, kernel, plyfs):
    """
    read(2) of a directory fails: with EINVAL instead of EISDIR where its offset is as large as
    those of ext4's directories.
    """
    return op == "read" and expected == {"error": "EINVAL"} and got == {"error": "EISDIR"}


def mtime_of_metacopy(op, args, expected, got, kernel, plyfs):
    """
    Opening a metacopy for writing brings its data, which changes its mtime on the kernel's
    overlayfs although nobody wrote anything. On plyfs it does not, as without metacopy.
    """
    if op != "open" or expected.get("mtime") != "now" or args["flags"] & os.O_TRUNC:
        return False
    if args["flags"] & os.O_ACCMODE == os.O_RDONLY:
        return False
    if {**expected, "mtime": 0} != {**got, "mtime": 0}:
        return False
    st = os.fstat(plyfs.fd(args["h"]))
    os.utime(b"/proc/self/fd/%d" % kernel.fd(args["h"]), ns=(st.st_atime_ns, st.st_mtime_ns))
    return True


def room_for_whiteout_names(op, args, expected, got, kernel, plyfs):
    """Where whiteouts may be files named .wh.NAME, names are four bytes shorter."""
    return (op == "statfs" and plyfs.name == "fuse-overlayfs"
            and {**expected, "namelen": expected.get("namelen", 0) - 4} == got)


def links_are_counted(op, args, expected, got, kernel, plyfs):
    """
    The kernel's overlayfs gives a united directory one link; fuse-overlayfs counts, as those do who
    pack images.
    """
    return (plyfs.name == "fuse-overlayfs" and expected.get("mode", "")[:1] == "d"
            and expected["nlink"] == 1 and got.get("nlink", 0) >= 2
            and {**expected, "nlink": got["nlink"]} == got)


OPERATIONS = [
    mtime_of_mappings, changes_to_unlinked_lower_file, stale_mapping, write_to_stale_mapping,
    other_holes, names_that_are_not_there, exact_xattr_sizes, both_refuse, truncate_of_nothing,
    copies_more, rename_of_one_file, reading_a_directory, unknown_to_the_vfs, names_with_errors,
    mapping_of_an_append_only_file, link_of_a_removed_file, default_acl_above_an_alias,
    links_of_a_directory_above_an_alias, index_counted, redirect_of_another_alias,
    mtime_of_metacopy, removal_of_no_acl, links_of_an_unlinked_lower_file, empty_but_for_whiteouts,
    room_for_whiteout_names, links_are_counted,
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


def capability_after_mapping(path, field, expected, got, kernel, plyfs):
    """
    What was written through a shared mapping is written back by plyfs with write(2), which takes
    the capabilities of the file away, as any other writing does. The kernel's overlayfs keeps them.
    """
    if field != "xattrs" or plyfs is None or not isinstance(expected, dict):
        return False
    if b"security.capability" not in expected:
        return False
    less = {k: x for k, x in expected.items() if k != b"security.capability"}
    if (got or {}) != less:
        return False
    if os.lstat(plyfs.root + b"/" + path).st_ino not in plyfs.written_by_mapping:
        return False
    sc.removexattr(kernel.root + b"/" + path, b"security.capability")
    return True


def whiteouts_listed(path, field, expected, got, kernel, plyfs):
    """See names_that_are_not_there."""
    return field == "missing" and expected == "error ENOENT"


def errors_listed(path, field, expected, got, kernel, plyfs):
    """See names_with_errors."""
    return field == "extra" and got.startswith("error ") and got != "error ENOENT"


def fewer_blocks(path, field, expected, got, kernel, plyfs):
    """See other_holes: the content is the same (that is another field), the blocks may be fewer."""
    return field == "blocks" and None not in (got, expected) and got < expected


def mtime_of_mapped_files(path, field, expected, got, kernel, plyfs):
    """See mtime_of_mappings."""
    return (field == "mtime" and plyfs is not None and os.path.isfile(plyfs.root + b"/" + path)
            and _mtime_of_mapping(kernel.root + b"/" + path, plyfs.root + b"/" + path,
                                  expected, got, plyfs))


def directory_above_an_alias(path, field, expected, got, kernel, plyfs):
    """See above_an_alias()."""
    if plyfs is None or not plyfs.indexed or not os.path.isdir(plyfs.root + b"/" + path):
        return False
    return above_an_alias({path: {"type": "d"}}, path, field, expected, got)


def above_an_alias(tree, path, field, expected, got):
    """See without_other_aliases(): one of the two has copied this directory up, or united it."""
    if tree.get(path, {}).get("type") != "d":
        return False
    return field == "btime" and "new" in (expected, got) or field == "nlink" and 1 in (
        expected, got)


def part_if_unlistable(expected, got):
    """
    A directory of one layer is listed by the kernel's overlayfs no further than to a name whose
    lookup fails, if it needs the inode numbers: see names_with_errors(). plyfs lists all of it.
    """
    for path, e in expected.items():
        listing = e.get("listing")
        if listing is None or got.get(path, {}).get("listing") is not None:
            continue
        below = (x for p, x in got.items() if p and p.rpartition(b"/")[0] == path)
        if any(x["type"].startswith("error ") for x in below):
            raise Parted


def counted_in_trees(path, field, expected, got, kernel, plyfs):
    """See index_counted()."""
    return kernel is not None and counts_its_index(path, field, expected, got, kernel)


def links_counted_in_trees(path, field, expected, got, kernel, plyfs):
    """See links_are_counted(): as many as there are directories in it, and two."""
    if field != "nlink" or expected != 1 or plyfs is None or plyfs.name != "fuse-overlayfs":
        return False
    with os.scandir(plyfs.root + b"/" + path) as entries:
        return got == 2 + sum(e.is_dir(follow_symlinks=False) for e in entries)


TREES = [
    mtime_of_mapped_files, counted_in_trees, directory_above_an_alias, birth_of_the_lower,
    whiteouts_listed, errors_listed, fewer_blocks,
    capability_after_mapping, links_counted_in_trees,
]


# ---- uppers on disk


def without_other_aliases(found, expected, got, prefix):
    """
    With an index the names of a hard link in a lower layer are one inode, and FUSE does not say by
    which of them it was opened: the name that plyfs copies up, and the directories above it, may
    not be those that the kernel's overlayfs does. The index, and what it counts, is the same.
    """
    names = [_indexed(t) for t in (expected, got)]
    aliases = {p for index in names[0].keys() | names[1].keys()
               if names[0].get(index) != names[1].get(index)
               for n in names for p in n.get(index, ())}
    indexed = {p for n in names for group in n.values() for p in group}
    marks = {prefix + b"nlink", prefix + b"redirect"}

    def above(path, t):
        """Whether a directory holds nothing but what came up for the sake of an alias."""
        below = [q for q in t if q.rpartition(b"/")[0] == path and q]
        return prefix + b"origin" in t[path].get("xattrs", {}) and all(
            q in aliases or t[q]["type"] == "d" and above(q, t) for q in below)

    def allowed(path, field, a, b):
        if path in indexed and field == "xattrs":
            different = {k for k in a.keys() | b.keys() if a.get(k) != b.get(k)}
            return not different - (marks if path in aliases else {prefix + b"redirect"})
        if path in aliases:
            return field in ("missing", "extra", "nlink", "same as")
        if field in ("missing", "extra") and "d" in (a, b):
            t, other = (expected, got) if b is None else (got, expected)
            if path.startswith(b"(index)/"):  # nfs_export has an entry for each directory
                handle = t[path].get("xattrs", {}).get(prefix + b"upper")
                path = handle[2] if isinstance(handle, tuple) and len(handle) == 3 else None
            return path in t and path not in other and above(path, t)
        return False

    return [d for d in found if not allowed(*d)]


def _indexed(t):
    """{entry of the index: all names of that file, the entry among them}"""
    groups = {}
    for path, e in t.items():
        if "same as" in e:
            groups.setdefault(e["same as"], set()).add(path)
    return {p: group for group in groups.values() for p in group if p.startswith(b"(index)/")}


def operation_allowed(*difference):
    return any(rule(*difference) for rule in OPERATIONS)


def tree_allowed(*difference):
    return any(rule(*difference) for rule in TREES)
