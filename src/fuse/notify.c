/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <string.h>
#include <sys/uio.h>

#include "fuse/session_private.h"
#include "util/log.h"

static int notify(struct fuse_session *s, int code, const void *data, size_t size)
{
	struct fuse_out_header out = { .len = (uint32_t)(sizeof(out) + size), .error = code };
	struct iovec iov[2] = { { &out, sizeof(out) }, { (void *)data, size } };

	return writev(s->config.fd, iov, 2) < 0 ? -errno : 0;
}

/*
 * Uniques that the kernel does not give out: it counts from 2 in steps of 2. A reply is matched by
 * them, so no two requests under way may have the same.
 */
static _Atomic uint64_t poke_unique = 1ULL << 62;

bool fuse_notify_poke(struct fuse_session *s, uint64_t file)
{
	/* The answer to it is a request: NOTIFY_REPLY, here with nothing of the file's contents. */
	struct fuse_notify_retrieve_out out = { .notify_unique = atomic_fetch_add(&poke_unique, 2),
						.nodeid = file };
	int err = notify(s, FUSE_NOTIFY_RETRIEVE, &out, sizeof(out));

	if (err < 0 && err != -ENOENT && err != -ENODEV)
		log_debug("cannot have a request sent: %s", strerror(-err));
	return err >= 0;
}

void fuse_notify_inval_attr(struct fuse_session *s, uint64_t nodeid, bool contents)
{
	/* A negative offset leaves the page cache alone. */
	struct fuse_notify_inval_inode_out out = { .ino = nodeid, .off = contents ? 0 : -1 };
	int err = notify(s, FUSE_NOTIFY_INVAL_INODE, &out, sizeof(out));

	if (err < 0 && err != -ENOENT && err != -ENODEV)
		log_debug("cannot invalidate attributes of node %llu: %s",
			  (unsigned long long)nodeid, strerror(-err));
}
