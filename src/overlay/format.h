/* SPDX-License-Identifier: MIT */
/*
 * The on-disk format of overlayfs, encoded and decoded by pure functions: every xattr name and
 * value, whiteouts and the names of temporary files. Defined by fs/overlayfs/overlayfs.h (struct
 * ovl_fb) and Documentation/filesystems/overlayfs.rst of the kernel; the golden bytes in the unit
 * test were written by Linux 6.18.
 *
 * Nothing here makes a system call or allocates. Errors: negative errno.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/types.h>

/* Private xattrs: the prefix of the mount ("trusted.overlay." or "user.overlay.") and one of these.
 */
enum fmt_xattr {
	FMT_OPAQUE,
	FMT_REDIRECT,
	FMT_ORIGIN,
	FMT_IMPURE,
	FMT_NLINK,
	FMT_UPPER,
	FMT_UUID,
	FMT_METACOPY,
	FMT_PROTATTR,
	FMT_WHITEOUT,
	FMT_XATTR_COUNT,
};

#define FMT_PREFIX_TRUSTED "trusted.overlay."
#define FMT_PREFIX_USER    "user.overlay."

/* The whole name, a static string. */
const char *fmt_xattr_name(bool userxattr, enum fmt_xattr which);
/* Which private xattr @name is; -1 for anything else, also for an escaped or unknown one. */
int fmt_xattr_of(bool userxattr, const char *name);
/* Whether @name is in the overlay's own namespace, escaped names included. */
bool fmt_xattr_is_own(bool userxattr, const char *name);

/*
 * A name given by a user, as it is stored: names in the overlay's own namespace get one more
 * "overlay." (overlayfs.rst, "Nesting overlayfs mounts"). -EOPNOTSUPP when longer than
 * XATTR_NAME_MAX.
 */
int fmt_xattr_escape(bool userxattr, const char *name, char *out, size_t size);
/*
 * The reverse: 0 and the user's name in @out, or -ENODATA for a private name, which is hidden.
 */
int fmt_xattr_unescape(bool userxattr, const char *stored, char *out, size_t size);

/* Value of FMT_OPAQUE. Anything that is not one byte 'y' or 'x' means nothing. */
enum fmt_opaque { FMT_NOT_OPAQUE, FMT_IS_OPAQUE, FMT_XWHITEOUTS };
enum fmt_opaque fmt_opaque_value(const void *value, ssize_t size);

/*
 * Value of FMT_REDIRECT: 0, or -EINVAL for what the kernel rejects. @value need not end in NUL, and
 * ends, as for the kernel, at the first one.
 */
int fmt_redirect_check(const char *value, size_t size);

/*
 * Value of FMT_METACOPY (struct ovl_metacopy): the fs-verity digest of the data, or nothing. A
 * lookup only minds one that is too short for that.
 */
#define FMT_METACOPY_MIN 4
#define FMT_DIGEST_MAX   64
#define FMT_METACOPY_MAX (FMT_METACOPY_MIN + FMT_DIGEST_MAX)

struct fmt_metacopy {
	uint8_t algorithm;   /* FS_VERITY_HASH_ALG_* */
	uint8_t digest_size; /* 0: no digest */
	uint8_t digest[FMT_DIGEST_MAX];
};

/* 0, or -EIO when malformed. */
int fmt_metacopy_decode(const void *value, size_t size, struct fmt_metacopy *out);
/* Returns the length written to @out, which is 0 without a digest. */
size_t fmt_metacopy_encode(const struct fmt_metacopy *m, uint8_t out[FMT_METACOPY_MAX]);

/* Value of FMT_PROTATTR to FS_IMMUTABLE_FL | FS_APPEND_FL; 0 for anything not understood. */
unsigned int fmt_protattr_decode(const char *value, ssize_t size);
/* Returns the length written to @out (at most 2); 0 means that the xattr is to be removed. */
size_t fmt_protattr_encode(unsigned int flags, char out[2]);

