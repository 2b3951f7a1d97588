/* test_lanes_mpi: sums over lanes have the bits of the fixed tree on this number of ranks.
 *
 * Gradients depend on (element, lane, step) only; the tree is computed again here by plain recursion. Rank 0
 * also prints
 * "# hash lanes=L n=N <hash>" lines, which run.sh compares over numbers of ranks and backends. MB_BENCH=1
 * adds timings.
 *
 *     test_lanes_mpi [BACKEND]
 */
#include <mpi.h>
#include <string.h>

#include "base/clock.h"
#include "base/hash.h"
#include "base/memory.h"
#include "comm/lanes.h"
#include "mpi_tap.h"

enum { ROUNDS = 3, STEPS = 2 };

/* A number with many bits and a wide range of exponents, so that every other order of additions shows. */
static float value_of(int64_t i, int64_t lane, int round, int step)
{
    uint64_t x = (uint64_t)i * 0x9E3779B97F4A7C15u +
                 (uint64_t)(lane * 1000 + round * 10 + step + 1) * 0xD1B54A32D192ED03u;
    x = (x ^ (x >> 29)) * 0xBF58476D1CE4E5B9u;
    x ^= x >> 32;
    const float mantissa = (float)(x & 0xFFFFFF) / 16777216.0f - 0.5f;
    return mantissa * (float)(1 << (x >> 28 & 15));
}

static float leaf(int64_t i, int64_t lane, int step)
{
    float sum = 0;
    for (int round = 0; round < ROUNDS; round++) sum += value_of(i, lane, round, step);
    return sum;
}

static float tree(int64_t i, int64_t lanes, int level, int64_t index, int step)
{
    if (level == 0) return leaf(i, index, step);
    const float left = tree(i, lanes, level - 1, 2 * index, step);
    const bool has_right = (2 * index + 1) << (level - 1) < lanes;
    return has_right ? left + tree(i, lanes, level - 1, 2 * index + 1, step) : left;
}

static int top_level(int64_t lanes)
{
    int level = 0;
    while (INT64_C(1) << level < lanes) level++;
    return level;
}

/* The gradient comes zeroed; here it is made in the host's memory, one round after another. */
static bool fill_lane(const mpi_tap *tap, int64_t lane, int64_t n, int step, float *host, float *gradient)
{
    bool ok = tap_read(tap, gradient, n, host);
    for (int64_t i = 0; ok && i < n; i += 1009) ok = host[i] == 0;
    for (int round = 0; ok && round < ROUNDS; round++)
        for (int64_t i = 0; i < n; i++) host[i] += value_of(i, lane, round, step);
    return ok && tap_write(tap, host, n, gradient);
}

static bool run_step(const mpi_tap *tap, mb_lanes *lanes, int64_t n, int step, float *host, float **out_owned)
{
    int64_t first, count;
    bool ok = true;
    mb_lanes_mine(lanes, &first, &count);
    for (int64_t lane = first; lane < first + count; lane++) {
        float *gradient = NULL;
        ok = mb_lanes_begin(lanes, lane, &gradient) == MB_OK && ok;
        ok = ok && fill_lane(tap, lane, n, step, host, gradient);
        ok = mb_lanes_end(lanes, lane) == MB_OK && ok;
    }
    return mb_lanes_reduce(lanes, out_owned) == MB_OK && ok;
}

static void test_sums(mpi_tap *tap, int64_t n, int64_t n_lanes)
{
    mb_lanes *lanes = NULL;
    char hash[MB_HASH_TEXT], note[128];
    int64_t first, count;
    float *host = mb_calloc((size_t)n, sizeof *host), *parameter = tap_new(tap, n), *owned = NULL;
    bool ok = mb_lanes_create(tap->transfer, n, n_lanes, &lanes) == MB_OK;
    if (!ok) mb_comm_abort(tap->comm, 1);
    mb_lanes_owned(lanes, &first, &count);
    for (int step = 0; step < STEPS; step++) {
        ok = run_step(tap, lanes, n, step, host, &owned) && ok && (owned == NULL) == (count == 0);
        if (count > 0) ok = ok && tap_read(tap, owned, count, host);
        for (int64_t i = 0; ok && i < count; i += i % 64 == 0 || i + 64 > count ? 1 : 7)
            ok = memcmp(&host[i], &(float){tree(first + i, n_lanes, top_level(n_lanes), 0, step)},
                        sizeof *host) == 0;
        if (ok && count > 0)
            ok = mb_ops_copy(tap->ops, owned, (size_t)count * sizeof *owned, parameter + first) == MB_OK;
        ok = mb_lanes_allgather(lanes, parameter) == MB_OK && ok;
    }
    ok = ok && tap_read(tap, parameter, n, host);
    for (int64_t i = 0; ok && i < n; i += 97)
        ok =
            memcmp(&host[i], &(float){tree(i, n_lanes, top_level(n_lanes), 0, STEPS - 1)}, sizeof *host) == 0;
    tap_check(tap, ok, "lanes=%lld n=%lld: sums are the tree's, gathered everywhere", (long long)n_lanes,
              (long long)n);
    mb_hash_bytes(host, (size_t)n * sizeof *host, hash);
    snprintf(note, sizeof note, "hash lanes=%lld n=%lld %s", (long long)n_lanes, (long long)n, hash);
    tap_note(tap, note);
    mb_lanes_destroy(&lanes);
    tap_free(tap, parameter);
    mb_free(host);
}

