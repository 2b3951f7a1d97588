/* experts_embed.c: texts to tokens as moe-embed makes them, packed into tiles in their order, pooled, and
 * through the gate.
 *
 * 1. life   2. tiles   3. run
 */
#include "stage/experts_embed.h"

#include <string.h>

#include "base/clock.h"
#include "base/json.h"
#include "base/log.h"
#include "base/memory.h"
#include "measure/embedder.h"
#include "measure/tile.h"

struct mb_experts_embed {
    const mb_gate *gate;
    const char *gate_path;
    int64_t tile_tokens;
    mb_encoder *encoder; /* or lm */
    mb_lm *lm;
    mb_lm_pass *pass;
    mb_tokenizer *tokenizer;
    mb_tokenizer_scratch *scratch;
    mb_embedder_options options; /* strings: of `said`, or literals */
    mb_embedder_model model;
    json_t *said; /* the gate's line about its embeddings */
    const char *prefix;
    mb_tile tile;
    mb_ids ids;
    mb_str text;
    float *x; /* [capacity, D] */
    int64_t capacity;
};

/* ---- 1. life ---- */

void mb_experts_embed_close(mb_experts_embed **embed)
{
    mb_experts_embed *e = *embed;
    if (e == NULL) return;
    mb_embedder_model_reset(&e->model);
    mb_tile_destroy(&e->tile);
    mb_ids_destroy(&e->ids);
    mb_str_destroy(&e->text);
    mb_free(e->x);
    mb_tokenizer_scratch_destroy(&e->scratch);
    mb_tokenizer_close(&e->tokenizer);
    mb_lm_pass_destroy(&e->pass);
    mb_lm_destroy(&e->lm);
    mb_encoder_destroy(&e->encoder);
    json_decref(e->said);
    MB_FREE(*embed);
}

static mb_status open_model(mb_experts_embed *e, const mb_model_options *options, mb_ops *ops)
{
    mb_status status = MB_OK;
    mb_lm_options storage = {0};
    mb_model_options model = *options;
    if (model.path == NULL) MB_RAISE(MB_EUSAGE, "model.path is missing: the model that made the embeddings");
    model.opt_comm = NULL;
    model.shard = model.share_weights = model.load_in_4bit = model.load_in_8bit = false;
    model.quantize = NULL; /* speaks of the experts */
    if (mb_encoder_config_is(model.path)) {
        if (model.adapter != NULL)
            MB_RAISE(MB_EUSAGE, "%s is an encoder: adapters are not done for those", model.path);
        MB_TRY(mb_model_options_storage(&model, &storage));
        MB_TRY(mb_encoder_open(ops, model.path, storage.dtype, &e->encoder));
    } else {
        MB_TRY(mb_model_options_open(&model, ops, "none", NULL, 0, &e->lm));
        MB_TRY(mb_lm_pass_create(e->lm, &e->pass));
    }
done:
    return status;
}

/* Is this what made the embeddings the gate learned from? */
static mb_status check_said(const mb_experts_embed *e, const char *key, const char *what, const char *ours)
{
    mb_status status = MB_OK;
    const char *theirs = NULL;
    MB_TRY(mb_json_get_string(e->said, key, "embedder", &theirs));
    if (strcmp(theirs, ours) != 0)
        MB_RAISE(MB_EDATA,
                 "%s: the gate was trained on embeddings of another %s (%s, and this is %s); give model.path "
                 "of the model that made them",
                 e->gate_path, what, theirs, ours);
done:
    return status;
}

/* Pooling and the like by the gate's word. */
static mb_status open_embedder(mb_experts_embed *e, const char *folder)
{
    mb_status status = MB_OK;
    int64_t normalised = 0, max_length = 0, dimension = 0, width = 0;
    const char *pooling = NULL, *prefix = NULL;
    MB_TRY(mb_json_get_string(e->said, "pooling", "embedder", &pooling));
    MB_TRY(mb_json_get_string(e->said, "prefix", "embedder", &prefix));
    MB_TRY(mb_json_get_int(e->said, "normalised", "embedder", &normalised));
    MB_TRY(mb_json_get_int(e->said, "max_length", "embedder", &max_length));
    MB_TRY(mb_json_get_int(e->said, "dimension", "embedder", &dimension));
    e->options = (mb_embedder_options){.pooling = (char *)(uintptr_t)pooling,
                                       .normalize = (char *)(uintptr_t)(normalised != 0 ? "true" : "false"),
                                       .prefix = (char *)(uintptr_t)prefix,
                                       .tile_tokens = e->tile_tokens};
    MB_TRY(
        mb_embedder_model_open(e->encoder, e->lm, folder, e->tokenizer, &e->options, max_length, &e->model));
    MB_TRY(mb_embedder_model_prefix(&e->model, &e->options, &e->prefix));
    const mb_encoder_pooling *pool =
        e->encoder != NULL ? mb_encoder_get_pooling(e->encoder) : &e->model.own_pooling;
    MB_TRY(mb_encoder_pooling_width(
        pool, e->encoder != NULL ? mb_encoder_get_config(e->encoder)->width : mb_lm_arch(e->lm)->width,
        &width));
    if (dimension != e->gate->width || dimension > width)
        MB_RAISE(MB_EDATA, "%s: embeddings of %lld numbers for a gate that takes %lld, from a model of %lld",
                 e->gate_path, (long long)dimension, (long long)e->gate->width, (long long)width);
    e->options.dimension = dimension < width ? dimension : 0;
done:
    return status;
}

