/* test_comm_mpi: every call of comm.h between real ranks, with messages whole and cut.
 *
 *     test_comm_mpi               all checks, TAP from rank 0
 *     test_comm_mpi fail          the last rank finds bad data; all agree and end with its code
 *     test_comm_mpi abort         the last rank aborts with code 3 while the others wait in a barrier
 *     test_comm_mpi large         a broadcast and a gather beyond 2^31 bytes
 */
#include <string.h>

#include "base/clock.h"
#include "base/memory.h"
#include "comm/comm_impl.h"
#include "mpi_tap.h"

static unsigned char pattern(int rank, int64_t i)
{
    return (unsigned char)(rank * 37 + i * 11 + (i >> 8) + 5);
}

static void fill(unsigned char *data, int rank, int64_t n)
{
    for (int64_t i = 0; i < n; i++) data[i] = pattern(rank, i);
}

static bool is_filled(const unsigned char *data, int rank, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        if (data[i] != pattern(rank, i)) return false;
    return true;
}

static void test_ranks(mpi_tap *tap)
{
    mb_comm *comm = tap->comm;
    int64_t sum = mb_comm_rank(comm), local = mb_comm_local_rank(comm);
    const int64_t size = mb_comm_size(comm);
    tap_check(tap, strcmp(mb_comm_name(comm), "mpi") == 0, "the launcher's environment chooses mpi");
    tap_check(tap, mb_comm_allreduce_i64(comm, &sum, 1, MB_COMM_SUM) == MB_OK && sum == size * (size - 1) / 2,
              "ranks are 0..R-1");
    tap_check(tap,
              mb_comm_allreduce_i64(comm, &local, 1, MB_COMM_SUM) == MB_OK && local == sum &&
                  mb_comm_local_size(comm) == size,
              "one node: local ranks are ranks");
}

static void test_bcast(mpi_tap *tap, const char *how)
{
    unsigned char data[1000];
    bool ok = true;
    const int rank = mb_comm_rank(tap->comm);
    for (int root = 0; root < mb_comm_size(tap->comm); root++) {
        memset(data, 0, sizeof data);
        if (rank == root) fill(data, root, sizeof data);
        ok = mb_comm_bcast(tap->comm, data, sizeof data, root) == MB_OK &&
             is_filled(data, root, sizeof data) && ok;
    }
    ok = mb_comm_bcast(tap->comm, NULL, 0, 0) == MB_OK && ok;
    tap_check(tap, ok, "bcast from every root, %s", how);
}

static void test_reductions(mpi_tap *tap, const char *how)
{
    enum { N = 101 };
    int64_t sum[N], low[N];
    double high[N];
    const int64_t size = mb_comm_size(tap->comm), rank = mb_comm_rank(tap->comm);
    for (int64_t i = 0; i < N; i++) {
        sum[i] = (rank + 1) * (INT64_C(1) << 50) + i;
        low[i] = (rank + i) % size;
        high[i] = (double)((rank * 7 + i) % size) - 0.5;
    }
    bool ok = mb_comm_allreduce_i64(tap->comm, sum, N, MB_COMM_SUM) == MB_OK;
    ok = mb_comm_allreduce_i64(tap->comm, low, N, MB_COMM_MIN) == MB_OK && ok;
    ok = mb_comm_minmax_f64(tap->comm, high, N, MB_COMM_MAX) == MB_OK && ok;
    for (int64_t i = 0; i < N; i++) {
        double best = -1;
        for (int64_t r = 0; r < size; r++)
            best = (double)((r * 7 + i) % size) - 0.5 > best ? (double)((r * 7 + i) % size) - 0.5 : best;
        ok = ok && sum[i] == size * (size + 1) / 2 * (INT64_C(1) << 50) + i * size && low[i] == 0 &&
             high[i] == best;
    }
    tap_check(tap, ok, "i64 sum and min, f64 max, %s", how);
}

static void test_gathers(mpi_tap *tap, const char *how)
{
    enum { N = 300 };
    mb_comm *comm = tap->comm;
    const int size = mb_comm_size(comm), rank = mb_comm_rank(comm);
    unsigned char mine[N * 8], *same = mb_calloc((size_t)size, N);
    int64_t *offsets = mb_calloc((size_t)size + 1, sizeof *offsets);
    void *all = NULL;
    fill(mine, rank, sizeof mine);
    bool ok = mb_comm_allgather(comm, mine, N, same) == MB_OK;
    for (int r = 0; ok && r < size; r++) ok = is_filled(same + r * N, r, N);
    tap_check(tap, ok, "allgather, %s", how);
    ok = mb_comm_allgatherv(comm, mine, (size_t)(rank * 77), &all, offsets) == MB_OK;
    for (int r = 0; ok && r < size; r++)
        ok = offsets[r + 1] - offsets[r] == r * 77 && is_filled((unsigned char *)all + offsets[r], r, r * 77);
    tap_check(tap, ok && offsets[0] == 0, "allgatherv with an empty part, %s", how);
    mb_free(all);
    mb_free(offsets);
    mb_free(same);
}

