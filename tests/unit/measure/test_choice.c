/* test_choice: log-likelihoods of lm-evaluation-harness (tests/golden/make_choice.py), results in its shape,
 * samples, bf16 ties. */
#include "mb_test.h"

#include "base/json.h"
#include "comm/comm.h"
#include "measure/choice.h"
#include "measure/choice_groups.h"
#include "measure/sha256.h"

#define GOLDEN "tests/golden/choice/choice.json"

/* ---- a model and tasks of the shared data ---- */

typedef struct stage {
    mb_comm *comm;
    mb_ops *ops;
    mb_lm *lm;
    mb_tokenizer *tokenizer;
} stage;

static bool stage_open(stage *s)
{
    char *model = mb_test_data("models/stories260K/hf");
    *s = (stage){0};
    if (model == NULL) return false;
    const mb_lm_options options = {.path = model, .train = "none"};
    mb_test_ok(mb_comm_create(NULL, NULL, &s->comm));
    mb_test_ok(mb_ops_create("cpu", 1, &s->ops));
    mb_test_ok(mb_lm_open(s->ops, &options, &s->lm));
    mb_test_ok(mb_tokenizer_open(model, &s->tokenizer));
    mb_free(model);
    return true;
}

static void stage_close(stage *s)
{
    mb_tokenizer_close(&s->tokenizer);
    mb_lm_destroy(&s->lm);
    mb_ops_destroy(&s->ops);
    mb_comm_destroy(&s->comm);
}

/* The choices become letters, their texts part of the context, as in MMLU. */
static void make_letters(mb_task *task)
{
    for (int64_t q = 0; q < task->count; q++) {
        mb_task_question *asked = &task->questions[q];
        mb_str text = MB_STR_EMPTY;
        const char *end = strstr(asked->context, "\nAnswer:");
        assert_non_null(end);
        mb_test_ok(mb_str_append(&text, asked->context, (size_t)(end - asked->context)));
        for (int64_t c = 0; c < asked->choice_count; c++) {
            mb_test_ok(mb_str_add_format(&text, "\n%c. %s", (char)('A' + c), asked->choices[c]));
            mb_free(asked->choices[c]);
            asked->choices[c] = mb_str_format("%c", (char)('A' + c));
        }
        mb_test_ok(mb_str_add(&text, "\nAnswer:"));
        mb_free(asked->context);
        asked->context = mb_str_take(&text);
    }
}

static mb_task *open_task(const char *file, int64_t count, bool has_letters)
{
    mb_task *task = NULL;
    char *path = mb_test_data(file);
    assert_non_null(path);
    mb_test_ok(mb_task_open("choice", path, 0, count, &task));
    if (has_letters) make_letters(task);
    mb_free(path);
    return task;
}

/* ---- against the harness ---- */

static void check_metric(const json_t *golden, const char *key, double value)
{
    double expected;
    mb_test_ok(mb_json_get_real(json_object_get(golden, "results"), key, GOLDEN, &expected));
    mb_test_near(value, expected, 1e-12);
}

static int64_t as_int(const json_t *list, int64_t q, int64_t c)
{
    return json_integer_value(json_array_get(
        json_array_get(json_array_get(json_object_get(list, "lengths"), (size_t)q), (size_t)c), 1));
}

