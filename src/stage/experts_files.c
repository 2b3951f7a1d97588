/* experts_files.c: see the header.
 *
 * 1. answers   2. requests   3. accuracies   4. latencies   5. experts   6. results
 */
#include "stage/experts_files.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/files.h"
#include "base/log.h"
#include "base/memory.h"
#include "measure/latency.h"
#include "store/h5.h"

static mb_experts_cell *cell_at(const mb_experts_table *t, int64_t q, int64_t x)
{
    return &t->cell[q * t->experts + x];
}

static bool is_missing(const mb_experts_cell *cell)
{
    return cell->outcome != MB_EXPERTS_WAITING && cell->outcome != MB_EXPERTS_ANSWERED;
}

static bool is_complete(const mb_experts_table *t, int64_t q)
{
    for (int64_t x = 0; x < t->experts; x++)
        if (is_missing(cell_at(t, q, x))) return false;
    return true;
}

/* ---- 1. answers ---- */

static json_t *answer_json(const mb_experts_table *t, int64_t q)
{
    const int32_t fused = t->row[q].fused;
    json_t *list;
    if (fused < 0) return json_null();
    if (t->fused->kind[q] == MB_OUTPUTS_CLOZE) return json_string(t->row[q].text);
    if (t->fused->kind[q] == MB_OUTPUTS_SINGLE) return json_integer(fused);
    list = json_array();
    for (int c = 0; c < t->fused->options[q]; c++)
        if ((fused >> c & 1) != 0) json_array_append_new(list, json_integer(c));
    return list;
}

static mb_status add_line(const mb_experts_table *t, int64_t q, double *weights, mb_str *text)
{
    mb_status status = MB_OK;
    json_t *line = NULL, *answered = json_array(), *missing = json_array(), *why = json_object(),
           *weight = json_object();
    const mb_question *question = mb_questions_at(t->questions, q);
    mb_vote_weights(t->logits + q * t->experts, t->experts, weights);
    for (int64_t x = 0; x < t->experts; x++) {
        const mb_experts_cell *cell = cell_at(t, q, x);
        const char *name = t->plan->names[x];
        MB_TRY(mb_json_set(weight, name, json_real(weights[x])));
        if (cell->outcome == MB_EXPERTS_ANSWERED) json_array_append_new(answered, json_string(name));
        if (!is_missing(cell)) continue;
        json_array_append_new(missing, json_string(name));
        MB_TRY(mb_json_set(why, name, json_string(mb_experts_outcome_name(cell->outcome))));
    }
    line = json_pack("{s:s, s:s, s:s, s:o, s:b, s:O, s:O, s:O, s:O}", "id", question->id, "source",
                     question->source, "kind", mb_question_kind_name(question->kind), "answer",
                     answer_json(t, q), "right", t->fused->right[q] != 0, "answered", answered, "missing",
                     missing, "why", why, "weights", weight);
    if (line == NULL) MB_RAISE(MB_ENOMEM, "no memory for an answer");
    MB_TRY(mb_json_print(line, 0, false, text));
    MB_TRY(mb_str_add(text, "\n"));
done:
    json_decref(line);
    json_decref(answered);
    json_decref(missing);
    json_decref(why);
    json_decref(weight);
    return status;
}

mb_status mb_experts_files_answers(const mb_experts_table *table, const char *path)
{
    mb_status status = MB_OK;
    mb_str text = MB_STR_EMPTY;
    double *weights = NULL;
    MB_NEW_ARRAY(weights, table->experts);
    for (int64_t q = 0; q < table->count; q++) MB_TRY(add_line(table, q, weights, &text));
    MB_TRY(mb_files_write(path, mb_str_text(&text), text.length));
done:
    mb_free(weights);
    mb_str_destroy(&text);
    return status;
}

/* ---- 2. requests ---- */

static mb_status write_numbers(mb_h5 *file, const char *name, mb_dtype dtype, void *data, int64_t n)
{
    const mb_tensor tensor = mb_tensor_view1(dtype, data, n);
    return mb_h5_write(file, name, &tensor);
}

enum { WHOLE = 4, REAL = 6 };

