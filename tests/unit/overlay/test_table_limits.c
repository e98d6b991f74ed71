/* SPDX-License-Identifier: MIT */
/* What inodes and names cost, and the table without memory and with several threads. */
#include "table_fixture.h"

#include <malloc.h>
#include <pthread.h>

/* Linked with --wrap: the allocation so many calls from now fails; -1: none. */
static atomic_long allocations_left = -1;

void *__real_malloc(size_t size);
void *__real_calloc(size_t n, size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t n, size_t size);

static bool refuse(void)
{
	return allocations_left >= 0 && allocations_left-- == 0;
}

void *__wrap_malloc(size_t size)
{
	return refuse() ? NULL : __real_malloc(size);
}

void *__wrap_calloc(size_t n, size_t size)
{
	return refuse() ? NULL : __real_calloc(n, size);
}

static void test_out_of_memory_is_an_error_and_no_more(void **state)
{
	struct ovl *o;
	struct ovl_inode *i;
	long n;
	int err = -ENOMEM;

	for (n = 0; err; n++) {
		o = calloc(1, sizeof(*o));
		assert_non_null(o);
		assert_int_equal(fdcache_init(&o->fds, 4), 0);
		allocations_left = n;
		err = table_init(o);
		allocations_left = -1;
		assert_true(err == 0 || err == -ENOMEM);
		end(o);
	}
	assert_int_equal(n - 1, 1 + 2 * TABLE_SHARDS);

	o = begin();
	allocations_left = 0;
	assert_null(inode_new(o, DT_REG, NULL));
	allocations_left = 0;
	assert_null(name_new(o->root, "a", 1));
	assert_int_equal(o->root->refs, 2);
	/* no chunk for the slot */
	while (o->table.slots % CHUNK_SLOTS) {
		i = inode_new(o, DT_REG, NULL);
		assert_int_equal(inode_insert(o, i), 0);
	}
	i = inode_new(o, DT_REG, NULL);
	allocations_left = 0;
	assert_int_equal(inode_insert(o, i), -ENOMEM);
	assert_int_equal(i->node, 0);
	assert_int_equal(inode_insert(o, i), 0);
	assert_int_equal((uint32_t)i->node, CHUNK_SLOTS);
	allocations_left = -1;
	end(o);
}

static void test_hash_tables_that_cannot_grow_still_work(void **state)
{
	enum { COUNT = 20000 };
	struct ovl *o = begin();
	char name[16];

	for (unsigned int n = 0; n < COUNT; n++) {
		struct ovl_inode *i = inode_new(o, DT_REG, NULL);
		struct ovl_inode *taken;
		struct ovl_name *new;

		snprintf(name, sizeof(name), "%u", n);
		assert_int_equal(inode_insert(o, i), 0);
		inode_count_lookup(o, i);
		new = name_new(o->root, name, strlen(name));
		allocations_left = 0;
		name_insert(o, new, i, &taken);
		allocations_left = 0;
		assert_null(link_insert(o, i, 1, n));
		allocations_left = -1;
		inode_put(o, i);
	}
	for (unsigned int n = 0; n < COUNT; n++) {
		struct ovl_inode *i = link_find(o, 1, n);

		snprintf(name, sizeof(name), "%u", n);
		assert_int_equal(node_named(o, o->root, name), i->node);
		inode_put(o, i);
	}
	assert_int_equal(o->table.names[0].mask, 63);
	assert_int_equal(o->table.links[0].mask, 63);
	end(o);
}

static size_t memory_in_use(void)
{
	struct mallinfo2 m = mallinfo2();

	return m.uordblks + m.hblkhd;
}