static void check_task(stage *s, const json_t *golden, int64_t tile_tokens)
{
    const char *name = json_string_value(json_object_get(golden, "name")),
               *file = json_string_value(json_object_get(golden, "file"));
    const json_int_t count = json_integer_value(json_object_get(golden, "count")),
                     length = json_integer_value(json_object_get(golden, "max_length"));
    mb_task *task = open_task(file, count, strcmp(name, "letters") == 0);
    mb_choice_result result = {0};
    mb_tokenizer_scratch *scratch = NULL;
    mb_ids context = {0}, continuation = {0};
    double worst = 0;
    mb_test_ok(mb_tokenizer_scratch_create(s->tokenizer, &scratch));
    mb_test_ok(mb_choice_run(s->comm, s->lm, task, s->tokenizer, length, tile_tokens, MB_F32, 1e-3, &result));
    assert_int_equal(result.count, count);
    for (int64_t q = 0; q < count; q++) {
        const json_t *logliks = json_array_get(json_object_get(golden, "loglik"), (size_t)q);
        const json_t *greedy = json_array_get(json_object_get(golden, "greedy"), (size_t)q);
        const mb_choice_question *question = &result.questions[q];
        const bool is_right = question->picked == task->questions[q].gold,
                   is_norm = question->picked_norm == task->questions[q].gold;
        assert_int_equal(json_array_size(logliks), task->questions[q].choice_count);
        for (int64_t c = 0; c < task->questions[q].choice_count; c++) {
            mb_test_ok(mb_task_request(task, s->tokenizer, scratch, q, c, &context, &continuation));
            assert_int_equal(continuation.count, as_int(golden, q, c));
            mb_test_near_abs(question->loglik[c], json_real_value(json_array_get(logliks, (size_t)c)), 0,
                             1e-3);
            worst =
                fmax(worst, fabs(question->loglik[c] - json_real_value(json_array_get(logliks, (size_t)c))));
            assert_int_equal(question->is_greedy[c], json_is_true(json_array_get(greedy, (size_t)c)));
        }
        assert_true(is_right ==
                    (json_number_value(json_array_get(json_object_get(golden, "acc"), (size_t)q)) == 1));
        assert_true(is_norm ==
                    (json_number_value(json_array_get(json_object_get(golden, "acc_norm"), (size_t)q)) == 1));
    }
    print_message("# %s: largest difference %.2g nats, %lld inputs, %lld near-ties\n", name, worst,
                  (long long)result.inputs, (long long)result.near_ties);
    check_metric(golden, "acc,none", result.acc);
    check_metric(golden, "acc_stderr,none", result.acc_stderr);
    check_metric(golden, "acc_norm,none", result.acc_norm);
    check_metric(golden, "acc_norm_stderr,none", result.acc_norm_stderr);
    check_metric(golden, "acc_bytes,none", result.acc_bytes);
    mb_choice_result_reset(&result);
    mb_tokenizer_scratch_destroy(&scratch);
    mb_ids_destroy(&context);
    mb_ids_destroy(&continuation);
    mb_task_close(&task);
}

static void test_harness(void **state)
{
    (void)state;
    stage s;
    json_t *golden = NULL, *tasks;
    if (!stage_open(&s)) {
        mb_test_skip("the shared data (models/stories260K) is absent");
        return;
    }
    mb_test_ok(mb_json_read(GOLDEN, &golden));
    mb_test_ok(mb_json_get_array(golden, "tasks", GOLDEN, &tasks));
    assert_int_equal(json_array_size(tasks), 3);
    for (size_t i = 0; i < json_array_size(tasks); i++) check_task(&s, json_array_get(tasks, i), 2048);
    json_decref(golden);
    stage_close(&s);
}

/* ---- what must not matter ---- */

