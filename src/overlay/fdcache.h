/* SPDX-License-Identifier: MIT */
/*
 * A bounded cache of opened objects, so that open fds stay bounded whatever the tree. An object
 * that is wanted again sits in its owner's slot (a pointer in an inode) and in a list by last use;
 * the least recently used are closed, and their slots emptied, when there are more than the
 * capacity.
 *
 * A slot is only read and written through these functions, which hold the cache's lock: it is a
 * leaf, nothing else is locked and no system call is made under it.
 */
#pragma once

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>

struct layer_ref;

struct fdcache {
	pthread_mutex_t lock;
	struct layer_ref *head; /* most recently used */
	struct layer_ref *tail;
	size_t count;
	size_t capacity;
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

/* Closes up to @n of the least recently used. Returns how many. */
size_t fdcache_shrink(struct fdcache *c, size_t n);

size_t fdcache_count(struct fdcache *c);
