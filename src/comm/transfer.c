/* transfer: the three ways a device's memory goes to another rank, and the one of the host's.
 *
 * 1. Which way
 * 2. Life
 * 3. Page-locked memory
 * 4. Moves
 * 5. Gather
 *
 * Staged moves take turns with two halves of page-locked memory. Start brings what is sent down into one half
 * and hands it to MPI; wait queues the copies up. So while the messages of one move are on their way, the
 * device copies up and works on what came before. Nobody but the device touches a half between its copies up
 * and the next mb_ops_wait. A gather does the same piece by piece: while piece c is with MPI, piece c - 1
 * goes up and piece c + 1 comes down.
 */
#include "comm/transfer.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/hash.h"
#include "base/log.h"
#include "base/memory.h"
#include "comm/comm_library.h"
#include "comm/comm_nccl.h"

typedef enum transfer_way { WAY_HOST, WAY_NCCL, WAY_MPI, WAY_STAGED, WAYS } transfer_way;

static const char *const way_name[WAYS] = {"host", "nccl", "mpi", "staged"};

#define LINE         ((size_t)64)
#define GATHER_PIECE ((int64_t)4 << 20) /* bytes of each rank's part that are under way at a time */

typedef struct transfer_half {
    char *data;
    size_t bytes;
} transfer_half;

struct mb_transfer {
    mb_comm *comm;
    mb_ops *ops;
    transfer_way way;
    mb_comm_nccl *nccl;
    transfer_half half[2];
    int next, under_way;
};

struct mb_transfer_move {
    mb_transfer *transfer;
    mb_comm_exchange *exchange;
    mb_status status;   /* of the way down */
    const char *landed; /* staged: what was received, as it lies in its half */
    int64_t n_receives;
    mb_comm_part receive[]; /* where it goes */
};

/* ---- 1. Which way ---- */

/* No two ranks of a node on one GPU. Collective. */
static mb_status have_own_devices(mb_comm *comm, mb_ops *ops, bool *out_own)
{
    mb_status status = MB_OK;
    char host[256] = "";
    uint64_t mine[2], *all = NULL;
    const char *device = mb_ops_bus_id(ops);
    gethostname(host, sizeof host - 1);
    mine[0] = mb_hash_u64(host, strlen(host), 0);
    mine[1] = mb_hash_u64(device, strlen(device), 0);
    MB_NEW_ARRAY(all, 2 * mb_comm_size(comm));
    MB_TRY(mb_comm_allgather(comm, mine, sizeof mine, all));
    *out_own = *device != 0;
    for (int r = 0; r < mb_comm_size(comm); r++)
        if (r != mb_comm_rank(comm) && memcmp(all + 2 * r, mine, sizeof mine) == 0) *out_own = false;
done:
    mb_free(all);
    return status;
}

/* The way asked for; WAY_HOST: none was. */
static mb_status wished_way(transfer_way *out_way)
{
    const char *wish = getenv("MB_GPU_TRANSFER");
    *out_way = WAY_HOST;
    if (wish == NULL || *wish == 0 || strcmp(wish, "auto") == 0) return MB_OK;
    for (int way = WAY_NCCL; way < WAYS; way++)
        if (strcmp(wish, way_name[way]) == 0) *out_way = (transfer_way)way;
    if (*out_way != WAY_HOST) return MB_OK;
    return mb_fail(MB_EUSAGE,
                   "MB_GPU_TRANSFER=%s: write nccl, mpi or staged, or unset it for the best there is", wish);
}

static mb_status refuse(transfer_way way, bool has_own)
{
    if (way == WAY_MPI)
        return mb_fail(MB_EUNSUPPORTED,
                       "MB_GPU_TRANSFER=mpi: this MPI does not say that it takes a GPU's memory; "
                       "set MB_MPI_CUDA=1 if it does, or MB_GPU_TRANSFER=staged");
    return mb_fail(
        MB_EUNSUPPORTED,
        "MB_GPU_TRANSFER=nccl: %s; take more GPUs or fewer ranks, put libnccl.so.2 on LD_LIBRARY_PATH, "
        "or set MB_GPU_TRANSFER=staged",
        has_own ? "libnccl.so.2 was not found on every rank" : "two ranks of a node share a GPU");
}

