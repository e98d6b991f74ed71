// SPDX-License-Identifier: MIT
/*
 * As with the kernel's overlayfs the names of the lowest layer come first, those that only upper
 * layers have after them.
 */
#include "overlay/dirlist.h"

#include "overlay/dirnames.h"

#include "util/hash.h"

/* Memory for all lists, beyond which those go that nobody has read from for long. */
#define BYTES_MAX ((size_t)16 << 20)
/* Beyond this much a list goes as soon as all who began to read it have finished. */
#define FINISHED_MAX ((size_t)1 << 20)
/*
 * The last few stay whatever their size: whoever is in the middle of one would have the directory
 * read again for each further call.
 */
#define LISTS_MIN 8

/* State while a list is built. */
struct build {
	struct ovl *o;
	struct ovl_inode *dir;
	struct dirlist *list;
	struct layer_ref *at; /* the layer being read */
	struct names_reading names;
	bool quiet;      /* nobody asked for a listing: atime stays */
	bool merges;     /* more than one layer: names have to be compared */
	uint32_t *table; /* open addressing: index + 1 of an entry */
	uint32_t mask;
	int err;
};

void dirlist_put(struct dirlist *list)
{
	if (!list || atomic_fetch_sub(&list->refs, 1) != 1)
		return;
	free(list->arena);
	free(list->entries);
	free(list->order);
	free(list);
}

/* Makes room for one more element; doubles. */
static bool reserve(void **array, uint32_t *room, uint32_t count, size_t size)
{
	uint32_t wanted = *room ? *room * 2 : 64;
	void *grown;

	if (count < *room)
		return true;
	grown = realloc(*array, wanted * size);
	if (!grown)
		return false;
	*array = grown;
	*room = wanted;
	return true;
}

static uint32_t *find_place(struct build *b, const char *name, size_t len)
{
	uint32_t pos = (uint32_t)hash_bytes(b->o->table.seed, name, len) & b->mask;

	for (;; pos = (pos + 1) & b->mask) {
		const struct dirlist_entry *e;

		if (!b->table[pos])
			return &b->table[pos];
		e = &b->list->entries[b->table[pos] - 1];
		if (e->len == len && !memcmp(dirlist_name(b->list, e), name, len))
			return &b->table[pos];
	}
}

static bool grow_table(struct build *b)
{
	uint32_t size = b->table ? (b->mask + 1) * 2 : 256;
	uint32_t *table;

	if (b->table && b->list->count < b->mask / 2)
		return true;
	table = calloc(size, sizeof(*table));
	if (!table)
		return false;
	free(b->table);
	b->table = table;
	b->mask = size - 1;
	for (uint32_t n = 0; n < b->list->count; n++) {
		struct dirlist_entry *e = &b->list->entries[n];

		*find_place(b, dirlist_name(b->list, e), e->len) = n + 1;
	}
	return true;
}

static bool add_name(struct dirlist *list, const char *name, size_t len, uint32_t *at)
{
	if (list->arena_size + len + 1 > list->arena_room) {
		size_t room = max(list->arena_room * 2, (size_t)4096);
		char *arena = realloc(list->arena, room);

		if (!arena)
			return false;
		list->arena = arena;
		list->arena_room = room;
	}
	*at = (uint32_t)list->arena_size;
	memcpy(list->arena + list->arena_size, name, len);
	list->arena[list->arena_size + len] = '\0';
	list->arena_size += len + 1;
	return true;
}

/* Finds the type where the filesystem does not say it, and whether it is a whiteout. */
static void examine(struct build *b, const char *name, unsigned int *type, bool *whiteout)
{
	bool xwhiteouts = b->at->layer->index && inode_has(b->dir, INODE_XWHITE);
	struct statx st;

	*whiteout = false;
	if (*type != DT_CHR && *type != DT_UNKNOWN && !(*type == DT_REG && xwhiteouts))
		return;
	if (layer_stat(b->at, name, &st) < 0)
		return;
	*type = IFTODT(st.stx_mode);
	*whiteout = xwhiteouts ? is_whiteout(b->o, b->at, name, &st) : fmt_is_whiteout(&st);
}

