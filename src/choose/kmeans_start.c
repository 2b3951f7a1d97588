/* kmeans_start: k-means++ with 2 + ln k trials a step.
 *
 * A row is drawn with its squared distance to the nearest centre so far as its weight; the trial that leaves
 * the smallest sum of weights becomes a centre. Weights are integers, so that their sums are exact; a sum
 * over ranks is the ranks' sums behind one another, as the rows are.
 *
 * 1. distances to trials   2. drawing   3. steps
 */
#include <math.h>
#include <omp.h>
#include <string.h>

#include "base/memory.h"
#include "base/rng.h"
#include "choose/kmeans_state.h"

typedef struct start {
    const mb_kmeans *km;
    mb_kmeans_panels panels;
    double unit;     /* weights per squared distance */
    float *closest;  /* [count] */
    float *trial;    /* [trials, count] */
    float *rows;     /* [trials, width] */
    float *products; /* [threads, BLOCK * LANES] */
    int64_t *block;  /* [blocks] weights */
    int64_t *ranks;  /* [ranks] weights */
    int64_t blocks, trials;
    int64_t sums[MB_KMEANS_TRIALS];
} start;

static inline int64_t weight_of(const start *s, float distance)
{
    return (int64_t)((double)distance * s->unit);
}

/* ---- 1. distances to trials ---- */

/* Where rounding could be a good part of a distance it is computed again: rows that equal a centre must have
 * weight 0. */
static void measure_block(const start *s, int64_t trials, int64_t first, int64_t n, float *products,
                          int64_t *sums)
{
    const mb_kmeans *km = s->km;
    const int64_t width = km->rows.width, lanes = mb_row_products_lanes(trials);
    const float *list[MB_KMEANS_BLOCK];
    for (int64_t i = 0; i < n; i++) list[i] = km->rows.data + (first + i) * width;
    km->loops->products(list, n, s->panels.panel, width, lanes, products);
    for (int64_t i = 0; i < n; i++) {
        const float error =
            mb_kmeans_error(km, &s->panels, km->norm[first + i]) + 0x1p-22f * km->apart[first + i];
        for (int64_t t = 0; t < trials; t++) {
            float d = km->apart[first + i] + (s->panels.bias[t] - 2 * products[i * lanes + t]);
            if (d < 64 * error) d = (float)km->loops->distance(list[i], s->rows + t * width, width);
            if (s->closest[first + i] < d) d = s->closest[first + i];
            s->trial[t * km->rows.count + first + i] = d;
            sums[t] += weight_of(s, d);
        }
    }
}

/* Of each trial the distances to the nearest centre if it were one too, and their sum over all ranks. */
static mb_status measure(start *s, int64_t trials)
{
    const mb_kmeans *km = s->km;
    int64_t sums[MB_KMEANS_TRIALS] = {0};
    mb_kmeans_panels_fill(km, s->rows, trials, &s->panels);
#pragma omp parallel num_threads(km->threads)
    {
        float *products = s->products + (int64_t)omp_get_thread_num() * MB_KMEANS_BLOCK * MB_ROW_LANES;
        int64_t own[MB_KMEANS_TRIALS] = {0};
#pragma omp for schedule(dynamic, 4)
        for (int64_t b = 0; b < s->blocks; b++) {
            const int64_t first = b * MB_KMEANS_BLOCK, left = km->rows.count - first;
            measure_block(s, trials, first, left < MB_KMEANS_BLOCK ? left : MB_KMEANS_BLOCK, products, own);
        }
#pragma omp critical(mb_kmeans_start_sums)
        for (int64_t t = 0; t < trials; t++) sums[t] += own[t];
    }
    memcpy(s->sums, sums, sizeof sums);
    return mb_comm_allreduce_i64(km->comm, s->sums, trials, MB_COMM_SUM);
}

/* The trial becomes a centre. */
static mb_status keep(start *s, int64_t trial)
{
    mb_status status = MB_OK;
    const mb_kmeans *km = s->km;
    int64_t sum = 0;
    memcpy(s->closest, s->trial + trial * km->rows.count, (size_t)km->rows.count * sizeof *s->closest);
    for (int64_t b = 0; b < s->blocks; b++) {
        const int64_t end =
            (b + 1) * MB_KMEANS_BLOCK < km->rows.count ? (b + 1) * MB_KMEANS_BLOCK : km->rows.count;
        s->block[b] = 0;
        for (int64_t i = b * MB_KMEANS_BLOCK; i < end; i++) s->block[b] += weight_of(s, s->closest[i]);
        sum += s->block[b];
    }
    MB_TRY(mb_comm_allgather(km->comm, &sum, sizeof sum, s->ranks));
done:
    return status;
}

