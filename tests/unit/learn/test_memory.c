/* test_memory: recomputation and ZeRO stages change memory, not bits; forecasts are close to what is used. */
#include "learn/trainer.h"

#include "base/files.h"
#include "fixture.h"

enum { T = 96 };

typedef struct case_of {
    const char *name;
    int64_t experts, trash;
    const char *train;
    bool lora, tied;
    mb_dtype dtype;
} case_of;

static const case_of cases[] = {{"dense", 0, 0, "all", false, false, MB_F32},
                                {"dense, tied, bf16", 0, 0, "all", false, true, MB_BF16},
                                {"experts", 6, 0, "all", false, false, MB_F32},
                                {"experts, bf16", 6, 0, "all", false, false, MB_BF16},
                                {"router only", 6, 2, "router", false, false, MB_F32},
                                {"adapter", 6, 0, "none", true, false, MB_F32},
                                {"adapter over a dense model", 0, 0, "none", true, false, MB_F32}};

static char *folder, *plain;

static int setup(void **state)
{
    (void)state;
    folder = mb_test_folder_make();
    plain = fix_shard(folder, "plain.h5", FIX_RECORDS, false);
    return 0;
}

static int teardown(void **state)
{
    MB_FREE(plain);
    mb_test_folder_remove(&folder);
    return mb_test_teardown(state);
}

static mb_arch case_arch(const case_of *c)
{
    mb_arch arch = fix_arch(c->experts, c->trash);
    arch.layers = 3;
    arch.max_positions = 128;
    arch.tied_head = c->tied;
    arch.layer[2] = arch.layer[1];
    return arch;
}

static const mb_lora_options lora = {.r = 4, .alpha = 8, .dropout = 0.1, .seed = 5, .targets = "all-linear"};

/* The case's model in a folder, opened as it trains. */
static mb_lm *open_case(mb_ops *ops, const case_of *c)
{
    mb_lm *lm = NULL, *fresh = NULL;
    const mb_arch arch = case_arch(c);
    char *path = mb_test_path(folder, "model");
    if (mb_files_is_folder(path)) mb_test_ok(mb_files_remove_tree(path));
    mb_test_ok(mb_lm_create(ops, &arch, "none", 3, &fresh));
    mb_test_ok(mb_files_make_folders(path));
    mb_test_ok(mb_lm_write(fresh, path, "full", MB_F32));
    mb_lm_destroy(&fresh);
    const mb_lm_options options = {.path = path,
                                   .train = c->lora ? "all" : c->train,
                                   .opt_lora = c->lora ? &lora : NULL,
                                   .trash_expert_ratio = 0,
                                   .seed = 3,
                                   .dtype = c->dtype};
    mb_test_ok(mb_lm_open(ops, &options, &lm));
    mb_free(path);
    return lm;
}

/* Gradients of one pass; returns the arena's peak. */
static size_t run_pass(mb_lm *lm, bool recompute, float *gradient)
{
    mb_lm_pass *pass = NULL;
    mb_lm_output out;
    int32_t ids[T], positions[T], rows[T], targets[T];
    int64_t index[T];
    float weight[T];
    const int32_t offsets[] = {0, 50, 51, T};
    for (int i = 0; i < T; i++) {
        ids[i] = (i * 7 + 3) % FIX_VOCAB, targets[i] = (i * 5 + 1) % FIX_VOCAB;
        positions[i] = i < 50 ? i : i == 50 ? 0 : i - 51;
        rows[i] = i, index[i] = 1000 + i, weight[i] = 0.01f * (float)(i % 9);
    }
    const mb_lm_batch batch = {.tokens = T,
                               .segments = 3,
                               .ids = ids,
                               .positions = positions,
                               .offsets = offsets,
                               .row_index = index,
                               .seed = 9,
                               .head_rows = T,
                               .head_row = rows,
                               .targets = targets,
                               .opt_head_weight = weight};
    const mb_lm_want want = {.gradient = true, .recompute = recompute};
    mb_params_bind_gradient(mb_lm_params(lm), gradient);
    mb_test_ok(mb_lm_pass_create(lm, &pass));
    mb_test_ok(mb_lm_forward(pass, &batch, &want, &out));
    mb_test_ok(mb_lm_backward(pass, NULL, NULL, NULL));
    const size_t peak = mb_arena_peak_bytes(mb_lm_pass_arena(pass));
    mb_lm_pass_destroy(&pass);
    mb_params_bind_gradient(mb_lm_params(lm), NULL);
    return peak;
}

static void check_plan(mb_lm *lm, const char *name, bool recompute, size_t used)
{
    mb_lm_plan plan;
    const mb_lm_plan_options shape = {
        .tokens = T, .gradient = true, .recompute = recompute, .has_head = true};
    mb_test_ok(mb_lm_plan_open(lm, &shape, &plan));
    const double planned = (double)(plan.activations + plan.scratch) + 64 * 40 * 3;
    print_message("# %s%s: forecast %.0f, used %.0f bytes (%.2f)\n", name, recompute ? ", recomputed" : "",
                  planned, (double)used, (double)used / planned);
    assert_true((double)used <= planned && (double)used >= 0.7 * planned);
}

