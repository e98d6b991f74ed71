/* SPDX-License-Identifier: MIT */
/* Messages of the kernel: what is taken, what is refused, how they are answered. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>

#include "null_engine.h"
#include "server/server_private.h"
#include "util/base.h"

#define MESSAGE_SIZE 8192
#define REPLY_SIZE   8192

struct state {
	_Alignas(8) uint8_t message[MESSAGE_SIZE];
	size_t size;
	uint8_t buffer[REPLY_SIZE];
	struct fuse_conn conn;
	struct fuse_request req;
	struct server server;
	/* The last reply. */
	struct fuse_out_header out;
	_Alignas(8) uint8_t data[REPLY_SIZE + 256];
	size_t data_size;
	unsigned int replies;
	int send_result;
	uint32_t uid; /* of the caller of an ioctl */
};

static int keep_reply(struct fuse_request *req, const struct iovec *iov, int count)
{
	struct state *s = req->transport;

	memcpy(&s->out, iov[0].iov_base, sizeof(s->out));
	s->data_size = 0;
	for (int i = 1; i < count; i++) {
		memcpy(s->data + s->data_size, iov[i].iov_base, iov[i].iov_len);
		s->data_size += iov[i].iov_len;
	}
	s->replies++;
	return s->send_result;
}

static int setup(void **state)
{
	struct state *s = calloc(1, sizeof(*s));

	if (!s)
		return -1;
	s->conn = (struct fuse_conn){ .minor = 45, .flags = FUSE_SETXATTR_EXT };
	s->req = (struct fuse_request){ .conn = &s->conn,
					.reply = s->buffer,
					.reply_size = sizeof(s->buffer),
					.send = keep_reply,
					.transport = s };
	server_set_timeout(&s->server, -1);
	null_engine_reset();
	*state = s;
	return 0;
}

static int teardown(void **state)
{
	free(*state);
	return 0;
}

static void begin(struct state *s, uint32_t opcode, uint64_t node)
{
	struct fuse_in_header *in = (void *)s->message;

	*in = (struct fuse_in_header){
		.opcode = opcode, .nodeid = node, .unique = 1234, .uid = 10, .gid = 20, .pid = 30
	};
	s->size = sizeof(*in);
}

static void add(struct state *s, const void *data, size_t size)
{
	if (size)
		memcpy(s->message + s->size, data, size);
	s->size += size;
}

static void add_string(struct state *s, const char *string)
{
	add(s, string, strlen(string) + 1);
}

static int parse(struct state *s)
{
	struct fuse_in_header *in = (void *)s->message;

	in->len = (uint32_t)s->size;
	return fuse_request_parse(&s->req, server_ops, server_op_count, s->message, s->size);
}

/* Runs the message and returns the error of its reply. */
static int run(struct state *s)
{
	s->replies = 0;
	assert_int_equal(parse(s), 0);
	fuse_request_run(&s->req, &s->server);
	assert_int_equal(s->replies, s->req.op->no_reply ? 0 : 1);
	assert_int_equal(s->out.unique, 1234);
	assert_int_equal(s->out.len, sizeof(s->out) + s->data_size);
	return s->out.error;
}

static void test_message_shorter_than_header_cannot_be_answered(void **state)
{
	struct state *s = *state;

	for (size_t size = 0; size < sizeof(struct fuse_in_header); size++) {
		assert_int_equal(
			fuse_request_parse(&s->req, server_ops, server_op_count, s->message, size),
			-EIO);
		assert_null(s->req.in);
	}
}

static void test_length_in_header_must_be_the_message_length(void **state)
{
	struct state *s = *state;
	struct fuse_in_header *in = (void *)s->message;

	begin(s, FUSE_STATFS, 1);
	in->len = (uint32_t)s->size + 1;
	assert_int_equal(
		fuse_request_parse(&s->req, server_ops, server_op_count, s->message, s->size),
		-EINVAL);
	in->len = (uint32_t)s->size - 1;
	assert_int_equal(
		fuse_request_parse(&s->req, server_ops, server_op_count, s->message, s->size),
		-EINVAL);
}

