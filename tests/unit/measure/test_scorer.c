/* test_scorer: scores of records against records computed alone, tiles, layers, parts, restarts, errors. */
#include "measure_fixture.h"

#include "base/hash.h"
#include "base/stop.h"
#include "measure/perplexity.h"
#include "measure/scorer.h"
#include "measure/scorer_plan.h"
#include "measure/scorer_record.h"

enum { RECORDS = 60, LONGEST = 70 };

static const char all_scores[] =
    "good_mass,good_logits,perplexity,entropy,bytes_per_token,length,repeats,random";

static mb_scorer_options options_of(const char *scores, const char *layers, int64_t tile_tokens)
{
    return (mb_scorer_options){
        .scores = (char *)scores, .score_layers = (char *)layers, .tile_tokens = tile_tokens, .seed = 42};
}

static mb_scores *run(const fixture *f, mb_lm *router, mb_lm *source, mb_shard *shard,
                      const mb_scorer_options *options, const char *name, mb_scorer_report *report)
{
    mb_scores *scores = NULL;
    char *path = mb_test_path(f->folder, name);
    mb_test_ok(mb_scorer_run(f->comm, router, source, shard, options, (mb_share){0}, path, report));
    mb_test_ok(mb_scores_open(path, &scores));
    mb_free(path);
    return scores;
}

static void read_all(const mb_scores *scores, const char *name, double *out)
{
    mb_test_ok(mb_scores_read(scores, name, 0, mb_scores_count(scores), out));
}

/* Every column against the record alone, on each backend. */
static void check_values(const char *backend)
{
    fixture f = fixture_open(backend);
    mb_lm *router = fixture_model(&f, FIXTURE_EXPERTS, 2), *source = fixture_model(&f, FIXTURE_EXPERTS, 0);
    mb_shard *shard = fixture_shard(&f, "shard.h5", RECORDS, LONGEST, true);
    const mb_scorer_options options = options_of(all_scores, "all", 100);
    mb_scorer_report report;
    mb_scores *scores = run(&f, router, source, shard, &options, "scores.h5", &report);
    double mass[RECORDS], logits[RECORDS], perplexity[RECORDS], entropy[RECORDS], layer[RECORDS];
    uint32_t tokens[FIXTURE_MOST];
    uint8_t mask[FIXTURE_MOST];
    fixture_alone alone, alone_source;
    int64_t total = 0;
    read_all(scores, "good_mass", mass);
    read_all(scores, "good_logits", logits);
    read_all(scores, "perplexity", perplexity);
    read_all(scores, "entropy", entropy);
    const int64_t last = FIXTURE_LAYERS - 1;
    mb_test_ok(mb_scores_read_layers(scores, "good_mass", &last, 1, 0, RECORDS, layer));
    for (int64_t r = 0; r < RECORDS; r++) {
        int64_t n = fixture_record(r, LONGEST, tokens, mask);
        if (n > FIXTURE_POSITIONS) n = FIXTURE_POSITIONS;
        total += n;
        if (n == 0) {
            assert_true(isnan(mass[r]) && isnan(logits[r]) && isnan(perplexity[r]) && isnan(entropy[r]));
            continue;
        }
        fixture_run_alone(router, tokens, n, &alone);
        fixture_run_alone(source, tokens, n, &alone_source);
        double m = 0, g = 0, e = 0, loss = 0;
        for (int l = 0; l < FIXTURE_LAYERS; l++) {
            m += alone.mass[l] / FIXTURE_LAYERS;
            g += alone.logits[l];
            e += alone_source.entropy[l] / FIXTURE_LAYERS;
        }
        for (int64_t i = 0; i + 1 < n; i++) loss += alone_source.loss[i];
        mb_test_near(mass[r], m, 1e-5);
        mb_test_near_abs(logits[r], g, 1e-5, 1e-5);
        mb_test_near(entropy[r], e, 1e-5);
        mb_test_near(layer[r], alone.mass[last], 1e-5);
        if (n == 1)
            assert_true(isnan(perplexity[r]));
        else
            mb_test_near(perplexity[r], exp(loss / (double)(n - 1)), 1e-5);
    }
    assert_int_equal(report.records, RECORDS);
    assert_int_equal(report.tokens, total);
    mb_scores_close(&scores);
    mb_shard_close(&shard);
    mb_lm_destroy(&router);
    mb_lm_destroy(&source);
    fixture_close(&f);
}

