/* rows: shares, checks, exact sums of columns.
 *
 * 1. shares   2. checks   3. columns
 */
#include "choose/rows.h"

#include <math.h>
#include <omp.h>
#include <string.h>

#include "base/memory.h"

/* ---- 1. shares ---- */

static void share_of(int64_t total, int size, int rank, int64_t *out_first, int64_t *out_count)
{
    const int64_t panels = (total + MB_ROWS_PANEL - 1) / MB_ROWS_PANEL;
    int64_t first, count;
    mb_comm_share_of(panels, size, rank, &first, &count);
    const int64_t end = (first + count) * MB_ROWS_PANEL < total ? (first + count) * MB_ROWS_PANEL : total;
    *out_first = first * MB_ROWS_PANEL < total ? first * MB_ROWS_PANEL : total;
    *out_count = end - *out_first;
}

void mb_rows_share(const mb_comm *comm, int64_t total, int64_t *out_first, int64_t *out_count)
{
    share_of(total, mb_comm_size(comm), mb_comm_rank(comm), out_first, out_count);
}

int mb_rows_owner(const mb_comm *comm, int64_t total, int64_t row)
{
    int low = 0, high = mb_comm_size(comm) - 1;
    while (low < high) {
        const int middle = low + (high - low) / 2;
        int64_t first, count;
        share_of(total, mb_comm_size(comm), middle, &first, &count);
        if (row < first + count)
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

mb_status mb_rows_fetch(mb_comm *comm, const mb_rows *rows, const int64_t *numbers, int64_t n, float *out)
{
    mb_status status = MB_OK;
    const size_t bytes = (size_t)rows->width * sizeof *out;
    for (int64_t i = 0; i < n; i++) {
        const int owner = mb_rows_owner(comm, rows->total, numbers[i]);
        if (mb_comm_rank(comm) == owner)
            memcpy(out + i * rows->width, rows->data + (numbers[i] - rows->first) * rows->width, bytes);
        MB_TRY(mb_comm_bcast(comm, out + i * rows->width, bytes, owner));
    }
done:
    return status;
}

/* ---- 2. checks ---- */

static mb_status first_of_all(mb_comm *comm, int64_t found, int64_t *out_row)
{
    mb_status status = MB_OK;
    MB_TRY(mb_comm_allreduce_i64(comm, &found, 1, MB_COMM_MIN));
    *out_row = found == INT64_MAX ? -1 : found;
done:
    return status;
}

mb_status mb_rows_find_bad(mb_comm *comm, const mb_rows *rows, int threads, int64_t *out_row)
{
    const uint32_t exponent = 0x7F800000u;
    int64_t found = INT64_MAX;
#pragma omp parallel for num_threads(threads) schedule(static) reduction(min : found)
    for (int64_t i = 0; i < rows->count; i++) {
        const float *row = rows->data + i * rows->width;
        uint32_t is_bad = 0;
        for (int64_t d = 0; d < rows->width; d++) {
            uint32_t bits;
            memcpy(&bits, row + d, sizeof bits);
            is_bad |= (bits & exponent) == exponent;
        }
        if (is_bad && rows->first + i < found) found = rows->first + i;
    }
    return first_of_all(comm, found, out_row);
}

mb_status mb_rows_normalise(mb_comm *comm, mb_rows *rows, int threads, const mb_row_products *loops,
                            int64_t *out_row)
{
    mb_status status = MB_OK;
    const int64_t width = rows->width;
    double *zeros = NULL;
    int64_t found = INT64_MAX;
    zeros = mb_calloc((size_t)width, sizeof *zeros);
    MB_TRY(mb_comm_agree(comm, zeros != NULL ? MB_OK : MB_ENOMEM));
#pragma omp parallel for num_threads(threads) schedule(static) reduction(min : found)
    for (int64_t i = 0; i < rows->count; i++) {
        float *row = rows->data + i * width;
        const double square = loops->distance_f64(row, zeros, width);
        if (square == 0 && rows->first + i < found) found = rows->first + i;
        const double factor = square > 0 ? 1 / sqrt(square) : 0;
        for (int64_t d = 0; d < width; d++) row[d] = (float)((double)row[d] * factor);
    }
    MB_TRY(first_of_all(comm, found, out_row));
done:
    mb_free(zeros);
    return status;
}

/* ---- 3. columns ---- */

int mb_rows_bits(int64_t n)
{
    int bits = 62;
    while (bits > 0 && n > (INT64_C(1) << (62 - bits))) bits--;
    return bits < 50 ? bits : 50;
}

int mb_rows_exponent(double value)
{
    int exponent;
    frexp(value, &exponent);
    return value == 0 ? 0 : exponent;
}

void mb_rows_columns_reset(mb_row_columns *columns)
{
    MB_FREE(columns->scale);
    MB_FREE(columns->mean);
    MB_FREE(columns->largest);
}

/* The largest magnitude of every column, of this rank's rows: own [threads, width], zeros. */
static void find_largest(const mb_rows *rows, int threads, float *own, double *largest)
{
    const int64_t width = rows->width;
#pragma omp parallel num_threads(threads)
    {
        float *mine = own + omp_get_thread_num() * width;
#pragma omp for schedule(static)
        for (int64_t i = 0; i < rows->count; i++) {
            const float *row = rows->data + i * width;
            for (int64_t d = 0; d < width; d++) {
                const float value = fabsf(row[d]);
                mine[d] = value > mine[d] ? value : mine[d];
            }
        }
    }
    for (int t = 0; t < threads; t++)
        for (int64_t d = 0; d < width; d++) {
            const double value = (double)own[t * width + d];
            largest[d] = value > largest[d] ? value : largest[d];
        }
}

/* Exact sums of this rank's rows: own [threads, width], zeros; the result in its first row. */
static void sum_columns(const mb_rows *rows, int threads, const mb_row_products *loops, const double *scale,
                        int64_t *own)
{
    const int64_t width = rows->width;
#pragma omp parallel num_threads(threads)
    {
        int64_t *mine = own + omp_get_thread_num() * width;
#pragma omp for schedule(static)
        for (int64_t i = 0; i < rows->count; i++)
            loops->add_fixed(rows->data + i * width, scale, width, false, mine);
    }
    for (int t = 1; t < threads; t++)
        for (int64_t d = 0; d < width; d++) own[d] += own[t * width + d];
}

mb_status mb_rows_columns(mb_comm *comm, const mb_rows *rows, int threads, const mb_row_products *loops,
                          mb_row_columns *out_columns)
{
    mb_status status = MB_OK;
    mb_row_columns columns = {0};
    float *largest = NULL;
    int64_t *sums = NULL;
    const int64_t width = rows->width;
    const int bits = mb_rows_bits(rows->total);
    columns.scale = mb_calloc((size_t)width, sizeof *columns.scale);
    columns.mean = mb_calloc((size_t)width, sizeof *columns.mean);
    columns.largest = mb_calloc((size_t)width, sizeof *columns.largest);
    largest = mb_calloc((size_t)(threads * width), sizeof *largest);
    sums = mb_calloc((size_t)(threads * width), sizeof *sums);
    const bool has_room = columns.scale != NULL && columns.mean != NULL && columns.largest != NULL &&
                          largest != NULL && sums != NULL;
    MB_TRY(mb_comm_agree(comm, has_room ? MB_OK : MB_ENOMEM));
    find_largest(rows, threads, largest, columns.largest);
    MB_TRY(mb_comm_minmax_f64(comm, columns.largest, width, MB_COMM_MAX));
    for (int64_t d = 0; d < width; d++)
        columns.scale[d] = ldexp(1, bits - mb_rows_exponent(columns.largest[d]));
    sum_columns(rows, threads, loops, columns.scale, sums);
    MB_TRY(mb_comm_allreduce_i64(comm, sums, width, MB_COMM_SUM));
    for (int64_t d = 0; d < width; d++)
        columns.mean[d] = (double)sums[d] / columns.scale[d] / (double)rows->total;
    *out_columns = columns;
    columns = (mb_row_columns){0};
done:
    mb_rows_columns_reset(&columns);
    mb_free(largest);
    mb_free(sums);
    return status;
}
