/* test_tasks: prompts, choices, golds and request ids equal lm-evaluation-harness's
 * (tests/golden/tasks.json); bad files. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/files.h"
#include "base/json.h"
#include "base/memory.h"
#include "text/tasks.h"
#include "text/tasks_text.h"

static char folder[] = "/tmp/mb_test_tasks_XXXXXX";
static json_t *golden;

static const char *shared_data(void)
{
    const char *root = getenv("MB_SHARED_DATA");
    return root != NULL ? root : "../shared/data";
}

static void skip_without(const char *path)
{
    if (mb_files_is_file(path) || mb_files_is_folder(path)) return;
    print_message("# skipped: %s is not there (MB_SHARED_DATA)\n", path);
    skip();
}

static const char *write_text(const char *name, const char *text)
{
    static char path[256];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    assert_int_equal(mb_files_write(path, text, strlen(text)), MB_OK);
    return path;
}

static const char *write_docs(const char *name, const json_t *docs)
{
    mb_str s = MB_STR_EMPTY;
    for (size_t i = 0; i < json_array_size(docs); i++) {
        assert_int_equal(mb_json_print(json_array_get(docs, i), 0, false, &s), MB_OK);
        mb_str_add(&s, "\n");
    }
    const char *path = write_text(name, mb_str_text(&s));
    mb_str_destroy(&s);
    return path;
}

static mb_task *open_ok(const char *kind, const char *path, int64_t fewshot, int64_t limit)
{
    mb_task *task = NULL;
    if (mb_task_open(kind, path, fewshot, limit, &task) != MB_OK) fail_msg("%s", mb_status_message());
    return task;
}

static void check_task(const mb_task *task, const json_t *expected)
{
    assert_int_equal(task->count, json_array_size(expected));
    for (int64_t i = 0; i < task->count; i++) {
        const json_t *one = json_array_get(expected, (size_t)i);
        const json_t *choices = json_object_get(one, "choices");
        const mb_task_question *question = &task->questions[i];
        assert_string_equal(question->context, json_string_value(json_object_get(one, "context")));
        assert_int_equal(question->gold, json_integer_value(json_object_get(one, "gold")));
        assert_int_equal(question->doc_id, i);
        assert_int_equal(question->choice_count, json_array_size(choices));
        for (int64_t k = 0; k < question->choice_count; k++)
            assert_string_equal(question->choices[k], json_string_value(json_array_get(choices, (size_t)k)));
    }
}

static void test_prompts(void **state)
{
    (void)state;
    static const char *const kinds[] = {"arc_easy", "hellaswag"};
    for (int i = 0; i < 2; i++) {
        const json_t *one = json_object_get(golden, kinds[i]);
        mb_task *task = open_ok(kinds[i], write_docs("docs.jsonl", json_object_get(one, "docs")), 0, 0);
        check_task(task, json_object_get(one, "expected"));
        assert_string_equal(task->name, kinds[i]);
        assert_string_equal(task->delimiter, " ");
        assert_true(task->has_acc_norm);
        assert_int_equal(task->version, 1);
        mb_task_close(&task);
    }
}

/* One CSV field, quoted. */
static void add_field(mb_str *s, const char *text, bool last)
{
    mb_str_add(s, "\"");
    for (; *text != 0; text++) mb_str_add_format(s, "%s%c", *text == '"' ? "\"" : "", *text);
    mb_str_add(s, last ? "\"\n" : "\",");
}

static void write_rows(const char *name, const json_t *docs)
{
    mb_str s = MB_STR_EMPTY;
    for (size_t i = 0; i < json_array_size(docs); i++) {
        const json_t *doc = json_array_get(docs, i);
        const char letter[2] = {(char)('A' + json_integer_value(json_object_get(doc, "answer"))), 0};
        add_field(&s, json_string_value(json_object_get(doc, "question")), false);
        for (size_t k = 0; k < 4; k++)
            add_field(&s, json_string_value(json_array_get(json_object_get(doc, "choices"), k)), false);
        add_field(&s, letter, true);
    }
    write_text(name, mb_str_text(&s));
    mb_str_destroy(&s);
}

