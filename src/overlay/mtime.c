// SPDX-License-Identifier: MIT
/*
 * The mtime of files that are written on behalf of a cache that keeps it itself (ovl_caller's
 * owns_mtime). What such a cache writes back comes late, and says nothing of when it was written:
 * each change of contents leaves mtime alone, and the cache stores it by ovl_setattr(). Otherwise
 * the time would jump to that of the writing back as soon as the cache has forgotten the file.
 *
 * Changes of one file may overlap, and a time may be stored meanwhile. So the time that is to stay
 * is noted by whoever changes the file first, taken over by those who join him, and replaced in all
 * the notes when one is stored. The contents are changed without a lock.
 */
#include <sys/stat.h>

#include "overlay/internal.h"
#include "util/at.h"

static struct mtime_shard *shard_of(struct ovl *o, const struct ovl_inode *i)
{
	return &o->mtimes[((uintptr_t)i >> 6) % ARRAY_SIZE(o->mtimes)];
}

static struct mtime_note *find(const struct mtime_shard *shard, const struct ovl_inode *i)
{
	struct mtime_note *n = shard->first;

	while (n && n->inode != i)
		n = n->next;
	return n;
}

int mtime_begin(struct ovl *o, const struct ovl_caller *caller, struct ovl_inode *i, int fd,
		struct mtime_note *note)
{
	struct mtime_shard *shard = shard_of(o, i);
	const struct mtime_note *other;
	struct stat st;
	int err = 0;

	*note = (struct mtime_note){ 0 };
	if (!caller->owns_mtime)
		return 0;
	lock_take(&shard->lock);
	other = find(shard, i);
	if (other)
		note->mtime = other->mtime;
	else if (fstat(fd, &st) == 0)
		note->mtime = st.st_mtim;
	else
		err = -errno;
	if (err == 0) {
		note->inode = i;
		note->next = shard->first;
		shard->first = note;
	}
	lock_drop(&shard->lock);
	return err;
}

void mtime_end(struct ovl *o, int fd, struct mtime_note *note)
{
	const struct timespec times[2] = { { .tv_nsec = UTIME_OMIT }, note->mtime };
	struct mtime_shard *shard;
	struct mtime_note **at;

	if (!note->inode)
		return;
	shard = shard_of(o, note->inode);
	lock_take(&shard->lock);
	at_utimens(fd, "", times);
	for (at = &shard->first; *at != note; at = &(*at)->next)
		continue;
	*at = note->next;
	lock_drop(&shard->lock);
}

void mtime_store_begin(struct ovl *o, struct ovl_inode *i)
{
	lock_take(&shard_of(o, i)->lock);
}

void mtime_store_end(struct ovl *o, struct ovl_inode *i, const struct statx *st)
{
	struct mtime_shard *shard = shard_of(o, i);

	for (struct mtime_note *n = shard->first; n && st; n = n->next)
		if (n->inode == i)
			n->mtime = (struct timespec){ .tv_sec = st->stx_mtime.tv_sec,
						      .tv_nsec = st->stx_mtime.tv_nsec };
	lock_drop(&shard->lock);
}
