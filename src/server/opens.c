/* SPDX-License-Identifier: MIT */
#include "server/opens.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "util/base.h"

#define SHARDS        64
#define FIRST_BUCKETS 16
/* Backing ids that a shard may keep of inodes that are not open: 64k in all. */
#define IDLE_MAX 1024

struct open_inode {
	struct open_inode *hash_next;
	/* Inodes that are not open and have an id, by last use. */
	struct open_inode *newer, *older;
	uint64_t nodeid;
	int32_t id;   /* 0: none */
	bool upper;   /* of what the id is */
	bool trusted; /* its writers leave set-id bits alone */
	bool idle;    /* is in that list */
	bool mapped;  /* may be, for writing */
	bool passed;  /* was open passthrough: the page cache may be behind */
	bool left;
	uint32_t cached;      /* opens through the page cache */
	uint32_t cached_maps; /* of those: for reading and writing */
	uint32_t passthrough; /* and past it */
	uint32_t writers;     /* of those */
	uint32_t doubt;       /* counts those that came */
	uint32_t questions;   /* between server_opens_doubt() and server_opens_settle() */
};

struct shard {
	_Alignas(64) pthread_mutex_t lock; /* guards the rest */
	pthread_cond_t answered;           /* a question has ended */
	struct open_inode **buckets;
	size_t mask;
	size_t count;
	struct open_inode *newest, *oldest;
	uint32_t idle_count;
};

struct server_opens {
	struct shard shards[SHARDS];
	/* Inodes with writers, or mapped: while there are none, nobody needs to look. */
	_Atomic uint32_t unsteady;
	_Atomic uint32_t left; /* inodes that are */
	uint32_t idle_max;     /* of a shard; constant */
};

static uint64_t mix(uint64_t nodeid)
{
	return (nodeid ^ nodeid >> 32) * 0x9e3779b97f4a7c15ULL;
}

static struct shard *shard_of(struct server_opens *x, uint64_t nodeid)
{
	return &x->shards[mix(nodeid) >> 58];
}

static struct open_inode **bucket_of(const struct shard *shard, uint64_t nodeid)
{
	return &shard->buckets[mix(nodeid) >> 20 & shard->mask];
}

static int shard_init(struct shard *shard)
{
	pthread_mutex_init(&shard->lock, NULL);
	pthread_cond_init(&shard->answered, NULL);
	shard->buckets = calloc(FIRST_BUCKETS, sizeof(*shard->buckets));
	shard->mask = FIRST_BUCKETS - 1;
	return shard->buckets ? 0 : -ENOMEM;
}

int server_opens_new(bool keeps_ids, struct server_opens **out)
{
	struct server_opens *x = aligned_alloc(64, (sizeof(*x) + 63) & ~(size_t)63);
	int err = 0;

	if (!x)
		return -ENOMEM;
	*x = (struct server_opens){ .idle_max = keeps_ids ? IDLE_MAX : 0 };
	for (size_t n = 0; n < SHARDS; n++)
		err = shard_init(&x->shards[n]) ? -ENOMEM : err;
	if (err)
		server_opens_free(x);
	else
		*out = x;
	return err;
}

void server_opens_free(struct server_opens *x)
{
	if (!x)
		return;
	for (size_t n = 0; n < SHARDS; n++) {
		struct shard *shard = &x->shards[n];

		for (size_t b = 0; shard->buckets && b <= shard->mask; b++) {
			struct open_inode *next;

			for (struct open_inode *i = shard->buckets[b]; i; i = next) {
				next = i->hash_next;
				free(i);
			}
		}
		free(shard->buckets);
		pthread_cond_destroy(&shard->answered);
		pthread_mutex_destroy(&shard->lock);
	}
	free(x);
}

/* --- all of these with the shard's lock held
 * -----------------------------------------------------*/

static struct open_inode *find(const struct shard *shard, uint64_t nodeid)
{
	struct open_inode *i = *bucket_of(shard, nodeid);

	while (i && i->nodeid != nodeid)
		i = i->hash_next;
	return i;
}

/* More buckets; without memory for them the chains get longer. */
static void grow(struct shard *shard)
{
	struct shard wider = { .mask = shard->mask * 2 + 1 };

	wider.buckets = calloc(wider.mask + 1, sizeof(*wider.buckets));
	if (!wider.buckets)
		return;
	for (size_t b = 0; b <= shard->mask; b++) {
		struct open_inode *next;

		for (struct open_inode *i = shard->buckets[b]; i; i = next) {
			struct open_inode **bucket = bucket_of(&wider, i->nodeid);

			next = i->hash_next;
			i->hash_next = *bucket;
			*bucket = i;
		}
	}
	free(shard->buckets);
	shard->buckets = wider.buckets;
	shard->mask = wider.mask;
}

