/* SPDX-License-Identifier: MIT */
/*
 * The union engine: a stack of layers shown as one directory tree, with the semantics and the
 * on-disk format of Linux's overlayfs. This is its whole public face. It knows nothing of FUSE.
 *
 * Objects are named by nodeids (ovl_node): a 64-bit number handed out by the calls that return a
 * struct ovl_entry, each of which takes one lookup reference, given back with ovl_forget(). A
 * nodeid that is not alive gives -ESTALE. The root is OVL_ROOT and is always alive. Nodeids are
 * never reused within 2^32 lives of one table slot.
 *
 * Threads: every function may be called from any thread at any time, except ovl_create() and
 * ovl_destroy(). The engine holds no lock across the copying of data.
 *
 * Errors: 0 (or a count) on success, a negative errno otherwise. Nothing aborts, prints or exits.
 *
 * Rights: the engine does not check the caller's rights (the kernel does, with default_permissions
 * and ACLs, before it asks); what the caller's identity decides here is the owner of new objects,
 * the umask and who may be interrupted. Underneath, the layers check the daemon's own rights.
 */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/types.h>
#include <time.h>

struct ovl;

typedef uint64_t ovl_node;

#define OVL_ROOT       ((ovl_node)1)
#define OVL_MAX_LAYERS 500 /* lower layers; OVL_MAX_STACK of the kernel */

/* -o redirect_dir= */
enum ovl_redirect {
	OVL_REDIRECT_FOLLOW = 0, /* the kernel's default: read redirects, make none */
	OVL_REDIRECT_NOFOLLOW,
	OVL_REDIRECT_ON,  /* rename merged directories too */
	OVL_REDIRECT_OFF, /* asked for: the least there is. In effect it is one of the others. */
};

/* -o verity= */
enum ovl_verity {
	OVL_VERITY_OFF = 0,
	OVL_VERITY_ON,      /* check the digests that there are, store those that can be had */
	OVL_VERITY_REQUIRE, /* no file is a metacopy without one */
};

/* -o uuid= */
enum ovl_uuid {
	OVL_UUID_AUTO = 0, /* on for a new upper or one that has one, else null */
	OVL_UUID_ON,
	OVL_UUID_NULL,
	OVL_UUID_OFF, /* file handles are stored and compared without it as well */
};

/* -o xino= */
enum ovl_xino {
	OVL_XINO_OFF = 0,
	OVL_XINO_AUTO,
	OVL_XINO_ON,
};

/* -o fsync=; "volatile" is fsync=volatile */
enum ovl_fsync {
	OVL_FSYNC_AUTO = 0, /* copied-up data is on disk before its name is */
	OVL_FSYNC_STRICT,   /* the metadata too, and that of directories */
	OVL_FSYNC_VOLATILE, /* nothing is ever synced: upper is lost with the machine */
};

enum ovl_xattr_prefix {
	OVL_XATTR_AUTO = 0, /* trusted.overlay. where it can be written, else user.overlay. */
	OVL_XATTR_TRUSTED,
	OVL_XATTR_USER, /* -o userxattr */
};

/* What a mount does, by the words of the kernel's overlayfs. Zero is the kernel's default. */
struct ovl_features {
	enum ovl_redirect redirect;
	enum ovl_verity verity;
	enum ovl_uuid uuid;
	enum ovl_xino xino;
	enum ovl_fsync fsync;
	bool metacopy;
	bool index;
	bool nfs_export;
	bool userxattr;
};

/* How owner, mode and type of the objects in upper are stored. Lower layers say it themselves. */
enum ovl_override {
	OVL_OVERRIDE_NONE = 0,
	OVL_OVERRIDE_SECURITY,   /* security.fuseoverlayfs.override_stat: xattr_permissions=1 */
	OVL_OVERRIDE_CONTAINERS, /* user.containers.override_stat: xattr_permissions=2 */
};

/*
 * What fuse-overlayfs and builders of images leave in layers, besides the kernel's marks. Zero is
 * what the kernel's overlayfs does: it knows none of it.
 */
