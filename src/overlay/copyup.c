// SPDX-License-Identifier: MIT
/*
 * Copy-up: an object of a lower layer is built anew in workdir, complete, and appears in upper by
 * one rename that never replaces anything. Its parents come first.
 *
 * While an object is copied it is marked INODE_COPYING, and no lock is held: who wants the same
 * waits, as does who wants to take its name away; everybody else goes on with the lower object.
 *
 * With metacopy=on a file whose data nobody changes is copied without it: the copy has the size and
 * no data, and is marked so. The data follows when it is needed, into the copy in its place; the
 * mark goes when all of it is on disk.
 *
 * A crash leaves the object where it was, and at most a file in workdir and an impure mark on the
 * parent; or the copy without data, with some of it that counts for nothing.
 */
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <sys/ioctl.h>

#include "overlay/dirnames.h"
#include "overlay/index.h"
#include "overlay/override.h"
#include "overlay/whfile.h"
#include "util/at.h"
#include "util/log.h"

/* How soon a waiter sees that its caller was killed. */
#define WAIT_POLL_MS 50

int copyup_wait(struct ovl *o, const struct ovl_caller *caller, struct ovl_inode *i)
{
	int err = 0;

	while (inode_has(i, INODE_COPYING) && err == 0) {
		uint32_t seen = atomic_load(&o->copyup_done);

		lock_drop(&i->lock);
		atomic_fetch_add(&o->copyup_waiters, 1);
		if (inode_has(i, INODE_COPYING))
			futex_wait_ms(&o->copyup_done, seen, WAIT_POLL_MS);
		atomic_fetch_sub(&o->copyup_waiters, 1);
		if (caller_killed(caller))
			err = -EINTR;
		lock_take(&i->lock);
	}
	return err;
}

/* @i->lock is held. */
static void copyup_end(struct ovl *o, struct ovl_inode *i)
{
	inode_clear(i, INODE_COPYING);
	atomic_fetch_add(&o->copyup_done, 1);
	if (atomic_load(&o->copyup_waiters))
		futex_wake(&o->copyup_done, INT_MAX);
}

/* One copy-up under way. */
struct copyup {
	struct ovl *o;
	const struct ovl_caller *caller;
	struct ovl_inode *inode;
	off_t limit;
	struct ovl_inode *parent; /* referenced; NULL: an orphan, which stays nameless */
	char name[NAME_MAX + 1];
	unsigned int layer;        /* where that name is, of a non-directory */
	struct index_entry *entry; /* the one it will have; owned; NULL: none */
	struct layer_ref *from;    /* where the lower object is */
	const char *from_name;
	struct layer_ref *to_dir; /* upper directory of the parent */
	struct statx st;          /* of the lower object */
	off_t size;               /* of the data to be copied */
	char temp[FMT_TEMP_NAME_MAX];
	bool has_temp;
	int fd;                   /* of a regular file, or of a directory that is synced */
	mode_t made_mode;         /* permission bits that the copy has so far */
	bool as_file;             /* a symlink that stays the regular file that it is below */
	bool meta;                /* its data stays in lower */
	struct fmt_metacopy mark; /* and has this digest */
	struct layer_ref *to;     /* the upper object, to be filled */
	bool broken_link;         /* a lower hard link that loses its other names */
	bool parent_grew;         /* its directory has another size */
	bool has_origin;
};

static int work_fd(const struct copyup *c)
{
	return layer_fd(c->o->work);
}

/*
 * The permission bits that a copy is made with: those it will have, unless they are kept elsewhere
 * or would stand in the way of who is bound by them. Set-id bits come last.
 */
static mode_t first_mode(const struct copyup *c)
{
	mode_t safe = S_ISDIR(c->st.stx_mode) ? 0700 : 0600;

	if (override_in_upper(c->o))
		return safe;
	if (!c->o->overrides_modes && (c->st.stx_mode & safe) != safe)
		return safe;
	return c->st.stx_mode & 01777;
}

