/* fuse_layer: one residual stream through several models' layers, forward.
 *
 * 1. what members must have in common
 * 2. passes
 * 3. what the host sends
 * 4. a stage: the members' outputs, their exchange, router and mixing
 * 5. the whole
 *
 * h_0 = sum_m w_0m emb_m; h_l = sum_m w_lm layer_m(h_{l-1}), every member with its own keys and values;
 * logits = sum_m w_{L+1,m} head_m(norm_m(h_L)). Without a gradient there is one h and one stack of outputs,
 * used again by every stage; with one, a stage keeps its own; with recompute its h alone.
 */
#include "model/fuse_layer.h"

#include <string.h>

/* ---- 1. what members must have in common ---- */

typedef struct layer_fact {
    const char *name;
    int64_t value;
} layer_fact;

enum { FACTS = 5 };

static void layer_facts(const mb_arch *arch, layer_fact facts[FACTS])
{
    const layer_fact all[FACTS] = {{"hidden_size", arch->width},
                                   {"num_hidden_layers", arch->layers},
                                   {"num_attention_heads", arch->heads},
                                   {"num_key_value_heads", arch->kv_heads},
                                   {"head_dim", arch->head_width}};
    memcpy(facts, all, sizeof all);
}

/* The stream, its layers and the shape of attention; rotary settings, eps, windows and the feed-forward half
 * are each model's own. */
mb_status mb_fuse_layer_check(const struct mb_fuse *fuse)
{
    mb_status status = MB_OK;
    const fuse_member *a = &fuse->member[0];
    layer_fact one[FACTS], other[FACTS];
    layer_facts(&a->arch, one);
    for (int64_t m = 1; m < fuse->count; m++) {
        const fuse_member *b = &fuse->member[m];
        if (a->arch.family != b->arch.family)
            MB_RAISE(
                MB_EDATA,
                "layer level: the models must be of one architecture; %s (%s) is a %s, %s (%s) a %s. Fuse "
                "them by token (router_type = token_level)",
                a->name, a->path, mb_arch_facts(&a->arch)->type, b->name, b->path,
                mb_arch_facts(&b->arch)->type);
        layer_facts(&b->arch, other);
        for (int i = 0; i < FACTS; i++)
            if (one[i].value != other[i].value)
                MB_RAISE(MB_EDATA,
                         "layer level: the models must be of one architecture; %s (%s) has %s %lld, %s (%s) "
                         "has %lld. Fuse them by token (router_type = token_level)",
                         a->name, a->path, one[i].name, (long long)one[i].value, b->name, b->path,
                         (long long)other[i].value);
    }
done:
    return status;
}

/* ---- 2. passes ---- */

void mb_fuse_layer_here(const struct mb_fuse *fuse, int64_t *out_first, int64_t *out_count)
{
    *out_first = fuse->group != NULL ? mb_comm_rank(fuse->group) : 0;
    *out_count = fuse->group != NULL ? 1 : fuse->count;
}

mb_status mb_fuse_layer_pass_create(mb_lm_pass *pass)
{
    mb_status status = MB_OK;
    const mb_lm *lm = pass->lm;
    const struct mb_fuse *fuse = lm->fuse;
    struct mb_fuse_layer_pass *layer;
    int64_t first, here;
    MB_NEW(pass->fuse->layer);
    layer = pass->fuse->layer;
    MB_NEW_ARRAY(layer->stage, fuse->stages);
    MB_NEW_ARRAY(layer->saved, fuse->count * lm->arch.layers);
    mb_fuse_layer_here(fuse, &first, &here);
    for (int64_t m = first; m < first + here; m++) {
        mb_weight *own = &fuse->member[m].lm->head->weight;
        layer->heads[m] = own;
        if (own->tensor.shape[0] == lm->arch.vocab) continue;
        mb_weight_init(&layer->views[m], mb_tensor_rows(&own->tensor, 0, lm->arch.vocab));
        layer->heads[m] = &layer->views[m];
    }
done:
    return status;
}

