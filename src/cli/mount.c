/* SPDX-License-Identifier: MIT */
#include "cli/mount.h"

#include <fcntl.h>
#include <getopt.h>
#include <linux/magic.h>
#include <limits.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/vfs.h>
#include <sys/xattr.h>

#include "cli/exit.h"
#include "cli/options.h"
#include "cli/process.h"
#include "overlay/ovl.h"
#include "server/server.h"
#include "server/status.h"
#include "util/base.h"
#include "util/log.h"

/* Missing in the headers of older C libraries; values of the kernel's. */
#ifndef ST_NOSYMFOLLOW
#define ST_NOSYMFOLLOW 0x2000
#endif
#ifndef MS_NOSYMFOLLOW
#define MS_NOSYMFOLLOW 256
#endif

/* A message holds at most two paths. */
#define MESSAGE_MAX (2 * PATH_MAX + 512)

struct mounting {
	struct options options;
	const char *source;
	char *mountpoint; /* absolute, without symlinks */
	const struct caller *caller;
	bool foreground;
	bool verbose;
	bool ready;
	struct process_child child;
};

static const struct option long_options[] = {
	{ "options", required_argument, NULL, 'o' }, { "foreground", no_argument, NULL, 'f' },
	{ "debug", no_argument, NULL, 'd' },         { "help", no_argument, NULL, 'h' },
	{ "version", no_argument, NULL, 'V' },       { 0 },
};

#define HELPER_LETTERS "-:fno:rst:vwN:hV"

static const struct option helper_long_options[] = {
	{ "help", no_argument, NULL, 'h' },
	{ "version", no_argument, NULL, 'V' },
	{ 0 },
};

/* What is different in each of the ways to be called. */
static const struct caller {
	const char *program;
	const char *letters; /* of getopt(3) */
	const struct option *longs;
	const char *help;
	const char *type; /* fuse.TYPE, and the source where there is none */
	bool helper;      /* -f is mount(8)'s, and a remount names all flags that are to be */
	enum option_dialect dialect;
	const char *first_list; /* of -o, before those on the command line; or NULL */
} callers[] = {
	[MOUNT_BY_USER] = {
		.program = "plyfs mount",
		.letters = "-:dfo:hV",
		.longs = long_options,
		.help = cli_mount_help_text,
		.type = "plyfs",
	},
	[MOUNT_BY_HELPER] = {
		.program = "mount.plyfs",
		.letters = HELPER_LETTERS,
		.longs = helper_long_options,
		.help = cli_helper_help_text,
		.type = "plyfs",
		.helper = true,
	},
	[MOUNT_BY_COMPAT_HELPER] = {
		.program = "mount.fuse-overlayfs",
		.letters = HELPER_LETTERS,
		.longs = helper_long_options,
		.help = cli_compat_help_text,
		.type = "fuse-overlayfs",
		.helper = true,
		.dialect = OPTIONS_OF_FUSE_OVERLAYFS,
		.first_list = "dev,suid", /* as mount.fuse3 gives them */
	},
	[MOUNT_AS_FUSE_OVERLAYFS] = {
		.type = "fuse-overlayfs",
		.helper = true, /* of mount.fuse3, when it is to remount */
		.dialect = OPTIONS_OF_FUSE_OVERLAYFS,
	},
};

static int add_name(struct mount_args *args, const char *name)
{
	if (args->name_count == ARRAY_SIZE(args->names)) {
		log_error("too many arguments: '%s' after the mountpoint '%s'", name,
			  args->names[1]);
		return -EINVAL;
	}
	args->names[args->name_count++] = name;
	return 0;
}

int mount_args_add_list(struct mount_args *args, const char *list)
{
	const char **lists = reallocarray(args->lists, args->list_count + 1, sizeof(*lists));

	if (!lists) {
		log_error("out of memory while reading the arguments");
		return -ENOMEM;
	}
	lists[args->list_count++] = list;
	args->lists = lists;
	return 0;
}

void mount_args_free(struct mount_args *args)
{
	free(args->lists);
	*args = (struct mount_args){ 0 };
}

static int bad_argument(int c, char **argv, const struct caller *caller)
{
	/* optopt is 0 for a long option, which getopt has left behind already. */
	const char *word = argv[optind - 1];
	char letter[] = { '-', (char)optopt, '\0' };

	if (optopt > 0 && optopt < 0x80 && word[1] != '-')
		word = letter;
	if (c == ':')
		log_error("%s needs an argument: see %s --help", word, caller->program);
	else
		log_error("unknown argument %s: see %s --help", word, caller->program);
	return -EINVAL;
}

