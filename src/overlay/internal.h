/* SPDX-License-Identifier: MIT */
/*
 * What the files of the engine share. See docs/architecture.md for the picture.
 *
 * Locks, in the order in which they are taken:
 *   1. ovl.topology       names of directories. Written by rename of a directory and rmdir, read
 *                         while a directory's path is built (reach.c) and by renames between
 *                         directories.
 *   2. ovl_inode.lock     of directories: held while their contents change. A parent before its
 *                         child; the two parents of a rename by address, under topology.
 *   3. ovl_inode.lock     of other objects, two of them by address: where the object is.
 *   4. ovl.whiteout_lock  the shared whiteout.
 *   5. ovl.mtimes         who changes contents without changing mtime.
 *   6. ovl.modes_lock     modes of upper objects that are not what they should be for a moment.
 *   7. leaves, never two at once: the table's shards, the name and link shards, the fd cache,
 *                         the survey, ovl.wh_lock, the cache of listings, an index of
 *                         names (in the lock of their list).
 * None of them is held across a copy of data, a wait for another request, or a reply.
 */
#pragma once

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/sysmacros.h>

#include "overlay/fdcache.h"
#include "overlay/format.h"
#include "overlay/layer.h"
#include "overlay/ovl.h"
#include "util/base.h"
#include "util/lock.h"

struct dirlist;
struct dirnames;
struct ovl_inode;
struct wh_set;
struct writeback;

/* Changes under way that leave mtime alone; see mtime.c. */
struct mtime_note {
	const struct ovl_inode *inode; /* NULL: this one does change it */
	struct timespec mtime;         /* lock of the shard, as next */
	struct mtime_note *next;
};

struct mtime_shard {
	struct lock lock;
	struct mtime_note *first; /* of several files; each note belongs to who changes one */
};

/* A name of an object: a directory entry of the union that somebody looked up. */
struct ovl_name {
	struct ovl_name *hash_next; /* guarded by its name shard */
	struct ovl_name *next;      /* of the inode's other names; guarded by the inode's lock */
	struct ovl_inode *parent;   /* a reference is held */
	struct ovl_inode *inode;    /* none is held: the inode owns its names */
	uint32_t hash;
	/*
	 * Of a non-directory: the layer in which this name leads to it, 0 for upper. With an index
	 * some names may be in upper and others not yet. Guarded by the inode's lock.
	 */
	uint16_t layer;
	uint8_t len;
	char text[];
};

/* One real directory of those that a directory unites. */
struct real_dir {
	struct layer_ref *ref; /* slot of the fd cache */
	/*
	 * Path below the layer's root where a redirect leads; NULL: the directory of the same layer
	 * in the parent, and there our name. Guarded by topology: a merged directory that is moved
	 * gets the path it had.
	 */
	char *path;
	/* Which names it hides by files (whfile.h, which says what guards it); NULL: not known. */
	struct wh_set *_Atomic wh;
	uint16_t layer; /* constant */
};

/*
 * Where the data of a file is whose topmost object is a metacopy: a lower file, found by its path
 * below the layer's root. Made once in the life of an inode, and owned by it.
 */
struct data_place {
	/* 0: one of the data-only layers, to be found at the first use */
	_Atomic uint16_t layer;
	_Atomic uint64_t blocks; /* st_blocks */
	bool linked; /* the topmost lower object is a hard link: other names must lead here too */
	char path[];
};

/* The real directories of a directory. The array is fixed when the inode is made. */
struct dirstack {
	struct real_dir upper; /* meaningful once INODE_UPPER is set */
	/* What ovl_count_links() found, 0: nothing yet; above 32 bits how often that was undone. */
	_Atomic uint64_t links;
	struct dirlist *list; /* overlay/dirlist.h; guarded by its cache */
	/*
	 * Changes whenever what a listing says may have changed: after a name came, went or moved,
	 * or its object was copied up, and before something with an origin comes. Under the lock of
	 * the directory, but for the last, when it is found in a lookup.
	 */
	_Atomic uint32_t version;
	uint16_t lower_count;
	_Atomic uint8_t patience;       /* overlay/dirnames.h: when it is read for its names */
	_Atomic uint32_t misses;        /* questions in vain since the last time */
	struct dirnames *_Atomic names; /* which there are; NULL: not known. Set once. */
	struct real_dir lower[];        /* topmost first */
};

