/* block: finding a decoder layer's parameters, and small helpers of its halves.
 *
 * 1. parameters
 * 2. what the backward pass has to compute
 * 3. both halves
 * 4. tensors in the arena
 */
#include "model/block.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

enum { PLACE_Q, PLACE_K, PLACE_V, PLACE_O, PLACE_ROUTER, PLACE_GATE, PLACE_UP, PLACE_DOWN, PLACES = 16 };

/* ---- 1. parameters ---- */

static mb_param *block_param(mb_params *params, int64_t index, const char *name)
{
    char text[160];
    snprintf(text, sizeof text, "model.layers.%lld.%s", (long long)index, name);
    return mb_params_find(params, text);
}

static void block_project(mb_projection *projection, mb_params *params, int64_t index, const char *name,
                          int place)
{
    char text[160];
    snprintf(text, sizeof text, "model.layers.%lld.%s", (long long)index, name);
    mb_projection_find(projection, params, text, (uint32_t)(index * PLACES + place));
}

static mb_status block_find_experts(mb_block *block, mb_params *params, const mb_arch *arch, int64_t index)
{
    mb_status status = MB_OK;
    char text[96];
    const uint32_t sub = (uint32_t)(index * PLACES);
    const int64_t n = arch->experts;
    const mb_family_facts *names = mb_arch_facts(arch);
    snprintf(text, sizeof text, "%s.gate", names->moe);
    block_project(&block->router, params, index, text, PLACE_ROUTER);
    snprintf(text, sizeof text, "%s.gate." MB_PARAMS_ROUTER_BIAS, names->moe);
    block->router_bias = block_param(params, index, text);
    snprintf(text, sizeof text, "model.layers.%lld.%s.experts", (long long)index, names->moe);
    MB_TRY(mb_projection_group_find(&block->experts_gate, params, text, names->gate, n, sub + PLACE_GATE));
    MB_TRY(mb_projection_group_find(&block->experts_up, params, text, names->up, n, sub + PLACE_UP));
    MB_TRY(mb_projection_group_find(&block->experts_down, params, text, names->down, n, sub + PLACE_DOWN));
done:
    return status;
}

/* ---- 2. what the backward pass has to compute ---- */

static bool block_trains(const mb_param *opt_param)
{
    return opt_param != NULL && opt_param->trained;
}

static void block_plan(mb_block *b, int64_t index, int64_t lowest)
{
    b->needs_any = lowest <= index;
    b->needs_input = lowest < index;
    b->needs_qkv = b->needs_input || block_trains(b->input_norm) || block_trains(b->q_norm) ||
                   block_trains(b->k_norm) || mb_projection_is_trained(&b->q) ||
                   mb_projection_is_trained(&b->k) || mb_projection_is_trained(&b->v);
    b->needs_attention = b->needs_qkv || mb_projection_is_trained(&b->o);
    b->needs_ffn_input = b->needs_attention || block_trains(b->post_norm);
    if (b->is_moe) {
        b->needs_router = b->needs_ffn_input || mb_projection_is_trained(&b->router);
        b->needs_experts = b->needs_ffn_input || mb_projection_group_is_trained(&b->experts_gate) ||
                           mb_projection_group_is_trained(&b->experts_up) ||
                           mb_projection_group_is_trained(&b->experts_down);
    } else {
        b->needs_experts = b->needs_ffn_input || mb_projection_is_trained(&b->gate) ||
                           mb_projection_is_trained(&b->up) || mb_projection_is_trained(&b->down);
    }
}

mb_status mb_block_find(mb_block *block, const mb_arch *arch, mb_params *params, int64_t index,
                        bool input_gradient)
{
    mb_status status = MB_OK;
    const int64_t lowest = input_gradient ? MB_PARAMS_EMBEDDING : mb_params_lowest_trained(params);
    block->input_norm = block_param(params, index, "input_layernorm.weight");
    block->post_norm = block_param(params, index, "post_attention_layernorm.weight");
    block->q_norm = block_param(params, index, "self_attn.q_norm.weight");
    block->k_norm = block_param(params, index, "self_attn.k_norm.weight");
    block_project(&block->q, params, index, "self_attn.q_proj", PLACE_Q);
    block_project(&block->k, params, index, "self_attn.k_proj", PLACE_K);
    block_project(&block->v, params, index, "self_attn.v_proj", PLACE_V);
    block_project(&block->o, params, index, "self_attn.o_proj", PLACE_O);
    block->index = index;
    block->window = mb_arch_window(arch, index);
    block->is_moe = mb_arch_is_moe(arch, index);
    if (block->is_moe) {
        MB_TRY(block_find_experts(block, params, arch, index));
    } else {
        block_project(&block->gate, params, index, "mlp.gate_proj", PLACE_GATE);
        block_project(&block->up, params, index, "mlp.up_proj", PLACE_UP);
        block_project(&block->down, params, index, "mlp.down_proj", PLACE_DOWN);
    }
    block_plan(block, index, lowest);
done:
    return status;
}

void mb_block_reset(mb_block *block)
{
    mb_projection_group_reset(&block->experts_gate);
    mb_projection_group_reset(&block->experts_up);
    mb_projection_group_reset(&block->experts_down);
}

