// SPDX-License-Identifier: MIT
/* A layer that is a directory tree. */
#include <fcntl.h>
#include <linux/btrfs.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <linux/mount.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/sysmacros.h>
#include <sys/syscall.h>
#include <sys/vfs.h>

#include "overlay/fdcache.h"
#include "overlay/layer.h"
#include "overlay/override.h"
#include "util/at.h"
#include "util/base.h"

/* linux/fs.h of 6.9 */
struct fsuuid_buf {
	uint8_t len;
	uint8_t uuid[16];
};
#ifndef FS_IOC_GETFSUUID
#define FS_IOC_GETFSUUID _IOR(0x15, 0, struct fsuuid_buf)
#endif

/* asm/unistd.h of 6.15; the same on every architecture */
#ifndef SYS_open_tree_attr
#define SYS_open_tree_attr 467
#endif

/* fs/ext4/ext4.h: struct fsuuid, whose last member has no size, gives the number */
#define EXT4_IOC_GETFSUUID _IOC(_IOC_READ, 'f', 44, 8)

struct layer_ref *layer_dir_adopt(struct layer *layer, int fd, bool writable)
{
	struct layer_ref *ref = calloc(1, sizeof(*ref));

	if (!ref)
		return NULL;
	ref->layer = layer;
	ref->fd = fd;
	ref->refs = 1;
	ref->writable = writable;
	return ref;
}

void layer_ref_put(struct layer_ref *ref)
{
	if (!ref)
		return;
	if (atomic_fetch_sub_explicit(&ref->refs, 1, memory_order_acq_rel) != 1)
		return;
	ref->layer->ops->close(ref);
	free(ref);
}

static void dir_close(struct layer_ref *ref)
{
	close_fd(ref->fd);
}

static int open_at(struct layer_ref *at, const char *name, int flags)
{
	int fd;

	do {
		fd = at_open(at->fd, name, flags);
	} while (fdcache_made_room(at->layer->fds, fd));
	return fd;
}

/* What the kernel shows for an id without a number in our user namespace (kernel.overflowuid). */
#define OVERFLOW_ID 65534

/*
 * Tells who has the number 65534 from who has none: only what has an owner in our namespace may be
 * opened with O_NOATIME. What cannot be tried counts as foreign.
 */
static void check_owner(struct layer_ref *at, const char *name, struct statx *st)
{
	autofd int fd = -1;

	if (st->stx_uid != OVERFLOW_ID)
		return;
	if (S_ISREG(st->stx_mode) || S_ISDIR(st->stx_mode))
		fd = open_at(at, name, O_RDONLY | O_NOATIME | O_NONBLOCK | O_NOCTTY);
	if (fd >= 0)
		return;
	st->stx_uid = LAYER_NO_ID;
	if (st->stx_gid == OVERFLOW_ID)
		st->stx_gid = LAYER_NO_ID;
}

/* The attributes of an object as the layer shows them. */
static int stat_shown(struct layer_ref *at, const char *name, struct statx *st)
{
	struct layer *layer = at->layer;
	int err = at_statx(at->fd, name, st);

	if (err < 0)
		return err;
	if (unlikely(layer->all_immutable))
		st->stx_attributes &= ~(uint64_t)STATX_ATTR_IMMUTABLE;
	if (unlikely(layer->override_count)) {
		err = override_show(layer, at->fd, name, st);
		if (err)
			return min(err, 0);
	}
	if (unlikely(layer->ambiguous_ids))
		check_owner(at, name, st);
	return 0;
}

/*
 * What is mounted inside a layer is not part of it. A private clone of the mount has nothing
 * mounted inside; without one, an object on another mount is shown as what it covers would be if it
 * were empty, and nothing is asked of that other filesystem: it may be our own mount.
 */
static bool is_foreign_mount(struct layer *layer, struct layer_ref *at, const char *name)
{
	struct statx st;

	if (!layer->mnt_id || !*name)
		return false;
	if (statx(at->fd, name, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT | AT_STATX_DONT_SYNC,
		  STATX_TYPE | STATX_MNT_ID, &st) < 0)
		return false;
	return (st.stx_mask & STATX_MNT_ID) && st.stx_mnt_id != layer->mnt_id;
}

