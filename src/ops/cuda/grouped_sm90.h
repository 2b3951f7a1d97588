/* grouped_sm90: expert products by Hopper's own tensor-core instructions (wgmma), for grouped.cu.
 *
 * Layer: ops (cuda backend).  Uses: cuda.h. bf16 rows, widths and depths that are multiples of 8, pointers
 * aligned to 16 bytes; the chip has sm_90 (the machine code is for sm_90a alone). Up to 256 experts a call.
 * The same results as the kernels of grouped.cu but for the order of sums inside 16 elements.
 */
#ifndef MB_CUDA_GROUPED_SM90_H
#define MB_CUDA_GROUPED_SM90_H

#include "ops/cuda/grouped_call.cuh"

/* y = (accumulate ? y : 0) + x w[e]^T (w [width, depth]) or x w[e] (is_nn; w [depth, width]); y of dtype
 * `out`. row_tiles: the most tiles of TILE_M rows there can be. */
mb_status mb_cuda_groups_sm90(const mb_cuda *cuda, bool is_nn, int64_t row_tiles,
                              const group_weights &weights, const group_forward &g, mb_dtype out);
/* dw += dy^T x for the experts of `targets`. */
mb_status mb_cuda_groups_dw_sm90(const mb_cuda *cuda, const group_targets &targets, const group_backward &g);

#endif
