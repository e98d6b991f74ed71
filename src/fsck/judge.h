/* SPDX-License-Identifier: MIT */
/*
 * What is to be thought of one mark: decisions without a system call. Each takes what was read from
 * the layers and returns a kind of finding, or FSCK_FINE.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "fsck/fsck.h"
#include "overlay/format.h"

#define FSCK_FINE (-1)

/* What the lower layers have at a place. */
enum below_kind {
	BELOW_NOTHING, /* also a whiteout */
	BELOW_DIR,
	BELOW_OTHER,
	BELOW_UNKNOWN, /* it could not be looked up */
};

/* How the origin of an object compares with something in the lower layers. */
enum origin_match {
	ORIGIN_NONE,      /* no origin: not copied up */
	ORIGIN_UNKNOWN,   /* copied up, from what is not known */
	ORIGIN_SAME,      /* from this */
	ORIGIN_ELSEWHERE, /* from something else */
};

/* The words for a kind. */
struct judge_words {
	const char *id;
	enum fsck_class class;
	const char *what;
	const char *repair; /* NULL: nothing can be done */
};

const struct judge_words *judge_words(enum fsck_kind kind);

/* Whether a private xattr means anything on an object of this type. @root: of the layer. */
bool judge_belongs(enum fmt_xattr which, mode_t mode, uint64_t size, bool root);

/* A whiteout: a device, or, with @marked, an empty file with the mark. */
int judge_whiteout(bool marked, enum below_kind below, enum origin_match origin);

/* The opaque mark of a directory. @target: what its redirect leads to, @origin: compared with that,
 * or without a redirect with what has its name below. */
int judge_opaque(enum fmt_opaque opaque, bool has_redirect, enum below_kind target,
		 enum origin_match origin);

/* A redirect of a directory that is not opaque, or of a metacopy. @value need not end in NUL. */
bool judge_redirect_valid(const char *value, size_t size);
int judge_redirect(bool valid, bool followed, bool userxattr, enum below_kind target);

/*
 * Which of two directories that are united with the same lower one keeps it: less than 0, the
 * first. Equal ranks are settled by the paths.
 */
struct judge_claim {
	enum origin_match origin;
	bool redirected;
};
int judge_claims(const struct judge_claim *a, const struct judge_claim *b);

/* A redirect to a directory that is seen at its own place as well. */
int judge_uncovered(enum origin_match origin);

/* Which of two files from one lower file keeps the origin: less than 0, the first. */
struct judge_twin {
	bool linked; /* by the index */
	bool home;   /* where the lower file lies */
};
int judge_twins(const struct judge_twin *a, const struct judge_twin *b);

/* The impure mark. @size: of its value, < 0 without one. @needed: something in there came from
 * below. */
int judge_impure(const char *value, ssize_t size, bool needed);

/* The value of an origin. */
int judge_origin(const void *value, size_t size);

struct judge_metacopy_facts {
	bool valid;            /* the value */
	enum below_kind below; /* what is at the place where the data should be */
	bool below_is_file;
	uint64_t below_size;
	uint64_t size;
	bool own_data; /* all of it is in the file itself */
	bool moved;    /* the origin leads to a file of this size elsewhere */
};
int judge_metacopy(const struct judge_metacopy_facts *facts);

/* @stored: the union's count as the mark says. @names: that can be seen; @most: that there may be.
 */
int judge_nlink(bool valid, long stored, long names, long most);

/* An entry of the index that is no directory and no whiteout. */
struct judge_index_facts {
	bool name_valid;
	bool has_origin;    /* a valid one */
	bool same;          /* as the name */
	bool name_leads;    /* the name's handle leads to a lower object of the same type */
	bool origin_leads;  /* the origin's does */
	unsigned int nlink; /* of the inode, this entry included */
	long stored;        /* the union's count of links; < 0: unknown */
};
int judge_index(const struct judge_index_facts *facts);
