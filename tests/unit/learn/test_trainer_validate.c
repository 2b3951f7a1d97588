/* test_trainer_validate: values of a validation, that training does not feel it, that a run interrupted
 * anywhere ends with the same lines, what the report says, refusals. */
#include "fixture.h"

#include "store/contenthash.h"
#include "store/h5.h"

static char *folder, *plain, *typed, *by_type[3], *untyped, *model;
static const char *const names[] = {"code", "loss_", "dia_log"}; /* of the types, as metrics have them */

static int setup(void **state)
{
    (void)state;
    mb_ops *ops = NULL;
    mb_lm *lm = NULL;
    const mb_arch arch = fix_arch(4, 0);
    folder = mb_test_folder_make();
    plain = fix_shard(folder, "plain.h5", FIX_RECORDS, false);
    typed = fix_typed_shard(folder, "typed.h5", -1, true);
    untyped = fix_typed_shard(folder, "untyped.h5", -1, false);
    for (int t = 0; t < 3; t++) {
        char name[32];
        snprintf(name, sizeof name, "type_%d.h5", t);
        by_type[t] = fix_typed_shard(folder, name, t, false);
    }
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
    MB_FREE(typed);
    MB_FREE(untyped);
    MB_FREE(model);
    for (int t = 0; t < 3; t++) MB_FREE(by_type[t]);
    mb_test_folder_remove(&folder);
    return mb_test_teardown(state);
}

static fix_run run_of(const char *objective, const char *name)
{
    return (fix_run){.arch = fix_arch(4, mb_str_equal(objective, "router_warmup") ? 2 : 0),
                     .train = mb_str_equal(objective, "router_warmup") ? "router" : "all",
                     .objective = objective,
                     .shard = plain,
                     .folder = mb_test_path(folder, name)};
}

static void run_free(fix_run *run)
{
    mb_trainer_report_reset(&run->report);
    mb_free((void *)run->folder);
    mb_free(run->trained);
}

/* Column of metrics.h5; mb_free. NULL: it is not there. */
static double *read_curve(const fix_run *run, const char *name, int64_t *out_count)
{
    mb_h5 *file = NULL;
    char *path = mb_test_path(run->folder, "metrics.h5");
    int dims;
    int64_t shape[MB_TENSOR_MAX_DIMS];
    double *values = NULL;
    mb_test_ok(mb_h5_open(path, &file));
    if (mb_h5_has(file, name)) {
        mb_test_ok(mb_h5_read_new(file, name, MB_F64, &dims, shape, (void **)&values));
        *out_count = shape[0];
    }
    mb_h5_destroy(&file);
    mb_free(path);
    return values;
}

/* The i-th value that is there. */
static double value_at(const fix_run *run, const char *name, int64_t i)
{
    int64_t n = 0;
    double *values = read_curve(run, name, &n), found = NAN;
    for (int64_t k = 0; k < n && values != NULL; k++)
        if (isfinite(values[k]) && i-- == 0) found = values[k];
    mb_free(values);
    return found;
}

static int64_t count_values(const fix_run *run, const char *name)
{
    int64_t n = 0, there = 0;
    double *values = read_curve(run, name, &n);
    for (int64_t k = 0; k < n && values != NULL; k++) there += isfinite(values[k]);
    mb_free(values);
    return there;
}

/* ---- values ---- */

/* Loss of a shard as one training step with a learning rate of 0 gives it: another way to the same numbers.
 */
static double loss_of(const char *shard, const char *name, const char *term)
{
    mb_trainer_options options = fix_trainer_options();
    mb_objective_options choice = fix_objective_options("lm");
    fix_run run = run_of("lm", name);
    run.shard = shard;
    run.opt_objective_options = &choice;
    options.batch_size = 64;
    options.gradient_accumulation_steps = 1;
    options.learning_rate = 0;
    choice.router_z_loss_coef = 0.5;
    mb_test_ok(fix_train(&run, &options));
    const double value = value_at(&run, term, 0);
    run_free(&run);
    fix_objective_free(&choice);
    fix_trainer_free(&options);
    return value;
}

