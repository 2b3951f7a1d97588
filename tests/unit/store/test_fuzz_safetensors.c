/* Safetensors files with mutated headers: opening fails, or every view lies inside the file. MB_FUZZ_COUNT
 * sets how many (2000). */
#include "store/store_test.h"

#include "base/rng.h"
#include "store/safetensors.h"

static const uint64_t seed = 21;

static void write_model(const char *folder)
{
    const int64_t shape[] = {3, 4};
    const float values[12] = {0};
    mb_safetensors_writer *writer = NULL;
    const char *const names[] = {"model.embed", "model.layers.0.w", "model.layers.1.w", "norm"};
    const mb_dtype dtypes[] = {MB_F32, MB_BF16, MB_F16, MB_F64};
    assert_ok(mb_safetensors_writer_create(folder, "model", 0, &writer));
    for (int i = 0; i < 4; i++)
        assert_ok(mb_safetensors_writer_declare(writer, names[i], dtypes[i], 2, shape));
    for (int i = 0; i < 4; i++) assert_ok(mb_safetensors_writer_write_f32(writer, names[i], values, 12));
    assert_ok(mb_safetensors_writer_close(&writer));
}

/* Change a few characters of the header, mostly into ones that JSON likes. */
static void mutate(mb_str *bytes, size_t header, uint64_t i)
{
    static const char liked[] = "0123456789[]{},:\"-e. FB\\";
    uint64_t changes = 1 + mb_rng_below(seed, MB_RNG_CORRUPT, 0, i, 3);
    for (uint64_t c = 0; c < changes; c++) {
        uint64_t k = i * 8 + c, kind = mb_rng_below(seed, MB_RNG_CORRUPT, 1, k, 8);
        size_t at = (size_t)mb_rng_below(seed, MB_RNG_CORRUPT, 2, k, header);
        if (kind < 5)
            bytes->data[at] = liked[mb_rng_below(seed, MB_RNG_CORRUPT, 3, k, sizeof liked - 1)];
        else if (kind < 7)
            bytes->data[at] ^= (char)(1 << (k % 8));
        else if (at < bytes->length)
            bytes->length = at + (size_t)mb_rng_below(seed, MB_RNG_CORRUPT, 4, k, bytes->length - at);
    }
}

/* Touch every byte of every tensor: outside the map this would crash. */
static unsigned touch(const mb_safetensors *file)
{
    unsigned sum = 0;
    for (int64_t i = 0; i < mb_safetensors_count(file); i++) {
        mb_tensor tensor;
        assert_ok(mb_safetensors_view(file, mb_safetensors_name(file, i), &tensor));
        for (size_t b = 0; b < mb_tensor_bytes(&tensor); b++) sum += ((const unsigned char *)tensor.data)[b];
    }
    return sum;
}

static void test_mutations(void **state)
{
    char folder[512], path[600], bad[512];
    mb_str bytes = MB_STR_EMPTY, copy = MB_STR_EMPTY;
    uint64_t count = getenv("MB_FUZZ_COUNT") != NULL ? strtoull(getenv("MB_FUZZ_COUNT"), NULL, 10) : 2000,
             refused = 0;
    snprintf(folder, sizeof folder, "%s", test_path(state, "m"));
    snprintf(path, sizeof path, "%s/model.safetensors", folder);
    snprintf(bad, sizeof bad, "%s", test_path(state, "bad.safetensors"));
    write_model(folder);
    assert_ok(mb_files_read(path, 0, &bytes));
    size_t header = 8 + (size_t)(unsigned char)bytes.data[0] + 256 * (size_t)(unsigned char)bytes.data[1];
    unsigned sum = 0;
    for (uint64_t i = 0; i < count; i++) {
        mb_safetensors *file = NULL;
        mb_str_reset(&copy);
        assert_ok(mb_str_append(&copy, bytes.data, bytes.length));
        mutate(&copy, header, i);
        test_write(bad, copy.data, copy.length);
        if (mb_safetensors_open(bad, &file) == MB_OK)
            sum += touch(file);
        else
            refused++;
        mb_safetensors_close(&file);
    }
    printf("# seed %llu: %llu of %llu refused, sum %u\n", (unsigned long long)seed,
           (unsigned long long)refused, (unsigned long long)count, sum);
    assert_true(refused > count / 2 && refused < count);
    mb_str_destroy(&bytes);
    mb_str_destroy(&copy);
}

int main(void)
{
    cmocka_set_message_output(CM_OUTPUT_TAP);
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_mutations)};
    return cmocka_run_group_tests(tests, test_setup, test_teardown);
}
