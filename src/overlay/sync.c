// SPDX-License-Identifier: MIT
/* What -o fsync= asks for: which data is on disk when. */
#include <fcntl.h>

#include "overlay/internal.h"
#include "overlay/writeback.h"
#include "util/at.h"

static bool is_volatile(const struct ovl *o)
{
	return o->features.fsync == OVL_FSYNC_VOLATILE;
}

bool sync_wants_dirs(const struct ovl *o)
{
	return o->features.fsync == OVL_FSYNC_STRICT;
}

int sync_copied(struct ovl *o, int fd, bool has_data)
{
	if (fd < 0 || is_volatile(o) || (!has_data && o->features.fsync != OVL_FSYNC_STRICT))
		return 0;
	return fsync(fd) < 0 ? -errno : 0;
}

void sync_note(struct ovl *o, ssize_t result)
{
	if (unlikely(result == -EIO))
		writeback_failed(o->writeback);
}

static int sync_fd(int fd, bool datasync)
{
	return (datasync ? fdatasync(fd) : fsync(fd)) < 0 ? -errno : 0;
}

static int sync_dir(struct ovl *o, struct ovl_inode *dir, bool datasync)
{
	autoref struct layer_ref *ref = NULL;
	autofd int fd = -1;
	int err = dir_ref(o, dir, 0, false, &ref);

	if (err < 0)
		return err;
	fd = open_fd(o, ref, "", O_RDONLY | O_DIRECTORY);
	return fd < 0 ? fd : sync_fd(fd, datasync);
}

/* There is no data to sync, but the attributes. */
static int sync_metacopy(struct ovl *o, struct ovl_inode *i, bool datasync)
{
	autofd int fd = -1;
	struct reach r;
	int err = reach(o, i, &r);

	if (err < 0)
		return err;
	fd = open_fd(o, r.at, r.name, O_RDONLY | O_NONBLOCK | O_NOCTTY);
	reach_done(i, &r);
	return fd < 0 ? fd : sync_fd(fd, datasync);
}

/*
 * For a filesystem the copy has been there as long as it has its data: ext4 does not count its name
 * nor its marks as what fdatasync(2) is about, and without them the old data is shown.
 */
static int sync_file(struct ovl *o, struct ovl_inode *i, bool datasync)
{
	autoref struct layer_ref *file = NULL;
	bool unsynced;
	int err;

	if (inode_is_metacopy(i))
		return sync_metacopy(o, i, datasync);
	unsynced = inode_has(i, INODE_UNSYNCED);
	err = file_ref(o, i, false, &file);
	if (err == 0)
		err = sync_fd(layer_fd(file), datasync && !unsynced);
	if (err == 0 && unsynced)
		inode_clear(i, INODE_UNSYNCED);
	return err;
}

/* Nothing is synced; but who syncs what is lost is told. */
static int volatile_fsync(struct ovl *o, struct ovl_inode *i)
{
	autoref struct layer_ref *file = NULL;

	if (!writeback_has_witness(o->writeback) && i->type == DT_REG)
		file_ref(o, i, false, &file);
	return writeback_status(o->writeback,
				file && file->layer->index == 0 ? layer_fd(file) : -1);
}

int ovl_fsync(struct ovl *o, ovl_node node, bool datasync)
{
	struct ovl_inode *i = inode_get(o, node);
	int err = 0;

	if (!i)
		return -ESTALE;
	if (is_volatile(o))
		err = volatile_fsync(o, i);
	else if (inode_has(i, INODE_UPPER))
		err = i->dir ? sync_dir(o, i, datasync) : sync_file(o, i, datasync);
	inode_put(o, i);
	return err;
}

int ovl_syncfs(struct ovl *o)
{
	autofd int fd = -1;

	if (!o->has_upper)
		return 0;
	if (is_volatile(o))
		return writeback_status(o->writeback, -1);
	fd = open_fd(o, o->layers[0].root, "", O_RDONLY | O_DIRECTORY);
	if (fd < 0)
		return fd;
	return syncfs(fd) < 0 ? -errno : 0;
}
