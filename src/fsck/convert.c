// SPDX-License-Identifier: MIT
#include "fsck/convert.h"

#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/file.h>

#include "fsck/private.h"
#include "overlay/format_override.h"

static const char *const opaque_xattrs[] = {
	FMT_FUSE_OPAQUE_XATTR,
	FMT_PREFIX_USER "opaque",
};

static const char *const words[] = {
	[CONVERT_WHITEOUT] = "whiteout",
	[CONVERT_OPAQUE] = "opaque directory",
	[CONVERT_OWNER] = "owner and mode",
	[CONVERT_PRIVATE] = "private mark",
	[CONVERT_CONFLICT] = "there is both the name and its whiteout",
	[CONVERT_REDIRECT] = "renamed directory, which fuse-overlayfs does not follow",
	[CONVERT_METACOPY] = "metacopy, which fuse-overlayfs does not follow",
	[CONVERT_NAME] = "name that fuse-overlayfs takes for a whiteout",
	[CONVERT_TOO_LONG] = "name too long for a whiteout of fuse-overlayfs",
	[CONVERT_DEVICE] = "stands for another type of file",
	[CONVERT_UNREADABLE] = "cannot be read",
};

struct converting {
	struct fsck f; /* first: the scan knows no more */
	const struct convert_config *config;
	struct convert_result *result;
	bool write; /* this time */
	bool trial; /* only what cannot be converted matters */
};

static struct converting *converting_of(struct fsck *f)
{
	return (struct converting *)f;
}

/* Tells what was or would be done, or with @left what is not. */
static void tell(struct converting *c, enum convert_kind kind, const char *path, bool left, int err)
{
	const struct convert_event event = {
		.kind = kind, .path = path, .what = words[kind], .left = left || err < 0, .err = err
	};

	if (event.left)
		c->result->left++;
	else
		c->result->converted++;
	if (event.left || !c->trial)
		c->config->tell(c->config->ctx, &event);
}

static enum fsck_answer on_finding(void *ctx, const struct fsck_finding *found)
{
	tell(ctx, CONVERT_UNREADABLE, found->path, true, 0);
	return FSCK_LEAVE;
}

static void on_repaired(void *ctx, const struct fsck_finding *found, int err)
{
}

static bool has_xattr(const struct object *o, const char *name)
{
	return at_getxattr(o->dirfd, o->name, name, NULL, 0) >= 0;
}

static int drop_xattr(const struct object *o, const char *name)
{
	int err = at_removexattr(o->dirfd, o->name, name);

	return err == -ENODATA || err == -EOPNOTSUPP ? 0 : err;
}

/* Runs one change of what is in a directory, whose times stay. */
static int keep_times(const struct object *o,
		      int (*change)(struct converting *c, const struct object *o),
		      struct converting *c)
{
	struct statx st;
	int err = at_statx(o->dirfd, "", &st);

	if (err == 0)
		err = change(c, o);
	times_restore(o->dirfd, &st);
	return err;
}

static bool is_wh_name(const char *name)
{
	return fmt_is_wh_name(name) && name[FMT_WH_PREFIX_LEN];
}

/* --- to the kernel's form -----------------------------------------------------------------------
 */

static int unlink_mark(struct converting *c, const struct object *o)
{
	return at_unlink(o->dirfd, o->name, S_ISDIR(o->st.stx_mode) ? AT_REMOVEDIR : 0);
}

static int make_device(struct converting *c, const struct object *o)
{
	int err = whiteout_put(&c->f, o->dirfd, o->name + FMT_WH_PREFIX_LEN, false);

	return err < 0 && err != -EEXIST ? err : unlink_mark(c, o);
}

/* The whiteout of a name that is there: it hid what was below, and a new object took its place. */
static int hide_below(struct converting *c, const struct object *o, const struct statx *st)
{
	int err = 0;

	if (S_ISDIR(st->stx_mode))
		err = at_setxattr(o->dirfd, o->name + FMT_WH_PREFIX_LEN,
				  mark_name(&c->f, FMT_OPAQUE), "y", 1, 0);
	return err < 0 ? err : keep_times(o, unlink_mark, c);
}

