/* SPDX-License-Identifier: MIT */
/*
 * System calls on an object named by a directory fd and one name, or, with the name "", by an fd of
 * the object itself (O_PATH will do). Nothing here ever follows a symlink in the last component.
 *
 * What newer kernels can do directly (getxattrat and friends, fchmodat2, file_getattr) is tried
 * first; an older kernel gets the same through /proc/self/fd. Which way works is remembered.
 *
 * Errors: a negative errno. Thread-safe; nothing is owned.
 */
#pragma once

#include <dirent.h>
#include <stddef.h>
#include <sys/stat.h>
#include <sys/types.h>

struct fsxattr;

#define AT_STATX_WANTED (STATX_BASIC_STATS | STATX_BTIME)

int at_statx(int dirfd, const char *name, struct statx *st);
ssize_t at_readlink(int dirfd, const char *name, char *buf, size_t size);

ssize_t at_getxattr(int dirfd, const char *name, const char *xattr, void *value, size_t size);
ssize_t at_listxattr(int dirfd, const char *name, char *list, size_t size);
int at_setxattr(int dirfd, const char *name, const char *xattr, const void *value, size_t size,
		int flags);
int at_removexattr(int dirfd, const char *name, const char *xattr);

/*
 * What FS_IOC_FSGETXATTR says, without an open. Not of an object by "". -ENOSYS before Linux 6.17:
 * open it then.
 */
int at_fileattr(int dirfd, const char *name, struct fsxattr *out);

int at_chmod(int dirfd, const char *name, mode_t mode);
int at_chown(int dirfd, const char *name, uid_t uid, gid_t gid);
int at_utimens(int dirfd, const char *name, const struct timespec times[2]);

/* Opens the object anew, with rights of its own. @flags get O_NOFOLLOW | O_CLOEXEC. */
int at_open(int dirfd, const char *name, int flags);

/* As at_open(), but opens only below @dirfd: neither "..", symlinks nor magic links on @path. */
int at_open_beneath(int dirfd, const char *path, int flags);

/* A directory to be listed; its stream owns the fd. */
int at_opendir(int dirfd, const char *name, DIR **out);
/* The next entry but "." and ".."; NULL with errno 0 at the end. */
struct dirent *at_readdir(DIR *dir);

/* linkat(2) of the object to another name. */
int at_link(int dirfd, const char *name, int newdirfd, const char *newname);
int at_rename(int dirfd, const char *name, int newdirfd, const char *newname, unsigned int flags);
int at_unlink(int dirfd, const char *name, int flags);

/* For tests: never use the newer system calls (openat2 and the *at family of 6.x). */
void at_force_old_kernel(void);
