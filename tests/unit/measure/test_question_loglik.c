/* question_loglik: the numbers of choice.h on the same texts, parts that stay, and files of several kinds. */
#include "mb_test.h"

#include "base/hash.h"
#include "base/json.h"
#include "measure/choice.h"
#include "measure/question_loglik.h"

enum { Q = 24, C = 5 };

typedef struct stage {
    mb_comm *comm;
    mb_ops *ops;
    mb_lm *lm;
    mb_tokenizer *tokenizer;
    char *folder;
    mb_questions *questions;
} stage;

/* A question of 2 to C options, or, the last two, cloze; with its id. */
static void add_question(int i, mb_str *file)
{
    const bool is_cloze = i >= Q - 2;
    const int n = is_cloze ? 0 : 2 + i % (C - 1);
    char text[80], option[C][32], id[MB_QUESTION_ID];
    mb_question_body body = {.text = text, .option_count = n};
    json_t *options = json_array(), *object;
    snprintf(text, sizeof text, "Once upon a time there were %d little dogs in a big red house", i);
    for (int c = 0; c < n; c++) {
        snprintf(option[c], sizeof option[c], "%.*s %d", 4 + 3 * c, "the dog was happy", i + c);
        body.options[c] = option[c];
        json_array_append_new(options, json_string(option[c]));
    }
    mb_test_ok(mb_question_hash(&body, id));
    object = json_pack("{s:s, s:s, s:i, s:s, s:s, s:o, s:[], s:f}", "id", id, "source", "demo",
                       "source_index", i, "kind", is_cloze ? "cloze" : "single", "question", text, "options",
                       options, "few_shot", "chance", is_cloze ? 0.0 : 1.0 / n);
    mb_test_ok(mb_json_set(object, "answer", is_cloze ? json_string("house") : json_integer(i % n)));
    if (is_cloze) mb_test_ok(mb_json_set(object, "answers", json_pack("[s]", "house")));
    mb_test_ok(mb_json_print(object, 0, false, file));
    mb_test_ok(mb_str_add(file, "\n"));
    json_decref(object);
}

static bool stage_open(stage *s)
{
    char *model = mb_test_data("models/stories260K/hf"), *path;
    mb_str file = MB_STR_EMPTY;
    *s = (stage){0};
    if (model == NULL) return false;
    const mb_lm_options options = {.path = model, .train = "none"};
    s->folder = mb_test_folder_make();
    for (int i = 0; i < Q; i++) add_question(i, &file);
    path = mb_test_write(s->folder, "questions.jsonl", mb_str_text(&file));
    mb_test_ok(mb_questions_open(path, &s->questions));
    mb_test_ok(mb_comm_create(NULL, NULL, &s->comm));
    mb_test_ok(mb_ops_create("cpu", 1, &s->ops));
    mb_test_ok(mb_lm_open(s->ops, &options, &s->lm));
    mb_test_ok(mb_tokenizer_open(model, &s->tokenizer));
    mb_str_destroy(&file);
    mb_free(path);
    mb_free(model);
    return true;
}

static void stage_close(stage *s)
{
    mb_questions_close(&s->questions);
    mb_tokenizer_close(&s->tokenizer);
    mb_lm_destroy(&s->lm);
    mb_ops_destroy(&s->ops);
    mb_comm_destroy(&s->comm);
    mb_test_folder_remove(&s->folder);
}

/* Run into loglik [Q, C]; how many parts were there before, and how many there are. */
static int64_t run(stage *s, const mb_question_loglik_options *options, const char *key, float *loglik,
                   int64_t *out_parts)
{
    mb_question_loglik *l = NULL;
    int64_t skipped = -1;
    mb_test_ok(mb_question_loglik_open(s->questions, s->tokenizer, options, s->folder, key, &l));
    assert_int_equal(mb_question_loglik_count(l), Q);
    assert_int_equal(mb_question_loglik_choices(l), C);
    mb_test_ok(mb_question_loglik_run(s->comm, s->lm, l, &skipped));
    mb_test_ok(mb_question_loglik_read(l, loglik));
    *out_parts = mb_question_loglik_parts(l);
    mb_question_loglik_close(&l);
    return skipped;
}

/* The texts by hand, scored one question at a time. */
static void check_question(stage *s, mb_question_style style, int64_t q, const float *loglik)
{
    const mb_question *question = mb_questions_at(s->questions, q);
    char *choices[C], letter[C][2];
    mb_str context = MB_STR_EMPTY;
    mb_choice_result result = {0};
    const int n = question->body.option_count;
    mb_test_ok(mb_str_add_format(&context, "Question: %s\n", question->body.text));
    for (int c = 0; c < n; c++) {
        snprintf(letter[c], sizeof letter[c], "%c", (char)('A' + c));
        if (style == MB_QUESTION_LETTERS)
            mb_test_ok(mb_str_add_format(&context, "%s. %s\n", letter[c], question->body.options[c]));
        choices[c] = style == MB_QUESTION_LETTERS ? letter[c] : (char *)(uintptr_t)question->body.options[c];
    }
    mb_test_ok(mb_str_add(&context, "Answer:"));
    mb_task_question asked = {.context = context.data, .choices = choices, .choice_count = n};
    mb_task task = {.path = "one", .delimiter = " ", .questions = &asked, .count = 1};
    mb_test_ok(mb_choice_run(s->comm, s->lm, &task, s->tokenizer, 512, 4096, MB_F32, 0, &result));
    for (int c = 0; c < C; c++)
        if (c < n)
            assert_true(loglik[c] == (float)result.questions[0].loglik[c]);
        else
            assert_true(isnan(loglik[c]));
    mb_choice_result_reset(&result);
    mb_str_destroy(&context);
}

