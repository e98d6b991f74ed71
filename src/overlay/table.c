// SPDX-License-Identifier: MIT
/*
 * Inodes by nodeid, by name and by link, and how long they live.
 *
 * An inode lives as long as it has references: one for all lookups that the kernel has not
 * forgotten, one for each name below it, one for each running call. When the last goes it leaves
 * all hashes; whoever finds it there in between sees a count of zero and takes it for gone.
 */
#include <linux/limits.h>
#include <malloc.h>
#include <sys/random.h>

#include "overlay/dirlist.h"
#include "overlay/survey.h"
#include "overlay/whfile.h"
#include "util/hash.h"

#define FIRST_BUCKETS 64

/* Forgotten inodes that are not worth a malloc_trim(3). */
#define TRIM_MIN 16384

static uint32_t name_hash(const struct table *t, const struct ovl_inode *parent, const char *text,
			  size_t len)
{
	return (uint32_t)hash_bytes(t->seed ^ parent->node, text, len);
}

static uint64_t link_hash(const struct table *t, dev_t dev, uint64_t ino)
{
	return hash_mix(t->seed ^ hash_mix(ino) ^ dev);
}

int table_init(struct ovl *o)
{
	struct table *t = &o->table;

	if (getrandom(&t->seed, sizeof(t->seed), GRND_NONBLOCK) < 0)
		t->seed = (uintptr_t)o;
	t->chunks = calloc(CHUNKS_MAX, sizeof(*t->chunks));
	if (!t->chunks)
		return -ENOMEM;
	t->slots = 1; /* index 0 is nobody */
	pthread_mutex_init(&t->alloc_lock, NULL);
	for (unsigned int i = 0; i < TABLE_SHARDS; i++) {
		pthread_mutex_init(&t->shards[i].lock, NULL);
		pthread_mutex_init(&t->names[i].lock, NULL);
		pthread_mutex_init(&t->links[i].lock, NULL);
		t->names[i].buckets = calloc(FIRST_BUCKETS, sizeof(*t->names[i].buckets));
		t->links[i].buckets = calloc(FIRST_BUCKETS, sizeof(*t->links[i].buckets));
		t->names[i].mask = t->links[i].mask = FIRST_BUCKETS - 1;
		if (!t->names[i].buckets || !t->links[i].buckets)
			return -ENOMEM;
	}
	return 0;
}

static struct slot *slot_at(struct table *t, uint32_t index)
{
	struct slot *chunk =
		atomic_load_explicit(&t->chunks[index / CHUNK_SLOTS], memory_order_acquire);

	return chunk ? &chunk[index % CHUNK_SLOTS] : NULL;
}

static pthread_mutex_t *slot_lock(struct table *t, uint32_t index)
{
	return &t->shards[index % TABLE_SHARDS].lock;
}

/* Frees an inode and all it owns, in whatever state. Only for the last reference and for the end.
 */
static void inode_free(struct ovl *o, struct ovl_inode *i)
{
	struct dirstack *stack = i->dir;

	fdcache_drop(&o->fds, &i->file);
	if (stack) {
		dirlist_drop(o, &stack->list);
		fdcache_drop(&o->fds, &stack->upper.ref);
		free(stack->upper.path);
		wh_set_free(stack->upper.wh);
		for (unsigned int n = 0; n < stack->lower_count; n++) {
			fdcache_drop(&o->fds, &stack->lower[n].ref);
			free(stack->lower[n].path);
			wh_set_free(stack->lower[n].wh);
		}
		free(stack);
	}
	layer_ref_put(i->self);
	free(i->data);
	free(i->index);
	free(i);
}

