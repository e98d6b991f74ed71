/* SPDX-License-Identifier: MIT */
/*
 * Which way each inode is open, where the mount has passthrough. The kernel takes one backing id an
 * inode, and no passthrough open while there is one through its page cache, nor the other way
 * round: EIO for who opens. So what is open decides about the next open.
 *
 * A backing id is kept for the next open until the inode is forgotten; of inodes that are not open
 * only so many keep theirs, the last ones used.
 *
 * The kernel does not say when somebody writes through a shared mapping of a file, which may
 * outlive the open file. An inode that may be mapped so is "unsteady": its attributes may not be
 * cached.
 *
 * An inode is named by the number that the kernel has for it. Ownership: ids that come out as
 * "unused" are the caller's to close; those inside end with the connection. Locks: shards of its
 * own, innermost, with no system call under them. Errors: negative errno.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct server_opens;

/*
 * A file that is open passthrough as what it was below cannot be opened as what it is in upper: the
 * inode that the kernel has is "left", and looked up anew it is another, by its number with this
 * bit, which no number of the engine has.
 */
#define SERVER_SECOND_INODE (1ULL << 31)

enum server_way {
	SERVER_WAY_CACHED,
	SERVER_WAY_PASSTHROUGH,
	SERVER_WAY_NO_ID, /* passthrough: come again with a backing id. Nothing is counted. */
	SERVER_WAY_STALE, /* open, and for good, as what it was before copy-up. Nothing is counted.
			   */
};

/* One open. */
struct server_opening {
	uint64_t nodeid;
	bool direct;    /* it may be passthrough */
	bool upper;     /* the contents that it is to see, at least */
	bool writes;    /* for writing */
	bool maps;      /* and for reading: it can be mapped for writing */
	bool trusted;   /* what is written leaves set-id bits alone; and so is id */
	int32_t id;     /* one for it; 0: none yet; < 0: none to be had */
	int32_t unused; /* out: an id to be closed; 0: none */
	bool differs;   /* out: the id is for other writers, so writing has to come to us */
	bool keeps;     /* out: cached: what was read before is still so */
	bool unsteady;  /* out: attributes may have been cached that may not be from now on */
};

/* @keeps_ids: of inodes that are not open. */
int server_opens_new(bool keeps_ids, struct server_opens **out);
void server_opens_free(struct server_opens *x);

/*
 * Counts the open, which goes the way that is returned. With SERVER_WAY_PASSTHROUGH id is the one
 * to use. -ENOMEM.
 */
int server_opens_enter(struct server_opens *x, struct server_opening *opening);
/* One ends. *@id: one that is to be closed, if there are too many; else 0. */
void server_opens_leave(struct server_opens *x, uint64_t nodeid, bool passthrough, bool writes,
			bool maps, int32_t *id);
/* The kernel has forgotten it. Returns an id to be closed, or 0. */
int32_t server_opens_forget(struct server_opens *x, uint64_t nodeid);

/* Whether an inode was left. @nodeid: the one or the other. */
bool server_opens_left(struct server_opens *x, uint64_t nodeid);

/* Whether a mapping of the page cache may have been written to: that has the inode open. */
bool server_opens_mapped_cached(struct server_opens *x, uint64_t nodeid);

/* Whether attributes may be cached that show @mode: not those of two inodes of one object. */
bool server_opens_steady(struct server_opens *x, uint64_t nodeid, uint32_t mode);
/*
 * 0, or a number for server_opens_settle(): the inode is not open for writing any more but may be
 * mapped. The caller finds out and says whether it is; until then nobody enters for writing.
 */
uint64_t server_opens_doubt(struct server_opens *x, uint64_t nodeid);
void server_opens_settle(struct server_opens *x, uint64_t nodeid, uint64_t doubt, bool mapped);
