// SPDX-License-Identifier: MIT
#include "format.h"

#include <endian.h>
#include <errno.h>
#include <limits.h>
#include <linux/fs.h>
#include <linux/limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "util/base.h"

static const char *const trusted_names[FMT_XATTR_COUNT] = {
	[FMT_OPAQUE] = FMT_PREFIX_TRUSTED "opaque",
	[FMT_REDIRECT] = FMT_PREFIX_TRUSTED "redirect",
	[FMT_ORIGIN] = FMT_PREFIX_TRUSTED "origin",
	[FMT_IMPURE] = FMT_PREFIX_TRUSTED "impure",
	[FMT_NLINK] = FMT_PREFIX_TRUSTED "nlink",
	[FMT_UPPER] = FMT_PREFIX_TRUSTED "upper",
	[FMT_UUID] = FMT_PREFIX_TRUSTED "uuid",
	[FMT_METACOPY] = FMT_PREFIX_TRUSTED "metacopy",
	[FMT_PROTATTR] = FMT_PREFIX_TRUSTED "protattr",
	[FMT_WHITEOUT] = FMT_PREFIX_TRUSTED "whiteout",
};

static const char *const user_names[FMT_XATTR_COUNT] = {
	[FMT_OPAQUE] = FMT_PREFIX_USER "opaque",     [FMT_REDIRECT] = FMT_PREFIX_USER "redirect",
	[FMT_ORIGIN] = FMT_PREFIX_USER "origin",     [FMT_IMPURE] = FMT_PREFIX_USER "impure",
	[FMT_NLINK] = FMT_PREFIX_USER "nlink",       [FMT_UPPER] = FMT_PREFIX_USER "upper",
	[FMT_UUID] = FMT_PREFIX_USER "uuid",         [FMT_METACOPY] = FMT_PREFIX_USER "metacopy",
	[FMT_PROTATTR] = FMT_PREFIX_USER "protattr", [FMT_WHITEOUT] = FMT_PREFIX_USER "whiteout",
};

/* What escaping inserts after the prefix. */
#define ESCAPE "overlay."

/* struct ovl_fb */
#define FH_VERSION         0
#define FH_MAGIC           0xfb
#define FH_FLAG_BIG_ENDIAN (1 << 0)
#define FH_FLAG_ANY_ENDIAN (1 << 1)
#define FH_FLAG_PATH_UPPER (1 << 2)
#define FH_FLAG_ALL        (FH_FLAG_BIG_ENDIAN | FH_FLAG_ANY_ENDIAN | FH_FLAG_PATH_UPPER)
#define FH_FLAG_CPU_ENDIAN (__BYTE_ORDER == __BIG_ENDIAN ? FH_FLAG_BIG_ENDIAN : 0)

struct fh_header {
	uint8_t version;
	uint8_t magic;
	uint8_t len;
	uint8_t flags;
	uint8_t type;
	uint8_t uuid[16];
} __attribute__((packed));
_Static_assert(sizeof(struct fh_header) == FMT_FH_HEADER, "struct ovl_fb is packed");

static const char *prefix(bool userxattr)
{
	return userxattr ? FMT_PREFIX_USER : FMT_PREFIX_TRUSTED;
}

const char *fmt_xattr_name(bool userxattr, enum fmt_xattr which)
{
	return (userxattr ? user_names : trusted_names)[which];
}

int fmt_xattr_of(bool userxattr, const char *name)
{
	const char *const *names = userxattr ? user_names : trusted_names;

	if (!fmt_xattr_is_own(userxattr, name))
		return -1;
	for (int i = 0; i < FMT_XATTR_COUNT; i++)
		if (!strcmp(names[i], name))
			return i;
	return -1;
}

bool fmt_xattr_is_own(bool userxattr, const char *name)
{
	const char *p = prefix(userxattr);

	return !strncmp(name, p, strlen(p));
}

int fmt_xattr_escape(bool userxattr, const char *name, char *out, size_t size)
{
	const char *p = prefix(userxattr);
	int n;

	if (!strcmp(name, p)) /* a namespace is no name */
		return -EINVAL;
	if (fmt_xattr_is_own(userxattr, name))
		n = snprintf(out, size, "%s" ESCAPE "%s", p, name + strlen(p));
	else
		n = snprintf(out, size, "%s", name);
	return n < 0 || (size_t)n >= size || n > XATTR_NAME_MAX ? -EOPNOTSUPP : 0;
}

