/* SPDX-License-Identifier: MIT */
/*
 * The threads of a session and their roles. See session.h for the picture.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "fuse/session_private.h"
#include "util/base.h"
#include "util/log.h"

static void free_buffers(const struct fuse_session *s, uint8_t *message, uint8_t *reply)
{
	if (message)
		munmap(message, s->message_size);
	if (reply)
		munmap(reply, s->reply_size);
}

static void worker_free(struct fuse_worker *w)
{
	free_buffers(w->session, w->message, w->reply);
	pthread_cond_destroy(&w->wake);
	free(w);
}

/* Untouched pages of a buffer cost nothing. */
static uint8_t *map_buffer(size_t size)
{
	void *p = mmap(NULL, size, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return p == MAP_FAILED ? NULL : p;
}

void fuse_init_cond(pthread_cond_t *cond)
{
	pthread_condattr_t attr;

	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(cond, &attr);
	pthread_condattr_destroy(&attr);
}

static struct fuse_worker *worker_new(struct fuse_session *s)
{
	struct fuse_worker *w = calloc(1, sizeof(*w));

	if (!w)
		return NULL;
	w->session = s;
	fuse_init_cond(&w->wake);
	w->message = map_buffer(s->message_size);
	w->reply = map_buffer(s->reply_size);
	if (!w->message || !w->reply) {
		worker_free(w);
		return NULL;
	}
	fuse_dev_prepare(s, &w->req);
	w->req.reply = w->reply;
	w->req.reply_size = s->reply_size;
	return w;
}

static void leave_idle_stack(struct fuse_session *s, struct fuse_worker *w)
{
	struct fuse_worker **p = &s->idle;

	while (*p != w)
		p = &(*p)->next_idle;
	*p = w->next_idle;
	w->resting = false;
	s->idle_count--;
}

/*
 * Waits until there is a role for @w, or until the session stops. False when it waited in vain and
 * there are enough others. Called with the lock held.
 */
static bool rest(struct fuse_session *s, struct fuse_worker *w)
{
	struct timespec until;
	bool timed = true;

	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_sec += FUSE_IDLE_SECONDS;
	w->next_idle = s->idle;
	s->idle = w;
	s->idle_count++;
	w->resting = true;
	while (w->resting && !atomic_load(&s->stopping)) {
		if (!timed) {
			pthread_cond_wait(&w->wake, &s->lock);
			continue;
		}
		if (pthread_cond_timedwait(&w->wake, &s->lock, &until) != ETIMEDOUT || !w->resting)
			continue;
		if (s->idle_count > FUSE_KEPT_THREADS) {
			leave_idle_stack(s, w);
			return false;
		}
		/* It stays, without the memory that large requests have touched. */
		madvise(w->message, s->message_size, MADV_DONTNEED);
		madvise(w->reply, s->reply_size, MADV_DONTNEED);
		timed = false;
	}
	if (w->resting)
		leave_idle_stack(s, w);
	return true;
}

static struct fuse_queued *dequeue(struct fuse_session *s)
{
	struct fuse_queued *queued = s->queue;

	if (!queued)
		return NULL;
	s->queue = queued->next;
	if (!s->queue)
		s->queue_tail = &s->queue;
	s->queue_bytes -= queued->size;
	s->queue_length--;
	pthread_cond_signal(&s->queue_room);
	return queued;
}

static void detach(struct fuse_session *s, struct fuse_worker *w, uint64_t unique)
{
	w->detached = true;
	w->unique = unique;
	atomic_fetch_add(&s->busy, 1);
}

static void attach(struct fuse_session *s, struct fuse_worker *w)
{
	w->detached = false;
	atomic_store(&w->req.interrupted, false); /* for the next request */
	atomic_fetch_sub(&s->busy, 1);
	if (s->queue_length)
		pthread_cond_signal(&s->queue_room);
}

static void end_worker(struct fuse_session *s, struct fuse_worker *w)
{
	struct fuse_worker **p = &s->workers;

	while (*p != w)
		p = &(*p)->next;
	*p = w->next;
	w->next_dead = s->dead;
	s->dead = w;
	if (--s->thread_count == 0)
		pthread_cond_broadcast(&s->all_gone);
}

static void join_dead(struct fuse_worker *dead)
{
	while (dead) {
		struct fuse_worker *w = dead;

		dead = w->next_dead;
		pthread_join(w->thread, NULL);
		worker_free(w);
	}
}

/*
 * The last that @w does. It takes along its buffers and the threads that ended before, since nobody
 * may come for a long time who does. Called with the lock held, which it releases.
 */
static void leave(struct fuse_session *s, struct fuse_worker *w)
{
	struct fuse_worker *dead = take_ptr(s->dead);
	uint8_t *message = take_ptr(w->message), *reply = take_ptr(w->reply);

	if (s->leader == w)
		s->leader = NULL;
	end_worker(s, w);
	pthread_mutex_unlock(&s->lock);
	/* From here on @w belongs to whoever joins it. The session outlives that. */
	free_buffers(s, message, reply);
	join_dead(dead);
}

static void *worker_main(void *arg)
{
	struct fuse_worker *w = arg;
	struct fuse_session *s = w->session;

	pthread_mutex_lock(&s->lock);
	while (!atomic_load(&s->stopping)) {
		struct fuse_queued *queued = s->leader == w ? NULL : dequeue(s);

		if (queued) {
			detach(s, w, ((struct fuse_in_header *)queued->message)->unique);
			pthread_mutex_unlock(&s->lock);
			fuse_dev_run_queued(w, queued);
			free(queued);
			pthread_mutex_lock(&s->lock);
			attach(s, w);
			continue;
		}
		if (!s->leader)
			s->leader = w;
		if (s->leader == w) {
			pthread_mutex_unlock(&s->lock);
			fuse_dev_lead(w);
			pthread_mutex_lock(&s->lock);
			if (w->detached)
				attach(s, w);
			continue;
		}
		if (!rest(s, w))
			break;
	}
	leave(s, w);
	return NULL;
}

/* A new worker, which is the leader from the beginning. Called with the lock held. */
static bool spawn_leader(struct fuse_session *s)
{
	struct fuse_worker *w;
	pthread_attr_t attr;
	int err;

	/* They have left the lock for good and only free memory: this hardly waits. */
	join_dead(take_ptr(s->dead));
	if (s->thread_count >= s->config.max_threads)
		return false;
	w = worker_new(s);
	if (!w)
		return false;
	w->next = s->workers;
	s->workers = w;
	s->thread_count++;
	s->leader = w;
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, FUSE_THREAD_STACK);
	err = pthread_create(&w->thread, &attr, worker_main, w);
	pthread_attr_destroy(&attr);
	if (err) {
		s->workers = w->next;
		s->thread_count--;
		s->leader = NULL;
		worker_free(w);
		return false;
	}
	return true;
}

