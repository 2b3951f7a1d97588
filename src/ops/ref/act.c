/* act (ref): gated activation, rotary positions, small element-wise ops, dropout.
 * Sources: Shazeer 2020, "GLU variants improve transformer"; Su et al. 2021, "RoFormer" (the two halves
 * paired, as HF does).
 */
#include <math.h>

#include "base/rng.h"
#include "ops/ref/ref.h"

mb_status mb_swiglu_ref(mb_ops *ops, const mb_tensor *gate, const mb_tensor *up, mb_tensor *y)
{
    int64_t n = mb_tensor_count(gate);
#pragma omp parallel for schedule(static) num_threads(ops->threads)
    for (int64_t i = 0; i < n; i++) {
        double g = mb_tensor_f32(gate)[i];
        mb_tensor_f32(y)[i] = (float)(g / (1 + exp(-g)) * mb_tensor_f32(up)[i]);
    }
    return MB_OK;
}

/* silu'(g) = s (1 + g (1 - s)) with s = sigmoid(g). */
mb_status mb_swiglu_backward_ref(mb_ops *ops, const mb_tensor *dy, const mb_tensor *gate, const mb_tensor *up,
                                 mb_tensor *dgate, mb_tensor *dup)
{
    int64_t n = mb_tensor_count(gate);
#pragma omp parallel for schedule(static) num_threads(ops->threads)
    for (int64_t i = 0; i < n; i++) {
        double g = mb_tensor_f32(gate)[i], u = mb_tensor_f32(up)[i], d = mb_tensor_f32(dy)[i];
        double s = 1 / (1 + exp(-g));
        mb_tensor_f32(dup)[i] = (float)(d * g * s);
        mb_tensor_f32(dgate)[i] = (float)(d * u * s * (1 + g * (1 - s)));
    }
    return MB_OK;
}

mb_status mb_rope_ref(mb_ops *ops, mb_tensor *x, const int32_t *positions, const mb_tensor *table,
                      bool inverse)
{
    int64_t rows = x->shape[0], heads = x->shape[1], width = x->shape[2], half = width / 2;
    float sign = inverse ? -1.0f : 1.0f;
#pragma omp parallel for schedule(static) num_threads(ops->threads)
    for (int64_t t = 0; t < rows; t++) {
        const float *cosine = mb_tensor_f32(table) + positions[t] * width, *sine = cosine + half;
        for (int64_t h = 0; h < heads; h++) {
            float *head = mb_tensor_f32(x) + (t * heads + h) * width;
            for (int64_t i = 0; i < half; i++) {
                float a = head[i], b = head[i + half], c = cosine[i], s = sign * sine[i];
                head[i] = a * c - b * s;
                head[i + half] = b * c + a * s;
            }
        }
    }
    return MB_OK;
}

mb_status mb_axpy_ref(mb_ops *ops, float scale, const mb_tensor *x, mb_tensor *y)
{
    int64_t n = mb_tensor_count(y);
#pragma omp parallel for simd schedule(static) num_threads(ops->threads)
    for (int64_t i = 0; i < n; i++) mb_tensor_f32(y)[i] += scale * mb_tensor_f32(x)[i];
    return MB_OK;
}

mb_status mb_scale_ref(mb_ops *ops, float scale, mb_tensor *y)
{
    int64_t n = mb_tensor_count(y);
#pragma omp parallel for simd schedule(static) num_threads(ops->threads)
    for (int64_t i = 0; i < n; i++) mb_tensor_f32(y)[i] *= scale;
    return MB_OK;
}

/* Comparisons keep a NaN as it is. */
mb_status mb_clamp_ref(mb_ops *ops, float limit, mb_tensor *y)
{
    int64_t n = mb_tensor_count(y);
#pragma omp parallel for schedule(static) num_threads(ops->threads)
    for (int64_t i = 0; i < n; i++) {
        float value = mb_tensor_f32(y)[i];
        mb_tensor_f32(y)[i] = value > limit ? limit : value < -limit ? -limit : value;
    }
    return MB_OK;
}

mb_status mb_clamp_backward_ref(mb_ops *ops, float limit, const mb_tensor *y, mb_tensor *dy)
{
    int64_t n = mb_tensor_count(y);
#pragma omp parallel for schedule(static) num_threads(ops->threads)
    for (int64_t i = 0; i < n; i++) {
        if (fabsf(mb_tensor_f32(y)[i]) >= limit) mb_tensor_f32(dy)[i] = 0;
    }
    return MB_OK;
}

mb_status mb_dropout_ref(mb_ops *ops, const mb_tensor *x, float p, uint64_t seed, uint32_t sub,
                         const int64_t *row_index, mb_tensor *y)
{
    int64_t rows = mb_ops_rows(x), width = mb_ops_width(x);
    float keep = 1.0f / (1.0f - p);
#pragma omp parallel for schedule(static) num_threads(ops->threads)
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t c = 0; c < width; c++) {
            uint64_t index = (uint64_t)(row_index[r] * width + c);
            bool drop = mb_rng_uniform(seed, MB_RNG_DROPOUT, sub, index) < (double)p;
            mb_tensor_f32(y)[r * width + c] = drop ? 0.0f : keep * mb_tensor_f32(x)[r * width + c];
        }
    }
    return MB_OK;
}
