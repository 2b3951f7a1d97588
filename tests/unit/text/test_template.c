/* test_template: rendered texts equal the models' own jinja templates (tests/golden/templates.json), ranges
 * cover the answers, bad files. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/files.h"
#include "base/hash.h"
#include "base/memory.h"
#include "text/template.h"

static const char conf[] = "conf/template";

static mb_template *open_ok(const char *name)
{
    mb_template *tmpl = NULL;
    if (mb_template_open(conf, name, &tmpl) != MB_OK) fail_msg("%s", mb_status_message());
    return tmpl;
}

static void test_golden(void **state)
{
    (void)state;
    json_t *cases = NULL;
    if (mb_json_read("tests/golden/templates.json", &cases) != MB_OK) fail_msg("%s", mb_status_message());
    assert_true(json_array_size(cases) >= 50);
    mb_dialog dialog = {0};
    mb_rendered rendered = {0};
    for (size_t i = 0; i < json_array_size(cases); i++) {
        const json_t *one = json_array_get(cases, i);
        const json_t *record = json_object_get(one, "record");
        const bool is_open = json_is_true(json_object_get(one, "open"));
        mb_template *tmpl = open_ok(json_string_value(json_object_get(one, "template")));
        const mb_status read =
            is_open ? mb_dialog_read_prompt(record, NULL, &dialog) : mb_dialog_read(record, NULL, &dialog);
        if (read != MB_OK) fail_msg("case %zu: %s", i, mb_status_message());
        const mb_status status = is_open ? mb_template_render_prompt(tmpl, &dialog, "<s>", "</s>", &rendered)
                                         : mb_template_render(tmpl, &dialog, false, "<s>", "</s>", &rendered);
        if (status != MB_OK) fail_msg("case %zu: %s", i, mb_status_message());
        if (strcmp(mb_str_text(&rendered.text), json_string_value(json_object_get(one, "text"))) != 0)
            fail_msg("case %zu (%s, %s):\n%s\n-- expected:\n%s", i, mb_template_name(tmpl),
                     json_string_value(json_object_get(one, "dialog")), mb_str_text(&rendered.text),
                     json_string_value(json_object_get(one, "text")));
        mb_template_close(&tmpl);
    }
    json_decref(cases);
    mb_dialog_destroy(&dialog);
    mb_rendered_destroy(&rendered);
}

/* Render a record given as JSON text; learnt parts are returned joined by "|". */
static void check(const char *name, const char *json, const char *text, const char *learnt, bool learn_all)
{
    json_t *record = NULL;
    mb_dialog dialog = {0};
    mb_rendered rendered = {0};
    mb_str parts = MB_STR_EMPTY;
    mb_template *tmpl = open_ok(name);
    assert_int_equal(mb_json_parse(json, strlen(json), "test", &record), MB_OK);
    if (mb_dialog_read(record, NULL, &dialog) != MB_OK) fail_msg("%s", mb_status_message());
    if (mb_template_render(tmpl, &dialog, learn_all, "<s>", "</s>", &rendered) != MB_OK)
        fail_msg("%s", mb_status_message());
    assert_string_equal(mb_str_text(&rendered.text), text);
    int64_t before = -1;
    for (int64_t i = 0; i < rendered.range_count; i++) {
        const int64_t first = rendered.ranges[2 * i], end = rendered.ranges[2 * i + 1];
        assert_true(first > before && end > first && end <= (int64_t)rendered.text.length);
        before = end;
        if (i > 0) mb_str_add(&parts, "|");
        mb_str_append(&parts, rendered.text.data + first, (size_t)(end - first));
    }
    assert_string_equal(mb_str_text(&parts), learnt);
    mb_str_destroy(&parts);
    json_decref(record);
    mb_dialog_destroy(&dialog);
    mb_rendered_destroy(&rendered);
    mb_template_close(&tmpl);
}

#define TWO_TURNS                                                                                            \
    "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\",\"content\":\"b\"},"       \
    "{\"role\":\"user\",\"content\":\"c\"},{\"role\":\"assistant\",\"content\":\"d\"}]}"

