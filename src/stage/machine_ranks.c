/* machine_ranks.c: the picture of all ranks, and a test of the way between them.
 *
 * 1. collecting   2. the link   3. hosts   4. verdicts
 */
#include "stage/machine_ranks.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "stage/machine_facts.h"

/* ---- 1. collecting ---- */

mb_status mb_machine_ranks_collect(mb_program *program, mb_machine_rank **out_ranks)
{
    mb_status status = MB_OK;
    mb_machine_rank mine, *all = NULL;
    const int size = mb_comm_size(program->comm);
    mb_machine_facts_get(size, &mine);
    snprintf(mine.arithmetic, sizeof mine.arithmetic, "%s", mb_ops_describe(program->ops));
    mine.threads = mb_ops_threads(program->ops);
    MB_NEW_ARRAY(all, size);
    MB_TRY(mb_comm_allgather(program->comm, &mine, sizeof mine, all));
    *out_ranks = all;
    all = NULL;
done:
    mb_free(all);
    return status;
}

/* ---- 2. the link ---- */

enum { PINGS = 200, BIG_MESSAGES = 16, BIG_BYTES = 4 << 20 };

/* What message `turn` holds. */
static unsigned char pattern(size_t i, int turn)
{
    return (unsigned char)(i * 31 + (i >> 8) + (size_t)turn * 7);
}

/* One message between the first rank and the last; both call it. */
static mb_status pass(mb_comm *comm, bool to_last, void *data, size_t bytes)
{
    mb_status status = MB_OK;
    mb_comm_exchange *exchange = NULL;
    const bool is_first = mb_comm_rank(comm) == 0, sends = is_first == to_last;
    const mb_comm_part part = {data, bytes, is_first ? mb_comm_size(comm) - 1 : 0};
    MB_TRY(mb_comm_exchange_start(comm, &part, sends, &part, !sends, &exchange));
    MB_TRY(mb_comm_exchange_wait(&exchange));
done:
    return status;
}

