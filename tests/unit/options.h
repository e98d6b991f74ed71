/* SPDX-License-Identifier: MIT */
/*
 * What the tests of the words of -o share: lists are added to the options in @state, which fail in
 * the way that is expected.
 */
#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>

#include "cli/options.h"
#include "util/base.h"

struct state {
	struct options o;
	char message[512];
};

static inline int options_setup(void **state, enum option_dialect dialect)
{
	struct state *s = calloc(1, sizeof(*s));

	if (!s)
		return -1;
	options_init(&s->o, dialect);
	*state = s;
	return 0;
}

static inline int options_teardown(void **state)
{
	struct state *s = *state;

	options_free(&s->o);
	free(s);
	return 0;
}

static inline void add(struct state *s, const char *list)
{
	int rc = options_add(&s->o, list, s->message, sizeof(s->message));

	assert_string_equal(s->message, "");
	assert_int_equal(rc, 0);
}

static inline void check(struct state *s)
{
	int rc = options_check(&s->o, s->message, sizeof(s->message));

	assert_string_equal(s->message, "");
	assert_int_equal(rc, 0);
}

static inline void assert_says(const struct state *s, const char *part)
{
	if (!strstr(s->message, part))
		fail_msg("'%s' is not in the message '%s'", part, s->message);
	assert_null(strchr(s->message, '\n'));
}

/* Adding @list fails, with a message that holds @part; the options can still be freed. */
static inline void refused(struct state *s, const char *list, const char *part)
{
	int rc = options_add(&s->o, list, s->message, sizeof(s->message));

	if (rc != -EINVAL)
		fail_msg("'%s' gave %d", list, rc);
	assert_says(s, part);
}

static inline void check_refused(struct state *s, const char *part)
{
	assert_int_equal(options_check(&s->o, s->message, sizeof(s->message)), -EINVAL);
	assert_says(s, part);
}

static inline void assert_lower(const struct state *s, const char *const *names, size_t count)
{
	assert_int_equal(s->o.lower_count, count);
	for (size_t i = 0; i < count; i++)
		assert_string_equal(s->o.lower[i], names[i]);
}

#define LOWER(s, ...)                                                                              \
	do {                                                                                       \
		const char *const names[] = { __VA_ARGS__ };                                       \
		assert_lower(s, names, ARRAY_SIZE(names));                                         \
	} while (0)
