// SPDX-License-Identifier: MIT
/*
 * Inheritance of a default ACL, as posix_acl_create() of the kernel does it. Filesystems do it by
 * themselves; only an object that is built in workdir and then moved over a whiteout needs it here.
 * Format: linux/posix_acl_xattr.h, little-endian.
 */
#include <endian.h>

#include "overlay/internal.h"

#define ACL_VERSION 2

enum acl_tag {
	ACL_USER_OBJ = 0x01,
	ACL_USER = 0x02,
	ACL_GROUP_OBJ = 0x04,
	ACL_GROUP = 0x08,
	ACL_MASK = 0x10,
	ACL_OTHER = 0x20,
};

struct acl_entry {
	uint16_t tag;
	uint16_t perm;
	uint32_t id;
};

static void restrict_entry(struct acl_entry *e, mode_t *mode, unsigned int shift)
{
	uint16_t perm = le16toh(e->perm) & (*mode >> shift & 7);

	*mode = (*mode & ~((mode_t)7 << shift)) | (mode_t)perm << shift;
	e->perm = htole16(perm);
}

mode_t acl_to_mode(const void *acl, size_t size, mode_t mode)
{
	size_t count = (size - sizeof(uint32_t)) / sizeof(struct acl_entry);
	mode_t named = 7;
	mode_t group = mode >> 3 & 7; /* the mask */
	struct acl_entry e;

	if (size < sizeof(uint32_t))
		return mode;
	for (size_t n = 0; n < count; n++) {
		memcpy(&e, (const char *)acl + sizeof(uint32_t) + n * sizeof(e), sizeof(e));
		switch (le16toh(e.tag)) {
		case ACL_GROUP_OBJ: group &= le16toh(e.perm); break;
		case ACL_USER:
		case ACL_GROUP: named &= le16toh(e.perm); break;
		default: break;
		}
	}
	return (mode & ~(mode_t)(S_IRWXG | S_IRWXO)) | (group & named) << 3 | (mode & 7 & named);
}

int acl_inherit(const void *def, size_t size, mode_t mode, struct acl_inherited *out)
{
	size_t count = (size - sizeof(uint32_t)) / sizeof(struct acl_entry);
	struct acl_entry *group = NULL;
	struct acl_entry *mask = NULL;
	struct acl_entry *entries;
	bool more_than_mode = false;
	uint32_t version;
	char *copy;

	if (size < sizeof(version) || (size - sizeof(version)) % sizeof(struct acl_entry))
		return -EINVAL;
	memcpy(&version, def, sizeof(version));
	if (le32toh(version) != ACL_VERSION)
		return -EOPNOTSUPP;
	copy = malloc(size);
	if (!copy)
		return -ENOMEM;
	memcpy(copy, def, size);
	entries = (struct acl_entry *)(copy + sizeof(version));
	for (size_t n = 0; n < count; n++) {
		struct acl_entry *e = &entries[n];

		switch (le16toh(e->tag)) {
		case ACL_USER_OBJ: restrict_entry(e, &mode, 6); break;
		case ACL_OTHER: restrict_entry(e, &mode, 0); break;
		case ACL_GROUP_OBJ: group = e; break;
		case ACL_MASK: mask = e; __attribute__((fallthrough));
		default: more_than_mode = true; break;
		}
	}
	if (mask || group)
		restrict_entry(mask ? mask : group, &mode, 3);
	out->mode = mode;
	out->size = more_than_mode ? size : 0;
	out->access = copy;
	return 0;
}
