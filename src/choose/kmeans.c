/* kmeans: Lloyd's iterations.
 *
 * A row keeps an upper bound of the distance to its centre and a lower one of that to all others. Centres
 * move, bounds are widened by as much, and only rows whose bounds meet are looked at again (Hamerly). Sums of
 * the clusters' rows are integers, so that they follow single rows that change sides without losing anything.
 *
 * 1. options   2. rows   3. panels of centres   4. one row   5. all rows   6. sums and inertia   7. empty
 * clusters   8. new centres   9. iterations   10. results
 */
#include "choose/kmeans.h"

#include <float.h>
#include <math.h>
#include <omp.h>
#include <string.h>

#include "base/log.h"
#include "base/memory.h"
#include "base/stop.h"
#include "choose/exact_sum.h"
#include "choose/kmeans_state.h"

enum {
    OWN_FIRST_FROM = 192, /* clusters from which a row's own distance is computed before all others */
    APART_UP_TO = 512     /* clusters up to which distances between centres are used */
};
#define WIDER    (1 + 0x1p-20f)
#define NARROWER (1 - 0x1p-20f)

/* ---- 1. options ---- */

const mb_option *mb_kmeans_option_table(int64_t *out_count)
{
    static const mb_option options[] = {
        MB_OPTION_TEXT(mb_kmeans_options, metric, "cluster.metric", "euclidean", "euclidean|cosine",
                       "cosine: rows and centres of length 1 (spherical k-means)", NULL),
        MB_OPTION_INT(mb_kmeans_options, restarts, "cluster.restarts", "4", 1, 10000, "",
                      "k-means++ starts; the one with the lowest inertia is kept", "cluster.n_init"),
        MB_OPTION_INT(mb_kmeans_options, max_iterations, "cluster.max_iterations", "300", 0, 1e6, "",
                      "iterations of a start at most; 0: rows go to the centres of centres.path as they are",
                      "cluster.max_iter"),
        MB_OPTION_REAL(
            mb_kmeans_options, tolerance, "cluster.tolerance", "1e-4", 0, 1e6, "",
            "iterations end when the squared moves of all centres sum up to this many times the mean "
            "variance of a column",
            "cluster.tol"),
        MB_OPTION_INT(mb_kmeans_options, seed, "cluster.seed", "42", 0, 9e18, "",
                      "seed of the starts and of the sample for the silhouette", NULL),
    };
    *out_count = sizeof options / sizeof *options;
    return options;
}

/* ---- 2. rows ---- */

void mb_kmeans_destroy(mb_kmeans **kmeans)
{
    if (*kmeans == NULL) return;
    mb_rows_columns_reset(&(*kmeans)->columns);
    mb_free((*kmeans)->norm);
    mb_free((*kmeans)->apart);
    MB_FREE(*kmeans);
}

static mb_status check_rows(mb_kmeans *km, mb_rows *rows)
{
    mb_status status = MB_OK;
    int64_t bad;
    MB_TRY(mb_rows_find_bad(km->comm, rows, km->threads, &bad));
    if (bad >= 0) MB_RAISE(MB_EDATA, "row %lld holds NaN or an infinity", (long long)bad);
    if (!km->is_cosine) goto done;
    MB_TRY(mb_rows_normalise(km->comm, rows, km->threads, km->loops, &bad));
    if (bad >= 0)
        MB_RAISE(MB_EDATA,
                 "row %lld is all zeros and has no direction; leave it out, or take cluster.metric=euclidean",
                 (long long)bad);
done:
    return status;
}

