/* test_trainer_loads: picks per expert in the metrics, the same however they were counted; biases that follow
 * them through stops; some experts that train beside others that keep their bits. */
#include "fixture.h"

#include "store/h5.h"

static char *folder, *plain, *model;

enum { EXPERTS = 4, PICKS = 2, ROUTERS = 2 };

static int setup(void **state)
{
    (void)state;
    mb_ops *ops = NULL;
    mb_lm *lm = NULL;
    const mb_arch arch = fix_arch(EXPERTS, 0);
    folder = mb_test_folder_make();
    plain = fix_shard(folder, "plain.h5", FIX_RECORDS, false);
    model = mb_test_path(folder, "model");
    mb_test_ok(mb_files_make_folders(model));
    mb_test_ok(mb_ops_create("ref", 1, &ops));
    mb_test_ok(mb_lm_create(ops, &arch, "none", 7, &lm));
    mb_test_ok(mb_lm_write(lm, model, "full", MB_F32));
    mb_lm_destroy(&lm);
    mb_ops_destroy(&ops);
    return 0;
}

static int teardown(void **state)
{
    mb_stop_reset();
    MB_FREE(plain);
    MB_FREE(model);
    mb_test_folder_remove(&folder);
    return mb_test_teardown(state);
}

static fix_run run_of(const char *name)
{
    return (fix_run){.arch = fix_arch(EXPERTS, 0),
                     .train = "all",
                     .objective = "lm",
                     .shard = plain,
                     .opt_model = model,
                     .folder = mb_test_path(folder, name)};
}

static void run_free(fix_run *run)
{
    mb_free((void *)run->folder);
    mb_free(run->trained);
}

static void *read_metric(const fix_run *run, const char *name, mb_dtype dtype,
                         int64_t shape[MB_TENSOR_MAX_DIMS])
{
    mb_h5 *file = NULL;
    char *path = mb_test_path(run->folder, "metrics.h5");
    int dims;
    void *data = NULL;
    mb_test_ok(mb_h5_open(path, &file));
    if (mb_h5_has(file, name)) mb_test_ok(mb_h5_read_new(file, name, dtype, &dims, shape, &data));
    mb_h5_destroy(&file);
    mb_free(path);
    return data;
}

/* ---- loads ---- */

typedef struct loads_case {
    const char *name, *scope;
    double coefficient;
    int64_t batch_size, log_steps, rows;
    bool log_loads;
} loads_case;

/* Micro-batches of 12, 4 and 2, counted in the training pass, by the routing-only pass, and because asked:
 * with a learning rate of 0 the same numbers, all of them K times the tokens. */
static void test_loads(void **state)
{
    (void)state;
    static const loads_case cases[] = {
        {"twelve", "micro", 0.01, 12, 1, 5, false}, {"four", "micro", 0.01, 4, 1, 5, false},
        {"two", "step", 0.01, 2, 1, 5, false},      {"asked", "micro", 0, 4, 1, 5, true},
        {"seldom", "micro", 0.01, 4, 2, 3, false},  {"none", "micro", 0, 4, 1, 0, false}};
    int64_t *first = NULL, shape[MB_TENSOR_MAX_DIMS];
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const loads_case *c = &cases[i];
        mb_trainer_options options = fix_trainer_options();
        mb_objective_options choice = fix_objective_options("lm");
        fix_run run = run_of(c->name);
        run.opt_objective_options = &choice;
        options.learning_rate = 0;
        options.batch_size = c->batch_size;
        options.gradient_accumulation_steps = 12 / c->batch_size;
        options.log_steps = c->log_steps;
        options.log_loads = c->log_loads;
        choice.router_aux_loss_coef = c->coefficient;
        mb_free(choice.balance_scope);
        choice.balance_scope = mb_strdup(c->scope);
        mb_test_ok(fix_train(&run, &options));
        int64_t *loads = read_metric(&run, "/loads", MB_I64, shape);
        assert_int_equal(loads != NULL, c->rows > 0);
        if (loads != NULL) {
            assert_true(shape[0] == c->rows && shape[1] == ROUTERS && shape[2] == EXPERTS);
            int64_t *steps = read_metric(&run, "/loads_step", MB_I64, shape), sum = 0, most = 0;
            double *tokens = read_metric(&run, "/tokens", MB_F64, shape),
                   *ratio = read_metric(&run, "/load/max_over_mean/1", MB_F64, shape);
            assert_int_equal(steps[c->rows - 1], 5);
            for (int64_t e = 0; e < EXPERTS; e++) sum += loads[EXPERTS + e];
            for (int64_t e = 0; e < EXPERTS; e++)
                most = loads[EXPERTS + e] > most ? loads[EXPERTS + e] : most;
            if (c->log_steps == 1) assert_int_equal(sum, (int64_t)tokens[0] * PICKS);
            mb_test_near(ratio[0], (double)(most * EXPERTS) / (double)sum, 1e-15);
            mb_free(steps);
            mb_free(tokens);
            mb_free(ratio);
        }
        if (i == 0) first = loads;
        if (i > 0 && i < 4) assert_memory_equal(loads, first, 5 * ROUTERS * EXPERTS * sizeof *loads);
        if (i > 0) mb_free(loads);
        run_free(&run);
        fix_objective_free(&choice);
        fix_trainer_free(&options);
    }
    print_message("# picks of the first step, router 0: %lld %lld %lld %lld\n", (long long)first[0],
                  (long long)first[1], (long long)first[2], (long long)first[3]);
    mb_free(first);
}