static void test_values(void **state)
{
    (void)state;
    mb_trainer_options options = fix_trainer_options();
    mb_objective_options choice = fix_objective_options("lm");
    fix_run run = run_of("lm", "values");
    char path[128];
    options.max_steps = 1;
    choice.router_z_loss_coef = 0.5;
    mb_free(choice.balance_scope);
    choice.balance_scope = mb_strdup("step"); /* so that one micro-batch or many are the same */
    run.opt_validation = typed;
    run.opt_objective_options = &choice;
    mb_test_ok(fix_train(&run, &options));
    static const char *const terms[] = {"loss", "lm_loss", "balance", "z_loss"};
    for (int i = 0; i < 4; i++) {
        char term[32], name[64];
        snprintf(term, sizeof term, "/%s", terms[i]);
        for (int t = 0; t < 4; t++) {
            snprintf(path, sizeof path, t < 3 ? "/validation/%s/%s" : "/validation/%s%s",
                     t < 3 ? names[t] : "", terms[i]);
            snprintf(name, sizeof name, "loss_%d_%d", i, t);
            const double mine = value_at(&run, path, 0),
                         other = loss_of(t < 3 ? by_type[t] : untyped, name, term);
            print_message("# %s: %.9f and %.9f\n", path, mine, other);
            mb_test_near(mine, other, 1e-7);
        }
    }
    assert_int_equal(count_values(&run, "/validation/loss"), 2); /* before the first step, after the last */
    assert_true(value_at(&run, "/validation/loss", 0) != value_at(&run, "/validation/loss", 1));
    run_free(&run);
    fix_objective_free(&choice);
    fix_trainer_free(&options);
}

/* Every two steps of five, at epoch ends, and a part of the records; a shard without types. */
static void test_plan(void **state)
{
    (void)state;
    mb_trainer_options options = fix_trainer_options();
    fix_run every = run_of("lm", "every"), ends = run_of("lm", "ends"), some = run_of("lm", "some");
    int64_t n = 0;
    every.opt_validation = ends.opt_validation = some.opt_validation = untyped;
    options.epochs = 1; /* five steps */
    options.validation_steps = 2;
    mb_test_ok(fix_train(&every, &options));
    double *loss = read_curve(&every, "/validation/loss", &n);
    static const bool wanted[] = {true,  false, false, true, false,
                                  false, true,  false, true}; /* of steps 0, 1, 2,
        2, 3, 4, 4, 5, 5 */
    assert_int_equal(n, 9);
    for (int64_t i = 0; i < n; i++) assert_int_equal(isfinite(loss[i]) != 0, wanted[i]);
    mb_free(loss);
    options.validation_steps = 0;
    options.epochs = 3;
    mb_test_ok(fix_train(&ends, &options));
    assert_int_equal(count_values(&ends, "/validation/loss"), 4);
    options.epochs = 1;
    options.validation_samples = 6;
    mb_test_ok(fix_train(&some, &options));
    assert_true(value_at(&some, "/validation/loss", 0) != value_at(&every, "/validation/loss", 0));
    /* The report: first, last and lowest, whatever the lines said. */
    assert_int_equal(ends.report.validated_count, 3);
    const mb_trainer_validated *r = &ends.report.validated[0];
    assert_string_equal(r->name, "validation/loss");
    assert_true(r->first == value_at(&ends, "/validation/loss", 0));
    assert_true(r->last == value_at(&ends, "/validation/loss", 3));
    assert_true(r->best <= r->last && r->best <= r->first && ends.report.best_step > 0);
    run_free(&every);
    run_free(&ends);
    run_free(&some);
    fix_trainer_free(&options);
}

/* ---- no effect, and the same lines after anything ---- */

typedef struct kind {
    const char *objective, *scope;
    bool with_dropout;
} kind;

/* Trains; stop_every > 0: a stop is asked for inside every so-manieth loss, until it is done. */
static fix_run train_kind(const kind *k, const char *name, bool validates, int64_t stop_every,
                          int64_t *out_stops)
{
    static const mb_lora_options lora = {
        .r = 2, .alpha = 4, .dropout = 0.2, .targets = "q_proj,gate_proj,down_proj", .seed = 3};
    mb_trainer_options options = fix_trainer_options();
    mb_objective_options choice = fix_objective_options(k->objective);
    fix_run run = run_of(k->objective, name);
    int64_t stops = 0;
    run.opt_objective_options = &choice;
    run.opt_validation = validates ? typed : NULL;
    run.stop_after = stop_every;
    if (k->with_dropout) {
        run.opt_model = model;
        run.opt_lora = &lora;
        run.train = "lora";
    }
    run.arch.trash_logit_bias = run.arch.trash > 0 ? -5 : 0;
    choice.trash_open_steps = 4;
    mb_free(choice.balance_scope);
    choice.balance_scope = mb_strdup(k->scope);
    options.epochs = 2;
    options.validation_steps = 3;
    mb_status status = MB_ESTOPPED;
    while (status == MB_ESTOPPED && stops < 60) {
        mb_trainer_report_reset(&run.report);
        status = fix_train(&run, &options);
        stops += status == MB_ESTOPPED;
    }
    mb_test_ok(status);
    if (out_stops != NULL) *out_stops = stops;
    fix_objective_free(&choice);
    fix_trainer_free(&options);
    return run;
}

