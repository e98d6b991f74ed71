/* SPDX-License-Identifier: MIT */
#include <math.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "server/server_private.h"
#include "util/base.h"

/* Seconds that are for ever (136 years), yet far from overflowing the kernel's jiffies. */
#define FOR_EVER (1ULL << 32)

void server_set_timeout(struct server *s, double timeout)
{
	s->coherent = !(timeout >= 0);
	if (s->coherent || timeout >= (double)FOR_EVER) {
		s->valid = FOR_EVER;
		s->valid_nsec = 0;
		return;
	}
	s->valid = (uint64_t)timeout;
	s->valid_nsec = (uint32_t)((timeout - (double)s->valid) * 1e9);
}

uint32_t server_encode_dev(dev_t dev)
{
	unsigned int maj = major(dev), min_ = minor(dev);

	return (min_ & 0xff) | (maj & 0xfff) << 8 | (min_ & ~0xffU) << 12;
}

dev_t server_decode_dev(uint32_t wire)
{
	return makedev((wire & 0xfff00) >> 8, (wire & 0xff) | ((wire >> 12) & 0xfff00));
}

void server_fill_attr(struct fuse_attr *out, const struct statx *in)
{
	*out = (struct fuse_attr){
		.ino = in->stx_ino,
		.size = in->stx_size,
		.blocks = in->stx_blocks,
		.atime = (uint64_t)in->stx_atime.tv_sec,
		.mtime = (uint64_t)in->stx_mtime.tv_sec,
		.ctime = (uint64_t)in->stx_ctime.tv_sec,
		.atimensec = in->stx_atime.tv_nsec,
		.mtimensec = in->stx_mtime.tv_nsec,
		.ctimensec = in->stx_ctime.tv_nsec,
		.mode = in->stx_mode,
		.nlink = in->stx_nlink,
		.uid = in->stx_uid,
		.gid = in->stx_gid,
		.rdev = server_encode_dev(makedev(in->stx_rdev_major, in->stx_rdev_minor)),
		.blksize = in->stx_blksize,
	};
}

static struct fuse_sx_time sx_time(const struct statx_timestamp *in)
{
	return (struct fuse_sx_time){ .tv_sec = in->tv_sec, .tv_nsec = in->tv_nsec };
}

void server_fill_statx(struct fuse_statx *out, const struct statx *in)
{
	*out = (struct fuse_statx){
		.mask = STATX_BASIC_STATS | (in->stx_mask & STATX_BTIME),
		.blksize = in->stx_blksize,
		.nlink = in->stx_nlink,
		.uid = in->stx_uid,
		.gid = in->stx_gid,
		.mode = in->stx_mode,
		.ino = in->stx_ino,
		.size = in->stx_size,
		.blocks = in->stx_blocks,
		.atime = sx_time(&in->stx_atime),
		.btime = sx_time(&in->stx_btime),
		.ctime = sx_time(&in->stx_ctime),
		.mtime = sx_time(&in->stx_mtime),
		.rdev_major = in->stx_rdev_major,
		.rdev_minor = in->stx_rdev_minor,
	};
}

int server_fill_entry(struct server *s, struct fuse_entry_out *out, const struct ovl_entry *in)
{
	*out = (struct fuse_entry_out){
		.nodeid = in->node,
		.entry_valid = s->valid,
		.entry_valid_nsec = s->valid_nsec,
		.attr_valid = s->valid,
		.attr_valid_nsec = s->valid_nsec,
	};
	if (unlikely(s->alters)) {
		struct statx shown = in->attr;

		server_show_attr(s, in->node, &shown);
		server_fill_attr(&out->attr, &shown);
	} else {
		server_fill_attr(&out->attr, &in->attr);
	}
	if (unlikely(s->exports)) {
		int err =
			server_exports_count(s->exports, in->node, &out->nodeid, &out->generation);

		if (err) {
			ovl_forget(s->o, in->node, 1);
			return err;
		}
	}
	if (unlikely(s->passthrough_all) && server_opens_left(s->opens, out->nodeid))
		out->nodeid |= SERVER_SECOND_INODE;
	if (unlikely(!server_is_steady(s, out->nodeid, out->attr.mode)))
		out->attr_valid = out->attr_valid_nsec = 0;
	return 0;
}
