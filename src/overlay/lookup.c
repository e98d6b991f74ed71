// SPDX-License-Identifier: MIT
/*
 * Lookup through the layers, by the rules of the kernel's ovl_lookup(): upper first, then the
 * parent's lower directories from the top, until a whiteout, an opaque directory or a non-directory
 * stops it. A redirect changes the name, or the place, that is looked for in the layers below.
 *
 * What hides things by files (whfile.h) is asked for where it is cheap: of a missing name, from
 * memory; of a directory, when a layer below turns out to have one of its name.
 */
#include <limits.h>
#include <linux/fs.h>

#include "overlay/dirnames.h"
#include "overlay/index.h"
#include "overlay/whfile.h"
#include "util/log.h"

/* What is known while walking down the layers. */
struct walk {
	struct ovl *o;
	struct ovl_inode *dir; /* in whose real directories it is; NULL while a path is followed */
	const char *name; /* looked for in the next layer; a path from the layer's root if it begins
			   * with '/' */
	char *owned;      /* behind name, once a redirect changed it */
	bool redirected;
	bool absolute; /* the last redirect began with '/' */
	bool is_dir;   /* a directory was found */
	bool stop;
	bool last; /* the lowest layer: what its marks say does not matter */
	bool opaque;
	bool metacopy;
	bool xwhiteouts;
	struct lower_id *id; /* of the first lower object; NULL: nobody asks */
	unsigned int misses; /* real directories of dir that were asked in vain */
};

struct found {
	struct statx st;
	unsigned int marks; /* as marks_read() gives them */
};

/* One lower directory of those to be united. */
struct lower_hit {
	uint16_t layer;
	char *path; /* owned; NULL: the plain name in the parent's directory */
};

int name_check(struct ovl *o, const char *name)
{
	size_t len = strlen(name);

	if (!len || strchr(name, '/') || !strcmp(name, ".") || !strcmp(name, ".."))
		return -EINVAL;
	/* They are whiteouts, where those may be files. */
	if (unlikely(o->compat.whiteout_files && fmt_is_wh_name(name)))
		return -EINVAL;
	return len > o->name_max ? -ENAMETOOLONG : 0;
}

static int set_name(struct walk *w, const char *head, size_t head_len, const char *redirect,
		    size_t redirect_len, const char *tail)
{
	size_t tail_len = strlen(tail);
	char *name = malloc(head_len + redirect_len + tail_len + 1);

	if (!name)
		return -ENOMEM;
	memcpy(name, head, head_len);
	memcpy(name + head_len, redirect, redirect_len);
	memcpy(name + head_len + redirect_len, tail, tail_len + 1);
	free(w->owned);
	w->name = w->owned = name;
	w->redirected = true;
	atomic_store_explicit(&w->o->redirect_seen, true, memory_order_relaxed);
	return 0;
}

/* Reads and applies the redirect of a found directory. @head_len: what precedes the component. */
static int apply_redirect(struct walk *w, struct layer_ref *at, const char *comp, size_t head_len,
			  const char *tail)
{
	autofree char *value = NULL;
	ssize_t size = redirect_read(w->o, at, comp, &value);

	if (size < 0)
		return size == -ENODATA ? 0 : (int)size;
	if (fmt_redirect_check(value, (size_t)size) < 0) {
		log_warning("layer %u: invalid redirect on '%s'", at->layer->index, comp);
		return -EINVAL;
	}
	size = (ssize_t)strnlen(value, (size_t)size);
	if (*value == '/') {
		/* An opaque ancestor on the way here does not end what this redirect begins. */
		w->stop = false;
		w->absolute = true;
		return set_name(w, "", 0, value, (size_t)size, tail);
	}
	return set_name(w, w->name, head_len, value, (size_t)size, tail);
}

/* A lower layer that has upper or work inside must not lead there. */
static bool is_trap(struct ovl *o, struct layer *layer, const struct statx *st)
{
	dev_t dev = statx_dev(st);

	if (layer->index == 0 || !o->has_upper || dev != o->layers[0].dev)
		return false;
	return st->stx_ino == o->layers[0].root_ino || st->stx_ino == o->workdir_ino;
}

