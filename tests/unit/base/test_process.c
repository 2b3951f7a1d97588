/* test_process: clock, stop flag, version. */
#include "mb_test.h"

#include <signal.h>
#include <sys/wait.h>

#include "base/clock.h"
#include "base/stop.h"
#include "base/version_info.h"

static void test_clock(void **state)
{
    (void)state;
    double before = mb_clock_seconds();
    usleep(20000);
    double passed = mb_clock_seconds() - before;
    assert_true(passed >= 0.02 && passed < 60);
    char text[32];
    mb_clock_iso(text);
    assert_int_equal(strlen(text), 20);
    assert_true(text[4] == '-' && text[10] == 'T' && text[13] == ':' && text[19] == 'Z' &&
                strcmp(text, "2025") > 0);
    assert_true(strlen(mb_version_source()) > 0);
}

static void test_flag(void **state)
{
    (void)state;
    static const int signals[] = {SIGUSR2, SIGTERM, SIGINT};
    mb_stop_install();
    assert_false(mb_stop_is_set());
    for (int i = 0; i < 3; i++) {
        raise(signals[i]);
        assert_true(mb_stop_is_set());
        mb_stop_reset();
        assert_false(mb_stop_is_set());
    }
    mb_stop_request();
    assert_true(mb_stop_is_set());
    mb_stop_reset();
}

/* TERM never ends the process, one INT does not, a second INT does. */
static void test_second_interrupt(void **state)
{
    (void)state;
    fflush(NULL);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        mb_stop_install();
        raise(SIGTERM);
        raise(SIGTERM);
        raise(SIGINT);
        if (!mb_stop_is_set()) _exit(7);
        raise(SIGINT);
        _exit(8);
    }
    int result = 0;
    assert_int_equal(waitpid(child, &result, 0), child);
    assert_true(WIFSIGNALED(result));
    assert_int_equal(WTERMSIG(result), SIGINT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_clock),
        cmocka_unit_test(test_flag),
        cmocka_unit_test(test_second_interrupt),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, mb_test_teardown);
}
