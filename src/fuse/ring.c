/* SPDX-License-Identifier: MIT */
#include "fuse/ring.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "util/base.h"

/* No signal makes the kernel interrupt us for a completion: we ask for it, by entering. */
#define SETUP_FLAGS (IORING_SETUP_SQE128 | IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN)

static int map_rings(struct fuse_ring *ring, const struct io_uring_params *params)
{
	const struct io_sqring_offsets *sq = &params->sq_off;
	const struct io_cqring_offsets *cq = &params->cq_off;
	uint8_t *base;
	void *p;

	ring->rings_size = max(sq->array + params->sq_entries * sizeof(uint32_t),
			       cq->cqes + params->cq_entries * sizeof(struct io_uring_cqe));
	p = mmap(NULL, ring->rings_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE,
		 ring->fd, IORING_OFF_SQ_RING);
	if (p == MAP_FAILED)
		return -errno;
	ring->rings = base = p;
	ring->sq_tail = (uint32_t *)(base + sq->tail);
	ring->cq_head = (uint32_t *)(base + cq->head);
	ring->cq_tail = (uint32_t *)(base + cq->tail);
	ring->cq_mask = *(uint32_t *)(base + cq->ring_mask);
	ring->cqes = (struct io_uring_cqe *)(base + cq->cqes);
	*(uint32_t *)(base + sq->array) = 0;
	p = mmap(NULL, FUSE_RING_SQE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE,
		 ring->fd, IORING_OFF_SQES);
	if (p == MAP_FAILED)
		return -errno;
	ring->sqe = p;
	return 0;
}

int fuse_ring_open(struct fuse_ring *ring)
{
	struct io_uring_params params = { .flags = SETUP_FLAGS };
	int err;

	memset(ring, 0, sizeof(*ring));
	ring->fd = (int)syscall(SYS_io_uring_setup, 1, &params); /* close-on-exec by itself */
	if (ring->fd < 0)
		return -errno;
	err = params.features & IORING_FEAT_SINGLE_MMAP ? map_rings(ring, &params) : -ENOSYS;
	if (err)
		fuse_ring_close(ring);
	return err;
}

void fuse_ring_close(struct fuse_ring *ring)
{
	if (ring->sqe)
		munmap(ring->sqe, FUSE_RING_SQE_SIZE);
	if (ring->rings)
		munmap(ring->rings, ring->rings_size);
	close_fd(ring->fd);
	ring->fd = -1;
}

void fuse_ring_submit(struct fuse_ring *ring)
{
	__atomic_store_n(ring->sq_tail, *ring->sq_tail + 1, __ATOMIC_RELEASE);
	ring->to_submit = 1;
}

int fuse_ring_flush(struct fuse_ring *ring)
{
	long n = syscall(SYS_io_uring_enter, ring->fd, ring->to_submit, 0, 0, NULL, 0);

	if (n < 0)
		return -errno;
	ring->to_submit -= (uint32_t)n;
	return 0;
}

static long enter(struct fuse_ring *ring, unsigned int ms)
{
	struct __kernel_timespec limit = { .tv_sec = ms / 1000,
					   .tv_nsec = (long long)(ms % 1000) * 1000000 };
	struct io_uring_getevents_arg arg = { .ts = (uintptr_t)&limit };

	if (likely(!ms))
		return syscall(SYS_io_uring_enter, ring->fd, ring->to_submit, 1,
			       IORING_ENTER_GETEVENTS, NULL, 0);
	return syscall(SYS_io_uring_enter, ring->fd, ring->to_submit, 1,
		       IORING_ENTER_GETEVENTS | IORING_ENTER_EXT_ARG, &arg, sizeof(arg));
}

static bool is_done(const struct fuse_ring *ring, uint32_t head)
{
	return __atomic_load_n(ring->cq_tail, __ATOMIC_ACQUIRE) != head;
}

bool fuse_ring_is_done(const struct fuse_ring *ring)
{
	return is_done(ring, *ring->cq_head);
}

int fuse_ring_wait(struct fuse_ring *ring, unsigned int ms, int32_t *result)
{
	uint32_t head = *ring->cq_head;

	while (!is_done(ring, head)) {
		bool submits = ring->to_submit;
		long n = enter(ring, ms);

		if (n < 0)
			return -errno;
		ring->to_submit -= (uint32_t)n;
		/* It says no more than that it has submitted, whatever ended the waiting. */
		if (!is_done(ring, head))
			return submits && ms ? -ETIME : -EINTR;
	}
	*result = ring->cqes[head & ring->cq_mask].res;
	__atomic_store_n(ring->cq_head, head + 1, __ATOMIC_RELEASE);
	return 0;
}
