/* test_staged: node-local copies of input folders are used while they agree with the originals, and only
 * then. */
#include "mb_test.h"

#include <sys/stat.h>
#include <time.h>
#include <utime.h>

#include "base/str.h"

static char *folder, *original, *copy;

/* One file in the original and in the copy. */
static void write_both(const char *name, const char *text)
{
    mb_free(mb_test_write(original, name, text));
    mb_free(mb_test_write(copy, name, text));
}

static void add_entry(mb_str *list, const char *name)
{
    struct stat info;
    char *path = mb_test_path(original, name);
    assert_int_equal(stat(path, &info), 0);
    mb_test_ok(
        mb_str_add_format(list, "%lld %lld %s\n", (long long)info.st_size, (long long)info.st_mtime, name));
    mb_free(path);
}

static void write_mark(const char *const *names, int64_t n)
{
    mb_str list = MB_STR_EMPTY;
    mb_test_ok(mb_str_add_format(&list, "%s\n", original));
    for (int64_t i = 0; i < n; i++) add_entry(&list, names[i]);
    mb_free(mb_test_write(copy, ".complete", mb_str_text(&list)));
    mb_str_destroy(&list);
}

static const char *const both[] = {"a b.json", "w.safetensors"};

/* original: two files, a folder, and files that are not staged; a whole copy of it. */
static int setup(void **state)
{
    (void)state;
    char *made = mb_test_folder_make(), *real = realpath(made, NULL);
    folder = mb_strdup(real);
    free(real);
    mb_free(made);
    original = mb_test_path(folder, "in/model");
    copy = mb_str_format("%s/local%s", folder, original);
    mb_test_ok(mb_files_make_folders(original));
    mb_test_ok(mb_files_make_folders(copy));
    char *inner = mb_test_path(original, "inner");
    mb_test_ok(mb_files_make_folders(inner));
    mb_free(inner);
    write_both("a b.json", "{}");
    write_both("w.safetensors", "weights");
    mb_free(mb_test_write(original, "run.log", "x"));
    mb_free(mb_test_write(original, "lease", "x"));
    write_mark(both, 2);
    char *root = mb_test_path(folder, "local");
    setenv("MB_STAGED", root, 1);
    mb_free(root);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    unsetenv("MB_STAGED");
    MB_FREE(original);
    MB_FREE(copy);
    mb_test_folder_remove(&folder);
    return 0;
}

/* name NULL: the folder itself. */
static void expect_place(const char *name, bool is_copy)
{
    char *from = name != NULL ? mb_test_path(original, name) : mb_strdup(original);
    char *to = name != NULL ? mb_test_path(copy, name) : mb_strdup(copy), *place = NULL;
    mb_test_ok(mb_files_staged(from, &place));
    assert_string_equal(place, is_copy ? to : from);
    mb_free(place);
    mb_free(from);
    mb_free(to);
}

static void test_whole(void **state)
{
    (void)state;
    expect_place(NULL, true);
    expect_place("a b.json", true);
    expect_place("w.safetensors", true);
    expect_place("inner", false);   /* a folder is a copy of its own */
    expect_place("run.log", false); /* still being written to by others */
    expect_place("no such file", false);
    assert_true(mb_files_is_unstaged(".cache") && mb_files_is_unstaged("lease.2") &&
                mb_files_is_unstaged("jobs.tsv") && mb_files_is_unstaged("a.tmp.17"));
    assert_false(mb_files_is_unstaged("model.safetensors") || mb_files_is_unstaged("released.json"));
}

/* Another way to the same folder, from a folder below and by a link; and files that are links themselves. */
static void test_other_ways(void **state)
{
    (void)state;
    char *link = mb_test_path(folder, "link"), *place = NULL, *from = mb_test_path(link, "w.safetensors");
    char *to = mb_test_path(copy, "w.safetensors"), *kept = getcwd(NULL, 0);
    assert_int_equal(symlink(original, link), 0);
    mb_test_ok(mb_files_staged(from, &place));
    assert_string_equal(place, to);
    MB_FREE(place);
    assert_int_equal(chdir(original), 0);
    mb_test_ok(mb_files_staged("w.safetensors", &place));
    assert_string_equal(place, to);
    MB_FREE(place);
    mb_test_ok(mb_files_staged(".", &place));
    assert_string_equal(place, copy);
    MB_FREE(place);
    assert_int_equal(chdir(kept), 0);
    free(kept);
    char *blob = mb_test_path(folder, "blob");
    assert_int_equal(rename(from, blob), 0);
    assert_int_equal(symlink(blob, from), 0);
    expect_place("w.safetensors", true);
    expect_place(NULL, true);
    mb_free(blob);
    mb_free(link);
    mb_free(from);
    mb_free(to);
}

