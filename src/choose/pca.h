/* pca: the two directions in which rows vary most, to draw them in a plane.
 *
 * Layer: choose.  Uses: base, comm, rows.
 * Source: Pearson (1901); directions by subspace iteration with Rayleigh-Ritz steps, Rutishauser (1970).
 *
 * The covariance is summed exactly over fixed panels of rows (rows.h), so all is the same for any number of
 * ranks and threads and any instruction set. Signs as scikit-learn's: the entry of largest magnitude of an
 * axis is positive. Room: two matrices [width, width] of 8 bytes on every rank.
 */
#ifndef MB_PCA_H
#define MB_PCA_H

#include "choose/rows.h"

enum { MB_PCA_AXES = 2 };

typedef struct mb_pca {
    int64_t width, count;
    float *plane; /* [count, 2] of this rank's rows: (x - mean) times the axes */
    double *mean; /* [width] */
    double *axes; /* [2, width] of length 1; zeros where the rows have no second direction */
    double variance[MB_PCA_AXES], total; /* along the axes (divided by N - 1), and of all columns */
} mb_pca;

/* threads 0: OpenMP's. MB_ENUMERIC: the axes were not found in 10,000 iterations. Collective. */
mb_status mb_pca_run(mb_comm *comm, const mb_rows *rows, int threads, const char *opt_isa, mb_pca *out_pca);
void mb_pca_reset(mb_pca *pca);

#endif
