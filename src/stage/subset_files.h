/* subset_files: the tables of a subset search in all their forms.
 *
 * Layer: stage.  Uses: subset_solve, table_files, store (h5).
 *
 * subset.h5, format "moebatch-subset" version 1; X experts, bit e of a set is expert e:
 *   /expert_names [X], /latency f64 [X] compute + transfer, /energy f64 [X]
 *   /tables/<name>/ for single, latency, energy, both, auto_latency, auto_energy, auto, pareto, a row each:
 *     latency_limit, energy_limit f64 (inf: none), set i64 (0: none meets them), right i64 (training
 *     questions),
 *     latency, energy f64, test_right i64, optimum_set, optimum_right i64 (best on the test questions),
 *     bound i64, is_proved u8, retrained_right i64 (-1: none)
 *   /subsets/ of an exhaustive search, by set [2^X]: right, test_right i32, latency, energy f64
 *   attributes: format, version, questions, test_questions, rule, top_k, limits, method, aggregation_seconds,
 *   nodes, evaluations, pruned_bound, pruned_limits (branch and bound's work)
 */
#ifndef MB_SUBSET_FILES_H
#define MB_SUBSET_FILES_H

#include "stage/subset_options.h"
#include "stage/subset_solve.h"
#include "stage/table_files.h"

typedef struct mb_subset_result {
    const mb_subset_program *own;
    const mb_outputs *train, *test;
    const mb_subset_costs *costs;
    const mb_subset_solution *solution;
} mb_subset_result;

/* One table as text cells; mb_table_reset. */
mb_status mb_subset_files_table(const mb_subset_result *result, int table, mb_table *out_table);
/* <folder>/<name>.txt, .csv and .tex of every table; folder is made. */
mb_status mb_subset_files_tables(const mb_subset_result *result, const char *folder);
mb_status mb_subset_files_h5(const mb_subset_result *result, const char *path);
/* New reference. */
mb_status mb_subset_files_json(const mb_subset_result *result, json_t **out_json);

#endif
