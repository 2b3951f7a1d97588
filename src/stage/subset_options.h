/* subset_options: the keys of moe-subset.
 *
 * Layer: stage.  Uses: learn (gate), base.
 */
#ifndef MB_SUBSET_OPTIONS_H
#define MB_SUBSET_OPTIONS_H

#include "base/option.h"
#include "learn/gate.h"

typedef struct mb_subset_program {
    mb_gate_options gate;                  /* of retrained gates */
    char *train, *test, *latency, *energy; /* files, or their folders */
    char *method, *rule, *limits;          /* subset.method, subset.rule, subset.limits */
    int64_t top_k;
    char *latency_limits, *energy_limits; /* lists */
    double seconds;                       /* of one search */
    bool check, retrain;
    char *embeddings_train, *embeddings_test, *targets;
    char *experts_data; /* subset.experts_data */
} mb_subset_program;
const mb_option *mb_subset_option_table(int64_t *out_count);

#endif
