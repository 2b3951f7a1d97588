/* lm_forward: passes, and the forward half of one.
 *
 * 1. passes
 * 2. checks of a batch
 * 3. embedding and blocks
 * 4. final norm and head
 */
#include <math.h>
#include <string.h>

#include "model/lm_state.h"

/* ---- 1. passes ---- */

mb_status mb_lm_pass_create(mb_lm *lm, mb_lm_pass **out_pass)
{
    mb_status status = MB_OK;
    mb_lm_pass *pass = NULL;
    MB_NEW(pass);
    pass->lm = lm;
    MB_NEW_ARRAY(pass->saved, lm->arch.layers);
    MB_NEW_ARRAY(pass->inputs, lm->arch.layers);
    MB_NEW_ARRAY(pass->router_logits, lm->arch.layers);
    MB_NEW_ARRAY(pass->router_ids, lm->arch.layers);
    MB_TRY(mb_arena_create((size_t)1 << 16, &pass->arena));
    *out_pass = pass;
    pass = NULL;
done:
    mb_lm_pass_destroy(&pass);
    return status;
}

void mb_lm_pass_destroy(mb_lm_pass **pass)
{
    mb_lm_pass *p = *pass;
    if (p == NULL) return;
    mb_arena_destroy(&p->arena);
    mb_free(p->saved);
    mb_free(p->inputs);
    mb_free(p->router_logits);
    mb_free(p->router_ids);
    mb_free(p);
    *pass = NULL;
}

mb_arena *mb_lm_pass_arena(mb_lm_pass *pass)
{
    return pass->arena;
}

/* ---- 2. checks ---- */

static mb_status forward_check_rows(const mb_lm *lm, const mb_lm_batch *b)
{
    mb_status status = MB_OK;
    if (b->tokens < 1 || b->segments < 1) MB_RAISE(MB_ERANGE, "forward: the batch is empty");
    if (b->offsets[0] != 0 || b->offsets[b->segments] != b->tokens)
        MB_RAISE(MB_ERANGE, "forward: segments must cover rows 0 to %lld", (long long)b->tokens);
    for (int64_t s = 0; s < b->segments; s++)
        if (b->offsets[s] > b->offsets[s + 1])
            MB_RAISE(MB_ERANGE, "forward: segment %lld ends before it begins", (long long)s);
    const int64_t limit = mb_rotary_limit(&lm->arch.rotary, lm->arch.max_positions);
    for (int64_t i = 0; i < b->tokens; i++) {
        if (b->ids[i] < 0 || b->ids[i] >= lm->arch.vocab)
            MB_RAISE(MB_ERANGE,
                     "forward: row %lld holds token %d, outside the model's vocabulary of %lld; is this "
                     "the model's tokenizer?",
                     (long long)i, b->ids[i], (long long)lm->arch.vocab);
        if (b->positions[i] < 0 || b->positions[i] >= limit)
            MB_RAISE(MB_ERANGE, "forward: row %lld has position %d, the model has %lld; cut records shorter",
                     (long long)i, b->positions[i], (long long)limit);
    }
done:
    return status;
}

static mb_status forward_check_head(const mb_lm *lm, const mb_lm_batch *b)
{
    mb_status status = MB_OK;
    for (int64_t i = 0; i < b->head_rows; i++) {
        if (b->head_row[i] < 0 || b->head_row[i] >= b->tokens ||
            (i > 0 && b->head_row[i] <= b->head_row[i - 1]))
            MB_RAISE(MB_ERANGE, "forward: head row %lld is %d; they must rise within 0..%lld", (long long)i,
                     b->head_row[i], (long long)b->tokens - 1);
        if (b->targets == NULL) continue;
        if (b->targets[i] < 0 || b->targets[i] >= lm->arch.vocab)
            MB_RAISE(MB_ERANGE, "forward: target %lld is token %d, outside the vocabulary of %lld",
                     (long long)i, b->targets[i], (long long)lm->arch.vocab);
    }
done:
    return status;
}