static void test_tiles(void **state)
{
    (void)state;
    stage s;
    if (!stage_open(&s)) {
        mb_test_skip("the shared data (models/stories260K) is absent");
        return;
    }
    mb_task *task = open_task("datasets/multiple-choice/openbookqa_test.jsonl", 12, false),
            *letters = open_task("datasets/multiple-choice/arc_easy_test.jsonl", 12, true);
    mb_choice_result a = {0}, b = {0};
    mb_test_ok(mb_choice_run(s.comm, s.lm, task, s.tokenizer, 512, 1, MB_F32, 0.001, &a));
    mb_test_ok(mb_choice_run(s.comm, s.lm, task, s.tokenizer, 512, 1 << 16, MB_F32, 1e9, &b));
    for (int64_t q = 0; q < 12; q++)
        assert_memory_equal(a.questions[q].loglik, b.questions[q].loglik, 4 * sizeof(double));
    assert_string_equal(a.request_hash, b.request_hash);
    assert_int_equal(b.near_ties, 12);
    assert_int_equal(a.inputs, 48);
    mb_choice_result_reset(&a);
    mb_choice_result_reset(&b);
    mb_test_ok(mb_choice_run(s.comm, s.lm, letters, s.tokenizer, 512, 2048, MB_F32, 0.001, &a));
    mb_test_ok(mb_choice_run(s.comm, s.lm, letters, s.tokenizer, 512, 2048, MB_BF16, 0, &b));
    assert_true(a.inputs < 48); /* contexts are shared */
    for (int64_t q = 0; q < 12; q++) {
        for (int c = 0; c < 4; c++) {
            double value = b.questions[q].loglik[c];
            mb_test_near(value, a.questions[q].loglik[c], 0.03);
            assert_true(mb_dtype_f32_from_bf16(mb_dtype_bf16_from_f32((float)value)) == value);
        }
    }
    mb_choice_result_reset(&a);
    mb_choice_result_reset(&b);
    mb_test_fails(mb_choice_run(s.comm, s.lm, task, s.tokenizer, 2, 2048, MB_F32, 0, &a), MB_EDATA,
                  "the model takes 2");
    mb_task_close(&task);
    mb_task_close(&letters);
    stage_close(&s);
}

/* Cut from the left, choices of one and of three tokens come to have the same input: one pass answers both.
 */
static void test_cut_to_equal(void **state)
{
    (void)state;
    stage s;
    if (!stage_open(&s)) {
        mb_test_skip("the shared data (models/stories260K) is absent");
        return;
    }
    char *choices[] = {"a", "a the a"};
    mb_task_question question = {.context = "the a the a the a the", .choices = choices, .choice_count = 2};
    mb_task task = {.name = "cut", .path = "cut", .delimiter = " ", .questions = &question, .count = 1};
    mb_choice_result both = {0}, one = {0};
    mb_test_ok(mb_choice_run(s.comm, s.lm, &task, s.tokenizer, 3, 100, MB_F32, 0, &both));
    assert_int_equal(both.inputs, 1);
    question.choice_count = 1;
    for (int c = 0; c < 2; c++) {
        question.choices = choices + c;
        mb_test_ok(mb_choice_run(s.comm, s.lm, &task, s.tokenizer, 3, 100, MB_F32, 0, &one));
        mb_test_near(both.questions[0].loglik[c], one.questions[0].loglik[0], 1e-5);
        assert_int_equal(both.questions[0].is_greedy[c], one.questions[0].is_greedy[0]);
        mb_choice_result_reset(&one);
    }
    mb_choice_result_reset(&both);
    stage_close(&s);
}

/* ---- result files ---- */

static const json_t *at(const json_t *json, const char *a, const char *b)
{
    const json_t *inner = json_object_get(json_object_get(json, a), b);
    if (inner == NULL) print_message("# there is no %s.%s\n", a, b);
    assert_non_null(inner);
    return inner;
}

/* A task by hand: gold is always 0; `right` of the questions pick it. */
static void fill_task(mb_task *task, mb_task_question *questions, mb_choice_question *answers, int64_t n,
                      const char *const *groups)
{
    static char *choices[2] = {"yes", "n\xc3\xb6"};
    static double loglik[2] = {-1.5, -0.25};
    static bool greedy[2] = {false, true};
    for (int64_t q = 0; q < n; q++) {
        questions[q] = (mb_task_question){.context = "Is it?",
                                          .choices = choices,
                                          .choice_count = 2,
                                          .doc_id = 100 + q,
                                          .group = groups != NULL ? (char *)groups[q] : NULL};
        answers[q] = (mb_choice_question){
            .loglik = loglik, .is_greedy = greedy, .picked = q % 3 == 0, .picked_norm = q % 2};
    }
    answers[1].is_near_tie = true;
    *task = (mb_task){.name = "mine",
                      .path = "mine.jsonl",
                      .version = 1,
                      .has_acc_norm = groups == NULL,
                      .delimiter = " ",
                      .questions = questions,
                      .count = n};
}

