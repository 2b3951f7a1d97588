/* test_trainer: learning, stopping and resuming, lanes, refusals, the files of a run. */
#include "learn/trainer.h"

#include <sys/stat.h>

#include "fixture.h"
#include "store/checkpoint.h"
#include "store/h5.h"

static char *folder, *plain, *masked;

static int setup(void **state)
{
    (void)state;
    folder = mb_test_folder_make();
    plain = fix_shard(folder, "plain.h5", FIX_RECORDS, false);
    masked = fix_shard(folder, "masked.h5", FIX_RECORDS, true);
    return 0;
}

static int teardown(void **state)
{
    mb_stop_reset();
    MB_FREE(plain);
    MB_FREE(masked);
    mb_test_folder_remove(&folder);
    return mb_test_teardown(state);
}

static void run_in(fix_run *run, const char *name)
{
    run->folder = mb_test_path(folder, name);
}

static void run_free(fix_run *run)
{
    mb_free((void *)run->folder);
    mb_free(run->trained);
}

/* Column of metrics.h5; mb_free. */
static double *read_curve(const char *run_folder, const char *name, int64_t *out_count)
{
    mb_h5 *file = NULL;
    char *path = mb_test_path(run_folder, "metrics.h5");
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

/* ---- learning ---- */

static void test_loss_falls(void **state)
{
    (void)state;
    mb_trainer_options options = fix_trainer_options();
    fix_run run = {.arch = fix_arch(0, 0), .train = "all", .objective = "lm", .shard = plain};
    int64_t n;
    options.epochs = 6;
    options.learning_rate = 1e-2;
    run_in(&run, "falls");
    mb_test_ok(fix_train(&run, &options));
    double *loss = read_curve(run.folder, "/loss", &n);
    print_message("# loss %.4f -> %.4f (uniform %.4f)\n", loss[0], loss[n - 1], log(FIX_VOCAB));
    assert_int_equal(n, 30);
    assert_int_equal(run.report.steps, 30);
    assert_int_equal(run.report.records, 6 * FIX_RECORDS);
    mb_test_near(loss[0], log(FIX_VOCAB), 0.05);
    assert_true(loss[n - 1] < 0.6 * loss[0]);
    mb_test_near((loss[25] + loss[26] + loss[27] + loss[28] + loss[29]) / 5, run.report.loss, 1e-9);
    char *final = mb_test_path(run.folder, "final"), *epoch = mb_test_path(run.folder, "epoch_6");
    char target[64] = "";
    assert_true(readlink(final, target, sizeof target - 1) > 0);
    assert_string_equal(target, "epoch_6");
    mb_test_ok(mb_checkpoint_check(epoch, true));
    mb_free(final);
    mb_free(epoch);
    mb_free(loss);
    run_free(&run);
    fix_trainer_free(&options);
}

/* Only the gates move, the constraint's terms are there, and the loss falls. */
static void test_router_warmup(void **state)
{
    (void)state;
    mb_trainer_options options = fix_trainer_options();
    fix_run run = {.arch = fix_arch(4, 2), .train = "router", .objective = "router_warmup", .shard = plain};
    static const char *const names[] = {"/lm_loss",        "/balance",       "/loss_rank", "/copy_rank",
                                        "/anchor",         "/mean_ratio",    "/r_mean/1",  "/r_var/0",
                                        "/single_records", "/learning_rate", "/grad_norm"};
    int64_t n;
    options.epochs = 4;
    options.learning_rate = 2e-2;
    run_in(&run, "warmup");
    mb_test_ok(fix_train(&run, &options));
    assert_int_equal(run.count, 2 * 6 * 32);
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        double *values = read_curve(run.folder, names[i], &n);
        for (int64_t s = 0; s < n; s++) assert_true(isfinite(values[s]));
        mb_free(values);
    }
    double *copy = read_curve(run.folder, "/copy_rank", &n), *loss = read_curve(run.folder, "/loss", &n);
    print_message("# copy_rank %.4f -> %.4f, loss %.4f -> %.4f\n", copy[0], copy[n - 2], loss[0],
                  loss[n - 2]);
    assert_true(copy[n - 2] < copy[0] && loss[n - 2] < loss[0]);
    mb_free(copy);
    mb_free(loss);
    run_free(&run);
    fix_trainer_free(&options);
}

