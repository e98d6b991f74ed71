/* SPDX-License-Identifier: MIT */
/*
 * Extended attributes.
 */
#include <errno.h>

#include "server/server_private.h"
#include "util/base.h"

static void reply_value(struct fuse_request *req, uint32_t asked, ssize_t length)
{
	struct fuse_getxattr_out out = { 0 };

	if (length < 0) {
		server_reply_status(req, (int)length);
	} else if (asked == 0) {
		out.size = (uint32_t)length;
		fuse_reply(req, &out, sizeof(out));
	} else {
		fuse_reply(req, req->reply, (size_t)length);
	}
}

void server_getxattr(void *ctx, struct fuse_request *req)
{
	struct server *s = ctx;
	const struct fuse_getxattr_in *arg = req->arg;
	size_t size = min((size_t)arg->size, req->reply_size);

	if (server_status_is_asked(req)) {
		reply_value(req, arg->size, server_status(s, req, size));
		return;
	}
	reply_value(req, arg->size,
		    ovl_getxattr(s->o, server_node(s, req->in->nodeid), req->string[0], req->reply,
				 size));
}

void server_listxattr(void *ctx, struct fuse_request *req)
{
	struct server *s = ctx;
	const struct fuse_getxattr_in *arg = req->arg;
	struct ovl_caller caller = server_caller(req, 0);
	size_t size = min((size_t)arg->size, req->reply_size);

	reply_value(req, arg->size,
		    ovl_listxattr(s->o, &caller, server_node(s, req->in->nodeid),
				  (char *)req->reply, size));
}

void server_setxattr(void *ctx, struct fuse_request *req)
{
	struct server *s = ctx;
	const struct fuse_setxattr_in *arg = req->arg;
	struct ovl_caller caller = server_caller(req, 0);
	bool kill_sgid = (req->conn->flags & FUSE_SETXATTR_EXT) &&
			 (arg->setxattr_flags & FUSE_SETXATTR_ACL_KILL_SGID);

	if (arg->size > req->payload_size) {
		server_reply_status(req, -EINVAL);
		return;
	}
	server_reply_status(req, ovl_setxattr(s->o, &caller, server_node(s, req->in->nodeid),
					      req->string[0], req->payload, arg->size,
					      (int)arg->flags, kill_sgid));
}

void server_removexattr(void *ctx, struct fuse_request *req)
{
	struct server *s = ctx;
	struct ovl_caller caller = server_caller(req, 0);

	server_reply_status(req, ovl_removexattr(s->o, &caller, server_node(s, req->in->nodeid),
						 req->string[0]));
}
