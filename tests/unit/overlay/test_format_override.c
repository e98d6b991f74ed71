/* SPDX-License-Identifier: MIT */
/* Owner, mode and type in an xattr: what is understood, what is refused, what is written. */
#include "helpers.h"

#include <errno.h>
#include <linux/limits.h>

#include "overlay/format_override.h"

struct good {
	const char *value;
	struct fmt_override_stat stat;
};

static const struct good good[] = {
	/* fuse-overlayfs 1.10 at create and at chown, which keeps the type in the mode */
	{ "1000:1001:644", { 1000, 1001, 0644, 0, 0 } },
	{ "1000:1001:100644", { 1000, 1001, S_IFREG | 0644, 0, 0 } },
	{ "0:0:40555", { 0, 0, S_IFDIR | 0555, 0, 0 } },
	/* containers/storage */
	{ "0:0:0755", { 0, 0, 0755, 0, 0 } },
	{ "0:0:0755:dir", { 0, 0, S_IFDIR | 0755, 0, 0 } },
	{ "0:5:06755:file", { 0, 5, S_IFREG | 06755, 0, 0 } },
	{ "7:8:0777:symlink", { 7, 8, S_IFLNK | 0777, 0, 0 } },
	{ "7:8:0644:pipe", { 7, 8, S_IFIFO | 0644, 0, 0 } },
	{ "7:8:0600:socket", { 7, 8, S_IFSOCK | 0600, 0, 0 } },
	{ "0:6:0660:block-8-1", { 0, 6, S_IFBLK | 0660, 8, 1 } },
	{ "0:0:0666:char-1-3", { 0, 0, S_IFCHR | 0666, 1, 3 } },
	{ "0:0:020666:char-1-3", { 0, 0, S_IFCHR | 0666, 1, 3 } },
	/* the greatest numbers, and the longest value */
	{ "4294967294:4294967294:07777:block-4095-1048575",
	  { UINT32_MAX - 1, UINT32_MAX - 1, S_IFBLK | 07777, 4095, 1048575 } },
	{ "0:0:0", { 0, 0, 0, 0, 0 } },
	{ "00:000:0000000000644", { 0, 0, 0644, 0, 0 } },
};

static void test_values_of_others_are_understood(void **state)
{
	for (size_t n = 0; n < ARRAY_SIZE(good); n++) {
		struct fmt_override_stat ov;

		if (fmt_override_decode(good[n].value, strlen(good[n].value), &ov) < 0)
			fail_msg("%s is refused", good[n].value);
		if (memcmp(&ov, &good[n].stat, sizeof(ov)) != 0)
			fail_msg("%s: %u:%u:%o %u %u", good[n].value, ov.uid, ov.gid, ov.mode,
				 ov.major, ov.minor);
	}
}

static void test_malformed_values_are_refused(void **state)
{
	static const char *const bad[] = {
		"",
		":",
		"::",
		"0",
		"0:0",
		"0:0:",
		":0:0644",
		"0::0644",
		"0:0:0644:",
		"0:0:0644::file",
		"0:0:0644:file:",
		"0:0:0644:file ",
		"0:0:0644\n",
		" 0:0:0644",
		"0: 0:0644",
		"0:0: 0644",
		"+1:0:0644",
		"-1:0:0644",
		"0:-1:0644",
		"0:0:-644",
		"0x10:0:0644",
		"root:root:0644",
		/* numbers without room */
		"4294967295:0:0644",
		"0:4294967295:0644",
		"4294967296:0:04755",
		"18446744073709551616:0:04755",
		"0:99999999999999999999:0644",
		"0:0:0200000",
		"0:0:040000000000644",
		"0:0:777777777777777777777777",
		/* no octal */
		"0:0:0888",
		"0:0:0648",
		/* types */
		"0:0:0644:fifo",
		"0:0:0644:Dir",
		"0:0:0644:directory",
		"0:0:0644:files",
		"0:0:0644:char",
		"0:0:0644:char-",
		"0:0:0644:char-1",
		"0:0:0644:char-1-",
		"0:0:0644:char--1-3",
		"0:0:0644:char-1-3-5",
		"0:0:0644:char-1:3",
		"0:0:0644:block-4096-0",
		"0:0:0644:block-0-1048576",
		"0:0:0644:block-4294967304-1",
		/* a type in the mode that there is not, contradicts the other, or lacks its number
		 */
		"0:0:0170644",
		"0:0:0100644:dir",
		"0:0:040755:file",
		"0:0:020666",
		"0:0:060666",
		/* too long */
		"000000000000000000000000000000000000000000000000000000000000:0:0",
	};

	for (size_t n = 0; n < ARRAY_SIZE(bad); n++) {
		struct fmt_override_stat ov;

		if (fmt_override_decode(bad[n], strlen(bad[n]), &ov) != -EINVAL)
			fail_msg("'%s' is accepted: %u:%u:%o", bad[n], ov.uid, ov.gid, ov.mode);
	}
}

