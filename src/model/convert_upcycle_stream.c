/* convert_upcycle_stream: one layer after another, each read under its own name into a model of one layer.
 *
 * 1. opening
 * 2. embedding
 * 3. a layer's parameters
 * 4. rows through it, in batches of whole segments
 * 5. head, some rows of the matrix at a time
 */
#include "model/convert_upcycle_stream.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "model/params_source.h"

#define STREAM_ROWS  2048 /* of a batch, unless one segment is longer */
#define STREAM_VOCAB 4096 /* rows of the head at a time */

/* ---- 1. opening ---- */

mb_status mb_convert_upcycle_stream_open(mb_convert_upcycle_stream *stream, mb_ops *ops, const char *path,
                                         const mb_arch *arch, const mb_safetensors *file, int64_t positions)
{
    mb_status status = MB_OK;
    const int64_t width = arch->head_width;
    float *table = NULL;
    stream->ops = ops;
    stream->path = path;
    stream->arch = arch;
    stream->file = file;
    stream->one = *arch;
    stream->one.config = NULL;
    stream->one.layers = 1;
    stream->one.vocab = 1;
    stream->one.tied_head = true;
    MB_TRY(mb_arena_create_on(mb_ops_allocator(ops), (size_t)1 << 16, &stream->arena));
    MB_TRY(mb_arena_create_on(mb_ops_host_allocator(ops), (size_t)1 << 16, &stream->host));
    MB_NEW_ARRAY(table, positions * width);
    mb_rotary_table(&arch->rotary, arch->rope_theta, positions, width, table);
    MB_TRY(mb_buffer_create(mb_ops_allocator(ops), (size_t)(positions * width) * sizeof *table,
                            &stream->rope_data));
    MB_TRY(mb_ops_upload(ops, table, stream->rope_data->bytes, stream->rope_data->data));
    MB_TRY(mb_ops_wait(ops));
    stream->rope = mb_tensor_view2(MB_F32, stream->rope_data->data, positions, width);
done:
    mb_free(table);
    return status;
}

void mb_convert_upcycle_stream_reset(mb_convert_upcycle_stream *stream)
{
    mb_buffer_destroy(&stream->rope_data);
    mb_arena_destroy(&stream->arena);
    mb_arena_destroy(&stream->host);
    *stream = (mb_convert_upcycle_stream){0};
}

/* ---- 2. embedding ---- */

/* n values from `first` on of a tensor of the folder. */
static mb_status stream_read(const mb_convert_upcycle_stream *s, const char *name, mb_tensor shape,
                             int64_t first, int64_t n, float *out)
{
    mb_status status = MB_OK;
    char text[160];
    mb_params_source found;
    snprintf(text, sizeof text, "%s", name);
    const mb_param param = {.name = text, .value = shape};
    MB_TRY(mb_params_source_find(s->file, s->path, &param, &found));
    found.data = (const char *)found.data + (size_t)first * mb_dtype_bytes(found.dtype);
    found.first = first;
    found.count = n;
    MB_TRY(mb_params_source_read(&found, s->path, out));
done:
    return status;
}

mb_status mb_convert_upcycle_stream_embed(mb_convert_upcycle_stream *stream, mb_convert_upcycle_rows *rows)
{
    mb_status status = MB_OK;
    const int64_t d = stream->arch->width, v = stream->arch->vocab;
    for (int64_t t = 0; t < rows->tokens; t++) {
        if (rows->ids[t] < 0 || rows->ids[t] >= v)
            MB_RAISE(MB_ERANGE,
                     "%s: token %d is outside the vocabulary of %lld; is this the model's tokenizer?",
                     stream->path, rows->ids[t], (long long)v);
        MB_TRY(stream_read(stream, "model.embed_tokens.weight", mb_tensor_view2(MB_F32, NULL, v, d),
                           rows->ids[t] * d, d, rows->x + t * d));
    }
done:
    return status;
}

/* ---- 3. a layer's parameters ---- */

/* "model.layers.0.x" of the model of one layer is "model.layers.<index>.x" of the folder. */
static mb_status stream_fill(const mb_convert_upcycle_stream *s, int64_t index, mb_params *params)
{
    mb_status status = MB_OK;
    static const char first[] = "model.layers.0.";
    char name[200];
    for (int64_t i = 0; i < mb_params_count(params); i++) {
        mb_param *p = mb_params_at(params, i), alias = *p;
        mb_params_source found;
        if (!mb_str_is_prefix(p->name, first)) continue;
        snprintf(name, sizeof name, "model.layers.%lld.%s", (long long)index, p->name + sizeof first - 1);
        alias.name = name;
        MB_TRY(mb_params_source_find(s->file, s->path, &alias, &found));
        MB_TRY(mb_params_source_load(&found, s->path, p));
    }
    MB_TRY(mb_params_filled(params));
done:
    return status;
}

/* ---- 4. rows through a layer ---- */

