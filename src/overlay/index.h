/* SPDX-License-Identifier: MIT */
/*
 * The index of a union, workdir/index (overlayfs.rst, "Inode properties" and "NFS export"): with it
 * the hard links of a lower file stay one file when it is copied up. index.c tells how it works.
 *
 * Everything here does nothing, and costs next to nothing, when ovl.index is NULL.
 *
 * Errors: negative errno. What the kernel calls a damaged index is -EIO.
 */
#pragma once

#include "overlay/internal.h"

/*
 * Where an object is in the index. Made once in the life of an inode, before INODE_INDEXED is set,
 * and owned by it until its end, also when the entry is gone and the flag with it.
 */
struct index_entry {
	_Atomic uint32_t nlink; /* names that the union shows; changed under the inode's lock */
	uint32_t lower_nlink;   /* st_nlink of the lower object */
	char name[];            /* in ovl.index */
};

/* --- at mount: index_mount.c -------------------------------------------------------------------*/

/* Switches off what the layers cannot have; the features are settled otherwise. */
void index_check_layers(struct ovl *o);
/*
 * Opens workdir/index, checks that upper, lower and index belong together (-ESTALE) and mends what
 * a crash left. From then on it is ovl.work as well. @path: of workdir.
 */
int index_open(struct ovl *o, struct layer_ref *workdir, const char *path, char *message,
	       size_t size);
/* Takes an entry away, or, with nfs_export, leaves a whiteout: its handle is never good again. */
int index_remove(struct ovl *o, const char *name, bool is_dir);
/*
 * Compares a stored handle with that of @real: 0, -ESTALE when it is another, -ENODATA when there
 * is none. @set: then it is stored.
 */
int index_verify_handle(struct ovl *o, struct layer_ref *at, const char *name, enum fmt_xattr which,
			struct layer_ref *real, const char *real_name, bool set);
/* The union's count of links of what is in the index; @fallback if that is not to be known. */
uint32_t index_read_nlink(struct ovl *o, const char *name, uint32_t lower_nlink, uint32_t fallback);

/* --- lookup ------------------------------------------------------------------------------------*/

/* What identifies a lower object. */
struct lower_id {
	size_t size;            /* of the handle; 0: nothing was found */
	uint8_t fh[FMT_FH_MAX]; /* as stored in the origin xattr */
	struct statx st;
};

/* @st: the object's attributes. */
void index_identify(struct layer_ref *at, const char *name, const struct statx *st,
		    struct lower_id *id);
/*
 * Whether an upper object came from the lower object that was found by its name: 0 or -ESTALE; any
 * error of a directory means that the two are not to be united.
 */
int index_verify_origin(struct ovl *o, struct layer_ref *upper, const char *name,
			const struct lower_id *id);
/*
 * Looks for the index entry of what lookup found: @upper is the directory with the upper object,
 * NULL if there is none, @lower the topmost lower object. When an entry stands for the upper object
 * that has no name here yet, @out is made that object's.
 */
int index_lookup(struct ovl *o, struct layer_ref *upper, const char *name,
		 const struct lower_id *lower, struct looked_up *out);
/* @i is in the link hash now, and @i->lock held: nobody else changes its count any more. Read it.
 */
void index_settle(struct ovl *o, struct ovl_inode *i);

/* --- copy-up -----------------------------------------------------------------------------------*/

/* The entry that an object will have. */
int index_entry_new(struct layer_ref *lower, const char *name, uint32_t lower_nlink,
		    struct index_entry **out);
/*
 * A file that was built in work as @temp becomes its own entry, and is in upper thereby; its names
 * follow. For lower hard links. @i->lock is held; the caller sets INODE_UPPER. @i owns @entry on
 * success.
 */
int index_publish(struct ovl *o, struct ovl_inode *i, const char *temp, struct index_entry *entry);
/*
 * An entry for what has only one name, and is in upper as @name in @dir. @i->lock is held. @i owns
 * @entry on success.
 */
int index_add(struct ovl *o, struct ovl_inode *i, struct layer_ref *dir, const char *name,
	      struct index_entry *entry);
/*
 * Gives a file of the index the name @name in upper, which so far only a lower layer has. Nothing
 * to do if it has. No lock is held.
 */
int index_link_up(struct ovl *o, const struct ovl_caller *caller, struct ovl_inode *i,
		  struct ovl_inode *parent, const char *name);
/*
 * The same for the name through which @i was found last, as the kernel does for the one that is
 * used. Which one that is nobody tells us, and it does not matter: best effort.
 */
void index_link_up_last(struct ovl *o, const struct ovl_caller *caller, struct ovl_inode *i);
/* Makes that name @name. */
void index_prefer_name(struct ovl_inode *i, struct ovl_inode *parent, const char *name);

/* --- names come and go -------------------------------------------------------------------------*/

/* Before @name of @i is removed or renamed over: the count has to have a place. No lock is held. */
int index_prepare_removal(struct ovl *o, const struct ovl_caller *caller, struct ovl_inode *i,
			  struct ovl_inode *parent, const char *name);
/* Before a name in upper comes or goes, so that a crash counts right. @i->lock is held. */
int index_nlink_start(struct ovl *o, struct ovl_inode *i);
/* It has come. @i->lock is held. */
void index_nlink_added(struct ovl_inode *i);
/*
 * It is gone, and from @i->names as well; with the last one goes the entry. @i->lock is held.
 * False: there are more links than were counted, so that who caches the count has a wrong one now.
 */
bool index_nlink_removed(struct ovl *o, struct ovl_inode *i);
