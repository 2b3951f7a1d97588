/* comm: the calls of comm.h over one of two implementations, long messages cut, and what is built from the
 * basic calls.
 *
 * 1. Life
 * 2. Agreement
 * 3. Basic collectives, cut at message_max
 * 4. Exchange
 * 5. Gathers and all-to-all over them
 * 6. Sharing of work
 */
#include "comm/comm.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "comm/comm_impl.h"

/* ---- 1. Life ---- */

static bool has_launcher(void)
{
    return getenv("PMIX_RANK") != NULL || getenv("OMPI_COMM_WORLD_RANK") != NULL ||
           getenv("PMI_RANK") != NULL;
}

mb_status mb_comm_create(int *argc, char ***argv, mb_comm **out_comm)
{
    mb_status status = MB_OK;
    mb_comm *comm = NULL;
    const char *wish = getenv("MB_COMM");
    const bool is_asked = wish != NULL && *wish != 0;
    if (is_asked && strcmp(wish, "mpi") != 0 && strcmp(wish, "self") != 0)
        MB_RAISE(MB_EUSAGE, "MB_COMM=%s: write mpi or self, or unset it to let the launcher decide", wish);
    MB_NEW(comm);
    comm->message_max = MB_COMM_MESSAGE_MAX;
    if (is_asked ? strcmp(wish, "mpi") == 0 : has_launcher())
        MB_TRY(mb_comm_mpi_open(comm, argc, argv));
    else
        MB_TRY(mb_comm_self_open(comm));
    *out_comm = comm;
    comm = NULL;
done:
    mb_comm_destroy(&comm);
    return status;
}

mb_status mb_comm_split(mb_comm *comm, int group, mb_comm **out_comm)
{
    mb_status status = MB_OK;
    mb_comm *part = NULL;
    assert(group >= 0);
    MB_NEW(part);
    part->message_max = comm->message_max;
    MB_TRY(comm->vtable->split(comm, group, part));
    *out_comm = part;
    part = NULL;
done:
    mb_comm_destroy(&part);
    return status;
}

void mb_comm_destroy(mb_comm **comm)
{
    if (*comm == NULL) return;
    if ((*comm)->vtable != NULL) (*comm)->vtable->destroy(*comm);
    MB_FREE(*comm);
}

void mb_comm_abort(mb_comm *comm, int exit_code)
{
    fflush(NULL);
    comm->vtable->abort(comm, exit_code);
}

int mb_comm_rank(const mb_comm *comm)
{
    return comm->rank;
}

int mb_comm_size(const mb_comm *comm)
{
    return comm->size;
}

int mb_comm_local_rank(const mb_comm *comm)
{
    return comm->local_rank;
}

int mb_comm_local_size(const mb_comm *comm)
{
    return comm->local_size;
}

int mb_comm_largest_node(const mb_comm *comm)
{
    return comm->largest_node;
}

const char *mb_comm_name(const mb_comm *comm)
{
    return comm->vtable->name;
}

/* ---- 2. Agreement ---- */

enum { SEVERITY_STOPPED = 1, SEVERITY_COMM, SEVERITY_ERROR, MESSAGE_BYTES = 2048 };

static int severity_of(mb_status status)
{
    if (status == MB_OK) return 0;
    if (status == MB_ESTOPPED) return SEVERITY_STOPPED;
    return status == MB_ECOMM ? SEVERITY_COMM : SEVERITY_ERROR;
}

/* The gravest severity of all ranks, and the first rank that has it: the maximum of (severity, -rank). */
static mb_status find_worst(mb_comm *comm, mb_status own, int *out_severity, int *out_rank)
{
    mb_status status = MB_OK;
    int64_t key = (int64_t)severity_of(own) * ((int64_t)1 << 32) + (INT32_MAX - comm->rank);
    MB_TRY(mb_comm_allreduce_i64(comm, &key, 1, MB_COMM_MAX));
    *out_severity = (int)(key >> 32);
    *out_rank = INT32_MAX - (int)(key & INT32_MAX);
done:
    return status;
}