struct ovl_compat {
	/*
	 * On every layer ".wh.NAME" hides NAME, and a directory with ".wh..wh..opq" in it or
	 * user.fuseoverlayfs.opaque on it is opaque, as are those with trusted. or
	 * user.overlay.opaque, whichever the mount itself writes. Names that begin with ".wh." are
	 * nobody's. Whiteouts are written so where a device 0:0 cannot be made.
	 */
	bool whiteout_files;
	bool no_device_whiteouts; /* not even where it could */
	enum ovl_override override;
	/*
	 * Copy-up of what belongs to somebody whom we cannot give the copy to (one user without
	 * rights, or a user namespace in which he has no number): the copy is ours, and loses its
	 * set-id bits and capabilities as by chown(2). Without this -EPERM or -EOVERFLOW, as with
	 * the kernel.
	 */
	bool gives_up_owners;
	/*
	 * Volatile leaves no mark in workdir that keeps a later mount from upper, and heeds none:
	 * who asks for it knows himself which uppers a crash has spoilt.
	 */
	bool unmarked_volatile;
	/*
	 * An upper that another mount has is taken nevertheless, with a warning, unless there is an
	 * index: a mount that was unmounted lives on in every mount namespace that was made
	 * meanwhile and kept it, and its container has to start again.
	 */
	bool shares_upper;
};

/* Which of them somebody asked for himself: what he did not, gives way in a conflict. */
enum ovl_given {
	OVL_GIVEN_REDIRECT = 1 << 0,
	OVL_GIVEN_VERITY = 1 << 1,
	OVL_GIVEN_UUID = 1 << 2,
	OVL_GIVEN_XINO = 1 << 3,
	OVL_GIVEN_FSYNC = 1 << 4,
	OVL_GIVEN_METACOPY = 1 << 5,
	OVL_GIVEN_INDEX = 1 << 6,
	OVL_GIVEN_NFS_EXPORT = 1 << 7,
	OVL_GIVEN_USERXATTR = 1 << 8, /* as opposed to user.overlay. for want of rights */
};

struct ovl_config {
	const char *const *lower; /* paths, topmost first; data-only layers after all others */
	size_t lower_count;       /* 1 to OVL_MAX_LAYERS */
	size_t data_count;        /* how many of them are data-only; fewer than lower_count */
	const char *upper;        /* NULL: a read-only union */
	const char *work;         /* needed with upper */
	const char *mountpoint;   /* where it will be mounted: layers inside it are refused; may be
				     NULL */
	struct ovl_features features; /* as asked for; userxattr: see xattr_prefix */
	unsigned int given;           /* enum ovl_given */
	enum ovl_xattr_prefix xattr_prefix;
	struct ovl_compat compat;
	/*
	 * Lower layers have the numbers of users and groups that are on disk, also where they are
	 * given as idmapped mounts: whoever serves the union maps them. podman gives both the idmap
	 * and uidmapping=. Before Linux 6.15 nothing can be done about the idmap.
	 */
	bool disk_ids;

	/*
	 * Others may change the layers while this union is there: nothing that was read of a
	 * directory is believed by the next call that asks for it.
	 */
	bool layers_may_change;

	/*
	 * Called when attributes of @node changed other than by the call that names it (a copied-up
	 * parent, the broken link of a copied-up file), and with @listing when numbers in its
	 * listing did. May be called from within any engine call, with no engine lock held. NULL
	 * when nobody caches.
	 */
	void (*attr_changed)(void *ctx, ovl_node node, bool listing);
	void *ctx;
};

/*
 * Opens the layers, checks them against each other, locks upper and work against a second mount and
 * sweeps what a crash left in work. On failure returns a negative errno and stores in @message
 * (always NUL-terminated) one line for people, without trailing newline or program name: what was
 * tried, on which path, and what to do. The config's strings are only read during the call.
 */
int ovl_create(const struct ovl_config *config, struct ovl **out, char *message, size_t size);

/*
 * Closes everything, and fast: who unmounts a union may unmount the filesystem beneath it next,
 * which also writes it back. No call may be running.
 */
void ovl_destroy(struct ovl *o);

/*
 * Writes what the union is made of and does, in lines of "key=value": each layer, topmost first, as
 * lowerdir+= or datadir+=, then upperdir=, workdir=, each feature in the kernel's words, and last
 * options=, which is what -o would need for the same mount: that line is left open for the words of
 * who serves it, each after a ','. Paths are absolute; values are escaped as in
 * /proc/self/mountinfo. -ENOMEM when the stream failed.
 */
int ovl_describe(const struct ovl *o, FILE *out);

bool ovl_has_upper(const struct ovl *o);
/* What the mount does in the end, after conflicts and what the layers cannot do. Borrowed. */
const struct ovl_features *ovl_get_features(const struct ovl *o);
/* Whether some layer can hold POSIX ACLs, so that they have to be checked. */
bool ovl_has_acl(const struct ovl *o);

