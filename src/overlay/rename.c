// SPDX-License-Identifier: MIT
/*
 * rename, by the rules of the kernel's ovl_rename(): one rename of the upper filesystem does it
 * all. Where a lower layer shows the old name, that rename leaves a whiteout there, or swaps the
 * object with the whiteout at the new name.
 *
 * A directory that is in a lower layer is renamed with redirect_dir=on only: a redirect says where
 * it is below. Else that is EXDEV, and mv(1) copies.
 */
#include <fcntl.h>

#include "overlay/dirnames.h"
#include "overlay/index.h"
#include "overlay/override.h"
#include "overlay/whfile.h"
#include "util/at.h"

struct renaming {
	struct ovl *o;
	const struct ovl_caller *caller;
	struct ovl_inode *old_dir;
	const char *old_name;
	struct ovl_inode *new_dir;
	const char *new_name;
	bool exchange;
	struct ovl_inode *source;
	struct ovl_inode *target; /* NULL: none */
	struct layer_ref *old_upper;
	struct layer_ref *new_upper;
	struct layer_ref *target_at; /* where the target is, to keep hold of it */
	bool old_in_lower;           /* lower layers show the old name */
	bool whiteout_at_new;
	/*
	 * Nobody knows of anything at the new name, and the kernel has looked before it asked. Only
	 * whether a whiteout is there is left, which the rename itself says.
	 */
	bool presumed_free;
	bool miscounted; /* the target has more links than was known */
};

static bool merged_or_lower(const struct ovl_inode *dir)
{
	return !inode_has(dir, INODE_UPPER) || inode_lowers(dir);
}

static bool may_move(const struct ovl *o, const struct ovl_inode *i)
{
	return o->features.redirect == OVL_REDIRECT_ON || !i->dir || !merged_or_lower(i);
}

/* What cannot be renamed at all. */
static int check(struct renaming *r)
{
	int err = protattr_check(r->old_dir, false);

	if (err == 0)
		err = protattr_check(r->source, false);
	if (err == 0)
		err = protattr_check(r->new_dir, !r->target);
	if (err == 0 && r->target)
		err = protattr_check(r->target, false);
	if (err < 0)
		return err;
	if (!may_move(r->o, r->source) || (r->exchange && !may_move(r->o, r->target)))
		return -EXDEV;
	if (r->exchange)
		return 0;
	if (!r->target)
		return 0;
	if (r->target->dir && !r->source->dir)
		return -EISDIR;
	return r->source->dir && !r->target->dir ? -ENOTDIR : 0;
}

/*
 * A directory to be replaced has to be really empty: one that holds whiteouts is first replaced by
 * an empty opaque one like it, which shows the same. -EXDEV where there is nothing to mark that
 * with that would leave it empty: mv(1) then copies.
 */
static int clear_target(struct renaming *r)
{
	struct ovl *o = r->o;
	int work = layer_fd(o->work);
	char temp[FMT_TEMP_NAME_MAX];
	autoref struct layer_ref *at = NULL;
	struct timespec times[2];
	struct statx st;
	bool opaque = !o->no_xattr;
	int err = dir_ref(o, r->target, 0, false, &at);

	if (err == 0 && !opaque && lower_has(o, r->new_dir, r->new_name, false))
		err = -EXDEV;
	if (err == 0)
		err = layer_stat(at, "", &st);
	if (err < 0)
		return err;
	temp_name(o, temp);
	if (mkdirat(work, temp, 0700) < 0)
		return -errno;
	statx_times(&st, times);
	err = work_copy_owner(o, &st, temp, S_IFDIR);
	if (err == 0)
		err = min(copy_xattrs(o, at, "", work, temp), 0); /* upper holds what it held */
	if (err == 0)
		err = object_own_mode(o, work, temp, st.stx_mode);
	if (err == 0 && opaque)
		err = at_setxattr(work, temp, xname(o, FMT_OPAQUE), "y", 1, 0);
	if (err == 0)
		err = at_utimens(work, temp, times);
	pthread_rwlock_wrlock(&o->topology);
	if (err == 0)
		err = at_rename(work, temp, layer_fd(r->new_upper), r->new_name, RENAME_EXCHANGE);
	if (err == -EINVAL) /* the filesystem cannot exchange */
		err = -EXDEV;
	if (err == 0) { /* the real directory is another one now */
		inode_set(r->target, INODE_OPAQUE);
		fdcache_drop(&o->fds, &r->target->dir->upper.ref);
	}
	pthread_rwlock_unlock(&o->topology);
	work_remove(o, temp);
	return err;
}

