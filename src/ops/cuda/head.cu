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
 * 1. a row's gradient 2. a chunk 3. entries
 */
#include "ops/cuda/logits.cuh"
#include "ops/cuda/product.h"

/* ---- 1. a row's gradient ---- */

typedef struct head_rows {
    float *logits; /* [rows of the chunk, stride] */
    int64_t stride, v;
    const int32_t *targets;
    float *loss;
    int32_t *opt_argmax;
    const float *opt_row_weight; /* NULL: no gradient */
} head_rows;

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
            read_run<true>(logits, column, v, x);
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
    const row_part part = join_parts(read_part<true>(logits, rows.v), room, index_room);
    if (threadIdx.x == 0) {
        rows.loss[row] = logf(part.sum) + part.largest - wanted;
        if (rows.opt_argmax != NULL) rows.opt_argmax[row] = part.index < rows.v ? part.index : 0;
    }
    if (rows.opt_row_weight != NULL)
        write_gradient<T>(logits, rows.v, target, rows.opt_row_weight[row], part.largest, part.sum);
}

/* ---- 2. a chunk ---- */

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

/* ---- 3. entries ---- */

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
