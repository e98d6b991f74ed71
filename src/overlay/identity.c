// SPDX-License-Identifier: MIT
/*
 * Uuids: of the filesystems that layers are on, which say where a file handle leads, and of the
 * union itself, which upper keeps for as long as it is used.
 */
#include <linux/magic.h>
#include <sys/random.h>

#include "overlay/internal.h"
#include "util/at.h"

/* Subvolumes of a btrfs have an st_dev each. */
static bool on_same_fs(const struct layer *a, const struct layer *b)
{
	return a->dev == b->dev || (a->magic == BTRFS_SUPER_MAGIC && b->magic == a->magic &&
				    !memcmp(a->uuid, b->uuid, sizeof(a->uuid)));
}

static bool has_uuid(const struct layer *layer)
{
	static const uint8_t none[sizeof(layer->uuid)];

	return memcmp(layer->uuid, none, sizeof(none)) != 0;
}

/*
 * Whether a lower layer may be changed or exchanged between mounts: nothing in upper depends on
 * what it holds but names.
 */
static bool lower_may_change(const struct ovl *o)
{
	const struct ovl_features *f = &o->features;

	return !f->index && !f->metacopy && f->redirect != OVL_REDIRECT_ON &&
	       f->xino != OVL_XINO_ON;
}

/*
 * Whether the uuid in a handle does not say which layer it is of: another filesystem has it too. An
 * image without one, as of squashfs, may be another one today.
 */
static bool is_ambiguous(const struct ovl *o, const struct layer *layer)
{
	if (o->has_upper && on_same_fs(&o->layers[0], layer))
		return false;
	if (!has_uuid(layer) && lower_may_change(o))
		return true;
	for (unsigned int n = 1; n <= o->lower_count; n++)
		if (!on_same_fs(&o->layers[n], layer) &&
		    !memcmp(o->layers[n].uuid, layer->uuid, sizeof(layer->uuid)))
			return true;
	return false;
}

static bool spans_filesystems(const struct ovl *o)
{
	for (unsigned int n = 1; n <= o->lower_count; n++)
		if (!on_same_fs(&o->layers[0], &o->layers[n]))
			return true;
	return false;
}

/* Numbers that are to last have to be found again by a handle. */
static void settle_xino(struct ovl *o)
{
	bool lasting = !o->no_xattr;

	for (unsigned int n = 1; n < o->layer_count && o->has_upper; n++)
		lasting = lasting && o->layers[n].can_decode && !o->layers[n].ambiguous_uuid;
	if (!lasting && o->features.xino == OVL_XINO_AUTO)
		o->features.xino = OVL_XINO_OFF;
}

void identity_init(struct ovl *o)
{
	struct ovl_features *f = &o->features;

	for (unsigned int n = 1; n <= o->lower_count && o->has_upper; n++)
		o->layers[n].ambiguous_uuid = is_ambiguous(o, &o->layers[n]);
	settle_xino(o);
	if (f->uuid != OVL_UUID_OFF)
		return;
	if (!o->has_upper || spans_filesystems(o)) {
		f->uuid = OVL_UUID_NULL;
		return;
	}
	/* Handles are stored without one, and match without one. */
	for (unsigned int n = 0; n < o->layer_count; n++)
		memset(o->layers[n].uuid, 0, sizeof(o->layers[n].uuid));
}

static int make_uuid(unsigned char uuid[16])
{
	if (getrandom(uuid, 16, GRND_NONBLOCK) != 16)
		return -EIO;
	uuid[6] = (unsigned char)((uuid[6] & 0x0f) | 0x40); /* RFC 9562: version 4, random */
	uuid[8] = (unsigned char)((uuid[8] & 0x3f) | 0x80);
	return 0;
}

/* The uuid= that is in effect. */
static enum ovl_uuid settle_uuid(struct ovl *o, enum ovl_uuid wanted)
{
	struct layer_ref *root = o->layers[0].root;
	unsigned char uuid[16];
	ssize_t n = layer_getxattr(root, "", xname(o, FMT_UUID), uuid, sizeof(uuid));

	if (n == sizeof(uuid))
		return wanted;
	if (n != -ENODATA)
		return OVL_UUID_NULL;
	if (wanted == OVL_UUID_AUTO) {
		/* One that was used without stays without. */
		n = layer_getxattr(root, "", xname(o, FMT_IMPURE), NULL, 0);
		if (n > 0 || (n < 0 && n != -ENODATA))
			return OVL_UUID_NULL;
	}
	if (make_uuid(uuid) < 0 || mark_set(o, root, "", FMT_UUID, uuid, sizeof(uuid)) < 0)
		return OVL_UUID_NULL;
	return OVL_UUID_ON;
}

void identity_set_uuid(struct ovl *o)
{
	enum ovl_uuid wanted = o->features.uuid;

	if (wanted != OVL_UUID_AUTO && wanted != OVL_UUID_ON)
		return;
	o->features.uuid = o->no_xattr ? OVL_UUID_NULL : settle_uuid(o, wanted);
}