int fmt_xattr_unescape(bool userxattr, const char *stored, char *out, size_t size)
{
	const char *p = prefix(userxattr);
	int n;

	if (!fmt_xattr_is_own(userxattr, stored)) {
		n = snprintf(out, size, "%s", stored);
	} else {
		const char *rest = stored + strlen(p);

		if (strncmp(rest, ESCAPE, strlen(ESCAPE)) != 0)
			return -ENODATA;
		n = snprintf(out, size, "%s%s", p, rest + strlen(ESCAPE));
	}
	return n < 0 || (size_t)n >= size ? -ENODATA : 0;
}

bool fmt_is_wh_name(const char *name)
{
	return !strncmp(name, FMT_WH_PREFIX, FMT_WH_PREFIX_LEN);
}

const char *fmt_wh_hidden(const char *name)
{
	const char *hidden = name + FMT_WH_PREFIX_LEN;

	return fmt_is_wh_name(name) && *hidden && !fmt_is_wh_name(hidden) ? hidden : NULL;
}

enum fmt_opaque fmt_opaque_value(const void *value, ssize_t size)
{
	if (size != 1)
		return FMT_NOT_OPAQUE;
	switch (*(const char *)value) {
	case 'y': return FMT_IS_OPAQUE;
	case 'x': return FMT_XWHITEOUTS;
	default: return FMT_NOT_OPAQUE;
	}
}

int fmt_redirect_check(const char *value, size_t size)
{
	const char *end = value + strnlen(value, size);

	if (size == 0)
		return -EINVAL;
	size = (size_t)(end - value);
	if (size == 0 || *value != '/') /* a name that is empty is refused when it is looked up */
		return memchr(value, '/', size) ? -EINVAL : 0;
	while (value < end) { /* at a slash, which a component has to follow */
		const char *start = ++value;

		while (value < end && *value != '/')
			value++;
		if (value == start)
			return -EINVAL;
	}
	return 0;
}

/* struct ovl_metacopy, before the digest */
struct metacopy_header {
	uint8_t version;
	uint8_t len; /* of all of it */
	uint8_t flags;
	uint8_t algorithm;
};

int fmt_metacopy_decode(const void *value, size_t size, struct fmt_metacopy *out)
{
	struct metacopy_header h;

	*out = (struct fmt_metacopy){ 0 };
	if (size == 0)
		return 0;
	if (size < sizeof(h) || size > FMT_METACOPY_MAX)
		return -EIO;
	memcpy(&h, value, sizeof(h));
	if (h.version != 0 || h.len != size)
		return -EIO;
	out->algorithm = h.algorithm;
	out->digest_size = (uint8_t)(size - sizeof(h));
	memcpy(out->digest, (const uint8_t *)value + sizeof(h), out->digest_size);
	return 0;
}

size_t fmt_metacopy_encode(const struct fmt_metacopy *m, uint8_t out[FMT_METACOPY_MAX])
{
	struct metacopy_header h = { .algorithm = m->algorithm };
	size_t digest_size = min(m->digest_size, (uint8_t)FMT_DIGEST_MAX);

	if (!digest_size)
		return 0;
	h.len = (uint8_t)(sizeof(h) + digest_size);
	memcpy(out, &h, sizeof(h));
	memcpy(out + sizeof(h), m->digest, digest_size);
	return h.len;
}

unsigned int fmt_protattr_decode(const char *value, ssize_t size)
{
	unsigned int flags = 0;

	for (ssize_t i = 0; i < size; i++) {
		if (value[i] == 'a')
			flags |= FS_APPEND_FL;
		else if (value[i] == 'i')
			flags |= FS_IMMUTABLE_FL;
		else
			return 0;
	}
	return flags;
}

size_t fmt_protattr_encode(unsigned int flags, char out[2])
{
	size_t n = 0;

	if (flags & FS_APPEND_FL)
		out[n++] = 'a';
	if (flags & FS_IMMUTABLE_FL)
		out[n++] = 'i';
	return n;
}

size_t fmt_nlink_encode(enum fmt_nlink_base base, int difference, char out[FMT_NLINK_MAX])
{
	return (size_t)snprintf(out, FMT_NLINK_MAX, "%c%+d", base == FMT_NLINK_LOWER ? 'L' : 'U',
				difference);
}

