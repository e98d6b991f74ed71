/* SPDX-License-Identifier: MIT */
/*
 * Between the files of the checker. One thread; nothing is locked. Errors are negative errnos;
 * -ECANCELED ends the whole run. Whoever opens or makes something frees it.
 */
#pragma once

#include <sys/stat.h>

#include "fsck/fsck.h"
#include "fsck/judge.h"
#include "overlay/format.h"
#include "overlay/layer.h"
#include "util/at.h"
#include "util/base.h"

/* A set of texts, by their hashes: who may know a path twice is told once. */
struct text_set {
	uint64_t *slots;
	size_t capacity;
	size_t count;
};

bool text_set_has(const struct text_set *set, const char *text);
/* Whether it was added now; -ENOMEM. */
int text_set_add(struct text_set *set, const char *text);
void text_set_free(struct text_set *set);

/* What the lower layers have at a place. Holds a lookup reference of @node. */
struct below {
	enum below_kind kind;
	int err; /* why it is unknown */
	ovl_node node;
	mode_t mode;
	uint64_t size;
	/* filled in by below_identify(): the real object on top */
	bool identified;
	unsigned int layer;
	dev_t dev;
	uint64_t ino;
	unsigned int nlink;
	struct fmt_fh fh;
	bool has_fh;
};

/* A directory that may be united with a lower one, as the structure was read. */
struct dir_record {
	char *path;       /* in upper, "." for the root */
	char *below_path; /* from the root of the lower layers, "" for the root; NULL: not united */
	size_t parent;    /* index of its directory's record */
	dev_t dev;        /* of the lower one */
	uint64_t ino;
	bool redirected;
	bool loser; /* it, or an ancestor, was found to be united wrongly */
	enum origin_match origin;
	struct fmt_fh fh; /* where it came from, if origin is ORIGIN_ELSEWHERE */
};

/* An upper file with a link count for the index. */
struct indexed {
	char *path;
	uint64_t ino;
	struct fmt_fh origin;
};

/* An upper file that came from a lower one which is still there. */
struct copy {
	char *path;
	char *below_path; /* what lies below it has; NULL: nothing can */
	uint64_t ino;
	dev_t lower_dev;
	uint64_t lower_ino;
	struct fmt_fh origin;
	bool linked; /* by the index */
};

struct fsck {
	const struct fsck_config *config;
	struct fsck_result *result;
	char *message;
	size_t size;

	struct layer upper; /* what is checked */
	bool has_upper;     /* else it is a lower layer, and read-only */
	struct layer_ref *workdir;
	int upper_lock;
	int work_lock;
	struct ovl *below;    /* the lower layers as a union; NULL: there are none */
	struct layer *lowers; /* the same, for file handles */
	size_t lower_count;
	size_t data_count; /* of these, the last so many */
	bool userxattr;
	char *label;     /* of what is checked, for people */
	bool decodes;    /* file handles of every lower layer */
	bool follow;     /* redirects */
	bool nfs_export; /* and with it origins are checked on lookup */
	bool index;

	struct text_set told;
	struct text_set unsettled; /* directories whose place was left in doubt */
	struct dir_record *dirs;
	size_t dir_count;
	struct indexed *indexed;
	size_t indexed_count;
	struct copy *copies;
	size_t copy_count;
	bool changed; /* the structure, by a repair */
};

/* A directory on the way down. */
struct level {
	int fd; /* O_PATH; -1: given up, to be opened anew */
	char *name;
	size_t path_len; /* of the walk's path, up to this one */
	struct statx st;
	struct below below;
	char *below_path;
	size_t record;
	bool unsettled;
	unsigned int origins; /* entries that came from below */
	char **names;
	unsigned char *types;
	size_t count;
	size_t next;
};

/* One object of upper. */
struct object {
	int dirfd; /* with name as for at_statx(); not owned */
	const char *name;
	const char *path; /* for people */
	struct statx st;
	unsigned int present; /* bits of enum fmt_xattr */
	bool foreign;         /* has marks of fuse-overlayfs */
};

struct visitor {
	bool dirs_only;
	/*
	 * For each object. For a directory @child is the level to go down to: below, below_path and
	 * unsettled are to be filled in. 1: do not go down.
	 */
	int (*object)(struct fsck *f, struct level *dir, struct object *o, struct level *child);
	/* After all entries of a directory. */
	int (*leave)(struct fsck *f, struct level *dir, struct object *o);
};

/* fsck.c */
const char *mark_name(const struct fsck *f, enum fmt_xattr which);
bool fsck_cancelled(const struct fsck *f);
/*
 * Tells of a finding: 1 when it is to be repaired, 0 when not, -ECANCELED. The same finding on the
 * same path is told once.
 */
