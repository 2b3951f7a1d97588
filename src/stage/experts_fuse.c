/* experts_fuse.c: from replies to a row of answers, from the row to one answer.
 *
 * A cloze answer stands in a row by the number of the first expert that gave the same normalised text; in
 * the table of outputs it is renumbered, which no rule of vote.h looks at.
 *
 * 1. life   2. one answer   3. a row   4. outputs
 */
#include "stage/experts_fuse.h"

#include <math.h>
#include <string.h>

#include "base/clock.h"
#include "base/memory.h"

/* ---- 1. life ---- */

void mb_experts_fuse_destroy(mb_experts_table **table)
{
    mb_experts_table *t = *table;
    if (t == NULL) return;
    for (int64_t i = 0; t->texts != NULL && i < t->experts * t->count; i++) mb_free(t->texts[i]);
    for (int64_t q = 0; t->row != NULL && q < t->count; q++) mb_free(t->row[q].text);
    for (int64_t x = 0; t->normal != NULL && x < t->experts; x++) mb_free(t->normal[x]);
    mb_answers_close(&t->fused);
    mb_free(t->logits);
    mb_free(t->loglik);
    mb_free(t->texts);
    mb_free(t->cell);
    mb_free(t->row);
    mb_free(t->picked);
    mb_free(t->right);
    mb_free(t->prob);
    mb_free(t->normal);
    mb_free(t->members);
    MB_FREE(*table);
}

static mb_status create_arrays(mb_experts_table *t)
{
    mb_status status = MB_OK;
    const int64_t Q = t->count, X = t->experts, C = t->choices;
    MB_NEW_ARRAY(t->logits, Q * X);
    MB_NEW_ARRAY(t->loglik, X * Q * C);
    MB_NEW_ARRAY(t->texts, X * Q);
    MB_NEW_ARRAY(t->cell, Q * X);
    MB_NEW_ARRAY(t->row, Q);
    MB_NEW_ARRAY(t->picked, X);
    MB_NEW_ARRAY(t->right, X);
    MB_NEW_ARRAY(t->prob, X * C);
    MB_NEW_ARRAY(t->normal, X);
    MB_NEW_ARRAY(t->members, X);
    for (int64_t i = 0; i < X * Q * C; i++) t->loglik[i] = NAN;
    for (int64_t i = 0; i < Q * X; i++)
        t->cell[i] = (mb_experts_cell){
            .sent = NAN, .held = NAN, .round_trip = NAN, .queue = NAN, .compute = NAN, .transfer = NAN};
done:
    return status;
}

/* Can what is accepted be matched at all? */
static mb_status check_accepted(const mb_question *question, mb_answer_match match)
{
    mb_status status = MB_OK;
    const json_t *one;
    size_t i;
    bool is_equal;
    json_array_foreach(question->accepted, i, one)
    {
        MB_TRY(
            mb_answer_match_check(match, json_string_value(one), json_string_length(one), "", 0, &is_equal));
    }
done:
    if (status != MB_OK) mb_status_prefix("question %s: ", question->id);
    return status;
}

mb_status mb_experts_fuse_create(const mb_questions *questions, int64_t count, const mb_experts_plan *plan,
                                 int64_t few_shot, mb_experts_table **out_table)
{
    mb_status status = MB_OK;
    mb_experts_table *t = NULL;
    int32_t *tokens = NULL;
    MB_NEW(t);
    *t = (mb_experts_table){.questions = questions,
                            .plan = plan,
                            .count = count,
                            .experts = plan->experts.count,
                            .choices = 1,
                            .began = mb_clock_seconds()};
    for (int64_t q = 0; q < count; q++) {
        const int options = mb_questions_at(questions, q)->body.option_count;
        if (options > t->choices) t->choices = options;
        MB_TRY(check_accepted(mb_questions_at(questions, q), plan->match));
    }
    MB_TRY(create_arrays(t));
    MB_NEW_ARRAY(tokens, count);
    MB_TRY(
        mb_question_answers_create(questions, count, t->choices, tokens, plan->style, few_shot, &t->fused));
    *out_table = t;
    t = NULL;
done:
    mb_free(tokens);
    mb_experts_fuse_destroy(&t);
    return status;
}

