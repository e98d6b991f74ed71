// SPDX-License-Identifier: MIT
/*
 * Files that came from the same lower one, as after a copy of upper directories with all their
 * marks. The kernel knows an object by its lower inode: of two it opens the first that is looked
 * up, and the other not at all. So only one may say where it came from, and what takes its data
 * from there gets it for good.
 */
#include <fcntl.h>
#include <string.h>
#include <sys/sysmacros.h>

#include "fsck/private.h"

#define CAPABILITY "security.capability"

int copies_note(struct fsck *f, struct level *dir, const struct object *o, const struct fmt_fh *fh,
		const struct statx *lower)
{
	struct copy *c;

	if (!(f->copy_count & (f->copy_count - 1))) {
		size_t room = f->copy_count ? 2 * f->copy_count : 1;
		struct copy *copies = reallocarray(f->copies, room, sizeof(*copies));

		if (!copies)
			return -ENOMEM;
		f->copies = copies;
	}
	c = &f->copies[f->copy_count];
	*c = (struct copy){
		.path = strdup(o->path),
		.below_path = dir->below_path ? path_join(dir->below_path, o->name) : NULL,
		.ino = o->st.stx_ino,
		.lower_dev = makedev(lower->stx_dev_major, lower->stx_dev_minor),
		.lower_ino = lower->stx_ino,
		.origin = *fh,
		.linked = object_has(o, FMT_NLINK) && o->st.stx_nlink > 1,
	};
	f->copy_count++;
	return c->path && (c->below_path || !dir->below_path) ? 0 : -ENOMEM;
}

static int compare_copies(const void *pa, const void *pb)
{
	const struct copy *a = pa;
	const struct copy *b = pb;

	if (a->lower_dev != b->lower_dev)
		return a->lower_dev < b->lower_dev ? -1 : 1;
	if (a->lower_ino != b->lower_ino)
		return a->lower_ino < b->lower_ino ? -1 : 1;
	return strcmp(a->path, b->path);
}

static bool same_origin(const struct copy *a, const struct copy *b)
{
	return a->lower_dev == b->lower_dev && a->lower_ino == b->lower_ino;
}

/* Writes what the union of the lower layers shows of @below into the file. */
static int copy_contents(struct fsck *f, const struct below *below, int fd)
{
	enum { CHUNK = 1 << 17 };
	autofree char *buf = malloc(CHUNK);
	off_t off = 0;

	if (!buf)
		return -ENOMEM;
	for (;;) {
		ssize_t n = fsck_cancelled(f) ? -ECANCELED
					      : ovl_read(f->below, below->node, buf, CHUNK, off);

		if (n < 0)
			return (int)n;
		if (n == 0)
			return fdatasync(fd) < 0 ? -errno : 0;
		for (ssize_t done = 0; done < n;) {
			ssize_t w = pwrite(fd, buf + done, (size_t)(n - done), off + done);

			if (w < 0)
				return -errno;
			done += w;
		}
		off += n;
	}
}

/* The file stays a metacopy until all its data is there. */
static int fill(struct fsck *f, const struct object *o, const struct below *below)
{
	char capability[64];
	ssize_t size = at_getxattr(o->dirfd, o->name, CAPABILITY, capability, sizeof(capability));
	autofd int fd = at_open(o->dirfd, o->name, O_WRONLY | O_NONBLOCK);
	int err = fd < 0 ? fd : copy_contents(f, below, fd);

	/* writing took away what lets it be run with more rights */
	if (err == 0 && (o->st.stx_mode & (S_ISUID | S_ISGID)))
		err = at_chmod(o->dirfd, o->name, o->st.stx_mode & 07777);
	if (err == 0 && size > 0)
		err = at_setxattr(o->dirfd, o->name, CAPABILITY, capability, (size_t)size, 0);
	if (err == 0) {
		times_restore(fd, &o->st);
		err = object_unset(f, o, FMT_METACOPY);
	}
	return err;
}

static int fill_metacopy(struct fsck *f, const struct copy *c, const struct object *o)
{
	size_t size = 0;
	autofree char *redirect = object_redirect(f, o, &size);
	struct below b = { 0 };
	int err = -ENODATA;

	if (redirect && *redirect == '/')
		below_walk(f, redirect, &b);
	else if (c->below_path && !redirect)
		below_walk(f, c->below_path, &b);
	else if (c->below_path) {
		char *slash = strrchr(c->below_path, '/');
		autofree char *dir =
			strndup(c->below_path, slash ? (size_t)(slash - c->below_path) : 0);
		autofree char *place = dir ? path_join(dir, redirect) : NULL;

		if (place)
			below_walk(f, place, &b);
	}
	if (b.kind == BELOW_OTHER && S_ISREG(b.mode) && b.size == o->st.stx_size)
		err = fill(f, o, &b);
	below_put(f, &b);
	return err;
}

static int repair_twin(struct fsck *f, const struct copy *c, struct object *o)
{
	int err = 0;

	if (object_has(o, FMT_METACOPY))
		err = fill_metacopy(f, c, o);
	if (err == 0)
		err = object_set(f, o, FMT_ORIGIN, "", 0);
	/* It is none of those that the index counts. */
	if (err == 0 && object_has(o, FMT_NLINK) && !c->linked)
		err = object_unset(f, o, FMT_NLINK);
	return err;
}

static int offer_twin(struct fsck *f, const struct copy *c, const struct copy *keeper)
{
	struct object o;
	enum fsck_kind kind;
	int err = object_open(f, c->path, &o);

	if (err == 0) {
		kind = S_ISREG(o.st.stx_mode) && object_has(&o, FMT_METACOPY) ? FSCK_METACOPY_TWICE
									      : FSCK_ORIGIN_TWICE;
		err = finding(f, kind, c->path, keeper->path);
		if (err > 0)
			err = repaired(f, kind, c->path, repair_twin(f, c, &o));
	}
	close_fd(o.dirfd);
	return min(err, 0);
}

/* Those of one origin: @count copies from @first. */
static int check_group(struct fsck *f, const struct copy *first, size_t count)
{
	autofree char *home = NULL;
	const struct copy *keeper = first;
	bool several = false;
	int err = 0;

	for (size_t n = 1; n < count; n++)
		several |= first[n].ino != first->ino;
	if (!several)
		return 0;
	/* Without a place there is none at home. */
	if (origin_path(f, &first->origin, S_IFREG, &home) < 0)
		home = NULL;
	for (size_t n = 1; n < count; n++) {
		const struct judge_twin a = { keeper->linked,
					      home && keeper->below_path &&
						      !strcmp(home, keeper->below_path) };
		const struct judge_twin b = { first[n].linked,
					      home && first[n].below_path &&
						      !strcmp(home, first[n].below_path) };

		if (judge_twins(&b, &a) < 0)
			keeper = &first[n];
	}
	for (size_t n = 0; n < count && err == 0; n++)
		if (first[n].ino != keeper->ino)
			err = offer_twin(f, &first[n], keeper);
	return err;
}

int copies_check(struct fsck *f)
{
	size_t end;
	int err = 0;

	if (f->copy_count)
		qsort(f->copies, f->copy_count, sizeof(*f->copies), compare_copies);
	for (size_t n = 0; n < f->copy_count && err == 0; n = end) {
		for (end = n + 1; end < f->copy_count; end++)
			if (!same_origin(&f->copies[n], &f->copies[end]))
				break;
		err = check_group(f, &f->copies[n], end - n);
	}
	return err;
}
