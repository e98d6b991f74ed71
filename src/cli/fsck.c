// SPDX-License-Identifier: MIT
/* plyfs fsck, also under the name by which fsck(8) calls it for the types plyfs and fuse.plyfs. */
#include "cli/cli.h"

#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <mntent.h>
#include <signal.h>
#include <string.h>
#include <sys/resource.h>

#include "cli/exit.h"
#include "cli/options.h"
#include "fsck/fsck.h"
#include "util/base.h"
#include "util/log.h"

#define MESSAGE_MAX (2 * PATH_MAX + 512)

enum mode {
	MODE_DEFAULT, /* asks on a terminal, else reports */
	MODE_REPORT,
	MODE_PREEN,
	MODE_YES,
	MODE_ASK,
};

struct checking {
	enum mode mode;
	bool verbose;
	bool discard_volatile;
	bool yes_to_all;
	bool cancelled; /* by an answer */
	struct options options;
	const char *name; /* of a line in fstab */
};

static volatile sig_atomic_t interrupted;

static const struct option long_options[] = {
	{ "options", required_argument, NULL, 'o' },
	{ "verbose", no_argument, NULL, 'v' },
	{ "discard-volatile-mark", no_argument, NULL, 'D' },
	{ "help", no_argument, NULL, 'h' },
	{ "version", no_argument, NULL, 'V' },
	{ 0 },
};

static void on_signal(int sig)
{
	interrupted = 1;
}

static int set_mode(struct checking *c, enum mode mode)
{
	if (c->mode != MODE_DEFAULT && c->mode != mode) {
		log_error("of -n, -p, -y and -r give one: see plyfs fsck --help");
		return -EINVAL;
	}
	c->mode = mode;
	return 0;
}

static int add_options(struct checking *c, const char *list)
{
	char message[MESSAGE_MAX];
	int err = options_add(&c->options, list, message, sizeof(message));

	if (err < 0)
		log_error("%s", message);
	return err;
}

static int add_name(struct checking *c, const char *name)
{
	/* What is a device to fsck(8) may be the layers themselves. */
	if (!strncmp(name, "lowerdir", strlen("lowerdir")) && strchr(name, '='))
		return add_options(c, name);
	if (c->name) {
		log_error("too many arguments: '%s' after '%s'", name, c->name);
		return -EINVAL;
	}
	c->name = name;
	return 0;
}

static int bad_argument(int letter, char **argv)
{
	const char *word = argv[optind - 1];
	char shown[] = { '-', (char)optopt, '\0' };

	if (optopt > 0 && optopt < 0x80 && word[1] != '-')
		word = shown;
	log_error(letter == ':' ? "%s needs an argument: see plyfs fsck --help"
				: "unknown argument %s: see plyfs fsck --help",
		  word);
	return -EINVAL;
}

/* Returns 1 to go on, 0 when all was done (--help), a negative errno after a message. */
static int read_args(int argc, char **argv, struct checking *c)
{
	int letter;
	int err = 0;

	opterr = 0;
	optind = 0;
	while (err == 0 && (letter = getopt_long(argc, argv, "-:napyrvfo:C:t:TMhV", long_options,
						 NULL)) != -1) {
		switch (letter) {
		case 1: err = add_name(c, optarg); break;
		case 'n': err = set_mode(c, MODE_REPORT); break;
		case 'a':
		case 'p': err = set_mode(c, MODE_PREEN); break;
		case 'y': err = set_mode(c, MODE_YES); break;
		case 'r': err = set_mode(c, MODE_ASK); break;
		case 'o': err = add_options(c, optarg); break;
		case 'v': c->verbose = true; break;
		case 'D': c->discard_volatile = true; break;
		/* fsck(8) passes these on: progress to an fd, the title, mounted ones; always full
		 */
		case 'C':
		case 't':
		case 'T':
		case 'M':
		case 'f': break;
		case 'h': cli_print(cli_fsck_help_text); return 0;
		case 'V': cli_version(0, NULL); return 0;
		default: err = bad_argument(letter, argv); break;
		}
	}
	while (err == 0 && optind < argc)
		err = add_name(c, argv[optind++]);
	return err < 0 ? err : 1;
}

