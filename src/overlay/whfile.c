// SPDX-License-Identifier: MIT
#include "overlay/whfile.h"

#include <limits.h>

#include "overlay/nameset.h"
#include "util/at.h"

/* Names in one set at most; where there are more, every missing name is asked for. */
#define NAMES_MAX 65536

/* Permission bits of what nobody reads; fuse-overlayfs' own. */
#define WH_MODE 0700

/*
 * The names that a real directory hides. Of a lower layer it is constant once it is in its
 * real_dir; of upper it is guarded by ovl.wh_lock, and freed with its inode or, under the lock,
 * when another takes its place.
 */
struct wh_set {
	struct nameset *names;
	bool listed; /* the directory was: until then only names that were added are in it */
};

/* Two that belong to nobody: most directories hide nothing, and a few cannot be told. */
static struct wh_set no_names = { .listed = true };
static struct wh_set any_name = { .listed = true };

void wh_init(struct ovl *o)
{
	pthread_mutex_init(&o->wh_lock, NULL);
}

void wh_destroy(struct ovl *o)
{
	pthread_mutex_destroy(&o->wh_lock);
}

void wh_set_free(struct wh_set *set)
{
	if (!set || set == &no_names || set == &any_name)
		return;
	free(set->names);
	free(set);
}

static uint32_t hash_of(const struct ovl *o, const char *name)
{
	return nameset_hash(o->table.seed, name, strlen(name));
}

static bool has_hash(const struct wh_set *set, uint32_t hash)
{
	return set == &any_name || nameset_has(set->names, hash);
}

/* Adds a hash to a set of the caller's, or NULL. */
static int add_hash(struct wh_set **set, uint32_t hash)
{
	if (*set == &any_name || (*set && has_hash(*set, hash)))
		return 0;
	if (*set && nameset_count((*set)->names) >= NAMES_MAX) {
		wh_set_free(*set);
		*set = &any_name;
		return 0;
	}
	if (!*set)
		*set = calloc(1, sizeof(**set));
	return *set ? nameset_add(&(*set)->names, hash) : -ENOMEM;
}

/* --- listing a directory ------------------------------------------------------------------------
 */

struct listing {
	struct ovl *o;
	struct wh_set *set;
	int err;
};

static bool collect(void *ctx, const char *name, size_t len, uint64_t ino, unsigned int type)
{
	struct listing *l = ctx;
	const char *hidden = fmt_wh_hidden(name);

	l->err = hidden ? add_hash(&l->set, hash_of(l->o, hidden)) : 0;
	return l->err == 0 && l->set != &any_name;
}

/* What a directory hides. Where that cannot be told, it is asked for each name. */
static struct wh_set *list_names(struct ovl *o, struct layer_ref *at)
{
	struct listing l = { .o = o };
	int err = real_readdir(o, at, true, collect, &l);

	if (err < 0 || l.err < 0) {
		wh_set_free(l.set);
		return &any_name;
	}
	if (!l.set)
		return &no_names;
	if (l.set != &any_name)
		l.set->listed = true;
	return l.set;
}

/* Names of upper that were added while it was listed. ovl.wh_lock is held. */
static struct wh_set *merge(struct wh_set *set, const struct wh_set *added)
{
	if (set == &any_name || !nameset_count(added->names))
		return set;
	if (set == &no_names)
		set = calloc(1, sizeof(*set));
	if (!set || nameset_merge(&set->names, added->names) < 0) {
		wh_set_free(set);
		return &any_name;
	}
	set->listed = true;
	return set;
}

/* Puts the set of a listed directory where all find it, unless somebody else was first. */
static void publish(struct ovl *o, struct real_dir *real, struct wh_set *set)
{
	struct wh_set *old;

	pthread_mutex_lock(&o->wh_lock);
	old = atomic_load(&real->wh);
	if (old && (old->listed || old == &any_name)) {
		wh_set_free(set);
	} else {
		atomic_store(&real->wh, old ? merge(set, old) : set);
		wh_set_free(old);
	}
	pthread_mutex_unlock(&o->wh_lock);
}

/* Whether a set that is there may have the name; -1: the directory is to be listed first. */
static int known(struct ovl *o, struct real_dir *real, unsigned int layer, uint32_t hash)
{
	struct wh_set *set = atomic_load_explicit(&real->wh, memory_order_acquire);
	int found;

	if (!set)
		return -1;
	if (layer || set == &no_names || set == &any_name)
		return has_hash(set, hash);
	pthread_mutex_lock(&o->wh_lock);
	set = atomic_load(&real->wh);
	found = set->listed || has_hash(set, hash) ? has_hash(set, hash) : -1;
	pthread_mutex_unlock(&o->wh_lock);
	return found;
}

/* Whether there is a layer below @layer in @dir. */
static bool is_lowest(const struct ovl_inode *dir, unsigned int layer)
{
	unsigned int lowers = inode_lowers(dir);

	return !lowers || dir->dir->lower[lowers - 1].layer <= layer;
}

static void wh_name(const char *name, char out[NAME_MAX + FMT_WH_PREFIX_LEN + 1])
{
	snprintf(out, NAME_MAX + FMT_WH_PREFIX_LEN + 1, FMT_WH_PREFIX "%s", name);
}

