// SPDX-License-Identifier: MIT
#include "fsck/judge.h"

#include <errno.h>
#include <string.h>

static const struct judge_words words[FSCK_KIND_COUNT] = {
	[FSCK_WHITEOUT_NEEDLESS] = { "whiteout-needless", FSCK_SAFE,
				     "whiteout with nothing below it", "remove it" },
	[FSCK_XWHITEOUT] = { "whiteout-xattr", FSCK_SAFE,
			     "empty file marked as a whiteout, which listings of an upper layer "
			     "show",
			     "make it a whiteout" },
	[FSCK_XWHITEOUT_COPY] = { "whiteout-copy", FSCK_ASK,
				  "empty file that was copied up is marked as a whiteout",
				  "remove the mark" },
	[FSCK_OPAQUE_INVALID] = { "opaque-invalid", FSCK_SAFE,
				  "opaque mark without a meaning, which is ignored",
				  "remove the mark" },
	[FSCK_OPAQUE_REDIRECT] = { "opaque-redirect", FSCK_SAFE,
				   "opaque directory with a redirect, which is ignored",
				   "remove the redirect" },
	[FSCK_OPAQUE_COPY] = { "opaque-copy", FSCK_ASK,
			       "opaque directory that was copied up from the one it hides",
			       "remove the opaque mark" },
	[FSCK_REDIRECT_INVALID] = { "redirect-invalid", FSCK_ASK,
				    "malformed redirect: the directory cannot be entered",
				    "remove the redirect" },
	[FSCK_REDIRECT_DANGLING] = { "redirect-dangling", FSCK_SAFE,
				     "redirect to no directory of the lower layers",
				     "remove the redirect" },
	[FSCK_REDIRECT_LOST] = { "redirect-lost", FSCK_ASK,
				 "directory that was renamed, but not redirected to where it came "
				 "from",
				 "redirect it" },
	[FSCK_REDIRECT_DUPLICATE] = { "redirect-duplicate", FSCK_ASK,
				      "united with a lower directory that belongs to another one",
				      "part them" },
	[FSCK_REDIRECT_STRAY] = { "redirect-stray", FSCK_ASK,
				  "redirect to a directory that is seen at its own place and was "
				  "never renamed",
				  "remove the redirect" },
	[FSCK_REDIRECT_UNCOVERED] = { "redirect-uncovered", FSCK_ASK,
				      "renamed directory that is seen at its old place as well",
				      "hide the old place" },
	[FSCK_REDIRECT_UNFOLLOWED] = { "redirect-unfollowed", FSCK_LOST,
				       "redirect that these mount options do not follow: the "
				       "directory cannot be entered",
				       NULL },
	[FSCK_REDIRECT_USER] = { "redirect-user", FSCK_ASK,
				 "redirect in user.overlay.*, which is not followed: the directory "
				 "cannot be entered",
				 "remove it" },
	[FSCK_LOWER_UNREADABLE] = { "lower-unreadable", FSCK_LOST,
				    "what is below it cannot be looked up", NULL },
	[FSCK_UNREADABLE] = { "unreadable", FSCK_LOST, "cannot be read", NULL },
	[FSCK_IMPURE_MISSING] = { "impure-missing", FSCK_SAFE,
				  "directory with copied-up entries lacks the impure mark",
				  "set the mark" },
	[FSCK_IMPURE_INVALID] = { "impure-invalid", FSCK_SAFE,
				  "impure mark without a meaning, which is ignored",
				  "remove the mark" },
	[FSCK_ORIGIN_INVALID] = { "origin-invalid", FSCK_SAFE, "malformed origin",
				  "set what is known" },
	[FSCK_ORIGIN_MISMATCH] = { "origin-mismatch", FSCK_ASK,
				   "directory is not united with the lower one of its name, since "
				   "its origin is another",
				   "make the lower one its origin" },
	[FSCK_ORIGIN_TWICE] = { "origin-twice", FSCK_SAFE,
				"file with the origin of another one, which cannot both be opened",
				"forget where it came from" },
	[FSCK_ORIGIN_STALE] = { "origin-stale", FSCK_NOTE,
				"origin that is not there, which is ignored", NULL },
	[FSCK_METACOPY_INVALID] = { "metacopy-invalid", FSCK_ASK,
				    "malformed metacopy mark: the file cannot be opened",
				    "mend the mark" },
	[FSCK_METACOPY_NO_DATA] = { "metacopy-no-data", FSCK_LOST,
				    "metacopy whose data is in no lower layer", NULL },
	[FSCK_METACOPY_EMPTY] = { "metacopy-empty", FSCK_SAFE,
				  "empty metacopy without a lower file", "remove the mark" },
	[FSCK_METACOPY_FALSE] = { "metacopy-false", FSCK_ASK,
				  "metacopy that holds data of its own and has none below",
				  "remove the mark" },
	[FSCK_METACOPY_MOVED] = { "metacopy-moved", FSCK_ASK,
				  "metacopy that is not redirected to its data", "redirect it" },
	[FSCK_METACOPY_UNFOLLOWED] = { "metacopy-unfollowed", FSCK_NOTE,
				       "metacopy, which can be opened with metacopy=on only",
				       NULL },
	[FSCK_METACOPY_TWICE] = { "metacopy-twice", FSCK_ASK,
				  "metacopy with the data of another one, which cannot both be "
				  "opened",
				  "copy the data" },
	[FSCK_MISPLACED] = { "misplaced", FSCK_SAFE, "mark that means nothing here",
			     "remove the mark" },
	[FSCK_NLINK_INVALID] = { "nlink-invalid", FSCK_SAFE, "malformed count of links",
				 "count anew" },
	[FSCK_NLINK_WRONG] = { "nlink-wrong", FSCK_SAFE, "wrong count of links", "count anew" },
	[FSCK_UUID_INVALID] = { "uuid-invalid", FSCK_SAFE, "malformed uuid, which is ignored",
				"remove it" },
	[FSCK_PROTATTR_INVALID] = { "protattr-unknown", FSCK_NOTE,
				    "file flags of an unknown format, which are ignored", NULL },
	[FSCK_FUSE_OVERLAYFS] = { "fuse-overlayfs", FSCK_NOTE,
				  "mark of fuse-overlayfs: see plyfs convert", NULL },
	[FSCK_WORK_LEFTOVER] = { "work-leftover", FSCK_SAFE, "left over from a crash",
				 "remove it" },
	[FSCK_WORK_DEEP] = { "work-deep", FSCK_ASK, "no overlay left that there", "remove it" },
	[FSCK_WORK_FOREIGN] = { "work-foreign", FSCK_NOTE, "does not belong to an overlay", NULL },
	[FSCK_WORK_HIDDEN] = { "work-hidden", FSCK_NOTE, "may not be read and was not checked",
			       NULL },
	[FSCK_VOLATILE] = { "volatile", FSCK_LOST,
			    "used by a volatile mount: after a crash upperdir may lack data",
			    NULL },
	[FSCK_VOLATILE_DISCARD] = { "volatile", FSCK_ASK,
				    "used by a volatile mount: upperdir may lack data if there was "
				    "a crash",
				    "remove the mark" },
	[FSCK_INDEX_ROOT] = { "index-root", FSCK_ASK,
			      "upperdir was indexed with another lowerdir: index=on cannot mount "
			      "it",
			      "make it this one" },
	[FSCK_INDEX_UPPER] = { "index-upper", FSCK_ASK,
			       "the index belongs to another upperdir: index=on cannot mount it",
			       "make it this one" },
	[FSCK_INDEX_NAME] = { "index-name", FSCK_ASK, "no name of an index entry", "remove it" },
	[FSCK_INDEX_STALE] = { "index-stale", FSCK_SAFE, "stale index entry", "remove it" },
	[FSCK_INDEX_ORPHAN] = { "index-orphan", FSCK_SAFE, "index entry of a removed object",
				"remove it" },
	[FSCK_INDEX_ORIGIN] = { "index-origin", FSCK_SAFE,
				"indexed file without the origin that its entry tells",
				"set the origin" },
	[FSCK_INDEX_MISSING] = { "index-missing", FSCK_SAFE, "indexed file without its index entry",
				 "make the entry" },
};

