/* SPDX-License-Identifier: MIT */
/*
 * Exit statuses: of the verbs that mount those of mount(8), because mount(8) passes ours on.
 */
#pragma once

enum exit_status {
	EXIT_OK = 0,
	EXIT_USAGE = 1,  /* called wrongly: unknown or contradictory arguments and options */
	EXIT_SYSTEM = 2, /* out of memory, no process to be had */
	EXIT_MOUNT = 32, /* the mount failed */
};

/* Those of fsck(8), which fsck and convert add up; of what convert changes only a failure
 * counts. 128, a library's failure, does not occur. */
enum fsck_exit_status {
	FSCK_EXIT_OK = 0,
	FSCK_EXIT_REPAIRED = 1,
	FSCK_EXIT_LEFT = 4,      /* errors were left as they are */
	FSCK_EXIT_OPERATION = 8, /* the layers are in use, or could not be opened or read */
	FSCK_EXIT_USAGE = 16,
	FSCK_EXIT_CANCELLED = 32,
};