void table_destroy(struct ovl *o)
{
	struct table *t = &o->table;

	if (!t->chunks)
		return;
	for (uint32_t n = 1; n < t->slots; n++) {
		struct slot *s = slot_at(t, n);

		if (!s || !s->inode)
			continue;
		while (s->inode->names) {
			struct ovl_name *name = s->inode->names;

			s->inode->names = name->next;
			free(name);
		}
		inode_free(o, s->inode);
	}
	for (unsigned int n = 0; n < CHUNKS_MAX && t->chunks[n]; n++)
		free(t->chunks[n]);
	free(t->chunks);
	t->chunks = NULL;
	for (unsigned int n = 0; n < TABLE_SHARDS; n++) {
		free(t->names[n].buckets);
		free(t->links[n].buckets);
	}
}

/* Takes a reference unless the last one is gone already. */
static bool inode_try_get(struct ovl_inode *i)
{
	uint32_t refs = atomic_load_explicit(&i->refs, memory_order_relaxed);

	while (refs)
		if (atomic_compare_exchange_weak_explicit(
			    &i->refs, &refs, refs + 1, memory_order_acquire, memory_order_relaxed))
			return true;
	return false;
}

struct ovl_inode *inode_get(struct ovl *o, ovl_node node)
{
	struct table *t = &o->table;
	uint32_t index = (uint32_t)node;
	struct ovl_inode *i = NULL;
	struct slot *s;

	if (index == 0 || index >= atomic_load_explicit(&t->slots, memory_order_acquire))
		return NULL;
	pthread_mutex_lock(slot_lock(t, index));
	s = slot_at(t, index);
	if (s && s->inode && s->inode->node == node && s->inode->nlookup && inode_try_get(s->inode))
		i = s->inode;
	pthread_mutex_unlock(slot_lock(t, index));
	return i;
}

struct ovl_inode *inode_get_dir(struct ovl *o, ovl_node node, int *err)
{
	struct ovl_inode *i = inode_get(o, node);

	*err = i ? 0 : -ESTALE;
	if (i && !inode_is_dir(i)) {
		inode_put(o, i);
		*err = -ENOTDIR;
		return NULL;
	}
	return i;
}

static void name_unhash(struct ovl *o, struct ovl_name *n)
{
	struct name_shard *shard = &o->table.names[n->hash % TABLE_SHARDS];
	struct ovl_name **p;

	pthread_mutex_lock(&shard->lock);
	p = &shard->buckets[(n->hash / TABLE_SHARDS) & shard->mask];
	while (*p && *p != n)
		p = &(*p)->hash_next;
	if (*p) {
		*p = n->hash_next;
		shard->count--;
	}
	pthread_mutex_unlock(&shard->lock);
	n->hash_next = NULL;
}

static void link_unhash(struct ovl *o, struct ovl_inode *i)
{
	uint64_t hash = link_hash(&o->table, i->link_dev, i->link_ino);
	struct link_shard *shard = &o->table.links[hash % TABLE_SHARDS];
	struct ovl_inode **p;

	pthread_mutex_lock(&shard->lock);
	p = &shard->buckets[(hash / TABLE_SHARDS) & shard->mask];
	while (*p && *p != i)
		p = &(*p)->link_next;
	if (*p) {
		*p = i->link_next;
		shard->count--;
	}
	pthread_mutex_unlock(&shard->lock);
}

/*
 * Memory of forgotten inodes goes back to the system, which the allocator does not do by itself; by
 * half of what there was each time, so that it costs little per inode.
 */
static void give_back(struct ovl *o)
{
	struct table *t = &o->table;
	uint64_t freed = atomic_fetch_add_explicit(&t->freed, 1, memory_order_relaxed) + 1;

	if (freed < TRIM_MIN || freed <= t->inodes)
		return;
	if (atomic_exchange(&t->freed, 0) >= TRIM_MIN)
		malloc_trim(0);
}

static void slot_release(struct ovl *o, struct ovl_inode *i)
{
	struct table *t = &o->table;
	uint32_t index = (uint32_t)i->node;
	struct slot *s;

	if (!index)
		return;
	s = slot_at(t, index);
	pthread_mutex_lock(slot_lock(t, index));
	s->inode = NULL;
	s->generation++;
	pthread_mutex_unlock(slot_lock(t, index));
	pthread_mutex_lock(&t->alloc_lock);
	s->next_free = t->free_head;
	t->free_head = index;
	pthread_mutex_unlock(&t->alloc_lock);
	t->inodes--;
}

