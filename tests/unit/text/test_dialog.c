/* test_dialog: every form of record -> turns; field maps; order of roles; tools and calls; preference pairs;
 * bad records. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/files.h"
#include "base/memory.h"
#include "text/dialog.h"
#include "text/dialog_text.h"
#include "text/records.h"

/* Turns as text: role letter (T S U A O; c a call; lower-case x in front: not learnt though an answer), ":"
 * text, joined by "|". */
static void describe(const mb_dialog *dialog, mb_str *s)
{
    for (int64_t i = 0; i < dialog->count; i++) {
        const mb_turn *turn = &dialog->turns[i];
        const bool answer = turn->role == MB_ROLE_ASSISTANT || turn->role == MB_ROLE_TEXT;
        assert_int_equal(strlen(turn->text), turn->length);
        assert_true(answer || !turn->learn);
        mb_str_add_format(s, "%s%s%c%s:%s", i > 0 ? "|" : "", answer && !turn->learn ? "x" : "",
                          "TSUAO"[turn->role], turn -> call ? "c" : "", turn->text);
    }
    if (dialog->tools != NULL) mb_str_add_format(s, " tools=%s", dialog->tools);
}

static void check_mapped(const char *json, const char *form, const char *fields, const char *expected)
{
    json_t *record = NULL;
    mb_dialog dialog = {0};
    mb_str s = MB_STR_EMPTY;
    const mb_field_map map = {form, fields};
    assert_int_equal(mb_json_parse(json, strlen(json), "test", &record), MB_OK);
    if (mb_dialog_read(record, &map, &dialog) != MB_OK) fail_msg("%s: %s", json, mb_status_message());
    describe(&dialog, &s);
    assert_string_equal(mb_str_text(&s), expected);
    json_decref(record);
    mb_dialog_destroy(&dialog);
    mb_str_destroy(&s);
}

static void check(const char *json, const char *expected)
{
    check_mapped(json, NULL, NULL, expected);
    check_mapped(json, "auto", "", expected);
}

static void check_bad_mapped(const char *json, const char *form, const char *fields, mb_status code,
                             const char *message)
{
    json_t *record = NULL;
    mb_dialog dialog = {0};
    const mb_field_map map = {form, fields};
    assert_int_equal(mb_json_parse(json, strlen(json), "test", &record), MB_OK);
    const mb_status status = mb_dialog_read(record, &map, &dialog);
    if (status != code || strstr(mb_status_message(), message) == NULL)
        fail_msg("%s: status %d, \"%s\"", json, status, mb_status_message());
    assert_int_equal(dialog.count, 0);
    mb_status_reset();
    json_decref(record);
    mb_dialog_destroy(&dialog);
}

static void check_bad(const char *json, const char *message)
{
    check_bad_mapped(json, NULL, NULL, MB_EDATA, message);
}

static void test_simple_forms(void **state)
{
    (void)state;
    check("{\"text\":\"a\\nb\",\"id\":1}", "T:a\nb");
    check("{\"input\":\"a\",\"output\":\"b\"}", "U:a|A:b");
    check("{\"question\":\"a\",\"answer\":\"b\",\"text\":\"no\"}", "U:a|A:b");
    check("{\"instruction\":\"a\",\"output\":\"b\"}", "U:a|A:b");
    check("{\"instruction\":\"a\",\"input\":\"\",\"output\":\"b\",\"system\":\"\",\"history\":[]}",
          "U:a|A:b");
    check("{\"instruction\":\"a\",\"input\":\"i\",\"output\":\"b\",\"system\":\"s\",\"history\":[[\"x\","
          "\"y\"],[\"z\",\"w\"]]}",
          "S:s|U:x|A:y|U:z|A:w|U:a\ni|A:b");
    check_mapped("{\"body\":\"a\",\"text\":\"no\"}", "text", "text=body", "T:a");
    check_mapped("{\"prompt\":\"a\",\"reply\":\"b\"}", "io", "input=prompt, output=reply", "U:a|A:b");
    check_mapped("{\"prompt\":\"a\",\"reply\":\"b\"}", "auto", "input=prompt,output=reply", "U:a|A:b");
    check_mapped("{\"instruction\":\"a\",\"output\":\"b\",\"text\":\"c\"}", "text", NULL, "T:c");
}

static void test_input_place(void **state)
{
    (void)state;
    json_t *record = json_pack("{s:s,s:s,s:s}", "instruction", "ab", "input", "c", "output", "d");
    mb_dialog dialog = {0};
    assert_int_equal(mb_dialog_read(record, NULL, &dialog), MB_OK);
    assert_int_equal(dialog.turns[0].input, 3);
    assert_string_equal(dialog.turns[0].text + dialog.turns[0].input, "c");
    assert_int_equal(dialog.turns[1].input, 0);
    json_decref(record);
    mb_dialog_destroy(&dialog);
}

