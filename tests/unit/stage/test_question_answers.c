/* question_answers: picks from log-likelihoods, greedy texts, and shares of right answers by source and kind. */
#include "mb_test.h"

#include "base/json.h"
#include "stage/question_answers.h"

enum { Q = 6, C = 4 };

/* Singles of 4, 2 and 3 options, one multiple of 3, two cloze. */
static const struct {
    const char *source, *text, *options[C], *accepted;
    int answer, mask, n;
} rows[Q] = {{"arc", "How many?", {"a", "bb", "ccc", "dddd"}, NULL, 2, 0, 4},
             {"arc", "Is it?", {"yes", "n\xc3\xb6"}, NULL, 0, 0, 2},
             {"mmlu", "Which one?", {"x", "y", "z"}, NULL, 1, 0, 3},
             {"mmlu", "Which ones?", {"p", "q", "r"}, NULL, -1, 5, 3},
             {"gaps", "The sky is", {NULL}, "[\"Blue\", \"light blue\"]", -1, 0, 0},
             {"gaps", "Six times seven is", {NULL}, "[\"42\"]", -1, 0, 0}};

static json_t *answer_of(int i)
{
    json_t *list = json_array();
    if (rows[i].accepted == NULL && rows[i].mask == 0) {
        json_decref(list);
        return json_integer(rows[i].answer);
    }
    for (int c = 0; c < rows[i].n; c++)
        if (rows[i].mask >> c & 1) json_array_append_new(list, json_integer(c));
    if (rows[i].accepted == NULL) return list;
    json_decref(list);
    mb_test_ok(mb_json_parse(rows[i].accepted, strlen(rows[i].accepted), "row", &list));
    json_t *first = json_incref(json_array_get(list, 0));
    json_decref(list);
    return first;
}

static void add_row(int i, mb_str *file)
{
    char id[MB_QUESTION_ID];
    const char *kind = rows[i].accepted != NULL ? "cloze" : rows[i].mask != 0 ? "multiple" : "single";
    mb_question_body body = {.text = rows[i].text, .option_count = rows[i].n};
    json_t *options = json_array();
    for (int c = 0; c < rows[i].n; c++) {
        body.options[c] = rows[i].options[c];
        json_array_append_new(options, json_string(rows[i].options[c]));
    }
    mb_test_ok(mb_question_hash(&body, id));
    const double chance = rows[i].n == 0 ? 0 : rows[i].mask != 0 ? 1.0 / 7 : 1.0 / rows[i].n;
    json_t *object = json_pack("{s:s, s:s, s:i, s:s, s:s, s:o, s:o, s:[], s:f}", "id", id, "source",
                               rows[i].source, "source_index", i, "kind", kind, "question", rows[i].text,
                               "options", options, "answer", answer_of(i), "few_shot", "chance", chance);
    if (rows[i].accepted != NULL) {
        json_t *accepted = NULL;
        mb_test_ok(mb_json_parse(rows[i].accepted, strlen(rows[i].accepted), "row", &accepted));
        mb_test_ok(mb_json_set(object, "answers", accepted));
    }
    mb_test_ok(mb_json_print(object, 0, false, file));
    mb_test_ok(mb_str_add(file, "\n"));
    json_decref(object);
}

static mb_questions *open_questions(const char *folder)
{
    mb_str file = MB_STR_EMPTY;
    mb_questions *questions = NULL;
    for (int i = 0; i < Q; i++) add_row(i, &file);
    char *path = mb_test_write(folder, "questions.jsonl", mb_str_text(&file));
    mb_test_ok(mb_questions_open(path, &questions));
    mb_str_destroy(&file);
    mb_free(path);
    return questions;
}

static const int32_t tokens[Q] = {10, 11, 12, 13, 14, 15};
static const float loglik[Q * C] = {-4, -3, -6,    -8,  -1,  -2,  NAN, NAN, -2,  -2,  -3,  NAN,
                                    -1, -3, -1.5F, NAN, NAN, NAN, NAN, NAN, NAN, NAN, NAN, NAN};

static mb_answers *make(const mb_questions *questions, mb_question_style style)
{
    mb_answers *a = NULL;
    mb_test_ok(mb_question_answers_create(questions, Q, C, tokens, style, 3, &a));
    mb_question_answers_pick(questions, loglik, a);
    return a;
}

