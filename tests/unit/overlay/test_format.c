/* SPDX-License-Identifier: MIT */
/*
 * The on-disk format against what Linux 6.18.44 writes and accepts.
 *
 * The golden bytes were made so, for each filesystem given below with a lower and an upper on it:
 *
 *	mount -t overlay ov -o lowerdir=l,upperdir=u,workdir=w[,OPTIONS] m
 *	(changes below m, named at each value)
 *	umount m; getfattr -h -R -d -m - -e hex u w
 *
 * and the file handles beside them are those of name_to_handle_at(2) for the lower object. What the
 * kernel accepts and rejects was found by writing values into u with setfattr and looking through
 *m.
 */
#include "helpers.h"

#include <endian.h>
#include <linux/fs.h>
#include <linux/limits.h>

#include "overlay/format.h"

#define BYTES(...) ((const uint8_t[]){ __VA_ARGS__ })
/* What xattr values are made of: a pointer to the bytes and how many. */
#define VALUE(...) BYTES(__VA_ARGS__), sizeof(BYTES(__VA_ARGS__))

static void test_xattr_names_are_those_of_the_kernel(void **state)
{
	static const char *const words[FMT_XATTR_COUNT] = {
		[FMT_OPAQUE] = "opaque",     [FMT_REDIRECT] = "redirect",
		[FMT_ORIGIN] = "origin",     [FMT_IMPURE] = "impure",
		[FMT_NLINK] = "nlink",       [FMT_UPPER] = "upper",
		[FMT_UUID] = "uuid",         [FMT_METACOPY] = "metacopy",
		[FMT_PROTATTR] = "protattr", [FMT_WHITEOUT] = "whiteout",
	};

	for (int i = 0; i < FMT_XATTR_COUNT; i++) {
		char trusted[64];
		char user[64];

		snprintf(trusted, sizeof(trusted), "trusted.overlay.%s", words[i]);
		snprintf(user, sizeof(user), "user.overlay.%s", words[i]);
		assert_string_equal(fmt_xattr_name(false, i), trusted);
		assert_string_equal(fmt_xattr_name(true, i), user);
		assert_int_equal(fmt_xattr_of(false, trusted), i);
		assert_int_equal(fmt_xattr_of(true, user), i);
		/* The other prefix is nothing special. */
		assert_int_equal(fmt_xattr_of(true, trusted), -1);
		assert_int_equal(fmt_xattr_of(false, user), -1);
	}
}

static void test_other_names_are_no_private_xattrs(void **state)
{
	static const char *const names[] = {
		"",
		"trusted",
		"trusted.overlay",
		"trusted.overlay.",
		"trusted.overlay.opaqu",
		"trusted.overlay.opaquee",
		"trusted.overlay.OPAQUE",
		"trusted.overlay.overlay.opaque",
		"trusted.overlayopaque",
		"trusted.opaque",
		"security.capability",
		"system.posix_acl_access",
	};

	for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
		assert_int_equal(fmt_xattr_of(false, names[i]), -1);
		assert_int_equal(fmt_xattr_of(true, names[i]), -1);
	}
	assert_true(fmt_xattr_is_own(false, "trusted.overlay.anything"));
	assert_true(fmt_xattr_is_own(false, "trusted.overlay.overlay.opaque"));
	assert_false(fmt_xattr_is_own(false, "trusted.overlay"));
	assert_false(fmt_xattr_is_own(false, "trusted.overlayx"));
	assert_false(fmt_xattr_is_own(false, "user.overlay.opaque"));
	assert_true(fmt_xattr_is_own(true, "user.overlay.opaque"));
	assert_false(fmt_xattr_is_own(true, "trusted.overlay.opaque"));
}

#if __BYTE_ORDER == __LITTLE_ENDIAN /* as the machine was whose kernel made them */

struct golden_origin {
	const char *how;
	const uint8_t *value;
	size_t size;
	uint8_t type;
	const uint8_t *uuid;
	const uint8_t *fid;
	size_t fid_len;
	bool ours; /* what plyfs would write for that handle */
};

