/* test_str: growing, distance, parsers, UTF-8. */
#include "mb_test.h"

#include "base/str.h"

static void test_growing(void **state)
{
    (void)state;
    mb_str s = MB_STR_EMPTY;
    assert_string_equal(mb_str_text(&s), "");
    for (int i = 0; i < 500; i++) mb_test_ok(mb_str_add_format(&s, "%d,", i));
    assert_int_equal(s.length, 10 * 2 + 90 * 3 + 400 * 4);
    assert_true(mb_str_is_prefix(s.data, "0,1,2,") && mb_str_is_suffix(s.data, ",498,499,"));
    mb_str_reset(&s);
    assert_string_equal(mb_str_text(&s), "");
    mb_test_ok(mb_str_append(&s, "a\0b", 3));
    assert_int_equal(s.length, 3);
    assert_memory_equal(s.data, "a\0b", 4);
    char *taken = mb_str_take(&s);
    assert_null(s.data);
    mb_free(taken);
    taken = mb_str_take(&s);
    assert_string_equal(taken, "");
    mb_free(taken);
    mb_test_fails(mb_str_reserve(&s, SIZE_MAX - 1), MB_ENOMEM, "too large");
    char *path = mb_str_format("%s/%03d", "a", 7);
    assert_string_equal(path, "a/007");
    mb_free(path);
    mb_str_destroy(&s);
    assert_true(mb_str_equal(NULL, NULL) && !mb_str_equal(NULL, "") && mb_str_equal("a", "a") &&
                !mb_str_equal("a", "b"));
    assert_false(mb_str_is_suffix("a", "ba"));
}

static void test_distance(void **state)
{
    (void)state;
    static const struct {
        const char *a, *b;
        int distance;
    } rows[] = {{"", "", 0},
                {"", "abc", 3},
                {"kitten", "sitting", 3},
                {"ab", "ba", 1},
                {"abcd", "acbd", 1},
                {"ca", "abc", 3},
                {"lanes", "lanes", 0},
                {"lnaes", "lanes", 1},
                {"reduce", "reuce", 1},
                {"reduce", "redduce", 1}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        assert_int_equal(mb_str_distance(rows[i].a, rows[i].b), rows[i].distance);
        assert_int_equal(mb_str_distance(rows[i].b, rows[i].a), rows[i].distance);
    }
    char longer[600];
    memset(longer, 'x', sizeof longer - 1);
    longer[sizeof longer - 1] = 0;
    assert_true(mb_str_distance(longer, "x") > 200);
    const char *const names[] = {"alpha", "beta", "training.lanes"};
    assert_string_equal(mb_str_nearest("traning.lanes", names, 3), "training.lanes");
    assert_string_equal(mb_str_nearest("bet", names, 3), "beta");
    assert_null(mb_str_nearest("zzzzzz", names, 3));
    assert_null(mb_str_nearest("beta", names, 0));
}

static void test_ints(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        int64_t value;
    } good[] = {{"0", 0},           {"-7", -7},        {"+12", 12},
                {"1e6", 1000000},   {"64k", 64000},    {"2M", 2000000},
                {"1G", 1000000000}, {"1.5M", 1500000}, {"1e+3", 1000},
                {"12.0", 12},       {"0e99", 0},       {"-9223372036854775808", INT64_MIN},
                {"007", 7},         {"1.50e1", 15},    {"9223372036854775807", INT64_MAX}};
    static const char *const bad[] = {"",   "-",  "k",    "1x",  "1.5",   "1e",  "1e-3",
                                      " 1", "1 ", "0x10", "1kk", "1e6k1", "nan", "."};
    static const char *const large[] = {"9223372036854775808", "-9223372036854775809", "1e19",
                                        "99999999999999999999", "1e999999999"};
    int64_t value = 0;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        mb_test_ok(mb_str_parse_int(good[i].text, &value));
        assert_true(value == good[i].value);
    }
    value = 42;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        mb_test_fails(mb_str_parse_int(bad[i], &value), MB_EUSAGE, bad[i]);
    for (size_t i = 0; i < sizeof large / sizeof *large; i++) {
        mb_test_fails(mb_str_parse_int(large[i], &value), MB_ERANGE, large[i]);
    }
    assert_int_equal(value, 42);
}

