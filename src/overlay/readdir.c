// SPDX-License-Identifier: MIT
/*
 * Directory listings. What the layers hold is read and united once for each pass of a reader (from
 * offset 0), and offsets are indices in that list, so that they stay valid whatever happens to the
 * directory.
 *
 * As with the kernel's overlayfs the names of the lowest layer come first, those that only upper
 * layers have after them.
 */
#include "overlay/internal.h"
#include "util/hash.h"

struct entry {
	uint32_t name; /* offset in the arena */
	uint16_t len;
	uint16_t layer; /* the topmost that has it */
	uint8_t type;
	bool whiteout;
	bool by_file;   /* the whiteout is a file beside the name, where an object may be too */
	bool lower_too; /* a lower layer has the name as well */
	uint64_t ino;   /* d_ino in that layer */
	off_t cookie;   /* offset of the entry after it */
};

/* Offsets after "." and ".."; all others are greater. */
#define COOKIE_DOT     1
#define COOKIE_DOT_DOT 2

struct dirlist {
	_Atomic uint32_t refs;
	char *arena;
	size_t arena_size;
	size_t arena_room;
	struct entry *entries;
	uint32_t count;
	uint32_t room;
	uint32_t *order; /* indices of what is shown, by cookie */
	uint32_t shown;
	bool upper_whiteouts;
	bool stuck;  /* upper holds something that is not shown, and more than a whiteout */
	bool impure; /* when it was read: upper objects may show the number of their origin */
};

/* State while a list is built. */
struct build {
	struct ovl *o;
	struct ovl_inode *dir;
	struct dirlist *list;
	struct layer_ref *at; /* the layer being read */
	bool quiet;           /* nobody asked for a listing: atime stays */
	bool merges;          /* more than one layer: names have to be compared */
	uint32_t *table;      /* open addressing: index + 1 of an entry */
	uint32_t mask;
	int err;
};

struct ovl_dir {
	struct ovl_inode *inode; /* referenced */
	struct lock lock;        /* guards the rest */
	struct dirlist *list;
	bool origin_seen; /* by this pass */
	uint32_t origins; /* of the inode when this pass began */
	bool cached;      /* constant: this listing goes into the cache of who asked */
};

static const char *entry_name(const struct dirlist *list, const struct entry *e)
{
	return list->arena + e->name;
}

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
		const struct entry *e;

		if (!b->table[pos])
			return &b->table[pos];
		e = &b->list->entries[b->table[pos] - 1];
		if (e->len == len && !memcmp(entry_name(b->list, e), name, len))
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
		struct entry *e = &b->list->entries[n];

		*find_place(b, entry_name(b->list, e), e->len) = n + 1;
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
static bool add_entry(struct build *b, uint32_t *place, const char *name, const struct entry *new)
{
	struct dirlist *list = b->list;
	struct entry *e;

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
	struct entry e = { .layer = (uint16_t)b->at->layer->index,
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
	struct entry e = { .len = (uint16_t)len, .layer = (uint16_t)b->at->layer->index };
	struct entry *known = NULL;
	uint32_t *place = NULL;

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
	const struct entry *x = &list->entries[*(const uint32_t *)a];
	const struct entry *y = &list->entries[*(const uint32_t *)b];

	if (x->cookie != y->cookie)
		return x->cookie < y->cookie ? -1 : 1;
	return strcmp(entry_name(list, x), entry_name(list, y));
}

static int put_in_order(struct build *b)
{
	struct dirlist *list = b->list;
	off_t last = COOKIE_DOT_DOT;

	list->order = malloc((size_t)(list->count + 1) * sizeof(*list->order));
	if (!list->order)
		return -ENOMEM;
	for (uint32_t n = 0; n < list->count; n++) {
		struct entry *e = &list->entries[n];

		if (e->whiteout)
			continue;
		e->cookie = name_cookie(entry_name(list, e), e->len);
		list->order[list->shown++] = n;
	}
	qsort_r(list->order, list->shown, sizeof(*list->order), compare_cookies, list);
	for (uint32_t n = 0; n < list->shown; n++) { /* two names of one hash, once in a lifetime */
		struct entry *e = &list->entries[list->order[n]];

		if (e->cookie <= last)
			e->cookie = last + 1;
		last = e->cookie;
	}
	return 0;
}

/* Index of the first entry after an offset. */
static uint32_t find_offset(const struct dirlist *list, off_t off)
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
	bool upper = inode_has(dir, INODE_UPPER);
	unsigned int lowers = inode_lowers(dir);
	struct build b = { .o = o, .dir = dir, .quiet = quiet };
	int err = 0;

	/* Who has no name any more has no entries either. */
	if (inode_has(dir, INODE_ORPHAN)) {
		upper = false;
		lowers = 0;
	}
	b.merges = lowers + (upper ? 1 : 0) > 1;
	b.list = calloc(1, sizeof(*b.list));
	if (!b.list)
		return -ENOMEM;
	b.list->refs = 1;
	b.list->impure = inode_has(dir, INODE_IMPURE);
	if (upper)
		err = read_layer(&b, 0);
	for (unsigned int n = 0; n < lowers && err == 0; n++)
		err = read_layer(&b, stack->lower[n].layer);
	if (err == 0)
		err = put_in_order(&b);
	free(b.table);
	if (err < 0)
		dirlist_put(b.list);
	else
		*out = b.list;
	return err;
}

