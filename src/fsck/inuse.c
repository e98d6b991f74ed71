// SPDX-License-Identifier: MIT
/*
 * Whether the kernel's overlayfs has upper or work mounted. It takes no lock that could be asked
 * for, so the mount tables are read: our own, and where we may, those of all mount namespaces.
 */
#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>

#include "fsck/private.h"

struct sought {
	struct stat st;
	char *path; /* without symlinks */
	const char *what;
	const char *given;
};

struct search {
	struct sought sought[2];
	size_t count;
	char root[64]; /* of the namespace whose table is read */
	char point[PATH_MAX];
	const struct sought *found;
};

/* "\ooo" of the mount table, in place. */
static void decode_octal(char *s)
{
	char *d = s;

	while (*s) {
		if (s[0] == '\\' && s[1] >= '0' && s[1] <= '3' && isdigit((unsigned char)s[2]) &&
		    isdigit((unsigned char)s[3])) {
			*d++ = (char)((s[1] - '0') << 6 | (s[2] - '0') << 3 | (s[3] - '0'));
			s += 4;
		} else {
			*d++ = *s++;
		}
	}
	*d = '\0';
}

/* A path relative to where somebody was when he mounted: anything that ends so may be it. */
static bool may_be(const struct sought *s, const char *relative)
{
	const char *tail = strrchr(relative, '/');
	const char *own = s->path ? strrchr(s->path, '/') : NULL;

	tail = tail ? tail + 1 : relative;
	return own && !strcmp(own + 1, tail);
}

static bool is_sought(const struct search *search, const struct sought *s, const char *path)
{
	char full[PATH_MAX + sizeof(search->root)];
	struct stat st;

	if (*path != '/') /* elsewhere such names say nothing at all */
		return !search->root[0] && may_be(s, path);
	snprintf(full, sizeof(full), "%s%s", search->root, path);
	return stat(full, &st) == 0 && st.st_dev == s->st.st_dev && st.st_ino == s->st.st_ino;
}

static void check_path(struct search *search, const char *path)
{
	for (size_t n = 0; n < search->count && !search->found; n++)
		if (is_sought(search, &search->sought[n], path))
			search->found = &search->sought[n];
}

/* Each layer of a list, '\' protecting what follows it. */
static void check_list(struct search *search, char *list)
{
	while (*list && !search->found) {
		char path[PATH_MAX];
		size_t len = 0;

		while (*list == ':')
			list++;
		for (; *list && *list != ':'; list++) {
			if (*list == '\\' && list[1])
				list++;
			if (len < sizeof(path) - 1)
				path[len++] = *list;
		}
		path[len] = '\0';
		if (len)
			check_path(search, path);
	}
}

/* The options of one overlay: ',' separates them, unless protected by '\'. */
static void check_options(struct search *search, char *options)
{
	while (*options && !search->found) {
		char *end = options;
		bool last;

		while (*end && *end != ',')
			end += *end == '\\' && end[1] ? 2 : 1;
		last = !*end;
		*end = '\0';
		decode_octal(options);
		if (!strncmp(options, "upperdir=", 9))
			check_path(search, options + 9);
		else if (!strncmp(options, "workdir=", 8))
			check_path(search, options + 8);
		else if (!strncmp(options, "lowerdir=", 9))
			check_list(search, options + 9);
		else if (!strncmp(options, "lowerdir+=", 10))
			check_path(search, options + 10);
		options = last ? end : end + 1;
	}
}

static void read_table(struct search *search, const char *file)
{
	autofile FILE *table = fopen(file, "re");
	autofree char *line = NULL;
	size_t room = 0;

	while (table && !search->found && getline(&line, &room, table) > 0) {
		char *type = strstr(line, " - ");
		char *options;
		char *point = line;

		if (!type || strncmp(type + 3, "overlay ", 8) != 0)
			continue;
		line[strcspn(line, "\n")] = '\0';
		options = strrchr(type, ' '); /* the options of the filesystem come last */
		for (int n = 0; n < 4 && point; n++)
			point = strchr(point, ' ') ? strchr(point, ' ') + 1 : NULL;
		if (point) {
			snprintf(search->point, sizeof(search->point), "%.*s",
				 (int)strcspn(point, " "), point);
			decode_octal(search->point);
		}
		check_options(search, options + 1);
	}
}

/* The tables of other mount namespaces, each once; what may not be read is left out. */
static void read_all_tables(struct search *search)
{
	struct text_set seen = { 0 };
	autodir DIR *proc = opendir("/proc");
	struct dirent *d;

	while (proc && !search->found && (d = readdir(proc))) {
		char name[64];
		char ns[64];
		ssize_t len;

		if (!isdigit((unsigned char)d->d_name[0]) || strlen(d->d_name) > 12)
			continue;
		snprintf(name, sizeof(name), "/proc/%.12s/ns/mnt", d->d_name);
		len = readlink(name, ns, sizeof(ns) - 1);
		if (len <= 0)
			continue;
		ns[len] = '\0';
		if (text_set_add(&seen, ns) != 1)
			continue;
		snprintf(search->root, sizeof(search->root), "/proc/%.12s/root", d->d_name);
		snprintf(name, sizeof(name), "/proc/%.12s/mountinfo", d->d_name);
		read_table(search, name);
	}
	text_set_free(&seen);
}

static int seek_for(struct search *search, const char *what, const char *path)
{
	struct sought *s = &search->sought[search->count];

	if (!path)
		return 0;
	if (stat(path, &s->st) < 0)
		return -errno;
	s->path = realpath(path, NULL);
	s->what = what;
	s->given = path;
	search->count++;
	return 0;
}

int check_in_use(struct fsck *f, char *message, size_t size)
{
	struct search search = { 0 };
	int err = seek_for(&search, "upperdir", f->config->upper);

	if (err == 0)
		err = seek_for(&search, "workdir", f->config->work);
	if (err == 0) {
		read_table(&search, "/proc/self/mountinfo");
		if (!search.found)
			read_all_tables(&search);
	}
	if (search.found) {
		snprintf(message, size,
			 "%s %s is in use by the overlay mounted on %s: unmount that "
			 "first",
			 search.found->what, search.found->given, search.point);
		err = -EBUSY;
	} else if (err < 0) {
		snprintf(message, size, "upperdir %s: %s", f->config->upper, strerror(-err));
	}
	for (size_t n = 0; n < search.count; n++)
		free(search.sought[n].path);
	return err;
}
