/* test_router_bias: routers that pick by probability + bias: what they pick, and where the bias is kept: full
 * saves, deltas, trash added and taken away, weights that are quantised, and what is refused. The numbers of
 * whole models are those of test_golden_models (biased_mixtral, biased_qwen3_moe).
 *
 * 1. picks
 * 2. folders
 * 3. conversions
 * 4. refusals
 */
#include "model_cases.h"

#include "base/json.h"
#include "model/convert.h"

static const int32_t OFFSETS[] = {0, 9, 20, 31};

enum { ROUTERS = 2, GATES = 6, BIASES = ROUTERS * GATES }; /* of the golden mixtral */
#define PLAIN  CASES_FOLDER "/mixtral"
#define BIASED CASES_FOLDER "/biased_mixtral"

typedef struct bias_case {
    mb_ops *ops;
    char *folder, *target;
    cases_batch batch;
} bias_case;

static int bias_setup(void **state)
{
    bias_case *c = mb_calloc(1, sizeof *c);
    assert_status_ok(mb_ops_create("ref", 1, &c->ops));
    c->folder = cases_temporary();
    c->target = mb_files_join(c->folder, "target");
    cases_random(&c->batch, 40, OFFSETS, 3, CASES_SEED);
    *state = c;
    return 0;
}

static int bias_teardown(void **state)
{
    bias_case *c = *state;
    cases_remove(c->folder);
    mb_free(c->target);
    mb_ops_destroy(&c->ops);
    mb_free(c);
    return 0;
}

/* A model whose routers have biases, zeros where its folder has none. */
static mb_lm *open_biased(const bias_case *c, const char *path, const char *train, int bits)
{
    mb_lm *lm = NULL;
    const mb_lm_options options = {
        .path = path, .train = train, .router_bias = true, .seed = 5, .frozen_bits = bits};
    assert_status_ok(mb_lm_open(c->ops, &options, &lm));
    assert_true(mb_lm_has_router_bias(lm));
    return lm;
}

/* Numbers that no 16-bit float holds. */
static void fill(float bias[BIASES])
{
    for (int i = 0; i < BIASES; i++) bias[i] = (float)(i % 5 - 2) * 0.1001f + 1e-6f * (float)i;
}

static void expect_bias(mb_lm *lm, const float want[BIASES])
{
    float got[BIASES];
    assert_int_equal(mb_params_carried_count(mb_lm_params(lm)), BIASES);
    assert_status_ok(mb_lm_router_bias_read(lm, got));
    assert_memory_equal(got, want, sizeof got);
}

/* A folder under the temporary one, filled with the model. */
static char *save(const bias_case *c, mb_lm *lm, const char *name, const char *kind, mb_dtype dtype)
{
    char *path = mb_files_join(c->folder, name);
    assert_status_ok(mb_files_make_folders(path));
    assert_status_ok(mb_lm_write(lm, path, kind, dtype));
    return path;
}

/* ---- 1. picks ---- */

/* ids [K] are the largest of softmax(logits) + bias, as far as the order is not a matter of rounding. */
static void expect_picks(const float *logits, const float *bias, const int32_t *ids, int64_t picks)
{
    double score[GATES], all = 0, last = INFINITY;
    for (int e = 0; e < GATES; e++) all += exp(logits[e]);
    for (int e = 0; e < GATES; e++) score[e] = exp(logits[e]) / all + bias[e];
    for (int64_t k = 0; k < picks; k++) {
        assert_true(score[ids[k]] <= last + 1e-6);
        last = score[ids[k]];
        score[ids[k]] = -INFINITY;
    }
    for (int e = 0; e < GATES; e++) assert_true(score[e] <= last + 1e-6);
}

static void test_picks(void **state)
{
    const bias_case *c = *state;
    const mb_lm_want both[] = {{.logits = true}, {.routers = ROUTERS}}; /* generation, scoring */
    mb_lm *lm = cases_open(c->ops, BIASED, "none");
    mb_lm_pass *pass = NULL;
    mb_lm_output out;
    float bias[BIASES];
    assert_status_ok(mb_lm_router_bias_read(lm, bias));
    assert_status_ok(mb_lm_pass_create(lm, &pass));
    const int64_t picks = mb_lm_arch(lm)->picks;
    for (int w = 0; w < 2; w++) {
        int64_t others = 0;
        mb_lm_batch batch = c->batch.batch;
        if (w == 1) batch.head_rows = 0;
        assert_status_ok(mb_lm_forward(pass, &batch, &both[w], &out));
        for (int64_t r = 0; r < ROUTERS; r++)
            for (int64_t t = 0; t < batch.tokens; t++) {
                const float *logits = out.router_logits[r] + t * GATES;
                const int32_t *ids = out.router_ids[r] + t * picks;
                expect_picks(logits, bias + r * GATES, ids, picks);
                for (int e = 0; e < GATES; e++) others += logits[e] > logits[ids[0]];
            }
        assert_true(others > 10); /* the bias decides some */
    }
    mb_lm_pass_destroy(&pass);
    mb_lm_destroy(&lm);
}

