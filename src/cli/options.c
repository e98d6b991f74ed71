/* SPDX-License-Identifier: MIT */
#include "cli/options.h"

#include <stdarg.h>
#include <string.h>
#include <sys/mount.h>
#include <unistd.h>

#include "cli/suggest.h"
#include "util/base.h"

/* Missing in the headers of older C libraries; values of the kernel's linux/mount.h. */
#ifndef MS_LAZYTIME
#define MS_LAZYTIME (1 << 25)
#endif
#ifndef MS_NOSYMFOLLOW
#define MS_NOSYMFOLLOW 256
#endif

#define TIMEOUT_MAX 1e9

/* Of these a mount has one. */
#define ATIME_MODES (MS_NOATIME | MS_RELATIME | MS_STRICTATIME)

enum arity {
	ALONE,  /* word */
	VALUE,  /* word=value */
	EITHER, /* word or word=value */
};

struct reader {
	struct options *o;
	char *message;
	size_t size;
};

struct word {
	const char *name; /* a '*' at the end stands for any rest */
	enum arity arity;
	/* @value is NULL without '='; it may be changed in place. */
	int (*read)(struct reader *r, const struct word *w, char *value);
	unsigned long set, clear; /* MS_* */
	/* A feature: */
	const char *accepted; /* values, separated by spaces */
	int meanings[4];      /* of each value */
	void (*feature)(struct ovl_features *f, int meaning);
	unsigned int given; /* enum ovl_given */
	/* Only in one of the dialects. */
	enum { IN_BOTH, IN_PLYFS, IN_COMPAT } in;
	size_t offset; /* of the bool in struct options that the word switches on */
};