/* ---- 2. drawing ---- */

/* The row in which the running sum of weights passes `at`. */
static mb_status find_row(const start *s, int64_t at, int64_t *out_row)
{
    const mb_kmeans *km = s->km;
    int64_t row = 0;
    int owner = 0;
    while (owner + 1 < mb_comm_size(km->comm) && at >= s->ranks[owner]) at -= s->ranks[owner++];
    if (mb_comm_rank(km->comm) == owner) {
        int64_t b = 0;
        while (b + 1 < s->blocks && at >= s->block[b]) at -= s->block[b++];
        for (row = b * MB_KMEANS_BLOCK; row + 1 < km->rows.count; row++) {
            const int64_t weight = weight_of(s, s->closest[row]);
            if (at < weight) break;
            at -= weight;
        }
        row += km->rows.first;
    }
    *out_row = row;
    return mb_comm_bcast(km->comm, out_row, sizeof *out_row, owner);
}

/* The trials of a step, drawn by (seed, restart, step, trial), into rows. */
static mb_status draw(start *s, int64_t restart, int64_t step, int64_t trials)
{
    mb_status status = MB_OK;
    const mb_kmeans *km = s->km;
    int64_t numbers[MB_KMEANS_TRIALS], total = 0;
    for (int r = 0; r < mb_comm_size(km->comm); r++) total += step > 0 ? s->ranks[r] : 0;
    for (int64_t t = 0; t < trials; t++) {
        const uint64_t range = (uint64_t)(total > 0 ? total : km->rows.total);
        const int64_t at = (int64_t)mb_rng_below((uint64_t)km->options->seed, MB_KMEANS_STREAM,
                                                 (uint32_t)restart, (uint64_t)(step * 64 + t), range);
        numbers[t] = at; /* every row lies on a centre already: any */
        if (total > 0) MB_TRY(find_row(s, at, &numbers[t]));
    }
    MB_TRY(mb_rows_fetch(km->comm, &km->rows, numbers, trials, s->rows));
done:
    return status;
}

/* ---- 3. steps ---- */

static mb_status prepare(start *s, int64_t k)
{
    mb_status status = MB_OK;
    const mb_kmeans *km = s->km;
    s->trials = 2 + (int64_t)log((double)k);
    if (s->trials > MB_KMEANS_TRIALS) s->trials = MB_KMEANS_TRIALS;
    s->blocks = (km->rows.count + MB_KMEANS_BLOCK - 1) / MB_KMEANS_BLOCK;
    /* Two rows are at most twice as far from each other as from the mean; the rest is for rounding. */
    s->unit = ldexp(1, mb_rows_bits(km->rows.total) - mb_rows_exponent(8 * km->apart_most));
    MB_NEW_ARRAY(s->closest, km->rows.count);
    MB_NEW_ARRAY(s->trial, s->trials * km->rows.count);
    MB_NEW_ARRAY(s->rows, s->trials * km->rows.width);
    MB_NEW_ARRAY(s->products, km->threads * (int64_t)MB_KMEANS_BLOCK * MB_ROW_LANES);
    MB_NEW_ARRAY(s->block, s->blocks);
    MB_NEW_ARRAY(s->ranks, mb_comm_size(km->comm));
    MB_TRY(mb_kmeans_panels_create(km, s->trials, &s->panels));
    for (int64_t i = 0; i < km->rows.count; i++) s->closest[i] = INFINITY;
done:
    return status;
}

mb_status mb_kmeans_start(const mb_kmeans *kmeans, int64_t k, int64_t restart, float *centres)
{
    mb_status status = MB_OK;
    start s = {.km = kmeans};
    const int64_t width = kmeans->rows.width;
    MB_TRY(mb_comm_agree(kmeans->comm, prepare(&s, k)));
    for (int64_t step = 0; step < k; step++) {
        const int64_t trials = step == 0 ? 1 : s.trials;
        int64_t best = 0;
        MB_TRY(draw(&s, restart, step, trials));
        MB_TRY(measure(&s, trials));
        for (int64_t t = 1; t < trials; t++)
            if (s.sums[t] < s.sums[best]) best = t;
        MB_TRY(keep(&s, best));
        memcpy(centres + step * width, s.rows + best * width, (size_t)width * sizeof *centres);
    }
done:
    mb_kmeans_panels_reset(&s.panels);
    mb_free(s.closest);
    mb_free(s.trial);
    mb_free(s.rows);
    mb_free(s.products);
    mb_free(s.block);
    mb_free(s.ranks);
    return status;
}