/* Collective: the same on all ranks. */
static mb_status choose_way(mb_transfer *t)
{
    mb_status status = MB_OK;
    transfer_way wish = WAY_HOST;
    bool has_own = false;
    MB_TRY(mb_comm_agree(t->comm, wished_way(&wish)));
    MB_TRY(have_own_devices(t->comm, t->ops, &has_own));
    int64_t has[WAYS + 2] = {[WAY_HOST] = has_own,
                             [WAY_NCCL] =
                                 has_own && wish != WAY_STAGED && wish != WAY_MPI && mb_comm_nccl_is_there(),
                             [WAY_MPI] = mb_comm_library_is_cuda_aware(),
                             [WAY_STAGED] = 1,
                             [WAYS] = wish,
                             [WAYS + 1] = -(int64_t)wish};
    MB_TRY(mb_comm_allreduce_i64(t->comm, has, WAYS + 2, MB_COMM_MIN));
    if (has[WAYS] != -has[WAYS + 1])
        MB_RAISE(MB_EUSAGE, "MB_GPU_TRANSFER is not the same on all ranks; have the launcher hand it on");
    if (wish != WAY_HOST && !has[wish]) MB_TRY(refuse(wish, has[WAY_HOST] != 0));
    t->way = wish != WAY_HOST ? wish : has[WAY_NCCL] ? WAY_NCCL : has[WAY_MPI] ? WAY_MPI : WAY_STAGED;
done:
    return status;
}

/* ---- 2. Life ---- */

static void say_way(const mb_transfer *t)
{
    if (mb_comm_rank(t->comm) > 0) return;
    if (t->way == WAY_NCCL) {
        const int version = mb_comm_nccl_version(t->nccl), major = version / 10000;
        mb_info("between GPUs: NCCL %d.%d.%d", major > 0 ? major : version / 1000,
                major > 0 ? version / 100 % 100 : version / 100 % 10, version % 100);
    } else {
        mb_info("between GPUs: %s",
                t->way == WAY_MPI ? "MPI takes their memory as it is" : "by MPI through the host's memory");
    }
}

mb_status mb_transfer_create(mb_comm *comm, mb_ops *ops, mb_transfer **out_transfer)
{
    mb_status status = MB_OK;
    mb_transfer *t = mb_calloc(1, sizeof *t);
    MB_TRY(mb_comm_agree(comm, t == NULL ? MB_ENOMEM : MB_OK));
    t->comm = comm;
    t->ops = ops;
    t->way = WAY_HOST;
    if (mb_ops_is_device(ops) && mb_comm_size(comm) > 1) {
        MB_TRY(choose_way(t));
        if (t->way == WAY_NCCL)
            MB_TRY(mb_comm_agree(comm, mb_comm_nccl_create(comm, mb_ops_stream(ops), &t->nccl)));
        say_way(t);
    }
    *out_transfer = t;
    t = NULL;
done:
    mb_transfer_destroy(&t);
    return status;
}

static void free_half(mb_transfer *t, transfer_half *half)
{
    const mb_allocator *pinned = mb_ops_host_allocator(t->ops);
    if (half->data != NULL) pinned->free(pinned->context, half->data);
    *half = (transfer_half){0};
}

void mb_transfer_destroy(mb_transfer **transfer)
{
    mb_transfer *t = *transfer;
    if (t == NULL) return;
    if (t->way != WAY_HOST) (void)mb_ops_wait(t->ops);
    mb_comm_nccl_destroy(&t->nccl);
    for (int i = 0; i < 2; i++) free_half(t, &t->half[i]);
    MB_FREE(*transfer);
}

mb_comm *mb_transfer_comm(const mb_transfer *transfer)
{
    return transfer->comm;
}

mb_ops *mb_transfer_ops(const mb_transfer *transfer)
{
    return transfer->ops;
}

const char *mb_transfer_name(const mb_transfer *transfer)
{
    return way_name[transfer->way];
}

/* ---- 3. Page-locked memory ---- */

static size_t lines(size_t bytes)
{
    return (bytes + LINE - 1) / LINE * LINE;
}

/* A half of at least so many bytes; what was in it is lost. */
static mb_status grow_half(mb_transfer *t, transfer_half *half, size_t bytes)
{
    mb_status status = MB_OK;
    const mb_allocator *pinned = mb_ops_host_allocator(t->ops);
    if (half->bytes >= bytes) return MB_OK;
    MB_TRY(mb_ops_wait(t->ops));
    free_half(t, half);
    half->data = pinned->alloc(pinned->context, bytes);
    if (half->data == NULL)
        MB_RAISE(MB_ENOMEM, "no %.0f MB of page-locked memory for messages between GPUs",
                 1e-6 * (double)bytes);
    half->bytes = bytes;
done:
    return status;
}