static void test_messages(void **state)
{
    (void)state;
    check("{\"messages\":[{\"role\":\"system\",\"content\":\"s\"},{\"role\":\"user\",\"content\":\"a\"},"
          "{\"role\":\"assistant\",\"content\":\"b\"},{\"role\":\"user\",\"content\":\"dropped\"}]}",
          "S:s|U:a|A:b");
    check("{\"system\":\"s\",\"conversations\":[{\"from\":\"human\",\"value\":\"a\"},{\"from\":\"gpt\","
          "\"value\":\"b\"}]}",
          "S:s|U:a|A:b");
    check("{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"a\"},{\"type\":"
          "\"text\",\"text\":\"b\"}]},"
          "{\"role\":\"assistant\",\"content\":\"c\",\"weight\":0},{\"role\":\"user\",\"content\":\"d\"},"
          "{\"role\":\"assistant\",\"content\":\"e\",\"weight\":1}]}",
          "U:ab|xA:c|U:d|A:e");
    check_mapped("{\"log\":[{\"who\":\"user\",\"said\":\"a\"},{\"who\":\"assistant\",\"said\":\"b\"}]}",
                 "messages", "messages=log,role=who,content=said", "U:a|A:b");
}

static void test_tools(void **state)
{
    (void)state;
    check("{\"conversations\":[{\"from\":\"human\",\"value\":\"a\"},"
          "{\"from\":\"function_call\",\"value\":\"{\\\"name\\\":\\\"f\\\",\\\"arguments\\\":{\\\"x\\\":1.50}"
          "}\"},"
          "{\"from\":\"observation\",\"value\":\"o\"},{\"from\":\"gpt\",\"value\":\"b\"}],"
          "\"tools\":\"[{\\\"name\\\":\\\"f\\\"},{\\\"type\\\":\\\"function\\\",\\\"function\\\":{"
          "\\\"name\\\":\\\"g\\\"}}]\"}",
          "U:a|Ac:{\"name\": \"f\", \"arguments\": {\"x\": 1.5}}|O:o|A:b tools={\"type\": \"function\", "
          "\"function\": {\"name\": \"f\"}}\n"
          "{\"type\": \"function\", \"function\": {\"name\": \"g\"}}");
    check("{\"messages\":[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\",\"content\":null,"
          "\"tool_calls\":["
          "{\"type\":\"function\",\"function\":{\"name\":\"f\",\"arguments\":\"{\\\"x\\\": [1]}\"}},"
          "{\"function\":{\"name\":\"g\",\"arguments\":\"no json\"}}]},"
          "{\"role\":\"tool\",\"content\":\"1\"},{\"role\":\"tool\",\"content\":\"2\"},"
          "{\"role\":\"assistant\",\"content\":\"b\",\"tool_calls\":[{\"function\":{\"name\":\"h\"}}]}],"
          "\"tools\":[]}",
          "U:a|Ac:{\"name\": \"f\", \"arguments\": {\"x\": [1]}}|Ac:{\"name\": \"g\", \"arguments\": no "
          "json}|O:1|O:2|A:b|"
          "Ac:{\"name\": \"h\", \"arguments\": {}}");
    check("{\"question\":\"a\",\"answer\":\"b\",\"tools\":\"free text\"}", "U:a|A:b tools=free text");
    check("{\"question\":\"a\",\"answer\":\"b\",\"tools\":\"[]\"}", "U:a|A:b");
}

