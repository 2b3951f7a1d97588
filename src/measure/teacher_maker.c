/* teacher_maker.c: the pass of a teacher.
 *
 * A tile is launched (its forward begins) and finished (the host chooses the tokens of its rows, on all
 * threads). On the host one follows the other; on a device the tile before is finished while this one is
 * computed, also where the two belong to different parts.
 *
 * 1. options   2. forecast   3. state   4. tiles   5. parts   6. key and join   7. run
 */
#include "measure/teacher_maker.h"

#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/stop.h"
#include "measure/tile_stream.h"
#include "measure/top_tokens.h"
#include "model/fuse.h"
#include "store/lease.h"

/* ---- 1. options ---- */

#define OPTIONS mb_teacher_maker_options

const mb_option *mb_teacher_maker_option_table(int64_t *out_count)
{
    static const mb_option options[] = {
        MB_OPTION_INT(OPTIONS, k, "teacher.k", "128", 1, 1 << 20, "tokens",
                      "likeliest tokens kept of each target; all others are one number per temperature. No "
                      "fewer than the vocabulary: everything, exactly",
                      "teacher.top_k"),
        MB_OPTION_LIST(OPTIONS, temperatures, "teacher.temperatures", "1,1.5,2,3",
                       "temperatures that students may take (training.temperature)", NULL),
        MB_OPTION_TEXT(OPTIONS, dtype, "teacher.dtype", "f16", "f16|f32",
                       "number type of the stored log-probabilities", NULL),
        MB_OPTION_TEXT(
            OPTIONS, targets, "teacher.targets", "masked", "masked|all",
            "tokens that get a row: those of the shard's loss mask (all where it has none), or all", NULL),
        MB_OPTION_INT(OPTIONS, tile_tokens, "teacher.tile_tokens", "1024", 16, 1 << 20, "tokens",
                      "tokens computed together; all their logits are in memory", NULL),
        MB_OPTION_INT(OPTIONS, max_length, "dataset.max_length", "0", 0, 1 << 24, "tokens",
                      "longer records are cut to their first tokens; 0: the model's positions", NULL),
    };
    *out_count = sizeof options / sizeof *options;
    return options;
}

mb_status mb_teacher_maker_shape(const mb_teacher_maker_options *options, const mb_lm *lm,
                                 mb_teacher_shape *out_shape)
{
    mb_status status = MB_OK;
    const int64_t vocab = mb_lm_arch(lm)->vocab;
    mb_teacher_shape shape = {.vocab = vocab,
                              .k = options->k < vocab ? options->k : vocab,
                              .all_targets = mb_str_equal(options->targets, "all"),
                              .max_length = mb_tile_limit(options->max_length, lm, NULL)};
    MB_TRY(mb_dtype_parse(options->dtype, &shape.dtype));
    MB_TRY(mb_teacher_parse_temperatures(options->temperatures, &shape));
    *out_shape = shape;
done:
    return status;
}

/* ---- 2. forecast ---- */

#define PART_BYTES ((int64_t)256 << 20) /* a part's rows in memory, at most about so many */

static int64_t row_memory(const mb_teacher_shape *shape)
{
    return shape->k * (int64_t)(sizeof(int32_t) + sizeof(float)) +
           (shape->temperatures + 1) * (int64_t)sizeof(float);
}

/* Tokens of a part: as for scores, but no more than its memory allows. */
static int64_t part_tokens(const mb_teacher_shape *shape, const mb_shard *shard, int64_t tile_tokens)
{
    const int64_t usual = mb_tile_part_tokens(mb_tile_tokens(shard, shape->max_length), tile_tokens),
                  most = PART_BYTES / row_memory(shape);
    if (usual <= most) return usual;
    return most > tile_tokens ? most : tile_tokens;
}

mb_status mb_teacher_maker_forecast(const mb_teacher_shape *shape, mb_shard *shard,
                                    const mb_teacher_maker_options *options,
                                    mb_teacher_forecast *out_forecast)
{
    mb_status status = MB_OK;
    mb_teacher_forecast forecast = {.row_bytes = mb_teacher_row_bytes(shape),
                                    .dense_bytes = mb_teacher_dense_bytes(shape)};
    mb_shard_record record;
    for (int64_t r = 0; r < mb_shard_count(shard); r++) {
        MB_TRY(mb_shard_read(shard, r, &record));
        forecast.rows += mb_teacher_targets(shape, &record);
    }
    const int64_t tokens = part_tokens(shape, shard, options->tile_tokens),
                  rows = tokens < forecast.rows ? tokens : forecast.rows;
    forecast.part_bytes = rows * row_memory(shape);
    *out_forecast = forecast;
done:
    return status;
}

