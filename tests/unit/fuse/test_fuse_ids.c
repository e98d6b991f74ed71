/* SPDX-License-Identifier: MIT */
/* Ids inside of xattrs, modes in place of ACLs, and short numbers of inodes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "server/ids.h"
#include "util/base.h"

struct acl_entry {
	uint16_t tag;
	uint16_t perm;
	uint32_t id;
};

struct acl {
	uint32_t version;
	struct acl_entry entries[8];
};

enum { USER_OBJ = 1, USER = 2, GROUP_OBJ = 4, GROUP = 8, MASK = 16, OTHER = 32 };

#define ACL_SIZE(count) (4 + (count) * sizeof(struct acl_entry))

static struct id_map shift(void)
{
	struct id_map m = { 0 };

	assert_int_equal(id_map_parse(&m, "0:100000:65536"), 0);
	return m;
}

static void test_kinds(void **state)
{
	assert_int_equal(ids_xattr_kind("system.posix_acl_access"), IDS_XATTR_ACL);
	assert_int_equal(ids_xattr_kind("system.posix_acl_default"), IDS_XATTR_ACL);
	assert_int_equal(ids_xattr_kind("security.capability"), IDS_XATTR_CAPABILITY);
	assert_int_equal(ids_xattr_kind("security.capability2"), IDS_XATTR_PLAIN);
	assert_int_equal(ids_xattr_kind("system."), IDS_XATTR_PLAIN);
	assert_int_equal(ids_xattr_kind("user.a"), IDS_XATTR_PLAIN);
	assert_int_equal(ids_xattr_kind(""), IDS_XATTR_PLAIN);
}

static void test_acls(void **state)
{
	struct id_map uids = shift();
	struct acl acl = { .version = 2,
			   .entries = { { USER_OBJ, 7, ID_NONE },
					{ USER, 6, 5 },
					{ USER, 4, 70000 },
					{ GROUP_OBJ, 4, 3 },
					{ GROUP, 4, 5 },
					{ GROUP, 4, ID_NONE },
					{ MASK, 7, ID_NONE },
					{ OTHER, 0, ID_NONE } } };
	size_t size = ids_show_acl(&uids, NULL, &acl, sizeof(acl));

	assert_int_equal(size, ACL_SIZE(6));
	assert_int_equal(acl.entries[1].id, 100005);
	assert_int_equal(acl.entries[1].perm, 6);
	/* what names nobody stays as it is, whatever its number */
	assert_int_equal(acl.entries[2].tag, GROUP_OBJ);
	assert_int_equal(acl.entries[2].id, 3);
	assert_int_equal(acl.entries[3].tag, GROUP);
	assert_int_equal(acl.entries[3].id, 5);
	assert_int_equal(acl.entries[4].tag, MASK);
	assert_int_equal(acl.entries[5].tag, OTHER);
	assert_int_equal(ids_store_acl(&uids, NULL, &acl, size), 0);
	assert_int_equal(acl.entries[1].id, 5);
	/* 5 is not shown */
	assert_int_equal(ids_store_acl(&uids, NULL, &acl, size), -EINVAL);
	assert_int_equal(ids_store_acl(NULL, &uids, &acl, size), -EINVAL);
	id_map_free(&uids);
}

static void test_what_is_no_acl_is_left_alone(void **state)
{
	struct id_map uids = shift();
	struct acl acl = { .version = 1, .entries = { { USER, 6, 70000 } } };

	assert_int_equal(ids_show_acl(&uids, &uids, &acl, ACL_SIZE(1)), ACL_SIZE(1));
	assert_int_equal(ids_store_acl(&uids, &uids, &acl, ACL_SIZE(1)), 0);
	acl.version = 2;
	for (size_t size = 0; size < ACL_SIZE(1); size++) {
		void *exact = malloc(size + 1);

		assert_non_null(exact);
		memcpy(exact, &acl, size);
		assert_int_equal(ids_show_acl(&uids, &uids, exact, size), size);
		assert_int_equal(ids_store_acl(&uids, &uids, exact, size), 0);
		assert_memory_equal(exact, &acl, size);
		free(exact);
	}
	assert_int_equal(acl.entries[0].id, 70000);
	id_map_free(&uids);
}

static const uint32_t v1[] = { 0x01000001, 1 << 13, 2 };
static const uint32_t v2[] = { 0x02000001, 1 << 13, 2, 3, 4 };
static const uint32_t v3[] = { 0x03000001, 1 << 13, 2, 3, 4, 0 };

