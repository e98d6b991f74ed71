/* SPDX-License-Identifier: MIT */
/* Inodes by nodeid, by name and by link: how they are found and how long they live. */
#include "table_fixture.h"

#include <linux/limits.h>
#include <pthread.h>

static void close_ref(struct layer_ref *ref)
{
	close(ref->fd);
}

static const struct layer_ops ops = { .close = close_ref };
static struct layer layer = { .ops = &ops };

static struct layer_ref *opened(void)
{
	int fd = open("/", O_PATH | O_CLOEXEC);
	struct layer_ref *ref;

	assert_true(fd >= 0);
	ref = layer_dir_adopt(&layer, fd, false);
	assert_non_null(ref);
	return ref;
}

static void test_the_root_is_nodeid_one_and_stays(void **state)
{
	struct ovl *o = begin();

	assert_int_equal(o->root->node, OVL_ROOT);
	assert_ptr_equal(peek(o, OVL_ROOT), o->root);
	ovl_forget(o, OVL_ROOT, 1);
	ovl_forget(o, OVL_ROOT, UINT64_MAX);
	assert_ptr_equal(peek(o, OVL_ROOT), o->root);
	assert_counts(o, 1, 0);
	end(o);
}

static void test_nodeids_that_were_never_given_are_not_alive(void **state)
{
	static const ovl_node wrong[] = { 0,          2,          CHUNK_SLOTS,      CHUNK_SLOTS - 1,
					  UINT32_MAX, 1ULL << 32, (1ULL << 32) + 1, UINT64_MAX };
	struct ovl *o = begin();
	int err;

	for (size_t i = 0; i < ARRAY_SIZE(wrong); i++) {
		assert_null(inode_get(o, wrong[i]));
		assert_null(inode_get_dir(o, wrong[i], &err));
		assert_int_equal(err, -ESTALE);
		ovl_forget(o, wrong[i], 1);
	}
	assert_counts(o, 1, 0);
	end(o);
}

static void test_only_a_directory_is_got_as_one(void **state)
{
	struct ovl *o = begin();
	ovl_node file = enter(o, o->root, "file", DT_REG);
	ovl_node dir = enter(o, o->root, "dir", DT_DIR);
	struct ovl_inode *i;
	int err;

	assert_null(inode_get_dir(o, file, &err));
	assert_int_equal(err, -ENOTDIR);
	i = inode_get_dir(o, dir, &err);
	assert_int_equal(err, 0);
	assert_int_equal(i->node, dir);
	inode_put(o, i);
	/* and nothing was kept by that */
	ovl_forget(o, file, 1);
	ovl_forget(o, dir, 1);
	assert_counts(o, 1, 0);
	end(o);
}

static void test_a_forgotten_nodeid_is_not_alive_even_when_its_slot_is_used_again(void **state)
{
	struct ovl *o = begin();
	ovl_node first = enter(o, o->root, "a", DT_REG);
	ovl_node second;

	ovl_forget(o, first, 1);
	assert_false(is_alive(o, first));
	second = enter(o, o->root, "a", DT_REG);
	assert_int_equal((uint32_t)second, (uint32_t)first);
	assert_int_not_equal(second, first);
	assert_false(is_alive(o, first));
	assert_true(is_alive(o, second));
	ovl_forget(o, first, 1);
	assert_true(is_alive(o, second));
	end(o);
}

static void test_no_nodeid_comes_back_while_generations_last(void **state)
{
	struct ovl *o = begin();
	ovl_node last = enter(o, o->root, "a", DT_REG);

	for (unsigned int life = 1; life <= 50000; life++) {
		ovl_node node;

		ovl_forget(o, last, 1);
		node = enter(o, o->root, "a", DT_REG);
		assert_int_equal(node, last + (1ULL << 32));
		last = node;
	}
	assert_counts(o, 2, 1);
	end(o);
}

static void test_slots_are_used_again_before_new_ones(void **state)
{
	enum { COUNT = 3 * CHUNK_SLOTS };
	struct ovl *o = begin();
	ovl_node *nodes = calloc(COUNT, sizeof(*nodes));
	uint32_t slots = 0;
	char name[16];

	assert_non_null(nodes);
	for (unsigned int round = 0; round < 3; round++) {
		for (unsigned int i = 0; i < COUNT; i++) {
			snprintf(name, sizeof(name), "%u", i);
			nodes[i] = enter(o, o->root, name, DT_REG);
		}
		if (round == 0)
			slots = o->table.slots;
		assert_int_equal(o->table.slots, slots);
		for (unsigned int i = 0; i < COUNT; i++)
			ovl_forget(o, nodes[i], 1);
		assert_counts(o, 1, 0);
	}
	free(nodes);
	end(o);
}

