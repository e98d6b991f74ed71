// SPDX-License-Identifier: MIT
/* Extended attributes as users see them: the overlay's own are hidden, their names escaped. */
#include <linux/capability.h>
#include <linux/limits.h>

#include "overlay/override.h"
#include "util/at.h"

/*
 * Which marks are those of a name: of this mount, or of the other prefix, which in the personality
 * of fuse-overlayfs mean something as well.
 */
static bool escapes_as(const struct ovl *o, const char *name)
{
	if (unlikely(o->compat.whiteout_files) && fmt_xattr_is_own(!o->userxattr, name))
		return !o->userxattr;
	return o->userxattr;
}

int xattr_to_stored(const struct ovl *o, const char *name, char *out, size_t size)
{
	if (override_hides(o, name)) /* those of fuse-overlayfs, which could not be escaped */
		return -EPERM;
	return fmt_xattr_escape(escapes_as(o, name), name, out, size);
}

int xattr_to_shown(const struct ovl *o, const char *stored, char *out, size_t size)
{
	if (override_hides(o, stored))
		return -ENODATA;
	return fmt_xattr_unescape(escapes_as(o, stored), stored, out, size);
}

/* Whether it is known that the object does not have it. */
static bool lacks(const struct ovl *o, const struct ovl_inode *i, const char *name)
{
	if (!inode_has(i, INODE_PLAIN) || !xattr_is_not_plain(name))
		return false;
	return o->has_acl || !strcmp(name, "security.capability");
}

ssize_t ovl_getxattr(struct ovl *o, ovl_node node, const char *name, void *value, size_t size)
{
	struct ovl_inode *i = inode_get(o, node);
	char stored[XATTR_NAME_MAX + 1];
	struct reach r;
	ssize_t n;

	if (!i)
		return -ESTALE;
	n = xattr_to_stored(o, name, stored, sizeof(stored));
	if (n == -EPERM || lacks(o, i, name)) /* nobody has it, or this one has not */
		n = -ENODATA;
	if (n == 0)
		n = reach(o, i, &r);
	if (n == 0) {
		n = layer_getxattr(r.at, r.name, stored, value, size);
		reach_done(i, &r);
	}
	inode_put(o, i);
	/* Another layer has ACLs; the kernel takes EOPNOTSUPP for a failure. */
	if (n == -EOPNOTSUPP && o->has_acl &&
	    (!strcmp(name, ACL_ACCESS) || !strcmp(name, ACL_DEFAULT)))
		return -ENODATA;
	return n;
}

/*
 * Filters a stored list in place; names only ever get shorter. Local filesystems list trusted.* to
 * the privileged only; FUSE leaves that to us.
 */
static size_t filter_list(struct ovl *o, const struct ovl_caller *caller, char *list, size_t size)
{
	int trusted = -1;
	char *out = list;
	char name[XATTR_NAME_MAX + 1];

	for (char *p = list, *next; p < list + size; p = next) {
		size_t len = strnlen(p, (size_t)(list + size - p));

		next = p + len + 1;
		if (xattr_to_shown(o, p, name, sizeof(name)) < 0)
			continue;
		if (!strncmp(name, "trusted.", 8)) {
			if (trusted < 0)
				trusted = caller_has(caller, CAP_SYS_ADMIN);
			if (!trusted)
				continue;
		}
		len = strlen(name) + 1;
		memmove(out, name, len);
		out += len;
	}
	return (size_t)(out - list);
}

ssize_t ovl_listxattr(struct ovl *o, const struct ovl_caller *caller, ovl_node node, char *list,
		      size_t size)
{
	struct ovl_inode *i = inode_get(o, node);
	autofree char *big = NULL;
	char small[1024];
	char *stored = small;
	struct reach r;
	ssize_t n;

	if (!i)
		return -ESTALE;
	n = reach(o, i, &r);
	if (n == 0) {
		n = layer_listxattr(r.at, r.name, small, sizeof(small));
		if (n == -ERANGE) {
			stored = big = malloc(XATTR_LIST_MAX);
			n = big ? layer_listxattr(r.at, r.name, big, XATTR_LIST_MAX) : -ENOMEM;
		}
		reach_done(i, &r);
	}
	inode_put(o, i);
	if (n <= 0)
		return n == -EOPNOTSUPP ? 0 : n;
	n = (ssize_t)filter_list(o, caller, stored, (size_t)n);
	if (size && (size_t)n > size)
		return -ERANGE;
	if (size)
		memcpy(list, stored, (size_t)n);
	return n;
}

