/* attention_few: flash attention forward for segments with few queries over many kept keys (generation),
 * bf16.
 *
 * Layer: ops (cuda backend).  Uses: attention_tile.cuh.
 *
 * A block has at most 16 packed rows, one fragment: its warps share the keys. In each round every warp takes
 * one key tile, with its own room for keys and values, which is filled again as soon as it was read: the
 * kernel is bound by memory, and its loads never wait for other warps. The tiles' maxima are exchanged, so
 * that each warp has the running one up to its tile; the warps' products are put side by side and added in
 * the order of the tiles. This is the recurrence of attention_tile.cuh step by step: bits are those of the
 * kernel for many queries.
 *
 * 1. room   2. one tile   3. the warps' tiles together   4. kernel
 */
#ifndef MB_CUDA_ATTENTION_FEW_CUH
#define MB_CUDA_ATTENTION_FEW_CUH

#include "ops/cuda/attention_tile.cuh"

/* ---- 1. room ---- */

enum {
    MB_FEW_ROWS = 16,
    MB_FEW_SUMS = 4
}; /* rows of a tile at most; columns of partial sums beside its outputs */

template <int WIDTH, int WARPS> static size_t mb_attention_few_bytes(int rows)
{
    return (size_t)WARPS * 2 * MB_KEY_TILE * WIDTH * sizeof(mb_bf16) +
           (size_t)WARPS * rows * (WIDTH + MB_FEW_SUMS) * sizeof(float) +
           (size_t)WARPS * 2 * MB_FEW_ROWS * sizeof(float);
}

/* ---- 2. one tile ---- */

/* Tile `tile` of keys or values to the warp's room, when there is one. */
template <int WIDTH>
static __device__ __forceinline__ void few_load(mb_bf16 *room, const mb_bf16 *from, int64_t stride, int tile,
                                                int tiles, int keys, int width, int lane)
{
    const int key = tile * MB_KEY_TILE;
    if (tile < tiles)
        mb_tile_load<WIDTH, MB_KEY_TILE, 32>(room, from + key * stride, stride, keys - key, width, lane);
    mb_copy_async_commit();
}

/* Products [rows, WIDTH] and this lane's sums beside them to `out`. */
template <int WIDTH>
static __device__ __forceinline__ void few_values(uint32_t (*p)[MB_KEY_TILE / 16][4], mb_bf16 *values,
                                                  const float sum[2], int rows, float *out, int lane)
{
    float *top = out + lane / 4 * (WIDTH + MB_FEW_SUMS), *bottom = top + 8 * (WIDTH + MB_FEW_SUMS);
    const bool has_top = lane / 4 < rows, has_bottom = lane / 4 + 8 < rows;
#pragma unroll
    for (int n = 0; n < WIDTH / 16; n++) {
        float t[1][2][4] = {};
        mb_tile_columns<WIDTH, 1, MB_KEY_TILE>(t, p, values, n, lane);
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const int at = n * 16 + i * 8 + lane % 4 * 2;
            if (has_top) *(float2 *)(top + at) = make_float2(t[0][i][0], t[0][i][1]);
            if (has_bottom) *(float2 *)(bottom + at) = make_float2(t[0][i][2], t[0][i][3]);
        }
    }
    if (has_top) top[WIDTH + lane % 4] = sum[0];
    if (has_bottom) bottom[WIDTH + lane % 4] = sum[1];
}

/* ---- 3. the warps' tiles together ---- */

/* top: running maxima up to this round, then up to its end; own: the tile's, then the running one up to it;
 * and the factor of what came before the tile. */
template <int WARPS>
static __device__ __forceinline__ void few_running(const float *tops, float *factors, float top[2],
                                                   float own[2], float scale2, int warp, int lane)
{
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int row = lane / 4 + half * 8;
        float before = top[half];
        for (int w = 0; w < WARPS; w++) {
            const float other = tops[w * MB_FEW_ROWS + row];
            if (w < warp) before = fmaxf(before, other);
            top[half] = fmaxf(top[half], other);
        }
        own[half] = fmaxf(before, own[half]);
        if (lane % 4 == 0) factors[warp * MB_FEW_ROWS + row] = mb_softmax_factor(before, own[half], scale2);
    }
}

