/* lm_plan: bytes a model and one of its passes will take, counted from the architecture and what trains.
 *
 * 1. one token in one block: what is kept, what is temporary
 * 2. the whole
 */
#include "model/lm_state.h"

/* ---- 1. one token in one block, in elements ---- */

static int64_t plan_attention_kept(const mb_arch *a, const mb_block *block)
{
    const int64_t q = a->heads * a->head_width, kv = a->kv_heads * a->head_width;
    int64_t n = a->width + 1 + 2 * q + 2 * kv + a->heads;
    if (block->q_norm != NULL || a->clip_qkv > 0) n += q + kv + 2;
    return n;
}

static int64_t plan_ffn_kept(const mb_arch *a, const mb_block *block)
{
    int64_t n = a->width + 1;
    if (a->experts == 0) return n + 2 * a->ffn;
    n += mb_arch_gates(a) + 3 * a->picks + a->picks * a->width;
    return n + (block->needs_experts ? 2 * a->picks * a->ffn : 0);
}

/* Temporaries of a backward pass through a block (its halves one after the other), the stream's gradient
 * included. */
static int64_t plan_backward(const mb_arch *a, const mb_block *block)
{
    const int64_t d = a->width, q = a->heads * a->head_width, kv = a->kv_heads * a->head_width;
    const int64_t rows = a->experts > 0 ? a->picks : 1;
    int64_t attention = 0, ffn = 2 * d + rows * (a->experts > 0 ? d : 0) + mb_arch_gates(a);
    if (block->needs_experts) ffn += rows * (4 * a->ffn + (a->experts > 0 ? 2 * d : 0));
    if (block->needs_attention) attention = 3 * q + 2 * kv + (block->q_norm != NULL ? q + kv : 0) + 2 * d;
    if (a->clip_qkv > 0) attention += q + kv;
    return d + (attention > ffn ? attention : ffn);
}

static int64_t plan_forward(const mb_arch *a)
{
    const int64_t d = a->width, attention = 2 * (a->heads + a->kv_heads) * a->head_width;
    const int64_t ffn = a->experts > 0 ? a->picks * (3 * a->ffn + 2 * d) + 2 * mb_arch_gates(a) : 3 * a->ffn;
    return attention > ffn ? attention : ffn;
}

/* ---- 2. the whole ---- */

static mb_status plan_pass(const mb_arch *arch, mb_params *params, int64_t tokens, bool gradient,
                           mb_lm_plan *plan)
{
    mb_status status = MB_OK;
    int64_t kept = 2 * arch->width + 3 * arch->width + 2, most = plan_forward(arch);
    for (int64_t i = 0; i < arch->layers; i++) {
        mb_block block = {0};
        status = mb_block_find(&block, arch, params, i);
        if (arch->experts > 0) kept += mb_arch_gates(arch) + arch->picks;
        if (gradient && block.needs_any) {
            const int64_t back = plan_backward(arch, &block);
            if (back > most) most = back;
            kept +=
                plan_ffn_kept(arch, &block) + (block.needs_attention ? plan_attention_kept(arch, &block) : 0);
        }
        mb_block_reset(&block);
        MB_TRY(status);
    }
    plan->activations = (size_t)(kept * tokens) * sizeof(float);
    plan->scratch = (size_t)(most * tokens) * sizeof(float);
done:
    return status;
}

mb_status mb_lm_plan_get(const mb_arch *arch, const char *train, const mb_lora_options *opt_lora,
                         int64_t tokens, bool gradient, mb_lm_plan *out_plan)
{
    mb_status status = MB_OK;
    mb_params *params = NULL;
    mb_lora lora = {0};
    mb_lm_plan plan = {0};
    const char *patterns;
    MB_TRY(mb_params_create(arch, NULL, &params));
    if (opt_lora != NULL) MB_TRY(mb_lora_attach(&lora, opt_lora, arch, params));
    MB_TRY(mb_lm_patterns(train, opt_lora != NULL, arch, &patterns));
    MB_TRY(mb_params_choose(params, patterns));
    plan.weights = (size_t)(arch->max_positions * arch->head_width) * sizeof(float);
    for (int64_t i = 0; i < mb_params_count(params); i++) {
        const mb_param *param = mb_params_at(params, i);
        const size_t bytes = (size_t)(param->value.shape[0] * param->value.shape[1]) * sizeof(float);
        *(param->trained ? &plan.trained : &plan.weights) += bytes;
        if (param->value.dims == 2) plan.packed += bytes;
    }
    plan.gradients = gradient ? plan.trained : 0;
    MB_TRY(plan_pass(arch, params, tokens, gradient, &plan));
    *out_plan = plan;
done:
    mb_lora_reset(&lora);
    mb_params_destroy(&params);
    return status;
}
