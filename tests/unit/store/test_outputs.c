/* Answers of single experts, their join into outputs, and what is refused. */
#include "mb_test.h"

#include "base/hash.h"
#include "store/answers.h"
#include "store/contenthash.h"
#include "store/h5.h"

enum { Q = 5, C = 4 };

static char *copy(const char *text)
{
    char *out = mb_strdup(text);
    assert_non_null(out);
    return out;
}

/* Five questions: single of 4, single of 2, multiple of 3, two cloze; expert `x` of three. */
static mb_answers *make(int x)
{
    static const int32_t kinds[Q] = {0, 0, 1, 2, 2}, options[Q] = {4, 2, 3, 0, 0},
                         answers[Q] = {2, 1, 5, -1, -1};
    static const int32_t picks[3][Q] = {{2, 0, 5, 0, 1}, {0, 1, 1, 1, 0}, {2, 1, 5, 0, -1}};
    static const uint8_t rights[3][Q] = {{1, 0, 1, 1, 0}, {0, 1, 0, 0, 0}, {1, 1, 1, 1, 0}};
    static const char *const texts[3][2] = {{"blue", "red"}, {"a b", "green"}, {"blue", NULL}};
    static const int64_t text_counts[3] = {2, 2, 1};
    mb_answers *a = NULL;
    mb_test_ok(mb_answers_create(Q, C, &a));
    for (int64_t q = 0; q < Q; q++) {
        char id[17];
        snprintf(id, sizeof id, "%016llx", 0xabc0ULL + (unsigned long long)q);
        a->ids[q] = copy(id);
        a->kind[q] = (uint8_t)kinds[q];
        a->options[q] = options[q];
        a->answer[q] = answers[q];
        a->chance[q] = options[q] > 0 ? 1 / (float)options[q] : 0;
        a->text_hash[q] = mb_hash_u64(id, 16, 0) | (uint64_t)1 << 63;
        a->source[q] = q > 2;
        a->picked[q] = picks[x][q];
        a->right[q] = rights[x][q];
        a->tokens[q] = (int32_t)(10 + q);
        for (int32_t c = 0; c < options[q]; c++) {
            a->loglik[q * C + c] = -(float)(1 + c + x);
            a->choice_prob[q * C + c] = 1 / (float)options[q];
        }
    }
    mb_h5_free_strings(&a->source_names, a->sources);
    a->source_names = mb_calloc(2, sizeof *a->source_names);
    assert_non_null(a->source_names);
    a->sources = 2;
    a->source_names[0] = copy("arc_easy");
    a->source_names[1] = copy("cloze");
    a->texts = mb_calloc(2, sizeof *a->texts);
    assert_non_null(a->texts);
    a->text_count = text_counts[x];
    for (int64_t t = 0; t < a->text_count; t++) a->texts[t] = copy(texts[x][t]);
    a->questions_hash = copy("0123");
    a->model_hash = mb_str_format("model-%d", x);
    a->tokenizer_hash = copy("tok");
    a->style = copy("letters");
    a->few_shot = 2;
    return a;
}

static mb_outputs *join(mb_answers **answers)
{
    static const char *const names[] = {"zero", "one", "two"}, *const paths[] = {"a.h5", "b.h5", "c.h5"};
    mb_outputs *o = NULL;
    mb_test_ok(mb_answers_join((const mb_answers *const *)(void *)answers, names, paths, 3, &o));
    return o;
}

