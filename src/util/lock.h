/* SPDX-License-Identifier: MIT */
/*
 * A mutex of four bytes, for objects that exist in millions, where a pthread_mutex_t (40 bytes)
 * would be a sixth of the object. Not recursive, not fair. Zero is the unlocked state.
 */
#pragma once

#include <limits.h>
#include <linux/futex.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

struct lock {
	_Atomic uint32_t state; /* 0 free, 1 held, 2 held and somebody waits */
};

static inline void futex_wait(_Atomic uint32_t *word, uint32_t value)
{
	syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

/* Waits no longer than that. */
static inline void futex_wait_ms(_Atomic uint32_t *word, uint32_t value, unsigned int ms)
{
	struct timespec limit = { .tv_sec = ms / 1000, .tv_nsec = (long)(ms % 1000) * 1000000 };

	syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, &limit, NULL, 0);
}

static inline void futex_wake(_Atomic uint32_t *word, int count)
{
	syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, count, NULL, NULL, 0);
}

static inline void lock_take(struct lock *l)
{
	uint32_t seen = 0;

	if (atomic_compare_exchange_strong_explicit(&l->state, &seen, 1, memory_order_acquire,
						    memory_order_relaxed))
		return;
	if (seen != 2)
		seen = atomic_exchange_explicit(&l->state, 2, memory_order_acquire);
	while (seen) {
		futex_wait(&l->state, 2);
		seen = atomic_exchange_explicit(&l->state, 2, memory_order_acquire);
	}
}

static inline void lock_drop(struct lock *l)
{
	if (atomic_exchange_explicit(&l->state, 0, memory_order_release) == 2)
		futex_wake(&l->state, 1);
}
