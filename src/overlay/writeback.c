// SPDX-License-Identifier: MIT
#include "overlay/writeback.h"

#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "overlay/internal.h"
#include "util/at.h"
#include "util/log.h"

/* What the witness makes in its workdir: w/work/incompat/volatile/dirty. */
#define WITNESS_DEPTH 6

/* /proc/self/fd/N/work/#N, a number and a temporary name. */
#define BASE_MAX 64

struct writeback {
	atomic_bool lost; /* set once */
	int witness;      /* root directory of the witness; -1: none */
	/* The rest is guarded by the lock: one question at a time. */
	pthread_mutex_t lock;
	aio_context_t aio;
};

static int set_option(int fs, const char *key, const char *value)
{
	return (int)syscall(SYS_fsconfig, fs, value ? FSCONFIG_SET_STRING : FSCONFIG_SET_FLAG, key,
			    value, 0);
}

/* A volatile overlayfs on the directories l, u and w of @base. Returns an fd of its root. */
static int mount_witness(const struct ovl *o, const char *base)
{
	static const char *const keys[] = { "lowerdir", "upperdir", "workdir" };
	autofd int fs = (int)syscall(SYS_fsopen, "overlay", FSOPEN_CLOEXEC);
	autofd int mnt = -1;
	char path[BASE_MAX + 2];
	int root;

	if (fs < 0)
		return -errno;
	for (size_t n = 0; n < ARRAY_SIZE(keys); n++) {
		snprintf(path, sizeof(path), "%s/%c", base, keys[n][0]);
		if (set_option(fs, keys[n], path) < 0)
			return -errno;
	}
	if (set_option(fs, "volatile", NULL) < 0 ||
	    (o->userxattr && set_option(fs, "userxattr", NULL) < 0) ||
	    syscall(SYS_fsconfig, fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0) < 0)
		return -errno;
	mnt = (int)syscall(SYS_fsmount, fs, FSMOUNT_CLOEXEC, 0);
	if (mnt < 0)
		return -errno;
	root = openat(mnt, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return root < 0 ? -errno : root;
}

/* Its directories are only needed until it is mounted. */
static int make_witness(struct ovl *o, const char *workdir)
{
	/*
	 * Our own fd of work is on a clone of its mount, and the kernel takes no layers from there.
	 * A path below an fd has nothing to be escaped.
	 */
	autofd int base = open(workdir, O_PATH | O_DIRECTORY | O_CLOEXEC);
	char name[FMT_TEMP_NAME_MAX];
	char path[BASE_MAX];
	int work = layer_fd(o->work);
	int err = 0;

	if (base < 0)
		return -errno;
	temp_name(o, name);
	if (mkdirat(work, name, 0700) < 0)
		return -errno;
	for (const char *p = "luw"; *p && err == 0; p++) {
		snprintf(path, sizeof(path), "%s/%c", name, *p);
		err = mkdirat(work, path, 0700) < 0 ? -errno : 0;
	}
	if (err == 0) {
		snprintf(path, sizeof(path), "/proc/self/fd/%d/work/%s", base, name);
		err = mount_witness(o, path);
	}
	remove_tree(work, name, WITNESS_DEPTH);
	return err;
}

int writeback_watch(struct ovl *o, const char *workdir, struct writeback **out)
{
	struct writeback *w = calloc(1, sizeof(*w));

	if (!w)
		return -ENOMEM;
	pthread_mutex_init(&w->lock, NULL);
	w->witness = syscall(SYS_io_setup, 1, &w->aio) < 0 ? -errno : make_witness(o, workdir);
	if (w->witness == -EIO) {
		writeback_end(w);
		return -EIO;
	}
	if (w->witness < 0)
		log_debug("no witness of lost writes: %s", strerror(-w->witness));
	w->witness = max(w->witness, -1);
	*out = w;
	return 0;
}

void writeback_end(struct writeback *w)
{
	if (!w)
		return;
	close_fd(w->witness);
	if (w->aio)
		syscall(SYS_io_destroy, w->aio);
	pthread_mutex_destroy(&w->lock);
	free(w);
}

bool writeback_has_witness(const struct writeback *w)
{
	return w->witness >= 0;
}

/*
 * Not by fsync(2), which does nothing where people want things fast: libeatmydata and seccomp
 * filters of builders swallow it, and the witness would be silent.
 */
static int ask_witness(struct writeback *w)
{
	struct iocb request = { .aio_lio_opcode = IOCB_CMD_FSYNC,
				.aio_fildes = (uint32_t)w->witness };
	struct iocb *requests[] = { &request };
	struct io_event event = { 0 };
	long n;

	pthread_mutex_lock(&w->lock);
	n = syscall(SYS_io_submit, w->aio, 1, requests);
	while (n == 1 && syscall(SYS_io_getevents, w->aio, 1, 1, &event, NULL) != 1)
		if (errno != EINTR)
			n = -1;
	pthread_mutex_unlock(&w->lock);
	return n == 1 ? (int)event.res : 0;
}

/* Waiting for what is being written beyond the end writes and waits for nothing. */
static int ask_file(int fd)
{
	if (sync_file_range(fd, INT64_MAX / 2, 1, SYNC_FILE_RANGE_WAIT_BEFORE) == 0)
		return 0;
	switch (errno) {
	case EBADF:
	case EINVAL:
	case ESPIPE:
	case ENOSYS: return 0; /* it cannot be asked */
	default: return -errno;
	}
}

static void set_lost(struct writeback *w, int err)
{
	if (!atomic_exchange(&w->lost, true))
		log_error("upperdir's filesystem has lost what was written to it (%s): whatever is "
			  "synced on this volatile mount fails from now on",
			  strerror(-err));
}

int writeback_status(struct writeback *w, int fd)
{
	int err;

	if (atomic_load(&w->lost))
		return -EIO;
	err = w->witness >= 0 ? ask_witness(w) : fd >= 0 ? ask_file(fd) : 0;
	if (err == 0)
		return 0;
	set_lost(w, err);
	return -EIO;
}

void writeback_failed(struct writeback *w)
{
	if (w)
		set_lost(w, -EIO);
}