static void test_values(void **state)
{
    (void)state;
    print_message("# seed %d\n", FIXTURE_SEED);
    check_values("ref");
    check_values("cpu");
    if (mb_ops_gpu_count() > 0) check_values("cuda");
}

/* Scores without a model, and what the columns say of themselves. */
static void test_text_scores(void **state)
{
    (void)state;
    fixture f = fixture_open("ref");
    mb_shard *shard = fixture_shard(&f, "shard.h5", RECORDS, LONGEST, false);
    const mb_scorer_options options = options_of("random,length,bytes_per_token,repeats", "all", 100);
    mb_scorer_report report;
    mb_scores *scores = run(&f, NULL, NULL, shard, &options, "scores.h5", &report);
    double random[RECORDS], length[RECORDS], bytes[RECORDS];
    read_all(scores, "random", random);
    read_all(scores, "length", length);
    read_all(scores, "bytes_per_token", bytes);
    for (int64_t r = 0; r < RECORDS; r++) {
        int64_t n = fixture_length(r, LONGEST);
        assert_true(length[r] == (double)n);
        assert_true(random[r] == mb_rng_uniform(42, MB_RNG_SELECT, 0, fixture_hash(r)));
        if (n > 0)
            mb_test_near(bytes[r], (double)(3 * n + r % 7) / (double)n, 1e-15);
        else
            assert_true(isnan(bytes[r]));
    }
    assert_int_equal(mb_scores_columns(scores), 4);
    assert_string_equal(mb_scores_column_get(scores, 1)->name, "length");
    assert_true(mb_scores_column_get(scores, 1)->higher_is_better);
    assert_false(mb_scores_column_get(scores, 3)->higher_is_better);
    assert_true(mb_scores_column_get(scores, 3)->flops_per_token == 0);
    mb_scores_close(&scores);
    mb_shard_close(&shard);
    fixture_close(&f);
}

/* The same bits whatever the tiles are. */
static void test_tile_mates(void **state)
{
    (void)state;
    static const char *const backends[] = {"ref", "cpu"};
    for (int b = 0; b < 2; b++) {
        fixture f = fixture_open(backends[b]);
        if (!mb_ops_is_row_stable(f.ops)) {
            print_message("# %s is not row-stable here\n", mb_ops_describe(f.ops));
            fixture_close(&f);
            continue;
        }
        mb_lm *router = fixture_model(&f, FIXTURE_EXPERTS, 2),
              *source = fixture_model(&f, FIXTURE_EXPERTS, 0);
        mb_shard *shard = fixture_shard(&f, "shard.h5", RECORDS, LONGEST, false);
        static const int64_t sizes[] = {16, 75, 100000};
        static const char *const names[] = {"good_mass", "good_logits", "perplexity", "entropy"};
        double values[3][4][RECORDS];
        for (int i = 0; i < 3; i++) {
            const mb_scorer_options options = options_of(all_scores, "all", sizes[i]);
            mb_scorer_report report;
            mb_scores *scores = run(&f, router, source, shard, &options, "scores.h5", &report);
            for (int c = 0; c < 4; c++) read_all(scores, names[c], values[i][c]);
            mb_scores_close(&scores);
        }
        assert_memory_equal(values[0], values[1], sizeof values[0]);
        assert_memory_equal(values[0], values[2], sizeof values[0]);
        mb_shard_close(&shard);
        mb_lm_destroy(&router);
        mb_lm_destroy(&source);
        fixture_close(&f);
    }
}

/* A record's log-probability by itself, over the loss mask or, without one, over all tokens. */
static double alone_logprob(mb_lm *lm, int64_t record, bool has_mask, int64_t limit, int64_t *out_targets)
{
    uint32_t tokens[FIXTURE_MOST];
    uint8_t mask[FIXTURE_MOST];
    fixture_alone alone;
    double sum = 0;
    int64_t n = fixture_record(record, LONGEST, tokens, mask);
    if (n > limit) n = limit;
    *out_targets = 0;
    if (n > 1) fixture_run_alone(lm, tokens, n, &alone);
    for (int64_t i = 1; i < n; i++) {
        if (has_mask && !mask[i]) continue;
        sum -= alone.loss[i - 1];
        ++*out_targets;
    }
    return sum;
}

