/* norm (cuda): root mean square norm, its backward, layer norm; every element is read once.
 *
 * A row is spread over as many lanes as leave each 16 elements (vector.cuh), which stay in registers between
 * the sum and the scaling. The weight's gradient: rows are cut into at most MOST_PARTS parts, by their number
 * alone; a block adds up a part's rows column by column and writes one row of partial sums, which a second
 * kernel adds in order. So there are no atomics, and bits depend on sizes only.
 *
 * 1. root mean square norm   2. its backward   3. the weight's gradient   4. layer norm   5. entries Sources:
 * Zhang & Sennrich 2019, "Root Mean Square Layer Normalization"; Ba, Kiros, Hinton 2016, "Layer
 * Normalization".
 */
#include "ops/cuda/vector.cuh"

enum { MOST_PARTS = 512, LEAST_PASSES = 8, SLICES = 16 };

/* ---- 1. root mean square norm ---- */

template <typename X, typename Y, bool IS_WHOLE>
static __global__ void __launch_bounds__(MB_MOST_LANES)
    rms_norm(int64_t rows, int64_t d, int lanes, float eps, const X *x, const float *w, Y *y, float *rstd)
{
    MB_SHARED(float, room, 32);
    const int lane = (int)threadIdx.x & (lanes - 1);
    const int64_t row = (int64_t)blockIdx.x * (blockDim.x / lanes) + threadIdx.x / lanes;
    const int64_t width = row < rows ? d : 0,
                  step = (int64_t)lanes * MB_CHUNK; /* no elements beyond the rows */
    const X *from = x + row * d;
    float kept[MB_KEPT][MB_CHUNK], sum = 0;
#pragma unroll
    for (int j = 0; j < MB_KEPT; j++)
        mb_chunk_load<IS_WHOLE>(from, j * step + lane * MB_CHUNK, width, kept[j]);
#pragma unroll
    for (int j = 0; j < MB_KEPT; j++)
#pragma unroll
        for (int i = 0; i < MB_CHUNK; i++) sum = fmaf(kept[j][i], kept[j][i], sum);
    for (int64_t at = MB_KEPT * step + lane * MB_CHUNK; at < width; at += step) {
        float value[MB_CHUNK];
        mb_chunk_load<IS_WHOLE>(from, at, width, value);
        for (int i = 0; i < MB_CHUNK; i++) sum = fmaf(value[i], value[i], sum);
    }
    const float factor = 1.0f / sqrtf(mb_row_sum(sum, lanes, room) / (float)d + eps);
    if (lane == 0 && row < rows) rstd[row] = factor;
#pragma unroll
    for (int j = 0; j < MB_KEPT; j++) {
        const int64_t at = j * step + lane * MB_CHUNK;
        float weight[MB_CHUNK];
        mb_chunk_load<IS_WHOLE>(w, at, width, weight);
#pragma unroll
        for (int i = 0; i < MB_CHUNK; i++) kept[j][i] = kept[j][i] * factor * weight[i];
        mb_chunk_store<IS_WHOLE>(y + row * d, at, width, kept[j]);
    }
    for (int64_t at = MB_KEPT * step + lane * MB_CHUNK; at < width; at += step) {
        float value[MB_CHUNK], weight[MB_CHUNK];
        mb_chunk_load<IS_WHOLE>(from, at, width, value);
        mb_chunk_load<IS_WHOLE>(w, at, width, weight);
        for (int i = 0; i < MB_CHUNK; i++) value[i] = value[i] * factor * weight[i];
        mb_chunk_store<IS_WHOLE>(y + row * d, at, width, value);
    }
}

/* ---- 2. its backward ---- */

/* What a block works on: rows first .. last, in passes of `groups` rows. */
template <typename DY, typename X, typename DX> struct backward_arguments {
    int64_t rows, d, part_rows;
    int lanes;
    bool accumulate;
    const DY *dy;
    const X *x;
    const float *w, *rstd;
    DX *dx;
    float *part; /* [parts, d] column sums of dy x rstd; NULL: none */
};

