/* SPDX-License-Identifier: MIT */
/*
 * Shared by the files of the server: ops.c (the table), namespace.c, attr.c, file.c, dir.c,
 * xattr.c, ioctl.c (handlers by topic), convert.c, dirtable.c, exports.c and server.c.
 *
 * Threads: handlers run in any thread. Everything in struct server is constant while it serves but
 * dirs and exports, which have their own locks.
 */
#pragma once

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "fuse/mount.h"
#include "fuse/request.h"
#include "fuse/session.h"
#include "overlay/ovl.h"
#include "server/dirtable.h"
#include "server/exports.h"
#include "server/server.h"

struct server {
	struct ovl *o;
	struct fuse_mount mount;
	struct fuse_session *session;
	struct server_hook *hook;
	struct server_dirs dirs;
	struct server_exports *exports; /* NULL: nodeids are the engine's */
	/* How long the kernel may cache entries and attributes. */
	uint64_t valid;
	uint32_t valid_nsec;
	/* Nobody else changes the layers: page cache and listings stay over open and opendir. */
	bool coherent;
	bool allow_other;
	bool allow_root;
	const char *view; /* words of -o, or NULL */
	uid_t owner;      /* who mounted */
};

/* ops.c */

extern const struct fuse_op server_ops[];
extern const size_t server_op_count;

/* convert.c: between the engine's structs and the wire's; pure but for server_fill_entry(). */

void server_set_timeout(struct server *s, double timeout);
void server_fill_attr(struct fuse_attr *out, const struct statx *in);
void server_fill_statx(struct fuse_statx *out, const struct statx *in);
/*
 * The lookup reference that came with @in belongs to the kernel from here on, and to
 * server_forget_nodeid(). On failure it has been given back.
 */
int server_fill_entry(struct server *s, struct fuse_entry_out *out, const struct ovl_entry *in);
/* The kernel's new_encode_dev() and back. */
uint32_t server_encode_dev(dev_t dev);
dev_t server_decode_dev(uint32_t wire);

/* The engine's number of what the kernel calls @nodeid. */
static inline ovl_node server_node(const struct server *s, uint64_t nodeid)
{
	if (__builtin_expect(!s->exports, 1))
		return nodeid;
	return server_exports_node(s->exports, nodeid);
}

static inline void server_forget_nodeid(struct server *s, uint64_t nodeid, uint64_t nlookup)
{
	ovl_node node = s->exports ? server_exports_forget(s->exports, nodeid, nlookup) : nodeid;

	if (node)
		ovl_forget(s->o, node, nlookup);
}

/* The caller of @req; valid as long as @req. */
static inline struct ovl_caller server_caller(const struct fuse_request *req, uint32_t umask)
{
	return (struct ovl_caller){
		.uid = req->in->uid,
		.gid = req->in->gid,
		.pid = (pid_t)req->in->pid,
		.umask = umask & 0777,
		.interrupted = &req->interrupted,
	};
}

/*
 * The answer to what the engine returned. ENOSYS would switch the operation off for the life of the
 * mount, so a layer that gives it for one file must not get through with it.
 */
static inline void server_reply_status(struct fuse_request *req, int error)
{
	fuse_reply_error(req, error == -ENOSYS ? -EOPNOTSUPP : error);
}

/* namespace.c */
void server_lookup(void *ctx, struct fuse_request *req);
bool server_lookup_blocks(const struct fuse_request *req);
void server_forget(void *ctx, struct fuse_request *req);
void server_batch_forget(void *ctx, struct fuse_request *req);
void server_readlink(void *ctx, struct fuse_request *req);
void server_symlink(void *ctx, struct fuse_request *req);
void server_mknod(void *ctx, struct fuse_request *req);
void server_mkdir(void *ctx, struct fuse_request *req);
void server_unlink(void *ctx, struct fuse_request *req);
void server_rmdir(void *ctx, struct fuse_request *req);
void server_rename(void *ctx, struct fuse_request *req);
void server_rename2(void *ctx, struct fuse_request *req);
void server_link(void *ctx, struct fuse_request *req);

/* attr.c */
void server_getattr(void *ctx, struct fuse_request *req);
void server_statx(void *ctx, struct fuse_request *req);
void server_setattr(void *ctx, struct fuse_request *req);
bool server_setattr_blocks(const struct fuse_request *req);
void server_statfs(void *ctx, struct fuse_request *req);
void server_syncfs(void *ctx, struct fuse_request *req);
void server_destroy(void *ctx, struct fuse_request *req);

/* file.c */
void server_open(void *ctx, struct fuse_request *req);
void server_create(void *ctx, struct fuse_request *req);
void server_tmpfile(void *ctx, struct fuse_request *req);
void server_release(void *ctx, struct fuse_request *req);
void server_read(void *ctx, struct fuse_request *req);
bool server_read_blocks(const struct fuse_request *req);
void server_write(void *ctx, struct fuse_request *req);
bool server_write_blocks(const struct fuse_request *req);
void server_fsync(void *ctx, struct fuse_request *req);
void server_fallocate(void *ctx, struct fuse_request *req);
void server_lseek(void *ctx, struct fuse_request *req);
void server_copy_file_range(void *ctx, struct fuse_request *req);

/* dir.c */
void server_opendir(void *ctx, struct fuse_request *req);
void server_readdir(void *ctx, struct fuse_request *req);
void server_releasedir(void *ctx, struct fuse_request *req);

/* xattr.c */
void server_getxattr(void *ctx, struct fuse_request *req);
void server_listxattr(void *ctx, struct fuse_request *req);
void server_setxattr(void *ctx, struct fuse_request *req);
void server_removexattr(void *ctx, struct fuse_request *req);

/* status.c: see status.h */
bool server_status_is_asked(const struct fuse_request *req);
/* The value, in req->reply if @size is not 0. Returns its length or a negative errno. */
ssize_t server_status(const struct server *s, const struct fuse_request *req, size_t size);

/* ioctl.c */
void server_ioctl(void *ctx, struct fuse_request *req);
