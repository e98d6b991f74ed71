/* SPDX-License-Identifier: MIT */
/*
 * The io_uring transport: a queue for each possible CPU, which gets the requests made on it, so
 * that caller and server stay there. What is no request of somebody who waits (FORGET, INTERRUPT,
 * our notifications) goes over /dev/fuse as ever.
 *
 * The kernel copies a request into the buffers of an entry of the queue, and does so in the thread
 * that gave it the entry: while that thread is stuck in a handler, all of its entries are. So each
 * entry has a thread and a ring of its own, pinned to the CPU, and answers what it gets by itself,
 * slow or not. One system call a request gives the reply and takes the next one.
 *
 * The entry that was given last is taken first, so one client keeps one thread busy, and the others
 * are spares. A request that leaves few spares has another made; beyond some of them, only a queue
 * whose threads are all stuck gets more, from the watchdog. What waits in the kernel for an entry
 * is handed out when a reply is given, never with a new entry: a poke of ours makes for that.
 *
 * Locks: uring->lock guards the list of threads and the state; taken with no other lock held. A
 * request takes none.
 */
#include <errno.h>
#include <limits.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "fuse/ring.h"
#include "fuse/session_private.h"
#include "util/base.h"
#include "util/log.h"

/*
 * Spare threads that a queue in use keeps, and how many threads that may make of it: more only when
 * requests are known to wait, and more than that only when all are stuck.
 */
#define SPARES           2
#define SPARED_THREADS   4
#define BLOCKING_THREADS 12
/* How many more at once when all are stuck. */
#define STUCK_THREADS 4

/* Commands in a row that failed before the session gives up. */
#define MAX_FAILURES 100

/* A thread that got more than that in a request, and then none for so long, frees the memory. */
#define KEPT_PAYLOAD ((size_t)64 * 1024)
#define KEPT_MS      1000

/*
 * Room for names and values that a handler reads while it writes its reply, which goes where they
 * came in: a symlink's name and target, an ioctl's argument. WRITE and large xattrs are answered
 * with next to nothing and stay where they are.
 */
#define BODY_SIZE   ((size_t)20 * 1024)
#define HEADER_SIZE ((size_t)4096)

/* In a thread's running: somebody is about to set, or has set, its request's interrupted. */
#define CLAIMED 1ULL

/* INTERRUPTs that came before their requests had begun. */
#define EARLY 4

struct uring_queue {
	_Alignas(64) atomic_int idle; /* entries that wait for a request */
	atomic_uint served;           /* changes when a reply went out while none waited */
	atomic_uint threads;          /* written under the lock */
	struct fuse_uring *uring;
	_Atomic uint64_t file; /* the nodeid of some regular file, or 0 */
	unsigned int number;   /* the CPU's */
	unsigned int seen;     /* the watchdog's: served, when it looked last */
};

struct uring_thread {
	struct uring_queue *queue;
	struct uring_thread *next; /* lock */
	pthread_t thread;
	bool late; /* made when the others served already */
	bool done; /* lock */

	struct fuse_ring ring;
	struct fuse_uring_req_header *header;
	uint8_t *body;
	uint8_t *payload; /* session->reply_size bytes */
	bool large;       /* much of the payload was in use lately */
	uint64_t commit_id;
	struct fuse_in_header in;
	struct fuse_request req;
	/* The unique of the request that runs, or 0. With CLAIMED, which is set under the lock. */
	_Atomic uint64_t running;
};

struct fuse_uring {
	struct fuse_session *session;
	pthread_mutex_t lock;
	pthread_cond_t changed; /* with lock: state, preparing or alive */
	enum { URING_PREPARING, URING_SERVING, URING_ENDING } state; /* lock */
	unsigned int preparing;       /* threads that have not told whether they can; lock */
	unsigned int alive;           /* lock */
	int err;                      /* why one of them can't; lock */
	unsigned int most;            /* threads together; constant */
	struct uring_thread *threads; /* lock */
	atomic_bool refused;          /* by the kernel */
	_Atomic uint64_t early[EARLY];
	unsigned int next_early; /* lock */
	unsigned int queue_count;
	struct uring_queue queues[];
};

