/* SPDX-License-Identifier: MIT */
/*
 * Against the kernel: objects of many modes are made below a directory with a default ACL, and the
 * mode and the access ACL that they got must be what acl_inherit() says. A file gets an access ACL
 * and many modes, and its mode and ACL must be what acl_equiv_mode() and acl_chmod() say.
 */
#include "helpers.h"

#include <endian.h>
#include <errno.h>
#include <sys/xattr.h>

#include "overlay/internal.h"

#define ACL_ACCESS  "system.posix_acl_access"
#define ACL_DEFAULT "system.posix_acl_default"

/* linux/posix_acl_xattr.h */
struct acl_line {
	uint16_t tag;
	uint16_t perm;
	uint32_t id;
};

#define NO_ID     0xffffffff
#define USER_OBJ  0x01
#define USER      0x02
#define GROUP_OBJ 0x04
#define GROUP     0x08
#define MASK      0x10
#define OTHER     0x20

struct acl_case {
	const char *what;
	struct acl_line lines[8];
	size_t count;
};

static const struct acl_case cases[] = {
	{ "user::rwx group::r-x other::r-x",
	  { { USER_OBJ, 7, NO_ID }, { GROUP_OBJ, 5, NO_ID }, { OTHER, 5, NO_ID } },
	  3 },
	{ "user::rwx group::rwx other::rwx",
	  { { USER_OBJ, 7, NO_ID }, { GROUP_OBJ, 7, NO_ID }, { OTHER, 7, NO_ID } },
	  3 },
	{ "user::--- group::--- other::---",
	  { { USER_OBJ, 0, NO_ID }, { GROUP_OBJ, 0, NO_ID }, { OTHER, 0, NO_ID } },
	  3 },
	{ "user::rw- group::r-- mask::rwx other::---, a mask that nobody needs",
	  { { USER_OBJ, 6, NO_ID },
	    { GROUP_OBJ, 4, NO_ID },
	    { MASK, 7, NO_ID },
	    { OTHER, 0, NO_ID } },
	  4 },
	{ "user::rwx user:1000:rwx group::r-x mask::rwx other::r-x",
	  { { USER_OBJ, 7, NO_ID },
	    { USER, 7, 1000 },
	    { GROUP_OBJ, 5, NO_ID },
	    { MASK, 7, NO_ID },
	    { OTHER, 5, NO_ID } },
	  5 },
	{ "user::rwx group::rwx group:50:rw- mask::r-x other::---",
	  { { USER_OBJ, 7, NO_ID },
	    { GROUP_OBJ, 7, NO_ID },
	    { GROUP, 6, 50 },
	    { MASK, 5, NO_ID },
	    { OTHER, 0, NO_ID } },
	  5 },
	{ "user::r-x user:1:-wx user:1000:r-- group::-w- group:5:--x group:60:rwx mask::-w- "
	  "other::--x",
	  { { USER_OBJ, 5, NO_ID },
	    { USER, 3, 1 },
	    { USER, 4, 1000 },
	    { GROUP_OBJ, 2, NO_ID },
	    { GROUP, 1, 5 },
	    { GROUP, 7, 60 },
	    { MASK, 2, NO_ID },
	    { OTHER, 1, NO_ID } },
	  8 },
	{ "user::rwx user:1000:rwx group::rwx mask::--- other::rwx",
	  { { USER_OBJ, 7, NO_ID },
	    { USER, 7, 1000 },
	    { GROUP_OBJ, 7, NO_ID },
	    { MASK, 0, NO_ID },
	    { OTHER, 7, NO_ID } },
	  5 },
};

#define ACL_MAX (4 + 8 * sizeof(struct acl_line))

static size_t build(const struct acl_case *c, uint8_t out[ACL_MAX])
{
	uint32_t version = htole32(2);

	memcpy(out, &version, 4);
	for (size_t i = 0; i < c->count; i++) {
		struct acl_line line = { htole16(c->lines[i].tag), htole16(c->lines[i].perm),
					 htole32(c->lines[i].id) };

		memcpy(out + 4 + i * sizeof(line), &line, sizeof(line));
	}
	return 4 + c->count * sizeof(struct acl_line);
}

static struct scratch scratch;

static int clean_up(void **state)
{
	return scratch_remove(&scratch);
}

enum kind { FILE_OPENED, DIRECTORY, FIFO };

