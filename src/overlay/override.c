// SPDX-License-Identifier: MIT
#include "overlay/override.h"

#include <fcntl.h>
#include <linux/limits.h>
#include <linux/xattr.h>

#include "util/at.h"

#define CAPABILITY "security.capability"

/* --- reading
 * ------------------------------------------------------------------------------------*/

/* What can hold the attribute at all: nothing is asked of the others. */
static bool can_hold(enum fmt_override which, mode_t real)
{
	return S_ISREG(real) || S_ISDIR(real) || (which == FMT_OVERRIDE_SECURITY && S_ISLNK(real));
}

/*
 * What others than root may have written gives nobody rights on the host: whoever can write into a
 * directory of a layer could else make himself a set-id program or a device there. In a user
 * namespace the kernel keeps such rights inside. user.* xattrs are set by whoever may write.
 */
static bool is_strangers(const struct layer *layer, enum fmt_override which, const struct statx *st)
{
	return layer->of_the_host && which != FMT_OVERRIDE_SECURITY &&
	       (st->stx_uid != 0 || (st->stx_mode & (S_IWGRP | S_IWOTH)));
}

/* -EIO: a device, which would be one. */
static int take_rights(struct statx *st)
{
	if (S_ISCHR(st->stx_mode) || S_ISBLK(st->stx_mode))
		return -EIO;
	if (!S_ISDIR(st->stx_mode))
		st->stx_mode &= (uint16_t) ~(S_ISUID | S_ISGID);
	return 0;
}

int override_show(const struct layer *layer, int fd, const char *name, struct statx *st)
{
	for (unsigned int n = 0; n < layer->override_count; n++) {
		enum fmt_override which = layer->overrides[n];
		char value[FMT_OVERRIDE_MAX];
		struct fmt_override_stat ov;
		bool strangers = is_strangers(layer, which, st);
		ssize_t size;

		if (!can_hold(which, st->stx_mode))
			continue;
		size = at_getxattr(fd, name, fmt_override_name(which), value, sizeof(value));
		if (size == -ENODATA || size == -EOPNOTSUPP)
			continue;
		/* Who wrote one has also let himself read it. */
		if (size == -EACCES && !(st->stx_mode & S_IRUSR))
			continue;
		if (size == -ERANGE)
			return -EIO;
		if (size < 0)
			return (int)size;
		if (fmt_override_decode(value, (size_t)size, &ov) < 0 ||
		    fmt_override_apply(&ov, st) < 0 || (strangers && take_rights(st) < 0))
			return -EIO;
		return 1;
	}
	return 0;
}

/*
 * Whether an xattr is kept under another name. ACLs are in all layers: a real one would change, and
 * be changed by, the real mode.
 */
static bool moves(const struct layer *layer, const char *xattr)
{
	if (!layer->override_count || !fmt_override_moves(xattr))
		return false;
	return layer->overrides[0] != FMT_OVERRIDE_SECURITY || strncmp(xattr, "security.", 9) != 0;
}

/* The name under which an xattr is kept, if it is another one; -ERANGE when that is too long. */
static int moved_name(const struct layer *layer, const char *xattr, char out[XATTR_NAME_MAX + 1])
{
	if (!moves(layer, xattr))
		return 0;
	return fmt_override_moved(xattr, out, XATTR_NAME_MAX + 1) < 0 ? -ERANGE : 1;
}

/*
 * Whether a real xattr of a name that moves is nobody's: a capability of the machine is none of the
 * container, as with fuse-overlayfs.
 */
static bool is_isolated(const char *xattr)
{
	return !strncmp(xattr, "security.", 9);
}

ssize_t override_getxattr(const struct layer *layer, int fd, const char *name, const char *xattr,
			  void *value, size_t size)
{
	char moved[XATTR_NAME_MAX + 1];
	ssize_t n;

	if (moved_name(layer, xattr, moved) > 0) {
		if (layer->of_the_host && !strcmp(xattr, CAPABILITY)) {
			struct statx st;
			int err = at_statx(fd, name, &st);

			if (err < 0)
				return err;
			if (is_strangers(layer, layer->overrides[0], &st))
				return -ENODATA;
		}
		n = at_getxattr(fd, name, moved, value, size);
		if (n != -ENODATA && n != -EOPNOTSUPP)
			return n;
		if (is_isolated(xattr))
			return -ENODATA;
		/* Who could, may have set the real one. */
		n = at_getxattr(fd, name, xattr, value, size);
		return n == -EOPNOTSUPP ? -ENODATA : n;
	}
	return at_getxattr(fd, name, xattr, value, size);
}