static void test_bad(void **state)
{
    (void)state;
    check_bad("{\"foo\":\"a\"}", "none of the known forms fits");
    check_bad("{\"text\":\"\"}", "field \"text\" is empty");
    check_bad("{\"text\":5}", "field \"text\" is not text");
    check_bad("{\"question\":\"\",\"answer\":\"a\"}", "field \"question\" is empty");
    check_bad("{\"instruction\":\"a\",\"output\":\"\"}", "field \"output\" is empty");
    check_bad("{\"instruction\":\"a\",\"output\":\"b\",\"input\":1}", "field \"input\" is not text");
    check_bad("{\"instruction\":\"a\",\"output\":\"b\",\"history\":[[\"x\"]]}", "entry 1 is not a pair");
    check_bad("{\"instruction\":\"a\",\"output\":\"b\",\"history\":\"x\"}", "not a list");
    check_bad("{\"messages\":\"a\"}", "not a list of messages");
    check_bad("{\"messages\":[]}", "no answer to learn from");
    check_bad("{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}]}", "no answer to learn from");
    check_bad("{\"messages\":[1]}", "message 1 is not an object");
    check_bad("{\"messages\":[{\"content\":\"a\"}]}", "message 1 has no role");
    check_bad("{\"messages\":[{\"role\":\"robot\",\"content\":\"a\"}]}",
              "message 1 has the unknown role \"robot\"");
    check_bad("{\"messages\":[{\"role\":\"assistant\",\"content\":\"a\"}]}",
              "message 1: assistant may not begin a dialog");
    check_bad("{\"messages\":[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"user\",\"content\":\"b\"}]}",
              "message 2: user may not follow user");
    check_bad(
        "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"system\",\"content\":\"b\"}]}",
        "message 2: system may not follow user");
    check_bad(
        "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\",\"content\":\"\"}]}",
        "message 2 (assistant) is empty");
    check_bad("{\"messages\":[{\"role\":\"user\",\"content\":{}}]}", "message 1: its content is not text");
    check_bad("{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"image\"}]}]}",
              "is no text but image");
    check_bad("{\"conversations\":[{\"from\":\"human\",\"value\":\"a\"},{\"from\":\"function_call\","
              "\"value\":\"{\"}]}",
              "message 2: its tool call is not JSON");
    check_bad("{\"conversations\":[{\"from\":\"human\",\"value\":\"a\"},{\"from\":\"function_call\","
              "\"value\":\"{}\"}]}",
              "message 2: a tool call has no name");
    check_bad_mapped("{\"question\":\"a\"}", "qa", NULL, MB_EDATA, "field \"answer\" is missing");
    check_bad_mapped("{\"question\":\"a\"}", "qa", "answer=a_text", MB_EDATA, "field \"a_text\" is missing");
    check_bad_mapped("{\"text\":\"a\"}", "txt", NULL, MB_EUSAGE, "no record form \"txt\"");
    check_bad_mapped("{\"text\":\"a\"}", NULL, "txet=a", MB_EUSAGE, "did you mean text");
    check_bad_mapped("{\"text\":\"a\"}", NULL, "text", MB_EUSAGE, "write text=");
    check_bad_mapped("[]", NULL, NULL, MB_EDATA, "not a JSON object");
}

static void check_pair(const char *json, const char *chosen, const char *rejected)
{
    json_t *record = NULL;
    mb_dialog sides[2] = {{0}, {0}};
    const char *const expected[] = {chosen, rejected};
    assert_int_equal(mb_json_parse(json, strlen(json), "test", &record), MB_OK);
    if (mb_dialog_read_pair(record, NULL, &sides[0], &sides[1]) != MB_OK)
        fail_msg("%s: %s", json, mb_status_message());
    for (int i = 0; i < 2; i++) {
        mb_str s = MB_STR_EMPTY;
        describe(&sides[i], &s);
        assert_string_equal(mb_str_text(&s), expected[i]);
        mb_str_destroy(&s);
        mb_dialog_destroy(&sides[i]);
    }
    json_decref(record);
}

static void test_pairs(void **state)
{
    (void)state;
    check_pair(
        "{\"conversations\":[{\"from\":\"human\",\"value\":\"a\"},{\"from\":\"gpt\",\"value\":\"b\"},{"
        "\"from\":\"human\",\"value\":\"c\"}],"
        "\"chosen\":{\"from\":\"gpt\",\"value\":\"y\"},\"rejected\":{\"from\":\"gpt\",\"value\":\"n\"}}",
        "U:a|xA:b|U:c|A:y", "U:a|xA:b|U:c|A:n");
    check_pair("{\"prompt\":\"a\",\"chosen\":\"y\",\"rejected\":\"n\",\"system\":\"s\"}", "S:s|U:a|A:y",
               "S:s|U:a|A:n");
    check_pair("{\"instruction\":\"a\",\"input\":\"b\",\"chosen\":\"y\",\"rejected\":\"n\"}", "U:a\nb|A:y",
               "U:a\nb|A:n");
    check_pair("{\"chosen\":\"\\n\\nHuman: a\\n\\nAssistant: b\\n\\nHuman: c\\n\\nAssistant: y \","
               "\"rejected\":\"\\n\\nHuman: a\\n\\nAssistant: n\"}",
               "U:a|xA:b|U:c|A:y", "U:a|A:n");
    check_pair(
        "{\"prompt\":\"a\",\"chosen\":[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\","
        "\"content\":\"y\"}],"
        "\"rejected\":[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\",\"content\":\"n\"}]}",
        "U:a|A:y", "U:a|A:n");
    check_pair("{\"prompt\":[{\"role\":\"user\",\"content\":\"a\"}],\"chosen\":[{\"role\":\"assistant\","
               "\"content\":\"y\"}],"
               "\"rejected\":[{\"role\":\"assistant\",\"content\":\"n\"}]}",
               "U:a|A:y", "U:a|A:n");
    check("{\"prompt\":\"a\",\"chosen\":\"y\",\"rejected\":\"n\"}", "U:a|A:y");
    check_bad("{\"chosen\":\"y\",\"rejected\":\"n\"}", "what was asked is missing");
    check_bad("{\"prompt\":\"a\",\"chosen\":\"\",\"rejected\":\"n\"}", "\"chosen\" is empty");
    check_bad("{\"chosen\":\"\\n\\nHuman: a\",\"rejected\":\"n\"}", "does not end with an answer");
    check_bad("{\"chosen\":\"\\n\\nHuman: a\\n\\nAssistant:\",\"rejected\":\"n\"}",
              "turn of the assistant is empty");
    check_bad("{\"prompt\":\"a\",\"chosen\":{\"role\":\"user\",\"content\":\"y\"},\"rejected\":\"n\"}",
              "an answer has the role \"user\"");
    check_bad("{\"messages\":[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\",\"content\":"
              "\"b\"}],\"chosen\":\"y\",\"rejected\":\"n\"}",
              "does not end with a question");
}

