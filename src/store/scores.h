/* scores: per-record scores of one corpus in one HDF5 file, written in parts by any number of ranks, joined.
 *
 * Layer: store.  Uses: base, h5, shard.
 *
 * File, format "moebatch-scores" version 1 (N records, L layers of routers):
 *   /scores/<name>   f64 [N]     one dataset per score: good_mass, good_logits, perplexity, entropy,
 *                                bytes_per_token, length, random, repeats ...
 *   /layers/<name>   f32 [N, L]  per layer, for scores that have layers
 *   /record_hash u64 [N], /source u16 [N], /source_index i64 [N], /byte_offset i64 [N],
 *   /byte_length i64 [N], /source_names, /source_files: as in the shard; /tokens i64 [N]: their number
 *   /provenance/shard_files string: paths of the shards
 *   attributes: format, version, shard (hash), columns (JSON list of names), layers (JSON list of layer
 *   numbers), flops_per_token/<name>, higher_is_better/<name> (0, 1); of the caller: model, options ...
 */
#ifndef MB_SCORES_H
#define MB_SCORES_H

#include "base/json.h"
#include "store/h5.h"
#include "store/shard.h"

typedef struct mb_scores_column {
    char name[48];
    bool has_layers;
    double flops_per_token; /* forward cost of getting this score alone; 0: no model needed */
    bool higher_is_better;
} mb_scores_column;

/* A part: rows [first, first+rows) of all columns, in memory. */
typedef struct mb_scores_part {
    int64_t first, rows;
    double *values; /* [C, rows] */
    float *layers;  /* [C, rows, L]; only columns with has_layers are meaningful */
} mb_scores_part;

/* Parts live as `<path>.parts/<first>-<end>.h5`, written aside and renamed; key identifies the work (hash of
 * shard, model, options): parts with another key are ignored and removed. */
mb_status mb_scores_part_write(const char *path, const char *key, const mb_scores_column *columns,
                               int64_t column_count, int64_t layer_count, const mb_scores_part *part);
/* Is the part with this range there, whole and of this key? */
bool mb_scores_part_is_done(const char *path, const char *key, int64_t first, int64_t rows);
/* Its path: a new block, NULL on no memory. */
char *mb_scores_part_path(const char *path, int64_t first, int64_t rows);
/* Join all parts of [0, N) into `path` (one process), check that every row is there once (MB_EFORMAT names
 * the gap). The parts stay, to be removed when the joined file is on record. */
mb_status mb_scores_join(const char *path, const char *key, mb_shard *shard, const mb_scores_column *columns,
                         int64_t column_count, const int64_t *layers, int64_t layer_count,
                         const json_t *attributes);
/* Remove the folder of the parts; none is fine. A part that a late share of the work writes meanwhile may
 * stay (a warning). */
void mb_scores_parts_remove(const char *path);

typedef struct mb_scores mb_scores;
mb_status mb_scores_open(const char *path, mb_scores **out_scores);
void mb_scores_close(mb_scores **scores);
int64_t mb_scores_count(const mb_scores *scores);
int64_t mb_scores_columns(const mb_scores *scores);
int64_t mb_scores_layers(const mb_scores *scores); /* L */
mb_h5 *mb_scores_file(const mb_scores *scores);    /* borrowed, for attributes (shard, model, options) */
const mb_scores_column *mb_scores_column_get(const mb_scores *scores, int64_t i);
/* Column by name (MB_ENOTFOUND lists the names there are): rows [first, first+rows). */
mb_status mb_scores_read(const mb_scores *scores, const char *name, int64_t first, int64_t rows, double *out);
/* Mean over the given layer positions of the per-layer values (selecting by other layers without scoring
 * again). */
mb_status mb_scores_read_layers(const mb_scores *scores, const char *name, const int64_t *layers, int64_t n,
                                int64_t first, int64_t rows, double *out);
/* Per-record columns, as in the shard; borrowed, [N]. */
typedef struct mb_scores_records {
    const uint64_t *record_hash;
    const uint16_t *source;
    const int64_t *source_index, *byte_offset, *byte_length, *tokens;
    const char *const *source_names;
    const char *const *source_files;
    int64_t source_count;
} mb_scores_records;
mb_status mb_scores_records_view(const mb_scores *scores, mb_scores_records *out_records);

#endif