/* Under sft only masked tokens count: lm_loss times targets is another sum. */
static void test_sft_mask(void **state)
{
    (void)state;
    mb_trainer_options options = fix_trainer_options();
    fix_run lm = {.arch = fix_arch(0, 0), .train = "all", .objective = "lm", .shard = masked};
    fix_run sft = {.arch = fix_arch(0, 0), .train = "all", .objective = "sft", .shard = masked};
    fix_run bare = {.arch = fix_arch(0, 0), .train = "all", .objective = "sft", .shard = plain};
    options.max_steps = 2;
    run_in(&lm, "mask_lm");
    run_in(&sft, "mask_sft");
    run_in(&bare, "mask_bare");
    mb_test_ok(fix_train(&lm, &options));
    mb_test_ok(fix_train(&sft, &options));
    mb_test_ok(fix_train(&bare, &options));
    assert_true(lm.report.loss != sft.report.loss);
    assert_memory_equal(lm.trained, bare.trained, (size_t)lm.count * sizeof(float));
    run_free(&lm);
    run_free(&sft);
    run_free(&bare);
    fix_trainer_free(&options);
}

/* ---- against transformers ---- */

static void *read_golden(mb_h5 *file, const char *path, mb_dtype dtype, int64_t *out_count)
{
    int dims;
    int64_t shape[MB_TENSOR_MAX_DIMS];
    void *data = NULL;
    mb_test_ok(mb_h5_read_new(file, path, dtype, &dims, shape, &data));
    *out_count = 1;
    for (int i = 0; i < dims; i++) *out_count *= shape[i];
    return data;
}

static char *write_golden_shard(mb_h5 *file)
{
    const char *names[] = {"golden"};
    mb_shard_info info = {.tokenizer_hash = "t",
                          .template_hash = "",
                          .max_length = 32,
                          .vocab_size = 32,
                          .source_names = names,
                          .source_files = names,
                          .source_count = 1};
    mb_shard_writer *writer = NULL;
    int64_t n, records;
    uint32_t *tokens = read_golden(file, "/training/tokens", MB_I32, &n);
    int64_t *lengths = read_golden(file, "/training/lengths", MB_I64, &records), first = 0;
    char *path = mb_test_path(folder, "golden.h5");
    mb_test_ok(mb_shard_writer_create(path, &info, &writer));
    for (int64_t i = 0; i < records; i++) {
        mb_shard_record record = {
            .tokens = tokens + first, .count = lengths[i], .source_index = i, .record_hash = (uint64_t)i};
        mb_test_ok(mb_shard_writer_add(writer, &record));
        first += lengths[i];
    }
    assert_int_equal(first, n);
    mb_test_ok(mb_shard_writer_close(&writer));
    mb_free(tokens);
    mb_free(lengths);
    return path;
}

/* Eight steps on the same four records: loss, auxiliary loss, norm of the gradient, and weights at the end.
 */
