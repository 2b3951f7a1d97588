/* test_routing_share: routing made by hand whose counts are known, the permuted baseline, and routing of a
 * model against its records alone, together with perplexity per type. */
#include "measure_fixture.h"

#include "measure/perplexity.h"
#include "measure/routing_share_files.h"

enum { RECORDS = 60, LONGEST = 40, TYPES = 3, GATES = 6, PICKS = 2 };

/* A record's place in the data: its own, or one for several. */
typedef int64_t place_of(int64_t record);
static int64_t own_place(int64_t record)
{
    return record;
}
static int64_t two_places(int64_t record)
{
    return record % 2;
}

static uint16_t type_of(int64_t record)
{
    return (uint16_t)(record % 7 == 0 ? 0 : record % 2 == 0 ? 1 : 2);
}

static mb_shard *make_shard(const fixture *f, const char *name, bool has_types, place_of *place,
                            int64_t types)
{
    static const char *const names[2] = {"web", "books"}, *const files[2] = {"web.jsonl", "books.jsonl"},
                             *const type_names[TYPES] = {"math", "chat", "code"};
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
                                .type_names = has_types ? type_names : NULL,
                                .type_count = has_types ? types : 0,
                                .has_loss_mask = true};
    mb_test_ok(mb_shard_writer_create(path, &info, &writer));
    for (int64_t r = 0; r < RECORDS; r++) {
        const int64_t n = fixture_record(r, LONGEST, tokens, mask);
        const mb_shard_record record = {.tokens = tokens,
                                        .loss_mask = mask,
                                        .count = n,
                                        .source = (uint16_t)(place == two_places ? 0 : r % 5 == 0),
                                        .source_index = place(r),
                                        .byte_offset = 10 * place(r),
                                        .byte_length = 10,
                                        .text_bytes = 3 * n,
                                        .record_hash = fixture_hash(r),
                                        .type = (uint16_t)(place == two_places ? r % 2 : type_of(r) % types)};
        mb_test_ok(mb_shard_writer_add(writer, &record));
    }
    mb_test_ok(mb_shard_writer_close(&writer));
    mb_test_ok(mb_shard_open(path, 0, &shard));
    mb_free(path);
    return shard;
}

/* ---- routing by hand ---- */

typedef void pick_rule(int64_t record, int64_t row, int64_t layer, int32_t ids[PICKS]);

static void pick_by_type(int64_t record, int64_t row, int64_t layer, int32_t ids[PICKS])
{
    ids[0] = (int32_t)((type_of(record) + layer) % GATES);
    ids[1] = (int32_t)((ids[0] + 1 + row % 2) % GATES);
}

static void pick_by_record(int64_t record, int64_t row, int64_t layer, int32_t ids[PICKS])
{
    (void)row;
    ids[0] = (int32_t)mb_rng_below(77, MB_RNG_DATA, (uint32_t)layer, (uint64_t)record, GATES);
    ids[1] = (int32_t)((ids[0] + 1) % GATES);
}

static void pick_by_side(int64_t record, int64_t row, int64_t layer, int32_t ids[PICKS])
{
    (void)row;
    ids[0] = (int32_t)(record % 2 == 0 ? layer : 3);
    ids[1] = ids[0] == 5 ? 0 : 5;
}

/* Logit of a gate; the softmax of a row has known parts. */
static float logit_of(int64_t record, int64_t row, int64_t gate)
{
    return (float)log(1 + (double)((record + row + gate) % GATES)) + (float)(record % 3);
}