/* An empty object of the right type in work. */
static int make_temp(struct copyup *c)
{
	mode_t type = c->as_file ? S_IFREG : c->st.stx_mode & S_IFMT;
	autofree char *target = NULL;
	int err;

	if (type == S_IFLNK) {
		ssize_t n;

		target = malloc(PATH_MAX);
		if (!target)
			return -ENOMEM;
		n = c->from->layer->ops->readlink(c->from, c->from_name, target, PATH_MAX - 1);
		if (n < 0)
			return (int)n;
		target[n] = '\0';
	}
	temp_name(c->o, c->temp);
	c->made_mode = first_mode(c);
	err = make_object(c->o, work_fd(c), c->temp, type | c->made_mode,
			  makedev(c->st.stx_rdev_major, c->st.stx_rdev_minor), target, &c->fd);
	c->has_temp = err == 0;
	/* Now, before it gets a mode that may forbid it. */
	if (err == 0 && type == S_IFDIR && sync_wants_dirs(c->o)) {
		c->fd = at_open(work_fd(c), c->temp, O_RDONLY | O_DIRECTORY);
		err = min(c->fd, 0);
	}
	return err;
}

/* The lower file's data, or that of which it is a metacopy itself. */
static int open_data(struct copyup *c, struct layer_ref **out)
{
	if (inode_is_metacopy(c->inode))
		return data_open(c->o, c->inode->data, out);
	return open_ref(c->o, c->from, c->from_name, LAYER_OPEN_READ, out);
}

/* Whether there is no use in looking for holes. */
static bool is_dense(const struct copyup *c)
{
	return !inode_is_metacopy(c->inode) && c->st.stx_blocks * 512 >= c->st.stx_size;
}

/*
 * Whether upper's filesystem has written that a copy shares data before anything that comes after
 * it, whatever is synced. btrfs writes for an fsync(2) of the directory that the file is there, and
 * not what is in it.
 */
static bool keeps_order(const struct ovl *o)
{
	return o->layers[0].magic == XFS_SUPER_MAGIC;
}

/* @copied: what copy_data() has returned. */
static bool has_unsynced(const struct ovl *o, int copied)
{
	return !copied || !keeps_order(o);
}

/* 1: the data has to be synced. */
static int copy_contents(struct copyup *c)
{
	autoref struct layer_ref *file = NULL;
	int err;

	if (c->meta)
		return ftruncate(c->fd, (off_t)c->st.stx_size) < 0 ? -errno : 0;
	if (c->size == 0)
		return 0;
	err = open_data(c, &file);
	if (err < 0)
		return err;
	err = copy_data(file, c->fd, c->size, c->size, is_dense(c), c->caller);
	return err < 0 ? err : has_unsynced(c->o, err);
}

/* The private marks of the copy; before a mode that may forbid it to who is bound by modes. */
static int store_marks(struct copyup *c)
{
	uint8_t metacopy[FMT_METACOPY_MAX];
	char protattr[2];
	size_t len = fmt_protattr_encode(c->inode->protattr, protattr);
	int err = 0;

	if (c->o->no_xattr)
		return 0;
	if (len)
		err = at_setxattr(work_fd(c), c->temp, xname(c->o, FMT_PROTATTR), protattr, len, 0);
	if (err == 0 && c->meta)
		err = at_setxattr(work_fd(c), c->temp, xname(c->o, FMT_METACOPY), metacopy,
				  fmt_metacopy_encode(&c->mark, metacopy), 0);
	/* A broken hard link is another file than its origin; an orphan has no place to be found
	 * at. */
	if (err < 0 || c->broken_link || !c->parent)
		return err;
	err = origin_store(c->o, c->from, c->from_name, c->o->work, c->temp);
	c->has_origin = err > 0;
	return err < 0 ? err : 0;
}

/*
 * Flags of chattr(1) that say how to store. Those that forbid became a mark: in upper they would
 * forbid it to the overlay.
 */
static void copy_flags(struct copyup *c)
{
	struct fsxattr attr = { 0 };
	int flags = 0;
	int now = 0;
	autofd int fd = -1;

	if (!S_ISREG(c->st.stx_mode) && !S_ISDIR(c->st.stx_mode))
		return;
	if (c->from->layer->ops->query(c->from, c->from_name, FS_IOC_FSGETXATTR, &attr) < 0)
		return;
	if (attr.fsx_xflags & FS_XFLAG_SYNC)
		flags |= FS_SYNC_FL;
	if (attr.fsx_xflags & FS_XFLAG_NOATIME)
		flags |= FS_NOATIME_FL;
	if (!flags)
		return;
	fd = at_open(work_fd(c), c->temp, O_RDONLY | O_NONBLOCK);
	if (fd < 0 || ioctl(fd, FS_IOC_GETFLAGS, &now) < 0)
		return;
	now |= flags;
	/* as the kernel: a filesystem that knows no such flags loses them */
	if (ioctl(fd, FS_IOC_SETFLAGS, &now) < 0)
		log_debug("flags %x of '%s' are lost at copy-up", (unsigned int)flags, c->name);
}