int64_t mb_teacher_maker_logits(const mb_lm *lm)
{
    const bool is_mixed = mb_lm_is_fused(lm) && mb_fuse_get_kind(lm) != MB_FUSE_LAYER;
    return (is_mixed ? mb_fuse_members(lm) + 1 : 1) * mb_lm_arch(lm)->vocab * (int64_t)sizeof(float);
}

int mb_teacher_maker_passes(const mb_ops *ops)
{
    return mb_ops_is_device(ops) ? 2 : 1;
}

/* ---- 3. state ---- */

enum { MOST_FLIGHTS = 2 };

/* A tile from launch to finish, with a pass of its own. */
typedef struct flight {
    mb_lm_pass *pass;
    mb_lm_output output;
    const mb_tile *tile;
    mb_teacher_part *part;
    bool ends_part;
} flight;

typedef struct maker {
    mb_comm *comm, *group; /* group NULL: none */
    mb_lm *lm;
    flight flight[MOST_FLIGHTS], *flying; /* flying: launched and not landed, NULL none */
    int flights, next_flight;
    mb_teacher_part part[MOST_FLIGHTS]; /* in turn: a tile of the last may still fly */
    int next_part;
    int64_t *place, places; /* [places] of each head row of a tile: its row of the part */
    int threads;
    mb_shard *shard;
    const mb_teacher_maker_options *options;
    mb_teacher_shape shape;
    mb_tile_plan tiles; /* its windows are the parts */
    mb_tile_stream *stream;
    mb_share share;
    mb_tile_part work;
    mb_comm_queue *queue;
    int64_t skipped;
    char key[MB_HASH_TEXT];
    json_t *attributes; /* rank 0 */
    const char *path;
    mb_progress progress;
} maker;

static void part_reset(mb_teacher_part *part)
{
    mb_free(part->row_first);
    mb_free(part->ids);
    mb_free(part->logprob);
    mb_free(part->tail);
    mb_free(part->mass);
    *part = (mb_teacher_part){0};
}

static void maker_reset(maker *m)
{
    for (int f = 0; f < MOST_FLIGHTS; f++) {
        mb_lm_pass_destroy(&m->flight[f].pass);
        part_reset(&m->part[f]);
    }
    mb_free(m->place);
    mb_tile_stream_destroy(&m->stream);
    mb_tile_plan_reset(&m->tiles);
    mb_comm_queue_destroy(&m->queue);
    json_decref(m->attributes);
}

/* Does this rank draw parts and write them? */
static bool is_leader(const maker *m)
{
    return m->group == NULL || mb_comm_rank(m->group) == 0;
}

/* ---- 4. tiles ---- */

static mb_status launch(flight *f)
{
    mb_status status = MB_OK;
    mb_lm_batch batch = mb_tile_batch(f->tile);
    const mb_lm_want want = {.logits = true, .no_routing = true};
    batch.targets = NULL;
    f->output = (mb_lm_output){0};
    if (batch.head_rows > 0) MB_TRY(mb_lm_forward_start(f->pass, &batch, &want, &f->output));
done:
    return status;
}

static mb_status await(const flight *f)
{
    return f->tile->heads > 0 ? mb_lm_pass_wait(f->pass) : MB_OK;
}

/* Rows of the part for the tile's head rows. */
static mb_status find_places(maker *m, const mb_tile *tile, const mb_teacher_part *part)
{
    mb_status status = MB_OK;
    if (tile->heads > m->places) {
        MB_FREE(m->place);
        m->places = 0;
        MB_NEW_ARRAY(m->place, tile->heads);
        m->places = tile->heads;
    }
    for (int64_t i = 0; i < tile->records; i++) {
        const int64_t from = tile->head_first[i], to = tile->head_first[i + 1],
                      row = part->row_first[tile->record[i] - part->first];
        for (int64_t h = from; h < to; h++) m->place[h] = row + h - from;
    }
done:
    return status;
}

