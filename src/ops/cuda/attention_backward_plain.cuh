/* attention_backward_plain: gradients of causal attention without tensor cores: f32, and bf16 of head widths
 * that are no multiple of 8.
 *
 * Layer: ops (cuda backend).  Uses: attention_plain.cuh.
 *
 * The two passes of attention_backward.cu, each block with 64 keys or packed rows and 64 of the columns of
 * its gradients; scores and do v^T are formed by 256 threads of 4 x 4 each, in f32, over 32 columns at a
 * time.
 *
 * 1. probabilities and ds   2. keys and values   3. queries
 */
#ifndef MB_CUDA_ATTENTION_BACKWARD_PLAIN_CUH
#define MB_CUDA_ATTENTION_BACKWARD_PLAIN_CUH

#include "ops/cuda/attention_plain.cuh"

template <typename T> struct plain_tensors {
    const T *q, *k, *v, *d_o;
    const float *lse, *delta;
    T *dq, *dk, *dv;
};

/* Dynamic shared memory: p and ds [64, 65], and room for four tiles [64, 33] or two [64, 65]. */
enum { MB_PLAIN_BACKWARD_FLOATS = MB_PLAIN_TILE * (2 * MB_PLAIN_WIDE + 4 * MB_PLAIN_LINE) };

/* ---- 1. probabilities and ds ---- */

/* p and ds = p (dp - delta) of the packed rows first.. and keys key.. to lines of 65, 0 where a row does
 * not see. */
template <typename T>
static __device__ __forceinline__ void
plain_backward_scores(const mb_attention_call &call, const mb_attention_part &part, const plain_tensors<T> &t,
                      int g, int first, int key, float *work, float *p, float *ds)
{
    const int x = (int)threadIdx.x % 16, y = (int)threadIdx.x / 16, end = part.queries * call.share;
    const int64_t stride = (int64_t)call.kv_heads * call.width,
                  from = (part.first + key) * stride + g * call.width;
    float s[4][4] = {}, dp[4][4] = {};
    float *q = work, *d_o = q + MB_PLAIN_TILE * MB_PLAIN_LINE, *k = d_o + MB_PLAIN_TILE * MB_PLAIN_LINE;
    float *v = k + MB_PLAIN_TILE * MB_PLAIN_LINE;
    for (int column = 0; column < call.width; column += MB_PLAIN_STEP) {
        const int left = call.width - column, n = left < MB_PLAIN_STEP ? left : MB_PLAIN_STEP;
        plain_load_packed<MB_PLAIN_STEP>(q, t.q, call, part, g, first, end, column);
        plain_load_packed<MB_PLAIN_STEP>(d_o, t.d_o, call, part, g, first, end, column);
        plain_load<MB_PLAIN_STEP>(k, t.k + from, stride, part.keys - key, column, call.width);
        plain_load<MB_PLAIN_STEP>(v, t.v + from, stride, part.keys - key, column, call.width);
        __syncthreads();
        plain_product_nt(s, q, k, n);
        plain_product_nt(dp, d_o, v, n);
        __syncthreads();
    }
    for (int a = 0; a < 4; a++) {
        const int row = first + 4 * y + a, last = mb_attention_last_key(call, part, row);
        const int64_t at = row < end ? mb_attention_row(call, part, g, row) : 0;
        const float lse = row < end ? t.lse[at] : 0, delta = row < end ? t.delta[at] : 0;
#pragma unroll
        for (int b = 0; b < 4; b++) {
            const int back = last - (key + x + 16 * b), to = (4 * y + a) * MB_PLAIN_WIDE + x + 16 * b;
            const bool is_seen = row < end && back >= 0 && back < call.window;
            p[to] = is_seen ? expf(fmaf(s[a][b], call.scale, -lse)) : 0;
            ds[to] = is_seen ? p[to] * (dp[a][b] - delta) : 0;
        }
    }
}

/* ---- 2. keys and values ---- */

