/* head (cpu): f32 logits by the dense product, a chunk of rows at a time; softmax in place; gradients by two
 * more
 * products.
 *
 * Rows that have a weight are taken first, so that the backward products of a chunk see no row without one.
 * Where
 * products of bf16 are, the differences (softmax - onehot) of bf16 rows are rounded to bf16, each row in
 * place of
 * the front half of its logits. A chunk is as large as memory allows: each reads the weight, and its
 * gradient,
 * once.
 */
#include <string.h>

#include "ops/cpu/cpu.h"

enum { CHUNK_BYTES = 96 << 20, CHUNK_MOST = 512, CHUNK_LEAST = 128 };

typedef struct head_work {
    mb_ops *ops;
    mb_weight *w;
    mb_rows h, opt_dh; /* data NULL: not wanted */
    const float *opt_row_weight;
    const int32_t *targets;
    float *loss, *opt_dw;
    int32_t *opt_argmax;
    int32_t *order;        /* [N] rows, those with weight first */
    mb_rows rows, drows;   /* [chunk, D] of the chunk's rows and their gradients */
    float *logits;         /* [chunk, V] */
    bool has_narrow;       /* differences are bf16 */
    int64_t n, d, v, live; /* live: rows with a weight */
} head_work;

/* order[N] and the number of rows with a weight (0 when no gradient is wanted). */
static void order_rows(head_work *work)
{
    bool has_gradient = work->opt_dh.data != NULL || work->opt_dw != NULL;
    int64_t at = 0;
    for (int64_t i = 0; i < work->n; i++) {
        if (has_gradient && work->opt_row_weight[i] != 0) work->order[at++] = (int32_t)i;
    }
    work->live = at;
    for (int64_t i = 0; i < work->n; i++) {
        if (!has_gradient || work->opt_row_weight[i] == 0) work->order[at++] = (int32_t)i;
    }
}

/* Row i of rows of D. */
static char *row_at(const mb_rows *rows, int64_t i)
{
    return (char *)rows->data + i * rows->ld * (rows->is_bf16 ? 2 : 4);
}

static size_t row_bytes(const mb_rows *rows)
{
    return (size_t)rows->ld * (rows->is_bf16 ? 2 : 4);
}

static void gather_rows(const head_work *work, int64_t first, int64_t rows)
{
#pragma omp parallel for schedule(static) num_threads(mb_cpu_threads_for(work->ops, rows * work->d))
    for (int64_t r = 0; r < rows; r++) {
        memcpy(row_at(&work->rows, r), row_at(&work->h, work->order[first + r]), row_bytes(&work->h));
    }
}

static void losses(const head_work *work, int64_t first, int64_t rows)
{
    const mb_kernels *kernels = mb_cpu_get(work->ops)->kernels;
    const mb_dequant *loops = mb_cpu_get(work->ops)->dequant;
#pragma omp parallel for schedule(static) num_threads(mb_cpu_threads_for(work->ops, rows * work->v))
    for (int64_t r = 0; r < rows; r++) {
        int64_t t = work->order[first + r];
        int32_t best;
        float weight = first + r < work->live ? work->opt_row_weight[t] : 0;
        float *logits = work->logits + r * work->v;
        work->loss[t] = kernels->cross_entropy(logits, work->v, work->targets[t], weight, &best);
        if (weight != 0 && work->has_narrow) loops->to_bf16_in_place(logits, work->v);
        if (work->opt_argmax != NULL) work->opt_argmax[t] = best;
    }
}

