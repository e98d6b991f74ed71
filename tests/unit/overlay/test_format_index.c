/* SPDX-License-Identifier: MIT */
/*
 * What index=on and nfs_export=on store, against Linux 6.18.44 on ext4: the bytes were read with
 * getfattr -e hex from upper and workdir/index after changes through the kernel's overlayfs. What
 * the kernel accepts was found by writing values with setfattr and mounting again.
 */
#include "helpers.h"

#include <ctype.h>
#include <limits.h>

#include "overlay/format.h"

/* trusted.overlay.origin of a copied-up file, and the name of its entry in workdir/index */
static const uint8_t origin[] = { 0x00, 0xfb, 0x1d, 0x00, 0x01, 0x00, 0x00, 0x00, 0x00, 0x00,
				  0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
				  0x00, 0x79, 0x67, 0x10, 0x00, 0x8f, 0x42, 0xa2, 0xd0 };
static const char entry[] = "00fb1d000100000000000000000000000000000000796710008f42a2d0";

/* trusted.overlay.upper of workdir/index: the handle of upperdir */
static const uint8_t upper[] = { 0x00, 0xfb, 0x1d, 0x04, 0x01, 0x00, 0x00, 0x00, 0x00, 0x00,
				 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
				 0x00, 0x76, 0x67, 0x10, 0x00, 0xa6, 0x40, 0x31, 0x0a };

static void test_a_handle_of_an_upper_directory_says_so(void **state)
{
	uint8_t out[FMT_FH_MAX];
	struct fmt_fh fh;

	assert_int_equal(fmt_fh_decode(upper, sizeof(upper), &fh), 0);
	assert_true(fh.upper);
	assert_int_equal(fmt_fh_encode(&fh, out), sizeof(upper));
	assert_memory_equal(out, upper, sizeof(upper));
	assert_int_equal(fmt_fh_decode(origin, sizeof(origin), &fh), 0);
	assert_false(fh.upper);
	assert_int_equal(fmt_fh_encode(&fh, out), sizeof(origin));
	assert_memory_equal(out, origin, sizeof(origin));
}

static void test_an_index_entry_is_named_for_the_origin(void **state)
{
	char name[FMT_INDEX_NAME_MAX];
	uint8_t out[FMT_FH_MAX];

	fmt_index_name(origin, sizeof(origin), name);
	assert_string_equal(name, entry);
	assert_int_equal(fmt_index_name_decode(entry, out), sizeof(origin));
	assert_memory_equal(out, origin, sizeof(origin));
}

static void test_the_longest_handle_has_an_index_name(void **state)
{
	struct fmt_fh fh = { .type = 0xff, .fid_len = sizeof(fh.fid) };
	char name[FMT_INDEX_NAME_MAX];
	uint8_t encoded[FMT_FH_MAX];
	uint8_t out[FMT_FH_MAX];
	ssize_t size;

	memset(fh.fid, 0xfe, sizeof(fh.fid));
	size = fmt_fh_encode(&fh, encoded);
	fmt_index_name(encoded, (size_t)size, name);
	assert_int_equal(strlen(name), 2 * size);
	assert_int_equal(fmt_index_name_decode(name, out), size);
	assert_memory_equal(out, encoded, (size_t)size);
}

static void test_malformed_index_names(void **state)
{
	char name[2 * FMT_INDEX_NAME_MAX];
	uint8_t out[FMT_FH_MAX];

	for (size_t n = 0; n < sizeof(entry) - 1; n++) {
		snprintf(name, sizeof(name), "%.*s", (int)n, entry);
		assert_int_equal(fmt_index_name_decode(name, out), -EINVAL);
	}
	for (size_t n = 0; n < sizeof(entry) - 1; n++) {
		memcpy(name, entry, sizeof(entry));
		name[n] = 'g';
		assert_int_equal(fmt_index_name_decode(name, out), -EINVAL);
	}
	memset(name, '0', sizeof(name) - 1);
	name[sizeof(name) - 1] = '\0';
	assert_int_equal(fmt_index_name_decode(name, out), -EINVAL);
	assert_int_equal(fmt_index_name_decode("#1", out), -EINVAL);
	assert_int_equal(fmt_index_name_decode("", out), -EINVAL);
}

