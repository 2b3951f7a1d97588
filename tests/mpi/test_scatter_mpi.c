/* test_scatter_mpi: gradients that go to their owners segment by segment have the bits of the fixed tree on
 * this number of ranks; ranks without work do not hold up the others; windows show what was written.
 *
 * Values depend on (element, lane, round) only; the tree is computed again here by plain recursion. Rank 0
 * prints "# hash ..." lines, which run.sh compares over numbers of ranks and backends.
 *
 *     test_scatter_mpi [BACKEND]
 */
#include <string.h>

#include "base/hash.h"
#include "base/memory.h"
#include "comm/scatter.h"
#include "comm/window.h"
#include "mpi_tap.h"

enum { SEGMENTS = 6 };

static float value_of(int64_t i, int64_t lane, int64_t round)
{
    uint64_t x =
        (uint64_t)i * 0x9E3779B97F4A7C15u + (uint64_t)(lane * 1000 + round * 10 + 1) * 0xD1B54A32D192ED03u;
    x = (x ^ (x >> 29)) * 0xBF58476D1CE4E5B9u;
    x ^= x >> 32;
    const float mantissa = (float)(x & 0xFFFFFF) / 16777216.0f - 0.5f;
    return mantissa * (float)(1 << (x >> 28 & 15));
}

static float tree(int64_t i, int64_t lanes, int64_t microbatches, int level, int64_t index, int64_t round)
{
    if (level == 0) return round * lanes + index < microbatches ? value_of(i, index, round) : 0;
    const float left = tree(i, lanes, microbatches, level - 1, 2 * index, round);
    const bool has_right = (2 * index + 1) << (level - 1) < lanes;
    return has_right ? left + tree(i, lanes, microbatches, level - 1, 2 * index + 1, round) : left;
}

static float expected(int64_t i, int64_t lanes, int64_t microbatches)
{
    int level = 0;
    while (INT64_C(1) << level < lanes) level++;
    float sum = tree(i, lanes, microbatches, level, 0, 0);
    for (int64_t round = 1; round * lanes < microbatches; round++)
        sum += tree(i, lanes, microbatches, level, 0, round);
    return sum;
}

/* n cut into segments given from the last to the first, one of them empty, one shorter than a block. */
static void cut(int64_t n, int64_t first[SEGMENTS], int64_t count[SEGMENTS])
{
    const int64_t ends[SEGMENTS + 1] = {n, n - n / 3, n - n / 3, n / 2, n / 2 - 11, n / 7, 0};
    for (int s = 0; s < SEGMENTS; s++) first[s] = ends[s + 1], count[s] = ends[s] - ends[s + 1];
}

/* A micro-batch; fail_at: the segment after which nothing more is put (a rank whose work failed). */
static bool run_wave(const mpi_tap *tap, mb_scatter *s, const int64_t *first, const int64_t *count,
                     int64_t lane, int64_t round, int fail_at, float *host)
{
    bool ok = true;
    float *last = NULL, *room = NULL;
    ok = mb_scatter_room(s, SEGMENTS - 1, &last) == MB_OK; /* open from the start, as a tied head's is */
    for (int g = 0; ok && g < fail_at; g++) {
        if (g == SEGMENTS - 1)
            room = last;
        else
            ok = mb_scatter_room(s, g, &room) == MB_OK;
        ok = ok && tap_read(tap, room, count[g], host);
        for (int64_t i = 0; ok && i < count[g]; i++) {
            if (host[i] != 0) ok = false;
            host[i] = value_of(first[g] + i, lane, round);
        }
        ok = tap_write(tap, host, count[g], room) && ok;
        ok = mb_scatter_put(s, g) == MB_OK && ok;
    }
    return ok;
}

