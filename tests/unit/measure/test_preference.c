/* test_preference: figures of pairs against sides computed alone, in any tiles, by source and type, with and
 * without a reference. */
#include "measure_fixture.h"

#include "measure/perplexity.h"

enum { PAIRS = 30, LONGEST = 30, RECORDS = 2 * PAIRS };

/* Both sides of a pair have the fixture's prompt; pair 7's are the same, a tie. */
static int64_t side(int64_t record, uint32_t *tokens, uint8_t *mask)
{
    const int64_t pair = record / 2, shown = pair == 7 ? 2 * pair : record;
    const int64_t prompt = 1 + pair % 4, n = prompt + 1 + fixture_length(100 + shown, LONGEST);
    for (int64_t i = 0; i < n; i++) {
        const uint64_t at = (uint64_t)(i < prompt ? 2 * pair : shown) << 20 | (uint64_t)i;
        tokens[i] = (uint32_t)mb_rng_below(FIXTURE_SEED, MB_RNG_DATA, 5, at, FIXTURE_VOCAB);
        mask[i] = i >= prompt;
    }
    return n;
}

static mb_shard *pair_shard(const fixture *f, const char *name, int64_t pairs)
{
    static const char *const names[2] = {"web", "books"}, *const files[2] = {"web.jsonl", "books.jsonl"},
                             *const types[3] = {"general", "code", "never"};
    uint32_t tokens[FIXTURE_MOST];
    uint8_t mask[FIXTURE_MOST];
    mb_shard_writer *writer = NULL;
    mb_shard *shard = NULL;
    char *path = mb_test_path(f->folder, name);
    const mb_shard_info info = {.tokenizer_hash = "0123",
                                .template_hash = "",
                                .vocab_size = FIXTURE_VOCAB,
                                .source_names = names,
                                .source_files = files,
                                .source_count = 2,
                                .type_names = types,
                                .type_count = 3,
                                .has_loss_mask = true,
                                .is_pairs = true};
    mb_test_ok(mb_shard_writer_create(path, &info, &writer));
    for (int64_t r = 0; r < 2 * pairs; r++) {
        const int64_t n = side(r, tokens, mask);
        const mb_shard_record record = {.tokens = tokens,
                                        .loss_mask = mask,
                                        .count = n,
                                        .source = (uint16_t)(r / 2 % 3 == 0),
                                        .source_index = r / 2,
                                        .byte_offset = r / 2,
                                        .byte_length = 1,
                                        .text_bytes = n,
                                        .record_hash = fixture_hash(r),
                                        .type = (uint16_t)(r / 2 % 2)};
        mb_test_ok(mb_shard_writer_add(writer, &record));
    }
    mb_test_ok(mb_shard_writer_close(&writer));
    mb_test_ok(mb_shard_open(path, 0, &shard));
    mb_free(path);
    return shard;
}

/* Of every record by itself. */
typedef struct expected_sides {
    double logprob[RECORDS];
    int64_t targets[RECORDS];
} expected_sides;

static void run_sides(mb_lm *lm, int64_t limit, expected_sides *sides)
{
    uint32_t tokens[FIXTURE_MOST];
    uint8_t mask[FIXTURE_MOST];
    fixture_alone alone;
    for (int64_t r = 0; r < RECORDS; r++) {
        int64_t n = side(r, tokens, mask);
        if (n > limit) n = limit;
        sides->logprob[r] = 0;
        sides->targets[r] = 0;
        if (n > 1) fixture_run_alone(lm, tokens, n, &alone);
        for (int64_t i = 1; i < n; i++) {
            if (!mask[i]) continue;
            sides->logprob[r] -= alone.loss[i - 1];
            sides->targets[r]++;
        }
    }
}

static double reference_of(int64_t record)
{
    return -3.0 - (double)(record * 7 % 11);
}

/* A figure of a pair, straight from its definition. */
static double figure_of(const expected_sides *s, int64_t pair, int figure, double beta)
{
    const int64_t c = 2 * pair, r = c + 1;
    const double pc = s->logprob[c], pr = s->logprob[r], mc = pc / (double)s->targets[c],
                 mr = pr / (double)s->targets[r], rc = beta * (pc - reference_of(c)),
                 rr = beta * (pr - reference_of(r));
    const double figures[MB_PREFERENCE_FIGURES] = {pc > pr, mc > mr, pc - pr, mc - mr,
                                                   rc > rr, rc - rr, rc,      rr};
    return figures[figure];
}

static bool is_in(int64_t pair, int64_t row)
{
    if (row == 0) return true;
    if (row <= 2) return row - 1 == (pair % 3 == 0);
    return row - 3 == pair % 2;
}

static void check_row(const mb_preference_result *result, const expected_sides *sides, int64_t row)
{
    const mb_preference_row *got = &result->row[row];
    int64_t pairs = 0, ties = 0, left_out = 0;
    for (int64_t p = 0; p < PAIRS; p++) {
        if (!is_in(p, row)) continue;
        const bool counts = sides->targets[2 * p] > 0 && sides->targets[2 * p + 1] > 0;
        pairs += counts;
        left_out += !counts;
        ties += counts && p == 7;
    }
    assert_int_equal(got->pairs, pairs);
    assert_int_equal(got->left_out, left_out);
    assert_int_equal(got->ties, ties);
    for (int f = 0; f < result->figures; f++) {
        double sum = 0, squares = 0;
        for (int64_t p = 0; p < PAIRS; p++) {
            if (!is_in(p, row) || sides->targets[2 * p] == 0 || sides->targets[2 * p + 1] == 0) continue;
            const double value = figure_of(sides, p, f, result->beta);
            sum += value;
            squares += value * value;
        }
        const double n = (double)pairs, mean = sum / n;
        if (pairs == 0) {
            assert_true(isnan(got->mean[f]) && isnan(got->error[f]));
            continue;
        }
        mb_test_near_abs(got->mean[f], mean, 1e-5, 1e-5);
        mb_test_near_abs(got->error[f], sqrt((squares / n - mean * mean) / (n - 1)), 1e-4, 1e-4);
    }
}

