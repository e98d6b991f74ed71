// SPDX-License-Identifier: MIT
/*
 * workdir/work: where everything is built before a rename shows it. What a crash leaves there is
 * swept by the next mount. The shared whiteout lives there as well.
 */
#include <dirent.h>
#include <fcntl.h>

#include "overlay/dirnames.h"
#include "overlay/override.h"
#include "overlay/whfile.h"
#include "util/at.h"
#include "util/log.h"

/* The kernel's overlayfs sweeps work as deep; what lies deeper, no overlay has made. */
#define SWEEP_DEPTH 3

void temp_name(struct ovl *o, char out[FMT_TEMP_NAME_MAX])
{
	fmt_temp_name(atomic_fetch_add_explicit(&o->temp_counter, 1, memory_order_relaxed) + 1,
		      out);
}

int remove_tree(int parent, const char *name, unsigned int depth)
{
	autodir DIR *dir = NULL;
	struct dirent *d;
	int fd;
	int err = at_unlink(parent, name, 0);

	if (err != -EISDIR && err != -EPERM)
		return err == -ENOENT ? 0 : err;
	err = at_unlink(parent, name, AT_REMOVEDIR);
	if (err != -ENOTEMPTY && err != -EEXIST && err != -EACCES)
		return err;
	if (depth == 0)
		return err;
	err = at_opendir(parent, name, &dir);
	if (err == -EACCES) { /* our own, but with a mode that keeps even us out */
		at_chmod(parent, name, 0700);
		err = at_opendir(parent, name, &dir);
	}
	if (err < 0)
		return err;
	fd = dirfd(dir);
	while ((d = at_readdir(dir)))
		remove_tree(fd, d->d_name, depth - 1);
	err = at_unlink(parent, name, AT_REMOVEDIR);
	if (err == -EACCES || err == -EPERM) {
		at_chmod(fd, "", 0700);
		err = at_unlink(parent, name, AT_REMOVEDIR);
	}
	return err;
}

void work_remove(struct ovl *o, const char *name)
{
	remove_tree(layer_fd(o->work), name, 1);
}

/* Whether work/incompat holds anything that this mount heeds; its first name is stored. */
static bool find_incompat(const struct ovl *o, int work_fd, char name[NAME_MAX + 1])
{
	autodir DIR *dir = NULL;
	struct dirent *d;

	if (at_opendir(work_fd, "incompat", &dir) < 0)
		return false;
	do {
		d = at_readdir(dir);
	} while (d && o->compat.unmarked_volatile && !strcmp(d->d_name, "volatile"));
	if (d)
		snprintf(name, NAME_MAX + 1, "%s", d->d_name);
	return d;
}

/* Empties work, whose mode may be the kernel's 0000. */
static int sweep(int work_fd, const char *path, char *message, size_t size)
{
	autodir DIR *dir = NULL;
	struct dirent *d;
	int err = at_opendir(work_fd, "", &dir);

	if (err < 0) {
		snprintf(message, size, "cannot read workdir %s/work: %s", path, strerror(-err));
		return err;
	}
	while ((d = at_readdir(dir))) {
		err = remove_tree(dirfd(dir), d->d_name, SWEEP_DEPTH - 1);
		if (err < 0) {
			snprintf(message, size,
				 "workdir %s/work holds '%s', which no overlay left there and "
				 "which cannot be swept (%s): give another workdir",
				 path, d->d_name, strerror(-err));
			return err;
		}
	}
	return 0;
}

static int make_work(int workdir_fd, bool *made)
{
	int err;

	*made = mkdirat(workdir_fd, "work", 0700) == 0;
	if (*made || errno != EEXIST)
		return *made ? 0 : -errno;
	err = at_open(workdir_fd, "work", O_PATH | O_DIRECTORY);
	if (err >= 0) {
		close_fd(err);
		return 0;
	}
	if (err != -ENOTDIR && err != -ELOOP)
		return err;
	/* A file, or a symlink: swept like what is inside. */
	err = at_unlink(workdir_fd, "work", 0);
	if (err == 0 && mkdirat(workdir_fd, "work", 0700) < 0)
		err = -errno;
	return err;
}

