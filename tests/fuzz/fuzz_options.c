/* SPDX-License-Identifier: MIT */
/*
 * Any bytes as the lists of several -o, in the dialect that the first byte names: the parser must
 * answer each with 0 or with an errno and a message, and what it accepts must be within the bounds
 * that the engine counts on.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "cli/options.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(bool truth)
{
	if (!truth)
		abort();
}

static size_t ignored;

static void count_ignored(const char *word)
{
	check(word[0]);
	ignored++;
}

static void check_layers(const struct options *o)
{
	check(o->lower_count <= OVL_MAX_LAYERS);
	check(o->data_count <= o->lower_count);
	for (size_t i = 0; i < o->lower_count; i++)
		check(o->lower[i] && o->lower[i][0]);
}

static void check_map(const struct id_map *m)
{
	for (size_t i = 0; i < m->count; i++) {
		const struct id_range *r = &m->ranges[i];

		check(r->count && (uint64_t)r->disk + r->count <= ID_NONE);
		check((uint64_t)r->shown + r->count <= ID_NONE);
	}
	check(!m->squash || m->squash_to != ID_NONE);
}

/* What mount(2) gets: no quotes but those around a label. */
static void check_contexts(const struct options *o)
{
	char *text;

	check(options_contexts(o, &text) == 0);
	if (text) {
		size_t quotes = 0;

		for (const char *s = text; *s; s++)
			quotes += *s == '"';
		check(quotes > 0 && quotes <= 8 && quotes % 2 == 0);
	}
	free(text);
}

static void check_accepted(struct options *o)
{
	char message[256];
	int rc = options_check(o, message, sizeof(message));

	check(rc == 0 || (rc < 0 && message[0]));
	check(rc < 0 || o->remount || o->lower_count > 0);
	check(rc < 0 || o->remount || !o->upper == !o->work);
	check(o->timeout == -1 || (o->timeout >= 0 && o->timeout <= 1e9));
	check(o->compat.override <= OVL_OVERRIDE_CONTAINERS);
	check_map(&o->uids);
	check_map(&o->gids);
	check_contexts(o);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char *text = malloc(size + 1);
	struct options o;
	char message[256];
	int rc = 0;

	if (!text || !size) {
		free(text);
		return 0;
	}
	memcpy(text, data + 1, size - 1);
	text[size - 1] = text[size] = '\0';

	options_init(&o, data[0] & 2 ? OPTIONS_OF_FUSE_OVERLAYFS : OPTIONS_OF_PLYFS);
	o.sloppy = data[0] & 1;
	o.ignored = count_ignored;
	ignored = 0;
	/* Each NUL begins another -o. */
	for (char *list = text; list < text + size && rc == 0; list += strlen(list) + 1) {
		rc = options_add(&o, list, message, sizeof(message));
		check(rc == 0 || (rc < 0 && message[0]));
		check(memchr(message, 0, sizeof(message)));
		check(!ignored || (data[0] & 2));
		check_layers(&o);
	}
	if (rc == 0)
		check_accepted(&o);
	options_free(&o);
	free(text);
	return 0;
}
