/* test_device: training with everything on a device ("cuda": a GPU, or the emulated one) against the same run
 * on the host: loss curves, weights, gradients, equal bits when repeated and when resumed in the middle of a
 * step. Skipped in a build without.
 */
#include "fixture.h"
#include "store/h5.h"

/* Of the emulated GPU, where this is linked with it: bytes of its memory not yet freed. */
int64_t mb_emulator_live_bytes(void) __attribute__((weak));

static char *folder, *plain;
static bool has_device;

static int setup(void **state)
{
    mb_ops *ops = NULL;
    (void)state;
    const mb_status status = mb_ops_create("cuda", 1, &ops);
    has_device = status == MB_OK && mb_ops_is_device(ops);
    if (status != MB_OK) print_message("# %s\n", mb_status_message());
    mb_ops_destroy(&ops);
    if (status != MB_OK && status != MB_EUNSUPPORTED) return -1;
    folder = mb_test_folder_make();
    plain = fix_shard(folder, "plain.h5", FIX_RECORDS, false);
    return 0;
}

static int teardown(void **state)
{
    mb_stop_reset();
    MB_FREE(plain);
    mb_test_folder_remove(&folder);
    if (mb_emulator_live_bytes != NULL && mb_emulator_live_bytes() != 0) {
        print_message("# %lld bytes of the device were not freed\n", (long long)mb_emulator_live_bytes());
        return -1;
    }
    return mb_test_teardown(state);
}

static mb_trainer_options few_steps(void)
{
    mb_trainer_options options = fix_trainer_options();
    options.max_steps = 3;
    options.batch_size = 2;
    options.weight_decay = 0.1;
    options.adam_epsilon = 1e-6; /* so that the rounding of a gradient near 0 is not made a whole step */
    return options;
}

/* The run on a backend, in a folder of its own; free with run_free. */
static fix_run train_on(fix_run run, const char *backend, const char *name, const mb_trainer_options *options)
{
    run.backend = backend;
    run.folder = mb_test_path(folder, name);
    run.trained = NULL;
    mb_test_ok(fix_train(&run, options));
    return run;
}

static void run_free(fix_run *run)
{
    mb_free((void *)run->folder);
    mb_free(run->trained);
}

static double *read_curve(const fix_run *run, const char *name, int64_t *out_count)
{
    mb_h5 *file = NULL;
    char *path = mb_test_path(run->folder, "metrics.h5");
    int dims;
    int64_t shape[MB_TENSOR_MAX_DIMS];
    double *values = NULL;
    mb_test_ok(mb_h5_open(path, &file));
    mb_test_ok(mb_h5_read_new(file, name, MB_F64, &dims, shape, (void **)&values));
    *out_count = shape[0];
    mb_h5_destroy(&file);
    mb_free(path);
    return values;
}

static void compare_curves(const fix_run *device, const fix_run *host, const char *name, double tolerance)
{
    int64_t n, m;
    double *a = read_curve(device, name, &n), *b = read_curve(host, name, &m), most = 0;
    assert_true(n == m && n > 0);
    for (int64_t i = 0; i < n; i++) {
        most = fmax(most, fabs(a[i] - b[i]));
        mb_test_near(a[i], b[i], tolerance);
    }
    print_message("# %s: %.7f at the end, differs by at most %.1e\n", name, a[n - 1], most);
    mb_free(a);
    mb_free(b);
}

static void compare_weights(const fix_run *device, const fix_run *host, double tolerance)
{
    double most = 0;
    assert_int_equal(device->count, host->count);
    for (int64_t i = 0; i < host->count; i++)
        most = fmax(most, fabs((double)device->trained[i] - (double)host->trained[i]));
    print_message("# weights differ by at most %.1e\n", most);
    assert_true(most <= tolerance);
}

static void assert_same(const fix_run *a, const fix_run *b)
{
    assert_int_equal(a->count, b->count);
    assert_memory_equal(a->trained, b->trained, (size_t)a->count * sizeof(float));
    assert_true(a->report.loss == b->report.loss);
}