static void test_picks(void **state)
{
    (void)state;
    static const int32_t by_letter[Q] = {1, 0, 0, 5, -1, -1};
    char *folder = mb_test_folder_make();
    mb_questions *questions = open_questions(folder);
    mb_answers *letters = make(questions, MB_QUESTION_LETTERS), *texts = make(questions, MB_QUESTION_TEXTS);
    assert_memory_equal(letters->picked, by_letter, sizeof by_letter);
    assert_int_equal(texts->picked[0], 1); /* -4, -1.5, -2, -2 per byte */
    assert_int_equal(texts->picked[1], 0);
    const double e[4] = {exp(-1), 1, exp(-3), exp(-5)}, sum = e[0] + e[1] + e[2] + e[3];
    for (int c = 0; c < 4; c++) mb_test_near(letters->choice_prob[c], e[c] / sum, 1e-6);
    const double t[4] = {exp(-4.0), exp(-1.5), exp(-2.0), exp(-2.0)}, all = t[0] + t[1] + t[2] + t[3];
    for (int c = 0; c < 4; c++) mb_test_near(texts->choice_prob[c], t[c] / all, 1e-6);
    /* "yes" has 3 bytes, and so has the other, of 2 characters. */
    mb_test_near(texts->choice_prob[C] / texts->choice_prob[C + 1], exp(1.0 / 3), 1e-6);
    assert_true(isnan(letters->choice_prob[C + 2]) && isnan(letters->choice_prob[4 * C]));
    static const uint8_t right[Q] = {0, 1, 0, 1, 0, 0};
    assert_memory_equal(letters->right, right, sizeof right);
    static const int32_t answers[Q] = {2, 0, 1, 5, -1, -1}, source[Q] = {0, 0, 1, 1, 2, 2};
    assert_memory_equal(letters->answer, answers, sizeof answers);
    assert_memory_equal(letters->source, source, sizeof source);
    assert_int_equal(letters->sources, 3);
    assert_string_equal(letters->source_names[1], "mmlu");
    assert_string_equal(letters->style, "letters");
    assert_int_equal(letters->few_shot, 3);
    assert_memory_equal(letters->tokens, tokens, sizeof tokens);
    mb_answers_close(&letters);
    mb_answers_close(&texts);
    mb_questions_close(&questions);
    mb_test_folder_remove(&folder);
}

static void test_texts(void **state)
{
    (void)state;
    char *folder = mb_test_folder_make(), *path = mb_test_path(folder, "answers.h5");
    mb_questions *questions = open_questions(folder);
    mb_answers *a = make(questions, MB_QUESTION_LETTERS), *back = NULL;
    const char *given[Q] = {"not", "read", NULL, NULL, " LIGHT  blue.", "it is 42."};
    mb_test_ok(mb_question_answers_texts(questions, given, MB_ANSWER_MATCH_TEXT, a));
    assert_int_equal(a->text_count, 2);
    assert_string_equal(a->texts[0], "it is 42");
    assert_string_equal(a->texts[1], "light blue");
    assert_true(a->picked[4] == 1 && a->picked[5] == 0);
    assert_true(a->right[4] == 1 && a->right[5] == 0);
    /* What is made can be written, and is what is read. */
    a->model_hash = mb_strdup("model");
    a->tokenizer_hash = mb_strdup("tokenizer");
    mb_test_ok(mb_answers_write(a, path));
    mb_test_ok(mb_answers_open(path, &back));
    assert_memory_equal(back->picked, a->picked, Q * sizeof *a->picked);
    mb_answers_close(&back);
    mb_answers_close(&a);
    /* One text for both, of which only one is right; a prompt without an answer. */
    given[4] = given[5] = "Blue";
    a = make(questions, MB_QUESTION_LETTERS);
    mb_test_ok(mb_question_answers_texts(questions, given, MB_ANSWER_MATCH_TEXT, a));
    assert_true(a->text_count == 1 && a->picked[4] == 0 && a->picked[5] == 0);
    assert_true(a->right[4] == 1 && a->right[5] == 0);
    mb_answers_close(&a);
    given[4] = "";
    given[5] = NULL;
    a = make(questions, MB_QUESTION_LETTERS);
    mb_test_ok(mb_question_answers_texts(questions, given, MB_ANSWER_MATCH_TEXT, a));
    assert_true(a->picked[4] == 0 && a->right[4] == 0 && a->picked[5] == -1 && a->text_count == 1);
    a->model_hash = mb_strdup("model");
    a->tokenizer_hash = mb_strdup("tokenizer");
    mb_test_ok(mb_answers_write(a, path));
    mb_test_ok(mb_answers_open(path, &back));
    assert_true(back->text_count == 1 && back->texts[0][0] == 0);
    mb_answers_close(&back);
    mb_answers_close(&a);
    mb_questions_close(&questions);
    mb_free(path);
    mb_test_folder_remove(&folder);
}

