/* test_trainer_save: states written beside the steps, damaged states, a lost folder, the end of a job. */
#include "learn/trainer.h"

#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/files.h"
#include "fixture.h"
#include "store/checkpoint.h"
#include "store/lease.h"

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
    unsetenv("MB_END_TIME");
    mb_stop_reset();
    MB_FREE(plain);
    mb_test_folder_remove(&folder);
    return mb_test_teardown(state);
}

/* Five steps an epoch of a small MoE. */
static fix_run run_in(const char *name)
{
    return (fix_run){.arch = fix_arch(4, 0),
                     .train = "all",
                     .objective = "lm",
                     .shard = plain,
                     .folder = mb_test_path(folder, name)};
}

static void run_free(fix_run *run)
{
    mb_free((void *)run->folder);
    mb_free(run->trained);
}

static void assert_same_weights(const fix_run *a, const fix_run *b)
{
    assert_int_equal(a->count, b->count);
    assert_memory_equal(a->trained, b->trained, (size_t)a->count * sizeof(float));
}

static int64_t count_names(const char *run_folder, const char *below)
{
    char **names = NULL, *path = mb_test_path(run_folder, below);
    int64_t n = 0;
    int64_t whole = 0;
    if (mb_files_is_folder(path)) mb_test_ok(mb_files_list(path, &names, &n));
    for (int64_t i = 0; i < n; i++) whole += strstr(names[i], ".tmp.") == NULL;
    mb_files_free_names(&names, n);
    mb_free(path);
    return whole;
}

/* Runs `hook` inside the loss of micro-batch `hook_at` (from 1). */
static mb_objective hooked;
static int64_t hook_at, hook_calls;
static void (*hook)(void);

static mb_status hooked_loss(mb_objective *self, const mb_microbatch *microbatch, mb_arena *arena,
                             const mb_objective_pass *passes, const mb_lm_output *outputs, int64_t count,
                             mb_objective_terms *out_terms,
                             mb_objective_gradient gradients[MB_OBJECTIVE_MAX_PASSES])
{
    if (++hook_calls == hook_at) hook();
    return hooked.loss(self, microbatch, arena, passes, outputs, count, out_terms, gradients);
}

static mb_status train_hooked(fix_run *run, const mb_trainer_options *options, int64_t at, void (*what)(void))
{
    mb_ops *ops = NULL;
    mb_lm *lm = NULL;
    mb_comm *comm = NULL;
    mb_shard *shard = NULL;
    mb_objective *objective = NULL;
    mb_objective_options choice = fix_objective_options(run->objective);
    mb_test_ok(mb_comm_create(NULL, NULL, &comm));
    mb_test_ok(mb_ops_create("ref", 1, &ops));
    mb_test_ok(mb_lm_create(ops, &run->arch, run->train, 7, &lm));
    mb_test_ok(mb_shard_open(run->shard, 0, &shard));
    mb_test_ok(mb_objective_create(&choice, lm, &objective));
    hooked = *objective;
    hook = what;
    hook_at = at;
    hook_calls = 0;
    objective->loss = hooked_loss;
    mb_status status = mb_trainer_run(comm, lm, objective, shard, options, run->folder, NULL, &run->report);
    mb_objective_destroy(&objective);
    mb_shard_close(&shard);
    mb_lm_destroy(&lm);
    mb_ops_destroy(&ops);
    mb_comm_destroy(&comm);
    fix_objective_free(&choice);
    return status;
}

/* ---- beside the steps ---- */

/* Every state, file by file, and the weights; and the copy stands in the account of memory. */
static void test_same_states(void **state)
{
    (void)state;
    fix_run runs[] = {run_in("between"), run_in("beside")};
    mb_trainer_options options = fix_trainer_options();
    options.epochs = 2;
    options.save_steps = 1;
    options.save_total_limit = 0;
    for (int i = 0; i < 2; i++) {
        options.async_save = i == 1;
        mb_test_ok(fix_train(&runs[i], &options));
        assert_int_equal(count_names(runs[i].folder, "state"), 10);
        const mb_lm_memory *copy = &runs[i].report.memory[MB_TRAINER_MEMORY_KINDS - 2];
        assert_string_equal(copy->kind, "copy for a checkpoint");
        assert_int_equal(copy->used, i == 0 ? 0 : 12 * runs[i].count);
        assert_int_equal(copy->forecast, copy->used);
    }
    assert_same_weights(&runs[0], &runs[1]);
    for (int step = 1; step <= 10; step++) {
        char name[64];
        mb_str text[2] = {MB_STR_EMPTY, MB_STR_EMPTY};
        snprintf(name, sizeof name, "state/step_%d/trainer.h5", step);
        for (int i = 0; i < 2; i++) {
            char *path = mb_test_path(runs[i].folder, name);
            mb_test_ok(mb_files_read(path, 0, &text[i]));
            mb_free(path);
        }
        assert_int_equal(text[0].length, text[1].length);
        assert_memory_equal(text[0].data, text[1].data, text[0].length);
        mb_str_destroy(&text[0]);
        mb_str_destroy(&text[1]);
    }
    run_free(&runs[0]);
    run_free(&runs[1]);
    fix_trainer_free(&options);
}

