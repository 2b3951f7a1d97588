/* machine_rates: what a node, or its GPUs, compute and move per second, for forecasts.
 *
 * Layer: stage.  Uses: ops, comm, machine_report.
 */
#ifndef MB_MACHINE_RATES_H
#define MB_MACHINE_RATES_H

#include "stage/machine_ranks.h"

/* Of all ranks on rank 0's node together, each with its threads, all at the same time. */
typedef struct mb_machine_rates {
    double gflops_f32, gflops_bf16; /* x [512, 2048] W^T [2048, 2048]; GPUs [4096, 8192] and [8192, 8192] */
    double memory_gb_per_s;         /* read; a GPU's own: read and written by a copy */
    double up_gb_per_s,
        down_gb_per_s; /* between the host's page-locked memory and the GPUs; 0 without GPUs */
    int threads, gpus;
} mb_machine_rates;

/* Collective; a few seconds. The result is right on rank 0. */
mb_status mb_machine_rates_measure(mb_program *program, const mb_machine_rank *ranks,
                                   mb_machine_rates *out_rates);
/* Rank 0. */
mb_status mb_machine_rates_report(mb_machine_report *report, const mb_machine_rates *rates);

#endif
