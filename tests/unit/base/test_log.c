/* test_log: levels, ranks, the log file, long lines, threads, progress. Standard error goes to a file
 * meanwhile. */
#include "mb_test.h"

#include <fcntl.h>
#include <pthread.h>

#include "base/clock.h"
#include "base/json.h"
#include "base/log.h"
#include "base/str.h"

static char *folder, *screen, *file;
static int kept_error;

static int setup(void **state)
{
    (void)state;
    folder = mb_test_folder_make();
    screen = mb_test_path(folder, "screen");
    file = mb_test_path(folder, "run.log");
    fflush(stderr);
    kept_error = dup(STDERR_FILENO);
    int target = open(screen, O_WRONLY | O_CREAT | O_APPEND, 0600);
    dup2(target, STDERR_FILENO);
    close(target);
    unsetenv("MB_LOG");
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    mb_log_close();
    fflush(stderr);
    dup2(kept_error, STDERR_FILENO);
    close(kept_error);
    MB_FREE(screen);
    MB_FREE(file);
    mb_test_folder_remove(&folder);
    return 0;
}

static void expect_screen(const char *expected)
{
    mb_str s = MB_STR_EMPTY;
    fflush(stderr);
    mb_test_ok(mb_files_read(screen, 0, &s));
    assert_string_equal(mb_str_text(&s), expected);
    mb_str_destroy(&s);
}

static void test_levels(void **state)
{
    (void)state;
    mb_log_init("moe-x", 0, 1, file);
    mb_debug("no");
    mb_info("a %d", 1);
    mb_warn("b");
    mb_error("c");
    setenv("MB_LOG", "error", 1);
    mb_log_init("moe-x", 0, 1, file);
    mb_warn("no");
    mb_error("d");
    setenv("MB_LOG", "debug", 1);
    mb_log_init("moe-x", 0, 1, NULL);
    mb_debug("e");
    unsetenv("MB_LOG");
    expect_screen("moe-x: a 1\nmoe-x: warning: b\nmoe-x: error: c\nmoe-x: error: d\nmoe-x: debug: e\n");
    mb_str s = MB_STR_EMPTY;
    mb_test_ok(mb_files_read(file, 0, &s));
    assert_non_null(strstr(s.data, "Z moe-x: a 1\n"));
    assert_non_null(strstr(s.data, "Z moe-x: error: d\n"));
    assert_null(strstr(s.data, "debug"));
    mb_str_destroy(&s);
}

static void test_ranks(void **state)
{
    (void)state;
    mb_log_init("moe-x", 2, 4, NULL);
    mb_info("no");
    mb_warn("no");
    mb_error("bad");
    mb_progress progress;
    mb_progress_start(&progress, "no", "records", 0, 10);
    mb_progress_end(&progress, 10, NULL);
    expect_screen("moe-x: rank 2: error: bad\n");
}

static void test_unwritable_file(void **state)
{
    (void)state;
    mb_log_init("moe-x", 0, 1, "/nowhere/run.log");
    expect_screen(
        "moe-x: warning: /nowhere/run.log: cannot write the log there: No such file or directory\n");
}

static void test_long_line(void **state)
{
    (void)state;
    mb_log_init("moe-x", 0, 1, NULL);
    mb_info("%020000d", 1);
    mb_str s = MB_STR_EMPTY;
    fflush(stderr);
    mb_test_ok(mb_files_read(screen, 0, &s));
    assert_true(s.length > 4000 && s.length < 20000);
    assert_true(mb_str_is_suffix(s.data, "000...\n"));
    mb_str_destroy(&s);
}

static void *write_lines(void *letter)
{
    for (int i = 0; i < 200; i++)
        mb_info("%s%s%s%s", (char *)letter, (char *)letter, (char *)letter, (char *)letter);
    return NULL;
}

static void test_threads(void **state)
{
    (void)state;
    pthread_t threads[2];
    mb_log_init("x", 0, 1, NULL);
    assert_int_equal(pthread_create(&threads[0], NULL, write_lines, "a"), 0);
    assert_int_equal(pthread_create(&threads[1], NULL, write_lines, "b"), 0);
    for (int i = 0; i < 2; i++) assert_int_equal(pthread_join(threads[i], NULL), 0);
    mb_str s = MB_STR_EMPTY;
    fflush(stderr);
    mb_test_ok(mb_files_read(screen, 0, &s));
    assert_int_equal(s.length, 400 * strlen("x: aaaa\n"));
    for (size_t i = 0; i < s.length; i += 8) {
        assert_true(memcmp(s.data + i, "x: aaaa\n", 8) == 0 || memcmp(s.data + i, "x: bbbb\n", 8) == 0);
    }
    mb_str_destroy(&s);
}

