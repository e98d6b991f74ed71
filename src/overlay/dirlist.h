/* SPDX-License-Identifier: MIT */
/*
 * What a directory of the union shows, read from its layers and united. One list is shared by all
 * who read the directory. It hangs in the dirstack of the directory, and in a list by last use over
 * the whole mount, which is bounded in memory: what is dropped there is read again when it is
 * wanted.
 *
 * Why whoever reads a directory in several calls may be served from lists that are not the same.
 * An offset is a hash of a name, so it means the same in every list. Whoever begins (offset 0) gets
 * a list of the directory as it is: it is read again if the directory has changed since
 * (dirstack.version). Whoever goes on gets the list that is there, current when somebody last
 * began, or later. What is neither added nor removed while one reads is in all of these lists and
 * is shown once; what was removed may still be shown, as POSIX allows, and the other way round
 * nobody reads a directory again because somebody removes from it what he reads (rm -r).
 *
 * The kernel keeps one listing for all as well, which it puts together from what different readers
 * were given, and believes while the directory has not changed since the first of them began. It
 * lets nobody change a directory during a call that reads it. So when that beginning was answered,
 * the list was current, and it has stayed the list, or another of the same content was made, until
 * somebody began after a change: by then the kernel does not believe what it put together. That two
 * readers hold lists from before and after a change, and both contribute, cannot be.
 *
 * Locks: that of the cache is a leaf. Ownership: by references. Errors: negative errno.
 */
#pragma once

#include "overlay/internal.h"

struct dirlist_entry {
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
	/* Constant once it is built. */
	char *arena;
	size_t arena_size;
	size_t arena_room;
	struct dirlist_entry *entries;
	uint32_t count;
	uint32_t room;
	uint32_t *order; /* indices of what is shown, by cookie */
	uint32_t shown;
	uint32_t version; /* of the directory when it began to be read */
	bool upper_whiteouts;
	bool stuck;  /* upper holds something that is not shown, and more than a whiteout */
	bool impure; /* when it was read: upper objects may show the number of their origin */

	_Atomic uint32_t refs;
	/* How many from the beginning were found to have no origin. */
	_Atomic uint32_t pure;

	/* Guarded by the cache's lock. */
	uint32_t passes;       /* how many began to read it and have not finished, at most */
	struct dirlist **slot; /* who holds it, if the cache does */
	struct dirlist *prev;
	struct dirlist *next;
};

static inline const char *dirlist_name(const struct dirlist *list, const struct dirlist_entry *e)
{
	return list->arena + e->name;
}

/* The entry at a place in the order in which they are shown. */
static inline const struct dirlist_entry *dirlist_at(const struct dirlist *list, uint32_t index)
{
	return &list->entries[list->order[index]];
}

/* Index of the first entry after an offset. */
uint32_t dirlist_find(const struct dirlist *list, off_t off);

/* Reads @dir anew, for the caller alone. Touches no inode. @quiet: nor the atime of a real
 * directory. */
int dirlist_read(struct ovl *o, struct ovl_inode *dir, bool quiet, struct dirlist **out);
/* The shared list of @dir, with a reference. @begin: of the directory as it is now. */
int dirlist_get(struct ovl *o, struct ovl_inode *dir, bool begin, struct dirlist **out);
void dirlist_put(struct dirlist *list);
/* Somebody has read it to the end, who began before. The kernel has it now. */
void dirlist_finished(struct ovl *o, struct dirlist *list);
/* @dir is freed. */
void dirlist_drop(struct ovl *o, struct dirlist **slot);

void dirlists_init(struct dirlists *c);
void dirlists_destroy(struct dirlists *c);