static mb_status forward_check_want(const mb_lm *lm, const mb_lm_batch *b, const mb_lm_want *want)
{
    mb_status status = MB_OK;
    const int64_t routers = mb_lm_routers(lm);
    if (want->routers < 0 || want->routers > routers)
        MB_RAISE(MB_EUSAGE, "forward: %lld routers asked for, the model has %lld", (long long)want->routers,
                 (long long)routers);
    if (want->routers > 0 && (b->head_rows > 0 || want->hidden || want->gradient))
        MB_RAISE(MB_EUSAGE, "forward: a limit of routers excludes head, hidden state and gradient");
    if (b->head_rows > 0 && b->targets == NULL && !want->logits)
        MB_RAISE(MB_EUSAGE, "forward: head rows without targets, and no logits asked for");
    if (want->gradient && (b->opt_cache != NULL || (b->head_rows > 0 && b->targets == NULL)))
        MB_RAISE(MB_EUSAGE, "forward: a gradient excludes kept keys and needs targets");
    MB_TRY(forward_check_rows(lm, b));
    MB_TRY(forward_check_head(lm, b));
done:
    return status;
}

/* ---- 3. embedding and blocks ---- */

/* Where some segment is so long that its frequencies differ, every row has a rope row of its own. */
static mb_status forward_rope(mb_lm_pass *pass)
{
    mb_status status = MB_OK;
    const mb_arch *arch = &pass->lm->arch;
    const mb_lm_batch *b = &pass->batch;
    int32_t *rows;
    if (!mb_rotary_is_long(&arch->rotary, b->positions, b->offsets, b->segments)) goto done;
    MB_TRY(mb_block_new2(&pass->context, b->tokens, arch->head_width, &pass->long_rope));
    mb_rotary_rows(&arch->rotary, arch->rope_theta, arch->head_width, b->positions, b->offsets, b->segments,
                   mb_tensor_f32(&pass->long_rope));
    MB_ARENA_ARRAY(pass->arena, rows, b->tokens);
    for (int64_t t = 0; t < b->tokens; t++) rows[t] = (int32_t)t;
    pass->context.positions = rows;
    pass->context.rope = &pass->long_rope;
done:
    return status;
}

static mb_status forward_begin(mb_lm_pass *pass, const mb_lm_batch *batch, const mb_lm_want *want)
{
    mb_status status = MB_OK;
    mb_lm *lm = pass->lm;
    mb_block_context *c = &pass->context;
    const float scale = 1.0f / sqrtf((float)lm->arch.head_width);
    const bool has_lora = lm->lora.is_on;
    mb_arena_reset(pass->arena);
    memset(pass->saved, 0, (size_t)lm->arch.layers * sizeof *pass->saved);
    memset(pass->inputs, 0, (size_t)lm->arch.layers * sizeof *pass->inputs);
    pass->is_ready = false;
    pass->batch = *batch;
    pass->want = *want;
    pass->head_dh = (mb_tensor){0};
    *c = (mb_block_context){
        .p = {.ops = lm->ops,
              .arena = pass->arena,
              .dropout = has_lora && batch->row_index != NULL ? (float)lm->lora.options.dropout : 0,
              .seed = batch->seed,
              .row_index = batch->row_index},
        .arch = &lm->arch,
        .rope = &lm->rope,
        .tokens = batch->tokens,
        .positions = batch->positions,
        .dtype = lm->dtype,
        .gradient = want->gradient && !want->recompute,
        .opt_cache = batch->opt_cache,
        .opt_slot = batch->opt_slot};
    c->shape = (mb_attention_shape){.segments = batch->segments,
                                    .offsets = batch->offsets,
                                    .heads = lm->arch.heads,
                                    .kv_heads = lm->arch.kv_heads,
                                    .head_width = lm->arch.head_width,
                                    .scale = scale};
    MB_TRY(forward_rope(pass));
    MB_TRY(mb_block_new2(c, batch->tokens, lm->arch.width, &pass->x));
    MB_TRY(mb_block_new2(c, batch->tokens, lm->arch.width, &c->normed));
    c->normed_act = c->normed;
    if (c->dtype != MB_F32) MB_TRY(mb_block_act2(c, batch->tokens, lm->arch.width, &c->normed_act));
    MB_TRY(mb_params_acquire(lm->params, MB_PARAMS_EMBEDDING));
    status = mb_ops_embedding(lm->ops, batch->ids, &lm->embedding->value, &pass->x);
    mb_params_release(lm->params, MB_PARAMS_EMBEDDING);
done:
    return status;
}

