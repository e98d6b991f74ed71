// SPDX-License-Identifier: MIT
/*
 * The inner loops of the benchmark: one kind of operation, many times, by threads or processes.
 *
 *   ops [-t THREADS | -p PROCESSES] [-C DIR] [-s BYTES] [-b BLOCK] [-n COUNT] OPERATION ARGUMENT
 *   ops [-o FILE] run COMMAND...
 *
 * Operations on a list take a file of paths, one a line, which is read before the clock starts;
 * each worker gets a run of neighbours. Operations on data take one file, whose every word is its
 * own offset, so that a reader knows what it must find.
 *
 * Prints "NANOSECONDS COUNT SUM": the time from the moment when all workers are ready to the end of
 * the last one, how many items were done, and what they summed up to (bytes, sizes). At the first
 * item that fails, or that is not as it must be, it says which and exits with 1.
 */
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <pthread.h>
#include <spawn.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

#define PAGE        4096
#define MAX_WORKERS 64

extern char **environ;

struct options {
	unsigned workers;
	bool processes;
	const char *output;
	uint64_t size, block, count;
};

/* One thread or process, and what it has done. */
struct worker {
	const struct options *opt;
	char **paths;
	size_t first, end;
	int (*item)(struct worker *w, const char *path);
	char *buffer; /* of opt->block bytes */
	uint64_t done, sum;
	char error[512];
};

/* Shared by threads and by forked processes. */
struct shared {
	pthread_barrier_t ready, go;
	struct worker workers[MAX_WORKERS];
};

static uint64_t now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * UINT64_C(1000000000) + ts.tv_nsec;
}

_Noreturn static void die(const char *what, const char *name)
{
	fprintf(stderr, "ops: %s %s: %s\n", what, name, strerror(errno));
	exit(1);
}

static int fail(struct worker *w, const char *path, const char *what)
{
	snprintf(w->error, sizeof(w->error), "%.400s: %s", path, what);
	return -1;
}

static int fail_errno(struct worker *w, const char *path)
{
	return fail(w, path, strerror(errno));
}

/* --- operations on a list of paths ------------------------------------------------------------ */

static int do_stat(struct worker *w, const char *path)
{
	struct stat st;

	if (lstat(path, &st) < 0)
		return fail_errno(w, path);
	w->sum += S_ISREG(st.st_mode) ? st.st_size : 0;
	return 0;
}

static int do_missing(struct worker *w, const char *path)
{
	struct stat st;

	if (lstat(path, &st) == 0)
		return fail(w, path, "exists, but must not");
	return errno == ENOENT ? 0 : fail_errno(w, path);
}

static int do_access(struct worker *w, const char *path)
{
	return access(path, R_OK) < 0 ? fail_errno(w, path) : 0;
}

static int do_readlink(struct worker *w, const char *path)
{
	char target[PATH_MAX];
	ssize_t n = readlink(path, target, sizeof(target));

	if (n < 0)
		return fail_errno(w, path);
	w->sum += n;
	return 0;
}

static int do_getxattr(struct worker *w, const char *path)
{
	char value[64];

	if (lgetxattr(path, "security.capability", value, sizeof(value)) >= 0)
		return fail(w, path, "has an xattr, but must not");
	return errno == ENODATA ? 0 : fail_errno(w, path);
}

static int do_open(struct worker *w, const char *path)
{
	int fd = open(path, O_RDONLY);

	if (fd < 0)
		return fail_errno(w, path);
	return close(fd) < 0 ? fail_errno(w, path) : 0;
}

/* As a program does that reads a small file whole: one read for the bytes, one for the end. */
static int do_readfile(struct worker *w, const char *path)
{
	int fd = open(path, O_RDONLY);
	ssize_t n;

	if (fd < 0)
		return fail_errno(w, path);
	while ((n = read(fd, w->buffer, w->opt->block)) > 0)
		w->sum += n;
	if (n < 0 || close(fd) < 0)
		return fail_errno(w, path);
	return 0;
}

