/* question: files of questions in one form, their identity, and the prompts made of them. */
#include "mb_test.h"

#include <math.h>

#include "base/files.h"
#include "text/question.h"

/* A file's line with the id that its content has. */
static void add_line(mb_str *file, const char *line)
{
    json_t *object;
    char id[MB_QUESTION_ID];
    mb_test_ok(mb_json_parse(line, strlen(line), "line", &object));
    mb_question_body body = {.text = json_string_value(json_object_get(object, "question"))};
    json_t *option;
    size_t i;
    json_array_foreach(json_object_get(object, "options"), i, option)
    {
        body.options[i] = json_is_string(option) ? json_string_value(option) : "";
        body.option_count = (int)i + 1;
    }
    mb_test_ok(mb_question_hash(&body, id));
    mb_test_ok(mb_json_set(object, "id", json_string(id)));
    mb_test_ok(mb_json_print(object, 0, false, file));
    mb_test_ok(mb_str_add(file, "\n"));
    json_decref(object);
}

static const char *const single =
    "{\"source\": \"demo\", \"source_index\": 3, \"kind\": \"single\", \"subject\": \"sums\", \"question\": "
    "\"2 + 2?\","
    " \"options\": [\"3\", \"4\", \"5\", \"22\"], \"answer\": 1, \"chance\": 0.25,"
    " \"few_shot\": [{\"question\": \"1 + 1?\", \"options\": [\"2\", \"1\"], \"answer\": 0}]}";
static const char *const multiple =
    "{\"source\": \"demo\", \"source_index\": 4, \"kind\": \"multiple\", \"question\": \"Even?\","
    " \"options\": [\"2\", \"3\", \"4\"], \"answer\": [0, 2], \"chance\": 0.14285714285714285, \"few_shot\": "
    "[]}";
static const char *const cloze = "{\"source\": \"demo\", \"source_index\": 5, \"kind\": \"cloze\", "
                                 "\"question\": \"The capital of France?\","
                                 " \"options\": [], \"answer\": \"Paris\", \"answers\": [\"Paris\", \"City "
                                 "of Paris\"], \"chance\": 0, \"few_shot\": []}";

static char *write_file(const char *folder, const char *name, const mb_str *file)
{
    char *path = mb_test_path(folder, name);
    mb_test_ok(mb_files_write(path, file->data, file->length));
    return path;
}

static void test_a_file_is_read_as_it_stands(void **state)
{
    (void)state;
    char *folder = mb_test_folder_make();
    mb_str file = MB_STR_EMPTY;
    mb_questions *set = NULL;
    add_line(&file, single);
    add_line(&file, multiple);
    add_line(&file, cloze);
    char *path = write_file(folder, "questions.jsonl", &file);
    mb_test_ok(mb_questions_open(path, &set));
    assert_int_equal(mb_questions_count(set), 3);
    const mb_question *q = mb_questions_at(set, 0);
    assert_int_equal(q->kind, MB_QUESTION_SINGLE);
    assert_int_equal(q->answer, 1);
    assert_int_equal(q->body.answer_mask, 2);
    assert_int_equal(q->body.option_count, 4);
    assert_string_equal(q->opt_subject, "sums");
    assert_int_equal(q->few_shot_count, 1);
    assert_int_equal(q->few_shot[0].answer_mask, 1);
    q = mb_questions_at(set, 1);
    assert_int_equal(q->kind, MB_QUESTION_MULTIPLE);
    assert_int_equal(q->body.answer_mask, 5);
    assert_int_equal(q->answer, -1);
    assert_true(fabs(q->chance - 1.0 / 7) < 1e-12);
    q = mb_questions_at(set, 2);
    assert_int_equal(q->kind, MB_QUESTION_CLOZE);
    assert_string_equal(q->body.answer, "Paris");
    assert_int_equal(json_array_size(q->accepted), 2);
    mb_questions_close(&set);
    mb_free(path);
    mb_str_destroy(&file);
    mb_test_folder_remove(&folder);
}

