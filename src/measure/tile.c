/* tile.c: forming tiles, and filling the arrays of a batch.
 *
 * 1. limits   2. plan   3. a batch   4. records of a shard
 */
#include "measure/tile.h"

#include <assert.h>

#include "base/log.h"

/* ---- 1. limits ---- */

int64_t mb_tile_length(const mb_shard *shard, int64_t record, int64_t limit)
{
    int64_t n = mb_shard_length(shard, record);
    return n < limit ? n : limit;
}

int64_t mb_tile_limit(int64_t asked, const mb_lm *opt_a, const mb_lm *opt_b)
{
    int64_t limit = asked > 0 ? asked : INT32_MAX;
    const mb_lm *models[2] = {opt_a, opt_b};
    for (int i = 0; i < 2; i++) {
        if (models[i] == NULL || mb_lm_arch(models[i])->max_positions >= limit) continue;
        limit = mb_lm_arch(models[i])->max_positions;
    }
    if (asked > limit) {
        mb_warn("max_length %lld is more than the model's %lld positions: records are cut there",
                (long long)asked, (long long)limit);
    }
    return limit;
}

/* ---- 2. plan ---- */

mb_status mb_tile_plan_create(const mb_shard *shard, int64_t limit, int64_t tile_tokens,
                              mb_tile_plan *out_plan)
{
    mb_status status = MB_OK;
    mb_tile_plan plan = {0};
    const int64_t records = mb_shard_count(shard);
    int64_t held = 0;
    double attended = 0;
    MB_NEW_ARRAY(plan.first, records + 1);
    for (int64_t r = 0; r < records; r++) {
        int64_t n = mb_tile_length(shard, r, limit);
        if (r == 0 || held + n > tile_tokens) {
            plan.first[plan.count++] = r;
            held = 0;
        }
        held += n;
        plan.tokens += n;
        plan.cut += n < mb_shard_length(shard, r);
        attended += 0.5 * (double)n * (double)(n + 1);
    }
    plan.first[plan.count] = records;
    plan.context = plan.tokens > 0 ? attended / (double)plan.tokens : 0;
    *out_plan = plan;
done:
    return status;
}

void mb_tile_plan_reset(mb_tile_plan *plan)
{
    MB_FREE(plan->first);
    *plan = (mb_tile_plan){0};
}

/* ---- 3. a batch ---- */

void mb_tile_destroy(mb_tile *tile)
{
    mb_free(tile->ids);
    mb_free(tile->positions);
    mb_free(tile->offsets);
    mb_free(tile->head_row);
    mb_free(tile->targets);
    mb_free(tile->row_first);
    mb_free(tile->head_first);
    *tile = (mb_tile){0};
}

void mb_tile_reset(mb_tile *tile)
{
    tile->tokens = tile->segments = tile->heads = tile->records = 0;
}

static mb_status grow_i32(int32_t **array, int64_t n)
{
    int32_t *bigger = mb_realloc(*array, (size_t)n, sizeof **array);
    if (bigger == NULL) return MB_ENOMEM;
    *array = bigger;
    return MB_OK;
}

static mb_status grow(mb_tile *tile, int64_t tokens)
{
    mb_status status = MB_OK;
    if (tokens <= tile->capacity) return MB_OK;
    int64_t n = tokens + tokens / 2;
    if (n >= INT32_MAX)
        MB_RAISE(MB_ERANGE, "a tile of %lld tokens is too large; set tile_tokens or max_length lower",
                 (long long)tokens);
    MB_TRY(grow_i32(&tile->ids, n));
    MB_TRY(grow_i32(&tile->positions, n));
    MB_TRY(grow_i32(&tile->offsets, n + 1));
    MB_TRY(grow_i32(&tile->head_row, n));
    MB_TRY(grow_i32(&tile->targets, n));
    tile->capacity = n;
done:
    return status;
}

mb_status mb_tile_add(mb_tile *tile, const uint32_t *tokens, int64_t n)
{
    mb_status status = MB_OK;
    assert(n > 0);
    MB_TRY(grow(tile, tile->tokens + n));
    for (int64_t i = 0; i < n; i++) {
        tile->ids[tile->tokens + i] = (int32_t)tokens[i];
        tile->positions[tile->tokens + i] = (int32_t)i;
    }
    tile->offsets[0] = 0;
    tile->tokens += n;
    tile->offsets[++tile->segments] = (int32_t)tile->tokens;
done:
    return status;
}

void mb_tile_add_target(mb_tile *tile, int64_t row, uint32_t target)
{
    assert(tile->heads < tile->tokens && row < tile->tokens);
    tile->head_row[tile->heads] = (int32_t)row;
    tile->targets[tile->heads++] = (int32_t)target;
}

mb_lm_batch mb_tile_batch(const mb_tile *tile)
{
    return (mb_lm_batch){.tokens = tile->tokens,
                         .segments = tile->segments,
                         .ids = tile->ids,
                         .positions = tile->positions,
                         .offsets = tile->offsets,
                         .head_rows = tile->heads,
                         .head_row = tile->head_row,
                         .targets = tile->targets};
}

/* ---- 4. records of a shard ---- */

static mb_status grow_records(mb_tile *tile, int64_t records)
{
    mb_status status = MB_OK;
    int64_t *bigger;
    if (records + 1 <= tile->record_capacity) return MB_OK;
    bigger = mb_realloc(tile->row_first, (size_t)records + 1, sizeof *bigger);
    if (bigger == NULL) MB_TRY(MB_ENOMEM);
    tile->row_first = bigger;
    bigger = mb_realloc(tile->head_first, (size_t)records + 1, sizeof *bigger);
    if (bigger == NULL) MB_TRY(MB_ENOMEM);
    tile->head_first = bigger;
    tile->record_capacity = records + 1;
done:
    return status;
}

mb_status mb_tile_read(mb_tile *tile, mb_shard *shard, int64_t first, int64_t end, int64_t limit,
                       mb_tile_targets targets)
{
    mb_status status = MB_OK;
    mb_shard_record record;
    mb_tile_reset(tile);
    MB_TRY(grow_records(tile, end - first));
    tile->row_first[0] = tile->head_first[0] = 0;
    for (int64_t r = first; r < end; r++) {
        MB_TRY(mb_shard_read(shard, r, &record));
        int64_t n = record.count < limit ? record.count : limit, row = tile->tokens;
        if (n > 0) MB_TRY(mb_tile_add(tile, record.tokens, n));
        const uint8_t *mask = targets == MB_TILE_MASKED_TARGETS ? record.loss_mask : NULL;
        for (int64_t i = 1; i < n && targets != MB_TILE_NO_TARGETS; i++) {
            if (mask == NULL || mask[i]) mb_tile_add_target(tile, row + i - 1, record.tokens[i]);
        }
        tile->records++;
        tile->row_first[tile->records] = tile->tokens;
        tile->head_first[tile->records] = tile->heads;
    }
done:
    return status;
}
