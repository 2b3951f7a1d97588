/* linear (ref): dense and grouped products with f64 sums. */
#include <string.h>

#include "ops/ref/ref.h"

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

/* Rows first..last of all rows: dw[N,K] += dy^T x. */
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

static void add_dbias(const float *dy, int64_t rows, int64_t n, float *dbias)
{
    for (int64_t i = 0; i < n; i++) {
        double sum = 0;
        for (int64_t t = 0; t < rows; t++) sum += dy[t * n + i];
        dbias[i] = (float)(dbias[i] + sum);
    }
}

/* Rows x[rows,K] times one weight, and back. */
static void forward(mb_ops *ops, const float *x, int64_t rows, const mb_tensor *w, const float *bias,
                    bool accumulate, float *y)
{
    int64_t n = mb_ops_rows(w), k = mb_ops_width(w);
#pragma omp parallel for schedule(static) num_threads(ops->threads)
    for (int64_t t = 0; t < rows; t++) {
        row_forward(x + t * k, mb_tensor_f32(w), bias, n, k, accumulate, y + t * n);
    }
}

static mb_status backward(mb_ops *ops, const float *dy, int64_t rows, const mb_tensor *w, bool accumulate,
                          float *dx)
{
    mb_status status = MB_OK;
    mb_arena_mark mark = mb_arena_mark_get(ops->scratch);
    int64_t n = mb_ops_rows(w), k = mb_ops_width(w);
    double *sums = NULL;
    MB_ARENA_ARRAY(ops->scratch, sums, rows * k);
#pragma omp parallel for schedule(static) num_threads(ops->threads)
    for (int64_t t = 0; t < rows; t++) {
        row_backward(dy + t * n, mb_tensor_f32(w), n, k, accumulate, sums + t * k, dx + t * k);
    }
done:
    mb_arena_release(ops->scratch, mark);
    return status;
}

mb_status mb_linear_ref(mb_ops *ops, const mb_tensor *x, mb_weight *w, const mb_tensor *opt_bias,
                        bool accumulate, mb_tensor *y)
{
    forward(ops, mb_tensor_f32(x), mb_ops_rows(x), &w->tensor,
            opt_bias != NULL ? mb_tensor_f32(opt_bias) : NULL, accumulate, mb_tensor_f32(y));
    return MB_OK;
}

mb_status mb_linear_dx_ref(mb_ops *ops, const mb_tensor *dy, mb_weight *w, bool accumulate, mb_tensor *dx)
{
    return backward(ops, mb_tensor_f32(dy), mb_ops_rows(dy), &w->tensor, accumulate, mb_tensor_f32(dx));
}

mb_status mb_linear_dw_ref(mb_ops *ops, const mb_tensor *dy, const mb_tensor *x, mb_tensor *dw,
                           mb_tensor *opt_dbias)
{
    int64_t rows = mb_ops_rows(x), n = mb_ops_width(dy);
    if (opt_dbias != NULL) add_dbias(mb_tensor_f32(dy), rows, n, mb_tensor_f32(opt_dbias));
    return add_dw(ops, mb_tensor_f32(dy), mb_tensor_f32(x), rows, n, mb_ops_width(x), mb_tensor_f32(dw));
}

mb_status mb_grouped_linear_ref(mb_ops *ops, const mb_tensor *x, const int32_t *offsets, int64_t groups,
                                mb_weight *const *w, mb_tensor *y)
{
    int64_t n = mb_ops_width(y), k = mb_ops_width(x);
    for (int64_t e = 0; e < groups; e++) {
        forward(ops, mb_tensor_f32(x) + offsets[e] * k, offsets[e + 1] - offsets[e], &w[e]->tensor, NULL,
                false, mb_tensor_f32(y) + offsets[e] * n);
    }
    return MB_OK;
}

mb_status mb_grouped_linear_dx_ref(mb_ops *ops, const mb_tensor *dy, const int32_t *offsets, int64_t groups,
                                   mb_weight *const *w, bool accumulate, mb_tensor *dx)
{
    mb_status status = MB_OK;
    int64_t n = mb_ops_width(dy), k = mb_ops_width(dx);
    for (int64_t e = 0; e < groups; e++) {
        MB_TRY(backward(ops, mb_tensor_f32(dy) + offsets[e] * n, offsets[e + 1] - offsets[e], &w[e]->tensor,
                        accumulate, mb_tensor_f32(dx) + offsets[e] * k));
    }
done:
    return status;
}

mb_status mb_grouped_linear_dw_ref(mb_ops *ops, const mb_tensor *dy, const mb_tensor *x,
                                   const int32_t *offsets, int64_t groups, mb_tensor *dw)
{
    mb_status status = MB_OK;
    int64_t n = mb_ops_width(dy), k = mb_ops_width(x);
    for (int64_t e = 0; e < groups; e++) {
        if (dw[e].dims == 0) continue;
        MB_TRY(add_dw(ops, mb_tensor_f32(dy) + offsets[e] * n, mb_tensor_f32(x) + offsets[e] * k,
                      offsets[e + 1] - offsets[e], n, k, mb_tensor_f32(&dw[e])));
    }
done:
    return status;
}
