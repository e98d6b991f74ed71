/* SPDX-License-Identifier: MIT */
#include "cli/suggest.h"

#include <string.h>

#include "util/base.h"

size_t suggest_distance(const char *a, const char *b)
{
	size_t len_a = strlen(a), len_b = strlen(b);
	size_t row[3][SUGGEST_MAX + 1];
	size_t *before = row[0], *above = row[1], *here = row[2];

	if (len_a > SUGGEST_MAX || len_b > SUGGEST_MAX)
		return SUGGEST_MAX;

	for (size_t j = 0; j <= len_b; j++)
		above[j] = j;
	for (size_t i = 1; i <= len_a; i++) {
		here[0] = i;
		for (size_t j = 1; j <= len_b; j++) {
			size_t d = above[j - 1] + (a[i - 1] != b[j - 1]);

			d = min(d, above[j] + 1);
			d = min(d, here[j - 1] + 1);
			if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
				d = min(d, before[j - 2] + 1);
			here[j] = d;
		}

		size_t *oldest = before;

		before = above;
		above = here;
		here = oldest;
	}

	/* One slip in a short word, two in a long one. */
	size_t limit = len_a < 5 ? 1 : 2;

	return above[len_b] <= limit ? above[len_b] : SUGGEST_MAX;
}