void inode_put(struct ovl *o, struct ovl_inode *i)
{
	struct ovl_inode *dead =
		NULL; /* linked by link_next: parents may die with their last child */

	if (!i || atomic_fetch_sub_explicit(&i->refs, 1, memory_order_acq_rel) != 1)
		return;
	if (inode_has(i, INODE_LINKED))
		link_unhash(o, i);
	i->link_next = NULL;
	dead = i;
	while (dead) {
		i = dead;
		dead = i->link_next;
		slot_release(o, i);
		while (i->names) {
			struct ovl_name *n = i->names;
			struct ovl_inode *parent = n->parent;

			i->names = n->next;
			name_unhash(o, n);
			free(n);
			o->table.name_count--;
			if (atomic_fetch_sub_explicit(&parent->refs, 1, memory_order_acq_rel) != 1)
				continue;
			if (inode_has(parent, INODE_LINKED))
				link_unhash(o, parent);
			parent->link_next = dead;
			dead = parent;
		}
		inode_free(o, i);
		give_back(o);
	}
}

struct ovl_inode *inode_new(struct ovl *o, unsigned int type, struct dirstack *stack)
{
	struct ovl_inode *i = calloc(1, sizeof(*i));

	if (!i)
		return NULL;
	i->refs = 1;
	i->type = (uint8_t)type;
	i->dir = stack;
	return i;
}

int inode_insert(struct ovl *o, struct ovl_inode *i)
{
	struct table *t = &o->table;
	struct slot *s;
	uint32_t index;

	pthread_mutex_lock(&t->alloc_lock);
	index = t->free_head;
	if (index) {
		s = slot_at(t, index);
		t->free_head = s->next_free;
	} else {
		index = t->slots;
		if (index / CHUNK_SLOTS >= CHUNKS_MAX) {
			pthread_mutex_unlock(&t->alloc_lock);
			return -ENOMEM;
		}
		if (!t->chunks[index / CHUNK_SLOTS]) {
			struct slot *chunk = calloc(CHUNK_SLOTS, sizeof(*chunk));

			if (!chunk) {
				pthread_mutex_unlock(&t->alloc_lock);
				return -ENOMEM;
			}
			atomic_store_explicit(&t->chunks[index / CHUNK_SLOTS], chunk,
					      memory_order_release);
		}
		s = slot_at(t, index);
		atomic_store_explicit(&t->slots, index + 1, memory_order_release);
	}
	pthread_mutex_unlock(&t->alloc_lock);
	pthread_mutex_lock(slot_lock(t, index));
	i->node = (uint64_t)s->generation << 32 | index;
	s->inode = i;
	pthread_mutex_unlock(slot_lock(t, index));
	t->inodes++;
	return 0;
}

void inode_count_lookup(struct ovl *o, struct ovl_inode *i)
{
	uint32_t index = (uint32_t)i->node;

	pthread_mutex_lock(slot_lock(&o->table, index));
	if (i->nlookup++ == 0)
		atomic_fetch_add_explicit(&i->refs, 1, memory_order_relaxed);
	pthread_mutex_unlock(slot_lock(&o->table, index));
}

void ovl_forget(struct ovl *o, ovl_node node, uint64_t nlookup)
{
	struct ovl_inode *i = node == OVL_ROOT ? NULL : inode_get(o, node);
	bool last;

	if (!i)
		return;
	pthread_mutex_lock(slot_lock(&o->table, (uint32_t)node));
	last = i->nlookup && i->nlookup <= nlookup;
	i->nlookup -= min(i->nlookup, nlookup);
	pthread_mutex_unlock(slot_lock(&o->table, (uint32_t)node));
	if (last)
		inode_put(o, i);
	inode_put(o, i);
}

