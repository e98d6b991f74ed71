/* SPDX-License-Identifier: MIT */
/*
 * io=passthrough: files that the kernel reads and writes itself, and what it then does not tell us.
 *
 * Those are the files of upper, which stay where they are, and on a mount without upper all. Which
 * way an inode is open is opens.c's; here are the backing ids, and the flags of the reply.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/syscall.h>

#include "server/server_private.h"
#include "util/base.h"
#include "util/log.h"

/* In a file handle, beside flags of open(2): it is passthrough. */
#define HANDLE_PASSTHROUGH (1ULL << 30)

static int try_passthrough(struct ovl *o)
{
	autofd int sample = -1;

	if (!ovl_may_trust())
		return -EPERM;
	sample = ovl_open_sample(o);
	return sample < 0 ? sample : fuse_backing_try(sample);
}

void server_choose_io(struct server *s, const struct server_config *config)
{
	int err = -EPERM;

	s->io = SERVER_IO_CACHED;
	if (config->io == SERVER_IO_CACHED)
		return;
	if (!(config->forbid_flags & FUSE_PASSTHROUGH))
		err = try_passthrough(s->o);
	if (!err)
		err = server_opens_new(s->coherent, &s->opens);
	if (!err) {
		s->io = SERVER_IO_PASSTHROUGH;
		/* An object has a second nodeid at times, which a file handle would not know. */
		s->passthrough_all = config->passthrough_all && !ovl_get_features(s->o)->nfs_export;
	} else if (config->io == SERVER_IO_PASSTHROUGH) {
		log_warning("io=passthrough: not here (%s): io=cached", strerror(-err));
	}
}

static bool opens_for_write(int flags)
{
	return (flags & O_ACCMODE) != O_RDONLY;
}

/* MAP_SHARED with PROT_WRITE wants both. */
static bool may_map(int flags)
{
	return (flags & O_ACCMODE) == O_RDWR;
}

static void close_backing(const struct server *s, int32_t id)
{
	if (id > 0)
		fuse_backing_close(&s->backing, id);
}

/*
 * Whether what the caller writes leaves set-id bits alone: CAP_FSETID in the first user namespace,
 * which is ours. A new file has no such bits, so of who creates only the user is asked, for the
 * sake of speed.
 */
static bool keeps_setid(const struct fuse_request *req, bool creates)
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3,
						   .pid = (int)req->in->pid };
	struct __user_cap_data_struct caps[2];
	struct stat ours, theirs;
	char path[64];

	if (creates)
		return req->in->uid == 0;
	if (!header.pid || syscall(SYS_capget, &header, caps) < 0 ||
	    !(caps[CAP_TO_INDEX(CAP_FSETID)].effective & CAP_TO_MASK(CAP_FSETID)))
		return false;
	snprintf(path, sizeof(path), "/proc/%u/ns/user", req->in->pid);
	return stat(path, &theirs) == 0 && stat("/proc/self/ns/user", &ours) == 0 &&
	       theirs.st_ino == ours.st_ino;
}

/* Whether there are contents, which only cannot be handed over. Else open(2) tells the error. */
static bool is_harmless(int err)
{
	return err == -EOPNOTSUPP || err == -EROFS || err == -EMFILE || err == -ENFILE;
}

static void note_refusal(struct server *s, unsigned int layer, int err)
{
	if (err == -ELOOP || err == -EROFS)
		atomic_fetch_or(&s->refused[layer / 64], 1ULL << layer % 64);
}

/*
 * A backing id for the contents of @node as they are now; an error in its place is the reason for
 * none. Fails if nobody could open them.
 */
static int get_id(struct server *s, ovl_node node, int contents, struct server_opening *o)
{
	unsigned int layer = 0;
	autofd int own = -1;

	if (contents < 0)
		contents = own = ovl_open_contents(s->o, node, &layer);
	if (contents < 0 && !is_harmless(contents))
		return contents;
	if (contents >= 0)
		o->upper = layer == 0;
	o->id = contents < 0 ? contents : fuse_backing_open(&s->backing, contents, o->trusted);
	if (o->id < 0) {
		note_refusal(s, layer, o->id);
		log_debug("node %llu cannot be passed through: %s", (unsigned long long)o->nodeid,
			  strerror(-o->id));
	}
	return 0;
}

/* The engine has left it to whoever passes the contents through to look whether they are good. */
static int check_contents(const struct server *s, ovl_node node)
{
	unsigned int layer;
	autofd int fd = ovl_open_contents(s->o, node, &layer);

	return fd >= 0 || is_harmless(fd) ? 0 : fd;
}

