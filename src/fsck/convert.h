/* SPDX-License-Identifier: MIT */
/*
 * Turns the marks of fuse-overlayfs in an upper layer into those of the kernel's overlayfs, and
 * back. What they mean is in fuse-overlayfs(1) and in the image-spec of OCI ("Whiteouts"):
 *
 *   .wh.NAME                          whiteout of NAME             character device 0:0
 *   .wh..wh..opq, user.fuseoverlayfs.opaque, user.overlay.opaque    overlay.opaque = "y"
 *   *.override_stat                   owner and mode               the file's own
 *
 * Each step makes the new mark before it takes the old one away; times of directories stay.
 * Threads and errors as in fsck.h. Nothing prints.
 */
#pragma once

#include <signal.h>
#include <stdbool.h>
#include <stddef.h>

enum convert_kind {
	CONVERT_WHITEOUT,
	CONVERT_OPAQUE,
	CONVERT_OWNER,
	CONVERT_PRIVATE, /* a mark without an equivalent, which is of no use to the other */
	/* What has no form on the other side, or two meanings: it is left as it is. */
	CONVERT_CONFLICT,
	CONVERT_REDIRECT,
	CONVERT_METACOPY,
	CONVERT_NAME,
	CONVERT_TOO_LONG,
	CONVERT_DEVICE,
	CONVERT_UNREADABLE,
};

struct convert_event {
	enum convert_kind kind;
	const char *path; /* below the layer, "." for itself */
	const char *what;
	bool left; /* it was left as it is, or could not be changed */
	int err;   /* why, or 0 */
};

struct convert_config {
	const char *dir;
	bool to_kernel;  /* else to fuse-overlayfs */
	bool userxattr;  /* user.overlay. and not trusted.overlay. */
	bool write;      /* else only tell what would be done */
	bool image_rule; /* NAME beside .wh.NAME is new, as in images; else such a pair is left */
	void (*tell)(void *ctx, const struct convert_event *event);
	void (*warn)(void *ctx, const char *message);
	void *ctx;
	const volatile sig_atomic_t *cancelled;
};

struct convert_result {
	unsigned long converted;
	unsigned long left;
};

/* Errors as of fsck_run(). To fuse-overlayfs: when anything would have to be left nothing is
 * changed. */
int convert_run(const struct convert_config *config, struct convert_result *result, char *message,
		size_t size);
