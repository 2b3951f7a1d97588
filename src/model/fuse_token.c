/* fuse_token: distributions of whole models mixed, by fixed weights or by a router that sees their final
 * hidden states.
 *
 * The loss needs no column of the vocabulary: - ln sum_m w_m exp(-nll_m), from the members' own losses. Where
 * all columns are wanted (logits, the largest, the loss of mixed logits) the heads are run over chunks of
 * rows and mixed by the host. An ensemble of which one member has all the weight is that member, untouched.
 *
 * 1. one member alone
 * 2. start: the members' forwards
 * 3. start: the router
 * 4. start: outputs
 * 5. finish: weights and losses
 * 6. finish: all columns
 * 7. finish: with members on ranks, the whole
 * 8. backward
 */
#include <math.h>
#include <string.h>

#include "model/fuse_mix.h"
#include "model/fuse_state.h"

#define TOKEN_CHUNK_BYTES ((int64_t)64 << 20) /* of logits that are there at one time */

/* ---- 1. one member alone ---- */

static bool token_is_single(const struct mb_fuse *fuse)
{
    return fuse->kind == MB_FUSE_ENSEMBLE && fuse->actives == 1;
}

/* A rank whose member is not run counts the rows of its cache all the same. */
static mb_status token_count_rows(mb_lm_pass *pass)
{
    mb_status status = MB_OK;
    const mb_lm_batch *b = &pass->batch;
    int32_t *rows, *first, *count;
    if (b->opt_cache == NULL) goto done;
    MB_ARENA_ARRAY(pass->host, rows, b->tokens);
    MB_ARENA_ARRAY(pass->host, first, b->segments);
    MB_ARENA_ARRAY(pass->host, count, b->segments);
    MB_TRY(mb_kv_cache_rows(b->opt_cache, b->offsets, b->opt_slot, b->segments, rows, first, count));
    for (int64_t i = 0; i < b->segments; i++)
        mb_kv_cache_grow(b->opt_cache, b->opt_slot[i], b->offsets[i + 1] - b->offsets[i]);
done:
    return status;
}

static mb_status token_new_outputs(mb_lm_pass *pass, mb_lm_output *out)
{
    mb_status status = MB_OK;
    const mb_lm_batch *b = &pass->batch;
    if (b->head_rows == 0) goto done;
    if (b->targets != NULL) MB_ARENA_ARRAY(pass->host, out->token_loss, b->head_rows);
    if (pass->want.argmax) MB_ARENA_ARRAY(pass->host, out->argmax, b->head_rows);
    if (pass->want.logits) MB_ARENA_ARRAY(pass->host, out->logits, b->head_rows * pass->lm->arch.vocab);
done:
    return status;
}

static mb_status token_start_single(mb_lm_pass *pass, mb_lm_output *out)
{
    mb_status status = MB_OK;
    const struct mb_fuse *fuse = pass->lm->fuse;
    mb_lm_pass *member = pass->fuse->member[fuse->active[0]];
    mb_lm_batch batch = pass->batch;
    mb_lm_want want = {.argmax = pass->want.argmax, .logits = pass->want.logits, .no_routing = true};
    if (member != NULL) {
        batch.opt_cache = mb_fuse_cache_of(fuse, batch.opt_cache, fuse->active[0]);
        batch.opt_head_weight = NULL;
        MB_TRY(mb_lm_forward_start(member, &batch, &want, out));
        goto done;
    }
    MB_TRY(token_count_rows(pass));
    MB_TRY(token_new_outputs(pass, out));
done:
    return status;
}