/* ---- biases ---- */

/* Steps of rate against the loads of the metrics; the same after stops. Weights are written with them. */
static void test_biases(void **state)
{
    (void)state;
    const double rate = 0.01;
    mb_trainer_options options = fix_trainer_options();
    fix_run whole = run_of("bias_whole"), cut = run_of("bias_cut");
    int64_t shape[MB_TENSOR_MAX_DIMS], stops = 0;
    options.router_bias_rate = rate;
    mb_test_fails(fix_train(&whole, &options), MB_EUSAGE, "training.router_bias_rate = 0.01");
    whole.router_bias = cut.router_bias = true;
    mb_test_ok(fix_train(&whole, &options));
    mb_status status = MB_ESTOPPED;
    cut.stop_after = 5;
    for (; status == MB_ESTOPPED && stops < 20; stops++) status = fix_train(&cut, &options);
    mb_test_ok(status);
    assert_true(stops > 2);
    assert_memory_equal(whole.trained, cut.trained, (size_t)whole.count * sizeof(float));
    int64_t *loads = read_metric(&whole, "/loads", MB_I64, shape),
            *same = read_metric(&cut, "/loads", MB_I64, shape);
    const int64_t rows = shape[0], each = ROUTERS * EXPERTS;
    assert_memory_equal(loads, same, (size_t)(rows * each) * sizeof *loads);
    float expected[ROUTERS * EXPERTS] = {0}, written[ROUTERS * EXPERTS];
    for (int64_t i = 0; i < rows * each; i++) {
        int64_t sum = 0;
        for (int64_t e = 0; e < EXPERTS; e++) sum += loads[i / EXPERTS * EXPERTS + e];
        const int64_t above = loads[i] * EXPERTS - sum;
        expected[i % each] += (float)(above > 0 ? -rate : above < 0 ? rate : 0);
    }
    for (int k = 0; k < 2; k++) {
        mb_ops *ops = NULL;
        mb_lm *lm = NULL;
        char *final = mb_test_path(k == 0 ? whole.folder : cut.folder, "final");
        const mb_lm_options saved = {.path = final, .train = "none"};
        mb_test_ok(mb_ops_create("ref", 1, &ops));
        mb_test_ok(mb_lm_open(ops, &saved, &lm));
        mb_test_ok(mb_lm_router_bias_read(lm, written));
        mb_test_near_all(written, expected, each, 0, 1e-6);
        mb_lm_destroy(&lm);
        mb_ops_destroy(&ops);
        mb_free(final);
    }
    mb_free(loads);
    mb_free(same);
    run_free(&whole);
    run_free(&cut);
    fix_trainer_free(&options);
}

/* ---- some experts ---- */

/* Does the tensor belong to an expert other than 1? */
static bool is_other_expert(const char *name)
{
    return strstr(name, ".experts.") != NULL && strstr(name, ".experts.1.") == NULL;
}

