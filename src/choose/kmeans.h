/* kmeans: k-means of f32 rows shared out over ranks.
 *
 * Layer: choose.  Uses: base, comm, rows.
 * Source: Lloyd (1982); k-means++ with several trials a step, Arthur and Vassilvitskii (2007), as
 * scikit-learn has it; distances that bounds make needless are not computed, Hamerly (2010); cosine:
 * spherical k-means, Dhillon and Modha (2001).
 *
 * The same bits for any number of ranks and threads and any instruction set: sums over rows are exact
 * (rows.h); a row goes to the centre that is nearest in f64 (of equals the first): products in f32 choose
 * where their rounding cannot matter, what is closer than that is decided in f64. Bounds change no result.
 *
 * As in scikit-learn: at the end of an iteration a cluster without rows takes the row farthest from its
 * centre (of equals the first; two empty ones the two farthest; a cluster of one row gives none away, and
 * where no row is off its centre nothing moves: there are fewer different rows than clusters then, and
 * clusters stay empty). Iterations end when no label changes, when the squared moves of all centres sum up to
 * at most tolerance times the mean variance of a column, or after max_iterations.
 */
#ifndef MB_KMEANS_H
#define MB_KMEANS_H

#include "base/option.h"
#include "choose/rows.h"

typedef struct mb_kmeans_options {
    char *metric;           /* cluster.metric euclidean|cosine */
    int64_t restarts;       /* cluster.restarts 4 */
    int64_t max_iterations; /* cluster.max_iterations 300; 0: the start's centres stay */
    double tolerance;       /* cluster.tolerance 1e-4 */
    int64_t seed;           /* cluster.seed 42 */
    /* No options: */
    int threads;            /* 0: OpenMP's */
    const char *opt_isa;    /* as mb_row_products_get */
    bool is_without_bounds; /* every distance in every iteration (to compare with) */
} mb_kmeans_options;
const mb_option *mb_kmeans_option_table(int64_t *out_count);

/* What all runs over the same rows share. */
typedef struct mb_kmeans mb_kmeans;
/* rows and options are borrowed; with metric cosine every row is brought to length 1 in place. MB_EDATA: a
 * row with NaN or an infinity, or (cosine) of length 0 ("row 17 ..."); MB_ERANGE: no rows, or values too
 * large or too small for f32 squares. Collective. */
mb_status mb_kmeans_create(mb_comm *comm, mb_rows *rows, const mb_kmeans_options *options,
                           mb_kmeans **out_kmeans);
void mb_kmeans_destroy(mb_kmeans **kmeans);

typedef struct mb_kmeans_result {
    int64_t k, width, count;
    int32_t *labels; /* [count] of this rank's rows; in [0, k) */
    float *distance; /* [count] squared distance to the centre */
    float *centres;  /* [k, width]; cosine: of length 1 */
    int64_t *sizes;  /* [k] rows of all ranks */
    double inertia;  /* sum of squared distances */
    int64_t restarts, longest;
    double *trace;       /* [restarts, longest] inertia of every iteration's labels; NaN behind the last */
    int64_t *iterations; /* [restarts] */
    int64_t best_restart, empty;
    bool is_converged; /* the best restart */
} mb_kmeans_result;

/* The best of all restarts by inertia (the first of equals). opt_start: k centres, the same on every rank,
 * for the one and only restart (cosine: brought to length 1). MB_ERANGE: k < 1 or more than there are rows;
 * MB_ESTOPPED: the stop flag. Collective. */
mb_status mb_kmeans_run(mb_kmeans *kmeans, int64_t k, const float *opt_start, mb_kmeans_result *out_result);
void mb_kmeans_result_reset(mb_kmeans_result *result);

#endif
