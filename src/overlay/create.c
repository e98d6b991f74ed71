// SPDX-License-Identifier: MIT
/*
 * New objects and new names.
 *
 * An object is made directly in upper, in one system call under the caller's identity, where
 * nothing is in the way. Over a whiteout, when we may not act as the caller, or when owner and
 * mode are kept in an xattr, it is built in workdir and moved into place by one rename. A crash
 * leaves the name as it was, or the whole object, perhaps with a file beside it that hid the name
 * before and hides nothing any more.
 */
#include <fcntl.h>
#include <sys/fsuid.h>

#include "overlay/index.h"
#include "overlay/override.h"
#include "overlay/whfile.h"
#include "util/at.h"

struct creation {
	struct ovl *o;
	const struct ovl_caller *caller;
	struct ovl_inode *parent;
	struct layer_ref *dir; /* upper directory of the parent */
	const char *name;
	mode_t mode; /* with the type; umask applied unless the default ACL does that */
	dev_t rdev;
	const char *target; /* of a symlink */
	bool has_default_acl;
	bool over_whiteout; /* it took the place of one */
	bool over_file;     /* a file hid the name, and is still there */
	bool opaque;
	int fd;          /* of a regular file */
	struct statx st; /* of what was made */
};

int upper_parent(struct ovl *o, const struct ovl_caller *caller, struct ovl_inode *dir,
		 struct layer_ref **ref)
{
	int err = copy_up(o, caller, dir, COPY_ALL);

	return err < 0 ? err : dir_ref(o, dir, 0, false, ref);
}

bool upper_has_whiteout(struct ovl *o, struct layer_ref *dir, const char *name)
{
	struct statx st;

	return layer_stat(dir, name, &st) == 0 && is_whiteout(o, dir, name, &st);
}

/*
 * Acting as the caller, so that an object has its owner from the beginning. Per thread; our
 * capabilities stay if the process has SECBIT_NO_SETUID_FIXUP, else what then is forbidden goes
 * through workdir.
 */
static bool become(const struct creation *c)
{
	if (c->caller->uid == c->o->uid && c->caller->gid == c->o->gid)
		return false;
	if (!c->o->may_setfsid)
		return false;
	setfsgid(c->caller->gid);
	setfsuid(c->caller->uid);
	return true;
}

static void come_back(const struct creation *c)
{
	setfsuid(c->o->uid);
	setfsgid(c->o->gid);
}

int make_object(struct ovl *o, int dirfd, const char *name, mode_t mode, dev_t rdev,
		const char *target, int *fd)
{
	mode_t perm = mode & 07777;
	mode_t type = object_real_mode(o, mode) & S_IFMT;
	int err;

	do {
		switch (type) {
		case S_IFREG:
			*fd = openat(dirfd, name,
				     O_CREAT | O_EXCL | O_RDWR | O_NOFOLLOW | O_CLOEXEC, perm);
			err = *fd < 0 ? -errno : 0;
			break;
		case S_IFDIR: err = mkdirat(dirfd, name, perm) < 0 ? -errno : 0; break;
		case S_IFLNK: err = symlinkat(target, dirfd, name) < 0 ? -errno : 0; break;
		default: err = mknodat(dirfd, name, mode, rdev) < 0 ? -errno : 0; break;
		}
	} while (fdcache_made_room(&o->fds, err));
	return err;
}

static int make(struct creation *c, int dirfd, const char *name, mode_t perm)
{
	return make_object(c->o, dirfd, name, (c->mode & S_IFMT) | perm, c->rdev, c->target,
			   &c->fd);
}

static int make_as_caller(struct creation *c, int dirfd, const char *name)
{
	bool switched = become(c);
	int err = make(c, dirfd, name, c->mode & 07777);

	if (switched)
		come_back(c);
	return err;
}

/* What an object gets from its parent. */
struct inherited {
	gid_t gid;
	mode_t mode;  /* with the type */
	char *access; /* ACLs, owned; NULL: none */
	size_t access_size;
	char *def;
	size_t def_size;
};

