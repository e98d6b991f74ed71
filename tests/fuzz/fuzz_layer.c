/* SPDX-License-Identifier: MIT */
/*
 * Any bytes as layers and as what is done to their union: names, types and marks of upper, lower
 * and data-only layers and of an index are made from the input on a tmpfs, the engine opens them,
 * everything is looked at, some of it is changed, and the layers are opened once more. Nothing may
 * crash or hang, and what a lower layer holds stays as it is. Needs root, for mounts of its own.
 *
 * The input is read from the front, a byte or a few at a time; behind its end there are zeros, so
 * that each prefix of an input is an input too.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "overlay/format.h"
#include "overlay/format_override.h"
#include "overlay/ovl.h"
#include "util/log.h"

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define MAX_OBJECTS 48
#define MAX_NODES   256
#define MAX_OPS     40
#define MAX_DEPTH   6 /* of what is walked: redirects can make the tree deeper than its layers */
#define MAX_WALKED  400

struct input {
	const uint8_t *at;
	size_t left;
};

static uint8_t byte(struct input *in)
{
	if (!in->left)
		return 0;
	in->left--;
	return *in->at++;
}

static unsigned int below(struct input *in, unsigned int limit)
{
	return byte(in) % limit;
}

#define check(truth) check_that(truth, #truth, __LINE__)

static void check_that(bool truth, const char *what, int line)
{
	if (truth)
		return;
	fprintf(stderr, "fuzz_layer.c:%d: not true: %s\n", line, what);
	abort();
}

/* FS_IOC_GETFSUUID, which older headers lack */
struct uuid_request {
	uint8_t len;
	uint8_t uuid[16];
};

/* --- the place ---------------------------------------------------------------------------------*/

#define PLACE "/mnt" /* that of a mount namespace of our own */

static int home;         /* where libFuzzer has its corpus */
static int place;        /* where the layers are */
static uint8_t uuid[16]; /* of that tmpfs, which is part of each handle */

static void find_uuid(void)
{
	struct uuid_request request = { 0 };

	if (ioctl(place, _IOR(0x15, 0, struct uuid_request), &request) == 0)
		memcpy(uuid, request.uuid, sizeof(uuid));
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	(void)argc;
	(void)argv;
	log_set_level(LOG_LEVEL_ERROR);
	if (unshare(CLONE_NEWNS) < 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
	    mount("tmpfs", PLACE, "tmpfs", 0, "size=16m,mode=755") < 0) {
		perror("fuzz_layer: a tmpfs of its own, for which it needs root");
		exit(1);
	}
	home = open(".", O_PATH | O_DIRECTORY | O_CLOEXEC);
	place = open(PLACE, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	check(home >= 0 && place >= 0);
	find_uuid();
	return 0;
}

/* Empties a directory; no layer is deeper than its objects are many. */
static void clear(int parent, const char *name)
{
	int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	DIR *dir = fd < 0 ? NULL : fdopendir(fd);
	struct dirent *e;

	if (!dir)
		return;
	while ((e = readdir(dir))) {
		if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, ".."))
			continue;
		if (unlinkat(fd, e->d_name, 0) < 0 && (errno == EISDIR || errno == EPERM)) {
			clear(fd, e->d_name);
			unlinkat(fd, e->d_name, AT_REMOVEDIR);
		}
	}
	closedir(dir);
}

/* --- layers ------------------------------------------------------------------------------------*/

static const char *const layer_names[] = { "u", "l0", "l1", "l2", "d0", "w/index" };
#define LAYERS     6
#define LAYER_DATA 4

static const char *const names[] = { "a", "b", "c", "d" };
#define NAMES 4

struct made {
	char path[160];
	bool is_dir;
};

struct plan {
	struct made made[MAX_OBJECTS];
	unsigned int count;
	bool userxattr;
	bool overrides; /* the mount knows of owners and modes in xattrs */
};

