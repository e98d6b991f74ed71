// SPDX-License-Identifier: MIT
/*
 * unlink and rmdir. A name that a lower layer shows is replaced by a whiteout in one step; nothing
 * is ever copied up to be removed. An object still in use lives on without a name: it is opened
 * before its last one goes.
 *
 * A crash leaves the name, or a whiteout or nothing in its place, and at most garbage in workdir.
 */
#include <fcntl.h>

#include "overlay/index.h"
#include "overlay/survey.h"
#include "overlay/whfile.h"
#include "util/at.h"

int orphan_prepare(struct ovl *o, struct ovl_inode *i, struct layer_ref *at, const char *name,
		   struct layer_ref **self)
{
	*self = NULL;
	if (!i->names || i->names->next)
		return 0;
	return open_ref(o, at, name, LAYER_OPEN_PATH, self);
}

void orphan_commit(struct ovl *o, struct ovl_inode *i, struct ovl_inode *parent, const char *name,
		   struct layer_ref **self)
{
	name_free(o, name_remove(o, i, parent, name, strlen(name)));
	survey_unnamed(o->survey, i, parent, name, *self);
	if (i->names || i->self)
		return;
	i->self = take_ref(self);
	inode_set(i, INODE_ORPHAN);
	if (inode_has(i, INODE_LINKED))
		atomic_store_explicit(&o->links_orphaned, true, memory_order_relaxed);
}

/* What may not be removed: may_delete() of the kernel, which does not see our flags. */
static int may_remove(struct ovl_inode *dir, struct ovl_inode *i)
{
	int err = protattr_check(dir, false);

	return err < 0 ? err : protattr_check(i, false);
}

static int unlink_inode(struct ovl *o, const struct ovl_caller *caller, struct ovl_inode *dir,
			struct layer_ref *upper, const char *name, struct ovl_inode *i)
{
	autoref struct layer_ref *self = NULL;
	bool hide = !inode_has(i, INODE_UPPER) || lower_has(o, dir, name, false);
	bool counted = true;
	struct reach r;
	int err = reach_in(o, caller, dir, i, &r);

	if (err < 0)
		return err;
	err = orphan_prepare(o, i, r.at, r.name, &self);
	if (err == 0)
		err = index_nlink_start(o, i);
	if (err == 0 && hide)
		err = whiteout_at(o, dir, upper, name, inode_has(i, INODE_UPPER));
	else if (err == 0)
		err = at_unlink(layer_fd(upper), name, 0);
	if (err == 0) {
		orphan_commit(o, i, dir, name, &self);
		counted = index_nlink_removed(o, i);
	}
	reach_in_done(dir, i, &r);
	if (!counted)
		attr_notify(o, i, false);
	/* Somebody changed upper behind our back. */
	return err == -EEXIST || err == -ENOENT ? -ESTALE : err;
}

int ovl_unlink(struct ovl *o, const struct ovl_caller *caller, ovl_node parent, const char *name)
{
	autoref struct layer_ref *upper = NULL;
	struct ovl_inode *i = NULL;
	int err;
	struct ovl_inode *dir = inode_get_dir(o, parent, &err);

	if (!dir)
		return err;
	err = lookup_inode(o, dir, name, &i);
	if (err == 0 && i->dir)
		err = -EISDIR;
	if (err == 0)
		err = may_remove(dir, i);
	if (err == 0)
		err = upper_parent(o, caller, dir, &upper);
	if (err == 0)
		err = index_prepare_removal(o, caller, i, dir, name);
	if (err == 0)
		err = unlink_inode(o, caller, dir, upper, name, i);
	inode_put(o, i);
	inode_put(o, dir);
	return err;
}

/*
 * Takes an upper directory out of its place. What is left of it, whiteouts perhaps, is then in work
 * under
 * @left, if that is not empty.
 */
