/* safetensors: round trips whole and in shards, alignment, replacing earlier saves, and a message for each
 * kind of damage. */
#include "store/store_test.h"

#include <math.h>

#include "store/safetensors.h"

static const int64_t shape23[] = {2, 3}, shape5[] = {5};
static const float values6[] = {1, -2, 0.5f, 3, 1e-3f, 65504}, values5[] = {0, 1, 2, 3, 4};

static void write_model(const char *folder, int64_t shard_bytes)
{
    mb_safetensors_writer *writer = NULL;
    const int8_t bytes[3] = {-1, 0, 1};
    const int64_t shape3[] = {3};
    assert_ok(mb_safetensors_writer_create(folder, "model", shard_bytes, &writer));
    assert_ok(mb_safetensors_writer_declare(writer, "odd", MB_I8, 1, shape3));
    assert_ok(mb_safetensors_writer_declare(writer, "b.f16", MB_F16, 2, shape23));
    assert_ok(mb_safetensors_writer_declare(writer, "a.f32", MB_F32, 2, shape23));
    assert_ok(mb_safetensors_writer_declare(writer, "c.bf16", MB_BF16, 1, shape5));
    assert_ok(mb_safetensors_writer_declare(writer, "scalar", MB_F64, 0, NULL));
    assert_ok(mb_safetensors_writer_write(writer, "odd", bytes, 3));
    assert_ok(mb_safetensors_writer_write_f32(writer, "b.f16", values6, 6));
    assert_ok(mb_safetensors_writer_write_f32(writer, "a.f32", values6, 6));
    assert_fails(MB_ESHAPE, mb_safetensors_writer_write_f32(writer, "c.bf16", values6, 6), "c.bf16");
    assert_ok(mb_safetensors_writer_write_f32(writer, "c.bf16", values5, 5));
    assert_ok(mb_safetensors_writer_write_f32(writer, "scalar", values6 + 2, 1));
    assert_ok(mb_safetensors_writer_close(&writer));
}

static void check_model(const char *path)
{
    mb_safetensors *file = NULL;
    mb_tensor tensor;
    float back[6];
    assert_ok(mb_safetensors_open(path, &file));
    assert_int_equal(mb_safetensors_count(file), 5);
    for (int i = 1; i < 5; i++)
        assert_true(strcmp(mb_safetensors_name(file, i - 1), mb_safetensors_name(file, i)) < 0);
    assert_ok(mb_safetensors_read_f32(file, "a.f32", 2, shape23, back));
    assert_memory_equal(back, values6, sizeof values6);
    assert_ok(mb_safetensors_read_f32(file, "b.f16", 2, shape23, back));
    assert_true(back[1] == -2 && back[5] == 65504);
    assert_ok(mb_safetensors_read_f32(file, "c.bf16", 0, NULL, back));
    assert_memory_equal(back, values5, sizeof values5);
    assert_ok(mb_safetensors_view(file, "scalar", &tensor));
    assert_true(tensor.dims == 0 && tensor.dtype == MB_F64 && (uintptr_t)tensor.data % 8 == 0);
    assert_ok(mb_safetensors_view(file, "a.f32", &tensor));
    assert_int_equal((uintptr_t)tensor.data % 4, 0);
    assert_fails(MB_ESHAPE, mb_safetensors_read_f32(file, "a.f32", 1, shape5, back), "a.f32");
    assert_fails(MB_ENOTFOUND, mb_safetensors_view(file, "none", &tensor), "none");
    assert_string_equal(json_string_value(json_object_get(mb_safetensors_metadata(file), "format")), "pt");
    mb_safetensors_close(&file);
}

