// SPDX-License-Identifier: MIT
#include "overlay/survey.h"

#include <errno.h>
#include <time.h>

#include "overlay/index.h"
#include "util/log.h"

/* How long nobody has to ask before the map goes. */
#define IDLE_MS (5 * 60 * 1000)
/* How soon somebody who waits sees what the walk has found, and that his caller was killed. */
#define LOOK_MS 20
/* How often to begin anew because something moved meanwhile. */
#define MOST_WALKS 4

struct survey {
	struct ovl *o;
	_Atomic bool noting; /* there is a map, or it is being made */
	pthread_mutex_t lock;
	/* The rest is guarded by the lock. */
	pthread_cond_t work;   /* for the thread: something is asked of it */
	pthread_cond_t result; /* for who waits: it has ended a walk */
	pthread_t thread;
	bool has_thread; /* to be joined */
	bool running;    /* it has not ended by itself */
	bool wanted;     /* somebody needs a walk */
	bool walking;
	bool stop;
	bool complete;      /* what is not in the map does not exist */
	bool disturbed;     /* the walk may have missed something */
	unsigned int walks; /* that have ended */
	int error;          /* of the last one */
	unsigned int idle_ms;
	struct timespec asked; /* when somebody did, last */
	struct places places;
};

static struct timespec later(struct timespec from, unsigned int ms)
{
	from.tv_sec += ms / 1000;
	from.tv_nsec += (long)(ms % 1000) * 1000000;
	if (from.tv_nsec >= 1000000000) {
		from.tv_sec++;
		from.tv_nsec -= 1000000000;
	}
	return from;
}

static struct timespec now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t;
}

/* --- the walk ----------------------------------------------------------------------------------*/

/* A directory on the way down, and those in it that are still to be walked through. */
struct level {
	struct ovl_inode *dir; /* referenced */
	char *names;           /* of its directories, each NUL-terminated */
	size_t size;
	size_t room;
	size_t at; /* the next one */
};

struct walk {
	struct survey *s;
	struct level *levels;
	size_t depth;
	size_t room;
	int err;
};

static bool is_stopped(struct survey *s)
{
	bool stop;

	pthread_mutex_lock(&s->lock);
	stop = s->stop;
	pthread_mutex_unlock(&s->lock);
	return stop;
}

static int remember_dir(struct level *level, const char *name, size_t len)
{
	if (level->size + len + 1 > level->room) {
		size_t room = max(level->room * 2, (size_t)4096);
		char *names = realloc(level->names, room);

		if (!names)
			return -ENOMEM;
		level->names = names;
		level->room = room;
	}
	memcpy(level->names + level->size, name, len + 1);
	level->size += len + 1;
	return 0;
}

/* Of what moves meanwhile, its new place is known already: places_add() leaves that alone. */
static bool see(void *ctx, const char *name, size_t len, uint64_t number, unsigned int type)
{
	struct walk *w = ctx;
	struct survey *s = w->s;
	struct level *level = &w->levels[w->depth - 1];
	bool stop;

	pthread_mutex_lock(&s->lock);
	stop = s->stop;
	if (!stop)
		w->err = places_add(&s->places, number, level->dir->ino, name, len);
	pthread_mutex_unlock(&s->lock);
	if (stop)
		w->err = -ECANCELED;
	if (w->err == 0 && type == DT_DIR)
		w->err = remember_dir(level, name, len);
	return w->err == 0;
}

static int push(struct walk *w, struct ovl_inode *dir)
{
	if (w->depth == w->room) {
		size_t room = w->room ? w->room * 2 : 32;
		struct level *levels = reallocarray(w->levels, room, sizeof(*levels));

		if (!levels)
			return -ENOMEM;
		w->levels = levels;
		w->room = room;
	}
	w->levels[w->depth++] = (struct level){ .dir = dir };
	return 0;
}

static void pop(struct walk *w)
{
	struct level *level = &w->levels[--w->depth];

	free(level->names);
	if (level->dir != w->s->o->root)
		inode_put(w->s->o, level->dir);
}

/*
 * A directory for this walk alone: it is in no table, so that nothing that the walk finds, and
 * that may be wrong by then, gets into the way of others. Its parent is such a one too, or the
 * root.
 */
static int private_dir(struct ovl *o, struct ovl_inode *parent, const char *name,
		       struct ovl_inode **out)
{
	struct looked_up l;
	struct ovl_inode *i;
	struct ovl_name *n;
	int err = lookup_real(o, parent, name, &l);

