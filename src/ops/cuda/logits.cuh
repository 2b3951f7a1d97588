/* logits: a row of logits read by one block: the first largest and the sum of exponentials; runs of 8 in and
 * out.
 *
 * Layer: ops (cuda backend).  Uses: cuda.h.
 */
#ifndef MB_CUDA_LOGITS_CUH
#define MB_CUDA_LOGITS_CUH

#include "ops/cuda/cuda.h"

enum { THREADS = 512, RUN = 8 };

/* Of some of a row's logits: the first largest, and the sum of exp(logit - largest). */
typedef struct row_part {
    float largest, sum;
    int32_t index;
} row_part;

static __device__ __forceinline__ bool is_ahead(float x, int32_t x_index, float y, int32_t y_index)
{
    return x > y || (x == y && x_index < y_index);
}

/* 8 logits from `column` on; those beyond the vocabulary count as the least number. IS_WHOLE: the row begins
 * at 16 bytes and has room for whole runs. */
template <bool IS_WHOLE>
static __device__ __forceinline__ void read_run(const float *logits, int64_t column, int64_t v, float x[RUN])
{
    if (!IS_WHOLE) {
#pragma unroll
        for (int i = 0; i < RUN; i++) x[i] = column + i < v ? logits[column + i] : -FLT_MAX;
        return;
    }
    const float4 a = *(const float4 *)(logits + column), b = *(const float4 *)(logits + column + 4);
    x[0] = a.x, x[1] = a.y, x[2] = a.z, x[3] = a.w, x[4] = b.x, x[5] = b.y, x[6] = b.z, x[7] = b.w;
    if (column + RUN <= v) return;
#pragma unroll
    for (int i = 0; i < RUN; i++) x[i] = column + i < v ? x[i] : -FLT_MAX;
}

/* What this thread's logits come to: every THREADS-th run of 8. */
template <bool IS_WHOLE> static __device__ __forceinline__ row_part read_part(const float *logits, int64_t v)
{
    row_part part = {-FLT_MAX, 0, INT32_MAX};
    for (int64_t column = (int64_t)threadIdx.x * RUN; column < v; column += THREADS * RUN) {
        float x[RUN], largest = part.largest;
        read_run<IS_WHOLE>(logits, column, v, x);
#pragma unroll
        for (int i = 0; i < RUN; i++) {
            if (!(x[i] > largest)) continue;
            largest = x[i];
            part.index = (int32_t)column + i;
        }
        part.sum *= expf(part.largest - largest);
        part.largest = largest;
#pragma unroll
        for (int i = 0; i < RUN; i++)
            if (column + i < v) part.sum += expf(x[i] - largest);
    }
    return part;
}

/* The block's largest, in every thread; its sum stays the thread's own. */
static __device__ __forceinline__ void join_largest(row_part &part, float *room, int32_t *index_room)
{
    const int lane = (int)threadIdx.x % 32;
    for (int stage = 0; stage < 2; stage++) { /* over the warp, then over the warps' results */
        for (int d = 16; d > 0; d >>= 1) {
            const float largest = __shfl_xor_sync(0xffffffffu, part.largest, d);
            const int32_t index = __shfl_xor_sync(0xffffffffu, part.index, d);
            if (is_ahead(largest, index, part.largest, part.index))
                part.largest = largest, part.index = index;
        }
        if (stage == 1) break;
        if (lane == 0) room[threadIdx.x / 32] = part.largest, index_room[threadIdx.x / 32] = part.index;
        __syncthreads();
        part.largest = lane < THREADS / 32 ? room[lane] : -FLT_MAX;
        part.index = lane < THREADS / 32 ? index_room[lane] : INT32_MAX;
        __syncthreads();
    }
}

/* The block's parts together, in every thread. */
static __device__ __forceinline__ row_part join_parts(row_part part, float *room, int32_t *index_room)
{
    const float own = part.largest;
    join_largest(part, room, index_room);
    part.sum = mb_block_sum(part.sum * expf(own - part.largest), room);
    return part;
}

static __device__ __forceinline__ void store_run(float *to, const float x[RUN])
{
    ((float4 *)to)[0] = make_float4(x[0], x[1], x[2], x[3]);
    ((float4 *)to)[1] = make_float4(x[4], x[5], x[6], x[7]);
}

#endif
