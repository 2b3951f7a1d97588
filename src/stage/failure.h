/* failure: failure.json in a run folder, the first cause of a run's end, for those who look at the folder
 * later.
 *
 * Layer: stage.  Uses: store (share).
 *
 * {"code", "status", "message", "rank", "host", "job", "time"}: code: the exit code; status: its short name;
 * job: the Slurm job, <array>_<element> in an array, "" elsewhere; time: ISO, UTC. Of a share:
 * failure-<k>of<n>.json. Appears whole; removed when the run begins again.
 */
#ifndef MB_FAILURE_H
#define MB_FAILURE_H

#include "store/share.h"

/* MB_EIO and the like when it cannot be written. */
mb_status mb_failure_write(const char *folder, mb_share share, mb_status cause, const char *message,
                           int rank);
void mb_failure_remove(const char *folder, mb_share share);
/* With those of all shares. */
void mb_failure_remove_all(const char *folder);

#endif
