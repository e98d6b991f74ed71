/* SPDX-License-Identifier: MIT */
/*
 * Exit statuses, those of mount(8), because mount(8) passes ours on.
 */
#pragma once

enum exit_status {
	EXIT_OK = 0,
	EXIT_USAGE = 1,  /* called wrongly: unknown or contradictory arguments and options */
	EXIT_SYSTEM = 2, /* out of memory, no process to be had */
	EXIT_MOUNT = 32, /* the mount failed */
};
