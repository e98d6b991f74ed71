/* SPDX-License-Identifier: MIT */
#include "fuse/mount.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#include "util/base.h"
#include "util/log.h"

#define FUSE_DEVICE "/dev/fuse"
/* The same on every Linux: MISC_MAJOR, FUSE_MINOR. */
#define FUSE_DEVICE_NUMBER makedev(10, 229)

/* The name by which libfuse's helper expects to find its socket. */
#define HELPER_SOCKET "_FUSE_COMMFD"

static const char *const helpers[] = { "fusermount3", "fusermount" };

__attribute__((format(printf, 4, 5))) static int fail(int err, char *message, size_t size,
						      const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(message, size, fmt, ap);
	va_end(ap);
	return err;
}

/* fusermount's option string, and fstab's, end an option at a comma. */
static void append_escaped(char *out, size_t size, const char *string)
{
	size_t used = strlen(out);

	for (; *string && used + 3 < size; string++) {
		if (*string == ',' || *string == '\\')
			out[used++] = '\\';
		out[used++] = *string;
	}
	out[used] = '\0';
}

static void append(char *out, size_t size, const char *string)
{
	size_t used = strlen(out);

	snprintf(out + used, size - used, "%s", string);
}

static const struct {
	unsigned long flag;
	const char *word;
} flag_words[] = {
	{ MS_NOEXEC, ",noexec" },    { MS_NOATIME, ",noatime" }, { MS_NODIRATIME, ",nodiratime" },
	{ MS_SYNCHRONOUS, ",sync" }, { MS_DIRSYNC, ",dirsync" }, { MS_NODEV, ",nodev" },
	{ MS_NOSUID, ",nosuid" },
};

static void helper_options(const struct fuse_mount_config *config, char *out, size_t size)
{
	snprintf(out, size, "%s", (config->flags & MS_RDONLY) ? "ro" : "rw");
	for (size_t i = 0; i < ARRAY_SIZE(flag_words); i++) {
		/* fusermount3 does not know "nodiratime", which "noatime" implies. */
		if ((config->flags & MS_NOATIME) && flag_words[i].flag == MS_NODIRATIME)
			continue;
		if (config->flags & flag_words[i].flag)
			append(out, size, flag_words[i].word);
	}
	append(out, size, ",default_permissions");
	if (config->allow_other)
		append(out, size, ",allow_other");
	append(out, size, ",subtype=");
	append_escaped(out, size, config->subtype);
	append(out, size, ",fsname=");
	append_escaped(out, size, config->source);
}

/* The environment of this process, with @variable added. The array, not the strings, is the
 * caller's. */
static char **environment_with(char *variable)
{
	size_t count = 0, used = 0;
	char **env;

	while (environ[count])
		count++;
	env = calloc(count + 2, sizeof(*env));
	if (!env)
		return NULL;
	for (size_t i = 0; i < count; i++) {
		if (strncmp(environ[i], HELPER_SOCKET "=", strlen(HELPER_SOCKET "=")) != 0)
			env[used++] = environ[i];
	}
	env[used] = variable;
	return env;
}

/*
 * Starts the helper, whose messages go to @errors (-1: to nobody) and which inherits @socket (-1:
 * none). -ENOENT when it is not installed.
 */
static int spawn_helper(const char *name, char *const argv[], int socket, int errors, pid_t *pid)
{
	char variable[32];
	autofree char **env = NULL;
	posix_spawn_file_actions_t actions;
	posix_spawnattr_t attr;
	sigset_t none;
	int err;

	snprintf(variable, sizeof(variable), HELPER_SOCKET "=%d", socket);
	env = environment_with(socket >= 0 ? variable : NULL);
	if (!env)
		return -ENOMEM;
	posix_spawn_file_actions_init(&actions);
	posix_spawnattr_init(&attr);
	sigemptyset(&none);
	posix_spawnattr_setsigmask(&attr, &none);
	posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSIGMASK);
	if (socket >= 0) /* onto itself: clears close-on-exec in the child only */
		posix_spawn_file_actions_adddup2(&actions, socket, socket);
	posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
	posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
	if (errors >= 0)
		posix_spawn_file_actions_adddup2(&actions, errors, STDERR_FILENO);
	else
		posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, "/dev/null", O_WRONLY, 0);
	err = posix_spawnp(pid, name, &actions, &attr, argv, env);
	posix_spawn_file_actions_destroy(&actions);
	posix_spawnattr_destroy(&attr);
	return -err;
}