enum inode_flag {
	INODE_UPPER = 1 << 0,     /* has an upper object; set once, by copy-up */
	INODE_ORIGIN = 1 << 1,    /* upper object that knows its lower origin */
	INODE_IMPURE = 1 << 2,    /* upper directory is marked impure */
	INODE_OPAQUE = 1 << 3,    /* upper directory is marked opaque */
	INODE_COPYING = 1 << 4,   /* somebody copies it up; set and cleared under the lock */
	INODE_ORPHAN = 1 << 5,    /* has no name any more, or never had: self is set */
	INODE_LINKED = 1 << 6,    /* is in the link hash; guarded by its shard */
	INODE_XWHITE = 1 << 7,    /* a lower directory may hold xattr whiteouts */
	INODE_PLAIN = 1 << 8,     /* the topmost object has no ACLs and no capabilities */
	INODE_NO_DEFACL = 1 << 9, /* upper directory is known to have no default ACL */
	INODE_TO_INDEX = 1 << 16, /* gets an index entry when it is copied up; constant */
	INODE_INDEXED = 1 << 17,  /* has one; cleared when the union has no name of it any more */
	INODE_ALIASES = 1 << 18,  /* is in upper, but not by all of its names */
	INODE_METACOPY = 1 << 10, /* the topmost object has no data: data is set; cleared once */
	INODE_UNSYNCED = 1 << 11, /* copied up, and perhaps not on disk that it is */
	INODE_VERIFIED = 1 << 20, /* the data of a metacopy has the digest that it should have */
};

struct ovl_inode {
	ovl_node node;         /* constant */
	uint64_t nlookup;      /* guarded by the table shard */
	_Atomic uint32_t refs; /* lookups (one for all), names of children, running calls */
	struct lock lock;
	_Atomic uint32_t flags; /* enum inode_flag; changed under the lock */
	union {
		uint32_t nopen; /* open files; guarded by the lock */
		/* Directories: how often a name in it went or moved; changed under the lock. */
		_Atomic uint32_t changes;
	};
	uint16_t lower; /* layer of the lower object, 0: none; non-directories; constant */
	uint8_t type;   /* DT_*; constant */
	_Atomic uint8_t protattr; /* FS_IMMUTABLE_FL, FS_APPEND_FL; changed under the lock */
	_Atomic uint64_t ino;     /* st_ino of the union; changed at copy-up */
	struct ovl_name *names;   /* guarded by the lock; of a directory also by topology */
	struct dirstack *dir;     /* directories; constant */
	/*
	 * The object itself, when no name leads to it: unlinked and still in use, or O_TMPFILE.
	 * Guarded by the lock, of directories also by topology. A reference is held.
	 */
	struct layer_ref *self;
	struct layer_ref *file;    /* opened contents; slot of the fd cache */
	struct index_entry *index; /* overlay/index.h; set before INODE_INDEXED is, then constant */
	struct data_place *data;   /* set before INODE_METACOPY is, and then constant */

	/* Link hash (table.c): where hard links find each other. */
	struct ovl_inode *link_next; /* guarded by the link shard */
	uint64_t link_ino;           /* st_ino and st_dev of the real object */
	dev_t link_dev;
};

#define TABLE_SHARDS 64
#define CHUNK_SLOTS  4096
#define CHUNKS_MAX   (1 << 18) /* 2^30 inodes */

struct slot {
	struct ovl_inode *inode; /* NULL: free */
	uint32_t generation;     /* of the inode that lives here or will next */
	uint32_t next_free;
};

struct slot_shard {
	pthread_mutex_t lock;
};

/* Each shard is a hash table of its own, which grows under its own lock. */
struct name_shard {
	pthread_mutex_t lock;
	struct ovl_name **buckets;
	size_t mask;
	size_t count;
};

struct link_shard {
	pthread_mutex_t lock;
	struct ovl_inode **buckets;
	size_t mask;
	size_t count;
};

struct table {
	struct slot_shard shards[TABLE_SHARDS]; /* by slot index: slot.inode, inode.nlookup */
	struct name_shard names[TABLE_SHARDS];
	struct link_shard links[TABLE_SHARDS];
	struct slot *_Atomic *chunks;
	pthread_mutex_t alloc_lock; /* making of chunks, the free list */
	_Atomic uint32_t slots;     /* ever used */
	uint32_t free_head;         /* 0: none */
	_Atomic uint64_t inodes;
	_Atomic uint64_t name_count;
	_Atomic uint64_t freed; /* inodes since memory was last given back */
	uint64_t seed;          /* of the hash, so that nobody can choose names that collide */
};

/* Listings that are shared: overlay/dirlist.h. */
struct dirlists {
	pthread_mutex_t lock;
	struct dirlist *head; /* most recently used */
	struct dirlist *tail;
	size_t bytes;
	unsigned int count;
};

/* Of all indices of names: overlay/dirnames.h. */
struct dirnames_list {
	pthread_mutex_t lock;
	struct dirnames *head;
	struct dirnames *tail;
	size_t bytes;
};

