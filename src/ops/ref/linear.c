/* linear (ref): dense and grouped products with f64 sums, on f32 images of rows and weights.
 *
 * 1. kernels
 * 2. rows and weights as f32
 * 3. one group
 * 4. entries
 */
#include <string.h>

#include "ops/ref/ref.h"

/* ---- 1. kernels ---- */

/* y[N] = (accumulate ? y : 0) + W x + bias for one row. */
static void row_forward(const float *x, const float *w, const float *bias, int64_t n, int64_t k,
                        bool accumulate, float *y)
{
    for (int64_t i = 0; i < n; i++) {
        double sum = 0;
        const float *row = w + i * k;
#pragma omp simd reduction(+ : sum)
        for (int64_t j = 0; j < k; j++) sum += (double)x[j] * row[j];
        if (bias != NULL) sum += bias[i];
        y[i] = (float)(accumulate ? y[i] + sum : sum);
    }
}

/* dx[K] = (accumulate ? dx : 0) + dy W for one row; sums[K] is scratch. */
static void row_backward(const float *dy, const float *w, int64_t n, int64_t k, bool accumulate, double *sums,
                         float *dx)
{
    memset(sums, 0, (size_t)k * sizeof *sums);
    for (int64_t i = 0; i < n; i++) {
        const float *row = w + i * k;
        double g = dy[i];
#pragma omp simd
        for (int64_t j = 0; j < k; j++) sums[j] += g * row[j];
    }
    for (int64_t j = 0; j < k; j++) dx[j] = (float)(accumulate ? dx[j] + sums[j] : sums[j]);
}

static void add_dbias(const float *dy, int64_t rows, int64_t n, float *dbias)
{
    for (int64_t i = 0; i < n; i++) {
        double sum = 0;
        for (int64_t t = 0; t < rows; t++) sum += dy[t * n + i];
        dbias[i] = (float)(dbias[i] + sum);
    }
}

/* Rows of one group: dw[N,K] += dy^T x. */
static mb_status add_dw(mb_ops *ops, const float *dy, const float *x, int64_t rows, int64_t n, int64_t k,
                        float *dw)
{
    mb_status status = MB_OK;
    mb_arena_mark mark = mb_arena_mark_get(ops->scratch);
    double *sums = NULL;
    MB_ARENA_ARRAY(ops->scratch, sums, n * k);
#pragma omp parallel for schedule(static) num_threads(ops->threads)
    for (int64_t i = 0; i < n; i++) {
        double *sum = sums + i * k;
        memset(sum, 0, (size_t)k * sizeof *sum);
        for (int64_t t = 0; t < rows; t++) {
            double g = dy[t * n + i];
            const float *row = x + t * k;
#pragma omp simd
            for (int64_t j = 0; j < k; j++) sum[j] += g * row[j];
        }
        for (int64_t j = 0; j < k; j++) dw[i * k + j] = (float)(dw[i * k + j] + sum[j]);
    }
done:
    mb_arena_release(ops->scratch, mark);
    return status;
}

/* ---- 2. rows and weights as f32 ---- */

mb_status mb_linear_ref_rows(mb_ops *ops, const mb_tensor *tensor, float **out)
{
    mb_status status = MB_OK;
    const int64_t count = mb_tensor_count(tensor);
    *out = mb_tensor_f32(tensor);
    if (tensor->dtype == MB_F32) return MB_OK;
    MB_ARENA_ARRAY(ops->scratch, *out, count);
    MB_TRY(mb_dtype_to_f32(tensor->dtype, tensor->data, count, *out));
done:
    return status;
}

void mb_linear_ref_store(const float *values, mb_tensor *tensor)
{
    if (tensor->dtype == MB_F32) return;
    mb_dtype_from_f32(tensor->dtype, values, mb_tensor_count(tensor), tensor->data);
}

mb_status mb_linear_ref_weight(mb_ops *ops, const mb_weight *w, mb_dtype rows, const float **out)
{
    mb_status status = MB_OK;
    const int64_t n = mb_ops_rows(&w->tensor), count = n * w->width;
    float *values = NULL;
    *out = mb_tensor_f32(&w->tensor);
    if (w->tensor.dtype == MB_F32 && rows == MB_F32) return MB_OK;
    MB_ARENA_ARRAY(ops->scratch, values, count);
    mb_weight_read(w, 0, n, values);
    for (int64_t i = 0; rows == MB_BF16 && i < count; i++)
        values[i] = mb_dtype_f32_from_bf16(mb_dtype_bf16_from_f32(values[i]));
    *out = values;
done:
    return status;
}

/* ---- 3. one group ---- */

