// SPDX-License-Identifier: MIT
/*
 * workdir/index: for each lower inode that was copied up with index=on an entry, named by its
 * handle. Of a file it is one more link of the upper inode, of a directory an empty one that names
 * the upper directory; a whiteout says that a handle is stale. The kernel checks all at mount, and
 * does not mount when an entry makes no sense.
 */
#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/sysmacros.h>

#include "fsck/private.h"

struct entry {
	char *name;
	struct statx st;
	struct fmt_fh fh; /* of the name */
	bool valid;
	dev_t lower_dev; /* of what the handle leads to, if @leads */
	uint64_t lower_ino;
	unsigned int lower_nlink;
	bool leads;
	unsigned int names;       /* in upper */
	bool shared;              /* with another entry */
	unsigned int lower_names; /* other links of the lower inode that the union shows */
};

struct index {
	struct fsck *f;
	int fd;
	struct entry *entries;
	size_t count;
	bool removed; /* an entry that shared its inode: what was counted is out of date */
	bool made;    /* an entry that was missing */
	struct text_set wanted;
	bool want_lower; /* some entry may have links in lower layers that are seen */
};

static int compare_names(const void *a, const void *b)
{
	return strcmp(((const struct entry *)a)->name, ((const struct entry *)b)->name);
}

static void index_free(struct index *x)
{
	for (size_t n = 0; n < x->count; n++)
		free(x->entries[n].name);
	free(x->entries);
	text_set_free(&x->wanted);
	close_fd(x->fd);
}

static int decode_name(struct entry *e)
{
	uint8_t value[FMT_FH_MAX];
	ssize_t size = fmt_index_name_decode(e->name, value);

	return size < 0 ? (int)size : fmt_fh_decode(value, (size_t)size, &e->fh);
}

static void follow_name(struct index *x, struct entry *e)
{
	struct statx st;
	size_t layer;
	autofd int fd = handle_open_lower(x->f, &e->fh, &layer);

	if (fd < 0 || at_statx(fd, "", &st) < 0 ||
	    (st.stx_mode & S_IFMT) != (e->st.stx_mode & S_IFMT))
		return;
	e->leads = true;
	e->lower_dev = makedev(st.stx_dev_major, st.stx_dev_minor);
	e->lower_ino = st.stx_ino;
	e->lower_nlink = st.stx_nlink;
	if (st.stx_nlink > 1 && !S_ISDIR(st.stx_mode))
		x->want_lower = true;
}

static int index_read(struct index *x)
{
	autodir DIR *dir = NULL;
	struct dirent *d;
	size_t room = 0;
	int err = at_opendir(x->fd, "", &dir);

	if (err < 0)
		return err;
	while ((d = at_readdir(dir))) {
		struct entry *e;

		if (x->count == room) {
			room = room ? 2 * room : 64;
			e = reallocarray(x->entries, room, sizeof(*e));
			if (!e)
				return -ENOMEM;
			x->entries = e;
		}
		e = &x->entries[x->count];
		*e = (struct entry){ .name = strdup(d->d_name) };
		if (!e->name)
			return -ENOMEM;
		x->count++;
		if (at_statx(dirfd(dir), e->name, &e->st) < 0)
			continue;
		e->valid = e->name[0] != '#' && decode_name(e) == 0;
		if (e->valid && !fmt_is_whiteout(&e->st))
			follow_name(x, e);
	}
	if (x->count)
		qsort(x->entries, x->count, sizeof(*x->entries), compare_names);
	return 0;
}

/* --- counting names -----------------------------------------------------------------------------
 */

static int compare_inodes(const void *a, const void *b)
{
	const struct entry *x = *(struct entry *const *)a;
	const struct entry *y = *(struct entry *const *)b;

	return x->st.stx_ino < y->st.stx_ino ? -1 : x->st.stx_ino > y->st.stx_ino;
}

/* The links of each inode less those that are in the index. */
static int count_upper_names(struct index *x)
{
	autofree struct entry **sorted = calloc(x->count + 1, sizeof(struct entry *));
	size_t end;

	if (!sorted)
		return -ENOMEM;
	for (size_t n = 0; n < x->count; n++)
		sorted[n] = &x->entries[n];
	qsort(sorted, x->count, sizeof(struct entry *), compare_inodes);
	for (size_t n = 0; n < x->count; n = end) {
		unsigned int links = sorted[n]->st.stx_nlink;

		for (end = n; end < x->count; end++)
			if (sorted[end]->st.stx_ino != sorted[n]->st.stx_ino)
				break;
		for (size_t k = n; k < end; k++) {
			if (S_ISDIR(sorted[k]->st.stx_mode))
				continue;
			sorted[k]->names = links > end - n ? links - (unsigned int)(end - n) : 0;
			sorted[k]->shared = end - n > 1;
		}
	}
	return 0;
}