/* Against the host, and again. */
static void check_run(const fix_run *run, const mb_trainer_options *options, const char *name)
{
    char path[3][64];
    for (int i = 0; i < 3; i++) snprintf(path[i], sizeof path[i], "%s_%d", name, i);
    fix_run host = train_on(*run, "ref", path[0], options), device = train_on(*run, "cuda", path[1], options),
            again = train_on(*run, "cuda", path[2], options);
    compare_curves(&device, &host, "/loss", 1e-5);
    compare_curves(&device, &host, "/grad_norm", 1e-4);
    compare_weights(&device, &host, 1e-4);
    assert_same(&device, &again);
    run_free(&host);
    run_free(&device);
    run_free(&again);
}

static void test_dense(void **state)
{
    (void)state;
    if (!has_device) skip();
    mb_trainer_options options = few_steps();
    check_run(&(fix_run){.arch = fix_arch(0, 0), .train = "all", .objective = "lm", .shard = plain}, &options,
              "dense");
    fix_trainer_free(&options);
}

/* With the balance loss, whose gradient is made on the host; without it, when the backward is queued before
 * the loss is read; with blocks made again in the backward. */
static void test_moe(void **state)
{
    (void)state;
    if (!has_device) skip();
    mb_trainer_options options = few_steps();
    mb_objective_options choice = fix_objective_options("lm");
    fix_run run = {.arch = fix_arch(4, 0),
                   .train = "all",
                   .objective = "lm",
                   .shard = plain,
                   .opt_objective_options = &choice};
    check_run(&run, &options, "moe");
    choice.router_aux_loss_coef = 0;
    check_run(&run, &options, "fused");
    mb_free(options.recompute);
    options.recompute = mb_strdup("blocks");
    check_run(&run, &options, "recompute");
    fix_objective_free(&choice);
    fix_trainer_free(&options);
}

static void test_router_warmup(void **state)
{
    (void)state;
    if (!has_device) skip();
    mb_trainer_options options = few_steps();
    mb_objective_options choice = fix_objective_options("router_warmup");
    fix_run run = {.arch = fix_arch(4, 2),
                   .train = "router",
                   .objective = "router_warmup",
                   .shard = plain,
                   .opt_objective_options = &choice};
    mb_free(choice.balance_scope);
    choice.balance_scope = mb_strdup("step"); /* picks of the step are counted by passes of their own */
    check_run(&run, &options, "warmup");
    fix_objective_free(&choice);
    fix_trainer_free(&options);
}

static char *write_model(const char *name)
{
    mb_ops *ops = NULL;
    mb_lm *lm = NULL;
    const mb_arch arch = fix_arch(4, 0);
    char *path = mb_test_path(folder, name);
    mb_test_ok(mb_files_make_folders(path));
    mb_test_ok(mb_ops_create("ref", 1, &ops));
    mb_test_ok(mb_lm_create(ops, &arch, "none", 7, &lm));
    mb_test_ok(mb_lm_write(lm, path, "full", MB_F32));
    mb_lm_destroy(&lm);
    mb_ops_destroy(&ops);
    return path;
}

static void test_lora(void **state)
{
    (void)state;
    if (!has_device) skip();
    static const mb_lora_options lora = {
        .r = 4, .alpha = 8, .dropout = 0.1, .seed = 5, .targets = "all-linear"};
    mb_trainer_options options = few_steps();
    char *model = write_model("model");
    const fix_run run = {
        .opt_model = model, .opt_lora = &lora, .train = "all", .objective = "lm", .shard = plain};
    check_run(&run, &options, "lora");
    mb_free(model);
    fix_trainer_free(&options);
}

/* In bf16 the loss is the host's within its rounding. */
static void test_bf16(void **state)
{
    (void)state;
    if (!has_device) skip();
    mb_trainer_options options = few_steps();
    const fix_run run = {
        .arch = fix_arch(4, 0), .train = "all", .objective = "lm", .shard = plain, .dtype = MB_BF16};
    fix_run host = train_on(run, "ref", "bf16_host", &options),
            device = train_on(run, "cuda", "bf16", &options);
    compare_curves(&device, &host, "/loss", 0.02);
    run_free(&host);
    run_free(&device);
    fix_trainer_free(&options);
}