/* Columns [N] of the requests, question by question. */
static mb_status write_requests(const mb_experts_table *t, mb_h5 *file)
{
    static const char *const whole_names[WHOLE] = {"/question", "/expert", "/batch", "/tokens"};
    static const char *const real_names[REAL] = {"/sent",  "/held",    "/round_trip",
                                                 "/queue", "/compute", "/transfer"};
    mb_status status = MB_OK;
    const int64_t most = t->count * t->experts;
    int32_t *whole = NULL;
    double *real = NULL;
    uint8_t *outcome = NULL;
    int64_t n = 0;
    MB_NEW_ARRAY(whole, WHOLE * most);
    MB_NEW_ARRAY(real, REAL * most);
    MB_NEW_ARRAY(outcome, most);
    for (int64_t i = 0; i < most; i++) {
        const mb_experts_cell *c = &t->cell[i];
        if (c->outcome == MB_EXPERTS_WAITING) continue;
        const int32_t wholes[WHOLE] = {(int32_t)(i / t->experts), (int32_t)(i % t->experts), c->batch,
                                       c->tokens};
        const double reals[REAL] = {c->sent, c->held, c->round_trip, c->queue, c->compute, c->transfer};
        for (int k = 0; k < WHOLE; k++) whole[k * most + n] = wholes[k];
        for (int k = 0; k < REAL; k++) real[k * most + n] = reals[k];
        outcome[n++] = (uint8_t)c->outcome;
    }
    for (int k = 0; k < WHOLE; k++) MB_TRY(write_numbers(file, whole_names[k], MB_I32, whole + k * most, n));
    for (int k = 0; k < REAL; k++) MB_TRY(write_numbers(file, real_names[k], MB_F64, real + k * most, n));
    MB_TRY(write_numbers(file, "/outcome", MB_U8, outcome, n));
done:
    mb_free(whole);
    mb_free(real);
    mb_free(outcome);
    return status;
}

enum { TIMES = 5 };

static mb_status write_questions(const mb_experts_table *t, mb_h5 *file)
{
    static const char *const names[TIMES] = {"/question_began", "/question_embed", "/question_gate",
                                             "/question_fuse", "/question_total"};
    mb_status status = MB_OK;
    double *real = NULL;
    MB_NEW_ARRAY(real, TIMES * t->count);
    for (int64_t q = 0; q < t->count; q++) {
        const mb_experts_row *r = &t->row[q];
        const double times[TIMES] = {r->began, r->embed, r->gate, r->fuse, r->total};
        for (int k = 0; k < TIMES; k++) real[k * t->count + q] = times[k];
    }
    for (int k = 0; k < TIMES; k++)
        MB_TRY(write_numbers(file, names[k], MB_F64, real + k * t->count, t->count));
    MB_TRY(mb_h5_write_strings(file, "/id", (const char *const *)(void *)t->fused->ids, t->count));
done:
    mb_free(real);
    return status;
}

mb_status mb_experts_files_requests(const mb_experts_table *table, const char *path)
{
    mb_status status = MB_OK;
    const mb_experts_table *t = table;
    mb_h5 *file = NULL;
    const char *outcomes[MB_EXPERTS_OUTCOMES];
    for (int i = 0; i < MB_EXPERTS_OUTCOMES; i++)
        outcomes[i] = mb_experts_outcome_name((mb_experts_outcome)i);
    MB_TRY(mb_h5_create(path, &file));
    MB_TRY(mb_h5_set_text(file, "/", "format", "moebatch-requests"));
    MB_TRY(mb_h5_set_int(file, "/", "version", 1));
    MB_TRY(mb_h5_set_text(file, "/", "questions", t->fused->questions_hash));
    MB_TRY(write_requests(t, file));
    MB_TRY(write_questions(t, file));
    MB_TRY(mb_h5_write_strings(file, "/outcome_names", outcomes, MB_EXPERTS_OUTCOMES));
    MB_TRY(
        mb_h5_write_strings(file, "/expert_names", (const char *const *)(void *)t->plan->names, t->experts));
    MB_TRY(write_numbers(file, "/rank", MB_I32, t->plan->rank, t->experts));
    MB_TRY(mb_h5_close(&file));
done:
    mb_h5_destroy(&file);
    return status;
}

/* ---- 3. accuracies ---- */

static json_t *number(double value)
{
    return isfinite(value) ? json_real(value) : json_null();
}