static mb_status token_finish_single(mb_lm_pass *pass)
{
    mb_status status = MB_OK;
    const struct mb_fuse *fuse = pass->lm->fuse;
    const mb_lm_output *out = &pass->fuse->out;
    const size_t n = (size_t)pass->batch.head_rows;
    MB_TRY(mb_fuse_spread(fuse, fuse->active[0], out->token_loss, n * sizeof(float)));
    MB_TRY(mb_fuse_spread(fuse, fuse->active[0], out->argmax, n * sizeof(int32_t)));
    MB_TRY(
        mb_fuse_spread(fuse, fuse->active[0], out->logits, n * (size_t)pass->lm->arch.vocab * sizeof(float)));
done:
    return status;
}

/* ---- 2. start: the members' forwards ---- */

/* Targets that a member lacks are taken from the row's loss later; it gets token 0 in their place. */
static mb_status token_targets(mb_lm_pass *pass, int64_t active, const int32_t **out)
{
    mb_status status = MB_OK;
    const mb_lm_batch *b = &pass->batch;
    const mb_fuse_vocab *vocab = pass->lm->fuse->vocab;
    int32_t *targets;
    *out = b->targets;
    if (b->targets == NULL || vocab->has[active] == NULL) goto done;
    MB_ARENA_ARRAY(pass->host, targets, b->head_rows);
    for (int64_t i = 0; i < b->head_rows; i++)
        targets[i] = mb_fuse_vocab_has(vocab, active, b->targets[i]) ? b->targets[i] : 0;
    *out = targets;
done:
    return status;
}

static mb_status token_start_member(mb_lm_pass *pass, int64_t active)
{
    mb_status status = MB_OK;
    const struct mb_fuse *fuse = pass->lm->fuse;
    const int64_t m = fuse->active[active];
    mb_lm_pass *member = pass->fuse->member[m];
    mb_lm_batch batch = pass->batch;
    const mb_lm_want want = {.hidden = pass->fuse->token.rows > 0, .no_routing = true};
    batch.opt_cache = mb_fuse_cache_of(fuse, batch.opt_cache, m);
    batch.opt_head_weight = NULL;
    MB_TRY(token_targets(pass, active, &batch.targets));
    MB_TRY(mb_lm_forward_run(member, &batch, &want));
    MB_TRY(mb_lm_fetch(member, &member->loss, &pass->fuse->token.nll[m]));
done:
    return status;
}

static mb_status token_start_members(mb_lm_pass *pass)
{
    mb_status status = MB_OK;
    const struct mb_fuse *fuse = pass->lm->fuse;
    bool any = false;
    for (int64_t i = 0; i < fuse->actives; i++) {
        if (pass->fuse->member[fuse->active[i]] == NULL) continue;
        MB_TRY(token_start_member(pass, i));
        any = true;
    }
    if (!any) MB_TRY(token_count_rows(pass));
done:
    return status;
}

/* ---- 3. start: the router ---- */

/* Rows the router is asked about: all whose weights are read, or those whose distributions are mixed. */
static int64_t token_router_rows(const mb_lm_pass *pass)
{
    if (pass->lm->fuse->kind != MB_FUSE_TOKEN) return 0;
    return !pass->want.no_routing || pass->want.gradient ? pass->batch.tokens : pass->batch.head_rows;
}

/* What the router sees of a member: its final hidden states, all or those of the head rows. */
static mb_status token_part(mb_lm_pass *pass, int64_t m, mb_tensor *out)
{
    mb_status status = MB_OK;
    const mb_lm_pass *member = pass->fuse->member[m];
    *out = member->hidden;
    if (pass->fuse->token.rows == pass->batch.tokens) goto done;
    MB_TRY(mb_block_new2(&pass->context, pass->fuse->token.rows, member->hidden.shape[1], out));
    MB_TRY(mb_ops_embedding(pass->ops, member->sent.head_row, &member->hidden, out));
done:
    return status;
}

