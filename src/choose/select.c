/* select.c: the exact global best share.
 *
 * Every usable row gets a key of three words, larger is better: the ordered bits of its score, the complement
 * of its hash, the complement of (source, number). Each rank sorts its rows by group and key, with a running
 * sum of records or tokens. The cut of a group is the largest key whose rows from there up are too many; its
 * bits are found from the highest down, for all groups at once.
 *
 * 1. options   2. keys   3. temperature   4. counting   5. the cut   6. gathering
 */
#include "choose/select.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/memory.h"
#include "base/rng.h"
#include "choose/exact_sum.h"
#include "choose/select_quota.h"

/* ---- 1. options ---- */

const mb_option *mb_select_option_table(int64_t *out_count)
{
    static const mb_option options[] = {
        MB_OPTION_REAL(mb_select_options, selection_percentage, "select.selection_percentage", "0.05", 0, 1,
                       "share", "share of the records to keep (0.05: five percent)",
                       "data_selection.selection_percentage|selection_percentage"),
        MB_OPTION_INT(mb_select_options, selection_count, "select.selection_count", "0", 0, 1e15, "records",
                      "number of records to keep; 0: by selection_percentage", NULL),
        MB_OPTION_INT(mb_select_options, token_budget, "select.token_budget", "0", 0, 1e18, "tokens",
                      "keep the longest best-first run of records that fits into so many tokens; 0: none",
                      NULL),
        MB_OPTION_TEXT(mb_select_options, quota, "select.quota", "proportional", NULL,
                       "how sources share the selection: proportional (the best of each), equal, none, or "
                       "name=share,name=share",
                       "data_selection.quota"),
        MB_OPTION_REAL(mb_select_options, temperature, "select.temperature", "0", 0, 1e6, "",
                       "0: the best; above: drawn without replacement, evenly as it grows (Gumbel noise on "
                       "standardised scores)",
                       NULL),
        MB_OPTION_INT(mb_select_options, seed, "select.seed", "42", 0, 9e18, "",
                      "seed of the draws with temperature", NULL),
    };
    *out_count = sizeof options / sizeof *options;
    return options;
}

/* ---- 2. keys ---- */

typedef struct select_row {
    uint64_t key[3];
    int64_t number, group;
    int64_t sum; /* of records or tokens, of this rank's rows of the group from the best to this one */
    double score;
} select_row;

static uint64_t ordered_bits(double value)
{
    uint64_t bits;
    value += 0.0; /* -0 becomes 0 */
    memcpy(&bits, &value, sizeof bits);
    return bits >> 63 ? ~bits : bits | UINT64_C(1) << 63;
}

static int compare_key(const uint64_t a[3], const uint64_t b[3])
{
    for (int i = 0; i < 3; i++) {
        if (a[i] != b[i]) return a[i] < b[i] ? -1 : 1;
    }
    return 0;
}

static int compare_rows(const void *a, const void *b)
{
    const select_row *x = a, *y = b;
    if (x->group != y->group) return x->group < y->group ? -1 : 1;
    return -compare_key(x->key, y->key);
}

static int compare_best_first(const void *a, const void *b)
{
    return -compare_key(((const select_row *)a)->key, ((const select_row *)b)->key);
}

/* ---- 3. temperature ---- */

/* Mean over all ranks of the finite values of (value - centre)^power. */
static mb_status global_mean(mb_comm *comm, const double *values, int64_t n, double centre, int power,
                             double *out)
{
    mb_status status = MB_OK;
    mb_exact_sum sum = {{0}};
    int64_t count = 0;
    for (int64_t i = 0; i < n; i++) {
        if (!isfinite(values[i])) continue;
        double d = values[i] - centre;
        mb_exact_sum_add(&sum, power == 2 ? d * d : d);
        count++;
    }
    MB_TRY(mb_comm_allreduce_i64(comm, sum.word, MB_EXACT_SUM_WORDS, MB_COMM_SUM));
    MB_TRY(mb_comm_allreduce_i64(comm, &count, 1, MB_COMM_SUM));
    *out = count > 0 ? mb_exact_sum_get(&sum) / (double)count : 0;
done:
    return status;
}

