// SPDX-License-Identifier: MIT
/*
 * What the marks of an object in a layer say, in the words of this mount; with
 * ovl_compat.whiteout_files also in those of a mount with the other prefix, and of fuse-overlayfs.
 */
#include "overlay/internal.h"

/* The words of a mount with the other prefix. */
static const char *other_name(const struct ovl *o, enum fmt_xattr which)
{
	return fmt_xattr_name(!o->userxattr, which);
}

/* One that is not in the words of this mount. */
static unsigned int foreign_mark(const struct ovl *o, const char *xattr)
{
	if (!strcmp(xattr, other_name(o, FMT_OPAQUE)) || !strcmp(xattr, FMT_FUSE_OPAQUE_XATTR))
		return MARK_OTHER_OPAQUE;
	return strcmp(xattr, other_name(o, FMT_WHITEOUT)) ? 0 : 1U << FMT_WHITEOUT;
}

bool xattr_is_not_plain(const char *name)
{
	return !strcmp(name, "security.capability") || !strcmp(name, ACL_ACCESS) ||
	       !strcmp(name, ACL_DEFAULT);
}

int marks_read(struct ovl *o, struct layer_ref *at, const char *name, unsigned int *marks)
{
	char list[1024];
	ssize_t n = layer_listxattr(at, name, list, sizeof(list));

	/* What others may change is asked for, and so is what is kept by other names (override.h).
	 */
	*marks = n < 0 || at->layer->override_count || o->layers_may_change ? MARK_NOT_PLAIN : 0;
	if (n == -ERANGE) { /* many or long names: ask for each */
		*marks |= MARK_OTHER_OPAQUE | (MARK_OTHER_OPAQUE - 1);
		return 0;
	}
	if (n == -EOPNOTSUPP || n == -ENODATA)
		return 0;
	if (n < 0)
		return (int)n;
	for (const char *p = list; p < list + n; p += strlen(p) + 1) {
		int which = fmt_xattr_of(o->userxattr, p);

		if (which >= 0)
			*marks |= 1U << which;
		else if (xattr_is_not_plain(p))
			*marks |= MARK_NOT_PLAIN;
		else if (unlikely(o->compat.whiteout_files))
			*marks |= foreign_mark(o, p);
	}
	return 0;
}

/* The first of two that says something. */
static enum fmt_opaque more_opaque(enum fmt_opaque a, enum fmt_opaque b)
{
	if (a == FMT_IS_OPAQUE || b == FMT_IS_OPAQUE)
		return FMT_IS_OPAQUE;
	return a == FMT_NOT_OPAQUE ? b : a;
}

int marks_opaque(struct ovl *o, struct layer_ref *at, const char *name, unsigned int marks,
		 enum fmt_opaque *out)
{
	const char *const others[] = { other_name(o, FMT_OPAQUE), FMT_FUSE_OPAQUE_XATTR };
	char value[2];
	ssize_t n;

	*out = FMT_NOT_OPAQUE;
	if (marks & 1U << FMT_OPAQUE) {
		n = mark_get(o, at, name, FMT_OPAQUE, value, sizeof(value));
		/* user.* of a directory that we may not read: better nothing than too much */
		if (n == -EACCES && at->layer->index)
			return (int)n;
		*out = n == -EACCES ? FMT_IS_OPAQUE : fmt_opaque_value(value, n);
	}
	if (!(marks & MARK_OTHER_OPAQUE) || !o->compat.whiteout_files)
		return 0;
	for (size_t i = 0; i < ARRAY_SIZE(others) && *out != FMT_IS_OPAQUE; i++) {
		n = layer_getxattr(at, name, others[i], value, sizeof(value));
		if (n == -EACCES)
			return (int)n;
		*out = more_opaque(*out, fmt_opaque_value(value, n));
	}
	return 0;
}

bool is_whiteout(struct ovl *o, struct layer_ref *at, const char *name, const struct statx *st)
{
	if (fmt_is_whiteout(st))
		return true;
	if (!S_ISREG(st->stx_mode) || st->stx_size != 0)
		return false;
	if (mark_get(o, at, name, FMT_WHITEOUT, NULL, 0) >= 0)
		return true;
	return o->compat.whiteout_files &&
	       layer_getxattr(at, name, other_name(o, FMT_WHITEOUT), NULL, 0) >= 0;
}