static int write_whole(int fd, const char *data, size_t size)
{
	while (size > 0) {
		ssize_t n = write(fd, data, size);

		if (n < 0)
			return -1;
		data += n;
		size -= n;
	}
	return 0;
}

static int write_new(struct worker *w, const char *path, int flags)
{
	uint64_t left = w->opt->size;
	int fd = open(path, O_WRONLY | flags, 0644);

	if (fd < 0)
		return fail_errno(w, path);
	while (left > 0) {
		size_t part = left < w->opt->block ? left : w->opt->block;

		if (write_whole(fd, w->buffer, part) < 0) {
			fail_errno(w, path);
			close(fd);
			return -1;
		}
		left -= part;
	}
	w->sum += w->opt->size;
	return close(fd) < 0 ? fail_errno(w, path) : 0;
}

static int do_create(struct worker *w, const char *path)
{
	return write_new(w, path, O_CREAT | O_EXCL);
}

static int do_append(struct worker *w, const char *path)
{
	return write_new(w, path, O_APPEND);
}

static int do_mkdir(struct worker *w, const char *path)
{
	return mkdir(path, 0755) < 0 ? fail_errno(w, path) : 0;
}

static int do_symlink(struct worker *w, const char *path)
{
	return symlink("../target/of/a/link", path) < 0 ? fail_errno(w, path) : 0;
}

static int do_rmdir(struct worker *w, const char *path)
{
	return rmdir(path) < 0 ? fail_errno(w, path) : 0;
}

static int do_unlink(struct worker *w, const char *path)
{
	return unlink(path) < 0 ? fail_errno(w, path) : 0;
}

static int do_chmod(struct worker *w, const char *path)
{
	return chmod(path, 0600) < 0 ? fail_errno(w, path) : 0;
}

static int do_rename(struct worker *w, const char *path)
{
	char to[PATH_MAX];

	snprintf(to, sizeof(to), "%s.r", path);
	return rename(path, to) < 0 ? fail_errno(w, path) : 0;
}

/* What happens to a file from its creation to its end: five calls. */
static int do_life(struct worker *w, const char *path)
{
	char renamed[PATH_MAX];

	snprintf(renamed, sizeof(renamed), "%s.r", path);
	if (do_create(w, path) < 0 || do_stat(w, path) < 0 || do_chmod(w, path) < 0 ||
	    do_rename(w, path) < 0)
		return -1;
	return do_unlink(w, renamed);
}

/* --- operations on the data of one file ------------------------------------------------------- */

static void fill(void *block, size_t size, uint64_t offset)
{
	uint64_t *word = block;

	for (size_t i = 0; i < size / sizeof(*word); i++)
		word[i] = offset + i * sizeof(*word);
}

/* A block that starts a page, chosen by a generator that always starts alike. */
static uint64_t random_page(uint64_t *state, uint64_t pages)
{
	*state = *state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
	return (*state >> 33) % pages * PAGE;
}

static int open_data(struct worker *w, const char *path, int flags, uint64_t *pages)
{
	struct stat st;
	int fd = open(path, flags);

	if (fd < 0 || fstat(fd, &st) < 0)
		return fail_errno(w, path);
	*pages = st.st_size / PAGE;
	if (*pages == 0)
		return fail(w, path, "is shorter than a page");
	return fd;
}

static int data_write(struct worker *w, const char *path)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);

	if (fd < 0)
		return fail_errno(w, path);
	for (uint64_t at = 0; at < w->opt->size; at += w->opt->block) {
		fill(w->buffer, w->opt->block, at);
		if (write_whole(fd, w->buffer, w->opt->block) < 0)
			return fail_errno(w, path);
		w->sum += w->opt->block;
	}
	return close(fd) < 0 ? fail_errno(w, path) : 0;
}

/* Each page of the block is looked at: a wrong one ends it. */
static int check_block(struct worker *w, const char *path, const char *block, size_t n, uint64_t at)
{
	for (size_t i = 0; i + sizeof(uint64_t) <= n; i += PAGE) {
		uint64_t word;

		memcpy(&word, block + i, sizeof(word));
		if (word != at + i)
			return fail(w, path, "holds other data than were written");
	}
	return 0;
}

