/* SPDX-License-Identifier: MIT */
/* export.c and survey.c: objects found by their numbers, in unions of real directories. */
#include "helpers.h"

#include <sched.h>
#include <time.h>

#include "overlay/survey.h"

struct fixture {
	struct scratch dir;
	struct ovl *o;
	bool layers_may_change;
};

static const struct ovl_caller caller;

static void make_file(struct fixture *f, const char *path)
{
	int fd = openat(f->dir.fd, path, O_CREAT | O_WRONLY | O_CLOEXEC, 0644);

	assert_true(fd >= 0);
	close(fd);
}

static void make_dir(struct fixture *f, const char *path)
{
	assert_int_equal(mkdirat(f->dir.fd, path, 0755), 0);
}

static void mount(struct fixture *f)
{
	char lower[160], upper[160], work[160], message[512];
	const char *lowers[] = { lower };
	const struct ovl_config config = {
		.lower = lowers,
		.lower_count = 1,
		.upper = upper,
		.work = work,
		.features = { .index = true, .nfs_export = true },
		.given = OVL_GIVEN_INDEX | OVL_GIVEN_NFS_EXPORT,
		.layers_may_change = f->layers_may_change,
	};

	snprintf(lower, sizeof(lower), "%s/lower", f->dir.path);
	snprintf(upper, sizeof(upper), "%s/upper", f->dir.path);
	snprintf(work, sizeof(work), "%s/work", f->dir.path);
	if (ovl_create(&config, &f->o, message, sizeof(message)) < 0)
		fail_msg("%s", message);
}

/* lower: d/e/low, l1 = l2; upper: up */
static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	assert_non_null(f);
	scratch_make(&f->dir, "/var/tmp");
	make_dir(f, "lower");
	make_dir(f, "upper");
	make_dir(f, "work");
	make_dir(f, "lower/d");
	make_dir(f, "lower/d/e");
	make_file(f, "lower/d/e/low");
	make_file(f, "lower/l1");
	assert_int_equal(linkat(f->dir.fd, "lower/l1", f->dir.fd, "lower/l2", 0), 0);
	make_file(f, "upper/up");
	mount(f);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;
	int err;

	ovl_destroy(f->o);
	err = scratch_remove(&f->dir);
	free(f);
	return err;
}

static void skip_unless_exported(struct fixture *f)
{
	if (!ovl_get_features(f->o)->nfs_export)
		skip_because("no file handles may be opened here");
}

/* Looks a path up; the node has one lookup reference more. */
static ovl_node node_of(struct fixture *f, const char *path)
{
	char text[256];
	ovl_node node = OVL_ROOT;
	char *save = NULL;

	snprintf(text, sizeof(text), "%s", path);
	for (char *name = strtok_r(text, "/", &save); name; name = strtok_r(NULL, "/", &save)) {
		struct ovl_entry e;

		assert_same(path, ovl_lookup(f->o, node, name, &e), 0);
		if (node != OVL_ROOT)
			ovl_forget(f->o, node, 1);
		node = e.node;
	}
	return node;
}

static struct ovl_identity identity_of(struct fixture *f, const char *path)
{
	struct ovl_identity id;
	ovl_node node = node_of(f, path);

	assert_int_equal(ovl_identify(f->o, node, &id), 0);
	ovl_forget(f->o, node, 1);
	return id;
}

/* Resolves and compares with what is at @path; then forgets. */
static void assert_found(struct fixture *f, struct ovl_identity id, const char *path)
{
	struct ovl_identity again;
	struct ovl_entry e;
	ovl_node node;

	assert_same(path, ovl_resolve(f->o, &caller, id.number, &e), 0);
	assert_int_equal(e.attr.stx_ino, id.number);
	assert_int_equal(ovl_identify(f->o, e.node, &again), 0);
	assert_int_equal(again.number, id.number);
	assert_int_equal(again.generation, id.generation);
	node = node_of(f, path);
	assert_int_equal(node, e.node);
	ovl_forget(f->o, node, 2);
}

