/* SPDX-License-Identifier: MIT */
/*
 * Regular files: open, data, release.
 *
 * A file handle is no object: it says with which flags the file was opened, which is all that
 * ovl_release() needs, so it means the same to any process that serves the same layers.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <unistd.h>

#include "server/server_private.h"
#include "util/base.h"

/* Larger reads and writes are handed to a thread of their own. */
#define INLINE_DATA (128U * 1024)

/* How many threads may wait at a time until the kernel has written a file back. */
#define MOST_FLUSHING 32

/* What the engine hears of open(2)'s flags. */
#define OPEN_FLAGS (O_ACCMODE | O_APPEND | O_TRUNC | O_DIRECT | O_SYNC | O_NOATIME)

/* In the upper half of each file handle: a number from elsewhere must not be taken for one. */
#define HANDLE_TAG 0x706c7966ULL

/* Without an OPEN there is no handle: 0. */
static void tell_handle(struct ovl_caller *caller, uint64_t fh)
{
	caller->appends = fh & O_APPEND;
	caller->unopened = !fh;
}

static bool valid_range(uint64_t offset, uint64_t length)
{
	return offset <= INT64_MAX && length <= INT64_MAX - offset;
}

/* Fills the reply to what the engine has opened. -ESTALE: the kernel is to look again. */
static int fill_open(struct server *s, const struct fuse_request *req, uint64_t nodeid, int flags,
		     const struct ovl_direct *direct, int contents, const struct statx *made,
		     struct fuse_open_out *out)
{
	int err = 0;

	*out = (struct fuse_open_out){ .fh = HANDLE_TAG << 32 | (uint32_t)flags };
	if (s->coherent)
		out->open_flags |= FOPEN_KEEP_CACHE;
	if (req->conn->minor >= 35) /* there is nothing to flush but the kernel's own mappings */
		out->open_flags |= FOPEN_NOFLUSH;
	if (s->opens)
		err = server_begin_open(s, req, nodeid, flags, direct, contents, made, out);
	return err;
}

/* What fill_open() and the engine have counted. */
static void end_open(struct server *s, uint64_t nodeid, uint64_t fh)
{
	if (s->opens)
		server_end_open(s, nodeid, fh);
	ovl_release(s->o, server_node(s, nodeid), (int)(uint32_t)fh & OPEN_FLAGS);
}

static int open_by_engine(struct server *s, const struct ovl_caller *caller, ovl_node node,
			  int flags, struct ovl_direct *direct)
{
	if (!s->opens)
		return ovl_open(s->o, caller, node, flags);
	return ovl_open_direct(s->o, caller, node, flags, s->passthrough_all, direct);
}

void server_open(void *ctx, struct fuse_request *req)
{
	struct server *s = ctx;
	const struct fuse_open_in *arg = req->arg;
	struct ovl_caller caller = server_caller(s, req);
	uint64_t nodeid = req->in->nodeid;
	int flags = (int)arg->flags & OPEN_FLAGS;
	struct ovl_direct direct;
	struct fuse_open_out out;
	int err;

	if (s->silent_open && (req->conn->flags & FUSE_NO_OPEN_SUPPORT)) {
		fuse_reply_error(req, -ENOSYS);
		return;
	}
	caller.kill_priv = arg->open_flags & FUSE_OPEN_KILL_SUIDGID;
	err = open_by_engine(s, &caller, server_node(s, nodeid), flags, &direct);
	if (!err) {
		err = fill_open(s, req, nodeid, flags, &direct, -1, NULL, &out);
		if (err)
			ovl_release(s->o, server_node(s, nodeid), flags);
	}
	if (err)
		server_reply_status(req, err);
	else if (fuse_reply(req, &out, sizeof(out)) < 0)
		end_open(s, nodeid, out.fh);
}

