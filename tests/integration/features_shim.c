/* SPDX-License-Identifier: MIT */
/*
 * An LD_PRELOAD library that gives files what a filesystem may lack here:
 *
 *   an fs-verity digest: FS_IOC_MEASURE_VERITY says what the xattr trusted.test-verity holds, the
 *   number of the algorithm and the digest;
 *   casefolding, of directories with the xattr trusted.test-casefold, as FS_IOC_GETFLAGS tells; a
 *   directory can be made one if $TEST_CASEFOLD is set.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/fs.h>
#include <linux/fsverity.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <unistd.h>

#define DIGEST   "trusted.test-verity"
#define CASEFOLD "trusted.test-casefold"

static int measure(int fd, struct fsverity_digest *d)
{
	unsigned char value[1 + 64];
	ssize_t n = fgetxattr(fd, DIGEST, value, sizeof(value));

	if (n < 1) {
		errno = ENODATA;
		return -1;
	}
	if (d->digest_size < n - 1) {
		errno = EOVERFLOW;
		return -1;
	}
	d->digest_algorithm = value[0];
	d->digest_size = (unsigned short)(n - 1);
	memcpy(d->digest, value + 1, (size_t)n - 1);
	return 0;
}

static int get_flags(int fd, int *flags)
{
	int result = (int)syscall(SYS_ioctl, fd, FS_IOC_GETFLAGS, flags);

	if (result == 0 && fgetxattr(fd, CASEFOLD, NULL, 0) >= 0)
		*flags |= FS_CASEFOLD_FL;
	return result;
}

static int set_flags(int fd, int *flags)
{
	if ((*flags & FS_CASEFOLD_FL) && getenv("TEST_CASEFOLD"))
		return 0;
	return (int)syscall(SYS_ioctl, fd, FS_IOC_SETFLAGS, flags);
}

int ioctl(int fd, unsigned long request, ...)
{
	va_list args;
	void *arg;

	va_start(args, request);
	arg = va_arg(args, void *);
	va_end(args);
	switch (request) {
	case FS_IOC_MEASURE_VERITY: return measure(fd, arg);
	case FS_IOC_GETFLAGS: return get_flags(fd, arg);
	case FS_IOC_SETFLAGS: return set_flags(fd, arg);
	default: return (int)syscall(SYS_ioctl, fd, request, arg);
	}
}

/* Of what the kernel was built with. */
int access(const char *path, int mode)
{
	if (!strncmp(path, "/sys/fs/", 8) && strstr(path, "/features/casefold"))
		return 0;
	return (int)syscall(SYS_faccessat, -100, path, mode);
}