mb_status mb_experts_embed_open(const mb_model_options *model, const char *opt_tokenizer, mb_ops *ops,
                                const mb_gate *gate, const char *gate_path, int64_t tile_tokens,
                                mb_experts_embed **out_embed)
{
    mb_status status = MB_OK;
    mb_experts_embed *e = NULL;
    MB_NEW(e);
    e->gate = gate;
    e->gate_path = gate_path;
    e->tile_tokens = tile_tokens;
    MB_TRY(mb_json_parse(gate->embedder, strlen(gate->embedder), gate_path, &e->said));
    MB_TRY(open_model(e, model, ops));
    MB_TRY(check_said(e, "model", "model",
                      e->encoder != NULL ? mb_encoder_hash(e->encoder) : mb_lm_hash(e->lm)));
    MB_TRY(mb_tokenizer_open(opt_tokenizer != NULL ? opt_tokenizer : model->path, &e->tokenizer));
    MB_TRY(check_said(e, "tokenizer", "tokenizer", mb_tokenizer_hash(e->tokenizer)));
    MB_TRY(mb_tokenizer_scratch_create(e->tokenizer, &e->scratch));
    MB_TRY(open_embedder(e, model->path));
    *out_embed = e;
    e = NULL;
done:
    mb_experts_embed_close(&e);
    return status;
}

/* ---- 2. tiles ---- */

/* A text's tokens as the model takes them: cut, special ones around. */
static mb_status frame(mb_experts_embed *e, const char *text)
{
    mb_status status = MB_OK;
    const mb_ids *before = &e->model.before, *after = &e->model.after;
    const int64_t room = e->model.max_length - after->count;
    mb_str_reset(&e->text);
    if (e->prefix != NULL) MB_TRY(mb_str_add(&e->text, e->prefix));
    MB_TRY(mb_str_add(&e->text, text));
    mb_ids_reset(&e->ids);
    MB_TRY(mb_ids_append_all(&e->ids, before->data, before->count));
    MB_TRY(
        mb_tokenizer_encode(e->tokenizer, e->scratch, mb_str_text(&e->text), e->text.length, false, &e->ids));
    if (e->ids.count > room) e->ids.count = room;
    MB_TRY(mb_ids_append_all(&e->ids, after->data, after->count));
done:
    return status;
}

/* Vectors of the tile's segments, one after another. */
static mb_status run_tile(mb_experts_embed *e, float *out)
{
    mb_status status = MB_OK;
    const mb_tile *tile = &e->tile;
    mb_lm_output output = {0};
    if (tile->segments == 0) goto done;
    if (e->encoder != NULL) {
        const mb_encoder_batch batch = {
            .tokens = tile->tokens, .segments = tile->segments, .ids = tile->ids, .offsets = tile->offsets};
        MB_TRY(mb_encoder_run(e->encoder, &batch, e->options.dimension, NULL, out));
        goto done;
    }
    const mb_lm_batch batch = mb_tile_batch(tile);
    const mb_lm_want want = {.hidden = true, .no_routing = true};
    MB_TRY(mb_lm_forward(e->pass, &batch, &want, &output));
    MB_TRY(mb_encoder_pooling_run(&e->model.own_pooling, mb_lm_ops(e->lm), output.hidden,
                                  mb_lm_arch(e->lm)->width, tile->offsets, tile->segments,
                                  e->options.dimension, out));
done:
    return status;
}

/* ---- 3. run ---- */

static mb_status embed(mb_experts_embed *e, const char *const *texts, int64_t n, float *x)
{
    mb_status status = MB_OK;
    const int64_t D = e->gate->width;
    int64_t first = 0; /* of the tile */
    mb_tile_reset(&e->tile);
    for (int64_t i = 0; i < n; i++) {
        MB_TRY(frame(e, texts[i]));
        const bool is_empty = e->ids.count == 0;
        if (is_empty || (e->tile.segments > 0 && e->tile.tokens + e->ids.count > e->tile_tokens)) {
            MB_TRY(run_tile(e, x + first * D));
            mb_tile_reset(&e->tile);
            first = i;
        }
        if (is_empty) { /* no token at all: zeros, as moe-embed has it */
            memset(x + i * D, 0, (size_t)D * sizeof *x);
            first = i + 1;
            continue;
        }
        MB_TRY(mb_tile_add(&e->tile, e->ids.data, e->ids.count));
    }
    MB_TRY(run_tile(e, x + first * D));
done:
    return status;
}

mb_status mb_experts_embed_run(mb_experts_embed *embed_, const char *const *texts, int64_t n,
                               float *out_logits, double *out_embed_seconds, double *out_gate_seconds)
{
    mb_status status = MB_OK;
    mb_experts_embed *e = embed_;
    const double began = mb_clock_seconds();
    if (n > e->capacity) {
        MB_FREE(e->x);
        e->capacity = 0;
        MB_NEW_ARRAY(e->x, n * e->gate->width);
        e->capacity = n;
    }
    MB_TRY(embed(e, texts, n, e->x));
    const double embedded = mb_clock_seconds();
    MB_TRY(mb_gate_forward(e->gate, e->x, n, out_logits));
    *out_embed_seconds = embedded - began;
    *out_gate_seconds = mb_clock_seconds() - embedded;
done:
    return status;
}
