// SPDX-License-Identifier: MIT
/* File handles: where copied-up objects came from. */
#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/sysmacros.h>

#include "fsck/private.h"

/* Deeper than any tree that a path reaches. */
#define SEARCH_DEPTH 256

union handle_buf {
	struct file_handle h;
	char space[sizeof(struct file_handle) + MAX_HANDLE_SZ];
};

/* The uuid as a handle of this layer holds it. */
static void layer_uuid(const struct fsck *f, const struct layer *layer, uint8_t out[16])
{
	if (f->config->features.uuid == OVL_UUID_OFF)
		memset(out, 0, 16);
	else
		memcpy(out, layer->uuid, 16);
}

int handle_of(struct fsck *f, const struct layer *layer, int fd, struct fmt_fh *fh)
{
	union handle_buf buf = { .h.handle_bytes = MAX_HANDLE_SZ };
	int mount_id;

	*fh = (struct fmt_fh){ 0 };
	if (name_to_handle_at(fd, "", &buf.h, &mount_id, AT_EMPTY_PATH) < 0)
		return -errno;
	if (buf.h.handle_type < 0 || buf.h.handle_type > 0xff ||
	    buf.h.handle_bytes > sizeof(fh->fid))
		return -EOPNOTSUPP;
	fh->type = (uint8_t)buf.h.handle_type;
	fh->fid_len = (uint8_t)buf.h.handle_bytes;
	memcpy(fh->fid, buf.h.f_handle, buf.h.handle_bytes);
	layer_uuid(f, layer, fh->uuid);
	return 0;
}

bool handle_same(const struct fmt_fh *a, const struct fmt_fh *b)
{
	return a->type == b->type && a->fid_len == b->fid_len &&
	       !memcmp(a->uuid, b->uuid, sizeof(a->uuid)) && !memcmp(a->fid, b->fid, a->fid_len);
}