static void check_logprob(const char *backend, bool has_mask, int64_t max_length)
{
    fixture f = fixture_open(backend);
    mb_lm *lm = fixture_model(&f, FIXTURE_EXPERTS, 0);
    mb_shard *shard = fixture_shard(&f, "shard.h5", RECORDS, LONGEST, has_mask);
    mb_scorer_options options = options_of("logprob,mean_logprob", "all", 100),
                      both = options_of("length,perplexity,mean_logprob,targets,logprob", "all", 100);
    options.max_length = both.max_length = max_length;
    const int64_t limit = max_length > 0 ? max_length : FIXTURE_POSITIONS;
    mb_scorer_report report;
    double logprob[RECORDS], mean[RECORDS], targets[RECORDS], again[RECORDS];
    mb_perplexity_row rows[3];
    mb_scores *scores = run(&f, NULL, lm, shard, &options, "alone.h5", &report);
    assert_int_equal(mb_scores_columns(scores), 3);
    assert_string_equal(mb_scores_column_get(scores, 1)->name, "targets"); /* comes with logprob */
    assert_true(mb_scores_column_get(scores, 0)->flops_per_token > 0 &&
                mb_scores_column_get(scores, 1)->flops_per_token == 0);
    read_all(scores, "logprob", logprob);
    read_all(scores, "mean_logprob", mean);
    read_all(scores, "targets", targets);
    mb_scores_close(&scores);
    scores = run(&f, NULL, lm, shard, &both, "both.h5", &report);
    assert_int_equal(mb_scores_columns(scores), 5);
    read_all(scores, "logprob", again);
    double nll = 0, count = 0;
    for (int64_t r = 0; r < RECORDS; r++) {
        int64_t n;
        const double expected = alone_logprob(lm, r, has_mask, limit, &n);
        assert_true(targets[r] == (double)n);
        if (n == 0) {
            assert_true(logprob[r] == 0 && !signbit(logprob[r]) && isnan(mean[r]));
        } else {
            mb_test_near(logprob[r], expected, 1e-5);
            assert_true(mean[r] == logprob[r] / (double)n);
        }
        mb_test_near_abs(again[r], logprob[r], 1e-5, 1e-12);
        nll -= logprob[r];
        count += targets[r];
    }
    if (mb_ops_is_row_stable(f.ops)) assert_memory_equal(again, logprob, sizeof again);
    const mb_perplexity_options masked = {.max_length = max_length, .tile_tokens = 100, .only_masked = true};
    mb_test_ok(mb_perplexity_run(f.comm, lm, shard, &masked, rows));
    assert_true(rows[0].tokens == (int64_t)count);
    mb_test_near(rows[0].nll, nll, 1e-13); /* the same losses, added in another order */
    mb_scores_close(&scores);
    mb_shard_close(&shard);
    mb_lm_destroy(&lm);
    fixture_close(&f);
}

static void test_logprob(void **state)
{
    (void)state;
    print_message("# seed %d\n", FIXTURE_SEED);
    check_logprob("ref", true, 0);
    check_logprob("ref", false, 0);
    check_logprob("cpu", true, 0);
    check_logprob("cpu", true, 20);
    if (mb_ops_gpu_count() > 0) check_logprob("cuda", true, 0);
}

/* What the file says of its origin; another number type or cut is other work, whose parts are not joined. */
static void test_origin(void **state)
{
    (void)state;
    fixture f = fixture_open("ref");
    mb_lm *lm = fixture_model(&f, 0, 0);
    mb_shard *shard = fixture_shard(&f, "shard.h5", RECORDS, LONGEST, true);
    mb_scorer_options options = options_of("logprob", "all", 100);
    mb_scorer_report report;
    mb_str text = MB_STR_EMPTY;
    int64_t limit = 0;
    static const struct {
        const char *name, *value;
    } rows[] = {{"tokenizer", "0123"}, {"template", ""},       {"dtype", "f32"},
                {"storage", ""},       {"source_adapter", ""}, {"source_folder", ""}};
    mb_scores *scores = run(&f, NULL, lm, shard, &options, "scores.h5", &report);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        mb_test_ok(mb_h5_get_text(mb_scores_file(scores), "/", rows[i].name, &text));
        assert_string_equal(mb_str_text(&text), rows[i].value);
    }
    mb_test_ok(mb_h5_get_int(mb_scores_file(scores), "/", "max_length", &limit));
    assert_int_equal(limit, FIXTURE_POSITIONS);
    mb_scores_close(&scores);
    scores = run(&f, NULL, lm, shard, &options, "scores.h5", &report);
    assert_true(report.parts > 0 && report.skipped_parts == report.parts);
    mb_scores_close(&scores);
    mb_lm_set_dtype(lm, MB_BF16);
    scores = run(&f, NULL, lm, shard, &options, "scores.h5", &report);
    assert_int_equal(report.skipped_parts, 0);
    mb_test_ok(mb_h5_get_text(mb_scores_file(scores), "/", "dtype", &text));
    assert_string_equal(mb_str_text(&text), "bf16");
    mb_scores_close(&scores);
    mb_str_destroy(&text);
    mb_shard_close(&shard);
    mb_lm_destroy(&lm);
    fixture_close(&f);
}

