// SPDX-License-Identifier: MIT
/* One object of upper: its marks, and how they are changed. */
#include <fcntl.h>
#include <string.h>

#include "fsck/private.h"

#define FOREIGN_PREFIX "user.fuseoverlayfs."
#define FOREIGN_NAME   ".wh."

const char *mark_name(const struct fsck *f, enum fmt_xattr which)
{
	return fmt_xattr_name(f->userxattr, which);
}

static ssize_t list_xattrs(const struct object *o, char **out)
{
	for (int tries = 0; tries < 10; tries++) {
		ssize_t size = at_listxattr(o->dirfd, o->name, NULL, 0);
		char *list;

		if (size <= 0)
			return size;
		list = malloc((size_t)size);
		if (!list)
			return -ENOMEM;
		size = at_listxattr(o->dirfd, o->name, list, (size_t)size);
		if (size >= 0) {
			*out = list;
			return size;
		}
		free(list);
		if (size != -ERANGE)
			return size;
	}
	return -ERANGE;
}

int object_read(struct fsck *f, struct object *o)
{
	autofree char *list = NULL;
	ssize_t size;
	int err = at_statx(o->dirfd, o->name, &o->st);

	if (err < 0)
		return err;
	o->present = 0;
	o->foreign = !strncmp(o->name, FOREIGN_NAME, strlen(FOREIGN_NAME));
	size = list_xattrs(o, &list);
	if (size == -EOPNOTSUPP || size == -ENODATA)
		return 0;
	if (size < 0)
		return (int)size;
	for (const char *p = list; p && p < list + size; p += strlen(p) + 1) {
		int which = fmt_xattr_of(f->userxattr, p);

		if (which >= 0)
			o->present |= 1U << which;
		if (!strncmp(p, FOREIGN_PREFIX, strlen(FOREIGN_PREFIX)))
			o->foreign = true;
	}
	return 0;
}

ssize_t object_mark(struct fsck *f, const struct object *o, enum fmt_xattr which, void *value,
		    size_t size)
{
	if (!object_has(o, which))
		return -ENODATA;
	return at_getxattr(o->dirfd, o->name, mark_name(f, which), value, size);
}

char *object_redirect(struct fsck *f, const struct object *o, size_t *size)
{
	/* A value is at most XATTR_SIZE_MAX long; asking with that much room cannot race. */
	ssize_t n = object_mark(f, o, FMT_REDIRECT, NULL, 0);
	char *value;

	if (n < 0)
		return NULL;
	value = malloc((size_t)n + 1);
	if (!value)
		return NULL;
	n = object_mark(f, o, FMT_REDIRECT, value, (size_t)n);
	if (n < 0) {
		free(value);
		return NULL;
	}
	value[n] = '\0';
	*size = (size_t)n;
	return value;
}

int object_set(struct fsck *f, const struct object *o, enum fmt_xattr which, const void *value,
	       size_t size)
{
	return at_setxattr(o->dirfd, o->name, mark_name(f, which), value, size, 0);
}

int object_unset(struct fsck *f, const struct object *o, enum fmt_xattr which)
{
	int err = at_removexattr(o->dirfd, o->name, mark_name(f, which));

	return err == -ENODATA ? 0 : err;
}

int object_open(struct fsck *f, const char *path, struct object *o)
{
	const char *slash = strrchr(path, '/');
	autofree char *parent = slash ? strndup(path, (size_t)(slash - path)) : NULL;

	if (slash && !parent)
		return -ENOMEM;
	*o = (struct object){ .path = path, .name = slash ? slash + 1 : path };
	o->dirfd = at_open_beneath(f->upper.root->fd, parent ? parent : ".", O_PATH | O_DIRECTORY);
	return o->dirfd < 0 ? o->dirfd : object_read(f, o);
}

void times_restore(int fd, const struct statx *st)
{
	const struct timespec times[2] = {
		{ st->stx_atime.tv_sec, st->stx_atime.tv_nsec },
		{ st->stx_mtime.tv_sec, st->stx_mtime.tv_nsec },
	};

	at_utimens(fd, "", times);
}

/*
 * Where something can be built before a rename shows it: in workdir, or without one in its own
 * directory, where a crash would leave a whiteout that hides nothing.
 */
static int build_dir(struct fsck *f, int dirfd)
{
	int fd;

	if (!f->workdir)
		return fcntl(dirfd, F_DUPFD_CLOEXEC, 0);
	fd = at_open(layer_fd(f->workdir), "work", O_PATH | O_DIRECTORY);
	return fd >= 0 ? fd : fcntl(layer_fd(f->workdir), F_DUPFD_CLOEXEC, 0);
}

int whiteout_put(struct fsck *f, int dirfd, const char *name, bool replace)
{
	autofd int build = -1;
	char temp[FMT_TEMP_NAME_MAX];
	int err = 0;

	if (!replace)
		return mknodat(dirfd, name, S_IFCHR, 0) < 0 ? -errno : 0;
	build = build_dir(f, dirfd);
	if (build < 0)
		return -errno;
	for (uint64_t n = 0x66736b00; n < 0x66736b40; n++) {
		fmt_temp_name(n, temp);
		err = mknodat(build, temp, S_IFCHR, 0) < 0 ? -errno : 0;
		if (err != -EEXIST)
			break;
	}
	if (err == 0)
		err = at_rename(build, temp, dirfd, name, 0);
	if (err < 0 && err != -EEXIST)
		at_unlink(build, temp, 0);
	return err;
}