static void whiteout_to_kernel(struct converting *c, const struct object *o)
{
	const char *name = o->name + FMT_WH_PREFIX_LEN;
	struct statx st;
	int err = at_statx(o->dirfd, name, &st);
	bool there = err == 0 && !fmt_is_whiteout(&st);

	if (err < 0 && err != -ENOENT) {
		tell(c, CONVERT_WHITEOUT, o->path, true, err);
		return;
	}
	if (there && !c->config->image_rule) {
		tell(c, CONVERT_CONFLICT, o->path, true, 0);
		return;
	}
	err = 0;
	if (c->write)
		err = there ? hide_below(c, o, &st) : keep_times(o, make_device, c);
	tell(c, CONVERT_WHITEOUT, o->path, false, err);
}

static bool is_opaque_file(int dirfd)
{
	struct statx st;

	return at_statx(dirfd, FMT_WH_OPAQUE, &st) == 0;
}

static int remove_opaque_files(struct converting *c, const struct object *o)
{
	int err = at_unlink(o->dirfd, FMT_WH_OPAQUE, 0);
	struct statx st;

	if (at_statx(o->dirfd, FMT_WH_OPAQUE_DEVICE, &st) == 0 && fmt_is_whiteout(&st))
		at_unlink(o->dirfd, FMT_WH_OPAQUE_DEVICE, 0);
	return err == -ENOENT ? 0 : err;
}

/* @o: the directory itself. */
static void opaque_to_kernel(struct converting *c, const struct object *o)
{
	const char *own = mark_name(&c->f, FMT_OPAQUE);
	bool file = is_opaque_file(o->dirfd);
	bool marked = file;
	int err = 0;

	for (size_t n = 0; n < ARRAY_SIZE(opaque_xattrs); n++)
		marked |= strcmp(opaque_xattrs[n], own) != 0 && has_xattr(o, opaque_xattrs[n]);
	if (!marked)
		return;
	if (c->write) {
		err = object_set(&c->f, o, FMT_OPAQUE, "y", 1);
		if (err == 0 && file)
			err = keep_times(o, remove_opaque_files, c);
		for (size_t n = 0; n < ARRAY_SIZE(opaque_xattrs) && err == 0; n++)
			if (strcmp(opaque_xattrs[n], own) != 0)
				err = drop_xattr(o, opaque_xattrs[n]);
	}
	tell(c, CONVERT_OPAQUE, o->path, false, err);
}

static int set_owner(const struct object *o, const struct fmt_override_stat *ov, const char *xattr)
{
	int err = at_chown(o->dirfd, o->name, ov->uid, ov->gid);

	if (err == 0 && !S_ISLNK(o->st.stx_mode))
		err = at_chmod(o->dirfd, o->name, ov->mode & 07777);
	return err < 0 ? err : drop_xattr(o, xattr);
}

static void owner_to_kernel(struct converting *c, const struct object *o)
{
	for (unsigned int n = 0; n < FMT_OVERRIDE_COUNT; n++) {
		const char *xattr = fmt_override_name(n);
		char value[FMT_OVERRIDE_MAX];
		struct fmt_override_stat ov;
		ssize_t size = at_getxattr(o->dirfd, o->name, xattr, value, sizeof(value));
		mode_t type;

		if (size < 0 && size != -ERANGE)
			continue;
		if (size < 0 || fmt_override_decode(value, (size_t)size, &ov) < 0) {
			tell(c, CONVERT_UNREADABLE, o->path, true, 0);
			continue;
		}
		type = ov.mode & S_IFMT;
		if (type && type != (o->st.stx_mode & S_IFMT))
			tell(c, CONVERT_DEVICE, o->path, true, 0);
		else
			tell(c, CONVERT_OWNER, o->path, false,
			     c->write ? set_owner(o, &ov, xattr) : 0);
	}
}

/* A path, where the kernel wants a file handle. */
static void origin_to_kernel(struct converting *c, const struct object *o)
{
	const char *xattr = "user.fuseoverlayfs.origin";

	if (has_xattr(o, xattr))
		tell(c, CONVERT_PRIVATE, o->path, false, c->write ? drop_xattr(o, xattr) : 0);
}