/* An object that is renamed is in upper, and by the name that it loses. */
static int bring_up(struct renaming *r, struct ovl_inode *i, struct ovl_inode *dir,
		    const char *name)
{
	int err;

	index_prefer_name(i, dir, name);
	err = copy_up(r->o, r->caller, i, COPY_META);
	return err < 0 ? err : index_link_up(r->o, r->caller, i, dir, name);
}

static int prepare(struct renaming *r)
{
	struct ovl *o = r->o;
	bool replaces_dir = r->target && r->target->dir && !r->exchange;
	bool was_lower = !inode_has(r->source, INODE_UPPER);
	bool whiteouts = false;
	int err = 0;

	if (replaces_dir) /* before anything is copied up for nothing */
		err = dir_check_empty(o, r->target, &whiteouts);
	/* As in the kernel one that only upper has is left to the rename, after all else failed. */
	if (err == -ENOTEMPTY && !merged_or_lower(r->target)) {
		err = 0;
		whiteouts = false; /* beside what must not be cleared away */
	}
	if (err == 0)
		err = bring_up(r, r->source, r->old_dir, r->old_name);
	if (err == 0)
		err = upper_parent(o, r->caller, r->old_dir, &r->old_upper);
	if (err == 0)
		err = upper_parent(o, r->caller, r->new_dir, &r->new_upper);
	if (err == 0 && r->exchange)
		err = bring_up(r, r->target, r->new_dir, r->new_name);
	else if (err == 0 && r->target)
		err = index_prepare_removal(o, r->caller, r->target, r->new_dir, r->new_name);
	if (err == 0 && whiteouts)
		err = clear_target(r);
	if (err < 0)
		return err;
	r->old_in_lower = !r->exchange &&
			  (was_lower || lower_has(o, r->old_dir, r->old_name, false));
	r->whiteout_at_new = !r->exchange && !r->target && !r->presumed_free &&
			     upper_has_whiteout(o, r->new_upper, r->new_name);
	return 0;
}

/*
 * A new directory must not be merged with what lower layers have at its new place. @dir: the
 * directory that will hold it.
 */
static int make_opaque(struct ovl *o, struct ovl_inode *moved, struct ovl_inode *dir,
		       struct layer_ref *upper, const char *name)
{
	int err;

	if (inode_has(moved, INODE_OPAQUE) || !inode_lowers(dir))
		return 0;
	err = opaque_make(o, upper, name);
	if (err < 0)
		return err == -EOPNOTSUPP ? -EXDEV : err;
	inode_set(moved, INODE_OPAQUE);
	return 0;
}

/* What makes an object be the same at its new place. @from: where it is; @to: the other directory.
 */
static int mark_moved(struct renaming *r, struct ovl_inode *moved, struct ovl_inode *from,
		      struct layer_ref *from_upper, const char *name, struct ovl_inode *to,
		      struct layer_ref *to_upper)
{
	struct ovl *o = r->o;
	int err = 0;

	if (moved->dir ? merged_or_lower(moved) : inode_is_metacopy(moved))
		err = redirect_set(o, from, from_upper, name, name,
				   from != to || (!moved->dir && moved->data->linked));
	else if (moved->dir)
		err = make_opaque(o, moved, to, from_upper, name);
	if (err == 0 && inode_has(moved, INODE_ORIGIN))
		err = mark_impure(o, to, to_upper);
	return err;
}

/* Marks that have to be there before the object is. */
static int mark(struct renaming *r)
{
	int err = mark_moved(r, r->source, r->old_dir, r->old_upper, r->old_name, r->new_dir,
			     r->new_upper);

	if (err < 0 || !r->exchange)
		return err;
	return mark_moved(r, r->target, r->new_dir, r->new_upper, r->new_name, r->old_dir,
			  r->old_upper);
}

/*
 * The lower directories of one that is moved stay where they are: their paths, which its names gave
 * until now, are written down. topology is held for writing. On failure *@paths is to be freed.
 */
