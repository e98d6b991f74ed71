/* SPDX-License-Identifier: MIT */
#include "cli/process.h"

#include <fcntl.h>
#include <linux/capability.h>
#include <linux/securebits.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "cli/exit.h"
#include "util/base.h"
#include "util/log.h"

void process_reset_signals(void)
{
	sigset_t none;

	/* An ignored SIGCHLD would hide from us how the child ended. */
	signal(SIGCHLD, SIG_DFL);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
}

/* What has no effect as a stream. In a root directory with hardly a file in it that is a
 * descriptor which may neither be read nor written. */
static int open_nothing(int flags)
{
	int fd = open("/dev/null", O_RDWR | flags);

	return fd < 0 ? open("/", O_PATH | flags) : fd;
}

int process_open_streams(void)
{
	int fd;

	do {
		fd = open_nothing(0);
		if (fd < 0)
			return -errno;
	} while (fd <= STDERR_FILENO);
	close(fd);
	return 0;
}

static void close_listed(void)
{
	autodir DIR *dir = opendir("/proc/self/fd");
	struct dirent *d;

	if (!dir)
		return;
	while ((d = readdir(dir))) {
		int fd = atoi(d->d_name);

		if (fd > STDERR_FILENO && fd != dirfd(dir))
			close(fd);
	}
}

void process_close_inherited(void)
{
#ifdef SYS_close_range
	if (!syscall(SYS_close_range, STDERR_FILENO + 1, ~0U, 0))
		return;
#endif
	close_listed(); /* before Linux 5.9 */
}

static void raise_limit(int resource, rlim_t wish)
{
	struct rlimit limit;

	if (getrlimit(resource, &limit) < 0)
		return;

	struct rlimit wanted = { wish, wish };

	/* Above the hard limit only for whoever may. */
	if (wish > limit.rlim_max && !setrlimit(resource, &wanted))
		return;
	limit.rlim_cur = limit.rlim_max;
	setrlimit(resource, &limit);
}

void process_prepare_to_serve(void)
{
	/* The modes that clients ask for are applied by us, with their umask and not with ours. */
	umask(0);

	/* EPIPE and EFBIG are errors of one request. */
	signal(SIGPIPE, SIG_IGN);
	signal(SIGXFSZ, SIG_IGN);
	/* Has a session report; from one that is not there yet nothing is wanted. */
	signal(SIGUSR1, SIG_IGN);

	raise_limit(RLIMIT_NOFILE, 0);
	raise_limit(RLIMIT_FSIZE, RLIM_INFINITY);
}

void process_drop_rights(void)
{
	struct __user_cap_header_struct header = { _LINUX_CAPABILITY_VERSION_3, 0 };
	struct __user_cap_data_struct caps[_LINUX_CAPABILITY_U32S_3];

	prctl(PR_SET_SECUREBITS, prctl(PR_GET_SECUREBITS) | SECBIT_NO_SETUID_FIXUP);

	if (syscall(SYS_capget, &header, caps) < 0)
		return;

	unsigned int i = CAP_TO_INDEX(CAP_SYS_RESOURCE);

	caps[i].effective &= ~CAP_TO_MASK(CAP_SYS_RESOURCE);
	caps[i].permitted &= ~CAP_TO_MASK(CAP_SYS_RESOURCE);
	/* Inheritable and ambient stay: they only matter to what we would execute. */
	syscall(SYS_capset, &header, caps);
}

/* In the parent: waits for the child's word, or for its end, and passes it on. */
static _Noreturn void wait_for_child(int fd, pid_t child)
{
	ssize_t n;
	int status;
	char byte;

	do {
		n = read(fd, &byte, 1);
	} while (n < 0 && errno == EINTR);
	if (n == 1)
		_exit(EXIT_OK);

	while (waitpid(child, &status, 0) < 0) {
		if (errno != EINTR)
			_exit(EXIT_SYSTEM);
	}
	if (WIFEXITED(status)) /* it has said why */
		_exit(WEXITSTATUS(status) ? WEXITSTATUS(status) : EXIT_MOUNT);
	log_error("the server died of signal %d (%s) before the mount was ready", WTERMSIG(status),
		  strsignal(WTERMSIG(status)));
	_exit(EXIT_MOUNT);
}

int process_to_background(struct process_child *child)
{
	autofd int null = open_nothing(O_CLOEXEC);
	int fds[2];

	/* Opened while files are still to be had: the mounted server cannot fail at this. */
	if (null < 0 || pipe2(fds, O_CLOEXEC) < 0)
		return -errno;

	pid_t pid = fork();

	if (pid < 0) {
		close_fd(fds[0]);
		close_fd(fds[1]);
		return -errno;
	}
	if (pid > 0) {
		close(fds[1]);
		wait_for_child(fds[0], pid);
	}

	close(fds[0]);
	/* Cannot fail: a new process leads no group. */
	setsid();
	child->pipe_fd = fds[1];
	child->null_fd = take_fd(&null);
	return 0;
}

int process_ready(struct process_child *child)
{
	autofd int pipe_fd = take_fd(&child->pipe_fd);
	autofd int null = take_fd(&child->null_fd);

	log_to_syslog();
	for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
		dup2(null, fd);
	if (chdir("/") < 0)
		log_warning("chdir to /: %m");
	return write(pipe_fd, "", 1) == 1 ? 0 : -errno;
}
