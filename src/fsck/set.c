// SPDX-License-Identifier: MIT
#include <string.h>

#include "fsck/private.h"
#include "util/hash.h"

static uint64_t text_hash(const char *text)
{
	uint64_t h = hash_bytes(0x706c796673ULL, text, strlen(text));

	return h ? h : 1; /* 0 is a free slot */
}

static size_t find_slot(const uint64_t *slots, size_t capacity, uint64_t h)
{
	size_t n = h & (capacity - 1);

	while (slots[n] && slots[n] != h)
		n = (n + 1) & (capacity - 1);
	return n;
}

bool text_set_has(const struct text_set *set, const char *text)
{
	uint64_t h = text_hash(text);

	return set->capacity && set->slots[find_slot(set->slots, set->capacity, h)] == h;
}

static int grow(struct text_set *set)
{
	size_t capacity = set->capacity ? 2 * set->capacity : 64;
	uint64_t *slots = calloc(capacity, sizeof(*slots));

	if (!slots)
		return -ENOMEM;
	for (size_t n = 0; n < set->capacity; n++)
		if (set->slots[n])
			slots[find_slot(slots, capacity, set->slots[n])] = set->slots[n];
	free(set->slots);
	set->slots = slots;
	set->capacity = capacity;
	return 0;
}

int text_set_add(struct text_set *set, const char *text)
{
	uint64_t h = text_hash(text);
	size_t n;

	if (2 * set->count >= set->capacity && grow(set) < 0)
		return -ENOMEM;
	n = find_slot(set->slots, set->capacity, h);
	if (set->slots[n])
		return 0;
	set->slots[n] = h;
	set->count++;
	return 1;
}

void text_set_free(struct text_set *set)
{
	free(set->slots);
	*set = (struct text_set){ 0 };
}
