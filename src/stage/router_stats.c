/* router_stats: what share each member of a fused model had in the answers of a generator.
 *
 * 1. shape
 * 2. a query
 * 3. records that are being answered
 * 4. rows in
 * 5. answers out
 * 6. tables
 *
 * Weights are added in f64 in the order of positions, so that sums do not depend on how a prompt was cut.
 */
#include "stage/router_stats.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "serve/stream.h"

/* Weights of rows: their sum, and with has_tokens each. */
typedef struct row_list {
    double *sum; /* [S, M] */
    int64_t rows, room;
    float *share; /* [room, S, M] */
} row_list;

typedef struct open_record {
    int64_t record, left; /* samples to come */
    mb_ids prompt;
    row_list before;  /* rows that foretold the prompt */
    row_list last;    /* the prompt's last, which foretold every sample's first token */
    row_list *answer; /* [samples] */
    struct open_record *behind;
} open_record;

struct mb_router_stats {
    mb_router_shape shape;
    const mb_tokenizer *tokenizer;
    int64_t samples;
    open_record *open;
    double *weight; /* [S, M] of a row */
};

/* ---- 1. shape ---- */

mb_status mb_router_shape_get(const mb_lm *lm, bool has_tokens, mb_router_shape *out_shape)
{
    mb_status status = MB_OK;
    if (!mb_lm_is_fused(lm))
        MB_RAISE(MB_EUSAGE,
                 "infer.show_router_stats is about members of a fused model, and this is one model; "
                 "experts of one: moe-eval eval.routing=true");
    if (mb_lm_routers(lm) == 0)
        MB_RAISE(MB_EUSAGE,
                 "infer.show_router_stats: an ensemble has no router, its weights are fixed; train "
                 "one with training.objective=btm");
    *out_shape = (mb_router_shape){.stages = mb_lm_routers(lm),
                                   .members = mb_fuse_members(lm),
                                   .by_layer = mb_fuse_get_kind(lm) == MB_FUSE_LAYER,
                                   .has_tokens = has_tokens};
    for (int64_t m = 0; m < out_shape->members; m++) out_shape->members_name[m] = mb_fuse_member_name(lm, m);
done:
    return status;
}

const char *mb_router_shape_stage(const mb_router_shape *shape, int64_t stage, char text[32])
{
    if (!shape->by_layer) return "token";
    if (stage == 0) return "embedding";
    if (stage == shape->stages - 1) return "head";
    snprintf(text, 32, "layer %lld", (long long)stage - 1);
    return text;
}

/* ---- 2. a query ---- */

void mb_router_query_reset(mb_router_query *query)
{
    mb_free(query->prompt);
    mb_free(query->answer);
    mb_free(query->ids);
    mb_free(query->share);
    mb_free(query->end);
    mb_str_destroy(&query->text);
    *query = (mb_router_query){0};
}

void mb_router_query_mean(const mb_router_shape *shape, const double *part, double *out_share)
{
    for (int64_t m = 0; m < shape->members; m++) {
        double sum = 0;
        for (int64_t s = 0; s < shape->stages; s++) sum += part[s * shape->members + m];
        out_share[m] = sum / (double)shape->stages;
    }
}

/* ---- 3. records that are being answered ---- */

static int64_t row_width(const mb_router_stats *stats)
{
    return stats->shape.stages * stats->shape.members;
}

static void row_list_reset(row_list *list)
{
    mb_free(list->sum);
    mb_free(list->share);
    *list = (row_list){0};
}

static mb_status row_list_add(const mb_router_stats *stats, row_list *list, const double *weight)
{
    mb_status status = MB_OK;
    const int64_t width = row_width(stats);
    if (list->sum == NULL) MB_NEW_ARRAY(list->sum, width);
    if (stats->shape.has_tokens && list->rows == list->room) {
        const int64_t room = list->room > 0 ? 2 * list->room : 16;
        float *more = mb_realloc(list->share, (size_t)(room * width), sizeof *more);
        if (more == NULL) MB_RAISE(MB_ENOMEM, "no memory for the routers' weights of every token");
        list->share = more;
        list->room = room;
    }
    for (int64_t i = 0; i < width; i++) list->sum[i] += weight[i];
    for (int64_t i = 0; stats->shape.has_tokens && i < width; i++)
        list->share[list->rows * width + i] = (float)weight[i];
    list->rows++;
done:
    return status;
}

