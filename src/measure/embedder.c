/* embedder.c: vectors of records.
 *
 * 1. options   2. model   3. one tile   4. one part   5. origin   6. run
 */
#include "measure/embedder.h"

#include <string.h>

#include "base/clock.h"
#include "base/hash.h"
#include "base/log.h"
#include "base/stop.h"
#include "measure/tile.h"
#include "store/lease.h"

/* ---- 1. options ---- */

const mb_option *mb_embedder_option_table(int64_t *out_count)
{
    static const mb_option options[] = {
        MB_OPTION_TEXT(
            mb_embedder_options, pooling, "embed.pooling", NULL, NULL,
            "mean, cls, lasttoken, max, mean_sqrt_len_tokens, weightedmean, or several joined by +; "
            "default: what the folder's sentence-transformers files say, else mean",
            "pooling"),
        MB_OPTION_TEXT(mb_embedder_options, normalize, "embed.normalize", "auto", "auto|true|false",
                       "vectors of length 1; auto: as the folder's sentence-transformers files say",
                       "normalize"),
        MB_OPTION_TEXT(
            mb_embedder_options, prefix, "embed.prefix", NULL, NULL,
            "text put in front of every record (an instruction); default: the folder's default prompt",
            "prefix"),
        MB_OPTION_INT(
            mb_embedder_options, dimension, "embed.dimension", "0", 0, 1 << 24, "numbers",
            "keep the first so many numbers of a vector (Matryoshka), before it is normalised; 0: all",
            "truncate_dim"),
        MB_OPTION_INT(mb_embedder_options, tile_tokens, "embed.tile_tokens", "8192", 16, 1 << 24, "tokens",
                      "tokens computed together", "embed.batch_size"),
    };
    *out_count = sizeof options / sizeof *options;
    return options;
}

/* ---- 2. model ---- */

static mb_encoder_pooling *pooling_of(mb_embedder_model *model)
{
    return model->encoder != NULL ? mb_encoder_get_pooling(model->encoder) : &model->own_pooling;
}

/* What the post-processor puts around a text, by what it does to a short one. */
static mb_status find_specials(const mb_tokenizer *tokenizer, mb_embedder_model *model)
{
    mb_status status = MB_OK;
    mb_tokenizer_scratch *scratch = NULL;
    mb_ids bare = {0}, full = {0};
    int64_t at = 0;
    MB_TRY(mb_tokenizer_scratch_create(tokenizer, &scratch));
    MB_TRY(mb_tokenizer_encode(tokenizer, scratch, "a", 1, false, &bare));
    MB_TRY(mb_tokenizer_encode(tokenizer, scratch, "a", 1, true, &full));
    while (
        at + bare.count <= full.count &&
        (bare.count == 0 || memcmp(full.data + at, bare.data, (size_t)bare.count * sizeof *bare.data) != 0))
        at++;
    if (bare.count == 0 || at + bare.count > full.count)
        MB_RAISE(MB_EUNSUPPORTED, "the tokenizer's post-processor changes a text's own tokens");
    MB_TRY(mb_ids_append_all(&model->before, full.data, at));
    MB_TRY(mb_ids_append_all(&model->after, full.data + at + bare.count, full.count - at - bare.count));
done:
    mb_tokenizer_scratch_destroy(&scratch);
    mb_ids_destroy(&bare);
    mb_ids_destroy(&full);
    return status;
}

static mb_status choose_length(mb_embedder_model *model, int64_t asked)
{
    mb_status status = MB_OK;
    int64_t most = model->encoder != NULL ? mb_encoder_get_config(model->encoder)->max_positions
                                          : mb_lm_arch(model->lm)->max_positions;
    const int64_t folder = pooling_of(model)->max_length;
    if (asked > most)
        mb_warn("max_length %lld is more than the model's %lld positions: records are cut there",
                (long long)asked, (long long)most);
    const int64_t wanted = asked > 0 ? asked : folder;
    model->max_length = wanted > 0 && wanted < most ? wanted : most;
    if (model->max_length <= model->before.count + model->after.count)
        MB_RAISE(MB_EUSAGE, "max_length %lld leaves no room beside %lld special tokens",
                 (long long)model->max_length, (long long)(model->before.count + model->after.count));
done:
    return status;
}

