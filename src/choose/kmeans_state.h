/* kmeans_state: what the parts of k-means share.
 *
 * Layer: choose (internal).
 *
 * Scores. With m the mean of all rows, c' = c - m and q = |x - m|^2, the squared distance of x and c is
 * q + |c'|^2 + 2 m c' - 2 x c'. The last term is the f32 product, the two before it the centre's bias; so
 * what all rows have in common costs no digits. `error` bounds what a score may be off by rounding.
 */
#ifndef MB_KMEANS_STATE_H
#define MB_KMEANS_STATE_H

#include "choose/kmeans.h"

enum {
    MB_KMEANS_BLOCK = 128, /* rows a thread takes at a time */
    MB_KMEANS_STREAM = 10, /* of random numbers (base/rng.h): sub = restart, index = step and trial */
    MB_KMEANS_TRIALS = 16  /* most trials of a step of k-means++ */
};

struct mb_kmeans {
    mb_comm *comm;
    mb_rows rows;
    const mb_kmeans_options *options;
    const mb_row_products *loops;
    int threads;
    bool is_cosine;
    mb_row_columns columns;
    float *norm;        /* [count] |x| */
    float *apart;       /* [count] q */
    double apart_total; /* of all rows */
    double apart_most;  /* the largest of all rows */
    double norm_most;   /* the same of norm */
};

/* Centres as products take them: panels of MB_ROW_LANES, one behind the other. */
typedef struct mb_kmeans_panels {
    int64_t k, count; /* panels */
    float *panel;     /* [count, width * MB_ROW_LANES] */
    float *bias;      /* [count * MB_ROW_LANES], +inf behind the last */
    double reach;     /* the largest |c'| */
    double bias_most;
} mb_kmeans_panels;
mb_status mb_kmeans_panels_create(const mb_kmeans *kmeans, int64_t k, mb_kmeans_panels *out_panels);
void mb_kmeans_panels_reset(mb_kmeans_panels *panels);
/* centres [k, width], k <= that of create. */
void mb_kmeans_panels_fill(const mb_kmeans *kmeans, const float *centres, int64_t k,
                           mb_kmeans_panels *panels);
/* A bound of |score - true one| for a row of that norm. */
static inline float mb_kmeans_error(const mb_kmeans *kmeans, const mb_kmeans_panels *panels, float norm)
{
    const double epsilon = 0x1p-24;
    return (float)(1.01 * (2 * (double)(kmeans->rows.width + 4) * epsilon * (double)norm * panels->reach +
                           4 * epsilon * panels->bias_most) +
                   1e-36);
}

/* k-means++: centres [k, width], the same on every rank. Collective. */
mb_status mb_kmeans_start(const mb_kmeans *kmeans, int64_t k, int64_t restart, float *centres);

#endif