/* Nothing has the name in this layer: the layers below may show it, unless a file hides it. */
static int look_missing(struct walk *w, struct layer_ref *at, const char *comp)
{
	int r;

	w->misses += w->dir != NULL;
	if (likely(!w->o->compat.whiteout_files) || w->last)
		return 0;
	r = w->dir ? wh_hides(w->o, w->dir, at, comp) : wh_hides_at(w->o, at, comp);
	if (r > 0)
		w->stop = w->opaque = true;
	return min(r, 0);
}

/* The same when that is known of a layer without asking it. */
static int look_known_missing(struct walk *w, unsigned int layer, const char *comp)
{
	int r = w->last ? 0 : wh_hides_in(w->o, w->dir, layer, comp);

	if (r > 0)
		w->stop = w->opaque = true;
	return min(r, 0);
}

/* Whether files hide what the layers below have of a directory that was found on a path. */
static int path_hides(struct walk *w, struct layer_ref *at, const char *comp, const struct found *f)
{
	int r;

	if (likely(!w->o->compat.whiteout_files) || w->last || !S_ISDIR(f->st.stx_mode))
		return 0;
	r = wh_opaque(w->o, at, comp);
	if (r == 0 && !(f->marks & 1U << FMT_REDIRECT))
		r = wh_hides_at(w->o, at, comp);
	if (r > 0)
		w->stop = true;
	return min(r, 0);
}

/*
 * One component in one layer. Returns 1 and @f when something is there that counts, 0 when not
 * (then w->stop may be set), or a negative errno.
 */
static int look_single(struct walk *w, struct layer_ref *at, const char *comp, size_t head_len,
		       const char *tail, struct found *f)
{
	bool last_component = !*tail;
	struct ovl *o = w->o;
	int err;

	/* Made by hand, redirects may hold these; the kernel's lookup_one() gives EACCES as well.
	 */
	if (!*comp || !strcmp(comp, ".") || !strcmp(comp, ".."))
		return -EACCES;
	err = layer_stat(at, comp, &f->st);
	if (err == -ENOENT || err == -ENAMETOOLONG)
		return look_missing(w, at, comp);
	if (err < 0)
		return err;
	if (fmt_is_whiteout(&f->st)) {
		w->stop = w->opaque = true;
		return 0;
	}
	err = marks_read(o, at, comp, &f->marks);
	if (err < 0)
		return err;
	if (S_ISREG(f->st.stx_mode) && f->st.stx_size == 0 && (f->marks & 1U << FMT_WHITEOUT) &&
	    is_whiteout(o, at, comp, &f->st)) {
		w->stop = w->opaque = true;
		return 0;
	}
	if (w->id && !w->id->size && last_component && at->layer->index)
		index_identify(at, comp, &f->st, w->id);
	if (last_component && w->metacopy && !S_ISREG(f->st.stx_mode)) {
		w->stop = true;
		return 0;
	}
	if (!S_ISDIR(f->st.stx_mode)) {
		if (w->is_dir || !last_component) {
			w->stop = true;
			return 0;
		}
		w->metacopy = false;
		if (S_ISREG(f->st.stx_mode) && (f->marks & 1U << FMT_METACOPY)) {
			/* What it holds is the business of who verifies. */
			ssize_t n = mark_get(o, at, comp, FMT_METACOPY, NULL, 0);

			if (n == -EACCES)
				return (int)n;
			if (n >= 0)
				w->metacopy = true;
			if (n > 0 && n < FMT_METACOPY_MIN)
				return -EIO;
		}
		w->stop = !w->metacopy;
		if (!w->metacopy || w->last)
			return 1;
	} else {
		if (unlikely(is_trap(o, at->layer, &f->st)))
			return -ELOOP;
		err = unlikely(at->layer->may_fold) ? casefold_refuse(at, comp) : 0;
		if (err < 0)
			return err;
		if (last_component)
			w->is_dir = true;
		if (w->last)
			return 1;
		if (f->marks & (1U << FMT_OPAQUE | MARK_OTHER_OPAQUE)) {
			enum fmt_opaque opaque;

			err = marks_opaque(o, at, comp, f->marks, &opaque);
			if (err < 0)
				return err;
			if (opaque == FMT_XWHITEOUTS && last_component && at->layer->index) {
				w->xwhiteouts = true;
			} else if (opaque == FMT_IS_OPAQUE) {
				w->stop = true;
				if (last_component)
					w->opaque = true;
				return 1;
			}
		}
	}
	/* As for the kernel: only a redirect that nothing else was found after leads to data. */
	w->absolute = false;
	if (f->marks & 1U << FMT_REDIRECT) {
		err = apply_redirect(w, at, comp, head_len, tail);
		if (err < 0)
			return err;
	}
	return 1;
}

