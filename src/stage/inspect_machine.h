/* inspect_machine: moe-inspect machine: does this machine, with this launcher, do what runs need?
 *
 * Layer: stage.  Uses: machine_ranks, machine_disk, machine_rates, machine_report.
 */
#ifndef MB_INSPECT_MACHINE_H
#define MB_INSPECT_MACHINE_H

#include "stage/program.h"

typedef struct mb_inspect_machine_options {
    char *dir, *name;
    bool measure;
} mb_inspect_machine_options;
const mb_option *mb_inspect_machine_option_table(int64_t *out_count);

/* Collective. Rank 0 prints facts and verdicts, and writes opt_out (JSON: name, date, cores, threads, mpi,
 * hdf5, ranks, hosts, file_system, disk_write_mb_per_s, disk_read_mb_per_s, verdicts; over several ranks
 * node_ or network_us and _gb_per_s; with measure gflops {f32, bf16} and memory_gb_per_s). MB_EIO when a
 * check came out broken. */
mb_status mb_inspect_machine_run(mb_program *program, const mb_inspect_machine_options *options,
                                 const char *opt_out);

#endif