static void inherited_free(struct inherited *in)
{
	free(in->access);
	free(in->def);
}

/* The default ACL of the parent decides on the mode and the ACLs. */
static int inherit_acl(struct creation *c, struct inherited *in)
{
	struct acl_inherited acl = { 0 };
	ssize_t size = layer_getxattr(c->dir, "", ACL_DEFAULT, NULL, 0);
	int err;

	if (size < 0)
		return (int)size;
	in->def = malloc((size_t)size + 1);
	if (!in->def)
		return -ENOMEM;
	size = layer_getxattr(c->dir, "", ACL_DEFAULT, in->def, (size_t)size);
	if (size < 0)
		return (int)size;
	in->def_size = (size_t)size;
	err = acl_inherit(in->def, in->def_size, in->mode, &acl);
	if (err < 0)
		return err;
	in->mode = acl.mode;
	in->access = acl.access;
	in->access_size = acl.size;
	return 0;
}

/* What the filesystem does for an object made in place: inheritance from the parent. */
static int inherit(struct creation *c, struct inherited *in)
{
	struct statx parent;
	int err = layer_stat(c->dir, "", &parent);

	*in = (struct inherited){ .gid = c->caller->gid, .mode = c->mode };
	if (err < 0)
		return err;
	if (parent.stx_mode & S_ISGID) {
		in->gid = parent.stx_gid;
		if (S_ISDIR(c->mode))
			in->mode |= S_ISGID;
	}
	return c->has_default_acl && !S_ISLNK(c->mode) ? inherit_acl(c, in) : 0;
}

/* Owner, mode and ACLs of an object that nobody sees yet. */
static int dress(struct creation *c, int dirfd, const char *name, const struct inherited *in)
{
	const struct statx attr = {
		.stx_uid = c->caller->uid,
		.stx_gid = in->gid,
		.stx_mode = (uint16_t)in->mode,
		.stx_rdev_major = major(c->rdev),
		.stx_rdev_minor = minor(c->rdev),
	};
	struct ovl *o = c->o;
	int err = object_own(o, dirfd, name, object_real_mode(o, in->mode), &attr);

	if (err < 0 || S_ISLNK(in->mode))
		return err;
	err = object_own_mode(o, dirfd, name, in->mode);
	if (err == 0 && in->access_size)
		err = object_setxattr(o, dirfd, name, ACL_ACCESS, in->access, in->access_size, 0);
	if (err == 0 && in->def_size && S_ISDIR(in->mode))
		err = object_setxattr(o, dirfd, name, ACL_DEFAULT, in->def, in->def_size, 0);
	return err;
}

static int inherit_and_dress(struct creation *c, int dirfd, const char *name)
{
	struct inherited in;
	int err = inherit(c, &in);

	if (err == 0)
		err = dress(c, dirfd, name, &in);
	c->mode = in.mode;
	inherited_free(&in);
	return err;
}

static int build_in_work(struct creation *c, const char *temp)
{
	if ((c->over_whiteout || c->over_file) && S_ISDIR(c->mode)) {
		/* What the whiteout hid must not come back inside. Before a mode that may forbid
		 * it. */
		int err = opaque_make(c->o, c->o->work, temp);

		if (err < 0)
			return err == -EOPNOTSUPP ? -EIO : err;
		c->opaque = true;
	}
	return inherit_and_dress(c, layer_fd(c->o->work), temp);
}

static int move_into_place(struct creation *c, const char *temp)
{
	unsigned int flags = 0;
	int err;

	if (!c->over_whiteout)
		flags = RENAME_NOREPLACE;
	else if (S_ISDIR(c->mode)) /* it cannot replace the whiteout */
		flags = RENAME_EXCHANGE;
	err = work_publish(c->o, temp, c->mode, layer_fd(c->dir), c->name, flags);
	if (err == 0 && flags == RENAME_EXCHANGE)
		at_unlink(layer_fd(c->o->work), temp, 0);
	return err;
}