static void test_scalars(mpi_tap *tap, int64_t n_lanes)
{
    enum { WIDTH = 3, N = 7 * MB_LANES_BLOCK + 11 };
    mb_lanes *lanes = NULL;
    int64_t first, count, owned_first, owned_count;
    double sums[WIDTH], total = 0, blocks[8] = {0};
    char note[160];
    bool ok = mb_lanes_create(tap->transfer, N, n_lanes, &lanes) == MB_OK;
    if (!ok) mb_comm_abort(tap->comm, 1);
    mb_lanes_mine(lanes, &first, &count);
    mb_lanes_owned(lanes, &owned_first, &owned_count);
    double *values = mb_calloc((size_t)(count * WIDTH), sizeof *values);
    for (int64_t k = 0; k < count * WIDTH; k++) values[k] = 1e3 / (double)(first * WIDTH + k + 1);
    for (int64_t b = 0; b < (owned_count + MB_LANES_BLOCK - 1) / MB_LANES_BLOCK; b++)
        blocks[b] = 1.0 / (double)(owned_first / MB_LANES_BLOCK + b + 3);
    ok = mb_lanes_sum(lanes, values, WIDTH, sums) == MB_OK &&
         mb_lanes_block_sum(lanes, blocks, &total) == MB_OK;
    double expected = 0, exact = 0;
    for (int b = 0; b < 8; b++) expected += 1.0 / (b + 3);
    for (int64_t lane = 0; lane < n_lanes; lane++) exact += 1e3 / (double)(lane * WIDTH + 1);
    ok = ok && total == expected && sums[0] > exact * (1 - 1e-14) && sums[0] < exact * (1 + 1e-14);
    tap_check(tap, ok, "lanes=%lld: scalars per lane and per block", (long long)n_lanes);
    snprintf(note, sizeof note, "hash lanes=%lld scalars %a %a %a %a", (long long)n_lanes, sums[0], sums[1],
             sums[2], total);
    tap_note(tap, note);
    mb_free(values);
    mb_lanes_destroy(&lanes);
}

static void test_plan(mpi_tap *tap, int64_t n, int64_t n_lanes)
{
    mb_lanes *lanes = NULL;
    float *owned = NULL, *host = mb_calloc((size_t)n, sizeof *host);
    const int64_t before = mb_memory_live_bytes();
    bool ok = mb_lanes_create(tap->transfer, n, n_lanes, &lanes) == MB_OK &&
              run_step(tap, lanes, n, 0, host, &owned);
    const int64_t planned = (int64_t)mb_lanes_plan(n, n_lanes, mb_comm_size(tap->comm));
    int64_t used =
        mb_ops_is_device(tap->ops) ? (int64_t)mb_lanes_bytes(lanes) : mb_memory_live_bytes() - before;
    ok = mb_comm_allreduce_i64(tap->comm, &used, 1, MB_COMM_MAX) == MB_OK && ok;
    tap_check(tap, ok && used >= planned && used < planned + 65536,
              "lanes=%lld n=%lld: the plan is what is used (%lld planned, %lld used)", (long long)n_lanes,
              (long long)n, (long long)planned, (long long)used);
    mb_lanes_destroy(&lanes);
    mb_free(host);
}

static void test_too_many(mpi_tap *tap)
{
    mb_lanes *lanes = NULL;
    const int64_t allowed = mb_comm_size(tap->comm) - 1;
    const mb_status status = mb_lanes_create(tap->transfer, 10, allowed, &lanes);
    tap_check(tap,
              status == MB_EUSAGE && lanes == NULL && strstr(mb_status_message(), "training.lanes") != NULL,
              "more ranks than lanes is bad usage");
}

/* With these in the environment (NULL: not set) no transfer is made, and the reason names the variable. */
static void test_way(mpi_tap *tap, const char *way, const char *aware, mb_status expected)
{
    mb_transfer *transfer = NULL;
    char old_way[32], old_aware[32];
    snprintf(old_way, sizeof old_way, "%s",
             getenv("MB_GPU_TRANSFER") != NULL ? getenv("MB_GPU_TRANSFER") : "");
    snprintf(old_aware, sizeof old_aware, "%s", getenv("MB_MPI_CUDA") != NULL ? getenv("MB_MPI_CUDA") : "");
    setenv("MB_GPU_TRANSFER", way, 1);
    setenv("MB_MPI_CUDA", aware, 1);
    const mb_status status = mb_transfer_create(tap->comm, tap->ops, &transfer);
    tap_check(tap, status == expected && strstr(mb_status_message(), "MB_GPU_TRANSFER") != NULL,
              "MB_GPU_TRANSFER=%s is refused: %s", mb_comm_rank(tap->comm) == 0 ? way : "",
              mb_status_message());
    mb_transfer_destroy(&transfer);
    setenv("MB_GPU_TRANSFER", old_way, 1);
    setenv("MB_MPI_CUDA", old_aware, 1);
}