static void test_mmlu(void **state)
{
    (void)state;
    const json_t *mmlu = json_object_get(golden, "mmlu"), *expected = json_object_get(mmlu, "expected");
    char path[256];
    write_docs("m_dev.jsonl", json_object_get(mmlu, "dev"));
    for (int shots = 0; shots <= 5; shots += 5) {
        const json_t *want = json_object_get(expected, shots == 0 ? "0" : "5");
        mb_task *task = open_ok("mmlu", write_docs("m_test.jsonl", json_object_get(mmlu, "docs")), shots, 0);
        check_task(task, want);
        assert_string_equal(task->questions[0].group, "high_school_us_history");
        assert_false(task->has_acc_norm);
        assert_int_equal(task->version, 2);
        mb_task_close(&task);
        for (int layout = 0; layout < 2; layout++) {
            snprintf(path, sizeof path, "%s/mmlu%d%s", folder, layout, layout == 1 ? "/test" : "");
            assert_int_equal(mb_files_make_folders(path), MB_OK);
            if (layout == 1) {
                snprintf(path, sizeof path, "%s/mmlu1/dev", folder);
                assert_int_equal(mb_files_make_folders(path), MB_OK);
            }
            write_rows(layout == 0 ? "mmlu0/high_school_us_history_test.csv"
                                   : "mmlu1/test/high_school_us_history_test.csv",
                       json_object_get(mmlu, "docs"));
            write_rows(layout == 0 ? "mmlu0/high_school_us_history_dev.csv"
                                   : "mmlu1/dev/high_school_us_history_dev.csv",
                       json_object_get(mmlu, "dev"));
            snprintf(path, sizeof path, "%s/mmlu%d", folder, layout);
            task = open_ok("mmlu", path, shots, 0);
            check_task(task, want);
            mb_task_close(&task);
        }
    }
    snprintf(path, sizeof path, "%s/mmlu0", folder);
    write_rows("mmlu0/anatomy_test.csv", json_object_get(mmlu, "docs"));
    mb_task *task = open_ok("mmlu", path, 0, 1);
    assert_int_equal(task->count, 2); /* the limit is per subject */
    assert_string_equal(task->questions[0].group, "anatomy");
    assert_int_equal(task->questions[1].doc_id, 0);
    mb_task_close(&task);
    assert_int_equal(mb_task_open("mmlu", path, 5, 0, &task), MB_ENOTFOUND);
    assert_non_null(strstr(mb_status_message(), "anatomy_dev.csv"));
    mb_status_reset();
    snprintf(path, sizeof path, "%s/mmlu1", folder);
    assert_int_equal(mb_task_open("mmlu", path, 6, 0, &task), MB_EDATA);
    assert_non_null(strstr(mb_status_message(), "has 5 examples, 6 are asked for"));
    mb_status_reset();
}

static void test_choice(void **state)
{
    (void)state;
    const char *path = write_text(
        "free.jsonl", "{\"query\":\"Q: \",\"choices\":[\"a\",\"b\"],\"gold\":1,\"answer\":\"zzz\"}\n"
                      "{\"question\":\"x?\",\"options\":[\"(A)a\",\"(B)b\"],\"label\":\"B\",\"answer\":null,"
                      "\"passage\":null}\n"
                      "{\"question\":\"x?\",\"passage\":\"P.\",\"options\":[\"a\",\"b\"],\"answer\":\"b\"}\n"
                      "{\"ctx\":\"c\",\"endings\":[\"a\",\"b\"],\"label\":\"1\"}\n"
                      "{\"question\":\"x?\",\"choices\":{\"text\":[\"\xC3\xA9\xE6\x97\xA5\",\"b\"],\"label\":"
                      "[\"1\",\"2\"]},\"answerKey\":\"2\"}\n");
    static const char *const contexts[] = {"Q: ", "Question: x?\nAnswer:", "P.\nQuestion: x?\nAnswer:", "c",
                                           "Question: x?\nAnswer:"};
    mb_task *task = open_ok("choice", path, 0, 0);
    int64_t characters, bytes;
    assert_int_equal(task->count, 5);
    for (int i = 0; i < 5; i++) {
        assert_string_equal(task->questions[i].context, contexts[i]);
        assert_int_equal(task->questions[i].gold, 1);
        assert_int_equal(task->questions[i].choice_count, 2);
    }
    assert_string_equal(task->name, "free");
    mb_task_choice_length(task, 4, 0, &characters, &bytes);
    assert_int_equal(characters, 2);
    assert_int_equal(bytes, 5);
    mb_task_close(&task);
    task = open_ok("choice", path, 0, 2);
    assert_int_equal(task->count, 2);
    mb_task_close(&task);
}

