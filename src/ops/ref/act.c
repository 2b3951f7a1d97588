/* act (ref): gated and plain activations, rotary positions, small element-wise ops, dropout.
 * Sources: Shazeer 2020, "GLU variants improve transformer"; Hendrycks & Gimpel 2016, "Gaussian error linear
 * units"; Su et al. 2021, "RoFormer" (the two halves paired, as HF does).
 */
#include <math.h>

#include "base/rng.h"
#include "ops/ref/ref.h"

mb_status mb_swiglu_ref(mb_ops *ops, const mb_tensor *gate, const mb_tensor *up, mb_tensor *y)
{
    int64_t n = mb_tensor_count(gate);
#pragma omp parallel for schedule(static) num_threads(ops->threads)
    for (int64_t i = 0; i < n; i++) {
        double g = mb_ref_get(gate, i);
        mb_ref_set(y, i, (float)(g / (1 + exp(-g)) * mb_ref_get(up, i)));
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
        double g = mb_ref_get(gate, i), u = mb_ref_get(up, i), d = mb_ref_get(dy, i);
        double s = 1 / (1 + exp(-g));
        mb_ref_set(dup, i, (float)(d * g * s));
        mb_ref_set(dgate, i, (float)(d * u * s * (1 + g * (1 - s))));
    }
    return MB_OK;
}

/* x Phi(x), or its approximation by tanh. */
mb_status mb_gelu_ref(mb_ops *ops, bool is_tanh, mb_tensor *y)
{
    int64_t n = mb_tensor_count(y);
#pragma omp parallel for schedule(static) num_threads(ops->threads)
    for (int64_t i = 0; i < n; i++) {
        double x = mb_ref_get(y, i), root = 0.79788456080286535588; /* sqrt(2 / pi) */
        double phi =
            is_tanh ? 0.5 * (1 + tanh(root * (x + 0.044715 * x * x * x))) : 0.5 * erfc(-x * M_SQRT1_2);
        mb_ref_set(y, i, (float)(x * phi));
    }
    return MB_OK;
}

mb_status mb_multiply_ref(mb_ops *ops, const mb_tensor *x, mb_tensor *y)
{
    int64_t n = mb_tensor_count(y);
#pragma omp parallel for schedule(static) num_threads(ops->threads)
    for (int64_t i = 0; i < n; i++) mb_ref_set(y, i, mb_ref_get(y, i) * mb_ref_get(x, i));
    return MB_OK;
}

mb_status mb_cast_ref(mb_ops *ops, const mb_tensor *x, mb_tensor *y)
{
    int64_t n = mb_tensor_count(y);
#pragma omp parallel for schedule(static) num_threads(ops->threads)
    for (int64_t i = 0; i < n; i++) mb_ref_set(y, i, mb_ref_get(x, i));
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
            int64_t head = (t * heads + h) * width;
            for (int64_t i = head; i < head + half; i++) {
                float a = mb_ref_get(x, i), b = mb_ref_get(x, i + half);
                float c = cosine[i - head], s = sign * sine[i - head];
                mb_ref_set(x, i, a * c - b * s);
                mb_ref_set(x, i + half, b * c + a * s);
            }
        }
    }
    return MB_OK;
}

mb_status mb_axpy_ref(mb_ops *ops, float scale, const mb_tensor *x, mb_tensor *y)
{
    int64_t n = mb_tensor_count(y);
#pragma omp parallel for schedule(static) num_threads(ops->threads)
    for (int64_t i = 0; i < n; i++) mb_ref_set(y, i, mb_ref_get(y, i) + scale * mb_ref_get(x, i));
    return MB_OK;
}

mb_status mb_scale_ref(mb_ops *ops, float scale, mb_tensor *y)
{
    int64_t n = mb_tensor_count(y);
#pragma omp parallel for schedule(static) num_threads(ops->threads)
    for (int64_t i = 0; i < n; i++) mb_ref_set(y, i, mb_ref_get(y, i) * scale);
    return MB_OK;
}

/* Comparisons keep a NaN as it is. */
mb_status mb_clamp_ref(mb_ops *ops, float limit, mb_tensor *y)
{
    int64_t n = mb_tensor_count(y);
#pragma omp parallel for schedule(static) num_threads(ops->threads)
    for (int64_t i = 0; i < n; i++) {
        float value = mb_ref_get(y, i);
        mb_ref_set(y, i, value > limit ? limit : value < -limit ? -limit : value);
    }
    return MB_OK;
}

/* The limit as y's dtype has it: clamped values are that, above or below the f32 limit. */
mb_status mb_clamp_backward_ref(mb_ops *ops, float limit, const mb_tensor *y, mb_tensor *dy)
{
    int64_t n = mb_tensor_count(y);
    float reached = y->dtype == MB_F32 ? limit : mb_dtype_f32_from_bf16(mb_dtype_bf16_from_f32(limit));
#pragma omp parallel for schedule(static) num_threads(ops->threads)
    for (int64_t i = 0; i < n; i++) {
        if (fabsf(mb_ref_get(y, i)) >= reached) mb_ref_set(dy, i, 0);
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
            mb_ref_set(y, r * width + c, drop ? 0.0f : keep * mb_ref_get(x, r * width + c));
        }
    }
    return MB_OK;
}