/* Overwrites values by standardised value / temperature + noise. */
static mb_status heat(mb_comm *comm, const mb_select_rows *rows, const mb_select_options *options,
                      double *values)
{
    mb_status status = MB_OK;
    double mean, variance;
    MB_TRY(global_mean(comm, values, rows->count, 0, 1, &mean));
    MB_TRY(global_mean(comm, values, rows->count, mean, 2, &variance));
    double scale = variance > 0 ? 1 / sqrt(variance) : 0;
    for (int64_t i = 0; i < rows->count; i++) {
        double u = mb_rng_uniform((uint64_t)options->seed, MB_RNG_SELECT, 1, rows->record_hash[i]);
        double noise = -log(-log(u + 0x1p-54));
        if (isfinite(values[i])) values[i] = (values[i] - mean) * scale / options->temperature + noise;
    }
done:
    return status;
}

/* ---- 4. counting ---- */

typedef struct select_state {
    mb_select_quota quota;
    select_row *rows; /* [count] usable ones, by group, best first */
    int64_t count;
    int64_t *group_first; /* [groups + 1] */
    int64_t wanted, invalid;
} select_state;

static void state_reset(select_state *state)
{
    mb_select_quota_reset(&state->quota);
    mb_free(state->rows);
    mb_free(state->group_first);
}

static mb_status check_rows(const mb_select_rows *rows, int64_t source_count,
                            const mb_select_options *options)
{
    if (options->selection_count > 0 && options->token_budget > 0) {
        return mb_fail(MB_EUSAGE,
                       "select.selection_count and select.token_budget are both given; take one of them");
    }
    for (int64_t i = 0; i < rows->count; i++) {
        if (rows->source[i] < source_count && rows->tokens[i] >= 0) continue;
        return mb_fail(MB_EDATA,
                       "record %lld: source %d of %lld, %lld tokens; the score table is damaged, score again",
                       (long long)(rows->first + i), rows->source[i], (long long)source_count,
                       (long long)rows->tokens[i]);
    }
    return MB_OK;
}

/* Rows, sorted, with counts of groups (of this rank). */
static mb_status fill(select_state *state, const mb_select_rows *rows, const double *values, bool by_tokens)
{
    mb_status status = MB_OK;
    MB_NEW_ARRAY(state->rows, rows->count + 1);
    MB_NEW_ARRAY(state->group_first, state->quota.count + 1);
    for (int64_t i = 0; i < rows->count; i++) {
        int64_t g = state->quota.group_of_source[rows->source[i]];
        mb_select_group *group = &state->quota.groups[g];
        if (isnan(values[i])) {
            group->invalid++;
            continue;
        }
        group->records++;
        group->tokens += rows->tokens[i];
        uint64_t place = (uint64_t)rows->source[i] << 48 | (uint64_t)(rows->first + i);
        state->rows[state->count++] =
            (select_row){.key = {ordered_bits(values[i]), ~rows->record_hash[i], ~place},
                         .number = rows->first + i,
                         .group = g,
                         .sum = by_tokens ? rows->tokens[i] : 1,
                         .score = rows->score[i]};
    }
    qsort(state->rows, (size_t)state->count, sizeof *state->rows, compare_rows);
    for (int64_t i = 1; i < state->count; i++) {
        if (state->rows[i].group == state->rows[i - 1].group) state->rows[i].sum += state->rows[i - 1].sum;
    }
    for (int64_t g = 0; g < state->quota.count; g++) {
        state->group_first[g + 1] = state->group_first[g] + state->quota.groups[g].records;
    }
done:
    return status;
}

static mb_status sum_groups(mb_comm *comm, mb_select_quota *quota)
{
    mb_status status = MB_OK;
    int64_t *counts = NULL;
    MB_NEW_ARRAY(counts, 3 * quota->count + 1);
    for (int64_t g = 0; g < quota->count; g++) {
        counts[3 * g] = quota->groups[g].records;
        counts[3 * g + 1] = quota->groups[g].invalid;
        counts[3 * g + 2] = quota->groups[g].tokens;
    }
    MB_TRY(mb_comm_allreduce_i64(comm, counts, 3 * quota->count, MB_COMM_SUM));
    for (int64_t g = 0; g < quota->count; g++) {
        quota->groups[g].records = counts[3 * g];
        quota->groups[g].invalid = counts[3 * g + 1];
        quota->groups[g].tokens = counts[3 * g + 2];
    }
done:
    mb_free(counts);
    return status;
}