static void test_reals_and_bools(void **state)
{
    (void)state;
    static const char *const bad[] = {"",   "nan", "inf", "0x1p3", "1e",  "1.0.0",
                                      " 1", "1 ",  "-",   ".",     "1,5", "-0x1"};
    double value = 0;
    mb_test_ok(mb_str_parse_real("5e-5", &value));
    assert_true(value == 5e-5);
    mb_test_ok(mb_str_parse_real("-.25", &value));
    assert_true(value == -0.25);
    mb_test_ok(mb_str_parse_real("3", &value));
    assert_true(value == 3);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        mb_test_fails(mb_str_parse_real(bad[i], &value), MB_EUSAGE, "number");
    mb_test_fails(mb_str_parse_real("1e999", &value), MB_ERANGE, "1e999");
    assert_true(value == 3);
    bool flag = false;
    static const char *const yes[] = {"true", "YES", "on", "1"}, *const no[] = {"false", "No", "off", "0"};
    for (int i = 0; i < 4; i++) {
        mb_test_ok(mb_str_parse_bool(yes[i], &flag));
        assert_true(flag);
        mb_test_ok(mb_str_parse_bool(no[i], &flag));
        assert_false(flag);
    }
    mb_test_fails(mb_str_parse_bool("maybe", &flag), MB_EUSAGE, "maybe");
}

/* Encode a code point without any check. */
static size_t encode(uint32_t c, unsigned char out[4])
{
    if (c < 0x80) return out[0] = (unsigned char)c, 1;
    if (c < 0x800)
        return out[0] = (unsigned char)(0xC0 | c >> 6), out[1] = (unsigned char)(0x80 | (c & 63)), 2;
    if (c < 0x10000) {
        out[0] = (unsigned char)(0xE0 | c >> 12);
        out[1] = (unsigned char)(0x80 | (c >> 6 & 63));
        out[2] = (unsigned char)(0x80 | (c & 63));
        return 3;
    }
    out[0] = (unsigned char)(0xF0 | c >> 18);
    out[1] = (unsigned char)(0x80 | (c >> 12 & 63));
    out[2] = (unsigned char)(0x80 | (c >> 6 & 63));
    out[3] = (unsigned char)(0x80 | (c & 63));
    return 4;
}

static void test_utf8(void **state)
{
    (void)state;
    unsigned char bytes[4];
    for (uint32_t c = 0; c < 0x150000; c++) {
        size_t n = encode(c, bytes);
        bool valid = c <= 0x10FFFF && !(c >= 0xD800 && c <= 0xDFFF);
        if (mb_str_is_utf8(bytes, n, NULL) != valid) fail_msg("code point %x", c);
        if (n > 1 && mb_str_is_utf8(bytes, n - 1, NULL)) fail_msg("code point %x, cut", c);
    }
    static const char *const bad[] = {
        "\xC0\x80", "\xC1\xBF",     "\xE0\x80\x80",     "\xE0\x9F\xBF", "\xF0\x8F\xBF\xBF",
        "\x80",     "\xBF",         "\xF5\x80\x80\x80", "\xFF",         "\xFE",
        "\xC3(",    "\xE2\x28\xA1", "\xE2\x82("};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char text[16];
        size_t at = 99;
        snprintf(text, sizeof text, "ok\xC3\xA4%s", bad[i]);
        assert_false(mb_str_is_utf8(text, strlen(text), &at));
        assert_int_equal(at, 4);
    }
    assert_true(mb_str_is_utf8("a\0b", 3, NULL));
    assert_true(mb_str_is_utf8("", 0, NULL));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_growing),         cmocka_unit_test(test_distance), cmocka_unit_test(test_ints),
        cmocka_unit_test(test_reals_and_bools), cmocka_unit_test(test_utf8),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, mb_test_teardown);
}
