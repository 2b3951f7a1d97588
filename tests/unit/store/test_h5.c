/* HDF5 layer: round trips of every type and shape, growing rows, attributes, content hash, damage, full disk.
 */
#include "store/store_test.h"

#include <signal.h>
#include <sys/resource.h>

#include "base/hash.h"

static void test_types(void **state)
{
    const char *path = test_path(state, "a.h5");
    mb_h5 *file = NULL;
    assert_ok(mb_h5_create(path, &file));
    assert_false(mb_files_is_file(path));
    unsigned char bytes[MB_DTYPE_COUNT][6 * 8], back[6 * 8];
    for (int d = 0; d < MB_DTYPE_COUNT; d++) {
        char name[32];
        for (size_t i = 0; i < sizeof bytes[d]; i++)
            bytes[d][i] = (unsigned char)(d == MB_BOOL ? i % 2 : 37 * i + (size_t)d);
        mb_tensor tensor = mb_tensor_view2((mb_dtype)d, bytes[d], 2, 3);
        snprintf(name, sizeof name, "/deep/er/t%d", d);
        assert_ok(mb_h5_write(file, name, &tensor));
    }
    assert_ok(mb_h5_write_f64(file, "/scalar", 2.5));
    mb_tensor empty = mb_tensor_view1(MB_F32, NULL, 0);
    assert_ok(mb_h5_write(file, "/empty", &empty));
    assert_ok(mb_h5_close(&file));
    assert_ok(mb_h5_open(path, &file));
    for (int d = 0; d < MB_DTYPE_COUNT; d++) {
        char name[32];
        snprintf(name, sizeof name, "/deep/er/t%d", d);
        mb_tensor tensor = mb_tensor_view2((mb_dtype)d, back, 2, 3);
        assert_ok(mb_h5_read(file, name, &tensor));
        assert_memory_equal(back, bytes[d], mb_tensor_bytes(&tensor));
        tensor = mb_tensor_view2((mb_dtype)d, back, 3, 2);
        assert_fails(MB_ESHAPE, mb_h5_read(file, name, &tensor), name);
        tensor = mb_tensor_view2(d == MB_F32 ? MB_F64 : MB_F32, back, 2, 3);
        assert_fails(MB_ESHAPE, mb_h5_read(file, name, &tensor), name);
    }
    double value = 0;
    assert_ok(mb_h5_read_f64(file, "/scalar", &value));
    assert_true(value == 2.5);
    int dims;
    int64_t shape[MB_TENSOR_MAX_DIMS];
    void *data = NULL;
    assert_ok(mb_h5_read_new(file, "/empty", MB_F32, &dims, shape, &data));
    assert_int_equal(shape[0], 0);
    mb_free(data);
    assert_true(mb_h5_has(file, "/deep") && mb_h5_has(file, "/deep/er/t0"));
    assert_false(mb_h5_has(file, "/deep/er/none") || mb_h5_has(file, "/no/such/group"));
    assert_fails(MB_ENOTFOUND, mb_h5_shape(file, "/none", NULL, &dims, shape), "/none");
    assert_ok(mb_h5_close(&file));
}