static int spawn_any_helper(char *const argv[], int socket, int errors, pid_t *pid)
{
	int err = -ENOENT;

	for (size_t i = 0; i < ARRAY_SIZE(helpers) && err == -ENOENT; i++)
		err = spawn_helper(helpers[i], argv, socket, errors, pid);
	return err;
}

/* The exit status; -1 when it ended otherwise. */
static int wait_helper(pid_t pid)
{
	int status;

	while (waitpid(pid, &status, 0) < 0) {
		if (errno != EINTR)
			return -1;
	}
	return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/* The descriptor that the helper sends; -1 when it ends without. */
static int receive_fd(int socket)
{
	union {
		struct cmsghdr header;
		char space[CMSG_SPACE(sizeof(int))];
	} control;
	char byte;
	struct iovec iov = { &byte, 1 };
	struct msghdr message = { .msg_iov = &iov,
				  .msg_iovlen = 1,
				  .msg_control = &control,
				  .msg_controllen = sizeof(control) };
	struct cmsghdr *header;
	ssize_t received;
	int fd;

	do {
		received = recvmsg(socket, &message, MSG_CMSG_CLOEXEC);
	} while (received < 0 && errno == EINTR);
	header = received > 0 ? CMSG_FIRSTHDR(&message) : NULL;
	if (!header || header->cmsg_type != SCM_RIGHTS || header->cmsg_len != CMSG_LEN(sizeof(int)))
		return -1;
	memcpy(&fd, CMSG_DATA(header), sizeof(fd));
	return fd;
}

/* The first line that the helper wrote, without its name. */
static const char *first_line(int fd, char *buf, size_t size)
{
	size_t used = 0;
	ssize_t count;
	char *text;

	while (used + 1 < size && (count = read(fd, buf + used, size - used - 1)) != 0) {
		if (count < 0 && errno != EINTR)
			break;
		if (count > 0)
			used += (size_t)count;
	}
	buf[used] = '\0';
	buf[strcspn(buf, "\n")] = '\0';
	text = strncmp(buf, "fusermount", 10) == 0 ? strstr(buf, ": ") : NULL;
	return text ? text + 2 : buf;
}

static int helper_failed(const struct fuse_mount_config *config, const char *words, char *message,
			 size_t size)
{
	if (strstr(words, "user_allow_other"))
		return fail(-EPERM, message, size,
			    "allow_other is not permitted to ordinary users here: add the line "
			    "user_allow_other to /etc/fuse.conf, or leave allow_other out");
	if (strstr(words, "username"))
		return fail(
			-EPERM, message, size,
			"fusermount3 does not mount for user %u, who has no entry in /etc/passwd",
			getuid());
	if (!*words)
		words = "fusermount3 failed without a message";
	return fail(-EPERM, message, size, "cannot mount on %s: %s", config->mountpoint, words);
}

static int mount_by_helper(const struct fuse_mount_config *config, struct fuse_mount *out,
			   char *message, size_t size)
{
	size_t option_size = 2 * (strlen(config->source) + strlen(config->subtype)) + 256;
	autofree char *options = malloc(option_size);
	char *argv[] = { "fusermount3", "-o", options, "--", out->mountpoint, NULL };
	int sockets[2], pipes[2];
	char words[512];
	const char *line;
	pid_t pid;
	int err;

	if (!options)
		return fail(-ENOMEM, message, size, "out of memory");
	helper_options(config, options, option_size);
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets) < 0)
		return fail(-errno, message, size, "socketpair: %s", strerror(errno));
	if (pipe2(pipes, O_CLOEXEC) < 0) {
		err = fail(-errno, message, size, "pipe: %s", strerror(errno));
		close(sockets[0]);
		close(sockets[1]);
		return err;
	}
	err = spawn_any_helper(argv, sockets[0], pipes[1], &pid);
	close(sockets[0]);
	close(pipes[1]);
	if (err) {
		err = fail(err, message, size,
			   err == -ENOENT
				   ? "mounting as an ordinary user needs fusermount3, which is "
				     "not installed: install the package fuse3"
				   : "cannot start fusermount3: %s",
			   strerror(-err));
	} else {
		/* The end of the socket comes when the helper has ended: nothing is left to block
		 * on. */
		out->fd = receive_fd(sockets[1]);
		line = first_line(pipes[0], words, sizeof(words));
		wait_helper(pid);
		if (out->fd < 0)
			err = helper_failed(config, line, message, size);
		out->by_helper = true;
	}
	close(sockets[1]);
	close(pipes[0]);
	return err;
}

