/* eval_tasks: the multiple-choice tasks of one evaluation: opened together, scored one after another.
 *
 * Layer: stage.  Uses: text (tasks), measure (choice), store.
 */
#ifndef MB_EVAL_TASKS_H
#define MB_EVAL_TASKS_H

#include "measure/choice.h"
#include "stage/program.h"
#include "stage/program_options.h"

typedef struct mb_eval_tasks {
    mb_task **task; /* [count] */
    int64_t count;
} mb_eval_tasks;

/* Read every task of eval.tasks ("kind=file" or "name:kind=file"). MB_EUSAGE when two have one name: nothing
 * is scored before that is known. */
mb_status mb_eval_tasks_open(const mb_eval_program *options, mb_eval_tasks *out_tasks);
void mb_eval_tasks_close(mb_eval_tasks *tasks);

/* Score all: members of `results` in the harness's shape, /choice/<task>/... in the file (rank 0; NULL
 * elsewhere), samples when asked for. Collective. */
mb_status mb_eval_tasks_run(mb_program *program, mb_lm *lm, const mb_eval_tasks *tasks, json_t *results,
                            mb_h5 *opt_file);

#endif