mb_status mb_comm_agree(mb_comm *comm, mb_status own)
{
    mb_status status;
    int severity = 0, rank = 0;
    char message[MESSAGE_BYTES] = "";
    if (comm->size == 1) return own;
    MB_TRY(find_worst(comm, own, &severity, &rank));
    if (severity == 0) return MB_OK;
    if (comm->rank == rank) snprintf(message, sizeof message, "%s", mb_status_message());
    if (comm->rank == rank && message[0] == 0) snprintf(message, sizeof message, "%s", mb_status_name(own));
    MB_TRY(mb_comm_bcast(comm, message, sizeof message, rank));
    if (severity == SEVERITY_STOPPED && own == MB_OK)
        return mb_fail(MB_ESTOPPED, "rank %d: %s", rank, message);
    if (severity > SEVERITY_STOPPED && severity_of(own) <= SEVERITY_STOPPED)
        return mb_fail(MB_ECOMM, "rank %d: %s", rank, message);
    return own;
done:
    return severity_of(own) > SEVERITY_STOPPED ? own : status;
}

int mb_comm_exit_code(mb_comm *comm, mb_status own)
{
    int severity = 0, rank = 0, code = mb_status_exit_code(own);
    if (comm->size == 1 || find_worst(comm, own, &severity, &rank) != MB_OK) return code;
    if (mb_comm_bcast(comm, &code, sizeof code, rank) != MB_OK) return mb_status_exit_code(MB_ECOMM);
    return code;
}

/* ---- 3. Basic collectives, cut at message_max ---- */

static int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

mb_status mb_comm_barrier(mb_comm *comm)
{
    return comm->vtable->barrier(comm);
}

mb_status mb_comm_bcast(mb_comm *comm, void *data, size_t bytes, int root)
{
    mb_status status = MB_OK;
    for (size_t at = 0; at < bytes; at += comm->message_max) {
        const size_t part = bytes - at < comm->message_max ? bytes - at : comm->message_max;
        MB_TRY(comm->vtable->bcast(comm, (char *)data + at, (int)part, root));
    }
done:
    return status;
}

mb_status mb_comm_allreduce_i64(mb_comm *comm, int64_t *values, int64_t n, mb_comm_op op)
{
    mb_status status = MB_OK;
    const int64_t longest = (int64_t)(comm->message_max / sizeof *values);
    for (int64_t at = 0; at < n; at += longest)
        MB_TRY(comm->vtable->allreduce_i64(comm, values + at, (int)least(n - at, longest), op));
done:
    return status;
}

mb_status mb_comm_minmax_f64(mb_comm *comm, double *values, int64_t n, mb_comm_op op)
{
    mb_status status = MB_OK;
    assert(op == MB_COMM_MIN || op == MB_COMM_MAX);
    const int64_t longest = (int64_t)(comm->message_max / sizeof *values);
    for (int64_t at = 0; at < n; at += longest)
        MB_TRY(comm->vtable->minmax_f64(comm, values + at, (int)least(n - at, longest), op));
done:
    return status;
}

/* ---- 4. Exchange ---- */

/* Cut parts at message_max and drop the empty ones; *out is mb_calloc'ed. */
static mb_status cut_parts(const mb_comm *comm, const mb_comm_part *parts, int64_t n, mb_comm_part **out,
                           int64_t *out_n)
{
    mb_status status = MB_OK;
    mb_comm_part *cut = NULL;
    int64_t n_cut = 0, k = 0;
    for (int64_t i = 0; i < n; i++)
        n_cut += (int64_t)((parts[i].bytes + comm->message_max - 1) / comm->message_max);
    MB_NEW_ARRAY(cut, n_cut);
    for (int64_t i = 0; i < n; i++) {
        assert(parts[i].peer >= 0 && parts[i].peer < comm->size);
        for (size_t at = 0; at < parts[i].bytes; at += comm->message_max) {
            const size_t rest = parts[i].bytes - at;
            cut[k++] = (mb_comm_part){(char *)parts[i].data + at,
                                      rest < comm->message_max ? rest : comm->message_max, parts[i].peer};
        }
    }
    *out = cut;
    *out_n = n_cut;
done:
    return status;
}

