/* SPDX-License-Identifier: MIT */
#include "util/log.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/uio.h>
#include <syslog.h>
#include <time.h>
#include <unistd.h>

#include "util/base.h"

/* A message names at most two paths of PATH_MAX; what is longer is cut. */
#define MESSAGE_MAX 8704

#define RATE_LINES   20
#define RATE_SECONDS 10

static atomic_int max_level = LOG_LEVEL_WARNING;
static atomic_bool use_syslog;
static atomic_int file_fd = -1;

/* All guarded by rate_lock, under which nothing is written and no other lock is taken. */
static pthread_mutex_t rate_lock = PTHREAD_MUTEX_INITIALIZER;
static time_t window_start = -RATE_SECONDS;
static unsigned int window_lines;
static unsigned long dropped;

static const struct {
	int priority;
	const char *prefix;
} levels[] = {
	[LOG_LEVEL_NOTICE] = { LOG_NOTICE, "" },
	[LOG_LEVEL_ERROR] = { LOG_ERR, "" },
	[LOG_LEVEL_WARNING] = { LOG_WARNING, "warning: " },
	[LOG_LEVEL_INFO] = { LOG_INFO, "" },
	[LOG_LEVEL_DEBUG] = { LOG_DEBUG, "" },
};

void log_set_level(enum log_level level)
{
	atomic_store_explicit(&max_level, level, memory_order_relaxed);
}

bool log_debug_enabled(void)
{
	return atomic_load_explicit(&max_level, memory_order_relaxed) >= LOG_LEVEL_DEBUG;
}

void log_to_syslog(void)
{
	/* Opens the socket now: the daemon may later be out of file descriptors. */
	openlog("plyfs", LOG_PID | LOG_NDELAY, LOG_DAEMON);
	atomic_store_explicit(&use_syslog, true, memory_order_release);
}

int log_to_file(const char *path)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_NOCTTY | O_CLOEXEC, 0600);

	if (fd < 0)
		return -errno;
	close_fd(atomic_exchange(&file_fd, fd));
	return 0;
}

/* A file name may hold anything: one event stays one line and sends nothing to the terminal. */
static void make_printable(char *s)
{
	for (; *s; s++) {
		if ((unsigned char)*s < 0x20 || *s == 0x7f)
			*s = '?';
	}
}

static void write_to(int fd, enum log_level level, const char *text)
{
	struct iovec line[] = {
		{ (char *)"plyfs: ", 7 },
		{ (char *)levels[level].prefix, strlen(levels[level].prefix) },
		{ (char *)text, strlen(text) },
		{ (char *)"\n", 1 },
	};

	/* One writev, so that lines of several threads do not mix. */
	if (writev(fd, line, ARRAY_SIZE(line)) < 0)
		return; /* nobody to tell */
}

static void write_line(enum log_level level, char *text)
{
	int fd = atomic_load_explicit(&file_fd, memory_order_acquire);

	make_printable(text);
	if (fd >= 0)
		write_to(fd, level, text);
	if (fd >= 0 && level == LOG_LEVEL_DEBUG)
		return;
	if (atomic_load_explicit(&use_syslog, memory_order_acquire)) {
		syslog(levels[level].priority, "%s%s", levels[level].prefix, text);
		return;
	}
	write_to(STDERR_FILENO, level, text);
}

/* Whether a line may go out now; *@lost gets how many were held back in the window before. */
static bool within_rate(unsigned long *lost)
{
	struct timespec now;
	bool allowed;

	clock_gettime(CLOCK_MONOTONIC, &now);
	pthread_mutex_lock(&rate_lock);
	*lost = 0;
	if (now.tv_sec - window_start >= RATE_SECONDS) {
		*lost = dropped;
		dropped = 0;
		window_start = now.tv_sec;
		window_lines = 0;
	}
	allowed = window_lines < RATE_LINES;
	if (allowed)
		window_lines++;
	else
		dropped++;
	pthread_mutex_unlock(&rate_lock);
	return allowed;
}

void log_message(enum log_level level, const char *fmt, ...)
{
	int saved = errno;
	char text[MESSAGE_MAX];
	va_list args;

	if ((int)level > atomic_load_explicit(&max_level, memory_order_relaxed))
		return;

	if (level == LOG_LEVEL_ERROR || level == LOG_LEVEL_WARNING) {
		unsigned long lost;

		if (!within_rate(&lost))
			goto out;
		if (lost) {
			snprintf(text, sizeof(text), "%lu more messages were dropped", lost);
			write_line(LOG_LEVEL_WARNING, text);
		}
	}

	errno = saved; /* for %m */
	va_start(args, fmt);
	if (vsnprintf(text, sizeof(text), fmt, args) < 0)
		text[0] = '\0';
	va_end(args);
	write_line(level, text);
out:
	errno = saved;
}
