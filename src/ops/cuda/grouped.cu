/* grouped: products of the rows of many experts, one launch for all of them.
 *
 * How many rows an expert has is known on the device only. The grid is as many blocks as the chip runs at one
 * time; each takes tiles number blockIdx, + gridDim, + 2 gridDim .. of the list of all tiles of all experts,
 * and finds in the offsets which expert that is (grouped_tile.cuh). The first copies of the next tile are
 * under way while the results of this one are written. Rows from offsets[E] on are in no tile.
 *
 * The matrices of up to 256 experts travel as pointers in the kernel's arguments; more experts take more
 * launches. bf16 rows meet tensor cores in tiles of 128 x 256 or 128 x 128, f32 rows the ordinary units in
 * tiles of 64 x 64.
 *
 * 1. y = x w^T and dx = dy w, bf16 2. dw += dy^T x, bf16 3. both, f32 4. launches 5. entries
 */
#include "ops/cuda/grouped.h"
#include "ops/cuda/grouped_plain.cuh"
#include "ops/cuda/grouped_sm90.h"

/* ---- 1. y = x w^T and dx = dy w, bf16 ---- */

/* A warp's share of a tile to y. */
template <int WN, bool IS_FAST>
static __device__ __forceinline__ void forward_write(const group_forward &g, const tile_place &place,
                                                     const float sums[4][8][4], float *y)
{
    const int warp = (int)threadIdx.x / 32, row = warp / WN * 64;
    const int64_t column = (int64_t)place.column_tile * 64 * WN + warp % WN * 64;
    const int64_t columns = g.width - column;
    write_sums(sums, y + (place.row + (int64_t)row) * g.width + column, g.width, place.rows - row,
               (int)(columns < 64 ? columns : 64), g.accumulate, g.is_wide);
}
template <int WN, bool IS_FAST>
static __device__ __forceinline__ void forward_write(const group_forward &g, const tile_place &place,
                                                     const float sums[4][8][4], mb_bf16 *y)
{
    const int warp = (int)threadIdx.x / 32, row = warp / WN * 64;
    const int64_t column = (int64_t)place.column_tile * 64 * WN + warp % WN * 64;
    const int columns = (int)(g.width - column < 64 ? g.width - column : 64);
    mb_bf16 *to = y + (place.row + (int64_t)row) * g.width + column;
    if (IS_FAST)
        write_sums_wide(sums, to, g.width, place.rows - row, columns, g.accumulate);
    else
        write_sums(sums, to, g.width, place.rows - row, columns, g.accumulate, g.is_wide);
}

template <int WN, bool IS_NN, bool IS_FAST, typename T>
static __global__ void __launch_bounds__(64 * WN, 4 / WN)
    forward_tiles(const group_weights weights, const group_forward g)
{
    typedef tile_engine<WN, false, IS_NN, IS_FAST> engine;
    MB_DYNAMIC_SHARED(unsigned char, ring);
    const int column_tiles = (int)((g.width + engine::WIDTH - 1) / engine::WIDTH);
    tile_walk walk = {0, 0};
    tile_place place;
    tile_work work;
    int64_t id = blockIdx.x;
    bool is_there = find_tile<TILE_M>(g.offsets, g.groups, column_tiles, id, &walk, &place);
    if (is_there) {
        work = forward_work<engine::WIDTH, IS_NN>(weights, g, place);
        engine::start(ring, work);
    }
    while (is_there) {
        float sums[4][8][4];
        engine::run(ring, work, sums);
        const tile_place done = place;
        id += gridDim.x;
        is_there = find_tile<TILE_M>(g.offsets, g.groups, column_tiles, id, &walk, &place);
        if (is_there) {
            work = forward_work<engine::WIDTH, IS_NN>(weights, g, place);
            engine::start(ring, work);
        }
        forward_write<WN, IS_FAST>(g, done, sums, (T *)g.y);
    }
}

/* ---- 2. dw += dy^T x, bf16 ---- */

/* A warp's share of a tile to dw. */
template <int WN>
static __device__ __forceinline__ void gradient_write(const group_targets &targets, const group_backward &g,
                                                      const gradient_place &place, const float sums[4][8][4])
{
    const int warp = (int)threadIdx.x / 32;
    const int64_t row = place.row + warp / WN * 64, column = place.column + warp % WN * 64;
    write_sums(sums, targets.dw[place.target] + row * g.k + column, g.k,
               (int)(g.n - row < 64 ? g.n - row : 64), (int)(g.k - column < 64 ? g.k - column : 64), true,
               g.is_even);
}

