/* infer_one: one prompt from the command line; its continuation goes to standard output.
 *
 * Layer: stage.  Uses: serve.
 */
#ifndef MB_INFER_ONE_H
#define MB_INFER_ONE_H

#include "stage/infer_prompts.h"
#include "stage/program.h"

/* Every rank computes, the first prints. */
mb_status mb_infer_one_run(const mb_program *program, mb_lm *lm, mb_infer_prompts *prompts,
                           const mb_ids *ends);

#endif
