/* Token shards: round trip through every kind of cache, several files as one, damage is found, never passed
 * on. */
#include "store/shard_sample.h"

static void check_record(mb_shard *shard, int64_t record, uint64_t seed, int64_t i, int64_t longest)
{
    static uint32_t tokens[SAMPLE_LONGEST];
    static uint8_t mask[SAMPLE_LONGEST];
    mb_shard_record want = sample_record(seed, i, longest, tokens, mask), got;
    assert_ok(mb_shard_read(shard, record, &got));
    assert_int_equal(got.count, want.count);
    assert_int_equal(mb_shard_length(shard, record), want.count);
    if (want.count > 0) {
        assert_memory_equal(got.tokens, tokens, (size_t)want.count * 4);
        assert_memory_equal(got.loss_mask, mask, (size_t)want.count);
    }
    assert_int_equal(got.source_index, want.source_index);
    assert_int_equal(got.byte_offset, want.byte_offset);
    assert_int_equal(got.byte_length, want.byte_length);
    assert_int_equal(got.text_bytes, want.text_bytes);
    assert_true(got.record_hash == want.record_hash);
    assert_int_equal(got.label, want.label);
}

/* 500 records of up to 5000 tokens: 17 blocks; caches of all blocks, of 3, and of the least. */
static void test_round_trip(void **state)
{
    const size_t caches[] = {0, 1 << 20, 1};
    const char *path = test_path(state, "a.h5");
    const uint64_t seed = 1;
    printf("# seed %llu\n", (unsigned long long)seed);
    sample_write(path, seed, 500, SAMPLE_LONGEST, "alpha");
    for (int c = 0; c < 3; c++) {
        mb_shard *shard = NULL;
        assert_ok(mb_shard_open(path, caches[c], &shard));
        assert_int_equal(mb_shard_count(shard), 500);
        assert_true(mb_shard_tokens(shard) > 1000000);
        assert_int_equal(mb_shard_sources(shard), 3);
        assert_string_equal(mb_shard_source_name(shard, 0), "alpha");
        assert_string_equal(mb_shard_source_file(shard, 2), "c.jsonl");
        assert_string_equal(mb_shard_tokenizer_hash(shard), "0123");
        assert_string_equal(mb_shard_type_name(shard, 1), "chat");
        assert_int_equal(mb_shard_vocab_size(shard), SAMPLE_VOCAB);
        assert_int_equal(mb_shard_counter(shard, "skipped_bad"), 3);
        assert_int_equal(mb_shard_counter(shard, "none"), 0);
        for (int64_t i = 0; i < 500; i++) check_record(shard, i, seed, i, SAMPLE_LONGEST);
        for (uint64_t k = 0; k < 300; k++) {
            int64_t i = (int64_t)mb_rng_below(2, MB_RNG_DATA, 0, k, 500);
            check_record(shard, i, seed, i, SAMPLE_LONGEST);
        }
        mb_shard_record record;
        assert_fails(MB_ERANGE, mb_shard_read(shard, 500, &record), "500");
        mb_shard_close(&shard);
    }
}

static void test_several(void **state)
{
    char folder[512], a[600], b[600], both[1300], hash[33], other[33];
    mb_shard *shard = NULL;
    snprintf(folder, sizeof folder, "%s", test_path(state, "corpus"));
    snprintf(a, sizeof a, "%s/1.h5", folder);
    snprintf(b, sizeof b, "%s/2.h5", folder);
    snprintf(both, sizeof both, "%s,%s", a, b);
    assert_ok(mb_files_make_folders(folder));
    sample_write(a, 5, 40, 300, "alpha");
    sample_write(b, 6, 60, 300, "delta");
    const char *const ways[] = {folder, both};
    for (int w = 0; w < 2; w++) {
        assert_ok(mb_shard_open(ways[w], 0, &shard));
        assert_int_equal(mb_shard_count(shard), 100);
        assert_int_equal(mb_shard_sources(shard), 4);
        assert_string_equal(mb_shard_source_name(shard, 3), "delta");
        mb_shard_columns columns = mb_shard_columns_get(shard);
        for (int64_t i = 0; i < 100; i++) {
            check_record(shard, i, i < 40 ? 5 : 6, i < 40 ? i : i - 40, 300);
            int64_t local = i < 40 ? i : i - 40;
            assert_int_equal(columns.source[i], local % 3 == 0 && i >= 40 ? 3 : local % 3);
            assert_int_equal(columns.type[i], local % 2);
        }
        assert_ok(mb_shard_hash(shard, w == 0 ? hash : other));
        mb_shard_close(&shard);
    }
    assert_string_equal(hash, other);
    assert_fails(MB_ENOTFOUND, mb_shard_open("/tmp/no-such-shard.h5", 0, &shard), "/tmp/no-such-shard.h5");
}