static void assert_gone(struct fixture *f, struct ovl_identity id)
{
	struct ovl_entry e;

	assert_int_equal(ovl_resolve(f->o, &caller, id.number, &e), -ESTALE);
}

static unsigned int walks(struct fixture *f)
{
	unsigned int count, places;

	survey_get_stats(f->o->survey, &count, &places);
	return count;
}

static void test_found_with_one_walk(void **state)
{
	struct fixture *f = *state;
	static const char *const paths[] = { "d", "d/e", "d/e/low", "l1", "up" };
	struct ovl_identity ids[ARRAY_SIZE(paths)];

	skip_unless_exported(f);
	for (size_t n = 0; n < ARRAY_SIZE(paths); n++)
		ids[n] = identity_of(f, paths[n]);
	assert_int_equal(walks(f), 0);
	for (size_t n = 0; n < ARRAY_SIZE(paths); n++)
		assert_found(f, ids[n], paths[n]);
	for (uint64_t n = 0; n < 100; n++)
		assert_gone(f, (struct ovl_identity){ .number = n << 40 | 3 });
	assert_int_equal(walks(f), 1);
}

static void test_the_same_after_a_remount(void **state)
{
	struct fixture *f = *state;
	struct ovl_identity low, up;

	skip_unless_exported(f);
	low = identity_of(f, "d/e/low");
	up = identity_of(f, "up");
	ovl_destroy(f->o);
	mount(f);
	assert_found(f, low, "d/e/low");
	assert_found(f, up, "up");
	assert_true(low.generation != up.generation);
}

static void test_what_changes_is_noted(void **state)
{
	struct fixture *f = *state;
	struct ovl_identity low, dir, made, up;
	ovl_node d, e, node;
	struct ovl_entry entry;

	skip_unless_exported(f);
	low = identity_of(f, "d/e/low");
	dir = identity_of(f, "d");
	up = identity_of(f, "up");
	assert_found(f, low, "d/e/low");
	d = node_of(f, "d");
	e = node_of(f, "d/e");

	assert_int_equal(ovl_mkdir(f->o, &caller, e, "made", 0755, &entry), 0);
	ovl_forget(f->o, entry.node, 1);
	made = identity_of(f, "d/e/made");
	assert_found(f, made, "d/e/made");

	assert_int_equal(ovl_rename(f->o, &caller, e, "low", OVL_ROOT, "moved", 0), 0);
	assert_found(f, low, "moved");
	assert_int_equal(ovl_rename(f->o, &caller, e, "made", d, "made", 0), 0);
	assert_found(f, made, "d/made");
	assert_int_equal(
		ovl_rename(f->o, &caller, OVL_ROOT, "moved", OVL_ROOT, "up", RENAME_EXCHANGE), 0);
	assert_found(f, low, "up");
	assert_found(f, up, "moved");

	node = node_of(f, "up");
	assert_int_equal(ovl_link(f->o, &caller, node, d, "link", &entry), 0);
	assert_int_equal(ovl_unlink(f->o, &caller, OVL_ROOT, "up"), 0);
	assert_found(f, low, "d/link");
	ovl_forget(f->o, node, 2);
	assert_int_equal(ovl_unlink(f->o, &caller, d, "link"), 0);
	assert_gone(f, low);

	assert_int_equal(ovl_rmdir(f->o, &caller, d, "made"), 0);
	assert_gone(f, made);
	assert_found(f, dir, "d");
	assert_int_equal(walks(f), 1);
	ovl_forget(f->o, d, 1);
	ovl_forget(f->o, e, 1);
}

static void test_a_name_nobody_knows_takes_another_walk(void **state)
{
	struct fixture *f = *state;
	struct ovl_identity link, low;

	skip_unless_exported(f);
	link = identity_of(f, "l1");
	low = identity_of(f, "d/e/low");
	assert_found(f, low, "d/e/low");
	/* one of two names goes: which one the walk had seen is open */
	assert_int_equal(ovl_unlink(f->o, &caller, OVL_ROOT, "l1"), 0);
	assert_found(f, link, "l2");
	assert_true(walks(f) <= 2);
	assert_int_equal(ovl_unlink(f->o, &caller, OVL_ROOT, "l2"), 0);
	assert_gone(f, link);
	assert_true(walks(f) <= 2);
}