struct id_map;

/* On whose behalf a call is made. */
struct ovl_caller {
	/*
	 * To whom new objects belong, by the numbers of the layers. Other calls ask who it is only
	 * by @pid: for them the kernel does not say it (FUSE_ALLOW_IDMAP).
	 */
	uid_t uid;
	gid_t gid;
	pid_t pid; /* thread id; 0 when unknown */
	/* What the caller sees of the layers' numbers; NULL: the same. Borrowed. */
	const struct id_map *uids;
	const struct id_map *gids;
	mode_t umask; /* applied to new objects unless the parent has a default ACL */
	bool appends; /* write: through a file that was opened with O_APPEND */
	/*
	 * write: no ovl_open() came before, which would have said what a file may not be opened for
	 * that is immutable or append-only. So each write is asked that.
	 */
	bool unopened;
	/*
	 * Changes of contents: they are made on behalf of a cache that keeps mtime itself, and
	 * stores it by ovl_setattr(). So they leave it alone.
	 */
	bool owns_mtime;
	bool kill_priv; /* open: the caller lacks CAP_FSETID (O_TRUNC drops suid and sgid) */
	/* set by somebody else when the caller got a signal; NULL when that cannot happen */
	const atomic_bool *interrupted;
};

/*
 * Attributes are a struct statx as the union shows it: stx_ino is the union's number and equals
 * d_ino, stx_nlink the union's count, stx_btime is set when STATX_BTIME is in stx_mask; stx_dev_*
 * and stx_mnt_id mean nothing.
 */
struct ovl_entry {
	ovl_node node;
	struct statx attr;
};

/*
 * -ENOENT: no such name. "." is @parent itself, which then may be of any type, and ".." the
 * directory that it is in: -ESTALE when @parent has no name any more.
 */
int ovl_lookup(struct ovl *o, ovl_node parent, const char *name, struct ovl_entry *out);
/* Whether that was the last: nobody has the nodeid any more. */
bool ovl_forget(struct ovl *o, ovl_node node, uint64_t nlookup);

/*
 * With nfs_export: what an object is known by outside of this union's life. @number is its stx_ino,
 * the same after a remount of the same layers, and @generation tells it from others that have had
 * the number, or will have it.
 */
struct ovl_identity {
	uint64_t number;
	uint32_t generation;
};

int ovl_identify(struct ovl *o, ovl_node node, struct ovl_identity *out);
/*
 * Finds the object with a number; the caller compares the generation. May take long, since all
 * directories have to be read once in a while; -EINTR when the caller was killed. -ESTALE: there is
 * none, or it has no name. -EOPNOTSUPP without nfs_export.
 */
int ovl_resolve(struct ovl *o, const struct ovl_caller *caller, uint64_t number,
		struct ovl_entry *out);

int ovl_getattr(struct ovl *o, ovl_node node, struct statx *out);

enum ovl_setattr_valid {
	OVL_SET_MODE = 1 << 0,
	OVL_SET_UID = 1 << 1,
	OVL_SET_GID = 1 << 2,
	OVL_SET_SIZE = 1 << 3,
	OVL_SET_ATIME = 1 << 4, /* tv_nsec may be UTIME_NOW */
	OVL_SET_MTIME = 1 << 5,
	OVL_SET_BY_FD = 1 << 7, /* through an open file: its rights were checked at open */
	/* With SIZE: as a write does. Alone: as chown(2), but for who may write without that. */
	OVL_KILL_SUIDGID = 1 << 6,
};

struct ovl_setattr {
	unsigned int valid;
	mode_t mode;
	uid_t uid; /* -1: stays, and yet it is a chown(2), which drops set-id bits */
	gid_t gid;
	off_t size;
	struct timespec atime;
	struct timespec mtime;
};

int ovl_setattr(struct ovl *o, const struct ovl_caller *caller, ovl_node node,
		const struct ovl_setattr *set, struct statx *out);

/* Returns the length; the text is not NUL-terminated. @size should be PATH_MAX. */
ssize_t ovl_readlink(struct ovl *o, ovl_node node, char *buf, size_t size);

/* Makes a regular file, fifo, socket or device. @mode holds the type. chr 0:0 gives -EPERM. */
int ovl_mknod(struct ovl *o, const struct ovl_caller *caller, ovl_node parent, const char *name,
	      mode_t mode, dev_t rdev, struct ovl_entry *out);