/*
 * Returns 1 to go on, 0 when all was done (--help), a negative errno when a message was printed.
 * mount.fuse3 puts the names first and engines put them last: the leading '-' takes both, also with
 * POSIXLY_CORRECT in the environment.
 */
static int read_args(int argc, char **argv, const struct caller *caller, struct mount_args *args)
{
	int c, rc = 0;

	opterr = 0;
	optind = 0;
	while (!rc && (c = getopt_long(argc, argv, caller->letters, caller->longs, NULL)) != -1) {
		switch (c) {
		case 1: rc = add_name(args, optarg); break;
		case 'o': rc = mount_args_add_list(args, optarg); break;
		case 'r': rc = mount_args_add_list(args, "ro"); break;
		case 'w': rc = mount_args_add_list(args, "rw"); break;
		case 'f': *(caller->helper ? &args->fake : &args->foreground) = true; break;
		case 'd': args->debug = true; break;
		case 'N': args->namespace = optarg; break;
		case 's': args->sloppy = true; break;
		case 'v': args->verbose = true; break;
		case 'n': /* there is no mtab */
		case 't': break;
		case 'h': cli_print(caller->help); return 0;
		case 'V': cli_version(0, NULL); return 0;
		default: rc = bad_argument(c, argv, caller); break;
		}
	}
	while (!rc && optind < argc)
		rc = add_name(args, argv[optind++]);
	if (rc < 0)
		return rc;
	if (!args->name_count) {
		log_error("no mountpoint: see %s --help", caller->program);
		return -EINVAL;
	}
	return 1;
}

/* A script may want to know the error that the kernel's mount(2) would have given. */
static void say_failure(const char *message, int err)
{
	const char *name = strerror(-err);

	if (strstr(message, name))
		log_error("%s", message);
	else
		log_error("%s (%s)", message, name);
}

/* Not an error, and not a line of the log: engines look for these words. */
void mount_say_ignored(const char *word)
{
	fprintf(stderr, "unknown argument ignored: %s\n", word);
}

static int read_options(const struct mount_args *args, const struct caller *caller,
			struct options *options)
{
	char message[MESSAGE_MAX];
	int rc = 0;

	options_init(options, caller->dialect);
	options->sloppy = args->sloppy;
	options->ignored = args->sloppy ? NULL : mount_say_ignored;
	if (caller->dialect == OPTIONS_OF_FUSE_OVERLAYFS)
		compat_read_environment(options);
	if (caller->first_list)
		rc = options_add(options, caller->first_list, message, sizeof(message));
	for (size_t i = 0; i < args->list_count && !rc; i++)
		rc = options_add(options, args->lists[i], message, sizeof(message));
	if (!rc)
		rc = options_check(options, message, sizeof(message));
	if (rc < 0)
		say_failure(message, rc);
	return rc;
}

/* mount(8) -N: the names on the command line belong to this mount namespace. */
static int enter_namespace(const char *namespace)
{
	char path[64];
	const char *file = namespace;

	if (!namespace[strspn(namespace, "0123456789")]) {
		snprintf(path, sizeof(path), "/proc/%.20s/ns/mnt", namespace);
		file = path;
	}

	autofd int fd = open(file, O_RDONLY | O_CLOEXEC);

	if (fd < 0 || setns(fd, CLONE_NEWNS) < 0) {
		int rc = -errno;

		log_error("cannot enter the mount namespace %s: %m", file);
		return rc;
	}
	return 0;
}

static int find_mountpoint(const char *name, char **out)
{
	autofree char *path = realpath(name, NULL);
	struct stat st;

	if (!path || stat(path, &st) < 0) {
		int rc = -errno;

		if (rc == -ENOENT)
			log_error("mountpoint %s does not exist: make the directory first", name);
		else if (rc == -ENOTCONN)
			log_error("mountpoint %s holds a mount whose server is gone: umount it "
				  "first",
				  name);
		else
			log_error("mountpoint %s: %m", name);
		return rc;
	}
	if (!S_ISDIR(st.st_mode)) {
		log_error("mountpoint %s is not a directory", name);
		return -ENOTDIR;
	}
	*out = take_ptr(path);
	return 0;
}

