// SPDX-License-Identifier: MIT
/* Opening a union: its layers, the checks of them against each other, and closing it again. */
#include <fcntl.h>
#include <linux/capability.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <stdarg.h>
#include <sys/syscall.h>
#include <sys/xattr.h>

#include "overlay/dirlist.h"
#include "overlay/index.h"
#include "overlay/override.h"
#include "overlay/survey.h"
#include "overlay/whfile.h"
#include "overlay/writeback.h"
#include "util/at.h"
#include "util/log.h"

/* Cached fds at most; below it, what RLIMIT_NOFILE leaves after a reserve for running calls. */
#define FDS_MAX     4096
#define FDS_RESERVE 256
#define FDS_MIN     16

/* How long a mount waits for the one before it on the same layers. */
#define LOCK_WAIT_MS 2000
#define LOCK_POLL_MS 5

struct opening {
	struct ovl *o;
	const struct ovl_config *config;
	struct layer_ref *workdir;
	char *message;
	size_t size;
};

static int fail(struct opening *p, int err, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

static int fail(struct opening *p, int err, const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	vsnprintf(p->message, p->size, fmt, args);
	va_end(args);
	return err;
}

static bool has_capability(unsigned int cap)
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct data[2];

	if (syscall(SYS_capget, &header, data) < 0)
		return false;
	return data[cap / 32].effective >> (cap % 32) & 1;
}

static bool in_initial_userns(void)
{
	struct stat st;

	return stat("/proc/self/ns/user", &st) == 0 && st.st_ino == USER_NS_INIT_INO;
}

bool ovl_may_trust(void)
{
	return in_initial_userns() && has_capability(CAP_SYS_ADMIN);
}

static void find_rights(struct ovl *o)
{
	o->uid = geteuid();
	o->gid = getegid();
	o->may_setfsid = has_capability(CAP_SETUID) && has_capability(CAP_SETGID);
	o->overrides_modes = has_capability(CAP_DAC_OVERRIDE);
}

/* Whether the number that stands for "none here" (65534) may also be somebody's. */
static bool ids_are_ambiguous(void)
{
	autofile FILE *f = fopen("/proc/self/uid_map", "re");
	unsigned long inside;
	unsigned long outside;
	unsigned long count;

	while (f && fscanf(f, "%lu %lu %lu", &inside, &outside, &count) == 3) {
		if (inside == 0 && outside == 0 && count == UINT32_MAX)
			return false; /* everybody has his number */
		if (inside <= 65534 && 65534 - inside < count)
			return true;
	}
	return false;
}

static size_t fd_capacity(void)
{
	struct rlimit limit;
	size_t n = FDS_MAX;

	if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY)
		n = limit.rlim_cur > 2 * FDS_RESERVE ? limit.rlim_cur - FDS_RESERVE
						     : limit.rlim_cur / 2;
	n = min(n, (size_t)FDS_MAX);
	return max(n, (size_t)FDS_MIN);
}

static const char *reason(int err)
{
	switch (err) {
	case -ENOENT: return "does not exist";
	case -ENOTDIR: return "is not a directory";
	case -EACCES: return "may not be opened (permission denied)";
	case -ELOOP: return "has too many symlinks";
	default: return strerror(-err);
	}
}

static int fail_to_open(struct opening *p, const char *what, const char *path, int err)
{
	/* The kernel's: EINVAL for the layer itself, ENOTDIR for something on the way to it. */
	bool itself = err == -ENOTDIR && access(path, F_OK) == 0;

	return fail(p, itself ? -EINVAL : err, "%s %s %s: give an existing directory", what, path,
		    reason(err));
}

/* A directory that must not lie inside a layer, or twice among them. */
struct root_id {
	dev_t dev;
	uint64_t ino;
	unsigned int layer; /* WORK_ROOT: workdir */
};

#define WORK_ROOT UINT_MAX

static int compare_roots(const void *a, const void *b)
{
	const struct root_id *x = a;
	const struct root_id *y = b;

	if (x->dev != y->dev)
		return x->dev < y->dev ? -1 : 1;
	if (x->ino != y->ino)
		return x->ino < y->ino ? -1 : 1;
	return 0;
}