static mb_status check_targets(const mb_select_quota *quota, const mb_select_options *options, int64_t whole,
                               int64_t total)
{
    int64_t usable = 0, invalid = 0, tokens = 0;
    for (int64_t g = 0; g < quota->count; g++) {
        usable += quota->groups[g].records;
        invalid += quota->groups[g].invalid;
        tokens += quota->groups[g].tokens;
    }
    if (options->token_budget > 0) {
        if (tokens < whole) {
            mb_warn("the token budget of %lld is more than the %lld tokens there are: everything is taken",
                    (long long)whole, (long long)tokens);
        }
        return MB_OK;
    }
    if (whole == 0) {
        return mb_fail(MB_ERANGE,
                       "the selection is empty: a share of %g of %lld records; give a larger "
                       "select.selection_percentage, or select.selection_count",
                       options->selection_percentage, (long long)total);
    }
    if (whole > usable) {
        return mb_fail(
            MB_ERANGE,
            "%lld records are asked for, there are %lld with a score and %lld without one (NaN); ask for "
            "fewer",
            (long long)whole, (long long)usable, (long long)invalid);
    }
    for (int64_t g = 0; g < quota->count; g++) {
        const mb_select_group *group = &quota->groups[g];
        if (group->target <= group->records) continue;
        return mb_fail(
            MB_ERANGE,
            "the quota wants %lld records of source %s, which has %lld with a score and %lld without one "
            "(NaN); ask for fewer, or set select.quota to proportional or to a list with a smaller share",
            (long long)group->target, group->name, (long long)group->records, (long long)group->invalid);
    }
    return MB_OK;
}

static mb_status plan_targets(mb_comm *comm, const mb_select_options *options, int64_t total,
                              mb_select_quota *quota)
{
    mb_status status = MB_OK;
    bool by_tokens = options->token_budget > 0;
    int64_t whole = options->token_budget;
    if (!by_tokens) whole = options->selection_count;
    if (whole == 0) whole = (int64_t)nearbyint(options->selection_percentage * (double)total);
    MB_TRY(sum_groups(comm, quota));
    MB_TRY(mb_select_quota_split(quota, whole, by_tokens));
    MB_TRY(check_targets(quota, options, whole, total));
done:
    return status;
}

/* ---- 5. the cut ---- */

/* Rows of group g on this rank with keys >= key: their number; *out_sum what they add up to. */
static int64_t count_from(const select_state *state, int64_t g, const uint64_t key[3], int64_t *out_sum)
{
    int64_t first = state->group_first[g], low = first, high = state->group_first[g + 1];
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if (compare_key(state->rows[middle].key, key) >= 0)
            low = middle + 1;
        else
            high = middle;
    }
    *out_sum = low > first ? state->rows[low - 1].sum : 0;
    return low - first;
}

typedef struct select_cut {
    uint64_t above[3]; /* rows from here up are too many */
    bool is_done;
    int64_t taken; /* this rank's rows of the group, once done */
} select_cut;

/* One bit (191: the highest) of all cuts that are not done. sums: work array. */
static mb_status step_cuts(mb_comm *comm, const select_state *state, int bit, select_cut *cuts, int64_t *sums)
{
    mb_status status = MB_OK;
    int64_t groups = state->quota.count;
    for (int64_t g = 0; g < groups; g++) {
        uint64_t key[3] = {cuts[g].above[0], cuts[g].above[1], cuts[g].above[2]};
        key[2 - bit / 64] |= UINT64_C(1) << bit % 64;
        count_from(state, g, key, &sums[g]);
    }
    MB_TRY(mb_comm_allreduce_i64(comm, sums, groups, MB_COMM_SUM));
    for (int64_t g = 0; g < groups; g++) {
        select_cut *cut = &cuts[g];
        int64_t target = state->quota.groups[g].target, sum;
        if (cut->is_done || sums[g] < target) continue;
        uint64_t key[3] = {cut->above[0], cut->above[1], cut->above[2]};
        key[2 - bit / 64] |= UINT64_C(1) << bit % 64;
        if (sums[g] > target) {
            memcpy(cut->above, key, sizeof key);
        } else {
            cut->taken = count_from(state, g, key, &sum);
            cut->is_done = true;
        }
    }
done:
    return status;
}