mb_status mb_comm_exchange_start(mb_comm *comm, const mb_comm_part *sends, int64_t n_sends,
                                 const mb_comm_part *receives, int64_t n_receives,
                                 mb_comm_exchange **out_exchange)
{
    mb_status status = MB_OK;
    mb_comm_exchange *exchange = NULL;
    mb_comm_part *cut_sends = NULL, *cut_receives = NULL;
    MB_TRY(cut_parts(comm, sends, n_sends, &cut_sends, &n_sends));
    MB_TRY(cut_parts(comm, receives, n_receives, &cut_receives, &n_receives));
    MB_NEW(exchange);
    exchange->comm = comm;
    MB_TRY(comm->vtable->exchange_start(exchange, cut_sends, n_sends, cut_receives, n_receives));
    *out_exchange = exchange;
    exchange = NULL;
done:
    if (exchange != NULL) MB_FREE(exchange->impl);
    MB_FREE(exchange);
    MB_FREE(cut_sends);
    MB_FREE(cut_receives);
    return status;
}

mb_status mb_comm_exchange_wait(mb_comm_exchange **exchange)
{
    mb_status status = MB_OK;
    if (*exchange == NULL) return MB_OK;
    MB_TRY((*exchange)->comm->vtable->exchange_wait(*exchange));
done:
    MB_FREE(*exchange);
    return status;
}

/* ---- 5. Gathers and all-to-all over them ---- */

/* A ring: in step s each rank hands on the part that began at the rank s places before it. */
mb_status mb_comm_allgather_parts(mb_comm *comm, void *data, const int64_t *offsets)
{
    mb_status status = MB_OK;
    mb_comm_exchange *exchange = NULL;
    const int right = (comm->rank + 1) % comm->size, left = (comm->rank + comm->size - 1) % comm->size;
    for (int s = 0; s + 1 < comm->size; s++) {
        const int mine = (comm->rank + comm->size - s) % comm->size,
                  theirs = (left + comm->size - s) % comm->size;
        const mb_comm_part send = {(char *)data + offsets[mine], (size_t)(offsets[mine + 1] - offsets[mine]),
                                   right};
        const mb_comm_part receive = {(char *)data + offsets[theirs],
                                      (size_t)(offsets[theirs + 1] - offsets[theirs]), left};
        MB_TRY(mb_comm_exchange_start(comm, &send, 1, &receive, 1, &exchange));
        MB_TRY(mb_comm_exchange_wait(&exchange));
    }
done:
    return status;
}

mb_status mb_comm_allgather(mb_comm *comm, const void *data, size_t bytes, void *out)
{
    mb_status status = MB_OK;
    int64_t *offsets = NULL;
    if (bytes == 0) return MB_OK;
    if (bytes <= comm->message_max / (size_t)comm->size)
        return comm->vtable->allgather(comm, data, (int)bytes, out);
    MB_NEW_ARRAY(offsets, comm->size + 1);
    for (int r = 0; r <= comm->size; r++) offsets[r] = r * (int64_t)bytes;
    memmove((char *)out + offsets[comm->rank], data, bytes);
    MB_TRY(mb_comm_allgather_parts(comm, out, offsets));
done:
    MB_FREE(offsets);
    return status;
}

/* counts[0..size) sit in offsets[0..size): running sums in their place, the total last. */
static void sum_counts(int64_t *offsets, int size)
{
    int64_t total = 0;
    for (int r = 0; r <= size; r++) {
        const int64_t count = r < size ? offsets[r] : 0;
        offsets[r] = total;
        total += count;
    }
}

