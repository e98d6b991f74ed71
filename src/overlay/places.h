/* SPDX-License-Identifier: MIT */
/*
 * Where objects are: a map from the number of an object to the number of its directory and its name
 * there. Compact, since it may hold every object of a union: about 35 bytes and the name for each.
 *
 * What is in it may be wrong by now, and may lead round in circles: who uses it looks.
 *
 * Ownership: places_free() frees all; zero is an empty map but for the seed. Not for several
 * threads at once. Errors: -ENOMEM, -ENOENT.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct place {
	uint64_t number; /* of the object */
	uint64_t parent; /* number of its directory; of a free slot the next free one */
	uint32_t name;   /* offset in the arena; 0: a free slot */
};

struct places {
	uint64_t seed; /* of the hash */
	struct place *list;
	uint32_t count; /* slots in use or free */
	uint32_t room;
	uint32_t free;  /* first free slot + 1 */
	uint32_t live;  /* slots in use */
	uint32_t *hash; /* open addressing: slot + 1 */
	uint32_t mask;
	char *arena;       /* names, NUL-terminated; offset 0 is nobody's */
	size_t arena_size; /* below 2^32 */
	size_t arena_room;
	size_t waste; /* bytes of names that nobody has any more */
};

void places_free(struct places *p);
/* Says where an object is, if nothing is known of it yet. */
int places_add(struct places *p, uint64_t number, uint64_t parent, const char *name, size_t len);
/* Says where it is, whatever was known. */
int places_move(struct places *p, uint64_t number, uint64_t parent, const char *name, size_t len);
/* It is not there any more. False: that is not what was known of it. */
bool places_remove(struct places *p, uint64_t number, uint64_t parent, const char *name);

/* The way to an object, topmost first. */
struct places_path {
	size_t depth;
	uint64_t *numbers; /* of the objects on it, the last one of the object itself */
	char *names;       /* as many, each NUL-terminated */
};

/* The way from the directory @root, which is no part of it. -ENOENT: unknown. */
int places_path(const struct places *p, uint64_t root, uint64_t number, struct places_path *out);
void places_path_free(struct places_path *path);
