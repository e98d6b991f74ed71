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

/* Each entry that the kernel gets counts as one lookup, until FORGET. */
static void reply_entry(struct server *s, struct fuse_request *req, int err,
			const struct ovl_entry *entry)
{
	struct fuse_entry_out out;

	if (err) {
		server_reply_status(req, err);
		return;
	}
	server_fill_entry(s, &out, entry);
	if (fuse_reply(req, &out, sizeof(out)) < 0)
		ovl_forget(s->o, entry->node, 1);
}

void server_lookup(void *ctx, struct fuse_request *req)
{
	struct server *s = ctx;
	struct ovl_entry entry;
	int err = ovl_lookup(s->o, req->in->nodeid, req->string[0], &entry);

	if (err == -ENOENT && (s->valid || s->valid_nsec)) {
		/* The name's absence may be cached as well. */
		struct fuse_entry_out out = { .entry_valid = s->valid,
					      .entry_valid_nsec = s->valid_nsec };

		fuse_reply(req, &out, sizeof(out));
		return;
	}
	reply_entry(s, req, err, &entry);
}

void server_forget(void *ctx, struct fuse_request *req)
{
	struct server *s = ctx;
	const struct fuse_forget_in *arg = req->arg;

	ovl_forget(s->o, req->in->nodeid, arg->nlookup);
}

void server_batch_forget(void *ctx, struct fuse_request *req)
{
	struct server *s = ctx;
	const struct fuse_batch_forget_in *arg = req->arg;
	const struct fuse_forget_one *one = (const void *)req->payload;
	size_t count = min((size_t)arg->count, req->payload_size / sizeof(*one));

	for (size_t i = 0; i < count; i++)
		ovl_forget(s->o, one[i].nodeid, one[i].nlookup);
}

void server_readlink(void *ctx, struct fuse_request *req)
{
	struct server *s = ctx;
	/* The kernel takes a page less one byte. */
	size_t most = PATH_MAX - 1;
	ssize_t length;

	length = ovl_readlink(s->o, req->in->nodeid, (char *)req->reply,
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
	struct ovl_caller caller = server_caller(req, 0);
	struct ovl_entry entry;

	reply_entry(
		s, req,
		ovl_symlink(s->o, &caller, req->in->nodeid, req->string[0], req->string[1], &entry),
		&entry);
}

void server_mknod(void *ctx, struct fuse_request *req)
{
	struct server *s = ctx;
	const struct fuse_mknod_in *arg = req->arg;
	struct ovl_caller caller = server_caller(req, arg->umask);
	struct ovl_entry entry;

	reply_entry(s, req,
		    ovl_mknod(s->o, &caller, req->in->nodeid, req->string[0], arg->mode,
			      server_decode_dev(arg->rdev), &entry),
		    &entry);
}

void server_mkdir(void *ctx, struct fuse_request *req)
{
	struct server *s = ctx;
	const struct fuse_mkdir_in *arg = req->arg;
	struct ovl_caller caller = server_caller(req, arg->umask);
	struct ovl_entry entry;

	reply_entry(s, req,
		    ovl_mkdir(s->o, &caller, req->in->nodeid, req->string[0], arg->mode & ~S_IFMT,
			      &entry),
		    &entry);
}

void server_unlink(void *ctx, struct fuse_request *req)
{
	struct server *s = ctx;
	struct ovl_caller caller = server_caller(req, 0);

	server_reply_status(req, ovl_unlink(s->o, &caller, req->in->nodeid, req->string[0]));
}

void server_rmdir(void *ctx, struct fuse_request *req)
{
	struct server *s = ctx;
	struct ovl_caller caller = server_caller(req, 0);

	server_reply_status(req, ovl_rmdir(s->o, &caller, req->in->nodeid, req->string[0]));
}

static void reply_rename(struct server *s, struct fuse_request *req, uint64_t newdir,
			 unsigned int flags)
{
	struct ovl_caller caller = server_caller(req, 0);

	server_reply_status(req, ovl_rename(s->o, &caller, req->in->nodeid, req->string[0], newdir,
					    req->string[1], flags));
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
	struct ovl_caller caller = server_caller(req, 0);
	struct ovl_entry entry;

	reply_entry(
		s, req,
		ovl_link(s->o, &caller, arg->oldnodeid, req->in->nodeid, req->string[0], &entry),
		&entry);
}
