/* dispatch (cuda): which rows go to which expert, and rows to experts and back.
 *
 * dispatch sorts the picks by expert (sort.h). The number of rows is not known to the host: launches have
 * room for T*K; row_token is -1 from offsets[E] on, and slot_row -1 for trash, so that nobody's rows are
 * neither written nor read. Sums over picks are in pick order, as everywhere.
 *
 * 1. dispatch   2. gather and its backward   3. combine   4. its backward   5. the table
 */
#include "ops/cuda/rows.cuh"
#include "ops/cuda/sort.h"

enum { THREADS = 256, AHEAD = 4 };

/* ---- 1. dispatch ---- */

static mb_status cuda_dispatch(mb_ops *ops, const int32_t *ids, int64_t tokens, int64_t picks,
                               int64_t experts, mb_dispatch *dispatch)
{
    mb_sort sort = {};
    sort.n = tokens * picks;
    sort.keys = ids;
    sort.mask = -1;
    sort.bins = experts;
    sort.divisor = (int32_t)picks;
    sort.offsets = dispatch->offsets;
    sort.sorted = dispatch->row_token;
    sort.opt_place = dispatch->slot_row;
    MB_CUDA_TRY(mb_cuda_sort(ops, &sort));
    dispatch->rows = sort.n;
    if (ops->is_device) return MB_OK;
    MB_CUDA_TRY(mb_ops_wait(ops));
    dispatch->rows = dispatch->offsets[experts];
    return MB_OK;
}

static __global__ void expand_rows(int64_t n, int64_t picks, const int32_t *slot_row,
                                   const int64_t *row_index, int64_t *out)
{
    const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n || slot_row[i] < 0) return;
    const int64_t token = mb_divide(i, picks);
    out[slot_row[i]] = row_index[token] * picks + (i - token * picks);
}

static mb_status cuda_expand_rows(mb_ops *ops, const mb_dispatch *dispatch, const int64_t *row_index,
                                  int64_t tokens, int64_t picks, int64_t *out)
{
    const int64_t n = tokens * picks;
    if (n == 0) return MB_OK;
    MB_LAUNCH(expand_rows, (int)mb_cuda_blocks(n, THREADS), THREADS, 0, mb_cuda_of(ops)->stream, n, picks,
              dispatch->slot_row, row_index, out);
    return MB_CUDA_LAUNCHED();
}

/* ---- 2. gather and its backward ---- */

static mb_status cuda_gather(mb_ops *ops, const mb_tensor *x, const mb_dispatch *dispatch, mb_tensor *y)
{
    const mb_rows rows = {dispatch->rows, mb_ops_width(x), dispatch->row_token, NULL};
    return mb_launch_rows(ops, rows, x->dtype, x->data, y->dtype, y->data);
}

/* y[t] += (opt_weights ? weight : 1) x[row] over the picks of t, in order; N columns a thread, AHEAD rows on
 * their way at a time. */
template <typename X, int N>
static __global__ void picks_add(int64_t tokens, int64_t width, int picks, const int32_t *slot_row,
                                 const float *opt_weights, const X *x, float *y)
{
    const int64_t first = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) * N,
                  token = mb_divide(first, width);
    if (token >= tokens) return;
    const int64_t column = first - token * width;
    float sum[N];
    mb_load(y + first, sum);
    for (int k = 0; k < picks; k += AHEAD) {
        int row[AHEAD];
        float value[AHEAD][N], weight[AHEAD];
#pragma unroll
        for (int a = 0; a < AHEAD; a++) {
            const int64_t at = token * picks + k + a;
            row[a] = k + a < picks ? slot_row[at] : -1;
            weight[a] = row[a] >= 0 && opt_weights != NULL ? opt_weights[at] : 1.0f;
            if (row[a] >= 0) mb_load(x + (int64_t)row[a] * width + column, value[a]);
        }
#pragma unroll
        for (int a = 0; a < AHEAD; a++)
#pragma unroll
            for (int i = 0; i < N; i++)
                if (row[a] >= 0) sum[i] = fmaf(weight[a], value[a][i], sum[i]);
    }
    mb_store(y + first, sum);
}

static mb_status launch_picks(mb_ops *ops, const mb_dispatch *dispatch, int64_t picks,
                              const float *opt_weights, const mb_tensor *x, mb_tensor *y)
{
    const int64_t tokens = mb_ops_rows(y), width = mb_ops_width(y);
    cudaStream_t stream = mb_cuda_of(ops)->stream;
    if (tokens * width == 0) return MB_OK;
    MB_CUDA_BY_DTYPE(x->dtype, X, {
        if (mb_is_whole(x->dtype, x->data, width, 4) && mb_is_whole(MB_F32, y->data, width, 4))
            MB_LAUNCH((picks_add<X, 4>), (int)mb_cuda_blocks(tokens * (width / 4), THREADS), THREADS, 0,
                      stream, tokens, width, (int)picks, dispatch->slot_row, opt_weights, mb_data<const X>(x),
                      mb_data<float>(y));
        else
            MB_LAUNCH((picks_add<X, 1>), (int)mb_cuda_blocks(tokens * width, THREADS), THREADS, 0, stream,
                      tokens, width, (int)picks, dispatch->slot_row, opt_weights, mb_data<const X>(x),
                      mb_data<float>(y));
    });
    return MB_CUDA_LAUNCHED();
}