static void test_an_inode_costs_at_most_250_bytes_beside_its_name(void **state)
{
	enum { COUNT = 100000 };
	struct ovl *o = begin();
	ovl_node *nodes = calloc(COUNT, sizeof(*nodes));
	size_t before = memory_in_use();
	size_t names = 0;
	size_t used;
	char name[32];

	assert_non_null(nodes);
	for (unsigned int n = 0; n < COUNT; n++) {
		names += snprintf(name, sizeof(name), "file-%u.txt", n);
		nodes[n] = enter(o, o->root, name, DT_REG);
	}
	used = memory_in_use() - before - names;
	if (memory_in_use() < before + COUNT * sizeof(struct ovl_inode)) {
		end(o);
		free(nodes);
		skip_because("this allocator does not say what is in use (a sanitizer's)");
	}
	print_message("# %zu bytes an inode\n", used / COUNT);
	assert_in_range(used / COUNT, sizeof(struct ovl_inode), 250);

	for (unsigned int n = 0; n < COUNT; n++) {
		assert_int_equal(peek(o, nodes[n])->node, nodes[n]);
		snprintf(name, sizeof(name), "file-%u.txt", n);
		assert_int_equal(node_named(o, o->root, name), nodes[n]);
	}
	for (unsigned int n = 0; n < COUNT; n++)
		ovl_forget(o, nodes[n], 1);
	assert_counts(o, 1, 0);
	/* what stays are the slots and the buckets */
	used = memory_in_use() - before;
	print_message("# %zu bytes a forgotten inode\n", used / COUNT);
	assert_in_range(used / COUNT, 0, sizeof(struct slot) + 2 * sizeof(void *));
	free(nodes);
	end(o);
}

#define THREADS 4
#define SHARED  64

struct worker {
	struct ovl *o;
	uint32_t seed;
	bool broken;
};

static uint32_t next_random(uint32_t *seed)
{
	*seed = *seed * 1664525 + 1013904223;
	return *seed >> 8;
}

/* What lookup_instantiate() does: known by its name, or new unless somebody was quicker. */
static struct ovl_inode *look_up(struct ovl *o, struct ovl_inode *parent, const char *text,
				 bool dir)
{
	struct ovl_inode *i = name_find(o, parent, text, strlen(text));
	struct ovl_inode *taken;

	if (i)
		return i;
	i = inode_new(o, dir ? DT_DIR : DT_REG, dir ? calloc(1, sizeof(struct dirstack)) : NULL);
	if (inode_insert(o, i) < 0)
		abort();
	name_insert(o, name_new(parent, text, strlen(text)), i, &taken);
	if (taken) {
		inode_put(o, i);
		return taken;
	}
	return i;
}

static void *look_up_and_forget(void *arg)
{
	struct worker *w = arg;
	struct ovl *o = w->o;

	for (unsigned int n = 0; n < 30000; n++) {
		unsigned int which = next_random(&w->seed) % SHARED;
		struct ovl_inode *dir;
		struct ovl_inode *i;
		struct ovl_inode *again;
		char text[16];
		ovl_node dir_node;
		ovl_node node;

		snprintf(text, sizeof(text), "d%u", which % 8);
		dir = look_up(o, o->root, text, true);
		inode_count_lookup(o, dir);
		dir_node = dir->node;
		snprintf(text, sizeof(text), "f%u", which);
		i = look_up(o, dir, text, false);
		inode_count_lookup(o, i);
		node = i->node;
		lock_take(&i->lock);
		again = link_insert(o, i, 1, which);
		lock_drop(&i->lock);
		if (again)
			w->broken = true;
		inode_put(o, again);
		inode_put(o, dir);
		inode_put(o, i);

		again = inode_get(o, node);
		if (again != i || again->node != node || again->type != DT_REG)
			w->broken = true;
		inode_put(o, again);
		ovl_forget(o, dir_node, 1);
		ovl_forget(o, node, 1);
	}
	return NULL;
}

static void test_several_threads_look_up_and_forget_at_once(void **state)
{
	struct ovl *o = begin();
	struct worker workers[THREADS];
	pthread_t threads[THREADS];

	for (unsigned int t = 0; t < THREADS; t++) {
		workers[t] = (struct worker){ .o = o, .seed = t + 1 };
		assert_int_equal(pthread_create(&threads[t], NULL, look_up_and_forget, &workers[t]),
				 0);
	}
	for (unsigned int t = 0; t < THREADS; t++) {
		pthread_join(threads[t], NULL);
		assert_false(workers[t].broken);
	}
	assert_counts(o, 1, 0);
	assert_int_equal(o->root->refs, 2);
	for (unsigned int n = 0; n < TABLE_SHARDS; n++) {
		assert_int_equal(o->table.names[n].count, 0);
		assert_int_equal(o->table.links[n].count, 0);
	}
	end(o);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_out_of_memory_is_an_error_and_no_more),
		cmocka_unit_test(test_hash_tables_that_cannot_grow_still_work),
		cmocka_unit_test(test_an_inode_costs_at_most_250_bytes_beside_its_name),
		cmocka_unit_test(test_several_threads_look_up_and_forget_at_once),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