/* A run that was stopped goes on from states that were written beside the steps. */
static void test_go_on(void **state)
{
    (void)state;
    fix_run whole = run_in("go_on_whole"), cut = run_in("go_on_cut");
    mb_trainer_options options = fix_trainer_options();
    int64_t stops = 0;
    options.epochs = 2;
    mb_test_ok(fix_train(&whole, &options));
    options.async_save = true;
    options.save_steps = 2;
    mb_status status = MB_ESTOPPED;
    for (; status == MB_ESTOPPED && stops < 20; stops++) {
        mb_stop_reset();
        status = train_hooked(&cut, &options, 8, mb_stop_request);
        if (status == MB_ESTOPPED) assert_true(cut.report.is_stopped && cut.report.steps < 10);
    }
    mb_stop_reset();
    mb_test_ok(status);
    assert_true(stops >= 3);
    mb_test_ok(fix_train(&cut, &options));
    assert_same_weights(&whole, &cut);
    run_free(&whole);
    run_free(&cut);
    fix_trainer_free(&options);
}

/* What the thread could not write ends the run a step or two later, with the thread's own words. */
static void test_failed_write(void **state)
{
    (void)state;
    fix_run run = run_in("failed");
    mb_trainer_options options = fix_trainer_options();
    options.epochs = 40;
    options.save_steps = 3;
    options.async_save = true;
    mb_test_ok(mb_files_make_folders(run.folder));
    char *states = mb_test_path(run.folder, "state"), *curve = mb_test_path(run.folder, "metrics.jsonl");
    mb_str text = MB_STR_EMPTY;
    mb_test_ok(mb_files_write(states, "in the way", 10));
    mb_test_fails(fix_train(&run, &options), MB_EEXIST, "failed/state: in the way");
    mb_test_ok(mb_files_read(curve, 0, &text));
    int64_t lines = 0;
    for (const char *at = mb_str_text(&text); *at != 0; at++) lines += *at == '\n';
    print_message("# ended after step %d\n", (int)lines);
    assert_true(lines >= 3 && lines <= 6); /* at the next save at the latest */
    mb_str_destroy(&text);
    mb_free(states);
    mb_free(curve);
    run_free(&run);
    fix_trainer_free(&options);
}

/* ---- damaged states ---- */

static void damage(const char *path, bool cut_short)
{
    struct stat seen;
    assert_int_equal(stat(path, &seen), 0);
    if (cut_short) {
        assert_int_equal(truncate(path, seen.st_size - 1), 0);
        return;
    }
    FILE *file = fopen(path, "r+b");
    assert_non_null(file);
    assert_int_equal(fseek(file, seen.st_size * 2 / 3, SEEK_SET), 0);
    const int byte = fgetc(file);
    assert_int_equal(fseek(file, -1, SEEK_CUR), 0);
    fputc(byte ^ 0x10, file);
    fclose(file);
}

/* The newest state cut short by a byte, or with one bit turned over (its size is right): the one before
 * counts, the damaged one is kept under another name, and keeping one state only does not lose the good
 * ones to it. */
static void test_damaged(void **state)
{
    (void)state;
    fix_run whole = run_in("undamaged"), runs[] = {run_in("turned"), run_in("cut_short")};
    mb_trainer_options options = fix_trainer_options();
    options.epochs = 2;
    options.save_steps = 3;
    mb_test_ok(fix_train(&whole, &options));
    for (int i = 0; i < 2; i++) {
        options.save_total_limit = 2;
        mb_test_fails(train_hooked(&runs[i], &options, 23, mb_stop_request), MB_ESTOPPED, "after step 8");
        mb_stop_reset();
        char *newest = mb_test_path(runs[i].folder, "state/step_8/trainer.h5");
        damage(newest, i == 1);
        options.save_total_limit = 1;
        /* From 6 on: step 7, and stopped in step 8. */
        mb_test_fails(train_hooked(&runs[i], &options, 5, mb_stop_request), MB_ESTOPPED, "after step 7");
        mb_stop_reset();
        char *kept = mb_test_path(runs[i].folder, "state/step_8.torn"),
             *gone = mb_test_path(runs[i].folder, "state/step_8"),
             *good = mb_test_path(runs[i].folder, "state/step_7");
        assert_true(mb_files_is_folder(kept));
        assert_false(mb_files_is_folder(gone));
        mb_test_ok(mb_checkpoint_check(good, true));
        mb_test_ok(fix_train(&runs[i], &options));
        assert_same_weights(&whole, &runs[i]);
        mb_free(newest);
        mb_free(kept);
        mb_free(gone);
        mb_free(good);
        run_free(&runs[i]);
    }
    run_free(&whole);
    fix_trainer_free(&options);
}

