/* SPDX-License-Identifier: MIT */
/*
 * An LD_PRELOAD library that gives files an fs-verity digest, for kernels without fs-verity: what
 * FS_IOC_MEASURE_VERITY says is the xattr trusted.test-verity, the number of the algorithm and the
 * digest. Everything else of it is as if the file had been sealed.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/fsverity.h>
#include <stdarg.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <unistd.h>

#define XATTR "trusted.test-verity"

static int measure(int fd, struct fsverity_digest *d)
{
	unsigned char value[1 + 64];
	ssize_t n = fgetxattr(fd, XATTR, value, sizeof(value));

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

int ioctl(int fd, unsigned long request, ...)
{
	va_list args;
	void *arg;

	va_start(args, request);
	arg = va_arg(args, void *);
	va_end(args);
	if (request == FS_IOC_MEASURE_VERITY)
		return measure(fd, arg);
	return (int)syscall(SYS_ioctl, fd, request, arg);
}