static void test_ranges(void **state)
{
    (void)state;
    check("chatml", TWO_TURNS,
          "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n<|im_start|>user\nc<|im_end|>\n"
          "<|im_start|>assistant\nd<|im_end|>\n",
          "b<|im_end|>\n|d<|im_end|>\n", false);
    check("llama2", TWO_TURNS, "<s>[INST] a [/INST] b </s><s>[INST] c [/INST] d </s>", "b </s>|d </s>",
          false);
    check("tulu3", TWO_TURNS, "<|user|>\na\n<|assistant|>\nb</s>\n<|user|>\nc\n<|assistant|>\nd</s>",
          "b</s>|d</s>", false);
    check("tulu3", TWO_TURNS, "<|user|>\na\n<|assistant|>\nb</s>\n<|user|>\nc\n<|assistant|>\nd</s>",
          "<|user|>\na\n<|assistant|>\nb</s>\n<|user|>\nc\n<|assistant|>\nd</s>", true);
    check("plain", "{\"question\":\"1+1=\",\"answer\":\"2\"}", "1+1=2", "2", false);
    check("plain", "{\"question\":\"1+1=\",\"answer\":\"2\"}", "1+1=2", "1+1=2", true);
    check("lines", TWO_TURNS, "a\nb\nc\nd", "b|d", false);
    check("chatml", "{\"text\":\" as is {eos}\\n\"}", " as is {eos}\n", " as is {eos}\n", false);
    check("llama3.1", "{\"system\":\" s \",\"question\":\"q\",\"answer\":\" a\"}",
          "<s><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\nToday "
          "Date: 26 Jul 2024\n\ns"
          "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nq<|eot_id|><|start_header_id|>assistant<|"
          "end_header_id|>\n\n"
          "a<|eot_id|>",
          "a<|eot_id|>", false);
    check("plain", "{\"question\":\"q\",\"answer\":\"a\",\"tools\":\"t \"}", "t qa", "a", false);
    check("llama3.1", "{\"question\":\"q {bos}\",\"answer\":\"{eos}\"}",
          "<s><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\nToday "
          "Date: 26 Jul 2024\n\n"
          "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nq "
          "{bos}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
          "{eos}<|eot_id|>",
          "{eos}<|eot_id|>", false);
    check("chatml",
          "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\",\"content\":\"b\","
          "\"weight\":0},"
          "{\"role\":\"user\",\"content\":\"c\"},{\"role\":\"assistant\",\"content\":\"d\"}]}",
          "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n<|im_start|>user\nc<|im_end|>\n"
          "<|im_start|>assistant\nd<|im_end|>\n",
          "d<|im_end|>\n", false);
}

static void test_alpaca(void **state)
{
    (void)state;
    check("alpaca", "{\"instruction\":\"Add.\",\"input\":\"1 2\",\"output\":\"3\"}",
          "Below is an instruction that describes a task, paired with an input that provides further "
          "context. Write a response that "
          "appropriately completes the request.\n\n### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### "
          "Response:3</s>",
          "3</s>", false);
    check("alpaca", "{\"instruction\":\"Add.\",\"input\":\"\",\"output\":\"3\",\"history\":[[\"x\",\"y\"]]}",
          "Below is an instruction that describes a task. Write a response that appropriately completes the "
          "request.\n\n"
          "### Instruction:\nx\n\n### Response:y</s>\n\n### Instruction:\nAdd.\n\n### Response:3</s>",
          "y</s>|3</s>", false);
    check("chatml", "{\"instruction\":\"Add.\",\"input\":\"1 2\",\"output\":\"3\",\"system\":\"S\"}",
          "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nAdd.\n1 "
          "2<|im_end|>\n<|im_start|>assistant\n3<|im_end|>\n",
          "3<|im_end|>\n", false);
}

/* A thought belongs to the answer, an empty one too; qwen3-train gives every answer one. */
static void test_think(void **state)
{
    (void)state;
    check("qwen3", "{\"question\":\"q\",\"answer\":\"a\"}",
          "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\na<|im_end|>\n",
          "<think>\n\n</think>\n\na<|im_end|>\n", false);
    check("qwen3", "{\"question\":\"q\",\"answer\":\"<think>t</think>a\"}",
          "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n<think>\nt\n</think>\n\na<|im_end|>\n",
          "<think>\nt\n</think>\n\na<|im_end|>\n", false);
    check("qwen3", TWO_TURNS,
          "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n<|im_start|>user\nc<|im_end|>\n"
          "<|im_start|>assistant\n<think>\n\n</think>\n\nd<|im_end|>\n",
          "b<|im_end|>\n|<think>\n\n</think>\n\nd<|im_end|>\n", false);
    check("qwen3-train", TWO_TURNS,
          "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n<think>\n\n</"
          "think>\n\nb<|im_end|>\n<|im_start|>"
          "user\nc<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\nd<|im_end|>\n",
          "<think>\n\n</think>\n\nb<|im_end|>\n|<think>\n\n</think>\n\nd<|im_end|>\n", false);
}

static void expect_render_failure(const char *name, const char *json, mb_status code, const char *message)
{
    json_t *record = NULL;
    mb_dialog dialog = {0};
    mb_rendered rendered = {0};
    mb_template *tmpl = open_ok(name);
    assert_int_equal(mb_json_parse(json, strlen(json), "test", &record), MB_OK);
    assert_int_equal(mb_dialog_read(record, NULL, &dialog), MB_OK);
    assert_int_equal(mb_template_render(tmpl, &dialog, false, NULL, NULL, &rendered), code);
    assert_non_null(strstr(mb_status_message(), message));
    mb_status_reset();
    json_decref(record);
    mb_dialog_destroy(&dialog);
    mb_rendered_destroy(&rendered);
    mb_template_close(&tmpl);
}

