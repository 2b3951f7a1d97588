/* lm_forward: passes, and the forward half of one.
 *
 * 1. passes
 * 2. checks of a batch
 * 3. what the host sends
 * 4. embedding and blocks
 * 5. final norm and head
 * 6. outputs, the whole
 *
 * On a device all arrays of a batch go there in one upload from page-locked memory, before anything else;
 * then every op is queued; then the outputs asked for are fetched. The host waits once, at the end.
 */
#include <math.h>
#include <string.h>

#include "model/fuse_state.h"

/* ---- 1. passes ---- */

mb_status mb_lm_pass_create(mb_lm *lm, mb_lm_pass **out_pass)
{
    mb_status status = MB_OK;
    mb_lm_pass *pass = NULL;
    MB_NEW(pass);
    pass->lm = lm;
    pass->ops = lm->ops;
    MB_NEW_ARRAY(pass->saved, lm->arch.layers);
    MB_NEW_ARRAY(pass->inputs, lm->arch.layers);
    MB_NEW_ARRAY(pass->router_logits, mb_lm_routers(lm));
    MB_NEW_ARRAY(pass->router_ids, mb_lm_routers(lm));
    MB_TRY(mb_arena_create_on(mb_ops_allocator(lm->ops), (size_t)1 << 16, &pass->arena));
    MB_TRY(mb_arena_create_on(mb_ops_host_allocator(lm->ops), (size_t)1 << 16, &pass->host));
    MB_TRY(mb_arena_create_on(mb_ops_host_allocator(lm->ops), (size_t)1 << 16, &pass->host_back));
    if (lm->fuse != NULL) MB_TRY(mb_fuse_pass_create(pass));
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
    if (p->is_queued || p->is_queued_back) (void)mb_ops_wait(p->ops); /* what is queued uses the arenas */
    mb_fuse_pass_destroy(p);
    mb_lm_replay_destroy(&p->replay);
    mb_arena_destroy(&p->arena);
    mb_arena_destroy(&p->host);
    mb_arena_destroy(&p->host_back);
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

static mb_status forward_check_teacher(const mb_lm *lm, const mb_lm_batch *b)
{
    mb_status status = MB_OK;
    const mb_teacher_rows *t = b->opt_teacher;
    if (b->opt_cache != NULL || b->targets == NULL)
        MB_RAISE(MB_EUSAGE, "forward: a teacher excludes kept keys and needs targets");
    if (!(t->temperature > 0) || !(t->beta >= 0 && t->beta <= 1))
        MB_RAISE(MB_ERANGE, "forward: the teacher's temperature is %g (above 0), its beta %g (0 to 1)",
                 t->temperature, t->beta);
    if (t->opt_dense != NULL) goto done;
    if (t->k < 1 || t->k > lm->arch.vocab)
        MB_RAISE(MB_ERANGE, "forward: the teacher lists %lld tokens a row, the vocabulary has %lld",
                 (long long)t->k, (long long)lm->arch.vocab);
    for (int64_t i = 0; i < b->head_rows * t->k; i++)
        if (t->ids[i] < 0 || t->ids[i] >= lm->arch.vocab)
            MB_RAISE(MB_ERANGE,
                     "forward: the teacher's row %lld lists token %d, outside the vocabulary of %lld; have "
                     "teacher and student one tokenizer?",
                     (long long)(i / t->k), t->ids[i], (long long)lm->arch.vocab);
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
    if (b->head_rows > 0 && b->opt_teacher != NULL) MB_TRY(forward_check_teacher(lm, b));
done:
    return status;
}

mb_status mb_lm_forward_check(const mb_lm *lm, const mb_lm_batch *b, const mb_lm_want *want)
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
    if (want->gradient && want->no_adapter)
        MB_RAISE(MB_EUSAGE, "forward: a pass without the adapter has no gradient");
    MB_TRY(forward_check_rows(lm, b));
    MB_TRY(forward_check_head(lm, b));
done:
    return status;
}

/* ---- 3. what the host sends ---- */

typedef struct forward_part {
    const void *host;
    size_t bytes;
    const void **out; /* as ops take it */
} forward_part;

static size_t forward_lines(size_t bytes)
{
    return (bytes + 63) / 64 * 64;
}

