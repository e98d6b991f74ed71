/* SPDX-License-Identifier: MIT */
/* The cache of opened objects: what is closed when, and that nothing stays open. */
#include "helpers.h"

#include <pthread.h>

#include "overlay/fdcache.h"
#include "overlay/layer.h"

static void close_ref(struct layer_ref *ref)
{
	close(ref->fd);
}

static const struct layer_ops ops = { .close = close_ref };
static struct layer layer = { .ops = &ops };

/* Who owns a cached object: in the engine an inode. */
static struct layer_ref *slots[16];

static struct layer_ref *opened(void)
{
	int fd = open("/", O_PATH | O_CLOEXEC);
	struct layer_ref *ref;

	assert_true(fd >= 0);
	ref = layer_dir_adopt(&layer, fd, false);
	assert_non_null(ref);
	return ref;
}

static bool is_open(int fd)
{
	return fcntl(fd, F_GETFD) >= 0;
}

/* Puts a new object into a slot and keeps no reference. Returns its fd. */
static int fill(struct fdcache *c, unsigned int slot)
{
	struct layer_ref *ref = opened();
	int fd = ref->fd;

	fdcache_set(c, &slots[slot], ref);
	layer_ref_put(ref);
	return fd;
}

static void touch(struct fdcache *c, unsigned int slot)
{
	struct layer_ref *ref = fdcache_get(c, &slots[slot]);

	assert_non_null(ref);
	layer_ref_put(ref);
}

static void begin(struct fdcache *c, size_t capacity)
{
	for (size_t i = 0; i < ARRAY_SIZE(slots); i++)
		assert_null(slots[i]);
	assert_int_equal(fdcache_init(c, capacity), 0);
	assert_int_equal(fdcache_count(c), 0);
}

static void end(struct fdcache *c, unsigned int fds_before)
{
	fdcache_destroy(c);
	for (size_t i = 0; i < ARRAY_SIZE(slots); i++)
		assert_null(slots[i]);
	assert_int_equal(open_fds(), fds_before);
}

static void test_an_empty_slot_gives_nothing(void **state)
{
	unsigned int before = open_fds();
	struct fdcache c;

	begin(&c, 4);
	assert_null(fdcache_get(&c, &slots[0]));
	fdcache_drop(&c, &slots[0]);
	assert_int_equal(fdcache_shrink(&c, 10), 0);
	assert_int_equal(fdcache_count(&c), 0);
	end(&c, before);
}

static void test_what_is_put_in_is_what_comes_out(void **state)
{
	unsigned int before = open_fds();
	struct layer_ref *ref = opened();
	struct layer_ref *again;
	struct fdcache c;

	begin(&c, 4);
	fdcache_set(&c, &slots[0], ref);
	assert_int_equal(ref->refs, 2);
	again = fdcache_get(&c, &slots[0]);
	assert_ptr_equal(again, ref);
	assert_int_equal(ref->refs, 3);
	layer_ref_put(again);
	layer_ref_put(ref);
	assert_int_equal(fdcache_count(&c), 1);
	touch(&c, 0);
	end(&c, before);
}

static void test_the_least_recently_used_is_closed_at_capacity(void **state)
{
	unsigned int before = open_fds();
	int fd[5];
	struct fdcache c;

	begin(&c, 3);
	for (unsigned int i = 0; i < 3; i++)
		fd[i] = fill(&c, i);
	assert_int_equal(fdcache_count(&c), 3);
	/* of 0, 1, 2 the oldest is 0, until it is used again */
	touch(&c, 0);
	fd[3] = fill(&c, 3);
	assert_null(slots[1]);
	assert_false(is_open(fd[1]));
	assert_non_null(slots[0]);
	assert_non_null(slots[2]);
	assert_non_null(slots[3]);
	assert_int_equal(fdcache_count(&c), 3);
	assert_int_equal(open_fds(), before + 3);
	/* used in this order: 2, 0, 3; using the newest once more is nothing */
	touch(&c, 3);
	touch(&c, 3);
	touch(&c, 0);
	touch(&c, 3);
	fd[4] = fill(&c, 4);
	assert_null(slots[2]);
	fd[2] = fill(&c, 2);
	assert_null(slots[0]);
	fill(&c, 5);
	assert_null(slots[3]);
	assert_true(is_open(fd[4]));
	assert_true(is_open(fd[2]));
	end(&c, before);
}

