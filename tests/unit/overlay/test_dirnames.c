// SPDX-License-Identifier: MIT
/* Which names directories have, from memory: sets of names, and the index over layers. */
#include "table_fixture.h"

#include "overlay/dirnames.h"

#define LAYERS 40

static uint32_t next_random(uint32_t *state)
{
	*state = *state * 1664525 + 1013904223;
	return *state >> 8;
}

static struct ovl *union_of_layers(void)
{
	struct ovl *o = begin();

	o->layers = calloc(LAYERS + 1, sizeof(*o->layers));
	assert_non_null(o->layers);
	for (unsigned int n = 0; n <= LAYERS; n++) {
		o->layers[n].index = n;
		o->layers[n].lists_all = true;
	}
	names_init(o);
	return o;
}

static void end_union(struct ovl *o)
{
	free(o->layers);
	names_destroy(o);
	end(o);
}

static struct ovl_inode *dir_of(struct ovl *o, unsigned int lowers, bool upper)
{
	struct dirstack *stack = calloc(1, sizeof(*stack) + lowers * sizeof(stack->lower[0]));
	struct ovl_inode *i;

	assert_non_null(stack);
	stack->lower_count = (uint16_t)lowers;
	for (unsigned int n = 0; n < lowers; n++)
		stack->lower[n].layer = (uint16_t)(n + 1);
	i = inode_new(o, DT_DIR, stack);
	assert_non_null(i);
	if (upper)
		inode_set(i, INODE_UPPER);
	return i;
}

static void read_one(struct names_reading *r, int place, const char *name)
{
	r->place = place;
	names_read_one(r, name, strlen(name));
}

static struct names_answer ask(struct ovl *o, struct ovl_inode *dir, const char *name)
{
	struct names_answer answer;

	names_ask(o, dir, name, &answer);
	return answer;
}

static void test_set_has_what_was_added_and_little_else(void **state)
{
	enum { COUNT = 20000 };
	struct nameset *set = NULL;
	struct nameset *other = NULL;
	unsigned int found = 0;
	char name[32];

	assert_false(nameset_has(set, 1));
	for (unsigned int n = 0; n < COUNT; n++) {
		snprintf(name, sizeof(name), "name-%u", n * 2);
		assert_int_equal(
			nameset_add(n % 2 ? &set : &other, nameset_hash(7, name, strlen(name))), 0);
	}
	assert_int_equal(nameset_merge(&set, other), 0);
	assert_int_equal(nameset_merge(&set, other), 0);
	assert_in_range(nameset_count(set), COUNT - 10, COUNT);
	assert_in_range(nameset_bytes(set), COUNT * 4, COUNT * 12);
	for (unsigned int n = 0; n < 2 * COUNT; n++) {
		bool has;

		snprintf(name, sizeof(name), "name-%u", n);
		has = nameset_has(set, nameset_hash(7, name, strlen(name)));
		if (n % 2 == 0)
			assert_true(has);
		else
			found += has;
	}
	assert_in_range(found, 0, 10);
	free(set);
	free(other);
}

