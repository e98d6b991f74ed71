/* SPDX-License-Identifier: MIT */
#include "server/dirtable.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "util/base.h"

#define FIRST_SLOTS 64
#define MOST_SLOTS  (1U << 24)

struct server_dir_slot {
	struct ovl_dir *dir; /* NULL: free */
	uint32_t generation;
	uint32_t holds;
	uint32_t next_free; /* index + 1 */
	bool removed;
};

void server_dirs_init(struct server_dirs *dirs)
{
	memset(dirs, 0, sizeof(*dirs));
	pthread_mutex_init(&dirs->lock, NULL);
}

struct ovl_dir *server_dirs_drain(struct server_dirs *dirs)
{
	while (dirs->count) {
		struct ovl_dir *dir = dirs->slots[--dirs->count].dir;

		if (dir)
			return dir;
	}
	return NULL;
}

void server_dirs_destroy(struct server_dirs *dirs)
{
	free(take_ptr(dirs->slots));
	pthread_mutex_destroy(&dirs->lock);
}

static int grow(struct server_dirs *dirs)
{
	uint32_t count = dirs->count ? dirs->count * 2 : FIRST_SLOTS;
	struct server_dir_slot *slots;

	if (count > MOST_SLOTS)
		return -ENFILE;
	slots = reallocarray(dirs->slots, count, sizeof(*slots));
	if (!slots)
		return -ENOMEM;
	for (uint32_t i = dirs->count; i < count; i++)
		slots[i] = (struct server_dir_slot){ .generation = 1,
						     .next_free = i + 1 < count ? i + 2 : 0 };
	dirs->first_free = dirs->count + 1;
	dirs->slots = slots;
	dirs->count = count;
	return 0;
}

int server_dirs_add(struct server_dirs *dirs, struct ovl_dir *dir, uint64_t *fh)
{
	struct server_dir_slot *slot;
	uint32_t index;
	int err = 0;

	pthread_mutex_lock(&dirs->lock);
	if (!dirs->first_free)
		err = grow(dirs);
	if (!err) {
		index = dirs->first_free - 1;
		slot = &dirs->slots[index];
		dirs->first_free = slot->next_free;
		slot->dir = dir;
		slot->holds = 1;
		slot->removed = false;
		*fh = (uint64_t)slot->generation << 32 | index;
	}
	pthread_mutex_unlock(&dirs->lock);
	return err;
}

/* Called with the lock held. */
static struct server_dir_slot *find(struct server_dirs *dirs, uint64_t fh)
{
	uint32_t index = (uint32_t)fh;
	struct server_dir_slot *slot;

	if (index >= dirs->count)
		return NULL;
	slot = &dirs->slots[index];
	return slot->dir && slot->generation == fh >> 32 ? slot : NULL;
}

struct ovl_dir *server_dirs_get(struct server_dirs *dirs, uint64_t fh)
{
	struct server_dir_slot *slot;
	struct ovl_dir *dir = NULL;

	pthread_mutex_lock(&dirs->lock);
	slot = find(dirs, fh);
	if (slot && !slot->removed) {
		slot->holds++;
		dir = slot->dir;
	}
	pthread_mutex_unlock(&dirs->lock);
	return dir;
}

/* Called with the lock held. */
static struct ovl_dir *drop(struct server_dirs *dirs, struct server_dir_slot *slot)
{
	if (--slot->holds)
		return NULL;
	slot->generation++;
	slot->next_free = dirs->first_free;
	dirs->first_free = (uint32_t)(slot - dirs->slots) + 1;
	return take_ptr(slot->dir);
}

struct ovl_dir *server_dirs_put(struct server_dirs *dirs, uint64_t fh)
{
	struct server_dir_slot *slot;
	struct ovl_dir *dir;

	pthread_mutex_lock(&dirs->lock);
	slot = find(dirs, fh);
	dir = slot ? drop(dirs, slot) : NULL;
	pthread_mutex_unlock(&dirs->lock);
	return dir;
}

int server_dirs_remove(struct server_dirs *dirs, uint64_t fh, struct ovl_dir **last)
{
	struct server_dir_slot *slot;
	int err = -EBADF;

	*last = NULL;
	pthread_mutex_lock(&dirs->lock);
	slot = find(dirs, fh);
	if (slot && !slot->removed) {
		slot->removed = true;
		*last = drop(dirs, slot);
		err = 0;
	}
	pthread_mutex_unlock(&dirs->lock);
	return err;
}