static void test_numbers(void **state)
{
    (void)state;
    char *folder = mb_test_folder_make();
    mb_questions *questions = open_questions(folder);
    mb_answers *a = make(questions, MB_QUESTION_LETTERS);
    const char *given[Q] = {NULL, NULL, NULL, NULL, NULL, "6 * 7 = 42.0, I think"};
    mb_test_ok(mb_question_answers_texts(questions, given, MB_ANSWER_MATCH_NUMBER, a));
    assert_string_equal(a->texts[0], "42");
    assert_int_equal(a->right[5], 1);
    mb_answers_close(&a);
    a = make(questions, MB_QUESTION_LETTERS);
    given[4] = "7";
    mb_test_fails(mb_question_answers_texts(questions, given, MB_ANSWER_MATCH_NUMBER, a), MB_EDATA,
                  mb_questions_at(questions, 4)->id);
    mb_answers_close(&a);
    mb_questions_close(&questions);
    mb_test_folder_remove(&folder);
}

static void test_summary(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        int64_t n;
        double accuracy, chance;
    } expected[] = {{"all", 6, 2.0 / 6, (1.0 / 4 + 1.0 / 2 + 1.0 / 3 + 1.0 / 7) / 6},
                    {"source/arc", 2, 0.5, 0.375},
                    {"source/mmlu", 2, 0.5, (1.0 / 3 + 1.0 / 7) / 2},
                    {"source/gaps", 2, 0, 0},
                    {"kind/single", 3, 1.0 / 3, (1.0 / 4 + 1.0 / 2 + 1.0 / 3) / 3},
                    {"kind/multiple", 1, 1, 1.0 / 7},
                    {"kind/cloze", 2, 0, 0}};
    char *folder = mb_test_folder_make();
    mb_questions *questions = open_questions(folder);
    mb_answers *a = make(questions, MB_QUESTION_LETTERS), *first = NULL;
    mb_question_answers_summary s = {0}, again = {0};
    mb_test_ok(mb_question_answers_summarise(a, 500, 7, 0.9, &s));
    mb_test_ok(mb_question_answers_summarise(a, 500, 7, 0.9, &again));
    assert_int_equal(s.count, sizeof expected / sizeof *expected);
    for (int64_t i = 0; i < s.count; i++) {
        assert_string_equal(s.row[i].name, expected[i].name);
        assert_int_equal(s.row[i].questions, expected[i].n);
        mb_test_near_abs(s.row[i].accuracy, expected[i].accuracy, 1e-12, 0);
        mb_test_near_abs(s.row[i].chance, expected[i].chance, 1e-6, 0);
        assert_true(s.row[i].low <= s.row[i].accuracy && s.row[i].accuracy <= s.row[i].high);
        assert_true(s.row[i].low == again.row[i].low && s.row[i].high == again.row[i].high);
    }
    assert_true(s.row[0].low < s.row[0].high);
    /* Fewer questions are another set. */
    mb_test_ok(mb_question_answers_create(questions, 2, C, tokens, MB_QUESTION_LETTERS, 3, &first));
    assert_string_not_equal(first->questions_hash, a->questions_hash);
    assert_int_equal(first->sources, 1);
    mb_answers_close(&first);
    mb_question_answers_summary_reset(&s);
    mb_question_answers_summary_reset(&again);
    mb_answers_close(&a);
    mb_questions_close(&questions);
    mb_test_folder_remove(&folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_picks), cmocka_unit_test(test_texts),
                                       cmocka_unit_test(test_numbers), cmocka_unit_test(test_summary)};
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, mb_test_teardown);
}