/* Segments first .. first+n, rows `at` on. */
typedef struct stream_batch {
    int64_t first, n, at, tokens;
} stream_batch;

static mb_status stream_context(mb_convert_upcycle_stream *s, const mb_convert_upcycle_rows *rows,
                                const stream_batch *b, mb_tensor *rope, mb_block_context *c)
{
    mb_status status = MB_OK;
    const int64_t width = s->arch->head_width;
    const void *positions, *offsets, *table;
    int32_t *shifted, *places;
    float *long_rope;
    MB_ARENA_ARRAY(s->host, shifted, b->n + 1);
    MB_ARENA_ARRAY(s->host, places, b->tokens);
    for (int64_t i = 0; i <= b->n; i++) shifted[i] = rows->offsets[b->first + i] - (int32_t)b->at;
    memcpy(places, rows->positions + b->at, (size_t)b->tokens * sizeof *places);
    *rope = s->rope;
    if (mb_rotary_is_long(&s->arch->rotary, places, shifted, b->n)) {
        MB_ARENA_ARRAY(s->host, long_rope, b->tokens * width);
        mb_rotary_rows(&s->arch->rotary, s->arch->rope_theta, width, places, shifted, b->n, long_rope);
        for (int64_t t = 0; t < b->tokens; t++) places[t] = (int32_t)t;
        MB_TRY(mb_ops_input(s->ops, s->arena, long_rope, (size_t)(b->tokens * width) * sizeof *long_rope,
                            &table));
        *rope = mb_tensor_view2(MB_F32, (void *)table, b->tokens, width);
    }
    MB_TRY(mb_ops_input(s->ops, s->arena, places, (size_t)b->tokens * sizeof *places, &positions));
    MB_TRY(mb_ops_input(s->ops, s->arena, shifted, (size_t)(b->n + 1) * sizeof *shifted, &offsets));
    *c = (mb_block_context){.p = {.ops = s->ops, .arena = s->arena},
                            .host = s->host,
                            .arch = &s->one,
                            .rope = rope,
                            .tokens = b->tokens,
                            .positions = positions,
                            .dtype = MB_F32};
    c->shape = (mb_attention_shape){.segments = b->n,
                                    .offsets = offsets,
                                    .heads = s->arch->heads,
                                    .kv_heads = s->arch->kv_heads,
                                    .head_width = width,
                                    .scale = 1.0f / sqrtf((float)width)};
    MB_TRY(mb_block_new2(c, b->tokens, s->arch->width, &c->normed));
    c->normed_act = c->normed;
done:
    return status;
}

static mb_status stream_run(mb_convert_upcycle_stream *s, mb_convert_upcycle_rows *rows,
                            const stream_batch *b, mb_block *block, float *opt_inner)
{
    mb_status status = MB_OK;
    const int64_t d = s->arch->width;
    const size_t bytes = (size_t)(b->tokens * d) * sizeof(float);
    mb_block_context c;
    mb_block_saved saved = {0};
    mb_tensor rope, x, inner, rstd;
    mb_arena_reset(s->arena);
    mb_arena_reset(s->host);
    MB_TRY(stream_context(s, rows, b, &rope, &c));
    MB_TRY(mb_block_new2(&c, b->tokens, d, &x));
    MB_TRY(mb_block_send(&c, rows->x + b->at * d, &x));
    MB_TRY(mb_attention_block_forward(&c, block, &x, &saved));
    if (opt_inner != NULL) {
        MB_TRY(mb_block_new2(&c, b->tokens, d, &inner));
        MB_TRY(mb_block_new1(&c, b->tokens, &rstd));
        MB_TRY(mb_ops_rms_norm(s->ops, &x, &block->post_norm->value, (float)s->arch->rms_eps, &inner, &rstd));
        MB_TRY(mb_ops_download(s->ops, inner.data, bytes, opt_inner + b->at * d));
    }
    MB_TRY(block->is_moe ? mb_experts_forward(&c, block, &x, &saved) : mb_ffn_forward(&c, block, &x, &saved));
    MB_TRY(mb_ops_download(s->ops, x.data, bytes, rows->x + b->at * d));
    MB_TRY(mb_ops_wait(s->ops));
done:
    if (status != MB_OK) (void)mb_ops_wait(s->ops); /* what is queued uses the arenas */
    return status;
}