static void test_texts(void **state)
{
    const char *path = test_path(state, "s.h5"), *const texts[] = {"one", "", "drei \xe2\x82\xac", "four"};
    mb_h5 *file = NULL;
    mb_str text = MB_STR_EMPTY;
    char **back = NULL, *large = mb_calloc(100001, 1);
    int64_t n = 0, value = 0;
    double real = 0;
    memset(large, 'x', 100000);
    assert_ok(mb_h5_create(path, &file));
    assert_ok(mb_h5_write_strings(file, "/texts", texts, 4));
    assert_ok(mb_h5_write_strings(file, "/none", texts, 0));
    assert_ok(mb_h5_set_text(file, "/", "empty", ""));
    assert_ok(mb_h5_set_text(file, "/", "large", large));
    assert_ok(mb_h5_set_text(file, "/texts", "unit", "words"));
    assert_ok(mb_h5_set_int(file, "/", "count", 1));
    assert_ok(mb_h5_set_int(file, "/", "count", INT64_MIN));
    assert_ok(mb_h5_set_real(file, "/", "real", 1.0 / 3));
    assert_ok(mb_h5_close(&file));
    assert_ok(mb_h5_open(path, &file));
    assert_ok(mb_h5_read_strings(file, "/texts", &back, &n));
    assert_int_equal(n, 4);
    for (int i = 0; i < 4; i++) assert_string_equal(back[i], texts[i]);
    mb_h5_free_strings(&back, n);
    assert_ok(mb_h5_read_strings(file, "/none", &back, &n));
    assert_int_equal(n, 0);
    mb_h5_free_strings(&back, n);
    assert_ok(mb_h5_get_text(file, "/", "empty", &text));
    assert_string_equal(mb_str_text(&text), "");
    assert_ok(mb_h5_get_text(file, "/", "large", &text));
    assert_string_equal(mb_str_text(&text), large);
    assert_ok(mb_h5_get_text(file, "/texts", "unit", &text));
    assert_string_equal(mb_str_text(&text), "words");
    assert_ok(mb_h5_get_int(file, "/", "count", &value));
    assert_true(value == INT64_MIN);
    assert_ok(mb_h5_get_real(file, "/", "real", &real));
    assert_true(real == 1.0 / 3);
    assert_fails(MB_ENOTFOUND, mb_h5_get_int(file, "/", "none", &value), "none");
    assert_fails(MB_EFORMAT, mb_h5_get_int(file, "/", "real", &value), "real");
    assert_ok(mb_h5_close(&file));
    mb_str_destroy(&text);
    mb_free(large);
}

/* Rows appended in pieces of any size give the same bytes in the file. */
static void test_rows(void **state)
{
    const int64_t pieces[] = {1, 7, 1000, 20000, 100000}, width = 3, total = 100000;
    char first_hash[MB_HASH_TEXT] = "", hash[MB_HASH_TEXT], path[512];
    int32_t *rows = mb_calloc((size_t)(total * width), sizeof *rows),
            *back = mb_calloc((size_t)(total * width), sizeof *rows);
    snprintf(path, sizeof path, "%s", test_path(state, "r.h5"));
    for (int64_t i = 0; i < total * width; i++) rows[i] = (int32_t)(i * 2654435761u);
    for (size_t p = 0; p < 5; p++) {
        mb_h5 *file = NULL;
        assert_ok(mb_h5_create(path, &file));
        assert_ok(mb_h5_create_rows(file, "/g/rows", MB_I32, 1, &width, 256 << 10));
        assert_ok(mb_h5_create_rows(file, "/few", MB_I32, 0, NULL, 256 << 10));
        assert_ok(mb_h5_create_rows(file, "/nothing", MB_F64, 1, &width, 256 << 10));
        for (int64_t at = 0; at < total; at += pieces[p]) {
            int64_t n = total - at < pieces[p] ? total - at : pieces[p];
            assert_ok(mb_h5_append_rows(file, "/g/rows", rows + at * width, n));
        }
        assert_ok(mb_h5_append_rows(file, "/few", rows, 5));
        assert_ok(mb_h5_close(&file));
        assert_ok(mb_hash_file(path, hash));
        if (p == 0) memcpy(first_hash, hash, sizeof hash);
        assert_string_equal(hash, first_hash);
    }
    mb_h5 *file = NULL;
    int dims;
    int64_t shape[MB_TENSOR_MAX_DIMS];
    assert_ok(mb_h5_open(path, &file));
    assert_ok(mb_h5_read_rows(file, "/g/rows", MB_I32, 0, total, back));
    assert_memory_equal(back, rows, (size_t)(total * width) * sizeof *rows);
    assert_ok(mb_h5_read_rows(file, "/g/rows", MB_I32, 77777, 5, back));
    assert_memory_equal(back, rows + 77777 * width, 5 * (size_t)width * sizeof *rows);
    assert_ok(mb_h5_read_rows(file, "/g/rows", MB_I32, total, 0, back));
    assert_fails(MB_ERANGE, mb_h5_read_rows(file, "/g/rows", MB_I32, total, 1, back), "/g/rows");
    assert_fails(MB_ERANGE, mb_h5_read_rows(file, "/g/rows", MB_I32, -1, 1, back), "/g/rows");
    assert_ok(mb_h5_shape(file, "/nothing", NULL, &dims, shape));
    assert_true(dims == 2 && shape[0] == 0 && shape[1] == width);
    assert_ok(mb_h5_close(&file));
    mb_free(rows);
    mb_free(back);
}