static int to_kernel(struct fsck *f, struct level *dir, struct object *o, struct level *child)
{
	struct converting *c = converting_of(f);

	if (!strcmp(o->name, FMT_WH_OPAQUE)) /* by the directory, which is done when it is left */
		return child != NULL;
	if (!strcmp(o->name, FMT_WH_OPAQUE_DEVICE) && fmt_is_whiteout(&o->st) &&
	    is_opaque_file(o->dirfd))
		return 0;
	if (is_wh_name(o->name)) {
		whiteout_to_kernel(c, o);
		return child != NULL;
	}
	owner_to_kernel(c, o);
	origin_to_kernel(c, o);
	return 0;
}

static int leave_to_kernel(struct fsck *f, struct level *dir, struct object *o)
{
	opaque_to_kernel(converting_of(f), o);
	return 0;
}

/* --- to the form of fuse-overlayfs --------------------------------------------------------------
 */

static int make_wh_file(int dirfd, const char *name)
{
	int fd = openat(dirfd, name, O_CREAT | O_EXCL | O_WRONLY | O_NOFOLLOW | O_CLOEXEC, 0700);

	if (fd < 0)
		return errno == EEXIST ? 0 : -errno;
	close_fd(fd);
	return 0;
}

static int make_wh_name(struct converting *c, const struct object *o)
{
	char name[NAME_MAX + 1];
	int err;

	snprintf(name, sizeof(name), FMT_WH_PREFIX "%s", o->name);
	err = make_wh_file(o->dirfd, name);
	return err < 0 ? err : unlink_mark(c, o);
}

static void whiteout_to_fuse(struct converting *c, const struct object *o)
{
	if (strlen(o->name) + FMT_WH_PREFIX_LEN > NAME_MAX)
		tell(c, CONVERT_TOO_LONG, o->path, true, 0);
	else
		tell(c, CONVERT_WHITEOUT, o->path, false,
		     c->write ? keep_times(o, make_wh_name, c) : 0);
}

static int make_opaque_file(struct converting *c, const struct object *o)
{
	return make_wh_file(o->dirfd, FMT_WH_OPAQUE);
}

static enum fmt_opaque opaque_of(struct fsck *f, const struct object *o)
{
	char value[2];

	return fmt_opaque_value(value, object_mark(f, o, FMT_OPAQUE, value, sizeof(value)));
}

/* @o: the directory itself. The file says it all; an xattr spares fuse-overlayfs a lookup. */
static void opaque_to_fuse(struct converting *c, const struct object *o)
{
	int err = 0;

	if (opaque_of(&c->f, o) != FMT_IS_OPAQUE)
		return;
	if (c->write) {
		err = keep_times(o, make_opaque_file, c);
		if (err == 0)
			err = at_setxattr(o->dirfd, o->name, opaque_xattrs[0], "y", 1, 0);
		if (err == 0 || err == -EOPNOTSUPP)
			err = object_unset(&c->f, o, FMT_OPAQUE);
	}
	tell(c, CONVERT_OPAQUE, o->path, false, err);
}

/* In user.overlay.* they would be shown: fuse-overlayfs hides only trusted ones. */
static void private_to_fuse(struct converting *c, const struct object *o)
{
	static const enum fmt_xattr marks[] = { FMT_ORIGIN, FMT_IMPURE, FMT_NLINK, FMT_UUID };

	for (size_t n = 0; n < ARRAY_SIZE(marks) && c->f.userxattr; n++)
		if (object_has(o, marks[n]))
			tell(c, CONVERT_PRIVATE, o->path, false,
			     c->write ? object_unset(&c->f, o, marks[n]) : 0);
}

