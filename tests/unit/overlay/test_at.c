/* SPDX-License-Identifier: MIT */
/*
 * System calls on "directory and name" or "object itself": each on every kind of object, both ways,
 * with the newest calls, as at_force_old_kernel() has it, and on a kernel that really lacks them (a
 * seccomp filter), as root and as a user.
 *
 * What a run does it writes down, with what is expected; since some of the ways cannot be taken
 * back each run is a process of its own, and this one reads what they wrote.
 */
#include "helpers.h"

#include <errno.h>
#include <grp.h>
#include <linux/filter.h>
#include <linux/fs.h>
#include <linux/limits.h>
#include <linux/seccomp.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <sys/xattr.h>

#include "util/at.h"

/* Expected to be the same in every run, but which it is depends on the kernel. */
#define ANY INT32_MIN

struct result {
	char what[160];
	int64_t got;
	int64_t want;
};

struct results {
	size_t count;
	bool done;
	struct result list[4096];
};

static struct scratch scratch;
static struct results *results; /* of this run; shared memory */
static char about[64];          /* what the next ones are about */

static void note(int64_t want, int64_t got, const char *what)
{
	struct result *r = &results->list[results->count];

	if (results->count + 1 < ARRAY_SIZE(results->list))
		results->count++;
	snprintf(r->what, sizeof(r->what), "%s: %s", about, what);
	r->got = got;
	r->want = want;
}

/* Of what should be an fd: 0 or the error. Closes it unless @keep. */
static int64_t opened(int fd, int *keep)
{
	if (keep)
		*keep = fd;
	else
		close_fd(fd);
	return fd < 0 ? fd : 0;
}

static void must(bool truth)
{
	if (!truth)
		abort(); /* the parent sees that the run was not done */
}

enum kind { REGULAR, DIRECTORY, SYMLINK, DANGLING, FIFO, SOCKET, KINDS };

static const struct {
	const char *name;
	mode_t type;
} kinds[KINDS] = {
	[REGULAR] = { "file", S_IFREG },    [DIRECTORY] = { "directory", S_IFDIR },
	[SYMLINK] = { "symlink", S_IFLNK }, [DANGLING] = { "dangling symlink", S_IFLNK },
	[FIFO] = { "fifo", S_IFIFO },       [SOCKET] = { "socket", S_IFSOCK },
};

static void make_file(int dir, const char *name, const char *text)
{
	int fd = openat(dir, name, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0600);

	must(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text));
	close(fd);
}

static void make_object(int dir, const char *name, enum kind kind)
{
	switch (kind) {
	case REGULAR: make_file(dir, name, "hello"); break;
	case DIRECTORY: must(mkdirat(dir, name, 0700) == 0); break;
	case SYMLINK: must(symlinkat("target", dir, name) == 0); break;
	case DANGLING: must(symlinkat("nowhere", dir, name) == 0); break;
	default: must(mknodat(dir, name, kinds[kind].type | 0600, 0) == 0); break;
	}
}

static int make_dir(int in, const char *name)
{
	int fd;

	must(mkdirat(in, name, 0700) == 0);
	fd = openat(in, name, O_PATH | O_DIRECTORY | O_CLOEXEC);
	must(fd >= 0);
	return fd;
}

static bool lists(const char *list, ssize_t size, const char *name)
{
	for (ssize_t at = 0; at < size; at += (ssize_t)strlen(list + at) + 1)
		if (!strcmp(list + at, name))
			return true;
	return false;
}

