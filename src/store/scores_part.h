/* scores_part: the list of parts of a score file, for joining them.
 *
 * Layer: store, only for scores*.c.  Uses: scores.
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

#endif
