/* SPDX-License-Identifier: MIT */
/*
 * Relieves a leader that is stuck in a request which was not expected to wait (a cold disk, a slow
 * server beneath a layer), and helps out queues of the ring transport whose threads are. Costs the
 * leader two atomic steps a request and no system call: the watchdog looks at the sequence every
 * couple of milliseconds while there is traffic, and after some quiet ticks it stops its timer
 * until somebody arms it again.
 */
#include <errno.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "fuse/session_private.h"
#include "util/base.h"

#define TICK_NS     2000000L
#define QUIET_TICKS 8

/* Every so many nanoseconds; 0: no more. */
static void set_timer(struct fuse_session *s, long ns)
{
	struct itimerspec when = { .it_interval.tv_nsec = ns, .it_value.tv_nsec = ns };

	timerfd_settime(s->watchdog_timer, 0, &when, NULL);
}

void fuse_watchdog_arm(struct fuse_session *s)
{
	if (!atomic_load(&s->watchdog_armed) && !atomic_exchange(&s->watchdog_armed, true))
		set_timer(s, TICK_NS);
}

/* Who begins to work, or stops the session, before it can see the flag does not arm the timer. */
static void sleep_until_armed(struct fuse_session *s, uint64_t last)
{
	set_timer(s, 0);
	atomic_store(&s->watchdog_armed, false);
	if (atomic_load(&s->sequence) != last || fuse_uring_look(s) || atomic_load(&s->stopping))
		fuse_watchdog_arm(s);
}

static void *watchdog_main(void *arg)
{
	struct fuse_session *s = arg;
	uint64_t last = 0, ticks;
	unsigned int quiet = 0;

	while (read(s->watchdog_timer, &ticks, sizeof(ticks)) > 0 || errno == EINTR) {
		uint64_t now = atomic_load(&s->sequence);
		bool exhausted = fuse_uring_look(s);

		if (atomic_load(&s->stopping))
			break;
		if (now != last || exhausted)
			quiet = 0;
		if (now == last && (now & 1)) {
			if (fuse_pool_relieve(s, now))
				now++;
		} else if (++quiet > QUIET_TICKS) {
			quiet = 0;
			sleep_until_armed(s, now);
		}
		last = now;
	}
	return NULL;
}

int fuse_watchdog_start(struct fuse_session *s)
{
	int err;

	s->watchdog_timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);
	if (s->watchdog_timer < 0)
		return -errno;
	err = pthread_create(&s->watchdog, NULL, watchdog_main, s);
	if (err) {
		close_fd(take_fd(&s->watchdog_timer));
		return -err;
	}
	return 0;
}

void fuse_watchdog_stop(struct fuse_session *s)
{
	if (s->watchdog_timer < 0)
		return;
	/* s->stopping is set: the next tick is the last. */
	set_timer(s, 1);
	pthread_join(s->watchdog, NULL);
	close_fd(take_fd(&s->watchdog_timer));
}
