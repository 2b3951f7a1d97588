/* balance.c: load balance and z losses.
 *
 * Probabilities are not kept: a first pass sums them per block of rows (in parallel, each block by one
 * thread), the blocks are added in order, and a second pass computes them again for the gradient.
 *
 * 1. softmax of a row   2. load balance   3. z
 */
#include "learn/balance.h"

#include <math.h>
#include <string.h>

/* ---- 1. softmax of a row ---- */

/* probs[n] = softmax(logits[n]); returns the logsumexp. */
static double softmax_row(const float *logits, int64_t n, double *probs)
{
    double top = logits[0];
    for (int64_t e = 1; e < n; e++) top = logits[e] > top ? logits[e] : top;
    probs[0] = exp((double)logits[0] - top);
    double sum = probs[0];
    for (int64_t e = 1; e < n; e++) {
        probs[e] = exp((double)logits[e] - top);
        sum += probs[e];
    }
    double inverse = 1.0 / sum;
    for (int64_t e = 0; e < n; e++) probs[e] *= inverse;
    return top + log(sum);
}

static int64_t count_blocks(int64_t rows)
{
    return (rows + MB_ROUTING_BLOCK - 1) / MB_ROUTING_BLOCK;
}

static int64_t block_end(int64_t block, int64_t rows)
{
    int64_t end = (block + 1) * MB_ROUTING_BLOCK;
    return end < rows ? end : rows;
}

/* ---- 2. load balance ---- */

/* sums[n] = sum over the rows of one router of the probabilities over its first n experts. */
static void sum_probs(const mb_routing *routing, int64_t router, int64_t rows, int64_t n, double *partial,
                      double *sums)
{
    int64_t blocks = count_blocks(rows);
    const float *logits = routing->logits[router];
#pragma omp parallel for schedule(static) num_threads(routing->threads) if (blocks > 1)
    for (int64_t b = 0; b < blocks; b++) {
        double probs[MB_ROUTING_MAX_EXPERTS], *mine = partial + b * n;
        memset(mine, 0, (size_t)n * sizeof *mine);
        for (int64_t t = b * MB_ROUTING_BLOCK; t < block_end(b, rows); t++) {
            softmax_row(logits + t * routing->experts, n, probs);
            for (int64_t e = 0; e < n; e++) mine[e] += probs[e];
        }
    }
    for (int64_t b = 0; b < blocks; b++) {
        for (int64_t e = 0; e < n; e++) sums[e] += partial[b * n + e];
    }
}

/* Adds picks per expert to counts[n]; returns the rows they come from. */
static double count_picks(const mb_routing *routing, const mb_balance_rule *rule, int64_t router,
                          int64_t rows, int64_t n, double *counts)
{
    const int32_t *ids = routing->ids[router];
    if (rule->step_picks != NULL) {
        const int64_t *picks = rule->step_picks + router * routing->experts;
        double all = 0;
        for (int64_t e = 0; e < routing->experts; e++) all += (double)picks[e];
        for (int64_t e = 0; e < n; e++) counts[e] += (double)picks[e];
        return all / (double)routing->picks;
    }
    for (int64_t i = 0; i < rows * routing->picks; i++) {
        if (ids[i] < n) counts[ids[i]] += 1;
    }
    return (double)rows;
}

/* d logits += p_e (g_e - sum_j p_j g_j) for the rows of one router. */
static void add_gradient(const mb_routing *routing, int64_t router, int64_t rows, int64_t n, const double *g,
                         float *gradient)
{
    const float *logits = routing->logits[router];
#pragma omp parallel for schedule(static) num_threads(routing->threads) if (rows > MB_ROUTING_BLOCK)
    for (int64_t t = 0; t < rows; t++) {
        double probs[MB_ROUTING_MAX_EXPERTS], mean = 0;
        softmax_row(logits + t * routing->experts, n, probs);
        for (int64_t e = 0; e < n; e++) mean += probs[e] * g[e];
        float *row = gradient + t * routing->experts;
        for (int64_t e = 0; e < n; e++) row[e] = (float)((double)row[e] + probs[e] * (g[e] - mean));
    }
}