static void test_many_more_than_the_capacity_stay_within_it(void **state)
{
	unsigned int before = open_fds();
	struct layer_ref *many[1000] = { 0 };
	struct fdcache c;

	begin(&c, 10);
	for (size_t i = 0; i < ARRAY_SIZE(many); i++) {
		struct layer_ref *ref = opened();

		fdcache_set(&c, &many[i], ref);
		layer_ref_put(ref);
		assert_true(fdcache_count(&c) <= 10);
	}
	assert_int_equal(open_fds(), before + 10);
	for (size_t i = 0; i < ARRAY_SIZE(many) - 10; i++)
		assert_null(many[i]);
	for (size_t i = ARRAY_SIZE(many) - 10; i < ARRAY_SIZE(many); i++)
		assert_non_null(many[i]);
	fdcache_destroy(&c);
	for (size_t i = 0; i < ARRAY_SIZE(many); i++)
		assert_null(many[i]);
	assert_int_equal(open_fds(), before);
}

static void test_a_capacity_of_one(void **state)
{
	unsigned int before = open_fds();
	struct fdcache c;

	begin(&c, 1);
	fill(&c, 0);
	fill(&c, 1);
	assert_null(slots[0]);
	touch(&c, 1);
	fill(&c, 1);
	touch(&c, 1);
	assert_int_equal(fdcache_count(&c), 1);
	end(&c, before);
}

static void test_an_evicted_object_stays_open_for_who_uses_it(void **state)
{
	unsigned int before = open_fds();
	struct layer_ref *held;
	struct fdcache c;

	begin(&c, 1);
	fill(&c, 0);
	held = fdcache_get(&c, &slots[0]);
	fill(&c, 1);
	assert_null(slots[0]);
	assert_true(is_open(held->fd));
	assert_int_equal(open_fds(), before + 2);
	layer_ref_put(held);
	assert_int_equal(open_fds(), before + 1);
	end(&c, before);
}

static void test_an_evicted_object_can_be_put_in_again(void **state)
{
	unsigned int before = open_fds();
	struct layer_ref *held;
	struct fdcache c;

	begin(&c, 1);
	fill(&c, 0);
	held = fdcache_get(&c, &slots[0]);
	fill(&c, 1);
	fdcache_offer(&c, &slots[0], held);
	assert_ptr_equal(slots[0], held);
	assert_null(slots[1]);
	layer_ref_put(held);
	touch(&c, 0);
	end(&c, before);
}

static void test_setting_replaces_and_evicts_nobody_else(void **state)
{
	unsigned int before = open_fds();
	struct layer_ref *first;
	struct layer_ref *now;
	struct fdcache c;

	begin(&c, 2);
	fill(&c, 0);
	fill(&c, 1);
	first = slots[0];
	fill(&c, 0);
	now = fdcache_get(&c, &slots[0]);
	assert_ptr_not_equal(now, first);
	layer_ref_put(now);
	assert_non_null(slots[1]);
	assert_int_equal(fdcache_count(&c), 2);
	assert_int_equal(open_fds(), before + 2);
	/* the new one is the most recently used */
	touch(&c, 1);
	fill(&c, 0);
	fill(&c, 2);
	assert_null(slots[1]);
	assert_non_null(slots[0]);
	end(&c, before);
}

static void test_setting_what_is_there_already_changes_nothing(void **state)
{
	unsigned int before = open_fds();
	struct layer_ref *ref = opened();
	struct fdcache c;

	begin(&c, 2);
	fdcache_set(&c, &slots[0], ref);
	fdcache_set(&c, &slots[0], ref);
	assert_ptr_equal(slots[0], ref);
	assert_int_equal(fdcache_count(&c), 1);
	assert_int_equal(ref->refs, 2);
	layer_ref_put(ref);
	end(&c, before);
}

static void test_an_offer_leaves_what_is_there(void **state)
{
	unsigned int before = open_fds();
	struct layer_ref *first = opened();
	struct layer_ref *second = opened();
	struct fdcache c;

	begin(&c, 2);
	fdcache_offer(&c, &slots[0], first);
	assert_ptr_equal(slots[0], first);
	fdcache_offer(&c, &slots[0], second);
	assert_ptr_equal(slots[0], first);
	assert_int_equal(second->refs, 1);
	assert_int_equal(fdcache_count(&c), 1);
	layer_ref_put(first);
	layer_ref_put(second);
	assert_int_equal(open_fds(), before + 1);
	end(&c, before);
}

static void test_dropping_empties_one_slot(void **state)
{
	unsigned int before = open_fds();
	struct fdcache c;

	/* the first, the last and one in the middle of the list */
	for (unsigned int which = 0; which < 3; which++) {
		begin(&c, 4);
		for (unsigned int i = 0; i < 3; i++)
			fill(&c, i);
		fdcache_drop(&c, &slots[which]);
		assert_null(slots[which]);
		fdcache_drop(&c, &slots[which]);
		assert_int_equal(fdcache_count(&c), 2);
		assert_int_equal(open_fds(), before + 2);
		for (unsigned int i = 0; i < 3; i++)
			if (i != which)
				touch(&c, i);
		assert_int_equal(fdcache_shrink(&c, 9), 2);
		end(&c, before);
	}
}

