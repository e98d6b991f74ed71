/* SPDX-License-Identifier: MIT */
/*
 * Who lists directories, and whether he then looks at what is in them. The kernel asks for the
 * first piece of each listing with the attributes of all entries, before it can know whether
 * anybody wants them: for find(1) that is a waste, for ls -l it spares a LOOKUP of each entry.
 *
 * A process that was not seen before gets them. From his second directory on he gets those of the
 * directories only, which who walks a tree needs anyway, until he looks up a file in the one that
 * he listed last: then everything, for good. What is remembered is small and may be wrong, which
 * costs time only.
 *
 * Locks: none; each slot is one atomic word. Zero is the empty table.
 */
#pragma once

#include <stdatomic.h>
#include <stdint.h>

#include "overlay/ovl.h"

struct server_listers {
	_Atomic uint64_t slots[64]; /* by pid: pid, state, hash of the directory listed last */
};

/* @pid lists @nodeid from @offset on; what it is given. @pid may be 0: unknown. */
enum ovl_look server_listers_begin(struct server_listers *l, uint32_t pid, uint64_t nodeid,
				   uint64_t offset);
/* @pid has looked up something in @parent that is no directory. */
void server_listers_looked(struct server_listers *l, uint32_t pid, uint64_t parent);