static void test_round_trip(void **state)
{
    char folder[512], path[600];
    mb_str first = MB_STR_EMPTY, second = MB_STR_EMPTY;
    snprintf(folder, sizeof folder, "%s", test_path(state, "m"));
    snprintf(path, sizeof path, "%s/model.safetensors", folder);
    write_model(folder, 0);
    check_model(folder);
    check_model(path);
    assert_ok(mb_files_read(path, 0, &first));
    assert_int_equal(first.data[0] % 8, 0);
    write_model(folder, 0);
    assert_ok(mb_files_read(path, 0, &second));
    assert_int_equal(first.length, second.length);
    assert_memory_equal(first.data, second.data, first.length);
    mb_str_destroy(&first);
    mb_str_destroy(&second);
}

static void test_shards(void **state)
{
    char folder[512], path[600];
    json_t *index = NULL;
    snprintf(folder, sizeof folder, "%s", test_path(state, "s"));
    write_model(folder, 0);
    write_model(folder, 24); /* the single file of before must go: it would be read first */
    snprintf(path, sizeof path, "%s/model.safetensors", folder);
    assert_false(mb_files_is_file(path));
    check_model(folder);
    snprintf(path, sizeof path, "%s/model.safetensors.index.json", folder);
    check_model(path);
    assert_ok(mb_json_read(path, &index));
    assert_int_equal(json_integer_value(json_object_get(json_object_get(index, "metadata"), "total_size")),
                     3 + 12 + 24 + 10 + 8);
    assert_int_equal(json_object_size(json_object_get(index, "weight_map")), 5);
    json_decref(index);
    snprintf(path, sizeof path, "%s/model-00002-of-00003.safetensors", folder);
    assert_true(mb_files_is_file(path));
    unlink(path);
    mb_safetensors *file = NULL;
    assert_fails(MB_ENOTFOUND, mb_safetensors_open(folder, &file), "model-00002-of-00003.safetensors");
    write_model(folder, 0);
    snprintf(path, sizeof path, "%s/model.safetensors.index.json", folder);
    assert_false(mb_files_is_file(path));
    check_model(folder);
    /* both: the single file counts, as in transformers */
    const char text[] = "{\"weight_map\": {\"a\": \"gone.safetensors\"}}";
    assert_ok(mb_files_write(path, text, strlen(text)));
    check_model(folder);
    snprintf(path, sizeof path, "%s/model.safetensors", folder);
    unlink(path);
    assert_fails(MB_ENOTFOUND, mb_safetensors_open(folder, &file), "gone.safetensors");
}

static void test_index(void **state)
{
    char folder[512], path[600];
    mb_safetensors *file = NULL;
    snprintf(folder, sizeof folder, "%s", test_path(state, "i"));
    write_model(folder, 24);
    snprintf(path, sizeof path, "%s/model.safetensors.index.json", folder);
    const struct {
        const char *text, *part;
        mb_status code;
    } cases[] = {
        {"{}", "weight_map", MB_EFORMAT},
        {"{\"weight_map\": 3}", "weight_map", MB_EFORMAT},
        {"{\"weight_map\": {\"x\": \"../model.safetensors\"}}", "tensor x", MB_EFORMAT},
        {"{\"weight_map\": {\"x\": 4}}", "tensor x", MB_EFORMAT},
        {"{\"weight_map\": {\"x\": \"model-00001-of-00003.safetensors\"}}", "tensor x", MB_EFORMAT},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_ok(mb_files_write(path, cases[i].text, strlen(cases[i].text)));
        assert_fails(cases[i].code, mb_safetensors_open(path, &file), cases[i].part);
    }
}

static void test_refused_folders(void **state)
{
    char folder[512], path[600];
    mb_safetensors *file = NULL;
    snprintf(folder, sizeof folder, "%s", test_path(state, "bin"));
    assert_ok(mb_files_make_folders(folder));
    assert_fails(MB_ENOTFOUND, mb_safetensors_open(folder, &file), "model.safetensors");
    snprintf(path, sizeof path, "%s/pytorch_model.bin", folder);
    assert_ok(mb_files_write(path, "x", 1));
    assert_fails(MB_EUNSUPPORTED, mb_safetensors_open(folder, &file), "save_pretrained");
    assert_fails(MB_ENOTFOUND, mb_safetensors_open("/no/such/model", &file), "/no/such/model");
}

