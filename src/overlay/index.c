// SPDX-License-Identifier: MIT
/*
 * The index: one file below stays one file above.
 *
 * What is on disk. workdir/index holds an entry for each lower file with several links that was
 * copied up, and with nfs_export for everything that was. Its name is the handle of the lower
 * object in hex. The entry of a file is a hard link to its copy in upper; that of a directory is an
 * empty directory with the handle of the upper directory in the xattr "upper". The xattr "nlink" of
 * a file says how many names the union shows: as a difference to the links that the upper object
 *has (U), among which is the entry, or to those of the lower one (L).
 *
 * What is in memory. All names of such a file are one ovl_inode, copied up or not, since it is in
 * the link hash under its lower object (entry.c). Some of the names may be in upper, others only in
 * lower layers, even in several: ovl_name.layer says where each leads. What they lead to is reached
 * through the entry (reach.c), which is there as long as INODE_INDEXED is set, whatever names are
 * known, come and go; a name is only needed to copy up from, before there is an entry.
 *INODE_ALIASES says that a known name is in a lower layer although the file is in upper.
 *index_entry.nlink is the count of the union: read from disk once, after the inode is in the link
 *hash, and changed along with the disk.
 *
 * Locks. Entry, flags, names and count belong to the inode's lock, which every change of a name
 * holds anyway: two changes of one count never cross. The directory in which a name comes or goes
 *is locked before. Nothing here needs a lock of its own: entries have different names.
 *
 * What a crash leaves, step by step; each state is one that the next mount, ours or the kernel's,
 * understands.
 *
 *	copy-up of a file	a temporary name in index, which is swept
 *	  rename to its entry	the copy, under all its names
 *	a name is added to upper for one that lower has
 *	  nlink = L		the same count, whether the link is made or not
 *	  link, nlink = U	the same
 *	a name comes or goes
 *	  nlink = U		the same count as before
 *	  link, unlink, rename	one more or less, like the links of the upper object
 *	the last name went
 *	  unlink, or whiteout	an entry with a count of 0: removed, or made a whiteout
 *	copy-up of what has only one name (nfs_export)
 *	  rename to its place	the copy, without an entry: nothing finds it by the old handle
 *	  nlink = U, its entry	both
 *
 * The kernel stores the count after the entry, and in the last case makes the entry first: what it
 * then finds after a crash it takes for the entry of a removed object, and with nfs_export nobody
 * gets at the object any more. So the order is another one here, for the same result.
 *
 * A name that only lower has is removed by adding it to upper first: else the count would have no
 * place that a crash leaves right.
 */
#include <fcntl.h>

#include "overlay/dirnames.h"
#include "overlay/index.h"
#include "util/at.h"
#include "util/log.h"

/* --- lookup ------------------------------------------------------------------------------------*/

void index_identify(struct layer_ref *at, const char *name, const struct statx *st,
		    struct lower_id *id)
{
	struct fmt_fh fh;
	ssize_t size;

	id->st = *st;
	id->size = 0;
	if (at->layer->ops->handle(at, name, &fh) < 0)
		return;
	size = fmt_fh_encode(&fh, id->fh);
	if (size > 0)
		id->size = (size_t)size;
}

static ssize_t stored_origin(struct ovl *o, struct layer_ref *upper, const char *name,
			     uint8_t fh[FMT_FH_MAX])
{
	struct fmt_fh decoded;
	ssize_t size = layer_getxattr(upper, name, xname(o, FMT_ORIGIN), fh, FMT_FH_MAX);
	int err;

	if (size < 0)
		return -ENODATA;
	err = fmt_fh_decode(fh, (size_t)size, &decoded);
	return err < 0 ? -ENODATA : fh[2]; /* its own length: what follows does not count */
}

int index_verify_origin(struct ovl *o, struct layer_ref *upper, const char *name,
			const struct lower_id *id)
{
	uint8_t fh[FMT_FH_MAX];
	ssize_t size = stored_origin(o, upper, name, fh);

	if (size < 0)
		return (int)size;
	return (size_t)size == id->size && !memcmp(fh, id->fh, id->size) ? 0 : -ESTALE;
}

