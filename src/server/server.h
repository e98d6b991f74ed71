/* SPDX-License-Identifier: MIT */
/*
 * Where the union engine and the FUSE session meet: one mount, from /dev/fuse opened to unmounted.
 *
 * Order: server_mount() opens /dev/fuse and mounts; server_run() serves until the mount is gone.
 * server_mount() must be called in the process that serves, before any thread is started.
 * Neither prints; failures are a negative errno and one line for people in @message.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

struct ovl;
struct server;

struct server_config {
	const char *mountpoint;
	const char *source;	   /* shown in the mount table; default "plyfs" */
	const char *subtype;	   /* the type shown is fuse.<subtype>; default "plyfs" */
	unsigned long mount_flags; /* MS_* of mount(2): MS_RDONLY, MS_NOSUID, MS_NODEV, ... */
	bool allow_other;
	bool allow_root;
	double timeout; /* seconds the kernel may cache entries and attributes; < 0: for ever */
	bool debug;	/* log each request with its reply and time */
};

/* @o is borrowed until server_free(). */
int server_mount(const struct server_config *config, struct ovl *o, struct server **out,
		 char *message, size_t size);

/*
 * Serves. @ready(ctx) is called once, from any thread, when INIT was answered and the mount works.
 * Returns 0 after an unmount (by umount, fusermount3 or SIGTERM/SIGINT/SIGHUP, which unmount lazily),
 * a negative errno when the connection broke down.
 */
int server_run(struct server *s, void (*ready)(void *ctx), void *ctx);

void server_free(struct server *s);
