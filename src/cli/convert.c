// SPDX-License-Identifier: MIT
/* plyfs convert: marks of fuse-overlayfs to those of the kernel, and back. */
#include "fsck/convert.h"

#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <signal.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/exit.h"
#include "overlay/ovl.h"
#include "util/base.h"
#include "util/log.h"

#define MESSAGE_MAX (2 * PATH_MAX + 512)

struct conversion {
	struct convert_config config;
	bool verbose;
	bool to_given;
	bool prefix_given;
	char **dirs;
	int dir_count;
};

static volatile sig_atomic_t interrupted;

static const struct option long_options[] = {
	{ "to", required_argument, NULL, 'T' },
	{ "dry-run", no_argument, NULL, 'n' },
	{ "image", no_argument, NULL, 'I' },
	{ "userxattr", no_argument, NULL, 'u' },
	{ "trusted", no_argument, NULL, 't' },
	{ "verbose", no_argument, NULL, 'v' },
	{ "help", no_argument, NULL, 'h' },
	{ "version", no_argument, NULL, 'V' },
	{ 0 },
};

static void on_signal(int sig)
{
	interrupted = 1;
}

static int read_to(struct conversion *c, const char *word)
{
	bool kernel = !strcmp(word, "kernel");

	if (!kernel && strcmp(word, "fuse-overlayfs") != 0) {
		log_error("--to=%s: it is kernel or fuse-overlayfs", word);
		return -EINVAL;
	}
	c->config.to_kernel = kernel;
	c->to_given = true;
	return 0;
}

static int bad_argument(int letter, char **argv)
{
	log_error(letter == ':' ? "%s needs an argument: see plyfs convert --help"
				: "unknown argument %s: see plyfs convert --help",
		  argv[optind - 1]);
	return -EINVAL;
}

/* Returns 1 to go on, 0 when all was done, a negative errno after a message. */
static int read_args(int argc, char **argv, struct conversion *c)
{
	int letter;
	int err = 0;

	opterr = 0;
	optind = 0;
	while (err == 0 && (letter = getopt_long(argc, argv, ":nvhV", long_options, NULL)) != -1) {
		switch (letter) {
		case 'T': err = read_to(c, optarg); break;
		case 'n': c->config.write = false; break;
		case 'I': c->config.image_rule = true; break;
		case 'u': c->config.userxattr = c->prefix_given = true; break;
		case 't':
			c->config.userxattr = false;
			c->prefix_given = true;
			break;
		case 'v': c->verbose = true; break;
		case 'h': cli_print(cli_convert_help_text); return 0;
		case 'V': cli_version(0, NULL); return 0;
		default: err = bad_argument(letter, argv); break;
		}
	}
	if (err < 0)
		return err;
	if (!c->to_given) {
		log_error("say what to convert to: --to=kernel or --to=fuse-overlayfs");
		return -EINVAL;
	}
	c->dirs = argv + optind;
	c->dir_count = argc - optind;
	if (!c->dir_count) {
		log_error("no layer to convert: see plyfs convert --help");
		return -EINVAL;
	}
	return 1;
}

static void print_name(const char *s)
{
	for (; *s; s++) {
		if ((unsigned char)*s < 0x20 || *s == 0x7f)
			printf("\\%03o", (unsigned char)*s);
		else
			putchar(*s);
	}
}

static void tell(void *ctx, const struct convert_event *event)
{
	const struct conversion *c = ctx;

	if (!event->left && !c->verbose && c->config.write)
		return;
	print_name(event->path);
	printf(": %s", event->what);
	if (event->err < 0)
		printf(": not converted: %s", strerror(-event->err));
	else if (event->left)
		printf(": left as it is");
	putchar('\n');
}

static void warn(void *ctx, const char *message)
{
	log_warning("%s; what is found may be out of date", message);
}

static int convert_dir(struct conversion *c, const char *dir)
{
	char message[MESSAGE_MAX];
	struct convert_result result;
	int status = FSCK_EXIT_OK;
	int err;

	c->config.dir = dir;
	err = convert_run(&c->config, &result, message, sizeof(message));
	if (err == -ECANCELED) {
		log_error("cancelled");
		status |= FSCK_EXIT_CANCELLED;
	} else if (err < 0) {
		log_error("%s", message);
		status |= FSCK_EXIT_OPERATION;
	}
	if (result.left)
		status |= FSCK_EXIT_LEFT;
	if (result.left && c->config.write && !c->config.to_kernel && !result.converted)
		log_error("%s: nothing was converted: what is listed has no form in fuse-overlayfs",
			  dir);
	return status;
}

int cli_convert(int argc, char **argv)
{
	const struct sigaction action = { .sa_handler = on_signal };
	struct conversion c = {
		.config = { .write = true, .tell = tell, .warn = warn, .cancelled = &interrupted }
	};
	int status = FSCK_EXIT_OK;
	int rc = read_args(argc, argv, &c);

	if (rc <= 0)
		return rc < 0 ? FSCK_EXIT_USAGE : FSCK_EXIT_OK;
	if (!c.prefix_given)
		c.config.userxattr = !ovl_may_trust();
	c.config.ctx = &c;
	sigaction(SIGINT, &action, NULL);
	sigaction(SIGTERM, &action, NULL);
	sigaction(SIGHUP, &action, NULL);
	for (int n = 0; n < c.dir_count && !interrupted; n++)
		status |= convert_dir(&c, c.dirs[n]);
	if (fflush(stdout) == EOF) {
		log_error("cannot write to standard output: %m");
		status |= FSCK_EXIT_OPERATION;
	}
	return status;
}