/* The tokens of every row, each by itself, so that its bits are the same on any number of threads. */
static mb_status choose_tokens(maker *m, const flight *f)
{
    mb_status status = MB_OK;
    const mb_teacher_shape *shape = &m->shape;
    const mb_teacher_part *part = f->part;
    const int64_t n = f->tile->heads, k = shape->k, temperatures = shape->temperatures;
    int64_t bad = n;
    MB_TRY(find_places(m, f->tile, part));
#pragma omp parallel for schedule(dynamic, 8) num_threads(m->threads) reduction(min : bad) if (n > 8)
    for (int64_t h = 0; h < n; h++) {
        const int64_t row = m->place[h];
        if (!mb_top_tokens_get(f->output.logits + h * shape->vocab, shape->vocab, k, shape->temperature,
                               temperatures, part->ids + row * k, part->logprob + row * k,
                               part->tail + row * temperatures, part->mass + row) &&
            h < bad)
            bad = h;
    }
    for (int64_t i = 0; bad < n && i < f->tile->records; i++)
        if (bad < f->tile->head_first[i + 1])
            MB_RAISE(MB_ENUMERIC, "record %lld: the teacher's logits are not finite; check its weights",
                     (long long)f->tile->record[i]);
done:
    return status;
}

/* What came of a tile, and the file of its part where it is the last of it. */
static mb_status finish_tile(maker *m, const flight *f)
{
    mb_status status = MB_OK;
    if (f->tile->heads > 0 && is_leader(m)) MB_TRY(choose_tokens(m, f));
    if (!f->ends_part) goto done;
    if (is_leader(m)) MB_TRY(mb_teacher_part_write(m->path, m->key, &m->shape, f->part));
    part_reset(f->part);
done:
    return status;
}

static mb_status land(maker *m)
{
    mb_status status = MB_OK;
    if (m->flying == NULL) goto done;
    MB_TRY(await(m->flying));
    MB_TRY(finish_tile(m, m->flying));
    m->flying = NULL;
done:
    return status;
}

/* The device waits for the host no longer than it takes to queue a tile: all it was given is done before
 * the next is queued, and what came of it is worked on after. */
static mb_status fly(maker *m, const mb_tile *tile, mb_teacher_part *part, bool ends_part)
{
    mb_status status = MB_OK;
    const flight *last = m->flying;
    flight *f = &m->flight[m->next_flight];
    m->next_flight = (m->next_flight + 1) % m->flights;
    f->tile = tile;
    f->part = part;
    f->ends_part = ends_part;
    if (last != NULL) MB_TRY(await(last));
    MB_TRY(launch(f));
    m->flying = f;
    if (last != NULL) MB_TRY(finish_tile(m, last));
    if (m->flights == 1) MB_TRY(land(m));
done:
    return status;
}

/* ---- 5. parts ---- */

/* Records first.. of the shard, in how many. */
static int64_t part_records(const maker *m, int64_t unit, int64_t *out_first)
{
    *out_first = m->tiles.first[m->tiles.window[unit]];
    return m->tiles.first[m->tiles.window[unit + 1]] - *out_first;
}

/* The next part that is still to do, -1 when there is none. */
static mb_status draw_part(maker *m, int64_t *out_unit)
{
    mb_status status = MB_OK;
    int64_t unit, first;
    for (;;) {
        MB_TRY(mb_comm_queue_next(m->queue, &unit));
        if (unit < 0) break;
        unit = mb_share_unit(m->share, unit);
        const int64_t records = part_records(m, unit, &first);
        if (!mb_scores_part_is_done(m->path, m->key, first, records)) break;
        m->skipped++;
    }
    *out_unit = unit;
done:
    return status;
}

/* The same for the whole group; the reading of the part's first tile begins. */
static mb_status next_part(maker *m, int64_t *out_unit)
{
    mb_status status = MB_OK;
    if (is_leader(m)) status = draw_part(m, out_unit);
    if (m->group != NULL) {
        MB_TRY(mb_comm_agree(m->group, status));
        MB_TRY(mb_comm_bcast(m->group, out_unit, sizeof *out_unit, 0));
    }
    MB_TRY(status);
    if (*out_unit >= 0) mb_tile_stream_start(m->stream, m->tiles.window[*out_unit]);
done:
    return status;
}

#define STOPPED "stopped; the finished parts stay, run again to go on"

/* The next tile, unless all is to stop; a group goes on together or not at all. What flies is landed first:
 * it may be the last of its part. */
