// SPDX-License-Identifier: MIT
/*
 * Entries: what lookup.c finds in the layers gets an inode, and names and hard links of one object
 * come to the same one.
 */
#include "overlay/index.h"
#include "util/log.h"

/* BTRFS_EMPTY_SUBVOL_DIR_OBJECTID: all that stand for a subvolume that is not in a snapshot. */
#define BTRFS_STUB_INO 2

/* Whether hard links of an object share one inode: not those of lower files that will be broken. */
static bool shares_links(const struct ovl *o, const struct looked_up *l)
{
	if (l->by_lower)
		return true;
	return !l->stack && l->st.stx_nlink > 1 && ((l->flags & INODE_UPPER) || !o->has_upper);
}

/* No layer has such an index. */
#define BY_LOWER ((dev_t)0xffff << 48)

/*
 * Hard links share an inode within one layer only: there each name leads to the object. With an
 * index they share one over all layers.
 */
static dev_t link_key(const struct looked_up *l)
{
	if (l->by_lower)
		return l->lower_dev ^ BY_LOWER;
	return statx_dev(&l->st) ^ (dev_t)l->lower << 48;
}

/* No layer has such an index. */
#define BY_ORIGIN ((dev_t)0xfffe << 48)

/*
 * Upper files may claim one origin, when one was copied with its xattrs: only the first of them has
 * its number, or they would pass for one file.
 */
static void claim_origin(struct ovl *o, struct ovl_inode *i, const struct looked_up *l)
{
	struct ovl_inode *other = link_insert(o, i, l->lower_dev ^ BY_ORIGIN, l->lower_ino);

	if (!other)
		return;
	inode_put(o, other);
	i->ino = ino_compose(o, statx_dev(&l->st), l->st.stx_ino);
}

void entry_linked(struct ovl *o, struct ovl_inode *i, const struct statx *st)
{
	if (inode_has(i, INODE_LINKED) && i->link_dev >> 48 == BY_ORIGIN >> 48)
		link_remove(o, i);
	inode_put(o, link_insert(o, i, statx_dev(st), st->stx_ino));
}

/* @i, found by another name, has one again: the object need not be held open for it any more. */
static void drop_self(struct ovl_inode *i)
{
	if (i->dir || !i->self)
		return;
	layer_ref_put(i->self);
	i->self = NULL;
	inode_clear(i, INODE_ORPHAN);
}

static struct ovl_inode *inode_from(struct ovl *o, struct looked_up *l)
{
	struct ovl_inode *i = inode_new(o, IFTODT(l->st.stx_mode), l->stack);

	if (!i)
		return NULL;
	l->stack = NULL;
	i->data = l->data;
	l->data = NULL;
	i->index = take_ptr(l->index);
	i->flags = l->flags;
	i->lower = (uint16_t)l->lower;
	i->ino = l->ino;
	i->protattr = (uint8_t)l->protattr;
	if (inode_insert(o, i) < 0) {
		inode_put(o, i);
		return NULL;
	}
	return i;
}

/*
 * Redirects made by hand, or copied with a directory, may show one lower directory at two places,
 * with one number, and a loop if one is inside the other. As the kernel does: the one that is in
 * use already is the directory, the other is stale.
 */
static int check_single_place(struct ovl *o, struct ovl_inode *parent, const char *name,
			      struct ovl_inode *i, const struct looked_up *l)
{
	dev_t dev = l->lower_dev ^ (dev_t)i->dir->lower[0].layer << 48;
	struct ovl_inode *other;

	if (l->lower_ino == BTRFS_STUB_INO)
		return 0;
	other = link_insert(o, i, dev, l->lower_ino);
	if (!other)
		return 0;
	inode_put(o, other);
	/* Some filesystems give a number twice. */
	if (!atomic_load_explicit(&o->redirect_seen, memory_order_relaxed))
		return 0;
	log_warning("'%s' is the same lower directory as another that is in use: redirected twice?",
		    name);
	lock_take(&i->lock);
	name_free(o, name_remove(o, i, parent, name, strlen(name)));
	lock_drop(&i->lock);
	return -ESTALE;
}

/* The last name of a file whose others, by which it is still in use, were removed. */
static bool may_be_open(struct ovl *o, const struct looked_up *l)
{
	return !l->stack && ((l->flags & INODE_UPPER) || !o->has_upper) &&
	       atomic_load_explicit(&o->links_orphaned, memory_order_relaxed);
}

