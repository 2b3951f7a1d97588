/* scorer.c: the scoring pass.
 *
 * A tile is launched (its forward passes begin) and finished (the host makes scores of what came out). On the
 * host one follows the other; on a device the tile before is finished while this one is computed, also where
 * the two belong to different parts.
 *
 * 1. options   2. state   3. scores of a tile   4. launching and finishing   5. one part   6. all parts   7.
 * run
 */
#include "measure/scorer.h"

#include <math.h>
#include <string.h>

#include "base/clock.h"
#include "base/hash.h"
#include "base/log.h"
#include "base/rng.h"
#include "base/stop.h"
#include "measure/scorer_plan.h"
#include "measure/scorer_record.h"
#include "measure/tile_stream.h"
#include "store/lease.h"

/* ---- 1. options ---- */

const mb_option *mb_scorer_option_table(int64_t *out_count)
{
    static const mb_option options[] = {
        MB_OPTION_LIST(mb_scorer_options, scores, "score.scores",
                       "good_mass,good_logits,perplexity,entropy,bytes_per_token,length,repeats,random",
                       "scores to store: good_mass, good_logits (of the model with trash experts), "
                       "perplexity, entropy (of "
                       "score.source_model), bytes_per_token, length, repeats, random; logprob, mean_logprob "
                       "(of the loss mask's tokens, by model.path with model.adapter), targets",
                       "scores"),
        MB_OPTION_LIST(mb_scorer_options, score_layers, "score.score_layers", "all",
                       "layers with a router that count, from 0, negative from the end; the forward pass "
                       "stops after the last",
                       "score_layers|data_selection.score_layers"),
        MB_OPTION_INT(mb_scorer_options, tile_tokens, "score.tile_tokens", "8192", 16, 1 << 24, "tokens",
                      "tokens computed together", "data_process.batch_size"),
        MB_OPTION_INT(mb_scorer_options, max_length, "dataset.max_length", "0", 0, 1 << 24, "tokens",
                      "longer records are scored on their first tokens; 0: the model's positions", NULL),
        MB_OPTION_INT(mb_scorer_options, seed, "score.seed", "42", 0, 9e18, "", "seed of the random score",
                      NULL),
    };
    *out_count = sizeof options / sizeof *options;
    return options;
}

/* ---- 2. state ---- */

enum { MOST_FLIGHTS = 2 };

/* A tile from launch to finish, with passes of its own. */
typedef struct scorer_flight {
    mb_lm_pass *router_pass, *source_pass;
    mb_lm_output router, source;
    const mb_tile *tile;
    mb_scores_part *part;
    bool ends_part;
} scorer_flight;

typedef struct scorer {
    mb_comm *comm;
    mb_lm *router_lm, *source_lm;
    scorer_flight flight[MOST_FLIGHTS], *flying; /* flying: launched and not landed, NULL none */
    int flights, next_flight;
    mb_scores_part part[MOST_FLIGHTS]; /* in turn: a tile of the last may still fly */
    int next_part;
    mb_scorer_router *means; /* of a tile: [its records x layers], and so many are there */
    int64_t mean_room;
    int threads;
    mb_shard *shard;
    mb_shard_columns records;
    const mb_scorer_options *options;
    mb_scorer_plan plan;
    mb_tile_stream *stream; /* NULL when no score needs a model */
    mb_share share;
    mb_tile_part work;    /* of our share */
    mb_comm_queue *queue; /* of its parts */
    int64_t skipped;
    char key[MB_HASH_TEXT];
    json_t *attributes; /* rank 0 */
    const char *path;
    mb_progress progress;
} scorer;

static void part_reset(mb_scores_part *part)
{
    mb_free(part->values);
    mb_free(part->layers);
    *part = (mb_scores_part){0};
}

static void scorer_reset(scorer *s)
{
    for (int f = 0; f < MOST_FLIGHTS; f++) {
        mb_lm_pass_destroy(&s->flight[f].router_pass);
        mb_lm_pass_destroy(&s->flight[f].source_pass);
        part_reset(&s->part[f]);
    }
    mb_free(s->means);
    mb_tile_stream_destroy(&s->stream);
    mb_scorer_plan_reset(&s->plan);
    mb_comm_queue_destroy(&s->queue);
    json_decref(s->attributes);
}

