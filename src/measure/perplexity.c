/* perplexity.c: token losses of a shard, summed in one order.
 *
 * A rank takes a run of consecutive tiles and makes one sum per tile, source and type; the sums of all ranks,
 * one behind the other, are in tile order whatever the number of ranks, and are added in that order.
 *
 * 1. sums of a tile   2. this rank's tiles   3. rows
 */
#include "measure/perplexity.h"

#include <math.h>
#include <string.h>

#include "base/log.h"
#include "base/stop.h"
#include "measure/tile_stream.h"

enum { WINDOW_TOKENS = 1 << 18 }; /* records are ordered by length within so many */

typedef struct tile_sum {
    int64_t source, type, records, tokens; /* type 0 where there are none */
    double nll, bytes;
} tile_sum;

typedef struct tile_sums {
    tile_sum *data;
    int64_t count, capacity;
} tile_sums;

/* ---- 1. sums of a tile ---- */

/* The sum of this source and type in the tile whose sums begin at `from`. */
static mb_status find_sum(tile_sums *sums, int64_t from, int64_t source, int64_t type, tile_sum **out)
{
    mb_status status = MB_OK;
    int64_t i = from;
    while (i < sums->count && (sums->data[i].source != source || sums->data[i].type != type)) i++;
    if (i == sums->capacity) {
        int64_t n = 2 * sums->capacity + 16;
        tile_sum *bigger = mb_realloc(sums->data, (size_t)n, sizeof *bigger);
        if (bigger == NULL) MB_TRY(MB_ENOMEM);
        sums->data = bigger;
        sums->capacity = n;
    }
    if (i == sums->count) sums->data[sums->count++] = (tile_sum){.source = source, .type = type};
    *out = &sums->data[i];
done:
    return status;
}

static mb_status add_tile(const mb_shard *shard, const mb_tile *tile, const float *loss, tile_sums *sums)
{
    mb_status status = MB_OK;
    const mb_shard_columns columns = mb_shard_columns_get(shard);
    const int64_t from = sums->count;
    tile_sum *sum;
    for (int64_t i = 0; i < tile->records; i++) {
        int64_t targets = tile->head_first[i + 1] - tile->head_first[i], record = tile->record[i],
                length = mb_shard_length(shard, record);
        MB_TRY(find_sum(sums, from, columns.source[record], columns.type != NULL ? columns.type[record] : 0,
                        &sum));
        sum->records++;
        sum->tokens += targets;
        if (targets == 0) continue;
        double nll = 0;
        for (int64_t h = tile->head_first[i]; h < tile->head_first[i + 1]; h++) nll += loss[h];
        sum->nll += nll;
        sum->bytes += (double)columns.text_bytes[record] * ((double)targets / (double)(length - 1));
    }
done:
    return status;
}

/* ---- 2. this rank's tiles ---- */

/* A tile being computed; on a device the sums of the one before are made meanwhile. */
typedef struct tile_flight {
    mb_lm_pass *pass;
    const mb_tile *tile; /* NULL: none */
    mb_lm_output out;
} tile_flight;

typedef struct tile_run {
    const mb_shard *shard;
    mb_routing_share *routing; /* NULL: none */
    mb_preference *preference; /* NULL: none */
    tile_flight flight[2];
    int flights;
    tile_sums *sums;
} tile_run;

static mb_status finish_flight(const tile_run *run, tile_flight *flight)
{
    mb_status status = MB_OK;
    const mb_tile *tile = flight->tile;
    flight->tile = NULL;
    if (tile == NULL) goto done;
    MB_TRY(add_tile(run->shard, tile, flight->out.token_loss, run->sums));
    if (run->preference != NULL) MB_TRY(mb_preference_add(run->preference, tile, flight->out.token_loss));
    if (run->routing != NULL) MB_TRY(mb_routing_share_add(run->routing, tile, &flight->out));
done:
    return status;
}

/* All that is queued is done before the next tile is: a pass is waited for with everything before it. */
static mb_status run_tile(tile_run *run, int64_t number, const mb_tile *tile)
{
    mb_status status = MB_OK;
    const mb_lm_want want = {.no_routing = run->routing == NULL};
    const mb_lm_batch batch = mb_tile_batch(tile);
    tile_flight *flight = &run->flight[number % run->flights],
                *last = &run->flight[(number + run->flights - 1) % run->flights];
    if (last->tile != NULL) MB_TRY(mb_lm_pass_wait(last->pass));
    flight->out = (mb_lm_output){0};
    if (batch.head_rows > 0 || (batch.tokens > 0 && run->routing != NULL))
        MB_TRY(mb_lm_forward_start(flight->pass, &batch, &want, &flight->out));
    if (last != flight) MB_TRY(finish_flight(run, last));
    flight->tile = tile;
    if (last != flight) goto done;
    MB_TRY(mb_lm_pass_wait(flight->pass));
    MB_TRY(finish_flight(run, flight));
done:
    return status;
}

