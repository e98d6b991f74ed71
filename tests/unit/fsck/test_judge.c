// SPDX-License-Identifier: MIT
/* The decisions of the checker: all cases of the small ones, and chance on the parsers. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "fsck/judge.h"
#include "util/base.h"

static const enum below_kind belows[] = { BELOW_NOTHING, BELOW_DIR, BELOW_OTHER, BELOW_UNKNOWN };
static const enum origin_match origins[] = { ORIGIN_NONE, ORIGIN_UNKNOWN, ORIGIN_SAME,
					     ORIGIN_ELSEWHERE };

static void test_every_kind_has_words(void **state)
{
	for (int kind = 0; kind < FSCK_KIND_COUNT; kind++) {
		const struct judge_words *w = judge_words((enum fsck_kind)kind);
		bool repairable = w->class == FSCK_SAFE || w->class == FSCK_ASK;

		assert_non_null(w->id);
		assert_non_null(w->what);
		assert_true(repairable == (w->repair != NULL));
		for (int other = 0; other < kind; other++)
			if (other != FSCK_VOLATILE)
				assert_string_not_equal(w->id,
							judge_words((enum fsck_kind)other)->id);
	}
}

static void test_whiteout_goes_only_over_nothing(void **state)
{
	for (size_t b = 0; b < ARRAY_SIZE(belows); b++) {
		int kind = judge_whiteout(false, belows[b], ORIGIN_NONE);

		assert_int_equal(kind,
				 belows[b] == BELOW_NOTHING ? FSCK_WHITEOUT_NEEDLESS : FSCK_FINE);
		kind = judge_whiteout(true, belows[b], ORIGIN_NONE);
		assert_int_equal(kind, belows[b] == BELOW_NOTHING ? FSCK_WHITEOUT_NEEDLESS
								  : FSCK_XWHITEOUT);
		/* a file that was copied up is never removed */
		assert_int_equal(judge_whiteout(true, belows[b], ORIGIN_UNKNOWN),
				 FSCK_XWHITEOUT_COPY);
	}
}

static void test_opaque_that_was_copied_up(void **state)
{
	for (size_t b = 0; b < ARRAY_SIZE(belows); b++) {
		for (size_t o = 0; o < ARRAY_SIZE(origins); o++) {
			bool copy = belows[b] == BELOW_DIR && origins[o] == ORIGIN_SAME;
			int plain = judge_opaque(FMT_IS_OPAQUE, false, belows[b], origins[o]);
			int moved = judge_opaque(FMT_IS_OPAQUE, true, belows[b], origins[o]);

			assert_int_equal(plain, copy ? FSCK_OPAQUE_COPY : FSCK_FINE);
			assert_int_equal(moved, copy ? FSCK_OPAQUE_COPY : FSCK_OPAQUE_REDIRECT);
			assert_int_equal(judge_opaque(FMT_XWHITEOUTS, false, belows[b], origins[o]),
					 FSCK_FINE);
			assert_int_equal(judge_opaque(FMT_NOT_OPAQUE, true, belows[b], origins[o]),
					 FSCK_OPAQUE_INVALID);
		}
	}
}

static void test_redirects_that_the_kernel_looks_up(void **state)
{
	static const char *const good[] = { "a", "/a", "/a/b", "...", "/..a/b.", "a b", "/.a" };
	static const char *const bad[] = { "",   "/",  "//",   "a/b", "/a/",     "/a//b", ".",
					   "..", "/.", "/a/.", "/..", "/a/../b", "a/" };

	for (size_t n = 0; n < ARRAY_SIZE(good); n++)
		assert_true(judge_redirect_valid(good[n], strlen(good[n])));
	for (size_t n = 0; n < ARRAY_SIZE(bad); n++)
		assert_false(judge_redirect_valid(bad[n], strlen(bad[n])));
	/* what comes after a NUL is not read */
	assert_true(judge_redirect_valid("a\0/..", 5));
	assert_false(judge_redirect_valid("\0a", 2));
}

/* A valid redirect has no component that a lookup could refuse. */
static void test_redirects_by_chance(void **state)
{
	static const char letters[] = "a./\0b";
	uint32_t seed = 1;

	for (int round = 0; round < 200000; round++) {
		char value[12];
		size_t size;
		char path[sizeof(value) + 1];
		char *save = NULL;

		seed = seed * 1664525 + 1013904223;
		size = (seed >> 8) % sizeof(value);
		for (size_t n = 0; n < size; n++) {
			seed = seed * 1664525 + 1013904223;
			value[n] = letters[(seed >> 16) % 5];
		}
		if (!judge_redirect_valid(value, size))
			continue;
		memcpy(path, value, size);
		path[size] = '\0';
		assert_true(path[0] != '\0');
		assert_null(strstr(path, "//"));
		assert_true(path[0] == '/' || !strchr(path, '/'));
		for (char *c = strtok_r(path, "/", &save); c; c = strtok_r(NULL, "/", &save)) {
			assert_string_not_equal(c, ".");
			assert_string_not_equal(c, "..");
		}
	}
}

