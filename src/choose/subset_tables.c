/* subset_tables.c: every subset.
 *
 * With few voters the answering members M of a question are one of few sets. M answers for exactly those sets
 * S that hold all of M and none of N, the experts in front of M's last place (of a smaller M than top_k: all
 * others). With s = 1 for experts in S, that indicator is
 *     prod over M of s * prod over N of (1 - s) = sum over V within M of (-1)^|V| [S has none of N + V],
 * so 2^|M| entries h[N + V] make a question's answer, and right(S) is the sum of h over all subsets of S's
 * complement: one transform (Yates) for all questions together.
 *
 * 1. few voters   2. set by set   3. costs   4. the table
 */
#include <omp.h>
#include <stdlib.h>

#include "base/memory.h"
#include "base/stop.h"
#include "choose/subset_state.h"

/* ---- 1. few voters ---- */

static void add_entries(uint32_t *h, uint64_t members, uint64_t barred)
{
    uint64_t v = members;
    for (;;) {
        const uint32_t sign = (mb_subset_count(v) & 1) != 0 ? UINT32_MAX : 1; /* modulo 2^32 */
#pragma omp atomic
        h[barred | v] += sign;
        if (v == 0) return;
        v = (v - 1) & members;
    }
}

/* Sets of answering members from place r on; `before`: all experts at places before r. */
static void walk_members(const mb_subset *s, const mb_subset_question *q, uint32_t *h, int r,
                         uint64_t members, uint64_t before)
{
    if (mb_subset_count(members) == s->voters_most) {
        if (mb_subset_decide(s, q, members)) add_entries(h, members, before & ~members);
        return;
    }
    if (members != 0 && mb_subset_decide(s, q, members))
        add_entries(h, members, mb_subset_all(s->experts) & ~members);
    for (; r < s->experts; r++) {
        const uint64_t bit = mb_subset_bit(q->order[r]);
        before |= bit;
        walk_members(s, q, h, r + 1, members | bit, before);
    }
}

/* h[T] becomes the sum of h over the subsets of T. */
static void sum_over_subsets(uint32_t *h, int experts, int threads)
{
    const int64_t n = (int64_t)1 << experts;
    for (int e = 0; e < experts; e++) {
        const int64_t bit = (int64_t)1 << e;
#pragma omp parallel for num_threads(threads) schedule(static)
        for (int64_t t = 0; t < n; t++)
            if (t & bit) h[t] += h[t ^ bit];
    }
}

/* Adds up what the ranks have: counts modulo 2^32, in any order the same. */
static mb_status add_ranks(mb_comm *comm, uint32_t *h, int64_t n)
{
    mb_status status = MB_OK;
    const int64_t piece = n < 65536 ? n : 65536;
    int64_t *wide = NULL;
    if (mb_comm_size(comm) == 1) return MB_OK;
    wide = mb_calloc((size_t)piece, sizeof *wide);
    MB_TRY(mb_comm_agree(comm, wide != NULL ? MB_OK : MB_ENOMEM));
    for (int64_t first = 0; first < n; first += piece) {
        for (int64_t i = 0; i < piece; i++) wide[i] = h[first + i];
        MB_TRY(mb_comm_allreduce_i64(comm, wide, piece, MB_COMM_SUM));
        for (int64_t i = 0; i < piece; i++) h[first + i] = (uint32_t)wide[i];
    }
done:
    mb_free(wide);
    return status;
}

static mb_status agree_stop(mb_comm *comm, bool is_stopped)
{
    return mb_comm_agree(comm, is_stopped ? mb_fail(MB_ESTOPPED, "stopped in the sweep over all subsets; run "
                                                                 "again")
                                          : MB_OK);
}

static mb_status sweep_few(mb_comm *comm, const mb_subset *s, int threads, uint32_t *right)
{
    mb_status status = MB_OK;
    const int64_t n = (int64_t)1 << s->experts;
    int64_t first, count;
    bool is_stopped = false;
    uint32_t *h = mb_calloc((size_t)n, sizeof *h);
    MB_TRY(mb_comm_agree(comm, h != NULL ? MB_OK : MB_ENOMEM));
    mb_comm_share(comm, s->questions, &first, &count);
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
    for (int64_t q = first; q < first + count; q++) {
        if (mb_stop_is_set()) {
#pragma omp atomic write
            is_stopped = true;
            continue;
        }
        walk_members(s, s->question + q, h, 0, 0, 0);
    }
    MB_TRY(agree_stop(comm, is_stopped));
    MB_TRY(add_ranks(comm, h, n));
    sum_over_subsets(h, s->experts, threads);
    for (int64_t t = 0; t < n; t++) right[t] = h[(n - 1) ^ t];
done:
    mb_free(h);
    return status;
}