static void test_unknown_opcodes_are_enosys(void **state)
{
	struct state *s = *state;
	static const uint32_t opcodes[] = { 0, 7, 19, 48, 49, 54, 4096, UINT32_MAX };

	for (size_t i = 0; i < ARRAY_SIZE(opcodes); i++) {
		begin(s, opcodes[i], 1);
		assert_int_equal(parse(s), -ENOSYS);
	}
}

static void test_argument_cut_short_is_refused_for_every_opcode(void **state)
{
	struct state *s = *state;
	static const uint8_t zeros[256];

	for (uint32_t opcode = 0; opcode < server_op_count; opcode++) {
		const struct fuse_op *op = &server_ops[opcode];

		if (!op->handle)
			continue;
		for (size_t size = 0; size < op->arg_size; size++) {
			begin(s, opcode, 1);
			add(s, zeros, size);
			assert_int_equal(parse(s), -EINVAL);
		}
	}
}

static void test_every_opcode_with_a_handler_answers_once(void **state)
{
	struct state *s = *state;
	static const uint8_t zeros[256];

	for (uint32_t opcode = 0; opcode < server_op_count; opcode++) {
		const struct fuse_op *op = &server_ops[opcode];

		if (!op->handle)
			continue;
		begin(s, opcode, 1);
		add(s, zeros, op->arg_size);
		for (int i = 0; i < op->entries + op->strings; i++)
			add_string(s, "name");
		run(s);
	}
}

static void test_names_must_end_inside_the_message(void **state)
{
	struct state *s = *state;

	begin(s, FUSE_LOOKUP, 1);
	assert_int_equal(parse(s), -EINVAL);
	begin(s, FUSE_LOOKUP, 1);
	add(s, "abc", 3);
	assert_int_equal(parse(s), -EINVAL);
	begin(s, FUSE_SYMLINK, 1);
	add_string(s, "name");
	add(s, "target", 6);
	assert_int_equal(parse(s), -EINVAL);
}

static void test_names_that_are_no_entries_are_refused(void **state)
{
	struct state *s = *state;
	static const char *const names[] = { "", ".", "..", "/", "a/b", "../x" };

	for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
		struct fuse_rename_in arg = { .newdir = 1 };

		begin(s, FUSE_UNLINK, 1);
		add_string(s, names[i]);
		assert_int_equal(parse(s), -EINVAL);
		begin(s, FUSE_RENAME, 1);
		add(s, &arg, sizeof(arg));
		add_string(s, "good");
		add_string(s, names[i]);
		assert_int_equal(parse(s), -EINVAL);
	}
	begin(s, FUSE_SYMLINK, 1);
	add_string(s, "name");
	add_string(s, "../a/target");
	assert_int_equal(parse(s), 0);
	assert_string_equal(s->req.string[1], "../a/target");
}

static void test_extensions_are_cut_off(void **state)
{
	struct state *s = *state;
	struct fuse_in_header *in = (void *)s->message;

	begin(s, FUSE_LOOKUP, 1);
	add_string(s, "abc");
	add(s, "extensionextensi", 16);
	in->total_extlen = 2;
	assert_int_equal(parse(s), 0);
	assert_string_equal(s->req.string[0], "abc");
	assert_int_equal(s->req.payload_size, 0);
	in->total_extlen = 3;
	assert_int_equal(parse(s), -EINVAL);
	in->total_extlen = UINT16_MAX;
	assert_int_equal(parse(s), -EINVAL);
}

static void test_setxattr_has_two_layouts(void **state)
{
	struct state *s = *state;
	struct fuse_setxattr_in arg = { .size = 3, .setxattr_flags = FUSE_SETXATTR_ACL_KILL_SGID };

	begin(s, FUSE_SETXATTR, 1);
	add(s, &arg, sizeof(arg));
	add_string(s, "user.a");
	add(s, "val", 3);
	assert_int_equal(run(s), 0);
	assert_int_equal(null_engine.size, 3);
	assert_true(null_engine.flags);

	s->conn.flags = 0;
	begin(s, FUSE_SETXATTR, 1);
	add(s, &arg, FUSE_COMPAT_SETXATTR_IN_SIZE);
	add_string(s, "user.a");
	add(s, "val", 3);
	assert_int_equal(run(s), 0);
	assert_int_equal(null_engine.size, 3);
	assert_false(null_engine.flags);
}

