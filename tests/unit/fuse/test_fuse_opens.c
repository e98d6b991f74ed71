/* SPDX-License-Identifier: MIT */
/* Which way each inode is open: never two ways at once, and no backing id is lost. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/stat.h>

#include "server/opens.h"

#define NODE 42
#define KEPT 64 * 1024 /* ids of inodes that are not open, in all shards */

static int setup(void **state)
{
	return server_opens_new(true, (struct server_opens **)state);
}

static int teardown(void **state)
{
	server_opens_free(*state);
	return 0;
}

static struct server_opening reader(bool upper, int32_t id)
{
	return (struct server_opening){ .nodeid = NODE, .direct = true, .upper = upper, .id = id };
}

static struct server_opening writer(int32_t id)
{
	return (struct server_opening){ .nodeid = NODE,
					.direct = true,
					.upper = true,
					.writes = true,
					.maps = true,
					.id = id };
}

static int enter(struct server_opens *x, struct server_opening *o)
{
	return server_opens_enter(x, o);
}

static int32_t leave(struct server_opens *x, bool passthrough, bool writes)
{
	int32_t unused;

	server_opens_leave(x, NODE, passthrough, writes, writes, &unused);
	return unused;
}

static void test_an_id_is_kept_until_the_inode_is_forgotten(void **state)
{
	struct server_opening first = reader(true, 0), second = reader(true, 0);

	assert_int_equal(enter(*state, &first), SERVER_WAY_NO_ID);
	first.id = 7;
	assert_int_equal(enter(*state, &first), SERVER_WAY_PASSTHROUGH);
	assert_int_equal(leave(*state, true, false), 0);
	assert_int_equal(enter(*state, &second), SERVER_WAY_PASSTHROUGH);
	assert_int_equal(second.id, 7);
	assert_int_equal(server_opens_forget(*state, NODE), 0); /* it is open */
	assert_int_equal(leave(*state, true, false), 0);
	assert_int_equal(server_opens_forget(*state, NODE), 7);
	assert_int_equal(server_opens_forget(*state, NODE), 0);
}

static void test_of_two_ids_one_is_given_back(void **state)
{
	struct server_opening first = reader(true, 7), second = reader(true, 8);

	assert_int_equal(enter(*state, &first), SERVER_WAY_PASSTHROUGH);
	assert_int_equal(first.unused, 0);
	assert_int_equal(enter(*state, &second), SERVER_WAY_PASSTHROUGH);
	assert_int_equal(second.id, 7);
	assert_int_equal(second.unused, 8);
}

static void test_what_is_open_cached_stays_so(void **state)
{
	struct server_opening first = reader(false, 0), second = writer(8), third = writer(9);

	first.direct = false;
	assert_int_equal(enter(*state, &first), SERVER_WAY_CACHED);
	assert_true(first.keeps);
	assert_int_equal(enter(*state, &second), SERVER_WAY_CACHED);
	assert_int_equal(second.unused, 8);
	assert_true(server_opens_mapped_cached(*state, NODE));
	leave(*state, false, true);
	assert_false(server_opens_mapped_cached(*state, NODE));
	leave(*state, false, false);
	assert_int_equal(enter(*state, &third), SERVER_WAY_PASSTHROUGH);
	leave(*state, true, true);
	/* what the page cache has may be older than what was written past it */
	first.id = -1;
	assert_int_equal(enter(*state, &first), SERVER_WAY_CACHED);
	assert_false(first.keeps);
}

static void test_a_copy_up_leaves_the_inode_of_those_who_read_lower(void **state)
{
	struct server_opening first = reader(false, 7), second = writer(8), third = writer(9);

	assert_int_equal(enter(*state, &first), SERVER_WAY_PASSTHROUGH);
	assert_true(server_opens_steady(*state, NODE, 0644));
	assert_int_equal(enter(*state, &second), SERVER_WAY_STALE);
	assert_int_equal(second.unused, 8);
	assert_true(server_opens_left(*state, NODE));
	assert_true(server_opens_left(*state, NODE | SERVER_SECOND_INODE));
	assert_false(server_opens_steady(*state, NODE, 0644));
	third.nodeid |= SERVER_SECOND_INODE;
	assert_int_equal(enter(*state, &third), SERVER_WAY_PASSTHROUGH);
	leave(*state, true, false);
	assert_int_equal(server_opens_forget(*state, NODE), 7);
	assert_false(server_opens_left(*state, NODE));
}

