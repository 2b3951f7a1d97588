/* ffn: the dense feed-forward half of a decoder layer, x += W_down (silu(W_gate n) * W_up n), n = norm(x).
 *
 * 1. forward
 * 2. backward
 */
#include "model/block.h"

/* ---- 1. forward ---- */

mb_status mb_ffn_forward(const mb_block_context *context, mb_block *block, mb_tensor *x,
                         mb_block_saved *saved)
{
    mb_status status = MB_OK;
    const mb_block_context *c = context;
    mb_block_saved *s = saved;
    mb_tensor normed = c->normed_act, act;
    const int64_t t = c->tokens, f = mb_arch_dense_ffn(c->arch);
    mb_arena_mark mark = mb_arena_mark_get(c->p.arena);
    const bool keep = c->gradient && block->needs_any;
    if (keep) MB_TRY(mb_block_keep(c, x, &s->x_mid));
    MB_TRY(mb_block_new1(c, t, &s->rstd_mid));
    MB_TRY(mb_block_act2(c, t, f, &s->gate));
    MB_TRY(mb_block_act2(c, t, f, &s->up));
    if (keep) mark = mb_arena_mark_get(c->p.arena);
    MB_TRY(mb_block_act2(c, t, f, &act));
    MB_TRY(mb_ops_rms_norm(c->p.ops, x, &block->post_norm->value, (float)c->arch->rms_eps, &normed,
                           &s->rstd_mid));
    MB_TRY(mb_projection_forward(&c->p, &block->gate, &normed, false, &s->gate));
    MB_TRY(mb_projection_forward(&c->p, &block->up, &normed, false, &s->up));
    MB_TRY(mb_ops_swiglu(c->p.ops, &s->gate, &s->up, &act));
    MB_TRY(mb_projection_forward(&c->p, &block->down, &act, true, x));
done:
    mb_arena_release(c->p.arena, mark);
    return status;
}

/* ---- 2. backward ---- */

/* Through the two matrices that read the norm, and the norm. */
static mb_status ffn_backward_input(const mb_block_context *c, mb_block *block, const mb_block_saved *s,
                                    const mb_tensor *dgate, const mb_tensor *dup, mb_tensor *dx)
{
    mb_status status = MB_OK;
    mb_tensor normed = {0}, again, dn, *out = NULL;
    const mb_tensor *norm = &block->post_norm->value;
    if (mb_projection_is_trained(&block->gate) || mb_projection_is_trained(&block->up)) {
        MB_TRY(mb_block_new1(c, c->tokens, &again));
        MB_TRY(mb_block_act2(c, c->tokens, c->arch->width, &normed));
        MB_TRY(mb_ops_rms_norm(c->p.ops, &s->x_mid, norm, (float)c->arch->rms_eps, &normed, &again));
    }
    if (block->needs_ffn_input) {
        MB_TRY(mb_block_new2(c, c->tokens, c->arch->width, &dn));
        out = &dn;
    }
    MB_TRY(mb_projection_backward(&c->p, &block->gate, dgate, &normed, false, out));
    MB_TRY(mb_projection_backward(&c->p, &block->up, dup, &normed, true, out));
    if (out != NULL)
        MB_TRY(mb_ops_rms_norm_backward(c->p.ops, &dn, &s->x_mid, norm, &s->rstd_mid, true, dx,
                                        mb_block_gradient(block->post_norm)));
done:
    return status;
}

mb_status mb_ffn_backward(const mb_block_context *context, mb_block *block, const mb_block_saved *saved,
                          mb_tensor *dx)
{
    mb_status status = MB_OK;
    const mb_block_context *c = context;
    const mb_block_saved *s = saved;
    mb_tensor act = {0}, dx_act, dact, dgate, dup;
    const int64_t t = c->tokens, f = mb_arch_dense_ffn(c->arch);
    const mb_arena_mark mark = mb_arena_mark_get(c->p.arena);
    if (!block->needs_experts) goto done;
    const bool inside = block->needs_ffn_input || mb_projection_is_trained(&block->gate) ||
                        mb_projection_is_trained(&block->up);
    if (mb_projection_is_trained(&block->down)) {
        MB_TRY(mb_block_act2(c, t, f, &act));
        MB_TRY(mb_ops_swiglu(c->p.ops, &s->gate, &s->up, &act));
    }
    MB_TRY(mb_block_cast(c, dx, &dx_act));
    MB_TRY(mb_block_act2(c, t, f, &dact));
    MB_TRY(mb_projection_backward(&c->p, &block->down, &dx_act, &act, false, inside ? &dact : NULL));
    if (!inside) goto done;
    MB_TRY(mb_block_act2(c, t, f, &dgate));
    MB_TRY(mb_block_act2(c, t, f, &dup));
    MB_TRY(mb_ops_swiglu_backward(c->p.ops, &dact, &s->gate, &s->up, &dgate, &dup));
    MB_TRY(ffn_backward_input(c, block, s, &dgate, &dup, dx));
done:
    mb_arena_release(c->p.arena, mark);
    return status;
}