mb_status mb_embedder_model_open(mb_encoder *opt_encoder, mb_lm *opt_lm, const char *folder,
                                 const mb_tokenizer *tokenizer, const mb_embedder_options *options,
                                 int64_t max_length, mb_embedder_model *out_model)
{
    mb_status status = MB_OK;
    mb_embedder_model *model = out_model;
    *model = (mb_embedder_model){
        .encoder = opt_encoder, .lm = opt_lm, .tokenizer_hash = mb_tokenizer_hash(tokenizer)};
    if (opt_encoder == NULL) MB_TRY(mb_encoder_pooling_read(folder, &model->own_pooling));
    mb_encoder_pooling *pooling = pooling_of(model);
    if (options->pooling != NULL)
        MB_TRY(mb_encoder_pooling_choose(pooling, options->pooling));
    else if (pooling->is_default)
        mb_warn("%s has no modules.json: mean pooling, not normalised; say embed.pooling and embed.normalize",
                folder);
    if (strcmp(options->normalize, "auto") != 0) pooling->normalise = strcmp(options->normalize, "true") == 0;
    MB_TRY(find_specials(tokenizer, model));
    MB_TRY(choose_length(model, max_length));
done:
    return status;
}

void mb_embedder_model_reset(mb_embedder_model *model)
{
    mb_encoder_pooling_reset(&model->own_pooling);
    mb_ids_destroy(&model->before);
    mb_ids_destroy(&model->after);
    *model = (mb_embedder_model){0};
}

mb_status mb_embedder_model_prefix(mb_embedder_model *model, const mb_embedder_options *options,
                                   const char **out_prefix)
{
    mb_status status = MB_OK;
    const mb_encoder_pooling *pooling = pooling_of(model);
    const char *prefix = options->prefix != NULL ? options->prefix : pooling->prompt;
    if (prefix != NULL && prefix[0] == 0) prefix = NULL;
    if (prefix != NULL && pooling->leaves_prompt)
        MB_RAISE(MB_EUNSUPPORTED,
                 "1_Pooling/config.json: include_prompt is false; a prompt that is left out of the "
                 "pooling is not done: set embed.prefix=\"\"");
    *out_prefix = prefix;
done:
    return status;
}

typedef struct embedder {
    mb_comm *comm;
    mb_embedder_model *model;
    mb_ops *ops;
    mb_lm_pass *pass;
    mb_shard *shard;
    const mb_embedder_options *options;
    const char *path;
    bool has_specials;
    int64_t room, width; /* tokens of a record but for the special ones; of a vector */
    mb_tile_plan plan;
    mb_share share;
    mb_tile_part work; /* of our share */
    mb_tile tile;
    mb_ids ids;
    float *pooled; /* of a tile */
    int64_t pooled_count;
    int64_t *slot; /* record of each segment of the tile */
    int64_t slot_count, empty;
    char key[MB_HASH_TEXT];
    json_t *attributes; /* rank 0 */
    mb_progress progress;
} embedder;

static void embedder_reset(embedder *e)
{
    mb_lm_pass_destroy(&e->pass);
    mb_tile_plan_reset(&e->plan);
    mb_tile_destroy(&e->tile);
    mb_ids_destroy(&e->ids);
    mb_free(e->pooled);
    mb_free(e->slot);
    json_decref(e->attributes);
}

/* ---- 3. one tile ---- */

static bool is_at(const uint32_t *tokens, const mb_ids *ids)
{
    return ids->count == 0 || memcmp(tokens, ids->data, (size_t)ids->count * sizeof *tokens) == 0;
}

/* A record's tokens as the model takes them, in e->ids. */
static mb_status frame_record(embedder *e, const mb_shard_record *record)
{
    mb_status status = MB_OK;
    const mb_ids *before = &e->model->before, *after = &e->model->after;
    const uint32_t *tokens = record->tokens;
    int64_t n = record->count;
    if (e->has_specials && n >= before->count + after->count && is_at(tokens, before) &&
        is_at(tokens + n - after->count, after)) {
        tokens += before->count;
        n -= before->count + after->count;
    }
    if (n > e->room) n = e->room;
    mb_ids_reset(&e->ids);
    MB_TRY(mb_ids_append_all(&e->ids, before->data, before->count));
    MB_TRY(mb_ids_append_all(&e->ids, tokens, n));
    MB_TRY(mb_ids_append_all(&e->ids, after->data, after->count));
done:
    return status;
}

static mb_status grow(embedder *e, int64_t records)
{
    mb_status status = MB_OK;
    if (records * e->width > e->pooled_count) {
        MB_FREE(e->pooled);
        e->pooled_count = 0;
        MB_NEW_ARRAY(e->pooled, records * e->width);
        e->pooled_count = records * e->width;
    }
    if (records > e->slot_count) {
        MB_FREE(e->slot);
        e->slot_count = 0;
        MB_NEW_ARRAY(e->slot, records);
        e->slot_count = records;
    }
done:
    return status;
}

