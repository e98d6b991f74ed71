/* SPDX-License-Identifier: MIT */
/*
 * Extended attributes.
 */
#include <errno.h>
#include <linux/limits.h>
#include <stdlib.h>
#include <string.h>

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

/*
 * A value with ids in it is read whole whatever part is asked for: as it is shown it may be longer
 * or shorter than it is.
 */
static ssize_t get_shown(struct server *s, struct fuse_request *req, enum ids_xattr kind,
			 size_t size)
{
	ssize_t n = ovl_getxattr(s->o, server_node(s, req->in->nodeid), req->string[0], req->reply,
				 min(req->reply_size, (size_t)XATTR_SIZE_MAX));

	if (n < 0)
		return n;
	if (kind == IDS_XATTR_ACL)
		n = (ssize_t)ids_show_acl(s->uids, s->gids, req->reply, (size_t)n);
	else if (req->reply_size >= IDS_CAPABILITY_MAX)
		n = (ssize_t)ids_show_capability(s->uids, req->reply, (size_t)n);
	return size && (size_t)n > size ? -ERANGE : n;
}

static ssize_t get_value(struct server *s, struct fuse_request *req, size_t size)
{
	enum ids_xattr kind = ids_xattr_kind(req->string[0]);

	if (likely(kind == IDS_XATTR_PLAIN) || (kind == IDS_XATTR_CAPABILITY && !s->uids))
		return ovl_getxattr(s->o, server_node(s, req->in->nodeid), req->string[0],
				    req->reply, size);
	if (kind == IDS_XATTR_ACL && s->no_acl)
		return -EOPNOTSUPP;
	return get_shown(s, req, kind, size);
}

/* Whether that was the answer: there are no xattrs, which the kernel remembers. */
static bool refuse(const struct server *s, struct fuse_request *req)
{
	if (likely(!s->no_xattrs))
		return false;
	fuse_reply_error(req, -ENOSYS);
	return true;
}

/*
 * Where the kernel has no SELinux, ls(1) asks for each file's label, unless it hears that there are
 * none here. Labels that a layer has are shown all the same.
 */
static ssize_t without_label(const struct server *s, const char *name, ssize_t n)
{
	if (n == -ENODATA && s->no_labels && !strcmp(name, "security.selinux"))
		return -EOPNOTSUPP;
	return n;
}

bool server_kernel_has_labels(void)
{
	FILE *f = fopen("/proc/filesystems", "re");
	char line[128];
	bool found = !f;

	while (!found && fgets(line, sizeof(line), f))
		found = strstr(line, "\tselinuxfs\n");
	if (f)
		fclose(f);
	return found;
}

void server_getxattr(void *ctx, struct fuse_request *req)
{
	struct server *s = ctx;
	const struct fuse_getxattr_in *arg = req->arg;
	size_t size = min((size_t)arg->size, req->reply_size);

	ssize_t n;

	if (server_status_is_asked(req))
		n = server_status(s, req, size);
	else if (unlikely(s->no_xattrs)) /* the kernel goes on asking, for the status too */
		n = -EOPNOTSUPP;
	else
		n = without_label(s, req->string[0], get_value(s, req, size));
	reply_value(req, arg->size, n);
}

/* In place; returns the new size. */
static size_t leave_out_acls(char *list, size_t size)
{
	char *out = list;

	for (char *p = list, *next; p < list + size; p = next) {
		size_t left = (size_t)(list + size - p);

		next = p + min(strnlen(p, left) + 1, left);
		if (!next[-1] && ids_xattr_kind(p) == IDS_XATTR_ACL)
			continue;
		memmove(out, p, (size_t)(next - p));
		out += next - p;
	}
	return (size_t)(out - list);
}

void server_listxattr(void *ctx, struct fuse_request *req)
{
	struct server *s = ctx;
	const struct fuse_getxattr_in *arg = req->arg;
	struct ovl_caller caller = server_caller(s, req);
	size_t size = min((size_t)arg->size, req->reply_size);
	ssize_t n;

	if (refuse(s, req))
		return;
	n = ovl_listxattr(s->o, &caller, server_node(s, req->in->nodeid), (char *)req->reply, size);
	if (unlikely(s->no_acl) && size && n > 0)
		n = (ssize_t)leave_out_acls((char *)req->reply, (size_t)n);
	reply_value(req, arg->size, n);
}

/*
 * What is set has its ids translated first. *@value is then a copy, in *@copy, which the caller
 * frees. Returns the length of what is to be set.
 */
static ssize_t translate(const struct server *s, const struct fuse_request *req, size_t size,
			 const void **value, void **copy)
{
	enum ids_xattr kind = ids_xattr_kind(req->string[0]);
	int err;

	*value = req->payload;
	if (kind == IDS_XATTR_ACL && unlikely(s->no_acl))
		return -EOPNOTSUPP;
	if (kind == IDS_XATTR_PLAIN || likely(!s->uids && !s->gids))
		return (ssize_t)size;
	*copy = malloc(max(size, (size_t)IDS_CAPABILITY_MAX));
	if (!*copy)
		return -ENOMEM;
	*value = *copy;
	memcpy(*copy, req->payload, size);
	if (kind == IDS_XATTR_CAPABILITY)
		return ids_store_capability(s->uids, *copy, size);
	err = ids_store_acl(s->uids, s->gids, *copy, size);
	return err ? err : (ssize_t)size;
}

void server_setxattr(void *ctx, struct fuse_request *req)
{
	struct server *s = ctx;
	const struct fuse_setxattr_in *arg = req->arg;
	struct ovl_caller caller = server_caller(s, req);
	autofree void *copy = NULL;
	const void *value;
	ssize_t size;
	bool kill_sgid = (req->conn->flags & FUSE_SETXATTR_EXT) &&
			 (arg->setxattr_flags & FUSE_SETXATTR_ACL_KILL_SGID);

	if (refuse(s, req))
		return;
	if (arg->size > req->payload_size) {
		server_reply_status(req, -EINVAL);
		return;
	}
	size = translate(s, req, arg->size, &value, &copy);
	if (size >= 0)
		size = ovl_setxattr(s->o, &caller, server_node(s, req->in->nodeid), req->string[0],
				    value, (size_t)size, (int)arg->flags, kill_sgid);
	server_reply_status(req, (int)size);
}

void server_removexattr(void *ctx, struct fuse_request *req)
{
	struct server *s = ctx;
	struct ovl_caller caller = server_caller(s, req);

	if (refuse(s, req))
		return;
	if (unlikely(s->no_acl) && ids_xattr_kind(req->string[0]) == IDS_XATTR_ACL)
		server_reply_status(req, -EOPNOTSUPP);
	else
		server_reply_status(req,
				    ovl_removexattr(s->o, &caller, server_node(s, req->in->nodeid),
						    req->string[0]));
}
