/* SPDX-License-Identifier: MIT */
/*
 * Shared by the files of the server: ops.c (the table), namespace.c, attr.c, file.c, dir.c,
 * xattr.c, ioctl.c (handlers by topic), passthrough.c, convert.c, ids.c, mapping.c, exports.c and
 * server.c.
 *
 * Threads: handlers run in any thread. Everything in struct server is constant while it serves but
 * exports and opens, which have their own locks, refused and flushing.
 */
#pragma once

#include <errno.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/types.h>

#include "fuse/backing.h"
#include "fuse/mount.h"
#include "fuse/request.h"
#include "fuse/session.h"
#include "overlay/ovl.h"
#include "server/exports.h"
#include "server/ids.h"
#include "server/listers.h"
#include "server/opens.h"
#include "server/server.h"
#include "util/base.h"

struct server {
	struct ovl *o;
	struct fuse_mount mount;
	struct fuse_session *session;
	struct server_hook *hook;
	struct server_exports *exports; /* NULL: nodeids are the engine's */
	/* How long the kernel may cache entries and attributes. */
	uint64_t valid;
	uint32_t valid_nsec;
	/* Nobody else changes the layers: page cache and listings stay over open and opendir. */
	bool coherent;
	/*
	 * cached: files are opened and closed without a request, so no handle exists and a change
	 * begins with the first WRITE, SETATTR or FALLOCATE.
	 */
	bool silent_open;
	bool silent_opendir; /* the same of directories, whichever way files go */
	struct server_listers listers;
	atomic_uint flushing; /* threads in server_have_written_back() */
	bool may_write;       /* there is an upper layer */
	bool allow_other;
	bool allow_root;
	enum server_io io; /* what is in effect: never SERVER_IO_AUTO */
	/* NULL: there is no passthrough, neither wanted nor agreed on with the kernel. */
	struct server_opens *opens;
	struct fuse_backing backing;
	bool passthrough_all;
	/* Layers whose files cannot be passed through: a bit each. */
	_Atomic uint64_t refused[OVL_MAX_LAYERS / 64 + 1];
	const char *view; /* words of -o, or NULL */
	uid_t owner;      /* who mounted */
	/* How the mount shows the numbers of users and groups; NULL when it shows them as they
	 * are. */
	const struct id_map *uids;
	const struct id_map *gids;
	bool alters; /* some attribute is shown otherwise than it is: see server_show() */
	bool static_nlink;
	bool counts_links; /* unless static_nlink */
	bool ino32;
	bool hides_acl; /* there may be ACLs, and nobody checks them */
	bool no_labels; /* the kernel knows none of SELinux */
	bool no_acl;
	bool no_xattrs;
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

/* passthrough.c: which way a file is open, and what follows from it. */

/* Before INIT. @config: what is asked for. A warning where that was asked for by name in vain. */
void server_choose_io(struct server *s, const struct server_config *config);
/*
 * Opens a file for @req that the engine has opened as @direct says. @contents: an fd of it if there
 * is one, else -1; stays the caller's. @made: attributes of what is new, else NULL. @out is filled
 * as for a cached open. -ESTALE: the kernel is to look it up anew.
 */
int server_begin_open(struct server *s, const struct fuse_request *req, uint64_t nodeid, int flags,
		      const struct ovl_direct *direct, int contents, const struct statx *made,
		      struct fuse_open_out *out);
/* Undoes that. @fh: what it has put into @out. */
void server_end_open(struct server *s, uint64_t nodeid, uint64_t fh);
void server_forget_backing(struct server *s, uint64_t nodeid);
/*
 * Before attributes of @nodeid are asked for that may be cached afterwards: finds out whether it
 * still is mapped, which the kernel does not say.
 */
void server_settle(struct server *s, uint64_t nodeid, ovl_node node);

/* Whether the kernel may cache attributes with @mode. */
static inline bool server_is_steady(const struct server *s, uint64_t nodeid, uint32_t mode)
{
	return !s->opens || server_opens_steady(s->opens, nodeid, mode);
}

/* The engine's number of what the kernel calls @nodeid. */
static inline ovl_node server_node(const struct server *s, uint64_t nodeid)
{
	if (unlikely(s->exports))
		return server_exports_node(s->exports, nodeid);
	return unlikely(s->passthrough_all) ? nodeid & ~SERVER_SECOND_INODE : nodeid;
}

static inline void server_forget_nodeid(struct server *s, uint64_t nodeid, uint64_t nlookup)
{
	ovl_node node = s->exports ? server_exports_forget(s->exports, nodeid, nlookup)
				   : server_node(s, nodeid);

	if (node && ovl_forget(s->o, node, nlookup) && s->opens)
		server_forget_backing(s, nodeid);
}

/* Whether the kernel holds back what is written, and so knows size and times better than we. */
static inline bool server_holds_back(const struct fuse_request *req)
{
	return req->conn->flags & FUSE_WRITEBACK_CACHE;
}

/*
 * The caller of @req, for whatever does not create: with FUSE_ALLOW_IDMAP the header has no numbers
 * then, so nobody may rely on them. Valid as long as @req.
 */
static inline struct ovl_caller server_caller(const struct server *s,
					      const struct fuse_request *req)
{
	return (struct ovl_caller){
		.uid = FUSE_INVALID_UIDGID,
		.gid = FUSE_INVALID_UIDGID,
		.pid = (pid_t)req->in->pid,
		.uids = s->uids,
		.gids = s->gids,
		.interrupted = &req->interrupted,
		.owns_mtime = server_holds_back(req),
	};
}

/* mapping.c: what the mount shows otherwise than it is in the layers, and back. */

/* Ids, links, numbers and hidden ACLs of @node's attributes. */
void server_show_attr(const struct server *s, ovl_node node, struct statx *st);

static inline void server_show(const struct server *s, ovl_node node, struct statx *st)
{
	if (unlikely(s->alters))
		server_show_attr(s, node, st);
}

/* st_ino and d_ino */
static inline uint64_t server_show_ino(const struct server *s, uint64_t ino)
{
	return unlikely(s->ino32) ? server_fold_ino(ino) : ino;
}

/*
 * The caller of @req as the owner of what it creates. -EOVERFLOW, as the kernel says of idmapped
 * mounts: nothing stands for it in the layers, and it is not root.
 */
int server_creator(const struct server *s, const struct fuse_request *req, uint32_t umask,
		   struct ovl_caller *out);
/* Where ACLs are hidden, a default ACL is no reason to leave the umask out. */
static inline mode_t server_mode(const struct server *s, uint32_t mode, uint32_t umask)
{
	return unlikely(s->hides_acl) ? mode & ~(umask & 0777) : mode;
}

/* Translates the ids that @set gives to the layers'. */
int server_store_owner(const struct server *s, struct ovl_setattr *set);
/*
 * The layers did not let us give it to whom it is shown as belonging to anyway: takes that out of
 * @set, so that it is chown(2) to nobody else. False when there is no such thing in it.
 */
bool server_leave_owner(const struct server *s, struct ovl_setattr *set);
/* With hidden ACLs: an ACL would go on having its say, so the mode takes its place. */
int server_replace_acl(const struct server *s, const struct ovl_caller *caller, ovl_node node,
		       mode_t mode);

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
/*
 * Has the kernel write back what it still holds of the file that @req is about, and forget its
 * pages: for what looks at the contents, or forbids to write. Other threads of ours have to answer
 * that, so the handler is FUSE_BLOCKING, and only some may be in here: -EINVAL beyond.
 */
int server_have_written_back(struct server *s, const struct fuse_request *req);
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
/* Whether the kernel was built and started with SELinux; true when that cannot be known. */
bool server_kernel_has_labels(void);

/* status.c: see status.h */
bool server_status_is_asked(const struct fuse_request *req);
/* The value, in req->reply if @size is not 0. Returns its length or a negative errno. */
ssize_t server_status(const struct server *s, const struct fuse_request *req, size_t size);

/* ioctl.c */
void server_ioctl(void *ctx, struct fuse_request *req);
bool server_ioctl_blocks(const struct fuse_request *req);
