/* cpu: state of the cpu backend, and the ops it overwrites (mb_<op>_cpu).
 *
 * Layer: ops (cpu backend, internal).
 */
#ifndef MB_CPU_H
#define MB_CPU_H

#include "ops/cpu/dense.h"
#include "ops/cpu/dequant.h"
#include "ops/cpu/int4.h"
#include "ops/cpu/kernels.h"
#include "ops/ops_table.h"

typedef struct mb_cpu {
    mb_dense *dense;
    const mb_kernels *kernels;
    const mb_dequant *dequant;
    mb_int4_multiply int4; /* of f32 rows */
} mb_cpu;

static inline mb_cpu *mb_cpu_get(mb_ops *ops)
{
    return ops->backend;
}

static inline mb_act mb_cpu_act(const mb_tensor *tensor)
{
    return (mb_act){tensor->data, tensor->dtype == MB_BF16};
}

/* Threads for n elements of cheap work: one below what a parallel region costs. */
static inline int mb_cpu_threads_for(const mb_ops *ops, int64_t n)
{
    return n < 32768 ? 1 : ops->threads;
}

/* Part i of n of [0, total) in steps of `step`, last part short or empty. */
static inline void mb_cpu_part(int64_t total, int64_t step, int64_t i, int64_t n, int64_t *out_first,
                               int64_t *out_last)
{
    int64_t steps = (total + step - 1) / step;
    *out_first = steps * i / n * step;
    *out_last = steps * (i + 1) / n * step;
    if (*out_last > total) *out_last = total;
    if (*out_first > total) *out_first = total;
}

/* clang-format off */
#define MB_CPU_LIST(X)                                                                                       \
    X(linear) X(linear_dx) X(linear_dw)                                                                      \
    X(grouped_linear) X(grouped_linear_dx) X(grouped_linear_dw)                                              \
    X(rms_norm) X(rms_norm_backward) X(layer_norm) X(swiglu) X(swiglu_backward) X(gelu) X(multiply) X(rope)  \
    X(cast) X(axpy) X(scale) X(clamp) X(clamp_backward) X(dropout)                                           \
    X(embedding) X(embedding_backward) X(head_loss) X(rows_loss)                                             \
    X(attention) X(attention_backward)                                                                       \
    X(route) X(route_backward) X(gather) X(gather_backward) X(combine)                                       \
    X(combine_backward) X(adamw) X(sum_squares)
/* clang-format on */

#define MB_CPU_DECLARE(op) __typeof__(mb_ops_##op) mb_##op##_cpu;
MB_CPU_LIST(MB_CPU_DECLARE)
#undef MB_CPU_DECLARE

/* Rows of f32 or bf16, `ld` elements apart. */
typedef struct mb_rows {
    void *data;
    bool is_bf16;
    int64_t ld;
} mb_rows;
static inline mb_rows mb_rows_of(const mb_tensor *tensor)
{
    return (mb_rows){tensor->data, tensor->dtype == MB_BF16, mb_ops_width(tensor)};
}
/* linear.c, linear_dw.c: x[rows,K] times op(w), and dw[n,k] += dy^T x, without checks, for head.c. */
mb_status mb_linear_rows(mb_ops *ops, mb_rows x, int64_t rows, mb_weight *w, bool is_transposed, mb_rows y);
mb_status mb_linear_add_dw(mb_ops *ops, mb_rows dy, mb_rows x, int64_t rows, int64_t n, int64_t k, float *dw);
/* A copy of rows as f32 in scratch, and back into rows; an error said inside a parallel region said again. */
mb_status mb_linear_widen(mb_ops *ops, mb_rows from, int64_t rows, int64_t width, mb_rows *out);
void mb_linear_narrow(mb_ops *ops, mb_rows from, int64_t rows, int64_t width, mb_rows to);
mb_status mb_linear_report(int failed);
bool mb_linear_has_bf16(mb_ops *ops);                     /* products of bf16 rows by the matrix library */
mb_status mb_linear_probe(mb_ops *ops, bool *out_stable); /* for mb_ops_is_row_stable */

#endif