/* Lengths, distances from the mean, their sum and largest. */
static mb_status measure_rows(mb_kmeans *km)
{
    mb_status status = MB_OK;
    const int64_t width = km->rows.width;
    mb_exact_sum sum = {{0}};
    double most[2] = {0}, *zeros = mb_calloc((size_t)width, sizeof *zeros);
    km->norm = mb_calloc((size_t)km->rows.count, sizeof *km->norm);
    km->apart = mb_calloc((size_t)km->rows.count, sizeof *km->apart);
    MB_TRY(
        mb_comm_agree(km->comm, zeros != NULL && km->norm != NULL && km->apart != NULL ? MB_OK : MB_ENOMEM));
#pragma omp parallel num_threads(km->threads)
    {
        mb_exact_sum own = {{0}};
        double own_most[2] = {0};
#pragma omp for schedule(static)
        for (int64_t i = 0; i < km->rows.count; i++) {
            const float *row = km->rows.data + i * width;
            const double norm = sqrt(km->loops->distance_f64(row, zeros, width)),
                         apart = km->loops->distance_f64(row, km->columns.mean, width);
            mb_exact_sum_add(&own, apart);
            own_most[0] = norm > own_most[0] ? norm : own_most[0];
            own_most[1] = apart > own_most[1] ? apart : own_most[1];
            km->norm[i] = (float)norm * WIDER;
            km->apart[i] = (float)apart;
        }
#pragma omp critical(mb_kmeans_rows)
        {
            for (int w = 0; w < MB_EXACT_SUM_WORDS; w++) sum.word[w] += own.word[w];
            for (int i = 0; i < 2; i++) most[i] = own_most[i] > most[i] ? own_most[i] : most[i];
        }
    }
    MB_TRY(mb_comm_allreduce_i64(km->comm, sum.word, MB_EXACT_SUM_WORDS, MB_COMM_SUM));
    MB_TRY(mb_comm_minmax_f64(km->comm, most, 2, MB_COMM_MAX));
    km->apart_total = mb_exact_sum_get(&sum);
    km->norm_most = most[0];
    km->apart_most = most[1];
    if (most[0] > 1e15 || (most[0] > 0 && most[0] < 1e-12))
        MB_RAISE(MB_ERANGE,
                 "the longest row has length %g, whose square is no ordinary f32; scale the vectors",
                 most[0]);
done:
    mb_free(zeros);
    return status;
}

mb_status mb_kmeans_create(mb_comm *comm, mb_rows *rows, const mb_kmeans_options *options,
                           mb_kmeans **out_kmeans)
{
    mb_status status = MB_OK;
    mb_kmeans *km = NULL;
    if (rows->total < 1 || rows->width < 1) MB_RAISE(MB_ERANGE, "there are no rows to cluster");
    MB_NEW(km);
    km->comm = comm;
    km->rows = *rows;
    km->options = options;
    km->threads = options->threads > 0 ? options->threads : omp_get_max_threads();
    km->is_cosine = mb_str_equal(options->metric, "cosine");
    km->loops = mb_row_products_get(options->opt_isa);
    if (km->loops == NULL)
        MB_RAISE(MB_EUNSUPPORTED, "MB_ISA=%s: not known, or not on this processor", options->opt_isa);
    MB_TRY(check_rows(km, rows));
    MB_TRY(mb_rows_columns(comm, rows, km->threads, km->loops, &km->columns));
    MB_TRY(measure_rows(km));
    *out_kmeans = km;
    km = NULL;
done:
    mb_kmeans_destroy(&km);
    return status;
}

/* ---- 3. panels of centres ---- */

mb_status mb_kmeans_panels_create(const mb_kmeans *kmeans, int64_t k, mb_kmeans_panels *out_panels)
{
    mb_status status = MB_OK;
    mb_kmeans_panels panels = {.count = (k + MB_ROW_LANES - 1) / MB_ROW_LANES};
    MB_NEW_ARRAY(panels.panel, panels.count * kmeans->rows.width * MB_ROW_LANES);
    MB_NEW_ARRAY(panels.bias, panels.count * MB_ROW_LANES);
    *out_panels = panels;
    panels = (mb_kmeans_panels){0};
done:
    mb_kmeans_panels_reset(&panels);
    return status;
}

void mb_kmeans_panels_reset(mb_kmeans_panels *panels)
{
    MB_FREE(panels->panel);
    MB_FREE(panels->bias);
}

/* Centres first.. of a panel less the mean, transposed. */
static void fill_panel(const mb_kmeans *km, const float *centres, int64_t n, float *panel, float *bias,
                       mb_kmeans_panels *panels)
{
    const int64_t width = km->rows.width, lanes = mb_row_products_lanes(n);
    const double *mean = km->columns.mean;
    for (int64_t j = 0; j < lanes; j++) {
        double square = 0, across = 0;
        for (int64_t d = 0; d < width; d++) {
            const double value = j < n ? (double)centres[j * width + d] - mean[d] : 0;
            panel[d * lanes + j] = (float)value;
            square += value * value;
            across += value * mean[d];
        }
        bias[j] = j < n ? (float)(square + 2 * across) : INFINITY;
        if (sqrt(square) > panels->reach) panels->reach = sqrt(square);
        if (fabs(square + 2 * across) > panels->bias_most) panels->bias_most = fabs(square + 2 * across);
    }
}

