/* bench_run: moe-bench: measuring experts, and joining what was measured.
 *
 * Layer: stage.  Uses: bench_rounds, bench_transfer, bench_result, named_paths.
 */
#ifndef MB_BENCH_RUN_H
#define MB_BENCH_RUN_H

#include "stage/program.h"

/* bench.h5, latency.json and energy.json in the run folder. With ranks the experts are measured by rank after
 * rank, one at a time, so that they do not disturb each other. Collective. */
mb_status mb_bench_run(mb_program *program);
/* Mode join: the same files of several folders. */
mb_status mb_bench_join(mb_program *program);

#endif
