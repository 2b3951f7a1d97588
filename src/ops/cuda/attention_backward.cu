/* attention_backward (cuda): gradients of causal attention, bf16 by tensor cores; the entry that chooses
 * between this and the plain kernels (attention_backward_plain.cuh).
 *
 * Probabilities are formed again from scores and lse, so nothing of the forward's is kept but o and lse:
 * p = exp(s - lse);  dv = p^T do;  dp = do v^T;  ds = p (dp - delta);  dk = scale ds^T q;  dq = scale ds k
 * with delta the sum over a row of do * o, by a kernel of its own. Two passes, so that every sum is one
 * block's and has a fixed order, without atomics: one over tiles of keys for dk and dv, which meets the
 * packed rows of all query heads of its key head (attention_tile.cuh), and one over tiles of packed rows for
 * dq. Both form scores in registers; the first forms them transposed (keys are rows), so that p^T and ds^T
 * are left factors as they lie. p and ds are rounded to bf16 for the products, sums are f32. Source: Dao
 * 2023, "FlashAttention-2", algorithm 2.
 *
 * 1. delta   2. keys and values   3. queries   4. launches   5. entry
 */
#include "ops/cuda/attention_backward_plain.cuh"

typedef struct backward_tensors {
    const mb_bf16 *q, *k, *v, *d_o;
    const float *lse, *delta;
    mb_bf16 *dq, *dk, *dv;
} backward_tensors;

/* ---- 1. delta ---- */

/* delta[T * H] of o, d_o [T * H, width]; a warp a row. */
template <typename T>
static __global__ void __launch_bounds__(256)
    attention_delta(int64_t rows, int width, const T *o, const T *d_o, float *delta)
{
    const int lane = (int)threadIdx.x % 32;
    const int64_t row = (int64_t)blockIdx.x * 8 + threadIdx.x / 32;
    float sum = 0;
    for (int i = lane; row < rows && i < width; i += 32)
        sum = fmaf(mb_float(o[row * width + i]), mb_float(d_o[row * width + i]), sum);
    sum = mb_warp_sum(sum);
    if (lane == 0 && row < rows) delta[row] = sum;
}

/* ---- 2. keys and values ---- */

/* What a row tile needs beside q and do: of each row lse (for exp2), delta, and its query. */
template <int ROWS> struct backward_row_room {
    float lse2[ROWS], delta[ROWS];
    int query[ROWS];
};

/* Packed rows first.. of q, and of do behind them, to shared memory: on the way until the next wait. */
template <int WIDTH, int ROWS, int THREADS>
static __device__ __forceinline__ void backward_load(const mb_attention_call &call,
                                                     const mb_attention_part &part, const backward_tensors &t,
                                                     int g, int first, int end, mb_bf16 *room)
{
    const int chunks = WIDTH / 8;
#pragma unroll 2
    for (int at = (int)threadIdx.x; at < ROWS * chunks; at += THREADS) {
        const int row = at / chunks, chunk = at % chunks;
        const bool is_valid = first + row < end && chunk * 8 < call.width;
        int64_t from = 0;
        if (is_valid) from = mb_attention_row(call, part, g, first + row) * call.width + chunk * 8;
        mb_copy_async_16(mb_tile_at<WIDTH>(room, row, chunk), t.q + from, is_valid);
        mb_copy_async_16(mb_tile_at<WIDTH>(room + ROWS * WIDTH, row, chunk), t.d_o + from, is_valid);
    }
    mb_copy_async_commit();
}

/* A row past the end has probability 0. */
typedef struct backward_row {
    float lse2, delta;
    int query;
} backward_row;
static __device__ __forceinline__ backward_row backward_read_row(const mb_attention_call &call,
                                                                 const mb_attention_part &part,
                                                                 const backward_tensors &t, int g, int r,
                                                                 int end)
{
    backward_row row = {INFINITY, 0, part.queries};
    if (r < end) {
        const int64_t at = mb_attention_row(call, part, g, r);
        row.lse2 = t.lse[at] * MB_LOG2E, row.delta = t.delta[at], row.query = r / call.share;
    }
    return row;
}

/* s^T to p^T: this lane's keys lie at key and key + 8 of each 16, its rows at lane % 4 * 2 and + 1 of each
 * 8. */
