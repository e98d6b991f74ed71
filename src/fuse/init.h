/* SPDX-License-Identifier: MIT */
/*
 * INIT: what the two sides agree on. A pure function, so that every old kernel can be tried in a
 * test. Defined by the comments at the top of <linux/fuse.h>.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "fuse/request.h"

struct fuse_init_want {
	uint64_t flags;     /* FUSE_* to have if the kernel has them */
	uint64_t forbid;    /* FUSE_* to do without even so: for tests of old kernels */
	uint32_t max_write; /* bytes; the largest request */
	uint32_t max_readahead;
};

/*
 * Answers @in of @size bytes. Fills @out and @conn; @conn->minor is 0 when the kernel has a newer
 * major and will send INIT again. -EPROTO: the kernel's protocol is too old; -EINVAL: not an INIT.
 */
int fuse_init_negotiate(const struct fuse_init_want *want, const void *in, size_t size,
			struct fuse_init_out *out, struct fuse_conn *conn);
