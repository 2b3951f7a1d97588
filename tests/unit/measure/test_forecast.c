/* test_forecast: operations by hand, how seconds move with ranks, threads, dtype and what trains, bytes on
 * the wire, files beside files that were written, and files of rates that are wrong. */
#include "measure_fixture.h"

#include "measure/forecast.h"
#include "measure/scorer.h"
#include "measure/scorer_plan.h"

/* D 8, 2 heads of 4, 1 kv head, F 16, 4 experts top-2 and 2 trash, V 32, 3 layers */
static const mb_arch moe = {.family = MB_FAMILY_OLMOE,
                            .width = 8,
                            .layers = 3,
                            .heads = 2,
                            .kv_heads = 1,
                            .head_width = 4,
                            .ffn = 16,
                            .vocab = 32,
                            .max_positions = 64,
                            .experts = 4,
                            .trash = 2,
                            .picks = 2,
                            .layer = {MB_LAYER_MOE, MB_LAYER_MOE, MB_LAYER_MOE}};

enum {
    ATTENTION = 2 * (8 * 8 + 8 * 4 + 8 * 4 + 8 * 8), /* q, k, v, o of one token */
    SCORES = 4 * 8,                                  /* of one key */
    ROUTER = 2 * 8 * 6,
    EXPERTS = 2 * 2 * 3 * 8 * 16,
    HEAD = 2 * 8 * 32
};

/* ---- operations ---- */

static void test_forward(void **state)
{
    (void)state;
    const double block = ATTENTION + 10 * SCORES + ROUTER + EXPERTS;
    const mb_forecast_cost all = mb_forecast_cost_forward(&moe, 3, true, false, 10);
    assert_true(all.forward == 3 * block + HEAD);
    assert_true(all.input_gradients == 0 && all.weight_gradients == 0 && all.elements > 0);
    /* Scoring stops at the last asked gate: its experts are not computed. */
    const mb_forecast_cost gates = mb_forecast_cost_forward(&moe, 2, false, true, 10);
    assert_true(gates.forward == 2 * block - EXPERTS);
    assert_true(gates.elements < all.elements);
    /* Half a key more is half its cost more. */
    const mb_forecast_cost longer = mb_forecast_cost_forward(&moe, 3, true, false, 10.5);
    assert_true(fabs(longer.forward - all.forward - 3 * 0.5 * SCORES) < 1e-6);
}

static mb_forecast_cost train(mb_forecast_trained trained, bool recompute, bool copies)
{
    const mb_forecast_training training = {
        .trained = trained, .adapter_active = 100, .recompute = recompute, .copies = copies, .context = 10};
    return mb_forecast_cost_train(&moe, &training);
}

static void test_training(void **state)
{
    (void)state;
    const double block = ATTENTION + 10 * SCORES + ROUTER + EXPERTS, forward = 3 * block + HEAD;
    const mb_forecast_cost full = train(MB_FORECAST_ALL, false, false),
                           router = train(MB_FORECAST_ROUTER, false, false),
                           adapter = train(MB_FORECAST_ADAPTER, false, false),
                           again = train(MB_FORECAST_ALL, true, false),
                           copied = train(MB_FORECAST_ROUTER, false, true);
    assert_true(mb_forecast_cost_flops(&full) == 3 * forward);
    assert_true(router.forward == forward && router.input_gradients == forward - block);
    assert_true(router.weight_gradients == 3 * ROUTER); /* the gates alone */
    assert_true(adapter.forward == forward + 200 && adapter.weight_gradients == 200);
    assert_true(again.forward == forward + 3 * block); /* blocks twice, the head once */
    assert_true(copied.forward == 2 * forward - HEAD); /* copies have no loss */
    assert_true(router.elements < adapter.elements && adapter.elements < full.elements &&
                full.elements < again.elements);
}

/* ---- seconds ---- */

static const mb_forecast_machine machine = {.cores = 8,
                                            .threads = 8,
                                            .gflops_f32 = 800,
                                            .gflops_bf16 = 1600,
                                            .memory_gb_per_s = 100,
                                            .disk_write_gb_per_s = 1,
                                            .disk_read_gb_per_s = 1,
                                            .network_gb_per_s = 10,
                                            .network_us = 2};