static void compare_with_golden(const char *backend)
{
    static const char *const names[] = {"model.layers.0.mlp.gate.weight",
                                        "model.layers.1.mlp.experts.2.down_proj.weight",
                                        "model.embed_tokens.weight"};
    mb_h5 *file = NULL;
    mb_ops *ops = NULL;
    mb_lm *lm = NULL;
    mb_comm *comm = NULL;
    mb_shard *shard = NULL;
    mb_objective *objective = NULL;
    mb_trainer_report report;
    mb_trainer_options options = fix_trainer_options();
    mb_objective_options choice = fix_objective_options("lm");
    mb_lm_options model = {.path = "tests/golden/losses/olmoe", .train = "all"};
    char *run_folder = mb_test_path(folder, backend);
    int64_t n;
    choice.router_aux_loss_coef = 0.05;
    options.learning_rate = 1e-2;
    options.max_steps = 8;
    options.warmup_steps = 2;
    options.gradient_accumulation_steps = 1;
    mb_free(options.schedule);
    options.schedule = mb_strdup("cosine");
    mb_test_ok(mb_h5_open("tests/golden/losses/losses.h5", &file));
    char *path = write_golden_shard(file);
    mb_test_ok(mb_comm_create(NULL, NULL, &comm));
    mb_test_ok(mb_ops_create(backend, 1, &ops));
    mb_test_ok(mb_lm_open(ops, &model, &lm));
    mb_test_ok(mb_shard_open(path, 0, &shard));
    mb_test_ok(mb_objective_create(&choice, lm, &objective));
    mb_test_ok(mb_trainer_run(comm, lm, objective, shard, &options, run_folder, NULL, &report));
    double *curve = read_golden(file, "/training/curve", MB_F64, &n);
    static const char *const columns[] = {"/loss", "/balance", "/grad_norm"};
    for (int c = 0; c < 3; c++) {
        double *mine = read_curve(run_folder, columns[c], &n);
        assert_int_equal(n, 8);
        for (int64_t s = 0; s < 8; s++) mb_test_near(mine[s], curve[3 * s + c], 2e-4);
        print_message("# %s %s: %.6f and %.6f at the end\n", backend, columns[c], mine[7], curve[21 + c]);
        mb_free(mine);
    }
    for (int i = 0; i < 3; i++) {
        char *name = mb_str_format("/training/after/%s", names[i]);
        float *after = read_golden(file, name, MB_F32, &n);
        mb_param *param = mb_params_find(mb_lm_params(lm), names[i]);
        assert_int_equal(mb_tensor_count(&param->value), n);
        mb_test_near_all(mb_tensor_f32(&param->value), after, n, 2e-3, 2e-4);
        mb_free(after);
        mb_free(name);
    }
    mb_objective_destroy(&objective);
    mb_shard_close(&shard);
    mb_lm_destroy(&lm);
    mb_ops_destroy(&ops);
    mb_comm_destroy(&comm);
    mb_h5_destroy(&file);
    fix_objective_free(&choice);
    fix_trainer_free(&options);
    mb_free(curve);
    mb_free(path);
    mb_free(run_folder);
}

static void test_against_transformers(void **state)
{
    (void)state;
    compare_with_golden("ref");
    compare_with_golden("cpu");
}

/* Records of no token or one, and records whose mask is all zero, change nothing but the counts. */
static void test_records_without_targets(void **state)
{
    (void)state;
    static const struct {
        int64_t count, masked;
    } rows[] = {{1, 1}, {12, 0}, {1, 1}, {9, 1}, {0, 0}, {7, 0}, {2, 1}};
    static const char *const objectives[] = {"lm", "sft", "router_warmup"}, *names[] = {"s"};
    mb_shard_info info = {.tokenizer_hash = "t",
                          .template_hash = "",
                          .max_length = 64,
                          .vocab_size = FIX_VOCAB,
                          .source_names = names,
                          .source_files = names,
                          .source_count = 1,
                          .has_loss_mask = true};
    mb_shard_writer *writer = NULL;
    char *path = mb_test_path(folder, "few.h5");
    mb_test_ok(mb_shard_writer_create(path, &info, &writer));
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        uint32_t tokens[12] = {3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8};
        uint8_t mask[12] = {0};
        for (int t = 1; t < 12; t++) mask[t] = (uint8_t)rows[i].masked;
        mb_shard_record record = {.tokens = tokens,
                                  .loss_mask = mask,
                                  .count = rows[i].count,
                                  .source_index = (int64_t)i,
                                  .record_hash = i};
        mb_test_ok(mb_shard_writer_add(writer, &record));
    }
    mb_test_ok(mb_shard_writer_close(&writer));
    for (int i = 0; i < 3; i++) {
        mb_trainer_options options = fix_trainer_options();
        fix_run run = {.arch = fix_arch(4, 2),
                       .train = i == 2 ? "router" : "all",
                       .objective = objectives[i],
                       .shard = path};
        char name[32];
        options.batch_size = i == 2 ? 2 : 1;
        options.epochs = 2;
        snprintf(name, sizeof name, "few_%d", i);
        run_in(&run, name);
        mb_test_ok(fix_train(&run, &options));
        assert_true(isfinite(run.report.loss));
        assert_int_equal(run.report.records, 2 * 6);
        assert_int_equal(run.report.tokens, 2 * 32);
        run_free(&run);
        fix_trainer_free(&options);
    }
    mb_free(path);
}

