/* SPDX-License-Identifier: MIT */
#include "fuse/request.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <string.h>

#include "util/base.h"
#include "util/log.h"

/* The kernel takes errors above this only: -512 and below are its own (ERESTARTSYS ...). */
#define LOWEST_ERROR (-511)

static bool is_entry_name(const struct fuse_request *req, const char *name)
{
	if (strchr(name, '/'))
		return false;
	if (req->op->dots && (req->conn->flags & FUSE_EXPORT_SUPPORT))
		return true;
	return strcmp(name, ".") != 0 && strcmp(name, "..") != 0;
}

/* The string at @p, or NULL when it is empty or its NUL lies outside of the message. */
static const char *take_string(const uint8_t **p, size_t *left)
{
	const char *string = (const char *)*p;
	size_t length = strnlen(string, *left);

	if (length == 0 || length == *left)
		return NULL;
	*p += length + 1;
	*left -= length + 1;
	return string;
}

static size_t argument_size(const struct fuse_request *req)
{
	if (req->in->opcode == FUSE_SETXATTR && !(req->conn->flags & FUSE_SETXATTR_EXT))
		return FUSE_COMPAT_SETXATTR_IN_SIZE;
	return req->op->arg_size;
}

/* What follows the fixed argument. */
static int parse_body(struct fuse_request *req, const uint8_t *p, size_t left)
{
	unsigned int strings = req->op->entries + req->op->strings;

	for (unsigned int i = 0; i < strings; i++) {
		const char *string = take_string(&p, &left);

		if (!string || (i < req->op->entries && !is_entry_name(req, string)))
			return -EINVAL;
		req->string[i] = string;
	}
	req->payload = p;
	req->payload_size = left;
	return 0;
}

static void clear(struct fuse_request *req)
{
	req->in = NULL;
	req->op = NULL;
	req->arg = NULL;
	req->string[0] = req->string[1] = NULL;
	req->payload = NULL;
	req->payload_size = 0;
	req->replied = false;
}

/* @size is that of the whole message; @extensions gets how much of it is not for the handler. */
static int parse_header(struct fuse_request *req, const struct fuse_op *ops, size_t count,
			const struct fuse_in_header *in, size_t size, size_t *extensions)
{
	req->in = in;
	if (req->debug)
		clock_gettime(CLOCK_MONOTONIC, &req->start);
	if (in->opcode >= count || !ops[in->opcode].name)
		return -ENOSYS;
	req->op = &ops[in->opcode];
	/* Extensions (supplementary groups, security contexts) follow everything else. */
	*extensions = (size_t)in->total_extlen * 8;
	if (in->len != size || *extensions > size - sizeof(*in))
		return -EINVAL;
	return req->op->handle ? 0 : -ENOSYS;
}

int fuse_request_parse(struct fuse_request *req, const struct fuse_op *ops, size_t count,
		       const void *message, size_t size)
{
	const struct fuse_in_header *in = message;
	const uint8_t *p = (const uint8_t *)(in + 1);
	size_t extensions, arg_size, left;
	int err;

	clear(req);
	if (size < sizeof(*in))
		return -EIO;
	err = parse_header(req, ops, count, in, size, &extensions);
	if (err)
		return err;
	left = size - sizeof(*in) - extensions;
	arg_size = argument_size(req);
	if (left < arg_size)
		return -EINVAL;
	req->arg = p;
	return parse_body(req, p + arg_size, left - arg_size);
}

int fuse_request_parse_parts(struct fuse_request *req, const struct fuse_op *ops, size_t count,
			     const struct fuse_in_header *in, const void *arg, size_t arg_size,
			     const void *body, size_t body_size)
{
	size_t extensions;
	int err;

	clear(req);
	err = parse_header(req, ops, count, in, sizeof(*in) + arg_size + body_size, &extensions);
	if (err)
		return err;
	if (arg_size < argument_size(req) || extensions > body_size)
		return -EINVAL;
	req->arg = arg;
	return parse_body(req, body, body_size - extensions);
}

/* Names come from users: what would break the line or the terminal is shown as hexadecimal. */
static void quote(char *out, size_t size, const char *string)
{
	static const char hex[] = "0123456789abcdef";
	size_t used = 0;

	for (const unsigned char *p = (const unsigned char *)string; *p && used + 6 < size; p++) {
		if (*p < 0x20 || *p == 0x7f || *p == '\\' || *p == '"') {
			out[used++] = '\\';
			out[used++] = 'x';
			out[used++] = hex[*p >> 4];
			out[used++] = hex[*p & 15];
		} else {
			out[used++] = (char)*p;
		}
	}
	out[used] = '\0';
}