static void try_xattrs(int fd, const char *name, enum kind kind, bool root)
{
	bool has_user = kind == REGULAR || kind == DIRECTORY;
	const char *xattr = root ? "trusted.t" : "user.t";
	char value[16] = "";
	char list[1024];
	char long_name[300];
	autofree char *big = calloc(1, XATTR_SIZE_MAX + 1);
	ssize_t n;

	must(big);
	note(has_user ? 0 : -EPERM, at_setxattr(fd, name, "user.u", "u", 1, 0), "set user.u");
	note(has_user ? 1 : ANY, at_getxattr(fd, name, "user.u", value, sizeof(value)),
	     "get user.u");
	note(root ? 0 : -EPERM, at_setxattr(fd, name, "trusted.p", "u", 1, 0), "set trusted.p");
	note(root ? 1 : -ENODATA, at_getxattr(fd, name, "trusted.p", value, sizeof(value)),
	     "get trusted.p");
	if (!root && !has_user)
		return;

	note(-ENODATA, at_getxattr(fd, name, xattr, value, sizeof(value)), "get before set");
	note(-ENODATA, at_setxattr(fd, name, xattr, "12345", 5, XATTR_REPLACE), "replace");
	note(0, at_setxattr(fd, name, xattr, "12345", 5, XATTR_CREATE), "create");
	note(-EEXIST, at_setxattr(fd, name, xattr, "12345", 5, XATTR_CREATE), "create again");
	note(5, at_getxattr(fd, name, xattr, NULL, 0), "size");
	note(5, at_getxattr(fd, name, xattr, value, 5), "get");
	note(0, memcmp(value, "12345", 5), "value");
	note(-ERANGE, at_getxattr(fd, name, xattr, value, 4), "get in too little");
	note(0, at_setxattr(fd, name, xattr, "", 0, 0), "set to nothing");
	note(0, at_getxattr(fd, name, xattr, value, sizeof(value)), "get nothing");
	note(-EINVAL, at_setxattr(fd, name, xattr, "x", 1, 64), "set with unknown flags");
	note(-E2BIG, at_setxattr(fd, name, xattr, big, XATTR_SIZE_MAX + 1, 0), "set too much");

	n = at_listxattr(fd, name, list, sizeof(list));
	note(ANY, n, "list");
	note(1, lists(list, n, xattr), "is listed");
	note(ANY, at_listxattr(fd, name, NULL, 0), "size of the list");
	note(n, at_listxattr(fd, name, list, (size_t)max(n, (ssize_t)0)), "list, exactly");
	note(-ERANGE, at_listxattr(fd, name, list, 3), "list in too little");

	memset(long_name, 'x', sizeof(long_name));
	memcpy(long_name, "user.", 5);
	long_name[XATTR_NAME_MAX + 1] = '\0';
	note(-ERANGE, at_setxattr(fd, name, long_name, "x", 1, 0), "set a name too long");
	note(-ERANGE, at_getxattr(fd, name, long_name, value, 1), "get a name too long");
	note(-ERANGE, at_removexattr(fd, name, long_name), "remove a name too long");
	note(-ERANGE, at_getxattr(fd, name, "", value, 1), "get no name");
	note(-EOPNOTSUPP, at_getxattr(fd, name, "nowhere.x", value, 1), "get of no namespace");

	note(0, at_removexattr(fd, name, xattr), "remove");
	note(-ENODATA, at_removexattr(fd, name, xattr), "remove again");
}

static void try_attributes(int fd, const char *name, enum kind kind, bool root)
{
	static const struct timespec when[2] = { { 100, 5000 }, { 200, 7000 } };
	static const struct timespec omit[2] = { { 0, UTIME_OMIT }, { 0, UTIME_OMIT } };
	static const struct timespec wrong[2] = { { 0, 1000000000 }, { 0, 0 } };
	bool link = kind == SYMLINK || kind == DANGLING;
	struct statx st;
	struct statx after;

	note(0, at_statx(fd, name, &st), "statx");
	note(kinds[kind].type, st.stx_mode & S_IFMT, "type");
	note(AT_STATX_WANTED, st.stx_mask & AT_STATX_WANTED, "what statx knows");

	/* newer kernels have no mode on symlinks, older ones did not mind */
	note(link ? ANY : 0, at_chmod(fd, name, 0641), "chmod");
	at_statx(fd, name, &after);
	note(link ? ANY : 0641, after.stx_mode & 07777, "mode");

	note(root ? 0 : -EPERM, at_chown(fd, name, 11, 12), "chown");
	note(0, at_chown(fd, name, (uid_t)-1, (gid_t)-1), "chown of nothing");
	at_statx(fd, name, &after);
	note(root ? 11 : st.stx_uid, after.stx_uid, "owner");
	note(root ? 12 : st.stx_gid, after.stx_gid, "group");

	note(0, at_utimens(fd, name, when), "utimens");
	note(0, at_utimens(fd, name, omit), "utimens of nothing");
	note(-EINVAL, at_utimens(fd, name, wrong), "utimens of no time");
	at_statx(fd, name, &after);
	note(100, after.stx_atime.tv_sec, "atime");
	note(5000, after.stx_atime.tv_nsec, "atime, nanoseconds");
	note(200, after.stx_mtime.tv_sec, "mtime");
	note(7000, after.stx_mtime.tv_nsec, "mtime, nanoseconds");
	note(0, at_utimens(fd, name, NULL), "utimens with now");
	at_statx(fd, name, &after);
	note(1, after.stx_mtime.tv_sec > 1000000, "mtime is now");
}