/* --- one request ---------------------------------------------------------------------------- */

/* The reply lies in the entry's buffers when the handler returns, and goes out with the command
 * that asks for the next request. Data that was read into req->reply is there already. */
static int uring_send(struct fuse_request *req, const struct iovec *iov, int count)
{
	struct uring_thread *t = req->transport;
	size_t size = 0;

	for (int i = 1; i < count; i++)
		size += iov[i].iov_len;
	if (size > t->queue->uring->session->reply_size)
		return -E2BIG;
	if (unlikely(size > KEPT_PAYLOAD))
		t->large = true;
	memcpy(t->header->in_out, iov[0].iov_base, iov[0].iov_len);
	t->header->ring_ent_in_out.payload_sz = (uint32_t)size;
	for (int i = count - 1; i > 0; i--) {
		size -= iov[i].iov_len;
		if (iov[i].iov_base != t->payload + size)
			memmove(t->payload + size, iov[i].iov_base, iov[i].iov_len);
	}
	return 0;
}

static int parse(struct uring_thread *t)
{
	struct fuse_session *s = t->queue->uring->session;
	const struct fuse_in_header *in = &t->in;
	size_t size = min((size_t)t->header->ring_ent_in_out.payload_sz, s->reply_size);
	const uint8_t *body = t->payload;
	size_t arg_size = 0;
	int err;

	if (in->len >= sizeof(*in) + size)
		arg_size = min(in->len - sizeof(*in) - size, sizeof(t->header->op_in));
	t->req.reply_size = s->reply_size;
	if (size > BODY_SIZE) {
		t->req.reply_size = 0;
		t->large |= size > KEPT_PAYLOAD;
	} else if (size) {
		body = memcpy(t->body, t->payload, size);
	}
	err = fuse_request_parse_parts(&t->req, s->config.ops, s->config.op_count, in,
				       t->header->op_in, arg_size, body, size);
	return err ? err : fuse_session_admit(s, &t->req);
}

static bool take_early_interrupt(struct fuse_uring *u, uint64_t unique)
{
	for (int i = 0; i < EARLY; i++)
		if (unlikely(atomic_load(&u->early[i]) == unique))
			return true;
	return false;
}

static void begin(struct uring_thread *t)
{
	struct fuse_uring *u = t->queue->uring;

	atomic_store(&t->running, t->in.unique);
	/* Whoever came before that and found nobody has left a note. */
	if (unlikely(take_early_interrupt(u, t->in.unique)))
		fuse_uring_interrupt(u->session, t->in.unique);
}

static void end(struct uring_thread *t)
{
	struct fuse_uring *u = t->queue->uring;

	if (likely(!(atomic_exchange(&t->running, 0) & CLAIMED)))
		return;
	pthread_mutex_lock(&u->lock); /* until it is set */
	pthread_mutex_unlock(&u->lock);
	atomic_store(&t->req.interrupted, false);
}

static void spawn(struct uring_queue *q, unsigned int most);

static bool blocks(const struct fuse_request *req)
{
	return req->op->class == FUSE_BLOCKING || (req->op->blocks && req->op->blocks(req));
}

/* The queue has few spares, or none. */
static void find_spare(struct uring_queue *q, bool blocking)
{
	unsigned int most = blocking ? BLOCKING_THREADS : SPARED_THREADS;

	if (atomic_load_explicit(&q->threads, memory_order_relaxed) < most)
		spawn(q, most);
	fuse_watchdog_arm(q->uring->session);
}

/* Remembers a file that the kernel has just been told of. */
static void note_file(const struct uring_thread *t)
{
	const struct fuse_entry_out *entry = (const void *)t->payload;
	const struct fuse_out_header *out = (const void *)t->header->in_out;

	if (out->len == sizeof(*out) + sizeof(*entry) && S_ISREG(entry->attr.mode))
		atomic_store_explicit(&t->queue->file, entry->nodeid, memory_order_relaxed);
}

