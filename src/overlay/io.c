// SPDX-License-Identifier: MIT
/* Contents of regular files. Each call finds out anew where they are: before or after copy-up. */
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/fs.h>
#include <sys/ioctl.h>

#include "overlay/override.h"
#include "util/at.h"

static bool opens_for_write(int flags)
{
	return (flags & O_ACCMODE) != O_RDONLY || (flags & O_TRUNC);
}

static int open_allowed(struct ovl_inode *i, int flags)
{
	if (!opens_for_write(flags))
		return 0;
	return protattr_check(i, (flags & O_APPEND) && !(flags & O_TRUNC));
}

static int truncate_at_open(struct ovl *o, const struct ovl_caller *caller, struct ovl_inode *i,
			    struct layer_ref *file)
{
	if (caller->kill_priv) {
		int err = drop_suidgid(o, caller, i, layer_fd(file));

		if (err < 0)
			return err;
	}
	return ftruncate(layer_fd(file), 0) < 0 ? -errno : 0;
}

int ovl_open(struct ovl *o, const struct ovl_caller *caller, ovl_node node, int flags)
{
	struct ovl_inode *i = inode_get(o, node);
	autoref struct layer_ref *file = NULL;
	bool write = opens_for_write(flags);
	int err;

	if (!i)
		return -ESTALE;
	err = open_allowed(i, flags);
	if (err == 0 && write)
		err = copy_up(o, caller, i, flags & O_TRUNC ? 0 : COPY_ALL);
	if (err == 0)
		err = file_ref(o, i, write, &file);
	if (err == 0 && (flags & O_TRUNC))
		err = truncate_at_open(o, caller, i, file);
	if (err == 0)
		inode_opened(i);
	inode_put(o, i);
	return err;
}

void ovl_release(struct ovl *o, ovl_node node, int flags)
{
	struct ovl_inode *i = inode_get(o, node);
	bool last = false;

	if (!i)
		return;
	lock_take(&i->lock);
	if (i->nopen)
		last = --i->nopen == 0;
	lock_drop(&i->lock);
	if (last)
		fdcache_drop(&o->fds, &i->file);
	inode_put(o, i);
}

ssize_t ovl_read(struct ovl *o, ovl_node node, void *buf, size_t size, off_t off)
{
	struct ovl_inode *i = inode_get(o, node);
	autoref struct layer_ref *file = NULL;
	ssize_t n;

	if (!i)
		return -ESTALE;
	n = file_ref(o, i, false, &file);
	if (n == 0)
		n = file->layer->ops->read(file, buf, size, off);
	inode_put(o, i);
	return n;
}

/* A file of upper, opened for writing; copied up first. */
static int writable_file(struct ovl *o, const struct ovl_caller *caller, struct ovl_inode *i,
			 struct layer_ref **file)
{
	int err = copy_up(o, caller, i, COPY_ALL);

	return err < 0 ? err : file_ref(o, i, true, file);
}

/* Whether the file has these bytes at @off already, as far as it goes. */
static int holds_already(struct layer_ref *file, const uint8_t *data, size_t size, off_t off)
{
	uint8_t chunk[4096];

	for (size_t done = 0; done < size;) {
		ssize_t n = file->layer->ops->read(file, chunk, min(size - done, sizeof(chunk)),
						   off + (off_t)done);

		if (n <= 0)
			return n < 0 ? (int)n : 1;
		if (memcmp(chunk, data + done, (size_t)n) != 0)
			return 0;
		done += (size_t)n;
	}
	return 1;
}

/*
 * Who could open an append-only file only for appending may not overwrite it by that fd. The VFS
 * would not let him drop O_APPEND or map the file, but does not see our flag. A cache that writes
 * whole pages back repeats what was there before: that changes nothing. @data NULL: unknown.
 */
static int append_check(const struct ovl_caller *caller, struct ovl_inode *i,
			struct layer_ref *file, const void *data, size_t size, off_t off)
{
	struct statx st;
	int r;

	if (!(i->protattr & FS_APPEND_FL) || (!caller->appends && !caller->unopened))
		return 0;
	r = layer_stat(file, "", &st);
	if (r < 0 || off >= (off_t)st.stx_size)
		return r;
	r = data ? holds_already(file, data, size, off) : 0;
	return r < 0 ? r : r ? 0 : -EPERM;
}

static ssize_t write_all(int fd, const void *buf, size_t size, off_t off)
{
	size_t done = 0;

	while (done < size) {
		ssize_t n = pwrite(fd, (const char *)buf + done, size - done, off + (off_t)done);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return done ? (ssize_t)done : -errno;
		if (n == 0)
			break;
		done += (size_t)n;
	}
	return (ssize_t)done;
}

