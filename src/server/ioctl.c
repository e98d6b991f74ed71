/* SPDX-License-Identifier: MIT */
/*
 * The ioctls that a union can answer: inode flags and extended file attributes. Only the restricted
 * form exists on FUSE mounts: the kernel has copied in_size bytes of the argument for us and copies
 * out_size bytes back.
 */
#include <errno.h>
#include <linux/fs.h>
#include <string.h>

#include "server/server_private.h"
#include "util/base.h"

/* More than any of them needs. */
#define MAX_OUT 256

static int get_flags(struct server *s, struct fuse_request *req, void *out)
{
	unsigned int flags = 0;
	int err = ovl_get_flags(s->o, server_node(s, req->in->nodeid), &flags);

	memcpy(out, &flags, sizeof(flags));
	return err;
}

/* The VFS checks that before it asks a FUSE server, but only since Linux 5.13; before, any ioctl
 * came through. Kernels that do not say who it is are younger. */
static int check_owner(struct server *s, const struct fuse_request *req)
{
	ovl_node node = server_node(s, req->in->nodeid);
	struct statx st;
	int err = 0;

	if (req->in->uid == FUSE_INVALID_UIDGID || req->in->uid == 0)
		return 0;
	err = ovl_getattr(s->o, node, &st);
	if (err)
		return err;
	server_show(s, node, &st);
	return st.stx_uid == req->in->uid ? 0 : -EPERM;
}

static int set_flags(struct server *s, struct fuse_request *req, void *out)
{
	struct ovl_caller caller = server_caller(s, req);
	unsigned int flags;
	int err = check_owner(s, req);

	memcpy(&flags, req->payload, sizeof(flags));
	if (!err)
		err = server_have_written_back(s, req);
	return err ? err : ovl_set_flags(s->o, &caller, server_node(s, req->in->nodeid), flags);
}

static int get_fsxattr(struct server *s, struct fuse_request *req, void *out)
{
	return ovl_get_fsxattr(s->o, server_node(s, req->in->nodeid), out);
}

static int set_fsxattr(struct server *s, struct fuse_request *req, void *out)
{
	struct ovl_caller caller = server_caller(s, req);
	struct fsxattr set;
	int err = check_owner(s, req);

	memcpy(&set, req->payload, sizeof(set));
	if (!err)
		err = server_have_written_back(s, req);
	return err ? err : ovl_set_fsxattr(s->o, &caller, server_node(s, req->in->nodeid), &set);
}

/*
 * The argument of the flags ioctls is an int whatever their numbers say. The numbers of 32-bit
 * callers (FS_IOC32_*) are translated by the kernel; from others it would pass them on unchecked.
 */
static const struct {
	uint32_t cmd;
	uint32_t in_size;
	uint32_t out_size;
	int (*run)(struct server *s, struct fuse_request *req, void *out);
} ioctls[] = {
	{ FS_IOC_GETFLAGS, 0, sizeof(int), get_flags },
	{ FS_IOC_SETFLAGS, sizeof(int), 0, set_flags },
	{ FS_IOC_FSGETXATTR, 0, sizeof(struct fsxattr), get_fsxattr },
	{ FS_IOC_FSSETXATTR, sizeof(struct fsxattr), 0, set_fsxattr },
};

bool server_ioctl_blocks(const struct fuse_request *req)
{
	const struct fuse_ioctl_in *arg = req->arg;

	return arg->cmd == FS_IOC_SETFLAGS || arg->cmd == FS_IOC_FSSETXATTR;
}

void server_ioctl(void *ctx, struct fuse_request *req)
{
	struct server *s = ctx;
	const struct fuse_ioctl_in *arg = req->arg;
	struct fuse_ioctl_out out = { 0 };
	_Alignas(8) uint8_t data[MAX_OUT] = { 0 };
	int err = -ENOTTY;

	for (size_t i = 0; i < ARRAY_SIZE(ioctls); i++) {
		if (ioctls[i].cmd != arg->cmd)
			continue;
		if ((arg->flags & FUSE_IOCTL_UNRESTRICTED) || arg->in_size > req->payload_size ||
		    arg->in_size < ioctls[i].in_size || arg->out_size < ioctls[i].out_size ||
		    arg->out_size > sizeof(data))
			err = -EINVAL;
		else
			err = ioctls[i].run(s, req, data);
		break;
	}
	if (err)
		server_reply_status(req, err);
	else
		fuse_reply_pair(req, &out, sizeof(out), data, arg->out_size);
}
