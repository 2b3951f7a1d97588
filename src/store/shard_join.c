/* shard_join: see the header.
 *
 * Contents: 1. groups  2. writing a group  3. run
 * Records come in the order of the inputs, whatever rank or round made them. What comes from one record of a
 * file (its pieces, the two sides of a pair) is one group: held back, left out, repeated and shuffled
 * together.
 */
#include "store/shard_join.h"

#include <string.h>

#include "base/memory.h"
#include "store/shard_shuffle.h"
#include "store/shard_stream.h"

/* ---- 1. groups ---- */

typedef struct group {
    mb_shard_record *records; /* [count]; tokens are set by point_group */
    int64_t count, capacity;
    uint32_t *tokens; /* of all, one after another */
    uint8_t *mask;
    int64_t token_count, token_capacity;
} group;

static mb_status add_record(group *g, const mb_shard_record *record)
{
    mb_status status = MB_OK;
    if (g->count == g->capacity) {
        const int64_t capacity = 2 * g->capacity + 4;
        mb_shard_record *grown = mb_realloc(g->records, (size_t)capacity, sizeof *grown);
        if (grown == NULL) MB_RAISE(MB_ENOMEM, "no memory for the pieces of a record");
        g->records = grown;
        g->capacity = capacity;
    }
    if (g->token_count + record->count > g->token_capacity) {
        const int64_t capacity = 2 * (g->token_count + record->count);
        uint32_t *tokens = mb_realloc(g->tokens, (size_t)capacity, sizeof *tokens);
        if (tokens != NULL) g->tokens = tokens;
        uint8_t *mask = tokens != NULL ? mb_realloc(g->mask, (size_t)capacity, 1) : NULL;
        if (mask == NULL) MB_RAISE(MB_ENOMEM, "no memory for a record of %lld tokens", (long long)capacity);
        g->mask = mask;
        g->token_capacity = capacity;
    }
    memcpy(g->tokens + g->token_count, record->tokens, (size_t)record->count * sizeof *g->tokens);
    if (record->loss_mask != NULL) memcpy(g->mask + g->token_count, record->loss_mask, (size_t)record->count);
    g->token_count += record->count;
    g->records[g->count++] = *record;
done:
    return status;
}

/* The records' pointers into the group's own tokens, which do not move any more. */
static void point_group(group *g)
{
    for (int64_t r = 0, at = 0; r < g->count; at += g->records[r++].count) {
        g->records[r].tokens = g->tokens + at;
        if (g->records[r].loss_mask != NULL) g->records[r].loss_mask = g->mask + at;
    }
}

static void free_group(group *g)
{
    mb_free(g->records);
    mb_free(g->tokens);
    mb_free(g->mask);
}

/* ---- 2. writing a group ---- */

static void count_group(const group *g, mb_shard_tally *tally)
{
    bool is_cut = false, is_split = false;
    ++tally->samples;
    for (int64_t r = 0; r < g->count; ++r) {
        ++tally->records;
        tally->tokens += g->records[r].count;
        tally->bytes += g->records[r].text_bytes;
        is_cut = is_cut || (g->records[r].label & MB_SHARD_JOIN_CUT) != 0;
        is_split = is_split || (g->records[r].label & MB_SHARD_JOIN_SPLIT) != 0;
    }
    tally->cut += is_cut;
    tally->split += is_split;
}

static mb_status write_group(mb_shard_join *join, mb_shard_shuffle *opt_shuffle, group *g)
{
    mb_status status = MB_OK;
    bool is_held;
    const uint16_t source = g->records[0].source;
    const int64_t index = g->records[0].source_index;
    const mb_shard_draw *draw = &join->draws[source];
    const int64_t copies = mb_shard_mix_copies(draw, index, &is_held);
    point_group(g);
    for (int64_t c = 0; c < copies; ++c) {
        count_group(g, is_held ? &join->held_tallies[source] : &join->tallies[source]);
        if (!is_held && opt_shuffle != NULL) {
            MB_TRY(
                mb_shard_shuffle_add(opt_shuffle, mb_shard_mix_place(draw, index, c), g->records, g->count));
            continue;
        }
        for (int64_t r = 0; r < g->count; ++r)
            MB_TRY(mb_shard_writer_add(is_held ? join->held_writer : join->writer, &g->records[r]));
    }
done:
    g->count = g->token_count = 0;
    return status;
}

/* ---- 3. run ---- */

static mb_status write_all(mb_shard_join *join, mb_shard_shuffle *opt_shuffle, group *g)
{
    mb_status status = MB_OK;
    mb_shard_stream *stream = NULL;
    mb_shard_record record;
    MB_TRY(mb_shard_stream_open(join->parts, join->rounds, join->ranks, &stream));
    for (;;) {
        MB_TRY(mb_shard_stream_next(stream, &record));
        const bool is_end = record.count < 0;
        if (g->count > 0 && (is_end || record.source != g->records[0].source ||
                             record.source_index != g->records[0].source_index))
            MB_TRY(write_group(join, opt_shuffle, g));
        if (is_end) break;
        MB_TRY(add_record(g, &record));
    }
done:
    mb_shard_stream_close(&stream);
    return status;
}

mb_status mb_shard_join_run(mb_shard_join *join)
{
    mb_status status = MB_OK;
    mb_shard_shuffle *shuffle = NULL;
    group g = {0};
    MB_TRY(mb_shard_writer_create(join->out_path, join->info, &join->writer));
    if (join->opt_validation_path != NULL)
        MB_TRY(mb_shard_writer_create(join->opt_validation_path, join->info, &join->held_writer));
    if (join->opt_shuffle_folder != NULL)
        MB_TRY(mb_shard_shuffle_create(join->opt_shuffle_folder,
                                       mb_shard_shuffle_buckets(join->shuffle_bytes), &shuffle));
    MB_TRY(write_all(join, shuffle, &g));
    if (shuffle != NULL) MB_TRY(mb_shard_shuffle_write(shuffle, join->writer));
done:
    mb_shard_shuffle_destroy(&shuffle);
    free_group(&g);
    return status;
}