static void count_lower_name(struct index *x, dev_t dev, uint64_t ino)
{
	for (size_t n = 0; n < x->count; n++)
		if (x->entries[n].leads && x->entries[n].lower_ino == ino &&
		    x->entries[n].lower_dev == dev)
			x->entries[n].lower_names++;
}

/* A directory of the whole union, upper being its topmost layer, that is still to be listed. */
struct pending {
	ovl_node node;
	struct pending *next;
};

struct counting {
	struct index *x;
	struct ovl *all;
	struct pending *todo;
	char **names;
	size_t count;
	size_t room;
	int err;
};

static bool count_fill(void *ctx, const struct ovl_dirent *d)
{
	struct counting *c = ctx;

	if (!strcmp(d->name, ".") || !strcmp(d->name, ".."))
		return true;
	if (c->count == c->room) {
		size_t room = c->room ? 2 * c->room : 64;
		char **names = reallocarray(c->names, room, sizeof(*names));

		if (!names) {
			c->err = -ENOMEM;
			return false;
		}
		c->names = names;
		c->room = room;
	}
	c->names[c->count] = strdup(d->name);
	if (!c->names[c->count]) {
		c->err = -ENOMEM;
		return false;
	}
	c->count++;
	return true;
}

static int count_push(struct counting *c, ovl_node node)
{
	struct pending *p = malloc(sizeof(*p));

	if (!p)
		return -ENOMEM;
	*p = (struct pending){ .node = node, .next = c->todo };
	c->todo = p;
	return 0;
}

static int count_object(struct counting *c, ovl_node parent, const char *name)
{
	struct ovl_entry entry;
	unsigned int layer;
	struct statx st;
	autofd int fd = -1;

	/* What cannot be looked up has no name to count. */
	if (ovl_lookup(c->all, parent, name, &entry) < 0)
		return 0;
	if (S_ISDIR(entry.attr.stx_mode))
		return count_push(c, entry.node);
	if (entry.attr.stx_nlink > 1) {
		fd = ovl_open_real(c->all, entry.node, &layer);
		if (fd >= 0 && layer > 1 && at_statx(fd, "", &st) == 0)
			count_lower_name(c->x, makedev(st.stx_dev_major, st.stx_dev_minor),
					 st.stx_ino);
	}
	ovl_forget(c->all, entry.node, 1);
	return 0;
}

static int count_dir(struct counting *c, ovl_node node)
{
	int err;

	c->count = 0;
	c->err = 0;
	err = ovl_readdir(c->all, node, 0, false, count_fill, c);
	if (err == 0)
		err = c->err;
	for (size_t n = 0; n < c->count; n++) {
		if (err == 0)
			err = fsck_cancelled(c->x->f) ? -ECANCELED
						      : count_object(c, node, c->names[n]);
		free(c->names[n]);
	}
	return err;
}

/* Which links of indexed lower inodes the union shows: it is walked once for all of them. */
static int count_lower_names(struct index *x)
{
	const struct fsck_config *c = x->f->config;
	struct counting counting = { .x = x };
	const char **layers = calloc(c->lower_count + 1, sizeof(*layers));
	struct ovl_config config = {
		.lower = layers,
		.lower_count = c->lower_count + 1,
		.data_count = c->data_count,
		.features = c->features,
		.xattr_prefix = x->f->userxattr ? OVL_XATTR_USER : OVL_XATTR_TRUSTED,
	};
	int err;

	if (!layers)
		return -ENOMEM;
	layers[0] = c->upper;
	memcpy(layers + 1, c->lower, c->lower_count * sizeof(*layers));
	config.features.metacopy = true;
	config.features.redirect = OVL_REDIRECT_FOLLOW;
	config.features.index = config.features.nfs_export = false;
	config.features.verity = OVL_VERITY_OFF;
	err = ovl_create(&config, &counting.all, x->f->message, x->f->size);
	if (err == 0)
		err = count_push(&counting, OVL_ROOT);
	while (counting.todo) {
		struct pending *p = counting.todo;

		counting.todo = p->next;
		if (err == 0)
			err = count_dir(&counting, p->node);
		if (p->node != OVL_ROOT)
			ovl_forget(counting.all, p->node, 1);
		free(p);
	}
	ovl_destroy(counting.all);
	free(counting.names);
	free(layers);
	return err;
}

/* --- entries ------------------------------------------------------------------------------------
 */

