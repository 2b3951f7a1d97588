/* device: the few things kernels need beyond CUDA C, each with a plain twin for the host emulator of the
 * tests.
 *
 * Layer: ops (cuda backend).  Uses: ops_table.h, the CUDA runtime (or the emulator's, with MB_CUDA_EMULATED).
 * Sources: CUDA C++ Programming Guide; PTX ISA, "Matrix fragments for mma.m16n8k16", "ldmatrix", "cp.async".
 *
 * Rules for kernels, so that they run in both places:  - launched by MB_LAUNCH only; static shared arrays by
 * MB_SHARED, the dynamic one by MB_DYNAMIC_SHARED;  - every thread of a block reaches every __syncthreads,
 * every lane of a warp every __syncwarp, shuffle, mma,    ldmatrix (no early return before one; the emulator
 * reports threads that wait for ever);  - no thread reads shared memory that another wrote without a barrier
 * between (the emulator runs the threads    of a block one after another, forward, backward or in random
 * order, and results must not change);  - __syncwarp() between lanes that exchange by shared memory.
 */
#ifndef MB_CUDA_DEVICE_CUH
#define MB_CUDA_DEVICE_CUH

#include <cuda_runtime.h>
#include <float.h>
#include <math.h>
#include <stdint.h>

extern "C" {
#include "ops/ops_check.h"
#include "ops/ops_table.h"
}

/* ---- launching ---- */

#ifdef MB_CUDA_EMULATED
/* The emulator's cuda_runtime.h defines MB_LAUNCH, MB_SHARED and MB_DYNAMIC_SHARED. */
#else
/* MB_LAUNCH(kernel or (kernel<a, b>), grid, block, dynamic shared bytes, stream, arguments...) */
#define MB_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                                            \
    kernel<<<(grid), (block), (shared_bytes), (stream)>>>(__VA_ARGS__)
/* float *name of `count` floats in the block's memory, not initialised; count is a constant. */
#define MB_SHARED(type, name, count) __shared__ __align__(16) type name[count]
/* type *name: the dynamic shared memory of the launch, 128-byte aligned. */
#define MB_DYNAMIC_SHARED(type, name)                                                                        \
    extern __shared__ __align__(128) unsigned char mb_dynamic_shared[];                                      \
    type *name = (type *)mb_dynamic_shared
#endif

/* ---- bf16 ---- */

/* 16 bits of a bf16; arrays of it are what MB_BF16 tensors hold. */
struct mb_bf16 {
    uint16_t bits;
};

static __device__ __forceinline__ float mb_float(float x)
{
    return x;
}
static __device__ __forceinline__ float mb_float(mb_bf16 x)
{
    return __uint_as_float((uint32_t)x.bits << 16);
}

/* To nearest even; a NaN stays one. */
static __device__ __forceinline__ mb_bf16 mb_to_bf16(float x)
{
    mb_bf16 y;
#ifdef MB_CUDA_EMULATED
    y.bits = mb_dtype_bf16_from_f32(x);
#else
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
#endif
    return y;
}
template <typename T> static __device__ __forceinline__ T mb_from_float(float x);
template <> __device__ __forceinline__ float mb_from_float<float>(float x)
{
    return x;
}
template <> __device__ __forceinline__ mb_bf16 mb_from_float<mb_bf16>(float x)
{
    return mb_to_bf16(x);
}

/* Two bf16 in a word, `low` in the low half. */
static __device__ __forceinline__ uint32_t mb_pack_bf16(float low, float high)
{
#ifdef MB_CUDA_EMULATED
    return (uint32_t)mb_dtype_bf16_from_f32(low) | (uint32_t)mb_dtype_bf16_from_f32(high) << 16;
#else
    uint32_t packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
#endif
}
static __device__ __forceinline__ float mb_low_bf16(uint32_t pair)
{
    return __uint_as_float(pair << 16);
}
static __device__ __forceinline__ float mb_high_bf16(uint32_t pair)
{
    return __uint_as_float(pair & 0xffff0000u);
}

/* ---- tensor cores ---- */