/* Rank a sends (a + 2b) mod 5 * 41 bytes to rank b, so some parts are empty; bytes carry the pattern of 10a +
 * b. */
static int64_t amount(int from, int to)
{
    return (from + 2 * to) % 5 * 41;
}

static void test_alltoall(mpi_tap *tap, const char *how)
{
    mb_comm *comm = tap->comm;
    const int size = mb_comm_size(comm), rank = mb_comm_rank(comm);
    int64_t *counts = mb_calloc((size_t)size, sizeof *counts),
            *offsets = mb_calloc((size_t)size + 1, sizeof *offsets), at = 0;
    unsigned char *send = mb_calloc((size_t)size, 5 * 41);
    void *all = NULL;
    for (int r = 0; r < size; r++) {
        counts[r] = amount(rank, r);
        fill(send + at, 10 * rank + r, counts[r]);
        at += counts[r];
    }
    bool ok = mb_comm_alltoallv(comm, send, counts, &all, offsets) == MB_OK && offsets[0] == 0;
    for (int r = 0; ok && r < size; r++) {
        const int64_t n = offsets[r + 1] - offsets[r];
        ok = n == amount(r, rank) && is_filled((unsigned char *)all + offsets[r], 10 * r + rank, n);
    }
    tap_check(tap, ok, "alltoallv with empty parts, %s", how);
    mb_free(all);
    mb_free(send);
    mb_free(offsets);
    mb_free(counts);
}

/* Two exchanges with the same neighbours under way at once keep their order; waited for in the other order.
 */
static void test_exchange(mpi_tap *tap, const char *how)
{
    enum { N = 500 };
    mb_comm *comm = tap->comm;
    const int size = mb_comm_size(comm), rank = mb_comm_rank(comm), right = (rank + 1) % size,
              left = (rank + size - 1) % size;
    unsigned char out[2][N], in[2][N];
    mb_comm_exchange *exchange[2] = {NULL, NULL};
    bool ok = true;
    for (int i = 0; i < 2; i++) {
        fill(out[i], rank + 100 * i, N);
        const mb_comm_part send = {out[i], N, right}, receive = {in[i], N, left};
        ok = mb_comm_exchange_start(comm, &send, 1, &receive, 1, &exchange[i]) == MB_OK && ok;
    }
    for (int i = 1; i >= 0; i--)
        ok = mb_comm_exchange_wait(&exchange[i]) == MB_OK && is_filled(in[i], left + 100 * i, N) && ok;
    tap_check(tap, ok && exchange[0] == NULL, "two exchanges at a time, %s", how);
}

static void test_agree(mpi_tap *tap)
{
    mb_comm *comm = tap->comm;
    const int size = mb_comm_size(comm), rank = mb_comm_rank(comm), last = size - 1;
    mb_status status = mb_comm_agree(comm, MB_OK);
    tap_check(tap, status == MB_OK && mb_comm_exit_code(comm, status) == 0, "agree: all well");

    mb_status_reset();
    status = rank == last ? mb_fail(MB_EDATA, "line %d is bad", 12) : MB_OK;
    status = mb_comm_agree(comm, status);
    char expected[64];
    snprintf(expected, sizeof expected, "rank %d: line 12 is bad", last);
    const bool is_kept = status == MB_EDATA && strcmp(mb_status_message(), "line 12 is bad") == 0;
    const bool is_told = status == MB_ECOMM && strcmp(mb_status_message(), expected) == 0;
    tap_check(tap, rank == last ? is_kept : is_told,
              "agree: the failing rank keeps its error, the others hear of it");
    tap_check(tap, mb_comm_exit_code(comm, status) == 3,
              "exit code: all ranks take the code of the first cause");

    status = mb_comm_agree(comm, rank == last ? mb_fail(MB_ESTOPPED, "asked to stop") : MB_OK);
    tap_check(tap, status == MB_ESTOPPED && mb_comm_exit_code(comm, status) == 75,
              "agree: one stops, all stop");

    status = rank == 0 ? mb_fail(MB_ENUMERIC, "NaN") : mb_fail(MB_ESTOPPED, "asked to stop");
    status = mb_comm_agree(comm, status);
    tap_check(tap, status == (rank == 0 ? MB_ENUMERIC : MB_ECOMM) && mb_comm_exit_code(comm, status) == 1,
              "agree: an error outweighs a stop");

    status = rank == 0 ? mb_fail(MB_ECOMM, "lost") : rank == last ? mb_fail(MB_EUSAGE, "bad key") : MB_OK;
    status = mb_comm_agree(comm, status);
    const int code = mb_comm_exit_code(comm, status);
    tap_check(tap, code == (size == 1 ? 1 : 2), "agree: a cause outweighs its echo");
}

