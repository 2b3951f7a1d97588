/* route (cuda): softmax and top-K of the router, and back; a warp has a token, its columns in registers.
 *
 * Probabilities that are no numbers count as less than any: ids are always K different columns.
 *
 * 1. the router   2. its backward   3. the bias of columns   4. entries
 * Sources: Shazeer et al. 2017; Fedus et al. 2021 (softmax before top-K); Jiang et al. 2024 (Mixtral: weights
 * normalised over the picks); Wang et al. 2024 (arXiv 2408.15664: a bias that only the choice sees).
 */
#include "ops/cuda/vector.cuh"

enum { WARPS = 4, MOST_COLUMNS = 1024, THREADS = 256 };

/* ---- 1. the router ---- */

/* The larger of this lane's best and those of others; ties to the lower column. Every lane gets it. */
static __device__ __forceinline__ void warp_best(float &best, int &column)
{
    for (int d = 16; d > 0; d >>= 1) {
        const float other = __shfl_xor_sync(0xffffffffu, best, d);
        const int other_column = __shfl_xor_sync(0xffffffffu, column, d);
        if (other > best || (other == best && other_column < column)) {
            best = other;
            column = other_column;
        }
    }
}

/* Lane l has columns l + 32 j, j < EACH. BIASED: the choice is by probability + bias, and the weights of what
 * was chosen are read back from probs. */
template <int EACH, bool BIASED>
static __global__ void __launch_bounds__(32 * WARPS)
    route(int64_t tokens, int columns, int picks, bool normalise, const float *logits, const float *bias,
          float *probs, int32_t *ids, float *weights)
{
    const float taken = BIASED ? -INFINITY : -2.0f, no_number = BIASED ? -FLT_MAX : -1.0f;
    const int lane = (int)threadIdx.x % 32;
    const int64_t token = (int64_t)blockIdx.x * WARPS + threadIdx.x / 32;
    if (token >= tokens) return; /* the whole warp */
    float p[EACH], top = -INFINITY, sum = 0, picked = 0;
#pragma unroll
    for (int j = 0; j < EACH; j++) {
        p[j] = lane + 32 * j < columns ? logits[token * columns + lane + 32 * j] : -INFINITY;
        top = fmaxf(top, p[j]);
    }
    top = mb_warp_max(top);
#pragma unroll
    for (int j = 0; j < EACH; j++) {
        p[j] = lane + 32 * j < columns ? expf(p[j] - top) : 0.0f;
        sum += p[j];
    }
    sum = mb_warp_sum(sum);
#pragma unroll
    for (int j = 0; j < EACH; j++) {
        const bool is_column = lane + 32 * j < columns;
        p[j] = p[j] / sum;
        if (is_column) probs[token * columns + lane + 32 * j] = p[j];
        /* from here on: what is left to choose from */
        p[j] = !is_column ? taken : p[j] >= 0 ? BIASED ? p[j] + bias[lane + 32 * j] : p[j] : no_number;
    }
    if (BIASED) __syncwarp(); /* probs are seen by all lanes */
    for (int k = 0; k < picks; k++) {
        float best = taken;
        int column = columns;
#pragma unroll
        for (int j = 0; j < EACH; j++) {
            if (p[j] > best) {
                best = p[j];
                column = lane + 32 * j;
            }
        }
        warp_best(best, column);
#pragma unroll
        for (int j = 0; j < EACH; j++)
            if (column == lane + 32 * j) p[j] = taken;
        best = BIASED ? probs[token * columns + column] : best >= 0 ? best : NAN;
        picked += best;
        if (lane != k % 32) continue;
        ids[token * picks + k] = column;
        weights[token * picks + k] = best;
    }
    for (int k = lane; normalise && k < picks; k += 32) { /* its own writes */
        const float weight = weights[token * picks + k] / picked;
        weights[token * picks + k] = BIASED && picked < MB_ROUTE_LEAST ? 0.0f : weight;
    }
}

/* ---- 2. its backward ---- */

/* weights = p_k / s with s the sum of the picked: dp_k = (dw_k - sum_j dw_j w_j) / s; then through the
 * softmax: dlogit = p (dp - sum_k dp_k p_k). */
