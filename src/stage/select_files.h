/* select_files: summary.json and selection.h5 beside selected_data.jsonl.
 *
 * Layer: stage.  Uses: store.
 */
#ifndef MB_SELECT_FILES_H
#define MB_SELECT_FILES_H

#include "stage/program.h"
#include "store/scores.h"

/* summary.json {score, records, of, tokens, sources: {name: {available, selected, share}}} (also logged) and
 * selection.h5 {/record i64, /quality_score f64}; rank 0. */
mb_status mb_select_files_write(const mb_program *program, const char *score, const mb_scores *scores,
                                const int64_t *records, const double *quality, int64_t count);

#endif