/* All tiles of the shard through add, with what `pick` says. */
static mb_routing_share *route(const fixture *f, mb_lm *lm, mb_shard *shard, pick_rule *pick,
                               bool only_answers, int64_t permutations)
{
    const mb_routing_share_options options = {
        .only_answers = only_answers, .permutations = permutations, .seed = 1};
    mb_routing_share *share = NULL;
    mb_tile_plan plan;
    mb_tile tile = {0};
    float *logits[FIXTURE_LAYERS];
    int32_t *ids[FIXTURE_LAYERS];
    mb_test_ok(mb_routing_share_create(shard, lm, &options, &share));
    mb_test_ok(mb_tile_plan_create(shard, FIXTURE_POSITIONS, 100, 1 << 18, &plan));
    for (int64_t t = 0; t < plan.count; t++) {
        mb_test_ok(mb_tile_read(&tile, shard, &plan, t, FIXTURE_POSITIONS, MB_TILE_NO_TARGETS));
        for (int64_t l = 0; l < FIXTURE_LAYERS; l++) {
            logits[l] = mb_calloc((size_t)(tile.tokens * GATES + 1), sizeof **logits);
            ids[l] = mb_calloc((size_t)(tile.tokens * PICKS + 1), sizeof **ids);
            for (int64_t i = 0; i < tile.records; i++)
                for (int64_t row = tile.row_first[i]; row < tile.row_first[i + 1]; row++) {
                    pick(tile.record[i], row - tile.row_first[i], l, ids[l] + row * PICKS);
                    for (int64_t e = 0; e < GATES; e++)
                        logits[l][row * GATES + e] = logit_of(tile.record[i], row - tile.row_first[i], e);
                }
        }
        const mb_lm_output out = {.routers = FIXTURE_LAYERS, .router_logits = logits, .router_ids = ids};
        mb_test_ok(mb_routing_share_add(share, &tile, &out));
        for (int64_t l = 0; l < FIXTURE_LAYERS; l++) {
            mb_free(logits[l]);
            mb_free(ids[l]);
        }
    }
    mb_tile_destroy(&tile);
    mb_tile_plan_reset(&plan);
    mb_test_ok(mb_routing_share_finish(share, f->comm));
    return share;
}

typedef struct expected_routing {
    int64_t counts[TYPES][FIXTURE_LAYERS][GATES], first[TYPES][FIXTURE_LAYERS][GATES];
    double mass[TYPES][FIXTURE_LAYERS][GATES];
    int64_t records[TYPES], tokens[TYPES];
} expected_routing;

static void expect(pick_rule *pick, bool only_answers, expected_routing *out)
{
    uint32_t tokens[FIXTURE_MOST];
    uint8_t mask[FIXTURE_MOST];
    memset(out, 0, sizeof *out);
    for (int64_t r = 0; r < RECORDS; r++) {
        const int64_t n = fixture_record(r, LONGEST, tokens, mask), t = type_of(r);
        int64_t counted = 0;
        for (int64_t i = 0; i < n; i++) {
            if (only_answers && !mask[i]) continue;
            counted++;
            for (int64_t l = 0; l < FIXTURE_LAYERS; l++) {
                int32_t ids[PICKS];
                pick(r, i, l, ids);
                out->first[t][l][ids[0]]++;
                for (int k = 0; k < PICKS; k++) out->counts[t][l][ids[k]]++;
                for (int64_t e = 0; e < GATES; e++)
                    out->mass[t][l][e] += (double)(1 + (r + i + e) % GATES) / 21;
            }
        }
        out->tokens[t] += counted;
        out->records[t] += counted > 0;
    }
}

static void check_counts(const mb_routing_share_result *r, const expected_routing *e)
{
    for (int64_t t = 0; t < TYPES; t++) {
        assert_int_equal(r->records[t], e->records[t]);
        assert_int_equal(r->tokens[t], e->tokens[t]);
        for (int64_t l = 0; l < FIXTURE_LAYERS; l++)
            for (int64_t g = 0; g < GATES; g++) {
                const int64_t at = (t * FIXTURE_LAYERS + l) * GATES + g;
                assert_int_equal(r->counts[at], e->counts[t][l][g]);
                assert_int_equal(r->first_counts[at], e->first[t][l][g]);
                mb_test_near_abs(r->mass[at], e->mass[t][l][g], 1e-6, 1e-6);
                mb_test_near_abs(r->share[at], (double)e->counts[t][l][g] / (double)(PICKS * e->tokens[t]),
                                 1e-15, 0);
            }
        for (int64_t l = 0; l < FIXTURE_LAYERS; l++)
            mb_test_near(r->entropy[t * FIXTURE_LAYERS + l],
                         mb_routing_information_entropy(e->counts[t][l], GATES), 1e-14);
    }
}

