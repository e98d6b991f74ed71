/* SPDX-License-Identifier: MIT */
/*
 * Any bytes as messages of the kernel: whole ones go through the parser and the handlers of the
 * server to an engine that checks its arguments. Each must be answered at most once, and exactly
 * once if it is one that has an answer; references that a refused reply would have handed over come
 * back.
 *
 * Input: a byte of choices, then messages, each after two bytes of length.
 */
#include <stdlib.h>
#include <string.h>

#include "../unit/fuse/null_engine.c" /* the engine's functions, for the server to be linked with */
#include "fuse/init.h"
#include "server/server_private.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum choice {
	REFUSE_REPLIES = 1,
	ENGINE_FAILS = 2,
	ENTRIES = 4,
	WITHOUT_EXTENSIONS = 8,
	MAPPED = 16,
	WITHOUT_ACLS = 32,
	WITHOUT_XATTRS = 64,
};

static unsigned int replies;
static bool refuse;

static int count_reply(struct fuse_request *req, const struct iovec *iov, int count)
{
	for (int i = 0; i < count; i++)
		touch(iov[i].iov_base, iov[i].iov_len);
	replies++;
	return refuse ? -ENOENT : 0;
}

static void run_message(struct server *s, struct fuse_request *req, const uint8_t *data,
			size_t size)
{
	/* A copy of the exact size: a byte too far is a report. */
	uint8_t *message = malloc(size ? size : 1);
	int err;

	check(message);
	if (size)
		memcpy(message, data, size);
	replies = 0;
	err = fuse_request_parse(req, server_ops, server_op_count, message, size);
	if (!err) {
		fuse_request_run(req, s);
		check(replies == !req->op->no_reply);
	} else {
		check(err == -EIO || err == -EINVAL || err == -ENOSYS);
		check(err != -EIO || !req->in);
	}
	free(message);
}

static void try_init(const uint8_t *data, size_t size)
{
	struct fuse_init_want want = { .flags = UINT64_MAX, .max_write = 1 << 20 };
	struct fuse_init_out out;
	struct fuse_conn conn;
	int err = fuse_init_negotiate(&want, data, size, &out, &conn);

	check(err <= 0);
	check(err < 0 || out.major == FUSE_KERNEL_VERSION);
}

/* Ids have to be translated on the way, and ACLs to be read for the modes. */
static void choose_view(struct server *s, uint8_t choice)
{
	static struct id_range range = { .disk = 0, .shown = 1000, .count = 60000 };
	static const struct id_map map = { .ranges = &range, .count = 1 };

	if (choice & MAPPED)
		s->uids = s->gids = &map;
	s->no_acl = s->hides_acl = choice & WITHOUT_ACLS;
	s->no_xattrs = choice & WITHOUT_XATTRS;
	s->ino32 = s->static_nlink = s->alters = choice & (MAPPED | WITHOUT_ACLS);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static uint8_t reply_buffer[65536];
	struct fuse_conn conn = { .minor = 45, .flags = FUSE_SETXATTR_EXT };
	struct fuse_request req = { .conn = &conn,
				    .reply = reply_buffer,
				    .reply_size = sizeof(reply_buffer),
				    .send = count_reply };
	struct server s = { .coherent = true, .valid = 1 };

	if (size == 0)
		return 0;
	null_engine_reset();
	refuse = data[0] & REFUSE_REPLIES;
	null_engine.result = (data[0] & ENGINE_FAILS) ? -EIO : 0;
	null_engine.entries = (data[0] & ENTRIES) ? 1000 : 3;
	if (data[0] & WITHOUT_EXTENSIONS)
		conn = (struct fuse_conn){ .minor = 31 };
	choose_view(&s, data[0]);
	try_init(data + 1, size - 1);
	for (data++, size--; size >= 2;) {
		size_t length = min((size_t)(data[0] | data[1] << 8), size - 2);

		run_message(&s, &req, data + 2, length);
		data += 2 + length;
		size -= 2 + length;
	}
	return 0;
}
