/* SPDX-License-Identifier: MIT */
/*
 * What the server says of itself, as xattrs of the mount's root that no list shows and no layer can
 * hold: no filesystem stores foreign names in system.*. The paths of layers are nobody's business
 * in a container, so only root and the user who mounted are answered, and only processes of the
 * server's own pid namespace: a container's root is often the same user.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "server/server_private.h"
#include "server/status.h"
#include "util/base.h"

/* The numbers after @field in /proc/PROCESS/status: how many, and at most the first @most. */
static int numbers(const char *process, const char *field, long *out, int most)
{
	autofree char *line = NULL;
	char path[64];
	size_t room = 0;
	int count = 0;

	snprintf(path, sizeof(path), "/proc/%s/status", process);

	autofile FILE *f = fopen(path, "re");

	while (f && getline(&line, &room, f) > 0) {
		char *save = NULL;

		if (strncmp(line, field, strlen(field)) != 0)
			continue;
		for (char *s = strtok_r(line + strlen(field), " \t\n", &save); s;
		     s = strtok_r(NULL, " \t\n", &save))
			if (count++ < most)
				out[count - 1] = strtol(s, NULL, 10);
		break;
	}
	return count;
}

/* /proc may be another namespace's, and then numbers in it mean others. */
static bool proc_is_ours(void)
{
	long own = 0;

	return numbers("self", "NSpid:", &own, 1) == 1 && own == getpid();
}

/* It waits for our answer, so its number is still its own. 0: it is outside of our namespace. */
static bool in_our_pid_namespace(uint32_t pid)
{
	char name[16];
	long first = 0;

	snprintf(name, sizeof(name), "%u", pid);
	return pid && proc_is_ours() && numbers(name, "NSpid:", &first, 1) == 1 &&
	       first == (long)pid;
}

/* With FUSE_ALLOW_IDMAP the kernel does not say who it is: real, effective, saved, fs. */
static bool find_uid(const struct fuse_request *req, uid_t *uid)
{
	char name[16];
	long ids[4];

	*uid = req->in->uid;
	if (*uid != FUSE_INVALID_UIDGID)
		return true;
	snprintf(name, sizeof(name), "%u", req->in->pid);
	if (!req->in->pid || !proc_is_ours() || numbers(name, "Uid:", ids, 4) != 4)
		return false;
	*uid = (uid_t)ids[3];
	return true;
}

static bool is_known(const struct server *s, const struct fuse_request *req)
{
	uid_t uid;

	return find_uid(req, &uid) && (uid == 0 || uid == s->owner);
}

/* What the engine does not know of ends "options=", its last line, and has a line each. */
static void put_view(const char *view, FILE *out)
{
	if (!view) {
		fputc('\n', out);
		return;
	}
	fprintf(out, ",%s\n", view);
	for (size_t len; *view; view += len + (view[len] == ',')) {
		len = strcspn(view, ",");
		fprintf(out, "%.*s%s\n", (int)len, view, memchr(view, '=', len) ? "" : "=on");
	}
}

/* The text, with malloc(). */
static int make_text(const struct server *s, char **text, size_t *size)
{
	FILE *out = open_memstream(text, size);
	int err;

	if (!out)
		return -ENOMEM;
	err = ovl_describe(s->o, out);
	put_view(s->view, out);
	fprintf(out, "allow_other=%s\nallow_root=%s\nio=%s\n", s->allow_other ? "on" : "off",
		s->allow_root ? "on" : "off",
		s->io == SERVER_IO_PASSTHROUGH ? "passthrough" : "cached");
	fprintf(out, "transport=%s\n", fuse_session_over_uring(s->session) ? "uring" : "dev");
	if (fclose(out) != 0 && !err)
		err = -ENOMEM;
	return err;
}

/* All of it, or with a number after the name so many blocks later, one block. */
static ssize_t status_value(const struct server *s, const char *number, void *value, size_t size)
{
	autofree char *text = NULL;
	size_t start = 0;
	size_t len = 0;
	int err = make_text(s, &text, &len);

	if (err)
		return err;
	if (*number) {
		char *end;
		unsigned long block = strtoul(number + 1, &end, 10);

		if (*number != '.' || number[1] < '0' || number[1] > '9' || *end)
			return -ENODATA;
		start = block < len / STATUS_BLOCK + 1 ? block * STATUS_BLOCK : len;
		len = min(len - start, (size_t)STATUS_BLOCK);
	}
	if (size && len > size)
		return -ERANGE;
	if (size)
		memcpy(value, text + start, len);
	return (ssize_t)len;
}

bool server_status_is_asked(const struct fuse_request *req)
{
	return req->in->nodeid == OVL_ROOT &&
	       !strncmp(req->string[0], STATUS_PREFIX, strlen(STATUS_PREFIX));
}

ssize_t server_status(const struct server *s, const struct fuse_request *req, size_t size)
{
	const char *name = req->string[0];

	if (!is_known(s, req))
		return -EPERM;
	if (!strcmp(name, STATUS_SYNC))
		return ovl_syncfs(s->o);
	if (!in_our_pid_namespace(req->in->pid))
		return -EPERM;
	if (!strncmp(name, STATUS_TEXT, strlen(STATUS_TEXT)))
		return status_value(s, name + strlen(STATUS_TEXT), req->reply, size);
	return -ENODATA;
}