static void test_needs(void **state)
{
    (void)state;
    static const struct {
        const char *scores;
        mb_scorer_needs needs;
    } rows[] = {
        {"length,targets", {.columns = 2}},
        {"random", {.seed = true, .columns = 1}},
        {"good_mass", {.router = true, .columns = 1, .layered = 1}},
        {"entropy", {.source = true, .plain = true, .columns = 1, .layered = 1}},
        {"perplexity", {.source = true, .plain = true, .head = true, .columns = 1}},
        {"logprob", {.source = true, .policy = true, .head = true, .columns = 2}},
        {"mean_logprob, good_logits",
         {.router = true, .source = true, .policy = true, .head = true, .columns = 2, .layered = 1}},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        mb_scorer_needs needs = {0};
        mb_test_ok(mb_scorer_needs_get(rows[i].scores, &needs));
        const mb_scorer_needs *e = &rows[i].needs;
        assert_true(needs.router == e->router && needs.source == e->source && needs.policy == e->policy);
        assert_true(needs.plain == e->plain && needs.head == e->head && needs.seed == e->seed);
        assert_true(needs.columns == e->columns && needs.layered == e->layered);
    }
    mb_scorer_needs needs;
    mb_test_fails(mb_scorer_needs_get("logprobs", &needs), MB_EUSAGE, "did you mean logprob?");
}

/* Fewer layers: the values of those layers, at a lower cost. */
static void test_layers(void **state)
{
    (void)state;
    fixture f = fixture_open("ref");
    mb_lm *router = fixture_model(&f, FIXTURE_EXPERTS, 2);
    mb_shard *shard = fixture_shard(&f, "shard.h5", RECORDS, LONGEST, false);
    const mb_scorer_options options = options_of("good_mass", "all", 100),
                            few = options_of("good_mass,good_logits", "-2,0,1", 100);
    mb_scorer_report report;
    mb_scores *all = run(&f, router, NULL, shard, &options, "all.h5", &report),
              *some = run(&f, router, NULL, shard, &few, "few.h5", &report);
    double full[RECORDS], part[RECORDS];
    const int64_t layers[] = {0, 1};
    mb_test_ok(mb_scores_read_layers(all, "good_mass", layers, 2, 0, RECORDS, full));
    read_all(some, "good_mass", part);
    for (int64_t r = 0; r < RECORDS; r++) {
        if (r != 3) mb_test_near(part[r], full[r], 1e-6);
    }
    const double cost = mb_scores_column_get(all, 0)->flops_per_token,
                 less = mb_scores_column_get(some, 0)->flops_per_token;
    assert_true(cost > 0 && less > 0 && less < cost);
    const mb_arch *arch = mb_lm_arch(router);
    mb_test_near(cost - less, mb_arch_flops(arch, 1, false, 22), 0.1);
    mb_scores_close(&all);
    mb_scores_close(&some);
    mb_shard_close(&shard);
    mb_lm_destroy(&router);
    fixture_close(&f);
}

