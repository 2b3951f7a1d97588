/* product: the one call of cuBLAS for a product, with leading dimensions, for linear.cu and head.cu.
 *
 * Layer: ops (cuda backend).  Uses: cuda.h.
 */
#ifndef MB_CUDA_PRODUCT_H
#define MB_CUDA_PRODUCT_H

#include "ops/cuda/cuda.h"

/* One row-major matrix: rows are `stride` elements apart. */
typedef struct mb_cuda_matrix {
    const void *data;
    int64_t stride;
} mb_cuda_matrix;

typedef enum mb_cuda_form {
    MB_CUDA_NT, /* y[M,N] = a[M,K] b[N,K]^T */
    MB_CUDA_NN, /* y[M,N] = a[M,K] b[K,N] */
    MB_CUDA_TN, /* y[M,N] = a[K,M]^T b[K,N] */
} mb_cuda_form;

/* y = beta y + a b by form; a, b of dtype `in`, y [M, N] of dtype `out` with rows y_stride apart; beta 0
 * or 1. f32 sums, rounded once. opt_bias [N] f32 is added to every row. Any combination of dtypes; those
 * that cuBLAS lacks (bf16 from f32, and bf16 with a bias) go through f32 scratch, some rows at a time. */
mb_status mb_cuda_gemm(mb_ops *ops, mb_cuda_form form, int64_t m, int64_t n, int64_t k, mb_dtype in,
                       mb_cuda_matrix a, mb_cuda_matrix b, const float *opt_bias, float beta, mb_dtype out,
                       void *y, int64_t y_stride);

/* head.cu: mb_ops_head_loss with the number of rows whose logits exist at one time; 0: chosen by sizes. */
extern "C" mb_status mb_cuda_head_loss(mb_ops *ops, const mb_tensor *h, mb_weight *w, const int32_t *targets,
                                       mb_tensor *out_loss, int32_t *opt_argmax, const float *opt_row_weight,
                                       mb_tensor *opt_dh, mb_tensor *opt_dw, int64_t chunk_rows);

#endif
