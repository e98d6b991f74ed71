/* SPDX-License-Identifier: MIT */
/*
 * Owner, mode and type of an object in an xattr, as fuse-overlayfs and containers/storage write it:
 * the names and values, encoded and decoded by pure functions.
 *
 * A value is "uid:gid:mode" or "uid:gid:mode:type": two decimal numbers, an octal one, and dir,
 * file, symlink, pipe, socket, block-MAJOR-MINOR or char-MAJOR-MINOR. fuse-overlayfs keeps the type
 * in the upper bits of some modes, and containers/storage always adds it; what it says there has to
 * agree. Without one the type is that of the real object.
 *
 * Where the attribute is one of user.*, other xattrs that only the privileged may set are kept
 * there too, as user.containers.override_NAME: security.* and ACLs.
 *
 * Nothing here makes a system call or allocates. Errors: negative errno.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/types.h>

enum fmt_override {
	FMT_OVERRIDE_SECURITY,      /* security.fuseoverlayfs.override_stat */
	FMT_OVERRIDE_FUSEOVERLAYFS, /* user.fuseoverlayfs.override_stat */
	FMT_OVERRIDE_CONTAINERS,    /* user.containers.override_stat */
	FMT_OVERRIDE_COUNT,
};

const char *fmt_override_name(enum fmt_override which);

struct fmt_override_stat {
	uint32_t uid;
	uint32_t gid;
	mode_t mode;    /* without S_IFMT bits: the type is that of the real object */
	uint32_t major; /* of a device */
	uint32_t minor;
};

#define FMT_OVERRIDE_MAX 64 /* with room for a NUL */

/* 0, or -EINVAL when malformed, or when it holds a number that the kernel has no room for. */
int fmt_override_decode(const char *value, size_t size, struct fmt_override_stat *out);
/*
 * Shows a real object as it says. -EIO when it contradicts what the object is: only a regular file
 * may stand for something else.
 */
int fmt_override_apply(const struct fmt_override_stat *ov, struct statx *st);
/*
 * The value for an object that is to be shown with owner, mode and device number of @shown and
 * whose real type is @real. Returns the length.
 */
size_t fmt_override_encode(const struct statx *shown, mode_t real, char out[FMT_OVERRIDE_MAX]);

/* Whether a name is one of those that only whoever writes the layer may set. */
bool fmt_override_reserved(const char *name);
/* Whether it is kept under another name next to an attribute that is one of user.*. */
bool fmt_override_moves(const char *name);
/* That other name. -ERANGE when it is too long. */
int fmt_override_moved(const char *name, char *out, size_t size);
/* The reverse: what is kept under a stored name, which it is part of; NULL: nothing. */
const char *fmt_override_kept(const char *stored);
