/* comm_nccl: NCCL, opened at run time (libnccl.so.2). Used by transfer.c alone.
 *
 * Layer: comm.  Uses: comm, NCCL.
 */
#ifndef MB_COMM_NCCL_H
#define MB_COMM_NCCL_H

#include "comm/comm.h"

typedef struct mb_comm_nccl mb_comm_nccl;

/* Is there a library with all that is needed? */
bool mb_comm_nccl_is_there(void);
/* Collective. stream: the cudaStream_t everything is queued in. Every rank must have a GPU of its own, set as
 * the thread's device. */
mb_status mb_comm_nccl_create(mb_comm *comm, void *stream, mb_comm_nccl **out_nccl);
void mb_comm_nccl_destroy(mb_comm_nccl **nccl);     /* collective; the stream still lives */
int mb_comm_nccl_version(const mb_comm_nccl *nccl); /* as NCCL says it: 22803 is 2.28.3 */
/* As mb_comm_exchange_start of device memory, all of it queued. */
mb_status mb_comm_nccl_exchange(mb_comm_nccl *nccl, const mb_comm_part *sends, int64_t n_sends,
                                const mb_comm_part *receives, int64_t n_receives);
/* As mb_comm_allgather_parts, queued. */
mb_status mb_comm_nccl_gather(mb_comm_nccl *nccl, void *data, const int64_t *offsets);

#endif
