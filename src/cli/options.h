/* SPDX-License-Identifier: MIT */
/*
 * The words of -o: one table of everything that plyfs understands, refuses or lets pass.
 *
 * A list is split at ',' as the kernel's overlayfs splits its mount data: '\' protects the
 * character after it and stays in place for whoever reads the value. In upperdir= and workdir= "\X"
 * then means X; in lowerdir= ':' separates the layers, topmost first, "::" comes before each
 * data-only one, and "\X" means X. In lowerdir+= and datadir+= every character is part of the path.
 * Later words win over earlier ones; nothing here opens a file.
 *
 * In the dialect of fuse-overlayfs a ':' with any '\' before it is part of a path, and empty parts
 * of lowerdir= are none. As its callers do not agree on how to write a path with '\', the way in
 * which the path exists is taken. A word that is known with another number of values is unknown.
 *
 * Errors: 0 or a negative errno, with one line for people in @message, always NUL-terminated: what
 * was given and what to write instead. -EINVAL is a mistake of the caller's, -ENOMEM is ours.
 * Ownership: struct options owns its strings until options_free(), also after an error.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

#include "overlay/ovl.h"
#include "server/server.h"
#include "util/idmap.h"

/* Whose words they are. */
enum option_dialect {
	OPTIONS_OF_PLYFS,          /* unknown words are errors */
	OPTIONS_OF_FUSE_OVERLAYFS, /* ... and are ignored here */
};

enum option_choice {
	OPTION_DEFAULT,
	OPTION_YES,
	OPTION_NO,
};

struct options {
	char **lower; /* unescaped, topmost first */
	size_t lower_count;
	size_t data_count;   /* of these, the last so many are data-only */
	bool lower_complete; /* given by lowerdir=, to which nothing can be added */
	char *upper;         /* NULL: read-only */
	char *work;          /* NULL after options_check() when there is no upper */
	char *source;        /* fsname= or source=, else NULL */
	char *subtype;       /* NULL: the default */
	double timeout;      /* seconds; < 0: for ever */
	enum server_io io;
	enum server_transport transport;
	bool passthrough_all;
	bool writeback; /* where io= is not passthrough */
	struct ovl_features features;
	unsigned int given; /* enum ovl_given */
	struct ovl_compat compat;
	struct id_map uids;
	struct id_map gids;
	bool squash_root;         /* squash_to_root: where no other id is squashed to */
	bool static_nlink;        /* every directory shows one link */
	bool ino32;               /* numbers of inodes that fit 32 bits */
	bool no_acl;              /* ACLs are neither checked nor shown */
	bool no_xattrs;           /* there are no xattrs */
	unsigned int max_threads; /* 0: the default */
	struct {                  /* labels of SELinux, without quotes; NULL: none */
		char *mount, *fs, *def, *root;
	} context;
	unsigned long mount_flags; /* MS_* */
	unsigned long unset_flags; /* MS_* that a word took away: what remount removes */
	enum option_choice allow_other;
	bool allow_root;
	bool debug;
	bool debug_log; /* set by the caller: as debug, but not in front */
	bool remount;   /* change the flags of a mount that is there */
	bool sloppy;    /* set by the caller: unknown words pass (mount(8)'s -s) */

	enum option_dialect dialect;
	void (*ignored)(const char *word); /* set by the caller: told of unknown words; or NULL */
};

/* The defaults are those of the dialect for the present user. */
void options_init(struct options *o, enum option_dialect dialect);
void options_free(struct options *o);

/* The labels in the words of mount(2), which the caller frees; NULL: there are none. -ENOMEM */
int options_contexts(const struct options *o, char **out);

/*
 * The words of identities and attributes that are in effect, separated by commas, which the caller
 * frees; NULL: none is. -ENOMEM
 */
int options_view(const struct options *o, char **out);

/*
 * Prints each word of the dialect in a line, with the values that it takes ("word=a|b"), and after
 * a tab "no effect" where that is so.
 */
void options_list(enum option_dialect dialect, FILE *out);

/* Reads one list of words. May be called several times: the lists add up. */
int options_add(struct options *o, const char *list, char *message, size_t size);

/* What can only be judged when all words are there. Sets MS_RDONLY when there is no upper. */
int options_check(struct options *o, char *message, size_t size);

/* remount: the flags that a mount with the flags @now (MS_*) is to have. The rest stays. */
unsigned long options_remount_flags(const struct options *o, unsigned long now);