static void test_as_many_forgets_as_lookups(void **state)
{
	struct ovl *o = begin();
	ovl_node node = enter(o, o->root, "a", DT_REG);

	for (int i = 1; i < 10; i++)
		inode_count_lookup(o, peek(o, node));
	ovl_forget(o, node, 0);
	ovl_forget(o, node, 4);
	ovl_forget(o, node, 5);
	assert_true(is_alive(o, node));
	ovl_forget(o, node, 1);
	assert_false(is_alive(o, node));
	assert_counts(o, 1, 0);
	end(o);
}

static void test_forgetting_more_than_was_looked_up_is_harmless(void **state)
{
	struct ovl *o = begin();
	ovl_node node = enter(o, o->root, "a", DT_REG);
	struct ovl_inode *i;

	inode_count_lookup(o, peek(o, node));
	ovl_forget(o, node, UINT64_MAX);
	assert_false(is_alive(o, node));
	ovl_forget(o, node, 1);
	ovl_forget(o, node, UINT64_MAX);
	assert_counts(o, 1, 0);
	/* also while somebody uses it */
	node = enter(o, o->root, "a", DT_REG);
	i = inode_get(o, node);
	ovl_forget(o, node, 1000);
	assert_int_equal(i->nlookup, 0);
	assert_false(is_alive(o, node));
	ovl_forget(o, node, 1);
	inode_put(o, i);
	assert_counts(o, 1, 0);
	/* and the slot is well */
	node = enter(o, o->root, "b", DT_REG);
	assert_true(is_alive(o, node));
	end(o);
}

static void test_a_running_call_keeps_what_is_forgotten(void **state)
{
	struct ovl *o = begin();
	ovl_node node = enter(o, o->root, "a", DT_REG);
	struct ovl_inode *i = inode_get(o, node);

	ovl_forget(o, node, 1);
	/* nobody may name it any more, but its name still finds it, and then it lives again */
	assert_false(is_alive(o, node));
	assert_counts(o, 2, 1);
	assert_int_equal(node_named(o, o->root, "a"), node);
	inode_count_lookup(o, i);
	inode_put(o, i);
	assert_true(is_alive(o, node));
	ovl_forget(o, node, 1);
	assert_counts(o, 1, 0);
	end(o);
}

static void test_a_name_finds_its_inode_and_no_other(void **state)
{
	struct ovl *o = begin();
	ovl_node dir = enter(o, o->root, "dir", DT_DIR);
	ovl_node a = enter(o, o->root, "a", DT_REG);
	ovl_node b = enter(o, peek(o, dir), "a", DT_REG);

	assert_int_equal(node_named(o, o->root, "dir"), dir);
	assert_int_equal(node_named(o, o->root, "a"), a);
	assert_int_equal(node_named(o, peek(o, dir), "a"), b);
	assert_int_equal(node_named(o, o->root, "A"), 0);
	assert_int_equal(node_named(o, o->root, "aa"), 0);
	assert_int_equal(node_named(o, o->root, ""), 0);
	assert_int_equal(node_named(o, peek(o, a), "a"), 0);
	ovl_forget(o, a, 1);
	assert_int_equal(node_named(o, o->root, "a"), 0);
	assert_int_equal(node_named(o, peek(o, dir), "a"), b);
	end(o);
}

static void test_names_of_every_length_and_content(void **state)
{
	struct ovl *o = begin();
	ovl_node nodes[NAME_MAX + 1];
	char text[NAME_MAX + 2];

	memset(text, 'n', sizeof(text));
	for (size_t len = 1; len <= NAME_MAX; len++) {
		text[len] = '\0';
		nodes[len] = enter(o, o->root, text, DT_REG);
		text[len] = 'n';
	}
	for (size_t len = 1; len <= NAME_MAX; len++) {
		struct ovl_inode *i = name_find(o, o->root, text, len);

		assert_int_equal(i->node, nodes[len]);
		inode_put(o, i);
		/* which differ in their last byte only, or in one in the middle */
		text[len - 1] = (char)0xff;
		assert_null(name_find(o, o->root, text, len));
		text[len - 1] = 'n';
		text[len / 2] = '\n';
		assert_null(name_find(o, o->root, text, len));
		text[len / 2] = 'n';
	}
	assert_null(name_new(o->root, text, NAME_MAX + 1));
	assert_null(name_find(o, o->root, text, NAME_MAX + 1));
	end(o);
}