/* Trains and compares the weights written (or those of the adapter) with the model: others keep their bits.
 */
static void check_experts(const char *name, const char *train, const char *backend, mb_dtype dtype,
                          const mb_lora_options *opt_lora)
{
    mb_trainer_options options = fix_trainer_options();
    fix_run run = run_of(name);
    mb_ops *ops = NULL;
    mb_lm *before = NULL, *after = NULL;
    char *final = mb_test_path(run.folder, "final");
    int64_t moved = 0, kept = 0, experts = 0;
    run.train = train;
    run.backend = backend;
    run.dtype = dtype;
    run.opt_lora = opt_lora;
    options.weight_decay = 0.1;
    mb_test_ok(fix_train(&run, &options));
    const mb_lm_options old = {.path = model, .opt_lora = opt_lora, .train = "none"},
                        new = {.path = opt_lora != NULL ? model : final,
                               .opt_adapter = opt_lora != NULL ? final : NULL,
                               .train = "none"};
    mb_test_ok(mb_ops_create("ref", 1, &ops));
    mb_test_ok(mb_lm_open(ops, &old, &before));
    mb_test_ok(mb_lm_open(ops, &new, &after));
    for (int64_t i = 0; i < mb_params_count(mb_lm_params(before)); i++) {
        const mb_param *a = mb_params_at(mb_lm_params(before), i),
                       *b = mb_params_find(mb_lm_params(after), a->name);
        const size_t bytes = mb_tensor_bytes(&a->value);
        assert_non_null(b);
        if (opt_lora != NULL && strstr(a->name, ".lora_B.") == NULL) continue; /* A comes from the seed */
        const bool same = memcmp(a->value.data, b->value.data, bytes) == 0;
        if (is_other_expert(a->name)) assert_true(same);
        kept += same;
        moved += !same;
        experts += !same && strstr(a->name, ".experts.1.") != NULL;
    }
    print_message("# %s: %lld tensors moved, %lld of them of expert 1, %lld kept; %lld elements trained\n",
                  name, (long long)moved, (long long)experts, (long long)kept, (long long)run.count);
    assert_true(experts == 3 * 2 && kept >= 3 * 3 * 2);
    mb_lm_destroy(&before);
    mb_lm_destroy(&after);
    mb_ops_destroy(&ops);
    mb_free(final);
    run_free(&run);
    fix_trainer_free(&options);
}

static void test_some_experts(void **state)
{
    (void)state;
    const mb_lora_options lora = {
        .r = 2, .alpha = 4, .targets = "q_proj,gate_proj,up_proj,down_proj", .seed = 7};
    check_experts("ref_all", "all,experts=1", "ref", MB_F32, NULL);
    check_experts("ref_experts", "experts,router,experts=1", "ref", MB_F32, NULL);
    check_experts("cpu_all", "all,!attention,experts=1", "cpu", MB_F32, NULL);
    check_experts("cpu_bf16", "all,experts=1", "cpu", MB_BF16, NULL);
    check_experts("ref_lora", "lora,experts=1", "ref", MB_F32, &lora);
}

/* Another choice of experts is another run. */
static void test_resume_key(void **state)
{
    (void)state;
    mb_trainer_options options = fix_trainer_options();
    fix_run run = run_of("key");
    options.max_steps = 3;
    run.train = "all,experts=1";
    run.stop_after = 4;
    mb_test_fails(fix_train(&run, &options), MB_ESTOPPED, "after step 1");
    run.stop_after = 0;
    run.train = "all,experts=2"; /* as many elements, other tensors */
    mb_test_fails(fix_train(&run, &options), MB_EUSAGE, "now  trained tensors");
    run.train = "all,experts=1";
    mb_test_ok(fix_train(&run, &options));
    run_free(&run);
    fix_trainer_free(&options);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_loads), cmocka_unit_test(test_biases),
                                       cmocka_unit_test(test_some_experts),
                                       cmocka_unit_test(test_resume_key)};
    setenv("MB_COMM", "self", 1);
    setenv("MB_LOG", "error", 1);
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, setup, teardown);
}
