/* attention_tile: what the attention kernels share: which rows a block works on, tiles of bf16 rows in shared
 * memory, and the products of a warp on them.
 *
 * Layer: ops (cuda backend).  Uses: cuda.h.
 *
 * Packed rows. The query heads of one key head (`share` of them) see the same keys, so they are rows of one
 * matrix: packed row r of a segment and key head g is query r / share, head g * share + r % share. Blocks
 * take tiles of packed rows: one scheme for grouped heads, long segments, and the single queries of
 * generation.
 *
 * Tiles of segments. The host knows only S and T. Segment s's tiles are numbered from     base(s) =
 * floor(offsets[s] * share / rows) + s which leaves it room for ceil(n * share / rows) tiles; a grid covers
 * floor(T * share / rows) + S numbers, and each warp finds its segment by searching the offsets, 32 at a
 * time. Numbers that no tile has do nothing.
 *
 * Bits. Keys are met in tiles of MB_KEY_TILE, counted from the first key of the segment, by the recurrence
 * m' = max(m, tile's max);  c = exp2(m - m');  o' = o c + P V;  l' = l c + sum P where P V is summed by
 * itself before it is added. A tile of which a row sees nothing changes none of its bits. So the row's bits
 * depend on its own query and keys alone: not on the tile it lies in, nor on which kernel did it.
 *
 * 1. the call, and a block's part of it   2. tiles in shared memory   3. a warp's products   4. softmax of a
 * tile Sources: Dao 2023, "FlashAttention-2"; PTX ISA, "Matrix fragments for mma.m16n8k16", "ldmatrix".
 */
#ifndef MB_CUDA_ATTENTION_TILE_CUH
#define MB_CUDA_ATTENTION_TILE_CUH

#include "ops/cuda/cuda.h"

enum { MB_KEY_TILE = 64 };
#define MB_LOG2E       1.44269504088896340736f
#define MB_LEAST_SCALE 1e-30f

/* ---- 1. the call, and a block's part of it ---- */

typedef struct mb_attention_call {
    const int32_t *offsets, *opt_key_first, *opt_key_count;
    int segments, heads, kv_heads, share, width;
    int window; /* INT32_MAX: all */
    bool is_bidirectional;
    float scale;
    float scale2; /* for exp2; never 0, so that it times -inf is no NaN (scale 0 has the same results) */
    int unused;   /* 0: no bytes of padding, which would hold anything */
} mb_attention_call;

static inline mb_status mb_attention_call_of(const mb_attention_shape *shape, int64_t rows,
                                             mb_attention_call *out)
{
    const int64_t share = shape->heads / shape->kv_heads;
    if (rows * share > INT32_MAX || shape->kv_heads > 65535 || shape->segments > INT32_MAX)
        return mb_fail(MB_EUNSUPPORTED,
                       "attention: %lld rows of %lld heads, or %lld key heads, are too many for one call",
                       (long long)rows, (long long)shape->heads, (long long)shape->kv_heads);
    out->offsets = shape->offsets;
    out->opt_key_first = shape->opt_key_first, out->opt_key_count = shape->opt_key_count;
    out->segments = (int)shape->segments, out->share = (int)share;
    out->heads = (int)shape->heads, out->kv_heads = (int)shape->kv_heads, out->width = (int)shape->head_width;
    out->window = shape->window > 0 && shape->window < INT32_MAX ? (int)shape->window : INT32_MAX;
    out->is_bidirectional = shape->is_bidirectional;
    out->scale = shape->scale;
    out->scale2 = fmaxf(shape->scale * MB_LOG2E, MB_LEAST_SCALE);
    out->unused = 0;
    return MB_OK;
}

/* Blocks that cover all tiles of `rows` rows, of which a token has `share`. */
static inline int64_t mb_attention_tiles(const mb_attention_call *call, int64_t tokens, int share, int rows)
{
    return tokens * share / rows + call->segments;
}

/* A tile of a segment. */
typedef struct mb_attention_part {
    int query, first; /* first rows of q, and of k and v */
    int queries, keys;
    int tile;
} mb_attention_part;

