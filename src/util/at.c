// SPDX-License-Identifier: MIT
#include "at.h"

#include <fcntl.h>
#include <limits.h>
#include <linux/fs.h>
#include <linux/openat2.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/xattr.h>

#include "base.h"

/* Numbers that the headers of Debian 12 do not know yet; the same on every architecture. */
#ifndef SYS_fchmodat2
#define SYS_fchmodat2 452
#endif
#ifndef SYS_setxattrat
#define SYS_setxattrat    463
#define SYS_getxattrat    464
#define SYS_listxattrat   465
#define SYS_removexattrat 466
#endif

#ifndef SYS_file_getattr
#define SYS_file_getattr 468
#endif

/* struct xattr_args of linux/xattr.h (6.13) */
struct xattr_at_args {
	uint64_t value __attribute__((aligned(8)));
	uint32_t size;
	uint32_t flags;
};

/* struct file_attr of linux/fs.h (6.17) */
struct file_attr_at {
	uint64_t xflags;
	uint32_t extsize;
	uint32_t nextents;
	uint32_t projid;
	uint32_t cowextsize;
};

static atomic_bool no_xattrat;
static atomic_bool no_file_getattr;
static atomic_bool no_fchmodat2;
static atomic_bool no_openat2;

void at_force_old_kernel(void)
{
	no_xattrat = no_fchmodat2 = no_openat2 = no_file_getattr = true;
}

/* A path that reaches the object through /proc, without following it when it is a symlink. */
struct proc_path {
	char path[32 + NAME_MAX + 1];
};

static bool proc_path(struct proc_path *p, int dirfd, const char *name)
{
	int n;

	if (*name)
		n = snprintf(p->path, sizeof(p->path), "/proc/self/fd/%d/%s", dirfd, name);
	else
		n = snprintf(p->path, sizeof(p->path), "/proc/self/fd/%d", dirfd);
	return n > 0 && (size_t)n < sizeof(p->path);
}

static ssize_t result(ssize_t r)
{
	return r < 0 ? -errno : r;
}

/* Linux refuses filesystems with both ENOSYS (no such call) and, under old seccomp, EPERM. */
static bool call_missing(long r)
{
	return r < 0 && errno == ENOSYS;
}

int at_statx(int dirfd, const char *name, struct statx *st)
{
	int flags = AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT | (*name ? 0 : AT_EMPTY_PATH);

	return (int)result(statx(dirfd, name, flags, AT_STATX_WANTED, st));
}

ssize_t at_readlink(int dirfd, const char *name, char *buf, size_t size)
{
	return result(readlinkat(dirfd, name, buf, size));
}

ssize_t at_getxattr(int dirfd, const char *name, const char *xattr, void *value, size_t size)
{
	struct proc_path p;

	if (*name && !no_xattrat) {
		struct xattr_at_args args = { .value = (uintptr_t)value, .size = (uint32_t)size };
		long r = syscall(SYS_getxattrat, dirfd, name, AT_SYMLINK_NOFOLLOW, xattr, &args,
				 sizeof(args));

		if (!call_missing(r))
			return result(r);
		no_xattrat = true;
	}
	if (!proc_path(&p, dirfd, name))
		return -ENAMETOOLONG;
	/* The magic link of an fd has to be followed, the object behind it is not. */
	return result(*name ? lgetxattr(p.path, xattr, value, size)
			    : getxattr(p.path, xattr, value, size));
}

ssize_t at_listxattr(int dirfd, const char *name, char *list, size_t size)
{
	struct proc_path p;

	if (*name && !no_xattrat) {
		long r = syscall(SYS_listxattrat, dirfd, name, AT_SYMLINK_NOFOLLOW, list, size);

		if (!call_missing(r))
			return result(r);
		no_xattrat = true;
	}
	if (!proc_path(&p, dirfd, name))
		return -ENAMETOOLONG;
	return result(*name ? llistxattr(p.path, list, size) : listxattr(p.path, list, size));
}

