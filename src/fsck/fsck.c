// SPDX-License-Identifier: MIT
/* A run: opening the layers, the order of the checks, and what is told of them. */
#include "fsck/fsck.h"

#include <fcntl.h>
#include <stdarg.h>
#include <string.h>
#include <sys/file.h>

#include "fsck/private.h"

static int fail(struct fsck *f, int err, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

static int fail(struct fsck *f, int err, const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	vsnprintf(f->message, f->size, fmt, args);
	va_end(args);
	return err;
}

bool fsck_cancelled(const struct fsck *f)
{
	return f->config->cancelled && *f->config->cancelled;
}

static struct fsck_finding describe(struct fsck *f, enum fsck_kind kind, const char *layer,
				    const char *path, const char *detail)
{
	const struct judge_words *words = judge_words(kind);

	return (struct fsck_finding){
		.kind = kind,
		.class = words->class,
		.id = words->id,
		.layer = layer,
		.path = path,
		.what = words->what,
		.detail = detail ? detail : "",
		.repair = f->has_upper ? words->repair : NULL,
	};
}

static int told_before(struct fsck *f, const struct fsck_finding *found, bool add)
{
	autofree char *key = NULL;
	int err;

	if (asprintf(&key, "%d %s %s", (int)found->kind, found->layer, found->path) < 0)
		return -ENOMEM;
	if (!add)
		return text_set_has(&f->told, key);
	err = text_set_add(&f->told, key);
	return min(err, 0);
}

int finding_in(struct fsck *f, enum fsck_kind kind, const char *layer, const char *path,
	       const char *detail)
{
	struct fsck_finding found = describe(f, kind, layer, path, detail);
	enum fsck_answer answer;
	int err;

	if (fsck_cancelled(f))
		return -ECANCELED;
	err = told_before(f, &found, false);
	if (err != 0)
		return min(err, 0);
	answer = f->config->ask(f->config->ctx, &found);
	if (answer == FSCK_CANCEL)
		return -ECANCELED;
	if (answer == FSCK_REPAIR && found.repair && f->config->write)
		return 1;
	if (found.class == FSCK_NOTE)
		f->result->notes++;
	else
		f->result->left++;
	return told_before(f, &found, true);
}

int finding(struct fsck *f, enum fsck_kind kind, const char *path, const char *detail)
{
	return finding_in(f, kind, f->label, path, detail);
}

int repaired_in(struct fsck *f, enum fsck_kind kind, const char *layer, const char *path, int err)
{
	struct fsck_finding found = describe(f, kind, layer, path, "");

	f->config->repaired(f->config->ctx, &found, err);
	if (err == 0) {
		f->result->repaired++;
		return 0;
	}
	f->result->left++;
	return told_before(f, &found, true);
}

int repaired(struct fsck *f, enum fsck_kind kind, const char *path, int err)
{
	return repaired_in(f, kind, f->label, path, err);
}

static const char *reason(int err)
{
	switch (err) {
	case -ENOENT: return "does not exist";
	case -ENOTDIR: return "is not a directory";
	default: return strerror(-err);
	}
}

/* A mount by plyfs holds these locks for its life; so does a check that repairs. */
static int lock(struct fsck *f, const char *what, const char *path, int fd, int *out)
{
	*out = at_open(fd, "", O_RDONLY | O_DIRECTORY);
	if (*out < 0)
		return fail(f, *out, "%s %s cannot be read: %s", what, path, strerror(-*out));
	if (flock(*out, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK)
		return 0;
	return fail(f, -EBUSY, "%s %s is in use by a plyfs mount: unmount that first", what, path);
}

static int lock_layers(struct fsck *f)
{
	const struct fsck_config *c = f->config;
	int err;

	if (!f->has_upper)
		return 0;
	err = lock(f, "upperdir", c->upper, f->upper.root->fd, &f->upper_lock);
	if (err == 0 && f->workdir)
		err = lock(f, "workdir", c->work, f->workdir->fd, &f->work_lock);
	if (err == 0)
		err = check_in_use(f, f->message, f->size);
	if (err != -EBUSY || c->write)
		return err;
	c->warn(c->ctx, f->message);
	f->message[0] = '\0';
	return 0;
}

static int check_work(struct fsck *f)
{
	struct statx upper;
	struct statx work;
	int err = at_statx(f->upper.root->fd, "", &upper);

	if (err == 0)
		err = at_statx(f->workdir->fd, "", &work);
	if (err < 0)
		return fail(f, err, "workdir %s: %s", f->config->work, strerror(-err));
	if (upper.stx_ino == work.stx_ino)
		return fail(f, -EINVAL, "workdir and upperdir are both %s", f->config->upper);
	return 0;
}

static int open_checked(struct fsck *f)
{
	const struct fsck_config *c = f->config;
	const char *failed = c->upper;
	int err;

	if (!f->has_upper) {
		err = layer_dir_open(c->lower[0], 0, NULL, false, &f->upper);
		return err < 0 ? fail(f, err, "lowerdir %s %s", c->lower[0], reason(err)) : 0;
	}
	if (!c->work) {
		err = layer_dir_open(c->upper, 0, NULL, false, &f->upper);
		/* A lower layer would be a read-only clone. */
		if (err == 0) {
			layer_close(&f->upper);
			f->upper.root = NULL;
			err = layer_dir_open_upper(c->upper, c->upper, NULL, &f->upper, &f->workdir,
						   &failed);
			layer_ref_put(take_ref(&f->workdir));
		}
		return err < 0 ? fail(f, err, "upperdir %s %s", c->upper, reason(err)) : 0;
	}
	err = layer_dir_open_upper(c->upper, c->work, NULL, &f->upper, &f->workdir, &failed);
	if (err == -EXDEV)
		return fail(f, err,
			    "workdir %s is on another filesystem or mount than upperdir %s: give "
			    "the pair that was mounted",
			    c->work, c->upper);
	if (err < 0)
		return fail(f, err, "%s %s %s", failed == c->upper ? "upperdir" : "workdir", failed,
			    reason(err));
	return check_work(f);
}

/* The lower layers: as a union, and each by itself for the sake of file handles. */
static int open_below(struct fsck *f)
{
	const struct fsck_config *c = f->config;
	size_t skip = f->has_upper ? 0 : 1;
	struct ovl_config config = {
		.lower = c->lower + skip,
		.lower_count = c->lower_count - skip,
		.data_count = c->data_count,
		.features = c->features,
		.given = 0,
		.xattr_prefix = c->features.userxattr ? OVL_XATTR_USER : OVL_XATTR_AUTO,
	};
	int err;

	/* The format is checked, not one mount of it: whatever layers can hold is followed. */
	config.features.metacopy = true;
	config.features.redirect = OVL_REDIRECT_FOLLOW;
	config.features.index = config.features.nfs_export = false;
	config.features.verity = OVL_VERITY_OFF;
	f->lower_count = config.lower_count;
	f->data_count = config.data_count;
	if (!config.lower_count)
		return 0;
	f->lowers = calloc(config.lower_count, sizeof(*f->lowers));
	if (!f->lowers)
		return -ENOMEM;
	err = ovl_create(&config, &f->below, f->message, f->size);
	if (err < 0)
		return err;
	f->userxattr = ovl_get_features(f->below)->userxattr;
	for (size_t n = 0; n < config.lower_count && err == 0; n++) {
		err = layer_dir_open(config.lower[n], (unsigned int)(n + 1), NULL, false,
				     &f->lowers[n]);
		if (err < 0)
			return fail(f, err, "lowerdir %s %s", config.lower[n], reason(err));
		if (f->lowers[n].dev == f->upper.dev && f->lowers[n].root_ino == f->upper.root_ino)
			return fail(f, -ELOOP, "lowerdir %s is the layer that is to be checked",
				    config.lower[n]);
	}
	return 0;
}

static void choose_marks(struct fsck *f)
{
	const struct ovl_features *features = &f->config->features;

	if (!f->below)
		f->userxattr = features->userxattr || !ovl_may_trust();
	f->decodes = true;
	for (size_t n = 0; n < f->lower_count - f->data_count; n++)
		f->decodes &= f->lowers[n].can_decode;
	f->follow = !f->userxattr && features->redirect != OVL_REDIRECT_NOFOLLOW;
	f->index = features->index || features->nfs_export;
	f->nfs_export = features->nfs_export;
}

static int run(struct fsck *f)
{
	int err = open_checked(f);

	if (err == 0)
		err = lock_layers(f);
	if (err == 0)
		err = open_below(f);
	if (err < 0)
		return err;
	choose_marks(f);
	/* What is not known to be understood is not touched. */
	err = f->workdir ? work_check(f) : 0;
	if (err == 0)
		err = place_check(f);
	/* It gives files their origins back, which the marks are judged by. */
	if (err == 0 && f->workdir)
		err = index_check(f);
	if (err == 0)
		err = marks_check(f);
	if (err == 0 && f->workdir)
		err = index_check_missing(f);
	return err;
}

static void close_all(struct fsck *f)
{
	ovl_destroy(f->below);
	for (size_t n = 0; f->lowers && n < f->lower_count; n++)
		if (f->lowers[n].root)
			layer_close(&f->lowers[n]);
	free(f->lowers);
	layer_ref_put(f->workdir);
	if (f->upper.root)
		layer_close(&f->upper);
	close_fd(f->upper_lock);
	close_fd(f->work_lock);
	text_set_free(&f->told);
	text_set_free(&f->unsettled);
	for (size_t n = 0; n < f->indexed_count; n++)
		free(f->indexed[n].path);
	free(f->indexed);
	for (size_t n = 0; n < f->copy_count; n++) {
		free(f->copies[n].path);
		free(f->copies[n].below_path);
	}
	free(f->copies);
	free(f->label);
}

int fsck_run(const struct fsck_config *config, struct fsck_result *result, char *message,
	     size_t size)
{
	struct fsck f = {
		.config = config,
		.result = result,
		.message = message,
		.size = size,
		.has_upper = config->upper != NULL,
		.upper_lock = -1,
		.work_lock = -1,
	};
	int err;

	*result = (struct fsck_result){ 0 };
	message[0] = '\0';
	if (asprintf(&f.label, "%s%s", f.has_upper ? "upperdir" : "lowerdir ",
		     f.has_upper ? "" : config->lower[0]) < 0)
		f.label = NULL;
	err = f.label ? run(&f) : -ENOMEM;
	if (result->repaired && syncfs(f.upper_lock) < 0 && err == 0)
		err = fail(&f, -errno, "cannot write upperdir %s to disk: %s", config->upper,
			   strerror(errno));
	if (err < 0 && err != -ECANCELED && !message[0])
		fail(&f, err, "cannot check the layers: %s", strerror(-err));
	close_all(&f);
	return err;
}
