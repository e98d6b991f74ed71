/* SPDX-License-Identifier: MIT */
/*
 * Shared by the files of the session: pool.c (threads and roles), dev.c (the /dev/fuse transport),
 * uring.c (the io_uring transport), watchdog.c, notify.c and session.c. Each field says what guards
 * it.
 */
#pragma once

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "fuse/session.h"

/*
 * Each request that waits (for a slow layer, for a copy-up) holds a thread: with few of them, as
 * many stuck clients would stop everybody. A waiting thread costs some pages of stack and of its
 * buffers.
 */
#define FUSE_DEFAULT_THREADS 512
/* Resting threads that stay, and how long the others wait for work. */
#define FUSE_KEPT_THREADS     3
#define FUSE_IDLE_SECONDS     5
#define FUSE_THREAD_STACK     ((size_t)1024 * 1024)
#define FUSE_QUEUE_MAX_BYTES  ((size_t)64 * 1024 * 1024)
#define FUSE_QUEUE_MAX_LENGTH 4096

/* Gets a thread out of the system call in which it waits for requests. Its handler does nothing. */
#define FUSE_KICK_SIGNAL SIGUSR2

/* Opcodes that the session keeps a note of, and how many requests the note lasts. */
#define FUSE_NOTED_OPS   64
#define FUSE_SLOW_CREDIT 64

struct fuse_worker {
	struct fuse_session *session;
	pthread_t thread;
	pthread_cond_t wake;           /* with session->lock: the role changed, or stopping */
	struct fuse_worker *next;      /* all workers that run; lock */
	struct fuse_worker *next_idle; /* lock */
	struct fuse_worker *next_dead; /* lock */
	bool resting;                  /* on the idle stack; lock */
	/*
	 * Works on @unique without being the leader; lock. Only such requests can be interrupted:
	 * nobody reads while the leader itself works. The worker takes the lock before it clears
	 * this, so whoever sees it true under the lock may write req.interrupted.
	 */
	bool detached;
	uint64_t unique; /* lock */
	struct fuse_request req;
	uint8_t *message; /* where a request is read to; session->message_size bytes */
	uint8_t *reply;
};

/* A request that waits for a thread, with its message in a buffer of its own. */
struct fuse_queued {
	struct fuse_queued *next;
	size_t size;
	_Alignas(8) uint8_t message[];
};

struct fuse_session {
	struct fuse_session_config config;
	struct fuse_conn conn; /* written by the first leader before it starts another thread */
	size_t message_size;   /* of each worker's buffer; constant */
	size_t reply_size;     /* constant */

	pthread_mutex_t lock;
	pthread_cond_t all_gone; /* with lock: thread_count became 0 */
	pthread_cond_t queue_room;
	struct fuse_worker *workers; /* lock */
	struct fuse_worker *idle;    /* a stack: the warmest first; lock */
	struct fuse_worker *dead;    /* ended, to be joined; lock */
	struct fuse_worker *leader;  /* lock */
	unsigned int thread_count;   /* lock */
	unsigned int idle_count;     /* lock */
	/* Workers that are detached. Written under the lock, read by the leader without. */
	atomic_uint busy;
	struct fuse_queued *queue, **queue_tail; /* lock */
	size_t queue_bytes;                      /* lock */
	unsigned int queue_length;               /* lock */
	int result;                              /* why it ended; lock */
	atomic_bool stopping;                    /* written under the lock */
	atomic_bool initialised;

	/*
	 * Odd while the leader works on a request, even while it reads. The leader counts up at
	 * begin and end; the watchdog relieves it by counting an odd value up itself, which the
	 * leader notices when its own step fails.
	 */
	_Alignas(64) _Atomic uint64_t sequence;
	/*
	 * By opcode: a leader was stuck in one of these lately, so that many of the next ones are
	 * handed over at once. Set by the watchdog, counted down by the leader.
	 */
	_Atomic uint8_t slow[FUSE_NOTED_OPS];
	atomic_bool watchdog_armed;
	int watchdog_timer;
	pthread_t watchdog;
	struct fuse_uring *uring; /* NULL: not wanted, or not to be had; constant while it serves */
	int event;                /* eventfd: tells fuse_session_run() of INIT and of the end */
};

