// SPDX-License-Identifier: MIT
/*
 * The index at mount: what belongs together is checked, and what a crash left is mended, by the
 * rules of the kernel's ovl_get_indexdir() and ovl_indexdir_cleanup().
 */
#include <dirent.h>
#include <fcntl.h>

#include "overlay/index.h"
#include "util/at.h"
#include "util/log.h"

/* What a crash leaves in the index under a temporary name. */
#define TEMP_DEPTH 2

static const char *why_no_index(const struct ovl *o)
{
	if (o->has_upper && o->no_xattr)
		return "upper cannot hold the overlay's xattrs";
	if (o->has_upper && !o->layers[0].can_decode)
		return "the filesystem of upper has no file handles that we may open";
	for (unsigned int n = 1; n < o->layer_count; n++)
		if (!o->layers[n].can_decode)
			return "a lower layer has no file handles that we may open";
	for (unsigned int n = 1; n < o->layer_count; n++)
		if (o->layers[n].ambiguous_uuid)
			return "two lower filesystems have the same uuid";
	return NULL;
}

void index_check_layers(struct ovl *o)
{
	struct ovl_features *f = &o->features;
	const char *why;

	if (!f->index && !f->nfs_export)
		return;
	why = why_no_index(o);
	if (!why)
		return;
	log_warning("%s: index=off,nfs_export=off", why);
	f->index = f->nfs_export = false;
}

/* Whether an object's mark is this handle. -ESTALE: it is another one; -ENODATA: none. */
static int compare_handle(struct ovl *o, struct layer_ref *at, const char *name,
			  enum fmt_xattr which, const uint8_t *wanted, size_t len)
{
	uint8_t stored[FMT_FH_MAX];
	struct fmt_fh fh;
	ssize_t size = layer_getxattr(at, name, xname(o, which), stored, sizeof(stored));
	int err = size < 0 ? -ENODATA : fmt_fh_decode(stored, (size_t)size, &fh);

	if (err < 0)
		return err == -ESTALE ? err : -ENODATA;
	/* byte 2 is the length: what follows does not count */
	return stored[2] == len && !memcmp(stored, wanted, len) ? 0 : -ESTALE;
}

int index_verify_handle(struct ovl *o, struct layer_ref *at, const char *name, enum fmt_xattr which,
			struct layer_ref *real, const char *real_name, bool set)
{
	uint8_t wanted[FMT_FH_MAX];
	struct fmt_fh fh;
	ssize_t len;
	int err = real->layer->ops->handle(real, real_name, &fh);

	if (err < 0)
		return err;
	len = fmt_fh_encode(&fh, wanted);
	if (len < 0)
		return (int)len;
	err = compare_handle(o, at, name, which, wanted, (size_t)len);
	if (err == -ENODATA && set)
		return mark_set(o, at, name, which, wanted, (size_t)len);
	return err;
}

uint32_t index_read_nlink(struct ovl *o, const char *name, uint32_t lower_nlink, uint32_t fallback)
{
	enum fmt_nlink_base base;
	char value[FMT_NLINK_MAX];
	struct statx st;
	int64_t nlink;
	int difference;
	ssize_t n = layer_getxattr(o->index, name, xname(o, FMT_NLINK), value, sizeof(value));

	if (fmt_nlink_decode(value, n, &base, &difference) < 0 ||
	    layer_stat(o->index, name, &st) < 0)
		return fallback;
	nlink = (base == FMT_NLINK_LOWER ? lower_nlink : st.stx_nlink) + (int64_t)difference;
	return nlink > 0 && nlink <= INT_MAX ? (uint32_t)nlink : fallback;
}

int index_remove(struct ovl *o, const char *name, bool is_dir)
{
	int index = layer_fd(o->index);
	char temp[FMT_TEMP_NAME_MAX];
	int err;

	if (!o->features.nfs_export)
		return at_unlink(index, name, is_dir ? AT_REMOVEDIR : 0);
	err = whiteout_make(o, temp);
	if (err < 0)
		return err;
	err = at_rename(layer_fd(o->work), temp, index, name, is_dir ? RENAME_EXCHANGE : 0);
	if (err < 0)
		at_unlink(layer_fd(o->work), temp, 0);
	else if (is_dir)
		work_remove(o, temp);
	return err;
}