/* A corpus of several parts; finished parts are used again, other work's are not, a stop loses nothing. */
static void test_restart(void **state)
{
    (void)state;
    enum { MANY = 3000 };
    fixture f = fixture_open("ref");
    mb_shard *shard = fixture_shard(&f, "shard.h5", MANY, 100, false);
    mb_scorer_options options = options_of("repeats,length", "all", 1000);
    mb_scorer_report report, again;
    double *first = mb_calloc(MANY, sizeof *first), *second = mb_calloc(MANY, sizeof *second);
    mb_scores *scores = run(&f, NULL, NULL, shard, &options, "a.h5", &report);
    read_all(scores, "length", first);
    mb_scores_close(&scores);
    assert_true(report.parts >= 2 && report.skipped_parts == 0);
    char *path = mb_test_path(f.folder, "b.h5"), *inside = mb_test_path(f.folder, "b.h5/x");
    mb_stop_request();
    mb_test_fails(mb_scorer_run(f.comm, NULL, NULL, shard, &options, (mb_share){0}, path, &again),
                  MB_ESTOPPED, "run again");
    mb_stop_reset();
    mb_test_ok(mb_files_make_folders(inside)); /* in the way of the joined file */
    assert_true(mb_scorer_run(f.comm, NULL, NULL, shard, &options, (mb_share){0}, path, &again) != MB_OK);
    mb_test_ok(mb_files_remove_tree(path));
    scores = run(&f, NULL, NULL, shard, &options, "b.h5", &again);
    assert_int_equal(again.skipped_parts, report.parts);
    read_all(scores, "length", second);
    assert_memory_equal(first, second, MANY * sizeof *first);
    mb_scores_close(&scores);
    mb_free(path);
    mb_free(inside);
    mb_free(first);
    mb_free(second);
    mb_shard_close(&shard);
    fixture_close(&f);
}

/* Shares in any order, one of them twice, make parts only; the whole then joins them to the table of one
 * run. */
static void test_shares(void **state)
{
    (void)state;
    enum { MANY = 1200 };
    fixture f = fixture_open("ref");
    mb_shard *shard = fixture_shard(&f, "shard.h5", MANY, 100, false);
    mb_scorer_options options = options_of("repeats,length,random", "all", 400);
    mb_scorer_report report, part;
    char name[16], expected[MB_HASH_TEXT], hash[MB_HASH_TEXT];
    mb_scores *scores = run(&f, NULL, NULL, shard, &options, "one.h5", &report);
    mb_test_ok(mb_h5_content_hash(mb_scores_file(scores), expected));
    mb_scores_close(&scores);
    assert_true(report.parts > 20 && report.part_names == NULL);
    for (int64_t of = 1; of <= 100; of = of < 3 ? of + 1 : of + 97) { /* more shares than parts, too */
        snprintf(name, sizeof name, "of%d.h5", (int)of);
        char *path = mb_test_path(f.folder, name);
        int64_t records = 0, tokens = 0, parts = 0;
        for (int64_t k = of; k >= 0; k--) { /* share 0 a second time */
            const mb_share share = {k % of, of};
            mb_test_ok(mb_scorer_run(f.comm, NULL, NULL, shard, &options, share, path, &part));
            assert_int_equal(json_array_size(part.part_names), part.parts);
            assert_int_equal(part.skipped_parts, k == 0 ? part.parts : 0);
            assert_false(mb_files_is_file(path));
            if (k > 0) records += part.records, tokens += part.tokens, parts += part.parts;
            for (size_t i = 0; i < json_array_size(part.part_names); i++) {
                char *file = mb_test_path(f.folder, json_string_value(json_array_get(part.part_names, i)));
                assert_true(mb_files_is_file(file));
                mb_free(file);
            }
            json_decref(part.part_names);
        }
        assert_true(records == MANY && tokens == report.tokens && parts == report.parts);
        scores = run(&f, NULL, NULL, shard, &options, name, &part);
        assert_int_equal(part.skipped_parts, report.parts);
        mb_test_ok(mb_h5_content_hash(mb_scores_file(scores), hash));
        assert_string_equal(hash, expected);
        mb_scores_close(&scores);
        mb_free(path);
    }
    mb_shard_close(&shard);
    fixture_close(&f);
}