/* Stopped inside a step, twice, and gone on with: the same bits. Checkpoints in the loop and beside it. */
static void test_resume(void **state)
{
    (void)state;
    if (!has_device) skip();
    for (int aside = 0; aside < 2; aside++) {
        mb_trainer_options options = few_steps();
        fix_run run = {
            .arch = fix_arch(aside == 0 ? 4 : 0, 0), .train = "all", .objective = "lm", .shard = plain};
        options.max_steps = 4;
        options.save_steps = aside;
        options.async_save = aside == 1;
        fix_run whole = train_on(run, "cuda", aside == 1 ? "whole_aside" : "whole", &options);
        run.backend = "cuda";
        run.folder = mb_test_path(folder, aside == 1 ? "cut_aside" : "cut");
        run.stop_after = 5; /* of 3 a step */
        assert_int_equal(fix_train(&run, &options), MB_ESTOPPED);
        assert_int_equal(run.report.steps, 1);
        assert_int_equal(fix_train(&run, &options), MB_ESTOPPED);
        assert_int_equal(run.report.steps, 2);
        run.stop_after = 0;
        mb_test_ok(fix_train(&run, &options));
        assert_int_equal(run.report.steps, 4);
        assert_same(&whole, &run);
        run_free(&whole);
        run_free(&run);
        fix_trainer_free(&options);
    }
}

/* A checkpoint of the device is one of the host and the other way round: steps 1 and 2 there, 3 here. */
static void test_change_of_backend(void **state)
{
    (void)state;
    if (!has_device) skip();
    mb_trainer_options options = few_steps();
    const fix_run run = {.arch = fix_arch(0, 0), .train = "all", .objective = "lm", .shard = plain};
    fix_run host = train_on(run, "ref", "stays", &options), changed = run;
    changed.folder = mb_test_path(folder, "changes");
    for (int i = 0; i < 3; i++) {
        changed.backend = i % 2 == 0 ? "cuda" : "ref";
        changed.stop_after = i < 2 ? 4 : 0;
        assert_int_equal(fix_train(&changed, &options), i < 2 ? MB_ESTOPPED : MB_OK);
        assert_int_equal(changed.report.steps, i + 1);
    }
    compare_weights(&changed, &host, 1e-4);
    run_free(&host);
    run_free(&changed);
    fix_trainer_free(&options);
}

/* What was used on the device is told by kind, and within the forecast. */
static void check_memory(const fix_run *run, bool is_whole)
{
    for (int k = 0; k < MB_TRAINER_MEMORY_KINDS; k++) {
        const mb_lm_memory *m = &run->report.memory[k];
        print_message("# %s: %lld forecast, %lld used\n", m->kind, (long long)m->forecast,
                      (long long)m->used);
        if (strcmp(m->kind, "other") == 0) continue;
        assert_true(m->used <= m->forecast + m->forecast / 8 + 65536);
        if (strcmp(m->kind, "optimiser") == 0) assert_int_equal(m->used, 8 * run->count);
        if (strcmp(m->kind, "trained") == 0) assert_int_equal(m->used, 4 * run->count);
        if (strcmp(m->kind, "gradients") == 0 && is_whole) assert_int_equal(m->used, m->forecast);
        if (strcmp(m->kind, "activations") == 0) assert_true(m->used > m->forecast / 4);
    }
}