static void test_prompts(void **state)
{
    (void)state;
    const char *const cases[][2] = {
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\",\"content\":\"b\"},{"
         "\"role\":\"user\",\"content\":\"c\"}]}",
         "U:a|A:b|U:c"},
        {"{\"prompt\":\"a\"}", "U:a"},
        {"{\"question\":\"a\",\"answer\":\"b\"}", "U:a"},
        {"{\"instruction\":\"a\",\"output\":\"b\",\"system\":\"s\"}", "S:s|U:a"},
        {"{\"text\":\"a\"}", "T:a"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        json_t *record = NULL;
        mb_dialog dialog = {0};
        mb_str s = MB_STR_EMPTY;
        assert_int_equal(mb_json_parse(cases[i][0], strlen(cases[i][0]), "test", &record), MB_OK);
        assert_int_equal(mb_dialog_read_prompt(record, NULL, &dialog), MB_OK);
        describe(&dialog, &s);
        assert_string_equal(mb_str_text(&s), cases[i][1]);
        json_decref(record);
        mb_dialog_destroy(&dialog);
        mb_str_destroy(&s);
    }
}

#define NODE(role, text, rank, replies)                                                                      \
    "{\"role\":\"" role "\",\"text\":\"" text "\",\"rank\":" rank ",\"replies\":[" replies "]}"

/* The best-ranked reply of each message, up to the last answer. */
static void test_trees(void **state)
{
    (void)state;
    check("{\"message_tree_id\":\"x\",\"prompt\":" NODE(
              "prompter", "a", "null",
              NODE("assistant", "worse", "1", "") "," NODE(
                  "assistant", "b", "0",
                  NODE("prompter", "c", "null",
                       NODE("assistant", "d", "null", NODE("prompter", "open", "null", ""))))) "}",
          "U:a|A:b|U:c|A:d");
    check_bad("{\"message_tree_id\":\"x\",\"prompt\":" NODE("prompter", "a", "null", "") "}",
              "no answer to learn from");
    check_bad("{\"message_tree_id\":\"x\",\"prompt\":" NODE("prompter", "a", "0",
                                                            NODE("prompter", "b", "0", "")) "}",
              "has the role \"prompter\" where assistant is due");
    check_bad("{\"message_tree_id\":\"x\",\"prompt\":" NODE("prompter", "", "0",
                                                            NODE("assistant", "b", "0", "")) "}",
              "has no text");
    check_bad("{\"message_tree_id\":\"x\",\"prompt\":\"a\"}", "no message of a tree");
}