static void test_a_value_that_holds_a_nul_is_refused(void **state)
{
	struct fmt_override_stat ov;

	assert_int_equal(fmt_override_decode("0:0:0644", 9, &ov), -EINVAL);
	assert_int_equal(fmt_override_decode("0:0:06\0004", 9, &ov), -EINVAL);
}

static void test_no_byte_behind_a_value_counts(void **state)
{
	struct fmt_override_stat ov;

	assert_int_equal(fmt_override_decode("0:0:06444", 8, &ov), 0);
	assert_int_equal(ov.mode, 0644);
	assert_int_equal(fmt_override_decode("0:0:0644:file", 8, &ov), 0);
}

/* What a value makes of a real object: its type, or 0 when it cannot be. */
static mode_t shown_type(const char *value, mode_t real)
{
	struct statx st = { .stx_mode = (uint16_t)(real | 0600), .stx_size = 3, .stx_blocks = 8 };
	struct fmt_override_stat ov;
	int err;

	assert_int_equal(fmt_override_decode(value, strlen(value), &ov), 0);
	err = fmt_override_apply(&ov, &st);
	if (err < 0) {
		assert_int_equal(err, -EIO);
		assert_int_equal(st.stx_mode, real | 0600);
		return 0;
	}
	assert_int_equal(st.stx_uid, ov.uid);
	assert_int_equal(st.stx_gid, ov.gid);
	assert_int_equal(st.stx_mode & 07777, ov.mode & 07777);
	assert_int_equal(st.stx_rdev_major, ov.major);
	assert_int_equal(st.stx_rdev_minor, ov.minor);
	if (S_ISREG(st.stx_mode) || S_ISLNK(st.stx_mode))
		assert_int_equal(st.stx_size, 3);
	return st.stx_mode & S_IFMT;
}

static void test_only_a_regular_file_stands_for_something_else(void **state)
{
	static const mode_t real[] = { S_IFREG, S_IFDIR, S_IFLNK };
	static const struct {
		const char *value;
		mode_t shown[ARRAY_SIZE(real)];
	} cases[] = {
		{ "1:2:04711", { S_IFREG, S_IFDIR, S_IFLNK } },
		{ "1:2:0644:file", { S_IFREG, 0, 0 } },
		{ "1:2:0755:dir", { 0, S_IFDIR, 0 } },
		{ "1:2:040755", { 0, S_IFDIR, 0 } },
		{ "1:2:0777:symlink", { S_IFLNK, 0, S_IFLNK } },
		{ "1:2:0644:pipe", { S_IFIFO, 0, 0 } },
		{ "1:2:0644:socket", { S_IFSOCK, 0, 0 } },
		{ "1:2:0644:block-8-1", { S_IFBLK, 0, 0 } },
		{ "1:2:0644:char-1-3", { S_IFCHR, 0, 0 } },
	};

	for (size_t n = 0; n < ARRAY_SIZE(cases); n++)
		for (size_t k = 0; k < ARRAY_SIZE(real); k++)
			assert_int_equal(shown_type(cases[n].value, real[k]), cases[n].shown[k]);
}

static void test_a_type_is_written_where_it_is_not_the_real_one(void **state)
{
	static const struct {
		mode_t mode;
		mode_t real;
		const char *value;
	} cases[] = {
		{ S_IFREG | 04755, S_IFREG, "1:2:04755" },
		{ S_IFDIR | 01777, S_IFDIR, "1:2:01777" },
		{ S_IFLNK | 0777, S_IFLNK, "1:2:0777" },
		{ S_IFLNK | 0777, S_IFREG, "1:2:0777:symlink" },
		{ S_IFIFO | 0, S_IFREG, "1:2:00:pipe" },
		{ S_IFSOCK | 0600, S_IFREG, "1:2:0600:socket" },
		{ S_IFBLK | 0600, S_IFREG, "1:2:0600:block-8-17" },
		{ S_IFCHR | 0600, S_IFREG, "1:2:0600:char-8-17" },
	};

	for (size_t n = 0; n < ARRAY_SIZE(cases); n++) {
		struct statx st = { .stx_uid = 1,
				    .stx_gid = 2,
				    .stx_mode = (uint16_t)cases[n].mode,
				    .stx_rdev_major = 8,
				    .stx_rdev_minor = 17 };
		char out[FMT_OVERRIDE_MAX];

		assert_int_equal(fmt_override_encode(&st, cases[n].real, out),
				 strlen(cases[n].value));
		assert_string_equal(out, cases[n].value);
	}
}