static void test_refused(void **state)
{
    const char *path = test_path(state, "x.h5");
    mb_shard *shard = NULL;
    mb_h5 *file = NULL;
    assert_ok(mb_h5_create(path, &file));
    assert_ok(mb_h5_set_text(file, "/", "format", "other"));
    assert_ok(mb_h5_close(&file));
    assert_fails(MB_EFORMAT, mb_shard_open(path, 0, &shard), "not a token shard");
    const char *const names[] = {"s"};
    mb_shard_info info = {.tokenizer_hash = "t",
                          .template_hash = "",
                          .vocab_size = 10,
                          .source_names = names,
                          .source_files = names,
                          .source_count = 1};
    mb_shard_writer *writer = NULL;
    const uint32_t tokens[] = {9, 10};
    mb_shard_record record = {.tokens = tokens, .count = 2};
    assert_ok(mb_shard_writer_create(path, &info, &writer));
    assert_fails(MB_EDATA, mb_shard_writer_add(writer, &record), "token id 10");
    mb_shard_writer_destroy(&writer);
    assert_ok(mb_shard_writer_create(path, &info, &writer));
    assert_ok(mb_shard_writer_close(&writer));
    assert_ok(mb_shard_open(path, 0, &shard)); /* empty is fine */
    assert_int_equal(mb_shard_count(shard), 0);
    assert_null(mb_shard_columns_get(shard).type);
    mb_shard_close(&shard);
}

/* Offsets that fall, ids and sources out of range: written on purpose, found when opened or read. */
static void test_wrong_columns(void **state)
{
    const char *path = test_path(state, "w.h5"), *const names[] = {"s"};
    for (int kind = 0; kind < 4; kind++) {
        uint64_t offsets[] = {0, 2, 4}, hash[] = {1, 2};
        uint32_t tokens[] = {1, 2, 3, 4};
        uint16_t source[] = {0, 0};
        int64_t numbers[] = {0, 1};
        if (kind == 0) offsets[1] = 5;
        if (kind == 1) offsets[2] = 3;
        if (kind == 2) source[1] = 1;
        if (kind == 3) tokens[3] = 10;
        mb_h5 *file = NULL;
        mb_shard *shard = NULL;
        assert_ok(mb_h5_create(path, &file));
        assert_ok(mb_h5_set_text(file, "/", "format", "moebatch-shard"));
        assert_ok(mb_h5_set_text(file, "/", "tokenizer", ""));
        assert_ok(mb_h5_set_text(file, "/", "template", ""));
        const char *const ints[] = {"version", "records", "tokens", "max_length", "vocab_size"};
        const int64_t values[] = {1, 2, 4, 2, 10};
        for (int i = 0; i < 5; i++) assert_ok(mb_h5_set_int(file, "/", ints[i], values[i]));
        mb_tensor all[] = {mb_tensor_view1(MB_U32, tokens, 4), mb_tensor_view1(MB_U64, offsets, 3),
                           mb_tensor_view1(MB_U16, source, 2), mb_tensor_view1(MB_U64, hash, 2)};
        const char *const paths[] = {"/tokens", "/offsets", "/source", "/record_hash"};
        for (int i = 0; i < 4; i++) assert_ok(mb_h5_write(file, paths[i], &all[i]));
        const char *const columns[] = {"/source_index", "/byte_offset", "/byte_length", "/text_bytes"};
        mb_tensor column = mb_tensor_view1(MB_I64, numbers, 2);
        for (int i = 0; i < 4; i++) assert_ok(mb_h5_write(file, columns[i], &column));
        assert_ok(mb_h5_write_strings(file, "/source_names", names, 1));
        assert_ok(mb_h5_write_strings(file, "/source_files", names, 1));
        assert_ok(mb_h5_close(&file));
        const char *const parts[] = {"/offsets fall", "/offsets do not span", "/source of record 1",
                                     "record 1: token id 10"};
        mb_status status = mb_shard_open(path, 0, &shard);
        mb_shard_record record;
        if (status == MB_OK) status = mb_shard_read(shard, 1, &record);
        assert_fails(MB_EFORMAT, status, parts[kind]);
        mb_shard_close(&shard);
    }
}

