// SPDX-License-Identifier: MIT
#include "overlay/dirnames.h"

/* Names in one directory, and bytes over all. */
#define NAMES_MAX (1U << 20)
#define BYTES_MAX ((size_t)32 << 20)

/*
 * When a directory is read for its names: after so many questions in vain for each of its real
 * directories, if it has so few names; each time that it turns out to have more, both are doubled.
 */
#define MISSES_MIN   8
#define NAMES_MIN    512
#define PATIENCE_MAX 11 /* NAMES_MIN << PATIENCE_MAX is NAMES_MAX */

/* Of the lower layers; constant. Names with the same bits at the top are in one bucket. */
struct lower_names {
	uint32_t count;
	unsigned int shift; /* a hash by that to the right is its bucket */
	uint32_t *hashes;   /* in each bucket by layer, topmost first */
	uint16_t *places;
	uint32_t starts[]; /* of buckets, and of what would come after the last */
};

enum upper_state {
	UPPER_UNKNOWN,
	UPPER_COLLECTING, /* somebody reads the directory; the set has what was made since */
	UPPER_KNOWN,
};

struct dirnames {
	struct lock lock; /* guards the rest but the last three */
	uint32_t round;   /* how often collecting began */
	enum upper_state state;
	uint32_t listed; /* how many names were found in upper */
	struct nameset *upper;
	struct lower_names *lower;

	_Atomic bool used;     /* since the list was last gone through */
	size_t bytes;          /* as counted in the list */
	struct dirnames *prev; /* guarded by the list's lock; NULL and not the head: not in it */
	struct dirnames *next;
};

void names_init(struct ovl *o)
{
	pthread_mutex_init(&o->names.lock, NULL);
}

void names_destroy(struct ovl *o)
{
	pthread_mutex_destroy(&o->names.lock);
}

static struct dirnames *names_of(const struct ovl_inode *dir)
{
	return atomic_load_explicit(&dir->dir->names, memory_order_acquire);
}

static struct dirnames *names_make(struct ovl_inode *dir)
{
	struct dirnames *names = names_of(dir);
	struct dirnames *new;

	if (names)
		return names;
	new = calloc(1, sizeof(*new));
	if (new && !atomic_compare_exchange_strong(&dir->dir->names, &names, new)) {
		free(new);
		return names;
	}
	return new;
}

/* --- the list of all ----------------------------------------------------------------------------
 */

static size_t lower_bytes(const struct lower_names *lower)
{
	size_t buckets;

	if (!lower)
		return 0;
	buckets = (size_t)1 << (32 - lower->shift);
	return sizeof(*lower) + (buckets + 1) * sizeof(lower->starts[0]) +
	       lower->count * (sizeof(*lower->hashes) + sizeof(*lower->places));
}

static bool in_list(const struct ovl *o, const struct dirnames *names)
{
	return names->prev || o->names.head == names;
}

static void list_remove(struct ovl *o, struct dirnames *names)
{
	*(names->prev ? &names->prev->next : &o->names.head) = names->next;
	*(names->next ? &names->next->prev : &o->names.tail) = names->prev;
	names->prev = names->next = NULL;
}

static void list_push(struct ovl *o, struct dirnames *names)
{
	names->next = o->names.head;
	*(o->names.head ? &o->names.head->prev : &o->names.tail) = names;
	o->names.head = names;
}

/* Forgets everything. @names->lock is held. */
static void forget(struct dirnames *names)
{
	free(take_ptr(names->upper));
	free(take_ptr(names->lower));
	names->state = UPPER_UNKNOWN;
}

/* Makes room, at the cost of those that were not used since the last time. The list is locked. */
static void evict(struct ovl *o)
{
	while (o->names.bytes > BYTES_MAX && o->names.tail) {
		struct dirnames *names = o->names.tail;

		list_remove(o, names);
		if (atomic_exchange(&names->used, false) && o->names.head) {
			list_push(o, names);
			continue;
		}
		o->names.bytes -= names->bytes;
		names->bytes = 0;
		lock_take(&names->lock);
		forget(names);
		lock_drop(&names->lock);
	}
}

