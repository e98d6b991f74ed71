// SPDX-License-Identifier: MIT
#include "overlay/places.h"

#include "util/base.h"
#include "util/hash.h"

#define FIRST_SLOTS 256
#define FIRST_ARENA 8192
/* Wasted names below that are not worth a pass over all others. */
#define LEAST_WASTE 65536

void places_free(struct places *p)
{
	free(p->list);
	free(p->hash);
	free(p->arena);
	*p = (struct places){ .seed = p->seed };
}

static uint32_t home(const struct places *p, uint64_t number)
{
	return (uint32_t)hash_mix(p->seed ^ number) & p->mask;
}

/* Where in the hash a number is, or would be. */
static uint32_t probe(const struct places *p, uint64_t number)
{
	uint32_t at = home(p, number);

	while (p->hash[at] && p->list[p->hash[at] - 1].number != number)
		at = (at + 1) & p->mask;
	return at;
}

static struct place *find(const struct places *p, uint64_t number)
{
	uint32_t slot = p->hash ? p->hash[probe(p, number)] : 0;

	return slot ? &p->list[slot - 1] : NULL;
}

/* At most three quarters of the hash are taken. */
static int grow_hash(struct places *p)
{
	uint32_t size = p->hash ? (p->mask + 1) * 2 : FIRST_SLOTS;
	uint32_t *old = p->hash;
	uint32_t old_size = old ? p->mask + 1 : 0;
	uint32_t *hash;

	if (old && p->live < p->mask - p->mask / 4)
		return 0;
	hash = size ? calloc(size, sizeof(*hash)) : NULL;
	if (!hash)
		return -ENOMEM;
	p->hash = hash;
	p->mask = size - 1;
	for (uint32_t n = 0; n < old_size; n++)
		if (old[n])
			hash[probe(p, p->list[old[n] - 1].number)] = old[n];
	free(old);
	return 0;
}

/* A free slot + 1; 0: no memory. */
static uint32_t take_slot(struct places *p)
{
	uint32_t slot = p->free;

	if (slot) {
		p->free = (uint32_t)p->list[slot - 1].parent;
		return slot;
	}
	if (p->count == p->room) {
		uint32_t room = p->room ? p->room + p->room / 2 : FIRST_SLOTS;
		struct place *list = room > p->room ? reallocarray(p->list, room, sizeof(*list))
						    : NULL;

		if (!list)
			return 0;
		p->list = list;
		p->room = room;
	}
	return ++p->count;
}

/* Drops the names that nobody has. */
static int tidy_arena(struct places *p)
{
	size_t room = p->arena_size - p->waste + FIRST_ARENA;
	size_t size = 1;
	char *arena;

	if (p->waste < LEAST_WASTE || p->waste < p->arena_size / 2)
		return 0;
	arena = malloc(room);
	if (!arena)
		return -ENOMEM;
	for (uint32_t n = 0; n < p->count; n++) {
		struct place *e = &p->list[n];
		size_t len;

		if (!e->name)
			continue;
		len = strlen(p->arena + e->name) + 1;
		memcpy(arena + size, p->arena + e->name, len);
		e->name = (uint32_t)size;
		size += len;
	}
	free(p->arena);
	p->arena = arena;
	p->arena_size = size;
	p->arena_room = room;
	p->waste = 0;
	return 0;
}

static int add_name(struct places *p, const char *name, size_t len, uint32_t *out)
{
	int err = tidy_arena(p);

	if (err < 0)
		return err;
	if (!p->arena_size)
		p->arena_size = 1;
	if (p->arena_size + len + 1 > p->arena_room) {
		size_t room = max(p->arena_room + p->arena_room / 2, (size_t)FIRST_ARENA);
		char *arena;

		if (p->arena_size + len + 1 > UINT32_MAX)
			return -ENOMEM;
		arena = realloc(p->arena, room);
		if (!arena)
			return -ENOMEM;
		p->arena = arena;
		p->arena_room = room;
	}
	*out = (uint32_t)p->arena_size;
	memcpy(p->arena + p->arena_size, name, len);
	p->arena[p->arena_size + len] = '\0';
	p->arena_size += len + 1;
	return 0;
}

