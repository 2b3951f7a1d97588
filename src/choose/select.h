/* select: which records to keep, from stored scores.
 *
 * Layer: choose.  Uses: base, comm.  Arrays in, arrays out.
 *
 * Exact global top share without gathering scores on one rank: the threshold is found by bisection over the
 * ordered bits of (score, record_hash, source, global number) with counts summed over ranks, one small
 * allreduce a round; the numbers make all keys differ, so that the cut is exact and the same for any number
 * of ranks.
 */
#ifndef MB_SELECT_H
#define MB_SELECT_H

#include "base/option.h"
#include "comm/comm.h"

typedef struct mb_select_options {
    double selection_percentage; /* select.selection_percentage 0.05 (alias
                                    data_selection.selection_percentage) share of records */
    int64_t selection_count; /* select.selection_count 0: by percentage (of all records, to nearest even) */
    int64_t token_budget;    /* select.token_budget 0: none; longest best-first prefix that fits; replaces the
                                percentage */
    char *quota; /* select.quota proportional|equal|none|name=share,name=share. Sources of one name are one.
                    Shares are relative to their sum, sources not named get nothing. Parts of the whole by
                    largest remainder; a budget is split likewise (proportional: by tokens). */
    double temperature; /* select.temperature 0: best first; > 0: sampled without replacement by
                           score/temperature (Gumbel top-k on standardised scores) */
    int64_t seed;       /* select.seed 42 */
} mb_select_options;
const mb_option *mb_select_option_table(int64_t *out_count);

/* This rank's rows of the table. score: higher is better (the caller turned it round); NaN is never selected.
 */
typedef struct mb_select_rows {
    int64_t first, count; /* global numbers */
    const double *score;
    const uint64_t *record_hash;
    const uint16_t *source;
    const int64_t *tokens;
} mb_select_rows;

/* out_record: global record numbers selected, best first (by the sampled keys when temperature > 0), ties by
 * hash, source, number; the same on every rank; out_score: their scores as given; mb_free both. MB_ERANGE
 * when more is asked than there is, in all or of one source (says how many there are, and how many are NaN),
 * or when nothing at all would be selected. A token budget is an upper bound: with fewer tokens everything is
 * taken, with a warning. temperature: keys are standardised score / temperature + Gumbel noise drawn by
 * (seed, record_hash): equal texts draw equally. source_names for quota lists and messages. MB_EUSAGE: a bad
 * quota list, or count and budget together. MB_EDATA: a source number outside source_count. Collective. */
mb_status mb_select_run(mb_comm *comm, const mb_select_rows *rows, int64_t total,
                        const char *const *source_names, int64_t source_count,
                        const mb_select_options *options, int64_t **out_record, double **out_score,
                        int64_t *out_count);

/* Two selections against each other. Keys identify records, each at most once per side. */
typedef struct mb_select_comparison {
    int64_t a, b, both;
    double jaccard; /* 1 for two empty selections */
    /* Average ranks and tau-b, over records both have a score for; NaN when not computable. */
    double spearman, kendall;
} mb_select_comparison;
mb_status mb_select_compare(const int64_t *a, const double *opt_a_score, int64_t a_count, const int64_t *b,
                            const double *opt_b_score, int64_t b_count, mb_select_comparison *out_comparison);

/* Spearman's rho and Kendall's tau-b (Knight 1966, O(n log n)) of n pairs without NaN; NaN when one side is
 * constant or n < 2. */
mb_status mb_select_correlate(const double *a, const double *b, int64_t n, double *out_spearman,
                              double *out_kendall);

/* Area under the ROC curve: P(score of a good record > of a bad one) + half the ties. NaN scores are left
 * out; NaN when a side is empty (or memory is short). */
double mb_select_auc(const double *good, int64_t good_count, const double *bad, int64_t bad_count);

#endif
