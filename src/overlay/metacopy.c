// SPDX-License-Identifier: MIT
/*
 * Files whose topmost object holds the attributes only: where their data is, and the redirects that
 * lead there from wherever they are moved to.
 *
 * A data-only layer is searched at the first use, not at lookup: images have many files and few of
 * them are read.
 */
#include <linux/limits.h>

#include "overlay/internal.h"
#include "util/at.h"
#include "util/log.h"

/* The kernel's module parameter redirect_max; readers take any length. */
#define REDIRECT_MAX 256

struct data_place *data_place_new(unsigned int layer, const char *path, uint64_t blocks)
{
	size_t size = strlen(path) + 1;
	struct data_place *data = calloc(1, sizeof(*data) + size);

	if (!data)
		return NULL;
	data->layer = (uint16_t)layer;
	data->blocks = blocks;
	memcpy(data->path, path, size);
	return data;
}

/*
 * Takes ".." out of a path in a data-only layer, which the kernel follows there as long as it stays
 * beneath the root; what it is taken from has to be a directory. Layers are opened without any.
 */
static int take_out_dotdot(struct ovl *o, unsigned int layer, char *path)
{
	char *end = path; /* of what is kept; what is left begins at @in */

	bool more = *path;

	for (char *in = path; more;) {
		size_t len = strcspn(in, "/");
		bool dotdot = len == 2 && !memcmp(in, "..", 2);

		more = in[len]; /* what is kept may be written over its end */
		if (dotdot) {
			autoref struct layer_ref *dir = NULL;
			struct statx st;
			int err;

			if (end == path)
				return -EXDEV;
			end[-1] = '\0';
			err = open_path(o, layer_ref_get(o->layers[layer].root), path,
					LAYER_OPEN_PATH, &dir);
			if (err == 0)
				err = layer_stat(dir, "", &st);
			if (err == 0 && !S_ISDIR(st.stx_mode))
				err = S_ISLNK(st.stx_mode) ? -ELOOP : -ENOTDIR;
			if (err < 0)
				return err;
			for (end--; end > path && end[-1] != '/';)
				end--;
		} else if (len != 1 || *in != '.') {
			memmove(end, in, len);
			end += len;
			*end++ = '/';
		}
		in += len + 1;
	}
	if (end > path)
		end--;
	*end = '\0';
	return end > path ? 0 : -ENOENT;
}

/* Devices and pipes must not even be opened. */
static int open_regular(struct ovl *o, unsigned int layer, const char *path, struct statx *st,
			struct layer_ref **out)
{
	autofree char *plain = strstr(path, "..") ? malloc(strlen(path) + 2) : NULL;
	autoref struct layer_ref *found = NULL;
	int err = 0;

	if (strstr(path, "..")) {
		if (!plain)
			return -ENOMEM;
		memcpy(plain, path, strlen(path) + 1);
		err = take_out_dotdot(o, layer, plain);
	}
	if (err == 0)
		err = open_path(o, layer_ref_get(o->layers[layer].root), plain ? plain : path,
				LAYER_OPEN_PATH, &found);
	if (err == 0)
		err = layer_stat(found, "", st);
	if (err == 0 && !S_ISREG(st->stx_mode))
		err = -ENOENT;
	return err < 0 ? err : open_ref(o, found, "", LAYER_OPEN_READ, out);
}

/* In the data-only layers, topmost first. */
static int find_and_open(struct ovl *o, struct data_place *data, struct layer_ref **out)
{
	int err = -ENOENT;

	for (unsigned int n = 1; n <= o->data_count; n++) {
		unsigned int layer = o->lower_count + n;
		struct statx st;

		err = open_regular(o, layer, data->path, &st, out);
		if (err == 0) {
			data->blocks = st.stx_blocks;
			data->layer = (uint16_t)layer;
			return 0;
		}
	}
	log_warning("no data-only layer has the data of a metacopy: /%s: %s", data->path,
		    strerror(-err));
	return err;
}