int ovl_mkdir(struct ovl *o, const struct ovl_caller *caller, ovl_node parent, const char *name,
	      mode_t mode, struct ovl_entry *out);
int ovl_symlink(struct ovl *o, const struct ovl_caller *caller, ovl_node parent, const char *name,
		const char *target, struct ovl_entry *out);
/* A new name for @node; @out describes @node again and takes another lookup reference. */
int ovl_link(struct ovl *o, const struct ovl_caller *caller, ovl_node node, ovl_node parent,
	     const char *name, struct ovl_entry *out);
int ovl_unlink(struct ovl *o, const struct ovl_caller *caller, ovl_node parent, const char *name);
int ovl_rmdir(struct ovl *o, const struct ovl_caller *caller, ovl_node parent, const char *name);
/* @flags: RENAME_NOREPLACE or RENAME_EXCHANGE or 0, anything else is -EINVAL. */
int ovl_rename(struct ovl *o, const struct ovl_caller *caller, ovl_node parent, const char *name,
	       ovl_node newparent, const char *newname, unsigned int flags);

/*
 * Open files. An open is a count on the inode, not an object: ovl_read() and the rest work on any
 * regular file whether or not it is open, and always see its present data, copied up or not.
 * @flags are open(2)'s; a write mode or O_TRUNC copies up. Each successful ovl_open(),
 * ovl_create_file() and ovl_tmpfile() is given back by one ovl_release().
 */
int ovl_open(struct ovl *o, const struct ovl_caller *caller, ovl_node node, int flags);
void ovl_release(struct ovl *o, ovl_node node, int flags);
/*
 * Makes the name and opens it in one. -EEXIST when it is there. @contents: NULL, or gets what
 * ovl_open_contents() would give, or -1.
 */
int ovl_create_file(struct ovl *o, const struct ovl_caller *caller, ovl_node parent,
		    const char *name, mode_t mode, int flags, struct ovl_entry *out, int *contents);
/* O_TMPFILE: an open file without a name in @parent's filesystem; ovl_link() may give it one. */
int ovl_tmpfile(struct ovl *o, const struct ovl_caller *caller, ovl_node parent, mode_t mode,
		int flags, struct ovl_entry *out, int *contents);

/*
 * For who has the kernel read and write the real file itself, in the place of ovl_read() and
 * ovl_write(), which may be mixed with that.
 */
struct ovl_direct {
	bool possible;
	bool upper; /* has the contents, and they stay there */
	unsigned int
		layer; /* with the contents, as far as is known; 0: that is upper, or it is not */
};

/*
 * As ovl_open(), but opens nothing where the contents may be had directly: those of upper for good,
 * those of a lower layer as long as nobody can change them. @lower: those that may be copied up
 * too, to be read.
 */
int ovl_open_direct(struct ovl *o, const struct ovl_caller *caller, ovl_node node, int flags,
		    bool lower, struct ovl_direct *out);
/*
 * An fd of the real file with the contents, the caller's, perhaps O_PATH. One of a lower layer is
 * on a read-only mount or filesystem: -EROFS where there is none.
 */
int ovl_open_contents(struct ovl *o, ovl_node node, unsigned int *layer);
/*
 * Whether what is written has to come through ovl_write(), for which there is more to do: the file
 * has set-id bits, may only grow or not be changed. Or a negative errno.
 */
int ovl_guards_writes(struct ovl *o, ovl_node node);
/*
 * Whether the real file may change without a call, by somebody who has it open for writing or
 * mapped. True when that cannot be known.
 */
bool ovl_is_written(struct ovl *o, ovl_node node);
/* A regular file without a name in upper's filesystem, or any where there is no upper. */
int ovl_open_sample(struct ovl *o);

ssize_t ovl_read(struct ovl *o, ovl_node node, void *buf, size_t size, off_t off);
/* Copies up at need. @kill_priv: drop suid, and sgid if group-executable, first. */
ssize_t ovl_write(struct ovl *o, const struct ovl_caller *caller, ovl_node node, const void *buf,
		  size_t size, off_t off, bool kill_priv);
int ovl_fallocate(struct ovl *o, const struct ovl_caller *caller, ovl_node node, int mode,
		  off_t off, off_t len);
/* @whence: SEEK_DATA or SEEK_HOLE. Returns the offset. */
off_t ovl_lseek(struct ovl *o, ovl_node node, off_t off, int whence);
ssize_t ovl_copy_file_range(struct ovl *o, const struct ovl_caller *caller, ovl_node in,
			    off_t off_in, ovl_node out, off_t off_out, size_t len);