/* Groups by rank / 2 and by rank % 2: each sums its own ranks, an error of one group is not the other's, and
 * queues of both go side by side. */
static void test_split(mpi_tap *tap)
{
    mb_comm *comm = tap->comm, *pair = NULL, *same = NULL;
    mb_comm_queue *queue = NULL;
    const int rank = mb_comm_rank(comm), size = mb_comm_size(comm), first = rank / 2 * 2,
              members = first + 1 < size ? 2 : 1;
    int64_t sum = rank, taken = 0, unit = 0, name = rank;
    bool ok = mb_comm_split(comm, rank / 2, &pair) == MB_OK && mb_comm_split(comm, rank % 2, &same) == MB_OK;
    ok = ok && mb_comm_rank(pair) == rank - first && mb_comm_size(pair) == members &&
         mb_comm_local_size(pair) == members && mb_comm_local_rank(pair) == rank - first &&
         mb_comm_rank(same) == rank / 2 && mb_comm_size(same) == (size + 1 - rank % 2) / 2;
    tap_check(tap, ok, "split: groups of two, and of every second rank");
    ok = mb_comm_allreduce_i64(pair, &sum, 1, MB_COMM_SUM) == MB_OK &&
         sum == (members == 2 ? 2 * first + 1 : first) &&
         mb_comm_bcast(same, &name, sizeof name, mb_comm_size(same) - 1) == MB_OK &&
         name == rank % 2 + 2 * (mb_comm_size(same) - 1);
    tap_check(tap, ok, "split: a group's collectives are its own");
    mb_status_reset();
    const mb_status status = mb_comm_agree(pair, rank == 1 ? mb_fail(MB_EDATA, "bad") : MB_OK);
    ok = status == (rank == 1 ? MB_EDATA : rank == 0 && size > 1 ? MB_ECOMM : MB_OK);
    tap_check(tap, ok, "split: an error stays in its group");
    ok = mb_comm_queue_create(same, 50, &queue) == MB_OK;
    while (ok && (ok = mb_comm_queue_next(queue, &unit) == MB_OK) && unit >= 0) taken++;
    ok = mb_comm_allreduce_i64(same, &taken, 1, MB_COMM_SUM) == MB_OK && taken == 50 && ok;
    mb_comm_queue_destroy(&queue);
    tap_check(tap, ok, "split: every group has a queue of its own");
    mb_comm_destroy(&pair);
    mb_comm_destroy(&same);
    mb_status_reset();
}

static void test_share(mpi_tap *tap)
{
    bool ok = true;
    for (int64_t n = 0; n < 20; n++) {
        int64_t range[2];
        int64_t *all = mb_calloc(2 * (size_t)mb_comm_size(tap->comm), sizeof *all), next = 0;
        mb_comm_share(tap->comm, n, &range[0], &range[1]);
        ok = mb_comm_allgather(tap->comm, range, sizeof range, all) == MB_OK && ok;
        for (int r = 0; r < mb_comm_size(tap->comm); r++) {
            ok = ok && all[2 * r] == next && all[2 * r + 1] >= all[2 * mb_comm_size(tap->comm) - 1] &&
                 all[2 * r + 1] <= all[1];
            next += all[2 * r + 1];
        }
        ok = ok && next == n && all[1] - all[2 * mb_comm_size(tap->comm) - 1] <= 1;
        mb_free(all);
    }
    tap_check(tap, ok, "share: contiguous, complete, sizes differ by one at most");
}

static void test_queue(mpi_tap *tap)
{
    enum { N = 1000 };
    int64_t taken[N] = {0}, unit = 0, last = -1;
    mb_comm_queue *queue = NULL;
    bool ok = mb_comm_queue_create(tap->comm, N, &queue) == MB_OK;
    while (ok && (ok = mb_comm_queue_next(queue, &unit) == MB_OK) && unit >= 0) {
        ok = unit > last && unit < N;
        last = unit;
        if (ok) taken[unit]++;
    }
    ok = mb_comm_queue_next(queue, &unit) == MB_OK && unit == -1 && ok;
    ok = mb_comm_allreduce_i64(tap->comm, taken, N, MB_COMM_SUM) == MB_OK && ok;
    for (int i = 0; i < N; i++) ok = ok && taken[i] == 1;
    mb_comm_queue_destroy(&queue);
    tap_check(tap, ok, "queue: every unit once, in order, then -1");
}

