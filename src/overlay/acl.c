// SPDX-License-Identifier: MIT
/*
 * Inheritance of a default ACL, as posix_acl_create() of the kernel does it, and what an access ACL
 * and the mode make of each other. Filesystems do it by themselves; only an object that is built in
 * workdir and then moved over a whiteout needs it here, and one whose mode is kept in an xattr.
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

/* The entries of a whole ACL. */
static int acl_entries(const void *acl, size_t size, struct acl_entry **out, size_t *count)
{
	uint32_t version;

	if (size < sizeof(version) || (size - sizeof(version)) % sizeof(struct acl_entry))
		return -EINVAL;
	memcpy(&version, acl, sizeof(version));
	if (le32toh(version) != ACL_VERSION)
		return -EOPNOTSUPP;
	*out = (struct acl_entry *)((char *)(uintptr_t)acl + sizeof(version));
	*count = (size - sizeof(version)) / sizeof(struct acl_entry);
	return 0;
}

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
	struct acl_entry *group = NULL;
	struct acl_entry *mask = NULL;
	struct acl_entry *entries;
	bool more_than_mode = false;
	size_t count;
	char *copy;
	int err = acl_entries(def, size, &entries, &count);

	if (err < 0)
		return err;
	copy = malloc(size);
	if (!copy)
		return -ENOMEM;
	memcpy(copy, def, size);
	acl_entries(copy, size, &entries, &count);
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

/* Which bits of a mode an entry stands for; -1: none. With a mask, the group's are those of it. */
static int entry_shift(const struct acl_entry *e, bool has_mask)
{
	switch (le16toh(e->tag)) {
	case ACL_USER_OBJ: return 6;
	case ACL_GROUP_OBJ: return has_mask ? -1 : 3;
	case ACL_MASK: return 3;
	case ACL_OTHER: return 0;
	default: return -1;
	}
}

static bool has_mask(const struct acl_entry *entries, size_t count)
{
	for (size_t n = 0; n < count; n++)
		if (le16toh(entries[n].tag) == ACL_MASK)
			return true;
	return false;
}

int acl_equiv_mode(const void *acl, size_t size, mode_t *mode)
{
	struct acl_entry *entries;
	bool more_than_mode = false;
	unsigned int found = 0;
	mode_t perm = 0;
	size_t count;
	bool masked;
	int err = acl_entries(acl, size, &entries, &count);

	if (err < 0)
		return err;
	masked = has_mask(entries, count);
	for (size_t n = 0; n < count; n++) {
		int shift = entry_shift(&entries[n], masked);
		uint16_t tag = le16toh(entries[n].tag);

		if (tag != ACL_USER_OBJ && tag != ACL_GROUP_OBJ && tag != ACL_OTHER)
			more_than_mode = true;
		if (shift < 0)
			continue;
		perm |= (mode_t)(le16toh(entries[n].perm) & 7) << shift;
		found |= 1U << shift;
	}
	if (found != (1U << 6 | 1U << 3 | 1U << 0))
		return -EINVAL;
	*mode = (*mode & ~(mode_t)0777) | perm;
	return more_than_mode;
}

int acl_chmod(void *acl, size_t size, mode_t mode)
{
	struct acl_entry *entries;
	size_t count;
	bool masked;
	int err = acl_entries(acl, size, &entries, &count);

	if (err < 0)
		return err;
	masked = has_mask(entries, count);
	for (size_t n = 0; n < count; n++) {
		int shift = entry_shift(&entries[n], masked);

		if (shift >= 0)
			entries[n].perm = htole16((uint16_t)(mode >> shift & 7));
	}
	return 0;
}