static void test_redirect_verdicts(void **state)
{
	assert_int_equal(judge_redirect(false, true, false, BELOW_DIR), FSCK_REDIRECT_INVALID);
	assert_int_equal(judge_redirect(true, true, false, BELOW_DIR), FSCK_FINE);
	assert_int_equal(judge_redirect(true, true, false, BELOW_NOTHING), FSCK_REDIRECT_DANGLING);
	assert_int_equal(judge_redirect(true, true, false, BELOW_OTHER), FSCK_REDIRECT_DANGLING);
	assert_int_equal(judge_redirect(true, true, false, BELOW_UNKNOWN), FSCK_LOWER_UNREADABLE);
	assert_int_equal(judge_redirect(true, false, false, BELOW_DIR), FSCK_REDIRECT_UNFOLLOWED);
	assert_int_equal(judge_redirect(true, false, true, BELOW_DIR), FSCK_REDIRECT_USER);
}

static void test_claims_have_one_order(void **state)
{
	struct judge_claim all[8];
	size_t count = 0;

	for (size_t o = 0; o < ARRAY_SIZE(origins); o++)
		for (int redirected = 0; redirected < 2; redirected++)
			all[count++] = (struct judge_claim){ origins[o], redirected };
	for (size_t a = 0; a < count; a++)
		for (size_t b = 0; b < count; b++) {
			assert_int_equal(judge_claims(&all[a], &all[b]),
					 -judge_claims(&all[b], &all[a]));
			assert_true((judge_claims(&all[a], &all[b]) == 0) == (a == b));
		}
	/* the one that came from there, wherever it is now, before a new one at the place */
	assert_true(judge_claims(&(struct judge_claim){ ORIGIN_SAME, true },
				 &(struct judge_claim){ ORIGIN_NONE, false }) < 0);
	assert_true(judge_claims(&(struct judge_claim){ ORIGIN_SAME, false },
				 &(struct judge_claim){ ORIGIN_SAME, true }) < 0);
}

static void test_twins_have_one_order(void **state)
{
	for (int a = 0; a < 4; a++)
		for (int b = 0; b < 4; b++) {
			const struct judge_twin x = { a & 1, a & 2 };
			const struct judge_twin y = { b & 1, b & 2 };

			assert_int_equal(judge_twins(&x, &y), -judge_twins(&y, &x));
			assert_true((judge_twins(&x, &y) == 0) == (a == b));
		}
}

static void test_impure(void **state)
{
	static const struct {
		const char *value;
		ssize_t size;
		int needed, unneeded;
	} cases[] = {
		{ "", -61, FSCK_IMPURE_MISSING, FSCK_FINE },
		{ "y", 1, FSCK_FINE, FSCK_FINE },
		{ "", 0, FSCK_IMPURE_MISSING, FSCK_IMPURE_INVALID },
		{ "n", 1, FSCK_IMPURE_MISSING, FSCK_IMPURE_INVALID },
		{ "yy", 2, FSCK_IMPURE_MISSING, FSCK_IMPURE_INVALID },
	};

	for (size_t n = 0; n < ARRAY_SIZE(cases); n++) {
		assert_int_equal(judge_impure(cases[n].value, cases[n].size, true),
				 cases[n].needed);
		assert_int_equal(judge_impure(cases[n].value, cases[n].size, false),
				 cases[n].unneeded);
	}
}

static void test_origin(void **state)
{
	uint8_t value[29] = { 0, 0xfb, 29, 0, 1 };

	assert_int_equal(judge_origin(value, 0), FSCK_FINE);
	assert_int_equal(judge_origin(value, sizeof(value)), FSCK_FINE);
	for (size_t size = 1; size < sizeof(value); size++)
		assert_int_equal(judge_origin(value, size), FSCK_ORIGIN_INVALID);
	value[1] = 0xfa;
	assert_int_equal(judge_origin(value, sizeof(value)), FSCK_ORIGIN_INVALID);
	value[1] = 0xfb;
	value[0] = 1; /* a later version: nothing that we could mend */
	assert_int_equal(judge_origin(value, sizeof(value)), FSCK_FINE);
}

