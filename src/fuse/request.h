/* SPDX-License-Identifier: MIT */
/*
 * One request of the kernel: how it is taken apart, checked and answered. This is the seam between
 * a transport (dev.c reads /dev/fuse; a ring can be another) beneath, and the handlers above.
 *
 * A transport fills a struct fuse_request (buffers, send), has the message taken apart by
 * fuse_request_parse() and runs it with fuse_request_run(). A handler reads the fields and answers
 * exactly once with one of the fuse_reply calls, from any thread, before it returns; when it does
 * not, the request is answered with EIO. Handlers never see a malformed message: sizes are checked
 * against the table of operations, strings are NUL-terminated inside the message and not empty,
 * names of directory entries hold no slash and are not "." or "..", unless the row has dots.
 *
 * Ownership: everything that a request points to belongs to the transport and is valid until the
 * handler returns. Locks: none; a request belongs to the thread that runs it, only @interrupted
 * is written by others. Errors: 0 or a negative errno. The wire format: fuse_compat.h.
 */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>
#include <time.h>

#include "fuse/fuse_compat.h"

struct fuse_request;

enum fuse_class {
	FUSE_INLINE = 0, /* the reader answers it itself: short as a rule */
	FUSE_BLOCKING,   /* may wait: somebody else goes on reading first */
	FUSE_URGENT,     /* never waits in a queue: it gives something back (FORGET) */
};

/* One row of the table of operations, indexed by opcode. A row without a handler is ENOSYS. */
struct fuse_op {
	const char *name;
	uint16_t arg_size; /* bytes of the fixed argument */
	uint8_t entries;   /* names of directory entries that follow it ... */
	uint8_t strings;   /* ... and then other strings; what is left is the payload */
	bool dots;         /* with FUSE_EXPORT_SUPPORT an entry may be "." or ".." */
	bool no_reply;
	bool others;   /* with allow_root: anybody may ask (the right was checked at open) */
	uint8_t class; /* enum fuse_class */
	/* Optional, asked by the reader for FUSE_INLINE: whether this one is FUSE_BLOCKING. Must
	 * not wait. */
	bool (*blocks)(const struct fuse_request *req);
	void (*handle)(void *ctx, struct fuse_request *req);
};

/* What INIT settled. Written once, before any other request is read. */
struct fuse_conn {
	uint32_t minor;
	uint64_t flags; /* FUSE_* that both sides have */
	uint32_t max_write;
};

struct fuse_request {
	const struct fuse_conn *conn;
	const struct fuse_op *op;
	const struct fuse_in_header *in;
	const void *arg;        /* op->arg_size bytes, aligned to 8 */
	const char *string[2];  /* entries, then strings */
	const uint8_t *payload; /* what follows, e.g. the data of WRITE */
	size_t payload_size;

	/* Room for the data of a reply, aligned to pages; may overlap neither arg nor payload. */
	uint8_t *reply;
	size_t reply_size;

	/* Set when the caller got a signal: the handler may end early with -EINTR. The transport
	 * clears it. */
	atomic_bool interrupted;

	/* Hands a whole reply to the kernel. 0 or a negative errno. */
	int (*send)(struct fuse_request *req, const struct iovec *iov, int count);
	void *transport;

	bool debug;
	bool replied;
	struct timespec start; /* with debug only */
};

/*
 * Takes @message of @size bytes apart by the @count rows of @ops; conn, reply, send and the rest of
 * the transport's own fields must be set. @message is aligned to 8 and outlives the request. On
 * failure -EIO when there is not even a header (in is NULL then, nobody can be answered), -EINVAL
 * or -ENOSYS to be answered.
 */
int fuse_request_parse(struct fuse_request *req, const struct fuse_op *ops, size_t count,
		       const void *message, size_t size);

/*
 * The same for a transport that keeps the three parts of a message apart: the header @in, @arg_size
 * bytes of the fixed argument at @arg (at least as many as it has may be read) and what follows it.
 */
int fuse_request_parse_parts(struct fuse_request *req, const struct fuse_op *ops, size_t count,
			     const struct fuse_in_header *in, const void *arg, size_t arg_size,
			     const void *body, size_t body_size);

/* Runs the handler, and answers for it if it forgot. */
void fuse_request_run(struct fuse_request *req, void *ctx);

/*
 * Answers. @error is 0 or a negative errno. A negative result says that the kernel did not take the
 * reply (-ENOENT: the caller was interrupted and is gone): what it would have handed over (a lookup
 * count, an open file) stays with the handler, who takes it back.
 */
int fuse_reply_error(struct fuse_request *req, int error);
int fuse_reply(struct fuse_request *req, const void *data, size_t size);
/* Two pieces, e.g. a fixed struct and data. */
int fuse_reply_pair(struct fuse_request *req, const void *first, size_t first_size,
		    const void *second, size_t second_size);
