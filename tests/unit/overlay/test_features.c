/* SPDX-License-Identifier: MIT */
/* Which features exclude or bring each other. The expectations were read off the kernel. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <string.h>

#include "overlay/internal.h"

#define ON       OVL_REDIRECT_ON
#define FOLLOW   OVL_REDIRECT_FOLLOW
#define NOFOLLOW OVL_REDIRECT_NOFOLLOW
#define OFF      OVL_REDIRECT_OFF

enum {
	R = OVL_GIVEN_REDIRECT,
	M = OVL_GIVEN_METACOPY,
	I = OVL_GIVEN_INDEX,
	N = OVL_GIVEN_NFS_EXPORT,
	V = OVL_GIVEN_VERITY,
	U = OVL_GIVEN_USERXATTR,
};

struct parity_case {
	unsigned int given;
	struct ovl_features asked;
	int err;
	struct ovl_features effective;
};

static struct ovl_features resolve(const struct parity_case *c, bool upper, bool data,
				   bool privileged)
{
	struct ovl_features f = c->asked;
	char message[256] = "";
	int err = features_resolve(&f, c->given, upper, data, privileged, message, sizeof(message));

	assert_int_equal(err, c->err);
	if (err)
		assert_string_not_equal(message, "");
	else
		assert_string_equal(message, "");
	return f;
}

static void check(const struct parity_case *cases, size_t count, bool upper, bool data,
		  bool privileged)
{
	for (size_t n = 0; n < count; n++) {
		struct ovl_features f = resolve(&cases[n], upper, data, privileged);

		if (!cases[n].err && memcmp(&f, &cases[n].effective, sizeof(f)) != 0)
			fail_msg("case %zu: redirect %d metacopy %d index %d nfs_export %d uuid %d "
				 "fsync %d",
				 n, f.redirect, f.metacopy, f.index, f.nfs_export, f.uuid, f.fsync);
	}
}

static void test_with_upper(void **state)
{
	static const struct parity_case cases[] = {
		{ 0, { 0 }, 0, { .redirect = FOLLOW } },
		{ R, { .redirect = OFF }, 0, { .redirect = FOLLOW } },
		{ M, { .metacopy = true }, 0, { .redirect = ON, .metacopy = true } },
		{ R, { .redirect = NOFOLLOW, .metacopy = true }, 0, { .redirect = NOFOLLOW } },
		{ R | M, { .redirect = NOFOLLOW, .metacopy = true }, -EINVAL },
		{ R | M, { .redirect = FOLLOW, .metacopy = true }, -EINVAL },
		{ R | M, { .redirect = OFF, .metacopy = true }, -EINVAL },
		{ R | M,
		  { .redirect = ON, .metacopy = true },
		  0,
		  { .redirect = ON, .metacopy = true } },
		{ N, { .nfs_export = true }, 0, { .index = true, .nfs_export = true } },
		{ N | I, { .nfs_export = true }, -EINVAL },
		{ I, { .nfs_export = true }, 0, { 0 } },
		{ N | M, { .nfs_export = true, .metacopy = true }, -EINVAL },
		{ N,
		  { .nfs_export = true, .metacopy = true },
		  0,
		  { .redirect = ON, .index = true, .nfs_export = true } },
		{ M,
		  { .nfs_export = true, .metacopy = true },
		  0,
		  { .redirect = ON, .index = true, .metacopy = true } },
		{ N | V,
		  { .nfs_export = true, .metacopy = true, .verity = OVL_VERITY_ON },
		  0,
		  { .redirect = ON, .index = true, .metacopy = true, .verity = OVL_VERITY_ON } },
		{ 0,
		  { .uuid = OVL_UUID_ON, .fsync = OVL_FSYNC_VOLATILE },
		  0,
		  { .uuid = OVL_UUID_ON, .fsync = OVL_FSYNC_VOLATILE } },
	};

	check(cases, ARRAY_SIZE(cases), true, false, true);
	check(cases, ARRAY_SIZE(cases), true, true, true);
}

static void test_without_upper(void **state)
{
	static const struct parity_case cases[] = {
		{ 0, { 0 }, 0, { .redirect = ON } },
		{ R, { .redirect = NOFOLLOW }, 0, { .redirect = NOFOLLOW } },
		{ R, { .redirect = OFF }, 0, { .redirect = ON } },
		{ R | M,
		  { .redirect = FOLLOW, .metacopy = true },
		  0,
		  { .redirect = ON, .metacopy = true } },
		{ R | M, { .redirect = NOFOLLOW, .metacopy = true }, -EINVAL },
		{ I, { .index = true }, 0, { .redirect = ON } },
		{ N, { .nfs_export = true }, 0, { .redirect = ON } },
		{ N | I, { .nfs_export = true }, 0, { .redirect = ON } },
		{ N | R | I, { .redirect = NOFOLLOW, .nfs_export = true }, -EINVAL },
		{ N | R,
		  { .redirect = NOFOLLOW, .nfs_export = true },
		  0,
		  { .redirect = NOFOLLOW, .nfs_export = true } },
		{ N | R | I,
		  { .redirect = NOFOLLOW, .nfs_export = true, .index = true },
		  0,
		  { .redirect = NOFOLLOW, .nfs_export = true } },
		{ 0,
		  { .uuid = OVL_UUID_ON, .fsync = OVL_FSYNC_VOLATILE },
		  0,
		  { .redirect = ON, .uuid = OVL_UUID_NULL } },
		{ 0, { .uuid = OVL_UUID_OFF }, 0, { .redirect = ON, .uuid = OVL_UUID_OFF } },
	};

	check(cases, ARRAY_SIZE(cases), false, false, true);
}

static void test_the_word_userxattr(void **state)
{
	static const struct parity_case cases[] = {
		{ U, { .userxattr = true }, 0, { .userxattr = true, .redirect = NOFOLLOW } },
		{ U | R, { .userxattr = true, .redirect = ON }, -EINVAL },
		{ U | R, { .userxattr = true, .redirect = FOLLOW }, -EINVAL },
		{ U | R, { .userxattr = true, .redirect = OFF }, -EINVAL },
		{ U | R,
		  { .userxattr = true, .redirect = NOFOLLOW },
		  0,
		  { .userxattr = true, .redirect = NOFOLLOW } },
		{ U | M, { .userxattr = true, .metacopy = true }, -EINVAL },
		{ U,
		  { .userxattr = true, .metacopy = true },
		  0,
		  { .userxattr = true, .redirect = NOFOLLOW } },
		{ U | V,
		  { .userxattr = true, .verity = OVL_VERITY_REQUIRE },
		  0,
		  { .userxattr = true, .redirect = NOFOLLOW, .verity = OVL_VERITY_REQUIRE } },
	};

	/* The same whoever asks, and with data-only layers. */
	for (int n = 0; n < 8; n++)
		check(cases, ARRAY_SIZE(cases), n & 1, n & 2, n & 4);
}

