/* SPDX-License-Identifier: MIT */
/*
 * Passthrough: files that the kernel reads and writes itself in the place of a mount's
 * (FUSE_PASSTHROUGH, Linux 6.9). Such a file is registered with the connection and then goes by a
 * number, the backing id, that replies to OPEN and CREATE name. Any fd of it will do, O_PATH too:
 * for each open the kernel opens it anew, with the flags of that open and the credentials of who
 * registered it.
 *
 * Those must not have CAP_FSETID, or set-id bits would survive whoever writes: the capability is
 * laid down while a file is registered, by the calling thread for itself.
 *
 * Thread-safe after fuse_backing_init(). Errors: a negative errno.
 */
#pragma once

#include <linux/capability.h>
#include <stdint.h>

struct fuse_backing {
	int dev; /* /dev/fuse of the mount; borrowed */
	/* What every thread has, and the same without CAP_FSETID; constant. */
	struct __user_cap_data_struct all[2];
	struct __user_cap_data_struct fewer[2];
};

int fuse_backing_init(struct fuse_backing *b, int dev);

/*
 * Whether it works here: registers @sample, a regular file, with a connection made for that, which
 * is mounted nowhere. -EPERM: not without CAP_SYS_ADMIN in the first user namespace; -ELOOP: the
 * filesystem of @sample is itself stacked on others; anything else: the kernel cannot.
 */
int fuse_backing_try(int sample);

/* A new backing id, above 0, for the file of @fd, which stays the caller's. */
int32_t fuse_backing_open(const struct fuse_backing *b, int fd);
/* Opens that have begun with it go on. */
void fuse_backing_close(const struct fuse_backing *b, int32_t id);