int data_open(struct ovl *o, struct data_place *data, struct layer_ref **out)
{
	unsigned int layer = data->layer;
	struct statx st;
	int err;

	if (!layer)
		return find_and_open(o, data, out);
	err = open_regular(o, layer, data->path, &st, out);
	/* It was there at lookup. */
	return err == -ENOENT || err == -ENOTDIR || err == -ELOOP ? -ESTALE : err;
}

int data_find(struct ovl *o, struct data_place *data)
{
	autoref struct layer_ref *file = NULL;

	return data->layer ? 0 : find_and_open(o, data, &file);
}

uint64_t data_blocks(struct data_place *data, uint64_t size)
{
	/* As the kernel, as long as nobody knows. */
	return data->layer ? data->blocks : (size + 4095) / 4096 * 8;
}

ssize_t redirect_read(struct ovl *o, struct layer_ref *at, const char *name, char **out)
{
	autofree char *value = NULL;
	ssize_t size = mark_get(o, at, name, FMT_REDIRECT, NULL, 0);

	if (size < 0)
		return size == -EOPNOTSUPP ? -ENODATA : size;
	value = malloc((size_t)size + 1);
	if (!value)
		return -ENOMEM;
	size = mark_get(o, at, name, FMT_REDIRECT, value, (size_t)size);
	if (size < 0)
		return size;
	value[size] = '\0';
	*out = take_ptr(value);
	return size;
}

/* The redirect of an upper object; NULL: it has none that is valid. Owned by the caller. */
static int redirect_get(struct ovl *o, struct layer_ref *at, const char *name, char **out)
{
	ssize_t size;

	*out = NULL;
	size = redirect_read(o, at, name, out);
	if (size < 0)
		return size == -ENODATA ? 0 : (int)size;
	if (fmt_redirect_check(*out, (size_t)size) < 0)
		free(take_ptr(*out));
	return 0;
}

/* A path that is put together from its end. */
struct path_end {
	char text[REDIRECT_MAX + 1];
	size_t start;
};

static int prepend(struct path_end *p, const char *part)
{
	size_t len = strlen(part);

	if (len > p->start)
		return -EXDEV;
	p->start -= len;
	memcpy(p->text + p->start, part, len);
	return 0;
}

/* One component, which may bring a whole path with it: then *@whole is set. */
static int prepend_component(struct path_end *p, const char *name, const char *redirect,
			     bool *whole)
{
	int err = prepend(p, redirect ? redirect : name);

	*whole = redirect && *redirect == '/';
	return err < 0 || *whole ? err : prepend(p, "/");
}

/* The path by which @i is found in the lower layers: what its ancestors are redirected to counts.
 */
static int absolute_redirect(struct ovl *o, struct ovl_inode *dir, const char *name,
			     const char *own, struct path_end *p)
{
	bool whole;
	int err;

	p->start = REDIRECT_MAX;
	p->text[REDIRECT_MAX] = '\0';
	err = prepend_component(p, name, own, &whole);
	for (struct ovl_inode *d = dir; err == 0 && !whole && d != o->root; d = d->names->parent) {
		autoref struct layer_ref *upper = NULL;
		autofree char *redirect = NULL;

		if (!d->names || d->self)
			return -ESTALE;
		if (inode_has(d, INODE_UPPER)) {
			err = dir_ref(o, d, 0, true, &upper);
			if (err == 0)
				err = redirect_get(o, upper, "", &redirect);
		}
		if (err == 0)
			err = prepend_component(p, d->names->text, redirect, &whole);
	}
	return err;
}

int redirect_set(struct ovl *o, struct ovl_inode *dir, struct layer_ref *at, const char *at_name,
		 const char *name, bool absolute)
{
	autofree char *own = NULL;
	struct path_end path;
	const char *value = name;
	int err = redirect_get(o, at, at_name, &own);

	if (err < 0)
		return err;
	if (own && (!absolute || *own == '/'))
		return 0;
	if (absolute) {
		err = absolute_redirect(o, dir, name, own, &path);
		value = path.text + path.start;
	}
	if (err == 0)
		err = mark_set(o, at, at_name, FMT_REDIRECT, value, strlen(value));
	/* mv(1) copies then */
	return err == -EOPNOTSUPP || err == -ENOSPC || err == -ERANGE ? -EXDEV : err;
}
