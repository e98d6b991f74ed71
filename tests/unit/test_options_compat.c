/* SPDX-License-Identifier: MIT */
/* The words of -o as fuse-overlayfs' callers write them. */
#include "options.h"

#include <ftw.h>
#include <sys/stat.h>
#include <unistd.h>

static char ignored[1024];

/* What was ignored, each word in brackets. */
static void note(const char *word)
{
	size_t len = strlen(ignored);

	snprintf(ignored + len, sizeof(ignored) - len, "[%s]", word);
}

static int setup(void **state)
{
	int rc = options_setup(state, OPTIONS_OF_FUSE_OVERLAYFS);

	ignored[0] = '\0';
	if (!rc)
		((struct state *)*state)->o.ignored = note;
	return rc;
}

static void test_unknown_words_are_told_and_pass(void **state)
{
	struct state *s = *state;

	add(s, "bogus,lowerdir=/l,bogus=1,,private=1,x\\,y,metacopyy=on");
	assert_string_equal(ignored, "[bogus][bogus=1][private=1][x\\,y][metacopyy=on]");
	LOWER(s, "/l");
	s->o.ignored = NULL;
	add(s, "bogus");
}

/* Whatever is listed is known: nothing of it is told. */
static void test_listed_words_are_silent(void **state)
{
	struct state *s = *state;
	char *text = NULL, *line, *rest;
	size_t size = 0, count = 0;
	FILE *f = open_memstream(&text, &size);

	assert_non_null(f);
	options_list(OPTIONS_OF_FUSE_OVERLAYFS, f);
	fclose(f);
	for (rest = text; (line = strsep(&rest, "\n")) && *line; count++) {
		char word[256];
		bool layers;

		line[strcspn(line, "\t|*")] = '\0';
		layers = strstr(line, "dir") && !strstr(line, "redirect");
		if (line[strlen(line) - 1] == '=' && (strstr(line, "mapping")))
			snprintf(word, sizeof(word), "%s0:0:1", line);
		else if (line[strlen(line) - 1] == '=' && !layers)
			snprintf(word, sizeof(word), "%s1", line);
		else if (layers && line[strlen(line) - 1] == '=')
			continue;
		else
			snprintf(word, sizeof(word), "%s", line);
		add(s, word);
	}
	free(text);
	assert_true(count > 100);
	assert_string_equal(ignored, "");
}

static void test_words_of_one_dialect(void **state)
{
	struct state *s = *state;

	add(s, "fsync=0");
	assert_int_equal(s->o.features.fsync, OVL_FSYNC_VOLATILE);
	add(s, "fsync=1");
	assert_int_equal(s->o.features.fsync, OVL_FSYNC_AUTO);
	add(s, "sync=0");
	assert_int_equal(s->o.features.fsync, OVL_FSYNC_VOLATILE);
	add(s, "fsync=strict,sync");
	assert_int_equal(s->o.features.fsync, OVL_FSYNC_STRICT);
	assert_true(s->o.mount_flags & MS_SYNCHRONOUS);
	refused(s, "fsync=2", "fsync=2");

	options_free(&s->o);
	options_init(&s->o, OPTIONS_OF_PLYFS);
	refused(s, "fsync=0", "accepted: auto strict volatile");
	refused(s, "sync=0", "takes no value");
	refused(s, "private", "unknown option 'private'");
	refused(s, "kernel_cache", "unknown option");
}

/* The words of the kernel mean here what they mean there. */
static void test_words_of_the_kernel(void **state)
{
	struct state *s = *state;

	add(s, "metacopy=on,index=on,nfs_export=on,userxattr,uuid=null,verity=on,xino=on,"
	       "redirect_dir=on,volatile");
	assert_true(s->o.features.metacopy && s->o.features.index && s->o.features.nfs_export);
	assert_true(s->o.features.userxattr);
	assert_int_equal(s->o.features.uuid, OVL_UUID_NULL);
	assert_int_equal(s->o.features.verity, OVL_VERITY_ON);
	assert_int_equal(s->o.features.xino, OVL_XINO_ON);
	assert_int_equal(s->o.features.redirect, OVL_REDIRECT_ON);
	assert_int_equal(s->o.features.fsync, OVL_FSYNC_VOLATILE);
	add(s, "lowerdir+=/a:b,datadir+=/d");
	LOWER(s, "/a:b", "/d");
	refused(s, "metacopy=1", "metacopy=1");
}

