// SPDX-License-Identifier: MIT
/* workdir: what crashes left, and the marks of mounts that did not end cleanly. */
#include <dirent.h>
#include <fcntl.h>
#include <string.h>

#include "fsck/private.h"

/* The kernel empties workdir/work as deep when it mounts. */
#define SWEPT_DEPTH 2

static int for_each(struct fsck *f, int at, const char *name,
		    int (*fn)(struct fsck *f, int dirfd, const char *name))
{
	autodir DIR *dir = NULL;
	struct dirent *d;
	int err = at_opendir(at, name, &dir);

	if (err == -ENOENT)
		return 0;
	while (err == 0 && (d = at_readdir(dir)))
		err = fn(f, dirfd(dir), d->d_name);
	return err;
}

/* How many levels of directories there are, no more than @limit. */
static unsigned int depth_of(int parent, const char *name, unsigned int limit)
{
	autodir DIR *dir = NULL;
	unsigned int deepest = 0;
	struct dirent *d;
	int err = at_opendir(parent, name, &dir);

	if (err < 0)
		return err == -EACCES ? limit : 0;
	while (limit && deepest < limit && (d = at_readdir(dir))) {
		unsigned int depth = 1 + depth_of(dirfd(dir), d->d_name, limit - 1);

		deepest = max(deepest, depth);
	}
	return deepest;
}

static int remove_all(int parent, const char *name)
{
	autodir DIR *dir = NULL;
	struct dirent *d;
	int err = at_unlink(parent, name, 0);

	if (err != -EISDIR && err != -EPERM)
		return err;
	err = at_unlink(parent, name, AT_REMOVEDIR);
	if (err != -ENOTEMPTY && err != -EEXIST)
		return err;
	at_chmod(parent, name, 0700);
	err = at_opendir(parent, name, &dir);
	while (err == 0 && (d = at_readdir(dir)))
		err = remove_all(dirfd(dir), d->d_name);
	return err < 0 ? err : at_unlink(parent, name, AT_REMOVEDIR);
}

static int offer_removal(struct fsck *f, int dirfd, const char *name, enum fsck_kind kind,
			 const char *path)
{
	int err = finding_in(f, kind, "workdir", path, "");

	if (err <= 0)
		return err;
	return repaired_in(f, kind, "workdir", path, remove_all(dirfd, name));
}

static int check_leftover(struct fsck *f, int dirfd, const char *name)
{
	autofree char *path = path_join("work", name);
	struct statx st;
	int err;

	if (!path)
		return -ENOMEM;
	err = at_statx(dirfd, name, &st);
	if (err < 0)
		return err == -ENOENT ? 0 : err;
	/* The whiteout that all others are links of stays here between mounts. */
	if (fmt_is_whiteout(&st) && name[0] == '#')
		return 0;
	if (!strcmp(name, "incompat") && S_ISDIR(st.stx_mode))
		return 0;
	if (S_ISDIR(st.stx_mode) && depth_of(dirfd, name, SWEPT_DEPTH + 1) > SWEPT_DEPTH)
		return offer_removal(f, dirfd, name, FSCK_WORK_DEEP, path);
	return offer_removal(f, dirfd, name, FSCK_WORK_LEFTOVER, path);
}

static int check_incompat(struct fsck *f, int dirfd, const char *name)
{
	enum fsck_kind kind = f->config->discard_volatile ? FSCK_VOLATILE_DISCARD : FSCK_VOLATILE;

	if (strcmp(name, "volatile") != 0) {
		snprintf(f->message, f->size,
			 "workdir %s was used with the feature '%s', which is not known: nothing "
			 "was checked",
			 f->config->work, name);
		return -EMEDIUMTYPE;
	}
	return offer_removal(f, dirfd, name, kind, "work/incompat/volatile");
}

static int check_top(struct fsck *f, int dirfd, const char *name)
{
	struct statx st;
	int err = at_statx(dirfd, name, &st);
	bool ours = !strcmp(name, "work") || !strcmp(name, "index");

	if (err < 0)
		return err == -ENOENT ? 0 : err;
	if (ours && S_ISDIR(st.stx_mode))
		return 0;
	/* The kernel sweeps what is in the way of its directories. */
	if (ours)
		return offer_removal(f, dirfd, name, FSCK_WORK_LEFTOVER, name);
	return min(finding_in(f, FSCK_WORK_FOREIGN, "workdir", name, ""), 0);
}

int work_check(struct fsck *f)
{
	int fd = layer_fd(f->workdir);
	autofd int work = -1;
	int err = for_each(f, fd, "", check_top);

	if (err == 0) {
		work = at_open(fd, "work", O_PATH | O_DIRECTORY);
		if (work == -ENOENT || work == -ENOTDIR)
			return 0;
		err = min(work, 0);
	}
	if (err == 0)
		err = for_each(f, work, "incompat", check_incompat);
	if (err == 0)
		err = for_each(f, work, "", check_leftover);
	if (err == -EACCES || err == -EPERM)
		return min(finding_in(f, FSCK_WORK_HIDDEN, "workdir", "work", ""), 0);
	return err;
}