struct ovl {
	/* Constant after ovl_create(). */
	struct layer *layers;     /* [0]: upper, without root if there is none */
	unsigned int lower_count; /* without data-only layers, which come after them */
	unsigned int data_count;
	unsigned int layer_count; /* of all of them, upper too: one past the last index */
	bool has_upper;
	bool userxattr;       /* user.overlay. */
	bool no_xattr;        /* upper can hold no private xattrs */
	bool may_setfsid;     /* we may act as any user */
	bool overrides_modes; /* CAP_DAC_OVERRIDE: modes of what we own do not bind us */
	bool work_is_ours;    /* what is made in work has our user, our group and the mode asked */
	uid_t uid;            /* our own */
	gid_t gid;
	bool has_acl;
	bool samefs;                  /* every layer has the same st_dev */
	struct ovl_features features; /* in effect; userxattr is ovl.userxattr */
	struct ovl_compat compat;     /* in effect */
	bool knows_overrides; /* what keeps owners and modes is nobody's xattr: override.h */
	mode_t real_bits; /* which others may have on what is really there: those of upper's root */
	bool layers_may_change;   /* by others: nothing that was read of a directory is believed */
	bool whiteouts_are_files; /* those that are made: whfile.h */
	unsigned int name_max;
	unsigned int ino_shift; /* the bit of st_ino that says that it is hashed; see ino.c */
	dev_t *devs; /* st_dev of the layers, each once; the index is what goes into st_ino */
	unsigned int dev_count;
	struct layer_ref *work;  /* where temporary files are: workdir/work, with an index that */
	struct layer_ref *index; /* workdir/index; NULL: none */
	uint64_t workdir_ino;
	char *workdir_path;
	int upper_lock; /* fds that hold flock(2) */
	int work_lock;
	struct writeback *writeback; /* of a volatile mount, else NULL */
	struct survey *survey;       /* where objects are; with nfs_export, else NULL */
	void (*attr_changed)(void *ctx, ovl_node node, bool listing);
	void *ctx;

	pthread_rwlock_t topology;
	struct table table;
	atomic_bool redirect_seen;  /* some directory is not where its name is in a layer */
	atomic_bool links_orphaned; /* some hard link lost all the names that were known */
	struct fdcache fds;
	struct dirlists lists;
	struct dirnames_list names;
	struct ovl_inode *root;
	_Atomic uint64_t temp_counter;
	_Atomic uint64_t copied_up;

	struct mtime_shard mtimes[64];
	pthread_rwlock_t modes_lock; /* written by who changes a mode for a moment */
	pthread_mutex_t whiteout_lock;
	char whiteout[FMT_TEMP_NAME_MAX]; /* the shared one in work; "": none yet */
	bool whiteout_no_link;            /* the filesystem cannot link it */
	atomic_bool xattrs_lost;          /* a copy-up left out what upper cannot hold: said once */
	pthread_mutex_t wh_lock;          /* names that upper directories hide by files */

	_Atomic uint32_t
		copyup_done; /* futex: changes whenever INODE_COPYING is cleared somewhere */
	_Atomic uint32_t copyup_waiters;
};

static inline bool inode_has(const struct ovl_inode *i, unsigned int flag)
{
	return atomic_load_explicit(&i->flags, memory_order_acquire) & flag;
}

static inline void inode_set(struct ovl_inode *i, unsigned int flag)
{
	atomic_fetch_or_explicit(&i->flags, flag, memory_order_release);
}

static inline void inode_clear(struct ovl_inode *i, unsigned int flag)
{
	atomic_fetch_and_explicit(&i->flags, ~flag, memory_order_release);
}

/* Counts an open file. */
static inline void inode_opened(struct ovl_inode *i)
{
	lock_take(&i->lock);
	i->nopen++;
	lock_drop(&i->lock);
}

static inline bool inode_is_dir(const struct ovl_inode *i)
{
	return i->dir != NULL;
}

/* Whether the data is in a lower layer although the topmost object is not. */
static inline bool inode_is_metacopy(const struct ovl_inode *i)
{
	return inode_has(i, INODE_METACOPY);
}

/* How many lower directories show through: none any more once upper is opaque. */
static inline unsigned int inode_lowers(const struct ovl_inode *dir)
{
	return inode_has(dir, INODE_OPAQUE) ? 0 : dir->dir->lower_count;
}

/* Whether several real directories are united. */
static inline bool inode_is_merged(const struct ovl_inode *dir)
{
	return inode_lowers(dir) > (inode_has(dir, INODE_UPPER) ? 0 : 1);
}

static inline unsigned int inode_top_layer(const struct ovl_inode *i)
{
	if (inode_has(i, INODE_UPPER))
		return 0;
	return i->dir ? i->dir->lower[0].layer : i->lower;
}

static inline uint32_t dir_version(const struct ovl_inode *dir)
{
	return atomic_load(&dir->dir->version);
}

/* What a listing of @dir says has changed. */
static inline void dir_changed(struct ovl_inode *dir)
{
	atomic_fetch_add(&dir->dir->version, 1);
}

#define ACL_ACCESS  "system.posix_acl_access"
#define ACL_DEFAULT "system.posix_acl_default"

static inline const char *xname(const struct ovl *o, enum fmt_xattr which)
{
	return fmt_xattr_name(o->userxattr, which);
}

