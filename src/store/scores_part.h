/* scores_part: the list of parts of a score file, for joining them; embeddings are kept in such parts too.
 *
 * Layer: store, only for scores*.c and embeddings.c.  Uses: scores.
 *
 * A part file, format "moebatch-scores-part" version 1: /scores/<name> f64 [rows], /layers/<name> f32 [rows,
 * L]; attributes key, first, rows.
 */
#ifndef MB_SCORES_PART_H
#define MB_SCORES_PART_H

#include "store/scores.h"

typedef struct mb_scores_part_file {
    char *path;
    int64_t first, rows;
} mb_scores_part_file;

/* The folder of the parts of `path` (mb_free); NULL on no memory. */
char *mb_scores_part_folder(const char *path);
/* Parts of this key by their first row; those of other keys are removed. */
mb_status mb_scores_part_list(const char *path, const char *key, mb_scores_part_file **out_parts,
                              int64_t *out_count);
void mb_scores_part_free_list(mb_scores_part_file **parts, int64_t count);

/* Of scores_join.c: a file being joined. */
typedef struct mb_scores_join_state {
    mb_h5 *out;
    mb_scores_part_file *parts;
    int64_t count;
} mb_scores_join_state;
/* Find the parts, check that they hold every row once (MB_EFORMAT names the gap), begin the file with its
 * format, version 1, the shard's hash and attributes (nested objects and lists as JSON text). Start
 * zeroed; reset in any case. */
mb_status mb_scores_join_start(const char *path, const char *key, mb_shard *shard, const char *format,
                               const json_t *opt_attributes, mb_scores_join_state *join);
/* The records' own columns and the sources; then the file appears. */
mb_status mb_scores_join_end(mb_scores_join_state *join, const mb_shard *shard);
void mb_scores_join_reset(mb_scores_join_state *join);

#endif
