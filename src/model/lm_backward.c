/* lm_backward: the backward half of a pass.
 *
 * 1. head and final norm
 * 2. blocks, down to the lowest that trains
 */
#include <string.h>

#include "model/fuse_state.h"

/* ---- 1. head and final norm ---- */

static mb_status backward_distil(mb_lm_pass *pass, const float *weight, mb_tensor *dh)
{
    mb_lm *lm = pass->lm;
    mb_weight *matrix = &lm->head->weight;
    mb_tensor *dw = mb_block_gradient(lm->head);
    return mb_head_rows_run(lm->ops, &(mb_head_rows){.count = 1,
                                                     .weight = &matrix,
                                                     .x = &pass->head_h,
                                                     .opt_targets = pass->sent.targets,
                                                     .opt_teacher = pass->sent.opt_teacher,
                                                     .opt_row_weight = weight,
                                                     .opt_dx = dh,
                                                     .opt_dw = &dw});
}

/* Gradient of the normed head rows: kept from the forward, or made now from the weights of the losses. */
static mb_status backward_head_rows(mb_lm_pass *pass, const float *opt_weight, mb_tensor *out_dh)
{
    mb_status status = MB_OK;
    mb_lm *lm = pass->lm;
    const mb_block_context *c = &pass->context;
    const void *weight;
    mb_tensor loss;
    if (opt_weight == NULL) {
        *out_dh = pass->head_dh;
        goto done;
    }
    MB_TRY(mb_block_new2(c, pass->batch.head_rows, lm->arch.width, out_dh));
    MB_TRY(mb_block_input(c, opt_weight, (size_t)pass->batch.head_rows * sizeof *opt_weight, &weight));
    if (pass->sent.opt_teacher != NULL) {
        MB_TRY(backward_distil(pass, weight, out_dh));
        goto done;
    }
    MB_TRY(mb_block_new1(c, pass->batch.head_rows, &loss));
    MB_TRY(mb_ops_head_loss(lm->ops, &pass->head_h, &lm->head->weight, pass->sent.targets, &loss, NULL,
                            weight, out_dh, mb_block_gradient(lm->head)));
done:
    return status;
}

static mb_status backward_head(mb_lm_pass *pass, const float *opt_weight, mb_tensor *dx)
{
    mb_status status = MB_OK;
    mb_lm *lm = pass->lm;
    const mb_arena_mark mark = mb_arena_mark_get(pass->arena);
    const bool below = mb_params_lowest_trained(lm->params) < lm->arch.layers;
    mb_tensor dh, dhead;
    if (pass->batch.head_rows == 0) goto done;
    MB_TRY(backward_head_rows(pass, opt_weight, &dh));
    if (dh.dims == 0 || (!below && !lm->final_norm->trained)) goto done;
    MB_TRY(mb_block_new2(&pass->context, pass->batch.head_rows, lm->arch.width, &dhead));
    MB_TRY(mb_ops_rms_norm_backward(lm->ops, &dh, &pass->head_x, &lm->final_norm->value, &pass->head_rstd,
                                    false, &dhead, mb_block_gradient(lm->final_norm)));
    if (below) MB_TRY(mb_ops_embedding_backward(lm->ops, pass->sent.head_row, &dhead, dx));
done:
    mb_arena_release(pass->arena, mark);
    return status;
}

static mb_status backward_hidden(mb_lm_pass *pass, const float *d_hidden, mb_tensor *dx)
{
    mb_status status = MB_OK;
    mb_lm *lm = pass->lm;
    const mb_arena_mark mark = mb_arena_mark_get(pass->arena);
    const int64_t t = pass->batch.tokens, d = lm->arch.width;
    const void *data;
    MB_TRY(mb_block_input(&pass->context, d_hidden, (size_t)(t * d) * sizeof *d_hidden, &data));
    const mb_tensor dh = mb_tensor_view2(MB_F32, (void *)data, t, d);
    MB_TRY(mb_ops_rms_norm_backward(lm->ops, &dh, &pass->x, &lm->final_norm->value, &pass->x_rstd, true, dx,
                                    mb_block_gradient(lm->final_norm)));
done:
    mb_arena_release(pass->arena, mark);
    return status;
}

/* ---- 2. blocks ---- */

/* A block's forward once more from its kept input, this time keeping what its backward needs. */
static mb_status backward_again(mb_lm_pass *pass, int64_t index)
{
    mb_status status = MB_OK;
    mb_tensor x;
    const bool gate_only = pass->saved[index].is_gate_only;
    MB_TRY(mb_block_keep(&pass->context, &pass->inputs[index], &x));
    memset(&pass->saved[index], 0, sizeof pass->saved[index]);
    pass->context.gradient = true;
    status = mb_lm_forward_block(pass, index, gate_only, &x);
    pass->context.gradient = false;
    MB_TRY(status);
done:
    return status;
}

