/* encoder_forward.c: a run of an encoder over packed records.
 *
 * Post-norm layers: x = norm(x + attention(x)); x = norm(x + ffn(x)). The sums are made by the products
 * themselves, which add to x.
 *
 * 1. checks   2. what the host sends   3. embedding   4. attention   5. feed-forward   6. layers   7. run
 */
#include <math.h>
#include <string.h>

#include "model/encoder_state.h"

typedef struct run {
    mb_encoder *e;
    const mb_encoder_batch *batch;
    /* As ops take them: */
    const int32_t *ids, *offsets;
    const int32_t *positions; /* [T] row of the position table, or of the rotary table */
    const int32_t *types;     /* [T] all 0 */
    const int32_t *opt_rows;  /* [S] rows that alone are pooled */
    mb_tensor x, y;           /* [T, D]: the stream, and where a norm puts it */
} run;

static mb_status new2(run *r, mb_dtype dtype, int64_t rows, int64_t width, mb_tensor *out)
{
    void *data = mb_arena_alloc(r->e->arena, (size_t)(rows * width), mb_dtype_bytes(dtype));
    if (data == NULL) return MB_ENOMEM;
    *out = mb_tensor_view2(dtype, data, rows, width);
    return MB_OK;
}

/* ---- 1. checks ---- */

static mb_status check_batch(const mb_encoder *e, const mb_encoder_batch *b)
{
    mb_status status = MB_OK;
    if (b->tokens < 1 || b->segments < 1 || b->offsets[0] != 0 || b->offsets[b->segments] != b->tokens)
        MB_RAISE(MB_ERANGE, "encoder: the segments must cover rows 0 to %lld", (long long)b->tokens);
    for (int64_t s = 0; s < b->segments; s++) {
        const int64_t n = (int64_t)b->offsets[s + 1] - b->offsets[s];
        if (n < 1 || n > e->config.max_positions)
            MB_RAISE(MB_ERANGE, "encoder: record %lld of the batch has %lld tokens; it must have 1 to %lld",
                     (long long)s, (long long)n, (long long)e->config.max_positions);
    }
    for (int64_t i = 0; i < b->tokens; i++)
        if (b->ids[i] < 0 || b->ids[i] >= e->config.vocab)
            MB_RAISE(MB_ERANGE,
                     "encoder: row %lld holds token %d, outside the model's vocabulary of %lld; is this the "
                     "model's tokenizer?",
                     (long long)i, b->ids[i], (long long)e->config.vocab);
done:
    return status;
}

/* ---- 2. what the host sends ---- */

/* The one row of each record that all kinds of pooling take, when they all take the same; else NULL. */
static mb_status single_rows(run *r, int32_t **out_rows)
{
    mb_status status = MB_OK;
    const mb_encoder_pooling *pooling = &r->e->pooling;
    int32_t *rows;
    for (int i = 0; i < pooling->mode_count; i++) {
        const bool is_single = pooling->modes[i] == MB_ENCODER_CLS || pooling->modes[i] == MB_ENCODER_LAST;
        if (!is_single || pooling->modes[i] != pooling->modes[0]) goto done;
    }
    MB_ARENA_ARRAY(r->e->host, rows, r->batch->segments);
    for (int64_t s = 0; s < r->batch->segments; s++)
        rows[s] = pooling->modes[0] == MB_ENCODER_CLS ? r->batch->offsets[s] : r->batch->offsets[s + 1] - 1;
    *out_rows = rows;
done:
    return status;
}

static mb_status send_ids(run *r, const int32_t *host, int64_t n, const int32_t **out)
{
    mb_status status = MB_OK;
    const void *ids;
    MB_TRY(mb_ops_input(r->e->ops, r->e->arena, host, (size_t)n * sizeof *host, &ids));
    *out = ids;
done:
    return status;
}

static mb_status send_batch(run *r, const int32_t *opt_rows)
{
    mb_status status = MB_OK;
    const mb_encoder_batch *b = r->batch;
    int32_t *positions, *types;
    MB_ARENA_ARRAY(r->e->host, positions, b->tokens);
    MB_ARENA_ARRAY(r->e->host, types, b->tokens);
    memset(types, 0, (size_t)b->tokens * sizeof *types);
    for (int64_t s = 0; s < b->segments; s++)
        for (int32_t i = b->offsets[s]; i < b->offsets[s + 1]; i++)
            positions[i] = (int32_t)r->e->config.first_position + i - b->offsets[s];
    MB_TRY(send_ids(r, b->ids, b->tokens, &r->ids));
    MB_TRY(send_ids(r, b->offsets, b->segments + 1, &r->offsets));
    MB_TRY(send_ids(r, positions, b->tokens, &r->positions));
    MB_TRY(send_ids(r, types, b->tokens, &r->types));
    MB_TRY(send_ids(r, opt_rows, b->segments, &r->opt_rows));
done:
    return status;
}

