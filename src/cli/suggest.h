/* SPDX-License-Identifier: MIT */
/*
 * "Did you mean": how far a word is from a known one. Nothing here fails or allocates.
 */
#pragma once

#include <stddef.h>

/* Words longer than this are like nothing we know. */
#define SUGGEST_MAX 32

/*
 * How many letters must be changed, added, dropped or swapped with their neighbour to make @b of
 * @a, when that is few enough for a typing mistake; SUGGEST_MAX otherwise.
 */
size_t suggest_distance(const char *a, const char *b);