static void test_marks_and_default_flags(void **state)
{
	static const struct {
		const char *list;
		unsigned long flags;
	} cases[] = {
		{ "", MS_NODEV | MS_NOATIME },
		{ "dev,suid", MS_NOATIME },
		{ "dev,nodev", MS_NODEV | MS_NOATIME },
		{ "atime", MS_NODEV },
		{ "relatime", MS_NODEV | MS_RELATIME },
		{ "strictatime", MS_NODEV | MS_STRICTATIME },
		{ "relatime,noatime", MS_NODEV | MS_NOATIME },
		{ "nosuid,noexec", MS_NODEV | MS_NOATIME | MS_NOSUID | MS_NOEXEC },
		{ "ro,rw", MS_NODEV | MS_NOATIME },
	};
	struct state *s = *state;
	unsigned long more = geteuid() ? MS_NOSUID : 0;

	assert_true(s->o.compat.whiteout_files && s->o.compat.unmarked_volatile);
	assert_int_equal(s->o.compat.override, OVL_OVERRIDE_NONE);
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		s->o.mount_flags = s->o.unset_flags = 0;
		add(s, "lowerdir=/l,upperdir=/u,workdir=/w");
		add(s, cases[i].list);
		check(s);
		if (!strstr(cases[i].list, "suid"))
			assert_int_equal(s->o.mount_flags, cases[i].flags | more);
		else
			assert_int_equal(s->o.mount_flags, cases[i].flags);
	}
	options_free(&s->o);
	options_init(&s->o, OPTIONS_OF_PLYFS);
	assert_false(s->o.compat.whiteout_files || s->o.compat.unmarked_volatile);
}

static void test_a_remount_has_the_flags_that_are_named(void **state)
{
	struct state *s = *state;

	add(s, "remount,ro");
	check(s);
	assert_int_equal(s->o.mount_flags, MS_RDONLY);
}

static void test_empty_parts_are_no_layers(void **state)
{
	struct state *s = *state;

	add(s, "lowerdir=:/a::/b:::/c:");
	LOWER(s, "/a", "/b", "/c");
	assert_int_equal(s->o.data_count, 0);
	refused(s, "lowerdir=::", "names no directory");
	add(s, "lowerdir=");
	check_refused(s, "no lower layer");
}

static void test_many_layers(void **state)
{
	static char list[16384];
	struct state *s = *state;
	size_t len = (size_t)sprintf(list, "lowerdir=/layer/of/some/length/0");

	for (int i = 1; i < OVL_MAX_LAYERS; i++)
		len += (size_t)sprintf(list + len, ":/layer/of/some/length/%d", i);
	assert_true(len > 10240);
	add(s, list);
	assert_int_equal(s->o.lower_count, OVL_MAX_LAYERS);
	assert_string_equal(s->o.lower[OVL_MAX_LAYERS - 1], "/layer/of/some/length/499");
	sprintf(list + len, ":/x");
	refused(s, list, "501 layers");
}

static void test_plugins_are_refused(void **state)
{
	struct state *s = *state;

	refused(s, "lowerdir=//test/data/path", "the plugin 'test'");
	refused(s, "lowerdir=/a://zip:/b", "the plugin 'zip'");
	refused(s, "lowerdir=//", "the plugin ''");
	add(s, "plugins=a.so:b.so,lowerdir=/a//b");
	LOWER(s, "/a//b");
}

/* None of these exist: one level of '\' is read. */
static void test_colons_and_commas(void **state)
{
	static const struct {
		const char *list;
		const char *layers[3];
	} cases[] = {
		{ "lowerdir=/no/a\\:b:/no/c", { "/no/a:b", "/no/c" } },
		{ "lowerdir=/no/a\\\\:b:/no/c", { "/no/a:b", "/no/c" } },
		{ "lowerdir=/no/\\::\\:", { "/no/:", ":" } },
		{ "lowerdir=/no/a\\,b:/no/c\\,", { "/no/a,b", "/no/c," } },
		{ "lowerdir=/no/a\\054b\\072c:/no/d", { "/no/a,b:c", "/no/d" } },
		{ "lowerdir=/no/a\\\\b", { "/no/a\\b" } },
		{ "lowerdir=/no/a\\040b\\08\\000", { "/no/a b08000" } },
		{ "lowerdir=/no/\"a:/no/b\"", { "/no/\"a", "/no/b\"" } },
	};
	struct state *s = *state;

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		size_t count = 0;

		add(s, cases[i].list);
		while (cases[i].layers[count])
			count++;
		assert_lower(s, cases[i].layers, count);
	}
	add(s, "upperdir=/no/a:b\\,c\\:d\\054,workdir=/no/w\\\\x");
	assert_string_equal(s->o.upper, "/no/a:b,c:d,");
	assert_string_equal(s->o.work, "/no/w\\x");
	add(s, "fsname=a\\040b\\x");
	assert_string_equal(s->o.source, "a bx");
	add(s, "upperdir=/no/\\");
	assert_string_equal(s->o.upper, "/no/");
}

static int remove_one(const char *path, const struct stat *st, int kind, struct FTW *ftw)
{
	return remove(path);
}

