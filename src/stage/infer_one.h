/* infer_one: one prompt from the command line; its continuation goes to standard output as it comes.
 *
 * Layer: stage.  Uses: serve, router_stats.
 */
#ifndef MB_INFER_ONE_H
#define MB_INFER_ONE_H

#include "stage/infer_prompts.h"
#include "stage/infer_ranks.h"
#include "stage/program.h"
#include "stage/router_stats.h"

/* Every rank (of a group: all together) computes, the first prints: the text alone, flushed whenever more of
 * it is final, with a line's end behind it; several samples one after another when they are whole. opt_shape:
 * the members' shares are logged. */
mb_status mb_infer_one_run(const mb_program *program, const mb_infer_ranks *ranks, mb_lm *lm,
                           mb_infer_prompts *prompts, const mb_ids *ends, const mb_router_shape *opt_shape);

#endif
