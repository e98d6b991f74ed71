/* SPDX-License-Identifier: MIT */
/*
 * The verbs of the command line. Each reads its own arguments (@argv[0] is the verb), prints what
 * there is to say and returns the exit status (cli/exit.h). Mistakes are told in one line on
 * stderr.
 */
#pragma once

#include <stdio.h>

enum mount_caller {
	MOUNT_BY_USER,   /* plyfs mount ...; plyfs SOURCE MOUNTPOINT ... */
	MOUNT_BY_HELPER, /* mount(8) runs mount.plyfs: -f and others mean what mount(8) says */
	MOUNT_BY_COMPAT_HELPER,  /* the same for mount.fuse-overlayfs, with its words */
	MOUNT_AS_FUSE_OVERLAYFS, /* what cli_fuse_overlayfs() has read */
};

int cli_mount(int argc, char **argv, enum mount_caller caller);

/* The command line of fuse-overlayfs, which engines of containers call. */
int cli_fuse_overlayfs(int argc, char **argv);

int cli_status(int argc, char **argv);
int cli_fsck(int argc, char **argv);
int cli_convert(int argc, char **argv);

int cli_help(int argc, char **argv);
int cli_version(int argc, char **argv);

/* Writes the text to stdout; the exit status tells whether that went well. */
int cli_print(const char *text);
extern const char cli_help_text[];
extern const char cli_mount_help_text[];
extern const char cli_helper_help_text[];
extern const char cli_compat_help_text[];
extern const char cli_status_help_text[];
extern const char cli_fsck_help_text[];
extern const char cli_convert_help_text[];
