/* transfer: moves the backend's memory between ranks.
 *
 * Layer: comm.  Uses: comm, ops.
 *
 * A host backend's memory goes as it lies. A device's goes in one of three ways, the same on all ranks:
 *   nccl    NCCL's sends and receives in the backend's stream; the host waits for nothing
 *   mpi     by an MPI that takes device pointers (CUDA-aware)
 *   staged  down into page-locked host memory, by MPI, and up again
 * The best one that is there is taken, in this order; NCCL needs a GPU of its own for every rank.
 * MB_GPU_TRANSFER=nccl|mpi|staged in the environment asks for one.
 *
 * Order: ops queued before a start or gather come before it, ops queued after a wait or gather after it. Data
 * sent must stay, and data received is not looked at, until the wait. A rank that fails inside still takes
 * part in the messages, so that the others do not wait for ever; agree afterwards. Where NCCL fails on one
 * rank the others cannot be told: all end (mb_comm_abort).
 */
#ifndef MB_TRANSFER_H
#define MB_TRANSFER_H

#include "comm/comm.h"
#include "ops/ops.h"

typedef struct mb_transfer mb_transfer;
typedef struct mb_transfer_move mb_transfer_move;

/* Collective. comm and ops are borrowed. MB_EUNSUPPORTED: the way asked for is not there; MB_EUSAGE: another
 * word in MB_GPU_TRANSFER. */
mb_status mb_transfer_create(mb_comm *comm, mb_ops *ops, mb_transfer **out_transfer);
void mb_transfer_destroy(mb_transfer **transfer); /* collective */
mb_comm *mb_transfer_comm(const mb_transfer *transfer);
mb_ops *mb_transfer_ops(const mb_transfer *transfer);
const char *mb_transfer_name(const mb_transfer *transfer); /* "host", "nccl", "mpi", "staged" */

/* Page-locked memory for moves of so many bytes, sent and received together; start takes it itself
 * otherwise. */
mb_status mb_transfer_reserve(mb_transfer *transfer, size_t bytes);
size_t mb_transfer_bytes(const mb_transfer *transfer); /* of it, held now */

/* As mb_comm_exchange_start and _wait, of the backend's memory. Two may be under way at a time, waited for in
 * the order of their starts. */
mb_status mb_transfer_start(mb_transfer *transfer, const mb_comm_part *sends, int64_t n_sends,
                            const mb_comm_part *receives, int64_t n_receives, mb_transfer_move **out_move);
mb_status mb_transfer_wait(mb_transfer_move **move);
/* As mb_comm_allgather_parts: part r of data is bytes [offsets[r], offsets[r+1]). Collective. No move may be
 * under way. */
mb_status mb_transfer_gather(mb_transfer *transfer, void *data, const int64_t *offsets);

#endif
