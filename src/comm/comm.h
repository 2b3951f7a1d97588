/* comm: groups of ranks. Two implementations behind one header: `self` (one process) and `mpi`.
 *
 * Layer: comm.  Uses: base, tensor, MPI.
 *
 * Every call below marked collective must be made by all ranks in the same order. Between collectives a rank
 * may fail alone; mb_comm_agree before the next collective makes all take the same branch, so nobody hangs.
 */
#ifndef MB_COMM_H
#define MB_COMM_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

typedef struct mb_comm mb_comm;

/* MPI when a launcher's environment says so (PMIX_RANK, OMPI_COMM_WORLD_RANK, PMI_RANK) or MB_COMM=mpi, else
 * self; MB_COMM=self forces one process. argc and argv may be NULL. MPI can be started once per process. Also
 * decides local rank. MB_EUNSUPPORTED: MPI is wanted but was not there at build time. MB_EUSAGE: another
 * MB_COMM. MB_ECOMM: MPI did not start. */
mb_status mb_comm_create(int *argc, char ***argv, mb_comm **out_comm);
/* Collective: finalises MPI. Call with the agreed exit code known; see mb_comm_abort. */
void mb_comm_destroy(mb_comm **comm);
/* Collective. A group of its own for the ranks that name the same number (>= 0), in the order they have here;
 * destroy it before comm. */
mb_status mb_comm_split(mb_comm *comm, int group, mb_comm **out_comm);
/* End all ranks at once with this exit code (a lone failure that cannot be agreed). Does not return under
 * MPI; under self it exits too. */
void mb_comm_abort(mb_comm *comm, int exit_code);

int mb_comm_rank(const mb_comm *comm);
int mb_comm_size(const mb_comm *comm);
int mb_comm_local_rank(const mb_comm *comm); /* among the ranks of this node */
int mb_comm_local_size(const mb_comm *comm);
/* Ranks of the node that has most of them: what all ranks may decide by, where nodes are filled unevenly. */
int mb_comm_largest_node(const mb_comm *comm);
const char *mb_comm_name(const mb_comm *comm); /* "self" or "mpi" */

/* Collective. Returns the worst status of all ranks on every rank: a rank whose own status was MB_OK gets
 * MB_ECOMM with the failing rank's number and message; a failing rank keeps its own. MB_ESTOPPED counts as
 * failure only of lower severity than any error: with no error anywhere all ranks get MB_ESTOPPED, with one a
 * stopped rank gets MB_ECOMM. Cost when all is well: one reduction of 8 bytes. */
mb_status mb_comm_agree(mb_comm *comm, mb_status status);
/* Collective. The one exit code all ranks return after this status: that of the first rank with an error of
 * its own (not MB_ECOMM), else of MB_ECOMM, else of MB_ESTOPPED, else 0. Launchers do not say whose code they
 * pass on, so all ranks must end with the same one. Touches no error record. */
int mb_comm_exit_code(mb_comm *comm, mb_status status);

/* All collective down to the exchange, any size (long messages are cut). MB_ECOMM carries MPI's own text. */
mb_status mb_comm_barrier(mb_comm *comm);
mb_status mb_comm_bcast(mb_comm *comm, void *data, size_t bytes, int root);
/* In place, element-wise, i64. Exact, so any order. */
typedef enum mb_comm_op { MB_COMM_SUM, MB_COMM_MIN, MB_COMM_MAX } mb_comm_op;
mb_status mb_comm_allreduce_i64(mb_comm *comm, int64_t *values, int64_t n, mb_comm_op op);
/* Minimum or maximum of f64, in place. There is no f64 sum: it would not keep its bits over numbers of ranks;
 * use lanes.h. */
mb_status mb_comm_minmax_f64(mb_comm *comm, double *values, int64_t n, mb_comm_op op);
/* Every rank gives `bytes` bytes; out receives size * bytes, by rank. */
mb_status mb_comm_allgather(mb_comm *comm, const void *data, size_t bytes, void *out);
/* The same with different sizes; *out is mb_calloc'ed, out_offsets[size+1] the caller's. */
mb_status mb_comm_allgatherv(mb_comm *comm, const void *data, size_t bytes, void **out, int64_t *out_offsets);
/* The same in place: part r of data is at bytes [offsets[r], offsets[r+1]); mine is filled before, all are
 * after. No staging, any size. */
mb_status mb_comm_allgather_parts(mb_comm *comm, void *data, const int64_t *offsets);
/* Each rank sends send_counts[r] bytes (consecutive in send) to rank r; *out is mb_calloc'ed with
 * out_offsets[size+1]. */
mb_status mb_comm_alltoallv(mb_comm *comm, const void *send, const int64_t *send_counts, void **out,
                            int64_t *out_offsets);

/* Messages between pairs. The k-th send of a to b is the k-th receive of b from a, of the same bytes; empty
 * parts are not sent. Data must stay untouched from start to wait. Not collective, but every start needs its
 * counterpart. wait frees the exchange whatever it returns; NULL inside is fine. */
typedef struct mb_comm_part {
    void *data;
    size_t bytes;
    int peer;
} mb_comm_part;
typedef struct mb_comm_exchange mb_comm_exchange;
mb_status mb_comm_exchange_start(mb_comm *comm, const mb_comm_part *sends, int64_t n_sends,
                                 const mb_comm_part *receives, int64_t n_receives,
                                 mb_comm_exchange **out_exchange);
mb_status mb_comm_exchange_wait(mb_comm_exchange **exchange);

/* Contiguous share of n items for this rank: [out_first, out_first + out_count), sizes differ by one at most.
 * Not collective. */
void mb_comm_share(const mb_comm *comm, int64_t n, int64_t *out_first, int64_t *out_count);
/* The share another rank of a group of that size has. */
void mb_comm_share_of(int64_t n, int size, int rank, int64_t *out_first, int64_t *out_count);

/* Dynamic sharing of work units 0..n-1 in order: next unit for this rank, -1 when none is left. Not
 * collective per call (a shared counter at rank 0, in shared memory on one node; between nodes without remote
 * atomics a call may wait until rank 0 enters MPI); create and destroy are. For work whose result does not
 * depend on who does it (tiles). */
typedef struct mb_comm_queue mb_comm_queue;
mb_status mb_comm_queue_create(mb_comm *comm, int64_t units, mb_comm_queue **out_queue);
mb_status mb_comm_queue_next(mb_comm_queue *queue, int64_t *out_unit);
void mb_comm_queue_destroy(mb_comm_queue **queue);

#endif
