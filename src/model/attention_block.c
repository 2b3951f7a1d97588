/* attention_block: the attention half of a decoder layer.
 *
 * 1. forward
 * 2. backward
 *
 * Forward: n = norm(x); q, k, v = W n + b; OLMoE: RMS norm over the whole of q and of k, Qwen3: of each
 * head; clip; rotate; attend within segments (and their kept keys); x += W_o o. Kept: x, the raw q and k
 * (when they are normed or clipped after), rotated q and k, v, o, lse.
 */
#include "model/block.h"

/* ---- 1. forward ---- */

static mb_tensor attention_flat(const mb_tensor *x)
{
    return mb_tensor_view2(x->dtype, x->data, x->shape[0], x->shape[1] * x->shape[2]);
}

static mb_status attention_allocate(const mb_block_context *c, const mb_block *block, mb_block_saved *s)
{
    mb_status status = MB_OK;
    const int64_t t = c->tokens, h = c->arch->heads, g = c->arch->kv_heads, d = c->arch->head_width;
    s->q_raw = s->k_raw = (mb_tensor){0};
    MB_TRY(mb_block_new1(c, t, &s->rstd_in));
    MB_TRY(mb_block_act3(c, t, h, d, &s->q));
    MB_TRY(mb_block_act3(c, t, g, d, &s->k));
    MB_TRY(mb_block_act3(c, t, g, d, &s->v));
    MB_TRY(mb_block_act3(c, t, h, d, &s->o));
    MB_TRY(mb_block_new2(c, t, h, &s->lse));
    if (block->q_norm == NULL) goto done;
    const bool by_head = c->arch->qk_norm == MB_QK_NORM_HEAD;
    MB_TRY(mb_block_act2(c, t, h * d, &s->q_raw));
    MB_TRY(mb_block_act2(c, t, g * d, &s->k_raw));
    MB_TRY(mb_block_new1(c, by_head ? t * h : t, &s->q_rstd));
    MB_TRY(mb_block_new1(c, by_head ? t * g : t, &s->k_rstd));
done:
    return status;
}

/* One of q and k: project, norm, clip, rotate. */
static mb_status attention_turned(const mb_block_context *c, mb_projection *projection,
                                  const mb_param *opt_norm, mb_tensor *raw, mb_tensor *rstd, mb_tensor *y)
{
    mb_status status = MB_OK;
    mb_tensor flat = attention_flat(y);
    mb_ops *ops = c->p.ops;
    if (opt_norm != NULL) {
        MB_TRY(mb_projection_forward(&c->p, projection, &c->normed_act, false, raw));
        MB_TRY(mb_ops_rms_norm(ops, raw, &opt_norm->value, (float)c->arch->rms_eps, &flat, rstd));
    } else {
        MB_TRY(mb_projection_forward(&c->p, projection, &c->normed_act, false, &flat));
        if (c->arch->clip_qkv > 0 && c->gradient) MB_TRY(mb_block_keep(c, &flat, raw));
    }
    if (c->arch->clip_qkv > 0) MB_TRY(mb_ops_clamp(ops, (float)c->arch->clip_qkv, &flat));
    MB_TRY(mb_ops_rope(ops, y, c->positions, c->rope, false));
done:
    return status;
}

/* Puts the new keys and values behind those kept and attends to all of them. */
static mb_status attention_attend_kept(const mb_block_context *c, const mb_block *block, mb_block_saved *s,
                                       const mb_attention_shape *shape)
{
    mb_status status = MB_OK;
    mb_kv_cache *cache = c->opt_cache;
    MB_TRY(mb_kv_cache_write(cache, block->index, &s->k, &s->v, c->opt_cache_row));
    MB_TRY(mb_ops_attention(c->p.ops, shape, &s->q, &cache->k[block->index], &cache->v[block->index], &s->o,
                            &s->lse));
done:
    return status;
}

static mb_status attention_attend(const mb_block_context *c, const mb_block *block, mb_block_saved *s)
{
    mb_attention_shape shape = c->shape;
    shape.window = block->window;
    if (c->opt_cache != NULL) return attention_attend_kept(c, block, s, &shape);
    return mb_ops_attention(c->p.ops, &shape, &s->q, &s->k, &s->v, &s->o, &s->lse);
}

mb_status mb_attention_block_forward(const mb_block_context *context, mb_block *block, mb_tensor *x,
                                     mb_block_saved *saved)
{
    mb_status status = MB_OK;
    const mb_block_context *c = context;
    mb_block_saved *s = saved;
    mb_tensor normed = c->normed_act;
    const mb_arena_mark mark = mb_arena_mark_get(c->p.arena);
    const bool keep = c->gradient && block->needs_attention;
    if (keep) MB_TRY(mb_block_keep(c, x, &s->x_in));
    MB_TRY(attention_allocate(c, block, s));
    MB_TRY(mb_ops_rms_norm(c->p.ops, x, &block->input_norm->value, (float)c->arch->rms_eps, &normed,
                           &s->rstd_in));
    MB_TRY(attention_turned(c, &block->q, block->q_norm, &s->q_raw, &s->q_rstd, &s->q));
    MB_TRY(attention_turned(c, &block->k, block->k_norm, &s->k_raw, &s->k_rstd, &s->k));
    mb_tensor v = attention_flat(&s->v), o = attention_flat(&s->o);
    MB_TRY(mb_projection_forward(&c->p, &block->v, &c->normed_act, false, &v));
    if (c->arch->clip_qkv > 0) MB_TRY(mb_ops_clamp(c->p.ops, (float)c->arch->clip_qkv, &v));
    MB_TRY(attention_attend(c, block, s));
    MB_TRY(mb_projection_forward(&c->p, &block->o, &o, true, x));
done:
    if (!keep) mb_arena_release(c->p.arena, mark);
    return status;
}

