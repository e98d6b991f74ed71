// SPDX-License-Identifier: MIT
/* Attributes: as the union shows them, and changing them. */
#include <fcntl.h>
#include <linux/fs.h>

#include "overlay/internal.h"
#include "util/at.h"

void attr_translate(struct ovl *o, struct ovl_inode *i, struct statx *st)
{
	st->stx_ino = i->ino;
	/* What find(1) and others may conclude from the links of a real directory does not hold
	 * here. */
	if (i->dir && inode_is_merged(i))
		st->stx_nlink = 1;
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

int drop_suidgid(struct ovl *o, const struct ovl_caller *caller, struct ovl_inode *i, int fd)
{
	struct statx st;
	mode_t mode;
	int err = at_statx(fd, "", &st);

	if (err < 0)
		return err;
	mode = st.stx_mode & ~(mode_t)S_ISUID;
	if ((mode & S_ISGID) && ((mode & S_IXGRP) || !caller_in_group(caller, st.stx_gid)))
		mode &= ~(mode_t)S_ISGID;
	if (mode == st.stx_mode)
		return 0;
	err = at_chmod(fd, "", mode & 07777);
	if (err == 0)
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

static int set_others(const struct ovl_setattr *set, int fd, const char *name, bool is_symlink)
{
	int err = 0;

	/* chown(2) drops set-id bits and capabilities, so the mode comes after it. */
	if (set->valid & (OVL_SET_UID | OVL_SET_GID))
		err = at_chown(fd, name, set->valid & OVL_SET_UID ? set->uid : (uid_t)-1,
			       set->valid & OVL_SET_GID ? set->gid : (gid_t)-1);
	if (err == 0 && (set->valid & OVL_SET_MODE) && !is_symlink)
		err = at_chmod(fd, name, set->mode & 07777);
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

static int setattr_allowed(struct ovl_inode *i, const struct ovl_setattr *set)
{
	bool sets = set->valid & (OVL_SET_MODE | OVL_SET_UID | OVL_SET_GID);

	/* An fd opened for writing before keeps that right, except to cut off what may only grow.
	 */
	if ((set->valid & OVL_SET_SIZE) &&
	    (!(set->valid & OVL_SET_BY_FD) || (i->protattr & FS_APPEND_FL)))
		sets = true;
	if (!sets && (set->valid & OVL_SET_SIZE))
		return 0;

	if ((set->valid & OVL_SET_ATIME) && set->atime.tv_nsec != UTIME_NOW)
		sets = true;
	if ((set->valid & OVL_SET_MTIME) && set->mtime.tv_nsec != UTIME_NOW)
		sets = true;
	return protattr_check(i, !sets);
}

int ovl_setattr(struct ovl *o, const struct ovl_caller *caller, ovl_node node,
		const struct ovl_setattr *set, struct statx *out)
{
	struct ovl_inode *i = inode_get(o, node);
	bool resize = set->valid & OVL_SET_SIZE;
	struct reach r;
	int err;

	if (!i)
		return -ESTALE;
	err = setattr_allowed(i, set);
	if (err == 0 && resize && i->type != DT_REG)
		err = i->dir ? -EISDIR : -EINVAL;
	if (err == 0)
		err = copy_up(o, caller, i, resize ? set->size : COPY_ALL);
	if (err == 0 && resize)
		err = set_size(o, caller, i, set);
	if (err == 0)
		err = reach(o, i, &r);
	if (err == 0) {
		err = set_others(set, layer_fd(r.at), r.name, i->type == DT_LNK);
		if (err == 0)
			err = layer_stat(r.at, r.name, out);
		if (err == 0)
			attr_translate(o, i, out);
		reach_done(i, &r);
	}
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