static void try_open(int fd, const char *name, enum kind kind)
{
	bool link = kind == SYMLINK || kind == DANGLING;
	int readable = link ? -ELOOP : kind == SOCKET ? -ENXIO : 0;
	int writable = kind == DIRECTORY ? -EISDIR : readable;
	struct statx st;
	struct statx same;
	char text[16];
	ssize_t n;
	int got;

	note(0, opened(at_open(fd, name, O_PATH), &got), "open as a path");
	at_statx(fd, name, &st);
	note(0, at_statx(got, "", &same), "statx of that");
	note(1, same.stx_ino == st.stx_ino && same.stx_mode == st.stx_mode, "is the same");
	note(FD_CLOEXEC, fcntl(got, F_GETFD), "closes on exec");
	close_fd(got);

	note(readable, opened(at_open(fd, name, O_RDONLY | O_NONBLOCK), &got), "open to read");
	note(readable ? -1 : FD_CLOEXEC, fcntl(got, F_GETFD), "closes on exec");
	close_fd(got);
	note(writable, opened(at_open(fd, name, O_RDWR | O_NONBLOCK), &got), "open to write");
	if (kind == REGULAR) {
		note(5, write(got, "HELLO", 5), "write");
		n = pread(got, text, sizeof(text), 0);
		note(5, n, "read");
		note(0, memcmp(text, "HELLO", 5), "what is read");
	}
	close_fd(got);
	note(kind == DIRECTORY ? 0
	     : link            ? ANY
			       : -ENOTDIR,
	     opened(at_open(fd, name, O_RDONLY | O_DIRECTORY | O_NONBLOCK), NULL),
	     "open as a directory");
}

static void try_links(int dir, int fd, const char *name, enum kind kind)
{
	bool link = kind == SYMLINK || kind == DANGLING;
	const char *target = kind == SYMLINK ? "target" : "nowhere";
	struct statx st;
	char text[16] = "";

	if (link) {
		note(strlen(target), at_readlink(fd, name, text, sizeof(text)), "readlink");
		note(0, strcmp(text, target), "where to");
		note(3, at_readlink(fd, name, text, 3), "readlink in too little");
	} else {
		note(*name ? -EINVAL : -ENOENT, at_readlink(fd, name, text, sizeof(text)),
		     "readlink");
	}
	note(kind == DIRECTORY ? -EPERM : 0, at_link(fd, name, dir, "another"), "link");
	note(kind == DIRECTORY ? ANY : -EEXIST, at_link(fd, name, dir, "another"), "link again");
	at_statx(fd, name, &st);
	note(2, st.stx_nlink, "links");
	if (kind != DIRECTORY) {
		note(0, at_statx(dir, "another", &st), "statx of the link");
		note(kinds[kind].type, st.stx_mode & S_IFMT, "type of the link");
		note(0, at_unlink(dir, "another", 0), "unlink");
		note(-ENOENT, at_unlink(dir, "another", 0), "unlink again");
	}
}

/* What a symlink leads to is never meant. */
static void check_target(int dir)
{
	struct statx st;
	char list[256];

	note(0, at_statx(dir, "target", &st), "statx of the target");
	note(0600, st.stx_mode & 07777, "mode of the target");
	note(geteuid(), st.stx_uid, "owner of the target");
	note(1, st.stx_nlink, "links of the target");
	note(1, st.stx_mtime.tv_sec > 1000000, "mtime of the target");
	note(0, at_listxattr(dir, "target", list, sizeof(list)), "xattrs of the target");
	note(-ENOENT, at_statx(dir, "nowhere", &st), "statx of the missing target");
}

