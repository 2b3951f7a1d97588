/* attention (cuda): flash attention forward, bf16 by tensor cores; the entry that chooses between it, the
 * kernel for few queries (attention_few.cuh) and the plain one (attention_plain.cuh: f32, and widths that are
 * no multiple of 8).
 *
 * A block has a tile of packed rows (attention_tile.cuh), M * 16 to a warp, whose queries stay in shared
 * memory. Keys and values come in tiles, each loaded while the other is worked on: values while scores are
 * formed, the next keys while probabilities meet values. Scores, probabilities and outputs stay in registers:
 * the accumulators of one product are the left factor of the next. Tiles that no row of the block sees are
 * not visited, nor by a warp those that none of its rows sees. Later tiles of a long segment have more keys
 * and start first. Source: Dao 2023, "FlashAttention-2: Faster Attention with Better Parallelism and Work
 * Partitioning".
 *
 * 1. one key tile   2. kernel   3. launches   4. entry
 */
#include "ops/cuda/attention_few.cuh"
#include "ops/cuda/attention_plain.cuh"

/* ---- 1. one key tile ---- */

/* What a warp keeps of its rows. */
template <int WIDTH, int M> struct forward_rows {
    float o[M][WIDTH / 8][4];
    float top[M][2], sum[M][2]; /* sum: of this lane's columns */
};

/* Scores of the tile at `key` to probabilities; `lasts`: the last keys its rows see; factor: of what was
 * before. */
template <int WIDTH, int M>
static __device__ __forceinline__ void
forward_softmax(const mb_attention_call &call, forward_rows<WIDTH, M> &rows, float (*s)[MB_KEY_TILE / 8][4],
                const int *lasts, int key, bool is_masked, float (*factor)[2], int lane)
{
#pragma unroll
    for (int i = 0; i < M; i++) {
        if (is_masked) {
            const int last[2] = {lasts[i * 16 + lane / 4], lasts[i * 16 + lane / 4 + 8]};
            mb_softmax_mask(s[i], key, last, call.window, lane);
        }
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const float top = fmaxf(rows.top[i][half], mb_softmax_top(s[i], half));
            factor[i][half] = mb_softmax_factor(rows.top[i][half], top, call.scale2);
            rows.sum[i][half] =
                fmaf(rows.sum[i][half], factor[i][half], mb_softmax_exp(s[i], half, top, call.scale2));
            rows.top[i][half] = top;
        }
    }
}

/* o = o factor + p values */
template <int WIDTH, int M>
static __device__ __forceinline__ void forward_values(forward_rows<WIDTH, M> &rows,
                                                      uint32_t (*p)[MB_KEY_TILE / 16][4], mb_bf16 *values,
                                                      float (*factor)[2], int lane)
{
#pragma unroll
    for (int n = 0; n < WIDTH / 16; n++) {
        float t[M][2][4] = {};
        mb_tile_columns<WIDTH, M, MB_KEY_TILE>(t, p, values, n, lane);
#pragma unroll
        for (int i = 0; i < M; i++)
#pragma unroll
            for (int e = 0; e < 8; e++) {
                float *o = &rows.o[i][2 * n + e / 4][e % 4];
                *o = fmaf(*o, factor[i][e % 4 / 2], t[i][e / 4][e % 4]);
            }
    }
}

/* ---- 2. kernel ---- */

/* The warp's rows to o (through its own rows of the query tile, whose values are done with) and lse. */
template <int WIDTH, int M>
static __device__ __forceinline__ void
forward_store(const mb_attention_call &call, const mb_attention_part &part, forward_rows<WIDTH, M> &rows,
              mb_bf16 *tile, int g, int first, int end, mb_bf16 *o, float *lse, int lane)
{
    const int chunks = WIDTH / 8;
#pragma unroll
    for (int i = 0; i < M; i++) {
        float inverse[2];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const float sum = mb_quad_sum(rows.sum[i][half]);
            const int row = first + i * 16 + half * 8 + lane / 4;
            inverse[half] = 1.0f / sum;
            if (lane % 4 == 0 && row < end)
                lse[mb_attention_row(call, part, g, row)] = fmaf(rows.top[i][half], call.scale, logf(sum));
        }
        mb_tile_put<WIDTH>(tile + i * 16 * WIDTH, rows.o[i], inverse[0], inverse[1], lane);
    }
    __syncwarp();
    for (int at = lane; at < M * 16 * chunks; at += 32) {
        const int row = at / chunks, chunk = at % chunks;
        if (first + row >= end || chunk * 8 >= call.width) continue;
        *(uint4 *)(o + mb_attention_row(call, part, g, first + row) * call.width + chunk * 8) =
            *(const uint4 *)mb_tile_at<WIDTH>(tile, row, chunk);
    }
}

template <int WIDTH, int M> static __device__ __forceinline__ void forward_start(forward_rows<WIDTH, M> &rows)
{
#pragma unroll
    for (int i = 0; i < M; i++) {
        rows.top[i][0] = rows.top[i][1] = -INFINITY;
        rows.sum[i][0] = rows.sum[i][1] = 0;
#pragma unroll
        for (int n = 0; n < WIDTH / 8; n++)
            rows.o[i][n][0] = rows.o[i][n][1] = rows.o[i][n][2] = rows.o[i][n][3] = 0;
    }
}

