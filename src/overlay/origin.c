// SPDX-License-Identifier: MIT
/* Where an upper object came from: the origin xattr, and the impure mark of its parent. */
#include "overlay/internal.h"
#include "util/at.h"

/* The value of the origin xattr: 0 is a valid length ("origin unknown"). */
static ssize_t origin_encode(struct layer_ref *lower, const char *name, uint8_t out[FMT_FH_MAX])
{
	struct fmt_fh fh;

	/*
	 * As the kernel does where it could not decode the handle again: an empty origin tells a
	 * copy from a new object, and nothing more.
	 */
	if (!lower->layer->can_decode || lower->layer->ops->handle(lower, name, &fh) < 0)
		return 0;
	return fmt_fh_encode(&fh, out);
}

int origin_stat(struct ovl *o, struct layer_ref *at, const char *name, struct statx *st)
{
	uint8_t value[FMT_FH_MAX];
	struct fmt_fh fh;
	ssize_t size = layer_getxattr(at, name, xname(o, FMT_ORIGIN), value, sizeof(value));

	if (size < 0 || fmt_fh_decode(value, (size_t)size, &fh) < 0)
		return -ENODATA;
	for (unsigned int n = 1; n <= o->lower_count; n++) {
		struct layer *layer = &o->layers[n];

		if (!layer->can_decode || layer->ambiguous_uuid ||
		    memcmp(layer->uuid, fh.uuid, sizeof(fh.uuid)) != 0)
			continue;
		if (layer->ops->stat_handle(layer, &fh, st) == 0)
			return 0;
	}
	return -ENODATA;
}

int origin_store(struct ovl *o, struct layer_ref *lower, const char *lower_name,
		 struct layer_ref *upper, const char *name)
{
	uint8_t value[FMT_FH_MAX];
	ssize_t size = origin_encode(lower, lower_name, value);
	int err;

	if (size < 0)
		return (int)size;
	err = at_setxattr(layer_fd(upper), name, xname(o, FMT_ORIGIN), value, (size_t)size, 0);
	/* user.* xattrs exist on files and directories only; the origin is a hint, not data */
	if (err == -EOPNOTSUPP || (err == -EPERM && o->userxattr))
		return 0;
	return err < 0 ? err : 1;
}

int mode_widen(struct ovl *o, struct layer_ref *at, const char *name, mode_t wanted, mode_t *kept)
{
	struct statx st;
	int err;

	pthread_rwlock_wrlock(&o->modes_lock);
	err = at_statx(layer_fd(at), name, &st); /* the real one, whatever is shown */
	*kept = st.stx_mode & 07777;
	if (err == 0)
		err = at_chmod(layer_fd(at), name, *kept | wanted);
	if (err < 0)
		pthread_rwlock_unlock(&o->modes_lock);
	return err;
}

void mode_restore(struct ovl *o, struct layer_ref *at, const char *name, mode_t kept)
{
	at_chmod(layer_fd(at), name, kept);
	pthread_rwlock_unlock(&o->modes_lock);
}

ssize_t mark_get(struct ovl *o, struct layer_ref *at, const char *name, enum fmt_xattr which,
		 void *value, size_t size)
{
	ssize_t n = layer_getxattr(at, name, xname(o, which), value, size);
	mode_t kept;

	if (!mode_forbids(o, at, n) || mode_widen(o, at, name, S_IRUSR, &kept) < 0)
		return n;
	n = layer_getxattr(at, name, xname(o, which), value, size);
	mode_restore(o, at, name, kept);
	return n;
}

int mark_set(struct ovl *o, struct layer_ref *at, const char *name, enum fmt_xattr which,
	     const void *value, size_t size)
{
	int fd = layer_fd(at);
	mode_t kept;
	int err = at_setxattr(fd, name, xname(o, which), value, size, 0);

	if (!mode_forbids(o, at, err) || mode_widen(o, at, name, S_IWUSR, &kept) < 0)
		return err;
	err = at_setxattr(fd, name, xname(o, which), value, size, 0);
	mode_restore(o, at, name, kept);
	return err;
}

int mark_remove(struct ovl *o, struct layer_ref *at, const char *name, enum fmt_xattr which)
{
	int fd = layer_fd(at);
	mode_t kept;
	int err = at_removexattr(fd, name, xname(o, which));

	if (mode_forbids(o, at, err) && mode_widen(o, at, name, S_IWUSR, &kept) == 0) {
		err = at_removexattr(fd, name, xname(o, which));
		mode_restore(o, at, name, kept);
	}
	return err == -ENODATA ? 0 : err;
}

int mark_impure(struct ovl *o, struct ovl_inode *dir, struct layer_ref *upper)
{
	int err;

	dir_changed(dir);
	if (o->no_xattr || inode_has(dir, INODE_IMPURE))
		return 0;
	err = mark_set(o, upper, "", FMT_IMPURE, "y", 1);
	if (err == 0)
		inode_set(dir, INODE_IMPURE);
	return err == -EOPNOTSUPP ? 0 : err;
}

void unmark_impure(struct ovl *o, struct ovl_inode *dir, uint32_t version)
{
	autoref struct layer_ref *upper = NULL;

	if (dir_ref(o, dir, 0, false, &upper) < 0)
		return;
	lock_take(&dir->lock);
	if (dir_version(dir) == version &&
	    at_removexattr(layer_fd(upper), "", xname(o, FMT_IMPURE)) == 0)
		inode_clear(dir, INODE_IMPURE);
	lock_drop(&dir->lock);
}