static void try_objects(int base, bool root)
{
	for (enum kind kind = 0; kind < KINDS; kind++) {
		for (int by_fd = 0; by_fd < 2; by_fd++) {
			char where[64];
			int dir;
			int fd;

			snprintf(where, sizeof(where), "%s%s", kinds[kind].name,
				 by_fd ? " by fd" : "");
			dir = make_dir(base, where);
			make_file(dir, "target", "target");
			make_object(dir, "object", kind);
			snprintf(about, sizeof(about), "%s", where);
			fd = by_fd ? openat(dir, "object", O_PATH | O_NOFOLLOW | O_CLOEXEC) : dir;
			must(fd >= 0);
			try_xattrs(fd, by_fd ? "" : "object", kind, root);
			try_open(fd, by_fd ? "" : "object", kind);
			try_links(dir, fd, by_fd ? "" : "object", kind);
			try_attributes(fd, by_fd ? "" : "object", kind, root);
			check_target(dir);
			if (by_fd)
				close(fd);
			close(dir);
		}
	}
}

/* Every function on a name that cannot be reached. */
static void try_unreachable(int dir, const char *name, int want, const char *what)
{
	static const struct timespec now[2] = { { 0, UTIME_NOW }, { 0, UTIME_NOW } };
	struct statx st;
	char buf[64];

	snprintf(about, sizeof(about), "%s", what);
	note(want, at_statx(dir, name, &st), "statx");
	note(want, at_readlink(dir, name, buf, sizeof(buf)), "readlink");
	note(want, at_getxattr(dir, name, "user.x", buf, sizeof(buf)), "getxattr");
	note(want, at_listxattr(dir, name, buf, sizeof(buf)), "listxattr");
	note(want, at_setxattr(dir, name, "user.x", "x", 1, 0), "setxattr");
	note(want, at_removexattr(dir, name, "user.x"), "removexattr");
	note(want, at_chmod(dir, name, 0600), "chmod");
	note(want, at_chown(dir, name, (uid_t)-1, (gid_t)-1), "chown");
	note(want, at_utimens(dir, name, now), "utimens");
	note(want, opened(at_open(dir, name, O_RDONLY), NULL), "open");
	note(want, opened(at_open(dir, name, O_PATH), NULL), "open as a path");
	note(want, opened(at_open_beneath(dir, name, O_RDONLY), NULL), "open beneath");
	note(want, at_link(dir, name, dir, "new"), "link");
	note(want, at_rename(dir, name, dir, "new", 0), "rename");
	note(want, at_unlink(dir, name, 0), "unlink");
}

static void try_names(int base)
{
	char name[NAME_MAX + 2];
	int dir = make_dir(base, "names");
	int file;

	memset(name, 'n', sizeof(name));
	name[NAME_MAX + 1] = '\0';
	try_unreachable(dir, "missing", -ENOENT, "missing");
	try_unreachable(dir, name, -ENAMETOOLONG, "name too long");
	make_file(dir, "file", "");
	file = openat(dir, "file", O_PATH | O_CLOEXEC);
	must(file >= 0);
	try_unreachable(file, "x", -ENOTDIR, "below a file");
	close(file);

	name[NAME_MAX] = '\0';
	snprintf(about, sizeof(about), "longest name");
	make_file(dir, name, "");
	note(0, at_setxattr(dir, name, "user.x", "x", 1, 0), "setxattr");
	note(1, at_getxattr(dir, name, "user.x", NULL, 0), "getxattr");
	note(0, at_removexattr(dir, name, "user.x"), "removexattr");
	note(0, at_chmod(dir, name, 0600), "chmod");
	note(0, opened(at_open(dir, name, O_RDONLY), NULL), "open");
	note(0, opened(at_open_beneath(dir, name, O_RDONLY), NULL), "open beneath");
	close(dir);
}