static void test_index_names_of_a_newer_format_are_unknown(void **state)
{
	char name[sizeof(entry)];
	uint8_t out[FMT_FH_MAX];

	memcpy(name, entry, sizeof(entry));
	name[1] = '1'; /* version 1 */
	assert_int_equal(fmt_index_name_decode(name, out), -ENODATA);
	memcpy(name, entry, sizeof(entry));
	name[6] = '8'; /* an unknown flag */
	assert_int_equal(fmt_index_name_decode(name, out), -ENODATA);
}

static void test_index_names_may_be_uppercase_and_longer_as_with_the_kernel(void **state)
{
	char name[sizeof(entry) + 4];
	uint8_t out[FMT_FH_MAX];

	for (size_t n = 0; n < sizeof(entry); n++)
		name[n] = (char)toupper(entry[n]);
	assert_int_equal(fmt_index_name_decode(name, out), sizeof(origin));
	assert_memory_equal(out, origin, sizeof(origin));
	snprintf(name, sizeof(name), "%s0", entry);
	assert_int_equal(fmt_index_name_decode(name, out), sizeof(origin));
	snprintf(name, sizeof(name), "%s00", entry);
	assert_int_equal(fmt_index_name_decode(name, out), sizeof(origin));
}

static void test_nlink_is_written_as_the_kernel_does(void **state)
{
	static const struct {
		enum fmt_nlink_base base;
		int difference;
		const char *value;
	} golden[] = {
		{ FMT_NLINK_UPPER, 1, "U+1" },
		{ FMT_NLINK_UPPER, 0, "U+0" },
		{ FMT_NLINK_UPPER, -1, "U-1" },
		{ FMT_NLINK_LOWER, 0, "L+0" },
		{ FMT_NLINK_LOWER, -2, "L-2" },
		{ FMT_NLINK_LOWER, INT_MIN, "L-2147483648" },
		{ FMT_NLINK_UPPER, INT_MAX, "U+2147483647" },
	};

	for (size_t n = 0; n < sizeof(golden) / sizeof(golden[0]); n++) {
		enum fmt_nlink_base base;
		char out[FMT_NLINK_MAX];
		int difference;
		size_t len = fmt_nlink_encode(golden[n].base, golden[n].difference, out);

		assert_int_equal(len, strlen(golden[n].value));
		assert_memory_equal(out, golden[n].value, len);
		assert_int_equal(fmt_nlink_decode(out, (ssize_t)len, &base, &difference), 0);
		assert_int_equal(base, golden[n].base);
		assert_int_equal(difference, golden[n].difference);
	}
}

static void test_malformed_nlinks(void **state)
{
	static const char *const bad[] = {
		"",     "U",    "U+",   "U1",   "u+1",   "X+1",          "+1",           "U++1",
		"U+-1", "U+ 1", "U+1 ", "U+1x", "U+0x1", "U+2147483648", "U-2147483649", "U+1\n\n",
	};
	enum fmt_nlink_base base;
	int difference;

	for (size_t n = 0; n < sizeof(bad) / sizeof(bad[0]); n++) {
		ssize_t size = (ssize_t)strlen(bad[n]);

		if (fmt_nlink_decode(bad[n], size, &base, &difference) != -EINVAL)
			fail_msg("'%s' is accepted", bad[n]);
	}
	assert_int_equal(fmt_nlink_decode("U+0000000001", 12, &base, &difference), 0);
	assert_int_equal(fmt_nlink_decode("U+00000000001", 13, &base, &difference), -EINVAL);
	assert_int_equal(fmt_nlink_decode("U+1", -ENODATA, &base, &difference), -EINVAL);
	assert_int_equal(fmt_nlink_decode("U+1", 2, &base, &difference), -EINVAL);
	/* as kstrtoint() of the kernel */
	assert_int_equal(fmt_nlink_decode("U+2\n", 4, &base, &difference), 0);
	assert_int_equal(difference, 2);
	assert_int_equal(fmt_nlink_decode("U-2\0junk", 8, &base, &difference), 0);
	assert_int_equal(difference, -2);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_a_handle_of_an_upper_directory_says_so),
		cmocka_unit_test(test_an_index_entry_is_named_for_the_origin),
		cmocka_unit_test(test_the_longest_handle_has_an_index_name),
		cmocka_unit_test(test_malformed_index_names),
		cmocka_unit_test(test_index_names_of_a_newer_format_are_unknown),
		cmocka_unit_test(test_index_names_may_be_uppercase_and_longer_as_with_the_kernel),
		cmocka_unit_test(test_nlink_is_written_as_the_kernel_does),
		cmocka_unit_test(test_malformed_nlinks),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
