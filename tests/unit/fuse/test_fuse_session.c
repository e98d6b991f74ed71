/* SPDX-License-Identifier: MIT */
/*
 * The threads of a session, with a socket in the place of /dev/fuse: the test is the kernel. Each
 * message is one packet, as on the device.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "fuse/session.h"
#include "util/base.h"

#define THREADS    4
#define MANY       512 /* the default */
#define TIMEOUT_MS 10000
#define LOOK_NS    10000000 /* how often a waiting handler looks whether it is interrupted */

enum test_op { OP_QUICK = 1, OP_FORGET = 2, OP_STUCK = 3, OP_BLOCKING = 4 };

struct state {
	int kernel; /* the other end */
	int fd;
	struct fuse_session *session;
	pthread_t thread;
	int result;
	bool signalled; /* the session is to find a signal that came before it */
	atomic_bool unmounted;
	sem_t begun; /* a waiting handler began */
	sem_t go;    /* lets one of them go on */
	sem_t forgotten;
	sem_t ready;
};

static void quick(void *ctx, struct fuse_request *req)
{
	fuse_reply_error(req, 0);
}

static void forget(void *ctx, struct fuse_request *req)
{
	struct state *s = ctx;

	sem_post(&s->forgotten);
}

/* Waits for the test, or for a signal of its caller. */
static void waiting(void *ctx, struct fuse_request *req)
{
	struct state *s = ctx;
	struct timespec until;
	int err;

	sem_post(&s->begun);
	clock_gettime(CLOCK_REALTIME, &until);
	do {
		err = atomic_load(&req->interrupted) ? -EINTR : 0;
		until.tv_nsec += LOOK_NS;
		until.tv_sec += until.tv_nsec / 1000000000;
		until.tv_nsec %= 1000000000;
	} while (!err && sem_timedwait(&s->go, &until) < 0);
	fuse_reply_error(req, err);
}

static const struct fuse_op ops[] = {
	[OP_QUICK] = { .name = "QUICK", .handle = quick },
	[OP_FORGET] = { .name = "FORGET",
			.no_reply = true,
			.class = FUSE_URGENT,
			.handle = forget },
	[OP_STUCK] = { .name = "STUCK", .handle = waiting },
	[OP_BLOCKING] = { .name = "BLOCKING", .class = FUSE_BLOCKING, .handle = waiting },
	[FUSE_INIT] = { .name = "INIT" },
	[FUSE_INTERRUPT] = { .name = "INTERRUPT" },
};

static void on_ready(void *ctx)
{
	struct state *s = ctx;

	sem_post(&s->ready);
}

static void *run_session(void *arg)
{
	struct state *s = arg;
	sigset_t old;

	if (s->signalled) {
		fuse_session_block_signals(&old);
		pthread_kill(pthread_self(), SIGTERM);
	}
	s->result = fuse_session_run(s->session, on_ready, s);
	return NULL;
}

static void ask(struct state *s, uint32_t opcode, uint64_t unique, const void *arg, size_t size)
{
	struct fuse_in_header in = { .len = (uint32_t)(sizeof(in) + size),
				     .opcode = opcode,
				     .unique = unique };
	struct iovec iov[2] = { { &in, sizeof(in) }, { (void *)arg, size } };

	assert_int_equal(writev(s->kernel, iov, size ? 2 : 1), in.len);
}

/* The next reply; its unique is returned, its error stored. */
static uint64_t answer(struct state *s, int *error)
{
	struct pollfd fd = { .fd = s->kernel, .events = POLLIN };
	uint8_t buf[4096];
	struct fuse_out_header *out = (void *)buf;

	assert_int_equal(poll(&fd, 1, TIMEOUT_MS), 1);
	assert_true(read(s->kernel, buf, sizeof(buf)) >= (ssize_t)sizeof(*out));
	*error = out->error;
	return out->unique;
}

static void assert_answer(struct state *s, uint64_t unique, int error)
{
	int got;

	assert_int_equal(answer(s, &got), unique);
	assert_int_equal(got, error);
}

static void assert_silent(struct state *s)
{
	struct pollfd fd = { .fd = s->kernel, .events = POLLIN };

	assert_int_equal(poll(&fd, 1, 20), 0);
}

static void wait_for(sem_t *sem)
{
	struct timespec until;

	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += TIMEOUT_MS / 1000;
	assert_int_equal(sem_timedwait(sem, &until), 0);
}

/* As the kernel does, the other end hangs up. */
static void unmount(void *ctx)
{
	struct state *s = ctx;

	atomic_store(&s->unmounted, true);
	shutdown(s->kernel, SHUT_RDWR);
}

