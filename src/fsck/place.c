// SPDX-License-Identifier: MIT
/*
 * The place of each directory: with which lower one it is united. This comes before everything
 * else, because what a whiteout hides depends on it; a directory whose place is left in doubt is
 * not looked into further.
 */
#include <string.h>

#include "fsck/private.h"

static void unsettle(struct fsck *f, const struct object *o, struct level *child)
{
	text_set_add(&f->unsettled, o->path);
	child->unsettled = true;
}

static enum fmt_opaque opaque_of(struct fsck *f, const struct object *o)
{
	char value[2];

	return fmt_opaque_value(value, object_mark(f, o, FMT_OPAQUE, value, sizeof(value)));
}

/* The path below of what @redirect leads to, or without one of what has the name of @o. */
static char *below_path(struct level *dir, const struct object *o, const char *redirect)
{
	if (redirect && *redirect == '/')
		return strdup(redirect + 1);
	return dir->below_path ? path_join(dir->below_path, redirect ? redirect : o->name) : NULL;
}

/* Unites @child with @b, which it takes over. */
static int unite(struct level *dir, const struct object *o, const char *redirect, struct below *b,
		 struct level *child)
{
	child->below = *b;
	*b = (struct below){ 0 };
	child->below_path = below_path(dir, o, redirect);
	return child->below_path ? 0 : -ENOMEM;
}

int place_find(struct fsck *f, struct level *dir, struct object *o, struct level *child)
{
	autofree char *redirect = NULL;
	struct below b;
	size_t size;
	int err = 0;

	child->unsettled = dir->unsettled || text_set_has(&f->unsettled, o->path);
	if (opaque_of(f, o) == FMT_IS_OPAQUE)
		return 0;
	redirect = object_redirect(f, o, &size);
	if (redirect && !judge_redirect_valid(redirect, size)) {
		child->unsettled = true;
		return 0;
	}
	if (redirect)
		below_redirect(f, &dir->below, redirect, &b);
	else
		below_lookup(f, &dir->below, o->name, &b);
	if (b.kind == BELOW_UNKNOWN)
		child->unsettled = true;
	if (b.kind == BELOW_DIR)
		err = unite(dir, o, redirect, &b, child);
	below_put(f, &b);
	return err;
}

static int record_add(struct fsck *f, struct level *dir, const struct object *o,
		      struct level *child)
{
	struct dir_record *r;

	if (!(f->dir_count & (f->dir_count - 1))) {
		size_t room = f->dir_count ? 2 * f->dir_count : 1;
		struct dir_record *dirs = reallocarray(f->dirs, room, sizeof(*dirs));

		if (!dirs)
			return -ENOMEM;
		f->dirs = dirs;
	}
	r = &f->dirs[f->dir_count];
	*r = (struct dir_record){ .path = strdup(o->path), .parent = dir ? dir->record : 0 };
	if (!r->path)
		return -ENOMEM;
	child->record = f->dir_count++;
	if (!child->below_path || below_identify(f, &child->below) < 0)
		return 0;
	r->below_path = strdup(child->below_path);
	r->dev = child->below.dev;
	r->ino = child->below.ino;
	return r->below_path ? 0 : -ENOMEM;
}

/*
 * Takes a redirect away. Something else must not appear below by that: then the directory is made
 * opaque first.
 */
static int drop_redirect(struct fsck *f, struct level *dir, const struct object *o)
{
	struct below b;
	bool bare;
	int err = 0;

	below_lookup(f, &dir->below, o->name, &b);
	bare = b.kind == BELOW_NOTHING || b.kind == BELOW_OTHER;
	below_put(f, &b);
	if (!bare)
		err = object_set(f, o, FMT_OPAQUE, "y", 1);
	return err < 0 ? err : object_unset(f, o, FMT_REDIRECT);
}

/* The path below where the directory came from, if its origin tells one. Allocated; NULL. */
static char *origin_place(struct fsck *f, const struct object *o)
{
	uint8_t value[FMT_FH_MAX];
	ssize_t size = object_mark(f, o, FMT_ORIGIN, value, sizeof(value));
	struct fmt_fh fh = { 0 };
	char *path = NULL;

	if (size < 0 || fmt_fh_decode(value, (size_t)size, &fh) < 0)
		return NULL;
	return origin_path(f, &fh, S_IFDIR, &path) == 0 ? path : NULL;
}

/* A redirect that leads nowhere: back to where the directory came from, or away with it. */
static int mend_redirect(struct fsck *f, struct level *dir, struct object *o, int kind,
			 const char *redirect, struct level *child)
{
	autofree char *place = f->follow ? origin_place(f, o) : NULL;
	autofree char *by_name = below_path(dir, o, NULL);
	autofree char *absolute = NULL;
	int err;

	if (place && kind == FSCK_REDIRECT_DANGLING)
		kind = FSCK_REDIRECT_LOST;
	err = finding(f, (enum fsck_kind)kind, o->path, place ? place : redirect);
	if (err < 0)
		return err;
	if (err == 0) {
		/* What dangles has no lower directory whatever is done about it. */
		if (kind != FSCK_REDIRECT_DANGLING)
			unsettle(f, o, child);
		return 0;
	}
	f->changed = true;
	if (place && by_name && !strcmp(place, by_name))
		err = object_unset(f, o, FMT_REDIRECT);
	else if (place && asprintf(&absolute, "/%s", place) < 0)
		err = -ENOMEM;
	else if (place)
		err = object_set(f, o, FMT_REDIRECT, absolute, strlen(absolute));
	else
		err = drop_redirect(f, dir, o);
	if (err < 0)
		unsettle(f, o, child);
	return repaired(f, (enum fsck_kind)kind, o->path, err);
}