	if (err < 0)
		return err;
	n = l.stack ? name_new(parent, name, strlen(name)) : NULL;
	i = n ? inode_new(o, DT_DIR, l.stack) : NULL;
	if (i) {
		l.stack = NULL;
		i->flags = l.flags & ~(unsigned int)INODE_INDEXED;
		i->ino = l.ino;
		n->inode = i;
		i->names = n;
		o->table.name_count++;
		*out = i;
	} else {
		name_free(o, n);
		err = l.stack ? -ENOMEM : -ENOTDIR; /* it is another one by now */
	}
	looked_up_free(&l);
	return err;
}

/* Lists a directory that was pushed. Takes over @dir. */
static int enter(struct walk *w, struct ovl_inode *dir)
{
	int err = push(w, dir);

	if (err < 0) {
		if (dir != w->s->o->root)
			inode_put(w->s->o, dir);
		return err;
	}
	err = dir_list(w->s->o, dir, see, w);
	return w->err < 0 ? w->err : err;
}

/* Whether it is a reason to give up, and not just one directory that cannot be read. */
static bool is_fatal(int err)
{
	return err == -ENOMEM || err == -ECANCELED;
}

/* Walks through everything. -ECANCELED: the survey is ended. */
static int walk_all(struct survey *s)
{
	struct walk w = { .s = s };
	struct ovl *o = s->o;
	int err = enter(&w, o->root);

	while (w.depth && !is_fatal(err)) {
		struct level *level = &w.levels[w.depth - 1];
		struct ovl_inode *dir;
		const char *name;

		if (is_stopped(s)) {
			err = -ECANCELED;
			break;
		}
		if (level->at == level->size) {
			pop(&w);
			continue;
		}
		name = level->names + level->at;
		level->at += strlen(name) + 1;
		err = private_dir(o, level->dir, name, &dir);
		if (err == 0)
			err = enter(&w, dir);
		if (err < 0 && err != -ENOENT)
			log_debug("survey: cannot read directory '%s': %s", name, strerror(-err));
	}
	while (w.depth)
		pop(&w);
	free(w.levels);
	return is_fatal(err) ? err : 0;
}

/* Called with the lock held, which it drops meanwhile. */
static void survey(struct survey *s)
{
	int err = 0;

	s->wanted = false;
	s->walking = true;
	atomic_store(&s->noting, true);
	for (unsigned int n = 0; n < MOST_WALKS && !s->stop; n++) {
		s->disturbed = false;
		pthread_mutex_unlock(&s->lock);
		err = walk_all(s);
		pthread_mutex_lock(&s->lock);
		s->walks++;
		if (err < 0 || !s->disturbed)
			break;
	}
	s->walking = false;
	s->error = err;
	s->complete = err == 0 && !s->disturbed;
	pthread_cond_broadcast(&s->result);
}

static bool is_idle(const struct survey *s)
{
	struct timespec t = now();
	struct timespec end = later(s->asked, s->idle_ms);

	return t.tv_sec > end.tv_sec || (t.tv_sec == end.tv_sec && t.tv_nsec >= end.tv_nsec);
}

static void *survey_main(void *arg)
{
	struct survey *s = arg;

	pthread_mutex_lock(&s->lock);
	while (!s->stop && (s->wanted || !is_idle(s))) {
		struct timespec end = later(s->asked, s->idle_ms);

		if (s->wanted)
			survey(s);
		else
			pthread_cond_timedwait(&s->work, &s->lock, &end);
	}
	atomic_store(&s->noting, false);
	s->complete = false;
	s->running = false;
	places_free(&s->places);
	pthread_cond_broadcast(&s->result);
	pthread_mutex_unlock(&s->lock);
	return NULL;
}

/* --- questions ---------------------------------------------------------------------------------*/

static int start_walk(struct survey *s)
{
	if (s->wanted || s->walking)
		return 0;
	s->wanted = true;
	if (s->running) {
		pthread_cond_signal(&s->work);
		return 0;
	}
	if (s->has_thread) /* it has dropped the lock for the last time */
		pthread_join(s->thread, NULL);
	s->has_thread = s->running = !pthread_create(&s->thread, NULL, survey_main, s);
	if (!s->running)
		s->wanted = false;
	return s->running ? 0 : -EAGAIN;
}

/* One walk may have begun too early, or be disturbed; more are not worth the time. */
#define WALKS_TO_WAIT_FOR (2 * MOST_WALKS)

static int find_locked(struct survey *s, const struct ovl_caller *caller, uint64_t number,
		       struct places_path *out)
{
	unsigned int first = s->walks;