static const struct golden_origin origins[] = {
	{
		"tmpfs, default options: echo more >> m/plain",
		VALUE(0x00, 0xfb, 0x21, 0x00, 0x01, 0x31, 0x15, 0xd9, 0xed, 0xa9, 0x1a, 0x4f, 0xd4,
		      0x89, 0x3d, 0x31, 0x88, 0x76, 0xb2, 0xe8, 0x8f, 0x5a, 0x4c, 0xec, 0x57, 0x0c,
		      0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00),
		0x01,
		BYTES(0x31, 0x15, 0xd9, 0xed, 0xa9, 0x1a, 0x4f, 0xd4, 0x89, 0x3d, 0x31, 0x88, 0x76,
		      0xb2, 0xe8, 0x8f),
		VALUE(0x5a, 0x4c, 0xec, 0x57, 0x0c, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00),
		true,
	},
	{
		"tmpfs, default options: touch m/fifo, a fifo",
		VALUE(0x00, 0xfb, 0x21, 0x00, 0x01, 0x31, 0x15, 0xd9, 0xed, 0xa9, 0x1a, 0x4f, 0xd4,
		      0x89, 0x3d, 0x31, 0x88, 0x76, 0xb2, 0xe8, 0x8f, 0x7a, 0x8e, 0x3e, 0xb1, 0x0d,
		      0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00),
		0x01,
		BYTES(0x31, 0x15, 0xd9, 0xed, 0xa9, 0x1a, 0x4f, 0xd4, 0x89, 0x3d, 0x31, 0x88, 0x76,
		      0xb2, 0xe8, 0x8f),
		VALUE(0x7a, 0x8e, 0x3e, 0xb1, 0x0d, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00),
		true,
	},
	{
		"ext4, default options: echo more >> m/plain",
		VALUE(0x00, 0xfb, 0x1d, 0x00, 0x01, 0xcf, 0x2b, 0xd3, 0x54, 0xf1, 0x68, 0x4d, 0xdc,
		      0x8f, 0x45, 0x75, 0xcd, 0x3c, 0x34, 0x57, 0x15, 0x09, 0x00, 0x01, 0x00, 0xb7,
		      0x05, 0xaf, 0x2d),
		0x01,
		BYTES(0xcf, 0x2b, 0xd3, 0x54, 0xf1, 0x68, 0x4d, 0xdc, 0x8f, 0x45, 0x75, 0xcd, 0x3c,
		      0x34, 0x57, 0x15),
		VALUE(0x09, 0x00, 0x01, 0x00, 0xb7, 0x05, 0xaf, 0x2d),
		true,
	},
	{
		"ext4, redirect_dir=on,index=on,metacopy=on: mv m/d m/d2, a directory",
		VALUE(0x00, 0xfb, 0x1d, 0x00, 0x01, 0xcf, 0x2b, 0xd3, 0x54, 0xf1, 0x68, 0x4d, 0xdc,
		      0x8f, 0x45, 0x75, 0xcd, 0x3c, 0x34, 0x57, 0x15, 0x03, 0x00, 0x01, 0x00, 0x12,
		      0x30, 0x04, 0x19),
		0x01,
		BYTES(0xcf, 0x2b, 0xd3, 0x54, 0xf1, 0x68, 0x4d, 0xdc, 0x8f, 0x45, 0x75, 0xcd, 0x3c,
		      0x34, 0x57, 0x15),
		VALUE(0x03, 0x00, 0x01, 0x00, 0x12, 0x30, 0x04, 0x19),
		true,
	},
	{
		"ext4, userxattr: chmod 600 m/meta (user.overlay.origin)",
		VALUE(0x00, 0xfb, 0x1d, 0x00, 0x01, 0xcf, 0x2b, 0xd3, 0x54, 0xf1, 0x68, 0x4d, 0xdc,
		      0x8f, 0x45, 0x75, 0xcd, 0x3c, 0x34, 0x57, 0x15, 0x0e, 0x00, 0x01, 0x00, 0xa3,
		      0x51, 0x51, 0xf2),
		0x01,
		BYTES(0xcf, 0x2b, 0xd3, 0x54, 0xf1, 0x68, 0x4d, 0xdc, 0x8f, 0x45, 0x75, 0xcd, 0x3c,
		      0x34, 0x57, 0x15),
		VALUE(0x0e, 0x00, 0x01, 0x00, 0xa3, 0x51, 0x51, 0xf2),
		true,
	},
	{
		"ext4, uuid=off: echo more >> m/plain",
		VALUE(0x00, 0xfb, 0x1d, 0x00, 0x01, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
		      0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x09, 0x00, 0x01, 0x00, 0x4d,
		      0x16, 0x30, 0x3f),
		0x01,
		BYTES(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0),
		VALUE(0x09, 0x00, 0x01, 0x00, 0x4d, 0x16, 0x30, 0x3f),
		true,
	},
	{
		"xfs, default options: echo more >> m/plain",
		VALUE(0x00, 0xfb, 0x21, 0x00, 0x81, 0xf3, 0xae, 0x55, 0x42, 0x23, 0x25, 0x40, 0xff,
		      0x87, 0x9b, 0x3b, 0xec, 0xaf, 0x5e, 0x38, 0x9d, 0x87, 0x00, 0x00, 0x00, 0x00,
		      0x00, 0x00, 0x00, 0xe9, 0xa4, 0xa4, 0xf9),
		0x81,
		BYTES(0xf3, 0xae, 0x55, 0x42, 0x23, 0x25, 0x40, 0xff, 0x87, 0x9b, 0x3b, 0xec, 0xaf,
		      0x5e, 0x38, 0x9d),
		VALUE(0x87, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0xe9, 0xa4, 0xa4, 0xf9),
		true,
	},
	{
		"btrfs, default options: echo more >> m/plain",
		VALUE(0x00, 0xfb, 0x29, 0x00, 0x4d, 0xa9, 0x96, 0xf9, 0x38, 0x39, 0xe0, 0x4f, 0x4f,
		      0x80, 0xfd, 0x4c, 0x0c, 0x0b, 0xad, 0x19, 0x17, 0x0b, 0x01, 0x00, 0x00, 0x00,
		      0x00, 0x00, 0x00, 0x05, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x08, 0x00,
		      0x00, 0x00),
		0x4d,
		BYTES(0xa9, 0x96, 0xf9, 0x38, 0x39, 0xe0, 0x4f, 0x4f, 0x80, 0xfd, 0x4c, 0x0c, 0x0b,
		      0xad, 0x19, 0x17),
		VALUE(0x0b, 0x01, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x05, 0x00, 0x00, 0x00, 0x00,
		      0x00, 0x00, 0x00, 0x08, 0x00, 0x00, 0x00),
		true,
	},
	{
		"tmpfs, index=on: trusted.overlay.upper of w/index, a handle in upper",
		VALUE(0x00, 0xfb, 0x21, 0x04, 0x01, 0x31, 0x15, 0xd9, 0xed, 0xa9, 0x1a, 0x4f, 0xd4,
		      0x89, 0x3d, 0x31, 0x88, 0x76, 0xb2, 0xe8, 0x8f, 0xcf, 0xf6, 0x37, 0x0e, 0x2e,
		      0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00),
		0x01,
		BYTES(0x31, 0x15, 0xd9, 0xed, 0xa9, 0x1a, 0x4f, 0xd4, 0x89, 0x3d, 0x31, 0x88, 0x76,
		      0xb2, 0xe8, 0x8f),
		VALUE(0xcf, 0xf6, 0x37, 0x0e, 0x2e, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00),
		false,
	},
};