/* @contents: of the new file, for passthrough; or -1. */
static void reply_created(struct server *s, struct fuse_request *req, int err, int flags,
			  const struct ovl_entry *entry, int contents)
{
	const struct ovl_direct direct = { .possible = contents >= 0, .upper = true };
	struct fuse_entry_out entry_out;
	struct fuse_open_out open_out;

	if (err) {
		server_reply_status(req, err);
		return;
	}
	err = server_fill_entry(s, &entry_out, entry);
	if (err) {
		ovl_release(s->o, entry->node, flags);
		server_reply_status(req, err);
		return;
	}
	err = fill_open(s, req, entry_out.nodeid, flags, &direct, contents, &entry->attr,
			&open_out);
	if (err)
		ovl_release(s->o, entry->node, flags);
	else if (!server_is_steady(s, entry_out.nodeid, entry_out.attr.mode))
		entry_out.attr_valid = entry_out.attr_valid_nsec = 0;
	if (err) {
		server_reply_status(req, err);
		server_forget_nodeid(s, entry_out.nodeid, 1);
	} else if (fuse_reply_pair(req, &entry_out, sizeof(entry_out), &open_out,
				   sizeof(open_out)) < 0) {
		end_open(s, entry_out.nodeid, open_out.fh);
		server_forget_nodeid(s, entry_out.nodeid, 1);
	}
}

void server_create(void *ctx, struct fuse_request *req)
{
	struct server *s = ctx;
	const struct fuse_create_in *arg = req->arg;
	struct ovl_caller caller;
	int flags = (int)arg->flags & OPEN_FLAGS;
	struct ovl_entry entry;
	autofd int contents = -1;
	int err = server_creator(s, req, arg->umask, &caller);

	if (!err)
		err = ovl_create_file(s->o, &caller, server_node(s, req->in->nodeid),
				      req->string[0], server_mode(s, arg->mode, arg->umask), flags,
				      &entry, s->opens ? &contents : NULL);
	/*
	 * The kernel believed that there was no such name. It must look again and check the
	 * caller's rights to what there is, which it does after ESTALE.
	 */
	if (err == -EEXIST && !(arg->flags & O_EXCL))
		err = -ESTALE;
	reply_created(s, req, err, flags, &entry, contents);
}

void server_tmpfile(void *ctx, struct fuse_request *req)
{
	struct server *s = ctx;
	const struct fuse_create_in *arg = req->arg;
	struct ovl_caller caller;
	/* O_EXCL: it may never get a name. The kernel keeps that itself. */
	int flags = (int)arg->flags & OPEN_FLAGS;
	struct ovl_entry entry;
	autofd int contents = -1;
	int err = server_creator(s, req, arg->umask, &caller);

	if (!err)
		err = ovl_tmpfile(s->o, &caller, server_node(s, req->in->nodeid),
				  server_mode(s, arg->mode, arg->umask), flags, &entry,
				  s->opens ? &contents : NULL);
	reply_created(s, req, err, flags, &entry, contents);
}

void server_release(void *ctx, struct fuse_request *req)
{
	struct server *s = ctx;
	const struct fuse_release_in *arg = req->arg;

	if (arg->fh >> 32 != HANDLE_TAG) {
		server_reply_status(req, -EBADF);
		return;
	}
	end_open(s, req->in->nodeid, arg->fh);
	fuse_reply_error(req, 0);
}

void server_read(void *ctx, struct fuse_request *req)
{
	struct server *s = ctx;
	const struct fuse_read_in *arg = req->arg;
	ssize_t count;

	/* Less than was asked for would mean the end of the file. */
	if (arg->size > req->reply_size || !valid_range(arg->offset, arg->size))
		count = -EINVAL;
	else
		count = ovl_read(s->o, server_node(s, req->in->nodeid), req->reply, arg->size,
				 (off_t)arg->offset);
	if (count < 0)
		server_reply_status(req, (int)count);
	else
		fuse_reply(req, req->reply, (size_t)count);
}

bool server_read_blocks(const struct fuse_request *req)
{
	const struct fuse_read_in *arg = req->arg;

	return arg->size > INLINE_DATA;
}

void server_write(void *ctx, struct fuse_request *req)
{
	struct server *s = ctx;
	const struct fuse_write_in *arg = req->arg;
	struct ovl_caller caller = server_caller(s, req);
	struct fuse_write_out out = { 0 };
	ssize_t count;

	tell_handle(&caller, arg->fh);
	if (arg->size > req->payload_size || !valid_range(arg->offset, arg->size))
		count = -EINVAL;
	else
		count = ovl_write(s->o, &caller, server_node(s, req->in->nodeid), req->payload,
				  arg->size, (off_t)arg->offset,
				  arg->write_flags & FUSE_WRITE_KILL_SUIDGID);
	if (count < 0) {
		server_reply_status(req, (int)count);
		return;
	}
	out.size = (uint32_t)count;
	fuse_reply(req, &out, sizeof(out));
}