enum kind {
	KIND_DIR,
	KIND_FILE,
	KIND_SPARSE,
	KIND_WHITEOUT,
	KIND_LINK,
	KIND_FIFO,
	KIND_HARD,
	KINDS
};

static bool is_lower(const char *path)
{
	return *path == 'l' || *path == 'd';
}

/* What upper shares with a lower layer is written through upper, and rightly so. */
static int make_link(const char *old, const char *path)
{
	return is_lower(old) == is_lower(path) ? link(old, path) : -1;
}

static int make_one(struct input *in, struct plan *p, enum kind kind, const char *path)
{
	int fd;

	switch (kind) {
	case KIND_DIR: return mkdir(path, 0755);
	case KIND_WHITEOUT: return mknod(path, S_IFCHR, 0);
	case KIND_LINK: return symlink(names[below(in, NAMES)], path);
	case KIND_FIFO: return mkfifo(path, 0644);
	case KIND_HARD: return make_link(p->made[below(in, p->count)].path, path);
	default:
		fd = open(path, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0644);
		if (fd < 0)
			return -1;
		if (kind == KIND_SPARSE ? ftruncate(fd, 1 + below(in, 9))
					: write(fd, "data", 4) < 0)
			perror("fuzz_layer: filling a file");
		return close(fd);
	}
}

/* A name of the index: of some object's handle, or made up. */
static void index_name(struct input *in, struct plan *p, char *out, size_t size);

static void add_object(struct input *in, struct plan *p)
{
	const struct made *parent = &p->made[below(in, p->count)];
	struct made *m = &p->made[p->count];
	enum kind kind = below(in, KINDS);
	char name[NAME_MAX + 1];

	if (!parent->is_dir)
		parent = &p->made[below(in, LAYERS)];
	if (parent == &p->made[LAYERS - 1])
		index_name(in, p, name, sizeof(name));
	else
		snprintf(name, sizeof(name), "%s", names[below(in, NAMES)]);
	if ((size_t)snprintf(m->path, sizeof(m->path), "%s/%s", parent->path, name) >=
	    sizeof(m->path))
		return;
	if (make_one(in, p, kind, m->path) < 0)
		return;
	m->is_dir = kind == KIND_DIR;
	p->count++;
}

/* The value of an origin or upper mark, or an entry's name: a handle with the overlay's header. */
static size_t encode_handle(const char *path, uint8_t out[FMT_FH_MAX])
{
	union {
		struct file_handle h;
		char space[sizeof(struct file_handle) + 128];
	} u = { .h.handle_bytes = 128 };
	struct fmt_fh fh = { 0 };
	ssize_t len;
	int mount_id;

	if (name_to_handle_at(AT_FDCWD, path, &u.h, &mount_id, 0) < 0)
		return 0;
	fh.type = (uint8_t)u.h.handle_type;
	memcpy(fh.uuid, uuid, sizeof(uuid));
	fh.fid_len = (uint8_t)u.h.handle_bytes;
	memcpy(fh.fid, u.h.f_handle, fh.fid_len);
	len = fmt_fh_encode(&fh, out);
	return len < 0 ? 0 : (size_t)len;
}

static size_t handle_value(struct input *in, struct plan *p, uint8_t out[FMT_FH_MAX])
{
	size_t len = encode_handle(p->made[below(in, p->count)].path, out);

	if (len && (byte(in) & 3) == 0) /* damaged */
		out[below(in, (unsigned int)len)] = byte(in);
	if (len && (byte(in) & 7) == 0)
		len = below(in, (unsigned int)len + 1);
	return len;
}

static void index_name(struct input *in, struct plan *p, char *out, size_t size)
{
	uint8_t fh[FMT_FH_MAX];
	char hex[FMT_INDEX_NAME_MAX];
	size_t len = handle_value(in, p, fh);

	fmt_index_name(fh, len, hex);
	snprintf(out, size, "%s", len ? hex : "#1");
}