static void try_renames(int base)
{
	int dir = make_dir(base, "renames");
	struct statx st;

	snprintf(about, sizeof(about), "rename");
	make_file(dir, "a", "a");
	make_file(dir, "b", "bb");
	note(-EEXIST, at_rename(dir, "a", dir, "b", RENAME_NOREPLACE), "noreplace");
	note(0, at_rename(dir, "a", dir, "b", RENAME_EXCHANGE), "exchange");
	note(0, at_statx(dir, "a", &st), "statx");
	note(2, st.stx_size, "size");
	note(-ENOENT, at_rename(dir, "a", dir, "c", RENAME_EXCHANGE), "exchange with nothing");
	note(0, at_rename(dir, "a", dir, "c", RENAME_NOREPLACE), "noreplace of nothing");
	note(0, at_rename(dir, "b", dir, "c", 0), "replace");
	note(0, at_statx(dir, "c", &st), "statx");
	note(1, st.stx_size, "size");
	note(-EINVAL, at_rename(dir, "c", dir, "d", RENAME_EXCHANGE | RENAME_NOREPLACE), "both");
	must(mkdirat(dir, "sub", 0700) == 0);
	make_file(dir, "sub/x", "");
	note(-EISDIR, at_unlink(dir, "sub", 0), "unlink of a directory");
	note(-ENOTEMPTY, at_unlink(dir, "sub", AT_REMOVEDIR), "rmdir of what is not empty");
	note(-ENOTDIR, at_unlink(dir, "c", AT_REMOVEDIR), "rmdir of a file");
	must(unlinkat(dir, "sub/x", 0) == 0);
	note(0, at_unlink(dir, "sub", AT_REMOVEDIR), "rmdir");
	close(dir);
}

static void try_everything(int base, bool root)
{
	try_objects(base, root);
	try_names(base);
	try_renames(base);
}

/* d/e/f, and ways to lead astray */
static int make_beneath(int base)
{
	int dir = make_dir(base, "beneath");

	make_file(base, "outside", "");
	must(mkdirat(dir, "d", 0700) == 0);
	must(mkdirat(dir, "d/e", 0700) == 0);
	make_file(dir, "d/e/f", "");
	make_file(dir, "..x", "");
	make_file(dir, "...", "");
	must(symlinkat("d", dir, "link") == 0);
	must(symlinkat("..", dir, "d/up") == 0);
	must(symlinkat("/", dir, "slash") == 0);
	must(symlinkat("d/e/f", dir, "to-f") == 0);
	return dir;
}

static void try_path(int dir, const char *path, int flags, int want)
{
	char what[80];
	int fd;

	snprintf(what, sizeof(what), "'%s'%s", path, flags & O_PATH ? "" : " to read");
	note(want, opened(at_open_beneath(dir, path, flags), &fd), what);
	note(fd < 0 ? -1 : FD_CLOEXEC, fcntl(fd, F_GETFD), "closes on exec");
	close_fd(fd);
}

static void try_beneath(int base, bool root)
{
	static const struct {
		const char *path;
		int want;
	} paths[] = {
		{ "d", 0 },
		{ "d/e", 0 },
		{ "d/e/f", 0 },
		{ ".", 0 },
		{ "./d/./e", 0 },
		{ "..x", 0 },
		{ "...", 0 },
		{ "missing", -ENOENT },
		{ "d/missing/f", -ENOENT },
		{ "d/e/f/x", -ENOTDIR },
		/* out of it, and not even when the path comes back */
		{ "..", -EXDEV },
		{ "../outside", -EXDEV },
		{ "../beneath/d", -EXDEV },
		{ "d/..", -EXDEV },
		{ "d/../d", -EXDEV },
		{ "d/e/../../d", -EXDEV },
		{ "d/e/../../../outside", -EXDEV },
		{ "/", -EXDEV },
		{ "/etc", -EXDEV },
		{ "//", -EXDEV },
		/* through symlinks */
		{ "link/e", -ELOOP },
		{ "link/e/f", -ELOOP },
		{ "d/up/d", -ELOOP },
		{ "d/up/d/e/f", -ELOOP },
		{ "slash/etc", -ELOOP },
		/* as long as all agree */
		{ "", ANY },
		{ "d/", ANY },
		{ "d//e", ANY },
		{ "d/e/f/", ANY },
		{ "link/", ANY },
	};
	char path[64];
	struct statx st;
	int dir = make_beneath(base);
	int proc = open("/proc/self", O_PATH | O_DIRECTORY | O_CLOEXEC);
	int fd;

	must(proc >= 0);
	snprintf(about, sizeof(about), "open beneath");
	for (size_t i = 0; i < ARRAY_SIZE(paths); i++) {
		try_path(dir, paths[i].path, O_PATH, paths[i].want);
		try_path(dir, paths[i].path, O_RDONLY, paths[i].want);
	}
	/* a symlink at the end is opened as such, or not at all */
	try_path(dir, "link", O_RDONLY, -ELOOP);
	try_path(dir, "to-f", O_RDONLY, -ELOOP);
	try_path(dir, "d/up", O_RDONLY, -ELOOP);
	note(0, opened(at_open_beneath(dir, "d/up", O_PATH), &fd), "a symlink as a path");
	at_statx(fd, "", &st);
	note(S_IFLNK, st.stx_mode & S_IFMT, "its type");
	close_fd(fd);
	/* magic links lead anywhere */
	snprintf(path, sizeof(path), "fd/%d", dir);
	note(-ELOOP, opened(at_open_beneath(proc, path, O_RDONLY), NULL), "a magic link");
	snprintf(path, sizeof(path), "fd/%d/d", dir);
	note(-ELOOP, opened(at_open_beneath(proc, path, O_RDONLY), NULL), "below a magic link");
	note(-ELOOP, opened(at_open_beneath(proc, "root/etc", O_PATH), NULL), "below the root");
	close(proc);
	close(dir);
}

