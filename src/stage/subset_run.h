/* subset_run: moe-subset from its inputs to its files.
 *
 * Layer: stage.  Uses: subset_inputs, subset_solve, subset_retrain, subset_files, gate_inputs.
 */
#ifndef MB_SUBSET_RUN_H
#define MB_SUBSET_RUN_H

#include "stage/program.h"

/* smo_tables/, subset.h5 and results.json in the run folder, the tables of limits in the log. Collective. */
mb_status mb_subset_run(mb_program *program);

#endif
