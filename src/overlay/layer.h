/* SPDX-License-Identifier: MIT */
/*
 * What a layer can do. A directory tree (layer_dir.c) is one kind; others, which are images, come
 * as further tables of functions: outside layer_*.c no code may assume that a lower object has an
 * fd. Only the upper layer, always a directory tree, is written, by fd: see layer_fd().
 *
 * An object is named by an opened ancestor directory and one name below it, or by an opened object
 * and the name "". A struct layer_ref is such an opened object, counted by references.
 *
 * Thread-safe. Errors: negative errno; -ENOENT and -ENAMETOOLONG both say that a name is not there.
 */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/types.h>

#include "overlay/format.h"
#include "overlay/format_override.h"

struct fdcache;
struct layer;

struct layer_ref {
	struct layer *layer;
	int fd; /* -1 for a kind of layer that has none */
	_Atomic uint32_t refs;
	bool writable; /* opened for writing */
	bool foreign;  /* a directory of another mount, shown as empty */

	/* The rest belongs to the fd cache (fdcache.h) and is guarded by its lock. */
	struct layer_ref **slot; /* who holds it, if the cache does */
	struct layer_ref *prev;
	struct layer_ref *next;
};

enum layer_open {
	LAYER_OPEN_PATH, /* to reach it or what is below: opens nothing, follows nothing */
	LAYER_OPEN_READ, /* contents; regular files only */
	LAYER_OPEN_WRITE,
};

/* Returns false to stop. */
typedef bool (*layer_filldir)(void *ctx, const char *name, size_t len, uint64_t ino,
			      unsigned int type);

/*
 * An owner that has no number in our user namespace. The kernel shows 65534 for it, which may as
 * well be somebody's number there.
 */
#define LAYER_NO_ID ((uint32_t)-1)

struct layer_ops {
	/* What is mounted inside a layer has STATX_ATTR_MOUNT_ROOT. */
	int (*stat)(struct layer_ref *at, const char *name, struct statx *st);
	/* @path may have several components; none of them is followed if it is a symlink. */
	int (*open)(struct layer_ref *at, const char *path, enum layer_open how,
		    struct layer_ref **out);
	ssize_t (*readlink)(struct layer_ref *at, const char *name, char *buf, size_t size);
	ssize_t (*getxattr)(struct layer_ref *at, const char *name, const char *xattr, void *value,
			    size_t size);
	ssize_t (*listxattr)(struct layer_ref *at, const char *name, char *list, size_t size);
	/* Every name but "." and "..", as it stands in the layer. @quiet: atime stays. */
	int (*readdir)(struct layer_ref *dir, bool quiet, layer_filldir fill, void *ctx);
	ssize_t (*read)(struct layer_ref *file, void *buf, size_t size, off_t off);
	off_t (*seek)(struct layer_ref *file, off_t off, int whence);
	/* File handle as stored in the origin xattr. -EOPNOTSUPP where there is none. */
	int (*handle)(struct layer_ref *at, const char *name, struct fmt_fh *fh);
	/* The object of a handle made by handle(), as LAYER_OPEN_PATH; -ESTALE when it is gone. */
	int (*open_handle)(struct layer *layer, const struct fmt_fh *fh, struct layer_ref **out);
	int (*stat_handle)(struct layer *layer, const struct fmt_fh *fh, struct statx *st);
	/*
	 * FS_IOC_GETFLAGS and FS_IOC_FSGETXATTR of a file or directory. -ENOTTY. The latter is
	 * answered without an open where the kernel can (Linux 6.17).
	 */
	int (*query)(struct layer_ref *at, const char *name, unsigned long request, void *arg);
	int (*statfs)(struct layer *layer, struct statvfs *st);
	void (*close)(struct layer_ref *ref);
};