/* A new entry; with @place where its index belongs. */
static bool add_entry(struct build *b, uint32_t *place, const char *name,
		      const struct dirlist_entry *new)
{
	struct dirlist *list = b->list;
	struct dirlist_entry *e;

	if (!reserve((void **)&list->entries, &list->room, list->count, sizeof(*e)))
		return false;
	e = &list->entries[list->count];
	*e = *new;
	if (!add_name(list, name, e->len, &e->name))
		return false;
	list->count++;
	if (place)
		*place = list->count;
	if (e->whiteout && e->layer == 0)
		list->upper_whiteouts = true;
	return true;
}

static bool see_entry(void *ctx, const char *name, size_t len, uint64_t ino, unsigned int type)
{
	*(bool *)ctx = true;
	return false;
}

/* Whether it is a directory with something in it, which nobody has asked to delete. */
static bool holds_something(struct build *b, const char *name)
{
	autoref struct layer_ref *dir = NULL;
	struct statx st;
	bool found = false;

	if (layer_stat(b->at, name, &st) < 0 || !S_ISDIR(st.stx_mode))
		return false;
	if (open_ref(b->o, b->at, name, LAYER_OPEN_PATH, &dir) < 0)
		return true;
	return dir->layer->ops->readdir(dir, true, see_entry, &found) < 0 || found;
}

/* A file that hides a name in the layers below (whfile.h), and is itself shown to nobody. */
static bool collect_hiding(struct build *b, const char *name, unsigned int type)
{
	const char *hidden = fmt_wh_hidden(name);
	struct dirlist_entry e = { .layer = (uint16_t)b->at->layer->index,
				   .whiteout = true,
				   .by_file = true };
	uint32_t *place;

	if (e.layer == 0) {
		b->list->upper_whiteouts = true;
		if (type == DT_DIR || type == DT_UNKNOWN)
			b->list->stuck |= holds_something(b, name);
	}
	if (!hidden || !b->merges)
		return true;
	place = find_place(b, hidden, strlen(hidden));
	e.len = (uint16_t)strlen(hidden);
	return *place || add_entry(b, place, hidden, &e);
}

static bool collect(void *ctx, const char *name, size_t len, uint64_t ino, unsigned int type)
{
	struct build *b = ctx;
	struct dirlist_entry e = { .len = (uint16_t)len, .layer = (uint16_t)b->at->layer->index };
	struct dirlist_entry *known = NULL;
	uint32_t *place = NULL;

	names_read_one(&b->names, name, len);
	b->err = -ENOMEM;
	if (b->merges && !grow_table(b))
		return false;
	if (unlikely(b->o->compat.whiteout_files && fmt_is_wh_name(name))) {
		b->err = collect_hiding(b, name, type) ? 0 : -ENOMEM;
		return b->err == 0;
	}
	if (b->merges)
		place = find_place(b, name, len);
	if (place && *place)
		known = &b->list->entries[*place - 1];
	if (known && (!known->by_file || known->layer != e.layer)) {
		known->lower_too = true;
	} else {
		examine(b, name, &type, &e.whiteout);
		e.type = (uint8_t)type;
		e.ino = ino;
		if (known) { /* it beats the file */
			e.name = known->name;
			*known = e;
		} else if (!add_entry(b, place, name, &e)) {
			return false;
		}
	}
	b->err = 0;
	return true;
}

int real_readdir(struct ovl *o, struct layer_ref *at, bool quiet, layer_filldir fill, void *ctx)
{
	int err = at->layer->ops->readdir(at, quiet, fill, ctx);
	mode_t kept;

	if (!mode_forbids(o, at, err) || mode_widen(o, at, "", S_IRUSR | S_IXUSR, &kept) < 0)
		return err;
	err = at->layer->ops->readdir(at, quiet, fill, ctx);
	mode_restore(o, at, "", kept);
	return err;
}

static int read_layer(struct build *b, unsigned int layer)
{
	autoref struct layer_ref *at = NULL;
	int err = dir_ref(b->o, b->dir, layer, false, &at);

	if (err < 0)
		return err;
	b->at = at;
	names_read_from(&b->names, at);
	err = real_readdir(b->o, at, b->quiet, collect, b);
	return err < 0 ? err : b->err;
}