void mb_kmeans_panels_fill(const mb_kmeans *kmeans, const float *centres, int64_t k, mb_kmeans_panels *panels)
{
    const int64_t width = kmeans->rows.width;
    panels->k = k;
    panels->count = (k + MB_ROW_LANES - 1) / MB_ROW_LANES;
    panels->reach = panels->bias_most = 0;
    for (int64_t p = 0; p < panels->count; p++) {
        const int64_t first = p * MB_ROW_LANES, n = k - first < MB_ROW_LANES ? k - first : MB_ROW_LANES;
        fill_panel(kmeans, centres + first * width, n, panels->panel + first * width, panels->bias + first,
                   panels);
    }
}

/* ---- 4. one row ---- */

/* One start and its iterations. */
typedef struct lloyd {
    const mb_kmeans *km;
    int64_t k;
    float *centres, *former; /* [k, width] */
    mb_kmeans_panels panels;
    float *half;          /* [k] half the distance to the nearest other centre, from below */
    double *move;         /* [k] of the last update */
    int32_t *label;       /* [count] -1: none yet */
    float *upper, *lower; /* [count] */
    int64_t *sums;        /* [k, width] of the rows labelled so, in units of the columns */
    int64_t *sizes;       /* [k] of all ranks */
    int64_t *delta;       /* [threads, k * width + k + 2] changes of sums, sizes, labels; the stop flag */
    float *products;      /* [threads, panels * BLOCK * LANES] */
    double *centre;       /* [width] scratch */
} lloyd;

/* Among centres whose score is within rounding of the best the nearest in f64, of equals the first. */
static int32_t decide(const lloyd *l, const float *row, const float *products, int64_t i, float limit,
                      double *out_distance)
{
    const mb_kmeans *km = l->km;
    int32_t found = 0;
    double best = INFINITY;
    for (int64_t c = 0; c < l->k; c++) {
        const int64_t p = c / MB_ROW_LANES, first = p * MB_ROW_LANES,
                      lanes =
                          mb_row_products_lanes(l->k - first < MB_ROW_LANES ? l->k - first : MB_ROW_LANES);
        const float product = products[first * MB_KMEANS_BLOCK + i * lanes + (c - first)];
        if (l->panels.bias[c] - 2 * product > limit) continue;
        const double d = km->loops->distance(row, l->centres + c * km->rows.width, km->rows.width);
        if (d < best) {
            best = d;
            found = (int32_t)c;
        }
    }
    *out_distance = best;
    return found;
}

static float root_above(double square)
{
    return square > 0 ? (float)sqrt(square) * WIDER + 1e-30f : 1e-30f;
}

static float root_below(double square)
{
    return square > 0 ? (float)sqrt(square) * NARROWER : 0;
}

/* The label of row number `row` (the i-th of the block's products), and its bounds. */
static int32_t place(lloyd *l, int64_t row, const float *products, int64_t i)
{
    const mb_kmeans *km = l->km;
    mb_row_nearest best = {.best = INFINITY, .second = INFINITY};
    for (int64_t p = 0; p < l->panels.count; p++) {
        const int64_t first = p * MB_ROW_LANES, n = l->k - first < MB_ROW_LANES ? l->k - first : MB_ROW_LANES,
                      lanes = mb_row_products_lanes(n);
        const mb_row_nearest here =
            km->loops->nearest(products + first * MB_KMEANS_BLOCK + i * lanes, l->panels.bias + first, lanes);
        const bool is_better = here.best < best.best;
        const float loser = is_better ? best.best : here.best;
        best.second = fminf(fminf(best.second, here.second), loser);
        if (is_better) best.index = here.index + (int32_t)first;
        if (is_better) best.best = here.best;
    }
    const double apart = (double)km->apart[row], noise = apart * 0x1p-22;
    const float error = mb_kmeans_error(km, &l->panels, km->norm[row]), limit = best.best + 2 * error;
    if (best.second > limit) {
        l->upper[row] = root_above(apart + (double)best.best + (double)error + noise);
        l->lower[row] =
            isinf(best.second) ? INFINITY : root_below(apart + (double)best.second - (double)error - noise);
        return best.index;
    }
    double distance;
    const int32_t label = decide(l, km->rows.data + row * km->rows.width, products, i, limit, &distance);
    l->upper[row] = root_above(distance);
    l->lower[row] = root_below(apart + (double)best.best - (double)error - noise);
    return label;
}