int finding(struct fsck *f, enum fsck_kind kind, const char *path, const char *detail);
int finding_in(struct fsck *f, enum fsck_kind kind, const char *layer, const char *path,
	       const char *detail);
/* The outcome of a repair that finding() asked for; returns 0, so that the check goes on. */
int repaired(struct fsck *f, enum fsck_kind kind, const char *path, int err);
int repaired_in(struct fsck *f, enum fsck_kind kind, const char *layer, const char *path, int err);

/* inuse.c: whether upper or work belong to a mount; a line for people in @message. -EBUSY. */
int check_in_use(struct fsck *f, char *message, size_t size);

/* object.c */
int object_read(struct fsck *f, struct object *o);
static inline bool object_has(const struct object *o, enum fmt_xattr which)
{
	return o->present & 1U << which;
}
/* The size; < 0: none or unreadable. */
ssize_t object_mark(struct fsck *f, const struct object *o, enum fmt_xattr which, void *value,
		    size_t size);
/* Allocated, NUL-terminated, up to the first NUL; *@size is that of the value. NULL: none. */
char *object_redirect(struct fsck *f, const struct object *o, size_t *size);
int object_set(struct fsck *f, const struct object *o, enum fmt_xattr which, const void *value,
	       size_t size);
int object_unset(struct fsck *f, const struct object *o, enum fmt_xattr which);
/* Gives a directory back the times it had. */
void times_restore(int fd, const struct statx *st);
/* Opens an object by its path in upper; o->dirfd is the caller's then, also after an error. */
int object_open(struct fsck *f, const char *path, struct object *o);
/* A whiteout in place of an object, or where there is none, in one step. */
int whiteout_put(struct fsck *f, int dirfd, const char *name, bool replace);

/* below.c */
void below_root(struct fsck *f, struct below *b);
/* One name in a lower directory. */
void below_lookup(struct fsck *f, const struct below *dir, const char *name, struct below *out);
/* A path from the root of the lower layers, which may begin with '/'. */
void below_walk(struct fsck *f, const char *path, struct below *out);
/* Where a redirect leads. @dir: below the directory that holds the redirected object. */
void below_redirect(struct fsck *f, const struct below *dir, const char *redirect,
		    struct below *out);
/* The real object on top. */
int below_identify(struct fsck *f, struct below *b);
void below_put(struct fsck *f, struct below *b);
/* A directory of this path with more components, allocated. */
char *path_join(const char *dir, const char *name);

/* origin.c */
/* The handle of an object as an origin would hold it. */
int handle_of(struct fsck *f, const struct layer *layer, int fd, struct fmt_fh *fh);
bool handle_same(const struct fmt_fh *a, const struct fmt_fh *b);
/* An O_PATH fd of what a handle leads to; -ESTALE. */
int handle_open(struct fsck *f, struct layer *layer, const struct fmt_fh *fh);
/* The same in whichever lower layer; *@layer is an index into fsck.lowers. */
int handle_open_lower(struct fsck *f, const struct fmt_fh *fh, size_t *layer);
/* How the origin of @o compares with @b. *@fh: where it leads, if it is valid. */
enum origin_match origin_compare(struct fsck *f, const struct object *o, struct below *b,
				 struct fmt_fh *fh);
/*
 * The path, from the root of the lower layers, at which the union of them shows the object of a
 * handle. Allocated. -ESTALE when it shows it nowhere.
 */
int origin_path(struct fsck *f, const struct fmt_fh *fh, mode_t type, char **path);

/* scan.c: every object of upper, a directory before its entries, in the order of names. */
int scan(struct fsck *f, const struct visitor *v);

/* place.c: with which lower directory a directory is united, and whether that is right. */
int place_check(struct fsck *f);
/* The same without judging: fills in @child. */
int place_find(struct fsck *f, struct level *dir, struct object *o, struct level *child);

/* twins.c: directories that claim the same lower one. */
int twins_check(struct fsck *f);

/* marks.c: everything else that an object may carry. */
int marks_check(struct fsck *f);

/* copies.c: files that came from the same lower one. */
int copies_note(struct fsck *f, struct level *dir, const struct object *o, const struct fmt_fh *fh,
		const struct statx *lower);
int copies_check(struct fsck *f);

/* work.c and index.c */
int work_check(struct fsck *f);
int index_check(struct fsck *f);
/* The other way round: what marks_check() found to be indexed. */
int index_check_missing(struct fsck *f);