static void run(struct uring_thread *t)
{
	struct uring_queue *q = t->queue;
	struct fuse_request *req = &t->req;
	bool scarce = atomic_fetch_sub(&q->idle, 1) <= SPARES;
	int err;

	memcpy(&t->in, t->header->in_out, sizeof(t->in));
	t->commit_id = t->header->ring_ent_in_out.commit_id;
	err = parse(t);
	if (unlikely(scarce))
		find_spare(q, !err && blocks(req));
	begin(t);
	if (unlikely(err)) {
		fuse_reply_error(req, err);
	} else {
		fuse_request_run(req, q->uring->session->config.ctx);
		if (unlikely(!req->replied)) /* it has none, but the entry is to be given back */
			fuse_reply_error(req, 0);
	}
	end(t);
	if (t->in.opcode == FUSE_LOOKUP)
		note_file(t);
	if (atomic_fetch_add(&q->idle, 1) <= 0)
		atomic_fetch_add_explicit(&q->served, 1, memory_order_relaxed);
}

/* --- a thread and its entry ----------------------------------------------------------------- */

static void give(struct uring_thread *t, uint32_t command, uint64_t commit_id)
{
	struct io_uring_sqe *sqe = t->ring.sqe;
	struct fuse_uring_cmd_req *cmd = (void *)sqe->cmd;

	sqe->cmd_op = command;
	cmd->commit_id = commit_id;
	fuse_ring_submit(&t->ring);
}

/* The buffers of a new entry. @iov lives until the kernel has taken the command. */
static void give_new(struct uring_thread *t, struct iovec iov[2])
{
	struct io_uring_sqe *sqe = t->ring.sqe;
	struct fuse_uring_cmd_req *cmd = (void *)sqe->cmd;
	struct fuse_session *s = t->queue->uring->session;

	iov[0] = (struct iovec){ t->header, sizeof(*t->header) };
	iov[1] = (struct iovec){ t->payload, s->reply_size };
	memset(sqe, 0, FUSE_RING_SQE_SIZE);
	sqe->opcode = IORING_OP_URING_CMD;
	sqe->fd = s->config.fd;
	sqe->addr = (uintptr_t)iov;
	sqe->len = 2;
	cmd->qid = (uint16_t)t->queue->number;
	give(t, FUSE_IO_URING_CMD_REGISTER, 0);
}

/* Whether to try again with a new entry: @err is what became of the last command. */
static bool command_failed(struct uring_thread *t, int err, unsigned int failures, bool served)
{
	struct fuse_uring *u = t->queue->uring;

	/* The connection is gone. Whoever reads /dev/fuse hears why. */
	if (err == -ENOTCONN || err == -ECONNABORTED || err == -ECANCELED || err == -ENODEV)
		return false;
	if (!served) {
		/* From the first ones the kernel concludes to do without a ring. */
		if (!t->late && !atomic_exchange(&u->refused, true))
			log_warning("the kernel refuses queue %u: requests come over /dev/fuse: %s",
				    t->queue->number, strerror(-err));
		return false;
	}
	if (failures < MAX_FAILURES) {
		usleep(1000);
		return true;
	}
	log_error("cannot take requests from queue %u: %s", t->queue->number, strerror(-err));
	fuse_pool_stop(u->session, err);
	return false;
}

/* What the kernel has not got, it writes in this thread only: nothing is lost. */
static void free_payload(struct uring_thread *t)
{
	madvise(t->payload, t->queue->uring->session->reply_size, MADV_DONTNEED);
	t->large = false;
}

/* Any regular file will do, of whatever queue. */
static void poke(struct fuse_uring *u)
{
	for (unsigned int i = 0; i < u->queue_count; i++) {
		uint64_t file = atomic_load_explicit(&u->queues[i].file, memory_order_relaxed);

		if (file && fuse_notify_poke(u->session, file))
			return;
	}
}

/*
 * A poke was answered. If that brought a request which had waited, there may be more of them, and
 * other entries free.
 */
static void poke_on(struct uring_thread *t)
{
	if (fuse_ring_flush(&t->ring) == 0 && fuse_ring_is_done(&t->ring))
		poke(t->queue->uring);
}