int fmt_nlink_decode(const char *value, ssize_t size, enum fmt_nlink_base *base, int *difference)
{
	char digits[FMT_NLINK_MAX];
	size_t len;
	char *end;
	long n;

	if (size < 3 || size >= FMT_NLINK_MAX || (value[0] != 'U' && value[0] != 'L') ||
	    (value[1] != '+' && value[1] != '-') || value[2] < '0' || value[2] > '9')
		return -EINVAL;
	len = (size_t)size - 1;
	memcpy(digits, value + 1, len);
	digits[len] = '\0';
	errno = 0;
	n = strtol(digits, &end, 10);
	if (*end == '\n') /* kstrtoint() of the kernel allows one */
		end++;
	if (errno || *end || n < INT_MIN || n > INT_MAX)
		return -EINVAL;
	*base = value[0] == 'L' ? FMT_NLINK_LOWER : FMT_NLINK_UPPER;
	*difference = (int)n;
	return 0;
}

ssize_t fmt_fh_encode(const struct fmt_fh *fh, uint8_t out[FMT_FH_MAX])
{
	struct fh_header h = {
		.version = FH_VERSION,
		.magic = FH_MAGIC,
		.flags = FH_FLAG_CPU_ENDIAN | (fh->upper ? FH_FLAG_PATH_UPPER : 0),
		.type = fh->type,
	};
	size_t len = sizeof(h) + fh->fid_len;

	if (fh->fid_len > sizeof(fh->fid) || len > FMT_FH_MAX)
		return -EOVERFLOW;
	h.len = (uint8_t)len;
	memcpy(h.uuid, fh->uuid, sizeof(h.uuid));
	memcpy(out, &h, sizeof(h));
	memcpy(out + sizeof(h), fh->fid, fh->fid_len);
	return (ssize_t)len;
}

int fmt_fh_decode(const void *value, size_t size, struct fmt_fh *fh)
{
	struct fh_header h;

	if (size == 0)
		return -ENODATA;
	if (size < sizeof(h))
		return -EINVAL;
	memcpy(&h, value, sizeof(h));
	if (h.magic != FH_MAGIC || h.len > size)
		return -EINVAL;
	if (h.version > FH_VERSION || (h.flags & ~FH_FLAG_ALL))
		return -ENODATA;
	if (!(h.flags & FH_FLAG_ANY_ENDIAN) && (h.flags & FH_FLAG_BIG_ENDIAN) != FH_FLAG_CPU_ENDIAN)
		return -ENODATA;
	if (h.len < sizeof(h))
		return -ESTALE;
	if (h.len - sizeof(h) > sizeof(fh->fid))
		return -ENODATA;
	fh->upper = h.flags & FH_FLAG_PATH_UPPER;
	fh->type = h.type;
	memcpy(fh->uuid, h.uuid, sizeof(fh->uuid));
	fh->fid_len = (uint8_t)(h.len - sizeof(h));
	memcpy(fh->fid, (const uint8_t *)value + sizeof(h), fh->fid_len);
	return 0;
}

void fmt_index_name(const uint8_t *fh, size_t size, char out[FMT_INDEX_NAME_MAX])
{
	static const char digits[] = "0123456789abcdef";

	for (size_t n = 0; n < size; n++) {
		*out++ = digits[fh[n] >> 4];
		*out++ = digits[fh[n] & 0xf];
	}
	*out = '\0';
}

static int hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	if (c >= 'A' && c <= 'F')
		return c - 'A' + 10;
	return -1;
}

ssize_t fmt_index_name_decode(const char *name, uint8_t out[FMT_FH_MAX])
{
	size_t size = strlen(name) / 2;
	struct fmt_fh fh;
	int err;

	if (size < FMT_FH_HEADER || size > FMT_FH_MAX)
		return -EINVAL;
	for (size_t n = 0; n < size; n++) {
		int high = hex_digit(name[2 * n]);
		int low = hex_digit(name[2 * n + 1]);

		if (high < 0 || low < 0)
			return -EINVAL;
		out[n] = (uint8_t)(high << 4 | low);
	}
	err = fmt_fh_decode(out, size, &fh);
	if (err == -ESTALE) /* that of nothing, and a name all the same */
		return (ssize_t)size;
	return err < 0 ? err : FMT_FH_HEADER + fh.fid_len;
}

void fmt_temp_name(uint64_t n, char out[FMT_TEMP_NAME_MAX])
{
	snprintf(out, FMT_TEMP_NAME_MAX, "#%llx", (unsigned long long)n);
}