/* Queue it over the parts. */
static mb_status token_run_router(mb_lm_pass *pass)
{
    mb_status status = MB_OK;
    fuse_token_pass *token = &pass->fuse->token;
    mb_fuse_router *router = &pass->lm->fuse->router[0];
    MB_TRY(mb_fuse_router_map_create(router, &pass->context, token->rows, &token->map));
    MB_TRY(mb_fuse_router_forward(router, &pass->context, &token->map, pass->fuse->parts, pass->want.gradient,
                                  pass->fuse->saved));
    MB_TRY(mb_lm_fetch(pass, &pass->fuse->saved[0].logits, &token->router_logits));
done:
    return status;
}

static mb_status token_start_router(mb_lm_pass *pass)
{
    mb_status status = MB_OK;
    const struct mb_fuse *fuse = pass->lm->fuse;
    fuse_token_pass *token = &pass->fuse->token;
    if (token->rows == 0) goto done;
    for (int64_t m = 0; m < fuse->count; m++) {
        if (pass->fuse->member[m] == NULL) continue;
        MB_TRY(token_part(pass, m, &pass->fuse->parts[m]));
        if (fuse->group != NULL) MB_TRY(mb_lm_fetch(pass, &pass->fuse->parts[m], &token->hidden[m]));
    }
    if (fuse->group == NULL) MB_TRY(token_run_router(pass));
done:
    return status;
}

/* ---- 4. start: outputs ---- */

mb_status mb_fuse_token_start(mb_lm_pass *pass, mb_lm_output *out)
{
    mb_status status = MB_OK;
    const struct mb_fuse *fuse = pass->lm->fuse;
    fuse_token_pass *token = &pass->fuse->token;
    *token = (fuse_token_pass){.rows = token_router_rows(pass)};
    if (token_is_single(fuse)) {
        MB_TRY(token_start_single(pass, out));
        goto done;
    }
    MB_TRY(token_start_members(pass));
    MB_TRY(token_start_router(pass));
    MB_TRY(token_new_outputs(pass, out));
    MB_ARENA_ARRAY(pass->host, token->weight, (token->rows > 0 ? token->rows : 1) * fuse->count);
    if (pass->want.gradient && pass->batch.head_rows > 0)
        MB_ARENA_ARRAY(pass->host, token->posterior, pass->batch.head_rows * fuse->count);
    if (fuse->stages == 0 || pass->want.no_routing) goto done;
    out->routers = 1;
    out->router_logits = pass->router_logits;
    out->router_ids = pass->router_ids;
    MB_ARENA_ARRAY(pass->host, out->router_logits[0], token->rows * fuse->count);
    MB_ARENA_ARRAY(pass->host, out->router_ids[0], token->rows);
done:
    pass->fuse->out = *out;
    return status;
}

/* ---- 5. finish: weights and losses ---- */

/* Softmax; what rounds to nothing in f32 is nothing. */
static void token_softmax(const float *logits, int64_t n, double *w)
{
    double largest = (double)logits[0], sum = 0;
    for (int64_t m = 1; m < n; m++)
        if ((double)logits[m] > largest) largest = (double)logits[m];
    for (int64_t m = 0; m < n; m++) {
        w[m] = (double)(float)exp((double)logits[m] - largest);
        sum += w[m];
    }
    for (int64_t m = 0; m < n; m++) w[m] /= sum;
}

static void token_weights(mb_lm_pass *pass)
{
    const struct mb_fuse *fuse = pass->lm->fuse;
    const fuse_token_pass *token = &pass->fuse->token;
    const mb_lm_output *out = &pass->fuse->out;
    const int64_t n = fuse->count;
    for (int64_t m = 0; m < n && fuse->kind == MB_FUSE_ENSEMBLE; m++)
        token->weight[m] = fuse->member[m].weight;
    for (int64_t r = 0; r < token->rows; r++)
        token_softmax(token->router_logits + r * n, n, token->weight + r * n);
    if (out->routers == 0) return;
    memcpy(out->router_logits[0], token->router_logits, (size_t)(token->rows * n) * sizeof(float));
    for (int64_t r = 0; r < token->rows; r++)
        out->router_ids[0][r] = mb_fuse_mix_largest(token->router_logits + r * n, n);
}