/* Gives the object in work the owner and the group of @st. */
static int copy_owner(struct ovl *o, const struct statx *st, const char *temp, mode_t real)
{
	int err;

	/* An owner that has no number in our user namespace cannot be kept (CVE-2023-0386). */
	if (st->stx_uid == LAYER_NO_ID || st->stx_gid == LAYER_NO_ID)
		return -EOVERFLOW;
	err = object_own(o, layer_fd(o->work), temp, real, st);
	return err == -EINVAL ? -EOVERFLOW : err;
}

int work_copy_owner(struct ovl *o, struct statx *st, const char *temp, mode_t real)
{
	int err;

	if (o->work_is_ours && st->stx_uid == o->uid && st->stx_gid == o->gid)
		return 0; /* it was born so */
	err = copy_owner(o, st, temp, real);
	if (!o->compat.gives_up_owners || (err != -EPERM && err != -EOVERFLOW))
		return err;
	if (!S_ISDIR(st->stx_mode))
		st->stx_mode &= ~(S_ISUID | S_ISGID);
	if (override_in_upper(o)) { /* it says something of every object */
		st->stx_uid = st->stx_uid == LAYER_NO_ID ? o->uid : st->stx_uid;
		st->stx_gid = st->stx_gid == LAYER_NO_ID ? o->gid : st->stx_gid;
		return object_own(o, layer_fd(o->work), temp, real, st);
	}
	/* One of the two may be possible: a group of ours. */
	if (st->stx_gid != LAYER_NO_ID)
		at_chown(layer_fd(o->work), temp, (uid_t)-1, st->stx_gid);
	return 0;
}

/* Upper holds no ACLs: nobody is to have more rights for that. */
static int mode_for_acl(struct copyup *c)
{
	char acl[1024];
	ssize_t n = layer_getxattr(c->from, c->from_name, ACL_ACCESS, acl, sizeof(acl));

	if (n < 0 && n != -ERANGE)
		return (int)n;
	if (n < 0) /* who is in such a list? the owner knows */
		c->st.stx_mode &= ~(S_IRWXG | S_IRWXO);
	else
		c->st.stx_mode = (uint16_t)acl_to_mode(acl, (size_t)n, c->st.stx_mode);
	return 0;
}

static int copy_metadata(struct copyup *c)
{
	struct timespec times[2];
	mode_t real = c->as_file ? S_IFREG : object_real_mode(c->o, c->st.stx_mode);
	int err = work_copy_owner(c->o, &c->st, c->temp, real);

	statx_times(&c->st, times);
	if (err == 0) /* after the data and chown(2), which drop capabilities */
		err = copy_xattrs(c->o, c->from, c->from_name, work_fd(c), c->temp);
	if (err > 0)
		err = mode_for_acl(c);
	if (err == 0)
		err = store_marks(c);
	if (err < 0)
		return err;
	copy_flags(c);
	if (!S_ISLNK(c->st.stx_mode) &&
	    (!c->o->work_is_ours || (c->st.stx_mode & 07777) != c->made_mode))
		err = object_own_mode(c->o, work_fd(c), c->temp, c->st.stx_mode);
	return err < 0 ? err : at_utimens(work_fd(c), c->temp, times);
}

/* A name in upper without replacing anything. */
static int publish_name(struct copyup *c)
{
	return work_publish(c->o, c->temp, c->st.stx_mode, layer_fd(c->to_dir), c->name,
			    RENAME_NOREPLACE);
}

/* Under the inode's lock: from here on the upper object is the object. */
static void switch_to_upper(struct copyup *c)
{
	struct ovl_inode *i = c->inode;

	if (!c->meta)
		inode_clear(i, INODE_METACOPY);
	if (i->dir) {
		wh_expect_none(c->o, i);
		names_expect_none(c->o, i);
	}
	inode_set(i, INODE_UPPER | INODE_UNSYNCED | (c->has_origin ? INODE_ORIGIN : 0) |
			     (c->meta ? INODE_METACOPY : 0));
	atomic_fetch_add_explicit(&c->o->copied_up, 1, memory_order_relaxed);
}

