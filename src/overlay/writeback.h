/* SPDX-License-Identifier: MIT */
/*
 * Whether upper's filesystem has lost something that was written to it ("writeback error"), asked
 * without writing anything: what a volatile mount has to know before it calls a file synced.
 *
 * Linux keeps it for each superblock and offers two ways to ask: syncfs(2), which first writes all
 * there is, and the kernel's own overlayfs mounted volatile, whose fsync says just this. So where
 * we may mount one, a small one is made in work, on directories that are removed at once: nobody
 * but us sees it, and it is gone with its fd. It is the witness: it sees whatever the filesystem
 * loses, whoever wrote it, from its beginning on. Without one (an ordinary user, a kernel without
 * overlayfs) only a file can be asked what it has lost itself.
 *
 * What was lost once stays lost: every later answer is -EIO.
 *
 * Thread-safe. Errors: negative errno.
 */
#pragma once

#include <stdbool.h>

struct ovl;
struct writeback;

/*
 * Begins to watch upper; work is prepared, @workdir its path. -EIO: something was lost before and
 * nobody was told yet, so that a loss from now on could not be told from it. *@out is owned by the
 * caller.
 */
int writeback_watch(struct ovl *o, const char *workdir, struct writeback **out);
void writeback_end(struct writeback *w);

bool writeback_has_witness(const struct writeback *w);

/*
 * 0, or -EIO when something was lost. @fd: a file of upper that is to be asked where there is no
 * witness; -1: none.
 */
int writeback_status(struct writeback *w, int fd);

/* Writing to upper failed with -EIO. @w may be NULL. */
void writeback_failed(struct writeback *w);