static int make_through_work(struct creation *c)
{
	char temp[FMT_TEMP_NAME_MAX];
	int err;

	temp_name(c->o, temp);
	err = make(c, layer_fd(c->o->work), temp, 0700);
	if (err < 0)
		return err;
	err = build_in_work(c, temp);
	if (err == 0)
		err = move_into_place(c, temp);
	if (err < 0) {
		work_remove(c->o, temp);
		close_fd(c->fd);
		c->fd = -1;
	}
	return err;
}

/* Whether the real parent has a default ACL, which then takes the place of the umask. */
static int find_default_acl(struct creation *c)
{
	ssize_t n;

	if (!c->o->has_acl || inode_has(c->parent, INODE_NO_DEFACL))
		return 0;
	n = layer_getxattr(c->dir, "", ACL_DEFAULT, NULL, 0);
	if (n == -ENODATA || n == -EOPNOTSUPP) {
		inode_set(c->parent, INODE_NO_DEFACL);
		return 0;
	}
	c->has_default_acl = n > 0;
	return n < 0 ? (int)n : 0;
}

/* Whether what we make belongs to the caller from the beginning. */
static bool makes_as_caller(const struct creation *c)
{
	if (override_in_upper(c->o))
		return false;
	return c->o->may_setfsid || (c->caller->uid == c->o->uid && c->caller->gid == c->o->gid);
}

/* Finds out what is in the way that the union does not show. */
static int find_hiding_file(struct creation *c)
{
	int r = wh_hides(c->o, c->parent, c->dir, c->name);

	c->over_file = r > 0;
	return min(r, 0);
}

/* The name is taken by a whiteout. */
static int create_over_whiteout(struct creation *c)
{
	int err;

	if (!c->o->whiteouts_are_files) {
		c->over_whiteout = true;
		return make_through_work(c);
	}
	err = whiteout_to_file(c->o, c->parent, c->dir, c->name);
	c->over_file = err == 0;
	return err < 0 ? err : make_through_work(c);
}

/* Makes the object under the parent's lock. */
static int create_locked(struct creation *c)
{
	bool in_place = makes_as_caller(c);
	int err = find_default_acl(c);

	if (err == 0)
		err = find_hiding_file(c);
	if (err < 0)
		return err;
	if (c->over_file && S_ISDIR(c->mode))
		in_place = false;
	if (!c->has_default_acl && !S_ISLNK(c->mode))
		c->mode &= ~(c->caller->umask & 0777);
	if (in_place) {
		err = make_as_caller(c, layer_fd(c->dir), c->name);
		if ((err == -EACCES || err == -EPERM) && c->caller->uid != c->o->uid)
			in_place = false; /* without our capabilities: build it as ourselves */
	}
	if (!in_place)
		err = make_through_work(c);
	if (err == -EEXIST && upper_has_whiteout(c->o, c->dir, c->name))
		err = create_over_whiteout(c);
	return err;
}

/*
 * Layers that may not change while they are not mounted need no second look below a new directory:
 * the kernel's overlayfs marks it so.
 */
static void spare_lookups(struct creation *c)
{
	const struct ovl_features *f = &c->o->features;
	bool layers_may_change = !f->index && !f->metacopy && f->redirect != OVL_REDIRECT_ON &&
				 f->xino != OVL_XINO_ON;

	if (!S_ISDIR(c->mode) || c->opaque || layers_may_change || c->o->no_xattr ||
	    !inode_lowers(c->parent))
		return;
	c->opaque = mark_set(c->o, c->dir, c->name, FMT_OPAQUE, "y", 1) == 0;
}