static void test_absent(void **state)
{
    (void)state;
    char *mark = mb_test_path(copy, ".complete");
    assert_int_equal(unlink(mark), 0);
    expect_place(NULL, false);
    expect_place("w.safetensors", false);
    mb_free(mark);
    setenv("MB_STAGED", "/nowhere/at/all", 1);
    expect_place("w.safetensors", false);
    setenv("MB_STAGED", "", 1);
    expect_place("w.safetensors", false);
    unsetenv("MB_STAGED");
    expect_place(NULL, false);
    assert_string_equal(mb_status_message(), ""); /* no failure is left behind */
}

static void test_incomplete(void **state)
{
    (void)state;
    char *path = mb_test_path(copy, "w.safetensors");
    assert_int_equal(truncate(path, 3), 0);
    expect_place("w.safetensors", false);
    expect_place("a b.json", true); /* that one is whole */
    expect_place(NULL, false);
    assert_int_equal(unlink(path), 0);
    expect_place("w.safetensors", false);
    expect_place(NULL, false);
    mb_free(path);
}

static void test_changed(void **state)
{
    (void)state;
    char *path = mb_test_path(original, "w.safetensors");
    const struct utimbuf earlier = {.actime = 1000000000, .modtime = 1000000000};
    assert_int_equal(utime(path, &earlier), 0); /* same bytes, another time */
    expect_place("w.safetensors", false);
    expect_place("a b.json", true);
    expect_place(NULL, false);
    write_mark(both, 2);
    expect_place(NULL, true);
    mb_free(mb_test_write(original, "w.safetensors", "longer weights"));
    expect_place("w.safetensors", false);
    expect_place(NULL, false);
    mb_free(path);
}

static void test_other_files(void **state)
{
    (void)state;
    mb_free(mb_test_write(original, "new.json", "{}")); /* came after the copy was made */
    expect_place(NULL, false);
    expect_place("new.json", false);
    expect_place("w.safetensors", true);
    char *path = mb_test_path(original, "new.json");
    assert_int_equal(unlink(path), 0);
    expect_place(NULL, true);
    mb_free(path);
    path = mb_test_path(original, "a b.json");
    assert_int_equal(unlink(path), 0); /* listed, but no longer there */
    expect_place(NULL, false);
    mb_free(path);
}

static void test_bad_marks(void **state)
{
    (void)state;
    static const char *const lines[] = {"",       "7\n",   "7 w.safetensors\n", "x 1 w.safetensors\n",
                                        "7 1 \n", "7 1\n", "7 1 w.safetensors"};
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) {
        char *text = mb_str_format("%s\n%s", original, lines[i]);
        mb_free(mb_test_write(copy, ".complete", text));
        expect_place("w.safetensors", false);
        expect_place(NULL, false);
        mb_free(text);
    }
    mb_free(mb_test_write(copy, ".complete", "/another/folder\n"));
    expect_place("w.safetensors", false);
    mb_free(mb_test_write(copy, ".complete", ""));
    expect_place("w.safetensors", false);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_whole, setup, teardown),
        cmocka_unit_test_setup_teardown(test_other_ways, setup, teardown),
        cmocka_unit_test_setup_teardown(test_absent, setup, teardown),
        cmocka_unit_test_setup_teardown(test_incomplete, setup, teardown),
        cmocka_unit_test_setup_teardown(test_changed, setup, teardown),
        cmocka_unit_test_setup_teardown(test_other_files, setup, teardown),
        cmocka_unit_test_setup_teardown(test_bad_marks, setup, teardown),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, mb_test_teardown);
}