template <int WN, bool IS_FAST>
static __global__ void __launch_bounds__(64 * WN, 4 / WN)
    gradient_tiles(const group_targets targets, const group_backward g)
{
    typedef tile_engine<WN, true, true, IS_FAST> engine;
    MB_DYNAMIC_SHARED(unsigned char, ring);
    gradient_place place;
    tile_work work;
    int64_t id = blockIdx.x;
    bool is_there = find_gradient(targets, g, TILE_M, engine::WIDTH, &id, &place);
    if (is_there) {
        work = gradient_work<engine::WIDTH>(g, place);
        engine::start(ring, work);
    }
    while (is_there) {
        float sums[4][8][4];
        engine::run(ring, work, sums);
        const gradient_place done = place;
        id += gridDim.x;
        is_there = find_gradient(targets, g, TILE_M, engine::WIDTH, &id, &place);
        if (is_there) {
            work = gradient_work<engine::WIDTH>(g, place);
            engine::start(ring, work);
        }
        gradient_write<WN>(targets, g, done, sums);
    }
}

/* ---- 3. both, f32 ---- */

template <bool IS_NN, typename T>
static __global__ void __launch_bounds__(PLAIN_THREADS)
    forward_plain(const group_weights weights, const group_forward g)
{
    MB_SHARED(float, room, 2 * PLAIN_DEPTH * PLAIN_ROW);
    const int column_tiles = (int)((g.width + PLAIN_TILE - 1) / PLAIN_TILE);
    tile_walk walk = {0, 0};
    tile_place place;
    for (int64_t id = blockIdx.x; find_tile<PLAIN_TILE>(g.offsets, g.groups, column_tiles, id, &walk, &place);
         id += gridDim.x) {
        float sums[4][4];
        const int64_t column = (int64_t)place.column_tile * PLAIN_TILE;
        const float *w = (const float *)weights.w[place.expert];
        const plain_side left = {(const float *)g.x + place.row * g.depth, g.depth, place.rows};
        const plain_side right = {IS_NN ? w + column : w + column * g.depth, IS_NN ? g.width : g.depth,
                                  plain_left(g.width - column, PLAIN_TILE)};
        plain_product<false, IS_NN>(left, right, (int)g.depth, room, sums);
        plain_write(sums, (T *)g.y + place.row * g.width + column, g.width, left.span, right.span,
                    g.accumulate);
    }
}

static __global__ void __launch_bounds__(PLAIN_THREADS)
    gradient_plain(const group_targets targets, const group_backward g)
{
    MB_SHARED(float, room, 2 * PLAIN_DEPTH * PLAIN_ROW);
    gradient_place place;
    int64_t id = blockIdx.x;
    for (; find_gradient(targets, g, PLAIN_TILE, PLAIN_TILE, &id, &place); id += gridDim.x) {
        float sums[4][4];
        const plain_side left = {(const float *)g.dy + place.first * g.n + place.row, g.n,
                                 plain_left(g.n - place.row, PLAIN_TILE)};
        const plain_side right = {(const float *)g.x + place.first * g.k + place.column, g.k,
                                  plain_left(g.k - place.column, PLAIN_TILE)};
        plain_product<true, true>(left, right, place.rows, room, sums);
        plain_write(sums, targets.dw[place.target] + place.row * g.k + place.column, g.k, left.span,
                    right.span, true);
    }
}

/* ---- 4. launches ---- */

/* Column tiles of 256 where they waste little and there is work for the whole chip. */
static bool is_wide_better(const mb_cuda *cuda, int64_t row_tiles, int64_t width)
{
    const int64_t wide = mb_cuda_blocks(width, 256), narrow = mb_cuda_blocks(width, 128);
    return 16 * (256 * wide - 128 * narrow) <= width && row_tiles * wide >= cuda->processors;
}

/* Blocks that the chip runs at one time, or as many as there can be tiles. */
static unsigned grid_of(const mb_cuda *cuda, int64_t tiles, int each)
{
    const int64_t most = (int64_t)cuda->processors * each;
    return (unsigned)(tiles < most ? tiles : most);
}

/* MB_LAUNCH of a kernel that takes more shared memory than it may without asking. */
#define LAUNCH_TILES(kernel, engine, tiles, each, stream, ...)                                               \
    do {                                                                                                     \
        MB_CUDA_CALL(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,               \
                                          (int)engine::SHARED_BYTES));                                       \
        MB_LAUNCH(kernel, grid_of(cuda, tiles, each), (int)engine::THREADS, (size_t)engine::SHARED_BYTES,    \
                  stream, __VA_ARGS__);                                                                      \
    } while (0)

