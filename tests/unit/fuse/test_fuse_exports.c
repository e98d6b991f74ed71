/* SPDX-License-Identifier: MIT */
/* Nodeids that outlive the server: the table, and the messages that go through it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "null_engine.h"
#include "server/server_private.h"
#include "util/base.h"

struct state {
	_Alignas(8) uint8_t message[1024];
	uint8_t buffer[1024];
	struct fuse_conn conn;
	struct fuse_request req;
	struct server server;
	struct fuse_out_header out; /* the last reply */
	struct fuse_entry_out entry;
	int send_result;
};

static int keep_reply(struct fuse_request *req, const struct iovec *iov, int count)
{
	struct state *s = req->transport;

	memcpy(&s->out, iov[0].iov_base, sizeof(s->out));
	if (count > 1)
		memcpy(&s->entry, iov[1].iov_base, min(iov[1].iov_len, sizeof(s->entry)));
	return s->send_result;
}

static int setup(void **state)
{
	struct state *s = calloc(1, sizeof(*s));

	if (!s || server_exports_new(NULL, &s->server.exports) < 0)
		return -1;
	s->conn = (struct fuse_conn){ .minor = 45, .flags = FUSE_EXPORT_SUPPORT };
	s->req = (struct fuse_request){ .conn = &s->conn,
					.reply = s->buffer,
					.reply_size = sizeof(s->buffer),
					.send = keep_reply,
					.transport = s };
	server_set_timeout(&s->server, -1);
	null_engine_reset();
	null_engine.dots = true;
	*state = s;
	return 0;
}

static int teardown(void **state)
{
	struct state *s = *state;

	server_exports_free(s->server.exports);
	free(s);
	return 0;
}

/* Returns the error of the reply. */
static int run(struct state *s, uint32_t opcode, uint64_t nodeid, const void *data, size_t size)
{
	struct fuse_in_header *in = (void *)s->message;

	*in = (struct fuse_in_header){ .opcode = opcode,
				       .nodeid = nodeid,
				       .len = (uint32_t)(sizeof(*in) + size) };
	memcpy(in + 1, data, size);
	memset(&s->entry, 0, sizeof(s->entry));
	assert_int_equal(
		fuse_request_parse(&s->req, server_ops, server_op_count, s->message, in->len), 0);
	fuse_request_run(&s->req, &s->server);
	return s->out.error;
}

static int lookup(struct state *s, uint64_t nodeid, const char *name)
{
	return run(s, FUSE_LOOKUP, nodeid, name, strlen(name) + 1);
}

static void forget(struct state *s, uint64_t nodeid, uint64_t nlookup)
{
	struct fuse_forget_in in = { .nlookup = nlookup };

	run(s, FUSE_FORGET, nodeid, &in, sizeof(in));
}

/* The next lookup finds @node, which is known by @number. */
static void finds(ovl_node node, uint64_t number, uint32_t generation)
{
	null_engine.made = node;
	null_engine.identity = (struct ovl_identity){ number, generation };
}

static void test_nodeid_is_the_number(void **state)
{
	struct state *s = *state;

	finds(50, 1000, 7);
	assert_int_equal(lookup(s, 1, "name"), 0);
	assert_int_equal(s->entry.nodeid, 1000);
	assert_int_equal(s->entry.generation, 7);
	/* generation and nodeid stay, whatever the engine would say now */
	finds(50, 1001, 8);
	assert_int_equal(lookup(s, 1, "name"), 0);
	assert_int_equal(s->entry.nodeid, 1000);
	assert_int_equal(s->entry.generation, 7);
	/* and lead back */
	run(s, FUSE_GETATTR, 1000, &(struct fuse_getattr_in){ 0 }, sizeof(struct fuse_getattr_in));
	assert_int_equal(null_engine.node, 50);
	assert_int_equal(server_exports_nodeid(s->server.exports, 50), 1000);
	assert_int_equal(server_exports_nodeid(s->server.exports, 51), 0);
}

static void test_root_is_one_on_both_sides(void **state)
{
	struct state *s = *state;

	assert_int_equal(server_exports_node(s->server.exports, 1), OVL_ROOT);
	assert_int_equal(server_exports_nodeid(s->server.exports, OVL_ROOT), 1);
	finds(OVL_ROOT, 2, 9);
	assert_int_equal(lookup(s, 1, ".."), 0);
	assert_int_equal(s->entry.nodeid, 1);
	assert_int_equal(s->entry.generation, 0);
}

static void test_forgotten_when_all_lookups_are(void **state)
{
	struct state *s = *state;

	finds(50, 1000, 7);
	for (int n = 0; n < 3; n++)
		lookup(s, 1, "name");
	forget(s, 1000, 2);
	assert_int_equal(server_exports_node(s->server.exports, 1000), 50);
	forget(s, 1000, 1);
	assert_int_equal(server_exports_node(s->server.exports, 1000), 0);
	assert_int_equal(null_engine.lookups, 0);
	forget(s, 1000, 1); /* of what is not there: the engine does not hear of it */
	assert_int_equal(null_engine.lookups, 0);
}

static void test_forgotten_in_a_batch(void **state)
{
	struct state *s = *state;
	struct {
		struct fuse_batch_forget_in in;
		struct fuse_forget_one one[2];
	} batch = { { .count = 2 }, { { 1000, 1 }, { 1001, 1 } } };

	finds(50, 1000, 7);
	lookup(s, 1, "a");
	finds(51, 1001, 7);
	lookup(s, 1, "b");
	run(s, FUSE_BATCH_FORGET, 0, &batch, sizeof(batch));
	assert_int_equal(null_engine.lookups, 0);
	assert_int_equal(server_exports_node(s->server.exports, 1000), 0);
	assert_int_equal(server_exports_node(s->server.exports, 1001), 0);
}

