/* SPDX-License-Identifier: MIT */
/* The words of -o: what is read, what is refused, and in which words. */
#include "options.h"

#include "cli/suggest.h"

/* In the words of plyfs, unless they say otherwise. */
static int setup(void **state)
{
	return options_setup(state, OPTIONS_OF_PLYFS);
}

static void test_lowerdir_is_split_topmost_first(void **state)
{
	struct state *s = *state;

	add(s, "lowerdir=/top:/middle:relative/bottom");
	LOWER(s, "/top", "/middle", "relative/bottom");
}

static void test_upper_and_work_are_kept(void **state)
{
	struct state *s = *state;

	add(s, "lowerdir=/l,upperdir=/u,workdir=/w");
	check(s);
	assert_string_equal(s->o.upper, "/u");
	assert_string_equal(s->o.work, "/w");
	assert_int_equal(s->o.mount_flags & MS_RDONLY, 0);
}

/* The tables below were checked against mount(2) of the kernel's overlayfs. */
static void test_escapes_in_lowerdir(void **state)
{
	struct state *s = *state;

	add(s, "lowerdir=/a:/c\\,d,ro");
	LOWER(s, "/a", "/c,d");
	add(s, "lowerdir=/a:/e\\:f");
	LOWER(s, "/a", "/e:f");
	add(s, "lowerdir=/a:/g\\\\h");
	LOWER(s, "/a", "/g\\h");
	add(s, "lowerdir=/a:/g\\\\\\\\h");
	LOWER(s, "/a", "/g\\\\h");
	add(s, "lowerdir=/a:/\\B");
	LOWER(s, "/a", "/B");
	add(s, "lowerdir=/a\\\\:/b");
	LOWER(s, "/a\\", "/b");
	add(s, "lowerdir=\\:a:\\:");
	LOWER(s, ":a", ":");
	add(s, "lowerdir=/a:/b\\,userxattr");
	LOWER(s, "/a", "/b,userxattr");
	assert_false(s->o.features.userxattr);
}

static void test_escapes_in_upperdir_and_workdir(void **state)
{
	struct state *s = *state;

	add(s, "upperdir=/u\\,1,workdir=/w\\,1");
	assert_string_equal(s->o.upper, "/u,1");
	assert_string_equal(s->o.work, "/w,1");
	add(s, "upperdir=/u:1,workdir=/w\\:1");
	assert_string_equal(s->o.upper, "/u:1");
	assert_string_equal(s->o.work, "/w:1");
	add(s, "upperdir=/u\\1,workdir=/w\\\\1");
	assert_string_equal(s->o.upper, "/u1");
	assert_string_equal(s->o.work, "/w\\1");
}

static void test_an_escaped_backslash_before_a_comma_ends_the_word(void **state)
{
	struct state *s = *state;

	add(s, "upperdir=/u\\\\,workdir=/w");
	assert_string_equal(s->o.upper, "/u\\");
	assert_string_equal(s->o.work, "/w");
}

static void test_bad_colons_are_refused(void **state)
{
	struct state *s = *state;

	refused(s, "lowerdir=:/a:/b", "begins with ':'");
	refused(s, "lowerdir=:", "begins with ':'");
	refused(s, "lowerdir=::/a", "begins with ':'");
	refused(s, "lowerdir=/a:/b:", "ends with ':'");
	refused(s, "lowerdir=/a::", "ends with ':'");
	refused(s, "lowerdir=/a:::/b", "':::'");
	refused(s, "lowerdir=/a:/b::", "ends with ':'");
	refused(s, "lowerdir=/a::/d:", "ends with ':'");
	refused(s, "lowerdir=/a::/d::", "ends with ':'");
	refused(s, "lowerdir=/a::/d:::/e", "':::'");
	refused(s, "lowerdir=::/d", "begins with ':'");
	refused(s, "lowerdir=/a::/d:/b", "after the data-only ones");
	refused(s, "lowerdir=/a::/d::/e:/b", "after the data-only ones");
	refused(s, "lowerdir=/a:/b\\", "lone '\\'");
	refused(s, "lowerdir=/a::/d\\\\\\", "lone '\\'");
	refused(s, "upperdir=/a\\", "lone '\\'");
	refused(s, "workdir=\\", "lone '\\'");
}

