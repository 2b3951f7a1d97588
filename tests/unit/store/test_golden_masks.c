/* Ids and loss masks of TRL and of LLaMA-Factory for chats, tool calls and preference pairs
 * (tests/golden/masks, made by check_masks.py --write) against those of sharding. */
#include "base/memory.h"
#include "store/shard_maker.h"
#include "store/store_test.h"

static void check_side(const mb_shard_side *side, const json_t *wanted, const char *name, size_t record,
                       int s)
{
    const json_t *ids = json_object_get(wanted, "ids");
    const char *mask = json_string_value(json_object_get(wanted, "mask"));
    if (side->ids.count != (int64_t)json_array_size(ids))
        fail_msg("%s, record %zu, side %d: %lld tokens where there should be %zu", name, record, s,
                 (long long)side->ids.count, json_array_size(ids));
    for (int64_t t = 0; t < side->ids.count; t++) {
        const json_int_t id = json_integer_value(json_array_get(ids, (size_t)t));
        if (side->ids.data[t] != id || side->mask[t] != mask[t] - '0')
            fail_msg("%s, record %zu, side %d, token %lld: id %u, mask %d where there should be %lld, %c",
                     name, record, s, (long long)t, side->ids.data[t], side->mask[t], (long long)id, mask[t]);
    }
}

/* One case; returns how many sides it compared. */
static int check_case(const json_t *one)
{
    int compared = 0;
    int64_t n;
    char *tokenizer =
        mb_str_format("tests/golden/masks/%s", json_string_value(json_object_get(one, "tokenizer")));
    const char *name = json_string_value(json_object_get(one, "case"));
    mb_shard_build_options options = {0};
    const mb_option *table = mb_shard_build_option_table(&n);
    assert_ok(mb_option_defaults(&(mb_option_table){.options = table, .count = n, .target = &options}));
    options.tokenizer_path = tokenizer;
    const char *form = json_string_value(json_object_get(one, "form"));
    const bool is_pairs = strcmp(form, "pair") == 0;
    char *owned_form = mb_strdup(form);
    const mb_shard_input input = {.form = owned_form};
    mb_template *tmpl = NULL;
    mb_shard_maker maker = {0};
    assert_ok(mb_template_open("conf/template", json_string_value(json_object_get(one, "template")), &tmpl));
    assert_ok(mb_shard_maker_open(&options, is_pairs, &maker));
    const json_t *records = json_object_get(one, "records");
    assert_true(json_array_size(records) > 0);
    for (size_t r = 0; r < json_array_size(records); r++) {
        const json_t *record = json_array_get(records, r), *sides = json_object_get(record, "sides");
        assert_ok(mb_shard_maker_make(&maker, &input, tmpl, json_object_get(record, "record")));
        assert_int_equal(json_array_size(sides), is_pairs ? 2 : 1);
        for (size_t s = 0; s < json_array_size(sides); s++, compared++)
            check_side(&maker.sides[s], json_array_get(sides, s), name, r, (int)s);
    }
    mb_shard_maker_close(&maker);
    mb_template_close(&tmpl);
    mb_free(owned_form);
    mb_option_free(&(mb_option_table){.options = table, .count = n, .target = &options});
    return compared;
}

static void check_all(const char *references)
{
    json_t *cases = NULL;
    int compared = 0;
    assert_ok(mb_json_read("tests/golden/masks/masks.json", &cases));
    for (size_t i = 0; i < json_array_size(cases); i++) {
        const json_t *one = json_array_get(cases, i);
        if (mb_str_is_prefix(json_string_value(json_object_get(one, "case")), references))
            compared += check_case(one);
    }
    json_decref(cases);
    if (compared < 20) fail_msg("only %d texts were compared", compared);
}

static void test_trl(void **state)
{
    (void)state;
    check_all("trl/");
}

static void test_llama_factory(void **state)
{
    (void)state;
    check_all("lf/");
}

int main(void)
{
    cmocka_set_message_output(CM_OUTPUT_TAP);
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_trl), cmocka_unit_test(test_llama_factory)};
    return cmocka_run_group_tests(tests, test_setup, test_teardown);
}