static mb_status backward_block(mb_lm_pass *pass, int64_t index, const float *opt_d_router_logits,
                                mb_tensor *dx)
{
    mb_status status = MB_OK;
    mb_params *params = pass->lm->params;
    mb_block *block = &pass->lm->blocks[index];
    const mb_arena_mark mark = mb_arena_mark_get(pass->arena);
    if (pass->inputs[index].dims > 0) MB_TRY(backward_again(pass, index));
    MB_TRY(mb_params_gradient_begin(params, index));
    MB_TRY(mb_block_backward(&pass->context, params, block, &pass->saved[index], opt_d_router_logits, dx));
    MB_TRY(mb_params_gradient_end(params, index));
done:
    mb_arena_release(pass->arena, mark);
    return status;
}

static mb_status backward_check(const mb_lm_pass *pass, const float *opt_d_hidden)
{
    mb_status status = MB_OK;
    mb_params *params = pass->lm->params;
    const bool by_block = mb_params_has_sink(params);
    if (!pass->is_ready) MB_RAISE(MB_EUSAGE, "backward: there was no forward with gradient in this pass");
    if (opt_d_hidden != NULL && !pass->want.hidden)
        MB_RAISE(MB_EUSAGE, "backward: a gradient of the hidden state, which the forward was not asked for");
    for (int64_t i = 0; i < mb_params_count(params); i++) {
        const mb_param *param = mb_params_at(params, i);
        if (!param->trained || by_block) continue;
        if (param->gradient.data == NULL)
            MB_RAISE(MB_EUSAGE, "backward: no gradient is bound (mb_params_bind_gradient)");
        break;
    }
done:
    return status;
}

static mb_status backward_ends(mb_lm_pass *pass, const float *opt_weight, const float *opt_d_hidden,
                               mb_tensor *dx)
{
    mb_status status = MB_OK;
    mb_lm *lm = pass->lm;
    MB_TRY(mb_params_acquire(lm->params, lm->arch.layers));
    if (lm->arch.tied_head) MB_TRY(mb_params_acquire(lm->params, MB_PARAMS_EMBEDDING));
    status = backward_head(pass, opt_weight, dx);
    if (status == MB_OK && opt_d_hidden != NULL) status = backward_hidden(pass, opt_d_hidden, dx);
    if (lm->arch.tied_head) mb_params_release(lm->params, MB_PARAMS_EMBEDDING);
    mb_params_release(lm->params, lm->arch.layers);
    MB_TRY(status);
    MB_TRY(mb_params_gradient_end(lm->params, lm->arch.layers));
done:
    return status;
}

mb_status mb_lm_gradient_begin(mb_lm *lm)
{
    mb_status status = MB_OK;
    if (lm->fuse != NULL) return mb_fuse_gradient_begin(lm);
    if (lm->arch.tied_head) MB_TRY(mb_params_gradient_begin(lm->params, MB_PARAMS_EMBEDDING));
    MB_TRY(mb_params_gradient_begin(lm->params, lm->arch.layers));
done:
    return status;
}

/* What is sent from here on stays in an arena of its own: the next forward need not wait for this backward,
 * whose uploads may still be queued then. */
mb_status mb_lm_backward_begin(mb_lm_pass *pass)
{
    mb_status status = MB_OK;
    if (pass->is_queued_back) MB_TRY(mb_lm_pass_wait(pass));
    mb_arena_reset(pass->host_back);
    pass->context.host = pass->host_back;
    pass->is_queued_back = true;
done:
    return status;
}

mb_status mb_lm_backward(mb_lm_pass *pass, const float *opt_d_token_loss, float *const *opt_d_router_logits,
                         const float *opt_d_hidden)
{
    mb_status status = MB_OK;
    mb_lm *lm = pass->lm;
    const mb_arena_mark mark = mb_arena_mark_get(pass->arena);
    const int64_t lowest = mb_params_lowest_trained(lm->params), layers = lm->arch.layers;
    int64_t router = mb_arch_moe_layers(&lm->arch);
    mb_tensor dx;
    MB_TRY(backward_check(pass, opt_d_hidden));
    if (lm->fuse != NULL) return mb_fuse_backward(pass, opt_d_token_loss, opt_d_router_logits);
    if (lowest > layers) goto done;
    MB_TRY(mb_lm_backward_begin(pass));
    MB_TRY(mb_lm_gradient_begin(lm));
    MB_TRY(mb_block_new2(&pass->context, pass->batch.tokens, lm->arch.width, &dx));
    MB_TRY(mb_ops_zero(lm->ops, dx.data, mb_tensor_bytes(&dx)));
    MB_TRY(backward_ends(pass, opt_d_token_loss, opt_d_hidden, &dx));
    for (int64_t i = layers - 1; i >= 0 && i >= lowest; i--) {
        const float *outside = NULL;
        if (lm->blocks[i].is_moe) router--;
        if (lm->blocks[i].is_moe && opt_d_router_logits != NULL) outside = opt_d_router_logits[router];
        MB_TRY(backward_block(pass, i, outside, &dx));
    }
    if (!lm->embedding->trained) goto done;
    MB_TRY(mb_params_gradient_begin(lm->params, MB_PARAMS_EMBEDDING));
    MB_TRY(mb_ops_embedding_backward(lm->ops, pass->sent.ids, &dx, &lm->embedding->gradient));
    MB_TRY(mb_params_gradient_end(lm->params, MB_PARAMS_EMBEDDING));
done:
    mb_arena_release(pass->arena, mark);
    return status;
}