/* table.c: inodes by nodeid and by name, and their lives. */
int table_init(struct ovl *o);
void table_destroy(struct ovl *o);
/* A running call's reference to a live nodeid; NULL: -ESTALE. */
struct ovl_inode *inode_get(struct ovl *o, ovl_node node);
struct ovl_inode *inode_get_dir(struct ovl *o, ovl_node node, int *err);
void inode_put(struct ovl *o, struct ovl_inode *i);
/* A new inode with one reference, not in the table yet. Owns @stack from success on. */
struct ovl_inode *inode_new(struct ovl *o, unsigned int type, struct dirstack *stack);
/* Enters it into the table, with no lookup counted. -ENOMEM. */
int inode_insert(struct ovl *o, struct ovl_inode *i);
void inode_count_lookup(struct ovl *o, struct ovl_inode *i);

struct ovl_name *name_new(struct ovl_inode *parent, const char *text, size_t len);
void name_free(struct ovl *o, struct ovl_name *n);
/* The inode known by a name, with a reference; NULL. */
struct ovl_inode *name_find(struct ovl *o, struct ovl_inode *parent, const char *text, size_t len);
/*
 * Gives @i a name. If the name is taken by another live inode that one is returned in *@taken with
 * a reference, and @n is freed. @i->lock is held by the caller, or nobody knows @i yet.
 */
void name_insert(struct ovl *o, struct ovl_name *n, struct ovl_inode *i, struct ovl_inode **taken);
/* The same in the place of whoever has the name, who is to lose it before the locks are dropped. */
void name_insert_over(struct ovl *o, struct ovl_name *n, struct ovl_inode *i);
/* The name @text in @parent of @i, unhashed and unlinked from @i, or NULL. @i->lock is held. */
struct ovl_name *name_remove(struct ovl *o, struct ovl_inode *i, struct ovl_inode *parent,
			     const char *text, size_t len);

/*
 * The link hash, where hard links find each other, and two directories that are redirected to one
 * place do. The inode of a real object, with a reference; NULL.
 */
struct ovl_inode *link_find(struct ovl *o, dev_t dev, uint64_t ino);
/*
 * Enters @i under its real object, unless it is in already (NULL) or another live inode is (that
 * one, with a reference). @i->lock is held, or nobody knows @i.
 */
struct ovl_inode *link_insert(struct ovl *o, struct ovl_inode *i, dev_t dev, uint64_t ino);
/* Nobody is to find @i there any more. @i->lock is held. */
void link_remove(struct ovl *o, struct ovl_inode *i);

/* reach.c: how the real objects are reached. */
struct reach {
	struct layer_ref *at;
	const char *name;
};

/*
 * Where the topmost real object of @i is. On success @i->lock is held until reach_done(), so that
 * the object keeps its place.
 */
int reach(struct ovl *o, struct ovl_inode *i, struct reach *r);
void reach_done(struct ovl_inode *i, struct reach *r);
/* The same for who changes attributes: nobody copies @i up then. */
int reach_settled(struct ovl *o, const struct ovl_caller *caller, struct ovl_inode *i,
		  struct reach *r);
/*
 * The same with the lock of @parent taken before, for who changes @i's name in @parent; nobody
 * copies @i up then.
 */
int reach_in(struct ovl *o, const struct ovl_caller *caller, struct ovl_inode *parent,
	     struct ovl_inode *i, struct reach *r);
void reach_in_done(struct ovl_inode *parent, struct ovl_inode *i, struct reach *r);
/* The real directory of @dir in a layer. @topology_held: the caller has ovl.topology. */
int dir_ref(struct ovl *o, struct ovl_inode *dir, unsigned int layer, bool topology_held,
	    struct layer_ref **out);
/* As at_open() of an upper object, but makes room when there are no more fds. */
int open_fd(struct ovl *o, struct layer_ref *at, const char *name, int flags);
/* As layer_open(), but makes room when there are no more fds. */
int open_ref(struct ovl *o, struct layer_ref *at, const char *path, enum layer_open how,
	     struct layer_ref **out);
/* Opens a path of any length. @base is consumed. */
int open_path(struct ovl *o, struct layer_ref *base, const char *path, enum layer_open how,
	      struct layer_ref **out);
/* @i's contents, of upper if it is there. @write: -EROFS unless copied up. No lock is held. */
int file_ref(struct ovl *o, struct ovl_inode *i, bool write, struct layer_ref **out);
struct real_dir *stack_find(struct ovl_inode *dir, unsigned int layer);
/*
 * The path of @name in @dir from the root of a layer that @dir is in; owned by the caller.
 * @topology_held: the caller has ovl.topology.
 */
int layer_path(struct ovl *o, struct ovl_inode *dir, unsigned int layer, const char *name,
	       bool topology_held, char **out);

/* metacopy.c: files whose data is elsewhere than their topmost object. */
/* @layer 0: not known yet. NULL: no memory. */
struct data_place *data_place_new(unsigned int layer, const char *path, uint64_t blocks);
/*
 * Opens the data of a file whose topmost object is a metacopy. -ENOENT: no data-only layer has it.
 */
int data_open(struct ovl *o, struct data_place *data, struct layer_ref **out);
/* Finds out in which data-only layer it is. -ENOENT. */
int data_find(struct ovl *o, struct data_place *data);
/* st_blocks of such a file. @size: its st_size. */
uint64_t data_blocks(struct data_place *data, uint64_t size);
/*
 * The redirect of an object as it stands, with a NUL behind it, owned by the caller. Returns its
 * length; -ENODATA: it has none.
 */