/* The upper directory that an entry stands for. -ENODATA: it does not say. */
static int open_entry_dir(struct ovl *o, const char *name, struct layer_ref **out)
{
	struct layer *upper = &o->layers[0];
	uint8_t value[FMT_FH_MAX];
	struct fmt_fh fh;
	struct statx st;
	ssize_t size = layer_getxattr(o->index, name, xname(o, FMT_UPPER), value, sizeof(value));
	int err;

	err = size < 0 ? -ENODATA : fmt_fh_decode(value, (size_t)size, &fh);
	if (err < 0)
		return err == -ESTALE ? err : -ENODATA;
	if (memcmp(fh.uuid, upper->uuid, sizeof(fh.uuid)) != 0)
		return -ESTALE;
	err = upper->ops->open_handle(upper, &fh, out);
	if (err == -EINVAL) /* what no object of this filesystem can have */
		return -ESTALE;
	if (err == 0)
		err = layer_stat(*out, "", &st);
	return err == 0 && !S_ISDIR(st.stx_mode) ? -EIO : err;
}

/* Nothing leads to a file any more but the index: -ENOENT if the union does not count it either. */
static int check_unlinked(struct ovl *o, const char *name, const struct statx *st)
{
	struct statx lower;

	if (origin_stat(o, o->index, name, &lower) < 0 ||
	    ((lower.stx_mode ^ st->stx_mode) & S_IFMT))
		return -ESTALE;
	return index_read_nlink(o, name, lower.stx_nlink, 0) ? 0 : -ENOENT;
}

/* 0: it is good; -ESTALE: it means nothing; -ENOENT: its object is gone. Anything else: no idea. */
static int check_entry(struct ovl *o, const char *name, const struct statx *st)
{
	autoref struct layer_ref *upper = NULL;
	uint8_t fh[FMT_FH_MAX];
	ssize_t size = fmt_index_name_decode(name, fh);
	bool is_dir = S_ISDIR(st->stx_mode);
	int err = 0;

	if (size < 0)
		return (int)size;
	if (fmt_is_whiteout(st) || (is_dir && !o->features.nfs_export))
		return 0;
	if (!is_dir) {
		err = compare_handle(o, o->index, name, FMT_ORIGIN, fh, (size_t)size);
		return err == 0 && st->stx_nlink == 1 ? check_unlinked(o, name, st) : err;
	}
	err = open_entry_dir(o, name, &upper);
	if (err == -ENODATA)
		return -ESTALE;
	if (err < 0)
		return err == -ESTALE ? -ENOENT : err;
	return compare_handle(o, upper, "", FMT_ORIGIN, fh, (size_t)size);
}

/* What cannot be removed does no harm, as for the kernel. */
static void sweep_entry(const char *name, int err)
{
	if (err < 0)
		log_warning("index entry %s cannot be removed: %s", name, strerror(-err));
}

static int mend_entry(struct ovl *o, const char *name)
{
	struct statx st;
	int err = layer_stat(o->index, name, &st);
	bool is_dir;

	if (err < 0)
		return err == -ENOENT ? 0 : err;
	is_dir = S_ISDIR(st.stx_mode);
	err = check_entry(o, name, &st);
	if (err == -ENOENT && o->features.nfs_export)
		return index_remove(o, name, is_dir);
	if (err != -ENOENT && err != -ESTALE)
		return err;
	log_info("index entry %s stands for nothing any more", name);
	sweep_entry(name, at_unlink(layer_fd(o->index), name, is_dir ? AT_REMOVEDIR : 0));
	return 0;
}

struct names {
	char **list;
	size_t count;
	size_t room;
	int err;
};

static bool collect_name(void *ctx, const char *name, size_t len, uint64_t ino, unsigned int type)
{
	struct names *names = ctx;

	if (names->count == names->room) {
		size_t room = names->room ? names->room * 2 : 64;
		char **list = realloc(names->list, room * sizeof(*list));

		if (!list) {
			names->err = -ENOMEM;
			return false;
		}
		names->list = list;
		names->room = room;
	}
	names->list[names->count] = strndup(name, len);
	if (!names->list[names->count]) {
		names->err = -ENOMEM;
		return false;
	}
	names->count++;
	return true;
}

