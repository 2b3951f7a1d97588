/* latency.c: quantiles, the system's clocks, the rounds of a cell.
 *
 * 1. quantiles   2. meters   3. a cell   4. its rounds
 */
#include "measure/latency.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/memory.h"

/* ---- 1. quantiles ---- */

static int by_size(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Between the two neighbours of rank q (n - 1), in proportion. */
static double quantile(const double *sorted, int64_t n, double q)
{
    const double at = q * (double)(n - 1);
    const int64_t below = (int64_t)floor(at), above = below + 1 < n ? below + 1 : below;
    return sorted[below] + (at - (double)below) * (sorted[above] - sorted[below]);
}

mb_status mb_latency_spread_get(const double *values, int64_t n, mb_latency_spread *out_spread)
{
    mb_status status = MB_OK;
    double *sorted = NULL, sum = 0;
    MB_NEW_ARRAY(sorted, n);
    memcpy(sorted, values, (size_t)n * sizeof *sorted);
    qsort(sorted, (size_t)n, sizeof *sorted, by_size);
    for (int64_t i = 0; i < n; i++) sum += sorted[i];
    *out_spread = (mb_latency_spread){.p5 = quantile(sorted, n, 0.05),
                                      .p50 = quantile(sorted, n, 0.5),
                                      .p95 = quantile(sorted, n, 0.95),
                                      .mean = sum / (double)n,
                                      .min = sorted[0],
                                      .max = sorted[n - 1]};
done:
    mb_free(sorted);
    return status;
}

/* ---- 2. meters ---- */

static double wall_seconds(void *own)
{
    (void)own;
    return mb_clock_seconds();
}

static double process_seconds(void *own)
{
    struct timespec time = {0};
    (void)own;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static bool counted_joules(void *own, double *out_joules, double *out_uncertainty)
{
    return mb_energy_read(own, out_joules, out_uncertainty);
}

mb_latency_meter mb_latency_meter_get(mb_energy *opt_energy)
{
    return (mb_latency_meter){.own = opt_energy,
                              .seconds = wall_seconds,
                              .core_seconds = process_seconds,
                              .joules = opt_energy != NULL ? counted_joules : NULL};
}

/* ---- 3. a cell ---- */

enum { MOST_ROUNDS = 1000000 }; /* of a block, whatever a clock says */

typedef struct reading {
    double seconds, core_seconds, joules, uncertainty;
} reading;

struct mb_latency {
    mb_latency_meter meter;
    mb_latency_options options;
    mb_latency_round *rounds;         /* [repeats] */
    int64_t ended;                    /* rounds, the warm-up among them */
    reading block_began, began, last; /* of the block, of the round; at the end of the last round */
    double first;                     /* when its first token was there; NaN: not yet */
    bool has_joules;
};

mb_status mb_latency_create(const mb_latency_meter *meter, const mb_latency_options *options,
                            mb_latency **out_cell)
{
    mb_status status = MB_OK;
    mb_latency *cell = NULL;
    MB_NEW(cell);
    cell->meter = *meter;
    cell->options = *options;
    cell->has_joules = meter->joules != NULL;
    MB_NEW_ARRAY(cell->rounds, options->repeats);
    *out_cell = cell;
    cell = NULL;
done:
    mb_latency_destroy(&cell);
    return status;
}

void mb_latency_destroy(mb_latency **cell)
{
    if (*cell == NULL) return;
    mb_free((*cell)->rounds);
    MB_FREE(*cell);
}

/* ---- 4. its rounds ---- */

static int64_t measured(const mb_latency *cell)
{
    return cell->ended - cell->options.warmup;
}

bool mb_latency_wants(const mb_latency *cell)
{
    const int64_t n = measured(cell);
    if (n < cell->options.repeats) return true;
    return cell->has_joules && n < MOST_ROUNDS &&
           cell->last.seconds - cell->block_began.seconds < cell->options.least_seconds;
}

/* The counter may take its time: it is read outside of what the clocks see. */
static void read_joules(mb_latency *cell, reading *out)
{
    if (cell->has_joules)
        cell->has_joules = cell->meter.joules(cell->meter.own, &out->joules, &out->uncertainty);
}

static void read_clocks(const mb_latency *cell, reading *out)
{
    out->seconds = cell->meter.seconds(cell->meter.own);
    out->core_seconds = cell->meter.core_seconds(cell->meter.own);
}

void mb_latency_begin(mb_latency *cell)
{
    reading now = {0};
    read_joules(cell, &now);
    read_clocks(cell, &now);
    cell->first = NAN;
    cell->began = now;
    if (measured(cell) == 0) cell->block_began = now;
}

void mb_latency_first(mb_latency *cell)
{
    if (isnan(cell->first)) cell->first = cell->meter.seconds(cell->meter.own);
}

void mb_latency_end(mb_latency *cell)
{
    reading now = {0};
    read_clocks(cell, &now);
    read_joules(cell, &now);
    const int64_t n = measured(cell);
    if (n >= 0 && n < cell->options.repeats)
        cell->rounds[n] = (mb_latency_round){
            .seconds = now.seconds - cell->began.seconds,
            .first_seconds = (isnan(cell->first) ? now.seconds : cell->first) - cell->began.seconds,
            .core_seconds = now.core_seconds - cell->began.core_seconds,
            .joules = cell->has_joules ? now.joules - cell->began.joules : 0};
    cell->last = now;
    cell->ended++;
}

const mb_latency_round *mb_latency_rounds(const mb_latency *cell, int64_t *out_count)
{
    const int64_t n = measured(cell), most = cell->options.repeats;
    *out_count = n < 0 ? 0 : n < most ? n : most;
    return cell->rounds;
}

mb_latency_block mb_latency_block_get(const mb_latency *cell)
{
    const int64_t n = measured(cell);
    if (n <= 0) return (mb_latency_block){0};
    return (mb_latency_block){.rounds = n,
                              .seconds = cell->last.seconds - cell->block_began.seconds,
                              .core_seconds = cell->last.core_seconds - cell->block_began.core_seconds,
                              .joules = cell->has_joules ? cell->last.joules - cell->block_began.joules : 0,
                              .uncertainty = cell->has_joules ? cell->last.uncertainty : 0};
}

bool mb_latency_has_joules(const mb_latency *cell)
{
    return cell->has_joules;
}