static void test_origins_of_the_kernel_are_understood(void **state)
{
	for (size_t i = 0; i < ARRAY_SIZE(origins); i++) {
		const struct golden_origin *g = &origins[i];
		struct fmt_fh fh;

		assert_same(g->how, fmt_fh_decode(g->value, g->size, &fh), 0);
		assert_same(g->how, fh.type, g->type);
		assert_memory_equal(fh.uuid, g->uuid, 16);
		assert_same(g->how, fh.fid_len, g->fid_len);
		assert_memory_equal(fh.fid, g->fid, g->fid_len);
	}
}

static void test_origins_are_written_as_the_kernel_does(void **state)
{
	for (size_t i = 0; i < ARRAY_SIZE(origins); i++) {
		const struct golden_origin *g = &origins[i];
		struct fmt_fh fh = { .type = g->type, .fid_len = (uint8_t)g->fid_len };
		uint8_t out[FMT_FH_MAX];

		if (!g->ours)
			continue;
		memcpy(fh.uuid, g->uuid, 16);
		memcpy(fh.fid, g->fid, g->fid_len);
		assert_same(g->how, fmt_fh_encode(&fh, out), g->size);
		assert_memory_equal(out, g->value, g->size);
	}
}

#endif

/* Decodes a copy that ends where its memory does, so that a sanitizer sees a byte too much read. */
static int decode(const uint8_t *value, size_t size, struct fmt_fh *fh)
{
	autofree uint8_t *copy = malloc(size ? size : 1);

	assert_non_null(copy);
	memcpy(copy, value, size);
	return fmt_fh_decode(copy, size, fh);
}

/* A well-formed origin of this machine's byte order. Returns its length. */
static size_t sample(uint8_t out[FMT_FH_MAX], size_t fid_len)
{
	struct fmt_fh fh = { .type = 1, .fid_len = (uint8_t)fid_len };
	ssize_t n;

	memset(fh.uuid, 0xa5, sizeof(fh.uuid));
	for (size_t i = 0; i < fid_len; i++)
		fh.fid[i] = (uint8_t)(i + 1);
	n = fmt_fh_encode(&fh, out);
	assert_int_equal(n, FMT_FH_HEADER + fid_len);
	return (size_t)n;
}

