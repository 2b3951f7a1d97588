/* grouped_sm90: expert products by Hopper's own tensor-core instructions (wgmma), for grouped.cu.
 *
 * Layer: ops (cuda backend).  Uses: cuda.h. bf16 rows, widths and depths that are multiples of 8, pointers
 * aligned to 16 bytes; the chip has sm_90 (the machine code is for sm_90a alone). Up to 256 experts a call.
 * The same results as the kernels of grouped.cu but for the order of sums inside 16 elements.
 */
#ifndef MB_CUDA_GROUPED_SM90_H
#define MB_CUDA_GROUPED_SM90_H

#include "ops/cuda/cuda.h"

/* y[P, width] = (accumulate ? y : 0) + x[P, depth] w[e]^T (w [width, depth]), or x w[e] (is_nn; w [depth,
 * width]) for rows offsets[e]..offsets[e+1] (on the device). w: device pointers, in the host's memory. y
 * f32 or bf16. */
mb_status mb_cuda_groups_sm90(mb_ops *ops, bool is_nn, int64_t rows, int64_t depth, int64_t width,
                              const void *x, const int32_t *offsets, int64_t groups, const void *const *w,
                              bool accumulate, mb_dtype out, void *y);
/* dw[t][n, k] += dy^T x over the rows of expert[t], for t < targets; f32. */
mb_status mb_cuda_groups_dw_sm90(mb_ops *ops, int64_t n, int64_t k, const void *dy, const void *x,
                                 const int32_t *offsets, int64_t targets, const int32_t *expert,
                                 float *const *dw);

#endif