mb_status mb_transfer_reserve(mb_transfer *transfer, size_t bytes)
{
    mb_status status = MB_OK;
    if (transfer->way != WAY_STAGED) return MB_OK;
    for (int i = 0; i < 2; i++) MB_TRY(grow_half(transfer, &transfer->half[i], bytes));
done:
    return status;
}

size_t mb_transfer_bytes(const mb_transfer *transfer)
{
    return transfer->half[0].bytes + transfer->half[1].bytes;
}

/* ---- 4. Moves ---- */

/* A failure of NCCL on this rank alone: the others' devices wait for it and cannot be told, so all end. */
static mb_status end_all(const mb_transfer *t, mb_status status)
{
    if (status == MB_OK) return MB_OK;
    mb_error("rank %d: %s\n%s", mb_comm_rank(t->comm), mb_status_message(), mb_status_trace_text());
    mb_comm_abort(t->comm, mb_status_exit_code(status));
    return status;
}

static size_t sum_parts(const mb_comm_part *parts, int64_t n)
{
    size_t bytes = 0;
    for (int64_t i = 0; i < n; i++) bytes += lines(parts[i].bytes);
    return bytes;
}

/* The same parts as they lie one after another from `data` on. */
static char *lay_parts(const mb_comm_part *parts, int64_t n, char *data, mb_comm_part *out)
{
    for (int64_t i = 0; i < n; i++) {
        out[i] = (mb_comm_part){data, parts[i].bytes, parts[i].peer};
        data += lines(parts[i].bytes);
    }
    return data;
}

static mb_status bring_down(mb_transfer *t, const mb_comm_part *sends, int64_t n, const mb_comm_part *host)
{
    mb_status status = MB_OK;
    for (int64_t i = 0; i < n; i++)
        MB_TRY(mb_ops_download(t->ops, sends[i].data, sends[i].bytes, host[i].data));
    MB_TRY(mb_ops_wait(t->ops));
done:
    return status;
}

static mb_status start_staged(mb_transfer *t, const mb_comm_part *sends, int64_t n_sends,
                              const mb_comm_part *receives, mb_transfer_move *move)
{
    mb_status status = MB_OK;
    transfer_half *half = &t->half[t->next];
    mb_comm_part *host = NULL;
    MB_NEW_ARRAY(host, n_sends + move->n_receives);
    MB_TRY(grow_half(t, half, sum_parts(sends, n_sends) + sum_parts(receives, move->n_receives)));
    char *landing = lay_parts(sends, n_sends, half->data, host);
    lay_parts(receives, move->n_receives, landing, host + n_sends);
    move->landed = landing;
    move->status = bring_down(t, sends, n_sends, host);
    MB_TRY(mb_comm_exchange_start(t->comm, host, n_sends, host + n_sends, move->n_receives, &move->exchange));
    t->next = 1 - t->next;
done:
    mb_free(host);
    return status;
}

mb_status mb_transfer_start(mb_transfer *t, const mb_comm_part *sends, int64_t n_sends,
                            const mb_comm_part *receives, int64_t n_receives, mb_transfer_move **out_move)
{
    mb_status status = MB_OK;
    mb_transfer_move *move = mb_calloc(1, sizeof *move + (size_t)n_receives * sizeof *receives);
    if (move == NULL) MB_TRY(MB_ENOMEM);
    assert(t->under_way < 2);
    move->transfer = t;
    move->n_receives = n_receives;
    if (n_receives > 0) memcpy(move->receive, receives, (size_t)n_receives * sizeof *receives);
    if (t->way == WAY_NCCL) {
        MB_TRY(end_all(t, mb_comm_nccl_exchange(t->nccl, sends, n_sends, receives, n_receives)));
    } else if (t->way == WAY_STAGED) {
        MB_TRY(start_staged(t, sends, n_sends, receives, move));
    } else {
        if (t->way == WAY_MPI) move->status = mb_ops_wait(t->ops);
        MB_TRY(mb_comm_exchange_start(t->comm, sends, n_sends, receives, n_receives, &move->exchange));
    }
    t->under_way++;
    *out_move = move;
    move = NULL;
done:
    mb_free(move);
    return status;
}

static mb_status bring_up(mb_transfer *t, const mb_transfer_move *move)
{
    mb_status status = MB_OK;
    const char *from = move->landed;
    for (int64_t i = 0; i < move->n_receives; i++) {
        MB_TRY(mb_ops_upload(t->ops, from, move->receive[i].bytes, move->receive[i].data));
        from += lines(move->receive[i].bytes);
    }
done:
    return status;
}