/* dx of one chunk: r w dy - c x, and what was there when accumulating. Reads dx at the chunk it writes. */
template <bool IS_WHOLE, typename DX>
static __device__ __forceinline__ void backward_chunk(DX *dx, int64_t at, int64_t width, bool accumulate,
                                                      float r, float c, const float (&weight)[MB_CHUNK],
                                                      const float (&g)[MB_CHUNK], const float (&x)[MB_CHUNK])
{
    float out[MB_CHUNK] = {0, 0, 0, 0};
    if (accumulate) mb_chunk_load<IS_WHOLE>(dx, at, width, out);
#pragma unroll
    for (int i = 0; i < MB_CHUNK; i++) {
        const float value = fmaf(-c, x[i], r * weight[i] * g[i]);
        out[i] = accumulate ? out[i] + value : value;
    }
    mb_chunk_store<IS_WHOLE>(dx, at, width, out);
}

/* One row of the chunks that are not kept: their part of the sum; and, after it, their dx and column sums
 * (a row so wide has a block of its own, so a column of the part is this thread's). */
template <bool IS_WHOLE, typename DY, typename X, typename DX>
static __device__ float far_sum(const backward_arguments<DY, X, DX> &a, int64_t row, int64_t first,
                                int64_t width, float sum)
{
    for (int64_t at = first; at < width; at += (int64_t)a.lanes * MB_CHUNK) {
        float g[MB_CHUNK], x[MB_CHUNK], weight[MB_CHUNK];
        mb_chunk_load<IS_WHOLE>(a.dy + row * a.d, at, width, g);
        mb_chunk_load<IS_WHOLE>(a.x + row * a.d, at, width, x);
        mb_chunk_load<IS_WHOLE>(a.w, at, width, weight);
        for (int i = 0; i < MB_CHUNK; i++) sum = fmaf(g[i] * weight[i], x[i], sum);
    }
    return sum;
}
template <bool IS_WHOLE, typename DY, typename X, typename DX>
static __device__ void far_backward(const backward_arguments<DY, X, DX> &a, int64_t row, int64_t first,
                                    int64_t width, bool is_first_row, float r, float c, float *part)
{
    for (int64_t at = first; at < width; at += (int64_t)a.lanes * MB_CHUNK) {
        float g[MB_CHUNK], x[MB_CHUNK], weight[MB_CHUNK];
        mb_chunk_load<IS_WHOLE>(a.dy + row * a.d, at, width, g);
        mb_chunk_load<IS_WHOLE>(a.x + row * a.d, at, width, x);
        mb_chunk_load<IS_WHOLE>(a.w, at, width, weight);
        backward_chunk<IS_WHOLE>(a.dx + row * a.d, at, width, a.accumulate, r, c, weight, g, x);
        for (int i = 0; part != NULL && i < MB_CHUNK && at + i < width; i++)
            part[at + i] = fmaf(g[i] * x[i], r, is_first_row ? 0.0f : part[at + i]);
    }
}

/* Column sums of the groups of a block, added in their order into the part's row. */
static __device__ void groups_write(int lanes, int64_t d, const float (&sum)[MB_KEPT][MB_CHUNK], float *room,
                                    float *part)
{
    const int lane = (int)threadIdx.x & (lanes - 1), groups = (int)blockDim.x / lanes;
    const int columns = lanes * MB_CHUNK * MB_KEPT;
    if (groups == 1) {
#pragma unroll
        for (int j = 0; j < MB_KEPT; j++)
            mb_chunk_store<false>(part, ((int64_t)j * lanes + lane) * MB_CHUNK, d, sum[j]);
        return;
    }
    float *own = room + (int)threadIdx.x / lanes * columns;
#pragma unroll
    for (int j = 0; j < MB_KEPT; j++)
#pragma unroll
        for (int i = 0; i < MB_CHUNK; i++) own[(j * lanes + lane) * MB_CHUNK + i] = sum[j][i];
    __syncthreads();
    for (int i = (int)threadIdx.x; i < columns && i < d; i += (int)blockDim.x) {
        float all = 0;
        for (int g = 0; g < groups; g++) all += room[g * columns + i];
        part[i] = all;
    }
}