static int entry_path(const struct entry *e, char **path)
{
	*path = path_join("index", e->name);
	return *path ? 0 : -ENOMEM;
}

static ssize_t entry_mark(struct index *x, const struct entry *e, enum fmt_xattr which, void *value,
			  size_t size)
{
	return at_getxattr(x->fd, e->name, mark_name(x->f, which), value, size);
}

/* The union's count of links as it is stored; false: malformed. Without one it is @fallback. */
static bool stored_nlink(struct index *x, const struct entry *e, long fallback, long *out)
{
	char value[FMT_NLINK_MAX + 1];
	ssize_t size = entry_mark(x, e, FMT_NLINK, value, sizeof(value));
	enum fmt_nlink_base base;
	int difference;

	*out = fallback;
	if (size == -ENODATA)
		return true;
	if (size < 0 || fmt_nlink_decode(value, size, &base, &difference) < 0)
		return false;
	*out = (long)(base == FMT_NLINK_UPPER ? e->st.stx_nlink : e->lower_nlink) + difference;
	return *out >= 0;
}

static int store_nlink(struct index *x, const struct entry *e)
{
	char value[FMT_NLINK_MAX];
	long names = (long)e->names + e->lower_names;
	size_t size =
		fmt_nlink_encode(FMT_NLINK_UPPER, (int)(names - (long)e->st.stx_nlink), value);

	return at_setxattr(x->fd, e->name, mark_name(x->f, FMT_NLINK), value, size, 0);
}

static int check_nlink(struct index *x, const struct entry *e, const char *path)
{
	long names = (long)e->names + e->lower_names;
	long stored;
	bool valid = stored_nlink(x, e, names, &stored);
	int kind = judge_nlink(valid, stored, names, (long)e->names + e->lower_nlink);
	int err;

	if (kind == FSCK_FINE)
		return 0;
	err = finding_in(x->f, (enum fsck_kind)kind, "workdir", path, "");
	if (err <= 0)
		return err;
	return repaired_in(x->f, (enum fsck_kind)kind, "workdir", path, store_nlink(x, e));
}

/* With nfs_export a whiteout takes the place, so that handles of it stay stale. */
static int remove_entry(struct index *x, const struct entry *e, bool keep_stale)
{
	char temp[FMT_TEMP_NAME_MAX];
	bool dir = S_ISDIR(e->st.stx_mode);
	int err;

	if (!keep_stale)
		return at_unlink(x->fd, e->name, dir ? AT_REMOVEDIR : 0);
	fmt_temp_name(0x66736b, temp);
	at_unlink(x->fd, temp, 0);
	if (mknodat(x->fd, temp, S_IFCHR, 0) < 0)
		return -errno;
	err = at_rename(x->fd, temp, x->fd, e->name, dir ? RENAME_EXCHANGE : 0);
	if (err < 0)
		at_unlink(x->fd, temp, 0);
	else if (dir)
		err = at_unlink(x->fd, temp, AT_REMOVEDIR);
	return err;
}

static int set_origin(struct index *x, const struct entry *e)
{
	uint8_t value[FMT_FH_MAX];
	ssize_t size = fmt_index_name_decode(e->name, value);

	if (size < 0)
		return (int)size;
	return at_setxattr(x->fd, e->name, mark_name(x->f, FMT_ORIGIN), value, (size_t)size, 0);
}

static int offer_entry(struct index *x, const struct entry *e, int kind, const char *path)
{
	bool stale = kind == FSCK_INDEX_ORPHAN && x->f->nfs_export;
	int err = finding_in(x->f, (enum fsck_kind)kind, "workdir", path, "");

	if (err <= 0)
		return err;
	err = kind == FSCK_INDEX_ORIGIN ? set_origin(x, e) : remove_entry(x, e, stale);
	x->removed |= err == 0 && kind != FSCK_INDEX_ORIGIN && e->shared;
	return repaired_in(x->f, (enum fsck_kind)kind, "workdir", path, err);
}

static int judge_dir_entry(struct index *x, const struct entry *e)
{
	uint8_t value[FMT_FH_MAX];
	struct fmt_fh upper = { 0 };
	struct fmt_fh origin = { 0 };
	ssize_t size = entry_mark(x, e, FMT_UPPER, value, sizeof(value));
	autofd int fd = -1;

	if (!e->valid)
		return FSCK_INDEX_NAME;
	if (size < 0 || fmt_fh_decode(value, (size_t)size, &upper) < 0)
		return FSCK_INDEX_STALE;
	if (!x->f->upper.can_decode)
		return FSCK_FINE;
	fd = handle_open(x->f, &x->f->upper, &upper);
	if (fd < 0)
		return FSCK_INDEX_ORPHAN;
	size = at_getxattr(fd, "", mark_name(x->f, FMT_ORIGIN), value, sizeof(value));
	if (size < 0 || fmt_fh_decode(value, (size_t)size, &origin) < 0 ||
	    !handle_same(&origin, &e->fh))
		return FSCK_INDEX_STALE;
	return FSCK_FINE;
}