int at_setxattr(int dirfd, const char *name, const char *xattr, const void *value, size_t size,
		int flags)
{
	struct proc_path p;

	if (*name && !no_xattrat) {
		struct xattr_at_args args = { .value = (uintptr_t)value,
					      .size = (uint32_t)size,
					      .flags = (uint32_t)flags };
		long r = syscall(SYS_setxattrat, dirfd, name, AT_SYMLINK_NOFOLLOW, xattr, &args,
				 sizeof(args));

		if (!call_missing(r))
			return (int)result(r);
		no_xattrat = true;
	}
	if (!proc_path(&p, dirfd, name))
		return -ENAMETOOLONG;
	return (int)result(*name ? lsetxattr(p.path, xattr, value, size, flags)
				 : setxattr(p.path, xattr, value, size, flags));
}

int at_removexattr(int dirfd, const char *name, const char *xattr)
{
	struct proc_path p;

	if (*name && !no_xattrat) {
		long r = syscall(SYS_removexattrat, dirfd, name, AT_SYMLINK_NOFOLLOW, xattr);

		if (!call_missing(r))
			return (int)result(r);
		no_xattrat = true;
	}
	if (!proc_path(&p, dirfd, name))
		return -ENAMETOOLONG;
	return (int)result(*name ? lremovexattr(p.path, xattr) : removexattr(p.path, xattr));
}

int at_fileattr(int dirfd, const char *name, struct fsxattr *out)
{
	struct file_attr_at attr = { 0 };
	long r;

	if (no_file_getattr)
		return -ENOSYS;
	r = syscall(SYS_file_getattr, dirfd, name, &attr, sizeof(attr), AT_SYMLINK_NOFOLLOW);
	if (r < 0) {
		/* Old seccomp filters answer EPERM to a call that they do not know. */
		no_file_getattr = call_missing(r);
		return errno == EPERM ? -ENOSYS : -errno;
	}
	*out = (struct fsxattr){ .fsx_xflags = (uint32_t)attr.xflags,
				 .fsx_extsize = attr.extsize,
				 .fsx_nextents = attr.nextents,
				 .fsx_projid = attr.projid,
				 .fsx_cowextsize = attr.cowextsize };
	return 0;
}

