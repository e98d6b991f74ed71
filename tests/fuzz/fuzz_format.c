/* SPDX-License-Identifier: MIT */
/*
 * Any bytes as an xattr value and as an xattr name of a layer: nothing is read beyond them, each
 * answer is one that the format allows, and what is understood goes back to the same bytes.
 */
#include <endian.h>
#include <errno.h>
#include <linux/fs.h>
#include <linux/limits.h>
#include <stdlib.h>
#include <string.h>

#include "overlay/format.h"
#include "overlay/format_override.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(bool truth)
{
	if (!truth)
		abort();
}

static void try_origin(const uint8_t *value, size_t size)
{
	uint8_t out[FMT_FH_MAX];
	struct fmt_fh again;
	struct fmt_fh fh;
	int rc = fmt_fh_decode(value, size, &fh);
	ssize_t len;

	check(rc == 0 || rc == -ENODATA || rc == -EINVAL || rc == -ESTALE);
	if (rc < 0)
		return;
	check(size >= FMT_FH_HEADER && value[1] == 0xfb && value[2] <= size);
	check(fh.fid_len <= sizeof(fh.fid) && fh.fid_len == value[2] - FMT_FH_HEADER);
	len = fmt_fh_encode(&fh, out);
	check(len == value[2]);
	/* version, magic, length; flags are our own; type, uuid, handle */
	check(!memcmp(out, value, 3) && !memcmp(out + 4, value + 4, (size_t)len - 4));
	check(fmt_fh_decode(out, (size_t)len, &again) == 0);
	check(again.type == fh.type && !memcmp(again.uuid, fh.uuid, sizeof(fh.uuid)) &&
	      again.fid_len == fh.fid_len && !memcmp(again.fid, fh.fid, fh.fid_len));
}

static void try_handle(const uint8_t *data, size_t size)
{
	uint8_t out[FMT_FH_MAX];
	struct fmt_fh fh;
	ssize_t len;

	if (size < sizeof(fh))
		return;
	memcpy(&fh, data, sizeof(fh));
	fh.upper = data[size - 1] & 1;
	len = fmt_fh_encode(&fh, out);
	check(len == (fh.fid_len <= sizeof(fh.fid) ? FMT_FH_HEADER + fh.fid_len : -EOVERFLOW));
}

static void try_nlink(const char *value, size_t size)
{
	enum fmt_nlink_base base;
	char out[FMT_NLINK_MAX];
	int again;
	int n;
	int rc = fmt_nlink_decode(value, (ssize_t)size, &base, &n);

	check(rc == 0 || rc == -EINVAL);
	if (rc < 0)
		return;
	check(*value == (base == FMT_NLINK_LOWER ? 'L' : 'U'));
	size = fmt_nlink_encode(base, n, out);
	check(size < FMT_NLINK_MAX);
	check(fmt_nlink_decode(out, (ssize_t)size, &base, &again) == 0 && again == n);
}

static void try_index_name(const char *name)
{
	char again[FMT_INDEX_NAME_MAX];
	uint8_t fh[FMT_FH_MAX];
	ssize_t size = fmt_index_name_decode(name, fh);

	check(size == -EINVAL || size == -ENODATA || (size >= FMT_FH_HEADER && size <= FMT_FH_MAX));
	if (size < 0)
		return;
	fmt_index_name(fh, (size_t)size, again);
	check(!strncasecmp(again, name, strlen(again)));
}

static void try_redirect(const char *value, size_t size)
{
	int rc = fmt_redirect_check(value, size);
	size_t len = strnlen(value, size);

	check(rc == 0 || rc == -EINVAL);
	if (rc < 0)
		return;
	/* one name, which may be empty if there is a value, or a path of names that are not */
	check(size > 0);
	if (len == 0)
		return;
	check(*value == '/' || !memchr(value, '/', len));
	check(value[len - 1] != '/');
	check(!memmem(value, len, "//", 2));
}

static void try_values(const uint8_t *value, size_t size)
{
	unsigned int flags = fmt_protattr_decode((const char *)value, (ssize_t)size);
	enum fmt_opaque opaque = fmt_opaque_value(value, (ssize_t)size);
	struct fmt_metacopy m;
	uint8_t again[FMT_METACOPY_MAX];
	int rc = fmt_metacopy_decode(value, size, &m);
	char out[2];
	size_t n;

	check(opaque == FMT_NOT_OPAQUE || (size == 1 && (*value == 'y' || *value == 'x')));
	check(rc == 0 || rc == -EIO);
	check(rc < 0 || size == 0 || (size >= 4 && size <= 68 && value[0] == 0));
	/* all of it comes back but flags, which nobody has defined */
	if (rc == 0 && fmt_metacopy_encode(&m, again))
		check(again[0] == 0 && again[1] == size && again[3] == value[3] &&
		      !memcmp(again + 4, value + 4, size - 4));
	check(!(flags & ~(unsigned int)(FS_APPEND_FL | FS_IMMUTABLE_FL)));
	n = fmt_protattr_encode(flags, out);
	check(n <= sizeof(out) && fmt_protattr_decode(out, (ssize_t)n) == flags);
}

