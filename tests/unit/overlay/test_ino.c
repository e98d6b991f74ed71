/* SPDX-License-Identifier: MIT */
/* Inode numbers of the union: kept where they can be, and unique in any case. */
#include "helpers.h"

#include "overlay/internal.h"

/* The bit that says so. */
#define HASHED(o) (1ULL << (o)->ino_shift)

/* As many layers as @devs, the first being upper, or a lower one when @upper is false. */
static void ovl_with(struct ovl *o, const dev_t *devs, unsigned int count, bool upper)
{
	*o = (struct ovl){ .has_upper = upper,
			   .lower_count = count - upper,
			   .layer_count = 1 + count - upper };
	o->layers = calloc(o->lower_count + 1, sizeof(*o->layers));
	assert_non_null(o->layers);
	for (unsigned int i = 0; i < count; i++)
		o->layers[upper ? i : i + 1].dev = devs[i];
	assert_int_equal(ino_init(o), 0);
}

static void ovl_without(struct ovl *o)
{
	free(o->layers);
	free(o->devs);
}

static void test_on_one_filesystem_numbers_are_the_real_ones(void **state)
{
	static const dev_t one[] = { 7, 7, 7 };
	static const uint64_t inos[] = { 1, 2, 0xffffffff, 1ULL << 32, INT64_MAX, UINT64_MAX };

	for (int upper = 0; upper < 2; upper++) {
		for (unsigned int count = 1 + upper; count <= 3; count++) {
			struct ovl o;

			ovl_with(&o, one, count, upper);
			assert_true(o.samefs);
			for (size_t i = 0; i < ARRAY_SIZE(inos); i++)
				assert_int_equal(ino_compose(&o, 7, inos[i]), inos[i]);
			ovl_without(&o);
		}
	}
}

static void test_a_missing_upper_is_no_filesystem(void **state)
{
	static const dev_t devs[] = { 7, 7 };
	struct ovl o;

	/* layers[0].dev is 0 then */
	ovl_with(&o, devs, 2, false);
	assert_true(o.samefs);
	/* but has its number */
	assert_int_equal(o.dev_count, 2);
	ovl_without(&o);
}

static void test_each_filesystem_counts_once(void **state)
{
	static const dev_t devs[] = { 5, 6, 5, 7, 6, 6, 7, 5 };
	struct ovl o;

	ovl_with(&o, devs, ARRAY_SIZE(devs), true);
	assert_false(o.samefs);
	assert_int_equal(o.dev_count, 3);
	assert_int_equal(o.ino_shift, 61);
	ovl_without(&o);
}

static void test_over_several_filesystems_uppers_numbers_stay(void **state)
{
	static const dev_t devs[] = { 5, 6, 7 };
	struct ovl o;

	ovl_with(&o, devs, ARRAY_SIZE(devs), true);
	assert_int_equal(ino_compose(&o, 5, 12), 12);
	assert_int_equal(ino_compose(&o, 5, 0xffffffff), 0xffffffff);
	assert_int_equal(ino_compose(&o, 6, 12), 12 | 1ULL << 62);
	assert_int_equal(ino_compose(&o, 7, 12), 12 | 2ULL << 62);
	ovl_without(&o);
}

static void test_bits_are_as_many_as_the_kernels(void **state)
{
	/* ilog2(filesystems - 1) + 2, upper's counted in any case */
	static const struct {
		unsigned int lowers;
		unsigned int bits;
	} cases[] = { { 1, 2 }, { 2, 3 }, { 3, 3 }, { 4, 4 }, { 7, 4 }, { 8, 5 }, { 500, 10 } };
	static dev_t devs[OVL_MAX_LAYERS + 1];

	for (unsigned int d = 0; d < ARRAY_SIZE(devs); d++)
		devs[d] = makedev(0, 40 + d);
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct ovl o;

		ovl_with(&o, devs, cases[i].lowers + 1, true);
		assert_int_equal(64 - o.ino_shift, cases[i].bits);
		ovl_without(&o);
		if (cases[i].lowers == 1)
			continue;
		ovl_with(&o, devs, cases[i].lowers, false);
		assert_int_equal(64 - o.ino_shift, cases[i].bits);
		ovl_without(&o);
	}
}

static void test_where_numbers_have_32_bits_the_rest_is_ours(void **state)
{
	static const dev_t devs[] = { 5, 6 };
	struct ovl o;

	ovl_with(&o, devs, 2, true);
	free(o.devs);
	o.layers[0].ino32 = o.layers[1].ino32 = true;
	assert_int_equal(ino_init(&o), 0);
	assert_int_equal(o.ino_shift, 32);
	assert_int_equal(ino_compose(&o, 5, UINT32_MAX), UINT32_MAX);
	assert_int_equal(ino_compose(&o, 6, UINT32_MAX), UINT32_MAX | 1ULL << 33);
	assert_true(ino_compose(&o, 6, 1ULL << 32) & HASHED(&o));
	ovl_without(&o);
}