static void test_recompute(void **state)
{
    (void)state;
    mb_ops *ops = NULL;
    mb_test_ok(mb_ops_create("ref", 1, &ops));
    for (size_t k = 0; k < sizeof cases / sizeof cases[0]; k++) {
        mb_lm *lm = open_case(ops, &cases[k]);
        const int64_t n = mb_params_trained_count(mb_lm_params(lm));
        float *kept = mb_calloc((size_t)n, sizeof *kept), *again = mb_calloc((size_t)n, sizeof *again);
        const size_t whole = run_pass(lm, false, kept), less = run_pass(lm, true, again);
        double sum = 0;
        for (int64_t i = 0; i < n; i++) sum += fabs((double)kept[i]);
        assert_true(n > 0 && sum > 0);
        assert_memory_equal(kept, again, (size_t)n * sizeof *kept);
        if (strcmp(cases[k].train, "router") != 0) assert_true(less < whole);
        check_plan(lm, cases[k].name, false, whole);
        check_plan(lm, cases[k].name, true, less);
        mb_free(kept);
        mb_free(again);
        mb_lm_destroy(&lm);
    }
    mb_ops_destroy(&ops);
}

/* ---- ZeRO ---- */

static void train_case(fix_run *run, const char *name, int64_t zero, int64_t lanes, const char *recompute)
{
    mb_trainer_options options = fix_trainer_options();
    options.zero = zero;
    options.lanes = lanes;
    options.max_steps = 4;
    mb_free(options.recompute);
    options.recompute = mb_strdup(recompute);
    run->folder = mb_test_path(folder, name);
    mb_test_ok(fix_train(run, &options));
    mb_free((void *)run->folder);
    run->folder = NULL;
    fix_trainer_free(&options);
}

static void check_zero(mb_arch arch, const char *train, const char *objective)
{
    char name[64];
    fix_run runs[6];
    for (int i = 0; i < 6; i++) {
        const int64_t zero = i % 3 + 1;
        runs[i] = (fix_run){.arch = arch, .train = train, .objective = objective, .shard = plain};
        snprintf(name, sizeof name, "%s_%s_%d_%d", objective, train, (int)arch.experts * 10 + arch.tied_head,
                 i);
        train_case(&runs[i], name, zero, i < 3 ? 8 : 2, zero == 3 ? "blocks" : "none");
        const size_t bytes = (size_t)runs[i].count * sizeof(float);
        /* 3 micro-batches on 8 lanes: one round, the bits of ZeRO-1. On 2 lanes ZeRO-2 has an order of its
           own. */
        if (i == 1 || i == 2) assert_memory_equal(runs[i].trained, runs[0].trained, bytes);
        if (i == 5) assert_memory_equal(runs[5].trained, runs[4].trained, bytes);
        for (int64_t p = 0; i == 4 && p < runs[i].count; p++)
            mb_test_near(runs[4].trained[p], runs[3].trained[p], 1e-3);
        for (int k = 0; k < MB_TRAINER_MEMORY_KINDS; k++) {
            const mb_lm_memory *m = &runs[i].report.memory[k];
            if (strcmp(m->kind, "other") == 0 || strcmp(m->kind, "activations") == 0) continue;
            if (m->used > m->forecast || (double)m->used < 0.7 * (double)m->forecast)
                fail_msg("run %d, %s: forecast %lld, used %lld", i, m->kind, (long long)m->forecast,
                         (long long)m->used);
        }
        assert_true(runs[i].report.memory[5].used <= runs[i].report.memory[5].forecast);
    }
    for (int i = 0; i < 6; i++) mb_free(runs[i].trained);
}

static void test_zero_stages(void **state)
{
    (void)state;
    mb_arch tied = fix_arch(0, 0);
    tied.tied_head = true;
    check_zero(fix_arch(0, 0), "all", "lm");
    check_zero(tied, "all", "lm");
    check_zero(fix_arch(4, 0), "all", "lm");
    check_zero(fix_arch(4, 2), "router", "router_warmup");
    check_zero(fix_arch(4, 0), "model.layers.1.*", "lm");
}

/* A dtype other than that of the state is another run. */
static void test_other_dtype_is_refused(void **state)
{
    (void)state;
    mb_trainer_options options = fix_trainer_options();
    fix_run run = {
        .arch = fix_arch(0, 0), .train = "all", .objective = "lm", .shard = plain, .dtype = MB_F32};
    options.max_steps = 2;
    options.save_steps = 1;
    run.folder = mb_test_path(folder, "dtype");
    mb_test_ok(fix_train(&run, &options));
    run.dtype = MB_BF16;
    mb_test_fails(fix_train(&run, &options), MB_EUSAGE, "model.dtype");
    mb_free((void *)run.folder);
    mb_free(run.trained);
    fix_trainer_free(&options);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_recompute), cmocka_unit_test(test_zero_stages),
                                       cmocka_unit_test(test_other_dtype_is_refused)};
    cmocka_set_message_output(CM_OUTPUT_TAP);
    print_message("# seeds 3, 5, 9\n");
    return cmocka_run_group_tests(tests, setup, teardown);
}
