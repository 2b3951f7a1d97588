/* norm (ref): root mean square norm and layer norm.
 * Sources: Zhang & Sennrich 2019, "Root Mean Square Layer Normalization"; Ba, Kiros, Hinton 2016, "Layer
 * Normalization".
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
        double sum = 0;
        for (int64_t i = r * d; i < (r + 1) * d; i++) sum += (double)mb_ref_get(x, i) * mb_ref_get(x, i);
        float rstd = (float)(1.0 / sqrt(sum / (double)d + eps));
        for (int64_t i = 0; i < d; i++) mb_ref_set(y, r * d + i, mb_ref_get(x, r * d + i) * rstd * weight[i]);
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
            for (int64_t t = 0; t < rows; t++)
                sum += (double)mb_ref_get(dy, t * d + i) * mb_ref_get(x, t * d + i) * r[t];
            mb_tensor_f32(opt_dw)[i] = (float)(mb_tensor_f32(opt_dw)[i] + sum);
        }
    }
#pragma omp parallel for schedule(static) num_threads(ops->threads)
    for (int64_t t = 0; t < rows; t++) {
        double sum = 0;
        for (int64_t i = 0; i < d; i++)
            sum += (double)mb_ref_get(dy, t * d + i) * weight[i] * mb_ref_get(x, t * d + i);
        double c = sum * r[t] * r[t] * r[t] / (double)d;
        for (int64_t i = t * d; i < (t + 1) * d; i++) {
            double value = (double)r[t] * weight[i - t * d] * mb_ref_get(dy, i) - c * mb_ref_get(x, i);
            mb_ref_set(dx, i, (float)(accumulate ? mb_ref_get(dx, i) + value : value));
        }
    }
    return MB_OK;
}

mb_status mb_layer_norm_ref(mb_ops *ops, const mb_tensor *x, const mb_tensor *w, const mb_tensor *b,
                            float eps, mb_tensor *y)
{
    int64_t d = mb_tensor_count(w), rows = mb_tensor_count(x) / d;
    const float *weight = mb_tensor_f32(w), *bias = mb_tensor_f32(b);
#pragma omp parallel for schedule(static) num_threads(ops->threads)
    for (int64_t r = 0; r < rows; r++) {
        double mean = 0, squares = 0;
        for (int64_t i = r * d; i < (r + 1) * d; i++) mean += mb_ref_get(x, i) / (double)d;
        for (int64_t i = r * d; i < (r + 1) * d; i++) {
            double off = mb_ref_get(x, i) - mean;
            squares += off * off;
        }
        double rstd = 1.0 / sqrt(squares / (double)d + eps);
        for (int64_t i = 0; i < d; i++) {
            double value = (mb_ref_get(x, r * d + i) - mean) * rstd * weight[i] + bias[i];
            mb_ref_set(y, r * d + i, (float)value);
        }
    }
    return MB_OK;
}