ssize_t ovl_write(struct ovl *o, const struct ovl_caller *caller, ovl_node node, const void *buf,
		  size_t size, off_t off, bool kill_priv)
{
	struct ovl_inode *i = inode_get(o, node);
	autoref struct layer_ref *file = NULL;
	struct mtime_note note;
	ssize_t n;

	if (!i)
		return -ESTALE;
	n = caller->unopened ? protattr_check(i, true) : 0;
	if (n == 0)
		n = writable_file(o, caller, i, &file);
	if (n == 0)
		n = append_check(caller, i, file, buf, size, off);
	if (n == 0 && kill_priv)
		n = drop_suidgid(o, caller, i, layer_fd(file));
	if (n == 0)
		n = mtime_begin(o, caller, i, layer_fd(file), &note);
	if (n == 0) {
		n = write_all(layer_fd(file), buf, size, off);
		sync_note(o, n);
		mtime_end(o, layer_fd(file), &note);
	}
	inode_put(o, i);
	return n;
}

/* FALLOCATE and COPY_FILE_RANGE do not say whether the caller keeps set-id bits. */
static int drop_suidgid_for(struct ovl *o, const struct ovl_caller *caller, struct ovl_inode *i,
			    struct layer_ref *file)
{
	struct statx st;
	int err = object_stat(o, layer_fd(file), "", &st);

	if (err < 0 || !(st.stx_mode & (S_ISUID | S_ISGID)) || caller_keeps_setid(caller))
		return err;
	return drop_suidgid(o, caller, i, layer_fd(file));
}

int ovl_fallocate(struct ovl *o, const struct ovl_caller *caller, ovl_node node, int mode,
		  off_t off, off_t len)
{
	struct ovl_inode *i = inode_get(o, node);
	autoref struct layer_ref *file = NULL;
	struct mtime_note note;
	int err;

	if (!i)
		return -ESTALE;
	err = protattr_check(i, !(mode & ~FALLOC_FL_KEEP_SIZE));
	if (err == 0)
		err = writable_file(o, caller, i, &file);
	if (err == 0)
		err = drop_suidgid_for(o, caller, i, file);
	if (err == 0)
		err = mtime_begin(o, caller, i, layer_fd(file), &note);
	if (err == 0) {
		if (fallocate(layer_fd(file), mode, off, len) < 0)
			err = -errno;
		sync_note(o, err);
		mtime_end(o, layer_fd(file), &note);
	}
	inode_put(o, i);
	return err;
}

off_t ovl_lseek(struct ovl *o, ovl_node node, off_t off, int whence)
{
	struct ovl_inode *i = inode_get(o, node);
	autoref struct layer_ref *file = NULL;
	off_t r;

	if (!i)
		return -ESTALE;
	r = file_ref(o, i, false, &file);
	if (r == 0)
		r = file->layer->ops->seek(file, off, whence);
	inode_put(o, i);
	return r;
}

static ssize_t copy_range(struct ovl *o, const struct ovl_caller *caller, struct ovl_inode *in,
			  off_t off_in, struct ovl_inode *out, off_t off_out, size_t len)
{
	autoref struct layer_ref *from = NULL;
	autoref struct layer_ref *to = NULL;
	struct mtime_note note;
	ssize_t n = protattr_check(out, true);

	if (n == 0)
		n = writable_file(o, caller, out, &to);
	if (n == 0)
		n = file_ref(o, in, false, &from);
	if (n == 0)
		n = append_check(caller, out, to, NULL, len, off_out);
	if (n == 0)
		n = drop_suidgid_for(o, caller, out, to);
	if (n < 0)
		return n;
	if (layer_fd(from) < 0)
		return -EOPNOTSUPP;
	n = mtime_begin(o, caller, out, layer_fd(to), &note);
	if (n < 0)
		return n;
	n = copy_file_range(layer_fd(from), &off_in, layer_fd(to), &off_out, len, 0);
	if (n < 0)
		n = -errno;
	mtime_end(o, layer_fd(to), &note);
	/* For these the kernel falls back to copying through the page cache. */
	return n == -EXDEV || n == -ENOSYS ? -EOPNOTSUPP : n;
}

ssize_t ovl_copy_file_range(struct ovl *o, const struct ovl_caller *caller, ovl_node in,
			    off_t off_in, ovl_node out, off_t off_out, size_t len)
{
	struct ovl_inode *from = inode_get(o, in);
	struct ovl_inode *to = inode_get(o, out);
	ssize_t n = from && to ? copy_range(o, caller, from, off_in, to, off_out, len) : -ESTALE;

	inode_put(o, from);
	inode_put(o, to);
	return n;
}

#define PROTECTING_FLAGS  (FS_IMMUTABLE_FL | FS_APPEND_FL)
#define PROTECTING_XFLAGS (FS_XFLAG_IMMUTABLE | FS_XFLAG_APPEND)