/* The memory of @names has changed. */
static void account(struct ovl *o, struct dirnames *names)
{
	size_t bytes;

	pthread_mutex_lock(&o->names.lock);
	lock_take(&names->lock);
	bytes = nameset_bytes(names->upper) + lower_bytes(names->lower);
	lock_drop(&names->lock);
	o->names.bytes += bytes - names->bytes;
	names->bytes = bytes;
	if (bytes && !in_list(o, names))
		list_push(o, names);
	else if (!bytes && in_list(o, names))
		list_remove(o, names);
	evict(o);
	pthread_mutex_unlock(&o->names.lock);
}

void names_free(struct ovl *o, struct dirnames *names)
{
	if (!names)
		return;
	pthread_mutex_lock(&o->names.lock);
	if (in_list(o, names))
		list_remove(o, names);
	o->names.bytes -= names->bytes;
	pthread_mutex_unlock(&o->names.lock);
	forget(names);
	free(names);
}

/* --- asking -------------------------------------------------------------------------------------
 */

static void find_lower(const struct lower_names *lower, uint32_t hash, struct names_answer *out)
{
	uint64_t bucket = (uint64_t)hash >> lower->shift;

	for (uint32_t n = lower->starts[bucket]; n < lower->starts[bucket + 1]; n++) {
		uint16_t place = lower->places[n];

		if (lower->hashes[n] == hash &&
		    (!out->count || out->lower[out->count - 1] != place))
			out->lower[out->count++] = place;
	}
}

void names_ask(struct ovl *o, struct ovl_inode *dir, const char *name, struct names_answer *out)
{
	struct dirnames *names = names_of(dir);
	uint32_t hash;

	out->upper_lacks = out->lower_known = false;
	out->count = 0;
	/* What marks made by hand lead to may be no name that a listing tells. */
	if (!names || !*name || !strcmp(name, ".") || !strcmp(name, ".."))
		return;
	hash = nameset_hash(o->table.seed, name, strlen(name));
	lock_take(&names->lock);
	out->upper_lacks = names->state == UPPER_KNOWN && !nameset_has(names->upper, hash);
	out->lower_known = names->lower != NULL;
	if (names->lower)
		find_lower(names->lower, hash, out);
	lock_drop(&names->lock);
	if (!atomic_load_explicit(&names->used, memory_order_relaxed))
		atomic_store_explicit(&names->used, true, memory_order_relaxed);
}

/* --- upper --------------------------------------------------------------------------------------
 */

void names_expect(struct ovl *o, struct ovl_inode *dir, const char *name)
{
	struct dirnames *names = names_of(dir);
	size_t before;
	size_t after;

	if (!names)
		return;
	lock_take(&names->lock);
	before = nameset_bytes(names->upper);
	if (names->state != UPPER_UNKNOWN &&
	    (nameset_count(names->upper) >= NAMES_MAX ||
	     nameset_add(&names->upper, nameset_hash(o->table.seed, name, strlen(name))) < 0)) {
		free(take_ptr(names->upper));
		names->state = UPPER_UNKNOWN;
	}
	after = nameset_bytes(names->upper);
	lock_drop(&names->lock);
	if (after != before)
		account(o, names);
}

void names_expect_none(struct ovl *o, struct ovl_inode *dir)
{
	struct dirnames *names;

	if (o->layers_may_change || !o->layers[0].lists_all)
		return;
	names = names_make(dir);
	if (!names)
		return;
	lock_take(&names->lock);
	if (names->state == UPPER_UNKNOWN) {
		names->state = UPPER_KNOWN;
		names->listed = 0;
	}
	lock_drop(&names->lock);
}

/* --- reading ------------------------------------------------------------------------------------
 */

/* Whether a listing has all names that the lower directories of @dir have. */
static bool lower_lists_all(const struct ovl *o, const struct ovl_inode *dir)
{
	for (unsigned int n = 0; n < dir->dir->lower_count; n++)
		if (!o->layers[dir->dir->lower[n].layer].lists_all)
			return false;
	return true;
}