static void test_as_choice(void **state)
{
    (void)state;
    stage s;
    float loglik[Q * C];
    int64_t parts;
    if (!stage_open(&s)) {
        mb_test_skip("the shared data (models/stories260K) is absent");
        return;
    }
    for (int style = MB_QUESTION_LETTERS; style <= MB_QUESTION_TEXTS; style++) {
        const mb_question_loglik_options options = {
            .style = (mb_question_style)style, .tile_tokens = 256, .softmax_dtype = MB_F32};
        assert_int_equal(run(&s, &options, style == 0 ? "letters" : "texts", loglik, &parts), 0);
        assert_true(parts > 3);
        for (int64_t q = 0; q < Q - 2; q++) check_question(&s, (mb_question_style)style, q, loglik + q * C);
        for (int64_t i = (Q - 2) * C; i < Q * C; i++) assert_true(isnan(loglik[i]));
    }
    stage_close(&s);
}

/* However questions are cut into parts and tiles, numbers are the same; parts that are there are not made again, damaged
 * ones are. */
static void test_parts(void **state)
{
    (void)state;
    stage s;
    float a[Q * C], b[Q * C];
    int64_t many, few;
    char **names = NULL;
    int64_t count = 0, damaged = 0;
    if (!stage_open(&s)) {
        mb_test_skip("the shared data (models/stories260K) is absent");
        return;
    }
    mb_question_loglik_options options = {.style = MB_QUESTION_TEXTS, .tile_tokens = 200};
    options.softmax_dtype = MB_F32;
    assert_int_equal(run(&s, &options, "many", a, &many), 0);
    options.tile_tokens = 100000;
    assert_int_equal(run(&s, &options, "few", b, &few), 0);
    assert_int_equal(few, 1);
    assert_true(many > 3);
    assert_memory_equal(a, b, sizeof a);
    options.tile_tokens = 200;
    assert_int_equal(run(&s, &options, "many", b, &many), many);
    mb_test_ok(mb_files_list(s.folder, &names, &count));
    for (int64_t i = 0; i < count; i++) {
        char *path = mb_test_path(s.folder, names[i]);
        if (strncmp(names[i], "many-options-0-", 15) == 0) {
            mb_test_ok(mb_files_write(path, "no file", 7));
            damaged++;
        } else if (strncmp(names[i], "many", 4) == 0 && strstr(names[i], "-24.h5") != NULL) {
            mb_test_ok(mb_files_remove_tree(path));
            damaged++;
        }
        mb_free(path);
    }
    mb_files_free_names(&names, count);
    assert_int_equal(damaged, 2);
    memset(b, 0, sizeof b);
    assert_int_equal(run(&s, &options, "many", b, &many), many - 2);
    assert_memory_equal(a, b, sizeof a);
    stage_close(&s);
}

/* The prompts' tokens; limits; what does not fit. */
static void test_limits(void **state)
{
    (void)state;
    stage s;
    float a[Q * C];
    int64_t skipped = 0;
    mb_question_loglik *l = NULL;
    mb_tokenizer_scratch *scratch = NULL;
    mb_ids ids = {0};
    mb_str prompt = MB_STR_EMPTY;
    if (!stage_open(&s)) {
        mb_test_skip("the shared data (models/stories260K) is absent");
        return;
    }
    mb_question_loglik_options options = {.style = MB_QUESTION_LETTERS, .tile_tokens = 200, .limit = 7};
    options.softmax_dtype = MB_F32;
    mb_test_ok(mb_question_loglik_open(s.questions, s.tokenizer, &options, s.folder, "limit", &l));
    assert_int_equal(mb_question_loglik_count(l), 7);
    mb_test_ok(mb_tokenizer_scratch_create(s.tokenizer, &scratch));
    mb_test_ok(mb_question_prompt(mb_questions_at(s.questions, 5), MB_QUESTION_LETTERS, 0, &prompt));
    mb_test_ok(mb_tokenizer_encode(s.tokenizer, scratch, prompt.data, prompt.length, true, &ids));
    assert_int_equal(mb_question_loglik_tokens(l)[5], ids.count);
    mb_test_fails(mb_question_loglik_read(l, a), MB_ENOTFOUND, "limit-options-0-");
    mb_question_loglik_close(&l);
    options.style = MB_QUESTION_TEXTS;
    options.max_length = 2;
    mb_test_ok(mb_question_loglik_open(s.questions, s.tokenizer, &options, s.folder, "short", &l));
    mb_test_fails(mb_question_loglik_run(s.comm, s.lm, l, &skipped), MB_EDATA, "the model takes 2");
    mb_question_loglik_close(&l);
    mb_tokenizer_scratch_destroy(&scratch);
    mb_ids_destroy(&ids);
    mb_str_destroy(&prompt);
    stage_close(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_as_choice), cmocka_unit_test(test_parts),
                                       cmocka_unit_test(test_limits)};
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, mb_test_teardown);
}
