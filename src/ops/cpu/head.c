/* head (cpu): logits by the dense product, a chunk of rows at a time; softmax in place; gradients by two more
 * products.
 *
 * Rows that have a weight are taken first, so that the backward products of a chunk see no row without one.
 */
#include <string.h>

#include "ops/cpu/cpu.h"

enum { CHUNK_BYTES = 32 << 20, CHUNK_MOST = 512, CHUNK_LEAST = 64 };

typedef struct head_work {
    mb_ops *ops;
    mb_weight *w;
    const float *h, *opt_row_weight;
    const int32_t *targets;
    float *loss, *opt_dh, *opt_dw;
    int32_t *opt_argmax;
    int32_t *order;        /* [N] rows, those with weight first */
    float *rows, *drows;   /* [chunk, D] of the chunk's rows and their gradients */
    float *logits;         /* [chunk, V] */
    int64_t n, d, v, live; /* live: rows with a weight */
} head_work;

/* order[N] and the number of rows with a weight (0 when no gradient is wanted). */
static void order_rows(head_work *work)
{
    bool has_gradient = work->opt_dh != NULL || work->opt_dw != NULL;
    int64_t at = 0;
    for (int64_t i = 0; i < work->n; i++) {
        if (has_gradient && work->opt_row_weight[i] != 0) work->order[at++] = (int32_t)i;
    }
    work->live = at;
    for (int64_t i = 0; i < work->n; i++) {
        if (!has_gradient || work->opt_row_weight[i] == 0) work->order[at++] = (int32_t)i;
    }
}

static void gather_rows(const head_work *work, int64_t first, int64_t rows)
{
#pragma omp parallel for schedule(static) num_threads(mb_cpu_threads_for(work->ops, rows * work->d))
    for (int64_t r = 0; r < rows; r++) {
        memcpy(work->rows + r * work->d, work->h + work->order[first + r] * work->d,
               (size_t)work->d * sizeof(float));
    }
}

static void losses(const head_work *work, int64_t first, int64_t rows)
{
    const mb_kernels *kernels = mb_cpu_get(work->ops)->kernels;
#pragma omp parallel for schedule(static) num_threads(mb_cpu_threads_for(work->ops, rows * work->v))
    for (int64_t r = 0; r < rows; r++) {
        int64_t t = work->order[first + r];
        int32_t best;
        float weight = first + r < work->live ? work->opt_row_weight[t] : 0;
        work->loss[t] =
            kernels->cross_entropy(work->logits + r * work->v, work->v, work->targets[t], weight, &best);
        if (work->opt_argmax != NULL) work->opt_argmax[t] = best;
    }
}

/* The chunk's first `live` rows: dh and dw. */
static mb_status gradients(const head_work *work, int64_t first, int64_t live)
{
    mb_status status = MB_OK;
    int64_t d = work->d;
    if (work->opt_dh != NULL) {
        MB_TRY(mb_linear_rows(work->ops, work->logits, live, work->w, false, work->drows));
        for (int64_t r = 0; r < live; r++) {
            memcpy(work->opt_dh + work->order[first + r] * d, work->drows + r * d, (size_t)d * sizeof(float));
        }
    }
    if (work->opt_dw != NULL) {
        MB_TRY(mb_linear_add_dw(work->ops, work->logits, work->rows, live, work->v, d, work->opt_dw));
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
        MB_TRY(mb_linear_rows(work->ops, work->rows, rows, work->w, true, work->logits));
        losses(work, first, rows);
        if (live > 0) MB_TRY(gradients(work, first, live));
        mb_arena_release(work->ops->scratch, mark);
    }
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
                      .h = mb_tensor_f32(h),
                      .opt_row_weight = opt_row_weight,
                      .targets = targets,
                      .loss = mb_tensor_f32(out_loss),
                      .opt_argmax = opt_argmax,
                      .opt_dh = opt_dh != NULL ? mb_tensor_f32(opt_dh) : NULL,
                      .opt_dw = opt_dw != NULL ? mb_tensor_f32(opt_dw) : NULL,
                      .n = mb_ops_rows(h),
                      .d = mb_ops_width(h),
                      .v = mb_ops_rows(&w->tensor)};
    int64_t chunk = CHUNK_BYTES / (work.v * (int64_t)sizeof(float)) / CHUNK_LEAST * CHUNK_LEAST;
    if (chunk < CHUNK_LEAST) chunk = CHUNK_LEAST;
    if (chunk > CHUNK_MOST) chunk = CHUNK_MOST;
    MB_ARENA_ARRAY(ops->scratch, work.order, work.n);
    MB_ARENA_ARRAY(ops->scratch, work.rows, chunk * work.d);
    MB_ARENA_ARRAY(ops->scratch, work.drows, chunk * work.d);
    MB_ARENA_ARRAY(ops->scratch, work.logits, chunk * work.v);
    order_rows(&work);
    if (opt_dh != NULL && work.live < work.n)
        memset(work.opt_dh, 0, (size_t)(work.n * work.d) * sizeof(float));
    MB_TRY(run_chunks(&work, chunk));
done:
    return status;
}
