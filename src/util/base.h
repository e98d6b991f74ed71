/* SPDX-License-Identifier: MIT */
/*
 * Small helpers used everywhere: ownership by scope, and a few macros that the C library lacks.
 *
 * Ownership: a variable declared `autofd`, `autofree`, `autodir` or `autofile` is released when it
 * leaves scope; take_fd() and take_ptr() hand the resource over to somebody else.
 * Errors: nothing here fails.
 */
#pragma once

#include <dirent.h>
#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))

#define likely(x)   __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

#define min(a, b)                                                                                  \
	({                                                                                         \
		__typeof__(a) _a = (a);                                                            \
		__typeof__(b) _b = (b);                                                            \
		_a < _b ? _a : _b;                                                                 \
	})
#define max(a, b)                                                                                  \
	({                                                                                         \
		__typeof__(a) _a = (a);                                                            \
		__typeof__(b) _b = (b);                                                            \
		_a > _b ? _a : _b;                                                                 \
	})

/* close(2) that keeps errno, so that an error path reports what failed first. */
static inline void close_fd(int fd)
{
	int saved = errno;

	if (fd >= 0)
		close(fd);
	errno = saved;
}

static inline void cleanup_fd(int *fd)
{
	close_fd(*fd);
}

static inline void cleanup_free(void *p)
{
	free(*(void **)p);
}

static inline void cleanup_dir(DIR **d)
{
	if (*d)
		closedir(*d);
}

static inline void cleanup_file(FILE **f)
{
	if (*f)
		fclose(*f);
}

#define autofd   __attribute__((cleanup(cleanup_fd)))
#define autofree __attribute__((cleanup(cleanup_free)))
#define autodir  __attribute__((cleanup(cleanup_dir)))
#define autofile __attribute__((cleanup(cleanup_file)))

static inline int take_fd(int *fd)
{
	int v = *fd;

	*fd = -1;
	return v;
}

#define take_ptr(p)                                                                                \
	({                                                                                         \
		__typeof__(p) _taken = (p);                                                        \
		(p) = NULL;                                                                        \
		_taken;                                                                            \
	})