/*
 * Whether writing is to come to us; mappings are the kernel's still. Asked after the open was
 * counted, so that who sets set-id bits meanwhile finds the file unsteady.
 */
static int guards_writes(const struct server *s, ovl_node node, int flags, const struct statx *made)
{
	if (!opens_for_write(flags))
		return 0;
	/* What O_SYNC asks for is not to be done. */
	if ((flags & O_DSYNC) && ovl_get_features(s->o)->fsync == OVL_FSYNC_VOLATILE)
		return 1;
	return made ? !!(made->stx_mode & (S_ISUID | S_ISGID)) : ovl_guards_writes(s->o, node);
}

/* An error that will be the same for all files of a layer. */
static bool is_refused(const struct server *s, unsigned int layer)
{
	return atomic_load_explicit(&s->refused[layer / 64], memory_order_relaxed) >> layer % 64 &
	       1;
}

/* Counts the open; the way it goes, with a backing id if it needs one. */
static int enter(struct server *s, const struct fuse_request *req, ovl_node node,
		 const struct ovl_direct *direct, int contents, bool creates,
		 struct server_opening *o)
{
	int err = 0;
	int way;

	if (direct->possible && !o->direct)
		err = check_contents(s, node);
	if (err)
		return err;
	o->trusted = o->writes && o->direct && keeps_setid(req, creates);
	way = server_opens_enter(s->opens, o);

	close_backing(s, o->unused);
	if (way != SERVER_WAY_NO_ID)
		return way;
	if (!o->writes) /* others like him may write */
		o->trusted = keeps_setid(req, creates);
	err = get_id(s, node, contents, o);
	if (err)
		return err;
	way = server_opens_enter(s->opens, o);
	close_backing(s, o->unused);
	return way;
}

static int begin_passthrough(struct server *s, ovl_node node, int flags, const struct statx *made,
			     const struct server_opening *o, struct fuse_open_out *out)
{
	int guarded;

	out->fh |= HANDLE_PASSTHROUGH;
	out->open_flags &= ~(uint32_t)FOPEN_KEEP_CACHE;
	out->open_flags |= FOPEN_PASSTHROUGH;
	fuse_open_out_set_backing(out, o->id);
	guarded = o->writes && o->differs ? 1 : guards_writes(s, node, flags, made);
	if (guarded < 0) {
		server_end_open(s, o->nodeid, out->fh);
		return guarded;
	}
	if (guarded)
		out->open_flags |= FOPEN_DIRECT_IO;
	if (o->unsteady && !made && !(flags & O_TRUNC)) /* that size is 0 is news enough */
		fuse_notify_inval_attr(s->session, o->nodeid, false);
	return 0;
}

int server_begin_open(struct server *s, const struct fuse_request *req, uint64_t nodeid, int flags,
		      const struct ovl_direct *direct, int contents, const struct statx *made,
		      struct fuse_open_out *out)
{
	ovl_node node = server_node(s, nodeid);
	struct server_opening o = {
		.nodeid = nodeid,
		.direct = direct->possible && !is_refused(s, direct->layer),
		.upper = direct->upper,
		.writes = opens_for_write(flags),
		.maps = may_map(flags),
	};
	int way = enter(s, req, node, direct, contents, made != NULL, &o);

	if (way == SERVER_WAY_PASSTHROUGH)
		return begin_passthrough(s, node, flags, made, &o, out);
	if (way == SERVER_WAY_STALE) {
		fuse_notify_inval_attr(s->session, nodeid, false);
		return -ESTALE;
	}
	if (way < 0)
		return way;
	if (!o.keeps)
		out->open_flags &= ~(uint32_t)FOPEN_KEEP_CACHE;
	return 0;
}

void server_end_open(struct server *s, uint64_t nodeid, uint64_t fh)
{
	int flags = (int)(uint32_t)fh;
	int32_t unused;

	server_opens_leave(s->opens, nodeid, fh & HANDLE_PASSTHROUGH, opens_for_write(flags),
			   may_map(flags), &unused);
	close_backing(s, unused);
}

void server_forget_backing(struct server *s, uint64_t nodeid)
{
	close_backing(s, server_opens_forget(s->opens, nodeid));
	if (s->passthrough_all)
		close_backing(s, server_opens_forget(s->opens, nodeid ^ SERVER_SECOND_INODE));
}

void server_settle(struct server *s, uint64_t nodeid, ovl_node node)
{
	uint64_t doubt = s->opens ? server_opens_doubt(s->opens, nodeid) : 0;

	if (unlikely(doubt))
		server_opens_settle(s->opens, nodeid, doubt, ovl_is_written(s->o, node));
}
