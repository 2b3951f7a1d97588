/* tile.c: forming tiles, and filling the arrays of a batch.
 *
 * 1. limits   2. plan   3. a batch   4. records of a shard
 */
#include "measure/tile.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

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

int64_t mb_tile_tokens(const mb_shard *shard, int64_t limit)
{
    int64_t tokens = 0;
    for (int64_t r = 0; r < mb_shard_count(shard); r++) tokens += mb_tile_length(shard, r, limit);
    return tokens;
}

typedef struct plan_record {
    int64_t length, number;
} plan_record;

static int by_length(const void *a, const void *b)
{
    const plan_record *x = a, *y = b;
    if (x->length != y->length) return x->length > y->length ? -1 : 1;
    return x->number < y->number ? -1 : x->number > y->number;
}

/* Orders n records from `first` on and cuts them into tiles. */
static void plan_window(mb_tile_plan *plan, plan_record *records, int64_t first, int64_t n,
                        int64_t tile_tokens)
{
    int64_t held = 0;
    qsort(records, (size_t)n, sizeof *records, by_length);
    plan->window[plan->windows++] = plan->count;
    for (int64_t i = 0; i < n; i++) {
        if (i == 0 || held + records[i].length > tile_tokens) {
            plan->first[plan->count++] = first + i;
            held = 0;
        }
        held += records[i].length;
        plan->order[first + i] = records[i].number;
    }
}

static void plan_all(const mb_shard *shard, int64_t limit, int64_t tile_tokens, int64_t window_tokens,
                     plan_record *records, mb_tile_plan *plan)
{
    const int64_t count = mb_shard_count(shard);
    int64_t first = 0, held = 0;
    double attended = 0;
    for (int64_t r = 0; r < count; r++) {
        const int64_t n = mb_tile_length(shard, r, limit);
        if (r > first && held >= window_tokens) {
            plan_window(plan, records, first, r - first, tile_tokens);
            first = r;
            held = 0;
        }
        records[r - first] = (plan_record){n, r};
        held += n;
        plan->tokens += n;
        plan->cut += n < mb_shard_length(shard, r);
        attended += 0.5 * (double)n * (double)(n + 1);
    }
    if (count > first) plan_window(plan, records, first, count - first, tile_tokens);
    plan->first[plan->count] = count;
    plan->window[plan->windows] = plan->count;
    plan->context = plan->tokens > 0 ? attended / (double)plan->tokens : 0;
}

mb_status mb_tile_plan_create(const mb_shard *shard, int64_t limit, int64_t tile_tokens,
                              int64_t window_tokens, mb_tile_plan *out_plan)
{
    mb_status status = MB_OK;
    mb_tile_plan plan = {0};
    plan_record *scratch = NULL;
    const int64_t records = mb_shard_count(shard);
    MB_NEW_ARRAY(plan.first, records + 1);
    MB_NEW_ARRAY(plan.order, records);
    MB_NEW_ARRAY(plan.window, records + 1);
    MB_NEW_ARRAY(scratch, records);
    plan_all(shard, limit, tile_tokens, window_tokens, scratch, &plan);
    *out_plan = plan;
    plan = (mb_tile_plan){0};
done:
    mb_free(scratch);
    mb_tile_plan_reset(&plan);
    return status;
}

mb_tile_part mb_tile_plan_share(const mb_tile_plan *plan, mb_share share, const mb_shard *shard,
                                int64_t limit)
{
    mb_tile_part part = {.windows = mb_share_count(share, plan->windows)};
    for (int64_t i = 0; i < part.windows; i++) {
        const int64_t *window = plan->window + mb_share_unit(share, i);
        part.tiles += window[1] - window[0];
        part.records += plan->first[window[1]] - plan->first[window[0]];
        for (int64_t r = plan->first[window[0]]; r < plan->first[window[1]]; r++)
            part.tokens += mb_tile_length(shard, r, limit);
    }
    return part;
}