static mb_status find_cuts(mb_comm *comm, const select_state *state, bool by_tokens, select_cut *cuts)
{
    mb_status status = MB_OK;
    int64_t groups = state->quota.count, open = 0, *sums = NULL;
    MB_NEW_ARRAY(sums, groups + 1);
    for (int64_t g = 0; g < groups; g++) {
        const mb_select_group *group = &state->quota.groups[g];
        cuts[g].is_done = group->target == 0 || group->target >= (by_tokens ? group->tokens : group->records);
        if (cuts[g].is_done && group->target > 0)
            cuts[g].taken = state->group_first[g + 1] - state->group_first[g];
        open += !cuts[g].is_done;
    }
    for (int bit = 191; bit >= 0 && open > 0; bit--) {
        MB_TRY(step_cuts(comm, state, bit, cuts, sums));
        open = 0;
        for (int64_t g = 0; g < groups; g++) open += !cuts[g].is_done;
    }
    for (int64_t g = 0; g < groups; g++) {
        if (cuts[g].is_done) continue;
        int64_t sum, at = count_from(state, g, cuts[g].above, &sum);
        int64_t last = state->group_first[g] + at - 1;
        bool is_mine = at > 0 && compare_key(state->rows[last].key, cuts[g].above) == 0;
        cuts[g].taken = is_mine ? at - 1 : at; /* keys differ: the row at the cut is the first too many */
    }
done:
    mb_free(sums);
    return status;
}

/* ---- 6. gathering ---- */

static mb_status gather(mb_comm *comm, const select_state *state, const select_cut *cuts,
                        int64_t **out_record, double **out_score, int64_t *out_count)
{
    mb_status status = MB_OK;
    int64_t count = 0, *offsets = NULL, *record = NULL;
    select_row *mine = NULL, *all = NULL;
    double *score = NULL;
    mine = mb_calloc((size_t)state->count + 1, sizeof *mine);
    offsets = mb_calloc((size_t)mb_comm_size(comm) + 1, sizeof *offsets);
    MB_TRY(mb_comm_agree(comm, mine != NULL && offsets != NULL ? MB_OK : MB_ENOMEM));
    for (int64_t g = 0; g < state->quota.count; g++) {
        memcpy(mine + count, state->rows + state->group_first[g], (size_t)cuts[g].taken * sizeof *mine);
        count += cuts[g].taken;
    }
    MB_TRY(mb_comm_allgatherv(comm, mine, (size_t)count * sizeof *mine, (void **)&all, offsets));
    count = offsets[mb_comm_size(comm)] / (int64_t)sizeof *mine;
    if (count == 0)
        MB_RAISE(
            MB_ERANGE,
            "the selection is empty: the best record of no source fits into its part of the token budget");
    qsort(all, (size_t)count, sizeof *all, compare_best_first);
    MB_NEW_ARRAY(record, count);
    MB_NEW_ARRAY(score, count);
    for (int64_t i = 0; i < count; i++) {
        record[i] = all[i].number;
        score[i] = all[i].score;
    }
    *out_record = record;
    *out_score = score;
    *out_count = count;
    record = NULL;
    score = NULL;
done:
    mb_free(mine);
    mb_free(all);
    mb_free(offsets);
    mb_free(record);
    mb_free(score);
    return status;
}

mb_status mb_select_run(mb_comm *comm, const mb_select_rows *rows, int64_t total,
                        const char *const *source_names, int64_t source_count,
                        const mb_select_options *options, int64_t **out_record, double **out_score,
                        int64_t *out_count)
{
    mb_status status = MB_OK;
    select_state state = {0};
    select_cut *cuts = NULL;
    double *values = NULL;
    bool by_tokens = options->token_budget > 0;
    status = check_rows(rows, source_count, options);
    if (status == MB_OK) {
        status = mb_select_quota_create(options->quota != NULL ? options->quota : "proportional",
                                        source_names, source_count, &state.quota);
    }
    if (status == MB_OK && (values = mb_calloc((size_t)rows->count + 1, sizeof *values)) == NULL)
        status = MB_ENOMEM;
    MB_TRY(mb_comm_agree(comm, status));
    memcpy(values, rows->score, (size_t)rows->count * sizeof *values);
    if (options->temperature > 0) MB_TRY(heat(comm, rows, options, values));
    MB_TRY(mb_comm_agree(comm, fill(&state, rows, values, by_tokens)));
    MB_TRY(plan_targets(comm, options, total, &state.quota));
    cuts = mb_calloc((size_t)state.quota.count + 1, sizeof *cuts);
    MB_TRY(mb_comm_agree(comm, cuts != NULL ? MB_OK : MB_ENOMEM));
    MB_TRY(find_cuts(comm, &state, by_tokens, cuts));
    MB_TRY(gather(comm, &state, cuts, out_record, out_score, out_count));
done:
    state_reset(&state);
    mb_free(cuts);
    mb_free(values);
    return status;
}
