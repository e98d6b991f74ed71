/* SPDX-License-Identifier: MIT */
/*
 * With nfs_export: nodeids that outlive the server, so that a file handle made by the kernel of
 * nodeid and generation leads to the same object after a remount. The nodeid of an object is the
 * number that ovl_identify() gives; this table leads from those that the kernel knows to the
 * engine's own, and back. The root is 1 on both sides.
 *
 * An object that comes by a number that another one has at that moment gets one that leads nowhere
 * once the kernel has forgotten it.
 *
 * Lookups are counted here as well as in the engine: an entry lives until the kernel has forgotten
 * as many as it got.
 *
 * Locks: one of its own, innermost; never held across a call of the engine. Errors: 0 or a negative
 * errno.
 */
#pragma once

#include <stdint.h>

#include "overlay/ovl.h"

struct server_exports;

int server_exports_new(struct ovl *o, struct server_exports **out);
void server_exports_free(struct server_exports *x);

/*
 * The nodeid and generation of what the kernel is about to get, with one lookup counted. @node is
 * referenced by the caller. -ENOMEM.
 */
int server_exports_count(struct server_exports *x, ovl_node node, uint64_t *nodeid,
			 uint64_t *generation);
/* The kernel has forgotten @nlookup lookups. What ovl_forget() has to be told of; 0: nothing. */
ovl_node server_exports_forget(struct server_exports *x, uint64_t nodeid, uint64_t nlookup);

/* 0: the kernel does not have it. */
ovl_node server_exports_node(struct server_exports *x, uint64_t nodeid);
uint64_t server_exports_nodeid(struct server_exports *x, ovl_node node);
