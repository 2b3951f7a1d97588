/* comm_impl: what comm.c and its two implementations share. Private to this folder and its tests.
 *
 * Layer: comm.  Uses: comm.
 *
 * comm.c splits what is longer than message_max, so an implementation sees only counts that fit MPI's int.
 */
#ifndef MB_COMM_IMPL_H
#define MB_COMM_IMPL_H

#include "comm/comm.h"
#include "comm/window.h"

#define MB_COMM_MESSAGE_MAX ((size_t)1 << 30)

typedef struct mb_comm_vtable {
    const char *name;
    void (*destroy)(mb_comm *comm); /* what is behind comm->impl; comm itself is freed by the caller */
    mb_status (*split)(mb_comm *comm, int group, mb_comm *part); /* fills what open fills */
    void (*abort)(mb_comm *comm, int exit_code);
    mb_status (*barrier)(mb_comm *comm);
    mb_status (*bcast)(mb_comm *comm, void *data, int bytes, int root);
    mb_status (*allreduce_i64)(mb_comm *comm, int64_t *values, int n, mb_comm_op op);
    mb_status (*minmax_f64)(mb_comm *comm, double *values, int n, mb_comm_op op);
    mb_status (*allgather)(mb_comm *comm, const void *data, int bytes, void *out);
    mb_status (*alltoall_i64)(mb_comm *comm, const int64_t *send, int64_t *out); /* one value for each rank */
    /* Parts are cut to message_max already; fills exchange->impl. */
    mb_status (*exchange_start)(mb_comm_exchange *exchange, const mb_comm_part *sends, int64_t n_sends,
                                const mb_comm_part *receives, int64_t n_receives);
    mb_status (*exchange_wait)(mb_comm_exchange *exchange); /* also frees exchange->impl */
    mb_status (*queue_create)(mb_comm_queue *queue);
    mb_status (*queue_next)(mb_comm_queue *queue,
                            int64_t *out_taken); /* units taken before this one, may pass the end */
    void (*queue_destroy)(mb_comm_queue *queue);
    /* Fills window->base and impl; base is zeroed by the caller. */
    mb_status (*window_create)(mb_window *window, size_t bytes);
    mb_status (*window_create_shared)(mb_window *window, size_t bytes); /* all of it by local rank 0 */
    mb_status (*window_get)(mb_window *window, int rank, size_t offset, void *data, int bytes);
    mb_status (*window_wait)(mb_window *window);
    mb_status (*window_sync)(mb_window *window);
    void (*window_destroy)(mb_window *window);
} mb_comm_vtable;

struct mb_comm {
    const mb_comm_vtable *vtable;
    int rank, size, local_rank, local_size;
    int largest_node;   /* ranks of the node that has most: the same on all ranks */
    size_t message_max; /* bytes of the longest single message; a multiple of 8; tests lower it */
    void *impl;
};

struct mb_comm_exchange {
    mb_comm *comm;
    void *impl;
};

struct mb_window {
    mb_comm *comm;
    void *base; /* of this rank's part, or of the node's */
    void *impl;
};

struct mb_comm_queue {
    mb_comm *comm;
    int64_t units;
    void *impl;
};

/* Fill a zeroed comm: vtable, ranks, impl. */
mb_status mb_comm_self_open(mb_comm *comm);
mb_status mb_comm_mpi_open(mb_comm *comm, int *argc, char ***argv);

#endif