static size_t redirect_value(struct input *in, char *out, size_t size)
{
	static const char *const parts[] = { "a",  "b",  "c",  "d", "/", "/", "/a",
					     "/b", "/c", "..", ".", "",  "//" };
	size_t len = 0;

	for (unsigned int n = 1 + below(in, 5); n; n--) {
		const char *part = parts[below(in, sizeof(parts) / sizeof(parts[0]))];

		if (len + strlen(part) >= size)
			break;
		memcpy(out + len, part, strlen(part));
		len += strlen(part);
	}
	return len;
}

static size_t raw_value(struct input *in, uint8_t *out, size_t size)
{
	size_t len = below(in, (unsigned int)size);

	for (size_t n = 0; n < len; n++)
		out[n] = byte(in);
	return len;
}

/* Owner, mode and type of an object, mostly of a layer's root: without it the others mean nothing.
 */
static void add_override(struct input *in, struct plan *p)
{
	static const char *const values[] = {
		"0:0:0755",           "0:0:0755:dir",
		"1:2:04711",          "1:2:0644:file",
		"3:4:0640:pipe",      "0:0:0666:char-1-3",
		"0:6:0660:block-8-0", "0:0:00:char-0-0",
		"5:5:0777:symlink",   "0:0:0755:socket",
		"0:0:100644",         "-1:0:0755",
		"65534:65534:03777",  "0:0",
	};
	uint8_t bits = byte(in);
	const char *path = p->made[bits & 1 ? below(in, LAYERS) : below(in, p->count)].path;
	const char *name = fmt_override_name((bits >> 1) % FMT_OVERRIDE_COUNT);
	const char *word = values[below(in, sizeof(values) / sizeof(values[0]))];
	uint8_t value[FMT_OVERRIDE_MAX + 8];
	size_t len = strlen(word);

	memcpy(value, word, len);
	if (bits & 128)
		len = raw_value(in, value, sizeof(value));
	lsetxattr(path, name, value, len, 0);
	if (bits & 64)
		lsetxattr(path, "user.containers.override_security.capability", value, len, 0);
}

static void add_mark(struct input *in, struct plan *p)
{
	static const char *const words[] = { "y",   "x",   "",    "a",   "ai",
					     "U+0", "U-1", "L+1", "L-2", "U+99" };
	const char *path = p->made[below(in, p->count)].path;
	enum fmt_xattr which = below(in, FMT_XATTR_COUNT + (p->overrides ? 4 : 0));
	uint8_t value[FMT_FH_MAX];
	size_t len = 0;

	if (which >= FMT_XATTR_COUNT) {
		add_override(in, p);
		return;
	}

	switch (below(in, 4)) {
	case 0: {
		const char *word = words[below(in, sizeof(words) / sizeof(words[0]))];

		len = strlen(word);
		memcpy(value, word, len);
		break;
	}
	case 1: len = raw_value(in, value, 80); break;
	default:
		if (which == FMT_REDIRECT)
			len = redirect_value(in, (char *)value, sizeof(value));
		else if (which == FMT_ORIGIN || which == FMT_UPPER)
			len = handle_value(in, p, value);
		else if (which != FMT_METACOPY)
			value[len++] = 'y';
	}
	lsetxattr(path, fmt_xattr_name(p->userxattr, which), value, len, 0);
}

static void make_layers(struct input *in, struct plan *p)
{
	mkdir("w", 0755);
	for (unsigned int n = 0; n < LAYERS; n++) {
		snprintf(p->made[n].path, sizeof(p->made[n].path), "%s", layer_names[n]);
		p->made[n].is_dir = true;
		mkdir(layer_names[n], 0755);
	}
	p->count = LAYERS;
	for (unsigned int n = below(in, MAX_OBJECTS - LAYERS); n; n--) {
		add_object(in, p);
		while (byte(in) & 1)
			add_mark(in, p);
	}
}