static int find_lower_paths(struct ovl *o, struct ovl_inode *moved, struct ovl_inode *dir,
			    const char *name, char ***paths)
{
	struct dirstack *stack = moved->dir;
	int err = 0;

	*paths = NULL;
	if (!stack || !stack->lower_count)
		return 0;
	*paths = calloc(stack->lower_count, sizeof(**paths));
	if (!*paths)
		return -ENOMEM;
	for (unsigned int n = 0; n < stack->lower_count && err == 0; n++)
		if (!stack->lower[n].path)
			err = layer_path(o, dir, stack->lower[n].layer, name, true, &(*paths)[n]);
	return err;
}

static void set_lower_paths(struct ovl *o, struct ovl_inode *moved, char **paths)
{
	if (paths)
		atomic_store_explicit(&o->redirect_seen, true, memory_order_relaxed);
	for (unsigned int n = 0; paths && n < moved->dir->lower_count; n++)
		if (paths[n])
			moved->dir->lower[n].path = take_ptr(paths[n]);
}

static void free_lower_paths(struct ovl_inode *moved, char **paths)
{
	for (unsigned int n = 0; paths && n < moved->dir->lower_count; n++)
		free(paths[n]);
	free(paths);
}

/*
 * For filesystems without RENAME_WHITEOUT. A file first gets its new name, then a whiteout takes
 * the old one; a crash between leaves both names.
 */
static int rename_and_hide(struct renaming *r)
{
	struct ovl *o = r->o;
	char temp[FMT_TEMP_NAME_MAX];
	int err;

	if (r->source->dir)
		return -EXDEV;
	temp_name(o, temp);
	err = at_link(layer_fd(r->old_upper), r->old_name, layer_fd(o->work), temp);
	if (err == 0)
		err = at_rename(layer_fd(o->work), temp, layer_fd(r->new_upper), r->new_name, 0);
	if (err == 0)
		err = whiteout_at(o, r->old_dir, r->old_upper, r->old_name, true);
	return err;
}

/*
 * Where whiteouts are files. The old name's is made while the object still beats it, and that of
 * the new name goes when there is an object that does.
 */
static int rename_among_files(struct renaming *r)
{
	struct ovl *o = r->o;
	int hidden = 0;
	int err = 0;

	if (r->old_in_lower)
		hidden = wh_put(o, r->old_dir, r->old_upper, r->old_name);
	if (hidden >= 0 && r->whiteout_at_new)
		err = whiteout_to_file(o, r->new_dir, r->new_upper, r->new_name);
	if (hidden >= 0 && err == 0)
		err = at_rename(layer_fd(r->old_upper), r->old_name, layer_fd(r->new_upper),
				r->new_name, r->exchange ? RENAME_EXCHANGE : 0);
	if (err < 0 && hidden > 0)
		wh_drop(o, r->old_dir, r->old_upper, r->old_name);
	return min(hidden, err);
}

static int rename_real(struct renaming *r)
{
	int from = layer_fd(r->old_upper);
	int to = layer_fd(r->new_upper);
	bool swap = r->exchange;
	bool remove_whiteout = false;
	unsigned int flags = r->presumed_free ? RENAME_NOREPLACE : 0;
	int err;

	names_expect(r->o, r->new_dir, r->new_name);
	names_expect(r->o, r->old_dir, r->old_name);
	if (r->o->whiteouts_are_files)
		return rename_among_files(r);
	if (r->old_in_lower && !r->whiteout_at_new) {
		err = at_rename(from, r->old_name, to, r->new_name, flags | RENAME_WHITEOUT);
		return err == -EINVAL && !flags ? rename_and_hide(r) : err;
	}
	if (r->old_in_lower)
		swap = true; /* the whiteout of the new name becomes the old one's */
	else if (r->whiteout_at_new && r->source->dir)
		swap = remove_whiteout = true; /* a directory cannot replace it */
	err = at_rename(from, r->old_name, to, r->new_name, swap ? RENAME_EXCHANGE : flags);
	if (err == 0 && remove_whiteout)
		at_unlink(from, r->old_name, 0);
	return err;
}

/*
 * The names in memory follow. Locks of all four are held. The new names come before the old ones
 * go, so that at no moment a lookup finds neither, and takes the object for another.
 */
static void rename_known(struct renaming *r, struct ovl_name *new_name, struct ovl_name *swapped,
			 struct layer_ref **target_self)
{
	struct ovl *o = r->o;
	size_t old_len = strlen(r->old_name);
	size_t new_len = strlen(r->new_name);