const struct judge_words *judge_words(enum fsck_kind kind)
{
	return &words[kind];
}

bool judge_belongs(enum fmt_xattr which, mode_t mode, uint64_t size, bool root)
{
	switch (which) {
	case FMT_OPAQUE: return S_ISDIR(mode) && !root;
	case FMT_IMPURE: return S_ISDIR(mode);
	/* a file keeps it when its data comes */
	case FMT_REDIRECT: return (S_ISDIR(mode) && !root) || S_ISREG(mode);
	case FMT_METACOPY: return S_ISREG(mode);
	case FMT_WHITEOUT: return S_ISREG(mode) && size == 0;
	case FMT_NLINK: return !S_ISDIR(mode);
	case FMT_UUID: return root;
	case FMT_UPPER: return false; /* of the index */
	case FMT_PROTATTR: return S_ISDIR(mode) || S_ISREG(mode);
	default: return true;
	}
}

int judge_whiteout(bool marked, enum below_kind below, enum origin_match origin)
{
	if (marked && origin != ORIGIN_NONE)
		return FSCK_XWHITEOUT_COPY;
	if (below == BELOW_NOTHING)
		return FSCK_WHITEOUT_NEEDLESS;
	return marked ? FSCK_XWHITEOUT : FSCK_FINE;
}

int judge_opaque(enum fmt_opaque opaque, bool has_redirect, enum below_kind target,
		 enum origin_match origin)
{
	if (opaque == FMT_NOT_OPAQUE)
		return FSCK_OPAQUE_INVALID;
	if (opaque != FMT_IS_OPAQUE)
		return FSCK_FINE;
	/* No overlay makes a directory opaque that it has copied up. */
	if (target == BELOW_DIR && origin == ORIGIN_SAME)
		return FSCK_OPAQUE_COPY;
	return has_redirect ? FSCK_OPAQUE_REDIRECT : FSCK_FINE;
}

