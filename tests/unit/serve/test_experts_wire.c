/* experts_wire, experts_fail: messages come back as they were sent, and anything else is refused; failures
 * on order are read as they are written. */
#include "mb_test.h"

#include "base/clock.h"
#include "serve/experts_fail.h"
#include "serve/experts_wire.h"

static mb_experts_request sample_request(char **choices)
{
    return (mb_experts_request){.ticket = INT64_C(1) << 40,
                                .expert = 7,
                                .prompt = (char *)(uintptr_t) "Question: \xc3\xa4?\nAnswer:",
                                .choices = choices,
                                .choice_count = 3};
}

static void test_request(void **state)
{
    (void)state;
    char *choices[] = {(char *)(uintptr_t) " A", (char *)(uintptr_t) "", (char *)(uintptr_t) " C and more"};
    mb_experts_request request = sample_request(choices), back = {0};
    mb_str bytes = MB_STR_EMPTY;
    mb_test_ok(mb_experts_wire_put_request(&request, &bytes));
    mb_test_ok(mb_experts_wire_get_request(bytes.data, bytes.length, &back));
    assert_true(back.ticket == request.ticket && back.expert == 7 && back.choice_count == 3);
    assert_string_equal(back.prompt, request.prompt);
    for (int i = 0; i < 3; i++) assert_string_equal(back.choices[i], choices[i]);
    mb_experts_wire_reset_request(&back);
    for (size_t n = 0; n < bytes.length; n++) {
        mb_test_fails(mb_experts_wire_get_request(bytes.data, n, &back), MB_EFORMAT, "");
        assert_null(back.prompt);
    }
    mb_test_ok(mb_str_add(&bytes, "x"));
    mb_test_fails(mb_experts_wire_get_request(bytes.data, bytes.length, &back), MB_EFORMAT, "too long");
    mb_str_destroy(&bytes);
}

static void test_answer(void **state)
{
    (void)state;
    float loglik[] = {-1.5f, -INFINITY, 3e-30f};
    mb_experts_answer answer = {.ticket = 3,
                                .expert = 1,
                                .how = MB_EXPERTS_DONE,
                                .loglik = loglik,
                                .choices = 3,
                                .tokens = 99,
                                .batch = 4,
                                .queued = 0.25,
                                .compute = 1e-7},
                      back = {0};
    mb_str bytes = MB_STR_EMPTY;
    mb_test_ok(mb_experts_wire_put_answer(&answer, &bytes));
    mb_test_ok(mb_experts_wire_get_answer(bytes.data, bytes.length, &back));
    assert_true(back.ticket == 3 && back.expert == 1 && back.how == MB_EXPERTS_DONE && back.tokens == 99 &&
                back.batch == 4 && back.queued == 0.25 && back.compute == 1e-7 && back.choices == 3);
    assert_memory_equal(back.loglik, loglik, sizeof loglik);
    assert_null(back.text);
    mb_experts_wire_reset_answer(&back);
    for (size_t n = 0; n < bytes.length; n++)
        mb_test_fails(mb_experts_wire_get_answer(bytes.data, n, &back), MB_EFORMAT, "");
    bytes.data[16] = 9; /* how */
    mb_test_fails(mb_experts_wire_get_answer(bytes.data, bytes.length, &back), MB_EFORMAT, "unknown kind");
    mb_str_reset(&bytes);
    answer = (mb_experts_answer){.how = MB_EXPERTS_FAILED, .text = (char *)(uintptr_t) ""};
    mb_test_ok(mb_experts_wire_put_answer(&answer, &bytes));
    mb_test_ok(mb_experts_wire_get_answer(bytes.data, bytes.length, &back));
    assert_true(back.how == MB_EXPERTS_FAILED && back.choices == 0);
    assert_string_equal(back.text, "");
    mb_experts_wire_reset_answer(&back);
    mb_str_destroy(&bytes);
}

/* No bytes make it read outside them. */
static void test_noise(void **state)
{
    (void)state;
    uint32_t x = 12345;
    print_message("# seed 12345\n");
    for (int round = 0; round < 20000; round++) {
        unsigned char bytes[96];
        mb_experts_request request = {0};
        mb_experts_answer answer = {0};
        const size_t n = (x >> 8) % sizeof bytes;
        for (size_t i = 0; i < n; i++) {
            x = x * 1664525u + 1013904223u;
            bytes[i] = (x >> 28) < 12 ? 0 : (unsigned char)(x >> 20);
        }
        x = x * 1664525u + 1013904223u;
        if (mb_experts_wire_get_request(bytes, n, &request) == MB_OK) mb_experts_wire_reset_request(&request);
        if (mb_experts_wire_get_answer(bytes, n, &answer) == MB_OK) mb_experts_wire_reset_answer(&answer);
    }
}

static void test_fail_read(void **state)
{
    (void)state;
    static const char *const names[] = {"a", "expert_2", "b"};
    mb_experts_fail fail = {0};
    mb_test_ok(mb_experts_fail_read("infer.fail", NULL, names, 3, &fail));
    assert_int_equal(fail.count, 0);
    mb_experts_fail_reset(&fail);
    mb_test_ok(mb_experts_fail_read("infer.fail", "expert_2:die@10,b:sleep=2.5,a:sleep=1@4-6,a:sleep=0@9",
                                    names, 3, &fail));
    assert_int_equal(fail.count, 4);
    assert_true(fail.rule[0].dies && fail.rule[0].expert == 1 && fail.rule[0].first == 10);
    assert_true(!fail.rule[1].dies && fail.rule[1].expert == 2 && fail.rule[1].seconds == 2.5 &&
                fail.rule[1].first == 1 && fail.rule[1].last == INT64_MAX);
    assert_true(fail.rule[2].expert == 0 && fail.rule[2].first == 4 && fail.rule[2].last == 6);
    assert_true(fail.rule[3].first == 9 && fail.rule[3].last == INT64_MAX);
    mb_experts_fail_reset(&fail);
    static const char *const wrong[] = {"expert:die@1", "a",           "a:die",      "a:die@0",
                                        "a:die@x",      "a:sleep=x",   "a:sleep=-1", "a:sleep=1@5-4",
                                        "a:sleep=1@0",  "a:sleep=1@-", "a:falls@3",  "a:die@1-4"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        mb_test_fails(mb_experts_fail_read("infer.fail", wrong[i], names, 3, &fail), MB_EUSAGE,
                      "infer.fail, '");
        assert_null(fail.rule);
    }
}

/* It sleeps for the requests it is about, and for no others. */
static void test_fail_run(void **state)
{
    (void)state;
    static const char *const names[] = {"a", "b"};
    mb_experts_fail fail = {0};
    mb_test_ok(mb_experts_fail_read("infer.fail", "a:sleep=0.06@5-8", names, 2, &fail));
    const struct {
        int64_t expert, first, count;
        bool sleeps;
    } table[] = {{0, 1, 4, false}, {0, 1, 5, true}, {0, 8, 3, true}, {0, 9, 3, false}, {1, 5, 4, false}};
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        const double since = mb_clock_seconds();
        mb_experts_fail_run(&fail, table[i].expert, table[i].first, table[i].count);
        assert_int_equal(mb_clock_seconds() - since >= 0.06, table[i].sleeps);
    }
    mb_experts_fail_reset(&fail);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_request),   cmocka_unit_test(test_answer),   cmocka_unit_test(test_noise),
        cmocka_unit_test(test_fail_read), cmocka_unit_test(test_fail_run),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, mb_test_teardown);
}
