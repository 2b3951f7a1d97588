/* test_staged_inputs: weights and hashes are read from node-local copies, and are those of the originals.
 * The copies here hold other bytes than the originals, so that it shows which was read. */
#include "store/store_test.h"

#include <sys/stat.h>

#include "store/contenthash.h"
#include "store/safetensors.h"

static const int64_t shape[] = {2};
static const float first[] = {1, 2}, second[] = {3, 4};

static void write_model(const char *folder, const float *values)
{
    mb_safetensors_writer *writer = NULL;
    assert_ok(mb_files_make_folders(folder));
    assert_ok(mb_safetensors_writer_create(folder, "model", 0, &writer));
    assert_ok(mb_safetensors_writer_declare(writer, "w", MB_F32, 1, shape));
    assert_ok(mb_safetensors_writer_write(writer, "w", values, 2 * sizeof *values));
    assert_ok(mb_safetensors_writer_close(&writer));
}

/* .complete of a copy that holds model.safetensors. */
static void write_mark(const char *folder, const char *copy)
{
    struct stat info;
    char *path = mb_files_join(folder, "model.safetensors"), *mark = mb_files_join(copy, ".complete");
    assert_int_equal(stat(path, &info), 0);
    char *text = mb_str_format("%s\n%lld %lld model.safetensors\n", folder, (long long)info.st_size,
                               (long long)info.st_mtime);
    assert_ok(mb_files_write(mark, text, strlen(text)));
    mb_free(path);
    mb_free(mark);
    mb_free(text);
}

static float read_weight(const char *path)
{
    mb_safetensors *file = NULL;
    float values[2] = {0};
    assert_ok(mb_safetensors_open(path, &file));
    assert_ok(mb_safetensors_read_f32(file, "w", 1, shape, values));
    mb_safetensors_close(&file);
    return values[0];
}

static void test_copies(void **state)
{
    char hash[3][MB_HASH_TEXT];
    char *real = realpath(((test_folder *)*state)->path, NULL);
    char *model = mb_files_join(real, "model"), *local = mb_files_join(real, "local");
    char *copy = mb_str_format("%s%s", local, model), *file = mb_files_join(model, "model.safetensors");
    write_model(model, first);
    write_model(copy, second);
    assert_ok(mb_contenthash_path(model, hash[0]));
    setenv("MB_STAGED", local, 1);
    assert_true(read_weight(model) == 1); /* not complete */
    write_mark(model, copy);
    assert_true(read_weight(model) == 3);
    assert_true(read_weight(file) == 3);
    assert_ok(mb_contenthash_path(model, hash[1]));
    assert_string_not_equal(hash[1], hash[0]);
    write_model(copy, first);
    write_mark(model, copy);
    assert_ok(mb_contenthash_path(model, hash[1])); /* names and bytes, not places */
    assert_string_equal(hash[1], hash[0]);
    assert_ok(mb_contenthash_path(file, hash[1]));
    unsetenv("MB_STAGED");
    assert_ok(mb_contenthash_path(file, hash[2]));
    assert_string_equal(hash[1], hash[2]);
    mb_free(model);
    mb_free(local);
    mb_free(copy);
    mb_free(file);
    free(real);
}

/* Damage in a copy is reported under the name the user knows. */
static void test_message(void **state)
{
    mb_safetensors *file = NULL;
    char *real = realpath(((test_folder *)*state)->path, NULL);
    char *model = mb_files_join(real, "bad"), *local = mb_files_join(real, "local");
    char *copy = mb_str_format("%s%s", local, model), *weights = mb_files_join(copy, "model.safetensors");
    char message[600];
    write_model(model, first);
    write_model(copy, first);
    int64_t bytes = 0;
    assert_ok(mb_files_size(weights, &bytes));
    char *zeros = mb_calloc((size_t)bytes, 1);
    test_write(weights, zeros, (size_t)bytes);
    write_mark(model, copy);
    setenv("MB_STAGED", local, 1);
    snprintf(message, sizeof message, "%s/model.safetensors", model);
    assert_fails(MB_EFORMAT, mb_safetensors_open(model, &file), message);
    unsetenv("MB_STAGED");
    assert_true(read_weight(model) == 1);
    mb_free(zeros);
    mb_free(model);
    mb_free(local);
    mb_free(copy);
    mb_free(weights);
    free(real);
}

/* What tells of a run is not part of its results. */
static void test_left_out(void **state)
{
    static const char *const records[] = {"progress.json",     "progress-0of4.json", "failure.json",
                                          "failure-3of4.json", "attempts.tsv",       "lease-1of4",
                                          "done-2of4.json"};
    static const char *const results[] = {"progress-report.json", "done-2of4.json.gz", "x.tsv"};
    char hash[2][MB_HASH_TEXT], path[600];
    assert_ok(mb_files_make_folders(test_path(state, "run")));
    char *folder = mb_strdup(test_path(state, "run"));
    test_write(test_path(state, "run/a"), "1", 1);
    assert_ok(mb_contenthash_path(folder, hash[0]));
    for (size_t i = 0; i < sizeof records / sizeof *records; i++) {
        snprintf(path, sizeof path, "%s/%s", folder, records[i]);
        test_write(path, "x", 1);
        assert_ok(mb_contenthash_path(folder, hash[1]));
        assert_string_equal(hash[1], hash[0]);
    }
    for (size_t i = 0; i < sizeof results / sizeof *results; i++) {
        snprintf(path, sizeof path, "%s/%s", folder, results[i]);
        test_write(path, "x", 1);
        assert_ok(mb_contenthash_path(folder, hash[1]));
        assert_string_not_equal(hash[1], hash[0]);
        strcpy(hash[0], hash[1]);
    }
    mb_free(folder);
}

int main(void)
{
    cmocka_set_message_output(CM_OUTPUT_TAP);
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_copies), cmocka_unit_test(test_message),
                                       cmocka_unit_test(test_left_out)};
    return cmocka_run_group_tests(tests, test_setup, test_teardown);
}