/* The lower file that an upper one came from. */
static int origin_id(struct ovl *o, struct layer_ref *upper, const char *name, mode_t mode,
		     struct lower_id *id)
{
	ssize_t size = stored_origin(o, upper, name, id->fh);

	if (size < 0 || origin_stat(o, upper, name, &id->st) < 0)
		return -ENODATA;
	if ((id->st.stx_mode ^ mode) & S_IFMT) {
		log_warning("'%s' has the origin of another type of file", name);
		return -ENODATA;
	}
	id->size = (size_t)size;
	return 0;
}

/* Whether an entry may stand for a lower object: 1 and its attributes, 0 if there is none. */
static int find_entry(struct ovl *o, const char *entry, const struct lower_id *id, struct statx *st)
{
	int err = layer_stat(o->index, entry, st);

	if (err == -ENOENT || err == -ENAMETOOLONG)
		return 0;
	if (err < 0)
		return err;
	if (fmt_is_whiteout(st) || ((st->stx_mode ^ id->st.stx_mode) & S_IFMT)) {
		/* A whiteout: all names of the object were removed, and yet here is one. */
		log_warning("index entry %s is of another type than the lower object", entry);
		return -EIO;
	}
	return 1;
}

/* The entry of a directory has to stand for the upper one that is at its place. */
static int check_entry_dir(struct ovl *o, const char *entry, struct layer_ref *upper,
			   const char *name)
{
	int err = upper ? index_verify_handle(o, o->index, entry, FMT_UPPER, upper, name, false)
			: -ESTALE; /* it has left it, and nothing hides it */

	if (err == 0)
		return 0;
	log_warning("'%s': the directory below it is shown elsewhere too (index entry %s)", name,
		    entry);
	return -EIO;
}

static struct index_entry *entry_alloc(const char *name, uint32_t lower_nlink)
{
	size_t size = strlen(name) + 1;
	struct index_entry *entry = calloc(1, sizeof(*entry) + size);

	if (!entry)
		return NULL;
	entry->nlink = lower_nlink;
	entry->lower_nlink = lower_nlink;
	memcpy(entry->name, name, size);
	return entry;
}

/* The upper object is in the index: all its names are one inode, known by the lower object. */
static int take_entry(struct looked_up *out, const char *name, const struct lower_id *id)
{
	out->index = entry_alloc(name, id->st.stx_nlink);
	if (!out->index)
		return -ENOMEM;
	out->flags |= INODE_UPPER | INODE_ORIGIN | INODE_INDEXED;
	return 0;
}

static void key_by_lower(struct looked_up *out, const struct lower_id *id)
{
	out->by_lower = true;
	out->lower_dev = statx_dev(&id->st);
	out->lower_ino = id->st.stx_ino;
}

static int lookup_lower_only(struct ovl *o, const struct lower_id *id, const char *entry,
			     struct looked_up *out)
{
	bool is_dir = S_ISDIR(id->st.stx_mode);
	struct statx st;
	int found = find_entry(o, entry, id, &st);

	if (found < 0)
		return found;
	if (found && is_dir)
		return check_entry_dir(o, entry, NULL, entry);
	if (!found && !o->features.nfs_export && (is_dir || id->st.stx_nlink == 1))
		return 0;
	if (!is_dir)
		key_by_lower(out, id);
	if (!found) {
		out->flags |= INODE_TO_INDEX;
		return 0;
	}
	out->st = st;
	out->lower_alias = true;
	return take_entry(out, entry, id);
}

static int lookup_upper(struct ovl *o, struct layer_ref *upper, const char *name,
			const struct lower_id *id, const char *entry, struct looked_up *out)
{
	bool is_dir = S_ISDIR(id->st.stx_mode);
	struct statx st;
	int found = find_entry(o, entry, id, &st);

	if (found > 0 && is_dir) {
		int err = check_entry_dir(o, entry, upper, name);

		return err < 0 ? err : take_entry(out, entry, id);
	}
	/* Another file: this one was copied up without the index, or the index was made anew. */
	if (found > 0 && st.stx_ino != out->st.stx_ino)
		found = 0;
	if (found <= 0)
		return found;
	key_by_lower(out, id);
	return take_entry(out, entry, id);
}