static void expect_failure(const char *kind, const char *text, mb_status code, const char *message)
{
    mb_task *task = NULL;
    const mb_status status = mb_task_open(kind, write_text("bad.jsonl", text), 0, 0, &task);
    if (status != code || strstr(mb_status_message(), message) == NULL)
        fail_msg("%s: %s", text, mb_status_message());
    assert_null(task);
    mb_status_reset();
}

static void test_bad_questions(void **state)
{
    (void)state;
    static const char good[] = "{\"question\":\"q\",\"choices\":{\"text\":[\"a\",\"b\"],\"label\":[\"A\","
                               "\"B\"]},\"answerKey\":\"B\"}\n";
    char text[1024];
    const struct {
        const char *kind, *line, *message;
    } cases[] = {
        {"arc_easy",
         "{\"question\":\"q\",\"choices\":{\"text\":[\"a\"],\"label\":[\"A\"]},\"answerKey\":\"C\"}",
         "\"C\" is none of the 1"},
        {"arc_easy", "{\"question\":\"q\",\"choices\":{\"text\":[\"a\"],\"label\":[\"A\"]}}",
         "the answer is missing"},
        {"arc_easy", "{\"question\":\"q\",\"choices\":{\"text\":[\"a\"],\"label\":[]},\"answerKey\":\"A\"}",
         "differ in number"},
        {"arc_easy", "{\"question\":\"q\",\"answerKey\":\"A\"}", "choices are missing"},
        {"arc_easy", "{\"choices\":[],\"answerKey\":\"A\"}", "\"question\" is missing"},
        {"arc_challenge", "{\"question\":1,\"choices\":[],\"answerKey\":\"A\"}", "\"question\" is no text"},
        {"choice", "{\"query\":\"q\",\"choices\":[],\"gold\":0}", "no list of texts"},
        {"choice", "{\"query\":\"q\",\"choices\":[1],\"gold\":0}", "choice 1 is no text"},
        {"choice", "{\"query\":\"q\",\"choices\":[\"a\"],\"gold\":1}", "number is none of the 1"},
        {"choice", "{\"query\":\"q\",\"choices\":[\"a\"],\"gold\":-1}", "is none of the 1"},
        {"choice", "{\"query\":\"q\",\"choices\":[\"a\"],\"gold\":[\"A\"]}", "not one choice"},
        {"choice", "{\"choices\":[\"a\"],\"gold\":0}", "what is asked is missing"},
        {"choice", "{\"query\":\"q\",", "line 2: broken JSON"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        snprintf(text, sizeof text, "%s%s\n", good, cases[i].line);
        expect_failure(cases[i].kind, text, MB_EDATA, cases[i].message);
        expect_failure(cases[i].kind, text, MB_EDATA, "bad.jsonl:");
    }
    expect_failure("arc_easy", "", MB_EDATA, "holds no questions");
    expect_failure("arc", good, MB_EUSAGE, "there is no task \"arc\"");
    expect_failure(
        "hellaswag",
        "{\"activity_label\":\"a\",\"ctx_a\":\"b\",\"ctx_b\":\"c\",\"endings\":[\"d\"],\"label\":\"\"}",
        MB_EDATA, "none of the 1");
    expect_failure("hellaswag",
                   "{\"activity_label\":\"a\",\"ctx_a\":\"b\",\"endings\":[\"d\"],\"label\":\"0\"}", MB_EDATA,
                   "ctx_b");
    expect_failure("mmlu", "{\"question\":\"q\",\"choices\":[\"a\"],\"answer\":0,\"subject\":\"s\"}",
                   MB_EDATA, "four texts");
    expect_failure(
        "mmlu", "{\"question\":\"q\",\"choices\":[\"a\",\"b\",\"c\",\"d\"],\"answer\":4,\"subject\":\"s\"}",
        MB_EDATA, "none of A, B");
    expect_failure("mmlu", "{\"question\":\"q\",\"choices\":[\"a\",\"b\",\"c\",\"d\"],\"answer\":0}",
                   MB_EDATA, "subject");
    mb_task *task = NULL;
    assert_int_equal(mb_task_open("arc_easy", write_text("ok.jsonl", good), 5, 0, &task), MB_EUNSUPPORTED);
    assert_non_null(strstr(mb_status_message(), "requests"));
    mb_status_reset();
}

#define REQUEST(doc, idx, label, context, text)                                                              \
    "{\"request_type\":\"loglikelihood\",\"doc_id\":" #doc ",\"idx\":" #idx ",\"label\":" #label             \
    ",\"request\":{\"context\":\"" context "\",\"continuation\":\"" text "\"}}\n"

static void test_bad_requests(void **state)
{
    (void)state;
    expect_failure("requests", REQUEST(0, 0, 0, "a", " b") REQUEST(0, 2, 0, "a", " c"), MB_EDATA,
                   "choice 2 comes where choice 1");
    expect_failure("requests", REQUEST(0, 0, 0, "a", " b") REQUEST(0, 1, 0, "x", " c"), MB_EUNSUPPORTED,
                   "different contexts");
    expect_failure("requests", REQUEST(0, 0, 1, "a", " b"), MB_EDATA, "its label 1 is none of its 1 choices");
    expect_failure("requests", "{\"request_type\":\"generate_until\"}", MB_EUNSUPPORTED, "generate_until");
    expect_failure("requests", "{\"doc_id\":0,\"idx\":0,\"label\":0}", MB_EDATA, "context");
    mb_task *task = open_ok("requests",
                            write_text("r.jsonl", REQUEST(3, 0, 1, "a", " b") REQUEST(3, 1, 1, "a", "c")
                                                      REQUEST(5, 0, 0, "", " d")),
                            0, 0);
    int64_t characters, bytes;
    assert_int_equal(task->count, 2);
    assert_string_equal(task->delimiter, "");
    assert_string_equal(task->questions[0].choices[0], " b");
    assert_int_equal(task->questions[1].doc_id, 5);
    mb_task_choice_length(task, 0, 0, &characters, &bytes);
    assert_int_equal(characters, 1);
    mb_task_close(&task);
}

static void test_real_files(void **state)
{
    (void)state;
    const struct {
        const char *kind, *name;
        int64_t count, choices;
    } files[] = {
        {"requests", "requests/arc_easy_rc_0shot.jsonl", 570, 2281},
        {"arc_easy", "multiple-choice/arc_easy_test.jsonl", 2376, 0},
        {"choice", "multiple-choice/openbookqa_test.jsonl", 500, 2000},
        {"choice", "multiple-choice/socialiqa_val.jsonl", 1935, 5805},
        {"choice", "agieval/aqua-rat.jsonl", 254, 1270},
        {"choice", "agieval/logiqa-en.jsonl", 651, 2604},
    };
    skip_without(shared_data());
    for (size_t f = 0; f < sizeof files / sizeof *files; f++) {
        char path[512];
        int64_t choices = 0;
        snprintf(path, sizeof path, "%s/datasets/%s", shared_data(), files[f].name);
        mb_task *task = open_ok(files[f].kind, path, 0, 0);
        assert_int_equal(task->count, files[f].count);
        for (int64_t i = 0; i < task->count; i++) choices += task->questions[i].choice_count;
        if (files[f].choices > 0) assert_int_equal(choices, files[f].choices);
        if (f == 0) {
            assert_string_equal(task->name, "arc_easy");
            assert_string_equal(task->delimiter, " ");
            assert_int_equal(task->unconditional_count, 2281);
            assert_string_equal(task->questions[0].choices[1], "television");
        }
        mb_task_close(&task);
    }
}

static void check_ids(const mb_ids *ids, const json_t *expected, const char *where, size_t number)
{
    bool same = ids->count == (int64_t)json_array_size(expected);
    for (int64_t i = 0; same && i < ids->count; i++)
        same = ids->data[i] == (uint32_t)json_integer_value(json_array_get(expected, (size_t)i));
    if (!same) fail_msg("%s, request %zu: other ids (%lld of them)", where, number, (long long)ids->count);
}

/* The harness's request rule, with the tokenizers of four families. */
static void test_request_ids(void **state)
{
    (void)state;
    const json_t *requests = json_object_get(golden, "requests");
    static const char *const names[] = {"gpt2", "llama2", "qwen3", "olmoe"};
    static const char *const prefixes[] = {"<|endoftext|>", "<s>", "<|im_end|>", "<|endoftext|>"};
    char path[512];
    for (int t = 0; t < 4; t++) {
        mb_tokenizer *tokenizer = NULL;
        mb_tokenizer_scratch *scratch = NULL;
        mb_ids context = {0}, continuation = {0};
        mb_str s = MB_STR_EMPTY;
        const json_t *list = json_object_get(requests, names[t]);
        snprintf(path, sizeof path, "%s/tokenizers/%s", shared_data(), names[t]);
        skip_without(path);
        if (mb_tokenizer_open(path, &tokenizer) != MB_OK) fail_msg("%s", mb_status_message());
        assert_int_equal(mb_tokenizer_scratch_create(tokenizer, &scratch), MB_OK);
        uint32_t prefix = 0;
        assert_true(mb_tokenizer_find(tokenizer, prefixes[t], &prefix));
        for (size_t i = 0; i < json_array_size(list); i++) {
            const json_t *one = json_array_get(list, i);
            json_t *line = json_pack("{s:i,s:i,s:i,s:{s:O,s:O}}", "doc_id", (int)i, "idx", 0, "label", 0,
                                     "request", "context", json_object_get(one, "context"), "continuation",
                                     json_object_get(one, "continuation"));
            assert_int_equal(mb_json_print(line, 0, false, &s), MB_OK);
            mb_str_add(&s, "\n");
            json_decref(line);
        }
        mb_task *task = open_ok("requests", write_text("ids.jsonl", mb_str_text(&s)), 0, 0);
        for (size_t i = 0; i < json_array_size(list); i++) {
            const json_t *one = json_array_get(list, i), *want = json_object_get(one, "context_ids");
            const mb_status status =
                mb_task_request(task, tokenizer, scratch, (int64_t)i, 0, &context, &continuation);
            if (json_array_size(json_object_get(one, "continuation_ids")) ==
                0) { /* the harness stops here, so do we */
                assert_int_equal(status, MB_EDATA);
                assert_non_null(strstr(mb_status_message(), "adds no token"));
                mb_status_reset();
                continue;
            }
            if (status != MB_OK) fail_msg("%s", mb_status_message());
            if (json_array_size(want) > 0) {
                check_ids(&context, want, names[t], i);
            } else { /* the harness stops here; we score behind the prefix token */
                assert_int_equal(context.count, 1);
                assert_int_equal(context.data[0], prefix);
            }
            check_ids(&continuation, json_object_get(one, "continuation_ids"), names[t], i);
        }
        mb_task_close(&task);
        mb_str_destroy(&s);
        mb_ids_destroy(&context);
        mb_ids_destroy(&continuation);
        mb_tokenizer_scratch_destroy(&scratch);
        mb_tokenizer_close(&tokenizer);
    }
}

static void test_capitalize(void **state)
{
    (void)state;
    const struct {
        const char *from, *to;
    } cases[] = {
        {"", ""},
        {"aBC dEF", "Abc def"},
        {"\xC3\x89TAT", "\xC3\x89tat"},
        {"\xC3\x9FX", "Ssx"},
        {"\xEF\xAC\x81X", "Fix"},
        {"\xC7\x86X", "\xC7\x85x"},
        {"a\xC4\xB0", "Ai\xCC\x87"},
        {"\xCE\x91\xCE\xA3", "\xCE\x91\xCF\x82"},
        {"\xCE\x91\xCE\xA3\xCE\x91", "\xCE\x91\xCF\x83\xCE\xB1"},
        {"1A", "1a"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        mb_str s = MB_STR_EMPTY;
        assert_int_equal(mb_tasks_text_capitalize(cases[i].from, &s), MB_OK);
        assert_string_equal(mb_str_text(&s), cases[i].to);
        mb_str_destroy(&s);
    }
    mb_str s = MB_STR_EMPTY;
    assert_int_equal(mb_tasks_text_capitalize("a\xFF", &s), MB_EDATA);
    mb_status_reset();
    mb_str_destroy(&s);
}

static int setup(void **state)
{
    (void)state;
    return mkdtemp(folder) == NULL || mb_json_read("tests/golden/tasks.json", &golden) != MB_OK;
}

static int teardown(void **state)
{
    (void)state;
    json_decref(golden);
    if (mb_files_remove_tree(folder) != MB_OK) return 1;
    return mb_memory_live_blocks() != 0;
}

int main(void)
{
    cmocka_set_message_output(CM_OUTPUT_TAP);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_prompts),      cmocka_unit_test(test_mmlu),
        cmocka_unit_test(test_choice),       cmocka_unit_test(test_bad_questions),
        cmocka_unit_test(test_bad_requests), cmocka_unit_test(test_real_files),
        cmocka_unit_test(test_request_ids),  cmocka_unit_test(test_capitalize),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