static int compare_reals(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

/* Half a round trip of 8 bytes, in microseconds: the median. */
static mb_status measure_latency(mb_comm *comm, double *out_us)
{
    mb_status status = MB_OK;
    uint64_t small = 0;
    double seconds[PINGS];
    for (int i = -10; i < PINGS; i++) { /* the first ten make ready */
        const double started = mb_clock_seconds();
        MB_TRY(pass(comm, true, &small, sizeof small));
        MB_TRY(pass(comm, false, &small, sizeof small));
        if (i >= 0) seconds[i] = mb_clock_seconds() - started;
    }
    qsort(seconds, PINGS, sizeof *seconds, compare_reals);
    *out_us = 1e6 * seconds[PINGS / 2] / 2;
done:
    return status;
}

/* Round trips of long messages: the way back carries other bytes than the way there, and each side checks
 * what it got. Only the first rank's clock counts. */
static mb_status measure_pair(mb_comm *comm, mb_machine_link *link)
{
    mb_status status = MB_OK;
    unsigned char *there = NULL, *back = NULL;
    double seconds = 0;
    const bool is_first = mb_comm_rank(comm) == 0;
    MB_NEW_ARRAY(there, BIG_BYTES);
    MB_NEW_ARRAY(back, BIG_BYTES);
    MB_TRY(measure_latency(comm, &link->us));
    for (int turn = 0; turn < BIG_MESSAGES; turn++) {
        unsigned char *mine = is_first ? there : back, *other = is_first ? back : there;
        for (size_t i = 0; i < BIG_BYTES; i++) mine[i] = pattern(i, is_first ? turn : turn + 100);
        MB_TRY(pass(comm, true, &turn, sizeof turn)); /* both are ready */
        const double started = mb_clock_seconds();
        MB_TRY(pass(comm, true, there, BIG_BYTES));
        MB_TRY(pass(comm, false, back, BIG_BYTES));
        if (turn > 0) seconds += mb_clock_seconds() - started; /* the first opens the connection */
        for (size_t i = 0; i < BIG_BYTES; i++)
            if (other[i] != pattern(i, is_first ? turn + 100 : turn)) link->is_data_right = false;
    }
    link->gb_per_s = 2e-9 * BIG_BYTES * (BIG_MESSAGES - 1) / seconds;
done:
    mb_free(there);
    mb_free(back);
    return status;
}

mb_status mb_machine_link_measure(mb_comm *comm, mb_machine_link *out_link)
{
    mb_status status = MB_OK;
    const int64_t n = mb_comm_size(comm), mine = mb_comm_rank(comm) + 1;
    int64_t sums[2] = {mine, mine * mine};
    mb_machine_link link = {.is_data_right = true};
    MB_TRY(mb_comm_allreduce_i64(comm, sums, 2, MB_COMM_SUM));
    link.is_sum_right = sums[0] == n * (n + 1) / 2 && sums[1] == n * (n + 1) * (2 * n + 1) / 6;
    if (n > 1) {
        MB_TRY(mb_comm_barrier(comm));
        if (mine == 1 || mine == n) status = measure_pair(comm, &link);
        MB_TRY(mb_comm_agree(comm, status));
        /* The last rank's view of the bytes counts too. */
        int64_t wrong = !link.is_data_right || !link.is_sum_right;
        MB_TRY(mb_comm_allreduce_i64(comm, &wrong, 1, MB_COMM_SUM));
        if (wrong > 0 && link.is_sum_right) link.is_data_right = false;
    }
    *out_link = link;
done:
    return status;
}

/* ---- 3. hosts ---- */

/* The ranks of one host, counted together. */
typedef struct host_view {
    const mb_machine_rank *first;
    uint64_t cpus[MB_MACHINE_CPUS / 64]; /* of any of its ranks */
    int ranks, first_rank, cpu_count, threads;
    bool is_contiguous;
} host_view;

static bool is_on(const mb_machine_rank *rank, const char *host)
{
    return strcmp(rank->host, host) == 0;
}

/* The host of rank `at`, or false when an earlier rank was there already. */
static bool view_host(const mb_machine_rank *ranks, int n, int at, host_view *view)
{
    for (int i = 0; i < at; i++)
        if (is_on(&ranks[i], ranks[at].host)) return false;
    *view = (host_view){.first = &ranks[at], .first_rank = at, .is_contiguous = true};
    for (int i = at; i < n; i++) {
        if (!is_on(&ranks[i], ranks[at].host)) continue;
        if (i != at + view->ranks) view->is_contiguous = false;
        view->ranks++;
        view->threads += ranks[i].threads;
        for (int k = 0; k < MB_MACHINE_CPUS / 64; k++) view->cpus[k] |= ranks[i].cpus[k];
    }
    for (int k = 0; k < MB_MACHINE_CPUS / 64; k++) view->cpu_count += __builtin_popcountll(view->cpus[k]);
    return true;
}

/* "0-3,8"; ends with "..." when it does not fit. */
static void list_cpus(const uint64_t *cpus, char *out_text, size_t bytes)
{
    size_t used = 0;
    out_text[0] = 0;
    for (int i = 0; i < MB_MACHINE_CPUS; i++) {
        int last = i;
        if ((cpus[i / 64] >> (i % 64) & 1) == 0) continue;
        while (last + 1 < MB_MACHINE_CPUS && (cpus[(last + 1) / 64] >> ((last + 1) % 64) & 1) != 0) last++;
        if (used + 24 > bytes) {
            snprintf(out_text + used, bytes - used, ",...");
            return;
        }
        const char *comma = used > 0 ? "," : "";
        used += (size_t)(last > i ? snprintf(out_text + used, bytes - used, "%s%d-%d", comma, i, last)
                                  : snprintf(out_text + used, bytes - used, "%s%d", comma, i));
        i = last;
    }
}

static double gb(int64_t bytes)
{
    return 1e-9 * (double)bytes;
}

static mb_status report_host(mb_machine_report *report, const host_view *view)
{
    const mb_machine_rank *first = view->first;
    char cpus[256], limit[64] = "", quota[64] = "", ranks[64];
    list_cpus(view->cpus, cpus, sizeof cpus);
    if (first->memory_limit > 0)
        snprintf(limit, sizeof limit, ", this job's limit %.1f GB", gb(first->memory_limit));
    if (first->quota > 0) snprintf(quota, sizeof quota, " (at most %d at a time)", first->quota);
    snprintf(ranks, sizeof ranks, view->is_contiguous && view->ranks > 1 ? "ranks %d-%d" : "%d ranks from %d",
             view->is_contiguous ? view->first_rank : view->ranks,
             view->is_contiguous ? view->first_rank + view->ranks - 1 : view->first_rank);
    if (view->ranks == 1) snprintf(ranks, sizeof ranks, "rank %d", view->first_rank);
    mb_machine_print("host %s: %s, %d thread%s on CPUs %s of %d%s", first->host, ranks, view->threads,
                     view->threads == 1 ? "" : "s", cpus, first->cpus_online, quota);
    mb_machine_print("  memory %.1f GB, %.1f GB available%s; GPUs: %d%s%s%s", gb(first->memory),
                     gb(first->memory_available), limit, first->gpus, first->gpu_text[0] != 0 ? " (" : "",
                     first->gpu_text, first->gpu_text[0] != 0 ? ")" : "");
    mb_machine_print("  arithmetic: %s", first->arithmetic);
    json_t *host = json_pack(
        "{s:s,s:i,s:i,s:s,s:i,s:I,s:I,s:I,s:i,s:s}", "host", first->host, "ranks", view->ranks, "threads",
        view->threads, "cpus", cpus, "cores", first->cpus_online, "memory_bytes", (json_int_t)first->memory,
        "memory_available_bytes", (json_int_t)first->memory_available, "memory_limit_bytes",
        (json_int_t)first->memory_limit, "gpus", first->gpus, "arithmetic", first->arithmetic);
    if (host == NULL || json_array_append_new(json_object_get(report->json, "hosts"), host) != 0)
        return mb_fail(MB_ENOMEM, "no memory for the report of %d ranks", view->ranks);
    return MB_OK;
}

/* ---- 4. verdicts ---- */

/* Threads against the CPUs they may run on, of each rank and of all ranks of a host. */
static bool judge_threads(mb_machine_report *report, const mb_machine_rank *ranks, int n,
                          const host_view *view)
{
    char cpus[128];
    for (int i = view->first_rank; i < n; i++) {
        const mb_machine_rank *r = &ranks[i];
        if (!is_on(r, view->first->host) || r->threads <= r->cpu_count) continue;
        list_cpus(r->cpus, cpus, sizeof cpus);
        mb_machine_verdict(
            report, MB_MACHINE_WARN,
            "rank %d on %s runs %d threads on %d CPU%s (%s); set OMP_NUM_THREADS=%d, or give it "
            "more: srun --cpus-per-task=%d, mpirun --map-by slot:PE=%d",
            i, r->host, r->threads, r->cpu_count, r->cpu_count == 1 ? "" : "s", cpus, r->cpu_count,
            r->threads, r->threads);
        return false;
    }
    int room = view->cpu_count;
    if (view->first->quota > 0 && view->first->quota < room) room = view->first->quota;
    if (view->threads <= room) return true;
    list_cpus(view->cpus, cpus, sizeof cpus);
    const int each = room / view->ranks > 0 ? room / view->ranks : 1;
    mb_machine_verdict(
        report, MB_MACHINE_WARN,
        "%d rank%s on %s run %d threads and share %d CPU%s (%s); %s set OMP_NUM_THREADS=%d, and "
        "bind ranks to CPUs of their own: srun --cpus-per-task=%d --cpu-bind=cores, mpirun "
        "--map-by slot:PE=%d --bind-to core",
        view->ranks, view->ranks == 1 ? "" : "s", view->first->host, view->threads, room,
        room == 1 ? "" : "s", cpus, view->ranks > room ? "start at most a rank per CPU," : "", each, each,
        each);
    return false;
}

static void judge_host(mb_machine_report *report, const host_view *view)
{
    const mb_machine_rank *first = view->first;
    const int64_t memory = first->memory_limit > 0 ? first->memory_limit : first->memory_available;
    if (memory > 0 && memory / view->ranks < (int64_t)1 << 30)
        mb_machine_verdict(
            report, MB_MACHINE_WARN,
            "%s has %.2f GB for each of its %d ranks; ask for more (sbatch --mem) or start fewer ranks "
            "per node",
            first->host, gb(memory / view->ranks), view->ranks);
    if (view->ranks > 1 && first->shared_memory_free >= 0 && first->shared_memory_free < (int64_t)64 << 20)
        mb_machine_verdict(
            report, MB_MACHINE_WARN,
            "%s has %.0f MB free in /dev/shm, through which ranks of a node talk; make it larger (mount -o "
            "remount,size=1G /dev/shm; containers: --shm-size=1g)",
            first->host, 1e-6 * (double)first->shared_memory_free);
    if (first->file_limit > 0 && first->file_limit < 1024)
        mb_machine_verdict(report, MB_MACHINE_WARN,
                           "%s allows %d open files; raise it: ulimit -n 4096, before srun or mpirun",
                           first->host, first->file_limit);
    if (first->gpus > 0 && !mb_str_is_prefix(first->arithmetic, "cuda"))
        mb_machine_verdict(report, MB_MACHINE_OK, "%s has %d GPU%s, and these ranks compute on CPUs%s",
                           first->host, first->gpus, first->gpus == 1 ? "" : "s",
                           mb_ops_gpu_count() > 0 ? "" : "; this build has no CUDA, or sees no GPU");
}

static void judge_arithmetic(mb_machine_report *report, const mb_machine_rank *ranks, int n)
{
    for (int i = 1; i < n; i++)
        if (strcmp(ranks[i].arithmetic, ranks[0].arithmetic) != 0) {
            mb_machine_verdict(
                report, MB_MACHINE_WARN,
                "%s and %s compute differently (%s; %s): results lose their equal bits; take nodes of "
                "one kind (sbatch --constraint) and the same OMP_NUM_THREADS on all",
                ranks[0].host, ranks[i].host, ranks[0].arithmetic, ranks[i].arithmetic);
            return;
        }
    if (mb_str_is_prefix(ranks[0].arithmetic, "ref"))
        mb_machine_verdict(
            report, MB_MACHINE_WARN,
            "plain C does the arithmetic, for tests and not for work; install oneDNN or OpenBLAS and "
            "build again (make deps), or take backend=auto away from ref");
    else
        mb_machine_verdict(report, MB_MACHINE_OK, "arithmetic: %s", ranks[0].arithmetic);
}

mb_status mb_machine_ranks_report(mb_machine_report *report, const mb_machine_rank *ranks, int n)
{
    mb_status status = MB_OK;
    host_view view;
    int hosts = 0;
    bool has_room = true;
    MB_TRY(mb_json_set(report->json, "ranks", json_integer(n)));
    MB_TRY(mb_json_set(report->json, "hosts", json_array()));
    for (int i = 0; i < n; i++) {
        if (!view_host(ranks, n, i, &view)) continue;
        hosts++;
        MB_TRY(report_host(report, &view));
        has_room &= judge_threads(report, ranks, n, &view);
        judge_host(report, &view);
    }
    if (ranks[0].is_alone)
        mb_machine_verdict(
            report, MB_MACHINE_BROKEN,
            "the launcher started several tasks, but each is alone: program and launcher do not speak the "
            "same MPI; use srun --mpi=pmix (see srun --mpi=list) or the mpirun of the MPI named above");
    else
        mb_machine_verdict(report, MB_MACHINE_OK, "%d rank%s on %d host%s", n, n == 1 ? "" : "s", hosts,
                           hosts == 1 ? "" : "s");
    if (has_room) mb_machine_verdict(report, MB_MACHINE_OK, "every thread has a CPU of its own");
    judge_arithmetic(report, ranks, n);
done:
    return status;
}

mb_status mb_machine_link_report(mb_machine_report *report, const mb_machine_rank *ranks, int n,
                                 const mb_machine_link *link)
{
    mb_status status = MB_OK;
    if (n < 2) goto done;
    const bool is_far = !is_on(&ranks[n - 1], ranks[0].host);
    mb_machine_print("rank 0 (%s) to rank %d (%s): %.1f us, %.2f GB/s", ranks[0].host, n - 1,
                     ranks[n - 1].host, link->us, link->gb_per_s);
    MB_TRY(mb_json_set(report->json, is_far ? "network_us" : "node_us", json_real(link->us)));
    MB_TRY(
        mb_json_set(report->json, is_far ? "network_gb_per_s" : "node_gb_per_s", json_real(link->gb_per_s)));
    if (!link->is_sum_right || !link->is_data_right)
        mb_machine_verdict(
            report, MB_MACHINE_BROKEN,
            "%s between ranks came out wrong; the MPI library or the network is at fault: try another "
            "transport (mpirun --mca pml ob1 --mca btl tcp,self)",
            link->is_sum_right ? "a message" : "a sum");
    else
        mb_machine_verdict(report, MB_MACHINE_OK, "ranks see each other: sum and messages are right");
    if (is_far && link->gb_per_s < 0.05)
        mb_machine_verdict(
            report, MB_MACHINE_WARN,
            "%.0f MB/s between %s and %s is slow for training over nodes; see that MPI uses the fast "
            "network (UCX_NET_DEVICES, mpirun --mca btl_tcp_if_include)",
            1e3 * link->gb_per_s, ranks[0].host, ranks[n - 1].host);
done:
    return status;
}
