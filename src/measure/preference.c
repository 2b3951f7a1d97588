/* preference.c: log-probabilities of both sides of every pair, and what they say of the preference.
 *
 * Every rank keeps what it computed record by record; all of it is gathered, so that means are sums over the
 * pairs in their order whoever computed them. Variances are second sums, of squared distances from the mean.
 *
 * 1. records   2. a pair   3. rows   4. finishing
 */
#include "measure/preference.h"

#include <math.h>
#include <string.h>

typedef struct record_sum {
    int64_t record, targets;
    double logprob;
} record_sum;

struct mb_preference {
    const mb_shard *shard;
    record_sum *sums; /* of this rank */
    int64_t count, capacity;
    const double *reference; /* while it finishes; NULL none */
    mb_preference_result result;
};

const char *mb_preference_name(mb_preference_figure figure)
{
    static const char *const names[MB_PREFERENCE_FIGURES] = {
        "accuracy",        "accuracy_per_token", "margin",        "margin_per_token",
        "reward_accuracy", "reward_margin",      "reward_chosen", "reward_rejected"};
    return names[figure];
}

/* ---- 1. records ---- */

mb_status mb_preference_create(const mb_shard *shard, mb_preference **out_preference)
{
    mb_status status = MB_OK;
    mb_preference *p = NULL;
    if (!mb_shard_is_pairs(shard))
        MB_RAISE(MB_EUSAGE,
                 "%s: preference is a matter of pairs, and these are single records; make the shard with "
                 "dataset.pairs=true",
                 mb_shard_files(shard) > 0 ? mb_shard_file_path(shard, 0) : "the shard");
    MB_NEW(p);
    p->shard = shard;
    MB_NEW_ARRAY(p->result.logprob, mb_shard_count(shard));
    MB_NEW_ARRAY(p->result.targets, mb_shard_count(shard));
    p->result.rows = 1 + mb_shard_sources(shard) + mb_shard_types(shard);
    MB_NEW_ARRAY(p->result.row, p->result.rows);
    *out_preference = p;
    p = NULL;
done:
    mb_preference_destroy(&p);
    return status;
}

void mb_preference_destroy(mb_preference **preference)
{
    mb_preference *p = *preference;
    if (p == NULL) return;
    mb_free(p->sums);
    mb_free(p->result.logprob);
    mb_free(p->result.targets);
    mb_free(p->result.row);
    MB_FREE(*preference);
}

static mb_status make_room(mb_preference *p, int64_t records)
{
    mb_status status = MB_OK;
    if (p->count + records <= p->capacity) goto done;
    const int64_t n = 2 * (p->count + records);
    record_sum *bigger = mb_realloc(p->sums, (size_t)n, sizeof *bigger);
    if (bigger == NULL) MB_TRY(MB_ENOMEM);
    p->sums = bigger;
    p->capacity = n;
done:
    return status;
}

mb_status mb_preference_add(mb_preference *p, const mb_tile *tile, const float *token_loss)
{
    mb_status status = MB_OK;
    MB_TRY(make_room(p, tile->records));
    for (int64_t i = 0; i < tile->records; i++) {
        record_sum sum = {.record = tile->record[i]};
        for (int64_t h = tile->head_first[i]; h < tile->head_first[i + 1]; h++) {
            if (!tile->in_mask[tile->head_row[h] + 1]) continue;
            sum.logprob -= token_loss[h];
            sum.targets++;
        }
        p->sums[p->count++] = sum;
    }
done:
    return status;
}

/* ---- 2. a pair ---- */

/* Its figures. False: a side has no target. */
static bool measure_pair(const mb_preference *p, int64_t pair, double value[MB_PREFERENCE_FIGURES])
{
    const double *logprob = p->result.logprob + 2 * pair;
    const int64_t *targets = p->result.targets + 2 * pair;
    if (targets[0] == 0 || targets[1] == 0) return false;
    const double chosen = logprob[0] / (double)targets[0], rejected = logprob[1] / (double)targets[1];
    value[MB_PREFERENCE_ACCURACY] = logprob[0] > logprob[1];
    value[MB_PREFERENCE_ACCURACY_PER_TOKEN] = chosen > rejected;
    value[MB_PREFERENCE_MARGIN] = logprob[0] - logprob[1];
    value[MB_PREFERENCE_MARGIN_PER_TOKEN] = chosen - rejected;
    if (p->reference == NULL) return true;
    const double *reference = p->reference + 2 * pair;
    const double rewards[2] = {p->result.beta * (logprob[0] - reference[0]),
                               p->result.beta * (logprob[1] - reference[1])};
    value[MB_PREFERENCE_REWARD_ACCURACY] = rewards[0] > rewards[1];
    value[MB_PREFERENCE_REWARD_MARGIN] = rewards[0] - rewards[1];
    value[MB_PREFERENCE_REWARD_CHOSEN] = rewards[0];
    value[MB_PREFERENCE_REWARD_REJECTED] = rewards[1];
    return true;
}

