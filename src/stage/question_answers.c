/* question_answers.c: the columns of a table of answers, one after the other.
 *
 * 1. questions   2. options   3. texts   4. summary
 */
#include "stage/question_answers.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "base/memory.h"
#include "choose/vote.h"
#include "measure/bootstrap.h"

/* ---- 1. questions ---- */

static mb_status find_source(mb_answers *a, const char *name, int32_t *out_source)
{
    mb_status status = MB_OK;
    int64_t i = 0;
    while (i < a->sources && strcmp(a->source_names[i], name) != 0) i++;
    if (i == a->sources) {
        char **more = mb_realloc(a->source_names, (size_t)i + 1, sizeof *more);
        if (more == NULL) return MB_ENOMEM;
        a->source_names = more;
        more[i] = mb_strdup(name);
        if (more[i] == NULL) MB_RAISE(MB_ENOMEM, "no memory for the name of a source");
        a->sources = i + 1;
    }
    *out_source = (int32_t)i;
done:
    return status;
}

static mb_status fill_question(const mb_question *question, int64_t q, mb_answers *a)
{
    mb_status status = MB_OK;
    static const uint8_t kinds[MB_QUESTION_KINDS] = {[MB_QUESTION_SINGLE] = MB_OUTPUTS_SINGLE,
                                                     [MB_QUESTION_MULTIPLE] = MB_OUTPUTS_MULTIPLE,
                                                     [MB_QUESTION_CLOZE] = MB_OUTPUTS_CLOZE};
    a->kind[q] = kinds[question->kind];
    a->options[q] = question->body.option_count;
    a->answer[q] = question->kind == MB_QUESTION_SINGLE     ? question->answer
                   : question->kind == MB_QUESTION_MULTIPLE ? (int32_t)question->body.answer_mask
                                                            : -1;
    a->chance[q] = (float)question->chance;
    MB_TRY(mb_question_text_hash(question, &a->text_hash[q]));
    MB_TRY(find_source(a, question->source, &a->source[q]));
    a->ids[q] = mb_strdup(question->id);
    if (a->ids[q] == NULL) MB_RAISE(MB_ENOMEM, "no memory for an id");
done:
    return status;
}

static mb_status fill_attributes(const mb_questions *questions, mb_question_style style, int64_t few_shot,
                                 mb_answers *a)
{
    mb_status status = MB_OK;
    char hash[MB_HASH_TEXT], text[80];
    mb_questions_hash(questions, hash);
    if (a->questions < mb_questions_count(questions)) {
        const int n = snprintf(text, sizeof text, "%s first %lld", hash, (long long)a->questions);
        mb_hash_bytes(text, (size_t)n, hash);
    }
    a->questions_hash = mb_strdup(hash);
    a->style = mb_strdup(mb_question_style_name(style));
    a->few_shot = few_shot;
    if (a->questions_hash == NULL || a->style == NULL) MB_RAISE(MB_ENOMEM, "no memory for attributes");
done:
    return status;
}

mb_status mb_question_answers_create(const mb_questions *questions, int64_t count, int64_t choices,
                                     const int32_t *tokens, mb_question_style style, int64_t few_shot,
                                     mb_answers **out_answers)
{
    mb_status status = MB_OK;
    mb_answers *a = NULL;
    MB_TRY(mb_answers_create(count, choices, &a));
    for (int64_t q = 0; q < count; q++) MB_TRY(fill_question(mb_questions_at(questions, q), q, a));
    memcpy(a->tokens, tokens, (size_t)count * sizeof *tokens);
    MB_TRY(fill_attributes(questions, style, few_shot, a));
    *out_answers = a;
    a = NULL;
done:
    mb_answers_close(&a);
    return status;
}

/* ---- 2. options ---- */

/* A likelihood per byte of the option's text, or as it is where letters stand for options. */
static double score_of(const mb_question_body *body, bool by_byte, int i, float loglik)
{
    const size_t bytes = strlen(body->options[i]);
    return by_byte && bytes > 0 ? (double)loglik / (double)bytes : (double)loglik;
}

void mb_question_answers_prob(const mb_question_body *body, bool by_byte, const float *loglik,
                              float *out_prob)
{
    double largest = -INFINITY, sum = 0, score[MB_QUESTION_MAX_OPTIONS];
    for (int i = 0; i < body->option_count; i++) {
        score[i] = score_of(body, by_byte, i, loglik[i]);
        if (score[i] > largest) largest = score[i];
    }
    for (int i = 0; i < body->option_count; i++) {
        score[i] = exp(score[i] - largest);
        sum += score[i];
    }
    for (int i = 0; i < body->option_count; i++) out_prob[i] = (float)(score[i] / sum);
}

