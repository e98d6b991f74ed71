// SPDX-License-Identifier: MIT
/*
 * Walking through upper. Directories are held by O_PATH fds, those far up are given up and opened
 * anew on the way back: any depth can be walked with a bounded number of them.
 */
#include <dirent.h>
#include <fcntl.h>
#include <string.h>

#include "fsck/private.h"

/* How many directories on the way down stay open. */
#define OPEN_LEVELS 64

struct walk {
	struct fsck *f;
	const struct visitor *v;
	struct level **levels;
	size_t depth; /* levels in use */
	size_t capacity;
	char *path;
	size_t path_size;
	uint64_t mnt_id;
};

static void level_free(struct fsck *f, struct level *l)
{
	if (!l)
		return;
	for (size_t n = 0; n < l->count; n++)
		free(l->names[n]);
	free(l->names);
	free(l->types);
	free(l->name);
	free(l->below_path);
	below_put(f, &l->below);
	close_fd(l->fd);
	free(l);
}

static struct level *level_new(const char *name)
{
	struct level *l = calloc(1, sizeof(*l));

	if (!l)
		return NULL;
	l->fd = -1;
	l->name = strdup(name);
	if (l->name)
		return l;
	free(l);
	return NULL;
}

/* The fd of the level at the bottom, opened from the nearest one that still is. */
static int level_fd(struct walk *w)
{
	size_t n = w->depth - 1;

	while (w->levels[n]->fd < 0)
		n--;
	while (++n < w->depth) {
		int fd = at_open(w->levels[n - 1]->fd, w->levels[n]->name, O_PATH | O_DIRECTORY);

		if (fd < 0)
			return fd;
		w->levels[n]->fd = fd;
		if (n > 1 && w->depth - n > OPEN_LEVELS) {
			close_fd(w->levels[n - 1]->fd);
			w->levels[n - 1]->fd = -1;
		}
	}
	return w->levels[w->depth - 1]->fd;
}

static int push(struct walk *w, struct level *l)
{
	if (w->depth == w->capacity) {
		size_t capacity = w->capacity ? 2 * w->capacity : 32;
		struct level **levels = reallocarray(w->levels, capacity, sizeof(*levels));

		if (!levels)
			return -ENOMEM;
		w->levels = levels;
		w->capacity = capacity;
	}
	w->levels[w->depth++] = l;
	/* The root stays open: everything can be reached from there. */
	if (w->depth > OPEN_LEVELS + 1) {
		struct level *far = w->levels[w->depth - 1 - OPEN_LEVELS];

		if (far != w->levels[0]) {
			close_fd(far->fd);
			far->fd = -1;
		}
	}
	return 0;
}

/* Appends a name to the path of the level. */
static int path_set(struct walk *w, const struct level *dir, const char *name)
{
	size_t len = strlen(name);

	if (w->path_size < dir->path_len + len + 2) {
		size_t size = 2 * (dir->path_len + len + 2);
		char *path = realloc(w->path, size);

		if (!path)
			return -ENOMEM;
		w->path = path;
		w->path_size = size;
	}
	if (dir->path_len)
		w->path[dir->path_len] = '/';
	memcpy(w->path + dir->path_len + (dir->path_len ? 1 : 0), name, len + 1);
	return 0;
}

struct listing {
	struct entry {
		char *name;
		unsigned char type;
	} * entries;
	size_t count;
	size_t room;
};

static int compare_entries(const void *a, const void *b)
{
	return strcmp(((const struct entry *)a)->name, ((const struct entry *)b)->name);
}

static int listing_add(struct listing *list, const struct dirent *d)
{
	if (list->count == list->room) {
		size_t room = list->room ? 2 * list->room : 16;
		struct entry *entries = reallocarray(list->entries, room, sizeof(*entries));

		if (!entries)
			return -ENOMEM;
		list->entries = entries;
		list->room = room;
	}
	list->entries[list->count].name = strdup(d->d_name);
	list->entries[list->count].type = d->d_type;
	if (!list->entries[list->count].name)
		return -ENOMEM;
	list->count++;
	return 0;
}

/* Reads all names at once: what is repaired on the way must not disturb the listing. */
static int level_list(struct level *l)
{
	struct listing list = { 0 };
	autodir DIR *dir = NULL;
	struct dirent *d;
	int fd = at_open(l->fd, "", O_RDONLY | O_DIRECTORY | O_NOATIME);
	int err = 0;

	if (fd == -EPERM) /* somebody else's */
		fd = at_open(l->fd, "", O_RDONLY | O_DIRECTORY);
	if (fd < 0)
		return fd;
	dir = fdopendir(fd);
	if (!dir) {
		close_fd(fd);
		return -ENOMEM;
	}
	while (err == 0 && (d = at_readdir(dir)))
		err = listing_add(&list, d);
	if (err == 0 && errno)
		err = -errno;
	if (list.count)
		qsort(list.entries, list.count, sizeof(*list.entries), compare_entries);
	l->names = calloc(list.count + 1, sizeof(*l->names));
	l->types = calloc(list.count + 1, 1);
	for (size_t n = 0; n < list.count; n++) {
		if (!l->names || !l->types) {
			free(list.entries[n].name);
			continue;
		}
		l->names[n] = list.entries[n].name;
		l->types[n] = list.entries[n].type;
		l->count++;
	}
	if (!l->names || !l->types)
		err = -ENOMEM;
	free(list.entries);
	return err;
}

