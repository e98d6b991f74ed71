/* SPDX-License-Identifier: MIT */
/* A fast hash of bytes. With a secret seed nobody can choose inputs that collide. */
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <string.h>

static inline uint64_t hash_mix(uint64_t h)
{
	h ^= h >> 32;
	h *= 0xd6e8feb86659fd93ULL;
	h ^= h >> 32;
	h *= 0xd6e8feb86659fd93ULL;
	return h ^ (h >> 32);
}

static inline uint64_t hash_bytes(uint64_t seed, const char *bytes, size_t len)
{
	uint64_t h = seed;
	uint64_t word;

	for (; len >= 8; bytes += 8, len -= 8) {
		memcpy(&word, bytes, 8);
		h = hash_mix(h ^ word);
	}
	word = 0;
	memcpy(&word, bytes, len);
	return hash_mix(h ^ word ^ (uint64_t)len << 56);
}
