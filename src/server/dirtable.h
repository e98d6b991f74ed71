/* SPDX-License-Identifier: MIT */
/*
 * Open directories by the numbers that the kernel knows them by. A number is a slot and its
 * generation: one that was never given out, or given back, is found to be so.
 *
 * Ownership: the table holds the ovl_dir from add to the put that returns it, which the caller
 * closes. Locks: one of its own, innermost. Errors: 0 or a negative errno.
 */
#pragma once

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

struct ovl_dir;
struct server_dir_slot;

struct server_dirs {
	pthread_mutex_t lock;
	struct server_dir_slot *slots; /* lock */
	uint32_t count;                /* of slots; lock */
	uint32_t first_free;           /* index + 1, 0: none; lock */
};

void server_dirs_init(struct server_dirs *dirs);
/* Returns the directories that are still open one by one, then NULL and is empty. */
struct ovl_dir *server_dirs_drain(struct server_dirs *dirs);
void server_dirs_destroy(struct server_dirs *dirs);

int server_dirs_add(struct server_dirs *dirs, struct ovl_dir *dir, uint64_t *fh);
/* The directory, held until server_dirs_put(); NULL when @fh is none. */
struct ovl_dir *server_dirs_get(struct server_dirs *dirs, uint64_t fh);
/* Returns the directory when that was the last hold: the caller closes it. Else NULL. */
struct ovl_dir *server_dirs_put(struct server_dirs *dirs, uint64_t fh);
/* Gives back what server_dirs_add() took; from then on @fh is unknown. As server_dirs_put(). */
int server_dirs_remove(struct server_dirs *dirs, uint64_t fh, struct ovl_dir **last);
