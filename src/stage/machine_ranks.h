/* machine_ranks: who runs where, on which cores and with how much memory; and whether ranks reach each other.
 *
 * Layer: stage.  Uses: comm, ops, machine_report.
 */
#ifndef MB_MACHINE_RANKS_H
#define MB_MACHINE_RANKS_H

#include "stage/machine_report.h"
#include "stage/program.h"

enum { MB_MACHINE_CPUS = 4096 };

/* One rank, as it sees itself. Plain bytes: it travels between ranks. */
typedef struct mb_machine_rank {
    char host[128], arithmetic[192];
    char gpu_text[160];                    /* machine_gpus.h; "" none */
    uint64_t cpus[MB_MACHINE_CPUS / 64];   /* it may run on */
    int32_t cpu_count, cpus_online, quota; /* quota: CPUs a control group allows, 0: no limit */
    int32_t threads, gpus;
    int64_t memory, memory_available, memory_limit; /* bytes; limit of the job's control group, 0: none */
    int64_t shared_memory_free;                     /* bytes of /dev/shm, -1: not there */
    int32_t file_limit;                             /* files that may be open */
    int32_t is_alone;                               /* one of several tasks, yet the only rank */
} mb_machine_rank;

/* Between the first rank and the last. */
typedef struct mb_machine_link {
    bool is_sum_right, is_data_right;
    double us, gb_per_s; /* half a round trip of 8 bytes; one way, 4 MiB messages. 0 with one rank */
} mb_machine_link;

/* Collective; program->ops is open. *out_ranks: one per rank on every rank, mb_free. */
mb_status mb_machine_ranks_collect(mb_program *program, mb_machine_rank **out_ranks);
/* Collective. */
mb_status mb_machine_link_measure(mb_comm *comm, mb_machine_link *out_link);

/* Rank 0: facts, verdicts, and the keys "ranks", "hosts" of the report's JSON. */
mb_status mb_machine_ranks_report(mb_machine_report *report, const mb_machine_rank *ranks, int n);
mb_status mb_machine_link_report(mb_machine_report *report, const mb_machine_rank *ranks, int n,
                                 const mb_machine_link *link);

#endif