/* A bias of zeros is none, bit for bit; the same number for all is none to the eye of a router. */
static void test_zero_bias_is_none(void **state)
{
    const bias_case *c = *state;
    mb_lm *plain = cases_open(c->ops, PLAIN, "none"), *biased = open_biased(c, PLAIN, "none", 0);
    const int64_t n = c->batch.batch.head_rows * mb_lm_arch(plain)->vocab;
    float bias[BIASES] = {0}, *want = cases_logits(plain, &c->batch), *got = cases_logits(biased, &c->batch);
    expect_bias(biased, bias);
    assert_memory_equal(got, want, (size_t)n * sizeof *got);
    mb_free(got);
    for (int i = 0; i < BIASES; i++) bias[i] = 0.5f;
    assert_status_ok(mb_lm_router_bias_write(biased, bias));
    got = cases_logits(biased, &c->batch);
    assert_memory_equal(got, want, (size_t)n * sizeof *got);
    mb_free(got);
    fill(bias);
    assert_status_ok(mb_lm_router_bias_write(biased, bias));
    got = cases_logits(biased, &c->batch);
    assert_true(cases_difference(got, want, n) > 1e-3);
    mb_free(got), mb_free(want);
    mb_lm_destroy(&plain), mb_lm_destroy(&biased);
}

/* Tokens one by one through kept keys are picked for as they are all at once. */
static void test_generation(void **state)
{
    const bias_case *c = *state;
    mb_lm *lm = cases_open(c->ops, BIASED, "none");
    mb_lm_pass *pass = NULL;
    mb_kv_cache *cache = NULL;
    mb_lm_output out;
    enum { N = 9 };
    const int64_t v = mb_lm_arch(lm)->vocab;
    const int32_t offsets[] = {0, 1}, row = 0, slot = 0;
    float *whole = cases_logits(lm, &c->batch), *steps = mb_calloc((size_t)(N * v), sizeof *steps);
    assert_status_ok(mb_kv_cache_create(mb_lm_arch(lm), c->ops, MB_F32, 1, N, &cache));
    assert_status_ok(mb_lm_pass_create(lm, &pass));
    for (int32_t t = 0; t + 1 < N; t++) {
        const mb_lm_want want = {.logits = true};
        const mb_lm_batch batch = {.tokens = 1,
                                   .segments = 1,
                                   .ids = c->batch.ids + t,
                                   .positions = &t,
                                   .offsets = offsets,
                                   .head_rows = 1,
                                   .head_row = &row,
                                   .opt_cache = cache,
                                   .opt_slot = &slot};
        assert_status_ok(mb_lm_forward(pass, &batch, &want, &out));
        memcpy(steps + t * v, out.logits, (size_t)v * sizeof *steps);
    }
    assert_true(cases_difference(steps, whole, (N - 1) * v) < 1e-5);
    mb_free(whole), mb_free(steps);
    mb_lm_pass_destroy(&pass);
    mb_kv_cache_destroy(&cache);
    mb_lm_destroy(&lm);
}

/* ---- 2. folders ---- */

/* Is the tensor of this router f32 in the file? */
static void expect_stored(const char *folder, const char *file, mb_dtype others)
{
    mb_safetensors *opened = NULL;
    mb_tensor view;
    char *path = mb_files_join(folder, file);
    assert_status_ok(mb_safetensors_open(path, &opened));
    assert_status_ok(
        mb_safetensors_view(opened, "model.layers.1.block_sparse_moe.gate." MB_PARAMS_ROUTER_BIAS, &view));
    assert_int_equal(view.dtype, MB_F32);
    assert_int_equal(view.dims, 1);
    assert_int_equal(view.shape[0], GATES);
    assert_status_ok(mb_safetensors_view(opened, "model.layers.1.block_sparse_moe.gate.weight", &view));
    assert_int_equal(view.dtype, others);
    mb_safetensors_close(&opened);
    mb_free(path);
}

