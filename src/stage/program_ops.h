/* program_ops: which backend a program computes with, and which GPU of its node is a rank's own.
 *
 * Layer: stage.  Uses: program, ops, comm.
 *
 * Ranks of a node say which GPUs they see (Slurm may show every task one of its own, and others all of them),
 * and all come to the same division: in the order of ranks, each takes the one of those it sees that has
 * fewest ranks. "auto" takes the GPUs where every rank of the job gets one to itself, or gpu.share is set,
 * else the CPU.
 */
#ifndef MB_PROGRAM_OPS_H
#define MB_PROGRAM_OPS_H

#include "stage/program.h"

enum { MB_PROGRAM_GPUS = 16, MB_PROGRAM_GPU_NAME = 96 };

/* What a rank sees, by number: names that tell GPUs of a node apart. */
typedef struct mb_program_gpus {
    int count; /* those beyond the first MB_PROGRAM_GPUS are left out */
    char name[MB_PROGRAM_GPUS][MB_PROGRAM_GPU_NAME];
} mb_program_gpus;

/* seen: of the ranks of one node, in order. out_gpu[i]: number among those that rank i sees, -1: it sees
 * none. Returns how many ranks the GPU with most has; 0: nobody has one. */
int mb_program_gpus_divide(const mb_program_gpus *seen, int ranks, int *out_gpu);

/* Collective. The backend by options.backend, options.share_gpu and options.threads, the same on all ranks.
 * MB_EUSAGE: "cuda" with fewer GPUs than ranks on a node. */
mb_status mb_program_ops_create(mb_program *program);

#endif