static __global__ void route_backward(int64_t tokens, int columns, int picks, bool normalise,
                                      const float *probs, const int32_t *ids, const float *weights,
                                      const float *dweights, float *dlogits)
{
    const int lane = (int)threadIdx.x % 32;
    const int64_t token = (int64_t)blockIdx.x * WARPS + threadIdx.x / 32;
    if (token >= tokens) return; /* the whole warp */
    const float *p = probs + token * columns, *w = weights + token * picks, *dw = dweights + token * picks;
    const int32_t *own = ids + token * picks;
    float picked = 0, inner = 0, mean = 0;
    for (int k = lane; k < picks; k += 32) {
        picked += p[own[k]];
        inner = fmaf(dw[k], w[k], inner);
    }
    picked = mb_warp_sum(picked);
    inner = mb_warp_sum(inner);
    if (normalise && picked < MB_ROUTE_LEAST) return; /* the whole warp */
    for (int k = lane; k < picks; k += 32)
        mean = fmaf(normalise ? (dw[k] - inner) / picked : dw[k], p[own[k]], mean);
    mean = mb_warp_sum(mean);
    for (int e = lane; e < columns; e += 32) {
        float dp = 0;
        for (int k = 0; k < picks; k++)
            if (own[k] == e) dp = normalise ? (dw[k] - inner) / picked : dw[k];
        dlogits[token * columns + e] = fmaf(p[e], dp - mean, dlogits[token * columns + e]);
    }
}

/* ---- 3. the bias of columns ---- */

static __global__ void shift_columns(int64_t rows, int64_t columns, int64_t first, float value, float *y)
{
    const int64_t index = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, each = columns - first,
                  row = mb_divide(index, each);
    if (row < rows) y[row * columns + first + (index - row * each)] += value;
}

/* ---- 4. entries ---- */

template <int EACH>
static void launch_route(cudaStream_t stream, int64_t tokens, int columns, int picks, bool normalise,
                         const float *logits, const float *opt_bias, float *probs, int32_t *ids,
                         float *weights)
{
    const int blocks = (int)mb_cuda_blocks(tokens, WARPS);
    if (opt_bias != NULL)
        MB_LAUNCH((route<EACH, true>), blocks, 32 * WARPS, 0, stream, tokens, columns, picks, normalise,
                  logits, opt_bias, probs, ids, weights);
    else
        MB_LAUNCH((route<EACH, false>), blocks, 32 * WARPS, 0, stream, tokens, columns, picks, normalise,
                  logits, opt_bias, probs, ids, weights);
}

static mb_status cuda_route(mb_ops *ops, const mb_tensor *logits, const mb_tensor *opt_bias, int64_t picks,
                            bool normalise, mb_tensor *probs, int32_t *ids, mb_tensor *weights)
{
    const int64_t tokens = mb_ops_rows(logits), columns = mb_ops_width(logits);
    cudaStream_t stream = mb_cuda_of(ops)->stream;
    const float *bias = opt_bias != NULL ? mb_data<const float>(opt_bias) : NULL;
    if (columns > MOST_COLUMNS)
        return mb_fail(MB_EUNSUPPORTED, "backend \"cuda\": a router of %lld columns; it takes %d at most",
                       (long long)columns, MOST_COLUMNS);
    if (tokens == 0) return MB_OK;
#define ROUTE(each)                                                                                          \
    launch_route<each>(stream, tokens, (int)columns, (int)picks, normalise, mb_data<const float>(logits),    \
                       bias, mb_data<float>(probs), ids, mb_data<float>(weights))
    if (columns <= 32)
        ROUTE(1);
    else if (columns <= 64)
        ROUTE(2);
    else if (columns <= 128)
        ROUTE(4);
    else if (columns <= 256)
        ROUTE(8);
    else if (columns <= 512)
        ROUTE(16);
    else
        ROUTE(32);
#undef ROUTE
    return MB_CUDA_LAUNCHED();
}

static mb_status cuda_route_backward(mb_ops *ops, const mb_tensor *probs, const int32_t *ids,
                                     const mb_tensor *weights, bool normalise, const mb_tensor *dweights,
                                     mb_tensor *dlogits)
{
    const int64_t tokens = mb_ops_rows(probs), columns = mb_ops_width(probs), picks = mb_ops_width(weights);
    if (tokens == 0) return MB_OK;
    MB_LAUNCH(route_backward, (int)mb_cuda_blocks(tokens, WARPS), 32 * WARPS, 0, mb_cuda_of(ops)->stream,
              tokens, (int)columns, (int)picks, normalise, mb_data<const float>(probs), ids,
              mb_data<const float>(weights), mb_data<const float>(dweights), mb_data<float>(dlogits));
    return MB_CUDA_LAUNCHED();
}

static mb_status cuda_shift_columns(mb_ops *ops, int64_t first, float value, mb_tensor *y)
{
    const int64_t rows = mb_ops_rows(y), columns = mb_ops_width(y);
    if (rows == 0 || first >= columns) return MB_OK;
    MB_LAUNCH(shift_columns, (int)mb_cuda_blocks(rows * (columns - first), THREADS), THREADS, 0,
              mb_cuda_of(ops)->stream, rows, columns, first, value, mb_data<float>(y));
    return MB_CUDA_LAUNCHED();
}

void mb_cuda_fill_route(mb_ops_table *table)
{
    table->route = cuda_route;
    table->route_backward = cuda_route_backward;
    table->shift_columns = cuda_shift_columns;
}
