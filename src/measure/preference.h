/* preference: does a model put the chosen answer of a pair above the rejected one? Rank-independent.
 *
 * Layer: measure.  Uses: comm, store (shard), tile.
 * Source: Rafailov et al. (2023) Direct Preference Optimization (rewards); Lambert et al. (2024) RewardBench
 * (accuracy).
 *
 * Of a pair shard (shard.h): p the sum of ln p over an answer's loss-mask tokens, n their number. It is
 * filled tile by tile beside another measure's forwards (perplexity.h), then finished once.
 */
#ifndef MB_PREFERENCE_H
#define MB_PREFERENCE_H

#include "comm/comm.h"
#include "measure/tile.h"

typedef enum mb_preference_figure {
    MB_PREFERENCE_ACCURACY,           /* share of pairs with p(chosen) > p(rejected); a tie is none */
    MB_PREFERENCE_ACCURACY_PER_TOKEN, /* the same of p/n: no advantage for the shorter answer */
    MB_PREFERENCE_MARGIN,             /* mean of p(chosen) - p(rejected), nats */
    MB_PREFERENCE_MARGIN_PER_TOKEN,   /* of p/n */
    /* with a reference, r = beta (p - p_reference): */
    MB_PREFERENCE_REWARD_ACCURACY, /* share with r(chosen) > r(rejected) */
    MB_PREFERENCE_REWARD_MARGIN,   /* mean of r(chosen) - r(rejected) */
    MB_PREFERENCE_REWARD_CHOSEN,   /* mean of r(chosen) */
    MB_PREFERENCE_REWARD_REJECTED,
    MB_PREFERENCE_FIGURES
} mb_preference_figure;
/* "accuracy", "accuracy_per_token", ..., "reward_rejected". */
const char *mb_preference_name(mb_preference_figure figure);

typedef struct mb_preference_row {
    const char *source, *type;           /* one or none (all) is set; borrowed from the shard */
    int64_t pairs;                       /* that count */
    int64_t left_out;                    /* a side has no target left (it was cut) */
    int64_t ties;                        /* p(chosen) = p(rejected) */
    double mean[MB_PREFERENCE_FIGURES];  /* NaN without pairs */
    double error[MB_PREFERENCE_FIGURES]; /* standard error of the mean: sqrt(variance / pairs), variance with
                                            pairs - 1 as lm-evaluation-harness; NaN for fewer than two */
} mb_preference_row;

typedef struct mb_preference_result {
    mb_preference_row *row; /* all, one per source, one per type */
    int64_t rows;
    int64_t figures; /* without a reference the first so many */
    double beta;
    double *logprob;  /* [N] p of every record of the shard */
    int64_t *targets; /* [N] n */
} mb_preference_result;

typedef struct mb_preference mb_preference;
/* The shard is borrowed. MB_EUSAGE: it holds no pairs. */
mb_status mb_preference_create(const mb_shard *shard, mb_preference **out_preference);
void mb_preference_destroy(mb_preference **preference);
/* The records of a tile (mb_tile_read with all or with masked targets) and the losses of its heads. */
mb_status mb_preference_add(mb_preference *preference, const mb_tile *tile, const float *token_loss);
/* Figures from what all ranks added, every record once. opt_reference: [N] p_reference by shard record.
 * MB_ENUMERIC: a log-probability is not a number. Collective. */
mb_status mb_preference_finish(mb_preference *preference, mb_comm *comm, const double *opt_reference,
                               double beta);
const mb_preference_result *mb_preference_get(const mb_preference *preference);

#endif
