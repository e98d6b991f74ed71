/* SPDX-License-Identifier: MIT */
/*
 * Open directories and their listings.
 */
#include <errno.h>
#include <string.h>

#include "server/server_private.h"
#include "util/base.h"

/* The engine reads a directory without its being opened: there is nothing to remember. */
void server_opendir(void *ctx, struct fuse_request *req)
{
	struct server *s = ctx;
	struct fuse_open_out out = { 0 };

	if (s->silent_opendir && (req->conn->flags & FUSE_NO_OPENDIR_SUPPORT)) {
		fuse_reply_error(req, -ENOSYS);
		return;
	}
	/* The kernel drops its cached listing itself when it changes the directory. */
	if (s->coherent)
		out.open_flags = FOPEN_CACHE_DIR | FOPEN_KEEP_CACHE;
	fuse_reply(req, &out, sizeof(out));
}

void server_releasedir(void *ctx, struct fuse_request *req)
{
	server_reply_status(req, 0);
}

struct listing {
	struct server *server;
	uint8_t *buffer;
	size_t size;
	size_t used;
	bool plus;
};

static bool fill(void *ctx, const struct ovl_dirent *entry)
{
	struct listing *list = ctx;
	size_t head = list->plus ? FUSE_NAME_OFFSET_DIRENTPLUS : FUSE_NAME_OFFSET;
	size_t bare = head + entry->name_len;
	size_t size = FUSE_DIRENT_ALIGN(bare);
	uint8_t *at = list->buffer + list->used;
	struct fuse_dirent *dirent = (void *)at;

	if (size > list->size - list->used)
		return false;
	if (list->plus) {
		struct fuse_direntplus *plus = (void *)at;

		/* Without an entry (nodeid 0) the kernel takes the name only. */
		if (!entry->entry ||
		    server_fill_entry(list->server, &plus->entry_out, entry->entry))
			memset(&plus->entry_out, 0, sizeof(plus->entry_out));
		dirent = &plus->dirent;
	}
	dirent->ino = server_show_ino(list->server, entry->ino);
	dirent->off = (uint64_t)entry->next;
	dirent->namelen = (uint32_t)entry->name_len;
	dirent->type = entry->type;
	memcpy(dirent->name, entry->name, entry->name_len);
	memset(at + bare, 0, size - bare);
	list->used += size;
	return true;
}

/* The kernel did not get the listing: none of its entries is looked up. */
static void forget_listing(struct server *s, const struct listing *list)
{
	size_t at = 0;

	while (list->plus && at < list->used) {
		const struct fuse_direntplus *plus = (const void *)(list->buffer + at);

		if (plus->entry_out.nodeid)
			server_forget_nodeid(s, plus->entry_out.nodeid, 1);
		at += FUSE_DIRENTPLUS_SIZE(plus);
	}
}

/* READDIR and READDIRPLUS. */
void server_readdir(void *ctx, struct fuse_request *req)
{
	struct server *s = ctx;
	const struct fuse_read_in *arg = req->arg;
	struct listing list = { .server = s,
				.buffer = req->reply,
				.size = min((size_t)arg->size, req->reply_size),
				.plus = req->in->opcode == FUSE_READDIRPLUS };
	int err = ovl_readdir(s->o, server_node(s, req->in->nodeid), (off_t)arg->offset, list.plus,
			      fill, &list);

	/* What was read before an error is good; the error comes again with the next call. */
	if (err < 0 && list.used == 0)
		server_reply_status(req, err);
	else if (fuse_reply(req, list.buffer, list.used) < 0)
		forget_listing(s, &list);
}
