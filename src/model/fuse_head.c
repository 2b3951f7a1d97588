/* fuse_head: the heads of a layer-level model: logits = sum_m w_m norm_m(h) H_m^T.
 *
 * The weight goes onto the normed row before its product, so that the logits are a plain sum of products
 * (head_rows), a weight of 0 adds zeros and one of 1 leaves the row as it is. Back: dlogits H_m is the
 * gradient of the weighted row; its dot product with the row is that of the weight. Rows and weights of the
 * members are stacked, so that each of these steps is one op for all of them.
 *
 * 1. numbers the ops need
 * 2. weighted rows
 * 3. forward
 * 4. forward with members on several ranks
 * 5. backward
 */
#include <string.h>

#include "model/fuse_layer.h"

/* ---- 1. numbers the ops need ---- */

static int64_t head_here(const mb_lm_pass *pass, int64_t *out_first)
{
    int64_t count;
    mb_fuse_layer_here(pass->lm->fuse, out_first, &count);
    return count;
}

mb_status mb_fuse_head_begin(mb_lm_pass *pass)
{
    mb_status status = MB_OK;
    fuse_layer_head *head = &pass->fuse->layer->head;
    const int64_t members = pass->lm->fuse->count, n = pass->batch.head_rows;
    int64_t first;
    const int64_t rows = head_here(pass, &first) * n;
    int32_t *numbers;
    const void *sent;
    *head = (fuse_layer_head){0};
    if (n == 0) goto done;
    MB_ARENA_ARRAY(pass->host, numbers, 2 * rows);
    for (int64_t i = 0; i < rows; i++) {
        numbers[i] = (int32_t)i;
        numbers[rows + i] = (int32_t)(pass->batch.head_row[i % n] * members + first + i / n);
    }
    MB_TRY(mb_ops_input(pass->ops, pass->arena, numbers, (size_t)(2 * rows) * sizeof *numbers, &sent));
    head->same = (mb_dispatch){.rows = rows, .slot_row = (int32_t *)sent};
    head->weight_row = (const int32_t *)sent + rows;
done:
    return status;
}

/* ---- 2. weighted rows ---- */

/* Weights [T, M] as a table of single numbers. */
static mb_tensor head_table(const mb_tensor *w)
{
    return mb_tensor_view2(MB_F32, w->data, mb_tensor_count(w), 1);
}

static mb_status head_norms(mb_lm_pass *pass)
{
    mb_status status = MB_OK;
    const struct mb_fuse *fuse = pass->lm->fuse;
    fuse_layer_head *head = &pass->fuse->layer->head;
    const int64_t n = pass->batch.head_rows;
    int64_t first;
    const int64_t here = head_here(pass, &first);
    for (int64_t i = 0; i < here && status == MB_OK; i++) {
        mb_lm *member = fuse->member[first + i].lm;
        mb_tensor rows = mb_fuse_layer_rows(&head->n, i, n), rstd = mb_fuse_layer_rows(&head->rstd, i, n);
        MB_TRY(mb_params_acquire(member->params, member->arch.layers));
        status = mb_ops_rms_norm(pass->ops, &pass->head_x, &member->final_norm->value,
                                 (float)member->arch.rms_eps, &rows, &rstd);
        mb_params_release(member->params, member->arch.layers);
    }
done:
    return status;
}

/* head_x, n, share, scaled. */
static mb_status head_prepare(mb_lm_pass *pass)
{
    mb_status status = MB_OK;
    struct mb_fuse_layer_pass *layer = pass->fuse->layer;
    fuse_layer_head *head = &layer->head;
    const mb_block_context *c = &pass->context;
    const int64_t d = pass->lm->arch.width, rows = head->same.rows;
    const mb_tensor table = head_table(&layer->stage[pass->lm->fuse->stages - 1].saved.w);
    mb_tensor weighted;
    MB_TRY(mb_block_new2(c, pass->batch.head_rows, d, &pass->head_x));
    MB_TRY(mb_block_act2(c, rows, d, &head->n));
    MB_TRY(mb_block_new1(c, rows, &head->rstd));
    MB_TRY(mb_block_new2(c, rows, 1, &head->share));
    MB_TRY(mb_block_new2(c, rows, d, &weighted));
    MB_TRY(mb_ops_embedding(pass->ops, pass->sent.head_row, &pass->x, &pass->head_x));
    MB_TRY(head_norms(pass));
    MB_TRY(mb_ops_embedding(pass->ops, head->weight_row, &table, &head->share));
    MB_TRY(mb_ops_zero(pass->ops, weighted.data, mb_tensor_bytes(&weighted)));
    MB_TRY(mb_ops_combine(pass->ops, &head->n, &head->same, &head->share, &weighted));
    MB_TRY(mb_block_cast(c, &weighted, &head->scaled));
done:
    return status;
}

