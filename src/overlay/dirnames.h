/* SPDX-License-Identifier: MIT */
/*
 * Which names the real directories of a directory have, from memory, so that a lookup asks only the
 * layers that have a name, and none for a name that is nowhere. The index says no more than in
 * which layers a name may be: a layer that it names is asked as if there were no index.
 *
 * Of the lower layers: the hashes of all names with their layers. They do not change while they are
 * mounted, so it is right once it is there. Of upper: a set that has every name that is in the
 * upper directory, and perhaps names that were (nameset.h). Whoever makes something in an upper
 * directory says so before (names_expect()), under the directory's lock; whoever reads the names
 * of an upper directory has taken that lock after he began to collect what is made meanwhile, and
 * before he reads. A directory that was just made in upper is known to be empty.
 *
 * The index is made by the way where a directory is listed, and by reading the directory when
 * questions for names that are not there have cost more than that. It is not made of layers that
 * others may change (ovl_config.layers_may_change), nor of filesystems that may find a name that
 * they do not list. Memory is bounded for each directory and over all, where those go that were
 * not asked lately.
 *
 * Locks: that of the list of all, and in it that of one directory's index; both leaves otherwise.
 */
#pragma once

#include "overlay/internal.h"
#include "overlay/nameset.h"

struct dirnames;

void names_init(struct ovl *o);
void names_destroy(struct ovl *o);
/* @dir is freed. */
void names_free(struct ovl *o, struct dirnames *names);

/* What is known of a name. */
struct names_answer {
	bool upper_lacks; /* the upper directory does not have it */
	bool lower_known; /* only these lower directories may have it */
	uint16_t count;
	uint16_t lower[OVL_MAX_LAYERS]; /* indices in dirstack.lower, ascending */
};

void names_ask(struct ovl *o, struct ovl_inode *dir, const char *name, struct names_answer *out);
/*
 * @misses questions for names in real directories of @dir were answered by -ENOENT. May read the
 * directory. Its lock is not held.
 */
void names_missed(struct ovl *o, struct ovl_inode *dir, unsigned int misses);

/* Before something gets the name in the upper directory of @dir, whose lock is held. */
void names_expect(struct ovl *o, struct ovl_inode *dir, const char *name);
/* The upper directory of @dir was just made: nobody has made anything in it. */
void names_expect_none(struct ovl *o, struct ovl_inode *dir);

/* Names that are being read, one real directory after the other, topmost first. */
struct names_reading {
	struct ovl *o;
	struct ovl_inode *dir;
	bool wants_upper;
	bool wants_lower;
	uint32_t round; /* of dirnames */
	uint32_t limit; /* more names are too many */
	int place;      /* index in dirstack.lower of what is read; -1: upper */
	struct nameset *upper;
	uint32_t *hashes;
	uint16_t *places;
	uint32_t count;
	uint32_t room;
};

/* @dir->lock is not held. */
void names_read_begin(struct names_reading *r, struct ovl *o, struct ovl_inode *dir);
/* What comes now is from this real directory. */
void names_read_from(struct names_reading *r, struct layer_ref *at);
void names_read_one(struct names_reading *r, const char *name, size_t len);
/* @complete: all real directories of @dir were read to the end. */
void names_read_end(struct names_reading *r, bool complete);
