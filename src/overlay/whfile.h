/* SPDX-License-Identifier: MIT */
/*
 * Whiteouts that are files: ".wh.NAME" beside the place of NAME, and ".wh..wh..opq" in a directory
 * (ovl_compat.whiteout_files; overlay/format.h has the names). Without that, nothing here asks for
 * anything, and nothing is hidden.
 *
 * The rules. An object beats a file ".wh.NAME" in its own directory: it is what the file hides
 * below that, which also makes a directory there an opaque one, unless a redirect says where in the
 * layers below it belongs. Of what type a ".wh." file is does not matter. In the lowest real
 * directory of a stack such files hide nothing. That is how image layers are read, and so that
 * every change of names here is one step: the file is made before its object goes, and removed
 * after another has come.
 *
 * Looking up a name that is missing must not cost more than it does without: so a real directory
 * with another below it is listed once, when something is missing in it for the first time, and the
 * names that are hidden there are remembered as hashes (nameset.h), in struct real_dir. A hash
 * that is there is verified by asking for the file; one that is not needs no system call. Names are
 * added before their files are made, so the set may know too many names, never too few.
 */
#pragma once

#include "overlay/internal.h"

struct wh_set;

/* At mount and at the end. */
void wh_init(struct ovl *o);
void wh_destroy(struct ovl *o);

void wh_set_free(struct wh_set *set);

/*
 * Whether @at, the real directory of @dir in its layer, hides @name in the layers below: 1 or 0, or
 * a negative errno. @name has no object in it, or one that is a directory.
 */
int wh_hides(struct ovl *o, struct ovl_inode *dir, struct layer_ref *at, const char *name);
/* The same, where the real directory has not been reached yet. */
int wh_hides_in(struct ovl *o, struct ovl_inode *dir, unsigned int layer, const char *name);
/* The same of any real directory, by asking for the file. */
int wh_hides_at(struct ovl *o, struct layer_ref *at, const char *name);
/* Whether a file makes the directory @name in @at opaque: 1, 0, or a negative errno. */
int wh_opaque(struct ovl *o, struct layer_ref *at, const char *name);

/*
 * Hides @name in the layers below @upper, the upper directory of @dir. 1: by a new file; 0: there
 * was one already.
 */
int wh_put(struct ovl *o, struct ovl_inode *dir, struct layer_ref *upper, const char *name);
/* Removes that file if there is one: an object is at @name now. A failure changes nothing. */
void wh_drop(struct ovl *o, struct ovl_inode *dir, struct layer_ref *upper, const char *name);
/* Makes a directory opaque by a file in it. */
int wh_put_opaque(int dirfd, const char *name);
/* @dir was just made in upper: there is nothing in it. */
void wh_expect_none(struct ovl *o, struct ovl_inode *dir);