static int judge_file_entry(struct index *x, const struct entry *e)
{
	uint8_t value[FMT_FH_MAX];
	ssize_t size = entry_mark(x, e, FMT_ORIGIN, value, sizeof(value));
	struct fmt_fh origin = { 0 };
	struct judge_index_facts facts = {
		.name_valid = e->valid,
		.name_leads = e->leads,
		.nlink = e->st.stx_nlink,
	};
	size_t layer;
	autofd int fd = -1;

	facts.has_origin = size >= 0 && fmt_fh_decode(value, (size_t)size, &origin) == 0;
	if (facts.has_origin) {
		facts.same = handle_same(&origin, &e->fh);
		fd = handle_open_lower(x->f, &origin, &layer);
		facts.origin_leads = fd >= 0;
	}
	if (!stored_nlink(x, e, 0, &facts.stored))
		facts.stored = -1;
	return judge_index(&facts);
}

static int check_entry(struct index *x, const struct entry *e)
{
	autofree char *path = NULL;
	int err = entry_path(e, &path);
	int kind;

	if (err < 0)
		return err;
	if (e->name[0] == '#') {
		/* The whiteout that all others are links of lives here. */
		if (fmt_is_whiteout(&e->st))
			return 0;
		return offer_entry(x, e, FSCK_WORK_LEFTOVER, path);
	}
	if (fmt_is_whiteout(&e->st) && e->valid)
		return 0;
	if (S_ISDIR(e->st.stx_mode)) {
		kind = judge_dir_entry(x, e);
		return kind == FSCK_FINE ? 0 : offer_entry(x, e, kind, path);
	}
	/* First the count: an entry that nobody seems to need is removed. */
	if (e->valid && e->leads) {
		err = check_nlink(x, e, path);
		if (err < 0)
			return err;
	}
	kind = judge_file_entry(x, e);
	return kind == FSCK_FINE ? 0 : offer_entry(x, e, kind, path);
}

/* --- roots --------------------------------------------------------------------------------------
 */

/* Whether a mark with a handle names something else than @fd; a missing one is made at mount. */
static bool names_other(struct index *x, int dirfd, enum fmt_xattr which, const struct layer *layer,
			int fd, struct fmt_fh *right)
{
	uint8_t value[FMT_FH_MAX + 1];
	ssize_t size = at_getxattr(dirfd, "", mark_name(x->f, which), value, sizeof(value));
	struct fmt_fh fh = { 0 };

	if (size == -ENODATA || size == -EOPNOTSUPP || handle_of(x->f, layer, fd, right) < 0)
		return false;
	return size < 0 || fmt_fh_decode(value, (size_t)size, &fh) < 0 || !handle_same(&fh, right);
}

static int check_root(struct index *x, enum fsck_kind kind, int dirfd, enum fmt_xattr which,
		      const struct layer *layer, int fd)
{
	bool origin = which == FMT_ORIGIN;
	const char *path = origin ? "." : "index";
	const char *where = origin ? "upperdir" : "workdir";
	struct fmt_fh right = { 0 };
	uint8_t value[FMT_FH_MAX];
	ssize_t size;
	int err;

	if (!names_other(x, dirfd, which, layer, fd, &right))
		return 0;
	err = finding_in(x->f, kind, where, path, "");
	if (err <= 0)
		return err;
	right.upper = which == FMT_UPPER;
	size = fmt_fh_encode(&right, value);
	err = size < 0 ? (int)size
		       : at_setxattr(dirfd, "", mark_name(x->f, which), value, (size_t)size, 0);
	return repaired_in(x->f, kind, where, path, err);
}

static int check_roots(struct index *x)
{
	struct fsck *f = x->f;
	int upper = f->upper.root->fd;
	int err;

	/* Only a mount with the index asks for either. */
	if (!f->index || !f->lower_count)
		return 0;
	err = check_root(x, FSCK_INDEX_ROOT, upper, FMT_ORIGIN, &f->lowers[0],
			 f->lowers[0].root->fd);
	if (err == 0)
		err = check_root(x, FSCK_INDEX_UPPER, x->fd, FMT_UPPER, &f->upper, upper);
	return err;
}

/* --- files without an entry ---------------------------------------------------------------------
 */