/* The name goes through every way and comes back, or is refused for a reason that there is. */
static void try_name(bool userxattr, const char *name)
{
	size_t len = strlen(name);
	bool own = fmt_xattr_is_own(userxattr, name);
	int which = fmt_xattr_of(userxattr, name);
	char stored[XATTR_NAME_MAX + 1];
	char shown[XATTR_NAME_MAX + 1];
	int rc;

	check(which >= -1 && which < FMT_XATTR_COUNT);
	check(which < 0 || (own && !strcmp(name, fmt_xattr_name(userxattr, which))));

	rc = fmt_xattr_escape(userxattr, name, stored, sizeof(stored));
	check(rc == 0 || rc == -EOPNOTSUPP || (rc == -EINVAL && own));
	if (rc == 0) {
		check(strlen(stored) == len + (own ? strlen("overlay.") : 0));
		check(fmt_xattr_of(userxattr, stored) == -1);
		check(fmt_xattr_unescape(userxattr, stored, shown, sizeof(shown)) == 0);
		check(!strcmp(shown, name));
	} else if (rc == -EOPNOTSUPP) {
		check(len + (own ? strlen("overlay.") : 0) > XATTR_NAME_MAX);
	}

	rc = fmt_xattr_unescape(userxattr, name, shown, sizeof(shown));
	check(rc == 0 || rc == -ENODATA);
	if (which >= 0)
		check(rc == -ENODATA);
	/* of stored names, which are never longer */
	if (rc == 0 && len <= XATTR_NAME_MAX) {
		check(strlen(shown) <= len);
		/* escaped again it is what was stored, but for the bare prefix: that is no name */
		rc = fmt_xattr_escape(userxattr, shown, stored, sizeof(stored));
		check(rc == 0 ? !strcmp(stored, name) : rc == -EINVAL);
	}
}

/* What is understood of an owner and mode is shown as it was, and comes back when written. */
static void try_override(const char *value, size_t size)
{
	static const mode_t real[] = { S_IFREG, S_IFDIR, S_IFLNK };
	struct fmt_override_stat again;
	struct fmt_override_stat ov;
	char out[FMT_OVERRIDE_MAX];
	int rc = fmt_override_decode(value, size, &ov);

	check(rc == 0 || rc == -EINVAL);
	if (rc < 0)
		return;
	check(size < FMT_OVERRIDE_MAX && ov.uid != UINT32_MAX && ov.gid != UINT32_MAX);
	check(ov.major < 1 << 12 && ov.minor < 1 << 20);
	for (size_t n = 0; n < sizeof(real) / sizeof(*real); n++) {
		struct statx st = { .stx_mode = (uint16_t)(real[n] | 0600) };
		mode_t type = ov.mode & S_IFMT ? ov.mode & S_IFMT : real[n];

		rc = fmt_override_apply(&ov, &st);
		check(rc == 0 || rc == -EIO);
		check((rc == 0) == (type == real[n] || (S_ISREG(real[n]) && !S_ISDIR(type))));
		if (rc < 0)
			continue;
		check(st.stx_mode == (type | (ov.mode & 07777)));
		size = fmt_override_encode(&st, real[n], out);
		check(fmt_override_decode(out, size, &again) == 0);
		check(again.uid == ov.uid && again.gid == ov.gid && again.major == ov.major &&
		      again.minor == ov.minor);
		check(fmt_override_apply(&again, &st) == 0 && (st.stx_mode & S_IFMT) == type);
	}
}

/* A name is nobody's, or kept under one that is, and found again there. */
static void try_override_name(const char *name)
{
	char moved[XATTR_NAME_MAX + 1];
	const char *kept = fmt_override_kept(name);
	int rc = fmt_override_moved(name, moved, sizeof(moved));

	check(!kept || (fmt_override_reserved(name) && fmt_override_moves(kept)));
	check(!(fmt_override_moves(name) && fmt_override_reserved(name)));
	check(rc == 0 || rc == -ERANGE);
	if (rc < 0)
		return;
	check(fmt_override_reserved(moved));
	kept = fmt_override_kept(moved);
	check(fmt_override_moves(name) ? kept && !strcmp(kept, name) : !kept);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char *name = malloc(size + 1);

	if (!name)
		return 0;
	if (size)
		memcpy(name, data, size);
	name[size] = '\0';

	try_origin(data, size);
	try_handle(data, size);
	try_nlink((const char *)data, size);
	try_index_name(name);
	try_redirect((const char *)data, size);
	try_values(data, size);
	try_name(false, name);
	try_name(true, name);
	try_override((const char *)data, size);
	try_override_name(name);
	free(name);
	return 0;
}