static bool list_has(const char *list, ssize_t size, const char *xattr)
{
	for (const char *p = list; p < list + size; p += strlen(p) + 1)
		if (!strcmp(p, xattr))
			return true;
	return false;
}

/* Real names into those that are seen, in place: they only get shorter. */
static ssize_t show_names(const struct layer *layer, char *list, ssize_t size)
{
	char *out = list;

	for (char *p = list, *next; p < list + size; p = next) {
		const char *kept = fmt_override_kept(p);
		size_t len;

		next = p + strlen(p) + 1;
		if (is_isolated(p) && moves(layer, p))
			continue;
		if (kept && !moves(layer, kept))
			kept = NULL;
		len = strlen(kept ? kept : p) + 1;
		/* Once: behind it as a real one, or before it as the same. */
		if (kept && !is_isolated(kept) &&
		    (list_has(next, list + size - next, kept) || list_has(list, out - list, kept)))
			continue;
		memmove(out, kept ? kept : p, len);
		out += len;
	}
	return out - list;
}

ssize_t override_listxattr(const struct layer *layer, int fd, const char *name, char *list,
			   size_t size)
{
	ssize_t n = at_listxattr(fd, name, list, size);

	return n > 0 && size ? show_names(layer, list, n) : n;
}

ssize_t override_readlink(const struct layer *layer, int fd, const char *name, char *buf,
			  size_t size)
{
	autofd int file = -1;
	struct statx st;
	ssize_t n;
	int err = at_statx(fd, name, &st);

	if (err == 0)
		err = override_show(layer, fd, name, &st);
	if (err < 0)
		return err;
	if (!S_ISLNK(st.stx_mode))
		return -EINVAL;
	if (st.stx_size == 0 || st.stx_size >= PATH_MAX)
		return -EIO;
	file = at_open(fd, name, O_RDONLY | O_NONBLOCK | O_NOCTTY);
	if (file < 0)
		return file;
	n = pread(file, buf, size, 0);
	if (n < 0)
		return -errno;
	return n == 0 || memchr(buf, '\0', (size_t)n) ? -EIO : n;
}

/* --- at mount
 * -----------------------------------------------------------------------------------*/

/* Which attributes the root of a layer has. fuse-overlayfs 1.10 adds its own to that of
 * containers/storage, so its own comes first. */
static int find_formats(struct layer *layer, char *message, size_t size)
{
	int fd = layer_fd(layer->root);
	struct statx st;
	int err;

	layer->of_the_host = ovl_may_trust();
	for (unsigned int which = 0; which < FMT_OVERRIDE_COUNT; which++)
		if (at_getxattr(fd, "", fmt_override_name(which), NULL, 0) >= 0)
			layer->overrides[layer->override_count++] = (uint8_t)which;
	if (!layer->override_count)
		return 0;
	err = at_statx(fd, "", &st);
	if (err == 0)
		err = override_show(layer, fd, "", &st);
	if (err >= 0)
		return 0;
	snprintf(message, size,
		 "the xattr %s on %s cannot be understood (uid:gid:mode is wanted): repair or "
		 "remove "
		 "it",
		 fmt_override_name(layer->overrides[0]), layer->path);
	return -EINVAL;
}

/* Which format upper is written in. What it has been written in stays. */
static enum fmt_override format_of_upper(const struct ovl *o)
{
	const struct layer *upper = &o->layers[0];

	if (o->compat.override == OVL_OVERRIDE_SECURITY)
		return FMT_OVERRIDE_SECURITY;
	for (unsigned int n = 0; n < upper->override_count; n++)
		if (o->compat.override == OVL_OVERRIDE_NONE ||
		    upper->overrides[n] != FMT_OVERRIDE_SECURITY)
			return upper->overrides[n];
	return FMT_OVERRIDE_CONTAINERS;
}