template <int WN, bool IS_NN, bool IS_FAST, typename T>
static mb_status launch_forward_tiles(const mb_cuda *cuda, int64_t row_tiles, const group_weights &weights,
                                      const group_forward &g)
{
    typedef tile_engine<WN, false, IS_NN, IS_FAST> engine;
    const int64_t tiles = row_tiles * mb_cuda_blocks(g.width, engine::WIDTH);
    LAUNCH_TILES((forward_tiles<WN, IS_NN, IS_FAST, T>), engine, tiles, 4 / WN, cuda->stream, weights, g);
    return MB_CUDA_LAUNCHED();
}

static bool is_hopper(const mb_cuda *cuda)
{
    return cuda->groups == MB_CUDA_GROUPS_WGMMA && cuda->capability == 90;
}

template <bool IS_NN, typename T>
static mb_status launch_forward(mb_ops *ops, mb_dtype in, int64_t rows, bool is_aligned,
                                const group_weights &weights, const group_forward &g)
{
    const mb_cuda *cuda = mb_cuda_of(ops);
    const int64_t row_tiles = rows / TILE_M + (g.groups < rows ? g.groups : rows);
    if (in == MB_F32) {
        const int64_t tiles =
            (rows / PLAIN_TILE + (g.groups < rows ? g.groups : rows)) * mb_cuda_blocks(g.width, PLAIN_TILE);
        MB_LAUNCH((forward_plain<IS_NN, T>), grid_of(cuda, tiles, 4), PLAIN_THREADS, 0, cuda->stream, weights,
                  g);
        return MB_CUDA_LAUNCHED();
    }
    if (!is_aligned) return launch_forward_tiles<2, IS_NN, false, T>(cuda, row_tiles, weights, g);
    if (is_hopper(cuda))
        return mb_cuda_groups_sm90(cuda, IS_NN, row_tiles, weights, g,
                                   sizeof(T) == sizeof(float) ? MB_F32 : MB_BF16);
    if (is_wide_better(cuda, row_tiles, g.width))
        return launch_forward_tiles<4, IS_NN, true, T>(cuda, row_tiles, weights, g);
    return launch_forward_tiles<2, IS_NN, true, T>(cuda, row_tiles, weights, g);
}

static bool is_aligned_to(const void *data, size_t bytes)
{
    return (uintptr_t)data % bytes == 0;
}

/* y = (accumulate ? y : 0) + x w (is_nn) or x w^T for all experts, 256 of them at a time. */
static mb_status forward(mb_ops *ops, bool is_nn, const mb_tensor *x, const int32_t *offsets, int64_t groups,
                         const void *const *w, bool accumulate, mb_tensor *y)
{
    group_forward g = {};
    const int64_t rows = mb_ops_rows(x);
    g.x = x->data, g.y = y->data;
    g.depth = mb_ops_width(x), g.width = mb_ops_width(y);
    g.accumulate = accumulate;
    if (rows == 0 || groups == 0 || g.width == 0) return MB_OK;
    bool is_aligned =
        g.depth % 8 == 0 && g.width % 8 == 0 && is_aligned_to(g.x, 16) && is_aligned_to(g.y, 16);
    for (int64_t e = 0; e < groups; e++) is_aligned = is_aligned && is_aligned_to(w[e], 16);
    g.is_wide = g.width % 2 == 0 && is_aligned_to(g.y, 8);
    for (int64_t first = 0; first < groups; first += GROUPS_MOST) {
        group_weights weights = {};
        g.offsets = offsets + first;
        g.groups = mb_cuda_min(groups - first, GROUPS_MOST);
        for (int64_t e = 0; e < g.groups; e++) weights.w[e] = w[first + e];
        MB_CUDA_BY_DTYPE(y->dtype, T, {
            if (is_nn)
                MB_CUDA_TRY((launch_forward<true, T>(ops, x->dtype, rows, is_aligned, weights, g)));
            else
                MB_CUDA_TRY((launch_forward<false, T>(ops, x->dtype, rows, is_aligned, weights, g)));
        });
    }
    return MB_OK;
}

template <int WN, bool IS_FAST>
static mb_status launch_gradient_tiles(const mb_cuda *cuda, const group_targets &targets,
                                       const group_backward &g)
{
    typedef tile_engine<WN, true, true, IS_FAST> engine;
    const int64_t tiles = g.targets * mb_cuda_blocks(g.n, TILE_M) * mb_cuda_blocks(g.k, engine::WIDTH);
    LAUNCH_TILES((gradient_tiles<WN, IS_FAST>), engine, tiles, 4 / WN, cuda->stream, targets, g);
    return MB_CUDA_LAUNCHED();
}

