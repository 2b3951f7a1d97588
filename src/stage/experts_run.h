/* experts_run: moe-infer experts: models on different ranks answer questions together.
 *
 * Layer: stage.  Uses: program, serve (experts_ask, experts_serve), experts_gate, experts_models,
 * experts_files.
 *
 * Rank 0 is the gate's; see experts_options.h for who is where. Ranks agree and share only before the first
 * question and behind the last: in between there are messages alone, so that a rank may be slow or die.
 * Where one does not come back at the end, the others cannot end MPI in order: rank 0 closes all files and
 * ends the job.
 */
#ifndef MB_EXPERTS_RUN_H
#define MB_EXPERTS_RUN_H

#include "stage/experts_options.h"
#include "stage/program.h"
#include "stage/program_options.h"

/* moe-infer's own struct: the first member is what its other modes know. */
typedef struct mb_experts_program {
    mb_infer_program infer;
    mb_experts_options experts;
} mb_experts_program;

/* answers.jsonl, outputs.h5, requests.h5 and results.json in the run folder. Collective; does not return
 * when a rank is missing at the end. */
mb_status mb_experts_run(mb_program *program);

#endif
