/* test_balance_split: balance_scope = step gives one value and one gradient for a step, however it is cut
 * into micro-batches, with and without recomputation, in both conventions, whole and cut gradients; also for
 * a short last step and micro-batches of very different lengths. Printed as a table. */
#include "split.h"

static char *folder, *shard;

static int setup(void **state)
{
    (void)state;
    folder = mb_test_folder_make();
    shard = split_shard(folder);
    return 0;
}

static int teardown(void **state)
{
    MB_FREE(shard);
    mb_test_folder_remove(&folder);
    return mb_test_teardown(state);
}

/* The first is the step as one micro-batch: no routing-only pass, nothing to add up. */
static const split_case cases[] = {{12, false, 1}, {12, true, 1}, {6, false, 1}, {6, true, 1},
                                   {4, false, 1},  {4, true, 1},  {3, false, 1}, {3, true, 1},
                                   {2, false, 1},  {2, true, 1},  {1, false, 1}, {1, true, 1},
                                   {4, false, 2},  {3, true, 2},  {1, false, 2}};
enum { CASES = sizeof cases / sizeof cases[0] };

static split_result run_case(const split_case *c, const char *load_balance)
{
    mb_comm *comm = NULL;
    char name[64];
    snprintf(name, sizeof name, "%s_%d_%d_%d", load_balance, (int)c->batch_size, c->recompute, (int)c->zero);
    char *at = mb_test_path(folder, name);
    mb_test_ok(mb_comm_create(NULL, NULL, &comm));
    split_result result = split_run(comm, c, load_balance, shard, at, NULL);
    mb_comm_destroy(&comm);
    mb_free(at);
    return result;
}

static void compare(const char *load_balance, double balanced)
{
    split_result whole = {0};
    print_message("# %s: records x micro-batches, recompute, zero, step: value, differences of value, z, "
                  "gradient\n",
                  load_balance);
    for (int i = 0; i < CASES; i++) {
        const split_case *c = &cases[i];
        split_result one = run_case(c, load_balance);
        if (i == 0) whole = one;
        for (int s = 0; s < SPLIT_STEPS; s++) {
            const double value = split_relative(one.balance[s], whole.balance[s]),
                         z = split_relative(one.z[s], whole.z[s]),
                         gradient = split_distance(one.gradient[s], whole.gradient[s], whole.count);
            print_message("#   %2dx%-2d %-6s zero=%d step %d: %.9f  %.1e  %.1e  %.1e\n", (int)c->batch_size,
                          SPLIT_STEP / (int)c->batch_size, c->recompute ? "blocks" : "none", (int)c->zero,
                          s + 1, one.balance[s], value, z, gradient);
            assert_true(one.balance[s] > 1.005 * balanced &&
                        one.z[s] > 0); /* there is something to compare */
            assert_true(value <= 1e-6 && z <= 1e-6 && gradient <= 1e-6);
        }
        if (i > 0) split_free(&one);
    }
    split_free(&whole);
}

static void test_hf(void **state)
{
    (void)state;
    compare("hf", 2); /* K when balanced */
}

static void test_switch(void **state)
{
    (void)state;
    compare("switch", 1);
}

/* Per micro-batch (HF's way) the value does depend on the cut, so the comparison above can fail. */
static void test_micro_differs(void **state)
{
    (void)state;
    double balance[2];
    for (int i = 0; i < 2; i++) {
        mb_trainer_options options = fix_trainer_options();
        mb_objective_options choice = fix_objective_options("sft");
        int64_t n = 1;
        fix_run run = {.arch = split_arch(),
                       .train = "all",
                       .objective = "sft",
                       .shard = shard,
                       .folder = mb_test_path(folder, i == 0 ? "micro_1" : "micro_12"),
                       .opt_objective_options = &choice};
        options.batch_size = i == 0 ? 12 : 1;
        options.gradient_accumulation_steps = 12 / options.batch_size;
        options.max_steps = 1;
        choice.router_aux_loss_coef = 1;
        mb_test_ok(fix_train(&run, &options));
        mb_h5 *file = NULL;
        char *path = mb_test_path(run.folder, "metrics.h5");
        mb_tensor column = mb_tensor_view1(MB_F64, &balance[i], n);
        mb_test_ok(mb_h5_open(path, &file));
        mb_test_ok(mb_h5_read(file, "/balance", &column));
        mb_h5_destroy(&file);
        mb_free(path);
        mb_free((void *)run.folder);
        mb_free(run.trained);
        fix_objective_free(&choice);
        fix_trainer_free(&options);
    }
    print_message("# per micro-batch: %.6f of one, %.6f of twelve\n", balance[0], balance[1]);
    assert_true(split_relative(balance[1], balance[0]) > 1e-2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_hf), cmocka_unit_test(test_switch),
                                       cmocka_unit_test(test_micro_differs)};
    setenv("MB_COMM", "self", 1);
    setenv("MB_LOG", "error", 1);
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, setup, teardown);
}