static void make(int dir, const char *name, enum kind kind, mode_t mode)
{
	int fd;

	switch (kind) {
	case FILE_OPENED:
		fd = openat(dir, name, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, mode);
		assert_true(fd >= 0);
		close(fd);
		break;
	case DIRECTORY: assert_int_equal(mkdirat(dir, name, mode), 0); break;
	case FIFO: assert_int_equal(mkfifoat(dir, name, mode), 0); break;
	}
}

/* @def is the default ACL as the filesystem gives it back. */
static void compare_one(const struct acl_case *c, enum kind kind, mode_t mode, const void *def,
			size_t size)
{
	struct acl_inherited got;
	uint8_t access[ACL_MAX];
	char path[192];
	struct stat st;
	ssize_t n;
	mode_t type;

	make(scratch.fd, "new", kind, mode);
	snprintf(path, sizeof(path), "%s/new", scratch.path);
	assert_int_equal(lstat(path, &st), 0);
	n = lgetxattr(path, ACL_ACCESS, access, sizeof(access));
	if (n < 0) {
		assert_int_equal(errno, ENODATA);
		n = 0;
	}
	type = st.st_mode & S_IFMT;
	assert_int_equal(acl_inherit(def, size, type | mode, &got), 0);
	if (got.mode != st.st_mode)
		fail_msg("%s: mode %o gives %o instead of %o", c->what, type | mode, got.mode,
			 st.st_mode);
	if (got.size != (size_t)n || (n && memcmp(got.access, access, n) != 0))
		fail_msg("%s: mode %o gives another access ACL, of %zu bytes instead of %zd",
			 c->what, mode, got.size, n);
	free(got.access);
	assert_int_equal(unlinkat(scratch.fd, "new", kind == DIRECTORY ? AT_REMOVEDIR : 0), 0);
}

static void compare_case(const struct acl_case *c)
{
	uint8_t value[ACL_MAX];
	uint8_t def[ACL_MAX];
	size_t size = build(c, value);

	assert_int_equal(fsetxattr(scratch.fd, ACL_DEFAULT, value, size, 0), 0);
	assert_same(c->what, fgetxattr(scratch.fd, ACL_DEFAULT, def, sizeof(def)), size);
	for (mode_t mode = 0; mode <= 0777; mode++)
		compare_one(c, FILE_OPENED, mode, def, size);
	/* suid, sgid and sticky stay as they are */
	for (mode_t high = 01000; high <= 07000; high += 01000)
		compare_one(c, FILE_OPENED, high | 0755, def, size);
	for (mode_t mode = 0; mode <= 0777; mode += 7) {
		compare_one(c, DIRECTORY, mode, def, size);
		compare_one(c, FIFO, mode, def, size);
	}
	compare_one(c, DIRECTORY, 01777, def, size);
}

/* What setting it makes of the mode, and each mode of it. */
static void compare_access(const struct acl_case *c)
{
	uint8_t expected[ACL_MAX];
	uint8_t value[ACL_MAX];
	uint8_t stored[ACL_MAX];
	size_t size = build(c, value);
	int fd = openat(scratch.fd, "file", O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0600);
	mode_t mode = S_IFREG | S_ISVTX | 0600;
	struct stat st;
	int more;

	assert_true(fd >= 0);
	assert_int_equal(fchmod(fd, mode & 07777), 0);
	assert_int_equal(fsetxattr(fd, ACL_ACCESS, value, size, 0), 0);
	assert_int_equal(fstat(fd, &st), 0);
	more = acl_equiv_mode(value, size, &mode);
	if (more < 0 || mode != st.st_mode)
		fail_msg("%s is mode %o instead of %o", c->what, mode, st.st_mode);
	assert_int_equal(fgetxattr(fd, ACL_ACCESS, stored, sizeof(stored)) > 0, more);
	for (mode = 0; more && mode <= 0777; mode++) {
		ssize_t n = fgetxattr(fd, ACL_ACCESS, expected, sizeof(expected));

		assert_int_equal(n, size);
		assert_int_equal(acl_chmod(expected, size, mode), 0);
		assert_int_equal(fchmod(fd, mode), 0);
		assert_int_equal(fgetxattr(fd, ACL_ACCESS, stored, sizeof(stored)), size);
		if (memcmp(stored, expected, size) != 0)
			fail_msg("%s: mode %o makes another ACL of it", c->what, mode);
	}
	close(fd);
	assert_int_equal(unlinkat(scratch.fd, "file", 0), 0);
}

