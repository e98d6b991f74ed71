/* SPDX-License-Identifier: MIT */
/*
 * What a mount says of itself: xattrs of its root, to be read with getxattr(2). Others than root
 * and the user who mounted get EPERM.
 *
 * STATUS_TEXT: lines of "key=value", as ovl_describe() writes them and then the server's own
 * options; EPERM also for processes outside of the server's pid namespace. A value that does not
 * fit into an xattr (64 KiB) is E2BIG; with ".N" after the name it comes in blocks of STATUS_BLOCK
 * bytes, from 0 on; a shorter one, or an empty one, is the last. STATUS_SYNC: empty; when it is
 * answered all of upper is on disk.
 */
#pragma once

#define STATUS_PREFIX "system.plyfs."
#define STATUS_TEXT   "system.plyfs.status"
#define STATUS_SYNC   "system.plyfs.sync"
#define STATUS_BLOCK  32768
