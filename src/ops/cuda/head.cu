/* head: logits, cross-entropy and its gradient, a chunk of rows at a time.
 *
 * A chunk's logits are one product with an f32 result; its rows are as far apart as the vocabulary rounded up
 * to 8 columns, so that they are read 16 bytes at a time. One block has one row: it reads the logits once for
 * the largest (the first of equals), the sum of exponentials (kept relative to the largest so far) and the
 * loss. With a gradient it reads them again and writes (softmax - onehot) times the row's weight over them in
 * the dtype of h: a bf16 row lies in the front half of its f32 row, written behind what has been read. Two
 * products then take it to dh and dw. Traffic per logit: 4 bytes written and 4 read, with a gradient 4 + 2
 * more, and 2 x 2 read by the products.
 *
 * The size of a chunk follows from sizes alone, so the order of dw's sums does too.
 *
 * 1. a row's loss 2. a row's gradient 3. a chunk 4. entries
 */
#include "ops/cuda/product.h"

enum { THREADS = 512, RUN = 8 };

/* ---- 1. a row's loss ---- */

/* Of some of a row's logits: the first largest, and the sum of exp(logit - largest). */
typedef struct row_part {
    float largest, sum;
    int32_t index;
} row_part;

static __device__ __forceinline__ bool is_ahead(float x, int32_t x_index, float y, int32_t y_index)
{
    return x > y || (x == y && x_index < y_index);
}

/* 8 logits from `column` on; those beyond the vocabulary count as the least number. */
static __device__ __forceinline__ void read_run(const float *logits, int64_t column, int64_t v, float x[RUN])
{
    const float4 a = *(const float4 *)(logits + column), b = *(const float4 *)(logits + column + 4);
    x[0] = a.x, x[1] = a.y, x[2] = a.z, x[3] = a.w, x[4] = b.x, x[5] = b.y, x[6] = b.z, x[7] = b.w;
    if (column + RUN <= v) return;
#pragma unroll
    for (int i = 0; i < RUN; i++) x[i] = column + i < v ? x[i] : -FLT_MAX;
}

/* What this thread's logits come to: every THREADS-th run of 8. */
static __device__ __forceinline__ row_part read_part(const float *logits, int64_t v)
{
    row_part part = {-FLT_MAX, 0, INT32_MAX};
    for (int64_t column = (int64_t)threadIdx.x * RUN; column < v; column += THREADS * RUN) {
        float x[RUN], largest = part.largest;
        read_run(logits, column, v, x);
#pragma unroll
        for (int i = 0; i < RUN; i++) {
            if (!(x[i] > largest)) continue;
            largest = x[i];
            part.index = (int32_t)column + i;
        }
        part.sum *= expf(part.largest - largest);
        part.largest = largest;
#pragma unroll
        for (int i = 0; i < RUN; i++)
            if (column + i < v) part.sum += expf(x[i] - largest);
    }
    return part;
}

/* The block's parts together, in every thread. */
static __device__ __forceinline__ row_part join_parts(row_part part, float *room, int32_t *index_room)
{
    const int lane = (int)threadIdx.x % 32;
    const float own = part.largest;
    for (int stage = 0; stage < 2; stage++) { /* over the warp, then over the warps' results */
        for (int d = 16; d > 0; d >>= 1) {
            const float largest = __shfl_xor_sync(0xffffffffu, part.largest, d);
            const int32_t index = __shfl_xor_sync(0xffffffffu, part.index, d);
            if (is_ahead(largest, index, part.largest, part.index))
                part.largest = largest, part.index = index;
        }
        if (stage == 1) break;
        if (lane == 0) room[threadIdx.x / 32] = part.largest, index_room[threadIdx.x / 32] = part.index;
        __syncthreads();
        part.largest = lane < THREADS / 32 ? room[lane] : -FLT_MAX;
        part.index = lane < THREADS / 32 ? index_room[lane] : INT32_MAX;
        __syncthreads();
    }
    part.sum = mb_block_sum(part.sum * expf(own - part.largest), room);
    return part;
}