static int new_whiteout(struct ovl *o, char name[FMT_TEMP_NAME_MAX])
{
	temp_name(o, name);
	return mknodat(layer_fd(o->work), name, S_IFCHR, 0) < 0 ? -errno : 0;
}

/* It says nothing of what the filesystem can do; and who mounts may want to free room. */
static bool is_full(int err)
{
	return err == -ENOSPC || err == -EDQUOT;
}

/* Whether the two kinds of rename(2) that whiteouts need are there: not over a network, nor on
 * FUSE. */
static bool whiteouts_move(struct ovl *o)
{
	int work = layer_fd(o->work);
	char temp[FMT_TEMP_NAME_MAX];
	int err;

	temp_name(o, temp);
	err = at_rename(work, o->whiteout, work, temp, RENAME_WHITEOUT);
	if (err == 0)
		err = at_rename(work, o->whiteout, work, temp, RENAME_EXCHANGE);
	at_unlink(work, temp, 0);
	return err == 0 || is_full(err);
}

/* Whether whiteouts can be files: not where another mount keeps such names to itself. */
static int probe_files(struct ovl *o)
{
	static const char name[] = FMT_WH_PREFIX "probe";
	int work = layer_fd(o->work);

	if (mknodat(work, name, S_IFREG, 0) < 0)
		return is_full(-errno) ? 0 : -errno;
	return at_unlink(work, name, 0);
}

/* Chooses how whiteouts are made, and makes the one that all devices are links to. */
static int begin_whiteouts(struct ovl *o)
{
	int err = 0;

	o->whiteouts_are_files = o->compat.no_device_whiteouts;
	if (!o->whiteouts_are_files)
		err = new_whiteout(o, o->whiteout);
	if (err == 0 && !o->whiteouts_are_files && o->compat.whiteout_files)
		o->whiteouts_are_files = !whiteouts_move(o);
	else if (err < 0)
		o->whiteout[0] = '\0';
	if (is_full(err)) /* the first one that is needed shows it */
		err = 0;
	if (err < 0 && o->compat.whiteout_files) {
		log_info("whiteouts will be files: mknod of a character device 0:0 in workdir: %s",
			 strerror(-err));
		o->whiteouts_are_files = true;
		if (o->features.nfs_export)
			log_warning("nfs_export=on needs an index with whiteouts: nfs_export=off");
		o->features.nfs_export = false; /* its index is the kernel's, and has no files */
	}
	if (o->whiteouts_are_files)
		err = probe_files(o);
	if (o->whiteouts_are_files && o->whiteout[0]) {
		at_unlink(layer_fd(o->work), o->whiteout, 0);
		o->whiteout[0] = '\0';
	}
	return err;
}

/*
 * What is made in work is our user's and, whether groups come from the maker or from the directory,
 * our group's. Where the filesystem makes it somebody else's (a squashed root), work is, too. Nor
 * does it inherit anything, unless that could not be taken from work.
 */
static bool work_is_ours(const struct ovl *o)
{
	struct statx st;

	return at_statx(layer_fd(o->work), "", &st) == 0 && st.stx_uid == o->uid &&
	       st.stx_gid == o->gid && !(st.stx_mode & S_ISGID) &&
	       layer_getxattr(o->work, "", ACL_DEFAULT, NULL, 0) < 0 && !override_in_upper(o);
}