/* Written where the lower's handles cannot be decoded, as in `unshare -Urm` with userxattr. */
static void test_an_empty_origin_is_unknown(void **state)
{
	struct fmt_fh fh;

	assert_int_equal(fmt_fh_decode("", 0, &fh), -ENODATA);
}

static void test_a_truncated_origin_is_malformed(void **state)
{
	uint8_t value[FMT_FH_MAX];
	size_t size = sample(value, 12);
	struct fmt_fh fh;

	for (size_t n = 1; n < size; n++)
		assert_int_equal(decode(value, n, &fh), -EINVAL);
	assert_int_equal(decode(value, size, &fh), 0);
}

static void test_bytes_after_an_origin_are_ignored_as_the_kernel_does(void **state)
{
	uint8_t value[FMT_FH_MAX + 8] = { 0 };
	size_t size = sample(value, 12);
	struct fmt_fh fh;

	assert_int_equal(decode(value, size + 8, &fh), 0);
	assert_int_equal(fh.fid_len, 12);
}

static void test_an_origin_whose_length_is_less_than_its_header_is_stale(void **state)
{
	uint8_t value[FMT_FH_MAX];
	size_t size = sample(value, 12);
	struct fmt_fh fh;

	for (unsigned int len = 0; len < FMT_FH_HEADER; len++) {
		value[2] = (uint8_t)len;
		assert_int_equal(decode(value, size, &fh), -ESTALE);
	}
	value[2] = FMT_FH_HEADER;
	assert_int_equal(decode(value, size, &fh), 0);
	assert_int_equal(fh.fid_len, 0);
}

static void test_an_origin_with_another_magic_is_malformed(void **state)
{
	uint8_t value[FMT_FH_MAX];
	size_t size = sample(value, 12);
	struct fmt_fh fh;

	for (unsigned int magic = 0; magic < 256; magic++) {
		value[1] = (uint8_t)magic;
		assert_int_equal(decode(value, size, &fh), magic == 0xfb ? 0 : -EINVAL);
	}
	/* also when the version is one that we do not know */
	value[0] = 1;
	value[1] = 0xfa;
	assert_int_equal(decode(value, size, &fh), -EINVAL);
}

static void test_an_origin_of_a_newer_version_is_unknown(void **state)
{
	uint8_t value[FMT_FH_MAX];
	size_t size = sample(value, 12);
	struct fmt_fh fh;

	for (unsigned int version = 1; version < 256; version++) {
		value[0] = (uint8_t)version;
		assert_int_equal(decode(value, size, &fh), -ENODATA);
	}
}

static void test_flags_of_an_origin(void **state)
{
	const uint8_t big = 1 << 0;
	const uint8_t any = 1 << 1;
	const uint8_t path_upper = 1 << 2;
	const uint8_t ours = __BYTE_ORDER == __BIG_ENDIAN ? big : 0;
	uint8_t value[FMT_FH_MAX];
	size_t size = sample(value, 12);
	struct fmt_fh fh;

	assert_int_equal(value[3], ours);
	for (unsigned int flags = 0; flags < 256; flags++) {
		bool known = !(flags & ~(unsigned int)(big | any | path_upper));
		bool readable = (flags & any) || (flags & big) == ours;

		value[3] = (uint8_t)flags;
		assert_int_equal(decode(value, size, &fh), known && readable ? 0 : -ENODATA);
	}
}

static void test_the_longest_handle_goes_through_and_a_longer_one_is_unknown(void **state)
{
	uint8_t value[FMT_FH_MAX] = { 0 };
	size_t size = sample(value, 128);
	struct fmt_fh fh;

	assert_int_equal(decode(value, size, &fh), 0);
	assert_int_equal(fh.fid_len, 128);
	assert_int_equal(fh.fid[0], 1);
	assert_int_equal(fh.fid[127], 128);
	for (unsigned int len = (unsigned int)size + 1; len <= FMT_FH_MAX; len++) {
		value[2] = (uint8_t)len;
		assert_int_equal(decode(value, len, &fh), -ENODATA);
	}
}

static void test_a_handle_that_does_not_fit_is_not_encoded(void **state)
{
	uint8_t out[FMT_FH_MAX];
	struct fmt_fh fh = { .type = 1 };

	for (unsigned int len = 129; len < 256; len++) {
		fh.fid_len = (uint8_t)len;
		assert_int_equal(fmt_fh_encode(&fh, out), -EOVERFLOW);
	}
	fh.fid_len = 0;
	assert_int_equal(fmt_fh_encode(&fh, out), FMT_FH_HEADER);
}