/* Weights [M] of head row i. */
static const double *token_row_weight(const mb_lm_pass *pass, int64_t i)
{
    const fuse_token_pass *token = &pass->fuse->token;
    const int64_t row = token->rows == 0                    ? 0
                        : token->rows == pass->batch.tokens ? pass->batch.head_row[i]
                                                            : i;
    return token->weight + row * pass->lm->fuse->count;
}

/* Loss of head row i from those of the members, and each one's share of the probability. */
static float token_loss(const mb_lm_pass *pass, int64_t i, double *opt_posterior)
{
    const struct mb_fuse *fuse = pass->lm->fuse;
    const double *w = token_row_weight(pass, i);
    double term[MB_FUSE_MAX_MEMBERS], largest = -INFINITY, sum = 0;
    for (int64_t a = 0; a < fuse->actives; a++) {
        const int64_t m = fuse->active[a];
        const bool has = w[m] > 0 && mb_fuse_vocab_has(fuse->vocab, a, pass->batch.targets[i]);
        term[a] = has ? log(w[m]) - (double)pass->fuse->token.nll[m][i] : -INFINITY;
        if (term[a] > largest) largest = term[a];
    }
    if (largest == -INFINITY) {
        if (opt_posterior != NULL) memcpy(opt_posterior, w, (size_t)fuse->count * sizeof *w);
        return -MB_FUSE_NEVER;
    }
    for (int64_t a = 0; a < fuse->actives; a++) sum += exp(term[a] - largest);
    for (int64_t a = 0; a < fuse->actives && opt_posterior != NULL; a++)
        opt_posterior[fuse->active[a]] = exp(term[a] - largest) / sum;
    return (float)-(largest + log(sum));
}

static void token_losses(mb_lm_pass *pass)
{
    const struct mb_fuse *fuse = pass->lm->fuse;
    double *posterior = pass->fuse->token.posterior;
    if (pass->fuse->out.token_loss == NULL || fuse->by_logits) return;
    for (int64_t i = 0; i < pass->batch.head_rows; i++)
        pass->fuse->out.token_loss[i] =
            token_loss(pass, i, posterior != NULL ? posterior + i * fuse->count : NULL);
}

/* ---- 6. finish: all columns ---- */

typedef struct token_chunk {
    int64_t first, rows;
    float *logits[MB_FUSE_MAX_MEMBERS]; /* [rows, V_m] by active members, the host's */
    float *mixed;                       /* [rows, V] */
} token_chunk;

static bool token_is_wide(const mb_lm_pass *pass)
{
    const mb_lm_output *out = &pass->fuse->out;
    return out->logits != NULL || out->argmax != NULL ||
           (pass->lm->fuse->by_logits && out->token_loss != NULL);
}

static int64_t token_chunk_rows(const mb_lm_pass *pass)
{
    const int64_t row = (pass->lm->fuse->actives + 1) * pass->lm->arch.vocab * (int64_t)sizeof(float),
                  most = TOKEN_CHUNK_BYTES / row > 0 ? TOKEN_CHUNK_BYTES / row : 1;
    return most < pass->batch.head_rows ? most : pass->batch.head_rows;
}

/* A member's head over the chunk's rows, queued. */
static mb_status token_head(mb_lm_pass *pass, mb_lm_pass *member, const token_chunk *chunk, float **out)
{
    mb_status status = MB_OK;
    mb_lm *lm = member->lm;
    const mb_tensor h = mb_tensor_rows(&member->head_h, chunk->first, chunk->rows);
    mb_tensor logits;
    MB_TRY(mb_block_new2(&pass->context, chunk->rows, lm->arch.vocab, &logits));
    MB_TRY(mb_params_acquire(lm->params, lm->arch.layers));
    if (lm->arch.tied_head) MB_TRY(mb_params_acquire(lm->params, MB_PARAMS_EMBEDDING));
    status = mb_ops_linear(pass->ops, &h, &lm->head->weight, NULL, false, &logits);
    if (lm->arch.tied_head) mb_params_release(lm->params, MB_PARAMS_EMBEDDING);
    mb_params_release(lm->params, lm->arch.layers);
    MB_TRY(status);
    MB_TRY(mb_lm_fetch(pass, &logits, out));
done:
    return status;
}