/* ---- 3. embedding ---- */

/* sum += table[ids], in f32. */
static mb_status add_table(run *r, const int32_t *ids, const mb_tensor *table, mb_tensor *sum)
{
    mb_status status = MB_OK;
    mb_tensor rows;
    if (table->dims == 0) goto done;
    MB_TRY(new2(r, MB_F32, r->batch->tokens, r->e->config.width, &rows));
    MB_TRY(mb_ops_embedding(r->e->ops, ids, table, &rows));
    MB_TRY(mb_ops_axpy(r->e->ops, 1, &rows, sum));
done:
    return status;
}

static mb_status embed(run *r)
{
    mb_status status = MB_OK;
    mb_encoder *e = r->e;
    const int64_t t = r->batch->tokens, d = e->config.width;
    mb_tensor sum;
    MB_TRY(new2(r, e->dtype, t, d, &r->x));
    MB_TRY(new2(r, e->dtype, t, d, &r->y));
    const mb_arena_mark mark = mb_arena_mark_get(e->arena);
    MB_TRY(new2(r, MB_F32, t, d, &sum));
    MB_TRY(mb_ops_embedding(e->ops, r->ids, &e->words, &sum));
    MB_TRY(add_table(r, r->types, &e->types, &sum));
    MB_TRY(add_table(r, r->positions, &e->positions, &sum));
    MB_TRY(mb_ops_layer_norm(e->ops, &sum, &e->norm.weight, &e->norm.bias, (float)e->config.eps, &r->x));
    mb_arena_release(e->arena, mark);
done:
    return status;
}

/* ---- 4. attention ---- */

static mb_status project(run *r, mb_encoder_linear *linear, const mb_tensor *x, bool accumulate, mb_tensor *y)
{
    return mb_ops_linear(r->e->ops, x, &linear->weight, linear->bias.dims > 0 ? &linear->bias : NULL,
                         accumulate, y);
}

static mb_tensor by_head(const mb_encoder *e, const mb_tensor *x)
{
    return mb_tensor_view3(x->dtype, x->data, x->shape[0], e->config.heads, e->config.head_width);
}

/* o [T, D]: what every token takes from its record. */
static mb_status attend(run *r, mb_encoder_layer *layer, mb_tensor *o)
{
    mb_status status = MB_OK;
    mb_encoder *e = r->e;
    const int64_t t = r->batch->tokens, d = e->config.width;
    mb_tensor q, k, v, lse;
    const mb_attention_shape shape = {.segments = r->batch->segments,
                                      .offsets = r->offsets,
                                      .heads = e->config.heads,
                                      .kv_heads = e->config.heads,
                                      .head_width = e->config.head_width,
                                      .scale = 1.0f / sqrtf((float)e->config.head_width),
                                      .is_bidirectional = true};
    MB_TRY(new2(r, e->dtype, t, d, &q));
    MB_TRY(new2(r, e->dtype, t, d, &k));
    MB_TRY(new2(r, e->dtype, t, d, &v));
    MB_TRY(new2(r, MB_F32, t, e->config.heads, &lse));
    MB_TRY(project(r, &layer->q, &r->x, false, &q));
    MB_TRY(project(r, &layer->k, &r->x, false, &k));
    MB_TRY(project(r, &layer->v, &r->x, false, &v));
    mb_tensor qh = by_head(e, &q), kh = by_head(e, &k), vh = by_head(e, &v), oh = by_head(e, o);
    if (e->rotary.dims > 0) {
        MB_TRY(mb_ops_rope(e->ops, &qh, r->positions, &e->rotary, false));
        MB_TRY(mb_ops_rope(e->ops, &kh, r->positions, &e->rotary, false));
    }
    MB_TRY(mb_ops_attention(e->ops, &shape, &qh, &kh, &vh, &oh, &lse));
done:
    return status;
}

/* ---- 5. feed-forward ---- */

/* y += ffn(y), by the error function or tanh; gated when the layer has a gate. */
static mb_status feed_forward(run *r, mb_encoder_layer *layer, mb_tensor *y)
{
    mb_status status = MB_OK;
    mb_encoder *e = r->e;
    mb_tensor up, gate;
    MB_TRY(new2(r, e->dtype, y->shape[0], e->config.ffn, &up));
    MB_TRY(project(r, &layer->up, y, false, &up));
    if (e->config.family == MB_ENCODER_GTE) {
        MB_TRY(new2(r, e->dtype, y->shape[0], e->config.ffn, &gate));
        MB_TRY(project(r, &layer->gate, y, false, &gate));
        MB_TRY(mb_ops_gelu(e->ops, e->config.is_gelu_tanh, &gate));
        MB_TRY(mb_ops_multiply(e->ops, &gate, &up));
    } else {
        MB_TRY(mb_ops_gelu(e->ops, e->config.is_gelu_tanh, &up));
    }
    MB_TRY(project(r, &layer->down, &up, true, y));
done:
    return status;
}