/* Over all facts: what has data is not given up, and what has none is not touched. */
static void test_metacopy(void **state)
{
	for (unsigned int bits = 0; bits < 64; bits++) {
		for (size_t b = 0; b < ARRAY_SIZE(belows); b++) {
			const struct judge_metacopy_facts f = {
				.valid = bits & 1,
				.below = belows[b],
				.below_is_file = bits & 2,
				.below_size = bits & 4 ? 7 : 5,
				.size = bits & 8 ? 0 : 5,
				.own_data = bits & 16,
				.moved = bits & 32,
			};
			bool fits = f.below == BELOW_OTHER && f.below_is_file &&
				    f.below_size == f.size;
			int kind = judge_metacopy(&f);

			if (f.below == BELOW_UNKNOWN)
				assert_int_equal(kind, FSCK_LOWER_UNREADABLE);
			else if (fits)
				assert_int_equal(kind, f.valid ? FSCK_FINE : FSCK_METACOPY_INVALID);
			else if (kind == FSCK_METACOPY_FALSE)
				assert_true(f.own_data);
			else if (kind == FSCK_METACOPY_MOVED)
				assert_true(f.moved);
			else if (kind == FSCK_METACOPY_EMPTY)
				assert_int_equal(f.size, 0);
			else
				assert_true(kind == FSCK_METACOPY_NO_DATA && !f.moved);
		}
	}
}

static void test_nlink(void **state)
{
	assert_int_equal(judge_nlink(false, 0, 2, 3), FSCK_NLINK_INVALID);
	assert_int_equal(judge_nlink(true, 1, 2, 3), FSCK_NLINK_WRONG);
	assert_int_equal(judge_nlink(true, 2, 2, 3), FSCK_FINE);
	assert_int_equal(judge_nlink(true, 3, 2, 3), FSCK_FINE);
	assert_int_equal(judge_nlink(true, 4, 2, 3), FSCK_NLINK_WRONG);
}

/* An entry that still stands for a name is not removed. */
static void test_index(void **state)
{
	for (unsigned int bits = 0; bits < 128; bits++) {
		for (long stored = -1; stored < 3; stored++) {
			const struct judge_index_facts f = {
				.name_valid = bits & 1,
				.has_origin = bits & 2,
				.same = bits & 4,
				.name_leads = bits & 8,
				.origin_leads = bits & 16,
				.nlink = bits & 32 ? 2 : 1,
				.stored = stored,
			};
			int kind = judge_index(&f);

			if (!f.name_valid)
				assert_int_equal(kind, FSCK_INDEX_NAME);
			if (kind == FSCK_INDEX_ORPHAN)
				assert_true(f.nlink == 1 && f.stored == 0);
			if (kind == FSCK_INDEX_ORIGIN)
				assert_true(f.name_leads && !(f.has_origin && f.same));
			if (f.name_valid && f.has_origin && f.same && f.nlink > 1)
				assert_int_equal(kind, FSCK_FINE);
		}
	}
}

static void test_where_marks_belong(void **state)
{
	assert_true(judge_belongs(FMT_OPAQUE, S_IFDIR, 0, false));
	assert_false(judge_belongs(FMT_OPAQUE, S_IFDIR, 0, true));
	assert_false(judge_belongs(FMT_OPAQUE, S_IFREG, 0, false));
	assert_true(judge_belongs(FMT_REDIRECT, S_IFREG, 9, false));
	assert_false(judge_belongs(FMT_REDIRECT, S_IFLNK, 0, false));
	assert_true(judge_belongs(FMT_WHITEOUT, S_IFREG, 0, false));
	assert_false(judge_belongs(FMT_WHITEOUT, S_IFREG, 1, false));
	assert_true(judge_belongs(FMT_UUID, S_IFDIR, 0, true));
	assert_false(judge_belongs(FMT_UUID, S_IFDIR, 0, false));
	for (unsigned int type = 0; type < 16; type++)
		assert_true(judge_belongs(FMT_ORIGIN, type << 12, 0, false));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_every_kind_has_words),
		cmocka_unit_test(test_whiteout_goes_only_over_nothing),
		cmocka_unit_test(test_opaque_that_was_copied_up),
		cmocka_unit_test(test_redirects_that_the_kernel_looks_up),
		cmocka_unit_test(test_redirects_by_chance),
		cmocka_unit_test(test_redirect_verdicts),
		cmocka_unit_test(test_claims_have_one_order),
		cmocka_unit_test(test_twins_have_one_order),
		cmocka_unit_test(test_impure),
		cmocka_unit_test(test_origin),
		cmocka_unit_test(test_metacopy),
		cmocka_unit_test(test_nlink),
		cmocka_unit_test(test_index),
		cmocka_unit_test(test_where_marks_belong),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