bool server_write_blocks(const struct fuse_request *req)
{
	const struct fuse_write_in *arg = req->arg;

	return arg->size > INLINE_DATA;
}

/* FSYNC and FSYNCDIR. */
void server_fsync(void *ctx, struct fuse_request *req)
{
	struct server *s = ctx;
	const struct fuse_fsync_in *arg = req->arg;

	server_reply_status(req, ovl_fsync(s->o, server_node(s, req->in->nodeid),
					   arg->fsync_flags & FUSE_FSYNC_FDATASYNC));
}

void server_fallocate(void *ctx, struct fuse_request *req)
{
	struct server *s = ctx;
	const struct fuse_fallocate_in *arg = req->arg;
	struct ovl_caller caller = server_caller(s, req);
	int err = -EINVAL;

	if (valid_range(arg->offset, arg->length))
		err = ovl_fallocate(s->o, &caller, server_node(s, req->in->nodeid), (int)arg->mode,
				    (off_t)arg->offset, (off_t)arg->length);
	server_reply_status(req, err);
}

/* With FUSE_WRITEBACK_CACHE what is written; and always what is written to a mapping. */
static bool may_hold_back(const struct server *s, const struct fuse_request *req)
{
	if (server_holds_back(req))
		return true;
	if (s->opens)
		return server_opens_mapped_cached(s->opens, req->in->nodeid);
	return s->may_write;
}

int server_have_written_back(struct server *s, const struct fuse_request *req)
{
	int err = 0;

	if (!may_hold_back(s, req))
		return 0;
	if (atomic_fetch_add(&s->flushing, 1) < MOST_FLUSHING)
		fuse_notify_inval_attr(s->session, req->in->nodeid, true);
	else
		err = -EINVAL;
	atomic_fetch_sub(&s->flushing, 1);
	return err;
}

void server_lseek(void *ctx, struct fuse_request *req)
{
	struct server *s = ctx;
	const struct fuse_lseek_in *arg = req->arg;
	struct fuse_lseek_out out;
	off_t offset = -EINVAL;

	if (arg->offset > INT64_MAX)
		offset = -ENXIO;
	else if (arg->whence == SEEK_DATA || arg->whence == SEEK_HOLE)
		offset = server_have_written_back(s, req); /* it asks without doing so itself */
	if (offset == 0)
		offset = ovl_lseek(s->o, server_node(s, req->in->nodeid), (off_t)arg->offset,
				   (int)arg->whence);
	if (offset < 0) {
		server_reply_status(req, (int)offset);
		return;
	}
	out.offset = (uint64_t)offset;
	fuse_reply(req, &out, sizeof(out));
}

/* COPY_FILE_RANGE, whose answer has 32 bits, and COPY_FILE_RANGE_64. */
void server_copy_file_range(void *ctx, struct fuse_request *req)
{
	struct server *s = ctx;
	const struct fuse_copy_file_range_in *arg = req->arg;
	struct ovl_caller caller = server_caller(s, req);
	struct fuse_copy_file_range_out out64;
	struct fuse_write_out out32 = { 0 };
	uint64_t most = INT64_MAX;
	ssize_t count = -EINVAL;

	tell_handle(&caller, arg->fh_out);
	if (req->in->opcode == FUSE_COPY_FILE_RANGE)
		most = UINT32_MAX & ~4095U;
	if (arg->flags == 0 && arg->off_in <= INT64_MAX && arg->off_out <= INT64_MAX) {
		most = min(most, INT64_MAX - arg->off_in);
		most = min(most, INT64_MAX - arg->off_out);
		count = ovl_copy_file_range(s->o, &caller, server_node(s, req->in->nodeid),
					    (off_t)arg->off_in, server_node(s, arg->nodeid_out),
					    (off_t)arg->off_out, (size_t)min(most, arg->len));
	}
	if (count < 0) {
		server_reply_status(req, (int)count);
	} else if (req->in->opcode == FUSE_COPY_FILE_RANGE) {
		out32.size = (uint32_t)count;
		fuse_reply(req, &out32, sizeof(out32));
	} else {
		out64.bytes_copied = (uint64_t)count;
		fuse_reply(req, &out64, sizeof(out64));
	}
}