/* rm -r m/rm; mkdir m/rm: "y". Found by trying: all but one byte means nothing. */
static void test_opaque(void **state)
{
	assert_int_equal(fmt_opaque_value("y", 1), FMT_IS_OPAQUE);
	assert_int_equal(fmt_opaque_value("x", 1), FMT_XWHITEOUTS);
	assert_int_equal(fmt_opaque_value("", 0), FMT_NOT_OPAQUE);
	assert_int_equal(fmt_opaque_value("yy", 2), FMT_NOT_OPAQUE);
	assert_int_equal(fmt_opaque_value("y\0", 2), FMT_NOT_OPAQUE);
	for (int c = 0; c < 256; c++) {
		char value = (char)c;

		if (c != 'y' && c != 'x')
			assert_int_equal(fmt_opaque_value(&value, 1), FMT_NOT_OPAQUE);
	}
	/* what getxattr(2) left of an error */
	assert_int_equal(fmt_opaque_value("y", -ENODATA), FMT_NOT_OPAQUE);
	assert_int_equal(fmt_opaque_value("y", -ERANGE), FMT_NOT_OPAQUE);
}

static int redirect_check(const char *value, size_t size)
{
	autofree char *copy = malloc(size ? size : 1);

	assert_non_null(copy);
	memcpy(copy, value, size);
	return fmt_redirect_check(copy, size);
}

static void test_redirects_that_the_kernel_follows(void **state)
{
	static const char *const good[] = {
		"d",     /* redirect_dir=on: mv m/d m/d2 */
		"/deep", /* redirect_dir=on: mkdir m/new; mv m/deep m/new/deep */
		"/a/b/c", "/a", "...", "#1", " ", "\n", "\xff\xfe", "..d", "/...",
	};
	char long_name[4096];

	for (size_t i = 0; i < ARRAY_SIZE(good); i++)
		assert_same(good[i], redirect_check(good[i], strlen(good[i])), 0);
	/* redirect_max binds who writes, not who reads */
	memset(long_name, 'n', sizeof(long_name));
	assert_int_equal(redirect_check(long_name, 255), 0);
	assert_int_equal(redirect_check(long_name, sizeof(long_name)), 0);
	for (size_t i = 0; i < sizeof(long_name); i += 2)
		long_name[i] = '/';
	assert_int_equal(redirect_check(long_name, sizeof(long_name)), 0);
}

static void test_redirects_that_the_kernel_rejects(void **state)
{
	static const char *const bad[] = {
		"",    "/",   "//",   "///",   "d/",    "a/b",   "a/b/", "./d",  "d//",
		"/d/", "//d", "/d//", "/a//b", "//a/b", "/a/b/", "a//b", "../d",
	};

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		assert_same(bad[i], redirect_check(bad[i], strlen(bad[i])), -EINVAL);
}

/* The kernel handles the value as a C string: what follows a NUL is as if it were not there. */
static void test_a_redirect_ends_at_its_first_nul_as_for_the_kernel(void **state)
{
	assert_int_equal(redirect_check("d\0", 2), 0);
	assert_int_equal(redirect_check("d\0/", 3), 0);
	assert_int_equal(redirect_check("/d\0", 3), 0);
	assert_int_equal(redirect_check("/d\0//", 5), 0);
	assert_int_equal(redirect_check("/\0", 2), -EINVAL);
	assert_int_equal(redirect_check("d/\0", 3), -EINVAL);
}

