// SPDX-License-Identifier: MIT
/*
 * Reading directories. A reader has no state here: what he is given depends on the directory and an
 * offset only (dirlist.h).
 */
#include "overlay/dirlist.h"

int dir_check_empty(struct ovl *o, struct ovl_inode *dir, bool *whiteouts)
{
	struct dirlist *list;
	int err = dirlist_read(o, dir, true, &list);

	if (err < 0)
		return err;
	*whiteouts = list->upper_whiteouts;
	err = list->shown || list->stuck ? -ENOTEMPTY : 0;
	dirlist_put(list);
	return err;
}

/* The union's number of an entry, and whether it has an origin. False: it was removed meanwhile. */
static bool entry_ino(struct ovl *o, struct ovl_inode *dir, const struct dirlist *list,
		      const struct dirlist_entry *e, uint64_t *ino, bool *origin)
{
	const char *name = dirlist_name(list, e);
	struct ovl_inode *i = name_find(o, dir, name, e->len);
	struct looked_up l;
	int err;

	*origin = false;
	if (i) {
		*ino = i->ino;
		*origin = inode_has(i, INODE_ORIGIN);
		inode_put(o, i);
		return true;
	}
	*ino = ino_compose(o, o->layers[e->layer].dev, e->ino);
	if (e->layer != 0 || !(e->lower_too || list->impure || inode_has(dir, INODE_IMPURE)))
		return true;
	/* An upper object may have come from below, and shows that number. */
	err = lookup_real(o, dir, name, &l);
	if (err < 0)
		return err != -ENOENT;
	*ino = l.ino;
	*origin = l.flags & INODE_ORIGIN;
	looked_up_free(&l);
	return true;
}

int dir_list(struct ovl *o, struct ovl_inode *dir, dir_visit visit, void *ctx)
{
	struct dirlist *list;
	int err = dirlist_read(o, dir, true, &list);

	if (err < 0)
		return err;
	for (uint32_t n = 0; n < list->shown; n++) {
		const struct dirlist_entry *e = dirlist_at(list, n);
		uint64_t ino;
		bool origin;

		if (entry_ino(o, dir, list, e, &ino, &origin) &&
		    !visit(ctx, dirlist_name(list, e), e->len, ino, e->type))
			break;
	}
	dirlist_put(list);
	return 0;
}

static uint64_t parent_ino(struct ovl *o, struct ovl_inode *dir)
{
	uint64_t ino = dir->ino;

	pthread_rwlock_rdlock(&o->topology);
	if (dir->names)
		ino = dir->names->parent->ino;
	pthread_rwlock_unlock(&o->topology);
	return ino;
}

static bool fill_dots(struct ovl *o, struct ovl_inode *dir, off_t *off, ovl_filldir fill, void *ctx)
{
	static const char *const names[] = { ".", ".." };

	for (; *off < COOKIE_DOT_DOT; ++*off) {
		struct ovl_dirent e = {
			.name = names[*off],
			.name_len = (size_t)*off + 1,
			.ino = *off ? parent_ino(o, dir) : dir->ino,
			.type = DT_DIR,
			.next = *off ? COOKIE_DOT_DOT : COOKIE_DOT,
		};

		if (!fill(ctx, &e))
			return false;
	}
	return true;
}

/* One entry with its inode. Returns 1 when it is to be skipped. */
static int look_entry(struct ovl *o, struct ovl_inode *dir, const char *name, bool *origin,
		      struct ovl_entry *out)
{
	struct ovl_inode *i = NULL;
	int err = lookup_entry(o, dir, name, &i, out);

	if (err == 0)
		*origin = inode_has(i, INODE_ORIGIN);
	inode_put(o, i);
	return err == -ENOENT ? 1 : err;
}

/* One call of ovl_readdir(). */
struct pass {
	struct ovl *o;
	struct ovl_inode *dir;
	const struct dirlist *list;
	bool plus;
	ovl_filldir fill;
	void *ctx;
	bool origin_seen;
};