/* Gradients block by block (one round of micro-batches: the same additions), and by weights brought in. */
static void test_zero(void **state)
{
    (void)state;
    if (!has_device) skip();
    fix_run runs[3];
    char name[16];
    for (int zero = 1; zero <= 3; zero++) {
        mb_trainer_options options = few_steps();
        options.zero = zero;
        snprintf(name, sizeof name, "zero_%d", zero);
        runs[zero - 1] =
            train_on((fix_run){.arch = fix_arch(4, 0), .train = "all", .objective = "lm", .shard = plain},
                     "cuda", name, &options);
        assert_same(&runs[0], &runs[zero - 1]);
        check_memory(&runs[zero - 1], zero == 1);
        fix_trainer_free(&options);
    }
    for (int i = 0; i < 3; i++) run_free(&runs[i]);
}

static float *gradient_on(const char *backend, const mb_microbatch *microbatch, int64_t *out_count,
                          mb_objective_terms *terms)
{
    mb_ops *ops = NULL;
    mb_lm *lm = NULL;
    mb_objective *objective = NULL;
    mb_objective_options choice = fix_objective_options("lm");
    const mb_arch arch = fix_arch(4, 0);
    mb_test_ok(mb_ops_create(backend, 1, &ops));
    mb_test_ok(mb_lm_create(ops, &arch, "all", 7, &lm));
    mb_test_ok(mb_objective_create(&choice, lm, &objective));
    *out_count = mb_params_trained_count(mb_lm_params(lm));
    float *gradient = mb_calloc((size_t)*out_count, sizeof *gradient);
    mb_test_ok(mb_trainer_gradients(lm, objective, microbatch, gradient, terms));
    mb_objective_destroy(&objective);
    mb_lm_destroy(&lm);
    mb_ops_destroy(&ops);
    fix_objective_free(&choice);
    return gradient;
}

static void test_gradients(void **state)
{
    (void)state;
    if (!has_device) skip();
    uint32_t tokens[2][9];
    mb_shard_record record[2] = {{0}};
    const int64_t sample[] = {4, 9};
    mb_objective_terms terms[2];
    int64_t n = 0;
    for (int i = 0; i < 2; i++) {
        for (int t = 0; t < 9; t++) tokens[i][t] = (uint32_t)((11 * i + 5 * t + t * t) % FIX_VOCAB);
        record[i].tokens = tokens[i];
        record[i].count = 9;
    }
    const mb_microbatch microbatch = {.records = 2,
                                      .record = record,
                                      .sample = sample,
                                      .seed = 42,
                                      .step_targets = 16,
                                      .step_microbatches = 1};
    float *host = gradient_on("ref", &microbatch, &n, &terms[0]),
          *device = gradient_on("cuda", &microbatch, &n, &terms[1]);
    mb_test_near(terms[1].value[0], terms[0].value[0], 1e-5);
    mb_test_near_all(device, host, n, 1e-3, 1e-6);
    mb_free(host);
    mb_free(device);
}

/* A loss that is no number stops the run before the weights take it, also where the backward is queued
 * first. */
static void test_not_finite(void **state)
{
    (void)state;
    if (!has_device) skip();
    mb_trainer_options options = few_steps();
    fix_run run = {
        .arch = fix_arch(0, 0), .train = "all", .objective = "lm", .shard = plain, .backend = "cuda"};
    options.learning_rate = 1e38;
    mb_free(options.schedule);
    options.schedule = mb_strdup("constant");
    options.max_grad_norm = 0;
    run.folder = mb_test_path(folder, "nan");
    mb_test_fails(fix_train(&run, &options), MB_ENUMERIC, "step 2, rank 0, micro-batch");
    run_free(&run);
    fix_trainer_free(&options);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_dense),         cmocka_unit_test(test_moe),
        cmocka_unit_test(test_router_warmup), cmocka_unit_test(test_lora),
        cmocka_unit_test(test_resume),        cmocka_unit_test(test_change_of_backend),
        cmocka_unit_test(test_zero),          cmocka_unit_test(test_gradients),
        cmocka_unit_test(test_not_finite),    cmocka_unit_test(test_bf16),
    };
    setenv("MB_COMM", "self", 1);
    setenv("MB_LOG", "error", 1);
    cmocka_set_message_output(CM_OUTPUT_TAP);
    print_message("# seed 42\n");
    return cmocka_run_group_tests(tests, setup, teardown);
}
