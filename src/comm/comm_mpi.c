/* comm_mpi: ranks by MPI. Built without MPI, opening it says so.
 *
 * 1. Errors
 * 2. Life
 * 3. Collectives
 * 4. Exchange
 * 5. Queue
 * 6. Windows
 *
 * All calls go over a duplicate of MPI_COMM_WORLD whose errors return; MPI's text becomes the message of an
 * MB_ECOMM. Only the thread that created the comm calls MPI (MPI_THREAD_FUNNELED).
 */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "comm/comm_impl.h"

#ifndef MB_HAVE_MPI

mb_status mb_comm_mpi_open(mb_comm *comm, int *argc, char ***argv)
{
    (void)comm, (void)argc, (void)argv;
    return mb_fail(MB_EUNSUPPORTED,
                   "started by an MPI launcher, but this program was built without MPI; "
                   "install MPI (mpicc) and build again, or set MB_COMM=self and start one process");
}

#else

#include <mpi.h>

#include "base/log.h"

/* ---- 1. Errors ---- */

static mb_status mpi_fail(int code, const char *call, const char *function, const char *file, int line)
{
    char text[MPI_MAX_ERROR_STRING + 1] = "";
    int length = 0;
    if (MPI_Error_string(code, text, &length) != MPI_SUCCESS) length = 0;
    text[length] = 0;
    return mb_status_fail(MB_ECOMM, function, file, line, "%.*s: %s", (int)strcspn(call, "("), call,
                          length > 0 ? text : "unknown MPI error");
}

