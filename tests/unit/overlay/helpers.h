/* SPDX-License-Identifier: MIT */
/*
 * What several tests of this directory need: cmocka with its headers in the order it wants,
 * skipping with a reason, counting of open fds, and a scratch directory.
 *
 * Ownership: scratch_make() makes a directory that scratch_remove() deletes with all that is in it.
 * Errors: whatever fails here fails the test that asked for it; scratch_remove() returns 0 or -1,
 * as cmocka wants it of what comes after a failed test.
 */
#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <dirent.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "util/base.h"

/* cmocka's skip() has no room for a reason; a comment is what TAP lets us say. */
#define skip_because(...)                                                                          \
	do {                                                                                       \
		print_message("# skipped: " __VA_ARGS__);                                          \
		print_message("\n");                                                               \
		skip();                                                                            \
	} while (0)

/* For a table of cases: says which one it was. */
#define assert_same(what, got, want)                                                               \
	do {                                                                                       \
		long long _got = (got);                                                            \
		long long _want = (want);                                                          \
		if (_got != _want)                                                                 \
			fail_msg("%s: %lld instead of %lld", what, _got, _want);                   \
	} while (0)
#define assert_same_text(what, got, want)                                                          \
	do {                                                                                       \
		const char *_got = (got);                                                          \
		const char *_want = (want);                                                        \
		if (strcmp(_got, _want) != 0)                                                      \
			fail_msg("%s: '%s' instead of '%s'", what, _got, _want);                   \
	} while (0)

static inline unsigned int open_fds(void)
{
	DIR *d = opendir("/proc/self/fd");
	unsigned int n = 0;

	assert_non_null(d);
	while (readdir(d))
		n++;
	closedir(d);
	return n - 3; /* ".", ".." and the directory itself */
}

struct scratch {
	char path[128]; /* "": there is none */
	int fd;         /* O_RDONLY */
};

/* @where: the directory in which to make it. */
static inline void scratch_make(struct scratch *s, const char *where)
{
	char path[sizeof(s->path)];

	snprintf(path, sizeof(path), "%s/plyfs-unit-XXXXXX", where);
	assert_non_null(mkdtemp(path));
	strcpy(s->path, path);
	s->fd = open(s->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	assert_true(s->fd >= 0);
}

static inline int scratch_remove_one(const char *path, const struct stat *st, int type,
				     struct FTW *ftw)
{
	return remove(path);
}

static inline int scratch_remove(struct scratch *s)
{
	char path[sizeof(s->path)];

	if (!*s->path)
		return 0;
	strcpy(path, s->path);
	*s->path = '\0';
	close(s->fd);
	return nftw(path, scratch_remove_one, 16, FTW_DEPTH | FTW_PHYS);
}