template <int M, int ROWS>
static __device__ __forceinline__ void
backward_probabilities(float (*s)[ROWS / 8][4], const backward_row_room<ROWS> &rows, float scale2, int key,
                       int window, bool is_masked, int lane)
{
#pragma unroll
    for (int n = 0; n < ROWS / 8; n++) {
        const int at = n * 8 + lane % 4 * 2;
        const float2 lse2 = *(const float2 *)&rows.lse2[at];
#pragma unroll
        for (int i = 0; i < M; i++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                s[i][n][e] = mb_exp2(fmaf(s[i][n][e], scale2, e % 2 ? -lse2.y : -lse2.x));
        if (!is_masked) continue;
        const int2 query = *(const int2 *)&rows.query[at];
#pragma unroll
        for (int i = 0; i < M; i++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                const int back = (e % 2 ? query.y : query.x) - (key + i * 16 + e / 2 * 8);
                if (back < 0 || back >= window) s[i][n][e] = 0;
            }
    }
}

/* dp^T to ds^T: p (dp - delta). */
template <int M, int ROWS>
static __device__ __forceinline__ void backward_scores(float (*dp)[ROWS / 8][4], float (*p)[ROWS / 8][4],
                                                       const backward_row_room<ROWS> &rows, int lane)
{
#pragma unroll
    for (int n = 0; n < ROWS / 8; n++) {
        const float2 delta = *(const float2 *)&rows.delta[n * 8 + lane % 4 * 2];
#pragma unroll
        for (int i = 0; i < M; i++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                dp[i][n][e] = p[i][n][e] * (dp[i][n][e] - (e % 2 ? delta.y : delta.x));
    }
}

/* Accumulators of 16 rows of a warp to rows of `out`, through the warp's rows of a tile. */
template <int WIDTH, int COLUMNS>
static __device__ __forceinline__ void backward_store(float (*d)[4], float factor, mb_bf16 *tile,
                                                      mb_bf16 *out, int64_t stride, int count, int columns,
                                                      int lane)
{
    const int chunks = COLUMNS / 8;
    __syncwarp();
    mb_tile_put<COLUMNS>(tile, d, factor, factor, lane);
    __syncwarp();
    for (int at = lane; at < 16 * chunks; at += 32) {
        const int row = at / chunks, chunk = at % chunks;
        if (row >= count || chunk * 8 >= columns) continue;
        *(uint4 *)(out + row * stride + chunk * 8) = *(const uint4 *)mb_tile_at<COLUMNS>(tile, row, chunk);
    }
}

/* dk, dv [T, G, Dh]. Grid: tiles of WARPS * M * 16 keys, G, tiles of COLUMNS columns of dk and dv. ROWS
 * packed rows are met at a time; the next are on their way meanwhile. */
template <int WIDTH, int COLUMNS, int M, int ROWS, int WARPS, int BLOCKS>
static __global__ void __launch_bounds__(WARPS * 32, BLOCKS)
    attention_backward_keys(mb_attention_call call, backward_tensors t)
{
    const int KEYS = WARPS * M * 16, lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    const int g = (int)blockIdx.y, column = (int)blockIdx.z * COLUMNS;
    MB_DYNAMIC_SHARED(mb_bf16, keys);
    mb_bf16 *values = keys + KEYS * WIDTH, *rows = values + KEYS * WIDTH; /* rows: 2 of q, do [ROWS, WIDTH] */
    backward_row_room<ROWS> *room = (backward_row_room<ROWS> *)(rows + 4 * ROWS * WIDTH); /* 2 */
    mb_bf16 *own_keys = keys + warp * M * 16 * WIDTH, *own_values = values + warp * M * 16 * WIDTH;
    const mb_attention_part part = mb_attention_find(call, 1, KEYS, (int)blockIdx.x);
    const int first_key = part.tile * KEYS, own = first_key + warp * M * 16;
    if (first_key >= part.keys) return;
    const int last_key = part.keys - first_key > KEYS ? first_key + KEYS - 1 : part.keys - 1;
    const int last_query =
        part.queries - 1 - last_key < call.window ? part.queries - 1 : last_key + call.window - 1;
    const int end = (last_query + 1) * call.share;
    const int64_t stride = (int64_t)call.kv_heads * call.width;
    const int64_t at = (part.first + own) * stride + g * call.width + column;
    float dk[M][COLUMNS / 8][4] = {}, dv[M][COLUMNS / 8][4] = {};
    int first = first_key * call.share, stage = 0;
    t.k += (part.first + first_key) * stride + g * call.width;
    t.v += (part.first + first_key) * stride + g * call.width;
    mb_tile_load<WIDTH, WARPS * M * 16, WARPS * 32>(keys, t.k, stride, part.keys - first_key, call.width,
                                                    (int)threadIdx.x);
    mb_tile_load<WIDTH, WARPS * M * 16, WARPS * 32>(values, t.v, stride, part.keys - first_key, call.width,
                                                    (int)threadIdx.x);
    backward_load<WIDTH, ROWS, WARPS * 32>(call, part, t, g, first, end, rows);
    if (threadIdx.x < ROWS) {
        const backward_row row = backward_read_row(call, part, t, g, first + (int)threadIdx.x, end);
        room[0].lse2[threadIdx.x] = row.lse2, room[0].delta[threadIdx.x] = row.delta;
        room[0].query[threadIdx.x] = row.query;
    }
    for (; first < end; first += ROWS, stage ^= 1) {
        mb_bf16 *q = rows + stage * 2 * ROWS * WIDTH, *d_o = q + ROWS * WIDTH;
        const int next = first + ROWS, last = (next < end ? next : end) - 1;
        const int oldest = first / call.share, newest = last / call.share;
        backward_row row = {};
        mb_copy_async_wait<0>();
        __syncthreads(); /* the rows are here, and all are done with those before */
        if (next < end) {
            backward_load<WIDTH, ROWS, WARPS * 32>(call, part, t, g, next, end,
                                                   rows + (stage ^ 1) * 2 * ROWS * WIDTH);
            if (threadIdx.x < ROWS) row = backward_read_row(call, part, t, g, next + (int)threadIdx.x, end);
        }
        if (newest >= own &&
            oldest - (own + M * 16 - 1) < call.window) { /* some row sees some of the warp's keys */
            const bool is_masked = oldest < own + M * 16 - 1 || newest - own >= call.window;
            float p[M][ROWS / 8][4], dp[M][ROWS / 8][4];
            uint32_t left[M][ROWS / 16][4];
            mb_tile_product_nt<WIDTH, M, ROWS>(p, own_keys, q, lane);
            backward_probabilities<M, ROWS>(p, room[stage], call.scale2, own + lane / 4, call.window,
                                            is_masked, lane);
            mb_tile_fragments<M, ROWS>(left, p);
            mb_tile_product_nn<WIDTH, M, ROWS, COLUMNS>(dv, left, d_o + column, lane);
            mb_tile_product_nt<WIDTH, M, ROWS>(dp, own_values, d_o, lane);
            backward_scores<M, ROWS>(dp, p, room[stage], lane);
            mb_tile_fragments<M, ROWS>(left, dp);
            mb_tile_product_nn<WIDTH, M, ROWS, COLUMNS>(dk, left, q + column, lane);
        }
        if (next < end && threadIdx.x < ROWS) {
            room[stage ^ 1].lse2[threadIdx.x] = row.lse2, room[stage ^ 1].delta[threadIdx.x] = row.delta;
            room[stage ^ 1].query[threadIdx.x] = row.query;
        }
    }
#pragma unroll
    for (int i = 0; i < M; i++) {
        const int count = last_key + 1 - own - i * 16, columns = call.width - column;
        backward_store<WIDTH, COLUMNS>(dk[i], call.scale, own_keys + i * 16 * WIDTH,
                                       t.dk + at + i * 16 * stride, stride, count, columns, lane);
        backward_store<WIDTH, COLUMNS>(dv[i], 1.0f, own_values + i * 16 * WIDTH, t.dv + at + i * 16 * stride,
                                       stride, count, columns, lane);
    }
}

/* ---- 3. queries ---- */

/* p of s, for rows lane / 4 and + 8: exp2 with their lse. */
template <int KEYS>
static __device__ __forceinline__ void backward_row_probabilities(float (*s)[4], const backward_row row[2],
                                                                  float scale2, int key, int window,
                                                                  bool is_masked, int lane)
{
#pragma unroll
    for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const int back = row[e / 2].query - (key + n * 8 + lane % 4 * 2 + e % 2);
            s[n][e] = mb_exp2(fmaf(s[n][e], scale2, -row[e / 2].lse2));
            if (is_masked && (back < 0 || back >= window)) s[n][e] = 0;
        }
}

/* KEYS keys and their values to shared memory, on the way until the next wait. */
template <int WIDTH, int KEYS, int THREADS>
static __device__ __forceinline__ void backward_load_keys(const mb_attention_call &call,
                                                          const mb_attention_part &part,
                                                          const backward_tensors &t, int key, mb_bf16 *room)
{
    const int64_t stride = (int64_t)call.kv_heads * call.width;
    mb_tile_load<WIDTH, KEYS, THREADS>(room, t.k + key * stride, stride, part.keys - key, call.width,
                                       (int)threadIdx.x);
    mb_tile_load<WIDTH, KEYS, THREADS>(room + KEYS * WIDTH, t.v + key * stride, stride, part.keys - key,
                                       call.width, (int)threadIdx.x);
    mb_copy_async_commit();
}

/* dq [T, H, Dh]. Grid: tiles of WARPS * M * 16 packed rows, G. KEYS keys are met at a time; with 2 stages
 * the next are on their way meanwhile, with 1 the other blocks of the processor fill the wait. */
template <int WIDTH, int M, int KEYS, int WARPS, int BLOCKS>
static __global__ void __launch_bounds__(WARPS * 32, BLOCKS)
    attention_backward_queries(mb_attention_call call, backward_tensors t, int stages)
{
    const int ROWS = WARPS * M * 16, lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    const int g = (int)blockIdx.y;
    MB_DYNAMIC_SHARED(mb_bf16, queries);
    mb_bf16 *rooms = queries + 2 * ROWS * WIDTH; /* stages of k, v [KEYS, WIDTH] */
    mb_bf16 *own_q = queries + warp * M * 16 * WIDTH, *own_do = own_q + ROWS * WIDTH;
    const mb_attention_part part =
        mb_attention_find(call, call.share, ROWS, (int)(gridDim.x - 1 - blockIdx.x));
    const int first = part.tile * ROWS, end = part.queries * call.share, own = first + warp * M * 16;
    if (first >= end) return;
    const int oldest = mb_attention_last_key(call, part, own);
    const int newest = mb_attention_last_key(call, part, own + M * 16 - 1);
    const int last_key = mb_attention_last_key(call, part, first + ROWS - 1);
    int key = mb_attention_first_key(call, mb_attention_last_key(call, part, first)) / KEYS * KEYS, stage = 0;
    float dq[M][WIDTH / 8][4] = {};
    backward_row row[M][2];
#pragma unroll
    for (int i = 0; i < 2 * M; i++)
        row[i / 2][i % 2] = backward_read_row(call, part, t, g, own + i / 2 * 16 + i % 2 * 8 + lane / 4, end);
    t.k += part.first * (int64_t)call.kv_heads * call.width + g * call.width;
    t.v += part.first * (int64_t)call.kv_heads * call.width + g * call.width;
    backward_load<WIDTH, WARPS * M * 16, WARPS * 32>(call, part, t, g, first, end, queries);
    backward_load_keys<WIDTH, KEYS, WARPS * 32>(call, part, t, key, rooms);
    for (; key <= last_key; key += KEYS, stage ^= stages - 1) {
        mb_bf16 *keys = rooms + stage * 2 * KEYS * WIDTH, *values = keys + KEYS * WIDTH;
        mb_copy_async_wait<0>();
        __syncthreads(); /* the keys are here, and all are done with those before */
        if (stages == 2 && key + KEYS <= last_key)
            backward_load_keys<WIDTH, KEYS, WARPS * 32>(call, part, t, key + KEYS,
                                                        rooms + (stage ^ 1) * 2 * KEYS * WIDTH);
        if (key <= newest && key + KEYS > mb_attention_first_key(call, oldest)) {
            const bool is_masked = key + KEYS - 1 > oldest || key < mb_attention_first_key(call, newest);
            float p[M][KEYS / 8][4], dp[M][KEYS / 8][4];
            uint32_t left[M][KEYS / 16][4];
            mb_tile_product_nt<WIDTH, M, KEYS>(p, own_q, keys, lane);
#pragma unroll
            for (int i = 0; i < M; i++)
                backward_row_probabilities<KEYS>(p[i], row[i], call.scale2, key, call.window, is_masked,
                                                 lane);
            mb_tile_product_nt<WIDTH, M, KEYS>(dp, own_do, values, lane);
#pragma unroll
            for (int i = 0; i < M * KEYS / 8 * 4; i++) {
                const int m = i / (KEYS / 2), n = i / 4 % (KEYS / 8), e = i % 4;
                dp[m][n][e] = p[m][n][e] * (dp[m][n][e] - row[m][e / 2].delta);
            }
            mb_tile_fragments<M, KEYS>(left, dp);
            mb_tile_product_nn<WIDTH, M, KEYS, WIDTH>(dq, left, keys, lane);
        }
        if (stages == 2) continue;
        __syncthreads(); /* all are done with the keys */
        if (key + KEYS <= last_key)
            backward_load_keys<WIDTH, KEYS, WARPS * 32>(call, part, t, key + KEYS, rooms);
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < M; i++)
        mb_tile_put<WIDTH>(own_q + i * 16 * WIDTH, dq[i], call.scale, call.scale, lane);
    __syncwarp();
    for (int at = lane; at < M * 16 * (WIDTH / 8); at += 32) {
        const int r = at / (WIDTH / 8), chunk = at % (WIDTH / 8);
        if (own + r >= end || chunk * 8 >= call.width) continue;
        *(uint4 *)(t.dq + mb_attention_row(call, part, g, own + r) * call.width + chunk * 8) =
            *(const uint4 *)mb_tile_at<WIDTH>(own_q, r, chunk);
    }
}

/* ---- 4. launches ---- */

template <int WIDTH, int COLUMNS, int M, int ROWS, int WARPS, int BLOCKS>
static mb_status launch_keys(mb_ops *ops, const mb_attention_call &call, int64_t rows,
                             const backward_tensors &t)
{
    const int keys = WARPS * M * 16;
    const size_t bytes =
        (size_t)(2 * keys + 4 * ROWS) * WIDTH * sizeof(mb_bf16) + 2 * sizeof(backward_row_room<ROWS>);
    const dim3 grid((unsigned)mb_attention_tiles(&call, rows, 1, keys), (unsigned)call.kv_heads,
                    (unsigned)mb_cuda_blocks(call.width, COLUMNS));
    MB_CUDA_CALL(cudaFuncSetAttribute(attention_backward_keys<WIDTH, COLUMNS, M, ROWS, WARPS, BLOCKS>,
                                      cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes));
    MB_LAUNCH((attention_backward_keys<WIDTH, COLUMNS, M, ROWS, WARPS, BLOCKS>), grid, WARPS * 32, bytes,
              mb_cuda_of(ops)->stream, call, t);
    return MB_CUDA_LAUNCHED();
}

template <int WIDTH, int M, int KEYS, int WARPS, int BLOCKS>
static mb_status launch_queries(mb_ops *ops, const mb_attention_call &call, int64_t rows,
                                const backward_tensors &t)
{
    enum { OWN = 1024 }; /* bytes of shared memory that the chip keeps of each block's */
    const int tile = WARPS * M * 16;
    const size_t fixed = (size_t)2 * tile * WIDTH * sizeof(mb_bf16),
                 room = (size_t)2 * KEYS * WIDTH * sizeof(mb_bf16);
    const int stages = BLOCKS * (fixed + 2 * room + OWN) <= mb_cuda_of(ops)->shared_bytes + OWN ? 2 : 1;
    const size_t bytes = fixed + (size_t)stages * room;
    const dim3 grid((unsigned)mb_attention_tiles(&call, rows, call.share, tile), (unsigned)call.kv_heads);
    MB_CUDA_CALL(cudaFuncSetAttribute(attention_backward_queries<WIDTH, M, KEYS, WARPS, BLOCKS>,
                                      cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes));
    MB_LAUNCH((attention_backward_queries<WIDTH, M, KEYS, WARPS, BLOCKS>), grid, WARPS * 32, bytes,
              mb_cuda_of(ops)->stream, call, t, stages);
    return MB_CUDA_LAUNCHED();
}

static mb_status backward_bf16(mb_ops *ops, const mb_attention_call &call, int64_t rows,
                               const backward_tensors &t)
{
    if (call.width <= 64) {
        MB_CUDA_TRY((launch_keys<64, 64, 2, 32, 4, 2>(ops, call, rows, t)));
        return launch_queries<64, 2, 32, 4, 3>(ops, call, rows, t);
    }
    if (call.width <= 96) {
        MB_CUDA_TRY((launch_keys<96, 96, 1, 64, 8, 1>(ops, call, rows, t)));
        return launch_queries<96, 2, 32, 4, 2>(ops, call, rows, t);
    }
    if (call.width <= 128) {
        MB_CUDA_TRY((launch_keys<128, 128, 1, 64, 8, 1>(ops, call, rows, t)));
        return launch_queries<128, 2, 32, 4, 2>(ops, call, rows, t);
    }
    MB_CUDA_TRY((launch_keys<256, 128, 1, 32, 4, 1>(ops, call, rows, t)));
    return launch_queries<256, 1, 32, 4, 1>(ops, call, rows, t);
}

template <typename T>
static mb_status launch_delta(mb_ops *ops, const mb_tensor *o, const mb_tensor *d_o, int64_t rows, int width,
                              float *delta)
{
    MB_LAUNCH((attention_delta<T>), (unsigned)mb_cuda_blocks(rows, 8), 256, 0, mb_cuda_of(ops)->stream, rows,
              width, mb_data<const T>(o), mb_data<const T>(d_o), delta);
    return MB_CUDA_LAUNCHED();
}

template <typename T>
static mb_status backward_plain(mb_ops *ops, const mb_attention_call &call, int64_t rows,
                                const plain_tensors<T> &t)
{
    const unsigned columns = (unsigned)mb_cuda_blocks(call.width, MB_PLAIN_COLUMNS),
                   heads = (unsigned)call.kv_heads;
    const dim3 keys((unsigned)mb_attention_tiles(&call, rows, 1, MB_PLAIN_TILE), heads, columns);
    const dim3 queries((unsigned)mb_attention_tiles(&call, rows, call.share, MB_PLAIN_TILE), heads, columns);
    const size_t bytes = MB_PLAIN_BACKWARD_FLOATS * sizeof(float);
    cudaStream_t stream = mb_cuda_of(ops)->stream;
    MB_CUDA_CALL(cudaFuncSetAttribute(attention_plain_keys<T>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      (int)bytes));
    MB_CUDA_CALL(cudaFuncSetAttribute(attention_plain_queries<T>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      (int)bytes));
    MB_LAUNCH((attention_plain_keys<T>), keys, MB_PLAIN_THREADS, bytes, stream, call, t);
    MB_LAUNCH((attention_plain_queries<T>), queries, MB_PLAIN_THREADS, bytes, stream, call, t);
    return MB_CUDA_LAUNCHED();
}

/* ---- 5. entry ---- */

static mb_status cuda_attention_backward(mb_ops *ops, const mb_attention_shape *shape, const mb_tensor *q,
                                         const mb_tensor *k, const mb_tensor *v, const mb_tensor *o,
                                         const mb_tensor *lse, const mb_tensor *d_o, mb_tensor *dq,
                                         mb_tensor *dk, mb_tensor *dv)
{
    const int64_t rows = mb_ops_rows(q);
    const void *const data[] = {q->data, k->data, v->data, d_o->data, dq->data, dk->data, dv->data};
    const float *of_rows = mb_data<const float>(lse);
    float *delta = NULL;
    mb_attention_call call = {};
    if (mb_tensor_count(q) == 0) return MB_OK;
    MB_CUDA_TRY(mb_attention_call_of(shape, rows, &call));
    MB_CUDA_TRY(mb_cuda_scratch(ops, rows * call.heads, &delta));
    MB_CUDA_BY_DTYPE(q->dtype, T, {
        MB_CUDA_TRY(launch_delta<T>(ops, o, d_o, rows * call.heads, call.width, delta));
        if (!mb_attention_is_tiled(call.width, q->dtype, 7, data)) {
            const plain_tensors<T> t = {mb_data<const T>(q),
                                        mb_data<const T>(k),
                                        mb_data<const T>(v),
                                        mb_data<const T>(d_o),
                                        of_rows,
                                        delta,
                                        mb_data<T>(dq),
                                        mb_data<T>(dk),
                                        mb_data<T>(dv)};
            return backward_plain<T>(ops, call, rows, t);
        }
    });
    const backward_tensors t = {mb_data<const mb_bf16>(q),
                                mb_data<const mb_bf16>(k),
                                mb_data<const mb_bf16>(v),
                                mb_data<const mb_bf16>(d_o),
                                of_rows,
                                delta,
                                mb_data<mb_bf16>(dq),
                                mb_data<mb_bf16>(dk),
                                mb_data<mb_bf16>(dv)};
    return backward_bf16(ops, call, rows, t);
}

void mb_cuda_fill_attention_backward(mb_ops_table *table)
{
    table->attention_backward = cuda_attention_backward;
}