/* The first of @roots that @path lies inside of, or is if @itself; NULL. By what they are, not by
 * paths. */
static const struct root_id *find_outer(const char *path, bool itself, const struct root_id *roots,
					size_t count)
{
	autofd int fd = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
	uint64_t last_ino = 0;
	dev_t first_dev = 0;

	for (unsigned int depth = 0; fd >= 0 && depth < PATH_MAX; depth++) {
		struct root_id key = { 0 };
		const struct root_id *found;
		struct stat st;
		int parent;

		if (fstat(fd, &st) < 0)
			return NULL;
		/* What is mounted inside a layer is not part of it. */
		if (depth && st.st_dev != first_dev)
			return NULL;
		if (depth && st.st_ino == last_ino) /* the root is its own parent */
			return NULL;
		first_dev = st.st_dev;
		last_ino = st.st_ino;
		key.dev = st.st_dev;
		key.ino = st.st_ino;
		found = bsearch(&key, roots, count, sizeof(*roots), compare_roots);
		if (found && (depth || itself))
			return found;
		parent = openat(fd, "..", O_PATH | O_DIRECTORY | O_CLOEXEC);
		close_fd(fd);
		fd = parent;
	}
	return NULL;
}

/* Paths only: what is mounted over a layer later hides it from us, not from the kernel. */
static int check_mountpoint(struct opening *p, const char *what, const char *path)
{
	autofree char *layer = realpath(path, NULL);
	autofree char *target = p->config->mountpoint ? realpath(p->config->mountpoint, NULL)
						      : NULL;
	size_t len;

	if (!layer || !target)
		return 0;
	len = strlen(target);
	if (len == 1 || strncmp(layer, target, len) != 0 || layer[len] != '/')
		return 0;
	return fail(p, -EINVAL,
		    "%s %s lies inside its own mountpoint %s: mount elsewhere, or move the layer",
		    what, path, target);
}

/* What a path given means anywhere, symlinks left as they are. NULL: no memory. */
static char *absolute_path(const char *path)
{
	autofree char *cwd = NULL;
	char *out;

	if (path[0] == '/')
		return strdup(path);
	cwd = getcwd(NULL, 0);
	if (asprintf(&out, "%s/%s", cwd && strcmp(cwd, "/") ? cwd : "", path) < 0)
		return NULL;
	return out;
}

/* What the kernel's overlayfs does about an upper that is in use: an index forbids it. */
static bool may_share(const struct ovl_config *c)
{
	return c->compat.shares_upper && !c->features.index && !c->features.nfs_export;
}

/*
 * An exclusive lock for as long as the mount lives; it goes with the process, whatever ends it. 1:
 * another mount has it.
 */
static int lock_dir(struct opening *p, const char *what, const char *path, struct layer_ref *dir,
		    int *out)
{
	*out = at_open(layer_fd(dir), "", O_RDONLY | O_DIRECTORY);
	if (*out < 0)
		return fail(p, *out, "%s %s cannot be read: %s", what, path, strerror(-*out));
	/* The server of a mount that was unmounted just now may need a moment to leave. */
	for (unsigned int waited = 0; flock(*out, LOCK_EX | LOCK_NB) < 0; waited += LOCK_POLL_MS) {
		if (errno != EWOULDBLOCK) /* a filesystem without locks */
			return 0;
		if (waited < LOCK_WAIT_MS) {
			usleep(LOCK_POLL_MS * 1000);
			continue;
		}
		if (may_share(p->config)) {
			log_warning("%s %s is in use by another plyfs mount, or by one that was "
				    "left behind in another mount namespace: do not change both",
				    what, path);
			return 1;
		}
		return fail(p, -EBUSY,
			    "%s %s is in use by another plyfs mount: unmount that first, or give "
			    "another directory",
			    what, path);
	}
	return 0;
}

