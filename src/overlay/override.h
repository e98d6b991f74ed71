/* SPDX-License-Identifier: MIT */
/*
 * Owner, mode and type of objects that are kept in an xattr (format_override.h), so that they can
 * be what the daemon may not make them really be. fuse-overlayfs and containers/storage write
 * layers so.
 *
 * A layer whose root has one of the attributes is read by it, object by object: what has none is
 * shown as it is. In upper all that is made is really ours, a directory or a regular file, with a
 * mode that lets us work and no set-id bits; and has its attribute before it has its name.
 *
 * A symlink can hold attributes of security.* only, what others made a device, pipe or socket none:
 * there a new owner is forgotten, as fuse-overlayfs does.
 *
 * Errors: negative errno; -EIO for a value that cannot be trusted.
 */
#pragma once

#include "overlay/internal.h"

/* --- what a layer shows, for layer_dir.c. Without overrides they are not to be called.
 * ----------*/

/* 1: as its attribute says; 0: it has none. @st: as the filesystem has it. */
int override_show(const struct layer *layer, int fd, const char *name, struct statx *st);
/* Xattrs that the layer keeps under another name are seen by their own. */
ssize_t override_getxattr(const struct layer *layer, int fd, const char *name, const char *xattr,
			  void *value, size_t size);
ssize_t override_listxattr(const struct layer *layer, int fd, const char *name, char *list,
			   size_t size);
/* The target of a symlink that is a regular file: its contents. -EINVAL for any other object. */
ssize_t override_readlink(const struct layer *layer, int fd, const char *name, char *buf,
			  size_t size);

/* --- the union
 * ----------------------------------------------------------------------------------*/

/*
 * Finds out which layers are to be read so, and prepares upper. For mounts that know of it only:
 * those of fuse-overlayfs' personality, and where it is asked for.
 */
int override_init(struct ovl *o, char *message, size_t size);

static inline bool override_in_upper(const struct ovl *o)
{
	return o->has_upper && unlikely(o->layers[0].override_count);
}

/* Whether users can neither see nor set an xattr. */
static inline bool override_hides(const struct ovl *o, const char *xattr)
{
	return unlikely(o->knows_overrides) && fmt_override_reserved(xattr);
}

/* --- objects of upper, wherever owner and mode are kept
 * -----------------------------------------*/

/* What to really make for an object of this type and mode; the mode that is to follow. */
mode_t object_real_mode(const struct ovl *o, mode_t mode);
/*
 * Gives a new object that nobody sees yet its owner; what else is to be kept in an xattr, too.
 * @real: what it really is.
 */
int object_own(struct ovl *o, int dirfd, const char *name, mode_t real, const struct statx *attr);
/* And then its mode. */
int object_own_mode(struct ovl *o, int dirfd, const char *name, mode_t mode);

/* Attributes as shown. */
int object_stat(struct ovl *o, int dirfd, const char *name, struct statx *st);
int object_chmod(struct ovl *o, int dirfd, const char *name, mode_t mode);
/*
 * Changes owner and mode, as chown(2) and chmod(2) of the caller's: in one step. Only where they
 * are kept in an xattr.
 */
int override_setattr(struct ovl *o, const struct ovl_caller *caller, int dirfd, const char *name,
		     const struct ovl_setattr *set);

int object_setxattr(struct ovl *o, int dirfd, const char *name, const char *xattr,
		    const void *value, size_t size, int flags);
int object_removexattr(struct ovl *o, int dirfd, const char *name, const char *xattr);
/* An access ACL is changed, with the permission bits that it stands for. */
int object_set_acl(struct ovl *o, int dirfd, const char *name, const void *value, size_t size,
		   int flags);