static mb_status cuda_gather_backward(mb_ops *ops, const mb_tensor *dy, const mb_dispatch *dispatch,
                                      int64_t picks, mb_tensor *dx)
{
    return launch_picks(ops, dispatch, picks, NULL, dy, dx);
}

/* ---- 3. combine ---- */

static mb_status cuda_combine(mb_ops *ops, const mb_tensor *x, const mb_dispatch *dispatch,
                              const mb_tensor *weights, mb_tensor *y)
{
    return launch_picks(ops, dispatch, mb_ops_width(weights), mb_data<const float>(weights), x, y);
}

/* ---- 4. its backward ---- */

/* A few lanes have a token (vector.cuh): its dy is read once for all picks. */
template <typename X, bool IS_WHOLE>
static __global__ void __launch_bounds__(MB_MOST_LANES)
    combine_backward(int64_t tokens, int64_t d, int lanes, int picks, const int32_t *slot_row,
                     const float *dy, const X *x, const float *weights, X *dx, float *opt_dweights)
{
    MB_SHARED(float, room, 32);
    const int lane = (int)threadIdx.x & (lanes - 1);
    const int64_t token = (int64_t)blockIdx.x * (blockDim.x / lanes) + threadIdx.x / lanes;
    const int64_t near = lane * MB_CHUNK, step = (int64_t)lanes * MB_CHUNK, far = MB_KEPT * step + near;
    const float *from = dy + token * d;
    float g[MB_KEPT][MB_CHUNK];
#pragma unroll
    for (int j = 0; j < MB_KEPT; j++)
        mb_chunk_load<IS_WHOLE>(from, j * step + near, token < tokens ? d : 0, g[j]);
    for (int k = 0; k < picks; k++) {
        const int64_t at = token * picks + k, row = token < tokens ? slot_row[at] : -1,
                      width = row >= 0 ? d : 0;
        const float weight = row >= 0 ? weights[at] : 0.0f;
        float sum = 0;
#pragma unroll
        for (int j = 0; j < MB_KEPT; j++) {
            float value[MB_CHUNK];
            if (opt_dweights != NULL) mb_chunk_load<IS_WHOLE>(x + row * d, j * step + near, width, value);
#pragma unroll
            for (int i = 0; i < MB_CHUNK; i++) {
                if (opt_dweights != NULL) sum = fmaf(g[j][i], value[i], sum);
                value[i] = weight * g[j][i];
            }
            mb_chunk_store<IS_WHOLE>(dx + row * d, j * step + near, width, value);
        }
        for (int64_t c = far; c < width; c += step) {
            float own[MB_CHUNK], value[MB_CHUNK];
            mb_chunk_load<IS_WHOLE>(from, c, width, own);
            if (opt_dweights != NULL) mb_chunk_load<IS_WHOLE>(x + row * d, c, width, value);
            for (int i = 0; i < MB_CHUNK; i++) {
                if (opt_dweights != NULL) sum = fmaf(own[i], value[i], sum);
                value[i] = weight * own[i];
            }
            mb_chunk_store<IS_WHOLE>(dx + row * d, c, width, value);
        }
        if (opt_dweights == NULL) continue;
        sum = mb_row_sum(sum, lanes, room);
        if (lane == 0 && token < tokens) opt_dweights[at] = sum;
    }
}

static mb_status cuda_combine_backward(mb_ops *ops, const mb_tensor *dy, const mb_tensor *x,
                                       const mb_dispatch *dispatch, const mb_tensor *weights, mb_tensor *dx,
                                       mb_tensor *opt_dweights)
{
    const int64_t tokens = mb_ops_rows(dy), d = mb_ops_width(dy);
    const int picks = (int)mb_ops_width(weights), lanes = mb_row_lanes(d), threads = mb_row_threads(lanes);
    const int blocks = (int)mb_cuda_blocks(tokens, threads / lanes);
    const bool is_whole = mb_is_whole(MB_F32, dy->data, d, MB_CHUNK) &&
                          mb_is_whole(x->dtype, x->data, d, MB_CHUNK) &&
                          mb_is_whole(dx->dtype, dx->data, d, MB_CHUNK);
    float *dweights = opt_dweights != NULL ? mb_data<float>(opt_dweights) : NULL;
    cudaStream_t stream = mb_cuda_of(ops)->stream;
    if (tokens == 0) return MB_OK;
    MB_CUDA_BY_DTYPE(x->dtype, X, {
        if (is_whole)
            MB_LAUNCH((combine_backward<X, true>), blocks, threads, 0, stream, tokens, d, lanes, picks,
                      dispatch->slot_row, mb_data<const float>(dy), mb_data<const X>(x),
                      mb_data<const float>(weights), mb_data<X>(dx), dweights);
        else
            MB_LAUNCH((combine_backward<X, false>), blocks, threads, 0, stream, tokens, d, lanes, picks,
                      dispatch->slot_row, mb_data<const float>(dy), mb_data<const X>(x),
                      mb_data<const float>(weights), mb_data<X>(dx), dweights);
    });
    return MB_CUDA_LAUNCHED();
}

/* ---- 5. the table ---- */

void mb_cuda_fill_dispatch(mb_ops_table *table)
{
    table->dispatch = cuda_dispatch;
    table->expand_rows = cuda_expand_rows;
    table->gather = cuda_gather;
    table->gather_backward = cuda_gather_backward;
    table->combine = cuda_combine;
    table->combine_backward = cuda_combine_backward;
}
