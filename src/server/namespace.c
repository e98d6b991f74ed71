/* SPDX-License-Identifier: MIT */
/*
 * Names: everything that looks up, makes, moves and removes directory entries.
 */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <sys/stat.h>

#include "server/server_private.h"
#include "util/base.h"

/* Each entry that the kernel gets counts as one lookup, until FORGET. @out counts without @err. */
static void reply_filled(struct server *s, struct fuse_request *req, int err,
			 const struct fuse_entry_out *out)
{
	if (err)
		server_reply_status(req, err);
	else if (fuse_reply(req, out, sizeof(*out)) < 0)
		server_forget_nodeid(s, out->nodeid, 1);
}

static void reply_entry(struct server *s, struct fuse_request *req, int err,
			const struct ovl_entry *entry)
{
	struct fuse_entry_out out;

	if (!err)
		err = server_fill_entry(s, &out, entry);
	reply_filled(s, req, err, &out);
}

/*
 * The object of a file handle, whose nodeid the kernel does not have any more; or, "..", the
 * directory that a directory is in. Never sent but with nfs_export.
 */
static void lookup_dots(struct server *s, struct fuse_request *req)
{
	struct ovl_caller caller = server_caller(s, req);
	uint64_t nodeid = req->in->nodeid;
	ovl_node node = server_node(s, nodeid);
	struct fuse_entry_out out;
	struct ovl_entry entry;
	int err = -ESTALE;

	if (node)
		err = ovl_lookup(s->o, node, req->string[0], &entry);
	if (req->string[0][1]) {
		reply_entry(s, req, err, &entry);
		return;
	}
	if (err == -ESTALE) /* or it was forgotten just now */
		err = ovl_resolve(s->o, &caller, nodeid, &entry);
	if (!err)
		err = server_fill_entry(s, &out, &entry);
	if (!err && out.nodeid != nodeid) { /* another object claims the number */
		server_forget_nodeid(s, out.nodeid, 1);
		err = -ESTALE;
	}
	reply_filled(s, req, err, &out);
}

/* "." may take long; ".." is as rare. */
bool server_lookup_blocks(const struct fuse_request *req)
{
	const char *name = req->string[0];

	return name[0] == '.' && (!name[1] || (name[1] == '.' && !name[2]));
}

void server_lookup(void *ctx, struct fuse_request *req)
{
	struct server *s = ctx;
	struct ovl_entry entry;
	int err;

	if (unlikely(server_lookup_blocks(req))) {
		lookup_dots(s, req);
		return;
	}
	err = ovl_lookup(s->o, server_node(s, req->in->nodeid), req->string[0], &entry);
	if (err == -ENOENT && (s->valid || s->valid_nsec)) {
		/* The name's absence may be cached as well. */
		struct fuse_entry_out out = { .entry_valid = s->valid,
					      .entry_valid_nsec = s->valid_nsec };

		fuse_reply(req, &out, sizeof(out));
		return;
	}
	if (!err && !S_ISDIR(entry.attr.stx_mode))
		server_listers_looked(&s->listers, req->in->pid, req->in->nodeid);
	reply_entry(s, req, err, &entry);
}

void server_forget(void *ctx, struct fuse_request *req)
{
	struct server *s = ctx;
	const struct fuse_forget_in *arg = req->arg;

	server_forget_nodeid(s, req->in->nodeid, arg->nlookup);
}

void server_batch_forget(void *ctx, struct fuse_request *req)
{
	struct server *s = ctx;
	const struct fuse_batch_forget_in *arg = req->arg;
	const struct fuse_forget_one *one = (const void *)req->payload;
	size_t count = min((size_t)arg->count, req->payload_size / sizeof(*one));

	for (size_t i = 0; i < count; i++)
		server_forget_nodeid(s, one[i].nodeid, one[i].nlookup);
}

void server_readlink(void *ctx, struct fuse_request *req)
{
	struct server *s = ctx;
	/* The kernel takes a page less one byte. */
	size_t most = PATH_MAX - 1;
	ssize_t length;

	length = ovl_readlink(s->o, server_node(s, req->in->nodeid), (char *)req->reply,
			      min(req->reply_size, (size_t)PATH_MAX));
	if (length > (ssize_t)most)
		length = -ENAMETOOLONG;
	if (length < 0)
		server_reply_status(req, (int)length);
	else
		fuse_reply(req, req->reply, (size_t)length);
}

void server_symlink(void *ctx, struct fuse_request *req)
{
	struct server *s = ctx;
	struct ovl_caller caller;
	struct ovl_entry entry;
	int err = server_creator(s, req, 0, &caller);

	if (!err)
		err = ovl_symlink(s->o, &caller, server_node(s, req->in->nodeid), req->string[0],
				  req->string[1], &entry);
	reply_entry(s, req, err, &entry);
}

void server_mknod(void *ctx, struct fuse_request *req)
{
	struct server *s = ctx;
	const struct fuse_mknod_in *arg = req->arg;
	struct ovl_caller caller;
	struct ovl_entry entry;
	int err = server_creator(s, req, arg->umask, &caller);

	if (!err)
		err = ovl_mknod(s->o, &caller, server_node(s, req->in->nodeid), req->string[0],
				server_mode(s, arg->mode, arg->umask), server_decode_dev(arg->rdev),
				&entry);
	reply_entry(s, req, err, &entry);
}

void server_mkdir(void *ctx, struct fuse_request *req)
{
	struct server *s = ctx;
	const struct fuse_mkdir_in *arg = req->arg;
	struct ovl_caller caller;
	struct ovl_entry entry;
	int err = server_creator(s, req, arg->umask, &caller);

	if (!err)
		err = ovl_mkdir(s->o, &caller, server_node(s, req->in->nodeid), req->string[0],
				server_mode(s, arg->mode & ~S_IFMT, arg->umask), &entry);
	reply_entry(s, req, err, &entry);
}

void server_unlink(void *ctx, struct fuse_request *req)
{
	struct server *s = ctx;
	struct ovl_caller caller = server_caller(s, req);

	server_reply_status(
		req, ovl_unlink(s->o, &caller, server_node(s, req->in->nodeid), req->string[0]));
}

void server_rmdir(void *ctx, struct fuse_request *req)
{
	struct server *s = ctx;
	struct ovl_caller caller = server_caller(s, req);

	server_reply_status(
		req, ovl_rmdir(s->o, &caller, server_node(s, req->in->nodeid), req->string[0]));
}

static void reply_rename(struct server *s, struct fuse_request *req, uint64_t newdir,
			 unsigned int flags)
{
	struct ovl_caller caller = server_caller(s, req);

	server_reply_status(req, ovl_rename(s->o, &caller, server_node(s, req->in->nodeid),
					    req->string[0], server_node(s, newdir), req->string[1],
					    flags));
}

void server_rename(void *ctx, struct fuse_request *req)
{
	const struct fuse_rename_in *arg = req->arg;

	reply_rename(ctx, req, arg->newdir, 0);
}

void server_rename2(void *ctx, struct fuse_request *req)
{
	const struct fuse_rename2_in *arg = req->arg;

	reply_rename(ctx, req, arg->newdir, arg->flags);
}

void server_link(void *ctx, struct fuse_request *req)
{
	struct server *s = ctx;
	const struct fuse_link_in *arg = req->arg;
	struct ovl_caller caller = server_caller(s, req);
	struct ovl_entry entry;

	reply_entry(s, req,
		    ovl_link(s->o, &caller, server_node(s, arg->oldnodeid),
			     server_node(s, req->in->nodeid), req->string[0], &entry),
		    &entry);
}