static bool is_at(const struct places *p, const struct place *e, uint64_t parent, const char *name,
		  size_t len)
{
	return e->parent == parent && !strncmp(p->arena + e->name, name, len) &&
	       !p->arena[e->name + len];
}

int places_add(struct places *p, uint64_t number, uint64_t parent, const char *name, size_t len)
{
	uint32_t offset;
	uint32_t slot;
	int err;

	if (find(p, number))
		return 0;
	err = grow_hash(p);
	if (err == 0)
		err = add_name(p, name, len, &offset);
	if (err < 0)
		return err;
	slot = take_slot(p);
	if (!slot) {
		p->waste += len + 1;
		return -ENOMEM;
	}
	p->list[slot - 1] = (struct place){ number, parent, offset };
	p->hash[probe(p, number)] = slot;
	p->live++;
	return 0;
}

int places_move(struct places *p, uint64_t number, uint64_t parent, const char *name, size_t len)
{
	struct place *e = find(p, number);
	uint32_t offset;
	size_t wasted;
	int err;

	if (!e)
		return places_add(p, number, parent, name, len);
	if (is_at(p, e, parent, name, len))
		return 0;
	wasted = strlen(p->arena + e->name) + 1;
	err = add_name(p, name, len, &offset);
	if (err < 0)
		return err;
	e->parent = parent;
	e->name = offset;
	p->waste += wasted;
	return 0;
}

/* Takes an entry out of the hash, and closes the gap that it leaves. */
static void unhash(struct places *p, uint64_t number)
{
	uint32_t gap = probe(p, number);

	for (uint32_t at = gap;;) {
		uint32_t from;

		p->hash[gap] = 0;
		do {
			at = (at + 1) & p->mask;
			if (!p->hash[at])
				return;
			from = home(p, p->list[p->hash[at] - 1].number);
			/* it stays where its search does not pass the gap */
		} while (((at - from) & p->mask) < ((at - gap) & p->mask));
		p->hash[gap] = p->hash[at];
		gap = at;
	}
}

bool places_remove(struct places *p, uint64_t number, uint64_t parent, const char *name)
{
	struct place *e = find(p, number);

	if (!e || !is_at(p, e, parent, name, strlen(name)))
		return false;
	unhash(p, number);
	p->waste += strlen(name) + 1;
	p->live--;
	*e = (struct place){ .parent = p->free };
	p->free = (uint32_t)(e - p->list) + 1;
	return true;
}

int places_path(const struct places *p, uint64_t root, uint64_t number, struct places_path *out)
{
	size_t depth = 0;
	size_t size = 0;
	char *name;

	for (uint64_t at = number; at != root;) {
		const struct place *e = find(p, at);

		if (!e || depth > p->live) /* it leads round in a circle */
			return -ENOENT;
		size += strlen(p->arena + e->name) + 1;
		depth++;
		at = e->parent;
	}
	out->depth = depth;
	out->numbers = malloc((depth + 1) * sizeof(*out->numbers));
	out->names = malloc(size + 1);
	if (!out->numbers || !out->names) {
		places_path_free(out);
		return -ENOMEM;
	}
	name = out->names + size;
	for (uint64_t at = number; at != root;) {
		const struct place *e = find(p, at);
		size_t len = strlen(p->arena + e->name) + 1;

		name -= len;
		memcpy(name, p->arena + e->name, len);
		out->numbers[--depth] = at;
		at = e->parent;
	}
	return 0;
}

void places_path_free(struct places_path *path)
{
	free(path->numbers);
	free(path->names);
	*path = (struct places_path){ 0 };
}