static int publish_in_parent(struct copyup *c)
{
	struct ovl_inode *i = c->inode;
	struct statx parent_st;
	struct statx st;
	struct timespec times[2];
	int err;

	err = c->broken_link ? at_statx(work_fd(c), c->temp, &st) : 0;
	if (err < 0)
		return err;
	lock_take(&c->parent->lock);
	err = mark_impure(c->o, c->parent, c->to_dir);
	if (err == 0)
		err = layer_stat(c->to_dir, "", &parent_st);
	if (err == 0) {
		names_expect(c->o, c->parent, c->name);
		lock_take(&i->lock);
		err = publish_name(c);
		if (err == 0) {
			c->has_temp = false;
			if (i->names)
				i->names->layer = 0;
			if (c->broken_link)
				i->ino = ino_compose(c->o, statx_dev(&st), st.stx_ino);
			switch_to_upper(c);
			dir_changed(c->parent);
		}
		lock_drop(&i->lock);
	}
	if (err == 0) {
		/* For its users nothing happened in the parent. */
		statx_times(&parent_st, times);
		at_utimens(layer_fd(c->to_dir), "", times);
		c->parent_grew = layer_stat(c->to_dir, "", &st) < 0 ||
				 st.stx_size != parent_st.stx_size ||
				 st.stx_blocks != parent_st.stx_blocks;
	}
	lock_drop(&c->parent->lock);
	/* Somebody put something into upper behind our back. */
	return err == -EEXIST || err == -ENOTEMPTY ? -ESTALE : err;
}

/* An object without a name gets none in upper either. */
static int publish_orphan(struct copyup *c)
{
	struct ovl_inode *i = c->inode;
	struct layer_ref *self = NULL;
	struct layer_ref *old;
	int err = open_ref(c->o, c->o->work, c->temp, LAYER_OPEN_PATH, &self);

	if (err == 0)
		err = at_unlink(work_fd(c), c->temp, i->dir ? AT_REMOVEDIR : 0);
	if (err < 0) {
		layer_ref_put(self);
		return err;
	}
	c->has_temp = false;
	if (i->dir)
		pthread_rwlock_wrlock(&c->o->topology);
	lock_take(&i->lock);
	old = i->self;
	i->self = self;
	switch_to_upper(c);
	lock_drop(&i->lock);
	if (i->dir)
		pthread_rwlock_unlock(&c->o->topology);
	layer_ref_put(old);
	return 0;
}

/* A file of the index gets its name in upper afterwards. */
static int publish_in_index(struct copyup *c)
{
	struct ovl_inode *i = c->inode;
	int err;

	lock_take(&i->lock);
	err = index_publish(c->o, i, c->temp, c->entry);
	if (err == 0) {
		c->has_temp = false;
		c->entry = NULL;
		switch_to_upper(c);
	}
	lock_drop(&i->lock);
	return err;
}

/* What has no other name gets its entry when it is in its place. */
static int publish_with_entry(struct copyup *c)
{
	struct ovl_inode *i = c->inode;
	int err = publish_in_parent(c);

	if (err < 0)
		return err;
	lock_take(&i->lock);
	err = index_add(c->o, i, c->to_dir, c->name, c->entry);
	if (err == 0)
		c->entry = NULL;
	lock_drop(&i->lock);
	return err;
}

static int publish(struct copyup *c)
{
	if (!c->parent)
		return publish_orphan(c);
	if (!c->entry)
		return publish_in_parent(c);
	return c->inode->dir || c->st.stx_nlink == 1 ? publish_with_entry(c) : publish_in_index(c);
}

static bool copies_meta_only(const struct copyup *c)
{
	return c->o->features.metacopy && c->limit == COPY_META && S_ISREG(c->st.stx_mode) &&
	       c->parent && !c->o->no_xattr;
}

static off_t copied_size(const struct copyup *c, off_t size)
{
	return c->limit < 0 ? size : min(size, c->limit);
}