static void record_free(const mb_router_stats *stats, open_record *one)
{
    if (one == NULL) return;
    row_list_reset(&one->before);
    row_list_reset(&one->last);
    for (int64_t i = 0; one->answer != NULL && i < stats->samples; i++) row_list_reset(&one->answer[i]);
    mb_free(one->answer);
    mb_ids_destroy(&one->prompt);
    mb_free(one);
}

/* The link that leads to the record; to NULL when it is not there. */
static open_record **record_find(mb_router_stats *stats, int64_t record)
{
    open_record **at = &stats->open;
    while (*at != NULL && (*at)->record != record) at = &(*at)->behind;
    return at;
}

static mb_status record_open(mb_router_stats *stats, const mb_generate_routing *routing)
{
    mb_status status = MB_OK;
    open_record *one = NULL;
    assert(routing->first == 0 && routing->sample == 0);
    MB_NEW(one);
    one->record = routing->record;
    one->left = stats->samples;
    MB_NEW_ARRAY(one->answer, stats->samples);
    if (stats->shape.has_tokens) MB_TRY(mb_ids_append_all(&one->prompt, routing->ids, routing->prompt));
    one->behind = stats->open;
    stats->open = one;
    one = NULL;
done:
    record_free(stats, one);
    return status;
}

mb_status mb_router_stats_create(const mb_router_shape *shape, const mb_tokenizer *opt_tokenizer,
                                 int64_t samples, mb_router_stats **out_stats)
{
    mb_status status = MB_OK;
    mb_router_stats *stats = NULL;
    MB_NEW(stats);
    stats->shape = *shape;
    stats->tokenizer = opt_tokenizer;
    stats->samples = samples;
    MB_NEW_ARRAY(stats->weight, row_width(stats));
    *out_stats = stats;
    stats = NULL;
done:
    mb_router_stats_destroy(&stats);
    return status;
}

void mb_router_stats_destroy(mb_router_stats **stats)
{
    mb_router_stats *s = *stats;
    if (s == NULL) return;
    while (s->open != NULL) {
        open_record *one = s->open;
        s->open = one->behind;
        record_free(s, one);
    }
    mb_free(s->weight);
    mb_free(s);
    *stats = NULL;
}

const mb_router_shape *mb_router_stats_shape(const mb_router_stats *stats)
{
    return &stats->shape;
}

/* ---- 4. rows in ---- */

/* The softmax of M logits. */
static void softmax(const float *logits, int64_t members, double *weight)
{
    double most = logits[0], sum = 0;
    for (int64_t m = 1; m < members; m++) most = logits[m] > most ? logits[m] : most;
    for (int64_t m = 0; m < members; m++) sum += weight[m] = exp(logits[m] - most);
    for (int64_t m = 0; m < members; m++) weight[m] /= sum;
}

mb_status mb_router_stats_route(mb_router_stats *stats, const mb_generate_routing *routing)
{
    mb_status status = MB_OK;
    const int64_t members = stats->shape.members;
    open_record **at = record_find(stats, routing->record);
    assert(routing->routers == stats->shape.stages && routing->width == members);
    if (*at == NULL) {
        MB_TRY(record_open(stats, routing));
        at = &stats->open;
    }
    for (int64_t i = 0; i < routing->count; i++) {
        const int64_t position = routing->first + i;
        for (int64_t s = 0; s < stats->shape.stages; s++)
            softmax(routing->logits[s] + i * members, members, stats->weight + s * members);
        row_list *list = position < routing->prompt - 1    ? &(*at)->before
                         : position == routing->prompt - 1 ? &(*at)->last
                                                           : &(*at)->answer[routing->sample];
        MB_TRY(row_list_add(stats, list, stats->weight));
    }
done:
    return status;
}

/* ---- 5. answers out ---- */