/* ---- 2. backward ---- */

/* Gradient of rotated q or k -> gradient of its projection's output (returned in out, a view or a new
 * tensor). */
static mb_status attention_unturn(const mb_block_context *c, mb_param *opt_norm, const mb_tensor *raw,
                                  const mb_tensor *rstd, mb_tensor *dy, mb_tensor *out)
{
    mb_status status = MB_OK;
    mb_ops *ops = c->p.ops;
    mb_tensor flat = attention_flat(dy);
    MB_TRY(mb_ops_rope(ops, dy, c->positions, c->rope, true));
    if (c->arch->clip_qkv > 0) {
        mb_tensor clipped, again;
        MB_TRY(mb_block_keep(c, raw, &clipped));
        if (opt_norm != NULL) {
            MB_TRY(mb_block_new1(c, mb_tensor_count(rstd), &again));
            MB_TRY(mb_ops_rms_norm(ops, raw, &opt_norm->value, (float)c->arch->rms_eps, &clipped, &again));
        }
        MB_TRY(mb_ops_clamp(ops, (float)c->arch->clip_qkv, &clipped));
        MB_TRY(mb_ops_clamp_backward(ops, (float)c->arch->clip_qkv, &clipped, &flat));
    }
    *out = flat;
    if (opt_norm == NULL) goto done;
    MB_TRY(mb_block_act2(c, flat.shape[0], flat.shape[1], out));
    MB_TRY(mb_ops_rms_norm_backward(ops, &flat, raw, &opt_norm->value, rstd, false, out,
                                    mb_block_gradient(opt_norm)));
done:
    return status;
}

static bool attention_reads_input(const mb_block *block)
{
    return mb_projection_is_trained(&block->q) || mb_projection_is_trained(&block->k) ||
           mb_projection_is_trained(&block->v);
}

/* From the gradients of q, k, v to that of x. */
static mb_status attention_backward_input(const mb_block_context *c, mb_block *block, const mb_block_saved *s,
                                          const mb_tensor *dq, const mb_tensor *dk, const mb_tensor *dv,
                                          mb_tensor *dx)
{
    mb_status status = MB_OK;
    mb_tensor normed = {0}, again, dn, *out = NULL;
    mb_ops *ops = c->p.ops;
    const mb_tensor *norm = &block->input_norm->value;
    if (attention_reads_input(block)) {
        MB_TRY(mb_block_new1(c, c->tokens, &again));
        MB_TRY(mb_block_act2(c, c->tokens, c->arch->width, &normed));
        MB_TRY(mb_ops_rms_norm(ops, &s->x_in, norm, (float)c->arch->rms_eps, &normed, &again));
    }
    if (block->needs_input || block->input_norm->trained) {
        MB_TRY(mb_block_new2(c, c->tokens, c->arch->width, &dn));
        out = &dn;
    }
    MB_TRY(mb_projection_backward(&c->p, &block->q, dq, &normed, false, out));
    MB_TRY(mb_projection_backward(&c->p, &block->k, dk, &normed, true, out));
    MB_TRY(mb_projection_backward(&c->p, &block->v, dv, &normed, true, out));
    if (out != NULL)
        MB_TRY(mb_ops_rms_norm_backward(ops, &dn, &s->x_in, norm, &s->rstd_in, true, dx,
                                        mb_block_gradient(block->input_norm)));
done:
    return status;
}

mb_status mb_attention_block_backward(const mb_block_context *context, mb_block *block,
                                      const mb_block_saved *saved, mb_tensor *dx)
{
    mb_status status = MB_OK;
    const mb_block_context *c = context;
    const mb_block_saved *s = saved;
    const int64_t t = c->tokens, h = c->arch->heads, g = c->arch->kv_heads, d = c->arch->head_width;
    const mb_arena_mark mark = mb_arena_mark_get(c->p.arena);
    mb_tensor dx_act, d_o, dq, dk, dv, dq_raw, dk_raw, flat = attention_flat(&s->o);
    mb_attention_shape shape = c->shape;
    shape.window = block->window;
    MB_TRY(mb_block_cast(c, dx, &dx_act));
    MB_TRY(mb_block_act3(c, t, h, d, &d_o));
    mb_tensor d_o_flat = attention_flat(&d_o);
    MB_TRY(
        mb_projection_backward(&c->p, &block->o, &dx_act, &flat, false, block->needs_qkv ? &d_o_flat : NULL));
    if (!block->needs_qkv) goto done;
    MB_TRY(mb_block_act3(c, t, h, d, &dq));
    MB_TRY(mb_block_act3(c, t, g, d, &dk));
    MB_TRY(mb_block_act3(c, t, g, d, &dv));
    MB_TRY(mb_ops_attention_backward(c->p.ops, &shape, &s->q, &s->k, &s->v, &s->o, &s->lse, &d_o, &dq, &dk,
                                     &dv));
    MB_TRY(attention_unturn(c, block->q_norm, &s->q_raw, &s->q_rstd, &dq, &dq_raw));
    MB_TRY(attention_unturn(c, block->k_norm, &s->k_raw, &s->k_rstd, &dk, &dk_raw));
    mb_tensor v = attention_flat(&s->v), dv_raw = attention_flat(&dv);
    if (c->arch->clip_qkv > 0) MB_TRY(mb_ops_clamp_backward(c->p.ops, (float)c->arch->clip_qkv, &v, &dv_raw));
    MB_TRY(attention_backward_input(c, block, s, &dq_raw, &dk_raw, &dv_raw, dx));
done:
    mb_arena_release(c->p.arena, mark);
    return status;
}
