/* SPDX-License-Identifier: MIT */
/*
 * What the command lines that mount have in common: each reads its own arguments into struct
 * mount_args; mount_run() does the rest. Mistakes are told in one line on stderr.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "cli/cli.h"

struct mount_args {
	const char **lists; /* the -o words, in their order; borrowed */
	size_t list_count;
	const char *names[2]; /* [SOURCE] MOUNTPOINT */
	size_t name_count;
	const char *namespace;
	bool foreground;
	bool debug;
	bool fake;
	bool sloppy;
	bool verbose;
};

/* One more -o. -ENOMEM was told. */
int mount_args_add_list(struct mount_args *args, const char *list);
void mount_args_free(struct mount_args *args);

/* Tells of a word that nobody knows, which is no mistake. */
void mount_say_ignored(const char *word);

struct options;
/* What fuse-overlayfs is told by the environment. */
void compat_read_environment(struct options *o);

/* Mounts and, in the background unless told otherwise, serves. Returns the exit status. */
int mount_run(const struct mount_args *args, enum mount_caller caller);