void mb_fuse_layer_pass_destroy(mb_lm_pass *pass)
{
    struct mb_fuse_layer_pass *layer = pass->fuse != NULL ? pass->fuse->layer : NULL;
    if (layer == NULL) return;
    for (int64_t m = 0; m < MB_FUSE_MAX_MEMBERS; m++)
        if (layer->heads[m] == &layer->views[m]) mb_weight_reset(&layer->views[m]);
    mb_free(layer->stage);
    mb_free(layer->saved);
    MB_FREE(pass->fuse->layer);
}

/* ---- 3. what the host sends ---- */

/* Stages to run: all, unless nothing asked for depends on the last. */
static int64_t layer_stages(const mb_lm_pass *pass)
{
    const int64_t all = pass->lm->fuse->stages;
    return pass->batch.head_rows > 0 || !pass->want.no_routing || pass->want.gradient ? all : all - 1;
}

static mb_status layer_contexts(mb_lm_pass *pass)
{
    mb_status status = MB_OK;
    const struct mb_fuse *fuse = pass->lm->fuse;
    struct mb_fuse_layer_pass *layer = pass->fuse->layer;
    int64_t first, here;
    mb_fuse_layer_here(fuse, &first, &here);
    pass->context.gradient = layer->keeps;
    for (int64_t i = 0; i < here; i++) {
        const int64_t m = first + i;
        mb_block_context *c = &layer->context[m];
        mb_lm *member = fuse->member[m].lm;
        *c = pass->context;
        c->arch = &member->arch;
        c->rope = &member->rope;
        c->opt_cache = mb_fuse_cache_of(fuse, pass->batch.opt_cache, m);
        MB_TRY(mb_lm_forward_rope(pass, c, &layer->long_rope[m]));
    }
done:
    return status;
}

static mb_status layer_mix_rows(mb_lm_pass *pass)
{
    mb_status status = MB_OK;
    struct mb_fuse_layer_pass *layer = pass->fuse->layer;
    const int64_t t = pass->batch.tokens, count = pass->lm->fuse->count;
    int32_t *rows;
    const void *sent;
    MB_ARENA_ARRAY(pass->host, rows, t * count);
    for (int64_t i = 0; i < t * count; i++) rows[i] = (int32_t)(i % count * t + i / count);
    MB_TRY(mb_ops_input(pass->ops, pass->arena, rows, (size_t)(t * count) * sizeof *rows, &sent));
    layer->mix = (mb_dispatch){.rows = t * count, .slot_row = (int32_t *)sent};
done:
    return status;
}

static mb_status layer_begin(mb_lm_pass *pass)
{
    mb_status status = MB_OK;
    const mb_lm *lm = pass->lm;
    const struct mb_fuse *fuse = lm->fuse;
    struct mb_fuse_layer_pass *layer = pass->fuse->layer;
    const int64_t t = pass->batch.tokens, d = lm->arch.width;
    memset(layer->stage, 0, (size_t)fuse->stages * sizeof *layer->stage);
    memset(layer->saved, 0, (size_t)(fuse->count * lm->arch.layers) * sizeof *layer->saved);
    layer->trains = pass->want.gradient && fuse->trains;
    layer->keeps = layer->trains && !pass->want.recompute;
    MB_TRY(mb_lm_forward_prepare(pass));
    MB_TRY(layer_contexts(pass));
    MB_TRY(layer_mix_rows(pass));
    for (int i = 0; i < 2; i++)
        MB_TRY(mb_fuse_router_map_create(&fuse->router[i], &pass->context, t, &layer->map[i]));
    MB_TRY(mb_fuse_head_begin(pass));
    layer->room = NULL;
    if (fuse->group != NULL && mb_ops_is_device(pass->ops))
        MB_ARENA_ARRAY(pass->host, layer->room, fuse->count * t * d);
    if (!layer->keeps) MB_TRY(mb_block_new2(&pass->context, fuse->count * t, d, &layer->work));
    MB_TRY(mb_block_new1(&pass->context, fuse->count * t, &layer->norm_rstd));
done:
    return status;
}