mb_status mb_lm_forward_block(mb_lm_pass *pass, int64_t index, bool gate_only, mb_tensor *x)
{
    mb_status status = MB_OK;
    mb_lm *lm = pass->lm;
    mb_block *block = &lm->blocks[index];
    mb_block_saved *saved = &pass->saved[index];
    MB_TRY(mb_params_acquire(lm->params, index));
    status = mb_attention_block_forward(&pass->context, block, x, saved);
    saved->is_gate_only = gate_only;
    if (status == MB_OK)
        status = block->is_moe ? mb_experts_forward(&pass->context, block, x, saved)
                               : mb_ffn_forward(&pass->context, block, x, saved);
    mb_params_release(lm->params, index);
done:
    return status;
}

/* A block of the forward pass proper; *routers counts those met so far. */
static mb_status forward_block(mb_lm_pass *pass, int64_t index, bool gate_only, int64_t *routers)
{
    mb_status status = MB_OK;
    const mb_block *block = &pass->lm->blocks[index];
    const mb_block_saved *saved = &pass->saved[index];
    if (pass->want.gradient && pass->want.recompute && block->needs_any)
        MB_TRY(mb_block_keep(&pass->context, &pass->x, &pass->inputs[index]));
    MB_TRY(mb_lm_forward_block(pass, index, gate_only, &pass->x));
    if (!block->is_moe) goto done;
    pass->router_logits[*routers] = mb_tensor_f32(&saved->router_logits);
    pass->router_ids[*routers] = saved->ids;
    ++*routers;
done:
    return status;
}

/* Blocks to run: all, or up to the one that has the last router asked for. */
static int64_t forward_count(const mb_lm_pass *pass)
{
    const mb_arch *arch = &pass->lm->arch;
    int64_t left = pass->want.routers;
    if (left == 0 && pass->batch.head_rows == 0 && !pass->want.hidden && pass->batch.opt_cache == NULL)
        left = mb_arch_moe_layers(arch);
    if (left == 0) return arch->layers;
    for (int64_t i = 0; i < arch->layers; i++)
        if (mb_arch_is_moe(arch, i) && --left == 0) return i + 1;
    return arch->layers;
}

/* Blocks as far as something asked for depends on them; *out_routers of them have routers. */
static mb_status forward_blocks(mb_lm_pass *pass, int64_t *out_routers)
{
    mb_status status = MB_OK;
    const mb_lm_batch *b = &pass->batch;
    const int64_t blocks = forward_count(pass);
    const bool is_moe = mb_arch_is_moe(&pass->lm->arch, blocks - 1);
    const bool routers_only = is_moe && b->head_rows == 0 && !pass->want.hidden && b->opt_cache == NULL;
    *out_routers = 0;
    for (int64_t i = 0; i < blocks; i++)
        MB_TRY(forward_block(pass, i, routers_only && i == blocks - 1, out_routers));
    for (int64_t i = 0; b->opt_cache != NULL && i < b->segments; i++)
        mb_kv_cache_grow(b->opt_cache, b->opt_slot[i], b->offsets[i + 1] - b->offsets[i]);
done:
    return status;
}

/* ---- 4. final norm and head ---- */

static mb_status forward_hidden(mb_lm_pass *pass, mb_lm_output *out)
{
    mb_status status = MB_OK;
    mb_lm *lm = pass->lm;
    mb_tensor hidden;
    MB_TRY(mb_block_new1(&pass->context, pass->batch.tokens, &pass->x_rstd));
    MB_TRY(mb_block_new2(&pass->context, pass->batch.tokens, lm->arch.width, &hidden));
    MB_TRY(mb_ops_rms_norm(lm->ops, &pass->x, &lm->final_norm->value, (float)lm->arch.rms_eps, &hidden,
                           &pass->x_rstd));
    out->hidden = mb_tensor_f32(&hidden);
done:
    return status;
}