/* He has found the file in lower, and then others had it copied up and opened it. */
static void test_a_reader_who_comes_after_a_copy_up_sees_upper(void **state)
{
	struct server_opening first = writer(7), late = reader(false, 0), later = reader(false, 8);

	assert_int_equal(enter(*state, &first), SERVER_WAY_PASSTHROUGH);
	late.direct = false;
	assert_int_equal(enter(*state, &late), SERVER_WAY_PASSTHROUGH);
	assert_int_equal(late.id, 7);
	assert_int_equal(enter(*state, &later), SERVER_WAY_PASSTHROUGH);
	assert_int_equal(later.unused, 8);
	assert_false(server_opens_left(*state, NODE));
}

static void test_writers_differ_in_set_id_bits(void **state)
{
	struct server_opening user = writer(7), root = writer(0);

	assert_int_equal(enter(*state, &user), SERVER_WAY_PASSTHROUGH);
	root.trusted = true;
	assert_int_equal(enter(*state, &root), SERVER_WAY_PASSTHROUGH);
	assert_true(root.differs);
	assert_false(server_opens_steady(*state, NODE, S_IFREG | 04755));
	leave(*state, true, true);
	leave(*state, true, true);
	root.id = 0; /* and alone he gets one of his own */
	assert_int_equal(enter(*state, &root), SERVER_WAY_NO_ID);
	assert_int_equal(root.unused, 7);
}

static void test_a_mapping_outlives_its_file(void **state)
{
	struct server_opening first = writer(7), second = writer(0);
	uint64_t doubt, old;

	assert_int_equal(server_opens_doubt(*state, NODE), 0);
	assert_int_equal(enter(*state, &first), SERVER_WAY_PASSTHROUGH);
	assert_true(first.unsteady);
	assert_int_equal(server_opens_doubt(*state, NODE), 0); /* no doubt at all */
	leave(*state, true, true);
	doubt = server_opens_doubt(*state, NODE);
	assert_int_not_equal(doubt, 0);
	server_opens_settle(*state, NODE, doubt, true);
	assert_false(server_opens_steady(*state, NODE, 0644));
	old = server_opens_doubt(*state, NODE);
	server_opens_settle(*state, NODE, old, true);
	assert_int_equal(enter(*state, &second), SERVER_WAY_PASSTHROUGH);
	assert_false(second.unsteady);
	leave(*state, true, true);
	doubt = server_opens_doubt(*state, NODE);
	assert_int_not_equal(doubt, old);
	server_opens_settle(*state, NODE, doubt, false);
	assert_true(server_opens_steady(*state, NODE, 0644));
}

struct late {
	struct server_opens *opens;
	pthread_t thread;
	atomic_bool in;
};

static void *enter_late(void *arg)
{
	struct late *late = arg;
	struct server_opening o = writer(0);

	enter(late->opens, &o);
	atomic_store(&late->in, true);
	return NULL;
}

/* The lease by which somebody finds out would have an open with O_NONBLOCK fail. */
static void test_who_opens_for_writing_waits_for_an_answer(void **state)
{
	struct server_opening first = writer(7), second = reader(true, 0);
	struct late late = { .opens = *state };
	uint64_t doubt;

	enter(*state, &first);
	leave(*state, true, true);
	doubt = server_opens_doubt(*state, NODE);
	assert_int_equal(pthread_create(&late.thread, NULL, enter_late, &late), 0);
	assert_int_equal(enter(*state, &second), SERVER_WAY_PASSTHROUGH);
	for (int n = 0; n < 1000; n++)
		sched_yield();
	assert_false(atomic_load(&late.in));
	server_opens_settle(*state, NODE, doubt, true);
	assert_int_equal(pthread_join(late.thread, NULL), 0);
	assert_true(atomic_load(&late.in));
	leave(*state, true, true);
}

static void test_only_so_many_ids_are_kept(void **state)
{
	int32_t given_back = 0;

	for (uint64_t node = 1; node <= 2 * KEPT; node++) {
		struct server_opening o = reader(true, (int32_t)node);
		int32_t unused;

		o.nodeid = node;
		assert_int_equal(enter(*state, &o), SERVER_WAY_PASSTHROUGH);
		server_opens_leave(*state, node, true, false, false, &unused);
		given_back += unused != 0;
	}
	assert_in_range(given_back, KEPT, 2 * KEPT);
	for (uint64_t node = 1; node <= 2 * KEPT; node++)
		given_back += server_opens_forget(*state, node) != 0;
	assert_int_equal(given_back, 2 * KEPT);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_an_id_is_kept_until_the_inode_is_forgotten),
		TEST(test_of_two_ids_one_is_given_back),
		TEST(test_what_is_open_cached_stays_so),
		TEST(test_a_copy_up_leaves_the_inode_of_those_who_read_lower),
		TEST(test_a_reader_who_comes_after_a_copy_up_sees_upper),
		TEST(test_writers_differ_in_set_id_bits),
		TEST(test_a_mapping_outlives_its_file),
		TEST(test_who_opens_for_writing_waits_for_an_answer),
		TEST(test_only_so_many_ids_are_kept),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
