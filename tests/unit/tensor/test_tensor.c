/* test_tensor: dtypes, conversions (all f16 and bf16 values), buffers and views. */
#include "mb_test.h"

#include "tensor/tensor.h"

static void test_names(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        mb_dtype dtype;
        size_t bytes;
    } rows[] = {{"f32", MB_F32, 4},           {"float32", MB_F32, 4}, {"F32", MB_F32, 4},
                {"bfloat16", MB_BF16, 2},     {"BF16", MB_BF16, 2},   {"half", MB_F16, 2},
                {"torch.float16", MB_F16, 2}, {"I64", MB_I64, 8},     {"uint8", MB_U8, 1},
                {"BOOL", MB_BOOL, 1},         {"u16", MB_U16, 2},     {"double", MB_F64, 8}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        mb_dtype dtype = MB_DTYPE_COUNT;
        mb_test_ok(mb_dtype_parse(rows[i].text, &dtype));
        assert_int_equal(dtype, rows[i].dtype);
        assert_int_equal(mb_dtype_bytes(dtype), rows[i].bytes);
    }
    for (int i = 0; i < MB_DTYPE_COUNT; i++) {
        mb_dtype dtype = MB_DTYPE_COUNT;
        mb_test_ok(mb_dtype_parse(mb_dtype_name((mb_dtype)i), &dtype));
        assert_int_equal(dtype, i);
    }
    mb_dtype kept = MB_I8;
    mb_test_fails(mb_dtype_parse("f33", &kept), MB_EUNSUPPORTED, "'f33'");
    assert_int_equal(kept, MB_I8);
}

/* Every 16-bit pattern survives the way to f32 and back (a NaN stays a NaN). */
static void test_halves_return(void **state)
{
    (void)state;
    for (uint32_t bits = 0; bits < 65536; bits++) {
        float half = mb_dtype_f32_from_f16((uint16_t)bits), brain = mb_dtype_f32_from_bf16((uint16_t)bits);
        if (isnan(half)) {
            assert_true(isnan(mb_dtype_f32_from_f16(mb_dtype_f16_from_f32(half))));
        } else {
            assert_int_equal(mb_dtype_f16_from_f32(half), bits);
        }
        if (isnan(brain)) {
            assert_true(isnan(mb_dtype_f32_from_bf16(mb_dtype_bf16_from_f32(brain))));
        } else {
            assert_int_equal(mb_dtype_bf16_from_f32(brain), bits);
        }
    }
}

/* Between two neighbours: below the middle goes down, above goes up, the middle goes to the even one. */
static void check_between(uint16_t bits, float (*to)(uint16_t), uint16_t (*from)(float))
{
    float low = to(bits), high = to((uint16_t)(bits + 1));
    float middle = (float)(((double)low + (double)high) / 2);
    assert_int_equal(from(middle), bits % 2 == 0 ? bits : bits + 1);
    assert_int_equal(from(nextafterf(middle, low)), bits);
    assert_int_equal(from(nextafterf(middle, high)), bits + 1);
    assert_int_equal(from(-middle), 0x8000 | (bits % 2 == 0 ? bits : bits + 1));
}

static void test_halves_round(void **state)
{
    (void)state;
    for (uint32_t bits = 0; bits < 0x7BFF; bits++) {
        check_between((uint16_t)bits, mb_dtype_f32_from_f16, mb_dtype_f16_from_f32);
    }
    for (uint32_t bits = 0; bits < 0x7F7F; bits++) {
        check_between((uint16_t)bits, mb_dtype_f32_from_bf16, mb_dtype_bf16_from_f32);
    }
    assert_int_equal(mb_dtype_f16_from_f32(65519.0f), 0x7BFF);
    assert_int_equal(mb_dtype_f16_from_f32(65520.0f), 0x7C00);
    assert_int_equal(mb_dtype_f16_from_f32(-INFINITY), 0xFC00);
    assert_int_equal(mb_dtype_bf16_from_f32(3.4e38f), 0x7F80);
    assert_int_equal(mb_dtype_f16_from_f32(1.0f), 0x3C00);
    assert_int_equal(mb_dtype_bf16_from_f32(1.0f), 0x3F80);
}