/* Counts of known routing, over all tokens and over answers; what follows agrees with the formulas. */
static void test_counts(void **state)
{
    (void)state;
    fixture f = fixture_open("ref");
    mb_lm *lm = fixture_model(&f, FIXTURE_EXPERTS, GATES - FIXTURE_EXPERTS);
    mb_shard *shard = make_shard(&f, "shard.h5", true, own_place, TYPES);
    expected_routing *expected = mb_calloc(1, sizeof *expected);
    for (int answers = 0; answers < 2; answers++) {
        mb_routing_share *share = route(&f, lm, shard, pick_by_type, answers != 0, 19);
        const mb_routing_share_result *r = mb_routing_share_get(share);
        int64_t scratch[TYPES];
        expect(pick_by_type, answers != 0, expected);
        assert_true(r->types == TYPES && r->routers == FIXTURE_LAYERS && r->gates == GATES &&
                    r->picks == PICKS && r->trash == 2 && r->has_types && r->units == RECORDS);
        check_counts(r, expected);
        for (int64_t l = 0; l < FIXTURE_LAYERS; l++) {
            assert_int_equal(r->layers[l], l);
            const mb_routing_information info = mb_routing_information_get(
                &expected->counts[0][l][0], TYPES, FIXTURE_LAYERS * GATES, GATES, true, scratch);
            assert_true(info.mutual == r->equal.info[l].mutual);
            assert_true(r->weighted.info[l].mutual > 3 * r->weighted.mean[l]);
            mb_test_near(r->weighted.p_value[l], 1.0 / 20, 1e-15);
        }
        mb_routing_share_destroy(&share);
    }
    mb_free(expected);
    mb_shard_close(&shard);
    mb_lm_destroy(&lm);
    fixture_close(&f);
}

/* Experts chosen by record, whatever its type: many tokens of few records look related, which only the
 * permuted baseline shows; Miller and Madow's correction takes the tokens for independent. */
static void test_unrelated(void **state)
{
    (void)state;
    fixture f = fixture_open("ref");
    mb_lm *lm = fixture_model(&f, FIXTURE_EXPERTS, GATES - FIXTURE_EXPERTS);
    mb_shard *shard = make_shard(&f, "shard.h5", true, own_place, TYPES);
    mb_routing_share *share = route(&f, lm, shard, pick_by_record, false, 199);
    const mb_routing_share_result *r = mb_routing_share_get(share);
    const mb_routing_share_relation *relations[2] = {&r->weighted, &r->equal};
    for (int k = 0; k < 2; k++) {
        const mb_routing_share_relation *a = relations[k];
        const double found = a->info[FIXTURE_LAYERS].mutual;
        print_message("# found %.5f, corrected %.5f, permuted %.5f +- %.5f, p %.3f\n", found,
                      a->info[FIXTURE_LAYERS].corrected, a->mean[FIXTURE_LAYERS], a->sd[FIXTURE_LAYERS],
                      a->p_value[FIXTURE_LAYERS]);
        assert_true(fabs(found - a->mean[FIXTURE_LAYERS]) < 3 * a->sd[FIXTURE_LAYERS]);
        assert_true(a->p_value[FIXTURE_LAYERS] > 0.01);
        assert_true(a->info[FIXTURE_LAYERS].corrected > 0.5 * a->mean[FIXTURE_LAYERS]);
        double mean = 0;
        for (int64_t l = 0; l < FIXTURE_LAYERS; l++) mean += a->mean[l] / FIXTURE_LAYERS;
        mb_test_near(mean, a->mean[FIXTURE_LAYERS], 1e-12);
    }
    mb_routing_share_destroy(&share);
    share = route(&f, lm, shard, pick_by_record, false, 0);
    r = mb_routing_share_get(share);
    assert_true(isnan(r->equal.mean[0]) && isnan(r->equal.sd[0]) && isnan(r->equal.p_value[0]));
    mb_routing_share_destroy(&share);
    mb_shard_close(&shard);
    mb_lm_destroy(&lm);
    fixture_close(&f);
}

/* All records come from two places of the data, one of each type: permuting two units changes nothing that
 * could be seen, however many records and tokens there are. */
