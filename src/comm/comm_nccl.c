/* comm_nccl: NCCL by dlopen. Its prototypes stand here, so that no header of it is needed to build: they are
 * those of nccl.h since 2.7 (point-to-point), which NCCL keeps within version 2.
 *
 * 1. The library
 * 2. Life
 * 3. Moves
 *
 * An exchange is one group of sends and receives; within a group the k-th send to a rank meets the k-th
 * receive there, as in comm.h. A gather is a group of broadcasts, one per part, because parts differ in
 * length. Bytes travel as ncclInt8.
 */
#include "comm/comm_nccl.h"

#include <dlfcn.h>
#include <string.h>

#include "base/log.h"
#include "base/memory.h"

/* ---- 1. The library ---- */

enum { NCCL_SUCCESS = 0, NCCL_INT8 = 0, NCCL_IN_PROGRESS = 7, NCCL_OLDEST = 2700 };

typedef struct nccl_id {
    char internal[128];
} nccl_id;

typedef struct nccl_calls {
    int (*version)(int *version);
    int (*unique_id)(nccl_id *id);
    int (*init)(void **comm, int ranks, nccl_id id, int rank);
    int (*destroy)(void *comm);
    int (*abort)(void *comm);
    const char *(*error)(int result);
    int (*async_error)(void *comm, int *result);
    int (*group_start)(void);
    int (*group_end)(void);
    int (*send)(const void *data, size_t count, int type, int peer, void *comm, void *stream);
    int (*receive)(void *data, size_t count, int type, int peer, void *comm, void *stream);
    int (*broadcast)(const void *send, void *receive, size_t count, int type, int root, void *comm,
                     void *stream);
} nccl_calls;

struct mb_comm_nccl {
    mb_comm *comm;
    void *stream, *nccl; /* nccl: ncclComm_t */
    nccl_calls calls;
    int version;
};

/* Where a pointer to a function goes: ISO C knows no cast between the two kinds of pointers. */
static bool find(void *library, const char *name, void *out_call)
{
    void *symbol = dlsym(library, name);
    memcpy(out_call, &symbol, sizeof symbol);
    return symbol != NULL;
}

/* False: there is none, or it is too old. It stays open: NCCL's threads end when they like. */
static bool open_library(nccl_calls *calls, int *out_version)
{
    void *library = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) return false;
    const bool has_all =
        find(library, "ncclGetVersion", &calls->version) &&
        find(library, "ncclGetUniqueId", &calls->unique_id) &&
        find(library, "ncclCommInitRank", &calls->init) &&
        find(library, "ncclCommDestroy", &calls->destroy) && find(library, "ncclCommAbort", &calls->abort) &&
        find(library, "ncclGetErrorString", &calls->error) &&
        find(library, "ncclCommGetAsyncError", &calls->async_error) &&
        find(library, "ncclGroupStart", &calls->group_start) &&
        find(library, "ncclGroupEnd", &calls->group_end) && find(library, "ncclSend", &calls->send) &&
        find(library, "ncclRecv", &calls->receive) && find(library, "ncclBroadcast", &calls->broadcast);
    if (has_all && calls->version(out_version) == NCCL_SUCCESS && *out_version >= NCCL_OLDEST) return true;
    mb_debug("libnccl.so.2 is older than 2.7 and not used");
    dlclose(library);
    return false;
}

bool mb_comm_nccl_is_there(void)
{
    nccl_calls calls;
    int version;
    return open_library(&calls, &version);
}

static mb_status nccl_fail(const mb_comm_nccl *n, int result, const char *call, const char *function,
                           int line)
{
    return mb_status_fail(MB_ECOMM, function, __FILE__, line,
                          "%s: %s; NCCL_DEBUG=INFO says more, MB_GPU_TRANSFER=mpi or staged goes without it",
                          call, n->calls.error(result));
}