/* The options of a line in fstab, by its source or its mountpoint. */
static int read_fstab(struct checking *c)
{
	static const char *const types[] = { "plyfs", "fuse.plyfs", "overlay" };
	FILE *table = setmntent("/etc/fstab", "re");
	const struct mntent *line;
	int err = -ENOENT;

	while (table && err == -ENOENT && (line = getmntent(table))) {
		bool ours = false;

		for (size_t n = 0; n < ARRAY_SIZE(types); n++)
			ours |= !strcmp(line->mnt_type, types[n]);
		if (ours && (!strcmp(line->mnt_dir, c->name) || !strcmp(line->mnt_fsname, c->name)))
			err = add_options(c, line->mnt_opts);
	}
	if (table)
		endmntent(table);
	if (err == -ENOENT)
		log_error("%s is no union in /etc/fstab: give -o "
			  "lowerdir=...,upperdir=...,workdir=...",
			  c->name);
	return err;
}

static int check_options(struct checking *c)
{
	struct options *o = &c->options;
	int err = 0;

	if (!o->lower_count && !o->upper && c->name)
		err = read_fstab(c);
	if (err < 0)
		return err;
	if (!o->lower_count) {
		log_error("no lower layer: give -o lowerdir=DIR[:DIR...],upperdir=DIR,workdir=DIR");
		return -EINVAL;
	}
	if (!o->upper && (c->mode == MODE_PREEN || c->mode == MODE_YES || c->mode == MODE_ASK)) {
		log_error("without upperdir= there is nothing that may be repaired: give the layer "
			  "as upperdir and those below it as lowerdir");
		return -EINVAL;
	}
	if (!o->upper && o->work) {
		log_error("workdir=%s needs an upperdir=", o->work);
		return -EINVAL;
	}
	if (c->mode == MODE_DEFAULT)
		c->mode = o->upper && isatty(STDIN_FILENO) && isatty(STDOUT_FILENO) ? MODE_ASK
										    : MODE_REPORT;
	return 0;
}

/* --- what is told -------------------------------------------------------------------------------
 */

/* A name may hold anything: what is no text is shown in octal, as ls(1) does. */
static void print_name(const char *s)
{
	for (; *s; s++) {
		unsigned char ch = (unsigned char)*s;

		if (ch < 0x20 || ch == 0x7f)
			printf("\\%03o", ch);
		else
			putchar(ch);
	}
}

static void print_finding(const struct fsck_finding *f)
{
	printf("%s: ", f->layer);
	print_name(f->path);
	printf(": %s", f->what);
	if (*f->detail) {
		printf(" (");
		print_name(f->detail);
		putchar(')');
	}
	printf(" [%s]", f->id);
}

static enum fsck_answer read_answer(struct checking *c, const struct fsck_finding *f)
{
	char line[64];

	for (;;) {
		printf("\n%c%s? [y]es, [n]o, [a]ll, [q]uit: ", f->repair[0] & ~0x20, f->repair + 1);
		fflush(stdout);
		if (!fgets(line, sizeof(line), stdin)) {
			putchar('\n');
			c->cancelled = true;
			return FSCK_CANCEL;
		}
		switch (line[0]) {
		case 'y': return FSCK_REPAIR;
		case 'n': return FSCK_LEAVE;
		case 'a': c->yes_to_all = true; return FSCK_REPAIR;
		case 'q': c->cancelled = true; return FSCK_CANCEL;
		default: break;
		}
	}
}

static enum fsck_answer ask(void *ctx, const struct fsck_finding *f)
{
	struct checking *c = ctx;
	bool may = f->repair && (f->class == FSCK_SAFE || f->class == FSCK_ASK);

	if (f->class == FSCK_NOTE && !c->verbose)
		return FSCK_LEAVE;
	print_finding(f);
	if (may && c->mode == MODE_ASK && !c->yes_to_all)
		return read_answer(c, f);
	if (may && (c->mode == MODE_YES || c->yes_to_all ||
		    (c->mode == MODE_PREEN && f->class == FSCK_SAFE)))
		return FSCK_REPAIR; /* the line ends with how it went */
	putchar('\n');
	return FSCK_LEAVE;
}