int handle_open(struct fsck *f, struct layer *layer, const struct fmt_fh *fh)
{
	union handle_buf buf = { .h.handle_bytes = fh->fid_len, .h.handle_type = fh->type };
	autofd int mount_fd = -1;
	uint8_t uuid[16];
	int fd;

	layer_uuid(f, layer, uuid);
	if (!layer->can_decode || memcmp(uuid, fh->uuid, sizeof(uuid)) != 0)
		return -ESTALE;
	memcpy(buf.h.f_handle, fh->fid, fh->fid_len);
	mount_fd = at_open(layer->root->fd, "", O_RDONLY | O_DIRECTORY);
	if (mount_fd < 0)
		return mount_fd;
	fd = open_by_handle_at(mount_fd, &buf.h, O_PATH | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

int handle_open_lower(struct fsck *f, const struct fmt_fh *fh, size_t *layer)
{
	for (*layer = 0; *layer < f->lower_count - f->data_count; (*layer)++) {
		int fd = handle_open(f, &f->lowers[*layer], fh);

		if (fd >= 0 || fd == -EMFILE || fd == -ENFILE || fd == -ENOMEM)
			return fd;
	}
	return -ESTALE;
}

enum origin_match origin_compare(struct fsck *f, const struct object *o, struct below *b,
				 struct fmt_fh *fh)
{
	uint8_t value[FMT_FH_MAX];
	ssize_t size = object_mark(f, o, FMT_ORIGIN, value, sizeof(value));
	autofd int fd = -1;
	size_t layer;

	if (!object_has(o, FMT_ORIGIN))
		return ORIGIN_NONE;
	*fh = (struct fmt_fh){ 0 };
	if (size < 0 || fmt_fh_decode(value, (size_t)size, fh) < 0)
		return ORIGIN_UNKNOWN;
	if (b && b->node && below_identify(f, b) == 0 && b->has_fh && handle_same(fh, &b->fh))
		return ORIGIN_SAME;
	/* What leads nowhere tells nothing: the layer may have been copied. */
	fd = handle_open_lower(f, fh, &layer);
	return fd < 0 ? ORIGIN_UNKNOWN : ORIGIN_ELSEWHERE;
}

/* Whether the union of the lower layers shows this real object on top at @path. */
static bool shows(struct fsck *f, const char *path, const struct statx *st)
{
	struct below b;
	bool yes;

	below_walk(f, path, &b);
	yes = b.node && below_identify(f, &b) == 0 && b.ino == st->stx_ino &&
	      b.dev == makedev(st->stx_dev_major, st->stx_dev_minor);
	below_put(f, &b);
	return yes;
}

/* The name the kernel knows an object by, relative to the root of its layer. Allocated; NULL. */
static char *known_path(struct layer *layer, int fd)
{
	char link[64];
	char root[PATH_MAX];
	char path[PATH_MAX];
	ssize_t root_len;
	ssize_t len;

	snprintf(link, sizeof(link), "/proc/self/fd/%d", layer->root->fd);
	root_len = readlink(link, root, sizeof(root));
	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	len = readlink(link, path, sizeof(path));
	if (root_len <= 0 || len <= 0 || root_len == sizeof(root) || len == sizeof(path))
		return NULL;
	if (root_len == 1) /* a private mount: the root of the layer is its root */
		root_len = 0;
	if (len <= root_len || path[root_len] != '/' || memcmp(path, root, (size_t)root_len) != 0)
		return NULL;
	return strndup(path + root_len + 1, (size_t)(len - root_len - 1));
}

struct search {
	struct fsck *f;
	const struct statx *st;
	char *found;
	int err;
};

/* Looks at every directory for a name of the object at which the union shows it; there may be more
 * names than one. */
static void search_below(struct search *s, int at, const char *path, unsigned int depth)
{
	autodir DIR *dir = NULL;
	struct dirent *d;

	if (at_opendir(at, "", &dir) < 0)
		return;
	while (!s->found && s->err == 0 && (d = at_readdir(dir))) {
		autofree char *here = path_join(path, d->d_name);
		autofd int child = -1;

		if (!here || fsck_cancelled(s->f))
			s->err = here ? -ECANCELED : -ENOMEM;
		else if (d->d_ino == s->st->stx_ino && shows(s->f, here, s->st))
			s->found = take_ptr(here);
		else if (depth && (d->d_type == DT_DIR || d->d_type == DT_UNKNOWN))
			child = at_open(dirfd(dir), d->d_name, O_PATH | O_DIRECTORY);
		if (child >= 0)
			search_below(s, child, here, depth - 1);
	}
}

/* Asks the kernel, layer by layer: a filesystem that holds several decodes a handle in each. */
static bool find_known(struct fsck *f, const struct fmt_fh *fh, const struct statx *st, char **path)
{
	for (size_t n = 0; n < f->lower_count - f->data_count; n++) {
		autofd int fd = handle_open(f, &f->lowers[n], fh);

		*path = fd >= 0 ? known_path(&f->lowers[n], fd) : NULL;
		if (*path && shows(f, *path, st))
			return true;
		free(take_ptr(*path));
	}
	return false;
}

int origin_path(struct fsck *f, const struct fmt_fh *fh, mode_t type, char **path)
{
	size_t layer;
	autofd int fd = handle_open_lower(f, fh, &layer);
	struct statx st;
	struct search search = { .f = f, .st = &st };
	int err;

	*path = NULL;
	if (fd < 0)
		return fd;
	err = at_statx(fd, "", &st);
	if (err < 0)
		return err;
	if ((st.stx_mode & S_IFMT) != type)
		return -ESTALE;
	if (find_known(f, fh, &st, path))
		return 0;
	/* Where a directory is the kernel always knows. */
	if (S_ISDIR(st.stx_mode))
		return -ESTALE;
	for (size_t n = 0; n < f->lower_count - f->data_count && !search.found; n++)
		if (f->lowers[n].dev == makedev(st.stx_dev_major, st.stx_dev_minor))
			search_below(&search, f->lowers[n].root->fd, "", SEARCH_DEPTH);
	*path = search.found;
	if (*path)
		return 0;
	return search.err < 0 ? search.err : -ESTALE;
}
