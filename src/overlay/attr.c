// SPDX-License-Identifier: MIT
/* Attributes: as the union shows them, and changing them. */
#include <fcntl.h>
#include <linux/fs.h>

#include "overlay/index.h"
#include "overlay/override.h"
#include "util/at.h"

void attr_translate(struct ovl *o, struct ovl_inode *i, struct statx *st)
{
	st->stx_ino = i->ino;
	/* What find(1) and others may conclude from the links of a real directory does not hold
	 * here. */
	if (i->dir && inode_is_merged(i))
		st->stx_nlink = 1;
	else if (!i->dir && inode_has(i, INODE_INDEXED))
		st->stx_nlink = i->index->nlink;
	if (inode_is_metacopy(i))
		st->stx_blocks = data_blocks(i->data, st->stx_size);
}

int attr_get(struct ovl *o, struct ovl_inode *i, struct statx *out)
{
	struct reach r;
	int err = reach(o, i, &r);

	if (err < 0)
		return err;
	err = layer_stat(r.at, r.name, out);
	if (err == 0 && IFTODT(out->stx_mode) != i->type)
		err = -ESTALE;
	if (err == 0)
		attr_translate(o, i, out);
	reach_done(i, &r);
	return err == -ENOENT ? -ESTALE : err;
}

int ovl_getattr(struct ovl *o, ovl_node node, struct statx *out)
{
	struct ovl_inode *i = inode_get(o, node);
	int err = i ? attr_get(o, i, out) : -ESTALE;

	inode_put(o, i);
	return err;
}

int entry_fill(struct ovl *o, struct ovl_inode *i, struct ovl_entry *out)
{
	int err = attr_get(o, i, &out->attr);

	if (err < 0)
		return err;
	out->node = i->node;
	inode_count_lookup(o, i);
	return 0;
}

void entry_take(struct ovl *o, struct ovl_inode *i, const struct statx *st, struct ovl_entry *out)
{
	out->attr = *st;
	attr_translate(o, i, &out->attr);
	out->node = i->node;
	inode_count_lookup(o, i);
}

void attr_notify(struct ovl *o, struct ovl_inode *i, bool listing)
{
	if (o->attr_changed)
		o->attr_changed(o->ctx, i->node, listing);
}

int protattr_check(struct ovl_inode *i, bool append_ok)
{
	if (i->protattr & FS_IMMUTABLE_FL)
		return -EPERM;
	return (i->protattr & FS_APPEND_FL) && !append_ok ? -EPERM : 0;
}

mode_t mode_without_suidgid(const struct ovl_caller *caller, const struct statx *st)
{
	mode_t mode = st->stx_mode & ~(mode_t)S_ISUID;

	if ((mode & S_ISGID) && ((mode & S_IXGRP) || !caller_keeps_sgid(caller, st)))
		mode &= ~(mode_t)S_ISGID;
	return mode;
}

static int drop_from_mode(struct ovl *o, const struct ovl_caller *caller, int fd, bool *dropped)
{
	struct statx st;
	mode_t mode;
	int err = object_stat(o, fd, "", &st);

	if (err < 0)
		return err;
	mode = mode_without_suidgid(caller, &st);
	*dropped = mode != st.stx_mode;
	return *dropped ? object_chmod(o, fd, "", mode) : 0;
}

int drop_suidgid(struct ovl *o, const struct ovl_caller *caller, struct ovl_inode *i, int fd)
{
	bool dropped = false;
	int err;

	/* What is read and written back as a whole must not change meanwhile. */
	if (override_in_upper(o))
		lock_take(&i->lock);
	err = drop_from_mode(o, caller, fd, &dropped);
	if (override_in_upper(o))
		lock_drop(&i->lock);
	if (err == 0 && dropped)
		attr_notify(o, i, false);
	return err;
}

static int set_size(struct ovl *o, const struct ovl_caller *caller, struct ovl_inode *i,
		    const struct ovl_setattr *set)
{
	autoref struct layer_ref *file = NULL;
	int err = file_ref(o, i, true, &file);

	if (err < 0)
		return err;
	if (set->valid & OVL_KILL_SUIDGID) {
		err = drop_suidgid(o, caller, i, layer_fd(file));
		if (err < 0)
			return err;
	}
	return ftruncate(layer_fd(file), set->size) < 0 ? -errno : 0;
}

/* chown(2) as the caller's: the real one is ours, and spares the sgid of who may give it to
 * anybody. */
static int set_owner(const struct ovl_caller *caller, const struct ovl_setattr *set, int fd,
		     const char *name)
{
	struct statx st;
	int err = at_statx(fd, name, &st);

	if (err == 0)
		err = at_chown(fd, name, set->valid & OVL_SET_UID ? set->uid : (uid_t)-1,
			       set->valid & OVL_SET_GID ? set->gid : (gid_t)-1);
	if (err < 0 || S_ISDIR(st.stx_mode) || S_ISLNK(st.stx_mode))
		return err;
	if ((st.stx_mode & (S_ISGID | S_IXGRP)) != S_ISGID || caller_keeps_sgid(caller, &st))
		return 0;
	return at_chmod(fd, name, st.stx_mode & 07777 & ~(mode_t)(S_ISUID | S_ISGID));
}

static int set_owner_and_mode(struct ovl *o, const struct ovl_caller *caller,
			      const struct ovl_setattr *set, int fd, const char *name,
			      bool is_symlink)
{
	int err = 0;

	if (!(set->valid & (OVL_SET_UID | OVL_SET_GID | OVL_SET_MODE)))
		return 0;
	if (override_in_upper(o))
		return override_setattr(o, caller, fd, name, set);
	/* chown(2) drops set-id bits and capabilities, so the mode comes after it. */
	if (set->valid & (OVL_SET_UID | OVL_SET_GID))
		err = set_owner(caller, set, fd, name);
	if (err == 0 && (set->valid & OVL_SET_MODE) && !is_symlink)
		err = at_chmod(fd, name, set->mode & 07777);
	return err;
}