/*
 * Linux 5.4 or so: what at.h speaks of gives ENOSYS, and AT_EMPTY_PATH is unknown to utimensat(2)
 * and, without rights, to linkat(2).
 */
static bool become_old(void)
{
#define LOW(arg)       (offsetof(struct seccomp_data, args[arg]) + (__BYTE_ORDER == __BIG_ENDIAN ? 4 : 0))
#define ANSWER(error)  BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (error))
#define IF_CALL(nr, n) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, nr, 0, n)
	struct sock_filter filter[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		IF_CALL(437, 1), /* openat2 */
		ANSWER(ENOSYS),
		IF_CALL(452, 1), /* fchmodat2 */
		ANSWER(ENOSYS),
		/* setxattrat, getxattrat, listxattrat, removexattrat */
		BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, 463, 0, 2),
		BPF_JUMP(BPF_JMP | BPF_JGT | BPF_K, 466, 1, 0),
		ANSWER(ENOSYS),
		IF_CALL(SYS_utimensat, 3),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, LOW(3)),
		BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, AT_EMPTY_PATH, 0, 5),
		ANSWER(EINVAL),
		IF_CALL(SYS_linkat, 3),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, LOW(4)),
		BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, AT_EMPTY_PATH, 0, 1),
		ANSWER(ENOENT),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { .len = ARRAY_SIZE(filter), .filter = filter };

	return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
	       prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

enum kernel { NEW, FORCED_OLD, REALLY_OLD };

#define NOBODY 65534