/* Where the data stays. What is a metacopy already knows it. */
static int remember_data(struct copyup *c)
{
	struct ovl_inode *i = c->inode;
	autofree char *path = NULL;
	int err;

	if (i->data)
		return 0;
	err = layer_path(c->o, c->parent, c->layer, c->name, false, &path);
	if (err < 0)
		return err;
	i->data = data_place_new(c->layer, path, c->st.stx_blocks);
	if (!i->data)
		return -ENOMEM;
	i->data->linked = c->st.stx_nlink > 1;
	return 0;
}

/* The digest for the mark. With verity=require what has none is copied whole. */
static int settle_digest(struct copyup *c)
{
	autoref struct layer_ref *file = NULL;
	int err;

	if (c->o->features.verity == OVL_VERITY_OFF)
		return 0;
	err = open_data(c, &file);
	if (err == 0)
		err = verity_measure(c->o, file, &c->mark);
	if (c->o->features.verity != OVL_VERITY_REQUIRE)
		return err;
	c->meta = err == 0 && c->mark.digest_size;
	return 0;
}

/*
 * A symlink whose owner is kept in an xattr of user.* is a regular file below, since no symlink can
 * have one; and has to be one here. Real ones cannot be opened.
 */
static bool is_symlink_file(struct copyup *c)
{
	autoref struct layer_ref *file = NULL;

	return S_ISLNK(c->st.stx_mode) && override_in_upper(c->o) &&
	       c->from->layer->override_count &&
	       open_ref(c->o, c->from, c->from_name, LAYER_OPEN_READ, &file) == 0;
}

static int run(struct copyup *c)
{
	bool unsynced = false;
	int err = layer_stat(c->from, c->from_name, &c->st);

	if (err == 0 && IFTODT(c->st.stx_mode) != c->inode->type)
		err = -ESTALE;
	if (err < 0)
		return err == -ENOENT ? -ESTALE : err;
	/* As the kernel: nothing is copied up of what has no data anywhere. */
	if (inode_is_metacopy(c->inode)) {
		err = data_find(c->o, c->inode->data);
		if (err < 0)
			return err;
	}
	if (inode_has(c->inode, INODE_TO_INDEX) && c->parent) {
		err = index_entry_new(c->from, c->from_name, c->st.stx_nlink, &c->entry);
		if (err < 0)
			return err;
	}
	c->broken_link = !c->inode->dir && c->st.stx_nlink > 1 && !c->entry;
	c->meta = copies_meta_only(c);
	if (c->meta)
		err = settle_digest(c);
	if (err < 0)
		return err;
	c->as_file = is_symlink_file(c);
	if ((S_ISREG(c->st.stx_mode) && !c->meta) || c->as_file)
		c->size = copied_size(c, (off_t)c->st.stx_size);
	if (c->meta) {
		err = remember_data(c);
		if (err < 0)
			return err;
	}
	err = make_temp(c);
	if (err == 0) {
		err = copy_contents(c);
		unsynced = err > 0;
	}
	if (err >= 0)
		err = copy_metadata(c);
	/* What is seen after a crash is the whole file. */
	if (err == 0)
		err = sync_copied(c->o, c->fd, unsynced);
	if (err == 0)
		err = publish(c);
	return err;
}

/* What writing to the upper file changes and must not, since nobody wrote yet. */
struct kept {
	struct statx st;
	char capability[64]; /* struct vfs_ns_cap_data has 24 */
	ssize_t capability_size;
};

#define CAPABILITY "security.capability"

/* Not as its contents are: an append-only file cannot be filled. */
static int open_upper(struct ovl *o, struct reach *r)
{
	const int flags = O_RDWR | O_NOCTTY | O_NONBLOCK;
	int fd = open_fd(o, r->at, r->name, flags);
	mode_t mode;

	if (!mode_forbids(o, r->at, fd) ||
	    mode_widen(o, r->at, r->name, S_IRUSR | S_IWUSR, &mode) < 0)
		return fd;
	fd = open_fd(o, r->at, r->name, flags);
	mode_restore(o, r->at, r->name, mode);
	return fd;
}

