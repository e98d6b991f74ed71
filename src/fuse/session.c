/* SPDX-License-Identifier: MIT */
#include "fuse/session.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>

#include "fuse/session_private.h"
#include "util/base.h"
#include "util/log.h"

/* After a signal: how long files that are still open keep the session up. */
#define GRACE_SECONDS 10

int fuse_session_create(const struct fuse_session_config *config, struct fuse_session **out)
{
	struct fuse_session *s = aligned_alloc(64, (sizeof(*s) + 63) & ~(size_t)63);

	if (!s)
		return -ENOMEM;
	memset(s, 0, sizeof(*s));
	s->config = *config;
	if (s->config.max_threads == 0)
		s->config.max_threads = FUSE_DEFAULT_THREADS;
	if (s->config.max_threads < 2)
		s->config.max_threads = 2;
	/* A page for the headers, one for extensions and names beside the largest data. */
	s->message_size = (size_t)config->want.max_write + 2 * 4096;
	s->reply_size = config->want.max_write;
	s->queue_tail = &s->queue;
	s->watchdog_timer = -1;
	s->event = eventfd(0, EFD_CLOEXEC);
	if (s->event < 0) {
		int err = -errno;

		free(s);
		return err;
	}
	pthread_mutex_init(&s->lock, NULL);
	pthread_cond_init(&s->all_gone, NULL);
	pthread_cond_init(&s->queue_room, NULL);
	*out = s;
	return 0;
}

void fuse_session_free(struct fuse_session *s)
{
	if (!s)
		return;
	close_fd(s->event);
	pthread_mutex_destroy(&s->lock);
	pthread_cond_destroy(&s->all_gone);
	pthread_cond_destroy(&s->queue_room);
	free(s);
}

const struct fuse_conn *fuse_session_conn(const struct fuse_session *s)
{
	return &s->conn;
}

bool fuse_session_over_uring(struct fuse_session *s)
{
	return atomic_load(&s->initialised) && fuse_uring_serves(s);
}

static void do_nothing(int sig)
{
}

void fuse_session_block_signals(sigset_t *old)
{
	sigset_t all;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, old);
}

/* All threads but the calling one are started with every signal blocked but the kick. */
static void set_signals(sigset_t *old, sigset_t *ours)
{
	struct sigaction ignore = { .sa_handler = SIG_IGN }, kick = { .sa_handler = do_nothing };
	sigset_t blocked;

	sigaction(SIGPIPE, &ignore, NULL);
	sigaction(SIGXFSZ, &ignore, NULL);
	sigaction(FUSE_KICK_SIGNAL, &kick, NULL);
	sigfillset(&blocked);
	sigdelset(&blocked, FUSE_KICK_SIGNAL);
	pthread_sigmask(SIG_SETMASK, &blocked, old);
	sigemptyset(ours);
	sigaddset(ours, SIGTERM);
	sigaddset(ours, SIGINT);
	sigaddset(ours, SIGHUP);
	sigaddset(ours, SIGUSR1);
}

/* A leader in read(2) is interrupted; one that works on a request is left to finish it. */
static void kick_leader(struct fuse_session *s)
{
	pthread_mutex_lock(&s->lock);
	if (s->leader && !(atomic_load(&s->sequence) & 1))
		pthread_kill(s->leader->thread, FUSE_KICK_SIGNAL);
	pthread_mutex_unlock(&s->lock);
}

/* Ends a session whose mount may be in use. The signal can be early by a moment, so it is repeated.
 */
static void end_by_force(struct fuse_session *s)
{
	struct timespec pause = { .tv_nsec = 5000000 };
	bool gone = false;

	fuse_pool_stop(s, 0);
	while (!gone) {
		kick_leader(s);
		nanosleep(&pause, NULL);
		pthread_mutex_lock(&s->lock);
		gone = !s->leader;
		pthread_mutex_unlock(&s->lock);
	}
}

static int64_t now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static void wait_for_end(struct fuse_session *s, int signals, void (*ready)(void *ctx),
			 void *ready_ctx)
{
	struct pollfd fds[2] = { { .fd = s->event, .events = POLLIN },
				 { .fd = signals, .events = POLLIN } };
	struct signalfd_siginfo info;
	int64_t deadline = -1;
	bool told = false;

	while (!atomic_load(&s->stopping)) {
		int timeout = deadline < 0 ? -1 : (int)max(deadline - now_ms(), (int64_t)0);
		int count = poll(fds, 2, timeout);
		uint64_t value;

		if (count < 0)
			continue;
		if ((fds[0].revents & POLLIN) && read(s->event, &value, sizeof(value)) > 0 &&
		    atomic_load(&s->initialised) && !told) {
			told = true;
			if (ready)
				ready(ready_ctx);
		}
		if ((fds[1].revents & POLLIN) && read(signals, &info, sizeof(info)) > 0) {
			if (info.ssi_signo == SIGUSR1) {
				if (s->config.report)
					s->config.report(s->config.ctx);
				continue;
			}
			if (deadline >= 0) {
				end_by_force(s);
				break;
			}
			deadline = now_ms() + GRACE_SECONDS * 1000;
			if (s->config.unmount)
				s->config.unmount(s->config.ctx);
		}
		if (deadline >= 0 && now_ms() >= deadline)
			end_by_force(s);
	}
}

/* Whatever is missing for it, there is always /dev/fuse. */
static void prepare_uring(struct fuse_session *s)
{
	int err = fuse_uring_prepare(s);

	if (err)
		log_warning("no io_uring to be had, requests come over /dev/fuse: %s",
			    strerror(-err));
}

int fuse_session_run(struct fuse_session *s, void (*ready)(void *ctx), void *ready_ctx)
{
	sigset_t old, ours;
	struct signalfd_siginfo info;
	autofd int signals = -1;
	int err;

	set_signals(&old, &ours);
	signals = signalfd(-1, &ours, SFD_CLOEXEC | SFD_NONBLOCK);
	err = signals < 0 ? -errno : 0;
	if (!err && s->config.uring)
		prepare_uring(s); /* before the watchdog, which looks at it */
	if (!err)
		err = fuse_watchdog_start(s);
	if (!err)
		err = fuse_pool_start(s);
	if (err)
		fuse_pool_stop(s, err);
	else
		wait_for_end(s, signals, ready, ready_ctx);
	fuse_pool_join(s);
	fuse_uring_join(s);
	fuse_watchdog_stop(s);
	fuse_uring_free(s);
	/* What came twice must not kill the process now, before the layers are closed. */
	while (signals >= 0 && read(signals, &info, sizeof(info)) > 0)
		continue;
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	return s->result;
}