static mb_status fill_tile(embedder *e, int64_t index)
{
    mb_status status = MB_OK;
    mb_shard_record record;
    const int64_t first = e->plan.first[index], end = e->plan.first[index + 1];
    mb_tile_reset(&e->tile);
    MB_TRY(grow(e, end - first));
    for (int64_t i = first; i < end; i++) {
        MB_TRY(mb_shard_read(e->shard, e->plan.order[i], &record));
        MB_TRY(frame_record(e, &record));
        if (e->ids.count == 0) {
            e->empty++;
            continue;
        }
        e->slot[e->tile.segments] = e->plan.order[i];
        MB_TRY(mb_tile_add(&e->tile, e->ids.data, e->ids.count));
    }
done:
    return status;
}

static mb_status embed_tile(embedder *e, int64_t index, int64_t first_record, float *vectors)
{
    mb_status status = MB_OK;
    const int64_t dimension = e->options->dimension;
    mb_lm_output out = {0};
    MB_TRY(fill_tile(e, index));
    const mb_tile *tile = &e->tile;
    if (tile->segments == 0) goto done;
    if (e->model->encoder != NULL) {
        const mb_encoder_batch batch = {
            .tokens = tile->tokens, .segments = tile->segments, .ids = tile->ids, .offsets = tile->offsets};
        MB_TRY(mb_encoder_run(e->model->encoder, &batch, dimension, NULL, e->pooled));
    } else {
        const mb_lm_batch batch = mb_tile_batch(tile);
        const mb_lm_want want = {.hidden = true, .no_routing = true};
        MB_TRY(mb_lm_forward(e->pass, &batch, &want, &out));
        MB_TRY(mb_encoder_pooling_run(&e->model->own_pooling, e->ops, out.hidden,
                                      mb_lm_arch(e->model->lm)->width, tile->offsets, tile->segments,
                                      dimension, e->pooled));
    }
    for (int64_t s = 0; s < tile->segments; s++)
        memcpy(vectors + (e->slot[s] - first_record) * e->width, e->pooled + s * e->width,
               (size_t)e->width * sizeof *vectors);
done:
    return status;
}

/* ---- 4. one part ---- */

static mb_status embed_part(embedder *e, int64_t unit, int64_t first, int64_t rows)
{
    mb_status status = MB_OK;
    float *vectors = NULL;
    MB_NEW_ARRAY(vectors, rows * e->width);
    for (int64_t t = e->plan.window[unit]; t < e->plan.window[unit + 1]; t++) {
        if (mb_stop_is_set()) MB_RAISE(MB_ESTOPPED, "stopped; the finished parts stay, run again to go on");
        MB_TRY(embed_tile(e, t, first, vectors));
        mb_progress_step(&e->progress, (t + 1) * e->work.tiles / e->plan.count, NULL);
    }
    MB_TRY(mb_embeddings_part_write(e->path, e->key, first, rows, e->width, vectors));
done:
    mb_free(vectors);
    return status;
}

static mb_status embed_parts(embedder *e, mb_comm_queue *queue, int64_t *out_skipped)
{
    mb_status status = MB_OK;
    int64_t unit;
    mb_progress_start(&e->progress, "embedding", "tiles", 0, e->work.tiles);
    for (;;) {
        MB_TRY(mb_comm_queue_next(queue, &unit));
        if (unit < 0) break;
        unit = mb_share_unit(e->share, unit);
        const int64_t first = e->plan.first[e->plan.window[unit]],
                      rows = e->plan.first[e->plan.window[unit + 1]] - first;
        if (mb_scores_part_is_done(e->path, e->key, first, rows))
            (*out_skipped)++;
        else
            MB_TRY(embed_part(e, unit, first, rows));
    }
    mb_progress_end(&e->progress, e->work.tiles, NULL);
done:
    return status;
}

/* ---- 5. origin ---- */

/* Rank 0: what the file says about its origin, and the key of its parts. */
static mb_status make_key(embedder *e)
{
    mb_status status = MB_OK;
    char shard_hash[MB_HASH_TEXT], text[128];
    mb_str all = MB_STR_EMPTY;
    mb_embedder_model *model = e->model;
    const mb_encoder_pooling *pooling = pooling_of(model);
    const char *prefix = NULL;
    const mb_dtype dtype =
        model->encoder != NULL ? mb_encoder_get_dtype(model->encoder) : mb_lm_dtype(model->lm);
    MB_TRY(mb_embedder_model_prefix(model, e->options, &prefix));
    MB_TRY(mb_shard_hash(e->shard, shard_hash));
    e->attributes = json_pack(
        "{s:s, s:s, s:s, s:i, s:s, s:I, s:s}", "model",
        model->encoder != NULL ? mb_encoder_hash(model->encoder) : mb_lm_hash(model->lm), "tokenizer",
        model->tokenizer_hash, "pooling", mb_encoder_pooling_describe(pooling, text, sizeof text),
        "normalised", pooling->normalise ? 1 : 0, "prefix", prefix != NULL ? prefix : "", "max_length",
        (json_int_t)model->max_length, "dtype", mb_dtype_name(dtype));
    if (e->attributes == NULL)
        MB_RAISE(MB_ENOMEM, "not enough memory for the attributes of a file of embeddings");
    MB_TRY(mb_json_print(e->attributes, 0, true, &all));
    MB_TRY(mb_str_add_format(&all, "%s %lld %lld", shard_hash, (long long)e->width,
                             (long long)e->options->tile_tokens));
    mb_hash_bytes(mb_str_text(&all), all.length, e->key);
done:
    mb_str_destroy(&all);
    return status;
}

