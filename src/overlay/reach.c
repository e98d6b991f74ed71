// SPDX-License-Identifier: MIT
/*
 * How real objects are reached: the real directory of a parent, from the fd cache or opened anew
 * from the nearest ancestor that is in it, and one name in it.
 */
#include <linux/limits.h>

#include "overlay/index.h"
#include "util/at.h"

/* Paths are opened in pieces that leave room under PATH_MAX. */
#define PIECE_MAX 3072

int open_ref(struct ovl *o, struct layer_ref *at, const char *path, enum layer_open how,
	     struct layer_ref **out)
{
	int err;

	do {
		err = layer_open(at, path, how, out);
	} while (fdcache_made_room(&o->fds, err));
	return err;
}

int open_fd(struct ovl *o, struct layer_ref *at, const char *name, int flags)
{
	int fd;

	do {
		fd = at_open(layer_fd(at), name, flags);
	} while (fdcache_made_room(&o->fds, fd));
	return fd;
}

struct real_dir *stack_find(struct ovl_inode *dir, unsigned int layer)
{
	struct dirstack *stack = dir->dir;
	unsigned int low = 0;
	unsigned int high = stack->lower_count;

	if (layer == 0)
		return inode_has(dir, INODE_UPPER) ? &stack->upper : NULL;
	while (low < high) {
		unsigned int mid = (low + high) / 2;

		if (stack->lower[mid].layer == layer)
			return &stack->lower[mid];
		if (stack->lower[mid].layer < layer)
			low = mid + 1;
		else
			high = mid;
	}
	return NULL;
}

int layer_path(struct ovl *o, struct ovl_inode *dir, unsigned int layer, const char *name,
	       bool topology_held, char **out)
{
	size_t size = strlen(name) + 1;
	char *path = NULL;
	int err = 0;

	if (!topology_held)
		pthread_rwlock_rdlock(&o->topology);
	/* twice: to count, and to fill from the end */
	for (int pass = 0; pass < 2 && err == 0; pass++) {
		size_t pos = size;

		if (pass == 1) {
			path = malloc(size);
			if (!path) {
				err = -ENOMEM;
				break;
			}
			pos -= strlen(name) + 1;
			memcpy(path + pos, name, strlen(name) + 1);
		}
		for (struct ovl_inode *d = dir; d != o->root;) {
			struct real_dir *real = stack_find(d, layer);
			const char *part;

			if (!real || !d->names || d->self) {
				err = -ESTALE;
				break;
			}
			part = real->path ? real->path : d->names->text;
			if (pass == 0) {
				size += strlen(part) + 1;
			} else {
				path[--pos] = '/';
				pos -= strlen(part);
				memcpy(path + pos, part, strlen(part));
			}
			if (real->path)
				break;
			d = d->names->parent;
		}
	}
	if (!topology_held)
		pthread_rwlock_unlock(&o->topology);
	if (err < 0)
		free(path);
	else
		*out = path;
	return err;
}

int open_path(struct ovl *o, struct layer_ref *base, const char *path, enum layer_open how,
	      struct layer_ref **out)
{
	autoref struct layer_ref *at = base;
	char piece[PIECE_MAX + NAME_MAX + 2];

	for (;;) {
		struct layer_ref *next;
		size_t len = strlen(path);
		bool last = len <= PIECE_MAX;
		int err;

		if (!last) {
			len = PIECE_MAX;
			while (len && path[len] != '/')
				len--;
			if (!len)
				return -ENAMETOOLONG;
		}
		memcpy(piece, path, len);
		piece[len] = '\0';
		err = open_ref(o, at, piece, last ? how : LAYER_OPEN_PATH, &next);
		if (err < 0)
			return err;
		layer_ref_put(at);
		at = next;
		path += len;
		if (last)
			break;
		path++;
	}
	*out = take_ref(&at);
	return 0;
}

/* Names from a directory up to an ancestor, collected deepest first. */
struct chain {
	const struct ovl_name **names;
	size_t count;
	size_t room;
	size_t bytes;
};

static int chain_push(struct chain *c, const struct ovl_name *name)
{
	if (c->count == c->room) {
		size_t room = c->room ? c->room * 2 : 32;
		void *names = realloc(c->names, room * sizeof(*c->names));

		if (!names)
			return -ENOMEM;
		c->names = names;
		c->room = room;
	}
	c->names[c->count++] = name;
	c->bytes += (size_t)name->len + 1;
	return 0;
}

static char *chain_path(const struct chain *c)
{
	char *path = malloc(c->bytes + 1);
	char *p = path;

	if (!path)
		return NULL;
	for (size_t n = c->count; n-- > 0;) {
		memcpy(p, c->names[n]->text, c->names[n]->len);
		p += c->names[n]->len;
		if (n)
			*p++ = '/';
	}
	*p = '\0';
	return path;
}