static int start(void **state, unsigned int threads, bool signalled)
{
	struct state *s = calloc(1, sizeof(*s));
	struct fuse_init_in init = { .major = 7, .minor = 45 };
	struct fuse_session_config config = {
		.ops = ops,
		.op_count = ARRAY_SIZE(ops),
		.ctx = s,
		.want = { .max_write = 65536, .max_readahead = 65536 },
		.max_threads = threads,
		.unmount = unmount,
	};
	int fds[2];

	if (!s || socketpair(AF_UNIX, SOCK_SEQPACKET, 0, fds) < 0)
		return -1;
	s->signalled = signalled;
	s->kernel = fds[0];
	s->fd = config.fd = fds[1];
	sem_init(&s->begun, 0, 0);
	sem_init(&s->go, 0, 0);
	sem_init(&s->forgotten, 0, 0);
	sem_init(&s->ready, 0, 0);
	if (fuse_session_create(&config, &s->session) < 0)
		return -1;
	if (pthread_create(&s->thread, NULL, run_session, s))
		return -1;
	*state = s;
	if (signalled)
		return 0;
	ask(s, FUSE_INIT, 1, &init, sizeof(init));
	assert_answer(s, 1, 0);
	wait_for(&s->ready);
	return 0;
}

static int setup(void **state)
{
	return start(state, THREADS, false);
}

static int setup_default(void **state)
{
	return start(state, 0, false);
}

static int setup_signalled(void **state)
{
	return start(state, THREADS, true);
}

static int teardown(void **state)
{
	struct state *s = *state;

	close(s->kernel);
	pthread_join(s->thread, NULL);
	assert_int_equal(s->result, -ENOTCONN);
	fuse_session_free(s->session);
	close(s->fd);
	free(s);
	return 0;
}

static void test_blocking_request_does_not_delay_others(void **state)
{
	struct state *s = *state;

	ask(s, OP_BLOCKING, 10, NULL, 0);
	wait_for(&s->begun);
	ask(s, OP_QUICK, 12, NULL, 0);
	assert_answer(s, 12, 0);
	sem_post(&s->go);
	assert_answer(s, 10, 0);
}

static void test_leader_that_is_stuck_is_relieved(void **state)
{
	struct state *s = *state;

	ask(s, OP_STUCK, 10, NULL, 0);
	wait_for(&s->begun);
	ask(s, OP_QUICK, 12, NULL, 0);
	assert_answer(s, 12, 0);
	sem_post(&s->go);
	assert_answer(s, 10, 0);
	/* The relieved thread serves on. */
	for (uint64_t i = 0; i < 100; i++) {
		ask(s, OP_QUICK, 20 + i, NULL, 0);
		assert_answer(s, 20 + i, 0);
	}
}

static void test_watchdog_wakes_up_after_a_quiet_time(void **state)
{
	struct state *s = *state;

	for (uint64_t i = 0; i < 3; i++) {
		assert_silent(s);
		assert_silent(s);
		ask(s, OP_STUCK, 10 + i, NULL, 0);
		wait_for(&s->begun);
		ask(s, OP_QUICK, 20 + i, NULL, 0);
		assert_answer(s, 20 + i, 0);
		sem_post(&s->go);
		assert_answer(s, 10 + i, 0);
	}
}

static void interrupt(struct state *s, uint64_t unique)
{
	struct fuse_interrupt_in arg = { .unique = unique };

	ask(s, FUSE_INTERRUPT, unique | 1, &arg, sizeof(arg));
}

static void test_interrupt_reaches_the_running_request_only(void **state)
{
	struct state *s = *state;

	ask(s, OP_BLOCKING, 10, NULL, 0);
	ask(s, OP_STUCK, 12, NULL, 0);
	wait_for(&s->begun);
	wait_for(&s->begun);
	interrupt(s, 12);
	assert_answer(s, 12, -EINTR);
	assert_silent(s);
	interrupt(s, 10);
	assert_answer(s, 10, -EINTR);
	/* The same thread's next request is not interrupted. */
	ask(s, OP_BLOCKING, 14, NULL, 0);
	wait_for(&s->begun);
	assert_silent(s);
	sem_post(&s->go);
	assert_answer(s, 14, 0);
}

static void test_interrupt_of_the_unknown_is_eagain(void **state)
{
	struct state *s = *state;

	interrupt(s, 4242);
	assert_answer(s, 4243, -EAGAIN);
}

/* All threads but the one that reads. */
static void occupy(struct state *s)
{
	for (uint64_t i = 0; i < THREADS - 1; i++)
		ask(s, OP_BLOCKING, 100 + i, NULL, 0);
	for (uint64_t i = 0; i < THREADS - 1; i++)
		wait_for(&s->begun);
}

static void let_go(struct state *s, unsigned int count)
{
	int error;

	for (unsigned int i = 0; i < count; i++)
		sem_post(&s->go);
	for (unsigned int i = 0; i < count; i++) {
		answer(s, &error);
		assert_int_equal(error, 0);
	}
}

static void test_requests_wait_when_all_threads_are_busy(void **state)
{
	struct state *s = *state;

	occupy(s);
	ask(s, OP_QUICK, 10, NULL, 0);
	ask(s, OP_BLOCKING, 12, NULL, 0);
	assert_silent(s);
	sem_post(&s->go);
	for (int i = 0; i < 2; i++) {
		int error;

		answer(s, &error);
		assert_int_equal(error, 0);
	}
	wait_for(&s->begun);
	let_go(s, THREADS - 1);
}