/* Mean of one or two lists. */
static mb_status mean_of(const mb_router_stats *stats, const row_list *a, const row_list *b,
                         double **out_mean, int64_t *out_rows)
{
    mb_status status = MB_OK;
    const int64_t width = row_width(stats);
    MB_NEW_ARRAY(*out_mean, width);
    *out_rows = a->rows + b->rows;
    for (int64_t i = 0; i < width; i++) {
        const double sum = (a->rows > 0 ? a->sum[i] : 0) + (b->rows > 0 ? b->sum[i] : 0);
        (*out_mean)[i] = *out_rows > 0 ? sum / (double)*out_rows : (double)NAN;
    }
done:
    return status;
}

static void copy_rows(const row_list *list, int64_t width, float **at)
{
    if (list->rows > 0) memcpy(*at, list->share, (size_t)(list->rows * width) * sizeof **at);
    *at += list->rows * width;
}

static mb_status copy_tokens(const mb_router_stats *stats, const open_record *one,
                             const mb_generate_answer *answer, mb_router_query *q)
{
    mb_status status = MB_OK;
    const int64_t width = row_width(stats), n = one->prompt.count;
    q->tokens = n + answer->count;
    MB_NEW_ARRAY(q->ids, q->tokens);
    MB_NEW_ARRAY(q->share, q->tokens * width);
    memcpy(q->ids, one->prompt.data, (size_t)n * sizeof *q->ids);
    memcpy(q->ids + n, answer->ids, (size_t)answer->count * sizeof *q->ids);
    float *at = q->share;
    for (int64_t i = 0; i < width; i++) *at++ = NAN;
    copy_rows(&one->before, width, &at);
    copy_rows(&one->last, width, &at);
    copy_rows(&one->answer[answer->sample], width, &at);
done:
    return status;
}

/* The text of prompt and answer, and where each token ends in it. */
static mb_status split_text(const mb_tokenizer *tokenizer, mb_router_query *q)
{
    mb_status status = MB_OK;
    const mb_answer_stops none = {0};
    mb_stream stream = {0};
    mb_str whole = MB_STR_EMPTY;
    const char *piece;
    size_t length;
    MB_NEW_ARRAY(q->end, q->tokens);
    if (tokenizer == NULL) goto done;
    for (int64_t i = 0; i < q->tokens; i++) {
        MB_TRY(mb_stream_push(&stream, tokenizer, &none, q->ids, 0, i + 1, &piece, &length));
        MB_TRY(mb_str_append(&q->text, piece, length));
        q->end[i] = (int64_t)q->text.length;
    }
    MB_TRY(mb_answer_text(tokenizer, q->ids, 0, q->ids, q->tokens, &whole));
    mb_stream_end(&stream, mb_str_text(&whole), whole.length, &piece, &length);
    MB_TRY(mb_str_append(&q->text, piece, length));
    q->end[q->tokens - 1] = (int64_t)q->text.length;
done:
    mb_stream_reset(&stream);
    mb_str_destroy(&whole);
    return status;
}

mb_status mb_router_stats_take(mb_router_stats *stats, const mb_generate_answer *answer,
                               mb_router_query *out_query)
{
    mb_status status = MB_OK;
    const row_list none = {0};
    open_record **at = record_find(stats, answer->record), *one = *at;
    mb_router_query q = {.record = answer->record, .sample = answer->sample};
    assert(one != NULL && one->last.rows + one->answer[answer->sample].rows == answer->count);
    MB_TRY(mean_of(stats, &one->before, &none, &q.prompt, &q.prompt_rows));
    MB_TRY(mean_of(stats, &one->last, &one->answer[answer->sample], &q.answer, &q.answer_rows));
    if (stats->shape.has_tokens) {
        MB_TRY(copy_tokens(stats, one, answer, &q));
        MB_TRY(split_text(stats->tokenizer, &q));
    }
    row_list_reset(&one->answer[answer->sample]);
    if (--one->left == 0) {
        *at = one->behind;
        record_free(stats, one);
    }
    *out_query = q;
    q = (mb_router_query){0};
done:
    mb_router_query_reset(&q);
    return status;
}

/* ---- 6. tables ---- */