static void test_a_taken_name_gives_who_has_it(void **state)
{
	struct ovl *o = begin();
	ovl_node node = enter(o, o->root, "a", DT_REG);
	struct ovl_inode *late = inode_new(o, DT_REG, NULL);
	struct ovl_inode *taken;
	uint32_t refs = o->root->refs;

	assert_int_equal(inode_insert(o, late), 0);
	name_insert(o, name_new(o->root, "a", 1), late, &taken);
	assert_non_null(taken);
	assert_int_equal(taken->node, node);
	assert_null(late->names);
	inode_put(o, taken);
	inode_put(o, late);
	assert_int_equal(o->root->refs, refs);
	assert_counts(o, 2, 1);
	ovl_forget(o, node, 1);
	assert_counts(o, 1, 0);
	end(o);
}

static void test_a_name_given_twice_is_one_name(void **state)
{
	struct ovl *o = begin();
	ovl_node node = enter(o, o->root, "a", DT_REG);
	struct ovl_inode *i = inode_get(o, node);
	struct ovl_inode *taken;

	name_insert(o, name_new(o->root, "a", 1), i, &taken);
	assert_null(taken);
	assert_counts(o, 2, 1);
	assert_null(i->names->next);
	inode_put(o, i);
	ovl_forget(o, node, 1);
	assert_counts(o, 1, 0);
	end(o);
}

static void test_hard_links_are_names_of_one_inode(void **state)
{
	struct ovl *o = begin();
	ovl_node node = enter(o, o->root, "a", DT_REG);
	ovl_node dir = enter(o, o->root, "dir", DT_DIR);
	struct ovl_inode *i = inode_get(o, node);
	struct ovl_inode *taken;
	struct ovl_name *n;

	name_insert(o, name_new(o->root, "b", 1), i, &taken);
	assert_null(taken);
	name_insert(o, name_new(peek(o, dir), "a", 1), i, &taken);
	assert_null(taken);
	assert_int_equal(node_named(o, o->root, "b"), node);
	assert_int_equal(node_named(o, peek(o, dir), "a"), node);
	assert_counts(o, 3, 4);
	/* the one in the middle */
	n = name_remove(o, i, o->root, "b", 1);
	assert_non_null(n);
	assert_null(name_remove(o, i, o->root, "b", 1));
	assert_null(name_remove(o, i, peek(o, dir), "b", 1));
	name_free(o, n);
	assert_int_equal(node_named(o, o->root, "a"), node);
	assert_int_equal(node_named(o, o->root, "b"), 0);
	assert_int_equal(node_named(o, peek(o, dir), "a"), node);
	inode_put(o, i);
	ovl_forget(o, node, 1);
	assert_counts(o, 2, 1);
	ovl_forget(o, dir, 1);
	assert_counts(o, 1, 0);
	end(o);
}

static void test_an_inode_moves_to_another_directory(void **state)
{
	struct ovl *o = begin();
	ovl_node from = enter(o, o->root, "from", DT_DIR);
	ovl_node to = enter(o, o->root, "to", DT_DIR);
	ovl_node node = enter(o, peek(o, from), "old", DT_REG);
	struct ovl_inode *i = inode_get(o, node);
	struct ovl_inode *taken;

	name_free(o, name_remove(o, i, peek(o, from), "old", 3));
	name_insert(o, name_new(peek(o, to), "new", 3), i, &taken);
	assert_null(taken);
	inode_put(o, i);
	assert_int_equal(node_named(o, peek(o, from), "old"), 0);
	assert_int_equal(node_named(o, peek(o, to), "new"), node);
	/* it keeps the new one alive, and the old one no longer */
	ovl_forget(o, from, 1);
	ovl_forget(o, to, 1);
	assert_int_equal(node_named(o, o->root, "from"), 0);
	assert_int_equal(node_named(o, o->root, "to"), to);
	ovl_forget(o, node, 1);
	assert_counts(o, 1, 0);
	end(o);
}

static void test_children_keep_their_forgotten_parent(void **state)
{
	struct ovl *o = begin();
	ovl_node dir = enter(o, o->root, "dir", DT_DIR);
	ovl_node a = enter(o, peek(o, dir), "a", DT_REG);
	ovl_node b = enter(o, peek(o, dir), "b", DT_REG);
	struct ovl_inode *i;

	ovl_forget(o, dir, 1);
	assert_false(is_alive(o, dir));
	assert_counts(o, 4, 3);
	/* looked up again it is the same */
	i = name_find(o, o->root, "dir", 3);
	assert_int_equal(i->node, dir);
	inode_count_lookup(o, i);
	assert_int_equal(node_named(o, i, "a"), a);
	inode_put(o, i);
	assert_true(is_alive(o, dir));
	ovl_forget(o, dir, 1);
	ovl_forget(o, a, 1);
	assert_counts(o, 3, 2);
	ovl_forget(o, b, 1);
	assert_counts(o, 1, 0);
	end(o);
}