/* Asks the real object; @i->protattr is what the union adds. */
static int query(struct ovl *o, ovl_node node, unsigned long request, void *arg,
		 unsigned int *protattr)
{
	struct ovl_inode *i = inode_get(o, node);
	struct reach r;
	int err;

	if (!i)
		return -ESTALE;
	err = i->type == DT_REG || i->type == DT_DIR ? reach(o, i, &r) : -ENOTTY;
	if (err == 0) {
		err = r.at->layer->ops->query(r.at, r.name, request, arg);
		*protattr = i->protattr;
		reach_done(i, &r);
	}
	inode_put(o, i);
	return err == -EOPNOTSUPP ? -ENOTTY : err;
}

/*
 * The VFS checks this before it asks a FUSE server, but only since Linux 5.13; before, any ioctl
 * came through.
 */
static int may_change_flags(const struct ovl_caller *caller, struct ovl_inode *i,
			    unsigned int protattr)
{
	if (protattr != i->protattr && !caller_has(caller, CAP_LINUX_IMMUTABLE))
		return -EPERM;
	return 0;
}

static int set_real_flags(struct ovl *o, struct reach *r, unsigned long request, void *arg)
{
	autofd int fd = open_fd(o, r->at, r->name, O_RDONLY | O_NONBLOCK | O_NOCTTY);

	if (fd < 0)
		return fd;
	return ioctl(fd, request, arg) < 0 ? -errno : 0;
}

/*
 * Sets flags. Immutable and append-only are kept in an xattr and enforced here, as the kernel does:
 * in upper they would stand in the way of the overlay itself.
 */
static int change(struct ovl *o, const struct ovl_caller *caller, ovl_node node,
		  unsigned long request, void *arg, unsigned int protattr)
{
	struct ovl_inode *i = inode_get(o, node);
	const char *xattr = xname(o, FMT_PROTATTR);
	struct reach r;
	char value[2];
	size_t len = fmt_protattr_encode(protattr, value);
	int err;

	if (!i)
		return -ESTALE;
	err = i->type == DT_REG || i->type == DT_DIR ? 0 : -ENOTTY;
	if (err == 0)
		err = may_change_flags(caller, i, protattr);
	if (err == 0)
		err = copy_up(o, caller, i, COPY_META);
	if (err == 0)
		err = reach_settled(o, caller, i, &r);
	if (err == 0) {
		/* The mark first, and it stays when the flags then fail, as with the kernel. */
		if (len)
			err = at_setxattr(layer_fd(r.at), r.name, xattr, value, len, 0);
		else if (i->protattr)
			err = at_removexattr(layer_fd(r.at), r.name, xattr);
		if (err == -ENODATA)
			err = 0;
		if (err == 0) {
			i->protattr = (uint8_t)protattr;
			err = set_real_flags(o, &r, request, arg);
		}
		reach_done(i, &r);
	}
	if (err == 0)
		attr_notify(o, i, false); /* ctime: an ioctl tells the kernel nothing */
	inode_put(o, i);
	return err;
}

int ovl_get_flags(struct ovl *o, ovl_node node, unsigned int *flags)
{
	unsigned int protattr = 0;
	int value = 0;
	int err = query(o, node, FS_IOC_GETFLAGS, &value, &protattr);

	if (err == 0)
		*flags = (unsigned int)value | protattr;
	return err;
}

int ovl_set_flags(struct ovl *o, const struct ovl_caller *caller, ovl_node node, unsigned int flags)
{
	int value = (int)(flags & ~(unsigned int)PROTECTING_FLAGS);

	/* It would not be shown any more. */
	if (flags & FS_CASEFOLD_FL)
		return -EOPNOTSUPP;
	return change(o, caller, node, FS_IOC_SETFLAGS, &value, flags & PROTECTING_FLAGS);
}

int ovl_get_fsxattr(struct ovl *o, ovl_node node, struct fsxattr *out)
{
	unsigned int protattr = 0;
	int err;

	memset(out, 0, sizeof(*out));
	err = query(o, node, FS_IOC_FSGETXATTR, out, &protattr);
	if (protattr & FS_IMMUTABLE_FL)
		out->fsx_xflags |= FS_XFLAG_IMMUTABLE;
	if (protattr & FS_APPEND_FL)
		out->fsx_xflags |= FS_XFLAG_APPEND;
	return err;
}

int ovl_set_fsxattr(struct ovl *o, const struct ovl_caller *caller, ovl_node node,
		    const struct fsxattr *set)
{
	struct fsxattr value = *set;
	unsigned int protattr = 0;

	if (set->fsx_xflags & FS_XFLAG_IMMUTABLE)
		protattr |= FS_IMMUTABLE_FL;
	if (set->fsx_xflags & FS_XFLAG_APPEND)
		protattr |= FS_APPEND_FL;
	value.fsx_xflags &= ~(unsigned int)PROTECTING_XFLAGS;
	return change(o, caller, node, FS_IOC_FSSETXATTR, &value, protattr);
}
