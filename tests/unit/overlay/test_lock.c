/* SPDX-License-Identifier: MIT */
/* The small mutex: exclusion, no lost wake-up, no work for the kernel when nobody competes. */
#include "helpers.h"

#include <pthread.h>
#include <sched.h>

#include "util/lock.h"

#define THREADS 4

static void test_zero_is_unlocked_and_unlocked_is_zero(void **state)
{
	struct lock l = { 0 };

	lock_take(&l);
	assert_int_equal(l.state, 1);
	lock_drop(&l);
	assert_int_equal(l.state, 0);
	assert_int_equal(sizeof(l), 4);
}

struct shared {
	struct lock lock;
	/* not atomic: what the lock protects */
	unsigned int inside;
	unsigned long a;
	unsigned long b;
	bool broken;
	unsigned int rounds;
	bool yield;
};

static void *compete(void *arg)
{
	struct shared *s = arg;

	for (unsigned int i = 0; i < s->rounds; i++) {
		lock_take(&s->lock);
		if (s->inside++ || s->a != s->b)
			s->broken = true;
		s->a++;
		/* lets the others run into the lock while it is held */
		if (s->yield && i % 8 == 0)
			sched_yield();
		s->b++;
		s->inside--;
		lock_drop(&s->lock);
	}
	return NULL;
}

static void run(struct shared *s)
{
	pthread_t threads[THREADS];

	for (unsigned int t = 0; t < THREADS; t++)
		assert_int_equal(pthread_create(&threads[t], NULL, compete, s), 0);
	for (unsigned int t = 0; t < THREADS; t++)
		pthread_join(threads[t], NULL);
	assert_false(s->broken);
	assert_int_equal(s->a, (unsigned long)THREADS * s->rounds);
	assert_int_equal(s->b, s->a);
	assert_int_equal(s->lock.state, 0);
}

static void test_one_thread_at_a_time_is_inside(void **state)
{
	struct shared s = { .rounds = 200000 };

	run(&s);
}

static void test_one_thread_at_a_time_is_inside_when_holders_dawdle(void **state)
{
	struct shared s = { .rounds = 20000, .yield = true };

	run(&s);
}

struct turns {
	struct lock lock;
	unsigned int turn;
	unsigned int rounds;
	atomic_uint next_id;
};

/* Each thread may go on only after the one before it: all would hang if a wake-up were lost. */
static void *take_turns(void *arg)
{
	struct turns *t = arg;
	unsigned int id = atomic_fetch_add(&t->next_id, 1);

	for (unsigned int done = 0; done < t->rounds;) {
		lock_take(&t->lock);
		if (t->turn % THREADS == id) {
			t->turn++;
			done++;
		}
		lock_drop(&t->lock);
		sched_yield();
	}
	return NULL;
}

static void test_threads_wake_each_other(void **state)
{
	struct turns t = { .rounds = 500 };
	pthread_t threads[THREADS];

	for (unsigned int n = 0; n < THREADS; n++)
		assert_int_equal(pthread_create(&threads[n], NULL, take_turns, &t), 0);
	for (unsigned int n = 0; n < THREADS; n++)
		pthread_join(threads[n], NULL);
	assert_int_equal(t.turn, THREADS * t.rounds);
	assert_int_equal(t.lock.state, 0);
}

struct sleeper {
	struct lock lock;
	unsigned int got;
};

static void *sleep_on_lock(void *arg)
{
	struct sleeper *s = arg;

	lock_take(&s->lock);
	s->got++;
	lock_drop(&s->lock);
	return NULL;
}

static void test_all_who_sleep_get_it_in_the_end(void **state)
{
	struct sleeper s = { 0 };
	pthread_t threads[THREADS];

	lock_take(&s.lock);
	for (unsigned int n = 0; n < THREADS; n++)
		assert_int_equal(pthread_create(&threads[n], NULL, sleep_on_lock, &s), 0);
	/* 2: somebody waits, or is about to */
	while (atomic_load(&s.lock.state) != 2)
		sched_yield();
	assert_int_equal(s.got, 0);
	lock_drop(&s.lock);
	for (unsigned int n = 0; n < THREADS; n++)
		pthread_join(threads[n], NULL);
	assert_int_equal(s.got, THREADS);
	assert_int_equal(s.lock.state, 0);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_zero_is_unlocked_and_unlocked_is_zero),
		cmocka_unit_test(test_one_thread_at_a_time_is_inside),
		cmocka_unit_test(test_one_thread_at_a_time_is_inside_when_holders_dawdle),
		cmocka_unit_test(test_threads_wake_each_other),
		cmocka_unit_test(test_all_who_sleep_get_it_in_the_end),
	};

	alarm(60); /* a lost wake-up would last for ever */
	return cmocka_run_group_tests(tests, NULL, NULL);
}