/* Written as what it is, f32 whatever the others are, and read back bit for bit; a delta carries it too,
 * though nothing of it trains, also one that is made on a delta. */
static void test_folders(void **state)
{
    const bias_case *c = *state;
    float bias[BIASES], zeros[BIASES] = {0};
    mb_lm *lm = open_biased(c, PLAIN, "router", 0);
    mb_arch arch;
    fill(bias);
    expect_bias(lm, zeros);
    assert_status_ok(mb_lm_router_bias_write(lm, bias));
    char *full = save(c, lm, "full", "full", MB_BF16), *delta = save(c, lm, "delta", "delta", MB_F32);
    mb_lm_destroy(&lm);
    assert_status_ok(mb_arch_read(full, &arch));
    assert_true(arch.router_bias && arch.trash == 0 && arch.family == MB_FAMILY_MIXTRAL);
    assert_string_equal(json_string_value(json_object_get(arch.config, "model_type")), "select_moe");
    mb_arch_reset(&arch);
    expect_stored(full, "model.safetensors", MB_BF16);
    expect_stored(delta, "delta.safetensors", MB_F32);
    const char *const paths[] = {full, delta};
    for (int i = 0; i < 2; i++) {
        lm = cases_open(c->ops, paths[i], "none");
        expect_bias(lm, bias);
        mb_lm_destroy(&lm);
    }
    lm = open_biased(c, delta, "router", 0);
    expect_bias(lm, bias);
    bias[3] += 1;
    assert_status_ok(mb_lm_router_bias_write(lm, bias));
    char *second = save(c, lm, "second", "delta", MB_F32);
    mb_lm_destroy(&lm);
    assert_status_ok(mb_convert_full(c->ops, second, c->target));
    lm = cases_open(c->ops, c->target, "none");
    expect_bias(lm, bias);
    mb_lm_destroy(&lm);
    mb_free(full), mb_free(delta), mb_free(second);
}

/* All that trains, and matrices in 8 bits: neither touches the bias. */
static void test_never_trains(void **state)
{
    const bias_case *c = *state;
    float bias[BIASES];
    mb_lm *lm = open_biased(c, PLAIN, "all", 0), *packed = open_biased(c, BIASED, "none", 8);
    const int64_t n = c->batch.batch.head_rows * mb_lm_arch(lm)->vocab;
    assert_int_equal(mb_params_trained_count(mb_lm_params(lm)) + BIASES, mb_arch_parameters(mb_lm_arch(lm)));
    mb_param *param =
        mb_params_find(mb_lm_params(lm), "model.layers.0.block_sparse_moe.gate." MB_PARAMS_ROUTER_BIAS);
    assert_true(param != NULL && param->is_carried && !param->trained);
    mb_lm_destroy(&lm);
    lm = cases_open(c->ops, BIASED, "none");
    assert_status_ok(mb_lm_router_bias_read(lm, bias));
    expect_bias(packed, bias);
    float *want = cases_logits(lm, &c->batch), *got = cases_logits(packed, &c->batch);
    assert_true(cases_difference(got, want, n) < 0.2);
    mb_free(want), mb_free(got);
    mb_lm_destroy(&lm), mb_lm_destroy(&packed);
}

/* ---- 3. conversions ---- */

static void test_trash_on_top(void **state)
{
    const bias_case *c = *state;
    const mb_convert_trash_options options = {
        .trash_experts = 2, .trash_init = "closed", .trash_init_std = 0.02, .seed = 1};
    mb_convert_report report;
    float bias[BIASES], grown[ROUTERS * (GATES + 2)];
    mb_lm *lm = cases_open(c->ops, BIASED, "none");
    assert_status_ok(mb_lm_router_bias_read(lm, bias));
    float *want = cases_logits(lm, &c->batch);
    const int64_t n = c->batch.batch.head_rows * mb_lm_arch(lm)->vocab;
    mb_lm_destroy(&lm);
    assert_status_ok(mb_convert_trash(BIASED, c->target, &options));
    assert_status_ok(mb_convert_verify(c->ops, BIASED, NULL, c->target, NULL, 50, true, 1e-6, &report));
    assert_int_equal(report.identical, report.tensors);
    lm = cases_open(c->ops, c->target, "none");
    assert_status_ok(mb_lm_router_bias_read(lm, grown));
    for (int r = 0; r < ROUTERS; r++) {
        assert_memory_equal(grown + r * (GATES + 2), bias + r * GATES, GATES * sizeof *bias);
        assert_true(grown[r * (GATES + 2) + GATES] == 0 && grown[r * (GATES + 2) + GATES + 1] == 0);
    }
    float *got = cases_logits(lm, &c->batch);
    assert_true(cases_difference(got, want, n) <= 1e-6);
    mb_free(want), mb_free(got);
    mb_lm_destroy(&lm);
}

