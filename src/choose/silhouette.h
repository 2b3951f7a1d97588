/* silhouette: how much nearer a row is to its own cluster than to the next one.
 *
 * Layer: choose.  Uses: base, comm, rows.
 * Source: Rousseeuw (1987). Of a row: a, its mean distance to the other rows of its cluster; b, the smallest
 * mean distance to the rows of another cluster; (b - a) / max(a, b), 0 in a cluster of one row. Distances are
 * Euclidean, or 1 - cosine of rows of length 1, as scikit-learn's silhouette_score has both.
 *
 * All pairs: O(n^2) products. Over `limit` rows a sample stands for all: the rows are cut into `limit` even
 * stretches and one row of each is drawn by the seed; distances are among sampled rows only. The same bits
 * for any number of ranks and threads and any instruction set.
 */
#ifndef MB_SILHOUETTE_H
#define MB_SILHOUETTE_H

#include "choose/rows.h"

typedef struct mb_silhouette_options {
    int64_t limit; /* rows; 0: no silhouette at all */
    int64_t seed;
    bool is_cosine; /* the rows have length 1 */
    int threads;    /* 0: OpenMP's */
    const char *opt_isa;
} mb_silhouette_options;

typedef struct mb_silhouette_summary {
    int64_t rows; /* that were compared; less than all: a sample */
    double mean;  /* NaN where it is not defined: fewer than two clusters with rows, or none asked */
} mb_silhouette_summary;

/* labels [rows->count], in [0, k). out_values [rows->count]: NaN of rows not sampled, and of all where the
 * mean is not defined. out_cluster [k]: means by cluster, NaN without rows. Every rank needs room for the
 * sample. Collective. */
mb_status mb_silhouette_run(mb_comm *comm, const mb_rows *rows, const int32_t *labels, int64_t k,
                            const mb_silhouette_options *options, float *out_values, double *out_cluster,
                            mb_silhouette_summary *out_summary);

#endif
