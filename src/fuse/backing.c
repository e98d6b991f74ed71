/* SPDX-License-Identifier: MIT */
#include "fuse/backing.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "fuse/init.h"
#include "util/base.h"
#include "util/log.h"

/* The kernel has sent INIT when it has made the superblock. */
#define INIT_TIMEOUT_MS 1000

/* FUSE_MIN_READ_BUFFER: what read(2) of /dev/fuse wants at least. */
#define READ_ROOM 8192

static int get_capabilities(struct __user_cap_data_struct caps[2])
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };

	return syscall(SYS_capget, &header, caps) < 0 ? -errno : 0;
}

static int set_capabilities(const struct __user_cap_data_struct caps[2])
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };

	return syscall(SYS_capset, &header, caps) < 0 ? -errno : 0;
}

int fuse_backing_init(struct fuse_backing *b, int dev)
{
	int err = get_capabilities(b->all);

	b->dev = dev;
	memcpy(b->fewer, b->all, sizeof(b->fewer));
	b->fewer[CAP_TO_INDEX(CAP_FSETID)].effective &= ~CAP_TO_MASK(CAP_FSETID);
	return err;
}

int32_t fuse_backing_open(const struct fuse_backing *b, int fd)
{
	struct fuse_backing_map map = { .fd = fd };
	int err = set_capabilities(b->fewer);
	int32_t id;

	if (err)
		return err;
	id = ioctl(b->dev, FUSE_DEV_IOC_BACKING_OPEN, &map);
	if (id < 0)
		id = -errno;
	err = set_capabilities(b->all);
	if (unlikely(err))
		log_error("cannot take CAP_FSETID up again: %s", strerror(-err));
	return id;
}

void fuse_backing_close(const struct fuse_backing *b, int32_t id)
{
	uint32_t number = (uint32_t)id;

	if (ioctl(b->dev, FUSE_DEV_IOC_BACKING_CLOSE, &number) < 0)
		log_debug("cannot close backing id %d: %s", id, strerror(errno));
}

static int set_string(int fs, const char *key, const char *value)
{
	return syscall(SYS_fsconfig, fs, FSCONFIG_SET_STRING, key, value, 0) < 0 ? -errno : 0;
}

/* A superblock that is attached nowhere; the kernel sends INIT to @dev. */
static int make_superblock(int dev)
{
	autofd int fs = (int)syscall(SYS_fsopen, "fuse", FSOPEN_CLOEXEC);
	char number[16];
	int err = fs < 0 ? -errno : 0;

	snprintf(number, sizeof(number), "%d", dev);
	if (!err)
		err = set_string(fs, "fd", number);
	if (!err)
		err = set_string(fs, "rootmode", "40000");
	if (!err)
		err = set_string(fs, "user_id", "0");
	if (!err)
		err = set_string(fs, "group_id", "0");
	if (!err && syscall(SYS_fsconfig, fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0) < 0)
		err = -errno;
	return err ? err : take_fd(&fs);
}

static int answer_init(int dev)
{
	const struct fuse_init_want want = { .flags = FUSE_PASSTHROUGH, .max_write = 4096 };
	_Alignas(8) uint8_t message[READ_ROOM];
	const struct fuse_in_header *in = (const void *)message;
	struct pollfd wait = { .fd = dev, .events = POLLIN };
	struct fuse_conn conn;
	struct {
		struct fuse_out_header header;
		struct fuse_init_out init;
	} out = { .header.len = sizeof(out) };
	ssize_t size = poll(&wait, 1, INIT_TIMEOUT_MS) == 1 ? read(dev, message, READ_ROOM) : -1;
	int err;

	if (size < (ssize_t)sizeof(*in) || in->opcode != FUSE_INIT)
		return -EIO;
	err = fuse_init_negotiate(&want, in + 1, (size_t)size - sizeof(*in), &out.init, &conn);
	if (!err && !(conn.flags & FUSE_PASSTHROUGH))
		err = -EOPNOTSUPP;
	if (err)
		return err;
	out.header.unique = in->unique;
	return write(dev, &out, sizeof(out)) < 0 ? -errno : 0;
}

int fuse_backing_try(int sample)
{
	autofd int fs = -1;
	/* Closed first: the connection ends, so that the superblock's end waits for nobody. */
	autofd int dev = -1;
	struct fuse_backing b;
	int32_t id;
	int err;

	dev = open("/dev/fuse", O_RDWR | O_CLOEXEC | O_NONBLOCK);
	if (dev < 0)
		return -errno;
	err = fuse_backing_init(&b, dev);
	if (err)
		return err;
	fs = make_superblock(dev);
	err = fs < 0 ? fs : answer_init(dev);
	if (err)
		return err;
	id = fuse_backing_open(&b, sample);
	if (id < 0)
		return id;
	fuse_backing_close(&b, id);
	return 0;
}