/* ---- 4. a stage ---- */

mb_tensor mb_fuse_layer_rows(const mb_tensor *stacked, int64_t m, int64_t rows)
{
    return mb_tensor_rows(stacked, m * rows, rows);
}

static mb_status layer_embed(mb_lm_pass *pass, mb_lm *member, mb_tensor *out)
{
    mb_status status = MB_OK;
    MB_TRY(mb_params_acquire(member->params, MB_PARAMS_EMBEDDING));
    status = mb_ops_embedding(pass->ops, pass->sent.ids, &member->embedding->value, out);
    mb_params_release(member->params, MB_PARAMS_EMBEDDING);
done:
    return status;
}

static mb_status layer_norm(mb_lm_pass *pass, mb_lm *member, const mb_tensor *h, mb_tensor *out,
                            mb_tensor *rstd)
{
    mb_status status = MB_OK;
    const int64_t last = member->arch.layers;
    MB_TRY(mb_params_acquire(member->params, last));
    status =
        mb_ops_rms_norm(pass->ops, h, &member->final_norm->value, (float)member->arch.rms_eps, out, rstd);
    mb_params_release(member->params, last);
done:
    return status;
}

static mb_status layer_block(mb_lm_pass *pass, int64_t m, int64_t index, const mb_tensor *h, bool gradient,
                             mb_tensor *out)
{
    mb_status status = MB_OK;
    struct mb_fuse_layer_pass *layer = pass->fuse->layer;
    mb_lm *member = pass->lm->fuse->member[m].lm;
    mb_block_saved *saved = &layer->saved[m * member->arch.layers + index];
    mb_block_context *c = &layer->context[m];
    const mb_arena_mark mark = mb_arena_mark_get(pass->arena);
    MB_TRY(mb_ops_copy(pass->ops, h->data, mb_tensor_bytes(h), out->data));
    c->gradient = gradient;
    MB_TRY(mb_block_forward(c, member->params, &member->blocks[index], false, out, saved));
done:
    if (!gradient) mb_arena_release(pass->arena, mark);
    return status;
}

mb_status mb_fuse_layer_outputs(mb_lm_pass *pass, int64_t s, const mb_tensor *h, bool gradient,
                                mb_tensor *outputs)
{
    mb_status status = MB_OK;
    const struct mb_fuse *fuse = pass->lm->fuse;
    const int64_t t = pass->batch.tokens, last = fuse->stages - 1;
    int64_t first, here;
    mb_fuse_layer_here(fuse, &first, &here);
    for (int64_t m = first; m < first + here; m++) {
        mb_tensor out = mb_fuse_layer_rows(outputs, m, t);
        mb_tensor rstd = mb_fuse_layer_rows(&pass->fuse->layer->norm_rstd, m, t);
        if (s == 0)
            MB_TRY(layer_embed(pass, fuse->member[m].lm, &out));
        else if (s == last)
            MB_TRY(layer_norm(pass, fuse->member[m].lm, h, &out, &rstd));
        else
            MB_TRY(layer_block(pass, m, s - 1, h, gradient, &out));
    }
done:
    return status;
}

