// SPDX-License-Identifier: MIT
/* Everything that an object may carry, once it is known what lies below it. */
#include <fcntl.h>
#include <string.h>
#include <sys/sysmacros.h>

#include "fsck/private.h"

/* Asks about @kind; if so told, sets the mark, or takes it away (@value NULL). */
static int offer_mark(struct fsck *f, const struct object *o, int kind, const char *detail,
		      enum fmt_xattr which, const void *value, size_t size)
{
	int err = finding(f, (enum fsck_kind)kind, o->path, detail);

	if (err <= 0)
		return err;
	err = value ? object_set(f, o, which, value, size) : object_unset(f, o, which);
	return repaired(f, (enum fsck_kind)kind, o->path, err);
}

/* --- whiteouts ----------------------------------------------------------------------------------
 */

static bool is_marked_whiteout(const struct object *o)
{
	return S_ISREG(o->st.stx_mode) && o->st.stx_size == 0 && object_has(o, FMT_WHITEOUT);
}

static int repair_whiteout(struct fsck *f, struct level *dir, const struct object *o, int kind)
{
	struct statx before;
	int err = at_statx(o->dirfd, "", &before);

	if (err < 0)
		return err;
	switch (kind) {
	case FSCK_XWHITEOUT_COPY: return object_unset(f, o, FMT_WHITEOUT);
	case FSCK_XWHITEOUT: err = whiteout_put(f, o->dirfd, o->name, true); break;
	default: err = at_unlink(o->dirfd, o->name, 0); break;
	}
	times_restore(o->dirfd, &before);
	return err;
}

static bool holds_marked_whiteouts(struct fsck *f, int dirfd)
{
	char value[2];
	ssize_t size = at_getxattr(dirfd, "", mark_name(f, FMT_OPAQUE), value, sizeof(value));

	return fmt_opaque_value(value, size) == FMT_XWHITEOUTS;
}

/* Returns 1 when the object is a whiteout, and so nothing else. */
static int check_whiteout(struct fsck *f, struct level *dir, const struct object *o)
{
	bool marked = is_marked_whiteout(o);
	enum origin_match origin = ORIGIN_NONE;
	struct below b;
	int kind;
	int err;

	if (!marked && !fmt_is_whiteout(&o->st))
		return 0;
	if (dir->unsettled)
		return 1;
	if (marked && object_has(o, FMT_ORIGIN))
		origin = ORIGIN_UNKNOWN;
	below_lookup(f, &dir->below, o->name, &b);
	kind = judge_whiteout(marked, b.kind, origin);
	below_put(f, &b);
	/* In a lower layer a directory may say that it has them. */
	if (kind == FSCK_XWHITEOUT && !f->has_upper && holds_marked_whiteouts(f, o->dirfd))
		kind = FSCK_FINE;
	if (kind == FSCK_FINE)
		return 1;
	err = finding(f, (enum fsck_kind)kind, o->path, "");
	if (err > 0)
		repaired(f, (enum fsck_kind)kind, o->path, repair_whiteout(f, dir, o, kind));
	return err < 0 ? err : 1;
}

/* --- metacopy -----------------------------------------------------------------------------------
 */

/* Whether a file has no hole. */
static bool has_own_data(const struct object *o)
{
	autofd int fd = -1;
	off_t hole;

	if (!o->st.stx_blocks || !o->st.stx_size)
		return false;
	fd = at_open(o->dirfd, o->name, O_RDONLY | O_NONBLOCK);
	if (fd < 0)
		return false;
	hole = lseek(fd, 0, SEEK_HOLE);
	return hole >= 0 && (uint64_t)hole >= o->st.stx_size;
}

/* A file in the data-only layers, which only an absolute redirect finds. */
static bool find_in_data_layers(struct fsck *f, const char *redirect, uint64_t *size)
{
	while (*redirect == '/')
		redirect++;
	for (size_t n = f->lower_count - f->data_count; n < f->lower_count; n++) {
		autofd int fd = at_open_beneath(f->lowers[n].root->fd, redirect, O_PATH);
		struct statx st;

		if (fd < 0 || at_statx(fd, "", &st) < 0)
			continue;
		*size = st.stx_size;
		return S_ISREG(st.stx_mode);
	}
	return false;
}

