/* SPDX-License-Identifier: MIT */
/*
 * A set of names that only grows, kept as hashes of 32 bits: it may seem to have a name that nobody
 * added, and never lacks one that somebody did. About six bytes a name.
 *
 * Ownership: the caller's; NULL is the empty set. Locks: none, see who uses it. Errors: -ENOMEM,
 * and the set is as it was.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "util/hash.h"

struct nameset {
	uint32_t count;
	uint32_t mask;    /* of slots; at least a quarter of them is empty */
	uint32_t slots[]; /* 0: empty */
};

/* Never 0. @seed: so that nobody can choose names that collide. */
static inline uint32_t nameset_hash(uint64_t seed, const char *name, size_t len)
{
	uint32_t hash = (uint32_t)hash_bytes(seed, name, len);

	return hash ? hash : 1;
}

static inline uint32_t nameset_count(const struct nameset *set)
{
	return set ? set->count : 0;
}

/* In memory. */
size_t nameset_bytes(const struct nameset *set);
bool nameset_has(const struct nameset *set, uint32_t hash);
/* The set may move. */
int nameset_add(struct nameset **set, uint32_t hash);
/* Adds all that is in @from. On failure some of it. */
int nameset_merge(struct nameset **set, const struct nameset *from);