/*
 * Finds an opened ancestor to start from, and the names from there. ovl.topology is held. The paths
 * of redirects are opened on the way.
 */
static int find_start(struct ovl *o, struct ovl_inode *dir, unsigned int layer, struct chain *c,
		      struct layer_ref **start)
{
	for (struct ovl_inode *d = dir;; d = d->names->parent) {
		struct real_dir *real;
		int err;

		if (d == o->root) {
			*start = layer_ref_get(o->layers[layer].root);
			return 0;
		}
		if (d->self) {
			if (d->self->layer->index != layer)
				return -ESTALE;
			*start = layer_ref_get(d->self);
			return 0;
		}
		real = stack_find(d, layer);
		if (!real || !d->names)
			return -ESTALE;
		*start = fdcache_get(&o->fds, &real->ref);
		if (*start)
			return 0;
		if (real->path)
			return open_path(o, layer_ref_get(o->layers[layer].root), real->path,
					 LAYER_OPEN_DIR, start);
		err = chain_push(c, d->names);
		if (err < 0)
			return err;
	}
}

static int walk(struct ovl *o, struct ovl_inode *dir, unsigned int layer, struct layer_ref **out)
{
	struct chain c = { 0 };
	autofree char *path = NULL;
	struct layer_ref *start;
	int err = find_start(o, dir, layer, &c, &start);

	if (err == 0 && c.count) {
		path = chain_path(&c);
		if (path) {
			err = open_path(o, start, path, LAYER_OPEN_DIR, &start);
		} else {
			layer_ref_put(start);
			err = -ENOMEM;
		}
	}
	free(c.names);
	if (err == 0)
		*out = start;
	/* It was there when it was looked up: somebody changed the layer behind our back. */
	return err == -ENOENT || err == -ENOTDIR || err == -ELOOP ? -ESTALE : err;
}

int dir_ref(struct ovl *o, struct ovl_inode *dir, unsigned int layer, bool topology_held,
	    struct layer_ref **out)
{
	struct real_dir *real;
	int err;

	if (dir == o->root) {
		*out = layer_ref_get(o->layers[layer].root);
		return 0;
	}
	real = stack_find(dir, layer);
	if (!real)
		return -ESTALE;
	*out = fdcache_get(&o->fds, &real->ref);
	if (*out)
		return 0;
	if (!topology_held)
		pthread_rwlock_rdlock(&o->topology);
	err = walk(o, dir, layer, out);
	if (err == 0 && !inode_has(dir, INODE_ORPHAN))
		fdcache_offer(&o->fds, &real->ref, *out);
	if (!topology_held)
		pthread_rwlock_unlock(&o->topology);
	return err;
}

/*
 * Takes the locks; -EAGAIN when somebody copied @i up, which can only end without them, and that
 * matters.
 */
static int lock_both(struct ovl *o, const struct ovl_caller *caller, struct ovl_inode *parent,
		     struct ovl_inode *i, bool settled)
{
	int err;

	if (parent)
		lock_take(&parent->lock);
	lock_take(&i->lock);
	if (!settled || !inode_has(i, INODE_COPYING))
		return 0;
	if (parent)
		lock_drop(&parent->lock);
	err = copyup_wait(o, caller, i);
	lock_drop(&i->lock);
	return err < 0 ? err : -EAGAIN;
}

static void unlock_both(struct ovl_inode *parent, struct ovl_inode *i)
{
	lock_drop(&i->lock);
	if (parent)
		lock_drop(&parent->lock);
}

static int reach_how(struct ovl *o, const struct ovl_caller *caller, struct ovl_inode *parent,
		     struct ovl_inode *i, bool settled, struct reach *r)
{
	autoref struct layer_ref *found = NULL;
	struct ovl_inode *found_dir = NULL;

	/*
	 * A directory that is not in the cache has to be opened without these locks, since building
	 * a path comes first in the lock order; afterwards the object may have moved: look again.
	 */
	for (;;) {
		struct ovl_inode *dir;
		struct real_dir *real;
		unsigned int layer;
		int err = lock_both(o, caller, parent, i, settled);

		if (err == -EAGAIN)
			continue;
		if (err < 0)
			return err;
		if (i->self) {
			r->at = layer_ref_get(i->self);
			r->name = "";
			return 0;
		}
		if (!i->dir && !i->names) {
			unlock_both(parent, i);
			return -ESTALE;
		}
		if (!i->dir && inode_has(i, INODE_INDEXED)) {
			r->at = layer_ref_get(o->index);
			r->name = i->index->name;
			return 0;
		}
		layer = i->dir ? inode_top_layer(i) : i->names->layer;
		dir = i->dir ? i : i->names->parent;
		r->name = i->dir ? "" : i->names->text;
		if (found && dir == found_dir && found->layer->index == layer) {
			r->at = take_ref(&found);
			return 0;
		}
		real = stack_find(dir, layer);
		if (dir == o->root)
			r->at = layer_ref_get(o->layers[layer].root);
		else
			r->at = real ? fdcache_get(&o->fds, &real->ref) : NULL;
		if (r->at)
			return 0;
		atomic_fetch_add_explicit(&dir->refs, 1, memory_order_relaxed);
		unlock_both(parent, i);
		layer_ref_put(take_ref(&found));
		err = dir_ref(o, dir, layer, false, &found);
		found_dir = dir;
		inode_put(o, dir);
		if (err < 0)
			return err;
	}
}