/* Arrays of the host (NULL: none) as ops take them: themselves, or on a device parts of one copy. */
static mb_status forward_send_parts(mb_lm_pass *pass, const forward_part *parts, int count)
{
    mb_status status = MB_OK;
    char *staged, *data;
    size_t bytes = 0;
    for (int i = 0; i < count; i++) {
        *parts[i].out = parts[i].host;
        if (parts[i].host != NULL) bytes += forward_lines(parts[i].bytes);
    }
    if (!mb_ops_is_device(pass->ops)) goto done;
    MB_ARENA_ARRAY(pass->host, staged, bytes);
    MB_ARENA_ARRAY(pass->arena, data, bytes);
    size_t at = 0;
    for (int i = 0; i < count; i++) {
        if (parts[i].host == NULL) continue;
        memcpy(staged + at, parts[i].host, parts[i].bytes);
        *parts[i].out = data + at;
        at += forward_lines(parts[i].bytes);
    }
    MB_TRY(mb_ops_upload(pass->ops, staged, bytes, data));
done:
    return status;
}

/* Where new keys go and where all of a segment's lie, in the host arena. */
static mb_status forward_cache(mb_lm_pass *pass, int32_t **out_rows, int32_t **out_first, int32_t **out_count)
{
    mb_status status = MB_OK;
    const mb_lm_batch *b = &pass->batch;
    if (b->opt_cache == NULL) goto done;
    MB_ARENA_ARRAY(pass->host, *out_rows, b->tokens);
    MB_ARENA_ARRAY(pass->host, *out_first, b->segments);
    MB_ARENA_ARRAY(pass->host, *out_count, b->segments);
    MB_TRY(mb_kv_cache_rows(b->opt_cache, b->offsets, b->opt_slot, b->segments, *out_rows, *out_first,
                            *out_count));
done:
    return status;
}

/* The batch's teacher as the head takes it: dense rows stay with the host. */
static mb_status forward_send_teacher(mb_lm_pass *pass)
{
    mb_status status = MB_OK;
    const mb_teacher_rows *t = pass->batch.opt_teacher;
    const size_t n = (size_t)pass->batch.head_rows, listed = t != NULL ? n * (size_t)t->k : 0;
    const void *ids, *logprob, *tail;
    if (t == NULL || n == 0) goto done;
    pass->teacher = *t;
    pass->sent.opt_teacher = &pass->teacher;
    if (t->opt_dense != NULL) goto done;
    const forward_part parts[] = {{t->ids, listed * sizeof *t->ids, &ids},
                                  {t->logprob, listed * sizeof *t->logprob, &logprob},
                                  {t->tail, n * sizeof *t->tail, &tail}};
    MB_TRY(forward_send_parts(pass, parts, (int)(sizeof parts / sizeof parts[0])));
    pass->teacher.ids = ids, pass->teacher.logprob = logprob, pass->teacher.tail = tail;
done:
    return status;
}

static mb_status forward_send(mb_lm_pass *pass)
{
    mb_status status = MB_OK;
    const mb_lm_batch *b = &pass->batch;
    mb_lm_batch *sent = &pass->sent;
    mb_block_context *c = &pass->context;
    const size_t t = (size_t)b->tokens, s = (size_t)b->segments, n = (size_t)b->head_rows;
    const bool has_dropout = c->p.dropout > 0, is_fused = n > 0 && pass->want.gradient;
    int32_t *rows = NULL, *first = NULL, *count = NULL;
    const void *ids, *positions, *offsets, *row_index, *head_row, *targets, *weight, *to, *from, *keys;
    MB_TRY(forward_cache(pass, &rows, &first, &count));
    const forward_part parts[] = {{b->ids, t * sizeof *b->ids, &ids},
                                  {b->positions, t * sizeof *b->positions, &positions},
                                  {b->offsets, (s + 1) * sizeof *b->offsets, &offsets},
                                  {has_dropout ? b->row_index : NULL, t * sizeof *b->row_index, &row_index},
                                  {n > 0 ? b->head_row : NULL, n * sizeof *b->head_row, &head_row},
                                  {n > 0 ? b->targets : NULL, n * sizeof *b->targets, &targets},
                                  {is_fused ? b->opt_head_weight : NULL, n * sizeof(float), &weight},
                                  {rows, t * sizeof *rows, &to},
                                  {first, s * sizeof *first, &from},
                                  {count, s * sizeof *count, &keys}};
    MB_TRY(forward_send_parts(pass, parts, (int)(sizeof parts / sizeof parts[0])));
    *sent = *b;
    sent->ids = ids, sent->positions = positions, sent->offsets = offsets, sent->row_index = row_index;
    sent->head_row = head_row, sent->targets = targets, sent->opt_head_weight = weight;
    MB_TRY(forward_send_teacher(pass));
    c->positions = positions;
    c->p.row_index = row_index;
    c->shape.offsets = offsets;
    c->shape.opt_key_first = from;
    c->shape.opt_key_count = keys;
    c->opt_cache_row = to;
done:
    return status;
}