static void test_metacopy(void **state)
{
	struct fmt_metacopy m;
	uint8_t v[80] = { 0 };
	uint8_t out[FMT_METACOPY_MAX];

	/* metacopy=on: chmod 600 m/meta leaves it empty */
	assert_int_equal(fmt_metacopy_decode("", 0, &m), 0);
	assert_int_equal(m.digest_size, 0);
	assert_int_equal(fmt_metacopy_encode(&m, out), 0);
	for (size_t size = 1; size < 4; size++) {
		v[1] = (uint8_t)size;
		assert_int_equal(fmt_metacopy_decode(v, size, &m), -EIO);
	}
	/* {version 0, length, flags, digest algorithm, digest}, for example of sha256 and sha512 */
	for (size_t size = 4; size <= 68; size++) {
		memset(v + 4, (int)size, sizeof(v) - 4);
		v[1] = (uint8_t)size;
		v[3] = 2;
		assert_int_equal(fmt_metacopy_decode(v, size, &m), 0);
		assert_int_equal(m.digest_size, size - 4);
		assert_int_equal(m.algorithm, 2);
		assert_memory_equal(m.digest, v + 4, size - 4);
		/* a header alone says no more than nothing */
		assert_int_equal(fmt_metacopy_encode(&m, out), size == 4 ? 0 : size);
		if (size > 4)
			assert_memory_equal(out, v, size);
	}
	v[1] = 36;
	v[2] = 0xff; /* flags and algorithms are nobody's business */
	v[3] = 9;
	assert_int_equal(fmt_metacopy_decode(v, 36, &m), 0);
	assert_int_equal(m.algorithm, 9);
	assert_int_equal(fmt_metacopy_decode(v, 35, &m), -EIO);
	assert_int_equal(fmt_metacopy_decode(v, 37, &m), -EIO);
	v[0] = 1;
	assert_int_equal(fmt_metacopy_decode(v, 36, &m), -EIO);
	v[0] = 0;
	v[1] = 69;
	assert_int_equal(fmt_metacopy_decode(v, 69, &m), -EIO);
}

/* chattr +a, +i and +ai below m wrote "a", "i" and "ai"; the rest is what lsattr showed. */
static void test_protattr(void **state)
{
	static const struct {
		const char *value;
		unsigned int flags;
	} known[] = {
		{ "a", FS_APPEND_FL },
		{ "i", FS_IMMUTABLE_FL },
		{ "ai", FS_APPEND_FL | FS_IMMUTABLE_FL },
		{ "ia", FS_APPEND_FL | FS_IMMUTABLE_FL },
		{ "aa", FS_APPEND_FL },
		{ "ii", FS_IMMUTABLE_FL },
		{ "", 0 },
		{ "x", 0 },
		{ "ax", 0 },
		{ "xa", 0 },
		{ "aix", 0 },
		{ "A", 0 },
	};
	char out[2];

	for (size_t i = 0; i < ARRAY_SIZE(known); i++)
		assert_same(known[i].value,
			    fmt_protattr_decode(known[i].value, (ssize_t)strlen(known[i].value)),
			    known[i].flags);
	assert_int_equal(fmt_protattr_decode("a\0", 2), 0);
	assert_int_equal(fmt_protattr_decode("a", -ERANGE), 0);

	assert_int_equal(fmt_protattr_encode(FS_APPEND_FL, out), 1);
	assert_memory_equal(out, "a", 1);
	assert_int_equal(fmt_protattr_encode(FS_IMMUTABLE_FL, out), 1);
	assert_memory_equal(out, "i", 1);
	assert_int_equal(fmt_protattr_encode(FS_IMMUTABLE_FL | FS_APPEND_FL | FS_NODUMP_FL, out),
			 2);
	assert_memory_equal(out, "ai", 2);
	assert_int_equal(fmt_protattr_encode(0, out), 0);
	assert_int_equal(fmt_protattr_encode(~(unsigned int)(FS_IMMUTABLE_FL | FS_APPEND_FL), out),
			 0);
}

static void test_only_a_character_device_0_0_is_a_whiteout(void **state)
{
	static const struct {
		mode_t mode;
		unsigned int major;
		unsigned int minor;
		bool whiteout;
	} objects[] = {
		{ S_IFCHR, 0, 0, true }, /* rm m/f2: c---------, 0:0 */
		{ S_IFCHR | 0644, 0, 0, true }, { S_IFCHR | 07777, 0, 0, true },
		{ S_IFCHR, 0, 1, false },       { S_IFCHR, 1, 0, false },
		{ S_IFCHR, 1, 3, false },       { S_IFBLK, 0, 0, false },
		{ S_IFREG, 0, 0, false },       { S_IFDIR, 0, 0, false },
		{ S_IFIFO, 0, 0, false },       { S_IFLNK, 0, 0, false },
		{ S_IFSOCK, 0, 0, false },
	};

	for (size_t i = 0; i < ARRAY_SIZE(objects); i++) {
		char what[32];
		struct statx st = { .stx_mode = (uint16_t)objects[i].mode,
				    .stx_rdev_major = objects[i].major,
				    .stx_rdev_minor = objects[i].minor };

		snprintf(what, sizeof(what), "%o %u:%u", objects[i].mode, objects[i].major,
			 objects[i].minor);
		assert_same(what, fmt_is_whiteout(&st), objects[i].whiteout);
	}
}

