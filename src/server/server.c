/* SPDX-License-Identifier: MIT */
#include "server/server.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "server/server_private.h"
#include "util/base.h"
#include "util/log.h"

#define MAX_WRITE     (1024U * 1024)
#define MAX_READAHEAD (1024U * 1024)

/*
 * What is asked of the kernel, whatever io= is. Left out on purpose: POSIX_LOCKS and FLOCK_LOCKS
 * (locks are local to the mount), ASYNC_DIO (after an asynchronous direct write the kernel leaves
 * stale pages in its cache). EXPORT_SUPPORT takes nodeids that mean the same after a remount: those
 * of nfs_export.
 */
#define WANTED                                                                                     \
	(FUSE_ASYNC_READ | FUSE_BIG_WRITES | FUSE_DONT_MASK | FUSE_DO_READDIRPLUS |                \
	 FUSE_READDIRPLUS_AUTO | FUSE_PARALLEL_DIROPS | FUSE_ABORT_ERROR | FUSE_MAX_PAGES |        \
	 FUSE_CACHE_SYMLINKS | FUSE_HANDLE_KILLPRIV_V2 | FUSE_SETXATTR_EXT)

/*
 * A signal ends us even if files stay open, and what the kernel holds back of them would be lost.
 * It is asked for by a thread of its own, since that takes the others, who may be stuck: then it is
 * not waited for any longer.
 */
#define WRITE_BACK_SECONDS 5

struct writing_back {
	char *mountpoint;
	int done; /* eventfd */
	atomic_uint holders;
};

static void let_go(struct writing_back *w)
{
	if (atomic_fetch_sub(&w->holders, 1) != 1)
		return;
	close_fd(w->done);
	free(w->mountpoint);
	free(w);
}