static int data_read(struct worker *w, const char *path)
{
	int fd = open(path, O_RDONLY);
	uint64_t at = 0;
	ssize_t n;

	if (fd < 0)
		return fail_errno(w, path);
	while ((n = read(fd, w->buffer, w->opt->block)) > 0) {
		if (check_block(w, path, w->buffer, n, at) < 0)
			return -1;
		at += n;
	}
	if (n < 0 || close(fd) < 0)
		return fail_errno(w, path);
	w->sum = at;
	return 0;
}

static int data_randread(struct worker *w, const char *path)
{
	uint64_t state = 1, pages;
	int fd = open_data(w, path, O_RDONLY, &pages);

	if (fd < 0)
		return -1;
	for (uint64_t i = 0; i < w->opt->count; i++) {
		uint64_t at = random_page(&state, pages);

		if (pread(fd, w->buffer, PAGE, at) != PAGE)
			return fail_errno(w, path);
		if (check_block(w, path, w->buffer, PAGE, at) < 0)
			return -1;
		w->sum += PAGE;
	}
	return close(fd) < 0 ? fail_errno(w, path) : 0;
}

static int rewrite(struct worker *w, const char *path, bool sync)
{
	uint64_t state = 2, pages;
	int fd = open_data(w, path, O_RDWR, &pages);

	if (fd < 0)
		return -1;
	for (uint64_t i = 0; i < w->opt->count; i++) {
		uint64_t at = random_page(&state, pages);

		fill(w->buffer, PAGE, at);
		if (pwrite(fd, w->buffer, PAGE, at) != PAGE || (sync && fsync(fd) < 0))
			return fail_errno(w, path);
		w->sum += PAGE;
	}
	return close(fd) < 0 ? fail_errno(w, path) : 0;
}

static int data_randwrite(struct worker *w, const char *path)
{
	return rewrite(w, path, false);
}

static int data_fsync(struct worker *w, const char *path)
{
	return rewrite(w, path, true);
}

/* One access a page, of all of them. */
static int through_mapping(struct worker *w, const char *path, bool change)
{
	uint64_t pages;
	int fd = open_data(w, path, O_RDWR, &pages);
	char *map;

	if (fd < 0)
		return -1;
	map = mmap(NULL, pages * PAGE, PROT_READ | (change ? PROT_WRITE : 0), MAP_SHARED, fd, 0);
	if (map == MAP_FAILED)
		return fail_errno(w, path);
	for (uint64_t at = 0; at < pages * PAGE; at += PAGE) {
		if (change)
			fill(map + at, PAGE, at);
		else if (check_block(w, path, map + at, PAGE, at) < 0)
			return -1;
		w->sum += PAGE;
	}
	munmap(map, pages * PAGE);
	return close(fd) < 0 ? fail_errno(w, path) : 0;
}

static int data_mmapread(struct worker *w, const char *path)
{
	return through_mapping(w, path, false);
}

static int data_mmapwrite(struct worker *w, const char *path)
{
	return through_mapping(w, path, true);
}

/* What a directory holds: "0 ENTRIES BYTES-OF-FILES". */
static uint64_t count_entries, count_bytes;

static int count_one(const char *path, const struct stat *st, int type, struct FTW *at)
{
	(void)path;
	if (at->level > 0)
		count_entries++;
	if (type == FTW_F && S_ISREG(st->st_mode))
		count_bytes += st->st_size;
	return type == FTW_DNR || type == FTW_NS ? -1 : 0;
}

static int do_count(struct worker *w, const char *path)
{
	if (nftw(path, count_one, 64, FTW_PHYS) != 0)
		return fail_errno(w, path);
	w->done = count_entries - 1; /* run_items() counts the path itself */
	w->sum = count_bytes;
	return 0;
}