/* ---- 3. forward ---- */

/* What was asked for. */
static mb_status head_outputs(mb_lm_pass *pass)
{
    mb_status status = MB_OK;
    const mb_block_context *c = &pass->context;
    const int64_t n = pass->batch.head_rows;
    if (pass->batch.targets != NULL) MB_TRY(mb_block_new1(c, n, &pass->loss));
    if (pass->want.argmax) MB_ARENA_ARRAY(pass->arena, pass->argmax, n);
    if (pass->want.logits) MB_TRY(mb_block_new2(c, n, pass->lm->arch.vocab, &pass->logits));
done:
    return status;
}

static mb_status head_acquire(mb_lm_pass *pass)
{
    mb_status status = MB_OK;
    const struct mb_fuse *fuse = pass->lm->fuse;
    for (int64_t m = 0; m < fuse->count; m++) {
        const mb_lm *member = fuse->member[m].lm;
        if (member == NULL) continue;
        MB_TRY(mb_params_acquire(member->params, member->arch.layers));
        if (member->arch.tied_head) MB_TRY(mb_params_acquire(member->params, MB_PARAMS_EMBEDDING));
    }
done:
    return status;
}

static void head_release(mb_lm_pass *pass)
{
    const struct mb_fuse *fuse = pass->lm->fuse;
    for (int64_t m = 0; m < fuse->count; m++) {
        const mb_lm *member = fuse->member[m].lm;
        if (member == NULL) continue;
        if (member->arch.tied_head) mb_params_release(member->params, MB_PARAMS_EMBEDDING);
        mb_params_release(member->params, member->arch.layers);
    }
}

static mb_status head_run(mb_lm_pass *pass, const mb_head_rows *rows)
{
    mb_status status = MB_OK;
    MB_TRY(head_acquire(pass));
    status = mb_head_rows_run(pass->ops, rows);
    head_release(pass);
done:
    return status;
}

mb_status mb_fuse_head_forward(mb_lm_pass *pass)
{
    mb_status status = MB_OK;
    struct mb_fuse_layer_pass *layer = pass->fuse->layer;
    fuse_layer_head *head = &layer->head;
    const bool is_fused = layer->trains && pass->sent.opt_head_weight != NULL;
    const int64_t rows = head->same.rows, d = pass->lm->arch.width;
    const mb_arena_mark before = mb_arena_mark_get(pass->arena);
    MB_TRY(head_outputs(pass));
    const mb_arena_mark mark = mb_arena_mark_get(pass->arena);
    MB_TRY(head_prepare(pass));
    if (is_fused) MB_TRY(mb_block_act2(&pass->context, rows, d, &head->d_scaled));
    const mb_head_rows run = {.count = pass->lm->fuse->count,
                              .weight = layer->heads,
                              .x = &head->scaled,
                              .opt_targets = pass->sent.targets,
                              .opt_loss = pass->loss.dims > 0 ? &pass->loss : NULL,
                              .opt_argmax = pass->argmax,
                              .opt_logits = pass->logits.dims > 0 ? &pass->logits : NULL,
                              .opt_row_weight = is_fused ? pass->sent.opt_head_weight : NULL,
                              .opt_dx = is_fused ? &head->d_scaled : NULL};
    MB_TRY(head_run(pass, &run));
    if (!layer->trains) mb_arena_release(pass->arena, mark);
done:
    if (status != MB_OK) mb_arena_release(pass->arena, before);
    return status;
}

