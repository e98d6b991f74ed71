/* SPDX-License-Identifier: MIT */
/*
 * The /dev/fuse transport: each read(2) gives one whole request, each write(2) takes one whole
 * reply.
 */
#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "fuse/session_private.h"
#include "util/base.h"
#include "util/log.h"

/* Failed reads in a row (out of memory, say) before the session gives up. */
#define MAX_READ_FAILURES 1000

/* The data of a WRITE begins on a page of its own: the two headers end where it begins. */
#define MESSAGE_OFFSET (4096 - sizeof(struct fuse_in_header) - sizeof(struct fuse_write_in))

static int dev_send(struct fuse_request *req, const struct iovec *iov, int count)
{
	struct fuse_session *s = req->transport;

	return writev(s->config.fd, iov, count) < 0 ? -errno : 0;
}

void fuse_dev_prepare(struct fuse_session *s, struct fuse_request *req)
{
	memset(req, 0, sizeof(*req));
	req->conn = &s->conn;
	req->send = dev_send;
	req->transport = s;
	req->debug = s->config.debug;
}

static int parse(struct fuse_worker *w, const void *message, size_t size)
{
	struct fuse_session *s = w->session;
	int err = fuse_request_parse(&w->req, s->config.ops, s->config.op_count, message, size);

	return err ? err : fuse_session_admit(s, &w->req);
}

static void refuse(struct fuse_worker *w, int err)
{
	if (w->req.in && !(w->req.op && w->req.op->no_reply))
		fuse_reply_error(&w->req, err);
	else
		log_warning("the kernel sent a malformed message");
}

void fuse_dev_run_queued(struct fuse_worker *w, struct fuse_queued *queued)
{
	int err = parse(w, queued->message, queued->size);

	if (err)
		refuse(w, err);
	else
		fuse_request_run(&w->req, w->session->config.ctx);
}

/* Until the rings have been registered the kernel holds every request back. */
static void settle_uring(struct fuse_session *s)
{
	bool agreed = s->conn.flags & FUSE_OVER_IO_URING;

	if (!agreed)
		log_warning("the kernel offers no FUSE over io_uring, requests come over /dev/fuse:"
			    " it takes Linux 6.14 and fuse.enable_uring=1");
	fuse_uring_settle(s, agreed);
}

static void answer_init(struct fuse_worker *w)
{
	struct fuse_session *s = w->session;
	const struct fuse_in_header *in = w->req.in;
	struct fuse_init_want want = s->config.want;
	struct fuse_init_out out;
	struct fuse_conn conn;
	uint64_t one = 1;
	int err = -EPROTO;

	if (s->uring)
		want.flags |= FUSE_OVER_IO_URING;
	if (!atomic_load(&s->initialised))
		err = fuse_init_negotiate(&want, in + 1, in->len - sizeof(*in), &out, &conn);
	if (err) {
		fuse_reply_error(&w->req, err);
		log_error("the kernel's FUSE protocol is too old: 7.31 (Linux 5.4) is needed");
		fuse_pool_stop(s, err);
		return;
	}
	/* The kernel may send requests before the reply's system call has returned. */
	s->conn = conn;
	if (fuse_reply(&w->req, &out, sizeof(out)) < 0 || conn.minor == 0)
		return;
	log_debug("INIT: protocol 7.%u, flags 0x%llx", conn.minor, (unsigned long long)conn.flags);
	if (s->uring)
		settle_uring(s);
	atomic_store(&s->initialised, true);
	if (write(s->event, &one, sizeof(one)) < 0)
		log_debug("eventfd: %s", strerror(errno));
}

/* An INTERRUPT has no answer unless it came too early or too late: then the kernel may repeat it.
 */
static void interrupt(struct fuse_worker *w)
{
	const struct fuse_in_header *in = w->req.in;
	const struct fuse_interrupt_in *arg = (const void *)(in + 1);

	if (in->len < sizeof(*in) + sizeof(*arg))
		fuse_reply_error(&w->req, -EINVAL);
	else if (!fuse_pool_interrupt(w, arg->unique))
		fuse_reply_error(&w->req, -EAGAIN);
}