static struct open_inode *find_or_add(struct shard *shard, uint64_t nodeid)
{
	struct open_inode *i = find(shard, nodeid);
	struct open_inode **bucket;

	if (i)
		return i;
	i = calloc(1, sizeof(*i));
	if (!i)
		return NULL;
	if (++shard->count > shard->mask)
		grow(shard);
	bucket = bucket_of(shard, nodeid);
	i->nodeid = nodeid;
	i->hash_next = *bucket;
	*bucket = i;
	return i;
}

static void set_idle(struct shard *shard, struct open_inode *i, bool idle)
{
	if (i->idle == idle)
		return;
	i->idle = idle;
	if (idle) {
		i->older = shard->newest;
		i->newer = NULL;
		*(i->older ? &i->older->newer : &shard->oldest) = i;
		shard->newest = i;
		shard->idle_count++;
	} else {
		*(i->newer ? &i->newer->older : &shard->newest) = i->older;
		*(i->older ? &i->older->newer : &shard->oldest) = i->newer;
		shard->idle_count--;
	}
}

static void drop(struct shard *shard, struct open_inode *i)
{
	struct open_inode **at = bucket_of(shard, i->nodeid);

	while (*at != i)
		at = &(*at)->hash_next;
	*at = i->hash_next;
	set_idle(shard, i, false);
	shard->count--;
	free(i);
}

static int32_t take_id(struct open_inode *i)
{
	int32_t id = i->id;

	i->id = 0;
	return id;
}

static bool is_open(const struct open_inode *i)
{
	return i->cached || i->passthrough;
}

static bool is_unsteady(const struct open_inode *i)
{
	return i->writers || i->mapped;
}

static void count_unsteady(struct server_opens *x, const struct open_inode *i, bool before)
{
	bool now = is_unsteady(i);

	if (now && !before)
		atomic_fetch_add(&x->unsteady, 1);
	else if (before && !now)
		atomic_fetch_sub(&x->unsteady, 1);
}

static void count_passthrough(struct server_opens *x, struct open_inode *i,
			      struct server_opening *o)
{
	bool before = is_unsteady(i);

	i->passthrough++;
	i->passed = true;
	i->writers += o->writes;
	if (o->maps) {
		o->unsteady = !i->mapped;
		i->mapped = true;
		i->doubt++;
	}
	count_unsteady(x, i, before);
}

static void count_cached(struct open_inode *i, const struct server_opening *o)
{
	i->cached++;
	i->cached_maps += o->maps;
}

/* Which way, and by which id. */
static enum server_way choose(struct open_inode *i, struct server_opening *o)
{
	/* Who was to see lower, and came after a copy-up, sees upper: nobody has it otherwise. */
	if (i->passthrough)
		return o->upper && !i->upper ? SERVER_WAY_STALE : SERVER_WAY_PASSTHROUGH;
	if (i->cached || !o->direct)
		return SERVER_WAY_CACHED;
	if (i->id && (i->upper != o->upper || (o->writes && i->trusted != o->trusted)))
		o->unused = take_id(i);
	if (i->id)
		return SERVER_WAY_PASSTHROUGH;
	if (o->id == 0)
		return SERVER_WAY_NO_ID;
	if (o->id < 0)
		return SERVER_WAY_CACHED;
	i->id = o->id;
	i->upper = o->upper;
	i->trusted = o->trusted;
	return SERVER_WAY_PASSTHROUGH;
}

/*
 * Whoever asks whether a file is written has a lease on it, and who then opened it for writing
 * would have to wait; with O_NONBLOCK he would fail.
 */
static void await_answer(struct shard *shard, uint64_t nodeid)
{
	const struct open_inode *i = find(shard, nodeid);

	while (i && i->questions) {
		pthread_cond_wait(&shard->answered, &shard->lock);
		i = find(shard, nodeid);
	}
}

/* --- */

int server_opens_enter(struct server_opens *x, struct server_opening *o)
{
	struct shard *shard = shard_of(x, o->nodeid);
	enum server_way way = SERVER_WAY_CACHED;
	struct open_inode *i;

	o->unused = 0;
	o->unsteady = false;
	pthread_mutex_lock(&shard->lock);
	if (o->writes)
		await_answer(shard, o->nodeid);
	i = find_or_add(shard, o->nodeid);
	if (i) {
		way = choose(i, o);
		set_idle(shard, i, i->idle && i->id && way >= SERVER_WAY_NO_ID);
		if (way == SERVER_WAY_PASSTHROUGH)
			count_passthrough(x, i, o);
		else if (way == SERVER_WAY_CACHED)
			count_cached(i, o);
		if (way == SERVER_WAY_STALE && !i->left) {
			i->left = true;
			atomic_fetch_add(&x->left, 1);
		}
		if (o->id > 0 && (way != SERVER_WAY_PASSTHROUGH || i->id != o->id))
			o->unused = o->id;
		if (way == SERVER_WAY_PASSTHROUGH)
			o->id = i->id;
		o->differs = i->trusted != o->trusted;
		o->keeps = !i->passed;
		if (!is_open(i) && !i->id && !i->passed)
			drop(shard, i);
	}
	pthread_mutex_unlock(&shard->lock);
	return i ? (int)way : -ENOMEM;
}

