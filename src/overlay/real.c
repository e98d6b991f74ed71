// SPDX-License-Identifier: MIT
/* The real objects behind those of the union, for tools that work on layers. */
#include <fcntl.h>

#include "overlay/internal.h"

int ovl_open_real(struct ovl *o, ovl_node node, unsigned int *layer)
{
	struct ovl_inode *i = inode_get(o, node);
	struct layer_ref *ref = NULL;
	struct reach r;
	int fd;
	int err = i ? reach(o, i, &r) : -ESTALE;

	if (err == 0) {
		err = open_ref(o, r.at, r.name, LAYER_OPEN_PATH, &ref);
		*layer = inode_top_layer(i);
		reach_done(i, &r);
	}
	inode_put(o, i);
	if (err < 0)
		return err;
	fd = layer_fd(ref) < 0 ? -EOPNOTSUPP : fcntl(layer_fd(ref), F_DUPFD_CLOEXEC, 0);
	if (fd < 0 && fd != -EOPNOTSUPP)
		fd = -errno;
	layer_ref_put(ref);
	return fd;
}
