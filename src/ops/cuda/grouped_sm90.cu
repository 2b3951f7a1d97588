/* grouped_sm90: expert products by wgmma, one launch for all experts.
 *
 * Tiles and their order are those of grouped.cu (grouped_tile.cuh): the grid is as many blocks as the chip
 * has processors, each walks the list of tiles. A block is two warpgroups; each makes 64 of the tile's 128
 * rows, both read the same WIDTH columns. The reduced dimension goes through shared memory 64 at a time, in a
 * ring of 4 stages that all threads fill by asynchronous copies, two stages ahead: the stage that is filled
 * at step s is that of step s - 2, whose products every warpgroup has seen finished before the barrier of
 * step s. So there is one barrier a step, and the tensor cores work on step s while copies are issued and the
 * next barrier is reached. A warpgroup whose rows lie beyond the expert's only copies.
 *
 * 1. staging 2. a tile 3. results 4. kernels 5. launches
 */
#include "ops/cuda/grouped_sm90.h"

#include "ops/cuda/wgmma.cuh"

enum {
    WG_DEPTH = 64,
    WG_STAGES = 4,
    WG_AHEAD = 2,
    WG_THREADS = 256,
    LINE_BYTES = 128,
    BLOCK_BYTES = 64 * LINE_BYTES
};

/* ---- 1. staging ---- */

/* Depths first.. of SPAN rows (or columns) of one side into a stage, in the layout of wgmma.cuh. */
template <bool IS_WIDE, int SPAN>
static __device__ __forceinline__ void wg_stage(unsigned char *stage, const tile_side &side, int first,
                                                int depth)
{
    enum { COUNT = SPAN * 8 / WG_THREADS, STEP = WG_THREADS / 8 };
    const int piece = (int)threadIdx.x % 8, line = (int)threadIdx.x / 8;
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
        /* deep: line `at` is a row; wide: lines of 64 depths, block after block of 64 rows */
        const int at = line + i * STEP, own = IS_WIDE ? at / 64 * 64 + piece * 8 : at;
        const int deep = first + (IS_WIDE ? at % 64 : piece * 8);
        const bool is_there = own < side.span && deep < depth;
        const uint16_t *from = IS_WIDE ? side.at + (int64_t)deep * side.stride + own
                                       : side.at + (int64_t)own * side.stride + deep;
        mb_copy_async_16(stage + at * LINE_BYTES + (piece ^ (at & 7)) * 16, is_there ? from : side.at,
                         is_there);
    }
}

/* ---- 2. a tile ---- */

template <int WIDTH, bool LEFT_WIDE, bool RIGHT_WIDE> struct wg_engine {
    enum {
        LEFT_BYTES = TILE_M * LINE_BYTES,
        STAGE_BYTES = LEFT_BYTES + WIDTH * LINE_BYTES,
        SHARED_BYTES = WG_STAGES * STAGE_BYTES + 1024 /* to begin at a multiple of 1024 */
    };

    static __device__ __forceinline__ unsigned char *align(unsigned char *shared)
    {
        return shared + ((1024 - ((uintptr_t)shared & 1023)) & 1023);
    }

    static __device__ __forceinline__ void fill(unsigned char *ring, const tile_work &work, int number)
    {
        unsigned char *stage = ring + number % WG_STAGES * STAGE_BYTES;
        wg_stage<LEFT_WIDE, TILE_M>(stage, work.left, number * WG_DEPTH, work.depth);
        wg_stage<RIGHT_WIDE, WIDTH>(stage + LEFT_BYTES, work.right, number * WG_DEPTH, work.depth);
    }

    static __device__ __forceinline__ void start(unsigned char *ring, const tile_work &work)
    {
        for (int i = 0; i < WG_AHEAD; i++) {
            if (i * WG_DEPTH < work.depth) fill(ring, work, i);
            mb_copy_async_commit();
        }
    }

    /* A warpgroup's 64 rows times one stage. */
    static __device__ __forceinline__ void multiply(const unsigned char *ring, int number, float d[WIDTH / 2])
    {
        const int stage = number % WG_STAGES * STAGE_BYTES, half = (int)threadIdx.x / 128;
#pragma unroll
        for (int i = 0; i < WIDTH / 2; i++) mb_wgmma_keep(d[i]);
        mb_wgmma_fence();
#pragma unroll
        for (int step = 0; step < WG_DEPTH / 16; step++) {
            const mb_wgmma_side a =
                mb_wgmma_describe<LEFT_WIDE>(ring, stage + half * BLOCK_BYTES, step, BLOCK_BYTES);
            const mb_wgmma_side b =
                mb_wgmma_describe<RIGHT_WIDE>(ring, stage + LEFT_BYTES, step, BLOCK_BYTES);
            mb_wgmma<WIDTH, LEFT_WIDE, RIGHT_WIDE>(d, a, b, number > 0 || step > 0);
        }
        mb_wgmma_commit();
    }

    /* d: a warpgroup's 64 rows, as mb_wgmma leaves them. Shared memory is free again when this returns. */
    static __device__ __forceinline__ void run(unsigned char *ring, const tile_work &work, float d[WIDTH / 2])
    {
        const int stages = (work.depth + WG_DEPTH - 1) / WG_DEPTH;
        const bool has_work = (int)threadIdx.x / 128 * 64 < work.left.span;
#pragma unroll
        for (int i = 0; i < WIDTH / 2; i++) d[i] = 0;
        for (int s = 0; s < stages; s++) {
            mb_copy_async_wait<WG_AHEAD - 1>();
            mb_proxy_fence();
            __syncthreads();
            if (has_work) multiply(ring, s, d);
            if (s + WG_AHEAD < stages) fill(ring, work, s + WG_AHEAD);
            mb_copy_async_commit();
            if (has_work) mb_wgmma_wait<1>();
        }
        mb_wgmma_wait<0>();
#pragma unroll
        for (int i = 0; i < WIDTH / 2; i++) mb_wgmma_keep(d[i]);
        mb_copy_async_wait<0>();
        __syncthreads();
    }
};

