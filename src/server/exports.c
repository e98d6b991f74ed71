/* SPDX-License-Identifier: MIT */
#include "server/exports.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

#include "util/base.h"
#include "util/hash.h"

#define ROOT          1 /* FUSE_ROOT_ID and OVL_ROOT */
#define FIRST_BUCKETS 256

struct export
{
	uint64_t nodeid;
	ovl_node node;
	uint32_t generation;
	_Atomic uint64_t nlookup;      /* grows with the lock shared, shrinks with it exclusive */
	struct export *next_by_nodeid; /* lock */
	struct export *next_by_node;   /* lock */
};

struct server_exports {
	struct ovl *o;
	pthread_rwlock_t lock;
	/* Guarded by the lock. Both tables have mask + 1 buckets. */
	struct export **by_nodeid;
	struct export **by_node;
	size_t mask;
	size_t count;
	uint64_t next_passing; /* the next nodeid for an object whose own is taken */
};

static struct export **nodeid_bucket(const struct server_exports *x, uint64_t nodeid)
{
	return &x->by_nodeid[hash_mix(nodeid) & x->mask];
}

static struct export **node_bucket(const struct server_exports *x, ovl_node node)
{
	return &x->by_node[hash_mix(node) & x->mask];
}

static struct export *find_nodeid(const struct server_exports *x, uint64_t nodeid)
{
	struct export *e = *nodeid_bucket(x, nodeid);

	while (e && e->nodeid != nodeid)
		e = e->next_by_nodeid;
	return e;
}

static struct export *find_node(const struct server_exports *x, ovl_node node)
{
	struct export *e = *node_bucket(x, node);

	while (e && e->node != node)
		e = e->next_by_node;
	return e;
}

static void put(struct server_exports *x, struct export *e)
{
	struct export **by_nodeid = nodeid_bucket(x, e->nodeid);
	struct export **by_node = node_bucket(x, e->node);

	e->next_by_nodeid = *by_nodeid;
	*by_nodeid = e;
	e->next_by_node = *by_node;
	*by_node = e;
}

static void take_out(struct server_exports *x, struct export *e)
{
	struct export **by_nodeid = nodeid_bucket(x, e->nodeid);
	struct export **by_node = node_bucket(x, e->node);

	while (*by_nodeid != e)
		by_nodeid = &(*by_nodeid)->next_by_nodeid;
	*by_nodeid = e->next_by_nodeid;
	while (*by_node != e)
		by_node = &(*by_node)->next_by_node;
	*by_node = e->next_by_node;
	x->count--;
}

/* A table that cannot grow for lack of memory only gets slower. */
static void grow(struct server_exports *x)
{
	size_t size = (x->mask + 1) * 2;
	struct export **old = x->by_node;
	size_t old_size = x->mask + 1;
	struct export **by_nodeid;
	struct export **by_node;

	if (x->count <= x->mask)
		return;
	by_nodeid = calloc(size, sizeof(struct export *));
	by_node = calloc(size, sizeof(struct export *));
	if (!by_nodeid || !by_node) {
		free(by_nodeid);
		free(by_node);
		return;
	}
	free(x->by_nodeid);
	x->by_nodeid = by_nodeid;
	x->by_node = by_node;
	x->mask = size - 1;
	for (size_t n = 0; n < old_size; n++) {
		while (old[n]) {
			struct export *e = old[n];

			old[n] = e->next_by_node;
			put(x, e);
		}
	}
	free(old);
}

int server_exports_new(struct ovl *o, struct server_exports **out)
{
	struct server_exports *x = calloc(1, sizeof(*x));

	if (!x)
		return -ENOMEM;
	x->o = o;
	x->mask = FIRST_BUCKETS - 1;
	x->next_passing = UINT64_MAX;
	pthread_rwlock_init(&x->lock, NULL);
	x->by_nodeid = calloc(FIRST_BUCKETS, sizeof(struct export *));
	x->by_node = calloc(FIRST_BUCKETS, sizeof(struct export *));
	if (!x->by_nodeid || !x->by_node) {
		server_exports_free(x);
		return -ENOMEM;
	}
	*out = x;
	return 0;
}