/* Could the row's label change? */
static bool is_open(lloyd *l, int64_t row)
{
    const mb_kmeans *km = l->km;
    const int32_t label = l->label[row];
    if (label < 0 || km->options->is_without_bounds) return true;
    const float least = l->lower[row] > l->half[label] ? l->lower[row] : l->half[label];
    if (l->upper[row] < least) return false;
    if (l->k < OWN_FIRST_FROM) return true;
    const int64_t width = km->rows.width;
    l->upper[row] =
        root_above(km->loops->distance(km->rows.data + row * width, l->centres + label * width, width));
    return !(l->upper[row] < least);
}

/* ---- 5. all rows ---- */

static void assign_block(lloyd *l, int64_t first, int64_t n, float *products, int64_t *delta)
{
    const mb_kmeans *km = l->km;
    const int64_t width = km->rows.width, k = l->k;
    const float *list[MB_KMEANS_BLOCK];
    int64_t number[MB_KMEANS_BLOCK], open = 0;
    for (int64_t i = first; i < first + n; i++)
        if (is_open(l, i)) {
            number[open] = i;
            list[open++] = km->rows.data + i * width;
        }
    if (open == 0) return;
    for (int64_t p = 0; p < l->panels.count; p++) {
        const int64_t at = p * MB_ROW_LANES,
                      lanes = mb_row_products_lanes(k - at < MB_ROW_LANES ? k - at : MB_ROW_LANES);
        km->loops->products(list, open, l->panels.panel + at * width, width, lanes,
                            products + at * MB_KMEANS_BLOCK);
    }
    for (int64_t i = 0; i < open; i++) {
        const int32_t label = place(l, number[i], products, i), old = l->label[number[i]];
        if (label == old) continue;
        if (old >= 0) {
            km->loops->add_fixed(list[i], km->columns.scale, width, true, delta + old * width);
            delta[k * width + old]--;
        }
        km->loops->add_fixed(list[i], km->columns.scale, width, false, delta + label * width);
        delta[k * width + label]++;
        delta[k * width + k]++;
        l->label[number[i]] = label;
    }
}

/* Every row to its nearest centre; *out_changed labels of all ranks. Collective. */
static mb_status assign(lloyd *l, int64_t *out_changed)
{
    mb_status status = MB_OK;
    const mb_kmeans *km = l->km;
    const int64_t sums = l->k * km->rows.width, size = sums + l->k + 2,
                  blocks = (km->rows.count + MB_KMEANS_BLOCK - 1) / MB_KMEANS_BLOCK;
    mb_kmeans_panels_fill(km, l->centres, l->k, &l->panels);
    memset(l->delta, 0, (size_t)(km->threads * size) * sizeof *l->delta);
#pragma omp parallel num_threads(km->threads)
    {
        const int t = omp_get_thread_num();
#pragma omp for schedule(dynamic, 4)
        for (int64_t b = 0; b < blocks; b++) {
            const int64_t first = b * MB_KMEANS_BLOCK, left = km->rows.count - first;
            assign_block(l, first, left < MB_KMEANS_BLOCK ? left : MB_KMEANS_BLOCK,
                         l->products + (int64_t)t * l->panels.count * MB_KMEANS_BLOCK * MB_ROW_LANES,
                         l->delta + t * size);
        }
    }
    for (int t = 1; t < km->threads; t++)
        for (int64_t i = 0; i < size; i++) l->delta[i] += l->delta[t * size + i];
    l->delta[size - 1] = mb_stop_is_set();
    MB_TRY(mb_comm_allreduce_i64(km->comm, l->delta, size, MB_COMM_SUM));
    if (l->delta[size - 1] > 0) MB_RAISE(MB_ESTOPPED, "stopped while clustering; run again to begin anew");
    for (int64_t i = 0; i < sums; i++) l->sums[i] += l->delta[i];
    for (int64_t c = 0; c < l->k; c++) l->sizes[c] += l->delta[sums + c];
    *out_changed = l->delta[sums + l->k];
done:
    return status;
}