/* Every member's rows of the chunk, here or (with a group) at its rank 0. */
static mb_status token_chunk_logits(mb_lm_pass *pass, token_chunk *chunk)
{
    mb_status status = MB_OK;
    const struct mb_fuse *fuse = pass->lm->fuse;
    void *data[MB_FUSE_MAX_MEMBERS] = {NULL};
    size_t bytes[MB_FUSE_MAX_MEMBERS] = {0};
    for (int64_t a = 0; a < fuse->actives && status == MB_OK; a++) {
        const int64_t m = fuse->active[a], n = chunk->rows * fuse->member[m].arch.vocab;
        chunk->logits[a] = NULL;
        if (pass->fuse->member[m] != NULL)
            status = token_head(pass, pass->fuse->member[m], chunk, &chunk->logits[a]);
        else if (mb_fuse_is_root(fuse))
            chunk->logits[a] = mb_arena_alloc(pass->host, (size_t)n, sizeof(float));
        if (status == MB_OK && chunk->logits[a] == NULL && mb_fuse_is_root(fuse)) status = MB_ENOMEM;
        data[m] = chunk->logits[a];
        bytes[m] = (size_t)n * sizeof(float);
    }
    if (status == MB_OK) status = mb_ops_wait(pass->ops);
    MB_TRY(mb_fuse_agree(fuse, status));
    MB_TRY(mb_fuse_gather(fuse, data, bytes));
done:
    return status;
}

/* Largest and, where logits are mixed, losses of the mixed rows. */
static void token_read_rows(mb_lm_pass *pass, const token_chunk *chunk)
{
    const mb_lm_output *out = &pass->fuse->out;
    const int64_t v = pass->lm->arch.vocab;
    const bool has_loss = pass->lm->fuse->by_logits && out->token_loss != NULL;
#pragma omp parallel for schedule(static) num_threads(mb_ops_threads(pass->ops))
    for (int64_t i = 0; i < chunk->rows; i++) {
        const float *row = chunk->mixed + i * v;
        const int64_t at = chunk->first + i;
        if (out->argmax != NULL) out->argmax[at] = mb_fuse_mix_largest(row, v);
        if (has_loss)
            out->token_loss[at] = (float)(mb_fuse_mix_sum(row, v) - (double)row[pass->batch.targets[at]]);
    }
}

static mb_status token_mix_chunk(mb_lm_pass *pass, token_chunk *chunk)
{
    mb_status status = MB_OK;
    const struct mb_fuse *fuse = pass->lm->fuse;
    const int64_t v = pass->lm->arch.vocab, n = fuse->actives;
    const float *logits[MB_FUSE_MAX_MEMBERS];
    const uint8_t *has[MB_FUSE_MAX_MEMBERS];
    double *weight;
    MB_ARENA_ARRAY(pass->host, weight, chunk->rows * n);
    for (int64_t a = 0; a < n; a++) {
        logits[a] = chunk->logits[a];
        has[a] = fuse->vocab->has[a];
        for (int64_t i = 0; i < chunk->rows; i++)
            weight[i * n + a] = token_row_weight(pass, chunk->first + i)[fuse->active[a]];
    }
    if (pass->fuse->out.logits != NULL)
        chunk->mixed = pass->fuse->out.logits + chunk->first * v;
    else
        MB_ARENA_ARRAY(pass->host, chunk->mixed, chunk->rows * v);
    const mb_fuse_mix mix = {.rows = chunk->rows,
                             .size = v,
                             .members = n,
                             .logits = logits,
                             .width = fuse->vocab->rows,
                             .has = has,
                             .weight = weight,
                             .by_logits = fuse->by_logits,
                             .threads = mb_ops_threads(pass->ops)};
    MB_TRY(mb_fuse_mix_rows(&mix, chunk->mixed));
    token_read_rows(pass, chunk);
done:
    return status;
}