static void test_the_longest_value_fits(void **state)
{
	struct statx st = { .stx_uid = UINT32_MAX,
			    .stx_gid = UINT32_MAX,
			    .stx_mode = S_IFBLK | 07777,
			    .stx_rdev_major = UINT32_MAX,
			    .stx_rdev_minor = UINT32_MAX };
	char out[FMT_OVERRIDE_MAX];

	size_t len = fmt_override_encode(&st, S_IFREG, out);

	assert_true(len < sizeof(out));
	assert_int_equal(strlen(out), len);
}

static void test_names_that_nobody_may_set(void **state)
{
	static const char *const reserved[] = {
		"user.containers.override_stat", "user.containers.override_security.capability",
		"user.containers.override_",     "user.fuseoverlayfs.override_stat",
		"user.fuseoverlayfs.opaque",     "security.fuseoverlayfs.override_stat",
	};
	static const char *const others[] = {
		"user.containers.override", "user.containers.x",   "user.containers",
		"user.fuseoverlayfs",       "security.capability", "trusted.overlay.opaque",
	};

	for (size_t n = 0; n < ARRAY_SIZE(reserved); n++)
		assert_true(fmt_override_reserved(reserved[n]));
	for (size_t n = 0; n < ARRAY_SIZE(others); n++)
		assert_false(fmt_override_reserved(others[n]));
}

static void test_xattrs_of_the_privileged_are_kept_under_other_names(void **state)
{
	static const char *const moved[] = {
		"security.capability",
		"security.selinux",
		"system.posix_acl_access",
		"system.posix_acl_default",
	};
	static const char *const stay[] = {
		"user.x",
		"trusted.x",
		"trusted.overlay.opaque",
		"security.fuseoverlayfs.override_stat",
		"system.nfs4_acl",
		"system.posix_acl_accessory",
	};
	char out[XATTR_NAME_MAX + 1];
	char name[XATTR_NAME_MAX + 1];

	for (size_t n = 0; n < ARRAY_SIZE(moved); n++) {
		assert_true(fmt_override_moves(moved[n]));
		assert_int_equal(fmt_override_moved(moved[n], out, sizeof(out)), 0);
		assert_string_equal(fmt_override_kept(out), moved[n]);
		assert_true(fmt_override_reserved(out));
	}
	for (size_t n = 0; n < ARRAY_SIZE(stay); n++) {
		assert_false(fmt_override_moves(stay[n]));
		assert_int_equal(fmt_override_moved(stay[n], out, sizeof(out)), 0);
		assert_null(fmt_override_kept(out));
	}
	assert_null(fmt_override_kept("user.containers.override_stat"));
	assert_null(fmt_override_kept("u"));

	memset(name, 'x', XATTR_NAME_MAX);
	memcpy(name, "security.", 9);
	name[XATTR_NAME_MAX] = '\0';
	assert_int_equal(fmt_override_moved(name, out, sizeof(out)), -ERANGE);
	name[XATTR_NAME_MAX - strlen("user.containers.override_")] = '\0';
	assert_int_equal(fmt_override_moved(name, out, sizeof(out)), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_values_of_others_are_understood),
		cmocka_unit_test(test_malformed_values_are_refused),
		cmocka_unit_test(test_a_value_that_holds_a_nul_is_refused),
		cmocka_unit_test(test_no_byte_behind_a_value_counts),
		cmocka_unit_test(test_only_a_regular_file_stands_for_something_else),
		cmocka_unit_test(test_a_type_is_written_where_it_is_not_the_real_one),
		cmocka_unit_test(test_the_longest_value_fits),
		cmocka_unit_test(test_names_that_nobody_may_set),
		cmocka_unit_test(test_xattrs_of_the_privileged_are_kept_under_other_names),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