void server_opens_leave(struct server_opens *x, uint64_t nodeid, bool passthrough, bool writes,
			bool maps, int32_t *id)
{
	struct shard *shard = shard_of(x, nodeid);
	struct open_inode *i;

	*id = 0;
	pthread_mutex_lock(&shard->lock);
	i = find(shard, nodeid);
	if (i && passthrough && i->passthrough) {
		bool before = is_unsteady(i);

		i->passthrough--;
		i->writers -= writes && i->writers;
		count_unsteady(x, i, before);
	} else if (i && !passthrough && i->cached) {
		i->cached--;
		i->cached_maps -= maps && i->cached_maps;
	}
	if (i && !is_open(i)) {
		if (i->id)
			set_idle(shard, i, true);
		else if (!i->passed)
			drop(shard, i);
	}
	if (shard->idle_count > x->idle_max) {
		i = shard->oldest;
		*id = take_id(i);
		set_idle(shard, i, false);
	}
	pthread_mutex_unlock(&shard->lock);
}

int32_t server_opens_forget(struct server_opens *x, uint64_t nodeid)
{
	struct shard *shard = shard_of(x, nodeid);
	struct open_inode *i;
	int32_t id = 0;

	pthread_mutex_lock(&shard->lock);
	i = find(shard, nodeid);
	if (i && !is_open(i)) {
		bool before = is_unsteady(i);

		id = i->id;
		i->mapped = false;
		count_unsteady(x, i, before);
		if (i->left)
			atomic_fetch_sub(&x->left, 1);
		drop(shard, i);
	}
	pthread_mutex_unlock(&shard->lock);
	return id;
}

bool server_opens_left(struct server_opens *x, uint64_t nodeid)
{
	struct shard *shard;
	const struct open_inode *i;
	bool left;

	if (!atomic_load(&x->left))
		return false;
	nodeid &= ~SERVER_SECOND_INODE;
	shard = shard_of(x, nodeid);
	pthread_mutex_lock(&shard->lock);
	i = find(shard, nodeid);
	left = i && i->left;
	pthread_mutex_unlock(&shard->lock);
	return left;
}

bool server_opens_mapped_cached(struct server_opens *x, uint64_t nodeid)
{
	struct shard *shard = shard_of(x, nodeid);
	const struct open_inode *i;
	bool mapped;

	pthread_mutex_lock(&shard->lock);
	i = find(shard, nodeid);
	mapped = i && i->cached_maps;
	pthread_mutex_unlock(&shard->lock);
	return mapped;
}

bool server_opens_steady(struct server_opens *x, uint64_t nodeid, uint32_t mode)
{
	struct shard *shard;
	const struct open_inode *i;
	bool steady;

	if (server_opens_left(x, nodeid))
		return false;
	if (!atomic_load(&x->unsteady))
		return true;
	shard = shard_of(x, nodeid);
	pthread_mutex_lock(&shard->lock);
	i = find(shard, nodeid);
	steady = !i || !(i->mapped || (i->writers && (mode & (S_ISUID | S_ISGID))));
	pthread_mutex_unlock(&shard->lock);
	return steady;
}

uint64_t server_opens_doubt(struct server_opens *x, uint64_t nodeid)
{
	struct shard *shard;
	struct open_inode *i;
	uint64_t doubt = 0;

	if (!atomic_load(&x->unsteady))
		return 0;
	shard = shard_of(x, nodeid);
	pthread_mutex_lock(&shard->lock);
	i = find(shard, nodeid);
	if (i && i->mapped && !i->writers) {
		doubt = 1ULL << 32 | i->doubt;
		i->questions++;
	}
	pthread_mutex_unlock(&shard->lock);
	return doubt;
}

void server_opens_settle(struct server_opens *x, uint64_t nodeid, uint64_t doubt, bool mapped)
{
	struct shard *shard = shard_of(x, nodeid);
	struct open_inode *i;

	pthread_mutex_lock(&shard->lock);
	i = find(shard, nodeid);
	if (i && i->questions)
		i->questions--;
	pthread_cond_broadcast(&shard->answered);
	if (!mapped && i && i->mapped && !i->writers && i->doubt == (uint32_t)doubt) {
		bool before = is_unsteady(i);

		i->mapped = false;
		count_unsteady(x, i, before);
	}
	pthread_mutex_unlock(&shard->lock);
}
