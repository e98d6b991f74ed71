/* SPDX-License-Identifier: MIT */
/*
 * Any bytes as the lists of several -o: the parser must answer each with 0 or with an errno and a
 * message, and what it accepts must be within the bounds that the engine counts on.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "cli/options.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(bool truth)
{
	if (!truth)
		abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char *text = malloc(size + 2);
	struct options o;
	char message[256];
	int rc = 0;

	if (!text)
		return 0;
	if (size)
		memcpy(text, data, size);
	text[size] = text[size + 1] = '\0';

	options_init(&o, size && (data[0] & 2) ? OPTIONS_OF_FUSE_OVERLAYFS : OPTIONS_OF_PLYFS);
	o.sloppy = size && (data[0] & 1);
	/* Each NUL begins another -o. */
	for (char *list = text; list <= text + size && rc == 0; list += strlen(list) + 1) {
		rc = options_add(&o, list, message, sizeof(message));
		check(rc == 0 || (rc < 0 && message[0]));
		check(memchr(message, 0, sizeof(message)));
		check(o.lower_count <= OVL_MAX_LAYERS);
		for (size_t i = 0; i < o.lower_count; i++)
			check(o.lower[i] && o.lower[i][0]);
	}
	if (rc == 0) {
		rc = options_check(&o, message, sizeof(message));
		check(rc == 0 || (rc < 0 && message[0]));
		check(rc < 0 || o.remount || o.lower_count > 0);
		check(rc < 0 || o.remount || !o.upper == !o.work);
		check(o.timeout == -1 || (o.timeout >= 0 && o.timeout <= 1e9));
	}
	options_free(&o);
	free(text);
	return 0;
}