/* ---- same bits ---- */

/* Lanes beyond the micro-batches are cut off; one lane and three agree but for rounding. */
static void test_lanes(void **state)
{
    (void)state;
    mb_trainer_options options = fix_trainer_options();
    fix_run a = {.arch = fix_arch(4, 0), .train = "all", .objective = "lm", .shard = plain}, b = a, c = a;
    options.max_steps = 6;
    run_in(&a, "lanes_8");
    run_in(&b, "lanes_3");
    run_in(&c, "lanes_1");
    mb_test_ok(fix_train(&a, &options));
    options.lanes = 3;
    mb_test_ok(fix_train(&b, &options));
    options.lanes = 1;
    mb_test_ok(fix_train(&c, &options));
    assert_memory_equal(a.trained, b.trained, (size_t)a.count * sizeof(float));
    mb_test_near(a.report.loss, c.report.loss, 1e-5);
    run_free(&a);
    run_free(&b);
    run_free(&c);
    fix_trainer_free(&options);
}

/* With the balance over the step, 6 micro-batches of 2 records are one of 12 but for rounding; with it per
 * micro-batch they are not. */
static void test_balance_scope(void **state)
{
    (void)state;
    static const char *const scopes[] = {"step", "micro"};
    double loss[2][2];
    for (int i = 0; i < 4; i++) {
        mb_trainer_options options = fix_trainer_options();
        mb_objective_options choice = fix_objective_options("lm");
        char name[32];
        fix_run run = {.arch = fix_arch(4, 0),
                       .train = "all",
                       .objective = "lm",
                       .shard = plain,
                       .opt_objective_options = &choice};
        options.max_steps = 3;
        options.batch_size = i % 2 == 0 ? 12 : 2;
        options.gradient_accumulation_steps = 12 / options.batch_size;
        choice.router_aux_loss_coef = 1;
        mb_free(choice.balance_scope);
        choice.balance_scope = mb_strdup(scopes[i / 2]);
        snprintf(name, sizeof name, "scope_%d", i);
        run_in(&run, name);
        mb_test_ok(fix_train(&run, &options));
        loss[i / 2][i % 2] = run.report.loss;
        run_free(&run);
        fix_objective_free(&choice);
        fix_trainer_free(&options);
    }
    mb_test_near(loss[0][0], loss[0][1], 1e-5);
    mb_test_near(loss[0][0], loss[1][0], 1e-12); /* one micro-batch: the same thing */
    assert_true(fabs(loss[1][0] - loss[1][1]) > 1e-4);
}

static mb_status train_stopping(fix_run *run, const mb_trainer_options *options, int64_t after)
{
    mb_objective_options choice = fix_objective_options(run->objective);
    choice.trash_open_steps = 4;
    run->stop_after = after;
    run->opt_objective_options = &choice;
    const mb_status status = fix_train(run, options);
    run->opt_objective_options = NULL;
    fix_objective_free(&choice);
    return status;
}