/* @which becomes the first. True: it was among them. */
static bool put_first(struct layer *layer, enum fmt_override which)
{
	unsigned int n = 0;
	bool found;

	while (n < layer->override_count && layer->overrides[n] != which)
		n++;
	found = n < layer->override_count;
	memmove(&layer->overrides[1], &layer->overrides[0], n);
	layer->overrides[0] = (uint8_t)which;
	if (!found)
		layer->override_count++;
	return found;
}

/*
 * What the root of upper is to be shown as: as it says itself, else as the topmost layer that says
 * something, else as it is.
 */
static int find_root_stat(const struct ovl *o, struct statx *st)
{
	unsigned int n = 0;

	while (n <= o->lower_count && !o->layers[n].override_count)
		n++;
	return layer_stat(o->layers[n <= o->lower_count ? n : 0].root, "", st);
}

/*
 * An object that has the attribute in another format as well, of an upper that was written in both,
 * says the same in each: which of them is read depends on the mount.
 */
static int store_in_others(const struct layer *layer, int fd, const char *name, mode_t real,
			   const char *value, size_t size)
{
	for (unsigned int n = 1; n < layer->override_count; n++) {
		enum fmt_override which = layer->overrides[n];
		int err = can_hold(which, real) ? at_setxattr(fd, name, fmt_override_name(which),
							      value, size, XATTR_REPLACE)
						: 0;

		if (err < 0 && err != -ENODATA)
			return err;
	}
	return 0;
}

static int store(const struct layer *layer, int fd, const char *name, mode_t real,
		 const struct statx *shown)
{
	enum fmt_override which = layer->overrides[0];
	char value[FMT_OVERRIDE_MAX];
	size_t size = fmt_override_encode(shown, real, value);
	int err;

	if (!can_hold(which, real))
		return 0;
	/* nobody's number, which would not be understood again */
	if (shown->stx_uid == LAYER_NO_ID || shown->stx_gid == LAYER_NO_ID)
		return -EOVERFLOW;
	err = store_in_others(layer, fd, name, real, value, size);
	return err < 0 ? err : at_setxattr(fd, name, fmt_override_name(which), value, size, 0);
}

/* The mark of upper, by which it is known from here on; or which shows that it can be written. */
static int mark_upper(struct ovl *o, char *message, size_t size)
{
	struct layer *upper = &o->layers[0];
	enum fmt_override which = format_of_upper(o);
	struct statx st;
	int err;

	if (!upper->override_count && o->compat.override == OVL_OVERRIDE_NONE)
		return 0;
	err = at_statx(layer_fd(upper->root), "", &st);
	o->real_bits = st.stx_mode & 0055;
	if (err == 0)
		err = find_root_stat(o, &st);
	put_first(upper, which);
	if (err == 0)
		err = store(upper, layer_fd(upper->root), "", S_IFDIR, &st);
	o->compat.override = which == FMT_OVERRIDE_SECURITY ? OVL_OVERRIDE_SECURITY
							    : OVL_OVERRIDE_CONTAINERS;
	if (err < 0)
		snprintf(message, size,
			 "owners and modes cannot be stored in upperdir %s (%s: %s): %s",
			 upper->path, fmt_override_name(which), strerror(-err),
			 which == FMT_OVERRIDE_SECURITY
				 ? "use xattr_permissions=2, or mount as root"
				 : "give upperdir on a filesystem with user xattrs, or mount "
				   "without xattr_permissions");
	return err;
}

int override_init(struct ovl *o, char *message, size_t size)
{
	int err = 0;

	if (!o->compat.whiteout_files && o->compat.override == OVL_OVERRIDE_NONE)
		return 0;
	o->knows_overrides = true;
	for (unsigned int n = o->has_upper ? 0 : 1; n <= o->lower_count && err == 0; n++)
		err = find_formats(&o->layers[n], message, size);
	return err == 0 && o->has_upper ? mark_upper(o, message, size) : err;
}

/* --- new objects
 * --------------------------------------------------------------------------------*/

/*
 * Nobody on the host gets rights that were not given to others in the mount, nor those that upper's
 * root withholds, which has the mode that force_mask of containers/storage says; and nobody but us
 * may write.
 */