static void test_a_refused_lowerdir_leaves_nothing_behind(void **state)
{
	struct state *s = *state;

	add(s, "lowerdir=/a:/b");
	refused(s, "lowerdir=/c::/d:/e", "data-only");
	LOWER(s, "/a", "/b");
}

static void test_a_later_lowerdir_replaces_the_earlier(void **state)
{
	struct state *s = *state;

	add(s, "lowerdir=/a:/b,lowerdir=/c");
	LOWER(s, "/c");
	add(s, "lowerdir=");
	assert_int_equal(s->o.lower_count, 0);
	check_refused(s, "lowerdir=");
	add(s, "lowerdir=,lowerdir=/x:/y");
	LOWER(s, "/x", "/y");
}

static void test_data_only_layers(void **state)
{
	struct state *s = *state;

	add(s, "lowerdir=/a:/b::/d1::/d2");
	LOWER(s, "/a", "/b", "/d1", "/d2");
	assert_int_equal(s->o.data_count, 2);
	check(s);
	add(s, "lowerdir=/a::/d\\:1::d\\\\");
	LOWER(s, "/a", "/d:1", "d\\");
	assert_int_equal(s->o.data_count, 2);
	add(s, "lowerdir=/a\\::/b");
	LOWER(s, "/a:", "/b");
	assert_int_equal(s->o.data_count, 0);
	add(s, "lowerdir=/a:\\::/b");
	LOWER(s, "/a", ":", "/b");
	assert_int_equal(s->o.data_count, 0);
}

static void test_layers_one_by_one(void **state)
{
	struct state *s = *state;

	add(s, "lowerdir+=/a,lowerdir+=b,datadir+=/d1");
	add(s, "datadir+=/d2");
	LOWER(s, "/a", "b", "/d1", "/d2");
	assert_int_equal(s->o.data_count, 2);
	check(s);
	refused(s, "lowerdir+=", "lowerdir+= is empty");
	refused(s, "datadir+=", "datadir+= is empty");
	refused(s, "lowerdir+", "'lowerdir+' needs a value");
	LOWER(s, "/a", "b", "/d1", "/d2");
}

/* Also where lowerdir= would take them for something else. */
static void test_layers_one_by_one_are_literal(void **state)
{
	struct state *s = *state;

	add(s, "lowerdir+=a:b,lowerdir+=:c:,lowerdir+=a\\:b,lowerdir+=a\\\\b,datadir+=d::e,"
	       "datadir+=e f,datadir+=g=h,datadir+=i\\,j,datadir+=k\\");
	LOWER(s, "a:b", ":c:", "a\\:b", "a\\\\b", "d::e", "e f", "g=h", "i\\,j", "k\\");
	assert_int_equal(s->o.data_count, 5);
}

static void test_order_of_layer_words(void **state)
{
	struct state *s = *state;

	add(s, "lowerdir=/a");
	refused(s, "lowerdir+=/b", "lowerdir+= cannot follow lowerdir=");
	refused(s, "datadir+=/d", "datadir+= cannot follow lowerdir=");
	LOWER(s, "/a");
	add(s, "lowerdir=,lowerdir+=/b,datadir+=/d");
	refused(s, "lowerdir+=/c", "lowerdir+= cannot follow datadir+=");
	LOWER(s, "/b", "/d");
	add(s, "lowerdir=/x:/y");
	LOWER(s, "/x", "/y");
	assert_int_equal(s->o.data_count, 0);
	add(s, "lowerdir=,datadir+=/d");
	check_refused(s, "data-only");
	refused(s, "lowerdir+=/c", "lowerdir+= cannot follow datadir+=");
	add(s, "lowerdir=,lowerdir+=/c");
	LOWER(s, "/c");
	check(s);
}

static char *many_layers(size_t count, const char *name)
{
	size_t len = strlen(name);
	char *list = malloc(strlen("lowerdir=") + count * (len + 1) + 1), *p;

	assert_non_null(list);
	p = stpcpy(list, "lowerdir=");
	for (size_t i = 0; i < count; i++) {
		p = stpcpy(p, name);
		*p++ = ':';
	}
	p[-1] = '\0';
	return list;
}