/* By all lanes of a warp. */
static __device__ __forceinline__ mb_attention_part mb_attention_find(const mb_attention_call &call,
                                                                      int share, int rows, int number)
{
    const int lane = (int)threadIdx.x % 32;
    int low = 0, n = call.segments;
    while (n > 1) { /* the last of low..low+n whose base is at most the number; low's is */
        const int step = (n + 31) / 32, ahead = lane * step;
        const bool is_before =
            ahead < n && (int64_t)call.offsets[low + ahead] * share / rows + low + ahead <= number;
        const int passed = (__popc(__ballot_sync(0xffffffffu, is_before)) - 1) * step;
        low += passed;
        n = n - passed < step ? n - passed : step;
    }
    mb_attention_part part;
    part.query = call.offsets[low], part.queries = call.offsets[low + 1] - part.query;
    part.first = call.opt_key_first != NULL ? call.opt_key_first[low] : part.query;
    part.keys = call.opt_key_first != NULL ? call.opt_key_count[low] : part.queries;
    part.tile = number - (int)((int64_t)part.query * share / rows) - low;
    return part;
}

/* The last key that packed row r sees, of those of the segment; the first is window - 1 before it. Rows
 * past the end are as the last. */
static __device__ __forceinline__ int mb_attention_last_key(const mb_attention_call &call,
                                                            const mb_attention_part &part, int r)
{
    const int query = r / call.share, last = part.queries - 1;
    return call.is_bidirectional ? part.keys - 1 : part.keys - part.queries + (query < last ? query : last);
}
static __device__ __forceinline__ int mb_attention_first_key(const mb_attention_call &call, int last_key)
{
    return last_key - call.window + 1 > 0 ? last_key - call.window + 1 : 0;
}

/* Packed row r of key head g: its row of [T * H]. */
static __device__ __forceinline__ int64_t mb_attention_row(const mb_attention_call &call,
                                                           const mb_attention_part &part, int g, int r)
{
    return (int64_t)(part.query + r / call.share) * call.heads + g * call.share + r % call.share;
}

/* exp2, to about 2 units of the last place; subnormal results are 0. */
static __device__ __forceinline__ float mb_exp2(float x)
{
#ifdef MB_CUDA_EMULATED
    return exp2f(x);
#else
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#endif
}

/* ---- 2. tiles in shared memory ---- */

/* 16-byte chunk of a tile with rows of WIDTH elements (a multiple of 32). Chunks of a row are turned by
 * its number, so that the 8 rows of an 8x8 matrix lie in different banks. */
template <int WIDTH> static __device__ __forceinline__ mb_bf16 *mb_tile_at(mb_bf16 *tile, int row, int chunk)
{
    const int turn = WIDTH % 64 == 0 ? row & 7 : row >> 1 & 3;
    return tile + row * WIDTH + ((chunk ^ turn) << 3);
}

/* The same of chunk even + odd, even a constant: few addresses for all constants, the rest is in the
 * instruction. */
template <int WIDTH>
static __device__ __forceinline__ mb_bf16 *mb_tile_pair(mb_bf16 *tile, int row, int even, int odd)
{
    const int low = WIDTH % 64 == 0 ? 7 : 3, turn = WIDTH % 64 == 0 ? row & 7 : row >> 1 & 3;
    return tile + row * WIDTH + ((odd ^ turn ^ (even & low)) << 3) + (even & ~low) * 8;
}

/* ROWS rows to shared memory; zeros for those from `count` on, and for columns from `width` on. */
template <int WIDTH, int ROWS, int THREADS>
static __device__ __forceinline__ void mb_tile_load(mb_bf16 *tile, const mb_bf16 *from, int64_t stride,
                                                    int count, int width, int thread)
{
    const int chunks = WIDTH / 8;
    if constexpr (THREADS % chunks == 0) { /* a thread's chunks lie below each other */
        const int step = THREADS / chunks, chunk = thread % chunks;
        const mb_bf16 *source = from + thread / chunks * stride + chunk * 8;
        const int valid = chunk * 8 < width ? count - thread / chunks : 0;
#pragma unroll 8
        for (int row = 0; row < ROWS; row += step, source += step * stride)
            mb_copy_async_16(mb_tile_at<WIDTH>(tile, row + thread / chunks, chunk),
                             row < valid ? source : from, row < valid);
    } else {
#pragma unroll 4
        for (int at = thread; at < ROWS * chunks; at += THREADS) {
            const int row = at / chunks, chunk = at % chunks;
            const bool is_valid = row < count && chunk * 8 < width;
            mb_copy_async_16(mb_tile_at<WIDTH>(tile, row, chunk),
                             is_valid ? from + row * stride + chunk * 8 : from, is_valid);
        }
    }
}