/* Gives the role of the leader to somebody other than who has it. Called with the lock held. */
static bool promote(struct fuse_session *s)
{
	struct fuse_worker *old = s->leader, *w = s->idle;

	if (w) {
		leave_idle_stack(s, w);
		s->leader = w;
		pthread_cond_signal(&w->wake);
		return true;
	}
	if (spawn_leader(s))
		return true;
	s->leader = old;
	return false;
}

int fuse_pool_start(struct fuse_session *s)
{
	bool ok;

	pthread_mutex_lock(&s->lock);
	ok = spawn_leader(s);
	pthread_mutex_unlock(&s->lock);
	return ok ? 0 : -EAGAIN;
}

bool fuse_pool_saturated(struct fuse_session *s)
{
	return atomic_load_explicit(&s->busy, memory_order_relaxed) + 1 >= s->config.max_threads;
}

bool fuse_pool_hand_over(struct fuse_worker *w)
{
	struct fuse_session *s = w->session;
	bool ok;

	pthread_mutex_lock(&s->lock);
	ok = !fuse_pool_saturated(s) && promote(s);
	if (ok)
		detach(s, w, w->req.in->unique);
	pthread_mutex_unlock(&s->lock);
	return ok;
}

bool fuse_pool_relieve(struct fuse_session *s, uint64_t sequence)
{
	struct fuse_worker *w;
	bool ok = false;

	pthread_mutex_lock(&s->lock);
	w = s->leader;
	if (w && !fuse_pool_saturated(s) && !atomic_load(&s->stopping)) {
		/*
		 * The step comes first: after it the old leader can't go on reading, whatever it
		 * does meanwhile; it waits for the lock.
		 */
		ok = atomic_compare_exchange_strong(&s->sequence, &sequence, sequence + 1);
		if (ok) {
			detach(s, w, w->req.in->unique);
			if (w->req.in->opcode < FUSE_NOTED_OPS)
				atomic_store(&s->slow[w->req.in->opcode], FUSE_SLOW_CREDIT);
			if (!promote(s))
				s->leader = NULL; /* whoever finishes first reads on */
		}
	}
	pthread_mutex_unlock(&s->lock);
	return ok;
}

