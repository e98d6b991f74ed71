// SPDX-License-Identifier: MIT
/*
 * Which features a mount has: what was asked for, less what excludes or lacks something else. The
 * order of the steps is the kernel's, since a step sees what those before it settled.
 */
#include <stdarg.h>
#include <stdio.h>

#include "overlay/internal.h"
#include "util/log.h"

struct resolving {
	struct ovl_features *f;
	unsigned int given;
	bool has_upper;
	bool has_data;
	bool privileged;
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

static bool given(const struct resolving *r, unsigned int what)
{
	return r->given & what;
}

static const char *const switch_words[] = { "off", "on" };
static const char *const redirect_words[] = {
	[OVL_REDIRECT_FOLLOW] = "follow",
	[OVL_REDIRECT_NOFOLLOW] = "nofollow",
	[OVL_REDIRECT_ON] = "on",
	[OVL_REDIRECT_OFF] = "off",
};
static const char *const uuid_words[] = {
	[OVL_UUID_AUTO] = "auto",
	[OVL_UUID_ON] = "on",
	[OVL_UUID_NULL] = "null",
	[OVL_UUID_OFF] = "off",
};
static const char *const xino_words[] = {
	[OVL_XINO_OFF] = "off",
	[OVL_XINO_AUTO] = "auto",
	[OVL_XINO_ON] = "on",
};
static const char *const verity_words[] = {
	[OVL_VERITY_OFF] = "off",
	[OVL_VERITY_ON] = "on",
	[OVL_VERITY_REQUIRE] = "require",
};
static const char *const fsync_words[] = {
	[OVL_FSYNC_AUTO] = "auto",
	[OVL_FSYNC_STRICT] = "strict",
	[OVL_FSYNC_VOLATILE] = "volatile",
};

void features_spell(const struct ovl_features *f, struct feature_word out[FEATURE_WORDS])
{
	const struct feature_word words[FEATURE_WORDS] = {
		{ "redirect_dir", redirect_words[f->redirect], f->redirect },
		{ "index", switch_words[f->index], f->index },
		{ "uuid", uuid_words[f->uuid], f->uuid },
		{ "nfs_export", switch_words[f->nfs_export], f->nfs_export },
		{ "xino", xino_words[f->xino], f->xino },
		{ "metacopy", switch_words[f->metacopy], f->metacopy },
		{ "fsync", fsync_words[f->fsync], f->fsync },
		{ "userxattr", switch_words[f->userxattr], f->userxattr },
		{ "verity", verity_words[f->verity], f->verity },
	};

	memcpy(out, words, sizeof(words));
}

/*
 * The kernel's redirect_dir=off follows what there is (redirect_always_follow=Y). Where it could
 * not have followed anything, for want of rights, it is not meant to be more than the default.
 */
static void resolve_off(struct resolving *r)
{
	struct ovl_features *f = r->f;
	bool implied = f->userxattr && !given(r, OVL_GIVEN_USERXATTR);

	if (f->redirect == OVL_REDIRECT_OFF)
		f->redirect = implied ? OVL_REDIRECT_NOFOLLOW : OVL_REDIRECT_FOLLOW;
}

/* Without an upper nothing is written. */
static void drop_writing(struct resolving *r)
{
	struct ovl_features *f = r->f;

	if (r->has_upper)
		return;
	/* index=on means nothing here and excludes nothing; index=off still speaks against
	 * nfs_export. */
	if (f->index)
		r->given &= ~(unsigned int)OVL_GIVEN_INDEX;
	f->index = false;
	if (f->fsync == OVL_FSYNC_VOLATILE)
		f->fsync = OVL_FSYNC_AUTO;
	if (f->uuid == OVL_UUID_ON)
		f->uuid = OVL_UUID_NULL;
	/* A read-only union makes no redirects: to follow them is all there is to do. */
	if (f->redirect == OVL_REDIRECT_FOLLOW)
		f->redirect = OVL_REDIRECT_ON;
}

static int resolve_metacopy(struct resolving *r)
{
	struct ovl_features *f = r->f;

	if (!f->metacopy || f->redirect == OVL_REDIRECT_ON)
		return 0;
	if (!given(r, OVL_GIVEN_REDIRECT)) {
		f->redirect = OVL_REDIRECT_ON;
		return 0;
	}
	if (given(r, OVL_GIVEN_METACOPY))
		return refuse(r, -EINVAL,
			      "metacopy=on needs redirect_dir=on, and redirect_dir=%s was given",
			      redirect_words[f->redirect]);
	f->metacopy = false;
	return 0;
}

static int resolve_index(struct resolving *r)
{
	struct ovl_features *f = r->f;

	if (!f->nfs_export || f->index)
		return 0;
	if (!r->has_upper && f->redirect != OVL_REDIRECT_NOFOLLOW) {
		log_info("without upperdir nfs_export=on needs redirect_dir=nofollow: "
			 "nfs_export=off");
		f->nfs_export = false;
	} else if (!given(r, OVL_GIVEN_INDEX)) {
		/* Of a read-only union handles are as good without. */
		f->index = r->has_upper;
	} else if (given(r, OVL_GIVEN_NFS_EXPORT)) {
		return refuse(r, -EINVAL, "nfs_export=on needs index=on, and index=off was given");
	} else {
		f->nfs_export = false;
	}
	return 0;
}

static int resolve_nfs_export(struct resolving *r)
{
	struct ovl_features *f = r->f;

	if (!f->nfs_export || !f->metacopy)
		return 0;
	if (given(r, OVL_GIVEN_NFS_EXPORT) && given(r, OVL_GIVEN_METACOPY))
		return refuse(r, -EINVAL, "nfs_export=on and metacopy=on exclude each other");
	if (given(r, OVL_GIVEN_METACOPY) || f->verity != OVL_VERITY_OFF)
		f->nfs_export = false;
	else
		f->metacopy = false;
	return 0;
}

/*
 * Whoever owns a file can write these xattrs, so that nobody can tell who made them: they must not
 * lead elsewhere. The word userxattr excludes what does, as in the kernel. An ordinary user, who
 * has no other xattrs and whom the kernel would refuse, gets what he asks for by name: his own
 * rights are all that the mount has.
 */
static int resolve_userxattr(struct resolving *r)
{
	struct ovl_features *f = r->f;
	bool chosen = given(r, OVL_GIVEN_USERXATTR);

	if (!f->userxattr)
		return 0;
	if (chosen && given(r, OVL_GIVEN_REDIRECT) && f->redirect != OVL_REDIRECT_NOFOLLOW)
		return refuse(r, -EINVAL,
			      "userxattr and redirect_dir=%s exclude each other: give "
			      "redirect_dir=nofollow or leave it out",
			      redirect_words[f->redirect]);
	if (chosen && given(r, OVL_GIVEN_METACOPY) && f->metacopy)
		return refuse(r, -EINVAL, "userxattr and metacopy=on exclude each other");
	if (chosen || !given(r, OVL_GIVEN_METACOPY))
		f->metacopy = false;
	if (!f->metacopy && (chosen || !given(r, OVL_GIVEN_REDIRECT)))
		f->redirect = OVL_REDIRECT_NOFOLLOW;
	return 0;
}

/* What is kept in trusted.* and was asked for by name needs the right to see it. */
static int check_rights(struct resolving *r)
{
	const struct ovl_features *f = r->f;
	const char *what = NULL;

	if (f->userxattr || r->privileged)
		return 0;
	if (given(r, OVL_GIVEN_REDIRECT) && f->redirect != OVL_REDIRECT_NOFOLLOW)
		what = "redirect_dir=";
	else if (given(r, OVL_GIVEN_METACOPY) && f->metacopy)
		what = "metacopy=on";
	else if (f->verity != OVL_VERITY_OFF)
		what = "verity=";
	else if (r->has_data)
		what = "a data-only layer";
	if (!what)
		return 0;
	return refuse(r, -EPERM,
		      "%s needs the right to trusted.overlay.* xattrs (CAP_SYS_ADMIN in the "
		      "initial user namespace)",
		      what);
}

int features_resolve(struct ovl_features *f, unsigned int given, bool has_upper, bool has_data,
		     bool privileged, char *message, size_t size)
{
	struct resolving r = { f, given, has_upper, has_data, privileged, message, size };
	int err;

	resolve_off(&r);
	drop_writing(&r);
	err = resolve_metacopy(&r);
	if (err == 0)
		err = resolve_index(&r);
	if (err == 0)
		err = resolve_nfs_export(&r);
	if (err == 0)
		err = resolve_userxattr(&r);
	if (err == 0)
		err = check_rights(&r);
	return err;
}

/* One line that lists what became of what was asked for. */
static void tell_losses(const struct ovl_features *before, const struct ovl_features *after,
			enum log_level level, const char *why)
{
	struct feature_word old[FEATURE_WORDS];
	struct feature_word now[FEATURE_WORDS];
	char list[256] = "";
	size_t len = 0;