static void test_shrinking_closes_the_oldest_and_says_how_many(void **state)
{
	unsigned int before = open_fds();
	struct fdcache c;

	begin(&c, 8);
	for (unsigned int i = 0; i < 5; i++)
		fill(&c, i);
	touch(&c, 0);
	assert_int_equal(fdcache_shrink(&c, 0), 0);
	assert_int_equal(fdcache_shrink(&c, 2), 2);
	assert_null(slots[1]);
	assert_null(slots[2]);
	assert_non_null(slots[0]);
	assert_non_null(slots[3]);
	assert_non_null(slots[4]);
	assert_int_equal(open_fds(), before + 3);
	assert_int_equal(fdcache_shrink(&c, 100), 3);
	assert_int_equal(fdcache_shrink(&c, 100), 0);
	assert_int_equal(fdcache_count(&c), 0);
	fill(&c, 0);
	assert_int_equal(fdcache_count(&c), 1);
	end(&c, before);
}

static void test_the_end_closes_everything(void **state)
{
	unsigned int before = open_fds();
	struct fdcache c;

	begin(&c, 8);
	for (unsigned int i = 0; i < 8; i++)
		fill(&c, i);
	assert_int_equal(open_fds(), before + 8);
	end(&c, before);
}

#define THREADS      4
#define SHARED_SLOTS 32

static struct layer_ref *shared[SHARED_SLOTS];

struct worker {
	struct fdcache *cache;
	uint32_t seed;
	bool broken;
};

static uint32_t next_random(uint32_t *seed)
{
	*seed = *seed * 1664525 + 1013904223;
	return *seed >> 8;
}

static void *work(void *arg)
{
	struct worker *w = arg;

	for (unsigned int i = 0; i < 20000; i++) {
		struct layer_ref **slot = &shared[next_random(&w->seed) % SHARED_SLOTS];
		unsigned int what = next_random(&w->seed) % 16;
		struct layer_ref *ref;
		int fd;

		if (what < 8) {
			ref = fdcache_get(w->cache, slot);
			if (ref && !is_open(ref->fd))
				w->broken = true;
			layer_ref_put(ref);
		} else if (what < 14) {
			fd = open("/", O_PATH | O_CLOEXEC);
			ref = fd < 0 ? NULL : layer_dir_adopt(&layer, fd, false);
			if (!ref) {
				w->broken = true;
				break;
			}
			(what < 11 ? fdcache_set : fdcache_offer)(w->cache, slot, ref);
			if (!is_open(fd))
				w->broken = true;
			layer_ref_put(ref);
		} else if (what == 14) {
			fdcache_drop(w->cache, slot);
		} else {
			fdcache_shrink(w->cache, 3);
		}
		if (fdcache_count(w->cache) > 8)
			w->broken = true;
	}
	return NULL;
}

static void test_several_threads_at_once(void **state)
{
	unsigned int before = open_fds();
	struct worker workers[THREADS];
	pthread_t threads[THREADS];
	struct fdcache c;

	begin(&c, 8);
	for (unsigned int t = 0; t < THREADS; t++) {
		workers[t] = (struct worker){ .cache = &c, .seed = t + 1 };
		assert_int_equal(pthread_create(&threads[t], NULL, work, &workers[t]), 0);
	}
	for (unsigned int t = 0; t < THREADS; t++) {
		pthread_join(threads[t], NULL);
		assert_false(workers[t].broken);
	}
	assert_int_equal(open_fds(), before + fdcache_count(&c));
	end(&c, before);
	for (unsigned int i = 0; i < SHARED_SLOTS; i++)
		assert_null(shared[i]);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_an_empty_slot_gives_nothing),
		cmocka_unit_test(test_what_is_put_in_is_what_comes_out),
		cmocka_unit_test(test_the_least_recently_used_is_closed_at_capacity),
		cmocka_unit_test(test_many_more_than_the_capacity_stay_within_it),
		cmocka_unit_test(test_a_capacity_of_one),
		cmocka_unit_test(test_an_evicted_object_stays_open_for_who_uses_it),
		cmocka_unit_test(test_an_evicted_object_can_be_put_in_again),
		cmocka_unit_test(test_setting_replaces_and_evicts_nobody_else),
		cmocka_unit_test(test_setting_what_is_there_already_changes_nothing),
		cmocka_unit_test(test_an_offer_leaves_what_is_there),
		cmocka_unit_test(test_dropping_empties_one_slot),
		cmocka_unit_test(test_shrinking_closes_the_oldest_and_says_how_many),
		cmocka_unit_test(test_the_end_closes_everything),
		cmocka_unit_test(test_several_threads_at_once),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
