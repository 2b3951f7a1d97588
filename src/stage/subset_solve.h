/* subset_solve: the tables of study C's subset search: which experts to keep under latency and energy limits.
 *
 * Layer: stage.  Uses: choose (subset), comm.
 *
 * Sets are chosen by the training questions; what they are worth on the test questions stands beside them,
 * and beside that the best set of the test questions under the same limits: no choice could do better.
 */
#ifndef MB_SUBSET_SOLVE_H
#define MB_SUBSET_SOLVE_H

#include "choose/subset.h"

typedef struct mb_subset_row {
    mb_subset_limits limits; /* INFINITY: none; of "pareto" and "single": none */
    mb_subset_found train;   /* set 0: none meets the limits */
    int64_t test_right;      /* of that set */
    mb_subset_found optimum; /* on the test questions; set 0 in "pareto" and "single" */
    int64_t bound;           /* no set is right more often on the training questions; 0: not asked */
    bool is_proved;
    int64_t retrained_right; /* on the test questions, with a gate trained on this set alone; -1: none */
} mb_subset_row;

enum {
    MB_SUBSET_TABLE_SINGLE,       /* every expert alone, then all together */
    MB_SUBSET_TABLE_LATENCY,      /* latency limits alone */
    MB_SUBSET_TABLE_ENERGY,       /* energy limits alone */
    MB_SUBSET_TABLE_BOTH,         /* every pair of them, energy changing faster */
    MB_SUBSET_TABLE_AUTO_LATENCY, /* the same with the deciles of what was measured */
    MB_SUBSET_TABLE_AUTO_ENERGY,
    MB_SUBSET_TABLE_AUTO,
    MB_SUBSET_TABLE_PARETO, /* nothing beats these sets on the training questions */
    MB_SUBSET_TABLES
};
const char *mb_subset_solve_name(int table); /* "single", "latency" ... */

typedef struct mb_subset_solution {
    mb_subset_row *rows[MB_SUBSET_TABLES];
    int64_t count[MB_SUBSET_TABLES];
    bool is_exhaustive;
    mb_subset_table train, test; /* of an exhaustive one */
    mb_subset_work work;         /* of all searches together */
    int64_t checked;             /* pairs of limits that branch and bound solved too */
} mb_subset_solution;

typedef struct mb_subset_solve_options {
    bool is_exhaustive, check;
    double seconds;
    int threads;
    const double *latency, *energy; /* limits, rising */
    int64_t latencies, energies;
} mb_subset_solve_options;

/* Collective; the same on every rank. MB_ENUMERIC: branch and bound found another set than the sweep (a
 * defect). */
mb_status mb_subset_solve(mb_comm *comm, const mb_subset *train, const mb_subset *test,
                          const mb_subset_solve_options *options, mb_subset_solution *out_solution);
void mb_subset_solution_reset(mb_subset_solution *solution);

#endif
