// SPDX-License-Identifier: MIT
#include "overlay/nameset.h"

#include <errno.h>
#include <stdlib.h>

#define FIRST_SLOTS 8

/* The place of a hash, or the empty one where it belongs. */
static uint32_t place_of(const struct nameset *set, uint32_t hash)
{
	uint32_t pos = hash & set->mask;

	while (set->slots[pos] && set->slots[pos] != hash)
		pos = (pos + 1) & set->mask;
	return pos;
}

size_t nameset_bytes(const struct nameset *set)
{
	return set ? sizeof(*set) + ((size_t)set->mask + 1) * sizeof(set->slots[0]) : 0;
}

bool nameset_has(const struct nameset *set, uint32_t hash)
{
	return set && set->slots[place_of(set, hash)];
}

/* A set of the same names with room for one more. */
static struct nameset *grown(const struct nameset *set)
{
	uint32_t size = set ? (set->mask + 1) * 2 : FIRST_SLOTS;
	struct nameset *new = calloc(1, sizeof(*new) + (size_t)size * sizeof(new->slots[0]));

	if (!new)
		return NULL;
	new->mask = size - 1;
	new->count = nameset_count(set);
	for (uint32_t n = 0; set && n <= set->mask; n++)
		if (set->slots[n])
			new->slots[place_of(new, set->slots[n])] = set->slots[n];
	return new;
}

int nameset_add(struct nameset **set, uint32_t hash)
{
	struct nameset *s = *set;
	uint32_t place;

	if (nameset_has(s, hash))
		return 0;
	if (!s || s->count + 1 > (s->mask + 1) / 4 * 3) {
		s = grown(s);
		if (!s)
			return -ENOMEM;
		free(*set);
		*set = s;
	}
	place = place_of(s, hash);
	s->slots[place] = hash;
	s->count++;
	return 0;
}

int nameset_merge(struct nameset **set, const struct nameset *from)
{
	int err = 0;

	for (uint32_t n = 0; from && n <= from->mask && err == 0; n++)
		if (from->slots[n])
			err = nameset_add(set, from->slots[n]);
	return err;
}