static mb_status forward_head(mb_lm_pass *pass, mb_lm_output *out)
{
    mb_status status = MB_OK;
    mb_lm *lm = pass->lm;
    const mb_lm_batch *b = &pass->batch;
    const mb_block_context *c = &pass->context;
    const bool trains = mb_params_lowest_trained(lm->params) <= lm->arch.layers;
    const bool fused = pass->want.gradient && trains && b->opt_head_weight != NULL;
    mb_tensor loss, logits;
    MB_TRY(mb_block_new2(c, b->head_rows, lm->arch.width, &pass->head_x));
    MB_TRY(mb_block_act2(c, b->head_rows, lm->arch.width, &pass->head_h));
    MB_TRY(mb_block_new1(c, b->head_rows, &pass->head_rstd));
    MB_TRY(mb_block_new1(c, b->head_rows, &loss));
    if (pass->want.argmax) MB_ARENA_ARRAY(pass->arena, out->argmax, b->head_rows);
    MB_TRY(mb_ops_embedding(lm->ops, b->head_row, &pass->x, &pass->head_x));
    MB_TRY(mb_ops_rms_norm(lm->ops, &pass->head_x, &lm->final_norm->value, (float)lm->arch.rms_eps,
                           &pass->head_h, &pass->head_rstd));
    if (fused) MB_TRY(mb_block_new2(c, b->head_rows, lm->arch.width, &pass->head_dh));
    if (b->targets != NULL) {
        MB_TRY(mb_ops_head_loss(lm->ops, &pass->head_h, &lm->head->weight, b->targets, &loss, out->argmax,
                                fused ? b->opt_head_weight : NULL, fused ? &pass->head_dh : NULL,
                                fused ? mb_block_gradient(lm->head) : NULL));
        out->token_loss = mb_tensor_f32(&loss);
    }
    if (!pass->want.logits) goto done;
    MB_TRY(mb_block_new2(c, b->head_rows, lm->arch.vocab, &logits));
    MB_TRY(mb_ops_linear(lm->ops, &pass->head_h, &lm->head->weight, NULL, false, &logits));
    out->logits = mb_tensor_f32(&logits);
done:
    return status;
}

static mb_status forward_end(mb_lm_pass *pass, mb_lm_output *out)
{
    mb_status status = MB_OK;
    mb_lm *lm = pass->lm;
    const int64_t last = lm->arch.layers;
    if (pass->batch.head_rows == 0 && !pass->want.hidden) goto done;
    MB_TRY(mb_params_acquire(lm->params, last));
    if (lm->arch.tied_head) MB_TRY(mb_params_acquire(lm->params, MB_PARAMS_EMBEDDING));
    if (pass->want.hidden) status = forward_hidden(pass, out);
    if (status == MB_OK && pass->batch.head_rows > 0) status = forward_head(pass, out);
    if (lm->arch.tied_head) mb_params_release(lm->params, MB_PARAMS_EMBEDDING);
    mb_params_release(lm->params, last);
done:
    return status;
}

mb_status mb_lm_forward(mb_lm_pass *pass, const mb_lm_batch *batch, const mb_lm_want *want, mb_lm_output *out)
{
    mb_status status = MB_OK;
    mb_lm_output result = {0};
    MB_TRY(forward_check_want(pass->lm, batch, want));
    const bool fused = want->gradient && batch->head_rows > 0 && batch->opt_head_weight != NULL;
    if (fused && pass->lm->head->trained && pass->lm->head->gradient.data == NULL)
        MB_RAISE(MB_EUSAGE, "forward: the head trains and no gradient is bound (mb_params_bind_gradient)");
    MB_TRY(forward_begin(pass, batch, want));
    MB_TRY(forward_blocks(pass, &result.routers));
    MB_TRY(forward_end(pass, &result));
    if (result.routers > 0) {
        result.router_logits = pass->router_logits;
        result.router_ids = pass->router_ids;
    }
    pass->is_ready = want->gradient;
    *out = result;
done:
    return status;
}