/* d[16,8] += a[16,16] b[16,8] over a warp, bf16 with f32 sums: mma.sync.m16n8k16 row.col. With g = lane /
 * 4 and i = lane % 4 a lane holds   a[0]: row g, columns 2i, 2i+1;  a[1]: row g+8;  a[2]: row g, columns
 * 2i+8, +9;  a[3]: row g+8, those;   b[0]: rows 2i, 2i+1 of column g;  b[1]: rows 2i+8, 2i+9 of it;
 * d[0], d[1]: row g, columns 2i, 2i+1;  d[2], d[3]: row g+8, those. */
static __device__ __forceinline__ void mb_mma_bf16(float d[4], const uint32_t a[4], const uint32_t b[2])
{
#ifdef MB_CUDA_EMULATED
    mb_emulated_mma_bf16(d, a, b);
#else
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                 "{%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

/* Four 8x8 matrices of 16-bit elements from shared memory: lanes 8j..8j+7 give the addresses (16-byte
 * aligned) of the 8 rows of matrix j, whose elements 2i, 2i+1 of row g go to r[j] of lane 4g+i.
 * Transposed: elements of rows 2i, 2i+1 in column g. */
static __device__ __forceinline__ void mb_ldmatrix_x4(uint32_t r[4], const void *row)
{
#ifdef MB_CUDA_EMULATED
    mb_emulated_ldmatrix_x4(r, row, false);
#else
    const uint32_t at = (uint32_t)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
#endif
}
static __device__ __forceinline__ void mb_ldmatrix_x4_transposed(uint32_t r[4], const void *row)
{
#ifdef MB_CUDA_EMULATED
    mb_emulated_ldmatrix_x4(r, row, true);
#else
    const uint32_t at = (uint32_t)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
#endif
}

/* ---- copies to shared memory that run beside the threads ---- */

/* 16 bytes, both sides 16-byte aligned; zeros instead when !is_valid (`global` is not read then, but must
 * be a pointer). Seen after commit, a wait for its group, and a barrier. */
static __device__ __forceinline__ void mb_copy_async_16(void *shared, const void *global, bool is_valid)
{
#ifdef MB_CUDA_EMULATED
    mb_emulated_copy_async_16(shared, global, is_valid);
#else
    const uint32_t at = (uint32_t)__cvta_generic_to_shared(shared);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(global),
                 "r"(is_valid ? 16 : 0)
                 : "memory");
#endif
}
static __device__ __forceinline__ void mb_copy_async_commit()
{
#ifdef MB_CUDA_EMULATED
    mb_emulated_copy_async_commit();
#else
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
/* All but the last LEFT committed groups of this thread have arrived. */
template <int LEFT> static __device__ __forceinline__ void mb_copy_async_wait()
{
#ifdef MB_CUDA_EMULATED
    mb_emulated_copy_async_wait(LEFT);
#else
    asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
#endif
}

/* ---- sums over a warp and a block, always in the same order ---- */

static __device__ __forceinline__ float mb_warp_sum(float x)
{
    for (int d = 16; d > 0; d >>= 1) x += __shfl_xor_sync(0xffffffffu, x, d);
    return x;
}
static __device__ __forceinline__ double mb_warp_sum(double x)
{
    for (int d = 16; d > 0; d >>= 1) x += __shfl_xor_sync(0xffffffffu, x, d);
    return x;
}
static __device__ __forceinline__ float mb_warp_max(float x)
{
    for (int d = 16; d > 0; d >>= 1) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, d));
    return x;
}

/* Over a one-dimensional block of a multiple of 32 threads; every thread gets the sum. `room`: [32]
 * shared, free again when this returns. */
template <typename T> static __device__ __forceinline__ T mb_block_sum(T x, T *room)
{
    const int warps = (int)blockDim.x / 32, lane = (int)threadIdx.x % 32;
    x = mb_warp_sum(x);
    if (lane == 0) room[threadIdx.x / 32] = x;
    __syncthreads();
    x = mb_warp_sum(lane < warps ? room[lane] : (T)0);
    __syncthreads();
    return x;
}
static __device__ __forceinline__ float mb_block_max(float x, float *room)
{
    const int warps = (int)blockDim.x / 32, lane = (int)threadIdx.x % 32;
    x = mb_warp_max(x);
    if (lane == 0) room[threadIdx.x / 32] = x;
    __syncthreads();
    x = mb_warp_max(lane < warps ? room[lane] : -INFINITY);
    __syncthreads();
    return x;
}

#endif