/* A path from the root of a layer, each component by the same rules. */
static int look_path(struct walk *w, struct layer *layer, struct found *f)
{
	autoref struct layer_ref *at = layer_ref_get(layer->root);
	size_t rest =
		strlen(w->name) - 1; /* from the end, which redirects on the way do not move */

	for (;;) {
		size_t total = strlen(w->name);
		const char *start = w->name + total - rest;
		size_t len = strcspn(start, "/");
		autofree char *tail = strdup(start + len);
		char comp[NAME_MAX + 1];
		struct layer_ref *next;
		int r;

		if (!tail)
			return -ENOMEM;
		if (len > NAME_MAX)
			return 0;
		memcpy(comp, start, len);
		comp[len] = '\0';
		r = look_single(w, at, comp, total - rest, tail, f);
		if (r > 0) {
			int err = path_hides(w, at, comp, f);

			r = err < 0 ? err : r;
		}
		if (r <= 0 || !*tail)
			return r;
		if (!S_ISDIR(f->st.stx_mode))
			return 0;
		r = open_ref(w->o, at, comp, LAYER_OPEN_PATH, &next);
		if (r < 0)
			return r;
		layer_ref_put(at);
		at = next;
		rest -= len + 1;
	}
}

/* Where in its layer something was found: NULL for the plain name in the parent's directory. */
static int found_path(struct ovl *o, struct ovl_inode *dir, unsigned int layer, const char *used,
		      bool redirected, char **out)
{
	*out = NULL;
	if (!redirected)
		return 0;
	if (*used == '/') {
		*out = strdup(used + 1);
		return *out ? 0 : -ENOMEM;
	}
	return layer_path(o, dir, layer, used, false, out);
}

static struct dirstack *stack_new(const struct lower_hit *hits, unsigned int count)
{
	struct dirstack *stack = calloc(1, sizeof(*stack) + count * sizeof(stack->lower[0]));

	if (!stack)
		return NULL;
	stack->lower_count = (uint16_t)count;
	for (unsigned int n = 0; n < count; n++) {
		stack->lower[n].layer = hits[n].layer;
		stack->lower[n].path = hits[n].path;
	}
	return stack;
}

void looked_up_free(struct looked_up *l)
{
	free(l->data);
	l->data = NULL;
	free(l->index);
	l->index = NULL;
	if (!l->stack)
		return;
	for (unsigned int n = 0; n < l->stack->lower_count; n++)
		free(l->stack->lower[n].path);
	free(l->stack);
	l->stack = NULL;
}

/* An object copied up by an older kernel, or by hand, may lack its origin: add it, as the kernel
 * does. */
static void fix_origin(struct ovl *o, struct ovl_inode *dir, struct layer_ref *upper,
		       const char *name, struct layer_ref *lower, const char *lower_name)
{
	autoref struct layer_ref *found = NULL;

	if (*lower_name == '/') {
		if (open_ref(o, lower->layer->root, lower_name + 1, LAYER_OPEN_PATH, &found) < 0)
			return;
		lower = found;
		lower_name = "";
	}
	if (origin_store(o, lower, lower_name, upper, name) >= 0)
		mark_impure(o, dir, upper);
}

/* State of a lookup over all layers. */
struct lookup {
	struct walk w;
	struct ovl_inode *dir;
	struct looked_up *out;
	bool have_upper;
	bool upper_metacopy;
	bool upper_origin;
	struct lower_hit hits[OVL_MAX_LAYERS];
	unsigned int hit_count;
	struct statx lower_st; /* of the first hit */
	struct statx data_st;  /* of the last non-directory */
	bool data_lazy;        /* it is in some data-only layer */
	struct lower_id id;    /* of the first hit, for the index */
	const char *asked;     /* w.name, of which names says where it may be */
	struct names_answer names;
	unsigned int names_next; /* the first of names.lower that was not passed yet */
	/*
	 * Where the last directory was found, if not by a path: whether files hide what is below it
	 * is asked when something is.
	 */
	struct layer_ref *above; /* a reference; NULL: nothing to ask */
	char above_name[NAME_MAX + 1];
	bool above_redirected;
};