static mb_status take_tile(maker *m, const mb_tile **out_tile)
{
    mb_status status = mb_stop_is_set() ? MB_ESTOPPED : mb_tile_stream_take(m->stream, out_tile);
    if (status == MB_ESTOPPED) mb_fail(status, STOPPED);
    if (m->group != NULL) status = mb_comm_agree(m->group, status);
    if (status != MB_ESTOPPED) return status;
    MB_TRY(land(m));
    MB_RAISE(MB_ESTOPPED, STOPPED);
done:
    return status;
}

/* The part's tiles; while the last is computed the next part is already fetched. */
static mb_status run_tiles(maker *m, int64_t unit, mb_teacher_part *part, int64_t *out_next)
{
    mb_status status = MB_OK;
    const int64_t end = m->tiles.window[unit + 1];
    for (int64_t t = m->tiles.window[unit]; t < end; t++) {
        const mb_tile *tile = NULL;
        MB_TRY(take_tile(m, &tile));
        if (t + 1 == end)
            MB_TRY(next_part(m, out_next));
        else
            mb_tile_stream_start(m->stream, t + 1);
        MB_TRY(fly(m, tile, part, t + 1 == end));
        mb_progress_step(&m->progress, (t + 1) * m->work.tiles / m->tiles.count, NULL);
    }
done:
    return status;
}

/* Rows of its records, and room for them. */
static mb_status begin_part(maker *m, int64_t unit, mb_teacher_part *part)
{
    mb_status status = MB_OK;
    mb_shard_record record;
    part->records = part_records(m, unit, &part->first);
    MB_NEW_ARRAY(part->row_first, part->records + 1);
    mb_tile_stream_wait(m->stream);
    for (int64_t i = 0; i < part->records; i++) {
        MB_TRY(mb_shard_read(m->shard, part->first + i, &record));
        part->row_first[i + 1] = part->row_first[i] + mb_teacher_targets(&m->shape, &record);
    }
    if (!is_leader(m)) goto done;
    const int64_t rows = part->row_first[part->records];
    MB_NEW_ARRAY(part->ids, rows * m->shape.k);
    MB_NEW_ARRAY(part->logprob, rows * m->shape.k);
    MB_NEW_ARRAY(part->tail, rows * m->shape.temperatures);
    MB_NEW_ARRAY(part->mass, rows);
done:
    return status;
}

static mb_status run_parts(maker *m)
{
    mb_status status = MB_OK;
    int64_t unit = -1, next = -1;
    mb_progress_start(&m->progress, "teacher", "tiles", 0, m->work.tiles);
    MB_TRY(next_part(m, &unit));
    for (; unit >= 0; unit = next) {
        mb_teacher_part *part = &m->part[m->next_part];
        m->next_part = (m->next_part + 1) % m->flights;
        MB_TRY(begin_part(m, unit, part));
        MB_TRY(run_tiles(m, unit, part, &next));
    }
    MB_TRY(land(m));
    mb_progress_end(&m->progress, m->work.tiles, NULL);
done:
    return status;
}

/* ---- 6. key and join ---- */

/* Rank 0: what the file says about its origin, and the key of its parts. */
static mb_status make_key(maker *m)
{
    mb_status status = MB_OK;
    char shard_hash[MB_HASH_TEXT], folder[MB_HASH_TEXT] = "", adapter[MB_HASH_TEXT] = "";
    mb_str text = MB_STR_EMPTY, storage = MB_STR_EMPTY;
    MB_TRY(mb_shard_hash(m->shard, shard_hash));
    MB_TRY(mb_lm_hashes(m->lm, folder, adapter));
    MB_TRY(mb_params_describe_storage(mb_lm_params(m->lm), &storage));
    m->attributes =
        json_pack("{s:s, s:s, s:s, s:s, s:s, s:I}", "model", mb_lm_hash(m->lm), "model_folder", folder,
                  "adapter", adapter, "dtype", mb_dtype_name(mb_lm_dtype(m->lm)), "storage",
                  mb_str_text(&storage), "tile_tokens", (json_int_t)m->options->tile_tokens);
    if (m->attributes == NULL) MB_RAISE(MB_ENOMEM, "not enough memory for the attributes of a teacher");
    MB_TRY(mb_json_print(m->attributes, 0, true, &text));
    MB_TRY(mb_str_add_format(&text, "%s %lld %lld %s %d %lld", shard_hash, (long long)m->shape.vocab,
                             (long long)m->shape.k, mb_dtype_name(m->shape.dtype), m->shape.all_targets,
                             (long long)m->shape.max_length));
    for (int64_t s = 0; s < m->shape.temperatures; s++)
        MB_TRY(mb_str_add_format(&text, " %.17g", m->shape.temperature[s]));
    mb_hash_bytes(mb_str_text(&text), text.length, m->key);
done:
    mb_str_destroy(&text);
    mb_str_destroy(&storage);
    return status;
}