/* The outputs of all ranks' members. Collective: every rank comes here, with its status so far. */
static mb_status layer_exchange(mb_lm_pass *pass, mb_status before, mb_tensor *outputs)
{
    mb_status status = MB_OK;
    const struct mb_fuse *fuse = pass->lm->fuse;
    const int64_t rank = mb_comm_rank(fuse->group), t = pass->batch.tokens;
    const int64_t one = t * pass->lm->arch.width;
    float *room = pass->fuse->layer->room;
    int64_t offsets[MB_FUSE_MAX_MEMBERS + 1];
    if (before == MB_OK && room != NULL) {
        const mb_tensor own = mb_fuse_layer_rows(outputs, rank, t);
        before = mb_ops_download(pass->ops, own.data, mb_tensor_bytes(&own), room + rank * one);
        if (before == MB_OK) before = mb_ops_wait(pass->ops);
    }
    MB_TRY(mb_comm_agree(fuse->group, before));
    for (int64_t r = 0; r <= fuse->count; r++) offsets[r] = r * one * (int64_t)sizeof *room;
    MB_TRY(mb_comm_allgather_parts(fuse->group, room != NULL ? (void *)room : outputs->data, offsets));
    if (room != NULL) MB_TRY(mb_ops_upload(pass->ops, room, mb_tensor_bytes(outputs), outputs->data));
done:
    return status;
}

int64_t mb_fuse_layer_parts(const mb_lm_pass *pass, int64_t s, const mb_tensor *h, const mb_tensor *outputs,
                            mb_tensor *parts)
{
    const int64_t count = pass->lm->fuse->count, t = pass->batch.tokens;
    int64_t n = 0;
    if (s > 0) parts[n++] = *h;
    for (int64_t m = 0; m < count; m++) parts[n++] = mb_fuse_layer_rows(outputs, m, t);
    return n;
}

/* The next stream. */
static mb_status layer_mix(mb_lm_pass *pass, int64_t s, const mb_tensor *outputs)
{
    mb_status status = MB_OK;
    struct mb_fuse_layer_pass *layer = pass->fuse->layer;
    if (s == pass->lm->fuse->stages - 1) goto done; /* the heads are mixed as logits */
    if (layer->trains && s > 0)                     /* nothing else needs the stream under stage 0 */
        MB_TRY(mb_block_new2(&pass->context, pass->batch.tokens, pass->lm->arch.width, &pass->x));
    MB_TRY(mb_ops_zero(pass->ops, pass->x.data, mb_tensor_bytes(&pass->x)));
    MB_TRY(mb_ops_combine(pass->ops, outputs, &layer->mix, &layer->stage[s].saved.w, &pass->x));
done:
    return status;
}

/* Everything of a stage but the exchange between ranks, which comes between the two. */
static mb_status layer_stage_begin(mb_lm_pass *pass, int64_t s, mb_tensor *out_outputs)
{
    mb_status status = MB_OK;
    struct mb_fuse_layer_pass *layer = pass->fuse->layer;
    fuse_layer_stage *stage = &layer->stage[s];
    const int64_t rows = pass->batch.tokens * pass->lm->fuse->count;
    *out_outputs = layer->work;
    if (s > 0) stage->h = pass->x;
    if (layer->keeps) {
        MB_TRY(mb_block_new2(&pass->context, rows, pass->lm->arch.width, &stage->outputs));
        *out_outputs = stage->outputs;
    }
    MB_TRY(mb_fuse_layer_outputs(pass, s, &pass->x, layer->keeps, out_outputs));
done:
    return status;
}

static mb_status layer_stage_end(mb_lm_pass *pass, int64_t s, const mb_tensor *outputs)
{
    mb_status status = MB_OK;
    struct mb_fuse_layer_pass *layer = pass->fuse->layer;
    mb_tensor parts[MB_FUSE_MAX_PARTS];
    (void)mb_fuse_layer_parts(pass, s, &pass->x, outputs, parts);
    MB_TRY(mb_fuse_router_forward(&pass->lm->fuse->router[s], &pass->context, mb_fuse_layer_map(pass, s),
                                  parts, layer->keeps, &layer->stage[s].saved));
    MB_TRY(layer_mix(pass, s, outputs));
    pass->routers = s + 1;
done:
    return status;
}

/* ---- 5. the whole ---- */