/* Makes the inode of an object just made. */
static int adopt_new(struct creation *c, struct ovl_inode **out)
{
	struct looked_up l = { .flags = INODE_UPPER | (c->opaque ? INODE_OPAQUE : 0) };
	int err = layer_stat(c->dir, c->name, &l.st);

	c->st = l.st;
	if (err < 0)
		return err;
	l.ino = ino_compose(c->o, statx_dev(&l.st), l.st.stx_ino);
	if (S_ISDIR(l.st.stx_mode)) {
		l.stack = calloc(1, sizeof(*l.stack));
		if (!l.stack)
			return -ENOMEM;
	}
	err = lookup_instantiate(c->o, c->parent, c->name, &l, out);
	looked_up_free(&l);
	return err;
}

/* Out of memory after the fact: the name is again what it was. */
static void undo(struct creation *c)
{
	bool is_dir = S_ISDIR(c->mode);
	int work = layer_fd(c->o->work);
	char temp[FMT_TEMP_NAME_MAX];

	if (!c->over_whiteout) {
		remove_tree(layer_fd(c->dir), c->name, 1);
	} else if (!is_dir) {
		whiteout_at(c->o, c->parent, c->dir, c->name, true);
	} else if (whiteout_make(c->o, temp) == 0) {
		at_rename(work, temp, layer_fd(c->dir), c->name, RENAME_EXCHANGE);
		work_remove(c->o, temp);
	}
}

static int create(struct creation *c, struct ovl_inode **out)
{
	int err = name_check(c->o, c->name);

	if (err == 0)
		err = protattr_check(c->parent, true);
	if (err == 0)
		err = upper_parent(c->o, c->caller, c->parent, &c->dir);
	if (err < 0)
		return err;
	lock_take(&c->parent->lock);
	err = create_locked(c);
	if (err == 0) {
		dir_changed(c->parent);
		spare_lookups(c);
		err = adopt_new(c, out);
		if (err < 0)
			undo(c);
		else if (c->over_file)
			wh_drop(c->o, c->parent, c->dir, c->name);
		if (S_ISDIR(c->mode))
			links_changed(c->parent);
	}
	lock_drop(&c->parent->lock);
	layer_ref_put(c->dir);
	return err;
}

/* @i's contents are open as @fd, which is taken over. */
static int adopt_fd(struct ovl *o, struct ovl_inode *i, int *fd)
{
	struct layer_ref *ref = layer_dir_adopt(&o->layers[0], *fd, true);

	if (!ref)
		return -ENOMEM;
	take_fd(fd);
	fdcache_set(&o->fds, &i->file, ref);
	layer_ref_put(ref);
	return 0;
}

static int create_entry(struct creation *c, ovl_node parent, bool keep_open, struct ovl_entry *out)
{
	struct ovl_inode *i = NULL;
	int err;

	c->fd = -1;
	c->parent = inode_get_dir(c->o, parent, &err);
	if (!c->parent)
		return err;
	err = create(c, &i);
	if (err == 0 && keep_open)
		adopt_fd(c->o, i, &c->fd); /* or it is opened again when it is needed */
	if (err == 0)
		entry_take(c->o, i, &c->st, out);
	if (err == 0 && keep_open)
		inode_opened(i);
	close_fd(c->fd);
	inode_put(c->o, i);
	inode_put(c->o, c->parent);
	return err;
}

int ovl_mknod(struct ovl *o, const struct ovl_caller *caller, ovl_node parent, const char *name,
	      mode_t mode, dev_t rdev, struct ovl_entry *out)
{
	struct creation c = { .o = o, .caller = caller, .name = name, .mode = mode, .rdev = rdev };

	if (!(mode & S_IFMT))
		c.mode |= S_IFREG;
	if (S_ISCHR(mode) && rdev == 0) /* it would be a whiteout */
		return -EPERM;
	if (S_ISDIR(mode) || S_ISLNK(mode))
		return -EINVAL;
	return create_entry(&c, parent, false, out);
}

int ovl_mkdir(struct ovl *o, const struct ovl_caller *caller, ovl_node parent, const char *name,
	      mode_t mode, struct ovl_entry *out)
{
	struct creation c = {
		.o = o, .caller = caller, .name = name, .mode = S_IFDIR | (mode & 07777)
	};

	return create_entry(&c, parent, false, out);
}