static void *write_back(void *arg)
{
	struct writing_back *w = arg;
	int fd = open(w->mountpoint, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	if (fd >= 0)
		syncfs(fd);
	close_fd(fd); /* before it is told, or the mount would be in use */
	eventfd_write(w->done, 1);
	let_go(w);
	return NULL;
}

static void have_all_written_back(const struct server *s)
{
	struct writing_back *w = calloc(1, sizeof(*w));
	struct pollfd done = { .events = POLLIN };
	pthread_t thread;

	if (!w)
		return;
	w->done = done.fd = eventfd(0, EFD_CLOEXEC);
	w->mountpoint = strdup(s->mount.mountpoint);
	atomic_init(&w->holders, 2);
	if (w->done < 0 || !w->mountpoint || pthread_create(&thread, NULL, write_back, w) != 0) {
		let_go(w);
	} else {
		pthread_detach(thread);
		poll(&done, 1, WRITE_BACK_SECONDS * 1000);
	}
	let_go(w);
}

static void unmount(void *ctx)
{
	struct server *s = ctx;
	int err;

	if (fuse_session_conn(s->session)->flags & FUSE_WRITEBACK_CACHE)
		have_all_written_back(s);
	err = fuse_unmount(&s->mount);
	if (err < 0)
		log_warning("cannot unmount %s: %s", s->mount.mountpoint, strerror(-err));
}

static void report(void *ctx)
{
	const struct server *s = ctx;
	struct ovl_stats stats;

	ovl_get_stats(s->o, &stats);
	log_notice("%s: %llu inodes and %llu names known, %llu descriptors open, %llu copied up",
		   s->mount.mountpoint, (unsigned long long)stats.inodes,
		   (unsigned long long)stats.names, (unsigned long long)stats.open_fds,
		   (unsigned long long)stats.copied_up);
}

/* allow_root: a right that was checked when a file was opened is not checked again. */
static bool allowed(void *ctx, const struct fuse_request *req)
{
	const struct server *s = ctx;

	return req->op->others || req->in->uid == s->owner || req->in->uid == 0;
}

static int start_session(struct server *s, const struct server_config *config)
{
	struct fuse_session_config session = {
		.fd = s->mount.fd,
		.ops = server_ops,
		.op_count = server_op_count,
		.ctx = s,
		.want = { .flags = WANTED,
			  .forbid = config->forbid_flags,
			  .max_write = MAX_WRITE,
			  .max_readahead = MAX_READAHEAD },
		.max_threads = config->max_threads,
		.uring = config->transport == SERVER_TRANSPORT_URING,
		.debug = config->debug,
		.unmount = unmount,
		.report = report,
		.allowed = s->allow_root ? allowed : NULL,
	};
	int err;

	if (ovl_has_acl(s->o) && !s->no_acl)
		session.want.flags |= FUSE_POSIX_ACL;
	if (s->io == SERVER_IO_PASSTHROUGH)
		session.want.flags |= FUSE_PASSTHROUGH;
	/* With it requests do not say any more who makes them, which allow_root has to know. */
	if (!s->allow_root)
		session.want.flags |= FUSE_ALLOW_IDMAP;
	/* O_TRUNC has to come as a SETATTR where no OPEN comes. */
	session.want.flags |= s->silent_open ? FUSE_NO_OPEN_SUPPORT : FUSE_ATOMIC_O_TRUNC;
	if (s->silent_opendir)
		session.want.flags |= FUSE_NO_OPENDIR_SUPPORT;
	if (s->silent_open && !config->no_writeback && ovl_has_upper(s->o))
		session.want.flags |= FUSE_WRITEBACK_CACHE;
	session.want.flags |= s->exports ? FUSE_EXPORT_SUPPORT : FUSE_NO_EXPORT_SUPPORT;
	/* Somebody else may change the layers: what the kernel has cached goes when mtime or size
	 * change. */
	if (!s->coherent)
		session.want.flags |= FUSE_AUTO_INVAL_DATA;
	err = fuse_backing_init(&s->backing, s->mount.fd);
	return err ? err : fuse_session_create(&session, &s->session);
}

/*
 * Opens without a request are only for who may cache for ever, as the kernel would then do. With
 * allow_root OPEN is where the caller is looked at.
 */
static void choose_cached(struct server *s, const struct server_config *config)
{
	/* Who asked for passthrough in vain gets an open for each file. */
	bool cached = s->io == SERVER_IO_CACHED && config->io != SERVER_IO_PASSTHROUGH;

	s->silent_opendir = s->coherent && !s->allow_root;
	s->silent_open = s->silent_opendir && cached;
}

/* What is mapped not at all costs nothing. */
static const struct id_map *mapping(const struct id_map *map)
{
	return map && !id_map_is_trivial(map) ? map : NULL;
}

static void choose_view(struct server *s, const struct server_config *config)
{
	s->uids = mapping(config->uids);
	s->gids = mapping(config->gids);
	s->static_nlink = config->static_nlink;
	s->counts_links = config->counts_links;
	s->ino32 = config->ino32;
	s->no_xattrs = config->no_xattrs;
	s->no_labels = !server_kernel_has_labels();
	s->no_acl = config->no_acl || config->no_xattrs;
	s->hides_acl = s->no_acl && ovl_has_acl(s->o);
	s->alters = s->uids || s->gids || s->static_nlink || s->counts_links || s->ino32 ||
		    s->hides_acl;
}

int server_mount(const struct server_config *config, struct ovl *o, struct server **out,
		 char *message, size_t size)
{
	struct fuse_mount_config mount = {
		.mountpoint = config->mountpoint,
		.source = config->source ? config->source : "plyfs",
		.subtype = config->subtype ? config->subtype : "plyfs",
		.flags = config->mount_flags,
		.contexts = config->contexts,
		.allow_other = config->allow_other || config->allow_root,
	};
	struct server *s = calloc(1, sizeof(*s));
	sigset_t signals;
	int err;

	message[0] = '\0';
	if (!s) {
		snprintf(message, size, "out of memory");
		return -ENOMEM;
	}
	s->o = o;
	s->mount.fd = -1;
	s->allow_other = config->allow_other;
	s->allow_root = config->allow_root && !config->allow_other;
	s->owner = getuid();
	s->may_write = ovl_has_upper(o);
	s->view = config->view;
	server_set_timeout(s, config->timeout);
	choose_view(s, config);
	server_choose_io(s, config);
	choose_cached(s, config);
	fuse_session_block_signals(&signals);
	err = ovl_get_features(o)->nfs_export ? server_exports_new(o, &s->exports) : 0;
	if (err)
		snprintf(message, size, "out of memory");
	else
		err = fuse_mount(&mount, &s->mount, message, size);
	if (!err) {
		err = start_session(s, config);
		if (err) {
			snprintf(message, size, "cannot serve %s: %s", config->mountpoint,
				 strerror(-err));
			fuse_unmount(&s->mount);
		}
	}
	if (err) {
		server_free(s);
		pthread_sigmask(SIG_SETMASK, &signals, NULL);
		return err;
	}
	s->hook = config->hook;
	if (s->hook)
		atomic_store(&s->hook->server, s);
	*out = s;
	return 0;
}

int server_run(struct server *s, void (*ready)(void *ctx), void *ctx)
{
	int err = fuse_session_run(s->session, ready, ctx);

	/* A dead mount is worth nothing: without the daemon every access gives ENOTCONN. */
	if (err < 0)
		fuse_unmount(&s->mount);
	/* Closed now, so that a mount that is still in use does not wait for us. */
	close_fd(take_fd(&s->mount.fd));
	return err;
}

void server_free(struct server *s)
{
	if (!s)
		return;
	if (s->hook)
		atomic_store(&s->hook->server, NULL);
	server_exports_free(s->exports);
	server_opens_free(s->opens);
	fuse_session_free(s->session);
	fuse_mount_free(&s->mount);
	free(s);
}

void server_attr_changed(void *ctx, uint64_t node, bool listing)
{
	struct server_hook *hook = ctx;
	struct server *s = atomic_load(&hook->server);

	if (!s || !s->session)
		return;
	if (s->exports)
		node = server_exports_nodeid(s->exports, node);
	if (node)
		fuse_notify_inval_attr(s->session, node, listing);
	if (s->passthrough_all && server_opens_left(s->opens, node))
		fuse_notify_inval_attr(s->session, node | SERVER_SECOND_INODE, listing);
}
