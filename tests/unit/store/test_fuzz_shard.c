/* A small shard with flipped bits, cut ends and overwritten runs: reading it fails or gives what was written,
 * nothing else. MB_FUZZ_COUNT sets the number of random mutations (300). */
#include "store/shard_sample.h"

#ifdef __SANITIZE_ADDRESS__
/* HDF5 itself loses the object header it was reading when that is damaged; our own blocks are counted. */
const char *__lsan_default_suppressions(void);
const char *__lsan_default_suppressions(void)
{
    return "leak:libhdf5\n";
}
#endif

enum { RECORDS = 25, LONGEST = 60 };
static const uint64_t seed = 11;

/* Read everything of a possibly damaged shard: MB_OK only when it equals the original. */
static mb_status read_all(const char *path)
{
    static uint32_t tokens[SAMPLE_LONGEST];
    static uint8_t mask[SAMPLE_LONGEST];
    mb_shard *shard = NULL;
    mb_status status = mb_shard_open(path, 0, &shard);
    if (status == MB_OK) {
        assert_int_equal(mb_shard_count(shard), RECORDS);
        assert_string_equal(mb_shard_source_name(shard, 1), "beta");
        assert_string_equal(mb_shard_source_file(shard, 1), "b.jsonl");
        assert_string_equal(mb_shard_tokenizer_hash(shard), "0123");
    }
    for (int64_t i = 0; status == MB_OK && i < RECORDS; i++) {
        mb_shard_record want = sample_record(seed, i, LONGEST, tokens, mask), got;
        status = mb_shard_read(shard, i, &got);
        if (status != MB_OK) break;
        assert_int_equal(got.count, want.count);
        if (want.count > 0) assert_memory_equal(got.tokens, tokens, (size_t)want.count * 4);
        if (want.count > 0) assert_memory_equal(got.loss_mask, mask, (size_t)want.count);
        assert_true(got.record_hash == want.record_hash && got.source == want.source &&
                    got.byte_offset == want.byte_offset && got.label == want.label && got.type == want.type &&
                    got.text_bytes == want.text_bytes);
    }
    mb_shard_close(&shard);
    return status;
}

/* One bit of every 97th byte, each bit in turn. */
static void test_flips(void **state)
{
    char path[512], bad[512];
    mb_str bytes = MB_STR_EMPTY;
    int64_t refused = 0, tried = 0;
    snprintf(path, sizeof path, "%s", test_path(state, "a.h5"));
    snprintf(bad, sizeof bad, "%s", test_path(state, "bad.h5"));
    sample_write(path, seed, RECORDS, LONGEST, "alpha");
    assert_ok(mb_files_read(path, 0, &bytes));
    for (size_t at = 0; at < bytes.length; at += 97, tried++) {
        char bit = (char)(1 << (tried % 8));
        bytes.data[at] ^= bit;
        test_write(bad, bytes.data, bytes.length);
        if (read_all(bad) != MB_OK) refused++;
        bytes.data[at] ^= bit;
    }
    printf("# %lld of %lld flips refused, the others fell into unused bytes\n", (long long)refused,
           (long long)tried);
    assert_true(refused > tried / 4);
    mb_str_destroy(&bytes);
}

static void mutate(mb_str *bytes, uint64_t i)
{
    uint64_t kind = mb_rng_below(seed, MB_RNG_CORRUPT, 0, i, 4);
    size_t at = (size_t)mb_rng_below(seed, MB_RNG_CORRUPT, 1, i, bytes->length);
    size_t n = (size_t)mb_rng_below(seed, MB_RNG_CORRUPT, 2, i, 64) + 1;
    if (kind == 0) bytes->data[at] ^= (char)(1 << (i % 8));
    if (kind == 1) bytes->length = at;
    for (size_t k = 0; kind >= 2 && k < n && at + k < bytes->length; k++)
        bytes->data[at + k] = kind == 2 ? (char)0xff : (char)mb_rng_u64(seed, MB_RNG_CORRUPT, 3, i * 64 + k);
}

static void test_mutations(void **state)
{
    char path[512], bad[512];
    mb_str bytes = MB_STR_EMPTY, copy = MB_STR_EMPTY;
    uint64_t count = getenv("MB_FUZZ_COUNT") != NULL ? strtoull(getenv("MB_FUZZ_COUNT"), NULL, 10) : 300;
    snprintf(path, sizeof path, "%s", test_path(state, "a.h5"));
    snprintf(bad, sizeof bad, "%s", test_path(state, "bad.h5"));
    sample_write(path, seed, RECORDS, LONGEST, "alpha");
    assert_ok(mb_files_read(path, 0, &bytes));
    assert_ok(read_all(path));
    printf("# seed %llu, %llu mutations\n", (unsigned long long)seed, (unsigned long long)count);
    for (uint64_t i = 0; i < count; i++) {
        mb_str_reset(&copy);
        assert_ok(mb_str_append(&copy, bytes.data, bytes.length));
        mutate(&copy, i);
        test_write(bad, copy.data, copy.length);
        read_all(bad);
        assert_true(mb_h5_live_handles() == 0);
    }
    mb_str_destroy(&bytes);
    mb_str_destroy(&copy);
}

int main(void)
{
    cmocka_set_message_output(CM_OUTPUT_TAP);
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_flips), cmocka_unit_test(test_mutations)};
    return cmocka_run_group_tests(tests, test_setup, test_teardown);
}
