/* attention_plain: attention forward without tensor cores: f32, and bf16 of head widths that are no multiple
 * of 8.
 *
 * Layer: ops (cuda backend).  Uses: attention_tile.cuh.
 *
 * A block has 64 packed rows (attention_tile.cuh) and 64 of the output's columns; scores are formed by 256
 * threads of 4 x 4 each, their sums over the head width in steps of 32 columns that lie in shared memory.
 * Everything is computed in f32, by the recurrence of attention_tile.cuh: bits do not depend on the tile a
 * row lies in.
 *
 * 1. sizes and loads   2. products   3. kernel
 */
#ifndef MB_CUDA_ATTENTION_PLAIN_CUH
#define MB_CUDA_ATTENTION_PLAIN_CUH

#include "ops/cuda/attention_tile.cuh"

/* ---- 1. sizes and loads ---- */

enum {
    MB_PLAIN_TILE = MB_KEY_TILE, /* rows, keys, and columns of output of a block */
    MB_PLAIN_COLUMNS = 64,
    MB_PLAIN_STEP = 32, /* columns that scores are summed over at a time */
    MB_PLAIN_THREADS = 256,
    MB_PLAIN_LINE = MB_PLAIN_STEP + 1, /* floats between rows in shared memory: other banks for other rows */
    MB_PLAIN_WIDE = MB_PLAIN_TILE + 1,
};

/* Can tensor cores do it: bf16 with rows of whole 16-byte chunks, and not too wide. */
static inline bool mb_attention_is_tiled(int width, mb_dtype dtype, int n, const void *const *data)
{
    if (dtype != MB_BF16 || width % 8 != 0 || width > 256) return false;
    for (int i = 0; i < n; i++)
        if ((uintptr_t)data[i] % 16 != 0) return false;
    return true;
}

/* COLUMNS columns from `column` on of 64 rows, `stride` elements apart, to lines of COLUMNS + 1; zeros
 * outside of count rows and `width` columns. */
template <int COLUMNS, typename T>
static __device__ __forceinline__ void plain_load(float *lines, const T *from, int64_t stride, int count,
                                                  int column, int width)
{
    for (int at = (int)threadIdx.x; at < MB_PLAIN_TILE * COLUMNS; at += MB_PLAIN_THREADS) {
        const int row = at / COLUMNS, c = at % COLUMNS;
        lines[row * (COLUMNS + 1) + c] =
            row < count && column + c < width ? mb_float(from[row * stride + column + c]) : 0.0f;
    }
}

/* The same of packed rows first.. below end. */
template <int COLUMNS, typename T>
static __device__ __forceinline__ void
plain_load_packed(float *lines, const T *from, const mb_attention_call &call, const mb_attention_part &part,
                  int g, int first, int end, int column)
{
    for (int at = (int)threadIdx.x; at < MB_PLAIN_TILE * COLUMNS; at += MB_PLAIN_THREADS) {
        const int row = at / COLUMNS, c = at % COLUMNS;
        float value = 0;
        if (first + row < end && column + c < call.width)
            value = mb_float(from[mb_attention_row(call, part, g, first + row) * call.width + column + c]);
        lines[row * (COLUMNS + 1) + c] = value;
    }
}

/* ---- 2. products ---- */

/* Thread (y, x) of 16 x 16 has rows 4 y + a and columns x + 16 b of a 64 x 64 result. */

/* d += a b^T over `n` columns of lines of STEP + 1. */
static __device__ __forceinline__ void plain_product_nt(float d[4][4], const float *a, const float *b, int n)
{
    const int x = (int)threadIdx.x % 16, y = (int)threadIdx.x / 16;
    for (int c = 0; c < n; c++) {
        float row[4], column[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            row[i] = a[(4 * y + i) * MB_PLAIN_LINE + c];
            column[i] = b[(x + 16 * i) * MB_PLAIN_LINE + c];
        }
#pragma unroll
        for (int i = 0; i < 16; i++) d[i / 4][i % 4] = fmaf(row[i / 4], column[i % 4], d[i / 4][i % 4]);
    }
}

/* d += a b over n rows of b; a: [64, n], or its transpose; lines of 65. */
template <bool IS_TRANSPOSED>
static __device__ __forceinline__ void plain_product(float d[4][4], const float *a, const float *b, int n)
{
    const int x = (int)threadIdx.x % 16, y = (int)threadIdx.x / 16;
    for (int j = 0; j < n; j++) {
        float row[4], column[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            row[i] = a[IS_TRANSPOSED ? j * MB_PLAIN_WIDE + 4 * y + i : (4 * y + i) * MB_PLAIN_WIDE + j];
            column[i] = b[j * MB_PLAIN_WIDE + x + 16 * i];
        }
#pragma unroll
        for (int i = 0; i < 16; i++) d[i / 4][i % 4] = fmaf(row[i / 4], column[i % 4], d[i / 4][i % 4]);
    }
}

/* ---- 3. kernel ---- */

