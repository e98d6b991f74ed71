// SPDX-License-Identifier: MIT
/*
 * Directories in which case does not matter (chattr +F). A union of them needs the Unicode tables
 * of the filesystem beneath, to find in one layer what another one hides under another spelling:
 * they are refused as layers, and not shown inside of them. (The kernel's overlayfs can unite
 * layers all of whose directories are such; it refuses mixtures in the same way.)
 */
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <sys/ioctl.h>

#include "overlay/internal.h"
#include "util/at.h"
#include "util/log.h"

#ifndef F2FS_SUPER_MAGIC
#define F2FS_SUPER_MAGIC 0xF2F52010
#endif

/* Which filesystems have them, and where the kernel says that it was built for it. */
static const struct {
	uint32_t magic;
	const char *feature;
} folding[] = {
	{ EXT4_SUPER_MAGIC, "/sys/fs/ext4/features/casefold" },
	{ F2FS_SUPER_MAGIC, "/sys/fs/f2fs/features/casefold" },
	{ TMPFS_MAGIC, "/sys/fs/tmpfs/features/casefold" },
};

static bool kernel_folds(uint32_t magic)
{
	for (size_t n = 0; n < ARRAY_SIZE(folding); n++)
		if (folding[n].magic == magic)
			return access(folding[n].feature, F_OK) == 0;
	return false;
}

/*
 * Whether upper's filesystem was made for it: tried on an empty directory, because looking at every
 * directory costs a third of a lookup.
 */
static bool upper_folds(struct ovl *o)
{
	int work = layer_fd(o->work);
	char name[FMT_TEMP_NAME_MAX];
	int flags = FS_CASEFOLD_FL;
	bool folds = false;
	int fd;

	temp_name(o, name);
	if (mkdirat(work, name, 0700) < 0)
		return true;
	fd = at_open(work, name, O_RDONLY | O_DIRECTORY);
	folds = fd < 0 || ioctl(fd, FS_IOC_SETFLAGS, &flags) == 0;
	close_fd(fd);
	at_unlink(work, name, AT_REMOVEDIR);
	return folds;
}

void casefold_init(struct ovl *o)
{
	const struct layer *upper = o->has_upper ? &o->layers[0] : NULL;
	bool checked = upper && kernel_folds(upper->magic) && !upper_folds(o);

	for (unsigned int n = upper ? 0 : 1; n < o->layer_count; n++) {
		struct layer *layer = &o->layers[n];

		layer->may_fold = kernel_folds(layer->magic) &&
				  !(checked && layer->dev == upper->dev);
	}
}

bool casefold_is(struct layer_ref *at, const char *name)
{
	int flags = 0;

	return at->layer->ops->query(at, name, FS_IOC_GETFLAGS, &flags) == 0 &&
	       (flags & FS_CASEFOLD_FL);
}

int casefold_refuse(struct layer_ref *at, const char *name)
{
	if (!casefold_is(at, name))
		return 0;
	log_warning("'%s' is not shown: case does not matter in it (chattr +F)", name);
	return -ESTALE;
}