	name_insert_over(o, new_name, r->source);
	if (r->exchange) {
		name_insert_over(o, swapped, r->target);
		name_free(o, name_remove(o, r->target, r->new_dir, r->new_name, new_len));
	} else if (r->target) {
		orphan_commit(o, r->target, r->new_dir, r->new_name, target_self);
	}
	name_free(o, name_remove(o, r->source, r->old_dir, r->old_name, old_len));
}

static void lock_ordered(struct ovl_inode *a, struct ovl_inode *b)
{
	if (b && b < a) {
		lock_take(&b->lock);
		lock_take(&a->lock);
		return;
	}
	lock_take(&a->lock);
	if (b && b != a)
		lock_take(&b->lock);
}

static void unlock_ordered(struct ovl_inode *a, struct ovl_inode *b)
{
	lock_drop(&a->lock);
	if (b && b != a)
		lock_drop(&b->lock);
}

/* The objects' locks: directories before the others. */
static void lock_objects(struct ovl_inode *source, struct ovl_inode *target)
{
	if (target && !source->dir == !target->dir) {
		lock_ordered(source, target);
	} else if (target && target->dir) {
		lock_take(&target->lock);
		lock_take(&source->lock);
	} else {
		lock_take(&source->lock);
		if (target)
			lock_take(&target->lock);
	}
}

static bool busy(const struct ovl_inode *i)
{
	return i && inode_has(i, INODE_COPYING);
}

/* Under all locks. -EAGAIN: a copy-up has come in between. */
static int rename_locked(struct renaming *r, struct ovl_name *new_name, struct ovl_name *swapped,
			 bool *names_used, struct layer_ref **target_self)
{
	struct ovl_inode *target = r->target;
	char **source_paths = NULL;
	char **target_paths = NULL;
	int err;

	if (busy(r->source) || busy(target))
		return -EAGAIN;
	err = find_lower_paths(r->o, r->source, r->old_dir, r->old_name, &source_paths);
	if (err == 0 && r->exchange)
		err = find_lower_paths(r->o, target, r->new_dir, r->new_name, &target_paths);
	if (err == 0 && target && !r->exchange && !target->self) {
		if (r->target_at->layer->index != inode_top_layer(target))
			err = -EAGAIN;
		else
			err = orphan_prepare(r->o, target, r->target_at,
					     target->dir ? "" : r->new_name, target_self);
	}
	if (err == 0)
		err = mark(r);
	if (err == 0 && target && !r->exchange)
		err = index_nlink_start(r->o, target);
	if (err == 0)
		err = rename_real(r);
	if (err == 0) {
		*names_used = true;
		if (!r->exchange)
			wh_drop(r->o, r->new_dir, r->new_upper, r->new_name);
		set_lower_paths(r->o, r->source, source_paths);
		if (r->exchange)
			set_lower_paths(r->o, target, target_paths);
		rename_known(r, new_name, swapped, target_self);
		if (target && !r->exchange)
			r->miscounted = !index_nlink_removed(r->o, target);
	}
	free_lower_paths(r->source, source_paths);
	if (target)
		free_lower_paths(target, target_paths);
	return err;
}

static int find_target(struct renaming *r)
{
	struct ovl *o = r->o;
	struct ovl_inode *target = r->target;

	layer_ref_put(take_ref(&r->target_at));
	if (!target || r->exchange)
		return 0;
	if (target->dir)
		return dir_ref(o, target, inode_top_layer(target), false, &r->target_at);
	return dir_ref(o, r->new_dir, inode_top_layer(target), false, &r->target_at);
}

static int wait_idle(struct ovl *o, const struct ovl_caller *caller, struct ovl_inode *i)
{
	int err;

	if (!i)
		return 0;
	lock_take(&i->lock);
	err = copyup_wait(o, caller, i);
	lock_drop(&i->lock);
	return err;
}