static int check_upper_and_work(struct opening *p)
{
	const struct ovl_config *c = p->config;
	struct layer *upper = &p->o->layers[0];
	struct root_id upper_root;
	struct root_id work_root;
	struct statx work;
	int err = layer_stat(p->workdir, "", &work);

	if (err < 0)
		return fail(p, err, "workdir %s: %s", c->work, strerror(-err));
	if (statx_dev(&work) != upper->dev)
		return fail(p, -EINVAL,
			    "workdir %s is on another filesystem than upperdir %s: give both from "
			    "one filesystem",
			    c->work, c->upper);
	p->o->workdir_ino = work.stx_ino;
	upper_root = (struct root_id){ .dev = upper->dev, .ino = upper->root_ino };
	work_root = (struct root_id){ .dev = upper->dev, .ino = work.stx_ino };
	if (work.stx_ino == upper->root_ino)
		return fail(p, -EINVAL,
			    "workdir and upperdir are both %s: give two separate directories",
			    c->upper);
	if (find_outer(c->work, false, &upper_root, 1))
		return fail(p, -EINVAL,
			    "workdir %s lies inside upperdir %s: give a directory beside it",
			    c->work, c->upper);
	if (find_outer(c->upper, false, &work_root, 1))
		return fail(p, -EINVAL,
			    "upperdir %s lies inside workdir %s: give a directory beside it",
			    c->upper, c->work);
	if (upper->read_only)
		return fail(p, -EINVAL,
			    "upperdir %s is on a read-only filesystem: give a writable one, or "
			    "leave upperdir and workdir out",
			    c->upper);
	return 0;
}

static int open_upper(struct opening *p)
{
	const struct ovl_config *c = p->config;
	struct ovl *o = p->o;
	const char *failed = c->upper;
	int err = check_mountpoint(p, "upperdir", c->upper);

	if (err == 0)
		err = check_mountpoint(p, "workdir", c->work);
	if (err < 0)
		return err;
	err = layer_dir_open_upper(c->upper, c->work, c->mountpoint, &o->layers[0], &p->workdir,
				   &failed);
	if (err == -EXDEV)
		return fail(p, -EINVAL,
			    "workdir %s is on another filesystem or mount than upperdir %s: give "
			    "both from one filesystem",
			    c->work, c->upper);
	if (err < 0)
		return fail_to_open(p, failed == c->upper ? "upperdir" : "workdir", failed, err);
	o->has_upper = true;
	o->layers[0].path = absolute_path(c->upper);
	o->workdir_path = absolute_path(c->work);
	if (!o->layers[0].path || !o->workdir_path)
		return -ENOMEM;
	err = check_upper_and_work(p);
	if (err == 0)
		err = lock_dir(p, "upperdir", c->upper, o->layers[0].root, &o->upper_lock);
	if (err == 0)
		err = lock_dir(p, "workdir", c->work, p->workdir, &o->work_lock);
	return min(err, 0);
}

static int open_lower(struct opening *p, unsigned int index)
{
	const char *path = p->config->lower[index - 1];
	int err = check_mountpoint(p, "lowerdir", path);

	if (err < 0)
		return err;
	err = layer_dir_open(path, index, p->config->mountpoint, p->config->disk_ids,
			     &p->o->layers[index]);
	if (err < 0)
		return fail_to_open(p, "lowerdir", path, err);
	p->o->layers[index].path = absolute_path(path);
	return p->o->layers[index].path ? 0 : -ENOMEM;
}

static const char *root_path(struct opening *p, unsigned int layer)
{
	const struct ovl_config *c = p->config;

	if (layer == WORK_ROOT)
		return c->work;
	return layer ? c->lower[layer - 1] : c->upper;
}

static const char *root_kind(unsigned int layer)
{
	return layer == WORK_ROOT ? "workdir" : layer ? "lowerdir" : "upperdir";
}

static int check_twice(struct opening *p, const struct root_id *roots, size_t count)
{
	for (size_t n = 1; n < count; n++)
		if (compare_roots(&roots[n - 1], &roots[n]) == 0)
			return fail(p, -ELOOP, "%s %s is also %s %s: give each directory once",
				    root_kind(roots[n].layer), root_path(p, roots[n].layer),
				    root_kind(roots[n - 1].layer),
				    root_path(p, roots[n - 1].layer));
	return 0;
}