/* ---- 3. results ---- */

/* 8 rows x 32 columns of a warp to bf16, 16 bytes a lane (grouped_tile.cuh's exchange). v[j]: columns 8j +
 * 2 (lane % 4). */
static __device__ __forceinline__ void wg_write(float v[4][2], mb_bf16 *row, int columns, bool is_row,
                                                bool accumulate)
{
    const int column = (int)threadIdx.x % 4 * 8;
    const bool is_there = is_row && column < columns;
    uint4 *to = (uint4 *)(row + column);
    uint32_t words[4];
    if (accumulate) {
        const uint4 old = is_there ? *to : make_uint4(0, 0, 0, 0);
        words[0] = old.x, words[1] = old.y, words[2] = old.z, words[3] = old.w;
        exchange_words(words);
#pragma unroll
        for (int j = 0; j < 4; j++) v[j][0] += mb_low_bf16(words[j]), v[j][1] += mb_high_bf16(words[j]);
    }
#pragma unroll
    for (int j = 0; j < 4; j++) words[j] = mb_pack_bf16(v[j][0], v[j][1]);
    exchange_words(words);
    if (is_there) *to = make_uint4(words[0], words[1], words[2], words[3]);
}
static __device__ __forceinline__ void wg_write(float v[4][2], float *row, int columns, bool is_row,
                                                bool accumulate)
{
#pragma unroll
    for (int j = 0; j < 4; j++) {
        const int column = 8 * j + (int)threadIdx.x % 4 * 2;
        write_pair(row + column, v[j][0], v[j][1], is_row ? columns - column : 0, accumulate, true);
    }
}

/* A warpgroup's results to y, the tile's corner, of which rows x columns exist. */
template <int WIDTH, typename T>
static __device__ __forceinline__ void wg_results(const float d[WIDTH / 2], T *y, int64_t stride, int rows,
                                                  int columns, bool accumulate)
{
    const int first = (int)threadIdx.x / 32 * 16 + (int)threadIdx.x % 32 / 4;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int row = first + 8 * half;
#pragma unroll
        for (int four = 0; four < WIDTH / 32; four++) {
            float v[4][2];
#pragma unroll
            for (int j = 0; j < 4; j++) {
                v[j][0] = d[(4 * four + j) * 4 + 2 * half];
                v[j][1] = d[(4 * four + j) * 4 + 2 * half + 1];
            }
            wg_write(v, y + (int64_t)row * stride + 32 * four, columns - 32 * four, row < rows, accumulate);
        }
    }
}

/* ---- 4. kernels ---- */

template <int WIDTH, bool IS_NN, typename T>
static __global__ void __launch_bounds__(WG_THREADS, 1)
    wg_forward_tiles(const group_weights weights, const group_forward g)
{
    typedef wg_engine<WIDTH, false, IS_NN> engine;
    MB_DYNAMIC_SHARED(unsigned char, shared);
    unsigned char *ring = engine::align(shared);
    const int column_tiles = (int)((g.width + WIDTH - 1) / WIDTH);
    tile_walk walk = {0, 0};
    tile_place place;
    tile_work work;
    int64_t id = blockIdx.x;
    bool is_there = find_tile<TILE_M>(g.offsets, g.groups, column_tiles, id, &walk, &place);
    if (is_there) {
        work = forward_work<WIDTH, IS_NN>(weights, g, place);
        engine::start(ring, work);
    }
    while (is_there) {
        float d[WIDTH / 2];
        engine::run(ring, work, d);
        const tile_place done = place;
        const int64_t column = (int64_t)done.column_tile * WIDTH;
        id += gridDim.x;
        is_there = find_tile<TILE_M>(g.offsets, g.groups, column_tiles, id, &walk, &place);
        if (is_there) {
            work = forward_work<WIDTH, IS_NN>(weights, g, place);
            engine::start(ring, work);
        }
        wg_results<WIDTH>(d, (T *)g.y + (int64_t)done.row * g.width + column, g.width, done.rows,
                          (int)(g.width - column < (int64_t)WIDTH ? g.width - column : (int64_t)WIDTH),
                          g.accumulate);
    }
}

