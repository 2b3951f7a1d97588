/* grouped_plain: one 64x64 tile of a product of f32 matrices, by the ordinary units.
 *
 * Layer: ops (cuda backend).  Uses: device.cuh.
 *
 * 256 threads, 4x4 results each; 16 of the reduced dimension at a time go through shared memory, both sides
 * with their own dimension contiguous there. Sums run over the reduced dimension in ascending order, one by
 * one.
 */
#ifndef MB_CUDA_GROUPED_PLAIN_CUH
#define MB_CUDA_GROUPED_PLAIN_CUH

#include "ops/cuda/device.cuh"

enum { PLAIN_TILE = 64, PLAIN_DEPTH = 16, PLAIN_THREADS = 256, PLAIN_ROW = PLAIN_TILE + 4 };

/* Element (own, depth) is at[own * stride + depth], or at[depth * stride + own] when wide; own < span
 * exist. */
typedef struct plain_side {
    const float *at;
    int64_t stride;
    int span;
} plain_side;

/* What is left, at most `most`. */
static __device__ __forceinline__ int plain_left(int64_t left, int most)
{
    return (int)(left < most ? left : most);
}

template <bool IS_WIDE>
static __device__ __forceinline__ void plain_stage(const plain_side &side, int first, int depth, float *stage)
{
#pragma unroll
    for (int i = 0; i < PLAIN_TILE * PLAIN_DEPTH / PLAIN_THREADS; i++) {
        const int number = (int)threadIdx.x + i * PLAIN_THREADS;
        const int own = IS_WIDE ? number % PLAIN_TILE : number / PLAIN_DEPTH;
        const int step = IS_WIDE ? number / PLAIN_TILE : number % PLAIN_DEPTH;
        const int64_t offset =
            IS_WIDE ? (int64_t)(first + step) * side.stride + own : (int64_t)own * side.stride + first + step;
        stage[step * PLAIN_ROW + own] = own < side.span && first + step < depth ? side.at[offset] : 0;
    }
}

/* sums[i][j]: row 4 (thread / 16) + i, column 4 (thread % 16) + j. `room`: 2 * PLAIN_DEPTH * PLAIN_ROW
 * floats. */
template <bool LEFT_WIDE, bool RIGHT_WIDE>
static __device__ void plain_product(const plain_side &left, const plain_side &right, int depth, float *room,
                                     float sums[4][4])
{
    float *a = room, *b = room + PLAIN_DEPTH * PLAIN_ROW;
    const int row = (int)threadIdx.x / 16 * 4, column = (int)threadIdx.x % 16 * 4;
    for (int i = 0; i < 16; i++) sums[i / 4][i % 4] = 0;
    for (int first = 0; first < depth; first += PLAIN_DEPTH) {
        plain_stage<LEFT_WIDE>(left, first, depth, a);
        plain_stage<RIGHT_WIDE>(right, first, depth, b);
        __syncthreads();
#pragma unroll
        for (int step = 0; step < PLAIN_DEPTH; step++) {
            const float4 x = *(const float4 *)(a + step * PLAIN_ROW + row);
            const float4 w = *(const float4 *)(b + step * PLAIN_ROW + column);
            const float xs[4] = {x.x, x.y, x.z, x.w}, ws[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
            for (int i = 0; i < 16; i++) sums[i / 4][i % 4] = fmaf(xs[i / 4], ws[i % 4], sums[i / 4][i % 4]);
        }
        __syncthreads();
    }
}

/* Sums to y, the tile's corner, of which rows x columns exist. */
template <typename T>
static __device__ void plain_write(const float sums[4][4], T *y, int64_t stride, int rows, int columns,
                                   bool accumulate)
{
    const int row = (int)threadIdx.x / 16 * 4, column = (int)threadIdx.x % 16 * 4;
    for (int i = 0; i < 16; i++) {
        if (row + i / 4 >= rows || column + i % 4 >= columns) continue;
        T *to = y + (row + i / 4) * stride + column + i % 4;
        const float sum = sums[i / 4][i % 4];
        *to = mb_from_float<T>(accumulate ? mb_float(*to) + sum : sum);
    }
}

#endif