static void test_data_longer_than_the_message_is_refused(void **state)
{
	struct state *s = *state;
	struct fuse_write_in write_arg = { .size = 5 };
	struct fuse_setxattr_in xattr_arg = { .size = 5 };

	begin(s, FUSE_WRITE, 1);
	add(s, &write_arg, sizeof(write_arg));
	add(s, "four", 4);
	assert_int_equal(run(s), -EINVAL);
	begin(s, FUSE_SETXATTR, 1);
	add(s, &xattr_arg, sizeof(xattr_arg));
	add_string(s, "user.a");
	add(s, "four", 4);
	assert_int_equal(run(s), -EINVAL);
	assert_int_equal(null_engine.calls, 0);
}

static void test_offsets_past_the_largest_are_refused(void **state)
{
	struct state *s = *state;
	struct fuse_write_in write_arg = { .offset = INT64_MAX, .size = 4 };
	struct fuse_read_in read_arg = { .offset = UINT64_MAX, .size = 4 };
	struct fuse_fallocate_in fallocate_arg = { .offset = INT64_MAX, .length = 1 };
	struct fuse_setattr_in setattr_arg = { .valid = FATTR_SIZE, .size = UINT64_MAX };

	begin(s, FUSE_WRITE, 1);
	add(s, &write_arg, sizeof(write_arg));
	add(s, "four", 4);
	assert_int_equal(run(s), -EINVAL);
	begin(s, FUSE_READ, 1);
	add(s, &read_arg, sizeof(read_arg));
	assert_int_equal(run(s), -EINVAL);
	begin(s, FUSE_FALLOCATE, 1);
	add(s, &fallocate_arg, sizeof(fallocate_arg));
	assert_int_equal(run(s), -EINVAL);
	begin(s, FUSE_SETATTR, 1);
	add(s, &setattr_arg, sizeof(setattr_arg));
	assert_int_equal(run(s), -EINVAL);
	assert_int_equal(null_engine.calls, 0);
}

static void test_read_larger_than_the_buffer_is_refused_not_cut(void **state)
{
	struct state *s = *state;
	struct fuse_read_in arg = { .size = REPLY_SIZE + 1 };

	begin(s, FUSE_READ, 1);
	add(s, &arg, sizeof(arg));
	assert_int_equal(run(s), -EINVAL);
	arg.size = REPLY_SIZE;
	begin(s, FUSE_READ, 1);
	add(s, &arg, sizeof(arg));
	assert_int_equal(run(s), 0);
	assert_int_equal(s->data_size, REPLY_SIZE);
}

static void test_missing_name_is_a_negative_entry_for_ever(void **state)
{
	struct state *s = *state;
	struct fuse_entry_out *out = (void *)s->data;

	null_engine.result = -ENOENT;
	begin(s, FUSE_LOOKUP, 1);
	add_string(s, "nothing");
	assert_int_equal(run(s), 0);
	assert_int_equal(out->nodeid, 0);
	assert_true(out->entry_valid > 1000000000);

	server_set_timeout(&s->server, 0);
	begin(s, FUSE_LOOKUP, 1);
	add_string(s, "nothing");
	assert_int_equal(run(s), -ENOENT);
}

static void test_entry_that_was_not_taken_is_forgotten(void **state)
{
	struct state *s = *state;

	s->send_result = -ENOENT;
	begin(s, FUSE_LOOKUP, 1);
	add_string(s, "name");
	run(s);
	assert_int_equal(null_engine.lookups, 0);
	s->send_result = 0;
	run(s);
	assert_int_equal(null_engine.lookups, 1);
}

static void test_open_that_was_not_taken_is_released(void **state)
{
	struct state *s = *state;
	struct fuse_open_in open_arg = { .flags = O_RDWR };
	struct fuse_create_in create_arg = { .flags = O_RDWR | O_CREAT, .mode = S_IFREG | 0666 };

	s->send_result = -ENOENT;
	begin(s, FUSE_OPEN, 1);
	add(s, &open_arg, sizeof(open_arg));
	run(s);
	begin(s, FUSE_CREATE, 1);
	add(s, &create_arg, sizeof(create_arg));
	add_string(s, "name");
	run(s);
	assert_int_equal(null_engine.opens, 0);
	assert_int_equal(null_engine.lookups, 0);
}