static void compare_on(const char *where)
{
	uint8_t value[ACL_MAX];
	size_t size = build(&cases[0], value);
	mode_t umask_before;

	if (access(where, W_OK) < 0)
		skip_because("%s cannot be written", where);
	scratch_make(&scratch, where);
	if (fsetxattr(scratch.fd, ACL_DEFAULT, value, size, 0) < 0) {
		int err = errno;

		if (err == EOPNOTSUPP)
			skip_because("the filesystem of %s has no ACLs", where);
		fail_msg("a default ACL on %s: %s", where, strerror(err));
	}
	/* which says nothing below a default ACL */
	umask_before = umask(0077);
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++)
		compare_case(&cases[i]);
	assert_int_equal(fremovexattr(scratch.fd, ACL_DEFAULT), 0);
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++)
		compare_access(&cases[i]);
	umask(umask_before);
}

static void test_inheritance_is_that_of_the_filesystem_of_var_tmp(void **state)
{
	compare_on("/var/tmp");
}

static void test_inheritance_is_that_of_tmpfs(void **state)
{
	compare_on("/dev/shm");
}

static int inherit_bytes(const uint8_t *value, size_t size)
{
	autofree uint8_t *copy = malloc(size ? size : 1);
	struct acl_inherited out = { 0 };
	int err;

	assert_non_null(copy);
	memcpy(copy, value, size);
	err = acl_inherit(copy, size, S_IFREG | 0644, &out);
	if (err == 0)
		free(out.access);
	else
		assert_null(out.access);
	return err;
}

static void test_a_value_of_the_wrong_size_is_refused(void **state)
{
	uint8_t value[ACL_MAX + 8] = { 0 };
	size_t size = build(&cases[6], value);

	for (size_t n = 0; n <= size; n++)
		assert_same("bytes", inherit_bytes(value, n),
			    n >= 4 && n % sizeof(struct acl_line) == 4 ? 0 : -EINVAL);
}

static void test_a_value_of_another_version_is_refused(void **state)
{
	uint8_t value[ACL_MAX];
	size_t size = build(&cases[0], value);

	for (unsigned int version = 0; version < 256; version++) {
		value[0] = (uint8_t)version;
		assert_int_equal(inherit_bytes(value, size), version == 2 ? 0 : -EOPNOTSUPP);
	}
	value[0] = 2;
	value[3] = 1;
	assert_int_equal(inherit_bytes(value, size), -EOPNOTSUPP);
}

static mode_t mode_left(const struct acl_case *c, mode_t mode)
{
	uint8_t value[ACL_MAX];
	size_t size = build(c, value);

	return acl_to_mode(value, size, mode);
}

static void test_without_its_acl_a_file_gives_nobody_more(void **state)
{
	static const struct acl_case more = {
		"user::rwx user:1000:rwx group::r-x mask::rwx other::r-x",
		{ { USER_OBJ, 7, NO_ID },
		  { USER, 7, 1000 },
		  { GROUP_OBJ, 5, NO_ID },
		  { MASK, 7, NO_ID },
		  { OTHER, 5, NO_ID } },
		5
	};
	static const struct acl_case less = {
		"user::rw- user:1000:--- group::rw- group:7:r-- mask::rw-",
		{ { USER_OBJ, 6, NO_ID },
		  { USER, 4, 1000 },
		  { GROUP_OBJ, 6, NO_ID },
		  { GROUP, 0, 7 },
		  { MASK, 6, NO_ID },
		  { OTHER, 4, NO_ID } },
		6
	};

	/* the group has what it had, not the mask */
	assert_int_equal(mode_left(&more, S_IFREG | 04775), S_IFREG | 04755);
	/* whom the list kept out is in the group perhaps, or one of the others */
	assert_int_equal(mode_left(&less, 0664), 0600);
	/* nothing but a mode */
	assert_int_equal(mode_left(&cases[0], 0755), 0755);
	assert_int_equal(acl_to_mode("", 0, 0755), 0755);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test_teardown(test_inheritance_is_that_of_the_filesystem_of_var_tmp,
					  clean_up),
		cmocka_unit_test_teardown(test_inheritance_is_that_of_tmpfs, clean_up),
		cmocka_unit_test(test_a_value_of_the_wrong_size_is_refused),
		cmocka_unit_test(test_a_value_of_another_version_is_refused),
		cmocka_unit_test(test_without_its_acl_a_file_gives_nobody_more),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
