/* SPDX-License-Identifier: MIT */
#include "null_engine.h"

#include <errno.h>
#include <limits.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "util/base.h"

struct null_engine null_engine;

void null_engine_reset(void)
{
	memset(&null_engine, 0, sizeof(null_engine));
	null_engine.count = SSIZE_MAX;
}

static void check(bool truth)
{
	if (!truth)
		abort();
}

static void check_name(const char *name)
{
	check(name[0] != '\0' && !strchr(name, '/') && strcmp(name, ".") != 0 &&
	      strcmp(name, "..") != 0);
}

/* Reads every byte, for AddressSanitizer to see. */
static void touch(const void *data, size_t size)
{
	const volatile unsigned char *p = data;

	for (size_t i = 0; i < size; i++)
		(void)p[i];
}

static int called(const struct ovl_caller *caller, ovl_node node)
{
	null_engine.calls++;
	null_engine.node = node;
	if (caller)
		null_engine.caller = *caller;
	return null_engine.result;
}

static void fill_attr(struct statx *attr, ovl_node node)
{
	*attr = (struct statx){ .stx_mask = STATX_BASIC_STATS | STATX_BTIME,
				.stx_mode = S_IFREG | 0644,
				.stx_ino = node,
				.stx_nlink = 1 };
}

static int made(int err, struct ovl_entry *out)
{
	if (err)
		return err;
	out->node = null_engine.made ? null_engine.made : 77;
	fill_attr(&out->attr, out->node);
	null_engine.lookups++;
	return 0;
}

bool ovl_has_upper(const struct ovl *o)
{
	return true;
}

bool ovl_has_acl(const struct ovl *o)
{
	return true;
}

const struct ovl_features *ovl_get_features(const struct ovl *o)
{
	static const struct ovl_features none;

	return &none;
}

int ovl_lookup(struct ovl *o, ovl_node parent, const char *name, struct ovl_entry *out)
{
	if (!null_engine.dots)
		check_name(name);
	return made(called(NULL, parent), out);
}

int ovl_identify(struct ovl *o, ovl_node node, struct ovl_identity *out)
{
	*out = null_engine.identity;
	return called(NULL, node);
}

int ovl_resolve(struct ovl *o, const struct ovl_caller *caller, uint64_t number,
		struct ovl_entry *out)
{
	null_engine.resolved = number;
	return made(called(caller, 0), out);
}

void ovl_forget(struct ovl *o, ovl_node node, uint64_t nlookup)
{
	called(NULL, node);
	null_engine.lookups -= (int64_t)nlookup;
}

int ovl_getattr(struct ovl *o, ovl_node node, struct statx *out)
{
	fill_attr(out, node);
	return called(NULL, node);
}

int ovl_setattr(struct ovl *o, const struct ovl_caller *caller, ovl_node node,
		const struct ovl_setattr *set, struct statx *out)
{
	null_engine.set = *set;
	fill_attr(out, node);
	return called(caller, node);
}

static ssize_t produced(int err, void *buf, size_t size)
{
	size_t count = min(size, (size_t)null_engine.count);

	if (err)
		return err;
	memset(buf, 'x', count);
	return (ssize_t)count;
}

ssize_t ovl_readlink(struct ovl *o, ovl_node node, char *buf, size_t size)
{
	return produced(called(NULL, node), buf, size);
}

int ovl_mknod(struct ovl *o, const struct ovl_caller *caller, ovl_node parent, const char *name,
	      mode_t mode, dev_t rdev, struct ovl_entry *out)
{
	check_name(name);
	null_engine.mode = mode;
	null_engine.rdev = rdev;
	return made(called(caller, parent), out);
}

int ovl_mkdir(struct ovl *o, const struct ovl_caller *caller, ovl_node parent, const char *name,
	      mode_t mode, struct ovl_entry *out)
{
	check_name(name);
	null_engine.mode = mode;
	return made(called(caller, parent), out);
}

int ovl_symlink(struct ovl *o, const struct ovl_caller *caller, ovl_node parent, const char *name,
		const char *target, struct ovl_entry *out)
{
	check_name(name);
	check(target[0] != '\0');
	touch(target, strlen(target));
	return made(called(caller, parent), out);
}

int ovl_link(struct ovl *o, const struct ovl_caller *caller, ovl_node node, ovl_node parent,
	     const char *name, struct ovl_entry *out)
{
	check_name(name);
	return made(called(caller, node), out);
}

int ovl_unlink(struct ovl *o, const struct ovl_caller *caller, ovl_node parent, const char *name)
{
	check_name(name);
	return called(caller, parent);
}

int ovl_rmdir(struct ovl *o, const struct ovl_caller *caller, ovl_node parent, const char *name)
{
	check_name(name);
	return called(caller, parent);
}

int ovl_rename(struct ovl *o, const struct ovl_caller *caller, ovl_node parent, const char *name,
	       ovl_node newparent, const char *newname, unsigned int flags)
{
	check_name(name);
	check_name(newname);
	null_engine.flags = (int)flags;
	return called(caller, parent);
}

int ovl_open(struct ovl *o, const struct ovl_caller *caller, ovl_node node, int flags)
{
	int err = called(caller, node);

	null_engine.flags = flags;
	null_engine.opens += err == 0;
	return err;
}