/* Names, types, sizes and number of marks: what a lower layer must not lose or win. */
static uint64_t sum_of(const char *path, unsigned int depth)
{
	uint64_t sum = 1469598103934665603u;
	DIR *dir = opendir(path);
	struct dirent *e;

	while (dir && (e = readdir(dir))) {
		char sub[512];
		char list[4096];
		struct stat st;
		uint64_t one;

		if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, "..") ||
		    (size_t)snprintf(sub, sizeof(sub), "%s/%s", path, e->d_name) >= sizeof(sub) ||
		    lstat(sub, &st) < 0)
			continue;
		one = st.st_ino * 31 + st.st_mode + (uint64_t)st.st_mtim.tv_nsec * 7 +
		      (uint64_t)st.st_size * 131 + st.st_nlink * 17;
		one = one * 31 + (uint64_t)llistxattr(sub, list, sizeof(list));
		if (S_ISDIR(st.st_mode) && depth)
			one ^= sum_of(sub, depth - 1);
		sum += one * 1099511628211u; /* in whatever order they come */
	}
	if (dir)
		closedir(dir);
	return sum;
}

/* --- the union ---------------------------------------------------------------------------------*/

struct driver {
	struct ovl *o;
	struct input *in;
	struct ovl_caller caller;
	ovl_node nodes[MAX_NODES]; /* each with one lookup */
	unsigned int count;
	unsigned int walked;
};

static void sane(int64_t result)
{
	check(result >= -4095);
}

static bool keep(struct driver *d, ovl_node node)
{
	if (d->count == MAX_NODES)
		return false;
	d->nodes[d->count++] = node;
	return true;
}

static ovl_node some(struct driver *d)
{
	unsigned int n = below(d->in, d->count + 1);

	return n == d->count ? OVL_ROOT : d->nodes[n];
}

static void look_at(struct driver *d, ovl_node node, const struct statx *st)
{
	char buf[4096];
	unsigned int flags;
	ssize_t n;

	sane(ovl_getattr(d->o, node, &(struct statx){ 0 }));
	n = ovl_listxattr(d->o, &d->caller, node, buf, sizeof(buf));
	sane(n);
	for (const char *name = buf; n > 0 && name < buf + n; name += strlen(name) + 1) {
		char value[256];

		check(memchr(name, 0, (size_t)(buf + n - name)));
		sane(ovl_getxattr(d->o, node, name, value, sizeof(value)));
	}
	if (S_ISLNK(st->stx_mode))
		sane(ovl_readlink(d->o, node, buf, sizeof(buf)));
	if (!S_ISREG(st->stx_mode))
		return;
	n = ovl_read(d->o, node, buf, sizeof(buf), 0);
	sane(n);
	check(n <= (ssize_t)sizeof(buf));
	sane(ovl_get_flags(d->o, node, &flags));
	sane(ovl_lseek(d->o, node, 0, SEEK_DATA));
}

struct filling {
	struct driver *d;
	unsigned int first; /* of the nodes that this listing has brought */
	mode_t modes[MAX_NODES];
	unsigned int seen;
};

static bool fill(void *ctx, const struct ovl_dirent *e)
{
	struct filling *f = ctx;

	check(strlen(e->name) == e->name_len && !memchr(e->name, '/', e->name_len));
	f->seen++;
	if (!e->entry)
		return true;
	if (!keep(f->d, e->entry->node))
		return false;
	f->modes[f->d->count - 1 - f->first] = e->entry->attr.stx_mode;
	return true;
}

static void walk(struct driver *d, ovl_node node, unsigned int depth)
{
	struct filling f = { .d = d, .first = d->count };
	unsigned int end;

	sane(ovl_readdir(d->o, node, 0, OVL_LOOK_ALL, fill, &f));
	end = d->count;
	for (unsigned int n = f.first; n < end && d->walked < MAX_WALKED; n++) {
		struct statx st = { .stx_mode = (uint16_t)f.modes[n - f.first] };

		d->walked++;
		look_at(d, d->nodes[n], &st);
		if (S_ISDIR(st.stx_mode) && depth)
			walk(d, d->nodes[n], depth - 1);
	}
}