/* ---- 4. forward with members on several ranks ---- */

/* The logits of rows first .. first + n: every rank's product, added in order of the members as head_rows
 * does, so that the bits are those of one rank. parts [M, n, V] and sum [n, V] are the host's. */
static mb_status head_chunk_sum(mb_lm_pass *pass, mb_status before, mb_tensor *chunk, float *parts)
{
    mb_status status = MB_OK;
    mb_comm *group = pass->lm->fuse->group;
    const int64_t count = pass->lm->fuse->count, one = mb_tensor_count(chunk);
    float *own = parts + mb_comm_rank(group) * one;
    int64_t offsets[MB_FUSE_MAX_MEMBERS + 1];
    if (before == MB_OK) before = mb_ops_download(pass->ops, chunk->data, mb_tensor_bytes(chunk), own);
    if (before == MB_OK) before = mb_ops_wait(pass->ops);
    MB_TRY(mb_comm_agree(group, before));
    for (int64_t r = 0; r <= count; r++) offsets[r] = r * one * (int64_t)sizeof *parts;
    MB_TRY(mb_comm_allgather_parts(group, parts, offsets));
    for (int64_t m = 1; m < count; m++)
        for (int64_t i = 0; i < one; i++) parts[i] += parts[m * one + i];
    MB_TRY(mb_ops_upload(pass->ops, parts, mb_tensor_bytes(chunk), chunk->data));
done:
    return status;
}

/* This rank's part of a chunk's logits. */
static mb_status head_chunk_product(mb_lm_pass *pass, int64_t first, mb_tensor *chunk)
{
    mb_status status = MB_OK;
    struct mb_fuse_layer_pass *layer = pass->fuse->layer;
    const mb_tensor x = mb_tensor_rows(&layer->head.scaled, first, chunk->shape[0]);
    MB_TRY(head_acquire(pass));
    status =
        mb_ops_linear(pass->ops, &x, layer->heads[mb_comm_rank(pass->lm->fuse->group)], NULL, false, chunk);
    head_release(pass);
done:
    return status;
}

static mb_status head_chunk_outputs(mb_lm_pass *pass, int64_t first, mb_tensor *chunk)
{
    mb_status status = MB_OK;
    const int64_t n = chunk->shape[0];
    mb_tensor loss;
    if (pass->logits.dims > 0) {
        mb_tensor all = mb_tensor_rows(&pass->logits, first, n);
        MB_TRY(mb_ops_copy(pass->ops, chunk->data, mb_tensor_bytes(chunk), all.data));
    }
    if (pass->loss.dims == 0 && pass->argmax == NULL) goto done;
    if (pass->loss.dims > 0) loss = mb_tensor_rows(&pass->loss, first, n);
    MB_TRY(mb_ops_rows_loss(pass->ops, chunk, pass->loss.dims > 0 ? pass->sent.targets + first : NULL, NULL,
                            pass->loss.dims > 0 ? &loss : NULL, NULL,
                            pass->argmax != NULL ? pass->argmax + first : NULL, NULL));
done:
    return status;
}

mb_status mb_fuse_head_forward_ranks(mb_lm_pass *pass, mb_status before)
{
    mb_status status = before;
    const int64_t n = pass->batch.head_rows, v = pass->lm->arch.vocab;
    const int64_t most = mb_head_rows_chunk(pass->ops, v), room = n < most ? n : most;
    float *parts = NULL;
    mb_tensor logits = {0};
    if (status == MB_OK) status = head_outputs(pass);
    if (status == MB_OK) status = head_prepare(pass);
    if (status == MB_OK) status = mb_block_new2(&pass->context, room, v, &logits);
    if (status == MB_OK) {
        parts = mb_arena_alloc(pass->host, (size_t)(pass->lm->fuse->count * room * v), sizeof *parts);
        if (parts == NULL) status = MB_ENOMEM;
    }
    MB_TRY(mb_comm_agree(pass->lm->fuse->group, status));
    for (int64_t first = 0; first < n; first += room) {
        mb_tensor chunk = mb_tensor_rows(&logits, 0, n - first < room ? n - first : room);
        if (status == MB_OK) status = head_chunk_product(pass, first, &chunk);
        MB_TRY(head_chunk_sum(pass, status, &chunk, parts));
        status = head_chunk_outputs(pass, first, &chunk);
    }
    status = mb_comm_agree(pass->lm->fuse->group, status);
done:
    return status;
}