int ovl_symlink(struct ovl *o, const struct ovl_caller *caller, ovl_node parent, const char *name,
		const char *target, struct ovl_entry *out)
{
	struct creation c = {
		.o = o, .caller = caller, .name = name, .mode = S_IFLNK | 0777, .target = target
	};

	return create_entry(&c, parent, false, out);
}

int ovl_create_file(struct ovl *o, const struct ovl_caller *caller, ovl_node parent,
		    const char *name, mode_t mode, int flags, struct ovl_entry *out)
{
	struct creation c = {
		.o = o, .caller = caller, .name = name, .mode = S_IFREG | (mode & 07777)
	};

	return create_entry(&c, parent, true, out);
}

/* An inode without a name for an O_TMPFILE. @fd is taken over. */
static int adopt_tmpfile(struct ovl *o, int *fd, struct ovl_inode **out)
{
	struct ovl_inode *i;
	struct statx st;
	autofd int self = fcntl(*fd, F_DUPFD_CLOEXEC, 3);
	int err = self < 0 ? -errno : at_statx(*fd, "", &st);

	if (err < 0)
		return err;
	i = inode_new(o, DT_REG, NULL);
	if (!i)
		return -ENOMEM;
	i->flags = INODE_UPPER | INODE_ORPHAN;
	i->ino = ino_compose(o, statx_dev(&st), st.stx_ino);
	i->self = layer_dir_adopt(&o->layers[0], self, true);
	if (i->self) {
		take_fd(&self);
		err = inode_insert(o, i);
	} else {
		err = -ENOMEM;
	}
	if (err == 0)
		err = adopt_fd(o, i, fd);
	if (err < 0)
		inode_put(o, i);
	else
		*out = i;
	return err;
}

