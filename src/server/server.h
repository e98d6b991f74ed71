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
#include <stdint.h>

struct id_map;
struct ovl;
struct server;

/*
 * Lets the engine, which is made first, tell the kernel of changed attributes. Whoever makes the
 * engine puts server_attr_changed and the address of a zeroed hook into ovl_config.attr_changed and
 * ovl_config.ctx, and the same hook into server_config.hook. server_mount() fills it, server_free()
 * empties it; it must outlive both. While it is empty nothing happens.
 */
struct server_hook {
	struct server *_Atomic server;
};

void server_attr_changed(void *hook, uint64_t node, bool listing);

/* How the data of regular files gets to their readers; see docs/performance.md. */
enum server_io {
	SERVER_IO_AUTO,
	SERVER_IO_PASSTHROUGH, /* the kernel reads and writes the real files itself, where it can */
	SERVER_IO_CACHED,      /* through its page cache; open and close need no request */
};

/* How requests come in. */
enum server_transport {
	SERVER_TRANSPORT_AUTO,
	SERVER_TRANSPORT_DEV,   /* read(2) and write(2) on /dev/fuse */
	SERVER_TRANSPORT_URING, /* a ring for each CPU */
};

struct server_config {
	const char *mountpoint;
	const char *source;        /* shown in the mount table; default "plyfs" */
	const char *subtype;       /* the type shown is fuse.<subtype>; default "plyfs" */
	unsigned long mount_flags; /* MS_* of mount(2): MS_RDONLY, MS_NOSUID, MS_NODEV, ... */
	const char *contexts;      /* words of mount(2) for SELinux, or NULL; see fuse/mount.h */
	bool allow_other;
	/*
	 * Only root and the user who mounted. The kernel knows only allow_other: what others may
	 * know from its caches (names, attributes) they can't be kept from.
	 */
	bool allow_root;
	double timeout; /* seconds the kernel may cache entries and attributes; < 0: for ever */
	enum server_io io;
	bool passthrough_all; /* lower files of a writable mount too, for readers */
	bool no_writeback;    /* cached: every write(2) reaches us before it returns */
	enum server_transport transport;
	bool debug;                /* log each request with its reply and time */
	struct server_hook *hook;  /* may be NULL */
	const struct id_map *uids; /* borrowed until server_free(); NULL: none */
	const struct id_map *gids;
	bool static_nlink; /* directories show one link */
	bool counts_links; /* else united ones, too, show as many as they hold directories, and two
			    */
	bool ino32;        /* numbers of inodes fit 32 bits */
	bool no_acl;       /* ACLs are neither checked nor shown */
	bool no_xattrs;    /* there are no xattrs */
	/* The last seven in words of -o, for plyfs status; borrowed like the maps. NULL: none. */
	const char *view;

	/* For tests. FUSE_* flags of INIT that are not asked for even if the kernel has them. */
	uint64_t forbid_flags;
	unsigned int max_threads; /* 0: the default */
};

/*
 * @o is borrowed until server_free(). The config is only read during the call. On success all
 * signals are blocked in the calling thread, and stay so: one that comes from then on waits for
 * server_run(), which unmounts.
 */
int server_mount(const struct server_config *config, struct ovl *o, struct server **out,
		 char *message, size_t size);

/*
 * Serves. @ready(ctx) is called once, from any thread, when INIT was answered and the mount works.
 * Returns 0 after an unmount (by umount, fusermount3 or SIGTERM/SIGINT/SIGHUP, which unmount
 * lazily), a negative errno when the connection broke down; what is left of the mount is then
 * detached. A second signal, or ten seconds with files still open, ends it although the mount is in
 * use. SIGUSR1 has some numbers logged. Ignores SIGPIPE, SIGXFSZ and SIGUSR2 from then on.
 */
int server_run(struct server *s, void (*ready)(void *ctx), void *ctx);

void server_free(struct server *s);