static void check(const char *backend, int64_t max_length, bool only_masked, bool has_reference)
{
    fixture f = fixture_open(backend);
    mb_lm *lm = fixture_model(&f, FIXTURE_EXPERTS, 0);
    mb_shard *shard = pair_shard(&f, "pairs.h5", PAIRS);
    static const int64_t sizes[] = {16, 100, 1 << 20};
    double reference[RECORDS], first[RECORDS];
    expected_sides sides;
    mb_perplexity_row rows[6];
    for (int64_t r = 0; r < RECORDS; r++) reference[r] = reference_of(r);
    run_sides(lm, max_length > 0 ? max_length : FIXTURE_POSITIONS, &sides);
    for (int s = 0; s < 3; s++) {
        mb_perplexity_options options = {
            .max_length = max_length, .tile_tokens = sizes[s], .only_masked = only_masked};
        mb_test_ok(mb_preference_create(shard, &options.opt_preference));
        mb_test_ok(mb_perplexity_run(f.comm, lm, shard, &options, rows));
        mb_test_ok(
            mb_preference_finish(options.opt_preference, f.comm, has_reference ? reference : NULL, 0.25));
        const mb_preference_result *result = mb_preference_get(options.opt_preference);
        assert_int_equal(result->rows, 6);
        assert_int_equal(result->figures,
                         has_reference ? MB_PREFERENCE_FIGURES : MB_PREFERENCE_REWARD_ACCURACY);
        for (int64_t r = 0; r < RECORDS; r++) {
            mb_test_near_abs(result->logprob[r], sides.logprob[r], 1e-5, 1e-12);
            assert_int_equal(result->targets[r], sides.targets[r]);
        }
        for (int64_t row = 0; row < 6; row++) check_row(result, &sides, row);
        if (s == 0) memcpy(first, result->logprob, sizeof first);
        if (mb_ops_is_row_stable(f.ops)) assert_memory_equal(result->logprob, first, sizeof first);
        mb_preference_destroy(&options.opt_preference);
    }
    mb_shard_close(&shard);
    mb_lm_destroy(&lm);
    fixture_close(&f);
}

static void test_figures(void **state)
{
    (void)state;
    print_message("# seed %d\n", FIXTURE_SEED);
    check("ref", 0, false, false);
    check("ref", 0, true, true);
    check("cpu", 0, false, true);
    check("cpu", 4, true, true); /* some answers are cut away */
    if (mb_ops_gpu_count() > 0) check("cuda", 0, false, true);
}

static void test_rows(void **state)
{
    (void)state;
    fixture f = fixture_open("ref");
    mb_shard *shard = pair_shard(&f, "pairs.h5", 1), *single = fixture_shard(&f, "single.h5", 4, 20, true);
    mb_preference *preference = NULL;
    mb_test_fails(mb_preference_create(single, &preference), MB_EUSAGE, "dataset.pairs=true");
    mb_test_ok(mb_preference_create(shard, &preference));
    mb_test_fails(mb_preference_finish(preference, f.comm, NULL, 1), MB_EDATA, "0 records");
    /* one pair: log-probabilities -1, -3 over 1 and 3 tokens: a tie per token, and no spread to tell */
    int32_t heads[] = {0, 5, 6, 7};
    uint8_t mask[] = {0, 1, 0, 0, 0, 0, 1, 1, 1};
    const int64_t records[] = {0, 1}, first[] = {0, 1, 4};
    const float loss[] = {1, 1, 0.5f, 1.5f};
    const mb_tile tile = {
        .records = 2, .record = records, .head_first = (int64_t *)first, .head_row = heads, .in_mask = mask};
    mb_test_ok(mb_preference_add(preference, &tile, loss));
    mb_test_ok(mb_preference_finish(preference, f.comm, NULL, 1));
    const mb_preference_result *result = mb_preference_get(preference);
    assert_true(result->logprob[0] == -1 && result->logprob[1] == -3 && result->targets[1] == 3);
    const mb_preference_row *row = result->row;
    assert_true(row->pairs == 1 && row->ties == 0 && row->mean[MB_PREFERENCE_ACCURACY] == 1 &&
                row->mean[MB_PREFERENCE_ACCURACY_PER_TOKEN] == 0 && row->mean[MB_PREFERENCE_MARGIN] == 2);
    assert_true(isnan(row->error[MB_PREFERENCE_ACCURACY]));
    assert_true(row->source == NULL && row->type == NULL);
    assert_string_equal(result->row[2].source, "books");
    assert_string_equal(result->row[5].type, "never");
    assert_true(result->row[5].pairs == 0 && isnan(result->row[5].mean[0]));
    assert_string_equal(mb_preference_name(MB_PREFERENCE_REWARD_REJECTED), "reward_rejected");
    mb_preference_destroy(&preference);
    mb_test_ok(mb_preference_create(shard, &preference));
    const float broken[] = {1, NAN, 1, 1};
    mb_test_ok(mb_preference_add(preference, &tile, broken));
    mb_test_fails(mb_preference_finish(preference, f.comm, NULL, 1), MB_ENUMERIC, "record 1");
    mb_preference_destroy(&preference);
    mb_shard_close(&shard);
    mb_shard_close(&single);
    fixture_close(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_figures), cmocka_unit_test(test_rows)};
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, mb_test_teardown);
}