/* Add a tile's products to this thread's sum and outputs: elements thread + e THREADS of [rows, WIDTH]. */
template <int WIDTH, int THREADS>
static __device__ __forceinline__ void few_add(float *output, float *total, const float *product,
                                               const float *factor, int used)
{
    const int thread = (int)threadIdx.x, wide = WIDTH + MB_FEW_SUMS;
#pragma unroll
    for (int e = 0; e < MB_FEW_ROWS * WIDTH / THREADS; e++) {
        const int at = e * THREADS + thread, row = at / WIDTH;
        if (row < used) output[e] = fmaf(output[e], factor[row], product[row * wide + at % WIDTH]);
    }
    if (thread < used * MB_FEW_SUMS)
        *total = fmaf(*total, factor[thread / 4], product[thread / 4 * wide + WIDTH + thread % 4]);
}

/* `sums`: [16], free once all have passed the last barrier. */
template <int WIDTH, int THREADS>
static __device__ __forceinline__ void few_store(const mb_attention_call &call, const mb_attention_part &part,
                                                 int g, int first, int used, const float *output, float total,
                                                 const float top[2], float *sums, mb_bf16 *o, float *lse)
{
    const int thread = (int)threadIdx.x;
    total = mb_quad_sum(total);
    if (thread % 4 == 0 && thread < MB_FEW_ROWS * MB_FEW_SUMS) sums[thread / 4] = total;
    __syncthreads();
    for (int half = 0; half < 2; half++) {
        const int row = thread / 4 + half * 8;
        if (thread < 32 && thread % 4 == 0 && row < used)
            lse[mb_attention_row(call, part, g, first + row)] = fmaf(top[half], call.scale, logf(sums[row]));
    }
#pragma unroll
    for (int e = 0; e < MB_FEW_ROWS * WIDTH / THREADS; e++) {
        const int at = e * THREADS + thread, row = at / WIDTH, column = at % WIDTH;
        if (row < used && column < call.width)
            o[mb_attention_row(call, part, g, first + row) * call.width + column] =
                mb_to_bf16(output[e] * (1.0f / sums[row]));
    }
}

/* ---- 4. kernel ---- */