static int mountpoint_failed(int err, const char *path, char *message, size_t size)
{
	switch (err) {
	case ENOENT:
		return fail(-err, message, size, "mountpoint %s does not exist: create it first",
			    path);
	case ENOTDIR: return fail(-err, message, size, "mountpoint %s is not a directory", path);
	case ENOTCONN:
		return fail(-err, message, size,
			    "mountpoint %s holds a mount whose daemon is dead: run umount -l %s "
			    "first",
			    path, path);
	default:
		return fail(-err, message, size, "mountpoint %s cannot be used: %s", path,
			    strerror(err));
	}
}

static int check_mountpoint(const struct fuse_mount_config *config, struct fuse_mount *out,
			    struct stat *st, char *message, size_t size)
{
	out->mountpoint = realpath(config->mountpoint, NULL);
	if (!out->mountpoint || stat(out->mountpoint, st) < 0)
		return mountpoint_failed(errno, config->mountpoint, message, size);
	if (!S_ISDIR(st->st_mode))
		return mountpoint_failed(ENOTDIR, config->mountpoint, message, size);
	return 0;
}

static int device_failed(int err, char *message, size_t size)
{
	switch (err) {
	case ENOENT:
	case ENODEV:
	case ENXIO:
		return fail(-err, message, size,
			    FUSE_DEVICE " is missing: load the kernel module (modprobe fuse), or "
					"give the container the device");
	case EACCES:
	case EPERM:
		return fail(-err, message, size,
			    "no permission to open " FUSE_DEVICE
			    ": make it readable and writable for this user (mode 0666 is usual)");
	default: return fail(-err, message, size, "cannot open " FUSE_DEVICE ": %s", strerror(err));
	}
}

/* What the kernel answers with a mere EINVAL at mount(2). */
static bool is_fuse_device(int fd)
{
	struct stat st;

	return fstat(fd, &st) < 0 || (S_ISCHR(st.st_mode) && st.st_rdev == FUSE_DEVICE_NUMBER);
}

static int mount_failed(int err, const struct fuse_mount_config *config, int device, char *message,
			size_t size)
{
	const char *why = strerror(err);

	if (err == ENODEV)
		why = "this kernel has no FUSE: load the module (modprobe fuse)";
	else if (err == EINVAL && !is_fuse_device(device))
		why = FUSE_DEVICE " is not the FUSE device: make it anew (mknod " FUSE_DEVICE
				  " c 10 229), or give the container the host's";
	else if (err == EPERM || err == EACCES)
		why = "mount(2) is not permitted: it needs CAP_SYS_ADMIN here";
	return fail(-err, message, size, "cannot mount on %s: %s", config->mountpoint, why);
}

/* Without it the kernel takes its words for FUSE's and refuses them. */
static bool has_selinux(void)
{
	FILE *f = fopen("/proc/filesystems", "re");
	char line[128];
	bool found = false;

	while (f && !found && fgets(line, sizeof(line), f))
		found = strstr(line, "\tselinuxfs\n") != NULL;
	if (f)
		fclose(f);
	return found;
}