/* ---- 6. sums and inertia ---- */

/* Sum of squared distances of all rows to their centres, from the sums: with y = x - m it is the sum of
 * |y|^2, and per cluster n |c'|^2 - 2 c' (sum of y). */
static double inertia_of(const lloyd *l)
{
    const mb_kmeans *km = l->km;
    const int64_t width = km->rows.width;
    double total = km->apart_total;
    for (int64_t c = 0; c < l->k; c++) {
        const double n = (double)l->sizes[c];
        double square = 0, across = 0;
        for (int64_t d = 0; d < width; d++) {
            const double mean = km->columns.mean[d], centre = (double)l->centres[c * width + d] - mean,
                         sum = (double)l->sums[c * width + d] / km->columns.scale[d] - n * mean;
            square += centre * centre;
            across += centre * sum;
        }
        total += n * square - 2 * across;
    }
    return total > 0 ? total : 0;
}

/* ---- 7. empty clusters ---- */

/* The row of all farthest from its centre, whose cluster has another row and that was not taken before; -1:
 * none is off its centre. Collective. */
static mb_status find_farthest(const lloyd *l, const double *distance, const int64_t *sizes,
                               const int64_t *taken, int64_t taken_count, int64_t *out_row)
{
    mb_status status = MB_OK;
    const mb_kmeans *km = l->km;
    double most = 0;
    int64_t row = INT64_MAX;
    for (int64_t i = 0; i < km->rows.count; i++) {
        bool is_free = distance[i] > most && sizes[l->label[i]] > 1;
        for (int64_t t = 0; t < taken_count && is_free; t++) is_free = taken[t] != km->rows.first + i;
        if (!is_free) continue;
        most = distance[i];
        row = km->rows.first + i;
    }
    double all = most;
    MB_TRY(mb_comm_minmax_f64(km->comm, &all, 1, MB_COMM_MAX));
    if (most < all || all == 0) row = INT64_MAX;
    MB_TRY(mb_comm_allreduce_i64(km->comm, &row, 1, MB_COMM_MIN));
    *out_row = row == INT64_MAX ? -1 : row;
done:
    return status;
}

/* Sums and sizes as they are once every empty cluster has taken a row: changed in place. Collective. */
static mb_status fill_empty(const lloyd *l, int64_t *sums, int64_t *sizes)
{
    mb_status status = MB_OK;
    const mb_kmeans *km = l->km;
    const int64_t width = km->rows.width;
    double *distance = NULL;
    float *row = NULL;
    int64_t *taken = NULL, taken_count = 0;
    distance = mb_calloc((size_t)km->rows.count, sizeof *distance);
    row = mb_calloc((size_t)width, sizeof *row);
    taken = mb_calloc((size_t)l->k, sizeof *taken);
    MB_TRY(mb_comm_agree(km->comm, distance != NULL && row != NULL && taken != NULL ? MB_OK : MB_ENOMEM));
#pragma omp parallel for num_threads(km->threads) schedule(static)
    for (int64_t i = 0; i < km->rows.count; i++)
        distance[i] = km->loops->distance(km->rows.data + i * width, l->centres + l->label[i] * width, width);
    for (int64_t c = 0; c < l->k; c++) {
        int64_t number, donor = 0;
        if (l->sizes[c] > 0) continue;
        MB_TRY(find_farthest(l, distance, sizes, taken, taken_count, &number));
        if (number < 0) break;
        MB_TRY(mb_rows_fetch(km->comm, &km->rows, &number, 1, row));
        const int owner = mb_rows_owner(km->comm, km->rows.total, number);
        if (owner == mb_comm_rank(km->comm)) donor = l->label[number - km->rows.first];
        MB_TRY(mb_comm_bcast(km->comm, &donor, sizeof donor, owner));
        km->loops->add_fixed(row, km->columns.scale, width, true, sums + donor * width);
        km->loops->add_fixed(row, km->columns.scale, width, false, sums + c * width);
        sizes[donor]--;
        sizes[c]++;
        taken[taken_count++] = number;
    }
done:
    mb_free(distance);
    mb_free(row);
    mb_free(taken);
    return status;
}

