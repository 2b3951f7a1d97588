/* fuse_layer_backward: the gradient of a layer-level router, through the stream and the frozen layers.
 *
 * 1. a stage's outputs, kept or made again
 * 2. a stage: mixing, router, outputs
 * 3. the whole
 *
 * With y = sum_m w_m out_m(h), w = softmax(router([h, out_1..out_M])): dw_m = <dy, out_m>, d out_m = w_m dy
 * and what comes through the router; dh = what comes through the router and, of each member, its frozen
 * layer's gradient of d out_m.
 */
#include "model/fuse_layer.h"

/* ---- 1. a stage's outputs ---- */

typedef struct stage_work {
    mb_tensor outputs;          /* [M*T, D] */
    mb_tensor d_outputs;        /* [M*T, D] */
    mb_tensor dw;               /* [T, M] */
    mb_fuse_router_saved saved; /* with all that the router's backward needs */
} stage_work;

/* As the forward had them: kept, or made again from the stage's input with the same bits. */
static mb_status stage_recall(mb_lm_pass *pass, int64_t s, stage_work *work)
{
    mb_status status = MB_OK;
    struct mb_fuse_layer_pass *layer = pass->fuse->layer;
    fuse_layer_stage *stage = &layer->stage[s];
    mb_tensor parts[MB_FUSE_MAX_PARTS];
    work->outputs = stage->outputs;
    work->saved = stage->saved;
    if (layer->keeps) goto done;
    work->outputs = layer->work;
    MB_TRY(mb_fuse_layer_outputs(pass, s, &stage->h, true, &work->outputs));
    (void)mb_fuse_layer_parts(pass, s, &stage->h, &work->outputs, parts);
    MB_TRY(mb_fuse_router_forward(&pass->lm->fuse->router[s], &pass->context, mb_fuse_layer_map(pass, s),
                                  parts, true, &work->saved));
done:
    return status;
}

/* ---- 2. a stage ---- */

/* From the weights' gradient and what comes from outside, through the router: into its tensors, d_outputs +=
 * and opt_dh +=. */
static mb_status stage_router(mb_lm_pass *pass, int64_t s, stage_work *work, const float *opt_d_logits,
                              mb_tensor *opt_dh)
{
    mb_status status = MB_OK;
    const int64_t count = pass->lm->fuse->count, t = pass->batch.tokens;
    mb_fuse_router *router = &pass->lm->fuse->router[s];
    mb_tensor parts[MB_FUSE_MAX_PARTS], d_rows[MB_FUSE_MAX_MEMBERS], *d_parts[MB_FUSE_MAX_PARTS], outside;
    int64_t n = 0;
    (void)mb_fuse_layer_parts(pass, s, &pass->fuse->layer->stage[s].h, &work->outputs, parts);
    if (s > 0) d_parts[n++] = opt_dh;
    for (int64_t m = 0; m < count; m++) {
        d_rows[m] = mb_fuse_layer_rows(&work->d_outputs, m, t);
        d_parts[n++] = s > 0 ? &d_rows[m] : NULL;
    }
    if (opt_d_logits != NULL) {
        MB_TRY(mb_block_new2(&pass->context, t, count, &outside));
        MB_TRY(mb_block_send(&pass->context, opt_d_logits, &outside));
    }
    MB_TRY(mb_params_gradient_begin(pass->lm->params, router->block));
    MB_TRY(mb_fuse_router_backward(router, &pass->context, mb_fuse_layer_map(pass, s), parts, &work->saved,
                                   &work->dw, opt_d_logits != NULL ? &outside : NULL, d_parts));
    MB_TRY(mb_params_gradient_end(pass->lm->params, router->block));
done:
    return status;
}

static mb_status stage_begin(mb_lm_pass *pass, int64_t s, stage_work *work)
{
    mb_status status = MB_OK;
    const int64_t count = pass->lm->fuse->count, t = pass->batch.tokens;
    MB_TRY(stage_recall(pass, s, work));
    MB_TRY(mb_block_new2(&pass->context, count * t, pass->lm->arch.width, &work->d_outputs));
    MB_TRY(mb_block_new2(&pass->context, t, count, &work->dw));
done:
    return status;
}