static void test_release_gets_the_flags_of_open(void **state)
{
	struct state *s = *state;
	struct fuse_open_in open_arg = { .flags = O_RDWR | O_APPEND | O_TRUNC | 0x20 };
	struct fuse_release_in release_arg = { .flags = O_RDONLY };

	begin(s, FUSE_OPEN, 9);
	add(s, &open_arg, sizeof(open_arg));
	assert_int_equal(run(s), 0);
	assert_int_equal(null_engine.flags, O_RDWR | O_APPEND | O_TRUNC);
	release_arg.fh = ((struct fuse_open_out *)s->data)->fh;
	begin(s, FUSE_RELEASE, 9);
	add(s, &release_arg, sizeof(release_arg));
	assert_int_equal(run(s), 0);
	assert_int_equal(null_engine.flags, O_RDWR | O_APPEND | O_TRUNC);
	assert_int_equal(null_engine.opens, 0);

	release_arg.fh = 1;
	begin(s, FUSE_RELEASE, 9);
	add(s, &release_arg, sizeof(release_arg));
	assert_int_equal(run(s), -EBADF);
}

static void test_creating_what_exists_makes_the_kernel_look_again(void **state)
{
	struct state *s = *state;
	struct fuse_create_in arg = { .flags = O_RDWR | O_CREAT, .umask = 027 };

	null_engine.result = -EEXIST;
	begin(s, FUSE_CREATE, 1);
	add(s, &arg, sizeof(arg));
	add_string(s, "name");
	assert_int_equal(run(s), -ESTALE);
	assert_int_equal(null_engine.caller.umask, 027);
	assert_int_equal(null_engine.caller.uid, 10);
	assert_int_equal(null_engine.caller.gid, 20);
	assert_int_equal(null_engine.caller.pid, 30);
	arg.flags |= O_EXCL;
	begin(s, FUSE_CREATE, 1);
	add(s, &arg, sizeof(arg));
	add_string(s, "name");
	assert_int_equal(run(s), -EEXIST);
}

static int read_dir(struct state *s, uint32_t opcode, uint64_t fh, uint64_t offset, uint32_t size)
{
	struct fuse_read_in arg = { .fh = fh, .offset = offset, .size = size };

	begin(s, opcode, 1);
	add(s, &arg, sizeof(arg));
	return run(s);
}

static void test_directory_is_read_without_being_opened(void **state)
{
	struct state *s = *state;
	const uint64_t handles[] = { 0, 1, UINT64_MAX };

	null_engine.entries = 2;
	for (size_t i = 0; i < ARRAY_SIZE(handles); i++) {
		assert_int_equal(read_dir(s, FUSE_READDIR, handles[i], 0, 4096), 0);
		assert_true(s->data_size > 0);
		assert_int_equal(null_engine.node, 1);
	}
}

static void test_listing_is_cached_unless_layers_may_change(void **state)
{
	struct state *s = *state;
	const struct fuse_open_in arg = { 0 };
	const struct fuse_open_out *out = (void *)s->data;

	begin(s, FUSE_OPENDIR, 1);
	add(s, &arg, sizeof(arg));
	assert_int_equal(run(s), 0);
	assert_int_equal(out->open_flags, FOPEN_CACHE_DIR | FOPEN_KEEP_CACHE);
	server_set_timeout(&s->server, 0);
	begin(s, FUSE_OPENDIR, 1);
	add(s, &arg, sizeof(arg));
	assert_int_equal(run(s), 0);
	assert_int_equal(out->open_flags, 0);
}

static void test_readdirplus_counts_only_what_fits(void **state)
{
	struct state *s = *state;
	size_t dot = FUSE_DIRENT_ALIGN(FUSE_NAME_OFFSET_DIRENTPLUS + 1);
	size_t other = FUSE_DIRENT_ALIGN(FUSE_NAME_OFFSET_DIRENTPLUS + 9);
	const struct fuse_direntplus *plus = (void *)s->data;

	null_engine.entries = 10;
	assert_int_equal(read_dir(s, FUSE_READDIRPLUS, 0, 0, (uint32_t)(dot + 2 * other + 7)), 0);
	assert_int_equal(s->data_size, dot + 2 * other);
	assert_int_equal(null_engine.lookups, 2);
	assert_int_equal(plus->entry_out.nodeid, 0);
	plus = (void *)(s->data + dot);
	assert_int_equal(plus->entry_out.nodeid, 101);
	assert_int_equal(plus->dirent.off, 2);
	assert_memory_equal(plus->dirent.name, "some-name", 9);

	assert_int_equal(read_dir(s, FUSE_READDIRPLUS, 0, 3, 20), 0);
	assert_int_equal(s->data_size, 0);
	assert_int_equal(null_engine.lookups, 2);

	s->send_result = -ENOENT;
	read_dir(s, FUSE_READDIRPLUS, 0, 0, 4096);
	assert_int_equal(null_engine.lookups, 2);
}

