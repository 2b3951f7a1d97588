/* answers.c: one expert's answers, and several experts' as one table.
 *
 * 1. memory   2. reading and writing   3. joining
 */
#include "store/answers.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "store/answer_rows.h"

/* ---- 1. memory ---- */

static mb_answer_rows rows_of(const mb_answers *a)
{
    return (mb_answer_rows){.questions = a->questions,
                            .choices = a->choices,
                            .answer = a->answer,
                            .kind = a->kind,
                            .options = a->options,
                            .chance = a->chance,
                            .text_hash = a->text_hash,
                            .ids = a->ids,
                            .source = a->source,
                            .source_names = a->source_names,
                            .sources = a->sources,
                            .texts = a->texts,
                            .text_count = a->text_count,
                            .questions_hash = a->questions_hash,
                            .style = a->style,
                            .few_shot = a->few_shot};
}

static void take_rows(mb_answers *a, const mb_answer_rows *rows)
{
    a->questions = rows->questions;
    a->answer = rows->answer;
    a->kind = rows->kind;
    a->options = rows->options;
    a->chance = rows->chance;
    a->text_hash = rows->text_hash;
    a->ids = rows->ids;
    a->source = rows->source;
    a->source_names = rows->source_names;
    a->sources = rows->sources;
    a->texts = rows->texts;
    a->text_count = rows->text_count;
    a->questions_hash = rows->questions_hash;
    a->style = rows->style;
    a->few_shot = rows->few_shot;
}

void mb_answers_close(mb_answers **answers)
{
    mb_answers *a = *answers;
    if (a == NULL) return;
    mb_answer_rows rows = rows_of(a);
    mb_answer_rows_reset(&rows);
    mb_free(a->loglik);
    mb_free(a->choice_prob);
    mb_free(a->picked);
    mb_free(a->right);
    mb_free(a->tokens);
    mb_free(a->model_hash);
    mb_free(a->tokenizer_hash);
    MB_FREE(*answers);
}

mb_status mb_answers_create(int64_t questions, int64_t choices, mb_answers **out_answers)
{
    mb_status status = MB_OK;
    mb_answers *a = NULL;
    mb_answer_rows rows;
    MB_NEW(a);
    status = mb_answer_rows_create(questions, choices, &rows);
    take_rows(a, &rows);
    MB_TRY(status);
    a->choices = choices;
    MB_NEW_ARRAY(a->loglik, questions * choices);
    MB_NEW_ARRAY(a->choice_prob, questions * choices);
    MB_NEW_ARRAY(a->picked, questions);
    MB_NEW_ARRAY(a->right, questions);
    MB_NEW_ARRAY(a->tokens, questions);
    for (int64_t i = 0; i < questions * choices; i++) a->loglik[i] = a->choice_prob[i] = NAN;
    for (int64_t q = 0; q < questions; q++) a->picked[q] = -1;
    *out_answers = a;
    a = NULL;
done:
    mb_answers_close(&a);
    return status;
}

/* ---- 2. reading and writing ---- */

static mb_status check(const mb_answers *a, mb_status code, const char *path)
{
    mb_status status = MB_OK;
    const mb_answer_rows rows = rows_of(a);
    MB_TRY(mb_answer_rows_check(&rows, code, path));
    MB_TRY(mb_answer_rows_check_picks(&rows, 1, a->picked, a->right, code, path));
    for (int64_t q = 0; q < a->questions; q++)
        for (int64_t c = 0; c < a->options[q] && a->picked[q] >= 0; c++) {
            const float p = a->choice_prob[q * a->choices + c];
            if (!(p >= 0 && p <= 1))
                MB_RAISE(code, "%s: /choice_prob of question %lld (%s) is no probability", path, (long long)q,
                         a->ids[q]);
        }
done:
    return status;
}

