/* SPDX-License-Identifier: MIT */
#include "cli/cli.h"

#include <string.h>

#include "cli/exit.h"
#include "cli/options.h"
#include "util/base.h"
#include "util/log.h"

const char cli_help_text[] =
	"plyfs " PLYFS_VERSION ": Linux's OverlayFS in userspace\n"
	"\n"
	"Usage:\n"
	"  plyfs mount [-f] [-d] -o OPTIONS [SOURCE] MOUNTPOINT   unite layers in one tree\n"
	"  plyfs status [-o] MOUNTPOINT                           its layers and options in "
	"effect\n"
	"  plyfs fsck [-n|-p|-y] [-v] -o OPTIONS                  check and repair an upper layer\n"
	"  plyfs convert --to=FORM UPPERDIR                       marks of fuse-overlayfs, and "
	"back\n"
	"  plyfs help [VERB]                                      this text, or a verb's\n"
	"  plyfs help options [fuse-overlayfs]                    all options, one a line\n"
	"  plyfs --version\n"
	"\n"
	"Example:\n"
	"  plyfs mount -o lowerdir=/a:/b,upperdir=/up,workdir=/work /mnt\n"
	"  umount /mnt\n"
	"\n"
	"The same through mount(8) and fstab(5):\n"
	"  mount -t fuse.plyfs plyfs /mnt -o lowerdir=/a:/b,upperdir=/up,workdir=/work\n"
	"\n"
	"Called as fuse-overlayfs it takes that program's place: see plyfs help fuse-overlayfs.\n"
	"\n"
	"See plyfs mount --help, plyfs(1) and mount.plyfs(8).\n";

#define OWNERS_TEXT                                                                                \
	"Owners, rights and attributes:\n"                                                         \
	"  uidmapping=DISK:SHOWN:COUNT[:...] gidmapping=DISK:SHOWN:COUNT[:...]\n"                  \
	"                          ids in the layers, and what they are in the mount\n"            \
	"  squash_to_root squash_to_uid=ID squash_to_gid=ID\n"                                     \
	"                          show everything as owned by one user or group\n"                \
	"  xattr_permissions=0|1|2 keep owner, mode and type in xattrs (security., user.)\n"       \
	"  noacl noxattrs          no ACLs; no xattrs\n"                                           \
	"  static_nlink ino32_t    one link a directory; numbers of files in 32 bits\n"            \
	"  context= fscontext= defcontext= rootcontext=\n"                                         \
	"                          labels for SELinux\n"

#define OPTIONS_TEXT                                                                               \
	"Layers:\n"                                                                                \
	"  lowerdir=DIR[:DIR...][::DIR...]\n"                                                      \
	"                          read-only layers, the topmost first, up to 500; after ::\n"     \
	"                          data-only ones; \\: \\, and \\\\ stand for these characters\n"  \
	"  lowerdir+=DIR           one more lower layer, taken literally\n"                        \
	"  datadir+=DIR            one more data-only layer, taken literally\n"                    \
	"  upperdir=DIR            the layer that takes all changes; without it the mount is\n"    \
	"                          read-only\n"                                                    \
	"  workdir=DIR             a directory on upperdir's filesystem, for the mount alone\n"    \
	"  userxattr               keep the overlay's marks in user.overlay.* (by itself where\n"  \
	"                          trusted.overlay.* cannot be written)\n"                         \
	"\n"                                                                                       \
	"Features, the default first:\n"                                                           \
	"  redirect_dir=follow|on|nofollow|off\n"                                                  \
	"                          rename directories of lower layers, or only follow those\n"     \
	"                          that were renamed\n"                                            \
	"  metacopy=off|on         copy up metadata without data where that is enough\n"           \
	"  index=off|on            keep hard links together at copy-up\n"                          \
	"  nfs_export=off|on       file handles that outlive the mount\n"                          \
	"  verity=off|on|require   check data against fs-verity digests\n"                         \
	"  xino=off|auto|on        numbers of files laid out as the kernel does\n"                 \
	"  uuid=auto|on|null|off   keep a uuid of the union in upper\n"                            \
	"  fsync=auto|strict|volatile, volatile\n"                                                 \
	"                          what is synced: copied-up data, all that is copied up,\n"       \
	"                          nothing ever\n"                                                 \
	"  default_permissions override_creds nooverride_creds\n"                                  \
	"                          accepted\n"                                                     \
	"\n" OWNERS_TEXT "\n"                                                                      \
	"The mount:\n"                                                                             \
	"  allow_other             let other users in (default for root; noallow_other: do not)\n" \
	"  allow_root              let root in besides the user who mounts\n"                      \
	"  timeout=SECONDS         how long the kernel may cache names and attributes (default:\n" \
	"                          for ever; set it only if layers are changed from outside)\n"    \
	"  fsname=NAME             the source shown in the mount table\n"                          \
	"  subtype=NAME            the type shown is fuse.NAME\n"                                  \
	"  debug                   log each request\n"                                             \
	"\n"                                                                                       \
	"How data and requests get through:\n"                                                     \
	"  io=auto|passthrough|cached\n"                                                           \
	"                          the kernel reads and writes the real files itself, or its\n"    \
	"                          page cache is in front of them\n"                               \
	"  passthrough=upper|all   with all, readers of lower files share their page cache\n"      \
	"  writeback=1|0           cached: written data may stay in the kernel for a while\n"      \
	"  transport=auto|dev|uring\n"                                                             \
	"                          requests come by /dev/fuse or by io_uring\n"                    \
	"\n"                                                                                       \
	"Flags:\n"                                                                                 \
	"  ro rw suid nosuid dev nodev exec noexec atime noatime relatime ... as in mount(8)\n"

