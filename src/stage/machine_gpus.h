/* machine_gpus: the GPUs of a node by NVIDIA's management library, and whether energy can be counted.
 *
 * Layer: stage.  Uses: measure (energy), ops, machine_report.
 */
#ifndef MB_MACHINE_GPUS_H
#define MB_MACHINE_GPUS_H

#include "ops/ops.h"
#include "stage/machine_report.h"

/* "4 x NVIDIA H100 80GB HBM3, 79.6 GiB each, driver 570.86.15"; "" when there are none, or nobody tells. */
void mb_machine_gpus_summary(char *out_text, size_t bytes);
/* Rank 0: a line for each GPU of its node, what counts its runs' energy, and the keys "backend",
 * "gpu_list" and "energy_source" of the report's JSON. */
mb_status mb_machine_gpus_report(mb_machine_report *report, const mb_ops *ops);
/* Memory of the smallest GPU of this node; 0: there is none, or nobody tells. */
double mb_machine_gpus_memory(void);

#endif