static double metric(const json_t *row, const char *key)
{
    double value = NAN;
    mb_test_ok(mb_json_get_real(row, key, "results", &value));
    return value;
}

static void test_results(void **state)
{
    (void)state;
    enum { N = 10 };
    mb_task task;
    mb_task_question questions[N];
    mb_choice_question answers[N];
    fill_task(&task, questions, answers, N, NULL);
    const mb_choice_result result = {.count = N, .questions = answers, .request_hash = "abc"};
    json_t *results = json_object();
    mb_test_ok(mb_choice_add_json(&task, &result, results));
    const json_t *row = at(results, "results", "mine");
    mb_test_near(metric(row, "acc,none"), 0.6, 1e-15);
    mb_test_near(metric(row, "acc_stderr,none"), sqrt(0.6 * 0.4 / 9), 1e-14);
    mb_test_near(metric(row, "acc_norm,none"), 0.5, 1e-15);
    assert_int_equal(json_integer_value(json_object_get(row, "sample_len")), N);
    assert_string_equal(json_string_value(json_object_get(row, "alias")), "mine");
    assert_int_equal(json_array_size(at(results, "group_subtasks", "mine")), 0);
    assert_true(json_is_true(json_object_get(at(results, "higher_is_better", "mine"), "acc_norm")));
    assert_int_equal(json_integer_value(json_object_get(at(results, "n-samples", "mine"), "effective")), N);
    assert_int_equal(json_array_size(at(results, "near_ties", "mine")), 1);
    assert_int_equal(json_integer_value(json_array_get(at(results, "near_ties", "mine"), 0)), 101);
    at(results, "versions", "mine");
    at(results, "n-shot", "mine");
    assert_string_equal(json_string_value(json_object_get(at(results, "configs", "mine"), "output_type")),
                        "multiple_choice");
    json_decref(results);
}

/* Two subjects of one category, one of another, one that is not MMLU's. */
static void test_groups(void **state)
{
    (void)state;
    enum { N = 12 };
    static const char *const groups[N] = {"anatomy",   "anatomy",  "astronomy", "astronomy",
                                          "astronomy", "virology", "virology",  "own",
                                          "own",       "virology", "anatomy",   "anatomy"};
    mb_task task;
    mb_task_question questions[N];
    mb_choice_question answers[N];
    fill_task(&task, questions, answers, N, groups);
    const mb_choice_result result = {.count = N, .questions = answers, .request_hash = "abc"};
    json_t *results = json_object();
    mb_test_ok(mb_choice_add_json(&task, &result, results));
    const double right[3] = {3, 2, 1}, n[3] = {4, 3, 3}; /* anatomy, astronomy, virology */
    double pooled = 0;
    for (int i = 0; i < 2; i++) {
        double mean = right[i] / n[i], error = sqrt(mean * (1 - mean) / (n[i] - 1));
        pooled += (n[i] - 1) * error * error * n[i];
    }
    const json_t *stem = at(results, "groups", "mine_stem"), *all = at(results, "groups", "mine");
    mb_test_near(metric(at(results, "results", "mine_anatomy"), "acc,none"), 3.0 / 4, 1e-15);
    mb_test_near(metric(at(results, "results", "mine_virology"), "acc,none"), 1.0 / 3, 1e-15);
    mb_test_near(metric(stem, "acc,none"), 5.0 / 7, 1e-15);
    mb_test_near(metric(stem, "acc_stderr,none"), sqrt(pooled / (7 - 2) / 7), 1e-12);
    mb_test_near(metric(all, "acc,none"), 8.0 / 12, 1e-15);
    assert_int_equal(json_integer_value(json_object_get(all, "sample_len")), N);
    assert_int_equal(json_array_size(at(results, "group_subtasks", "mine_stem")), 2);
    assert_int_equal(json_array_size(at(results, "group_subtasks", "mine")), 3); /* own, stem, other */
    assert_null(json_object_get(json_object_get(results, "groups"), "mine_humanities"));
    assert_string_equal(json_string_value(json_object_get(at(results, "results", "mine_anatomy"), "alias")),
                        "anatomy");
    json_decref(results);
    assert_string_equal(mb_choice_groups_find("world_religions"), "humanities");
    assert_string_equal(mb_choice_groups_find("high_school_psychology"), "social_sciences");
    assert_null(mb_choice_groups_find("high_school"));
}

