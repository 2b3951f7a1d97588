/* head_rows: a chunk of rows at a time: one product per matrix, added; losses and gradients in place; two
 * more products per matrix.
 *
 * The size of a chunk follows from the vocabulary and the kind of backend alone, so the order of a weight
 * gradient's sums does too.
 *
 * 1. a chunk's memory and logits
 * 2. losses
 * 3. gradients
 * 4. the whole
 */
#include "model/head_rows.h"

/* ---- 1. a chunk's memory and logits ---- */

enum {
    HEAD_MIB = 96,         /* of a chunk's logits */
    HEAD_MIB_DEVICE = 256, /* whose products want more rows */
    HEAD_LEAST = 128,
    HEAD_MOST = 512,
    HEAD_MOST_DEVICE = 1 << 20
};

int64_t mb_head_rows_chunk(const mb_ops *ops, int64_t vocab)
{
    const bool is_device = mb_ops_is_device(ops);
    const int64_t bytes = (int64_t)(is_device ? HEAD_MIB_DEVICE : HEAD_MIB) << 20;
    const int64_t most = is_device ? HEAD_MOST_DEVICE : HEAD_MOST;
    const int64_t rows = bytes / (vocab * (int64_t)sizeof(float)) / HEAD_LEAST * HEAD_LEAST;
    return rows < HEAD_LEAST ? HEAD_LEAST : rows > most ? most : rows;
}

typedef struct head_work {
    mb_ops *ops;
    const mb_head_rows *head;
    int64_t n, v;
    int64_t first, rows; /* of the chunk at hand */
    float *logits;       /* [chunk, V]; the caller's own where it wants them all and no gradient */
    float *part;         /* [chunk, V] of one of several matrices */
    float *dense;        /* [chunk, V] of a dense teacher, on a device */
    void *narrow;        /* [chunk, V] bf16 gradients */
} head_work;

/* Rows first .. first + rows of an [N, ..] tensor. */
static mb_tensor head_view1(const mb_tensor *tensor, int64_t first, int64_t rows)
{
    return mb_tensor_view1(MB_F32, mb_tensor_f32(tensor) + first, rows);
}

/* The chunk's rows of matrix m of x or dx [M*N, D]. */
static mb_tensor head_view(const head_work *work, const mb_tensor *tensor, int64_t m)
{
    const int64_t width = tensor->shape[1];
    const int64_t at = (m * work->n + work->first) * width * (int64_t)mb_dtype_bytes(tensor->dtype);
    return mb_tensor_view2(tensor->dtype, (char *)tensor->data + at, work->rows, width);
}

static mb_status head_alloc(head_work *work, int64_t chunk)
{
    mb_status status = MB_OK;
    const mb_head_rows *head = work->head;
    mb_arena *scratch = mb_ops_scratch(work->ops);
    const bool is_dense = head->opt_teacher != NULL && head->opt_teacher->opt_dense != NULL;
    const bool has_gradient = head->opt_row_weight != NULL;
    uint16_t *narrow = NULL;
    if (has_gradient || head->opt_logits == NULL) MB_ARENA_ARRAY(scratch, work->logits, chunk * work->v);
    if (head->count > 1) MB_ARENA_ARRAY(scratch, work->part, chunk * work->v);
    if (is_dense && mb_ops_is_device(work->ops)) MB_ARENA_ARRAY(scratch, work->dense, chunk * work->v);
    if (has_gradient && head->x->dtype == MB_BF16) MB_ARENA_ARRAY(scratch, narrow, chunk * work->v);
    work->narrow = narrow;
done:
    return status;
}

/* The chunk's logits, where the caller wants them as well as in *out. */
static mb_status head_logits(head_work *work, mb_tensor *out)
{
    mb_status status = MB_OK;
    const mb_head_rows *head = work->head;
    float *all = head->opt_logits != NULL ? mb_tensor_f32(head->opt_logits) + work->first * work->v : NULL;
    *out = mb_tensor_view2(MB_F32, work->logits != NULL ? work->logits : all, work->rows, work->v);
    for (int64_t m = 0; m < head->count; m++) {
        const mb_tensor x = head_view(work, head->x, m);
        mb_tensor part = mb_tensor_view2(MB_F32, m > 0 ? work->part : out->data, work->rows, work->v);
        MB_TRY(mb_ops_linear(work->ops, &x, head->weight[m], NULL, false, &part));
        if (m > 0) MB_TRY(mb_ops_axpy(work->ops, 1, &part, out));
    }
    if (all != NULL && all != out->data) MB_TRY(mb_ops_copy(work->ops, out->data, mb_tensor_bytes(out), all));
done:
    return status;
}

