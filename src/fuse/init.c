/* SPDX-License-Identifier: MIT */
#include "fuse/init.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "util/base.h"

/* Linux 5.4. Everything below it lacks MAX_PAGES, CACHE_SYMLINKS or both and is long out of
 * support. */
#define OLDEST_MINOR 31

/* major, minor, max_readahead and flags: what every version has. */
#define INIT_IN_SIZE     16
#define INIT_IN_EXT_SIZE (INIT_IN_SIZE + 4)

/* Requests in the background (readahead, asynchronous releases) before the kernel holds them back.
 */
#define MAX_BACKGROUND       64
#define CONGESTION_THRESHOLD 48

int fuse_init_negotiate(const struct fuse_init_want *want, const void *in, size_t size,
			struct fuse_init_out *out, struct fuse_conn *conn)
{
	struct fuse_init_in init = { 0 };
	uint64_t offered, agreed;

	memset(out, 0, sizeof(*out));
	memset(conn, 0, sizeof(*conn));
	if (size < INIT_IN_SIZE)
		return -EINVAL;
	memcpy(&init, in, min(size, sizeof(init)));
	out->major = FUSE_KERNEL_VERSION;
	out->minor = FUSE_SPOKEN_MINOR;
	if (init.major > FUSE_KERNEL_VERSION)
		return 0;
	if (init.major < FUSE_KERNEL_VERSION || init.minor < OLDEST_MINOR)
		return -EPROTO;

	offered = init.flags;
	if ((offered & FUSE_INIT_EXT) && size >= INIT_IN_EXT_SIZE)
		offered |= (uint64_t)init.flags2 << 32;
	agreed = offered & (want->flags | FUSE_INIT_EXT) & ~want->forbid;
	if (!(agreed & FUSE_INIT_EXT))
		agreed &= UINT32_MAX;
	out->flags = (uint32_t)agreed;
	out->flags2 = (uint32_t)(agreed >> 32);
	out->max_readahead = min(init.max_readahead, want->max_readahead);
	out->max_background = MAX_BACKGROUND;
	out->congestion_threshold = CONGESTION_THRESHOLD;
	out->max_write = want->max_write;
	out->max_pages = (uint16_t)(want->max_write / (uint32_t)sysconf(_SC_PAGESIZE));
	out->time_gran = 1;
	/* One more filesystem may be stacked on the mount, and its files on none that is stacked.
	 */
	if (agreed & FUSE_PASSTHROUGH)
		fuse_init_out_set_stack_depth(out, 1);
	conn->minor = min(init.minor, (uint32_t)FUSE_SPOKEN_MINOR);
	conn->flags = agreed;
	conn->max_write = want->max_write;
	return 0;
}