static void note_directory(struct lookup *l, struct layer_ref *at, const char *name,
			   const struct found *f)
{
	if (likely(!l->w.o->compat.whiteout_files) || !S_ISDIR(f->st.stx_mode))
		return;
	layer_ref_put(take_ref(&l->above));
	if (!l->w.dir)
		return;
	l->above = layer_ref_get(at);
	snprintf(l->above_name, sizeof(l->above_name), "%s", name);
	l->above_redirected = f->marks & 1U << FMT_REDIRECT;
}

/* Whether files say that the last directory hides those below it. */
static int above_hides(struct lookup *l)
{
	struct ovl *o = l->w.o;
	int r;

	if (likely(!l->above))
		return 0;
	r = wh_opaque(o, l->above, l->above_name);
	/* It stays so wherever the directory goes, unlike what is hidden by a file beside it. */
	if (r > 0 && !l->above->layer->index)
		l->out->flags |= INODE_OPAQUE;
	if (r == 0 && !l->above_redirected)
		r = wh_hides(o, l->dir, l->above, l->above_name);
	return r;
}

/* Of the topmost object. */
static void note_plain(struct looked_up *out, unsigned int marks)
{
	out->flags &= ~(unsigned int)INODE_PLAIN;
	if (!(marks & MARK_NOT_PLAIN))
		out->flags |= INODE_PLAIN;
}

static unsigned int native_protattr(const struct statx *st)
{
	return (st->stx_attributes & STATX_ATTR_IMMUTABLE ? FS_IMMUTABLE_FL : 0) |
	       (st->stx_attributes & STATX_ATTR_APPEND ? FS_APPEND_FL : 0);
}

/* Of an upper object, whose filesystem may say it as well as its mark. */
static unsigned int upper_protattr(struct ovl *o, struct layer_ref *at, const char *name,
				   const struct statx *st, unsigned int marks)
{
	char value[32]; /* the kernel reads as much */
	ssize_t n;

	if (!(marks & 1U << FMT_PROTATTR))
		return native_protattr(st);
	n = mark_get(o, at, name, FMT_PROTATTR, value, sizeof(value));
	return native_protattr(st) | fmt_protattr_decode(value, n);
}

/* @upper NULL: it is known not to have the name. */
static int look_upper(struct lookup *l, struct layer_ref *upper, const char *name)
{
	struct ovl *o = l->w.o;
	struct looked_up *out = l->out;
	struct found f;
	int r;

	l->w.last = o->features.redirect == OVL_REDIRECT_NOFOLLOW && !o->data_count &&
		    !inode_lowers(l->dir);
	if (!upper)
		return look_known_missing(&l->w, 0, name);
	r = look_single(&l->w, upper, name, 0, "", &f);
	if (r <= 0)
		return r;
	l->have_upper = true;
	note_plain(out, f.marks);
	l->upper_metacopy = l->w.metacopy;
	out->st = f.st;
	out->flags |= INODE_UPPER;
	out->protattr = upper_protattr(o, upper, name, &f.st, f.marks);
	if (f.marks & 1U << FMT_IMPURE)
		out->flags |= INODE_IMPURE;
	if (l->w.opaque)
		out->flags |= INODE_OPAQUE;
	note_directory(l, upper, name, &f);
	l->upper_origin = f.marks & 1U << FMT_ORIGIN;
	if (l->upper_origin && !S_ISDIR(f.st.stx_mode)) {
		struct statx origin;

		if (origin_stat(o, upper, name, &origin) == 0 &&
		    (origin.stx_mode & S_IFMT) == (f.st.stx_mode & S_IFMT)) {
			out->flags |= INODE_ORIGIN;
			if (origin.stx_nlink == 1) {
				out->ino = ino_compose(o, statx_dev(&origin), origin.stx_ino);
				out->lower_dev = statx_dev(&origin);
				out->lower_ino = origin.stx_ino;
			}
		}
	}
	return 0;
}

/* What was found points to another place, which the options may forbid to go to. */
static int may_follow(struct lookup *l, const char *name)
{
	const struct ovl_features *f = &l->w.o->features;

	if ((l->w.metacopy || l->upper_metacopy) && !f->metacopy) {
		log_warning("refusing to follow metacopy origin of '%s' (metacopy=off)", name);
		return -EPERM;
	}
	if (l->w.redirected && f->redirect == OVL_REDIRECT_NOFOLLOW) {
		log_warning("refusing to follow redirect of '%s' (redirect_dir=nofollow)", name);
		return -EPERM;
	}
	return 0;
}