static void test_units(void **state)
{
    (void)state;
    fixture f = fixture_open("ref");
    mb_lm *lm = fixture_model(&f, FIXTURE_EXPERTS, GATES - FIXTURE_EXPERTS);
    mb_shard *shard = make_shard(&f, "shard.h5", true, two_places, 2);
    mb_routing_share *share = route(&f, lm, shard, pick_by_side, false, 25);
    const mb_routing_share_result *r = mb_routing_share_get(share);
    assert_int_equal(r->units, 2);
    assert_true(r->weighted.info[0].mutual > 0.3);
    for (int64_t p = 0; p < 25 * (FIXTURE_LAYERS + 1); p++)
        mb_test_near(r->weighted.shuffled[p], r->weighted.info[p % (FIXTURE_LAYERS + 1)].mutual, 1e-12);
    mb_routing_share_destroy(&share);
    mb_shard_close(&shard);
    mb_lm_destroy(&lm);
    fixture_close(&f);
}

/* ---- a model ---- */

/* Loss of the records of each type: of all tokens, and of those of the loss mask. */
static void lose_alone(mb_lm *lm, double nll[2][TYPES])
{
    uint32_t tokens[FIXTURE_MOST];
    uint8_t mask[FIXTURE_MOST];
    fixture_alone alone;
    for (int64_t r = 0; r < RECORDS; r++) {
        const int64_t n = fixture_record(r, LONGEST, tokens, mask);
        if (n > 1) fixture_run_alone(lm, tokens, n, &alone);
        for (int64_t i = 1; i < n; i++) {
            nll[0][type_of(r)] += alone.loss[i - 1];
            if (mask[i]) nll[1][type_of(r)] += alone.loss[i - 1];
        }
    }
}

static void route_alone(mb_lm *lm, int64_t record, expected_routing *out)
{
    uint32_t tokens[FIXTURE_MOST];
    uint8_t mask[FIXTURE_MOST];
    const int64_t n = fixture_record(record, LONGEST, tokens, mask), t = type_of(record);
    mb_lm_pass *pass = NULL;
    mb_lm_output output;
    mb_tile tile = {0};
    if (n == 0) return;
    mb_test_ok(mb_tile_add(&tile, tokens, n));
    const mb_lm_batch batch = mb_tile_batch(&tile);
    const mb_lm_want want = {0};
    mb_test_ok(mb_lm_pass_create(lm, &pass));
    mb_test_ok(mb_lm_forward(pass, &batch, &want, &output));
    for (int64_t l = 0; l < output.routers; l++)
        for (int64_t i = 0; i < n; i++) {
            const float *row = output.router_logits[l] + i * GATES;
            double sum = 0;
            for (int64_t e = 0; e < GATES; e++) sum += exp(row[e]);
            for (int64_t e = 0; e < GATES; e++) out->mass[t][l][e] += exp(row[e]) / sum;
            out->first[t][l][output.router_ids[l][i * PICKS]]++;
            for (int k = 0; k < PICKS; k++) out->counts[t][l][output.router_ids[l][i * PICKS + k]]++;
        }
    out->tokens[t] += n;
    out->records[t]++;
    mb_lm_pass_destroy(&pass);
    mb_tile_destroy(&tile);
}

/* In the same pass as perplexity, in tiles of any size; perplexity's own numbers do not change by it. */
static void test_model(void **state)
{
    (void)state;
    for (int b = 0; b < (mb_ops_gpu_count() > 0 ? 2 : 1); b++) {
        fixture f = fixture_open(b == 0 ? "cpu" : "cuda");
        mb_lm *lm = fixture_model(&f, FIXTURE_EXPERTS, GATES - FIXTURE_EXPERTS);
        mb_shard *shard = make_shard(&f, "shard.h5", true, own_place, TYPES);
        expected_routing *expected = mb_calloc(1, sizeof *expected);
        const int64_t n = mb_perplexity_rows(shard), sizes[] = {30, 200, 1 << 20};
        mb_perplexity_row rows[1 + 2 + TYPES], plain[1 + 2 + TYPES];
        assert_int_equal(n, 1 + 2 + TYPES);
        double nll[2][TYPES] = {{0}};
        for (int64_t r = 0; r < RECORDS; r++) route_alone(lm, r, expected);
        lose_alone(lm, nll);
        for (int s = 0; s < 3; s++) {
            const mb_routing_share_options how = {.permutations = 3};
            mb_perplexity_options options = {.tile_tokens = sizes[s], .only_masked = s == 1};
            mb_test_ok(mb_perplexity_run(f.comm, lm, shard, &options, plain));
            mb_test_ok(mb_routing_share_create(shard, lm, &how, &options.opt_routing));
            mb_test_ok(mb_perplexity_run(f.comm, lm, shard, &options, rows));
            mb_test_ok(mb_routing_share_finish(options.opt_routing, f.comm));
            check_counts(mb_routing_share_get(options.opt_routing), expected);
            for (int64_t i = 0; i < n; i++)
                assert_true(rows[i].nll == plain[i].nll && rows[i].tokens == plain[i].tokens);
            for (int64_t t = 0; t < TYPES; t++) {
                const mb_perplexity_row *row = &rows[3 + t];
                assert_string_equal(row->type, mb_shard_type_name(shard, t));
                mb_test_near(row->nll, nll[s == 1][t], 1e-5);
                mb_test_near(row->token_perplexity, exp(row->nll / (double)row->tokens), 1e-12);
                assert_int_equal(row->records, expected->records[t] + (t == type_of(3)));
            }
            mb_routing_share_destroy(&options.opt_routing);
        }
        mb_free(expected);
        mb_shard_close(&shard);
        mb_lm_destroy(&lm);
        fixture_close(&f);
    }
}