/* An ordinary user: nothing leads elsewhere unless he asks for it by name. */
static void test_user_xattrs_for_want_of_rights(void **state)
{
	static const struct parity_case cases[] = {
		{ 0, { .userxattr = true }, 0, { .userxattr = true, .redirect = NOFOLLOW } },
		{ R,
		  { .userxattr = true, .redirect = OFF },
		  0,
		  { .userxattr = true, .redirect = NOFOLLOW } },
		{ R,
		  { .userxattr = true, .redirect = ON },
		  0,
		  { .userxattr = true, .redirect = ON } },
		{ M,
		  { .userxattr = true, .metacopy = true },
		  0,
		  { .userxattr = true, .redirect = ON, .metacopy = true } },
		{ R | M, { .userxattr = true, .redirect = NOFOLLOW, .metacopy = true }, -EINVAL },
		{ 0,
		  { .userxattr = true, .metacopy = true },
		  0,
		  { .userxattr = true, .redirect = NOFOLLOW } },
		{ V,
		  { .userxattr = true, .verity = OVL_VERITY_ON },
		  0,
		  { .userxattr = true, .redirect = NOFOLLOW, .verity = OVL_VERITY_ON } },
	};

	check(cases, ARRAY_SIZE(cases), true, false, false);
	check(cases, ARRAY_SIZE(cases), true, true, false);
}

static void test_trusted_xattrs_need_rights(void **state)
{
	static const struct parity_case cases[] = {
		{ 0, { 0 }, 0, { 0 } },
		{ R, { .redirect = ON }, -EPERM },
		{ R, { .redirect = OFF }, -EPERM },
		{ R, { .redirect = NOFOLLOW }, 0, { .redirect = NOFOLLOW } },
		{ M, { .metacopy = true }, -EPERM },
		{ V, { .verity = OVL_VERITY_ON }, -EPERM },
		{ I, { .index = true }, 0, { .index = true } },
	};
	static const struct parity_case data = { 0, { 0 }, -EPERM };

	check(cases, ARRAY_SIZE(cases), true, false, false);
	check(&data, 1, true, true, false);
}

static void test_words_of_the_kernel(void **state)
{
	const struct ovl_features f = {
		.redirect = ON, .uuid = OVL_UUID_NULL, .nfs_export = true, .fsync = OVL_FSYNC_STRICT
	};
	static const struct feature_word want[FEATURE_WORDS] = {
		{ "redirect_dir", "on", true }, { "index", "off", false },
		{ "uuid", "null", true },       { "nfs_export", "on", true },
		{ "xino", "off", false },       { "metacopy", "off", false },
		{ "fsync", "strict", true },    { "userxattr", "off", false },
		{ "verity", "off", false },
	};
	struct feature_word words[FEATURE_WORDS];

	features_spell(&f, words);
	for (size_t n = 0; n < FEATURE_WORDS; n++) {
		assert_string_equal(words[n].name, want[n].name);
		assert_string_equal(words[n].value, want[n].value);
		assert_int_equal(words[n].unusual, want[n].unusual);
	}
}

static void test_without_xattrs_nothing_is_left_that_needs_them(void **state)
{
	struct ovl o = {
		.no_xattr = true,
		.features = { .redirect = ON,
			      .metacopy = true,
			      .index = true,
			      .nfs_export = true,
			      .xino = OVL_XINO_AUTO,
			      .fsync = OVL_FSYNC_STRICT },
	};
	static const struct ovl_features want = { .redirect = NOFOLLOW,
						  .uuid = OVL_UUID_NULL,
						  .fsync = OVL_FSYNC_STRICT };

	features_fall_back(&o, 0, "a test");
	assert_memory_equal(&o.features, &want, sizeof(want));
	o.features.xino = OVL_XINO_ON;
	o.features.uuid = OVL_UUID_OFF;
	features_fall_back(&o, 0, "a test");
	assert_int_equal(o.features.xino, OVL_XINO_ON);
	assert_int_equal(o.features.uuid, OVL_UUID_OFF);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_with_upper),
		cmocka_unit_test(test_without_upper),
		cmocka_unit_test(test_the_word_userxattr),
		cmocka_unit_test(test_user_xattrs_for_want_of_rights),
		cmocka_unit_test(test_trusted_xattrs_need_rights),
		cmocka_unit_test(test_words_of_the_kernel),
		cmocka_unit_test(test_without_xattrs_nothing_is_left_that_needs_them),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
