/* SPDX-License-Identifier: MIT */
#include "cli/options.h"

#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <unistd.h>

#include "cli/options_private.h"
#include "cli/suggest.h"
#include "util/base.h"

/* Of these a mount has one. */
#define ATIME_MODES (MS_NOATIME | MS_RELATIME | MS_STRICTATIME)

int option_fail(struct option_reader *r, const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	vsnprintf(r->message, r->size, fmt, args);
	va_end(args);
	return -EINVAL;
}

int option_no_memory(struct option_reader *r)
{
	snprintf(r->message, r->size, "out of memory while reading the options");
	return -ENOMEM;
}

static bool name_matches(const char *pattern, const char *name)
{
	size_t len = strlen(pattern);

	if (pattern[len - 1] == '*')
		return !strncmp(pattern, name, len - 1);
	return !strcmp(pattern, name);
}

static bool word_arity_fits(const struct option_word *w, const char *value)
{
	return w->arity == EITHER || (w->arity == VALUE) == !!value;
}

static bool is_spoken(enum option_dialect dialect, const struct option_word *w)
{
	return w->in == IN_BOTH ||
	       w->in == (dialect == OPTIONS_OF_FUSE_OVERLAYFS ? IN_COMPAT : IN_PLYFS);
}

static bool is_compat(const struct options *o)
{
	return o->dialect == OPTIONS_OF_FUSE_OVERLAYFS;
}

/* A word may mean one thing alone and another with a value ("sync"). */
static const struct option_word *find_word(const struct options *o, const char *name,
					   const char *value)
{
	const struct option_word *found = NULL;

	for (size_t i = 0; i < option_word_count; i++) {
		if (!is_spoken(o->dialect, &option_words[i]) ||
		    !name_matches(option_words[i].name, name))
			continue;
		if (word_arity_fits(&option_words[i], value))
			return &option_words[i];
		found = &option_words[i];
	}
	return found;
}

static const char *closest_word(const struct options *o, const char *name)
{
	const char *best = NULL;
	size_t least = SUGGEST_MAX;

	for (size_t i = 0; i < option_word_count; i++) {
		size_t d = suggest_distance(name, option_words[i].name);

		if (d < least && is_spoken(o->dialect, &option_words[i])) {
			least = d;
			best = option_words[i].name;
		}
	}
	return best;
}

static int read_word(struct option_reader *r, char *item)
{
	char *value = strchr(item, '=');

	if (value)
		*value++ = '\0';

	const struct option_word *w = find_word(r->o, item, value);

	if (is_compat(r->o) && (!w || (w->arity == ALONE && value))) {
		/* No word looks so: without it the mount would lack a layer. */
		if (!value && strchr(item, '/'))
			return option_fail(r,
					   "'%s' is no option but the end of a path: a ',' in a "
					   "path is written '\\,'",
					   item);
		if (value)
			value[-1] = '=';
		if (r->o->ignored)
			r->o->ignored(item);
		return 0;
	}
	if (!w) {
		const char *near = closest_word(r->o, item);

		if (r->o->sloppy)
			return 0;
		if (near)
			return option_fail(r, "unknown option '%s': did you mean '%s'?", item,
					   near);
		return option_fail(r, "unknown option '%s'", item);
	}
	if (!word_arity_fits(w, value) && value)
		return option_fail(r, "the option '%s' takes no value", item);
	if (!word_arity_fits(w, value))
		return option_fail(r, "the option '%s' needs a value: %s=...", item, item);
	return w->read(r, w, value);
}

/*
 * The end of the quotes in context="user:role:type:level,level", which engines do not write with
 * '\' before the commas; NULL when there is none. In another word '"' is part of a path.
 */
static char *quotes_end(char *s)
{
	static const char *const contexts[] = { "context=\"", "fscontext=\"", "defcontext=\"",
						"rootcontext=\"" };

	for (size_t i = 0; i < ARRAY_SIZE(contexts); i++) {
		size_t len = strlen(contexts[i]);

		if (!strncmp(s, contexts[i], len))
			return strchr(s + len, '"');
	}
	return NULL;
}

/* The end of the word at @s: the next ',' that no '\' protects, or the end of the list. */
static char *word_end(char *s)
{
	char *quotes = quotes_end(s);

	if (quotes)
		s = quotes;
	while (*s && *s != ',') {
		if (*s == '\\' && s[1])
			s++;
		s++;
	}
	return s;
}

int options_add(struct options *o, const char *list, char *message, size_t size)
{
	struct option_reader r = { o, message, size };
	autofree char *copy = strdup(list);

	message[0] = '\0';
	if (!copy)
		return option_no_memory(&r);

	for (char *item = copy; item;) {
		char *end = word_end(item);
		char *next = *end ? end + 1 : NULL;

		*end = '\0';
		/* Engines join lists with ",,". */
		if (item[0]) {
			int rc = read_word(&r, item);

			if (rc < 0)
				return rc;
		}
		item = next;
	}
	return 0;
}

/* Those of fuse-overlayfs, as far as no word says otherwise. */
static void add_default_flags(struct options *o)
{
	unsigned long flags = MS_NODEV | MS_NOATIME | (geteuid() == 0 ? 0 : MS_NOSUID);

	if (o->mount_flags & ATIME_MODES)
		flags &= ~(unsigned long)MS_NOATIME;
	o->mount_flags |= flags & ~o->unset_flags;
}

