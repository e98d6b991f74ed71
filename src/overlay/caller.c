// SPDX-License-Identifier: MIT
/*
 * What FUSE does not say about a caller, read from /proc where it matters: rarely. A caller that
 * cannot be read (gone, or in another pid namespace) has no rights beyond what its ids give it.
 */
#include <linux/capability.h>
#include <signal.h>

#include "overlay/internal.h"
#include "util/idmap.h"

/* Numbers of callers mean nothing in the /proc of another pid namespace. */
static bool proc_is_ours(void)
{
	char own[16];
	char self[16];
	ssize_t len = readlink("/proc/self", self, sizeof(self));

	return len == snprintf(own, sizeof(own), "%d", getpid()) && !memcmp(own, self, (size_t)len);
}

/* Calls @look for each line of /proc/PID/@file until it returns true; whether it did. */
static bool scan(const struct ovl_caller *caller, const char *file,
		 bool (*look)(const char *line, void *arg), void *arg)
{
	autofree char *line = NULL;
	autofile FILE *f = NULL;
	char path[64];
	size_t room = 0;

	if (caller->pid <= 0 || !proc_is_ours())
		return false;
	snprintf(path, sizeof(path), "/proc/%d/%s", caller->pid, file);
	f = fopen(path, "re");
	while (f && getline(&line, &room, f) > 0)
		if (look(line, arg))
			return true;
	return false;
}

static const char *field(const char *line, const char *name)
{
	size_t len = strlen(name);

	return strncmp(line, name, len) ? NULL : line + len;
}

static bool sees_sigkill(const char *line, void *arg)
{
	const char *mask = field(line, "SigPnd:");

	if (!mask)
		mask = field(line, "ShdPnd:");
	return mask && (strtoull(mask, NULL, 16) >> (SIGKILL - 1) & 1);
}

static bool is_there(const struct ovl_caller *caller)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d", caller->pid);
	return access(path, F_OK) == 0;
}

bool caller_killed(const struct ovl_caller *caller)
{
	if (!caller || !caller->interrupted || !atomic_load(caller->interrupted))
		return false;
	return !is_there(caller) || scan(caller, "status", sees_sigkill, NULL);
}

static bool sees_capability(const char *line, void *arg)
{
	const char *mask = field(line, "CapEff:");

	return mask && (strtoull(mask, NULL, 16) >> *(unsigned int *)arg & 1);
}

/* 0: it cannot be known. */
static ino_t userns_of(const struct ovl_caller *caller)
{
	char path[64];
	struct stat st;

	if (caller->pid <= 0 || !proc_is_ours())
		return 0;
	snprintf(path, sizeof(path), "/proc/%d/ns/user", caller->pid);
	return stat(path, &st) < 0 ? 0 : st.st_ino;
}

static bool in_our_userns(const struct ovl_caller *caller)
{
	struct stat ours;

	return stat("/proc/self/ns/user", &ours) == 0 && ours.st_ino == userns_of(caller);
}

bool caller_has(const struct ovl_caller *caller, unsigned int capability)
{
	return in_our_userns(caller) && scan(caller, "status", sees_capability, &capability);
}

bool caller_keeps_setid(const struct ovl_caller *caller)
{
	unsigned int capability = CAP_FSETID;

	return userns_of(caller) == USER_NS_INIT_INO &&
	       scan(caller, "status", sees_capability, &capability);
}

/* Numbers of /proc are those of our user namespace: what is shown, not what is on disk. */
static uint32_t shown(const struct id_map *map, uint32_t id)
{
	return map ? id_map_show(map, id) : id;
}

/* Of "Gid: real effective saved fs" only the last counts. */
static bool sees_group(const char *line, void *arg)
{
	const char *p = field(line, "Groups:");
	bool all = p;
	gid_t wanted = *(gid_t *)arg;
	unsigned long gid = ID_NONE;

	if (!p)
		p = field(line, "Gid:");
	while (p && *p) {
		char *end;
		unsigned long next = strtoul(p, &end, 10);

		if (end == p)
			break;
		gid = next;
		if (all && gid == wanted)
			return true;
		p = end;
	}
	return !all && gid == wanted;
}

/* A line of uid_map or gid_map; @arg is an id of ours. */
static bool sees_mapped(const char *line, void *arg)
{
	uint32_t id = *(uint32_t *)arg;
	uint32_t inside, outside, count;

	return sscanf(line, "%u %u %u", &inside, &outside, &count) == 3 && id - outside < count;
}

/* capable_wrt_inode_uidgid(CAP_FSETID) */
static bool may_fsetid(const struct ovl_caller *caller, uint32_t uid, uint32_t gid)
{
	unsigned int capability = CAP_FSETID;

	if (!scan(caller, "status", sees_capability, &capability))
		return false;
	return in_our_userns(caller) || (scan(caller, "uid_map", sees_mapped, &uid) &&
					 scan(caller, "gid_map", sees_mapped, &gid));
}

bool caller_keeps_sgid(const struct ovl_caller *caller, const struct statx *st)
{
	uint32_t uid = shown(caller->uids, st->stx_uid);
	uint32_t gid = shown(caller->gids, st->stx_gid);

	if (gid != ID_NONE && scan(caller, "status", sees_group, &gid))
		return true;
	return uid != ID_NONE && gid != ID_NONE && may_fsetid(caller, uid, gid);
}