static void test_ways(mpi_tap *tap)
{
    if (!mb_ops_is_device(tap->ops) || mb_comm_size(tap->comm) == 1) return;
    test_way(tap, "carrier", "", MB_EUSAGE);
    test_way(tap, "mpi", "0", MB_EUNSUPPORTED);
    test_way(tap, mb_comm_rank(tap->comm) == 0 ? "staged" : "", "0", MB_EUSAGE);
    if (strcmp(mb_transfer_name(tap->transfer), "staged") == 0) /* on the only GPU there is */
        test_way(tap, "nccl", "0", MB_EUNSUPPORTED);
}

static double best_of(mb_comm *comm, double best, double start)
{
    double took = mb_clock_seconds() - start;
    if (mb_comm_minmax_f64(comm, &took, 1, MB_COMM_MAX) != MB_OK) mb_comm_abort(comm, 1);
    return best == 0 || took < best ? took : best;
}

static void bench(mpi_tap *tap, int64_t n, int64_t n_lanes)
{
    mb_lanes *lanes = NULL;
    int64_t first, count;
    double reduce = 0, gather = 0, mpi = 0;
    float *data = mb_calloc((size_t)n, sizeof *data), *sums = mb_calloc((size_t)n, sizeof *sums),
          *gradient = NULL, *owned = NULL, *parameter = tap_new(tap, n);
    char note[200];
    if (mb_lanes_create(tap->transfer, n, n_lanes, &lanes) != MB_OK) mb_comm_abort(tap->comm, 1);
    for (int64_t i = 0; i < n; i++) data[i] = value_of(i, mb_comm_rank(tap->comm), 0, 0);
    mb_lanes_mine(lanes, &first, &count);
    for (int repeat = 0; repeat < 7; repeat++) {
        for (int64_t lane = first; lane < first + count; lane++) {
            mb_lanes_begin(lanes, lane, &gradient);
            tap_write(tap, data, n, gradient);
            mb_lanes_end(lanes, lane);
        }
        mb_comm_barrier(tap->comm);
        double start = mb_clock_seconds();
        mb_lanes_reduce(lanes, &owned);
        mb_ops_wait(tap->ops);
        reduce = best_of(tap->comm, reduce, start);
        mb_comm_barrier(tap->comm);
        start = mb_clock_seconds();
        mb_lanes_allgather(lanes, parameter);
        mb_ops_wait(tap->ops);
        gather = best_of(tap->comm, gather, start);
        mb_comm_barrier(tap->comm);
        start = mb_clock_seconds();
        MPI_Allreduce(data, sums, (int)n, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
        mpi = best_of(tap->comm, mpi, start);
    }
    snprintf(note, sizeof note,
             "bench ranks=%d lanes=%lld floats=%lld reduce %.1f ms + allgather %.1f ms = %.1f ms, "
             "MPI_Allreduce %.1f ms",
             mb_comm_size(tap->comm), (long long)n_lanes, (long long)n, reduce * 1e3, gather * 1e3,
             (reduce + gather) * 1e3, mpi * 1e3);
    tap_note(tap, note);
    mb_lanes_destroy(&lanes);
    tap_free(tap, parameter);
    mb_free(data);
    mb_free(sums);
}

int main(int argc, char **argv)
{
    static const int64_t lane_counts[] = {1, 2, 3, 5, 6, 7, 8, 11, 16};
    mpi_tap tap = {0};
    int code;
    if (!tap_open(&tap, &argc, &argv, &code)) return code;
    const int size = mb_comm_size(tap.comm);
    for (size_t k = 0; k < sizeof lane_counts / sizeof *lane_counts; k++) {
        if (lane_counts[k] < size) continue;
        test_sums(&tap, 3 * MB_LANES_BLOCK + 17, lane_counts[k]);
        test_scalars(&tap, lane_counts[k]);
    }
    test_sums(&tap, 41 * MB_LANES_BLOCK - 1, 8); /* several rounds of messages per owner */
    test_sums(&tap, 5, 8);                       /* most ranks own nothing */
    test_sums(&tap, 0, 8);
    test_plan(&tap, 23 * MB_LANES_BLOCK - 1, 8);
    test_plan(&tap, 1000, 11);
    test_too_many(&tap);
    test_ways(&tap);
    if (getenv("MB_BENCH") != NULL) bench(&tap, 10000000, size);
    code = tap_end(&tap);
    tap_close(&tap);
    if (mb_memory_live_blocks() != 0) {
        fprintf(stderr, "# %lld blocks leaked\n", (long long)mb_memory_live_blocks());
        code = 1;
    }
    return code;
}