int options_contexts(const struct options *o, char **out)
{
	const struct {
		const char *name, *value;
	} words[] = {
		{ "context", o->context.mount },
		{ "fscontext", o->context.fs },
		{ "defcontext", o->context.def },
		{ "rootcontext", o->context.root },
	};
	size_t size = 0;
	FILE *f = NULL;

	*out = NULL;
	for (size_t i = 0; i < ARRAY_SIZE(words); i++) {
		if (!words[i].value)
			continue;
		if (!f)
			f = open_memstream(out, &size);
		if (!f)
			return -ENOMEM;
		fprintf(f, "%s%s=\"%s\"", ftell(f) ? "," : "", words[i].name, words[i].value);
	}
	if (f && (ferror(f) | fclose(f))) {
		free(take_ptr(*out));
		return -ENOMEM;
	}
	return 0;
}

static void put_map(FILE *f, const char *name, const struct id_map *m)
{
	for (size_t i = 0; i < m->count; i++) {
		const struct id_range *r = &m->ranges[i];

		fprintf(f, "%s%s%u:%u:%u", i ? "" : name, i ? ":" : "mapping=", r->disk, r->shown,
			r->count);
	}
	if (m->count)
		putc(',', f);
	if (m->squash)
		fprintf(f, "squash_to_%s=%u,", name, m->squash_to);
}

int options_view(const struct options *o, char **out)
{
	size_t size = 0;
	FILE *f = open_memstream(out, &size);

	if (!f)
		return -ENOMEM;
	put_map(f, "uid", &o->uids);
	put_map(f, "gid", &o->gids);
	if (o->compat.override)
		fprintf(f, "xattr_permissions=%d,", (int)o->compat.override);
	fputs(o->static_nlink ? "static_nlink," : "", f);
	fputs(o->ino32 ? "ino32_t," : "", f);
	fputs(o->no_acl ? "noacl," : "", f);
	fputs(o->no_xattrs ? "noxattrs," : "", f);
	if (ferror(f) | fclose(f)) {
		free(take_ptr(*out));
		return -ENOMEM;
	}
	if (size)
		(*out)[size - 1] = '\0'; /* the last comma */
	else
		free(take_ptr(*out));
	return 0;
}

static void list_word(const struct option_word *w, bool with_value, FILE *out)
{
	fputs(w->name, out);
	if (with_value)
		putc('=', out);
	for (const char *s = with_value ? w->accepted : NULL; s && *s; s++)
		putc(*s == ' ' ? '|' : *s, out);
	fputs(w->read == option_ignore ? "\tno effect\n" : "\n", out);
}

void options_list(enum option_dialect dialect, FILE *out)
{
	for (size_t i = 0; i < option_word_count; i++) {
		const struct option_word *w = &option_words[i];

		if (!is_spoken(dialect, w))
			continue;
		if (w->arity != VALUE)
			list_word(w, false, out);
		if (w->arity != ALONE)
			list_word(w, true, out);
	}
}

int options_check(struct options *o, char *message, size_t size)
{
	struct option_reader r = { o, message, size };

	message[0] = '\0';
	if (o->remount) /* allow_root's own mount shows allow_other */
		return 0;
	if (o->allow_root && o->allow_other == OPTION_YES)
		return option_fail(&r, "allow_other and allow_root exclude each other: give one");

	if (!o->lower_count)
		return option_fail(&r, "no lower layer: give -o lowerdir=DIR[:DIR...]");
	if (o->data_count == o->lower_count)
		return option_fail(
			&r, "all layers are data-only: give at least one other, with lowerdir+= "
			    "before datadir+=");
	if (o->upper && !o->work)
		return option_fail(
			&r,
			"upperdir=%s needs a workdir=: an empty directory on the same filesystem",
			o->upper);
	/* The number stays 0, unless another word gave one. */
	o->uids.squash |= o->squash_root;
	o->gids.squash |= o->squash_root;
	/* Engines that squash, or ignore errors of chown(2), want their containers to write. */
	o->compat.gives_up_owners = is_compat(o) || o->uids.squash || o->gids.squash;
	if (is_compat(o))
		add_default_flags(o);
	if (!o->upper) {
		free(take_ptr(o->work));
		o->mount_flags |= MS_RDONLY;
	}
	return 0;
}

unsigned long options_remount_flags(const struct options *o, unsigned long now)
{
	unsigned long flags = (now & ~o->unset_flags) | o->mount_flags;

	/* Without any, the kernel would keep the mode there was. */
	if (!(flags & ATIME_MODES))
		flags |= MS_RELATIME;
	return flags;
}

void options_init(struct options *o, enum option_dialect dialect)
{
	*o = (struct options){ .timeout = -1, .writeback = true, .dialect = dialect };
	o->compat.whiteout_files = is_compat(o);
	o->compat.unmarked_volatile = is_compat(o);
	o->compat.shares_upper = is_compat(o);
}

void options_free(struct options *o)
{
	option_free_lower(o);
	free(o->upper);
	free(o->work);
	free(o->source);
	free(o->subtype);
	free(o->context.mount);
	free(o->context.fs);
	free(o->context.def);
	free(o->context.root);
	id_map_free(&o->uids);
	id_map_free(&o->gids);
	options_init(o, o->dialect);
}
