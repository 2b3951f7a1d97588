/* lease: one job at a time in a run folder.
 *
 * Layer: store.  Uses: base.
 *
 * The file `<folder>/lease` appears whole or not at all, and only where none is: {"host", "pid", "start",
 * "boot", "job", "restart"}: start is the process's start time in the system's ticks, boot the id of the
 * host's boot, job and restart the Slurm job and how often it was requeued (both "" elsewhere). It is stale
 * when on this host its process is gone (its pid free or used by another process, or the host was booted
 * since), or when it is of an earlier run of our own Slurm job.
 */
#ifndef MB_LEASE_H
#define MB_LEASE_H

#include "base/status.h"

typedef struct mb_lease mb_lease;

/* MB_EEXIST names who holds it and how to break it. */
mb_status mb_lease_open(const char *folder, mb_lease **out_lease);
/* Give it back (only when it is still ours). NULL is fine. */
void mb_lease_close(mb_lease **lease);

#endif