static mb_status launch_gradient(mb_ops *ops, mb_dtype in, bool is_aligned, const group_targets &targets,
                                 const group_backward &g)
{
    const mb_cuda *cuda = mb_cuda_of(ops);
    if (g.targets == 0) return MB_OK;
    if (in == MB_F32) {
        const int64_t tiles = g.targets * mb_cuda_blocks(g.n, PLAIN_TILE) * mb_cuda_blocks(g.k, PLAIN_TILE);
        MB_LAUNCH(gradient_plain, grid_of(cuda, tiles, 4), PLAIN_THREADS, 0, cuda->stream, targets, g);
        return MB_CUDA_LAUNCHED();
    }
    if (!is_aligned) return launch_gradient_tiles<2, false>(cuda, targets, g);
    if (is_hopper(cuda)) return mb_cuda_groups_dw_sm90(cuda, targets, g);
    if (is_wide_better(cuda, g.targets * mb_cuda_blocks(g.n, TILE_M), g.k))
        return launch_gradient_tiles<4, true>(cuda, targets, g);
    return launch_gradient_tiles<2, true>(cuda, targets, g);
}

/* ---- 5. entries ---- */

/* The weights in the dtype of the rows, then own kernels or cuBLAS. The pointers live on the host. */
static mb_status run_forward(mb_ops *ops, bool is_nn, const mb_tensor *x, const int32_t *offsets,
                             int64_t groups, mb_weight *const *w, bool accumulate, mb_tensor *y)
{
    if (mb_ops_rows(x) == 0 || groups == 0) return MB_OK;
    const void **values = (const void **)mb_calloc((size_t)groups, sizeof *values);
    if (values == NULL) return MB_ENOMEM;
    mb_status status = mb_cuda_weights(ops, w, groups, x->dtype, values);
    if (status == MB_OK)
        status = mb_cuda_of(ops)->groups == MB_CUDA_GROUPS_CUBLAS
                     ? mb_cuda_groups_by_blas(ops, !is_nn, x, offsets, groups, values, accumulate, y)
                     : forward(ops, is_nn, x, offsets, groups, values, accumulate, y);
    mb_free(values);
    return status == MB_OK ? MB_OK : mb_status_trace(status, __func__, __FILE__, __LINE__);
}

static mb_status cuda_grouped_linear(mb_ops *ops, const mb_tensor *x, const int32_t *offsets, int64_t groups,
                                     mb_weight *const *w, mb_tensor *y)
{
    return run_forward(ops, false, x, offsets, groups, w, false, y);
}

static mb_status cuda_grouped_linear_dx(mb_ops *ops, const mb_tensor *dy, const int32_t *offsets,
                                        int64_t groups, mb_weight *const *w, bool accumulate, mb_tensor *dx)
{
    return run_forward(ops, true, dy, offsets, groups, w, accumulate, dx);
}

static mb_status cuda_grouped_linear_dw(mb_ops *ops, const mb_tensor *dy, const mb_tensor *x,
                                        const int32_t *offsets, int64_t groups, mb_tensor *dw)
{
    group_backward g = {};
    group_targets targets = {};
    g.offsets = offsets, g.dy = dy->data, g.x = x->data;
    g.n = mb_ops_width(dy), g.k = mb_ops_width(x);
    if (mb_ops_rows(x) == 0 || g.n == 0 || g.k == 0) return MB_OK;
    if (mb_cuda_of(ops)->groups == MB_CUDA_GROUPS_CUBLAS)
        return mb_cuda_groups_dw_by_blas(ops, dy, x, offsets, groups, dw);
    const bool is_aligned = g.n % 8 == 0 && g.k % 8 == 0 && is_aligned_to(g.dy, 16) && is_aligned_to(g.x, 16);
    g.is_even = g.k % 2 == 0;
    for (int64_t e = 0; e < groups; e++)
        g.is_even = g.is_even && (dw[e].dims == 0 || is_aligned_to(dw[e].data, 8));
    for (int64_t e = 0; e < groups; e++) {
        if (dw[e].dims == 0) continue;
        targets.dw[g.targets] = mb_data<float>(&dw[e]);
        targets.expert[g.targets++] = (int32_t)e;
        if (g.targets < GROUPS_MOST) continue;
        MB_CUDA_TRY(launch_gradient(ops, x->dtype, is_aligned, targets, g));
        g.targets = 0;
    }
    return launch_gradient(ops, x->dtype, is_aligned, targets, g);
}

void mb_cuda_fill_grouped(mb_ops_table *table)
{
    table->grouped_linear = cuda_grouped_linear;
    table->grouped_linear_dx = cuda_grouped_linear_dx;
    table->grouped_linear_dw = cuda_grouped_linear_dw;
}