mb_status mb_transfer_wait(mb_transfer_move **move)
{
    mb_status status = MB_OK;
    mb_transfer_move *m = *move;
    if (m == NULL) return MB_OK;
    m->transfer->under_way--;
    MB_TRY(mb_comm_exchange_wait(&m->exchange));
    MB_TRY(m->status);
    if (m->transfer->way == WAY_STAGED) MB_TRY(bring_up(m->transfer, m));
done:
    MB_FREE(*move);
    return status;
}

/* ---- 5. Gather ---- */

typedef struct gather_work {
    mb_transfer *transfer;
    char *data;
    const int64_t *offsets;
    int64_t *piece; /* [R + 1] where each rank's piece lies in a half */
    int64_t pieces;
    mb_status status; /* of the device; the messages go on */
} gather_work;

/* Bytes of rank r's piece c, from *out_first of all data on. */
static int64_t piece_of(const gather_work *w, int rank, int64_t c, int64_t *out_first)
{
    const int64_t part = w->offsets[rank + 1] - w->offsets[rank], done = c * GATHER_PIECE;
    *out_first = w->offsets[rank] + done;
    return done >= part ? 0 : part - done < GATHER_PIECE ? part - done : GATHER_PIECE;
}

static void lay_pieces(gather_work *w, int64_t c)
{
    int64_t first;
    for (int r = 0; r < mb_comm_size(w->transfer->comm); r++)
        w->piece[r + 1] = w->piece[r] + (int64_t)lines((size_t)piece_of(w, r, c, &first));
}

/* Queue the copies of piece c: mine down, or the others' up. */
static void copy_piece(gather_work *w, int64_t c, bool is_up)
{
    const mb_transfer *t = w->transfer;
    int64_t first;
    if (c >= w->pieces) return;
    lay_pieces(w, c);
    for (int r = 0; r < mb_comm_size(t->comm) && w->status == MB_OK; r++) {
        if (is_up == (r == mb_comm_rank(t->comm))) continue;
        const size_t bytes = (size_t)piece_of(w, r, c, &first);
        char *host = t->half[c % 2].data + w->piece[r], *data = w->data + first;
        w->status =
            is_up ? mb_ops_upload(t->ops, host, bytes, data) : mb_ops_download(t->ops, data, bytes, host);
    }
}

static void wait_pieces(gather_work *w)
{
    const mb_status waited = mb_ops_wait(w->transfer->ops);
    if (w->status == MB_OK) w->status = waited;
}

static mb_status gather_staged(mb_transfer *t, void *data, const int64_t *offsets)
{
    mb_status status = MB_OK;
    const int size = mb_comm_size(t->comm);
    gather_work w = {.transfer = t, .data = data, .offsets = offsets};
    for (int r = 0; r < size; r++) {
        const int64_t pieces = (offsets[r + 1] - offsets[r] + GATHER_PIECE - 1) / GATHER_PIECE;
        if (pieces > w.pieces) w.pieces = pieces;
    }
    MB_NEW_ARRAY(w.piece, size + 1);
    lay_pieces(&w, 0);
    for (int i = 0; i < 2; i++) MB_TRY(grow_half(t, &t->half[i], (size_t)w.piece[size]));
    copy_piece(&w, 0, false);
    wait_pieces(&w);
    for (int64_t c = 0; c < w.pieces; c++) {
        copy_piece(&w, c + 1, false);
        lay_pieces(&w, c);
        MB_TRY(mb_comm_allgather_parts(t->comm, t->half[c % 2].data, w.piece));
        wait_pieces(&w);
        copy_piece(&w, c, true);
    }
    MB_TRY(w.status);
done:
    mb_free(w.piece);
    return status;
}

mb_status mb_transfer_gather(mb_transfer *t, void *data, const int64_t *offsets)
{
    mb_status status = MB_OK, waited = MB_OK;
    assert(t->under_way == 0);
    if (mb_comm_size(t->comm) == 1) return MB_OK;
    if (t->way == WAY_NCCL) return end_all(t, mb_comm_nccl_gather(t->nccl, data, offsets));
    if (t->way == WAY_STAGED) return gather_staged(t, data, offsets);
    if (t->way == WAY_MPI) waited = mb_ops_wait(t->ops);
    MB_TRY(mb_comm_allgather_parts(t->comm, data, offsets));
    MB_TRY(waited);
done:
    return status;
}