/* A model without routers, logits that are no numbers, too many permutations; sources where there are no
 * types. */
static void test_refused(void **state)
{
    (void)state;
    fixture f = fixture_open("ref");
    mb_lm *lm = fixture_model(&f, FIXTURE_EXPERTS, GATES - FIXTURE_EXPERTS), *dense = fixture_model(&f, 0, 0);
    mb_shard *shard = make_shard(&f, "shard.h5", false, own_place, TYPES);
    mb_routing_share *share = NULL;
    mb_routing_share_options options = {.permutations = 2};
    mb_test_fails(mb_routing_share_create(shard, dense, &options, &share), MB_EUSAGE,
                  "no layer with experts");
    options.permutations = (int64_t)1 << 33;
    mb_test_fails(mb_routing_share_create(shard, lm, &options, &share), MB_EUSAGE,
                  "eval.routing_permutations lower");
    options.permutations = 0;
    mb_test_ok(mb_routing_share_create(shard, lm, &options, &share));
    uint32_t tokens[1] = {1};
    const int64_t record[1] = {0};
    float row[GATES] = {0, NAN, 0, 0, 0, 0}, *logits[FIXTURE_LAYERS] = {row, row, row};
    int32_t picked[PICKS] = {0, 1}, *ids[FIXTURE_LAYERS] = {picked, picked, picked};
    int64_t rows[2] = {0, 1};
    mb_tile tile = {0};
    mb_test_ok(mb_tile_add(&tile, tokens, 1));
    tile.records = 1;
    tile.record = record;
    tile.row_first = rows;
    mb_test_fails(mb_routing_share_add(
                      share, &tile,
                      &(mb_lm_output){.routers = FIXTURE_LAYERS, .router_logits = logits, .router_ids = ids}),
                  MB_ENUMERIC, "not numbers");
    tile.row_first = NULL;
    mb_tile_destroy(&tile);
    mb_routing_share_destroy(&share);
    share = route(&f, lm, shard, pick_by_record, false, 2);
    const mb_routing_share_result *r = mb_routing_share_get(share);
    assert_true(!r->has_types && r->types == 2);
    assert_string_equal(r->names[1], "books");
    assert_int_equal(r->records[1], (RECORDS + 4) / 5);
    mb_routing_share_destroy(&share);
    mb_shard_close(&shard);
    mb_lm_destroy(&dense);
    mb_lm_destroy(&lm);
    fixture_close(&f);
}