/*
 * Clears S_ISGID, as changing an ACL by who is not in the group does. FUSE says who that is only
 * when an ACL is set, not when it is removed.
 */
static int drop_sgid(struct ovl *o, const struct ovl_caller *caller, bool for_sure, int fd,
		     const char *name)
{
	struct statx st;
	int err = object_stat(o, fd, name, &st);

	if (err < 0 || !(st.stx_mode & S_ISGID))
		return err;
	if (!for_sure && caller_keeps_sgid(caller, &st))
		return 0;
	return object_chmod(o, fd, name, st.stx_mode & ~(mode_t)S_ISGID);
}

/* In an upper object. */
static int store_xattr(struct ovl *o, int fd, const char *name, const char *xattr,
		       const void *value, size_t size, int flags)
{
	if (!value)
		return object_removexattr(o, fd, name, xattr);
	if (override_in_upper(o) && !strcmp(xattr, ACL_ACCESS))
		return object_set_acl(o, fd, name, value, size, flags);
	return object_setxattr(o, fd, name, xattr, value, size, flags);
}

/* Sets, or with @value NULL removes. */
static int change_xattr(struct ovl *o, const struct ovl_caller *caller, struct ovl_inode *i,
			const char *name, const void *value, size_t size, int flags, bool kill_sgid)
{
	char stored[XATTR_NAME_MAX + 1];
	struct reach r;
	/* Removed by the kernel for who writes through an fd from before the flag was set. */
	bool stripped = !value && !strcmp(name, "security.capability");
	bool was_there = false;
	int err = stripped ? 0 : protattr_check(i, false);

	if (err == 0)
		err = xattr_to_stored(o, name, stored, sizeof(stored));
	if (err < 0)
		return err;
	if (!value && !inode_has(i, INODE_UPPER)) {
		/* What is not there needs no copy-up to fail. */
		ssize_t n;

		err = reach(o, i, &r);
		if (err < 0)
			return err;
		n = layer_getxattr(r.at, r.name, stored, NULL, 0);
		reach_done(i, &r);
		if (n < 0)
			return (int)n;
		was_there = true;
	}
	/* As the kernel's: what is up already does not have to show that its data is right. */
	if (!inode_has(i, INODE_UPPER))
		err = copy_up(o, caller, i, COPY_META);
	if (err == 0)
		err = reach_settled(o, caller, i, &r);
	if (err < 0)
		return err;
	if (!strcmp(name, ACL_DEFAULT))
		inode_clear(i, INODE_NO_DEFACL);
	if (value && xattr_is_not_plain(name))
		inode_clear(i, INODE_PLAIN);
	err = store_xattr(o, layer_fd(r.at), r.name, stored, value, size, flags);
	if (err == -ENODATA && was_there) /* upper cannot hold it: it went at copy-up */
		err = 0;
	if (err == 0 && !strcmp(name, ACL_ACCESS) && (kill_sgid || !value))
		err = drop_sgid(o, caller, kill_sgid, layer_fd(r.at), r.name);
	reach_done(i, &r);
	return err;
}

int ovl_setxattr(struct ovl *o, const struct ovl_caller *caller, ovl_node node, const char *name,
		 const void *value, size_t size, int flags, bool kill_sgid)
{
	struct ovl_inode *i = inode_get(o, node);
	int err;

	if (!i)
		return -ESTALE;
	err = change_xattr(o, caller, i, name, value ? value : "", size, flags, kill_sgid);
	inode_put(o, i);
	return err;
}

int ovl_removexattr(struct ovl *o, const struct ovl_caller *caller, ovl_node node, const char *name)
{
	struct ovl_inode *i = inode_get(o, node);
	int err;

	if (!i)
		return -ESTALE;
	err = change_xattr(o, caller, i, name, NULL, 0, 0, false);
	inode_put(o, i);
	return err;
}
