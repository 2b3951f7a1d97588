/* score_memory: what moe-score says of its memory.
 *
 * Layer: stage.  Uses: program, memory_report, measure (scorer).
 */
#ifndef MB_SCORE_MEMORY_H
#define MB_SCORE_MEMORY_H

#include "model/lm.h"
#include "stage/program.h"

/* The forecast as a log line, or, where the run's own figure of activations is known (not negative),
 * forecast and use in log and record. has_head: the source model computes losses. */
mb_status mb_score_memory_report(mb_program *program, mb_lm *opt_router, mb_lm *opt_source, bool has_head,
                                 int64_t activations);

#endif
