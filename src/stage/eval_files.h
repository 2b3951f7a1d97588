/* eval_files: the result files of an evaluation.
 *
 * Layer: stage.  Uses: base.
 *
 * output.dir/results.json holds no dates, so equal numbers give equal bytes;
 * output.dir/<model_name_sanitized>/results_<time>.json is the harness's own shape and place.
 */
#ifndef MB_EVAL_FILES_H
#define MB_EVAL_FILES_H

#include "stage/program.h"

/* results: object with what the harness calls results, groups, configs ..., and "perplexity". Members for the
 * dated file are added to it. */
mb_status mb_eval_files_write(const mb_program *program, const char *model, const char *opt_adapter,
                              int64_t max_length, int64_t limit, json_t *results, double seconds);

#endif
