/* test_trainer_best: training.save_best: the weights of the lowest validation loss, after any interruption,
 * with leftovers of a killed run, switched on late; refusals. */
#include "fixture.h"

#include <unistd.h>

#include "store/contenthash.h"

static char *folder, *shard, *held;

static int setup(void **state)
{
    (void)state;
    folder = mb_test_folder_make();
    shard = fix_shard(folder, "plain.h5", 12, false);
    held = fix_typed_shard(folder, "held.h5", -1, false);
    return 0;
}

static int teardown(void **state)
{
    MB_FREE(shard);
    MB_FREE(held);
    mb_test_folder_remove(&folder);
    return mb_test_teardown(state);
}

static fix_run run_of(const char *name)
{
    return (fix_run){.arch = fix_arch(0, 0),
                     .train = "all",
                     .objective = "lm",
                     .shard = shard,
                     .opt_validation = held,
                     .folder = mb_test_path(folder, name)};
}

static void run_free(fix_run *run)
{
    mb_trainer_report_reset(&run->report);
    mb_free((void *)run->folder);
    MB_FREE(run->trained);
}

/* Twelve steps over few records, so that held-out ones get worse again; a validation every two. */
static mb_status train_until(fix_run *run, const char *save_best, bool aside, int64_t stop_after)
{
    mb_trainer_options options = fix_trainer_options();
    mb_free(options.save_best);
    options.save_best = mb_strdup(save_best);
    options.learning_rate = 4e-2;
    options.max_steps = 12;
    options.validation_steps = 2;
    options.save_steps = 3;
    options.async_save = aside;
    run->stop_after = stop_after;
    mb_trainer_report_reset(&run->report);
    const mb_status status = fix_train(run, &options);
    fix_trainer_free(&options);
    return status;
}

static void hash_of(const fix_run *run, const char *name, char out[MB_HASH_TEXT])
{
    char *path = mb_test_path(run->folder, name);
    mb_test_ok(mb_contenthash_path(path, out));
    mb_free(path);
}

/* Where the link best points to; "" when there is none. */
static void target_of(const fix_run *run, char out[64])
{
    char *path = mb_test_path(run->folder, "best");
    const ssize_t n = readlink(path, out, 63);
    out[n > 0 ? n : 0] = 0;
    mb_free(path);
}

static int count_bests(const fix_run *run)
{
    char **names = NULL;
    int64_t n = 0;
    int found = 0;
    mb_test_ok(mb_files_list(run->folder, &names, &n));
    for (int64_t i = 0; i < n; i++) found += mb_str_is_prefix(names[i], "best_");
    mb_files_free_names(&names, n);
    return found;
}

static void expect_same(const fix_run *run, const fix_run *whole)
{
    char hash[2][MB_HASH_TEXT], target[2][64];
    hash_of(whole, "best", hash[0]);
    hash_of(run, "best", hash[1]);
    target_of(whole, target[0]);
    target_of(run, target[1]);
    assert_string_equal(target[0], target[1]);
    assert_string_equal(hash[0], hash[1]);
    assert_int_equal(count_bests(run), 1);
    assert_int_equal(run->report.best_step, whole->report.best_step);
    assert_true(run->report.has_best);
}

static fix_run whole_run(void)
{
    fix_run whole = run_of("whole");
    mb_test_ok(train_until(&whole, "true", false, 0));
    return whole;
}