int workdir_prepare(struct ovl *o, struct layer_ref *workdir, const char *path, char *message,
		    size_t size)
{
	int fd = layer_fd(workdir);
	char name[NAME_MAX + 1];
	bool made;
	int err = make_work(fd, &made);

	if (err == 0)
		err = layer_open(workdir, "work", LAYER_OPEN_PATH, &o->work);
	if (err < 0) {
		snprintf(message, size,
			 "cannot make %s/work: %s: give a workdir that can be written", path,
			 strerror(-err));
		return err;
	}
	fd = layer_fd(o->work);
	err = at_chmod(fd, "", 0700);
	if (err == 0 && !made) {
		if (find_incompat(o, fd, name)) {
			snprintf(
				message, size,
				"workdir %s was used with the incompatible feature '%s': upper may "
				"be damaged; if that is acceptable, remove %s/work/incompat first",
				path, name, path);
			return -EINVAL;
		}
		err = sweep(fd, path, message, size);
		if (err < 0)
			return err;
	}
	/* A default ACL of workdir must not reach what is built here. */
	at_removexattr(fd, "", ACL_DEFAULT);
	at_removexattr(fd, "", ACL_ACCESS);
	if (err == 0) {
		err = begin_whiteouts(o);
		if (err < 0) {
			snprintf(message, size,
				 "upperdir's filesystem cannot hold whiteouts (mknod of a %s in "
				 "%s/work: %s): give upperdir and workdir elsewhere",
				 o->whiteouts_are_files ? "file " FMT_WH_PREFIX "probe"
							: "character device 0:0",
				 path, strerror(-err));
			return err == -EPERM || err == -EOPNOTSUPP ? -EINVAL : err;
		}
	}
	/* Mode 0000 as the kernel's, unless modes bind us. */
	if (err == 0)
		err = at_chmod(fd, "", o->overrides_modes ? 0 : 0700);
	o->work_is_ours = err == 0 && work_is_ours(o);
	if (err < 0)
		snprintf(message, size, "cannot prepare workdir %s/work: %s", path, strerror(-err));
	return err;
}

void work_move(struct ovl *o, struct layer_ref *dir)
{
	struct layer_ref *old = o->work;

	if (o->whiteout[0])
		at_unlink(layer_fd(old), o->whiteout, 0);
	o->whiteout[0] = '\0';
	o->work = layer_ref_get(dir);
	o->work_is_ours = work_is_ours(o);
	layer_ref_put(old);
}