/* ---- 4. embedding and blocks ---- */

mb_status mb_lm_forward_rope(mb_lm_pass *pass, mb_block_context *context, mb_tensor *long_rope)
{
    mb_status status = MB_OK;
    const mb_arch *arch = context->arch;
    const mb_lm_batch *b = &pass->batch;
    const int64_t width = arch->head_width;
    const void *table, *numbers;
    float *rope;
    int32_t *rows;
    if (!mb_rotary_is_long(&arch->rotary, b->positions, b->offsets, b->segments)) goto done;
    MB_ARENA_ARRAY(pass->host, rope, b->tokens * width);
    MB_ARENA_ARRAY(pass->host, rows, b->tokens);
    mb_rotary_rows(&arch->rotary, arch->rope_theta, width, b->positions, b->offsets, b->segments, rope);
    for (int64_t t = 0; t < b->tokens; t++) rows[t] = (int32_t)t;
    MB_TRY(mb_ops_input(pass->ops, pass->arena, rope, (size_t)(b->tokens * width) * sizeof *rope, &table));
    MB_TRY(mb_ops_input(pass->ops, pass->arena, rows, (size_t)b->tokens * sizeof *rows, &numbers));
    *long_rope = mb_tensor_view2(MB_F32, (void *)table, b->tokens, width);
    context->positions = numbers;
    context->rope = long_rope;
done:
    return status;
}

/* Everything of the pass's last forward is gone. */
mb_status mb_lm_forward_reset(mb_lm_pass *pass, const mb_lm_batch *batch, const mb_lm_want *want)
{
    mb_status status = MB_OK;
    const size_t layers = (size_t)pass->lm->arch.layers;
    if (pass->is_queued) MB_TRY(mb_lm_pass_wait(pass));
    mb_arena_reset(pass->arena);
    mb_arena_reset(pass->host);
    memset(pass->saved, 0, layers * sizeof *pass->saved);
    memset(pass->inputs, 0, layers * sizeof *pass->inputs);
    pass->is_ready = false;
    pass->batch = *batch;
    pass->want = *want;
    pass->head_dh = pass->loss = pass->distance = pass->logits = pass->hidden = (mb_tensor){0};
    pass->argmax = NULL;
    pass->is_queued = true;
done:
    return status;
}

mb_status mb_lm_forward_prepare(mb_lm_pass *pass)
{
    mb_status status = MB_OK;
    mb_lm *lm = pass->lm;
    const mb_lm_batch *batch = &pass->batch;
    const mb_lm_want *want = &pass->want;
    mb_block_context *c = &pass->context;
    const float scale = 1.0f / sqrtf((float)lm->arch.head_width);
    const bool has_lora = lm->lora.is_on && !want->no_adapter;
    *c = (mb_block_context){
        .p = {.ops = lm->ops,
              .arena = pass->arena,
              .dropout = has_lora && batch->row_index != NULL ? (float)lm->lora.options.dropout : 0,
              .seed = batch->seed,
              .no_adapter = want->no_adapter},
        .host = pass->host,
        .arch = &lm->arch,
        .rope = &lm->rope,
        .tokens = batch->tokens,
        .dtype = lm->dtype,
        .gradient = want->gradient && !want->recompute,
        .opt_cache = batch->opt_cache};
    c->shape = (mb_attention_shape){.segments = batch->segments,
                                    .heads = lm->arch.heads,
                                    .kv_heads = lm->arch.kv_heads,
                                    .head_width = lm->arch.head_width,
                                    .scale = scale};
    MB_TRY(forward_send(pass));
    MB_TRY(mb_block_new2(c, batch->tokens, lm->arch.width, &pass->x));
    MB_TRY(mb_block_new2(c, batch->tokens, lm->arch.width, &c->normed));
    c->normed_act = c->normed;
    if (c->dtype != MB_F32) MB_TRY(mb_block_act2(c, batch->tokens, lm->arch.width, &c->normed_act));
done:
    return status;
}