/*
 * Of a directory too. A no-op on what was never copied up. On a volatile mount nothing is synced,
 * and the answer is 0, or -EIO for ever once something that was written is known to be lost.
 */
int ovl_fsync(struct ovl *o, ovl_node node, bool datasync);

/* Everything in upper to disk; a volatile mount answers as for ovl_fsync(). */
int ovl_syncfs(struct ovl *o);

/*
 * The links that a directory would have on a filesystem that counts them: two, and one for each
 * directory in it. A united directory is read for that, whose stx_nlink is 1.
 */
int ovl_count_links(struct ovl *o, ovl_node node, uint32_t *out);

struct ovl_dirent {
	const char *name; /* NUL-terminated */
	size_t name_len;
	uint64_t ino;
	unsigned int type; /* DT_* */
	off_t next;        /* offset of the entry after this one */
	/*
	 * If it was looked up: the entry, which took a lookup reference if the callback keeps it;
	 * NULL for "." and "..".
	 */
	const struct ovl_entry *entry;
};

/* Returns false when the entry does not fit: it is not consumed, and reading stops. */
typedef bool (*ovl_filldir)(void *ctx, const struct ovl_dirent *entry);

/* Which entries of a listing are looked up with it. */
enum ovl_look {
	OVL_LOOK_NONE = 0,
	OVL_LOOK_DIRECTORIES,
	OVL_LOOK_ALL,
};

/*
 * A directory is read without being opened. @off 0 is the beginning and sees the directory as it
 * is; any other depends on nothing but the name of the entry before it, so it means the same to
 * every reader, and after a remount. "." and ".." come first.
 */
int ovl_readdir(struct ovl *o, ovl_node node, off_t off, enum ovl_look look, ovl_filldir fill,
		void *ctx);

/*
 * Extended attributes. Names of the overlay's own namespace are escaped on the way in and hidden on
 * the way out. @size 0 asks for the size; -ERANGE when it does not fit.
 */
ssize_t ovl_getxattr(struct ovl *o, ovl_node node, const char *name, void *value, size_t size);
/* trusted.* names are listed to callers with CAP_SYS_ADMIN only. */
ssize_t ovl_listxattr(struct ovl *o, const struct ovl_caller *caller, ovl_node node, char *list,
		      size_t size);
/* @kill_sgid: setting an access ACL also drops S_ISGID (FUSE_SETXATTR_ACL_KILL_SGID). */
int ovl_setxattr(struct ovl *o, const struct ovl_caller *caller, ovl_node node, const char *name,
		 const void *value, size_t size, int flags, bool kill_sgid);
int ovl_removexattr(struct ovl *o, const struct ovl_caller *caller, ovl_node node,
		    const char *name);

/* FS_IOC_GETFLAGS / SETFLAGS (FS_*_FL) and FS_IOC_FSGETXATTR / FSSETXATTR. Regular files and
 * directories; -ENOTTY elsewhere and where the layer knows no flags. */
struct fsxattr;
int ovl_get_flags(struct ovl *o, ovl_node node, unsigned int *flags);
int ovl_set_flags(struct ovl *o, const struct ovl_caller *caller, ovl_node node,
		  unsigned int flags);
int ovl_get_fsxattr(struct ovl *o, ovl_node node, struct fsxattr *out);
int ovl_set_fsxattr(struct ovl *o, const struct ovl_caller *caller, ovl_node node,
		    const struct fsxattr *set);

int ovl_statfs(struct ovl *o, struct statvfs *out);

/*
 * An O_PATH fd, the caller's, of the real object that shows on top, and in which layer that is: 0
 * is upper, the topmost lower one is 1. -EOPNOTSUPP for a layer whose objects have no fd. For tools
 * that work on layers; what is done through the fd the union does not know of.
 */
int ovl_open_real(struct ovl *o, ovl_node node, unsigned int *layer);

/* Whether this process may write trusted.* xattrs, which are the marks then (OVL_XATTR_AUTO). */
bool ovl_may_trust(void);

/* Counters, for tests and for -d. */
struct ovl_stats {
	uint64_t inodes; /* alive, the root included */
	uint64_t names;
	uint64_t open_fds; /* directory and file fds that the engine holds now */
	uint64_t copied_up;
};
void ovl_get_stats(struct ovl *o, struct ovl_stats *out);