/* Most of the set is names that are gone: it is to be made again. */
static bool is_bloated(const struct dirnames *names)
{
	return nameset_count(names->upper) > 2 * names->listed + 64;
}

void names_read_begin(struct names_reading *r, struct ovl *o, struct ovl_inode *dir)
{
	struct dirnames *names;

	*r = (struct names_reading){ .o = o, .dir = dir, .limit = NAMES_MAX, .place = -1 };
	if (o->layers_may_change || inode_has(dir, INODE_ORPHAN))
		return;
	names = names_make(dir);
	if (!names)
		return;
	lock_take(&dir->lock); /* whoever makes something without telling us has made it */
	lock_take(&names->lock);
	r->wants_lower = !names->lower && inode_lowers(dir) && lower_lists_all(o, dir);
	r->wants_upper = inode_has(dir, INODE_UPPER) && o->layers[0].lists_all &&
			 (names->state == UPPER_UNKNOWN || is_bloated(names));
	if (r->wants_upper && names->state != UPPER_COLLECTING) {
		free(take_ptr(names->upper));
		names->state = UPPER_COLLECTING;
		names->round++;
	}
	r->round = r->wants_upper ? names->round : 0; /* 0: of nobody */
	lock_drop(&names->lock);
	lock_drop(&dir->lock);
}

static bool reserve(struct names_reading *r)
{
	uint32_t room = r->room ? r->room * 2 : 64;
	uint32_t *hashes;
	uint16_t *places;

	if (r->count < r->room)
		return true;
	hashes = realloc(r->hashes, room * sizeof(*hashes));
	if (hashes)
		r->hashes = hashes;
	places = realloc(r->places, room * sizeof(*places));
	if (places)
		r->places = places;
	if (!hashes || !places)
		return false;
	r->room = room;
	return true;
}

/*
 * Who may list a directory but not search it is told so at each name that may be in it: that of a
 * layer which hides something below, too.
 */
void names_read_from(struct names_reading *r, struct layer_ref *at)
{
	struct statx st;

	if (r->o->overrides_modes || !(r->wants_upper || r->wants_lower))
		return;
	if (layer_stat(at, ".", &st) < 0)
		r->wants_upper = r->wants_lower = false;
}

void names_read_one(struct names_reading *r, const char *name, size_t len)
{
	bool upper = r->place < 0;
	uint32_t hash;

	if (!(upper ? r->wants_upper : r->wants_lower))
		return;
	hash = nameset_hash(r->o->table.seed, name, len);
	if (upper) {
		if (nameset_count(r->upper) >= r->limit || nameset_add(&r->upper, hash) < 0)
			r->wants_upper = false;
	} else if (r->count >= r->limit || !reserve(r)) {
		r->wants_lower = false;
	} else {
		r->hashes[r->count] = hash;
		r->places[r->count++] = (uint16_t)r->place;
	}
}

/* NULL: no memory. */
static struct lower_names *index_lower(const struct names_reading *r)
{
	unsigned int bits = 0;
	size_t buckets;
	struct lower_names *lower;

	while ((4U << bits) < r->count)
		bits++;
	buckets = (size_t)1 << bits;
	lower = calloc(1, sizeof(*lower) + (buckets + 1) * sizeof(lower->starts[0]) +
				  r->count * (sizeof(*lower->hashes) + sizeof(*lower->places)));
	if (!lower)
		return NULL;
	lower->count = r->count;
	lower->shift = 32 - bits;
	lower->hashes = &lower->starts[buckets + 1];
	lower->places = (uint16_t *)&lower->hashes[r->count];
	for (uint32_t n = 0; n < r->count; n++)
		lower->starts[((uint64_t)r->hashes[n] >> lower->shift) + 1]++;
	for (size_t n = 1; n <= buckets; n++)
		lower->starts[n] += lower->starts[n - 1];
	/* Each start moves on while its bucket is filled, and is then that of the next. */
	for (uint32_t n = 0; n < r->count; n++) {
		uint32_t at = lower->starts[(uint64_t)r->hashes[n] >> lower->shift]++;

		lower->hashes[at] = r->hashes[n];
		lower->places[at] = r->places[n];
	}
	memmove(&lower->starts[1], &lower->starts[0], buckets * sizeof(lower->starts[0]));
	lower->starts[0] = 0;
	return lower;
}

