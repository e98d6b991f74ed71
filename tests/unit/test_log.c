/* SPDX-License-Identifier: MIT */
/* Messages: their form, their levels, and how many of them get out. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "util/base.h"
#include "util/log.h"

static char said[65536];

/* What @work prints on stderr. */
static const char *hear(void (*work)(void))
{
	int fds[2];
	int saved = dup(STDERR_FILENO);
	size_t len = 0;
	ssize_t n;

	assert_true(saved >= 0);
	assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
	dup2(fds[1], STDERR_FILENO);
	close(fds[1]);
	work();
	dup2(saved, STDERR_FILENO);
	close(saved);
	while ((n = read(fds[0], said + len, sizeof(said) - 1 - len)) > 0)
		len += n;
	said[len] = '\0';
	close(fds[0]);
	return said;
}

static size_t count_lines(const char *s)
{
	size_t n = 0;

	for (; *s; s++)
		n += *s == '\n';
	return n;
}

static void say_one_of_each(void)
{
	log_error("an error %d", 1);
	log_warning("a warning %s", "two");
	log_info("some news");
	log_debug("a detail");
}

static void test_levels(void **state)
{
	assert_false(log_debug_enabled());
	assert_string_equal(hear(say_one_of_each),
			    "plyfs: an error 1\nplyfs: warning: a warning two\n");
	log_set_level(LOG_LEVEL_ERROR);
	assert_string_equal(hear(say_one_of_each), "plyfs: an error 1\n");
	log_set_level(LOG_LEVEL_DEBUG);
	assert_true(log_debug_enabled());
	assert_string_equal(hear(say_one_of_each),
			    "plyfs: an error 1\nplyfs: warning: a warning two\n"
			    "plyfs: some news\nplyfs: a detail\n");
	log_set_level(LOG_LEVEL_WARNING);
}

static void say_control_characters(void)
{
	log_error("file a\nplyfs: b\033[2J\177c\303\266");
}

static void test_an_event_is_one_line_whatever_a_name_holds(void **state)
{
	assert_string_equal(hear(say_control_characters), "plyfs: file a?plyfs: b?[2J?c\303\266\n");
}

static void say_errno(void)
{
	errno = ENOENT;
	log_error("%m");
}

static void test_errno_is_kept(void **state)
{
	assert_string_equal(hear(say_errno), "plyfs: No such file or directory\n");
	errno = ENOENT;
	hear(say_errno);
	assert_int_equal(errno, ENOENT);
}

static void say_much(void)
{
	log_set_level(LOG_LEVEL_DEBUG);
	for (int i = 0; i < 1000; i++) {
		log_error("trouble %d", i);
		log_debug("detail");
	}
	log_set_level(LOG_LEVEL_WARNING);
}

/* In a process of its own, which alone has the file. */
static void say_to_a_file(void)
{
	pid_t child = fork();
	int status = -1;

	assert_true(child >= 0);
	if (child > 0) {
		assert_int_equal(waitpid(child, &status, 0), child);
		assert_int_equal(status, 0);
		return;
	}
	if (log_to_file("/dev/null/none") != -ENOTDIR || log_to_file("/proc/self/fd/77") != 0)
		_exit(1);
	log_set_level(LOG_LEVEL_DEBUG);
	say_one_of_each();
	log_notice("a number");
	_exit(0);
}

static void test_a_file_gets_all_and_the_details_alone(void **state)
{
	FILE *file = tmpfile();
	char text[512];
	ssize_t n;

	assert_non_null(file);
	assert_int_equal(dup2(fileno(file), 77), 77);
	assert_string_equal(hear(say_to_a_file),
			    "plyfs: an error 1\nplyfs: warning: a warning two\n"
			    "plyfs: some news\nplyfs: a number\n");
	n = pread(77, text, sizeof(text) - 1, 0);
	assert_true(n > 0);
	text[n] = '\0';
	assert_string_equal(text, "plyfs: an error 1\nplyfs: warning: a warning two\n"
				  "plyfs: some news\nplyfs: a detail\nplyfs: a number\n");
	close(77);
	fclose(file);
}

/* Runs last: what it says fills the window. */
static void test_errors_are_limited_and_details_are_not(void **state)
{
	const char *s = hear(say_much);
	size_t errors = 0;

	for (const char *p = s; (p = strstr(p, "trouble")); p++)
		errors++;
	assert_in_range(errors, 1, 20);
	assert_int_equal(count_lines(s), errors + 1000);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_levels),
		cmocka_unit_test(test_an_event_is_one_line_whatever_a_name_holds),
		cmocka_unit_test(test_errno_is_kept),
		cmocka_unit_test(test_a_file_gets_all_and_the_details_alone),
		cmocka_unit_test(test_errors_are_limited_and_details_are_not),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