int workdir_mark_volatile(struct ovl *o)
{
	static const char *const dirs[] = { "incompat", "incompat/volatile" };
	/* Modes as the kernel's, unless they would keep the owner from removing it. */
	mode_t mode = o->overrides_modes ? 0 : 0700;
	int work = layer_fd(o->work);
	int fd;

	for (size_t n = 0; n < ARRAY_SIZE(dirs); n++)
		if (mkdirat(work, dirs[n], mode) < 0)
			return -errno;
	fd = openat(work, "incompat/volatile/dirty", O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	close_fd(fd);
	return 0;
}

void workdir_close(struct ovl *o)
{
	/*
	 * The shared whiteout stays, as the kernel's does: after the unmount work may be somebody
	 * else's already, who sweeps it.
	 */
	layer_ref_put(o->work);
	o->work = NULL;
	layer_ref_put(o->index);
	o->index = NULL;
}

/* RENAME_NOREPLACE on a filesystem that does not know it. */
static int publish_without_flag(int work, const char *temp, bool is_dir, int dirfd,
				const char *name)
{
	struct statx st;
	int err;

	if (is_dir) {
		if (mkdirat(dirfd, name, 0) < 0) /* an empty directory can be replaced */
			return -errno;
		return at_rename(work, temp, dirfd, name, 0);
	}
	err = at_link(work, temp, dirfd, name);
	if (err == 0)
		return at_unlink(work, temp, 0);
	if (err != -EPERM && err != -EOPNOTSUPP)
		return err;
	/* Without links either. Upper is ours alone, and who makes names in a directory holds its
	 * lock.
	 */
	err = at_statx(dirfd, name, &st);
	if (err == 0)
		return -EEXIST;
	return err == -ENOENT ? at_rename(work, temp, dirfd, name, 0) : err;
}

int work_publish(struct ovl *o, const char *temp, mode_t mode, int dirfd, const char *name,
		 unsigned int flags)
{
	int work = layer_fd(o->work);
	mode_t real = object_real_mode(o, mode);
	bool mode_later = S_ISDIR(real) && !(real & S_IWUSR) && !o->overrides_modes;
	int err = 0;

	if (mode_later)
		err = at_chmod(work, temp, (mode & 07777) | S_IWUSR);
	if (err == 0)
		err = at_rename(work, temp, dirfd, name, flags);
	if (err == -EINVAL && flags == RENAME_NOREPLACE)
		err = publish_without_flag(work, temp, S_ISDIR(mode), dirfd, name);
	if (err == 0 && mode_later)
		err = at_chmod(dirfd, name, mode & 07777);
	return err;
}

/* The name of the shared whiteout in work. -EMLINK: there is none, nor can be. */
static int shared_whiteout(struct ovl *o, char name[FMT_TEMP_NAME_MAX])
{
	int err = 0;

	name[0] = '\0';
	pthread_mutex_lock(&o->whiteout_lock);
	if (o->whiteout_no_link)
		err = -EMLINK;
	else if (!o->whiteout[0])
		err = new_whiteout(o, o->whiteout);
	if (err == 0)
		memcpy(name, o->whiteout, FMT_TEMP_NAME_MAX);
	else
		o->whiteout[0] = '\0';
	pthread_mutex_unlock(&o->whiteout_lock);
	return err;
}

/* Whiteouts are not to be linked to @name any more. @for_good: nor to any other. */
static void give_up_shared(struct ovl *o, const char *name, bool for_good)
{
	pthread_mutex_lock(&o->whiteout_lock);
	if (name[0] && !strcmp(o->whiteout, name)) {
		at_unlink(layer_fd(o->work), name, 0);
		o->whiteout[0] = '\0';
	}
	o->whiteout_no_link |= for_good;
	pthread_mutex_unlock(&o->whiteout_lock);
}

/*
 * Links the shared whiteout to @name in @dirfd. -EMLINK when that cannot be done (any more); the
 * next call begins a new one.
 */
static int link_shared(struct ovl *o, int dirfd, const char *name)
{
	char shared[FMT_TEMP_NAME_MAX];
	int err;

	for (int tries = 0; tries < 2; tries++) {
		err = shared_whiteout(o, shared);
		if (err < 0)
			return err;
		err = at_link(layer_fd(o->work), shared, dirfd, name);
		if (err != -ENOENT)
			break;
		/* Somebody swept work while it was in use, or has just given this one up. */
		give_up_shared(o, shared, false);
	}
	if (err == -EMLINK)
		give_up_shared(o, shared, false);
	if (err != -EPERM && err != -EOPNOTSUPP)
		return err;
	give_up_shared(o, shared, true);
	return -EMLINK;
}

int whiteout_make(struct ovl *o, char name[FMT_TEMP_NAME_MAX])
{
	int err;

	temp_name(o, name);
	err = link_shared(o, layer_fd(o->work), name);
	return err == -EMLINK ? new_whiteout(o, name) : err;
}

int whiteout_to_file(struct ovl *o, struct ovl_inode *dir, struct layer_ref *upper,
		     const char *name)
{
	int err = wh_put(o, dir, upper, name);

	return err < 0 ? err : at_unlink(layer_fd(upper), name, 0);
}

int opaque_make(struct ovl *o, struct layer_ref *at, const char *name)
{
	int err = o->no_xattr ? -EOPNOTSUPP : mark_set(o, at, name, FMT_OPAQUE, "y", 1);

	if (err == -EOPNOTSUPP && o->compat.whiteout_files)
		err = wh_put_opaque(layer_fd(at), name);
	return err;
}

int whiteout_at(struct ovl *o, struct ovl_inode *dir, struct layer_ref *upper, const char *name,
		bool replace)
{
	char temp[FMT_TEMP_NAME_MAX];
	int dirfd = layer_fd(upper);
	int err;

	if (o->whiteouts_are_files)
		return replace ? whiteout_to_file(o, dir, upper, name)
			       : min(wh_put(o, dir, upper, name), 0);
	names_expect(o, dir, name);
	if (!replace) {
		err = link_shared(o, dirfd, name);
		if (err != -EMLINK)
			return err;
	}
	err = whiteout_make(o, temp);
	if (err < 0)
		return err;
	err = at_rename(layer_fd(o->work), temp, dirfd, name, 0);
	if (err < 0)
		at_unlink(layer_fd(o->work), temp, 0);
	return err;
}