	features_spell(before, old);
	features_spell(after, now);
	for (unsigned int n = 0; n < FEATURE_WORDS; n++)
		if (old[n].value != now[n].value)
			len += (size_t)snprintf(list + len, sizeof(list) - len, "%s%s=%s",
						len ? "," : "", now[n].name, now[n].value);
	log_message(level, "%s%s%s", why, len ? ": falling back to " : "", list);
}

void features_fall_back(struct ovl *o, unsigned int asked, const char *why)
{
	/*
	 * Where files can say what xattrs would, nothing is lost but what was asked for by name;
	 * engines show their users what is said.
	 */
	bool lost = !o->compat.whiteout_files || asked & ~(unsigned int)OVL_GIVEN_FSYNC;

	const struct ovl_features before = o->features;
	struct ovl_features *f = &o->features;

	f->redirect = OVL_REDIRECT_NOFOLLOW;
	f->metacopy = false;
	f->index = false;
	f->nfs_export = false;
	if (f->uuid == OVL_UUID_AUTO || f->uuid == OVL_UUID_ON)
		f->uuid = OVL_UUID_NULL;
	/* Numbers that last need origins. */
	if (f->xino == OVL_XINO_AUTO)
		f->xino = OVL_XINO_OFF;
	tell_losses(&before, f, lost ? LOG_LEVEL_WARNING : LOG_LEVEL_INFO, why);
}
