/* comm_self: one process. Every collective is the identity; nothing here starts MPI.
 *
 * 1. Life
 * 2. Collectives
 * 3. Exchange with itself
 * 4. Queue
 * 5. Windows
 */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "comm/comm_impl.h"

/* ---- 1. Life ---- */

static void self_destroy(mb_comm *comm)
{
    comm->impl = NULL;
}

static mb_status self_split(mb_comm *comm, int group, mb_comm *part)
{
    (void)comm, (void)group;
    return mb_comm_self_open(part);
}

static void self_abort(mb_comm *comm, int exit_code)
{
    (void)comm;
    exit(exit_code);
}

/* ---- 2. Collectives ---- */

static mb_status self_barrier(mb_comm *comm)
{
    (void)comm;
    return MB_OK;
}

static mb_status self_bcast(mb_comm *comm, void *data, int bytes, int root)
{
    (void)comm, (void)data, (void)bytes, (void)root;
    return MB_OK;
}

static mb_status self_allreduce_i64(mb_comm *comm, int64_t *values, int n, mb_comm_op op)
{
    (void)comm, (void)values, (void)n, (void)op;
    return MB_OK;
}

static mb_status self_minmax_f64(mb_comm *comm, double *values, int n, mb_comm_op op)
{
    (void)comm, (void)values, (void)n, (void)op;
    return MB_OK;
}

static mb_status self_allgather(mb_comm *comm, const void *data, int bytes, void *out)
{
    (void)comm;
    memmove(out, data, (size_t)bytes);
    return MB_OK;
}

static mb_status self_alltoall_i64(mb_comm *comm, const int64_t *send, int64_t *out)
{
    (void)comm;
    out[0] = send[0];
    return MB_OK;
}

/* ---- 3. Exchange with itself: the k-th send is the k-th receive ---- */

static mb_status self_exchange_start(mb_comm_exchange *exchange, const mb_comm_part *sends, int64_t n_sends,
                                     const mb_comm_part *receives, int64_t n_receives)
{
    (void)exchange;
    assert(n_sends == n_receives);
    (void)n_receives;
    for (int64_t i = 0; i < n_sends; i++) {
        assert(sends[i].bytes == receives[i].bytes);
        memmove(receives[i].data, sends[i].data, sends[i].bytes);
    }
    return MB_OK;
}

static mb_status self_exchange_wait(mb_comm_exchange *exchange)
{
    (void)exchange;
    return MB_OK;
}

/* ---- 4. Queue: a plain counter ---- */

static mb_status self_queue_create(mb_comm_queue *queue)
{
    queue->impl = mb_calloc(1, sizeof(int64_t));
    return queue->impl != NULL ? MB_OK : MB_ENOMEM;
}

static mb_status self_queue_next(mb_comm_queue *queue, int64_t *out_taken)
{
    int64_t *taken = queue->impl;
    *out_taken = (*taken)++;
    return MB_OK;
}

static void self_queue_destroy(mb_comm_queue *queue)
{
    MB_FREE(queue->impl);
}

/* ---- 5. Windows: plain memory, nobody else to read from ---- */

static mb_status self_window_create(mb_window *window, size_t bytes)
{
    window->base = mb_calloc(bytes, 1);
    return window->base != NULL ? MB_OK : MB_ENOMEM;
}

static mb_status self_window_get(mb_window *window, int rank, size_t offset, void *data, int bytes)
{
    assert(rank == 0);
    (void)rank;
    memcpy(data, (const char *)window->base + offset, (size_t)bytes);
    return MB_OK;
}

static mb_status self_window_nothing(mb_window *window)
{
    (void)window;
    return MB_OK;
}

static void self_window_destroy(mb_window *window)
{
    MB_FREE(window->base);
}

static const mb_comm_vtable self_vtable = {
    .name = "self",
    .destroy = self_destroy,
    .split = self_split,
    .abort = self_abort,
    .barrier = self_barrier,
    .bcast = self_bcast,
    .allreduce_i64 = self_allreduce_i64,
    .minmax_f64 = self_minmax_f64,
    .allgather = self_allgather,
    .alltoall_i64 = self_alltoall_i64,
    .exchange_start = self_exchange_start,
    .exchange_wait = self_exchange_wait,
    .queue_create = self_queue_create,
    .queue_next = self_queue_next,
    .queue_destroy = self_queue_destroy,
    .window_create = self_window_create,
    .window_create_shared = self_window_create,
    .window_get = self_window_get,
    .window_wait = self_window_nothing,
    .window_sync = self_window_nothing,
    .window_destroy = self_window_destroy,
};

mb_status mb_comm_self_open(mb_comm *comm)
{
    comm->vtable = &self_vtable;
    comm->rank = comm->local_rank = 0;
    comm->size = comm->local_size = comm->largest_node = 1;
    return MB_OK;
}
