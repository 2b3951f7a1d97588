/* experts: the mixture-of-experts half of a decoder layer.
 *
 * 1. routing
 * 2. forward through the experts
 * 3. backward: weights of the picks, experts, router, norm
 *
 * n = norm(x); logits = W_g n; softmax over all E' columns (trash columns with their bias), top K (of p + b
 * where the router has a selection bias b, which the weights do not see); picks of experts >= E are trash:
 * they take weight and give nothing. x += sum_k w_k expert_k(n).
 */
#include "model/block.h"

/* ---- 1. routing ---- */

static mb_status experts_route(const mb_block_context *c, const mb_block *block, const mb_block_saved *s,
                               mb_tensor *probs, mb_tensor *weights)
{
    mb_status status = MB_OK;
    const mb_arena_mark mark = mb_arena_mark_get(c->p.arena);
    const int64_t good = c->arch->experts, all = mb_arch_gates(c->arch);
    const float bias = (float)c->arch->trash_logit_bias;
    mb_tensor logits = s->router_logits;
    if (all > good && bias != 0) {
        MB_TRY(mb_block_keep(c, &s->router_logits, &logits));
        MB_TRY(mb_ops_shift_columns(c->p.ops, good, bias, &logits));
    }
    MB_TRY(mb_ops_route(c->p.ops, &logits, block->router_bias != NULL ? &block->router_bias->value : NULL,
                        c->arch->picks, c->arch->normalise_picks, probs, s->ids, weights));
done:
    mb_arena_release(c->p.arena, mark);
    return status;
}

static mb_status experts_dispatch(const mb_block_context *c, mb_block_saved *s)
{
    mb_status status = MB_OK;
    const int64_t n = c->tokens * c->arch->picks;
    MB_ARENA_ARRAY(c->p.arena, s->dispatch.row_token, n);
    MB_ARENA_ARRAY(c->p.arena, s->dispatch.slot_row, n);
    MB_ARENA_ARRAY(c->p.arena, s->dispatch.offsets, c->arch->experts + 1);
    MB_TRY(mb_ops_dispatch(c->p.ops, s->ids, c->tokens, c->arch->picks, c->arch->experts, &s->dispatch));
done:
    return status;
}

/* The experts' rows have draws of their own: row (token, pick) is number row_index[token] * K + pick. */
static mb_status experts_rows(const mb_block_context *c, const mb_block_saved *s, mb_projection_context *out)
{
    mb_status status = MB_OK;
    *out = c->p;
    if (c->p.row_index == NULL || c->p.dropout <= 0) goto done;
    int64_t *rows;
    const int64_t picks = c->arch->picks;
    MB_ARENA_ARRAY(c->p.arena, rows, c->tokens * picks);
    MB_TRY(mb_ops_expand_rows(c->p.ops, &s->dispatch, c->p.row_index, c->tokens, picks, rows));
    out->row_index = rows;
done:
    return status;
}

/* ---- 2. forward ---- */

static mb_status experts_run(const mb_block_context *c, mb_block *block, mb_tensor *x, mb_block_saved *s)
{
    mb_status status = MB_OK;
    const int64_t rows = s->dispatch.rows, d = c->arch->width, f = c->arch->ffn;
    mb_arena_mark mark = mb_arena_mark_get(c->p.arena);
    const bool keep_inside = c->gradient && block->needs_experts;
    const bool keep_out = c->gradient && block->needs_any;
    mb_projection_context p;
    mb_tensor sent, act;
    if (rows == 0) goto done;
    if (keep_out) {
        MB_TRY(mb_block_act2(c, rows, d, &s->out));
        mark = mb_arena_mark_get(c->p.arena);
    }
    MB_TRY(mb_block_act2(c, rows, f, &s->gate));
    MB_TRY(mb_block_act2(c, rows, f, &s->up));
    if (keep_inside) mark = mb_arena_mark_get(c->p.arena);
    if (!keep_out) MB_TRY(mb_block_act2(c, rows, d, &s->out));
    MB_TRY(experts_rows(c, s, &p));
    MB_TRY(mb_block_act2(c, rows, d, &sent));
    MB_TRY(mb_ops_gather(c->p.ops, &c->normed, &s->dispatch, &sent));
    MB_TRY(mb_projection_group_forward(&p, &block->experts_gate, &s->dispatch, &sent, &s->gate));
    MB_TRY(mb_projection_group_forward(&p, &block->experts_up, &s->dispatch, &sent, &s->up));
    MB_TRY(mb_block_act2(c, rows, f, &act));
    MB_TRY(mb_ops_swiglu(c->p.ops, &s->gate, &s->up, &act));
    MB_TRY(mb_projection_group_forward(&p, &block->experts_down, &s->dispatch, &act, &s->out));
    MB_TRY(mb_ops_combine(c->p.ops, &s->out, &s->dispatch, &s->weights, x));
done:
    mb_arena_release(c->p.arena, mark);
    return status;
}

