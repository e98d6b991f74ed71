/* SPDX-License-Identifier: MIT */
#include "server/listers.h"

#include "util/base.h"

/* A slot: 32 bits of pid, 30 of the directory, 2 of state. */
enum state {
	LISTED_ONE = 1, /* had all of his first directory, so nobody knows what he needed */
	LISTS,          /* had only the directories of the last one */
	LOOKS,          /* wants to know everything */
};

static uint64_t pack(uint32_t pid, uint64_t nodeid, enum state state)
{
	uint64_t dir = nodeid * 0x9e3779b97f4a7c15ULL >> 34;

	return (uint64_t)pid << 32 | dir << 2 | state;
}

static _Atomic uint64_t *slot_of(struct server_listers *l, uint32_t pid)
{
	return &l->slots[pid % ARRAY_SIZE(l->slots)];
}

enum ovl_look server_listers_begin(struct server_listers *l, uint32_t pid, uint64_t nodeid,
				   uint64_t offset)
{
	_Atomic uint64_t *slot = slot_of(l, pid);
	uint64_t seen = atomic_load_explicit(slot, memory_order_relaxed);
	enum state state = LISTS;

	if (!pid)
		return OVL_LOOK_ALL;
	if (offset) /* the kernel has seen him look up what came before */
		state = LOOKS;
	else if (seen >> 32 != pid)
		state = LISTED_ONE;
	else if ((seen & 3) == LOOKS)
		return OVL_LOOK_ALL;
	atomic_store_explicit(slot, pack(pid, nodeid, state), memory_order_relaxed);
	return state == LISTS ? OVL_LOOK_DIRECTORIES : OVL_LOOK_ALL;
}

void server_listers_looked(struct server_listers *l, uint32_t pid, uint64_t parent)
{
	_Atomic uint64_t *slot = slot_of(l, pid);

	if (unlikely(atomic_load_explicit(slot, memory_order_relaxed) == pack(pid, parent, LISTS)))
		atomic_store_explicit(slot, pack(pid, parent, LOOKS), memory_order_relaxed);
}