/* What is mounted inside upper is no part of it. */
static bool is_foreign(struct walk *w, int fd)
{
	struct statx st;

	if (!w->mnt_id || statx(fd, "", AT_EMPTY_PATH, STATX_MNT_ID, &st) < 0)
		return false;
	return (st.stx_mask & STATX_MNT_ID) && st.stx_mnt_id != w->mnt_id;
}

static int enter(struct walk *w, struct object *o, struct level *child)
{
	int err;

	child->fd = at_open(o->dirfd, o->name, O_PATH | O_DIRECTORY);
	if (child->fd < 0)
		return child->fd;
	if (is_foreign(w, child->fd))
		return 1;
	child->path_len = strlen(w->path);
	child->st = o->st;
	err = level_list(child);
	if (err == -EACCES || err == -EPERM) {
		err = finding(w->f, FSCK_UNREADABLE, o->path, strerror(-err));
		return err < 0 ? err : 1;
	}
	return err;
}

static int visit(struct walk *w, struct level *dir, const char *name)
{
	struct object o = { .name = name };
	struct level *child = NULL;
	int err = path_set(w, dir, name);

	if (err < 0)
		return err;
	o.dirfd = level_fd(w);
	o.path = w->path;
	if (o.dirfd < 0)
		return o.dirfd;
	err = object_read(w->f, &o);
	if (err == -ENOENT) /* a repair took it away */
		return 0;
	if (err == -EACCES || err == -EPERM)
		return finding(w->f, FSCK_UNREADABLE, o.path, strerror(-err));
	if (err < 0)
		return err;
	if (w->v->dirs_only && !S_ISDIR(o.st.stx_mode))
		return 0;
	if (S_ISDIR(o.st.stx_mode)) {
		child = level_new(name);
		if (!child)
			return -ENOMEM;
	}
	err = w->v->object(w->f, dir, &o, child);
	if (err == 0 && child)
		err = enter(w, &o, child);
	if (err == 0 && child)
		err = push(w, child);
	if (err != 0 || !child) {
		level_free(w->f, child);
		return err < 0 ? err : 0;
	}
	return 0;
}

static int leave(struct walk *w, struct level *dir)
{
	struct object o = { .dirfd = level_fd(w), .name = "", .path = w->path };
	int err = 0;

	if (w->v->leave) {
		w->path[dir->path_len] = '\0';
		if (!dir->path_len)
			o.path = ".";
		if (o.dirfd < 0)
			return o.dirfd;
		err = object_read(w->f, &o);
		if (err == 0)
			err = w->v->leave(w->f, dir, &o);
	}
	w->depth--;
	level_free(w->f, dir);
	return err;
}

static int start(struct walk *w)
{
	struct level *root = level_new("");
	struct statx st;
	int err;

	if (!root)
		return -ENOMEM;
	w->path = calloc(1, 256);
	w->path_size = 256;
	below_root(w->f, &root->below);
	root->below_path = w->f->below ? strdup("") : NULL;
	root->fd = at_open(w->f->upper.root->fd, "", O_PATH | O_DIRECTORY);
	err = root->fd < 0 ? root->fd : at_statx(root->fd, "", &root->st);
	if (err == 0 && (!w->path || (w->f->below && !root->below_path)))
		err = -ENOMEM;
	if (err == 0)
		err = level_list(root);
	if (err == 0 && statx(root->fd, "", AT_EMPTY_PATH, STATX_MNT_ID, &st) == 0 &&
	    (st.stx_mask & STATX_MNT_ID))
		w->mnt_id = st.stx_mnt_id;
	if (err == 0)
		err = push(w, root);
	if (err < 0)
		level_free(w->f, root);
	return err;
}

int scan(struct fsck *f, const struct visitor *v)
{
	struct walk w = { .f = f, .v = v };
	int err = start(&w);

	while (err == 0 && w.depth) {
		struct level *dir = w.levels[w.depth - 1];

		if (fsck_cancelled(f))
			err = -ECANCELED;
		else if (dir->next == dir->count)
			err = leave(&w, dir);
		else if (v->dirs_only && dir->types[dir->next] != DT_DIR &&
			 dir->types[dir->next] != DT_UNKNOWN)
			dir->next++;
		else
			err = visit(&w, dir, dir->names[dir->next++]);
	}
	if (err < 0 && err != -ECANCELED && !f->message[0])
		snprintf(f->message, f->size, "cannot check %s: %s", w.path ? w.path : "upperdir",
			 strerror(-err));
	while (w.depth)
		level_free(f, w.levels[--w.depth]);
	free(w.levels);
	free(w.path);
	return err;
}