/* Only layers with experts have rows; experts declared trash are counted as such. */
static void test_layers(void **state)
{
    (void)state;
    fixture f = fixture_open("ref");
    mb_lm *plain = fixture_model(&f, FIXTURE_EXPERTS, 0), *lm = NULL;
    mb_shard *shard = make_shard(&f, "shard.h5", true, own_place, TYPES);
    mb_arch arch = *mb_lm_arch(plain);
    arch.family = MB_FAMILY_QWEN3_MOE;
    arch.qk_norm = MB_QK_NORM_HEAD;
    arch.layer[1] = 0;
    arch.dense_ffn = 20;
    arch.declared_trash = 1;
    mb_test_ok(mb_lm_create(f.ops, &arch, "none", FIXTURE_SEED, &lm));
    const mb_routing_share_options how = {.permutations = 1};
    mb_perplexity_options options = {.tile_tokens = 100};
    mb_perplexity_row rows[1 + 2 + TYPES];
    mb_test_ok(mb_routing_share_create(shard, lm, &how, &options.opt_routing));
    mb_test_ok(mb_perplexity_run(f.comm, lm, shard, &options, rows));
    mb_test_ok(mb_routing_share_finish(options.opt_routing, f.comm));
    const mb_routing_share_result *r = mb_routing_share_get(options.opt_routing);
    assert_true(r->routers == 2 && r->layers[0] == 0 && r->layers[1] == 2);
    assert_true(r->gates == FIXTURE_EXPERTS && r->trash == 1);
    for (int64_t i = 0; i < TYPES * 2; i++) {
        int64_t picks = 0;
        double mass = 0;
        for (int64_t e = 0; e < r->gates; e++) {
            picks += r->counts[i * r->gates + e];
            mass += r->mass[i * r->gates + e];
        }
        assert_int_equal(picks, r->tokens[i / 2] * PICKS);
        mb_test_near(mass, (double)r->tokens[i / 2], 1e-8);
    }
    mb_routing_share_destroy(&options.opt_routing);
    mb_shard_close(&shard);
    mb_lm_destroy(&lm);
    mb_lm_destroy(&plain);
    fixture_close(&f);
}

/* The file and the summary say the same as the result. */
static void test_files(void **state)
{
    (void)state;
    fixture f = fixture_open("ref");
    mb_lm *lm = fixture_model(&f, FIXTURE_EXPERTS, GATES - FIXTURE_EXPERTS);
    mb_shard *shard = make_shard(&f, "shard.h5", true, own_place, TYPES);
    mb_routing_share *share = route(&f, lm, shard, pick_by_type, false, 4);
    const mb_routing_share_result *r = mb_routing_share_get(share);
    char *path = mb_test_path(f.folder, "routing.h5");
    json_t *summary = NULL;
    mb_h5 *file = NULL;
    int64_t counts[TYPES * FIXTURE_LAYERS * GATES], units;
    double all, shuffled[4 * FIXTURE_LAYERS];
    mb_tensor tensor = mb_tensor_view3(MB_I64, counts, TYPES, FIXTURE_LAYERS, GATES),
              table = mb_tensor_view2(MB_F64, shuffled, 4, FIXTURE_LAYERS);
    mb_test_ok(mb_routing_share_files_write(r, "model", "shard", path));
    mb_test_ok(mb_h5_open(path, &file));
    mb_test_ok(mb_h5_read(file, "/counts", &tensor));
    assert_memory_equal(counts, r->counts, sizeof counts);
    mb_test_ok(mb_h5_read(file, "/equal/mutual_information_shuffled", &table));
    for (int64_t p = 0; p < 4; p++)
        for (int64_t l = 0; l < FIXTURE_LAYERS; l++)
            assert_true(shuffled[p * FIXTURE_LAYERS + l] == r->equal.shuffled[p * (FIXTURE_LAYERS + 1) + l]);
    mb_test_ok(mb_h5_get_int(file, "/", "units", &units));
    mb_test_ok(mb_h5_get_real(file, "/mutual_information", "all_layers", &all));
    assert_int_equal(units, RECORDS);
    assert_true(all == r->weighted.info[FIXTURE_LAYERS].mutual);
    mb_test_ok(mb_routing_share_files_summary(r, &summary));
    const json_t *equal = json_object_get(summary, "equal");
    assert_true(json_real_value(json_object_get(equal, "shuffled_mean")) == r->equal.mean[FIXTURE_LAYERS]);
    assert_int_equal(json_array_size(json_object_get(equal, "layers")), FIXTURE_LAYERS);
    assert_int_equal(json_array_size(json_object_get(summary, "entropy")), TYPES);
    mb_routing_share_files_log(r);
    json_decref(summary);
    mb_h5_destroy(&file);
    mb_free(path);
    mb_routing_share_destroy(&share);
    mb_shard_close(&shard);
    mb_lm_destroy(&lm);
    fixture_close(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_counts),  cmocka_unit_test(test_unrelated),
                                       cmocka_unit_test(test_units),   cmocka_unit_test(test_model),
                                       cmocka_unit_test(test_refused), cmocka_unit_test(test_layers),
                                       cmocka_unit_test(test_files)};
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, mb_test_teardown);
}