template <typename DY, typename X, typename DX, bool IS_WHOLE>
static __global__ void __launch_bounds__(MB_MOST_LANES) rms_norm_backward(backward_arguments<DY, X, DX> a)
{
    MB_SHARED(float, room, 32);
    MB_DYNAMIC_SHARED(float, columns); /* of the rows that share the block */
    const int lanes = a.lanes, lane = (int)threadIdx.x & (lanes - 1), groups = (int)blockDim.x / lanes;
    const int64_t first = blockIdx.x * a.part_rows, step = (int64_t)lanes * MB_CHUNK;
    const int64_t last = first + a.part_rows < a.rows ? first + a.part_rows : a.rows;
    float *part = a.part != NULL ? a.part + blockIdx.x * a.d : NULL;
    float sums[MB_KEPT][MB_CHUNK] = {};
    for (int64_t top = first; top < last; top += groups) {
        const int64_t row = top + threadIdx.x / lanes, width = row < last ? a.d : 0;
        const float r = row < last ? a.rstd[row] : 0.0f;
        float g[MB_KEPT][MB_CHUNK], x[MB_KEPT][MB_CHUNK], sum = 0;
#pragma unroll
        for (int j = 0; j < MB_KEPT; j++) {
            mb_chunk_load<IS_WHOLE>(a.dy + row * a.d, j * step + lane * MB_CHUNK, width, g[j]);
            mb_chunk_load<IS_WHOLE>(a.x + row * a.d, j * step + lane * MB_CHUNK, width, x[j]);
        }
#pragma unroll
        for (int j = 0; j < MB_KEPT; j++) {
            float weight[MB_CHUNK];
            mb_chunk_load<IS_WHOLE>(a.w, j * step + lane * MB_CHUNK, width, weight);
#pragma unroll
            for (int i = 0; i < MB_CHUNK; i++) {
                sum = fmaf(g[j][i] * weight[i], x[j][i], sum);
                sums[j][i] = fmaf(g[j][i] * x[j][i], r, sums[j][i]);
            }
        }
        const int64_t far = MB_KEPT * step + lane * MB_CHUNK;
        sum = mb_row_sum(far_sum<IS_WHOLE>(a, row, far, width, sum), lanes, room);
        const float c = sum * r * r * r / (float)a.d;
#pragma unroll
        for (int j = 0; j < MB_KEPT; j++) {
            float weight[MB_CHUNK];
            mb_chunk_load<IS_WHOLE>(a.w, j * step + lane * MB_CHUNK, width, weight);
            backward_chunk<IS_WHOLE>(a.dx + row * a.d, j * step + lane * MB_CHUNK, width, a.accumulate, r, c,
                                     weight, g[j], x[j]);
        }
        far_backward<IS_WHOLE>(a, row, far, width, top == first, r, c, part);
    }
    if (part != NULL) groups_write(lanes, a.d, sums, columns, part);
}

/* ---- 3. the weight's gradient ---- */

/* dw[d] += parts[n, d] in order: SLICES runs of parts, then the runs. 32 columns a block. */
static __global__ void parts_add(int64_t n, int64_t d, const float *parts, float *dw)
{
    MB_SHARED(float, room, SLICES * 32);
    const int slice = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
    const int64_t column = (int64_t)blockIdx.x * 32 + lane, each = (n + SLICES - 1) / SLICES;
    const int64_t last = (slice + 1) * each < n ? (slice + 1) * each : n;
    float sum = 0;
    if (column < d)
        for (int64_t p = slice * each; p < last; p++) sum += parts[p * d + column];
    room[threadIdx.x] = sum;
    __syncthreads();
    if (slice == 0 && column < d) {
        sum = 0;
        for (int s = 0; s < SLICES; s++) sum += room[s * 32 + lane];
        dw[column] += sum;
    }
}

/* ---- 4. layer norm ---- */

/* Sum of squares of one chunk's distances from the mean. */
static __device__ __forceinline__ float chunk_squares(const float (&x)[MB_CHUNK], int64_t at, int64_t width,
                                                      float mean, float sum)
{
#pragma unroll
    for (int i = 0; i < MB_CHUNK; i++) {
        const float off = at + i < width ? x[i] - mean : 0.0f;
        sum = fmaf(off, off, sum);
    }
    return sum;
}

template <typename Y, bool IS_WHOLE>
static __device__ __forceinline__ void chunk_normed(float (&x)[MB_CHUNK], int64_t at, int64_t width,
                                                    float mean, float factor, const float *w, const float *b,
                                                    Y *y)
{
    float weight[MB_CHUNK], bias[MB_CHUNK];
    mb_chunk_load<IS_WHOLE>(w, at, width, weight);
    mb_chunk_load<IS_WHOLE>(b, at, width, bias);
#pragma unroll
    for (int i = 0; i < MB_CHUNK; i++) x[i] = fmaf((x[i] - mean) * factor, weight[i], bias[i]);
    mb_chunk_store<IS_WHOLE>(y, at, width, x);
}