#define MB_TRY_MPI(call)                                                                                     \
    do {                                                                                                     \
        const int mpi_code = (call);                                                                         \
        if (mpi_code != MPI_SUCCESS) {                                                                       \
            status = mpi_fail(mpi_code, #call, __func__, __FILE__, __LINE__);                                \
            goto done;                                                                                       \
        }                                                                                                    \
    } while (0)

/* ---- 2. Life ---- */

typedef struct mpi_state {
    MPI_Comm world;
    bool started; /* by us, so we finalise */
} mpi_state;

static MPI_Comm world_of(const mb_comm *comm)
{
    return ((const mpi_state *)comm->impl)->world;
}

/* Errors of the communicator return; its ranks, and those of this node. */
static mb_status mpi_find_ranks(mb_comm *comm)
{
    mb_status status = MB_OK;
    MPI_Comm node = MPI_COMM_NULL;
    const MPI_Comm world = world_of(comm);
    MB_TRY_MPI(MPI_Comm_set_errhandler(world, MPI_ERRORS_RETURN));
    MB_TRY_MPI(MPI_Comm_rank(world, &comm->rank));
    MB_TRY_MPI(MPI_Comm_size(world, &comm->size));
    MB_TRY_MPI(MPI_Comm_split_type(world, MPI_COMM_TYPE_SHARED, comm->rank, MPI_INFO_NULL, &node));
    MB_TRY_MPI(MPI_Comm_rank(node, &comm->local_rank));
    MB_TRY_MPI(MPI_Comm_size(node, &comm->local_size));
    MB_TRY_MPI(MPI_Allreduce(&comm->local_size, &comm->largest_node, 1, MPI_INT, MPI_MAX, world));
done:
    if (node != MPI_COMM_NULL) MPI_Comm_free(&node);
    return status;
}

static mb_status mpi_split(mb_comm *comm, int group, mb_comm *part)
{
    mb_status status = MB_OK;
    mpi_state *state = NULL;
    MB_NEW(state);
    state->world = MPI_COMM_NULL;
    part->vtable = comm->vtable;
    part->impl = state;
    MB_TRY_MPI(MPI_Comm_split(world_of(comm), group, comm->rank, &state->world));
    MB_TRY(mpi_find_ranks(part));
done:
    return status;
}

static void mpi_destroy(mb_comm *comm)
{
    mpi_state *state = comm->impl;
    if (state == NULL) return;
    if (state->world != MPI_COMM_NULL) MPI_Comm_free(&state->world);
    if (state->started) MPI_Finalize();
    MB_FREE(comm->impl);
}

static void mpi_abort(mb_comm *comm, int exit_code)
{
    (void)comm;
    MPI_Abort(MPI_COMM_WORLD, exit_code);
    abort();
}

/* ---- 3. Collectives ---- */

static MPI_Op mpi_op(mb_comm_op op)
{
    return op == MB_COMM_SUM ? MPI_SUM : op == MB_COMM_MIN ? MPI_MIN : MPI_MAX;
}

static mb_status mpi_barrier(mb_comm *comm)
{
    mb_status status = MB_OK;
    MB_TRY_MPI(MPI_Barrier(world_of(comm)));
done:
    return status;
}

static mb_status mpi_bcast(mb_comm *comm, void *data, int bytes, int root)
{
    mb_status status = MB_OK;
    MB_TRY_MPI(MPI_Bcast(data, bytes, MPI_BYTE, root, world_of(comm)));
done:
    return status;
}

static mb_status mpi_allreduce_i64(mb_comm *comm, int64_t *values, int n, mb_comm_op op)
{
    mb_status status = MB_OK;
    MB_TRY_MPI(MPI_Allreduce(MPI_IN_PLACE, values, n, MPI_INT64_T, mpi_op(op), world_of(comm)));
done:
    return status;
}

static mb_status mpi_minmax_f64(mb_comm *comm, double *values, int n, mb_comm_op op)
{
    mb_status status = MB_OK;
    MB_TRY_MPI(MPI_Allreduce(MPI_IN_PLACE, values, n, MPI_DOUBLE, mpi_op(op), world_of(comm)));
done:
    return status;
}

static mb_status mpi_allgather(mb_comm *comm, const void *data, int bytes, void *out)
{
    mb_status status = MB_OK;
    MB_TRY_MPI(MPI_Allgather(data, bytes, MPI_BYTE, out, bytes, MPI_BYTE, world_of(comm)));
done:
    return status;
}

static mb_status mpi_alltoall_i64(mb_comm *comm, const int64_t *send, int64_t *out)
{
    mb_status status = MB_OK;
    MB_TRY_MPI(MPI_Alltoall(send, 1, MPI_INT64_T, out, 1, MPI_INT64_T, world_of(comm)));
done:
    return status;
}

/* ---- 4. Exchange: one tag, so messages of a pair match in the order they were started ---- */

enum { EXCHANGE_TAG = 1 };

typedef struct mpi_requests {
    int n;
    MPI_Request request[];
} mpi_requests;

static mb_status mpi_exchange_start(mb_comm_exchange *exchange, const mb_comm_part *sends, int64_t n_sends,
                                    const mb_comm_part *receives, int64_t n_receives)
{
    mb_status status = MB_OK;
    const MPI_Comm world = world_of(exchange->comm);
    mpi_requests *posted =
        mb_calloc(1, sizeof *posted + (size_t)(n_sends + n_receives) * sizeof(MPI_Request));
    if (posted == NULL) return MB_ENOMEM;
    exchange->impl = posted;
    for (int64_t i = 0; i < n_receives; i++) {
        const mb_comm_part *p = &receives[i];
        MB_TRY_MPI(MPI_Irecv(p->data, (int)p->bytes, MPI_BYTE, p->peer, EXCHANGE_TAG, world,
                             &posted->request[posted->n]));
        posted->n++;
    }
    for (int64_t i = 0; i < n_sends; i++) {
        const mb_comm_part *p = &sends[i];
        MB_TRY_MPI(MPI_Isend(p->data, (int)p->bytes, MPI_BYTE, p->peer, EXCHANGE_TAG, world,
                             &posted->request[posted->n]));
        posted->n++;
    }
done:
    return status;
}

static mb_status mpi_exchange_wait(mb_comm_exchange *exchange)
{
    mb_status status = MB_OK;
    mpi_requests *posted = exchange->impl;
    for (int i = 0; posted != NULL && i < posted->n; i++)
        MB_TRY_MPI(MPI_Wait(&posted->request[i], MPI_STATUS_IGNORE));
done:
    MB_FREE(exchange->impl);
    return status;
}

/* ---- 5. Queue ---- */

/* A counter at rank 0, fetched and advanced in a passive epoch that lasts as long as the queue. Where this
 * MPI has no one-sided access between nodes, ranks take turns instead. */

typedef struct mpi_counter {
    MPI_Win window; /* MPI_WIN_NULL: turns */
    bool locked;
    int64_t turn; /* next number of this rank */
} mpi_counter;

static void mpi_queue_destroy(mb_comm_queue *queue)
{
    mpi_counter *counter = queue->impl;
    if (counter == NULL) return;
    if (counter->locked) MPI_Win_unlock_all(counter->window);
    if (counter->window != MPI_WIN_NULL) MPI_Win_free(&counter->window);
    MB_FREE(queue->impl);
}

/* A window of `bytes`, or none on any rank (*out_has false): which transports can do it is found out only by
 * trying. Collective. */
static mb_status mpi_try_window(mb_comm *comm, size_t bytes, void *out_base, MPI_Win *out_window,
                                bool *out_has)
{
    mb_status status = MB_OK;
    int has = MPI_Win_allocate((MPI_Aint)bytes, 1, MPI_INFO_NULL, world_of(comm), out_base, out_window) ==
              MPI_SUCCESS;
    if (!has) *out_window = MPI_WIN_NULL;
    MB_TRY_MPI(MPI_Allreduce(MPI_IN_PLACE, &has, 1, MPI_INT, MPI_MIN, world_of(comm)));
    if (has) {
        MB_TRY_MPI(MPI_Win_set_errhandler(*out_window, MPI_ERRORS_RETURN));
        MB_TRY_MPI(MPI_Win_lock_all(MPI_MODE_NOCHECK, *out_window));
    }
    *out_has = has;
done:
    return status;
}

static mb_status mpi_queue_create(mb_comm_queue *queue)
{
    mb_status status = MB_OK;
    mb_comm *comm = queue->comm;
    int64_t *first = NULL;
    mpi_counter *counter = NULL;
    MB_NEW(counter);
    counter->window = MPI_WIN_NULL;
    counter->turn = comm->rank;
    queue->impl = counter;
    MB_TRY(mpi_try_window(comm, comm->rank == 0 ? sizeof *first : 0, &first, &counter->window,
                          &counter->locked));
    if (!counter->locked) {
        mb_debug("no one-sided communication between these ranks: they take parts in turn");
        goto done;
    }
    if (comm->rank == 0) {
        *first = 0;
        MB_TRY_MPI(MPI_Win_sync(counter->window));
    }
    MB_TRY_MPI(MPI_Barrier(world_of(comm)));
done:
    return status;
}

static mb_status mpi_queue_next(mb_comm_queue *queue, int64_t *out_taken)
{
    mb_status status = MB_OK;
    mpi_counter *counter = queue->impl;
    const int64_t one = 1;
    int64_t taken = 0;
    if (!counter->locked) {
        *out_taken = counter->turn;
        counter->turn += queue->comm->size;
        goto done;
    }
    MB_TRY_MPI(MPI_Fetch_and_op(&one, &taken, MPI_INT64_T, 0, 0, MPI_SUM, counter->window));
    MB_TRY_MPI(MPI_Win_flush(0, counter->window));
    *out_taken = taken;
done:
    return status;
}

/* ---- 6. Windows: one passive epoch for as long as the window lives ---- */

typedef struct mpi_window {
    MPI_Win window;
    bool locked;
} mpi_window;

static void mpi_window_destroy(mb_window *window)
{
    mpi_window *w = window->impl;
    if (w == NULL) return;
    if (w->locked) MPI_Win_unlock_all(w->window);
    if (w->window != MPI_WIN_NULL) MPI_Win_free(&w->window);
    MB_FREE(window->impl);
}

static mb_status mpi_window_open_shared(mb_window *window, MPI_Comm node, size_t bytes)
{
    mb_status status = MB_OK;
    mpi_window *w = NULL;
    MB_NEW(w);
    w->window = MPI_WIN_NULL;
    window->impl = w;
    MB_TRY_MPI(MPI_Win_allocate_shared((MPI_Aint)bytes, 1, MPI_INFO_NULL, node, &window->base, &w->window));
    MB_TRY_MPI(MPI_Win_set_errhandler(w->window, MPI_ERRORS_RETURN));
    MB_TRY_MPI(MPI_Win_lock_all(MPI_MODE_NOCHECK, w->window));
    w->locked = true;
done:
    return status;
}

static mb_status mpi_window_create(mb_window *window, size_t bytes)
{
    mb_status status = MB_OK;
    mpi_window *w = NULL;
    MB_NEW(w);
    w->window = MPI_WIN_NULL;
    window->impl = w;
    MB_TRY(mpi_try_window(window->comm, bytes, &window->base, &w->window, &w->locked));
    if (!w->locked)
        MB_RAISE(MB_ECOMM, "a model cut over the ranks is read one-sided, which this MPI does not offer "
                           "between these nodes; with Open MPI set OMPI_MCA_osc=^ucx (or pt2pt), or keep "
                           "model.shard=false and training.zero at most 2");
done:
    return status;
}

static mb_status mpi_window_create_shared(mb_window *window, size_t bytes)
{
    mb_status status = MB_OK;
    const mb_comm *comm = window->comm;
    MPI_Comm node = MPI_COMM_NULL;
    MPI_Aint size;
    int unit;
    MB_TRY_MPI(MPI_Comm_split_type(world_of(comm), MPI_COMM_TYPE_SHARED, comm->rank, MPI_INFO_NULL, &node));
    MB_TRY(mpi_window_open_shared(window, node, comm->local_rank == 0 ? bytes : 0));
    MB_TRY_MPI(MPI_Win_shared_query(((mpi_window *)window->impl)->window, 0, &size, &unit, &window->base));
done:
    if (node != MPI_COMM_NULL) MPI_Comm_free(&node);
    return status;
}

static mb_status mpi_window_get(mb_window *window, int rank, size_t offset, void *data, int bytes)
{
    mb_status status = MB_OK;
    const mpi_window *w = window->impl;
    MB_TRY_MPI(MPI_Get(data, bytes, MPI_BYTE, rank, (MPI_Aint)offset, bytes, MPI_BYTE, w->window));
done:
    return status;
}

static mb_status mpi_window_wait(mb_window *window)
{
    mb_status status = MB_OK;
    const mpi_window *w = window->impl;
    MB_TRY_MPI(MPI_Win_flush_all(w->window));
done:
    return status;
}

static mb_status mpi_window_sync(mb_window *window)
{
    mb_status status = MB_OK;
    const mpi_window *w = window->impl;
    MB_TRY_MPI(MPI_Win_sync(w->window));
    MB_TRY_MPI(MPI_Barrier(world_of(window->comm)));
    MB_TRY_MPI(MPI_Win_sync(w->window));
done:
    return status;
}

static const mb_comm_vtable mpi_vtable = {
    .name = "mpi",
    .destroy = mpi_destroy,
    .split = mpi_split,
    .abort = mpi_abort,
    .barrier = mpi_barrier,
    .bcast = mpi_bcast,
    .allreduce_i64 = mpi_allreduce_i64,
    .minmax_f64 = mpi_minmax_f64,
    .allgather = mpi_allgather,
    .alltoall_i64 = mpi_alltoall_i64,
    .exchange_start = mpi_exchange_start,
    .exchange_wait = mpi_exchange_wait,
    .queue_create = mpi_queue_create,
    .queue_next = mpi_queue_next,
    .queue_destroy = mpi_queue_destroy,
    .window_create = mpi_window_create,
    .window_create_shared = mpi_window_create_shared,
    .window_get = mpi_window_get,
    .window_wait = mpi_window_wait,
    .window_sync = mpi_window_sync,
    .window_destroy = mpi_window_destroy,
};

static mb_status mpi_start(mpi_state *state, int *argc, char ***argv)
{
    mb_status status = MB_OK;
    int is_up = 0, is_over = 0, level = MPI_THREAD_SINGLE;
    MB_TRY_MPI(MPI_Finalized(&is_over));
    if (is_over) MB_RAISE(MB_ECOMM, "MPI was finalised already; it starts once per process");
    MB_TRY_MPI(MPI_Initialized(&is_up));
    if (is_up) goto done;
    MB_TRY_MPI(MPI_Init_thread(argc, argv, MPI_THREAD_FUNNELED, &level));
    state->started = true;
    if (level < MPI_THREAD_FUNNELED)
        MB_RAISE(MB_ECOMM, "this MPI has no thread support (MPI_THREAD_FUNNELED); build it with threads");
done:
    return status;
}

mb_status mb_comm_mpi_open(mb_comm *comm, int *argc, char ***argv)
{
    mb_status status = MB_OK;
    mpi_state *state = NULL;
    MB_NEW(state);
    state->world = MPI_COMM_NULL;
    comm->vtable = &mpi_vtable;
    comm->impl = state;
    MB_TRY(mpi_start(state, argc, argv));
    MB_TRY_MPI(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN));
    MB_TRY_MPI(MPI_Comm_dup(MPI_COMM_WORLD, &state->world));
    MB_TRY(mpi_find_ranks(comm));
done:
    return status;
}

#endif