ssize_t redirect_read(struct ovl *o, struct layer_ref *at, const char *name, char **out);
/*
 * The xattr that lets a moved object be found in the layers below: the path it has in the union
 * now, or, unless @absolute, its name. To be set before it moves, or gets another name. -EXDEV when
 * that cannot be. @at and @at_name: the upper object. @name: its name in @dir. Its lock and
 * topology are held.
 */
int redirect_set(struct ovl *o, struct ovl_inode *dir, struct layer_ref *at, const char *at_name,
		 const char *name, bool absolute);

/* ino.c: one number space over all layers. */
int ino_init(struct ovl *o);
uint64_t ino_compose(const struct ovl *o, dev_t dev, uint64_t ino);
static inline dev_t statx_dev(const struct statx *st)
{
	return makedev(st->stx_dev_major, st->stx_dev_minor);
}

static inline void statx_times(const struct statx *st, struct timespec times[2])
{
	times[0] = (struct timespec){ st->stx_atime.tv_sec, st->stx_atime.tv_nsec };
	times[1] = (struct timespec){ st->stx_mtime.tv_sec, st->stx_mtime.tv_nsec };
}

/* verity.c: the digest that a metacopy holds of its data. Nothing is done with verity=off. */
/* Of an opened lower file; none if it has none. -EIO when it cannot be had. */
int verity_measure(struct ovl *o, struct layer_ref *data, struct fmt_metacopy *out);
/*
 * Before the data of a metacopy is used: -EIO unless it has the digest that the topmost object, at
 * @at and @name, asks for. Once is enough for an inode.
 */
int verity_check(struct ovl *o, struct ovl_inode *i, struct layer_ref *at, const char *name,
		 struct layer_ref *data);
/* The same of whatever is not opened, if it is a metacopy at all. No lock is held. */
int verity_check_data(struct ovl *o, struct ovl_inode *i);

/* casefold.c: directories in which case does not matter. */
/* Finds out which layers may hold some. work is prepared. */
void casefold_init(struct ovl *o);
bool casefold_is(struct layer_ref *at, const char *name);
/* -ESTALE for one of them. To be asked of layers that may hold some. */
int casefold_refuse(struct layer_ref *at, const char *name);

/* identity.c */
/*
 * Which uuids say of which layer a handle is, and what xino= and uuid= come to with these layers.
 * After ino_init(), with features settled otherwise.
 */
void identity_init(struct ovl *o);
/* Gives upper its uuid. work is prepared. */
void identity_set_uuid(struct ovl *o);

/* origin.c */
/* stx_ino and so on of the lower object that an upper one came from; -ENODATA when unknown. */
int origin_stat(struct ovl *o, struct layer_ref *at, const char *name, struct statx *st);
/* Stores the origin of an upper object. 1: it is there; 0: it cannot be, which is no failure. */
int origin_store(struct ovl *o, struct layer_ref *lower, const char *lower_name,
		 struct layer_ref *upper, const char *name);
/*
 * Who is bound by modes may not even read his own marks where a mode forbids that. An upper object
 * gets the rights @wanted for the moment. On success ovl.modes_lock is held until mode_restore().
 */
int mode_widen(struct ovl *o, struct layer_ref *at, const char *name, mode_t wanted, mode_t *kept);
void mode_restore(struct ovl *o, struct layer_ref *at, const char *name, mode_t kept);
/* Whether a failure may be healed so. */
static inline bool mode_forbids(const struct ovl *o, const struct layer_ref *at, ssize_t err)
{
	return unlikely(err == -EACCES) && !o->overrides_modes && at->layer->index == 0;
}
/* Reads a private xattr, of an upper object also where its mode forbids that to its owner. */
ssize_t mark_get(struct ovl *o, struct layer_ref *at, const char *name, enum fmt_xattr which,
		 void *value, size_t size);
/* Sets a private xattr of an upper object, also where its mode forbids that to its owner. */
int mark_set(struct ovl *o, struct layer_ref *at, const char *name, enum fmt_xattr which,
	     const void *value, size_t size);
/* The same for one that goes; 0 also when it is not there. */
int mark_remove(struct ovl *o, struct layer_ref *at, const char *name, enum fmt_xattr which);
/*
 * Before something with an origin comes into @dir, whose upper directory is @upper. @dir->lock is
 * held, or @dir is being looked up in.
 */
int mark_impure(struct ovl *o, struct ovl_inode *dir, struct layer_ref *upper);
/* After a listing of this version found nothing with an origin. */
void unmark_impure(struct ovl *o, struct ovl_inode *dir, uint32_t version);

/* features.c */
/*
 * Settles conflicts between features, as the kernel's ovl_fs_params_verify() does: what was asked
 * for itself wins over what was not; two that were asked for and exclude each other are -EINVAL,
 * what needs rights we lack -EPERM, with a line for people. @given: enum ovl_given. user.overlay.
 * without OVL_GIVEN_USERXATTR is what is left to somebody without rights: see there.
 */
