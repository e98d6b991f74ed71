/* SPDX-License-Identifier: MIT */
/* The table of all words, and the readers of those that do not name directories. */
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>

#include "cli/options_private.h"
#include "util/base.h"

/* Missing in the headers of older C libraries; values of the kernel's linux/mount.h. */
#ifndef MS_LAZYTIME
#define MS_LAZYTIME (1 << 25)
#endif
#ifndef MS_NOSYMFOLLOW
#define MS_NOSYMFOLLOW 256
#endif

#define TIMEOUT_MAX 1e9

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

int option_read_string(struct option_reader *r, const struct option_word *w, char *value)
{
	char **to = option_string(r, w);
	char *copy;

	if (!value[0])
		return option_fail(r, "%s= is empty", w->name);
	if (option_unescape(value, r->o->dialect == OPTIONS_OF_FUSE_OVERLAYFS) < 0)
		return option_fail(r, "%s= ends in a lone '\\': a '\\' is written '\\\\'", w->name);
	copy = strdup(value);
	if (!copy)
		return option_no_memory(r);
	free(*to);
	*to = copy;
	return 0;
}

static int read_subtype(struct option_reader *r, const struct option_word *w, char *value)
{
	/* It becomes part of a type's name in the mount table. */
	if (value[strspn(value,
			 "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.")])
		return option_fail(r, "subtype=%s: letters, digits, '_', '-' and '.' only", value);
	return option_read_string(r, w, value);
}

static int read_timeout(struct option_reader *r, const struct option_word *w, char *value)
{
	char *end;
	double seconds = 0;
	bool sane = value[0] >= '0' && value[0] <= '9';
	bool compat = r->o->dialect == OPTIONS_OF_FUSE_OVERLAYFS; /* where 1e9 is the default */

	/* strtod() would also take "inf", "nan" and "0x1p3". */
	sane = sane && !value[strspn(value, compat ? "0123456789.e+" : "0123456789.")];
	if (sane) {
		seconds = strtod(value, &end);
		sane = !*end && seconds <= TIMEOUT_MAX;
	}
	if (!sane)
		return option_fail(r, "timeout=%s: give a number of seconds from 0 to %.0f", value,
				   TIMEOUT_MAX);
	r->o->timeout = seconds;
	return 0;
}