/* Entries that a question makes at most: sum over j <= top_k of C(X, j) 2^j. */
static double few_entries(const mb_subset *s)
{
    double sum = 0, term = 1;
    for (int j = 1; j <= s->voters_most; j++) {
        term *= 2.0 * (s->experts - j + 1) / j;
        sum += term;
    }
    return sum;
}

/* ---- 2. set by set ---- */

static mb_status sweep_all(mb_comm *comm, const mb_subset *s, int threads, mb_subset_table *table)
{
    mb_status status = MB_OK;
    const int64_t n = (int64_t)1 << s->experts;
    const int size = mb_comm_size(comm);
    int64_t first, count, *offsets = NULL;
    bool is_stopped = false;
    offsets = mb_calloc((size_t)size + 1, sizeof *offsets);
    MB_TRY(mb_comm_agree(comm, offsets != NULL ? MB_OK : MB_ENOMEM));
    mb_comm_share(comm, n, &first, &count);
#pragma omp parallel for num_threads(threads) schedule(dynamic, 256)
    for (int64_t t = first; t < first + count; t++) {
        mb_subset_found found;
        if (t == 0) continue;
        if (mb_stop_is_set()) {
#pragma omp atomic write
            is_stopped = true;
            continue;
        }
        mb_subset_measure(s, (uint64_t)t, &found);
        table->right[t] = (uint32_t)found.right;
        table->energy[t] = found.energy;
    }
    MB_TRY(agree_stop(comm, is_stopped));
    for (int width = 4; width <= 8; width += 4) {
        for (int r = 0; r <= size; r++) {
            int64_t at = n, unused;
            if (r < size) mb_comm_share_of(n, size, r, &at, &unused);
            offsets[r] = at * width;
        }
        MB_TRY(mb_comm_allgather_parts(comm, width == 4 ? (void *)table->right : (void *)table->energy,
                                       offsets));
    }
done:
    mb_free(offsets);
    return status;
}

/* ---- 3. costs ---- */

static void fill_costs(const mb_subset *s, int threads, mb_subset_table *table)
{
    const int64_t n = (int64_t)1 << s->experts;
    const bool has_energy = s->options.is_energy_mean;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t t = 1; t < n; t++) {
        table->latency[t] = mb_subset_latency(s, (uint64_t)t);
        if (!has_energy) table->energy[t] = mb_subset_energy_max(s, (uint64_t)t);
    }
}

/* ---- 4. the table ---- */

mb_status mb_subset_sweep(mb_comm *comm, const mb_subset *subset, int threads, mb_subset_table *out_table)
{
    mb_status status = MB_OK;
    const int64_t n = (int64_t)1 << (subset->experts <= MB_SUBSET_EXHAUSTIVE ? subset->experts : 0);
    *out_table = (mb_subset_table){.experts = subset->experts, .questions = subset->questions};
    if (subset->experts > MB_SUBSET_EXHAUSTIVE)
        MB_RAISE(MB_ERANGE, "%d experts have too many subsets for a sweep over all; at most %d are swept",
                 subset->experts, MB_SUBSET_EXHAUSTIVE);
    if (threads <= 0) threads = omp_get_max_threads();
    out_table->right = mb_calloc((size_t)n, sizeof *out_table->right);
    out_table->latency = mb_calloc((size_t)n, sizeof *out_table->latency);
    out_table->energy = mb_calloc((size_t)n, sizeof *out_table->energy);
    const bool has_room = out_table->right != NULL && out_table->latency != NULL && out_table->energy != NULL;
    MB_TRY(mb_comm_agree(comm, has_room ? MB_OK : MB_ENOMEM));
    if (!subset->options.is_energy_mean && few_entries(subset) < (double)n)
        MB_TRY(sweep_few(comm, subset, threads, out_table->right));
    else
        MB_TRY(sweep_all(comm, subset, threads, out_table));
    fill_costs(subset, threads, out_table);
done:
    if (status != MB_OK) mb_subset_table_reset(out_table);
    return status;
}

void mb_subset_table_reset(mb_subset_table *table)
{
    mb_free(table->right);
    mb_free(table->latency);
    mb_free(table->energy);
    *table = (mb_subset_table){0};
}

void mb_subset_table_get(const mb_subset_table *table, uint64_t set, mb_subset_found *out_found)
{
    *out_found = (mb_subset_found){
        .set = set, .right = table->right[set], .latency = table->latency[set], .energy = table->energy[set]};
}
