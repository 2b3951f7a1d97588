/* lm_plan: bytes a model and one of its passes will take, counted from the architecture and what trains.
 *
 * 1. one token in one block: what is kept, what is temporary
 * 2. a pass
 * 3. weights
 * 4. the whole
 *
 * The counts follow the allocations of the forward and backward halves one by one (attention_block, ffn,
 * experts), with every pick going to an expert; what is left out is the rounding of each array to whole
 * lines.
 */
#include "comm/lanes.h"
#include "model/fuse_state.h"

/* ---- 1. one token in one block, in bytes ---- */

typedef struct plan_sizes {
    int64_t act;            /* bytes of an act element */
    int64_t d, q, kv, rows; /* rows: of the FFN per token */
    int64_t ffn;            /* of the block at hand */
    int64_t gates, picks;
} plan_sizes;

static int64_t larger(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

static plan_sizes sizes_of(const mb_arch *a, const mb_block *block, mb_dtype dtype)
{
    return (plan_sizes){.act = (int64_t)mb_dtype_bytes(dtype),
                        .d = a->width,
                        .q = a->heads * a->head_width,
                        .kv = a->kv_heads * a->head_width,
                        .rows = block->is_moe ? a->picks : 1,
                        .ffn = block->is_moe ? a->ffn : mb_arch_dense_ffn(a),
                        .gates = block->is_moe ? mb_arch_gates(a) : 0,
                        .picks = a->picks};
}

/* Temporaries of a projection with an adapter: dropped input, h, and what is added to the output. */
static int64_t adapter_bytes(const plan_sizes *z, const mb_param *opt_a, int64_t rows, int64_t width)
{
    if (opt_a == NULL) return 0;
    return rows * z->act * (2 * width + 2 * opt_a->value.shape[0]);
}

static void plan_attention(const mb_arch *a, const plan_sizes *z, const mb_block *block,
                           mb_lm_plan_block *out)
{
    const bool is_normed = block->q_norm != NULL, is_clipped = a->clip_qkv > 0;
    const int64_t turned = z->act * (z->q + z->kv);
    int64_t n = 4 + z->act * 2 * (z->q + z->kv) + 4 * a->heads, back;
    if (is_normed) n += turned + 4 * (a->qk_norm == MB_QK_NORM_HEAD ? a->heads + a->kv_heads : 2);
    out->forward = n + adapter_bytes(z, block->q.lora_a, 1, larger(z->d, z->q));
    if (!block->needs_attention) return;
    out->kept = n + 4 * z->d + (is_clipped && !is_normed ? turned : 0);
    back = z->act * (z->act == 4 ? z->q : z->d + z->q);
    if (block->needs_qkv) {
        back += z->act * (z->q + 2 * z->kv) + (is_normed ? turned : 0) + (is_clipped ? turned : 0);
        if (mb_projection_is_trained(&block->q) || mb_projection_is_trained(&block->k) ||
            mb_projection_is_trained(&block->v))
            back += z->act * z->d + 4;
        if (block->needs_input || block->input_norm->trained) back += 4 * z->d;
    }
    out->backward = back + adapter_bytes(z, block->q.lora_a, 1, larger(z->d, z->q));
}

static void plan_experts(const plan_sizes *z, const mb_block *block, mb_lm_plan_block *out)
{
    const int64_t rows = z->rows * z->act, kd = rows * z->d, kf = rows * z->ffn;
    const int64_t route = 4 * z->d + 4 + 4 * z->gates + 12 * z->picks;
    const bool down = mb_projection_group_is_trained(&block->experts_down);
    const bool inside = mb_projection_group_is_trained(&block->experts_gate) ||
                        mb_projection_group_is_trained(&block->experts_up);
    const mb_param *a = block->experts_gate.lora_a != NULL ? block->experts_gate.lora_a[0] : NULL;
    const int64_t adapter = adapter_bytes(z, a, z->rows, larger(z->d, z->ffn));
    int64_t back = 0;
    out->always = 4 * z->gates + 4 * z->picks;
    out->kept += route + kd + (block->needs_experts ? 2 * kf : 0);
    out->forward = larger(out->forward, block->needs_any ? (block->needs_experts ? 0 : 2 * kf) + kd + kf
                                                         : route + 2 * kd + 3 * kf) +
                   adapter;
    if (inside || mb_projection_is_trained(&block->router)) back += 4 * z->d + 4;
    if (block->needs_ffn_input) back += 4 * z->d;
    back += kd + (block->needs_router ? 4 * z->picks : 0);
    if (block->needs_experts) back += (down ? kf : 0) + kf;
    if (block->needs_experts && (block->needs_ffn_input || inside))
        back += 2 * kf + (inside ? kd : 0) + (block->needs_ffn_input ? kd : 0);
    if (block->needs_router) back += 4 * z->gates;
    out->backward = larger(out->backward, back + adapter);
}

static void plan_ffn(const plan_sizes *z, const mb_block *block, mb_lm_plan_block *out)
{
    const int64_t f = z->act * z->ffn;
    const int64_t adapter = adapter_bytes(z, block->gate.lora_a, 1, larger(z->d, z->ffn));
    const bool inside = mb_projection_is_trained(&block->gate) || mb_projection_is_trained(&block->up);
    int64_t back = f + (z->act == 4 ? 0 : z->act * z->d);
    out->kept += 4 * z->d + 4 + 2 * f;
    out->forward = larger(out->forward, block->needs_any ? f : 4 + 3 * f) + adapter;
    if (!block->needs_experts) return;
    if (mb_projection_is_trained(&block->down)) back += f;
    if (inside) back += z->act * z->d + 4;
    if (block->needs_ffn_input) back += 4 * z->d;
    if (inside || block->needs_ffn_input) back += 2 * f;
    out->backward = larger(out->backward, back + adapter);
}

static mb_lm_plan_block plan_one(const mb_arch *arch, const mb_block *block, mb_dtype dtype)
{
    const plan_sizes z = sizes_of(arch, block, dtype);
    mb_lm_plan_block out = {0};
    plan_attention(arch, &z, block, &out);
    if (block->is_moe)
        plan_experts(&z, block, &out);
    else
        plan_ffn(&z, block, &out);
    return out;
}

mb_lm_plan_block mb_lm_plan_block_get(const mb_lm *lm, int64_t index, bool gradient)
{
    mb_block block = lm->blocks[index];
    if (!gradient)
        block.needs_any = block.needs_input = block.needs_qkv = block.needs_attention =
            block.needs_ffn_input = block.needs_experts = block.needs_router = false;
    return plan_one(&lm->arch, &block, lm->dtype);
}

/* ---- 2. a pass ---- */

static mb_status plan_pass(const mb_arch *arch, mb_params *params, const mb_lm_plan_options *o,
                           mb_lm_plan *plan)
{
    mb_status status = MB_OK;
    const int64_t act = (int64_t)mb_dtype_bytes(o->dtype), d = arch->width;
    const bool trains = o->input_gradient || mb_params_lowest_trained(params) <= arch->layers;
    const bool gradient = o->gradient && trains;
    int64_t kept = 8 * d + (o->dtype != MB_F32 ? act * d : 0), most = 0;
    if (o->has_head) kept += 4 * d + act * d + 8 + (gradient ? 4 * d : 0);
    for (int64_t i = 0; i < arch->layers; i++) {
        mb_block block = {0};
        status = mb_block_find(&block, arch, params, i, o->input_gradient);
        const mb_lm_plan_block one =
            status == MB_OK ? plan_one(arch, &block, o->dtype) : (mb_lm_plan_block){0};
        const bool back = gradient && block.needs_any;
        mb_block_reset(&block);
        MB_TRY(status);
        kept += one.always;
        if (!back)
            most = larger(most, one.forward);
        else if (o->recompute) {
            kept += 4 * d;
            most = larger(most, 8 * d + one.always + one.kept + larger(one.forward, one.backward));
        } else {
            kept += one.kept;
            most = larger(most, larger(one.forward, 4 * d + one.backward));
        }
    }
    if (gradient && o->has_head) most = larger(most, 12 * d);
    plan->activations = (size_t)(kept * o->tokens);
    plan->scratch = (size_t)(most * o->tokens);
done:
    return status;
}

/* ---- 3. weights ---- */

/* Bytes of slots for blocks that are brought in (params_shard): a slot is made larger until the largest block
 * fits; a tied head needs two at a time, and a fetch ahead one more. */
static size_t plan_slots(const mb_arch *arch, mb_params *params, const mb_lm_plan_options *o)
{
    size_t layer = 0, embedding = 0, head = 0;
    for (int64_t b = -1; b <= arch->layers; b++) {
        size_t bytes = 0;
        for (int64_t i = 0; i < mb_params_count(params); i++)
            if (mb_params_at(params, i)->block == b && !mb_params_at(params, i)->is_carried)
                bytes += mb_params_bytes(mb_params_at(params, i));
        if (b < 0)
            embedding = bytes;
        else if (b == arch->layers)
            head = bytes;
        else if (bytes > layer)
            layer = bytes;
    }
    size_t most = layer > embedding ? layer : embedding;
    if (head > most) most = head;
    return most + (arch->tied_head ? embedding : 0) + (o->ahead ? layer : 0);
}

static void plan_weights(const mb_arch *arch, mb_params *params, const mb_lm_plan_options *o,
                         mb_lm_plan *plan)
{
    const size_t ranks = o->ranks > 1 ? (size_t)o->ranks : 1;
    size_t frozen = 0, carried = 0;
    for (int64_t i = 0; i < mb_params_count(params); i++) {
        const mb_param *param = mb_params_at(params, i);
        const size_t bytes = mb_params_bytes(param);
        *(param->trained ? &plan->trained : param->is_carried ? &carried : &frozen) += bytes;
        if (param->value.dims == 2)
            plan->packed +=
                (size_t)(param->value.shape[0] * param->value.shape[1]) * mb_dtype_bytes(o->dtype);
    }
    plan->gradients = o->gradient ? plan->trained : 0;
    if (o->shard && ranks > 1) {
        const size_t blocks = (plan->trained / sizeof(float) + MB_LANES_BLOCK - 1) / MB_LANES_BLOCK;
        const size_t mine = (blocks + ranks - 1) / ranks * MB_LANES_BLOCK * sizeof(float);
        if (mine < plan->trained) plan->trained = mine;
        frozen = frozen / ranks + (size_t)(arch->layers + 2) * 64;
        plan->slots = plan_slots(arch, params, o);
        plan->packed /= (size_t)(arch->layers > 0 ? arch->layers : 1);
    } else if (o->share && o->node_ranks > 1) {
        frozen /= (size_t)o->node_ranks;
    }
    plan->weights = frozen + carried + (size_t)(arch->max_positions * arch->head_width) * sizeof(float);
}

/* ---- 4. the whole ---- */

static mb_status plan_all(const mb_arch *arch, mb_params *params, const mb_lm_plan_options *options,
                          mb_lm_plan *out_plan)
{
    mb_status status = MB_OK;
    mb_lm_plan plan = {0};
    plan_weights(arch, params, options, &plan);
    MB_TRY(plan_pass(arch, params, options, &plan));
    *out_plan = plan;
done:
    return status;
}

mb_status mb_lm_plan_get(const mb_arch *arch, const char *train, const mb_lora_options *opt_lora,
                         const mb_lm_plan_options *options, mb_lm_plan *out_plan)
{
    mb_status status = MB_OK;
    mb_params *params = NULL;
    mb_lora lora = {0};
    const char *patterns;
    MB_TRY(mb_params_create(arch, NULL, &params));
    if (opt_lora != NULL) MB_TRY(mb_lora_attach(&lora, opt_lora, arch, params));
    MB_TRY(mb_lm_patterns(train, opt_lora != NULL, arch, &patterns));
    const int64_t group = arch->packed_bits != 0 ? arch->packed_group : options->frozen_group;
    mb_params_store(params, options->dtype, arch->packed_bits != 0 ? arch->packed_bits : options->frozen_bits,
                    group > 0                ? group
                    : arch->packed_bits != 0 ? arch->width /* a scale per row, of about so many columns */
                                             : MB_LM_GROUP);
    MB_TRY(mb_params_choose(params, patterns));
    MB_TRY(plan_all(arch, params, options, out_plan));
done:
    mb_lora_reset(&lora);
    mb_params_destroy(&params);
    return status;
}

mb_status mb_lm_plan_open(mb_lm *lm, const mb_lm_plan_options *options, mb_lm_plan *out_plan)
{
    mb_lm_plan_options o = *options;
    if (lm->fuse != NULL) return mb_fuse_plan_open(lm, options, out_plan);
    o.dtype = lm->dtype;
    o.input_gradient = lm->input_gradient;
    o.shard = mb_params_is_sharded(lm->params);
    o.ahead = mb_params_is_ahead(lm->params);
    o.share = mb_params_is_shared(lm->params);
    return plan_all(&lm->arch, lm->params, &o, out_plan);
}