/* ---- 2. one answer ---- */

/* Expert x's text: its number among those of the row, and whether it is right. */
static mb_status read_text(mb_experts_table *t, const mb_question *question, int64_t x, const char *opt_text)
{
    mb_status status = MB_OK;
    int64_t first = 0;
    bool is_right;
    if (opt_text == NULL) goto done;
    MB_TRY(mb_question_answers_normal(opt_text, t->plan->match, &t->normal[x]));
    MB_TRY(mb_question_answers_judge(question, opt_text, t->plan->match, &is_right));
    t->right[x] = is_right;
    while (t->normal[first] == NULL || strcmp(t->normal[first], t->normal[x]) != 0) first++;
    t->picked[x] = (int32_t)first;
done:
    return status;
}

/* ---- 3. a row ---- */

static void start_row(mb_experts_table *t)
{
    for (int64_t x = 0; x < t->experts; x++) {
        t->picked[x] = -1;
        t->right[x] = 0;
        MB_FREE(t->normal[x]);
    }
    for (int64_t i = 0; i < t->experts * t->choices; i++) t->prob[i] = NAN;
}

static void measure(const mb_experts_table *t, const mb_experts_reply *reply, mb_experts_cell *cell)
{
    const mb_experts_answer *a = &reply->answer;
    cell->outcome = reply->outcome;
    if (reply->sent <= 0) return;
    cell->sent = reply->sent - t->began;
    cell->held = reply->sent - reply->put;
    cell->round_trip = reply->settled - reply->sent;
    if (reply->outcome != MB_EXPERTS_ANSWERED) return;
    cell->queue = a->queued;
    cell->compute = a->compute;
    cell->transfer = fmax(0, cell->round_trip - a->queued - a->compute);
    cell->batch = (int32_t)a->batch;
    cell->tokens = (int32_t)a->tokens;
}

static mb_status take_reply(mb_experts_table *t, int64_t q, mb_experts_reply *reply)
{
    mb_status status = MB_OK;
    const mb_question *question = mb_questions_at(t->questions, q);
    const int64_t x = reply->expert, options = question->body.option_count;
    mb_experts_answer *a = &reply->answer;
    measure(t, reply, &t->cell[q * t->experts + x]);
    if (reply->outcome != MB_EXPERTS_ANSWERED) goto done;
    if (a->choices != options)
        MB_RAISE(MB_EFORMAT, "question %s: %s answered %lld of %lld options", question->id, t->plan->names[x],
                 (long long)a->choices, (long long)options);
    if (question->kind == MB_QUESTION_CLOZE) {
        MB_TRY(read_text(t, question, x, a->text));
        t->texts[x * t->count + q] = a->text;
        a->text = NULL;
        goto done;
    }
    float *prob = t->prob + x * t->choices, *loglik = t->loglik + (x * t->count + q) * t->choices;
    memcpy(loglik, a->loglik, (size_t)options * sizeof *loglik);
    mb_question_answers_prob(&question->body, t->plan->style == MB_QUESTION_TEXTS, loglik, prob);
    t->picked[x] = mb_vote_pick(t->fused->kind[q], prob, (int32_t)options);
done:
    return status;
}