/* In a process of its own, in an empty directory of its own. */
static struct results *run(void (*work)(int base, bool root), enum kernel kernel, bool root)
{
	struct results *r =
		mmap(NULL, sizeof(*r), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	pid_t pid;
	int status;

	assert_true(r != MAP_FAILED);
	scratch_make(&scratch, "/var/tmp");
	if (!root)
		assert_int_equal(fchown(scratch.fd, NOBODY, NOBODY), 0);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		results = r;
		alarm(60);
		umask(0);
		if (!root && (setgroups(0, NULL) < 0 || setresgid(NOBODY, NOBODY, NOBODY) < 0 ||
			      setresuid(NOBODY, NOBODY, NOBODY) < 0))
			_exit(1);
		if (kernel == FORCED_OLD)
			at_force_old_kernel();
		if (kernel == REALLY_OLD && !become_old())
			_exit(2);
		work(scratch.fd, root);
		r->done = r->count + 1 < ARRAY_SIZE(r->list);
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(scratch_remove(&scratch), 0);
	if (WIFEXITED(status) && WEXITSTATUS(status) == 2) {
		munmap(r, sizeof(*r));
		skip_because("no seccomp filters here");
	}
	if (!WIFEXITED(status) || WEXITSTATUS(status) != 0 || !r->done)
		fail_msg("it ended with status %#x after %zu results, the last '%s'", status,
			 r->count, r->count ? r->list[r->count - 1].what : "");
	return r;
}

static void assert_as_expected(struct results *r)
{
	unsigned int wrong = 0;

	for (size_t i = 0; i < r->count; i++) {
		const struct result *one = &r->list[i];

		if (one->want == ANY || one->got == one->want)
			continue;
		print_error("# %s gave %lld instead of %lld\n", one->what, (long long)one->got,
			    (long long)one->want);
		wrong++;
	}
	assert_int_equal(wrong, 0);
}

static void assert_alike(struct results *a, struct results *b)
{
	unsigned int wrong = 0;

	assert_int_equal(a->count, b->count);
	for (size_t i = 0; i < a->count; i++) {
		assert_string_equal(a->list[i].what, b->list[i].what);
		if (a->list[i].got == b->list[i].got)
			continue;
		print_error("# %s gave %lld one way and %lld the other\n", a->list[i].what,
			    (long long)a->list[i].got, (long long)b->list[i].got);
		wrong++;
	}
	assert_int_equal(wrong, 0);
}

static void compare(void (*work)(int base, bool root), enum kernel kernel, bool root)
{
	struct results *a;
	struct results *b;

	if (geteuid() != 0)
		skip_because("needs root");
	a = run(work, NEW, root);
	b = run(work, kernel, root);
	assert_alike(a, b);
	munmap(a, sizeof(*a));
	munmap(b, sizeof(*b));
}

static void expect(void (*work)(int base, bool root), bool root)
{
	struct results *r;

	if (geteuid() != 0)
		skip_because("needs root");
	r = run(work, NEW, root);
	assert_as_expected(r);
	munmap(r, sizeof(*r));
}

static int clean_up(void **state)
{
	return scratch_remove(&scratch);
}

static void test_every_call_on_every_object_as_root(void **state)
{
	expect(try_everything, true);
}

static void test_every_call_on_every_object_as_a_user(void **state)
{
	expect(try_everything, false);
}

static void test_without_the_newer_calls_it_is_the_same_as_root(void **state)
{
	compare(try_everything, FORCED_OLD, true);
}

static void test_without_the_newer_calls_it_is_the_same_as_a_user(void **state)
{
	compare(try_everything, FORCED_OLD, false);
}

static void test_a_kernel_that_lacks_them_is_the_same_as_root(void **state)
{
	compare(try_everything, REALLY_OLD, true);
}

static void test_a_kernel_that_lacks_them_is_the_same_as_a_user(void **state)
{
	compare(try_everything, REALLY_OLD, false);
}

static void test_opening_beneath_stays_beneath(void **state)
{
	expect(try_beneath, true);
}

static void test_opening_beneath_without_openat2_is_the_same(void **state)
{
	compare(try_beneath, FORCED_OLD, true);
}

static void test_opening_beneath_on_a_kernel_without_openat2_is_the_same(void **state)
{
	compare(try_beneath, REALLY_OLD, true);
}

/* Last: what it forces cannot be taken back. */
static void test_nothing_stays_open(void **state)
{
	static struct results own;
	unsigned int before;

	if (geteuid() != 0)
		skip_because("needs root");
	results = &own;
	for (int old = 0; old < 2; old++) {
		if (old)
			at_force_old_kernel();
		scratch_make(&scratch, "/var/tmp");
		before = open_fds();
		try_beneath(scratch.fd, true);
		try_everything(scratch.fd, true);
		assert_int_equal(open_fds(), before);
		assert_int_equal(scratch_remove(&scratch), 0);
	}
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_every_call_on_every_object_as_root),
		cmocka_unit_test(test_every_call_on_every_object_as_a_user),
		cmocka_unit_test(test_without_the_newer_calls_it_is_the_same_as_root),
		cmocka_unit_test(test_without_the_newer_calls_it_is_the_same_as_a_user),
		cmocka_unit_test(test_a_kernel_that_lacks_them_is_the_same_as_root),
		cmocka_unit_test(test_a_kernel_that_lacks_them_is_the_same_as_a_user),
		cmocka_unit_test(test_opening_beneath_stays_beneath),
		cmocka_unit_test(test_opening_beneath_without_openat2_is_the_same),
		cmocka_unit_test(test_opening_beneath_on_a_kernel_without_openat2_is_the_same),
		cmocka_unit_test_teardown(test_nothing_stays_open, clean_up),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