static mb_status forward_embed(mb_lm_pass *pass)
{
    mb_status status = MB_OK;
    mb_lm *lm = pass->lm;
    MB_TRY(mb_params_acquire(lm->params, MB_PARAMS_EMBEDDING));
    status = mb_ops_embedding(lm->ops, pass->sent.ids, &lm->embedding->value, &pass->x);
    mb_params_release(lm->params, MB_PARAMS_EMBEDDING);
done:
    return status;
}

mb_status mb_lm_forward_block(mb_lm_pass *pass, int64_t index, bool gate_only, mb_tensor *x)
{
    mb_lm *lm = pass->lm;
    return mb_block_forward(&pass->context, lm->params, &lm->blocks[index], gate_only, x,
                            &pass->saved[index]);
}

/* A block of the forward pass proper. */
static mb_status forward_block(mb_lm_pass *pass, int64_t index, bool gate_only)
{
    mb_status status = MB_OK;
    const mb_block *block = &pass->lm->blocks[index];
    if (pass->want.gradient && pass->want.recompute && block->needs_any)
        MB_TRY(mb_block_keep(&pass->context, &pass->x, &pass->inputs[index]));
    MB_TRY(mb_lm_forward_block(pass, index, gate_only, &pass->x));
    if (block->is_moe) pass->routers++;
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

/* Blocks as far as something asked for depends on them. */
static mb_status forward_blocks(mb_lm_pass *pass)
{
    mb_status status = MB_OK;
    const mb_lm_batch *b = &pass->batch;
    const int64_t blocks = forward_count(pass);
    const bool is_moe = mb_arch_is_moe(&pass->lm->arch, blocks - 1);
    const bool routers_only = is_moe && b->head_rows == 0 && !pass->want.hidden && b->opt_cache == NULL;
    pass->routers = 0;
    for (int64_t i = 0; i < blocks; i++) MB_TRY(forward_block(pass, i, routers_only && i == blocks - 1));
done:
    return status;
}

/* ---- 5. final norm and head ---- */

static mb_status forward_hidden(mb_lm_pass *pass)
{
    mb_status status = MB_OK;
    mb_lm *lm = pass->lm;
    MB_TRY(mb_block_new1(&pass->context, pass->batch.tokens, &pass->x_rstd));
    MB_TRY(mb_block_new2(&pass->context, pass->batch.tokens, lm->arch.width, &pass->hidden));
    MB_TRY(mb_ops_rms_norm(lm->ops, &pass->x, &lm->final_norm->value, (float)lm->arch.rms_eps, &pass->hidden,
                           &pass->x_rstd));
done:
    return status;
}

/* Losses of the normed head rows beside a teacher. */
static mb_status forward_distil(mb_lm_pass *pass, bool fused, mb_tensor *loss)
{
    mb_status status = MB_OK;
    mb_lm *lm = pass->lm;
    const mb_lm_batch *b = &pass->sent;
    mb_weight *weight = &lm->head->weight;
    mb_tensor *dw = fused ? mb_block_gradient(lm->head) : NULL;
    MB_TRY(mb_block_new1(&pass->context, b->head_rows, &pass->distance));
    MB_TRY(mb_head_rows_run(lm->ops, &(mb_head_rows){.count = 1,
                                                     .weight = &weight,
                                                     .x = &pass->head_h,
                                                     .opt_targets = b->targets,
                                                     .opt_teacher = b->opt_teacher,
                                                     .opt_loss = loss,
                                                     .opt_distance = &pass->distance,
                                                     .opt_argmax = pass->argmax,
                                                     .opt_row_weight = fused ? b->opt_head_weight : NULL,
                                                     .opt_dx = fused ? &pass->head_dh : NULL,
                                                     .opt_dw = &dw}));
done:
    return status;
}

static mb_status forward_head(mb_lm_pass *pass)
{
    mb_status status = MB_OK;
    mb_lm *lm = pass->lm;
    const mb_lm_batch *b = &pass->sent;
    const mb_block_context *c = &pass->context;
    const bool trains = mb_params_lowest_trained(lm->params) <= lm->arch.layers;
    const bool fused = pass->want.gradient && trains && b->opt_head_weight != NULL;
    mb_tensor loss;
    MB_TRY(mb_block_new2(c, b->head_rows, lm->arch.width, &pass->head_x));
    MB_TRY(mb_block_act2(c, b->head_rows, lm->arch.width, &pass->head_h));
    MB_TRY(mb_block_new1(c, b->head_rows, &pass->head_rstd));
    MB_TRY(mb_block_new1(c, b->head_rows, &loss));
    if (pass->want.argmax) MB_ARENA_ARRAY(pass->arena, pass->argmax, b->head_rows);
    MB_TRY(mb_ops_embedding(lm->ops, b->head_row, &pass->x, &pass->head_x));
    MB_TRY(mb_ops_rms_norm(lm->ops, &pass->head_x, &lm->final_norm->value, (float)lm->arch.rms_eps,
                           &pass->head_h, &pass->head_rstd));
    if (fused) MB_TRY(mb_block_new2(c, b->head_rows, lm->arch.width, &pass->head_dh));
    if (b->opt_teacher != NULL) {
        MB_TRY(forward_distil(pass, fused, &loss));
        pass->loss = loss;
    } else if (b->targets != NULL) {
        MB_TRY(mb_ops_head_loss(lm->ops, &pass->head_h, &lm->head->weight, b->targets, &loss, pass->argmax,
                                fused ? b->opt_head_weight : NULL, fused ? &pass->head_dh : NULL,
                                fused ? mb_block_gradient(lm->head) : NULL));
        pass->loss = loss;
    }
    if (!pass->want.logits) goto done;
    MB_TRY(mb_block_new2(c, b->head_rows, lm->arch.vocab, &pass->logits));
    MB_TRY(mb_ops_linear(lm->ops, &pass->head_h, &lm->head->weight, NULL, false, &pass->logits));
done:
    return status;
}

static mb_status forward_end(mb_lm_pass *pass)
{
    mb_status status = MB_OK;
    mb_lm *lm = pass->lm;
    const int64_t last = lm->arch.layers;
    if (pass->batch.head_rows == 0 && !pass->want.hidden) goto done;
    MB_TRY(mb_params_acquire(lm->params, last));
    if (lm->arch.tied_head) MB_TRY(mb_params_acquire(lm->params, MB_PARAMS_EMBEDDING));
    if (pass->want.hidden) status = forward_hidden(pass);
    if (status == MB_OK && pass->batch.head_rows > 0) status = forward_head(pass);
    if (lm->arch.tied_head) mb_params_release(lm->params, MB_PARAMS_EMBEDDING);
    mb_params_release(lm->params, last);
done:
    return status;
}

/* ---- 6. outputs, the whole ---- */

/* Every op of a forward, from what was sent to the outputs as ops make them. */
static mb_status forward_queue(mb_lm_pass *pass)
{
    mb_status status = MB_OK;
    MB_TRY(forward_embed(pass));
    MB_TRY(forward_blocks(pass));
    MB_TRY(forward_end(pass));
done:
    return status;
}

mb_status mb_lm_fetch(mb_lm_pass *pass, const mb_tensor *tensor, float **out)
{
    mb_status status = MB_OK;
    void *host;
    MB_TRY(mb_ops_output(pass->ops, pass->host, tensor->data, mb_tensor_bytes(tensor), &host));
    *out = host;
done:
    return status;
}

mb_status mb_lm_fetch_ids(mb_lm_pass *pass, const int32_t *ids, int64_t n, int32_t **out)
{
    mb_status status = MB_OK;
    void *host;
    MB_TRY(mb_ops_output(pass->ops, pass->host, ids, (size_t)n * sizeof *ids, &host));
    *out = host;
done:
    return status;
}

/* Logits and ids of the routers that were run. */
static mb_status forward_routing(mb_lm_pass *pass, mb_lm_output *out)
{
    mb_status status = MB_OK;
    const mb_lm *lm = pass->lm;
    int64_t n = 0;
    for (int64_t i = 0; n < pass->routers; i++) {
        const mb_block_saved *saved = &pass->saved[i];
        if (!lm->blocks[i].is_moe) continue;
        MB_TRY(mb_lm_fetch(pass, &saved->router_logits, &pass->router_logits[n]));
        MB_TRY(mb_lm_fetch_ids(pass, saved->ids, pass->batch.tokens * lm->arch.picks, &pass->router_ids[n]));
        n++;
    }
    out->routers = n;
    out->router_logits = n > 0 ? pass->router_logits : NULL;
    out->router_ids = n > 0 ? pass->router_ids : NULL;
done:
    return status;
}

static mb_status forward_collect(mb_lm_pass *pass, mb_lm_output *out)
{
    mb_status status = MB_OK;
    MB_TRY(mb_lm_fetch(pass, &pass->loss, &out->token_loss));
    MB_TRY(mb_lm_fetch(pass, &pass->distance, &out->token_distil));
    MB_TRY(mb_lm_fetch_ids(pass, pass->argmax, pass->batch.head_rows, &out->argmax));
    MB_TRY(mb_lm_fetch(pass, &pass->logits, &out->logits));
    MB_TRY(mb_lm_fetch(pass, &pass->hidden, &out->hidden));
    if (!pass->want.no_routing) MB_TRY(forward_routing(pass, out));
done:
    return status;
}

mb_status mb_lm_forward_run(mb_lm_pass *pass, const mb_lm_batch *batch, const mb_lm_want *want)
{
    mb_status status = MB_OK;
    MB_TRY(mb_lm_forward_reset(pass, batch, want));
    MB_TRY(mb_lm_forward_prepare(pass));
    MB_TRY(mb_lm_forward_rope(pass, &pass->context, &pass->long_rope));
    MB_TRY(mb_lm_replay_forward(pass, forward_queue));
    for (int64_t i = 0; batch->opt_cache != NULL && i < batch->segments; i++)
        mb_kv_cache_grow(batch->opt_cache, batch->opt_slot[i], batch->offsets[i + 1] - batch->offsets[i]);
done:
    return status;
}

mb_status mb_lm_forward_start(mb_lm_pass *pass, const mb_lm_batch *batch, const mb_lm_want *want,
                              mb_lm_output *out)
{
    mb_status status = MB_OK;
    mb_lm_output result = {0};
    if (pass->lm->fuse != NULL) return mb_fuse_forward_start(pass, batch, want, out);
    MB_TRY(mb_lm_forward_check(pass->lm, batch, want));
    const bool fused = want->gradient && batch->head_rows > 0 && batch->opt_head_weight != NULL;
    if (fused && pass->lm->head->trained && pass->lm->head->gradient.data == NULL)
        MB_RAISE(MB_EUSAGE, "forward: the head trains and no gradient is bound (mb_params_bind_gradient)");
    MB_TRY(mb_lm_forward_run(pass, batch, want));
    MB_TRY(forward_collect(pass, &result));
    pass->is_ready = want->gradient;
    *out = result;
done:
    return status;
}

mb_status mb_lm_pass_wait(mb_lm_pass *pass)
{
    mb_status status = MB_OK;
    MB_TRY(pass->fuse != NULL ? mb_fuse_pass_wait(pass) : mb_ops_wait(pass->ops));
    pass->is_queued = pass->is_queued_back = false;
done:
    return status;
}

mb_status mb_lm_forward(mb_lm_pass *pass, const mb_lm_batch *batch, const mb_lm_want *want, mb_lm_output *out)
{
    mb_status status = MB_OK;
    mb_lm_output result;
    MB_TRY(mb_lm_forward_start(pass, batch, want, &result));
    MB_TRY(mb_lm_pass_wait(pass));
    *out = result;
done:
    return status;
}