/* However it is written, the directory that is there is meant. */
static void test_the_spelling_that_exists_is_meant(void **state)
{
	static const struct {
		const char *name, *written;
	} cases[] = {
		{ "a:b", "a\\:b" },         { "a:b", "a\\\\:b" },
		{ "a:b", "a\\\\\\:b" },     { "c\\x2dd", "c\\x2dd" },
		{ "c\\x2dd", "c\\\\x2dd" }, { "c\\x2dd", "c\\\\\\\\x2dd" },
		{ "e\\:f", "e\\\\\\:f" },   { "g\\054", "g\\054" },
		{ "h,", "h\\," },           { "i\\,", "i\\\\\\," },
	};
	struct state *s = *state;
	char base[] = "/tmp/plyfs-test-XXXXXX", path[64], list[128];

	assert_non_null(mkdtemp(base));
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		snprintf(path, sizeof(path), "%s/%s", base, cases[i].name);
		mkdir(path, 0700);
		snprintf(list, sizeof(list), "lowerdir=%s/%s:/l,upperdir=%s/%s", base,
			 cases[i].written, base, cases[i].written);
		add(s, list);
		LOWER(s, path, "/l");
		assert_string_equal(s->o.upper, path);
		rmdir(path);
	}
	nftw(base, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

static void test_mappings(void **state)
{
	struct state *s = *state;

	add(s, "uidmapping=:0:100000:65536,gidmapping=0:1:1004:1004:0:1:1005:1005:64532");
	assert_int_equal(s->o.uids.count, 1);
	assert_int_equal(s->o.uids.ranges[0].shown, 100000);
	assert_int_equal(s->o.gids.count, 3);
	add(s, "uidmapping=5:6:7,squash_to_gid=9");
	assert_int_equal(s->o.uids.ranges[0].disk, 5);
	assert_false(s->o.uids.squash);
	assert_true(s->o.gids.squash);
	assert_int_equal(s->o.gids.squash_to, 9);
	for (const char *const *bad =
		     (const char *const[]){ "1:2", "1:2:3:", "::1:2:3", "a:b:c", "1:2:0", "-1:2:3",
					    "0:0:10:5:20:10", "4294967295:0:1", "0 :1:2", NULL };
	     *bad; bad++) {
		char list[64];

		snprintf(list, sizeof(list), "gidmapping=%s", *bad);
		refused(s, list, list);
	}
	refused(s, "uidmapping", "needs a value");
	refused(s, "squash_to_uid=4294967295", "from 0 to 4294967294");
	refused(s, "squash_to_uid=", "squash_to_uid=");
	refused(s, "squash_to_uid=1x", "squash_to_uid=1x");
}

static void test_one_id_is_stronger_than_squash_to_root(void **state)
{
	struct state *s = *state;

	add(s, "lowerdir=/l,squash_to_uid=7,squash_to_root");
	check(s);
	assert_true(s->o.uids.squash && s->o.gids.squash);
	assert_int_equal(s->o.uids.squash_to, 7);
	assert_int_equal(s->o.gids.squash_to, 0);
}

static void test_switches(void **state)
{
	struct state *s = *state;

	add(s, "noxattrs,noacl,static_nlink,ino32_t,xattr_permissions=2,max_threads=4,timeout=1e9");
	assert_true(s->o.no_xattrs && s->o.no_acl && s->o.static_nlink && s->o.ino32);
	assert_int_equal(s->o.compat.override, OVL_OVERRIDE_CONTAINERS);
	assert_int_equal(s->o.max_threads, 4);
	assert_true(s->o.timeout == 1e9);
	add(s, "noxattrs=0,noacl=0,xattr_permissions=1,timeout=0.5");
	assert_false(s->o.no_xattrs || s->o.no_acl);
	assert_int_equal(s->o.compat.override, OVL_OVERRIDE_SECURITY);
	add(s, "xattr_permissions=0,noxattrs=1");
	assert_int_equal(s->o.compat.override, OVL_OVERRIDE_NONE);
	assert_true(s->o.no_xattrs);
	refused(s, "noxattrs=2", "noxattrs=2");
	refused(s, "noacl=", "noacl=");
	refused(s, "xattr_permissions=3", "xattr_permissions=3");
	refused(s, "max_threads=-1", "max_threads=-1");
	refused(s, "timeout=inf", "timeout=inf");
	refused(s, "timeout=-1", "timeout=-1");
}

static void test_contexts(void **state)
{
	struct state *s = *state;
	char *text;

	assert_int_equal(options_contexts(&s->o, &text), 0);
	assert_null(text);
	add(s, "context=\"u:r:t:s0:c1,c2\",ro,rootcontext=u:r:t,context=u:r:v:s0:c3\\,c4");
	assert_int_equal(options_contexts(&s->o, &text), 0);
	assert_string_equal(text, "context=\"u:r:v:s0:c3,c4\",rootcontext=\"u:r:t\"");
	assert_true(s->o.mount_flags & MS_RDONLY);
	free(text);
	refused(s, "context=\"u:r", "context=");
	refused(s, "context=u\"r", "context=");
	assert_string_equal(ignored, "");
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, options_teardown)

int main(void)
{
	static const struct CMUnitTest tests[] = {
		T(test_unknown_words_are_told_and_pass),
		T(test_listed_words_are_silent),
		T(test_words_of_one_dialect),
		T(test_words_of_the_kernel),
		T(test_marks_and_default_flags),
		T(test_a_remount_has_the_flags_that_are_named),
		T(test_empty_parts_are_no_layers),
		T(test_many_layers),
		T(test_plugins_are_refused),
		T(test_colons_and_commas),
		T(test_the_spelling_that_exists_is_meant),
		T(test_mappings),
		T(test_one_id_is_stronger_than_squash_to_root),
		T(test_switches),
		T(test_contexts),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