static int take_upper_dir(struct ovl *o, struct ovl_inode *parent, struct layer_ref *upper,
			  const char *name, bool hide, bool whiteouts, char left[FMT_TEMP_NAME_MAX])
{
	int work = layer_fd(o->work);
	int dir = layer_fd(upper);
	unsigned int flags = 0;
	int err = 0;

	left[0] = '\0';
	if (hide && o->whiteouts_are_files) {
		err = wh_put(o, parent, upper, name);
		if (err < 0)
			return err;
		hide = false;
	}
	if (!hide && !whiteouts)
		return at_unlink(dir, name, AT_REMOVEDIR);
	if (hide) {
		err = whiteout_make(o, left);
		flags = RENAME_EXCHANGE;
	} else {
		temp_name(o, left);
	}
	if (err < 0)
		return err;
	err = at_rename(dir, name, work, left, flags);
	if (err == -EACCES) { /* ".." cannot be changed in a directory that we may not write */
		at_chmod(dir, name, 0700);
		err = at_rename(dir, name, work, left, flags);
	}
	if (err < 0) {
		if (hide)
			at_unlink(work, left, 0);
		left[0] = '\0';
	}
	return err;
}

/* ovl.topology is held for writing. */
static int rmdir_locked(struct ovl *o, struct ovl_inode *dir, struct layer_ref *upper,
			const char *name, struct ovl_inode *i, bool hide, bool whiteouts,
			char left[FMT_TEMP_NAME_MAX])
{
	autoref struct layer_ref *self = NULL;
	int err = dir_ref(o, i, inode_top_layer(i), true, &self);

	if (err < 0)
		return err;
	lock_take(&dir->lock);
	lock_take(&i->lock);
	if (inode_has(i, INODE_COPYING) || self->layer->index != inode_top_layer(i))
		err = -EAGAIN;
	else if (!inode_has(i, INODE_UPPER))
		err = whiteout_at(o, dir, upper, name, false);
	else
		err = take_upper_dir(o, dir, upper, name, hide, whiteouts, left);
	if (err == 0) {
		orphan_commit(o, i, dir, name, &self);
		index_nlink_removed(o, i);
	}
	lock_drop(&i->lock);
	lock_drop(&dir->lock);
	return err;
}

/* @hide: a lower layer shows the name. @whiteouts: the upper directory holds some. */
static int rmdir_inode(struct ovl *o, const struct ovl_caller *caller, struct ovl_inode *dir,
		       struct layer_ref *upper, const char *name, struct ovl_inode *i, bool hide,
		       bool whiteouts)
{
	char left[FMT_TEMP_NAME_MAX] = "";
	int err;

	do {
		lock_take(&i->lock);
		err = copyup_wait(o, caller, i);
		lock_drop(&i->lock);
		if (err < 0)
			return err;
		pthread_rwlock_wrlock(&o->topology);
		err = rmdir_locked(o, dir, upper, name, i, hide, whiteouts, left);
		pthread_rwlock_unlock(&o->topology);
	} while (err == -EAGAIN);
	if (left[0] && at_unlink(layer_fd(o->work), left, AT_REMOVEDIR) < 0)
		work_remove(o, left);
	return err == -EEXIST && !inode_has(i, INODE_UPPER) ? -ESTALE : err;
}

int ovl_rmdir(struct ovl *o, const struct ovl_caller *caller, ovl_node parent, const char *name)
{
	autoref struct layer_ref *upper = NULL;
	struct ovl_inode *i = NULL;
	bool whiteouts = false;
	bool hide = true;
	bool checked = true;
	int err;
	struct ovl_inode *dir = inode_get_dir(o, parent, &err);

	if (!dir)
		return err;
	err = lookup_inode(o, dir, name, &i);
	if (err == 0 && !i->dir)
		err = -ENOTDIR;
	if (err == 0)
		err = may_remove(dir, i);
	if (err == 0 && inode_has(i, INODE_UPPER)) {
		hide = lower_has(o, dir, name, false);
		/* What only upper has says itself whether it is empty. */
		checked = hide || inode_lowers(i);
	}
	if (err == 0 && checked) /* before anything is copied up for nothing */
		err = dir_check_empty(o, i, &whiteouts);
	if (err == 0)
		err = upper_parent(o, caller, dir, &upper);
	if (err == 0)
		err = index_prepare_removal(o, caller, i, dir, name);
	if (err == 0)
		err = rmdir_inode(o, caller, dir, upper, name, i, hide, whiteouts);
	if (!checked && (err == -ENOTEMPTY || err == -EEXIST)) {
		err = dir_check_empty(o, i, &whiteouts);
		if (err == 0) /* but for whiteouts */
			err = rmdir_inode(o, caller, dir, upper, name, i, hide, whiteouts);
	}
	links_changed(dir);
	inode_put(o, i);
	inode_put(o, dir);
	return err;
}
