/* mb_test: what every unit test needs around cmocka.
 *
 *     int main(void)
 *     {
 *         const struct CMUnitTest tests[] = {cmocka_unit_test(...)};
 *         cmocka_set_message_output(CM_OUTPUT_TAP);
 *         return cmocka_run_group_tests(tests, NULL, mb_test_teardown);
 *     }
 */
#ifndef MB_TEST_H
#define MB_TEST_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/files.h"
#include "base/memory.h"
#include "base/status.h"

/* ---- statuses ---- */

static inline void mb_test_ok_at(mb_status status, const char *call, const char *file, int line)
{
    if (status == MB_OK) return;
    print_message("# %s:%d: %s: %s: %s\n%s", file, line, call, mb_status_name(status), mb_status_message(),
                  mb_status_trace_text());
    _fail(file, line);
}
/* The call must give MB_OK; prints the error record when it does not. */
#define mb_test_ok(call) mb_test_ok_at((call), #call, __FILE__, __LINE__)

static inline void mb_test_fails_at(mb_status status, mb_status expected, const char *part, const char *call,
                                    const char *file, int line)
{
    const char *message = mb_status_message();
    if (status == expected && (status == MB_OK || strstr(message, part) != NULL)) return;
    print_message("# %s:%d: %s gave '%s', message '%s'; expected '%s' with '%s'\n", file, line, call,
                  mb_status_name(status), message, mb_status_name(expected), part);
    _fail(file, line);
}
/* The call must give this status, with `part` inside the message ("" for any). */
#define mb_test_fails(call, expected, part)                                                                  \
    mb_test_fails_at((call), (expected), (part), #call, __FILE__, __LINE__)

/* ---- numbers ---- */

/* |a - b| <= relative * max(|a|, |b|) + absolute; equal infinities are near, NaN never is. */
static inline bool mb_test_is_near(double a, double b, double relative, double absolute)
{
    if (a == b) return true;
    return isfinite(a) && isfinite(b) && fabs(a - b) <= relative * fmax(fabs(a), fabs(b)) + absolute;
}

static inline void mb_test_near_at(double a, double b, double relative, double absolute, const char *what,
                                   const char *file, int line)
{
    if (mb_test_is_near(a, b, relative, absolute)) return;
    print_message("# %s:%d: %s: %.9g and %.9g differ by %.3g (allowed: %.3g relative, %.3g absolute)\n", file,
                  line, what, a, b, fabs(a - b), relative, absolute);
    _fail(file, line);
}
#define mb_test_near(a, b, relative) mb_test_near_at((a), (b), (relative), 0, #a " ~ " #b, __FILE__, __LINE__)
#define mb_test_near_abs(a, b, relative, absolute)                                                           \
    mb_test_near_at((a), (b), (relative), (absolute), #a " ~ " #b, __FILE__, __LINE__)

static inline void mb_test_near_all_at(const float *a, const float *b, int64_t n, double relative,
                                       double absolute, const char *what, const char *file, int line)
{
    for (int64_t i = 0; i < n; i++) {
        if (mb_test_is_near(a[i], b[i], relative, absolute)) continue;
        print_message("# %s:%d: element %lld of %lld\n", file, line, (long long)i, (long long)n);
        mb_test_near_at(a[i], b[i], relative, absolute, what, file, line);
    }
}
/* n floats against n floats; names the first that differs. */
#define mb_test_near_all(a, b, n, relative, absolute)                                                        \
    mb_test_near_all_at((a), (b), (n), (relative), (absolute), #a " ~ " #b, __FILE__, __LINE__)

/* ---- files ---- */

/* A new empty folder under /tmp. Remove it, and free the name, with mb_test_folder_remove. */
static inline char *mb_test_folder_make(void)
{
    char name[] = "/tmp/mb_test_XXXXXX";
    assert_non_null(mkdtemp(name));
    char *folder = mb_strdup(name);
    assert_non_null(folder);
    return folder;
}

static inline void mb_test_folder_remove(char **folder)
{
    if (*folder == NULL) return;
    mb_test_ok(mb_files_remove_tree(*folder));
    MB_FREE(*folder);
}

/* "<folder>/<name>" in a new block; free with mb_free. */
static inline char *mb_test_path(const char *folder, const char *name)
{
    char *path = mb_files_join(folder, name);
    assert_non_null(path);
    return path;
}

/* Write text to "<folder>/<name>"; the path in a new block. */
static inline char *mb_test_write(const char *folder, const char *name, const char *text)
{
    char *path = mb_test_path(folder, name);
    mb_test_ok(mb_files_write(path, text, strlen(text)));
    return path;
}

/* Path of shared real data ("models/stories260K/hf") below $MB_SHARED_DATA (../shared/data) in a new block;
 * free with mb_free. NULL when it is absent: then skip with mb_test_skip. */
static inline char *mb_test_data(const char *name)
{
    const char *root = getenv("MB_SHARED_DATA");
    char *path = mb_test_path(root != NULL ? root : "../shared/data", name);
    if (access(path, R_OK) != 0) MB_FREE(path);
    return path;
}

/* Skip the running test with a reason. */
static inline bool *mb_test_has_skipped(void)
{
    static bool skipped;
    return &skipped;
}
static inline void mb_test_skip(const char *reason)
{
    print_message("# skipped: %s\n", reason);
    *mb_test_has_skipped() = true;
    skip();
}

/* ---- end of a group ---- */

/* Group teardown: fails when a block of mb_calloc is still alive; a skipped test leaves what it held. */
static inline int mb_test_teardown(void **state)
{
    (void)state;
    int64_t blocks = mb_memory_live_blocks();
    if (blocks == 0 || *mb_test_has_skipped()) return 0;
    print_message("# %lld blocks (%lld bytes) were never freed\n", (long long)blocks,
                  (long long)mb_memory_live_bytes());
    return -1;
}

#endif