mb_status mb_comm_allgatherv(mb_comm *comm, const void *data, size_t bytes, void **out, int64_t *out_offsets)
{
    mb_status status = MB_OK;
    char *all = NULL;
    const int64_t mine = (int64_t)bytes;
    MB_TRY(mb_comm_allgather(comm, &mine, sizeof mine, out_offsets));
    sum_counts(out_offsets, comm->size);
    MB_NEW_ARRAY(all, out_offsets[comm->size]);
    if (bytes > 0) memcpy(all + out_offsets[comm->rank], data, bytes);
    MB_TRY(mb_comm_allgather_parts(comm, all, out_offsets));
    *out = all;
    all = NULL;
done:
    MB_FREE(all);
    return status;
}

/* Parts for every other rank, beginning with the next one so that not all send to rank 0 first; own bytes are
 * copied by the caller. */
static int64_t list_parts(const mb_comm *comm, char *data, const int64_t *offsets, mb_comm_part *parts)
{
    int64_t n = 0;
    for (int s = 1; s < comm->size; s++) {
        const int peer = (comm->rank + s) % comm->size;
        parts[n++] = (mb_comm_part){data + offsets[peer], (size_t)(offsets[peer + 1] - offsets[peer]), peer};
    }
    return n;
}

mb_status mb_comm_alltoallv(mb_comm *comm, const void *send, const int64_t *send_counts, void **out,
                            int64_t *out_offsets)
{
    mb_status status = MB_OK;
    const int size = comm->size, rank = comm->rank;
    char *all = NULL;
    int64_t *from = NULL;
    mb_comm_part *parts = NULL;
    mb_comm_exchange *exchange = NULL;
    MB_NEW_ARRAY(from, size + 1);
    MB_NEW_ARRAY(parts, 2 * size);
    memcpy(from, send_counts, (size_t)size * sizeof *from);
    MB_TRY(comm->vtable->alltoall_i64(comm, send_counts, out_offsets));
    sum_counts(from, size);
    sum_counts(out_offsets, size);
    MB_NEW_ARRAY(all, out_offsets[size]);
    if (send_counts[rank] > 0)
        memcpy(all + out_offsets[rank], (const char *)send + from[rank], (size_t)send_counts[rank]);
    const int64_t n_sends = list_parts(comm, (char *)(uintptr_t)send, from, parts);
    const int64_t n_receives = list_parts(comm, all, out_offsets, parts + size);
    MB_TRY(mb_comm_exchange_start(comm, parts, n_sends, parts + size, n_receives, &exchange));
    MB_TRY(mb_comm_exchange_wait(&exchange));
    *out = all;
    all = NULL;
done:
    MB_FREE(parts);
    MB_FREE(from);
    MB_FREE(all);
    return status;
}

/* ---- 6. Sharing of work ---- */

void mb_comm_share_of(int64_t n, int size, int rank, int64_t *out_first, int64_t *out_count)
{
    const int64_t whole = n / size, rest = n % size;
    *out_first = rank * whole + least(rank, rest);
    *out_count = whole + (rank < rest ? 1 : 0);
}

void mb_comm_share(const mb_comm *comm, int64_t n, int64_t *out_first, int64_t *out_count)
{
    mb_comm_share_of(n, comm->size, comm->rank, out_first, out_count);
}

mb_status mb_comm_queue_create(mb_comm *comm, int64_t units, mb_comm_queue **out_queue)
{
    mb_status status = MB_OK;
    mb_comm_queue *queue = NULL;
    MB_NEW(queue);
    queue->comm = comm;
    queue->units = units;
    MB_TRY(comm->vtable->queue_create(queue));
    *out_queue = queue;
    queue = NULL;
done:
    mb_comm_queue_destroy(&queue);
    return status;
}

mb_status mb_comm_queue_next(mb_comm_queue *queue, int64_t *out_unit)
{
    mb_status status = MB_OK;
    int64_t taken = 0;
    MB_TRY(queue->comm->vtable->queue_next(queue, &taken));
    *out_unit = taken < queue->units ? taken : -1;
done:
    return status;
}

void mb_comm_queue_destroy(mb_comm_queue **queue)
{
    if (*queue == NULL) return;
    (*queue)->comm->vtable->queue_destroy(*queue);
    MB_FREE(*queue);
}