static mb_status token_columns(mb_lm_pass *pass)
{
    mb_status status = MB_OK;
    const struct mb_fuse *fuse = pass->lm->fuse;
    const int64_t step = token_chunk_rows(pass), n = pass->batch.head_rows;
    for (int64_t first = 0; first < n; first += step) {
        const mb_arena_mark mark = mb_arena_mark_get(pass->arena), host = mb_arena_mark_get(pass->host);
        token_chunk chunk = {.first = first, .rows = first + step < n ? step : n - first};
        status = token_chunk_logits(pass, &chunk);
        if (status == MB_OK && mb_fuse_is_root(fuse)) status = token_mix_chunk(pass, &chunk);
        mb_arena_release(pass->host, host);
        mb_arena_release(pass->arena, mark);
        MB_TRY(status);
    }
done:
    return status;
}

/* ---- 7. finish: ranks, the whole ---- */

/* Losses and hidden states of all members to rank 0, which runs the router. */
static mb_status token_collect(mb_lm_pass *pass)
{
    mb_status status = MB_OK;
    const struct mb_fuse *fuse = pass->lm->fuse;
    fuse_token_pass *token = &pass->fuse->token;
    size_t losses[MB_FUSE_MAX_MEMBERS] = {0}, states[MB_FUSE_MAX_MEMBERS] = {0};
    void *loss[MB_FUSE_MAX_MEMBERS], *state[MB_FUSE_MAX_MEMBERS];
    for (int64_t a = 0; a < fuse->actives; a++) {
        const int64_t m = fuse->active[a], d = fuse->member[m].arch.width;
        const bool is_new = pass->fuse->member[m] == NULL && mb_fuse_is_root(fuse);
        if (pass->batch.targets != NULL) losses[m] = (size_t)pass->batch.head_rows * sizeof(float);
        states[m] = (size_t)(token->rows * d) * sizeof(float);
        if (is_new && losses[m] > 0) MB_ARENA_ARRAY(pass->host, token->nll[m], pass->batch.head_rows);
        if (is_new && states[m] > 0) MB_ARENA_ARRAY(pass->host, token->hidden[m], token->rows * d);
        loss[m] = token->nll[m];
        state[m] = token->hidden[m];
    }
    MB_TRY(mb_fuse_gather(fuse, loss, losses));
    MB_TRY(mb_fuse_gather(fuse, state, states));
done:
    return status;
}

/* The router over hidden states that lie with the host. */
static mb_status token_router_of_host(mb_lm_pass *pass)
{
    mb_status status = MB_OK;
    const struct mb_fuse *fuse = pass->lm->fuse;
    const int64_t rows = pass->fuse->token.rows;
    const void *data;
    if (rows == 0) goto done;
    for (int64_t m = 0; m < fuse->count; m++) {
        const int64_t d = fuse->member[m].arch.width;
        MB_TRY(mb_ops_input(pass->ops, pass->arena, pass->fuse->token.hidden[m],
                            (size_t)(rows * d) * sizeof(float), &data));
        pass->fuse->parts[m] = mb_tensor_view2(MB_F32, (void *)data, rows, d);
    }
    MB_TRY(token_run_router(pass));
    MB_TRY(mb_ops_wait(pass->ops));
done:
    return status;
}