/* Rank 0 joins the whole, where the folder is still ours, or says what our share is. */
static mb_status finish(const maker *m, json_t **out_names)
{
    mb_status status = MB_OK;
    if (mb_comm_rank(m->comm) != 0) goto done;
    if (!mb_share_is_whole(m->share)) {
        MB_TRY(mb_tile_plan_files(&m->tiles, m->share, m->path, out_names));
        goto done;
    }
    MB_TRY(mb_lease_check_for(m->path));
    MB_TRY(mb_teacher_join(m->path, m->key, m->shard, &m->shape, m->attributes));
done:
    return status;
}

/* ---- 7. run ---- */

static mb_status prepare(maker *m)
{
    mb_status status = MB_OK;
    const mb_tile_targets targets =
        mb_str_equal(m->options->targets, "all") ? MB_TILE_ALL_TARGETS : MB_TILE_MASKED_TARGETS;
    MB_TRY(mb_teacher_maker_shape(m->options, m->lm, &m->shape));
    if (mb_shard_count(m->shard) == 0)
        MB_RAISE(MB_EDATA, "the shard has no records: there is nothing to ask a teacher");
    MB_TRY(mb_tile_plan_create(m->shard, m->shape.max_length, m->options->tile_tokens,
                               part_tokens(&m->shape, m->shard, m->options->tile_tokens), &m->tiles));
    m->work = mb_tile_plan_share(&m->tiles, m->share, m->shard, m->shape.max_length);
    if (m->tiles.cut > 0)
        mb_info("%lld of %lld records are longer than %lld tokens: the teacher sees their first tokens",
                (long long)m->tiles.cut, (long long)mb_shard_count(m->shard), (long long)m->shape.max_length);
    m->flights = mb_teacher_maker_passes(mb_lm_ops(m->lm));
    m->threads = mb_ops_threads(mb_lm_ops(m->lm));
    for (int f = 0; f < m->flights; f++) MB_TRY(mb_lm_pass_create(m->lm, &m->flight[f].pass));
    MB_TRY(mb_tile_stream_create(m->shard, &m->tiles, m->shape.max_length, targets, m->flights, &m->stream));
    if (mb_comm_rank(m->comm) == 0) MB_TRY(make_key(m));
done:
    return status;
}

mb_status mb_teacher_maker_run(mb_comm *comm, mb_comm *opt_group, mb_lm *lm, mb_shard *shard,
                               const mb_teacher_maker_options *options, mb_share share, const char *out_path,
                               mb_teacher_maker_report *out_report)
{
    mb_status status = MB_OK;
    const double started = mb_clock_seconds();
    int64_t activations = 0;
    json_t *names = NULL;
    maker m = {.comm = comm,
               .group = opt_group,
               .lm = lm,
               .shard = shard,
               .options = options,
               .share = share,
               .path = out_path};
    MB_TRY(mb_comm_agree(comm, prepare(&m)));
    MB_TRY(mb_comm_bcast(comm, m.key, sizeof m.key, 0));
    MB_TRY(mb_comm_queue_create(comm, m.work.windows, &m.queue));
    MB_TRY(mb_comm_agree(comm, run_parts(&m)));
    MB_TRY(mb_comm_allreduce_i64(comm, &m.skipped, 1, MB_COMM_SUM));
    for (int f = 0; f < m.flights; f++) activations += (int64_t)mb_lm_pass_peak_bytes(m.flight[f].pass);
    MB_TRY(mb_comm_allreduce_i64(comm, &activations, 1, MB_COMM_MAX));
    MB_TRY(mb_comm_agree(comm, finish(&m, &names)));
    *out_report = (mb_teacher_maker_report){.activation_bytes = activations,
                                            .records = m.work.records,
                                            .tokens = m.work.tokens,
                                            .parts = m.work.windows,
                                            .skipped_parts = m.skipped,
                                            .part_names = names,
                                            .seconds = mb_clock_seconds() - started};
done:
    maker_reset(&m);
    return status;
}
