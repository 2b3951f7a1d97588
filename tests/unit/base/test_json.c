/* test_json: errors with places, members, numbers beyond 64 bits, printing. */
#include "mb_test.h"

#include "base/json.h"

static json_t *parse(const char *text)
{
    json_t *json = NULL;
    mb_test_ok(mb_json_parse(text, strlen(text), "test", &json));
    return json;
}

static void test_places(void **state)
{
    (void)state;
    static const struct {
        const char *text, *place;
    } rows[] = {{"{\n \"a\": 1,\n}", "f.json:3:"},
                {"{\"a\": 1, \"a\": 2}", "f.json:1:"},
                {"[1] 2", "f.json:1:"},
                {"[NaN]", "f.json:1:"},
                {"[\"\xC3(\"]", "f.json:1:"},
                {"", "f.json:1:"},
                {"[1e999]", "f.json:1:"},
                {"{\"a\":\n\n[1,", "f.json:3:"}};
    json_t *json = NULL;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        mb_test_fails(mb_json_parse(rows[i].text, strlen(rows[i].text), "f.json", &json), MB_EFORMAT,
                      rows[i].place);
        assert_null(json);
    }
    char *folder = mb_test_folder_make(),
         *path = mb_test_write(folder, "g.json", "{\"a\": [1,\n2,\n\n oops]}");
    char *place = mb_str_format("%s:4:5: ", path);
    mb_test_fails(mb_json_read(path, &json), MB_EFORMAT, place);
    mb_test_fails(mb_json_read("/nowhere/x.json", &json), MB_ENOTFOUND, "/nowhere/x.json");
    mb_free(place);
    mb_free(path);
    mb_test_folder_remove(&folder);
}

static void test_wide_numbers(void **state)
{
    (void)state;
    json_t *json = parse("{\"a\": 1000000000000000019884624838656, \"b\": [-99999999999999999999, 7], "
                         "\"c\": \"\\\"12345678901234567890123\", \"d\": 1.12345678901234567890123e2, \"e\": "
                         "9223372036854775807}");
    double real = 0;
    int64_t whole = 0;
    mb_test_ok(mb_json_get_real(json, "a", "test", &real));
    assert_true(real == 1e30);
    mb_test_fails(mb_json_get_int(json, "a", "test", &whole), MB_EFORMAT, "'a' is a real number");
    assert_true(json_real_value(json_array_get(json_object_get(json, "b"), 0)) == -1e20);
    assert_int_equal(json_integer_value(json_array_get(json_object_get(json, "b"), 1)), 7);
    assert_string_equal(json_string_value(json_object_get(json, "c")), "\"12345678901234567890123");
    mb_test_ok(mb_json_get_real(json, "d", "test", &real));
    mb_test_near(real, 112.34567890123457, 1e-15);
    mb_test_ok(mb_json_get_real(json, "e", "test", &real));
    mb_test_near(real, 9223372036854775807.0, 1e-9);
    json_decref(json);
}

static void test_members(void **state)
{
    (void)state;
    json_t *json = parse("{\"s\": \"x\", \"i\": 3, \"r\": 2.5, \"b\": true, \"a\": [1], \"o\": {}, \"n\": "
                         "null, \"z\": \"a\\u0000b\"}");
    const char *text = "old";
    int64_t whole = 1;
    double real = 1;
    bool flag = false;
    json_t *inner = NULL;
    mb_test_ok(mb_json_opt_string(json, "none", "test", &text));
    mb_test_ok(mb_json_opt_string(json, "n", "test", &text));
    mb_test_ok(mb_json_opt_int(json, "none", "test", &whole));
    mb_test_ok(mb_json_opt_real(json, "n", "test", &real));
    mb_test_ok(mb_json_opt_bool(json, "n", "test", &flag));
    assert_string_equal(text, "old");
    assert_true(whole == 1 && real == 1 && !flag);
    mb_test_ok(mb_json_get_string(json, "s", "test", &text));
    mb_test_ok(mb_json_get_int(json, "i", "test", &whole));
    mb_test_ok(mb_json_get_real(json, "i", "test", &real)); /* a whole number is a real, too */
    assert_true(real == 3);
    mb_test_ok(mb_json_get_real(json, "r", "test", &real));
    mb_test_ok(mb_json_get_bool(json, "b", "test", &flag));
    assert_string_equal(text, "x");
    assert_true(whole == 3 && real == 2.5 && flag);
    mb_test_ok(mb_json_get_array(json, "a", "test", &inner));
    mb_test_ok(mb_json_get_object(json, "o", "test", &inner));
    mb_test_fails(mb_json_get_string(json, "none", "c.json", &text), MB_EFORMAT, "c.json: 'none' is missing");
    mb_test_fails(mb_json_get_int(json, "n", "c.json", &whole), MB_EFORMAT, "'n' is missing");
    mb_test_fails(mb_json_get_int(json, "r", "c.json", &whole), MB_EFORMAT,
                  "'r' is a real number, expected a whole number");
    mb_test_fails(mb_json_opt_int(json, "s", "c.json", &whole), MB_EFORMAT, "'s' is a string");
    mb_test_fails(mb_json_opt_bool(json, "i", "c.json", &flag), MB_EFORMAT, "true or false");
    mb_test_fails(mb_json_opt_real(json, "o", "c.json", &real), MB_EFORMAT, "an object");
    mb_test_fails(mb_json_opt_string(json, "i", "c.json", &text), MB_EFORMAT, "expected a string");
    mb_test_fails(mb_json_get_string(json, "z", "c.json", &text), MB_EFORMAT, "zero byte");
    mb_test_fails(mb_json_get_array(json, "o", "c.json", &inner), MB_EFORMAT, "an array");
    mb_test_fails(mb_json_get_object(json, "a", "c.json", &inner), MB_EFORMAT, "an object");
    mb_test_fails(mb_json_get_int(json_object_get(json, "a"), "x", "c.json", &whole), MB_EFORMAT, "c.json");
    json_decref(json);
}

static void test_printing(void **state)
{
    (void)state;
    json_t *json = json_object(), *again = NULL;
    mb_str s = MB_STR_EMPTY;
    mb_test_ok(mb_json_set(json, "z", json_real(0.1)));
    mb_test_ok(mb_json_set(json, "a", json_integer(-5)));
    mb_test_ok(mb_json_set(json, "t", json_string("\xC3\xA4\n")));
    mb_test_fails(mb_json_set(json, "bad", json_string("\xFF")), MB_ENOMEM, "'bad'");
    mb_test_ok(mb_json_print(json, 0, false, &s));
    assert_string_equal(s.data, "{\"z\": 0.10000000000000001, \"a\": -5, \"t\": \"\xC3\xA4\\n\"}");
    mb_str_reset(&s);
    mb_test_ok(mb_json_print(json, 2, true, &s));
    assert_true(mb_str_is_prefix(s.data, "{\n  \"a\": -5,\n"));
    char *folder = mb_test_folder_make(), *path = mb_test_path(folder, "j.json");
    mb_test_ok(mb_json_write(path, json, 1, false));
    mb_test_ok(mb_json_read(path, &again));
    assert_true(json_equal(json, again));
    mb_str_reset(&s);
    mb_test_ok(mb_files_read(path, 0, &s));
    assert_true(mb_str_is_suffix(s.data, "}\n"));
    mb_free(path);
    mb_test_folder_remove(&folder);
    json_decref(again);
    json_decref(json);
    mb_str_destroy(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_places),
        cmocka_unit_test(test_wide_numbers),
        cmocka_unit_test(test_members),
        cmocka_unit_test(test_printing),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, mb_test_teardown);
}
