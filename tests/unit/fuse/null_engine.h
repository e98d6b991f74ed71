/* SPDX-License-Identifier: MIT */
/*
 * An engine without layers, to run the server against: every call checks that its arguments are
 * sound, is counted, and returns what the test has set. Shared by the unit tests and the fuzzer.
 * Not for several threads.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "overlay/ovl.h"

struct null_engine {
	int result;                   /* what calls return that have no other way to succeed */
	ssize_t count;                /* what reads, writes and xattr reads return at most */
	unsigned int entries;         /* in every directory */
	bool dots;                    /* "." and ".." may be looked up */
	ovl_node made;                /* what is found and made; 0: 77 */
	struct ovl_identity identity; /* of everything */
	/* References that are out: each must come back when a reply was not taken. */
	int64_t lookups;
	int64_t opens;
	unsigned int calls;
	/* The arguments of the last call. */
	ovl_node node;
	int flags;
	mode_t mode;
	dev_t rdev;
	off_t offset;
	size_t size;
	uint64_t resolved;
	struct ovl_caller caller;
	struct ovl_setattr set;
};

extern struct null_engine null_engine;

/* Everything to zero, except that reads return all that was asked for. */
void null_engine_reset(void);