/* The kernel's rules (ovl_get_layers, ovl_check_overlapping_layers), and its errno. */
static int check_overlap(struct opening *p)
{
	const struct ovl_config *c = p->config;
	struct ovl *o = p->o;
	autofree struct root_id *roots = calloc(o->layer_count + 1, sizeof(*roots));
	size_t count = 0;
	int err;

	if (!roots)
		return -ENOMEM;
	for (unsigned int n = o->has_upper ? 0 : 1; n < o->layer_count; n++)
		roots[count++] = (struct root_id){ o->layers[n].dev, o->layers[n].root_ino, n };
	if (o->has_upper)
		roots[count++] = (struct root_id){ o->layers[0].dev, o->workdir_ino, WORK_ROOT };
	qsort(roots, count, sizeof(*roots), compare_roots);
	err = check_twice(p, roots, count);
	for (unsigned int n = 1; n < o->layer_count && err == 0; n++) {
		const struct root_id *outer = find_outer(c->lower[n - 1], false, roots, count);

		if (outer)
			err = fail(p, -ELOOP,
				   "lowerdir %s lies inside %s %s: layers must not overlap",
				   c->lower[n - 1], root_kind(outer->layer),
				   root_path(p, outer->layer));
	}
	return err;
}

/* Which xattrs mark what, and what else follows from the options alone. */
static int choose_features(struct opening *p)
{
	struct ovl *o = p->o;
	const struct ovl_config *c = p->config;
	bool privileged = ovl_may_trust();

	o->userxattr = c->xattr_prefix == OVL_XATTR_USER ||
		       (c->xattr_prefix == OVL_XATTR_AUTO && !privileged);
	o->features.userxattr = o->userxattr;
	return features_resolve(&o->features, c->given, o->has_upper, o->data_count > 0, privileged,
				p->message, p->size);
}

/* Tried for real: some filesystems hold no xattrs, or not those. */
static void probe_upper_xattrs(struct opening *p)
{
	struct ovl *o = p->o;
	char why[PATH_MAX + 128];
	int fd;
	int err;

	if (!o->has_upper)
		return;
	fd = layer_fd(p->workdir);
	err = at_setxattr(fd, "", xname(o, FMT_OPAQUE), "0", 1, 0);
	if (err == 0) {
		at_removexattr(fd, "", xname(o, FMT_OPAQUE));
		return;
	}
	o->no_xattr = true;
	snprintf(why, sizeof(why), "upperdir %s cannot hold %s* xattrs (%s)%s", p->config->upper,
		 o->userxattr ? FMT_PREFIX_USER : FMT_PREFIX_TRUSTED, strerror(-err),
		 err == -EPERM && !o->userxattr ? ", try userxattr" : "");
	features_fall_back(o, p->config->given, why);
}

/* The kernel has to check ACLs if any layer can hold them. */
static void probe_acl(struct ovl *o)
{
	for (unsigned int l = o->has_upper ? 0 : 1; l < o->layer_count && !o->has_acl; l++) {
		ssize_t n = layer_getxattr(o->layers[l].root, "", ACL_ACCESS, NULL, 0);

		o->has_acl = n >= 0 || n == -ENODATA;
	}
}

/* -o volatile: upper is given up from here on, whatever becomes of this mount. */
static int begin_volatile(struct opening *p)
{
	struct ovl *o = p->o;
	int err;

	if (o->features.fsync != OVL_FSYNC_VOLATILE)
		return 0;
	err = writeback_watch(o, p->config->work, &o->writeback);
	if (err == -EIO)
		return fail(
			p, err,
			"the filesystem of upperdir %s has lost something that was written, and "
			"nobody was told yet: look into it, run sync -f %s, and mount again",
			p->config->upper, p->config->upper);
	if (err == 0 && !o->compat.unmarked_volatile)
		err = workdir_mark_volatile(o);
	if (err < 0)
		return fail(p, err, "cannot mark workdir %s/work as volatile: %s", p->config->work,
			    strerror(-err));
	return 0;
}

static int check_casefold(struct opening *p)
{
	struct ovl *o = p->o;

	for (unsigned int n = o->has_upper ? 0 : 1; n < o->layer_count; n++)
		if (casefold_is(o->layers[n].root, ""))
			return fail(p, -EINVAL,
				    "in %s %s case does not matter (chattr +F): such directories "
				    "cannot be united",
				    root_kind(n), root_path(p, n));
	return 0;
}