int index_lookup(struct ovl *o, struct layer_ref *upper, const char *name,
		 const struct lower_id *lower, struct looked_up *out)
{
	bool is_dir = S_ISDIR(out->st.stx_mode);
	char entry[FMT_INDEX_NAME_MAX];
	struct lower_id own;
	int err = 0;

	if (!o->index || (is_dir && !o->features.nfs_export))
		return 0;
	if (upper && !is_dir) {
		if (origin_id(o, upper, name, out->st.stx_mode, &own) < 0)
			own.size = 0;
		lower = &own;
	}
	if (lower->size) {
		fmt_index_name(lower->fh, lower->size, entry);
		err = upper ? lookup_upper(o, upper, name, lower, entry, out)
			    : lookup_lower_only(o, lower, entry, out);
		if (err < 0)
			return err;
	}
	/*
	 * The number of the lower object is that of one upper object only: which one, the index
	 * says. Without it, only a file that never had other names has it for certain.
	 */
	if (out->flags & INODE_INDEXED)
		out->ino = ino_compose(o, statx_dev(&lower->st), lower->st.stx_ino);
	else if (upper && o->features.nfs_export)
		out->ino = ino_compose(o, statx_dev(&out->st), out->st.stx_ino);
	return 0;
}

void index_settle(struct ovl *o, struct ovl_inode *i)
{
	struct statx st;

	if (i->dir || !inode_has(i, INODE_INDEXED))
		return;
	if (layer_stat(o->index, i->index->name, &st) == 0)
		i->index->nlink =
			index_read_nlink(o, i->index->name, i->index->lower_nlink, st.stx_nlink);
}

/* --- copy-up -----------------------------------------------------------------------------------*/

/* Stores the count as it is. @i->lock is held. */
static int store_nlink(struct ovl *o, struct ovl_inode *i, enum fmt_nlink_base base)
{
	struct index_entry *entry = i->index;
	uint32_t real = entry->lower_nlink;
	char value[FMT_NLINK_MAX];
	struct statx st;
	int err;

	if (base == FMT_NLINK_UPPER) {
		err = layer_stat(o->index, entry->name, &st);
		if (err < 0)
			return err == -ENOENT ? -ESTALE : err;
		real = st.stx_nlink;
	} else if (origin_stat(o, o->index, entry->name, &st) == 0) {
		real = st.stx_nlink; /* somebody may have made links in lower meanwhile */
	}
	return mark_set(o, o->index, entry->name, FMT_NLINK, value,
			fmt_nlink_encode(base, (int)(entry->nlink - real), value));
}

int index_entry_new(struct layer_ref *lower, const char *name, uint32_t lower_nlink,
		    struct index_entry **out)
{
	char text[FMT_INDEX_NAME_MAX];
	uint8_t encoded[FMT_FH_MAX];
	struct fmt_fh fh;
	ssize_t size;
	int err = lower->layer->ops->handle(lower, name, &fh);

	if (err < 0)
		return err;
	size = fmt_fh_encode(&fh, encoded);
	if (size < 0)
		return (int)size;
	fmt_index_name(encoded, (size_t)size, text);
	*out = entry_alloc(text, lower_nlink);
	return *out ? 0 : -ENOMEM;
}

/* The count of a file that has @links links in upper, the entry among them. */
static int mark_nlink(struct ovl *o, struct layer_ref *at, const char *name, uint32_t nlink,
		      uint32_t links)
{
	char value[FMT_NLINK_MAX];

	return mark_set(o, at, name, FMT_NLINK, value,
			fmt_nlink_encode(FMT_NLINK_UPPER, (int)(nlink - links), value));
}

int index_publish(struct ovl *o, struct ovl_inode *i, const char *temp, struct index_entry *entry)
{
	int work = layer_fd(o->work);
	int index = layer_fd(o->index);
	int err = mark_nlink(o, o->work, temp, entry->nlink, 1);

	if (err == 0)
		err = at_rename(work, temp, index, entry->name, RENAME_NOREPLACE);
	if (err == -EINVAL) { /* the filesystem does not know the flag */
		err = at_link(work, temp, index, entry->name);
		if (err == 0)
			at_unlink(work, temp, 0);
	}
	if (err < 0)
		return err == -EEXIST ? -ESTALE : err;
	i->index = entry;
	inode_set(i, INODE_INDEXED | INODE_ALIASES);
	return 0;
}

