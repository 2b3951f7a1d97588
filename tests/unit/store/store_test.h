/* store_test: what the tests of store share: a temporary folder, and the check that nothing is left. */
#ifndef MB_STORE_TEST_H
#define MB_STORE_TEST_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/files.h"
#include "store/h5.h"

typedef struct test_folder {
    char path[64];
    char text[512]; /* test_path's result */
} test_folder;

static inline int test_setup(void **state)
{
    test_folder *folder = calloc(1, sizeof *folder);
    if (folder == NULL) return -1;
    strcpy(folder->path, "/tmp/mb-store-XXXXXX");
    *state = folder;
    return mkdtemp(folder->path) == NULL ? -1 : 0;
}

/* Remove the folder, and fail when blocks or handles are alive. */
static inline int test_teardown(void **state)
{
    test_folder *folder = *state;
    mb_files_remove_tree(folder->path);
    free(folder);
    if (mb_memory_live_blocks() != 0) printf("# %lld blocks are alive\n", (long long)mb_memory_live_blocks());
    if (mb_h5_live_handles() != 0) printf("# %lld HDF5 handles are alive\n", (long long)mb_h5_live_handles());
    return mb_memory_live_blocks() != 0 || mb_h5_live_handles() != 0 ? -1 : 0;
}

/* A path in the folder; good until the next call. */
static inline const char *test_path(void **state, const char *name)
{
    test_folder *folder = *state;
    snprintf(folder->text, sizeof folder->text, "%s/%s", folder->path, name);
    return folder->text;
}

/* Write a file quickly (no sync, no rename), for tests that write thousands. */
static inline void test_write(const char *path, const void *bytes, size_t n)
{
    FILE *stream = fopen(path, "w");
    assert_non_null(stream);
    assert_int_equal(fwrite(bytes, 1, n, stream), n);
    assert_int_equal(fclose(stream), 0);
}

#define assert_ok(call)                                                                                      \
    do {                                                                                                     \
        mb_status got_status = (call);                                                                       \
        if (got_status != MB_OK) fail_msg("%s: %s", mb_status_name(got_status), mb_status_message());        \
    } while (0)
#define assert_fails(code, call, part)                                                                       \
    do {                                                                                                     \
        assert_int_equal((call), (code));                                                                    \
        if (strstr(mb_status_message(), (part)) == NULL)                                                     \
            fail_msg("\"%s\" is not in: %s", (part), mb_status_message());                                   \
    } while (0)

#endif