static int stat_foreign(struct layer_ref *at, const char *name, struct statx *st)
{
	int flags = AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT | AT_STATX_DONT_SYNC |
		    (*name ? 0 : AT_EMPTY_PATH);

	if (statx(at->fd, name, flags, AT_STATX_WANTED, st) < 0)
		return -errno;
	st->stx_attributes |= STATX_ATTR_MOUNT_ROOT; /* unknown to Linux before 5.8 */
	return 0;
}

static int dir_stat(struct layer_ref *at, const char *name, struct statx *st)
{
	if (unlikely(at->foreign))
		return *name ? -ENOENT : stat_foreign(at, name, st);
	if (unlikely(at->layer->mnt_id) && is_foreign_mount(at->layer, at, name))
		return stat_foreign(at, name, st);
	return stat_shown(at, name, st);
}

static int open_flags(enum layer_open how, bool noatime)
{
	switch (how) {
	case LAYER_OPEN_PATH: return O_PATH;
	case LAYER_OPEN_WRITE: return O_RDWR | O_NOCTTY | O_NONBLOCK;
	default: return O_RDONLY | O_NOCTTY | O_NONBLOCK | (noatime ? O_NOATIME : 0);
	}
}

static int dir_open(struct layer_ref *at, const char *path, enum layer_open how,
		    struct layer_ref **out)
{
	struct layer *layer = at->layer;
	autofd int fd = -1;
	/* Reading a lower file must not change its atime; only its owner may ask for that. */
	bool noatime = layer->index > 0 && how == LAYER_OPEN_READ;
	bool foreign = at->foreign;

	if (foreign && *path)
		return -ENOENT;

	for (;;) {
		int flags = open_flags(how, noatime);

		if (strchr(path, '/'))
			fd = at_open_beneath(at->fd, path, flags);
		else
			fd = at_open(at->fd, path, flags);
		if (fd == -EPERM && how == LAYER_OPEN_WRITE) { /* append-only in the layer itself */
			fd = at_open(at->fd, path, flags | O_APPEND);
			break;
		}
		if (fd != -EPERM || !noatime)
			break;
		noatime = false;
	}
	if (fd < 0)
		return fd;
	if (unlikely(layer->mnt_id) && *path) {
		struct statx st;

		if (statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_MNT_ID | STATX_TYPE,
			  &st) == 0 &&
		    (st.stx_mask & STATX_MNT_ID) && st.stx_mnt_id != layer->mnt_id)
			foreign = true;
		if (foreign && (how != LAYER_OPEN_PATH || !S_ISDIR(st.stx_mode)))
			return -EXDEV;
	}
	*out = layer_dir_adopt(layer, fd, how == LAYER_OPEN_WRITE);
	if (!*out)
		return -ENOMEM;
	(*out)->foreign = foreign;
	take_fd(&fd);
	return 0;
}

static ssize_t dir_readlink(struct layer_ref *at, const char *name, char *buf, size_t size)
{
	ssize_t n = at_readlink(at->fd, name, buf, size);

	/* ENOENT: what was opened is no symlink */
	if ((n == -EINVAL || (n == -ENOENT && !*name)) && unlikely(at->layer->override_count))
		return override_readlink(at->layer, at->fd, name, buf, size);
	return n;
}

static ssize_t dir_getxattr(struct layer_ref *at, const char *name, const char *xattr, void *value,
			    size_t size)
{
	if (unlikely(at->layer->mnt_id) && (at->foreign || is_foreign_mount(at->layer, at, name)))
		return -ENODATA;
	if (unlikely(at->layer->override_count))
		return override_getxattr(at->layer, at->fd, name, xattr, value, size);
	return at_getxattr(at->fd, name, xattr, value, size);
}

static ssize_t dir_listxattr(struct layer_ref *at, const char *name, char *list, size_t size)
{
	if (unlikely(at->layer->mnt_id) && (at->foreign || is_foreign_mount(at->layer, at, name)))
		return 0;
	if (unlikely(at->layer->override_count))
		return override_listxattr(at->layer, at->fd, name, list, size);
	return at_listxattr(at->fd, name, list, size);
}

struct linux_dirent64 {
	uint64_t ino;
	int64_t off;
	unsigned short reclen;
	unsigned char type;
	char name[];
};

#define DIRENT_BUFFER 32768

