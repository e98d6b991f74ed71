// SPDX-License-Identifier: MIT
/*
 * Which features a mount has: what was asked for, less what excludes or lacks something else. The
 * order of the steps is the kernel's, since a step sees what those before it settled.
 */
#include <stdarg.h>
#include <stdio.h>

#include "overlay/internal.h"

struct resolving {
	struct ovl_features *f;
	unsigned int given;
	bool has_upper;
	bool has_data;
	char *message;
	size_t size;
};

static int refuse(struct resolving *r, int err, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

static int refuse(struct resolving *r, int err, const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	vsnprintf(r->message, r->size, fmt, args);
	va_end(args);
	return err;
}

static const char *redirect_word(enum ovl_redirect redirect)
{
	switch (redirect) {
	case OVL_REDIRECT_ON: return "on";
	case OVL_REDIRECT_NOFOLLOW: return "nofollow";
	default: return "follow";
	}
}

/* Without an upper nothing is written. */
static void drop_writing(struct resolving *r)
{
	struct ovl_features *f = r->f;

	if (r->has_upper)
		return;
	/* Nothing to keep an index in; its absence is no conflict. */
	r->given &= ~(unsigned int)OVL_GIVEN_INDEX;
	f->index = false;
	f->fsync = OVL_FSYNC_AUTO;
	if (f->uuid == OVL_UUID_ON)
		f->uuid = OVL_UUID_NULL;
}

static int resolve_metacopy(struct resolving *r)
{
	struct ovl_features *f = r->f;
	bool metacopy_given = r->given & OVL_GIVEN_METACOPY;
	bool redirect_given = r->given & OVL_GIVEN_REDIRECT;

	/* A read-only union makes no redirects: to follow them is all there is to do. */
	if (!r->has_upper && f->redirect == OVL_REDIRECT_FOLLOW)
		f->redirect = OVL_REDIRECT_ON;
	if (!f->metacopy || f->redirect == OVL_REDIRECT_ON)
		return 0;
	if (metacopy_given && redirect_given)
		return refuse(r, -EINVAL,
			      "metacopy=on needs redirect_dir=on, and redirect_dir=%s was given",
			      redirect_word(f->redirect));
	if (redirect_given)
		f->metacopy = false;
	else
		f->redirect = OVL_REDIRECT_ON;
	return 0;
}

static int resolve_nfs_export(struct resolving *r)
{
	struct ovl_features *f = r->f;

	if (f->nfs_export && !f->index) {
		if (!r->has_upper && f->redirect != OVL_REDIRECT_NOFOLLOW) {
			f->nfs_export = false;
		} else if (r->has_upper && (r->given & OVL_GIVEN_INDEX)) {
			if (r->given & OVL_GIVEN_NFS_EXPORT)
				return refuse(r, -EINVAL,
					      "nfs_export=on needs index=on, and index=off was "
					      "given");
			f->nfs_export = false;
		} else if (r->has_upper) {
			f->index = true;
		}
	}
	if (!f->nfs_export || !f->metacopy)
		return 0;
	if ((r->given & OVL_GIVEN_NFS_EXPORT) && (r->given & OVL_GIVEN_METACOPY))
		return refuse(r, -EINVAL, "nfs_export=on and metacopy=on exclude each other");
	if (r->given & OVL_GIVEN_METACOPY)
		f->nfs_export = false;
	else
		f->metacopy = false;
	return 0;
}

/* What users may write must lead nowhere else. */
static int resolve_userxattr(struct resolving *r)
{
	struct ovl_features *f = r->f;

	if (!f->userxattr)
		return 0;
	if ((r->given & OVL_GIVEN_REDIRECT) && f->redirect != OVL_REDIRECT_NOFOLLOW)
		return refuse(r, -EINVAL,
			      "userxattr and redirect_dir=%s exclude each other: give "
			      "redirect_dir=nofollow or leave it out",
			      redirect_word(f->redirect));
	if ((r->given & OVL_GIVEN_METACOPY) && f->metacopy)
		return refuse(r, -EINVAL, "userxattr and metacopy=on exclude each other");
	f->redirect = OVL_REDIRECT_NOFOLLOW;
	f->metacopy = false;
	return 0;
}

int features_resolve(struct ovl_features *f, unsigned int given, bool has_upper, bool has_data,
		     bool privileged, char *message, size_t size)
{
	struct resolving r = { f, given, has_upper, has_data, message, size };
	int err;

	drop_writing(&r);
	err = resolve_metacopy(&r);
	if (err == 0)
		err = resolve_nfs_export(&r);
	if (err == 0)
		err = resolve_userxattr(&r);
	return err;
}
