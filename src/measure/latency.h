/* latency: how long one request takes and what energy it costs, over repeated rounds of the same sizes.
 *
 * Layer: measure.  Uses: base, energy.
 * Source: quantiles: Hyndman and Fan (1996) "Sample quantiles in statistical packages", type 7 (numpy's).
 *
 * A cell is one pair of prompt and output length. Whoever answers requests tells it where a round begins, has
 * its first token and ends:
 *
 *     while (mb_latency_wants(cell)) {
 *         mb_latency_begin(cell);
 *         ... the first token ...  mb_latency_first(cell);
 *         ... the others ...       mb_latency_end(cell);
 *     }
 *
 * The first `warmup` rounds leave nothing. Then `repeats` rounds are kept one by one. With a counter of
 * energy rounds go on until the block of all rounds behind the warm-up took least_seconds, since a counter
 * that moves ten times a second says nothing of a millisecond: its figure is the block's, divided by its
 * rounds.
 */
#ifndef MB_LATENCY_H
#define MB_LATENCY_H

#include <stdbool.h>
#include <stdint.h>

#include "measure/energy.h"
#include "base/status.h"

typedef struct mb_latency_spread {
    double p5, p50, p95, mean, min, max;
} mb_latency_spread;
/* Of values [n], n >= 1, in any order. MB_ENOMEM. */
mb_status mb_latency_spread_get(const double *values, int64_t n, mb_latency_spread *out_spread);

/* What is read at both ends of a round. */
typedef struct mb_latency_meter {
    void *own;
    double (*seconds)(void *own);
    double (*core_seconds)(void *own); /* CPU time of all threads of the process */
    /* Joules since some moment, and what they may be off by. NULL: nothing counts; false: it does not any
     * more. */
    bool (*joules)(void *own, double *out_joules, double *out_uncertainty);
} mb_latency_meter;
/* The system's clocks and, unless NULL, this counter (borrowed). */
mb_latency_meter mb_latency_meter_get(mb_energy *opt_energy);

typedef struct mb_latency_options {
    int64_t warmup, repeats; /* rounds; repeats >= 1 */
    double least_seconds;    /* of the block, with a counter */
} mb_latency_options;

typedef struct mb_latency_round {
    double seconds, first_seconds; /* whole; to the first token */
    double core_seconds;
    double joules; /* by the counter's readings; 0 without one */
} mb_latency_round;

/* All rounds behind the warm-up together. */
typedef struct mb_latency_block {
    int64_t rounds; /* >= repeats */
    double seconds, core_seconds;
    double joules, uncertainty;
} mb_latency_block;

typedef struct mb_latency mb_latency;
mb_status mb_latency_create(const mb_latency_meter *meter, const mb_latency_options *options,
                            mb_latency **out_cell);
void mb_latency_destroy(mb_latency **cell);

bool mb_latency_wants(const mb_latency *cell);
void mb_latency_begin(mb_latency *cell);
void mb_latency_first(mb_latency *cell);
void mb_latency_end(mb_latency *cell); /* without a first: the first token was the last */

/* Rounds that were kept, [repeats] when the cell wants no more. Borrowed. */
const mb_latency_round *mb_latency_rounds(const mb_latency *cell, int64_t *out_count);
mb_latency_block mb_latency_block_get(const mb_latency *cell);
/* Did the counter tell at both ends of every round? False too without one. */
bool mb_latency_has_joules(const mb_latency *cell);

#endif
