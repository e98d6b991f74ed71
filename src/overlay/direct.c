// SPDX-License-Identifier: MIT
/*
 * Contents that somebody else reads and writes for us, the kernel: which, and what we have to know
 * of it.
 */
#include <fcntl.h>
#include <linux/fs.h>
#include <sys/mman.h>
#include <sys/statvfs.h>

#include "overlay/override.h"
#include "util/at.h"

void direct_find(struct ovl *o, struct ovl_inode *i, bool lower, struct ovl_direct *out)
{
	/* Beside the name of a metacopy there may be no lower object: then the layer stays open. */
	*out = (struct ovl_direct){
		.layer = inode_is_metacopy(i) ? i->lower : inode_top_layer(i),
		.upper = inode_has(i, INODE_UPPER) && !inode_is_metacopy(i),
	};
	if (i->type != DT_REG)
		return;
	/* What upper keeps in an xattr instead of the mode only we heed. */
	if (out->upper)
		out->possible = !override_in_upper(o);
	else
		out->possible = lower || !o->has_upper;
}

/* In upper, where the object is the contents. */
static int open_object(struct ovl *o, struct ovl_inode *i)
{
	struct reach r;
	int fd = reach(o, i, &r);

	if (fd < 0)
		return fd;
	fd = r.at->layer->index == 0 ? open_fd(o, r.at, r.name, O_PATH) : -EOPNOTSUPP;
	reach_done(i, &r);
	return fd == -ENOENT || fd == -ELOOP ? -ESTALE : fd;
}

/* Whoever opens it anew for writing must be refused: the mount of the layer does that. */
static int open_lower(struct ovl *o, struct ovl_inode *i, unsigned int *layer)
{
	autoref struct layer_ref *file = NULL;
	int fd = file_ref(o, i, false, &file);

	if (fd < 0)
		return fd;
	*layer = file->layer->index;
	if (*layer == 0 || layer_fd(file) < 0)
		return -EOPNOTSUPP;
	if (!file->layer->read_only)
		return -EROFS;
	fd = fcntl(layer_fd(file), F_DUPFD_CLOEXEC, 0);
	return fd < 0 ? -errno : fd;
}

int ovl_open_contents(struct ovl *o, ovl_node node, unsigned int *layer)
{
	struct ovl_inode *i = inode_get(o, node);
	int fd = -ESTALE;

	if (i && inode_has(i, INODE_UPPER) && !inode_is_metacopy(i)) {
		*layer = 0;
		fd = open_object(o, i);
	} else if (i) {
		fd = open_lower(o, i, layer);
	}
	inode_put(o, i);
	return fd;
}

#define GUARDED_ATTRIBUTES (STATX_ATTR_IMMUTABLE | STATX_ATTR_APPEND)

int ovl_guards_writes(struct ovl *o, ovl_node node)
{
	struct ovl_inode *i = inode_get(o, node);
	struct statx st;
	int r = i ? attr_get(o, i, &st) : -ESTALE;

	if (r == 0)
		r = i->protattr || (st.stx_mode & (S_ISUID | S_ISGID)) ||
		    (st.stx_attributes & GUARDED_ATTRIBUTES);
	inode_put(o, i);
	return r;
}

/*
 * A lease for reading is not given on what is open for writing, which a mapping keeps it. Our own
 * file would count, and goes when nobody has it open.
 */
static bool gets_lease(struct ovl *o, struct ovl_inode *i)
{
	autofd int fd = -1;
	struct reach r;
	bool in_use;

	lock_take(&i->lock);
	in_use = i->nopen;
	lock_drop(&i->lock);
	if (!in_use)
		fdcache_drop(&o->fds, &i->file);
	if (reach(o, i, &r) < 0)
		return false;
	fd = open_fd(o, r.at, r.name, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_NOATIME);
	reach_done(i, &r);
	return fd >= 0 && fcntl(fd, F_SETLEASE, F_RDLCK) == 0;
}

bool ovl_is_written(struct ovl *o, ovl_node node)
{
	struct ovl_inode *i = inode_get(o, node);
	bool written = true;

	if (i && inode_has(i, INODE_UPPER) && i->type == DT_REG)
		written = !gets_lease(o, i);
	inode_put(o, i);
	return written;
}

int ovl_open_sample(struct ovl *o)
{
	int fd = -1;

	if (o->has_upper)
		fd = openat(layer_fd(o->work), ".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	/* A filesystem without such files, or none to be written: what it is will be seen. */
	if (fd < 0)
		fd = memfd_create("plyfs", MFD_CLOEXEC);
	return fd < 0 ? -errno : fd;
}