static void test_sums(mpi_tap *tap, int64_t n, int64_t lanes, int64_t microbatches)
{
    mb_scatter *s = NULL;
    mb_lanes *space = NULL;
    int64_t first[SEGMENTS], count[SEGMENTS], owned_first, owned_count, largest = 0;
    char hash[MB_HASH_TEXT], note[160];
    cut(n, first, count);
    for (int g = 0; g < SEGMENTS; g++)
        if (count[g] > largest) largest = count[g];
    bool ok = mb_scatter_create(tap->transfer, n, lanes, SEGMENTS, first, count, &s) == MB_OK &&
              mb_lanes_create(tap->transfer, n, lanes, &space) == MB_OK;
    float *host = mb_calloc((size_t)n, sizeof *host), *all = tap_new(tap, n);
    if (!ok) mb_comm_abort(tap->comm, 1);
    mb_lanes_owned(space, &owned_first, &owned_count);
    for (int step = 0; step < 2; step++)
        for (int64_t round = 0; round * lanes < microbatches; round++)
            for (int64_t wave = 0; wave < mb_scatter_waves(s); wave++) {
                const int64_t lane = mb_scatter_lane(s, wave);
                mb_scatter_begin(s, round, wave);
                if (lane >= 0 && round * lanes + lane < microbatches)
                    ok = run_wave(tap, s, first, count, lane, round, SEGMENTS, host) && ok;
                ok = mb_scatter_finish(s) == MB_OK && ok;
            }
    const float *owned = mb_scatter_owned(s);
    if (owned_count > 0) ok = ok && tap_read(tap, owned, owned_count, host);
    for (int64_t i = 0; ok && i < owned_count; i += i % 64 == 0 || i + 64 > owned_count ? 1 : 7)
        ok = memcmp(&host[i], &(float){expected(owned_first + i, lanes, microbatches)}, sizeof *host) == 0;
    if (owned_count > 0)
        ok = mb_ops_copy(tap->ops, owned, (size_t)owned_count * sizeof *owned, all + owned_first) == MB_OK &&
             ok;
    ok = mb_lanes_allgather(space, all) == MB_OK && ok;
    ok = tap_read(tap, all, n, host) && ok;
    tap_check(tap, ok, "scatter lanes=%lld n=%lld micro-batches=%lld: sums are the tree's", (long long)lanes,
              (long long)n, (long long)microbatches);
    mb_hash_bytes(host, (size_t)n * sizeof *host, hash);
    snprintf(note, sizeof note, "hash scatter lanes=%lld m=%lld n=%lld %s", (long long)lanes,
             (long long)microbatches, (long long)n, hash);
    tap_note(tap, note);
    const size_t planned = mb_scatter_plan(n, lanes, mb_comm_size(tap->comm), largest + count[SEGMENTS - 1]),
                 used = mb_scatter_peak_bytes(s);
    int64_t peak = (int64_t)used;
    ok = mb_comm_allreduce_i64(tap->comm, &peak, 1, MB_COMM_MAX) == MB_OK;
    tap_check(tap, ok && (size_t)peak <= planned && (double)peak >= 0.7 * (double)planned,
              "scatter lanes=%lld n=%lld: %lld bytes planned, %lld used", (long long)lanes, (long long)n,
              (long long)planned, (long long)peak);
    tap_free(tap, all);
    mb_free(host);
    mb_scatter_destroy(&s);
    mb_lanes_destroy(&space);
}

/* Rank 1 stops after two segments; nobody waits for ever. */
static void test_failing_rank(mpi_tap *tap)
{
    mb_scatter *s = NULL;
    int64_t first[SEGMENTS], count[SEGMENTS];
    const int rank = mb_comm_rank(tap->comm);
    float *host = mb_calloc(300000, sizeof *host);
    cut(300000, first, count);
    bool ok = mb_scatter_create(tap->transfer, 300000, 8, SEGMENTS, first, count, &s) == MB_OK;
    if (!ok) mb_comm_abort(tap->comm, 1);
    mb_scatter_begin(s, 0, 0);
    ok = run_wave(tap, s, first, count, mb_scatter_lane(s, 0), 0, rank == 1 ? 2 : SEGMENTS, host);
    ok = mb_scatter_finish(s) == MB_OK && ok;
    mb_status mine = rank == 1 ? mb_fail(MB_ENUMERIC, "loss is nan") : MB_OK;
    const mb_status agreed = mb_comm_agree(tap->comm, mine);
    const bool alone = mb_comm_size(tap->comm) == 1;
    ok = ok && agreed == (alone ? MB_OK : rank == 1 ? MB_ENUMERIC : MB_ECOMM);
    tap_check(tap, ok, "a rank that fails inside a wave lets the others end it");
    mb_scatter_destroy(&s);
    mb_free(host);
}