/* Until the session or the connection ends. Its first command gives the kernel a new entry. */
static void serve(struct uring_thread *t)
{
	struct fuse_session *s = t->queue->uring->session;
	unsigned int failures = 0;
	bool served = false;
	struct iovec iov[2];
	int32_t result;

	give_new(t, iov);
	/*
	 * Requests that wait in the queue already are handed out only after another one: of the
	 * next caller on this CPU, or this one of ours.
	 */
	if (t->late && fuse_ring_flush(&t->ring) == 0)
		poke(t->queue->uring);
	while (!atomic_load_explicit(&s->stopping, memory_order_relaxed)) {
		int err = fuse_ring_wait(&t->ring, t->large ? KEPT_MS : 0, &result);

		if (likely(!err && result == 0)) {
			failures = 0;
			served = true;
			run(t);
			give(t, FUSE_IO_URING_CMD_COMMIT_AND_FETCH, t->commit_id);
			if (unlikely(t->in.opcode == FUSE_NOTIFY_REPLY))
				poke_on(t);
		} else if (err == -ETIME) {
			free_payload(t);
		} else if (err != -EINTR) {
			if (!command_failed(t, err ? err : result, ++failures, served))
				return;
			if (!err)
				give_new(t, iov);
		}
	}
	fuse_ring_flush(&t->ring); /* the last reply */
}

/* A CPU that is offline or not for us can't be had: then the thread runs anywhere. */
static void pin(unsigned int cpu)
{
	cpu_set_t *set = CPU_ALLOC(cpu + 1);
	size_t size = CPU_ALLOC_SIZE(cpu + 1);

	if (!set)
		return;
	CPU_ZERO_S(size, set);
	CPU_SET_S(cpu, size, set);
	if (sched_setaffinity(0, size, set) < 0)
		log_debug("no thread on CPU %u: %s", cpu, strerror(errno));
	CPU_FREE(set);
}

/* Tells whether this one can, and waits for the word. True: serve. */
static bool await_start(struct uring_thread *t, int err)
{
	struct fuse_uring *u = t->queue->uring;
	bool go;

	pthread_mutex_lock(&u->lock);
	if (!t->late) {
		if (err)
			u->err = err;
		u->preparing--;
		pthread_cond_broadcast(&u->changed);
	}
	while (u->state == URING_PREPARING)
		pthread_cond_wait(&u->changed, &u->lock);
	go = !err && u->state == URING_SERVING;
	pthread_mutex_unlock(&u->lock);
	return go;
}

static void leave(struct uring_thread *t)
{
	struct fuse_uring *u = t->queue->uring;

	pthread_mutex_lock(&u->lock);
	t->done = true;
	atomic_fetch_sub(&t->queue->threads, 1);
	u->alive--;
	pthread_cond_broadcast(&u->changed);
	pthread_mutex_unlock(&u->lock);
}

static void *thread_main(void *arg)
{
	struct uring_thread *t = arg;
	int err;

	pin(t->queue->number);
	err = fuse_ring_open(&t->ring);
	if (await_start(t, err)) {
		atomic_fetch_add(&t->queue->idle, 1);
		serve(t);
		atomic_fetch_sub(&t->queue->idle, 1);
	}
	if (!err)
		fuse_ring_close(&t->ring);
	leave(t);
	return NULL;
}

static size_t memory_size(const struct fuse_session *s)
{
	return HEADER_SIZE + BODY_SIZE + s->reply_size;
}

static void thread_free(struct uring_thread *t)
{
	munmap(t->header, memory_size(t->queue->uring->session));
	free(t);
}

static struct uring_thread *thread_new(struct uring_queue *q)
{
	struct fuse_session *s = q->uring->session;
	struct uring_thread *t = calloc(1, sizeof(*t));
	void *memory;