mb_status mb_answers_open(const char *path, mb_answers **out_answers)
{
    mb_status status = MB_OK;
    mb_answers *a = NULL;
    mb_h5 *file = NULL;
    mb_answer_rows rows = {0};
    mb_dtype dtype;
    int dims = 0;
    int64_t shape[MB_TENSOR_MAX_DIMS];
    MB_NEW(a);
    MB_TRY(mb_answer_rows_open_file(path, "moebatch-answers", "moe-eval eval.questions=<file>", &file));
    status = mb_answer_rows_read(file, &rows);
    take_rows(a, &rows);
    MB_TRY(status);
    MB_TRY(mb_h5_shape(file, "/loglik", &dtype, &dims, shape));
    if (dims != 2) MB_RAISE(MB_EFORMAT, "%s: /loglik is not [Q, C]", path);
    shape[0] = a->questions;
    a->choices = shape[1];
    MB_TRY(mb_answer_rows_array(file, "/loglik", MB_F32, 2, shape, &a->loglik));
    MB_TRY(mb_answer_rows_array(file, "/choice_prob", MB_F32, 2, shape, &a->choice_prob));
    MB_TRY(mb_answer_rows_array(file, "/picked", MB_I32, 1, shape, &a->picked));
    MB_TRY(mb_answer_rows_array(file, "/right", MB_U8, 1, shape, &a->right));
    MB_TRY(mb_answer_rows_array(file, "/tokens", MB_I32, 1, shape, &a->tokens));
    MB_TRY(mb_answer_rows_attribute(file, "model", &a->model_hash));
    MB_TRY(mb_answer_rows_attribute(file, "tokenizer", &a->tokenizer_hash));
    MB_TRY(check(a, MB_EFORMAT, path));
    *out_answers = a;
    a = NULL;
done:
    mb_h5_destroy(&file);
    mb_answers_close(&a);
    return status;
}

static mb_status write_column(mb_h5 *file, const char *name, mb_dtype dtype, const void *data, int64_t n)
{
    const mb_tensor tensor = mb_tensor_view1(dtype, (void *)(uintptr_t)data, n);
    return mb_h5_write(file, name, &tensor);
}

mb_status mb_answers_write(const mb_answers *answers, const char *path)
{
    mb_status status = MB_OK;
    const mb_answers *a = answers;
    const mb_answer_rows rows = rows_of(a);
    const mb_tensor loglik = mb_tensor_view2(MB_F32, a->loglik, a->questions, a->choices),
                    prob = mb_tensor_view2(MB_F32, a->choice_prob, a->questions, a->choices);
    mb_h5 *file = NULL;
    MB_TRY(check(a, MB_EDATA, path));
    MB_TRY(mb_h5_create(path, &file));
    MB_TRY(mb_h5_set_text(file, "/", "format", "moebatch-answers"));
    MB_TRY(mb_h5_set_int(file, "/", "version", 1));
    MB_TRY(mb_h5_set_text(file, "/", "model", a->model_hash));
    MB_TRY(mb_h5_set_text(file, "/", "tokenizer", a->tokenizer_hash));
    MB_TRY(mb_answer_rows_write(file, &rows));
    MB_TRY(mb_h5_write(file, "/loglik", &loglik));
    MB_TRY(mb_h5_write(file, "/choice_prob", &prob));
    MB_TRY(write_column(file, "/picked", MB_I32, a->picked, a->questions));
    MB_TRY(write_column(file, "/right", MB_U8, a->right, a->questions));
    MB_TRY(write_column(file, "/tokens", MB_I32, a->tokens, a->questions));
    MB_TRY(mb_h5_close(&file));
done:
    mb_h5_destroy(&file);
    return status;
}

/* ---- 3. joining ---- */

static mb_status check_alike(const mb_answers *a, const mb_answers *b, const char *path_a, const char *path_b)
{
    mb_status status = MB_OK;
    if (strcmp(a->questions_hash, b->questions_hash) != 0 || a->questions != b->questions ||
        a->choices != b->choices)
        MB_RAISE(MB_EDATA, "%s and %s answer other questions (%lld and %lld); evaluate both on one file",
                 path_a, path_b, (long long)a->questions, (long long)b->questions);
    if (strcmp(a->style, b->style) != 0 || a->few_shot != b->few_shot)
        MB_RAISE(MB_EDATA, "%s was asked in style %s with %lld examples, %s in %s with %lld; ask both alike",
                 path_a, a->style, (long long)a->few_shot, path_b, b->style, (long long)b->few_shot);
    for (int64_t q = 0; q < a->questions; q++)
        if (strcmp(a->ids[q], b->ids[q]) != 0 || a->kind[q] != b->kind[q] || a->answer[q] != b->answer[q] ||
            a->options[q] != b->options[q])
            MB_RAISE(MB_EDATA, "%s and %s differ in question %lld (%s and %s)", path_a, path_b, (long long)q,
                     a->ids[q], b->ids[q]);
done:
    return status;
}