/* dk, dv [T, G, Dh]. Grid: tiles of 64 keys, G, tiles of 64 columns. */
template <typename T>
static __global__ void __launch_bounds__(MB_PLAIN_THREADS)
    attention_plain_keys(mb_attention_call call, plain_tensors<T> t)
{
    MB_DYNAMIC_SHARED(float, p);
    float *ds = p + MB_PLAIN_TILE * MB_PLAIN_WIDE, *work = ds + MB_PLAIN_TILE * MB_PLAIN_WIDE;
    float *other = work + MB_PLAIN_TILE * MB_PLAIN_WIDE;
    const int x = (int)threadIdx.x % 16, y = (int)threadIdx.x / 16, g = (int)blockIdx.y;
    const int column = (int)blockIdx.z * MB_PLAIN_COLUMNS;
    const mb_attention_part part = mb_attention_find(call, 1, MB_PLAIN_TILE, (int)blockIdx.x);
    const int key = part.tile * MB_PLAIN_TILE, last_key = key + MB_PLAIN_TILE - 1;
    if (key >= part.keys) return;
    const int last_query =
        part.queries - 1 - last_key < call.window ? part.queries - 1 : last_key + call.window - 1;
    const int end = (last_query + 1) * call.share;
    float dk[4][4] = {}, dv[4][4] = {};
    for (int first = key * call.share; first < end; first += MB_PLAIN_TILE) {
        const int n = end - first < MB_PLAIN_TILE ? end - first : MB_PLAIN_TILE;
        plain_backward_scores(call, part, t, g, first, key, work, p, ds);
        plain_load_packed<MB_PLAIN_COLUMNS>(work, t.q, call, part, g, first, end, column);
        plain_load_packed<MB_PLAIN_COLUMNS>(other, t.d_o, call, part, g, first, end, column);
        __syncthreads();
        plain_product<true>(dk, ds, work, n);
        plain_product<true>(dv, p, other, n);
        __syncthreads();
    }
    for (int i = 0; i < 16; i++) {
        const int row = key + 4 * y + i / 4, c = column + x + 16 * (i % 4);
        const int64_t at = ((int64_t)(part.first + row) * call.kv_heads + g) * call.width + c;
        if (row >= part.keys || c >= call.width) continue;
        t.dk[at] = mb_from_float<T>(dk[i / 4][i % 4] * call.scale);
        t.dv[at] = mb_from_float<T>(dv[i / 4][i % 4]);
    }
}

/* ---- 3. queries ---- */

/* dq [T, H, Dh]. Grid: tiles of 64 packed rows, G, tiles of 64 columns. */
template <typename T>
static __global__ void __launch_bounds__(MB_PLAIN_THREADS)
    attention_plain_queries(mb_attention_call call, plain_tensors<T> t)
{
    MB_DYNAMIC_SHARED(float, p);
    float *ds = p + MB_PLAIN_TILE * MB_PLAIN_WIDE, *work = ds + MB_PLAIN_TILE * MB_PLAIN_WIDE;
    const int x = (int)threadIdx.x % 16, y = (int)threadIdx.x / 16, g = (int)blockIdx.y;
    const int column = (int)blockIdx.z * MB_PLAIN_COLUMNS;
    const mb_attention_part part =
        mb_attention_find(call, call.share, MB_PLAIN_TILE, (int)(gridDim.x - 1 - blockIdx.x));
    const int first = part.tile * MB_PLAIN_TILE, end = part.queries * call.share;
    if (first >= end) return;
    const int last_key = mb_attention_last_key(call, part, first + MB_PLAIN_TILE - 1);
    const int low = mb_attention_first_key(call, mb_attention_last_key(call, part, first));
    const int64_t stride = (int64_t)call.kv_heads * call.width;
    float dq[4][4] = {};
    for (int key = low / MB_KEY_TILE * MB_KEY_TILE; key <= last_key; key += MB_KEY_TILE) {
        const int left = part.keys - key;
        plain_backward_scores(call, part, t, g, first, key, work, p, ds);
        plain_load<MB_PLAIN_COLUMNS>(work, t.k + (part.first + key) * stride + g * call.width, stride, left,
                                     column, call.width);
        __syncthreads();
        plain_product<false>(dq, ds, work, left < MB_KEY_TILE ? left : MB_KEY_TILE);
        __syncthreads();
    }
    for (int i = 0; i < 16; i++) {
        const int row = first + 4 * y + i / 4, c = column + x + 16 * (i % 4);
        if (row < end && c < call.width)
            t.dq[mb_attention_row(call, part, g, row) * call.width + c] =
                mb_from_float<T>(dq[i / 4][i % 4] * call.scale);
    }
}

#endif