static void hash_metrics(const fix_run *run, char out[MB_HASH_TEXT])
{
    char *path = mb_test_path(run->folder, "metrics.h5");
    mb_test_ok(mb_contenthash_path(path, out));
    mb_free(path);
}

static const kind kinds[] = {
    {"lm", "micro", false}, {"lm", "step", false}, {"lm", "micro", true}, {"router_warmup", "step", false}};

static void test_no_effect(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        char name[2][32];
        snprintf(name[0], sizeof name[0], "without_%d", (int)i);
        snprintf(name[1], sizeof name[1], "with_%d", (int)i);
        fix_run without = train_kind(&kinds[i], name[0], false, 0, NULL),
                with = train_kind(&kinds[i], name[1], true, 0, NULL);
        assert_int_equal(without.count, with.count);
        assert_memory_equal(without.trained, with.trained, (size_t)with.count * sizeof(float));
        assert_true(without.report.loss == with.report.loss);
        assert_int_equal(without.report.validated_count, 0);
        run_free(&without);
        run_free(&with);
    }
}

/* Stopped again and again: in steps, in validations (whose losses count too), before the first step. */
static void test_interrupted(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        char name[64], whole_hash[MB_HASH_TEXT], hash[MB_HASH_TEXT];
        snprintf(name, sizeof name, "whole_%d", (int)i);
        fix_run whole = train_kind(&kinds[i], name, true, 0, NULL);
        hash_metrics(&whole, whole_hash);
        for (int every = 5; every <= 23; every += 6) {
            int64_t stops;
            snprintf(name, sizeof name, "cut_%d_%d", (int)i, every);
            if (every < 17 && i > 1) continue; /* a validation alone takes 8 micro-batches twice over */
            fix_run cut = train_kind(&kinds[i], name, true, every + 12, &stops);
            hash_metrics(&cut, hash);
            assert_true(stops >= 3);
            assert_memory_equal(whole.trained, cut.trained, (size_t)whole.count * sizeof(float));
            assert_string_equal(whole_hash, hash);
            assert_int_equal(whole.report.validated_count, cut.report.validated_count);
            assert_memory_equal(whole.report.validated, cut.report.validated,
                                (size_t)cut.report.validated_count * sizeof *cut.report.validated);
            assert_int_equal(whole.report.best_step, cut.report.best_step);
            run_free(&cut);
        }
        run_free(&whole);
    }
}

/* Validation may be asked for, or otherwise, when a run goes on: it is no setting of the training. */
static void test_other_plan(void **state)
{
    (void)state;
    mb_trainer_options options = fix_trainer_options();
    fix_run run = run_of("lm", "other");
    options.max_steps = 6;
    run.stop_after = 7;
    mb_test_fails(fix_train(&run, &options), MB_ESTOPPED, "after step 2");
    run.stop_after = 0;
    run.opt_validation = untyped;
    options.validation_steps = 2;
    mb_test_ok(fix_train(&run, &options));
    assert_int_equal(count_values(&run, "/validation/loss"), 3); /* 2 (made up for), 4, 6 */
    run_free(&run);
    fix_trainer_free(&options);
}

static void test_refusals(void **state)
{
    (void)state;
    mb_trainer_options options = fix_trainer_options();
    fix_run run = run_of("lm", "refused");
    char *empty = fix_typed_shard(folder, "empty.h5", 7, false);
    options.max_steps = 1;
    run.opt_validation = empty;
    mb_test_fails(fix_train(&run, &options), MB_EDATA, "training.validation_path: the shard has no records");
    mb_free(empty);
    run_free(&run);
    fix_trainer_free(&options);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_values),     cmocka_unit_test(test_plan),
                                       cmocka_unit_test(test_no_effect),  cmocka_unit_test(test_interrupted),
                                       cmocka_unit_test(test_other_plan), cmocka_unit_test(test_refusals)};
    setenv("MB_COMM", "self", 1);
    setenv("MB_LOG", "error", 1);
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, setup, teardown);
}