static int fail(struct reader *r, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

static int fail(struct reader *r, const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	vsnprintf(r->message, r->size, fmt, args);
	va_end(args);
	return -EINVAL;
}

static int fail_memory(struct reader *r)
{
	snprintf(r->message, r->size, "out of memory while reading the options");
	return -ENOMEM;
}

/* Which of the space-separated words of @list @word is; -1: none. */
static int index_in(const char *list, const char *word)
{
	size_t len = strlen(word);

	for (int index = 0; list && len; index++) {
		size_t n = strcspn(list, " ");

		if (n == len && !memcmp(list, word, len))
			return index;
		list = list[n] ? list + n + 1 : NULL;
	}
	return -1;
}

/* "\X" becomes X, in place. A lone '\' at the end is -EINVAL. */
static int unescape(char *s)
{
	char *d = s;

	for (; *s; s++) {
		if (*s == '\\' && !*++s)
			return -EINVAL;
		*d++ = *s;
	}
	*d = '\0';
	return 0;
}

static void free_lower(struct options *o)
{
	for (size_t i = 0; i < o->lower_count; i++)
		free(o->lower[i]);
	free(o->lower);
	o->lower = NULL;
	o->lower_count = 0;
	o->data_count = 0;
	o->lower_complete = false;
}

static int append_layer(struct reader *r, const char *path, size_t len, bool data)
{
	struct options *o = r->o;
	char **lower = reallocarray(o->lower, o->lower_count + 1, sizeof(*lower));

	if (!lower)
		return fail_memory(r);
	o->lower = lower;
	lower[o->lower_count] = strndup(path, len);
	if (!lower[o->lower_count])
		return fail_memory(r);
	o->lower_count++;
	o->data_count += data;
	return 0;
}

#define COLON_HINT "layers are separated by one ':', and a ':' in a path is written '\\:'"

/*
 * Steps over the colons at @s, which end a layer of @data or not, to the next one and says of which
 * kind that is. The kernel's grammar: once one layer follows "::", all must.
 */
static int read_colons(struct reader *r, const char *s, bool *data)
{
	size_t n = strspn(s, ":");

	if (!s[n])
		return fail(r, "lowerdir= ends with ':': " COLON_HINT);
	if (n > 2)
		return fail(r, "lowerdir= holds ':::': " COLON_HINT);
	if (n == 1 && *data)
		return fail(r, "lowerdir= holds a layer after the data-only ones: each layer after "
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
static int check_lowerdir(struct reader *r, const char *value, size_t *count)
{
	size_t len = strlen(value), slashes = 0;
	bool data = false;
	size_t n = 1;

	if (value[0] == ':')
		return fail(r, "lowerdir= begins with ':': " COLON_HINT);
	while (slashes < len && value[len - 1 - slashes] == '\\')
		slashes++;
	if (slashes % 2)
		return fail(r, "lowerdir= ends in a lone '\\': a '\\' in a path is written '\\\\'");
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

static int read_lowerdir(struct reader *r, const struct word *w, char *value)
{
	struct options *o = r->o;
	const char *s = value;
	bool data = false;
	size_t count = 0;
	int rc;

	if (!value[0]) {
		/* The kernel's way to take back earlier layers. */
		free_lower(o);
		return 0;
	}
	rc = check_lowerdir(r, value, &count);
	if (rc < 0)
		return rc;
	if (count > OVL_MAX_LAYERS)
		return fail(r, "lowerdir= names %zu layers: %d is the most", count, OVL_MAX_LAYERS);

	free_lower(o);
	for (;;) {
		const char *end = layer_end(s);

		rc = append_layer(r, s, end - s, data);
		if (rc < 0)
			return rc;
		unescape(o->lower[o->lower_count - 1]); /* cannot fail: no '\' ends the list */
		if (!*end)
			break;
		s = end + read_colons(r, end, &data);
	}
	o->lower_complete = true;
	return 0;
}

/* lowerdir+= and datadir+=: one layer, and nothing in it means anything but itself. */
static int add_layer(struct reader *r, const struct word *w, char *value, bool data)
{
	struct options *o = r->o;

	if (!value[0])
		return fail(r, "%s= is empty", w->name);
	if (o->lower_complete)
		return fail(r, "%s= cannot follow lowerdir=: name all layers in one way", w->name);
	if (!data && o->data_count)
		return fail(r, "lowerdir+= cannot follow datadir+=: data-only layers are the "
			       "lowest, give them last");
	if (o->lower_count == OVL_MAX_LAYERS)
		return fail(r, "%s=%s is one layer too many: %d is the most", w->name, value,
			    OVL_MAX_LAYERS);
	return append_layer(r, value, strlen(value), data);
}

static int read_lowerdir_add(struct reader *r, const struct word *w, char *value)
{
	return add_layer(r, w, value, false);
}

static int read_datadir_add(struct reader *r, const struct word *w, char *value)
{
	return add_layer(r, w, value, true);
}

/* A string that must not be empty, unescaped into *@to. */
static int read_string(struct reader *r, const struct word *w, char *value, char **to)
{
	if (!value[0])
		return fail(r, "%s= is empty", w->name);
	if (unescape(value) < 0)
		return fail(r, "%s= ends in a lone '\\': a '\\' is written '\\\\'", w->name);

	char *copy = strdup(value);

	if (!copy)
		return fail_memory(r);
	free(*to);
	*to = copy;
	return 0;
}

static int read_upperdir(struct reader *r, const struct word *w, char *value)
{
	return read_string(r, w, value, &r->o->upper);
}

static int read_workdir(struct reader *r, const struct word *w, char *value)
{
	return read_string(r, w, value, &r->o->work);
}

static int read_source(struct reader *r, const struct word *w, char *value)
{
	return read_string(r, w, value, &r->o->source);
}

static int read_subtype(struct reader *r, const struct word *w, char *value)
{
	/* It becomes part of a type's name in the mount table. */
	if (value[strspn(value,
			 "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.")])
		return fail(r, "subtype=%s: letters, digits, '_', '-' and '.' only", value);
	return read_string(r, w, value, &r->o->subtype);
}

static int read_timeout(struct reader *r, const struct word *w, char *value)
{
	char *end;
	double seconds = 0;
	bool sane = value[0] >= '0' && value[0] <= '9';

	/* Digits and a point only: strtod() would also take "inf", "nan", "0x1p3" and "1e9". */
	sane = sane && !value[strspn(value, "0123456789.")];
	if (sane) {
		seconds = strtod(value, &end);
		sane = !*end && seconds <= TIMEOUT_MAX;
	}
	if (!sane)
		return fail(r, "timeout=%s: give a number of seconds from 0 to %.0f", value,
			    TIMEOUT_MAX);
	r->o->timeout = seconds;
	return 0;
}

/* A feature of the overlay: one of the words in @accepted, each with its meaning. */
static int read_feature(struct reader *r, const struct word *w, char *value)
{
	struct ovl_features *f = &r->o->features;
	int n = index_in(w->accepted, value);

	if (n < 0)
		return fail(r, "%s=%s: no such value (accepted: %s)", w->name, value, w->accepted);
	w->feature(f, w->meanings[n]);
	r->o->given |= w->given;
	return 0;
}

static void set_redirect(struct ovl_features *f, int meaning)
{
	f->redirect = (enum ovl_redirect)meaning;
}

static void set_metacopy(struct ovl_features *f, int meaning)
{
	f->metacopy = meaning;
}

static void set_index(struct ovl_features *f, int meaning)
{
	f->index = meaning;
}

static void set_nfs_export(struct ovl_features *f, int meaning)
{
	f->nfs_export = meaning;
}

static void set_verity(struct ovl_features *f, int meaning)
{
	f->verity = (enum ovl_verity)meaning;
}

static void set_xino(struct ovl_features *f, int meaning)
{
	f->xino = (enum ovl_xino)meaning;
}

static void set_uuid(struct ovl_features *f, int meaning)
{
	f->uuid = (enum ovl_uuid)meaning;
}

static void set_fsync(struct ovl_features *f, int meaning)
{
	f->fsync = (enum ovl_fsync)meaning;
}

static int read_volatile(struct reader *r, const struct word *w, char *value)
{
	r->o->features.fsync = OVL_FSYNC_VOLATILE;
	r->o->given |= OVL_GIVEN_FSYNC;
	return 0;
}

static int read_userxattr(struct reader *r, const struct word *w, char *value)
{
	r->o->features.userxattr = true;
	r->o->given |= OVL_GIVEN_USERXATTR;
	return 0;
}

static int read_flags(struct reader *r, const struct word *w, char *value)
{
	r->o->mount_flags = (r->o->mount_flags & ~w->clear) | w->set;
	r->o->unset_flags = (r->o->unset_flags & ~w->set) | w->clear;
	return 0;
}

static int read_allow_other(struct reader *r, const struct word *w, char *value)
{
	r->o->allow_other = OPTION_YES;
	return 0;
}

static int read_noallow_other(struct reader *r, const struct word *w, char *value)
{
	r->o->allow_other = OPTION_NO;
	return 0;
}

static int read_allow_root(struct reader *r, const struct word *w, char *value)
{
	r->o->allow_root = true;
	return 0;
}

static int read_debug(struct reader *r, const struct word *w, char *value)
{
	r->o->debug = true;
	return 0;
}

static int read_remount(struct reader *r, const struct word *w, char *value)
{
	r->o->remount = true;
	return 0;
}

/* word, word=1 or word=0 */
static int read_bool(struct reader *r, const char *name, const char *value, bool *out)
{
	if (value && strcmp(value, "0") != 0 && strcmp(value, "1") != 0)
		return fail(r, "%s=%s: it is 0 or 1", name, value);
	*out = !value || value[0] == '1';
	return 0;
}

static int read_switch(struct reader *r, const struct word *w, char *value)
{
	return read_bool(r, w->name, value, (bool *)((char *)r->o + w->offset));
}

static int read_fsync(struct reader *r, const struct word *w, char *value)
{
	bool wanted = true;
	int rc = read_bool(r, w->name, value, &wanted);

	if (rc < 0)
		return rc;
	r->o->features.fsync = wanted ? OVL_FSYNC_AUTO : OVL_FSYNC_VOLATILE;
	r->o->given |= OVL_GIVEN_FSYNC;
	return 0;
}

static int read_map(struct reader *r, const struct word *w, const char *value, struct id_map *map)
{
	int rc = id_map_parse(map, value);

	if (rc == -ENOMEM)
		return fail_memory(r);
	if (rc < 0)
		return fail(r,
			    "%s=%s: give triples of numbers DISK:SHOWN:COUNT, separated by ':', "
			    "whose ranges do not overlap",
			    w->name, value);
	return 0;
}

static int read_uidmapping(struct reader *r, const struct word *w, char *value)
{
	return read_map(r, w, value, &r->o->uids);
}

static int read_gidmapping(struct reader *r, const struct word *w, char *value)
{
	return read_map(r, w, value, &r->o->gids);
}

static int read_squash(struct reader *r, const struct word *w, const char *value,
		       struct id_map *map)
{
	unsigned long long id = 0;
	size_t digits = strspn(value, "0123456789");

	if (digits && digits <= 10 && !value[digits])
		id = strtoull(value, NULL, 10);
	else
		id = ID_NONE;
	if (id >= ID_NONE)
		return fail(r, "%s=%s: give one number from 0 to %u", w->name, value, ID_NONE - 1);
	map->squash = true;
	map->squash_to = (uint32_t)id;
	return 0;
}

static int read_squash_uid(struct reader *r, const struct word *w, char *value)
{
	return read_squash(r, w, value, &r->o->uids);
}

static int read_squash_gid(struct reader *r, const struct word *w, char *value)
{
	return read_squash(r, w, value, &r->o->gids);
}

static int read_xattr_permissions(struct reader *r, const struct word *w, char *value)
{
	int n = index_in("0 1 2", value);

	if (n < 0)
		return fail(r, "%s=%s: it is 0, 1 or 2", w->name, value);
	r->o->compat.override = (enum ovl_override)n;
	return 0;
}

static int ignore(struct reader *r, const struct word *w, char *value)
{
	return 0;
}

static const struct word words[] = {
	/* The kernel's overlayfs, in the order of its documentation. */
	{ "lowerdir", VALUE, read_lowerdir },
	{ "lowerdir+", VALUE, read_lowerdir_add },
	{ "datadir+", VALUE, read_datadir_add },
	{ "upperdir", VALUE, read_upperdir },
	{ "workdir", VALUE, read_workdir },
	{ "userxattr", ALONE, read_userxattr },
	{ "redirect_dir", VALUE, read_feature, .accepted = "follow nofollow off on",
	  .meanings = { OVL_REDIRECT_FOLLOW, OVL_REDIRECT_NOFOLLOW, OVL_REDIRECT_OFF,
			OVL_REDIRECT_ON },
	  .feature = set_redirect, .given = OVL_GIVEN_REDIRECT },
	{ "index", VALUE, read_feature, .accepted = "off on", .meanings = { false, true },
	  .feature = set_index, .given = OVL_GIVEN_INDEX },
	{ "nfs_export", VALUE, read_feature, .accepted = "off on", .meanings = { false, true },
	  .feature = set_nfs_export, .given = OVL_GIVEN_NFS_EXPORT },
	{ "metacopy", VALUE, read_feature, .accepted = "off on", .meanings = { false, true },
	  .feature = set_metacopy, .given = OVL_GIVEN_METACOPY },
	{ "xino", VALUE, read_feature, .accepted = "off auto on",
	  .meanings = { OVL_XINO_OFF, OVL_XINO_AUTO, OVL_XINO_ON }, .feature = set_xino,
	  .given = OVL_GIVEN_XINO },
	{ "uuid", VALUE, read_feature, .accepted = "auto on null off",
	  .meanings = { OVL_UUID_AUTO, OVL_UUID_ON, OVL_UUID_NULL, OVL_UUID_OFF },
	  .feature = set_uuid, .given = OVL_GIVEN_UUID },
	{ "verity", VALUE, read_feature, .accepted = "off on require",
	  .meanings = { OVL_VERITY_OFF, OVL_VERITY_ON, OVL_VERITY_REQUIRE }, .feature = set_verity,
	  .given = OVL_GIVEN_VERITY },
	{ "fsync", VALUE, read_fsync, .in = IN_COMPAT },
	{ "sync", VALUE, read_fsync, .in = IN_COMPAT },
	{ "fsync", VALUE, read_feature, .in = IN_PLYFS, .accepted = "auto strict volatile",
	  .meanings = { OVL_FSYNC_AUTO, OVL_FSYNC_STRICT, OVL_FSYNC_VOLATILE },
	  .feature = set_fsync, .given = OVL_GIVEN_FSYNC },
	{ "volatile", ALONE, read_volatile },
	{ "default_permissions", ALONE, ignore },
	{ "override_creds", ALONE, ignore },
	{ "nooverride_creds", ALONE, ignore },

	/* mount(2). */
	{ "ro", ALONE, read_flags, .set = MS_RDONLY },
	{ "rw", ALONE, read_flags, .clear = MS_RDONLY },
	{ "nosuid", ALONE, read_flags, .set = MS_NOSUID },
	{ "suid", ALONE, read_flags, .clear = MS_NOSUID },
	{ "nodev", ALONE, read_flags, .set = MS_NODEV },
	{ "dev", ALONE, read_flags, .clear = MS_NODEV },
	{ "noexec", ALONE, read_flags, .set = MS_NOEXEC },
	{ "exec", ALONE, read_flags, .clear = MS_NOEXEC },
	{ "noatime", ALONE, read_flags, .set = MS_NOATIME, .clear = MS_RELATIME | MS_STRICTATIME },
	{ "atime", ALONE, read_flags, .clear = MS_NOATIME },
	{ "nodiratime", ALONE, read_flags, .set = MS_NODIRATIME },
	{ "diratime", ALONE, read_flags, .clear = MS_NODIRATIME },
	{ "relatime", ALONE, read_flags, .set = MS_RELATIME, .clear = MS_NOATIME | MS_STRICTATIME },
	{ "norelatime", ALONE, read_flags, .clear = MS_RELATIME },
	{ "strictatime", ALONE, read_flags, .set = MS_STRICTATIME,
	  .clear = MS_NOATIME | MS_RELATIME },
	{ "nostrictatime", ALONE, read_flags, .clear = MS_STRICTATIME },
	{ "lazytime", ALONE, read_flags, .set = MS_LAZYTIME },
	{ "nolazytime", ALONE, read_flags, .clear = MS_LAZYTIME },
	{ "sync", ALONE, read_flags, .set = MS_SYNCHRONOUS },
	{ "async", ALONE, read_flags, .clear = MS_SYNCHRONOUS },
	{ "dirsync", ALONE, read_flags, .set = MS_DIRSYNC },
	{ "nosymfollow", ALONE, read_flags, .set = MS_NOSYMFOLLOW },
	{ "symfollow", ALONE, read_flags, .clear = MS_NOSYMFOLLOW },
	{ "silent", ALONE, ignore },
	{ "loud", ALONE, ignore },
	{ "remount", ALONE, read_remount },

	/* FUSE's own. */
	{ "allow_other", ALONE, read_allow_other },
	{ "noallow_other", ALONE, read_noallow_other },
	{ "allow_root", ALONE, read_allow_root },
	{ "fsname", VALUE, read_source },
	{ "source", VALUE, read_source },
	{ "subtype", VALUE, read_subtype },
	{ "timeout", VALUE, read_timeout },
	{ "debug", ALONE, read_debug },

	/* fuse-overlayfs' own. */
	{ "uidmapping", VALUE, read_uidmapping },
	{ "gidmapping", VALUE, read_gidmapping },
	{ "squash_to_root", EITHER, read_switch, .offset = offsetof(struct options, squash_root) },
	{ "squash_to_uid", VALUE, read_squash_uid },
	{ "squash_to_gid", VALUE, read_squash_gid },
	{ "xattr_permissions", VALUE, read_xattr_permissions },
	{ "static_nlink", EITHER, read_switch, .offset = offsetof(struct options, static_nlink) },
	{ "ino32_t", EITHER, read_switch, .offset = offsetof(struct options, ino32) },
	{ "noacl", EITHER, read_switch, .offset = offsetof(struct options, no_acl) },
	{ "noxattrs", EITHER, read_switch, .offset = offsetof(struct options, no_xattrs) },
	{ "threaded", EITHER, ignore, .in = IN_COMPAT },
	{ "writeback", EITHER, ignore, .in = IN_COMPAT },
	{ "fast_ino", EITHER, ignore, .in = IN_COMPAT },
	{ "fast_ino_check", EITHER, ignore, .in = IN_COMPAT },
	{ "plugins", VALUE, ignore, .in = IN_COMPAT },
	{ "context", VALUE, ignore, .in = IN_COMPAT },
	{ "fscontext", VALUE, ignore, .in = IN_COMPAT },
	{ "defcontext", VALUE, ignore, .in = IN_COMPAT },
	{ "rootcontext", VALUE, ignore, .in = IN_COMPAT },

	/* Of propagation, which engines handle themselves. */
	{ "private", ALONE, ignore, .in = IN_COMPAT },
	{ "rprivate", ALONE, ignore, .in = IN_COMPAT },
	{ "shared", ALONE, ignore, .in = IN_COMPAT },
	{ "rshared", ALONE, ignore, .in = IN_COMPAT },
	{ "slave", ALONE, ignore, .in = IN_COMPAT },
	{ "rslave", ALONE, ignore, .in = IN_COMPAT },
	{ "unbindable", ALONE, ignore, .in = IN_COMPAT },
	{ "runbindable", ALONE, ignore, .in = IN_COMPAT },

	/* What the library of FUSE reads for the programs that are linked to it. */
	{ "auto_unmount", ALONE, ignore, .in = IN_COMPAT },
	{ "clone_fd", ALONE, ignore, .in = IN_COMPAT },
	{ "kernel_cache", ALONE, ignore, .in = IN_COMPAT },
	{ "max_idle_threads", VALUE, ignore, .in = IN_COMPAT },
	{ "max_threads", VALUE, ignore, .in = IN_COMPAT },
	{ "max_write", EITHER, ignore, .in = IN_COMPAT },
	{ "nonempty", ALONE, ignore, .in = IN_COMPAT },
	{ "splice_move", ALONE, ignore, .in = IN_COMPAT },
	{ "splice_read", ALONE, ignore, .in = IN_COMPAT },
	{ "splice_write", ALONE, ignore, .in = IN_COMPAT },

	/* What the mount table shows of a FUSE mount, which mount(8) gives back at a remount. */
	{ "fd", VALUE, ignore },
	{ "rootmode", VALUE, ignore },
	{ "user_id", VALUE, ignore },
	{ "group_id", VALUE, ignore },
	{ "max_read", VALUE, ignore },
	{ "blksize", VALUE, ignore },
	{ "seclabel", ALONE, ignore },

	/* What fstab holds for mount(8), which hands it on to its helpers. */
	{ "defaults", ALONE, ignore },
	{ "auto", ALONE, ignore },
	{ "noauto", ALONE, ignore },
	{ "user", EITHER, ignore },
	{ "nouser", ALONE, ignore },
	{ "users", ALONE, ignore },
	{ "nousers", ALONE, ignore },
	{ "owner", ALONE, ignore },
	{ "noowner", ALONE, ignore },
	{ "group", ALONE, ignore },
	{ "nogroup", ALONE, ignore },
	{ "_netdev", ALONE, ignore },
	{ "nofail", ALONE, ignore },
	{ "comment", EITHER, ignore },
	{ "uhelper", VALUE, ignore },
	{ "helper", VALUE, ignore },
	{ "x-*", EITHER, ignore },
	{ "X-*", EITHER, ignore },
};

static bool name_matches(const char *pattern, const char *name)
{
	size_t len = strlen(pattern);

	if (pattern[len - 1] == '*')
		return !strncmp(pattern, name, len - 1);
	return !strcmp(pattern, name);
}

static bool word_arity_fits(const struct word *w, const char *value)
{
	return w->arity == EITHER || (w->arity == VALUE) == !!value;
}

static bool is_spoken(const struct options *o, const struct word *w)
{
	return w->in == IN_BOTH ||
	       w->in == (o->dialect == OPTIONS_OF_FUSE_OVERLAYFS ? IN_COMPAT : IN_PLYFS);
}

/* A word may mean one thing alone and another with a value ("sync"). */
static const struct word *find_word(const struct options *o, const char *name, const char *value)
{
	const struct word *found = NULL;

	for (size_t i = 0; i < ARRAY_SIZE(words); i++) {
		if (!is_spoken(o, &words[i]) || !name_matches(words[i].name, name))
			continue;
		if (word_arity_fits(&words[i], value))
			return &words[i];
		found = &words[i];
	}
	return found;
}

static const char *closest_word(const struct options *o, const char *name)
{
	const char *best = NULL;
	size_t least = SUGGEST_MAX;

	for (size_t i = 0; i < ARRAY_SIZE(words); i++) {
		size_t d = suggest_distance(name, words[i].name);

		if (d < least && is_spoken(o, &words[i])) {
			least = d;
			best = words[i].name;
		}
	}
	return best;
}

static int read_word(struct reader *r, char *item)
{
	char *value = strchr(item, '=');

	if (value)
		*value++ = '\0';

	const struct word *w = find_word(r->o, item, value);

	if (!w && r->o->dialect == OPTIONS_OF_FUSE_OVERLAYFS) {
		if (value)
			value[-1] = '=';
		if (r->o->ignored)
			r->o->ignored(item);
		return 0;
	}
	if (!w) {
		const char *near = closest_word(r->o, item);

		if (r->o->sloppy)
			return 0;
		if (near)
			return fail(r, "unknown option '%s': did you mean '%s'?", item, near);
		return fail(r, "unknown option '%s'", item);
	}
	if (!word_arity_fits(w, value) && value)
		return fail(r, "the option '%s' takes no value", item);
	if (!word_arity_fits(w, value))
		return fail(r, "the option '%s' needs a value: %s=...", item, item);
	return w->read(r, w, value);
}

/*
 * The end of the quotes in context="user:role:type:level,level", which engines do not write with
 * '\' before the commas; NULL when there is none. In another word '"' is part of a path.
 */
static char *quotes_end(char *s)
{
	static const char *const contexts[] = { "context=\"", "fscontext=\"", "defcontext=\"",
						"rootcontext=\"" };

	for (size_t i = 0; i < ARRAY_SIZE(contexts); i++) {
		size_t len = strlen(contexts[i]);

		if (!strncmp(s, contexts[i], len))
			return strchr(s + len, '"');
	}
	return NULL;
}

/* The end of the word at @s: the next ',' that no '\' protects, or the end of the list. */
static char *word_end(char *s)
{
	char *quotes = quotes_end(s);

	if (quotes)
		s = quotes;
	while (*s && *s != ',') {
		if (*s == '\\' && s[1])
			s++;
		s++;
	}
	return s;
}

int options_add(struct options *o, const char *list, char *message, size_t size)
{
	struct reader r = { o, message, size };
	autofree char *copy = strdup(list);

	message[0] = '\0';
	if (!copy)
		return fail_memory(&r);

	for (char *item = copy; item;) {
		char *end = word_end(item);
		char *next = *end ? end + 1 : NULL;

		*end = '\0';
		/* Engines join lists with ",,". */
		if (item[0]) {
			int rc = read_word(&r, item);

			if (rc < 0)
				return rc;
		}
		item = next;
	}
	return 0;
}

int options_check(struct options *o, char *message, size_t size)
{
	struct reader r = { o, message, size };

	message[0] = '\0';
	if (o->remount) /* allow_root's own mount shows allow_other */
		return 0;
	if (o->allow_root && o->allow_other == OPTION_YES)
		return fail(&r, "allow_other and allow_root exclude each other: give one");

	if (!o->lower_count)
		return fail(&r, "no lower layer: give -o lowerdir=DIR[:DIR...]");
	if (o->data_count == o->lower_count)
		return fail(&r,
			    "all layers are data-only: give at least one other, with lowerdir+= "
			    "before datadir+=");
	if (o->upper && !o->work)
		return fail(
			&r,
			"upperdir=%s needs a workdir=: an empty directory on the same filesystem",
			o->upper);
	if (o->squash_root && !o->uids.squash)
		o->uids.squash = true;
	if (o->squash_root && !o->gids.squash)
		o->gids.squash = true;
	if (!o->upper) {
		free(take_ptr(o->work));
		o->mount_flags |= MS_RDONLY;
	}
	return 0;
}

unsigned long options_remount_flags(const struct options *o, unsigned long now)
{
	unsigned long flags = (now & ~o->unset_flags) | o->mount_flags;

	/* Without any, the kernel would keep the mode there was. */
	if (!(flags & ATIME_MODES))
		flags |= MS_RELATIME;
	return flags;
}

void options_init(struct options *o, enum option_dialect dialect)
{
	*o = (struct options){ .timeout = -1, .dialect = dialect };
	if (dialect == OPTIONS_OF_FUSE_OVERLAYFS) {
		o->compat.whiteout_files = true;
		o->mount_flags = MS_NODEV | MS_NOATIME | (geteuid() == 0 ? 0 : MS_NOSUID);
	}
}

void options_free(struct options *o)
{
	free_lower(o);
	free(o->upper);
	free(o->work);
	free(o->source);
	free(o->subtype);
	id_map_free(&o->uids);
	id_map_free(&o->gids);
	options_init(o, o->dialect);
}