/* q [T, H, Dh], k, v [.., G, Dh] -> o, lse. Grid: tiles of WARPS * M * 16 packed rows, G. */
template <int WIDTH, int M, int WARPS, int BLOCKS>
static __global__ void __launch_bounds__(WARPS * 32, BLOCKS)
    attention_forward(mb_attention_call call, const mb_bf16 *q, const mb_bf16 *k, const mb_bf16 *v,
                      mb_bf16 *o, float *lse)
{
    const int ROWS = WARPS * M * 16, lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    const int thread = (int)threadIdx.x, g = (int)blockIdx.y;
    MB_DYNAMIC_SHARED(mb_bf16, queries);
    mb_bf16 *keys = queries + ROWS * WIDTH, *values = keys + MB_KEY_TILE * WIDTH;
    int *lasts = (int *)(values + MB_KEY_TILE * WIDTH); /* [ROWS] */
    const mb_attention_part part =
        mb_attention_find(call, call.share, ROWS, (int)(gridDim.x - 1 - blockIdx.x));
    const int first = part.tile * ROWS, end = part.queries * call.share, own = first + warp * M * 16;
    if (first >= end) return;
    const int block_last = mb_attention_last_key(call, part, first + ROWS - 1);
    const int tiles = block_last / MB_KEY_TILE + 1;
    const int64_t stride = (int64_t)call.kv_heads * call.width;
    /* Of the warp's rows: the first and last see the keys up to these. */
    const int low = mb_attention_last_key(call, part, own),
              high = mb_attention_last_key(call, part, own + M * 16 - 1);
    int tile = mb_attention_first_key(call, mb_attention_last_key(call, part, first)) / MB_KEY_TILE;
    forward_rows<WIDTH, M> rows;
    forward_start(rows);
    for (int row = thread; row < ROWS; row += WARPS * 32)
        lasts[row] = mb_attention_last_key(call, part, first + row);
    k += part.first * stride + g * call.width;
    v += part.first * stride + g * call.width;
    mb_tile_load_packed<WIDTH, WARPS * M * 16, WARPS * 32>(queries, q, call, part, g, first, end, thread);
    mb_tile_load<WIDTH, MB_KEY_TILE, WARPS * 32>(keys, k + tile * MB_KEY_TILE * stride, stride,
                                                 part.keys - tile * MB_KEY_TILE, call.width, thread);
    mb_copy_async_commit();
    for (; tile < tiles; tile++) {
        const int key = tile * MB_KEY_TILE;
        const bool is_seen = key <= high && key + MB_KEY_TILE > mb_attention_first_key(call, low);
        const bool is_masked = key + MB_KEY_TILE - 1 > low || key < mb_attention_first_key(call, high);
        uint32_t p[M][MB_KEY_TILE / 16][4];
        float factor[M][2];
        mb_copy_async_wait<0>();
        __syncthreads(); /* the keys are here, and all are done with the values before */
        mb_tile_load<WIDTH, MB_KEY_TILE, WARPS * 32>(values, v + key * stride, stride, part.keys - key,
                                                     call.width, thread);
        mb_copy_async_commit();
        if (is_seen) {
            float s[M][MB_KEY_TILE / 8][4];
            mb_tile_product_nt<WIDTH, M, MB_KEY_TILE>(s, queries + warp * M * 16 * WIDTH, keys, lane);
            forward_softmax(call, rows, s, lasts + warp * M * 16, key, is_masked, factor, lane);
            mb_tile_fragments<M, MB_KEY_TILE>(p, s);
        }
        mb_copy_async_wait<0>();
        __syncthreads(); /* the values are here, and all are done with the keys */
        if (tile + 1 < tiles)
            mb_tile_load<WIDTH, MB_KEY_TILE, WARPS * 32>(keys, k + (key + MB_KEY_TILE) * stride, stride,
                                                         part.keys - key - MB_KEY_TILE, call.width, thread);
        mb_copy_async_commit();
        if (is_seen) forward_values(rows, p, values, factor, lane);
    }
    forward_store(call, part, rows, queries + warp * M * 16 * WIDTH, g, own, end, o, lse, lane);
}

/* ---- 3. launches ---- */

typedef struct attention_tensors {
    const mb_bf16 *q, *k, *v;
    mb_bf16 *o;
    float *lse;
} attention_tensors;

template <int WIDTH, int M, int WARPS, int BLOCKS>
static mb_status launch_forward(mb_ops *ops, const mb_attention_call &call, int64_t rows,
                                const attention_tensors &t)
{
    const size_t bytes =
        (size_t)(WARPS * M * 16 + 2 * MB_KEY_TILE) * WIDTH * sizeof(mb_bf16) + WARPS * M * 16 * sizeof(int);
    const dim3 grid((unsigned)mb_attention_tiles(&call, rows, call.share, WARPS * M * 16),
                    (unsigned)call.kv_heads);
    MB_CUDA_CALL(cudaFuncSetAttribute(attention_forward<WIDTH, M, WARPS, BLOCKS>,
                                      cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes));
    MB_LAUNCH((attention_forward<WIDTH, M, WARPS, BLOCKS>), grid, WARPS * 32, bytes, mb_cuda_of(ops)->stream,
              call, t.q, t.k, t.v, t.o, t.lse);
    return MB_CUDA_LAUNCHED();
}

