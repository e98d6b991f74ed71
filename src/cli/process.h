/* SPDX-License-Identifier: MIT */
/*
 * What the process is before it serves: its standard streams, inherited descriptors, limits,
 * rights, and the way into the background. Everything here is called while there is one thread.
 *
 * Errors: 0 or a negative errno; the functions that return void do what they may and let the rest
 * be.
 */
#pragma once

/* What a child in the background holds until it is ready. -1: nothing. */
struct process_child {
	int pipe_fd; /* one byte lets the parent exit with 0 */
	int null_fd;
};

/* Default dispositions and no blocked signals, whatever the caller was started with. */
void process_reset_signals(void);

/*
 * Opens what is closed of 0, 1 and 2 on /dev/null, so that no later file becomes a stream. Does
 * without that device.
 */
int process_open_streams(void);

/* Closes every descriptor above 2. */
void process_close_inherited(void);

/*
 * umask 0, signals that would kill a server ignored, as many files as the hard limit gives, files
 * as long as their writers want.
 */
void process_prepare_to_serve(void);

/*
 * Gives up CAP_SYS_RESOURCE, which would carry clients past quotas, and keeps the other
 * capabilities over a change of fsuid (SECBIT_NO_SETUID_FIXUP). A filesystem's reserve for root
 * stays open to a server that is root: ext4 asks for the uid before the capability.
 */
void process_drop_rights(void);

/*
 * Forks. In the child, which leads a new session, returns 0 and fills *@child for
 * process_ready(). In the parent returns only when that fails (a negative errno): otherwise it
 * exits, with 0 once the child called process_ready(), with the child's status when it exited
 * before.
 */
int process_to_background(struct process_child *child);

/*
 * The child works: gives up its standard streams (somebody may be reading them to their end), sends
 * its messages to syslog, goes to "/" and lets the parent exit. -EPIPE: the parent is gone, nobody
 * wants the mount. Closes what *@child holds. May be called from any thread.
 */
int process_ready(struct process_child *child);
