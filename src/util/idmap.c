/* SPDX-License-Identifier: MIT */
#include "util/idmap.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "util/base.h"

void id_map_free(struct id_map *m)
{
	free(m->ranges);
	*m = (struct id_map){ 0 };
}

/* Which range is the first that begins after @disk. */
static size_t first_after(const struct id_map *m, uint32_t disk)
{
	size_t low = 0;
	size_t high = m->count;

	while (low < high) {
		size_t middle = low + (high - low) / 2;

		if (m->ranges[middle].disk > disk)
			high = middle;
		else
			low = middle + 1;
	}
	return low;
}

uint32_t id_map_show(const struct id_map *m, uint32_t disk)
{
	size_t n;

	if (m->squash)
		return m->squash_to;
	if (!m->count)
		return disk;
	n = first_after(m, disk);
	if (!n || disk - m->ranges[n - 1].disk >= m->ranges[n - 1].count)
		return ID_NONE;
	return m->ranges[n - 1].shown + (disk - m->ranges[n - 1].disk);
}

uint32_t id_map_store(const struct id_map *m, uint32_t shown)
{
	if (!m->count)
		return shown;
	for (size_t n = 0; n < m->count; n++)
		if (shown - m->ranges[n].shown < m->ranges[n].count)
			return m->ranges[n].disk + (shown - m->ranges[n].shown);
	return ID_NONE;
}

/* One number and what ends it. */
static int read_number(const char **text, uint32_t *out)
{
	unsigned long long n = 0;
	const char *s = *text;

	if (*s < '0' || *s > '9')
		return -EINVAL;
	for (; *s >= '0' && *s <= '9'; s++) {
		n = n * 10 + (unsigned int)(*s - '0');
		if (n > UINT32_MAX)
			return -EINVAL;
	}
	if (*s && *s != ':')
		return -EINVAL;
	*text = *s ? s + 1 : s;
	*out = (uint32_t)n;
	return 0;
}

static bool overlap(uint32_t a, uint32_t b, uint32_t a_count, uint32_t b_count)
{
	return a < (uint64_t)b + b_count && b < (uint64_t)a + a_count;
}

static int add_range(struct id_map *m, const struct id_range *r)
{
	struct id_range *ranges;
	size_t at;

	if (!r->count || (uint64_t)r->disk + r->count > ID_NONE ||
	    (uint64_t)r->shown + r->count > ID_NONE)
		return -EINVAL;
	for (size_t n = 0; n < m->count; n++)
		if (overlap(r->disk, m->ranges[n].disk, r->count, m->ranges[n].count) ||
		    overlap(r->shown, m->ranges[n].shown, r->count, m->ranges[n].count))
			return -EINVAL;
	ranges = reallocarray(m->ranges, m->count + 1, sizeof(*ranges));
	if (!ranges)
		return -ENOMEM;
	m->ranges = ranges;
	at = first_after(m, r->disk);
	memmove(ranges + at + 1, ranges + at, (m->count - at) * sizeof(*ranges));
	ranges[at] = *r;
	m->count++;
	return 0;
}

int id_map_parse(struct id_map *m, const char *text)
{
	struct id_map new = { .squash = m->squash, .squash_to = m->squash_to };
	int err = 0;

	if (*text == ':')
		text++;
	if (!*text || text[strlen(text) - 1] == ':')
		return -EINVAL;
	while (!err && *text) {
		struct id_range r;

		err = read_number(&text, &r.disk);
		if (!err)
			err = read_number(&text, &r.shown);
		if (!err)
			err = read_number(&text, &r.count);
		if (!err)
			err = add_range(&new, &r);
	}
	if (err) {
		free(new.ranges);
		return err;
	}
	free(m->ranges);
	*m = new;
	return 0;
}