static void test_scalars(mpi_tap *tap, int64_t lanes)
{
    mb_scatter *s = NULL;
    const int64_t zero = 0, all = 70000;
    double sums[2], values[64][2] = {{0}};
    char note[160];
    bool ok = mb_scatter_create(tap->transfer, all, lanes, 1, &zero, &all, &s) == MB_OK;
    if (!ok) mb_comm_abort(tap->comm, 1);
    for (int64_t w = 0; w < mb_scatter_waves(s); w++) {
        const int64_t lane = mb_scatter_lane(s, w);
        for (int k = 0; lane >= 0 && k < 2; k++) values[w][k] = 1e3 / (double)(lane * 2 + k + 1);
    }
    ok = mb_scatter_sum(s, &values[0][0], 2, sums) == MB_OK;
    tap_check(tap, ok && sums[0] > sums[1], "scatter lanes=%lld: scalars per lane", (long long)lanes);
    snprintf(note, sizeof note, "hash scatter lanes=%lld scalars %a %a", (long long)lanes, sums[0], sums[1]);
    tap_note(tap, note);
    mb_scatter_destroy(&s);
}

static void test_window(mpi_tap *tap)
{
    enum { N = 1000 };
    const int rank = mb_comm_rank(tap->comm), size = mb_comm_size(tap->comm);
    mb_window *window = NULL;
    int32_t *mine, got[N];
    bool ok =
        mb_window_create(tap->comm, (size_t)(rank + 1) * N * sizeof *mine, (void **)&mine, &window) == MB_OK;
    if (!ok) mb_comm_abort(tap->comm, 1);
    for (int version = 1; version <= 3; version++) {
        for (int i = 0; i < (rank + 1) * N; i++) {
            ok = ok && mine[i] == (version == 1 ? 0 : rank * 10000 + i + version - 1);
            mine[i] = rank * 10000 + i + version;
        }
        ok = mb_window_sync(window) == MB_OK && ok;
        for (int r = 0; r < size; r++) {
            ok = mb_window_get(window, r, (size_t)r * N * sizeof *mine, got, sizeof got) == MB_OK &&
                 mb_window_wait(window) == MB_OK && ok;
            for (int i = 0; i < N; i++) ok = ok && got[i] == r * 10000 + r * N + i + version;
        }
        ok = mb_window_sync(window) == MB_OK && ok;
    }
    tap_check(tap, ok, "a window's parts are read as they were written");
    mb_window_destroy(&window);
    ok = mb_window_create_shared(tap->comm, sizeof got, (void **)&mine, &window) == MB_OK;
    if (!ok) mb_comm_abort(tap->comm, 1);
    for (int i = 0; mb_comm_local_rank(tap->comm) == 0 && i < N; i++) mine[i] = 7 * i;
    ok = mb_window_sync(window) == MB_OK;
    for (int i = 0; i < N; i++) ok = ok && mine[i] == 7 * i;
    tap_check(tap, ok, "a node's memory is filled by one rank and read by all");
    mb_window_destroy(&window);
}

int main(int argc, char **argv)
{
    mpi_tap tap = {0};
    int code;
    if (!tap_open(&tap, &argc, &argv, &code)) return code;
    const int size = mb_comm_size(tap.comm);
    for (int64_t lanes = size; lanes <= 8; lanes++) {
        test_sums(&tap, 200000, lanes, lanes);
        test_scalars(&tap, lanes);
    }
    test_sums(&tap, 700001, 8, 8);
    test_sums(&tap, 200000, 8, 21);
    test_sums(&tap, 1000, 8, 3);
    test_failing_rank(&tap);
    test_window(&tap);
    code = tap_end(&tap);
    tap_close(&tap);
    return code == 0 && mb_memory_live_blocks() != 0 ? 1 : code;
}
