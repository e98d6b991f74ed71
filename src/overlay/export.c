// SPDX-License-Identifier: MIT
/*
 * nfs_export: objects by what outlives this union. An object is known by its number, which is that
 * of the lower object if it came from there, and by a hash of that object's file handle, which says
 * whether it is still the one that had the number.
 *
 * From a number to the object: survey.c knows the names, and they are looked up one by one from the
 * root. That comes unexpected, not as a lookup by the kernel, which does nothing else with that
 * name meanwhile: see look_unasked().
 */
#include "overlay/index.h"
#include "overlay/survey.h"
#include "util/hash.h"

/* Any: but it must never change, or all handles that clients have become stale. */
#define GENERATION_SEED 0x706c7966732d6678ULL

/* Not of the uuid in it, which depends on uuid= and on what a kernel tells. */
static uint32_t generation_of(const struct fmt_fh *fh)
{
	return (uint32_t)hash_bytes(GENERATION_SEED ^ fh->type, (const char *)fh->fid, fh->fid_len);
}

/* The lower object that an index entry is of: its handle is the name. */
static int entry_handle(const struct index_entry *entry, struct fmt_fh *fh)
{
	uint8_t encoded[FMT_FH_MAX];
	ssize_t size = fmt_index_name_decode(entry->name, encoded);

	return size < 0 ? (int)size : fmt_fh_decode(encoded, (size_t)size, fh);
}

/*
 * The real object whose number is the union's, of what has no index entry. While a directory is
 * copied up it is in upper before it has its entry.
 */
static int reach_identity(struct ovl *o, struct ovl_inode *i, struct fmt_fh *fh)
{
	autoref struct layer_ref *lower = NULL;
	struct reach r;
	int err;

	if (i->dir && i->dir->lower_count && inode_has(i, INODE_COPYING)) {
		err = dir_ref(o, i, i->dir->lower[0].layer, false, &lower);
		return err < 0 ? err : lower->layer->ops->handle(lower, "", fh);
	}
	err = reach(o, i, &r);
	if (err < 0)
		return err;
	err = r.at->layer->ops->handle(r.at, r.name, fh);
	reach_done(i, &r);
	return err;
}

static int identify(struct ovl *o, struct ovl_inode *i, struct fmt_fh *fh)
{
	int err;

	if (inode_has(i, INODE_INDEXED))
		return entry_handle(i->index, fh);
	err = reach_identity(o, i, fh);
	/* Copied up meanwhile: what was found may be the copy. */
	return inode_has(i, INODE_INDEXED) ? entry_handle(i->index, fh) : err;
}

int ovl_identify(struct ovl *o, ovl_node node, struct ovl_identity *out)
{
	struct ovl_inode *i = inode_get(o, node);
	struct fmt_fh fh;
	int err;

	if (!i)
		return -ESTALE;
	out->number = i->ino;
	err = identify(o, i, &fh);
	if (err == 0)
		out->generation = generation_of(&fh);
	inode_put(o, i);
	return err;
}

/*
 * Lookups rely on the kernel, which does not change a name that it looks up. Nobody vouches for
 * that here, so what was found is only believed if nothing in the directory went or moved, and
 * nothing was copied up, until it has an inode.
 */
static int look_unasked(struct ovl *o, struct ovl_inode *dir, const char *name,
			struct ovl_inode **out)
{
	for (unsigned int tries = 0; tries < 1000; tries++) {
		uint32_t changes = atomic_load(&dir->changes);
		uint64_t copied_up = atomic_load(&o->copied_up);
		struct looked_up l;
		bool still;
		int err;

		*out = name_find(o, dir, name, strlen(name));
		if (*out)
			return 0;
		err = lookup_real(o, dir, name, &l);
		if (err < 0)
			return err;
		lock_take(&dir->lock);
		still = atomic_load(&dir->changes) == changes &&
			atomic_load(&o->copied_up) == copied_up && !inode_has(dir, INODE_ORPHAN);
		if (still)
			err = lookup_instantiate(o, dir, name, &l, out);
		lock_drop(&dir->lock);
		looked_up_free(&l);
		if (still)
			return err;
	}
	return -ESTALE;
}

/* -ESTALE: something on the way is not there, and the survey has been told. */
static int descend(struct ovl *o, const struct places_path *path, struct ovl_inode **out)
{
	struct ovl_inode *dir = o->root;
	const char *name = path->names;

	atomic_fetch_add_explicit(&dir->refs, 1, memory_order_relaxed);
	for (size_t n = 0; n < path->depth; n++) {
		struct ovl_inode *i = NULL;
		uint64_t parent = dir->ino;
		int err = dir->dir ? look_unasked(o, dir, name, &i) : -ENOTDIR;

		inode_put(o, dir);
		if (err == 0 && i->ino != path->numbers[n]) {
			inode_put(o, i);
			err = -ESTALE;
		}
		if (err == -ENOENT || err == -ESTALE || err == -ENOTDIR) {
			survey_correct(o->survey, path->numbers[n], parent, name);
			return -ESTALE;
		}
		if (err < 0)
			return err;
		dir = i;
		name += strlen(name) + 1;
	}
	*out = dir;
	return 0;
}

/* How often something may be moved away while it is looked for. */
#define MOST_TRIES 16

static int resolve(struct ovl *o, const struct ovl_caller *caller, uint64_t number,
		   struct ovl_inode **out)
{
	int err = -ESTALE;

	for (unsigned int tries = 0; err == -ESTALE && tries < MOST_TRIES; tries++) {
		struct places_path path;

		err = survey_find(o->survey, caller, number, &path);
		if (err < 0)
			return err;
		err = descend(o, &path, out);
		places_path_free(&path);
	}
	return err;
}

int ovl_resolve(struct ovl *o, const struct ovl_caller *caller, uint64_t number,
		struct ovl_entry *out)
{
	struct ovl_inode *i;
	int err;

	if (!o->survey)
		return -EOPNOTSUPP;
	err = resolve(o, caller, number, &i);
	if (err < 0)
		return err;
	err = inode_has(i, INODE_ORPHAN) ? -ESTALE : entry_fill(o, i, out);
	inode_put(o, i);
	return err;
}

static struct ovl_inode *parent_of(struct ovl *o, struct ovl_inode *i)
{
	struct ovl_inode *parent = NULL;

	if (i == o->root)
		parent = i;
	pthread_rwlock_rdlock(&o->topology);
	lock_take(&i->lock);
	if (i->names)
		parent = i->names->parent;
	if (parent)
		atomic_fetch_add_explicit(&parent->refs, 1, memory_order_relaxed);
	lock_drop(&i->lock);
	pthread_rwlock_unlock(&o->topology);
	return parent;
}

int export_lookup_dots(struct ovl *o, ovl_node node, bool parent, struct ovl_entry *out)
{
	struct ovl_inode *i = inode_get(o, node);
	struct ovl_inode *found;
	int err = -ESTALE;

	if (!i)
		return -ESTALE;
	found = parent ? parent_of(o, i) : i;
	if (found && !inode_has(found, INODE_ORPHAN))
		err = entry_fill(o, found, out);
	if (parent)
		inode_put(o, found);
	inode_put(o, i);
	return err;
}