/* A stock model has no place for a bias: one that decides nothing goes, any other is kept from going. */
static void test_plain(void **state)
{
    const bias_case *c = *state;
    mb_convert_report report;
    mb_arch arch;
    assert_status_says(mb_convert_plain(BIASED, c->target), MB_EUSAGE, "stock model types have no place");
    assert_false(mb_files_is_folder(c->target));
    mb_lm *lm = open_biased(c, PLAIN, "none", 0);
    char *zeros = save(c, lm, "zeros", "full", MB_F32);
    mb_lm_destroy(&lm);
    assert_status_ok(mb_convert_plain(zeros, c->target));
    assert_status_ok(mb_convert_verify(c->ops, zeros, NULL, c->target, NULL, 50, true, 0, &report));
    assert_int_equal(report.changed, 0);
    assert_status_ok(mb_arch_read(c->target, &arch));
    assert_false(arch.router_bias);
    assert_string_equal(json_string_value(json_object_get(arch.config, "model_type")), "mixtral");
    assert_null(json_object_get(arch.config, "router_bias"));
    mb_arch_reset(&arch);
    mb_free(zeros);
}

/* ---- 4. refusals ---- */

static void refuse(const bias_case *c, mb_lm_options options, mb_status status, const char *text)
{
    mb_lm *lm = NULL;
    assert_status_says(mb_lm_open(c->ops, &options, &lm), status, text);
    assert_null(lm);
}

static void test_refusals(void **state)
{
    const bias_case *c = *state;
    const mb_lora_options lora = {.r = 2, .alpha = 4, .targets = "q_proj"};
    float bias[BIASES];
    refuse(c, (mb_lm_options){.path = CASES_FOLDER "/llama_tied", .train = "all", .router_bias = true},
           MB_EUSAGE, "is dense");
    refuse(c, (mb_lm_options){.path = PLAIN, .train = "all", .router_bias = true, .opt_lora = &lora},
           MB_EUSAGE, "train without LoRA");
    refuse(c,
           (mb_lm_options){.path = PLAIN,
                           .train = "all",
                           .router_bias = true,
                           .opt_adapter = CASES_FOLDER "/mixtral_adapter"},
           MB_EUSAGE, "train without LoRA");
    mb_lm *lm = cases_open(c->ops, PLAIN, "none");
    assert_false(mb_lm_has_router_bias(lm));
    assert_status_says(mb_lm_router_bias_read(lm, bias), MB_EUSAGE, "no selection bias");
    assert_status_says(mb_lm_router_bias_write(lm, bias), MB_EUSAGE, "no selection bias");
    mb_lm_destroy(&lm);
    /* a model with biases that stay takes an adapter */
    const mb_lm_options still = {.path = BIASED, .train = "all", .opt_lora = &lora};
    assert_status_ok(mb_lm_open(c->ops, &still, &lm));
    mb_lm_destroy(&lm);
}

/* config.json promises biases, and the weights have none, or of another size. */
static void test_damaged(void **state)
{
    const bias_case *c = *state;
    const char *const files[] = {"config.json", "model.safetensors"};
    const char *const sources[] = {BIASED, PLAIN};
    assert_status_ok(mb_files_make_folders(c->target));
    for (int i = 0; i < 2; i++) {
        char *from = mb_files_join(sources[i], files[i]), *to = mb_files_join(c->target, files[i]);
        assert_status_ok(mb_files_copy(from, to));
        mb_free(from), mb_free(to);
    }
    refuse(c, (mb_lm_options){.path = c->target, .train = "none"}, MB_ENOTFOUND,
           "gate.e_score_correction_bias is missing");
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, bias_setup, bias_teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_picks),   TEST(test_zero_bias_is_none), TEST(test_generation),
        TEST(test_folders), TEST(test_never_trains),      TEST(test_trash_on_top),
        TEST(test_plain),   TEST(test_refusals),          TEST(test_damaged),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, cases_no_leaks);
}