static const struct operation {
	const char *name;
	int (*item)(struct worker *w, const char *path);
	bool is_list;
} operations[] = {
	{ "stat", do_stat, true },
	{ "missing", do_missing, true },
	{ "access", do_access, true },
	{ "readlink", do_readlink, true },
	{ "getxattr", do_getxattr, true },
	{ "open", do_open, true },
	{ "readfile", do_readfile, true },
	{ "create", do_create, true },
	{ "append", do_append, true },
	{ "mkdir", do_mkdir, true },
	{ "symlink", do_symlink, true },
	{ "rmdir", do_rmdir, true },
	{ "unlink", do_unlink, true },
	{ "chmod", do_chmod, true },
	{ "rename", do_rename, true },
	{ "life", do_life, true },
	{ "write", data_write, false },
	{ "read", data_read, false },
	{ "randread", data_randread, false },
	{ "randwrite", data_randwrite, false },
	{ "fsync", data_fsync, false },
	{ "mmapread", data_mmapread, false },
	{ "mmapwrite", data_mmapwrite, false },
	{ "count", do_count, false },
};

/* --- workers ---------------------------------------------------------------------------------- */

static char **read_list(const char *path, size_t *count)
{
	char **list = NULL, *line = NULL;
	size_t room = 0, n = 0, size = 0;
	FILE *f = fopen(path, "re");
	ssize_t len;

	if (!f)
		die("cannot read", path);
	while ((len = getline(&line, &size, f)) > 0) {
		if (line[len - 1] == '\n')
			line[len - 1] = '\0';
		if (n == room) {
			room = room ? 2 * room : 1024;
			list = reallocarray(list, room, sizeof(*list));
		}
		if (!list || !(list[n++] = strdup(line)))
			die("no memory for", path);
	}
	free(line);
	fclose(f);
	*count = n;
	return list;
}

static void run_items(struct worker *w)
{
	for (size_t i = w->first; i < w->end && w->item(w, w->paths[i]) == 0; i++)
		w->done++;
}

static struct shared *shared;

static void *work(void *arg)
{
	pthread_barrier_wait(&shared->ready);
	pthread_barrier_wait(&shared->go);
	run_items(arg);
	return NULL;
}

static void start_workers(unsigned n, bool processes, pthread_t *threads)
{
	for (unsigned i = 0; i < n; i++) {
		if (!processes) {
			if (pthread_create(&threads[i], NULL, work, &shared->workers[i]) != 0)
				die("cannot start", "a thread");
			continue;
		}
		pid_t pid = fork();

		if (pid < 0)
			die("cannot start", "a process");
		if (pid == 0) {
			work(&shared->workers[i]);
			_exit(0);
		}
	}
}

static void wait_for_workers(unsigned n, bool processes, pthread_t *threads)
{
	for (unsigned i = 0; i < n; i++) {
		if (processes)
			wait(NULL);
		else
			pthread_join(threads[i], NULL);
	}
}

/* Nanoseconds that the workers took. */
static uint64_t run_workers(unsigned n, bool processes)
{
	pthread_barrierattr_t attr;
	pthread_t threads[MAX_WORKERS];
	uint64_t start;

	pthread_barrierattr_init(&attr);
	pthread_barrierattr_setpshared(&attr, PTHREAD_PROCESS_SHARED);
	pthread_barrier_init(&shared->ready, &attr, n + 1);
	pthread_barrier_init(&shared->go, &attr, n + 1);
	start_workers(n, processes, threads);
	pthread_barrier_wait(&shared->ready);
	start = now();
	pthread_barrier_wait(&shared->go);
	wait_for_workers(n, processes, threads);
	return now() - start;
}

/* One worker needs no other thread: a thread that starts and ends would be measured too. */
static uint64_t run_alone(void)
{
	uint64_t start = now();

	run_items(&shared->workers[0]);
	return now() - start;
}