mb_status mb_tile_plan_files(const mb_tile_plan *plan, mb_share share, const char *path, json_t **out_names)
{
    mb_status status = MB_OK;
    const char *slash = strrchr(path, '/');
    char *name = NULL;
    json_t *names = json_array();
    for (int64_t i = 0; i < mb_share_count(share, plan->windows); i++) {
        const int64_t *window = plan->window + mb_share_unit(share, i);
        const int64_t first = plan->first[window[0]];
        mb_free(name);
        name = mb_scores_part_path(slash != NULL ? slash + 1 : path, first, plan->first[window[1]] - first);
        if (name == NULL || json_array_append_new(names, json_string(name)) != 0)
            MB_RAISE(MB_ENOMEM, "%s: not enough memory", path);
    }
    *out_names = names;
    names = NULL;
done:
    json_decref(names);
    mb_free(name);
    return status;
}

int64_t mb_tile_part_tokens(int64_t tokens, int64_t tile_tokens)
{
    enum { PART_TOKENS = 65536, FEW_PARTS = 64, MOST_PARTS = 1024 };
    int64_t least = tokens / FEW_PARTS;
    if (least > PART_TOKENS) least = PART_TOKENS;
    if (least < tokens / MOST_PARTS) least = tokens / MOST_PARTS;
    return least < tile_tokens ? tile_tokens : least;
}

void mb_tile_plan_reset(mb_tile_plan *plan)
{
    mb_free(plan->first);
    mb_free(plan->order);
    mb_free(plan->window);
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
    mb_free(tile->in_mask);
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
    uint8_t *bigger = mb_realloc(tile->in_mask, (size_t)n, sizeof *bigger);
    if (bigger == NULL) MB_TRY(MB_ENOMEM);
    tile->in_mask = bigger;
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

static bool is_in_mask(const mb_shard_record *record, int64_t i)
{
    return record->loss_mask == NULL || record->loss_mask[i] != 0;
}

int64_t mb_tile_count_targets(const mb_shard_record *record, int64_t limit, mb_tile_targets targets)
{
    const int64_t n = record->count < limit ? record->count : limit;
    int64_t count = 0;
    for (int64_t i = 1; i < n && targets != MB_TILE_NO_TARGETS; i++)
        count += targets == MB_TILE_ALL_TARGETS || is_in_mask(record, i);
    return count;
}

static mb_status add_record(mb_tile *tile, const mb_shard_record *record, int64_t limit,
                            mb_tile_targets targets)
{
    mb_status status = MB_OK;
    const int64_t n = record->count < limit ? record->count : limit, row = tile->tokens;
    if (n > 0) MB_TRY(mb_tile_add(tile, record->tokens, n));
    for (int64_t i = 0; i < n; i++) tile->in_mask[row + i] = is_in_mask(record, i);
    for (int64_t i = 1; i < n && targets != MB_TILE_NO_TARGETS; i++)
        if (targets == MB_TILE_ALL_TARGETS || tile->in_mask[row + i])
            mb_tile_add_target(tile, row + i - 1, record->tokens[i]);
    tile->records++;
    tile->row_first[tile->records] = tile->tokens;
    tile->head_first[tile->records] = tile->heads;
done:
    return status;
}

mb_status mb_tile_read(mb_tile *tile, mb_shard *shard, const mb_tile_plan *plan, int64_t index, int64_t limit,
                       mb_tile_targets targets)
{
    mb_status status = MB_OK;
    mb_shard_record record;
    const int64_t n = plan->first[index + 1] - plan->first[index];
    mb_tile_reset(tile);
    MB_TRY(grow_records(tile, n));
    tile->record = plan->order + plan->first[index];
    tile->row_first[0] = tile->head_first[0] = 0;
    for (int64_t i = 0; i < n; i++) {
        MB_TRY(mb_shard_read(shard, tile->record[i], &record));
        MB_TRY(add_record(tile, &record, limit, targets));
    }
done:
    return status;
}