static int open_to_fill(struct copyup *c, struct kept *k)
{
	struct reach r;
	int fd;
	int err = reach(c->o, c->inode, &r);

	if (err < 0)
		return err;
	k->capability_size =
		layer_getxattr(r.at, r.name, CAPABILITY, k->capability, sizeof(k->capability));
	err = layer_stat(r.at, r.name, &k->st);
	fd = err < 0 ? err : open_upper(c->o, &r);
	reach_done(c->inode, &r);
	if (fd < 0)
		return fd;
	c->to = layer_dir_adopt(&c->o->layers[0], fd, true);
	if (c->to)
		return 0;
	close_fd(fd);
	return -ENOMEM;
}

/* Nobody has changed these meanwhile: who wants to waits for the end of the copy-up. */
static int put_back(struct copyup *c, const struct kept *k)
{
	int fd = layer_fd(c->to);
	struct timespec times[2];
	struct statx st;
	int err = 0;

	if (k->capability_size > 0)
		err = object_setxattr(c->o, fd, "", CAPABILITY, k->capability,
				      (size_t)k->capability_size, 0);
	if (err == 0)
		err = object_stat(c->o, fd, "", &st);
	if (err == 0 && st.stx_mode != k->st.stx_mode)
		err = object_chmod(c->o, fd, "", k->st.stx_mode);
	statx_times(&k->st, times);
	return err < 0 ? err : at_utimens(fd, "", times);
}

static int fill(struct copyup *c, const struct kept *k)
{
	autoref struct layer_ref *file = NULL;
	int err;

	if (!c->size)
		return 0;
	err = data_open(c->o, c->inode->data, &file);
	if (err == 0)
		err = copy_data(file, layer_fd(c->to), c->size, (off_t)k->st.stx_size, false,
				c->caller);
	return err < 0 ? err : sync_copied(c->o, layer_fd(c->to), has_unsynced(c->o, err));
}

/*
 * All of the data is on disk: the file is cut to what is wanted, and is no metacopy any more. @i's
 * lock is held. A crash between these two leaves a metacopy that is as long as wanted, of which the
 * kernel's overlayfs shows the length, and all of the data to who reads on.
 */
static int unmark(struct copyup *c, const struct kept *k)
{
	int err = put_back(c, k);

	if (err == 0 && c->size < (off_t)k->st.stx_size && ftruncate(layer_fd(c->to), c->size) < 0)
		err = -errno;
	if (err == 0)
		err = mark_remove(c->o, c->to, "", FMT_METACOPY);
	return err;
}

/* The metacopy is as it was, and takes no room for data that counts for nothing. */
static void unfill(struct copyup *c, const struct kept *k)
{
	off_t size = (off_t)k->st.stx_size;

	if (size && ftruncate(layer_fd(c->to), size) == 0)
		fallocate(layer_fd(c->to), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, size);
	put_back(c, k);
}

/* The data of a file of which upper has only a metacopy. */
static int fill_metacopy(struct copyup *c)
{
	struct ovl_inode *i = c->inode;
	struct kept k = { 0 };
	int err = open_to_fill(c, &k);

	if (err < 0)
		return err;
	c->size = copied_size(c, (off_t)k.st.stx_size);
	err = fill(c, &k);
	lock_take(&i->lock);
	if (err == 0)
		err = unmark(c, &k);
	if (err < 0)
		unfill(c, &k);
	if (err == 0) {
		inode_set(i, INODE_UNSYNCED);
		inode_clear(i, INODE_METACOPY);
	}
	lock_drop(&i->lock);
	return err;
}

/* Where the object is and where it will be. */
static int locate(struct copyup *c)
{
	struct ovl_inode *i = c->inode;
	int err;

	if (c->parent) {
		err = dir_ref(c->o, c->parent, 0, false, &c->to_dir);
		if (err < 0)
			return err;
	}
	c->from_name = "";
	if (!c->parent) {
		c->from = layer_ref_get(i->self);
		return 0;
	}
	if (i->dir && (i->dir->lower[0].path || !stack_find(c->parent, c->layer)))
		return dir_ref(c->o, i, c->layer, false, &c->from);
	c->from_name = c->name;
	return dir_ref(c->o, c->parent, c->layer, false, &c->from);
}

/* Whether @i is in upper as far as that is needed. */
static bool is_up(const struct ovl_inode *i, off_t limit)
{
	return inode_has(i, INODE_UPPER) && (limit == COPY_META || !inode_is_metacopy(i));
}