static bool fill_entry(struct pass *p, uint32_t index)
{
	const struct dirlist_entry *e = dirlist_at(p->list, index);
	const char *name = dirlist_name(p->list, e);
	bool origin = false;
	struct ovl_entry entry;
	struct ovl_dirent d = {
		.name = name,
		.name_len = e->len,
		.type = e->type,
		.next = e->cookie,
	};

	if (p->plus) {
		int err = look_entry(p->o, p->dir, name, &origin, &entry);

		if (err > 0) /* removed since the list was made */
			return true;
		if (err == 0) {
			d.entry = &entry;
			d.ino = entry.attr.stx_ino;
			d.type = IFTODT(entry.attr.stx_mode);
		}
	}
	if (!d.entry && !entry_ino(p->o, p->dir, p->list, e, &d.ino, &origin))
		return true;
	p->origin_seen |= origin;
	if (p->fill(p->ctx, &d))
		return true;
	if (d.entry)
		ovl_forget(p->o, entry.node, 1);
	return false;
}

/* As the kernel does: who has read an impure directory to the end knows whether it still is. */
static void end_of_pass(struct ovl *o, struct ovl_inode *dir, const struct dirlist *list)
{
	if (atomic_load(&list->pure) == list->shown && inode_has(dir, INODE_UPPER) &&
	    inode_has(dir, INODE_IMPURE) && !inode_has(dir, INODE_ORPHAN) && !inode_lowers(dir))
		unmark_impure(o, dir, list->version);
}

static bool count_dir(void *ctx, const char *name, size_t len, uint64_t ino, unsigned int type)
{
	uint32_t *links = ctx;

	*links += type == DT_DIR;
	return true;
}

void links_changed(struct ovl_inode *dir)
{
	uint64_t old = atomic_load(&dir->dir->links);
	uint64_t new;

	do
		new = ((old >> 32) + 1) << 32;
	while (!atomic_compare_exchange_weak(&dir->dir->links, &old, new));
}

int ovl_count_links(struct ovl *o, ovl_node node, uint32_t *out)
{
	int err;
	struct ovl_inode *dir = inode_get_dir(o, node, &err);
	uint64_t known;

	if (!dir)
		return err;
	known = atomic_load(&dir->dir->links);
	*out = (uint32_t)known;
	if (!*out) {
		*out = 2;
		err = dir_list(o, dir, count_dir, out);
		/* Not when it changed meanwhile. */
		if (err == 0)
			atomic_compare_exchange_strong(&dir->dir->links, &known, known | *out);
	}
	inode_put(o, dir);
	return err;
}

/* Entries from @first on, up to but not including @end, are known to have no origin. */
static void note_pure(struct dirlist *list, uint32_t first, uint32_t end)
{
	uint32_t pure = atomic_load(&list->pure);

	while (first <= pure && end > pure)
		if (atomic_compare_exchange_weak(&list->pure, &pure, end))
			break;
}

int ovl_readdir(struct ovl *o, ovl_node node, off_t off, bool plus, ovl_filldir fill, void *ctx)
{
	int err = off < 0 ? -EINVAL : 0;
	struct ovl_inode *dir = err ? NULL : inode_get_dir(o, node, &err);
	struct pass p = { .o = o, .dir = dir, .plus = plus, .fill = fill, .ctx = ctx };
	struct dirlist *list;
	uint32_t first;
	uint32_t n;

	if (!dir)
		return err;
	err = dirlist_get(o, dir, off == 0, &list);
	if (err < 0) {
		inode_put(o, dir);
		return err;
	}
	p.list = list;
	if (fill_dots(o, dir, &off, fill, ctx)) {
		first = n = dirlist_find(list, off);
		while (n < list->shown && fill_entry(&p, n))
			n++;
		if (!p.origin_seen)
			note_pure(list, first, n);
		if (n == list->shown)
			end_of_pass(o, dir, list);
		if (first == list->shown)
			dirlist_finished(o, list);
	}
	dirlist_put(list);
	inode_put(o, dir);
	return 0;
}
