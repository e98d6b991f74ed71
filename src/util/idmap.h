/* SPDX-License-Identifier: MIT */
/*
 * Numbers of users, or of groups: as the layers have them, and as the mount shows them
 * (-o uidmapping=, gidmapping=, squash_to_uid= and so on; the words are fuse-overlayfs').
 *
 * Nothing here makes a system call. Errors: 0 or a negative errno. Ownership: a map owns its
 * ranges until id_map_free(). A map is constant once it serves, and may be read from any thread.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* No such number on the other side. */
#define ID_NONE UINT32_MAX

struct id_range {
	uint32_t disk;  /* first number in the layers */
	uint32_t shown; /* what it is in the mount */
	uint32_t count;
};

/* Zeroed: every number is itself. */
struct id_map {
	struct id_range *ranges; /* in the order of disk */
	size_t count;
	bool squash; /* whoever owns it in the layers, it is shown as ... */
	uint32_t squash_to;
};

/* Whether anything is mapped at all. */
static inline bool id_map_is_trivial(const struct id_map *m)
{
	return !m->count && !m->squash;
}

/*
 * Reads "DISK:SHOWN:COUNT[:DISK:SHOWN:COUNT...]"; containers/storage writes a ':' before the first.
 * -EINVAL: no triples, no numbers, an empty or overlapping range, one past 2^32 - 2. Replaces the
 * ranges that there were; on failure they stay.
 */
int id_map_parse(struct id_map *m, const char *text);
void id_map_free(struct id_map *m);

/* What the mount shows of a number in the layers, and what is stored for one given by a caller
 * (squashing does not count here). ID_NONE: nothing stands for it. */
uint32_t id_map_show(const struct id_map *m, uint32_t disk);
uint32_t id_map_store(const struct id_map *m, uint32_t shown);
