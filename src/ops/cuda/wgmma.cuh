/* wgmma: the tensor cores of Hopper (sm_90a): products of a warpgroup (4 warps) whose operands are both read
 * from shared memory, asynchronously. Each call has a plain twin for the host emulator.
 *
 * Layer: ops (cuda backend).  Uses: device.cuh. Source: PTX ISA, "Asynchronous warpgroup level matrix
 * instructions", "Matrix descriptor"; the canonical layouts are written out in NVIDIA CUTLASS,
 * cute/arch/mma_sm90_desc.hpp.
 *
 * Operands lie in shared memory as 128-byte lines of 64 bf16, 8 lines to an atom of 1024 bytes (aligned to
 * that), the 16-byte pieces of line r at piece ^ (r % 8). "Deep": a line is one row (or column) of the
 * product, 64 of the reduced dimension; atoms of 8 rows follow each other. "Wide": a line is one of the
 * reduced dimension, 64 rows (or columns) of the product; atoms of 8 follow each other along the reduced
 * dimension, and a block of 64 rows (or columns) follows the other after all of its lines.
 */
#ifndef MB_CUDA_WGMMA_CUH
#define MB_CUDA_WGMMA_CUH

#include "ops/cuda/device.cuh"

/* An operand of a call: where its 16 of the reduced dimension begin, and how the layout goes on. */
typedef struct mb_wgmma_side {
    uint64_t descriptor;
#ifdef MB_CUDA_EMULATED
    const unsigned char *base; /* offsets of the descriptor count from here */
#endif
} mb_wgmma_side;

/* ring: the dynamic shared memory, 1024-byte aligned; offset of the first atom into it. step: which 16 of
 * the 64 (deep), or of all lines (wide). block_bytes: from one block of 64 rows to the next (wide). */
template <bool IS_WIDE>
static __device__ __forceinline__ mb_wgmma_side mb_wgmma_describe(const unsigned char *ring, int offset,
                                                                  int step, int block_bytes)
{
    mb_wgmma_side side;
    const uint32_t at = (uint32_t)offset + (uint32_t)step * (IS_WIDE ? 2048u : 32u);
#ifdef MB_CUDA_EMULATED
    const uint32_t address = at;
    side.base = ring;
#else
    const uint32_t address = (uint32_t)__cvta_generic_to_shared(ring) + at;
#endif
    const uint64_t leading = IS_WIDE ? (uint64_t)block_bytes >> 4 : 1, stride = 1024 >> 4;
    side.descriptor = (uint64_t)(address >> 4 & 0x3fff) | leading << 16 | stride << 32 | (uint64_t)1 << 62;
    return side;
}

#ifdef MB_CUDA_EMULATED

/* Element (own, depth) of a described operand; depth < 16. */
template <bool IS_WIDE> static inline float mb_wgmma_element(const mb_wgmma_side &side, int own, int depth)
{
    const uint32_t start = (uint32_t)(side.descriptor & 0x3fff) << 4;
    const uint32_t leading = (uint32_t)(side.descriptor >> 16 & 0x3fff) << 4;
    const uint32_t stride = (uint32_t)(side.descriptor >> 32 & 0x3fff) << 4;
    uint32_t at =
        IS_WIDE ? start + (uint32_t)(own / 64) * leading + (uint32_t)(depth / 8) * stride +
                      (uint32_t)(depth % 8) * 128 + (uint32_t)(own % 64) * 2
                : start + (uint32_t)(own / 8) * stride + (uint32_t)(own % 8) * 128 + (uint32_t)depth * 2;
    at ^= (at >> 7 & 7) << 4; /* the swizzle works on addresses */
    return mb_float(*(const mb_bf16 *)(side.base + at));
}

static inline void mb_wgmma_fence() {}
static inline void mb_wgmma_commit() {}
template <int LEFT> static inline void mb_wgmma_wait() {}
static inline void mb_wgmma_keep(float &) {}
static inline void mb_proxy_fence() {}

template <int WIDTH, bool LEFT_WIDE, bool RIGHT_WIDE>
static inline void mb_wgmma(float d[WIDTH / 2], const mb_wgmma_side &a, const mb_wgmma_side &b,
                            bool accumulate)
{
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32 % 4;
    for (int i = 0; i < WIDTH / 2; i++) {
        const int row = warp * 16 + lane / 4 + i / 2 % 2 * 8, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
        float sum = accumulate ? d[i] : 0;
        for (int k = 0; k < 16; k++)
            sum += mb_wgmma_element<LEFT_WIDE>(a, row, k) * mb_wgmma_element<RIGHT_WIDE>(b, column, k);
        d[i] = sum;
    }
}

#else

/* Before the first product of a batch; after a batch; until all but the last LEFT batches are done. */
static __device__ __forceinline__ void mb_wgmma_fence()
{
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
static __device__ __forceinline__ void mb_wgmma_commit()
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int LEFT> static __device__ __forceinline__ void mb_wgmma_wait()
{
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory");
}
/* The compiler must not move a result's register across this. */
static __device__ __forceinline__ void mb_wgmma_keep(float &d)
{
    asm volatile("" : "+f"(d)::"memory");
}
/* What this thread wrote or copied to shared memory is seen by tensor cores after a barrier. */
static __device__ __forceinline__ void mb_proxy_fence()
{
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/* clang-format off */
#define MB_D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define MB_D8(i) MB_D4(i), MB_D4(i + 4)
#define MB_D32(i) MB_D8(i), MB_D8(i + 8), MB_D8(i + 16), MB_D8(i + 24)
#define MB_R64 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, " \
    "%21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, " \
    "%40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, " \
    "%59, %60, %61, %62, %63"
#define MB_R128 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, " \
    "%21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, " \
    "%40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, " \
    "%59, %60, %61, %62, %63, %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, " \
    "%78, %79, %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, " \
    "%97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, %112, " \
    "%113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
/* clang-format on */

/* d[64, WIDTH] = (accumulate ? d : 0) + a[64,16] b[16,WIDTH]; lane's d[4j..4j+3] as mb_mma_bf16 leaves
 * them, of columns 8j.., rows 16 (warp % 4)... All four warps of the group call it alike. */
template <int WIDTH, bool LEFT_WIDE, bool RIGHT_WIDE>
static __device__ __forceinline__ void mb_wgmma(float d[WIDTH / 2], const mb_wgmma_side &a,
                                                const mb_wgmma_side &b, bool accumulate)
{
    static_assert(WIDTH == 128 || WIDTH == 256, "instructions are written for these");
    if constexpr (WIDTH == 128)
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
                     "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" MB_R64
                     "}, %64, %65, p, 1, 1, %67, %68;\n}\n"
                     : MB_D32(0), MB_D32(32)
                     : "l"(a.descriptor), "l"(b.descriptor), "r"((int)accumulate), "n"((int)LEFT_WIDE),
                       "n"((int)RIGHT_WIDE));
    else
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %130, 0;\n"
                     "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {" MB_R128
                     "}, %128, %129, p, 1, 1, %131, %132;\n}\n"
                     : MB_D32(0), MB_D32(32), MB_D32(64), MB_D32(96)
                     : "l"(a.descriptor), "l"(b.descriptor), "r"((int)accumulate), "n"((int)LEFT_WIDE),
                       "n"((int)RIGHT_WIDE));
}

#endif

#endif