static mb_status run_tiles(mb_comm *comm, mb_lm *lm, mb_shard *shard, const mb_tile_plan *plan, int64_t limit,
                           const mb_perplexity_options *options, tile_sums *sums)
{
    mb_status status = MB_OK;
    mb_tile_stream *stream = NULL;
    const mb_tile *tile;
    mb_progress progress;
    tile_run run = {.shard = shard,
                    .routing = options->opt_routing,
                    .preference = options->opt_preference,
                    .flights = mb_ops_is_device(mb_lm_ops(lm)) ? 2 : 1,
                    .sums = sums};
    int64_t first, count;
    mb_comm_share(comm, plan->count, &first, &count);
    mb_progress_start(&progress, "perplexity", "tiles", 0, count);
    for (int f = 0; f < run.flights; f++) MB_TRY(mb_lm_pass_create(lm, &run.flight[f].pass));
    MB_TRY(mb_tile_stream_create(shard, plan, limit,
                                 options->only_masked ? MB_TILE_MASKED_TARGETS : MB_TILE_ALL_TARGETS,
                                 run.flights, &stream));
    if (count > 0) mb_tile_stream_start(stream, first);
    for (int64_t t = first; t < first + count; t++) {
        if (mb_stop_is_set()) MB_RAISE(MB_ESTOPPED, "stopped while measuring perplexity; run again");
        MB_TRY(mb_tile_stream_take(stream, &tile));
        if (t + 1 < first + count) mb_tile_stream_start(stream, t + 1);
        MB_TRY(run_tile(&run, t - first, tile));
        mb_progress_step(&progress, t + 1 - first, NULL);
    }
    for (int f = 0; f < run.flights; f++) { /* one at most */
        if (run.flight[f].tile != NULL) MB_TRY(mb_lm_pass_wait(run.flight[f].pass));
        MB_TRY(finish_flight(&run, &run.flight[f]));
    }
    mb_progress_end(&progress, count, NULL);
done:
    for (int f = 0; f < 2; f++) mb_lm_pass_destroy(&run.flight[f].pass);
    mb_tile_stream_destroy(&stream);
    return status;
}

/* ---- 3. rows ---- */

static void add_sum(mb_perplexity_row *row, double *bytes, const tile_sum *sum)
{
    row->records += sum->records;
    row->tokens += sum->tokens;
    row->nll += sum->nll;
    *bytes += sum->bytes;
}

static void finish_row(mb_perplexity_row *row, double bytes)
{
    row->bytes = (int64_t)nearbyint(bytes);
    row->token_perplexity = row->tokens > 0 ? exp(row->nll / (double)row->tokens) : NAN;
    row->byte_perplexity = bytes > 0 ? exp(row->nll / bytes) : NAN;
    row->bits_per_byte = bytes > 0 ? row->nll / (bytes * log(2)) : NAN;
}

int64_t mb_perplexity_rows(const mb_shard *shard)
{
    return 1 + mb_shard_sources(shard) + mb_shard_types(shard);
}

static void name_rows(const mb_shard *shard, mb_perplexity_row *rows)
{
    const int64_t sources = mb_shard_sources(shard);
    for (int64_t i = 0; i < sources; i++) rows[1 + i].source = mb_shard_source_name(shard, i);
    for (int64_t i = 0; i < mb_shard_types(shard); i++)
        rows[1 + sources + i].type = mb_shard_type_name(shard, i);
}

static mb_status fill_rows(const mb_shard *shard, const tile_sum *sums, int64_t count,
                           mb_perplexity_row *rows)
{
    mb_status status = MB_OK;
    const int64_t n = mb_perplexity_rows(shard), sources = mb_shard_sources(shard);
    double *bytes = NULL;
    MB_NEW_ARRAY(bytes, n);
    memset(rows, 0, (size_t)n * sizeof *rows);
    name_rows(shard, rows);
    for (int64_t i = 0; i < count; i++) {
        const int64_t of[3] = {0, 1 + sums[i].source, 1 + sources + sums[i].type};
        for (int k = 0; k < (mb_shard_types(shard) > 0 ? 3 : 2); k++)
            add_sum(&rows[of[k]], &bytes[of[k]], &sums[i]);
    }
    for (int64_t i = 0; i < n; i++) finish_row(&rows[i], bytes[i]);
    if (!isfinite(rows[0].nll))
        MB_RAISE(MB_ENUMERIC, "the loss of the shard is not a number; check the model's weights");
done:
    mb_free(bytes);
    return status;
}

mb_status mb_perplexity_run(mb_comm *comm, mb_lm *lm, mb_shard *shard, const mb_perplexity_options *options,
                            mb_perplexity_row *rows)
{
    mb_status status = MB_OK;
    mb_tile_plan plan = {0};
    tile_sums sums = {0};
    tile_sum *all = NULL;
    int64_t *offsets = NULL;
    const int64_t limit = mb_tile_limit(options->max_length, lm, NULL);
    status = mb_tile_plan_create(shard, limit, options->tile_tokens, WINDOW_TOKENS, &plan);
    if (status == MB_OK) status = run_tiles(comm, lm, shard, &plan, limit, options, &sums);
    if (status == MB_OK && (offsets = mb_calloc((size_t)mb_comm_size(comm) + 1, sizeof *offsets)) == NULL)
        status = MB_ENOMEM;
    MB_TRY(mb_comm_agree(comm, status));
    MB_TRY(
        mb_comm_allgatherv(comm, sums.data, (size_t)sums.count * sizeof *sums.data, (void **)&all, offsets));
    MB_TRY(fill_rows(shard, all, offsets[mb_comm_size(comm)] / (int64_t)sizeof *all, rows));
done:
    mb_tile_plan_reset(&plan);
    mb_free(sums.data);
    mb_free(all);
    mb_free(offsets);
    return status;
}