mb_status mb_experts_forward(const mb_block_context *context, mb_block *block, mb_tensor *x,
                             mb_block_saved *saved)
{
    mb_status status = MB_OK;
    const mb_block_context *c = context;
    mb_block_saved *s = saved;
    mb_tensor normed = c->normed;
    const int64_t t = c->tokens, gates = mb_arch_gates(c->arch);
    const bool keep = c->gradient && block->needs_any;
    MB_TRY(mb_block_new2(c, t, gates, &s->router_logits));
    MB_ARENA_ARRAY(c->p.arena, s->ids, t * c->arch->picks);
    const mb_arena_mark mark = mb_arena_mark_get(c->p.arena);
    if (keep) MB_TRY(mb_block_keep(c, x, &s->x_mid));
    MB_TRY(mb_block_new1(c, t, &s->rstd_mid));
    MB_TRY(mb_block_new2(c, t, gates, &s->probs));
    MB_TRY(mb_block_new2(c, t, c->arch->picks, &s->weights));
    MB_TRY(mb_ops_rms_norm(c->p.ops, x, &block->post_norm->value, (float)c->arch->rms_eps, &normed,
                           &s->rstd_mid));
    MB_TRY(mb_projection_forward(&c->p, &block->router, &normed, false, &s->router_logits));
    MB_TRY(experts_route(c, block, s, &s->probs, &s->weights));
    if (!s->is_gate_only) {
        MB_TRY(experts_dispatch(c, s));
        MB_TRY(experts_run(c, block, x, s));
    }
    if (!keep) mb_arena_release(c->p.arena, mark);
done:
    return status;
}

/* ---- 3. backward ---- */

/* Gradient of the router's logits: what comes from outside, and through the weights of the picks. */
static mb_status experts_backward_route(const mb_block_context *c, const mb_block_saved *s,
                                        const float *opt_outside, const mb_tensor *dweights,
                                        mb_tensor *dlogits)
{
    mb_status status = MB_OK;
    MB_TRY(mb_block_new2(c, c->tokens, mb_arch_gates(c->arch), dlogits));
    if (opt_outside != NULL)
        MB_TRY(mb_block_send(c, opt_outside, dlogits));
    else
        MB_TRY(mb_ops_zero(c->p.ops, dlogits->data, mb_tensor_bytes(dlogits)));
    if (dweights->dims > 0)
        MB_TRY(mb_ops_route_backward(c->p.ops, &s->probs, s->ids, &s->weights, c->arch->normalise_picks,
                                     dweights, dlogits));
done:
    return status;
}

static bool experts_read_input(const mb_block *block)
{
    return mb_projection_group_is_trained(&block->experts_gate) ||
           mb_projection_group_is_trained(&block->experts_up);
}

