/* SPDX-License-Identifier: MIT */
/*
 * Checks the upper layer of a union, with its workdir, against the lower layers, and repairs what
 * is wrong: what a layer can hold is in overlayfs.rst, what the kernel makes of each mark decides
 * what counts as damage.
 *
 * Nothing is written before fsck_config.ask() said so for that finding, and lower layers never are.
 * A repair is one system call, or several of which each leaves no worse state than it found. The
 * times of directories survive a repair of what is in them.
 *
 * Two rules stand above all others: a file that the union shows is not lost, and what is right
 * stays as it is, byte for byte.
 *
 * Threads: one at a time. Errors: 0 or a negative errno with a line for people. Nothing prints.
 */
#pragma once

#include <signal.h>
#include <stdbool.h>
#include <stddef.h>

#include "overlay/ovl.h"

/* What is to be done about a finding. */
enum fsck_class {
	FSCK_NOTE, /* harmless, or as it may be: nothing is done */
	FSCK_SAFE, /* the repair takes nothing from what the union shows */
	FSCK_ASK,  /* there is a decision in it */
	FSCK_LOST, /* cannot be repaired */
};

enum fsck_kind {
	FSCK_WHITEOUT_NEEDLESS,
	FSCK_XWHITEOUT,
	FSCK_XWHITEOUT_COPY,
	FSCK_OPAQUE_INVALID,
	FSCK_OPAQUE_REDIRECT,
	FSCK_OPAQUE_COPY,
	FSCK_REDIRECT_INVALID,
	FSCK_REDIRECT_DANGLING,
	FSCK_REDIRECT_LOST,
	FSCK_REDIRECT_DUPLICATE,
	FSCK_REDIRECT_STRAY,
	FSCK_REDIRECT_UNCOVERED,
	FSCK_REDIRECT_UNFOLLOWED,
	FSCK_REDIRECT_USER,
	FSCK_LOWER_UNREADABLE,
	FSCK_UNREADABLE,
	FSCK_IMPURE_MISSING,
	FSCK_IMPURE_INVALID,
	FSCK_ORIGIN_INVALID,
	FSCK_ORIGIN_MISMATCH,
	FSCK_ORIGIN_TWICE,
	FSCK_ORIGIN_STALE,
	FSCK_METACOPY_INVALID,
	FSCK_METACOPY_NO_DATA,
	FSCK_METACOPY_EMPTY,
	FSCK_METACOPY_FALSE,
	FSCK_METACOPY_MOVED,
	FSCK_METACOPY_TWICE,
	FSCK_METACOPY_UNFOLLOWED,
	FSCK_MISPLACED,
	FSCK_NLINK_INVALID,
	FSCK_NLINK_WRONG,
	FSCK_UUID_INVALID,
	FSCK_PROTATTR_INVALID,
	FSCK_FUSE_OVERLAYFS,
	FSCK_WORK_LEFTOVER,
	FSCK_WORK_DEEP,
	FSCK_WORK_FOREIGN,
	FSCK_WORK_HIDDEN,
	FSCK_VOLATILE,
	FSCK_VOLATILE_DISCARD,
	FSCK_INDEX_ROOT,
	FSCK_INDEX_UPPER,
	FSCK_INDEX_NAME,
	FSCK_INDEX_STALE,
	FSCK_INDEX_ORPHAN,
	FSCK_INDEX_ORIGIN,
	FSCK_INDEX_MISSING,
	FSCK_KIND_COUNT,
};

struct fsck_finding {
	enum fsck_kind kind;
	enum fsck_class class;
	const char *id;     /* a word for scripts: "whiteout-needless" */
	const char *layer;  /* "upperdir", "workdir", or "lowerdir" and its path */
	const char *path;   /* below it; "." for itself */
	const char *what;   /* what is wrong */
	const char *detail; /* what it is about, a name or a value; may be empty */
	const char *repair; /* what would be done; NULL where nothing can be */
};

enum fsck_answer {
	FSCK_LEAVE,
	FSCK_REPAIR,
	FSCK_CANCEL,
};

struct fsck_config {
	const char *const *lower; /* paths, topmost first; data-only layers after all others */
	size_t lower_count;
	size_t data_count;
	const char *upper; /* NULL: the topmost lower layer is checked and not repaired */
	const char *work;  /* NULL: workdir and index are not looked at */
	struct ovl_features features;
	unsigned int given; /* enum ovl_given */
	bool write;         /* repairs may be made; upper and work are locked for them */
	bool discard_volatile;

	/* Asked for each FSCK_SAFE and FSCK_ASK; told of the others. The finding is borrowed. */
	enum fsck_answer (*ask)(void *ctx, const struct fsck_finding *finding);
	/* How the repair went: 0 or a negative errno. */
	void (*repaired)(void *ctx, const struct fsck_finding *finding, int err);
	/* Without write: the layers are in use, and what is found may be out of date. */
	void (*warn)(void *ctx, const char *message);
	void *ctx;
	const volatile sig_atomic_t *cancelled; /* set: stop before the next step */
};

struct fsck_result {
	unsigned long repaired;
	unsigned long left; /* findings that are no notes and were not repaired */
	unsigned long notes;
};

/*
 * -EBUSY: mounted right now; -EMEDIUMTYPE: workdir was used with a feature that is not known, so
 * nothing was looked at; -ECANCELED: cancelled; other errors: the layers could not be opened or
 * read. *@result is valid in any case.
 */
int fsck_run(const struct fsck_config *config, struct fsck_result *result, char *message,
	     size_t size);
