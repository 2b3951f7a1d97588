/* machine_disk: what a folder's file system is, how fast, and whether it can do what runs ask of it.
 *
 * Layer: stage.  Uses: base, comm, machine_report.
 */
#ifndef MB_MACHINE_DISK_H
#define MB_MACHINE_DISK_H

#include "comm/comm.h"
#include "stage/machine_ranks.h"

typedef struct mb_machine_disk {
    char type[32];                               /* "lustre", "ext4", ... or the kernel's number */
    char error[1024];                            /* what went wrong; "" when all was measured */
    double bytes, bytes_free, files, files_free; /* files 0: the file system does not count them */
    double write_mb_per_s;                       /* 64 MB, flushed; 0: not measured */
    double read_mb_per_s;                        /* the same, after asking the kernel to forget them */
    double create_seconds;                       /* 200 small files */
    bool has_flock, has_link, is_measured;
    int blind_rank; /* the first that did not see rank 0's file, -1: all did */
} mb_machine_disk;

/* Collective. Rank 0 works in a folder of its own below dir, which it removes again. Fails only when ranks
 * do. */
mb_status mb_machine_disk_measure(mb_comm *comm, const char *dir, mb_machine_disk *out_disk);
/* Rank 0. */
mb_status mb_machine_disk_report(mb_machine_report *report, const char *dir, const mb_machine_disk *disk,
                                 const mb_machine_rank *ranks);

#endif