/*
 * Whether the upper object came from the first lower one that its name leads to, in so far as the
 * index needs that. A directory that did not is not united with it; of a file that is *@err.
 */
static bool origin_fits(struct lookup *l, struct layer_ref *upper, const char *name, int *err)
{
	struct ovl *o = l->w.o;

	*err = 0;
	if (!o->index || !l->have_upper || l->hit_count ||
	    !(l->w.is_dir ? o->features.nfs_export : l->out->flags & INODE_ORIGIN))
		return true;
	*err = index_verify_origin(o, upper, name, &l->id);
	if (*err == 0)
		return true;
	log_warning("'%s' did not come from what a lower layer has at its place", name);
	if (l->w.is_dir)
		*err = 0;
	return false;
}

/* What was found in a layer is hidden: as if the walk had ended before. @before: what it was then.
 */
static void look_back(struct lookup *l, const struct walk *before)
{
	l->w.stop = true;
	l->w.redirected = before->redirected;
	l->w.absolute = before->absolute;
	l->w.xwhiteouts = before->xwhiteouts;
	if (!l->hit_count)
		l->id.size = 0;
}

/* Searches one lower layer. @at: where a plain name is looked for. */
static int look_lower(struct lookup *l, struct layer *layer, struct layer_ref *at,
		      struct layer_ref *upper, const char *name, bool *found)
{
	struct ovl *o = l->w.o;
	bool redirected = l->w.redirected;
	autofree char *used = redirected ? strdup(l->w.name) : NULL;
	struct lower_hit *hit = &l->hits[l->hit_count];
	const struct walk before = l->w;
	struct found f;
	int r;

	if (redirected && !used)
		return -ENOMEM;
	if (*l->w.name == '/') {
		l->w.dir = NULL;
		r = look_path(&l->w, layer, &f);
	} else {
		r = look_single(&l->w, at, l->w.name, 0, "", &f);
	}
	if (r <= 0)
		return r;
	r = S_ISDIR(f.st.stx_mode) ? above_hides(l) : 0;
	if (r != 0) {
		look_back(l, &before);
		return min(r, 0);
	}
	note_directory(l, at, used ? used : name, &f);
	*found = true;
	if (l->have_upper && !l->hit_count && l->w.is_dir && !l->upper_origin && !o->no_xattr)
		fix_origin(o, l->dir, upper, name, redirected && *used == '/' ? layer->root : at,
			   redirected ? used : name);
	if (!origin_fits(l, upper, name, &r)) {
		l->w.stop = true;
		return r;
	}
	if (!l->hit_count) {
		l->lower_st = f.st;
		if (!l->have_upper) {
			note_plain(l->out, f.marks);
			l->out->protattr = native_protattr(&f.st);
		}
	}
	/*
	 * Of the lower metacopies of a file only the topmost counts. The data, and a directory to
	 * which a redirect led, is found again by its path.
	 */
	if (!S_ISDIR(f.st.stx_mode)) {
		l->data_st = f.st;
		if (l->hit_count && l->w.metacopy)
			return 0;
	}
	hit->layer = (uint16_t)layer->index;
	hit->path = NULL;
	if (S_ISDIR(f.st.stx_mode))
		r = found_path(o, l->dir, layer->index, used ? used : name, redirected, &hit->path);
	else if (!l->w.metacopy && (l->upper_metacopy || l->hit_count))
		r = found_path(o, l->dir, layer->index, used ? used : name, true, &hit->path);
	if (r < 0)
		return r;
	l->hit_count++;
	return 0;
}

/* Whether the lower directory at this place of the stack is known not to have the name. */
static bool lower_lacks(struct lookup *l, unsigned int place)
{
	const struct names_answer *names = &l->names;

	if (l->asked != l->w.name) { /* a redirect */
		names_ask(l->w.o, l->dir, l->w.name, &l->names);
		l->asked = l->w.name;
		l->names_next = 0;
	}
	if (!names->lower_known)
		return false;
	while (l->names_next < names->count && names->lower[l->names_next] < place)
		l->names_next++;
	return l->names_next == names->count || names->lower[l->names_next] != place;
}