/* Scores of the block's rows and the keys from `key` on, -inf where they are not seen, to lines of 65. */
template <typename T>
static __device__ __forceinline__ void
plain_scores(const mb_attention_call &call, const mb_attention_part &part, int g, int first, int key,
             const T *q, const T *k, int64_t stride, float *work, float *scores)
{
    const int x = (int)threadIdx.x % 16, y = (int)threadIdx.x / 16, end = part.queries * call.share;
    float s[4][4] = {};
    for (int column = 0; column < call.width; column += MB_PLAIN_STEP) {
        const int left = call.width - column;
        float *other = work + MB_PLAIN_TILE * MB_PLAIN_LINE;
        plain_load_packed<MB_PLAIN_STEP>(work, q, call, part, g, first, end, column);
        plain_load<MB_PLAIN_STEP>(other, k + key * stride, stride, part.keys - key, column, call.width);
        __syncthreads();
        plain_product_nt(s, work, other, left < MB_PLAIN_STEP ? left : MB_PLAIN_STEP);
        __syncthreads();
    }
#pragma unroll
    for (int a = 0; a < 4; a++) {
        const int last = mb_attention_last_key(call, part, first + 4 * y + a);
#pragma unroll
        for (int b = 0; b < 4; b++) {
            const int back = last - (key + x + 16 * b);
            scores[(4 * y + a) * MB_PLAIN_WIDE + x + 16 * b] =
                back < 0 || back >= call.window ? -INFINITY : s[a][b];
        }
    }
    __syncthreads();
}

/* Probabilities in the place of a row's scores: four threads a row, each every fourth key. */
static __device__ __forceinline__ float plain_softmax(float *scores, float scale2, float *top, float *sum)
{
    float own = -INFINITY, added = 0;
    for (int j = 0; j < MB_PLAIN_TILE; j += 4) own = fmaxf(own, scores[j]);
    own = fmaxf(*top, mb_quad_max(own));
    const float factor = exp2f((*top - (own == -INFINITY ? 0.0f : own)) * scale2);
    for (int j = 0; j < MB_PLAIN_TILE; j += 4) {
        scores[j] = exp2f((scores[j] - (own == -INFINITY ? 0.0f : own)) * scale2);
        added += scores[j];
    }
    *sum = fmaf(*sum, factor, added);
    *top = own;
    return factor;
}

/* q [T, H, Dh], k, v [.., G, Dh] -> o, lse. Grid: tiles of 64 packed rows, G, tiles of 64 columns. */
template <typename T>
static __global__ void __launch_bounds__(MB_PLAIN_THREADS)
    attention_plain(mb_attention_call call, const T *q, const T *k, const T *v, T *o, float *lse)
{
    MB_SHARED(float, work, MB_PLAIN_TILE *MB_PLAIN_LINE * 2);
    MB_SHARED(float, scores, MB_PLAIN_TILE *MB_PLAIN_WIDE);
    MB_SHARED(float, factors, MB_PLAIN_TILE);
    const int thread = (int)threadIdx.x, x = thread % 16, y = thread / 16, g = (int)blockIdx.y;
    const mb_attention_part part =
        mb_attention_find(call, call.share, MB_PLAIN_TILE, (int)(gridDim.x - 1 - blockIdx.x));
    const int first = part.tile * MB_PLAIN_TILE, end = part.queries * call.share;
    if (first >= end) return;
    const int tiles = mb_attention_last_key(call, part, first + MB_PLAIN_TILE - 1) / MB_KEY_TILE + 1;
    const int column = (int)blockIdx.z * MB_PLAIN_COLUMNS;
    const int64_t stride = (int64_t)call.kv_heads * call.width;
    float output[4][4] = {}, top = -INFINITY, sum = 0; /* top and sum: of row thread / 4 */
    k += part.first * stride + g * call.width;
    v += part.first * stride + g * call.width;
    for (int tile = mb_attention_first_key(call, mb_attention_last_key(call, part, first)) / MB_KEY_TILE;
         tile < tiles; tile++) {
        const int key = tile * MB_KEY_TILE, left = part.keys - key;
        float product[4][4] = {};
        plain_scores(call, part, g, first, key, q, k, stride, work, scores);
        const float factor =
            plain_softmax(scores + thread / 4 * MB_PLAIN_WIDE + thread % 4, call.scale2, &top, &sum);
        if (thread % 4 == 0) factors[thread / 4] = factor;
        plain_load<MB_PLAIN_COLUMNS>(work, v + key * stride, stride, left, column, call.width);
        __syncthreads();
        plain_product<false>(product, scores, work, left < MB_KEY_TILE ? left : MB_KEY_TILE);
#pragma unroll
        for (int i = 0; i < 16; i++)
            output[i / 4][i % 4] = fmaf(output[i / 4][i % 4], factors[4 * y + i / 4], product[i / 4][i % 4]);
        __syncthreads();
    }
    sum = mb_quad_sum(sum);
    if (thread % 4 == 0) {
        factors[thread / 4] = 1.0f / sum;
        if (blockIdx.z == 0 && first + thread / 4 < end)
            lse[mb_attention_row(call, part, g, first + thread / 4)] = fmaf(top, call.scale, logf(sum));
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 16; i++) {
        const int row = 4 * y + i / 4, c = column + x + 16 * (i % 4);
        if (first + row < end && c < call.width)
            o[mb_attention_row(call, part, g, first + row) * call.width + c] =
                mb_from_float<T>(output[i / 4][i % 4] * factors[row]);
    }
}

#endif