static void test_readdir_gives_what_was_read_before_an_error(void **state)
{
	struct state *s = *state;

	null_engine.entries = 2;
	null_engine.result = -EIO;
	assert_int_equal(read_dir(s, FUSE_READDIR, 0, 0, 4096), 0);
	assert_true(s->data_size > 0);
	assert_int_equal(read_dir(s, FUSE_READDIR, 0, 2, 4096), -EIO);
}

static void test_enosys_of_a_layer_does_not_switch_off_the_operation(void **state)
{
	struct state *s = *state;
	struct fuse_fallocate_in arg = { .length = 1 };

	null_engine.result = -ENOSYS;
	begin(s, FUSE_FALLOCATE, 1);
	add(s, &arg, sizeof(arg));
	assert_int_equal(run(s), -EOPNOTSUPP);
}

static void test_errors_that_the_kernel_does_not_take_become_eio(void **state)
{
	struct state *s = *state;

	begin(s, FUSE_STATFS, 1);
	null_engine.result = -512;
	assert_int_equal(run(s), -EIO);
	null_engine.result = 5;
	assert_int_equal(run(s), -EIO);
	null_engine.result = -ENOSPC;
	assert_int_equal(run(s), -ENOSPC);
}

static void test_reply_that_the_kernel_dislikes_is_followed_by_eio(void **state)
{
	struct state *s = *state;

	begin(s, FUSE_STATFS, 1);
	parse(s);
	s->send_result = -EINVAL;
	fuse_request_run(&s->req, &s->server);
	assert_int_equal(s->replies, 2);
	assert_int_equal(s->out.error, -EIO);
	assert_int_equal(fuse_reply_error(&s->req, 0), -EALREADY);
}

static void answer_nothing(void *ctx, struct fuse_request *req)
{
}

static void test_handler_without_an_answer_is_answered_for(void **state)
{
	struct state *s = *state;
	const struct fuse_op ops[] = { [1] = { .name = "LAZY", .handle = answer_nothing } };
	struct fuse_in_header *in = (void *)s->message;

	begin(s, 1, 1);
	in->len = (uint32_t)s->size;
	assert_int_equal(fuse_request_parse(&s->req, ops, ARRAY_SIZE(ops), s->message, s->size), 0);
	fuse_request_run(&s->req, NULL);
	assert_int_equal(s->replies, 1);
	assert_int_equal(s->out.error, -EIO);
}

static void test_xattr_size_is_asked_and_value_given(void **state)
{
	struct state *s = *state;
	struct fuse_getxattr_in arg = { 0 };

	begin(s, FUSE_GETXATTR, 1);
	add(s, &arg, sizeof(arg));
	add_string(s, "user.a");
	assert_int_equal(run(s), 0);
	assert_int_equal(s->data_size, sizeof(struct fuse_getxattr_out));
	assert_int_equal(((struct fuse_getxattr_out *)s->data)->size, 5);
	arg.size = UINT32_MAX;
	null_engine.count = 5;
	begin(s, FUSE_GETXATTR, 1);
	add(s, &arg, sizeof(arg));
	add_string(s, "user.a");
	assert_int_equal(run(s), 0);
	assert_int_equal(s->data_size, 5);
}

static int do_ioctl(struct state *s, struct fuse_ioctl_in arg, const void *data, size_t size)
{
	struct fuse_in_header *in = (void *)s->message;

	begin(s, FUSE_IOCTL, 1);
	in->uid = s->uid;
	add(s, &arg, sizeof(arg));
	add(s, data, size);
	return run(s);
}