	if (!t)
		return NULL;
	/* Untouched pages cost nothing. */
	memory = mmap(NULL, memory_size(s), PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (memory == MAP_FAILED) {
		free(t);
		return NULL;
	}
	t->queue = q;
	t->header = memory;
	t->body = (uint8_t *)memory + HEADER_SIZE;
	t->payload = t->body + BODY_SIZE;
	fuse_dev_prepare(s, &t->req);
	t->req.send = uring_send;
	t->req.transport = t;
	t->req.reply = t->payload;
	t->req.reply_size = s->reply_size;
	return t;
}

/* What has ended is joined by who makes new ones, and at the end. Called with the lock held. */
static void reap(struct fuse_uring *u)
{
	struct uring_thread **p = &u->threads;

	while (*p) {
		struct uring_thread *t = *p;

		if (!t->done) {
			p = &t->next;
			continue;
		}
		*p = t->next;
		pthread_join(t->thread, NULL);
		thread_free(t);
	}
}

static int start_thread(struct uring_thread *t)
{
	pthread_attr_t attr;
	int err;

	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, FUSE_THREAD_STACK);
	err = pthread_create(&t->thread, &attr, thread_main, t);
	pthread_attr_destroy(&attr);
	return -err;
}

/* One more thread for @q, which has less than @most. Called with the lock held. */
static int add_thread(struct uring_queue *q, unsigned int most)
{
	struct fuse_uring *u = q->uring;
	struct uring_thread *t;
	int err;

	reap(u);
	if (atomic_load(&q->threads) >= most || u->alive >= u->most)
		return -EAGAIN;
	t = thread_new(q);
	if (!t)
		return -ENOMEM;
	t->late = u->state == URING_SERVING;
	err = start_thread(t);
	if (err) {
		thread_free(t);
		return err;
	}
	t->next = u->threads;
	u->threads = t;
	u->alive++;
	u->preparing += !t->late;
	atomic_fetch_add(&q->threads, 1);
	return 0;
}

static void spawn(struct uring_queue *q, unsigned int most)
{
	struct fuse_uring *u = q->uring;

	pthread_mutex_lock(&u->lock);
	if (u->state == URING_SERVING)
		add_thread(q, most);
	pthread_mutex_unlock(&u->lock);
}

/* --- all of them ---------------------------------------------------------------------------- */

/* How many queues the kernel wants: as many as CPUs could ever be there. */
static int count_cpus(void)
{
	autofile FILE *f = fopen("/sys/devices/system/cpu/possible", "re");
	unsigned int first, last, count = 0;
	char line[256];

	/* "0-3" or "0,2-3" */
	if (!f || !fgets(line, sizeof(line), f))
		return -ENOENT;
	for (char *save = NULL, *p = strtok_r(line, ",\n", &save); p;
	     p = strtok_r(NULL, ",\n", &save))
		switch (sscanf(p, "%u-%u", &first, &last)) {
		case 2: count += last - first + 1; break;
		case 1: count++; break;
		default: return -EINVAL;
		}
	return count > 0 && count <= UINT16_MAX ? (int)count : -EINVAL;
}

static struct fuse_uring *uring_new(struct fuse_session *s, unsigned int count)
{
	size_t size = sizeof(struct fuse_uring) + count * sizeof(struct uring_queue);
	struct fuse_uring *u = aligned_alloc(64, (size + 63) & ~(size_t)63);

	if (!u)
		return NULL;
	memset(u, 0, size);
	u->session = s;
	u->queue_count = count;
	u->most = max(count * SPARED_THREADS, s->config.max_threads);
	pthread_mutex_init(&u->lock, NULL);
	fuse_init_cond(&u->changed);
	for (unsigned int i = 0; i < count; i++) {
		u->queues[i].uring = u;
		u->queues[i].number = i;
	}
	return u;
}

int fuse_uring_prepare(struct fuse_session *s)
{
	int count = count_cpus(), err = 0;
	struct fuse_uring *u;

	if (count < 0)
		return count;
	u = uring_new(s, (unsigned int)count);
	if (!u)
		return -ENOMEM;
	s->uring = u;
	pthread_mutex_lock(&u->lock);
	for (unsigned int i = 0; i < u->queue_count && !err; i++)
		err = add_thread(&u->queues[i], 1);
	while (u->preparing)
		pthread_cond_wait(&u->changed, &u->lock);
	if (!err)
		err = u->err;
	pthread_mutex_unlock(&u->lock);
	if (!err)
		return 0;
	fuse_uring_settle(s, false);
	fuse_uring_join(s);
	fuse_uring_free(s);
	return err;
}