struct layer {
	const struct layer_ops *ops;
	struct layer_ref *root; /* one reference, for the life of the mount */
	char *path;             /* as people know it, absolute; owned */
	unsigned int index;     /* 0: upper, 1 to n: lower, topmost first */
	dev_t dev;              /* st_dev of the root */
	uint64_t root_ino;
	uint64_t mnt_id;  /* STATX_MNT_ID of the root; 0: unknown, or a private mount without others
			   */
	uint8_t uuid[16]; /* s_uuid, zero if it has none, the kernel does not say, or with uuid=off
			   */
	bool ambiguous_uuid; /* which does not say that a handle is of this layer */
	uint32_t magic;      /* f_type of statfs(2) */
	bool may_fold;       /* may hold directories in which case does not matter */
	bool ino32; /* numbers of inodes have 32 bits, as far as the kernel's overlayfs knows */
	bool can_decode;     /* stat_handle() works: export operations and CAP_DAC_READ_SEARCH */
	struct fdcache *fds; /* gives fds up when there are no more; NULL: nothing to give */
	bool ambiguous_ids; /* 65534 is a number of our user namespace, which is not the initial one
			     */
	bool read_only;     /* its mount or filesystem is */
	atomic_bool no_clone; /* its files cannot be shared with upper's (FICLONE) */
	bool all_immutable;   /* statx(2) says so of everything (erofs), which is nobody's wish */
	unsigned int name_max;
	/*
	 * Which xattrs hold owner, mode and type of its objects, those that were written last
	 * first: enum fmt_override. None, but for layers that say so; see override.h. Settled at
	 * mount.
	 */
	uint8_t overrides[FMT_OVERRIDE_COUNT];
	uint8_t override_count;
	bool of_the_host; /* what they say has its effect outside of user namespaces */
};

/*
 * Opens a lower directory tree. @mountpoint: where the union will appear, NULL if unknown. Where
 * the kernel lets us, as a private clone of its mount, without what is mounted below, read-only and
 * noatime: then no bug here can write to it. With @disk_ids also without the idmap of that mount,
 * where the kernel can.
 */
int layer_dir_open(const char *path, unsigned int index, const char *mountpoint, bool disk_ids,
		   struct layer *out);
/*
 * The upper layer and its workdir, reached through one mount, as renames between them need. -EXDEV
 * when they are not on one mount; *@failed is set to the path that could not be opened.
 */
int layer_dir_open_upper(const char *upper, const char *work, const char *mountpoint,
			 struct layer *out, struct layer_ref **workdir, const char **failed);
/* A reference that owns @fd, an object of this directory tree. NULL: no memory, @fd is the
 * caller's. */
struct layer_ref *layer_dir_adopt(struct layer *layer, int fd, bool writable);
void layer_close(struct layer *layer);

static inline int layer_fd(const struct layer_ref *ref)
{
	return ref->fd;
}

static inline struct layer_ref *layer_ref_get(struct layer_ref *ref)
{
	atomic_fetch_add_explicit(&ref->refs, 1, memory_order_relaxed);
	return ref;
}

void layer_ref_put(struct layer_ref *ref);

static inline void cleanup_layer_ref(struct layer_ref **ref)
{
	layer_ref_put(*ref);
}

#define autoref __attribute__((cleanup(cleanup_layer_ref)))

static inline struct layer_ref *take_ref(struct layer_ref **ref)
{
	struct layer_ref *r = *ref;

	*ref = NULL;
	return r;
}

static inline int layer_stat(struct layer_ref *at, const char *name, struct statx *st)
{
	return at->layer->ops->stat(at, name, st);
}

static inline int layer_open(struct layer_ref *at, const char *path, enum layer_open how,
			     struct layer_ref **out)
{
	return at->layer->ops->open(at, path, how, out);
}

static inline ssize_t layer_getxattr(struct layer_ref *at, const char *name, const char *xattr,
				     void *value, size_t size)
{
	return at->layer->ops->getxattr(at, name, xattr, value, size);
}

static inline ssize_t layer_listxattr(struct layer_ref *at, const char *name, char *list,
				      size_t size)
{
	return at->layer->ops->listxattr(at, name, list, size);
}