mb_status mb_convert_upcycle_stream_layer(mb_convert_upcycle_stream *stream, mb_convert_upcycle_rows *rows,
                                          int64_t index, float *opt_inner)
{
    mb_status status = MB_OK;
    mb_convert_upcycle_stream *s = stream;
    mb_params *params = NULL;
    mb_block block = {0};
    s->one.layer[0] = s->arch->layer[index];
    MB_TRY(mb_params_create(&s->one, s->ops, &params));
    MB_TRY(mb_params_seal(params, "none"));
    MB_TRY(stream_fill(s, index, params));
    MB_TRY(mb_block_find(&block, &s->one, params, 0, false));
    MB_TRY(mb_params_acquire(params, 0));
    for (int64_t first = 0; first < rows->segments;) {
        stream_batch b = {.first = first, .n = 1, .at = rows->offsets[first]};
        while (first + b.n < rows->segments && rows->offsets[first + b.n + 1] - b.at <= STREAM_ROWS) b.n++;
        b.tokens = rows->offsets[first + b.n] - b.at;
        MB_TRY(stream_run(s, rows, &b, &block, opt_inner));
        first += b.n;
    }
    mb_params_release(params, 0);
done:
    mb_block_reset(&block);
    mb_params_destroy(&params);
    return status;
}

/* ---- 5. head ---- */

/* logits[i, first ..] of h [n, D] by rows first .. first+count of the head. */
static mb_status stream_head_part(mb_convert_upcycle_stream *s, const mb_tensor *h, int64_t first,
                                  int64_t count, float *values, float *part, float *logits)
{
    mb_status status = MB_OK;
    const int64_t d = s->arch->width, v = s->arch->vocab, n = h->shape[0];
    const char *name = s->arch->tied_head ? "model.embed_tokens.weight" : "lm_head.weight";
    const mb_arena_mark mark = mb_arena_mark_get(s->arena);
    mb_weight weight = {0};
    float *matrix, *product;
    MB_TRY(stream_read(s, name, mb_tensor_view2(MB_F32, NULL, v, d), first * d, count * d, values));
    MB_ARENA_ARRAY(s->arena, matrix, count * d);
    MB_ARENA_ARRAY(s->arena, product, n * count);
    mb_weight_init(&weight, mb_tensor_view2(MB_F32, matrix, count, d));
    mb_tensor y = mb_tensor_view2(MB_F32, product, n, count);
    MB_TRY(mb_ops_upload(s->ops, values, (size_t)(count * d) * sizeof *values, matrix));
    MB_TRY(mb_ops_linear(s->ops, h, &weight, NULL, false, &y));
    MB_TRY(mb_ops_download(s->ops, product, (size_t)(n * count) * sizeof *part, part));
    MB_TRY(mb_ops_wait(s->ops));
    for (int64_t i = 0; i < n; i++)
        memcpy(logits + i * v + first, part + i * count, (size_t)count * sizeof *part);
done:
    if (status != MB_OK) (void)mb_ops_wait(s->ops);
    mb_weight_reset(&weight);
    mb_arena_release(s->arena, mark);
    return status;
}

mb_status mb_convert_upcycle_stream_head(mb_convert_upcycle_stream *stream,
                                         const mb_convert_upcycle_rows *rows, int64_t n,
                                         const int32_t *head_row, float *logits)
{
    mb_status status = MB_OK;
    mb_convert_upcycle_stream *s = stream;
    const int64_t d = s->arch->width, v = s->arch->vocab;
    float *values = NULL, *part = NULL, *picked = NULL, *x, *y, *w, *r;
    mb_arena_reset(s->arena);
    MB_NEW_ARRAY(values, STREAM_VOCAB * d);
    MB_NEW_ARRAY(part, n * STREAM_VOCAB);
    MB_NEW_ARRAY(picked, (n + 1) * d); /* the rows, the norm's weights */
    for (int64_t i = 0; i < n; i++)
        memcpy(picked + i * d, rows->x + head_row[i] * d, (size_t)d * sizeof *picked);
    MB_TRY(stream_read(s, "model.norm.weight", mb_tensor_view1(MB_F32, NULL, d), 0, d, picked + n * d));
    MB_ARENA_ARRAY(s->arena, x, n * d);
    MB_ARENA_ARRAY(s->arena, w, d);
    MB_ARENA_ARRAY(s->arena, y, n * d);
    MB_ARENA_ARRAY(s->arena, r, n);
    MB_TRY(mb_ops_upload(s->ops, picked, (size_t)(n * d) * sizeof *picked, x));
    MB_TRY(mb_ops_upload(s->ops, picked + n * d, (size_t)d * sizeof *picked, w));
    const mb_tensor in = mb_tensor_view2(MB_F32, x, n, d), norm = mb_tensor_view1(MB_F32, w, d);
    mb_tensor h = mb_tensor_view2(MB_F32, y, n, d), rstd = mb_tensor_view1(MB_F32, r, n);
    MB_TRY(mb_ops_rms_norm(s->ops, &in, &norm, (float)s->arch->rms_eps, &h, &rstd));
    MB_TRY(mb_ops_wait(s->ops));
    for (int64_t first = 0; first < v; first += STREAM_VOCAB)
        MB_TRY(stream_head_part(s, &h, first, v - first < STREAM_VOCAB ? v - first : STREAM_VOCAB, values,
                                part, logits));
done:
    mb_free(values);
    mb_free(part);
    mb_free(picked);
    return status;
}