static int look_all_lower(struct lookup *l, struct layer_ref *upper, const char *name)
{
	struct ovl *o = l->w.o;
	struct dirstack *stack = l->dir->dir;
	bool from_root = *l->w.name == '/';
	unsigned int next =
		0; /* index in the parent's stack, or the layer before it from the root */

	while (!l->w.stop) {
		autoref struct layer_ref *at = NULL;
		unsigned int layer;
		bool found = false;
		int err;

		/* A path begins in the roots that are united, of which one may be opaque. */
		if (next >= inode_lowers(from_root ? o->root : l->dir))
			break;
		layer = from_root ? next + 1 : stack->lower[next].layer;
		next++;
		err = may_follow(l, name);
		if (err < 0)
			return err;
		if (o->features.redirect == OVL_REDIRECT_NOFOLLOW && !o->data_count)
			l->w.last = next == stack->lower_count;
		else if (l->w.is_dir || !o->data_count)
			l->w.last = layer == o->lower_count;
		if (!from_root && lower_lacks(l, next - 1)) {
			err = look_known_missing(&l->w, layer, l->w.name);
			if (err < 0)
				return err;
			continue;
		}
		if (!from_root) {
			err = dir_ref(o, l->dir, layer, false, &at);
			if (err < 0)
				return err;
		}
		err = look_lower(l, &o->layers[layer], at, upper, name, &found);
		if (err < 0)
			return err;
		if (found && *l->w.name == '/' && !from_root) {
			from_root = true;
			next = layer;
		}
	}
	return 0;
}

/* Where the data of a metacopy is. */
static int find_data(struct lookup *l)
{
	struct looked_up *out = l->out;
	struct lower_hit *hit = l->hit_count ? &l->hits[l->hit_count - 1] : NULL;

	if (!S_ISREG(out->st.stx_mode) || !hit)
		return 0;
	if (l->data_lazy)
		out->data = data_place_new(0, l->w.name + 1, 0);
	else if (hit->path)
		out->data = data_place_new(hit->layer, hit->path, l->data_st.stx_blocks);
	else
		return 0;
	if (!out->data)
		return -ENOMEM;
	out->data->linked = l->lower_st.stx_nlink > 1;
	out->flags |= INODE_METACOPY;
	/* A metacopy is one file with what it was made from. */
	if (l->have_upper && l->lower_st.stx_nlink == 1) {
		out->flags |= INODE_ORIGIN;
		out->ino = ino_compose(l->w.o, statx_dev(&l->lower_st), l->lower_st.stx_ino);
	}
	return 0;
}

/* The upper object has no name here, but an index entry: what the lower one says does not count. */
static int look_entry(struct lookup *l, const char *name)
{
	struct ovl *o = l->w.o;
	struct looked_up *out = l->out;
	autofree char *path = NULL;
	unsigned int marks;
	int err = marks_read(o, o->index, out->index->name, &marks);

	if (err < 0)
		return err;
	note_plain(out, marks);
	out->protattr = upper_protattr(o, o->index, out->index->name, &out->st, marks);
	if (!S_ISREG(out->st.stx_mode) || !(marks & 1U << FMT_METACOPY)) {
		out->flags &= ~(unsigned int)INODE_METACOPY;
		free(take_ptr(out->data));
		return 0;
	}
	out->flags |= INODE_METACOPY;
	if (out->data)
		return 0;
	err = layer_path(o, l->dir, l->hits[0].layer, name, false, &path);
	if (err < 0)
		return err;
	out->data = data_place_new(l->hits[0].layer, path, l->lower_st.stx_blocks);
	if (!out->data)
		return -ENOMEM;
	out->data->linked = l->lower_st.stx_nlink > 1;
	return 0;
}

