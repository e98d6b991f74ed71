/* SPDX-License-Identifier: MIT */
/*
 * A live FUSE connection: threads that read requests from /dev/fuse, run them by a table of
 * operations and end when the mount is gone. Knows nothing of what is served.
 *
 * Threads: one at a time (the leader) reads. It answers by itself what does not wait, so that
 * caller and server stay on one CPU. Before a request that may wait it hands the reading over to
 * another thread, and a leader that got stuck against expectation is relieved by the watchdog after
 * about 2 ms (further requests of that kind are then handed over at once for a while): one slow
 * request delays no other. Threads come on demand up to max_threads, and go after some idle
 * seconds. The last one that could read never leaves that role: when all others are busy it puts
 * requests in a bounded queue, and FORGET and INTERRUPT still get through. An idle session wakes
 * nobody.
 *
 * With config.uring requests come over io_uring instead, where the kernel can, to threads that are
 * there for nothing else: see uring.c. The pool serves what still comes over /dev/fuse.
 *
 * Locks: session->lock guards the pool (who leads, who rests, the queue). It is taken with no other
 * lock held, and never held across a request or a system call on /dev/fuse. A request that does not
 * wait takes no lock here.
 *
 * Errors: 0 or a negative errno.
 */
#pragma once

#include <signal.h>
#include <stdbool.h>
#include <stdint.h>

#include "fuse/init.h"
#include "fuse/request.h"

struct fuse_session;

struct fuse_session_config {
	int fd; /* /dev/fuse of a mount; belongs to the caller, outlives the session */
	const struct fuse_op *ops;
	size_t op_count;
	void *ctx; /* for the handlers, and for unmount */
	struct fuse_init_want want;
	unsigned int max_threads; /* at least 2; 0: 512 */
	bool uring;               /* requests over io_uring, where the kernel can */
	bool debug;
	/* Unmounts lazily: called when SIGTERM, SIGINT or SIGHUP came, by the thread in
	 * fuse_session_run(). */
	void (*unmount)(void *ctx);
	/* Optional: SIGUSR1 came; called by the same thread. */
	void (*report)(void *ctx);
	/* Optional: whether the caller may ask at all; otherwise EACCES. */
	bool (*allowed)(void *ctx, const struct fuse_request *req);
};

int fuse_session_create(const struct fuse_session_config *config, struct fuse_session **out);

/*
 * Blocks all signals in the calling thread and says in *@old what was blocked before. Called before
 * the mount is made: a signal that came between would kill the process and leave a mount that
 * nobody serves. fuse_session_run() then finds it waiting.
 */
void fuse_session_block_signals(sigset_t *old);

/*
 * Serves until the connection ends. @ready is called once, by the calling thread, after INIT was
 * answered. 0 after an unmount; -ECONNABORTED after an abort; -EPROTO when INIT failed; else what
 * read(2) gave. A signal unmounts lazily; a second one, or ten seconds with files still open, ends
 * the session although the mount is in use (its users then get ENOTCONN). SIGUSR1 has it report.
 * All threads are gone at return.
 */
int fuse_session_run(struct fuse_session *s, void (*ready)(void *ctx), void *ready_ctx);

void fuse_session_free(struct fuse_session *s);

/* Zero before INIT. */
const struct fuse_conn *fuse_session_conn(const struct fuse_session *s);

/* Whether requests come over io_uring. False before INIT. */
bool fuse_session_over_uring(struct fuse_session *s);

/*
 * Has the kernel forget the attributes of @nodeid, and with @contents the cached listing of the
 * directory that it is, or the pages of the file, which are written back first: that waits for
 * requests to be answered, so a handler that asks for it must be FUSE_BLOCKING, not itself be what
 * a page waits for, and not be at work in every thread at once. From any thread. Not knowing the
 * inode is no error. Nothing happens when the connection is gone.
 */
void fuse_notify_inval_attr(struct fuse_session *s, uint64_t nodeid, bool contents);