static int rename_inodes(struct renaming *r)
{
	struct ovl *o = r->o;
	struct ovl_name *new_name = name_new(r->new_dir, r->new_name, strlen(r->new_name));
	struct ovl_name *swapped =
		r->exchange ? name_new(r->old_dir, r->old_name, strlen(r->old_name)) : NULL;
	struct layer_ref *target_self = NULL;
	bool moves_dir = r->source->dir || (r->target && r->target->dir);
	bool names_used = false;
	int err = new_name && (swapped || !r->exchange) ? 0 : -ENOMEM;

	while (err == 0) {
		err = wait_idle(o, r->caller, r->source);
		if (err == 0)
			err = wait_idle(o, r->caller, r->target);
		if (err == 0)
			err = find_target(r);
		if (err < 0)
			break;
		if (moves_dir)
			pthread_rwlock_wrlock(&o->topology);
		else
			pthread_rwlock_rdlock(&o->topology);
		lock_ordered(r->old_dir, r->new_dir);
		lock_objects(r->source, r->target);
		err = rename_locked(r, new_name, swapped, &names_used, &target_self);
		lock_drop(&r->source->lock);
		if (r->target)
			lock_drop(&r->target->lock);
		unlock_ordered(r->old_dir, r->new_dir);
		pthread_rwlock_unlock(&o->topology);
		if (err != -EAGAIN)
			break;
		err = 0;
	}
	if (!names_used) {
		name_free(o, new_name);
		name_free(o, swapped);
	}
	layer_ref_put(target_self);
	return err;
}

/* What is at the new name: looked for in the layers unless it is presumed to be free. */
static int find_replaced(struct renaming *r, unsigned int flags)
{
	struct ovl *o = r->o;
	int err;

	r->target = name_find(o, r->new_dir, r->new_name, strlen(r->new_name));
	if (!r->target && r->presumed_free)
		return 0;
	r->presumed_free = false;
	err = r->target ? 0 : lookup_inode(o, r->new_dir, r->new_name, &r->target);
	if (err == -ENOENT && !r->exchange)
		return 0;
	if (err < 0)
		return err;
	return flags & RENAME_NOREPLACE ? -EEXIST : 0;
}

static int find_objects(struct renaming *r, unsigned int flags)
{
	int err = name_check(r->o, r->new_name);

	if (err == 0)
		err = lookup_inode(r->o, r->old_dir, r->old_name, &r->source);
	return err < 0 ? err : find_replaced(r, flags);
}

static int rename_found(struct renaming *r)
{
	int err;

	if (r->source == r->target) /* two names of one object: nothing to do */
		return 0;
	err = check(r);
	if (err == 0)
		err = prepare(r);
	return err < 0 ? err : rename_inodes(r);
}

/* Something was there, perhaps a whiteout; or the filesystem knows no RENAME_NOREPLACE. */
static int rename_again(struct renaming *r, unsigned int flags)
{
	int err;

	layer_ref_put(take_ref(&r->target_at));
	layer_ref_put(take_ref(&r->old_upper));
	layer_ref_put(take_ref(&r->new_upper));
	r->presumed_free = false;
	err = find_replaced(r, flags);
	return err < 0 ? err : rename_found(r);
}

int ovl_rename(struct ovl *o, const struct ovl_caller *caller, ovl_node parent, const char *name,
	       ovl_node newparent, const char *newname, unsigned int flags)
{
	struct renaming r = {
		.o = o,
		.caller = caller,
		.old_name = name,
		.new_name = newname,
		.exchange = flags & RENAME_EXCHANGE,
		.presumed_free = !(flags & RENAME_EXCHANGE) && !o->whiteouts_are_files,
	};
	int err;

	if ((flags & ~(unsigned int)(RENAME_NOREPLACE | RENAME_EXCHANGE)) ||
	    flags == (RENAME_NOREPLACE | RENAME_EXCHANGE))
		return -EINVAL;
	if (!o->has_upper)
		return -EROFS;
	r.old_dir = inode_get_dir(o, parent, &err);
	if (r.old_dir)
		r.new_dir = inode_get_dir(o, newparent, &err);
	if (r.new_dir)
		err = find_objects(&r, flags);
	if (err == 0) {
		err = rename_found(&r);
		if (r.presumed_free && (err == -EEXIST || err == -EINVAL))
			err = rename_again(&r, flags);
		if (r.source->dir || (r.target && r.target->dir)) {
			links_changed(r.old_dir);
			links_changed(r.new_dir);
		}
		if (r.miscounted)
			attr_notify(o, r.target, false);
		/* ext4 made the whiteout before it refused, and the directory is changed. */
		if (err < 0 && r.old_in_lower)
			attr_notify(o, r.old_dir, false);
	}
	layer_ref_put(r.target_at);
	layer_ref_put(r.old_upper);
	layer_ref_put(r.new_upper);
	inode_put(o, r.source);
	inode_put(o, r.target);
	inode_put(o, r.old_dir);
	inode_put(o, r.new_dir);
	return err;
}