/* The chunk's first `live` rows: dh and dw. */
static mb_status gradients(const head_work *work, int64_t first, int64_t live)
{
    mb_status status = MB_OK;
    const int64_t d = work->d, v = work->v;
    const mb_rows differences = {work->logits, work->has_narrow, work->has_narrow ? 2 * v : v};
    mb_rows rows = work->rows;
    if (work->opt_dh.data != NULL) {
        MB_TRY(mb_linear_rows(work->ops, differences, live, work->w, false, work->drows));
        for (int64_t r = 0; r < live; r++) {
            memcpy(row_at(&work->opt_dh, work->order[first + r]), row_at(&work->drows, r),
                   row_bytes(&work->drows));
        }
    }
    if (work->opt_dw != NULL) {
        if (rows.is_bf16 && !work->has_narrow) MB_TRY(mb_linear_widen(work->ops, rows, live, d, &rows));
        MB_TRY(mb_linear_add_dw(work->ops, differences, rows, live, v, d, work->opt_dw));
    }
done:
    return status;
}

static mb_status run_chunks(head_work *work, int64_t chunk)
{
    mb_status status = MB_OK;
    for (int64_t first = 0; first < work->n; first += chunk) {
        mb_arena_mark mark = mb_arena_mark_get(work->ops->scratch);
        int64_t rows = work->n - first < chunk ? work->n - first : chunk;
        int64_t live = work->live - first < rows ? work->live - first : rows;
        gather_rows(work, first, rows);
        MB_TRY(mb_linear_rows(work->ops, work->rows, rows, work->w, true,
                              (mb_rows){work->logits, false, work->v}));
        losses(work, first, rows);
        if (live > 0) MB_TRY(gradients(work, first, live));
        mb_arena_release(work->ops->scratch, mark);
    }
done:
    return status;
}

/* Rows of a chunk. */
static int64_t chunk_of(const head_work *work)
{
    int64_t chunk = CHUNK_BYTES / (work->v * (int64_t)sizeof(float)) / CHUNK_LEAST * CHUNK_LEAST;
    if (chunk < CHUNK_LEAST) chunk = CHUNK_LEAST;
    if (chunk > CHUNK_MOST) chunk = CHUNK_MOST;
    return chunk < work->n ? chunk : work->n;
}

/* Scratch like `rows`, of n rows. */
static mb_status rows_alloc(mb_ops *ops, int64_t n, mb_rows *rows)
{
    mb_status status = MB_OK;
    char *data = NULL;
    MB_ARENA_ARRAY(ops->scratch, data, n * (int64_t)row_bytes(rows));
    rows->data = data;
done:
    return status;
}

mb_status mb_head_loss_cpu(mb_ops *ops, const mb_tensor *h, mb_weight *w, const int32_t *targets,
                           mb_tensor *out_loss, int32_t *opt_argmax, const float *opt_row_weight,
                           mb_tensor *opt_dh, mb_tensor *opt_dw)
{
    mb_status status = MB_OK;
    head_work work = {.ops = ops,
                      .w = w,
                      .h = mb_rows_of(h),
                      .opt_row_weight = opt_row_weight,
                      .targets = targets,
                      .loss = mb_tensor_f32(out_loss),
                      .opt_argmax = opt_argmax,
                      .opt_dw = opt_dw != NULL ? mb_tensor_f32(opt_dw) : NULL,
                      .n = mb_ops_rows(h),
                      .d = mb_ops_width(h),
                      .v = mb_ops_rows(&w->tensor)};
    if (opt_dh != NULL) work.opt_dh = mb_rows_of(opt_dh);
    const int64_t chunk = chunk_of(&work);
    work.has_narrow = work.h.is_bf16 && mb_linear_has_bf16(ops);
    work.rows = work.h, work.drows = work.opt_dh;
    MB_ARENA_ARRAY(ops->scratch, work.order, work.n);
    MB_TRY(rows_alloc(ops, chunk, &work.rows));
    if (opt_dh != NULL) MB_TRY(rows_alloc(ops, chunk, &work.drows));
    MB_ARENA_ARRAY(ops->scratch, work.logits, chunk * work.v);
    order_rows(&work);
    if (opt_dh != NULL && work.live < work.n) memset(opt_dh->data, 0, mb_tensor_bytes(opt_dh));
    MB_TRY(run_chunks(&work, chunk > 0 ? chunk : 1));
done:
    return status;
}