static void test_forget_and_interrupt_get_through_when_all_threads_are_busy(void **state)
{
	struct state *s = *state;

	occupy(s);
	ask(s, OP_QUICK, 10, NULL, 0);
	ask(s, OP_QUICK, 12, NULL, 0);
	ask(s, OP_FORGET, 14, NULL, 0);
	wait_for(&s->forgotten);
	interrupt(s, 12);
	assert_answer(s, 12, -EINTR);
	interrupt(s, 101);
	assert_answer(s, 101, -EINTR);
	assert_answer(s, 10, 0);
	let_go(s, THREADS - 2);
}

static void test_many_requests_wait_without_loss(void **state)
{
	struct state *s = *state;
	bool seen[200] = { false };

	occupy(s);
	for (uint64_t i = 0; i < ARRAY_SIZE(seen); i++)
		ask(s, OP_QUICK, 1000 + i, NULL, 0);
	for (unsigned int i = 0; i < THREADS - 1; i++)
		sem_post(&s->go);
	for (size_t i = 0; i < ARRAY_SIZE(seen) + THREADS - 1; i++) {
		int error;
		uint64_t unique = answer(s, &error);

		assert_int_equal(error, 0);
		if (unique >= 1000) {
			assert_false(seen[unique - 1000]);
			seen[unique - 1000] = true;
		}
	}
}

static void test_malformed_messages_do_no_harm(void **state)
{
	struct state *s = *state;
	struct fuse_in_header in = { .len = 4000, .opcode = OP_QUICK, .unique = 10 };

	assert_int_equal(write(s->kernel, "x", 1), 1);
	assert_int_equal(write(s->kernel, &in, sizeof(in)), sizeof(in));
	assert_answer(s, 10, -EINVAL);
	in.len = sizeof(in);
	in.opcode = 9999;
	assert_int_equal(write(s->kernel, &in, sizeof(in)), sizeof(in));
	assert_answer(s, 10, -ENOSYS);
	ask(s, FUSE_INTERRUPT, 12, NULL, 0);
	assert_answer(s, 12, -EINVAL);
	ask(s, OP_QUICK, 14, NULL, 0);
	assert_answer(s, 14, 0);
}

/* Each takes a thread; even then the last one gets through what gives something back. */
static void test_hundreds_of_stuck_requests_delay_no_other(void **state)
{
	struct state *s = *state;

	for (uint64_t i = 0; i < MANY - 2; i++) {
		ask(s, OP_BLOCKING, 1000 + i, NULL, 0);
		wait_for(&s->begun);
	}
	ask(s, OP_QUICK, 10, NULL, 0);
	assert_answer(s, 10, 0);
	ask(s, OP_BLOCKING, 1000 + MANY, NULL, 0);
	wait_for(&s->begun);
	ask(s, OP_QUICK, 12, NULL, 0);
	assert_silent(s);
	ask(s, OP_FORGET, 14, NULL, 0);
	wait_for(&s->forgotten);
	sem_post(&s->go);
	for (int i = 0; i < 2; i++) {
		int error;

		answer(s, &error);
		assert_int_equal(error, 0);
	}
	let_go(s, MANY - 2);
}

static void test_signal_from_before_the_session_unmounts(void **state)
{
	struct state *s = *state;
	struct pollfd fd = { .fd = s->kernel, .events = POLLIN };

	/* Hung up by unmount(), which is all that ends this session. */
	assert_int_equal(poll(&fd, 1, TIMEOUT_MS), 1);
	assert_true(fd.revents & POLLHUP);
	assert_true(atomic_load(&s->unmounted));
}

static void test_session_ends_with_requests_under_way(void **state)
{
	struct state *s = *state;

	/* They see that nobody waits for them, and the teardown does not hang. */
	occupy(s);
	ask(s, OP_QUICK, 10, NULL, 0);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_blocking_request_does_not_delay_others),
		TEST(test_leader_that_is_stuck_is_relieved),
		TEST(test_watchdog_wakes_up_after_a_quiet_time),
		TEST(test_interrupt_reaches_the_running_request_only),
		TEST(test_interrupt_of_the_unknown_is_eagain),
		TEST(test_requests_wait_when_all_threads_are_busy),
		TEST(test_forget_and_interrupt_get_through_when_all_threads_are_busy),
		TEST(test_many_requests_wait_without_loss),
		TEST(test_malformed_messages_do_no_harm),
		TEST(test_session_ends_with_requests_under_way),
		cmocka_unit_test_setup_teardown(test_hundreds_of_stuck_requests_delay_no_other,
						setup_default, teardown),
		cmocka_unit_test_setup_teardown(test_signal_from_before_the_session_unmounts,
						setup_signalled, teardown),
	};

	return cmocka_run_group_tests_name("fuse session", tests, NULL, NULL);
}