static int dir_readdir(struct layer_ref *dir, bool quiet, layer_filldir fill, void *ctx)
{
	autofree char *buf = malloc(DIRENT_BUFFER);
	bool may_stand_for_others = dir->layer->override_count; /* a regular file */
	autofd int fd = -1;

	if (dir->foreign)
		return 0;
	if (!buf)
		return -ENOMEM;
	/* Only granted to owners; atime of a lower directory never changes. */
	quiet |= dir->layer->index > 0;
	fd = open_at(dir, "", O_RDONLY | O_DIRECTORY | (quiet ? O_NOATIME : 0));
	if (fd == -EPERM)
		fd = open_at(dir, "", O_RDONLY | O_DIRECTORY);
	if (fd < 0)
		return fd;
	for (;;) {
		long n = syscall(SYS_getdents64, fd, buf, DIRENT_BUFFER);

		if (n <= 0)
			return n < 0 ? -errno : 0;
		for (long pos = 0; pos < n;) {
			struct linux_dirent64 *d = (struct linux_dirent64 *)(buf + pos);

			pos += d->reclen;
			if (d->name[0] == '.' &&
			    (!d->name[1] || (d->name[1] == '.' && !d->name[2])))
				continue;
			if (d->type == DT_REG && unlikely(may_stand_for_others))
				d->type = DT_UNKNOWN;
			if (!fill(ctx, d->name, strlen(d->name), d->ino, d->type))
				return 0;
		}
	}
}

/* No filesystem reads less than that at once, but at the end of a file. */
#define SECTOR 512

static ssize_t dir_read(struct layer_ref *file, void *buf, size_t size, off_t off)
{
	size_t done = 0;

	while (done < size) {
		ssize_t n = pread(file->fd, (char *)buf + done, size - done, off + (off_t)done);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return done ? (ssize_t)done : -errno;
		if (n == 0)
			break;
		done += (size_t)n;
		/*
		 * The end of the file, most likely, and then there is no use in asking again. What
		 * a signal cuts short ends with a page.
		 */
		if ((off + (off_t)done) % SECTOR)
			break;
	}
	return (ssize_t)done;
}

static off_t dir_seek(struct layer_ref *file, off_t off, int whence)
{
	off_t r = lseek(file->fd, off, whence);

	return r < 0 ? -errno : r;
}

union handle_buf {
	struct file_handle h;
	char space[sizeof(struct file_handle) + MAX_HANDLE_SZ];
};

static int dir_handle(struct layer_ref *at, const char *name, struct fmt_fh *fh)
{
	union handle_buf buf = { .h.handle_bytes = MAX_HANDLE_SZ };
	int mount_id;

	if (name_to_handle_at(at->fd, name, &buf.h, &mount_id, *name ? 0 : AT_EMPTY_PATH) < 0)
		return -errno;
	if (buf.h.handle_type < 0 || buf.h.handle_type > 0xff ||
	    buf.h.handle_bytes > sizeof(fh->fid))
		return -EOPNOTSUPP;
	fh->upper = at->layer->index == 0;
	fh->type = (uint8_t)buf.h.handle_type;
	fh->fid_len = (uint8_t)buf.h.handle_bytes;
	memcpy(fh->fid, buf.h.f_handle, buf.h.handle_bytes);
	memcpy(fh->uuid, at->layer->uuid, sizeof(fh->uuid));
	return 0;
}

static int open_handle_fd(struct layer *layer, const struct fmt_fh *fh)
{
	union handle_buf buf = { .h.handle_bytes = fh->fid_len, .h.handle_type = fh->type };
	autofd int mount_fd = -1;
	autofd int fd = -1;

	memcpy(buf.h.f_handle, fh->fid, fh->fid_len);
	/* Kernels before 6.13 refuse an O_PATH fd to name the mount. */
	fd = open_by_handle_at(layer->root->fd, &buf.h, O_PATH | O_CLOEXEC);
	if (fd < 0 && errno == EBADF) {
		mount_fd = open_at(layer->root, "", O_RDONLY | O_DIRECTORY);
		if (mount_fd < 0)
			return mount_fd;
		fd = open_by_handle_at(mount_fd, &buf.h, O_PATH | O_CLOEXEC);
	}
	return fd < 0 ? -errno : take_fd(&fd);
}

static int dir_open_handle(struct layer *layer, const struct fmt_fh *fh, struct layer_ref **out)
{
	autofd int fd = -1;

	do {
		fd = open_handle_fd(layer, fh);
	} while (fdcache_made_room(layer->fds, fd));
	if (fd < 0)
		return fd;
	*out = layer_dir_adopt(layer, fd, false);
	if (!*out)
		return -ENOMEM;
	take_fd(&fd);
	return 0;
}

