/* test_stop: the flag, signals that set it, and when the job ends. */
#include "mb_test.h"

#include <signal.h>

#include "base/stop.h"

static int clear(void **state)
{
    (void)state;
    mb_stop_reset();
    unsetenv("MB_END_TIME");
    unsetenv("SLURM_JOB_END_TIME");
    return 0;
}

static void test_flag(void **state)
{
    (void)state;
    static const int numbers[] = {SIGUSR2, SIGTERM, SIGINT};
    assert_false(mb_stop_is_set());
    mb_stop_request();
    assert_true(mb_stop_is_set());
    mb_stop_install();
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        mb_stop_reset();
        assert_false(mb_stop_is_set());
        raise(numbers[i]);
        assert_true(mb_stop_is_set());
    }
}

static void test_deadline(void **state)
{
    (void)state;
    assert_true(mb_stop_deadline() == 0);
    setenv("SLURM_JOB_END_TIME", "1700000000", 1);
    assert_true(mb_stop_deadline() == 1700000000);
    setenv("MB_END_TIME", "", 1);
    assert_true(mb_stop_deadline() == 1700000000);
    setenv("MB_END_TIME", "1800000000.5", 1);
    assert_true(mb_stop_deadline() == 1800000000.5);
    static const char *const bad[] = {"UNLIMITED", "-5", "12 h", "nan", "inf", " 1800000000", "1e999"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        setenv("MB_END_TIME", bad[i], 1);
        assert_true(mb_stop_deadline() == 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_flag, clear, clear),
        cmocka_unit_test_setup_teardown(test_deadline, clear, clear),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, mb_test_teardown);
}