static bool wants_router(const mb_scorer_plan *plan)
{
    return plan->wants[MB_SCORER_GOOD_MASS] || plan->wants[MB_SCORER_GOOD_LOGITS];
}

static bool has_head(const mb_scorer_plan *plan)
{
    return mb_scorer_plan_targets(plan) != MB_TILE_NO_TARGETS;
}

static bool wants_source(const mb_scorer_plan *plan)
{
    return has_head(plan) || plan->wants[MB_SCORER_ENTROPY];
}

static int64_t column_of(const mb_scorer_plan *plan, mb_scorer_kind kind)
{
    int64_t c = 0;
    while (c < plan->column_count && plan->kinds[c] != kind) c++;
    return c;
}

static double *value_at(const scorer *s, mb_scores_part *part, mb_scorer_kind kind, int64_t record)
{
    return &part->values[column_of(&s->plan, kind) * part->rows + record - part->first];
}

/* A layer's value, in its place and added to the record's; the last layer ends the mean (good_logits stays a
 * sum). */
static void put_layer(const scorer *s, mb_scores_part *part, mb_scorer_kind kind, int64_t record,
                      int64_t layer, double value)
{
    const int64_t layers = s->plan.layer_count;
    if (!s->plan.wants[kind]) return;
    double *total = value_at(s, part, kind, record);
    part->layers[(column_of(&s->plan, kind) * part->rows + record - part->first) * layers + layer] =
        (float)value;
    *total += value;
    if (layer == layers - 1 && kind != MB_SCORER_GOOD_LOGITS) *total /= (double)layers;
}

/* ---- 3. scores of a tile ---- */

/* Means of every record and asked layer, [records, layers], on all threads: each by itself, so that its
 * bits are the same on any number of them. NaN for a record without tokens. */
static mb_status router_means(scorer *s, const mb_tile *tile, const mb_arch *arch, const mb_lm_output *out)
{
    mb_status status = MB_OK;
    const int64_t gates = mb_arch_gates(arch), good = mb_arch_good(arch), layers = s->plan.layer_count,
                  n = tile->records * layers;
    if (n > s->mean_room) {
        MB_FREE(s->means);
        s->mean_room = 0;
        MB_NEW_ARRAY(s->means, n);
        s->mean_room = n;
    }
#pragma omp parallel for schedule(dynamic) num_threads(s->threads) if (n > 1)
    for (int64_t i = 0; i < n; i++) {
        const int64_t first = tile->row_first[i / layers], rows = tile->row_first[i / layers + 1] - first;
        s->means[i] = (mb_scorer_router){NAN, NAN, NAN};
        if (rows > 0)
            s->means[i] = mb_scorer_record_router(
                out->router_logits[s->plan.layers[i % layers]] + first * gates, rows, gates, good);
    }
done:
    return status;
}

/* Router scores of the tile's records from the logits of the asked layers. */
static mb_status score_routers(scorer *s, const scorer_flight *flight, bool of_source)
{
    mb_status status = MB_OK;
    const mb_tile *tile = flight->tile;
    const int64_t layers = s->plan.layer_count;
    MB_TRY(router_means(s, tile, mb_lm_arch(of_source ? s->source_lm : s->router_lm),
                        of_source ? &flight->source : &flight->router));
    for (int64_t i = 0; i < tile->records * layers; i++) {
        const mb_scorer_router *mean = &s->means[i];
        const int64_t record = tile->record[i / layers], l = i % layers;
        if (of_source) {
            put_layer(s, flight->part, MB_SCORER_ENTROPY, record, l, mean->entropy);
        } else {
            put_layer(s, flight->part, MB_SCORER_GOOD_MASS, record, l, mean->good_mass);
            put_layer(s, flight->part, MB_SCORER_GOOD_LOGITS, record, l, mean->good_logits);
        }
    }
done:
    return status;
}

