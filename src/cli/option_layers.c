/* SPDX-License-Identifier: MIT */
/*
 * The words that name directories: lowerdir= with its colons, and how '\' is read in paths.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/options_private.h"
#include "util/base.h"

/* The byte that "\ooo" stands for in the library of FUSE; 0: @s does not begin with digits. */
static char octal_byte(const char *s)
{
	if (s[0] < '0' || s[0] > '3' || s[1] < '0' || s[1] > '7' || s[2] < '0' || s[2] > '7')
		return '\0';
	return (char)((s[0] - '0') << 6 | (s[1] - '0') << 3 | (s[2] - '0'));
}

int option_unescape(char *s, bool octal)
{
	char *d = s;

	for (; *s; s++) {
		char byte = octal && *s == '\\' ? octal_byte(s + 1) : '\0';

		if (byte)
			s += 3;
		else if (*s == '\\' && !*++s)
			return -EINVAL;
		*d++ = byte ? byte : *s;
	}
	*d = '\0';
	return 0;
}

void option_free_lower(struct options *o)
{
	for (size_t i = 0; i < o->lower_count; i++)
		free(o->lower[i]);
	free(o->lower);
	o->lower = NULL;
	o->lower_count = 0;
	o->data_count = 0;
	o->lower_complete = false;
}

/* Takes @path, which is NULL when there was no memory for it. */
static int append_layer(struct option_reader *r, char *path, bool data)
{
	struct options *o = r->o;
	autofree char *owned = path;
	char **lower = reallocarray(o->lower, o->lower_count + 1, sizeof(*lower));

	if (lower)
		o->lower = lower;
	if (!lower || !path)
		return option_no_memory(r);
	lower[o->lower_count++] = take_ptr(owned);
	o->data_count += data;
	return 0;
}

static int too_many(struct option_reader *r, size_t count)
{
	return option_fail(r, "lowerdir= names %zu layers: %d is the most", count, OVL_MAX_LAYERS);
}

#define COLON_HINT "layers are separated by one ':', and a ':' in a path is written '\\:'"

/*
 * Steps over the colons at @s, which end a layer of @data or not, to the next one and says of which
 * kind that is. The kernel's grammar: once one layer follows "::", all must.
 */
static int read_colons(struct option_reader *r, const char *s, bool *data)
{
	size_t n = strspn(s, ":");

	if (!s[n])
		return option_fail(r, "lowerdir= ends with ':': " COLON_HINT);
	if (n > 2)
		return option_fail(r, "lowerdir= holds ':::': " COLON_HINT);
	if (n == 1 && *data)
		return option_fail(
			r, "lowerdir= holds a layer after the data-only ones: each layer after "
			   "the first '::' is data-only and needs '::' before it");
	*data = n == 2;
	return (int)n;
}

/* The end of the layer at @s: the next ':' that no '\' protects, or the end of the list. */
static const char *layer_end(const char *s)
{
	while (*s && *s != ':') {
		if (*s == '\\' && s[1])
			s++;
		s++;
	}
	return s;
}

/* Says what is wrong with @value, or returns the number of layers in *@count. */
static int check_lowerdir(struct option_reader *r, const char *value, size_t *count)
{
	size_t len = strlen(value), slashes = 0;
	bool data = false;
	size_t n = 1;

	if (value[0] == ':')
		return option_fail(r, "lowerdir= begins with ':': " COLON_HINT);
	while (slashes < len && value[len - 1 - slashes] == '\\')
		slashes++;
	if (slashes % 2)
		return option_fail(
			r, "lowerdir= ends in a lone '\\': a '\\' in a path is written '\\\\'");
	for (const char *s = layer_end(value); *s; s = layer_end(s)) {
		int colons = read_colons(r, s, &data);

		if (colons < 0)
			return colons;
		s += colons;
		n++;
	}
	*count = n;
	return 0;
}

/* "lowerdir=" alone is the kernel's way to take back earlier layers. */
static int read_lowerdir(struct option_reader *r, char *value)
{
	const char *s = value;
	bool data = false;
	size_t count = 0;
	int rc;

	rc = check_lowerdir(r, value, &count);
	if (rc < 0)
		return rc;
	if (count > OVL_MAX_LAYERS)
		return too_many(r, count);

	option_free_lower(r->o);
	for (;;) {
		const char *end = layer_end(s);
		autofree char *path = strndup(s, end - s);

		if (!path)
			return option_no_memory(r);
		option_unescape(path, false); /* cannot fail: no '\' ends the list */
		rc = append_layer(r, take_ptr(path), data);
		if (rc < 0 || !*end)
			return rc;
		s = end + read_colons(r, end, &data);
	}
}

/*
 * How a '\' in a path may have been meant. The kernel and fuse-overlayfs 2 read one level of them;
 * the library of FUSE takes off one level before fuse-overlayfs 1 reads another, so that people
 * write "\\:" for a colon; engines put in paths as they are. The first that exists is it.
 */
enum spelling {
	ONE_LEVEL,
	TWO_LEVELS,
	LITERALLY,
};