/* ---- 8. new centres ---- */

/* The mean of a cluster's rows, for cosine of length 1; a cluster without rows, or whose mean has no
 * direction, keeps its centre. */
static void set_centre(lloyd *l, int64_t c, const int64_t *sums, int64_t size)
{
    const mb_kmeans *km = l->km;
    const int64_t width = km->rows.width;
    double square = 0, factor = 1;
    if (size == 0) return;
    for (int64_t d = 0; d < width; d++) {
        l->centre[d] = (double)sums[d] / km->columns.scale[d] / (double)size;
        square += l->centre[d] * l->centre[d];
    }
    if (km->is_cosine && square < 1e-24) return;
    if (km->is_cosine) factor = 1 / sqrt(square);
    for (int64_t d = 0; d < width; d++) l->centres[c * width + d] = (float)(l->centre[d] * factor);
}

/* Centres of the labels; *out_move: sum of their squared moves. Collective. */
static mb_status update(lloyd *l, double *out_move)
{
    mb_status status = MB_OK;
    const mb_kmeans *km = l->km;
    const int64_t width = km->rows.width;
    int64_t *sums = l->sums, *sizes = l->sizes, *own_sums = NULL, *own_sizes = NULL, empty = 0;
    for (int64_t c = 0; c < l->k; c++) empty += l->sizes[c] == 0;
    if (empty > 0) {
        own_sums = mb_calloc((size_t)(l->k * width), sizeof *own_sums);
        own_sizes = mb_calloc((size_t)l->k, sizeof *own_sizes);
        MB_TRY(mb_comm_agree(km->comm, own_sums != NULL && own_sizes != NULL ? MB_OK : MB_ENOMEM));
        memcpy(own_sums, l->sums, (size_t)(l->k * width) * sizeof *own_sums);
        memcpy(own_sizes, l->sizes, (size_t)l->k * sizeof *own_sizes);
        MB_TRY(fill_empty(l, own_sums, own_sizes));
        sums = own_sums;
        sizes = own_sizes;
    }
    memcpy(l->former, l->centres, (size_t)(l->k * width) * sizeof *l->centres);
    *out_move = 0;
    for (int64_t c = 0; c < l->k; c++) {
        set_centre(l, c, sums + c * width, sizes[c]);
        const double square = km->loops->distance(l->centres + c * width, l->former + c * width, width);
        *out_move += square;
        l->move[c] = sqrt(square);
    }
done:
    mb_free(own_sums);
    mb_free(own_sizes);
    return status;
}

/* Bounds hold for the centres after their move. */
static void widen(lloyd *l)
{
    const mb_kmeans *km = l->km;
    const int64_t width = km->rows.width;
    double first = 0, second = 0;
    int64_t mover = -1;
    for (int64_t c = 0; c < l->k; c++) {
        if (l->move[c] > first) {
            second = first;
            first = l->move[c];
            mover = c;
        } else if (l->move[c] > second)
            second = l->move[c];
    }
#pragma omp parallel for num_threads(km->threads) schedule(static)
    for (int64_t i = 0; i < km->rows.count; i++) {
        const float others = (float)(l->label[i] == mover ? second : first);
        l->upper[i] = (l->upper[i] + (float)l->move[l->label[i]] * WIDER) * WIDER;
        l->lower[i] = (l->lower[i] - others * WIDER) * NARROWER;
    }
    for (int64_t c = 0; c < l->k; c++) l->half[c] = 0;
    if (l->k > APART_UP_TO) return;
#pragma omp parallel for num_threads(km->threads) schedule(static)
    for (int64_t c = 0; c < l->k; c++) {
        double least = INFINITY;
        for (int64_t o = 0; o < l->k; o++) {
            const double d = o == c
                                 ? INFINITY
                                 : km->loops->distance(l->centres + c * width, l->centres + o * width, width);
            least = d < least ? d : least;
        }
        l->half[c] = isinf(least) ? INFINITY : root_below(least) / 2;
    }
}

/* ---- 9. iterations ---- */

static void free_lloyd(lloyd *l)
{
    mb_kmeans_panels_reset(&l->panels);
    mb_free(l->centres);
    mb_free(l->former);
    mb_free(l->half);
    mb_free(l->move);
    mb_free(l->label);
    mb_free(l->upper);
    mb_free(l->lower);
    mb_free(l->sums);
    mb_free(l->sizes);
    mb_free(l->delta);
    mb_free(l->products);
    mb_free(l->centre);
}

