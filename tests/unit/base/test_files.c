/* test_files: whole-file reads, atomic writes, folders, space. */
#include "mb_test.h"

#include <sys/stat.h>

#include "base/str.h"

static char *folder;

static int setup(void **state)
{
    (void)state;
    folder = mb_test_folder_make();
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    mb_test_folder_remove(&folder);
    return 0;
}

static void expect_content(const char *path, const char *expected)
{
    mb_str s = MB_STR_EMPTY;
    mb_test_ok(mb_files_read(path, 0, &s));
    assert_int_equal(s.length, strlen(expected));
    assert_string_equal(mb_str_text(&s), expected);
    mb_str_destroy(&s);
}

static void expect_names(const char *path, int64_t expected, const char *const *names)
{
    char **found = NULL;
    int64_t count = 0;
    mb_test_ok(mb_files_list(path, &found, &count));
    assert_int_equal(count, expected);
    for (int64_t i = 0; i < count; i++) assert_string_equal(found[i], names[i]);
    mb_files_free_names(&found, count);
    assert_null(found);
}

static void test_write_read(void **state)
{
    (void)state;
    char *path = mb_test_path(folder, "a.txt"), *copy = mb_test_path(folder, "b.txt");
    mb_test_ok(mb_files_write(path, "one", 3));
    mb_test_ok(mb_files_write(path, "second\n", 7));
    expect_content(path, "second\n");
    mb_test_ok(mb_files_append_line(path, "third"));
    mb_test_ok(mb_files_copy(path, copy));
    expect_content(copy, "second\nthird\n");
    int64_t bytes = 0;
    mb_test_ok(mb_files_size(copy, &bytes));
    assert_int_equal(bytes, 13);
    mb_test_ok(mb_files_write(path, NULL, 0));
    expect_content(path, "");
    expect_names(folder, 2, (const char *const[]){"a.txt", "b.txt"}); /* no file beside is left */
    mb_str s = MB_STR_EMPTY;
    mb_test_fails(mb_files_read(copy, 12, &s), MB_ERANGE, "b.txt");
    mb_test_ok(mb_files_read(copy, 13, &s));
    mb_test_ok(mb_files_read("/proc/self/status", 0, &s)); /* a file that claims 0 bytes */
    assert_true(s.length > 100);
    mb_test_fails(mb_files_read(folder, 0, &s), MB_EIO, "folder");
    mb_str_destroy(&s);
    mb_free(path);
    mb_free(copy);
}

static void test_failures(void **state)
{
    (void)state;
    char *missing = mb_test_path(folder, "no/where"), *here = mb_test_path(folder, "here");
    mb_str s = MB_STR_EMPTY;
    int64_t bytes = 5;
    mb_test_fails(mb_files_read(missing, 0, &s), MB_ENOTFOUND, missing);
    mb_test_fails(mb_files_size(missing, &bytes), MB_ENOTFOUND, missing);
    mb_test_fails(mb_files_write(missing, "x", 1), MB_ENOTFOUND, missing);
    mb_test_fails(mb_files_copy(missing, here), MB_ENOTFOUND, missing);
    mb_test_fails(mb_files_rename(missing, here), MB_ENOTFOUND, missing);
    assert_int_equal(bytes, 5);
    mb_test_ok(mb_files_make_folders(here));
    mb_test_fails(mb_files_write(here, "x", 1), MB_EIO,
                  here); /* a folder is in the way: nothing is left beside */
    expect_names(folder, 1, (const char *const[]){"here"});
    assert_false(mb_files_is_file(here));
    assert_true(mb_files_is_folder(here));
    mb_str_destroy(&s);
    mb_free(missing);
    mb_free(here);
}

static void test_folders(void **state)
{
    (void)state;
    char *deep = mb_test_path(folder, "x/y//z/"), *top = mb_test_path(folder, "x"),
         *file = mb_test_path(folder, "x/file");
    mb_test_ok(mb_files_make_folders(deep));
    mb_test_ok(mb_files_make_folders(deep));
    assert_true(mb_files_is_folder(deep));
    mb_test_ok(mb_files_append_line(file, "1"));
    expect_names(top, 2, (const char *const[]){"file", "y"});
    char *below = mb_test_path(file, "no");
    mb_test_fails(mb_files_make_folders(below), MB_ENOTFOUND, "x/file");
    mb_test_fails(mb_files_make_folders(file), MB_EEXIST, "x/file");
    char *link = mb_test_path(top, "link"), *outside = mb_test_write(folder, "outside", "kept");
    assert_int_equal(symlink(folder, link), 0); /* removing a tree must not follow links */
    mb_test_ok(mb_files_remove_tree(top));
    mb_test_ok(mb_files_remove_tree(top));
    assert_false(mb_files_is_folder(top));
    expect_content(outside, "kept");
    char *moved = mb_test_path(folder, "moved");
    mb_test_ok(mb_files_rename(outside, moved));
    expect_names(folder, 1, (const char *const[]){"moved"});
    mb_test_ok(mb_files_sync(folder));
    char *joined[] = {deep, top, file, below, link, outside, moved};
    for (size_t i = 0; i < sizeof joined / sizeof *joined; i++) mb_free(joined[i]);
    char *bare = mb_files_join("", "name"), *slash = mb_files_join("a/", "name");
    assert_string_equal(bare, "name");
    assert_string_equal(slash, "a/name");
    mb_free(bare);
    mb_free(slash);
}

static void test_space(void **state)
{
    (void)state;
    char *path = mb_test_path(folder, "not/there/yet.h5");
    mb_test_ok(mb_files_check_space(path, 1, "a shard"));
    mb_test_fails(mb_files_check_space(path, INT64_MAX / 2, "a shard"), MB_ENOSPACE, "a shard");
    assert_int_equal(setenv("MB_TEST_FREE_BYTES", "1000", 1), 0);
    mb_test_ok(mb_files_check_space(path, 990, "a shard"));
    mb_test_fails(mb_files_check_space(path, 995, "a shard"), MB_ENOSPACE, path); /* 1 % more is asked for */
    unsetenv("MB_TEST_FREE_BYTES");
    mb_free(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_write_read, setup, teardown),
        cmocka_unit_test_setup_teardown(test_failures, setup, teardown),
        cmocka_unit_test_setup_teardown(test_folders, setup, teardown),
        cmocka_unit_test_setup_teardown(test_space, setup, teardown),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, mb_test_teardown);
}
