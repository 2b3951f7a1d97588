/* subset_inputs: what moe-subset reads: the experts' costs, and the limits asked for.
 *
 * Layer: stage.  Uses: choose (subset), gate_inputs, base.
 */
#ifndef MB_SUBSET_INPUTS_H
#define MB_SUBSET_INPUTS_H

#include "choose/subset.h"
#include "stage/named_paths.h"

/* Costs of the table's experts by name, from moe-bench's files: seconds of computing at the reference lengths
 * plus seconds of transfer (0 for all where the file has none), joules; seconds of fusing. MB_EDATA: an
 * expert is not in a file, or a figure is none; MB_EFORMAT: not such a file. */
mb_status mb_subset_inputs_costs(const char *latency_path, const char *energy_path, const mb_outputs *outputs,
                                 mb_subset_costs *out_costs);

/* Rising limits of a list; mb_free. MB_EUSAGE: a limit that is no number, not above 0, or twice. */
mb_status mb_subset_inputs_limits(const char *key, const char *list, double **out_limits, int64_t *out_count);

/* Leaves out the questions that stand in one of these files too (what experts were trained on). rows [those
 * that are left]: their places before, rising; mb_free. MB_EDATA: none is left. */
mb_status mb_subset_inputs_leave_out(mb_outputs **outputs, const mb_named_paths *seen, int64_t **out_rows,
                                     int64_t *out_shared);

#endif
