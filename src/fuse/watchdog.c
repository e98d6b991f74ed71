/* SPDX-License-Identifier: MIT */
/*
 * Relieves a leader that is stuck in a request which was not expected to wait (a cold disk, a slow
 * server beneath a layer). Costs the leader two atomic steps a request and no system call: the
 * watchdog looks at the sequence every couple of milliseconds while there is traffic, and after
 * some quiet ticks it sleeps until the leader arms its timer again.
 */
#include <errno.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "fuse/session_private.h"
#include "util/base.h"

#define TICK_NS 2000000L
/* A leader seen at work is looked at again sooner. */
#define SECOND_LOOK_NS 1000000L
#define QUIET_TICKS    8

static void set_timer(struct fuse_session *s, long ns)
{
	struct itimerspec when = { .it_value.tv_nsec = ns };

	timerfd_settime(s->watchdog_timer, 0, &when, NULL);
}

void fuse_watchdog_arm(struct fuse_session *s)
{
	if (!atomic_exchange(&s->watchdog_armed, true))
		set_timer(s, TICK_NS);
}

static void *watchdog_main(void *arg)
{
	struct fuse_session *s = arg;
	uint64_t last = 0, ticks;
	unsigned int quiet = 0;

	while (read(s->watchdog_timer, &ticks, sizeof(ticks)) > 0 || errno == EINTR) {
		uint64_t now = atomic_load(&s->sequence);

		if (atomic_load(&s->stopping))
			break;
		if (now != last) {
			quiet = 0;
			last = now;
			set_timer(s, (now & 1) ? SECOND_LOOK_NS : TICK_NS);
		} else if (now & 1) {
			if (fuse_pool_relieve(s, now))
				last = now + 1;
			set_timer(s, TICK_NS);
		} else if (++quiet < QUIET_TICKS) {
			set_timer(s, TICK_NS);
		} else {
			quiet = 0;
			atomic_store(&s->watchdog_armed, false);
			/* A leader that began before it could see the flag did not arm the timer.
			 */
			if (atomic_load(&s->sequence) != last)
				fuse_watchdog_arm(s);
		}
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