static mb_status create_lloyd(const mb_kmeans *km, int64_t k, lloyd *l)
{
    mb_status status = MB_OK;
    const int64_t width = km->rows.width;
    *l = (lloyd){.km = km, .k = k};
    MB_TRY(mb_kmeans_panels_create(km, k, &l->panels));
    MB_NEW_ARRAY(l->centres, k * width);
    MB_NEW_ARRAY(l->former, k * width);
    MB_NEW_ARRAY(l->half, k);
    MB_NEW_ARRAY(l->move, k);
    MB_NEW_ARRAY(l->label, km->rows.count);
    MB_NEW_ARRAY(l->upper, km->rows.count);
    MB_NEW_ARRAY(l->lower, km->rows.count);
    MB_NEW_ARRAY(l->sums, k * width);
    MB_NEW_ARRAY(l->sizes, k);
    MB_NEW_ARRAY(l->delta, km->threads * (k * width + k + 2));
    MB_NEW_ARRAY(l->products, km->threads * l->panels.count * MB_KMEANS_BLOCK * MB_ROW_LANES);
    MB_NEW_ARRAY(l->centre, width);
done:
    return status;
}

/* From l->centres to the end; trace [max_iterations + 1]. Labels belong to the centres. Collective. */
static mb_status iterate(lloyd *l, double *trace, int64_t *out_iterations, bool *out_is_converged)
{
    mb_status status = MB_OK;
    const mb_kmeans *km = l->km;
    const double limit =
        km->options->tolerance * km->apart_total / (double)km->rows.total / (double)km->rows.width;
    int64_t changed = 1, at = 0;
    double move = 0;
    bool is_converged = false;
    for (int64_t i = 0; i < km->rows.count; i++) l->label[i] = -1;
    memset(l->sums, 0, (size_t)(l->k * km->rows.width) * sizeof *l->sums);
    memset(l->sizes, 0, (size_t)l->k * sizeof *l->sizes);
    while (at < km->options->max_iterations && !is_converged) {
        MB_TRY(assign(l, &changed));
        trace[at++] = inertia_of(l);
        MB_TRY(update(l, &move));
        widen(l);
        is_converged = changed == 0 || move <= limit;
    }
    /* The last update may have moved rows to other centres. */
    if (at == 0 || move > 0) MB_TRY(assign(l, &changed));
    trace[at] = inertia_of(l);
    *out_iterations = at;
    *out_is_converged = is_converged || km->options->max_iterations == 0;
done:
    return status;
}

/* ---- 10. results ---- */

void mb_kmeans_result_reset(mb_kmeans_result *result)
{
    mb_free(result->labels);
    mb_free(result->distance);
    mb_free(result->centres);
    mb_free(result->sizes);
    mb_free(result->trace);
    mb_free(result->iterations);
    *result = (mb_kmeans_result){0};
}

static mb_status create_result(const mb_kmeans *km, int64_t k, int64_t restarts, mb_kmeans_result *r)
{
    mb_status status = MB_OK;
    *r = (mb_kmeans_result){.k = k, .width = km->rows.width, .count = km->rows.count, .restarts = restarts};
    r->longest = km->options->max_iterations + 1;
    MB_NEW_ARRAY(r->labels, r->count);
    MB_NEW_ARRAY(r->distance, r->count);
    MB_NEW_ARRAY(r->centres, k * r->width);
    MB_NEW_ARRAY(r->sizes, k);
    MB_NEW_ARRAY(r->trace, restarts * r->longest);
    MB_NEW_ARRAY(r->iterations, restarts);
    for (int64_t i = 0; i < restarts * r->longest; i++) r->trace[i] = NAN;
done:
    return status;
}