mode_t object_real_mode(const struct ovl *o, mode_t mode)
{
	if (!override_in_upper(o))
		return mode;
	if (S_ISLNK(mode))
		return mode;
	if (S_ISDIR(mode))
		return S_IFDIR | S_IRWXU | (mode & o->real_bits);
	return S_IFREG | S_IRUSR | S_IWUSR | (mode & (S_IXUSR | o->real_bits));
}

int object_own(struct ovl *o, int dirfd, const char *name, mode_t real, const struct statx *attr)
{
	if (!override_in_upper(o))
		return at_chown(dirfd, name, attr->stx_uid, attr->stx_gid);
	return store(&o->layers[0], dirfd, name, real, attr);
}

int object_own_mode(struct ovl *o, int dirfd, const char *name, mode_t mode)
{
	return at_chmod(dirfd, name, object_real_mode(o, mode) & 07777);
}

/* --- objects that are there
 * ---------------------------------------------------------------------*/

/* As shown, and the mode that an object of upper really has. */
static int stat_both(struct ovl *o, int dirfd, const char *name, struct statx *st, mode_t *real)
{
	int err = at_statx(dirfd, name, st);

	if (err < 0)
		return err;
	*real = st->stx_mode;
	return min(override_show(&o->layers[0], dirfd, name, st), 0);
}

int object_stat(struct ovl *o, int dirfd, const char *name, struct statx *st)
{
	mode_t real;

	if (!override_in_upper(o))
		return at_statx(dirfd, name, st);
	return stat_both(o, dirfd, name, st, &real);
}

/* An access ACL follows a new mode. */
static int chmod_acl(struct ovl *o, int dirfd, const char *name, mode_t mode)
{
	autofree char *acl = NULL;
	ssize_t size;
	int err;

	if (!o->has_acl || S_ISLNK(mode))
		return 0;
	size = override_getxattr(&o->layers[0], dirfd, name, ACL_ACCESS, NULL, 0);
	if (size <= 0)
		return size == -ENODATA ? 0 : (int)size;
	acl = malloc((size_t)size);
	if (!acl)
		return -ENOMEM;
	size = override_getxattr(&o->layers[0], dirfd, name, ACL_ACCESS, acl, (size_t)size);
	if (size < 0)
		return (int)size;
	err = acl_chmod(acl, (size_t)size, mode);
	return err < 0 ? err : object_setxattr(o, dirfd, name, ACL_ACCESS, acl, (size_t)size, 0);
}

/*
 * Stores it in what is there. What was made before owners and modes were kept so may have a mode
 * that forbids it to us: it gets the rights for the moment, as mode_widen() does.
 */
static int store_again(struct ovl *o, int dirfd, const char *name, mode_t real,
		       const struct statx *shown)
{
	int err = store(&o->layers[0], dirfd, name, real, shown);

	if (err != -EACCES || o->overrides_modes || at_chmod(dirfd, name, (real & 0777) | S_IWUSR))
		return err;
	err = store(&o->layers[0], dirfd, name, real, shown);
	if (err < 0)
		at_chmod(dirfd, name, real & 07777);
	return err;
}

/* The real mode of upper's root is its owner's: all others follow it. */
static bool is_root(const struct ovl *o, int dirfd, const char *name)
{
	return !*name && dirfd == layer_fd(o->layers[0].root);
}

/* The attribute of an object says something else from here on; and then its real mode follows. */
static int change(struct ovl *o, int dirfd, const char *name, mode_t real,
		  const struct statx *shown)
{
	mode_t wanted = object_real_mode(o, shown->stx_mode) & 07777;
	int err = 0;

	if (!S_ISREG(real) && !S_ISDIR(real) && !S_ISLNK(real)) /* made by others: as it is */
		wanted = shown->stx_mode & 0777;
	else
		err = store_again(o, dirfd, name, real, shown);
	if (S_ISLNK(real) || err < 0 || (real & 07777) == wanted || is_root(o, dirfd, name))
		return err; /* symlinks have no mode */
	return at_chmod(dirfd, name, wanted);
}