/* Every op of a forward. A rank that failed goes on to the next exchange, where all hear of it. */
static mb_status layer_run(mb_lm_pass *pass, mb_status before)
{
    mb_status status = before;
    const bool is_spread = pass->lm->fuse->group != NULL;
    const int64_t stages = layer_stages(pass);
    mb_tensor outputs = {0};
    pass->routers = 0;
    for (int64_t s = 0; s < stages; s++) {
        if (status == MB_OK) status = layer_stage_begin(pass, s, &outputs);
        if (is_spread) MB_TRY(layer_exchange(pass, status, &outputs));
        if (status == MB_OK) status = layer_stage_end(pass, s, &outputs);
        if (status != MB_OK && !is_spread) break;
    }
    if (pass->batch.head_rows == 0)
        status = is_spread ? mb_comm_agree(pass->lm->fuse->group, status) : status;
    else if (is_spread)
        status = mb_fuse_head_forward_ranks(pass, status);
    else if (status == MB_OK)
        status = mb_fuse_head_forward(pass);
done:
    return status;
}

static mb_status layer_queue(mb_lm_pass *pass)
{
    return layer_run(pass, MB_OK);
}

/* What is recorded must not depend on what is sent for long segments alone. */
static bool layer_is_long(const mb_lm_pass *pass)
{
    bool is_long = false;
    for (int64_t m = 0; m < pass->lm->fuse->count; m++)
        is_long |= pass->fuse->layer->context[m].rope == &pass->fuse->layer->long_rope[m];
    return is_long;
}

/* Member numbers of the largest logits; they are there once the pass has waited. */
mb_status mb_fuse_layer_wait(mb_lm_pass *pass)
{
    const int64_t count = pass->lm->fuse->count;
    for (int64_t s = 0; s < pass->fuse->out.routers; s++)
        for (int64_t t = 0; t < pass->batch.tokens; t++) {
            const float *row = pass->router_logits[s] + t * count;
            int32_t best = 0;
            for (int32_t m = 1; m < count; m++)
                if (row[m] > row[best]) best = m;
            pass->router_ids[s][t] = best;
        }
    return MB_OK;
}

static mb_status layer_collect(mb_lm_pass *pass, mb_lm_output *out)
{
    mb_status status = MB_OK;
    MB_TRY(mb_lm_fetch(pass, &pass->loss, &out->token_loss));
    MB_TRY(mb_lm_fetch_ids(pass, pass->argmax, pass->batch.head_rows, &out->argmax));
    MB_TRY(mb_lm_fetch(pass, &pass->logits, &out->logits));
    if (pass->want.no_routing) goto done;
    for (int64_t s = 0; s < pass->routers; s++) {
        MB_TRY(mb_lm_fetch(pass, &pass->fuse->layer->stage[s].saved.logits, &pass->router_logits[s]));
        MB_ARENA_ARRAY(pass->host, pass->router_ids[s], pass->batch.tokens);
    }
    out->routers = pass->routers;
    out->router_logits = pass->router_logits;
    out->router_ids = pass->router_ids;
done:
    return status;
}

mb_status mb_fuse_layer_forward_start(mb_lm_pass *pass, mb_lm_output *out)
{
    mb_status status = MB_OK;
    const struct mb_fuse *fuse = pass->lm->fuse;
    const mb_lm_batch *b = &pass->batch;
    mb_lm_output result = {0};
    pass->fuse->out = result;
    status = layer_begin(pass);
    if (fuse->group != NULL)
        status = layer_run(pass, status);
    else if (status == MB_OK)
        status = layer_is_long(pass) ? layer_queue(pass) : mb_lm_replay_forward(pass, layer_queue);
    MB_TRY(status);
    for (mb_kv_cache *cache = b->opt_cache; cache != NULL; cache = cache->next)
        for (int64_t i = 0; i < b->segments; i++)
            mb_kv_cache_grow(cache, b->opt_slot[i], b->offsets[i + 1] - b->offsets[i]);
    MB_TRY(layer_collect(pass, &result));
    pass->fuse->out = result;
    *out = result;
done:
    return status;
}
