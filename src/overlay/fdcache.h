/* SPDX-License-Identifier: MIT */
/*
 * A bounded cache of opened objects, so that open fds stay bounded whatever the tree. An object
 * that is wanted again sits in its owner's slot (a pointer in an inode) and in a list by last use;
 * the least recently used are closed, and their slots emptied, when there are more than the
 * capacity.
 *
 * Every request comes by here, so the cache is cut into shards, each with a list and a share of the
 * capacity, and a slot belongs to one of them by its address. A small cache is one shard.
 *
 * A slot is only read and written through these functions, which hold its shard's lock: it is a
 * leaf, nothing else is locked and no system call is made under it.
 */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

#include "util/lock.h"

struct layer_ref;

#define FDCACHE_SHARDS 32

struct fdcache_shard {
	struct lock lock;
	struct layer_ref *head; /* most recently used */
	struct layer_ref *tail;
	size_t count;
	char apart[32]; /* no two locks in one cache line */
};

struct fdcache {
	struct fdcache_shard shards[FDCACHE_SHARDS];
	unsigned int shard_count;    /* a power of two */
	size_t capacity;             /* of each of them */
	_Atomic unsigned int oldest; /* which one gives up its oldest next */
};

int fdcache_init(struct fdcache *c, size_t capacity);
void fdcache_destroy(struct fdcache *c);

/* What is in the slot, with a reference for the caller; NULL when it is empty. */
struct layer_ref *fdcache_get(struct fdcache *c, struct layer_ref **slot);

/*
 * Puts @ref, whose reference the caller keeps, into the slot, in the place of what was there. The
 * cache takes a reference of its own.
 */
void fdcache_set(struct fdcache *c, struct layer_ref **slot, struct layer_ref *ref);
/* As fdcache_set(), but leaves what is there already. */
void fdcache_offer(struct fdcache *c, struct layer_ref **slot, struct layer_ref *ref);

/* Empties the slot. */
void fdcache_drop(struct fdcache *c, struct layer_ref **slot);

/*
 * For who opened something: whether @err says that there are no more fds, and some were given up,
 * so that he may try again. @c may be NULL.
 */
bool fdcache_made_room(struct fdcache *c, int err);

/* Closes up to @n of those that were used least recently in their shards. Returns how many. */
size_t fdcache_shrink(struct fdcache *c, size_t n);

size_t fdcache_count(struct fdcache *c);