/*
 * Value of FMT_NLINK, of a file that is in the index: how many links the union counts beyond those
 * of the upper or the lower object.
 */
enum fmt_nlink_base { FMT_NLINK_UPPER, FMT_NLINK_LOWER };
#define FMT_NLINK_MAX 13 /* with room for a NUL */
/* Returns the length. */
size_t fmt_nlink_encode(enum fmt_nlink_base base, int difference, char out[FMT_NLINK_MAX]);
/* 0, or -EINVAL when malformed. */
int fmt_nlink_decode(const char *value, ssize_t size, enum fmt_nlink_base *base, int *difference);

/* A whiteout as it stands in a layer: a character device 0:0. */
static inline bool fmt_is_whiteout(const struct statx *st)
{
	return S_ISCHR(st->stx_mode) && st->stx_rdev_major == 0 && st->stx_rdev_minor == 0;
}

/*
 * What fuse-overlayfs and builders of images leave in a directory instead: a file ".wh.NAME" hides
 * NAME in the layers below, ".wh..wh..opq" all that they have in this directory. Other names that
 * begin with ".wh..wh." are aufs' own, and mean nothing.
 */
#define FMT_WH_PREFIX     ".wh."
#define FMT_WH_PREFIX_LEN (sizeof(FMT_WH_PREFIX) - 1)
#define FMT_WH_OPAQUE     ".wh..wh..opq"
/* A device that fuse-overlayfs makes beside it; by itself it hides nothing but ".opq". */
#define FMT_WH_OPAQUE_DEVICE ".wh..opq"

bool fmt_is_wh_name(const char *name);
/* The name that a file of this name hides, a part of @name; NULL: none. */
const char *fmt_wh_hidden(const char *name);

/* Its own xattrs, which it shows to nobody. */
#define FMT_PREFIX_FUSE       "user.fuseoverlayfs."
#define FMT_FUSE_OPAQUE_XATTR FMT_PREFIX_FUSE "opaque"

/*
 * FMT_ORIGIN: a file handle of the lower inode (struct ovl_fb). FMT_UPPER: one of a directory in
 * upper.
 */
#define FMT_FH_MAX    255
#define FMT_FH_HEADER 21

struct fmt_fh {
	bool upper;       /* of an upper object */
	uint8_t type;     /* as name_to_handle_at(2) gives it */
	uint8_t uuid[16]; /* s_uuid of the filesystem */
	uint8_t fid_len;
	uint8_t fid[128];
};

/* Returns the length written to @out; -EOVERFLOW when the handle is too long for the format. */
ssize_t fmt_fh_encode(const struct fmt_fh *fh, uint8_t out[FMT_FH_MAX]);
/*
 * 0, or -ENODATA when the origin is unknown (zero length, a newer version, foreign byte order), or
 * -EINVAL when malformed, or -ESTALE when its own length leaves no room for any handle: it is then
 * unlike every other, as for the kernel.
 */
int fmt_fh_decode(const void *value, size_t size, struct fmt_fh *fh);

/*
 * The name of an object's entry in workdir/index: the handle of its lower inode as stored in the
 * origin xattr, in lowercase hex.
 */
#define FMT_INDEX_NAME_MAX (2 * FMT_FH_MAX + 1)
/* @fh: encoded. */
void fmt_index_name(const uint8_t *fh, size_t size, char out[FMT_INDEX_NAME_MAX]);
/*
 * The handle as encoded, its length returned: -EINVAL when the name is malformed, -ENODATA when it
 * is of a format that is not known. As the kernel does, what follows the handle is ignored.
 */
ssize_t fmt_index_name_decode(const char *name, uint8_t out[FMT_FH_MAX]);

/* Names in workdir: '#' and lowercase hex, as the kernel's ovl_tempname(). */
#define FMT_TEMP_NAME_MAX 24
void fmt_temp_name(uint64_t n, char out[FMT_TEMP_NAME_MAX]);