int at_chmod(int dirfd, const char *name, mode_t mode)
{
	autofd int fd = -1;
	struct proc_path p;

	if (!no_fchmodat2) {
		int flags = AT_SYMLINK_NOFOLLOW | (*name ? 0 : AT_EMPTY_PATH);
		long r = syscall(SYS_fchmodat2, dirfd, name, mode, flags);

		if (!call_missing(r))
			return (int)result(r);
		no_fchmodat2 = true;
	}
	/* chmod(2) follows symlinks, but not the object behind the magic link of an O_PATH fd. */
	if (*name) {
		fd = openat(dirfd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
		if (fd < 0)
			return -errno;
		dirfd = fd;
	}
	proc_path(&p, dirfd, "");
	return (int)result(chmod(p.path, mode));
}

int at_chown(int dirfd, const char *name, uid_t uid, gid_t gid)
{
	return (int)result(
		fchownat(dirfd, name, uid, gid, AT_SYMLINK_NOFOLLOW | (*name ? 0 : AT_EMPTY_PATH)));
}

int at_utimens(int dirfd, const char *name, const struct timespec times[2])
{
	struct proc_path p;

	if (*name)
		return (int)result(utimensat(dirfd, name, times, AT_SYMLINK_NOFOLLOW));
	if (utimensat(dirfd, "", times, AT_EMPTY_PATH) == 0)
		return 0;
	if (errno != EINVAL) /* before 5.8 AT_EMPTY_PATH was not known here */
		return -errno;
	proc_path(&p, dirfd, "");
	return (int)result(utimensat(AT_FDCWD, p.path, times, 0));
}

int at_open(int dirfd, const char *name, int flags)
{
	struct proc_path p;

	if (*name)
		return (int)result(openat(dirfd, name, flags | O_NOFOLLOW | O_CLOEXEC));
	proc_path(&p, dirfd, "");
	return (int)result(open(p.path, flags | O_CLOEXEC));
}

/* What both ways refuse: openat2(2) would let ".." pass where it stays beneath. */
static int check_beneath(const char *path)
{
	if (*path == '/')
		return -EXDEV;
	for (;;) {
		size_t len = strcspn(path, "/");

		if (len == 0)
			return -EINVAL;
		if (len == 2 && !memcmp(path, "..", 2))
			return -EXDEV;
		if (!path[len])
			return 0;
		path += len + 1;
	}
}

static bool is_symlink(int dirfd, const char *name)
{
	struct statx st;

	return at_statx(dirfd, name, &st) == 0 && S_ISLNK(st.stx_mode);
}

/* Without openat2(2): one component at a time, each O_NOFOLLOW. */
static int open_stepwise(int dirfd, const char *path, int flags)
{
	autofd int held = -1;
	char name[NAME_MAX + 1];

	for (;;) {
		size_t len = strcspn(path, "/");
		bool last = path[len] == '\0';
		int fd;

		if (len > NAME_MAX)
			return -ENAMETOOLONG;
		memcpy(name, path, len);
		name[len] = '\0';
		fd = openat(dirfd, name,
			    (last ? flags : O_PATH | O_DIRECTORY) | O_NOFOLLOW | O_CLOEXEC);
		if (fd < 0 && errno == ENOTDIR && !last && is_symlink(dirfd, name))
			return -ELOOP; /* as openat2(2) says it */
		if (fd < 0)
			return -errno;
		if (last)
			return fd;
		close_fd(held);
		held = dirfd = fd;
		path += len + 1;
	}
}

int at_open_beneath(int dirfd, const char *path, int flags)
{
	struct open_how how = {
		.flags = (uint64_t)(flags | O_NOFOLLOW | O_CLOEXEC),
		.resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS,
	};
	int err = check_beneath(path);

	if (err < 0)
		return err;
	if (!no_openat2) {
		for (int tries = 0; tries < 100; tries++) {
			long r = syscall(SYS_openat2, dirfd, path, &how, sizeof(how));

			if (r >= 0)
				return (int)r;
			if (errno == EAGAIN) /* a rename somewhere raced with RESOLVE_BENEATH */
				continue;
			if (errno != ENOSYS && errno != EPERM)
				return -errno;
			break;
		}
		/* Old seccomp filters answer EPERM to a call that they do not know. */
		if (errno == ENOSYS)
			no_openat2 = true;
	}
	return open_stepwise(dirfd, path, flags);
}

int at_opendir(int dirfd, const char *name, DIR **out)
{
	int fd = at_open(dirfd, name, O_RDONLY | O_DIRECTORY);
	int err;

	if (fd < 0)
		return fd;
	*out = fdopendir(fd);
	if (*out)
		return 0;
	err = -errno;
	close_fd(fd);
	return err;
}

struct dirent *at_readdir(DIR *dir)
{
	struct dirent *d;

	do {
		errno = 0;
		d = readdir(dir);
	} while (d && (!strcmp(d->d_name, ".") || !strcmp(d->d_name, "..")));
	return d;
}

int at_link(int dirfd, const char *name, int newdirfd, const char *newname)
{
	struct proc_path p;

	if (*name)
		return (int)result(linkat(dirfd, name, newdirfd, newname, 0));
	if (linkat(dirfd, "", newdirfd, newname, AT_EMPTY_PATH) == 0)
		return 0;
	/* Without CAP_DAC_READ_SEARCH AT_EMPTY_PATH gives ENOENT. */
	if (errno != ENOENT && errno != EINVAL)
		return -errno;
	proc_path(&p, dirfd, "");
	return (int)result(linkat(AT_FDCWD, p.path, newdirfd, newname, AT_SYMLINK_FOLLOW));
}

int at_rename(int dirfd, const char *name, int newdirfd, const char *newname, unsigned int flags)
{
	if (flags == 0)
		return (int)result(renameat(dirfd, name, newdirfd, newname));
	return (int)result(renameat2(dirfd, name, newdirfd, newname, flags));
}

int at_unlink(int dirfd, const char *name, int flags)
{
	return (int)result(unlinkat(dirfd, name, flags));
}