static void test_ioctl_sizes_are_checked(void **state)
{
	struct state *s = *state;
	unsigned int flags = 0x10;
	struct fsxattr fsx = { 0 };
	const struct fuse_ioctl_in get = { .cmd = FS_IOC_GETFLAGS, .out_size = 4 };
	struct fuse_ioctl_in arg = get;

	assert_int_equal(do_ioctl(s, arg, NULL, 0), 0);
	assert_int_equal(s->data_size, sizeof(struct fuse_ioctl_out) + 4);
	memcpy(&flags, s->data + sizeof(struct fuse_ioctl_out), 4);
	assert_int_equal(flags, 0x12345678);
	arg.out_size = 3;
	assert_int_equal(do_ioctl(s, arg, NULL, 0), -EINVAL);
	arg.out_size = UINT32_MAX;
	assert_int_equal(do_ioctl(s, arg, NULL, 0), -EINVAL);
	/* The kernel translates these for 32-bit callers; from others it checks no rights. */
	arg = (struct fuse_ioctl_in){ .cmd = FS_IOC32_SETFLAGS, .in_size = 4 };
	assert_int_equal(do_ioctl(s, arg, &flags, 4), -ENOTTY);
	arg = (struct fuse_ioctl_in){ .cmd = FS_IOC_SETFLAGS, .in_size = 4 };
	assert_int_equal(do_ioctl(s, arg, &flags, 4), 0);
	assert_int_equal(null_engine.flags, 0x12345678);
	assert_int_equal(do_ioctl(s, arg, &flags, 3), -EINVAL);
	arg.in_size = 3;
	assert_int_equal(do_ioctl(s, arg, &flags, 4), -EINVAL);
	arg = (struct fuse_ioctl_in){ .cmd = FS_IOC_FSSETXATTR, .in_size = sizeof(fsx) };
	assert_int_equal(do_ioctl(s, arg, &fsx, sizeof(fsx)), 0);
	assert_int_equal(do_ioctl(s, arg, &fsx, sizeof(fsx) - 1), -EINVAL);
	arg = (struct fuse_ioctl_in){ .cmd = FS_IOC_FSGETXATTR, .out_size = sizeof(fsx) };
	assert_int_equal(do_ioctl(s, arg, NULL, 0), 0);
	assert_int_equal(s->data_size, sizeof(struct fuse_ioctl_out) + sizeof(fsx));
	arg = get;
	arg.flags = FUSE_IOCTL_UNRESTRICTED;
	assert_int_equal(do_ioctl(s, arg, NULL, 0), -EINVAL);
	arg = (struct fuse_ioctl_in){ .cmd = 0x1234, .out_size = 4 };
	assert_int_equal(do_ioctl(s, arg, NULL, 0), -ENOTTY);
}

static void test_only_the_owner_sets_flags(void **state)
{
	struct state *s = *state;
	const struct fuse_ioctl_in arg = { .cmd = FS_IOC_SETFLAGS, .in_size = 4 };
	unsigned int flags = 0x10;

	s->uid = 10;
	assert_int_equal(do_ioctl(s, arg, &flags, 4), -EPERM);
	s->uid = 0;
	assert_int_equal(do_ioctl(s, arg, &flags, 4), 0);
	/* The kernel that does not say who it is has checked that. */
	s->uid = FUSE_INVALID_UIDGID;
	assert_int_equal(do_ioctl(s, arg, &flags, 4), 0);
}

static void test_setattr_hands_over_every_bit(void **state)
{
	struct state *s = *state;
	struct fuse_setattr_in arg = {
		.valid = FATTR_MODE | FATTR_UID | FATTR_GID | FATTR_SIZE | FATTR_ATIME |
			 FATTR_MTIME | FATTR_MTIME_NOW | FATTR_KILL_SUIDGID | FATTR_FH |
			 FATTR_LOCKOWNER | FATTR_CTIME,
		.fh = 1,
		.mode = S_IFREG | 06755,
		.uid = 7,
		.gid = 8,
		.size = 9,
		.atime = (uint64_t)-5,
		.atimensec = 123,
	};

	begin(s, FUSE_SETATTR, 3);
	add(s, &arg, sizeof(arg));
	assert_int_equal(run(s), 0);
	assert_int_equal(null_engine.set.valid,
			 OVL_SET_MODE | OVL_SET_UID | OVL_SET_GID | OVL_SET_SIZE | OVL_SET_ATIME |
				 OVL_SET_MTIME | OVL_KILL_SUIDGID | OVL_SET_BY_FD);
	assert_int_equal(null_engine.set.mode, 06755);
	assert_int_equal(null_engine.set.uid, 7);
	assert_int_equal(null_engine.set.gid, 8);
	assert_int_equal(null_engine.set.size, 9);
	assert_int_equal(null_engine.set.atime.tv_sec, -5);
	assert_int_equal(null_engine.set.atime.tv_nsec, 123);
	assert_int_equal(null_engine.set.mtime.tv_nsec, UTIME_NOW);
}