int features_resolve(struct ovl_features *f, unsigned int given, bool has_upper, bool has_data,
		     bool privileged, char *message, size_t size);
/*
 * Upper turned out to hold no private xattrs: does without all that needs them, and says so.
 * @given: enum ovl_given.
 */
void features_fall_back(struct ovl *o, unsigned int given, const char *why);

struct feature_word {
	const char *name;
	const char *value;
	bool unusual; /* not the kernel's default */
};

#define FEATURE_WORDS 9

/* The features in the kernel's words and in the order in which it shows them. Static strings. */
void features_spell(const struct ovl_features *f, struct feature_word out[FEATURE_WORDS]);

/* marks.c */
/* Opaque, but not in the words of this mount. */
#define MARK_OTHER_OPAQUE (1U << FMT_XATTR_COUNT)
/* There may be an ACL, or capabilities. */
#define MARK_NOT_PLAIN (1U << (FMT_XATTR_COUNT + 1))
/* What makes an object not plain. */
bool xattr_is_not_plain(const char *name);
/*
 * Which private xattrs an object has, as bits of enum fmt_xattr, MARK_OTHER_OPAQUE and
 * MARK_NOT_PLAIN: one system call for all of them.
 */
int marks_read(struct ovl *o, struct layer_ref *at, const char *name, unsigned int *marks);
/* What those of a directory say. -EACCES: it may not be read, and nothing below be shown. */
int marks_opaque(struct ovl *o, struct layer_ref *at, const char *name, unsigned int marks,
		 enum fmt_opaque *out);
/* Whether an object that is no directory is a whiteout. @st is its own. */
bool is_whiteout(struct ovl *o, struct layer_ref *at, const char *name, const struct statx *st);

/* lookup.c */
struct looked_up {
	struct statx st;    /* of the topmost */
	unsigned int flags; /* enum inode_flag */
	unsigned int lower; /* layer of the topmost lower non-directory */
	uint64_t ino;       /* of the union */
	dev_t lower_dev;    /* the topmost lower directory; or @by_lower */
	uint64_t lower_ino;
	unsigned int protattr;
	struct dirstack *stack;    /* directories; owned */
	struct data_place *data;   /* INODE_METACOPY; owned */
	struct index_entry *index; /* INODE_INDEXED; owned */
	bool lower_alias;          /* what is in upper has no name there: this one is of lower */
	bool by_lower;             /* hard links find each other by the lower object */
};

/* Looks @name up in the layers of @dir. -ENOENT. Touches no inode. */
int lookup_real(struct ovl *o, struct ovl_inode *dir, const char *name, struct looked_up *out);
void looked_up_free(struct looked_up *l);
/* Whether some lower layer of @dir shows @name: a whiteout is needed to hide it. */
bool lower_has(struct ovl *o, struct ovl_inode *dir, const char *name, bool topology_held);
/* Whether an object may be made at a name. */
int name_check(struct ovl *o, const char *name);

/* entry.c */
/* @i, an upper file with the attributes @st, has got another name. Its lock is held. */
void entry_linked(struct ovl *o, struct ovl_inode *i, const struct statx *st);
/* An inode for what was found, with a reference; takes @l->stack. */
int lookup_instantiate(struct ovl *o, struct ovl_inode *parent, const char *name,
		       struct looked_up *l, struct ovl_inode **out);
/* The inode of a name, known or looked up, with a reference. */
int lookup_inode(struct ovl *o, struct ovl_inode *dir, const char *name, struct ovl_inode **out);
/* As lookup_inode(), with what ovl_lookup() returns. *@out may be set although it fails. */
int lookup_entry(struct ovl *o, struct ovl_inode *dir, const char *name, struct ovl_inode **out,
		 struct ovl_entry *entry);

/* export.c */
/* ovl_lookup() of "." or, @parent, "..". */
int export_lookup_dots(struct ovl *o, ovl_node node, bool parent, struct ovl_entry *out);

/* attr.c */
int attr_get(struct ovl *o, struct ovl_inode *i, struct statx *out);
/* Makes a real object's attributes the union's. @i->lock is held or its fields are settled. */
void attr_translate(struct ovl *o, struct ovl_inode *i, struct statx *st);
/* Counts a lookup. entry_take() is for who has the real object's attributes at hand. */
int entry_fill(struct ovl *o, struct ovl_inode *i, struct ovl_entry *out);
void entry_take(struct ovl *o, struct ovl_inode *i, const struct statx *st, struct ovl_entry *out);
void attr_notify(struct ovl *o, struct ovl_inode *i, bool listing);
/*
 * Drops set-id bits of an upper file as a write by a caller without CAP_FSETID does: suid, and sgid
 * when the file is group-executable or the caller not in its group. Who caches attributes is told:
 * exec trusts them.
 */
int drop_suidgid(struct ovl *o, const struct ovl_caller *caller, struct ovl_inode *i, int fd);
/* A mode without these bits. */
mode_t mode_without_suidgid(const struct ovl_caller *caller, const struct statx *st);