/* A component that no lookup of the kernel accepts. */
static bool is_dot_component(const char *s, size_t len)
{
	return (len == 1 && s[0] == '.') || (len == 2 && s[0] == '.' && s[1] == '.');
}

bool judge_redirect_valid(const char *value, size_t size)
{
	const char *end = value + strnlen(value, size);

	/* A name that is empty is refused when it is looked up, as the dots are. */
	if (value == end || fmt_redirect_check(value, size) < 0)
		return false;
	while (value < end) {
		const char *slash = memchr(value, '/', (size_t)(end - value));
		size_t len = (size_t)((slash ? slash : end) - value);

		if (is_dot_component(value, len))
			return false;
		value += len + (slash ? 1 : 0);
	}
	return true;
}

int judge_redirect(bool valid, bool followed, bool userxattr, enum below_kind target)
{
	if (!valid)
		return FSCK_REDIRECT_INVALID;
	if (target == BELOW_UNKNOWN)
		return FSCK_LOWER_UNREADABLE;
	if (target != BELOW_DIR)
		return FSCK_REDIRECT_DANGLING;
	if (followed)
		return FSCK_FINE;
	/* Where users may write the marks no mount follows redirects, so none was made either. */
	return userxattr ? FSCK_REDIRECT_USER : FSCK_REDIRECT_UNFOLLOWED;
}

static int claim_rank(const struct judge_claim *c)
{
	static const int ranks[] = {
		[ORIGIN_SAME] = 3,
		[ORIGIN_UNKNOWN] = 2,
		[ORIGIN_NONE] = 1,
		[ORIGIN_ELSEWHERE] = 0,
	};

	/* Of equal origins the one that never moved: the other is a copy. */
	return 2 * ranks[c->origin] + (c->redirected ? 0 : 1);
}

int judge_claims(const struct judge_claim *a, const struct judge_claim *b)
{
	return claim_rank(b) - claim_rank(a);
}

int judge_uncovered(enum origin_match origin)
{
	return origin == ORIGIN_SAME || origin == ORIGIN_UNKNOWN ? FSCK_REDIRECT_UNCOVERED
								 : FSCK_REDIRECT_STRAY;
}

int judge_twins(const struct judge_twin *a, const struct judge_twin *b)
{
	if (a->linked != b->linked)
		return a->linked ? -1 : 1;
	if (a->home != b->home)
		return a->home ? -1 : 1;
	return 0;
}

int judge_impure(const char *value, ssize_t size, bool needed)
{
	bool set = size == 1 && *value == 'y';

	if (needed && !set)
		return FSCK_IMPURE_MISSING;
	return size >= 0 && !set ? FSCK_IMPURE_INVALID : FSCK_FINE;
}

int judge_origin(const void *value, size_t size)
{
	struct fmt_fh fh;

	return fmt_fh_decode(value, size, &fh) == -EINVAL ? FSCK_ORIGIN_INVALID : FSCK_FINE;
}

int judge_metacopy(const struct judge_metacopy_facts *f)
{
	if (f->below == BELOW_UNKNOWN)
		return FSCK_LOWER_UNREADABLE;
	if (f->below == BELOW_OTHER && f->below_is_file) {
		if (f->below_size == f->size)
			return f->valid ? FSCK_FINE : FSCK_METACOPY_INVALID;
		/* A change of size brings the data with it: these two do not belong together. */
	} else if (f->size == 0) {
		return FSCK_METACOPY_EMPTY;
	}
	if (f->own_data)
		return FSCK_METACOPY_FALSE;
	return f->moved ? FSCK_METACOPY_MOVED : FSCK_METACOPY_NO_DATA;
}

int judge_nlink(bool valid, long stored, long names, long most)
{
	if (!valid)
		return FSCK_NLINK_INVALID;
	/*
	 * Too few, and the entry goes with a name left. Some too many there may be: a lower link
	 * that lies outside the layer, or was broken without an index.
	 */
	return stored < names || stored > most ? FSCK_NLINK_WRONG : FSCK_FINE;
}

int judge_index(const struct judge_index_facts *f)
{
	if (!f->name_valid)
		return FSCK_INDEX_NAME;
	if (!f->has_origin)
		return f->name_leads ? FSCK_INDEX_ORIGIN : FSCK_INDEX_STALE;
	if (!f->same)
		return f->name_leads && !f->origin_leads ? FSCK_INDEX_ORIGIN : FSCK_INDEX_STALE;
	if (f->nlink == 1 && f->stored == 0)
		return FSCK_INDEX_ORPHAN;
	if (f->nlink == 1 && !f->name_leads)
		return FSCK_INDEX_STALE;
	return FSCK_FINE;
}
