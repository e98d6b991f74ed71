// SPDX-License-Identifier: MIT
/* The lower layers, read as a union of their own. */
#include <string.h>
#include <sys/sysmacros.h>

#include "fsck/private.h"

static void below_nothing(struct below *b)
{
	*b = (struct below){ .kind = BELOW_NOTHING };
}

void below_root(struct fsck *f, struct below *b)
{
	below_nothing(b);
	if (!f->below)
		return;
	b->kind = BELOW_DIR;
	b->node = OVL_ROOT;
	b->mode = S_IFDIR;
}

void below_put(struct fsck *f, struct below *b)
{
	if (b->node && b->node != OVL_ROOT)
		ovl_forget(f->below, b->node, 1);
	below_nothing(b);
}

void below_lookup(struct fsck *f, const struct below *dir, const char *name, struct below *out)
{
	struct ovl_entry entry;
	int err;

	below_nothing(out);
	if (dir->kind != BELOW_DIR) {
		if (dir->kind == BELOW_UNKNOWN)
			*out = *dir;
		return;
	}
	err = ovl_lookup(f->below, dir->node, name, &entry);
	if (err == -ENOENT || err == -ENAMETOOLONG)
		return;
	if (err < 0) {
		out->kind = BELOW_UNKNOWN;
		out->err = err;
		return;
	}
	out->kind = S_ISDIR(entry.attr.stx_mode) ? BELOW_DIR : BELOW_OTHER;
	out->node = entry.node;
	out->mode = entry.attr.stx_mode;
	out->size = entry.attr.stx_size;
}

void below_walk(struct fsck *f, const char *path, struct below *out)
{
	below_root(f, out);
	while (*path) {
		size_t len = strcspn(path, "/");
		autofree char *name = strndup(path, len);
		struct below next;

		path += len + (path[len] ? 1 : 0);
		if (!len)
			continue;
		below_nothing(&next);
		if (!name)
			next = (struct below){ .kind = BELOW_UNKNOWN, .err = -ENOMEM };
		else
			below_lookup(f, out, name, &next);
		below_put(f, out);
		*out = next;
	}
}

void below_redirect(struct fsck *f, const struct below *dir, const char *redirect,
		    struct below *out)
{
	if (*redirect == '/')
		below_walk(f, redirect, out);
	else
		below_lookup(f, dir, redirect, out);
}

int below_identify(struct fsck *f, struct below *b)
{
	autofd int fd = -1;
	struct statx st;
	int err;

	if (b->identified)
		return 0;
	if (!b->node)
		return -ENOENT;
	fd = ovl_open_real(f->below, b->node, &b->layer);
	if (fd < 0)
		return fd;
	err = at_statx(fd, "", &st);
	if (err < 0)
		return err;
	b->layer--; /* the union of the lower layers has no upper */
	b->dev = makedev(st.stx_dev_major, st.stx_dev_minor);
	b->ino = st.stx_ino;
	b->nlink = st.stx_nlink;
	b->has_fh = handle_of(f, &f->lowers[b->layer], fd, &b->fh) == 0;
	b->identified = true;
	return 0;
}

char *path_join(const char *dir, const char *name)
{
	char *path;
	bool top = !*dir || !strcmp(dir, ".");

	if (asprintf(&path, "%s%s%s", top ? "" : dir, top ? "" : "/", name) < 0)
		return NULL;
	return path;
}