/* Whether the caller may ask at all: 0 or -EACCES. */
static inline int fuse_session_admit(const struct fuse_session *s, const struct fuse_request *req)
{
	return !s->config.allowed || s->config.allowed(s->config.ctx, req) ? 0 : -EACCES;
}

/* pool.c */

/* For timed waits by CLOCK_MONOTONIC. */
void fuse_init_cond(pthread_cond_t *cond);

/* Starts the first worker as the leader. */
int fuse_pool_start(struct fuse_session *s);
/*
 * Another thread becomes the leader in place of @w, which is detached and works on for itself.
 * False when there is none to be had: then @w stays the leader.
 */
bool fuse_pool_hand_over(struct fuse_worker *w);
/* The same from the watchdog: takes the role away from a leader that is in step @sequence. */
bool fuse_pool_relieve(struct fuse_session *s, uint64_t sequence);
/* Whether the leader is the last thread that could read. */
bool fuse_pool_saturated(struct fuse_session *s);
/*
 * Puts the message which the leader @w has read in the queue. -EAGAIN: a thread has become free,
 * don't queue. Waits for room.
 */
int fuse_pool_enqueue(struct fuse_worker *w);
/* Marks the running or drops the queued request @unique. False when there is none. */
bool fuse_pool_interrupt(struct fuse_worker *w, uint64_t unique);
/* Every thread ends as soon as it has answered what it works on. The first @result counts. */
void fuse_pool_stop(struct fuse_session *s, int result);
/* Waits until all threads have ended. */
void fuse_pool_join(struct fuse_session *s);

/* dev.c */

/*
 * Reads and runs requests until @w is the leader no more: then its request is finished and it is
 * still detached, or the session stops.
 */
void fuse_dev_lead(struct fuse_worker *w);
/* Runs a message that waited in the queue. */
void fuse_dev_run_queued(struct fuse_worker *w, struct fuse_queued *queued);
/* Fills in a request for a message to be answered through @s. */
void fuse_dev_prepare(struct fuse_session *s, struct fuse_request *req);

/* uring.c: everything but prepare does nothing without s->uring. */

/*
 * Makes threads and rings, which then wait: s->uring. Before the first leader starts. On failure
 * there is none.
 */
int fuse_uring_prepare(struct fuse_session *s);
/* INIT was answered: whether the two sides agreed on FUSE_OVER_IO_URING. */
void fuse_uring_settle(struct fuse_session *s, bool agreed);
/* Whether requests come that way, as far as is known. */
bool fuse_uring_serves(struct fuse_session *s);
/* Marks the running request @unique, or the one that is about to run. False when there is none. */
bool fuse_uring_interrupt(struct fuse_session *s, uint64_t unique);
/* By the watchdog: queues whose threads are all stuck get another. True: look again. */
bool fuse_uring_look(struct fuse_session *s);
/* With s->stopping set: what runs is interrupted. */
void fuse_uring_stop(struct fuse_session *s);
/* After that: waits until all its threads have ended. */
void fuse_uring_join(struct fuse_session *s);
void fuse_uring_free(struct fuse_session *s);

/* notify.c */

/*
 * Has the kernel send a request of no meaning at once, to the queue of the calling CPU. @file is
 * the nodeid of a regular file. False when the kernel has forgotten it.
 */
bool fuse_notify_poke(struct fuse_session *s, uint64_t file);

/* watchdog.c */

int fuse_watchdog_start(struct fuse_session *s);
void fuse_watchdog_stop(struct fuse_session *s);
/* Called by the leader when it begins to work and the watchdog sleeps. */
void fuse_watchdog_arm(struct fuse_session *s);