/* The inode of what was found, without its name; with a reference. NULL: no memory. */
static struct ovl_inode *find_or_make(struct ovl *o, struct looked_up *l)
{
	dev_t dev = link_key(l);
	uint64_t ino = l->by_lower ? l->lower_ino : l->st.stx_ino;
	bool shared = shares_links(o, l);
	struct ovl_inode *i = shared || may_be_open(o, l) ? link_find(o, dev, ino) : NULL;
	struct ovl_inode *other = NULL;

	if (i)
		return i;
	i = inode_from(o, l);
	if (!i)
		return NULL;
	lock_take(&i->lock);
	if (shared && !i->dir)
		other = link_insert(o, i, dev, ino);
	if (!other)
		index_settle(o, i);
	lock_drop(&i->lock);
	if (!other)
		return i;
	inode_put(o, i);
	return other;
}

/* What is known of @i besides its name may be claimed by another one, too. */
static int settle_claims(struct ovl *o, struct ovl_inode *parent, const char *name,
			 struct ovl_inode *i, const struct looked_up *l)
{
	if (!l->lower_ino)
		return 0;
	if (i->dir)
		return check_single_place(o, parent, name, i, l);
	if (inode_has(i, INODE_UPPER) && !shares_links(o, l))
		claim_origin(o, i, l);
	return 0;
}

int lookup_instantiate(struct ovl *o, struct ovl_inode *parent, const char *name,
		       struct looked_up *l, struct ovl_inode **out)
{
	bool alias = l->lower_alias || !(l->flags & INODE_UPPER);
	struct ovl_inode *other = NULL;
	struct ovl_inode *i;
	struct ovl_name *n = name_new(parent, name, strlen(name));
	int err;

	if (!n)
		return -ENOMEM;
	n->layer = alias ? (uint16_t)l->lower : 0;
	i = find_or_make(o, l);
	if (!i) {
		name_free(o, n);
		return -ENOMEM;
	}
	lock_take(&i->lock);
	name_insert(o, n, i, &other);
	if (!other)
		drop_self(i);
	if (!other && alias && inode_has(i, INODE_INDEXED))
		inode_set(i, INODE_ALIASES);
	lock_drop(&i->lock);
	if (other) { /* somebody else looked the same name up meanwhile */
		inode_put(o, i);
		*out = other;
		return 0;
	}
	err = settle_claims(o, parent, name, i, l);
	if (err < 0)
		inode_put(o, i);
	else
		*out = i;
	return err;
}

int lookup_inode(struct ovl *o, struct ovl_inode *dir, const char *name, struct ovl_inode **out)
{
	struct looked_up l;
	int err;

	*out = name_find(o, dir, name, strlen(name));
	if (*out)
		return 0;
	err = lookup_real(o, dir, name, &l);
	if (err < 0)
		return err;
	err = lookup_instantiate(o, dir, name, &l, out);
	looked_up_free(&l);
	return err;
}

int lookup_entry(struct ovl *o, struct ovl_inode *dir, const char *name, struct ovl_inode **out,
		 struct ovl_entry *entry)
{
	struct looked_up l;
	int err;

	*out = name_find(o, dir, name, strlen(name));
	if (*out)
		return entry_fill(o, *out, entry);
	err = lookup_real(o, dir, name, &l);
	if (err < 0)
		return err;
	err = lookup_instantiate(o, dir, name, &l, out);
	if (err == 0)
		entry_take(o, *out, &l.st, entry);
	looked_up_free(&l);
	return err;
}

int ovl_lookup(struct ovl *o, ovl_node parent, const char *name, struct ovl_entry *out)
{
	struct ovl_inode *i = NULL;
	struct ovl_inode *dir;
	int err;

	if (unlikely(name[0] == '.') && (!name[1] || !strcmp(name, "..")))
		return export_lookup_dots(o, parent, name[1], out);
	dir = inode_get_dir(o, parent, &err);
	if (!dir)
		return err;
	err = lookup_entry(o, dir, name, &i, out);
	if (err == 0)
		index_prefer_name(i, dir, name); /* it is likely to be the one that is used next */
	inode_put(o, i);
	inode_put(o, dir);
	return err;
}