static void look_up(struct driver *d, ovl_node parent, const char *name)
{
	struct ovl_entry e;
	int err = ovl_lookup(d->o, parent, name, &e);

	sane(err);
	if (err == 0 && !keep(d, e.node))
		ovl_forget(d->o, e.node, 1);
}

static void made_entry(struct driver *d, int err, const struct ovl_entry *e)
{
	sane(err);
	if (err == 0 && !keep(d, e->node))
		ovl_forget(d->o, e->node, 1);
}

enum op {
	OP_LOOKUP,
	OP_CHMOD,
	OP_TRUNCATE,
	OP_WRITE,
	OP_SETXATTR,
	OP_RENAME,
	OP_RENAME_AGAIN, /* the more often of the two */
	OP_EXCHANGE,
	OP_LINK,
	OP_UNLINK,
	OP_RMDIR,
	OP_MKDIR,
	OP_CREATE,
	OP_SYMLINK,
	OP_WALK,
	OP_RESOLVE,
	OPS,
};

static void set_attributes(struct driver *d, bool size)
{
	struct ovl_setattr set = { .valid = size ? OVL_SET_SIZE : OVL_SET_MODE,
				   .mode = 0600,
				   .size = below(d->in, 20) };

	sane(ovl_setattr(d->o, &d->caller, some(d), &set, &(struct statx){ 0 }));
}

static void create_file(struct driver *d, ovl_node parent, const char *name)
{
	struct ovl_entry e;
	int contents = -1;
	int err = ovl_create_file(d->o, &d->caller, parent, name, 0644, O_RDWR | O_CREAT, &e,
				  below(d->in, 2) ? &contents : NULL);

	if (contents >= 0)
		close(contents);
	if (err == 0)
		ovl_release(d->o, e.node, O_RDWR);
	made_entry(d, err, &e);
}

static void resolve(struct driver *d)
{
	struct ovl_identity id;
	struct ovl_entry e;
	int err = ovl_identify(d->o, some(d), &id);

	sane(err);
	if (err == 0)
		made_entry(d, ovl_resolve(d->o, &d->caller, id.number, &e), &e);
}

/* Whether @node is @above or somewhere in it. */
static bool is_in(struct driver *d, ovl_node node, ovl_node above)
{
	struct ovl_entry e;

	for (unsigned int n = 0; n < 64 && node != above; n++) {
		if (node == OVL_ROOT || ovl_lookup(d->o, node, "..", &e) < 0)
			return false;
		ovl_forget(d->o, e.node, 1);
		node = e.node;
	}
	return true;
}

static bool found_above(struct driver *d, ovl_node dir, const char *name, ovl_node below_it)
{
	struct ovl_entry e;
	bool found;

	if (ovl_lookup(d->o, dir, name, &e) < 0)
		return false;
	found = is_in(d, below_it, e.node);
	ovl_forget(d->o, e.node, 1);
	return found;
}

/* The VFS lets no directory go into itself, and asks nobody. */
static void rename_one(struct driver *d, ovl_node from, const char *name, const char *other,
		       unsigned int flags)
{
	ovl_node to = some(d);

	if (!found_above(d, from, name, to) && !found_above(d, to, other, from))
		sane(ovl_rename(d->o, &d->caller, from, name, to, other, flags));
}