/* Against a table of which layer has which name. */
static void test_layers_of_a_name(void **state)
{
	enum { NAMES = 700 };
	struct ovl *o = union_of_layers();
	uint32_t seed = 1;

	for (unsigned int round = 0; round < 30; round++) {
		unsigned int lowers = 1 + next_random(&seed) % LAYERS;
		unsigned int names = next_random(&seed) % NAMES;
		bool upper = next_random(&seed) % 2;
		struct ovl_inode *dir = dir_of(o, lowers, upper);
		static bool has[LAYERS + 1][NAMES];
		struct names_reading r;
		char name[32];

		memset(has, 0, sizeof(has));
		names_read_begin(&r, o, dir);
		for (int place = upper ? -1 : 0; place < (int)lowers; place++)
			for (unsigned int n = 0; n < names; n++) {
				if (next_random(&seed) % (n % 50 + 1))
					continue;
				has[place + 1][n] = true;
				snprintf(name, sizeof(name), "%u.%u", round, n);
				read_one(&r, place, name);
			}
		names_read_end(&r, true);
		for (unsigned int n = 0; n < names; n++) {
			struct names_answer a;
			unsigned int k = 0;

			snprintf(name, sizeof(name), "%u.%u", round, n);
			a = ask(o, dir, name);
			assert_true(a.lower_known);
			assert_int_equal(a.upper_lacks, upper && !has[0][n]);
			for (unsigned int place = 0; place < lowers; place++)
				if (has[place + 1][n])
					assert_int_equal(a.lower[k++], place);
			assert_int_equal(a.count, k);
		}
		snprintf(name, sizeof(name), "%u.%u", round, names);
		assert_int_equal(ask(o, dir, name).count, 0);
		inode_put(o, dir);
	}
	assert_int_equal(o->names.bytes, 0);
	end_union(o);
}

static void test_new_directory_is_known_to_be_empty(void **state)
{
	struct ovl *o = union_of_layers();
	struct ovl_inode *dir = dir_of(o, 0, true);

	assert_false(ask(o, dir, "a").upper_lacks);
	names_expect_none(o, dir);
	assert_true(ask(o, dir, "a").upper_lacks);
	names_expect(o, dir, "a");
	assert_false(ask(o, dir, "a").upper_lacks);
	assert_true(ask(o, dir, "b").upper_lacks);
	inode_put(o, dir);
	end_union(o);
}

static void test_what_comes_while_names_are_read_is_not_missed(void **state)
{
	struct ovl *o = union_of_layers();
	struct ovl_inode *dir = dir_of(o, 0, true);
	struct names_reading one, two;

	names_read_begin(&one, o, dir);
	read_one(&one, -1, "old");
	names_expect(o, dir, "new");
	names_read_begin(&two, o, dir);
	read_one(&two, -1, "old");
	names_read_end(&one, true);
	names_expect(o, dir, "newer");
	names_read_end(&two, true);
	assert_false(ask(o, dir, "old").upper_lacks);
	assert_false(ask(o, dir, "new").upper_lacks);
	assert_false(ask(o, dir, "newer").upper_lacks);
	assert_true(ask(o, dir, "never").upper_lacks);
	inode_put(o, dir);
	end_union(o);
}

static void test_who_only_lists_leaves_the_reading_of_another_alone(void **state)
{
	struct ovl *o = union_of_layers();
	struct ovl_inode *dir = dir_of(o, 0, true);
	struct names_reading one, two;

	names_read_begin(&one, o, dir);
	read_one(&one, -1, "old");
	names_read_begin(&two, o, dir);
	names_expect(o, dir, "new");
	names_read_end(&two, true);
	names_read_end(&one, true);
	assert_false(ask(o, dir, "old").upper_lacks);
	assert_false(ask(o, dir, "new").upper_lacks);
	assert_true(ask(o, dir, "never").upper_lacks);
	inode_put(o, dir);
	end_union(o);
}

static void test_what_was_not_read_to_the_end_is_not_believed(void **state)
{
	struct ovl *o = union_of_layers();
	struct ovl_inode *dir = dir_of(o, 2, true);
	struct names_reading one, two;

	names_read_begin(&one, o, dir);
	read_one(&one, 0, "a");
	names_read_end(&one, false);
	assert_false(ask(o, dir, "b").lower_known);
	assert_false(ask(o, dir, "b").upper_lacks);
	/* Who began together with one that failed has no part of what was made before. */
	names_read_begin(&one, o, dir);
	names_read_begin(&two, o, dir);
	names_expect(o, dir, "made");
	names_read_end(&one, false);
	names_read_end(&two, true);
	assert_false(ask(o, dir, "made").upper_lacks);
	assert_true(ask(o, dir, "b").lower_known);
	inode_put(o, dir);
	end_union(o);
}

