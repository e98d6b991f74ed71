// SPDX-License-Identifier: MIT
#include "fdcache.h"

#include <errno.h>

#include "overlay/layer.h"
#include "util/base.h"

/* How many are given up at once when there are no more. */
#define SHRINK_BATCH 64

int fdcache_init(struct fdcache *c, size_t capacity)
{
	*c = (struct fdcache){ .capacity = capacity };
	return -pthread_mutex_init(&c->lock, NULL);
}

void fdcache_destroy(struct fdcache *c)
{
	fdcache_shrink(c, c->count);
	pthread_mutex_destroy(&c->lock);
}

static void list_remove(struct fdcache *c, struct layer_ref *ref)
{
	*(ref->prev ? &ref->prev->next : &c->head) = ref->next;
	*(ref->next ? &ref->next->prev : &c->tail) = ref->prev;
	ref->prev = ref->next = NULL;
}

static void list_push(struct fdcache *c, struct layer_ref *ref)
{
	ref->prev = NULL;
	ref->next = c->head;
	*(c->head ? &c->head->prev : &c->tail) = ref;
	c->head = ref;
}

/* Takes it out of its slot and the list; the caller puts the cache's reference after unlocking. */
static struct layer_ref *detach(struct fdcache *c, struct layer_ref *ref)
{
	list_remove(c, ref);
	c->count--;
	*ref->slot = NULL;
	ref->slot = NULL;
	return ref;
}

struct layer_ref *fdcache_get(struct fdcache *c, struct layer_ref **slot)
{
	struct layer_ref *ref;

	pthread_mutex_lock(&c->lock);
	ref = *slot;
	if (ref) {
		layer_ref_get(ref);
		if (c->head != ref) {
			list_remove(c, ref);
			list_push(c, ref);
		}
	}
	pthread_mutex_unlock(&c->lock);
	return ref;
}

static void put_in(struct fdcache *c, struct layer_ref **slot, struct layer_ref *ref, bool replace)
{
	struct layer_ref *old = NULL;
	struct layer_ref *evicted = NULL;

	pthread_mutex_lock(&c->lock);
	if (*slot && !replace) {
		pthread_mutex_unlock(&c->lock);
		return;
	}
	if (*slot)
		old = detach(c, *slot);
	if (c->count >= c->capacity && c->tail)
		evicted = detach(c, c->tail);
	*slot = layer_ref_get(ref);
	ref->slot = slot;
	list_push(c, ref);
	c->count++;
	pthread_mutex_unlock(&c->lock);
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
	struct layer_ref *ref = NULL;

	pthread_mutex_lock(&c->lock);
	if (*slot)
		ref = detach(c, *slot);
	pthread_mutex_unlock(&c->lock);
	layer_ref_put(ref);
}

size_t fdcache_shrink(struct fdcache *c, size_t n)
{
	size_t closed = 0;

	while (closed < n) {
		struct layer_ref *ref;

		pthread_mutex_lock(&c->lock);
		ref = c->tail ? detach(c, c->tail) : NULL;
		pthread_mutex_unlock(&c->lock);
		if (!ref)
			break;
		layer_ref_put(ref);
		closed++;
	}
	return closed;
}

bool fdcache_made_room(struct fdcache *c, int err)
{
	return (err == -EMFILE || err == -ENFILE) && c && fdcache_shrink(c, SHRINK_BATCH) > 0;
}

size_t fdcache_count(struct fdcache *c)
{
	size_t n;

	pthread_mutex_lock(&c->lock);
	n = c->count;
	pthread_mutex_unlock(&c->lock);
	return n;
}
