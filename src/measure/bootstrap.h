/* bootstrap: how sure are means over records, and differences of models on the same records?
 *
 * Layer: measure.  Uses: base (rng).
 * Source: Efron and Tibshirani (1993) "An Introduction to the Bootstrap", chapters 8 (paired data) and 13
 * (percentile intervals); for language models Koehn (2004) "Statistical Significance Tests for Machine
 * Translation Evaluation".
 *
 * The units are the records, drawn with replacement. Every draw takes the same records for all columns, so
 * that what is common to two models (hard and easy records) cancels in their difference. The draws follow
 * from (seed, sub) and the records' places alone: not from ranks, threads, or which other columns there are.
 */
#ifndef MB_BOOTSTRAP_H
#define MB_BOOTSTRAP_H

#include <stdint.h>

#include "base/status.h"

/* A statistic: sum of value over sum of weight. Means: weight NULL (1 each); mean loss per token: value the
 * loss of a record, weight its tokens; a share of some of the records: weight 0 for the others. */
typedef struct mb_bootstrap_column {
    const double *value, *weight; /* [records] */
} mb_bootstrap_column;

/* The statistic of the data itself; NaN where the weights add to 0. */
double mb_bootstrap_statistic(const mb_bootstrap_column *column, int64_t records);

/* The statistics of every draw: out[draw * columns + column]; NaN where the weights drawn add to 0.
 * Uses all threads; the same bits for any number of them. Cost: draws x records x columns. */
mb_status mb_bootstrap_draw(const mb_bootstrap_column *column, int64_t columns, int64_t records,
                            int64_t draws, uint64_t seed, uint32_t sub, double *out);

/* Percentile interval that holds `level` (0.95) of the values, which are read with this stride; NaN are left
 * out. Between two values linear, as numpy.percentile does. NaN when fewer than half are numbers. */
mb_status mb_bootstrap_interval(const double *values, int64_t count, int64_t stride, double level,
                                double *out_low, double *out_high);

#endif
