/* adamw (ref): the optimiser's step and sums of squares.
 * Source: Loshchilov & Hutter 2019, "Decoupled weight decay regularization", algorithm 2 (the decay times the
 * learning rate).
 */
#include <math.h>

#include "ops/ref/ref.h"

mb_status mb_adamw_ref(mb_ops *ops, const mb_adamw *adamw, int64_t n, const float *gradient, float *parameter,
                       float *moment1, float *moment2)
{
    double b1 = adamw->beta1, b2 = adamw->beta2;
    double step = adamw->learning_rate / (1 - pow(b1, (double)adamw->step));
    double root = sqrt(1 - pow(b2, (double)adamw->step));
    double keep = 1 - adamw->learning_rate * adamw->weight_decay;
#pragma omp parallel for schedule(static) num_threads(ops->threads)
    for (int64_t i = 0; i < n; i++) {
        double g = gradient[i] * adamw->gradient_scale;
        double m = b1 * moment1[i] + (1 - b1) * g, v = b2 * moment2[i] + (1 - b2) * g * g;
        moment1[i] = (float)m;
        moment2[i] = (float)v;
        parameter[i] = (float)(keep * parameter[i] - step * m / (sqrt(v) / root + adamw->epsilon));
    }
    return MB_OK;
}

mb_status mb_sum_squares_ref(mb_ops *ops, const float *x, int64_t n, int64_t block, double *out)
{
    int64_t blocks = (n + block - 1) / block;
#pragma omp parallel for schedule(static) num_threads(ops->threads)
    for (int64_t b = 0; b < blocks; b++) {
        int64_t last = (b + 1) * block < n ? (b + 1) * block : n;
        double sum = 0;
        for (int64_t i = b * block; i < last; i++) sum += (double)x[i] * x[i];
        out[b] = sum;
    }
    return MB_OK;
}