static void test_500_layers_are_the_most(void **state)
{
	struct state *s = *state;
	autofree char *most = many_layers(500, "/l");
	autofree char *too_many = many_layers(501, "/l");

	add(s, most);
	assert_int_equal(s->o.lower_count, 500);
	assert_string_equal(s->o.lower[499], "/l");
	refused(s, too_many, "501 layers");
	add(s, "lowerdir=");
	for (size_t i = 0; i < 400; i++)
		add(s, "lowerdir+=/l");
	for (size_t i = 0; i < 100; i++)
		add(s, "datadir+=/d");
	assert_int_equal(s->o.lower_count, 500);
	assert_int_equal(s->o.data_count, 100);
	refused(s, "datadir+=/d", "500 is the most");
}

static void test_lists_may_be_longer_than_a_page(void **state)
{
	struct state *s = *state;
	char name[1001];

	memset(name, 'x', sizeof(name) - 1);
	name[0] = '/';
	name[1000] = '\0';

	autofree char *list = many_layers(400, name);

	assert_true(strlen(list) > 90 * 4096);
	add(s, list);
	assert_int_equal(s->o.lower_count, 400);
	for (size_t i = 0; i < 400; i++)
		assert_string_equal(s->o.lower[i], name);
}

static void test_a_long_wrong_word_gives_a_cut_message(void **state)
{
	struct state *s = *state;
	autofree char *list = malloc(100001);

	assert_non_null(list);
	memset(list, 'z', 100000);
	list[100000] = '\0';
	refused(s, list, "unknown option 'zzz");
	assert_int_equal(strlen(s->message), sizeof(s->message) - 1);
}

static void test_lists_add_up(void **state)
{
	struct state *s = *state;

	add(s, "workdir=/w");
	add(s, "upperdir=/u,ro");
	add(s, "lowerdir=/a,rw,nosuid");
	check(s);
	assert_string_equal(s->o.upper, "/u");
	assert_string_equal(s->o.work, "/w");
	LOWER(s, "/a");
	assert_int_equal(s->o.mount_flags, MS_NOSUID);
}

static void test_empty_words_pass(void **state)
{
	struct state *s = *state;

	add(s, "");
	add(s, ",,");
	add(s, "lowerdir=/a,,ro,");
	LOWER(s, "/a");
}

static void test_mount_flags(void **state)
{
	static const struct {
		const char *word;
		unsigned long flags;
	} cases[] = {
		{ "ro", MS_RDONLY },
		{ "ro,rw", 0 },
		{ "nosuid,nodev,noexec", MS_NOSUID | MS_NODEV | MS_NOEXEC },
		{ "nosuid,nodev,noexec,suid,dev,exec", 0 },
		{ "noatime,nodiratime", MS_NOATIME | MS_NODIRATIME },
		{ "noatime,nodiratime,atime,diratime", 0 },
		{ "relatime", MS_RELATIME },
		{ "relatime,norelatime", 0 },
		{ "noatime,relatime", MS_RELATIME },
		{ "relatime,strictatime,noatime", MS_NOATIME },
		{ "strictatime", MS_STRICTATIME },
		{ "lazytime", MS_LAZYTIME },
		{ "lazytime,nolazytime", 0 },
		{ "sync,dirsync", MS_SYNCHRONOUS | MS_DIRSYNC },
		{ "sync,async", 0 },
	};

	struct state *s = *state;

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		s->o.mount_flags = 0;
		add(s, cases[i].word);
		assert_int_equal(s->o.mount_flags, cases[i].flags);
	}
}

static void test_without_upper_the_mount_is_read_only(void **state)
{
	struct state *s = *state;

	add(s, "lowerdir=/a,rw");
	check(s);
	assert_int_equal(s->o.mount_flags, MS_RDONLY);
}

static void test_workdir_without_upperdir_is_ignored(void **state)
{
	struct state *s = *state;

	add(s, "lowerdir=/a,workdir=/w");
	check(s);
	assert_null(s->o.work);
}

static void test_upperdir_without_workdir_is_refused(void **state)
{
	struct state *s = *state;

	add(s, "lowerdir=/a,upperdir=/the/upper");
	check_refused(s, "upperdir=/the/upper needs a workdir=");
}

static void test_no_lowerdir_is_refused(void **state)
{
	struct state *s = *state;

	add(s, "upperdir=/u,workdir=/w");
	check_refused(s, "no lower layer");
}