/* A thread of little stack: who frees parents one inside the other does not survive it. */
static void *forget_in_little_stack(void *arg)
{
	struct ovl *o = ((void **)arg)[0];

	ovl_forget(o, (ovl_node)(uintptr_t)((void **)arg)[1], 1);
	return NULL;
}

static void test_a_deep_path_dies_with_its_last_child(void **state)
{
	enum { DEPTH = 200000 };
	struct ovl *o = begin();
	ovl_node above = OVL_ROOT;
	pthread_attr_t attr;
	pthread_t thread;
	void *args[2];

	for (unsigned int i = 0; i < DEPTH; i++) {
		ovl_node node = enter(o, peek(o, above), "deeper", DT_DIR);

		if (above != OVL_ROOT)
			ovl_forget(o, above, 1);
		above = node;
	}
	assert_counts(o, DEPTH + 1, DEPTH);
	args[0] = o;
	args[1] = (void *)(uintptr_t)above;
	pthread_attr_init(&attr);
	assert_int_equal(pthread_attr_setstacksize(&attr, 256 << 10), 0);
	assert_int_equal(pthread_create(&thread, &attr, forget_in_little_stack, args), 0);
	pthread_join(thread, NULL);
	pthread_attr_destroy(&attr);
	assert_counts(o, 1, 0);
	assert_int_equal(o->root->refs, 2);
	end(o);
}

static void test_hard_links_find_each_other(void **state)
{
	struct ovl *o = begin();
	ovl_node node = enter(o, o->root, "a", DT_REG);
	struct ovl_inode *i = inode_get(o, node);
	struct ovl_inode *other = inode_new(o, DT_REG, NULL);
	struct ovl_inode *found;

	assert_null(link_find(o, 5, 77));
	assert_null(link_insert(o, i, 5, 77));
	assert_true(inode_has(i, INODE_LINKED));
	found = link_find(o, 5, 77);
	assert_ptr_equal(found, i);
	inode_put(o, found);
	assert_null(link_find(o, 6, 77));
	assert_null(link_find(o, 5, 78));
	/* once more is nothing new */
	assert_null(link_insert(o, i, 5, 77));
	/* another one learns who was there before */
	assert_int_equal(inode_insert(o, other), 0);
	found = link_insert(o, other, 5, 77);
	assert_ptr_equal(found, i);
	inode_put(o, found);
	assert_false(inode_has(other, INODE_LINKED));
	assert_null(link_insert(o, other, 5, 78));
	inode_put(o, other);
	assert_null(link_find(o, 5, 78));
	inode_put(o, i);
	ovl_forget(o, node, 1);
	assert_null(link_find(o, 5, 77));
	assert_counts(o, 1, 0);
	end(o);
}

static void test_many_links(void **state)
{
	enum { COUNT = 50000 };
	struct ovl *o = begin();
	ovl_node *nodes = calloc(COUNT, sizeof(*nodes));
	char name[16];

	assert_non_null(nodes);
	for (unsigned int n = 0; n < COUNT; n++) {
		snprintf(name, sizeof(name), "%u", n);
		nodes[n] = enter(o, o->root, name, DT_REG);
		/* numbers of two filesystems, with strides */
		assert_null(link_insert(o, peek(o, nodes[n]), n % 2, n / 2 * 64ULL));
	}
	for (unsigned int n = 0; n < COUNT; n++) {
		struct ovl_inode *i = link_find(o, n % 2, n / 2 * 64ULL);

		assert_int_equal(i->node, nodes[n]);
		inode_put(o, i);
	}
	for (unsigned int n = 0; n < COUNT; n += 2)
		ovl_forget(o, nodes[n], 1);
	for (unsigned int n = 0; n < COUNT; n++) {
		struct ovl_inode *i = link_find(o, n % 2, n / 2 * 64ULL);

		assert_int_equal(!i, n % 2 == 0);
		inode_put(o, i);
	}
	free(nodes);
	end(o);
}

