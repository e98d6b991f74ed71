/* SPDX-License-Identifier: MIT */
/*
 * An engine that has inodes and names and nothing below them: what the tests of table.c work on.
 *
 * Ownership: begin() makes what end() frees. Nothing is locked. What fails here fails the test.
 */
#pragma once

#include "helpers.h"

#include "overlay/internal.h"

static inline struct ovl_inode *new_dir(struct ovl *o)
{
	struct dirstack *stack = calloc(1, sizeof(*stack));
	struct ovl_inode *i;

	assert_non_null(stack);
	i = inode_new(o, DT_DIR, stack);
	assert_non_null(i);
	assert_int_equal(inode_insert(o, i), 0);
	return i;
}

static inline struct ovl *begin(void)
{
	struct ovl *o = calloc(1, sizeof(*o));

	assert_non_null(o);
	assert_int_equal(fdcache_init(&o->fds, 64), 0);
	assert_int_equal(table_init(o), 0);
	o->root = new_dir(o);
	inode_count_lookup(o, o->root);
	return o;
}

static inline void end(struct ovl *o)
{
	table_destroy(o);
	fdcache_destroy(&o->fds);
	free(o);
}

/* As a lookup does it: an inode with a name, one lookup counted, no reference of ours left. */
static inline ovl_node enter(struct ovl *o, struct ovl_inode *parent, const char *name,
			     unsigned int type)
{
	struct ovl_inode *i = type == DT_DIR ? new_dir(o) : inode_new(o, type, NULL);
	struct ovl_inode *taken;
	struct ovl_name *n = name_new(parent, name, strlen(name));
	ovl_node node;

	assert_non_null(i);
	assert_non_null(n);
	if (type != DT_DIR)
		assert_int_equal(inode_insert(o, i), 0);
	name_insert(o, n, i, &taken);
	assert_null(taken);
	inode_count_lookup(o, i);
	node = i->node;
	inode_put(o, i);
	return node;
}

/* The inode is alive as long as a lookup or something else counts on it. */
static inline struct ovl_inode *peek(struct ovl *o, ovl_node node)
{
	struct ovl_inode *i = inode_get(o, node);

	assert_non_null(i);
	inode_put(o, i);
	return i;
}

static inline ovl_node node_named(struct ovl *o, struct ovl_inode *parent, const char *name)
{
	struct ovl_inode *i = name_find(o, parent, name, strlen(name));
	ovl_node node = i ? i->node : 0;

	inode_put(o, i);
	return node;
}

static inline bool is_alive(struct ovl *o, ovl_node node)
{
	struct ovl_inode *i = inode_get(o, node);

	inode_put(o, i);
	return i;
}

static inline void assert_counts(struct ovl *o, uint64_t inodes, uint64_t names)
{
	assert_int_equal(o->table.inodes, inodes);
	assert_int_equal(o->table.name_count, names);
}