/* Well mixed, and the same everywhere and for ever: offsets may outlive us. */
static off_t name_cookie(const char *name, size_t len)
{
	uint64_t h = 0xcbf29ce484222325ULL ^ len;

	while (len--)
		h = (h ^ (unsigned char)*name++) * 0x100000001b3ULL;
	h ^= h >> 32;
	h *= 0xd6e8feb86659fd93ULL;
	h ^= h >> 32;
	h >>= 1;
	return h > COOKIE_DOT_DOT ? (off_t)h : COOKIE_DOT_DOT + 1;
}

static int compare_cookies(const void *a, const void *b, void *ctx)
{
	const struct dirlist *list = ctx;
	const struct dirlist_entry *x = &list->entries[*(const uint32_t *)a];
	const struct dirlist_entry *y = &list->entries[*(const uint32_t *)b];

	if (x->cookie != y->cookie)
		return x->cookie < y->cookie ? -1 : 1;
	return strcmp(dirlist_name(list, x), dirlist_name(list, y));
}

/* Gives back what was kept in reserve. */
static void trim(struct dirlist *list)
{
	char *arena = realloc(list->arena, max(list->arena_size, (size_t)1));
	void *entries = realloc(list->entries, max(list->count, 1U) * sizeof(*list->entries));

	if (arena) {
		list->arena = arena;
		list->arena_room = list->arena_size;
	}
	if (entries) {
		list->entries = entries;
		list->room = list->count;
	}
}

static int put_in_order(struct build *b)
{
	struct dirlist *list = b->list;
	off_t last = COOKIE_DOT_DOT;

	trim(list);
	list->order = malloc((size_t)(list->count + 1) * sizeof(*list->order));
	if (!list->order)
		return -ENOMEM;
	for (uint32_t n = 0; n < list->count; n++) {
		struct dirlist_entry *e = &list->entries[n];

		if (e->whiteout)
			continue;
		e->cookie = name_cookie(dirlist_name(list, e), e->len);
		list->order[list->shown++] = n;
	}
	qsort_r(list->order, list->shown, sizeof(*list->order), compare_cookies, list);
	for (uint32_t n = 0; n < list->shown; n++) { /* two names of one hash, once in a lifetime */
		struct dirlist_entry *e = &list->entries[list->order[n]];

		if (e->cookie <= last)
			e->cookie = last + 1;
		last = e->cookie;
	}
	return 0;
}

uint32_t dirlist_find(const struct dirlist *list, off_t off)
{
	uint32_t low = 0;
	uint32_t high = list->shown;

	while (low < high) {
		uint32_t mid = low + (high - low) / 2;

		if (list->entries[list->order[mid]].cookie <= off)
			low = mid + 1;
		else
			high = mid;
	}
	return low;
}

int dirlist_read(struct ovl *o, struct ovl_inode *dir, bool quiet, struct dirlist **out)
{
	struct dirstack *stack = dir->dir;
	struct build b = { .o = o, .dir = dir, .quiet = quiet };
	unsigned int lowers;
	bool upper;
	int err = 0;

	b.list = calloc(1, sizeof(*b.list));
	if (!b.list)
		return -ENOMEM;
	b.list->refs = 1;
	b.list->version = dir_version(dir);
	b.list->impure = inode_has(dir, INODE_IMPURE);
	names_read_begin(&b.names, o, dir);
	/* Not before: a copy-up in between adds upper, and the names in it would be left out. */
	upper = inode_has(dir, INODE_UPPER);
	lowers = inode_lowers(dir);
	/* Who has no name any more has no entries either. */
	if (inode_has(dir, INODE_ORPHAN)) {
		upper = false;
		lowers = 0;
	}
	b.merges = lowers + (upper ? 1 : 0) > 1;
	if (upper)
		err = read_layer(&b, 0);
	for (unsigned int n = 0; n < lowers && err == 0; n++) {
		b.names.place = (int)n;
		err = read_layer(&b, stack->lower[n].layer);
	}
	names_read_end(&b.names, err == 0);
	if (err == 0)
		err = put_in_order(&b);
	free(b.table);
	if (err < 0)
		dirlist_put(b.list);
	else
		*out = b.list;
	return err;
}

/* --- the cache ----------------------------------------------------------------------------------
 */