static void test_stop_and_resume(void **state)
{
    (void)state;
    static const char *const objectives[] = {"lm", "router_warmup"};
    for (int i = 0; i < 2; i++) {
        mb_trainer_options options = fix_trainer_options();
        fix_run whole = {.arch = fix_arch(4, 2),
                         .train = i == 0 ? "all" : "router",
                         .objective = objectives[i],
                         .shard = plain},
                cut = whole;
        int64_t n, m, stops = 0;
        whole.arch.trash_logit_bias = cut.arch.trash_logit_bias = -5;
        options.epochs = 2;
        options.warmup_steps = 3;
        run_in(&whole, i == 0 ? "whole_lm" : "whole_warmup");
        run_in(&cut, i == 0 ? "cut_lm" : "cut_warmup");
        mb_test_ok(train_stopping(&whole, &options, 0));
        mb_status status = MB_ESTOPPED;
        for (; status == MB_ESTOPPED && stops < 20;
             stops++) { /* on the way: inside steps, after them, over an epoch's end */
            status = train_stopping(&cut, &options, 7);
            if (status == MB_ESTOPPED) assert_true(cut.report.is_stopped);
        }
        mb_test_ok(status);
        print_message("# %s: stopped %d times\n", objectives[i], (int)stops - 1);
        assert_true(stops >= 4);
        assert_int_equal(whole.report.steps, cut.report.steps);
        assert_int_equal(whole.report.tokens, cut.report.tokens);
        assert_memory_equal(whole.trained, cut.trained, (size_t)whole.count * sizeof(float));
        assert_true(whole.report.loss == cut.report.loss);
        double *a = read_curve(whole.folder, "/loss", &n), *b = read_curve(cut.folder, "/loss", &m);
        assert_int_equal(n, m);
        assert_memory_equal(a, b, (size_t)n * sizeof *a);
        mb_test_ok(train_stopping(&cut, &options, 0)); /* a finished run stays as it is */
        assert_memory_equal(whole.trained, cut.trained, (size_t)whole.count * sizeof(float));
        mb_free(a);
        mb_free(b);
        run_free(&whole);
        run_free(&cut);
        fix_trainer_free(&options);
    }
}

/* ---- refusals ---- */

static void test_other_settings(void **state)
{
    (void)state;
    mb_trainer_options options = fix_trainer_options();
    fix_run run = {.arch = fix_arch(0, 0), .train = "all", .objective = "lm", .shard = plain};
    options.max_steps = 3;
    run_in(&run, "settings");
    mb_test_ok(fix_train(&run, &options));
    options.learning_rate = 1e-3;
    mb_test_fails(fix_train(&run, &options), MB_EUSAGE, "now  training.learning_rate = 0.001");
    options.learning_rate = 3e-3;
    options.lanes = 2; /* only warned about, */
    mb_test_ok(fix_train(&run, &options));
    options.strict = true; /* unless asked */
    mb_test_fails(fix_train(&run, &options), MB_EUSAGE, "2 lanes");
    run_free(&run);
    fix_trainer_free(&options);
}

static void test_refusals(void **state)
{
    (void)state;
    mb_trainer_options options = fix_trainer_options();
    fix_run run = {.arch = fix_arch(0, 0), .train = "none", .objective = "lm", .shard = plain};
    run_in(&run, "refused");
    mb_test_fails(fix_train(&run, &options), MB_EUSAGE, "nothing trains");
    run.train = "all";
    run.arch.vocab = 40; /* smaller than the shard's */
    mb_test_fails(fix_train(&run, &options), MB_EDATA, "vocabulary has 40");
    run.arch = fix_arch(4, 2);
    run.train = "router";
    run.objective = "router_warmup";
    options.batch_size = 1;
    mb_test_fails(fix_train(&run, &options), MB_EUSAGE, "training.batch_size = 1");
    run_free(&run);
    fix_trainer_free(&options);
}

/* A learning rate that blows up names step and records. */
static void test_not_finite(void **state)
{
    (void)state;
    mb_trainer_options options = fix_trainer_options();
    fix_run run = {.arch = fix_arch(4, 0), .train = "all", .objective = "lm", .shard = plain};
    options.learning_rate = 1e38;
    mb_free(options.schedule);
    options.schedule = mb_strdup("constant");
    options.max_grad_norm = 0;
    run_in(&run, "nan");
    mb_test_fails(fix_train(&run, &options), MB_ENUMERIC, "step 2, rank 0, micro-batch");
    print_message("# %s\n", mb_status_message());
    run_free(&run);
    fix_trainer_free(&options);
}

/* ---- checkpoints ---- */

static void test_rotation(void **state)
{
    (void)state;
    mb_trainer_options options = fix_trainer_options();
    fix_run run = {.arch = fix_arch(0, 0), .train = "all", .objective = "lm", .shard = plain};
    char **names = NULL;
    int64_t n;
    options.max_steps = 9;
    options.save_steps = 2;
    options.save_total_limit = 2;
    run_in(&run, "rotate");
    mb_test_ok(fix_train(&run, &options));
    char *states = mb_test_path(run.folder, "state");
    mb_test_ok(mb_files_list(states, &names, &n));
    assert_int_equal(n, 2);
    assert_string_equal(names[0], "step_8");
    assert_string_equal(names[1], "step_9");
    mb_files_free_names(&names, n);
    mb_free(states);
    run_free(&run);
    fix_trainer_free(&options);
}