static void test_progress(void **state)
{
    (void)state;
    mb_progress progress;
    mb_log_init("x", 0, 1, NULL);
    mb_progress_start(&progress, "scoring", "records", 20, 200);
    mb_progress_step(&progress, 30, NULL); /* too early to be shown in a file */
    progress.started = mb_clock_seconds() - 100;
    progress.last_shown = mb_clock_seconds() - 11;
    mb_progress_step(&progress, 120, "loss 3.2"); /* 100 in 100 s: 80 s to go */
    mb_progress_step(&progress, 121, NULL);
    mb_progress_end(&progress, 200, NULL);
    mb_progress_start(&progress, "reading", "tokens", 0, 0);
    progress.started -= 4000;
    mb_progress_end(&progress, 40000000, NULL);
    expect_screen("x: scoring: 120/200 (60 %) records, 1.0 records/s, 1 min 20 s left, loss 3.2\n"
                  "x: scoring: 200/200 (100 %) records, 1.8 records/s, done in 1 min 40 s\n"
                  "x: reading: 40000000 tokens, 10000 tokens/s, done in 1 h 06 min\n");
}

/* ---- the progress file ---- */

/* The file as JSON; NULL when there is none. */
static json_t *read_progress(const char *path)
{
    json_t *json = NULL;
    if (mb_files_is_file(path)) mb_test_ok(mb_json_read(path, &json));
    return json;
}

static void expect_done(const char *path, int64_t expected)
{
    json_t *json = read_progress(path);
    assert_non_null(json);
    assert_int_equal(json_integer_value(json_object_get(json, "done")), expected);
    json_decref(json);
}

static void test_progress_file(void **state)
{
    (void)state;
    char *path = mb_test_path(folder, "progress.json");
    mb_progress progress;
    setenv("MB_LOG", "error", 1); /* the file does not depend on what is shown */
    mb_log_init("x", 0, 2, NULL);
    unsetenv("MB_LOG");
    mb_test_ok(mb_log_set_progress_file(path));
    mb_progress_start(&progress, "scoring", "records", 20, 200);
    json_t *json = read_progress(path);
    assert_int_equal(json_integer_value(json_object_get(json, "done")), 20);
    assert_int_equal(json_integer_value(json_object_get(json, "total")), 200);
    assert_string_equal(json_string_value(json_object_get(json, "unit")), "records");
    assert_true(json_real_value(json_object_get(json, "percent")) == 10);
    assert_true(json_is_null(json_object_get(json, "seconds_left")));
    assert_int_equal(strlen(json_string_value(json_object_get(json, "time"))), 20);
    assert_int_equal(json_object_size(json), 8);
    json_decref(json);
    progress.started = mb_clock_seconds() - 100;
    mb_progress_step(&progress, 119, NULL); /* less than 2 s later */
    expect_done(path, 20);
    mb_test_ok(mb_log_set_progress_file(path));
    mb_progress_step(&progress, 120, "loss 3.2");
    json = read_progress(path);
    assert_int_equal(json_integer_value(json_object_get(json, "done")), 120);
    mb_test_near(json_real_value(json_object_get(json, "seconds_left")), 80.0, 0.01);
    mb_test_near(json_real_value(json_object_get(json, "seconds")), 100.0, 0.01);
    assert_string_equal(json_string_value(json_object_get(json, "text")),
                        "scoring: 120/200 (60 %) records, 1.0 records/s, 1 min 20 s left, loss 3.2");
    json_decref(json);
    mb_progress_end(&progress, 200, NULL); /* the end is always written */
    json = read_progress(path);
    assert_true(json_real_value(json_object_get(json, "percent")) == 100);
    assert_true(json_real_value(json_object_get(json, "seconds_left")) == 0);
    json_decref(json);
    mb_log_close(); /* forgets the file */
    mb_progress_end(&progress, 199, NULL);
    expect_done(path, 200);
    expect_screen("");
    mb_free(path);
}

