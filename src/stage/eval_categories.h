/* eval_categories: perplexity and accuracy of one model on category files.
 *
 * Layer: stage.  Uses: measure (category), serve (generate), eval_generate, category_files.
 *
 * Category by category: losses of all records, then greedy answers to those that expect one, then which are
 * right. Each leaves a file in <output.dir>/parts when it is whole, and answers come in parts of their own,
 * so a run that is stopped goes on where it was. Ranks share tiles and parts of answers; the results are the
 * same for any number of them.
 */
#ifndef MB_EVAL_CATEGORIES_H
#define MB_EVAL_CATEGORIES_H

#include "stage/program.h"
#include "stage/program_options.h"

/* Member "categories" and "cost" of `results`, categories.h5 and answers_<name>.jsonl in the run folder, a
 * line per category in the log. Collective. */
mb_status mb_eval_categories_run(mb_program *program, mb_lm *lm, const mb_named_paths *files,
                                 json_t *results);
/* Remove the parts, when the run's record is written. One rank. */
mb_status mb_eval_categories_clean(const mb_program *program);

#endif