/* Who wanted the data goes on with the file as it was written; what was opened below is stale. */
static void replace_opened(struct copyup *c)
{
	struct ovl_inode *i = c->inode;
	struct layer_ref *file = take_ref(&c->to);

	if (!file && i->type == DT_REG && c->fd >= 0 && c->limit != COPY_META &&
	    !inode_is_metacopy(i))
		file = layer_dir_adopt(&c->o->layers[0], c->fd, true);
	if (!file) {
		fdcache_drop(&c->o->fds, &i->file);
		return;
	}
	if (file->fd == c->fd)
		c->fd = -1;
	fdcache_set(&c->o->fds, &i->file, file);
	layer_ref_put(file);
}

/* @told: who caches the attributes of @i hears of them by other means. 1: it was copied. */
static int copy_up_one(struct ovl *o, const struct ovl_caller *caller, struct ovl_inode *i,
		       off_t limit, bool told)
{
	struct copyup c = { .o = o, .caller = caller, .inode = i, .limit = limit, .fd = -1 };
	int err;

	lock_take(&i->lock);
	err = copyup_wait(o, caller, i);
	if (err < 0 || is_up(i, limit)) {
		lock_drop(&i->lock);
		return err;
	}
	if (i->names) {
		c.parent = i->names->parent;
		atomic_fetch_add_explicit(&c.parent->refs, 1, memory_order_relaxed);
		memcpy(c.name, i->names->text, (size_t)i->names->len + 1);
		c.layer = i->dir ? i->dir->lower[0].layer : i->names->layer;
	} else if (!i->self) {
		lock_drop(&i->lock);
		return -ESTALE;
	}
	inode_set(i, INODE_COPYING);
	lock_drop(&i->lock);

	if (inode_has(i, INODE_UPPER)) {
		err = fill_metacopy(&c);
	} else {
		err = locate(&c);
		if (err == 0)
			err = run(&c);
	}
	if (c.has_temp)
		work_remove(o, c.temp);
	if (err == 0)
		replace_opened(&c);
	close_fd(c.fd);
	free(c.entry);

	lock_take(&i->lock);
	copyup_end(o, i);
	lock_drop(&i->lock);
	layer_ref_put(c.from);
	layer_ref_put(c.to);
	layer_ref_put(c.to_dir);
	if (err == 0 && !told)
		attr_notify(o, i, false);
	if (err == 0 && c.parent && (c.broken_link || c.parent_grew))
		attr_notify(o, c.parent, c.broken_link);
	inode_put(o, c.parent);
	return err < 0 ? err : 1;
}

/* The topmost of @i and its ancestors that is not in upper, with a reference. */
static struct ovl_inode *topmost_missing(struct ovl *o, struct ovl_inode *i)
{
	struct ovl_inode *found = i;

	pthread_rwlock_rdlock(&o->topology);
	lock_take(&i->lock);
	for (struct ovl_name *n = i->names; n; n = n->parent->names)
		if (!inode_has(n->parent, INODE_UPPER))
			found = n->parent;
	atomic_fetch_add_explicit(&found->refs, 1, memory_order_relaxed);
	lock_drop(&i->lock);
	pthread_rwlock_unlock(&o->topology);
	return found;
}

/* 1: @i was copied up now, and no parent of it is missing. */
static int copy_up_all(struct ovl *o, const struct ovl_caller *caller, struct ovl_inode *i,
		       off_t limit, bool told)
{
	int err;

	if (!o->has_upper)
		return -EROFS;
	err = verity_check_data(o, i);
	while (err >= 0 && !is_up(i, limit)) {
		struct ovl_inode *next = topmost_missing(o, i);

		if (next == i)
			err = copy_up_one(o, caller, i, limit, told);
		else
			err = copy_up_one(o, caller, next, COPY_ALL, false);
		inode_put(o, next);
	}
	if (err >= 0)
		index_link_up_last(o, caller, i);
	return err;
}

int copy_up(struct ovl *o, const struct ovl_caller *caller, struct ovl_inode *i, off_t limit)
{
	return min(copy_up_all(o, caller, i, limit, false), 0);
}

int copy_up_told(struct ovl *o, const struct ovl_caller *caller, struct ovl_inode *i, off_t limit)
{
	return copy_up_all(o, caller, i, limit, true);
}