template <int WIDTH>
static __global__ void __launch_bounds__(WG_THREADS, 1)
    wg_gradient_tiles(const group_targets targets, const group_backward g)
{
    typedef wg_engine<WIDTH, true, true> engine;
    MB_DYNAMIC_SHARED(unsigned char, shared);
    unsigned char *ring = engine::align(shared);
    gradient_place place;
    tile_work work;
    int64_t id = blockIdx.x;
    bool is_there = find_gradient(targets, g, TILE_M, WIDTH, &id, &place);
    if (is_there) {
        work = gradient_work<WIDTH>(g, place);
        engine::start(ring, work);
    }
    while (is_there) {
        float d[WIDTH / 2];
        engine::run(ring, work, d);
        float *to = targets.dw[place.target] + (int64_t)place.row * g.k + place.column;
        const int rows = work.left.span, columns = work.right.span;
        id += gridDim.x;
        is_there = find_gradient(targets, g, TILE_M, WIDTH, &id, &place);
        if (is_there) {
            work = gradient_work<WIDTH>(g, place);
            engine::start(ring, work);
        }
        wg_results<WIDTH>(d, to, g.k, rows, columns, true);
    }
}

/* ---- 5. launches ---- */

#define WG_LAUNCH(kernel, engine, tiles, ...)                                                                \
    do {                                                                                                     \
        MB_CUDA_CALL(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,               \
                                          (int)engine::SHARED_BYTES));                                       \
        MB_LAUNCH(kernel, (unsigned)mb_cuda_min(tiles, cuda->processors), (int)WG_THREADS,                   \
                  (size_t)engine::SHARED_BYTES, cuda->stream, __VA_ARGS__);                                  \
    } while (0)

template <int WIDTH, bool IS_NN, typename T>
static mb_status wg_launch(const mb_cuda *cuda, int64_t row_tiles, const group_weights &weights,
                           const group_forward &g)
{
    typedef wg_engine<WIDTH, false, IS_NN> engine;
    WG_LAUNCH((wg_forward_tiles<WIDTH, IS_NN, T>), engine, row_tiles * mb_cuda_blocks(g.width, WIDTH),
              weights, g);
    return MB_CUDA_LAUNCHED();
}

/* Columns in tiles of 256 unless that wastes an eighth or leaves processors without work. */
static bool wg_is_wide(const mb_cuda *cuda, int64_t row_tiles, int64_t width)
{
    const int64_t wide = mb_cuda_blocks(width, 256);
    return 8 * (256 * wide - 128 * mb_cuda_blocks(width, 128)) <= width &&
           row_tiles * wide >= cuda->processors;
}

template <bool IS_NN, typename T>
static mb_status wg_choose(const mb_cuda *cuda, int64_t row_tiles, const group_weights &weights,
                           const group_forward &g)
{
    return wg_is_wide(cuda, row_tiles, g.width) ? wg_launch<256, IS_NN, T>(cuda, row_tiles, weights, g)
                                                : wg_launch<128, IS_NN, T>(cuda, row_tiles, weights, g);
}

mb_status mb_cuda_groups_sm90(const mb_cuda *cuda, bool is_nn, int64_t row_tiles,
                              const group_weights &weights, const group_forward &g, mb_dtype out)
{
    MB_CUDA_BY_DTYPE(out, T, {
        return is_nn ? wg_choose<true, T>(cuda, row_tiles, weights, g)
                     : wg_choose<false, T>(cuda, row_tiles, weights, g);
    });
}

template <int WIDTH>
static mb_status wg_launch_dw(const mb_cuda *cuda, const group_targets &targets, const group_backward &g)
{
    typedef wg_engine<WIDTH, true, true> engine;
    const int64_t tiles = g.targets * mb_cuda_blocks(g.n, TILE_M) * mb_cuda_blocks(g.k, WIDTH);
    WG_LAUNCH((wg_gradient_tiles<WIDTH>), engine, tiles, targets, g);
    return MB_CUDA_LAUNCHED();
}

mb_status mb_cuda_groups_dw_sm90(const mb_cuda *cuda, const group_targets &targets, const group_backward &g)
{
    return wg_is_wide(cuda, g.targets * mb_cuda_blocks(g.n, TILE_M), g.k)
               ? wg_launch_dw<256>(cuda, targets, g)
               : wg_launch_dw<128>(cuda, targets, g);
}