int reach_in(struct ovl *o, const struct ovl_caller *caller, struct ovl_inode *parent,
	     struct ovl_inode *i, struct reach *r)
{
	return reach_how(o, caller, parent, i, true, r);
}

void reach_in_done(struct ovl_inode *parent, struct ovl_inode *i, struct reach *r)
{
	unlock_both(parent, i);
	layer_ref_put(r->at);
	r->at = NULL;
}

int reach(struct ovl *o, struct ovl_inode *i, struct reach *r)
{
	return reach_how(o, NULL, NULL, i, false, r);
}

int reach_settled(struct ovl *o, const struct ovl_caller *caller, struct ovl_inode *i,
		  struct reach *r)
{
	return reach_how(o, caller, NULL, i, true, r);
}

void reach_done(struct ovl_inode *i, struct reach *r)
{
	reach_in_done(NULL, i, r);
}

/*
 * Opens the contents. Whether the caller may was checked by who asks us; where modes bind us too,
 * they are made accessible for the moment. @i->lock is held.
 */
static int open_contents(struct ovl *o, struct reach *r, enum layer_open how,
			 struct layer_ref **out)
{
	int err = open_ref(o, r->at, r->name, how, out);
	mode_t kept;

	if (!mode_forbids(o, r->at, err) ||
	    mode_widen(o, r->at, r->name, S_IRUSR | S_IWUSR, &kept) < 0)
		return err;
	err = open_ref(o, r->at, r->name, how, out);
	mode_restore(o, r->at, r->name, kept);
	return err;
}

/* Whether opened contents are those that @i has now. */
static bool is_current(struct ovl_inode *i, struct layer_ref *ref, bool write)
{
	/* There is one place below only where the data of a metacopy can be. */
	if (inode_is_metacopy(i))
		return ref->layer->index != 0 && !write;
	return ref->layer->index == inode_top_layer(i) && (!write || ref->writable);
}

static int open_verified(struct ovl *o, struct ovl_inode *i, struct reach *r,
			 struct layer_ref **out)
{
	int err = data_open(o, i->data, out);

	if (err < 0)
		return err;
	err = verity_check(o, i, r->at, r->name, *out);
	if (err < 0)
		layer_ref_put(take_ref(out));
	return err;
}

/* @i->lock is held. */
static int open_current(struct ovl *o, struct ovl_inode *i, bool write, struct reach *r,
			struct layer_ref **out)
{
	struct statx st;
	int err;

	if (inode_is_metacopy(i))
		return write ? -EROFS : open_verified(o, i, r, out);
	if (write && r->at->layer->index != 0)
		return -EROFS;
	err = open_contents(o, r, write ? LAYER_OPEN_WRITE : LAYER_OPEN_READ, out);
	if (err == 0)
		err = layer_stat(*out, "", &st);
	if (err == 0 && !S_ISREG(st.stx_mode))
		err = -ESTALE;
	return err == -ENOENT || err == -ELOOP ? -ESTALE : err;
}

int file_ref(struct ovl *o, struct ovl_inode *i, bool write, struct layer_ref **out)
{
	autoref struct layer_ref *ref = fdcache_get(&o->fds, &i->file);
	struct reach r;
	bool guessed;
	int err;

	if (i->type != DT_REG)
		return i->dir ? -EISDIR : -EINVAL;
	if (ref && is_current(i, ref, write)) {
		*out = take_ref(&ref);
		return 0;
	}
	layer_ref_put(take_ref(&ref));
	err = reach(o, i, &r);
	if (err < 0)
		return err;
	guessed = inode_is_metacopy(i) && !i->data->layer;
	err = open_current(o, i, write, &r, &ref);
	if (err == 0)
		fdcache_set(&o->fds, &i->file, ref);
	guessed = guessed && i->data->layer;
	reach_done(i, &r);
	if (guessed) /* st_blocks is known now */
		attr_notify(o, i, false);
	if (err == 0)
		*out = take_ref(&ref);
	return err;
}