static void test_arrays(void **state)
{
    (void)state;
    static const mb_dtype types[] = {MB_F32, MB_F64, MB_BF16, MB_F16};
    const float values[5] = {0, -1.5f, 2.25f, 96, -0.015625f}; /* exact in all */
    for (size_t i = 0; i < 4; i++) {
        double stored[5];
        float back[5] = {0};
        mb_test_ok(mb_dtype_from_f32(types[i], values, 5, stored));
        mb_test_ok(mb_dtype_to_f32(types[i], stored, 5, back));
        assert_memory_equal(values, back, sizeof values);
    }
    float out[5];
    mb_test_fails(mb_dtype_to_f32(MB_I8, values, 5, out), MB_EUNSUPPORTED, "i8");
    mb_test_fails(mb_dtype_from_f32(MB_BOOL, values, 5, out), MB_EUNSUPPORTED, "bool");
}

static void *no_alloc(void *context, size_t bytes)
{
    (void)bytes;
    ++*(int *)context;
    return NULL;
}

static void no_free(void *context, void *data)
{
    (void)context;
    assert_null(data);
}

static void test_buffers(void **state)
{
    (void)state;
    mb_buffer *buffer = NULL;
    mb_test_ok(mb_buffer_create(mb_allocator_host(), 1000, &buffer));
    assert_int_equal(buffer->bytes, 1000);
    assert_int_equal((uintptr_t)buffer->data % 64, 0);
    for (int i = 0; i < 1000; i++) assert_int_equal(((char *)buffer->data)[i], 0);
    mb_buffer_destroy(&buffer);
    assert_null(buffer);
    mb_buffer_destroy(&buffer);
    int calls = 0;
    const mb_allocator none = {.name = "moon", .alloc = no_alloc, .free = no_free, .context = &calls};
    mb_test_fails(mb_buffer_create(&none, 8, &buffer), MB_ENOMEM, "moon");
    assert_null(buffer);
    assert_int_equal(calls, 1);
}

static void test_views(void **state)
{
    (void)state;
    float data[24];
    char text[64];
    mb_tensor a = mb_tensor_view3(MB_F32, data, 4, 3, 2);
    assert_int_equal(mb_tensor_count(&a), 24);
    assert_int_equal(mb_tensor_bytes(&a), 96);
    assert_true(mb_tensor_is_shape(&a, 3, (const int64_t[]){4, 3, 2}));
    assert_false(mb_tensor_is_shape(&a, 3, (const int64_t[]){4, 2, 3}));
    assert_false(mb_tensor_is_shape(&a, 2, (const int64_t[]){4, 3}));
    mb_tensor rows = mb_tensor_rows(&a, 1, 2);
    assert_ptr_equal(rows.data, data + 6);
    assert_int_equal(mb_tensor_count(&rows), 12);
    assert_string_equal(mb_tensor_describe(&rows, text, sizeof text), "[2, 3, 2] f32");
    mb_tensor none = {0}, scalar = {.data = data}, empty = mb_tensor_view2(MB_BF16, NULL, 0, 7);
    assert_int_equal(mb_tensor_count(&none), 0);
    assert_int_equal(mb_tensor_count(&scalar), 1);
    assert_int_equal(mb_tensor_bytes(&empty), 0);
    assert_int_equal(mb_tensor_view1(MB_I8, data, 3).shape[3], 1);
    assert_string_equal(mb_tensor_describe(&empty, text, 7), "[0, 7]");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_names),        cmocka_unit_test(test_halves_return),
        cmocka_unit_test(test_halves_round), cmocka_unit_test(test_arrays),
        cmocka_unit_test(test_buffers),      cmocka_unit_test(test_views),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, mb_test_teardown);
}
