/* adamw (cpu): every element by itself, so bits do not depend on how the range is divided. */
#include <math.h>

#include "ops/cpu/cpu.h"

enum { STEP = 4096 };

mb_status mb_adamw_cpu(mb_ops *ops, const mb_adamw *adamw, int64_t n, const float *gradient, float *parameter,
                       float *moment1, float *moment2)
{
    const mb_kernels *kernels = mb_cpu_get(ops)->kernels;
    mb_adamw_factors factors = {
        .beta1 = (float)adamw->beta1,
        .beta2 = (float)adamw->beta2,
        .one_minus_beta1 = (float)(1 - adamw->beta1),
        .one_minus_beta2 = (float)(1 - adamw->beta2),
        .gradient_scale = (float)adamw->gradient_scale,
        .step = (float)(adamw->learning_rate / (1 - pow(adamw->beta1, (double)adamw->step))),
        .inverse_root = (float)(1 / sqrt(1 - pow(adamw->beta2, (double)adamw->step))),
        .epsilon = (float)adamw->epsilon,
        .keep = (float)(1 - adamw->learning_rate * adamw->weight_decay),
    };
    int threads = mb_cpu_threads_for(ops, n);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int i = 0; i < threads; i++) {
        int64_t a, b;
        mb_cpu_part(n, STEP, i, threads, &a, &b);
        kernels->adamw(&factors, b - a, gradient + a, parameter + a, moment1 + a, moment2 + a);
    }
    return MB_OK;
}

mb_status mb_sum_squares_cpu(mb_ops *ops, const float *x, int64_t n, int64_t block, double *out)
{
    int64_t blocks = (n + block - 1) / block;
    const mb_kernels *kernels = mb_cpu_get(ops)->kernels;
#pragma omp parallel for schedule(static) num_threads(mb_cpu_threads_for(ops, n))
    for (int64_t b = 0; b < blocks; b++) {
        out[b] = kernels->sum_squares(x + b * block, n - b * block < block ? n - b * block : block);
    }
    return MB_OK;
}
