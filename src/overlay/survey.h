/* SPDX-License-Identifier: MIT */
/*
 * A survey of the union: where each object is, by its number. With nfs_export a file handle names
 * an object by nothing but that, and an object is reached by names only, so the names have to be
 * found.
 *
 * The first question that nobody can answer has a thread walk through all directories. It touches
 * no inode that others use, holds no lock while it reads, and fills a map (places.h). From its
 * beginning on, whoever gives a name or takes one away says so here: so the map stays complete, and
 * what is not in it does not exist. When nobody asks any more for some minutes the map is freed and
 * the thread ends.
 *
 * Everything but the questions returns at once when there is no map.
 *
 * Locks: one of its own, a leaf: any other may be held. Errors: a negative errno.
 */
#pragma once

#include "overlay/internal.h"
#include "overlay/places.h"

struct survey;

int survey_new(struct ovl *o, struct survey **out);
/* Ends the thread. No call may be running. NULL is fine. */
void survey_free(struct survey *s);

/*
 * The way from the root to an object, for places_path_free(). Waits for the walk at need, until the
 * object turns up. -ESTALE: there is no such object. -EINTR: the caller is killed.
 */
int survey_find(struct survey *s, const struct ovl_caller *caller, uint64_t number,
		struct places_path *out);
/* It was not true that @number is at @name in @parent. */
void survey_correct(struct survey *s, uint64_t number, uint64_t parent, const char *name);

/* @i got the name @n. @i->lock is held. @moved: it loses another one for it. */
void survey_named(struct survey *s, const struct ovl_inode *i, const struct ovl_name *n,
		  bool moved);
/*
 * @i lost a name. @i->lock is held. @self: the object, if that was the last that is known; it may
 * have others.
 */
void survey_unnamed(struct survey *s, const struct ovl_inode *i, const struct ovl_inode *parent,
		    const char *name, struct layer_ref *self);

/* For tests: how long nobody has to ask before the map goes. */
void survey_set_idle(struct survey *s, unsigned int ms);
/* For tests: walks that were made, and objects in the map. */
void survey_get_stats(struct survey *s, unsigned int *walks, unsigned int *places);