/* Requests of the connection itself, not of what is served. False when it is none of them. */
static bool run_own(struct fuse_worker *w, size_t size)
{
	const struct fuse_in_header *in = w->req.in;

	if (!in || in->len != size)
		return false;
	if (in->opcode == FUSE_INTERRUPT) {
		interrupt(w);
		return true;
	}
	if (in->opcode == FUSE_INIT) {
		answer_init(w);
		return true;
	}
	if (unlikely(!atomic_load_explicit(&w->session->initialised, memory_order_relaxed))) {
		fuse_reply_error(&w->req, -EIO);
		return true;
	}
	return false;
}

static bool blocks(struct fuse_session *s, const struct fuse_request *req)
{
	const struct fuse_op *op = req->op;
	uint8_t credit;

	if (op->class == FUSE_BLOCKING || (op->blocks && op->blocks(req)))
		return true;
	if (req->in->opcode >= FUSE_NOTED_OPS)
		return false;
	credit = atomic_load_explicit(&s->slow[req->in->opcode], memory_order_relaxed);
	if (likely(!credit))
		return false;
	atomic_store_explicit(&s->slow[req->in->opcode], credit - 1, memory_order_relaxed);
	return true;
}

/* Runs the request in @w. False when @w is the leader no more. */
static bool run(struct fuse_worker *w)
{
	struct fuse_session *s = w->session;
	struct fuse_request *req = &w->req;
	uint64_t step;

	if (req->op->class != FUSE_URGENT) {
		if (unlikely(fuse_pool_saturated(s))) {
			int err = fuse_pool_enqueue(w);

			if (err != -EAGAIN) {
				if (err)
					fuse_reply_error(req, err);
				return true;
			}
		}
		if (blocks(s, req) && fuse_pool_hand_over(w)) {
			fuse_request_run(req, s->config.ctx);
			return false;
		}
	}
	step = atomic_load_explicit(&s->sequence, memory_order_relaxed) + 1;
	atomic_store(&s->sequence, step);
	if (unlikely(!atomic_load(&s->watchdog_armed)))
		fuse_watchdog_arm(s);
	fuse_request_run(req, s->config.ctx);
	return atomic_compare_exchange_strong(&s->sequence, &step, step + 1);
}

/* What a failed read means: 0 to read on, 1 when the session is over. */
static int read_failed(struct fuse_session *s, int err, unsigned int *failures)
{
	switch (err) {
	case ENODEV: fuse_pool_stop(s, 0); return 1;
	case ECONNABORTED:
		/* Also what an unmount gives to whom it finds reading; then the next read says
		 * ENODEV. */
		if (++*failures < 2)
			return 0;
		fuse_pool_stop(s, -ECONNABORTED);
		return 1;
	case EINTR:  /* somebody wants us to look at stopping */
	case ENOENT: /* the caller went away before the request was read */
	case EAGAIN: return 0;
	default: break;
	}
	if (++*failures < MAX_READ_FAILURES) {
		usleep(1000);
		return 0;
	}
	log_error("cannot read requests from /dev/fuse: %s", strerror(err));
	fuse_pool_stop(s, -err);
	return 1;
}

void fuse_dev_lead(struct fuse_worker *w)
{
	struct fuse_session *s = w->session;
	uint8_t *message = w->message + MESSAGE_OFFSET;
	size_t room = s->message_size - MESSAGE_OFFSET;
	unsigned int failures = 0;

	while (!atomic_load_explicit(&s->stopping, memory_order_relaxed)) {
		ssize_t size = read(s->config.fd, message, room);
		int err;

		if (unlikely(size < 0)) {
			if (read_failed(s, errno, &failures))
				return;
			continue;
		}
		if (unlikely(size == 0)) { /* no /dev/fuse does that, but what does has ended */
			fuse_pool_stop(s, -ENOTCONN);
			return;
		}
		failures = 0;
		err = parse(w, message, (size_t)size);
		if (unlikely(run_own(w, (size_t)size)))
			continue;
		if (unlikely(err)) {
			refuse(w, err);
			continue;
		}
		if (!run(w))
			return;
	}
}