static bool has_entry(const struct index *x, const char *name)
{
	const struct entry key = { .name = (char *)name };

	return x->count &&
	       bsearch(&key, x->entries, x->count, sizeof(*x->entries), compare_names) != NULL;
}

static int link_entry(struct index *x, const char *path, const char *name)
{
	autofd int fd = at_open_beneath(x->f->upper.root->fd, path, O_PATH);

	return fd < 0 ? fd : at_link(fd, "", x->fd, name);
}

static int drop_nlink(struct index *x, const char *path)
{
	autofd int fd = at_open_beneath(x->f->upper.root->fd, path, O_PATH);
	int err = fd < 0 ? fd : at_removexattr(fd, "", mark_name(x->f, FMT_NLINK));

	return err == -ENODATA ? 0 : err;
}

static bool is_malformed_nlink(struct index *x, const char *path)
{
	char value[FMT_NLINK_MAX + 1];
	enum fmt_nlink_base base;
	int difference;
	autofd int fd = at_open_beneath(x->f->upper.root->fd, path, O_PATH);
	ssize_t size =
		fd < 0 ? fd : at_getxattr(fd, "", mark_name(x->f, FMT_NLINK), value, sizeof(value));

	return size == -ERANGE ||
	       (size >= 0 && fmt_nlink_decode(value, size, &base, &difference) < 0);
}

static bool is_entry_inode(const struct index *x, uint64_t ino)
{
	for (size_t n = 0; n < x->count; n++)
		if (x->entries[n].st.stx_ino == ino && !S_ISDIR(x->entries[n].st.stx_mode))
			return true;
	return false;
}

static int check_indexed(struct index *x, const struct indexed *i)
{
	struct fsck *f = x->f;
	uint8_t value[FMT_FH_MAX];
	char name[FMT_INDEX_NAME_MAX];
	ssize_t size = i->origin.fid_len ? fmt_fh_encode(&i->origin, value) : -EINVAL;
	size_t layer;
	autofd int fd = -1;
	int err;

	if (is_entry_inode(x, i->ino))
		return 0;
	if (is_malformed_nlink(x, i->path)) {
		err = finding(f, FSCK_NLINK_INVALID, i->path, "");
		return err <= 0 ? err
				: repaired(f, FSCK_NLINK_INVALID, i->path, drop_nlink(x, i->path));
	}
	if (x->fd < 0 || size < 0)
		return 0;
	fmt_index_name(value, (size_t)size, name);
	/* Another one with the same origin may just have got it. */
	if (has_entry(x, name) || text_set_has(&x->wanted, name))
		return 0;
	fd = handle_open_lower(f, &i->origin, &layer);
	if (fd < 0)
		return 0;
	if (text_set_add(&x->wanted, name) < 0)
		return -ENOMEM;
	err = finding(f, FSCK_INDEX_MISSING, i->path, "");
	if (err <= 0)
		return err;
	err = link_entry(x, i->path, name);
	x->made |= err == 0;
	return repaired(f, FSCK_INDEX_MISSING, i->path, err);
}

static int check_all(struct index *x)
{
	int err = 0;

	if (x->fd >= 0)
		err = index_read(x);
	if (err == -EACCES || err == -EPERM)
		err = min(finding_in(x->f, FSCK_WORK_HIDDEN, "workdir", "index", ""), 0);
	if (err == 0 && x->fd >= 0)
		err = check_roots(x);
	if (err == 0)
		err = count_upper_names(x);
	if (err == 0 && x->want_lower)
		err = count_lower_names(x);
	for (size_t n = 0; n < x->count && err == 0 && !x->removed; n++)
		err = check_entry(x, &x->entries[n]);
	return err;
}

int index_check(struct fsck *f)
{
	struct index x;
	int err;

	do {
		x = (struct index){ .f = f };
		x.fd = at_open(layer_fd(f->workdir), "index", O_PATH | O_DIRECTORY);
		err = check_all(&x);
		index_free(&x);
	} while (err == 0 && x.removed);
	return err;
}

int index_check_missing(struct fsck *f)
{
	struct index x = { .f = f };
	int err = 0;

	if (!f->indexed_count)
		return 0;
	x.fd = at_open(layer_fd(f->workdir), "index", O_PATH | O_DIRECTORY);
	if (x.fd >= 0)
		err = index_read(&x);
	if (err == -EACCES || err == -EPERM) /* told of before */
		err = 0;
	for (size_t n = 0; n < f->indexed_count && err == 0; n++)
		err = check_indexed(&x, &f->indexed[n]);
	index_free(&x);
	/* What is in it now counts links. */
	return err == 0 && x.made ? index_check(f) : err;
}