void fuse_uring_settle(struct fuse_session *s, bool agreed)
{
	struct fuse_uring *u = s->uring;

	pthread_mutex_lock(&u->lock);
	if (u->state == URING_PREPARING)
		u->state = agreed ? URING_SERVING : URING_ENDING;
	pthread_cond_broadcast(&u->changed);
	pthread_mutex_unlock(&u->lock);
}

bool fuse_uring_serves(struct fuse_session *s)
{
	struct fuse_uring *u = s->uring;
	bool serves;

	if (!u)
		return false;
	pthread_mutex_lock(&u->lock);
	serves = u->state == URING_SERVING && !atomic_load(&u->refused);
	pthread_mutex_unlock(&u->lock);
	return serves;
}

/* False when @t does not run @unique. Called with the lock held. */
static bool claim(struct uring_thread *t, uint64_t unique)
{
	uint64_t seen = unique;

	if (!unique || t->done)
		return false;
	if (!atomic_compare_exchange_strong(&t->running, &seen, unique | CLAIMED))
		return seen == (unique | CLAIMED);
	/* It can't begin another request before it has had the lock. */
	atomic_store(&t->req.interrupted, true);
	return true;
}

static bool find_running(struct fuse_uring *u, uint64_t unique)
{
	for (struct uring_thread *t = u->threads; t; t = t->next)
		if (claim(t, unique))
			return true;
	return false;
}

bool fuse_uring_interrupt(struct fuse_session *s, uint64_t unique)
{
	struct fuse_uring *u = s->uring;
	bool found;

	if (!u)
		return false;
	pthread_mutex_lock(&u->lock);
	found = find_running(u, unique);
	if (!found) {
		/* Too late, as a rule. If it is about to begin, one of the two sees the other. */
		atomic_store(&u->early[u->next_early++ % EARLY], unique);
		found = find_running(u, unique);
	}
	pthread_mutex_unlock(&u->lock);
	return found;
}

bool fuse_uring_look(struct fuse_session *s)
{
	struct fuse_uring *u = s->uring;
	bool exhausted = false;

	for (unsigned int i = 0; u && i < u->queue_count; i++) {
		struct uring_queue *q = &u->queues[i];
		unsigned int served = atomic_load_explicit(&q->served, memory_order_relaxed);

		if (atomic_load(&q->idle) > 0 || atomic_load(&q->threads) == 0) {
			q->seen = served - 1;
			continue;
		}
		exhausted = true;
		for (int n = 0; served == q->seen && n < STUCK_THREADS; n++)
			spawn(q, UINT_MAX);
		q->seen = served;
	}
	return exhausted;
}

void fuse_uring_stop(struct fuse_session *s)
{
	struct fuse_uring *u = s->uring;

	if (!u)
		return;
	pthread_mutex_lock(&u->lock);
	u->state = URING_ENDING;
	for (struct uring_thread *t = u->threads; t; t = t->next)
		claim(t, atomic_load(&t->running) & ~CLAIMED);
	pthread_cond_broadcast(&u->changed);
	pthread_mutex_unlock(&u->lock);
}

/* Those that wait for a request of a connection that still lives. */
static void kick(struct fuse_uring *u)
{
	for (struct uring_thread *t = u->threads; t; t = t->next)
		if (!t->done && !atomic_load(&t->running))
			pthread_kill(t->thread, FUSE_KICK_SIGNAL);
}

void fuse_uring_join(struct fuse_session *s)
{
	struct fuse_uring *u = s->uring;
	struct timespec until;

	if (!u)
		return;
	pthread_mutex_lock(&u->lock);
	while (u->alive) {
		/* It can be early by a moment, so it is repeated. */
		kick(u);
		clock_gettime(CLOCK_MONOTONIC, &until);
		until.tv_nsec += 5000000;
		until.tv_sec += until.tv_nsec / 1000000000;
		until.tv_nsec %= 1000000000;
		pthread_cond_timedwait(&u->changed, &u->lock, &until);
	}
	reap(u);
	pthread_mutex_unlock(&u->lock);
}

void fuse_uring_free(struct fuse_session *s)
{
	struct fuse_uring *u = s->uring;

	if (!u)
		return;
	pthread_mutex_destroy(&u->lock);
	pthread_cond_destroy(&u->changed);
	free(u);
	s->uring = NULL;
}
