/* machine_rates: what a node computes and reads per second, for forecasts.
 *
 * Layer: stage.  Uses: ops, comm, machine_report.
 */
#ifndef MB_MACHINE_RATES_H
#define MB_MACHINE_RATES_H

#include "stage/machine_ranks.h"

/* Of all ranks on rank 0's node together, each with its threads, all at the same time. */
typedef struct mb_machine_rates {
    double gflops_f32, gflops_bf16; /* x [512, 2048] W^T [2048, 2048] */
    double memory_gb_per_s;         /* read */
    int threads;
} mb_machine_rates;

/* Collective; a few seconds. The result is right on rank 0. */
mb_status mb_machine_rates_measure(mb_program *program, const mb_machine_rank *ranks,
                                   mb_machine_rates *out_rates);
/* Rank 0. */
mb_status mb_machine_rates_report(mb_machine_report *report, const mb_machine_rates *rates);

#endif