static int dir_stat_handle(struct layer *layer, const struct fmt_fh *fh, struct statx *st)
{
	autofd int fd = open_handle_fd(layer, fh);
	int err = fd < 0 ? fd : at_statx(fd, "", st);

	if (err == 0 && unlikely(layer->override_count))
		err = min(override_show(layer, fd, "", st), 0);
	return err;
}

static int dir_query(struct layer_ref *at, const char *name, unsigned long request, void *arg)
{
	autofd int fd = -1;

	if (unlikely(at->layer->mnt_id) && (at->foreign || is_foreign_mount(at->layer, at, name)))
		return -ENOTTY;
	if (request == FS_IOC_FSGETXATTR && *name) {
		int err = at_fileattr(at->fd, name, arg);

		if (err != -ENOSYS)
			return err == -EOPNOTSUPP ? -ENOTTY : err;
	}
	fd = open_at(at, name, O_RDONLY | O_NONBLOCK | O_NOCTTY);
	if (fd < 0)
		return fd;
	return ioctl(fd, request, arg) < 0 ? -errno : 0;
}

static int dir_statfs(struct layer *layer, struct statvfs *st)
{
	return fstatvfs(layer->root->fd, st) < 0 ? -errno : 0;
}

static const struct layer_ops dir_ops = {
	.stat = dir_stat,
	.open = dir_open,
	.readlink = dir_readlink,
	.getxattr = dir_getxattr,
	.listxattr = dir_listxattr,
	.readdir = dir_readdir,
	.read = dir_read,
	.seek = dir_seek,
	.handle = dir_handle,
	.open_handle = dir_open_handle,
	.stat_handle = dir_stat_handle,
	.query = dir_query,
	.statfs = dir_statfs,
	.close = dir_close,
};

/* Linux 6.15: takes the idmap of a mount off a clone of it. */
static int open_tree_unmapped(int fd)
{
	struct mount_attr attr = { .attr_clr = MOUNT_ATTR_IDMAP };

	return (int)syscall(SYS_open_tree_attr, fd, "",
			    AT_EMPTY_PATH | OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC, &attr,
			    sizeof(attr));
}

/*
 * A private, non-recursive clone of the mount that @fd is on. Returns an O_PATH fd of the same
 * directory in it, or a negative errno when the kernel is too old or we may not.
 */