/* A file of this header and `data` zero bytes. */
static void write_raw(const char *path, const char *header, uint64_t length, size_t data)
{
    mb_str bytes = MB_STR_EMPTY;
    for (int i = 0; i < 8; i++) assert_ok(mb_str_append(&bytes, &(char){(char)(length >> (8 * i))}, 1));
    assert_ok(mb_str_add(&bytes, header));
    for (size_t i = 0; i < data; i++) assert_ok(mb_str_append(&bytes, "", 1));
    assert_ok(mb_files_write(path, bytes.data, bytes.length));
    mb_str_destroy(&bytes);
}

static void test_damage(void **state)
{
#define T(dtype, shape, offsets) "{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":" offsets "}"
    static const struct {
        const char *header, *part;
        size_t data;
        mb_status code;
    } cases[] = {
        {"{\"a\":" T("F32", "[2]", "[0,8]") "}", NULL, 8, MB_OK},
        {"{\"a\":" T("F32", "[2]", "[0,8]") "}   ", NULL, 8, MB_OK},
        {"{\"a\":" T("F32", "[0]", "[0,0]") "}", NULL, 0, MB_OK},
        {"{}", NULL, 0, MB_OK},
        {"{\"a\":" T("F32", "[2]", "[0,8]") "}", "cut off", 7, MB_EFORMAT},
        {"{\"a\":" T("F32", "[2]", "[0,8]") "}", "behind the last tensor", 9, MB_EFORMAT},
        {"{\"a\":" T("F32", "[3]", "[0,8]") "}", "shape asks for 12 bytes", 8, MB_EFORMAT},
        {"{\"a\":" T("F31", "[2]", "[0,8]") "}", "unknown dtype", 8, MB_EFORMAT},
        {"{\"a\":" T("F8_E4M3", "[8]", "[0,8]") "}", "not supported", 8, MB_EUNSUPPORTED},
        {"{\"a\":" T("F32", "[1,1,1,1,2]", "[0,8]") "}", "5 dimensions", 8, MB_EUNSUPPORTED},
        {"{\"a\":" T("F32", "[-2]", "[0,8]") "}", "dimension 0", 8, MB_EFORMAT},
        {"{\"a\":" T("F32", "[4611686018427387904,4]", "[0,8]") "}", "larger than any file", 8, MB_EFORMAT},
        {"{\"a\":" T("F32", "[2]", "[8,0]") "}", "backwards", 8, MB_EFORMAT},
        {"{\"a\":" T("F32", "[2]", "[-8,0]") "}", "backwards", 8, MB_EFORMAT},
        {"{\"a\":" T("F32", "[2]", "[0]") "}", "data_offsets", 8, MB_EFORMAT},
        {"{\"a\":{\"shape\":[2],\"data_offsets\":[0,8]}}", "dtype", 8, MB_EFORMAT},
        {"{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,8]}}", "shape", 8, MB_EFORMAT},
        {"{\"a\":7}", "dtype", 8, MB_EFORMAT},
        {"{\"a\":" T("F32", "[2]", "[0,8]") ",\"b\":" T("F32", "[2]", "[4,12]") "}", "overlap", 12,
         MB_EFORMAT},
        {"{\"a\":" T("F32", "[2]", "[0,8]") ",\"b\":" T("F32", "[1]", "[12,16]") "}",
         "4 bytes before tensor b", 16, MB_EFORMAT},
        {"{\"a\":" T("F32", "[2]", "[0,8]") ",\"a\":" T("F32", "[2]", "[8,16]") "}", "duplicate", 16,
         MB_EFORMAT},
        {"{\"a\":", "JSON", 8, MB_EFORMAT},
        {"{\"a\":1} x", "JSON", 8, MB_EFORMAT},
        {"[1]", "does not begin", 8, MB_EFORMAT},
        {"{\"__metadata__\":3}", "__metadata__", 0, MB_EFORMAT},
    };
    char path[512];
    snprintf(path, sizeof path, "%s", test_path(state, "d.safetensors"));
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        mb_safetensors *file = NULL;
        write_raw(path, cases[i].header, strlen(cases[i].header), cases[i].data);
        if (cases[i].code == MB_OK)
            assert_ok(mb_safetensors_open(path, &file));
        else
            assert_fails(cases[i].code, mb_safetensors_open(path, &file), cases[i].part);
        if (cases[i].code != MB_OK) assert_non_null(strstr(mb_status_message(), "d.safetensors"));
        mb_safetensors_close(&file);
    }
    mb_safetensors *file = NULL;
    write_raw(path, "{}", 1000, 0);
    assert_fails(MB_EFORMAT, mb_safetensors_open(path, &file), "1000 bytes long");
    write_raw(path, "{}", UINT64_MAX, 0);
    assert_fails(MB_EFORMAT, mb_safetensors_open(path, &file), "cut off");
    write_raw(path, "", 0, 0);
    assert_fails(MB_EFORMAT, mb_safetensors_open(path, &file), "does not begin");
    assert_ok(mb_files_write(path, "1234567", 7));
    assert_fails(MB_EFORMAT, mb_safetensors_open(path, &file), "7 bytes");
}