static void test_the_dead_leave_nothing_open(void **state)
{
	unsigned int before = open_fds();
	struct ovl *o = begin();
	struct dirstack *stack = calloc(1, sizeof(*stack) + 2 * sizeof(struct real_dir));
	struct layer_ref *refs[4];
	struct ovl_inode *dir;
	struct ovl_inode *file = inode_new(o, DT_REG, NULL);
	struct ovl_inode *orphan = inode_new(o, DT_REG, NULL);

	assert_true(stack && file && orphan);
	stack->lower_count = 2;
	stack->lower[0].path = strdup("redirected/to");
	dir = inode_new(o, DT_DIR, stack);
	assert_int_equal(inode_insert(o, dir), 0);
	assert_int_equal(inode_insert(o, file), 0);
	assert_int_equal(inode_insert(o, orphan), 0);
	for (size_t i = 0; i < ARRAY_SIZE(refs); i++)
		refs[i] = opened();
	fdcache_set(&o->fds, &stack->upper.ref, refs[0]);
	fdcache_set(&o->fds, &stack->lower[0].ref, refs[1]);
	fdcache_set(&o->fds, &stack->lower[1].ref, refs[2]);
	fdcache_set(&o->fds, &file->file, refs[3]);
	for (size_t i = 0; i < ARRAY_SIZE(refs); i++)
		layer_ref_put(refs[i]);
	orphan->self = opened();
	assert_int_equal(open_fds(), before + 5);
	inode_put(o, dir);
	assert_int_equal(open_fds(), before + 2);
	inode_put(o, file);
	inode_put(o, orphan);
	assert_int_equal(open_fds(), before);
	assert_int_equal(fdcache_count(&o->fds), 0);
	assert_counts(o, 1, 0);
	end(o);
}

static void test_the_end_frees_the_living(void **state)
{
	unsigned int before = open_fds();
	struct ovl *o = begin();
	ovl_node dir = enter(o, o->root, "dir", DT_DIR);
	ovl_node file = enter(o, peek(o, dir), "file", DT_REG);
	struct layer_ref *ref = opened();
	struct ovl_inode *taken;

	name_insert(o, name_new(o->root, "link", 4), peek(o, file), &taken);
	assert_null(taken);
	assert_null(link_insert(o, peek(o, file), 1, 2));
	fdcache_set(&o->fds, &peek(o, file)->file, ref);
	layer_ref_put(ref);
	peek(o, dir)->self = opened();
	ovl_forget(o, dir, 1);
	end(o);
	assert_int_equal(open_fds(), before);
}

static void test_an_inode_that_never_got_a_nodeid_can_be_dropped(void **state)
{
	struct ovl *o = begin();

	inode_put(o, inode_new(o, DT_REG, NULL));
	inode_put(o, NULL);
	name_free(o, NULL);
	name_free(o, name_new(o->root, "x", 1));
	assert_counts(o, 1, 0);
	assert_int_equal(o->root->refs, 2);
	end(o);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_the_root_is_nodeid_one_and_stays),
		cmocka_unit_test(test_nodeids_that_were_never_given_are_not_alive),
		cmocka_unit_test(test_only_a_directory_is_got_as_one),
		cmocka_unit_test(
			test_a_forgotten_nodeid_is_not_alive_even_when_its_slot_is_used_again),
		cmocka_unit_test(test_no_nodeid_comes_back_while_generations_last),
		cmocka_unit_test(test_slots_are_used_again_before_new_ones),
		cmocka_unit_test(test_as_many_forgets_as_lookups),
		cmocka_unit_test(test_forgetting_more_than_was_looked_up_is_harmless),
		cmocka_unit_test(test_a_running_call_keeps_what_is_forgotten),
		cmocka_unit_test(test_a_name_finds_its_inode_and_no_other),
		cmocka_unit_test(test_names_of_every_length_and_content),
		cmocka_unit_test(test_a_taken_name_gives_who_has_it),
		cmocka_unit_test(test_a_name_given_twice_is_one_name),
		cmocka_unit_test(test_hard_links_are_names_of_one_inode),
		cmocka_unit_test(test_an_inode_moves_to_another_directory),
		cmocka_unit_test(test_children_keep_their_forgotten_parent),
		cmocka_unit_test(test_a_deep_path_dies_with_its_last_child),
		cmocka_unit_test(test_hard_links_find_each_other),
		cmocka_unit_test(test_many_links),
		cmocka_unit_test(test_the_dead_leave_nothing_open),
		cmocka_unit_test(test_the_end_frees_the_living),
		cmocka_unit_test(test_an_inode_that_never_got_a_nodeid_can_be_dropped),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