/* JSON text as Python's json.dumps(x, ensure_ascii=False) writes it. */
static void test_json_text(void **state)
{
    (void)state;
    static const char text[] = "[0.1, 1.0, -0.0, 1e+16, 1e-05, 0.0001, 123456789012345.6, 1.5e+300, 2e-07, "
                               "5e-324, 9007199254740993.0, \"\\\"\\\\/\\n\\t\\b\\f\\r"
                               "\\u001f\x7f\xC3\xA9\", {}, [], {\"b\": 1, \"a\": null}, true, false, -5]";
    static const char expected[] = "[0.1, 1.0, -0.0, 1e+16, 1e-05, 0.0001, 123456789012345.6, 1.5e+300, "
                                   "2e-07, 5e-324, 9007199254740992.0, \"\\\"\\\\/\\n\\t\\b\\f\\r"
                                   "\\u001f\x7f\xC3\xA9\", {}, [], {\"b\": 1, \"a\": null}, true, false, -5]";
    json_t *json = NULL;
    mb_str s = MB_STR_EMPTY;
    assert_int_equal(mb_json_parse(text, strlen(text), "test", &json), MB_OK);
    assert_int_equal(mb_dialog_text_json(json, &s), MB_OK);
    assert_string_equal(mb_str_text(&s), expected);
    json_decref(json);
    mb_str_destroy(&s);
}

static void test_strip(void **state)
{
    (void)state;
    const char *text = "\xE3\x80\x80 \t\x1C"
                       "a b\xC2\xA0\xE2\x80\x83\n\x0B";
    size_t n = strlen(text);
    mb_dialog_text_strip(&text, &n);
    assert_int_equal(n, 3);
    assert_memory_equal(text, "a b", 3);
    const char *blank = " \xE2\x80\xA8";
    n = strlen(blank);
    mb_dialog_text_strip(&blank, &n);
    assert_int_equal(n, 0);
}

typedef struct real_file {
    const char *name;
    int64_t records, turns, bad;
    bool pairs;
} real_file;

static void check_real_file(const real_file *file, const char *path)
{
    mb_records *records = NULL;
    mb_dialog dialog = {0}, other = {0};
    int64_t count = 0, turns = 0, bad = 0;
    if (mb_records_open(path, 0, &records) != MB_OK) fail_msg("%s", mb_status_message());
    for (;;) {
        mb_record record;
        assert_int_equal(mb_records_read(records, &record), MB_OK);
        if (record.bytes == NULL) break;
        assert_null(record.problem);
        const mb_status status = file->pairs ? mb_dialog_read_pair(record.json, NULL, &dialog, &other)
                                             : mb_dialog_read(record.json, NULL, &dialog);
        if (status != MB_OK && file->bad == 0)
            fail_msg("%s, record %lld: %s", path, (long long)record.index, mb_status_message());
        bad += status != MB_OK;
        count++;
        if (status == MB_OK) turns += dialog.count;
    }
    mb_status_reset();
    assert_int_equal(count, file->records);
    assert_int_equal(bad, file->bad);
    assert_int_equal(turns, file->turns);
    mb_records_close(&records);
    mb_dialog_destroy(&dialog);
    mb_dialog_destroy(&other);
}

static void test_real_files(void **state)
{
    (void)state;
    static const real_file files[] = {
        {"gsm8k/train.jsonl", 7473, 2 * 7473, 0, false},
        {"gsm8k/test.jsonl", 1319, 2 * 1319, 0, false},
        {"alpaca/alpaca_en_first500.json", 500, 1000, 0, false},
        {"alpaca/alpaca_zh.json", 1000, 2000, 0, false},
        {"text/c4.jsonl", 300, 300, 0, false},
        {"chat/glaive_toolcall_en.json", 300, 2 * 746 + 2 * 211, 0, false},
        {"preference/dpo_en.json", 300, 1206, 0, true},
        {"preference/dpo_en.json", 300, 1206, 0, false},
        {"preference/hh-harmless-a.jsonl", 1156, 5698, 6, true},
    };
    const char *root = getenv("MB_SHARED_DATA") != NULL ? getenv("MB_SHARED_DATA") : "../shared/data";
    if (!mb_files_is_folder(root)) {
        print_message("# skipped: %s is not there (MB_SHARED_DATA)\n", root);
        skip();
    }
    for (size_t f = 0; f < sizeof files / sizeof *files; f++) {
        char path[512];
        snprintf(path, sizeof path, "%s/datasets/%s", root, files[f].name);
        check_real_file(&files[f], path);
    }
}

static int teardown(void **state)
{
    (void)state;
    return mb_memory_live_blocks() != 0;
}

int main(void)
{
    cmocka_set_message_output(CM_OUTPUT_TAP);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_simple_forms), cmocka_unit_test(test_input_place),
        cmocka_unit_test(test_messages),     cmocka_unit_test(test_tools),
        cmocka_unit_test(test_bad),          cmocka_unit_test(test_pairs),
        cmocka_unit_test(test_prompts),      cmocka_unit_test(test_json_text),
        cmocka_unit_test(test_strip),        cmocka_unit_test(test_trees),
        cmocka_unit_test(test_real_files),
    };
    return cmocka_run_group_tests(tests, NULL, teardown);
}
