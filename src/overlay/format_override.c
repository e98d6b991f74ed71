// SPDX-License-Identifier: MIT
#include "format_override.h"

#include <errno.h>
#include <linux/limits.h>
#include <stdio.h>
#include <string.h>

#include "util/base.h"

#define MOVED_PREFIX "user.containers.override_"

static const char *const names[FMT_OVERRIDE_COUNT] = {
	[FMT_OVERRIDE_SECURITY] = "security.fuseoverlayfs.override_stat",
	[FMT_OVERRIDE_FUSEOVERLAYFS] = "user.fuseoverlayfs.override_stat",
	[FMT_OVERRIDE_CONTAINERS] = MOVED_PREFIX "stat",
};

static const struct {
	const char *word;
	mode_t type;
	bool device;
} types[] = {
	{ "file", S_IFREG, false }, { "dir", S_IFDIR, false },     { "symlink", S_IFLNK, false },
	{ "pipe", S_IFIFO, false }, { "socket", S_IFSOCK, false }, { "block-", S_IFBLK, true },
	{ "char-", S_IFCHR, true },
};

#define MODE_MAX  0177777
#define ID_MAX    (UINT32_MAX - 1) /* -1 is nobody */
#define MAJOR_MAX ((1U << 12) - 1) /* dev_t of the kernel */
#define MINOR_MAX ((1U << 20) - 1)

const char *fmt_override_name(enum fmt_override which)
{
	return names[which];
}

/* What is left of a value. */
struct text {
	const char *at;
	const char *end;
};

/* Digits only: neither blanks nor a sign, which the C library would let pass. */
static bool take_number(struct text *t, unsigned int base, uint64_t most, uint32_t *out)
{
	const char *start = t->at;
	uint64_t n = 0;

	while (t->at < t->end && *t->at >= '0' && *t->at < (char)('0' + base)) {
		n = n * base + (uint64_t)(*t->at++ - '0');
		if (n > most)
			return false;
	}
	*out = (uint32_t)n;
	return t->at > start;
}

static bool take(struct text *t, const char *word)
{
	size_t len = strlen(word);

	if ((size_t)(t->end - t->at) < len || memcmp(t->at, word, len) != 0)
		return false;
	t->at += len;
	return true;
}

static bool take_device(struct text *t, struct fmt_override_stat *out)
{
	return take_number(t, 10, MAJOR_MAX, &out->major) && take(t, "-") &&
	       take_number(t, 10, MINOR_MAX, &out->minor);
}

static bool take_type(struct text *t, struct fmt_override_stat *out, mode_t *type)
{
	for (size_t n = 0; n < ARRAY_SIZE(types); n++) {
		if (!take(t, types[n].word))
			continue;
		*type = types[n].type;
		return !types[n].device || take_device(t, out);
	}
	return false;
}

static bool is_type(mode_t type)
{
	for (size_t n = 0; n < ARRAY_SIZE(types); n++)
		if (types[n].type == type)
			return true;
	return false;
}

int fmt_override_decode(const char *value, size_t size, struct fmt_override_stat *out)
{
	struct text t = { value, value + size };
	mode_t in_mode;
	mode_t type = 0;
	uint32_t mode;

	*out = (struct fmt_override_stat){ 0 };
	if (size >= FMT_OVERRIDE_MAX || !take_number(&t, 10, ID_MAX, &out->uid) || !take(&t, ":") ||
	    !take_number(&t, 10, ID_MAX, &out->gid) || !take(&t, ":") ||
	    !take_number(&t, 8, MODE_MAX, &mode))
		return -EINVAL;
	if (t.at < t.end && (!take(&t, ":") || !take_type(&t, out, &type) || t.at < t.end))
		return -EINVAL;
	in_mode = mode & S_IFMT;
	if (in_mode && (type ? in_mode != type : !is_type(in_mode)))
		return -EINVAL;
	if (!type) {
		type = in_mode;
		/* a device without its number */
		if (S_ISBLK(type) || S_ISCHR(type))
			return -EINVAL;
	}
	out->mode = type | (mode & 07777);
	return 0;
}

int fmt_override_apply(const struct fmt_override_stat *ov, struct statx *st)
{
	mode_t real = st->stx_mode & S_IFMT;
	mode_t type = ov->mode & S_IFMT ? ov->mode & S_IFMT : real;

	if (type != real && (real != S_IFREG || type == S_IFDIR))
		return -EIO;
	st->stx_uid = ov->uid;
	st->stx_gid = ov->gid;
	st->stx_mode = (uint16_t)(type | (ov->mode & 07777));
	if (type == real)
		return 0;
	st->stx_rdev_major = ov->major;
	st->stx_rdev_minor = ov->minor;
	if (type != S_IFLNK)
		st->stx_size = st->stx_blocks = 0;
	return 0;
}

size_t fmt_override_encode(const struct statx *shown, mode_t real, char out[FMT_OVERRIDE_MAX])
{
	mode_t type = shown->stx_mode & S_IFMT;
	int len = snprintf(out, FMT_OVERRIDE_MAX, "%u:%u:0%o", shown->stx_uid, shown->stx_gid,
			   shown->stx_mode & 07777);

	for (size_t n = 0; type != (real & S_IFMT) && n < ARRAY_SIZE(types); n++) {
		if (types[n].type != type)
			continue;
		len += snprintf(out + len, FMT_OVERRIDE_MAX - (size_t)len, ":%s", types[n].word);
		if (types[n].device)
			len += snprintf(out + len, FMT_OVERRIDE_MAX - (size_t)len, "%u-%u",
					shown->stx_rdev_major, shown->stx_rdev_minor);
	}
	return (size_t)len;
}

static bool begins(const char *name, const char *prefix)
{
	return !strncmp(name, prefix, strlen(prefix));
}

bool fmt_override_reserved(const char *name)
{
	return begins(name, MOVED_PREFIX) || begins(name, "user.fuseoverlayfs.") ||
	       begins(name, "security.fuseoverlayfs.");
}

bool fmt_override_moves(const char *name)
{
	if (begins(name, "security."))
		return !fmt_override_reserved(name);
	return !strcmp(name, "system.posix_acl_access") ||
	       !strcmp(name, "system.posix_acl_default");
}

int fmt_override_moved(const char *name, char *out, size_t size)
{
	int n = snprintf(out, size, MOVED_PREFIX "%s", name);

	return n < 0 || (size_t)n >= size || n > XATTR_NAME_MAX ? -ERANGE : 0;
}

const char *fmt_override_kept(const char *stored)
{
	if (!begins(stored, MOVED_PREFIX))
		return NULL;
	stored += strlen(MOVED_PREFIX);
	return fmt_override_moves(stored) ? stored : NULL;
}