/* Distances of the rows to their centres, and their exact sum. */
static mb_status measure_result(const mb_kmeans *km, mb_kmeans_result *r)
{
    mb_status status = MB_OK;
    mb_exact_sum sum = {{0}};
#pragma omp parallel num_threads(km->threads)
    {
        mb_exact_sum own = {{0}};
#pragma omp for schedule(static)
        for (int64_t i = 0; i < r->count; i++) {
            const double d = km->loops->distance(km->rows.data + i * r->width,
                                                 r->centres + r->labels[i] * r->width, r->width);
            mb_exact_sum_add(&own, d);
            r->distance[i] = (float)d;
        }
#pragma omp critical(mb_kmeans_result)
        for (int w = 0; w < MB_EXACT_SUM_WORDS; w++) sum.word[w] += own.word[w];
    }
    MB_TRY(mb_comm_allreduce_i64(km->comm, sum.word, MB_EXACT_SUM_WORDS, MB_COMM_SUM));
    r->inertia = mb_exact_sum_get(&sum);
    for (int64_t c = 0; c < r->k; c++) r->empty += r->sizes[c] == 0;
done:
    return status;
}

/* Traces as wide as the longest needs. */
static void cut_traces(mb_kmeans_result *r)
{
    const int64_t from = r->longest;
    int64_t longest = 0;
    for (int64_t i = 0; i < r->restarts; i++)
        if (r->iterations[i] + 1 > longest) longest = r->iterations[i] + 1;
    for (int64_t i = 1; i < r->restarts; i++)
        memmove(r->trace + i * longest, r->trace + i * from, (size_t)longest * sizeof *r->trace);
    r->longest = longest;
}

static mb_status start_centres(mb_kmeans *km, lloyd *l, int64_t restart, const float *opt_start)
{
    mb_status status = MB_OK;
    const int64_t width = km->rows.width;
    mb_rows starts = {.data = l->centres, .count = l->k, .total = l->k, .width = width};
    int64_t bad;
    if (opt_start == NULL) {
        MB_TRY(mb_kmeans_start(km, l->k, restart, l->centres));
        goto done;
    }
    memcpy(l->centres, opt_start, (size_t)(l->k * width) * sizeof *l->centres);
    MB_TRY(mb_rows_find_bad(km->comm, &starts, 1, &bad));
    if (bad < 0 && km->is_cosine) MB_TRY(mb_rows_normalise(km->comm, &starts, 1, km->loops, &bad));
    if (bad >= 0) MB_RAISE(MB_EDATA, "centre %lld of the start is no ordinary vector", (long long)bad);
done:
    return status;
}

mb_status mb_kmeans_run(mb_kmeans *kmeans, int64_t k, const float *opt_start, mb_kmeans_result *out_result)
{
    mb_status status = MB_OK;
    lloyd l = {0};
    mb_kmeans_result r = {0};
    const int64_t restarts = opt_start != NULL ? 1 : kmeans->options->restarts;
    double best = INFINITY;
    if (k < 1) MB_RAISE(MB_ERANGE, "%lld clusters: at least 1", (long long)k);
    if (k > kmeans->rows.total)
        MB_RAISE(MB_ERANGE, "%lld clusters of %lld rows: at most one for each row", (long long)k,
                 (long long)kmeans->rows.total);
    status = create_lloyd(kmeans, k, &l);
    if (status == MB_OK) status = create_result(kmeans, k, restarts, &r);
    MB_TRY(mb_comm_agree(kmeans->comm, status));
    for (int64_t restart = 0; restart < restarts; restart++) {
        double *trace = r.trace + restart * r.longest;
        bool is_converged;
        MB_TRY(start_centres(kmeans, &l, restart, opt_start));
        MB_TRY(iterate(&l, trace, &r.iterations[restart], &is_converged));
        const double inertia = trace[r.iterations[restart]];
        mb_debug("k = %lld, start %lld: inertia %.9g after %lld iterations", (long long)k, (long long)restart,
                 inertia, (long long)r.iterations[restart]);
        if (restart > 0 && !(inertia < best)) continue;
        best = inertia;
        r.best_restart = restart;
        r.is_converged = is_converged;
        memcpy(r.labels, l.label, (size_t)r.count * sizeof *r.labels);
        memcpy(r.centres, l.centres, (size_t)(k * r.width) * sizeof *r.centres);
        memcpy(r.sizes, l.sizes, (size_t)k * sizeof *r.sizes);
    }
    MB_TRY(measure_result(kmeans, &r));
    cut_traces(&r);
    *out_result = r;
    r = (mb_kmeans_result){0};
done:
    mb_kmeans_result_reset(&r);
    free_lloyd(&l);
    return status;
}
