// SPDX-License-Identifier: MIT
/*
 * One space of inode numbers over all layers. On one filesystem a number is the real one. Over
 * several, the index of the filesystem goes into bits below the topmost, as with the kernel's
 * xino=on; a number that needs those bits, or one of a filesystem that is no layer's (a btrfs
 * subvolume inside a layer), is hashed into the upper half of the space, which is otherwise unused.
 */
#include "overlay/internal.h"

#define HASHED (1ULL << 63)

int ino_init(struct ovl *o)
{
	o->devs = calloc(o->lower_count + 1, sizeof(*o->devs));
	if (!o->devs)
		return -ENOMEM;
	for (unsigned int n = o->has_upper ? 0 : 1; n <= o->lower_count; n++) {
		unsigned int d = 0;

		while (d < o->dev_count && o->devs[d] != o->layers[n].dev)
			d++;
		if (d == o->dev_count)
			o->devs[o->dev_count++] = o->layers[n].dev;
	}
	o->samefs = o->dev_count == 1;
	o->dev_bits = 0;
	while (1U << o->dev_bits < o->dev_count)
		o->dev_bits++;
	return 0;
}

static uint64_t hashed(dev_t dev, uint64_t ino)
{
	uint64_t h = ino * 0x9e3779b97f4a7c15ULL ^ dev * 0xc2b2ae3d27d4eb4fULL;

	h ^= h >> 29;
	h *= 0xbf58476d1ce4e5b9ULL;
	h ^= h >> 32;
	return h | HASHED;
}

uint64_t ino_compose(const struct ovl *o, dev_t dev, uint64_t ino)
{
	unsigned int shift = 63 - o->dev_bits;
	unsigned int d = 0;

	while (d < o->dev_count && o->devs[d] != dev)
		d++;
	if (d == o->dev_count)
		return hashed(dev, ino);
	if (o->samefs)
		return ino;
	if (ino >> shift)
		return hashed(dev, ino);
	return ino | (uint64_t)d << shift;
}