static int clone_mount(int fd, bool writable, bool disk_ids)
{
	/*
	 * The clone is ours alone, so what its flags forbid, they forbid to us: a lower layer is
	 * never written, nor its atime changed. nodev, nosuid and noexec of the layer's mount stay:
	 * user namespaces lock them.
	 */
	struct mount_attr attr = { .attr_set = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOATIME,
				   .attr_clr = MOUNT_ATTR__ATIME };
	autofd int tree = disk_ids ? open_tree_unmapped(fd) : -1;

	if (tree < 0)
		tree = (int)syscall(SYS_open_tree, fd, "",
				    AT_EMPTY_PATH | OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
	if (tree < 0)
		return -errno;
	if (!writable &&
	    syscall(SYS_mount_setattr, tree, "", AT_EMPTY_PATH, &attr, sizeof(attr)) < 0) {
		/* atime flags may be locked in a user namespace; read-only is what matters */
		attr.attr_set = MOUNT_ATTR_RDONLY;
		attr.attr_clr = 0;
		if (syscall(SYS_mount_setattr, tree, "", AT_EMPTY_PATH, &attr, sizeof(attr)) < 0)
			return -errno;
	}
	return take_fd(&tree);
}

/* s_uuid of the filesystem; the general way is known to Linux 6.9 and not to btrfs. */
static void read_uuid(int fd, uint8_t out[16])
{
	struct fsuuid_buf uuid = { 0 };
	struct {
		uint32_t len;
		uint32_t flags;
		uint8_t uuid[16];
	} ext4 = { .len = 16 };
	struct btrfs_ioctl_fs_info_args btrfs = { 0 };

	if (ioctl(fd, FS_IOC_GETFSUUID, &uuid) == 0 && uuid.len == sizeof(uuid.uuid))
		memcpy(out, uuid.uuid, sizeof(uuid.uuid));
	else if (ioctl(fd, BTRFS_IOC_FS_INFO, &btrfs) == 0)
		memcpy(out, btrfs.fsid, sizeof(btrfs.fsid));
	else if (ioctl(fd, EXT4_IOC_GETFSUUID, &ext4) == 0)
		memcpy(out, ext4.uuid, sizeof(ext4.uuid));
}

/* Type of the handles of most filesystems: number and generation, of 32 bits each. */
#define FILEID_INO32_GEN 1

static void probe_handles(struct layer *layer)
{
	struct fmt_fh fh;
	struct statx st;
	autofd int fd = at_open(layer->root->fd, "", O_RDONLY | O_DIRECTORY);

	if (fd >= 0)
		read_uuid(fd, layer->uuid);
	layer->can_decode = dir_handle(layer->root, "", &fh) == 0 &&
			    dir_stat_handle(layer, &fh, &st) == 0;
	/* xfs makes such handles too, of numbers that happen to be small */
	layer->ino32 = layer->can_decode && fh.type == FILEID_INO32_GEN && fh.fid_len == 8 &&
		       layer->magic != XFS_SUPER_MAGIC;
}

/*
 * A filesystem that nobody can write may call its objects immutable; copies of them are not. The
 * flag of chattr(1) is another one, and the root of a layer hardly has it.
 */
static bool calls_all_immutable(struct layer *layer, const struct statx *root)
{
	unsigned int flags = 0;

	if (!(root->stx_attributes & STATX_ATTR_IMMUTABLE))
		return false;
	return dir_query(layer->root, "", FS_IOC_GETFLAGS, &flags) < 0 ||
	       !(flags & FS_IMMUTABLE_FL);
}

/* Whether @path is below @dir. Both absolute and canonical. */
static bool is_below(const char *path, const char *dir)
{
	size_t len = strlen(dir);

	if (len && dir[len - 1] == '/')
		len--;
	return !strncmp(path, dir, len) && path[len] == '/' && path[len + 1];
}

/* Whether something is, or by our own mount will be, mounted inside a directory. When in doubt,
 * yes. */
static bool has_mounts_inside(const char *path, const char *mountpoint)
{
	autofree char *line = NULL;
	autofree char *real = realpath(path, NULL);
	autofree char *target = mountpoint ? realpath(mountpoint, NULL) : NULL;
	autofile FILE *f = fopen("/proc/self/mountinfo", "re");
	size_t room = 0;

	if (!real || !f || (target && is_below(target, real)))
		return true;
	while (getline(&line, &room, f) > 0) {
		char *save = NULL;
		char *field = strtok_r(line, " ", &save);

		for (int n = 1; field && n < 5; n++)
			field = strtok_r(NULL, " ", &save);
		/* octal escapes make a path look foreign: then take it for one inside */
		if (field && (strchr(field, '\\') || is_below(field, real)))
			return true;
	}
	return false;
}

/* Makes a layer of an opened root. @fd is taken over on success. */
static int layer_init(struct layer *out, int *fd, unsigned int index, bool private,
		      const char *path, const char *mountpoint)
{
	struct layer layer = { .ops = &dir_ops, .index = index };
	struct statvfs vfs;
	struct statfs fs;
	struct statx st;

	if (statx(*fd, "", AT_EMPTY_PATH, AT_STATX_WANTED | STATX_MNT_ID, &st) < 0 ||
	    fstatvfs(*fd, &vfs) < 0 || fstatfs(*fd, &fs) < 0)
		return -errno;
	layer.magic = (uint32_t)fs.f_type;
	layer.dev = makedev(st.stx_dev_major, st.stx_dev_minor);
	layer.root_ino = st.stx_ino;
	layer.read_only = vfs.f_flag & ST_RDONLY;
	layer.name_max = (unsigned int)vfs.f_namemax;
	if (!private && (st.stx_mask & STATX_MNT_ID) && has_mounts_inside(path, mountpoint))
		layer.mnt_id = st.stx_mnt_id;
	*out = layer;
	out->root = layer_dir_adopt(out, *fd, false);
	if (!out->root)
		return -ENOMEM;
	take_fd(fd);
	out->all_immutable = calls_all_immutable(out, &st);
	probe_handles(out);
	return 0;
}

int layer_dir_open(const char *path, unsigned int index, const char *mountpoint, bool disk_ids,
		   struct layer *out)
{
	autofd int fd = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
	autofd int clone = -1;

	if (fd < 0)
		return -errno;
	clone = clone_mount(fd, false, disk_ids);
	return layer_init(out, clone >= 0 ? &clone : &fd, index, clone >= 0, path, mountpoint);
}

static int mount_of(int fd, uint64_t *mnt)
{
	struct statx st;

	if (statx(fd, "", AT_EMPTY_PATH, STATX_MNT_ID | STATX_INO, &st) < 0)
		return -errno;
	*mnt = st.stx_mask & STATX_MNT_ID ? st.stx_mnt_id
					  : makedev(st.stx_dev_major, st.stx_dev_minor);
	return 0;
}

/* Reopens @path, canonical, below a clone of one of its ancestors; @same: what it must be. */
static int open_in_clone(int clone, const char *path, size_t prefix, int same)
{
	const char *rest = path + prefix;
	autofd int fd = -1;
	struct stat a;
	struct stat b;

	while (*rest == '/')
		rest++;
	fd = *rest ? at_open_beneath(clone, rest, O_PATH | O_DIRECTORY)
		   : fcntl(clone, F_DUPFD_CLOEXEC, 0);
	if (fd < 0)
		return fd;
	if (fstat(fd, &a) < 0 || fstat(same, &b) < 0)
		return -errno;
	if (a.st_dev != b.st_dev || a.st_ino != b.st_ino)
		return -ESTALE;
	return take_fd(&fd);
}

/* Length of the longest common ancestor's path. */
static size_t common_prefix(const char *a, const char *b)
{
	size_t last = 0;

	for (size_t n = 0;; n++) {
		bool end_a = a[n] == '/' || !a[n];
		bool end_b = b[n] == '/' || !b[n];

		if (end_a && end_b)
			last = n;
		if (a[n] != b[n] || !a[n])
			return last;
	}
}

/* Moves both fds into one private clone of their mount, if that can be had. */
static bool move_into_clone(const char *upper, const char *work, int *upper_fd, int *work_fd)
{
	autofree char *real_upper = realpath(upper, NULL);
	autofree char *real_work = realpath(work, NULL);
	autofree char *ancestor = NULL;
	autofd int fd = -1;
	autofd int clone = -1;
	autofd int new_upper = -1;
	autofd int new_work = -1;
	size_t prefix;

	if (!real_upper || !real_work)
		return false;
	prefix = common_prefix(real_upper, real_work);
	ancestor = prefix ? strndup(real_upper, prefix) : strdup("/");
	if (!ancestor)
		return false;
	fd = open(ancestor, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return false;
	clone = clone_mount(fd, true, false);
	if (clone < 0)
		return false;
	new_upper = open_in_clone(clone, real_upper, prefix, *upper_fd);
	new_work = open_in_clone(clone, real_work, prefix, *work_fd);
	if (new_upper < 0 || new_work < 0)
		return false;
	close_fd(*upper_fd);
	close_fd(*work_fd);
	*upper_fd = take_fd(&new_upper);
	*work_fd = take_fd(&new_work);
	return true;
}

int layer_dir_open_upper(const char *upper, const char *work, const char *mountpoint,
			 struct layer *out, struct layer_ref **workdir, const char **failed)
{
	autofd int upper_fd = -1;
	autofd int work_fd = -1;
	uint64_t upper_mnt;
	uint64_t work_mnt;
	bool private;
	int err;

	*failed = upper;
	upper_fd = open(upper, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (upper_fd < 0)
		return -errno;
	*failed = work;
	work_fd = open(work, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (work_fd < 0)
		return -errno;
	err = mount_of(upper_fd, &upper_mnt);
	if (err == 0)
		err = mount_of(work_fd, &work_mnt);
	if (err < 0)
		return err;
	if (upper_mnt != work_mnt)
		return -EXDEV;
	private = move_into_clone(upper, work, &upper_fd, &work_fd);
	*failed = upper;
	err = layer_init(out, &upper_fd, 0, private, upper, mountpoint);
	if (err < 0)
		return err;
	*workdir = layer_dir_adopt(out, work_fd, false);
	if (!*workdir) {
		layer_close(out);
		return -ENOMEM;
	}
	take_fd(&work_fd);
	return 0;
}

void layer_close(struct layer *layer)
{
	layer_ref_put(layer->root);
	layer->root = NULL;
	free(layer->path);
	layer->path = NULL;
}