static void prepare_workers(const struct options *opt, const struct operation *op, char **paths,
			    size_t count)
{
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1,
		      0);
	if (shared == MAP_FAILED)
		die("no memory for", "the workers");
	for (unsigned i = 0; i < opt->workers; i++) {
		struct worker *w = &shared->workers[i];

		w->opt = opt;
		w->paths = paths;
		w->item = op->item;
		w->first = count * i / opt->workers;
		w->end = count * (i + 1) / opt->workers;
		w->buffer = aligned_alloc(PAGE, opt->block);
		if (!w->buffer)
			die("no memory for", "a block");
		memset(w->buffer, 'p', opt->block);
	}
}

static int run_operation(const struct options *opt, const char *name, char *argument, int list_dir)
{
	const struct operation *op = operations;
	size_t n = sizeof(operations) / sizeof(operations[0]), count = 1;
	uint64_t ns, done = 0, sum = 0;
	char **paths = &argument;

	for (; n > 0 && strcmp(op->name, name) != 0; n--)
		op++;
	if (n == 0) {
		fprintf(stderr, "ops: no operation is called %s\n", name);
		return 2;
	}
	if (op->is_list) {
		int here = open(".", O_PATH | O_CLOEXEC);

		if (here < 0 || fchdir(list_dir) < 0)
			die("cannot change", "the directory");
		paths = read_list(argument, &count);
		if (fchdir(here) < 0)
			die("cannot change", "the directory");
	}
	prepare_workers(opt, op, paths, count);
	ns = opt->workers == 1 ? run_alone() : run_workers(opt->workers, opt->processes);
	for (unsigned i = 0; i < opt->workers; i++) {
		const struct worker *w = &shared->workers[i];

		if (w->error[0]) {
			fprintf(stderr, "%s %s\n", name, w->error);
			return 1;
		}
		done += w->done;
		sum += w->sum;
	}
	printf("%llu %llu %llu\n", (unsigned long long)ns, (unsigned long long)done,
	       (unsigned long long)sum);
	return 0;
}

/* The time of a whole program, and its exit status as the sum. */
static int run_command(const char *output, char **argv)
{
	posix_spawn_file_actions_t actions;
	uint64_t start;
	int status, err;
	pid_t pid;

	posix_spawn_file_actions_init(&actions);
	if (output)
		posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, output,
						 O_WRONLY | O_CREAT | O_TRUNC, 0644);
	start = now();
	err = posix_spawnp(&pid, argv[0], &actions, NULL, argv, environ);
	if (err) {
		fprintf(stderr, "ops: %s: %s\n", argv[0], strerror(err));
		return 1;
	}
	if (waitpid(pid, &status, 0) < 0)
		die("cannot wait for", argv[0]);
	printf("%llu 1 %d\n", (unsigned long long)(now() - start),
	       WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
	return 0;
}

static uint64_t number(const char *text)
{
	char *end;
	unsigned long long n = strtoull(text, &end, 10);

	if (end == text || *end) {
		fprintf(stderr, "ops: %s is no number\n", text);
		exit(2);
	}
	return n;
}

int main(int argc, char **argv)
{
	struct options opt = { .workers = 1, .block = 128 * 1024 };
	int list_dir = open(".", O_PATH | O_CLOEXEC);
	int c;

	while ((c = getopt(argc, argv, "+t:p:C:s:b:n:o:")) != -1) {
		switch (c) {
		case 'p':
			opt.processes = true;
			/* fall through */
		case 't': opt.workers = number(optarg); break;
		case 'C':
			if (chdir(optarg) < 0)
				die("cannot enter", optarg);
			break;
		case 's': opt.size = number(optarg); break;
		case 'b': opt.block = number(optarg); break;
		case 'n': opt.count = number(optarg); break;
		case 'o': opt.output = optarg; break;
		default: return 2;
		}
	}
	if (argc - optind < 2 || opt.workers < 1 || opt.workers > MAX_WORKERS || opt.block < PAGE ||
	    opt.block % PAGE) {
		fprintf(stderr, "usage: ops [OPTION...] OPERATION ARGUMENT | run COMMAND...\n");
		return 2;
	}
	if (strcmp(argv[optind], "run") == 0)
		return run_command(opt.output, argv + optind + 1);
	return run_operation(&opt, argv[optind], argv[optind + 1], list_dir);
}
