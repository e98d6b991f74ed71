/* SPDX-License-Identifier: MIT */
/*
 * How the words of -o are read: what options.c, option_words.c (the table) and option_layers.c (the
 * words that name directories) share. Errors as in options.h.
 */
#pragma once

#include <stdio.h>

#include "cli/options.h"

/* Who reads, and where the message goes. */
struct option_reader {
	struct options *o;
	char *message;
	size_t size;
};

enum option_arity {
	ALONE,  /* word */
	VALUE,  /* word=value */
	EITHER, /* word or word=value */
};

struct option_word {
	const char *name; /* a '*' at the end stands for any rest */
	enum option_arity arity;
	/* @value is NULL without '='; it may be changed in place. */
	int (*read)(struct option_reader *r, const struct option_word *w, char *value);
	unsigned long set, clear; /* MS_* */
	const char *accepted;     /* values, separated by spaces; NULL: others than these too */
	/* A feature: */
	int meanings[5]; /* of each value */
	void (*feature)(struct ovl_features *f, int meaning);
	unsigned int given; /* enum ovl_given */
	size_t offset;      /* of the bool, string or enum in struct options that is set */
	enum { IN_BOTH, IN_PLYFS, IN_COMPAT } in; /* of which dialects */
};

extern const struct option_word option_words[];
extern const size_t option_word_count;

/* The reader of words that have no effect. */
int option_ignore(struct option_reader *r, const struct option_word *w, char *value);

int option_read_lowerdir(struct option_reader *r, const struct option_word *w, char *value);
int option_read_lowerdir_add(struct option_reader *r, const struct option_word *w, char *value);
int option_read_datadir_add(struct option_reader *r, const struct option_word *w, char *value);
/* upperdir= and workdir= */
int option_read_directory(struct option_reader *r, const struct option_word *w, char *value);
void option_free_lower(struct options *o);

/* "\X" becomes X, and with @octal "\ooo" a byte, in place. A lone '\' at the end is -EINVAL. */
int option_unescape(char *s, bool octal);
/* A string that must not be empty, unescaped into the field at @w->offset. */
int option_read_string(struct option_reader *r, const struct option_word *w, char *value);

static inline char **option_string(const struct option_reader *r, const struct option_word *w)
{
	return (char **)((char *)r->o + w->offset);
}

/* Both give what they return: -EINVAL, -ENOMEM. */
int option_fail(struct option_reader *r, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));
int option_no_memory(struct option_reader *r);