int dir_check_empty(struct ovl *o, struct ovl_inode *dir, bool *whiteouts)
{
	struct dirlist *list;
	int err = dirlist_read(o, dir, true, &list);

	if (err < 0)
		return err;
	*whiteouts = list->upper_whiteouts;
	err = list->shown || list->stuck ? -ENOTEMPTY : 0;
	dirlist_put(list);
	return err;
}

int ovl_opendir(struct ovl *o, ovl_node node, struct ovl_dir **out, bool *may_cache)
{
	int err;
	struct ovl_inode *i = inode_get_dir(o, node, &err);
	struct ovl_dir *d;

	if (!i)
		return err;
	d = calloc(1, sizeof(*d));
	if (!d) {
		inode_put(o, i);
		return -ENOMEM;
	}
	d->inode = i;
	d->cached = !(atomic_fetch_or(&i->flags, INODE_LISTED) & INODE_LISTED);
	*may_cache = d->cached;
	*out = d;
	return 0;
}

void ovl_closedir(struct ovl *o, struct ovl_dir *dir)
{
	if (!dir)
		return;
	if (dir->cached)
		inode_clear(dir->inode, INODE_LISTED);
	inode_put(o, dir->inode);
	dirlist_put(dir->list);
	free(dir);
}

/* The list of this pass, referenced. */
static int get_list(struct ovl *o, struct ovl_dir *d, bool anew, struct dirlist **out)
{
	struct dirlist *list = NULL;
	struct dirlist *old = NULL;
	uint32_t origins;
	int err = 0;

	lock_take(&d->lock);
	if (!anew && d->list)
		list = d->list;
	if (list)
		atomic_fetch_add(&list->refs, 1);
	lock_drop(&d->lock);
	if (list) {
		*out = list;
		return 0;
	}
	origins = atomic_load(&d->inode->origins);
	err = dirlist_read(o, d->inode, false, &list);
	if (err < 0)
		return err;
	atomic_fetch_add(&list->refs, 1);
	lock_take(&d->lock);
	old = d->list;
	d->list = list;
	d->origin_seen = !anew;
	d->origins = origins;
	lock_drop(&d->lock);
	dirlist_put(old);
	*out = list;
	return 0;
}

/* The union's number of an entry, and whether it has an origin. False: it was removed meanwhile. */
static bool entry_ino(struct ovl *o, struct ovl_inode *dir, const struct dirlist *list,
		      const struct entry *e, uint64_t *ino, bool *origin)
{
	const char *name = entry_name(list, e);
	struct ovl_inode *i = name_find(o, dir, name, e->len);
	struct looked_up l;
	int err;

	*origin = false;
	if (i) {
		*ino = i->ino;
		*origin = inode_has(i, INODE_ORIGIN);
		inode_put(o, i);
		return true;
	}
	*ino = ino_compose(o, o->layers[e->layer].dev, e->ino);
	if (e->layer != 0 || !(e->lower_too || list->impure || inode_has(dir, INODE_IMPURE)))
		return true;
	/* An upper object may have come from below, and shows that number. */
	err = lookup_real(o, dir, name, &l);
	if (err < 0)
		return err != -ENOENT;
	*ino = l.ino;
	*origin = l.flags & INODE_ORIGIN;
	looked_up_free(&l);
	return true;
}

int dir_list(struct ovl *o, struct ovl_inode *dir, dir_visit visit, void *ctx)
{
	struct dirlist *list;
	int err = dirlist_read(o, dir, true, &list);

	if (err < 0)
		return err;
	for (uint32_t n = 0; n < list->shown; n++) {
		const struct entry *e = &list->entries[list->order[n]];
		uint64_t ino;
		bool origin;

		if (entry_ino(o, dir, list, e, &ino, &origin) &&
		    !visit(ctx, entry_name(list, e), e->len, ino, e->type))
			break;
	}
	dirlist_put(list);
	return 0;
}

static uint64_t parent_ino(struct ovl *o, struct ovl_inode *dir)
{
	uint64_t ino = dir->ino;

	pthread_rwlock_rdlock(&o->topology);
	if (dir->names)
		ino = dir->names->parent->ino;
	pthread_rwlock_unlock(&o->topology);
	return ino;
}

