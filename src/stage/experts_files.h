/* experts_files: the files of a run of moe-infer experts.
 *
 * Layer: stage.  Uses: store (h5, outputs), measure (latency: quantiles), experts_fuse.
 *
 *   answers.jsonl   a line for each question, in their order: the same for any number of ranks when nobody
 *                   was late: {id, source, kind, answer (option, list of options, text; null: none), right,
 *                   answered [names], missing [names], why {name: late|dead|unable}, weights {name: the
 *                   gate's}}
 *   requests.h5     format "moebatch-requests" version 1, N requests of Q questions to X experts, seconds on
 *                   the gate's clock: /question, /expert, /outcome (into /outcome_names), /sent, /held,
 *                   /round_trip, /queue, /compute, /transfer f64, /batch, /tokens i32 [N];
 *                   /question_began, _embed, _gate, _fuse, _total f64 [Q] of the questions;
 *                   /id, /expert_names, /rank
 *   results.json    accuracies, latencies, who was missing how often
 */
#ifndef MB_EXPERTS_FILES_H
#define MB_EXPERTS_FILES_H

#include "stage/experts_fuse.h"

mb_status mb_experts_files_answers(const mb_experts_table *table, const char *path);
mb_status mb_experts_files_requests(const mb_experts_table *table, const char *path);

/* state [X]: what became of the experts. A table of it all goes to the log. *out_accuracy: of all
 * questions. */
mb_status mb_experts_files_results(const mb_experts_table *table, const mb_experts_options *options,
                                   const mb_experts_ask_state *state, const char *path, double *out_accuracy,
                                   int64_t *out_incomplete);

#endif