/* q [T, H, Dh], k, v [.., G, Dh] -> o, lse. Grid: tiles of `rows` (at most 16) packed rows, G. */
template <int WIDTH, int WARPS>
static __global__ void __launch_bounds__(WARPS * 32)
    attention_few(mb_attention_call call, int rows, const mb_bf16 *q, const mb_bf16 *k, const mb_bf16 *v,
                  mb_bf16 *o, float *lse)
{
    const int EACH = MB_FEW_ROWS * WIDTH / (WARPS * 32), WIDE = WIDTH + MB_FEW_SUMS;
    const int thread = (int)threadIdx.x, lane = thread % 32, warp = thread / 32, g = (int)blockIdx.y;
    MB_DYNAMIC_SHARED(mb_bf16, shared);
    mb_bf16 *keys = shared + warp * 2 * MB_KEY_TILE * WIDTH, *values = keys + MB_KEY_TILE * WIDTH;
    float *products = (float *)(shared + WARPS * 2 * MB_KEY_TILE * WIDTH); /* [WARPS, rows, WIDE] */
    float *tops = products + WARPS * rows * WIDE, *factors = tops + WARPS * MB_FEW_ROWS;
    const mb_attention_part part = mb_attention_find(call, call.share, rows, (int)blockIdx.x);
    const int first = part.tile * rows, end = part.queries * call.share;
    if (first >= end) return;
    const int used = end - first < rows ? end - first : rows;
    const int low = mb_attention_last_key(call, part, first);
    const int high = mb_attention_last_key(call, part, first + used - 1);
    const int begin = mb_attention_first_key(call, low) / MB_KEY_TILE, tiles = high / MB_KEY_TILE + 1;
    const int last[2] = {mb_attention_last_key(call, part, first + lane / 4),
                         mb_attention_last_key(call, part, first + lane / 4 + 8)};
    const int64_t stride = (int64_t)call.kv_heads * call.width;
    uint32_t query[WIDTH / 16][1][4];
    float output[EACH], top[2] = {-INFINITY, -INFINITY}, total = 0;
#pragma unroll
    for (int e = 0; e < EACH; e++) output[e] = 0;
    k += part.first * stride + g * call.width;
    v += part.first * stride + g * call.width;
    mb_tile_load_packed<WIDTH, MB_FEW_ROWS, WARPS * 32>((mb_bf16 *)products, q, call, part, g, first,
                                                        first + used, thread);
    mb_copy_async_commit();
    few_load<WIDTH>(keys, k, stride, begin + warp, tiles, part.keys, call.width, lane);
    few_load<WIDTH>(values, v, stride, begin + warp, tiles, part.keys, call.width, lane);
    mb_copy_async_wait<2>();
    __syncthreads(); /* the queries are here; they are gone after the round's first barrier */
#pragma unroll
    for (int kk = 0; kk < WIDTH / 16; kk++) mb_tile_a<WIDTH>(query[kk][0], (mb_bf16 *)products, kk, lane);
    for (int round = begin; round < tiles; round += WARPS) {
        const int tile = round + warp, key = tile * MB_KEY_TILE;
        const bool has_tile = tile < tiles;
        float s[1][MB_KEY_TILE / 8][4] = {}, own[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};
        mb_copy_async_wait<1>();
        __syncwarp();
        if (has_tile) {
#pragma unroll
            for (int kk = 0; kk < WIDTH / 16; kk++)
                mb_tile_step<WIDTH, 1, MB_KEY_TILE>(s, query[kk], keys, kk, lane);
            if (key + MB_KEY_TILE - 1 > low || key < mb_attention_first_key(call, high))
                mb_softmax_mask(s[0], key, last, call.window, lane);
            own[0] = mb_softmax_top(s[0], 0), own[1] = mb_softmax_top(s[0], 1);
        }
        if (lane % 4 == 0)
            tops[warp * MB_FEW_ROWS + lane / 4] = own[0], tops[warp * MB_FEW_ROWS + lane / 4 + 8] = own[1];
        __syncwarp();
        few_load<WIDTH>(keys, k, stride, tile + WARPS, tiles, part.keys, call.width, lane);
        __syncthreads(); /* the maxima are here, and the products of the round before were added */
        few_running<WARPS>(tops, factors, top, own, call.scale2, warp, lane);
        mb_copy_async_wait<1>();
        __syncwarp();
        if (has_tile) {
            uint32_t p[1][MB_KEY_TILE / 16][4];
            sum[0] = mb_softmax_exp(s[0], 0, own[0], call.scale2);
            sum[1] = mb_softmax_exp(s[0], 1, own[1], call.scale2);
            mb_tile_fragments<1, MB_KEY_TILE>(p, s);
            few_values<WIDTH>(p, values, sum, used, products + warp * rows * WIDE, lane);
        }
        __syncwarp();
        few_load<WIDTH>(values, v, stride, tile + WARPS, tiles, part.keys, call.width, lane);
        __syncthreads(); /* the products are here */
        for (int w = 0; w < WARPS && round + w < tiles; w++)
            few_add<WIDTH, WARPS * 32>(output, &total, products + w * rows * WIDE, factors + w * MB_FEW_ROWS,
                                       used);
    }
    few_store<WIDTH, WARPS * 32>(call, part, g, first, used, output, total, top, tops, o, lse);
}

#endif