void mb_question_answers_pick(const mb_questions *questions, const float *loglik, mb_answers *answers)
{
    mb_answers *a = answers;
    const bool by_byte = strcmp(a->style, mb_question_style_name(MB_QUESTION_TEXTS)) == 0;
    memcpy(a->loglik, loglik, (size_t)(a->questions * a->choices) * sizeof *loglik);
    for (int64_t q = 0; q < a->questions; q++) {
        float *prob = a->choice_prob + q * a->choices;
        if (a->kind[q] == MB_OUTPUTS_CLOZE) continue;
        mb_question_answers_prob(&mb_questions_at(questions, q)->body, by_byte, loglik + q * a->choices,
                                 prob);
        a->picked[q] = mb_vote_pick(a->kind[q], prob, a->options[q]);
        a->right[q] = a->picked[q] == a->answer[q];
    }
}

/* ---- 3. texts ---- */

static int by_text(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

mb_status mb_question_answers_normal(const char *text, mb_answer_match match, char **out_text)
{
    mb_status status = MB_OK;
    mb_str s = MB_STR_EMPTY;
    bool has_number = false;
    if (match == MB_ANSWER_MATCH_NUMBER) MB_TRY(mb_answer_match_number(text, strlen(text), &s, &has_number));
    if (!has_number) {
        mb_str_reset(&s);
        MB_TRY(mb_answer_match_text(text, strlen(text), &s));
    }
    *out_text = mb_strdup(mb_str_text(&s));
    if (*out_text == NULL) MB_RAISE(MB_ENOMEM, "no memory for an answer");
done:
    mb_str_destroy(&s);
    return status;
}

mb_status mb_question_answers_judge(const mb_question *question, const char *text, mb_answer_match match,
                                    bool *out_is_right)
{
    mb_status status = MB_OK;
    const json_t *one;
    size_t i;
    *out_is_right = false;
    json_array_foreach(question->accepted, i, one)
    {
        bool is_equal = false;
        MB_TRY(mb_answer_match_check(match, json_string_value(one), json_string_length(one), text,
                                     strlen(text), &is_equal));
        *out_is_right = *out_is_right || is_equal;
    }
done:
    if (status != MB_OK) mb_status_prefix("question %s: ", question->id);
    return status;
}

/* The list as the table's, each once, in byte order. Takes the strings over. */
static mb_status keep_texts(char **list, int64_t n, mb_answers *a)
{
    mb_status status = MB_OK;
    char **sorted = NULL;
    int64_t kept = 0;
    MB_NEW_ARRAY(sorted, n + 1);
    for (int64_t i = 0; i < n; i++) sorted[i] = list[i];
    qsort(sorted, (size_t)n, sizeof *sorted, by_text);
    for (int64_t i = 0; i < n; i++) {
        if (kept > 0 && strcmp(sorted[i], sorted[kept - 1]) == 0)
            mb_free(sorted[i]);
        else
            sorted[kept++] = sorted[i];
    }
    a->texts = sorted;
    a->text_count = kept;
done:
    return status;
}

mb_status mb_question_answers_texts(const mb_questions *questions, const char *const *texts,
                                    mb_answer_match match, mb_answers *answers)
{
    mb_status status = MB_OK;
    mb_answers *a = answers;
    char **own = NULL, **list = NULL;
    int64_t n = 0;
    MB_NEW_ARRAY(own, a->questions); /* a copy of its own for the look-up: the list loses doubles */
    MB_NEW_ARRAY(list, a->questions);
    for (int64_t q = 0; q < a->questions; q++) {
        bool is_right = false;
        if (a->kind[q] != MB_OUTPUTS_CLOZE || texts[q] == NULL) continue;
        MB_TRY(mb_question_answers_normal(texts[q], match, &own[q]));
        MB_TRY(mb_question_answers_judge(mb_questions_at(questions, q), texts[q], match, &is_right));
        list[n] = mb_strdup(own[q]);
        if (list[n] == NULL) MB_RAISE(MB_ENOMEM, "no memory for an answer");
        n++;
        a->right[q] = is_right;
    }
    MB_TRY(keep_texts(list, n, a));
    n = 0; /* the table has them */
    for (int64_t q = 0; q < a->questions; q++) {
        if (own[q] == NULL) continue;
        char **found = bsearch(&own[q], a->texts, (size_t)a->text_count, sizeof *a->texts, by_text);
        a->picked[q] = (int32_t)(found - a->texts);
    }
done:
    for (int64_t q = 0; own != NULL && q < a->questions; q++) mb_free(own[q]);
    for (int64_t i = 0; i < n; i++) mb_free(list[i]);
    mb_free(own);
    mb_free(list);
    return status;
}

/* ---- 4. summary ---- */

void mb_question_answers_summary_reset(mb_question_answers_summary *summary)
{
    for (int64_t i = 0; summary->row != NULL && i < summary->count; i++) mb_free(summary->row[i].name);
    mb_free(summary->row);
    *summary = (mb_question_answers_summary){0};
}

/* A row of the questions of this source (negative: any) and kind, when there are some. member: [Q]. */
static mb_status add_row(const mb_answers *a, char *name, int32_t source, int kind, double *member,
                         mb_question_answers_summary *summary)
{
    mb_status status = MB_OK;
    mb_question_answers_row row = {.name = name};
    if (name == NULL) MB_RAISE(MB_ENOMEM, "no memory for a name");
    for (int64_t q = 0; q < a->questions; q++) {
        const bool is_in = (source < 0 || a->source[q] == source) && (kind < 0 || a->kind[q] == kind);
        member[q] = is_in;
        row.questions += is_in;
        row.chance += is_in ? (double)a->chance[q] : 0;
    }
    if (row.questions == 0) {
        mb_free(name);
        goto done;
    }
    row.chance /= (double)row.questions;
    summary->row[summary->count++] = row;
done:
    return status;
}

/* The rows and which questions they are of: member [rows, Q]. */
static mb_status list_rows(const mb_answers *a, double *member, mb_question_answers_summary *s)
{
    mb_status status = MB_OK;
    const int64_t Q = a->questions;
    MB_TRY(add_row(a, mb_strdup("all"), -1, -1, member, s));
    for (int64_t i = 0; i < a->sources; i++)
        MB_TRY(add_row(a, mb_str_format("source/%s", a->source_names[i]), (int32_t)i, -1,
                       member + s->count * Q, s));
    for (int k = 0; k < MB_QUESTION_KINDS; k++)
        MB_TRY(add_row(a, mb_str_format("kind/%s", mb_question_kind_name((mb_question_kind)k)), -1, k,
                       member + s->count * Q, s));
done:
    return status;
}

mb_status mb_question_answers_summarise(const mb_answers *answers, int64_t draws, int64_t seed, double level,
                                        mb_question_answers_summary *out_summary)
{
    mb_status status = MB_OK;
    const mb_answers *a = answers;
    const int64_t Q = a->questions, most = a->sources + 1 + MB_QUESTION_KINDS;
    mb_question_answers_summary s = {0};
    double *member = NULL, *right = NULL, *drawn = NULL;
    mb_bootstrap_column *columns = NULL;
    MB_NEW_ARRAY(s.row, most);
    MB_NEW_ARRAY(member, (most + 1) * Q);
    MB_NEW_ARRAY(right, most * Q);
    MB_NEW_ARRAY(columns, most);
    MB_TRY(list_rows(a, member, &s));
    for (int64_t i = 0; i < s.count; i++) {
        for (int64_t q = 0; q < Q; q++) right[i * Q + q] = member[i * Q + q] * a->right[q];
        columns[i] = (mb_bootstrap_column){.value = right + i * Q, .weight = member + i * Q};
    }
    MB_NEW_ARRAY(drawn, draws * s.count);
    MB_TRY(mb_bootstrap_draw(columns, s.count, Q, draws, (uint64_t)seed, 0, drawn));
    for (int64_t i = 0; i < s.count; i++) {
        s.row[i].accuracy = mb_bootstrap_statistic(&columns[i], Q);
        MB_TRY(mb_bootstrap_interval(drawn + i, draws, s.count, level, &s.row[i].low, &s.row[i].high));
    }
    *out_summary = s;
    s = (mb_question_answers_summary){0};
done:
    mb_question_answers_summary_reset(&s);
    mb_free(member);
    mb_free(right);
    mb_free(columns);
    mb_free(drawn);
    return status;
}
