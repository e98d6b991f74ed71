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

void fuse_notify_inval_attr(struct fuse_session *s, uint64_t nodeid, bool contents)
{
	/* A negative offset leaves the page cache alone. */
	struct fuse_notify_inval_inode_out out = { .ino = nodeid, .off = contents ? 0 : -1 };
	int err = notify(s, FUSE_NOTIFY_INVAL_INODE, &out, sizeof(out));

	if (err < 0 && err != -ENOENT && err != -ENODEV)
		log_debug("cannot invalidate attributes of node %llu: %s",
			  (unsigned long long)nodeid, strerror(-err));
}