/* @names->lock is held. */
static void settle_upper(struct names_reading *r, struct dirnames *names, bool complete)
{
	uint32_t listed = nameset_count(r->upper);

	if (names->state != UPPER_COLLECTING || names->round != r->round)
		return;
	if (complete && nameset_merge(&r->upper, names->upper) == 0) {
		free(names->upper);
		names->upper = take_ptr(r->upper);
		names->listed = listed;
		names->state = UPPER_KNOWN;
	} else {
		free(take_ptr(names->upper));
		names->state = UPPER_UNKNOWN;
	}
}

void names_read_end(struct names_reading *r, bool complete)
{
	struct dirnames *names = names_of(r->dir);
	struct lower_names *lower = complete && r->wants_lower ? index_lower(r) : NULL;

	if (names) {
		lock_take(&names->lock);
		settle_upper(r, names, complete && r->wants_upper);
		if (!names->lower)
			names->lower = take_ptr(lower);
		lock_drop(&names->lock);
		account(r->o, names);
	}
	free(lower);
	free(r->upper);
	free(r->hashes);
	free(r->places);
}

static bool read_name(void *ctx, const char *name, size_t len, uint64_t ino, unsigned int type)
{
	struct names_reading *r = ctx;

	names_read_one(r, name, len);
	return r->place < 0 ? r->wants_upper : r->wants_lower;
}

static int read_real(struct names_reading *r, unsigned int layer)
{
	autoref struct layer_ref *at = NULL;
	int err = dir_ref(r->o, r->dir, layer, false, &at);

	if (err < 0)
		return err;
	names_read_from(r, at);
	return real_readdir(r->o, at, true, read_name, r);
}

/* Reads the names of @dir. False: there are more than @limit, or they cannot be had at all. */
static bool read_names(struct ovl *o, struct ovl_inode *dir, uint32_t limit)
{
	struct names_reading r;
	bool wanted_upper;
	bool wanted_lower;
	int err = 0;
	bool all;

	names_read_begin(&r, o, dir);
	wanted_upper = r.wants_upper;
	wanted_lower = r.wants_lower;
	r.limit = limit;
	if (r.wants_upper)
		err = read_real(&r, 0);
	for (r.place = 0; err == 0 && r.wants_lower && r.place < dir->dir->lower_count; r.place++)
		err = read_real(&r, dir->dir->lower[r.place].layer);
	all = err == 0 && r.wants_upper == wanted_upper && r.wants_lower == wanted_lower;
	names_read_end(&r, err == 0);
	return all && (wanted_upper || wanted_lower);
}

void names_missed(struct ovl *o, struct ovl_inode *dir, unsigned int misses)
{
	struct dirstack *stack = dir->dir;
	unsigned int real = inode_lowers(dir) + (inode_has(dir, INODE_UPPER) ? 1 : 0);
	unsigned int patience = atomic_load_explicit(&stack->patience, memory_order_relaxed);
	unsigned int sum = atomic_load_explicit(&stack->misses, memory_order_relaxed) + misses;

	if (o->layers_may_change || patience > PATIENCE_MAX)
		return;
	if (sum < (uint64_t)MISSES_MIN * real << patience) {
		atomic_store_explicit(&stack->misses, sum, memory_order_relaxed);
		return;
	}
	atomic_store_explicit(&stack->misses, 0, memory_order_relaxed);
	if (!read_names(o, dir, NAMES_MIN << patience))
		atomic_store_explicit(&stack->patience, (uint8_t)(patience + 1),
				      memory_order_relaxed);
}