void ovl_release(struct ovl *o, ovl_node node, int flags)
{
	called(NULL, node);
	null_engine.flags = flags;
	null_engine.opens--;
}

int ovl_create_file(struct ovl *o, const struct ovl_caller *caller, ovl_node parent,
		    const char *name, mode_t mode, int flags, struct ovl_entry *out)
{
	int err = called(caller, parent);

	check_name(name);
	null_engine.mode = mode;
	null_engine.flags = flags;
	null_engine.opens += err == 0;
	return made(err, out);
}

int ovl_tmpfile(struct ovl *o, const struct ovl_caller *caller, ovl_node parent, mode_t mode,
		int flags, struct ovl_entry *out)
{
	return ovl_create_file(o, caller, parent, "tmpfile", mode, flags, out);
}

ssize_t ovl_read(struct ovl *o, ovl_node node, void *buf, size_t size, off_t off)
{
	check(off >= 0);
	null_engine.offset = off;
	return produced(called(NULL, node), buf, size);
}

ssize_t ovl_write(struct ovl *o, const struct ovl_caller *caller, ovl_node node, const void *buf,
		  size_t size, off_t off, bool kill_priv)
{
	int err = called(caller, node);

	check(off >= 0);
	touch(buf, size);
	null_engine.offset = off;
	null_engine.size = size;
	return err ? err : (ssize_t)size;
}

int ovl_fallocate(struct ovl *o, const struct ovl_caller *caller, ovl_node node, int mode,
		  off_t off, off_t len)
{
	check(off >= 0 && len >= 0 && off <= INT64_MAX - len);
	return called(caller, node);
}

off_t ovl_lseek(struct ovl *o, ovl_node node, off_t off, int whence)
{
	check(off >= 0 && (whence == SEEK_DATA || whence == SEEK_HOLE));
	return called(NULL, node);
}

ssize_t ovl_copy_file_range(struct ovl *o, const struct ovl_caller *caller, ovl_node in,
			    off_t off_in, ovl_node out, off_t off_out, size_t len)
{
	int err = called(caller, in);

	check(off_in >= 0 && off_out >= 0 && len <= SSIZE_MAX);
	null_engine.size = len;
	return err ? err : (ssize_t)len;
}

int ovl_fsync(struct ovl *o, ovl_node node, bool datasync)
{
	return called(NULL, node);
}

int ovl_describe(const struct ovl *o, FILE *out)
{
	return fputs("options=lowerdir=l", out) < 0 ? -ENOMEM : 0;
}

int ovl_count_links(struct ovl *o, ovl_node node, uint32_t *out)
{
	return called(NULL, node);
}

int ovl_syncfs(struct ovl *o)
{
	return called(NULL, 0);
}

int ovl_readdir(struct ovl *o, ovl_node node, off_t off, bool plus, ovl_filldir fill, void *ctx)
{
	int err = called(NULL, node);

	for (off_t i = off < 0 ? 0 : off; i < (off_t)null_engine.entries; i++) {
		struct ovl_entry entry = { .node = (ovl_node)(100 + i) };
		struct ovl_dirent dirent = { .name = i == 0 ? "." : "some-name",
					     .name_len = i == 0 ? 1 : 9,
					     .ino = (uint64_t)i + 1,
					     .type = 8,
					     .next = i + 1,
					     .entry = plus && i > 0 ? &entry : NULL };

		fill_attr(&entry.attr, entry.node);
		if (!fill(ctx, &dirent))
			break;
		null_engine.lookups += dirent.entry != NULL;
	}
	return err;
}

ssize_t ovl_getxattr(struct ovl *o, ovl_node node, const char *name, void *value, size_t size)
{
	check(name[0] != '\0');
	return size ? produced(called(NULL, node), value, size) : 5;
}

ssize_t ovl_listxattr(struct ovl *o, const struct ovl_caller *caller, ovl_node node, char *list,
		      size_t size)
{
	return size ? produced(called(caller, node), list, size) : 5;
}

int ovl_setxattr(struct ovl *o, const struct ovl_caller *caller, ovl_node node, const char *name,
		 const void *value, size_t size, int flags, bool kill_sgid)
{
	check(name[0] != '\0');
	touch(value, size);
	null_engine.size = size;
	null_engine.flags = kill_sgid;
	return called(caller, node);
}

int ovl_removexattr(struct ovl *o, const struct ovl_caller *caller, ovl_node node, const char *name)
{
	check(name[0] != '\0');
	return called(caller, node);
}

int ovl_get_flags(struct ovl *o, ovl_node node, unsigned int *flags)
{
	*flags = 0x12345678;
	return called(NULL, node);
}

int ovl_set_flags(struct ovl *o, const struct ovl_caller *caller, ovl_node node, unsigned int flags)
{
	null_engine.flags = (int)flags;
	return called(caller, node);
}

int ovl_get_fsxattr(struct ovl *o, ovl_node node, struct fsxattr *out)
{
	memset(out, 1, sizeof(*out));
	return called(NULL, node);
}

int ovl_set_fsxattr(struct ovl *o, const struct ovl_caller *caller, ovl_node node,
		    const struct fsxattr *set)
{
	touch(set, sizeof(*set));
	return called(caller, node);
}

int ovl_statfs(struct ovl *o, struct statvfs *out)
{
	memset(out, 0, sizeof(*out));
	return called(NULL, 0);
}
