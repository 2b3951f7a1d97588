/* test_schedule: learning rates against transformers, and the opening of the trash experts. */
#include "mb_test.h"

#include "learn/schedule.h"
#include "store/h5.h"

static void test_against_transformers(void **state)
{
    (void)state;
    static const char *const names[] = {"linear", "cosine", "constant"};
    mb_h5 *file = NULL;
    mb_test_ok(mb_h5_open("tests/golden/losses/losses.h5", &file));
    for (int i = 0; i < 3; i++) {
        mb_schedule schedule;
        char path[32];
        int dims;
        int64_t shape[MB_TENSOR_MAX_DIMS];
        double *factors = NULL;
        snprintf(path, sizeof path, "/schedule/%s", names[i]);
        mb_test_ok(mb_h5_read_new(file, path, MB_F64, &dims, shape, (void **)&factors));
        mb_test_ok(mb_schedule_init(&schedule, names[i], 6, 0, shape[0]));
        for (int64_t s = 0; s < shape[0]; s++)
            mb_test_near_abs(mb_schedule_factor(&schedule, s), factors[s], 1e-12, 1e-15);
        mb_free(factors);
    }
    mb_h5_destroy(&file);
}

static void test_warmup_ratio(void **state)
{
    (void)state;
    static const struct {
        int64_t steps, total;
        double ratio;
        int64_t expected;
    } rows[] = {{0, 100, 0, 0}, {0, 100, 0.03, 3}, {0, 101, 0.03, 4}, {7, 100, 0.5, 7}, {0, 1, 1, 1}};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        mb_schedule schedule;
        mb_test_ok(mb_schedule_init(&schedule, "cosine", rows[i].steps, rows[i].ratio, rows[i].total));
        assert_int_equal(schedule.warmup, rows[i].expected);
        for (int64_t s = 0; s < rows[i].total; s++)
            assert_true(mb_schedule_factor(&schedule, s) >= 0 && mb_schedule_factor(&schedule, s) <= 1);
    }
    mb_schedule schedule;
    mb_test_fails(mb_schedule_init(&schedule, "exponential", 0, 0, 10), MB_EUSAGE, "exponential");
}

static void test_trash_opening(void **state)
{
    (void)state;
    assert_true(mb_schedule_trash_bias(-20, 0, 10) == -20);
    assert_true(mb_schedule_trash_bias(-20, 10, 10) == 0 && mb_schedule_trash_bias(-20, 11, 10) == 0);
    double before = -20, ratio = 0;
    for (int64_t s = 1; s <= 10; s++) {
        double now = mb_schedule_trash_bias(-20, s, 10);
        assert_true(now > before);
        if (s > 1) mb_test_near((1 - now) / (1 - before), ratio, 1e-9);
        ratio = (1 - now) / (1 - before);
        before = now;
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_against_transformers),
                                       cmocka_unit_test(test_warmup_ratio),
                                       cmocka_unit_test(test_trash_opening)};
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, mb_test_teardown);
}