struct metacopy {
	struct judge_metacopy_facts facts;
	char *place; /* where the origin leads, from the root of the lower layers */
	int err;
};

static void find_data(struct fsck *f, struct level *dir, const struct object *o, struct metacopy *m)
{
	size_t size = 0;
	autofree char *redirect = object_redirect(f, o, &size);
	struct below b = { 0 };

	if (redirect && !judge_redirect_valid(redirect, size))
		return;
	if (redirect)
		below_redirect(f, &dir->below, redirect, &b);
	else
		below_lookup(f, &dir->below, o->name, &b);
	m->facts.below = b.kind;
	m->facts.below_is_file = S_ISREG(b.mode);
	m->facts.below_size = b.size;
	m->err = b.err;
	if (b.kind == BELOW_NOTHING && redirect && *redirect == '/' &&
	    find_in_data_layers(f, redirect, &m->facts.below_size)) {
		m->facts.below = BELOW_OTHER;
		m->facts.below_is_file = true;
	}
	below_put(f, &b);
}

/* Whether the origin leads to a file that can be the data. */
static void find_moved(struct fsck *f, const struct object *o, struct metacopy *m)
{
	uint8_t value[FMT_FH_MAX];
	ssize_t size = object_mark(f, o, FMT_ORIGIN, value, sizeof(value));
	struct fmt_fh fh = { 0 };
	struct below b;

	if (size < 0 || fmt_fh_decode(value, (size_t)size, &fh) < 0 ||
	    origin_path(f, &fh, S_IFREG, &m->place) < 0)
		return;
	below_walk(f, m->place, &b);
	m->facts.moved = b.kind == BELOW_OTHER && b.size == m->facts.size;
	below_put(f, &b);
}

static int repair_metacopy(struct fsck *f, const struct object *o, int kind, const char *place)
{
	autofree char *redirect = NULL;
	int err;

	if (kind == FSCK_METACOPY_INVALID)
		return object_set(f, o, FMT_METACOPY, "", 0);
	if (kind != FSCK_METACOPY_MOVED)
		return object_unset(f, o, FMT_METACOPY);
	if (asprintf(&redirect, "/%s", place) < 0)
		return -ENOMEM;
	err = object_set(f, o, FMT_REDIRECT, redirect, strlen(redirect));
	return err < 0 ? err : object_set(f, o, FMT_METACOPY, "", 0);
}

static int check_metacopy(struct fsck *f, struct level *dir, const struct object *o)
{
	uint8_t value[256];
	struct fmt_metacopy digest;
	ssize_t size = object_mark(f, o, FMT_METACOPY, value, sizeof(value));
	struct metacopy m = { 0 };
	const char *detail;
	int kind;
	int err;

	if (!S_ISREG(o->st.stx_mode) || !object_has(o, FMT_METACOPY) || dir->unsettled)
		return 0;
	m.facts.valid = size >= 0 && fmt_metacopy_decode(value, (size_t)size, &digest) == 0;
	m.facts.size = o->st.stx_size;
	find_data(f, dir, o, &m);
	/* The costly questions only for a file that is not right as it is. */
	if (judge_metacopy(&m.facts) != FSCK_FINE) {
		m.facts.own_data = has_own_data(o);
		find_moved(f, o, &m);
	}
	kind = judge_metacopy(&m.facts);
	if (kind == FSCK_FINE) {
		free(m.place);
		if (f->config->features.metacopy)
			return 0;
		return min(finding(f, FSCK_METACOPY_UNFOLLOWED, o->path, ""), 0);
	}
	detail = kind == FSCK_LOWER_UNREADABLE ? strerror(-m.err)
		 : kind == FSCK_METACOPY_MOVED ? m.place
					       : "";
	err = finding(f, (enum fsck_kind)kind, o->path, detail);
	if (err > 0) {
		err = repair_metacopy(f, o, kind, m.place);
		err = repaired(f, (enum fsck_kind)kind, o->path, err);
	}
	free(m.place);
	return err;
}

