/* SPDX-License-Identifier: MIT */
/* plyfs status: what a mount is made of and does, as its server says it. */
#include "cli/cli.h"

#include <getopt.h>
#include <linux/magic.h>
#include <string.h>
#include <sys/statvfs.h>
#include <sys/vfs.h>
#include <sys/xattr.h>

#include "cli/exit.h"
#include "server/status.h"
#include "util/base.h"
#include "util/log.h"

/* Much more than 500 paths can have, so that what pretends to be a server does not fill memory. */
#define BLOCKS_MAX 1024

static const struct option long_options[] = {
	{ "options", no_argument, NULL, 'o' },
	{ "help", no_argument, NULL, 'h' },
	{ 0 },
};

static int say_why(const char *point, int err)
{
	switch (err) {
	case -EPERM:
		log_error("the server of %s answers only root and the user who mounted, in its own "
			  "pid namespace",
			  point);
		break;
	case -ENODATA:
	case -EOPNOTSUPP: log_error("%s is not the root of a plyfs mount", point); break;
	case -ENOTCONN: log_error("%s: its server is gone", point); break;
	default: log_error("%s: %s", point, strerror(-err)); break;
	}
	return err;
}

/* The whole text, NUL-terminated, with malloc(). */
static int read_text(const char *point, char **out)
{
	autofree char *text = NULL;
	size_t len = 0;
	ssize_t n = STATUS_BLOCK;

	for (unsigned int block = 0; n == STATUS_BLOCK; block++) {
		char name[sizeof(STATUS_TEXT) + 16];
		char *longer = block < BLOCKS_MAX ? realloc(text, len + STATUS_BLOCK + 1) : NULL;

		if (!longer)
			return -ENOMEM;
		text = longer;
		snprintf(name, sizeof(name), STATUS_TEXT ".%u", block);
		n = getxattr(point, name, text + len, STATUS_BLOCK);
		if (n < 0)
			return -errno;
		len += (size_t)n;
	}
	text[len] = '\0';
	*out = take_ptr(text);
	return 0;
}

/* Values come escaped: what else is not printable is no text of ours. */
static void put_line(const char *line, size_t len)
{
	for (size_t i = 0; i < len; i++)
		putchar((unsigned char)line[i] < ' ' || line[i] == 0x7f ? '?' : line[i]);
	putchar('\n');
}

static int print(const char *point, const char *text, bool options)
{
	static const char prefix[] = "options=";
	const size_t prefix_len = sizeof(prefix) - 1;
	struct statvfs vfs;
	const char *mode;

	if (statvfs(point, &vfs) < 0)
		return say_why(point, -errno);
	mode = vfs.f_flag & ST_RDONLY ? "ro" : "rw";
	if (!options)
		printf("access=%s\n", mode);
	for (const char *s = text; *s;) {
		size_t len = strcspn(s, "\n");
		bool is_options = !strncmp(s, prefix, prefix_len);

		if (is_options && options) {
			printf("%s,", mode);
			put_line(s + prefix_len, len - prefix_len);
		} else if (!is_options && !options) {
			put_line(s, len);
		}
		s += len + (s[len] == '\n');
	}
	return 0;
}

static int report(const char *point, bool options)
{
	autofree char *text = NULL;
	struct statfs fs;
	int err;

	if (statfs(point, &fs) < 0)
		return say_why(point, -errno);
	err = fs.f_type == FUSE_SUPER_MAGIC ? read_text(point, &text) : -ENODATA;
	if (err < 0)
		return say_why(point, err);
	return print(point, text, options);
}

int cli_status(int argc, char **argv)
{
	bool options = false;
	int c;

	opterr = 0;
	optind = 0;
	while ((c = getopt_long(argc, argv, "oh", long_options, NULL)) != -1) {
		switch (c) {
		case 'o': options = true; break;
		case 'h': return cli_print(cli_status_help_text);
		default:
			log_error("unknown argument %s: see plyfs status --help", argv[optind - 1]);
			return EXIT_USAGE;
		}
	}
	if (argc - optind != 1) {
		log_error("give one mountpoint: see plyfs status --help");
		return EXIT_USAGE;
	}
	if (report(argv[optind], options) < 0)
		return EXIT_MOUNT;
	if (fflush(stdout) == EOF || ferror(stdout)) {
		log_error("cannot write to standard output: %m");
		return EXIT_SYSTEM;
	}
	return EXIT_OK;
}