/* An empty directory that says where the upper one is. */
static int add_dir_entry(struct ovl *o, struct layer_ref *dir, const char *name, const char *entry)
{
	int work = layer_fd(o->work);
	char temp[FMT_TEMP_NAME_MAX];
	int err;

	temp_name(o, temp);
	if (mkdirat(work, temp, o->overrides_modes ? 0 : 0700) < 0)
		return -errno;
	err = index_verify_handle(o, o->work, temp, FMT_UPPER, dir, name, true);
	if (err == 0)
		err = at_rename(work, temp, layer_fd(o->index), entry, 0);
	if (err < 0)
		at_unlink(work, temp, AT_REMOVEDIR);
	return err;
}

static int add_file_entry(struct ovl *o, struct layer_ref *dir, const char *name, const char *entry)
{
	int err = mark_nlink(o, dir, name, 1, 2);

	if (err == 0)
		err = at_link(layer_fd(dir), name, layer_fd(o->index), entry);
	return err == -EEXIST ? -ESTALE : err;
}

int index_add(struct ovl *o, struct ovl_inode *i, struct layer_ref *dir, const char *name,
	      struct index_entry *entry)
{
	int err = i->dir ? add_dir_entry(o, dir, name, entry->name)
			 : add_file_entry(o, dir, name, entry->name);

	if (err < 0)
		return err;
	i->index = entry;
	inode_set(i, INODE_INDEXED);
	return 0;
}

static struct ovl_name *find_name(struct ovl_inode *i, struct ovl_inode *parent, const char *text,
				  struct ovl_name ***link)
{
	for (struct ovl_name **p = &i->names; *p; p = &(*p)->next) {
		if ((*p)->parent != parent || strcmp((*p)->text, text) != 0)
			continue;
		if (link)
			*link = p;
		return *p;
	}
	return NULL;
}

void index_prefer_name(struct ovl_inode *i, struct ovl_inode *parent, const char *name)
{
	struct ovl_name **link;
	struct ovl_name *n;

	if (i->dir || !inode_has(i, INODE_TO_INDEX | INODE_INDEXED))
		return;
	lock_take(&i->lock);
	n = find_name(i, parent, name, &link);
	if (n) {
		*link = n->next;
		n->next = i->names;
		i->names = n;
	}
	lock_drop(&i->lock);
}

/* Whether what is at a name of upper is the file already. */
static bool is_linked(struct ovl *o, struct ovl_inode *i, struct layer_ref *dir, const char *name)
{
	struct statx a;
	struct statx b;

	return layer_stat(dir, name, &a) == 0 && layer_stat(o->index, i->index->name, &b) == 0 &&
	       a.stx_ino == b.stx_ino;
}

static void forget_alias(struct ovl_inode *i, struct ovl_name *n)
{
	n->layer = 0;
	for (n = i->names; n; n = n->next)
		if (n->layer)
			return;
	inode_clear(i, INODE_ALIASES);
}

/* Under the locks of both. */
static int link_up(struct ovl *o, struct ovl_inode *i, struct ovl_inode *parent,
		   struct layer_ref *dir, struct ovl_name *n)
{
	struct statx parent_st;
	struct timespec times[2];
	int err = mark_impure(o, parent, dir);

	if (err == 0)
		err = layer_stat(dir, "", &parent_st);
	if (err == 0)
		err = store_nlink(o, i, FMT_NLINK_LOWER);
	if (err < 0)
		return err;
	names_expect(o, parent, n->text);
	err = at_link(layer_fd(o->index), i->index->name, layer_fd(dir), n->text);
	if (err == -EEXIST)
		err = is_linked(o, i, dir, n->text) ? 0 : -ESTALE;
	if (err < 0)
		return err;
	statx_times(&parent_st, times);
	at_utimens(layer_fd(dir), "", times);
	forget_alias(i, n);
	return store_nlink(o, i, FMT_NLINK_UPPER);
}