/* The same for packed rows first.. of a segment, below `end`. */
template <int WIDTH, int ROWS, int THREADS>
static __device__ __forceinline__ void
mb_tile_load_packed(mb_bf16 *tile, const mb_bf16 *from, const mb_attention_call &call,
                    const mb_attention_part &part, int g, int first, int end, int thread)
{
    const int chunks = WIDTH / 8;
#pragma unroll 2
    for (int at = thread; at < ROWS * chunks; at += THREADS) {
        const int row = at / chunks, chunk = at % chunks;
        const bool is_valid = first + row < end && chunk * 8 < call.width;
        const mb_bf16 *source = from;
        if (is_valid) source += mb_attention_row(call, part, g, first + row) * call.width + chunk * 8;
        mb_copy_async_16(mb_tile_at<WIDTH>(tile, row, chunk), source, is_valid);
    }
}

/* A warp's accumulators [16, WIDTH] to its 16 rows of a tile, rounded. */
template <int WIDTH>
static __device__ __forceinline__ void mb_tile_put(mb_bf16 *tile, float (*d)[4], float top, float bottom,
                                                   int lane)
{
    const int row = lane / 4, at = lane % 4 * 2;
#pragma unroll
    for (int n = 0; n < WIDTH / 8; n++) {
        *(uint32_t *)(mb_tile_at<WIDTH>(tile, row, n) + at) = mb_pack_bf16(d[n][0] * top, d[n][1] * top);
        *(uint32_t *)(mb_tile_at<WIDTH>(tile, row + 8, n) + at) =
            mb_pack_bf16(d[n][2] * bottom, d[n][3] * bottom);
    }
}

/* ---- 3. a warp's products ---- */

/* Fragment a[16, 16] of columns 16 kk.. of 16 rows of a tile (a multiple of 8 from its start). */
template <int WIDTH>
static __device__ __forceinline__ void mb_tile_a(uint32_t a[4], mb_bf16 *tile, int kk, int lane)
{
    mb_ldmatrix_x4(a, mb_tile_pair<WIDTH>(tile, lane % 16, kk * 2, lane / 16));
}

/* s[M*16, N] += a b^T over columns 16 kk.. of tile b [N, WIDTH], a in fragments. */
template <int WIDTH, int M, int N>
static __device__ __forceinline__ void mb_tile_step(float (*s)[N / 8][4], uint32_t (*a)[4], mb_bf16 *b,
                                                    int kk, int lane)
{
    const int row = lane / 16 * 8 + lane % 8, half = lane / 8 % 2;
#pragma unroll
    for (int n = 0; n < N / 16; n++) {
        uint32_t both[4];
        mb_ldmatrix_x4(both, mb_tile_pair<WIDTH>(b + n * 16 * WIDTH, row, kk * 2, half));
#pragma unroll
        for (int i = 0; i < M; i++) {
            mb_mma_bf16(s[i][2 * n], a[i], both);
            mb_mma_bf16(s[i][2 * n + 1], a[i], both + 2);
        }
    }
}

/* s[M*16, N] = a[M*16, WIDTH] b[N, WIDTH]^T, both tiles. */
template <int WIDTH, int M, int N>
static __device__ __forceinline__ void mb_tile_product_nt(float (*s)[N / 8][4], mb_bf16 *a, mb_bf16 *b,
                                                          int lane)
{
#pragma unroll
    for (int i = 0; i < M; i++)
#pragma unroll
        for (int n = 0; n < N / 8; n++) s[i][n][0] = s[i][n][1] = s[i][n][2] = s[i][n][3] = 0;
#pragma unroll
    for (int kk = 0; kk < WIDTH / 16; kk++) {
        uint32_t rows[M][4];
#pragma unroll
        for (int i = 0; i < M; i++) mb_tile_a<WIDTH>(rows[i], a + i * 16 * WIDTH, kk, lane);
        mb_tile_step<WIDTH, M, N>(s, rows, b, kk, lane);
    }
}

/* Accumulators [M*16, K] as fragments of a left factor, rounded to bf16. */
template <int M, int K>
static __device__ __forceinline__ void mb_tile_fragments(uint32_t (*a)[K / 16][4], float (*s)[K / 8][4])
{
#pragma unroll
    for (int i = 0; i < M; i++)
#pragma unroll
        for (int kk = 0; kk < K / 16; kk++) {
            a[i][kk][0] = mb_pack_bf16(s[i][2 * kk][0], s[i][2 * kk][1]);
            a[i][kk][1] = mb_pack_bf16(s[i][2 * kk][2], s[i][2 * kk][3]);
            a[i][kk][2] = mb_pack_bf16(s[i][2 * kk + 1][0], s[i][2 * kk + 1][1]);
            a[i][kk][3] = mb_pack_bf16(s[i][2 * kk + 1][2], s[i][2 * kk + 1][3]);
        }
}

