/* SPDX-License-Identifier: MIT */
/*
 * One program, several names: plyfs with its verbs, and the helpers that mount(8) and fsck(8) run
 * for the types plyfs and fuse.plyfs. As fuse-overlayfs it takes that program's place.
 */
#include <string.h>

#include "cli/cli.h"
#include "cli/exit.h"
#include "cli/process.h"
#include "cli/suggest.h"
#include "util/base.h"
#include "util/log.h"

static int verb_mount(int argc, char **argv)
{
	return cli_mount(argc, argv, MOUNT_BY_USER);
}

static const struct verb {
	const char *name;
	int (*run)(int argc, char **argv);
} verbs[] = {
	{ "mount", verb_mount },    { "status", cli_status },   { "fsck", cli_fsck },
	{ "convert", cli_convert }, { "help", cli_help },       { "--help", cli_help },
	{ "-h", cli_help },         { "version", cli_version }, { "--version", cli_version },
	{ "-V", cli_version },
};

static const struct verb *find_verb(const char *name)
{
	for (size_t i = 0; i < ARRAY_SIZE(verbs); i++) {
		if (!strcmp(name, verbs[i].name))
			return &verbs[i];
	}
	return NULL;
}

/*
 * mount.fuse3 runs "plyfs SOURCE MOUNTPOINT -o OPTIONS", engines "plyfs -o OPTIONS MOUNTPOINT": a
 * mount without the word. One bare word alone is a verb that somebody mistyped.
 */
static bool is_mount_without_verb(int argc, char **argv)
{
	return argc > 2 || argv[1][0] == '-' || strchr(argv[1], '/');
}

static int unknown_verb(const char *name)
{
	const char *best = NULL;
	size_t least = SUGGEST_MAX;

	for (size_t i = 0; i < ARRAY_SIZE(verbs); i++) {
		size_t d = suggest_distance(name, verbs[i].name);

		if (d < least) {
			least = d;
			best = verbs[i].name;
		}
	}
	if (best)
		log_error("unknown verb '%s': did you mean 'plyfs %s'?", name, best);
	else
		log_error("unknown verb '%s': see plyfs --help", name);
	return EXIT_USAGE;
}

/* mount(8)'s helper for the types fuse-overlayfs, fuse.fuse-overlayfs and fuse3.fuse-overlayfs. */
static bool is_compat_helper(const char *name)
{
	const char *last = strrchr(name, '.');

	return !strncmp(name, "mount.", strlen("mount.")) && !strcmp(last, ".fuse-overlayfs");
}

int main(int argc, char **argv)
{
	process_reset_signals();
	if (process_open_streams() < 0)
		return EXIT_SYSTEM;
	process_close_inherited();

	const char *name = argc > 0 ? basename(argv[0]) : "plyfs";

	if (!strcmp(name, "fuse-overlayfs"))
		return cli_fuse_overlayfs(argc, argv);
	if (is_compat_helper(name))
		return cli_mount(argc, argv, MOUNT_BY_COMPAT_HELPER);
	if (!strncmp(name, "mount.", strlen("mount.")))
		return cli_mount(argc, argv, MOUNT_BY_HELPER);
	if (!strncmp(name, "fsck.", strlen("fsck.")))
		return cli_fsck(argc, argv);
	if (argc < 2) {
		log_error("nothing to do: see plyfs --help");
		return EXIT_USAGE;
	}

	const struct verb *verb = find_verb(argv[1]);

	if (verb)
		return verb->run(argc - 1, argv + 1);
	if (is_mount_without_verb(argc, argv))
		return cli_mount(argc, argv, MOUNT_BY_USER);
	return unknown_verb(argv[1]);
}