int index_link_up(struct ovl *o, const struct ovl_caller *caller, struct ovl_inode *i,
		  struct ovl_inode *parent, const char *name)
{
	autoref struct layer_ref *dir = NULL;
	struct ovl_name *n;
	struct reach r;
	int err;

	if (!inode_has(i, INODE_ALIASES))
		return 0;
	err = upper_parent(o, caller, parent, &dir);
	if (err == 0)
		err = reach_in(o, caller, parent, i, &r);
	if (err < 0)
		return err;
	n = find_name(i, parent, name, NULL);
	if (n && n->layer && inode_has(i, INODE_INDEXED))
		err = link_up(o, i, parent, dir, n);
	reach_in_done(parent, i, &r);
	attr_notify(o, parent, false);
	return err;
}

void index_link_up_last(struct ovl *o, const struct ovl_caller *caller, struct ovl_inode *i)
{
	char name[NAME_MAX + 1];
	struct ovl_inode *parent = NULL;
	int err;

	if (!inode_has(i, INODE_ALIASES))
		return;
	lock_take(&i->lock);
	if (i->names && i->names->layer) {
		parent = i->names->parent;
		atomic_fetch_add_explicit(&parent->refs, 1, memory_order_relaxed);
		memcpy(name, i->names->text, (size_t)i->names->len + 1);
	}
	lock_drop(&i->lock);
	if (!parent)
		return;
	err = index_link_up(o, caller, i, parent, name);
	if (err < 0)
		log_debug("'%s' gets no name in upper yet: %s", name, strerror(-err));
	inode_put(o, parent);
}

/* --- names come and go -------------------------------------------------------------------------*/

int index_prepare_removal(struct ovl *o, const struct ovl_caller *caller, struct ovl_inode *i,
			  struct ovl_inode *parent, const char *name)
{
	int err = 0;

	if (!inode_has(i, INODE_TO_INDEX | INODE_INDEXED))
		return 0;
	index_prefer_name(i, parent, name);
	if (!inode_has(i, INODE_UPPER))
		err = copy_up(o, caller, i, COPY_META);
	return err < 0 ? err : index_link_up(o, caller, i, parent, name);
}

int index_nlink_start(struct ovl *o, struct ovl_inode *i)
{
	if (i->dir || !inode_has(i, INODE_INDEXED))
		return 0;
	return store_nlink(o, i, FMT_NLINK_UPPER);
}

void index_nlink_added(struct ovl_inode *i)
{
	if (!i->dir && inode_has(i, INODE_INDEXED))
		i->index->nlink++;
}

/* The union has no name of it any more: it leaves the index. False: it has after all. */
static bool drop_entry(struct ovl *o, struct ovl_inode *i)
{
	struct index_entry *entry = i->index;
	struct statx st;
	int err = 0;

	if (!i->dir) {
		err = layer_stat(o->index, entry->name, &st);
		/*
		 * Links that nobody counted: somebody added some to a lower layer. The count is
		 * what is left, the entry not among it.
		 */
		if (err == 0 && st.stx_nlink > 1) {
			entry->nlink = st.stx_nlink - 1;
			store_nlink(o, i, FMT_NLINK_UPPER);
			return false;
		}
	}
	if (err == 0)
		err = index_remove(o, entry->name, i->dir);
	if (err < 0 && err != -ENOENT)
		log_warning("index entry %s cannot be removed: %s", entry->name, strerror(-err));
	inode_clear(i, INODE_INDEXED | INODE_ALIASES);
	link_remove(o, i); /* a lower link made meanwhile is another file */
	return true;
}

bool index_nlink_removed(struct ovl *o, struct ovl_inode *i)
{
	if (!inode_has(i, INODE_INDEXED))
		return true;
	if (!i->dir) {
		/* Never less than the names that are known: lower layers may have been changed. */
		if (i->names && i->index->nlink <= 1)
			return false;
		if (i->index->nlink && --i->index->nlink)
			return true;
	}
	return drop_entry(o, i);
}