static void test_copy_file_range_answers_in_its_own_width(void **state)
{
	struct state *s = *state;
	struct fuse_copy_file_range_in arg = { .len = 1ULL << 40 };

	begin(s, FUSE_COPY_FILE_RANGE, 1);
	add(s, &arg, sizeof(arg));
	assert_int_equal(run(s), 0);
	assert_int_equal(((struct fuse_write_out *)s->data)->size, UINT32_MAX & ~4095U);
	begin(s, FUSE_COPY_FILE_RANGE_64, 1);
	add(s, &arg, sizeof(arg));
	assert_int_equal(run(s), 0);
	assert_int_equal(((struct fuse_copy_file_range_out *)s->data)->bytes_copied, 1ULL << 40);
	arg.flags = 1;
	begin(s, FUSE_COPY_FILE_RANGE_64, 1);
	add(s, &arg, sizeof(arg));
	assert_int_equal(run(s), -EINVAL);
}

static void test_batch_forget_stays_inside_the_message(void **state)
{
	struct state *s = *state;
	struct fuse_batch_forget_in arg = { .count = UINT32_MAX };
	struct fuse_forget_one ones[2] = { { 5, 1 }, { 6, 2 } };

	begin(s, FUSE_BATCH_FORGET, 0);
	add(s, &arg, sizeof(arg));
	add(s, ones, sizeof(ones));
	s->replies = 0;
	assert_int_equal(parse(s), 0);
	fuse_request_run(&s->req, &s->server);
	assert_int_equal(s->replies, 0);
	assert_int_equal(null_engine.calls, 2);
	assert_int_equal(null_engine.lookups, -3);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_message_shorter_than_header_cannot_be_answered),
		TEST(test_length_in_header_must_be_the_message_length),
		TEST(test_unknown_opcodes_are_enosys),
		TEST(test_argument_cut_short_is_refused_for_every_opcode),
		TEST(test_every_opcode_with_a_handler_answers_once),
		TEST(test_names_must_end_inside_the_message),
		TEST(test_names_that_are_no_entries_are_refused),
		TEST(test_extensions_are_cut_off),
		TEST(test_setxattr_has_two_layouts),
		TEST(test_data_longer_than_the_message_is_refused),
		TEST(test_offsets_past_the_largest_are_refused),
		TEST(test_read_larger_than_the_buffer_is_refused_not_cut),
		TEST(test_missing_name_is_a_negative_entry_for_ever),
		TEST(test_entry_that_was_not_taken_is_forgotten),
		TEST(test_open_that_was_not_taken_is_released),
		TEST(test_release_gets_the_flags_of_open),
		TEST(test_creating_what_exists_makes_the_kernel_look_again),
		TEST(test_directory_is_read_without_being_opened),
		TEST(test_listing_is_cached_unless_layers_may_change),
		TEST(test_readdirplus_counts_only_what_fits),
		TEST(test_readdir_gives_what_was_read_before_an_error),
		TEST(test_enosys_of_a_layer_does_not_switch_off_the_operation),
		TEST(test_errors_that_the_kernel_does_not_take_become_eio),
		TEST(test_reply_that_the_kernel_dislikes_is_followed_by_eio),
		TEST(test_handler_without_an_answer_is_answered_for),
		TEST(test_xattr_size_is_asked_and_value_given),
		TEST(test_ioctl_sizes_are_checked),
		TEST(test_only_the_owner_sets_flags),
		TEST(test_setattr_hands_over_every_bit),
		TEST(test_copy_file_range_answers_in_its_own_width),
		TEST(test_batch_forget_stays_inside_the_message),
	};

	return cmocka_run_group_tests_name("fuse messages", tests, NULL, NULL);
}