static int to_fuse(struct fsck *f, struct level *dir, struct object *o, struct level *child)
{
	struct converting *c = converting_of(f);
	bool marked = S_ISREG(o->st.stx_mode) && o->st.stx_size == 0 && object_has(o, FMT_WHITEOUT);

	/* What a conversion that was interrupted has made already. */
	if (is_wh_name(o->name) && S_ISREG(o->st.stx_mode) && o->st.stx_size == 0)
		return 0;
	if (is_wh_name(o->name))
		tell(c, CONVERT_NAME, o->path, true, 0);
	else if (fmt_is_whiteout(&o->st) || marked)
		whiteout_to_fuse(c, o);
	else if (S_ISDIR(o->st.stx_mode) && object_has(o, FMT_REDIRECT) &&
		 opaque_of(f, o) != FMT_IS_OPAQUE)
		tell(c, CONVERT_REDIRECT, o->path, true, 0);
	else if (S_ISREG(o->st.stx_mode) && object_has(o, FMT_METACOPY))
		tell(c, CONVERT_METACOPY, o->path, true, 0);
	else if (!child)
		private_to_fuse(c, o);
	return 0;
}

static int leave_to_fuse(struct fsck *f, struct level *dir, struct object *o)
{
	struct converting *c = converting_of(f);

	opaque_to_fuse(c, o);
	private_to_fuse(c, o);
	return 0;
}

/* --- running ------------------------------------------------------------------------------------
 */

static int convert(struct converting *c)
{
	static const struct visitor kernel = { .object = to_kernel, .leave = leave_to_kernel };
	static const struct visitor fuse = { .object = to_fuse, .leave = leave_to_fuse };
	const struct convert_config *config = c->config;
	struct convert_result tried;
	int err;

	c->write = config->write && config->to_kernel;
	c->trial = config->write && !config->to_kernel;
	err = scan(&c->f, config->to_kernel ? &kernel : &fuse);
	if (err < 0 || config->to_kernel || !config->write)
		return err;
	/* The first time was only to see whether all can be said in fuse-overlayfs' form. */
	tried = *c->result;
	if (tried.left) {
		c->result->converted = 0;
		return 0;
	}
	*c->result = (struct convert_result){ 0 };
	c->write = true;
	c->trial = false;
	return scan(&c->f, &fuse);
}

static int open_and_convert(struct converting *c)
{
	struct fsck *f = &c->f;
	const char *failed;
	int err = layer_dir_open_upper(c->config->dir, c->config->dir, NULL, &f->upper, &f->workdir,
				       &failed);

	if (err < 0) {
		snprintf(f->message, f->size, "cannot open %s: %s", c->config->dir, strerror(-err));
		return err;
	}
	f->upper_lock = at_open(f->upper.root->fd, "", O_RDONLY | O_DIRECTORY);
	if (f->upper_lock >= 0 && flock(f->upper_lock, LOCK_EX | LOCK_NB) < 0 &&
	    errno == EWOULDBLOCK) {
		snprintf(f->message, f->size, "%s is in use by a plyfs mount: unmount that first",
			 c->config->dir);
		err = -EBUSY;
	}
	if (err == 0)
		err = check_in_use(f, f->message, f->size);
	if (err == -EBUSY && !c->config->write) {
		c->config->warn(c->config->ctx, f->message);
		f->message[0] = '\0';
		err = 0;
	}
	return err < 0 ? err : convert(c);
}

int convert_run(const struct convert_config *config, struct convert_result *result, char *message,
		size_t size)
{
	struct converting c = { .config = config, .result = result };
	struct fsck_result unused;
	const struct fsck_config checked = {
		.upper = config->dir,
		.ask = on_finding,
		.repaired = on_repaired,
		.ctx = &c,
		.cancelled = config->cancelled,
	};
	int err;

	*result = (struct convert_result){ 0 };
	message[0] = '\0';
	c.f = (struct fsck){
		.config = &checked,
		.result = &unused,
		.message = message,
		.size = size,
		.has_upper = true,
		.userxattr = config->userxattr,
		.upper_lock = -1,
		.work_lock = -1,
	};
	err = open_and_convert(&c);
	if (err < 0 && err != -ECANCELED && !message[0])
		snprintf(message, size, "cannot convert %s: %s", config->dir, strerror(-err));
	text_set_free(&c.f.told);
	layer_ref_put(c.f.workdir);
	if (c.f.upper.root)
		layer_close(&c.f.upper);
	close_fd(c.f.upper_lock);
	return err;
}