static int lookup_layers(struct lookup *l, const char *name)
{
	struct ovl *o = l->w.o;
	struct looked_up *out = l->out;
	autoref struct layer_ref *upper = NULL;
	bool is_dir;
	int err;

	names_ask(o, l->dir, name, &l->names);
	l->asked = name;
	l->names_next = 0;
	if (inode_has(l->dir, INODE_UPPER)) {
		err = l->names.upper_lacks ? 0 : dir_ref(o, l->dir, 0, false, &upper);
		if (err == 0)
			err = look_upper(l, upper, name);
		if (err < 0)
			return err;
	}
	err = look_all_lower(l, upper, name);
	if (err < 0)
		return err;
	/* Without metacopy=on and redirects as well: nothing else can lead to a data-only layer. */
	if (l->w.metacopy && l->hit_count && o->data_count && l->w.absolute)
		l->data_lazy = true;
	else
		err = may_follow(l, name);
	if (err < 0)
		return err;
	if (!l->have_upper && !l->hit_count)
		return -ENOENT;
	if ((l->w.metacopy && !l->data_lazy) || (l->upper_metacopy && !l->hit_count)) {
		log_warning("metacopy of '%s' has no data in any layer", name);
		return -EIO;
	}
	if (!l->have_upper)
		out->st = l->lower_st;
	err = find_data(l);
	if (err == 0)
		err = index_lookup(o, l->have_upper ? upper : NULL, name, &l->id, out);
	if (err == 0 && out->lower_alias)
		err = look_entry(l, name);
	if (err < 0)
		return err;
	is_dir = S_ISDIR(out->st.stx_mode);
	if (!is_dir && !l->have_upper)
		out->lower = l->hits[0].layer;
	if (l->w.xwhiteouts)
		out->flags |= INODE_XWHITE;
	if (is_dir && l->hit_count) {
		/* What is mounted in a layer, perhaps at several places, has no place below. */
		if (!(l->lower_st.stx_attributes & STATX_ATTR_MOUNT_ROOT)) {
			out->lower_dev = statx_dev(&l->lower_st);
			out->lower_ino = l->lower_st.stx_ino;
		}
		if (!out->ino)
			out->ino = ino_compose(o, statx_dev(&l->lower_st), l->lower_st.stx_ino);
		if (l->have_upper)
			out->flags |= INODE_ORIGIN;
	} else if (!out->ino) {
		out->ino = ino_compose(o, statx_dev(&out->st), out->st.stx_ino);
	}
	if (is_dir) {
		out->stack = stack_new(l->hits, l->hit_count);
		if (!out->stack)
			return -ENOMEM;
		l->hit_count = 0; /* the paths are the stack's now */
	}
	return 0;
}

int lookup_real(struct ovl *o, struct ovl_inode *dir, const char *name, struct looked_up *out)
{
	struct lookup l; /* its array is too big to be cleared each time */
	int err = name_check(o, name);
	/* Nobody makes such a name here, but layers may have it. */
	bool too_long = err == -ENAMETOOLONG && strlen(name) <= NAME_MAX;

	if (err == -EINVAL && fmt_is_wh_name(name)) /* nobody can have made it */
		return -ENOENT;
	if (err < 0 && !too_long)
		return err;
	l.w = (struct walk){ .o = o, .dir = dir, .name = name, .id = o->index ? &l.id : NULL };
	l.id.size = 0;
	l.dir = dir;
	l.out = out;
	l.have_upper = l.upper_metacopy = l.upper_origin = false;
	l.data_lazy = false;
	l.above = NULL;
	l.hit_count = 0;
	*out = (struct looked_up){ 0 };
	err = lookup_layers(&l, name);
	for (unsigned int n = 0; n < l.hit_count; n++)
		free(l.hits[n].path);
	free(l.w.owned);
	layer_ref_put(l.above);
	if (l.w.misses)
		names_missed(o, dir, l.w.misses);
	if (err < 0)
		looked_up_free(out);
	return err == -ENOENT && too_long ? -ENAMETOOLONG : err;
}

bool lower_has(struct ovl *o, struct ovl_inode *dir, const char *name, bool topology_held)
{
	struct dirstack *stack = dir->dir;
	struct names_answer names;
	unsigned int lowers = inode_lowers(dir);
	bool some;

	names_ask(o, dir, name, &names);
	some = names.lower_known && !o->compat.whiteout_files;
	for (unsigned int k = 0; k < (some ? min(lowers, (unsigned int)names.count) : lowers);
	     k++) {
		unsigned int n = some ? names.lower[k] : k;
		autoref struct layer_ref *at = NULL;
		struct statx st;
		int err = dir_ref(o, dir, stack->lower[n].layer, topology_held, &at);

		if (err == 0)
			err = layer_stat(at, name, &st);
		if (err == -ENOENT || err == -ENAMETOOLONG) {
			if (unlikely(wh_hides(o, dir, at, name) > 0))
				return false;
			continue;
		}
		/* What cannot be read counts as there: better a whiteout too many. */
		return err < 0 || !is_whiteout(o, at, name, &st);
	}
	return false;
}