static void test_answers_file(void **state)
{
    (void)state;
    char *folder = mb_test_folder_make(), *path = mb_test_path(folder, "answers.h5");
    mb_answers *a = make(0), *b = NULL;
    mb_test_ok(mb_answers_write(a, path));
    mb_test_ok(mb_answers_open(path, &b));
    assert_int_equal(b->questions, Q);
    assert_int_equal(b->choices, C);
    assert_memory_equal(a->loglik, b->loglik, sizeof(float) * Q * C);
    assert_memory_equal(a->choice_prob, b->choice_prob, sizeof(float) * Q * C);
    assert_memory_equal(a->picked, b->picked, sizeof(int32_t) * Q);
    assert_memory_equal(a->right, b->right, Q);
    assert_memory_equal(a->tokens, b->tokens, sizeof(int32_t) * Q);
    assert_memory_equal(a->answer, b->answer, sizeof(int32_t) * Q);
    assert_memory_equal(a->text_hash, b->text_hash, sizeof(uint64_t) * Q);
    assert_string_equal(b->ids[4], a->ids[4]);
    assert_string_equal(b->source_names[1], "cloze");
    assert_string_equal(b->texts[1], "red");
    assert_string_equal(b->model_hash, "model-0");
    assert_string_equal(b->style, "letters");
    assert_int_equal(b->few_shot, 2);
    mb_answers_close(&b);
    mb_test_fails((a->right[0] = 0, mb_answers_write(a, path)), MB_EDATA, "/right of question 0");
    mb_test_fails((a->right[0] = 1, a->picked[2] = 8, mb_answers_write(a, path)), MB_EDATA, "/picked");
    mb_test_fails((a->picked[2] = 5, a->choice_prob[1] = NAN, mb_answers_write(a, path)), MB_EDATA,
                  "no probability");
    mb_answers_close(&a);
    mb_free(path);
    mb_test_folder_remove(&folder);
}

static void test_join(void **state)
{
    (void)state;
    mb_answers *answers[3] = {make(0), make(1), make(2)};
    mb_outputs *o = join(answers);
    assert_int_equal(o->questions, Q);
    assert_int_equal(o->experts, 3);
    /* texts of all, once, in byte order: "a b", "blue", "green", "red" */
    assert_int_equal(o->text_count, 4);
    assert_string_equal(o->texts[0], "a b");
    assert_string_equal(o->texts[3], "red");
    static const int32_t expected[Q][3] = {{2, 0, 2}, {0, 1, 1}, {5, 1, 5}, {1, 2, 1}, {3, 0, -1}};
    for (int64_t q = 0; q < Q; q++)
        for (int64_t x = 0; x < 3; x++) {
            assert_int_equal(o->picked[q * 3 + x], expected[q][x]);
            assert_int_equal(o->right[q * 3 + x], answers[x]->right[q]);
        }
    assert_string_equal(o->model_hashes[2], "model-2");
    int64_t at = -1;
    mb_test_ok(mb_outputs_expert(o, "two", &at));
    assert_int_equal(at, 2);
    mb_test_fails(mb_outputs_expert(o, "three", &at), MB_ENOTFOUND, "zero, one, two");
    mb_outputs_close(&o);
    for (int i = 0; i < 3; i++) mb_answers_close(&answers[i]);
}

static void test_join_refuses(void **state)
{
    (void)state;
    static const char *const names[] = {"zero", "one"}, *const paths[] = {"a.h5", "b.h5"};
    mb_answers *answers[2] = {make(0), make(1)};
    const mb_answers *const *list = (const mb_answers *const *)(void *)answers;
    mb_outputs *o = NULL;
    answers[1]->few_shot = 0;
    mb_test_fails(mb_answers_join(list, names, paths, 2, &o), MB_EDATA, "ask both alike");
    answers[1]->few_shot = 2;
    answers[1]->ids[3][0] = 'x';
    mb_test_fails(mb_answers_join(list, names, paths, 2, &o), MB_EDATA, "differ in question 3");
    answers[1]->questions_hash[0] = 'x';
    mb_test_fails(mb_answers_join(list, names, paths, 2, &o), MB_EDATA, "b.h5 answer other questions");
    assert_null(o);
    for (int i = 0; i < 2; i++) mb_answers_close(&answers[i]);
}