static void test_empty_values_are_refused(void **state)
{
	static const char *const names[] = { "upperdir", "workdir", "fsname", "source", "subtype" };
	struct state *s = *state;

	for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
		char list[32];

		snprintf(list, sizeof(list), "%s=", names[i]);
		refused(s, list, names[i]);
		assert_says(s, "is empty");
	}
}

static void test_kernel_words_at_their_defaults_pass(void **state)
{
	struct state *s = *state;

	add(s, "index=off,nfs_export=off,metacopy=off,verity=off,fsync=auto");
	add(s, "xino=off,xino=auto,xino=on,uuid=auto,uuid=on,uuid=null,uuid=off");
	add(s, "default_permissions,override_creds,nooverride_creds");
	add(s, "redirect_dir=follow,redirect_dir=off");
}

static void test_features(void **state)
{
	static const struct {
		const char *word;
		struct ovl_features want;
		unsigned int given;
	} cases[] = {
		{ "redirect_dir=on", { .redirect = OVL_REDIRECT_ON }, OVL_GIVEN_REDIRECT },
		{ "redirect_dir=follow", { .redirect = OVL_REDIRECT_FOLLOW }, OVL_GIVEN_REDIRECT },
		{ "redirect_dir=nofollow",
		  { .redirect = OVL_REDIRECT_NOFOLLOW },
		  OVL_GIVEN_REDIRECT },
		{ "redirect_dir=off", { .redirect = OVL_REDIRECT_OFF }, OVL_GIVEN_REDIRECT },
		{ "metacopy=on", { .metacopy = true }, OVL_GIVEN_METACOPY },
		{ "metacopy=off", { 0 }, OVL_GIVEN_METACOPY },
		{ "index=on", { .index = true }, OVL_GIVEN_INDEX },
		{ "index=off", { 0 }, OVL_GIVEN_INDEX },
		{ "nfs_export=on", { .nfs_export = true }, OVL_GIVEN_NFS_EXPORT },
		{ "nfs_export=off", { 0 }, OVL_GIVEN_NFS_EXPORT },
		{ "verity=on", { .verity = OVL_VERITY_ON }, OVL_GIVEN_VERITY },
		{ "verity=require", { .verity = OVL_VERITY_REQUIRE }, OVL_GIVEN_VERITY },
		{ "verity=off", { 0 }, OVL_GIVEN_VERITY },
		{ "xino=on", { .xino = OVL_XINO_ON }, OVL_GIVEN_XINO },
		{ "xino=auto", { .xino = OVL_XINO_AUTO }, OVL_GIVEN_XINO },
		{ "xino=off", { 0 }, OVL_GIVEN_XINO },
		{ "uuid=auto", { 0 }, OVL_GIVEN_UUID },
		{ "uuid=on", { .uuid = OVL_UUID_ON }, OVL_GIVEN_UUID },
		{ "uuid=null", { .uuid = OVL_UUID_NULL }, OVL_GIVEN_UUID },
		{ "uuid=off", { .uuid = OVL_UUID_OFF }, OVL_GIVEN_UUID },
		{ "fsync=auto", { 0 }, OVL_GIVEN_FSYNC },
		{ "fsync=strict", { .fsync = OVL_FSYNC_STRICT }, OVL_GIVEN_FSYNC },
		{ "fsync=volatile", { .fsync = OVL_FSYNC_VOLATILE }, OVL_GIVEN_FSYNC },
		{ "volatile", { .fsync = OVL_FSYNC_VOLATILE }, OVL_GIVEN_FSYNC },
		{ "volatile,fsync=strict", { .fsync = OVL_FSYNC_STRICT }, OVL_GIVEN_FSYNC },
		{ "index=on,index=off", { 0 }, OVL_GIVEN_INDEX },
		{ "userxattr", { .userxattr = true }, OVL_GIVEN_USERXATTR },
		{ "metacopy=on,index=on,xino=off",
		  { .metacopy = true, .index = true },
		  OVL_GIVEN_METACOPY | OVL_GIVEN_INDEX | OVL_GIVEN_XINO },
	};
	struct state *s = *state;

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		options_free(&s->o);
		add(s, cases[i].word);
		assert_memory_equal(&s->o.features, &cases[i].want, sizeof(s->o.features));
		assert_int_equal(s->o.given, cases[i].given);
	}
}