/* Inode of the initial user namespace (linux/proc_ns.h, PROC_USER_INIT_INO). */
#define USER_NS_INIT_INO 0xEFFFFFFDU

/* caller.c: what FUSE does not say about a caller. */
/*
 * Whether it is being killed. FUSE interrupts requests for any signal, but open(2) of a file on a
 * disk does not end with EINTR because of an alarm: only what kills may stop a copy.
 */
bool caller_killed(const struct ovl_caller *caller);
/* In our user namespace. */
bool caller_has(const struct ovl_caller *caller, unsigned int capability);
/* Whether what it writes to keeps set-id bits: CAP_FSETID in the first user namespace. */
bool caller_keeps_setid(const struct ovl_caller *caller);
/*
 * Whether S_ISGID without S_IXGRP stays on the object with the attributes @st when the caller
 * changes its owner or its ACL: in_group_or_capable() of the kernel. Through an idmapped mount,
 * whose numbers we do not know, it may be no although the kernel would say yes.
 */
bool caller_keeps_sgid(const struct ovl_caller *caller, const struct statx *st);

/* copyup.c */
#define COPY_ALL  ((off_t)-1)
#define COPY_META ((off_t)-2) /* data may stay where it is, with metacopy=on */
/*
 * Makes sure that @i and all its parents are in upper. At most @limit bytes of data are copied, for
 * the one who truncates. -EROFS without upper. No lock is held; returns with none.
 */
int copy_up(struct ovl *o, const struct ovl_caller *caller, struct ovl_inode *i, off_t limit);
/*
 * The same for who answers with the attributes of @i: who caches them is not told of its copy-up.
 * 1: it was copied; who then fails has to tell.
 */
int copy_up_told(struct ovl *o, const struct ovl_caller *caller, struct ovl_inode *i, off_t limit);
/* Waits until nobody copies @i up. @i->lock is held and given up meanwhile. -EINTR: the caller is
 * killed. */
int copyup_wait(struct ovl *o, const struct ovl_caller *caller, struct ovl_inode *i);

/* copydata.c */
/*
 * The first @size bytes at least, holes kept; @to is then @length long, and was a hole before.
 * -EINTR when the caller was killed. @dense: there are none. 1: @to shares the data with @from,
 * which the filesystem has written before.
 */
int copy_data(struct layer_ref *from, int to, off_t size, off_t length, bool dense,
	      const struct ovl_caller *caller);
/*
 * All xattrs but the overlay's private ones. With ovl_compat.whiteout_files what @to cannot hold is
 * left out: 1 when that was an access ACL, which the mode then has to make up for.
 */
int copy_xattrs(struct ovl *o, struct layer_ref *from, const char *from_name, int to,
		const char *to_name);

/* direct.c */
/* Whether somebody else may read and write @i's contents for us. @lower: see ovl_open_direct(). */
void direct_find(struct ovl *o, struct ovl_inode *i, bool lower, struct ovl_direct *out);

/* sync.c: what -o fsync= asks for. */
/* Whether a directory that is copied up is synced; then sync_copied() wants it opened. */
bool sync_wants_dirs(const struct ovl *o);
/*
 * Before a copied-up object is shown: syncs its data if it has some, and with fsync=strict whatever
 * @fd is. -1: nothing that could be synced.
 */
int sync_copied(struct ovl *o, int fd, bool has_data);
/* How writing to a file of upper ended: a volatile mount remembers when something was lost. */
void sync_note(struct ovl *o, ssize_t result);

/* mtime.c */

/* Around a change of @i's contents through @fd, its file in upper. After a failure there is no end.
 */
int mtime_begin(struct ovl *o, const struct ovl_caller *caller, struct ovl_inode *i, int fd,
		struct mtime_note *note);
void mtime_end(struct ovl *o, int fd, struct mtime_note *note);
/* Around storing an mtime; @st: as it is afterwards, or NULL after a failure. */
void mtime_store_begin(struct ovl *o, struct ovl_inode *i);
void mtime_store_end(struct ovl *o, struct ovl_inode *i, const struct statx *st);

/* workdir.c */
/* Sweeps and opens workdir/work. */
int workdir_prepare(struct ovl *o, struct layer_ref *workdir, const char *path, char *message,
		    size_t size);
/* From now on temporary files are made in @dir; at mount only. */
void work_move(struct ovl *o, struct layer_ref *dir);
/*
 * Leaves the mark of a volatile mount in work, for which every later mount, the kernel's too,
 * refuses it.
 */
int workdir_mark_volatile(struct ovl *o);
void workdir_close(struct ovl *o);
void temp_name(struct ovl *o, char out[FMT_TEMP_NAME_MAX]);
/* Removes a file, or a directory with whatever is in it. @depth: how many levels at most. */
int remove_tree(int dirfd, const char *name, unsigned int depth);
/* As remove_tree() of a name in work, of what holds whiteouts at most. Best effort. */
void work_remove(struct ovl *o, const char *name);
/*
 * Renames what was built in work into place. @mode: with the type. Who is bound by modes may not
 * move a directory that he may not write: it gets its mode when it is there.
 */