static void write_content(const char *path, size_t chunk, double extra, const char *provenance)
{
    mb_h5 *file = NULL;
    double values[20000];
    for (int i = 0; i < 20000; i++) values[i] = i + extra;
    assert_ok(mb_h5_create(path, &file));
    if (chunk == 1) assert_ok(mb_h5_set_text(file, "/", "b", "2"));
    assert_ok(mb_h5_set_text(file, "/", "a", "1"));
    if (chunk != 1) assert_ok(mb_h5_set_text(file, "/", "b", "2"));
    assert_ok(mb_h5_create_rows(file, "/x", MB_F64, 0, NULL, chunk));
    assert_ok(mb_h5_append_rows(file, "/x", values, 20000));
    const char *texts[] = {provenance};
    assert_ok(mb_h5_write_strings(file, "/provenance/host", texts, 1));
    assert_ok(mb_h5_close(&file));
}

static void test_content_hash(void **state)
{
    const struct {
        size_t chunk;
        double extra;
        const char *host;
    } cases[] = {{262144, 0, "one"}, {8192, 0, "one"}, {1, 0, "two!"}, {262144, 1e-9, "one"}};
    char hash[4][MB_HASH_TEXT];
    const char *path = test_path(state, "c.h5");
    for (int i = 0; i < 4; i++) {
        mb_h5 *file = NULL;
        if (i == 2) write_content(path, 4096, 0, cases[i].host);
        if (i != 2) write_content(path, cases[i].chunk, cases[i].extra, cases[i].host);
        assert_ok(mb_h5_open(path, &file));
        assert_ok(mb_h5_content_hash(file, hash[i]));
        assert_ok(mb_h5_close(&file));
    }
    assert_string_equal(hash[0], hash[1]);
    assert_string_equal(hash[0], hash[2]);
    assert_string_not_equal(hash[0], hash[3]);
}

/* A writer that is dropped, or cannot write, leaves nothing. */
static void test_nothing_left(void **state)
{
    const char *path = test_path(state, "n.h5");
    mb_h5 *file = NULL;
    char **names = NULL;
    int64_t n = 0;
    assert_ok(mb_h5_create(path, &file));
    assert_ok(mb_h5_set_int(file, "/", "x", 1));
    mb_h5_destroy(&file);
    setenv("MB_TEST_FREE_BYTES", "1000", 1);
    assert_fails(MB_ENOSPACE, mb_h5_create(path, &file), "n.h5");
    setenv("MB_TEST_FREE_BYTES", "4000000", 1);
    assert_ok(mb_h5_create(path, &file));
    float *values = mb_calloc(2000000, sizeof *values);
    mb_tensor tensor = mb_tensor_view1(MB_F32, values, 2000000);
    assert_fails(MB_ENOSPACE, mb_h5_write(file, "/x", &tensor), "n.h5");
    unsetenv("MB_TEST_FREE_BYTES");
    mb_h5_destroy(&file);
    mb_free(values);
    assert_fails(MB_EIO, mb_h5_create("/nonexistent-folder/x.h5", &file), "/nonexistent-folder/x.h5");
    assert_fails(MB_ENOTFOUND, mb_h5_open(path, &file), "n.h5");
    assert_ok(mb_files_list(((test_folder *)*state)->path, &names, &n));
    for (int64_t i = 0; i < n; i++) assert_false(mb_str_is_prefix(names[i], "n.h5"));
    mb_files_free_names(&names, n);
}

/* A write that the system refuses half-way is an error, not a file. */
static void test_write_refused(void **state)
{
    const char *path = test_path(state, "full.h5");
    struct rlimit before, limit;
    mb_h5 *file = NULL;
    const size_t n = 1 << 20;
    uint32_t *values = mb_calloc(n, sizeof *values);
    for (size_t i = 0; i < n; i++) values[i] = (uint32_t)i;
    getrlimit(RLIMIT_FSIZE, &before);
    limit = before;
    limit.rlim_cur = 1 << 20;
    signal(SIGXFSZ, SIG_IGN);
    assert_ok(mb_h5_create(path, &file));
    assert_ok(mb_h5_create_rows(file, "/x", MB_U32, 0, NULL, 256 << 10));
    setrlimit(RLIMIT_FSIZE, &limit);
    mb_status status = mb_h5_append_rows(file, "/x", values, (int64_t)n);
    if (status == MB_OK) status = mb_h5_close(&file);
    setrlimit(RLIMIT_FSIZE, &before);
    assert_int_not_equal(status, MB_OK);
    assert_non_null(strstr(mb_status_message(), "full.h5"));
    mb_h5_destroy(&file);
    assert_false(mb_files_is_file(path));
    mb_free(values);
}

