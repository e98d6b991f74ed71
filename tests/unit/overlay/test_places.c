/* SPDX-License-Identifier: MIT */
/* places.c: the map from numbers to names, against a simple one. */
#include "helpers.h"

#include "overlay/places.h"

#define ROOT 1

static int add(struct places *p, uint64_t number, uint64_t parent, const char *name)
{
	return places_add(p, number, parent, name, strlen(name));
}

static int move(struct places *p, uint64_t number, uint64_t parent, const char *name)
{
	return places_move(p, number, parent, name, strlen(name));
}

/* The path with slashes; "": none. */
static const char *path_of(const struct places *p, uint64_t number)
{
	static char text[4096];
	struct places_path path;
	const char *name;
	int err = places_path(p, ROOT, number, &path);

	text[0] = '\0';
	if (err < 0) {
		assert_int_equal(err, -ENOENT);
		return text;
	}
	name = path.names;
	for (size_t n = 0; n < path.depth; n++) {
		strcat(text, "/");
		strcat(text, name);
		name += strlen(name) + 1;
	}
	if (path.depth)
		assert_int_equal(path.numbers[path.depth - 1], number);
	places_path_free(&path);
	return text;
}

static void test_paths_lead_down_from_the_root(void **state)
{
	struct places p = { 0 };

	assert_string_equal(path_of(&p, 5), "");
	add(&p, 5, 4, "file"); /* before what is above it */
	assert_string_equal(path_of(&p, 5), "");
	add(&p, 4, 3, "b");
	add(&p, 3, ROOT, "a");
	assert_string_equal(path_of(&p, 5), "/a/b/file");
	assert_string_equal(path_of(&p, 3), "/a");
	assert_string_equal(path_of(&p, ROOT), "");
	places_free(&p);
}

static void test_add_leaves_what_is_known_and_move_does_not(void **state)
{
	struct places p = { 0 };

	add(&p, 5, ROOT, "first");
	add(&p, 5, ROOT, "second");
	assert_string_equal(path_of(&p, 5), "/first");
	move(&p, 5, ROOT, "second");
	assert_string_equal(path_of(&p, 5), "/second");
	move(&p, 6, 5, "new");
	assert_string_equal(path_of(&p, 6), "/second/new");
	assert_int_equal(p.live, 2);
	places_free(&p);
}

static void test_remove_takes_only_what_is_there(void **state)
{
	struct places p = { 0 };

	add(&p, 5, ROOT, "name");
	assert_false(places_remove(&p, 5, ROOT, "nam"));
	assert_false(places_remove(&p, 5, ROOT, "names"));
	assert_false(places_remove(&p, 5, 2, "name"));
	assert_false(places_remove(&p, 6, ROOT, "name"));
	assert_true(places_remove(&p, 5, ROOT, "name"));
	assert_false(places_remove(&p, 5, ROOT, "name"));
	assert_string_equal(path_of(&p, 5), "");
	assert_int_equal(p.live, 0);
	places_free(&p);
}

static void test_circles_end(void **state)
{
	struct places p = { 0 };

	add(&p, 5, 6, "a");
	add(&p, 6, 7, "b");
	add(&p, 7, 5, "c");
	add(&p, 8, 8, "self");
	assert_string_equal(path_of(&p, 5), "");
	assert_string_equal(path_of(&p, 8), "");
	places_free(&p);
}

#define OBJECTS 3000
#define STEPS   60000

static void name_of(unsigned int n, char out[64])
{
	/* of many lengths */
	snprintf(out, 64, "%.*s%u", (int)(n % 40), "nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn",
		 n);
}

/* Numbers that collide in the low bits too. */
static uint64_t number_of(unsigned int object)
{
	return object % 3 ? object + 2 : (uint64_t)(object + 1) << 40 | 7;
}

static void test_many_objects_come_move_and_go(void **state)
{
	static unsigned int names[OBJECTS]; /* 0: it is not there */
	struct places p = { .seed = 12345 };
	unsigned int random = 1;
	unsigned int live = 0;
	char name[64];
	char want[80];

	for (unsigned int step = 1; step <= STEPS; step++) {
		unsigned int object;

		random = random * 1103515245 + 12345;
		object = (random >> 8) % OBJECTS;
		name_of(step, name);
		if (!names[object]) {
			assert_int_equal(add(&p, number_of(object), ROOT, name), 0);
			names[object] = step;
			live++;
		} else if ((random >> 24) % 2) {
			assert_int_equal(move(&p, number_of(object), ROOT, name), 0);
			names[object] = step;
		} else {
			name_of(names[object], name);
			assert_true(places_remove(&p, number_of(object), ROOT, name));
			names[object] = 0;
			live--;
		}
		assert_int_equal(p.live, live);
	}
	for (unsigned int object = 0; object < OBJECTS; object++) {
		name_of(names[object], name);
		snprintf(want, sizeof(want), "/%s", name);
		assert_same_text("path", path_of(&p, number_of(object)), names[object] ? want : "");
	}
	/* what was thrown away did not stay */
	assert_true(p.count <= OBJECTS);
	assert_true(p.arena_room < 1 << 20);
	places_free(&p);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_paths_lead_down_from_the_root),
		cmocka_unit_test(test_add_leaves_what_is_known_and_move_does_not),
		cmocka_unit_test(test_remove_takes_only_what_is_there),
		cmocka_unit_test(test_circles_end),
		cmocka_unit_test(test_many_objects_come_move_and_go),
	};

	return cmocka_run_group_tests_name("places", tests, NULL, NULL);
}
