/* test_perplexity: sums of token losses against records computed alone, per source, masked, cut, in any
 * tiles. */
#include "measure_fixture.h"

#include "measure/perplexity.h"

enum { RECORDS = 40, LONGEST = 70 };

typedef struct expected_row {
    int64_t records, tokens;
    double nll, bytes;
} expected_row;

static void add_record(mb_lm *lm, int64_t record, int64_t limit, bool only_masked, expected_row rows[3])
{
    uint32_t tokens[FIXTURE_MOST];
    uint8_t mask[FIXTURE_MOST];
    fixture_alone alone;
    const int64_t length = fixture_record(record, LONGEST, tokens, mask), n = length < limit ? length : limit;
    expected_row row = {.records = 1};
    if (n > 1) fixture_run_alone(lm, tokens, n, &alone);
    for (int64_t i = 1; i < n; i++) {
        if (only_masked && !mask[i]) continue;
        row.nll += alone.loss[i - 1];
        row.tokens++;
    }
    if (row.tokens > 0)
        row.bytes = (double)(3 * length + record % 7) * (double)row.tokens / (double)(length - 1);
    for (int i = 0; i < 2; i++) {
        expected_row *into = &rows[i == 0 ? 0 : 1 + (record % 5 == 0)];
        into->records += row.records;
        into->tokens += row.tokens;
        into->nll += row.nll;
        into->bytes += row.bytes;
    }
}

static void check(const fixture *f, mb_lm *lm, mb_shard *shard, int64_t max_length, bool only_masked)
{
    expected_row expected[3] = {{0}};
    mb_perplexity_row rows[3];
    const int64_t limit = max_length > 0 && max_length < FIXTURE_POSITIONS ? max_length : FIXTURE_POSITIONS;
    for (int64_t r = 0; r < RECORDS; r++) add_record(lm, r, limit, only_masked, expected);
    static const int64_t sizes[] = {16, 100, 1 << 20};
    for (int s = 0; s < 3; s++) {
        const mb_perplexity_options options = {
            .max_length = max_length, .tile_tokens = sizes[s], .only_masked = only_masked};
        mb_test_ok(mb_perplexity_run(f->comm, lm, shard, &options, rows));
        for (int i = 0; i < 3; i++) {
            assert_int_equal(rows[i].records, expected[i].records);
            assert_int_equal(rows[i].tokens, expected[i].tokens);
            mb_test_near(rows[i].nll, expected[i].nll, 1e-5);
            mb_test_near(rows[i].token_perplexity, exp(expected[i].nll / (double)expected[i].tokens), 1e-5);
            mb_test_near_abs((double)rows[i].bytes, expected[i].bytes, 0, 0.51);
            mb_test_near(rows[i].byte_perplexity, exp(expected[i].nll / expected[i].bytes), 1e-5);
            mb_test_near(rows[i].bits_per_byte, expected[i].nll / expected[i].bytes / log(2), 1e-5);
        }
    }
    assert_null(rows[0].source);
    assert_string_equal(rows[1].source, "web");
    assert_string_equal(rows[2].source, "books");
}

static void test_rows(void **state)
{
    (void)state;
    print_message("# seed %d\n", FIXTURE_SEED);
    for (int i = 0; i < (mb_ops_gpu_count() > 0 ? 3 : 2); i++) {
        const bool dense = i == 1;
        fixture f = fixture_open(i < 2 ? "cpu" : "cuda");
        mb_lm *lm = fixture_model(&f, dense ? 0 : FIXTURE_EXPERTS, dense ? 0 : 2);
        mb_shard *shard = fixture_shard(&f, "shard.h5", RECORDS, LONGEST, true);
        check(&f, lm, shard, 0, false);
        check(&f, lm, shard, 20, false);
        check(&f, lm, shard, 1000, true); /* more than the model's positions: cut there */
        mb_shard_close(&shard);
        mb_lm_destroy(&lm);
        fixture_close(&f);
    }
}

/* No targets at all: NaN, not a crash; an absent mask counts all. */
static void test_no_targets(void **state)
{
    (void)state;
    fixture f = fixture_open("ref");
    mb_lm *lm = fixture_model(&f, 0, 0);
    mb_shard *shard = fixture_shard(&f, "shard.h5", RECORDS, LONGEST, false);
    mb_perplexity_row rows[3], masked[3];
    mb_perplexity_options options = {.max_length = 1, .tile_tokens = 100};
    mb_test_ok(mb_perplexity_run(f.comm, lm, shard, &options, rows));
    assert_true(rows[0].tokens == 0 && rows[0].records == RECORDS && isnan(rows[0].token_perplexity) &&
                isnan(rows[0].bits_per_byte));
    options.max_length = 0;
    mb_test_ok(mb_perplexity_run(f.comm, lm, shard, &options, rows));
    options.only_masked = true;
    mb_test_ok(mb_perplexity_run(f.comm, lm, shard, &options, masked));
    assert_true(rows[0].nll == masked[0].nll && rows[0].tokens == masked[0].tokens);
    mb_shard_close(&shard);
    mb_lm_destroy(&lm);
    fixture_close(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_rows), cmocka_unit_test(test_no_targets)};
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, mb_test_teardown);
}
