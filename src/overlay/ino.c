// SPDX-License-Identifier: MIT
/*
 * One space of inode numbers over all layers, laid out as by the kernel's xino=on, whatever xino=
 * says: there is one st_dev only, so numbers have to be unique. On one filesystem a number is the
 * real one. Over several, the index of the filesystem goes into the topmost bits, and the bit below
 * them stays free. It is set in numbers that have no room for the index, or are of a filesystem
 * that is no layer's (a btrfs subvolume inside a layer): those are hashed. (The kernel shows those
 * under another st_dev, or, of directories, counts them there.)
 */
#include "overlay/internal.h"

/* Where numbers have 32 bits all others are ours. */
#define BITS_OF_32 32

static unsigned int log2_of(unsigned int n)
{
	return 31 - (unsigned int)__builtin_clz(n);
}

static bool numbers_have_32_bits(const struct ovl *o)
{
	for (unsigned int n = o->has_upper ? 0 : 1; n < o->layer_count; n++)
		if (!o->layers[n].ino32)
			return false;
	return true;
}

int ino_init(struct ovl *o)
{
	o->devs = calloc(o->lower_count + 1, sizeof(*o->devs));
	if (!o->devs)
		return -ENOMEM;
	/* Index 0 is upper's, also when there is none: 0 is nobody's st_dev. */
	o->devs[0] = o->has_upper ? o->layers[0].dev : 0;
	o->dev_count = 1;
	for (unsigned int n = 1; n <= o->lower_count; n++) {
		unsigned int d = 0;

		while (d < o->dev_count && o->devs[d] != o->layers[n].dev)
			d++;
		if (d == o->dev_count)
			o->devs[o->dev_count++] = o->layers[n].dev;
	}
	o->samefs = o->dev_count == (o->has_upper ? 1 : 2);
	if (o->samefs)
		o->ino_shift = 63;
	else if (numbers_have_32_bits(o))
		o->ino_shift = 64 - BITS_OF_32;
	else /* for the index and the free bit; 0 is never counted */
		o->ino_shift = 64 - (log2_of(o->dev_count - 1) + 2);
	return 0;
}

/* @which: the filesystem. */
static uint64_t hashed(const struct ovl *o, uint64_t which, uint64_t ino)
{
	uint64_t h = ino * 0x9e3779b97f4a7c15ULL ^ which * 0xc2b2ae3d27d4eb4fULL;

	h ^= h >> 29;
	h *= 0xbf58476d1ce4e5b9ULL;
	h ^= h >> 32;
	return h | 1ULL << o->ino_shift;
}

uint64_t ino_compose(const struct ovl *o, dev_t dev, uint64_t ino)
{
	unsigned int d = 0;

	while (d < o->dev_count && o->devs[d] != dev)
		d++;
	if (d == o->dev_count)
		return hashed(o, dev, ino);
	if (o->samefs)
		return ino;
	if (ino >> o->ino_shift) /* by the index: an st_dev may be another after a remount */
		return hashed(o, d, ino);
	return ino | (uint64_t)d << (o->ino_shift + 1);
}