/* The last stage: the heads, and the norms that its router looks at. dh is zeroes before. */
static mb_status stage_heads(mb_lm_pass *pass, const float *opt_d_token_loss, const float *opt_d_logits,
                             mb_tensor *dh)
{
    mb_status status = MB_OK;
    const struct mb_fuse *fuse = pass->lm->fuse;
    struct mb_fuse_layer_pass *layer = pass->fuse->layer;
    const mb_arena_mark mark = mb_arena_mark_get(pass->arena);
    const int64_t s = fuse->stages - 1, t = pass->batch.tokens;
    stage_work work;
    MB_TRY(stage_begin(pass, s, &work));
    MB_TRY(mb_ops_zero(pass->ops, work.d_outputs.data, mb_tensor_bytes(&work.d_outputs)));
    MB_TRY(mb_ops_zero(pass->ops, work.dw.data, mb_tensor_bytes(&work.dw)));
    MB_TRY(mb_fuse_head_backward(pass, opt_d_token_loss, dh, &work.dw));
    MB_TRY(stage_router(pass, s, &work, opt_d_logits, dh));
    for (int64_t m = 0; m < fuse->count && status == MB_OK; m++) {
        mb_lm *member = fuse->member[m].lm;
        const mb_tensor dn = mb_fuse_layer_rows(&work.d_outputs, m, t);
        const mb_tensor rstd = mb_fuse_layer_rows(&layer->norm_rstd, m, t);
        MB_TRY(mb_params_acquire(member->params, member->arch.layers));
        status = mb_ops_rms_norm_backward(pass->ops, &dn, &layer->stage[s].h, &member->final_norm->value,
                                          &rstd, true, dh, NULL);
        mb_params_release(member->params, member->arch.layers);
    }
done:
    mb_arena_release(pass->arena, mark);
    return status;
}

/* Through the members' layers, down to their common input: dh +=. */
static mb_status stage_blocks(mb_lm_pass *pass, int64_t s, stage_work *work, mb_tensor *dh)
{
    mb_status status = MB_OK;
    const struct mb_fuse *fuse = pass->lm->fuse;
    struct mb_fuse_layer_pass *layer = pass->fuse->layer;
    for (int64_t m = 0; m < fuse->count; m++) {
        mb_lm *member = fuse->member[m].lm;
        mb_block_context *c = &layer->context[m];
        mb_block *block = &member->blocks[s - 1];
        mb_tensor dx = mb_fuse_layer_rows(&work->d_outputs, m, pass->batch.tokens);
        c->host = pass->context.host;
        MB_TRY(mb_block_backward(c, member->params, block, &layer->saved[m * member->arch.layers + s - 1],
                                 NULL, &dx));
        MB_TRY(mb_ops_axpy(pass->ops, 1, &dx, dh));
    }
done:
    return status;
}

/* A layer, or stage 0 (the embeddings, under which nothing trains): dh is the gradient of the stage's
 * mixture, then of its input. */
static mb_status stage_layer(mb_lm_pass *pass, int64_t s, const float *opt_d_logits, mb_tensor *dh)
{
    mb_status status = MB_OK;
    const mb_arena_mark mark = mb_arena_mark_get(pass->arena);
    stage_work work;
    MB_TRY(stage_begin(pass, s, &work));
    MB_TRY(mb_ops_combine_backward(pass->ops, dh, &work.outputs, &pass->fuse->layer->mix, &work.saved.w,
                                   &work.d_outputs, &work.dw));
    MB_TRY(mb_ops_zero(pass->ops, dh->data, mb_tensor_bytes(dh)));
    MB_TRY(stage_router(pass, s, &work, opt_d_logits, s > 0 ? dh : NULL));
    if (s > 0) MB_TRY(stage_blocks(pass, s, &work, dh));
done:
    mb_arena_release(pass->arena, mark);
    return status;
}

/* ---- 3. the whole ---- */

mb_status mb_fuse_layer_backward(mb_lm_pass *pass, const float *opt_d_token_loss,
                                 float *const *opt_d_router_logits)
{
    mb_status status = MB_OK;
    const struct mb_fuse *fuse = pass->lm->fuse;
    const mb_arena_mark mark = mb_arena_mark_get(pass->arena);
    const int64_t last = fuse->stages - 1;
    mb_tensor dh;
    if (!pass->fuse->layer->trains) goto done;
    MB_TRY(mb_block_new2(&pass->context, pass->batch.tokens, pass->lm->arch.width, &dh));
    MB_TRY(mb_ops_zero(pass->ops, dh.data, mb_tensor_bytes(&dh)));
    for (int64_t s = last; s >= 0; s--) {
        const float *outside = opt_d_router_logits != NULL ? opt_d_router_logits[s] : NULL;
        if (s == last)
            MB_TRY(stage_heads(pass, opt_d_token_loss, outside, &dh));
        else
            MB_TRY(stage_layer(pass, s, outside, &dh));
    }
done:
    mb_arena_release(pass->arena, mark);
    return status;
}