struct ovl_name *name_new(struct ovl_inode *parent, const char *text, size_t len)
{
	struct ovl_name *n;

	if (len > NAME_MAX)
		return NULL;
	n = malloc(sizeof(*n) + len + 1);
	if (!n)
		return NULL;
	*n = (struct ovl_name){ .parent = parent, .len = (uint8_t)len };
	memcpy(n->text, text, len);
	n->text[len] = '\0';
	atomic_fetch_add_explicit(&parent->refs, 1, memory_order_relaxed);
	return n;
}

void name_free(struct ovl *o, struct ovl_name *n)
{
	if (!n)
		return;
	inode_put(o, n->parent);
	free(n);
}

static bool name_is(const struct ovl_name *n, uint32_t hash, const struct ovl_inode *parent,
		    const char *text, size_t len)
{
	return n->hash == hash && n->parent == parent && n->len == len &&
	       !memcmp(n->text, text, len);
}

static struct ovl_inode *find_live(struct name_shard *shard, uint32_t hash,
				   struct ovl_inode *parent, const char *text, size_t len)
{
	struct ovl_name *n = shard->buckets[(hash / TABLE_SHARDS) & shard->mask];

	for (; n; n = n->hash_next)
		if (name_is(n, hash, parent, text, len) && inode_try_get(n->inode))
			return n->inode;
	return NULL;
}

struct ovl_inode *name_find(struct ovl *o, struct ovl_inode *parent, const char *text, size_t len)
{
	uint32_t hash = name_hash(&o->table, parent, text, len);
	struct name_shard *shard = &o->table.names[hash % TABLE_SHARDS];
	struct ovl_inode *i;

	pthread_mutex_lock(&shard->lock);
	i = find_live(shard, hash, parent, text, len);
	pthread_mutex_unlock(&shard->lock);
	return i;
}

/* A table that cannot grow for lack of memory only gets slower. */
static void names_grow(struct name_shard *shard)
{
	size_t size = (shard->mask + 1) * 2;
	struct ovl_name **buckets = calloc(size, sizeof(*buckets));

	if (!buckets)
		return;
	for (size_t b = 0; b <= shard->mask; b++) {
		while (shard->buckets[b]) {
			struct ovl_name *n = shard->buckets[b];
			struct ovl_name **to = &buckets[(n->hash / TABLE_SHARDS) & (size - 1)];

			shard->buckets[b] = n->hash_next;
			n->hash_next = *to;
			*to = n;
		}
	}
	free(shard->buckets);
	shard->buckets = buckets;
	shard->mask = size - 1;
}

static void put_name(struct ovl *o, struct name_shard *shard, struct ovl_name *n,
		     struct ovl_inode *i)
{
	struct ovl_name **bucket;

	if (shard->count > shard->mask)
		names_grow(shard);
	bucket = &shard->buckets[(n->hash / TABLE_SHARDS) & shard->mask];
	n->inode = i;
	n->hash_next = *bucket;
	*bucket = n;
	shard->count++;
	n->next = i->names;
	i->names = n;
	o->table.name_count++;
}

void name_insert_over(struct ovl *o, struct ovl_name *n, struct ovl_inode *i)
{
	struct name_shard *shard;

	n->hash = name_hash(&o->table, n->parent, n->text, n->len);
	shard = &o->table.names[n->hash % TABLE_SHARDS];
	pthread_mutex_lock(&shard->lock);
	put_name(o, shard, n, i);
	pthread_mutex_unlock(&shard->lock);
	atomic_fetch_add(&n->parent->changes, 1);
	dir_changed(n->parent);
	survey_named(o->survey, i, n, true);
}