/* In work, which hands down nothing by itself. */
static int open_overridden_tmpfile(struct creation *c)
{
	int err;

	c->fd = openat(layer_fd(c->o->work), ".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	err = c->fd < 0 ? -errno : 0;
	if (err == 0)
		err = inherit_and_dress(c, c->fd, "");
	return err == -EISDIR || err == -ENOENT ? -EOPNOTSUPP : err;
}

static int open_tmpfile(struct creation *c)
{
	bool switched;
	int err = find_default_acl(c);

	if (err < 0)
		return err;
	if (!c->has_default_acl)
		c->mode &= ~(c->caller->umask & 0777);
	if (override_in_upper(c->o))
		return open_overridden_tmpfile(c);
	switched = become(c);
	c->fd = openat(layer_fd(c->dir), ".", O_TMPFILE | O_RDWR | O_CLOEXEC, c->mode & 07777);
	err = c->fd < 0 ? -errno : 0;
	if (switched)
		come_back(c);
	if (err == 0 && !makes_as_caller(c))
		err = at_chown(c->fd, "", c->caller->uid, c->caller->gid);
	return err == -EISDIR || err == -ENOENT ? -EOPNOTSUPP : err;
}

int ovl_tmpfile(struct ovl *o, const struct ovl_caller *caller, ovl_node parent, mode_t mode,
		int flags, struct ovl_entry *out)
{
	struct creation c = {
		.o = o, .caller = caller, .mode = S_IFREG | (mode & 07777), .fd = -1
	};
	struct ovl_inode *i = NULL;
	int err;

	c.parent = inode_get_dir(o, parent, &err);
	if (!c.parent)
		return err;
	err = protattr_check(c.parent, true);
	if (err == 0)
		err = upper_parent(o, caller, c.parent, &c.dir);
	if (err == 0) {
		lock_take(&c.parent->lock);
		err = open_tmpfile(&c);
		lock_drop(&c.parent->lock);
	}
	if (err == 0)
		err = adopt_tmpfile(o, &c.fd, &i);
	if (err == 0)
		err = entry_fill(o, i, out);
	if (err == 0)
		inode_opened(i);
	close_fd(c.fd);
	layer_ref_put(c.dir);
	inode_put(o, i);
	inode_put(o, c.parent);
	return err;
}

/* Links the real object, over a whiteout at need. The locks of both are held. */
static int link_real(struct ovl *o, struct reach *from, struct layer_ref *dir, const char *name)
{
	char temp[FMT_TEMP_NAME_MAX];
	int err = at_link(layer_fd(from->at), from->name, layer_fd(dir), name);

	if (err != -EEXIST || !upper_has_whiteout(o, dir, name))
		return err;
	temp_name(o, temp);
	err = at_link(layer_fd(from->at), from->name, layer_fd(o->work), temp);
	if (err < 0)
		return err;
	err = at_rename(layer_fd(o->work), temp, layer_fd(dir), name, 0);
	if (err < 0)
		work_remove(o, temp);
	return err;
}

static int link_inode(struct ovl *o, const struct ovl_caller *caller, struct ovl_inode *i,
		      struct ovl_inode *parent, struct layer_ref *dir, const char *name)
{
	struct layer_ref *self = NULL;
	struct ovl_inode *other = NULL;
	struct statx st;
	struct reach r;
	struct ovl_name *n = name_new(parent, name, strlen(name));
	int err = n ? reach_in(o, caller, parent, i, &r) : -ENOMEM;

	if (err < 0) {
		name_free(o, n);
		return err;
	}
	err = protattr_check(i, false);
	if (err == 0 && inode_has(i, INODE_ORIGIN))
		err = mark_impure(o, parent, dir);
	if (err == 0)
		err = index_nlink_start(o, i);
	if (err == 0)
		err = link_real(o, &r, dir, name);
	if (err == 0) {
		dir_changed(parent);
		wh_drop(o, parent, dir, name);
		index_nlink_added(i);
		name_insert(o, n, i, &other);
		if (i->self) { /* an O_TMPFILE gets its first name */
			self = i->self;
			i->self = NULL;
			inode_clear(i, INODE_ORPHAN);
		}
		if (layer_stat(dir, name, &st) == 0)
			entry_linked(o, i, &st);
	} else {
		name_free(o, n);
	}
	reach_in_done(parent, i, &r);
	layer_ref_put(self);
	inode_put(o, other);
	return err;
}

/* Whatever name a metacopy gets, it has to lead to the data. */
static int redirect_for_link(struct ovl *o, struct ovl_inode *i)
{
	autoref struct layer_ref *at = NULL;
	int err = 0;

	if (!inode_is_metacopy(i))
		return 0;
	pthread_rwlock_rdlock(&o->topology);
	lock_take(&i->lock);
	if (inode_is_metacopy(i) && i->names) {
		err = dir_ref(o, i->names->parent, 0, true, &at);
		if (err == 0)
			err = redirect_set(o, i->names->parent, at, i->names->text, i->names->text,
					   true);
	}
	lock_drop(&i->lock);
	pthread_rwlock_unlock(&o->topology);
	return err;
}

int ovl_link(struct ovl *o, const struct ovl_caller *caller, ovl_node node, ovl_node parent,
	     const char *name, struct ovl_entry *out)
{
	autoref struct layer_ref *dir = NULL;
	struct ovl_inode *i = inode_get(o, node);
	int err;
	struct ovl_inode *p = inode_get_dir(o, parent, &err);

	if (!i)
		err = -ESTALE;
	else if (err == 0 && i->dir)
		err = -EPERM;
	if (err == 0)
		err = name_check(o, name);
	if (err == 0)
		err = protattr_check(p, true);
	if (err == 0) /* before anything is copied up for nothing */
		err = protattr_check(i, false);
	if (err == 0)
		err = copy_up(o, caller, i, COPY_META);
	if (err == 0)
		err = upper_parent(o, caller, p, &dir);
	if (err == 0)
		err = redirect_for_link(o, i);
	if (err == 0)
		err = link_inode(o, caller, i, p, dir, name);
	if (err == 0)
		err = entry_fill(o, i, out);
	inode_put(o, i);
	inode_put(o, p);
	return err;
}