/* Unaligned data is read; NaN is refused with its place. */
static void test_values(void **state)
{
    char path[512], header[] = "{\"a\":" T("F32", "[2]", "[0,8]") "}     ";
    mb_safetensors *file = NULL;
    mb_str bytes = MB_STR_EMPTY;
    float pair[2] = {1.5f, NAN}, back[2];
    while (strlen(header) % 4 == 0) header[strlen(header) - 1] = 0;
    snprintf(path, sizeof path, "%s", test_path(state, "v.safetensors"));
    write_raw(path, header, strlen(header), 0);
    assert_ok(mb_files_read(path, 0, &bytes));
    assert_ok(mb_str_append(&bytes, pair, sizeof pair));
    assert_ok(mb_files_write(path, bytes.data, bytes.length));
    assert_ok(mb_safetensors_open(path, &file));
    assert_fails(MB_EDATA, mb_safetensors_read_f32(file, "a", 0, NULL, back), "element 1 is NaN");
    assert_true(back[0] == 1.5f);
    mb_safetensors_close(&file);
    mb_str_destroy(&bytes);
}

static void test_nothing_left(void **state)
{
    char folder[512], **names = NULL;
    int64_t n = 0;
    mb_safetensors_writer *writer = NULL;
    snprintf(folder, sizeof folder, "%s", test_path(state, "drop"));
    assert_ok(mb_safetensors_writer_create(folder, "model", 0, &writer));
    assert_ok(mb_safetensors_writer_declare(writer, "a", MB_F32, 1, shape5));
    assert_ok(mb_safetensors_writer_write_f32(writer, "a", values5, 5));
    mb_safetensors_writer_destroy(&writer);
    assert_ok(mb_safetensors_writer_create(folder, "model", 0, &writer));
    assert_ok(mb_safetensors_writer_declare(writer, "a", MB_F32, 1, shape5));
    setenv("MB_TEST_FREE_BYTES", "5", 1);
    assert_fails(MB_ENOSPACE, mb_safetensors_writer_write_f32(writer, "a", values5, 5), "model.safetensors");
    unsetenv("MB_TEST_FREE_BYTES");
    mb_safetensors_writer_destroy(&writer);
    assert_ok(mb_files_list(folder, &names, &n));
    assert_int_equal(n, 0);
    mb_files_free_names(&names, n);
}

int main(void)
{
    cmocka_set_message_output(CM_OUTPUT_TAP);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),      cmocka_unit_test(test_shards), cmocka_unit_test(test_index),
        cmocka_unit_test(test_refused_folders), cmocka_unit_test(test_damage), cmocka_unit_test(test_values),
        cmocka_unit_test(test_nothing_left),
    };
    return cmocka_run_group_tests(tests, test_setup, test_teardown);
}
