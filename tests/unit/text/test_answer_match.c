/* answer_match: normalised texts, last numbers, and what is equal to what. */
#include "mb_test.h"

#include "text/answer_match.h"

static void test_text(void **state)
{
    static const struct {
        const char *text, *expected;
    } rows[] = {
        {"", ""},
        {"  Paris.\n", "paris"},
        {"PARIS", "paris"},
        {"the  cat\t\nsat .", "the cat sat"}, /* the space before the mark goes with it */
        {"well... then?!", "well... then"},
        {"...", ""},
        {"3.5", "3.5"},
        {"Stra\xC3\x9F"
         "e",
         "strasse"}, /* full case folding */
        {"\xC3\x89t\xC3\xA9", "\xC3\xA9t\xC3\xA9"},
        {"E\xCC\x81t\xC3\xA9", "\xC3\xA9t\xC3\xA9"}, /* combining accent */
        {"\xC2\xA0yes\xE3\x80\x82", "yes"},          /* no-break space, ideographic full stop */
        {"a\xE3\x80\x80"
         "b",
         "a b"},
        {"\"yes\"", "\"yes\""},
        {"50 %", "50 %"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        mb_str s = MB_STR_EMPTY;
        mb_test_ok(mb_str_add(&s, "> "));
        mb_test_ok(mb_answer_match_text(rows[i].text, strlen(rows[i].text), &s));
        if (strcmp(mb_str_text(&s) + 2, rows[i].expected) != 0)
            fail_msg("row %zu: '%s', expected '%s'", i, mb_str_text(&s) + 2, rows[i].expected);
        mb_str_destroy(&s);
    }
    mb_str s = MB_STR_EMPTY;
    mb_test_fails(mb_answer_match_text("a\xFF", 2, &s), MB_EDATA, "no text");
    mb_str_destroy(&s);
}

static void test_number(void **state)
{
    static const struct {
        const char *text, *expected; /* NULL: there is none */
    } rows[] = {
        {"5", "5"},
        {"no number", NULL},
        {"", NULL},
        {"It is 3, then 4.", "4"},
        {"$1,250.50", "1250.5"},
        {"#### 72", "72"},
        {"1,2", "2"}, /* a list */
        {"12,3456", "3456"},
        {"007.10", "7.1"},
        {"0.0", "0"},
        {"-0", "0"},
        {"x = -3", "-3"},
        {"-3.250", "-3.25"},
        {"7-3", "3"},
        {"item-3", "3"},
        {"5.", "5"},
        {".5", "5"},
        {"1.000,5", "5"},
        {"1,000,000 people", "1000000"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        mb_str s = MB_STR_EMPTY;
        bool has = false;
        mb_test_ok(mb_answer_match_number(rows[i].text, strlen(rows[i].text), &s, &has));
        if (has != (rows[i].expected != NULL) || (has && strcmp(mb_str_text(&s), rows[i].expected) != 0))
            fail_msg("row %zu: '%s', expected '%s'", i, has ? mb_str_text(&s) : "none",
                     rows[i].expected != NULL ? rows[i].expected : "none");
        mb_str_destroy(&s);
    }
}

static bool is_equal(mb_answer_match match, const char *expected, const char *answer)
{
    bool equal = false;
    mb_test_ok(mb_answer_match_check(match, expected, strlen(expected), answer, strlen(answer), &equal));
    return equal;
}

static void test_check(void **state)
{
    (void)state;
    bool equal;
    mb_answer_match match;
    assert_true(is_equal(MB_ANSWER_MATCH_TEXT, "Red", " red.\n"));
    assert_false(is_equal(MB_ANSWER_MATCH_TEXT, "Red", "red or blue"));
    assert_false(is_equal(MB_ANSWER_MATCH_TEXT, "red", ""));
    assert_true(is_equal(MB_ANSWER_MATCH_NUMBER, "It is 5.0", "2 + 3 = 5"));
    assert_false(is_equal(MB_ANSWER_MATCH_NUMBER, "5", "five"));
    assert_false(is_equal(MB_ANSWER_MATCH_NUMBER, "5", "-5"));
    mb_test_fails(mb_answer_match_check(MB_ANSWER_MATCH_NUMBER, "five", 4, "5", 1, &equal), MB_EDATA,
                  "holds no number");
    mb_test_ok(mb_answer_match_parse("number", &match));
    assert_string_equal(mb_answer_match_name(match), "number");
    mb_test_fails(mb_answer_match_parse("letters", &match), MB_EUSAGE, "letters");
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_text), cmocka_unit_test(test_number),
                                       cmocka_unit_test(test_check)};
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, mb_test_teardown);
}
