/* SPDX-License-Identifier: MIT */
/*
 * An io_uring with room for one command, by plain system calls: io_uring_setup(2),
 * io_uring_enter(2). One command at a time is all that a thread of the ring transport needs.
 *
 * Threads: only the thread that opened a ring may use it (IORING_SETUP_SINGLE_ISSUER), and what the
 * kernel writes for a command it writes while that thread is in fuse_ring_wait(). Errors: 0 or a
 * negative errno.
 */
#pragma once

#include <linux/io_uring.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define FUSE_RING_SQE_SIZE ((size_t)128)

struct fuse_ring {
	int fd;
	struct io_uring_sqe *sqe; /* the only one: 128 bytes */
	struct io_uring_cqe *cqes;
	uint32_t *sq_tail, *cq_head, *cq_tail;
	uint32_t cq_mask;
	uint32_t to_submit; /* 1 from fuse_ring_submit() until the kernel took it */
	void *rings;
	size_t rings_size;
};

/* On failure there is nothing to close. */
int fuse_ring_open(struct fuse_ring *ring);
/* What is under way is cancelled, asynchronously. */
void fuse_ring_close(struct fuse_ring *ring);

/* @ring->sqe holds a command: the next fuse_ring_wait() hands it to the kernel. */
void fuse_ring_submit(struct fuse_ring *ring);

/* Hands it over at once, without waiting. */
int fuse_ring_flush(struct fuse_ring *ring);

/* Whether fuse_ring_wait() would return at once. */
bool fuse_ring_is_done(const struct fuse_ring *ring);

/*
 * Waits until the command is done and stores its result: as long as it takes, or @ms milliseconds
 * if that is not 0 (-ETIME). -EINTR when a signal came first. After both the command goes on: wait
 * again.
 */
int fuse_ring_wait(struct fuse_ring *ring, unsigned int ms, int32_t *result);