/* The flags of a mount as mount(2) knows them. */
static unsigned long flags_of(const struct statfs *fs)
{
	static const struct {
		unsigned long shown, flag;
	} known[] = {
		{ ST_RDONLY, MS_RDONLY },
		{ ST_NOSUID, MS_NOSUID },
		{ ST_NODEV, MS_NODEV },
		{ ST_NOEXEC, MS_NOEXEC },
		{ ST_SYNCHRONOUS, MS_SYNCHRONOUS },
		{ ST_NOATIME, MS_NOATIME },
		{ ST_NODIRATIME, MS_NODIRATIME },
		{ ST_RELATIME, MS_RELATIME },
		{ ST_NOSYMFOLLOW, MS_NOSYMFOLLOW },
	};
	unsigned long flags = 0;

	for (size_t i = 0; i < ARRAY_SIZE(known); i++) {
		if ((unsigned long)fs->f_flags & known[i].shown)
			flags |= known[i].flag;
	}
	if (!(flags & (MS_NOATIME | MS_RELATIME)))
		flags |= MS_STRICTATIME;
	return flags;
}

/*
 * Whether the union itself is read-only, whatever the flags of its mount say: asks for a change
 * that cannot succeed, since an attribute is either there or not, and looks at the reason.
 */
static bool refuses_changes(const char *mountpoint)
{
	return setxattr(mountpoint, "user.plyfs", "", 0, XATTR_CREATE | XATTR_REPLACE) < 0 &&
	       errno == EROFS;
}

/*
 * What was written to a union that is read-only now is on disk, as the kernel's overlayfs sees to.
 * FUSE does not tell the server of the remount, so we do.
 */
static int sync_upper(const char *mountpoint)
{
	if (getxattr(mountpoint, STATUS_SYNC, NULL, 0) >= 0)
		return 0;
	/* The server of somebody else, or not ours at all. */
	if (errno == EPERM || errno == ENODATA || errno == EOPNOTSUPP) {
		log_warning("%s: cannot ask its server to sync: %m", mountpoint);
		return 0;
	}
	return -errno;
}

/* Changes the flags of a mount that is there. The kernel does it without asking the server. */
static int remount(const struct mounting *m)
{
	struct statfs fs;
	unsigned long now, wanted;

	if (statfs(m->mountpoint, &fs) < 0 || fs.f_type != FUSE_SUPER_MAGIC) {
		log_error("%s is not a plyfs mount: nothing to remount", m->mountpoint);
		return EXIT_MOUNT;
	}
	now = flags_of(&fs);
	/* mount(8) has made a whole of what there was and what is asked for, and took away the
	 * words that cancel each other. */
	wanted = m->caller->helper ? m->options.mount_flags
				   : options_remount_flags(&m->options, now);
	if (mount(m->source, m->mountpoint, NULL, MS_REMOUNT | wanted, NULL) < 0) {
		log_error("cannot remount %s: %m", m->mountpoint);
		return EXIT_MOUNT;
	}
	if ((now & MS_RDONLY) && !(wanted & MS_RDONLY) && refuses_changes(m->mountpoint)) {
		mount(m->source, m->mountpoint, NULL, MS_REMOUNT | now, NULL);
		log_error("cannot remount %s for writing: it has no upperdir that can be written "
			  "(%s)",
			  m->mountpoint, strerror(EROFS));
		return EXIT_MOUNT;
	}
	if (!(now & MS_RDONLY) && (wanted & MS_RDONLY)) {
		int err = sync_upper(m->mountpoint);

		if (err < 0) {
			mount(m->source, m->mountpoint, NULL, MS_REMOUNT | now, NULL);
			log_error("cannot sync what was written to %s: %s", m->mountpoint,
				  strerror(-err));
			return EXIT_MOUNT;
		}
	}
	return EXIT_OK;
}

static void on_ready(void *ctx)
{
	struct mounting *m = ctx;

	m->ready = true;
	if (m->verbose) {
		printf("plyfs: %s mounted on %s\n", m->source, m->mountpoint);
		fflush(stdout);
	}
	if (m->foreground)
		return;
	/* Nobody waits for this mount any more: it must not stay behind. */
	if (process_ready(&m->child) < 0)
		kill(getpid(), SIGTERM);
}