void name_insert(struct ovl *o, struct ovl_name *n, struct ovl_inode *i, struct ovl_inode **taken)
{
	struct name_shard *shard;
	struct ovl_inode *other;

	n->hash = name_hash(&o->table, n->parent, n->text, n->len);
	shard = &o->table.names[n->hash % TABLE_SHARDS];
	*taken = NULL;
	pthread_mutex_lock(&shard->lock);
	other = find_live(shard, n->hash, n->parent, n->text, n->len);
	if (other) {
		pthread_mutex_unlock(&shard->lock);
		name_free(o, n);
		if (other == i)
			inode_put(o, other);
		else
			*taken = other;
		return;
	}
	put_name(o, shard, n, i);
	pthread_mutex_unlock(&shard->lock);
	survey_named(o->survey, i, n, false);
}

struct ovl_name *name_remove(struct ovl *o, struct ovl_inode *i, struct ovl_inode *parent,
			     const char *text, size_t len)
{
	for (struct ovl_name **p = &i->names; *p; p = &(*p)->next) {
		struct ovl_name *n = *p;

		if (n->parent != parent || n->len != len || memcmp(n->text, text, len) != 0)
			continue;
		*p = n->next;
		n->next = NULL;
		name_unhash(o, n);
		o->table.name_count--;
		atomic_fetch_add(&parent->changes, 1);
		dir_changed(parent);
		return n;
	}
	return NULL;
}

static struct ovl_inode *find_linked(struct link_shard *shard, uint64_t hash, dev_t dev,
				     uint64_t ino)
{
	struct ovl_inode *i = shard->buckets[(hash / TABLE_SHARDS) & shard->mask];

	while (i && !(i->link_dev == dev && i->link_ino == ino && inode_try_get(i)))
		i = i->link_next;
	return i;
}

struct ovl_inode *link_find(struct ovl *o, dev_t dev, uint64_t ino)
{
	uint64_t hash = link_hash(&o->table, dev, ino);
	struct link_shard *shard = &o->table.links[hash % TABLE_SHARDS];
	struct ovl_inode *i;

	pthread_mutex_lock(&shard->lock);
	i = find_linked(shard, hash, dev, ino);
	pthread_mutex_unlock(&shard->lock);
	return i;
}

static void links_grow(struct ovl *o, struct link_shard *shard)
{
	size_t size = (shard->mask + 1) * 2;
	struct ovl_inode **buckets = calloc(size, sizeof(*buckets));

	if (!buckets)
		return;
	for (size_t b = 0; b <= shard->mask; b++) {
		while (shard->buckets[b]) {
			struct ovl_inode *i = shard->buckets[b];
			uint64_t hash = link_hash(&o->table, i->link_dev, i->link_ino);
			struct ovl_inode **to = &buckets[(hash / TABLE_SHARDS) & (size - 1)];

			shard->buckets[b] = i->link_next;
			i->link_next = *to;
			*to = i;
		}
	}
	free(shard->buckets);
	shard->buckets = buckets;
	shard->mask = size - 1;
}

struct ovl_inode *link_insert(struct ovl *o, struct ovl_inode *i, dev_t dev, uint64_t ino)
{
	uint64_t hash = link_hash(&o->table, dev, ino);
	struct link_shard *shard = &o->table.links[hash % TABLE_SHARDS];
	struct ovl_inode **bucket;
	struct ovl_inode *other;

	if (inode_has(i, INODE_LINKED))
		return NULL;
	pthread_mutex_lock(&shard->lock);
	other = find_linked(shard, hash, dev, ino);
	if (!other) {
		if (shard->count > shard->mask)
			links_grow(o, shard);
		bucket = &shard->buckets[(hash / TABLE_SHARDS) & shard->mask];
		i->link_dev = dev;
		i->link_ino = ino;
		i->link_next = *bucket;
		*bucket = i;
		shard->count++;
		inode_set(i, INODE_LINKED);
	}
	pthread_mutex_unlock(&shard->lock);
	return other;
}

void link_remove(struct ovl *o, struct ovl_inode *i)
{
	if (!inode_has(i, INODE_LINKED))
		return;
	link_unhash(o, i);
	i->link_next = NULL;
	inode_clear(i, INODE_LINKED);
}