static void test_samples(void **state)
{
    (void)state;
    enum { N = 3 };
    char *folder = mb_test_folder_make(), *path = mb_test_path(folder, "samples_mine.jsonl");
    mb_task task;
    mb_task_question questions[N];
    mb_choice_question answers[N];
    mb_str text = MB_STR_EMPTY;
    json_t *sample = NULL;
    fill_task(&task, questions, answers, N, NULL);
    const mb_choice_result result = {.count = N, .questions = answers};
    mb_test_ok(mb_choice_write_samples(&task, &result, path));
    mb_test_ok(mb_files_read(path, 0, &text));
    int lines = 0;
    for (const char *line = text.data, *end; (end = strchr(line, '\n')) != NULL; line = end + 1, lines++) {
        mb_test_ok(mb_json_parse(line, (size_t)(end - line), path, &sample));
        assert_int_equal(json_integer_value(json_object_get(sample, "doc_id")), 100 + lines);
        const json_t *resp =
            json_array_get(json_array_get(json_array_get(json_object_get(sample, "resps"), 1), 0), 0);
        assert_string_equal(json_string_value(resp), "-0.25");
        const json_t *argument = json_object_get(at(sample, "arguments", "gen_args_1"), "arg_1");
        assert_string_equal(json_string_value(argument), " n\xc3\xb6");
        assert_string_equal(json_string_value(json_object_get(sample, "target")), "0");
        assert_string_equal(json_string_value(json_object_get(sample, "target_hash")),
                            "5feceb66ffc86f38d952786c6d696c79c2dbc239dd4e91b46729d73a27fb57e9");
        assert_true(json_real_value(json_object_get(sample, "acc")) == (lines % 3 != 0));
        json_decref(sample);
    }
    assert_int_equal(lines, N);
    mb_str_destroy(&text);
    mb_free(path);
    mb_test_folder_remove(&folder);
}

/* FIPS 180-4 examples, and every padding length. */
static void test_sha256(void **state)
{
    (void)state;
    char text[65], long_text[200];
    mb_sha256_text("abc", 3, text);
    assert_string_equal(text, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    mb_sha256_text("", 0, text);
    assert_string_equal(text, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    mb_sha256_text("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq", 56, text);
    assert_string_equal(text, "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
    memset(long_text, 'a', sizeof long_text);
    mb_sha256_text(long_text, 119, text);
    assert_string_equal(text, "31eba51c313a5c08226adf18d4a359cfdfd8d2e816b13f4af952f7ea6584dcfb");
    mb_sha256_text(long_text, 120, text);
    assert_string_equal(text, "2f3d335432c70b580af0e8e1b3674a7c020d683aa5f73aaaedfdc55af904c21c");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_harness), cmocka_unit_test(test_tiles),  cmocka_unit_test(test_cut_to_equal),
        cmocka_unit_test(test_results), cmocka_unit_test(test_groups), cmocka_unit_test(test_samples),
        cmocka_unit_test(test_sha256),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, mb_test_teardown);
}