static bool is_temp(const char *name)
{
	return *name == '#';
}

/* Temporary names go first: new ones are needed for what is done to the others. */
static int mend_all(struct ovl *o, const struct names *names, const char **failed)
{
	int err = 0;

	for (size_t n = 0; n < names->count; n++)
		if (is_temp(names->list[n]))
			sweep_entry(names->list[n],
				    remove_tree(layer_fd(o->index), names->list[n], TEMP_DEPTH));
	for (size_t n = 0; n < names->count && err == 0; n++) {
		*failed = names->list[n];
		if (!is_temp(*failed))
			err = mend_entry(o, *failed);
	}
	return err;
}

static int scan(struct ovl *o, const char *path, char *message, size_t size)
{
	struct names names = { 0 };
	const char *failed = NULL;
	int err = o->index->layer->ops->readdir(o->index, true, collect_name, &names);

	if (err == 0)
		err = names.err;
	if (err < 0)
		snprintf(message, size, "cannot read %s/index: %s", path, strerror(-err));
	else
		err = mend_all(o, &names, &failed);
	if (err < 0 && failed)
		snprintf(message, size,
			 "%s/index holds '%s', which cannot be used (%s): mount with index=off, or "
			 "remove %s/index if hard links between copied-up files may be lost",
			 path, failed, strerror(-err), path);
	for (size_t n = 0; n < names.count; n++)
		free(names.list[n]);
	free(names.list);
	return err;
}

static int open_dir(struct ovl *o, struct layer_ref *workdir)
{
	int fd = layer_fd(workdir);
	bool made = mkdirat(fd, "index", o->overrides_modes ? 0 : 0700) == 0;
	struct statx st;
	int err;

	if (!made && errno != EEXIST)
		return -errno;
	err = layer_open(workdir, "index", LAYER_OPEN_PATH, &o->index);
	if (err == 0)
		err = layer_stat(o->index, "", &st);
	if (err == 0 && !S_ISDIR(st.stx_mode))
		err = -ENOTDIR;
	if (err < 0)
		return err;
	/* Default ACLs and the set-group-id bit of workdir must not reach what is made here. */
	at_removexattr(fd, "index", ACL_DEFAULT);
	if (made)
		at_removexattr(fd, "index", ACL_ACCESS);
	if (st.stx_mode & S_ISGID)
		at_chmod(fd, "index", st.stx_mode & 0777);
	return 0;
}

/* Older kernels kept the handle of upper under the name of the origin. */
static int check_old_mark(struct ovl *o)
{
	if (layer_getxattr(o->index, "", xname(o, FMT_ORIGIN), NULL, 0) < 0)
		return 0;
	return index_verify_handle(o, o->index, "", FMT_ORIGIN, o->layers[0].root, "", false);
}

int index_open(struct ovl *o, struct layer_ref *workdir, const char *path, char *message,
	       size_t size)
{
	struct layer_ref *upper = o->layers[0].root;
	int err = index_verify_handle(o, upper, "", FMT_ORIGIN, o->layers[1].root, "", true);

	if (err < 0) {
		snprintf(message, size,
			 "upperdir was used with another lower layer than this one (%s): give the "
			 "topmost lowerdir that it had, or mount with index=off",
			 strerror(-err));
		return err;
	}
	err = open_dir(o, workdir);
	if (err < 0) {
		snprintf(message, size,
			 "cannot make %s/index: %s: give a workdir that can be written, or mount "
			 "with index=off",
			 path, strerror(-err));
		return err;
	}
	err = check_old_mark(o);
	if (err == 0)
		err = index_verify_handle(o, o->index, "", FMT_UPPER, upper, "", true);
	if (err < 0) {
		snprintf(message, size,
			 "%s/index belongs to another upperdir than this one (%s): give the two "
			 "that were used together, remove %s/index, or mount with index=off",
			 path, strerror(-err), path);
		return err;
	}
	work_move(o, o->index);
	return scan(o, path, message, size);
}
