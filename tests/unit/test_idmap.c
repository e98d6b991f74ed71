/* SPDX-License-Identifier: MIT */
/* Maps of users and groups: what is read as one, and what it makes of numbers. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "util/base.h"
#include "util/idmap.h"

static void test_nothing_given_maps_nothing(void **state)
{
	struct id_map m = { 0 };

	assert_true(id_map_is_trivial(&m));
	assert_int_equal(id_map_show(&m, 0), 0);
	assert_int_equal(id_map_show(&m, ID_NONE - 1), ID_NONE - 1);
	assert_int_equal(id_map_store(&m, 1000), 1000);
}

static void test_one_range(void **state)
{
	struct id_map m = { 0 };

	assert_int_equal(id_map_parse(&m, "0:100000:65536"), 0);
	assert_false(id_map_is_trivial(&m));
	assert_int_equal(id_map_show(&m, 0), 100000);
	assert_int_equal(id_map_show(&m, 65535), 165535);
	assert_int_equal(id_map_show(&m, 65536), ID_NONE);
	assert_int_equal(id_map_show(&m, 100000), ID_NONE);
	assert_int_equal(id_map_show(&m, ID_NONE), ID_NONE);
	assert_int_equal(id_map_store(&m, 100000), 0);
	assert_int_equal(id_map_store(&m, 165535), 65535);
	assert_int_equal(id_map_store(&m, 165536), ID_NONE);
	assert_int_equal(id_map_store(&m, 99999), ID_NONE);
	assert_int_equal(id_map_store(&m, 0), ID_NONE);
	assert_int_equal(id_map_store(&m, ID_NONE), ID_NONE);
	id_map_free(&m);
	assert_true(id_map_is_trivial(&m));
}

static void test_ranges_in_any_order(void **state)
{
	struct id_map m = { 0 };

	/* podman's --userns=keep-id */
	assert_int_equal(id_map_parse(&m, ":1005:1005:64532:0:1:1004:1004:0:1"), 0);
	assert_int_equal(m.count, 3);
	assert_int_equal(id_map_show(&m, 0), 1);
	assert_int_equal(id_map_show(&m, 1003), 1004);
	assert_int_equal(id_map_show(&m, 1004), 0);
	assert_int_equal(id_map_show(&m, 1005), 1005);
	assert_int_equal(id_map_show(&m, 65536), 65536);
	assert_int_equal(id_map_show(&m, 65537), ID_NONE);
	for (uint32_t n = 0; n < 65537; n++)
		assert_int_equal(id_map_store(&m, id_map_show(&m, n)), n);
	id_map_free(&m);
}

static void test_the_whole_space(void **state)
{
	struct id_map m = { 0 };

	assert_int_equal(id_map_parse(&m, "0:0:4294967295"), 0);
	assert_int_equal(id_map_show(&m, ID_NONE - 1), ID_NONE - 1);
	assert_int_equal(id_map_show(&m, ID_NONE), ID_NONE);
	assert_int_equal(id_map_parse(&m, "4294967294:0:1"), 0);
	assert_int_equal(id_map_show(&m, ID_NONE - 1), 0);
	assert_int_equal(id_map_store(&m, 0), ID_NONE - 1);
	id_map_free(&m);
}

static void test_thousands_of_ranges(void **state)
{
	enum { COUNT = 3000 };
	struct id_map m = { 0 };
	char *text = malloc(COUNT * 40);
	char *end = text;

	assert_non_null(text);
	for (unsigned int n = 0; n < COUNT; n++)
		end += sprintf(end, ":%u:%u:2", (COUNT - n) * 1000, n * 3);
	assert_int_equal(id_map_parse(&m, text), 0);
	assert_int_equal(m.count, COUNT);
	for (unsigned int n = 0; n < COUNT; n++) {
		uint32_t disk = (COUNT - n) * 1000;

		assert_int_equal(id_map_show(&m, disk - 1), ID_NONE);
		assert_int_equal(id_map_show(&m, disk), n * 3);
		assert_int_equal(id_map_show(&m, disk + 1), n * 3 + 1);
		assert_int_equal(id_map_show(&m, disk + 2), ID_NONE);
		assert_int_equal(id_map_store(&m, n * 3 + 1), disk + 1);
		assert_int_equal(id_map_store(&m, n * 3 + 2), ID_NONE);
	}
	id_map_free(&m);
	free(text);
}

static void test_what_is_no_map(void **state)
{
	static const char *const wrong[] = {
		"",
		":",
		"::",
		"0",
		"0:1",
		"0:1:",
		":0:1:",
		"0:1:2:",
		"0:1:2:3",
		"0:1:2:3:4",
		"::0:0:1",
		"0::0:1",
		"0:0::1",
		"a:0:1",
		"0:0:1x",
		"0:0:0x1",
		"+0:0:1",
		"-1:0:1",
		" 0:0:1",
		"0:0:1 ",
		"0:0:1,",
		/* empty, or past the last number */
		"0:0:0",
		"0:0:4294967296",
		"0:0:18446744073709551617",
		"4294967295:0:1",
		"0:4294967295:1",
		"1:0:4294967295",
		"0:1:4294967295",
		"4294967290:0:6",
		/* overlapping on one of the sides */
		"0:0:10:9:100:1",
		"0:0:10:100:9:1",
		"5:5:1:0:100:10",
		"0:0:1:0:0:1",
	};

	for (size_t n = 0; n < ARRAY_SIZE(wrong); n++) {
		struct id_map m = { 0 };

		assert_int_equal(id_map_parse(&m, "7:8:1"), 0);
		if (id_map_parse(&m, wrong[n]) != -EINVAL)
			fail_msg("'%s' was taken for a map", wrong[n]);
		/* and what there was stays */
		assert_int_equal(m.count, 1);
		assert_int_equal(id_map_show(&m, 7), 8);
		id_map_free(&m);
	}
}

static void test_neighbours_do_not_overlap(void **state)
{
	struct id_map m = { 0 };

	assert_int_equal(id_map_parse(&m, "0:10:10:10:0:10"), 0);
	assert_int_equal(id_map_show(&m, 9), 19);
	assert_int_equal(id_map_show(&m, 10), 0);
	/* the last word wins */
	assert_int_equal(id_map_parse(&m, "0:0:1"), 0);
	assert_int_equal(m.count, 1);
	id_map_free(&m);
}

static void test_squash_is_for_showing(void **state)
{
	struct id_map m = { .squash = true, .squash_to = 1000 };

	assert_false(id_map_is_trivial(&m));
	assert_int_equal(id_map_show(&m, 0), 1000);
	assert_int_equal(id_map_show(&m, ID_NONE), 1000);
	assert_int_equal(id_map_store(&m, 5), 5);
	assert_int_equal(id_map_parse(&m, "0:100:10"), 0);
	assert_int_equal(id_map_show(&m, 3), 1000);
	assert_int_equal(id_map_store(&m, 105), 5);
	id_map_free(&m);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_nothing_given_maps_nothing),
		cmocka_unit_test(test_one_range),
		cmocka_unit_test(test_ranges_in_any_order),
		cmocka_unit_test(test_the_whole_space),
		cmocka_unit_test(test_thousands_of_ranges),
		cmocka_unit_test(test_what_is_no_map),
		cmocka_unit_test(test_neighbours_do_not_overlap),
		cmocka_unit_test(test_squash_is_for_showing),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