/* ---- 2. a row's gradient ---- */

typedef struct head_rows {
    float *logits; /* [rows of the chunk, stride] */
    int64_t stride, v;
    const int32_t *targets;
    float *loss;
    int32_t *opt_argmax;
    const float *opt_row_weight; /* NULL: no gradient */
} head_rows;

static __device__ __forceinline__ void store_run(float *to, const float x[RUN])
{
    ((float4 *)to)[0] = make_float4(x[0], x[1], x[2], x[3]);
    ((float4 *)to)[1] = make_float4(x[4], x[5], x[6], x[7]);
}
static __device__ __forceinline__ void store_run(mb_bf16 *to, const float x[RUN])
{
    *(uint4 *)to = make_uint4(mb_pack_bf16(x[0], x[1]), mb_pack_bf16(x[2], x[3]), mb_pack_bf16(x[4], x[5]),
                              mb_pack_bf16(x[6], x[7]));
}

/* weight * (softmax - onehot) over the logits, from the row's front. The runs that the block writes after
 * the barrier lie at or before those it has read by then. */
template <typename T>
static __device__ __forceinline__ void write_gradient(float *logits, int64_t v, int32_t target, float weight,
                                                      float largest, float sum)
{
    T *to = (T *)logits;
    const float scale = weight / sum;
    for (int64_t first = 0; first < v; first += THREADS * RUN) {
        const int64_t column = first + threadIdx.x * RUN;
        float x[RUN];
        if (column < v && weight != 0) {
            read_run(logits, column, v, x);
#pragma unroll
            for (int i = 0; i < RUN; i++)
                x[i] = expf(x[i] - largest) * scale - (column + i == target ? weight : 0);
        } else {
            for (int i = 0; i < RUN; i++) x[i] = 0;
        }
        __syncthreads();
        if (column < v) store_run(to + column, x); /* rows have room for whole runs */
    }
}

/* Block: one row of the chunk. */
template <typename T> static __global__ void __launch_bounds__(THREADS) finish_rows(const head_rows rows)
{
    MB_SHARED(float, room, 32);
    MB_SHARED(int32_t, index_room, 32);
    const int64_t row = blockIdx.x;
    float *logits = rows.logits + row * rows.stride;
    const int32_t target = rows.targets[row];
    const bool is_target = target >= 0 && target < rows.v; /* what is none makes the loss NaN */
    const float wanted = is_target ? logits[target] : NAN;
    const row_part part = join_parts(read_part(logits, rows.v), room, index_room);
    if (threadIdx.x == 0) {
        rows.loss[row] = logf(part.sum) + part.largest - wanted;
        if (rows.opt_argmax != NULL) rows.opt_argmax[row] = part.index < rows.v ? part.index : 0;
    }
    if (rows.opt_row_weight != NULL)
        write_gradient<T>(logits, rows.v, target, rows.opt_row_weight[row], part.largest, part.sum);
}

/* ---- 3. a chunk ---- */

/* The op's arguments as all chunks see them. */
typedef struct head_work {
    int64_t n, d, v, stride;
    mb_dtype dtype; /* of h */
    const char *h;
    const void *w;
    float *logits;
    mb_tensor *opt_dh;
    float *opt_dw;
} head_work;