/* Sums in token order, so that their bits are the record's own. */
static void score_losses(scorer *s, const scorer_flight *flight)
{
    const mb_tile *tile = flight->tile;
    const bool *wants = s->plan.wants;
    for (int64_t i = 0; i < tile->records; i++) {
        const int64_t from = tile->head_first[i], to = tile->head_first[i + 1], record = tile->record[i];
        double sum = 0, answer = 0;
        int64_t targets = 0;
        for (int64_t h = from; h < to; h++) {
            const double loss = flight->source.token_loss[h];
            sum += loss;
            if (!tile->in_mask[tile->head_row[h] + 1]) continue;
            answer += loss;
            targets++;
        }
        if (wants[MB_SCORER_PERPLEXITY])
            *value_at(s, flight->part, MB_SCORER_PERPLEXITY, record) =
                to > from ? exp(sum / (double)(to - from)) : NAN;
        if (wants[MB_SCORER_LOGPROB]) *value_at(s, flight->part, MB_SCORER_LOGPROB, record) = 0 - answer;
        if (wants[MB_SCORER_MEAN_LOGPROB])
            *value_at(s, flight->part, MB_SCORER_MEAN_LOGPROB, record) =
                targets > 0 ? -answer / (double)targets : NAN;
    }
}

/* ---- 4. launching and finishing ---- */

int mb_scorer_passes(const mb_ops *ops)
{
    return mb_ops_is_device(ops) ? MOST_FLIGHTS : 1;
}

static mb_status launch(scorer *s, scorer_flight *flight)
{
    mb_status status = MB_OK;
    const bool has_entropy = s->plan.wants[MB_SCORER_ENTROPY];
    mb_lm_batch batch = mb_tile_batch(flight->tile);
    flight->router = flight->source = (mb_lm_output){0};
    if (wants_source(&s->plan)) {
        const mb_lm_want want = {.routers = batch.head_rows > 0 ? 0 : s->plan.routers,
                                 .no_routing = !has_entropy};
        if (batch.head_rows > 0 || (batch.tokens > 0 && has_entropy))
            MB_TRY(mb_lm_forward_start(flight->source_pass, &batch, &want, &flight->source));
    }
    if (wants_router(&s->plan)) {
        const mb_lm_want want = {.routers = s->plan.routers};
        batch.head_rows = 0;
        if (batch.tokens > 0)
            MB_TRY(mb_lm_forward_start(flight->router_pass, &batch, &want, &flight->router));
    }
done:
    return status;
}

/* What was launched is there. */
static mb_status await(const scorer_flight *flight)
{
    mb_status status = MB_OK;
    if (flight->source_pass != NULL) MB_TRY(mb_lm_pass_wait(flight->source_pass));
    if (flight->router_pass != NULL) MB_TRY(mb_lm_pass_wait(flight->router_pass));
done:
    return status;
}

/* Scores of a tile that is there, and the file of its part where it is the last of it. */
static mb_status finish_tile(scorer *s, const scorer_flight *flight)
{
    mb_status status = MB_OK;
    const mb_scorer_plan *plan = &s->plan;
    if (has_head(plan)) score_losses(s, flight);
    if (plan->wants[MB_SCORER_ENTROPY]) MB_TRY(score_routers(s, flight, true));
    if (wants_router(plan)) MB_TRY(score_routers(s, flight, false));
    if (!flight->ends_part) goto done;
    MB_TRY(mb_scores_part_write(s->path, s->key, plan->columns, plan->column_count, plan->layer_count,
                                flight->part));
    part_reset(flight->part);
done:
    return status;
}

static mb_status land(scorer *s)
{
    mb_status status = MB_OK;
    if (s->flying == NULL) goto done;
    MB_TRY(await(s->flying));
    MB_TRY(finish_tile(s, s->flying));
    s->flying = NULL;
done:
    return status;
}

/* The device waits for the host no longer than it takes to queue a tile: all it was given is done before
 * the next is queued, and what came of it is worked on after. */
static mb_status fly(scorer *s, const mb_tile *tile, mb_scores_part *part, bool ends_part)
{
    mb_status status = MB_OK;
    const scorer_flight *last = s->flying;
    scorer_flight *flight = &s->flight[s->next_flight];
    s->next_flight = (s->next_flight + 1) % s->flights;
    flight->tile = tile;
    flight->part = part;
    flight->ends_part = ends_part;
    if (last != NULL) MB_TRY(await(last));
    if (tile != NULL) MB_TRY(launch(s, flight));
    s->flying = flight;
    if (last != NULL) MB_TRY(finish_tile(s, last));
    if (s->flights == 1) MB_TRY(land(s));
done:
    return status;
}

/* ---- 5. one part ---- */

