/* grouped: expert products by cuBLAS, which wants the sizes on the host: grouped_blas.cu, for grouped.cu.
 *
 * Layer: ops (cuda backend).  Uses: cuda.h.
 * These wait for the device. MB_CUDA_GROUPED=cublas chooses them.
 */
#ifndef MB_CUDA_GROUPED_H
#define MB_CUDA_GROUPED_H

#include "ops/cuda/cuda.h"

/* y = (accumulate ? y : 0) + x w[e]^T (is_nt; w [width, depth]) or x w[e] (w [depth, width]) for rows
 * offsets[e]..offsets[e+1]; w in the dtype of x. */
mb_status mb_cuda_groups_by_blas(mb_ops *ops, bool is_nt, const mb_tensor *x, const int32_t *offsets,
                                 int64_t groups, const void *const *w, bool accumulate, mb_tensor *y);
/* dw[e] += dy^T x over the rows of e, where dw[e] has dimensions. */
mb_status mb_cuda_groups_dw_by_blas(mb_ops *ops, const mb_tensor *dy, const mb_tensor *x,
                                    const int32_t *offsets, int64_t groups, mb_tensor *dw);

#endif