/* Value of routers first..first+count taken together; g[n] receives d value / d p of one row. */
static double load_of(const mb_routing *routing, const mb_balance_rule *rule, int64_t first, int64_t count,
                      int64_t rows, int64_t n, double *partial, double *sums, double *counts, double *g)
{
    memset(sums, 0, (size_t)n * sizeof *sums);
    memset(counts, 0, (size_t)n * sizeof *counts);
    double all = 0, value = 0, total_rows = 0;
    double balanced = rule->kind == MB_BALANCE_HF ? (double)routing->picks : 1.0;
    for (int64_t l = first; l < first + count; l++) {
        sum_probs(routing, l, rows, n, partial, sums);
        total_rows += count_picks(routing, rule, l, rows, n, counts);
    }
    for (int64_t e = 0; e < n; e++) all += counts[e];
    for (int64_t e = 0; e < n; e++) {
        double share = all > 0 ? balanced * counts[e] / all : 0;
        g[e] = (double)n * share / total_rows;
        value += g[e] * sums[e];
    }
    return value;
}

mb_status mb_balance_load(const mb_routing *routing, int64_t rows, const mb_balance_rule *rule, double scale,
                          mb_arena *arena, float *const *opt_gradient, double *out_value)
{
    mb_status status = MB_OK;
    int64_t n = rule->over_all ? routing->experts : routing->good;
    int64_t groups = rule->kind == MB_BALANCE_HF ? 1 : routing->routers, each = routing->routers / groups;
    double total = 0, *partial, *sums, *counts, *g;
    mb_arena_mark mark = mb_arena_mark_get(arena);
    MB_ARENA_ARRAY(arena, partial, count_blocks(rows) * n);
    MB_ARENA_ARRAY(arena, sums, n);
    MB_ARENA_ARRAY(arena, counts, n);
    MB_ARENA_ARRAY(arena, g, n);
    for (int64_t group = 0; group < groups; group++) {
        total +=
            load_of(routing, rule, group * each, each, rows, n, partial, sums, counts, g) / (double)groups;
        for (int64_t e = 0; e < n; e++) g[e] *= scale / (double)groups;
        for (int64_t l = group * each; opt_gradient != NULL && l < (group + 1) * each; l++) {
            add_gradient(routing, l, rows, n, g, opt_gradient[l]);
        }
    }
    *out_value = total;
done:
    mb_arena_release(arena, mark);
    return status;
}

/* ---- 3. z ---- */

mb_status mb_balance_z(const mb_routing *routing, int64_t rows, double scale, mb_arena *arena,
                       float *const *opt_gradient, double *out_value)
{
    mb_status status = MB_OK;
    int64_t n = routing->experts, blocks = count_blocks(rows);
    double total = 0, each = 1.0 / (double)(rows * routing->routers), *partial;
    mb_arena_mark mark = mb_arena_mark_get(arena);
    MB_ARENA_ARRAY(arena, partial, blocks);
    for (int64_t l = 0; l < routing->routers; l++) {
        const float *logits = routing->logits[l];
        float *gradient = opt_gradient == NULL ? NULL : opt_gradient[l];
#pragma omp parallel for schedule(static) num_threads(routing->threads) if (blocks > 1)
        for (int64_t b = 0; b < blocks; b++) {
            double probs[MB_ROUTING_MAX_EXPERTS];
            partial[b] = 0;
            for (int64_t t = b * MB_ROUTING_BLOCK; t < block_end(b, rows); t++) {
                double lse = softmax_row(logits + t * n, n, probs), slope = 2.0 * lse * each * scale;
                partial[b] += lse * lse;
                for (int64_t e = 0; gradient != NULL && e < n; e++) {
                    gradient[t * n + e] = (float)((double)gradient[t * n + e] + slope * probs[e]);
                }
            }
        }
        for (int64_t b = 0; b < blocks; b++) total += partial[b];
    }
    *out_value = total * each;
done:
    mb_arena_release(arena, mark);
    return status;
}