#define COMPAT_OPTIONS_TEXT                                                                        \
	"Layers:\n"                                                                                \
	"  lowerdir=DIR[:DIR...]   read-only layers, the topmost first, up to 500; \\: stands\n"   \
	"                          for a colon, \\, for a comma\n"                                 \
	"  upperdir=DIR workdir=DIR\n"                                                             \
	"                          the layer that takes all changes, and a directory on its\n"     \
	"                          filesystem; without them the mount is read-only\n"              \
	"\n" OWNERS_TEXT "\n"                                                                      \
	"The mount:\n"                                                                             \
	"  timeout=SECONDS         how long the kernel may cache names and attributes\n"           \
	"  fsync=0|1 volatile      whether anything is synced\n"                                   \
	"  writeback=0|1 io= passthrough= transport=\n"                                            \
	"                          as for plyfs mount\n"                                           \
	"  max_threads=NUMBER      how many threads serve at most\n"                               \
	"  allow_other allow_root debug ro suid dev exec noatime ...\n"                            \
	"                          as for plyfs mount, also lowerdir+= datadir+= userxattr\n"      \
	"                          redirect_dir= metacopy= index= nfs_export= xino= uuid=\n"       \
	"                          verity= fsname= subtype=\n"

const char cli_mount_help_text[] =
	"Usage: plyfs mount [-f] [-d] -o OPTIONS [SOURCE] MOUNTPOINT\n"
	"\n"
	"Unites the layers in one tree at MOUNTPOINT. Returns when the mount works; umount ends "
	"it.\n"
	"\n"
	"  -o, --options LIST      options separated by commas; several -o add up\n"
	"  -f, --foreground        stay in front; messages go to stderr, Ctrl-C unmounts\n"
	"  -d, --debug             show each request with its reply and time; implies -f\n"
	"  -h, --help              this text\n"
	"  -V, --version           the version\n"
	"\n" OPTIONS_TEXT "\n"
	"Exit status: 0 mounted, 1 called wrongly, 2 system error, 32 the mount failed.\n";

const char cli_helper_help_text[] =
	"Usage: mount.plyfs SOURCE MOUNTPOINT [-fnrsvw] [-N NAMESPACE] [-o OPTIONS] [-t TYPE]\n"
	"\n"
	"Called by mount(8) for the types plyfs and fuse.plyfs. By hand, use plyfs mount.\n"
	"\n"
	"  -o LIST         options separated by commas; several -o add up\n"
	"  -f              only check the arguments, mount nothing\n"
	"  -n              accepted; there is no mtab to write\n"
	"  -r, -w          as -o ro, -o rw\n"
	"  -s              let unknown options pass\n"
	"  -v              say what was mounted\n"
	"  -N NAMESPACE    mount in this mount namespace (a process number or a file)\n"
	"  -t TYPE         accepted\n"
	"\n" OPTIONS_TEXT "\n"
	"Exit status: 0 mounted, 1 called wrongly, 2 system error, 32 the mount failed.\n";

const char cli_compat_help_text[] =
	"Usage: fuse-overlayfs [-f] [-d] [-o OPTIONS]... [SOURCE] MOUNTPOINT\n"
	"\n"
	"plyfs in the place of fuse-overlayfs: with its options, and reading its marks in the\n"
	"layers. Returns when the mount works; umount or fusermount3 -u ends it.\n"
	"\n"
	"  -o LIST                 options separated by commas; several -o add up\n"
	"  -f                      stay in front; messages go to stderr, Ctrl-C unmounts\n"
	"  -d, --debug             show each request with its reply and time; implies -f\n"
	"  -h, --help              this text\n"
	"  -V, --version           the version\n"
	"\n" COMPAT_OPTIONS_TEXT "\n"
	"Unknown options are ignored with a line on stderr. Exit status: 0 mounted, 1 not.\n";

