/* lease: one job at a time in a run folder.
 *
 * Layer: store.  Uses: base.
 *
 * The file `<folder>/<name>` ("lease") appears whole or not at all, and only where none is: {"host", "pid",
 * "start", "boot", "job", "restart", "array_job", "array_task"}: start is the process's start time in the
 * system's ticks, boot the id of the host's boot, job and restart the Slurm job and how often it was
 * requeued, array_job and array_task the element of an array (all "" elsewhere). It is stale when on this
 * host its process is gone (its pid free or used by another process, or the host was booted since), or when
 * it is of an earlier run of our own Slurm job. What only the scheduler knows (a job of another host that is
 * gone) is judged where jobs are started (slurm/lib.sh), by removing the file.
 *
 * `<folder>/<name>.last` says who took the lease last and stays when it is given back, so that a process that
 * was cut off while another did its work can see that (mb_lease_check).
 */
#ifndef MB_LEASE_H
#define MB_LEASE_H

#include <stdbool.h>

#include "base/status.h"

typedef struct mb_lease mb_lease;

/* name: NULL is "lease". MB_EEXIST names who holds it and how to break it. */
mb_status mb_lease_open(const char *folder, const char *opt_name, mb_lease **out_lease);
/* Give it back (only when it is still ours). NULL is fine. */
void mb_lease_close(mb_lease **lease);
/* Its folder was renamed with the lease in it: the lease is there now. */
mb_status mb_lease_move(mb_lease *lease, const char *folder);
/* MB_OK while the lease is ours; MB_EEXIST with a message when the file is gone or another's. */
mb_status mb_lease_is_mine(const mb_lease *lease);

/* To be asked right before something is written that a successor of ours must not lose: a checkpoint's
 * rename, done.json. Looks at the files only, so it is asked by the process that took the lease (rank 0);
 * reads two small files. MB_OK: `<folder>/lease` is this process's; or nobody ever took one here (no
 * lease, no lease.last, or no folder: a caller that runs without). MB_EEXIST: another holds it, or took it
 * since, or ours was removed. */
mb_status mb_lease_check(const char *folder);
/* The same for the folder that a file is in. */
mb_status mb_lease_check_for(const char *path);
/* Does a process that may be alive hold the lease of that name? Changes nothing. */
bool mb_lease_is_held(const char *folder, const char *opt_name);

#endif