/* setfattr -n NAME -v 1 m/new on one side, getfattr of u/new and m/new on the other. */
static void test_names_are_escaped_as_the_kernel_does(void **state)
{
	static const struct {
		bool userxattr;
		const char *name;
		const char *stored;
	} names[] = {
		{ false, "trusted.overlay.foo", "trusted.overlay.overlay.foo" },
		{ false, "trusted.overlay.opaque", "trusted.overlay.overlay.opaque" },
		{ false, "trusted.overlay.overlay", "trusted.overlay.overlay.overlay" },
		{ false, "trusted.overlay.overlay.", "trusted.overlay.overlay.overlay." },
		{ false, "trusted.overlay.overlay.foo", "trusted.overlay.overlay.overlay.foo" },
		{ false, "trusted.overlay", "trusted.overlay" },
		{ false, "trusted.overlayx", "trusted.overlayx" },
		{ false, "user.overlay.foo", "user.overlay.foo" },
		{ false, "user.overlay.opaque", "user.overlay.opaque" },
		{ false, "security.capability", "security.capability" },
		{ true, "user.overlay.foo", "user.overlay.overlay.foo" },
		{ true, "user.overlay.overlay.foo", "user.overlay.overlay.overlay.foo" },
		{ true, "user.overlay", "user.overlay" },
		{ true, "trusted.overlay.foo", "trusted.overlay.foo" },
		{ true, "trusted.overlay.opaque", "trusted.overlay.opaque" },
	};
	char out[XATTR_NAME_MAX + 1];

	for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
		bool user = names[i].userxattr;

		assert_same(names[i].name, fmt_xattr_escape(user, names[i].name, out, sizeof(out)),
			    0);
		assert_string_equal(out, names[i].stored);
		assert_same(names[i].stored,
			    fmt_xattr_unescape(user, names[i].stored, out, sizeof(out)), 0);
		assert_string_equal(out, names[i].name);
	}
}

/* setfattr -n trusted.overlay. m/new: Invalid argument */
static void test_the_bare_prefix_is_no_name(void **state)
{
	char out[XATTR_NAME_MAX + 1];

	assert_int_equal(fmt_xattr_escape(false, "trusted.overlay.", out, sizeof(out)), -EINVAL);
	assert_int_equal(fmt_xattr_escape(true, "user.overlay.", out, sizeof(out)), -EINVAL);
	/* of the other namespace it is for the filesystem below to say */
	assert_int_equal(fmt_xattr_escape(true, "trusted.overlay.", out, sizeof(out)), 0);
	assert_int_equal(fmt_xattr_escape(false, "user.overlay.", out, sizeof(out)), 0);
}

static void test_private_names_are_hidden(void **state)
{
	static const char *const hidden[] = {
		"trusted.overlay.",        "trusted.overlay.opaque",  "trusted.overlay.origin",
		"trusted.overlay.unknown", "trusted.overlay.overlay", "trusted.overlay.overlayx",
	};
	char out[XATTR_NAME_MAX + 1];

	for (size_t i = 0; i < ARRAY_SIZE(hidden); i++) {
		assert_same(hidden[i], fmt_xattr_unescape(false, hidden[i], out, sizeof(out)),
			    -ENODATA);
		assert_same(hidden[i], fmt_xattr_unescape(true, hidden[i], out, sizeof(out)), 0);
		assert_string_equal(out, hidden[i]);
	}
	assert_int_equal(fmt_xattr_unescape(true, "user.overlay.origin", out, sizeof(out)),
			 -ENODATA);
	assert_int_equal(fmt_xattr_unescape(false, "user.overlay.origin", out, sizeof(out)), 0);
}

/* As if each level were a mount on the one below. */
static void check_nesting(bool userxattr, const char *name)
{
	char levels[64][XATTR_NAME_MAX + 1];
	char out[XATTR_NAME_MAX + 1];
	unsigned int n = 0;

	snprintf(levels[0], sizeof(levels[0]), "%s", name);
	while (fmt_xattr_escape(userxattr, levels[n], levels[n + 1], sizeof(levels[0])) == 0) {
		n++;
		assert_true(n + 1 < ARRAY_SIZE(levels));
		assert_int_equal(strlen(levels[n]), strlen(name) + n * strlen("overlay."));
	}
	assert_true(strlen(levels[n]) + strlen("overlay.") > XATTR_NAME_MAX);
	assert_true(n >= 28);
	while (n > 0) {
		assert_int_equal(fmt_xattr_unescape(userxattr, levels[n], out, sizeof(out)), 0);
		n--;
		assert_string_equal(out, levels[n]);
	}
	assert_int_equal(fmt_xattr_unescape(userxattr, levels[0], out, sizeof(out)), -ENODATA);
}