/* Not HDF5, cut off, damaged: messages with the path. */
static void test_damage(void **state)
{
    char path[512], bad[512];
    mb_h5 *file = NULL;
    mb_str bytes = MB_STR_EMPTY;
    int64_t n = 0;
    snprintf(path, sizeof path, "%s", test_path(state, "d.h5"));
    snprintf(bad, sizeof bad, "%s", test_path(state, "bad.h5"));
    assert_ok(mb_h5_create(path, &file));
    assert_ok(mb_h5_create_rows(file, "/x", MB_U32, 0, NULL, 64 << 10));
    for (uint32_t i = 0; i < 40000; i++) assert_ok(mb_h5_append_rows(file, "/x", &i, 1));
    assert_ok(mb_h5_close(&file));
    assert_ok(mb_files_read(path, 0, &bytes));
    assert_ok(mb_files_write(bad, "no HDF5 at all", 14));
    assert_fails(MB_EFORMAT, mb_h5_open(bad, &file), "bad.h5");
    assert_ok(mb_files_write(bad, bytes.data, bytes.length / 2));
    assert_fails(MB_EFORMAT, mb_h5_open(bad, &file), "bad.h5");
    uint32_t *back = mb_calloc(40000, sizeof *back);
    mb_str copy = MB_STR_EMPTY;
    assert_ok(mb_str_append(&copy, bytes.data, bytes.length));
    for (size_t at = 0; at < bytes.length; at += 997) {
        copy.data[at] ^= 0x10;
        assert_ok(mb_files_write(bad, copy.data, copy.length));
        mb_status status = mb_h5_open(bad, &file);
        if (status == MB_OK) status = mb_h5_read_rows(file, "/x", MB_U32, 0, 40000, back);
        for (uint32_t i = 0; status == MB_OK && i < 40000; i++) assert_int_equal(back[i], i);
        if (status != MB_OK) {
            assert_non_null(strstr(mb_status_message(), "bad.h5"));
            n++;
        }
        mb_h5_destroy(&file);
        copy.data[at] = bytes.data[at];
    }
    assert_true(n > 150);
    mb_free(back);
    mb_str_destroy(&bytes);
    mb_str_destroy(&copy);
}

/* More datasets than stay open, read in two rounds. */
static void test_many(void **state)
{
    const char *path = test_path(state, "m.h5");
    mb_h5 *file = NULL;
    char name[32];
    double value = 0;
    assert_ok(mb_h5_create(path, &file));
    for (int i = 0; i < 100; i++) {
        snprintf(name, sizeof name, "/v%d", i);
        assert_ok(mb_h5_write_f64(file, name, i));
    }
    assert_ok(mb_h5_close(&file));
    assert_ok(mb_h5_open(path, &file));
    for (int i = 0; i < 200; i++) {
        snprintf(name, sizeof name, "/v%d", i % 100);
        assert_ok(mb_h5_read_f64(file, name, &value));
        assert_true(value == i % 100);
    }
    assert_true(mb_h5_live_handles() < 40);
    assert_ok(mb_h5_close(&file));
    assert_int_equal(mb_h5_live_handles(), 0);
}

int main(void)
{
    cmocka_set_message_output(CM_OUTPUT_TAP);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_types),        cmocka_unit_test(test_texts),
        cmocka_unit_test(test_rows),         cmocka_unit_test(test_content_hash),
        cmocka_unit_test(test_nothing_left), cmocka_unit_test(test_write_refused),
        cmocka_unit_test(test_damage),       cmocka_unit_test(test_many),
    };
    return cmocka_run_group_tests(tests, test_setup, test_teardown);
}