/* ---- a lost folder ---- */

static char *lost_folder;
static int64_t lost_states;
static mb_str lost_curve;

/* Is a state being written beside the steps? */
static bool is_writing(void)
{
    char **names = NULL, *path = mb_test_path(lost_folder, "state");
    int64_t n = 0;
    bool is_there = false;
    mb_test_ok(mb_files_list(path, &names, &n));
    for (int64_t i = 0; i < n; i++) is_there = is_there || strstr(names[i], ".tmp.") != NULL;
    mb_files_free_names(&names, n);
    mb_free(path);
    return is_there;
}

/* Another run takes the folder over. */
static void take_over(void)
{
    static const char other[] = "{\"host\": \"elsewhere\", \"pid\": 1, \"start\": \"1\", \"boot\": \"b\", "
                                "\"job\": \"77\", \"restart\": \"\"}";
    char *lease = mb_test_path(lost_folder, "lease"), *curve = mb_test_path(lost_folder, "metrics.jsonl");
    for (int i = 0; i < 1000 && is_writing(); i++) usleep(5000);
    mb_test_ok(mb_files_write(lease, other, sizeof other - 1));
    mb_test_ok(mb_files_read(curve, 0, &lost_curve));
    lost_states = count_names(lost_folder, "state");
    mb_free(lease);
    mb_free(curve);
}

/* From then on nothing changes, be it a state, weights or a line of the curve that comes next. */
static void test_lost_folder(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        int64_t at, log_steps;
        bool async_save;
    } cases[] = {{"lost_state", 16, 100, false},
                 {"lost_beside", 16, 100, true},
                 {"lost_weights", 20, 100, false},
                 {"lost_curve", 16, 1, false}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        fix_run run = run_in(cases[i].name);
        mb_trainer_options options = fix_trainer_options();
        mb_lease *lease = NULL;
        options.epochs = 3;
        options.save_steps = i == 2 ? 0 : 3;
        options.log_steps = cases[i].log_steps;
        options.async_save = cases[i].async_save;
        mb_test_ok(mb_files_make_folders(run.folder));
        mb_test_ok(mb_lease_open(run.folder, NULL, &lease));
        lost_folder = (char *)run.folder;
        mb_status status = train_hooked(&run, &options, cases[i].at, take_over);
        assert_int_equal(status, MB_EEXIST);
        print_message("# %s\n", mb_status_message());
        assert_non_null(strstr(mb_status_message(), cases[i].name));
        assert_true(lost_states > 0);
        assert_int_equal(count_names(run.folder, "state"), lost_states);
        assert_int_equal(count_names(run.folder, "epoch_2"), 0);
        mb_str now = MB_STR_EMPTY;
        char *curve = mb_test_path(run.folder, "metrics.jsonl");
        mb_test_ok(mb_files_read(curve, 0, &now));
        assert_string_equal(mb_str_text(&now), mb_str_text(&lost_curve));
        mb_str_destroy(&now);
        mb_free(curve);
        mb_lease_close(&lease);
        run_free(&run);
        fix_trainer_free(&options);
    }
    mb_str_destroy(&lost_curve);
}

/* ---- the end of a job ---- */

static void ends_in(double seconds)
{
    char text[32];
    snprintf(text, sizeof text, "%.0f", (double)time(NULL) + seconds);
    setenv("MB_END_TIME", text, 1);
}

/* A job about to end does one step, and the next goes on; one with hours left does all. */
static void test_deadline(void **state)
{
    (void)state;
    fix_run whole = run_in("no_end"), cut = run_in("ends");
    mb_trainer_options options = fix_trainer_options();
    options.max_steps = 4;
    mb_test_ok(fix_train(&whole, &options));
    for (int step = 1; step < 4; step++) {
        char text[64];
        snprintf(text, sizeof text, "stopped after step %d", step);
        ends_in(step == 1 ? -100 : 8);
        mb_test_fails(fix_train(&cut, &options), MB_ESTOPPED, text);
        assert_int_equal(cut.report.steps, step);
    }
    ends_in(7200);
    mb_test_ok(fix_train(&cut, &options));
    assert_int_equal(cut.report.steps, 4);
    assert_same_weights(&whole, &cut);
    unsetenv("MB_END_TIME");
    run_free(&whole);
    run_free(&cut);
    fix_trainer_free(&options);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_states),  cmocka_unit_test(test_go_on),
        cmocka_unit_test(test_failed_write), cmocka_unit_test(test_damaged),
        cmocka_unit_test(test_lost_folder),  cmocka_unit_test(test_deadline),
    };
    setenv("MB_COMM", "self", 1);
    setenv("MB_LOG", "error", 1);
    unsetenv("MB_END_TIME");
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, setup, teardown);
}
