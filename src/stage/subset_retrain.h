/* subset_retrain: gates trained on a chosen subset alone, beside the gate of all experts masked to it.
 *
 * Layer: stage.  Uses: learn (gate), choose (subset), gate_inputs, gate_fit, subset_solve.
 */
#ifndef MB_SUBSET_RETRAIN_H
#define MB_SUBSET_RETRAIN_H

#include "stage/subset_options.h"
#include "stage/subset_solve.h"

typedef struct mb_subset_retrain {
    const mb_outputs *train, *test;
    const mb_subset_options *options;
    const mb_subset_costs *costs;
    const char *embeddings_train, *embeddings_test; /* files */
    const int64_t *train_rows, *test_rows;          /* which of their rows the questions are, rising */
    int64_t train_total, test_total;                /* rows of the files */
} mb_subset_retrain;

/* Fills retrained_right of every row with a set of at least two experts that was chosen under limits (or is
 * all of them), each different set once; -1 where no member is right on any question to learn from. The gate
 * learns from the training questions by moe-gate's rules. Ranks share the sets out; the same numbers for any
 * number of them. *out_sets: how many. Collective. */
mb_status mb_subset_retrain_run(mb_comm *comm, const mb_subset_retrain *data, const mb_subset_program *own,
                                mb_subset_solution *solution, int64_t *out_sets);

#endif