const char cli_status_help_text[] =
	"Usage: plyfs status [-o] MOUNTPOINT\n"
	"\n"
	"Says what the mount is made of and which options are in effect, one key=value a line.\n"
	"\n"
	"  -o, --options   in one line, as -o takes them, without what is the default\n"
	"  -h, --help      this text\n"
	"\n"
	"Values are escaped as in /proc/self/mountinfo: space, tab, newline and \\ are \\ooo.\n"
	"Only root and the user who mounted are answered.\n"
	"Exit status: 0 done, 1 called wrongly, 2 system error, 32 no answer.\n";

const char cli_fsck_help_text[] =
	"Usage: plyfs fsck [-n | -p | -y | -r] [-v] -o OPTIONS\n"
	"       fsck.plyfs [-n | -p | -y | -r] [-v] MOUNTPOINT | OPTIONS\n"
	"\n"
	"Checks an upper layer, with its workdir, against the lower layers. They must not\n"
	"be mounted. On a terminal it asks before each repair; elsewhere it only reports.\n"
	"\n"
	"  -n                  only report; works on layers in use, with a warning\n"
	"  -p, -a              repair what is safe, without asking\n"
	"  -y                  repair all that can be repaired, without asking\n"
	"  -r                  ask before each repair\n"
	"  -v, --verbose       also what is harmless, and a summary\n"
	"  -o, --options LIST  lowerdir=, upperdir=, workdir= and the others of plyfs mount\n"
	"  --discard-volatile-mark\n"
	"                      let -y (or you) remove the mark of a volatile mount\n"
	"  -h, --help          this text\n"
	"  -V, --version       the version\n"
	"\n"
	"MOUNTPOINT is looked up in /etc/fstab. Without upperdir= the lower layers are\n"
	"checked, each against those below it, and never repaired.\n"
	"\n"
	"Exit status, the sum of: 0 no errors, 1 errors repaired, 4 errors left,\n"
	"8 operational error, 16 called wrongly, 32 cancelled.\n";

const char cli_convert_help_text[] =
	"Usage: plyfs convert --to=kernel|fuse-overlayfs [-n] [-v] UPPERDIR...\n"
	"\n"
	"Turns the marks of fuse-overlayfs (.wh.NAME, .wh..wh..opq, user.fuseoverlayfs.*)\n"
	"in upper layers into those of the kernel's overlayfs, which plyfs shares, and\n"
	"back. The layers must not be mounted.\n"
	"\n"
	"  --to=FORM           kernel or fuse-overlayfs\n"
	"  -n, --dry-run       only say what would be done\n"
	"  --userxattr         marks in user.overlay.* (by itself where trusted.overlay.*\n"
	"                      cannot be written); --trusted: in trusted.overlay.*\n"
	"  --image             where there is both NAME and .wh.NAME, NAME is new, as in\n"
	"                      layers of images; without it such a pair is left\n"
	"  -v, --verbose       say what was done\n"
	"  -h, --help          this text\n"
	"  -V, --version       the version\n"
	"\n"
	"Exit status, the sum of: 0 converted, 4 something was left, 8 operational error,\n"
	"16 called wrongly, 32 cancelled.\n";

int cli_print(const char *text)
{
	if (fputs(text, stdout) == EOF || fflush(stdout) == EOF) {
		log_error("cannot write to standard output: %m");
		return EXIT_SYSTEM;
	}
	return EXIT_OK;
}

int cli_version(int argc, char **argv)
{
	return cli_print("plyfs " PLYFS_VERSION "\n");
}

static int help_options(int argc, char **argv)
{
	bool compat = argc > 2 && !strcmp(argv[2], "fuse-overlayfs");

	if (argc > 2 + compat) {
		log_error("no options of '%s': see plyfs help", argv[2]);
		return EXIT_USAGE;
	}
	options_list(compat ? OPTIONS_OF_FUSE_OVERLAYFS : OPTIONS_OF_PLYFS, stdout);
	return cli_print("");
}

int cli_help(int argc, char **argv)
{
	if (argc < 2)
		return cli_print(cli_help_text);
	if (!strcmp(argv[1], "mount"))
		return cli_print(cli_mount_help_text);
	if (!strcmp(argv[1], "status"))
		return cli_print(cli_status_help_text);
	if (!strcmp(argv[1], "fsck"))
		return cli_print(cli_fsck_help_text);
	if (!strcmp(argv[1], "convert"))
		return cli_print(cli_convert_help_text);
	if (!strcmp(argv[1], "fuse-overlayfs"))
		return cli_print(cli_compat_help_text);
	if (!strcmp(argv[1], "options"))
		return help_options(argc, argv);
	log_error("no help for '%s': see plyfs help", argv[1]);
	return EXIT_USAGE;
}
