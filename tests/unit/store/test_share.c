/* Shares of some work: what is a share, its units, its names. */
#include "store/store_test.h"

#include "store/share.h"

static void test_parse(void **state)
{
    (void)state;
    static const char *const wrong[] = {"4",   "/",   "1/",  "/4",    "4/4",   "-1/4",
                                        "0/0", "a/4", "0/b", "0/4/2", "1.5/4", " 1/4"};
    mb_share share = {7, 7};
    assert_ok(mb_share_parse(NULL, &share));
    assert_true(mb_share_is_whole(share));
    assert_ok(mb_share_parse("", &share));
    assert_true(mb_share_is_whole(share));
    assert_ok(mb_share_parse("3/4", &share));
    assert_true(share.part == 3 && share.of == 4 && !mb_share_is_whole(share));
    assert_ok(mb_share_parse("0/1", &share));
    assert_false(mb_share_is_whole(share));
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        assert_fails(MB_EUSAGE, mb_share_parse(wrong[i], &share), wrong[i]);
    assert_true(share.part == 0 && share.of == 1);
}

/* Every unit is in one share, for any number of shares; those of a share rise. */
static void test_units(void **state)
{
    (void)state;
    enum { MOST = 23 };
    for (int64_t units = 0; units <= MOST; units++) {
        for (int64_t of = 0; of <= 30; of++) {
            int seen[MOST] = {0};
            for (int64_t part = 0; part < (of > 0 ? of : 1); part++) {
                const mb_share share = {part, of};
                for (int64_t i = 0, last = -1; i < mb_share_count(share, units); i++) {
                    const int64_t unit = mb_share_unit(share, i);
                    assert_true(unit > last && unit < units && (of == 0 || unit % of == part));
                    seen[unit]++;
                    last = unit;
                }
            }
            for (int64_t u = 0; u < units; u++) assert_int_equal(seen[u], 1);
        }
    }
}

static void test_names(void **state)
{
    (void)state;
    char *whole = mb_share_name((mb_share){0}, "done", ".json"),
         *part = mb_share_name((mb_share){2, 10}, "lease", "");
    assert_string_equal(whole, "done.json");
    assert_string_equal(part, "lease-2of10");
    mb_free(whole);
    mb_free(part);
}

int main(void)
{
    cmocka_set_message_output(CM_OUTPUT_TAP);
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_parse), cmocka_unit_test(test_units),
                                       cmocka_unit_test(test_names)};
    return cmocka_run_group_tests(tests, test_setup, test_teardown);
}