/* Is question q one of the row's ("all", "source/<name>", "kind/<name>")? */
static bool is_member(const mb_experts_table *t, int64_t q, const char *name)
{
    const char *what = strchr(name, '/');
    if (what == NULL) return true;
    if (mb_str_is_prefix(name, "source/"))
        return strcmp(t->fused->source_names[t->fused->source[q]], what + 1) == 0;
    return strcmp(mb_question_kind_name(mb_questions_at(t->questions, q)->kind), what + 1) == 0;
}

/* Of the row's questions, those with all answers or those without. */
static json_t *part(const mb_experts_table *t, const char *name, bool complete)
{
    int64_t n = 0, right = 0;
    for (int64_t q = 0; q < t->count; q++) {
        if (!is_member(t, q, name) || is_complete(t, q) != complete) continue;
        n++;
        right += t->fused->right[q];
    }
    return json_pack("{s:I, s:o}", "questions", (json_int_t)n, "accuracy",
                     number(n > 0 ? (double)right / (double)n : NAN));
}

static mb_status add_accuracy(const mb_experts_table *t, json_t *root, double *out_accuracy)
{
    enum { DRAWS = 2000, SEED = 42 };
    mb_status status = MB_OK;
    mb_question_answers_summary s = {0};
    json_t *rows = json_object();
    MB_TRY(mb_question_answers_summarise(t->fused, DRAWS, SEED, 0.95, &s));
    for (int64_t i = 0; i < s.count; i++) {
        const mb_question_answers_row *r = &s.row[i];
        mb_info("  %-28s %7.2f %% right [%6.2f, %6.2f], by chance %6.2f %%, %lld questions", r->name,
                100 * r->accuracy, 100 * r->low, 100 * r->high, 100 * r->chance, (long long)r->questions);
        MB_TRY(mb_json_set(rows, r->name,
                           json_pack("{s:I, s:o, s:o, s:o, s:o, s:o, s:o}", "questions",
                                     (json_int_t)r->questions, "accuracy", number(r->accuracy), "low",
                                     number(r->low), "high", number(r->high), "chance", number(r->chance),
                                     "complete", part(t, r->name, true), "incomplete",
                                     part(t, r->name, false))));
    }
    *out_accuracy = s.row[0].accuracy;
    MB_TRY(mb_json_set(root, "accuracy", json_incref(rows)));
done:
    json_decref(rows);
    mb_question_answers_summary_reset(&s);
    return status;
}

/* ---- 4. latencies ---- */

static mb_status add_spread(json_t *parts, const char *name, const double *values, int64_t n)
{
    mb_status status = MB_OK;
    mb_latency_spread s = {NAN, NAN, NAN, NAN, NAN, NAN};
    if (n > 0) MB_TRY(mb_latency_spread_get(values, n, &s));
    if (n > 0)
        mb_info("  %-9s p50 %10.3f ms   p95 %10.3f ms   mean %10.3f ms", name, 1e3 * s.p50, 1e3 * s.p95,
                1e3 * s.mean);
    MB_TRY(mb_json_set(parts, name,
                       json_pack("{s:I, s:o, s:o, s:o, s:o}", "count", (json_int_t)n, "p50", number(s.p50),
                                 "p95", number(s.p95), "mean", number(s.mean), "max", number(s.max))));
done:
    return status;
}

static mb_status add_latency(const mb_experts_table *t, json_t *root)
{
    mb_status status = MB_OK;
    json_t *parts = json_object();
    const int64_t Q = t->count, most = Q * t->experts;
    double *values = NULL;
    int64_t n = 0;
    MB_NEW_ARRAY(values, 4 * most + 4 * Q);
    double *held = values, *queue = held + most, *compute = queue + most, *transfer = compute + most,
           *embed = transfer + most, *gate = embed + Q, *fuse = gate + Q, *total = fuse + Q;
    for (int64_t i = 0; i < most; i++) {
        const mb_experts_cell *c = &t->cell[i];
        if (c->outcome != MB_EXPERTS_ANSWERED) continue;
        held[n] = c->held, queue[n] = c->queue, compute[n] = c->compute, transfer[n] = c->transfer;
        n++;
    }
    for (int64_t q = 0; q < Q; q++) {
        const mb_experts_row *r = &t->row[q];
        embed[q] = r->embed, gate[q] = r->gate, fuse[q] = r->fuse, total[q] = r->total;
    }
    MB_TRY(add_spread(parts, "embed", embed, Q));
    MB_TRY(add_spread(parts, "gate", gate, Q));
    MB_TRY(add_spread(parts, "held", held, n));
    MB_TRY(add_spread(parts, "queue", queue, n));
    MB_TRY(add_spread(parts, "compute", compute, n));
    MB_TRY(add_spread(parts, "transfer", transfer, n));
    MB_TRY(add_spread(parts, "fuse", fuse, Q));
    MB_TRY(add_spread(parts, "total", total, Q));
    MB_TRY(mb_json_set(root, "latency_seconds", json_incref(parts)));
done:
    json_decref(parts);
    mb_free(values);
    return status;
}

