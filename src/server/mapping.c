/* SPDX-License-Identifier: MIT */
/*
 * What the mount shows otherwise than it is in the layers (-o uidmapping=, squash_to_uid=,
 * static_nlink, ino32_t, noacl; fuse-overlayfs' counts of links), and back. Each request passes
 * here once or not at all, so the engine knows nothing but the layers' numbers.
 *
 * A number that nothing stands for is shown to the kernel as -1, its own "nobody": stat(2) then
 * gives kernel.overflowuid, and nobody may write or change such an object, as through the kernel's
 * idmapped mounts. (The overflow id itself would make it belong to whoever has that number.)
 */
#include <errno.h>
#include <string.h>

#include "server/server_private.h"

/* On disk. kernel.overflowuid, which nobody changes. */
#define NOBODY 65534

/* A mode that an ACL which nobody checks cannot be less than. */
static void show_mode(const struct server *s, ovl_node node, struct statx *st)
{
	_Alignas(8) char acl[4096];
	ssize_t size;

	if (S_ISLNK(st->stx_mode) || !(st->stx_mode & 077))
		return;
	size = ovl_getxattr(s->o, node, IDS_ACL_ACCESS, acl, sizeof(acl));
	if (size >= 0)
		st->stx_mode = (uint16_t)ids_mode_for_acl(st->stx_mode, acl, (size_t)size);
	else if (size != -ENODATA && size != -EOPNOTSUPP)
		st->stx_mode &= (uint16_t)~077;
}

/* United directories have no count of their own; 1 tells find(1) and others that it is unknown. */
static void show_links(const struct server *s, ovl_node node, struct statx *st)
{
	uint32_t links;

	if (s->static_nlink)
		st->stx_nlink = 1;
	else if (st->stx_nlink == 1 && ovl_count_links(s->o, node, &links) == 0)
		st->stx_nlink = links;
}

void server_show_attr(const struct server *s, ovl_node node, struct statx *st)
{
	if (s->hides_acl)
		show_mode(s, node, st);
	if (s->uids)
		st->stx_uid = id_map_show(s->uids, st->stx_uid);
	if (s->gids)
		st->stx_gid = id_map_show(s->gids, st->stx_gid);
	if ((s->static_nlink || s->counts_links) && S_ISDIR(st->stx_mode))
		show_links(s, node, st);
	st->stx_ino = server_show_ino(s, st->stx_ino);
}

/*
 * The root of our user namespace is who prepares a container's tree from outside: podman makes a
 * file and then gives it to the container's root. As in fuse-overlayfs it is nobody's meanwhile.
 */
static uint32_t creator_id(const struct id_map *map, uint32_t id, bool root)
{
	uint32_t disk = map ? id_map_store(map, id) : id;

	return disk == ID_NONE && root ? NOBODY : disk;
}

int server_creator(const struct server *s, const struct fuse_request *req, uint32_t umask,
		   struct ovl_caller *out)
{
	bool root = req->in->uid == 0;

	*out = server_caller(s, req);
	out->umask = umask & 0777;
	out->uid = creator_id(s->uids, req->in->uid, root);
	out->gid = creator_id(s->gids, req->in->gid, root);
	return out->uid == ID_NONE || out->gid == ID_NONE ? -EOVERFLOW : 0;
}

/* Where everything is shown as somebody's, nothing can be given to anybody else. */
static int store_id(const struct id_map *map, uint32_t *id)
{
	if (map->squash && *id != map->squash_to)
		return -EINVAL;
	*id = id_map_store(map, *id);
	if (*id != ID_NONE)
		return 0;
	return map->squash ? 0 : -EOVERFLOW;
}

int server_store_owner(const struct server *s, struct ovl_setattr *set)
{
	int err = 0;

	if ((set->valid & OVL_SET_UID) && s->uids)
		err = store_id(s->uids, &set->uid);
	if (!err && (set->valid & OVL_SET_GID) && s->gids)
		err = store_id(s->gids, &set->gid);
	return err;
}

bool server_leave_owner(const struct server *s, struct ovl_setattr *set)
{
	bool uid = (set->valid & OVL_SET_UID) && set->uid != ID_NONE && s->uids && s->uids->squash;
	bool gid = (set->valid & OVL_SET_GID) && set->gid != ID_NONE && s->gids && s->gids->squash;

	if (uid)
		set->uid = ID_NONE;
	if (gid)
		set->gid = ID_NONE;
	return uid || gid;
}

/* In this order nobody has a right for a moment that neither the ACL nor the mode gives him. */
int server_replace_acl(const struct server *s, const struct ovl_caller *caller, ovl_node node,
		       mode_t mode)
{
	const struct ovl_setattr set = { .valid = OVL_SET_MODE, .mode = mode & ~(mode_t)077 };
	ssize_t size = ovl_getxattr(s->o, node, IDS_ACL_ACCESS, NULL, 0);
	struct statx st;
	int err;

	if (size == -ENODATA || size == -EOPNOTSUPP)
		return 0;
	if (size < 0)
		return (int)size;
	err = ovl_setattr(s->o, caller, node, &set, &st);
	return err ? err : ovl_removexattr(s->o, caller, node, IDS_ACL_ACCESS);
}