static mb_status add_shares(const mb_router_shape *shape, const double *share, bool has_rows, mb_str *line)
{
    mb_status status = MB_OK;
    for (int64_t m = 0; m < shape->members; m++)
        if (has_rows)
            MB_TRY(mb_str_add_format(line, " %11.4f", share[m]));
        else
            MB_TRY(mb_str_add_format(line, " %11s", "-"));
done:
    return status;
}

static mb_status log_line(const mb_router_shape *shape, const mb_router_query *q, const char *name,
                          const double *prompt, const double *answer)
{
    mb_status status = MB_OK;
    mb_str line = MB_STR_EMPTY;
    MB_TRY(add_shares(shape, prompt, q->prompt_rows > 0, &line));
    MB_TRY(mb_str_add(&line, "  |"));
    MB_TRY(add_shares(shape, answer, q->answer_rows > 0, &line));
    mb_info("  %-10s%s", name, mb_str_text(&line));
done:
    mb_str_destroy(&line);
    return status;
}

static mb_status log_head(const mb_router_shape *shape)
{
    mb_status status = MB_OK;
    mb_str names = MB_STR_EMPTY;
    for (int64_t m = 0; m < shape->members; m++)
        MB_TRY(mb_str_add_format(&names, " %11.11s", shape->members_name[m]));
    mb_info("  %-10s%s  |%s", "", mb_str_text(&names), mb_str_text(&names));
done:
    mb_str_destroy(&names);
    return status;
}

/* Printable: control characters as "?". */
static void token_text(const mb_router_query *q, int64_t token, char *text, size_t room)
{
    const int64_t begin = token > 0 ? q->end[token - 1] : 0;
    size_t n = (size_t)(q->end[token] - begin);
    if (n > room - 1) n = room - 1;
    while (n > 0 && begin + (int64_t)n < q->end[token] &&
           ((unsigned char)mb_str_text(&q->text)[begin + (int64_t)n] & 0xC0) == 0x80)
        n--; /* not inside a character */
    memcpy(text, mb_str_text(&q->text) + begin, n);
    text[n] = 0;
    for (size_t i = 0; i < n; i++)
        if ((unsigned char)text[i] < ' ') text[i] = '?';
}

static mb_status log_tokens(const mb_router_shape *shape, const mb_router_query *q)
{
    mb_status status = MB_OK;
    mb_str line = MB_STR_EMPTY;
    double share[MB_FUSE_MAX_MEMBERS], part;
    char text[40];
    mb_info("shares per token, mean over the stages");
    for (int64_t t = 0; t < q->tokens; t++) {
        const float *row = q->share + t * shape->stages * shape->members;
        for (int64_t m = 0; m < shape->members; m++) {
            part = 0;
            for (int64_t s = 0; s < shape->stages; s++) part += (double)row[s * shape->members + m];
            share[m] = part / (double)shape->stages;
        }
        mb_str_reset(&line);
        MB_TRY(add_shares(shape, share, t > 0, &line));
        token_text(q, t, text, sizeof text);
        mb_info("  %6lld%s%s  \"%s\"", (long long)t, t <= q->prompt_rows ? " prompt" : " answer",
                mb_str_text(&line), text);
    }
done:
    mb_str_destroy(&line);
    return status;
}

mb_status mb_router_query_log(const mb_router_shape *shape, const mb_router_query *query)
{
    mb_status status = MB_OK;
    double prompt[MB_FUSE_MAX_MEMBERS], answer[MB_FUSE_MAX_MEMBERS];
    char name[32];
    const int64_t members = shape->members;
    mb_info("shares of the members: prompt (%lld tokens foretold) | answer (%lld)",
            (long long)query->prompt_rows, (long long)query->answer_rows);
    MB_TRY(log_head(shape));
    for (int64_t s = 0; s < shape->stages; s++)
        MB_TRY(log_line(shape, query, mb_router_shape_stage(shape, s, name), query->prompt + s * members,
                        query->answer + s * members));
    mb_router_query_mean(shape, query->prompt, prompt);
    mb_router_query_mean(shape, query->answer, answer);
    if (shape->stages > 1) MB_TRY(log_line(shape, query, "mean", prompt, answer));
    if (shape->has_tokens) MB_TRY(log_tokens(shape, query));
done:
    return status;
}
