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

/* Of scores_join.c. Do the parts hold every row of [0, n) once? MB_EFORMAT names the gap. */
mb_status mb_scores_join_check(const char *path, const mb_scores_part_file *parts, int64_t count, int64_t n);
/* The records' own columns and the sources. */
mb_status mb_scores_join_records(mb_h5 *out, const mb_shard *shard);
/* Members of an object as attributes; nested objects and lists as JSON text. */
mb_status mb_scores_join_attributes(mb_h5 *out, const json_t *attributes);

#endif