static void describe_argument(const struct fuse_request *req, char *out, size_t size)
{
	out[0] = '\0';
	if (!req->op || !req->arg)
		return;
	switch (req->in->opcode) {
	case FUSE_READ:
	case FUSE_READDIR:
	case FUSE_READDIRPLUS: {
		const struct fuse_read_in *arg = req->arg;

		snprintf(out, size, " size %u at %" PRIu64, arg->size, arg->offset);
		break;
	}
	case FUSE_WRITE: {
		const struct fuse_write_in *arg = req->arg;

		snprintf(out, size, " size %u at %" PRIu64, arg->size, arg->offset);
		break;
	}
	case FUSE_SETATTR: {
		const struct fuse_setattr_in *arg = req->arg;

		snprintf(out, size, " valid 0x%x mode 0%o size %" PRIu64, arg->valid, arg->mode,
			 arg->size);
		break;
	}
	case FUSE_OPEN:
	case FUSE_CREATE:
	case FUSE_TMPFILE: {
		const struct fuse_open_in *arg = req->arg;

		snprintf(out, size, " flags 0x%x", arg->flags);
		break;
	}
	default: break;
	}
}

static void log_reply(const struct fuse_request *req, int error, size_t size, int sent)
{
	char argument[96], names[2][NAME_MAX + 1], strings[2 * NAME_MAX + 16] = "", result[96];
	struct timespec now;
	long us;

	clock_gettime(CLOCK_MONOTONIC, &now);
	us = (now.tv_sec - req->start.tv_sec) * 1000000 + (now.tv_nsec - req->start.tv_nsec) / 1000;
	describe_argument(req, argument, sizeof(argument));
	if (req->string[0])
		quote(names[0], sizeof(names[0]), req->string[0]);
	if (req->string[1]) {
		quote(names[1], sizeof(names[1]), req->string[1]);
		snprintf(strings, sizeof(strings), " \"%s\" \"%s\"", names[0], names[1]);
	} else if (req->string[0]) {
		snprintf(strings, sizeof(strings), " \"%s\"", names[0]);
	}
	if (error)
		snprintf(result, sizeof(result), "%s", strerrorname_np(-error));
	else
		snprintf(result, sizeof(result), "ok %zu", size);
	log_debug("%s unique %" PRIu64 " node %" PRIu64 "%s%s -> %s%s%s %ld us",
		  req->op ? req->op->name : "?", (uint64_t)req->in->unique,
		  (uint64_t)req->in->nodeid, strings, argument, result,
		  sent < 0 ? ", not taken: " : "", sent < 0 ? strerrorname_np(-sent) : "", us);
}

static int reply(struct fuse_request *req, int error, const void *first, size_t first_size,
		 const void *second, size_t second_size)
{
	struct fuse_out_header out = {
		.len = (uint32_t)(sizeof(out) + first_size + second_size),
		.error = error,
		.unique = req->in->unique,
	};
	struct iovec iov[3] = { { &out, sizeof(out) } };
	int count = 1;
	int sent;

	if (unlikely(req->replied))
		return -EALREADY;
	req->replied = true;
	if (first_size)
		iov[count++] = (struct iovec){ (void *)first, first_size };
	if (second_size)
		iov[count++] = (struct iovec){ (void *)second, second_size };
	sent = req->send(req, iov, count);
	if (unlikely(sent < 0 && sent != -ENOENT && sent != -ENODEV && !error)) {
		/* Whatever the kernel disliked about it, somebody waits for an answer. */
		out.len = sizeof(out);
		out.error = -EIO;
		req->send(req, iov, 1);
	}
	if (unlikely(req->debug))
		log_reply(req, error, first_size + second_size, sent);
	return sent;
}

int fuse_reply_error(struct fuse_request *req, int error)
{
	if (error < LOWEST_ERROR || error > 0)
		error = -EIO;
	return reply(req, error, NULL, 0, NULL, 0);
}

int fuse_reply(struct fuse_request *req, const void *data, size_t size)
{
	return reply(req, 0, data, size, NULL, 0);
}

int fuse_reply_pair(struct fuse_request *req, const void *first, size_t first_size,
		    const void *second, size_t second_size)
{
	return reply(req, 0, first, first_size, second, second_size);
}

void fuse_request_run(struct fuse_request *req, void *ctx)
{
	req->op->handle(ctx, req);
	if (likely(req->replied))
		return;
	if (!req->op->no_reply)
		fuse_reply_error(req, -EIO);
	else if (unlikely(req->debug))
		log_reply(req, 0, 0, 0);
}
