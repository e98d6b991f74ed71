/* SPDX-License-Identifier: MIT */
/*
 * Numbers of users and groups inside of xattrs: POSIX ACLs (linux/posix_acl_xattr.h) and file
 * capabilities (struct vfs_ns_cap_data of linux/capability.h), as the layers have them and as the
 * mount shows them. Pure functions, which take whatever the bytes are: what is neither is left
 * alone, its reader refuses it. A map may be NULL: every number is itself.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "util/idmap.h"

enum ids_xattr {
	IDS_XATTR_PLAIN = 0,
	IDS_XATTR_ACL,
	IDS_XATTR_CAPABILITY,
};

#define IDS_ACL_ACCESS  "system.posix_acl_access"
#define IDS_ACL_DEFAULT "system.posix_acl_default"

enum ids_xattr ids_xattr_kind(const char *name);

/*
 * In place; returns the new size. Entries of whom nothing stands for here go: nobody could match
 * them, and the kernel would refuse the whole ACL, and with it all access, for one of them.
 */
size_t ids_show_acl(const struct id_map *uids, const struct id_map *gids, void *value, size_t size);
/* In place. -EINVAL: it names somebody that the layers have no number for. */
int ids_store_acl(const struct id_map *uids, const struct id_map *gids, void *value, size_t size);

/*
 * File capabilities hold in the user namespaces whose root is the one that they name: the layers'
 * root (0) where they name none, as in revisions 1 and 2. @value has room for IDS_CAPABILITY_MAX;
 * in place, returns the new size. Who has no number here is shown as -1, which the kernel takes for
 * nobody. Squashing shows the layers' root as somebody else, but never somebody else as root.
 */
#define IDS_CAPABILITY_MAX 24
size_t ids_show_capability(const struct id_map *uids, void *value, size_t size);
/* The same for one that is set. -EINVAL as above. */
ssize_t ids_store_capability(const struct id_map *uids, void *value, size_t size);

/*
 * The mode of an object whose ACL nobody checks: what the ACL denies anybody is denied all whom the
 * mode cannot tell apart from him.
 */
mode_t ids_mode_for_acl(mode_t mode, const void *acl, size_t size);

/*
 * A number of an inode in 32 bits. Those that fit into 31 stay, the others are hashed into the rest
 * of the space, so that these two kinds never meet.
 */
uint64_t server_fold_ino(uint64_t ino);