/* Scores that need no model. */
static mb_status score_text(scorer *s, mb_scores_part *part)
{
    mb_status status = MB_OK;
    const bool *wants = s->plan.wants;
    mb_shard_record record;
    for (int64_t r = part->first; r < part->first + part->rows; r++) {
        int64_t n = mb_shard_length(s->shard, r);
        double bytes = (double)s->records.text_bytes[r];
        if (wants[MB_SCORER_LENGTH]) *value_at(s, part, MB_SCORER_LENGTH, r) = (double)n;
        if (wants[MB_SCORER_BYTES_PER_TOKEN])
            *value_at(s, part, MB_SCORER_BYTES_PER_TOKEN, r) = n > 0 ? bytes / (double)n : NAN;
        if (wants[MB_SCORER_RANDOM]) {
            *value_at(s, part, MB_SCORER_RANDOM, r) =
                mb_rng_uniform((uint64_t)s->options->seed, MB_RNG_SELECT, 0, s->records.record_hash[r]);
        }
        if (!wants[MB_SCORER_REPEATS] && !wants[MB_SCORER_TARGETS]) continue;
        MB_TRY(mb_shard_read(s->shard, r, &record));
        if (wants[MB_SCORER_TARGETS])
            *value_at(s, part, MB_SCORER_TARGETS, r) =
                (double)mb_tile_count_targets(&record, s->plan.limit, MB_TILE_MASKED_TARGETS);
        if (wants[MB_SCORER_REPEATS])
            MB_TRY(mb_scorer_record_repeats(record.tokens, record.count,
                                            value_at(s, part, MB_SCORER_REPEATS, r)));
    }
done:
    return status;
}

/* Records first.. of the shard, in how many rows. */
static int64_t part_rows(const scorer *s, int64_t unit, int64_t *out_first)
{
    const mb_tile_plan *tiles = &s->plan.tiles;
    *out_first = tiles->first[tiles->window[unit]];
    return tiles->first[tiles->window[unit + 1]] - *out_first;
}

/* The next part that is still to do, -1 when there is none; the reading of its first tile begins. */
static mb_status next_part(scorer *s, int64_t *out_unit)
{
    mb_status status = MB_OK;
    int64_t unit, first;
    for (;;) {
        MB_TRY(mb_comm_queue_next(s->queue, &unit));
        if (unit < 0) break;
        unit = mb_share_unit(s->share, unit);
        const int64_t rows = part_rows(s, unit, &first);
        if (!mb_scores_part_is_done(s->path, s->key, first, rows)) break;
        s->skipped++;
    }
    if (unit >= 0 && s->stream != NULL) mb_tile_stream_start(s->stream, s->plan.tiles.window[unit]);
    *out_unit = unit;
done:
    return status;
}

/* The part's tiles; while the last is computed the next part is already fetched. */
static mb_status score_tiles(scorer *s, int64_t unit, mb_scores_part *part, int64_t *out_next)
{
    mb_status status = MB_OK;
    const int64_t end = s->plan.tiles.window[unit + 1];
    for (int64_t t = s->plan.tiles.window[unit]; t < end; t++) {
        const mb_tile *tile = NULL;
        if (mb_stop_is_set()) {
            MB_TRY(land(s));
            MB_RAISE(MB_ESTOPPED, "stopped; the finished parts stay, run again to go on");
        }
        if (s->stream != NULL) MB_TRY(mb_tile_stream_take(s->stream, &tile));
        if (t + 1 == end)
            MB_TRY(next_part(s, out_next));
        else if (s->stream != NULL)
            mb_tile_stream_start(s->stream, t + 1);
        MB_TRY(fly(s, tile, part, t + 1 == end));
        /* Parts are handed out in order, a share's from all over the plan: about where all ranks are. */
        mb_progress_step(&s->progress, (t + 1) * s->work.tiles / s->plan.tiles.count, NULL);
    }
done:
    return status;
}

static mb_status score_part(scorer *s, int64_t unit, int64_t *out_next)
{
    mb_status status = MB_OK;
    const mb_scorer_plan *plan = &s->plan;
    mb_scores_part *part = &s->part[s->next_part];
    s->next_part = (s->next_part + 1) % s->flights;
    part->rows = part_rows(s, unit, &part->first);
    MB_NEW_ARRAY(part->values, plan->column_count * part->rows);
    MB_NEW_ARRAY(part->layers, plan->column_count * part->rows * plan->layer_count);
    if (s->stream != NULL) mb_tile_stream_wait(s->stream);
    MB_TRY(score_text(s, part));
    MB_TRY(score_tiles(s, unit, part, out_next));
done:
    return status;
}

