/* norm (ref): root mean square norm.  Source: Zhang & Sennrich 2019, "Root Mean Square Layer Normalization".
 */
#include <math.h>

#include "ops/ref/ref.h"

mb_status mb_rms_norm_ref(mb_ops *ops, const mb_tensor *x, const mb_tensor *w, float eps, mb_tensor *y,
                          mb_tensor *out_rstd)
{
    int64_t d = mb_tensor_count(w), rows = mb_tensor_count(out_rstd);
    const float *weight = mb_tensor_f32(w);
#pragma omp parallel for schedule(static) num_threads(ops->threads)
    for (int64_t r = 0; r < rows; r++) {
        const float *in = mb_tensor_f32(x) + r * d;
        float *out = mb_tensor_f32(y) + r * d;
        double sum = 0;
        for (int64_t i = 0; i < d; i++) sum += (double)in[i] * in[i];
        float rstd = (float)(1.0 / sqrt(sum / (double)d + eps));
        for (int64_t i = 0; i < d; i++) out[i] = in[i] * rstd * weight[i];
        mb_tensor_f32(out_rstd)[r] = rstd;
    }
    return MB_OK;
}

/* dx = r w dy - x r^3 / D sum(w dy x);  dw = sum over rows of dy x r. */
mb_status mb_rms_norm_backward_ref(mb_ops *ops, const mb_tensor *dy, const mb_tensor *x, const mb_tensor *w,
                                   const mb_tensor *rstd, bool accumulate, mb_tensor *dx, mb_tensor *opt_dw)
{
    int64_t d = mb_tensor_count(w), rows = mb_tensor_count(rstd);
    const float *weight = mb_tensor_f32(w), *r = mb_tensor_f32(rstd);
    if (opt_dw != NULL) { /* first: dx may be dy */
#pragma omp parallel for schedule(static) num_threads(ops->threads)
        for (int64_t i = 0; i < d; i++) {
            double sum = 0;
            for (int64_t t = 0; t < rows; t++) {
                sum += (double)mb_tensor_f32(dy)[t * d + i] * mb_tensor_f32(x)[t * d + i] * r[t];
            }
            mb_tensor_f32(opt_dw)[i] = (float)(mb_tensor_f32(opt_dw)[i] + sum);
        }
    }
#pragma omp parallel for schedule(static) num_threads(ops->threads)
    for (int64_t t = 0; t < rows; t++) {
        const float *g = mb_tensor_f32(dy) + t * d, *in = mb_tensor_f32(x) + t * d;
        float *out = mb_tensor_f32(dx) + t * d;
        double sum = 0;
        for (int64_t i = 0; i < d; i++) sum += (double)g[i] * weight[i] * in[i];
        double c = sum * r[t] * r[t] * r[t] / (double)d;
        for (int64_t i = 0; i < d; i++) {
            double value = (double)r[t] * weight[i] * g[i] - c * in[i];
            out[i] = (float)(accumulate ? out[i] + value : value);
        }
    }
    return MB_OK;
}
