/* eval_compare: moe-eval compare: evaluations of several models on the same category files as one table.
 *
 * Layer: stage.  Uses: compare_result, compare_table, category_files.
 *
 * Needs no model: it reads what `moe-eval eval.categories=...` of each model left.
 */
#ifndef MB_EVAL_COMPARE_H
#define MB_EVAL_COMPARE_H

#include "stage/program.h"
#include "stage/program_options.h"

/* compare.txt (also in the log), compare.json and compare.h5 in output.dir. The first rank does it. MB_EDATA:
 * the evaluations are not of the same records. Collective. */
mb_status mb_eval_compare_run(mb_program *program);

#endif