#define MB_TRY_NCCL(n, name, ...)                                                                            \
    do {                                                                                                     \
        const int nccl_result = (n)->calls.name(__VA_ARGS__);                                                \
        if (nccl_result != NCCL_SUCCESS) {                                                                   \
            status = nccl_fail(n, nccl_result, "NCCL " #name, __func__, __LINE__);                           \
            goto done;                                                                                       \
        }                                                                                                    \
    } while (0)

/* ---- 2. Life ---- */

static mb_status make_id(mb_comm_nccl *n, nccl_id *id)
{
    mb_status status = MB_OK;
    if (!open_library(&n->calls, &n->version)) MB_RAISE(MB_EUNSUPPORTED, "libnccl.so.2 was not found");
    if (mb_comm_rank(n->comm) == 0) MB_TRY_NCCL(n, unique_id, id);
done:
    return status;
}

mb_status mb_comm_nccl_create(mb_comm *comm, void *stream, mb_comm_nccl **out_nccl)
{
    mb_status status = MB_OK;
    mb_comm_nccl *n = NULL;
    nccl_id id = {{0}};
    n = mb_calloc(1, sizeof *n);
    if (n != NULL) {
        n->comm = comm;
        n->stream = stream;
    }
    MB_TRY(mb_comm_agree(comm, n == NULL ? MB_ENOMEM : make_id(n, &id)));
    MB_TRY(mb_comm_bcast(comm, &id, sizeof id, 0));
    MB_TRY_NCCL(n, init, &n->nccl, mb_comm_size(comm), id, mb_comm_rank(comm));
    *out_nccl = n;
    n = NULL;
done:
    if (n != NULL && n->nccl != NULL) n->calls.abort(n->nccl);
    mb_free(n);
    return status;
}

void mb_comm_nccl_destroy(mb_comm_nccl **nccl)
{
    mb_comm_nccl *n = *nccl;
    int result = NCCL_SUCCESS;
    if (n == NULL) return;
    /* After a failure elsewhere the others may be gone: do not wait for them. */
    if (n->calls.async_error(n->nccl, &result) != NCCL_SUCCESS || result != NCCL_SUCCESS)
        n->calls.abort(n->nccl);
    else
        n->calls.destroy(n->nccl);
    MB_FREE(*nccl);
}

int mb_comm_nccl_version(const mb_comm_nccl *nccl)
{
    return nccl->version;
}

/* ---- 3. Moves ---- */

/* What went wrong in earlier moves, on the device or the network. */
static mb_status check(mb_comm_nccl *n)
{
    mb_status status = MB_OK;
    int result = NCCL_SUCCESS;
    MB_TRY_NCCL(n, async_error, n->nccl, &result);
    if (result != NCCL_SUCCESS && result != NCCL_IN_PROGRESS)
        status = nccl_fail(n, result, "NCCL", __func__, __LINE__);
done:
    return status;
}

mb_status mb_comm_nccl_exchange(mb_comm_nccl *n, const mb_comm_part *sends, int64_t n_sends,
                                const mb_comm_part *receives, int64_t n_receives)
{
    mb_status status = MB_OK;
    bool is_open = false;
    MB_TRY(check(n));
    MB_TRY_NCCL(n, group_start);
    is_open = true;
    for (int64_t i = 0; i < n_sends; i++)
        if (sends[i].bytes > 0)
            MB_TRY_NCCL(n, send, sends[i].data, sends[i].bytes, NCCL_INT8, sends[i].peer, n->nccl, n->stream);
    for (int64_t i = 0; i < n_receives; i++)
        if (receives[i].bytes > 0)
            MB_TRY_NCCL(n, receive, receives[i].data, receives[i].bytes, NCCL_INT8, receives[i].peer, n->nccl,
                        n->stream);
    is_open = false;
    MB_TRY_NCCL(n, group_end);
done:
    if (is_open) n->calls.group_end();
    return status;
}

mb_status mb_comm_nccl_gather(mb_comm_nccl *n, void *data, const int64_t *offsets)
{
    mb_status status = MB_OK;
    bool is_open = false;
    MB_TRY(check(n));
    MB_TRY_NCCL(n, group_start);
    is_open = true;
    for (int r = 0; r < mb_comm_size(n->comm); r++) {
        char *part = (char *)data + offsets[r];
        const size_t bytes = (size_t)(offsets[r + 1] - offsets[r]);
        if (bytes > 0) MB_TRY_NCCL(n, broadcast, part, part, bytes, NCCL_INT8, r, n->nccl, n->stream);
    }
    is_open = false;
    MB_TRY_NCCL(n, group_end);
done:
    if (is_open) n->calls.group_end();
    return status;
}