/* A feature of the overlay: one of the words in @accepted, each with its meaning. */
static int read_feature(struct option_reader *r, const struct option_word *w, char *value)
{
	struct ovl_features *f = &r->o->features;
	int n = index_in(w->accepted, value);

	if (n < 0)
		return option_fail(r, "%s=%s: no such value (accepted: %s)", w->name, value,
				   w->accepted);
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

static int read_volatile(struct option_reader *r, const struct option_word *w, char *value)
{
	r->o->features.fsync = OVL_FSYNC_VOLATILE;
	r->o->given |= OVL_GIVEN_FSYNC;
	return 0;
}

static int read_userxattr(struct option_reader *r, const struct option_word *w, char *value)
{
	r->o->features.userxattr = true;
	r->o->given |= OVL_GIVEN_USERXATTR;
	return 0;
}

static int read_flags(struct option_reader *r, const struct option_word *w, char *value)
{
	r->o->mount_flags = (r->o->mount_flags & ~w->clear) | w->set;
	r->o->unset_flags = (r->o->unset_flags & ~w->set) | w->clear;
	return 0;
}

static int read_allow_other(struct option_reader *r, const struct option_word *w, char *value)
{
	r->o->allow_other = OPTION_YES;
	return 0;
}

static int read_noallow_other(struct option_reader *r, const struct option_word *w, char *value)
{
	r->o->allow_other = OPTION_NO;
	return 0;
}

static int read_allow_root(struct option_reader *r, const struct option_word *w, char *value)
{
	r->o->allow_root = true;
	return 0;
}

static int read_debug(struct option_reader *r, const struct option_word *w, char *value)
{
	r->o->debug = true;
	return 0;
}

static int read_remount(struct option_reader *r, const struct option_word *w, char *value)
{
	r->o->remount = true;
	return 0;
}

/* word, word=1 or word=0 */
static int read_switch(struct option_reader *r, const struct option_word *w, char *value)
{
	int n = value ? index_in(w->accepted, value) : 1;

	if (n < 0)
		return option_fail(r, "%s=%s: it is 0 or 1", w->name, value);
	*(bool *)((char *)r->o + w->offset) = n;
	return 0;
}

/* One of the words in @accepted, each with its meaning, for an enum. */
static int read_choice(struct option_reader *r, const struct option_word *w, char *value)
{
	int n = index_in(w->accepted, value);

	if (n < 0)
		return option_fail(r, "%s=%s: no such value (accepted: %s)", w->name, value,
				   w->accepted);
	*(unsigned int *)((char *)r->o + w->offset) = (unsigned int)w->meanings[n];
	return 0;
}

static int read_passthrough(struct option_reader *r, const struct option_word *w, char *value)
{
	int n = index_in(w->accepted, value);

	if (n < 0)
		return option_fail(r, "passthrough=%s: it is upper or all", value);
	r->o->passthrough_all = n;
	return 0;
}

/* A label in quotes, because it holds commas, or one in which they are protected. */
static int read_context(struct option_reader *r, const struct option_word *w, char *value)
{
	size_t len = strlen(value);

	if (len > 1 && value[0] == '"' && value[len - 1] == '"') {
		value[len - 1] = '\0';
		value++;
	}
	if (strchr(value, '"'))
		return option_fail(r, "%s=%s: a '\"' without its like", w->name, value);
	return option_read_string(r, w, value);
}

static int read_max_threads(struct option_reader *r, const struct option_word *w, char *value)
{
	size_t digits = strspn(value, "0123456789");

	if (!digits || digits > 6 || value[digits])
		return option_fail(r, "%s=%s: give a number up to 999999", w->name, value);
	r->o->max_threads = (unsigned int)atoi(value);
	return 0;
}

static int read_map(struct option_reader *r, const struct option_word *w, const char *value,
		    struct id_map *map)
{
	int rc = id_map_parse(map, value);

	if (rc == -ENOMEM)
		return option_no_memory(r);
	if (rc < 0)
		return option_fail(
			r,
			"%s=%s: give triples of numbers DISK:SHOWN:COUNT, separated by ':', "
			"whose ranges do not overlap",
			w->name, value);
	return 0;
}

static int read_uidmapping(struct option_reader *r, const struct option_word *w, char *value)
{
	return read_map(r, w, value, &r->o->uids);
}

static int read_gidmapping(struct option_reader *r, const struct option_word *w, char *value)
{
	return read_map(r, w, value, &r->o->gids);
}

static int read_squash(struct option_reader *r, const struct option_word *w, const char *value,
		       struct id_map *map)
{
	unsigned long long id = 0;
	size_t digits = strspn(value, "0123456789");

	if (digits && digits <= 10 && !value[digits])
		id = strtoull(value, NULL, 10);
	else
		id = ID_NONE;
	if (id >= ID_NONE)
		return option_fail(r, "%s=%s: give one number from 0 to %u", w->name, value,
				   ID_NONE - 1);
	map->squash = true;
	map->squash_to = (uint32_t)id;
	return 0;
}

static int read_squash_uid(struct option_reader *r, const struct option_word *w, char *value)
{
	return read_squash(r, w, value, &r->o->uids);
}

static int read_squash_gid(struct option_reader *r, const struct option_word *w, char *value)
{
	return read_squash(r, w, value, &r->o->gids);
}

static int read_xattr_permissions(struct option_reader *r, const struct option_word *w, char *value)
{
	int n = index_in(w->accepted, value);

	if (n < 0)
		return option_fail(r, "%s=%s: it is 0, 1 or 2", w->name, value);
	r->o->compat.override = (enum ovl_override)n;
	return 0;
}

int option_ignore(struct option_reader *r, const struct option_word *w, char *value)
{
	return 0;
}

const struct option_word option_words[] = {
	/* The kernel's overlayfs, in the order of its documentation. */
	{ "lowerdir", VALUE, option_read_lowerdir },
	{ "lowerdir+", VALUE, option_read_lowerdir_add },
	{ "datadir+", VALUE, option_read_datadir_add },
	{ "upperdir", VALUE, option_read_directory, .offset = offsetof(struct options, upper) },
	{ "workdir", VALUE, option_read_directory, .offset = offsetof(struct options, work) },
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
	{ "fsync", VALUE, read_feature, .in = IN_COMPAT, .accepted = "0 1 auto strict volatile",
	  .meanings = { OVL_FSYNC_VOLATILE, OVL_FSYNC_AUTO, OVL_FSYNC_AUTO, OVL_FSYNC_STRICT,
			OVL_FSYNC_VOLATILE },
	  .feature = set_fsync, .given = OVL_GIVEN_FSYNC },
	{ "sync", VALUE, read_feature, .in = IN_COMPAT, .accepted = "0 1",
	  .meanings = { OVL_FSYNC_VOLATILE, OVL_FSYNC_AUTO }, .feature = set_fsync,
	  .given = OVL_GIVEN_FSYNC },
	{ "fsync", VALUE, read_feature, .in = IN_PLYFS, .accepted = "auto strict volatile",
	  .meanings = { OVL_FSYNC_AUTO, OVL_FSYNC_STRICT, OVL_FSYNC_VOLATILE },
	  .feature = set_fsync, .given = OVL_GIVEN_FSYNC },
	{ "volatile", ALONE, read_volatile },
	{ "default_permissions", ALONE, option_ignore },
	{ "override_creds", ALONE, option_ignore },
	{ "nooverride_creds", ALONE, option_ignore },

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
	{ "silent", ALONE, option_ignore },
	{ "loud", ALONE, option_ignore },
	{ "remount", ALONE, read_remount },

	/* FUSE's own. */
	{ "allow_other", ALONE, read_allow_other },
	{ "noallow_other", ALONE, read_noallow_other },
	{ "allow_root", ALONE, read_allow_root },
	{ "fsname", VALUE, option_read_string, .offset = offsetof(struct options, source) },
	{ "source", VALUE, option_read_string, .offset = offsetof(struct options, source) },
	{ "subtype", VALUE, read_subtype, .offset = offsetof(struct options, subtype) },
	{ "timeout", VALUE, read_timeout },
	{ "debug", ALONE, read_debug },

	/* How requests and data get through. */
	{ "io", VALUE, read_choice, .accepted = "auto passthrough cached",
	  .meanings = { SERVER_IO_AUTO, SERVER_IO_PASSTHROUGH, SERVER_IO_CACHED },
	  .offset = offsetof(struct options, io) },
	{ "passthrough", VALUE, read_passthrough, .accepted = "upper all" },
	{ "writeback", EITHER, read_switch, .accepted = "0 1",
	  .offset = offsetof(struct options, writeback) },
	{ "transport", VALUE, read_choice, .accepted = "auto dev uring",
	  .meanings = { SERVER_TRANSPORT_AUTO, SERVER_TRANSPORT_DEV, SERVER_TRANSPORT_URING },
	  .offset = offsetof(struct options, transport) },

	/* fuse-overlayfs' own. */
	{ "uidmapping", VALUE, read_uidmapping },
	{ "gidmapping", VALUE, read_gidmapping },
	{ "squash_to_root", EITHER, read_switch, .accepted = "0 1",
	  .offset = offsetof(struct options, squash_root) },
	{ "squash_to_uid", VALUE, read_squash_uid },
	{ "squash_to_gid", VALUE, read_squash_gid },
	{ "xattr_permissions", VALUE, read_xattr_permissions, .accepted = "0 1 2" },
	{ "static_nlink", EITHER, read_switch, .accepted = "0 1",
	  .offset = offsetof(struct options, static_nlink) },
	{ "ino32_t", EITHER, read_switch, .accepted = "0 1",
	  .offset = offsetof(struct options, ino32) },
	{ "noacl", EITHER, read_switch, .accepted = "0 1",
	  .offset = offsetof(struct options, no_acl) },
	{ "noxattrs", EITHER, read_switch, .accepted = "0 1",
	  .offset = offsetof(struct options, no_xattrs) },
	{ "max_threads", VALUE, read_max_threads, .in = IN_COMPAT },
	{ "threaded", EITHER, option_ignore, .in = IN_COMPAT },
	{ "fast_ino", EITHER, option_ignore, .in = IN_COMPAT },
	{ "fast_ino_check", EITHER, option_ignore, .in = IN_COMPAT },
	{ "plugins", EITHER, option_ignore, .in = IN_COMPAT },

	/* SELinux'. */
	{ "context", VALUE, read_context, .offset = offsetof(struct options, context.mount) },
	{ "fscontext", VALUE, read_context, .offset = offsetof(struct options, context.fs) },
	{ "defcontext", VALUE, read_context, .offset = offsetof(struct options, context.def) },
	{ "rootcontext", VALUE, read_context, .offset = offsetof(struct options, context.root) },

	/* mount(8)'s, about mounts that are there, or about other kinds. */
	{ "private", ALONE, option_ignore, .in = IN_COMPAT },
	{ "rprivate", ALONE, option_ignore, .in = IN_COMPAT },
	{ "shared", ALONE, option_ignore, .in = IN_COMPAT },
	{ "rshared", ALONE, option_ignore, .in = IN_COMPAT },
	{ "slave", ALONE, option_ignore, .in = IN_COMPAT },
	{ "rslave", ALONE, option_ignore, .in = IN_COMPAT },
	{ "unbindable", ALONE, option_ignore, .in = IN_COMPAT },
	{ "runbindable", ALONE, option_ignore, .in = IN_COMPAT },
	{ "bind", ALONE, option_ignore, .in = IN_COMPAT },
	{ "rbind", ALONE, option_ignore, .in = IN_COMPAT },
	{ "mand", ALONE, option_ignore, .in = IN_COMPAT },
	{ "nomand", ALONE, option_ignore, .in = IN_COMPAT },
	{ "iversion", ALONE, option_ignore, .in = IN_COMPAT },
	{ "noiversion", ALONE, option_ignore, .in = IN_COMPAT },

	/* What the library of FUSE, of one age or another, reads for programs that are linked to
	 * it. */
	{ "async_read", ALONE, option_ignore, .in = IN_COMPAT },
	{ "auto_unmount", ALONE, option_ignore, .in = IN_COMPAT },
	{ "big_writes", ALONE, option_ignore, .in = IN_COMPAT },
	{ "clone_fd", ALONE, option_ignore, .in = IN_COMPAT },
	{ "congestion_threshold", VALUE, option_ignore, .in = IN_COMPAT },
	{ "kernel_cache", ALONE, option_ignore, .in = IN_COMPAT },
	{ "max_background", VALUE, option_ignore, .in = IN_COMPAT },
	{ "max_idle_threads", EITHER, option_ignore, .in = IN_COMPAT },
	{ "max_readahead", VALUE, option_ignore, .in = IN_COMPAT },
	{ "max_write", EITHER, option_ignore, .in = IN_COMPAT },
	{ "nonempty", ALONE, option_ignore, .in = IN_COMPAT },
	{ "splice_move", ALONE, option_ignore, .in = IN_COMPAT },
	{ "splice_read", ALONE, option_ignore, .in = IN_COMPAT },
	{ "splice_write", ALONE, option_ignore, .in = IN_COMPAT },
	{ "sync_read", ALONE, option_ignore, .in = IN_COMPAT },

	/* What the mount table shows of a FUSE mount, which mount(8) gives back at a remount. */
	{ "fd", VALUE, option_ignore },
	{ "rootmode", VALUE, option_ignore },
	{ "user_id", VALUE, option_ignore },
	{ "group_id", VALUE, option_ignore },
	{ "max_read", VALUE, option_ignore },
	{ "blksize", VALUE, option_ignore },
	{ "seclabel", ALONE, option_ignore },

	/* What fstab holds for mount(8), which hands it on to its helpers. */
	{ "defaults", ALONE, option_ignore },
	{ "auto", ALONE, option_ignore },
	{ "noauto", ALONE, option_ignore },
	{ "user", EITHER, option_ignore },
	{ "nouser", ALONE, option_ignore },
	{ "users", ALONE, option_ignore },
	{ "nousers", ALONE, option_ignore },
	{ "owner", ALONE, option_ignore },
	{ "noowner", ALONE, option_ignore },
	{ "group", ALONE, option_ignore },
	{ "nogroup", ALONE, option_ignore },
	{ "_netdev", ALONE, option_ignore },
	{ "nofail", ALONE, option_ignore },
	{ "comment", EITHER, option_ignore },
	{ "uhelper", VALUE, option_ignore },
	{ "helper", VALUE, option_ignore },
	{ "x-*", EITHER, option_ignore },
	{ "X-*", EITHER, option_ignore },
};

const size_t option_word_count = ARRAY_SIZE(option_words);