/* Through the expert matrices: dout [P, D] -> opt_dn [T, D] +=. */
static mb_status experts_backward_inside(const mb_block_context *c, mb_block *block, const mb_block_saved *s,
                                         const mb_tensor *normed, const mb_tensor *dout, mb_tensor *opt_dn)
{
    mb_status status = MB_OK;
    const int64_t rows = s->dispatch.rows, d = c->arch->width, f = c->arch->ffn;
    const bool inside = opt_dn != NULL || experts_read_input(block);
    mb_projection_context p;
    mb_tensor act = {0}, sent = {0}, dact, dgate, dup, dsent, *out = NULL;
    MB_TRY(experts_rows(c, s, &p));
    if (mb_projection_group_is_trained(&block->experts_down)) {
        MB_TRY(mb_block_act2(c, rows, f, &act));
        MB_TRY(mb_ops_swiglu(c->p.ops, &s->gate, &s->up, &act));
    }
    MB_TRY(mb_block_act2(c, rows, f, &dact));
    MB_TRY(mb_projection_group_backward(&p, &block->experts_down, &s->dispatch, dout, &act, false,
                                        inside ? &dact : NULL));
    if (!inside) goto done;
    MB_TRY(mb_block_act2(c, rows, f, &dgate));
    MB_TRY(mb_block_act2(c, rows, f, &dup));
    MB_TRY(mb_ops_swiglu_backward(c->p.ops, &dact, &s->gate, &s->up, &dgate, &dup));
    if (experts_read_input(block)) {
        MB_TRY(mb_block_act2(c, rows, d, &sent));
        MB_TRY(mb_ops_gather(c->p.ops, normed, &s->dispatch, &sent));
    }
    if (opt_dn != NULL) {
        MB_TRY(mb_block_act2(c, rows, d, &dsent));
        out = &dsent;
    }
    MB_TRY(mb_projection_group_backward(&p, &block->experts_gate, &s->dispatch, &dgate, &sent, false, out));
    MB_TRY(mb_projection_group_backward(&p, &block->experts_up, &s->dispatch, &dup, &sent, true, out));
    if (opt_dn != NULL)
        MB_TRY(mb_ops_gather_backward(c->p.ops, &dsent, &s->dispatch, c->arch->picks, opt_dn));
done:
    return status;
}

/* The parts that come through the experts' outputs: dweights for the router, and the experts themselves. */
static mb_status experts_backward_run(const mb_block_context *c, mb_block *block, const mb_block_saved *s,
                                      const mb_tensor *normed, const mb_tensor *dx, mb_tensor *dweights,
                                      mb_tensor *opt_dn)
{
    mb_status status = MB_OK;
    mb_tensor dout;
    if (s->is_gate_only || s->dispatch.rows == 0) goto done;
    MB_TRY(mb_block_act2(c, s->dispatch.rows, c->arch->width, &dout));
    if (block->needs_router) MB_TRY(mb_block_new2(c, c->tokens, c->arch->picks, dweights));
    MB_TRY(mb_ops_combine_backward(c->p.ops, dx, &s->out, &s->dispatch, &s->weights, &dout,
                                   block->needs_router ? dweights : NULL));
    if (block->needs_experts) MB_TRY(experts_backward_inside(c, block, s, normed, &dout, opt_dn));
done:
    return status;
}

mb_status mb_experts_backward(const mb_block_context *context, mb_block *block, const mb_block_saved *saved,
                              const float *opt_d_router_logits, mb_tensor *dx)
{
    mb_status status = MB_OK;
    const mb_block_context *c = context;
    const mb_block_saved *s = saved;
    const mb_tensor *norm = &block->post_norm->value;
    const mb_arena_mark mark = mb_arena_mark_get(c->p.arena);
    mb_tensor normed = {0}, again, dn, dweights = {0}, dlogits, *out = NULL;
    if (experts_read_input(block) || mb_projection_is_trained(&block->router)) {
        MB_TRY(mb_block_new1(c, c->tokens, &again));
        MB_TRY(mb_block_new2(c, c->tokens, c->arch->width, &normed));
        MB_TRY(mb_ops_rms_norm(c->p.ops, &s->x_mid, norm, (float)c->arch->rms_eps, &normed, &again));
    }
    if (block->needs_ffn_input) {
        MB_TRY(mb_block_new2(c, c->tokens, c->arch->width, &dn));
        MB_TRY(mb_ops_zero(c->p.ops, dn.data, mb_tensor_bytes(&dn)));
        out = &dn;
    }
    MB_TRY(experts_backward_run(c, block, s, &normed, dx, &dweights, out));
    if (block->needs_router) {
        MB_TRY(experts_backward_route(c, s, opt_d_router_logits, &dweights, &dlogits));
        MB_TRY(mb_projection_backward(&c->p, &block->router, &dlogits, &normed, true, out));
    }
    if (out != NULL)
        MB_TRY(mb_ops_rms_norm_backward(c->p.ops, &dn, &s->x_mid, norm, &s->rstd_mid, true, dx,
                                        mb_block_gradient(block->post_norm)));
done:
    mb_arena_release(c->p.arena, mark);
    return status;
}