/* ---- 6. layers ---- */

/* Go on with the rows to be pooled alone: of o, into a tensor of its own, and of x, into y's memory. */
static mb_status keep_rows(run *r, mb_tensor *o)
{
    mb_status status = MB_OK;
    mb_encoder *e = r->e;
    const int64_t n = r->batch->segments;
    mb_tensor kept, x = mb_tensor_rows(&r->y, 0, n);
    MB_TRY(new2(r, e->dtype, n, e->config.width, &kept));
    MB_TRY(mb_ops_embedding(e->ops, r->opt_rows, o, &kept));
    MB_TRY(mb_ops_embedding(e->ops, r->opt_rows, &r->x, &x));
    *o = kept;
    r->y = mb_tensor_rows(&r->x, 0, n);
    r->x = x;
done:
    return status;
}

static mb_status run_layer(run *r, mb_encoder_layer *layer, bool is_last)
{
    mb_status status = MB_OK;
    mb_encoder *e = r->e;
    const float eps = (float)e->config.eps;
    const mb_arena_mark mark = mb_arena_mark_get(e->arena);
    mb_tensor o;
    MB_TRY(new2(r, e->dtype, r->batch->tokens, e->config.width, &o));
    const mb_arena_mark parts = mb_arena_mark_get(e->arena);
    MB_TRY(attend(r, layer, &o));
    mb_arena_release(e->arena, parts);
    if (is_last && r->opt_rows != NULL) MB_TRY(keep_rows(r, &o));
    MB_TRY(project(r, &layer->o, &o, true, &r->x));
    MB_TRY(mb_ops_layer_norm(e->ops, &r->x, &layer->attention_norm.weight, &layer->attention_norm.bias, eps,
                             &r->y));
    mb_arena_release(e->arena, mark);
    MB_TRY(feed_forward(r, layer, &r->y));
    MB_TRY(mb_ops_layer_norm(e->ops, &r->y, &layer->ffn_norm.weight, &layer->ffn_norm.bias, eps, &r->x));
    mb_arena_release(e->arena, mark);
done:
    return status;
}

/* ---- 7. run ---- */

/* Pooled vectors of hidden [T, D], or of one row per record. */
static mb_status pool(run *r, const float *hidden, int64_t dimension, float *out)
{
    mb_status status = MB_OK;
    mb_encoder *e = r->e;
    const int64_t s = r->batch->segments;
    const int32_t *offsets = r->batch->offsets;
    int32_t *single;
    if (r->opt_rows != NULL) {
        MB_ARENA_ARRAY(e->host, single, s + 1);
        for (int64_t i = 0; i <= s; i++) single[i] = (int32_t)i;
        offsets = single;
    }
    MB_TRY(mb_encoder_pooling_run(&e->pooling, e->ops, hidden, e->config.width, offsets, s, dimension, out));
done:
    return status;
}

mb_status mb_encoder_run(mb_encoder *e, const mb_encoder_batch *batch, int64_t dimension, float *opt_hidden,
                         float *opt_pooled)
{
    mb_status status = MB_OK;
    run r = {.e = e, .batch = batch};
    int32_t *rows = NULL;
    void *host;
    mb_tensor hidden;
    mb_arena_reset(e->arena);
    mb_arena_reset(e->host);
    MB_TRY(check_batch(e, batch));
    if (opt_hidden == NULL) MB_TRY(single_rows(&r, &rows));
    MB_TRY(send_batch(&r, rows));
    MB_TRY(embed(&r));
    for (int64_t i = 0; i < e->config.layers; i++)
        MB_TRY(run_layer(&r, &e->layers[i], i + 1 == e->config.layers));
    MB_TRY(new2(&r, MB_F32, r.x.shape[0], e->config.width, &hidden));
    MB_TRY(mb_ops_cast(e->ops, &r.x, &hidden));
    MB_TRY(mb_ops_output(e->ops, e->host, hidden.data, mb_tensor_bytes(&hidden), &host));
    MB_TRY(mb_ops_wait(e->ops));
    if (opt_hidden != NULL) memcpy(opt_hidden, host, mb_tensor_bytes(&hidden));
    if (opt_pooled != NULL) MB_TRY(pool(&r, host, dimension, opt_pooled));
done:
    if (status != MB_OK) (void)mb_ops_wait(e->ops); /* the caller's arrays are free again */
    return status;
}