static double token_seconds(int64_t ranks, int64_t nodes, int64_t threads, mb_dtype dtype, int bits)
{
    const mb_forecast_cost cost = train(MB_FORECAST_ALL, false, false);
    const mb_forecast_layout layout = {.ranks = ranks, .nodes = nodes, .threads = threads};
    return mb_forecast_token_seconds(&cost, &machine, &layout, dtype, bits);
}

static void test_token_seconds(void **state)
{
    (void)state;
    const double one = token_seconds(1, 1, 8, MB_F32, 0);
    const mb_forecast_cost cost = train(MB_FORECAST_ALL, false, false);
    assert_true(one > mb_forecast_cost_flops(&cost) / 800e9); /* never faster than the ceiling */
    assert_true(mb_test_is_near(token_seconds(8, 1, 1, MB_F32, 0), one, 1e-12, 0)); /* the same threads */
    assert_true(mb_test_is_near(token_seconds(1, 1, 4, MB_F32, 0), 2 * one, 1e-12, 0));
    assert_true(mb_test_is_near(token_seconds(4, 4, 8, MB_F32, 0), one / 4, 1e-12, 0));
    assert_true(token_seconds(1, 1, 16, MB_F32, 0) == one); /* no more than the cores */
    assert_true(token_seconds(1, 1, 8, MB_BF16, 0) < one);
    assert_true(token_seconds(1, 1, 8, MB_BF16, 4) > token_seconds(1, 1, 8, MB_BF16, 0));
}

static void test_step(void **state)
{
    (void)state;
    mb_forecast_step step = {.trained = 1e6, .microbatches = 8, .lanes = 8, .zero = 1, .weights = 8e6};
    assert_true(mb_forecast_step_bytes(&step, 1) == 0);
    assert_true(mb_forecast_step_bytes(&step, 4) == 0.75 * 2 * 4e6); /* reduced, and gathered again */
    step.zero = 2;
    assert_true(mb_forecast_step_bytes(&step, 4) == 0.75 * 3 * 4e6); /* two waves of gradients, parameters */
    step.zero = 3;
    assert_true(mb_forecast_step_bytes(&step, 8) == 0.875 * (4e6 + 2 * 8e6));
    step.zero = 1;
    const mb_forecast_layout one = {1, 1, 8}, near = {8, 1, 1}, far = {8, 8, 8};
    assert_true(mb_forecast_step_seconds(&step, &machine, &far) > 0.875 * 2 * 4e6 / 10e9);
    assert_true(mb_forecast_step_seconds(&step, &machine, &near) <
                mb_forecast_step_seconds(&step, &machine, &one)); /* micro-batches side by side */
}

/* ---- files ---- */

static double size_of(const char *path)
{
    int64_t bytes = 0;
    mb_test_ok(mb_files_size(path, &bytes));
    return (double)bytes;
}

/* A shard and a score table that were written, beside their forecasts. */
static void test_files(void **state)
{
    (void)state;
    enum { RECORDS = 3000 };
    fixture f = fixture_open("ref");
    mb_shard *shard = fixture_shard(&f, "a.h5", RECORDS, 40, true);
    mb_lm *lm = fixture_model(&f, FIXTURE_EXPERTS, 1);
    mb_scorer_options options = {.scores = (char *)"good_mass,good_logits,length,random",
                                 .score_layers = (char *)"all",
                                 .tile_tokens = 512,
                                 .seed = 1};
    mb_scorer_report report;
    mb_scorer_plan plan;
    char *table = mb_test_path(f.folder, "scores.h5");
    const double tokens = (double)mb_shard_tokens(shard),
                 shard_bytes = mb_forecast_bytes_shard(RECORDS, tokens, true),
                 table_bytes = mb_forecast_bytes_scores(RECORDS, 4, 2, FIXTURE_LAYERS);
    mb_test_ok(mb_scorer_run(f.comm, lm, NULL, shard, &options, (mb_share){0}, table, &report));
    mb_test_ok(mb_scorer_plan_create(&options, shard, lm, NULL, &plan));
    print_message("# shard %.0f, forecast %.0f; table %.0f, forecast %.0f; parts %lld, forecast %.0f\n",
                  size_of(mb_shard_file_path(shard, 0)), shard_bytes, size_of(table), table_bytes,
                  (long long)plan.tiles.windows, mb_forecast_parts(tokens, 512));
    assert_true(mb_test_is_near(size_of(mb_shard_file_path(shard, 0)), shard_bytes, 0.06, 0));
    assert_true(mb_test_is_near(size_of(table), table_bytes, 0.06, 0));
    assert_true(mb_test_is_near((double)plan.tiles.windows, mb_forecast_parts(tokens, 512), 0.1, 1));
    mb_scorer_plan_reset(&plan);
    mb_lm_destroy(&lm);
    mb_shard_close(&shard);
    mb_free(table);
    fixture_close(&f);
}