static int mount_with_contexts(const struct fuse_mount_config *config, const char *point,
			       const char *type, const char *options)
{
	autofree char *more = NULL;

	if (!config->contexts || !has_selinux())
		return -EINVAL;
	if (asprintf(&more, "%s,%s", options, config->contexts) < 0) {
		more = NULL;
		return -ENOMEM;
	}
	return mount(config->source, point, type, config->flags, more) < 0 ? -errno : 0;
}

static int mount_directly(const struct fuse_mount_config *config, struct fuse_mount *out,
			  const struct stat *st)
{
	autofree char *type = NULL;
	char options[192];

	out->fd = open(FUSE_DEVICE, O_RDWR | O_CLOEXEC);
	if (out->fd < 0)
		return -errno;
	if (asprintf(&type, "fuse.%s", config->subtype) < 0) {
		type = NULL;
		return -ENOMEM;
	}
	snprintf(options, sizeof(options),
		 "fd=%d,rootmode=%o,user_id=%u,group_id=%u,default_permissions%s", out->fd,
		 st->st_mode & S_IFMT, getuid(), getgid(),
		 config->allow_other ? ",allow_other" : "");
	if (!mount_with_contexts(config, out->mountpoint, type, options))
		return 0;
	if (mount(config->source, out->mountpoint, type, config->flags, options) < 0)
		return -errno;
	return 0;
}

/* st_dev without asking the server, which does not answer yet. */
static int mounted_dev(const char *path, dev_t *dev)
{
	struct statx stx;

	if (statx(AT_FDCWD, path, AT_STATX_DONT_SYNC | AT_NO_AUTOMOUNT, 0, &stx) < 0)
		return -errno;
	*dev = makedev(stx.stx_dev_major, stx.stx_dev_minor);
	return 0;
}

/* As root nothing is gained from the helper, whose message would only hide mount(2)'s. */
static bool may_use_helper(int err)
{
	return geteuid() != 0 && (err == -EPERM || err == -EACCES);
}

int fuse_mount(const struct fuse_mount_config *config, struct fuse_mount *out, char *message,
	       size_t size)
{
	struct stat st;
	bool opened;
	int err;

	*out = (struct fuse_mount){ .fd = -1 };
	err = check_mountpoint(config, out, &st, message, size);
	if (!err) {
		err = mount_directly(config, out, &st);
		opened = out->fd >= 0;
		if (may_use_helper(err)) {
			close_fd(take_fd(&out->fd));
			err = mount_by_helper(config, out, message, size);
		} else if (err) {
			err = opened ? mount_failed(-err, config, out->fd, message, size)
				     : device_failed(-err, message, size);
		}
	}
	if (err) {
		fuse_mount_free(out);
		return err;
	}
	if (mounted_dev(out->mountpoint, &out->dev) < 0)
		out->dev = 0;
	return 0;
}

static int unmount_by_helper(const struct fuse_mount *mount)
{
	char *argv[] = { "fusermount3", "-u", "-q", "-z", "--", mount->mountpoint, NULL };
	pid_t pid;
	int err = spawn_any_helper(argv, -1, -1, &pid);

	if (err)
		return err;
	return wait_helper(pid) == 0 ? 0 : -EPERM;
}

int fuse_unmount(const struct fuse_mount *mount)
{
	dev_t dev;
	int err = mounted_dev(mount->mountpoint, &dev);

	if (err < 0)
		return err;
	if (dev != mount->dev)
		return -EINVAL;
	if (umount2(mount->mountpoint, MNT_DETACH | UMOUNT_NOFOLLOW) == 0)
		return 0;
	err = -errno;
	return mount->by_helper && err == -EPERM ? unmount_by_helper(mount) : err;
}

void fuse_mount_free(struct fuse_mount *mount)
{
	close_fd(take_fd(&mount->fd));
	free(take_ptr(mount->mountpoint));
}