/* Returns 1 when the directory is opaque after all. */
static int check_opaque(struct fsck *f, struct level *dir, struct object *o, const char *redirect,
			size_t redirect_size, struct level *child)
{
	enum fmt_opaque opaque = opaque_of(f, o);
	enum origin_match origin;
	struct fmt_fh fh;
	struct below b = { 0 };
	int kind;
	int err;

	if (!object_has(o, FMT_OPAQUE))
		return 0;
	if (redirect && judge_redirect_valid(redirect, redirect_size))
		below_redirect(f, &dir->below, redirect, &b);
	else if (!redirect)
		below_lookup(f, &dir->below, o->name, &b);
	origin = origin_compare(f, o, &b, &fh);
	kind = judge_opaque(opaque, redirect != NULL, b.kind, origin);
	below_put(f, &b);
	if (kind == FSCK_FINE)
		return opaque == FMT_IS_OPAQUE;
	err = finding(f, (enum fsck_kind)kind, o->path, redirect ? redirect : "");
	if (err < 0)
		return err;
	if (err == 0) {
		if (kind == FSCK_OPAQUE_COPY)
			unsettle(f, o, child);
		return opaque == FMT_IS_OPAQUE;
	}
	f->changed = true;
	err = object_unset(f, o, kind == FSCK_OPAQUE_REDIRECT ? FMT_REDIRECT : FMT_OPAQUE);
	repaired(f, (enum fsck_kind)kind, o->path, err);
	if (err < 0)
		return opaque == FMT_IS_OPAQUE;
	return kind == FSCK_OPAQUE_REDIRECT;
}

/* A directory with a redirect that counts. */
static int check_redirect(struct fsck *f, struct level *dir, struct object *o, const char *redirect,
			  size_t size, struct level *child)
{
	bool valid = judge_redirect_valid(redirect, size);
	struct below b = { 0 };
	int kind;
	int err;

	if (valid)
		below_redirect(f, &dir->below, redirect, &b);
	kind = judge_redirect(valid, f->follow, f->userxattr, b.kind);
	if (kind == FSCK_FINE) {
		err = unite(dir, o, redirect, &b, child);
	} else if (kind == FSCK_REDIRECT_INVALID || kind == FSCK_REDIRECT_DANGLING ||
		   kind == FSCK_REDIRECT_USER) {
		err = mend_redirect(f, dir, o, kind, redirect, child);
	} else {
		unsettle(f, o, child);
		err = finding(f, (enum fsck_kind)kind, o->path,
			      kind == FSCK_LOWER_UNREADABLE ? strerror(-b.err) : redirect);
	}
	below_put(f, &b);
	return min(err, 0);
}

static int check_dir(struct fsck *f, struct level *dir, struct object *o, struct level *child)
{
	size_t size = 0;
	autofree char *redirect = object_redirect(f, o, &size);
	struct below b;
	int err;

	if (dir->unsettled) {
		child->unsettled = true;
		return 0;
	}
	err = check_opaque(f, dir, o, redirect, size, child);
	if (err != 0 || child->unsettled)
		return min(err, 0);
	if (redirect)
		return check_redirect(f, dir, o, redirect, size, child);
	below_lookup(f, &dir->below, o->name, &b);
	if (b.kind == BELOW_UNKNOWN) {
		unsettle(f, o, child);
		err = finding(f, FSCK_LOWER_UNREADABLE, o->path, strerror(-b.err));
	} else if (b.kind == BELOW_DIR) {
		err = unite(dir, o, NULL, &b, child);
	}
	below_put(f, &b);
	return min(err, 0);
}

static int place_object(struct fsck *f, struct level *dir, struct object *o, struct level *child)
{
	struct dir_record *r;
	int err = check_dir(f, dir, o, child);

	if (err == 0)
		err = record_add(f, dir, o, child);
	if (err < 0)
		return err;
	r = &f->dirs[child->record];
	r->redirected = object_has(o, FMT_REDIRECT) && r->below_path;
	r->loser = child->unsettled;
	if (!child->unsettled && opaque_of(f, o) != FMT_IS_OPAQUE)
		r->origin = origin_compare(f, o, &child->below, &r->fh);
	return 0;
}

static void records_free(struct fsck *f)
{
	for (size_t n = 0; n < f->dir_count; n++) {
		free(f->dirs[n].path);
		free(f->dirs[n].below_path);
	}
	free(f->dirs);
	f->dirs = NULL;
	f->dir_count = 0;
}

static int record_root(struct fsck *f)
{
	const struct object o = { .path = "." };
	struct level root = { 0 };
	int err;

	below_root(f, &root.below);
	root.below_path = f->below ? strdup("") : NULL;
	err = record_add(f, NULL, &o, &root);
	free(root.below_path);
	return err;
}

/* A repair may bring others with it; each takes a mark away or sets one right, so they end. */
#define ROUNDS_MAX 64

int place_check(struct fsck *f)
{
	static const struct visitor visitor = { .dirs_only = true, .object = place_object };
	int err = 0;

	for (int round = 0; round < ROUNDS_MAX; round++) {
		f->changed = false;
		records_free(f);
		err = record_root(f);
		if (err == 0)
			err = scan(f, &visitor);
		if (err == 0 && !f->changed)
			err = twins_check(f);
		if (err < 0 || !f->changed)
			break;
	}
	records_free(f);
	return err;
}
