/* grouped_call: one launch over many experts, as the kernels of grouped.cu and grouped_sm90.cu take it, and
 * which part of the operands a tile of it reads.
 *
 * Layer: ops (cuda backend).  Uses: cuda.h, grouped_tile.cuh.
 *
 * 1. arguments 2. y = x w^T and dx = dy w 3. dw += dy^T x
 */
#ifndef MB_CUDA_GROUPED_CALL_CUH
#define MB_CUDA_GROUPED_CALL_CUH

#include "ops/cuda/cuda.h"
#include "ops/cuda/grouped_tile.cuh"

/* ---- 1. arguments ---- */

typedef struct group_weights {
    const void *w[GROUPS_MOST];
} group_weights;

/* One launch of y[., width] = x[., depth] w: offsets of the first of its experts. */
typedef struct group_forward {
    const int32_t *offsets;
    const void *x;
    void *y;
    int64_t depth, width;
    int32_t groups;
    bool accumulate;
    bool is_wide; /* y can be written 8 columns (fast kernels) or 2 at a time */
} group_forward;

/* One launch of dw[n, k] += dy^T x for the experts that have a gradient. */
typedef struct group_targets {
    float *dw[GROUPS_MOST];
    int32_t expert[GROUPS_MOST];
} group_targets;
typedef struct group_backward {
    const int32_t *offsets;
    const void *dy, *x;
    int64_t n, k;
    int32_t targets;
    bool is_even; /* dw can be written 2 columns at a time */
} group_backward;

/* ---- 2. y = x w^T and dx = dy w ---- */

template <int WIDTH, bool IS_NN>
static __device__ __forceinline__ tile_work forward_work(const group_weights &weights, const group_forward &g,
                                                         const tile_place &place)
{
    const int64_t column = (int64_t)place.column_tile * WIDTH;
    const uint16_t *w = (const uint16_t *)weights.w[place.expert];
    tile_work work;
    work.left.at = (const uint16_t *)g.x + place.row * g.depth;
    work.left.stride = g.depth;
    work.left.span = place.rows < TILE_M ? place.rows : TILE_M;
    work.right.at = IS_NN ? w + column : w + column * g.depth;
    work.right.stride = IS_NN ? g.width : g.depth;
    work.right.span = (int)(g.width - column < WIDTH ? g.width - column : WIDTH);
    work.depth = (int)g.depth;
    return work;
}

/* ---- 3. dw += dy^T x ---- */

/* Tiles of an expert, row tiles of dw first. */
typedef struct gradient_place {
    int target, first, rows; /* its rows */
    int row, column;         /* of dw */
} gradient_place;

/* The next tile from *id on (in steps of the grid) whose expert has rows. */
static __device__ bool find_gradient(const group_targets &targets, const group_backward &g, int height,
                                     int width, int64_t *id, gradient_place *out)
{
    const int64_t high = (g.n + height - 1) / height, each = high * ((g.k + width - 1) / width);
    for (; *id < each * g.targets; *id += gridDim.x) {
        const int64_t target = *id / each, local = *id - target * each;
        const int expert = targets.expert[target];
        out->target = (int)target;
        out->first = g.offsets[expert];
        out->rows = g.offsets[expert + 1] - out->first;
        out->row = (int)(local % high) * height;
        out->column = (int)(local / high) * width;
        if (out->rows > 0) return true;
    }
    return false;
}

template <int WIDTH>
static __device__ __forceinline__ tile_work gradient_work(const group_backward &g,
                                                          const gradient_place &place)
{
    tile_work work;
    work.left.at = (const uint16_t *)g.dy + place.first * g.n + place.row;
    work.left.stride = g.n;
    work.left.span = (int)(g.n - place.row < (int)TILE_M ? g.n - place.row : (int)TILE_M);
    work.right.at = (const uint16_t *)g.x + place.first * g.k + place.column;
    work.right.stride = g.k;
    work.right.span = (int)(g.k - place.column < WIDTH ? g.k - place.column : WIDTH);
    work.depth = place.rows;
    return work;
}

#endif
