/* vector: neighbouring elements of f32 or bf16 as floats, moved in one access of up to 16 bytes; and what
 * kernels that give a row to a few lanes share.
 *
 * Layer: ops (cuda backend).  Uses: cuda.h.
 *
 * A kernel that moves N elements per access is launched when every array it touches begins, and every row of
 * it lies, at whole accesses (mb_is_whole); else its twin of N = 1 (or of element-wise accesses) is. Which
 * one runs must not change bits: sums are over the same elements in the same order in both.
 */
#ifndef MB_CUDA_VECTOR_CUH
#define MB_CUDA_VECTOR_CUH

#include "ops/cuda/cuda.h"

/* Elements per access when one of two dtypes is f32, and when both are bf16. */
template <typename X, typename Y> struct mb_most {
    enum { N = sizeof(X) + sizeof(Y) == 4 ? 8 : 4 };
};

static __device__ __forceinline__ void mb_load(const float *p, float (&x)[1])
{
    x[0] = p[0];
}
static __device__ __forceinline__ void mb_load(const mb_bf16 *p, float (&x)[1])
{
    x[0] = mb_float(p[0]);
}
static __device__ __forceinline__ void mb_load(const float *p, float (&x)[4])
{
    const float4 four = *(const float4 *)p;
    x[0] = four.x, x[1] = four.y, x[2] = four.z, x[3] = four.w;
}
static __device__ __forceinline__ void mb_load(const mb_bf16 *p, float (&x)[4])
{
    const uint2 pairs = *(const uint2 *)p;
    x[0] = mb_low_bf16(pairs.x), x[1] = mb_high_bf16(pairs.x);
    x[2] = mb_low_bf16(pairs.y), x[3] = mb_high_bf16(pairs.y);
}
static __device__ __forceinline__ void mb_load(const mb_bf16 *p, float (&x)[8])
{
    const uint4 pairs = *(const uint4 *)p;
    x[0] = mb_low_bf16(pairs.x), x[1] = mb_high_bf16(pairs.x);
    x[2] = mb_low_bf16(pairs.y), x[3] = mb_high_bf16(pairs.y);
    x[4] = mb_low_bf16(pairs.z), x[5] = mb_high_bf16(pairs.z);
    x[6] = mb_low_bf16(pairs.w), x[7] = mb_high_bf16(pairs.w);
}

static __device__ __forceinline__ void mb_store(float *p, const float (&x)[1])
{
    p[0] = x[0];
}
static __device__ __forceinline__ void mb_store(mb_bf16 *p, const float (&x)[1])
{
    p[0] = mb_to_bf16(x[0]);
}
static __device__ __forceinline__ void mb_store(float *p, const float (&x)[4])
{
    float4 four;
    four.x = x[0], four.y = x[1], four.z = x[2], four.w = x[3];
    *(float4 *)p = four;
}
static __device__ __forceinline__ void mb_store(mb_bf16 *p, const float (&x)[4])
{
    uint2 pairs;
    pairs.x = mb_pack_bf16(x[0], x[1]), pairs.y = mb_pack_bf16(x[2], x[3]);
    *(uint2 *)p = pairs;
}
static __device__ __forceinline__ void mb_store(mb_bf16 *p, const float (&x)[8])
{
    uint4 pairs;
    pairs.x = mb_pack_bf16(x[0], x[1]), pairs.y = mb_pack_bf16(x[2], x[3]);
    pairs.z = mb_pack_bf16(x[4], x[5]), pairs.w = mb_pack_bf16(x[6], x[7]);
    *(uint4 *)p = pairs;
}

/* a / b of numbers that are not negative; the 32-bit division, which costs a fraction, where it does. */
static __device__ __forceinline__ int64_t mb_divide(int64_t a, int64_t b)
{
    return (uint64_t)(a | b) >> 32 == 0 ? (int64_t)((uint32_t)a / (uint32_t)b) : a / b;
}

/* Rows of `width` elements of a dtype, the first at `data`, lie at whole accesses of n elements. */
static inline bool mb_is_whole(mb_dtype dtype, const void *data, int64_t width, int n)
{
    return width % n == 0 && (uintptr_t)data % ((size_t)n * mb_dtype_bytes(dtype)) == 0;
}

/* ---- a row over a few lanes ----
 *
 * Lane l of `lanes` (a power of 2, 4..MB_MOST_LANES, by the width alone) holds elements (j lanes + l)
 * MB_CHUNK .. of the row, for j = 0, 1, ..; the first MB_KEPT such chunks in registers, the others are
 * read again. Rows of up to 32 lanes share a block of MB_ROW_THREADS, a longer row has a block of its own. */
enum { MB_CHUNK = 4, MB_KEPT = 4, MB_ROW_THREADS = 256, MB_MOST_LANES = 512 };

static inline int mb_row_lanes(int64_t width)
{
    int lanes = 4;
    while (lanes < MB_MOST_LANES && (int64_t)lanes * MB_CHUNK * MB_KEPT < width) lanes *= 2;
    return lanes;
}
static inline int mb_row_threads(int lanes)
{
    return lanes <= 32 ? MB_ROW_THREADS : lanes;
}

/* Chunk `at` of a row: whole when IS_WHOLE, else element by element; elements beyond the width read as 0. */
template <bool IS_WHOLE, typename T>
static __device__ __forceinline__ void mb_chunk_load(const T *row, int64_t at, int64_t width,
                                                     float (&x)[MB_CHUNK])
{
    if (IS_WHOLE && at < width) {
        mb_load(row + at, x);
    } else {
#pragma unroll
        for (int i = 0; i < MB_CHUNK; i++) x[i] = !IS_WHOLE && at + i < width ? mb_float(row[at + i]) : 0.0f;
    }
}
template <bool IS_WHOLE, typename T>
static __device__ __forceinline__ void mb_chunk_store(T *row, int64_t at, int64_t width,
                                                      const float (&x)[MB_CHUNK])
{
    if (IS_WHOLE) {
        if (at < width) mb_store(row + at, x);
    } else {
#pragma unroll
        for (int i = 0; i < MB_CHUNK; i++)
            if (at + i < width) row[at + i] = mb_from_float<T>(x[i]);
    }
}

/* Sum over the lanes of a row, in one order; every thread of the block calls it. `room`: [32] shared. */
static __device__ __forceinline__ float mb_row_sum(float x, int lanes, float *room)
{
    if (lanes > 32) return mb_block_sum(x, room);
    for (int d = lanes / 2; d > 0; d >>= 1) x += __shfl_xor_sync(0xffffffffu, x, d);
    return x;
}

#endif