static void test_no_place(void **state)
{
    (void)state;
    expect_render_failure("llama2", "{\"question\":\"q\",\"answer\":\"a\",\"tools\":[{\"name\":\"f\"}]}",
                          MB_EUNSUPPORTED, "no place for tools");
    expect_render_failure("alpaca",
                          "{\"conversations\":[{\"from\":\"human\",\"value\":\"a\"},{\"from\":\"function_"
                          "call\",\"value\":\"{\\\"name\\\":\\\"f\\\"}\"},"
                          "{\"from\":\"observation\",\"value\":\"c\"},{\"from\":\"gpt\",\"value\":\"d\"}]}",
                          MB_EUNSUPPORTED, "no place for tool results");
}

static void test_bad_files(void **state)
{
    (void)state;
    const struct {
        const char *text, *message;
    } cases[] = {
        {"[]", "is a JSON object"},
        {"{\"start\":\"\"}", "name"},
        {"{\"name\":\"x\",\"strat\":\"\"}", "unknown key \"strat\"; did you mean start"},
        {"{\"name\":\"x\",\"user\":{\"befor\":\"\"}}", "did you mean before"},
        {"{\"name\":\"x\",\"user\":\"\"}", "is not an object"},
        {"{\"name\":\"x\",\"user\":{\"before\":1}}", "before"},
        {"{\"name\":\"x\",\"think\":1}", "think"},
        {"{\"name\":", "x.json"},
    };
    char folder[] = "/tmp/mb_test_template_XXXXXX";
    assert_non_null(mkdtemp(folder));
    char path[128];
    snprintf(path, sizeof path, "%s/x.json", folder);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        mb_template *tmpl = NULL;
        assert_int_equal(mb_files_write(path, cases[i].text, strlen(cases[i].text)), MB_OK);
        assert_int_not_equal(mb_template_open(conf, path, &tmpl), MB_OK);
        if (strstr(mb_status_message(), cases[i].message) == NULL)
            fail_msg("case %zu: %s", i, mb_status_message());
        mb_status_reset();
    }
    mb_template *tmpl = NULL;
    assert_int_equal(mb_template_open(conf, "chatlm", &tmpl), MB_ENOTFOUND);
    assert_non_null(strstr(mb_status_message(), "chatml"));
    mb_status_reset();
    assert_int_equal(mb_files_remove_tree(folder), MB_OK);
}

/* Every shipped file opens under its own name; hashes differ from each other. */
static void test_shipped(void **state)
{
    (void)state;
    static const char *const names[] = {"plain", "lines",  "alpaca",      "chatml",   "qwen2.5",
                                        "qwen3", "llama3", "llama3.1",    "llama2",   "tulu",
                                        "tulu3", "olmoe",  "qwen3-train", "alpaca-lf"};
    enum { COUNT = sizeof names / sizeof *names };
    char hashes[COUNT][MB_HASH_TEXT];
    for (int i = 0; i < COUNT; i++) {
        mb_template *tmpl = open_ok(names[i]);
        assert_string_equal(mb_template_name(tmpl), names[i]);
        snprintf(hashes[i], sizeof hashes[i], "%s", mb_template_hash(tmpl));
        for (int k = 0; k < i; k++) assert_string_not_equal(hashes[i], hashes[k]);
        mb_template_close(&tmpl);
    }
}

static void test_find_by_jinja(void **state)
{
    (void)state;
    const char *root = getenv("MB_SHARED_DATA") != NULL ? getenv("MB_SHARED_DATA") : "../shared/data";
    const struct {
        const char *file, *name;
    } cases[] = {{"qwen2.5-tokenizer_config.json", "qwen2.5"}, {"qwen3/tokenizer_config.json", "qwen3"}};
    char *name = NULL;
    assert_int_equal(mb_template_find_by_jinja(conf, "{{ messages }}", &name), MB_OK);
    assert_null(name);
    if (!mb_files_is_folder(root)) {
        print_message("# skipped: %s is not there (MB_SHARED_DATA)\n", root);
        skip();
    }
    for (int i = 0; i < 2; i++) {
        char path[512];
        json_t *config = NULL;
        snprintf(path, sizeof path, "%s/tokenizers/%s", root, cases[i].file);
        assert_int_equal(mb_json_read(path, &config), MB_OK);
        assert_int_equal(mb_template_find_by_jinja(
                             conf, json_string_value(json_object_get(config, "chat_template")), &name),
                         MB_OK);
        assert_string_equal(name, cases[i].name);
        MB_FREE(name);
        json_decref(config);
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
        cmocka_unit_test(test_golden),   cmocka_unit_test(test_ranges),
        cmocka_unit_test(test_alpaca),   cmocka_unit_test(test_think),
        cmocka_unit_test(test_no_place), cmocka_unit_test(test_bad_files),
        cmocka_unit_test(test_shipped),  cmocka_unit_test(test_find_by_jinja),
    };
    return cmocka_run_group_tests(tests, NULL, teardown);
}