/* ---- 3. rows ---- */

/* The rows that a pair belongs to; returns how many. */
static int rows_of(const mb_preference *p, int64_t pair, mb_preference_row *rows[3])
{
    const mb_shard_columns columns = mb_shard_columns_get(p->shard);
    const int64_t sources = mb_shard_sources(p->shard);
    int n = 0;
    rows[n++] = &p->result.row[0];
    rows[n++] = &p->result.row[1 + columns.source[2 * pair]];
    if (columns.type != NULL) rows[n++] = &p->result.row[1 + sources + columns.type[2 * pair]];
    return n;
}

static void count_pairs(mb_preference *p, int64_t pairs)
{
    mb_preference_row *rows[3];
    double value[MB_PREFERENCE_FIGURES];
    for (int64_t i = 0; i < pairs; i++) {
        const bool counts = measure_pair(p, i, value);
        const int n = rows_of(p, i, rows);
        for (int r = 0; r < n; r++) {
            rows[r]->pairs += counts;
            rows[r]->left_out += !counts;
            rows[r]->ties += counts && value[MB_PREFERENCE_MARGIN] == 0;
            for (int64_t f = 0; counts && f < p->result.figures; f++) rows[r]->mean[f] += value[f];
        }
    }
    for (int64_t i = 0; i < p->result.rows; i++) {
        mb_preference_row *row = &p->result.row[i];
        for (int64_t f = 0; f < p->result.figures; f++)
            row->mean[f] = row->pairs > 0 ? row->mean[f] / (double)row->pairs : NAN;
    }
}

static void find_errors(mb_preference *p, int64_t pairs)
{
    mb_preference_row *rows[3];
    double value[MB_PREFERENCE_FIGURES];
    for (int64_t i = 0; i < pairs; i++) {
        if (!measure_pair(p, i, value)) continue;
        const int n = rows_of(p, i, rows);
        for (int r = 0; r < n; r++) {
            for (int64_t f = 0; f < p->result.figures; f++) {
                const double off = value[f] - rows[r]->mean[f];
                rows[r]->error[f] += off * off;
            }
        }
    }
    for (int64_t i = 0; i < p->result.rows; i++) {
        mb_preference_row *row = &p->result.row[i];
        const double n = (double)row->pairs;
        for (int64_t f = 0; f < p->result.figures; f++)
            row->error[f] = row->pairs > 1 ? sqrt(row->error[f] / (n - 1) / n) : NAN;
    }
}

static void name_rows(mb_preference *p)
{
    const int64_t sources = mb_shard_sources(p->shard);
    for (int64_t i = 0; i < sources; i++) p->result.row[1 + i].source = mb_shard_source_name(p->shard, i);
    for (int64_t i = 0; i < mb_shard_types(p->shard); i++)
        p->result.row[1 + sources + i].type = mb_shard_type_name(p->shard, i);
}

/* ---- 4. finishing ---- */

/* The records of all ranks, each in its place. */
static mb_status place(mb_preference *p, const record_sum *sums, int64_t n)
{
    mb_status status = MB_OK;
    if (n != mb_shard_count(p->shard))
        MB_RAISE(MB_EDATA, "preference of %lld records, but the shard has %lld", (long long)n,
                 (long long)mb_shard_count(p->shard));
    for (int64_t i = 0; i < n; i++) {
        if (!isfinite(sums[i].logprob))
            MB_RAISE(MB_ENUMERIC,
                     "record %lld: its log-probability is not a number; check the model's weights",
                     (long long)sums[i].record);
        p->result.logprob[sums[i].record] = sums[i].logprob;
        p->result.targets[sums[i].record] = sums[i].targets;
    }
done:
    return status;
}

mb_status mb_preference_finish(mb_preference *p, mb_comm *comm, const double *opt_reference, double beta)
{
    mb_status status = MB_OK;
    int64_t *offsets = mb_calloc((size_t)mb_comm_size(comm) + 1, sizeof *offsets);
    record_sum *all = NULL;
    MB_TRY(mb_comm_agree(comm, offsets != NULL ? MB_OK : MB_ENOMEM));
    MB_TRY(mb_comm_allgatherv(comm, p->sums, (size_t)p->count * sizeof *all, (void **)&all, offsets));
    MB_TRY(place(p, all, offsets[mb_comm_size(comm)] / (int64_t)sizeof *all));
    p->reference = opt_reference;
    p->result.beta = beta;
    p->result.figures = opt_reference != NULL ? MB_PREFERENCE_FIGURES : MB_PREFERENCE_REWARD_ACCURACY;
    memset(p->result.row, 0, (size_t)p->result.rows * sizeof *p->result.row);
    name_rows(p);
    count_pairs(p, mb_shard_count(p->shard) / 2);
    find_errors(p, mb_shard_count(p->shard) / 2);
done:
    p->reference = NULL;
    mb_free(offsets);
    mb_free(all);
    return status;
}

const mb_preference_result *mb_preference_get(const mb_preference *preference)
{
    return &preference->result;
}