static int serve(struct mounting *m)
{
	const struct options *o = &m->options;
	bool root = geteuid() == 0;
	char message[MESSAGE_MAX] = "out of memory";
	autofree char *contexts = NULL;
	autofree char *view = NULL;
	int rc = options_contexts(o, &contexts);
	struct server_hook hook = { NULL };
	struct server *server = NULL;
	struct ovl *ovl = NULL;

	if (!rc)
		rc = options_view(o, &view);

	const struct ovl_config layers = {
		.lower = (const char *const *)o->lower,
		.lower_count = o->lower_count,
		.upper = o->upper,
		.work = o->work,
		.mountpoint = m->mountpoint,
		.data_count = o->data_count,
		.features = o->features,
		.given = o->given,
		.compat = o->compat,
		.disk_ids = o->uids.count || o->gids.count,
		.layers_may_change = o->timeout >= 0,
		.xattr_prefix = o->features.userxattr ? OVL_XATTR_USER : OVL_XATTR_AUTO,
		.attr_changed = server_attr_changed,
		.ctx = &hook,
	};
	const struct server_config config = {
		.mountpoint = m->mountpoint,
		.source = m->source,
		.subtype = o->subtype ? o->subtype : m->caller->type,
		.mount_flags = o->mount_flags,
		.contexts = contexts,
		.max_threads = o->max_threads,
		.allow_other = o->allow_other == OPTION_YES ||
			       (o->allow_other == OPTION_DEFAULT && root && !o->allow_root),
		.allow_root = o->allow_root,
		.timeout = o->timeout,
		.io = o->io,
		.passthrough_all = o->passthrough_all,
		.no_writeback = !o->writeback,
		.transport = o->transport,
		.debug = o->debug || o->debug_log,
		.hook = &hook,
		.uids = &o->uids,
		.gids = &o->gids,
		.static_nlink = o->static_nlink,
		.counts_links = o->dialect == OPTIONS_OF_FUSE_OVERLAYFS,
		.ino32 = o->ino32,
		.no_acl = o->no_acl,
		.no_xattrs = o->no_xattrs,
		.view = view,
	};

	if (!rc)
		rc = ovl_create(&layers, &ovl, message, sizeof(message));
	if (!rc)
		rc = server_mount(&config, ovl, &server, message, sizeof(message));
	if (rc < 0) {
		say_failure(message, rc);
	} else {
		rc = server_run(server, on_ready, m);
		if (rc < 0)
			log_error("the connection to the kernel broke: %s", strerror(-rc));
		else if (!m->ready)
			log_error("%s was unmounted before the mount was ready", m->mountpoint);
	}
	if (server)
		server_free(server);
	if (ovl)
		ovl_destroy(ovl);
	return rc < 0 || !m->ready ? EXIT_MOUNT : EXIT_OK;
}

static int mount_and_serve(struct mounting *m)
{
	if (!m->foreground) {
		int rc = process_to_background(&m->child);

		if (rc < 0) {
			log_error("cannot start the server: %s", strerror(-rc));
			return EXIT_SYSTEM;
		}
	}
	process_prepare_to_serve();
	process_drop_rights();
	return serve(m);
}

int mount_run(const struct mount_args *args, enum mount_caller by)
{
	const struct caller *caller = &callers[by];
	bool is_compat = caller->dialect == OPTIONS_OF_FUSE_OVERLAYFS;
	struct mounting m = { .caller = caller, .child = { -1, -1 }, .verbose = args->verbose };
	int status = EXIT_USAGE;

	if (read_options(args, caller, &m.options) < 0)
		goto out;
	if (args->fake) {
		status = EXIT_OK;
		goto out;
	}

	status = EXIT_MOUNT;
	if (args->namespace && enter_namespace(args->namespace) < 0)
		goto out;
	if (find_mountpoint(args->names[args->name_count - 1], &m.mountpoint) < 0)
		goto out;

	m.source = caller->type;
	if (!is_compat && args->name_count == 2 && args->names[0][0])
		m.source = args->names[0];
	if (m.options.source)
		m.source = m.options.source;
	m.options.debug |= args->debug;
	m.foreground = args->foreground || args->debug || (m.options.debug && is_compat);
	if (m.options.debug || m.options.debug_log)
		log_set_level(LOG_LEVEL_DEBUG);

	status = m.options.remount ? remount(&m) : mount_and_serve(&m);
out:
	free(m.mountpoint);
	options_free(&m.options);
	return status;
}

int cli_mount(int argc, char **argv, enum mount_caller caller)
{
	struct mount_args args = { 0 };
	int rc = read_args(argc, argv, &callers[caller], &args);
	int status;

	if (rc > 0)
		status = mount_run(&args, caller);
	else if (rc == 0)
		status = EXIT_OK;
	else
		status = rc == -ENOMEM ? EXIT_SYSTEM : EXIT_USAGE;
	mount_args_free(&args);
	return status;
}