static void test_errors(void **state)
{
    (void)state;
    fixture f = fixture_open("ref");
    mb_lm *router = fixture_model(&f, FIXTURE_EXPERTS, 2), *plain = fixture_model(&f, FIXTURE_EXPERTS, 0),
          *dense = fixture_model(&f, 0, 0);
    mb_shard *shard = fixture_shard(&f, "shard.h5", RECORDS, LONGEST, false),
             *empty = fixture_shard(&f, "empty.h5", 0, LONGEST, false);
    char *path = mb_test_path(f.folder, "scores.h5");
    mb_scorer_report report;
    const struct {
        const char *scores, *layers;
        mb_lm *router, *source;
        const char *part;
    } rows[] = {
        {"good_mas", "all", router, NULL, "did you mean good_mass"},
        {"", "all", router, NULL, "score.scores is empty"},
        {"good_mass", "0,3", router, NULL, "there is no layer 3; the model has 3"},
        {"good_mass", "-4", router, NULL, "there is no layer -4"},
        {"good_mass", "all", NULL, plain, "needs the model with trash"},
        {"good_mass", "all", plain, NULL, "no trash experts"},
        {"perplexity", "all", router, NULL, "score.source_model"},
        {"entropy", "all", NULL, dense, "the source model is dense"},
        {"logprob", "all", router, NULL, "score logprob needs the unconverted model (model.path)"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const mb_scorer_options options = options_of(rows[i].scores, rows[i].layers, 100);
        mb_test_fails(mb_scorer_run(f.comm, rows[i].router, rows[i].source, shard, &options, (mb_share){0},
                                    path, &report),
                      MB_EUSAGE, rows[i].part);
    }
    const mb_scorer_options options = options_of("length", "all", 100),
                            dense_options = options_of("perplexity", "all", 100);
    mb_test_fails(mb_scorer_run(f.comm, NULL, NULL, empty, &options, (mb_share){0}, path, &report), MB_EDATA,
                  "no records");
    mb_test_ok(mb_scorer_run(f.comm, NULL, dense, shard, &dense_options, (mb_share){0}, path,
                             &report)); /* perplexity needs no routers */
    mb_free(path);
    mb_shard_close(&shard);
    mb_shard_close(&empty);
    mb_lm_destroy(&router);
    mb_lm_destroy(&plain);
    mb_lm_destroy(&dense);
    fixture_close(&f);
}

static double repeats_of(const uint32_t *tokens, int64_t n)
{
    double share = -1;
    mb_test_ok(mb_scorer_record_repeats(tokens, n, &share));
    return share;
}

static void test_repeats(void **state)
{
    (void)state;
    uint32_t tokens[400];
    for (uint32_t i = 0; i < 400; i++) tokens[i] = i;
    assert_true(repeats_of(tokens, 0) == 0 && repeats_of(tokens, 7) == 0 && repeats_of(tokens, 400) == 0);
    for (uint32_t i = 0; i < 400; i++) tokens[i] = i % 100; /* said four times */
    mb_test_near(repeats_of(tokens, 400), 0.75, 1e-15);
    for (uint32_t i = 0; i < 400; i++) tokens[i] = 5; /* all but the first token */
    mb_test_near(repeats_of(tokens, 400), 399.0 / 400, 1e-15);
    for (uint32_t i = 0; i < 40; i++) tokens[i] = i < 20 ? i : i + 50;
    memcpy(tokens + 25, tokens + 2, 9 * sizeof *tokens); /* nine tokens again */
    mb_test_near(repeats_of(tokens, 40), 9.0 / 40, 1e-15);
    tokens[29] = 999; /* no run of eight left */
    assert_true(repeats_of(tokens, 40) == 0);
}

static void test_router_formulas(void **state)
{
    (void)state;
    const float logits[] = {0, 0, 0, 0, 1000, 1000, 1000, -1000};
    mb_scorer_router mean = mb_scorer_record_router(logits, 2, 4, 3);
    mb_test_near(mean.good_mass, (0.75 + 1) / 2, 1e-15);
    mb_test_near(mean.good_logits, 1500, 1e-15);
    mb_test_near(mean.entropy, (log(4) + log(3)) / 2, 1e-15);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_values),          cmocka_unit_test(test_text_scores),
        cmocka_unit_test(test_tile_mates),      cmocka_unit_test(test_layers),
        cmocka_unit_test(test_restart),         cmocka_unit_test(test_shares),
        cmocka_unit_test(test_errors),          cmocka_unit_test(test_repeats),
        cmocka_unit_test(test_router_formulas), cmocka_unit_test(test_logprob),
        cmocka_unit_test(test_origin),          cmocka_unit_test(test_needs),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, mb_test_teardown);
}