/* ---- 6. all parts ---- */

static mb_status score_parts(scorer *s)
{
    mb_status status = MB_OK;
    int64_t unit, next = -1;
    const double began = mb_clock_seconds();
    mb_progress_start(&s->progress, "scoring", "tiles", 0, s->work.tiles);
    MB_TRY(next_part(s, &unit));
    for (; unit >= 0; unit = next) MB_TRY(score_part(s, unit, &next));
    MB_TRY(land(s));
    mb_progress_end(&s->progress, s->work.tiles, NULL);
    if (s->stream == NULL) goto done;
    const double seconds = mb_clock_seconds() - began, waited = mb_tile_stream_waited(s->stream);
    mb_info("reading: waited %.3f of %.1f s (%.2f %%)", waited, seconds, 100 * waited / (seconds + 1e-9));
done:
    return status;
}

/* How the models compute, and what the source model is made of. */
static mb_status add_models(scorer *s)
{
    mb_status status = MB_OK;
    char folder[MB_HASH_TEXT] = "", adapter[MB_HASH_TEXT] = "";
    mb_str storage = MB_STR_EMPTY;
    mb_lm *lm = s->source_lm != NULL ? s->source_lm : s->router_lm;
    if (s->source_lm != NULL) MB_TRY(mb_lm_hashes(s->source_lm, folder, adapter));
    if (lm != NULL) MB_TRY(mb_params_describe_storage(mb_lm_params(lm), &storage));
    MB_TRY(mb_json_set(s->attributes, "source_folder", json_string(folder)));
    MB_TRY(mb_json_set(s->attributes, "source_adapter", json_string(adapter)));
    MB_TRY(
        mb_json_set(s->attributes, "dtype", json_string(lm != NULL ? mb_dtype_name(mb_lm_dtype(lm)) : "")));
    MB_TRY(mb_json_set(s->attributes, "storage", json_string(mb_str_text(&storage))));
done:
    mb_str_destroy(&storage);
    return status;
}

/* Rank 0: what the file says about its origin, and the key of its parts. */
static mb_status make_key(scorer *s)
{
    mb_status status = MB_OK;
    char shard_hash[MB_HASH_TEXT];
    json_t *options = NULL;
    mb_str text = MB_STR_EMPTY;
    const mb_arch *arch = s->router_lm != NULL ? mb_lm_arch(s->router_lm) : NULL;
    MB_TRY(mb_shard_hash(s->shard, shard_hash));
    MB_TRY(mb_scorer_plan_json(&s->plan, s->options, &options));
    s->attributes = json_pack(
        "{s:s, s:s, s:o, s:I, s:I, s:s, s:s, s:I}", "model", arch != NULL ? mb_lm_hash(s->router_lm) : "",
        "source_model", s->source_lm != NULL ? mb_lm_hash(s->source_lm) : "", "options", options, "experts",
        (json_int_t)(arch != NULL ? mb_arch_gates(arch) : 0), "good_experts",
        (json_int_t)(arch != NULL ? mb_arch_good(arch) : 0), "tokenizer", mb_shard_tokenizer_hash(s->shard),
        "template", mb_shard_template_hash(s->shard), "max_length", (json_int_t)s->plan.limit);
    if (s->attributes == NULL) MB_RAISE(MB_ENOMEM, "not enough memory for the attributes of a score table");
    MB_TRY(add_models(s));
    MB_TRY(mb_json_print(s->attributes, 0, true, &text));
    MB_TRY(mb_str_add(&text, shard_hash));
    mb_hash_bytes(mb_str_text(&text), text.length, s->key);
done:
    mb_str_destroy(&text);
    return status;
}