static void test_wrong_values_name_the_right_ones(void **state)
{
	struct state *s = *state;

	refused(s, "index=maybe", "index=maybe: no such value (accepted: off on)");
	refused(s, "redirect_dir=", "accepted: follow nofollow off on");
	refused(s, "xino=of", "xino=of: no such value");
	refused(s, "uuid=offauto", "no such value");
	refused(s, "uuid=off null", "no such value");
}

static void test_words_with_and_without_value(void **state)
{
	struct state *s = *state;

	refused(s, "lowerdir", "'lowerdir' needs a value");
	refused(s, "userxattr=1", "'userxattr' takes no value");
	refused(s, "ro=yes", "'ro' takes no value");
	refused(s, "index", "'index' needs a value");
	refused(s, "volatile=1", "'volatile' takes no value");
}

static void test_unknown_words_are_named(void **state)
{
	struct state *s = *state;

	refused(s, "lowerdir=/a,frobnicate", "unknown option 'frobnicate'");
	assert_null(strstr(s->message, "did you mean"));
	refused(s, "frobnicate=12", "unknown option 'frobnicate'");
	refused(s, "=x", "unknown option ''");
	refused(s, "LOWERDIR=/a", "unknown option 'LOWERDIR'");
}

static void test_mistyped_words_get_a_suggestion(void **state)
{
	struct state *s = *state;

	refused(s, "lowedir=/a", "did you mean 'lowerdir'?");
	refused(s, "uperdir=/a", "did you mean 'upperdir'?");
	refused(s, "wrokdir=/a", "did you mean 'workdir'?");
	refused(s, "userxatr", "did you mean 'userxattr'?");
	refused(s, "allow-other", "did you mean 'allow_other'?");
	refused(s, "qq", "unknown option 'qq'");
	assert_null(strstr(s->message, "did you mean"));
}

static void test_sloppy_lets_unknown_words_pass_but_not_wrong_values(void **state)
{
	struct state *s = *state;

	s->o.sloppy = true;
	add(s, "frobnicate=1,lowerdir=/a,blah");
	LOWER(s, "/a");
	refused(s, "index=maybe", "index=maybe");
}

static void test_words_of_fstab_pass(void **state)
{
	struct state *s = *state;

	add(s, "defaults,auto,noauto,user,user=joe,users,nouser,owner,group,_netdev,nofail");
	add(s, "x-systemd.requires=/a,x-gvfs-show,X-mount.mkdir,X-mount.owner=joe,comment=hello");
	add(s, "uhelper=udisks2,helper=fuse.plyfs,dirsync,silent,loud");
}

static void test_who_may_enter(void **state)
{
	struct state *s = *state;

	assert_int_equal(s->o.allow_other, OPTION_DEFAULT);
	add(s, "lowerdir=/a,allow_other");
	assert_int_equal(s->o.allow_other, OPTION_YES);
	check(s);
	add(s, "allow_root");
	check_refused(s, "exclude each other");
	add(s, "noallow_other");
	assert_int_equal(s->o.allow_other, OPTION_NO);
	check(s);
}

static void test_names_in_the_mount_table(void **state)
{
	struct state *s = *state;

	add(s, "fsname=first,source=a\\,b,subtype=ply.fs_2-x");
	assert_string_equal(s->o.source, "a,b");
	assert_string_equal(s->o.subtype, "ply.fs_2-x");
	refused(s, "subtype=a/b", "subtype=a/b");
	refused(s, "subtype=a b", "letters");
}

static void test_timeout(void **state)
{
	static const char *const wrong[] = {
		"timeout=",     "timeout=-1",  "timeout=inf",        "timeout=nan",
		"timeout=0x10", "timeout=1e3", "timeout=1.2.3",      "timeout= 1",
		"timeout=1s",   "timeout=.5",  "timeout=1000000001",
	};
	struct state *s = *state;

	assert_true(s->o.timeout < 0);
	add(s, "timeout=0");
	assert_true(s->o.timeout == 0);
	add(s, "timeout=1.5");
	assert_true(s->o.timeout == 1.5);
	add(s, "timeout=1000000000");
	for (size_t i = 0; i < ARRAY_SIZE(wrong); i++)
		refused(s, wrong[i], "timeout=");
}

static void test_debug_and_remount(void **state)
{
	struct state *s = *state;

	add(s, "debug,remount,ro");
	assert_true(s->o.debug);
	assert_true(s->o.remount);
	check(s); /* the layers are those of the mount that is there */
}