int fuse_pool_enqueue(struct fuse_worker *w)
{
	struct fuse_session *s = w->session;
	size_t size = w->req.in->len;
	struct fuse_queued *queued = malloc(sizeof(*queued) + size);
	int err = 0;

	if (!queued)
		return -ENOMEM;
	queued->next = NULL;
	queued->size = size;
	memcpy(queued->message, w->req.in, size);
	pthread_mutex_lock(&s->lock);
	while (fuse_pool_saturated(s) && !atomic_load(&s->stopping) && s->queue_length &&
	       (s->queue_length >= FUSE_QUEUE_MAX_LENGTH ||
		s->queue_bytes + size > FUSE_QUEUE_MAX_BYTES))
		pthread_cond_wait(&s->queue_room, &s->lock);
	if (!fuse_pool_saturated(s) || atomic_load(&s->stopping)) {
		err = -EAGAIN;
	} else {
		*s->queue_tail = queued;
		s->queue_tail = &queued->next;
		s->queue_bytes += size;
		s->queue_length++;
	}
	pthread_mutex_unlock(&s->lock);
	if (err)
		free(queued);
	return err;
}

static struct fuse_queued *take_queued(struct fuse_session *s, uint64_t unique)
{
	for (struct fuse_queued **p = &s->queue; *p; p = &(*p)->next) {
		struct fuse_queued *queued = *p;

		if (((struct fuse_in_header *)queued->message)->unique != unique)
			continue;
		*p = queued->next;
		if (!*p)
			s->queue_tail = p;
		s->queue_bytes -= queued->size;
		s->queue_length--;
		return queued;
	}
	return NULL;
}

bool fuse_pool_interrupt(struct fuse_worker *reader, uint64_t unique)
{
	struct fuse_session *s = reader->session;
	struct fuse_queued *queued;
	bool found = false;

	pthread_mutex_lock(&s->lock);
	for (struct fuse_worker *w = s->workers; w && !found; w = w->next) {
		if (w->detached && w->unique == unique) {
			atomic_store(&w->req.interrupted, true);
			found = true;
		}
	}
	queued = found ? NULL : take_queued(s, unique);
	pthread_mutex_unlock(&s->lock);
	if (queued) {
		struct fuse_request req;

		/* It never began: the caller can have its EINTR at once. */
		fuse_dev_prepare(s, &req);
		fuse_request_parse(&req, s->config.ops, s->config.op_count, queued->message,
				   queued->size);
		fuse_reply_error(&req, -EINTR);
		free(queued);
		found = true;
	}
	return found || fuse_uring_interrupt(s, unique);
}

void fuse_pool_stop(struct fuse_session *s, int result)
{
	uint64_t one = 1;

	pthread_mutex_lock(&s->lock);
	if (!atomic_load(&s->stopping)) {
		s->result = result;
		atomic_store(&s->stopping, true);
	}
	for (struct fuse_worker *w = s->workers; w; w = w->next) {
		/* Nobody waits for these any more. */
		if (w->detached)
			atomic_store(&w->req.interrupted, true);
		pthread_cond_signal(&w->wake);
	}
	pthread_cond_signal(&s->queue_room);
	pthread_mutex_unlock(&s->lock);
	fuse_uring_stop(s);
	if (write(s->event, &one, sizeof(one)) < 0)
		log_debug("eventfd: %s", strerror(errno));
}

void fuse_pool_join(struct fuse_session *s)
{
	struct fuse_worker *dead;

	pthread_mutex_lock(&s->lock);
	while (s->thread_count)
		pthread_cond_wait(&s->all_gone, &s->lock);
	dead = take_ptr(s->dead);
	while (s->queue)
		free(dequeue(s));
	pthread_mutex_unlock(&s->lock);
	join_dead(dead);
}
