// SPDX-License-Identifier: MIT
/*
 * verity=: a metacopy may hold the fs-verity digest of its data, and then shows no other data. The
 * filesystem of the data vouches for each block of it; here is only seen to it that it is the same
 * file. Messages and errors are those of the kernel's overlayfs.
 */
#include <linux/fsverity.h>
#include <sys/ioctl.h>

#include "overlay/internal.h"
#include "util/log.h"

/* -ENODATA: the file has none. */
static int measure(struct layer_ref *file, struct fmt_metacopy *out)
{
	union {
		struct fsverity_digest d;
		uint8_t space[sizeof(struct fsverity_digest) + FMT_DIGEST_MAX];
	} buf = { .d.digest_size = FMT_DIGEST_MAX };

	if (layer_fd(file) < 0)
		return -ENODATA;
	if (ioctl(layer_fd(file), FS_IOC_MEASURE_VERITY, &buf) < 0)
		return errno == ENOTTY || errno == EOPNOTSUPP || errno == ENODATA ? -ENODATA : -EIO;
	if (buf.d.digest_algorithm > UINT8_MAX || buf.d.digest_size > FMT_DIGEST_MAX)
		return -EIO;
	out->algorithm = (uint8_t)buf.d.digest_algorithm;
	out->digest_size = (uint8_t)buf.d.digest_size;
	memcpy(out->digest, buf.d.digest, buf.d.digest_size);
	return 0;
}

int verity_measure(struct ovl *o, struct layer_ref *data, struct fmt_metacopy *out)
{
	int err;

	*out = (struct fmt_metacopy){ 0 };
	if (o->features.verity == OVL_VERITY_OFF)
		return 0;
	err = measure(data, out);
	return err == -ENODATA ? 0 : err;
}

/* What is wrong with the data of a metacopy; NULL: nothing. */
static const char *find_fault(const struct ovl *o, const struct fmt_metacopy *mark,
			      struct layer_ref *data)
{
	struct fmt_metacopy actual = { 0 };

	if (!mark->digest_size || !mark->algorithm)
		return o->features.verity == OVL_VERITY_REQUIRE ? "the metacopy holds no digest"
								: NULL;
	if (measure(data, &actual) < 0)
		return "its data has no fs-verity digest";
	if (actual.algorithm != mark->algorithm || actual.digest_size != mark->digest_size ||
	    memcmp(actual.digest, mark->digest, mark->digest_size) != 0)
		return "its data has another fs-verity digest";
	return NULL;
}

int verity_check(struct ovl *o, struct ovl_inode *i, struct layer_ref *at, const char *name,
		 struct layer_ref *data)
{
	uint8_t value[FMT_METACOPY_MAX];
	struct fmt_metacopy mark;
	const char *fault;
	ssize_t n;
	int err;

	if (o->features.verity == OVL_VERITY_OFF || inode_has(i, INODE_VERIFIED))
		return 0;
	n = mark_get(o, at, name, FMT_METACOPY, value, sizeof(value));
	if (n < 0)
		return (int)n;
	/* As for the kernel a value without room for a digest says nothing else either. */
	err = fmt_metacopy_decode(value, n > FMT_METACOPY_MIN ? (size_t)n : 0, &mark);
	if (err < 0)
		return err;
	fault = find_fault(o, &mark, data);
	if (fault) {
		log_warning("verity: '%s' is not shown: %s", i->names ? i->names->text : "", fault);
		return -EIO;
	}
	inode_set(i, INODE_VERIFIED);
	return 0;
}

int verity_check_data(struct ovl *o, struct ovl_inode *i)
{
	autoref struct layer_ref *data = NULL;

	if (o->features.verity == OVL_VERITY_OFF || !inode_is_metacopy(i) ||
	    inode_has(i, INODE_VERIFIED))
		return 0;
	return file_ref(o, i, false, &data);
}