/* t[M*16, 16] += a[M*16, K] b[K, columns 16 n..] of tile b [K, WIDTH]. */
template <int WIDTH, int M, int K>
static __device__ __forceinline__ void mb_tile_columns(float (*t)[2][4], uint32_t (*a)[K / 16][4], mb_bf16 *b,
                                                       int n, int lane)
{
#pragma unroll
    for (int kk = 0; kk < K / 16; kk++) {
        uint32_t both[4];
        mb_ldmatrix_x4_transposed(both,
                                  mb_tile_pair<WIDTH>(b + kk * 16 * WIDTH, lane % 16, n * 2, lane / 16));
#pragma unroll
        for (int i = 0; i < M; i++) {
            mb_mma_bf16(t[i][0], a[i][kk], both);
            mb_mma_bf16(t[i][1], a[i][kk], both + 2);
        }
    }
}

/* d[M*16, N] += a[M*16, K] b[K, N], the first columns of a tile b [K, WIDTH] (b may begin at a multiple of
 * 64). */
template <int WIDTH, int M, int K, int N>
static __device__ __forceinline__ void mb_tile_product_nn(float (*d)[N / 8][4], uint32_t (*a)[K / 16][4],
                                                          mb_bf16 *b, int lane)
{
#pragma unroll
    for (int kk = 0; kk < K / 16; kk++)
#pragma unroll
        for (int n = 0; n < N / 16; n++) {
            uint32_t both[4];
            mb_ldmatrix_x4_transposed(both,
                                      mb_tile_pair<WIDTH>(b + kk * 16 * WIDTH, lane % 16, n * 2, lane / 16));
#pragma unroll
            for (int i = 0; i < M; i++) {
                mb_mma_bf16(d[i][2 * n], a[i][kk], both);
                mb_mma_bf16(d[i][2 * n + 1], a[i][kk], both + 2);
            }
        }
}

/* ---- 4. softmax of a tile ---- */

/* Over the four lanes that hold a row. */
static __device__ __forceinline__ float mb_quad_max(float x)
{
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}
static __device__ __forceinline__ float mb_quad_sum(float x)
{
    x += __shfl_xor_sync(0xffffffffu, x, 1);
    return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

/* -inf for keys that a row does not see: its lane's rows see the keys up to last[0], last[1]. `key` is the
 * first of the tile. */
static __device__ __forceinline__ void mb_softmax_mask(float (*s)[4], int key, const int last[2], int window,
                                                       int lane)
{
#pragma unroll
    for (int n = 0; n < MB_KEY_TILE / 8; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const int back = last[e / 2] - (key + n * 8 + lane % 4 * 2 + e % 2);
            if (back < 0 || back >= window) s[n][e] = -INFINITY;
        }
}

/* The largest of row `half` (0: lane / 4, 1: that + 8), of all its lanes. */
static __device__ __forceinline__ float mb_softmax_top(float (*s)[4], int half)
{
    float top = -INFINITY;
#pragma unroll
    for (int n = 0; n < MB_KEY_TILE / 8; n++) top = fmaxf(top, fmaxf(s[n][2 * half], s[n][2 * half + 1]));
    return mb_quad_max(top);
}

/* s = exp2((s - top) scale2) in row `half`; returns this lane's sum. top may be -inf when all of s is. */
static __device__ __forceinline__ float mb_softmax_exp(float (*s)[4], int half, float top, float scale2)
{
    const float shift = top == -INFINITY ? 0.0f : top * scale2;
    float sum = 0;
#pragma unroll
    for (int n = 0; n < MB_KEY_TILE / 8; n++) {
        s[n][2 * half] = mb_exp2(fmaf(s[n][2 * half], scale2, -shift));
        s[n][2 * half + 1] = mb_exp2(fmaf(s[n][2 * half + 1], scale2, -shift));
        sum += s[n][2 * half] + s[n][2 * half + 1];
    }
    return sum;
}

/* What sums relative to `before` are multiplied by to be relative to `top`, 1 when these are alike. */
static __device__ __forceinline__ float mb_softmax_factor(float before, float top, float scale2)
{
    return mb_exp2((before - (top == -INFINITY ? 0.0f : top)) * scale2);
}

#endif
