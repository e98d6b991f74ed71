// SPDX-License-Identifier: MIT
/*
 * Directories that claim the same lower one. No overlay makes them, and the kernel refuses to show
 * more than the first that is looked up: a renamed directory leaves a whiteout, or something
 * opaque, at its old place. With the origins it can be told which is the right one.
 */
#include <fcntl.h>
#include <string.h>

#include "fsck/private.h"

static int compare_keys(const struct dir_record *a, const struct dir_record *b)
{
	if (a->dev != b->dev)
		return a->dev < b->dev ? -1 : 1;
	if (a->ino != b->ino)
		return a->ino < b->ino ? -1 : 1;
	return 0;
}

/* By lower directory, and among those of one the best claim first. */
static int compare_records(const void *pa, const void *pb)
{
	const struct dir_record *a = *(struct dir_record *const *)pa;
	const struct dir_record *b = *(struct dir_record *const *)pb;
	const struct judge_claim ca = { a->origin, a->redirected };
	const struct judge_claim cb = { b->origin, b->redirected };
	int c = compare_keys(a, b);

	if (c == 0)
		c = judge_claims(&ca, &cb);
	return c ? c : strcmp(a->path, b->path);
}

struct claims {
	struct dir_record **sorted; /* those that are united with something */
	size_t count;
};

static int sort_claims(struct fsck *f, struct claims *c)
{
	c->sorted = calloc(f->dir_count + 1, sizeof(struct dir_record *));
	c->count = 0;
	if (!c->sorted)
		return -ENOMEM;
	for (size_t n = 0; n < f->dir_count; n++)
		if (f->dirs[n].below_path)
			c->sorted[c->count++] = &f->dirs[n];
	qsort(c->sorted, c->count, sizeof(struct dir_record *), compare_records);
	return 0;
}

/* The first of those united with a lower directory; NULL. */
static struct dir_record *claimant(const struct claims *c, dev_t dev, uint64_t ino)
{
	struct dir_record key = { .dev = dev, .ino = ino };
	size_t low = 0;
	size_t high = c->count;

	while (low < high) {
		size_t mid = (low + high) / 2;

		if (compare_keys(c->sorted[mid], &key) < 0)
			low = mid + 1;
		else
			high = mid;
	}
	return low < c->count && compare_keys(c->sorted[low], &key) == 0 ? c->sorted[low] : NULL;
}

/* Takes a directory apart from the lower one, which it keeps its own entries without. */
static int part(struct fsck *f, const struct dir_record *r)
{
	struct object o;
	int err = object_open(f, r->path, &o);

	/* Also without anything of its name below: no lookup then depends on what comes. */
	if (err == 0)
		err = object_set(f, &o, FMT_OPAQUE, "y", 1);
	if (err == 0 && object_has(&o, FMT_REDIRECT))
		err = object_unset(f, &o, FMT_REDIRECT);
	/* It is not what was copied up from there. */
	if (err == 0 && object_has(&o, FMT_ORIGIN))
		err = object_set(f, &o, FMT_ORIGIN, "", 0);
	close_fd(o.dirfd);
	return err;
}

/* Asks about @kind and, if so told, parts @r from the lower directory. */
static int offer_part(struct fsck *f, struct dir_record *r, enum fsck_kind kind, const char *detail)
{
	int err = finding(f, kind, r->path, detail);

	r->loser = true;
	if (err < 0)
		return err;
	if (err == 0)
		return text_set_add(&f->unsettled, r->path) < 0 ? -ENOMEM : 0;
	err = part(f, r);
	f->changed |= err == 0;
	if (err < 0)
		text_set_add(&f->unsettled, r->path);
	return repaired(f, kind, r->path, err);
}

/* Whether the directory itself is right: what is below a wrong one is wrong by that already. */
static bool in_doubt(struct fsck *f, const struct dir_record *r)
{
	while (r != &f->dirs[0]) {
		if (r->loser)
			return true;
		r = &f->dirs[r->parent];
	}
	return false;
}

static int check_duplicates(struct fsck *f, const struct claims *c)
{
	int err = 0;

	/* A directory comes before what is in it: so do its duplicates. */
	for (size_t n = 0; n < f->dir_count && err == 0; n++) {
		struct dir_record *r = &f->dirs[n];
		struct dir_record *owner;

		if (!r->below_path || r == &f->dirs[0] || in_doubt(f, r))
			continue;
		owner = claimant(c, r->dev, r->ino);
		if (!owner || owner == r || (owner != &f->dirs[0] && in_doubt(f, owner)))
			continue;
		err = offer_part(f, r, FSCK_REDIRECT_DUPLICATE, owner->path);
	}
	return err;
}

/* What covers a lower directory in the union. */
enum cover {
	COVERED,
	SEEN_HERE,  /* @dir has no entry where it should have one */
	SEEN_BELOW, /* no directory of upper is there at all */
};

/*
 * Whether the union shows the lower directory at @path also where it lies below. The nearest of its
 * ancestors that upper has shows it, unless upper has something there.
 */
static enum cover find_cover(struct fsck *f, const struct claims *c, const char *path,
			     struct dir_record **dir, char name[256])
{
	autofree char *above = strdup(path);
	bool direct = true;