mb_status mb_experts_fuse_run(mb_experts_table *table, mb_experts_question *question)
{
    mb_status status = MB_OK;
    mb_experts_table *t = table;
    const double began = mb_clock_seconds();
    const int64_t q = question->number;
    mb_experts_row *row = &t->row[q];
    int64_t members = 0;
    start_row(t);
    for (int64_t i = 0; i < question->count; i++) {
        MB_TRY(take_reply(t, q, &question->reply[i]));
        if (question->reply[i].outcome == MB_EXPERTS_ANSWERED)
            t->members[members++] = question->reply[i].expert;
    }
    const mb_vote_question voted = {.kind = t->fused->kind[q],
                                    .options = t->fused->options[q],
                                    .experts = t->experts,
                                    .choices = t->choices,
                                    .choice_prob = t->prob,
                                    .picked = t->picked,
                                    .opt_right = t->right,
                                    .opt_gate_logits = t->logits + q * t->experts,
                                    .answer = t->fused->answer[q]};
    const int32_t picked = mb_vote_run(t->plan->rule, &voted, t->members, members);
    t->fused->right[q] = mb_vote_is_right(&voted, picked);
    row->fused = picked;
    if (voted.kind == MB_OUTPUTS_CLOZE && picked >= 0) {
        row->text = t->normal[picked];
        t->normal[picked] = NULL;
        row->fused = 0;
    }
    row->is_done = true;
    row->fuse = mb_clock_seconds() - began;
    row->total = began + row->fuse - t->began - row->began;
done:
    return status;
}

/* ---- 4. outputs ---- */

static mb_status answers_of(const mb_experts_table *t, int64_t x, const char *hash, int64_t few_shot,
                            mb_answers **out_answers)
{
    mb_status status = MB_OK;
    mb_answers *a = NULL;
    MB_TRY(mb_question_answers_create(t->questions, t->count, t->choices, t->fused->tokens, t->plan->style,
                                      few_shot, &a));
    mb_question_answers_pick(t->questions, t->loglik + x * t->count * t->choices, a);
    MB_TRY(mb_question_answers_texts(t->questions, (const char *const *)(void *)(t->texts + x * t->count),
                                     t->plan->match, a));
    a->model_hash = mb_strdup(hash);
    if (a->model_hash == NULL) MB_RAISE(MB_ENOMEM, "no memory for a hash");
    *out_answers = a;
    a = NULL;
done:
    mb_answers_close(&a);
    return status;
}

/* Experts that gave no answer. */
static void blank(const mb_experts_table *t, mb_outputs *o)
{
    for (int64_t i = 0; i < t->count * t->experts; i++) {
        if (t->cell[i].outcome == MB_EXPERTS_ANSWERED) continue;
        o->picked[i] = -1;
        o->right[i] = 0;
        for (int64_t c = 0; c < t->choices; c++) o->choice_prob[i * t->choices + c] = NAN;
    }
}

mb_status mb_experts_fuse_outputs(const mb_experts_table *table, const char *const *hashes,
                                  const char *gate_hash, mb_outputs **out_outputs)
{
    mb_status status = MB_OK;
    const mb_experts_table *t = table;
    const char *const *names = (const char *const *)(void *)t->plan->names;
    mb_answers **answers = NULL;
    mb_outputs *o = NULL;
    MB_NEW_ARRAY(answers, t->experts);
    for (int64_t x = 0; x < t->experts; x++)
        MB_TRY(answers_of(t, x, hashes[x], t->fused->few_shot, &answers[x]));
    MB_TRY(mb_answers_join((const mb_answers *const *)(void *)answers, names, names, t->experts, &o));
    blank(t, o);
    MB_NEW_ARRAY(o->opt_gate_logits, t->count * t->experts);
    memcpy(o->opt_gate_logits, t->logits, (size_t)(t->count * t->experts) * sizeof *t->logits);
    o->opt_gate_hash = mb_strdup(gate_hash);
    if (o->opt_gate_hash == NULL) MB_RAISE(MB_ENOMEM, "no memory for a hash");
    *out_outputs = o;
    o = NULL;
done:
    for (int64_t x = 0; answers != NULL && x < t->experts; x++) mb_answers_close(&answers[x]);
    mb_free(answers);
    mb_outputs_close(&o);
    return status;
}