static void test_words_that_the_mount_table_shows_pass(void **state)
{
	struct state *s = *state;

	add(s,
	    "rw,nosuid,nodev,relatime,user_id=0,group_id=0,default_permissions,allow_other,remount,"
	    "ro,fd=3,rootmode=40000,max_read=131072,blksize=4096,seclabel,allow_root");
	check(s);
	assert_true(s->o.mount_flags & MS_RDONLY);
}

static void test_remount_keeps_what_is_not_named(void **state)
{
	const unsigned long now = MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_NOATIME;
	static const struct {
		const char *list;
		unsigned long now, flags;
	} cases[] = {
		{ "", now, now },
		{ "ro", now, now | MS_RDONLY },
		{ "rw", now | MS_RDONLY, now },
		{ "exec,suid", now, MS_NODEV | MS_NOATIME },
		{ "exec,noexec", MS_RELATIME, MS_NOEXEC | MS_RELATIME },
		{ "noexec,exec", MS_NOEXEC | MS_RELATIME, MS_RELATIME },
		{ "atime", MS_NOATIME, MS_RELATIME },
		{ "relatime", MS_NOATIME, MS_RELATIME },
		{ "strictatime", MS_RELATIME, MS_STRICTATIME },
		{ "noatime", MS_STRICTATIME, MS_NOATIME },
		{ "nodiratime", MS_STRICTATIME, MS_NODIRATIME | MS_STRICTATIME },
		{ "nostrictatime", MS_STRICTATIME, MS_RELATIME },
		{ "relatime,ro,noatime", MS_RELATIME, MS_RDONLY | MS_NOATIME },
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct state *s = *state;

		s->o.mount_flags = s->o.unset_flags = 0;
		add(s, cases[i].list);
		assert_int_equal(options_remount_flags(&s->o, cases[i].now), cases[i].flags);
	}
}

static void test_distance(void **state)
{
	assert_int_equal(suggest_distance("mount", "mount"), 0);
	assert_int_equal(suggest_distance("mont", "mount"), 1);
	assert_int_equal(suggest_distance("muont", "mount"), 1);
	assert_int_equal(suggest_distance("", "a"), 1);
	assert_int_equal(suggest_distance("lowrdr", "lowerdir"), 2);
	assert_int_equal(suggest_distance("ro", "xy"), SUGGEST_MAX);
	assert_int_equal(suggest_distance("a-word-that-is-longer-than-any-word-known", "a"),
			 SUGGEST_MAX);
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, options_teardown)

int main(void)
{
	static const struct CMUnitTest tests[] = {
		T(test_lowerdir_is_split_topmost_first),
		T(test_upper_and_work_are_kept),
		T(test_escapes_in_lowerdir),
		T(test_escapes_in_upperdir_and_workdir),
		T(test_an_escaped_backslash_before_a_comma_ends_the_word),
		T(test_bad_colons_are_refused),
		T(test_a_refused_lowerdir_leaves_nothing_behind),
		T(test_a_later_lowerdir_replaces_the_earlier),
		T(test_data_only_layers),
		T(test_layers_one_by_one),
		T(test_layers_one_by_one_are_literal),
		T(test_order_of_layer_words),
		T(test_500_layers_are_the_most),
		T(test_lists_may_be_longer_than_a_page),
		T(test_a_long_wrong_word_gives_a_cut_message),
		T(test_lists_add_up),
		T(test_empty_words_pass),
		T(test_mount_flags),
		T(test_without_upper_the_mount_is_read_only),
		T(test_workdir_without_upperdir_is_ignored),
		T(test_upperdir_without_workdir_is_refused),
		T(test_no_lowerdir_is_refused),
		T(test_empty_values_are_refused),
		T(test_kernel_words_at_their_defaults_pass),
		T(test_features),
		T(test_wrong_values_name_the_right_ones),
		T(test_words_with_and_without_value),
		T(test_unknown_words_are_named),
		T(test_mistyped_words_get_a_suggestion),
		T(test_sloppy_lets_unknown_words_pass_but_not_wrong_values),
		T(test_words_of_fstab_pass),
		T(test_who_may_enter),
		T(test_names_in_the_mount_table),
		T(test_timeout),
		T(test_debug_and_remount),
		T(test_words_that_the_mount_table_shows_pass),
		T(test_remount_keeps_what_is_not_named),
		T(test_distance),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
