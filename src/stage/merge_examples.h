/* merge_examples: solved examples to be put in front of a benchmark's questions.
 *
 * Layer: stage.  Uses: merge_inputs.
 *
 * They come from a file of the questions' own form (MMLU's <subject>_dev.csv, MMLU-Pro's validation
 * questions, any other), or from AGIEval's few_shot_prompts.csv: a column for each of its files, a Python
 * literal a cell.
 */
#ifndef MB_MERGE_EXAMPLES_H
#define MB_MERGE_EXAMPLES_H

#include "stage/merge_inputs.h"

typedef struct mb_merge_examples mb_merge_examples;
/* Of file->opt_examples; NULL there gives none. An example that cannot be read is warned about and passed
 * over, or where is_strict MB_EDATA with its place. */
mb_status mb_merge_examples_open(const mb_merge_file *file, bool support, bool is_strict,
                                 mb_merge_examples **out_examples);
void mb_merge_examples_close(mb_merge_examples **examples);
int64_t mb_merge_examples_count(const mb_merge_examples *examples);
/* A new list of at most `limit` examples {question, options, answer} for a question: the first ones of its
 * subject (where both have one) and kind, none that asks the same. */
mb_status mb_merge_examples_get(const mb_merge_examples *examples, const mb_merge_body *body, int64_t limit,
                                json_t **out_list);

#endif