template <typename X, typename Y, bool IS_WHOLE>
static __global__ void __launch_bounds__(MB_MOST_LANES)
    layer_norm(int64_t rows, int64_t d, int lanes, float eps, const X *x, const float *w, const float *b,
               Y *y)
{
    MB_SHARED(float, room, 32);
    const int lane = (int)threadIdx.x & (lanes - 1);
    const int64_t row = (int64_t)blockIdx.x * (blockDim.x / lanes) + threadIdx.x / lanes;
    const int64_t width = row < rows ? d : 0, step = (int64_t)lanes * MB_CHUNK;
    const int64_t near = lane * MB_CHUNK, far = MB_KEPT * step + near;
    const X *from = x + row * d;
    float kept[MB_KEPT][MB_CHUNK], value[MB_CHUNK], sum = 0;
#pragma unroll
    for (int j = 0; j < MB_KEPT; j++) mb_chunk_load<IS_WHOLE>(from, j * step + near, width, kept[j]);
#pragma unroll
    for (int j = 0; j < MB_KEPT; j++)
#pragma unroll
        for (int i = 0; i < MB_CHUNK; i++) sum += kept[j][i];
    for (int64_t at = far; at < width; at += step) {
        mb_chunk_load<IS_WHOLE>(from, at, width, value);
        for (int i = 0; i < MB_CHUNK; i++) sum += value[i];
    }
    const float mean = mb_row_sum(sum, lanes, room) / (float)d;
    sum = 0;
#pragma unroll
    for (int j = 0; j < MB_KEPT; j++) sum = chunk_squares(kept[j], j * step + near, width, mean, sum);
    for (int64_t at = far; at < width; at += step) {
        mb_chunk_load<IS_WHOLE>(from, at, width, value);
        sum = chunk_squares(value, at, width, mean, sum);
    }
    const float factor = 1.0f / sqrtf(mb_row_sum(sum, lanes, room) / (float)d + eps);
#pragma unroll
    for (int j = 0; j < MB_KEPT; j++)
        chunk_normed<Y, IS_WHOLE>(kept[j], j * step + near, width, mean, factor, w, b, y + row * d);
    for (int64_t at = far; at < width; at += step) {
        mb_chunk_load<IS_WHOLE>(from, at, width, value);
        chunk_normed<Y, IS_WHOLE>(value, at, width, mean, factor, w, b, y + row * d);
    }
}

/* ---- 5. entries ---- */

static bool is_whole_row(const mb_tensor *tensor, int64_t d)
{
    return mb_is_whole(tensor->dtype, tensor->data, d, MB_CHUNK);
}

static mb_status cuda_rms_norm(mb_ops *ops, const mb_tensor *x, const mb_tensor *w, float eps, mb_tensor *y,
                               mb_tensor *out_rstd)
{
    const int64_t d = mb_tensor_count(w), rows = mb_tensor_count(out_rstd);
    const int lanes = mb_row_lanes(d), threads = mb_row_threads(lanes);
    const int blocks = (int)mb_cuda_blocks(rows, threads / lanes);
    const bool is_whole = is_whole_row(x, d) && is_whole_row(w, d) && is_whole_row(y, d);
    cudaStream_t stream = mb_cuda_of(ops)->stream;
    if (rows == 0) return MB_OK;
    MB_CUDA_BY_DTYPE(x->dtype, X, MB_CUDA_BY_DTYPE(y->dtype, Y, {
                         if (is_whole)
                             MB_LAUNCH((rms_norm<X, Y, true>), blocks, threads, 0, stream, rows, d, lanes,
                                       eps, mb_data<const X>(x), mb_data<const float>(w), mb_data<Y>(y),
                                       mb_data<float>(out_rstd));
                         else
                             MB_LAUNCH((rms_norm<X, Y, false>), blocks, threads, 0, stream, rows, d, lanes,
                                       eps, mb_data<const X>(x), mb_data<const float>(w), mb_data<Y>(y),
                                       mb_data<float>(out_rstd));
                     }););
    return MB_CUDA_LAUNCHED();
}

/* Rows of a part: all passes of a block; by sizes alone. */
static int64_t part_rows_of(int64_t rows, int64_t groups)
{
    const int64_t parts = mb_cuda_min(MOST_PARTS, mb_cuda_blocks(rows, groups * LEAST_PASSES));
    return mb_cuda_blocks(mb_cuda_blocks(rows, parts), groups) * groups;
}

