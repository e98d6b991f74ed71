// SPDX-License-Identifier: MIT
/*
 * What FUSE does not say about a caller, read from /proc where it matters: rarely. A caller that
 * cannot be read (gone, or in another pid namespace) has no rights beyond what its ids give it.
 */
#include <signal.h>

#include "overlay/internal.h"

/* Calls @look for each line of /proc/PID/status until it returns true; whether it did. */
static bool scan_status(const struct ovl_caller *caller, bool (*look)(const char *line, void *arg),
			void *arg)
{
	autofree char *line = NULL;
	autofile FILE *f = NULL;
	char path[64];
	size_t room = 0;

	if (caller->pid <= 0)
		return false;
	snprintf(path, sizeof(path), "/proc/%d/status", caller->pid);
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
	return !is_there(caller) || scan_status(caller, sees_sigkill, NULL);
}

static bool sees_capability(const char *line, void *arg)
{
	const char *mask = field(line, "CapEff:");

	return mask && (strtoull(mask, NULL, 16) >> *(unsigned int *)arg & 1);
}

bool caller_has(const struct ovl_caller *caller, unsigned int capability)
{
	char path[64];
	struct stat ours;
	struct stat theirs;

	snprintf(path, sizeof(path), "/proc/%d/ns/user", caller->pid);
	if (stat("/proc/self/ns/user", &ours) < 0 || stat(path, &theirs) < 0 ||
	    ours.st_ino != theirs.st_ino)
		return false;
	return scan_status(caller, sees_capability, &capability);
}

static bool sees_group(const char *line, void *arg)
{
	const char *p = field(line, "Groups:");
	gid_t wanted = *(gid_t *)arg;

	while (p && *p) {
		char *end;
		unsigned long gid = strtoul(p, &end, 10);

		if (end == p)
			break;
		if (gid == wanted)
			return true;
		p = end;
	}
	return false;
}

bool caller_in_group(const struct ovl_caller *caller, gid_t gid)
{
	return caller->gid == gid || scan_status(caller, sees_group, &gid);
}