/* Best is neither the first nor the last, and its weights are those of a run that ends there. */
static void test_best(void **state)
{
    (void)state;
    fix_run whole = whole_run();
    char target[64], expected[64];
    const mb_trainer_validated *loss = &whole.report.validated[0];
    print_message("# loss %.4f, at best %.4f after step %d, %.4f\n", loss->first, loss->best,
                  (int)whole.report.best_step, loss->last);
    assert_true(whole.report.best_step > 0 && whole.report.best_step < whole.report.steps);
    target_of(&whole, target);
    snprintf(expected, sizeof expected, "best_%d", (int)whole.report.best_step);
    assert_string_equal(target, expected);
    assert_int_equal(count_bests(&whole), 1);
    /* The kept weights are validated again, and have that loss. */
    char *best = mb_test_path(whole.folder, "best");
    fix_run again = run_of("again");
    again.opt_model = best;
    mb_test_ok(train_until(&again, "auto", false, 0)); /* auto: not kept for lm */
    assert_true(again.report.validated[0].first == loss->best);
    assert_int_equal(count_bests(&again), 0);
    assert_false(again.report.has_best);
    mb_free(best);
    run_free(&again);
    run_free(&whole);
}

/* Stopped at every possible place, with states written beside the steps too. */
static void test_interrupted(void **state)
{
    (void)state;
    fix_run whole = whole_run();
    for (int64_t every = 11; every <= 23; every += 4) {
        char name[32];
        snprintf(name, sizeof name, "cut_%d", (int)every);
        fix_run cut = run_of(name);
        int stops = 0;
        while (train_until(&cut, "true", every % 8 == 3, every) == MB_ESTOPPED && stops < 40) stops++;
        assert_true(stops >= 2 && stops < 40);
        expect_same(&cut, &whole);
        run_free(&cut);
    }
    run_free(&whole);
}

/* A killed run leaves a best that is ahead of its last state, or none of the step it validated last, where
 * its state is of that step. */
static void test_killed(void **state)
{
    (void)state;
    fix_run whole = whole_run(), ahead = run_of("ahead"), behind = run_of("behind");
    assert_int_equal(train_until(&ahead, "true", false, 20), MB_ESTOPPED);
    char *kept = mb_test_path(ahead.folder, "best_99"), *link = mb_test_path(ahead.folder, "best"),
         target[64];
    mb_test_ok(mb_files_make_folders(kept));
    assert_int_equal(unlink(link), 0);
    assert_int_equal(symlink("best_99", link), 0);
    mb_test_ok(train_until(&ahead, "true", false, 0));
    expect_same(&ahead, &whole);
    mb_free(kept);
    mb_free(link);
    assert_int_equal(train_until(&behind, "true", false, 43), MB_ESTOPPED); /* in step 7 */
    target_of(&behind, target);
    assert_string_equal(target, "best_6");
    kept = mb_test_path(behind.folder, "best_6");
    mb_test_ok(mb_files_remove_tree(kept));
    mb_test_ok(train_until(&behind, "true", false, 0));
    mb_free(kept);
    expect_same(&behind, &whole);
    run_free(&whole);
    run_free(&ahead);
    run_free(&behind);
}

/* Switched on when a run goes on: of what was validated before only the last is there to be kept. */
static void test_late(void **state)
{
    (void)state;
    fix_run run = run_of("late");
    char target[64];
    assert_int_equal(train_until(&run, "false", false, 60), MB_ESTOPPED); /* after step 9 */
    assert_int_equal(count_bests(&run), 0);
    mb_test_ok(train_until(&run, "true", false, 0));
    target_of(&run, target);
    print_message("# best of all after step %d, kept %s\n", (int)run.report.best_step, target);
    assert_int_equal(run.report.best_step, 6);
    assert_true(mb_str_equal(target, "best_10") || mb_str_equal(target, "best_12"));
    assert_int_equal(count_bests(&run), 1);
    run_free(&run);
}

static void test_refusals(void **state)
{
    (void)state;
    fix_run run = run_of("refused");
    run.opt_validation = NULL;
    mb_test_fails(train_until(&run, "true", false, 0), MB_EUSAGE, "training.validation_path");
    run_free(&run);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_best), cmocka_unit_test(test_interrupted),
                                       cmocka_unit_test(test_killed), cmocka_unit_test(test_late),
                                       cmocka_unit_test(test_refusals)};
    setenv("MB_COMM", "self", 1);
    setenv("MB_LOG", "error", 1);
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, setup, teardown);
}
