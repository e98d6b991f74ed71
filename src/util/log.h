/* SPDX-License-Identifier: MIT */
/*
 * Messages for people. One line an event, in levels, to stderr while the process is in front and to
 * syslog (ident "plyfs", facility daemon) once log_to_syslog() was called. Warnings and errors are
 * rate-limited together: at most 20 lines in 10 seconds, after which one line says how many were
 * dropped; debug lines are never limited.
 *
 * Thread-safe: every function may be called from any thread. Nothing but log_to_file() fails (a
 * negative errno); what cannot be written is lost. errno is preserved.
 */
#pragma once

#include <stdbool.h>

enum log_level {
	LOG_LEVEL_NOTICE, /* was asked for: always written */
	LOG_LEVEL_ERROR,
	LOG_LEVEL_WARNING,
	LOG_LEVEL_INFO,
	LOG_LEVEL_DEBUG,
};

/* Messages above @level are dropped. The default is LOG_LEVEL_WARNING. */
void log_set_level(enum log_level level);
bool log_debug_enabled(void);
void log_to_syslog(void);

/* From now on all goes to the end of this file too, and debug lines go nowhere else. */
int log_to_file(const char *path);

void log_message(enum log_level level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#define log_notice(...)  log_message(LOG_LEVEL_NOTICE, __VA_ARGS__)
#define log_error(...)   log_message(LOG_LEVEL_ERROR, __VA_ARGS__)
#define log_warning(...) log_message(LOG_LEVEL_WARNING, __VA_ARGS__)
#define log_info(...)    log_message(LOG_LEVEL_INFO, __VA_ARGS__)
#define log_debug(...)                                                                             \
	do {                                                                                       \
		if (log_debug_enabled())                                                           \
			log_message(LOG_LEVEL_DEBUG, __VA_ARGS__);                                 \
	} while (0)
