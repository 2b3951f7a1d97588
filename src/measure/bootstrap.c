/* bootstrap.c: draws with replacement, and percentiles.
 *
 * Number j of draw b is the record that the counter (b * records + j) gives. A draw first counts how often it
 * took each record and then adds every column up in the records' order, so the columns share the draws and
 * the sums have one order.
 *
 * 1. statistics   2. draws   3. intervals
 */
#include "measure/bootstrap.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "base/rng.h"

/* ---- 1. statistics ---- */

/* times NULL: each record once. */
static double statistic(const mb_bootstrap_column *column, int64_t records, const int32_t *times)
{
    double value = 0, weight = 0;
    for (int64_t i = 0; i < records; i++) {
        const double n = times != NULL ? times[i] : 1;
        if (n == 0) continue;
        const double w = column->weight != NULL ? column->weight[i] : 1;
        if (w == 0) continue;
        value += n * column->value[i];
        weight += n * w;
    }
    return weight > 0 ? value / weight : NAN;
}

double mb_bootstrap_statistic(const mb_bootstrap_column *column, int64_t records)
{
    return statistic(column, records, NULL);
}

/* ---- 2. draws ---- */

static void count_draw(int64_t draw, int64_t records, uint64_t seed, uint32_t sub, int32_t *times)
{
    memset(times, 0, (size_t)records * sizeof *times);
    for (int64_t j = 0; j < records; j++)
        times[mb_rng_below(seed, MB_RNG_BOOTSTRAP, sub, (uint64_t)(draw * records + j), (uint64_t)records)]++;
}

mb_status mb_bootstrap_draw(const mb_bootstrap_column *column, int64_t columns, int64_t records,
                            int64_t draws, uint64_t seed, uint32_t sub, double *out)
{
    mb_status status = MB_OK;
    bool has_memory = true;
#pragma omp parallel reduction(&& : has_memory)
    {
        int32_t *times = mb_calloc((size_t)records + 1, sizeof *times);
        has_memory = times != NULL;
#pragma omp for schedule(static)
        for (int64_t b = 0; b < draws; b++) {
            if (times == NULL) continue;
            count_draw(b, records, seed, sub, times);
            for (int64_t c = 0; c < columns; c++)
                out[b * columns + c] = statistic(&column[c], records, times);
        }
        mb_free(times);
    }
    if (!has_memory) MB_RAISE(MB_ENOMEM, "no memory for draws of %lld records", (long long)records);
done:
    return status;
}

/* ---- 3. intervals ---- */

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double percentile(const double *sorted, int64_t n, double share)
{
    const double at = share * (double)(n - 1);
    const int64_t below = (int64_t)floor(at);
    if (below + 1 >= n) return sorted[n - 1];
    return sorted[below] + (at - (double)below) * (sorted[below + 1] - sorted[below]);
}

mb_status mb_bootstrap_interval(const double *values, int64_t count, int64_t stride, double level,
                                double *out_low, double *out_high)
{
    mb_status status = MB_OK;
    double *sorted = NULL;
    int64_t n = 0;
    MB_NEW_ARRAY(sorted, count + 1);
    for (int64_t i = 0; i < count; i++)
        if (isfinite(values[i * stride])) sorted[n++] = values[i * stride];
    *out_low = *out_high = NAN;
    if (n == 0 || 2 * n < count) goto done;
    qsort(sorted, (size_t)n, sizeof *sorted, by_value);
    *out_low = percentile(sorted, n, (1 - level) / 2);
    *out_high = percentile(sorted, n, (1 + level) / 2);
done:
    mb_free(sorted);
    return status;
}
