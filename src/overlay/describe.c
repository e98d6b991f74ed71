// SPDX-License-Identifier: MIT
/*
 * What a union is made of and what it does, in words. Every value is escaped as in
 * /proc/self/mountinfo: space, tab, newline and the like, and '\', are \ooo.
 */
#include <stdio.h>

#include "overlay/internal.h"

static void put_escaped(FILE *out, const char *s)
{
	for (; *s; s++) {
		unsigned char c = (unsigned char)*s;

		if (c <= ' ' || c == '\\' || c == 0x7f)
			fprintf(out, "\\%03o", c);
		else
			fputc(c, out);
	}
}

/* A path as -o takes it, in which '\' protects what would end it. */
static void put_path(FILE *out, const char *path, const char *special)
{
	char quoted[] = "\\?";

	for (; *path; path++) {
		quoted[1] = *path;
		put_escaped(out, strchr(special, *path) ? quoted : quoted + 1);
	}
}

static void put_layers(const struct ovl *o, FILE *out)
{
	for (unsigned int n = 1; n < o->layer_count; n++) {
		fputs(n <= o->lower_count ? "lowerdir+=" : "datadir+=", out);
		put_escaped(out, o->layers[n].path);
		fputc('\n', out);
	}
	if (!o->has_upper)
		return;
	fputs("upperdir=", out);
	put_escaped(out, o->layers[0].path);
	fputs("\nworkdir=", out);
	put_escaped(out, o->workdir_path);
	fputc('\n', out);
}

static void put_layer_options(const struct ovl *o, FILE *out)
{
	fputs("lowerdir=", out);
	for (unsigned int n = 1; n < o->layer_count; n++) {
		if (n > 1)
			fputs(n <= o->lower_count ? ":" : "::", out);
		put_path(out, o->layers[n].path, "\\:,");
	}
	if (!o->has_upper)
		return;
	fputs(",upperdir=", out);
	put_path(out, o->layers[0].path, "\\,");
	fputs(",workdir=", out);
	put_path(out, o->workdir_path, "\\,");
}

/* Whether the kernel would show it in the mount table. */
static bool is_shown(const struct ovl *o, const struct feature_word *w)
{
	const struct ovl_features *f = &o->features;

	if (!strcmp(w->name, "xino"))
		return w->unusual && !o->samefs;
	/* With these it is what we have, not what was asked for: the word would exclude them. */
	if (!strcmp(w->name, "userxattr"))
		return f->userxattr && f->redirect == OVL_REDIRECT_NOFOLLOW && !f->metacopy;
	return w->unusual;
}

static void put_feature_option(FILE *out, const struct feature_word *w)
{
	if (!strcmp(w->name, "userxattr"))
		fputs(",userxattr", out);
	else if (!strcmp(w->value, "volatile"))
		fputs(",volatile", out);
	else
		fprintf(out, ",%s=%s", w->name, w->value);
}

int ovl_describe(const struct ovl *o, FILE *out)
{
	struct feature_word words[FEATURE_WORDS];

	features_spell(&o->features, words);
	put_layers(o, out);
	for (unsigned int n = 0; n < FEATURE_WORDS; n++)
		fprintf(out, "%s=%s\n", words[n].name, words[n].value);
	fputs("options=", out);
	put_layer_options(o, out);
	for (unsigned int n = 0; n < FEATURE_WORDS; n++)
		if (is_shown(o, &words[n]))
			put_feature_option(out, &words[n]);
	return ferror(out) ? -ENOMEM : 0;
}