static bool fill_dots(struct ovl *o, struct ovl_dir *d, off_t *off, ovl_filldir fill, void *ctx)
{
	static const char *const names[] = { ".", ".." };

	for (; *off < COOKIE_DOT_DOT; ++*off) {
		struct ovl_dirent e = {
			.name = names[*off],
			.name_len = (size_t)*off + 1,
			.ino = *off ? parent_ino(o, d->inode) : d->inode->ino,
			.type = DT_DIR,
			.next = *off ? COOKIE_DOT_DOT : COOKIE_DOT,
		};

		if (!fill(ctx, &e))
			return false;
	}
	return true;
}

/* One entry with its inode. Returns 1 when it is to be skipped. */
static int look_entry(struct ovl *o, struct ovl_inode *dir, const char *name, bool *origin,
		      struct ovl_entry *out)
{
	struct ovl_inode *i = NULL;
	int err = lookup_entry(o, dir, name, &i, out);

	if (err == 0)
		*origin = inode_has(i, INODE_ORIGIN);
	inode_put(o, i);
	return err == -ENOENT ? 1 : err;
}

/* One call of ovl_readdir(). */
struct pass {
	struct ovl *o;
	struct ovl_inode *dir;
	const struct dirlist *list;
	bool plus;
	ovl_filldir fill;
	void *ctx;
	bool origin_seen;
};

static bool fill_entry(struct pass *p, uint32_t index)
{
	const struct entry *e = &p->list->entries[p->list->order[index]];
	const char *name = entry_name(p->list, e);
	bool origin = false;
	struct ovl_entry entry;
	struct ovl_dirent d = {
		.name = name,
		.name_len = e->len,
		.type = e->type,
		.next = e->cookie,
	};

	if (p->plus) {
		int err = look_entry(p->o, p->dir, name, &origin, &entry);

		if (err > 0) /* removed since the list was made */
			return true;
		if (err == 0) {
			d.entry = &entry;
			d.ino = entry.attr.stx_ino;
			d.type = IFTODT(entry.attr.stx_mode);
		}
	}
	if (!d.entry && !entry_ino(p->o, p->dir, p->list, e, &d.ino, &origin))
		return true;
	p->origin_seen |= origin;
	if (p->fill(p->ctx, &d))
		return true;
	if (d.entry)
		ovl_forget(p->o, entry.node, 1);
	return false;
}

/* As the kernel does: who has read an impure directory to the end knows whether it still is. */
static void end_of_pass(struct ovl *o, struct ovl_inode *dir, uint32_t origins)
{
	if (inode_has(dir, INODE_UPPER) && inode_has(dir, INODE_IMPURE) &&
	    !inode_has(dir, INODE_ORPHAN) && !inode_lowers(dir))
		unmark_impure(o, dir, origins);
}

static bool count_dir(void *ctx, const char *name, size_t len, uint64_t ino, unsigned int type)
{
	uint32_t *links = ctx;

	*links += type == DT_DIR;
	return true;
}

void links_changed(struct ovl_inode *dir)
{
	uint64_t old = atomic_load(&dir->dir->links);
	uint64_t new;

	do
		new = ((old >> 32) + 1) << 32;
	while (!atomic_compare_exchange_weak(&dir->dir->links, &old, new));
}

int ovl_count_links(struct ovl *o, ovl_node node, uint32_t *out)
{
	int err;
	struct ovl_inode *dir = inode_get_dir(o, node, &err);
	uint64_t known;

	if (!dir)
		return err;
	known = atomic_load(&dir->dir->links);
	*out = (uint32_t)known;
	if (!*out) {
		*out = 2;
		err = dir_list(o, dir, count_dir, out);
		/* Not when it changed meanwhile. */
		if (err == 0)
			atomic_compare_exchange_strong(&dir->dir->links, &known, known | *out);
	}
	inode_put(o, dir);
	return err;
}

int ovl_readdir(struct ovl *o, struct ovl_dir *dir, off_t off, bool plus, ovl_filldir fill,
		void *ctx)
{
	struct pass p = { .o = o, .dir = dir->inode, .plus = plus, .fill = fill, .ctx = ctx };
	struct dirlist *list;
	bool pure = false;
	uint32_t origins = 0;
	uint32_t n;
	int err;

	if (off < 0)
		return -EINVAL;
	err = get_list(o, dir, off == 0, &list);
	if (err < 0)
		return err;
	p.list = list;
	if (fill_dots(o, dir, &off, fill, ctx)) {
		n = find_offset(list, off);
		while (n < list->shown && fill_entry(&p, n))
			n++;
		lock_take(&dir->lock);
		dir->origin_seen |= p.origin_seen;
		pure = n == list->shown && !dir->origin_seen;
		origins = dir->origins;
		lock_drop(&dir->lock);
	}
	if (pure)
		end_of_pass(o, dir->inode, origins);
	dirlist_put(list);
	return 0;
}