/* What rank 0 made, to all. */
static mb_status token_spread(mb_lm_pass *pass)
{
    mb_status status = MB_OK;
    const struct mb_fuse *fuse = pass->lm->fuse;
    const mb_lm_output *out = &pass->fuse->out;
    const size_t n = (size_t)pass->batch.head_rows, rows = (size_t)pass->fuse->token.rows,
                 v = (size_t)pass->lm->arch.vocab, m = (size_t)fuse->count;
    MB_TRY(mb_fuse_spread(fuse, 0, out->token_loss, n * sizeof(float)));
    MB_TRY(mb_fuse_spread(fuse, 0, out->argmax, n * sizeof(int32_t)));
    MB_TRY(mb_fuse_spread(fuse, 0, out->logits, n * v * sizeof(float)));
    if (out->routers == 0) goto done;
    MB_TRY(mb_fuse_spread(fuse, 0, out->router_logits[0], rows * m * sizeof(float)));
    MB_TRY(mb_fuse_spread(fuse, 0, out->router_ids[0], rows * sizeof(int32_t)));
done:
    return status;
}

mb_status mb_fuse_token_finish(mb_lm_pass *pass)
{
    mb_status status = MB_OK;
    const struct mb_fuse *fuse = pass->lm->fuse;
    if (token_is_single(fuse)) return token_finish_single(pass);
    if (fuse->group != NULL) {
        MB_TRY(token_collect(pass));
        MB_TRY(mb_fuse_agree(fuse, mb_fuse_is_root(fuse) ? token_router_of_host(pass) : MB_OK));
    }
    if (mb_fuse_is_root(fuse)) {
        token_weights(pass);
        token_losses(pass);
    }
    if (token_is_wide(pass)) MB_TRY(token_columns(pass));
    MB_TRY(token_spread(pass));
done:
    return status;
}

/* ---- 8. backward ---- */

/* Gradient of the router's logits: of a head row weight * (w - share of the probability), and what came
 * in. */
static void token_d_logits(const mb_lm_pass *pass, const float *opt_d_token_loss, const float *opt_outside,
                           float *d)
{
    const int64_t n = pass->lm->fuse->count, rows = pass->fuse->token.rows;
    const float *weight = opt_d_token_loss != NULL ? opt_d_token_loss : pass->batch.opt_head_weight;
    if (opt_outside != NULL)
        memcpy(d, opt_outside, (size_t)(rows * n) * sizeof *d);
    else
        memset(d, 0, (size_t)(rows * n) * sizeof *d);
    for (int64_t i = 0; i < pass->batch.head_rows && weight != NULL; i++) {
        const double *w = token_row_weight(pass, i), *share = pass->fuse->token.posterior + i * n;
        float *row = d + pass->batch.head_row[i] * n;
        for (int64_t m = 0; m < n; m++) row[m] += (float)((double)weight[i] * (w[m] - share[m]));
    }
}

mb_status mb_fuse_token_backward(mb_lm_pass *pass, const float *opt_d_token_loss,
                                 float *const *opt_d_router_logits)
{
    mb_status status = MB_OK;
    const struct mb_fuse *fuse = pass->lm->fuse;
    const fuse_token_pass *token = &pass->fuse->token;
    mb_fuse_router *router = &fuse->router[0];
    const void *sent;
    float *d;
    MB_ARENA_ARRAY(pass->host_back, d, token->rows * fuse->count);
    token_d_logits(pass, opt_d_token_loss, opt_d_router_logits != NULL ? opt_d_router_logits[0] : NULL, d);
    MB_TRY(mb_ops_input(pass->ops, pass->arena, d, (size_t)(token->rows * fuse->count) * sizeof *d, &sent));
    const mb_tensor d_logits = mb_tensor_view2(MB_F32, (void *)sent, token->rows, fuse->count);
    MB_TRY(mb_fuse_router_backward(router, &pass->context, &token->map, pass->fuse->parts, pass->fuse->saved,
                                   NULL, &d_logits, NULL));
    MB_TRY(mb_params_gradient_end(pass->lm->params, router->block));
done:
    return status;
}
