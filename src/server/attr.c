/* SPDX-License-Identifier: MIT */
/*
 * Attributes of objects and of the whole.
 */
#include <errno.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#include "server/server_private.h"

static void reply_attr(struct server *s, struct fuse_request *req, int err, struct statx *attr)
{
	struct fuse_attr_out out = { .attr_valid = s->valid, .attr_valid_nsec = s->valid_nsec };

	if (err) {
		server_reply_status(req, err);
		return;
	}
	server_show(s, server_node(s, req->in->nodeid), attr);
	server_fill_attr(&out.attr, attr);
	fuse_reply(req, &out, sizeof(out));
}

void server_getattr(void *ctx, struct fuse_request *req)
{
	struct server *s = ctx;
	struct statx attr;

	reply_attr(s, req, ovl_getattr(s->o, server_node(s, req->in->nodeid), &attr), &attr);
}

void server_statx(void *ctx, struct fuse_request *req)
{
	struct server *s = ctx;
	struct fuse_statx_out out = { .attr_valid = s->valid, .attr_valid_nsec = s->valid_nsec };
	struct statx attr;
	ovl_node node = server_node(s, req->in->nodeid);
	int err = ovl_getattr(s->o, node, &attr);

	if (err) {
		server_reply_status(req, err);
		return;
	}
	server_show(s, node, &attr);
	server_fill_statx(&out.stat, &attr);
	fuse_reply(req, &out, sizeof(out));
}

static struct timespec set_time(const struct fuse_setattr_in *arg, uint32_t now, uint64_t sec,
				uint32_t nsec)
{
	if (arg->valid & now)
		return (struct timespec){ .tv_nsec = UTIME_NOW };
	return (struct timespec){ .tv_sec = (time_t)sec, .tv_nsec = nsec };
}

static unsigned int set_valid(uint32_t valid)
{
	static const struct {
		uint32_t wire;
		unsigned int set;
	} bits[] = {
		{ FATTR_MODE, OVL_SET_MODE },
		{ FATTR_UID, OVL_SET_UID },
		{ FATTR_GID, OVL_SET_GID },
		{ FATTR_SIZE, OVL_SET_SIZE },
		{ FATTR_ATIME, OVL_SET_ATIME },
		{ FATTR_ATIME_NOW, OVL_SET_ATIME },
		{ FATTR_MTIME, OVL_SET_MTIME },
		{ FATTR_MTIME_NOW, OVL_SET_MTIME },
		{ FATTR_KILL_SUIDGID, OVL_KILL_SUIDGID },
		{ FATTR_FH, OVL_SET_BY_FD },
	};
	unsigned int set = 0;

	for (size_t i = 0; i < sizeof(bits) / sizeof(bits[0]); i++) {
		if (valid & bits[i].wire)
			set |= bits[i].set;
	}
	return set;
}

/*
 * A writeback cache keeps times itself and stores them now and then, as after each unlink and
 * rename, which moves ctime only. Nothing is to be done then, and above all no copy-up.
 */
static bool stores_nothing_new(struct server *s, const struct fuse_request *req, ovl_node node,
			       struct statx *attr)
{
	const struct fuse_setattr_in *arg = req->arg;
	const uint32_t ignored = FATTR_FH | FATTR_LOCKOWNER;

	if (!server_holds_back(req) || (arg->valid & ~ignored) != (FATTR_MTIME | FATTR_CTIME))
		return false;
	return ovl_getattr(s->o, node, attr) == 0 &&
	       attr->stx_mtime.tv_sec == (int64_t)arg->mtime &&
	       attr->stx_mtime.tv_nsec == arg->mtimensec;
}

static int change_attr(struct server *s, const struct ovl_caller *caller, ovl_node node,
		       struct ovl_setattr *set, struct statx *attr)
{
	int err = ovl_setattr(s->o, caller, node, set, attr);

	if (unlikely(err == -EPERM || err == -EINVAL) && server_leave_owner(s, set))
		err = ovl_setattr(s->o, caller, node, set, attr);
	return err;
}

void server_setattr(void *ctx, struct fuse_request *req)
{
	struct server *s = ctx;
	const struct fuse_setattr_in *arg = req->arg;
	ovl_node node = server_node(s, req->in->nodeid);
	struct ovl_caller caller = server_caller(s, req);
	struct ovl_setattr set = {
		.valid = set_valid(arg->valid),
		.mode = arg->mode & 07777,
		.uid = arg->uid,
		.gid = arg->gid,
		.size = (off_t)arg->size,
		.atime = set_time(arg, FATTR_ATIME_NOW, arg->atime, arg->atimensec),
		.mtime = set_time(arg, FATTR_MTIME_NOW, arg->mtime, arg->mtimensec),
	};
	struct statx attr;
	int err;

	if (stores_nothing_new(s, req, node, &attr)) {
		reply_attr(s, req, 0, &attr);
		return;
	}
	err = server_store_owner(s, &set);
	/* No OPEN came that could have given a right to keep. */
	if (!arg->fh)
		set.valid &= ~(unsigned int)OVL_SET_BY_FD;
	/*
	 * An empty one is what is left of chown(-1, -1), or of a write that drops set-id bits: what
	 * HANDLE_KILLPRIV_V2 has the server know.
	 */
	if (!(set.valid & ~(unsigned int)(OVL_KILL_SUIDGID | OVL_SET_BY_FD)))
		set.valid = OVL_KILL_SUIDGID;
	if ((arg->valid & FATTR_SIZE) && set.size < 0)
		err = -EINVAL;
	if (!err && unlikely(s->hides_acl) && (set.valid & OVL_SET_MODE))
		err = server_replace_acl(s, &caller, node, set.mode);
	if (!err)
		err = change_attr(s, &caller, node, &set, &attr);
	reply_attr(s, req, err, &attr);
}

/* A new size frees or copies up data. */
bool server_setattr_blocks(const struct fuse_request *req)
{
	const struct fuse_setattr_in *arg = req->arg;

	return arg->valid & FATTR_SIZE;
}

void server_statfs(void *ctx, struct fuse_request *req)
{
	struct server *s = ctx;
	struct fuse_statfs_out out = { 0 };
	struct statvfs st;
	int err = ovl_statfs(s->o, &st);

	if (err) {
		server_reply_status(req, err);
		return;
	}
	out.st.blocks = st.f_blocks;
	out.st.bfree = st.f_bfree;
	out.st.bavail = st.f_bavail;
	out.st.files = st.f_files;
	out.st.ffree = st.f_ffree;
	out.st.bsize = (uint32_t)st.f_bsize;
	out.st.namelen = (uint32_t)st.f_namemax;
	out.st.frsize = (uint32_t)st.f_frsize;
	fuse_reply(req, &out, sizeof(out));
}

void server_syncfs(void *ctx, struct fuse_request *req)
{
	struct server *s = ctx;

	server_reply_status(req, ovl_syncfs(s->o));
}

void server_destroy(void *ctx, struct fuse_request *req)
{
	fuse_reply_error(req, 0);
}