static void on_repaired(void *ctx, const struct fsck_finding *f, int err)
{
	const struct checking *c = ctx;

	if (c->mode == MODE_ASK && !c->yes_to_all) {
		if (err < 0)
			printf("not repaired: %s\n", strerror(-err));
		return;
	}
	if (err < 0)
		printf(": not repaired: %s\n", strerror(-err));
	else
		printf(": repaired (%s)\n", f->repair);
}

static void warn(void *ctx, const char *message)
{
	/* The engine's own warnings, about what we tell of ourselves, are not wanted. */
	log_set_level(LOG_LEVEL_WARNING);
	log_warning("%s; what is found may be out of date", message);
	log_set_level(LOG_LEVEL_ERROR);
}

static void print_summary(const struct checking *c, const char *layer, const struct fsck_result *r)
{
	if (c->verbose || r->repaired || r->left)
		printf("%s: %lu repaired, %lu left, %lu notes\n", layer, r->repaired, r->left,
		       r->notes);
}

/* --- running ------------------------------------------------------------------------------------
 */

static void catch_signals(void)
{
	const struct sigaction action = { .sa_handler = on_signal };

	sigaction(SIGINT, &action, NULL);
	sigaction(SIGTERM, &action, NULL);
	sigaction(SIGHUP, &action, NULL);
}

/* As many files as may be: each lower layer takes some. */
static void raise_limit(void)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
		return;
	limit.rlim_cur = limit.rlim_max;
	setrlimit(RLIMIT_NOFILE, &limit);
}

static int check_layer(struct checking *c, size_t first)
{
	const struct options *o = &c->options;
	const struct fsck_config config = {
		.lower = (const char *const *)o->lower + first,
		.lower_count = o->lower_count - first,
		.data_count = o->data_count,
		.upper = o->upper,
		.work = o->work,
		.features = o->features,
		.given = o->given,
		.write = o->upper && c->mode != MODE_REPORT,
		.discard_volatile = c->discard_volatile,
		.ask = ask,
		.repaired = on_repaired,
		.warn = warn,
		.ctx = c,
		.cancelled = &interrupted,
	};
	char message[MESSAGE_MAX];
	struct fsck_result result;
	int status = FSCK_EXIT_OK;
	int err = fsck_run(&config, &result, message, sizeof(message));

	if (err < 0 && err != -ECANCELED) {
		log_error("%s", message);
		status |= FSCK_EXIT_OPERATION;
	}
	if (err == -ECANCELED) {
		log_error("cancelled");
		status |= FSCK_EXIT_CANCELLED;
	}
	if (result.repaired)
		status |= FSCK_EXIT_REPAIRED;
	if (result.left)
		status |= FSCK_EXIT_LEFT;
	print_summary(c, o->upper ? o->upper : o->lower[first], &result);
	return status;
}

static int check(struct checking *c)
{
	const struct options *o = &c->options;
	size_t layers = o->upper ? 1 : o->lower_count - o->data_count;
	int status = FSCK_EXIT_OK;

	raise_limit();
	catch_signals();
	log_set_level(LOG_LEVEL_ERROR);
	/* Without an upper layer each lower one is looked at, as if it were. */
	for (size_t n = 0; n < layers && !(status & (FSCK_EXIT_CANCELLED | FSCK_EXIT_OPERATION));
	     n++)
		status |= check_layer(c, n);
	if (fflush(stdout) == EOF) {
		log_error("cannot write to standard output: %m");
		status |= FSCK_EXIT_OPERATION;
	}
	return status;
}

int cli_fsck(int argc, char **argv)
{
	struct checking c = { 0 };
	int status = FSCK_EXIT_USAGE;
	int rc;

	options_init(&c.options, OPTIONS_OF_PLYFS);
	rc = read_args(argc, argv, &c);
	if (rc == 0)
		status = FSCK_EXIT_OK;
	else if (rc > 0)
		rc = check_options(&c);
	if (rc == -ENOMEM)
		status = FSCK_EXIT_OPERATION;
	if (rc == 0 && status == FSCK_EXIT_USAGE)
		status = check(&c);
	options_free(&c.options);
	return status;
}