/* ---- 5. backward ---- */

static mb_status head_d_scaled(mb_lm_pass *pass, const float *opt_d_token_loss, mb_tensor *out)
{
    mb_status status = MB_OK;
    struct mb_fuse_layer_pass *layer = pass->fuse->layer;
    fuse_layer_head *head = &layer->head;
    const mb_block_context *c = &pass->context;
    const void *weight;
    *out = head->d_scaled;
    if (opt_d_token_loss == NULL) goto done;
    MB_TRY(mb_block_act2(c, head->same.rows, pass->lm->arch.width, out));
    MB_TRY(mb_block_input(c, opt_d_token_loss, (size_t)pass->batch.head_rows * sizeof *opt_d_token_loss,
                          &weight));
    const mb_head_rows run = {.count = pass->lm->fuse->count,
                              .weight = layer->heads,
                              .x = &head->scaled,
                              .opt_targets = pass->sent.targets,
                              .opt_row_weight = weight,
                              .opt_dx = out};
    MB_TRY(head_run(pass, &run));
done:
    return status;
}

/* Through the final norms: dn [M*Nh, D] -> d_rows [Nh, D]. */
static mb_status head_norms_backward(mb_lm_pass *pass, const mb_tensor *dn, mb_tensor *d_rows)
{
    mb_status status = MB_OK;
    const struct mb_fuse *fuse = pass->lm->fuse;
    fuse_layer_head *head = &pass->fuse->layer->head;
    const int64_t n = pass->batch.head_rows;
    for (int64_t m = 0; m < fuse->count && status == MB_OK; m++) {
        mb_lm *member = fuse->member[m].lm;
        const mb_tensor dy = mb_fuse_layer_rows(dn, m, n), rstd = mb_fuse_layer_rows(&head->rstd, m, n);
        MB_TRY(mb_params_acquire(member->params, member->arch.layers));
        status = mb_ops_rms_norm_backward(pass->ops, &dy, &pass->head_x, &member->final_norm->value, &rstd,
                                          m > 0, d_rows, NULL);
        mb_params_release(member->params, member->arch.layers);
    }
done:
    return status;
}

mb_status mb_fuse_head_backward(mb_lm_pass *pass, const float *opt_d_token_loss, mb_tensor *dh, mb_tensor *dw)
{
    mb_status status = MB_OK;
    fuse_layer_head *head = &pass->fuse->layer->head;
    const mb_block_context *c = &pass->context;
    const mb_arena_mark mark = mb_arena_mark_get(pass->arena);
    const int64_t d = pass->lm->arch.width, rows = head->same.rows;
    mb_tensor d_scaled, dy, dn, d_share, d_rows, table = head_table(dw);
    if (pass->batch.head_rows == 0) goto done;
    MB_TRY(head_d_scaled(pass, opt_d_token_loss, &d_scaled));
    if (d_scaled.dims == 0) goto done;
    dy = d_scaled;
    if (dy.dtype != MB_F32) {
        MB_TRY(mb_block_new2(c, rows, d, &dy));
        MB_TRY(mb_ops_cast(pass->ops, &d_scaled, &dy));
    }
    MB_TRY(mb_block_act2(c, rows, d, &dn));
    MB_TRY(mb_block_new2(c, rows, 1, &d_share));
    MB_TRY(mb_block_new2(c, pass->batch.head_rows, d, &d_rows));
    MB_TRY(mb_ops_combine_backward(pass->ops, &dy, &head->n, &head->same, &head->share, &dn, &d_share));
    MB_TRY(mb_ops_embedding_backward(pass->ops, head->weight_row, &d_share, &table));
    MB_TRY(head_norms_backward(pass, &dn, &d_rows));
    MB_TRY(mb_ops_embedding_backward(pass->ops, pass->sent.head_row, &d_rows, dh));
done:
    mb_arena_release(pass->arena, mark);
    return status;
}