static enum fmt_opaque root_opaque(struct ovl *o, unsigned int layer)
{
	struct layer_ref *root = o->layers[layer].root;
	enum fmt_opaque opaque = FMT_NOT_OPAQUE;
	unsigned int marks;

	if (marks_read(o, root, "", &marks) < 0 || marks_opaque(o, root, "", marks, &opaque) < 0)
		return FMT_NOT_OPAQUE;
	return opaque;
}

static bool root_is_impure(struct ovl *o)
{
	char value[2];
	ssize_t n =
		layer_getxattr(o->layers[0].root, "", xname(o, FMT_IMPURE), value, sizeof(value));

	return n == 1 && value[0] == 'y';
}

/*
 * How many lower layers the root unites. To fuse-overlayfs the root of a layer may be opaque as any
 * directory; to the kernel's overlayfs it never is.
 */
static unsigned int root_lowers(struct ovl *o)
{
	if (!o->compat.whiteout_files)
		return o->lower_count;
	for (unsigned int n = o->has_upper ? 0 : 1; n < o->lower_count; n++)
		if (wh_opaque(o, o->layers[n].root, "") > 0 || root_opaque(o, n) == FMT_IS_OPAQUE)
			return n;
	return o->lower_count;
}

static int make_root(struct ovl *o)
{
	unsigned int top = o->has_upper ? 0 : 1;
	struct layer *layer = &o->layers[top];
	unsigned int count = root_lowers(o);
	struct dirstack *stack = calloc(1, sizeof(*stack) + count * sizeof(stack->lower[0]));
	int err;

	if (!stack)
		return -ENOMEM;
	stack->lower_count = (uint16_t)count;
	for (unsigned int n = 0; n < count; n++)
		stack->lower[n].layer = (uint16_t)(n + 1);
	o->root = inode_new(o, DT_DIR, stack);
	if (!o->root) {
		free(stack);
		return -ENOMEM;
	}
	o->root->ino = ino_compose(o, layer->dev, layer->root_ino);
	if (o->has_upper)
		inode_set(o->root, INODE_UPPER);
	if (o->has_upper && root_is_impure(o))
		inode_set(o->root, INODE_IMPURE);
	for (unsigned int n = 1; n <= o->lower_count; n++)
		if (root_opaque(o, n) == FMT_XWHITEOUTS)
			inode_set(o->root, INODE_XWHITE);
	err = inode_insert(o, o->root); /* the first: OVL_ROOT */
	if (err == 0)
		o->root->nlookup = 1;
	return err;
}

static int open_layers(struct opening *p)
{
	const struct ovl_config *c = p->config;
	struct ovl *o = p->o;
	int err = 0;

	if (c->lower_count < 1 || c->lower_count > OVL_MAX_LAYERS)
		return fail(p, -EINVAL, "%zu lower layers given: 1 to %d are possible",
			    c->lower_count, OVL_MAX_LAYERS);
	if (c->data_count >= c->lower_count)
		return fail(p, -EINVAL,
			    "only data-only layers are given: at least one other lower layer is "
			    "needed");
	if (c->upper && !c->work)
		return fail(p, -EINVAL,
			    "upperdir %s is given without workdir: give an empty directory on the "
			    "same filesystem",
			    c->upper);
	o->layers = calloc(c->lower_count + 1, sizeof(*o->layers));
	if (!o->layers)
		return -ENOMEM;
	o->layer_count = 1;
	if (c->upper)
		err = open_upper(p);
	o->lower_count = (unsigned int)(c->lower_count - c->data_count);
	o->data_count = (unsigned int)c->data_count;
	o->layer_count = 1 + o->lower_count + o->data_count;
	for (unsigned int n = 1; n < o->layer_count && err == 0; n++)
		err = open_lower(p, n);
	if (err == 0)
		err = check_overlap(p);
	return err;
}

