/* infer_file: a file of prompts -> generated.jsonl, and the shares of a fused model's members.
 *
 * Layer: stage.  Uses: infer_parts, infer_ranks, router_stats, program.
 */
#ifndef MB_INFER_FILE_H
#define MB_INFER_FILE_H

#include "stage/infer_prompts.h"
#include "stage/infer_ranks.h"
#include "stage/program.h"
#include "stage/router_stats.h"

/* What a run has open; its options are program->own. */
typedef struct mb_infer_file {
    mb_program *program;
    mb_infer_ranks ranks;
    mb_lm *lm;
    mb_infer_prompts *prompts;
    mb_ids ends;
    mb_router_shape shape;
    const mb_router_shape *opt_shape; /* &shape, when shares are wanted */
} mb_infer_file;

/* Collective. The run folder is begun before; it is finished here. */
mb_status mb_infer_file_run(const mb_infer_file *in);

#endif