/* y[rows,N] of x[rows,K] and one weight. */
static mb_status forward(mb_ops *ops, const mb_tensor *x, const mb_weight *w, const float *bias,
                         bool accumulate, mb_tensor *y)
{
    mb_status status = MB_OK;
    mb_arena_mark mark = mb_arena_mark_get(ops->scratch);
    const int64_t n = mb_ops_rows(&w->tensor), k = w->width;
    const float *values = NULL;
    float *in = NULL, *out = NULL;
    MB_TRY(mb_linear_ref_rows(ops, x, &in));
    MB_TRY(mb_linear_ref_rows(ops, y, &out));
    MB_TRY(mb_linear_ref_weight(ops, w, x->dtype, &values));
#pragma omp parallel for schedule(static) num_threads(ops->threads)
    for (int64_t t = 0; t < mb_ops_rows(x); t++) {
        row_forward(in + t * k, values, bias, n, k, accumulate, out + t * n);
    }
    mb_linear_ref_store(out, y);
done:
    mb_arena_release(ops->scratch, mark);
    return status;
}

static mb_status backward(mb_ops *ops, const mb_tensor *dy, const mb_weight *w, bool accumulate,
                          mb_tensor *dx)
{
    mb_status status = MB_OK;
    mb_arena_mark mark = mb_arena_mark_get(ops->scratch);
    const int64_t n = mb_ops_rows(&w->tensor), k = w->width, rows = mb_ops_rows(dy);
    const float *values = NULL;
    float *in = NULL, *out = NULL;
    double *sums = NULL;
    MB_TRY(mb_linear_ref_rows(ops, dy, &in));
    MB_TRY(mb_linear_ref_rows(ops, dx, &out));
    MB_TRY(mb_linear_ref_weight(ops, w, dy->dtype, &values));
    MB_ARENA_ARRAY(ops->scratch, sums, rows * k);
#pragma omp parallel for schedule(static) num_threads(ops->threads)
    for (int64_t t = 0; t < rows; t++) {
        row_backward(in + t * n, values, n, k, accumulate, sums + t * k, out + t * k);
    }
    mb_linear_ref_store(out, dx);
done:
    mb_arena_release(ops->scratch, mark);
    return status;
}

/* Rows of group e. */
static mb_tensor group_rows(const mb_tensor *tensor, const int32_t *offsets, int64_t e)
{
    return mb_tensor_rows(tensor, offsets[e], offsets[e + 1] - offsets[e]);
}

/* ---- 4. entries ---- */

mb_status mb_linear_ref(mb_ops *ops, const mb_tensor *x, mb_weight *w, const mb_tensor *opt_bias,
                        bool accumulate, mb_tensor *y)
{
    return forward(ops, x, w, opt_bias != NULL ? mb_tensor_f32(opt_bias) : NULL, accumulate, y);
}

mb_status mb_linear_dx_ref(mb_ops *ops, const mb_tensor *dy, mb_weight *w, bool accumulate, mb_tensor *dx)
{
    return backward(ops, dy, w, accumulate, dx);
}

mb_status mb_linear_dw_ref(mb_ops *ops, const mb_tensor *dy, const mb_tensor *x, mb_tensor *dw,
                           mb_tensor *opt_dbias)
{
    mb_status status = MB_OK;
    const int64_t rows = mb_ops_rows(x), n = mb_ops_width(dy);
    float *in = NULL, *gradient = NULL;
    MB_TRY(mb_linear_ref_rows(ops, x, &in));
    MB_TRY(mb_linear_ref_rows(ops, dy, &gradient));
    if (opt_dbias != NULL) add_dbias(gradient, rows, n, mb_tensor_f32(opt_dbias));
    MB_TRY(add_dw(ops, gradient, in, rows, n, mb_ops_width(x), mb_tensor_f32(dw)));
done:
    return status;
}

mb_status mb_grouped_linear_ref(mb_ops *ops, const mb_tensor *x, const int32_t *offsets, int64_t groups,
                                mb_weight *const *w, mb_tensor *y)
{
    mb_status status = MB_OK;
    for (int64_t e = 0; e < groups; e++) {
        mb_tensor in = group_rows(x, offsets, e), out = group_rows(y, offsets, e);
        MB_TRY(forward(ops, &in, w[e], NULL, false, &out));
    }
done:
    return status;
}

mb_status mb_grouped_linear_dx_ref(mb_ops *ops, const mb_tensor *dy, const int32_t *offsets, int64_t groups,
                                   mb_weight *const *w, bool accumulate, mb_tensor *dx)
{
    mb_status status = MB_OK;
    for (int64_t e = 0; e < groups; e++) {
        mb_tensor in = group_rows(dy, offsets, e), out = group_rows(dx, offsets, e);
        MB_TRY(backward(ops, &in, w[e], accumulate, &out));
    }
done:
    return status;
}

mb_status mb_grouped_linear_dw_ref(mb_ops *ops, const mb_tensor *dy, const mb_tensor *x,
                                   const int32_t *offsets, int64_t groups, mb_tensor *dw)
{
    mb_status status = MB_OK;
    for (int64_t e = 0; e < groups; e++) {
        if (dw[e].dims == 0) continue;
        mb_tensor gradient = group_rows(dy, offsets, e), in = group_rows(x, offsets, e);
        MB_TRY(mb_linear_dw_ref(ops, &gradient, &in, &dw[e], NULL));
    }
done:
    return status;
}