static void test_a_reply_not_taken_counts_nothing(void **state)
{
	struct state *s = *state;

	s->send_result = -ENOENT;
	finds(50, 1000, 7);
	lookup(s, 1, "name");
	assert_int_equal(null_engine.lookups, 0);
	assert_int_equal(server_exports_node(s->server.exports, 1000), 0);
}

static void test_a_number_that_is_taken(void **state)
{
	struct state *s = *state;
	uint64_t other;

	finds(50, 1000, 7);
	lookup(s, 1, "a");
	finds(51, 1000, 7);
	lookup(s, 1, "b");
	other = s->entry.nodeid;
	assert_int_not_equal(other, 1000);
	assert_int_equal(server_exports_node(s->server.exports, 1000), 50);
	assert_int_equal(server_exports_node(s->server.exports, other), 51);
	forget(s, other, 1);
	/* that one leads nowhere any more, and nobody gets it again */
	assert_int_equal(server_exports_node(s->server.exports, other), 0);
	finds(52, 1000, 7);
	lookup(s, 1, "c");
	assert_int_not_equal(s->entry.nodeid, other);
	/* no object is called 0, or like the root */
	finds(53, 0, 7);
	lookup(s, 1, "d");
	assert_true(s->entry.nodeid > 1000);
	finds(54, 1, 7);
	lookup(s, 1, "e");
	assert_true(s->entry.nodeid > 1000);
}

static void test_what_is_not_known_is_resolved(void **state)
{
	struct state *s = *state;

	finds(50, 1000, 7);
	assert_int_equal(lookup(s, 1000, "."), 0);
	assert_int_equal(null_engine.resolved, 1000);
	assert_int_equal(s->entry.nodeid, 1000);
	/* what is known is not searched for */
	null_engine.resolved = 0;
	assert_int_equal(lookup(s, 1000, "."), 0);
	assert_int_equal(null_engine.resolved, 0);
	assert_int_equal(s->entry.nodeid, 1000);
	forget(s, 1000, 2);
	assert_int_equal(null_engine.lookups, 0);
	null_engine.result = -ESTALE;
	assert_int_equal(lookup(s, 1000, "."), -ESTALE);
}

static void test_resolved_to_what_claims_another_number(void **state)
{
	struct state *s = *state;

	finds(50, 2000, 7);
	assert_int_equal(lookup(s, 1000, "."), -ESTALE);
	assert_int_equal(null_engine.lookups, 0);
	assert_int_equal(server_exports_node(s->server.exports, 2000), 0);
}

static void test_dots_only_where_the_kernel_may_send_them(void **state)
{
	struct state *s = *state;
	struct fuse_in_header in = { .opcode = FUSE_LOOKUP, .nodeid = 1, .len = sizeof(in) + 2 };

	memcpy(s->message, &in, sizeof(in));
	memcpy(s->message + sizeof(in), ".", 2);
	s->conn.flags = 0;
	assert_int_equal(
		fuse_request_parse(&s->req, server_ops, server_op_count, s->message, in.len),
		-EINVAL);
	s->conn.flags = FUSE_EXPORT_SUPPORT;
	assert_int_equal(
		fuse_request_parse(&s->req, server_ops, server_op_count, s->message, in.len), 0);
	/* never where something is made or removed */
	((struct fuse_in_header *)s->message)->opcode = FUSE_UNLINK;
	assert_int_equal(
		fuse_request_parse(&s->req, server_ops, server_op_count, s->message, in.len),
		-EINVAL);
}

static void test_second_nodeids_of_a_message(void **state)
{
	struct state *s = *state;
	struct {
		struct fuse_link_in in;
		char name[2];
	} message = { { .oldnodeid = 1000 }, "x" };

	finds(50, 1000, 7);
	lookup(s, 1, "a");
	finds(51, 1001, 7);
	lookup(s, 1, "b");
	finds(50, 1000, 7);
	assert_int_equal(run(s, FUSE_LINK, 1001, &message, sizeof(message)), 0);
	assert_int_equal(s->entry.nodeid, 1000);
}

#define MANY 5000

static void test_many(void **state)
{
	struct state *s = *state;
	struct server_exports *x = s->server.exports;

	for (uint64_t n = 0; n < MANY; n++) {
		uint64_t nodeid, generation;

		finds(100 + n, n << 20, 7);
		assert_int_equal(server_exports_count(x, 100 + n, &nodeid, &generation), 0);
	}
	for (uint64_t n = 1; n < MANY; n++) {
		assert_int_equal(server_exports_node(x, n << 20), 100 + n);
		assert_int_equal(server_exports_nodeid(x, 100 + n), n << 20);
	}
	for (uint64_t n = 1; n < MANY; n += 2)
		assert_int_equal(server_exports_forget(x, n << 20, 1), 100 + n);
	for (uint64_t n = 1; n < MANY; n++)
		assert_int_equal(server_exports_node(x, n << 20), n % 2 ? 0 : 100 + n);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
		TEST(test_nodeid_is_the_number),
		TEST(test_root_is_one_on_both_sides),
		TEST(test_forgotten_when_all_lookups_are),
		TEST(test_forgotten_in_a_batch),
		TEST(test_a_reply_not_taken_counts_nothing),
		TEST(test_a_number_that_is_taken),
		TEST(test_what_is_not_known_is_resolved),
		TEST(test_resolved_to_what_claims_another_number),
		TEST(test_dots_only_where_the_kernel_may_send_them),
		TEST(test_second_nodeids_of_a_message),
		TEST(test_many),
	};

	return cmocka_run_group_tests_name("exports", tests, NULL, NULL);
}
