/* test_batches: order, subset, steps. */
#include "learn/batches.h"

#include "fixture.h"

static char *folder, *path;
static mb_shard *shard;

static int setup(void **state)
{
    (void)state;
    folder = mb_test_folder_make();
    path = fix_shard(folder, "s.h5", FIX_RECORDS, false);
    mb_test_ok(mb_shard_open(path, 0, &shard));
    return 0;
}

static int teardown(void **state)
{
    mb_shard_close(&shard);
    MB_FREE(path);
    mb_test_folder_remove(&folder);
    return mb_test_teardown(state);
}

/* Every epoch takes each record once, in another order. */
static void test_epochs(void **state)
{
    (void)state;
    mb_trainer_options options = fix_trainer_options();
    mb_batches *batches = NULL, *again = NULL;
    int64_t order[3][FIX_RECORDS], record;
    options.epochs = 3;
    mb_test_ok(mb_batches_create(shard, &options, &batches));
    mb_test_ok(mb_batches_create(shard, &options, &again));
    assert_int_equal(mb_batches_steps(batches), 3 * 5); /* 50 records, 12 a step */
    for (int64_t e = 0; e < 3; e++) {
        bool seen[FIX_RECORDS] = {false};
        for (int64_t i = 0; i < FIX_RECORDS; i++) {
            mb_test_ok(mb_batches_sample(batches, e, i, &record));
            assert_false(seen[record]);
            seen[record] = true;
            order[e][i] = record;
        }
    }
    assert_memory_not_equal(order[0], order[1], sizeof order[0]);
    assert_memory_not_equal(order[1], order[2], sizeof order[0]);
    mb_test_ok(mb_batches_sample(again, 2, 7, &record)); /* epoch 2 without the ones before */
    assert_int_equal(record, order[2][7]);
    mb_batches_destroy(&batches);
    mb_batches_destroy(&again);
    fix_trainer_free(&options);
}

static void test_steps(void **state)
{
    (void)state;
    static const struct {
        double epochs;
        int64_t max_steps, steps, last_count;
    } rows[] = {{1, 0, 5, 2},  {2, 0, 10, 2}, {0.5, 0, 3, 1}, {1.5, 0, 8, 1},
                {1, 7, 7, 12}, {3, 2, 2, 12}, {1, 5, 5, 2}};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        mb_trainer_options options = fix_trainer_options();
        mb_batches *batches = NULL;
        options.epochs = rows[i].epochs;
        options.max_steps = rows[i].max_steps;
        mb_test_ok(mb_batches_create(shard, &options, &batches));
        assert_int_equal(mb_batches_steps(batches), rows[i].steps);
        mb_batches_step last = mb_batches_step_get(batches, rows[i].steps - 1);
        assert_int_equal(last.count, rows[i].last_count);
        assert_int_equal(last.microbatches, (rows[i].last_count + 3) / 4);
        assert_true(last.is_epoch_end);
        assert_true(mb_batches_step_get(batches, 0).is_epoch_start);
        mb_batches_destroy(&batches);
        fix_trainer_free(&options);
    }
}

static void test_subset(void **state)
{
    (void)state;
    mb_trainer_options options = fix_trainer_options();
    mb_batches *batches = NULL, *other = NULL;
    int64_t record, differ = 0;
    bool chosen[FIX_RECORDS] = {false};
    options.subset_ratio = 0.3;
    options.epochs = 2;
    mb_test_ok(mb_batches_create(shard, &options, &batches));
    assert_int_equal(mb_batches_records(batches), 15);
    for (int64_t i = 0; i < 15; i++) {
        mb_test_ok(mb_batches_sample(batches, 0, i, &record));
        chosen[record] = true;
    }
    for (int64_t i = 0; i < 15; i++) {
        mb_test_ok(mb_batches_sample(batches, 1, i, &record));
        assert_true(chosen[record]);
    }
    options.seed = 43;
    mb_test_ok(mb_batches_create(shard, &options, &other));
    for (int64_t i = 0; i < 15; i++) {
        mb_test_ok(mb_batches_sample(other, 0, i, &record));
        differ += !chosen[record];
    }
    assert_true(differ > 0);
    mb_batches_destroy(&batches);
    mb_batches_destroy(&other);
    fix_trainer_free(&options);
}

/* The first step that reaches max_tokens is the last one. */
static void test_max_tokens(void **state)
{
    (void)state;
    mb_trainer_options options = fix_trainer_options();
    mb_batches *batches = NULL;
    int64_t tokens = 0, before = 0, record;
    options.max_tokens = 1500; /* more than one epoch of some 750 */
    options.max_length = 20;
    mb_test_ok(mb_batches_create(shard, &options, &batches));
    for (int64_t s = 0; s < mb_batches_steps(batches); s++) {
        mb_batches_step step = mb_batches_step_get(batches, s);
        before = tokens;
        for (int64_t i = 0; i < step.count; i++) {
            mb_test_ok(mb_batches_sample(batches, step.epoch, step.first + i, &record));
            assert_true(mb_batches_length(batches, record) <= 20);
            tokens += mb_batches_length(batches, record);
        }
    }
    assert_true(tokens >= 1500 && before < 1500);
    mb_batches_destroy(&batches);
    fix_trainer_free(&options);
}

static void test_nothing(void **state)
{
    (void)state;
    mb_trainer_options options = fix_trainer_options();
    mb_batches *batches = NULL;
    options.epochs = 0.001;
    mb_test_fails(mb_batches_create(shard, &options, &batches), MB_EUSAGE, "training.epochs");
    assert_null(batches);
    fix_trainer_free(&options);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_epochs), cmocka_unit_test(test_steps),
                                       cmocka_unit_test(test_subset), cmocka_unit_test(test_max_tokens),
                                       cmocka_unit_test(test_nothing)};
    cmocka_set_message_output(CM_OUTPUT_TAP);
    print_message("# seed 42\n");
    return cmocka_run_group_tests(tests, setup, teardown);
}