/* ---- 6. run ---- */

static mb_status prepare(embedder *e)
{
    mb_status status = MB_OK;
    mb_embedder_model *model = e->model;
    if (mb_shard_count(e->shard) == 0) MB_RAISE(MB_EDATA, "there are no records: nothing to embed");
    const int64_t width =
        model->encoder != NULL ? mb_encoder_get_config(model->encoder)->width : mb_lm_arch(model->lm)->width;
    MB_TRY(mb_encoder_pooling_width(pooling_of(model), width, &e->width));
    if (e->options->dimension > e->width)
        MB_RAISE(MB_EUSAGE, "embed.dimension is %lld, but the vectors have %lld numbers",
                 (long long)e->options->dimension, (long long)e->width);
    if (e->options->dimension > 0) e->width = e->options->dimension;
    const int64_t specials = model->before.count + model->after.count;
    e->room = model->max_length - specials;
    const int64_t limit = e->has_specials ? model->max_length : e->room;
    MB_TRY(mb_tile_plan_create(e->shard, limit, e->options->tile_tokens,
                               mb_tile_part_tokens(mb_tile_tokens(e->shard, limit), e->options->tile_tokens),
                               &e->plan));
    e->work = mb_tile_plan_share(&e->plan, e->share, e->shard, limit);
    if (e->plan.cut > 0)
        mb_info("%lld of %lld records are longer than %lld tokens: embedded by their first tokens",
                (long long)e->plan.cut, (long long)mb_shard_count(e->shard), (long long)limit);
    if (model->lm != NULL) MB_TRY(mb_lm_pass_create(model->lm, &e->pass));
    if (mb_comm_rank(e->comm) == 0) MB_TRY(make_key(e));
done:
    return status;
}

/* Rank 0 joins the whole, where the folder is still ours, or says what our share is. */
static mb_status finish(const embedder *e, json_t **out_names)
{
    mb_status status = MB_OK;
    if (mb_comm_rank(e->comm) != 0) goto done;
    if (!mb_share_is_whole(e->share)) {
        MB_TRY(mb_tile_plan_files(&e->plan, e->share, e->path, out_names));
        goto done;
    }
    MB_TRY(mb_lease_check_for(e->path));
    MB_TRY(mb_embeddings_join(e->path, e->key, e->shard, e->width, e->attributes));
done:
    return status;
}

mb_status mb_embedder_run(mb_comm *comm, mb_embedder_model *model, mb_shard *shard, bool has_specials,
                          const mb_embedder_options *options, mb_share share, const char *out_path,
                          mb_embedder_report *out_report)
{
    mb_status status = MB_OK;
    mb_comm_queue *queue = NULL;
    const double started = mb_clock_seconds();
    int64_t counts[2] = {0};
    json_t *names = NULL;
    embedder e = {.comm = comm,
                  .model = model,
                  .ops = model->encoder != NULL ? NULL : mb_lm_ops(model->lm),
                  .shard = shard,
                  .options = options,
                  .has_specials = has_specials,
                  .share = share,
                  .path = out_path};
    MB_TRY(mb_comm_agree(comm, prepare(&e)));
    MB_TRY(mb_comm_bcast(comm, e.key, sizeof e.key, 0));
    MB_TRY(mb_comm_queue_create(comm, e.work.windows, &queue));
    MB_TRY(mb_comm_agree(comm, embed_parts(&e, queue, &counts[0])));
    counts[1] = e.empty;
    MB_TRY(mb_comm_allreduce_i64(comm, counts, 2, MB_COMM_SUM));
    if (counts[1] > 0)
        mb_warn("%lld records have no token at all: their vectors are zeros", (long long)counts[1]);
    MB_TRY(mb_comm_agree(comm, finish(&e, &names)));
    *out_report = (mb_embedder_report){.records = e.work.records,
                                       .tokens = e.work.tokens,
                                       .cut = e.plan.cut,
                                       .empty = counts[1],
                                       .parts = e.work.windows,
                                       .skipped_parts = counts[0],
                                       .part_names = names,
                                       .width = e.width,
                                       .seconds = mb_clock_seconds() - started};
done:
    mb_comm_queue_destroy(&queue);
    embedder_reset(&e);
    return status;
}