/* ---- 2. losses ---- */

/* The teacher of the chunk's rows. */
static mb_status head_teacher(head_work *work, mb_teacher_rows *out)
{
    mb_status status = MB_OK;
    *out = *work->head->opt_teacher;
    if (out->opt_dense == NULL) {
        out->ids += work->first * out->k;
        out->logprob += work->first * out->k;
        if (out->tail != NULL) out->tail += work->first;
        goto done;
    }
    out->opt_dense += work->first * work->v;
    if (work->dense == NULL) goto done;
    MB_TRY(mb_ops_upload(work->ops, out->opt_dense, (size_t)(work->rows * work->v) * sizeof *work->dense,
                         work->dense));
    out->opt_dense = work->dense;
done:
    return status;
}

static mb_status head_losses(head_work *work, mb_tensor *logits)
{
    mb_status status = MB_OK;
    const mb_head_rows *head = work->head;
    const int64_t first = work->first;
    const bool has_teacher = head->opt_teacher != NULL;
    mb_teacher_rows teacher;
    mb_tensor loss, distance;
    if (head->opt_loss == NULL && !has_teacher && head->opt_argmax == NULL && head->opt_row_weight == NULL)
        goto done;
    if (head->opt_loss != NULL) loss = head_view1(head->opt_loss, first, work->rows);
    if (head->opt_distance != NULL) distance = head_view1(head->opt_distance, first, work->rows);
    if (has_teacher) MB_TRY(head_teacher(work, &teacher));
    MB_TRY(mb_ops_rows_loss(work->ops, logits, head->opt_targets != NULL ? head->opt_targets + first : NULL,
                            has_teacher ? &teacher : NULL, head->opt_loss != NULL ? &loss : NULL,
                            head->opt_distance != NULL ? &distance : NULL,
                            head->opt_argmax != NULL ? head->opt_argmax + first : NULL,
                            head->opt_row_weight != NULL ? head->opt_row_weight + first : NULL));
done:
    return status;
}

/* ---- 3. gradients ---- */

static mb_status head_gradients(head_work *work, const mb_tensor *dlogits)
{
    mb_status status = MB_OK;
    const mb_head_rows *head = work->head;
    mb_tensor dy = *dlogits;
    if (work->narrow != NULL) {
        dy = mb_tensor_view2(MB_BF16, work->narrow, work->rows, work->v);
        MB_TRY(mb_ops_cast(work->ops, dlogits, &dy));
    }
    for (int64_t m = 0; m < head->count; m++) {
        if (head->opt_dx != NULL) {
            mb_tensor dx = head_view(work, head->opt_dx, m);
            MB_TRY(mb_ops_linear_dx(work->ops, &dy, head->weight[m], false, &dx));
        }
        if (head->opt_dw == NULL || head->opt_dw[m] == NULL) continue;
        const mb_tensor x = head_view(work, head->x, m);
        MB_TRY(mb_ops_linear_dw(work->ops, &dy, &x, head->opt_dw[m], NULL));
    }
done:
    return status;
}

/* ---- 4. the whole ---- */

mb_status mb_head_rows_run(mb_ops *ops, const mb_head_rows *head)
{
    mb_status status = MB_OK;
    mb_arena *scratch = mb_ops_scratch(ops);
    const mb_arena_mark mark = mb_arena_mark_get(scratch);
    head_work work = {.ops = ops,
                      .head = head,
                      .n = head->x->shape[0] / head->count,
                      .v = head->weight[0]->tensor.shape[0]};
    const int64_t most = mb_head_rows_chunk(ops, work.v), chunk = most < work.n ? most : work.n;
    if (work.n == 0) goto done;
    MB_TRY(head_alloc(&work, chunk));
    for (; work.first < work.n; work.first += chunk) {
        mb_tensor logits;
        work.rows = work.n - work.first < chunk ? work.n - work.first : chunk;
        MB_TRY(head_logits(&work, &logits));
        MB_TRY(head_losses(&work, &logits));
        if (head->opt_row_weight != NULL) MB_TRY(head_gradients(&work, &logits));
    }
done:
    mb_arena_release(scratch, mark);
    return status;
}
