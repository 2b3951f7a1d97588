/* fake_nccl: a group is run when it ends: what was queued before is waited for, then all sends and receives
 * are made by MPI, then the broadcasts in their order. Arguments are checked as NCCL would: known
 * communicator, stream and type, peers in range, calls only inside a group.
 */
#include "fake_nccl.h"

#include <mpi.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, INTERNAL_ERROR = 3, INVALID_ARGUMENT = 4, INVALID_USAGE = 5, MOST = 4096, TAG = 7 };
enum { INT8 = 0, VERSION = 22803 };

typedef enum call_kind { SEND, RECEIVE, BROADCAST } call_kind;

typedef struct call {
    call_kind kind;
    const void *from;
    void *to;
    size_t bytes;
    int peer;
    char *host;
} call;

typedef struct fake_id {
    char internal[128];
} fake_id;

typedef struct fake_comm {
    MPI_Comm world;
    int rank, size;
} fake_comm;

static fake_nccl_hooks hooks;
static call calls[MOST];
static int n_calls, depth;
static fake_comm *used;

void fake_nccl_set(const fake_nccl_hooks *given)
{
    hooks = *given;
}

int ncclGetVersion(int *version)
{
    *version = VERSION;
    return SUCCESS;
}

int ncclGetUniqueId(fake_id *id)
{
    memset(id, 0, sizeof *id);
    strcpy(id->internal, "a number nobody else has");
    return SUCCESS;
}

const char *ncclGetErrorString(int result)
{
    return result == SUCCESS ? "no error" : result == INTERNAL_ERROR ? "internal error" : "invalid call";
}

int ncclCommInitRank(void **comm, int ranks, fake_id id, int rank)
{
    fake_comm *c = calloc(1, sizeof *c);
    if (c == NULL || strcmp(id.internal, "a number nobody else has") != 0) return INVALID_ARGUMENT;
    MPI_Comm_dup(MPI_COMM_WORLD, &c->world);
    MPI_Comm_rank(c->world, &c->rank);
    MPI_Comm_size(c->world, &c->size);
    if (c->rank != rank || c->size != ranks) return INVALID_ARGUMENT;
    *comm = c;
    return SUCCESS;
}

int ncclCommDestroy(void *comm)
{
    fake_comm *c = comm;
    MPI_Comm_free(&c->world);
    free(c);
    return SUCCESS;
}

int ncclCommAbort(void *comm)
{
    return ncclCommDestroy(comm);
}

int ncclCommGetAsyncError(void *comm, int *result)
{
    (void)comm;
    *result = SUCCESS;
    return SUCCESS;
}

int ncclGroupStart(void)
{
    depth++;
    return SUCCESS;
}

static int queue(call c, int type, void *comm, void *stream)
{
    fake_comm *to = comm;
    if (depth == 0 || n_calls == MOST) return INVALID_USAGE;
    if (type != INT8 || stream != hooks.stream || to == NULL || c.peer < 0 || c.peer >= to->size)
        return INVALID_ARGUMENT;
    used = to;
    calls[n_calls++] = c;
    return SUCCESS;
}

int ncclSend(const void *data, size_t count, int type, int peer, void *comm, void *stream)
{
    return queue((call){.kind = SEND, .from = data, .bytes = count, .peer = peer}, type, comm, stream);
}

int ncclRecv(void *data, size_t count, int type, int peer, void *comm, void *stream)
{
    return queue((call){.kind = RECEIVE, .to = data, .bytes = count, .peer = peer}, type, comm, stream);
}

int ncclBroadcast(const void *from, void *to, size_t count, int type, int root, void *comm, void *stream)
{
    const call c = {.kind = BROADCAST, .from = from, .to = to, .bytes = count, .peer = root};
    return queue(c, type, comm, stream);
}

static int bring_down(call *c)
{
    c->host = malloc(c->bytes + 1);
    if (c->host == NULL) return 0;
    if (c->kind == RECEIVE || (c->kind == BROADCAST && c->peer != used->rank)) return 1;
    return hooks.down(hooks.context, c->from, c->bytes, c->host);
}

static int run_group(MPI_Request *request)
{
    int n = 0, ok = hooks.wait(hooks.context);
    for (int i = 0; i < n_calls && ok; i++) ok = bring_down(&calls[i]);
    for (int i = 0; i < n_calls && ok; i++) {
        const call *c = &calls[i];
        if (c->kind == RECEIVE)
            MPI_Irecv(c->host, (int)c->bytes, MPI_BYTE, c->peer, TAG, used->world, &request[n++]);
        if (c->kind == SEND)
            MPI_Isend(c->host, (int)c->bytes, MPI_BYTE, c->peer, TAG, used->world, &request[n++]);
    }
    MPI_Waitall(n, request, MPI_STATUSES_IGNORE);
    for (int i = 0; i < n_calls && ok; i++)
        if (calls[i].kind == BROADCAST)
            MPI_Bcast(calls[i].host, (int)calls[i].bytes, MPI_BYTE, calls[i].peer, used->world);
    for (int i = 0; i < n_calls && ok; i++)
        if (calls[i].kind != SEND) ok = hooks.up(hooks.context, calls[i].host, calls[i].bytes, calls[i].to);
    return ok;
}

int ncclGroupEnd(void)
{
    if (depth == 0) return INVALID_USAGE;
    if (--depth > 0) return SUCCESS;
    MPI_Request *request = calloc((size_t)n_calls + 1, sizeof(MPI_Request));
    const int ok = request != NULL && run_group(request);
    for (int i = 0; i < n_calls; i++) free(calls[i].host);
    free(request);
    memset(calls, 0, sizeof calls);
    n_calls = 0;
    return ok ? SUCCESS : INTERNAL_ERROR;
}