static int open_all(struct opening *p)
{
	struct ovl *o = p->o;
	bool ambiguous;
	int err;

	if (access("/proc/self/fd", X_OK) < 0)
		return fail(p, -ENOENT,
			    "/proc is not there (%s): plyfs reaches files through /proc/self/fd; "
			    "mount -t proc proc /proc first",
			    strerror(errno));
	err = table_init(o);
	if (err == 0)
		err = fdcache_init(&o->fds, fd_capacity());
	if (err == 0)
		err = open_layers(p);
	if (err == 0)
		err = ino_init(o);
	if (err < 0)
		return err;
	ambiguous = ids_are_ambiguous();
	for (unsigned int n = o->has_upper ? 0 : 1; n < o->layer_count; n++) {
		o->layers[n].fds = &o->fds;
		o->layers[n].ambiguous_ids = ambiguous;
	}
	find_rights(o);
	err = check_casefold(p);
	if (err == 0)
		err = choose_features(p);
	if (err < 0)
		return err;
	probe_upper_xattrs(p);
	err = override_init(o, p->message, p->size);
	if (err < 0)
		return err;
	identity_init(o);
	index_check_layers(o);
	probe_acl(o);
	for (unsigned int n = o->has_upper ? 0 : 1; n < o->layer_count; n++)
		o->name_max = max(o->name_max, o->layers[n].name_max);
	if (o->compat.whiteout_files) /* every name has to have room for its whiteout */
		o->name_max -= (unsigned int)min((size_t)o->name_max, FMT_WH_PREFIX_LEN);
	if (o->has_upper) {
		err = workdir_prepare(o, p->workdir, p->config->work, p->message, p->size);
		if (err < 0)
			return err;
		identity_set_uuid(o);
		err = begin_volatile(p);
		if (err == 0 && o->features.index)
			err = index_open(o, p->workdir, p->config->work, p->message, p->size);
		if (err < 0)
			return err;
	}
	casefold_init(o);
	err = make_root(o);
	return err == 0 && o->features.nfs_export ? survey_new(o, &o->survey) : err;
}

int ovl_create(const struct ovl_config *config, struct ovl **out, char *message, size_t size)
{
	struct ovl *o = calloc(1, sizeof(*o));
	struct opening p = { .o = o, .config = config, .message = message, .size = size };
	int err;

	message[0] = '\0';
	if (!o) {
		snprintf(message, size, "out of memory");
		return -ENOMEM;
	}
	o->upper_lock = o->work_lock = -1;
	o->features = config->features;
	o->compat = config->compat;
	o->layers_may_change = config->layers_may_change;
	o->attr_changed = config->attr_changed;
	o->ctx = config->ctx;
	pthread_rwlock_init(&o->topology, NULL);
	pthread_rwlock_init(&o->modes_lock, NULL);
	pthread_mutex_init(&o->whiteout_lock, NULL);
	wh_init(o);
	dirlists_init(&o->lists);
	err = open_all(&p);
	layer_ref_put(p.workdir);
	if (err < 0) {
		if (!message[0])
			snprintf(message, size, "cannot open the layers: %s", strerror(-err));
		ovl_destroy(o);
		return err;
	}
	*out = o;
	return 0;
}

void ovl_destroy(struct ovl *o)
{
	if (!o)
		return;
	survey_free(o->survey);
	table_destroy(o);
	if (o->fds.capacity)
		fdcache_destroy(&o->fds);
	writeback_end(o->writeback);
	workdir_close(o);
	for (unsigned int n = 0; o->layers && n < o->layer_count; n++)
		layer_close(&o->layers[n]);
	close_fd(o->upper_lock);
	close_fd(o->work_lock);
	pthread_rwlock_destroy(&o->topology);
	pthread_rwlock_destroy(&o->modes_lock);
	pthread_mutex_destroy(&o->whiteout_lock);
	wh_destroy(o);
	dirlists_destroy(&o->lists);
	free(o->layers);
	free(o->workdir_path);
	free(o->devs);
	free(o);
}

bool ovl_has_upper(const struct ovl *o)
{
	return o->has_upper;
}

const struct ovl_features *ovl_get_features(const struct ovl *o)
{
	return &o->features;
}

bool ovl_has_acl(const struct ovl *o)
{
	return o->has_acl;
}

void ovl_get_stats(struct ovl *o, struct ovl_stats *out)
{
	*out = (struct ovl_stats){
		.inodes = o->table.inodes,
		.names = o->table.name_count,
		.open_fds = fdcache_count(&o->fds),
		.copied_up = o->copied_up,
	};
}