	for (;;) {
		struct timespec soon;
		int err = places_path(&s->places, s->o->root->ino, number, out);

		if (err != -ENOENT)
			return err;
		if (s->complete)
			return -ESTALE;
		if (s->walks != first && !s->walking && !s->wanted && s->error < 0)
			return s->error;
		if (s->walks - first >= WALKS_TO_WAIT_FOR)
			return -ESTALE;
		err = start_walk(s);
		if (err < 0)
			return err;
		if (caller_killed(caller))
			return -EINTR;
		soon = later(now(), LOOK_MS);
		pthread_cond_timedwait(&s->result, &s->lock, &soon);
		s->asked = now();
	}
}

int survey_find(struct survey *s, const struct ovl_caller *caller, uint64_t number,
		struct places_path *out)
{
	int err;

	pthread_mutex_lock(&s->lock);
	s->asked = now();
	err = find_locked(s, caller, number, out);
	pthread_mutex_unlock(&s->lock);
	return err;
}

/* Something may be where nobody looks any more: only another walk can tell. */
static void disturb(struct survey *s)
{
	s->complete = false;
	s->disturbed = true;
}

void survey_correct(struct survey *s, uint64_t number, uint64_t parent, const char *name)
{
	pthread_mutex_lock(&s->lock);
	/* Or it was told meanwhile where it is. */
	if (places_remove(&s->places, number, parent, name))
		disturb(s);
	pthread_mutex_unlock(&s->lock);
}

/* --- notes -------------------------------------------------------------------------------------*/

static void noted(struct survey *s, int err)
{
	if (err < 0)
		disturb(s);
}

void survey_named(struct survey *s, const struct ovl_inode *i, const struct ovl_name *n, bool moved)
{
	uint64_t parent = n->parent->ino;

	if (!s || likely(!atomic_load_explicit(&s->noting, memory_order_acquire)))
		return;
	pthread_mutex_lock(&s->lock);
	/* What is below it was perhaps not walked through where it was, and is not where it is. */
	if (moved && i->dir)
		s->disturbed = true;
	if (moved)
		noted(s, places_move(&s->places, i->ino, parent, n->text, n->len));
	else
		noted(s, places_add(&s->places, i->ino, parent, n->text, n->len));
	pthread_mutex_unlock(&s->lock);
}

/* Whether an object without a known name has others. */
static bool has_other_names(const struct ovl_inode *i, struct layer_ref *self)
{
	struct statx st;

	if (i->dir || !self)
		return false;
	if (inode_has(i, INODE_INDEXED)) /* the name that went is still counted */
		return i->index->nlink > 1;
	return layer_stat(self, "", &st) < 0 || st.stx_nlink > 0;
}

void survey_unnamed(struct survey *s, const struct ovl_inode *i, const struct ovl_inode *parent,
		    const char *name, struct layer_ref *self)
{
	bool lost;

	if (!s || likely(!atomic_load_explicit(&s->noting, memory_order_acquire)))
		return;
	lost = !i->names && has_other_names(i, self);
	pthread_mutex_lock(&s->lock);
	if (places_remove(&s->places, i->ino, parent->ino, name)) {
		const struct ovl_name *n = i->names;

		if (n)
			noted(s, places_add(&s->places, i->ino, n->parent->ino, n->text, n->len));
		if (lost)
			disturb(s);
	}
	pthread_mutex_unlock(&s->lock);
}

/* --- life --------------------------------------------------------------------------------------*/

int survey_new(struct ovl *o, struct survey **out)
{
	struct survey *s = calloc(1, sizeof(*s));
	pthread_condattr_t attr;

	if (!s)
		return -ENOMEM;
	s->o = o;
	s->idle_ms = IDLE_MS;
	s->places.seed = o->table.seed;
	pthread_mutex_init(&s->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&s->work, &attr);
	pthread_cond_init(&s->result, &attr);
	pthread_condattr_destroy(&attr);
	*out = s;
	return 0;
}

void survey_free(struct survey *s)
{
	if (!s)
		return;
	pthread_mutex_lock(&s->lock);
	s->stop = true;
	pthread_cond_signal(&s->work);
	pthread_mutex_unlock(&s->lock);
	if (s->has_thread)
		pthread_join(s->thread, NULL);
	pthread_cond_destroy(&s->work);
	pthread_cond_destroy(&s->result);
	pthread_mutex_destroy(&s->lock);
	free(s);
}

void survey_set_idle(struct survey *s, unsigned int ms)
{
	pthread_mutex_lock(&s->lock);
	s->idle_ms = ms;
	pthread_cond_signal(&s->work);
	pthread_mutex_unlock(&s->lock);
}

void survey_get_stats(struct survey *s, unsigned int *walks, unsigned int *places)
{
	pthread_mutex_lock(&s->lock);
	*walks = s->walks;
	*places = s->places.live;
	pthread_mutex_unlock(&s->lock);
}