/* A newest checkpoint that is torn is passed over: the run goes on from the one before and ends the same. */
static void test_torn_state(void **state)
{
    (void)state;
    mb_trainer_options options = fix_trainer_options();
    fix_run whole = {.arch = fix_arch(4, 0), .train = "all", .objective = "lm", .shard = plain}, torn = whole;
    options.max_steps = 9;
    options.save_steps = 3;
    run_in(&whole, "untorn");
    run_in(&torn, "torn");
    mb_test_ok(fix_train(&whole, &options));
    mb_test_ok(fix_train(&torn, &options));
    char *newest = mb_test_path(torn.folder, "state/step_9/trainer.h5");
    assert_int_equal(truncate(newest, 1000), 0);
    mb_test_ok(fix_train(&torn, &options));
    assert_int_equal(torn.report.steps, 9);
    assert_memory_equal(whole.trained, torn.trained, (size_t)whole.count * sizeof(float));
    char *states = mb_test_path(torn.folder, "state/step_9");
    mb_test_ok(mb_checkpoint_check(states, true));
    mb_free(states);
    mb_free(newest);
    run_free(&whole);
    run_free(&torn);
    fix_trainer_free(&options);
}

/* Train from the golden model's folder and read what was written: adapter, delta, whole. */
static void test_saved_weights(void **state)
{
    (void)state;
    static const char *const saves[] = {"delta", "full", "lora"};
    mb_ops *ops = NULL;
    mb_comm *comm = NULL;
    mb_shard *shard = NULL;
    mb_h5 *file = NULL;
    mb_test_ok(mb_h5_open("tests/golden/losses/losses.h5", &file));
    char *path = write_golden_shard(file);
    mb_h5_destroy(&file);
    mb_test_ok(mb_comm_create(NULL, NULL, &comm));
    mb_test_ok(mb_ops_create("ref", 1, &ops));
    mb_test_ok(mb_shard_open(path, 0, &shard));
    for (int i = 0; i < 3; i++) {
        bool lora = i == 2;
        mb_lora_options adapter = {.r = 2, .alpha = 4, .dropout = 0.1, .targets = "q_proj,v_proj", .seed = 3};
        mb_lm_options model = {
            .path = "tests/golden/losses/olmoe", .train = "router", .opt_lora = lora ? &adapter : NULL};
        mb_trainer_options options = fix_trainer_options();
        mb_objective_options choice = fix_objective_options("sft");
        mb_objective *objective = NULL;
        mb_trainer_report report;
        mb_lm *lm = NULL, *again = NULL;
        char *run_folder = mb_test_path(folder, saves[i]), *final = mb_test_path(run_folder, "final");
        options.max_steps = 3;
        options.gradient_accumulation_steps = 1;
        mb_free(options.save);
        options.save = mb_strdup(i == 1 ? "full" : "delta");
        mb_test_ok(mb_lm_open(ops, &model, &lm));
        mb_test_ok(mb_objective_create(&choice, lm, &objective));
        mb_test_ok(mb_trainer_run(comm, lm, objective, shard, &options, run_folder, model.path, &report));
        model.opt_lora = NULL;
        if (lora) model.opt_adapter = final;
        if (!lora) model.path = final;
        mb_test_ok(mb_lm_open(ops, &model, &again));
        int64_t n = mb_params_trained_count(mb_lm_params(lm));
        assert_int_equal(n, mb_params_trained_count(mb_lm_params(again)));
        assert_memory_equal(mb_params_trained(mb_lm_params(lm)), mb_params_trained(mb_lm_params(again)),
                            (size_t)n * sizeof(float));
        mb_objective_destroy(&objective);
        mb_lm_destroy(&lm);
        mb_lm_destroy(&again);
        fix_objective_free(&choice);
        fix_trainer_free(&options);
        mb_free(run_folder);
        mb_free(final);
    }
    mb_shard_close(&shard);
    mb_ops_destroy(&ops);
    mb_comm_destroy(&comm);
    mb_free(path);
}