static void test_capabilities_of_the_layers_root(void **state)
{
	struct id_map uids = shift();
	uint32_t cap[6];

	memcpy(cap, v2, sizeof(v2));
	assert_int_equal(ids_show_capability(NULL, cap, sizeof(v2)), sizeof(v2));
	assert_int_equal(ids_show_capability(&uids, cap, sizeof(v2)), sizeof(v3));
	assert_int_equal(cap[0], 0x03000001);
	assert_memory_equal(cap + 1, v2 + 1, 16);
	assert_int_equal(cap[5], 100000);
	assert_int_equal(ids_store_capability(&uids, cap, sizeof(v3)), sizeof(v2));
	assert_memory_equal(cap, v2, sizeof(v2));

	memcpy(cap, v1, sizeof(v1));
	assert_int_equal(ids_show_capability(&uids, cap, sizeof(v1)), sizeof(v3));
	assert_int_equal(cap[0], 0x03000001);
	assert_int_equal(cap[1], 1 << 13);
	assert_int_equal(cap[2], 2);
	assert_int_equal(cap[3] | cap[4], 0);
	assert_int_equal(cap[5], 100000);

	/* the root of the machine has no number in the layers */
	memcpy(cap, v2, sizeof(v2));
	assert_int_equal(ids_store_capability(&uids, cap, sizeof(v2)), -EINVAL);
	id_map_free(&uids);
}

static void test_capabilities_of_other_roots(void **state)
{
	struct id_map uids = shift();
	uint32_t cap[6];

	memcpy(cap, v3, sizeof(v3));
	cap[5] = 7;
	assert_int_equal(ids_show_capability(&uids, cap, sizeof(v3)), sizeof(v3));
	assert_int_equal(cap[5], 100007);
	assert_int_equal(ids_store_capability(&uids, cap, sizeof(v3)), sizeof(v3));
	assert_int_equal(cap[5], 7);
	/* nobody here: never the machine's root */
	cap[5] = 70000;
	assert_int_equal(ids_show_capability(&uids, cap, sizeof(v3)), sizeof(v3));
	assert_int_equal(cap[0], 0x03000001);
	assert_int_equal(cap[5], ID_NONE);
	id_map_free(&uids);

	uids = (struct id_map){ .squash = true };
	cap[5] = 7;
	assert_int_equal(ids_show_capability(&uids, cap, sizeof(v3)), sizeof(v3));
	assert_int_equal(cap[5], 7);
	uids.squash_to = 1000;
	cap[5] = 0;
	assert_int_equal(ids_show_capability(&uids, cap, sizeof(v3)), sizeof(v3));
	assert_int_equal(cap[5], 1000);
}

static void test_what_is_no_capability_is_left_alone(void **state)
{
	struct id_map uids = shift();
	uint32_t cap[6];

	for (size_t size = 0; size <= sizeof(v3); size++) {
		memcpy(cap, v2, sizeof(v2));
		cap[5] = 0;
		if (size == sizeof(v2))
			continue;
		assert_int_equal(ids_show_capability(&uids, cap, size), size);
		assert_int_equal(ids_store_capability(&uids, cap, size), size);
		assert_memory_equal(cap, v2, sizeof(v2));
	}
	id_map_free(&uids);
}

static mode_t mode_for(mode_t mode, struct acl_entry extra, uint16_t group_obj)
{
	struct acl acl = { .version = 2,
			   .entries = { { USER_OBJ, 7, 0 },
					{ GROUP_OBJ, group_obj, 0 },
					{ MASK, (mode >> 3) & 7, 0 },
					{ OTHER, mode & 7, 0 },
					extra } };

	return ids_mode_for_acl(mode, &acl, ACL_SIZE(5));
}

static void test_a_mode_gives_no_more_than_the_acl(void **state)
{
	char junk[3] = { 2 };

	assert_int_equal(mode_for(0100664, (struct acl_entry){ USER, 6, 5 }, 6), 0100664);
	assert_int_equal(mode_for(0100674, (struct acl_entry){ USER, 7, 5 }, 0), 0100604);
	/* 5 may be in the group, and is one of the others if not */
	assert_int_equal(mode_for(0100664, (struct acl_entry){ USER, 0, 5 }, 6), 0100600);
	assert_int_equal(mode_for(0104755, (struct acl_entry){ GROUP, 1, 5 }, 5), 0104751);
	assert_int_equal(ids_mode_for_acl(0100755, junk, sizeof(junk)), 0100700);
}

static void test_numbers_of_inodes(void **state)
{
	uint64_t big = UINT64_C(1) << 32;

	assert_int_equal(server_fold_ino(1), 1);
	assert_int_equal(server_fold_ino(INT32_MAX), INT32_MAX);
	for (uint64_t n = 0; n < 100000; n++) {
		uint64_t ino = server_fold_ino(big + n);

		assert_true(ino > INT32_MAX && ino <= UINT32_MAX);
		/* neighbours stay apart, and so do two filesystems with the same numbers */
		assert_int_not_equal(ino, server_fold_ino(big + n + 1));
		assert_int_not_equal(ino, server_fold_ino((UINT64_C(1) << 63) + n));
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_kinds),
		cmocka_unit_test(test_acls),
		cmocka_unit_test(test_what_is_no_acl_is_left_alone),
		cmocka_unit_test(test_capabilities_of_the_layers_root),
		cmocka_unit_test(test_capabilities_of_other_roots),
		cmocka_unit_test(test_what_is_no_capability_is_left_alone),
		cmocka_unit_test(test_a_mode_gives_no_more_than_the_acl),
		cmocka_unit_test(test_numbers_of_inodes),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