/* ---- 5. experts ---- */

static mb_status add_experts(const mb_experts_table *t, const mb_experts_ask_state *state, json_t *root)
{
    mb_status status = MB_OK;
    json_t *experts = json_object();
    for (int64_t x = 0; x < t->experts; x++) {
        const mb_experts_ask_state *s = &state[x];
        int64_t wanted = 0, missing = 0;
        for (int64_t q = 0; q < t->count; q++) {
            wanted += cell_at(t, q, x)->outcome != MB_EXPERTS_WAITING;
            missing += is_missing(cell_at(t, q, x));
        }
        mb_info("  %-28s rank %d: %lld of %lld questions, missing in %lld%s", t->plan->names[x],
                t->plan->rank[x], (long long)wanted, (long long)t->count, (long long)missing,
                s->is_dead ? "; dead at the end" : "");
        MB_TRY(mb_json_set(experts, t->plan->names[x],
                           json_pack("{s:i, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:b}", "rank",
                                     t->plan->rank[x], "wanted", (json_int_t)wanted, "answered",
                                     (json_int_t)s->answered, "missing", (json_int_t)missing, "late",
                                     (json_int_t)s->late, "unable", (json_int_t)s->unable, "passed_over",
                                     (json_int_t)s->passed_over, "late_answers", (json_int_t)s->late_answers,
                                     "deaths", (json_int_t)s->deaths, "dead_at_end", s->is_dead)));
    }
    MB_TRY(mb_json_set(root, "experts", json_incref(experts)));
done:
    json_decref(experts);
    return status;
}

/* ---- 6. results ---- */

mb_status mb_experts_files_results(const mb_experts_table *table, const mb_experts_options *options,
                                   const mb_experts_ask_state *state, const char *path, double *out_accuracy,
                                   int64_t *out_incomplete)
{
    mb_status status = MB_OK;
    const mb_experts_table *t = table;
    int64_t incomplete = 0, unanswered = 0;
    for (int64_t q = 0; q < t->count; q++) {
        incomplete += !is_complete(t, q);
        unanswered += t->row[q].fused < 0;
    }
    const double seconds = mb_clock_seconds() - t->began;
    json_t *root = json_pack(
        "{s:s, s:i, s:I, s:I, s:I, s:s, s:I, s:s, s:I, s:s, s:f, s:f}", "format", "moebatch-together",
        "version", 1, "questions", (json_int_t)t->count, "incomplete", (json_int_t)incomplete, "unanswered",
        (json_int_t)unanswered, "rule", mb_vote_name(t->plan->rule), "top_k", (json_int_t)options->top_k,
        "style", t->fused->style, "few_shot", (json_int_t)t->fused->few_shot, "match",
        mb_answer_match_name(t->plan->match), "timeout_seconds", options->timeout, "seconds", seconds);
    if (root == NULL) MB_RAISE(MB_ENOMEM, "no memory for results");
    mb_info("%lld questions in %.1f s (%.1f a second), %s of %s experts; %lld answers without one that was "
            "asked, %lld without any",
            (long long)t->count, seconds, (double)t->count / (seconds + 1e-9), mb_vote_name(t->plan->rule),
            options->top_k > 0 ? "the gate's first" : "all", (long long)incomplete, (long long)unanswered);
    MB_TRY(add_accuracy(t, root, out_accuracy));
    MB_TRY(add_latency(t, root));
    MB_TRY(add_experts(t, state, root));
    MB_TRY(mb_json_write(path, root, 2, false));
    *out_incomplete = incomplete;
done:
    json_decref(root);
    return status;
}
