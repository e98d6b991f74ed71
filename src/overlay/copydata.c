// SPDX-License-Identifier: MIT
/* Copying of data and xattrs into upper. No lock is held here, and it may take long. */
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/limits.h>
#include <sys/ioctl.h>

#include "overlay/override.h"
#include "util/at.h"
#include "util/log.h"

/*
 * How much is copied between two looks at whether the caller was killed. What is written is on its
 * way to the disk while the next is copied.
 */
#define CHUNK  (8 << 20)
#define BUFFER (1 << 20)

/* How data gets across: the first way that works for a file is kept for the rest of it. */
struct copier {
	struct layer_ref *from;
	int to;
	off_t end; /* behind what was written last */
	bool no_copy_range;
	char *buffer; /* owned */
};

/* Returns how many bytes were copied; 0 at the end of the file. */
static ssize_t copy_some(struct copier *c, off_t off, size_t len)
{
	ssize_t n;
	ssize_t done = 0;

	if (!c->no_copy_range && layer_fd(c->from) >= 0) {
		off_t in = off;
		off_t out = off;

		n = copy_file_range(layer_fd(c->from), &in, c->to, &out, len, 0);
		if (n > 0)
			return n;
		if (n < 0 && errno != EXDEV && errno != EINVAL && errno != EOPNOTSUPP &&
		    errno != ENOSYS && errno != EPERM && errno != EBADF)
			return -errno;
		/* Also when it copied nothing: some filesystems do that instead of refusing. */
		c->no_copy_range = true;
	}
	if (!c->buffer) {
		c->buffer = malloc(BUFFER);
		if (!c->buffer)
			return -ENOMEM;
	}
	n = c->from->layer->ops->read(c->from, c->buffer, min(len, (size_t)BUFFER), off);
	while (n > 0 && done < n) {
		ssize_t w = pwrite(c->to, c->buffer + done, (size_t)(n - done), off + done);

		if (w < 0 && errno == EINTR)
			continue;
		if (w < 0)
			return -errno;
		done += w;
	}
	return n < 0 ? n : done;
}

static int copy_extent(struct copier *c, off_t start, off_t end, const struct ovl_caller *caller)
{
	while (start < end) {
		ssize_t n;

		if (caller_killed(caller))
			return -EINTR;
		n = copy_some(c, start, (size_t)min(end - start, (off_t)CHUNK));
		if (n < 0)
			return (int)n;
		if (n == 0)
			break; /* it shrank meanwhile */
		start += n;
		c->end = start;
		/* only a hint: who wants it synced does that when all of it is there */
		if (start < end)
			sync_file_range(c->to, start - n, n, SYNC_FILE_RANGE_WRITE);
	}
	return 0;
}

static int copy_extents(struct copier *c, off_t size, const struct ovl_caller *caller)
{
	const struct layer_ops *ops = c->from->layer->ops;
	off_t pos = 0;

	while (pos < size) {
		off_t data = ops->seek(c->from, pos, SEEK_DATA);
		off_t hole;
		int err;

		if (data == -ENXIO)
			break; /* a hole up to the end */
		if (data < 0)
			data = pos; /* cannot say: all of it is data */
		hole = ops->seek(c->from, data, SEEK_HOLE);
		if (hole <= data || hole > size)
			hole = size;
		if (data >= size)
			break;
		err = copy_extent(c, data, hole, caller);
		if (err < 0)
			return err;
		pos = hole;
	}
	return 0;
}

/* Shares all of the data. False: it has to be copied. */
static bool clone_data(struct layer_ref *from, int to)
{
	struct layer *layer = from->layer;

	if (layer_fd(from) < 0 || atomic_load_explicit(&layer->no_clone, memory_order_relaxed))
		return false;
	if (ioctl(to, FICLONE, layer_fd(from)) == 0)
		return true;
	/* It is so of all files of the layer; whatever else it may be is asked again. */
	if (errno == EOPNOTSUPP || errno == EXDEV || errno == ENOTTY)
		atomic_store_explicit(&layer->no_clone, true, memory_order_relaxed);
	return false;
}

