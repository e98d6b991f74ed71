/* SPDX-License-Identifier: MIT */
/*
 * The command line of fuse-overlayfs, as podman, buildah, docker, containerd and apptainer write
 * it: options and names in any order, the last name is the mountpoint, what is not known is ignored
 * with a line that engines know. The program says nothing else when it succeeds.
 */
#include <errno.h>
#include <linux/fuse.h>
#include <stdlib.h>
#include <string.h>

#include "cli/exit.h"
#include "cli/mount.h"
#include "cli/options.h"
#include "util/base.h"
#include "util/log.h"

/* The version whose options these are; engines and test suites compare the last word. */
#define SPOKEN_VERSION "1.16"

/* No such library is linked: tools read the line, and this one knew the same words. */
#define LIBRARY_VERSION "3.16.2"

static int print_version(void)
{
	char text[256];

	snprintf(text, sizeof(text),
		 "fuse-overlayfs: version " SPOKEN_VERSION "\n"
		 "plyfs: version " PLYFS_VERSION "\n"
		 "FUSE library version " LIBRARY_VERSION "\n"
		 "using FUSE kernel interface version %d.%d\n",
		 FUSE_KERNEL_VERSION, FUSE_KERNEL_MINOR_VERSION);
	return cli_print(text);
}

void compat_read_environment(struct options *o)
{
	const char *log = getenv("FUSE_OVERLAYFS_DEBUG_LOG");

	o->compat.no_device_whiteouts = getenv("FUSE_OVERLAYFS_DISABLE_OVL_WHITEOUT") != NULL;
	if (getenv("FUSE_OVERLAYFS_NO_PASSTHROUGH"))
		o->io = SERVER_IO_CACHED;
	if (!log || !log[0])
		return;

	int rc = log_to_file(log);

	if (rc < 0)
		log_warning("FUSE_OVERLAYFS_DEBUG_LOG=%s: %s", log, strerror(-rc));
	o->debug_log = rc == 0;
}

enum flag {
	FLAG_FOREGROUND,
	FLAG_DEBUG,
	FLAG_HELP,
	FLAG_VERSION,
	FLAG_NOTHING,
};

static const struct {
	const char *word;
	enum flag flag;
} flags[] = {
	{ "-f", FLAG_FOREGROUND }, { "--foreground", FLAG_FOREGROUND },
	{ "-d", FLAG_DEBUG },      { "--debug", FLAG_DEBUG },
	{ "-h", FLAG_HELP },       { "--help", FLAG_HELP },
	{ "-V", FLAG_VERSION },    { "--version", FLAG_VERSION },
	{ "-s", FLAG_NOTHING }, /* one thread: there are as many as it takes */
};

struct command {
	struct mount_args args;
	bool help;
	bool version;
};

static void read_flag(struct command *c, const char *word)
{
	for (size_t i = 0; i < ARRAY_SIZE(flags); i++) {
		if (strcmp(word, flags[i].word) != 0)
			continue;
		switch (flags[i].flag) {
		case FLAG_FOREGROUND: c->args.foreground = true; break;
		case FLAG_DEBUG: c->args.debug = true; break;
		case FLAG_HELP: c->help = true; break;
		case FLAG_VERSION: c->version = true; break;
		case FLAG_NOTHING: break;
		}
		return;
	}
	mount_say_ignored(word);
}

/* Not getopt(3): it takes "-foo" apart, and has no way to let an unknown word pass whole. */
static int read_command(int argc, char **argv, struct command *c)
{
	bool names_only = false;
	int rc = 0;

	for (int i = 1; i < argc && rc == 0; i++) {
		const char *word = argv[i];

		if (names_only || word[0] != '-' || !word[1]) {
			c->args.names[0] = word;
			c->args.name_count = 1;
		} else if (!strcmp(word, "--")) {
			names_only = true;
		} else if (word[1] != 'o') {
			read_flag(c, word);
		} else if (word[2]) {
			rc = mount_args_add_list(&c->args, word + 2);
		} else if (++i < argc) {
			rc = mount_args_add_list(&c->args, argv[i]);
		} else {
			log_error("-o needs an argument: see fuse-overlayfs --help");
			rc = -EINVAL;
		}
	}
	return rc;
}

static int run(const struct command *c)
{
	if (c->version)
		return print_version();
	if (c->help)
		return cli_print(cli_compat_help_text);
	if (!c->args.name_count) {
		log_error("no mountpoint: see fuse-overlayfs --help");
		return EXIT_USAGE;
	}
	return mount_run(&c->args, MOUNT_AS_FUSE_OVERLAYFS);
}

int cli_fuse_overlayfs(int argc, char **argv)
{
	struct command c = { 0 };
	int rc = read_command(argc, argv, &c);
	int status = rc < 0 ? EXIT_USAGE : run(&c);

	mount_args_free(&c.args);
	return status == EXIT_OK ? EXIT_OK : EXIT_USAGE;
}