int override_setattr(struct ovl *o, const struct ovl_caller *caller, int dirfd, const char *name,
		     const struct ovl_setattr *set)
{
	bool chown = set->valid & (OVL_SET_UID | OVL_SET_GID | OVL_KILL_SUIDGID);
	struct statx st;
	mode_t real;
	int err = stat_both(o, dirfd, name, &st, &real);

	if (err < 0)
		return err;
	if (chown && !S_ISDIR(st.stx_mode) && !S_ISLNK(st.stx_mode)) {
		st.stx_mode = (uint16_t)mode_without_suidgid(caller, &st);
		err = object_removexattr(o, dirfd, name, CAPABILITY);
		if (err < 0 && err != -ENODATA)
			return err;
	}
	if ((set->valid & OVL_SET_UID) && set->uid != (uid_t)-1)
		st.stx_uid = set->uid;
	if ((set->valid & OVL_SET_GID) && set->gid != (gid_t)-1)
		st.stx_gid = set->gid;
	if ((set->valid & OVL_SET_MODE) && !S_ISLNK(st.stx_mode)) {
		st.stx_mode = (uint16_t)((st.stx_mode & S_IFMT) | (set->mode & 07777));
		err = chmod_acl(o, dirfd, name, st.stx_mode);
		if (err < 0)
			return err;
	}
	return change(o, dirfd, name, real, &st);
}

int object_chmod(struct ovl *o, int dirfd, const char *name, mode_t mode)
{
	const struct ovl_setattr set = { .valid = OVL_SET_MODE, .mode = mode };

	if (!override_in_upper(o))
		return at_chmod(dirfd, name, mode & 07777);
	return override_setattr(o, NULL, dirfd, name, &set);
}

/* --- their xattrs
 * -------------------------------------------------------------------------------*/

int object_setxattr(struct ovl *o, int dirfd, const char *name, const char *xattr,
		    const void *value, size_t size, int flags)
{
	char moved[XATTR_NAME_MAX + 1];
	ssize_t n;

	switch (override_in_upper(o) ? moved_name(&o->layers[0], xattr, moved) : 0) {
	case 0: return at_setxattr(dirfd, name, xattr, value, size, flags);
	case 1: break;
	default: return -ERANGE;
	}
	if (flags) { /* it may be there under either name */
		n = override_getxattr(&o->layers[0], dirfd, name, xattr, NULL, 0);
		if (n >= 0 && (flags & XATTR_CREATE))
			return -EEXIST;
		if (n < 0 && (flags & XATTR_REPLACE))
			return (int)n;
	}
	return at_setxattr(dirfd, name, moved, value, size, 0);
}

int object_removexattr(struct ovl *o, int dirfd, const char *name, const char *xattr)
{
	char moved[XATTR_NAME_MAX + 1];
	int err;
	int real;

	if (!override_in_upper(o) || moved_name(&o->layers[0], xattr, moved) <= 0)
		return at_removexattr(dirfd, name, xattr);
	/* The real one first, which would be seen without the other. */
	if (is_isolated(xattr) || at_getxattr(dirfd, name, xattr, NULL, 0) < 0)
		real = -ENODATA;
	else
		real = at_removexattr(dirfd, name, xattr);
	if (real < 0 && real != -ENODATA)
		return real;
	err = at_removexattr(dirfd, name, moved);
	if (err == -EPERM || err == -EOPNOTSUPP) /* of a symlink, which can hold none */
		err = -ENODATA;
	return err == -ENODATA ? real : err;
}

int object_set_acl(struct ovl *o, int dirfd, const char *name, const void *value, size_t size,
		   int flags)
{
	struct statx st;
	mode_t mode;
	mode_t real;
	int more;
	int err = stat_both(o, dirfd, name, &st, &real);

	if (err < 0)
		return err;
	mode = st.stx_mode;
	more = acl_equiv_mode(value, size, &mode);
	if (more < 0)
		return more;
	st.stx_mode = (uint16_t)mode;
	if (more)
		err = object_setxattr(o, dirfd, name, ACL_ACCESS, value, size, flags);
	else
		err = object_removexattr(o, dirfd, name, ACL_ACCESS);
	if (err < 0 && (more || err != -ENODATA))
		return err;
	return change(o, dirfd, name, real, &st);
}
