/* tile: records computed together in one forward pass, formed by the data alone.
 *
 * Layer: measure.  Uses: store (shard), model (lm).
 */
#ifndef MB_TILE_H
#define MB_TILE_H

#include "model/lm.h"
#include "store/scores.h"
#include "store/shard.h"
#include "store/share.h"

/* Tokens of a record that a pass of these limits sees: at most limit (> 0). */
int64_t mb_tile_length(const mb_shard *shard, int64_t record, int64_t limit);
/* The limit of records: asked (0: none), but never more than the positions of the models (NULL: none). Warns
 * when it cuts what was asked for. */
int64_t mb_tile_limit(int64_t asked, const mb_lm *opt_a, const mb_lm *opt_b);

/* Windows are runs of consecutive records of at least window_tokens tokens (the last may have fewer). Within
 * a
 * window records are ordered longest first (equal lengths: by number) and cut into tiles of at most
 * tile_tokens tokens, so that a tile's segments are of about one length; a longer record is a tile of its
 * own. */
typedef struct mb_tile_plan {
    int64_t count, windows;
    int64_t *first;  /* [count + 1] place of each tile's first record in order; first[count] = records */
    int64_t *order;  /* [records] record numbers */
    int64_t *window; /* [windows + 1] first tile; window w has records first[window[w]] to
                        first[window[w + 1]] of the shard, in some order */
    int64_t tokens;  /* of all records, as cut */
    int64_t cut;     /* records longer than limit */
    double context;  /* mean number of tokens a token attends to */
} mb_tile_plan;
mb_status mb_tile_plan_create(const mb_shard *shard, int64_t limit, int64_t tile_tokens,
                              int64_t window_tokens, mb_tile_plan *out_plan);
/* What a share has of the plan, its windows being the units: tiles, records, tokens as cut. */
typedef struct mb_tile_part {
    int64_t windows, tiles, records, tokens;
} mb_tile_part;
mb_tile_part mb_tile_plan_share(const mb_tile_plan *plan, mb_share share, const mb_shard *shard,
                                int64_t limit);
/* The files of a share's windows as parts of the result `path` (scores.h), relative to its folder: a new JSON
 * array. */
mb_status mb_tile_plan_files(const mb_tile_plan *plan, mb_share share, const char *path, json_t **out_names);
/* Tokens of all records, as cut. */
int64_t mb_tile_tokens(const mb_shard *shard, int64_t limit);
/* window_tokens where windows are the parts of a result, a file each, what ranks and shares take, and the
 * most that a restart repeats per rank: about 64 of them in a small corpus, of 64 Ki tokens in a larger
 * one, never many more than 1024; a whole tile at least, so that small corpora are not computed in small
 * pieces. */
int64_t mb_tile_part_tokens(int64_t tokens, int64_t tile_tokens);
void mb_tile_plan_reset(mb_tile_plan *plan);

/* A packed batch with its memory, reused from tile to tile. Start zeroed. */
typedef struct mb_tile {
    int32_t *ids, *positions, *offsets; /* rows; segments + 1 */
    int32_t *head_row, *targets;        /* heads */
    int64_t tokens, segments, heads;
    int64_t capacity;
    uint8_t
        *in_mask; /* [rows] of mb_tile_read: is the row's token in the loss mask (all, where there is none) */
    int64_t *row_first, *head_first; /* [records + 1], of mb_tile_read */
    const int64_t *record;           /* [records] their numbers; the plan's */
    int64_t records, record_capacity;
} mb_tile;
void mb_tile_destroy(mb_tile *tile);
void mb_tile_reset(mb_tile *tile);
/* Append a segment of n > 0 tokens; its rows are the last n. */
mb_status mb_tile_add(mb_tile *tile, const uint32_t *tokens, int64_t n);
/* The loss of `target` after row `row` (rising over the calls, as many as there are rows at most). */
void mb_tile_add_target(mb_tile *tile, int64_t row, uint32_t target);
mb_lm_batch mb_tile_batch(const mb_tile *tile);

typedef enum mb_tile_targets {
    MB_TILE_NO_TARGETS,
    MB_TILE_ALL_TARGETS,   /* every token of a record but its first */
    MB_TILE_MASKED_TARGETS /* those of them in the loss mask; all where the shard has none */
} mb_tile_targets;
/* How many of them a record has. */
int64_t mb_tile_count_targets(const mb_shard_record *record, int64_t limit, mb_tile_targets targets);
/* The records of the plan's tile `index` instead of what the tile held. */
mb_status mb_tile_read(mb_tile *tile, mb_shard *shard, const mb_tile_plan *plan, int64_t index, int64_t limit,
                       mb_tile_targets targets);

#endif