/* ---- files of rates ---- */

static void test_machine(void **state)
{
    (void)state;
    char *folder = mb_test_folder_make(), *path = mb_test_path(folder, "m.json");
    mb_forecast_machine m;
    const char *good =
        "{\"name\": \"n\", \"cores\": 4, \"threads\": 2, \"gflops\": {\"f32\": 100, \"bf16\": 250}, "
        "\"memory_gb_per_s\": 30, \"disk_write_mb_per_s\": 500, \"disk_read_mb_per_s\": 0}";
    mb_test_ok(mb_files_write(path, good, strlen(good)));
    mb_test_ok(mb_forecast_machine_read(path, &m));
    assert_true(m.is_measured && m.cores == 4 && m.threads == 2 && m.gflops_bf16 == 250);
    assert_true(m.disk_write_gb_per_s == 0.5 && m.disk_read_gb_per_s > 0); /* 0: not measured, assumed */
    assert_string_equal(m.name, "n");
    const char *bad = "{\"cores\": 4, \"gflops\": {\"f32\": -1}}", *none = "{\"cores\": 4}",
               *cores = "{\"cores\": 0}";
    mb_test_ok(mb_files_write(path, bad, strlen(bad)));
    mb_test_fails(mb_forecast_machine_read(path, &m), MB_EFORMAT, "gflops.f32 is -1");
    mb_test_ok(mb_files_write(path, none, strlen(none)));
    mb_test_fails(mb_forecast_machine_read(path, &m), MB_EFORMAT, "gflops");
    mb_test_ok(mb_files_write(path, cores, strlen(cores)));
    mb_test_fails(mb_forecast_machine_read(path, &m), MB_EFORMAT, "cores");
    mb_test_fails(mb_forecast_machine_read("/nowhere/m.json", &m), MB_ENOTFOUND, "m.json");
    const char *gpus = "{\"cores\": 64, \"gpus\": 4, \"gflops\": {\"f32\": 200000, \"bf16\": 2400000}, "
                       "\"memory_gb_per_s\": 10000, \"gpu_list\": [{\"memory_bytes\": 85899345920}]}";
    mb_test_ok(mb_files_write(path, gpus, strlen(gpus)));
    mb_test_ok(mb_forecast_machine_read(path, &m));
    assert_true(m.gpus == 4 && m.gpu_memory_bytes == 80.0 * 1073741824);
    const mb_forecast_cost cost = {.forward = 1e9};
    const mb_forecast_layout two = {.ranks = 2, .nodes = 1, .threads = 16},
                             four = {.ranks = 4, .nodes = 1, .threads = 1};
    mb_test_near(mb_forecast_token_seconds(&cost, &m, &two, MB_BF16, 0),
                 2 * mb_forecast_token_seconds(&cost, &m, &four, MB_BF16, 0),
                 1e-12); /* by GPUs, not by threads */
    mb_forecast_machine_assume_gpus(&m, 2);
    assert_true(m.gpus == 2 && !m.is_measured && m.gpu_memory_bytes == 0 && m.cores == 64);
    const mb_forecast_machine assumed = mb_forecast_machine_assumed(0);
    assert_true(!assumed.is_measured && assumed.cores == 1 && assumed.gflops_f32 > 0);
    mb_free(path);
    mb_test_folder_remove(&folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_forward),       cmocka_unit_test(test_training),
                                       cmocka_unit_test(test_token_seconds), cmocka_unit_test(test_step),
                                       cmocka_unit_test(test_files),         cmocka_unit_test(test_machine)};
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, mb_test_teardown);
}