void dirlists_init(struct dirlists *c)
{
	*c = (struct dirlists){ 0 };
	pthread_mutex_init(&c->lock, NULL);
}

void dirlists_destroy(struct dirlists *c)
{
	pthread_mutex_destroy(&c->lock);
}

static size_t size_of(const struct dirlist *list)
{
	return sizeof(*list) + list->arena_room + list->room * sizeof(*list->entries) +
	       list->count * sizeof(*list->order);
}

static void unchain(struct dirlists *c, struct dirlist *list)
{
	*(list->prev ? &list->prev->next : &c->head) = list->next;
	*(list->next ? &list->next->prev : &c->tail) = list->prev;
	list->prev = list->next = NULL;
}

static void chain_first(struct dirlists *c, struct dirlist *list)
{
	list->next = c->head;
	*(c->head ? &c->head->prev : &c->tail) = list;
	c->head = list;
}

static void chain_last(struct dirlists *c, struct dirlist *list)
{
	list->prev = c->tail;
	*(c->tail ? &c->tail->next : &c->head) = list;
	c->tail = list;
}

/* Out of the cache; its reference is the caller's, to be put without the lock. */
static struct dirlist *detach(struct dirlists *c, struct dirlist *list)
{
	unchain(c, list);
	c->bytes -= size_of(list);
	c->count--;
	*list->slot = NULL;
	list->slot = NULL;
	return list;
}

void dirlist_drop(struct ovl *o, struct dirlist **slot)
{
	struct dirlist *list;

	pthread_mutex_lock(&o->lists.lock);
	list = *slot ? detach(&o->lists, *slot) : NULL;
	pthread_mutex_unlock(&o->lists.lock);
	dirlist_put(list);
}

/* Whether something has to go. The lock is held. */
static struct dirlist *detach_surplus(struct dirlists *c)
{
	if (c->bytes <= BYTES_MAX || c->count <= LISTS_MIN)
		return NULL;
	return detach(c, c->tail);
}

static void share(struct ovl *o, struct dirlist **slot, struct dirlist *list)
{
	struct dirlists *c = &o->lists;
	struct dirlist *gone;

	atomic_fetch_add(&list->refs, 1);
	pthread_mutex_lock(&c->lock);
	gone = *slot ? detach(c, *slot) : NULL;
	*slot = list;
	list->slot = slot;
	list->passes = 1;
	chain_first(c, list);
	c->bytes += size_of(list);
	c->count++;
	do {
		pthread_mutex_unlock(&c->lock);
		dirlist_put(gone);
		pthread_mutex_lock(&c->lock);
		gone = detach_surplus(c);
	} while (gone);
	pthread_mutex_unlock(&c->lock);
}

/* What is there, if it will do. */
static struct dirlist *find_shared(struct ovl *o, struct ovl_inode *dir, bool begin)
{
	struct dirlists *c = &o->lists;
	struct dirlist *list;

	if (begin && o->layers_may_change)
		return NULL;
	pthread_mutex_lock(&c->lock);
	list = dir->dir->list;
	if (list && begin && list->version != dir_version(dir))
		list = NULL;
	if (list) {
		atomic_fetch_add(&list->refs, 1);
		list->passes += begin;
		unchain(c, list);
		chain_first(c, list);
	}
	pthread_mutex_unlock(&c->lock);
	return list;
}

int dirlist_get(struct ovl *o, struct ovl_inode *dir, bool begin, struct dirlist **out)
{
	int err;

	*out = find_shared(o, dir, begin);
	if (*out)
		return 0;
	err = dirlist_read(o, dir, false, out);
	if (err == 0)
		share(o, &dir->dir->list, *out);
	return err;
}

void dirlist_finished(struct ovl *o, struct dirlist *list)
{
	struct dirlists *c = &o->lists;
	struct dirlist *gone = NULL;

	pthread_mutex_lock(&c->lock);
	if (list->passes)
		list->passes--;
	if (list->slot && !list->passes) {
		if (c->bytes > FINISHED_MAX) {
			gone = detach(c, list);
		} else {
			unchain(c, list);
			chain_last(c, list);
		}
	}
	pthread_mutex_unlock(&c->lock);
	dirlist_put(gone);
}