template <int WIDTH, int WARPS>
static mb_status launch_few(mb_ops *ops, const mb_attention_call &call, dim3 grid, int tile,
                            const attention_tensors &t)
{
    const size_t bytes = mb_attention_few_bytes<WIDTH, WARPS>(tile);
    MB_CUDA_CALL(cudaFuncSetAttribute(attention_few<WIDTH, WARPS>,
                                      cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes));
    MB_LAUNCH((attention_few<WIDTH, WARPS>), grid, WARPS * 32, bytes, mb_cuda_of(ops)->stream, call, tile,
              t.q, t.k, t.v, t.o, t.lse);
    return MB_CUDA_LAUNCHED();
}

/* Where every block has a processor for itself, it has twice the warps and memory. */
static mb_status forward_few(mb_ops *ops, const mb_attention_call &call, int64_t rows,
                             const attention_tensors &t)
{
    const int tile = rows * call.share <= (int64_t)call.segments * 8 ? 8 : MB_FEW_ROWS;
    const dim3 grid((unsigned)mb_attention_tiles(&call, rows, call.share, tile), (unsigned)call.kv_heads);
    const bool is_alone = (int64_t)call.segments * call.kv_heads <= mb_cuda_of(ops)->processors;
    if (call.width <= 64 && is_alone) return launch_few<64, 8>(ops, call, grid, tile, t);
    if (call.width <= 64) return launch_few<64, 4>(ops, call, grid, tile, t);
    if (call.width <= 128 && is_alone) return launch_few<128, 4>(ops, call, grid, tile, t);
    if (call.width <= 128) return launch_few<128, 2>(ops, call, grid, tile, t);
    return launch_few<256, 2>(ops, call, grid, tile, t);
}

/* Segments have few queries over many keys: all together they fill at most two small tiles each. */
static bool is_few(const mb_attention_call &call, int64_t rows)
{
    return call.opt_key_first != NULL && rows * call.share <= (int64_t)call.segments * 2 * MB_FEW_ROWS;
}

static mb_status forward_bf16(mb_ops *ops, const mb_attention_call &call, int64_t rows,
                              const attention_tensors &t)
{
    if (is_few(call, rows)) return forward_few(ops, call, rows, t);
    if (call.width <= 32) return launch_forward<32, 2, 4, 3>(ops, call, rows, t);
    if (call.width <= 64) return launch_forward<64, 2, 4, 3>(ops, call, rows, t);
    if (call.width <= 96) return launch_forward<96, 2, 4, 2>(ops, call, rows, t);
    if (call.width <= 128) return launch_forward<128, 2, 4, 2>(ops, call, rows, t);
    return launch_forward<256, 1, 4, 1>(ops, call, rows, t);
}

template <typename T>
static mb_status forward_plain(mb_ops *ops, const mb_attention_call &call, int64_t rows, const mb_tensor *q,
                               const mb_tensor *k, const mb_tensor *v, mb_tensor *o, mb_tensor *lse)
{
    const dim3 grid((unsigned)mb_attention_tiles(&call, rows, call.share, MB_PLAIN_TILE),
                    (unsigned)call.kv_heads, (unsigned)mb_cuda_blocks(call.width, MB_PLAIN_COLUMNS));
    MB_LAUNCH((attention_plain<T>), grid, MB_PLAIN_THREADS, 0, mb_cuda_of(ops)->stream, call,
              mb_data<const T>(q), mb_data<const T>(k), mb_data<const T>(v), mb_data<T>(o),
              mb_data<float>(lse));
    return MB_CUDA_LAUNCHED();
}

/* ---- 4. entry ---- */

static mb_status cuda_attention(mb_ops *ops, const mb_attention_shape *shape, const mb_tensor *q,
                                const mb_tensor *k, const mb_tensor *v, mb_tensor *o, mb_tensor *lse)
{
    const int64_t rows = mb_ops_rows(q);
    const void *const data[] = {q->data, k->data, v->data, o->data};
    mb_attention_call call = {};
    if (mb_tensor_count(q) == 0) return MB_OK;
    MB_CUDA_TRY(mb_attention_call_of(shape, rows, &call));
    if (mb_attention_is_tiled(call.width, q->dtype, 4, data)) {
        const attention_tensors t = {mb_data<const mb_bf16>(q), mb_data<const mb_bf16>(k),
                                     mb_data<const mb_bf16>(v), mb_data<mb_bf16>(o), mb_data<float>(lse)};
        return forward_bf16(ops, call, rows, t);
    }
    MB_CUDA_BY_DTYPE(q->dtype, T, { return forward_plain<T>(ops, call, rows, q, k, v, o, lse); });
}

void mb_cuda_fill_attention(mb_ops_table *table)
{
    table->attention = cuda_attention;
}