int work_publish(struct ovl *o, const char *temp, mode_t mode, int dirfd, const char *name,
		 unsigned int flags);
/*
 * Gives what was built in work the owner and the group of @st: copyup.c. Where that is impossible
 * and ovl_compat.gives_up_owners says so, it stays ours, and @st loses its set-id bits. @real: what
 * it really is; see object_own().
 */
int work_copy_owner(struct ovl *o, struct statx *st, const char *temp, mode_t real);
/* A whiteout under a new name in work. */
int whiteout_make(struct ovl *o, char name[FMT_TEMP_NAME_MAX]);
/*
 * A whiteout at a name of @upper, the upper directory of @dir, where nothing is; or in the place of
 * a non-directory.
 */
int whiteout_at(struct ovl *o, struct ovl_inode *dir, struct layer_ref *upper, const char *name,
		bool replace);
/* Where whiteouts are files: makes a file of the device at a name, so that nothing is there. */
int whiteout_to_file(struct ovl *o, struct ovl_inode *dir, struct layer_ref *upper,
		     const char *name);
/*
 * Makes a directory of upper or work opaque before its place is where lower layers have something.
 * -EOPNOTSUPP when that cannot be.
 */
int opaque_make(struct ovl *o, struct layer_ref *at, const char *name);

/* readdir.c */
/*
 * In dirlist.c: the names in a real directory, also where the mode of an upper one forbids that to
 * us. @quiet: atime stays.
 */
int real_readdir(struct ovl *o, struct layer_ref *at, bool quiet, layer_filldir fill, void *ctx);
/* A directory came into @dir, or left it: its links are to be counted again. */
void links_changed(struct ovl_inode *dir);
/*
 * Whether the union shows an empty directory: 0 or -ENOTEMPTY. *@whiteouts: upper holds whiteouts,
 * so that the real one is not empty.
 */
int dir_check_empty(struct ovl *o, struct ovl_inode *dir, bool *whiteouts);

/* Returns false to stop. */
typedef bool (*dir_visit)(void *ctx, const char *name, size_t len, uint64_t ino, unsigned int type);
/* Each entry of @dir with the union's number of it and DT_*. Touches no inode. */
int dir_list(struct ovl *o, struct ovl_inode *dir, dir_visit visit, void *ctx);

/* xattr.c: names of xattrs, as fmt_xattr_escape() and fmt_xattr_unescape() translate them. */
/* -EPERM: one that fuse-overlayfs keeps for itself. */
int xattr_to_stored(const struct ovl *o, const char *name, char *out, size_t size);
/* -ENODATA: it is shown to nobody, and not copied up. */
int xattr_to_shown(const struct ovl *o, const char *stored, char *out, size_t size);

/* acl.c: the access and default ACL of a new object below a directory with a default ACL. */
struct acl_inherited {
	mode_t mode;  /* permission bits that remain */
	size_t size;  /* of the access ACL; 0: the mode says it all */
	char *access; /* xattr value, owned */
};
int acl_inherit(const void *def, size_t size, mode_t mode, struct acl_inherited *out);
/*
 * What an access ACL makes of the permission bits of a mode. 1: it says more than the mode, which
 * then has its mask for the group; 0: it does not, and is not to be stored. -EINVAL.
 */
int acl_equiv_mode(const void *acl, size_t size, mode_t *mode);
/* What chmod(2) makes of an access ACL. */
int acl_chmod(void *acl, size_t size, mode_t mode);
/* What can be kept of an access ACL without one: a mode that gives nobody more than it did. */
mode_t acl_to_mode(const void *acl, size_t size, mode_t mode);

/* create.c */
/* One system call that makes an object; a regular file is left open as *@fd. */
int make_object(struct ovl *o, int dirfd, const char *name, mode_t mode, dev_t rdev,
		const char *target, int *fd);
/* The upper directory of @dir, copied up at need, for a change in it. */
int upper_parent(struct ovl *o, const struct ovl_caller *caller, struct ovl_inode *dir,
		 struct layer_ref **ref);
/* Whether an upper directory has a whiteout at @name. */
bool upper_has_whiteout(struct ovl *o, struct layer_ref *dir, const char *name);

/* remove.c */
/*
 * Keeps hold of an object about to lose its last name: its self is opened. @i->lock is held.
 * @at and @name: where its topmost real object is.
 */
int orphan_prepare(struct ovl *o, struct ovl_inode *i, struct layer_ref *at, const char *name,
		   struct layer_ref **self);
/* The name is gone: forget it, and make @i an orphan if it was the last. @i->lock is held. */
void orphan_commit(struct ovl *o, struct ovl_inode *i, struct ovl_inode *parent, const char *name,
		   struct layer_ref **self);

/* -EPERM if @i is immutable, or append-only and @append_ok is not set. */
int protattr_check(struct ovl_inode *i, bool append_ok);