static void test_outputs_file(void **state)
{
    (void)state;
    char *folder = mb_test_folder_make(), *path = mb_test_path(folder, "o.h5"),
         *again = mb_test_path(folder, "p.h5"), hash[2][MB_HASH_TEXT];
    mb_answers *answers[3] = {make(0), make(1), make(2)};
    mb_outputs *o = join(answers), *back = NULL;
    mb_test_ok(mb_outputs_write(o, path));
    mb_test_ok(mb_outputs_open(path, &back));
    assert_null(back->opt_gate_logits);
    assert_null(back->opt_latency);
    mb_outputs_close(&back);
    o->opt_gate_logits = mb_calloc(Q * 3, sizeof(float));
    o->opt_latency = mb_calloc(Q * 3, sizeof(float));
    o->opt_gate_hash = copy("gate");
    for (int i = 0; i < Q * 3; i++) o->opt_gate_logits[i] = (float)i / 7, o->opt_latency[i] = (float)i / 9;
    mb_test_ok(mb_outputs_write(o, path));
    mb_test_ok(mb_outputs_open(path, &back));
    assert_memory_equal(back->opt_gate_logits, o->opt_gate_logits, sizeof(float) * Q * 3);
    assert_memory_equal(back->opt_latency, o->opt_latency, sizeof(float) * Q * 3);
    assert_memory_equal(back->picked, o->picked, sizeof(int32_t) * Q * 3);
    assert_string_equal(back->opt_gate_hash, "gate");
    assert_string_equal(back->model_hashes[1], "model-1");
    assert_string_equal(back->expert_names[2], "two");
    mb_test_ok(mb_outputs_write(back, again));
    mb_test_ok(mb_contenthash_path(path, hash[0]));
    mb_test_ok(mb_contenthash_path(again, hash[1]));
    assert_string_equal(hash[0], hash[1]);
    mb_outputs_close(&back);
    mb_test_fails((o->opt_gate_logits[4] = INFINITY, mb_outputs_write(o, path)), MB_EDATA, "not finite");
    o->opt_gate_logits[4] = 0;
    mb_free(o->ids[1]);
    o->ids[1] = copy(o->ids[0]);
    mb_test_fails(mb_outputs_write(o, path), MB_EDATA, "twice");
    mb_test_fails(mb_answers_open(again, &answers[0]), MB_EFORMAT, "not a file of format moebatch-answers");
    mb_outputs_close(&o);
    for (int i = 0; i < 3; i++) mb_answers_close(&answers[i]);
    mb_free(path);
    mb_free(again);
    mb_test_folder_remove(&folder);
}

static void test_take(void **state)
{
    (void)state;
    mb_answers *answers[3] = {make(0), make(1), make(2)};
    mb_outputs *o = join(answers), *some = NULL, *all = NULL;
    static const int64_t rows[] = {3, 0}, columns[] = {2, 0}, every[] = {0, 1, 2};
    o->opt_gate_logits = mb_calloc(Q * 3, sizeof(float));
    o->opt_latency = mb_calloc(Q * 3, sizeof(float));
    for (int i = 0; i < Q * 3; i++) o->opt_gate_logits[i] = o->opt_latency[i] = (float)i;
    mb_test_ok(mb_outputs_take(o, rows, 2, columns, 2, &some));
    assert_int_equal(some->questions, 2);
    assert_int_equal(some->experts, 2);
    assert_null(some->opt_gate_logits);
    assert_float_equal(some->opt_latency[0], 11, 0);
    assert_float_equal(some->opt_latency[3], 0, 0);
    assert_string_equal(some->ids[0], o->ids[3]);
    assert_string_equal(some->expert_names[0], "two");
    assert_int_equal(some->picked[0], 1);
    assert_int_equal(some->right[2], 1);
    assert_int_equal(some->source[0], 1);
    mb_test_ok(mb_outputs_take(o, rows, 2, every, 3, &all));
    assert_float_equal(all->opt_gate_logits[0], 9, 0);
    mb_outputs_close(&all);
    mb_outputs_close(&some);
    mb_outputs_close(&o);
    for (int i = 0; i < 3; i++) mb_answers_close(&answers[i]);
}

static int teardown(void **state)
{
    if (mb_h5_live_handles() != 0) return -1;
    return mb_test_teardown(state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_answers_file), cmocka_unit_test(test_join),
                                       cmocka_unit_test(test_join_refuses),
                                       cmocka_unit_test(test_outputs_file), cmocka_unit_test(test_take)};
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, teardown);
}