static void test_set_of_names_that_went_is_made_again(void **state)
{
	struct ovl *o = union_of_layers();
	struct ovl_inode *dir = dir_of(o, 0, true);
	struct names_reading r;
	char name[32];

	names_expect_none(o, dir);
	for (unsigned int n = 0; n < 1000; n++) {
		snprintf(name, sizeof(name), "temp%u", n);
		names_expect(o, dir, name);
	}
	assert_false(ask(o, dir, "temp1").upper_lacks);
	names_read_begin(&r, o, dir);
	read_one(&r, -1, "stays");
	names_read_end(&r, true);
	assert_true(ask(o, dir, "temp1").upper_lacks);
	assert_false(ask(o, dir, "stays").upper_lacks);
	inode_put(o, dir);
	end_union(o);
}

static void test_memory_is_bounded_and_what_is_used_stays(void **state)
{
	enum { DIRS = 30, NAMES = 200000 };
	struct ovl *o = union_of_layers();
	struct ovl_inode *dirs[DIRS];
	struct names_reading r;
	unsigned int known = 0;
	char name[32];

	for (unsigned int d = 0; d < DIRS; d++) {
		dirs[d] = dir_of(o, 1, false);
		names_read_begin(&r, o, dirs[d]);
		for (unsigned int n = 0; n < NAMES; n++) {
			int len = snprintf(name, sizeof(name), "%u", n);

			r.place = 0;
			names_read_one(&r, name, (size_t)len);
		}
		names_read_end(&r, true);
		assert_true(o->names.bytes <= (size_t)32 << 20);
		ask(o, dirs[0], "used");
	}
	for (unsigned int d = 0; d < DIRS; d++)
		known += ask(o, dirs[d], "1").lower_known;
	assert_in_range(known, 10, DIRS - 1);
	assert_true(ask(o, dirs[0], "1").lower_known);
	for (unsigned int d = 0; d < DIRS; d++)
		inode_put(o, dirs[d]);
	assert_int_equal(o->names.bytes, 0);
	end_union(o);
}

static void test_nothing_is_believed_of_layers_that_may_change(void **state)
{
	struct ovl *o = union_of_layers();
	struct ovl_inode *dir = dir_of(o, 1, true);
	struct names_reading r;

	o->layers_may_change = true;
	names_expect_none(o, dir);
	names_read_begin(&r, o, dir);
	read_one(&r, 0, "a");
	names_read_end(&r, true);
	assert_false(ask(o, dir, "b").upper_lacks);
	assert_false(ask(o, dir, "b").lower_known);
	inode_put(o, dir);
	end_union(o);
}

static void test_nor_of_filesystems_that_find_what_they_do_not_list(void **state)
{
	struct ovl *o = union_of_layers();
	struct ovl_inode *dir = dir_of(o, 3, true);
	struct names_reading r;

	o->layers[2].lists_all = false;
	names_read_begin(&r, o, dir);
	names_read_end(&r, true);
	assert_true(ask(o, dir, "b").upper_lacks);
	assert_false(ask(o, dir, "b").lower_known);
	inode_put(o, dir);
	end_union(o);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_set_has_what_was_added_and_little_else),
		cmocka_unit_test(test_layers_of_a_name),
		cmocka_unit_test(test_new_directory_is_known_to_be_empty),
		cmocka_unit_test(test_what_comes_while_names_are_read_is_not_missed),
		cmocka_unit_test(test_who_only_lists_leaves_the_reading_of_another_alone),
		cmocka_unit_test(test_what_was_not_read_to_the_end_is_not_believed),
		cmocka_unit_test(test_set_of_names_that_went_is_made_again),
		cmocka_unit_test(test_memory_is_bounded_and_what_is_used_stays),
		cmocka_unit_test(test_nothing_is_believed_of_layers_that_may_change),
		cmocka_unit_test(test_nor_of_filesystems_that_find_what_they_do_not_list),
	};

	return cmocka_run_group_tests_name("dirnames", tests, NULL, NULL);
}
