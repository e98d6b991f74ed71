/* SPDX-License-Identifier: MIT */
/* What goes over the wire: attributes, device numbers, timeouts, and what INIT agrees on. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <sys/sysmacros.h>

#include "fuse/init.h"
#include "server/server_private.h"

static void test_attributes_survive_the_wire(void **state)
{
	struct statx in = {
		.stx_mask = STATX_BASIC_STATS | STATX_BTIME,
		.stx_mode = S_IFCHR | 0640,
		.stx_ino = 0x123456789abcULL,
		.stx_size = 1ULL << 40,
		.stx_blocks = 77,
		.stx_nlink = 3,
		.stx_uid = 1000,
		.stx_gid = UINT32_MAX - 1,
		.stx_blksize = 65536,
		.stx_rdev_major = 300,
		.stx_rdev_minor = 70000,
		.stx_atime = { .tv_sec = -2, .tv_nsec = 500000000 },
		.stx_mtime = { .tv_sec = 1LL << 33, .tv_nsec = 999999999 },
		.stx_ctime = { .tv_sec = 1 },
		.stx_btime = { .tv_sec = -1000, .tv_nsec = 7 },
	};
	struct fuse_statx sx;
	struct fuse_attr attr;

	server_fill_attr(&attr, &in);
	assert_int_equal((int64_t)attr.atime, -2);
	assert_int_equal(attr.atimensec, 500000000);
	assert_int_equal(attr.mtime, 1LL << 33);
	assert_int_equal(attr.ino, in.stx_ino);
	assert_int_equal(attr.size, in.stx_size);
	assert_int_equal(attr.mode, in.stx_mode);
	assert_int_equal(attr.blksize, 65536);
	assert_int_equal(server_decode_dev(attr.rdev), makedev(300, 70000));

	server_fill_statx(&sx, &in);
	assert_int_equal(sx.mask, STATX_BASIC_STATS | STATX_BTIME);
	assert_int_equal(sx.btime.tv_sec, -1000);
	assert_int_equal(sx.btime.tv_nsec, 7);
	assert_int_equal(sx.rdev_major, 300);
	in.stx_mask = STATX_BASIC_STATS;
	server_fill_statx(&sx, &in);
	assert_int_equal(sx.mask, STATX_BASIC_STATS);
}

static void test_device_numbers_are_the_kernels(void **state)
{
	/* new_encode_dev() of include/linux/kdev_t.h */
	assert_int_equal(server_encode_dev(makedev(8, 1)), 0x801);
	assert_int_equal(server_encode_dev(makedev(0xfff, 0xfffff)), UINT32_MAX);
	assert_int_equal(server_encode_dev(makedev(1, 256)), 0x100100);
	assert_int_equal(server_decode_dev(0x100100), makedev(1, 256));
	assert_int_equal(server_decode_dev(UINT32_MAX), makedev(0xfff, 0xfffff));
}

static void test_timeouts(void **state)
{
	struct server server;

	server_set_timeout(&server, 1.5);
	assert_int_equal(server.valid, 1);
	assert_int_equal(server.valid_nsec, 500000000);
	assert_false(server.coherent);
	server_set_timeout(&server, -1);
	assert_true(server.coherent);
	server_set_timeout(&server, 1e300);
	assert_true(server.valid > 0);
}

static int negotiate(struct fuse_init_in *in, size_t size, uint64_t want, uint64_t forbid,
		     struct fuse_init_out *out, struct fuse_conn *conn)
{
	struct fuse_init_want w = {
		.flags = want, .forbid = forbid, .max_write = 1 << 20, .max_readahead = 1 << 20
	};

	return fuse_init_negotiate(&w, in, size, out, conn);
}

static void test_init_agrees_on_what_both_have(void **state)
{
	struct fuse_init_in in = { .major = 7,
				   .minor = 45,
				   .max_readahead = 131072,
				   .flags = FUSE_INIT_EXT | FUSE_BIG_WRITES | FUSE_POSIX_ACL,
				   .flags2 = (uint32_t)(FUSE_NO_EXPORT_SUPPORT >> 32) };
	uint64_t want = FUSE_BIG_WRITES | FUSE_DONT_MASK | FUSE_NO_EXPORT_SUPPORT;
	struct fuse_init_out out;
	struct fuse_conn conn;

	assert_int_equal(negotiate(&in, sizeof(in), want, 0, &out, &conn), 0);
	assert_int_equal(out.flags, FUSE_BIG_WRITES | FUSE_INIT_EXT);
	assert_int_equal(out.flags2, (uint32_t)(FUSE_NO_EXPORT_SUPPORT >> 32));
	assert_int_equal(out.max_write, 1 << 20);
	assert_int_equal(out.max_readahead, 131072);
	assert_int_equal(out.time_gran, 1);
	assert_int_equal(conn.flags, FUSE_BIG_WRITES | FUSE_INIT_EXT | FUSE_NO_EXPORT_SUPPORT);

	assert_int_equal(negotiate(&in, sizeof(in), want, FUSE_INIT_EXT, &out, &conn), 0);
	assert_int_equal(out.flags, FUSE_BIG_WRITES);
	assert_int_equal(out.flags2, 0);
	assert_int_equal(negotiate(&in, sizeof(in), want, UINT64_MAX, &out, &conn), 0);
	assert_int_equal(conn.flags, 0);
}

static void test_init_of_an_older_kernel(void **state)
{
	struct fuse_init_in in = {
		.major = 7, .minor = 31, .flags = FUSE_BIG_WRITES, .flags2 = UINT32_MAX
	};
	struct fuse_init_out out;
	struct fuse_conn conn;

	assert_int_equal(negotiate(&in, 16, UINT64_MAX, 0, &out, &conn), 0);
	assert_int_equal(conn.minor, 31);
	assert_int_equal(conn.flags, FUSE_BIG_WRITES);
	in.minor = 30;
	assert_int_equal(negotiate(&in, 16, UINT64_MAX, 0, &out, &conn), -EPROTO);
	in.major = 6;
	assert_int_equal(negotiate(&in, 16, UINT64_MAX, 0, &out, &conn), -EPROTO);
	assert_int_equal(negotiate(&in, 15, UINT64_MAX, 0, &out, &conn), -EINVAL);
}

static void test_init_of_a_newer_major_is_asked_again(void **state)
{
	struct fuse_init_in in = { .major = 8, .minor = 0 };
	struct fuse_init_out out;
	struct fuse_conn conn;

	assert_int_equal(negotiate(&in, sizeof(in), UINT64_MAX, 0, &out, &conn), 0);
	assert_int_equal(out.major, 7);
	assert_int_equal(conn.minor, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_attributes_survive_the_wire),
		cmocka_unit_test(test_device_numbers_are_the_kernels),
		cmocka_unit_test(test_timeouts),
		cmocka_unit_test(test_init_agrees_on_what_both_have),
		cmocka_unit_test(test_init_of_an_older_kernel),
		cmocka_unit_test(test_init_of_a_newer_major_is_asked_again),
	};

	return cmocka_run_group_tests_name("fuse wire", tests, NULL, NULL);
}