/* ---- gradients without a step ---- */

static void test_gradients(void **state)
{
    (void)state;
    mb_ops *ops = NULL;
    mb_lm *lm = NULL;
    mb_shard *shard = NULL;
    mb_objective *objective = NULL;
    mb_objective_options choice = fix_objective_options("router_warmup");
    mb_arch arch = fix_arch(4, 2);
    arch.picks = 6;                  /* all: nothing jumps when a pick changes, */
    choice.pair_rank_copy_share = 1; /* and nothing depends on the detached losses */
    choice.router_z_loss_coef = 0.01;
    mb_objective_terms terms, high, low;
    uint32_t tokens[3][10];
    mb_shard_record record[3] = {{0}};
    int64_t sample[] = {4, 9, 2};
    for (int i = 0; i < 3; i++) {
        for (int t = 0; t < 10; t++) tokens[i][t] = (uint32_t)((11 * i + 5 * t + t * t) % FIX_VOCAB);
        record[i].tokens = tokens[i];
        record[i].count = 10;
    }
    mb_microbatch microbatch = {.records = 3,
                                .record = record,
                                .sample = sample,
                                .seed = 42,
                                .step_targets = 27,
                                .step_microbatches = 1};
    mb_test_ok(mb_ops_create("ref", 1, &ops));
    mb_test_ok(mb_lm_create(ops, &arch, "router", 7, &lm));
    mb_test_ok(mb_objective_create(&choice, lm, &objective));
    int64_t n = mb_params_trained_count(mb_lm_params(lm)), bad = 0;
    float *gradient = mb_calloc((size_t)n, sizeof *gradient), *other = mb_calloc((size_t)n, sizeof *other);
    float *trained = mb_params_trained(mb_lm_params(lm));
    mb_test_ok(mb_trainer_gradients(lm, objective, &microbatch, gradient, &terms));
    assert_string_equal(terms.name[0], "loss");
    for (int64_t i = 0; i < n; i += 17) { /* central differences of the whole loss in the gates */
        float kept = trained[i];
        trained[i] = kept + 0x1p-7f;
        mb_params_changed(mb_lm_params(lm));
        mb_test_ok(mb_trainer_gradients(lm, objective, &microbatch, other, &high));
        trained[i] = kept - 0x1p-7f;
        mb_params_changed(mb_lm_params(lm));
        mb_test_ok(mb_trainer_gradients(lm, objective, &microbatch, other, &low));
        trained[i] = kept;
        double expected = (high.value[0] - low.value[0]) / 0x1p-6;
        bad += !mb_test_is_near(gradient[i], expected, 0.01, 1e-4);
    }
    print_message("# %d of %d differences are off\n", (int)bad, (int)((n + 16) / 17));
    assert_int_equal(bad, 0);
    mb_free(gradient);
    mb_free(other);
    mb_objective_destroy(&objective);
    mb_lm_destroy(&lm);
    mb_ops_destroy(&ops);
    mb_shard_close(&shard);
    fix_objective_free(&choice);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_loss_falls),
        cmocka_unit_test(test_router_warmup),
        cmocka_unit_test(test_sft_mask),
        cmocka_unit_test(test_against_transformers),
        cmocka_unit_test(test_records_without_targets),
        cmocka_unit_test(test_lanes),
        cmocka_unit_test(test_balance_scope),
        cmocka_unit_test(test_stop_and_resume),
        cmocka_unit_test(test_other_settings),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_not_finite),
        cmocka_unit_test(test_rotation),
        cmocka_unit_test(test_torn_state),
        cmocka_unit_test(test_saved_weights),
        cmocka_unit_test(test_gradients),
    };
    setenv("MB_COMM", "self", 1);
    setenv("MB_LOG", "error", 1);
    cmocka_set_message_output(CM_OUTPUT_TAP);
    print_message("# seed 42\n");
    return cmocka_run_group_tests(tests, setup, teardown);
}
