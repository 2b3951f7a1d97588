/* test_status: names, exit codes, message, trace, and that threads do not share the record. */
#include "mb_test.h"

#include <pthread.h>

static void test_codes(void **state)
{
    (void)state;
    for (int i = 0; i < MB_STATUS_COUNT; i++) {
        assert_true(strlen(mb_status_name((mb_status)i)) > 0);
        int code = mb_status_exit_code((mb_status)i);
        assert_true(code == 0 || code == 1 || code == 2 || code == 3 || code == 75);
        assert_int_equal(code == 0, i == MB_OK);
    }
    assert_int_equal(mb_status_exit_code(MB_EUSAGE), 2);
    assert_int_equal(mb_status_exit_code(MB_EFORMAT), 3);
    assert_int_equal(mb_status_exit_code(MB_EUNSUPPORTED), 3);
    assert_int_equal(mb_status_exit_code(MB_ENOMEM), 1);
    assert_int_equal(mb_status_exit_code(MB_ESTOPPED), 75);
    assert_string_equal(mb_status_name((mb_status)99), "unknown status");
}

static mb_status inner(int x)
{
    mb_status status = MB_OK;
    if (x > 3) MB_RAISE(MB_EDATA, "x is %d; make it smaller", x);
done:
    return status;
}

static mb_status outer(int x)
{
    mb_status status = MB_OK;
    MB_TRY(inner(x));
done:
    return status;
}

static void test_record(void **state)
{
    (void)state;
    assert_int_equal(outer(3), MB_OK);
    assert_int_equal(outer(4), MB_EDATA);
    assert_string_equal(mb_status_message(), "x is 4; make it smaller");
    const char *first = strstr(mb_status_trace_text(), "  at inner (tests/");
    const char *second = strstr(mb_status_trace_text(), "  at outer (tests/");
    assert_true(first != NULL && second > first);
    mb_status_prefix("file %s: ", "a.json");
    assert_string_equal(mb_status_message(), "file a.json: x is 4; make it smaller");
    mb_fail(MB_EIO, "again: %s", mb_status_message()); /* the old message as an argument */
    assert_string_equal(mb_status_message(), "again: file a.json: x is 4; make it smaller");
    assert_null(strstr(mb_status_trace_text(), "outer"));
    mb_status_reset();
    assert_string_equal(mb_status_message(), "");
    assert_string_equal(mb_status_trace_text(), "");
}

static void test_long_messages(void **state)
{
    (void)state;
    mb_fail(MB_EIO, "%05000d", 7);
    size_t n = strlen(mb_status_message());
    assert_true(n > 1000 && n < 5000);
    mb_status_prefix("%05000d", 8);
    assert_true(strlen(mb_status_message()) < 5000);
    for (int i = 0; i < 1000; i++) mb_status_trace(MB_EIO, "f", "file.c", i);
    assert_true(strlen(mb_status_trace_text()) < 10000);
    mb_status_reset();
}

static void *other_thread(void *record)
{
    mb_fail(MB_EIO, "from another thread");
    *(size_t *)record = strlen(mb_status_message());
    return NULL;
}

static void test_threads(void **state)
{
    (void)state;
    pthread_t thread;
    size_t length = 0;
    mb_fail(MB_EDATA, "mine");
    assert_int_equal(pthread_create(&thread, NULL, other_thread, &length), 0);
    assert_int_equal(pthread_join(thread, NULL), 0);
    assert_int_equal(length, strlen("from another thread"));
    assert_string_equal(mb_status_message(), "mine");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_codes),
        cmocka_unit_test(test_record),
        cmocka_unit_test(test_long_messages),
        cmocka_unit_test(test_threads),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, mb_test_teardown);
}
