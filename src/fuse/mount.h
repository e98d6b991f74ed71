/* SPDX-License-Identifier: MIT */
/*
 * Mounting and unmounting a FUSE filesystem: by mount(2) where that is allowed, else through
 * fusermount3(1) (or fusermount), which is setuid and hands the mounted /dev/fuse over a socket.
 *
 * Errors: 0 or a negative errno, and one line for people in @message, without program name and
 * newline: what was tried, on which path, what to do. Threads: none may run during fuse_mount().
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

struct fuse_mount_config {
	const char *mountpoint;
	const char *source;  /* shown in the mount table */
	const char *subtype; /* the type is fuse.<subtype> */
	unsigned long flags; /* MS_* of mount(2) */
	/*
	 * "context=..." and the like, or NULL. Without effect where there is no SELinux, where it
	 * refuses them (to root of a user namespace), and through fusermount3, which knows no such
	 * words.
	 */
	const char *contexts;
	bool allow_other;
};

struct fuse_mount {
	int fd;           /* /dev/fuse; blocking, close-on-exec */
	char *mountpoint; /* absolute, without symlinks */
	bool by_helper;
	dev_t dev; /* st_dev of the mount */
};

/* Owned by the caller until fuse_mount_free(), which does not unmount. */
int fuse_mount(const struct fuse_mount_config *config, struct fuse_mount *out, char *message,
	       size_t size);

/*
 * Detaches the mount lazily (MNT_DETACH). Nothing is done, with -EINVAL, when what is mounted there
 * now is not ours. From any thread, while others serve: the kernel may write back through them.
 */
int fuse_unmount(const struct fuse_mount *mount);

void fuse_mount_free(struct fuse_mount *mount);