static int by_text(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* All experts' texts, each once, in byte order. */
static mb_status join_texts(const mb_answers *const *answers, int64_t experts, mb_outputs *o)
{
    mb_status status = MB_OK;
    int64_t n = 0, kept = 0;
    char **all = NULL;
    for (int64_t x = 0; x < experts; x++) n += answers[x]->text_count;
    MB_NEW_ARRAY(all, n);
    n = 0;
    for (int64_t x = 0; x < experts; x++)
        for (int64_t t = 0; t < answers[x]->text_count; t++) all[n++] = answers[x]->texts[t];
    qsort(all, (size_t)n, sizeof *all, by_text);
    for (int64_t t = 0; t < n; t++)
        if (t == 0 || strcmp(all[t], all[kept - 1]) != 0) all[kept++] = all[t];
    MB_TRY(mb_answer_rows_copy(all, kept, &o->texts));
    o->text_count = kept;
done:
    mb_free(all);
    return status;
}

static int32_t find_text(const mb_outputs *o, const char *text)
{
    char **found = bsearch(&text, o->texts, (size_t)o->text_count, sizeof *o->texts, by_text);
    return (int32_t)(found - o->texts);
}

static void join_expert(const mb_answers *a, int64_t x, mb_outputs *o)
{
    for (int64_t q = 0; q < o->questions; q++) {
        const int64_t i = q * o->experts + x;
        const bool is_text = a->kind[q] == MB_OUTPUTS_CLOZE && a->picked[q] >= 0;
        memcpy(o->choice_prob + i * o->choices, a->choice_prob + q * a->choices,
               (size_t)a->choices * sizeof *a->choice_prob);
        o->picked[i] = is_text ? find_text(o, a->texts[a->picked[q]]) : a->picked[q];
        o->right[i] = a->right[q];
    }
}

static mb_status copy_questions(const mb_answers *a, mb_outputs *o)
{
    mb_status status = MB_OK;
    const size_t n = (size_t)a->questions;
    memcpy(o->answer, a->answer, n * sizeof *a->answer);
    memcpy(o->kind, a->kind, n * sizeof *a->kind);
    memcpy(o->options, a->options, n * sizeof *a->options);
    memcpy(o->chance, a->chance, n * sizeof *a->chance);
    memcpy(o->text_hash, a->text_hash, n * sizeof *a->text_hash);
    memcpy(o->source, a->source, n * sizeof *a->source);
    for (int64_t q = 0; q < a->questions; q++) {
        o->ids[q] = mb_strdup(a->ids[q]);
        if (o->ids[q] == NULL) MB_RAISE(MB_ENOMEM, "no memory for an id");
    }
    MB_TRY(mb_answer_rows_copy(a->source_names, a->sources, &o->source_names));
    o->sources = a->sources;
    o->questions_hash = mb_strdup(a->questions_hash);
    o->style = mb_strdup(a->style);
    o->few_shot = a->few_shot;
    if (o->questions_hash == NULL || o->style == NULL) MB_RAISE(MB_ENOMEM, "no memory for attributes");
done:
    return status;
}

mb_status mb_answers_join(const mb_answers *const *answers, const char *const *names,
                          const char *const *paths, int64_t experts, mb_outputs **out_outputs)
{
    mb_status status = MB_OK;
    mb_outputs *o = NULL;
    for (int64_t x = 1; x < experts; x++) MB_TRY(check_alike(answers[0], answers[x], paths[0], paths[x]));
    MB_TRY(mb_outputs_create(answers[0]->questions, experts, answers[0]->choices, &o));
    MB_TRY(copy_questions(answers[0], o));
    MB_TRY(join_texts(answers, experts, o));
    for (int64_t x = 0; x < experts; x++) {
        o->expert_names[x] = mb_strdup(names[x]);
        o->model_hashes[x] = mb_strdup(answers[x]->model_hash);
        if (o->expert_names[x] == NULL || o->model_hashes[x] == NULL)
            MB_RAISE(MB_ENOMEM, "no memory for the names of experts");
        join_expert(answers[x], x, o);
    }
    *out_outputs = o;
    o = NULL;
done:
    mb_outputs_close(&o);
    return status;
}