static mb_status run_chunk(mb_ops *ops, const head_work *work, int64_t first, int64_t n,
                           const head_rows *rows)
{
    const bool is_f32 = work->dtype == MB_F32;
    const mb_cuda_matrix h = {work->h + first * work->d * (is_f32 ? 4 : 2), work->d}, w = {work->w, work->d};
    const mb_cuda_matrix p = {work->logits, is_f32 ? work->stride : 2 * work->stride};
    MB_CUDA_TRY(mb_cuda_gemm(ops, MB_CUDA_NT, n, work->v, work->d, work->dtype, h, w, NULL, 0, MB_F32,
                             work->logits, work->stride));
    MB_CUDA_BY_DTYPE(work->dtype, T,
                     { MB_LAUNCH(finish_rows<T>, (unsigned)n, THREADS, 0, mb_cuda_of(ops)->stream, *rows); });
    MB_CUDA_TRY(MB_CUDA_LAUNCHED());
    if (work->opt_dh != NULL) {
        const mb_dtype out = work->opt_dh->dtype;
        char *dh = mb_data<char>(work->opt_dh) + first * work->d * (out == MB_F32 ? 4 : 2);
        const mb_arena_mark mark = mb_arena_mark_get(ops->scratch);
        MB_CUDA_TRY(
            mb_cuda_gemm(ops, MB_CUDA_NN, n, work->d, work->v, work->dtype, p, w, NULL, 0, out, dh, work->d));
        mb_arena_release(ops->scratch, mark);
    }
    if (work->opt_dw == NULL) return MB_OK;
    return mb_cuda_gemm(ops, MB_CUDA_TN, work->v, work->d, n, work->dtype, p, h, NULL, 1, MB_F32,
                        work->opt_dw, work->d);
}

/* ---- 4. entries ---- */

/* Rows whose logits take 256 MiB, or 512 MiB where every chunk also reads and writes a whole dw; a
 * multiple of 128. */
static int64_t rows_of_a_chunk(int64_t stride, bool has_dw)
{
    const int64_t rows = ((int64_t)(has_dw ? 512 : 256) << 20) / (4 * stride);
    return rows < 128 ? 128 : rows / 128 * 128;
}

mb_status mb_cuda_head_loss(mb_ops *ops, const mb_tensor *h, mb_weight *w, const int32_t *targets,
                            mb_tensor *out_loss, int32_t *opt_argmax, const float *opt_row_weight,
                            mb_tensor *opt_dh, mb_tensor *opt_dw, int64_t chunk_rows)
{
    head_work work = {};
    work.n = mb_ops_rows(h), work.d = mb_ops_width(h), work.v = mb_ops_rows(&w->tensor);
    work.stride = (work.v + RUN - 1) / RUN * RUN;
    work.dtype = h->dtype;
    work.h = mb_data<const char>(h);
    work.opt_dh = opt_dh;
    work.opt_dw = opt_dw != NULL ? mb_data<float>(opt_dw) : NULL;
    if (work.n == 0 || work.v == 0) return MB_OK;
    const int64_t most = chunk_rows > 0 ? chunk_rows : rows_of_a_chunk(work.stride, opt_dw != NULL);
    const int64_t chunk = most < work.n ? most : work.n;
    const bool has_gradient = opt_row_weight != NULL && (opt_dh != NULL || opt_dw != NULL);
    MB_CUDA_TRY(mb_cuda_weight(ops, w, h->dtype, &work.w));
    MB_CUDA_TRY(mb_cuda_scratch(ops, chunk * work.stride, &work.logits));
    for (int64_t first = 0; first < work.n; first += chunk) {
        head_rows rows = {};
        rows.logits = work.logits, rows.stride = work.stride, rows.v = work.v;
        rows.targets = targets + first;
        rows.loss = mb_data<float>(out_loss) + first;
        rows.opt_argmax = opt_argmax != NULL ? opt_argmax + first : NULL;
        rows.opt_row_weight = has_gradient ? opt_row_weight + first : NULL;
        MB_CUDA_TRY(run_chunk(ops, &work, first, work.n - first < chunk ? work.n - first : chunk, &rows));
    }
    return MB_OK;
}

static mb_status cuda_head_loss(mb_ops *ops, const mb_tensor *h, mb_weight *w, const int32_t *targets,
                                mb_tensor *out_loss, int32_t *opt_argmax, const float *opt_row_weight,
                                mb_tensor *opt_dh, mb_tensor *opt_dw)
{
    return mb_cuda_head_loss(ops, h, w, targets, out_loss, opt_argmax, opt_row_weight, opt_dh, opt_dw, 0);
}

void mb_cuda_fill_head(mb_ops_table *table)
{
    table->head_loss = cuda_head_loss;
}