/* Somebody who has never heard of the union puts the map wrong. */
static void test_what_is_not_true_is_corrected(void **state)
{
	struct fixture *f = *state;
	struct ovl_identity up, low;

	skip_unless_exported(f);
	ovl_destroy(f->o);
	f->layers_may_change = true;
	mount(f);
	up = identity_of(f, "up");
	low = identity_of(f, "d/e/low");
	assert_found(f, low, "d/e/low");
	assert_int_equal(renameat(f->dir.fd, "upper/up", f->dir.fd, "upper/elsewhere"), 0);
	assert_found(f, up, "elsewhere");
	assert_int_equal(unlinkat(f->dir.fd, "upper/elsewhere", 0), 0);
	assert_gone(f, up);
	assert_found(f, low, "d/e/low");
}

static void test_the_map_goes_when_nobody_asks(void **state)
{
	struct fixture *f = *state;
	struct ovl_identity low;
	struct timespec begin, now;
	unsigned int count, places;

	skip_unless_exported(f);
	low = identity_of(f, "d/e/low");
	assert_found(f, low, "d/e/low");
	survey_get_stats(f->o->survey, &count, &places);
	assert_int_equal(places, 5); /* d, e, low, l1, up */
	survey_set_idle(f->o->survey, 1);
	clock_gettime(CLOCK_MONOTONIC, &begin);
	do {
		sched_yield();
		survey_get_stats(f->o->survey, &count, &places);
		clock_gettime(CLOCK_MONOTONIC, &now);
	} while (places && now.tv_sec - begin.tv_sec < 30);
	assert_int_equal(places, 0);
	survey_set_idle(f->o->survey, 1000000);
	assert_found(f, low, "d/e/low");
	assert_int_equal(walks(f), 2);
}

static void test_dots(void **state)
{
	struct fixture *f = *state;
	struct ovl_entry e;
	ovl_node d = node_of(f, "d");
	ovl_node low = node_of(f, "d/e/low");

	assert_int_equal(ovl_lookup(f->o, d, ".", &e), 0);
	assert_int_equal(e.node, d);
	ovl_forget(f->o, d, 1);
	assert_int_equal(ovl_lookup(f->o, low, ".", &e), 0);
	assert_int_equal(e.node, low);
	ovl_forget(f->o, low, 1);
	assert_int_equal(ovl_lookup(f->o, d, "..", &e), 0);
	assert_int_equal(e.node, OVL_ROOT);
	assert_int_equal(ovl_lookup(f->o, OVL_ROOT, "..", &e), 0);
	assert_int_equal(e.node, OVL_ROOT);
	assert_int_equal(ovl_lookup(f->o, 12345, ".", &e), -ESTALE);
	if (ovl_unlink(f->o, &caller, d, "none") == -ENOENT) {
		ovl_node inner = node_of(f, "d/e");

		assert_int_equal(ovl_unlink(f->o, &caller, inner, "low"), 0);
		assert_int_equal(ovl_lookup(f->o, low, ".", &e), -ESTALE);
		assert_int_equal(ovl_lookup(f->o, low, "..", &e), -ESTALE);
		ovl_forget(f->o, inner, 1);
	}
	ovl_forget(f->o, d, 1);
	ovl_forget(f->o, low, 1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_found_with_one_walk, setup, teardown),
		cmocka_unit_test_setup_teardown(test_the_same_after_a_remount, setup, teardown),
		cmocka_unit_test_setup_teardown(test_what_changes_is_noted, setup, teardown),
		cmocka_unit_test_setup_teardown(test_a_name_nobody_knows_takes_another_walk, setup,
						teardown),
		cmocka_unit_test_setup_teardown(test_what_is_not_true_is_corrected, setup,
						teardown),
		cmocka_unit_test_setup_teardown(test_the_map_goes_when_nobody_asks, setup,
						teardown),
		cmocka_unit_test_setup_teardown(test_dots, setup, teardown),
	};

	return cmocka_run_group_tests_name("export", tests, NULL, NULL);
}