/* --- origins ------------------------------------------------------------------------------------
 */

/*
 * Counts what came from something below that is still there: a listing of its directory has to
 * know. Files are remembered, since no two may have come from one.
 */
static int note_origin(struct fsck *f, struct level *dir, const struct object *o)
{
	uint8_t value[FMT_FH_MAX];
	ssize_t size = object_mark(f, o, FMT_ORIGIN, value, sizeof(value));
	struct fmt_fh fh = { 0 };
	struct statx st;
	autofd int fd = -1;
	size_t layer;

	if (size < 0 || fmt_fh_decode(value, (size_t)size, &fh) < 0)
		return 0;
	fd = handle_open_lower(f, &fh, &layer);
	if (fd == -ESTALE && f->decodes)
		return min(finding(f, FSCK_ORIGIN_STALE, o->path, ""), 0);
	if (fd < 0 || at_statx(fd, "", &st) < 0 ||
	    (st.stx_mode & S_IFMT) != (o->st.stx_mode & S_IFMT))
		return 0;
	/* One of several links is no origin that anybody follows, unless it is in the index. */
	if (S_ISDIR(st.stx_mode) || st.stx_nlink == 1)
		dir->origins++;
	if (S_ISDIR(st.stx_mode) || dir->unsettled ||
	    (st.stx_nlink > 1 && !object_has(o, FMT_NLINK)))
		return 0;
	return copies_note(f, dir, o, &fh, &st);
}

/*
 * The origin of what lies at the same place below is what the kernel would store for a directory
 * that has none. Of anything else only "copied up" is known, which is an empty value.
 */
static int mend_origin(struct fsck *f, const struct object *o, struct below *b)
{
	uint8_t value[FMT_FH_MAX];
	ssize_t size = 0;

	if (b && b->kind == BELOW_DIR && below_identify(f, b) == 0 && b->has_fh &&
	    f->lowers[b->layer].can_decode)
		size = fmt_fh_encode(&b->fh, value);
	return object_set(f, o, FMT_ORIGIN, value, size < 0 ? 0 : (size_t)size);
}

/* @below: what a directory is united with, else NULL. */
static int check_origin(struct fsck *f, const struct object *o, struct below *below)
{
	uint8_t value[FMT_FH_MAX + 1];
	ssize_t size = object_mark(f, o, FMT_ORIGIN, value, sizeof(value));
	bool united = below && below->kind == BELOW_DIR;
	struct fmt_fh fh = { 0 };
	int kind;
	int err;

	if (!object_has(o, FMT_ORIGIN) || (size < 0 && size != -ERANGE))
		return 0;
	kind = size < 0 ? FSCK_ORIGIN_INVALID : judge_origin(value, (size_t)size);
	/* With nfs_export the kernel unites directories only if the origin says so too. */
	if (kind == FSCK_FINE && united && f->nfs_export &&
	    (fmt_fh_decode(value, (size_t)size, &fh) < 0 ||
	     (below_identify(f, below) == 0 && below->has_fh && !handle_same(&fh, &below->fh))))
		kind = FSCK_ORIGIN_MISMATCH;
	if (kind == FSCK_FINE)
		return 0;
	err = finding(f, (enum fsck_kind)kind, o->path, "");
	if (err <= 0)
		return err;
	return repaired(f, (enum fsck_kind)kind, o->path, mend_origin(f, o, below));
}

/* --- the rest -----------------------------------------------------------------------------------
 */

static int check_misplaced(struct fsck *f, const struct object *o, bool root)
{
	int err = 0;

	for (unsigned int n = 0; n < FMT_XATTR_COUNT && err == 0; n++)
		if (object_has(o, n) && !judge_belongs(n, o->st.stx_mode, o->st.stx_size, root))
			err = offer_mark(f, o, FSCK_MISPLACED, mark_name(f, n), n, NULL, 0);
	return err;
}