static void test_prompts(void **state)
{
    (void)state;
    char *folder = mb_test_folder_make();
    static const struct {
        const char *line;
        mb_question_style style;
        int64_t few_shot;
        const char *prompt, *solution;
    } rows[] = {
        {single, MB_QUESTION_LETTERS, 0, "Question: 2 + 2?\nA. 3\nB. 4\nC. 5\nD. 22\nAnswer:", " B"},
        {single, MB_QUESTION_LETTERS, 5,
         "Question: 1 + 1?\nA. 2\nB. 1\nAnswer: A\n\nQuestion: 2 + 2?\nA. 3\nB. 4\nC. 5\nD. 22\nAnswer:",
         " B"},
        {single, MB_QUESTION_TEXTS, 1, "Question: 1 + 1?\nAnswer: 2\n\nQuestion: 2 + 2?\nAnswer:", " 4"},
        {multiple, MB_QUESTION_LETTERS, 1, "Question: Even?\nA. 2\nB. 3\nC. 4\nAnswer:", " A, C"},
        {multiple, MB_QUESTION_TEXTS, 1, "Question: Even?\nAnswer:", " 2; 4"},
        {cloze, MB_QUESTION_LETTERS, 1, "Question: The capital of France?\nAnswer:", " Paris"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        mb_str file = MB_STR_EMPTY, text = MB_STR_EMPTY;
        mb_questions *set = NULL;
        add_line(&file, rows[i].line);
        char *path = write_file(folder, "one.jsonl", &file);
        mb_test_ok(mb_questions_open(path, &set));
        mb_test_ok(mb_question_prompt(mb_questions_at(set, 0), rows[i].style, rows[i].few_shot, &text));
        assert_string_equal(mb_str_text(&text), rows[i].prompt);
        mb_str_reset(&text);
        mb_test_ok(mb_question_solution(mb_questions_at(set, 0), rows[i].style, &text));
        assert_string_equal(mb_str_text(&text), rows[i].solution);
        mb_questions_close(&set);
        mb_str_destroy(&text);
        mb_str_destroy(&file);
        mb_free(path);
    }
    mb_test_folder_remove(&folder);
}

/* White space, case and a mark at the end change nothing; other words, another order of options do. */
static void test_identity(void **state)
{
    (void)state;
    const mb_question_body a = {.text = "What is  it?", .options = {"One", "two"}, .option_count = 2};
    const mb_question_body b = {.text = " what is it", .options = {"one.", "Two "}, .option_count = 2};
    const mb_question_body c = {.text = "What is it?", .options = {"two", "one"}, .option_count = 2};
    const mb_question_body d = {.text = "What is itone", .options = {"two"}, .option_count = 1};
    char id[4][MB_QUESTION_ID];
    uint64_t text[3];
    mb_test_ok(mb_question_hash(&a, id[0]));
    mb_test_ok(mb_question_hash(&b, id[1]));
    mb_test_ok(mb_question_hash(&c, id[2]));
    mb_test_ok(mb_question_hash(&d, id[3]));
    assert_string_equal(id[0], id[1]);
    assert_string_not_equal(id[0], id[2]);
    assert_string_not_equal(id[0], id[3]);
    mb_test_ok(mb_question_text_hash(&(mb_question){.body = a}, &text[0]));
    mb_test_ok(mb_question_text_hash(&(mb_question){.body = c}, &text[1]));
    mb_test_ok(mb_question_text_hash(&(mb_question){.body = d}, &text[2]));
    assert_true(text[0] == text[1]);
    assert_true(text[0] != text[2]);
}

static void test_what_is_wrong_is_named_with_its_line(void **state)
{
    (void)state;
    char *folder = mb_test_folder_make();
    static const struct {
        const char *from, *to, *message;
    } rows[] = {
        {"\"answer\": 1", "\"answer\": 4", "answer 4 is no option"},
        {"\"answer\": 1", "\"answer\": \"B\"", "the number of an option"},
        {"\"chance\": 0.25", "\"chance\": 0.5", "it is 0.25"},
        {"\"kind\": \"single\"", "\"kind\": \"triple\"", "single, multiple or cloze"},
        {"\"kind\": \"single\"", "\"kind\": \"cloze\"", "has no options"},
        {"[\"3\", \"4\", \"5\", \"22\"]", "[\"3\"]", "2 to 10"},
        {"\"22\"]", "7]", "option 3 is no text"},
        {"\"source\": \"demo\", ", "", "source"},
        {"\"answer\": 0}", "\"answer\": 2}", "answer 2 is no option"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        mb_str file = MB_STR_EMPTY, line = MB_STR_EMPTY;
        mb_questions *set = NULL;
        const char *at = strstr(single, rows[i].from);
        assert_non_null(at);
        mb_test_ok(mb_str_append(&line, single, (size_t)(at - single)));
        mb_test_ok(mb_str_add(&line, rows[i].to));
        mb_test_ok(mb_str_add(&line, at + strlen(rows[i].from)));
        add_line(&file, cloze);
        add_line(&file, mb_str_text(&line));
        char *path = write_file(folder, "wrong.jsonl", &file);
        mb_test_fails(mb_questions_open(path, &set), MB_EDATA, rows[i].message);
        assert_non_null(strstr(mb_status_message(), "wrong.jsonl: line 2: "));
        assert_null(set);
        mb_str_destroy(&line);
        mb_str_destroy(&file);
        mb_free(path);
    }
    mb_test_folder_remove(&folder);
}

static void test_twice_or_edited_is_refused(void **state)
{
    (void)state;
    char *folder = mb_test_folder_make();
    mb_str file = MB_STR_EMPTY;
    mb_questions *set = NULL;
    add_line(&file, single);
    add_line(&file, cloze);
    add_line(&file, single);
    char *path = write_file(folder, "twice.jsonl", &file);
    mb_test_fails(mb_questions_open(path, &set), MB_EDATA, "stands there twice");
    mb_free(path);
    mb_str_reset(&file);
    add_line(&file, single);
    memcpy(strstr(file.data, "2 + 2?"), "2 + 3?", 6);
    path = write_file(folder, "edited.jsonl", &file);
    mb_test_fails(mb_questions_open(path, &set), MB_EDATA, "edited after moe-merge");
    mb_free(path);
    mb_str_destroy(&file);
    mb_test_folder_remove(&folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_file_is_read_as_it_stands),
        cmocka_unit_test(test_prompts),
        cmocka_unit_test(test_identity),
        cmocka_unit_test(test_what_is_wrong_is_named_with_its_line),
        cmocka_unit_test(test_twice_or_edited_is_refused),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, mb_test_teardown);
}