static int set_others(struct ovl *o, const struct ovl_caller *caller, const struct ovl_setattr *set,
		      int fd, const char *name, bool is_symlink)
{
	int err = set_owner_and_mode(o, caller, set, fd, name, is_symlink);

	if (err == 0 && (set->valid & (OVL_SET_ATIME | OVL_SET_MTIME))) {
		struct timespec times[2] = { { .tv_nsec = UTIME_OMIT }, { .tv_nsec = UTIME_OMIT } };

		if (set->valid & OVL_SET_ATIME)
			times[0] = set->atime;
		if (set->valid & OVL_SET_MTIME)
			times[1] = set->mtime;
		err = at_utimens(fd, name, times);
	}
	return err;
}

/* may_setattr() of the kernel, which does not see our flags. */
static int setattr_allowed(struct ovl_inode *i, const struct ovl_setattr *set)
{
	unsigned int times = set->valid & (OVL_SET_ATIME | OVL_SET_MTIME);

	if (set->valid & (OVL_SET_MODE | OVL_SET_UID | OVL_SET_GID))
		return protattr_check(i, false);
	if (set->valid & OVL_SET_SIZE) {
		/* An fd opened for writing before keeps that right, but not to cut off what may
		 * only grow. */
		if (set->valid & OVL_SET_BY_FD)
			return i->protattr & FS_APPEND_FL ? -EPERM : 0;
		return protattr_check(i, false);
	}
	/* What only grows may be touched: both times, to now. */
	if (times)
		return protattr_check(i, times == (OVL_SET_ATIME | OVL_SET_MTIME) &&
						 set->atime.tv_nsec == UTIME_NOW &&
						 set->mtime.tv_nsec == UTIME_NOW);
	return 0;
}

/*
 * Set-id bits go, by chown(2) to nobody else, or before a write; which of them it is FUSE does not
 * say, and the writes of some drop nothing. chown(2) of the real object does what that means, and
 * drops capabilities.
 */
static int kill_priv(struct ovl *o, const struct ovl_caller *caller, struct ovl_inode *i,
		     struct statx *out)
{
	const struct ovl_setattr chown_to_nobody = { .valid = OVL_KILL_SUIDGID };
	struct reach r;
	int err = attr_get(o, i, out);

	if (err < 0 || i->dir || !(out->stx_mode & (S_ISUID | S_ISGID)) ||
	    caller_keeps_setid(caller))
		return err;
	err = copy_up(o, caller, i, COPY_META);
	if (err == 0)
		err = reach_settled(o, caller, i, &r);
	if (err < 0)
		return err;
	if (override_in_upper(o))
		err = override_setattr(o, caller, layer_fd(r.at), r.name, &chown_to_nobody);
	else
		err = set_owner(caller, &chown_to_nobody, layer_fd(r.at), r.name);
	reach_done(i, &r);
	return err < 0 ? err : attr_get(o, i, out);
}

int ovl_setattr(struct ovl *o, const struct ovl_caller *caller, ovl_node node,
		const struct ovl_setattr *set, struct statx *out)
{
	struct ovl_inode *i = inode_get(o, node);
	bool resize = set->valid & OVL_SET_SIZE;
	bool stores_mtime = set->valid & OVL_SET_MTIME;
	bool copied = false;
	struct reach r;
	int err;

	if (!i)
		return -ESTALE;
	if (set->valid == OVL_KILL_SUIDGID) {
		err = kill_priv(o, caller, i, out);
		inode_put(o, i);
		return err;
	}
	err = setattr_allowed(i, set);
	if (err == 0 && resize && i->type != DT_REG)
		err = i->dir ? -EISDIR : -EINVAL;
	if (err == 0) {
		err = copy_up_told(o, caller, i, resize ? set->size : COPY_META);
		copied = err > 0;
		err = min(err, 0);
	}
	if (err == 0 && resize)
		err = set_size(o, caller, i, set);
	if (err == 0)
		err = reach_settled(o, caller, i, &r);
	if (err == 0) {
		if (stores_mtime)
			mtime_store_begin(o, i);
		if (!o->overrides_modes)
			pthread_rwlock_rdlock(&o->modes_lock);
		err = set_others(o, caller, set, layer_fd(r.at), r.name, i->type == DT_LNK);
		if (!o->overrides_modes)
			pthread_rwlock_unlock(&o->modes_lock);
		if (err == 0)
			err = layer_stat(r.at, r.name, out);
		if (stores_mtime)
			mtime_store_end(o, i, err == 0 ? out : NULL);
		if (err == 0)
			attr_translate(o, i, out);
		reach_done(i, &r);
	}
	if (err < 0 && copied)
		attr_notify(o, i, false);
	inode_put(o, i);
	return err;
}

ssize_t ovl_readlink(struct ovl *o, ovl_node node, char *buf, size_t size)
{
	struct ovl_inode *i = inode_get(o, node);
	struct reach r;
	ssize_t n;

	if (!i)
		return -ESTALE;
	n = i->type == DT_LNK ? reach(o, i, &r) : -EINVAL;
	if (n == 0) {
		n = r.at->layer->ops->readlink(r.at, r.name, buf, size);
		reach_done(i, &r);
	}
	inode_put(o, i);
	return n;
}

int ovl_statfs(struct ovl *o, struct statvfs *out)
{
	struct layer *layer = &o->layers[o->has_upper ? 0 : 1];
	int err = layer->ops->statfs(layer, out);

	if (err == 0)
		out->f_namemax = o->name_max;
	return err;
}