/* Rank 0 joins the whole, where the folder is still ours, or says what our share is. */
static mb_status finish(const scorer *s, json_t **out_names)
{
    mb_status status = MB_OK;
    if (mb_comm_rank(s->comm) != 0) goto done;
    if (!mb_share_is_whole(s->share)) {
        MB_TRY(mb_tile_plan_files(&s->plan.tiles, s->share, s->path, out_names));
        goto done;
    }
    MB_TRY(mb_lease_check_for(s->path));
    MB_TRY(mb_scores_join(s->path, s->key, s->shard, s->plan.columns, s->plan.column_count, s->plan.layers,
                          s->plan.layer_count, s->attributes));
done:
    return status;
}

/* ---- 7. run ---- */

/* Of all flights that there are at a time. */
static mb_status create_passes(scorer *s)
{
    mb_status status = MB_OK;
    mb_lm *lm = wants_router(&s->plan) ? s->router_lm : wants_source(&s->plan) ? s->source_lm : NULL;
    const mb_ops *ops = lm != NULL ? mb_lm_ops(lm) : NULL;
    s->flights = ops != NULL ? mb_scorer_passes(ops) : 1;
    s->threads = ops != NULL ? mb_ops_threads(ops) : 1;
    for (int f = 0; f < s->flights; f++) {
        if (wants_router(&s->plan)) MB_TRY(mb_lm_pass_create(s->router_lm, &s->flight[f].router_pass));
        if (wants_source(&s->plan)) MB_TRY(mb_lm_pass_create(s->source_lm, &s->flight[f].source_pass));
    }
done:
    return status;
}

static mb_status prepare(scorer *s)
{
    mb_status status = MB_OK;
    MB_TRY(mb_scorer_plan_create(s->options, s->shard, s->router_lm, s->source_lm, &s->plan));
    s->work = mb_tile_plan_share(&s->plan.tiles, s->share, s->shard, s->plan.limit);
    if (s->plan.tiles.cut > 0) {
        mb_info("%lld of %lld records are longer than %lld tokens: scored on their first tokens",
                (long long)s->plan.tiles.cut, (long long)mb_shard_count(s->shard), (long long)s->plan.limit);
    }
    MB_TRY(create_passes(s));
    if (wants_router(&s->plan) || wants_source(&s->plan))
        MB_TRY(mb_tile_stream_create(s->shard, &s->plan.tiles, s->plan.limit,
                                     mb_scorer_plan_targets(&s->plan), s->flights, &s->stream));
    if (mb_comm_rank(s->comm) == 0) MB_TRY(make_key(s));
done:
    return status;
}

static int64_t pass_bytes(mb_lm_pass *opt_pass)
{
    return opt_pass != NULL ? (int64_t)mb_lm_pass_peak_bytes(opt_pass) : 0;
}

mb_status mb_scorer_run(mb_comm *comm, mb_lm *opt_router_lm, mb_lm *opt_source_lm, mb_shard *shard,
                        const mb_scorer_options *options, mb_share share, const char *out_path,
                        mb_scorer_report *out_report)
{
    mb_status status = MB_OK;
    const double started = mb_clock_seconds();
    json_t *names = NULL;
    scorer s = {.comm = comm,
                .router_lm = opt_router_lm,
                .source_lm = opt_source_lm,
                .shard = shard,
                .records = mb_shard_columns_get(shard),
                .options = options,
                .share = share,
                .path = out_path};
    MB_TRY(mb_comm_agree(comm, prepare(&s)));
    MB_TRY(mb_comm_bcast(comm, s.key, sizeof s.key, 0));
    MB_TRY(mb_comm_queue_create(comm, s.work.windows, &s.queue));
    MB_TRY(mb_comm_agree(comm, score_parts(&s)));
    MB_TRY(mb_comm_allreduce_i64(comm, &s.skipped, 1, MB_COMM_SUM));
    int64_t activations = 0;
    for (int f = 0; f < s.flights; f++)
        activations += pass_bytes(s.flight[f].router_pass) + pass_bytes(s.flight[f].source_pass);
    MB_TRY(mb_comm_allreduce_i64(comm, &activations, 1, MB_COMM_MAX));
    MB_TRY(mb_comm_agree(comm, finish(&s, &names)));
    *out_report = (mb_scorer_report){.activation_bytes = activations,
                                     .records = s.work.records,
                                     .tokens = s.work.tokens,
                                     .parts = s.work.windows,
                                     .skipped_parts = s.skipped,
                                     .part_names = names,
                                     .seconds = mb_clock_seconds() - started};
done:
    scorer_reset(&s);
    return status;
}