/* How many of @n '\' before @next are part of the path. */
static size_t slashes_kept(enum spelling how, size_t n, char next)
{
	/* Any number of them protects a colon, and one a comma. */
	bool colon = next == ':';

	switch (how) {
	case ONE_LEVEL: return colon ? (n - 1) / 2 : n / 2;
	case TWO_LEVELS: return colon ? (n < 4 ? 0 : (n / 2 - 1) / 2) : n / 4;
	default: return colon || next == ',' ? n - 1 : n;
	}
}

static void spell(char *out, const char *raw, enum spelling how)
{
	while (*raw) {
		size_t n = strspn(raw, "\\");
		size_t kept = n ? slashes_kept(how, n, raw[n]) : 0;
		char byte = n % 2 && how != LITERALLY ? octal_byte(raw + n) : '\0';

		raw += n;
		memset(out, '\\', kept);
		out += kept;
		if (byte)
			*out++ = byte;
		else if (*raw)
			*out++ = *raw;
		raw += byte ? 3 : !!*raw;
	}
	*out = '\0';
}

/* The path that an engine meant by the @len bytes at @raw; NULL: out of memory. */
static char *read_path(const char *raw, size_t len)
{
	autofree char *copy = strndup(raw, len);
	autofree char *path = malloc(len + 1);

	if (!copy || !path || !strchr(copy, '\\'))
		return path ? take_ptr(copy) : NULL;
	for (int how = ONE_LEVEL; how <= LITERALLY; how++) {
		spell(path, copy, (enum spelling)how);
		if (!faccessat(AT_FDCWD, path, F_OK, AT_EACCESS))
			return take_ptr(path);
	}
	spell(path, copy, ONE_LEVEL);
	return *path ? take_ptr(path) : take_ptr(copy);
}

/* The colon that ends the layer at @s, before which there is no '\', or the end of the list. */
static const char *compat_layer_end(const char *s)
{
	for (bool bare = true; *s && (*s != ':' || !bare); s++)
		bare = *s != '\\';
	return s;
}

static int check_compat_layer(struct option_reader *r, const char *s, size_t len)
{
	size_t name = len > 2 ? strcspn(s + 2, "/:") : 0;

	if (len < 2 || s[0] != '/' || s[1] != '/')
		return 0;
	return option_fail(r,
			   "lowerdir=%.*s asks for the plugin '%.*s', and there are no plugins: a "
			   "directory begins with one '/'",
			   (int)min(len, (size_t)PATH_MAX), s, (int)min(name, (size_t)NAME_MAX),
			   s + 2);
}

/* Engines leave parts empty: between two colons, too, which mean no data-only layer here. */
static int read_compat_lowerdir(struct option_reader *r, const char *value)
{
	size_t count = 0;
	const char *s, *end;
	int rc = 0;

	for (s = value; *s && !rc; s = end + (*end == ':')) {
		end = compat_layer_end(s);
		count += end != s;
		rc = check_compat_layer(r, s, end - s);
	}
	if (rc < 0)
		return rc;
	if (!count)
		return option_fail(r, "lowerdir=%s names no directory", value);
	if (count > OVL_MAX_LAYERS)
		return too_many(r, count);

	option_free_lower(r->o);
	for (s = value; *s && !rc; s = end + (*end == ':')) {
		end = compat_layer_end(s);
		if (end != s)
			rc = append_layer(r, read_path(s, end - s), false);
	}
	return rc;
}

int option_read_lowerdir(struct option_reader *r, const struct option_word *w, char *value)
{
	int rc = 0;

	if (!value[0])
		option_free_lower(r->o);
	else if (r->o->dialect == OPTIONS_OF_FUSE_OVERLAYFS)
		rc = read_compat_lowerdir(r, value);
	else
		rc = read_lowerdir(r, value);
	r->o->lower_complete = !rc && value[0];
	return rc;
}

int option_read_directory(struct option_reader *r, const struct option_word *w, char *value)
{
	char **to = option_string(r, w);

	if (r->o->dialect != OPTIONS_OF_FUSE_OVERLAYFS)
		return option_read_string(r, w, value);
	if (!value[0])
		return option_fail(r, "%s= is empty", w->name);
	free(*to);
	*to = read_path(value, strlen(value));
	return *to ? 0 : option_no_memory(r);
}

/* lowerdir+= and datadir+=: one layer, and nothing in it means anything but itself. */
static int add_layer(struct option_reader *r, const struct option_word *w, char *value, bool data)
{
	struct options *o = r->o;

	if (!value[0])
		return option_fail(r, "%s= is empty", w->name);
	if (o->lower_complete)
		return option_fail(r, "%s= cannot follow lowerdir=: name all layers in one way",
				   w->name);
	if (!data && o->data_count)
		return option_fail(r,
				   "lowerdir+= cannot follow datadir+=: data-only layers are the "
				   "lowest, give them last");
	if (o->lower_count == OVL_MAX_LAYERS)
		return option_fail(r, "%s=%s is one layer too many: %d is the most", w->name, value,
				   OVL_MAX_LAYERS);
	return append_layer(r, strdup(value), data);
}

int option_read_lowerdir_add(struct option_reader *r, const struct option_word *w, char *value)
{
	return add_layer(r, w, value, false);
}

int option_read_datadir_add(struct option_reader *r, const struct option_word *w, char *value)
{
	return add_layer(r, w, value, true);
}