	*dir = NULL;
	while (above && *above) {
		char *slash = strrchr(above, '/');
		struct object o = { .dirfd = -1 };
		struct below b;
		autofd int fd = -1;
		int err;

		snprintf(name, 256, "%s", slash ? slash + 1 : above);
		if (slash)
			*slash = '\0';
		else
			*above = '\0';
		below_walk(f, above, &b);
		err = b.kind == BELOW_DIR ? below_identify(f, &b) : -ENOENT;
		*dir = err == 0 ? claimant(c, b.dev, b.ino) : NULL;
		below_put(f, &b);
		if (err < 0)
			return COVERED;
		if (!*dir) {
			direct = false;
			continue;
		}
		fd = !strcmp((*dir)->path, ".")
			     ? at_open(f->upper.root->fd, "", O_PATH | O_DIRECTORY)
			     : at_open_beneath(f->upper.root->fd, (*dir)->path,
					       O_PATH | O_DIRECTORY);
		if (fd < 0 || at_statx(fd, name, &o.st) != -ENOENT)
			return COVERED;
		return direct ? SEEN_HERE : SEEN_BELOW;
	}
	return COVERED;
}

static int cover(struct fsck *f, const struct dir_record *dir, const char *name)
{
	autofd int fd =
		!strcmp(dir->path, ".")
			? at_open(f->upper.root->fd, "", O_PATH | O_DIRECTORY)
			: at_open_beneath(f->upper.root->fd, dir->path, O_PATH | O_DIRECTORY);
	struct statx st;
	int err = fd < 0 ? fd : at_statx(fd, "", &st);

	if (err == 0)
		err = whiteout_put(f, fd, name, false);
	if (err == 0)
		times_restore(fd, &st);
	return err;
}

/* A redirected directory whose old place is not covered. */
static int check_uncovered(struct fsck *f, const struct claims *c, struct dir_record *r)
{
	autofree char *old = NULL;
	struct dir_record *dir;
	char name[256];
	enum cover seen = find_cover(f, c, r->below_path, &dir, name);
	int kind;
	int err;

	if (seen == COVERED)
		return 0;
	kind = judge_uncovered(r->origin);
	/* Without a directory to hold the whiteout the lower one stays where it is seen. */
	if (kind == FSCK_REDIRECT_STRAY || seen == SEEN_BELOW)
		return offer_part(f, r, FSCK_REDIRECT_STRAY, r->below_path);
	old = path_join(dir->path, name);
	if (!old)
		return -ENOMEM;
	err = finding(f, FSCK_REDIRECT_UNCOVERED, r->path, old);
	if (err <= 0)
		return err;
	err = cover(f, dir, name);
	f->changed |= err == 0;
	return repaired(f, FSCK_REDIRECT_UNCOVERED, r->path, err);
}

/* Whether the lower directory at @path is seen nowhere in the union. */
static bool is_hidden(struct fsck *f, const struct claims *c, const char *path)
{
	struct dir_record *dir;
	char name[256];
	struct below b;
	bool claimed;

	below_walk(f, path, &b);
	claimed = b.kind != BELOW_DIR || below_identify(f, &b) < 0 || claimant(c, b.dev, b.ino);
	below_put(f, &b);
	return !claimed && find_cover(f, c, path, &dir, name) == COVERED;
}

/* A copied-up directory that is united with nothing, or with something else than it came from. */
static int check_lost(struct fsck *f, const struct claims *c, struct text_set *used,
		      struct dir_record *r)
{
	autofree char *place = NULL;
	autofree char *redirect = NULL;
	struct object o;
	int err;

	if (origin_path(f, &r->fh, S_IFDIR, &place) < 0 || !is_hidden(f, c, place) ||
	    text_set_has(used, place))
		return 0;
	if (text_set_add(used, place) < 0)
		return -ENOMEM;
	err = finding(f, FSCK_REDIRECT_LOST, r->path, place);
	if (err < 0)
		return err;
	if (err == 0) {
		r->loser = true;
		return text_set_add(&f->unsettled, r->path) < 0 ? -ENOMEM : 0;
	}
	err = object_open(f, r->path, &o);
	if (err == 0 && asprintf(&redirect, "/%s", place) < 0)
		err = -ENOMEM;
	if (err == 0)
		err = object_set(f, &o, FMT_REDIRECT, redirect, strlen(redirect));
	close_fd(o.dirfd);
	f->changed |= err == 0;
	return repaired(f, FSCK_REDIRECT_LOST, r->path, err);
}

/* What depends on a change of the structure waits for the next round, which reads it anew. */
int twins_check(struct fsck *f)
{
	struct text_set used = { 0 };
	struct claims c;
	int err = sort_claims(f, &c);

	if (err == 0)
		err = check_duplicates(f, &c);
	if (err == 0 && !f->changed && f->follow)
		for (size_t n = 1; n < f->dir_count && err == 0; n++)
			if (f->dirs[n].origin == ORIGIN_ELSEWHERE && !in_doubt(f, &f->dirs[n]))
				err = check_lost(f, &c, &used, &f->dirs[n]);
	if (err == 0 && !f->changed)
		for (size_t n = 1; n < f->dir_count && err == 0; n++)
			if (f->dirs[n].redirected && !in_doubt(f, &f->dirs[n]))
				err = check_uncovered(f, &c, &f->dirs[n]);
	text_set_free(&used);
	free(c.sorted);
	return err;
}
