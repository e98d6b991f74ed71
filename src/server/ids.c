/* SPDX-License-Identifier: MIT */
#include "server/ids.h"

#include <endian.h>
#include <errno.h>
#include <linux/capability.h>
#include <linux/posix_acl.h>
#include <linux/posix_acl_xattr.h>
#include <string.h>

#include "util/base.h"

enum ids_xattr ids_xattr_kind(const char *name)
{
	if (likely(name[0] != 's'))
		return IDS_XATTR_PLAIN;
	if (!strcmp(name, IDS_ACL_ACCESS) || !strcmp(name, IDS_ACL_DEFAULT))
		return IDS_XATTR_ACL;
	return strcmp(name, "security.capability") ? IDS_XATTR_PLAIN : IDS_XATTR_CAPABILITY;
}

static uint32_t show(const struct id_map *map, uint32_t id)
{
	return map ? id_map_show(map, id) : id;
}

static uint32_t store(const struct id_map *map, uint32_t id)
{
	return map ? id_map_store(map, id) : id;
}

/* How many entries there are; -EINVAL: no ACL that we know. */
static ssize_t count_entries(const void *value, size_t size)
{
	const struct posix_acl_xattr_header *head = value;
	size_t rest = size - sizeof(*head);

	if (size < sizeof(*head) || le32toh(head->a_version) != POSIX_ACL_XATTR_VERSION ||
	    rest % sizeof(struct posix_acl_xattr_entry))
		return -EINVAL;
	return (ssize_t)(rest / sizeof(struct posix_acl_xattr_entry));
}

static struct posix_acl_xattr_entry *first_entry(void *value)
{
	return (void *)((char *)value + sizeof(struct posix_acl_xattr_header));
}

/* The map of whom an entry names; false when it names nobody. */
static bool names_somebody(const struct posix_acl_xattr_entry *e, const struct id_map *uids,
			   const struct id_map *gids, const struct id_map **map)
{
	unsigned int tag = le16toh(e->e_tag);

	*map = tag == ACL_USER ? uids : gids;
	return tag == ACL_USER || tag == ACL_GROUP;
}

size_t ids_show_acl(const struct id_map *uids, const struct id_map *gids, void *value, size_t size)
{
	ssize_t count = count_entries(value, size);
	struct posix_acl_xattr_entry *in, *out;
	const struct id_map *map;

	if (count < 0)
		return size;
	in = out = first_entry(value);
	for (; count--; in++) {
		struct posix_acl_xattr_entry e = *in;

		if (names_somebody(&e, uids, gids, &map)) {
			uint32_t id = le32toh(e.e_id);

			id = id == ID_NONE ? id : show(map, id);
			if (id == ID_NONE)
				continue;
			e.e_id = htole32(id);
		}
		*out++ = e;
	}
	return (size_t)((char *)out - (char *)value);
}

int ids_store_acl(const struct id_map *uids, const struct id_map *gids, void *value, size_t size)
{
	ssize_t count = count_entries(value, size);
	struct posix_acl_xattr_entry *e;
	const struct id_map *map;

	if (count < 0)
		return 0;
	for (e = first_entry(value); count--; e++) {
		uint32_t id;

		if (!names_somebody(e, uids, gids, &map))
			continue;
		id = store(map, le32toh(e->e_id));
		if (id == ID_NONE)
			return -EINVAL;
		e->e_id = htole32(id);
	}
	return 0;
}

_Static_assert(sizeof(struct vfs_ns_cap_data) == IDS_CAPABILITY_MAX, "vfs_ns_cap_data");

/* Reads any revision; false: none that is known. The root that it names, or 0. */
static bool read_capability(const void *value, size_t size, struct vfs_ns_cap_data *out)
{
	static const struct {
		uint32_t revision;
		size_t size;
	} known[] = {
		{ VFS_CAP_REVISION_1, XATTR_CAPS_SZ_1 },
		{ VFS_CAP_REVISION_2, XATTR_CAPS_SZ_2 },
		{ VFS_CAP_REVISION_3, XATTR_CAPS_SZ_3 },
	};
	uint32_t revision;

	*out = (struct vfs_ns_cap_data){ 0 };
	if (size < sizeof(out->magic_etc) || size > sizeof(*out))
		return false;
	memcpy(out, value, size);
	revision = le32toh(out->magic_etc) & VFS_CAP_REVISION_MASK;
	for (size_t n = 0; n < ARRAY_SIZE(known); n++)
		if (known[n].revision == revision)
			return known[n].size == size;
	return false;
}

/* With @rootid: the third revision, which holds it; else the second, as everybody writes. */
static size_t write_capability(struct vfs_ns_cap_data *cap, uint32_t rootid, void *value)
{
	uint32_t flags = le32toh(cap->magic_etc) & VFS_CAP_FLAGS_MASK;

	cap->magic_etc = htole32(flags | (rootid ? VFS_CAP_REVISION_3 : VFS_CAP_REVISION_2));
	cap->rootid = htole32(rootid);
	memcpy(value, cap, rootid ? XATTR_CAPS_SZ_3 : XATTR_CAPS_SZ_2);
	return rootid ? XATTR_CAPS_SZ_3 : XATTR_CAPS_SZ_2;
}

size_t ids_show_capability(const struct id_map *uids, void *value, size_t size)
{
	struct vfs_ns_cap_data cap;
	uint32_t disk, shown;

	if (!read_capability(value, size, &cap))
		return size;
	disk = le32toh(cap.rootid);
	if (disk == ID_NONE)
		return size;
	shown = show(uids, disk);
	if (uids && uids->squash && disk)
		shown = disk;
	return shown == disk ? size : write_capability(&cap, shown, value);
}

ssize_t ids_store_capability(const struct id_map *uids, void *value, size_t size)
{
	struct vfs_ns_cap_data cap;
	uint32_t shown, disk;

	if (!read_capability(value, size, &cap))
		return (ssize_t)size;
	shown = le32toh(cap.rootid);
	disk = store(uids, shown);
	if (disk == ID_NONE)
		return -EINVAL;
	return shown == disk ? (ssize_t)size : (ssize_t)write_capability(&cap, disk, value);
}

mode_t ids_mode_for_acl(mode_t mode, const void *acl, size_t size)
{
	const struct posix_acl_xattr_entry *e;
	ssize_t count = count_entries(acl, size);
	unsigned int users = 7, groups = 7, group = 7;

	if (count < 0)
		return mode & ~(mode_t)077;
	e = (const void *)((const char *)acl + sizeof(struct posix_acl_xattr_header));
	for (; count--; e++) {
		unsigned int perm = le16toh(e->e_perm);

		switch (le16toh(e->e_tag)) {
		case ACL_USER: users &= perm; break;
		case ACL_GROUP: groups &= perm; break;
		case ACL_GROUP_OBJ: group &= perm; break;
		case ACL_MASK: group &= perm; break;
		default: break;
		}
	}
	/* Named users may be in the group, and whoever is named may be one of the others. The mask
	 * is in the mode's bits of the group. */
	group &= users;
	return mode & ~(mode_t)((7 & ~group) << 3 | (7 & ~(users & groups)));
}

uint64_t server_fold_ino(uint64_t ino)
{
	if (ino <= INT32_MAX)
		return ino;
	/* Fibonacci hashing: the upper bits depend on all of them. */
	return UINT64_C(1) << 31 | (ino * UINT64_C(0x9E3779B97F4A7C15)) >> 33;
}