static void test_numbers_that_need_the_upper_bits_are_hashed(void **state)
{
	static const dev_t devs[] = { 5, 6, 7 };
	struct ovl o;
	uint64_t a;
	uint64_t b;

	ovl_with(&o, devs, ARRAY_SIZE(devs), true);
	/* the largest that fits, and one more */
	assert_int_equal(ino_compose(&o, 5, (1ULL << 61) - 1), (1ULL << 61) - 1);
	a = ino_compose(&o, 5, 1ULL << 61);
	assert_true(a & HASHED(&o));
	assert_int_equal(ino_compose(&o, 5, 1ULL << 61), a);
	b = ino_compose(&o, 6, 1ULL << 61);
	assert_true(b & HASHED(&o));
	assert_int_not_equal(a, b);
	assert_true(ino_compose(&o, 7, UINT64_MAX) & HASHED(&o));
	ovl_without(&o);
}

static void test_numbers_of_a_foreign_filesystem_are_hashed(void **state)
{
	static const dev_t one[] = { 5 };
	static const dev_t two[] = { 5, 6 };
	struct ovl o;

	/* as of a btrfs subvolume, which has an st_dev of its own */
	ovl_with(&o, one, 1, false);
	assert_true(ino_compose(&o, 99, 256) & HASHED(&o));
	assert_int_not_equal(ino_compose(&o, 99, 256), ino_compose(&o, 98, 256));
	assert_int_not_equal(ino_compose(&o, 99, 256), ino_compose(&o, 99, 257));
	ovl_without(&o);
	ovl_with(&o, two, 2, true);
	assert_true(ino_compose(&o, 99, 256) & HASHED(&o));
	ovl_without(&o);
}

static int compare(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a;
	uint64_t y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

static void assert_unique(uint64_t *inos, size_t count)
{
	qsort(inos, count, sizeof(*inos), compare);
	for (size_t i = 1; i < count; i++)
		if (inos[i] == inos[i - 1])
			fail_msg("%llx twice", (unsigned long long)inos[i]);
}

static void test_numbers_are_unique_over_many_filesystems(void **state)
{
	/* where numbers lie: from 1, as of tmpfs and ext4; around 2^32; xfs with large inodes;
	 * those that fill all bits */
	static const uint64_t bases[] = { 1,          (1ULL << 32) - 4096, 1ULL << 40,
					  1ULL << 58, (1ULL << 63) - 4096, UINT64_MAX - 8191 };
	enum { DEVS = 8, FOREIGN = 2, EACH = 8192 };
	size_t count = 0;
	uint64_t *inos = malloc(sizeof(*inos) * ARRAY_SIZE(bases) * (DEVS + FOREIGN) * EACH);
	dev_t devs[DEVS + FOREIGN];
	struct ovl o;

	assert_non_null(inos);
	for (unsigned int d = 0; d < DEVS + FOREIGN; d++)
		devs[d] = makedev(d % 3 ? 0 : 254, 30 + d);
	ovl_with(&o, devs, DEVS, true);
	assert_int_equal(o.ino_shift, 60);
	for (unsigned int d = 0; d < DEVS + FOREIGN; d++)
		for (size_t b = 0; b < ARRAY_SIZE(bases); b++)
			for (uint64_t n = 0; n < EACH; n++)
				inos[count++] = ino_compose(&o, devs[d], bases[b] + n);
	assert_unique(inos, count);
	free(inos);
	ovl_without(&o);
}

static void test_as_many_filesystems_as_layers_can_be(void **state)
{
	enum { DEVS = OVL_MAX_LAYERS + 1, EACH = 16 };
	static dev_t devs[DEVS];
	static uint64_t inos[DEVS * EACH];
	size_t count = 0;
	struct ovl o;

	for (unsigned int d = 0; d < DEVS; d++)
		devs[d] = makedev(0, 100 + d);
	ovl_with(&o, devs, DEVS, true);
	assert_int_equal(o.dev_count, DEVS);
	assert_int_equal(o.ino_shift, 54);
	for (unsigned int d = 0; d < DEVS; d++)
		for (uint64_t n = 1; n <= EACH; n++) {
			uint64_t ino = ino_compose(&o, devs[d], n);

			/* small numbers need no hash even then */
			assert_false(ino & HASHED(&o));
			inos[count++] = ino;
		}
	assert_unique(inos, count);
	ovl_without(&o);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_on_one_filesystem_numbers_are_the_real_ones),
		cmocka_unit_test(test_a_missing_upper_is_no_filesystem),
		cmocka_unit_test(test_each_filesystem_counts_once),
		cmocka_unit_test(test_over_several_filesystems_uppers_numbers_stay),
		cmocka_unit_test(test_bits_are_as_many_as_the_kernels),
		cmocka_unit_test(test_where_numbers_have_32_bits_the_rest_is_ours),
		cmocka_unit_test(test_numbers_that_need_the_upper_bits_are_hashed),
		cmocka_unit_test(test_numbers_of_a_foreign_filesystem_are_hashed),
		cmocka_unit_test(test_numbers_are_unique_over_many_filesystems),
		cmocka_unit_test(test_as_many_filesystems_as_layers_can_be),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