static int check_protattr(struct fsck *f, const struct object *o)
{
	char value[32];
	ssize_t size = object_mark(f, o, FMT_PROTATTR, value, sizeof(value));

	if (!object_has(o, FMT_PROTATTR) || (size > 0 && fmt_protattr_decode(value, size)))
		return 0;
	return min(finding(f, FSCK_PROTATTR_INVALID, o->path, ""), 0);
}

/* Counts of links belong to files in the index, which index.c judges; others have a malformed one
 * taken away. */
static int note_indexed(struct fsck *f, const struct object *o)
{
	uint8_t value[FMT_FH_MAX];
	ssize_t size = object_mark(f, o, FMT_ORIGIN, value, sizeof(value));
	struct indexed *i;

	if (!object_has(o, FMT_NLINK) || S_ISDIR(o->st.stx_mode))
		return 0;
	if (!(f->indexed_count & (f->indexed_count - 1))) {
		size_t room = f->indexed_count ? 2 * f->indexed_count : 1;
		struct indexed *list = reallocarray(f->indexed, room, sizeof(*list));

		if (!list)
			return -ENOMEM;
		f->indexed = list;
	}
	i = &f->indexed[f->indexed_count];
	*i = (struct indexed){ .path = strdup(o->path), .ino = o->st.stx_ino };
	if (!i->path)
		return -ENOMEM;
	if (size < 0 || fmt_fh_decode(value, (size_t)size, &i->origin) < 0)
		i->origin = (struct fmt_fh){ 0 };
	f->indexed_count++;
	return 0;
}

static int check_foreign(struct fsck *f, const struct object *o)
{
	return o->foreign ? min(finding(f, FSCK_FUSE_OVERLAYFS, o->path, ""), 0) : 0;
}

static int marks_object(struct fsck *f, struct level *dir, struct object *o, struct level *child)
{
	int err = check_whiteout(f, dir, o);

	if (err != 0)
		return min(err, 0);
	if (child) {
		err = place_find(f, dir, o, child);
		if (err < 0)
			return err;
	}
	err = check_foreign(f, o);
	if (err == 0 && !(child && child->unsettled))
		err = check_origin(f, o, child ? &child->below : NULL);
	if (err == 0)
		err = note_origin(f, dir, o);
	if (err == 0)
		err = check_metacopy(f, dir, o);
	if (err == 0)
		err = check_misplaced(f, o, false);
	if (err == 0)
		err = check_protattr(f, o);
	if (err == 0)
		err = note_indexed(f, o);
	return min(err, 0);
}

static int check_root(struct fsck *f, const struct object *o)
{
	uint8_t uuid[17];
	ssize_t size = object_mark(f, o, FMT_UUID, uuid, sizeof(uuid));
	int err = check_misplaced(f, o, true);

	if (err == 0 && object_has(o, FMT_UUID) && size != 16)
		err = offer_mark(f, o, FSCK_UUID_INVALID, "", FMT_UUID, NULL, 0);
	if (err == 0)
		err = check_protattr(f, o);
	return min(err, 0);
}

static int marks_leave(struct fsck *f, struct level *dir, struct object *o)
{
	char value[2] = { 0 };
	ssize_t size = object_has(o, FMT_IMPURE)
			       ? object_mark(f, o, FMT_IMPURE, value, sizeof(value))
			       : -ENODATA;
	int kind;
	int err = 0;

	if (object_has(o, FMT_IMPURE) && size < 0) /* longer than any that means something */
		size = sizeof(value);
	kind = judge_impure(value, size, dir->origins > 0);
	if (kind == FSCK_IMPURE_MISSING)
		err = offer_mark(f, o, kind, "", FMT_IMPURE, "y", 1);
	else if (kind == FSCK_IMPURE_INVALID)
		err = offer_mark(f, o, kind, "", FMT_IMPURE, NULL, 0);
	if (err >= 0 && !dir->path_len)
		err = check_root(f, o);
	return min(err, 0);
}

int marks_check(struct fsck *f)
{
	static const struct visitor visitor = { .object = marks_object, .leave = marks_leave };

	int err = scan(f, &visitor);

	return err < 0 ? err : copies_check(f);
}