static void test_every_level_of_nesting_takes_off_one_escape(void **state)
{
	check_nesting(false, "trusted.overlay.opaque");
	check_nesting(true, "user.overlay.opaque");
}

/* A name of 247 bytes was stored by the kernel in 255, one of 248 gave EOPNOTSUPP. */
static void test_escaping_stops_at_the_longest_name(void **state)
{
	char name[XATTR_NAME_MAX + 2] = "trusted.overlay.";
	char out[XATTR_NAME_MAX + 2];
	char exact[XATTR_NAME_MAX + 1];
	size_t len = strlen(name);

	memset(name + len, 'a', sizeof(name) - 1 - len);
	name[247] = '\0';
	assert_int_equal(fmt_xattr_escape(false, name, exact, sizeof(exact)), 0);
	assert_int_equal(strlen(exact), XATTR_NAME_MAX);
	assert_int_equal(fmt_xattr_escape(false, name, out, 255), -EOPNOTSUPP);
	assert_int_equal(fmt_xattr_unescape(false, exact, out, 248), 0);
	assert_string_equal(out, name);
	assert_int_equal(fmt_xattr_unescape(false, exact, out, 247), -ENODATA);
	name[247] = 'a';
	name[248] = '\0';
	assert_int_equal(fmt_xattr_escape(false, name, out, sizeof(out)), -EOPNOTSUPP);
	name[248] = 'a';

	/* Other names are as long as they may be. */
	memcpy(name, "user.", 5);
	name[255] = '\0';
	assert_int_equal(fmt_xattr_escape(false, name, exact, sizeof(exact)), 0);
	assert_string_equal(exact, name);
	name[255] = 'a';
	name[256] = '\0';
	assert_int_equal(fmt_xattr_escape(false, name, out, sizeof(out)), -EOPNOTSUPP);
	assert_int_equal(fmt_xattr_escape(false, "user.x", out, 0), -EOPNOTSUPP);
}

/* w/work/#37219 and the like */
static void test_temporary_names_are_like_the_kernels(void **state)
{
	char out[FMT_TEMP_NAME_MAX];

	fmt_temp_name(0x37219, out);
	assert_string_equal(out, "#37219");
	fmt_temp_name(0xabcdef, out);
	assert_string_equal(out, "#abcdef");
	fmt_temp_name(0, out);
	assert_string_equal(out, "#0");
	fmt_temp_name(UINT64_MAX, out);
	assert_string_equal(out, "#ffffffffffffffff");
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_xattr_names_are_those_of_the_kernel),
		cmocka_unit_test(test_other_names_are_no_private_xattrs),
#if __BYTE_ORDER == __LITTLE_ENDIAN
		cmocka_unit_test(test_origins_of_the_kernel_are_understood),
		cmocka_unit_test(test_origins_are_written_as_the_kernel_does),
#endif
		cmocka_unit_test(test_an_empty_origin_is_unknown),
		cmocka_unit_test(test_a_truncated_origin_is_malformed),
		cmocka_unit_test(test_bytes_after_an_origin_are_ignored_as_the_kernel_does),
		cmocka_unit_test(test_an_origin_whose_length_is_less_than_its_header_is_stale),
		cmocka_unit_test(test_an_origin_with_another_magic_is_malformed),
		cmocka_unit_test(test_an_origin_of_a_newer_version_is_unknown),
		cmocka_unit_test(test_flags_of_an_origin),
		cmocka_unit_test(test_the_longest_handle_goes_through_and_a_longer_one_is_unknown),
		cmocka_unit_test(test_a_handle_that_does_not_fit_is_not_encoded),
		cmocka_unit_test(test_opaque),
		cmocka_unit_test(test_redirects_that_the_kernel_follows),
		cmocka_unit_test(test_redirects_that_the_kernel_rejects),
		cmocka_unit_test(test_a_redirect_ends_at_its_first_nul_as_for_the_kernel),
		cmocka_unit_test(test_metacopy),
		cmocka_unit_test(test_protattr),
		cmocka_unit_test(test_only_a_character_device_0_0_is_a_whiteout),
		cmocka_unit_test(test_names_are_escaped_as_the_kernel_does),
		cmocka_unit_test(test_the_bare_prefix_is_no_name),
		cmocka_unit_test(test_private_names_are_hidden),
		cmocka_unit_test(test_every_level_of_nesting_takes_off_one_escape),
		cmocka_unit_test(test_escaping_stops_at_the_longest_name),
		cmocka_unit_test(test_temporary_names_are_like_the_kernels),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