/* Rank 0 computes for two seconds without entering MPI; nobody else's calls may wait for it. */
static void test_queue_busy(mpi_tap *tap)
{
    mb_comm_queue *queue = NULL;
    int64_t unit = 0;
    volatile double work = 0;
    bool ok =
        mb_comm_queue_create(tap->comm, 1 << 20, &queue) == MB_OK && mb_comm_barrier(tap->comm) == MB_OK;
    const double start = mb_clock_seconds();
    if (mb_comm_rank(tap->comm) == 0)
        while (mb_clock_seconds() - start < 2) work += 1;
    else
        for (int i = 0; i < 100; i++) ok = mb_comm_queue_next(queue, &unit) == MB_OK && ok;
    const double took = mb_clock_seconds() - start;
    ok = ok && (mb_comm_rank(tap->comm) == 0 || took < 1.5);
    mb_comm_queue_destroy(&queue);
    tap_check(tap, ok, "queue: goes on while rank 0 computes");
}

static void test_error(mpi_tap *tap)
{
    int64_t value = 0;
    mb_status_reset();
    const mb_status status = mb_comm_bcast(tap->comm, &value, sizeof value, 1000);
    tap_check(tap,
              status == MB_ECOMM && strstr(mb_status_message(), "MPI_Bcast: ") != NULL &&
                  strstr(mb_status_message(), "root") != NULL,
              "an MPI error comes back as MB_ECOMM with MPI's text");
}

static int run_all(mb_comm *comm)
{
    mpi_tap tap = {.comm = comm};
    test_ranks(&tap);
    for (int cut = 0; cut < 2; cut++) {
        const char *how = cut ? "cut in messages of 64 bytes" : "whole";
        comm->message_max = cut ? 64 : MB_COMM_MESSAGE_MAX;
        test_bcast(&tap, how);
        test_reductions(&tap, how);
        test_gathers(&tap, how);
        test_alltoall(&tap, how);
        test_exchange(&tap, how);
    }
    comm->message_max = MB_COMM_MESSAGE_MAX;
    test_agree(&tap);
    test_split(&tap);
    test_share(&tap);
    test_queue(&tap);
    test_queue_busy(&tap);
    test_error(&tap);
    return tap_end(&tap);
}

static int run_fail(mb_comm *comm)
{
    mb_status status = MB_OK;
    if (mb_comm_rank(comm) == mb_comm_size(comm) - 1) status = mb_fail(MB_EDATA, "bad record");
    status = mb_comm_agree(comm, status);
    if (status == MB_OK) mb_comm_barrier(comm);
    return mb_comm_exit_code(comm, status);
}

static int run_abort(mb_comm *comm)
{
    if (mb_comm_rank(comm) == mb_comm_size(comm) - 1) mb_comm_abort(comm, 3);
    mb_comm_barrier(comm);
    return 0;
}

static int run_large(mb_comm *comm)
{
    mpi_tap tap = {.comm = comm};
    const int64_t n = (INT64_C(1) << 31) + 4099, part = n / mb_comm_size(comm) + 1;
    const int rank = mb_comm_rank(comm), size = mb_comm_size(comm);
    unsigned char *all = mb_calloc((size_t)(part * size), 1);
    bool ok = all != NULL;
    if (ok && rank == 0) fill(all, 3, n);
    ok = ok && mb_comm_bcast(comm, all, (size_t)n, 0) == MB_OK && is_filled(all, 3, n);
    tap_check(&tap, ok, "bcast of more than 2^31 bytes");
    unsigned char *mine = mb_calloc((size_t)part, 1);
    fill(mine, rank, part);
    ok = mb_comm_allgather(comm, mine, (size_t)part, all) == MB_OK;
    for (int r = 0; ok && r < size; r++) ok = is_filled(all + r * part, r, part);
    tap_check(&tap, ok, "allgather of more than 2^31 bytes");
    mb_free(mine);
    mb_free(all);
    return tap_end(&tap);
}

int main(int argc, char **argv)
{
    mb_comm *comm = NULL;
    const char *what = argc > 1 ? argv[1] : "all";
    if (mb_comm_create(&argc, &argv, &comm) != MB_OK) {
        fprintf(stderr, "# %s\n", mb_status_message());
        return 1;
    }
    int code = 2;
    if (strcmp(what, "all") == 0) code = run_all(comm);
    if (strcmp(what, "fail") == 0) code = run_fail(comm);
    if (strcmp(what, "abort") == 0) code = run_abort(comm);
    if (strcmp(what, "large") == 0) code = run_large(comm);
    mb_comm_destroy(&comm);
    if (mb_memory_live_blocks() != 0) {
        fprintf(stderr, "# %lld blocks leaked\n", (long long)mb_memory_live_blocks());
        code = 1;
    }
    return code;
}