static int ask(struct layer_ref *at, const char *name)
{
	autoref struct layer_ref *file = NULL;
	struct statx st;
	int err = layer_stat(at, name, &st);

	/* It is there, whatever an attribute makes of it (override.h). */
	if (unlikely(err == -EIO) && at->layer->override_count)
		err = layer_open(at, name, LAYER_OPEN_PATH, &file);
	return err == -ENOENT || err == -ENAMETOOLONG ? 0 : err < 0 ? err : 1;
}

int wh_hides_at(struct ovl *o, struct layer_ref *at, const char *name)
{
	char file[NAME_MAX + FMT_WH_PREFIX_LEN + 1];

	if (!o->compat.whiteout_files)
		return 0;
	wh_name(name, file);
	return ask(at, file);
}

int wh_hides(struct ovl *o, struct ovl_inode *dir, struct layer_ref *at, const char *name)
{
	unsigned int layer = at->layer->index;
	struct real_dir *real;
	uint32_t hash;
	int found;

	if (!o->compat.whiteout_files || is_lowest(dir, layer))
		return 0;
	real = o->layers_may_change ? NULL : stack_find(dir, layer);
	if (!real)
		return wh_hides_at(o, at, name);
	hash = hash_of(o, name);
	found = known(o, real, layer, hash);
	if (found < 0) {
		publish(o, real, list_names(o, at));
		found = known(o, real, layer, hash);
	}
	return found ? wh_hides_at(o, at, name) : 0;
}

int wh_hides_in(struct ovl *o, struct ovl_inode *dir, unsigned int layer, const char *name)
{
	autoref struct layer_ref *at = NULL;
	struct real_dir *real;
	int err;

	if (likely(!o->compat.whiteout_files) || is_lowest(dir, layer))
		return 0;
	real = o->layers_may_change ? NULL : stack_find(dir, layer);
	if (real && known(o, real, layer, hash_of(o, name)) == 0)
		return 0;
	err = dir_ref(o, dir, layer, false, &at);
	return err < 0 ? err : wh_hides(o, dir, at, name);
}

int wh_opaque(struct ovl *o, struct layer_ref *at, const char *name)
{
	autoref struct layer_ref *dir = NULL;
	mode_t kept;
	int err;

	if (!o->compat.whiteout_files)
		return 0;
	err = open_ref(o, at, name, LAYER_OPEN_PATH, &dir);
	if (err < 0)
		return err;
	err = ask(dir, FMT_WH_OPAQUE);
	if (mode_forbids(o, at, err) && mode_widen(o, at, name, S_IXUSR, &kept) == 0) {
		err = ask(dir, FMT_WH_OPAQUE);
		mode_restore(o, at, name, kept);
	}
	/* A lower one that we may not search shows nothing of what is in it, whatever is below. */
	return err == -EACCES && at->layer->index ? 0 : err;
}

/* --- writing ------------------------------------------------------------------------------------
 */

/* From now on the set has the name. */
static int add_name(struct ovl *o, struct ovl_inode *dir, const char *name)
{
	struct real_dir *real = &dir->dir->upper;
	struct wh_set *set;
	int err;

	pthread_mutex_lock(&o->wh_lock);
	set = atomic_load(&real->wh);
	if (set == &no_names) {
		set = NULL;
		err = add_hash(&set, hash_of(o, name));
		if (err == 0)
			set->listed = true;
	} else {
		err = add_hash(&set, hash_of(o, name));
	}
	if (err == 0)
		atomic_store(&real->wh, set);
	pthread_mutex_unlock(&o->wh_lock);
	return err;
}

static int make_file(int dirfd, const char *name)
{
	if (mknodat(dirfd, name, S_IFREG | WH_MODE, 0) == 0)
		return 1;
	return errno == EEXIST ? 0 : -errno;
}

int wh_put(struct ovl *o, struct ovl_inode *dir, struct layer_ref *upper, const char *name)
{
	char file[NAME_MAX + FMT_WH_PREFIX_LEN + 1];
	int err = add_name(o, dir, name);

	if (err < 0)
		return err;
	wh_name(name, file);
	return make_file(layer_fd(upper), file);
}

void wh_drop(struct ovl *o, struct ovl_inode *dir, struct layer_ref *upper, const char *name)
{
	char file[NAME_MAX + FMT_WH_PREFIX_LEN + 1];

	if (wh_hides(o, dir, upper, name) != 1)
		return;
	wh_name(name, file);
	at_unlink(layer_fd(upper), file, 0);
}

int wh_put_opaque(int dirfd, const char *name)
{
	char file[NAME_MAX + sizeof(FMT_WH_OPAQUE) + 1];
	int err;

	snprintf(file, sizeof(file), "%s/" FMT_WH_OPAQUE, name);
	err = make_file(dirfd, file);
	return err < 0 ? err : 0;
}

void wh_expect_none(struct ovl *o, struct ovl_inode *dir)
{
	if (o->compat.whiteout_files)
		publish(o, &dir->dir->upper, &no_names);
}