template <typename DY, typename X, typename DX>
static void backward_launch(mb_ops *ops, int64_t parts, bool is_whole, const backward_arguments<DY, X, DX> &a)
{
    const int threads = mb_row_threads(a.lanes);
    const size_t room = a.lanes <= 32 && a.part != NULL ? sizeof(float) * threads * MB_CHUNK * MB_KEPT : 0;
    cudaStream_t stream = mb_cuda_of(ops)->stream;
    if (is_whole)
        MB_LAUNCH((rms_norm_backward<DY, X, DX, true>), (int)parts, threads, room, stream, a);
    else
        MB_LAUNCH((rms_norm_backward<DY, X, DX, false>), (int)parts, threads, room, stream, a);
}

static mb_status cuda_rms_norm_backward(mb_ops *ops, const mb_tensor *dy, const mb_tensor *x,
                                        const mb_tensor *w, const mb_tensor *rstd, bool accumulate,
                                        mb_tensor *dx, mb_tensor *opt_dw)
{
    const int64_t d = mb_tensor_count(w), rows = mb_tensor_count(rstd);
    const int lanes = mb_row_lanes(d), groups = mb_row_threads(lanes) / lanes;
    const int64_t part_rows = opt_dw != NULL && rows > 0 ? part_rows_of(rows, groups) : groups;
    const int64_t parts = mb_cuda_blocks(rows, part_rows);
    const bool is_whole =
        is_whole_row(dy, d) && is_whole_row(x, d) && is_whole_row(w, d) && is_whole_row(dx, d);
    float *part = NULL;
    if (rows == 0) return MB_OK;
    if (opt_dw != NULL) MB_CUDA_TRY(mb_cuda_scratch(ops, parts * d, &part));
    MB_CUDA_BY_DTYPE(dy->dtype, DY,
                     MB_CUDA_BY_DTYPE(x->dtype, X, MB_CUDA_BY_DTYPE(dx->dtype, DX, {
                                          const backward_arguments<DY, X, DX> a = {rows,
                                                                                   d,
                                                                                   part_rows,
                                                                                   lanes,
                                                                                   accumulate,
                                                                                   mb_data<const DY>(dy),
                                                                                   mb_data<const X>(x),
                                                                                   mb_data<const float>(w),
                                                                                   mb_data<const float>(rstd),
                                                                                   mb_data<DX>(dx),
                                                                                   part};
                                          backward_launch(ops, parts, is_whole, a);
                                      });););
    if (part != NULL)
        MB_LAUNCH(parts_add, (int)mb_cuda_blocks(d, 32), SLICES * 32, 0, mb_cuda_of(ops)->stream, parts, d,
                  part, mb_data<float>(opt_dw));
    return MB_CUDA_LAUNCHED();
}

static mb_status cuda_layer_norm(mb_ops *ops, const mb_tensor *x, const mb_tensor *w, const mb_tensor *b,
                                 float eps, mb_tensor *y)
{
    const int64_t d = mb_tensor_count(w), rows = d > 0 ? mb_tensor_count(x) / d : 0;
    const int lanes = mb_row_lanes(d), threads = mb_row_threads(lanes);
    const int blocks = (int)mb_cuda_blocks(rows, threads / lanes);
    const bool is_whole =
        is_whole_row(x, d) && is_whole_row(w, d) && is_whole_row(b, d) && is_whole_row(y, d);
    cudaStream_t stream = mb_cuda_of(ops)->stream;
    if (rows == 0) return MB_OK;
    MB_CUDA_BY_DTYPE(x->dtype, X, MB_CUDA_BY_DTYPE(y->dtype, Y, {
                         if (is_whole)
                             MB_LAUNCH((layer_norm<X, Y, true>), blocks, threads, 0, stream, rows, d, lanes,
                                       eps, mb_data<const X>(x), mb_data<const float>(w),
                                       mb_data<const float>(b), mb_data<Y>(y));
                         else
                             MB_LAUNCH((layer_norm<X, Y, false>), blocks, threads, 0, stream, rows, d, lanes,
                                       eps, mb_data<const X>(x), mb_data<const float>(w),
                                       mb_data<const float>(b), mb_data<Y>(y));
                     }););
    return MB_CUDA_LAUNCHED();
}

void mb_cuda_fill_norm(mb_ops_table *table)
{
    table->rms_norm = cuda_rms_norm;
    table->rms_norm_backward = cuda_rms_norm_backward;
    table->layer_norm = cuda_layer_norm;
}