void server_exports_free(struct server_exports *x)
{
	if (!x)
		return;
	for (size_t n = 0; x->by_node && n <= x->mask; n++) {
		while (x->by_node[n]) {
			struct export *e = x->by_node[n];

			x->by_node[n] = e->next_by_node;
			free(e);
		}
	}
	free(x->by_nodeid);
	free(x->by_node);
	pthread_rwlock_destroy(&x->lock);
	free(x);
}

/* Counts a lookup of what the kernel has already. */
static bool count_known(struct server_exports *x, ovl_node node, uint64_t *nodeid,
			uint64_t *generation)
{
	struct export *e = find_node(x, node);

	if (!e)
		return false;
	atomic_fetch_add_explicit(&e->nlookup, 1, memory_order_relaxed);
	*nodeid = e->nodeid;
	*generation = e->generation;
	return true;
}

/* Its own number, if it can have it. */
static uint64_t choose_nodeid(struct server_exports *x, const struct ovl_identity *identity)
{
	uint64_t nodeid = identity->number;

	/* 0 is no nodeid. */
	while (nodeid <= ROOT || find_nodeid(x, nodeid))
		nodeid = x->next_passing--;
	return nodeid;
}

static int count_new(struct server_exports *x, ovl_node node, const struct ovl_identity *identity,
		     uint64_t *nodeid, uint64_t *generation)
{
	struct export *e = malloc(sizeof(*e));

	if (!e)
		return -ENOMEM;
	*nodeid = choose_nodeid(x, identity);
	*generation = identity->generation;
	*e = (struct export){
		.nodeid = *nodeid,
		.node = node,
		.generation = identity->generation,
		.nlookup = 1,
	};
	grow(x);
	put(x, e);
	x->count++;
	return 0;
}

int server_exports_count(struct server_exports *x, ovl_node node, uint64_t *nodeid,
			 uint64_t *generation)
{
	struct ovl_identity identity = { 0 };
	bool known;
	int err = 0;

	if (node == OVL_ROOT) {
		*nodeid = ROOT;
		*generation = 0;
		return 0;
	}
	pthread_rwlock_rdlock(&x->lock);
	known = count_known(x, node, nodeid, generation);
	pthread_rwlock_unlock(&x->lock);
	if (known)
		return 0;
	/* What cannot be identified can be used all the same, but not found again. */
	if (ovl_identify(x->o, node, &identity) < 0)
		identity = (struct ovl_identity){ 0 };
	pthread_rwlock_wrlock(&x->lock);
	if (!count_known(x, node, nodeid, generation))
		err = count_new(x, node, &identity, nodeid, generation);
	pthread_rwlock_unlock(&x->lock);
	return err;
}

ovl_node server_exports_forget(struct server_exports *x, uint64_t nodeid, uint64_t nlookup)
{
	struct export *gone = NULL;
	struct export *e;
	ovl_node node = 0;

	if (nodeid == ROOT)
		return OVL_ROOT;
	pthread_rwlock_wrlock(&x->lock);
	e = find_nodeid(x, nodeid);
	if (e) {
		node = e->node;
		e->nlookup -= min((uint64_t)e->nlookup, nlookup);
		if (!e->nlookup)
			gone = e;
	}
	if (gone)
		take_out(x, gone);
	pthread_rwlock_unlock(&x->lock);
	free(gone);
	return node;
}

ovl_node server_exports_node(struct server_exports *x, uint64_t nodeid)
{
	struct export *e;
	ovl_node node;

	if (nodeid == ROOT)
		return OVL_ROOT;
	pthread_rwlock_rdlock(&x->lock);
	e = find_nodeid(x, nodeid);
	node = e ? e->node : 0;
	pthread_rwlock_unlock(&x->lock);
	return node;
}

uint64_t server_exports_nodeid(struct server_exports *x, ovl_node node)
{
	struct export *e;
	uint64_t nodeid;

	if (node == OVL_ROOT)
		return ROOT;
	pthread_rwlock_rdlock(&x->lock);
	e = find_node(x, node);
	nodeid = e ? e->nodeid : 0;
	pthread_rwlock_unlock(&x->lock);
	return nodeid;
}
