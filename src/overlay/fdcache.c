// SPDX-License-Identifier: MIT
#include "fdcache.h"

#include <errno.h>
#include <stdint.h>

#include "overlay/layer.h"
#include "util/base.h"
#include "util/hash.h"

/* How many are given up at once when there are no more. */
#define SHRINK_BATCH 64

/* Fewer in a shard would be closed although there is room elsewhere. */
#define SHARD_MIN 64

int fdcache_init(struct fdcache *c, size_t capacity)
{
	*c = (struct fdcache){ .shard_count = 1 };
	while (c->shard_count < FDCACHE_SHARDS && capacity / c->shard_count >= 2 * SHARD_MIN)
		c->shard_count *= 2;
	c->capacity = capacity / c->shard_count;
	return 0;
}

void fdcache_destroy(struct fdcache *c)
{
	fdcache_shrink(c, fdcache_count(c));
}

/* @slot is part of an inode or of its dirstack: their addresses differ in the middle. */
static struct fdcache_shard *shard_of(struct fdcache *c, struct layer_ref **slot)
{
	return &c->shards[hash_mix((uintptr_t)slot) & (c->shard_count - 1)];
}

static void list_remove(struct fdcache_shard *s, struct layer_ref *ref)
{
	*(ref->prev ? &ref->prev->next : &s->head) = ref->next;
	*(ref->next ? &ref->next->prev : &s->tail) = ref->prev;
	ref->prev = ref->next = NULL;
}

static void list_push(struct fdcache_shard *s, struct layer_ref *ref)
{
	ref->prev = NULL;
	ref->next = s->head;
	*(s->head ? &s->head->prev : &s->tail) = ref;
	s->head = ref;
}

/* Takes it out of its slot and the list; the caller puts the cache's reference after unlocking. */
static struct layer_ref *detach(struct fdcache_shard *s, struct layer_ref *ref)
{
	list_remove(s, ref);
	s->count--;
	*ref->slot = NULL;
	ref->slot = NULL;
	return ref;
}

struct layer_ref *fdcache_get(struct fdcache *c, struct layer_ref **slot)
{
	struct fdcache_shard *s = shard_of(c, slot);
	struct layer_ref *ref;

	lock_take(&s->lock);
	ref = *slot;
	if (ref) {
		layer_ref_get(ref);
		if (s->head != ref) {
			list_remove(s, ref);
			list_push(s, ref);
		}
	}
	lock_drop(&s->lock);
	return ref;
}

static void put_in(struct fdcache *c, struct layer_ref **slot, struct layer_ref *ref, bool replace)
{
	struct fdcache_shard *s = shard_of(c, slot);
	struct layer_ref *old = NULL;
	struct layer_ref *evicted = NULL;

	lock_take(&s->lock);
	if (*slot && !replace) {
		lock_drop(&s->lock);
		return;
	}
	if (*slot)
		old = detach(s, *slot);
	if (s->count >= c->capacity && s->tail)
		evicted = detach(s, s->tail);
	*slot = layer_ref_get(ref);
	ref->slot = slot;
	list_push(s, ref);
	s->count++;
	lock_drop(&s->lock);
	layer_ref_put(old);
	layer_ref_put(evicted);
}

void fdcache_set(struct fdcache *c, struct layer_ref **slot, struct layer_ref *ref)
{
	put_in(c, slot, ref, true);
}

void fdcache_offer(struct fdcache *c, struct layer_ref **slot, struct layer_ref *ref)
{
	put_in(c, slot, ref, false);
}

void fdcache_drop(struct fdcache *c, struct layer_ref **slot)
{
	struct fdcache_shard *s = shard_of(c, slot);
	struct layer_ref *ref = NULL;

	lock_take(&s->lock);
	if (*slot)
		ref = detach(s, *slot);
	lock_drop(&s->lock);
	layer_ref_put(ref);
}

static bool close_oldest(struct fdcache_shard *s)
{
	struct layer_ref *ref;

	lock_take(&s->lock);
	ref = s->tail ? detach(s, s->tail) : NULL;
	lock_drop(&s->lock);
	layer_ref_put(ref);
	return ref;
}

size_t fdcache_shrink(struct fdcache *c, size_t n)
{
	unsigned int empty = 0; /* shards in a row */
	size_t closed = 0;

	while (closed < n && empty < c->shard_count) {
		unsigned int next = atomic_fetch_add_explicit(&c->oldest, 1, memory_order_relaxed);

		if (close_oldest(&c->shards[next & (c->shard_count - 1)])) {
			closed++;
			empty = 0;
		} else {
			empty++;
		}
	}
	return closed;
}

bool fdcache_made_room(struct fdcache *c, int err)
{
	return (err == -EMFILE || err == -ENFILE) && c && fdcache_shrink(c, SHRINK_BATCH) > 0;
}

size_t fdcache_count(struct fdcache *c)
{
	size_t n = 0;

	for (unsigned int i = 0; i < c->shard_count; i++) {
		lock_take(&c->shards[i].lock);
		n += c->shards[i].count;
		lock_drop(&c->shards[i].lock);
	}
	return n;
}