static void do_one(struct driver *d)
{
	enum op op = below(d->in, OPS);
	ovl_node a = some(d);
	const char *name = names[below(d->in, NAMES)];
	const char *other = names[below(d->in, NAMES)];
	struct ovl *o = d->o;
	struct ovl_entry e;

	switch (op) {
	case OP_LOOKUP: look_up(d, a, name); break;
	case OP_CHMOD: set_attributes(d, false); break;
	case OP_TRUNCATE: set_attributes(d, true); break;
	case OP_WRITE: sane(ovl_write(o, &d->caller, a, "changed", 7, 2, true)); break;
	case OP_SETXATTR:
		sane(ovl_setxattr(o, &d->caller, a, "trusted.overlay.opaque", "y", 1, 0, false));
		break;
	case OP_RENAME:
	case OP_RENAME_AGAIN: rename_one(d, a, name, other, 0); break;
	case OP_EXCHANGE: rename_one(d, a, name, other, RENAME_EXCHANGE); break;
	case OP_LINK: made_entry(d, ovl_link(o, &d->caller, a, some(d), name, &e), &e); break;
	case OP_UNLINK: sane(ovl_unlink(o, &d->caller, a, name)); break;
	case OP_RMDIR: sane(ovl_rmdir(o, &d->caller, a, name)); break;
	case OP_MKDIR: made_entry(d, ovl_mkdir(o, &d->caller, a, name, 0755, &e), &e); break;
	case OP_CREATE: create_file(d, a, name); break;
	case OP_SYMLINK: made_entry(d, ovl_symlink(o, &d->caller, a, name, other, &e), &e); break;
	case OP_WALK: walk(d, a, 1); break;
	default: resolve(d); break;
	}
}

static void drive(struct ovl *o, struct input *in, bool change)
{
	struct driver d = { .o = o, .in = in, .caller = { .uid = 0, .umask = 022 } };

	walk(&d, OVL_ROOT, MAX_DEPTH);
	for (unsigned int n = change ? below(in, MAX_OPS) : 0; n; n--) {
		d.walked = 0;
		do_one(&d);
	}
	while (d.count)
		ovl_forget(o, d.nodes[--d.count], 1);
}

static void choose_features(struct input *in, struct ovl_config *c, struct plan *p)
{
	uint8_t bits = byte(in);
	uint8_t more = byte(in);

	c->features.redirect = bits & 3;
	c->features.metacopy = bits & 4;
	c->features.index = bits & 8;
	c->features.nfs_export = bits & 16;
	c->features.userxattr = p->userxattr = bits & 32 && bits & 64;
	c->features.uuid = more & 3;
	c->features.xino = (more >> 2) % 3;
	c->features.verity = (more >> 4) % 3;
	c->features.fsync = OVL_FSYNC_AUTO;
	c->xattr_prefix = p->userxattr ? OVL_XATTR_USER : OVL_XATTR_TRUSTED;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input in = { data, size };
	struct plan plan = { 0 };
	struct ovl_config config = { 0 };
	const char *lower[4] = { "l0", "l1", "l2", "d0" };
	uint64_t sums[4];
	char message[512];
	uint8_t shape = byte(&in);
	struct ovl *o;

	choose_features(&in, &config, &plan);
	config.compat.override = (shape >> 4 & 3) % 3;
	config.compat.whiteout_files = shape & 64;
	plan.overrides = config.compat.override || config.compat.whiteout_files;
	config.lower = lower;
	config.lower_count = 1 + shape % 3;
	if (shape & 4) {
		lower[config.lower_count++] = "d0";
		config.data_count = 1;
	}
	if (!(shape & 8)) {
		config.upper = "u";
		config.work = "w";
	}
	check(fchdir(place) == 0);
	make_layers(&in, &plan);
	for (unsigned int n = 0; n < config.lower_count; n++)
		sums[n] = sum_of(lower[n], MAX_DEPTH);
	/* the second time with what the first has left, in an index and elsewhere */
	for (unsigned int n = 0; n < 2; n++) {
		int err = ovl_create(&config, &o, message, sizeof(message));

		check(memchr(message, 0, sizeof(message)) || err == 0);
		check(err <= 0 && (err == 0 || message[0]));
		if (err < 0)
			break;
		drive(o, &in, n == 0);
		ovl_destroy(o);
	}
	for (unsigned int n = 0; n < config.lower_count; n++)
		check(sums[n] == sum_of(lower[n], MAX_DEPTH));
	clear(place, ".");
	check(fchdir(home) == 0);
	return 0;
}