static int set_length(int to, off_t length)
{
	if (lseek(to, 0, SEEK_END) == length)
		return 0;
	return ftruncate(to, length) < 0 ? -errno : 0;
}

int copy_data(struct layer_ref *from, int to, off_t size, off_t length, bool dense,
	      const struct ovl_caller *caller)
{
	struct copier c = { .from = from, .to = to };
	int err;

	if (size == 0)
		return 0;
	if (clone_data(from, to))
		return set_length(to, length);
	err = dense ? copy_extent(&c, 0, size, caller) : copy_extents(&c, size, caller);
	free(c.buffer);
	return err < 0 || c.end == length ? err : set_length(to, length);
}

/* Xattrs without which the copy would be another file. */
static bool must_copy(const char *name)
{
	return !strcmp(name, ACL_ACCESS) || !strcmp(name, ACL_DEFAULT) ||
	       (!strncmp(name, "security.", 9) && strcmp(name, "security.selinux") != 0);
}

static int copy_xattr(struct ovl *o, struct layer_ref *from, const char *from_name, int to,
		      const char *to_name, const char *xattr)
{
	char small[1024];
	autofree char *big = NULL;
	char *value = small;
	ssize_t n = layer_getxattr(from, from_name, xattr, small, sizeof(small));
	int err;

	if (n == -ERANGE) {
		value = big = malloc(XATTR_SIZE_MAX);
		n = big ? layer_getxattr(from, from_name, xattr, big, XATTR_SIZE_MAX) : -ENOMEM;
	}
	if (n == -ENODATA)
		return 0;
	/* A capability of a user namespace that we cannot express is as good as none. */
	if (!strcmp(xattr, "security.capability") && (n == 0 || n == -EOVERFLOW || n == -EINVAL))
		return 0;
	if (n < 0)
		return (int)n;
	err = object_setxattr(o, to, to_name, xattr, value, (size_t)n, 0);
	if (err == -EOPNOTSUPP && !must_copy(xattr))
		return 0;
	/* The label of a security module is its own affair. */
	if ((err == -EPERM || err == -EACCES) && !strcmp(xattr, "security.selinux"))
		return 0;
	return err;
}

/*
 * Upper cannot hold it, and the copy is another file without. The kernel's overlayfs fails then; a
 * container whose files cannot be written is worse off than one that has lost a capability.
 */
static int leave_out(struct ovl *o, const char *xattr)
{
	if (!o->compat.whiteout_files)
		return -EOPNOTSUPP;
	if (!atomic_exchange(&o->xattrs_lost, true))
		log_warning("upperdir %s cannot hold %s: files that are copied up lose it",
			    o->layers[0].path, xattr);
	return !strcmp(xattr, ACL_ACCESS);
}

int copy_xattrs(struct ovl *o, struct layer_ref *from, const char *from_name, int to,
		const char *to_name)
{
	char small[1024];
	autofree char *big = NULL;
	char *list = small;
	char shown[XATTR_NAME_MAX + 1];
	int lost_acl = 0;
	ssize_t n = layer_listxattr(from, from_name, small, sizeof(small));

	if (n == -ERANGE) {
		list = big = malloc(XATTR_LIST_MAX);
		n = big ? layer_listxattr(from, from_name, big, XATTR_LIST_MAX) : -ENOMEM;
	}
	if (n == -EOPNOTSUPP)
		return 0;
	for (const char *p = list; n > 0 && p < list + n; p += strlen(p) + 1) {
		int err;

		/* Private ones say something about their layer; escaped ones are a user's. */
		if (xattr_to_shown(o, p, shown, sizeof(shown)) < 0)
			continue;
		/* The label of what is really there is another object's. */
		if (!strcmp(p, "security.selinux") && override_in_upper(o))
			continue;
		err = copy_xattr(o, from, from_name, to, to_name, p);
		if (err == -EOPNOTSUPP)
			err = leave_out(o, p);
		/* A capability that we may not give, as a set-id bit. */
		if (err == -EPERM && o->compat.gives_up_owners && !strncmp(p, "security.", 9))
			continue;
		if (err < 0)
			return err;
		lost_acl |= err;
	}
	return n < 0 ? (int)n : lost_acl;
}