static void test_progress_file_unknown_total(void **state)
{
    (void)state;
    char *path = mb_test_path(folder, "progress.json");
    mb_progress progress;
    mb_log_init("x", 0, 1, NULL);
    mb_test_ok(mb_log_set_progress_file(path));
    mb_progress_start(&progress, "reading", "tokens", 0, 0);
    progress.started -= 10;
    char extra[1024] = "";
    for (int i = 0; i < 300; i++) memcpy(extra + 3 * i, "\xe2\x82\xac", 4); /* cut inside a character */
    mb_progress_end(&progress, 7, extra);
    json_t *json = read_progress(path);
    assert_int_equal(json_integer_value(json_object_get(json, "total")), 0);
    assert_true(json_is_null(json_object_get(json, "percent")));
    assert_true(json_is_null(json_object_get(json, "seconds_left")));
    assert_non_null(json_string_value(json_object_get(json, "text")));
    json_decref(json);
    mb_free(path);
}

/* Only rank 0 writes; a folder that is not there gives one warning and no failure. */
static void test_progress_file_refused(void **state)
{
    (void)state;
    char *path = mb_test_path(folder, "progress.json");
    mb_progress progress;
    mb_log_init("x", 1, 2, NULL);
    mb_test_ok(mb_log_set_progress_file(path));
    mb_progress_start(&progress, "scoring", "records", 0, 2);
    mb_progress_end(&progress, 2, NULL);
    assert_false(mb_files_is_file(path));
    mb_free(path);
    path = mb_test_path(folder, "none/progress.json");
    mb_log_init("x", 0, 1, NULL);
    mb_test_ok(mb_log_set_progress_file(path));
    mb_progress_start(&progress, "scoring", "records", 0, 2);
    mb_test_ok(mb_log_set_progress_file(NULL));
    mb_progress_step(&progress, 1, NULL);
    expect_screen("x: warning: progress cannot be written to its file any more: No such file or directory\n");
    mb_free(path);
}

/* On a terminal the line is redrawn in place, and cleared before any other line. */
static void test_terminal(void **state)
{
    (void)state;
    char seen[512] = "";
    size_t used = 0;
    int master = posix_openpt(O_RDWR | O_NOCTTY);
    if (master < 0) mb_test_skip("no pseudo terminal here");
    assert_int_equal(grantpt(master) + unlockpt(master), 0);
    int terminal = open(ptsname(master), O_RDWR | O_NOCTTY);
    assert_true(terminal >= 0);
    dup2(terminal, STDERR_FILENO);
    mb_log_init("x", 0, 1, NULL);
    mb_progress progress;
    mb_progress_start(&progress, "scoring", "records", 0, 200);
    progress.started -= 100;
    progress.last_shown -= 1;
    mb_progress_step(&progress, 50, NULL);
    mb_progress_step(&progress, 51, NULL); /* less than half a second later */
    mb_info("a line");
    fflush(stderr);
    const char *expected = "\r\033[Kx: scoring: 50/200 (25 %) records, 0.5 records/s, 5 min 00 s left"
                           "\r\033[Kx: a line\r\n";
    while (used < strlen(expected)) {
        ssize_t n = read(master, seen + used, sizeof seen - 1 - used);
        if (n <= 0) break;
        used += (size_t)n;
    }
    assert_string_equal(seen, expected);
    close(terminal);
    dup2(kept_error, STDERR_FILENO);
    close(master);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_levels, setup, teardown),
        cmocka_unit_test_setup_teardown(test_ranks, setup, teardown),
        cmocka_unit_test_setup_teardown(test_unwritable_file, setup, teardown),
        cmocka_unit_test_setup_teardown(test_long_line, setup, teardown),
        cmocka_unit_test_setup_teardown(test_threads, setup, teardown),
        cmocka_unit_test_setup_teardown(test_progress, setup, teardown),
        cmocka_unit_test_setup_teardown(test_progress_file, setup, teardown),
        cmocka_unit_test_setup_teardown(test_progress_file_unknown_total, setup, teardown),
        cmocka_unit_test_setup_teardown(test_progress_file_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(test_terminal, setup, teardown),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, mb_test_teardown);
}