/* ---- 3. both halves ---- */

mb_status mb_block_forward(const mb_block_context *context, mb_params *params, mb_block *block,
                           bool gate_only, mb_tensor *x, mb_block_saved *saved)
{
    mb_status status = MB_OK;
    MB_TRY(mb_params_acquire(params, block->index));
    status = mb_attention_block_forward(context, block, x, saved);
    saved->is_gate_only = gate_only;
    if (status == MB_OK)
        status = block->is_moe ? mb_experts_forward(context, block, x, saved)
                               : mb_ffn_forward(context, block, x, saved);
    mb_params_release(params, block->index);
done:
    return status;
}

mb_status mb_block_backward(const mb_block_context *context, mb_params *params, mb_block *block,
                            const mb_block_saved *saved, const float *opt_d_router_logits, mb_tensor *dx)
{
    mb_status status = MB_OK;
    MB_TRY(mb_params_acquire(params, block->index));
    status = block->is_moe ? mb_experts_backward(context, block, saved, opt_d_router_logits, dx)
                           : mb_ffn_backward(context, block, saved, dx);
    if (status == MB_OK && block->needs_attention)
        status = mb_attention_block_backward(context, block, saved, dx);
    mb_params_release(params, block->index);
done:
    return status;
}

/* ---- 4. tensors in the arena ---- */

static mb_status block_new(const mb_block_context *context, mb_tensor tensor, mb_tensor *out)
{
    mb_status status = MB_OK;
    char *data;
    MB_ARENA_ARRAY(context->p.arena, data,
                   tensor.shape[0] * tensor.shape[1] * tensor.shape[2] *
                       (int64_t)mb_dtype_bytes(tensor.dtype));
    tensor.data = data;
    *out = tensor;
done:
    return status;
}

mb_status mb_block_new3(const mb_block_context *context, int64_t n0, int64_t n1, int64_t n2, mb_tensor *out)
{
    return block_new(context, mb_tensor_view3(MB_F32, NULL, n0, n1, n2), out);
}

mb_status mb_block_new2(const mb_block_context *context, int64_t n0, int64_t n1, mb_tensor *out)
{
    return block_new(context, mb_tensor_view2(MB_F32, NULL, n0, n1), out);
}

mb_status mb_block_new1(const mb_block_context *context, int64_t n0, mb_tensor *out)
{
    return block_new(context, mb_tensor_view1(MB_F32, NULL, n0), out);
}

mb_status mb_block_act2(const mb_block_context *context, int64_t n0, int64_t n1, mb_tensor *out)
{
    return block_new(context, mb_tensor_view2(context->dtype, NULL, n0, n1), out);
}

mb_status mb_block_act3(const mb_block_context *context, int64_t n0, int64_t n1, int64_t n2, mb_tensor *out)
{
    return block_new(context, mb_tensor_view3(context->dtype, NULL, n0, n1, n2), out);
}

mb_status mb_block_cast(const mb_block_context *context, const mb_tensor *x, mb_tensor *out)
{
    mb_status status = MB_OK;
    mb_tensor y = *x;
    if (x->dtype != context->dtype) {
        MB_TRY(mb_block_act2(context, x->shape[0], mb_tensor_count(x) / x->shape[0], &y));
        MB_TRY(mb_ops_cast(context->p.ops, x, &y));
    }
    *out = y;
done:
    return status;
}

mb_status mb_block_keep(const mb_block_context *context, const mb_tensor *x, mb_tensor *out)
{
    mb_status status = MB_OK;
    const int64_t width = mb_tensor_count(x) / x->shape[0];
    MB_TRY(block_new(context, mb_tensor_view2(x->dtype, NULL, x->shape[0], width), out));
    MB_TRY(mb_ops_copy(context->p.ops, x->data, mb_tensor_bytes(x), out->data));
done:
    return status;
}

/* Where uploads are queued, what they read has to stay: a copy in the host arena. */
static mb_status block_stage(const mb_block_context *context, const void *host, size_t bytes,
                             const void **out)
{
    mb_status status = MB_OK;
    char *copy;
    *out = host;
    if (!mb_ops_is_device(context->p.ops)) goto done;
    MB_ARENA_ARRAY(context->host, copy, bytes);
    memcpy(copy, host, bytes);
    *out = copy;
done:
    return status;
}

mb_status mb_block_send(const mb_block_context *context, const void *host, mb_tensor *out)
{
    mb_status status = MB_OK;
    const void *staged;
    MB_TRY(block_stage(context, host, mb_tensor_bytes(out), &staged));
    MB_TRY(mb_ops_upload(context->p.ops, staged, mb_tensor_bytes(out), out->data));
done:
    return status;
}

mb_status mb_block_input(const mb_block_context *context, const void *host, size_t bytes, const void **out)
{
    mb_status status = MB_OK;
    const void *staged;
    MB_TRY(block_stage(context, host, bytes, &staged));
    MB_TRY(mb_ops_input(context->p.ops, context->p.arena, staged, bytes, out));
done:
    return status;
}

mb_tensor *mb_block_gradient(mb_param *param)
{
    return param->trained ? &param->gradient : NULL;
}