/* Space is checked while writing; nothing stays. */
static void test_no_space(void **state)
{
    char path[512];
    snprintf(path, sizeof path, "%s", test_path(state, "full.h5"));
    const char *const names[] = {"s"};
    mb_shard_info info = {.tokenizer_hash = "t",
                          .template_hash = "",
                          .vocab_size = 10,
                          .source_names = names,
                          .source_files = names,
                          .source_count = 1};
    mb_shard_writer *writer = NULL;
    static const uint32_t tokens[50000];
    mb_shard_record record = {.tokens = tokens, .count = 50000};
    assert_ok(mb_shard_writer_create(path, &info, &writer));
    setenv("MB_TEST_FREE_BYTES", "100000", 1);
    mb_status status = MB_OK;
    for (int i = 0; i < 3 && status == MB_OK; i++) status = mb_shard_writer_add(writer, &record);
    unsetenv("MB_TEST_FREE_BYTES");
    assert_fails(MB_ENOSPACE, status, "full.h5");
    mb_shard_writer_destroy(&writer);
    assert_false(mb_files_is_file(path));
}

/* The writer holds blocks, not the corpus; a small cache holds blocks too. */
static void test_bounded(void **state)
{
    char path[512];
    snprintf(path, sizeof path, "%s", test_path(state, "large.h5"));
    const char *const names[] = {"s"};
    mb_shard_info info = {.tokenizer_hash = "t",
                          .template_hash = "",
                          .vocab_size = 100,
                          .source_names = names,
                          .source_files = names,
                          .source_count = 1};
    static uint32_t tokens[1000];
    mb_shard_record record = {.tokens = tokens, .count = 1000};
    mb_shard_writer *writer = NULL;
    mb_shard *shard = NULL;
    assert_ok(mb_shard_writer_create(path, &info, &writer));
    for (uint32_t i = 0; i < 10000; i++) { /* 40 MB */
        for (uint32_t t = 0; t < 1000; t++) tokens[t] = (i + t) % 100;
        assert_ok(mb_shard_writer_add(writer, &record));
        assert_true(mb_memory_live_bytes() < 2 << 20);
    }
    assert_ok(mb_shard_writer_close(&writer));
    assert_ok(mb_shard_open(path, 1 << 20, &shard));
    for (uint32_t i = 0; i < 10000; i += 7) {
        assert_ok(mb_shard_read(shard, i, &record));
        assert_int_equal(record.tokens[999], (i + 999) % 100);
        assert_null(record.loss_mask);
    }
    assert_true(mb_memory_live_bytes() < 4 << 20);
    mb_shard_close(&shard);
}

int main(void)
{
    cmocka_set_message_output(CM_OUTPUT_TAP);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),    cmocka_unit_test(test_several),  cmocka_unit_test(test_refused),
        cmocka_unit_test(test_wrong_columns), cmocka_unit_test(test_no_space), cmocka_unit_test(test_bounded),
    };
    return cmocka_run_group_tests(tests, test_setup, test_teardown);
}
